"""From one membership to the next: what each change makes of it, and what is refused."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from multiraft.errors import ChangePending, ChangeRefused
from multiraft.membership import pack_membership, unpack_membership
from multiraft.raft import AddLearner, Bind, Change, Demote, Promote, Remove
from multiraft.raft.changes import changed, left
from multiraft.types import Membership, founding_membership

ABC = founding_membership(("a", "b", "c"))
WITH_LEARNER = changed(ABC, 5, [AddLearner("d")])


def shape(membership: Membership) -> tuple[object, ...]:
    return membership.voters, membership.outgoing, membership.learners, membership.joining


@pytest.mark.parametrize(
    ("start", "changes", "expected"),
    [
        (ABC, [AddLearner("d")], ((1, 2, 3), (), (4,), ())),
        (ABC, [AddLearner("d", joining=True)], ((1, 2, 3), (), (4,), (4,))),
        (ABC, [AddLearner("d"), AddLearner("e")], ((1, 2, 3), (), (4, 5), ())),
        (WITH_LEARNER, [Promote(4)], ((1, 2, 3, 4), (), (), ())),
        (WITH_LEARNER, [Remove(4)], ((1, 2, 3), (), (), ())),
        (ABC, [Remove(2)], ((1, 3), (), (), ())),
        (ABC, [Demote(2)], ((1, 3), (), (2,), ())),
        (WITH_LEARNER, [Promote(4), Remove(1)], ((2, 3, 4), (1, 2, 3), (), ())),
        (WITH_LEARNER, [Promote(4), Demote(1)], ((2, 3, 4), (1, 2, 3), (1,), ())),
        (ABC, [Remove(1), Remove(2)], ((3,), (1, 2, 3), (), ())),
    ],
)
def test_what_a_change_makes(start: Membership, changes: list[Change], expected: tuple[object, ...]) -> None:
    following = changed(start, 9, changes)
    assert shape(following) == expected
    assert following.index == 9
    assert following.joint == following.auto_leave == bool(expected[1])
    assert unpack_membership(pack_membership(following), "test") == following


@pytest.mark.parametrize(
    ("start", "changes", "why"),
    [
        (ABC, [], "no change"),
        (ABC, [AddLearner("b")], "node 'b' has replica 2"),
        (ABC, [Promote(2)], "no learner"),
        (ABC, [Promote(9)], "no learner"),
        (ABC, [Demote(4)], "no voter"),
        (WITH_LEARNER, [Demote(4)], "no voter"),
        (ABC, [Remove(4)], "no member"),
        (ABC, [Remove(2), Remove(2)], "no member"),
        (ABC, [Remove(1), Remove(2), Remove(3)], "no voter left"),
        (founding_membership(("a",)), [Remove(1)], "no voter left"),
        (founding_membership(("a",)), [Demote(1)], "no voter left"),
        (ABC, [Bind(4, b"s")], "no member"),
        (changed(ABC, 5, [Bind(2, b"s")]), [Bind(2, b"t")], "another store"),
    ],
)
def test_what_makes_no_sense_is_refused(start: Membership, changes: list[Change], why: str) -> None:
    with pytest.raises(ChangeRefused, match=why):
        changed(start, 9, changes)


def test_two_voters_at_once_need_a_joint_change() -> None:
    with pytest.raises(ChangeRefused, match="joint"):
        changed(WITH_LEARNER, 9, [Promote(4), Remove(1)], joint=False)
    assert changed(ABC, 9, [Remove(1)], joint=True).outgoing == (1, 2, 3)
    assert not changed(ABC, 9, [Remove(1)], joint=True, auto_leave=False).auto_leave


def test_nothing_changes_during_a_joint_change_but_its_end() -> None:
    joint = changed(WITH_LEARNER, 9, [Promote(4), Demote(1), Bind(2, b"s")])
    assert joint.nodes == {1: "a", 2: "b", 3: "c", 4: "d"}
    with pytest.raises(ChangePending):
        changed(joint, 10, [AddLearner("e")])
    after = left(joint, 10)
    assert shape(after) == ((2, 3, 4), (), (1,), ())
    assert (after.index, after.auto_leave, after.nodes, after.stores) == (10, False, joint.nodes, {2: b"s"})
    with pytest.raises(ChangeRefused, match="no joint change"):
        left(after, 11)


def test_a_removed_voter_keeps_its_node_until_the_joint_change_ends() -> None:
    joint = changed(WITH_LEARNER, 9, [Promote(4), Remove(1)])
    assert joint.nodes[1] == "a"
    assert not joint.removed(1)
    after = left(joint, 10)
    assert 1 not in after.nodes
    assert after.removed(1)


def test_ids_are_never_given_out_again() -> None:
    without = changed(WITH_LEARNER, 9, [Remove(4)])
    again = changed(without, 10, [AddLearner("d")])
    assert again.learners == (5,)
    assert again.removed(4)
    assert not again.removed(6)


def test_a_demoted_replica_joins_no_more() -> None:
    joining = changed(ABC, 5, [AddLearner("d", joining=True)])
    assert changed(joining, 6, [Promote(4)]).joining == ()
    assert changed(changed(joining, 6, [Promote(4)]), 7, [Demote(4)]).joining == ()


def majorities(membership: Membership) -> list[set[int]]:
    """Every set of replicas that could elect a leader or commit an entry."""
    named = membership.replicas
    found = []
    for bits in range(1 << len(named)):
        chosen = {replica for at, replica in enumerate(named) if bits >> at & 1}
        halves = [half for half in (membership.voters, membership.outgoing) if half]
        if all(2 * len(chosen & set(half)) > len(half) for half in halves):
            found.append(chosen)
    return found


@st.composite
def walks(draw: st.DrawFn) -> Sequence[Membership]:
    """Memberships that follow each other, by whatever changes are accepted."""
    current = founding_membership(tuple("abcd"[: draw(st.integers(1, 4))]))
    walk = [current]
    for index in range(2, 2 + draw(st.integers(1, 6))):
        if current.joint:
            current = left(current, index)
        else:
            replica = st.integers(1, current.next_replica_id)
            kinds: list[st.SearchStrategy[Change]] = [
                st.builds(AddLearner, st.sampled_from("abcdef"), st.booleans()),
                st.builds(Promote, replica),
                st.builds(Demote, replica),
                st.builds(Remove, replica),
            ]
            try:
                current = changed(current, index, draw(st.lists(st.one_of(kinds), min_size=1, max_size=3)))
            except ChangeRefused:
                continue
        walk.append(current)
    return walk


@given(walks())
def test_majorities_before_and_after_any_change_share_a_replica(walk: Sequence[Membership]) -> None:
    for before, after in pairwise(walk):
        assert unpack_membership(pack_membership(after), "test") == after
        assert all(one & other for one in majorities(before) for other in majorities(after))
