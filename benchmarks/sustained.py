"""Writes at full load for minutes, with compaction and snapshots as they come: does the rate last, and what is the p99?

64 groups, 1000 writes in flight, in slices of a few seconds, each of which reports its rate and a histogram of its
latencies. The first minute is held against the last; in a run shorter than two minutes, the first half against the
last.

Rules of this file: the settings of the nodes are their defaults; every replica must have applied the same at the end;
percentiles over all of it come from the histograms of the slices, not from averages of percentiles.
"""

from __future__ import annotations

import math
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Final

from benchmarks.cluster import NODES
from benchmarks.hosting import WARM_UP_S
from benchmarks.systems import PAYLOAD_BYTES, OwnHost

GROUPS: Final = 64
IN_FLIGHT: Final = 1000
SLICE_S: Final = 5.0
COMPARED_S: Final = 60.0
BUCKET_MS: Final = 0.1


def histogram_percentile(buckets: Mapping[int, int], share: float) -> float:
    """Return the upper edge, in ms, of the bucket in which the value at floor(count * share) lies.

    Raises ValueError when there is none.
    """
    count = sum(buckets.values())
    if not count:
        raise ValueError("a percentile of no values")
    position = min(int(count * share), count - 1)
    seen = 0
    for bucket in sorted(buckets):
        seen += buckets[bucket]
        if seen > position:
            return (bucket + 1) * BUCKET_MS
    raise ValueError("unreachable: the buckets hold fewer values than they count")


def last_against_first(rates: Sequence[float], slice_s: float, compared_s: float = COMPARED_S) -> float:
    """Return the mean rate of the last so many seconds over that of the first; of at most half the run each.

    Raises ValueError when there are fewer than two slices.
    """
    if len(rates) < 2:
        raise ValueError("two slices are needed to compare them")
    count = max(1, min(math.ceil(compared_s / slice_s), len(rates) // 2))
    return (sum(rates[-count:]) / count) / (sum(rates[:count]) / count)


def run_sustained(seconds: float, level: str = "bytes", slice_s: float = SLICE_S) -> dict[str, Any]:
    """Load our nodes for so many seconds; return the values of the rows, and the slices for the plot."""
    total: Counter[int] = Counter()
    slices: list[dict[str, float]] = []
    with OwnHost(GROUPS) as host:
        cluster = host._started
        load = {"op": "load", "level": level, "in_flight": IN_FLIGHT, "payload": PAYLOAD_BYTES, "groups": GROUPS}
        cluster.ask(NODES[0], **load, seconds=WARM_UP_S)
        elapsed_s = 0.0
        while elapsed_s < seconds:
            found = cluster.ask(NODES[0], **load, seconds=slice_s, bucket_ms=BUCKET_MS)
            elapsed_s += found["seconds"]
            total.update({int(bucket): count for bucket, count in found["buckets"].items()})
            slices.append(
                {"at_s": elapsed_s, "per_s": found["writes_per_s"], "p50_ms": found["p50_ms"],
                 "p99_ms": found["p99_ms"], "p999_ms": found["p999_ms"]}
            )  # fmt: skip
            print(f"sustained {elapsed_s:5.0f} / {seconds:.0f} s  {found['writes_per_s']:10,.0f}/s", file=sys.stderr)
        host.check_alike()
    return {
        "sustained_s": elapsed_s,
        "sustained_level": level,
        "sustained_ratio": last_against_first([each["per_s"] for each in slices], slice_s),
        "sustained_p99_ms": histogram_percentile(total, 0.99),
        "sustained_p999_ms": histogram_percentile(total, 0.999),
        "sustained_slices": slices,
    }
