"""Quorum arithmetic over one or two majorities.

A membership is one set of voters, or two while a joint change is under way (Ongaro's thesis, section 4.3).
Everything that needs "enough of the voters" asks here, and only here: commit, votes, ReadIndex, check-quorum.

Rules of this file: pure functions of their arguments; no order of iteration is visible in any result; an empty
half agrees to everything, so that a joint membership with one empty half acts as the other half alone.
"""

from __future__ import annotations

from collections.abc import Callable, Collection

from multiraft.types import INDEX_MAX, Index, ReplicaId


def majority_index(held: list[Index]) -> Index:
    """Return the highest index that a majority holds, given what each voter holds; INDEX_MAX without voters.

    It serves for read rounds as for log indexes: both only ever grow.
    """
    if not held:
        return INDEX_MAX
    held = sorted(held)
    return held[(len(held) - 1) // 2]


def most_agree(voters: Collection[ReplicaId], agrees: Callable[[ReplicaId], bool]) -> bool:
    """Return whether more than half of `voters` agree; true without voters. Asks no more of them than that takes."""
    missing = len(voters) // 2 + 1
    for voter in voters:
        if agrees(voter):
            missing -= 1
            if not missing:
                return True
    return not voters


def majority_of(voters: Collection[ReplicaId], chosen: Collection[ReplicaId]) -> bool:
    """Return whether more than half of `voters` are among `chosen`; true without voters."""
    if not voters:
        return True
    return 2 * sum(1 for voter in voters if voter in chosen) > len(voters)


def elected(voters: Collection[ReplicaId], outgoing: Collection[ReplicaId], granted: Collection[ReplicaId]) -> bool:
    """Return whether `granted` is a majority of both halves of the membership."""
    return majority_of(voters, granted) and majority_of(outgoing, granted)


def hopeless(voters: Collection[ReplicaId], outgoing: Collection[ReplicaId], refused: Collection[ReplicaId]) -> bool:
    """Return whether those in `refused` can no longer be outvoted in at least one half."""
    return _blocked(voters, refused) or _blocked(outgoing, refused)


def _blocked(voters: Collection[ReplicaId], refused: Collection[ReplicaId]) -> bool:
    return bool(voters) and 2 * sum(1 for voter in voters if voter in refused) >= len(voters)
