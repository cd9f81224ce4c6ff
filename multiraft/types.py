"""The values that every layer speaks of: ids, terms, memberships, and what a replica keeps on disk.

Rules of this file: plain immutable values, standard library only; no behaviour beyond answering questions about
the value itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Final, TypeAlias

NodeId: TypeAlias = str
"""A node's name. It stays when its address changes."""
GroupId: TypeAlias = int
"""u64. 1 is the directory; 0 is never a group."""
ReplicaId: TypeAlias = int
"""u64, unique within its group for all time. 0 means "nobody"."""
Term: TypeAlias = int
SpaceId: TypeAlias = int
"""u64, of one store: names a keyspace, which holds an on-disk machine's data. Never used again. 0 means "none"."""
Index: TypeAlias = int

NOBODY: Final[ReplicaId] = 0
DIRECTORY_GROUP: Final[GroupId] = 1
FIRST_USER_GROUP: Final[GroupId] = 16
"""Ids below are kept for the framework's own groups."""
U64_MAX: Final = (1 << 64) - 1
INDEX_MAX: Final[Index] = U64_MAX

FOUNDING_INDEX: Final[Index] = 1
"""A group's creation stands for the entry at this index, already committed and applied on its first replicas.

A replica that is created empty later starts below it, at 0, so it can never take the founding for granted.
"""
FOUNDING_TERM: Final[Term] = 1


@dataclass(frozen=True, slots=True)
class Membership:
    """Who takes part in a group, as of `index` of its log (Ongaro's thesis, chapter 4).

    voters           the replicas that elect and commit, ascending
    outgoing         the other half while a joint change is under way; empty otherwise
    learners         replicas that receive the log but neither vote nor count; one that is in `outgoing` as well votes
                     there until the joint change ends
    nodes            the node of every replica named above; no node has two
    next_replica_id  the id that the next new replica takes; above every id ever used in this group
    joining          those of `learners` that the leader promotes by itself once they have caught up
    auto_leave       the leader ends the joint change by itself; False outside of one
    stores           the store that each replica lives in, where that is known: it may live in no other
    """

    index: Index
    voters: tuple[ReplicaId, ...]
    nodes: Mapping[ReplicaId, NodeId]
    next_replica_id: ReplicaId
    outgoing: tuple[ReplicaId, ...] = ()
    learners: tuple[ReplicaId, ...] = ()
    joining: tuple[ReplicaId, ...] = ()
    auto_leave: bool = False
    stores: Mapping[ReplicaId, bytes] = field(default_factory=dict)

    @property
    def joint(self) -> bool:
        """Whether two majorities are needed (thesis, section 4.3)."""
        return bool(self.outgoing)

    @property
    def replicas(self) -> tuple[ReplicaId, ...]:
        """Every replica of the group, ascending."""
        return tuple(sorted({*self.voters, *self.outgoing, *self.learners}))

    def is_voter(self, replica_id: ReplicaId) -> bool:
        return replica_id in self.voters or replica_id in self.outgoing

    def removed(self, replica_id: ReplicaId) -> bool:
        """Whether `replica_id` took part once and does no longer. Ids are never used again, so it never will."""
        return NOBODY < replica_id < self.next_replica_id and replica_id not in self.nodes

    def replica_on(self, node_id: NodeId) -> ReplicaId:
        """Return the replica that lives on `node_id`; NOBODY if the group has none there."""
        for replica_id, name in self.nodes.items():
            if name == node_id:
                return replica_id
        return NOBODY


@lru_cache(maxsize=1024)
def founding_membership(nodes: tuple[NodeId, ...]) -> Membership:
    """Return the membership a new group is created with: one voter per node, ids from 1 in the order given.

    Groups that are founded on the same nodes share one value.
    """
    voters = tuple(range(1, len(nodes) + 1))
    return Membership(FOUNDING_INDEX, voters, dict(zip(voters, nodes, strict=True)), len(nodes) + 1)


def unborn_membership() -> Membership:
    """Return what an empty replica knows of its group before the leader has told it anything.

    Nobody takes part, and no id is known to have been given out, so nobody is taken for removed either.
    """
    return Membership(0, (), {}, 1)


@dataclass(frozen=True, slots=True)
class HardState:
    """What must be on disk before any promise about it leaves the node. One atomic value.

    term    the latest term this replica has seen; never goes back
    vote    the replica voted for in `term`; NOBODY if none
    commit  the highest index known to be committed; never goes back; at most the last index stored
    """

    term: Term = 0
    vote: ReplicaId = NOBODY
    commit: Index = 0


@dataclass(frozen=True, slots=True)
class LogStart:
    """The entry just before the first one in the log: the founding, or what the last snapshot covers."""

    index: Index = 0
    term: Term = 0


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A group's state as of one entry of its log: what stands in for that entry and all before it.

    index, term  of the last entry that it covers, which is committed
    membership   as of that entry
    data         what the state machine's `restore` takes; empty where it is the initial state
    """

    index: Index
    term: Term
    membership: Membership
    data: bytes = b""


@dataclass(frozen=True, slots=True)
class ReplicaDescriptor:
    """What this node knows of a replica that it hosts before it reads anything else of it.

    service  the name that its state machine class was declared under
    """

    group_id: GroupId
    replica_id: ReplicaId
    service: str


@dataclass(frozen=True, slots=True)
class Applied:
    """What a state machine on disk has applied; written in one batch with what that has changed.

    index, term  of the last entry applied
    time_ms      the replicated clock there
    hash         the rolling hash of all results up to there, u32
    space        the keyspace that holds the machine's data
    """

    index: Index
    term: Term
    time_ms: int
    hash: int
    space: SpaceId


@dataclass(frozen=True, slots=True)
class Halt:
    """Why a replica has stopped applying; it stays so over restarts, until an operator has it retried or rebuilt.

    index    the entry that it stopped at: everything before it is applied
    kind     "environment": a failure that was this replica's alone; "diverged": its results are not the leader's;
             "unknown command": its program is older than the entry; "restore": a snapshot could not be taken over;
             "damaged": what it had stored is not what it wrote
    reason   in words
    command  what was being applied, in short; empty where it was no command
    wall_ms  when, by this node's clock, milliseconds since 1970
    """

    index: Index
    kind: str
    reason: str
    command: str = ""
    wall_ms: int = 0


@dataclass(frozen=True, slots=True)
class StoredReplica:
    """Everything of one replica that the engine needs to start it; the log's records are read when needed.

    last_index, last_term  the end of the stored log; equal to `log_start` when the log is empty
    changes                the indexes of the membership entries in the log above `membership.index`, ascending
    snapshot_index         what the stored snapshot covers: at least the log start, at most the commit; 0: there is none
    applied                what its machine on disk has applied; None for a machine in memory
    halt                   why it has stopped applying; None while it has not
    idle_to                up to this entry there is nothing to apply: the snapshot at the log's start holds no state,
                           and what follows it are no-ops. 0: not known to be so
    """

    descriptor: ReplicaDescriptor
    membership: Membership
    hard_state: HardState
    log_start: LogStart
    last_index: Index
    last_term: Term
    changes: tuple[Index, ...] = ()
    snapshot_index: Index = 0
    applied: Applied | None = None
    halt: Halt | None = None
    idle_to: Index = 0


@dataclass(frozen=True, slots=True)
class Tombstone:
    """What is left of a replica that was removed from its group: no replica up to this id lives on this node again.

    index  as of this index of the group's log, the replica took part no longer
    """

    group_id: GroupId
    replica_id: ReplicaId
    index: Index


@dataclass(frozen=True, slots=True)
class Damage:
    """What a store has lost of one group's replica, or of some group's within a stretch of ids that cannot be read.

    Such a replica is not opened: it may have forgotten a vote. It stays so until its group has replaced it.

    first, last  the groups concerned; the same one where it is known
    problem      what does not hold
    replica_id   which replica it was; 0 where that cannot be told
    alone        whether it is known to have been the group's only voter
    """

    first: GroupId
    last: GroupId
    problem: str
    replica_id: ReplicaId = 0
    alone: bool = False


@dataclass(frozen=True, slots=True)
class Identity:
    """Which cluster, node and store a data directory belongs to; written once, synced, and checked at every start.

    cluster_id  16 random bytes drawn when the cluster was formed; empty until then
    store_id    16 random bytes drawn when the directory was first opened
    stores      the store of every member: bound when the cluster was formed, and anew when a node is readmitted
    admitted    the members whose store came after the forming, ascending
    readmissions  how many readmissions `stores` takes into account; the higher number knows better
    generation  which recovery from a lost quorum this store has been through last; 0: none. Lower ones are refused by
                higher ones: what they still promise was given up
    """

    node_id: NodeId
    store_id: bytes
    cluster_id: bytes = b""
    stores: Mapping[NodeId, bytes] = field(default_factory=dict)
    admitted: tuple[NodeId, ...] = ()
    readmissions: int = 0
    generation: int = 0

    @property
    def formed(self) -> bool:
        return bool(self.cluster_id)

    @property
    def founder(self) -> bool:
        """Whether this store was there when the cluster was formed. One that came later has forgotten promises."""
        return self.node_id not in self.admitted


_PLAN_BITS: Final = 32


def next_generation(latest: int, plan_digest: bytes) -> int:
    """Return the recovery generation that follows `latest`, for the plan with this digest (at least 4 bytes).

    Two plans that were made from the same state have different ones, so that nodes recovered by one never talk to nodes
    recovered by the other.
    """
    return ((latest >> _PLAN_BITS) + 1 << _PLAN_BITS) | int.from_bytes(plan_digest[:4], "big")


def generation_name(generation: int) -> str:
    """Return a recovery generation as people read it: which one, and by which plan."""
    number, plan = generation >> _PLAN_BITS, generation & ((1 << _PLAN_BITS) - 1)
    return f"{number}-{plan:08x}" if plan else str(generation)


ADMITTED_RUNS: Final = 1 << 32
"""A store that was admitted as the n-th counts its runs from n times this on, so that no two runs of a node share a
number, whichever store they were of, and a later one has the higher number."""
RUNS_KEPT: Final = 32
RUN_ID_BYTES: Final = 8


@dataclass(frozen=True, slots=True)
class SeenRun:
    """The latest run of a peer's store that a node has met.

    run_id  what that run drew at its start; a store that does not know it has not been through that run
    """

    store_id: bytes
    incarnation: int
    run_id: bytes
