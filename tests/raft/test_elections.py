"""Elections as the thesis has them: sections 3.4 (elections), 3.6 (safety), 6.2 (check-quorum), 9.6 (pre-vote)."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, TypeAlias

import pytest

from multiraft.errors import InvariantViolation
from multiraft.messages import Append, AppendAnswer, PreVote, PreVoteAnswer, RequestVote, VoteAnswer
from multiraft.raft import Role
from multiraft.records import COMMANDS, NOOP
from multiraft.types import HardState, Membership

GROUP = 16
ET = 1.0
Make: TypeAlias = Callable[..., Any]


def of_kind(messages: list[Any], kind: type) -> list[Any]:
    return [message for message in messages if isinstance(message, kind)]


def ask(term: int, last: tuple[int, int] = (99, 99), sender: int = 2, to: int = 1, forced: bool = False) -> RequestVote:
    """A vote request of a candidate whose log ends at (index, term) `last`."""
    return RequestVote(forced, GROUP, last[0], last[1], sender, term, to)


def pre_ask(term: int, last: tuple[int, int] = (99, 99), sender: int = 2) -> PreVote:
    return PreVote(GROUP, last[0], last[1], sender, term, 1)


def accepted(index: int, sender: int, term: int) -> AppendAnswer:
    return AppendAnswer(True, GROUP, 0, 0, index, sender, term, 1)


def stand(one: Any, now: float = 5.0) -> None:
    """Make `one` of three a candidate whose self-vote is on disk."""
    one.core.campaign(now)
    one.core.step(PreVoteAnswer(one.core.term + 1, True, GROUP, 2, one.core.term, 1), now)
    assert one.core.role is Role.CANDIDATE
    one.persist()


class TestTimeouts:
    """Section 3.4: randomized timeouts begin elections."""

    def test_a_replica_starts_as_a_follower_of_nobody_with_a_deadline(self, replica: Make) -> None:
        core = replica().core
        assert (core.role, core.leader) == (Role.FOLLOWER, 0)
        assert ET <= core.next_deadline() < 2 * ET

    def test_deadlines_are_drawn_from_one_to_two_timeouts(self, replica: Make) -> None:
        drawn = [replica(seed=seed).core.deadline for seed in range(200)]
        assert min(drawn) < 1.1 * ET
        assert max(drawn) > 1.9 * ET
        assert all(ET <= deadline < 2 * ET for deadline in drawn)

    def test_nothing_happens_before_the_deadline(self, replica: Make) -> None:
        one = replica()
        one.core.tick(one.core.deadline - 0.001)
        assert one.take() == []

    def test_at_the_deadline_it_asks_whether_it_could_win_and_arms_anew(self, replica: Make) -> None:
        one = replica(terms=(1, 2), term=4)
        now = one.core.deadline
        one.core.tick(now)
        sent = one.take()
        assert [(m.to, m.term, m.last_index, m.last_term) for m in of_kind(sent, PreVote)] == [
            (2, 5, 3, 2),
            (3, 5, 3, 2),
        ]
        assert (one.core.role, one.core.term) == (Role.PRE_CANDIDATE, 4)
        assert now + ET <= one.core.deadline < now + 2 * ET

    def test_a_failed_campaign_begins_again_with_pre_vote(self, replica: Make) -> None:
        one = replica()
        stand(one)
        one.core.tick(one.core.deadline)  # starts the timer
        one.take()
        one.core.tick(one.core.deadline)
        assert one.core.role is Role.PRE_CANDIDATE
        assert {m.term for m in of_kind(one.take(), PreVote)} == {3}
        assert one.core.term == 2


class TestVotes:
    """Section 3.4: one vote per term, first come first served; a majority elects."""

    @pytest.mark.parametrize(("voters", "grants", "elected"), [
        (2, 0, False), (2, 1, True), (3, 1, True), (3, 0, False), (4, 1, False), (4, 2, True),
        (5, 1, False), (5, 2, True),
    ])  # fmt: skip
    def test_a_majority_elects(self, replica: Make, voters: int, grants: int, elected: bool) -> None:
        one = replica(voters=voters)
        one.core.campaign(5.0)
        for sender in range(2, voters + 1):
            one.core.step(PreVoteAnswer(2, True, GROUP, sender, 1, 1), 5.0)
        one.persist()
        for sender in range(2, 2 + grants):
            one.core.step(VoteAnswer(2, True, GROUP, sender, 2, 1), 5.0)
        assert (one.core.role is Role.LEADER) == elected
        assert one.core.term == 2

    def test_the_same_vote_does_not_count_twice(self, replica: Make) -> None:
        one = replica(voters=5)
        one.core.campaign(5.0)
        for _ in range(3):
            one.core.step(PreVoteAnswer(2, True, GROUP, 2, 1, 1), 5.0)
        assert one.core.term == 1
        one.core.step(PreVoteAnswer(2, True, GROUP, 3, 1, 1), 5.0)
        one.persist()
        for _ in range(3):
            one.core.step(VoteAnswer(2, True, GROUP, 2, 2, 1), 5.0)
        assert one.core.role is Role.CANDIDATE

    def test_only_the_first_candidate_of_a_term_gets_the_vote(self, replica: Make) -> None:
        one = replica()
        for sender, granted in ((2, True), (3, False), (2, True)):  # its request may come twice
            one.core.step(ask(2, sender=sender), 0.5)
            answer = one.take()[-1]
            assert (answer.to, answer.granted, answer.asked_term, answer.term) == (sender, granted, 2, 2)
        assert one.disk.hard_state == HardState(2, 2, 1)

    def test_a_vote_is_remembered_over_a_crash(self, replica: Make) -> None:
        """Requirement 1."""
        one = replica()
        one.core.step(ask(2, sender=2), 0.5)
        assert one.take()[-1].granted
        one.crash()
        one.start(1.0)
        one.core.step(ask(2, sender=3), 1.5)
        assert not one.take()[-1].granted
        one.core.step(ask(3, sender=3), 1.5)
        assert one.take()[-1].granted

    @pytest.mark.parametrize(("last", "granted"), [
        ((3, 2), True),  # the same log
        ((4, 2), True),  # longer
        ((2, 2), False),  # shorter, same last term
        ((2, 3), True),  # shorter, later last term
        ((9, 1), False),  # longer, earlier last term
    ])  # fmt: skip
    def test_only_an_up_to_date_log_gets_votes_and_pre_votes(
        self, replica: Make, last: tuple[int, int], granted: bool
    ) -> None:
        """Section 3.6.1."""
        one = replica(terms=(1, 2), term=3)
        one.core.step(pre_ask(4, last), 0.5)
        one.core.step(ask(4, last), 0.5)
        assert [answer.granted for answer in one.take()] == [granted, granted]

    def test_a_refused_request_of_a_later_term_still_raises_the_term(self, replica: Make) -> None:
        """Section 3.3: terms are exchanged whenever servers communicate."""
        one = replica(terms=(1, 2), term=3)
        one.core.step(ask(7, (2, 1)), 0.5)
        answer = one.take()[-1]
        assert (answer.granted, answer.term, one.core.term, one.core.vote) == (False, 7, 7, 0)

    def test_a_granted_vote_re_arms_the_deadline_and_a_refused_one_does_not(self, replica: Make) -> None:
        one = replica(terms=(2,))
        before = one.core.deadline
        one.core.step(ask(3, (2, 1)), 0.9)
        assert one.core.deadline == before
        one.core.step(ask(3, (2, 2)), 0.9)
        assert one.core.deadline >= 0.9 + ET

    def test_a_request_of_an_earlier_term_learns_the_later_one(self, replica: Make) -> None:
        one = replica(term=5)
        one.core.step(ask(4), 0.5)
        one.core.step(pre_ask(5), 0.5)
        vote, pre_vote = one.take()
        assert (vote.granted, vote.asked_term, vote.term) == (False, 4, 5)
        assert (pre_vote.granted, pre_vote.asked_term, pre_vote.term) == (False, 5, 5)
        assert one.core.term == 5

    def test_a_candidate_refused_by_a_majority_follows_again(self, replica: Make) -> None:
        one = replica()
        stand(one)
        for sender in (2, 3):
            one.core.step(VoteAnswer(2, False, GROUP, sender, 2, 1), 5.0)
        assert one.core.role is Role.FOLLOWER
        assert one.core.deadline < math.inf

    def test_a_candidate_that_hears_from_the_leader_of_its_term_follows_it(self, replica: Make, append: Make) -> None:
        one = replica()
        stand(one)
        one.core.step(append(1, 1, (2,), sender=3), 5.0)
        assert (one.core.role, one.core.leader, one.core.term) == (Role.FOLLOWER, 3, 2)
        assert one.core.deadline < math.inf

    def test_a_pre_candidate_that_votes_waits_for_its_candidate(self, replica: Make) -> None:
        one = replica(term=2)
        one.core.campaign(5.0)
        one.core.step(ask(2, sender=3), 5.0)
        assert (one.core.role, one.core.vote) == (Role.FOLLOWER, 3)
        one.core.step(PreVoteAnswer(3, True, GROUP, 2, 2, 1), 5.0)
        assert one.core.term == 2

    def test_a_split_vote_elects_nobody(self, cluster: Make) -> None:
        group = cluster(4)
        for one in (1, 2):
            group.core(one).campaign(0.0)
            for other in (3, 4):
                group.core(one).step(PreVoteAnswer(2, True, GROUP, other, 1, one), 0.0)
        group.cut = {(1, 4), (2, 3)}
        group.settle()
        assert group.leaders() == []
        group.cut.clear()
        group.campaign(3)
        assert group.leaders() == [3]
        assert group.core(3).term == 3


class TestWhoTakesPart:
    def test_answers_from_non_members_are_ignored(self, replica: Make) -> None:
        """Requirement 14b."""
        one = replica()
        one.core.campaign(5.0)
        for sender in (4, 7):
            one.core.step(PreVoteAnswer(2, True, GROUP, sender, 9, 1), 5.0)
            one.core.step(PreVoteAnswer(2, False, GROUP, sender, 9, 1), 5.0)
        assert (one.core.role, one.core.term) == (Role.PRE_CANDIDATE, 1)
        one.core.step(PreVoteAnswer(2, True, GROUP, 2, 1, 1), 5.0)
        one.persist()
        for sender in (4, 7):
            one.core.step(VoteAnswer(2, True, GROUP, sender, 2, 1), 5.0)
            one.core.step(VoteAnswer(2, False, GROUP, sender, 9, 1), 5.0)
        assert (one.core.role, one.core.term) == (Role.CANDIDATE, 2)

    def test_a_request_from_a_replica_that_is_not_known_yet_is_judged_normally(self, replica: Make) -> None:
        """Section 4.1: a server votes for a candidate that is not in its own latest configuration."""
        one = replica(terms=(2,))
        one.core.step(ask(3, (2, 2), sender=9), 0.5)
        assert one.take()[-1].granted
        one.core.step(ask(4, (1, 1), sender=9), 0.5)
        assert not one.take()[-1].granted

    @pytest.mark.parametrize("learner", [True, False])
    def test_who_is_no_voter_never_campaigns(self, replica: Make, learner: bool) -> None:
        learners, nodes = ((1,), {1: "n1"}) if learner else ((), {})
        membership = Membership(1, (2, 3), {**nodes, 2: "n2", 3: "n3"}, 4, learners=learners)
        one = replica(membership=membership)
        for now in (3.0, 6.0):
            one.core.tick(now)
            one.core.campaign(now)
            one.core.campaign(now, forced=True)
            assert one.core.deadline > now
        assert one.take() == []
        assert (one.core.role, one.core.term) == (Role.FOLLOWER, 1)

    def test_an_empty_replica_neither_votes_nor_campaigns(self, replica: Make) -> None:
        """Requirement 11: what it held once, it could vote away."""
        one = replica(empty=True)
        one.core.step(pre_ask(2), 0.5)
        one.core.step(ask(2), 0.5)
        assert [answer.granted for answer in one.take()] == [False, False]
        one.core.campaign(5.0)
        assert one.core.role is Role.FOLLOWER

    def test_messages_for_an_earlier_life_of_the_replica_change_nothing(self, replica: Make, append: Make) -> None:
        """Requirement 27."""
        one = replica(replica_id=2)
        one.core.step(ask(9, sender=3, to=1), 0.5)
        one.core.step(append(1, 1, (9,), sender=3, to=1), 0.5)
        assert one.take() == []
        assert (one.core.term, one.core.last_index) == (1, 1)

    def test_two_leaders_in_one_term_are_a_broken_invariant(self, cluster: Make, append: Make) -> None:
        group = cluster(3)
        group.elect(1)
        with pytest.raises(InvariantViolation):
            group.core(1).step(append(1, 1, (2,), sender=2), 0.0)
        with pytest.raises(InvariantViolation):
            group.core(1).follow(2, 2, 0.0)
        with pytest.raises(InvariantViolation):
            group.core(1).follow(1, 2, 0.0)
        with pytest.raises(InvariantViolation):
            group.core(2).step(append(1, 1, (2,), sender=3, to=2), 0.0)


class TestLeaders:
    def test_a_new_leader_appends_a_no_op_of_its_term_and_needs_no_deadline(self, cluster: Make) -> None:
        """Section 6.4, step 1."""
        group = cluster(3, logs=[(1, 1)] * 3)
        group.elect(1)
        record = group.core(1).log.records(4, 4, 1)[0]
        assert (record.kind, record.term, record.first, record.last) == (NOOP, 2, 4, 4)
        assert group.core(1).deadline == math.inf

    def test_entries_of_earlier_terms_are_committed_only_through_one_of_the_own_term(self, cluster: Make) -> None:
        """Section 3.6.2, figure 3.7; requirement 3."""
        group = cluster(3, logs=[(2, 2), (2,), ()], terms=(2, 2, 2))
        group.campaign(1)
        leader = group.core(1)
        assert leader.commit == leader.last_index == 4
        again = cluster(3, logs=[(2, 2), (2,), ()], terms=(2, 2, 2), append_bytes=1)
        again.core(1).campaign(0.0)
        again.core(1).step(PreVoteAnswer(3, True, GROUP, 2, 2, 1), 0.0)
        again[1].persist()
        again.core(1).step(VoteAnswer(3, True, GROUP, 2, 3, 1), 0.0)
        for index, commit in ((2, 1), (3, 1), (4, 4)):  # a majority holds 2, then 3, but commits them only with 4
            again[1].persist()
            for sender in (2, 3):
                again.core(1).step(accepted(index, sender, 3), 0.0)
            assert again.core(1).commit == commit

    def test_a_leader_has_every_committed_entry(self, cluster: Make) -> None:
        """Section 3.6.3: a candidate that lacks one cannot win."""
        group = cluster(5)
        group.elect(1)
        group.isolate(4, 5)
        group.propose(1, b"a")
        group.heal()
        group.isolate(1)
        for behind in (4, 5):
            group.campaign(behind)
            assert behind not in group.leaders()
        group.campaign(2)
        assert group.core(2).role is Role.LEADER
        assert [entry for _, _, entry in group[2].log()][1] == b"a"

    def test_a_deposed_leader_gives_up_what_was_not_committed(self, cluster: Make) -> None:
        """Section 3.5: followers' logs are forced to duplicate the leader's."""
        group = cluster(3)
        group.elect(1)
        group.isolate(1)
        group.core(1).propose([b"lost"] * 3, COMMANDS, 0)
        group.settle()
        group.elect(2)
        group.propose(2, b"kept")
        group.heal()
        group.settle()
        group.tell_commits()
        assert group.leaders() == [2]
        assert group[1].log() == group[2].log() == group[3].log()
        assert group[1].applied == group[2].applied
        assert b"lost" not in [entry for _, _, entry in group[1].applied]

    def test_a_single_voter_elects_itself_at_once(self, replica: Make) -> None:
        one = replica(voters=1)
        one.core.campaign(5.0)
        assert (one.core.role, one.core.term, one.core.leader) == (Role.LEADER, 2, 1)

    def test_a_new_leader_counts_only_what_its_disk_holds(self, replica: Make) -> None:
        one = replica(voters=1)
        for _ in range(2):
            one.core.campaign(5.0)
            one.core.propose([b"a"], COMMANDS, 0)
            one.core.step_down(5.0)
        one.core.campaign(5.0)
        assert one.core.status()["progress"][1]["match"] == 1

    def test_a_single_voter_with_learners_leads_only_when_its_term_is_on_disk(self, replica: Make) -> None:
        """What a learner was sent in a term that a crash takes back could be contradicted in the same term."""
        membership = Membership(1, (1,), {1: "n1", 2: "n2"}, 3, learners=(2,))
        one = replica(membership=membership)
        one.core.campaign(5.0)
        one.drive()
        assert (one.core.role, one.outbox) == (Role.CANDIDATE, [])
        one.persist()
        assert one.core.role is Role.LEADER
        assert [m.to for m in of_kind(one.outbox, Append)] == [2]
        assert one.core.commit == one.core.last_index == 2


class TestPreVote:
    """Section 9.6."""

    def test_a_pre_vote_changes_nothing_at_the_voter(self, replica: Make) -> None:
        one = replica()
        deadline = one.core.deadline
        one.core.step(pre_ask(2, sender=2), 0.5)
        one.core.step(pre_ask(2, sender=3), 0.5)
        ready = one.drive()
        assert [answer.granted for answer in one.outbox] == [True, True]  # it is no vote: both may have it
        assert not any(each.writes for each in ready)
        assert (one.core.term, one.core.vote, one.core.deadline) == (1, 0, deadline)

    def test_a_partitioned_replica_does_not_raise_its_term(self, cluster: Make) -> None:
        """Requirement 6: on return leader and term stay."""
        group = cluster(3)
        group.elect(1)
        group.isolate(3)
        for _ in range(20):
            group.now += 2 * ET
            group.core(3).tick(group.now)
            group.settle()
        assert group.core(3).term == 2
        group.heal()
        group.settle()
        group.beat()
        assert group.leaders() == [1]
        assert {one.core.term for one in group.replicas.values()} == {2}
        assert group.core(3).leader == 1

    def test_it_elects_where_the_longer_log_has_the_earlier_term(self, cluster: Make) -> None:
        """Requirement 6, mixed logs: the one that may win learns the term from its rejection."""
        group = cluster(3, logs=[(2, 2), (2,), (2,)], terms=(2, 7, 7))
        group.campaign(1)
        assert (group.leaders(), group.core(1).term) == ([], 7)
        group.campaign(1)
        assert (group.leaders(), group.core(1).term) == ([1], 8)

    def test_it_elects_where_only_a_bridge_joins_a_quorum(self, cluster: Make) -> None:
        """Requirement 6: 1 and 2 do not hear each other, 3 hears both."""
        group = cluster(3)
        group.elect(1)
        group.cut = {(1, 2), (2, 1), (1, 3), (3, 1)}
        group.campaign(2)
        assert 2 in group.leaders()
        group.cut = {(1, 2), (2, 1)}
        group.core(2).poke(3)
        group.settle()
        group.campaign(1)  # told of the later term by 3, it does not disturb
        assert group.core(2).role is Role.LEADER

    def test_the_pre_vote_of_an_ex_leader_is_accepted(self, cluster: Make) -> None:
        """Requirement 6."""
        group = cluster(3)
        group.elect(1)
        group.core(1).step_down(group.now)
        group.campaign(1)
        assert (group.leaders(), group.core(1).term) == ([1], 3)

    def test_a_leader_grants_no_pre_vote_and_no_vote_unless_forced(self, cluster: Make) -> None:
        group = cluster(3)
        group.elect(1)
        group[1].outbox.clear()
        group.core(1).step(pre_ask(3), 0.0)
        group.core(1).step(ask(3), 0.0)
        assert [answer.granted for answer in group[1].take()] == [False, False]
        assert (group.core(1).role, group.core(1).term) == (Role.LEADER, 2)
        group.core(1).step(ask(3, forced=True), 0.0)
        assert group[1].take()[-1].granted


class TestCheckQuorum:
    """Section 6.2: a leader steps down if an election timeout passes without contact to a majority."""

    def test_being_elected_counts_as_contact(self, cluster: Make) -> None:
        group = cluster(3)
        group.now = 10.0
        group.elect(1)
        group.core(1).check_quorum(11.0)
        assert group.core(1).role is Role.LEADER
        group.core(1).check_quorum(11.001)
        assert (group.core(1).role, group.core(1).term, group.core(1).leader) == (Role.FOLLOWER, 2, 0)
        assert group.core(1).deadline < math.inf

    @pytest.mark.parametrize(("contacts", "stays"), [
        ({2: 20.0}, True), ({2: 18.9}, False), ({}, False), ({2: 1.0, 3: 19.5}, True), ({9: 20.0}, False),
    ])  # fmt: skip
    def test_the_quorums_newest_contact_decides(self, cluster: Make, contacts: dict[int, float], stays: bool) -> None:
        group = cluster(3)
        group.elect(1)
        group[1].contacts.contact = contacts
        group.core(1).check_quorum(20.0)
        assert (group.core(1).role is Role.LEADER) == stays

    def test_a_single_voter_is_its_own_quorum(self, cluster: Make) -> None:
        group = cluster(1)
        group.elect(1)
        group.core(1).check_quorum(1_000.0)
        assert group.core(1).role is Role.LEADER

    def test_a_follower_has_nothing_to_check(self, replica: Make) -> None:
        one = replica()
        deadline = one.core.deadline
        one.core.check_quorum(50.0)
        assert one.core.deadline == deadline

    def test_step_down_keeps_the_term_and_ends_the_role(self, cluster: Make) -> None:
        """Requirement 13, the core's part: the engine asks when the disk has stalled."""
        group = cluster(3)
        group.elect(1)
        group.core(1).step_down(3.0)
        ready = group[1].drive()[0]
        assert (ready.role, ready.role_changed, ready.leader, ready.term) == (Role.FOLLOWER, True, 0, 2)
        assert 3.0 + ET <= group.core(1).deadline < 3.0 + 2 * ET
