"""One group's member on this node: its consensus core, its state machine, and the callers waiting for it.

The core decides; the engine drives it and does the I/O; this class joins what was committed to the state machine and
to the callers. Rules of this file: no I/O and no awaiting; entries are applied in order, each once per life of the
machine; what a machine raises is either a deterministic result (CommandFailed, to the caller) or, when it is a
failure of the environment, halts this replica alone; a halted replica still takes part in consensus.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable
from math import inf
from typing import Final

from multiraft import failpoints
from multiraft.engine.executing import Executor
from multiraft.engine.local import LocalReads
from multiraft.engine.machine import Context, Machine, environmental, query_failed
from multiraft.engine.waiting import Budget, Proposals, Queue, Reads, fail_future
from multiraft.errors import (
    Halted,
    MultiRaftError,
    NotCommitted,
    NotLeader,
    OutcomeUnknown,
    ReadFailed,
)
from multiraft.ports import Clock
from multiraft.raft import LEADER, Raft
from multiraft.records import FOR_MACHINES, SESSION, Record
from multiraft.types import GroupId, Index, NodeId, ReplicaDescriptor, ReplicaId, Term

_READ_BYTES: Final = 1024 * 1024
log: Final = logging.getLogger("multiraft.engine")


class Replica:
    """A replica as the engine holds it.

    queued                  what the next turn proposes, by the kind of its record; only kinds of which something waits
    waiting                 proposed batches, ascending by first index, until their entries are applied or replaced
    reads                   queries that wait for a turn; then in `rounds` by round id; then in `confirmed`
    local                   reads that this replica answers whoever leads; None before the first one
    committed               apply up to here: committed, and on this disk
    executor                runs what is applied, on the state machine
    halted                  why applying has stopped; None while it has not
    snapshot_due            no snapshot is to be thought of before this index is applied
    snapshot_problem        why the latest attempt to take one failed; None while none has
    broken                  a broken invariant: the core is not touched any more
    seen_term, seen_leader, seen_role, seen_deadline_s  what the rest of the engine was last told of the core
    strangers               nodes of replicas that the membership here does not name yet, by the messages they sent
    told_leading            what the user's hooks were last told
    on_applied              called when more is applied, or taken over with a snapshot
    """

    __slots__ = (
        "applied",
        "apply_queued",
        "broken",
        "budget",
        "committed",
        "confirmed",
        "context",
        "core",
        "descriptor",
        "dirty",
        "executor",
        "group_id",
        "halted",
        "local",
        "on_applied",
        "queued",
        "reads",
        "rounds",
        "seen_deadline_s",
        "seen_leader",
        "seen_role",
        "seen_term",
        "slow_command_s",
        "snapshot_due",
        "snapshot_problem",
        "stopwatch",
        "strangers",
        "told_leading",
        "waiting",
    )

    def __init__(
        self,
        descriptor: ReplicaDescriptor,
        core: Raft,
        machine: Machine,
        budget: Budget,
        slow_command_s: float,
        stopwatch: Clock,
    ) -> None:
        self.descriptor = descriptor
        self.group_id: GroupId = descriptor.group_id
        self.core = core
        self.executor = Executor(descriptor.group_id, machine)
        self.budget = budget
        self.slow_command_s = slow_command_s
        self.stopwatch = stopwatch
        self.context = Context(core.applied, 0, self.group_id, 0)
        self.applied: Index = core.applied
        self.committed: Index = core.applied
        self.queued: dict[int, Queue] = {}
        self.waiting: deque[Proposals] = deque()
        self.reads: Reads | None = None
        self.rounds: dict[int, Reads] = {}
        self.confirmed: deque[tuple[Index, Reads]] = deque()
        self.local: LocalReads | None = None
        self.dirty = False
        self.apply_queued = False
        self.halted: str | None = None
        self.snapshot_due: Index = 0
        self.snapshot_problem: str | None = None
        self.broken: str | None = None
        self.seen_term: Term = core.term
        self.seen_role = core.role
        self.seen_leader = core.leader
        self.seen_deadline_s = inf
        self.strangers: dict[ReplicaId, NodeId] = {}
        self.told_leading = False
        self.on_applied: Callable[[Replica], None] = _nobody

    @property
    def machine(self) -> Machine:
        """The state machine."""
        return self.executor.machine

    @machine.setter
    def machine(self, machine: Machine) -> None:
        self.executor.machine = machine

    @property
    def leader_node(self) -> NodeId | None:
        """The node of the leader that this replica knows of; None while there is none."""
        return self.node_of(self.core.leader)

    def node_of(self, replica_id: ReplicaId) -> NodeId | None:
        """Return where a replica of the group lives, as far as is known here."""
        return self.core.membership.nodes.get(replica_id) or self.strangers.get(replica_id)

    @property
    def leads(self) -> bool:
        return self.core.role is LEADER and self.broken is None

    def refusal(self) -> MultiRaftError:
        """Why this replica takes no command or query now."""
        if self.broken is not None:
            return self.stopped()
        if self.core.role is not LEADER:
            return NotLeader(self.group_id, self.leader_node)
        return self.stopped()

    def stopped(self) -> Halted:
        """What whoever asks this very replica is told once it is halted or broken."""
        if self.broken is not None:
            return Halted(f"group {self.group_id}: the replica here has stopped: {self.broken}")
        return Halted(f"group {self.group_id}: the replica here has halted: {self.halted}")

    # ------------------------------------------------------------------------------------------------- proposing

    def take_queued(self) -> dict[int, Queue]:
        """Hand out what waits to be proposed, by the kind of record."""
        taken, self.queued = self.queued, {}
        return taken

    def lost_queue(self, error: Callable[[], MultiRaftError] | None = None) -> None:
        """Nothing of the queue was proposed, because of `error`; None: leadership went before the turn came."""
        for kind, queue in self.take_queued().items():
            Proposals(0, 0, queue.futures, queue.size_bytes, 0.0, kind).fail(self.budget, error or self.refusal)

    def hand_back_sessions(self) -> None:
        """Leadership went: who waits with a number asks the next leader under it, rather than wait for the log here."""
        text = f"group {self.group_id}: the leadership went to another replica; ask it under the same number"
        for batch in self.waiting:
            if batch.kind == SESSION:
                batch.fail(self.budget, lambda: OutcomeUnknown(text))

    # -------------------------------------------------------------------------------------------------- applying

    def apply_slice(self, until_s: float) -> bool:
        """Apply what is committed, until the stopwatch passes `until_s`; return whether more is left."""
        core = self.core
        if self.applied < core.log.start.index:
            return False  # a snapshot is on its way to the disk, and then to the machine
        more = False
        while self.applied < self.committed and self.halted is None and not more:
            for record in core.log.records(self.applied + 1, self.committed, _READ_BYTES):
                if failpoints.armed is not None:
                    failpoints.armed(failpoints.APPLY_BEFORE)
                if not self._apply_record(record, until_s):
                    more = self.halted is None and self.applied < self.committed
                    break
                if failpoints.armed is not None:
                    failpoints.armed(failpoints.APPLY_AFTER)
        core.applied_to(self.applied)
        if self.confirmed:
            self._answer_confirmed()
        if self.local is not None:
            self.local.applied(self.applied, self.machine)
        self.on_applied(self)
        return more

    def _apply_record(self, record: Record, until_s: float) -> bool:
        """Apply the rest of `record`, as far as it is committed; False when time ran out or the replica halted."""
        last = min(record.last, self.committed)
        batch = self._callers_of(record)
        if record.kind in FOR_MACHINES:
            context = self.context
            context.term = record.term
            context.time_ms = max(context.time_ms, record.stamp_ms)
            if not self._apply_entries(record, last, batch, until_s):
                return False
        self.applied = last
        if batch is not None and last >= batch.last:
            self.waiting.popleft().finish(self.budget)
        return True

    def _apply_entries(self, record: Record, last: Index, batch: Proposals | None, until_s: float) -> bool:
        entries = record.entries()
        base = record.first
        futures = batch.futures if batch is not None else ()
        callers_base = batch.first if batch is not None else 0
        run, context = self.executor.runs[record.kind], self.context
        stopwatch = self.stopwatch
        began_s = stopwatch()
        for index in range(self.applied + 1, last + 1):
            context.index = index
            try:
                result = run(entries[index - base], context)
            except BaseException as problem:
                if not environmental(problem):
                    raise
                self.halt(f"applying index {index}", problem)
                if isinstance(problem, KeyboardInterrupt | SystemExit):
                    raise
                return False
            self.applied = index
            if futures:
                future = futures[index - callers_base]
                if not future.done():
                    if isinstance(result, bytes):
                        future.set_result(result)
                    else:
                        fail_future(future, result)
            now_s = stopwatch()
            if now_s - began_s > self.slow_command_s:
                log.warning("group %d: command at index %d took %.0f ms", self.group_id, index, (now_s - began_s) * 1e3)
            if now_s > until_s and index < last:
                return False
            began_s = now_s
        return True

    def _callers_of(self, record: Record) -> Proposals | None:
        """Return the local callers of `record`; tell callers whose entries it replaced that theirs did not happen.

        A leader appends each batch as one record, so an entry of the batch's index and term is the batch's own; where a
        conflict has cut the record, the batch goes on with the next one, or what is left of it was replaced.
        """
        waiting = self.waiting
        while waiting and waiting[0].first <= record.last:
            batch = waiting[0]
            if batch.term == record.term and batch.last >= record.first:
                if not batch.finished:
                    return batch
                waiting.popleft()
                return None
            waiting.popleft().fail(
                self.budget,
                lambda: NotCommitted(f"group {self.group_id}: a new leader replaced the command; it is safe to retry"),
            )
        return None

    def pass_over(self, index: Index) -> None:
        """A snapshot stands for what is up to `index`: what came of the commands waiting there is not known here."""
        text = f"group {self.group_id}: a snapshot took the place of the command's entry"
        while self.waiting and self.waiting[0].first <= index:
            self.waiting.popleft().fail(self.budget, lambda: OutcomeUnknown(text))

    def restored(self, index: Index, time_ms: int) -> None:
        """The machine has the state as of `index`, and the replicated clock is at `time_ms` there."""
        self.halted = None
        self.applied = index
        self.committed = max(self.committed, index)
        self.context.time_ms = max(self.context.time_ms, time_ms)
        if self.local is not None:
            self.local.applied(index, self.machine)
        self.on_applied(self)

    def halt(self, doing: str, problem: BaseException) -> None:
        """The machine's state is not what it should be, by a failure of the environment: apply nothing more."""
        self.halted = f"{doing}: {type(problem).__name__}: {problem}"
        log.error("group %d: replica halted: %s", self.group_id, self.halted, exc_info=problem)
        while self.waiting:
            self.waiting.popleft().fail(
                self.budget, lambda: OutcomeUnknown(f"group {self.group_id}: replica halted: {self.halted}")
            )
        self.fail_reads(self.refusal)
        if self.local is not None:
            self.local.fail(self.stopped)

    # --------------------------------------------------------------------------------------------------- reading

    def confirm_round(self, round_id: int, index: Index) -> None:
        """Leadership at `round_id` is confirmed: its queries may run once `index` is applied."""
        reads = self.rounds.pop(round_id, None)
        if reads is not None:
            if reads.askers:
                reads.tell(index)
            self.confirmed.append((index, reads))
            if self.applied >= index:
                self._answer_confirmed()

    def _answer_confirmed(self) -> None:
        confirmed = self.confirmed
        query = self.machine.query
        while confirmed and confirmed[0][0] <= self.applied:
            _, reads = confirmed.popleft()
            for body, future in zip(reads.queries, reads.futures, strict=True):
                if future.done():
                    continue
                try:
                    future.set_result(query(body))
                except Exception as problem:
                    fail_future(future, query_failed(problem))
            reads.queries, reads.futures = [], []

    def fail_reads(self, error: Callable[[], MultiRaftError]) -> None:
        """Fail every query that waits, at whatever stage."""
        for reads in (*self.rounds.values(), *(reads for _, reads in self.confirmed)):
            reads.fail(error)
        self.rounds.clear()
        self.confirmed.clear()
        if self.reads is not None:
            self.reads.fail(error)
            self.reads = None

    def fail_everything(self, reason: str) -> None:
        """The engine ends: what was proposed has an unknown outcome, what was not certainly did not happen."""
        while self.waiting:
            self.waiting.popleft().fail(self.budget, lambda: OutcomeUnknown(reason))
        self.lost_queue(lambda: NotCommitted(reason))
        self.fail_reads(lambda: ReadFailed(reason))
        if self.local is not None:
            self.local.fail(lambda: ReadFailed(reason))


def _nobody(replica: Replica) -> None:
    """Nobody wants to know."""
