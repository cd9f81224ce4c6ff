"""The replicated clock: the time that commands are told, the same on every replica.

A leader stamps each record; whoever applies it takes the stamp, unless an earlier one was higher. So the clock of a
group never goes back, and what expires by it expires at the same entry everywhere.

A wall clock may be set, by a lot and in either direction, and what lives by this clock must not end all at once for
that. So the clock runs on the time that never jumps, on followers too, who know it from the stamps that they see; it
only leans toward the wall clock, a tenth faster or slower than time passes. The wall clock itself is taken where
nothing better is known: by a replica that has not seen a stamp of a leader of this run, as after a start of all nodes.

    what it says   at a leader's stamp: the stamp, or what it said already, if that is more
                   as time passes: that much more; a leader adds or takes away a tenth of it, toward its wall clock

Rules of this file: numbers in, numbers out; it never goes back.
"""

from __future__ import annotations

from typing import Final

_LEAN: Final = 0.1


class ReplicatedClock:
    """The clock of one group, as far as one replica knows it."""

    __slots__ = ("_at_s", "_known", "_now_ms")

    def __init__(self) -> None:
        self._known = False
        self._now_ms = 0.0
        self._at_s = 0.0

    def saw(self, stamp_ms: int, real_s: float) -> None:
        """A leader of this run has said `stamp_ms`; now it is `real_s` on the clock that never jumps."""
        now_ms = self._now_ms
        if real_s > self._at_s:
            now_ms += (real_s - self._at_s) * 1e3
            self._at_s = real_s
        self._now_ms = float(stamp_ms) if stamp_ms > now_ms or not self._known else now_ms
        self._known = True

    def stamp_ms(self, least_ms: int, real_s: float, wall_s: float) -> int:
        """Return what to stamp a record with: at least `least_ms`, which is what was applied last."""
        now_ms, wall_ms = self._now_ms, wall_s * 1e3
        if not self._known:
            self._known = True
            now_ms = wall_ms
            if real_s > self._at_s:
                self._at_s = real_s
        elif real_s > self._at_s:
            passed_ms = (real_s - self._at_s) * 1e3
            self._at_s = real_s
            lean_ms = passed_ms * _LEAN
            now_ms += passed_ms
            off_ms = wall_ms - now_ms
            if off_ms > lean_ms:
                now_ms += lean_ms
            elif off_ms < -lean_ms:
                now_ms -= lean_ms
            else:
                now_ms += off_ms
        self._now_ms = now_ms = now_ms if now_ms > least_ms else float(least_ms)
        return int(now_ms)
