"""Keeping the log short (thesis, section 5.1): what may be forgotten when, and what a restart finds."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import pytest

from multiraft.errors import InvariantViolation
from multiraft.raft import AddLearner
from multiraft.types import LogStart

Make: TypeAlias = Callable[..., Any]


class TestCompaction:
    """Section 5.1: what the log may forget."""

    def test_the_log_starts_at_the_snapshot_but_for_trailing_entries(self, cluster: Make) -> None:
        group = cluster(3)
        group.elect(1)
        for _ in range(9):
            group.propose(1, b"x")
        one = group[1]
        assert (one.core.applied, one.core.log.start) == (11, LogStart(1, 1))
        assert one.compact(trailing=4)
        one.persist()
        assert (one.core.log.start, one.core.snapshot_index) == (LogStart(7, 2), 11)
        assert (one.disk.start, one.disk.snapshot.index) == (LogStart(7, 2), 11)
        assert sorted(one.disk.records) == [8, 9, 10, 11]
        assert one.terms() == [2, 2, 2, 2]
        assert one.core.status()["log_start"] == 7
        group.propose(1, b"y")
        assert group[2].log()[-5:] == one.log()

    @pytest.mark.parametrize("trailing", [0, 1, 3, 100])
    def test_a_restart_goes_on_from_the_snapshot(self, cluster: Make, trailing: int) -> None:
        """Requirement 20: with zero trailing entries, too."""
        group = cluster(3)
        group.elect(1)
        for _ in range(5):
            group.propose(1, b"x")
        for one in group.replicas.values():
            assert one.compact(trailing)
            one.persist()
            before = (one.core.term, one.core.commit, one.core.last_index, one.applied)
            one.crash()
            one.start(0.0)
            assert (one.core.term, one.core.commit, one.core.last_index, one.applied) == before
            assert (one.core.applied, one.core.snapshot_index) == (7, 7)
        group.elect(2)
        group.propose(2, b"y")
        assert group[1].applied == group[2].applied == group[3].applied
        assert len(group[1].applied) == 8

    def test_whole_records_go_and_what_reaches_beyond_the_start_stays(self, cluster: Make) -> None:
        group = cluster(1)
        group.elect(1)
        for _ in range(3):
            group.propose(1, b"a", b"b", b"c", b"d")
        one = group[1]
        assert one.compact(trailing=6)  # 14 - 6 = 8: inside the record of 7 to 10
        one.persist()
        assert sorted(one.disk.records) == [7, 11]
        assert [index for index, _, _ in one.log()] == [9, 10, 11, 12, 13, 14]
        one.core.log.trim(0)
        assert [entry for _, _, entry in one.log()] == [b"c", b"d", b"a", b"b", b"c", b"d"]
        one.crash()
        one.start(0.0)
        assert [index for index, _, _ in one.log()] == [9, 10, 11, 12, 13, 14]

    def test_the_stored_commit_is_never_below_the_snapshot(self, cluster: Make) -> None:
        group = cluster(3)
        group.elect(1)
        group.propose(1, b"x")
        one = group[1]
        assert one.disk.hard_state.commit < one.core.applied  # a commit alone is not written
        assert one.compact(0)
        (ready,) = one.drive()
        assert (ready.hard_state.commit, ready.snapshot.snapshot.index) == (3, 3)
        one.persist()  # the disk of these tests checks it

    def test_a_crash_before_the_write_leaves_all_as_it_was(self, cluster: Make) -> None:
        """Requirement 20."""
        group = cluster(3)
        group.elect(1)
        group.propose(1, b"x")
        one = group[2]
        before = one.log()
        assert one.compact(0)
        one.drive()
        one.crash()
        one.start(0.0)
        assert (one.log(), one.core.log.start, one.core.snapshot_index) == (before, LogStart(1, 1), 1)

    def test_none_is_taken_while_another_is_on_its_way(self, cluster: Make) -> None:
        group = cluster(1)
        group.elect(1)
        group.propose(1, b"x")
        one = group[1]
        assert one.compact(0)
        assert not one.core.may_compact()
        one.drive()
        assert not one.core.may_compact()
        with pytest.raises(InvariantViolation):
            one.core.compact(b"", 0)
        one.persist()
        assert one.core.may_compact()
        with pytest.raises(InvariantViolation, match="more than the one before"):
            one.core.compact(b"", 0)

    def test_none_is_taken_while_a_membership_change_has_no_effect_yet(self, cluster: Make) -> None:
        """Requirement 14b."""
        group = cluster(3)
        leader = group.elect(1)
        group.isolate(2)
        group.isolate(3)
        leader.propose_membership([AddLearner("n4")], 0)
        group.settle()
        assert not leader.may_compact()
        group.heal()
        group.settle()
        group.tell_commits()
        assert leader.membership.learners == (4,)
        assert group[1].compact(0)
        group[1].persist()
        assert group[1].disk.snapshot.membership == leader.membership

    def test_none_is_taken_before_the_machine_is_where_the_membership_is(self, cluster: Make) -> None:
        """A change takes effect when it is committed, which may be before what comes ahead of it is applied."""
        group = cluster(1)
        leader = group.elect(1)
        group.propose(1, b"x")
        leader.propose_membership([AddLearner("n4")], 0)
        group[1].drive()
        disk = group[1].disk
        disk.sync()
        leader.persisted(*disk.last(), 0)
        assert leader.ready().committed == 4
        assert (leader.membership.index, leader.applied) == (4, 3)
        assert not leader.may_compact()
        leader.applied_to(4)
        assert leader.may_compact()

    def test_an_entry_that_conflicts_right_after_the_start_is_still_replaced(self, replica: Make, append: Make) -> None:
        one = replica(terms=(1, 1, 2, 2), commit=3, run=9)
        one.drive()
        assert one.compact(0)
        one.persist()
        assert one.core.log.start == LogStart(3, 1)
        one.core.step(append(3, 1, (3,), term=3), 0.5)
        assert one.take()[-1].accepted
        assert one.terms() == [3]
        one.crash()
        one.start(0.0)
        assert one.terms() == [3]

    def test_an_append_from_before_the_start_is_taken_as_far_as_it_is_new(self, replica: Make, append: Make) -> None:
        one = replica(terms=(1, 1, 2, 2), commit=4)
        one.drive()
        assert one.compact(0)
        one.persist()
        one.core.step(append(1, 1, (1, 1, 2, 2, 2), term=2, commit=6), 0.5)
        answer = one.take()[-1]
        assert (answer.accepted, answer.index, one.terms(), one.core.commit) == (True, 6, [2, 2], 6)

    def test_what_was_deleted_before_is_not_looked_for_again(
        self, cluster: Make, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        group = cluster(1)
        group.elect(1)
        one = group[1]
        looked: list[tuple[int, int]] = []
        read_firsts: Callable[[int, int, int], list[int]] = one.disk.read_firsts

        def look(group_id: int, first: int, last: int) -> list[int]:
            looked.append((first, last))
            return read_firsts(group_id, first, last)

        monkeypatch.setattr(one.disk, "read_firsts", look)
        for _ in range(3):
            group.propose(1, b"x")
            group.propose(1, b"y")
            assert one.compact(1)
            one.persist()
        assert min(one.disk.records) == one.core.log.start.index + 1
        assert len(looked) == 3
        assert [first for first, _ in looked] == [0, *(last for _, last in looked[:-1])]

    @pytest.mark.pure_only
    @pytest.mark.parametrize("trailing", [0, 2])
    def test_so_many_keys_go_with_one_snapshot_and_the_rest_with_the_next_ones(
        self, cluster: Make, monkeypatch: pytest.MonkeyPatch, trailing: int
    ) -> None:
        """The oldest go first, so that what is left still chains up to the log's start."""
        monkeypatch.setattr("multiraft.raft.log._COMPACTED_KEYS_MAX", 3)
        group = cluster(1)
        group.elect(1)
        for _ in range(9):
            group.propose(1, b"x")
        one = group[1]
        for oldest in (5, 8, 11, 13 if trailing else 14):
            assert one.compact(trailing)
            one.persist()
            one.crash()
            one.start(0.0)
            assert one.core.log.start.index == one.core.applied - trailing
            assert min(one.disk.records) == oldest
            assert [index for index, _, _ in one.log()] == list(
                range(one.core.applied - trailing + 1, one.core.applied + 1)
            )
            group.elect(1)
