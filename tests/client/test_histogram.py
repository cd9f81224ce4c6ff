"""Latencies in buckets: nothing is lost, and every figure is right within the width of a bucket."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from multiraft.client.histogram import Histogram, upper_us

latencies = st.lists(st.integers(0, 2**36), min_size=1, max_size=200)


def counted(values: list[int]) -> Histogram:
    histogram = Histogram()
    for value in values:
        histogram.add(value)
    return histogram


@given(latencies, st.floats(0, 1))
def test_a_quantile_is_right_within_four_percent(values: list[int], share: float) -> None:
    exact = sorted(values)[max(1, round(share * len(values))) - 1]
    assert exact <= counted(values).quantile_us(share) <= exact * 1.04 + 1


@given(latencies)
def test_nothing_is_lost(values: list[int]) -> None:
    histogram = counted(values)
    assert histogram.total == sum(histogram.counts) == len(values)
    assert histogram.sum_us == sum(values)
    assert histogram.most_us == histogram.quantile_us(1.0) == max(values)
    assert sum(count for _, count in histogram.rows()) == len(values)


@given(latencies, latencies)
def test_two_together_are_as_one(left: list[int], right: list[int]) -> None:
    both = counted(left)
    both.merge(counted(right))
    whole = counted(left + right)
    assert (both.counts, both.total, both.most_us) == (whole.counts, whole.total, whole.most_us)


def test_buckets_follow_each_other_without_gap() -> None:
    bounds = [upper_us(bucket) for bucket in range(600)]
    assert bounds == sorted(set(bounds))
    for bound in bounds:
        assert counted([bound]).quantile_us(0.5) == bound
        assert counted([bound + 1]).counts != counted([bound]).counts


def test_rows_are_doublings_without_holes() -> None:
    assert counted([3, 3, 100, 100_000]).rows()[0] == (4, 2)
    bounds = [bound for bound, _ in counted([3, 100_000]).rows()]
    assert all(after == 2 * before for before, after in itertools.pairwise(bounds))
    assert Histogram().rows() == []


def test_of_none_there_is_nothing_to_say() -> None:
    assert Histogram().quantile_us(0.99) == 0


def test_a_clock_that_went_back_counts_as_nothing() -> None:
    assert counted([-5]).quantile_us(1.0) == 0
