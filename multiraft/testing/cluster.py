"""A cluster of real nodes on memory disks and a memory network, each on a clock of its own.

The nodes are the ones that users run: core, engine, directory, router. Only the disk, the wire, the clock and the
source of chance are handed in. Built for `run_virtual`; on a real loop it works too, without clocks of their own.

What can be done to it stands in `multiraft.testing.faults`, and is counted in `cluster.faults`:

    cluster.crash("a", keep=1)                        cluster.network.partition(("a", "b"), ("c",))
    cluster.crash_after("a", 3, written=True)         cluster.network.disturb("a", "b", loss=0.1, duplicate=0.1)
    cluster.disks["a"].full = True                    cluster.clock("a").rate = 1.5
    cluster.arm("write.after-sync", "kill", "a")      cluster.clock("a").pause()

Rules of this file: nothing random but what the seed says; a killed node's code stops where it is, and leaves its disk
as the crash left it; a node's code runs in the node's context, whoever calls it.
"""

from __future__ import annotations

import asyncio
from asyncio import AbstractEventLoop
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from random import Random
from typing import Any, Final, Literal, TypeVar

from multiraft.config import Limits, NodeConfig
from multiraft.errors import NotCommitted, NotRunning, OutcomeUnknown
from multiraft.failpoints import Action, Deed, raise_os_error
from multiraft.node import Node
from multiraft.ports import Clocks, Store, Transport
from multiraft.storage import MemoryDisk, MemorySpace, open_memory
from multiraft.testing.clocks import NodeClock, NodeLoop
from multiraft.testing.faults import ArmedPlaces
from multiraft.testing.virtual import CURRENT_CLOCK, NodeKilled, VirtualLoop
from multiraft.transport import MemoryNetwork, MemoryTransport
from multiraft.types import GroupId, Identity, NodeId

T = TypeVar("T")

_CLOCKS_APART_S: Final = 1_000.0
"""No two nodes' clocks tell the same time, so that nobody can compare them unnoticed."""


class MemoryCluster:
    """Nodes by name, with the disks, the clocks and the network under them.

    declare  called with each node before it starts, first time and at every restart: declares its services
    limits   of every node
    seed     everything random comes from it
    sync     False: every disk acknowledges writes that a crash then loses
    revives  nodes come back by themselves after their disk was full; else they end, as after every failed write

    faults   how often each kind of fault took effect (testing.faults)
    places   what is armed at failpoints, and how often each was passed
    """

    def __init__(
        self,
        declare: Callable[[Node], None],
        names: Sequence[NodeId] = ("a", "b", "c"),
        *,
        limits: Limits | None = None,
        seed: int = 0,
        sync: bool = True,
        revives: bool = False,
    ) -> None:
        self.names = tuple(names)
        self.faults: Counter[str] = Counter()
        self.network = MemoryNetwork(rng=Random(f"network of {seed}"), wires=_TrueTime(), faults=self.faults)
        self.nodes: dict[NodeId, Node] = {}
        self.places = ArmedPlaces(self.faults, self._whose, self._do_at_place)
        self._declare = declare
        self.revives = revives
        self._limits = limits if limits is not None else Limits()
        self._rng = Random(seed)
        self._members = {name: f"127.0.0.1:{7001 + number}" for number, name in enumerate(self.names)}
        self.disks = {
            name: MemoryDisk(name, sync=sync, new_store_id=lambda: self._rng.randbytes(16), faults=self.faults)
            for name in self.names
        }
        self._loops: dict[NodeId, NodeLoop] = {}
        self._starting: dict[NodeId, asyncio.Task[None]] = {}
        self._programs: dict[NodeId, dict[asyncio.Task[Any], None]] = {}
        self._started: set[NodeId] = set()

    # ------------------------------------------------------------------------------------------------------ clocks

    def clock(self, name: NodeId) -> NodeClock:
        """Return the clock of node `name`; it outlives the node's runs. Raises RuntimeError on a real loop."""
        return self._node_loop(name).clock

    def _node_loop(self, name: NodeId) -> NodeLoop:
        if name not in self._loops:
            loop = asyncio.get_running_loop()
            if not isinstance(loop, VirtualLoop):
                raise RuntimeError("nodes have clocks of their own on virtual time only: use run_virtual")
            start_s = (self.names.index(name) + 1) * _CLOCKS_APART_S
            clock = NodeClock(loop, name, start_s=start_s, faults=self.faults)
            self._loops[name] = NodeLoop(loop, clock)  # type: ignore[abstract] # what it lacks is refused
        return self._loops[name]

    def _where(self, name: NodeId) -> tuple[AbstractEventLoop, Clocks]:
        loop = asyncio.get_running_loop()
        if not isinstance(loop, VirtualLoop):
            return loop, Clocks(loop.time, loop.time, loop.time)
        node_loop = self._node_loop(name)
        return node_loop, node_loop.clock.clocks()

    def on(self, name: NodeId, coro: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Run `coro` as the program on node `name` does: on its clock, not while it is stopped, until it is killed."""
        task = self._in_node(name, coro)
        programs = self._programs.setdefault(name, {})
        programs[task] = None
        task.add_done_callback(lambda _: programs.pop(task, None))
        return task

    def _in_node(self, name: NodeId, coro: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        loop, _ = self._where(name)
        return loop.create_task(coro)

    # ---------------------------------------------------------------------------------------------- life and death

    def make(self, name: NodeId) -> Node:
        """Make node `name` on its disk, with its services declared, but do not start it."""
        loop, clocks = self._where(name)
        config = NodeConfig(name, f"memory-{name}", self._members[name], self._members, limits=self._limits)

        def open_store(config: NodeConfig, loop: AbstractEventLoop) -> Store:
            return open_memory(self.disks[config.node_id], config.node_id, config.limits, loop)

        def make_transport(config: NodeConfig, identity: Identity, incarnation: int, rng: Random) -> Transport:
            return MemoryTransport(self.network, config, identity, incarnation, rng, loop=loop)

        node = Node(
            config,
            open_store=open_store,
            space=MemorySpace(self.disks[name], config.limits.ballast_bytes),
            revives=self.revives,
            make_transport=make_transport,
            clocks=clocks,
            rng=Random(self._rng.random()),
            loop=loop,
        )
        node.on_come_back(lambda: self._came_back(name))
        self._declare(node)
        return node

    def _came_back(self, name: NodeId) -> None:
        self.faults["revival"] += 1

    async def start(self, name: NodeId | None = None) -> None:
        """Start one node, or all of them. Raises what Node.start does; NotRunning if it was killed meanwhile."""
        for one in self.names if name is None else (name,):
            node = self.make(one)
            if one in self._started:
                self.faults["restart"] += 1
            self._started.add(one)
            self._starting[one] = task = self._in_node(one, node.start())
            try:
                await task
            except NodeKilled:
                raise NotRunning(f"node {one!r} was killed while it started") from None
            except asyncio.CancelledError:
                if not task.cancelled() or one in self._starting:
                    raise
                raise NotRunning(f"node {one!r} was killed while it started") from None
            finally:
                killed = self._starting.pop(one, None) is None
            if killed:  # after its start had ended, and before we were told so
                node.abandon()
                raise NotRunning(f"node {one!r} was killed while it started")
            self.nodes[one] = node

    async def stop(self, name: NodeId | None = None) -> None:
        """Stop one node, or all that run, in order. A paused one goes on first."""
        for one in list(self.nodes) if name is None else [name]:
            node = self.nodes.pop(one)
            self.faults["stop"] += 1
            self._go_on(one)
            try:
                await self._in_node(one, node.stop())
            except NodeKilled:
                continue  # at a write or a failpoint of its stop

    def crash(self, *names: NodeId, keep: int = 0, deliver: bool = False) -> None:
        """Kill nodes at once, as a power cut: of the batches not yet synced only the oldest `keep` survive.

        deliver  what they had put on the wire still arrives, as when a process is killed and its machine lives on

        One that is just starting or stopping is killed in the midst of it, and what runs `on` it is cancelled.
        Without names: all that run.
        """
        for name in names or tuple(self.nodes):
            self.faults["crash"] += 1
            self.disks[name].crash(keep)
            self.network.crash(name, deliver=deliver)
            node = self.nodes.pop(name, None)
            if node is not None:
                node.abandon()
            starting = self._starting.pop(name, None)
            if starting is not None and starting is not asyncio.current_task():
                starting.cancel()
            for task in self._programs.pop(name, {}):
                if task is not asyncio.current_task():
                    task.cancel()
            self._go_on(name)

    kill = crash

    def crash_after(
        self, name: NodeId, count: int, *, written: bool = False, keep: int = 0, deliver: bool = False
    ) -> None:
        """Kill node `name` at the `count`-th write from now, before it or (`written`) when it is synced."""
        self.disks[name].crash_after(count, lambda: self._kill_here(name, keep, deliver), written=written)

    async def restart(self, name: NodeId) -> None:
        """Start node `name` again; one that runs is stopped first. Raises as `start` does."""
        if name in self.nodes:
            await self.stop(name)
        await self.until(lambda: not self.disks[name].in_use)
        await self.start(name)

    def wipe(self, name: NodeId) -> None:
        """Empty the disk of node `name`, which is killed if it runs."""
        if name in self.nodes:
            self.crash(name)
        self.disks[name].wipe()

    def forget_ended(self) -> list[NodeId]:
        """Take nodes that ended by themselves, as after a failed write, out of `nodes`; return their names.

        One that comes back by itself stays.
        """
        ended = [name for name, node in self.nodes.items() if not node.runs and not node.comes_back]
        for name in ended:
            del self.nodes[name]
        return ended

    def _go_on(self, name: NodeId) -> None:
        if name in self._loops:
            self._loops[name].clock.resume()

    def _kill_here(self, name: NodeId, keep: int = 0, deliver: bool = True) -> None:
        """Kill the node whose code is running; nothing after this place happens there."""
        self.crash(name, keep=keep, deliver=deliver)
        raise NodeKilled(name)

    async def __aenter__(self) -> MemoryCluster:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        self.places.remove()
        self.end_faults()
        await self.stop()

    # -------------------------------------------------------------------------------------------------- failpoints

    def arm(
        self,
        place: str,
        action: Action,
        node_id: NodeId | None = None,
        *,
        times: int = 1,
        onward: bool = False,
        delay_s: float = 0.0,
    ) -> None:
        """Let `action` happen when `node_id` (None: any node) passes the failpoint for the `times`-th time from now.

        action   kill the node there; raise an OSError there (eio, enospc); delay: the node stops there for `delay_s`
                 of true time, after the callback in which it is
        onward   every later time, too

        Raises ConfigError: there is no such place.
        """
        self.places.arm(place, node_id, Deed(action, delay_s, times, onward))
        self.places.install()

    def watch_places(self) -> None:
        """Count from now on how often each failpoint is passed, in `places.passed`."""
        self.places.install()

    def _whose(self) -> NodeId | None:
        clock = CURRENT_CLOCK.get(None)
        return clock.name if clock is not None else None

    def _do_at_place(self, name: NodeId, deed: Deed) -> None:
        if deed.action == "kill":
            self._kill_here(name)
        elif deed.action == "delay":
            clock = self.clock(name)
            clock.pause()
            clock.resume_in(deed.delay_s)
        else:
            raise_os_error(deed.action)

    # --------------------------------------------------------------------------------------------------- partitions

    def isolate(self, name: NodeId, *, by: Literal["cut", "stall"] = "cut") -> None:
        """Part a node from all others, in both directions."""
        self.faults["isolate"] += 1
        self.network.part([name], [other for other in self.names if other != name], by=by)

    def heal(self) -> None:
        """End what was done to the network; delays stay."""
        self.network.heal()

    def end_faults(self) -> None:
        """End everything that was done to network, disks and clocks; nothing more happens at failpoints.

        Nodes that do not run stay so; delays of the network become 0.
        """
        self.places.clear()
        self.network.heal()
        for sender in self.names:
            for receiver in self.names:
                self.network.set_delay(sender, receiver, 0.0)
        for disk in self.disks.values():
            disk.mend()
        for loop in self._loops.values():
            loop.clock.rate = 1.0
            loop.clock.skew_s = 0.0
            loop.clock.resume()

    # ------------------------------------------------------------------------------------------------------- looking

    async def ready(self, timeout_s: float = 60.0) -> None:
        """Wait until every running node finds every service ready."""
        for node in list(self.nodes.values()):
            await node.ready(timeout_s=timeout_s)

    def leaders(self, group_id: GroupId) -> list[NodeId]:
        """Which running nodes lead the group, as they themselves see it."""
        return [name for name, node in self.nodes.items() if node.runs and node.leads(group_id)]

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


class _TrueTime:
    """Frames travel on the loop's own time, whatever the clocks of the nodes do, and arrive in the receiver."""

    def now(self, receiver: AbstractEventLoop) -> float:
        return receiver.virtual.now_s if isinstance(receiver, NodeLoop) else receiver.time()

    def arrive_at(self, receiver: AbstractEventLoop, when_s: float, deliver: Callable[[], None]) -> None:
        if isinstance(receiver, NodeLoop):
            receiver.arrive_at(when_s, deliver)
        else:
            receiver.call_at(when_s, deliver)
