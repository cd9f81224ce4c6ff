"""Callbacks of those who wait for many commands: called between two turns, all of a turn at one wake-up of the loop.

Rules of this file: what a callback raises is logged and goes no further; in order.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Final

from multiraft.engine.waiting import Result

log: Final = logging.getLogger("multiraft.engine")


class Telling:
    """What is still to be told."""

    __slots__ = ("_loop", "_ready")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._ready: list[tuple[Callable[[list[Result]], None], list[Result]]] = []

    def later(self, callback: Callable[[list[Result]], None], results: list[Result]) -> None:
        """Call `callback(results)` soon."""
        if not self._ready:
            self._loop.call_soon(self._run)
        self._ready.append((callback, results))

    def _run(self) -> None:
        ready, self._ready = self._ready, []
        for callback, results in ready:
            try:
                callback(results)
            except Exception:
                log.exception("a callback of submitted commands raised; the node goes on")
