"""Storms in which the group itself changes: replicas are added, promoted, demoted, removed, one by one and jointly.

What must hold in any storm must hold here (see test_storm.py), and that every replica finds the same membership at one
index. Newcomers begin empty; who was removed vanishes, at some time after another one has found that out, for ever.

A failing seed runs again with `pytest tests/raft/test_membership_storm.py -k seed17_`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import pytest

from multiraft.errors import MultiRaftError
from multiraft.raft import AddLearner, Change, Demote, Promote, Remove, Role
from multiraft.types import NOBODY, Membership
from tests.raft.test_storm import Claim, Storm

SEEDS: Final = 60
MEMBERS_MAX: Final = 6


class MembershipStorm(Storm):
    """`make` makes a replica. `memberships` are all that ever took effect, by index."""

    def __init__(self, group: Any, make: Callable[..., Any], seed: int) -> None:
        super().__init__(group, seed, compactions=(0, 5, 100)[seed % 3])
        self.make = make
        self.memberships: dict[int, Membership] = {}
        self.gone: set[int] = set()
        self.changes_asked = 0

    def actions(self) -> list[tuple[int, Callable[[Any], None]]]:
        return [*super().actions(), (100, self.change), (40, self.admit), (15, self.bury)]

    # ------------------------------------------------------------------------------------------------- what happens

    def change(self, replica: Any) -> None:
        """Ask whoever leads for one to three changes, some of which make no sense."""
        leaders = [one for one in self.group.replicas.values() if one.alive and one.core.role is Role.LEADER]
        if not leaders:
            return
        core = self.chance.choice(leaders).core
        membership = core.membership
        asked: list[Change] = []
        for _ in range(self.chance.choice((1, 1, 1, 2, 3))):
            whom = self.chance.choice(membership.replicas)
            kind = self.chance.choice((AddLearner, Promote, Promote, Promote, Demote, Remove))
            if kind is AddLearner:
                if len(membership.replicas) + len(asked) < MEMBERS_MAX:
                    new = membership.next_replica_id + sum(isinstance(one, AddLearner) for one in asked)
                    asked.append(AddLearner(f"n{new}", self.chance.random() < 0.5))
            elif kind is Promote:
                asked += [Promote(self.chance.choice(membership.learners))] if membership.learners else []
            elif kind is Demote:
                asked.append(Demote(whom))
            else:
                asked.append(Remove(whom))
        if membership.joint and not membership.auto_leave:
            asked = []
        self.ask(core, asked)

    def ask(self, core: Any, changes: list[Change]) -> None:
        joint = self.chance.choice((None, None, True))
        try:
            core.propose_membership(changes, 0, joint=joint, auto_leave=self.chance.random() < 0.7)
        except MultiRaftError:
            return  # it says why, and the tests of one change at a time say when
        self.changes_asked += 1

    def admit(self, _: Any) -> None:
        """A leader has a member that does not exist yet: it is made, empty."""
        for leader in self.group.leaders():
            for one in self.group.core(leader).progress:
                if one not in self.group.replicas and one not in self.gone:
                    newcomer = self.make(one, empty=True, append_bytes=100)
                    self.group.replicas[one] = newcomer
                    self.life[one], self.seen_commit[one], self.seen_term[one] = 0, 0, 0
                    return

    def bury(self, _: Any) -> None:
        """Another one has found out that a replica was removed: it vanishes."""
        found = [(one.replica_id, one.core.membership) for one in self.group.replicas.values() if one.alive]
        for one in list(self.group.replicas):
            if any(membership.removed(one) for other, membership in found if other != one):
                self.gone.add(one)
                del self.group.replicas[one]
                return

    def restart(self, replica: Any) -> None:
        super().restart(replica)
        for one, other in self.group.replicas.items():
            self.seen_commit[one] = min(self.seen_commit[one], other.core.commit)

    def claim(self, replica: Any) -> None:
        core = replica.core
        if core.role is Role.LEADER:
            life = self.life[core.replica_id]
            for other in core.progress:
                if other != core.replica_id:
                    self.wire.append(Claim(core.replica_id, life, core.term, self.rounds, other))

    def receive(self, message: Any) -> None:
        """What is for a replica that is not there is lost; beats come from nodes, whose replica may not be known."""
        to = message[1].leader if isinstance(message, tuple) else message.to
        if to not in self.group.replicas:
            return
        if isinstance(message, Claim) and self.group[to].alive:
            membership = self.group.core(to).membership
            named = Claim(message.leader, message.life, message.term, message.round_id, to)
            heard = self.group.core(to).follow(
                message.leader if message.leader in membership.nodes else NOBODY, message.term, self.now
            )
            word = "heard" if heard else "refused"
            self.wire.append((word, named, to, 0 if heard else self.group.core(to).term))
        elif not isinstance(message, Claim):
            super().receive(message)

    def transfer(self, replica: Any) -> None:
        try:
            super().transfer(replica)
        except MultiRaftError:
            return  # to one that is no voter

    # ------------------------------------------------------------------------------------------- what must hold always

    def check(self) -> None:
        super().check()
        for replica in self.group.replicas.values():
            if replica.alive:
                membership = replica.core.membership
                if membership.index:
                    known = self.memberships.setdefault(membership.index, membership)
                    assert known == membership, "two memberships at one index"

    # -------------------------------------------------------------------------------------------------------- the end

    def agreed(self) -> bool:
        """Everybody is there who takes part, nobody else counts, and no change is under way."""
        self.admit(None)
        self.bury(None)
        leaders = [self.group.core(one) for one in self.group.leaders()]
        newest = max(leaders, key=lambda core: core.term, default=None)
        if newest is None:
            return False
        membership = newest.membership
        if membership.joint and not membership.auto_leave:
            self.ask(newest, [])
        if newest.change_pending or set(membership.replicas) != set(self.group.replicas):
            return False
        return super().agreed() and all(
            replica.core.membership == membership for replica in self.group.replicas.values()
        )


def storm_of(cluster: Callable[..., Any], replica: Callable[..., Any], seed: int) -> MembershipStorm:
    voters = (3, 1, 4, 2, 3, 5)[seed % 6]
    group = cluster(voters, seed=seed, inflight_messages=1 + seed % 4, append_bytes=60 + 40 * (seed % 5))
    return MembershipStorm(group, replica, seed)


@pytest.mark.parametrize("seed", range(SEEDS), ids=lambda seed: f"seed{seed}_")
def test_a_group_that_changes_keeps_its_promises_in_a_storm(
    cluster: Callable[..., Any], replica: Callable[..., Any], seed: int
) -> None:
    """Thesis, chapter 4; requirements 7 and 8."""
    storm = storm_of(cluster, replica, seed)
    storm.run()
    storm.calm()
    applied = [one.applied for one in storm.group.replicas.values()]
    assert all(each == applied[0] for each in applied)
    for index, term, entry in applied[0]:
        assert storm.committed.get(index, (term, entry)) == (term, entry)


def test_storms_of_changes_are_not_empty(cluster: Callable[..., Any], replica: Callable[..., Any]) -> None:
    """The checks above mean something only if replicas come and go, by simple and by joint changes."""
    found: list[Membership] = []
    gone = installs = 0
    for seed in range(12):
        storm = storm_of(cluster, replica, seed)
        storm.run()
        found += [one for one in storm.memberships.values() if one.index > 1]
        gone += len(storm.gone)
        installs += sum(one.installs for one in storm.group.replicas.values())
    assert len(found) > 30
    assert sum(membership.joint for membership in found) > 3
    assert gone > 5
    assert installs > 2
