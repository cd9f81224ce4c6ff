"""How the simulator looks into real nodes: around each engine turn, each message sent, and each command applied.

Nothing of a node is replaced. Its engine's turn, its transport's `send` and its replicas' machines are wrapped, on the
very objects of this run of the node; what they do is what they would do anyway.

Rules of this file: an observer never changes what it observes, and never raises into it; what it finds it reports.
"""

from __future__ import annotations

import asyncio
import zlib
from asyncio import Future
from collections.abc import Callable, Sequence
from typing import Any, Final

from multiraft.engine.engine import Engine
from multiraft.engine.machine import Context, Machine, command_failed, environmental
from multiraft.engine.replica import Replica
from multiraft.errors import CommandFailed, CorruptRecord, StorageError
from multiraft.messages import NodeMessage
from multiraft.node import Node
from multiraft.raft import LEADER
from multiraft.records import SESSION
from multiraft.storage import MemoryDisk
from multiraft.testing.cluster import MemoryCluster
from multiraft.testing.digest import digest
from multiraft.testing.invariants import Invariants, Seen, describe
from multiraft.testing.once import Once
from multiraft.testing.promises import Promises
from multiraft.testing.trace import Trace
from multiraft.types import GroupId, Index, NodeId, Term

_STATE_COST: Final = 40
"""A state is looked at again when its group has applied about a hundredth of its size in commands."""


MOST_TURNS: Final = 500_000
"""Of one run; a long one takes a tenth of it."""
READ_FAILED: Final = "a read failed"
"""So a simulated disk says it: a fault of the schedule, and no fault of the replica that it stops."""


class Applied:
    """What was applied first at one index: by which node, in which term, the command's checksum, and its result."""

    __slots__ = ("command", "node_id", "result", "state", "term")

    def __init__(self, node_id: NodeId, term: Term, command: int, result: bytes | str) -> None:
        self.node_id = node_id
        self.term = term
        self.command = command
        self.result = result
        self.state: bytes | None = None


class Applications:
    """What all replicas of one group applied, by index; the first one that comes decides what is right.

    next_look  the first replica to reach this index has its state digested; the others then are, at that index
    """

    __slots__ = ("by_index", "next_look")

    def __init__(self) -> None:
        self.by_index: dict[Index, Applied] = {}
        self.next_look: Index = 0


class ObservedMachine:
    """A replica's machine, with every application compared with those of the group's other replicas."""

    def __init__(self, machine: Machine, node_id: NodeId, group_id: GroupId, observer: Observer) -> None:
        self._machine = machine
        self._node_id = node_id
        self._group_id = group_id
        self._observer = observer
        self._applications = observer.applications.setdefault(group_id, Applications())
        self._data = machine.data
        self._state: object = getattr(machine, "machine", None) if machine.data is None else self
        self._outcome: bytes | str | None = None

    def outcome(self) -> bytes | str | None:
        """Return what the command came to that was applied since this was asked last; None: none was."""
        outcome, self._outcome = self._outcome, None
        return outcome

    def __getattr__(self, name: str) -> Any:
        return getattr(self._machine, name)

    def apply(self, command: bytes, context: Context) -> Any:
        try:
            result = self._machine.apply(command, context)
        except CommandFailed as problem:
            self._applied(command, context, str(problem))
            raise
        except Exception as problem:
            if not environmental(problem):  # else it is this replica's alone, which halts
                self._applied(command, context, f"{type(problem).__name__}: {problem}")
            raise
        self._applied(command, context, result)
        return result

    def query(self, query: bytes) -> bytes:
        return self._machine.query(query)

    def _digest(self) -> bytes:
        """Return a digest of the state; of a machine on disk, of its data and nothing else."""
        if self._data is None:
            return digest(self._state)
        disk = self._observer.disk(self._node_id)
        failure, disk._read_failure = disk._read_failure, None  # it is for the node, not for who looks at it
        try:
            return digest(list(self._data.range()))
        finally:
            disk._read_failure = failure

    def _applied(self, command: bytes, context: Context, result: bytes | str, looks: bool = True) -> None:
        """`looks`: the state is what this command has left."""
        index = context.index
        self._outcome = result
        self._observer.counts["applied"] += 1
        seen = self._applications.by_index.get(index)
        if seen is None:
            seen = Applied(self._node_id, context.term, zlib.crc32(command), result)
            self._applications.by_index[index] = seen
            if looks and self._state is not None and index >= self._applications.next_look:
                seen.state = self._digest()
                self._applications.next_look = index + 1 + len(self._applications.by_index) // _STATE_COST
            return
        where = f"group {self._group_id}, index {index}: command {describe(command)}"
        if seen.command != zlib.crc32(command) or seen.term != context.term:
            self._observer.report(
                f"state machine safety: {where} of term {context.term} was applied on node {self._node_id}, but "
                f"another command, of term {seen.term}, on node {seen.node_id}"
            )
        elif seen.result != result:
            self._observer.report(
                f"non-deterministic apply: {where} returned {seen.result!r:.120} on node {seen.node_id}, but "
                f"{result!r:.120} on node {self._node_id}"
            )
        elif looks and seen.state is not None and self._state is not None and seen.state != self._digest():
            self._observer.report(
                f"non-deterministic apply: {where} left another state on node {self._node_id} than on node "
                f"{seen.node_id}"
            )


class ObservedBatches(ObservedMachine):
    """The same of a machine that is handed commands together, and does them one by one; its state is in memory.

    Only after the last one the state is looked at: on other replicas batches may end elsewhere.
    """

    def __init__(self, machine: Machine, node_id: NodeId, observer: Observer, replica: Replica) -> None:
        super().__init__(machine, node_id, replica.group_id, observer)
        self._replica = replica

    def apply_batch(self, commands: list[bytes], context: Context) -> list[bytes | Exception]:
        first = context.index
        self._observer.counts["together"] += len(commands) if len(commands) > 1 else 0
        results: list[bytes | Exception] = []
        for index, command in enumerate(commands, first):
            context.index = index
            said: bytes | str
            try:
                result = self._machine.apply(command, context)
                results.append(result)
                said = result
            except Exception as problem:
                if environmental(problem):
                    raise
                results.append(problem)
                said = str(command_failed(problem))
            self._applied(command, context, said, index == first + len(commands) - 1)
            self._observer.once.applied(self._replica, self._node_id, index, command, said)
        context.index = first
        return results


class Observer:
    """Everything that is observed of one cluster; it outlives the nodes.

    report       called with each violation
    invariants   what is checked of replicas
    applications what was applied, by group
    once         what became of numbered commands
    counts       "applied", "together" (those of them in batches of several), "turns", and those of the invariants
    batches      machines in memory take commands together
    """

    def __init__(
        self, cluster: MemoryCluster, trace: Trace, report: Callable[[str], None], batches: bool = False
    ) -> None:
        self.batches = batches
        self.report = report
        self.trace = trace
        self.applications: dict[GroupId, Applications] = {}
        self.invariants = Invariants(cluster.disks, report, self._said)
        self.counts = self.invariants.counts
        self.once = Once(report, self.counts)
        self._cluster = cluster

    def _said(self, node_id: NodeId, group_id: GroupId, what: str, story: bool) -> None:
        say = self.trace.say if story and what.startswith(("leader", "membership")) else self.trace.detail
        say(node_id, f"group {group_id}: {what}")

    def disk(self, node_id: NodeId) -> MemoryDisk:
        return self._cluster.disks[node_id]

    def watch(self, node_id: NodeId) -> None:
        """Begin to observe a node that has just started."""
        node = self._cluster.nodes[node_id]
        if not node.runs:
            return
        running = node._here()
        if running.transport is None or running.store is None:
            return
        engine = running.engine
        watched = _WatchedEngine(self, node_id, running.store.incarnation, engine)
        turn = engine.turn

        def observed_turn() -> None:
            watched.before()
            try:
                turn()
            except BaseException:  # the node was killed within its turn
                watched.ended()
                raise
            if engine._running:
                watched.after()
            else:
                watched.ended()

        engine.turn = observed_turn
        once = self.once

        def proposed(group_id: GroupId, command: bytes, kind: int, future: Future[bytes]) -> None:
            if kind == SESSION:
                future.add_done_callback(lambda done: once.acknowledged(group_id, command, _answer_of(done)))

        engine.on_proposed = proposed
        promises = Promises(node_id, self._cluster.disks[node_id], engine.replicas, self.report, self.counts)
        transport: Any = running.transport
        send, note_sent = transport.send, transport.note_sent

        def observed_send(to: NodeId, messages: Sequence[NodeMessage], urgent: bool) -> bool:
            promises.sends(to, messages)
            done: bool = send(to, messages, urgent)
            return done

        def observed_frame(frame: bytes) -> None:
            self.trace.frame(frame)
            note_sent(frame)

        transport.send, transport.note_sent = observed_send, observed_frame


class _WatchedEngine:
    """One run of one node's engine."""

    def __init__(self, observer: Observer, node_id: NodeId, incarnation: int, engine: Engine) -> None:
        self._observer = observer
        self._node_id = node_id
        self._incarnation = incarnation
        self._engine = engine
        self._seen: dict[GroupId, tuple[Replica, Seen]] = {}

    def before(self) -> None:
        """Meet the replicas that are new, before anything is applied to them."""
        replicas, seen = self._engine.replicas, self._seen
        if len(seen) > len(replicas):
            for group_id in [group_id for group_id in seen if group_id not in replicas]:
                del seen[group_id]
        for group_id, replica in replicas.items():
            if group_id not in seen or seen[group_id][0] is not replica:
                seen[group_id] = replica, Seen(replica.core)
            if not isinstance(replica.machine, ObservedMachine):  # a new replica, or one that begins anew
                self._observe(replica)

    def _observe(self, replica: Replica) -> None:
        observer, node_id = self._observer, self._node_id
        if observer.batches and replica.data is None:
            replica.machine = ObservedBatches(replica.machine, node_id, observer, replica)
            return
        replica.machine = machine = ObservedMachine(replica.machine, node_id, replica.group_id, observer)
        observer.once.watch(replica, node_id, machine.outcome)

    def ended(self) -> None:
        """The node has ended within the turn: who was elected in it may have told others."""
        for group_id, (replica, seen) in self._seen.items():
            core = replica.core
            if core.role is LEADER and (seen.role is not LEADER or seen.term != core.term):
                self._observer.invariants.led(self._node_id, self._incarnation, group_id, core)

    def after(self) -> None:
        """Judge what the turn has changed."""
        observer, engine = self._observer, self._engine
        disk = observer.disk(self._node_id)
        failure, disk._read_failure = disk._read_failure, None  # it is for the node, not for who looks at it
        try:
            self._judge(observer, engine)
        finally:
            disk._read_failure = failure

    def _judge(self, observer: Observer, engine: Engine) -> None:
        look, node_id, incarnation = observer.invariants.look, self._node_id, self._incarnation
        observer.counts["turns"] += 1
        if observer.counts["turns"] == MOST_TURNS:
            observer.report(f"busy: the engines have turned {MOST_TURNS} times, and the run has not come to its end")
        seen = self._seen
        for group_id, replica in engine.replicas.items():
            if replica.broken is not None and READ_FAILED not in replica.broken:
                observer.report(f"group {group_id}: the replica on node {node_id} broke: {replica.broken}")
            known = seen.get(group_id)
            if known is not None and known[0] is replica:
                look(node_id, incarnation, replica, known[1])
        wrong = engine.liveness.audit(engine_leads(engine))
        if wrong:
            observer.report(f"lead sets: node {node_id} claims otherwise than its replicas lead: groups {wrong}")


def _answer_of(done: Future[bytes]) -> bytes | BaseException:
    if done.cancelled():
        return asyncio.CancelledError()
    return done.exception() or done.result()


def engine_leads(engine: Engine) -> dict[GroupId, Term]:
    """Return what the engine's replicas lead, and in which terms."""
    return {group_id: replica.core.term for group_id, replica in engine.replicas.items() if replica.leads}


def retry_halted(node: Node | None, say: Callable[[str], None]) -> None:
    """A failed read has halted machines on disk, which stays so over a restart, until somebody has them retried."""
    if node is None:
        return
    for group_id, replica in node._here().engine.replicas.items():
        if replica.halted is not None and READ_FAILED in replica.halted.reason:
            say(f"retry group {group_id} on {node.node_id}")
            node.retry(group_id)


class ObservedCluster(MemoryCluster):
    """A cluster whose nodes are observed from their start on; `observer` is set by whoever makes it."""

    observer: Observer | None = None

    async def start(self, name: NodeId | None = None) -> None:
        for one in self.names if name is None else (name,):
            try:
                await super().start(one)
            except CorruptRecord as problem:
                self._report(f"node {one} finds its disk damaged, which nothing has damaged: {problem}")
                raise
            if self.observer is not None:
                self.observer.watch(one)

    def _came_back(self, name: NodeId) -> None:
        super()._came_back(name)
        if self.observer is not None:
            self.observer.trace.say(name, "comes back by itself")
            self.observer.watch(name)

    def forget_ended(self) -> list[NodeId]:
        """As MemoryCluster's; only a failed write or read may have ended a node."""
        for name, node in self.nodes.items():
            if not node.runs and node.failure is not None and not isinstance(node.failure, StorageError):
                self._report(f"node {name} has ended by itself: {node.failure}")
        return super().forget_ended()

    def _report(self, what: str) -> None:
        if self.observer is not None:
            self.observer.report(what)
