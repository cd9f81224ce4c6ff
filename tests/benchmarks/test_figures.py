"""The arithmetic of the benchmarks: percentiles, medians, ratios, histograms, and which row has met its aim."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.aims import LIMITS, ROWS, Limit, Row, judge_limit, judge_row, wronged
from benchmarks.figures import (
    Case,
    Figure,
    fastest,
    figures_of,
    latency_buckets,
    latency_figures,
    median_of,
    percentile,
    ratio,
)
from benchmarks.sustained import BUCKET_MS, histogram_percentile, last_against_first

CASE = Case(64, 1000)


def figure(system: str, per_s: float, case: Case = CASE) -> Figure:
    return Figure(system, case, per_s, 1.0, 2.0, 3.0)


@pytest.mark.parametrize(
    ("share", "expected"),
    [(0.0, 0.0), (0.5, 500.0), (0.99, 990.0), (0.999, 999.0), (1.0, 999.0)],
)
def test_a_percentile_is_the_value_at_that_position(share: float, expected: float) -> None:
    assert percentile([float(value) for value in range(1000)], share) == expected


def test_of_no_values_there_is_no_percentile() -> None:
    with pytest.raises(ValueError, match="no values"):
        percentile([], 0.5)
    with pytest.raises(ValueError, match="no values"):
        histogram_percentile({}, 0.5)


@given(st.lists(st.floats(0, 10), min_size=1), st.floats(0, 1))
def test_a_percentile_has_that_share_of_the_values_below_it(values: list[float], share: float) -> None:
    found = percentile(sorted(values), share)
    assert sum(value < found for value in values) <= len(values) * share
    assert sum(value <= found for value in values) >= min(len(values) * share, len(values))


@given(st.lists(st.floats(0, 0.5), min_size=1, max_size=200), st.sampled_from([0.5, 0.99, 0.999]))
def test_a_percentile_of_a_histogram_is_that_of_its_values_to_a_bucket(values: list[float], share: float) -> None:
    exact_ms = percentile(sorted(values), share) * 1e3
    found_ms = histogram_percentile(latency_buckets(values, BUCKET_MS), share)
    assert exact_ms - 1e-9 <= found_ms <= exact_ms + BUCKET_MS + 1e-9


def test_latencies_become_a_rate_and_percentiles() -> None:
    found = latency_figures([0.003, 0.001, 0.002, 0.004], took_s=2.0)
    assert found["writes"] == 4
    assert found["writes_per_s"] == 2.0
    assert found["p50_ms"] == pytest.approx(3.0)
    assert found["p99_ms"] == found["p999_ms"] == pytest.approx(4.0)


def test_medians_are_of_one_system_in_one_case() -> None:
    figures = [figure("a", 1), figure("a", 9), figure("a", 2), figure("b", 50), figure("a", 70, Case(1, 1))]
    assert median_of(figures_of(figures, "a", CASE), "per_s") == 2
    assert median_of(figures_of(figures, "b", CASE), "per_s") == 50
    assert median_of(figures_of(figures, "c", CASE), "per_s") is None
    assert median_of(figures, "syncs_per_s") is None, "a field that nobody has"


def test_the_fastest_is_the_one_with_the_highest_median() -> None:
    figures = [figure("a", 10), figure("a", 10), figure("a", 99), figure("b", 20)]
    assert fastest(figures, ("a", "b", "absent"), CASE) == "b"
    assert fastest(figures, ("absent",), CASE) is None


@pytest.mark.parametrize(
    ("ours", "theirs", "expected"), [(10.0, 4.0, 2.5), (None, 4.0, None), (10.0, None, None), (10.0, 0.0, None)]
)
def test_a_ratio_needs_both(ours: float | None, theirs: float | None, expected: float | None) -> None:
    assert ratio(ours, theirs) == expected


ROW = Row("r", "work", ("bytes", "many"), CASE, ("peer",), 2.0, "what differs")


@pytest.mark.parametrize(("peer_per_s", "met"), [(50, True), (51, False), (10, True)])
def test_a_row_is_met_from_its_aim_on(peer_per_s: float, met: bool) -> None:
    found = judge_row(ROW, [figure("bytes", 100), figure("many", 40), figure("peer", peer_per_s)], {})
    assert (found.ours, found.our_value, found.peer, found.peer_value) == ("bytes", 100, "peer", peer_per_s)
    assert found.value == 100 / peer_per_s
    assert found.met is met
    assert (found.aim, found.missing) == (">= 2x", "")


def test_a_row_without_its_peer_is_neither_met_nor_unmet_and_says_why() -> None:
    found = judge_row(ROW, [figure("bytes", 100)], {"peer": "its compiler is not here"})
    assert (found.met, found.value) == (None, None)
    assert found.missing == "peer: its compiler is not here"
    assert "bytes / many: not measured" in judge_row(ROW, [figure("peer", 1)], {}).missing


def test_a_row_without_an_aim_shows_its_ratio() -> None:
    found = judge_row(replace(ROW, aim=None), [figure("bytes", 100), figure("peer", 50)], {})
    assert (found.value, found.met, found.aim) == (2.0, None, "-")


def test_a_row_may_compare_different_cases() -> None:
    other = Case(1, 64)
    row = replace(ROW, peer_case=other)
    found = judge_row(row, [figure("bytes", 100), figure("peer", 1), figure("peer", 50, other)], {})
    assert found.value == 2.0


@pytest.mark.parametrize(
    ("direction", "value", "met"),
    [("at least", 0.85, True), ("at least", 0.84, False), ("at most", 0.85, True), ("at most", 0.86, False)],
)
def test_a_limit_is_met_on_its_side(direction: str, value: float, met: bool) -> None:
    limit = Limit("l", "work", "v", 0.85, "x", "at least" if direction == "at least" else "at most")
    assert judge_limit(limit, {"v": value}, {}).met is met


def test_a_limit_that_was_not_measured_says_so() -> None:
    limit = LIMITS[0]
    assert judge_limit(limit, {}, {}).missing == "not measured in this run"
    assert judge_limit(limit, {}, {limit.value: "the disk is full"}).missing == "the disk is full"


def test_every_row_has_a_name_of_its_own() -> None:
    names = [row.name for row in ROWS] + [limit.name for limit in LIMITS]
    assert len(set(names)) == len(names)


def test_a_peer_far_below_what_it_is_known_for_is_noticed_beside_the_machine() -> None:
    figures = [figure("etcd", 900, Case(1, 1)), figure("ceiling", 910, Case(1, 1)), figure("etcd", 4_900, Case(1, 64))]
    (found,) = wronged(figures)
    assert (found.system, found.case) == ("etcd", Case(1, 64))
    assert found.share == pytest.approx(0.5)
    assert found.machine == pytest.approx(0.5)
    assert not wronged([figure("etcd", 1_128, Case(1, 1))])


@pytest.mark.parametrize(
    ("rates", "compared_s", "expected"),
    [
        ([100.0, 100.0, 50.0, 50.0], 10.0, 0.5),
        ([100.0, 80.0, 60.0, 90.0], 5.0, 0.9),  # one slice against one
        ([100.0, 80.0, 60.0, 90.0, 75.0], 60.0, 165 / 180),  # at most half of the run each
        ([100.0, 90.0], 60.0, 0.9),
    ],
)
def test_the_end_of_a_sustained_run_is_held_against_its_beginning(
    rates: list[float], compared_s: float, expected: float
) -> None:
    assert last_against_first(rates, slice_s=5.0, compared_s=compared_s) == pytest.approx(expected)


def test_one_slice_is_nothing_to_compare() -> None:
    with pytest.raises(ValueError, match="two slices"):
        last_against_first([1.0], 5.0)
