"""A machine on disk over the real store, the real files and the real transport: a large keyspace crosses in a file.

Rules of this file: real time passes, but nothing waits for it to pass: each wait is for something to have happened.
"""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Any

from multiraft import DiskStateMachine, Limits, MultiRaftError, Node, NodeConfig, command, query
from tests.node.test_real_snapshots import GROUP, free_ports, put

LIMITS = Limits(beat_ms=50, election_timeout_ms=600, snapshot_entries=20, trailing_entries=2)
DEADLINE_S = 60.0
PAGES = 60


class DiskPages(DiskStateMachine):
    @command(key="name")
    def put(self, name: str, page: bytes) -> int:
        self.data.put(name.encode(), page)
        return len(page)

    @query(key="name")
    def get(self, name: str) -> bytes | None:
        return self.data.get(name.encode())


def make(name: str, members: dict[str, str], path: Path) -> tuple[Node, Any]:
    node = Node(NodeConfig(name, str(path / name), members[name], members, limits=LIMITS))
    return node, node.service("pages", DiskPages, initial_shards=1)


def pages_on(node: Node) -> dict[bytes, bytes]:
    try:
        machine: Any = node.local_machine(GROUP)
    except MultiRaftError:
        return {}
    return dict(machine.data.range())


async def until_equal(one: Node, other: Node) -> None:
    while pages_on(one) != pages_on(other):  # noqa: ASYNC110 - followers apply without telling anybody
        await asyncio.sleep(0.02)


async def test_a_node_that_was_away_gets_a_large_keyspace_in_a_file_and_keeps_it(tmp_path: Path) -> None:
    members = {name: f"127.0.0.1:{port}" for name, port in zip("abc", free_ports(3), strict=True)}
    made = {name: make(name, members, tmp_path) for name in members}
    nodes = {name: node for name, (node, _) in made.items()}
    try:
        async with asyncio.timeout(DEADLINE_S):
            await asyncio.gather(*(node.start() for node in nodes.values()))
            await asyncio.gather(*(node.ready() for node in nodes.values()))
            pages = made["a"][1]
            await nodes.pop("c").stop()
            for number in range(PAGES):
                await put(pages, f"page{number}", os.urandom(100_000))
            nodes["c"] = make("c", members, tmp_path)[0]
            await nodes["c"].start()
            await until_equal(nodes["c"], nodes["a"])
            assert len(pages_on(nodes["c"])) == PAGES
            engine: Any = nodes["c"]._here().engine
            assert engine.transfers.fetching.counters["snapshots_fetched"] >= 1
            await nodes["c"].stop()
            nodes["c"] = make("c", members, tmp_path)[0]
            await nodes["c"].start()  # what it was switched to is durable
            assert len(pages_on(nodes["c"])) == PAGES
            await put(pages, "last", b"x")
            await until_equal(nodes["c"], nodes["b"])
            files: Any = nodes["c"]._here().store
            while any(name.startswith(f"{GROUP:016x}-") for name in files.files.names()):  # noqa: ASYNC110 - as above
                await asyncio.sleep(0.02)
            assert len(files.spaces()) == 1
    finally:
        await asyncio.gather(*(node.stop() for node in nodes.values()))
