"""A cluster of real nodes on memory disks and a memory network.

The nodes are the ones that users run: core, engine, directory, router. Only the disk, the wire, the clock and the
source of chance are handed in. Built for `run_virtual`; works on a real loop, too.

Rules of this file: nothing random but what the seed says; a crashed node leaves its disk as the crash left it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from random import Random
from typing import TypeVar

from multiraft.config import Limits, NodeConfig
from multiraft.errors import NotCommitted, OutcomeUnknown
from multiraft.node import Node
from multiraft.ports import Clocks, Store, Transport
from multiraft.storage import MemoryDisk, open_memory
from multiraft.transport import MemoryNetwork, MemoryTransport
from multiraft.types import GroupId, Identity, NodeId

T = TypeVar("T")


class MemoryCluster:
    """Nodes by name, with the disks and the network under them.

    declare  called with each node before it starts, first time and at every restart: declares its services
    limits   of every node
    seed     everything random comes from it
    sync     False: every disk acknowledges writes that a crash then loses
    """

    def __init__(
        self,
        declare: Callable[[Node], None],
        names: Sequence[NodeId] = ("a", "b", "c"),
        *,
        limits: Limits | None = None,
        seed: int = 0,
        sync: bool = True,
    ) -> None:
        self.names = tuple(names)
        self.network = MemoryNetwork()
        self.nodes: dict[NodeId, Node] = {}
        self._declare = declare
        self._limits = limits if limits is not None else Limits()
        self._rng = Random(seed)
        self._members = {name: f"127.0.0.1:{7001 + number}" for number, name in enumerate(self.names)}
        self.disks = {
            name: MemoryDisk(name, sync=sync, new_store_id=lambda: self._rng.randbytes(16)) for name in self.names
        }

    # ---------------------------------------------------------------------------------------------- life and death

    def make(self, name: NodeId) -> Node:
        """Make node `name` on its disk, with its services declared, but do not start it."""
        loop = asyncio.get_running_loop()
        config = NodeConfig(name, f"memory-{name}", self._members[name], self._members, limits=self._limits)

        def open_store(config: NodeConfig, loop: asyncio.AbstractEventLoop) -> Store:
            return open_memory(self.disks[config.node_id], config.node_id, config.limits, loop)

        def make_transport(config: NodeConfig, identity: Identity, incarnation: int, rng: Random) -> Transport:
            return MemoryTransport(self.network, config, identity, incarnation, rng)

        node = Node(
            config,
            open_store=open_store,
            make_transport=make_transport,
            clocks=Clocks(loop.time, loop.time, loop.time),
            rng=Random(self._rng.random()),
        )
        self._declare(node)
        return node

    async def start(self, name: NodeId | None = None) -> None:
        """Start one node, or all of them."""
        for one in self.names if name is None else (name,):
            node = self.make(one)
            await node.start()
            self.nodes[one] = node

    async def stop(self, name: NodeId | None = None) -> None:
        """Stop one node, or all that run, in order."""
        for one in list(self.nodes) if name is None else [name]:
            await self.nodes.pop(one).stop()

    def crash(self, *names: NodeId, keep: int = 0) -> None:
        """Kill nodes at once, as a power cut: of the batches not yet synced only the oldest `keep` survive."""
        for name in names or tuple(self.nodes):
            self.disks[name].crash(keep)
            self.network.crash(name)
            self.nodes.pop(name).abandon()

    async def __aenter__(self) -> MemoryCluster:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        self.network.heal()
        for disk in self.disks.values():
            disk.release()
        await self.stop()

    # --------------------------------------------------------------------------------------------------- partitions

    def isolate(self, name: NodeId) -> None:
        """Cut a node off from all others, in both directions."""
        for other in self.names:
            if other != name:
                self.network.cut(name, other)
                self.network.cut(other, name)

    def heal(self) -> None:
        self.network.heal()

    # ------------------------------------------------------------------------------------------------------- looking

    async def ready(self, timeout_s: float = 60.0) -> None:
        """Wait until every running node finds every service ready."""
        for node in list(self.nodes.values()):
            await node.ready(timeout_s=timeout_s)

    def leaders(self, group_id: GroupId) -> list[NodeId]:
        """Which running nodes lead the group, as they themselves see it."""
        return [name for name, node in self.nodes.items() if node.leads(group_id)]

    async def run_for(self, seconds: float) -> None:
        """Let the cluster live for `seconds` of the loop's time."""
        await asyncio.sleep(seconds)

    async def until(self, condition: Callable[[], bool], timeout_s: float = 60.0) -> None:
        """Wait until `condition()` holds; raises TimeoutError. Looks again every millisecond of the loop's time."""
        async with asyncio.timeout(timeout_s):
            while not condition():  # noqa: ASYNC110 - the condition is anything, and virtual time costs nothing
                await asyncio.sleep(0.001)

    async def insist(self, attempt: Callable[[], Awaitable[T]], timeout_s: float = 60.0) -> T:
        """Repeat `attempt` until it succeeds; for calls that may safely happen twice. Raises TimeoutError."""
        async with asyncio.timeout(timeout_s):
            while True:
                try:
                    return await attempt()
                except (NotCommitted, OutcomeUnknown):
                    await asyncio.sleep(0.01)
