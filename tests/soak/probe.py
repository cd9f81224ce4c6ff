"""How a node fares while something else goes on: its loop's lateness, and how long small writes take.

Rules of this file: what is measured is measured inside the node's process, by its own clock; one write at a time for
each name, so that a pause is seen by whoever waits for it and not hidden by who comes after.
"""

from __future__ import annotations

import asyncio
import time
from typing import Any, Final

from multiraft.errors import MultiRaftError
from tests.soak.machine import Soak

_TICK_S: Final = 0.005
_PAUSE_S: Final = 0.01


class Probe:
    """Writes to `names`, and looks at the loop, from `begin` to `end`. Without names it only looks at the loop."""

    def __init__(self, store: type[Soak], names: list[str]) -> None:
        self._store = store
        self._names = names
        self._lags_s: list[float] = []
        self._writes_s: list[float] = []
        self._failed = 0
        self._tasks: list[asyncio.Task[None]] = []

    def begin(self) -> None:
        works = [self._look(), *[self._write(name) for name in self._names]]
        self._tasks = [asyncio.create_task(work) for work in works]

    async def end(self) -> dict[str, Any]:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        return {
            "lag_ms": max(self._lags_s, default=0.0) * 1e3,
            "lag_p99_ms": quantile(self._lags_s, 0.99) * 1e3,
            "writes": len(self._writes_s),
            "failed": self._failed,
            "p50_ms": quantile(self._writes_s, 0.5) * 1e3,
            "p99_ms": quantile(self._writes_s, 0.99) * 1e3,
            "longest_ms": max(self._writes_s, default=0.0) * 1e3,
        }

    async def _look(self) -> None:
        while True:
            due = time.perf_counter() + _TICK_S
            await asyncio.sleep(_TICK_S)
            self._lags_s.append(max(0.0, time.perf_counter() - due))

    async def _write(self, name: str) -> None:
        while True:
            began = time.perf_counter()
            try:
                await self._store.add(name)
            except MultiRaftError:
                self._failed += 1
            else:
                self._writes_s.append(time.perf_counter() - began)
            await asyncio.sleep(_PAUSE_S)


def quantile(values: list[float], share: float) -> float:
    """Return the value that this share of all stayed within; 0 of none."""
    ranked = sorted(values)
    return ranked[min(len(ranked) - 1, int(share * len(ranked)))] if ranked else 0.0
