"""Bounds on bytes a second, and how they give way to the log's writes."""

from __future__ import annotations

from collections.abc import Iterable

import pytest

from multiraft.engine.pace import MOST, Pace, Strain

RATE: int = 1_000_000
PIECE: int = 10_000


class Clock:
    def __init__(self) -> None:
        self.now_s = 5.0

    def __call__(self) -> float:
        return self.now_s

    def pass_time(self, seconds: float) -> None:
        self.now_s += seconds


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def strain(clock: Clock) -> Strain:
    return Strain(clock)


def write(clock: Clock, strain: Strain, durations_s: Iterable[float]) -> None:
    """Have synced writes take so long, one after the other."""
    for took_s in durations_s:
        clock.pass_time(took_s)
        strain.noted(took_s)


def passed(clock: Clock, pace: Pace, seconds: float) -> int:
    """How many bytes pass, in pieces, in so many seconds."""
    until_s, size_bytes = clock.now_s + seconds, 0
    while clock.now_s < until_s:
        size_bytes += PIECE
        clock.pass_time(pace.take(PIECE))
    return size_bytes


def test_no_more_passes_than_the_bound_and_one_burst(clock: Clock, strain: Strain) -> None:
    pace = Pace(RATE, strain, 0.1)
    assert passed(clock, pace, 1.0) == pytest.approx(1.1 * RATE, abs=2 * PIECE)
    assert passed(clock, pace, 1.0) == pytest.approx(RATE, abs=2 * PIECE)
    clock.pass_time(60.0)  # nothing is saved up but the burst
    assert passed(clock, pace, 1.0) == pytest.approx(1.1 * RATE, abs=2 * PIECE)


def test_usual_writes_slow_nothing_down(clock: Clock, strain: Strain) -> None:
    assert strain.factor() == 1.0  # no write at all so far
    write(clock, strain, [0.003, 0.005] * 200)
    clock.pass_time(0.001)
    assert strain.factor() == 1.0


def test_writes_that_take_twice_as_long_cost_it_three_quarters_of_its_pace(clock: Clock, strain: Strain) -> None:
    write(clock, strain, [0.004] * 500)
    pace = Pace(RATE, strain, 0.0)
    whole = passed(clock, pace, 0.5)
    write(clock, strain, [0.008] * 40)
    assert passed(clock, pace, 0.5) == pytest.approx(whole / 4, rel=0.1)


def test_however_slow_writes_are_it_gets_on(clock: Clock, strain: Strain) -> None:
    write(clock, strain, [0.001] * 500)
    assert strain.factor() == 1.0
    for _ in range(20):
        write(clock, strain, [2.0])
        assert strain.factor() == MOST
    pace = Pace(RATE, strain, 0.0)
    assert passed(clock, pace, 0.9) >= 0.8 * RATE / MOST


def test_it_is_at_its_pace_again_when_writes_are_as_usual_or_there_are_none(clock: Clock, strain: Strain) -> None:
    write(clock, strain, [0.004] * 500)
    write(clock, strain, [0.040] * 20)
    assert strain.factor() > 4
    write(clock, strain, [0.004] * 40)
    assert strain.factor() == 1.0
    write(clock, strain, [0.040] * 20)
    clock.pass_time(1.5)  # nobody writes, so nobody waits
    assert strain.factor() == 1.0


def test_what_is_slow_because_of_it_is_not_taken_for_usual(clock: Clock, strain: Strain) -> None:
    write(clock, strain, [0.004] * 500)
    for _ in range(400):
        strain.factor()
        write(clock, strain, [0.012])
    assert strain.factor() > 4
    clock.pass_time(2.0)
    write(clock, strain, [0.012] * 400)  # nothing large is under way: writes do take that long now
    assert strain.factor() == 1.0
