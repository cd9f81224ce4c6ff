"""Details of membership changes and snapshots that only show when two things meet."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, TypeAlias

import pytest

from multiraft.errors import ChangeRefused, InvariantViolation
from multiraft.messages import AppendAnswer, Committed, PreVote, PreVoteAnswer, TimeoutNow
from multiraft.raft import AddLearner, Bind, Demote, Promote, Remove, Role
from multiraft.raft.changes import changed, left
from multiraft.records import COMMANDS
from multiraft.types import founding_membership

GROUP = 16
Make: TypeAlias = Callable[..., Any]
FOUNDING = founding_membership(("n1", "n2", "n3"))


def denied(index: int, sender: int, term: int) -> AppendAnswer:
    return AppendAnswer(False, GROUP, 0, 0, index, sender, term, 1)


class TestChanges:
    def test_a_new_replica_may_be_bound_to_its_store_from_the_start(self) -> None:
        following = changed(FOUNDING, 5, [AddLearner("n4", store=b"s4")])
        assert following.stores == {4: b"s4"}
        with pytest.raises(ChangeRefused, match="another store"):
            changed(following, 6, [Bind(4, b"other")])

    def test_an_outgoing_voter_keeps_node_and_store_until_the_joint_change_is_left(self) -> None:
        bound = changed(changed(FOUNDING, 2, [Bind(1, b"s1")]), 3, [AddLearner("n4")])
        joint = changed(bound, 4, [Promote(4), Remove(1)])
        assert (joint.nodes[1], joint.stores) == ("n1", {1: b"s1"})
        after = left(joint, 5)
        assert (1 in after.nodes, after.stores) == (False, {})


class TestAnswers:
    def test_only_a_leader_knows_who_answers(self, cluster: Make) -> None:
        group = cluster(3)
        leader = group.elect(1)
        group.beat()
        assert [leader.answers(one) for one in (1, 2, 3, 9)] == [True, True, True, False]
        assert not group.core(2).answers(1)
        assert not group.core(2).answers(2)

    def test_who_lost_its_disk_does_not_answer_though_its_beats_do(self, cluster: Make) -> None:
        group = cluster(3)
        leader = group.elect(1)
        group.beat()
        for _ in range(2):
            leader.step(denied(2, 2, leader.term), 0.0)
            leader.ready()
        assert leader.progress[2].state.name == "LOST"
        assert not leader.answers(2)
        assert not leader.caught_up(2)

    def test_a_contact_of_just_an_election_timeout_ago_still_counts(self, cluster: Make) -> None:
        group = cluster(3)
        leader = group.elect(1)
        group.beat()
        leader.check_quorum(1.0)
        assert leader.answers(2)
        leader.check_quorum(1.001)
        assert not leader.answers(2)


class TestTakingEffect:
    def test_a_read_that_waits_may_be_answered_by_the_smaller_quorum(self, cluster: Make) -> None:
        group = cluster(4)
        leader = group.elect(1)
        leader.read_index(1)
        leader.acknowledge_round(2, 1)
        group.settle()
        assert group[1].read_states == []
        index = leader.commit
        leader.propose_membership([Remove(4)], 0)
        group.settle()
        assert group[1].read_states == [(1, index)]

    def test_old_changes_of_a_log_that_is_applied_anew_have_no_effect_again(self, cluster: Make) -> None:
        group = cluster(3)
        leader = group.elect(1)
        old = leader.propose_membership([Demote(3)], 0)
        group.settle()
        new = leader.propose_membership([AddLearner("n4")], 0)
        group.settle()
        group[1].crash()
        disk = group[1].disk
        disk.changes = lambda above: (old, new)
        group[1].start(0.0)
        group[1].persist()
        assert group.core(1).membership.index == new
        assert not group.core(1).change_pending

    def test_a_removed_leader_that_nobody_can_follow_asks_nobody(self, cluster: Make) -> None:
        group = cluster(3)
        leader = group.elect(1)
        index = leader.propose_membership([Remove(1)], 0)
        group[1].drive()  # the leader's own disk is slow
        group[1].outbox.clear()
        for sender in (2, 3):
            leader.step(AppendAnswer(True, GROUP, 0, 0, index, sender, leader.term, 1), 0.0)
        assert leader.commit == index
        for sender in (2, 3):
            for _ in range(2):
                leader.step(denied(index, sender, leader.term), 0.0)
                leader.ready()
        sent = group[1].take()
        assert leader.role is Role.FOLLOWER
        assert leader.membership.removed(1)
        assert [message for message in sent if isinstance(message, TimeoutNow)] == []

    def test_a_transfer_that_the_change_ends_opens_proposals_at_once(self, cluster: Make) -> None:
        group = cluster(3)
        leader = group.elect(1)
        leader.propose_membership([Demote(3)], 0)
        group.isolate(3)
        leader.transfer_leadership(3)
        group.settle()
        assert leader.propose([b"a"], COMMANDS, 0) > 0
        leader.tick(9.0)
        leader.tick(99.0)
        assert (leader.role, leader.next_deadline()) == (Role.LEADER, math.inf)


class TestRoles:
    def test_a_follower_that_is_told_to_step_down_goes_on(self, cluster: Make) -> None:
        group = cluster(3)
        group.elect(1)
        group.beat()
        group.core(2).step_down(1.0)
        assert (group.core(2).leader, group.core(2).next_deadline()) == (1, math.inf)

    def test_two_reads_of_one_round_are_one_entry(self, cluster: Make) -> None:
        group = cluster(3)
        leader = group.elect(1)
        assert leader.read_index(1) == leader.read_index(1) == 2
        leader.acknowledge_round(2, 1)
        group.settle()
        assert group[1].read_states == [(1, 2)]


class TestSnapshots:
    @pytest.mark.parametrize("voter", [True, False])
    def test_a_leader_knows_whether_a_voter_awaits_a_snapshot(self, cluster: Make, voter: bool) -> None:
        group = cluster(3)
        leader = group.elect(1)
        if not voter:
            leader.propose_membership([Demote(3)], 0)
            group.settle()
        group.isolate(3)
        group.propose(1, b"a")
        assert group[1].compact(trailing=0)
        group[1].persist()
        assert not leader.installing
        leader.poke(3)
        group.settle()
        assert leader.progress[3].state.name == "SNAPSHOT"
        assert leader.installing is voter
        group.heal()
        group.settle()
        group.settle()
        assert leader.progress[3].state.name == "REPLICATE"
        assert not leader.installing

    def test_a_leader_whose_snapshot_is_gone_halts(self, cluster: Make) -> None:
        group = cluster(3)
        leader = group.elect(1)
        group.isolate(3)
        group.propose(1, b"a")
        assert group[1].compact(trailing=0)
        group[1].persist()
        group[1].disk.snapshot = None
        leader.poke(3)
        with pytest.raises(InvariantViolation, match="newest snapshot"):
            leader.ready()


class TestCommitted:
    """What a replica without a vote tells one that asks for it in vain."""

    @pytest.mark.parametrize(
        ("index", "index_term", "commit"),
        [(2, 1, 2), (4, 2, 4), (3, 2, 1), (5, 2, 1), (1, 1, 1), (1, 0, 1)],
    )
    def test_whoever_has_that_entry_commits_up_to_it(
        self, replica: Make, index: int, index_term: int, commit: int
    ) -> None:
        one = replica(terms=(1, 1, 2), term=7)
        one.core.step(Committed(GROUP, index, index_term, 2, 3, 1), 0.0)
        assert (one.core.commit, one.core.term, one.core.role) == (commit, 7, Role.FOLLOWER)

    def test_a_commit_never_goes_back_for_it(self, replica: Make) -> None:
        one = replica(terms=(1, 1, 2), commit=4)
        one.core.step(Committed(GROUP, 2, 1, 2, 2, 1), 0.0)
        assert one.core.commit == 4

    def test_a_leader_counts_for_itself(self, cluster: Make) -> None:
        group = cluster(3)
        leader = group.elect(1)
        leader.propose([b"a"], COMMANDS, 0)
        leader.step(Committed(GROUP, 3, leader.term, 2, leader.term, 1), 0.0)
        assert leader.commit == 2

    @pytest.mark.parametrize(
        ("last", "told"), [((2, 1), [(2, 1)]), ((9, 1), [(3, 1)]), ((1, 1), []), ((9, 9), [])]
    )  # of the last one the vote would be given
    def test_who_has_no_vote_tells_what_the_other_may_have(
        self, replica: Make, last: tuple[int, int], told: list[tuple[int, int]]
    ) -> None:
        learner = changed(changed(FOUNDING, 2, [AddLearner("n4")]), 3, [Bind(4, b"s")])
        one = replica(replica_id=4, membership=learner, terms=(1, 1, 2), commit=3)
        one.core.step(PreVote(GROUP, *last, 2, 9, 4), 5.0)
        assert [(m.index, m.index_term) for m in one.take() if isinstance(m, Committed)] == told

    def test_a_voter_tells_nothing(self, replica: Make) -> None:
        one = replica(terms=(1, 1, 2), commit=3)
        one.core.step(PreVote(GROUP, 2, 1, 2, 9, 1), 5.0)
        assert [type(message) for message in one.take()] == [PreVoteAnswer]

    def test_nothing_is_told_of_what_the_log_has_no_more(self, cluster: Make) -> None:
        group = cluster(3)
        group.elect(1).propose_membership([Demote(3)], 0)
        group.settle()
        group.propose(1, b"a", b"b")
        assert group[3].compact(trailing=1)
        group[3].persist()
        start = group.core(3).log.start.index
        group[3].contacts.is_loyal = True
        for last, told in ((start - 1, []), (start, [start]), (start + 1, [start + 1])):
            group.core(3).step(PreVote(GROUP, last, 1, 2, 9, 3), 5.0)
            assert [m.index for m in group[3].take() if isinstance(m, Committed)] == told
