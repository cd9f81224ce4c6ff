"""The state that all parts of the core share, and the ways from one role to another that need nothing else.

The core is one object in six layers, each a class that extends the one before: this state, replication (what
appends do), snapshots (what stands in for entries), reconfiguration (who takes part), elections (how leaders are made),
and `Raft`, which is what the engine holds. Each layer calls only downward, so that a role is entered in one place.

Rules of this file: the term only rises; a rise forgets the vote and whatever was asked in the old term; whoever has
no leader holds a finite deadline, and only the lead set takes a deadline away (L19, L20).
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from multiraft.errors import invariant
from multiraft.messages import RaftMessage
from multiraft.raft.log import Log
from multiraft.raft.progress import Progress
from multiraft.raft.ready import FOLLOWER, LEADER, Contacts, CoreSettings, Dice, SnapshotWrite
from multiraft.records import MEMBERSHIP, Record
from multiraft.types import NOBODY, Index, NodeId, ReplicaId, StoredReplica, Term

if TYPE_CHECKING:
    from multiraft.ports import LogReader


class ReplicaState:
    """What one replica knows.

    term, vote     the latest term seen, and whom it voted for in it; both reach the disk before any promise
    role, leader   its part in that term; the leader if known, else NOBODY
    commit         entries up to here are committed; never goes back
    membership     who takes part, as of the newest change that has taken effect
    deadline       tick() is due then, on the patience clock in seconds; infinity: not armed
    log            the log, with its `applied` and `stable`
    uncommitted_bytes  leader only: about how large the part of its log is that is not committed
    snapshot_index what the newest snapshot on disk covers; 0: there is none
    progress       leader only: every replica of the group, itself included, by id, ascending
    """

    __slots__ = (
        "_answers",
        "_changes",
        "_contacts",
        "_dice",
        "_messages",
        "_now",
        "_office_index",
        "_office_since",
        "_peers",
        "_read_states",
        "_reads",
        "_settings",
        "_settles_after",
        "_shown_committed",
        "_snapshot",
        "_snapshots_written",
        "_tail",
        "_timeout_now_sent",
        "_timer_due",
        "_transfer_to",
        "_verified",
        "_vote_pending",
        "_votes",
        "_wanted_state",
        "commit",
        "deadline",
        "group_id",
        "leader",
        "log",
        "membership",
        "progress",
        "replica_id",
        "role",
        "snapshot_index",
        "term",
        "uncommitted_bytes",
        "vote",
    )

    def __init__(
        self,
        stored: StoredReplica,
        reader: LogReader,
        contacts: Contacts,
        rng: Dice,
        settings: CoreSettings,
        now: float,
        applied: Index,
    ) -> None:
        self.group_id = stored.descriptor.group_id
        self.replica_id = stored.descriptor.replica_id
        self.log = Log(self.group_id, reader, stored.log_start, stored.last_index, stored.last_term, applied)
        self.membership = stored.membership
        # Membership entries in the log that have not taken effect: see reconfiguration.py.
        self._changes: list[Index] = list(stored.changes)
        self._shown_committed = applied  # handed out as committed up to here
        self._settles_after: Index = self.log.last_index  # see Reconfiguration.membership_known
        # What the next ready() asks to store, and how many it has asked for that are not on disk yet.
        self.snapshot_index: Index = stored.snapshot_index
        self._snapshot: SnapshotWrite | None = None
        self._snapshots_written = 0
        self._wanted_state: Index = 0  # see Snapshots.want_state; 0: none is wanted
        self.term: Term = stored.hard_state.term
        self.vote: ReplicaId = stored.hard_state.vote
        # The commit rides along with later writes, so the state machine may have got further than what was stored.
        self.commit: Index = max(stored.hard_state.commit, applied, stored.log_start.index)
        invariant(self.commit <= self.log.last_index, "a committed entry is missing from the log")
        invariant(self.log.last_term <= self.term, "the log is of a later term than the hard state")
        self.role = FOLLOWER
        self.leader: ReplicaId = NOBODY
        self.progress: dict[ReplicaId, Progress] = {}
        self._contacts = contacts
        self._dice = dice = rng
        self._settings = settings
        self._now = now
        self.deadline = now + settings.election_timeout_s * (1.0 + dice.random())
        self._messages: list[RaftMessage] = []
        self._answers: list[RaftMessage] = []
        # Follower: the log agrees with that of the leader of this term up to here, as acknowledged to it.
        self._verified: Index = 0
        # Candidates: who answered, and how. Candidate: its self-vote is not durable yet.
        self._votes: dict[ReplicaId, bool] = {}
        self._vote_pending = False
        self._timer_due = False  # the next tick starts the timer, and does nothing else
        # Leader: (last index, bytes) of its records that are not committed, oldest first; their sum.
        self._tail: list[tuple[Index, int]] = []
        self.uncommitted_bytes = 0
        # Leader: progress of all others; its no-op; when it was elected; reads not confirmed yet, oldest first.
        self._peers: list[Progress] = []
        self._office_index: Index = 0
        self._office_since = -math.inf
        self._reads: list[tuple[int, Index]] = []
        self._read_states: list[tuple[int, Index]] = []
        self._transfer_to: ReplicaId = NOBODY
        self._timeout_now_sent = False  # ever in this term

    @property
    def applied(self) -> Index:
        return self.log.applied

    @property
    def last_index(self) -> Index:
        return self.log.last_index

    def leader_node(self) -> NodeId | None:
        """Return the node of the known leader; None while there is none."""
        return self.membership.nodes.get(self.leader)

    # ------------------------------------------------------------------------------------------------------- log

    def _store(self, record: Record) -> None:
        """Put `record` at the end of the log."""
        self.log.append(record)
        if record.kind == MEMBERSHIP:
            self._changes.append(record.first)

    def _truncate(self, conflict: Index) -> None:
        """Take away every entry from `conflict` on. Raises CorruptRecord."""
        self.log.truncate(conflict)
        while self._changes and self._changes[-1] >= conflict:
            self._changes.pop()

    def _lengthen_tail(self, last: Index, size_bytes: int) -> None:
        """A leader's log goes on up to `last` by so many bytes."""
        self._tail.append((last, size_bytes))
        self.uncommitted_bytes += size_bytes

    def _shorten_tail(self) -> None:
        """A leader's commit has moved."""
        tail, commit = self._tail, self.commit
        count = 0
        for last, size_bytes in tail:
            if last > commit:
                break
            self.uncommitted_bytes -= size_bytes
            count += 1
        del tail[:count]

    # -------------------------------------------------------------------------------------------------- deadline

    def _arm(self, now: float) -> None:
        self.deadline = now + self._settings.election_timeout_s * (1.0 + self._dice.random())
        self._timer_due = False

    def _start_timer_at_tick(self) -> None:
        """For what comes without a clock, and may come long after the last reading: the next tick is due at once."""
        self.deadline = self._now
        self._timer_due = True

    def _rearm_if_armed(self, now: float) -> None:
        """L20: what comes on the bulk lane may lengthen a deadline and never takes it away."""
        if self.deadline != math.inf:
            self._arm(now)

    # ----------------------------------------------------------------------------------------------------- roles

    def _become_follower(self, term: Term, leader: ReplicaId, now: float) -> None:
        """Follow `leader` (NOBODY: as yet unknown) at `term`, which is at least the own one.

        Where a deadline was, it stays. Where none was, as with a leader, a candidate that waits for its disk, or
        one that was loyal to a leader of an earlier term, one is armed: nobody else is responsible now (L19).
        """
        rises = term != self.term
        if rises:
            self._raise_term(term)
        if (rises or self.role is not FOLLOWER) and self.deadline == math.inf:
            self._arm(now)
        if self.role is not FOLLOWER:
            self._leave_role()
            self.role = FOLLOWER
        self.leader = leader

    def _raise_term(self, term: Term) -> None:
        invariant(term > self.term, "a term never goes back")
        self.term = term
        self.vote = NOBODY
        self._verified = 0

    def _leave_role(self) -> None:
        """Forget what only a candidate or a leader keeps."""
        self._votes = {}
        self._vote_pending = False
        if self.role is LEADER:
            self.progress = {}
            self._peers = []
            self._tail.clear()
            self.uncommitted_bytes = 0
            self._reads = []  # those confirmed already may still be answered
            self._transfer_to = NOBODY
            self._timeout_now_sent = False
