"""What is measured, and its arithmetic: percentiles, medians over rounds, ratios between systems.

A measurement (`Figure`) belongs to a case: how many groups, how many calls in flight, and whether they write or read.
Every system is measured in the same cases, several times, in turn with the others; what is compared are medians of the
same case in the same run.

Rules of this file: pure functions of their arguments. Of no values there is no figure: None, never 0.
"""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

Op: TypeAlias = Literal["writes", "reads", "set", "get", "incr"]
"""The last three are commands of Redis."""


@dataclass(frozen=True, slots=True, order=True)
class Case:
    """What a system was asked to do."""

    groups: int
    in_flight: int
    op: Op = "writes"


@dataclass(frozen=True, slots=True)
class Figure:
    """One measurement of a system.

    per_s               acknowledged calls a second
    p50_ms ... p999_ms  from a client's call to its answer
    leader_cpu_us       CPU time of the process that leads, per call; clients in process included
    all_cpu_us          that of all processes of the system, per call, clients of their own included
    syncs_per_s         syncs of the leader's store, where it counts them
    flushes_per_s       flushes of the disk, of whatever process; None where the system does not tell
    turns_per_s         passes of our engine
    """

    system: str
    case: Case
    per_s: float
    p50_ms: float
    p99_ms: float
    p999_ms: float | None
    leader_cpu_us: float | None = None
    all_cpu_us: float | None = None
    syncs_per_s: float | None = None
    flushes_per_s: float | None = None
    turns_per_s: float | None = None


def percentile(ordered: Sequence[float], share: float) -> float:
    """Return the value of a sorted sequence below which `share` (0 to 1) of the values lie.

    It is the one at position floor(count * share), at most the last. Raises ValueError when there is none.
    """
    if not ordered:
        raise ValueError("a percentile of no values")
    return ordered[min(int(len(ordered) * share), len(ordered) - 1)]


def latency_buckets(latencies_s: Iterable[float], bucket_ms: float) -> dict[int, int]:
    """Count latencies (seconds) by bucket: bucket n holds those from n to n + 1 times `bucket_ms`."""
    per_s = 1e3 / bucket_ms
    return Counter(int(latency * per_s) for latency in latencies_s)


def latency_figures(latencies_s: list[float], took_s: float) -> dict[str, float]:
    """Sort the latencies (seconds) of what was done within `took_s`, and return count, rate and percentiles."""
    latencies_s.sort()
    count = len(latencies_s)
    return {
        "writes": count,
        "seconds": took_s,
        "writes_per_s": count / took_s,
        "p50_ms": percentile(latencies_s, 0.5) * 1e3,
        "p99_ms": percentile(latencies_s, 0.99) * 1e3,
        "p999_ms": percentile(latencies_s, 0.999) * 1e3,
    }


def figures_of(figures: Iterable[Figure], system: str, case: Case) -> list[Figure]:
    """Return the measurements of one system in one case, in the order in which they were made."""
    return [figure for figure in figures if figure.system == system and figure.case == case]


def median_of(figures: Iterable[Figure], name: str) -> float | None:
    """Return the median of a field over those measurements that have it; None when none has."""
    values = [value for figure in figures if (value := getattr(figure, name)) is not None]
    return float(statistics.median(values)) if values else None


def fastest(figures: Sequence[Figure], systems: Iterable[str], case: Case) -> str | None:
    """Return which of the systems has the highest median rate in that case; None when none was measured."""
    rates = {system: median_of(figures_of(figures, system, case), "per_s") for system in systems}
    measured = {system: rate for system, rate in rates.items() if rate is not None}
    return max(measured, key=lambda system: measured[system]) if measured else None


def ratio(ours: float | None, theirs: float | None) -> float | None:
    """Return how many times `theirs` ours is; None when one of them was not measured."""
    return None if ours is None or not theirs else ours / theirs


def figure_from(system: str, case: Case, found: dict[str, Any], **more: float | None) -> Figure:
    """Make a measurement of what a node answered to `load`."""
    return Figure(
        system,
        case,
        found["writes_per_s"],
        found["p50_ms"],
        found["p99_ms"],
        found["p999_ms"],
        **more,
    )
