"""A cluster whose snapshots are files: what the tests of their transfers share."""

from __future__ import annotations

import asyncio
from functools import partial
from random import Random
from typing import Any

from multiraft import BytesService, BytesStateMachine, Limits, Node
from multiraft.testing import MemoryCluster

GROUP = 16
BLOB_BYTES = 1024 * 1024


class Album(BytesStateMachine):
    """Keeps every command in order, beside a large and useless picture."""

    def __init__(self) -> None:
        self.kept: list[bytes] = []

    def apply(self, command: bytes) -> bytes:
        self.kept.append(command)
        return b"%d" % len(self.kept)

    def query(self, query: bytes) -> bytes:
        return b" ".join(self.kept)

    def snapshot(self) -> bytes:
        return b" ".join(self.kept) + b"|" + Random(len(self.kept)).randbytes(BLOB_BYTES)

    def restore(self, state: bytes) -> None:
        self.kept = state.partition(b"|")[0].split()


class Albums:
    """Nodes a, b and c serve "album" on group 16; d is there, too, and has no part in it."""

    def __init__(
        self,
        limits: Limits,
        names: str = "abcd",
        shards: int = 1,
        replicas: int = 3,
        seed: int = 0,
    ) -> None:
        self.services: dict[str, BytesService] = {}
        self._shards = shards
        self._replicas = replicas
        self.cluster = MemoryCluster(self._declare, names, limits=limits, seed=seed)

    def _declare(self, node: Node) -> None:
        self.services[node.node_id] = node.bytes_service(
            "album", Album, initial_shards=self._shards, replicas=self._replicas
        )

    # ------------------------------------------------------------------------------------------------------ looking

    def engine(self, name: str) -> Any:
        return self.cluster.nodes[name]._here().engine

    def whole(self, name: str) -> dict[str, bytes]:
        """The files on a node's disk."""
        return self.cluster.disks[name].shelf.whole

    def parts(self, name: str) -> dict[str, tuple[bytearray, int]]:
        """What is there of others."""
        return self.cluster.disks[name].shelf.parts

    def fetching(self, name: str) -> Any:
        return self.engine(name).transfers.fetching

    def serving(self, name: str) -> Any:
        return self.engine(name).transfers.serving

    def core(self, name: str) -> Any:
        return self.engine(name).replicas[GROUP].core

    def count(self, name: str, counter: str) -> int:
        transport: Any = self.cluster.nodes[name]._here().transport
        found: int = transport.counters().get(counter, 0)
        return found

    def kept(self, name: str) -> list[bytes]:
        if GROUP not in self.engine(name).replicas:
            return []
        machine: Any = self.cluster.nodes[name].local_machine(GROUP)
        return list(machine.kept)

    # -------------------------------------------------------------------------------------------------------- doing

    async def leader(self) -> str:
        await self.cluster.until(lambda: len(self.cluster.leaders(GROUP)) == 1)
        return self.cluster.leaders(GROUP)[0]

    def leader_of(self) -> list[str]:
        return self.cluster.leaders(GROUP)

    async def lead(self, name: str) -> None:
        """Make the replica on `name` the leader."""
        while await self.leader() != name:
            leader = await self.leader()
            self.cluster.nodes[leader].transfer_leadership(GROUP, name)
            await self.cluster.until(partial(self._led_by_another, leader))

    def _led_by_another(self, leader: str) -> bool:
        return self.leader_of() not in ([], [leader])

    async def write(self, name: str, first: int, last: int) -> list[bytes]:
        """Write these numbers one by one; return them all from 0 on."""
        for number in range(first, last):
            await self.cluster.insist(partial(self.services[name].propose, b"k", b"%d" % number))
        return [b"%d" % number for number in range(last)]

    async def add_learner(self, owner: str, name: str) -> None:
        """Let the group, led by `owner`, have a learner on `name`, which finds nothing but a snapshot for it."""
        await self.cluster.nodes[owner].group(GROUP).add(name, voter=False)

    async def half(self, name: str, part: float = 0.5) -> Any:
        """Wait until `name` has fetched so much of a file; return the fetch."""
        while True:
            fetches = list(self.fetching(name)._fetches.values())
            if fetches and fetches[0].received >= part * fetches[0].manifest.size_bytes:
                return fetches[0]
            await asyncio.sleep(0.001)

    async def caught_up(self, name: str, kept: list[bytes]) -> None:
        await self.cluster.until(lambda: self.kept(name) == kept)
