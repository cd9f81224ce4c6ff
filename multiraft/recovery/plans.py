"""A plan: what is to become of every group, in fields that `apply` follows and in words that an operator reads.

Rules of this file: plain values, and their form in a file.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from multiraft.recovery.documents import membership_from_plain, membership_to_plain
from multiraft.types import GroupId, Index, Membership, NodeId, ReplicaId, Term

KEPT: Final = "kept"
RECOVERED: Final = "recovered"
GONE: Final = "gone"


@dataclass(frozen=True, slots=True)
class GroupPlan:
    """What becomes of one group.

    verdict        KEPT: it has its quorum, and is left alone; RECOVERED; GONE: nothing of it survives
    lost           the nodes of it that are lost
    source         the node whose log it goes on from: none that survives is more complete
    membership     as of which it goes on: the source alone votes, the others follow and are promoted
    term           of the entry that puts `membership` in force
    previous_term  of the entry before it
    stamp_ms       its clock
    follows        the nodes that keep their replica, to be brought up to the source
    removed        the nodes whose replica is removed, because it could act on an outdated membership, and its id
    may_lose       whether lost replicas alone may have held entries that were acknowledged
    holds_to       the last index that survives: what was acknowledged after it is lost
    last_stamp_ms  when that entry was appended
    newly          how many entries become committed of which no survivor knows that they were
    discarded      by node, how many entries of its log are given up: they were never committed
    words          the same for people, one line each
    """

    group_id: GroupId
    service: str
    verdict: str
    words: tuple[str, ...]
    lost: tuple[NodeId, ...] = ()
    source: NodeId = ""
    membership: Membership | None = None
    term: Term = 0
    previous_term: Term = 0
    stamp_ms: int = 0
    follows: tuple[NodeId, ...] = ()
    removed: tuple[tuple[NodeId, ReplicaId], ...] = ()
    may_lose: bool = False
    holds_to: Index = 0
    last_stamp_ms: int = 0
    newly: int = 0
    discarded: tuple[tuple[NodeId, int], ...] = ()

    def to_plain(self) -> dict[str, Any]:
        plain: dict[str, Any] = {name: getattr(self, name) for name in _PLAIN}
        plain["words"], plain["lost"], plain["follows"] = list(self.words), list(self.lost), list(self.follows)
        plain["membership"] = None if self.membership is None else membership_to_plain(self.membership)
        plain["removed"] = [list(pair) for pair in self.removed]
        plain["discarded"] = [list(pair) for pair in self.discarded]
        return plain

    @classmethod
    def from_plain(cls, plain: dict[str, Any]) -> GroupPlan:
        raw = plain["membership"]
        return cls(
            **{name: plain[name] for name in _PLAIN},
            words=tuple(plain["words"]),
            lost=tuple(plain["lost"]),
            follows=tuple(plain["follows"]),
            membership=None if raw is None else membership_from_plain(raw),
            removed=tuple((node_id, replica_id) for node_id, replica_id in plain["removed"]),
            discarded=tuple((node_id, count) for node_id, count in plain["discarded"]),
        )


_PLAIN = (
    "group_id",
    "service",
    "verdict",
    "source",
    "term",
    "previous_term",
    "stamp_ms",
    "may_lose",
    "holds_to",
    "last_stamp_ms",
    "newly",
)


@dataclass(frozen=True, slots=True)
class Survivor:
    """A node that the plan counts on, as it was when it was collected.

    states  of its replicas, by group id: `ReplicaFacts.state`
    """

    node_id: NodeId
    store_id: bytes
    incarnation: int
    states: dict[GroupId, tuple[int, ...]]


@dataclass(frozen=True, slots=True)
class Plan:
    """What is to become of a cluster.

    latest      the recovery generation that the survivors have
    generation  the one that they will have: every node that has not been through this recovery is refused from then on
    survivors   the nodes that the plan counts on, by node
    lost        the nodes that it does not
    words       what concerns the cluster as a whole
    """

    cluster_id: bytes
    latest: int
    generation: int
    survivors: dict[NodeId, Survivor]
    lost: tuple[NodeId, ...]
    groups: tuple[GroupPlan, ...]
    words: tuple[str, ...]

    def to_plain(self) -> dict[str, Any]:
        return {
            "cluster_id": self.cluster_id.hex(),
            "latest": self.latest,
            "generation": self.generation,
            "survivors": {
                name: {
                    "store_id": one.store_id.hex(),
                    "incarnation": one.incarnation,
                    "states": {str(group_id): list(state) for group_id, state in sorted(one.states.items())},
                }
                for name, one in sorted(self.survivors.items())
            },
            "lost": list(self.lost),
            "groups": [group.to_plain() for group in self.groups],
            "words": list(self.words),
        }

    @classmethod
    def from_plain(cls, plain: dict[str, Any]) -> Plan:
        return cls(
            bytes.fromhex(plain["cluster_id"]),
            plain["latest"],
            plain["generation"],
            {
                name: Survivor(
                    name,
                    bytes.fromhex(one["store_id"]),
                    one["incarnation"],
                    {int(group_id): tuple(state) for group_id, state in one["states"].items()},
                )
                for name, one in plain["survivors"].items()
            },
            tuple(plain["lost"]),
            tuple(GroupPlan.from_plain(group) for group in plain["groups"]),
            tuple(plain["words"]),
        )
