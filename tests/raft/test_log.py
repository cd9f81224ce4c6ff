"""The log: what is in memory and what below, what a conflict takes away, and what counts as stored."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import pytest
from hypothesis import given
from hypothesis import strategies as some

from multiraft.errors import InvariantViolation
from multiraft.raft.log import Log
from multiraft.records import Record
from multiraft.types import INDEX_MAX, LogStart

GROUP = 16
Make: TypeAlias = Callable[..., Any]


def open_log(disk: Any, applied: int = 1) -> Log:
    last_index, last_term = disk.last()
    return Log(GROUP, disk, disk.start, last_index, last_term, applied)


@pytest.fixture
def fresh(disk: Make) -> Callable[..., Log]:
    """Make a log in memory over a disk that holds entries of the given terms, in records of at most `run`."""

    def make(terms: tuple[int, ...] = (), run: int = 1_000) -> Log:
        return open_log(disk(terms, 9, 0, 1, run, False))

    return make


def put(log: Log, records: list[Record]) -> None:
    for record in records:
        log.append(record)


def terms_of(log: Log) -> list[int]:
    return [log.term(index) for index in range(1, log.last_index + 1)]


class TestReading:
    def test_terms_come_from_memory_and_from_the_store(self, fresh: Make, records: Make) -> None:
        log = fresh((1, 1, 2), run=2)
        put(log, records(4, 2, (2, 3, 3), 2))
        assert terms_of(log) == [1, 1, 1, 2, 2, 3, 3]

    def test_a_term_outside_the_log_is_never_made_up(self, fresh: Make) -> None:
        log = fresh((1, 1))
        for index in (0, 4):
            with pytest.raises(InvariantViolation):
                log.term(index)

    def test_records_are_whole_and_stop_at_the_limit_but_give_at_least_one(self, fresh: Make, records: Make) -> None:
        log = fresh()
        put(log, records(1, 1, (2, 2, 3, 3, 4), 2))
        size = len(log.records(2, 3, 1)[0].raw)
        assert [(r.first, r.last) for r in log.records(3, 6, 1)] == [(2, 3)]
        assert [(r.first, r.last) for r in log.records(2, 6, 2 * size)] == [(2, 3), (4, 5)]
        assert [(r.first, r.last) for r in log.records(2, 4, 1_000)] == [(2, 3), (4, 5)]

    def test_a_record_that_does_not_fit_ends_the_answer_even_if_a_later_one_would(
        self, fresh: Make, records: Make
    ) -> None:
        """Requirement 5: cutting by size never leaves a gap."""
        log = fresh()
        put(log, records(1, 1, (2,), 1))
        put(log, records(2, 2, (3,) * 50, 50))
        put(log, records(52, 3, (4,), 1))
        small = len(log.records(2, 2, 1)[0].raw)
        assert [r.first for r in log.records(2, 53, 3 * small)] == [2]

    def test_reading_below_memory_asks_the_store_and_never_passes_its_end(self, fresh: Make, records: Make) -> None:
        log = fresh((1, 1, 1), run=2)
        put(log, records(4, 1, (2,), 1))
        assert [(r.first, r.last) for r in log.records(2, 5, 1_000)] == [(2, 3), (4, 4)]
        assert [(r.first, r.last) for r in log.records(5, 5, 1_000)] == [(5, 5)]

    @given(
        some.lists(some.integers(1, 5), max_size=30), some.integers(1, 40), some.integers(0, 6), some.integers(0, 30)
    )
    def test_agreement_agrees_with_walking_down(self, terms: list[int], index: int, term: int, stored: int) -> None:
        terms.sort()
        stored = min(stored, len(terms))
        log = Log(GROUP, Below(terms[:stored]), LogStart(1, 1), 1 + stored, ([1, *terms])[stored], 1)
        for at in range(stored, len(terms)):
            log.append(Record(at + 2, at + 2, terms[at], ([1, *terms])[at], 1, 0, b""))
        known = [1, *terms]
        walk = min(index, len(known))
        while walk > 1 and known[walk - 1] > term:
            walk -= 1
        assert log.agreement(index, term) == (walk, known[walk - 1])


class Below:
    """A store that knows the terms of entries from 2 on, and nothing else."""

    def __init__(self, terms: list[int]) -> None:
        self.terms = terms

    def read_term(self, group_id: int, index: int) -> int:
        return self.terms[index - 2]

    def read_records(self, group_id: int, first: int, last: int, limit_bytes: int) -> list[Record]:
        raise AssertionError("no record is needed to find a term")

    def read_firsts(self, group_id: int, first: int, last: int = INDEX_MAX) -> list[int]:
        raise AssertionError("no key is needed to find a term")

    def read_snapshot(self, group_id: int) -> None:
        raise AssertionError("no snapshot is needed to find a term")


class TestConflicts:
    def test_everything_from_the_conflict_on_goes_and_its_keys_are_named(self, fresh: Make, records: Make) -> None:
        log = fresh()
        put(log, records(1, 1, (2, 2, 2, 2), 2))
        log.hand_out()
        log.truncate(4)
        put(log, records(3, 2, (3,), 1))
        written, deleted = log.hand_out()
        assert terms_of(log) == [1, 2, 2, 3]
        assert [r.first for r in written] == [4]
        assert deleted == [4]

    def test_a_record_that_straddles_the_conflict_is_cut_in_memory_and_stays_in_the_store(
        self, fresh: Make, records: Make
    ) -> None:
        log = fresh()
        put(log, records(1, 1, (2, 2, 2, 2), 4))
        log.hand_out()
        log.truncate(4)
        put(log, records(3, 2, (3,), 1))
        written, deleted = log.hand_out()
        assert [(r.first, r.last) for r in log.records(2, 4, 1_000)] == [(2, 3), (4, 4)]
        assert log.records(2, 3, 1)[0].entries() == [b"2@2", b"3@2"]
        assert [r.first for r in written] == [4]
        assert deleted == []

    def test_what_was_never_handed_out_has_no_key_to_delete(self, fresh: Make, records: Make) -> None:
        log = fresh()
        put(log, records(1, 1, (2, 2), 1))
        log.truncate(2)
        put(log, records(1, 1, (3,), 1))
        written, deleted = log.hand_out()
        assert ([r.first for r in written], deleted) == ([2], [])

    def test_keys_below_memory_are_asked_of_the_store(self, fresh: Make, records: Make) -> None:
        log = fresh((1, 2, 2, 2, 2), run=2)  # keys 2, 3 and 5
        put(log, records(6, 2, (2,), 1))
        log.hand_out()
        log.truncate(4)
        put(log, records(3, 2, (3,), 1))
        _, deleted = log.hand_out()
        assert deleted == [5, 7]
        assert terms_of(log) == [1, 1, 2, 3]

    def test_the_store_is_not_read_past_the_conflict_before_the_new_record_clips_it(
        self, fresh: Make, records: Make
    ) -> None:
        log = fresh((2, 2, 2, 2), run=4)
        log.truncate(4)
        put(log, records(3, 2, (3,), 1))
        assert [(r.first, r.last, r.term) for r in log.records(2, 4, 1_000)] == [(2, 3, 2)]

    def test_two_conflicts_before_one_write_name_all_keys(self, fresh: Make, records: Make) -> None:
        log = fresh()
        put(log, records(1, 1, (2, 2, 2, 2), 1))
        log.hand_out()
        log.truncate(4)
        put(log, records(3, 2, (3,), 1))
        log.truncate(3)
        put(log, records(2, 2, (4,), 1))
        written, deleted = log.hand_out()
        assert ([r.first for r in written], deleted) == ([3], [3, 4, 5])

    def test_what_is_applied_is_never_taken_away(self, fresh: Make, records: Make) -> None:
        log = fresh((2, 2))
        log.applied = 2
        with pytest.raises(InvariantViolation):
            log.truncate(2)

    def test_a_record_that_does_not_follow_is_refused(self, fresh: Make, records: Make) -> None:
        log = fresh((2, 2))
        for prev_index, prev_term in ((4, 2), (2, 2), (3, 1)):
            with pytest.raises(InvariantViolation):
                put(log, records(prev_index, prev_term, (3,), 1))


class TestStable:
    def test_only_a_report_makes_entries_stable(self, fresh: Make, records: Make) -> None:
        log = fresh()
        put(log, records(1, 1, (2, 2), 1))
        log.hand_out()
        assert log.stable == 1
        assert log.persisted(3, 2)
        assert log.stable == 3

    def test_each_record_is_handed_out_once(self, fresh: Make, records: Make) -> None:
        log = fresh()
        put(log, records(1, 1, (2,), 1))
        assert [r.first for r in log.hand_out()[0]] == [2]
        put(log, records(2, 2, (2,), 1))
        assert [r.first for r in log.hand_out()[0]] == [3]
        assert log.hand_out() == ([], [])

    def test_stable_goes_back_with_a_conflict(self, fresh: Make, records: Make) -> None:
        log = fresh((2, 2, 2))
        assert log.stable == 4
        log.truncate(3)
        put(log, records(2, 2, (3, 3), 1))
        assert log.stable == 2

    def test_a_write_whose_end_was_taken_away_makes_only_the_rest_stable(self, fresh: Make, records: Make) -> None:
        log = fresh()
        put(log, records(1, 1, (2, 2, 2), 1))
        log.hand_out()
        log.truncate(3)
        put(log, records(2, 2, (3,), 1))
        log.hand_out()
        log.persisted(4, 2)
        assert log.stable == 2
        log.persisted(3, 3)
        assert log.stable == 3

    def test_the_same_entries_coming_back_do_not_revive_an_old_report(self, fresh: Make, records: Make) -> None:
        """Written, deleted, written again: the first write's report says nothing about the third."""
        log = fresh()
        put(log, records(1, 1, (2, 2), 1))
        log.hand_out()
        log.truncate(2)
        put(log, records(1, 1, (3,), 1))
        log.hand_out()
        log.truncate(2)
        put(log, records(1, 1, (2, 2), 1))
        log.hand_out()
        assert not log.persisted(3, 2)
        assert log.stable == 1
        log.persisted(2, 3)
        log.persisted(3, 2)
        assert log.stable == 3

    def test_a_report_of_something_never_written_changes_nothing(self, fresh: Make, records: Make) -> None:
        log = fresh()
        put(log, records(1, 1, (2, 2), 1))
        log.hand_out()
        assert not log.persisted(0, 0)
        assert not log.persisted(9, 2)
        assert not log.persisted(3, 3)
        assert log.stable == 1


class TestTrim:
    def test_only_what_is_applied_and_stable_is_forgotten_oldest_first(self, fresh: Make, records: Make) -> None:
        log = fresh()
        put(log, records(1, 1, (2, 2, 2, 2), 1))
        log.hand_out()
        log.applied = 3
        log.trim(0)
        assert log.held_after == 1
        log.persisted(5, 2)
        log.trim(0)
        assert log.held_after == 3
        assert log.size_bytes == sum(len(r.raw) for r in log.records(4, 5, 1_000))

    def test_the_newest_that_fit_are_kept(self, fresh: Make, records: Make) -> None:
        log = fresh()
        put(log, records(1, 1, (2, 2, 2), 1))
        log.hand_out()
        log.persisted(4, 2)
        log.applied = 4
        log.trim(2 * len(log.records(4, 4, 1)[0].raw))
        assert log.held_after == 2

    def test_what_was_forgotten_is_read_from_the_store(self, replica: Make, append: Make) -> None:
        one = replica()
        one.core.step(append(1, 1, (2, 2, 2), commit=4, run=1), 0.0)
        one.take()
        one.core.log.trim(0)
        before = one.disk.reads
        assert one.terms() == [2, 2, 2]
        assert one.disk.reads > before
