"""Membership changes: from one membership and what is asked for, the membership that comes next, or a refusal.

Ongaro's thesis, chapter 4, with etcd's refinements. A change that touches at most one voter is simple: any majority
before it and any majority after it share a replica. Everything larger goes through a joint membership, in which both
majorities are needed, and is ended by a second change (leaving). New replicas always begin as learners; a learner
becomes a voter by promotion only, so that nobody votes who might lack what it should hold.

Rules of this file: pure functions of memberships; ids are given out in order and never again; a refusal raises before
anything is decided; what is returned makes sense by `multiraft.membership`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

from multiraft.errors import ChangePending, ChangeRefused
from multiraft.types import Index, Membership, NodeId, ReplicaId


@dataclass(frozen=True, slots=True)
class AddLearner:
    """A new replica on `node_id`, which has none; `joining`: the leader promotes it once it has caught up.

    store  the store that it may live in; empty: bound at the first contact
    """

    node_id: NodeId
    joining: bool = False
    store: bytes = b""


@dataclass(frozen=True, slots=True)
class Promote:
    """A learner becomes a voter."""

    replica_id: ReplicaId


@dataclass(frozen=True, slots=True)
class Demote:
    """A voter becomes a learner."""

    replica_id: ReplicaId


@dataclass(frozen=True, slots=True)
class Remove:
    """A replica takes part no longer; its id is never used again."""

    replica_id: ReplicaId


@dataclass(frozen=True, slots=True)
class Bind:
    """A replica that is bound to no store yet lives in `store`, and in no other, from now on."""

    replica_id: ReplicaId
    store: bytes


Change: TypeAlias = AddLearner | Promote | Demote | Remove | Bind


def changed(
    current: Membership, index: Index, changes: Sequence[Change], joint: bool | None = None, auto_leave: bool = True
) -> Membership:
    """Return the membership that follows `current` with the entry at `index`, all `changes` made in their order.

    joint       None: only where more than one voter changes; True: always; False: never
    auto_leave  where it becomes joint: the leader ends that by itself

    Raises ChangePending while `current` is joint; ChangeRefused for a change that makes no sense, for one that leaves
    no voter, and where `joint` is False and more than one voter changes.
    """
    if current.joint:
        raise ChangePending("a joint membership change is under way: end it first, or wait until the leader does")
    if not changes:
        raise ChangeRefused("no change is asked for")
    draft = _Draft(current)
    for change in changes:
        draft.make(change)
    if not draft.voters:
        raise ChangeRefused("the group would have no voter left: promote another replica first")
    touched = draft.voters ^ set(current.voters)
    if joint is None:
        joint = len(touched) > 1
    if not joint and len(touched) > 1:
        raise ChangeRefused(f"{len(touched)} voters change: that needs a joint change")
    outgoing = current.voters if joint else ()
    kept = draft.voters | draft.learners | set(outgoing)
    return Membership(
        index,
        tuple(sorted(draft.voters)),
        {replica_id: node_id for replica_id, node_id in sorted(draft.nodes.items()) if replica_id in kept},
        draft.next_replica_id,
        outgoing,
        tuple(sorted(draft.learners)),
        tuple(sorted(draft.joining & draft.learners)),
        joint and auto_leave,
        {replica_id: store for replica_id, store in sorted(draft.stores.items()) if replica_id in kept},
    )


def left(current: Membership, index: Index) -> Membership:
    """Return the membership that ends the joint change `current`, with the entry at `index`.

    Raises ChangeRefused where there is no joint change.
    """
    if not current.joint:
        raise ChangeRefused("no joint change is under way that could be ended")
    kept = {*current.voters, *current.learners}
    return Membership(
        index,
        current.voters,
        {replica_id: node_id for replica_id, node_id in current.nodes.items() if replica_id in kept},
        current.next_replica_id,
        (),
        current.learners,
        current.joining,
        False,
        {replica_id: store for replica_id, store in current.stores.items() if replica_id in kept},
    )


class _Draft:
    """The membership being changed, step by step."""

    def __init__(self, current: Membership) -> None:
        self.voters = set(current.voters)
        self.learners = set(current.learners)
        self.joining = set(current.joining)
        self.nodes = dict(current.nodes)
        self.stores = dict(current.stores)
        self.next_replica_id = current.next_replica_id

    def make(self, change: Change) -> None:
        if isinstance(change, AddLearner):
            self._add(change)
        elif isinstance(change, Promote):
            self._named(change.replica_id, self.learners, "is no learner that could be promoted")
            self.learners.discard(change.replica_id)
            self.voters.add(change.replica_id)
        elif isinstance(change, Demote):
            self._named(change.replica_id, self.voters, "is no voter that could be demoted")
            self.voters.discard(change.replica_id)
            self.learners.add(change.replica_id)
            self.joining.discard(change.replica_id)
        elif isinstance(change, Remove):
            self._named(change.replica_id, self.voters | self.learners, "is no member that could be removed")
            self.voters.discard(change.replica_id)
            self.learners.discard(change.replica_id)
        else:
            self._named(change.replica_id, self.voters | self.learners, "is no member that could be bound to a store")
            if self.stores.get(change.replica_id, change.store) != change.store:
                raise ChangeRefused(f"replica {change.replica_id} is bound to another store: remove it and add it anew")
            self.stores[change.replica_id] = change.store

    def _add(self, change: AddLearner) -> None:
        for replica_id, node_id in self.nodes.items():
            if node_id == change.node_id:
                raise ChangeRefused(f"node {node_id!r} has replica {replica_id} of the group: a node has one at most")
        replica_id, self.next_replica_id = self.next_replica_id, self.next_replica_id + 1
        self.nodes[replica_id] = change.node_id
        self.learners.add(replica_id)
        if change.joining:
            self.joining.add(replica_id)
        if change.store:
            self.stores[replica_id] = change.store

    def _named(self, replica_id: ReplicaId, among: set[ReplicaId], otherwise: str) -> None:
        if replica_id not in among:
            raise ChangeRefused(f"replica {replica_id} {otherwise}")
