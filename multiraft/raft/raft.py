"""One group's consensus as a pure state machine: inputs change memory only, `ready()` says what must now be done.

After etcd-io/raft's shape, and Diego Ongaro's thesis ("Consensus: Bridging Theory and Practice", 2014), whose
sections are named where they are used; L1 to L26 are the rules of liveness (see ARCHITECTURE.md). Time is a number
that is handed in, chance comes from the caller, replicas are visited in order of id: one seed, one run.

    engine: step / tick / propose / ...  ->  ready()  ->  write, send, apply  ->  persisted() / applied_to()

Rules of this file: nothing here waits, sends or stores; `ready()` hands each thing out once; a promise about the
disk is in `after_persist`; InvariantViolation and CorruptRecord mean that this replica must halt, and it alone.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from multiraft.errors import NotLeader, NotReady, Overloaded, invariant
from multiraft.messages import (
    Append,
    AppendAnswer,
    Committed,
    CommitTo,
    Installing,
    InstallSnapshot,
    PreVote,
    PreVoteAnswer,
    RaftMessage,
    RequestVote,
    TimeoutNow,
    VoteAnswer,
)
from multiraft.raft.ordinary import Ordinary
from multiraft.raft.progress import REPLICATE
from multiraft.raft.ready import FOLLOWER, LEADER, Ready
from multiraft.records import RECORD_HEADER_BYTES, encode_record
from multiraft.types import NOBODY, HardState, Index, ReplicaId, Term

if TYPE_CHECKING:
    pass


class Raft(Ordinary):
    """One replica of one group. Attributes to read: see `ReplicaState`.

    It starts from what is on disk, as a follower of nobody with an armed deadline: `now` is the patience clock in
    seconds, `applied` what the state machine has already, at least what the stored snapshot covers. Raises
    InvariantViolation when these contradict each other.
    """

    __slots__ = ()

    # ---------------------------------------------------------------------------------------------------- inputs

    def step(self, message: RaftMessage, now: float) -> None:
        """Take one message. Those for another replica (an earlier life of this one) change nothing.

        Raises InvariantViolation, CorruptRecord.
        """
        self._now = now
        if message.to != self.replica_id:
            return
        if isinstance(message, AppendAnswer):
            self._on_append_answer(message, now)
        elif isinstance(message, Append):
            self._on_append(message, now)
        elif isinstance(message, CommitTo):
            self._on_commit_to(message)
        elif isinstance(message, Committed):
            self._on_committed(message)
        elif isinstance(message, InstallSnapshot):
            self._on_install(message, now)
        elif isinstance(message, Installing):
            self._on_installing(message, now)
        elif isinstance(message, PreVote):
            self._on_pre_vote(message, now)
        elif isinstance(message, PreVoteAnswer):
            self._on_pre_vote_answer(message, now)
        elif isinstance(message, RequestVote):
            self._on_request_vote(message, now)
        elif isinstance(message, VoteAnswer):
            self._on_vote_answer(message, now)
        elif isinstance(message, TimeoutNow):
            self._on_timeout_now(message, now)

    def tick(self, now: float) -> None:
        """Do what the deadline was for, if it has passed: campaign; a leader gives up a transfer."""
        self._now = now
        if now < self.deadline:
            return
        if self._timer_due:
            self._arm(now)
        elif self.role is LEADER:
            self._transfer_to = NOBODY
            self.deadline = math.inf
        else:
            self.campaign(now)

    @property
    def timer_due(self) -> bool:
        """Whether the coming tick starts this candidate's timer, and does nothing else."""
        return self._timer_due

    def next_deadline(self) -> float:
        """Return when `tick` is due, in seconds of the patience clock; infinity: not before something else comes."""
        return self.deadline

    def propose(self, entries: list[bytes], kind: int, stamp_ms: int) -> Index:
        """Append `entries` (at least one) to the log as one record; return the first one's index.

        They are committed when `Ready.committed` reaches them while this replica still leads in this term; anything
        else leaves their outcome unknown. Raises NotLeader; NotReady while leadership is being handed over; Overloaded
        while what is not committed would become too long, though one record always fits.
        """
        if self.role is not LEADER:
            raise NotLeader(self.group_id, self.leader_node())
        if self._transfer_to != NOBODY:
            raise NotReady(f"group {self.group_id} is handing over its leadership; retry shortly")
        size_bytes = sum(map(len, entries)) + RECORD_HEADER_BYTES
        if self._tail and self.uncommitted_bytes + size_bytes > self._settings.uncommitted_bytes:
            raise Overloaded(
                f"group {self.group_id}: {self.uncommitted_bytes} bytes of commands are not committed yet; slow down"
            )
        log = self.log
        first = log.last_index + 1
        self._store(encode_record(self.group_id, first, self.term, log.last_term, kind, stamp_ms, entries))
        self._lengthen_tail(log.last_index, size_bytes)
        return first

    def follow(self, leader: ReplicaId, term: Term, now: float) -> bool:
        """`leader` says, on the connection that it beats on, that it leads in `term`.

        Follow it at that term, raising the own one if need be, and hold no deadline: its node's beats answer for
        it now. `leader` may be NOBODY when the membership here does not name that node's replica yet. Return False,
        having changed nothing, when the own term is higher: the claim is to be refused.
        """
        self._now = now
        if term < self.term:
            return False
        invariant(term > self.term or self.role is not LEADER, "a term has one leader")
        if term == self.term and self.leader not in (NOBODY, leader):
            # It is known by its appends; who tells of it knows only its node, whose replica may be another by now.
            nodes = self.membership.nodes
            known = self.leader in nodes and leader in nodes
            invariant(not known or nodes[self.leader] == nodes[leader], "a term has one leader")
            leader = self.leader
        self._become_follower(term, leader, now)
        self._timer_due = False
        self.deadline = math.inf
        return True

    def release(self, now: float, delay_s: float) -> None:
        """Nobody's beats answer for this group any more: forget the leader; `tick` is due in `delay_s` seconds.

        A leader goes on; one that campaigns already keeps its own deadline.
        """
        self._now = now
        if self.role is FOLLOWER:
            self.leader = NOBODY
            self._timer_due = False
            self.deadline = now + delay_s

    def transfer_leadership(self, to: ReplicaId) -> None:
        """Make `to` the leader: TimeoutNow once it holds the whole log (thesis, section 3.10).

        Nothing can be proposed meanwhile. Given up after one to two election timeouts: proposals go on then. A lease
        must not be used again in this term once TimeoutNow has left (L14): see `lease_allowed`. Raises NotLeader;
        NotReady when `to` is this replica, or no voter.
        """
        if self.role is not LEADER:
            raise NotLeader(self.group_id, self.leader_node())
        if to == self.replica_id or not self.membership.is_voter(to):
            raise NotReady(f"group {self.group_id}: replica {to} is no other voter, so it cannot take over")
        self._transfer_to = to
        self._start_timer_at_tick()
        self._transfer_if_caught_up()

    @property
    def heir(self) -> ReplicaId:
        """The replica that this leader is handing over to; NOBODY while it is not."""
        return self._transfer_to

    # ----------------------------------------------------------------------------------------------------- reads

    def can_read(self) -> bool:
        """Whether this replica leads and has committed an entry of its term: its commit is the group's (6.4)."""
        return self.role is LEADER and self.commit >= self._office_index

    def read_index(self, round_id: int) -> Index:
        """Register a linearizable read and return the commit of now (ReadIndex; thesis, section 6.4).

        It is answered in `Ready.read_states` once a quorum has acknowledged `round_id`; rounds never go back. Reads
        that are not answered when the role changes never will be. Raises NotLeader; InvariantViolation unless
        `can_read()`.
        """
        if self.role is not LEADER:
            raise NotLeader(self.group_id, self.leader_node())
        invariant(self.can_read(), "a read is registered only after a commit of the leader's own term")
        for peer in self._peers:
            invariant(peer.acked_round < round_id, "a read is registered before its round is acknowledged")
        index = self.commit
        reads = self._reads
        if not reads or reads[-1] != (round_id, index):
            invariant(not reads or reads[-1][0] <= round_id, "read rounds never go back")
            reads.append((round_id, index))
            self._confirm_reads()
        return index

    # --------------------------------------------------------------------------------------------------- outputs

    def ready(self) -> Ready | None:
        """Return what must now be done, taking it; None when there is nothing. Raises CorruptRecord."""
        log = self.log
        while self._take_effect():
            pass
        membership = self.membership if self.membership.index != self._written_membership else None
        if self.role is LEADER:
            if self.membership.joint or self.membership.joining:
                self._reconfigure()
            self._replicate()
        snapshot = self._snapshot
        if snapshot is not None:
            self._snapshot = None
            self._snapshots_written += 1
        commit = self.commit
        committed = log.stable if log.stable < commit else commit
        rises = self.term != self._written_term or self.vote != self._written_vote
        writes = rises or log.handed != log.last_index or membership is not None or snapshot is not None
        role_changed = self.role is not self._shown_role or (self.role is LEADER and self.term != self._shown_term)
        if not (
            writes
            or self._messages
            or self._answers
            or committed > self._shown_committed
            or self._read_states
            or role_changed
            or self.leader != self._shown_leader
            or self.term != self._shown_term
        ):
            return None
        hard_state = None
        last = (0, 0)
        if writes:
            records, deleted = log.hand_out()
            last = (log.last_index, log.last_term)
            if membership is not None:
                self._written_membership = membership.index
            if rises or commit != self._written_commit:
                hard_state = HardState(self.term, self.vote, commit)
                self._written_term, self._written_vote, self._written_commit = self.term, self.vote, commit
        else:
            records, deleted = [], []
        ready = Ready(
            records, deleted, hard_state, membership, last, self._messages, self._answers, committed, self._read_states,
            role_changed, self.role, self.leader, self.term, snapshot,
        )  # fmt: skip
        self._messages = []
        self._answers = []
        self._read_states = []
        self._shown_role, self._shown_term, self._shown_leader = self.role, self.term, self.leader
        self._shown_committed = max(self._shown_committed, committed)
        return ready

    def settled(self, replica_id: ReplicaId) -> bool:
        """Whether the latest answer of that follower leaves `ready()` nothing to say: a leader's usual second answer.

        False is always safe: it only means that `ready()` must be asked.
        """
        peer = self.progress.get(replica_id)
        return (
            peer is not None
            and self.role is LEADER
            and peer.state is REPLICATE
            and peer.next > self.log.last_index
            and not self.membership.joining
            and self.unchanged()
        )

    def unchanged(self) -> bool:
        """Whether a report of `persisted` leaves `ready()` nothing to say. False is always safe, as above."""
        return (
            self.role is self._shown_role
            and (self.commit <= self._shown_committed or self.log.stable <= self._shown_committed)
            and self.log.handed == self.log.last_index
            and self._snapshot is None
            and not (self._messages or self._answers or self._read_states)
        )

    def persisted(self, index: Index, term: Term, hard_state_term: Term) -> None:
        """The write that carried the log up to (index, term) (`Ready.last`), and a hard state of that term, is on disk.

        `hard_state_term` is 0 when the write carried none. Reports come in the order of the writes; one counts only
        as far as what it wrote still stands in memory.
        """
        if self.log.persisted(index, term) and self.role is LEADER:
            own = self.progress[self.replica_id]
            if self.log.stable > own.match:
                own.match = self.log.stable
                self._advance_commit()
        if self._vote_pending and hard_state_term == self.term:
            self._vote_durable()

    def applied_to(self, index: Index) -> None:
        """The state machine has everything up to `index`; never goes back, never passes what `ready()` allowed."""
        invariant(self.log.applied <= index <= self._shown_committed, "only what is committed and stored is applied")
        self.log.applied = index

    def lease_allowed(self) -> bool:
        """Whether this leader may answer reads by its lease: not after TimeoutNow in this term (L14)."""
        return self.can_read() and not self._timeout_now_sent

    def status(self) -> dict[str, Any]:
        """Return what an operator wants to see, as plain values; `progress` is empty unless this replica leads."""
        return {
            "group_id": self.group_id,
            "replica_id": self.replica_id,
            "role": self.role.name.lower(),
            "term": self.term,
            "vote": self.vote,
            "leader": self.leader,
            "commit": self.commit,
            "applied": self.log.applied,
            "stable": self.log.stable,
            "last_index": self.log.last_index,
            "last_term": self.log.last_term,
            "uncommitted_bytes": self.uncommitted_bytes,
            "log_start": self.log.start.index,
            "snapshot_index": self.snapshot_index,
            "deadline_s": self.deadline if self.deadline != math.inf else None,
            "transfer_to": self._transfer_to,
            "membership_index": self.membership.index,
            "voters": list(self.membership.voters),
            "outgoing": list(self.membership.outgoing),
            "learners": list(self.membership.learners),
            "change_pending": self.change_pending,
            "progress": {
                peer.replica_id: {
                    "match": peer.match,
                    "next": peer.next if peer.replica_id != self.replica_id else self.log.last_index + 1,
                    "state": peer.state.name.lower(),
                    "inflight": len(peer.inflight),
                    "inflight_bytes": peer.inflight_bytes,
                }
                for peer in self.progress.values()
            },
        }
