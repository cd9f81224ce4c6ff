"""Counters from outside: three nodes, and a client that is none of them. Run it: `python -m examples.remote`.

All in one process here, so that one command shows it; the client speaks to the nodes over their sockets alone, and
could be anywhere.
"""

from __future__ import annotations

import asyncio
import tempfile
from contextlib import AsyncExitStack

from examples.counters import Counters, free_addresses
from multiraft import Node, NodeConfig
from multiraft.admin.api import serve_admin
from multiraft.client import Client


async def run() -> None:
    """Start three nodes that serve clients, count through one URL, and stop a node meanwhile."""
    peers, admins = free_addresses(3), free_addresses(3)
    members = dict(zip("abc", peers, strict=True))
    async with AsyncExitStack() as stack:
        directory = stack.enter_context(tempfile.TemporaryDirectory(prefix="remote-"))
        nodes = [Node(NodeConfig(name, f"{directory}/{name}", members[name], members)) for name in members]
        for node in nodes:
            node.service("counters", Counters, initial_shards=4, replicas=3)
        await asyncio.gather(*[stack.enter_async_context(node) for node in nodes])
        for node, admin in zip(nodes, admins, strict=True):
            await stack.enter_async_context(serve_admin(node, admin))
        await asyncio.gather(*[node.ready("counters") for node in nodes])
        print("three nodes are ready")
        client = await stack.enter_async_context(Client([f"http://{admins[0]}"]))
        counters = client.service("counters", Counters)
        names = ["apples", "pears", "plums"] * 100
        await asyncio.gather(*[counters.add(name) for name in names])  # a few frames, not 300 requests
        print("counted", {name: await counters.get(name) for name in ("apples", "pears", "plums")})
        counting = asyncio.gather(*[counters.add(name) for name in names])
        await nodes[0].stop()  # the very node that the client was told of
        await counting
        print(
            "once each, though a node left", {name: await counters.get(name) for name in ("apples", "pears", "plums")}
        )


def main() -> None:
    """Run the example on a loop of its own."""
    asyncio.run(run())


if __name__ == "__main__":
    main()
