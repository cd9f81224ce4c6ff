"""Linearizable reads without writing (ReadIndex; thesis, section 6.4)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import pytest

from multiraft.errors import InvariantViolation, NotLeader
from multiraft.messages import AppendAnswer, PreVoteAnswer, VoteAnswer
from multiraft.raft import Role
from multiraft.types import Membership

GROUP = 16
Make: TypeAlias = Callable[..., Any]


def lead(one: Any) -> Any:
    """Make the first of three the leader, its no-op committed."""
    one.core.campaign(0.0)
    one.core.step(PreVoteAnswer(2, True, GROUP, 2, 1, 1), 0.0)
    one.persist()
    one.core.step(VoteAnswer(2, True, GROUP, 2, 2, 1), 0.0)
    one.take()
    one.core.step(AppendAnswer(True, GROUP, 0, 0, one.core.last_index, 2, 2, 1), 0.0)
    one.take()
    return one.core


def test_no_read_before_a_commit_of_the_leaders_own_term(replica: Make) -> None:
    """Its commit may be behind what its predecessor acknowledged."""
    one = replica(terms=(1, 1), commit=3)
    one.core.campaign(0.0)
    one.core.step(PreVoteAnswer(2, True, GROUP, 2, 1, 1), 0.0)
    one.persist()
    one.core.step(VoteAnswer(2, True, GROUP, 2, 2, 1), 0.0)
    assert (one.core.role, one.core.can_read()) == (Role.LEADER, False)
    with pytest.raises(InvariantViolation):
        one.core.read_index(1)
    one.persist()
    one.core.step(AppendAnswer(True, GROUP, 0, 0, 4, 2, 2, 1), 0.0)
    assert one.core.can_read()
    assert one.core.read_index(1) == 4


def test_only_a_leader_reads(replica: Make) -> None:
    one = replica()
    assert not one.core.can_read()
    with pytest.raises(NotLeader):
        one.core.read_index(1)


def test_a_read_is_answered_when_a_quorum_acknowledged_its_round(replica: Make) -> None:
    core = lead(replica(voters=3))
    assert core.read_index(5) == 2
    assert core.ready() is None
    core.acknowledge_round(3, 5)
    assert core.ready().read_states == [(5, 2)]
    core.acknowledge_round(2, 5)
    assert core.ready() is None  # each read once


def test_L10_an_acknowledgement_of_an_earlier_round_does_not_count(replica: Make) -> None:  # noqa: N802
    core = lead(replica())
    core.read_index(5)
    core.acknowledge_round(2, 4)
    assert core.ready() is None
    core.acknowledge_round(2, 6)  # a beat sent later says all the more
    assert core.ready().read_states == [(5, 2)]


def test_reads_of_several_rounds_are_answered_in_order_as_far_as_confirmed(replica: Make) -> None:
    core = lead(replica())
    for round_id in (5, 6, 7):
        core.read_index(round_id)
    core.acknowledge_round(2, 6)
    assert core.ready().read_states == [(5, 2), (6, 2)]
    core.acknowledge_round(3, 7)
    assert core.ready().read_states == [(7, 2)]


def test_the_index_is_the_commit_at_registration(replica: Make) -> None:
    one = replica()
    core = lead(one)
    assert core.read_index(5) == 2
    core.propose([b"a"], 1, 0)
    one.take()
    core.step(AppendAnswer(True, GROUP, 0, 0, 3, 2, 2, 1), 0.0)
    assert core.read_index(5) == 3
    one.drive()
    core.acknowledge_round(2, 5)
    assert core.ready().read_states == [(5, 2), (5, 3)]


def test_a_read_cannot_join_a_round_that_was_acknowledged_already(replica: Make) -> None:
    """That beat was sent before the read came, and says nothing about the time since."""
    core = lead(replica())
    core.acknowledge_round(2, 5)
    with pytest.raises(InvariantViolation):
        core.read_index(5)


def test_a_single_voter_needs_nobody_elses_word(replica: Make) -> None:
    one = replica(voters=1)
    one.core.campaign(5.0)
    one.take()
    assert one.core.read_index(1) == 2
    assert one.core.ready().read_states == [(1, 2)]


def test_learners_strangers_and_replicas_that_lost_their_disk_do_not_count(replica: Make) -> None:
    membership = Membership(1, (1, 2, 3), {n: f"n{n}" for n in (1, 2, 3, 4)}, 5, learners=(4,))
    one = replica(membership=membership)
    core = lead(one)
    core.read_index(5)
    for _ in range(3):
        core.step(AppendAnswer(False, GROUP, 0, 0, 2, 2, 2, 1), 0.0)  # denies what it acknowledged
        one.take()
    for replica_id in (2, 4, 9):
        core.acknowledge_round(replica_id, 5)
    assert core.ready() is None
    core.acknowledge_round(3, 5)
    assert core.ready().read_states == [(5, 2)]


def test_a_joint_membership_needs_both_halves(replica: Make) -> None:
    nodes = {n: f"n{n}" for n in range(1, 6)}
    one = replica(membership=Membership(1, (1, 2, 3), nodes, 6, outgoing=(3, 4, 5)))
    one.core.campaign(0.0, forced=True)
    one.persist()
    for sender in (2, 4, 5):
        one.core.step(VoteAnswer(2, True, GROUP, sender, 2, 1), 0.0)
    one.take()
    for sender in (2, 4, 5):
        one.core.step(AppendAnswer(True, GROUP, 0, 0, 2, sender, 2, 1), 0.0)
    one.take()
    one.core.read_index(5)
    one.core.acknowledge_round(2, 5)
    one.core.acknowledge_round(4, 5)
    assert one.core.ready() is None
    one.core.acknowledge_round(5, 5)
    assert one.core.ready().read_states == [(5, 2)]


def test_a_deposed_leader_answers_none_of_its_reads(replica: Make) -> None:
    core = lead(replica())
    core.read_index(5)
    core.step_down(1.0)
    core.acknowledge_round(2, 5)
    ready = core.ready()
    assert (ready.role_changed, ready.read_states) == (True, [])


def test_a_read_does_not_outlive_the_office_that_took_it(cluster: Make) -> None:
    group = cluster(3)
    leader = group.elect(1)
    leader.read_index(5)
    leader.step_down(group.now)
    group.elect(1)
    leader.read_index(6)
    leader.acknowledge_round(2, 6)
    assert [round_id for round_id, _ in leader.ready().read_states] == [6]


def test_a_late_acknowledgement_takes_nothing_back(replica: Make) -> None:
    one = replica(voters=5)
    one.core.campaign(0.0, forced=True)
    one.persist()
    core = one.core
    for sender in (2, 3):
        core.step(VoteAnswer(2, True, GROUP, sender, 2, 1), 0.0)
    one.take()
    for sender in (2, 3):
        core.step(AppendAnswer(True, GROUP, 0, 0, 2, sender, 2, 1), 0.0)
    one.take()
    core.read_index(5)
    core.read_index(6)
    for replica_id, round_id in ((2, 6), (2, 5), (3, 6)):
        core.acknowledge_round(replica_id, round_id)
    assert core.ready().read_states == [(5, 2), (6, 2)]


def test_an_acknowledgement_of_an_earlier_office_does_not_count_in_a_later_one(cluster: Make) -> None:
    group = cluster(3)
    leader = group.elect(1)
    leader.acknowledge_round(2, 50)
    leader.step_down(group.now)
    group.elect(1)
    leader.read_index(7)
    assert leader.ready() is None
