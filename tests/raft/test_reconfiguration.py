"""Membership changes through the log: when they take effect, who may ask for one, and what a leader does by itself.

Sections are those of Ongaro's thesis.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest

from multiraft.errors import ChangePending, ChangeRefused, MembershipChanged, NotLeader, NotReady
from multiraft.membership import pack_membership
from multiraft.messages import Append, CommitTo, RequestVote, TimeoutNow
from multiraft.raft import AddLearner, Change, Demote, Promote, Remove, Role
from multiraft.raft.changes import changed
from multiraft.raft.progress import Progress
from multiraft.records import COMMANDS, MEMBERSHIP, encode_record
from multiraft.types import FOUNDING_INDEX, Membership, founding_membership

Make = Callable[..., Any]


def of(voters: int, learners: Sequence[int] = ()) -> Membership:
    """The founding membership of `voters` replicas on n1, n2, ..., with these learners beside."""
    founding = founding_membership(tuple(f"n{number}" for number in range(1, voters + 1)))
    if not learners:
        return founding
    return changed(founding, FOUNDING_INDEX, [AddLearner(f"n{number}") for number in learners])


def world(cluster: Make, replica: Make, voters: int = 3, learners: Sequence[int] = ()) -> Any:
    """A settled cluster led by 1, with these learners, which hold the founding."""
    members = of(voters, learners)
    made = cluster(voters, membership=members)
    for number in learners:
        made.replicas[number] = replica(number, membership=members)
    made.elect(1)
    made.beat()
    return made


def change(made: Any, *changes: Change, leader: int = 1, **options: Any) -> int:
    index: int = made.core(leader).propose_membership(changes, 0, **options)
    made.settle()
    made.tell_commits()
    return index


def in_effect(made: Any) -> list[int]:
    return [one.core.membership.index for one in made.replicas.values() if one.alive]


# ------------------------------------------------------------------------------------------------- taking effect


def test_a_change_takes_effect_on_commit_everywhere(cluster: Make, replica: Make) -> None:
    made = world(cluster, replica)
    index = change(made, Demote(3))
    assert in_effect(made) == [index] * 3
    assert made.core(2).membership.voters == (1, 2)
    assert made.core(2).membership.learners == (3,)


def test_a_change_has_no_effect_before_it_is_committed(cluster: Make, replica: Make) -> None:
    made = world(cluster, replica)
    made.isolate(1)
    index = made.core(1).propose_membership([Remove(3)], 0)
    made.settle()
    leader = made.core(1)
    assert leader.membership.index == FOUNDING_INDEX
    assert leader.latest_membership().index == index
    assert leader.change_pending
    assert not made.core(2).change_pending


def test_a_change_has_no_effect_before_it_is_stored_here(replica: Make, append: Make) -> None:
    one = replica(membership=of(3))
    following = changed(of(3), 2, [Remove(3)])
    record = encode_record(16, 2, 1, 1, MEMBERSHIP, 0, [pack_membership(following)])
    one.core.step(Append(2, 16, 1, 1, (record,), 2, 1, 1), 0.0)
    asked = one.drive()
    assert one.core.commit == 2
    assert asked[-1].membership is None
    assert one.core.membership.index == FOUNDING_INDEX
    one.persist()
    assert one.core.membership == following
    assert one.disk.membership == following


def test_the_stored_commit_is_never_below_the_stored_membership(cluster: Make, replica: Make) -> None:
    made = world(cluster, replica, learners=(4,))
    for changes in ([Promote(4)], [Demote(2)], [Remove(3)]):
        made.beat()
        change(made, *changes)  # the disk of the tests checks it at every sync
    assert made.core(1).membership.voters == (1, 4)
    assert made[1].disk.membership == made.core(1).membership


def test_a_change_survives_a_restart_before_and_after_it_took_effect(cluster: Make, replica: Make) -> None:
    made = world(cluster, replica)
    index = change(made, Demote(3))
    made[2].crash()
    made[2].start(0.0)
    assert made.core(2).membership.index == index
    made.isolate(1)
    later = made.core(1).propose_membership([Promote(3)], 0)
    made.settle()
    made[1].crash()
    made[1].start(0.0)
    assert made.core(1).membership.index == index
    assert made.core(1).latest_membership().index == later
    assert made.core(1).change_pending


def test_a_replica_that_replays_its_log_keeps_the_newest_membership(cluster: Make, replica: Make) -> None:
    made = world(cluster, replica)
    change(made, Demote(3))
    made.beat()
    index = change(made, Promote(3))
    made[2].crash()
    made[2].start(0.0)
    made[2].persist()
    assert made.core(2).membership.index == index
    assert made.core(2).membership.voters == (1, 2, 3)


def test_a_conflict_takes_back_a_change_that_was_not_committed(cluster: Make, replica: Make) -> None:
    made = world(cluster, replica)
    made.isolate(1)
    made.core(1).propose_membership([Remove(3)], 0)
    made.settle()
    made.elect(2)
    made.propose(2, b"x")
    made.heal()
    made.beat()
    made.settle()
    assert not made.core(1).change_pending
    assert made.core(1).latest_membership().index == FOUNDING_INDEX
    assert made[1].terms() == made[2].terms()


# ---------------------------------------------------------------------------------------------------- who may ask


def test_one_change_at_a_time(cluster: Make, replica: Make) -> None:
    made = world(cluster, replica, learners=(4,))
    leader = made.core(1)
    leader.propose_membership([Remove(3)], 0)
    with pytest.raises(ChangePending):
        leader.propose_membership([Remove(4)], 0)
    made.settle()
    made.tell_commits()
    assert not leader.change_pending
    change(made, Remove(4))


def test_a_change_names_the_membership_that_it_was_made_for(cluster: Make, replica: Make) -> None:
    made = world(cluster, replica, learners=(4,))
    index = change(made, Remove(4), expected=FOUNDING_INDEX)
    with pytest.raises(MembershipChanged, match=str(index)):
        change(made, Remove(3), expected=FOUNDING_INDEX)
    change(made, Remove(3), expected=index)


def test_a_new_leader_counts_its_whole_log_as_pending(cluster: Make, replica: Make) -> None:
    """The correction of 2015 to single-server changes: an entry of the own term must be committed first."""
    made = world(cluster, replica)
    made[1].crash()
    made.core(2).campaign(0.0)
    for message in made[2].take():
        if message.to == 3:
            made.core(3).step(message, 0.0)
    for message in made[3].take():
        made.core(2).step(message, 0.0)
    for message in made[2].take():
        if message.to == 3:
            made.core(3).step(message, 0.0)
    for message in made[3].take():
        made.core(2).step(message, 0.0)
    leader = made.core(2)
    assert leader.role is Role.LEADER
    made[2].persist()
    assert leader.commit < leader.last_index
    with pytest.raises(NotReady, match="committed nothing yet"):
        leader.propose_membership([Demote(1)], 0)
    made.settle()
    made[2].take()
    leader.poke(3)
    made.settle()
    assert leader.propose_membership([Demote(1)], 0)


def test_only_the_leader_may_change_anything_and_not_while_handing_over(cluster: Make, replica: Make) -> None:
    made = world(cluster, replica)
    with pytest.raises(NotLeader):
        made.core(2).propose_membership([Remove(3)], 0)
    made.isolate(2)
    made.core(1).transfer_leadership(2)
    with pytest.raises(NotReady, match="handing over"):
        made.core(1).propose_membership([Remove(3)], 0)


def test_a_learner_that_never_answered_or_is_silent_is_not_promoted(cluster: Make, replica: Make) -> None:
    made = world(cluster, replica)
    change(made, AddLearner("n4"))
    with pytest.raises(NotReady, match="caught up"):
        made.core(1).propose_membership([Promote(4)], 0)
    made.replicas[4] = replica(4, membership=of(3))
    made.core(1).poke(4)
    made.settle()
    made.beat()
    assert made.core(1).caught_up(4)
    made.now += 2.0
    made.isolate(4)
    made.beat()
    made.core(1).check_quorum(made.now)
    assert not made.core(1).answers(4)
    with pytest.raises(NotReady, match="caught up"):
        made.core(1).propose_membership([Promote(4)], 0)


def test_a_learner_whose_rounds_are_slow_is_not_promoted(cluster: Make, replica: Make) -> None:
    made = world(cluster, replica, learners=(4,))
    made.beat()
    peer = made.core(1).progress[4]
    assert made.core(1).caught_up(4)
    peer.caught_up = False
    with pytest.raises(NotReady, match="caught up"):
        made.core(1).propose_membership([Promote(4)], 0)


def test_refusals_append_nothing(cluster: Make, replica: Make) -> None:
    made = world(cluster, replica)
    last = made.core(1).last_index
    for changes in ([Promote(3)], [Remove(9)], [Remove(1), Remove(2), Remove(3)]):
        with pytest.raises(ChangeRefused):
            made.core(1).propose_membership(changes, 0)
    assert made.core(1).last_index == last
    assert not made.core(1).change_pending


# --------------------------------------------------------------------------------------------- quorums that change


def test_removing_b_with_c_and_d_cut_off_never_commits(cluster: Make, replica: Make) -> None:
    made = world(cluster, replica, voters=4)
    made.isolate(1, 2)
    index = made.core(1).propose_membership([Remove(2)], 0)
    made.settle()
    made.tell_commits()
    assert made.core(1).commit < index
    assert made.core(1).membership.voters == made.core(2).membership.voters == (1, 2, 3, 4)
    made.heal()
    made.settle()
    made.tell_commits()
    assert made.core(1).membership.index == index
    assert [made.core(one).membership.voters for one in (1, 3, 4)] == [(1, 3, 4)] * 3


def test_a_removal_can_commit_what_the_larger_quorum_could_not(cluster: Make, replica: Make) -> None:
    made = world(cluster, replica, voters=4)
    made.isolate(3)
    made.isolate(4)
    made.propose(1, b"x")
    assert made.core(1).commit < made.core(1).last_index
    made.cut -= {(1, 3), (3, 1)}
    made.core(1).poke(3)
    made.settle()
    index = change(made, Remove(4))
    made.isolate(3)
    last = made.propose(1, b"y")
    assert made.core(1).membership.index == index
    assert made.core(1).commit == last  # two of three


def test_a_smaller_quorum_commits_what_it_holds_at_once(cluster: Make, replica: Make) -> None:
    made = world(cluster, replica, voters=4)
    leader = made.core(1)
    leader.propose_membership([Demote(4)], 0)  # after a removal the leader would append more, and count then
    made.isolate(4)
    made[1].take()
    leader.propose([b"x"], COMMANDS, 0)
    last = leader.last_index
    made.isolate(3)
    made[1].persist()
    leader.progress[2].match = last  # two of four hold what came after the change, three of four the change
    leader.progress[3].match = last - 1
    leader._advance_commit()
    assert leader.commit == last - 1
    leader.ready()  # the change takes effect; what is appended after it is not written yet, and would be counted later
    assert leader.membership.voters == (1, 2, 3)
    assert leader.commit == last


def test_from_one_to_two_nodes_the_newcomer_may_be_down(cluster: Make, replica: Make) -> None:
    made = world(cluster, replica, voters=1)
    change(made, AddLearner("n2", joining=True))
    for number in range(5):
        made.now += 1.0
        made.core(1).check_quorum(made.now)
        assert made.propose(1, b"%d" % number) == made.core(1).commit
    assert made.leaders() == [1]
    assert made.core(1).membership.voters == (1,)


def test_a_learner_counts_for_nothing(cluster: Make, replica: Make) -> None:
    made = world(cluster, replica, learners=(4,))
    made.isolate(2)
    made.isolate(3)
    made.propose(1, b"x")
    assert made.core(4).last_index == made.core(1).last_index
    assert made.core(1).commit < made.core(1).last_index
    made.core(4).campaign(9.0)
    assert made.core(4).role is Role.FOLLOWER


# ------------------------------------------------------------------------------------------------- joint changes


def test_a_joint_change_needs_both_majorities_and_is_left_once_by_the_leader(cluster: Make, replica: Make) -> None:
    made = world(cluster, replica, learners=(4, 5))
    made.isolate(4)
    made.isolate(5)
    made.core(1).propose_membership([Promote(4), Promote(5), Remove(2), Remove(3)], 0)
    made.settle()
    made.tell_commits()
    leader = made.core(1)
    assert leader.membership.joint
    assert leader.change_pending
    assert leader.latest_membership().outgoing == ()  # the end of it is in the log, and cannot be committed
    before = leader.last_index
    for _ in range(3):
        made.settle()
    assert leader.last_index == before  # once
    with pytest.raises(ChangePending):
        leader.propose_membership([Demote(4)], 0)
    made.heal()
    made.settle()
    made.tell_commits()
    assert leader.membership.voters == (1, 4, 5)
    assert leader.membership.outgoing == ()
    assert not leader.change_pending
    kinds = [record.kind for record in leader.log.records(2, leader.last_index, 1 << 20)]
    assert kinds.count(MEMBERSHIP) == 2


def test_a_new_leader_ends_the_joint_change_of_the_old_one_once(cluster: Make, replica: Make) -> None:
    made = world(cluster, replica, learners=(4,))
    made.core(1).propose_membership([Promote(4), Remove(3)], 0)
    made.isolate(1)  # nothing of it has left
    made.settle()
    made.cut.clear()
    made.core(1).poke(2)
    made.settle()
    made[1].outbox += made.core(1).commit_messages()
    while not made.core(2).membership.joint:
        made.settle()
        made.tell_commits()
        if not made.core(2).membership.joint and not made.core(2).change_pending:
            break
    made[1].crash()
    made.elect(2)
    made.tell_commits()
    leader = made.core(2)
    assert leader.membership.outgoing == ()
    assert leader.membership.voters == (1, 2, 4)
    kinds = [record.kind for record in leader.log.records(2, leader.last_index, 1 << 20)]
    assert kinds.count(MEMBERSHIP) == 2


def test_an_explicit_joint_change_waits_for_its_end(cluster: Make, replica: Make) -> None:
    made = world(cluster, replica, learners=(4,))
    change(made, Promote(4), Remove(3), auto_leave=False)
    leader = made.core(1)
    assert leader.membership.joint
    made.propose(1, b"x")
    assert leader.membership.joint
    change(made)
    assert not leader.membership.joint
    assert leader.membership.voters == (1, 2, 4)


# ---------------------------------------------------------------------------------------- leaders and the removed


def test_a_removed_leader_steps_down_after_commit_and_hands_over(cluster: Make, replica: Make) -> None:
    made = world(cluster, replica)
    made.trace.clear()
    index = made.core(1).propose_membership([Remove(1)], 0)
    made.settle()
    assert made.core(1).role is Role.FOLLOWER
    assert made.core(1).membership.removed(1)
    assert made.leaders() == [2]
    assert made.core(2).membership.index == index
    asked = [message for message in made.trace if type(message) is TimeoutNow]
    assert [message.to for message in asked] == [2]
    told = [message for message in made.trace if type(message) is CommitTo and message.sender == 1]
    assert {message.to for message in told} == {2, 3}


def test_a_leader_that_is_being_removed_leads_until_the_commit(cluster: Make, replica: Make) -> None:
    made = world(cluster, replica)
    made.isolate(1)
    made.core(1).propose_membership([Remove(1)], 0)
    made.settle()
    assert made.core(1).role is Role.LEADER


def test_a_demoted_leader_steps_down_as_well(cluster: Make, replica: Make) -> None:
    made = world(cluster, replica)
    change(made, Demote(1))
    assert made.core(1).role is Role.FOLLOWER
    assert made.core(1).membership.learners == (1,)
    assert made.leaders() == [2]
    made.core(1).campaign(9.0)
    assert made.core(1).role is Role.FOLLOWER


def test_a_removed_replica_campaigns_no_more(cluster: Make, replica: Make) -> None:
    made = world(cluster, replica)
    made.core(1).propose_membership([Remove(1)], 0)
    made.settle()
    made[1].take()
    made.core(1).campaign(9.0, forced=True)
    made.core(1).tick(99.0)
    assert made[1].take() == []
    assert made.core(1).role is Role.FOLLOWER


def test_a_transfer_to_a_removed_replica_is_given_up(cluster: Make, replica: Make) -> None:
    made = world(cluster, replica)
    made.core(1).propose_membership([Remove(3)], 0)
    made.isolate(3)
    made.core(1).transfer_leadership(3)
    made.settle()
    assert made.core(1).membership.voters == (1, 2)
    assert made.core(1).propose([b"x"], COMMANDS, 0)


def test_nobody_campaigns_while_a_committed_change_has_no_effect(replica: Make) -> None:
    one = replica(membership=of(3))
    following = changed(of(3), 2, [Demote(3)])
    record = encode_record(16, 2, 1, 1, MEMBERSHIP, 0, [pack_membership(following)])
    one.core.step(Append(2, 16, 1, 1, (record,), 2, 1, 1), 0.0)
    one.drive()
    one.core.campaign(5.0)
    one.core.step(TimeoutNow(16, 2, 1, 1), 5.0)
    assert one.core.role.name == "FOLLOWER"
    assert [message for message in one.outbox if type(message) is RequestVote] == []
    one.persist()
    one.core.step(TimeoutNow(16, 2, 1, 1), 6.0)
    assert one.core.role.name == "CANDIDATE"


# ------------------------------------------------------------------------------------------------- by themselves


def test_a_joining_learner_is_promoted_once_it_has_caught_up(cluster: Make, replica: Make) -> None:
    made = world(cluster, replica)
    change(made, AddLearner("n4", joining=True))
    made.replicas[4] = replica(4, membership=of(3))
    made.core(1).poke(4)
    made.settle()
    made.beat()
    made.settle()
    made.tell_commits()
    assert made.core(1).membership.voters == (1, 2, 3, 4)
    assert made.core(1).membership.joining == ()


def test_catching_up_is_judged_by_rounds(cluster: Make, replica: Make) -> None:
    """Section 4.2.1: a round that took longer than an election timeout is followed by another one."""
    peer = Progress(4, 10)
    peer.begin_round(100, 0.0)
    peer.match = 100
    peer.judge_round(150, 2.0, 1.0)  # the first took too long; 50 more have come meanwhile
    assert not peer.caught_up
    peer.match = 140
    peer.judge_round(160, 2.5, 1.0)
    assert not peer.caught_up
    peer.match = 150
    peer.judge_round(160, 2.9, 1.0)
    assert peer.caught_up


def test_a_leader_learns_of_a_new_member_and_sends_to_it_at_once(cluster: Make, replica: Make) -> None:
    made = world(cluster, replica)
    change(made, AddLearner("n4"))
    sent = [message for message in made.trace if type(message) is Append and message.to == 4]
    assert sent
    assert list(made.core(1).progress) == [1, 2, 3, 4]
    change(made, Remove(4))
    assert list(made.core(1).progress) == [1, 2, 3]
