"""A bound on bytes a second, shared by all that pass here: a token bucket, kept as the time at which it is full again.

Rules of this file: no timers; who takes something waits by itself.
"""

from __future__ import annotations

from typing import Final

from multiraft.ports import Clock

BURST_S: Final = 0.1
"""What was not taken in so many seconds may be taken at once."""


class Pace:
    """At most `bytes_per_s` on the average, and what BURST_S allows at once beside that."""

    def __init__(self, bytes_per_s: int, clock: Clock) -> None:
        self._bytes_per_s = bytes_per_s
        self._clock = clock
        self._paid_s = clock() - BURST_S

    def take(self, size_bytes: int) -> float:
        """Note that so many bytes have passed; return for how many seconds nothing more may pass."""
        now_s = self._clock()
        self._paid_s = max(self._paid_s, now_s - BURST_S) + size_bytes / self._bytes_per_s
        return max(0.0, self._paid_s - now_s)
