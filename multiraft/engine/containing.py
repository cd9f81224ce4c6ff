"""Containment: a failure that is one replica's alone stays with it, is known of, and can be mended.

A replica halts at an entry when going on would leave it with another state than its peers have: a failure that is its
alone (`machine.environmental`), a comparison that fails, a command that it does not know. Halted, it still stores,
acknowledges and votes, and follows the membership; it applies nothing from the entry on, answers nobody, and takes no
snapshot. That is on disk, and stays so over restarts, until it is retried, is rebuilt from a healthy replica, or is
sent a snapshot that covers the entry; only one that does not know a command is retried at each start, which may bring
another program. One that leads asks a healthy voter to take over; where there is none, it leads on, and callers hear
that it is halted.

    running ──> halted at an entry ──┬──> retried: its machine is made anew, from its snapshot and its log
                                     └──> a snapshot of a healthy replica that covers the entry ──> running

Every so many commands, or after a while with some, a leader has the replicas compare their rolling hashes, by an entry
in the log that says what most of them have come to. An idle group compares nothing.

Rules of this file: nothing here is needed while nothing fails, and costs nothing then; what is asked of other nodes is
asked by the hooks, which the node sets.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from math import inf
from typing import TYPE_CHECKING, Final

from multiraft.engine.executing import check_entry
from multiraft.engine.machine import Diverged, Machine, UnknownCommand
from multiraft.engine.replica import Replica
from multiraft.errors import MultiRaftError, NotReady
from multiraft.records import CONTROL
from multiraft.types import NOBODY, Halt, Index, NodeId, StoredReplica

if TYPE_CHECKING:
    from asyncio import Future

    from multiraft.engine.engine import Engine

_CHECK_AFTER_S: Final = 60.0
"""Commands that were not compared for so long are, however few they are."""
log: Final = logging.getLogger("multiraft.engine")


class Containing:
    """The halted replicas of one engine, and its comparisons.

    compare    called when a comparison at an index is due in a group that is led here: find out what most replicas have
               there, then call `propose_check`. None: this replica's own value is taken
    hand_over  called when a halted replica leads: find out who is healthy, then call `handed`. None: it steps down
    diverged   called when a replica has halted because it differs from the others: find out since when
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._halted: dict[Replica, float] = {}  # when those that lead ask for an heir again
        self._checking: set[Replica] = set()
        self._unchecked_since: dict[Replica, float] = {}
        self._check_entries = engine.limits.check_entries or inf
        self._on_halt = self._has_halted  # one object for all replicas
        self.compare: Callable[[Replica, Index], None] | None = None
        self.hand_over: Callable[[Replica], None] | None = None
        self.diverged: Callable[[Replica, Diverged], None] | None = None

    # ---------------------------------------------------------------------------------------------------- halting

    def open(self, replica: Replica, stored: StoredReplica) -> None:
        """Take up a replica from disk, with the halt that it may have had; before its machine gets its state."""
        replica.on_halt = self._on_halt
        halt = stored.halt
        if halt is not None:
            replica.halted = halt
            self._halted[replica] = -inf
            if halt.kind == UnknownCommand.kind:
                self._end(replica)  # this start may have brought the program that knows it; else it halts again
            elif _covers(stored.snapshot_index, halt):
                self.healed(replica, stored.snapshot_index)  # its last run ended before that was written down
            else:
                log.warning("group %d: replica is halted still: %s", replica.group_id, halt.reason)

    def gone(self, replica: Replica) -> None:
        """The replica lives here no longer."""
        self._halted.pop(replica, None)
        self._checking.discard(replica)
        self._unchecked_since.pop(replica, None)

    def _has_halted(self, replica: Replica, problem: BaseException) -> None:
        halt = replica.halted
        if halt is not None:
            self.write_down(replica, replace(halt, wall_ms=int(self._engine.clocks.wall() * 1e3)))
        self._halted[replica] = -inf
        if isinstance(problem, Diverged) and self.diverged is not None:
            self.diverged(replica, problem)

    def write_down(self, replica: Replica, halt: Halt | None) -> None:
        """The replica is halted as `halt` says, or no longer; on disk as well, before long."""
        engine = self._engine
        replica.halted = halt
        if engine.replicas.get(replica.group_id) is replica:
            engine.writer.write(lambda batch: batch.put_halt(replica.group_id, halt), _nothing)
            engine.wake()

    def healed(self, replica: Replica, index: Index) -> None:
        """The machine has the state as of `index`, from a snapshot: the entry that it halted at may be covered now."""
        halt = replica.halted
        if halt is not None and index >= halt.index:
            log.warning("group %d: replica is halted no longer: it has the state as of %d", replica.group_id, index)
            self._end(replica)

    def retry(self, replica: Replica, machine: Machine) -> None:
        """Make the machine of a halted replica anew, and have it apply on, from the entry that it halted at.

        What the failed attempt has changed in the old one is gone with it.
        """
        halt = replica.halted
        if halt is None:
            raise NotReady(f"group {replica.group_id}: the replica here is not halted")
        engine, core = self._engine, replica.core
        log.warning("group %d: replica is retried from index %d on", replica.group_id, halt.index)
        self._end(replica)
        replica.remake(machine, max(core.snapshot_index, core.log.start.index))
        engine.snapshotting.open(replica)
        engine.applying.add(replica)
        engine.wake()

    def _end(self, replica: Replica) -> None:
        self._halted.pop(replica, None)
        replica.handing = False
        self.write_down(replica, None)

    # -------------------------------------------------------------------------------------------------- leadership

    def give_up(self, replica: Replica, now: float) -> None:
        """A halted replica leads nobody where somebody healthy may: also one that was elected after it had halted."""
        core = replica.core
        if not replica.leads or len(core.membership.voters) < 2 or replica.handing:
            return
        if self.hand_over is None:
            core.step_down(now)
            self._engine.note(replica, now)
        elif now >= self._halted.get(replica, -inf):
            replica.handing = True
            self.hand_over(replica)

    def handed(self, replica: Replica, to: NodeId | None) -> None:
        """The replica on `to` is healthy; None: no other one is, or answers. It is asked again later."""
        engine = self._engine
        now = engine.pacing.now()
        self._halted[replica] = now + engine.limits.election_timeout_ms / 1e3
        if not replica.leads or replica.halted is None or to is None:
            replica.handing = False
            return
        log.warning("group %d: halted, its leader asks %s to take over", replica.group_id, to)
        try:
            with engine.touching(replica, now):
                replica.core.transfer_leadership(replica.core.membership.replica_on(to))
                engine.liveness.forget_lease(replica.group_id)
        except MultiRaftError as problem:
            log.info("group %d: %s", replica.group_id, problem)
            replica.handing = False

    def tick(self, now: float) -> None:
        """Once a beat: those that lead though they are halted try again to be rid of it."""
        for replica in list(self._halted):
            if replica.broken is not None or replica.halted is None:
                self.gone(replica)
            elif not replica.leads:
                replica.handing = False
            elif now >= self._halted[replica] and replica.core.heir == NOBODY:
                replica.handing = False
                self.give_up(replica, now)

    # --------------------------------------------------------------------------------------------------- comparing

    def applied(self, replica: Replica) -> None:
        """A slice was applied: have the replicas compared if enough has come since. On the hot path."""
        if replica.made and replica.executor.rolling.unchecked >= self._check_entries and replica.leads:
            self._check(replica)

    def audit(self, replica: Replica, now: float) -> None:
        """Once a sweep, of a machine that is made: few commands are compared as well, if they are all that there is."""
        rolling = replica.executor.rolling
        if rolling.unchecked <= 0:
            rolling.settle()
            self._unchecked_since.pop(replica, None)
        elif not replica.leads or self._check_entries == inf:
            self._unchecked_since.pop(replica, None)
        elif now - self._unchecked_since.setdefault(replica, now) >= _CHECK_AFTER_S:
            self._check(replica)

    def _check(self, replica: Replica) -> None:
        if replica in self._checking or replica.halted is not None:
            return
        self._checking.add(replica)
        self._unchecked_since.pop(replica, None)
        index = replica.executor.rolling.last
        if self.compare is not None:
            self.compare(replica, index)
        else:
            self.propose_check(replica, index, replica.executor.rolling.at(index))

    def propose_check(self, replica: Replica, index: Index, value: int | None) -> None:
        """Have all replicas compare what they have at `index` with `value`; None: not now."""
        if value is None or not replica.leads or replica.halted is not None:
            self._checking.discard(replica)
            return
        try:
            future = self._engine.propose(replica.group_id, check_entry(index, value), CONTROL)
        except MultiRaftError as problem:  # when more has come, it is due again
            log.debug("group %d: nothing is compared now: %s", replica.group_id, problem)
            self._checking.discard(replica)
        else:
            future.add_done_callback(partial(self._checked, replica))

    def _checked(self, replica: Replica, future: Future[bytes]) -> None:
        self._checking.discard(replica)
        if not future.cancelled():
            future.exception()  # taken, so that nobody reports it as unseen: it is due again when more has come


def _covers(snapshot_index: Index, halt: Halt) -> bool:
    """Whether a snapshot has what the replica halted at. One that could not be taken over has nothing."""
    return snapshot_index > halt.index if halt.kind == "restore" else snapshot_index >= halt.index


def _nothing() -> None:
    pass
