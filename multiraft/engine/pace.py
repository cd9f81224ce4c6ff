"""How fast states may be made, sent, fetched and taken in, so that the groups that serve meanwhile hardly notice.

Each way that bytes take has a bound on bytes a second: a token bucket, kept as the time at which it is full again.
While the log's synced writes take longer than usual on this node, everything counts for more than it is: the disk and
the loop are shared with them, and nobody waits for a state as somebody waits for a write.

Rules of this file: no timers; who takes something waits by itself; what is slowed down still gets on.
"""

from __future__ import annotations

from math import inf
from typing import Final

from multiraft.ports import Clock

BURST_S: Final = 0.1
"""What was not taken in so many seconds may be taken at once."""
SHORT_BURST_S: Final = 0.01
"""The same where each piece holds the loop for a while."""
MOST: Final = 16.0
"""Bytes count for no more than so many times themselves."""
_HARDLY: Final = 1.25
"""Writes that take so many times as long as usual are nothing unusual."""
_RECENT: Final = 0.2
_USUAL: Final = 1 / 64
_USUAL_MEANWHILE: Final = 1 / 2048
_NOW_S: Final = 1.0


class Strain:
    """How much longer the log's synced writes take now than they usually do, when nothing large is under way.

    clock  in seconds
    """

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self._usual_s = 0.0
        self._recent_s = 0.0
        self._noted_s = -inf
        self._bulk_s = -inf

    def noted(self, took_s: float) -> None:
        """A synced write took so long."""
        now_s = self.clock()
        quiet = now_s - took_s - self._bulk_s > _NOW_S  # since before that write began
        if not self._usual_s:
            self._usual_s = took_s
        self._usual_s += (took_s - self._usual_s) * (_USUAL if quiet else _USUAL_MEANWHILE)
        if now_s - self._noted_s > _NOW_S:
            self._recent_s = took_s
        self._recent_s += (took_s - self._recent_s) * _RECENT
        self._noted_s = now_s

    def factor(self) -> float:
        """Return for how many times its bytes something large counts now: from 1 to MOST."""
        now_s = self._bulk_s = self.clock()
        if now_s - self._noted_s > _NOW_S or self._recent_s <= _HARDLY * self._usual_s:
            return 1.0  # where nothing is written nobody waits
        return min(MOST, (self._recent_s / self._usual_s) ** 2) if self._usual_s else MOST


class Pace:
    """At most `bytes_per_s` on the average, and what `burst_s` allows at once beside that; less under strain."""

    def __init__(self, bytes_per_s: float, strain: Strain, burst_s: float = BURST_S) -> None:
        self._bytes_per_s = bytes_per_s
        self._burst_s = burst_s
        self._strain = strain
        self._paid_s = strain.clock() - burst_s

    def take(self, size_bytes: int) -> float:
        """Note that so many bytes have passed; return for how many seconds nothing more may pass."""
        counted = size_bytes * self._strain.factor()
        now_s = self._strain.clock()
        self._paid_s = max(self._paid_s, now_s - self._burst_s) + counted / self._bytes_per_s
        return max(0.0, self._paid_s - now_s)
