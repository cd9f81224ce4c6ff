"""Who waits for many commands at once: results come in order, whatever records the commands have come into."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from multiraft.adapting import adapt
from multiraft.engine.executing import Executor
from multiraft.engine.proposing import queue_many
from multiraft.engine.telling import Telling
from multiraft.engine.waiting import Budget, Many, Proposals, Result, Waiter, divide
from multiraft.errors import CommandFailed, InvalidRequest, OutcomeUnknown
from multiraft.records import COMMANDS, SESSION
from multiraft.sessions import HEAD
from multiraft.statemachine import StateMachine, command


def noting(into: list[list[Result]], count: int) -> Many:
    return Many(count, into.append)


def test_all_are_told_once_when_the_last_has_come() -> None:
    told: list[list[Result]] = []
    many = noting(told, 3)
    many.take([b"1", b"2"])
    assert not told
    assert (many.ahead, many.done()) == (1, False)
    many.take([b"3"])
    assert told == [[b"1", b"2", b"3"]]
    assert many.done()


async def test_a_batch_tells_many_and_single_callers_what_is_theirs() -> None:
    told: list[list[Result]] = []
    loop = asyncio.get_running_loop()
    first, gone, last = (loop.create_future() for _ in range(3))
    gone.cancel()
    futures: list[Waiter] = [first, *[noting(told, 2)] * 2, gone, *[noting(told, 1)] * 1, last]
    batch = Proposals(10, 1, futures, 0, 0.0)
    failed = CommandFailed("ValueError", "no")
    batch.tell(10, [b"a", b"b"])
    assert first.result() == b"a"
    assert not told
    batch.tell(12, [failed, b"d", b"e", b"f"])
    assert told == [[b"b", failed], [b"e"]]
    assert last.result() == b"f"


def test_what_fails_is_told_of_each_with_an_error_of_its_own() -> None:
    told: list[list[Result]] = []
    batch = Proposals(10, 1, [*[noting(told, 3)] * 3], 30, 0.0)
    budget = Budget(100)
    budget.used_bytes, budget.count = 30, 3
    batch.tell(10, [b"a"])
    batch.fail(budget, lambda: OutcomeUnknown("lost"))
    [outcomes] = told
    assert outcomes[0] == b"a"
    assert [type(outcome) for outcome in outcomes[1:]] == [OutcomeUnknown] * 2
    assert outcomes[1] is not outcomes[2]
    assert (budget.used_bytes, budget.count) == (0, 0)


@given(st.lists(st.integers(1, 6), min_size=1, max_size=5), st.lists(st.integers(1, 20), max_size=4), st.randoms())
def test_records_may_end_anywhere_and_come_in_any_order(sizes: list[int], cuts: list[int], chance: object) -> None:
    told: list[list[Result]] = [[] for _ in sizes]
    futures: list[Waiter] = []
    for number, size in enumerate(sizes):
        futures += [Many(size, told[number].extend)] * size
    borders = sorted({cut for cut in cuts if cut < len(futures)})
    for border in borders:
        divide(futures, border)
    batches = []
    for start, end in zip([0, *borders], [*borders, len(futures)], strict=True):
        batches.append((start, Proposals(start, 1, futures[start:end], 0, 0.0), end))
    chance.shuffle(batches)  # type: ignore[attr-defined]
    for start, batch, end in batches:
        results: list[Result] = [b"%d" % at for at in range(start, end)]
        half = len(results) // 2
        batch.tell(start, results[:half])
        batch.tell(start + half, results[half:])
    flat = [result for results in told for result in results]
    assert flat == [b"%d" % at for at in range(len(futures))]


class Shop(StateMachine):
    @command(key="name")
    def add(self, name: str, count: int = 1) -> int:
        return count

    @command(key="name")
    def remove(self, name: str) -> None:
        """Of this test, nothing."""


def call(*parts: object) -> bytes:
    packed: bytes = msgpack.packb(parts)
    return packed


KNOWN = [call("add", "nail"), call("add", "nail", 2), call("remove", "nail"), b"no call"]


@pytest.mark.pure_only
@pytest.mark.parametrize("kind", [COMMANDS, SESSION])
@pytest.mark.parametrize(
    "wrong", [call("add", "nail", 2, 3), call("lose", "nail"), call("remove", "n", "m"), b"x" * 41]
)
def test_one_that_the_class_does_not_know_or_that_is_too_long_keeps_all_out(kind: int, wrong: bytes) -> None:
    head = HEAD.pack(b"c" * 16, 1, 1) if kind == SESSION else b""
    replica: Any = SimpleNamespace(executor=Executor(16, adapt(Shop())), budget=Budget(10_000), queued={}, group_id=16)
    for known in KNOWN:
        for place in range(3):
            entries = [head + known] * 3
            entries[place] = head + wrong
            with pytest.raises(InvalidRequest):
                queue_many(replica, entries, kind, 40, print)
    assert not replica.queued
    assert replica.budget.used_bytes == 0
    queue_many(replica, [head + known for known in KNOWN], kind, 40, print)
    assert len(replica.queued[kind].entries) == len(replica.queued[kind].futures) == replica.budget.count == 4


async def test_callbacks_come_together_and_one_that_raises_hurts_no_other(caplog: pytest.LogCaptureFixture) -> None:
    telling = Telling(asyncio.get_running_loop())
    heard: list[object] = []

    def raises(results: list[Result]) -> None:
        raise ValueError("mine")

    telling.later(raises, [b"1"])
    telling.later(heard.append, [b"2"])
    assert not heard
    await asyncio.sleep(0)
    assert heard == [[b"2"]]
    assert "a callback of submitted commands raised" in caplog.text
    telling.later(heard.append, [b"3"])
    await asyncio.sleep(0)
    assert heard[1:] == [[b"3"]]
