"""Snapshots over the real store and the real transport: LevelDB and sockets, three nodes in this process.

Rules of this file: real time passes, but nothing waits for it to pass: each wait is for something to have happened.
"""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path
from typing import Any

from multiraft import Limits, MultiRaftError, Node, NodeConfig, StateMachine, command, query

GROUP = 16
LIMITS = Limits(beat_ms=50, election_timeout_ms=400, snapshot_entries=20, trailing_entries=2)
DEADLINE_S = 60.0


class Pages(StateMachine):
    def __init__(self) -> None:
        self.pages: dict[str, bytes] = {}

    @command(key="name")
    def put(self, name: str, page: bytes) -> int:
        self.pages[name] = page
        return len(self.pages)

    @query(key="name")
    def get(self, name: str) -> bytes | None:
        return self.pages.get(name)


def free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [int(found.getsockname()[1]) for found in sockets]
    for found in sockets:
        found.close()
    return ports


def make(name: str, members: dict[str, str], path: Path) -> tuple[Node, Any]:
    node = Node(NodeConfig(name, str(path / name), members[name], members, limits=LIMITS))
    return node, node.service("pages", Pages, initial_shards=1)


async def put(pages: Any, name: str, page: bytes) -> None:
    while True:
        try:
            await pages.put(name, page)
        except MultiRaftError:
            await asyncio.sleep(0.01)  # a leader is being found; putting it twice is no harm
        else:
            return


def pages_on(node: Node) -> dict[str, bytes]:
    try:
        machine: Any = node.local_machine(GROUP)
    except MultiRaftError:
        return {}
    return dict(machine.pages)


async def until_equal(one: Node, other: Node) -> None:
    while pages_on(one) != pages_on(other):  # noqa: ASYNC110 - followers apply without telling anybody
        await asyncio.sleep(0.01)


async def test_a_node_that_was_away_gets_a_state_that_is_larger_than_a_frame(tmp_path: Path) -> None:
    members = {name: f"127.0.0.1:{port}" for name, port in zip("abc", free_ports(3), strict=True)}
    made = {name: make(name, members, tmp_path) for name in members}
    nodes = {name: node for name, (node, _) in made.items()}
    try:
        async with asyncio.timeout(DEADLINE_S):
            await asyncio.gather(*(node.start() for node in nodes.values()))
            await asyncio.gather(*(node.ready() for node in nodes.values()))
            pages = made["a"][1]
            await nodes.pop("c").stop()
            for number in range(60):
                await put(pages, f"page{number % 10}", bytes([number]) * 100_000)
            for _ in range(2):  # from the others, and then from its own disk
                nodes["c"] = make("c", members, tmp_path)[0]
                await nodes["c"].start()
                await until_equal(nodes["c"], nodes["a"])
                status = nodes["c"].group_status(GROUP)
                assert status["first"] > 30
                assert len(pages_on(nodes["c"])) == 10
                await nodes["c"].stop()
            nodes["c"], pages = make("c", members, tmp_path)
            await nodes["c"].start()
            await put(pages, "last", b"x")
            await until_equal(nodes["c"], nodes["b"])
    finally:
        await asyncio.gather(*(node.stop() for node in nodes.values()))
