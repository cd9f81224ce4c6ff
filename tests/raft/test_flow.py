"""How a leader sends: windows and probes (thesis, section 10.2.1), hints (end of section 3.5), and lost disks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import pytest
from hypothesis import given
from hypothesis import strategies as some

from multiraft.messages import Append, AppendAnswer, RequestVote, VoteAnswer
from multiraft.raft import Role
from multiraft.records import COMMANDS

GROUP = 16
Make: TypeAlias = Callable[..., Any]


def of_kind(messages: list[Any], kind: type) -> list[Any]:
    return [message for message in messages if isinstance(message, kind)]


def accepted(index: int, sender: int = 2, term: int = 2) -> AppendAnswer:
    return AppendAnswer(True, GROUP, 0, 0, index, sender, term, 1)


def rejected(index: int, hint: tuple[int, int], sender: int = 2, term: int = 2) -> AppendAnswer:
    return AppendAnswer(False, GROUP, hint[0], hint[1], index, sender, term, 1)


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


class TestFlow:
    """How much is on its way to one follower."""

    def test_a_new_leader_probes_with_one_append_until_it_is_answered(self, replica: Make) -> None:
        one = replica(terms=(1, 1))
        one.core.campaign(0.0, forced=True)
        one.persist()
        one.core.step(VoteAnswer(2, True, GROUP, 2, 2, 1), 0.0)
        one.outbox.clear()
        one.core.ready()
        one.core.propose([b"a"], COMMANDS, 0)
        one.drive()
        assert of_kind(one.outbox, Append) == []
        one.core.step(accepted(4), 0.0)
        one.drive()
        assert [(m.to, m.prev_index) for m in of_kind(one.outbox, Append)] == [(2, 4)]

    def test_the_window_of_messages_holds_back_and_each_answer_opens_it(self, replica: Make) -> None:
        one = replica(inflight_messages=2)
        core = lead(one)
        core.step(accepted(2), 0.0)
        sent = []
        for _ in range(4):
            core.propose([b"x"], COMMANDS, 0)
            sent += [m.prev_index for m in one.take() if m.to == 2]
        assert sent == [2, 3]
        core.step(accepted(3), 0.0)
        assert [m.prev_index for m in one.take() if m.to == 2] == [4]
        assert core.progress[2].inflight_bytes == sum(size for _, size in core.progress[2].inflight)

    def test_the_window_of_bytes_holds_back_but_lets_one_giant_entry_through(self, replica: Make) -> None:
        """Requirement 5."""
        one = replica(inflight_bytes=500, append_bytes=100)
        core = lead(one)
        core.step(accepted(2), 0.0)
        core.propose([b"x" * 5_000], COMMANDS, 0)
        core.propose([b"y"], COMMANDS, 0)
        assert [m.prev_index for m in one.take() if m.to == 2] == [2]
        core.step(accepted(3), 0.0)
        assert [m.prev_index for m in one.take() if m.to == 2] == [3]

    @given(sizes=some.lists(some.integers(1, 400), min_size=1, max_size=20), limit=some.integers(1, 600))
    def test_cutting_by_size_never_leaves_a_gap(self, cluster: Make, sizes: list[int], limit: int) -> None:
        """Requirement 5."""
        group = cluster(2, append_bytes=limit, inflight_messages=3)
        leader = group.elect(1)
        for number, size in enumerate(sizes):
            leader.propose([b"%d" % number + b"." * size], COMMANDS, 0)
        group.settle()
        assert group[2].log() == group[1].log()
        appends = [m for m in group.trace if isinstance(m, Append)]
        for message in appends:
            assert len(message.records) <= 1 or sum(len(r.raw) for r in message.records) <= limit
        assert [b.prev_index for b in appends[1:]] == [a.records[-1].last for a in appends[:-1]]

    def test_a_dropped_append_is_sent_again_when_the_leader_is_told(self, cluster: Make) -> None:
        group = cluster(3)
        leader = group.elect(1)
        group.isolate(3)
        for command in (b"a", b"b", b"c"):
            group.propose(1, command)
        assert group.core(3).last_index == 2
        group.cut.clear()
        group.settle()
        assert group.core(3).last_index == 2
        leader.poke(3)
        group.settle()
        assert (group.core(3).last_index, group.core(3).commit) == (5, 5)

    def test_a_poke_also_repeats_a_lost_commit(self, cluster: Make) -> None:
        group = cluster(3)
        leader = group.elect(1)
        group.core(1).propose([b"a"], COMMANDS, 0)
        group.settle()
        leader.commit_messages()  # lost
        assert (group.core(3).commit, leader.commit_untold) == (2, False)
        leader.poke(3)
        assert leader.commit_untold
        group.settle()
        assert group.core(3).commit == 3

    def test_poking_oneself_a_stranger_or_without_leading_does_nothing(self, cluster: Make) -> None:
        group = cluster(3)
        group.elect(1)
        group.core(1).poke(1)
        group.core(1).poke(9)
        group.core(2).poke(1)
        assert all(one.core.ready() is None for one in group.replicas.values())

    def test_late_answers_move_nothing_back(self, replica: Make) -> None:
        """Requirement 4: match never goes back."""
        one = replica(voters=5)
        core = lead(one)
        core.step(accepted(2), 0.0)
        core.propose([b"x", b"y"], COMMANDS, 0)
        one.take()
        for index in (4, 2, 3):
            core.step(accepted(index), 0.0)
        assert (core.progress[2].match, core.progress[2].next) == (4, 5)

    def test_a_late_answer_does_not_end_a_probe(self, replica: Make) -> None:
        one = replica()
        core = lead(one)
        core.propose([b"x", b"y"], COMMANDS, 0)
        core.step(accepted(4), 0.0)
        one.take()
        core.poke(2)
        assert [m.prev_index for m in one.take() if m.to == 2] == [4]
        core.step(accepted(2), 0.0)
        core.propose([b"z"], COMMANDS, 0)
        assert [m.prev_index for m in one.take() if m.to == 2] == []
        core.step(accepted(4), 0.0)
        assert [m.prev_index for m in one.take() if m.to == 2] == [4]

    def test_an_append_that_overtook_another_is_filled_in(self, replica: Make) -> None:
        one = replica()
        core = lead(one)
        core.step(accepted(2), 0.0)
        for _ in range(3):
            core.propose([b"x"], COMMANDS, 0)
            one.take()
        core.step(rejected(4, (2, 2)), 0.0)  # the append after 2 was lost, the one after 3 arrived... at a log of 2
        assert [(m.prev_index, m.records[-1].last) for m in one.take() if m.to == 2] == [(2, 5)]


class TestHints:
    """Section 3.5, end: whole terms are passed over, so a diverged log is found in as many answers as it has terms."""

    @pytest.mark.parametrize(("leader", "follower", "rejections"), [
        ((1, 1, 1), (1, 1, 1), 0),
        ((1,) * 20, (), 1),  # only shorter
        ((), (1,) * 20, 0),  # only longer: the no-op replaces it
        ((1, *(2,) * 50), (1, *(3,) * 50), 1),
        ((1, *(4,) * 50), (1, *(2,) * 25, *(3,) * 25), 1),
        ((1, 1, 1, 4, 4, 5, 5, 6, 6, 6), (1, 1, 1, 4), 1),  # thesis, figure 3.6 (b)
        ((1, 1, 1, 4, 4, 5, 5, 6, 6, 6), (1, 1, 1, 4, 4, 4, 4), 1),  # (e)
        ((1, 1, 1, 4, 4, 5, 5, 6, 6, 6), (1, 1, 1, 2, 2, 2, 3, 3, 3, 3, 3), 1),  # (f)
        ((*(2,) * 9, *(4,) * 9, *(6,) * 9), (*(1,) * 9, *(3,) * 9, *(5,) * 9), 3),
    ])  # fmt: skip
    def test_rejections_needed(
        self, cluster: Make, leader: tuple[int, ...], follower: tuple[int, ...], rejections: int
    ) -> None:
        group = cluster(2, logs=(leader, follower), terms=(7, 7))
        core = group.core(1)
        core.campaign(0.0, forced=True)
        group[1].persist()
        core.step(VoteAnswer(8, True, GROUP, 2, 8, 1), 0.0)  # whatever the follower's log says
        group[1].outbox = [m for m in group[1].outbox if not isinstance(m, RequestVote)]
        group.settle()
        assert group[2].log() == group[1].log()
        answers = of_kind(group.trace, AppendAnswer)
        assert sum(1 for answer in answers if not answer.accepted) <= rejections

    @given(mine=some.lists(some.integers(1, 6), max_size=25), theirs=some.lists(some.integers(1, 6), max_size=25))
    def test_any_two_logs_come_to_agree_within_their_terms(
        self, cluster: Make, mine: list[int], theirs: list[int]
    ) -> None:
        mine, theirs = sorted(mine), sorted(theirs)
        common = 0  # two logs that agree on (index, term) agree on all before
        for at in range(min(len(mine), len(theirs))):
            if mine[at] == theirs[at]:
                common = at + 1
        theirs[:common] = mine[:common]
        group = cluster(2, logs=(mine, theirs), terms=(7, 7), run=4)
        core = group.core(1)
        core.campaign(0.0, forced=True)
        group[1].persist()
        core.step(VoteAnswer(8, True, GROUP, 2, 8, 1), 0.0)
        group.settle()
        assert group[2].log() == group[1].log()
        answers = of_kind(group.trace, AppendAnswer)
        assert sum(1 for answer in answers if not answer.accepted) <= len({*mine, *theirs}) + 1

    def test_a_late_rejection_changes_nothing_while_a_probe_is_out(self, replica: Make) -> None:
        core = lead(replica(terms=(1, 1, 1)))
        core.step(rejected(4, (2, 1)), 0.0)
        assert core.progress[2].next == 3
        core.ready()
        core.step(rejected(4, (2, 1)), 0.0)
        assert core.progress[2].next == 3
        assert core.ready() is None


class TestLostDisk:
    """A replica that denies what it acknowledged in this term is sent nothing more, and counts for nothing."""

    def test_it_is_asked_once_more_and_then_given_up(self, replica: Make) -> None:
        one = replica()
        core = lead(one)
        core.step(accepted(2), 0.0)
        core.propose([b"a"], COMMANDS, 0)
        one.take()
        core.step(rejected(2, (0, 0)), 0.0)
        assert [(m.to, m.prev_index) for m in one.take()] == [(2, 2)]
        core.step(rejected(2, (0, 0)), 0.0)
        assert core.status()["progress"][2]["state"] == "lost"
        core.propose([b"b"], COMMANDS, 0)
        assert [m.to for m in one.take()] == []
        core.step(accepted(4, 2), 0.0)
        assert core.commit == 2
        core.step(accepted(4, 3), 0.0)
        assert core.commit == 4

    def test_a_single_late_rejection_is_no_proof(self, replica: Make) -> None:
        one = replica(terms=(1, 1, 1))
        core = lead(one)
        core.step(rejected(4, (2, 1)), 0.0)
        one.take()
        core.step(accepted(5), 0.0)
        core.step(rejected(4, (2, 1)), 0.0)  # the same one again, doubled on its way
        assert [(m.prev_index) for m in one.take() if m.to == 2] == [5]
        core.step(accepted(5), 0.0)
        assert core.progress[2].state.name == "REPLICATE"

    def test_what_it_acknowledged_before_counts_no_more(self, replica: Make) -> None:
        one = replica()
        core = lead(one)
        core.step(accepted(2), 0.0)
        core.propose([b"a"], COMMANDS, 0)
        one.drive()  # the leader's own disk is slow
        core.step(accepted(3), 0.0)
        for _ in range(2):
            core.step(rejected(3, (0, 0)), 0.0)
            one.drive()
        assert core.progress[2].state.name == "LOST"
        one.persist()
        assert core.commit == 2
        core.step(accepted(3, 3), 0.0)
        assert core.commit == 3

    def test_being_poked_or_a_new_leader_tries_again(self, replica: Make) -> None:
        one = replica()
        core = lead(one)
        core.step(accepted(2), 0.0)
        for _ in range(2):
            core.step(rejected(2, (0, 0)), 0.0)
            one.take()
        core.poke(2)
        assert [(m.to, m.prev_index) for m in one.take()] == [(2, 2)]
        core.step(accepted(2), 0.0)
        assert core.progress[2].state.name == "REPLICATE"
