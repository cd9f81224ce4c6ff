"""Log replication as the thesis has it: sections 3.5 and 3.6; and what must never go back."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import pytest

from multiraft.errors import InvariantViolation, NotLeader
from multiraft.messages import AppendAnswer, CommitTo, VoteAnswer
from multiraft.raft import Role
from multiraft.records import COMMANDS, decode_record
from multiraft.types import Membership

GROUP = 16
Make: TypeAlias = Callable[..., Any]


def accepted(index: int, sender: int = 2, term: int = 2) -> AppendAnswer:
    return AppendAnswer(True, GROUP, 0, 0, index, sender, term, 1)


def lead(one: Any) -> Any:
    """Make `one` of several the leader of its next term; its no-op is on its own disk and sent."""
    one.core.campaign(0.0, forced=True)
    one.persist()
    term, voters = one.core.term, one.membership.voters
    for sender in voters[1 : len(voters) // 2 + 1]:
        one.core.step(VoteAnswer(term, True, GROUP, sender, term, 1), 0.0)
    assert one.core.role is Role.LEADER
    one.take()
    return one.core


class TestFollower:
    """Section 3.5: what a follower does with an append."""

    # Entry 1 is the founding, of term 1; logs and appends name the terms of what follows.
    @pytest.mark.parametrize(("log", "prev", "terms", "after"), [
        ((), (1, 1), (2,), [2]),  # the first entry
        ((1, 2), (3, 2), (2, 3), [1, 2, 2, 3]),  # at the end
        ((1, 2), (3, 2), (), [1, 2]),  # a probe
        ((1, 2), (1, 1), (1, 2), [1, 2]),  # everything is there already
        ((1, 2, 2), (1, 1), (1,), [1, 2, 2]),  # delayed and shorter: takes nothing away
        ((1, 2, 2), (2, 1), (), [1, 2, 2]),  # a delayed probe neither
        ((1, 2, 2), (2, 1), (2, 2, 3), [1, 2, 2, 3]),  # overlapping, then new
        ((1, 2, 2), (2, 1), (3,), [1, 3]),  # a conflict at once
        ((1, 2, 2, 2), (2, 1), (2, 3), [1, 2, 3]),  # a conflict further on
        ((1, 1, 1), (1, 1), (3, 3, 3), [3, 3, 3]),  # everything conflicts
        ((1, 3), (1, 1), (4, 4, 4), [4, 4, 4]),
    ])  # fmt: skip
    @pytest.mark.parametrize("stored_run", [1, 9], ids=["single", "joined"])
    @pytest.mark.parametrize("sent_run", [1, 2, 9], ids=lambda run: f"sent{run}")
    def test_the_log_after_an_append_that_fits(
        self, replica: Make, append: Make, log: tuple[int, ...], prev: tuple[int, int], terms: tuple[int, ...],
        after: list[int], stored_run: int, sent_run: int,
    ) -> None:  # fmt: skip
        one = replica(terms=log, run=stored_run)
        one.core.step(append(*prev, terms, term=9, run=sent_run), 0.5)
        answer = one.take()[-1]
        assert (answer.accepted, answer.index, answer.term) == (True, prev[0] + len(terms), 9)
        assert one.terms() == after
        assert [term for _, term, _ in reborn(one).log()] == after  # and so it is on disk

    @pytest.mark.parametrize(("log", "prev", "hint"), [
        ((), (5, 2), (1, 1)),  # the log ends before
        ((2, 2, 2), (9, 2), (4, 2)),
        ((2, 2, 2), (9, 1), (1, 1)),  # nothing of term 2 can agree
        ((2, 4, 4, 4), (5, 3), (2, 2)),  # all of term 4 is passed over at once
        ((2, 2, 3), (4, 5), (4, 3)),
        ((2, 2, 3, 3, 5), (6, 4), (5, 3)),
    ])  # fmt: skip
    def test_an_append_that_does_not_fit_is_rejected_with_the_last_place_that_can_agree(
        self, replica: Make, append: Make, log: tuple[int, ...], prev: tuple[int, int], hint: tuple[int, int]
    ) -> None:
        one = replica(terms=log)
        one.core.step(append(*prev, (9,)), 0.5)
        answer = one.take()[-1]
        assert (answer.accepted, answer.index) == (False, prev[0])
        assert (answer.hint_index, answer.hint_term) == hint
        assert one.terms() == list(log)

    def test_a_later_append_of_the_same_turn_answers_for_the_earlier_ones(self, replica: Make, append: Make) -> None:
        one = replica()
        one.core.step(append(1, 1, (2,)), 0.5)
        one.core.step(append(2, 2, (2, 2)), 0.5)
        assert [(m.accepted, m.index) for m in one.take()] == [(True, 4)]

    def test_but_not_for_those_of_an_earlier_term(self, replica: Make, append: Make) -> None:
        one = replica()
        one.core.step(append(1, 1, (2,)), 0.5)
        one.core.step(append(2, 2, (3,)), 0.5)  # the same leader, elected again
        assert [(m.term, m.index) for m in one.take()] == [(2, 2), (3, 3)]

    def test_an_append_of_an_earlier_term_learns_the_later_one(self, replica: Make, append: Make) -> None:
        one = replica(term=5)
        one.core.step(append(1, 1, (2,), term=4), 0.5)
        answer = one.take()[-1]
        assert (answer.accepted, answer.term, one.core.leader, one.core.last_index) == (False, 5, 0, 1)

    def test_an_append_of_a_later_term_makes_its_sender_the_leader(self, replica: Make, append: Make) -> None:
        one = replica()
        one.core.step(append(1, 1, (4,), term=4, sender=3), 0.5)
        assert (one.core.term, one.core.leader) == (4, 3)
        one.take()
        assert (one.disk.hard_state.term, one.disk.hard_state.vote) == (4, 0)

    def test_a_record_that_partly_matches_is_cut_where_it_begins_to_be_new(self, replica: Make, append: Make) -> None:
        one = replica(terms=(2,))
        one.core.step(append(1, 1, (2, 2, 2), term=2), 0.5)
        ready = one.drive()[0]
        assert [(r.first, r.last) for r in ready.records] == [(3, 4)]
        assert ready.records[0].entries() == [b"3@2", b"4@2"]
        assert decode_record(GROUP, ready.records[0].raw).prev_term == 2

    def test_a_conflict_names_every_stored_key_and_those_on_their_way(self, replica: Make, append: Make) -> None:
        one = replica(terms=(2, 2), run=1)
        one.core.step(append(3, 2, (2, 2), run=1), 0.5)
        one.drive()  # keys 4 and 5 are on their way to the disk
        one.core.step(append(2, 2, (3,), sender=3), 0.5)
        ready = one.drive()[0]
        assert ready.deleted == [3, 4, 5]
        assert [r.first for r in ready.records] == [3]
        one.persist()
        assert sorted(one.disk.records) == [2, 3]

    def test_a_committed_entry_is_never_taken_away(self, replica: Make, append: Make) -> None:
        one = replica(terms=(2, 2), commit=3)
        with pytest.raises(InvariantViolation):
            one.core.step(append(1, 1, (2, 3)), 0.5)
        assert one.terms() == [2, 2]

    def test_entries_below_the_commit_are_not_compared_again(self, replica: Make, append: Make) -> None:
        one = replica(terms=(2, 2, 2), commit=4)
        one.core.step(append(1, 1, (2, 2, 2, 2, 2)), 0.5)
        assert one.take()[-1].index == 6
        assert one.terms() == [2, 2, 2, 2, 2]


def reborn(one: Any) -> Any:
    one.crash()
    one.start(1.0)
    return one


class TestCommit:
    """What a follower may take for committed (requirement 4, L26)."""

    @pytest.mark.parametrize(("log", "prev", "terms", "told", "commit"), [
        ((2, 2, 2), (1, 1), (2,), 9, 2),  # at most the last entry of that append
        ((2, 2, 2), (3, 2), (), 9, 3),  # an empty one: at most what it follows
        ((2, 2), (3, 2), (2, 2), 4, 4),
        ((2, 2), (3, 2), (2, 2), 1, 1),
    ])  # fmt: skip
    def test_an_append_commits_at_most_its_own_last_entry(
        self, replica: Make, append: Make, log: tuple[int, ...], prev: tuple[int, int], terms: tuple[int, ...],
        told: int, commit: int,
    ) -> None:  # fmt: skip
        one = replica(terms=log)
        one.core.step(append(*prev, terms, commit=told, term=2), 0.5)
        assert one.core.commit == commit

    def test_a_commit_never_goes_back(self, replica: Make, append: Make) -> None:
        one = replica()
        one.core.step(append(1, 1, (2, 2, 2), commit=4), 0.5)
        one.core.step(append(1, 1, (2,), commit=2), 0.5)
        one.core.step(CommitTo(1, GROUP, 2, 2, 1), 0.5)
        assert one.core.commit == 4

    def test_a_rejected_append_commits_nothing(self, replica: Make, append: Make) -> None:
        one = replica(terms=(2, 2))
        one.core.step(append(9, 3, (3,), commit=3), 0.5)
        assert one.core.commit == 1

    def test_a_commit_told_alone_counts_up_to_what_was_acknowledged_in_this_term(
        self, replica: Make, append: Make
    ) -> None:
        """Entries beyond may be leftovers of another leader."""
        one = replica(terms=(2, 2, 2), term=3)
        one.core.step(CommitTo(4, GROUP, 2, 3, 1), 0.5)
        assert one.core.commit == 1
        one.core.step(append(2, 2, (2,), term=3), 0.5)
        one.core.step(CommitTo(4, GROUP, 2, 3, 1), 0.5)
        assert one.core.commit == 3

    def test_what_was_acknowledged_in_an_earlier_term_does_not_count(self, replica: Make, append: Make) -> None:
        one = replica()
        one.core.step(append(1, 1, (2, 2), term=2), 0.5)
        one.core.follow(3, 4, 0.5)
        one.core.step(CommitTo(3, GROUP, 3, 4, 1), 0.5)
        one.core.step(CommitTo(3, GROUP, 2, 2, 1), 0.5)
        assert one.core.commit == 1

    def test_only_what_is_on_the_own_disk_is_applied(self, replica: Make, append: Make) -> None:
        one = replica()
        one.core.step(append(1, 1, (2, 2), commit=3), 0.5)
        ready = one.drive()[0]
        assert (one.core.commit, ready.committed, one.applied) == (3, 1, [])
        one.sync()
        assert one.drive()[0].committed == 3
        assert [index for index, _, _ in one.applied] == [2, 3]

    def test_the_engine_cannot_apply_more_than_that(self, replica: Make, append: Make) -> None:
        one = replica()
        one.core.step(append(1, 1, (2, 2), commit=3), 0.5)
        one.drive()
        with pytest.raises(InvariantViolation):
            one.core.applied_to(3)
        one.persist()
        with pytest.raises(InvariantViolation):
            one.core.applied_to(2)

    def test_a_change_of_the_commit_alone_is_not_written_but_rides_along(self, replica: Make, append: Make) -> None:
        one = replica()
        one.core.step(append(1, 1, (2,)), 0.5)
        one.take()
        one.core.step(append(2, 2, (), commit=2), 0.5)
        ready = one.drive()[0]
        assert (ready.committed, ready.hard_state, ready.writes, ready.last) == (2, None, False, (0, 0))
        one.core.step(append(2, 2, (2,), commit=2), 0.5)
        assert one.drive()[0].hard_state.commit == 2

    def test_after_a_crash_the_commit_is_learned_again_from_what_was_applied(self, disk: Make, replica: Make) -> None:
        one = replica(terms=(2, 2), commit=2)
        assert reborn(one).core.commit == 2


class TestLeader:
    """Sections 3.5 and 10.2.1: what a leader sends, and what it counts."""

    def test_proposals_leave_at_once_and_all_of_a_turn_together(self, cluster: Make) -> None:
        group = cluster(3)
        leader = group.elect(1)
        assert leader.propose([b"a", b"b"], COMMANDS, 7) == 3
        assert leader.propose([b"c"], COMMANDS, 8) == 5
        ready = group[1].drive()[0]
        assert [(m.to, m.prev_index, m.prev_term, m.commit) for m in ready.messages] == [(2, 2, 2, 2), (3, 2, 2, 2)]
        assert [(r.first, r.last, r.stamp_ms) for r in ready.messages[0].records] == [(3, 4, 7), (5, 5, 8)]
        assert ready.messages[0].records == ready.messages[1].records
        assert [r.raw for r in ready.records] == [r.raw for r in ready.messages[0].records]  # the same bytes

    def test_only_a_leader_proposes_and_a_follower_names_its_leader(self, cluster: Make) -> None:
        group = cluster(3)
        group.elect(2)
        with pytest.raises(NotLeader) as refusal:
            group.core(1).propose([b"a"], COMMANDS, 0)
        assert refusal.value.leader == "n2"
        assert group.core(1).last_index == 2

    def test_entries_are_committed_when_a_majority_has_stored_them(self, replica: Make) -> None:
        one = replica(voters=5)
        core = lead(one)
        for sender, commit in ((2, 1), (3, 2)):
            core.step(accepted(2, sender), 0.0)
            assert core.commit == commit

    def test_the_leaders_own_disk_counts_like_any_other(self, replica: Make) -> None:
        one = replica()
        core = lead(one)
        core.propose([b"a"], COMMANDS, 0)
        one.drive()
        core.step(accepted(3, 2), 0.0)
        assert core.commit == 2
        one.sync()
        assert core.commit == 3

    def test_a_majority_of_followers_commits_before_the_leaders_disk_and_it_applies_after(self, replica: Make) -> None:
        """Section 10.2.1: the leader writes to its disk in parallel."""
        one = replica()
        core = lead(one)
        core.propose([b"a"], COMMANDS, 0)
        one.drive()
        for sender in (2, 3):
            core.step(accepted(3, sender), 0.0)
        one.drive()
        assert core.commit == 3
        assert [index for index, _, _ in one.applied] == [2]
        one.persist()
        assert [index for index, _, _ in one.applied] == [2, 3]

    def test_learners_and_strangers_do_not_count(self, replica: Make) -> None:
        membership = Membership(1, (1, 2, 3), {n: f"n{n}" for n in (1, 2, 3, 4)}, 5, learners=(4,))
        one = replica(membership=membership)
        core = lead(one)
        assert sorted(core.progress) == [1, 2, 3, 4]
        for sender in (4, 9):
            core.step(accepted(2, sender), 0.0)
        assert core.commit == 1
        core.step(accepted(2, 3), 0.0)
        assert core.commit == 2

    def test_a_joint_membership_needs_both_halves(self, replica: Make) -> None:
        """Section 4.3."""
        nodes = {n: f"n{n}" for n in range(1, 6)}
        one = replica(membership=Membership(1, (1, 2, 3), nodes, 6, outgoing=(3, 4, 5)))
        one.core.campaign(0.0, forced=True)
        one.persist()
        for sender, role in ((2, Role.CANDIDATE), (4, Role.CANDIDATE), (5, Role.LEADER)):
            one.core.step(VoteAnswer(2, True, GROUP, sender, 2, 1), 0.0)
            assert one.core.role is role
        one.take()
        for sender, commit in ((2, 1), (4, 1), (3, 2)):
            one.core.step(accepted(2, sender), 0.0)
            assert one.core.commit == commit

    def test_answers_of_another_term_do_not_count(self, replica: Make) -> None:
        core = lead(replica(term=4))
        core.step(accepted(2, 2, term=4), 0.0)
        assert core.commit == 1

    def test_a_commit_is_told_by_the_next_append_or_alone(self, cluster: Make) -> None:
        group = cluster(3)
        leader = group.elect(1)
        assert not leader.commit_untold
        leader.propose([b"a"], COMMANDS, 0)
        group.settle()
        assert leader.commit_untold
        leader.propose([b"b"], COMMANDS, 0)
        group.settle()
        assert group.core(2).commit == 3
        assert [(m.to, m.commit) for m in leader.commit_messages()] == [(2, 4), (3, 4)]
        assert not leader.commit_untold
        assert leader.commit_messages() == []

    def test_a_commit_told_alone_is_at_most_what_that_follower_acknowledged(self, replica: Make) -> None:
        one = replica()
        core = lead(one)
        core.propose([b"a"], COMMANDS, 0)
        one.take()
        core.step(accepted(3, 2), 0.0)
        core.step(accepted(2, 3), 0.0)
        assert [(m.to, m.commit) for m in core.commit_messages()] == [(2, 3), (3, 2)]
        core.step(accepted(3, 3), 0.0)
        assert [(m.to, m.commit) for m in core.commit_messages()] == [(3, 3)]
