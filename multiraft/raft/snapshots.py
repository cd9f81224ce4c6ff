"""Snapshots: how the log is kept short, and how a follower comes by what the log no longer has.

Ongaro's thesis, chapter 5. A snapshot stands for all entries up to its index: the state machine's state, and the
membership as of there. Every replica takes its own; the log before it goes, but for some trailing entries that keep a
follower that lags a little from needing more than entries. One that needs an entry before the log's start gets the
leader's newest snapshot, and then entries from there on. So does a replica that is made empty: a new group's founding
is a snapshot, too.

    leader    needs an entry before the start ──> SNAPSHOT, sent once, nothing more until
                answered, by whatever shows that entries will do ──> REPLICATE
                told that it is being installed ──> wait for longer; that it cannot be had ──> the newest one, at once
                poked (connection new, message dropped), or no answer for long ──> PROBE whether it has arrived
    follower  its state is yet to be fetched ──> tell so, now and then, and take it in when it is here: as follows
              at or before the commit ──> acknowledge the commit
              the same entry is in the log ──> commit up to it, acknowledge it; the log stays
              else ──> the snapshot replaces log and membership; acknowledged once that is on disk

A replica whose state machine has lost the group's state, but whose log is whole, asks for a snapshot that it does not
need for its log (`want_state`); its leader offers one (`offer_snapshot`), and the state machine is given that, while
the log, the membership and all that was promised stay as they are.

Rules of this file: no snapshot is taken while a membership change has not taken effect; only one that is on disk is
sent; what it covers is committed and applied; the log's start never passes the newest snapshot.
"""

from __future__ import annotations

from typing import Final

from multiraft.errors import InvariantViolation, invariant
from multiraft.membership import pack_membership, unpack_membership
from multiraft.messages import AppendAnswer, Installing, InstallSnapshot
from multiraft.raft.progress import LOST, SNAPSHOT, Progress
from multiraft.raft.ready import LEADER, SnapshotWrite
from multiraft.raft.replication import Replication
from multiraft.types import Index, LogStart, ReplicaId, Snapshot

_PATIENCE_TIMEOUTS: Final = 10
"""A snapshot that is not answered for this many election timeouts is asked after: it is large, and may take long."""


class Snapshots(Replication):
    """The layer that replaces log by state. See the file's text."""

    __slots__ = ()

    # ---------------------------------------------------------------------------------------------------- keeping

    def may_compact(self) -> bool:
        """Whether a snapshot may be taken now: the membership is settled, and no other is on its way to the disk."""
        on_its_way = self._snapshot is not None or self._snapshots_written > 0
        settled = not self._changes and self.membership.index <= self.log.applied
        return settled and not on_its_way and self.log.applied >= self.log.start.index

    def begin_snapshot(self, index: Index | None = None) -> Snapshot:
        """Return what a snapshot that is taken now stands for, without its data. Only while `may_compact()`.

        index  what it covers, at most what is applied and at least the membership in effect; None: all that is applied

        It may be saved while more is applied, and changes of the membership begin. Raises InvariantViolation.
        """
        log = self.log
        if index is None:
            index = log.applied
        invariant(
            self.membership.index <= index <= log.applied, "a snapshot is of an applied entry, membership included"
        )
        invariant(self.may_compact(), "a snapshot is taken between membership changes, one at a time")
        return Snapshot(index, log.term(index), self.membership)

    def may_store(self, index: Index) -> bool:
        """Whether the log may be compacted now by a snapshot of `index`, which was begun some time ago."""
        on_its_way = self._snapshot is not None or self._snapshots_written > 0
        return not on_its_way and index >= self.snapshot_index and index >= self.log.start.index

    def compact(self, data: bytes, trailing: Index, begun: Snapshot | None = None) -> None:
        """Replace the log up to a snapshot's index by `data`, the state machine's state there, with the next `ready()`.

        begun     what `begin_snapshot` returned when the state was taken; None: now. Only while `may_store` its index
        trailing  so many of the last entries that it covers stay in the log

        Raises InvariantViolation, CorruptRecord.
        """
        log = self.log
        if begun is None:
            begun = self.begin_snapshot()
            invariant(begun.index > self.snapshot_index, "a snapshot covers more than the one before")
        invariant(self.may_store(begun.index) and begun.index <= log.applied, "a log goes up to what a snapshot covers")
        snapshot = Snapshot(begun.index, begun.term, begun.membership, data)
        log.compact(max(log.start.index, snapshot.index - trailing))
        self._snapshot = SnapshotWrite(snapshot, log.start, False)

    def snapshot_stored(self, index: Index, adopted: bool = False) -> None:
        """The snapshot of `index` that `Ready.snapshot` asked to store is on disk; after `persisted` for its write.

        Of one that was to be installed: the state machine has what it covers now, or has halted. `adopted`: the log
        stayed.
        """
        self._snapshots_written -= 1
        if index > self.snapshot_index:
            self.snapshot_index = index
        if index >= self._wanted_state:
            self._wanted_state = 0
        log = self.log
        if log.applied < index and (adopted or index == log.start.index):
            log.applied = index
            self._shown_committed = max(self._shown_committed, index)

    # --------------------------------------------------------------------------------------------- leader: sending

    def _replicate(self) -> None:
        """Send snapshots to those who need one; then, as below, what the windows allow to all others."""
        start = self.log.start.index
        for peer in self._peers:
            if peer.next <= start and not peer.pending and peer.state is not LOST and not peer.probe_sent:
                self._send_snapshot(peer)
        super()._replicate()

    def _send_snapshot(self, peer: Progress) -> None:
        log = self.log
        peer.await_snapshot(0, self._now)
        if self.snapshot_index < log.start.index:
            return  # the one that will do is on its way to the disk
        gate = self._settings.snapshot_gate
        if gate is not None and not gate.opens(self.group_id):
            return
        snapshot = log.read_snapshot()
        if snapshot is None or snapshot.index < log.start.index:
            raise InvariantViolation("the log's start never passes the newest snapshot")
        peer.await_snapshot(snapshot.index, self._now)
        self._queue_snapshot(snapshot, peer.replica_id)

    def _queue_snapshot(self, snapshot: Snapshot, to: ReplicaId) -> None:
        if self._settings.snapshot_gate is not None:
            self._settings.snapshot_gate.passed(len(snapshot.data))
        self._messages.append(
            InstallSnapshot(
                snapshot.data, self.group_id, snapshot.index, snapshot.term, pack_membership(snapshot.membership),
                self.replica_id, self.term, to,
            )
        )  # fmt: skip

    def offer_snapshot(self, replica_id: ReplicaId, least: Index) -> bool:
        """Send the newest snapshot to a follower that asks for state, not for entries; what it is sent else goes on.

        Return whether it is on its way: not where this replica does not lead, the other one is no member, the newest
        snapshot is of an entry before `least`, or enough was sent for now: then ask again. Raises CorruptRecord.
        """
        peer = self.progress.get(replica_id)
        if self.role is not LEADER or peer is None or replica_id == self.replica_id or self.snapshot_index < least:
            return False
        gate = self._settings.snapshot_gate
        if gate is not None and not gate.opens(self.group_id):
            return False
        snapshot = self.log.read_snapshot()
        if snapshot is None or snapshot.index < least:
            return False
        self._queue_snapshot(snapshot, replica_id)
        return True

    @property
    def installing(self) -> bool:
        """Whether a voter was sent a snapshot that it has not answered yet."""
        return any(peer.state is SNAPSHOT and self.membership.is_voter(peer.replica_id) for peer in self._peers)

    @property
    def awaited(self) -> Index:
        """The lowest index of a snapshot that a follower was sent and has not answered; 0: there is none."""
        if self.role is not LEADER:
            return 0
        return min((peer.pending for peer in self._peers if peer.state is SNAPSHOT and peer.pending), default=0)

    def ask_after_snapshots(self, now: float) -> None:
        """Probe followers that have left a snapshot unanswered for long. Call it now and then; cheap where none has."""
        self._now = now
        if self.role is not LEADER:
            return
        patience_s = _PATIENCE_TIMEOUTS * self._settings.election_timeout_s
        for peer in self._peers:
            if peer.state is SNAPSHOT and peer.pending and now - peer.pending_since_s > patience_s:
                self.poke(peer.replica_id)

    def _on_installing(self, message: Installing, now: float) -> None:
        peer = self.progress.get(message.sender)
        if self.role is not LEADER or message.term != self.term or peer is None or peer.state is not SNAPSHOT:
            return
        if peer.pending != message.index:
            return  # of one that was sent before
        if message.gone:
            peer.await_snapshot(0, now)
        else:
            peer.pending_since_s = now

    # ---------------------------------------------------------------------------------------------------- follower

    @property
    def takes_over(self) -> bool:
        """Whether the next `ready()` has a leader's snapshot to be installed."""
        return self._snapshot is not None and self._snapshot.installs

    def needs(self, message: InstallSnapshot) -> bool:
        """Whether that snapshot's state has a use here, whoever leads: to replace the log, or the state machine's own.

        Raises CorruptRecord.
        """
        log, index = self.log, message.index
        if index > self.commit and (index > log.last_index or log.term(index) != message.index_term):
            return True
        return self._adopts(message)

    def await_state(self, message: InstallSnapshot, now: float) -> None:
        """The state of that snapshot is yet to be fetched; `step` takes the message when it is here.

        Until then its sender is followed, and told that it must be patient. Only while this replica `needs` it, and of
        no leader of an earlier term.
        """
        invariant(self.term <= message.term and self.needs(message), "only what would be installed is fetched")
        self._now = now
        self._heed(message.sender, message.term, now)
        self.report_install(message, gone=False)

    def report_install(self, message: InstallSnapshot, *, gone: bool) -> None:
        """Tell who sent that snapshot that its state is being fetched, or (`gone`) cannot be: with the next `ready()`.

        Nothing is told to the leader of an earlier term.
        """
        if message.term == self.term and self.role is not LEADER:
            self._answers.append(
                Installing(gone, self.group_id, message.index, self.replica_id, self.term, message.sender)
            )

    def want_state(self, least: Index) -> None:
        """Let the next snapshot of `least` or a later entry take the place of the state machine's state, once.

        The log holds that entry, or will: it is not for the log's sake.
        """
        self._wanted_state = least

    def _on_install(self, message: InstallSnapshot, now: float) -> None:
        if message.term < self.term:
            self._answers.append(
                AppendAnswer(
                    False, self.group_id, 0, 0, message.index, self.replica_id, self.term, message.sender
                )
            )  # fmt: skip
            return
        self._heed(message.sender, message.term, now)
        log, index = self.log, message.index
        if index > self.commit:
            if index > log.last_index or log.term(index) != message.index_term:
                self._install(message)
            self.commit = index
        self._adopt(message)
        index = max(index, self.commit)
        self._verified = max(self._verified, index)
        self._accept(message.sender, index)

    def _adopt(self, message: InstallSnapshot) -> None:
        """Give the state machine what a snapshot has, if it was asked for; the log has all its entries."""
        if not self._adopts(message):
            return
        self._wanted_state = 0
        membership = unpack_membership(message.membership, f"group {self.group_id}: a leader's snapshot")
        snapshot = Snapshot(message.index, message.index_term, membership, message.data)
        self._snapshot = SnapshotWrite(snapshot, self.log.start, True, adopts=True)

    def _adopts(self, message: InstallSnapshot) -> bool:
        log, index = self.log, message.index
        wanted = 0 < self._wanted_state <= index
        return wanted and log.applied < index <= log.stable and self._snapshot is None

    def _install(self, message: InstallSnapshot) -> None:
        start = LogStart(message.index, message.index_term)
        membership = unpack_membership(message.membership, f"group {self.group_id}: a leader's snapshot")
        invariant(membership.index <= start.index, "a snapshot's membership is as of its index")
        self.log.restart(start)
        self._changes.clear()
        self.membership = membership
        self._snapshot = SnapshotWrite(Snapshot(start.index, start.term, membership, message.data), start, True)
