"""What goes wrong in one simulated run, and when: drawn from the run's seed while it goes.

Each run draws which kinds of faults it has (a run with few kinds goes deeper into them than one with all), how dense
they are, and then one fault after another. What is hurt stays hurt until another draw heals it, or the end does.

    nodes       crash, crash_all, stop, start
    time        pause, suspend, rate, skew, stall_all, resume
    network     isolate, cut, stall, partition, bridge, ring, disturb, drop, strand, slow_wire, heal
    disks       hold, slow_disk, full, fail_write, fail_read, crash_at_write, mend
    code        failpoint
    leadership  transfer, coup
    membership  add, remove, replace, promote, demote (churn.py)
    stores      lose (losing.py)

Rules of this file: nothing random but what the schedule's `rng` says; every fault is said in the timeline; a fault that
finds nothing to hurt does nothing and counts for nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
from collections import Counter
from collections.abc import Callable, Coroutine, Sequence
from itertools import permutations
from random import Random
from typing import Any, Final, TypeVar

from multiraft.errors import MultiRaftError, NotCommitted, NotRunning, StartError
from multiraft.testing.churn import Churn
from multiraft.testing.cluster import MemoryCluster
from multiraft.testing.losing import Losing
from multiraft.testing.observing import retry_halted
from multiraft.testing.places import (
    ACTIONS,
    ACTIONS_ANYWHERE,
    PLACES,
    PLACES_OF_DISKS,
    PLACES_OF_FORMING,
    PLACES_OF_NEWCOMERS,
    RARE,
)
from multiraft.testing.trace import Trace
from multiraft.testing.virtual import VirtualLoop
from multiraft.types import GroupId, NodeId

T = TypeVar("T")
Deed = Callable[[], Coroutine[Any, Any, bool]]

ALWAYS: Final = ("heal", "start", "mend", "resume")
"""What ends faults is drawn in every run."""
WEIGHTS: Final = {"heal": 3, "start": 4, "mend": 2, "resume": 2, "disturb": 6, "failpoint": 24, "crash_at_write": 4}
"""How often a kind is drawn, where that is not 2: more often what takes effect only now and then."""
MOST_FAULTS: Final = 40
WILD_RATES: Final = (0.2, 0.5, 0.9, 1.0, 1.0, 1.1, 2.0, 5.0)
CAREFUL_RATES: Final = (0.9905, 0.996, 1.0, 1.004, 1.0095)
"""Within the drift that leases allow for."""


class Schedule(Losing):
    """The faults of one run.

    cluster  what is hurt
    rng      where chance comes from
    trace    the timeline
    groups   the groups there are now
    kinds    of faults that this run has
    counts   how often each was drawn and could be done; what took effect is in `cluster.faults`
    """

    def __init__(
        self,
        cluster: MemoryCluster,
        rng: Random,
        trace: Trace,
        groups: Callable[[], list[GroupId]],
        kinds: Sequence[str] | None = None,
        careful_clocks: bool = False,
    ) -> None:
        super().__init__(cluster, rng, trace, groups)
        self.counts: Counter[str] = Counter()
        self.kinds = list(kinds) if kinds is not None else self._draw_kinds(rng)
        self._deeds: dict[str, Deed] = {name: getattr(self, f"_{name}") for name in FAULTS}
        self._rates = CAREFUL_RATES if careful_clocks else WILD_RATES
        self._pace_s = rng.choice([0.05, 0.3, 1.0, 3.0])

    @staticmethod
    def _draw_kinds(rng: Random) -> list[str]:
        share = rng.choice([0.15, 0.4, 0.4, 1.0])
        return [name for name in FAULTS if name in ALWAYS or rng.random() < share]

    # ------------------------------------------------------------------------------------------------------ running

    async def run(self) -> None:
        """Do one fault after another."""
        rng = self._rng
        weighted = [name for name in self.kinds for _ in range(WEIGHTS.get(name, 2))]
        for _ in range(rng.randrange(4, MOST_FAULTS)):
            await self.cluster.run_for(rng.choice([0.1, 1.0]) * self._pace_s * rng.random())
            name = rng.choice(weighted)
            if await self._deeds[name]():
                self.counts[name] += 1

    def arm_first(self) -> None:
        """Before the nodes start, and only now and then: kill one at a place that is passed while a cluster forms."""
        if "failpoint" in self.kinds and self._rng.random() < 0.3:
            place, name = self._rng.choice(PLACES_OF_FORMING), self._rng.choice(self.cluster.names)
            self._say(f"kill {name} at failpoint {place}")
            self.cluster.arm(place, "kill", name)

    async def end(self) -> None:
        """Heal everything, and start what is down."""
        cluster = self.cluster
        self._say("all faults end")
        cluster.end_faults()
        await cluster.run_for(0.5)
        cluster.forget_ended()
        await cluster.until(lambda: not any(node.comes_back for node in cluster.nodes.values()))
        for name in cluster.names:
            if name not in cluster.nodes and name != self.lost:
                await self.start_one(name)
        await self._regained()
        for name in cluster.names:
            if name in cluster.nodes and self._has_broken(name):
                self._say(f"restart {name}: a replica there has stopped")
                await self._stop_one(name)
            if name not in cluster.nodes:
                await self.start_one(name)
            retry_halted(cluster.nodes.get(name), self._say)
        if self._changing:
            await asyncio.wait(self._changing)  # each has its own time

    def _has_broken(self, name: NodeId) -> bool:
        """Whether a failed read has stopped a replica there: it stays so until its node is started again."""
        replicas = self.cluster.nodes[name]._here().engine.replicas.values()
        return any(replica.broken or replica.halted for replica in replicas)

    # ----------------------------------------------------------------------------------------------------- helpers

    def _down(self) -> list[NodeId]:
        self.cluster.forget_ended()
        return [name for name in self.cluster.names if name not in self.cluster.nodes]

    def _pair(self) -> tuple[NodeId, NodeId] | None:
        names = self.cluster.names
        if len(names) < 2:
            return None
        one, other = self._rng.sample(names, 2)
        return one, other

    def _leader(self) -> tuple[GroupId, NodeId] | None:
        """Choose a group, and who leads it."""
        self.cluster.forget_ended()
        group_id = self._rng.choice(self._groups())
        leader = self._any(self.cluster.leaders(group_id))
        return (group_id, leader) if leader is not None else None

    # -------------------------------------------------------------------------------------------------------- nodes

    async def _crash(self) -> bool:
        # Mostly those that lead: the others are missed less.
        led = self._leader() if self._rng.random() < 0.5 else None
        name = led[1] if led is not None else self._any(self._up())
        if name is None:
            return False
        keep = self._rng.randrange(4)
        if self._rng.random() < 0.5:  # let some gather first
            self.cluster.disks[name].hold_writes()
            await self.cluster.run_for(0.3)
            keep = 1
        self._say(f"crash {name}; of its unsynced writes {keep} survive")
        self.cluster.crash(name, keep=keep)
        return True

    async def _crash_all(self) -> bool:
        if not self._up():
            return False
        keep = self._rng.randrange(4)
        self._say(f"crash all nodes; of their unsynced writes {keep} survive")
        self.cluster.crash(keep=keep)
        return True

    async def _stop(self) -> bool:
        name = self._any(self._up())
        if name is None:
            return False
        self._say(f"stop {name}")
        self.cluster.disks[name].release()
        await self._stop_one(name)
        return True

    async def _stop_one(self, name: NodeId) -> None:
        try:
            await self.cluster.stop(name)
        except (OSError, StartError) as problem:  # its disk failed while it closed
            self._say(f"  {name} did not stop orderly: {problem}")
            self.cluster.crash(name)

    async def _start(self) -> bool:
        name = self._any(self._down())
        return name is not None and await self.start_one(name)

    async def start_one(self, name: NodeId) -> bool:
        """Start a node; False where something that is armed ends it on the way."""
        self._say(f"start {name}")
        self.remember_disk(name)
        self.cluster.disks[name].release()  # it may have been held while its node was ending
        await self.cluster.until(lambda: not self.cluster.disks[name].in_use)
        try:
            await self.cluster.start(name)
        except (StartError, NotRunning) as problem:
            self._say(f"  {name} did not start: {problem}")
            return False
        return True

    # --------------------------------------------------------------------------------------------------------- time

    async def _pause(self) -> bool:
        name = self._any(self._up())
        if name is None:
            return False
        self._say(f"pause {name}")
        self.cluster.clock(name).pause()
        if self._rng.random() < 0.7:
            self.cluster.clock(name).resume_in(self._rng.choice([0.05, 0.8, 3.0, 12.0]))
        return True

    async def _suspend(self) -> bool:
        name, seconds = self._rng.choice(self.cluster.names), self._rng.choice([0.05, 0.8, 3.0, 12.0])
        self._say(f"the machine of {name} sleeps for {seconds:g} s")
        self.cluster.clock(name).suspend(seconds)
        return True

    async def _rate(self) -> bool:
        name, rate = self._rng.choice(self.cluster.names), self._rng.choice(self._rates)
        self._say(f"the clock of {name} runs at {rate:g}")
        self.cluster.clock(name).rate = rate
        return True

    async def _skew(self) -> bool:
        name, seconds = self._rng.choice(self.cluster.names), self._rng.choice([-3600.0, -1.0, 0.0, 5.0, 86_400.0])
        self._say(f"the wall clock of {name} is {seconds:g} s wrong")
        self.cluster.clock(name).skew_s = seconds
        return True

    async def _resume(self) -> bool:
        self._say("all clocks go on")
        for name in self.cluster.names:
            self.cluster.clock(name).resume()
        return True

    async def _stall_all(self) -> bool:
        loop = asyncio.get_running_loop()
        if not isinstance(loop, VirtualLoop):
            return False
        seconds = self._rng.choice([0.05, 0.5, 5.0])
        self._say(f"nothing runs for {seconds:g} s")
        loop.pass_time(seconds)
        return True

    # ------------------------------------------------------------------------------------------------------ network

    async def _isolate(self) -> bool:
        if len(self.cluster.names) < 2:
            return False
        name = self._rng.choice(self.cluster.names)
        self._say(f"isolate {name}")
        self.cluster.isolate(name)
        return True

    async def _cut(self) -> bool:
        pair = self._pair()
        if pair is None:
            return False
        self._say(f"cut {pair[0]} -> {pair[1]}")
        self.cluster.network.cut(*pair)
        return True

    async def _stall(self) -> bool:
        pair = self._pair()
        if pair is None:
            return False
        self._say(f"stall {pair[0]} -> {pair[1]}")
        self.cluster.network.stall(*pair)
        return True

    def _sides(self) -> tuple[list[NodeId], list[NodeId]]:
        names = self._rng.sample(self.cluster.names, len(self.cluster.names))
        middle = self._rng.randrange(1, len(names))
        return names[:middle], names[middle:]

    def _by(self) -> Any:
        return self._rng.choice(["cut", "stall"])

    async def _partition(self) -> bool:
        if len(self.cluster.names) < 2:
            return False
        left, right = self._sides()
        by = self._by()
        self._say(f"partition {' '.join(left)} | {' '.join(right)} ({by})")
        self.cluster.network.partition(left, right, by=by)
        return True

    async def _bridge(self) -> bool:
        if len(self.cluster.names) < 3:
            return False
        left, right = self._sides()
        by, node = self._by(), self._rng.choice(self.cluster.names)
        self._say(f"bridge {' '.join(left)} | {' '.join(right)}, both reached by {node} ({by})")
        self.cluster.network.bridge(left, right, node, by=by)
        return True

    async def _ring(self) -> bool:
        if len(self.cluster.names) < 4:
            return False
        order = self._rng.sample(self.cluster.names, len(self.cluster.names))
        by = self._by()
        self._say(f"ring {' '.join(order)} ({by})")
        self.cluster.network.ring(order, by=by)
        return True

    async def _disturb(self) -> bool:
        pair = self._pair()
        if pair is None:
            return False
        everywhere = self._rng.random() < 0.4
        loss, duplicate, reorder = (self._rng.choice([0.0, 0.02, 0.2, 0.6]) for _ in range(3))
        where = "everywhere" if everywhere else f"{pair[0]} -> {pair[1]}"
        self._say(f"disturb {where}: lose {loss}, repeat {duplicate}, reorder {reorder}")
        for one, other in permutations(self.cluster.names, 2) if everywhere else [pair]:
            self.cluster.network.disturb(one, other, loss=loss, duplicate=duplicate, reorder=reorder)
        return bool(loss or duplicate or reorder)

    async def _drop(self) -> bool:
        pair = self._pair()
        if pair is None:
            return False
        count = self._rng.choice([1, 5])
        self._say(f"drop the next {count} bulk sends {pair[0]} -> {pair[1]}")
        self.cluster.network.drop_next_bulk(*pair, count)
        return True

    async def _strand(self) -> bool:
        pair = self._pair()
        if pair is None:
            return False
        late_s = self._rng.choice([0.01, 0.3, 3.0])
        self._say(f"strand {pair[0]} -> {pair[1]}: the old connection's frames come {late_s:g} s late")
        self.cluster.network.strand(*pair, late_s)
        return True

    async def _slow_wire(self) -> bool:
        pair = self._pair()
        if pair is None:
            return False
        most_s = self._rng.choice([0.003, 0.1, 0.6])
        rng = self._rng_of_delays()
        self._say(f"frames {pair[0]} -> {pair[1]} take up to {most_s:g} s")
        self.cluster.network.delay(*pair, lambda: rng.uniform(0.0, most_s))
        return True

    def _rng_of_delays(self) -> Random:
        return Random(self._rng.random())

    async def _heal(self) -> bool:
        self._say("the network heals")
        self.cluster.heal()
        return True

    # -------------------------------------------------------------------------------------------------------- disks

    async def _hold(self) -> bool:
        disk = self.cluster.disks[self._rng.choice(self.cluster.names)]
        if self._rng.random() < 0.5:
            self._say(f"the disk of {disk.name} stalls")
            disk.hold_writes()
        else:
            self._say(f"the disk of {disk.name} writes and tells nobody")
            disk.hold_completions()
        return True

    async def _slow_disk(self) -> bool:
        disk = self.cluster.disks[self._rng.choice(self.cluster.names)]
        most_s, rng = self._rng.choice([0.02, 0.4, 1.5]), self._rng_of_delays()
        self._say(f"writes of {disk.name} take up to {most_s:g} s")
        disk.delay_s = lambda: rng.uniform(0.0, most_s)
        return True

    async def _full(self) -> bool:
        disk = self.cluster.disks[self._rng.choice(self.cluster.names)]
        self._say(f"the disk of {disk.name} is full")
        disk.full = True
        return True

    async def _fail_write(self) -> bool:
        name = self._any(self._up())
        if name is None:
            return False
        written = self._rng.random() < 0.5
        self._say(f"the next write of {name} fails{', though written' if written else ''}")
        self.cluster.disks[name].fail_next_write(OSError(errno.EIO, "Input/output error"), written=written)
        return True

    async def _fail_read(self) -> bool:
        name = self._any(self._up())
        if name is None:
            return False
        self._say(f"the next read of {name} fails")
        self.cluster.disks[name].fail_next_read(OSError(errno.EIO, "Input/output error"))
        return True

    async def _crash_at_write(self) -> bool:
        name = self._rng.choice(self.cluster.names)
        count, written, keep = self._rng.choice([1, 2, 3, 10]), self._rng.random() < 0.5, self._rng.randrange(3)
        self._say(f"crash {name} {'after' if written else 'before'} its {count}. write from now; {keep} more survive")
        self.cluster.crash_after(name, count, written=written, keep=keep)
        return True

    async def _failpoint(self) -> bool:
        place = self._rng.choice(PLACES)
        name = None if place.startswith(tuple(RARE)) else self._any([None, *self.cluster.names])
        action = self._rng.choice(ACTIONS if place.startswith(PLACES_OF_DISKS) else ACTIONS_ANYWHERE)
        times = 1 if place.startswith(tuple(RARE)) else self._rng.choice([1, 1, 1, 1, 2, 7])
        self._say(f"{action} {name or 'whoever'} at failpoint {place}, passing it for the {times}. time")
        self.cluster.arm(place, action, name, times=times, delay_s=self._rng.choice([0.05, 0.8, 3.0]))
        if place.startswith("close."):
            await self._stop()
        elif place.endswith("-remove"):
            await self._remove()
        elif place.startswith(PLACES_OF_NEWCOMERS):
            await self._replace()
        elif place.endswith("-restore") and (restarted := self._any(self._up())) is not None:
            self.cluster.crash(restarted)
            await self.start_one(restarted)
        return True

    async def _mend(self) -> bool:
        self._say("the disks are mended")
        for disk in self.cluster.disks.values():
            disk.mend()
        return True

    # --------------------------------------------------------------------------------------------------- leadership

    async def _transfer(self) -> bool:
        led = self._leader()
        to = self._rng.choice(self.cluster.names)
        if led is None:
            return False
        group_id, leader = led
        self._say(f"transfer group {group_id} from {leader} to {to}")
        try:
            self.cluster.nodes[leader].transfer_leadership(group_id, to)
        except NotCommitted as problem:
            self._say(f"  refused: {problem}")
            return False
        return True

    async def _coup(self) -> bool:
        """Leadership is handed over while the old leader hears nobody: it does not learn of its successor."""
        cluster = self.cluster
        led = self._leader()
        to = self._any(self._up())
        if led is None or to is None or to == led[1]:
            return False
        group_id, old = led
        replica = cluster.nodes[to]._here().engine.replicas.get(group_id)
        if replica is None:
            return False
        self._say(f"coup in group {group_id} against {old} by {to}")
        term = replica.core.term
        with contextlib.suppress(MultiRaftError, TimeoutError):
            cluster.nodes[old].transfer_leadership(group_id, to)
            await cluster.until(lambda: replica.core.term > term, timeout_s=0.5)
        cluster.isolate(old, by="stall")
        await cluster.run_for(self._rng.choice([0.3, 1.0]))
        cluster.heal()
        return True


NO_DEEDS: Final = ("_stop_one", "_change", "_settled", "_recover", "_regained")
FAULTS: Final = tuple(
    name[1:]
    for name, value in (vars(Schedule) | vars(Losing) | vars(Churn)).items()
    if asyncio.iscoroutinefunction(value) and name.startswith("_") and name not in NO_DEEDS
)
"""Every kind of fault, in the order of these files."""
