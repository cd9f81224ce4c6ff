"""Three nodes of the key-value store in this process, with the sweeper that each server runs."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Final, TypeAlias

from aiohttp import web

from examples.kv.cluster import free_ports
from examples.kv.http import kv_runner
from examples.kv.machine import KV, SERVICE
from examples.kv.server import kv_config
from examples.kv.sweeping import Sweeper
from multiraft.config import Limits, NodeConfig
from multiraft.node import Node

LIMITS: Final = Limits(beat_ms=50, election_timeout_ms=500, snapshot_entries=0)
"""No snapshots: the thread that writes them would begin in whichever test makes the log long enough."""
Stored: TypeAlias = tuple[Node, type[KV]]
"""A node, and the store's handle there."""


@asynccontextmanager
async def three_nodes(
    directory: Path, kind: type[KV], *, shards: int = 4, replicas: int = 3
) -> AsyncIterator[list[Stored]]:
    """Run nodes a, b and c until the block ends; they are ready when it begins."""
    members = {name: f"127.0.0.1:{port}" for name, port in zip("abc", free_ports(3), strict=True)}
    configs = [NodeConfig(name, str(directory / name), members[name], members, limits=LIMITS) for name in "abc"]
    async with AsyncExitStack() as stack:
        nodes = [Node(kv_config(config)) for config in configs]
        stores = [node.service(SERVICE, kind, initial_shards=shards, replicas=replicas) for node in nodes]
        async with asyncio.TaskGroup() as starting:
            for node in nodes:
                starting.create_task(stack.enter_async_context(node))
        for node in nodes:
            await node.ready(SERVICE, timeout_s=20)
        stored: list[Stored] = list(zip(nodes, stores, strict=True))
        sweeping = [asyncio.create_task(Sweeper(node, store).run()) for node, store in stored]
        try:
            yield stored
        finally:
            for task in sweeping:
                task.cancel()
            await asyncio.gather(*sweeping, return_exceptions=True)


@asynccontextmanager
async def served(app: web.Application) -> AsyncIterator[str]:
    """Serve `app` on a free port; yield its URL."""
    runner = kv_runner(app)
    await runner.setup()
    try:
        (port,) = free_ports(1)
        await web.TCPSite(runner, "127.0.0.1", port).start()
        yield f"http://127.0.0.1:{port}"
    finally:
        await runner.cleanup()
