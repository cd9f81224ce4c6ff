"""The wheel: one live deadline per group, in order, in bounded memory; checked against a plain dictionary."""

from __future__ import annotations

import math
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from multiraft.engine.wheel import Wheel
from multiraft.errors import InvariantViolation


def test_groups_come_out_by_deadline_then_by_id_and_once() -> None:
    wheel = Wheel()
    for group_id, deadline_s in ((7, 2.0), (5, 1.0), (3, 2.0), (9, 3.0)):
        wheel.arm(group_id, deadline_s)
    assert wheel.next_deadline() == 1.0
    assert wheel.expired(0.5) == []
    assert wheel.expired(2.0) == [5, 3, 7]
    assert wheel.expired(2.0) == []
    assert wheel.next_deadline() == 3.0
    assert len(wheel) == 1


@pytest.mark.parametrize("second_s", [0.5, 5.0])
def test_arming_again_replaces_the_deadline_whether_earlier_or_later(second_s: float) -> None:
    wheel = Wheel()
    wheel.arm(1, 2.0)
    wheel.arm(1, second_s)
    assert wheel.next_deadline() == second_s
    assert wheel.expired(second_s - 0.1) == []
    assert wheel.expired(second_s) == [1]
    assert wheel.expired(10.0) == []


def test_a_disarmed_group_does_not_come_out() -> None:
    wheel = Wheel()
    wheel.arm(1, 1.0)
    wheel.arm(2, 2.0)
    wheel.disarm(1)
    wheel.disarm(3)
    assert 1 not in wheel
    assert 2 in wheel
    assert wheel.next_deadline() == 2.0
    assert wheel.expired(5.0) == [2]


def test_an_infinite_deadline_is_none() -> None:
    wheel = Wheel()
    wheel.arm(1, 1.0)
    wheel.arm(1, math.inf)
    assert len(wheel) == 0
    assert wheel.next_deadline() == math.inf
    assert wheel.expired(math.inf) == []


def test_a_deadline_that_is_not_a_number_is_refused() -> None:
    with pytest.raises(InvariantViolation):
        Wheel().arm(1, math.nan)


@pytest.mark.parametrize("rearm", [True, False])
def test_memory_follows_the_armed_groups_not_their_history(rearm: bool) -> None:
    wheel = Wheel()
    rng = Random(1)
    for round_number in range(10_000):
        wheel.arm(round_number % 100, 100.0 + rng.random())
        if not rearm:
            wheel.disarm(round_number % 100)
    assert len(wheel) == (100 if rearm else 0)
    assert len(wheel._heap) <= 200


_STEPS = st.lists(
    st.tuples(st.sampled_from(["arm", "disarm", "expire"]), st.integers(1, 5), st.integers(0, 20)), max_size=60
)


@given(_STEPS)
def test_agrees_with_a_dictionary_searched_each_time(steps: list[tuple[str, int, int]]) -> None:
    wheel, naive = Wheel(), dict[int, float]()
    for action, group_id, time_s in steps:
        if action == "arm":
            wheel.arm(group_id, time_s)
            naive[group_id] = time_s
        elif action == "disarm":
            wheel.disarm(group_id)
            naive.pop(group_id, None)
        else:
            due = sorted((deadline_s, one) for one, deadline_s in naive.items() if deadline_s <= time_s)
            assert wheel.expired(time_s) == [one for _, one in due]
            for _, one in due:
                del naive[one]
        assert wheel.next_deadline() == min(naive.values(), default=math.inf)
        assert len(wheel) == len(naive)
