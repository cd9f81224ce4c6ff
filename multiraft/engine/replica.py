"""One group's member on this node: its consensus core, its state machine, and the callers waiting for it.

The core decides; the engine drives it and does the I/O; this class joins what was committed to the state machine and
to the callers. Rules of this file: no I/O and no awaiting; entries are applied in order, each once per life of the
machine; what a machine raises is either a deterministic result (CommandFailed, to the caller) or, when it is a
failure of the environment, halts this replica alone; a halted replica still takes part in consensus.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from math import inf
from typing import Final

from multiraft import failpoints
from multiraft.engine.batching import apply_together
from multiraft.engine.executing import Executor
from multiraft.engine.keyspace import ReplicaData, on_disk
from multiraft.engine.loading import Loading
from multiraft.engine.local import LocalReads
from multiraft.engine.machine import Context, Machine, environmental, halt_kind, said
from multiraft.engine.saving import Saving
from multiraft.engine.stamps import ReplicatedClock
from multiraft.engine.waiting import Budget, Proposals, Queue, Reads, Result
from multiraft.errors import (
    Halted,
    MultiRaftError,
    NotCommitted,
    NotLeader,
    OutcomeUnknown,
    ReadFailed,
)
from multiraft.ports import Clock, Clocks
from multiraft.raft import LEADER, Raft
from multiraft.records import CONTROL, FOR_MACHINES, SESSION, Record
from multiraft.types import GroupId, Halt, Index, NodeId, ReplicaDescriptor, ReplicaId, Term

_READ_BYTES: Final = 1024 * 1024
_SLOWEST_KEPT: Final = 8
_NO_STRANGERS: Final[dict[ReplicaId, NodeId]] = {}  # of all replicas that have none; never changed
log: Final = logging.getLogger("multiraft.engine")


class Replica:
    """A replica as the engine holds it.

    queued                  what the next turn proposes, by the kind of its record; only kinds of which something waits
    waiting                 proposed batches, ascending by first index, until their entries are applied or replaced
    reads                   queries that wait for a turn; then in `rounds` by round id; then in `confirmed`
    local                   reads that this replica answers whoever leads; None before the first one
    committed               apply up to here: committed, and on this disk
    executor                runs what is applied, on the state machine; made (`made`) when it is first needed, for most
                            groups of a node may hold nothing
    idle_to                 see `StoredReplica.idle_to`; of entries that still stand as they were stored then
    data                    of a machine on disk; None: the machine's state is in memory
    clock                   the group's replicated clock, for records that are proposed here
    opened_last             the end of the log when the replica was taken up: later entries came in this run
    halted                  why applying has stopped, and at which entry; None while it has not
    handing                 halted, it leads until somebody healthy takes over
    on_halt                 called with this replica and the reason when it has halted
    slow_commands           how many took too long, since the start; in `slowest`: (index, milliseconds, in words)
    snapshot_due            no snapshot is to be thought of before this index is applied
    log_bytes               of the records applied since the state was last taken for a snapshot
    saved_bytes             the size of the latest snapshot of it
    saving, loading         its state on the way into a snapshot, or out of one; None: it is not
    snapshot_problem        why the latest attempt to take one failed; None while none has
    broken                  a broken invariant: the core is not touched any more
    seen_term, seen_leader, seen_role, seen_deadline_s  what the rest of the engine was last told of the core
    strangers               nodes of replicas that the membership here does not name yet, by the messages they sent
    told_leading            what the user's hooks were last told
    on_applied              called when more is applied, or taken over with a snapshot
    """

    __slots__ = (
        "_executor",
        "_make_executor",
        "applied",
        "apply_queued",
        "broken",
        "budget",
        "clock",
        "committed",
        "confirmed",
        "context",
        "core",
        "data",
        "descriptor",
        "dirty",
        "group_id",
        "halted",
        "handing",
        "idle_to",
        "loading",
        "local",
        "log_bytes",
        "on_applied",
        "on_halt",
        "opened_last",
        "queued",
        "reads",
        "real",
        "rounds",
        "saved_bytes",
        "saving",
        "seen_deadline_s",
        "seen_leader",
        "seen_role",
        "seen_term",
        "slow_command_s",
        "slow_commands",
        "slowest",
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
        executor: Executor | None,
        make_executor: Callable[[ReplicaDescriptor], Executor],
        budget: Budget,
        slow_command_s: float,
        stopwatch: Clock,
        real: Clock,
        data: ReplicaData | None = None,
    ) -> None:
        """`make_executor` is called when one is needed and `executor` is None."""
        self.descriptor = descriptor
        self.data = data
        self.clock = ReplicatedClock()
        self.opened_last: Index = core.last_index
        self.group_id: GroupId = descriptor.group_id
        self.core = core
        self._executor = executor
        self._make_executor = make_executor
        self.budget = budget
        self.slow_command_s = slow_command_s
        self.stopwatch = stopwatch
        self.real = real
        self.context = Context(core.applied, 0, self.group_id, 0)
        self.applied: Index = core.applied
        self.idle_to: Index = 0
        self.committed: Index = core.applied
        self.queued: dict[int, Queue] = {}
        self.waiting: list[Proposals] = []  # short; a deque takes 700 bytes even when empty
        self.reads: Reads | None = None
        self.rounds: dict[int, Reads] = {}
        self.confirmed: list[tuple[Index, Reads]] = []
        self.local: LocalReads | None = None
        self.dirty = False
        self.apply_queued = False
        self.halted: Halt | None = None
        self.handing = False
        self.on_halt: Callable[[Replica, BaseException], None] = _nothing
        self.slow_commands = 0
        self.slowest: Sequence[tuple[Index, float, str]] = ()
        self.snapshot_due: Index = 0
        self.log_bytes = 0
        self.saved_bytes = 0
        self.saving: Saving | None = None
        self.loading: Loading | None = None
        self.snapshot_problem: str | None = None
        self.broken: str | None = None
        self.seen_term: Term = core.term
        self.seen_role = core.role
        self.seen_leader = core.leader
        self.seen_deadline_s = inf
        self.strangers: dict[ReplicaId, NodeId] = _NO_STRANGERS
        self.told_leading = False
        self.on_applied: Callable[[Replica], None] = _nobody

    def remake(self, machine: Machine, index: Index) -> None:
        """Begin anew with `machine`, which has what the snapshot of `index` (or the founding) says.

        Entries after that are applied again; nobody waits for what comes of them.
        """
        self.local = None  # what it knows of its age is true no longer; nobody waits for a halted one
        self.executor = self.executor.anew(machine if self.data is None else on_disk(machine, self.data))
        self.executor.rolling.restart(index, 0)
        self.context = Context(index, 0, self.group_id, 0)
        self.applied = index

    @property
    def executor(self) -> Executor:
        executor = self._executor
        return executor if executor is not None else self.make()

    @executor.setter
    def executor(self, executor: Executor) -> None:
        self._executor = executor

    def make(self) -> Executor:
        """Make the machine, and what runs it, unless that was done before; return the latter."""
        executor = self._executor
        if executor is None:
            executor = self._executor = self._make_executor(self.descriptor)
        return executor

    @property
    def made(self) -> bool:
        return self._executor is not None

    @property
    def machine(self) -> Machine:
        """The state machine."""
        return self.executor.machine

    @machine.setter
    def machine(self, machine: Machine) -> None:
        self.executor.take(machine)

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
        return NotLeader(self.group_id) if self.handing else self.stopped()

    def stamp_ms(self, clocks: Clocks) -> int:
        """Return what a record that is proposed here now is stamped with."""
        return self.clock.stamp_ms(self.context.time_ms, clocks.real(), clocks.wall())

    def stopped(self) -> Halted:
        """What whoever asks this very replica is told once it is halted or broken."""
        if self.broken is not None:
            return Halted(f"group {self.group_id}: the replica here has stopped: {self.broken}")
        return Halted(f"group {self.group_id}: the replica here has halted: {self.why_halted}")

    @property
    def why_halted(self) -> str | None:
        """Why this replica serves nobody, in words; None while it does."""
        if self.broken is not None:
            return self.broken
        return self.halted.reason if self.halted is not None else None

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
        if self.applied < self.idle_to <= core.log.held_after:
            self.applied = min(self.idle_to, self.may_apply)
        more = False
        while self.applied < (may_apply := self.may_apply) and not more:
            for record in core.log.records(self.applied + 1, may_apply, _READ_BYTES):
                if failpoints.armed is not None:
                    failpoints.armed(failpoints.APPLY_BEFORE)
                if not self._apply_record(record, until_s):
                    more = self.applied < self.may_apply
                    break
                if failpoints.armed is not None:
                    failpoints.armed(failpoints.APPLY_AFTER)
                if self.stopwatch() > until_s:
                    more = self.applied < self.may_apply
                    break
        if self.applied > core.applied:  # one that is made anew from an old snapshot comes from below
            core.applied_to(self.applied)
        if self.confirmed:
            self._answer_confirmed()
        if self.local is not None:
            self.local.applied(self.applied, self.executor)
        self.on_applied(self)
        return more

    @property
    def being_taken(self) -> bool:
        """Whether its state is being read for a snapshot: nothing may change it."""
        return self.saving is not None and not self.saving.taken

    @property
    def may_apply(self) -> Index:
        """Apply up to here: what is committed, but nothing from the entry on that this replica has halted at."""
        return self.committed if self.halted is None else min(self.committed, self.halted.index - 1)

    def _apply_record(self, record: Record, until_s: float) -> bool:
        """Apply the rest of `record`, as far as it may be; False when time ran out or the replica halted."""
        last, may_apply = record.last, self.may_apply
        if may_apply < last:
            last = may_apply
        batch = self._callers_of(record) if self.waiting else None
        if record.kind in FOR_MACHINES:
            context = self.context
            context.term = record.term
            if record.stamp_ms > context.time_ms:
                context.time_ms = record.stamp_ms
            if record.last > self.opened_last:
                self.clock.saw(record.stamp_ms, self.real())
            if not self._apply_entries(record, last, batch, until_s):
                return False
        self.applied = last
        if last == record.last:
            self.log_bytes += len(record.raw)
        if batch is not None and last >= batch.last:
            self.waiting.pop(0).finish(self.budget)
        return True

    def _apply_entries(self, record: Record, last: Index, batch: Proposals | None, until_s: float) -> bool:
        kind, base, first = record.kind, record.first, self.applied + 1
        entries = batch.entries if batch is not None and batch.record is record else record.entries()
        executor, context = self._executor or self.make(), self.context
        executor.rolling.begin(first)
        executor.doing.record = record
        if kind != CONTROL and executor.batch is not None:
            return apply_together(self, record, entries, last, batch, until_s)
        run = executor.runs[kind]
        results: list[Result] = []
        stopwatch, slow_s = self.stopwatch, self.slow_command_s
        began_s = stopwatch()
        for index in range(first, last + 1):
            context.index = index
            try:
                results.append(run(entries[index - base], context))
            except BaseException as problem:
                self.came_of(first, results, batch)
                self.failed_at(index, kind, entries[index - base], problem)
                return False
            self.applied = index
            if kind == CONTROL:  # which may look at what has come of the entries before
                self.came_of(index, results, batch)
                results = []
            now_s = stopwatch()
            if now_s - began_s > slow_s:
                self.was_slow(index, (now_s - began_s) * 1e3, executor.text_of(kind, entries[index - base]))
            if now_s > until_s and index < last:
                break
            began_s = now_s
        self.came_of(first, results, batch)
        return self.applied == last

    def came_of(self, index: Index, results: list[Result], batch: Proposals | None) -> None:
        """`results` came of the entries from `index` on: count them in, and tell whoever waits for them."""
        if results:
            executor = self._executor or self.make()
            executor.rolling.chain_all(index, results)
            if batch is not None:
                batch.tell(index, results)

    def failed_at(self, index: Index, kind: int, entry: bytes, problem: BaseException) -> None:
        """Applying `entry` has raised: halt there if this replica alone is struck, else raise `problem`, a bug."""
        if not environmental(problem):
            raise problem
        text = self.executor.text_of(kind, entry)
        self.halt(index, f"applying index {index}, {text}", problem, text)
        if isinstance(problem, KeyboardInterrupt | SystemExit):
            raise problem

    def was_slow(self, index: Index, took_ms: float, text: str) -> None:
        """The command of `index` has held the loop for so long."""
        self.slow_commands += 1
        self.slowest = [*self.slowest, (index, round(took_ms, 1), text)][-_SLOWEST_KEPT:]
        log.warning("group %d: command at index %d took %.0f ms: %s", self.group_id, index, took_ms, text)

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
                waiting.pop(0)
                return None
            waiting.pop(0).fail(
                self.budget,
                lambda: NotCommitted(f"group {self.group_id}: a new leader replaced the command; it is safe to retry"),
            )
        return None

    def pass_over(self, index: Index) -> None:
        """A snapshot stands for what is up to `index`: what came of the commands waiting there is not known here."""
        text = f"group {self.group_id}: a snapshot took the place of the command's entry"
        while self.waiting and self.waiting[0].first <= index:
            self.waiting.pop(0).fail(self.budget, lambda: OutcomeUnknown(text))

    def restored(self, index: Index, time_ms: int, value: int) -> None:
        """The machine has the state as of `index`, the replicated clock is at `time_ms` there, the hash is `value`."""
        self.executor.rolling.restart(index, value)
        self.applied = index
        self.committed = max(self.committed, index)
        self.context.time_ms = max(self.context.time_ms, time_ms)
        if self.local is not None:
            self.local.applied(index, self.executor)
        self.on_applied(self)

    def halt(self, index: Index, doing: str, problem: BaseException, command: str = "", kind: str = "") -> None:
        """Apply nothing from `index` on: the machine's state would not be the group's.

        kind, command  as in types.Halt; no kind: as the problem says
        """
        reason = f"{doing}: {said(problem)}"
        self.halted = Halt(index, kind or halt_kind(problem), reason, command)
        log.error("group %d: replica halted: %s", self.group_id, reason, exc_info=problem)
        self.fail_callers()
        if not isinstance(problem, KeyboardInterrupt | SystemExit):  # the process is asked to end, and starts anew
            self.on_halt(self, problem)

    def fail_callers(self) -> None:
        """This replica has halted: whoever waits for it has an answer."""
        waiting, self.waiting = self.waiting, []
        for batch in waiting:
            batch.fail(self.budget, lambda: OutcomeUnknown(f"group {self.group_id}: replica halted: {self.why_halted}"))
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
        while confirmed and confirmed[0][0] <= self.applied:
            confirmed.pop(0)[1].answer(self.executor)

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
        waiting, self.waiting = self.waiting, []
        for batch in waiting:
            batch.fail(self.budget, lambda: OutcomeUnknown(reason))
        self.lost_queue(lambda: NotCommitted(reason))
        self.fail_reads(lambda: ReadFailed(reason))
        if self.local is not None:
            self.local.fail(lambda: ReadFailed(reason))


def _nothing(replica: Replica, problem: BaseException) -> None:
    pass


def _nobody(replica: Replica) -> None:
    """Nobody wants to know."""
