"""An asyncio event loop on virtual time.

The loop is asyncio's own; only its selector and its clock are replaced: where the real loop would sleep until the
next timer, this one adds that time to its clock and goes on. So timers fire in their order, nothing waits, and one
seed gives one run.

Rules of this file: code that runs on it must not use threads, sockets or the real clock; a loop with nothing to do
and nothing to wait for is a deadlock, and is reported as one.
"""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


class Deadlock(RuntimeError):
    """Everything waits for something, and nothing is left that could happen."""


class _VirtualSelector(selectors.SelectSelector):
    """Never waits: moves the clock by the time it was allowed to wait."""

    def __init__(self) -> None:
        super().__init__()
        self.now_s = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is None:
            raise Deadlock("no timer is set and nothing is ready: what the program waits for cannot come")
        if timeout > 0:
            self.now_s += timeout
        return []


class VirtualLoop(asyncio.SelectorEventLoop):
    """`time()` starts at 0 and moves only when there is nothing else to do."""

    def __init__(self) -> None:
        self._virtual = _VirtualSelector()
        super().__init__(self._virtual)

    def time(self) -> float:
        return self._virtual.now_s

    def pass_time(self, seconds: float) -> None:
        """Let time pass while nothing can run: a process that was stopped, or a machine that slept."""
        self._virtual.now_s += seconds


def run_virtual(main: Coroutine[Any, Any, T]) -> T:
    """Run `main` to its end on a fresh VirtualLoop and return its result; cancels what it leaves behind.

    Raises what `main` raises; Deadlock when nothing can happen any more.
    """
    loop = VirtualLoop()
    try:
        asyncio.set_event_loop(loop)
        try:
            return loop.run_until_complete(main)
        finally:
            left = asyncio.all_tasks(loop)
            for task in left:
                task.cancel()
            loop.run_until_complete(asyncio.gather(*left, return_exceptions=True))
    finally:
        asyncio.set_event_loop(None)
        loop.close()
