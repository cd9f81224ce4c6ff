"""Planning by itself: which log, who takes part, what is said of each kind of loss, and what is refused."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations

import pytest

from multiraft.errors import RecoveryRefused
from multiraft.recovery import GroupPlan, NodeFacts, Plan, ReplicaFacts, make_plan
from multiraft.recovery.planning import has_quorum
from multiraft.recovery.plans import KEPT, RECOVERED
from multiraft.types import Identity, Membership

GROUP = 16
NODES = ("a", "b", "c", "d", "e")


def membership(*voters: int, index: int = 1, **others: tuple[int, ...]) -> Membership:
    named = sorted({*voters, *others.get("outgoing", ()), *others.get("learners", ())})
    nodes = {replica_id: NODES[replica_id - 1] for replica_id in named}
    joint = bool(others.get("outgoing"))
    return Membership(index, voters, nodes, 6, auto_leave=joint, **others)  # type: ignore[arg-type]


THREE = membership(1, 2, 3)


def replica(number: int, *, commit: int = 5, last: int = 5, term: int = 2, **others: object) -> ReplicaFacts:
    facts = ReplicaFacts(GROUP, number, "kv", term, 0, commit, 1, last, term, 1_000, THREE)
    return replace(facts, **others)  # type: ignore[arg-type]


def node(number: int, *replicas: ReplicaFacts, **others: object) -> NodeFacts:
    name = NODES[number - 1]
    identity = Identity(name, name.encode(), b"c" * 16, {each: each.encode() for each in NODES})
    directory = replace(replica(number), group_id=1, service="directory", membership=membership(number))
    facts = NodeFacts(f"data/{name}", replace(identity, **others), 1, "", (directory, *replicas))  # type: ignore[arg-type]
    return facts


def group_of(plan: Plan) -> GroupPlan:
    return next(group for group in plan.groups if group.group_id == GROUP)


def planned(*replicas: ReplicaFacts) -> GroupPlan:
    return group_of(make_plan([node(each.replica_id, each) for each in replicas]))


@pytest.mark.parametrize(
    ("one", "other", "source"),
    [
        (replica(1, last=9, commit=5), replica(2, last=7, commit=7), "a"),
        (replica(1, last=9, last_term=2), replica(2, last=7, term=3), "b"),  # a later term beats a longer log
        (replica(1, halted="disk"), replica(2), "b"),
    ],
)
def test_the_most_complete_log_is_gone_on_from(one: ReplicaFacts, other: ReplicaFacts, source: str) -> None:
    five = membership(1, 2, 3, 4, 5)
    group = planned(replace(one, membership=five), replace(other, membership=five))
    assert (group.verdict, group.source) == (RECOVERED, source)
    assert group.membership is not None
    assert [group.membership.nodes[voter] for voter in group.membership.voters] == [source]
    assert group.membership.joining == group.membership.learners
    assert group.membership.index == group.holds_to + 1
    assert group.term == 1 + max(one.term, other.term)
    assert group.membership.next_replica_id > 1_000


def test_one_of_three_may_have_missed_what_was_acknowledged_and_two_of_four_may_not() -> None:
    assert planned(replica(1)).may_lose
    four = membership(1, 2, 3, 4)
    group = planned(replica(1, membership=four), replica(2, membership=four))
    assert (group.verdict, group.may_lose) == (RECOVERED, False)
    assert "nothing that was acknowledged is lost" in group.words[1]


def test_no_loss_is_ever_passed_over() -> None:
    """Against counting: an entry may be lost unseen exactly if some quorum lies within the lost ones."""
    for members in (THREE, membership(1, 2, 3, 4), membership(1, 2, 3, 4, 5), membership(3, 4, 5, outgoing=(1, 2, 3))):
        everyone = members.replicas
        for count in range(1, len(everyone) + 1):
            for alive in combinations(everyone, count):
                group = planned(*(replica(number, membership=members) for number in alive))
                sets = [some for size in range(6) for some in combinations(everyone, size)]
                hidden = any(has_quorum(members, some) and not set(some) & set(alive) for some in sets)
                assert (group.verdict == KEPT) == has_quorum(members, alive)
                if group.verdict == RECOVERED:
                    assert group.may_lose == hidden


def test_what_is_newly_committed_is_counted_from_the_highest_commit_that_anyone_knows() -> None:
    five = membership(1, 2, 3, 4, 5)
    group = planned(replica(1, commit=5, last=9, membership=five), replica(2, commit=7, last=8, membership=five))
    assert (group.source, group.newly) == ("a", 2)
    assert any("2 entries, 8 to 9, are NEWLY COMMITTED" in line for line in group.words)


def test_a_tail_that_is_given_up_is_named() -> None:
    five = membership(1, 2, 3, 4, 5)
    group = planned(replica(1, last=9, term=2, membership=five), replica(2, last=7, term=3, membership=five))
    assert group.discarded == (("a", 2),)
    assert any("2 entries or more at the end of node 'a''s log are given up" in line for line in group.words)


def test_a_learner_may_be_all_that_survives() -> None:
    group = planned(replica(4, membership=membership(1, 2, 3, learners=(4,))))
    assert (group.verdict, group.source) == (RECOVERED, "d")
    assert group.membership is not None
    assert (group.membership.voters, group.membership.learners) == ((4,), ())


def test_one_that_was_only_a_learner_stays_one() -> None:
    members = membership(1, 2, 3, learners=(4,))
    group = planned(replica(1, membership=members), replica(4, membership=members))
    assert group.membership is not None
    assert (group.membership.learners, group.membership.joining) == ((4,), ())


def test_survivors_that_an_outdated_membership_makes_a_quorum_are_removed() -> None:
    """2 and 3 were a quorum of the three; a later membership, which 1 knows of, needs 4 and 5."""
    later = membership(1, 4, 5, index=5)
    group = planned(replica(1, membership=later, last=6), replica(2), replica(3))
    assert (group.verdict, group.source, group.follows) == (RECOVERED, "a", ())
    assert group.removed == (("b", 2), ("c", 3))
    assert group.membership is not None
    assert group.membership.replicas == (1,)
    assert any("are removed, because they could act on a membership" in line for line in group.words)


def test_a_change_that_may_follow_must_have_its_quorum_too() -> None:
    pending = (membership(1, 4, 5, index=6),)
    assert planned(replica(1, last=6, pending=pending), replica(2)).verdict == RECOVERED
    assert planned(replica(1), replica(2)).verdict == KEPT


def test_a_damaged_replica_counts_as_lost_and_is_named() -> None:
    group = planned(replica(1), replace(replica(2), membership=None, problems=("its log ends below its start",)))
    assert (group.verdict, group.source) == (RECOVERED, "a")
    assert group.words[0] == "node 'b': its replica is damaged and counts as lost: its log ends below its start"


def test_a_commit_beyond_the_most_complete_log_is_refused() -> None:
    five = membership(1, 2, 3, 4, 5)
    with pytest.raises(RecoveryRefused, match="node 'a' knows that 9 is committed, but the most complete log, that of"):
        planned(replica(1, commit=9, last=9, membership=five), replica(2, last=8, term=3, membership=five))


@pytest.mark.parametrize(
    ("others", "why"),
    [
        ({"cluster_id": b"x" * 16}, "plan for one cluster at a time"),
        ({"cluster_id": b""}, "never was part of a cluster"),
        ({"generation": 1 << 32}, "'a' .* is of recovery generation 0, others are of"),
        ({"store_id": b"other"}, "has a store in whose place another one was admitted"),
    ],
)
def test_what_does_not_belong_is_refused(others: dict[str, object], why: str) -> None:
    with pytest.raises(RecoveryRefused, match=why):
        make_plan([node(1, replica(1)), node(2, replica(2), **others)])


def test_a_condemned_store_and_a_cluster_without_a_directory_are_refused() -> None:
    with pytest.raises(RecoveryRefused, match="may take part no longer: it was rolled back"):
        make_plan([replace(node(1, replica(1)), condemned="it was rolled back")])
    with pytest.raises(RecoveryRefused, match="no copy of the directory"):
        make_plan([replace(node(1, replica(1)), replicas=(replica(1),))])


def test_a_group_that_only_the_directory_knows_is_gone() -> None:
    facts = replace(node(1, replica(1)), known={GROUP: ("kv", ("a",)), 17: ("kv", ("d", "e"))})
    gone = make_plan([facts]).groups[-1]
    assert (gone.group_id, gone.verdict, gone.lost) == (17, "gone", ("d", "e"))
    assert gone.words == (
        "it lived on d, e: nothing of it survives, all its data are LOST; it can only come from a backup",
    )
