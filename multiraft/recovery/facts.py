"""What is collected of one surviving node.

Rules of this file: plain values, and their form in a file; nothing is judged here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from multiraft.recovery.documents import membership_from_plain, membership_to_plain
from multiraft.types import GroupId, Identity, Index, Membership, NodeId, ReplicaId, Term


@dataclass(frozen=True, slots=True)
class ReplicaFacts:
    """One replica as its disk has it.

    membership     in effect; None where the replica is damaged
    pending        later ones in its log, which have no effect on it yet
    uncommitted    entries of its log that it does not know to be committed
    last_stamp_ms  when its last entry was appended, by its leader's clock
    halted         why it has stopped applying; empty: it has not
    problems       what is damaged; one with problems counts as lost
    """

    group_id: GroupId
    replica_id: ReplicaId
    service: str
    term: Term
    vote: ReplicaId
    commit: Index
    snapshot_index: Index
    last_index: Index
    last_term: Term
    last_stamp_ms: int
    membership: Membership | None
    pending: tuple[Membership, ...] = ()
    halted: str = ""
    problems: tuple[str, ...] = ()

    @property
    def uncommitted(self) -> int:
        return self.last_index - self.commit

    @property
    def state(self) -> tuple[int, ...]:
        """What changes when the node has run since."""
        return (self.replica_id, self.term, self.vote, self.commit, self.last_index, self.last_term)

    def to_plain(self) -> dict[str, Any]:
        plain: dict[str, Any] = {name: getattr(self, name) for name in _NUMBERS}
        plain["uncommitted"] = self.uncommitted
        plain["membership"] = None if self.membership is None else membership_to_plain(self.membership)
        plain["pending"] = [membership_to_plain(one) for one in self.pending]
        plain["problems"] = list(self.problems)
        return plain

    @classmethod
    def from_plain(cls, plain: dict[str, Any]) -> ReplicaFacts:
        raw = plain["membership"]
        return cls(
            **{name: plain[name] for name in _NUMBERS},
            membership=None if raw is None else membership_from_plain(raw),
            pending=tuple(membership_from_plain(one) for one in plain["pending"]),
            problems=tuple(plain["problems"]),
        )


_NUMBERS = (
    "group_id",
    "replica_id",
    "service",
    "term",
    "vote",
    "commit",
    "snapshot_index",
    "last_index",
    "last_term",
    "last_stamp_ms",
    "halted",
)


@dataclass(frozen=True, slots=True)
class NodeFacts:
    """One surviving node.

    path         its directory, as it was named
    incarnation  of its latest run
    condemned    why its store may take part no longer; empty: it may
    replicas     by group id
    known        what its copy of the directory says of every group: service, and the nodes where it lives; None where
                 it has none, or that cannot be read
    """

    path: str
    identity: Identity
    incarnation: int
    condemned: str
    replicas: tuple[ReplicaFacts, ...]
    known: Mapping[GroupId, tuple[str, tuple[NodeId, ...]]] | None = field(default=None)

    def to_plain(self) -> dict[str, Any]:
        identity = self.identity
        return {
            "path": self.path,
            "node_id": identity.node_id,
            "store_id": identity.store_id.hex(),
            "cluster_id": identity.cluster_id.hex(),
            "stores": {node_id: store.hex() for node_id, store in sorted(identity.stores.items())},
            "admitted": list(identity.admitted),
            "readmissions": identity.readmissions,
            "generation": identity.generation,
            "incarnation": self.incarnation,
            "condemned": self.condemned,
            "replicas": [replica.to_plain() for replica in self.replicas],
            "known": None
            if self.known is None
            else {str(group_id): [service, list(nodes)] for group_id, (service, nodes) in sorted(self.known.items())},
        }

    @classmethod
    def from_plain(cls, plain: dict[str, Any]) -> NodeFacts:
        identity = Identity(
            plain["node_id"],
            bytes.fromhex(plain["store_id"]),
            bytes.fromhex(plain["cluster_id"]),
            {node_id: bytes.fromhex(store) for node_id, store in plain["stores"].items()},
            tuple(plain["admitted"]),
            plain["readmissions"],
            plain["generation"],
        )
        known = plain["known"]
        return cls(
            plain["path"],
            identity,
            plain["incarnation"],
            plain["condemned"],
            tuple(ReplicaFacts.from_plain(one) for one in plain["replicas"]),
            None if known is None else {int(k): (service, tuple(nodes)) for k, (service, nodes) in known.items()},
        )
