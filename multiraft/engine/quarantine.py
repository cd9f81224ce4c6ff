"""Replicas that were found damaged: they are not opened, do not vote, and are not made anew but under a higher id.

What a damaged replica had promised is lost with it, so nothing may stand in its place that takes part under its name.
Its group replaces it: a quorum of the others removes it and adds a learner, under an id that nobody had before. When
that group's leader asks for the learner, what is left of the old one is deleted, and the new one is made.

Rules of this file: a group is let go of only for a replica with a higher id than any that may have lived here.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

from multiraft.types import NOBODY, Damage, GroupId, ReplicaId


class Quarantine:
    """The damaged replicas of one engine. `healing`: what stands in the way of each group's new replica, in words."""

    def __init__(self, damages: Sequence[Damage]) -> None:
        self._damages = list(damages)
        self.healing: dict[GroupId, str] = {}

    def __iter__(self) -> Iterator[Damage]:
        return iter(self._damages)

    def __len__(self) -> int:
        return len(self._damages)

    def of(self, group_id: GroupId) -> Damage | None:
        """Return what is damaged of the group's replica here; None where nothing is."""
        for damage in self._damages:
            if damage.first <= group_id <= damage.last:
                return damage
        return None

    @property
    def stretches(self) -> bool:
        """Whether it is not known yet of which groups something was lost."""
        return any(damage.first < damage.last for damage in self._damages)

    def resolve(self, known: Iterable[GroupId]) -> list[Damage]:
        """`known` are all groups that there are: name those within stretches; return what is to be stored."""
        stretches = [damage for damage in self._damages if damage.first < damage.last]
        self._damages = [damage for damage in self._damages if damage.first == damage.last]
        for group_id in sorted(known):
            for damage in stretches:
                if damage.first <= group_id <= damage.last:
                    self._damages.append(replace(damage, first=group_id, last=group_id))
        return self._damages

    def allows(self, group_id: GroupId, replica_id: ReplicaId) -> bool:
        """Whether a replica of this id may be made: it is known that no replica up to it lived here."""
        damage = self.of(group_id)
        return damage is None or NOBODY < damage.replica_id < replica_id

    def at_most(self, group_id: GroupId, replica_id: ReplicaId) -> None:
        """No replica of the group that lived here had a higher id than this one."""
        damage = self.of(group_id)
        if damage is not None and damage.replica_id < replica_id:
            self.let_go(group_id)
            self._damages.append(replace(damage, first=group_id, last=group_id, replica_id=replica_id))

    def let_go(self, group_id: GroupId) -> list[Damage]:
        """The group's damaged replica is given up; return what is left to be stored."""
        damage = self.of(group_id)
        if damage is not None:
            self._damages.remove(damage)
            if damage.first < group_id:
                self._damages.append(replace(damage, last=group_id - 1))
            if group_id < damage.last:
                self._damages.append(replace(damage, first=group_id + 1))
            self.healing.pop(group_id, None)
        return self._damages
