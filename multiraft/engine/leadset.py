"""The lead set: which (group, term) one node leads toward another, and a digest by which two copies compare.

The digest is the XOR of a 64-bit mix of every entry, so that adding and taking out an entry costs the same whatever
the size of the set. It is the same number on every machine and in every version of Python, and says with
certainty enough for honest peers that two sets are equal; it is no defence against a forger.

Rules of this file: the digest always is that of the entries; one entry per group.
"""

from __future__ import annotations

from typing import Final, TypeAlias

from multiraft.types import U64_MAX, GroupId, ReplicaId, Term

Lead: TypeAlias = tuple[Term, ReplicaId]
"""The term a group is led at, and the replica of it that lives on the node which is told."""
Row: TypeAlias = tuple[GroupId, Term, ReplicaId]

_SHARED_MAX: Final = 4_096
_shared: Final[dict[Lead, Lead]] = {}  # equal entries of different groups are one object: there are few different ones
_OF_GROUP: Final = 0x9E3779B97F4A7C15
_OF_TERM: Final = 0xC2B2AE3D27D4EB4F
_OF_REPLICA: Final = 0xD6E8FEB86659FD93


def entry_digest(group_id: GroupId, term: Term, replica_id: ReplicaId) -> int:
    """Return a well spread 64-bit number for one entry (the finalizer of SplitMix64, Steele et al. 2014)."""
    mixed = (group_id * _OF_GROUP + term * _OF_TERM + replica_id * _OF_REPLICA) & U64_MAX
    mixed = ((mixed ^ mixed >> 30) * 0xBF58476D1CE4E5B9) & U64_MAX
    mixed = ((mixed ^ mixed >> 27) * 0x94D049BB133111EB) & U64_MAX
    return mixed ^ mixed >> 31


class LeadSet:
    """One copy of a lead set: the leader's record of what it told, or the peer's of what it was told.

    digest  XOR of `entry_digest` over all entries; 0 when empty
    """

    __slots__ = ("_leads", "digest")

    def __init__(self) -> None:
        self._leads: dict[GroupId, Lead] = {}
        self.digest = 0

    def __len__(self) -> int:
        return len(self._leads)

    def get(self, group_id: GroupId) -> Lead | None:
        return self._leads.get(group_id)

    def term_of(self, group_id: GroupId) -> Term:
        """Return the term that the group is led at; 0, which no leader has, when it is not in the set."""
        lead = self._leads.get(group_id)
        return lead[0] if lead is not None else 0

    def put(self, group_id: GroupId, term: Term, replica_id: ReplicaId) -> None:
        """Set the group's entry, in place of the one it had."""
        lead = (term, replica_id)
        old = self._leads.get(group_id)
        if old != lead:
            if len(_shared) >= _SHARED_MAX:
                _shared.clear()
            if old is not None:
                self.digest ^= entry_digest(group_id, *old)
            self._leads[group_id] = _shared.setdefault(lead, lead)
            self.digest ^= entry_digest(group_id, term, replica_id)

    def drop(self, group_id: GroupId) -> None:
        """Take out the group's entry, if there is one."""
        old = self._leads.pop(group_id, None)
        if old is not None:
            self.digest ^= entry_digest(group_id, *old)

    def groups(self) -> list[GroupId]:
        """Return the groups, in the order in which they came."""
        return list(self._leads)

    def rows(self) -> tuple[Row, ...]:
        """Return every entry, by group id."""
        return tuple((group_id, *lead) for group_id, lead in sorted(self._leads.items()))

    def claimed(self) -> list[Row]:
        """Return every entry, in the order in which they came."""
        return [(group_id, *lead) for group_id, lead in self._leads.items()]

    def counted_digest(self) -> int:
        """Return the digest computed afresh, to audit the one kept."""
        digest = 0
        for group_id, lead in self._leads.items():
            digest ^= entry_digest(group_id, *lead)
        return digest
