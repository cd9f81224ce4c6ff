"""What one replica keeps of its own age and of the reads that wait for it, step by step."""

from __future__ import annotations

import asyncio
from asyncio import Future
from math import inf
from typing import Any

import pytest

from multiraft.engine.local import LocalReads, Seen
from multiraft.engine.waiting import ENTRY_OVERHEAD_BYTES, Budget
from multiraft.errors import Overloaded, ReadFailed
from multiraft.keyspace import Keyspace

LIMIT_BYTES = 1_000


class Echo:
    """Answers a query with itself and says how often it was asked."""

    data: Keyspace | None = None

    def __init__(self) -> None:
        self.asked: list[bytes] = []

    def apply(self, command: bytes, context: Any) -> bytes:
        raise AssertionError("no command comes here")

    def refuses(self, command: bytes) -> str | None:
        raise AssertionError("nor is one proposed")

    def describe(self, command: bytes) -> str:
        raise AssertionError("nor is one described")

    def snapshot(self) -> bytes:
        raise AssertionError("nor is a snapshot taken")

    def restore(self, state: bytes) -> None:
        raise AssertionError("nor is one installed")

    def query(self, query: bytes) -> bytes:
        self.asked.append(query)
        return query


class Rig:
    def __init__(self) -> None:
        self.budget = Budget(LIMIT_BYTES)
        self.reads = LocalReads(self.budget)
        self.machine = Echo()

    def add(self, query: bytes, deadline_s: float = inf) -> Future[Seen]:
        future: Future[Seen] = asyncio.get_running_loop().create_future()
        self.reads.add(query, future, deadline_s)
        return future

    def applied(self, index: int) -> None:
        self.reads.applied(index, self.machine)


async def test_an_answer_waits_for_the_index_and_is_as_old_as_its_question() -> None:
    rig = Rig()
    one, two = rig.add(b"1"), rig.add(b"2")
    assert rig.reads.wants_to_ask
    rig.reads.ask()
    assert not rig.reads.wants_to_ask
    rig.reads.confirmed(7, 50.0)
    rig.applied(6)
    assert not one.done()
    assert rig.reads.since_s == -inf
    rig.applied(7)
    assert (one.result(), two.result()) == (Seen(b"1", 50.0), Seen(b"2", 50.0))
    assert rig.reads.since_s == 50.0
    assert rig.reads.idle
    assert (rig.budget.used_bytes, rig.budget.count) == (0, 0)


async def test_a_question_under_way_covers_nobody_who_comes_later() -> None:
    rig = Rig()
    early = rig.add(b"early")
    rig.reads.ask()
    late = rig.add(b"late")
    rig.reads.confirmed(7, 50.0)
    rig.applied(7)
    assert early.done()
    assert not late.done()
    assert rig.reads.wants_to_ask
    rig.reads.ask()
    rig.reads.confirmed(9, 60.0)
    rig.applied(9)
    assert late.result() == Seen(b"late", 60.0)


async def test_what_a_failed_question_covered_is_covered_by_the_next_one() -> None:
    rig = Rig()
    early = rig.add(b"early")
    rig.reads.ask()
    rig.reads.unanswered("lost")
    assert rig.reads.problem == "lost"
    assert rig.reads.wants_to_ask
    late = rig.add(b"late")
    rig.reads.ask()
    rig.reads.confirmed(7, 60.0)
    rig.applied(7)
    assert (early.result().since_s, late.result().since_s) == (60.0, 60.0)
    assert rig.reads.problem == ""


async def test_the_age_never_goes_back_and_no_index_is_waited_for_out_of_order() -> None:
    rig = Rig()
    first = rig.add(b"1")
    rig.reads.ask()
    rig.reads.confirmed(9, 50.0)
    second = rig.add(b"2")
    rig.reads.ask()
    rig.reads.confirmed(7, 60.0)  # which no leader says: this one waits for 9, too
    rig.applied(7)
    assert not second.done()
    rig.applied(9)
    assert (first.result().since_s, second.result().since_s) == (50.0, 60.0)
    rig.reads.confirmed(9, 40.0)
    rig.applied(9)
    assert rig.reads.since_s == 60.0


async def test_reads_whose_time_has_run_out_fail_wherever_they_wait() -> None:
    rig = Rig()
    in_time = rig.add(b"in time", 20.0)
    rig.reads.ask()
    rig.reads.confirmed(7, 50.0)
    covered = rig.add(b"covered", 9.0)
    rig.reads.ask()
    waiting = rig.add(b"waiting", 10.0)
    rig.reads.expire(10.0, lambda: ReadFailed("late"))
    assert not in_time.done()
    for late in (covered, waiting):
        with pytest.raises(ReadFailed):
            late.result()
    rig.applied(7)
    assert in_time.result() == Seen(b"in time", 50.0)
    rig.reads.unanswered("lost")
    assert rig.reads.idle
    assert rig.budget.used_bytes == 0


async def test_what_nobody_waits_for_any_more_is_forgotten() -> None:
    rig = Rig()
    late = rig.add(b"late", 9.0)
    rig.reads.ask()
    rig.reads.confirmed(7, 50.0)
    rig.reads.expire(9.0, lambda: ReadFailed("late"))
    assert isinstance(late.exception(), ReadFailed)
    assert rig.reads.idle


async def test_failing_leaves_what_is_known_of_the_age() -> None:
    rig = Rig()
    rig.add(b"1")
    rig.reads.ask()
    rig.reads.confirmed(7, 50.0)
    rig.applied(7)
    waiting = [rig.add(b"2")]
    rig.reads.ask()
    rig.reads.confirmed(9, 60.0)
    waiting.append(rig.add(b"3"))
    rig.reads.ask()
    waiting.append(rig.add(b"4"))
    rig.reads.fail(lambda: ReadFailed("stopped"))
    assert [type(each.exception()) for each in waiting] == [ReadFailed] * 3
    rig.applied(9)
    assert rig.reads.since_s == 50.0
    assert rig.machine.asked == [b"1"]
    assert rig.budget.used_bytes == 0


async def test_a_read_over_the_bound_is_refused_and_asks_for_nothing() -> None:
    rig = Rig()
    with pytest.raises(Overloaded):
        rig.add(b"x" * (LIMIT_BYTES - ENTRY_OVERHEAD_BYTES + 1))
    assert not rig.reads.wants_to_ask
    rig.add(b"x" * (LIMIT_BYTES - ENTRY_OVERHEAD_BYTES))
    with pytest.raises(Overloaded):
        rig.add(b"")
    assert rig.budget.used_bytes == LIMIT_BYTES


async def test_a_cancelled_reader_is_not_asked_for() -> None:
    rig = Rig()
    gone, stays = rig.add(b"gone"), rig.add(b"stays")
    rig.reads.ask()
    gone.cancel()
    rig.reads.confirmed(1, 50.0)
    rig.applied(1)
    assert stays.done()
    assert rig.machine.asked == [b"stays"]
