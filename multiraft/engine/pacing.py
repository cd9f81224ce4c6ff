"""The engine's sense of time: a clock that forgives the loop its own lateness, and the one timer of the node.

Election deadlines must measure the silence of peers, not the sleep of this process. The patience clock is the real
clock minus all time that the loop was late; every election deadline is judged by it, so a process that was stopped
for ten seconds does not wake up and depose its leaders. It only ever runs slower than the real clock: promises get
longer, never shorter. Leases, which must not get longer, are judged by the real clock.

Rules of this file: one timer handle for the whole node; no group has a timer of its own.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from math import inf
from typing import Final

from multiraft.ports import Clocks

_FORGIVEN_FROM_S: Final = 0.02
_WINDOW_S: Final = 1.0
_LEAST_S: Final = 1e-6
"""A loop fires timers up to its clock's resolution early; time must have passed before the timer is set again."""


class Pacing:
    """The patience clock, the timer, and how busy and how late the loop was during the last second."""

    def __init__(self, clocks: Clocks, loop: asyncio.AbstractEventLoop, wake: Callable[[], None]) -> None:
        self._clock = clocks.real
        self._stopwatch = clocks.effort
        self._loop = loop
        self._wake = wake
        self._stalled_s = 0.0
        self._handle: asyncio.TimerHandle | None = None
        self._due_s = inf
        self.turns = 0
        self._busy_s = 0.0
        self._lag_s = 0.0
        self._window_began_s = clocks.real()
        self._window: tuple[float, float] = (0.0, 0.0)

    def now(self) -> float:
        """Seconds on the patience clock.

        That the time at which it wanted to be woken is past tells that this process was late, whoever looks first:
        what a stopped process finds in its queue when it goes on may run before the timer does.
        """
        now = self._clock() - self._stalled_s
        late_s = now - self._due_s
        if late_s > self._lag_s:
            self._lag_s = late_s
        if late_s > _FORGIVEN_FROM_S:
            self._stalled_s += late_s
            return self._due_s
        return now

    def wake_at(self, due_s: float) -> None:
        """Have `wake` called when the patience clock reaches `due_s`, in place of what was set before."""
        now = self.now()
        if self._handle is not None:
            if self._due_s == due_s:
                return
            self._handle.cancel()
        self._due_s = due_s
        self._handle = self._loop.call_later(max(_LEAST_S, due_s - now), self._fired)

    def cancel(self) -> None:
        self._due_s = inf
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None

    def _fired(self) -> None:
        self._handle = None
        self._wake()

    def turn_took(self, began_s: float) -> None:
        """Note a turn that began at stopwatch `began_s` and ends now."""
        self.turns += 1
        self._busy_s += self._stopwatch() - began_s

    def load(self) -> tuple[float, float]:
        """Return (share of time spent in turns, longest lateness in seconds) of the last full second or so."""
        span_s = self._clock() - self._window_began_s
        if span_s >= _WINDOW_S:
            self._window = (min(1.0, self._busy_s / span_s), self._lag_s)
            self._window_began_s += span_s
            self._busy_s = self._lag_s = 0.0
        return self._window
