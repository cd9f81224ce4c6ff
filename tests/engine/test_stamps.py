"""The replicated clock: what a wall clock that is set can do to it, and what it cannot."""

from __future__ import annotations

import random

import pytest

from multiraft.engine.stamps import ReplicatedClock

HOUR_S = 3_600.0
WALL_S = 1_750_000_000.0
WALL_MS = int(WALL_S * 1e3)


def test_where_nothing_is_known_it_is_the_wall_clock_but_never_before_what_was_applied() -> None:
    assert ReplicatedClock().stamp_ms(0, 5.0, WALL_S) == WALL_MS
    assert ReplicatedClock().stamp_ms(WALL_MS + 7, 5.0, WALL_S) == WALL_MS + 7


@pytest.mark.parametrize("jump_s", [HOUR_S, -HOUR_S, 365 * 24 * HOUR_S])
def test_a_leaders_wall_clock_that_is_set_moves_it_by_a_tenth_of_what_passes(jump_s: float) -> None:
    clock = ReplicatedClock()
    before = clock.stamp_ms(0, 5.0, WALL_S)
    at_once = clock.stamp_ms(before, 5.0, WALL_S + jump_s)
    assert at_once == before
    later = clock.stamp_ms(before, 105.0, WALL_S + 100 + jump_s)
    assert later - before == pytest.approx(110_000 if jump_s > 0 else 90_000, abs=2)


def test_it_reaches_the_wall_clock_in_the_end_and_stays_with_it() -> None:
    clock = ReplicatedClock()
    said = clock.stamp_ms(0, 0.0, WALL_S)
    for second in range(1, 40_000, 10):
        said = clock.stamp_ms(said, float(second), WALL_S + HOUR_S + second)
    assert said == pytest.approx(WALL_MS + (HOUR_S + 39_991) * 1e3, abs=20)


def test_a_follower_goes_on_from_the_stamps_that_it_saw_and_not_from_its_wall_clock() -> None:
    clock = ReplicatedClock()
    clock.saw(WALL_MS, 10.0)
    clock.saw(WALL_MS + 200, 10.5)  # came late: half a second has passed
    assert clock.stamp_ms(WALL_MS + 200, 11.0, WALL_S + 5 * HOUR_S) == pytest.approx(WALL_MS + 1_050, abs=1)


def test_a_stamp_that_is_ahead_is_taken_over() -> None:
    clock = ReplicatedClock()
    clock.saw(WALL_MS, 10.0)
    clock.saw(WALL_MS + 9_000, 10.5)
    assert clock.stamp_ms(0, 10.5, WALL_S) == WALL_MS + 9_000


@pytest.mark.parametrize("seed", range(20))
def test_it_never_goes_back(seed: int) -> None:
    rng = random.Random(seed)
    clock, applied, real_s, wall_s = ReplicatedClock(), 0, 0.0, WALL_S
    for _ in range(200):
        real_s += rng.choice([0.0, 0.001, 5.0])
        wall_s += rng.choice([0.0, 0.001, 5.0, -HOUR_S, HOUR_S])
        if rng.random() < 0.4:
            stamp = applied + rng.randrange(-5_000, 5_000)
            clock.saw(stamp, real_s)
            applied = max(applied, stamp)
        else:
            stamp = clock.stamp_ms(applied, real_s, wall_s)
            assert stamp >= applied
            applied = stamp
