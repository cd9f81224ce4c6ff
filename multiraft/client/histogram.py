"""Latencies, counted in buckets of about 3 %: a fixed kilobyte or two whatever is put in.

Up to 64 us each microsecond has a bucket of its own; from there on each doubling is cut into 32.

Rules of this file: whole microseconds; nothing is lost or sampled.
"""

from __future__ import annotations

from typing import Final

_FINE_BITS: Final = 6
_FINE: Final = 1 << _FINE_BITS
_HALF: Final = _FINE >> 1
_BUCKETS: Final = _FINE + _HALF * 34
"""Enough for 2^40 us."""


class Histogram:
    """Counts of latencies.

    total   how many were put in
    most_us the longest
    """

    __slots__ = ("counts", "most_us", "sum_us", "total")

    def __init__(self) -> None:
        self.counts = [0] * _BUCKETS
        self.total = 0
        self.sum_us = 0
        self.most_us = 0

    def add(self, latency_us: int) -> None:
        """Count one."""
        if latency_us < _FINE:
            bucket = latency_us if latency_us > 0 else 0
        else:
            shift = latency_us.bit_length() - _FINE_BITS
            bucket = min(_HALF * shift + (latency_us >> shift), _BUCKETS - 1)
        self.counts[bucket] += 1
        self.total += 1
        self.sum_us += latency_us
        if latency_us > self.most_us:
            self.most_us = latency_us

    def merge(self, other: Histogram) -> None:
        """Count in all that another one holds."""
        self.counts = [mine + its for mine, its in zip(self.counts, other.counts, strict=True)]
        self.total += other.total
        self.sum_us += other.sum_us
        self.most_us = max(self.most_us, other.most_us)

    def quantile_us(self, share: float) -> int:
        """Return the latency that this share of all (0 to 1) stayed within; 0 of none."""
        left = max(1, round(share * self.total))
        for bucket, count in enumerate(self.counts):
            left -= count
            if left <= 0:
                return min(upper_us(bucket), self.most_us)
        return self.most_us

    def rows(self) -> list[tuple[int, int]]:
        """Return (upper bound in us, count) by doublings, from the first that holds any to the last; for people."""
        rows: dict[int, int] = {}
        for bucket, count in enumerate(self.counts):
            if count:
                bound = 1 << max(0, (upper_us(bucket) - 1).bit_length())
                rows[bound] = rows.get(bound, 0) + count
        if not rows:
            return []
        bound, last, whole = min(rows), max(rows), []
        while bound <= last:
            whole.append((bound, rows.get(bound, 0)))
            bound *= 2
        return whole


def upper_us(bucket: int) -> int:
    """Return the longest latency that a bucket counts."""
    if bucket < _FINE:
        return bucket
    shift = (bucket - _HALF) // _HALF
    return ((bucket - _HALF * shift + 1) << shift) - 1
