"""What passes between one group's consensus and the engine around it: settings in, `Ready` out.

The core does no I/O. It is told what happened, and `Ready` says what must now be done, and in which order.

Rules of this file: plain values and protocols, no behaviour; every ordering rule stands on the field that it binds.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Final, Protocol

from multiraft.messages import RaftMessage
from multiraft.records import Record
from multiraft.types import GroupId, HardState, Index, LogStart, Membership, NodeId, ReplicaId, Snapshot, Term


class Role(IntEnum):
    """What a replica is in its term. A pre-candidate asks whether an election could be won (thesis, section 9.6)."""

    FOLLOWER = 0
    PRE_CANDIDATE = 1
    CANDIDATE = 2
    LEADER = 3


# Reading a member through its class costs ten times as much as reading a module's name.
FOLLOWER: Final = Role.FOLLOWER
PRE_CANDIDATE: Final = Role.PRE_CANDIDATE
CANDIDATE: Final = Role.CANDIDATE
LEADER: Final = Role.LEADER


class SnapshotGate(Protocol):
    """What all groups of a node share when they send snapshots, which are large: each asks before it reads one."""

    def opens(self, group_id: GroupId) -> bool:
        """Whether the group may send one now. If not, its `ready()` is to be asked again when it may."""
        ...

    def passed(self, size_bytes: int) -> None:
        """One of this size was read, and is sent."""


class CoreSettings:
    """The bounds that one group's consensus works within.

    election_timeout_s  the ET of all rules; deadlines are drawn from [1, 2) times it
    inflight_messages   appends on the way to one follower, at most
    inflight_bytes      the same in bytes of records; one append may exceed it
    append_bytes        bytes of records in one append; one record may exceed it
    uncommitted_bytes   bytes of a leader's records that are not committed; one record may exceed it
    snapshot_gate       paces the snapshots that are sent; None: nothing does
    """

    __slots__ = (
        "append_bytes",
        "election_timeout_s",
        "inflight_bytes",
        "inflight_messages",
        "snapshot_gate",
        "uncommitted_bytes",
    )

    def __init__(
        self,
        election_timeout_s: float,
        inflight_messages: int,
        inflight_bytes: int,
        append_bytes: int,
        uncommitted_bytes: int,
        snapshot_gate: SnapshotGate | None = None,
    ) -> None:
        self.election_timeout_s = election_timeout_s
        self.inflight_messages = inflight_messages
        self.inflight_bytes = inflight_bytes
        self.append_bytes = append_bytes
        self.uncommitted_bytes = uncommitted_bytes
        self.snapshot_gate = snapshot_gate


class Contacts(Protocol):
    """What is known of the other nodes' being alive. The core judges by it and never keeps time on its own."""

    def loyal(self, group_id: GroupId, term: Term, now: float) -> bool:
        """Whether this replica, being at `term`, owes its leader not to help another one into office yet."""
        ...

    def contact_s(self, group_id: GroupId, term: Term, replica_id: ReplicaId, node_id: NodeId) -> float:
        """Return when the newest beat was sent that this peer acknowledged for (group, term); -inf if none."""
        ...


class Dice(Protocol):
    """Where chance comes from; `random.Random` is one."""

    def random(self) -> float:
        """Return a number in [0, 1)."""
        ...


class SnapshotWrite:
    """A snapshot to store, and where the log starts from then on.

    installs  it is a leader's, and replaces the state machine's state; otherwise it was taken here
    adopts    of one that is installed: the log stays as it is, for it holds all that the snapshot covers; otherwise the
              snapshot takes the place of the log as a whole
    """

    __slots__ = ("adopts", "installs", "log_start", "snapshot")

    def __init__(self, snapshot: Snapshot, log_start: LogStart, installs: bool, adopts: bool = False) -> None:
        self.snapshot = snapshot
        self.log_start = log_start
        self.installs = installs
        self.adopts = adopts


class Ready:
    """What one group asks of the engine now. Each thing is handed out once.

    records        put these in the log, in order. In the same write batch as `deleted` and `hard_state`.
    deleted        stored record keys (first indexes) that no longer count. In that batch BEFORE `records`: a key
                   may be both deleted and put again.
    hard_state     term, vote and commit; None when they need not be written now. A change of the commit alone
                   waits for the next write, since a commit can always be learned again.
    membership     the membership that has taken effect; None when it is the one written before. In this batch: the
                   hard state on disk is then at or above its index.
    snapshot       store it; None where there is none. In this batch, AFTER `deleted` and before `records`; the hard
                   state on disk is then at or above its index. When the write is synced, report `persisted`; then, of
                   one that is installed, restore the state machine from it; then report `snapshot_stored`; and only
                   then may `after_persist` leave.
    last           the end of the log as this write leaves it: pass it to `Raft.persisted` once the write is synced;
                   once for each Ready that writes, in order. (0, 0) when there is nothing to write.
    messages       may leave at once, in parallel with the write: a leader's appends, commits, pre-vote requests,
                   TimeoutNow.
    after_persist  promises about what is on disk: every vote, pre-vote and append ANSWER, and every RequestVote.
                   Leave only when this write is synced, or, where nothing is written, the latest one submitted.
    committed      entries up to here are committed and on this disk: apply what was not applied yet, in order.
    read_states    (round_id, index) of reads that are now known to be linearizable once `index` is applied.
    role_changed   the role, or the term in which this replica leads, is not what the last Ready said; a leader's
                   open proposals and reads end here.
    role, leader   soft state, nothing to store; leader is NOBODY (0) when none is known
    term           the current term
    """

    __slots__ = (
        "after_persist",
        "committed",
        "deleted",
        "hard_state",
        "last",
        "leader",
        "membership",
        "messages",
        "read_states",
        "records",
        "role",
        "role_changed",
        "snapshot",
        "term",
    )

    def __init__(
        self,
        records: list[Record],
        deleted: list[Index],
        hard_state: HardState | None,
        membership: Membership | None,
        last: tuple[Index, Term],
        messages: list[RaftMessage],
        after_persist: list[RaftMessage],
        committed: Index,
        read_states: list[tuple[int, Index]],
        role_changed: bool,
        role: Role,
        leader: ReplicaId,
        term: Term,
        snapshot: SnapshotWrite | None = None,
    ) -> None:
        self.records = records
        self.deleted = deleted
        self.hard_state = hard_state
        self.membership = membership
        self.last = last
        self.messages = messages
        self.after_persist = after_persist
        self.committed = committed
        self.read_states = read_states
        self.role_changed = role_changed
        self.role = role
        self.leader = leader
        self.term = term
        self.snapshot = snapshot

    @property
    def writes(self) -> bool:
        """Whether there is anything to put on disk."""
        return bool(
            self.records
            or self.deleted
            or self.hard_state is not None
            or self.membership is not None
            or self.snapshot is not None
        )
