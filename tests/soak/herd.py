"""A small cluster of whole nodes on real data directories, in one process, that is quick to start and to stop.

The network is the memory twin, so that hundreds of starts take minutes; everything else is what users run. Two services
of some shards keep every command in order, one in memory and one on the disk, so that what a replica holds can be
compared with what was acknowledged.

Rules of this file: timeouts are short, and so no figure of time means anything.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from random import Random
from typing import Final

from multiraft import Limits, Node, NodeConfig
from multiraft.errors import CorruptRecord, NotCommitted, OutcomeUnknown
from multiraft.ports import Transport
from multiraft.transport import MemoryNetwork, MemoryTransport
from multiraft.types import GroupId, Identity, NodeId
from tests.keeping import Kept, KeptOnDisk

NAMES: Final = ("a", "b", "c")
SERVICE: Final = "ledger"
DISK_SERVICE: Final = "shelf"
SHARDS: Final = 4
LIMITS: Final = Limits(
    beat_ms=20,
    election_timeout_ms=200,
    request_timeout_ms=3_000,
    snapshot_entries=60,
    trailing_entries=10,
    leveldb_write_buffer_bytes=64 * 1024,
    ballast_bytes=4_096,
    free_space_bytes=0,
)
_MEMBERS: Final = {name: f"127.0.0.1:{7001 + number}" for number, name in enumerate(NAMES)}
_PATIENCE_S: Final = 30.0
_LOOK_S: Final = 0.005


class Herd:
    """Nodes by name, each on `folder/NAME`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.network = MemoryNetwork()
        self.nodes: dict[NodeId, Node] = {}

    async def start(self, name: NodeId) -> Node:
        """Start one node. Raises what `Node.start` does."""
        config = NodeConfig(name, str(self.folder / name), _MEMBERS[name], _MEMBERS, limits=LIMITS)

        def make_transport(config: NodeConfig, identity: Identity, incarnation: int, rng: Random) -> Transport:
            return MemoryTransport(self.network, config, identity, incarnation, rng)

        node = Node(config, make_transport=make_transport)
        node.bytes_service(SERVICE, Kept, initial_shards=SHARDS)
        node.bytes_service(DISK_SERVICE, KeptOnDisk, initial_shards=SHARDS)
        await node.start()
        self.nodes[name] = node
        return node

    async def stop(self) -> None:
        for name in list(self.nodes):
            await self.nodes.pop(name).stop()

    def groups(self) -> list[GroupId]:
        """Return the groups of the service, as some node knows them."""
        return sorted({group for node in self.nodes.values() for group in node.shard_map.groups})

    def kept(self, name: NodeId, group_id: GroupId) -> list[bytes]:
        """Return what a node's replica has applied; nothing where there is none, or it cannot be read."""
        node = self.nodes[name]
        if not node.runs or group_id not in node._here().engine.replicas:
            return []
        machine = node.local_machine(group_id)
        if isinstance(machine, KeptOnDisk):
            with suppress(CorruptRecord):
                return machine.kept
        return list(machine.kept) if isinstance(machine, Kept) else []

    async def propose(self, name: NodeId, group_id: GroupId, command: bytes) -> None:
        """Propose until it is acknowledged. Only for commands whose repetition is noticed by whoever compares."""
        async with asyncio.timeout(_PATIENCE_S):
            while True:
                try:
                    await self.nodes[name].group(group_id).propose(command)
                except NotCommitted:
                    await asyncio.sleep(_LOOK_S)
                except OutcomeUnknown:
                    if command in await self.read(name, group_id):
                        return
                else:
                    return

    async def read(self, name: NodeId, group_id: GroupId) -> list[bytes]:
        """Ask for all that is kept, linearizably."""
        async with asyncio.timeout(_PATIENCE_S):
            while True:
                try:
                    return (await self.nodes[name].group(group_id).read(b"")).split()
                except NotCommitted:
                    await asyncio.sleep(_LOOK_S)

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait until `condition()` holds. Raises TimeoutError."""
        async with asyncio.timeout(_PATIENCE_S):
            while not condition():  # noqa: ASYNC110 - the condition is anything
                await asyncio.sleep(_LOOK_S)
