"""The rules of liveness as far as the core keeps them; each test bears the rule's name (see ARCHITECTURE.md)."""
# ruff: noqa: N802 - the rules are named L1 to L26

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, TypeAlias

import pytest

from multiraft.messages import (
    AppendAnswer,
    PreVote,
    PreVoteAnswer,
    RequestVote,
    TimeoutNow,
    VoteAnswer,
)
from multiraft.raft import Role
from multiraft.types import HardState, Membership

GROUP = 16
ET = 1.0
Make: TypeAlias = Callable[..., Any]


def of_kind(messages: list[Any], kind: type) -> list[Any]:
    return [message for message in messages if isinstance(message, kind)]


def ask(term: int, forced: bool = False, sender: int = 2) -> RequestVote:
    return RequestVote(forced, GROUP, 99, 99, sender, term, 1)


def pre_refusal(asked_term: int, term: int) -> PreVoteAnswer:
    return PreVoteAnswer(asked_term, False, GROUP, 2, term, 1)


def stand(one: Any, now: float = 5.0) -> None:
    """Make `one` of three a candidate whose self-vote is handed out, but not on disk."""
    one.core.campaign(now)
    one.core.step(PreVoteAnswer(one.core.term + 1, True, GROUP, 2, one.core.term, 1), now)
    one.drive()
    assert one.core.role is Role.CANDIDATE


def test_L04_a_refused_leader_adopts_the_higher_term_and_steps_down_at_once(cluster: Make) -> None:
    group = cluster(3)
    leader = group.elect(1)
    leader.refused(2, 5)
    assert (leader.role, leader.term, leader.leader, leader.vote) == (Role.FOLLOWER, 5, 0, 0)
    ready = group[1].drive()[0]
    assert (ready.role_changed, ready.hard_state.term) == (True, 5)
    now = leader.next_deadline()
    leader.tick(now)  # a refusal comes without a clock: the timer starts here
    assert (leader.role, now + ET <= leader.next_deadline() < now + 2 * ET) == (Role.FOLLOWER, True)


@pytest.mark.parametrize(("term", "higher"), [(1, 5), (3, 5), (2, 2), (2, 1)])
def test_L04_a_refusal_of_another_term_or_of_no_higher_one_changes_nothing(
    cluster: Make, term: int, higher: int
) -> None:
    group = cluster(3)
    leader = group.elect(1)
    leader.refused(term, higher)
    assert (leader.role, leader.term) == (Role.LEADER, 2)
    group.core(2).refused(2, 9)
    assert group.core(2).term == 2


def test_L05_a_late_pre_vote_rejection_does_not_raise_a_followers_term(replica: Make) -> None:
    """A loyal follower that took it would elect itself inside the old leader's lease."""
    one = replica()
    one.core.campaign(5.0)
    one.core.follow(3, 1, 5.1)
    one.core.step(pre_refusal(2, 9), 5.2)
    assert (one.core.term, one.core.leader, one.core.deadline) == (1, 3, math.inf)


def test_L05_a_pre_vote_rejection_raises_the_term_in_the_round_that_asked(replica: Make) -> None:
    one = replica()
    one.core.campaign(5.0)
    one.core.step(pre_refusal(7, 9), 5.1)  # of another round
    assert one.core.term == 1
    one.core.step(pre_refusal(2, 9), 5.1)
    assert (one.core.term, one.core.role) == (9, Role.FOLLOWER)
    assert one.core.deadline < math.inf


def test_L05_a_vote_rejection_raises_the_term_only_of_the_candidate_that_asked(replica: Make) -> None:
    one = replica()
    stand(one)
    one.persist()
    one.core.step(VoteAnswer(1, False, GROUP, 2, 9, 1), 5.0)
    assert (one.core.term, one.core.role) == (2, Role.CANDIDATE)
    one.core.follow(3, 2, 5.0)
    one.core.step(VoteAnswer(2, False, GROUP, 2, 9, 1), 5.0)
    assert (one.core.term, one.core.leader) == (2, 3)
    other = replica()
    stand(other)
    other.persist()
    other.core.step(VoteAnswer(2, False, GROUP, 2, 9, 1), 5.0)
    assert (other.core.term, other.core.role) == (9, Role.FOLLOWER)


def test_L05_an_append_rejection_raises_the_term_only_of_a_leader(cluster: Make) -> None:
    group = cluster(3)
    leader, follower = group.elect(1), group.core(2)
    follower.step(AppendAnswer(False, GROUP, 0, 0, 2, 3, 9, 2), 0.0)
    assert (follower.term, follower.leader) == (2, 1)
    leader.step(AppendAnswer(False, GROUP, 0, 0, 2, 3, 9, 1), 0.0)
    assert (leader.term, leader.role) == (9, Role.FOLLOWER)


def test_L05_a_stale_leader_learns_the_higher_term_from_the_answer(cluster: Make) -> None:
    group = cluster(3)
    group.elect(1)
    group.isolate(1)
    group.campaign(2)
    group.heal()
    group.settle()
    assert (group.leaders(), group.core(1).term) == ([2], 3)


def test_L06_a_claim_is_followed_in_memory_at_once_and_answers_wait_for_the_disk(replica: Make, append: Make) -> None:
    one = replica()
    assert one.core.follow(2, 4, 0.5)
    assert (one.core.term, one.core.leader) == (4, 2)  # so a beat may be acknowledged now
    one.core.step(append(1, 1, (4,)), 0.5)
    one.drive()
    assert one.outbox == []
    assert one.disk.waiting[0].hard_state == HardState(4, 0, 1)


def test_L06_a_claim_of_a_node_not_named_here_yet_keeps_the_leader_that_an_append_named(
    replica: Make, append: Make
) -> None:
    one = replica()
    one.core.step(append(1, 1, (2,)), 0.5)
    assert one.core.follow(0, 2, 0.5)
    assert (one.core.leader, one.core.next_deadline()) == (2, math.inf)
    assert one.core.follow(0, 3, 0.5)
    assert (one.core.leader, one.core.term) == (0, 3)


def test_L06_a_claim_below_the_own_term_is_left_to_be_refused(replica: Make) -> None:
    one = replica(term=5)
    deadline = one.core.deadline
    assert not one.core.follow(2, 4, 0.5)
    assert (one.core.term, one.core.leader, one.core.deadline) == (5, 0, deadline)


def test_L11_a_loyal_replica_refuses_votes_and_pre_votes_and_keeps_its_term(replica: Make) -> None:
    one = replica()
    one.contacts.is_loyal = True
    one.core.step(PreVote(GROUP, 99, 99, 2, 2, 1), 0.5)
    one.core.step(ask(9), 0.5)
    assert [answer.granted for answer in one.take()] == [False, False]
    assert (one.core.term, one.core.vote) == (1, 0)
    one.contacts.is_loyal = False
    one.core.step(ask(9), 0.5)
    assert one.take()[-1].granted


def test_L11_loyalty_is_asked_for_at_exactly_the_own_term(replica: Make) -> None:
    one = replica(term=4)
    asked: list[int] = []

    def loyal(term: int) -> bool:
        asked.append(term)
        return True

    one.contacts.is_loyal = loyal
    one.core.step(ask(9), 0.5)
    one.core.campaign(5.0)
    assert asked == [4, 4]


def test_L11_a_forced_vote_overrules_loyalty(replica: Make) -> None:
    one = replica()
    one.contacts.is_loyal = True
    one.core.step(ask(2, forced=True), 0.5)
    assert one.take()[-1].granted


def test_L11_a_loyal_replica_starts_no_campaign(replica: Make) -> None:
    one = replica()
    one.contacts.is_loyal = True
    now = one.core.deadline
    one.core.tick(now)
    assert (one.core.role, one.take()) == (Role.FOLLOWER, [])
    assert now + ET <= one.core.deadline < now + 2 * ET  # asked again later: loyalty may end
    one.core.follow(2, 1, now)
    one.core.campaign(now)
    assert one.core.deadline == math.inf


def test_L11_a_pre_candidate_asks_again_before_the_campaign_proper(replica: Make) -> None:
    one = replica()
    one.core.campaign(5.0)
    one.contacts.is_loyal = True  # the leader came back while the answers were on their way
    one.core.step(PreVoteAnswer(2, True, GROUP, 2, 1, 1), 5.1)
    assert (one.core.role, one.core.term) == (Role.FOLLOWER, 1)
    assert of_kind(one.take(), RequestVote) == []
    assert one.core.deadline < math.inf


def test_L13_after_a_start_no_vote_and_no_campaign_until_the_contacts_say_so(replica: Make) -> None:
    """What one election timeout is, and when it began, liveness knows: the core asks it and nobody else."""
    one = replica(voters=1)
    one.contacts.is_loyal = True
    one.core.tick(one.core.deadline)
    assert (one.core.role, one.core.term) == (Role.FOLLOWER, 1)
    one.contacts.is_loyal = False
    one.core.tick(one.core.deadline)
    assert one.core.role is Role.LEADER


def test_L14_no_lease_once_timeout_now_has_left_in_that_term(cluster: Make) -> None:
    group = cluster(3)
    leader = group.elect(1)
    assert leader.lease_allowed()
    leader.transfer_leadership(2)
    assert (leader.role, leader.lease_allowed()) == (Role.LEADER, False)
    leader.tick(leader.next_deadline())
    leader.tick(leader.next_deadline())  # the transfer has failed: proposals again, leases not
    leader.propose([b"a"], 1, 0)
    assert not leader.lease_allowed()
    group[1].take()  # TimeoutNow is lost
    leader.step_down(20.0)
    assert group.elect(1).lease_allowed()  # a later term


def test_L16_the_force_belongs_to_the_one_campaign_that_timeout_now_caused(replica: Make) -> None:
    one = replica(term=4)
    one.core.follow(2, 4, 0.5)
    one.contacts.is_loyal = True
    one.core.step(TimeoutNow(GROUP, 2, 4, 1), 0.5)
    requests = of_kind(one.take(), RequestVote)
    assert [(m.term, m.forced) for m in requests] == [(5, True), (5, True)]
    one.core.tick(one.core.deadline)
    one.core.tick(one.core.deadline)  # loyal: no retry
    assert one.take() == []
    one.contacts.is_loyal = False
    one.core.tick(one.core.deadline)
    assert len(of_kind(one.take(), PreVote)) == 2  # a retry asks first
    one.core.step(PreVoteAnswer(6, True, GROUP, 2, 5, 1), 9.0)
    assert [(m.term, m.forced) for m in of_kind(one.take(), RequestVote)] == [(6, False), (6, False)]


@pytest.mark.parametrize("term", [3, 5])
def test_L16_timeout_now_of_another_term_does_nothing(replica: Make, term: int) -> None:
    one = replica(term=4)
    one.core.step(TimeoutNow(GROUP, 2, term, 1), 0.5)
    assert (one.core.term, one.core.role, one.take()) == (4, Role.FOLLOWER, [])


def test_L16_timeout_now_coming_twice_causes_one_campaign(replica: Make) -> None:
    one = replica(term=4)
    for _ in range(2):
        one.core.step(TimeoutNow(GROUP, 2, 4, 1), 0.5)
    one.persist()
    one.core.step(TimeoutNow(GROUP, 2, 4, 1), 0.5)
    assert one.core.term == 5


def test_L17_a_candidates_timer_starts_when_its_self_vote_is_durable(replica: Make) -> None:
    one = replica()
    stand(one, 5.0)
    assert one.core.next_deadline() == math.inf
    one.core.tick(50.0)
    one.sync()
    assert one.core.next_deadline() <= 50.0  # due at once, to read the clock
    one.core.tick(50.0)
    assert (one.core.role, one.core.term) == (Role.CANDIDATE, 2)
    assert 50.0 + ET <= one.core.next_deadline() < 50.0 + 2 * ET


def test_L17_no_new_campaign_before_that_so_a_slow_disk_does_not_make_terms_climb(replica: Make) -> None:
    one = replica()
    stand(one, 5.0)
    for now in (8.0, 16.0, 32.0):
        one.core.tick(now)
        one.core.campaign(now)
        one.core.campaign(now, forced=True)
        one.core.release(now, 0.0)
        one.core.step(TimeoutNow(GROUP, 2, 2, 1), now)
    assert (one.core.role, one.core.term, one.core.next_deadline()) == (Role.CANDIDATE, 2, math.inf)


def test_L17_only_the_write_with_its_own_term_counts(replica: Make, append: Make) -> None:
    one = replica()
    one.core.step(append(1, 1, (1,), term=1), 0.5)
    one.drive()  # an earlier write is on its way
    stand(one, 5.0)
    one.sync()
    assert one.core.next_deadline() == math.inf
    one.sync()
    assert one.core.next_deadline() < math.inf


def test_L19_whoever_stops_leading_holds_a_deadline(cluster: Make, append: Make) -> None:
    ways: list[Callable[[Any], None]] = [
        lambda core: core.step_down(3.0),
        lambda core: core.check_quorum(30.0),
        lambda core: core.refused(2, 7),
        lambda core: core.step(append(2, 2, (7,), term=7), 3.0),
        lambda core: core.step(ask(7, forced=True), 3.0),
        lambda core: core.step(AppendAnswer(False, GROUP, 0, 0, 2, 2, 7, 1), 3.0),
    ]
    for way in ways:
        group = cluster(3)
        leader = group.elect(1)
        assert leader.next_deadline() == math.inf
        way(leader)
        assert (leader.role, leader.next_deadline() < math.inf) == (Role.FOLLOWER, True)


def test_L19_a_rise_of_the_term_ends_loyalty_and_arms_a_deadline(replica: Make, append: Make) -> None:
    for message in (ask(7), ask(7, forced=True), append(1, 1, (7,), term=7)):
        one = replica()
        one.core.follow(3, 2, 0.5)
        assert one.core.next_deadline() == math.inf
        one.core.step(message, 3.0)
        assert one.core.term == 7
        assert 3.0 + ET <= one.core.next_deadline() < 3.0 + 2 * ET


def test_L19_a_candidate_waiting_for_its_disk_that_is_deposed_holds_a_deadline(replica: Make, append: Make) -> None:
    one = replica()
    stand(one)
    one.core.step(append(1, 1, (2,), sender=3), 5.0)
    assert (one.core.role, one.core.next_deadline() < math.inf) == (Role.FOLLOWER, True)
    one.persist()
    assert one.core.next_deadline() >= 5.0 + ET  # its late self-vote changes nothing


def test_L19_release_arms_whoever_follows_and_forgets_the_leader(cluster: Make) -> None:
    group = cluster(3)
    group.elect(1)
    group.beat()
    follower = group.core(2)
    assert (follower.leader, follower.next_deadline()) == (1, math.inf)
    follower.release(10.0, 0.25)
    assert (follower.leader, follower.next_deadline()) == (0, 10.25)
    group.core(1).release(10.0, 0.25)
    assert (group.core(1).role, group.core(1).next_deadline()) == (Role.LEADER, math.inf)


def test_L20_an_append_lengthens_a_deadline_but_never_clears_it(replica: Make, append: Make) -> None:
    one = replica(term=2)
    one.core.step(append(1, 1, (2,)), 0.9)
    assert 0.9 + ET <= one.core.next_deadline() < 0.9 + 2 * ET
    one.core.step(append(2, 2, (), term=2), 5.0)
    assert 5.0 + ET <= one.core.next_deadline() < 5.0 + 2 * ET


def test_L20_where_the_lead_set_took_the_deadline_away_an_append_does_not_bring_it_back(
    replica: Make, append: Make
) -> None:
    one = replica(term=2)
    one.core.follow(2, 2, 0.5)
    one.core.step(append(1, 1, (2,)), 0.9)
    assert one.core.next_deadline() == math.inf


def test_L20_an_ex_leaders_append_after_its_removal_leaves_the_deadline(replica: Make, append: Make) -> None:
    """Lane 2 may bring the append after lane 1 brought the removal: then nobody else is responsible."""
    one = replica(term=2)
    one.core.follow(2, 2, 0.5)
    one.core.release(1.0, 0.1)
    one.core.step(append(1, 1, (2,)), 1.05)
    assert (one.core.leader, one.core.next_deadline() < 1.05 + 2 * ET) == (2, True)


def test_L25_in_a_joint_membership_the_staler_half_decides(replica: Make) -> None:
    nodes = {n: f"n{n}" for n in range(1, 7)}
    one = replica(membership=Membership(1, (1, 2, 3), nodes, 7, outgoing=(3, 4, 5), learners=(6,)))
    one.core.campaign(0.0, forced=True)
    one.persist()
    for sender in (2, 4, 5):
        one.core.step(VoteAnswer(2, True, GROUP, sender, 2, 1), 0.0)
    one.contacts.contact = {2: 20.0, 3: 1.0, 4: 20.0, 5: 19.5, 6: 20.0}
    one.core.check_quorum(20.0)
    assert one.core.leader == 1
    one.contacts.contact[5] = 18.5
    one.core.check_quorum(20.0)
    assert one.core.role is Role.FOLLOWER


def test_L25_a_leader_that_is_no_voter_any_more_does_not_count_itself(replica: Make) -> None:
    nodes = {n: f"n{n}" for n in range(1, 4)}
    one = replica(membership=Membership(1, (1, 2, 3), nodes, 4))
    one.core.campaign(0.0, forced=True)
    one.persist()
    one.core.step(VoteAnswer(2, True, GROUP, 2, 2, 1), 0.0)
    one.core.membership = Membership(2, (2, 3), nodes, 4)
    one.contacts.contact = {2: 20.0}
    one.core.check_quorum(20.0)
    assert one.core.role is Role.FOLLOWER


def test_L26_an_append_carries_the_leaders_commit_even_beyond_its_own_end(replica: Make, append: Make) -> None:
    one = replica()
    one.core.step(append(1, 1, (2,), commit=9), 0.5)
    assert (one.core.commit, one.drive()[0].hard_state.commit) == (2, 2)
