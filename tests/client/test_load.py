"""Loads and how they are counted, against a client that answers when the test says so, on a clock that it moves."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from multiraft.client.load import Load, Tally, described
from multiraft.client.workload import Workload
from multiraft.consistency import LINEARIZABLE, Consistency
from multiraft.errors import MultiRaftError, NotReady, Overloaded

Done = Callable[["bytes | MultiRaftError"], None]


class FakeClient:
    """Keeps what is asked of it."""

    def __init__(self) -> None:
        self.waiting: list[Done] = []
        self.asked = 0
        self.full = False
        self.came = asyncio.Event()

    def send(self, service: str, key: bytes, command: bytes, done: Done, *, timeout_s: float | None = None) -> None:
        if self.full:
            raise Overloaded("full")
        self.asked += 1
        self.waiting.append(done)
        self.came.set()

    def ask(
        self,
        service: str,
        key: bytes,
        query: bytes,
        done: Done,
        *,
        how: Consistency = LINEARIZABLE,
        timeout_s: float | None = None,
    ) -> None:
        self.send(service, key, query, done)

    def answer(self, outcome: bytes | MultiRaftError = b"") -> int:
        """Answer all that waits; return how many that were."""
        waiting, self.waiting = self.waiting, []
        for done in waiting:
            done(outcome)
        return len(waiting)

    async def asked_for(self, count: int) -> None:
        """Wait until so many calls wait for an answer."""
        async with asyncio.timeout(30):
            while len(self.waiting) < count:
                self.came.clear()
                await self.came.wait()


class Run:
    def __init__(self, **options: Any) -> None:
        self.now = 100.0
        self.client = FakeClient()
        workload = Workload(reads=options.pop("reads", 0.0))
        self.load = Load(self.client, "kv", workload, clock=lambda: self.now, **options)
        self.stop = asyncio.Event()
        self.seen: list[Tally] = []
        self.task = asyncio.ensure_future(self.load.run(1e6, 0.0, self.stop, self.seen.append))

    async def end(self) -> Tally:
        """Stop the run and answer what is under way."""
        self.stop.set()
        async with asyncio.timeout(30):
            while not self.task.done():
                await asyncio.sleep(0)
                self.client.answer()
        await self.task
        return self.load.tally


async def test_a_closed_loop_keeps_so_many_under_way() -> None:
    run = Run(in_flight=5)
    await run.client.asked_for(5)
    for _ in range(3):
        run.now += 0.010
        assert run.client.answer() == 5
        assert len(run.client.waiting) == 5
    tally = await run.end()
    assert tally.writes.total == 15  # not the five that were under way at the end
    assert described(tally.writes, run.load.seconds)["p50_ms"] == pytest.approx(10, rel=0.05)
    assert run.client.asked == 20


async def test_at_a_rate_a_stall_is_felt_by_all_that_were_due() -> None:
    """A second without answers at 100 calls a second and room for 10: all 100 were due, and count from then."""
    run = Run(in_flight=10, rate=100.0)
    await run.client.asked_for(1)
    run.now += 1.0
    await run.client.asked_for(10)
    answered = 0
    while answered < 101:
        await run.client.asked_for(1)
        answered += run.client.answer()
    assert answered == 101
    tally = await run.end()
    assert tally.writes.total == 101
    told = described(tally.writes, 1.0)
    assert told["max_ms"] == pytest.approx(1_000, rel=0.05)
    assert told["p50_ms"] == pytest.approx(500, rel=0.1)  # were it counted from the sending: 0 for nine of ten
    assert told["p90_ms"] == pytest.approx(900, rel=0.1)


async def test_at_a_rate_what_was_due_in_time_counts_though_its_answer_came_later() -> None:
    run = Run(in_flight=10, rate=100.0)
    await run.client.asked_for(1)
    run.stop.set()
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    run.now += 2.0
    tally = await run.end()
    assert tally.writes.total == 1
    assert tally.writes.most_us == pytest.approx(2e6, rel=0.01)


async def test_errors_are_counted_by_type_and_do_not_end_it() -> None:
    run = Run(in_flight=2, reads=1.0)
    await run.client.asked_for(2)
    run.client.answer(NotReady("no leader"))
    await run.client.asked_for(2)
    run.client.answer()
    tally = await run.end()
    assert tally.errors == {"NotReady": 2}
    assert tally.reads.total == 2
    assert tally.writes.total == 0
    assert "no leader" in run.load.error


async def test_a_client_that_is_full_is_asked_again_at_leisure() -> None:
    run = Run(in_flight=1)
    await run.client.asked_for(1)
    run.client.full = True
    run.client.answer()
    await asyncio.sleep(0)
    assert run.client.waiting == []
    run.client.full = False
    await run.client.asked_for(1)
    tally = await run.end()
    assert tally.errors == {"Overloaded": 1}
    assert tally.writes.total == 1
