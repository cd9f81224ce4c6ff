"""Snapshots of many groups at once: a node that comes back needs them all, and does not get them all at once."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from multiraft import BytesService, BytesStateMachine, Limits, Node, NotReady
from multiraft.testing import MemoryCluster, run_virtual

GROUPS = range(16, 28)
LIMITS = Limits(
    request_timeout_ms=3_000, snapshot_entries=4, trailing_entries=0, outbox_bytes=524_288, entry_bytes=60_000,
    frame_bytes=65_536, batch_bytes=65_536,
)  # fmt: skip


class Heavy(BytesStateMachine):
    """Counts its commands, and says so in 50,000 bytes."""

    def __init__(self) -> None:
        self.count = 0

    def apply(self, command: bytes) -> bytes:
        self.count += 1
        return b"%d" % self.count

    def query(self, query: bytes) -> bytes:
        return b"%d" % self.count

    def snapshot(self) -> bytes:
        return b"%d" % self.count + b" " * 50_000

    def restore(self, state: bytes) -> None:
        self.count = int(state)


def engine_of(cluster: MemoryCluster, name: str) -> Any:
    return cluster.nodes[name]._here().engine


async def propose(cluster: MemoryCluster, group_id: int) -> None:
    async def attempt() -> bytes:
        for name in cluster.leaders(group_id):
            answer: bytes = await engine_of(cluster, name).propose(group_id, b"x")
            return answer
        raise NotReady(f"group {group_id} has no leader")

    await cluster.insist(attempt)


@pytest.mark.pure_only  # what passes is counted in the method that notes it
def test_snapshots_of_many_groups_are_sent_a_few_at_a_time() -> None:
    """Requirement 19: by bytes between two beats, however many groups a node that comes back must catch up with."""
    services: list[BytesService] = []
    sent: list[tuple[float, int]] = []

    def declare(node: Node) -> None:
        services.append(node.bytes_service("heavy", Heavy, initial_shards=len(GROUPS)))

    def watch(snapshotting: Any) -> None:
        passed, loop = snapshotting.passed, asyncio.get_running_loop()

        def note(size_bytes: int) -> None:
            sent.append((loop.time(), size_bytes))
            passed(size_bytes)

        snapshotting.passed = note

    async def main() -> None:
        async with MemoryCluster(declare, limits=LIMITS) as cluster:
            await cluster.ready()
            cluster.crash("c")
            for group_id in GROUPS:
                for _ in range(8):
                    await propose(cluster, group_id)
            for name in "ab":
                watch(engine_of(cluster, name).snapshotting)
            await cluster.start("c")
            replicas = engine_of(cluster, "c").replicas
            await cluster.until(lambda: all(replicas[group_id].applied > 8 for group_id in GROUPS))
            assert len(sent) >= len(GROUPS)
            for began_s, _ in sent:
                together = sum(size_bytes for at_s, size_bytes in sent if began_s <= at_s < began_s + 0.04)
                assert together <= 2 * (LIMITS.outbox_bytes // 4 + LIMITS.entry_bytes)  # by two nodes

    run_virtual(main())
