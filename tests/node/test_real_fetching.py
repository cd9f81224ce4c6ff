"""A large snapshot over the real store and the real transport: a file in a directory, sent over HTTP, three nodes here.

Rules of this file: real time passes, but nothing waits for it to pass: each wait is for something to have happened.
"""

from __future__ import annotations

import asyncio
import os
from hashlib import blake2b
from pathlib import Path
from typing import Any

from multiraft import BytesStateMachine, Limits, MultiRaftError, Node, NodeConfig
from tests.node.test_real_snapshots import free_ports

GROUP = 16
MIB = 1024 * 1024
STATE_BYTES = 20 * MIB
LIMITS = Limits(
    beat_ms=50, election_timeout_ms=400, snapshot_entries=20, trailing_entries=2, entry_bytes=32 * MIB,
    snapshot_bytes_per_s=20 * MIB,
)  # fmt: skip
DEADLINE_S = 100.0


class Archive(BytesStateMachine):
    """Counts its commands; its state is 20 MiB that nobody can compress."""

    def __init__(self) -> None:
        self.count = 0

    def apply(self, command: bytes) -> bytes:
        self.count += 1
        return b"%d" % self.count

    def query(self, query: bytes) -> bytes:
        return b"%d" % self.count

    def snapshot(self) -> bytes:
        blocks = (blake2b(number.to_bytes(4, "big")).digest() for number in range(STATE_BYTES // 64))
        return b"%d|" % self.count + b"".join(blocks)

    def restore(self, state: bytes) -> None:
        assert len(state) > STATE_BYTES
        self.count = int(state[: state.index(b"|")])


def make(name: str, members: dict[str, str], path: Path) -> tuple[Node, Any]:
    node = Node(NodeConfig(name, str(path / name), members[name], members, limits=LIMITS))
    return node, node.bytes_service("archive", Archive, initial_shards=1)


async def write(archive: Any, count: int) -> None:
    while count:
        try:
            await archive.propose(b"k", b"x")
        except MultiRaftError:
            await asyncio.sleep(0.01)  # a leader is being found
        else:
            count -= 1


def transport_counters(node: Node) -> dict[str, int]:
    found: dict[str, int] = node.status()["counters"]
    return found


async def until_fetched(node: Node, share: float) -> dict[str, Any]:
    while True:
        for row in node.status()["transfers"]["incoming"]:
            found: dict[str, Any] = row
            if row["group_id"] == GROUP and row["bytes"] >= share * row["of"]:
                return found
        await asyncio.sleep(0.002)


async def test_a_large_state_crosses_in_a_file_is_resumed_after_a_stop_and_holds_up_nobody(tmp_path: Path) -> None:
    members = {name: f"127.0.0.1:{port}" for name, port in zip("abc", free_ports(3), strict=True)}
    made = {name: make(name, members, tmp_path) for name in members}
    nodes = {name: node for name, (node, _) in made.items()}
    archive = made["a"][1]
    try:
        async with asyncio.timeout(DEADLINE_S):
            await asyncio.gather(*(node.start() for node in nodes.values()))
            await asyncio.gather(*(node.ready() for node in nodes.values()))
            await nodes.pop("c").stop()
            await write(archive, 25)
            nodes["c"] = make("c", members, tmp_path)[0]
            await nodes["c"].start()
            row = await until_fetched(nodes["c"], 0.3)
            first = transport_counters(nodes["c"])["file_bytes_received"]
            await nodes.pop("c").stop()
            part = tmp_path / "c" / "snapshots" / f"{row['name']}.part"
            there = part.stat().st_size
            assert first - 65_536 <= there < row["of"]
            nodes["c"] = make("c", members, tmp_path)[0]
            await nodes["c"].start()
            await until_fetched(nodes["c"], 0.5)
            await write(archive, 5)  # the two others go on meanwhile
            assert nodes["c"].status()["transfers"]["incoming"], "it is under way still"
            while True:
                try:
                    machine: Any = nodes["c"].local_machine(GROUP)
                    if machine.count >= 30:
                        break
                except MultiRaftError:
                    pass
                await asyncio.sleep(0.01)
            received = transport_counters(nodes["c"])["file_bytes_received"]
            assert received == row["of"] - there, "what was there was not sent again"
            directory = tmp_path / "c" / "snapshots"
            assert row["name"] in os.listdir(directory)
            assert not [name for name in os.listdir(directory) if name.endswith(".part")]
    finally:
        await asyncio.gather(*(node.stop() for node in nodes.values()))
