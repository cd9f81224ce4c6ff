"""Details of the core that only show when one looks: for each there is a small change that no other test notices."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import pytest

from multiraft.errors import InvariantViolation
from multiraft.messages import AppendAnswer, InstallSnapshot, PreVote, PreVoteAnswer, RequestVote, VoteAnswer
from multiraft.raft import Role
from multiraft.raft.log import Log
from multiraft.raft.progress import Progress
from multiraft.records import COMMANDS
from multiraft.types import NOBODY, LogStart, Membership

GROUP = 16
JOINT = Membership(1, (1, 2), {n: f"n{n}" for n in range(1, 5)}, 5, outgoing=(1, 3, 4))
Make: TypeAlias = Callable[..., Any]


def open_log(disk: Any, applied: int = 1) -> Log:
    last_index, last_term = disk.last()
    return Log(GROUP, disk, disk.start, last_index, last_term, applied)


class TestElections:
    def test_a_pre_candidate_that_has_become_loyal_follows_again_at_its_deadline(self, replica: Make) -> None:
        one = replica()
        one.core.campaign(0.0)
        one.contacts.is_loyal = True
        one.core.tick(2.0)
        assert one.core.role is Role.FOLLOWER
        assert one.core.next_deadline() > 2.0

    def test_who_campaigns_has_no_leader(self, replica: Make, append: Make) -> None:
        one = replica()
        one.core.step(append(1, 1, term=2), 0.0)
        assert one.core.leader == 2
        one.core.campaign(5.0)
        assert (one.core.role, one.core.leader) == (Role.PRE_CANDIDATE, NOBODY)

    def test_both_halves_of_a_joint_membership_are_asked(self, replica: Make) -> None:
        one = replica(membership=JOINT)
        one.core.campaign(0.0)
        assert [m.to for m in one.take() if isinstance(m, PreVote)] == [2, 3, 4]
        one.core.campaign(0.0, forced=True)
        assert [m.to for m in one.take() if isinstance(m, RequestVote)] == [2, 3, 4]

    def test_a_candidate_that_learns_of_a_later_term_knows_no_leader_in_it(self, replica: Make) -> None:
        one = replica()
        one.core.campaign(0.0, forced=True)
        one.persist()
        one.core.step(VoteAnswer(2, False, GROUP, 3, 7, 1), 0.0)
        assert (one.core.role, one.core.term, one.core.leader) == (Role.FOLLOWER, 7, NOBODY)

    def test_a_no_op_is_stamped_zero_so_that_it_moves_no_clock(self, cluster: Make) -> None:
        leader = cluster(3).elect(1)
        assert [record.stamp_ms for record in leader.log.records(2, 2, 1)] == [0]


class TestLog:
    @pytest.mark.parametrize(("first", "last"), [(1, 2), (3, 2), (2, 4), (0, 0)])
    def test_records_that_are_not_in_the_log_are_never_made_up(self, disk: Make, first: int, last: int) -> None:
        log = open_log(disk((1, 1), 1, 0, 1, 9, False))
        with pytest.raises(InvariantViolation):
            log.records(first, last, 1_000)

    @pytest.mark.parametrize("conflict", [2, 3, 4, 5])
    def test_the_size_in_memory_is_that_of_the_records_there(self, disk: Make, records: Make, conflict: int) -> None:
        log = open_log(disk((), 1, 0, 1, 9, False))
        for record in records(1, 1, (1, 1, 2, 2), 2):
            log.append(record)
        log.truncate(conflict)
        log.append(records(log.last_index, log.last_term, (3,), 1)[0])
        assert log.size_bytes == sum(len(record.raw) for record in log.records(2, log.last_index, 1 << 20))

    def test_entries_that_were_taken_away_and_came_back_in_one_turn_are_stable_when_written_again(
        self, disk: Make, records: Make
    ) -> None:
        log = open_log(disk((), 1, 0, 1, 9, False))
        made = records(1, 1, (1, 1, 1, 1), 1)
        for record in made:
            log.append(record)
        log.hand_out()
        assert log.persisted(5, 1)
        log.truncate(4)
        for record in made[2:]:
            log.append(record)
        log.hand_out()
        assert log.stable == 3
        assert log.persisted(5, 1)
        assert log.stable == 5

    @pytest.mark.parametrize("start", [1, 2, 3, 4, 5])
    def test_a_compacted_log_counts_what_is_left_in_memory(self, disk: Make, records: Make, start: int) -> None:
        log = open_log(disk((), 1, 0, 1, 9, False))
        for record in records(1, 1, (1, 1, 2, 2), 2):
            log.append(record)
        log.hand_out()
        log.persisted(5, 2)
        log.applied = 5
        log.compact(start)
        left = log.records(start + 1, 5, 1 << 20) if start < 5 else []
        assert log.size_bytes == sum(len(record.raw) for record in left)
        log.restart(LogStart(9, 3))
        assert log.size_bytes == 0

    def test_a_log_that_starts_there_already_costs_no_look_into_the_store(self, disk: Make) -> None:
        made = disk((1, 1), 1, 0, 3, 1, False)
        log = open_log(made, applied=3)
        made.reads = 0
        log.compact(1)
        assert (made.reads, log.hand_out()) == (0, ([], []))


class TestProgress:
    def test_who_is_lost_has_caught_up_with_nothing(self) -> None:
        peer = Progress(2, 5)
        peer.begin_round(4, 0.0)
        assert peer.accepted(4)
        peer.judge_round(4, 0.5, 1.0)
        assert peer.caught_up
        peer.lose()
        assert not peer.caught_up

    def test_a_probe_forgets_the_bytes_on_their_way_as_well(self, cluster: Make) -> None:
        group = cluster(3)
        leader = group.elect(1)
        leader.propose([b"a"], COMMANDS, 0)
        leader.ready()
        assert leader.progress[2].inflight_bytes > 0
        leader.poke(2)
        assert (leader.progress[2].inflight_bytes, len(leader.progress[2].inflight)) == (0, 0)

    def test_one_that_refuses_the_start_of_the_log_needs_more_than_entries_whatever_it_hints(
        self, cluster: Make
    ) -> None:
        group = cluster(3)
        leader = group.elect(1)
        group.isolate(3)
        group.propose(1, b"a", b"b")
        assert group[1].compact(trailing=0)
        group[1].persist()
        start = leader.log.start
        leader.progress[3].probe(start.index + 1)
        leader.ready()
        leader.step(AppendAnswer(False, GROUP, start.index, start.term, start.index, 3, leader.term, 1), 0.0)
        assert leader.progress[3].next <= start.index
        ready = leader.ready()
        assert [type(message) for message in ready.messages] == [InstallSnapshot]

    def test_a_late_answer_that_leaves_it_before_the_log_does_not_end_the_wait_for_a_snapshot(
        self, cluster: Make
    ) -> None:
        group = cluster(3)
        leader = group.elect(1)
        group.isolate(3)
        for command in (b"a", b"b", b"c"):
            group.propose(1, command)
        assert group[1].compact(trailing=0)
        group[1].persist()
        leader.poke(3)
        assert leader.ready().messages
        assert leader.progress[3].state.name == "SNAPSHOT"
        leader.step(AppendAnswer(True, GROUP, 0, 0, 3, 3, leader.term, 1), 0.0)
        assert (leader.progress[3].state.name, leader.progress[3].match) == ("SNAPSHOT", 3)
        assert leader.ready() is None

    def test_a_follower_ahead_of_the_leaders_own_disk_leaves_nothing_to_say(self, cluster: Make) -> None:
        group = cluster(3)
        leader = group.elect(1)
        leader.propose([b"a"], COMMANDS, 0)
        group[1].drive()
        for sender in (2, 3):
            leader.step(AppendAnswer(True, GROUP, 0, 0, 3, sender, leader.term, 1), 0.0)
        assert (leader.commit, leader.log.stable) == (3, 2)
        assert leader.unchanged()
        assert leader.settled(3)
        assert leader.ready() is None


class TestReady:
    def test_a_role_that_ends_with_nothing_else_changed_is_told(self, replica: Make) -> None:
        one = replica()
        one.core.campaign(0.0)
        one.take()
        one.core.step_down(1.0)
        ready = one.core.ready()
        assert ready is not None
        assert (ready.role, ready.role_changed, ready.messages) == (Role.FOLLOWER, True, [])


class TestFollower:
    @pytest.mark.parametrize(
        ("terms", "commit", "prev", "sent", "why"),
        [
            ((1, 1), 3, (3, 2), (3,), "follows the last one"),  # after the end, which is committed and another one
            ((1, 1, 1), 3, (3, 2), (3,), "follows the last one"),  # after the last one that is committed
            ((2, 3), 3, (1, 1), (2, 2), "every committed entry"),  # one record, of which only a later entry differs
            (
                (2, 2),
                2,
                (1, 1),
                (3, 3),
                "every committed entry",
            ),  # one record, of which only the first entry is committed here
        ],
    )
    def test_an_append_that_denies_a_committed_entry_halts_it(
        self, replica: Make, append: Make, terms: Any, commit: int, prev: tuple[int, int], sent: Any, why: str
    ) -> None:
        """Leader completeness (section 3.6.3): there is no such leader."""
        one = replica(terms=terms, commit=commit, term=4)
        with pytest.raises(InvariantViolation, match=why):
            one.core.step(append(*prev, sent, term=4), 0.0)
        assert one.core.log.last_index >= commit

    def test_appends_of_one_turn_are_answered_once_whatever_was_answered_before(
        self, replica: Make, append: Make
    ) -> None:
        one = replica()
        one.core.step(PreVote(GROUP, 9, 9, 3, 9, 1), 0.0)
        one.core.step(append(1, 1, (2,)), 0.0)
        one.core.step(append(2, 2, (2,)), 0.0)
        assert [(type(m), m.to) for m in one.take()] == [(PreVoteAnswer, 3), (AppendAnswer, 2)]
