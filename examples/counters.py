"""Counters: the smallest service, on three nodes in one process. Run it: `python -m examples.counters`."""

from __future__ import annotations

import asyncio
import socket
import tempfile
from contextlib import AsyncExitStack

from multiraft import Node, NodeConfig, StateMachine, command, query
from multiraft.tuning import event_loop


class Counters(StateMachine):
    """Named counters. An ordinary class: `Counters().add("x") == 1` needs no cluster."""

    def __init__(self) -> None:
        self.values: dict[str, int] = {}

    @command(key="name")
    def add(self, name: str, amount: int = 1) -> int:
        """Add to a counter; return what it is now."""
        self.values[name] = self.values.get(name, 0) + amount
        return self.values[name]

    @query(key="name")
    def get(self, name: str) -> int:
        """Return a counter; 0 if nobody has added to it."""
        return self.values.get(name, 0)

    @query(key=None)
    def total(self) -> int:
        """Return the sum of all counters of one shard."""
        return sum(self.values.values())


def free_addresses(count: int) -> list[str]:
    """Return loopback addresses that nobody listens on."""
    listeners = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    addresses = [f"127.0.0.1:{listener.getsockname()[1]}" for listener in listeners]
    for listener in listeners:
        listener.close()
    return addresses


async def run() -> None:
    """Start three nodes, count through each of them, and read it all back."""
    members = dict(zip("abc", free_addresses(3), strict=True))
    async with AsyncExitStack() as stack:
        directory = stack.enter_context(tempfile.TemporaryDirectory(prefix="counters-"))
        nodes = [
            Node(NodeConfig(name, f"{directory}/{name}", members[name], members, tune_gc=True)) for name in members
        ]
        handles = [node.service("counters", Counters, initial_shards=4, replicas=3) for node in nodes]
        async with asyncio.TaskGroup() as starting:
            for node in nodes:
                starting.create_task(stack.enter_async_context(node))
        for node in nodes:
            await node.ready("counters")
        print("three nodes are ready")
        for counters in handles:  # any node will do: it finds the shard and its leader
            for name in ("apples", "pears", "plums"):
                await counters.add(name, 2)
        for node, counters in zip(nodes, handles, strict=True):
            print(
                f"node {node.node_id} reads", {name: await counters.get(name) for name in ("apples", "pears", "plums")}
            )
        totals = {shard: total async for shard, total in handles[0].total.on_each_shard()}
        print("total on each shard", totals, "and over all", sum(totals.values()))


def main() -> None:
    """Run the example on a loop of its own."""
    with asyncio.Runner(loop_factory=event_loop()) as runner:
        runner.run(run())


if __name__ == "__main__":
    main()
