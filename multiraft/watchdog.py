"""The watchdog: a thread that says which command or query holds the loop, and where in the program it is.

A loop that is held can say nothing itself: no beat leaves, no peer is heard. The thread looks now and then at what each
engine of the process is doing (`engine.doing.Doing`); what is the same call for longer than it should take is named
once, with the stack of the loop's thread.

Rules of this file: one thread for all nodes of the process, while there is one that wants to be watched; it only looks.
"""

from __future__ import annotations

import logging
import sys
import threading
import time
import traceback
from dataclasses import dataclass
from typing import Final

from multiraft.engine.doing import Doing

_LOOKS: Final = 3
"""How often a call that is too slow by a hair has been looked at."""
_LONGEST_WAIT_S: Final = 1.0
_IDLE_WAIT_S: Final = 0.25
"""While nothing is done at all it is looked at more and more rarely, down to this: idle nodes should cost nothing."""
_FRAMES: Final = 20
log: Final = logging.getLogger("multiraft.watchdog")


@dataclass(slots=True)
class Watched:
    """slow_s: longer than this no call should take. seen, since_s, told: the call met last, when, and said so."""

    doing: Doing
    thread_id: int
    slow_s: float
    seen: tuple[int, int] | None = None
    since_s: float = 0.0
    told: bool = False


class Watchdog:
    """Watches the engines of one process."""

    def __init__(self) -> None:
        self._watched: dict[int, Watched] = {}
        self._thread: threading.Thread | None = None
        self._changed = threading.Event()

    def watch(self, doing: Doing, slow_s: float) -> None:
        """Look at `doing` from now on, which the calling thread writes."""
        self._watched = {**self._watched, id(doing): Watched(doing, threading.get_ident(), slow_s)}
        self._changed.set()
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="multiraft watchdog", daemon=True)
            self._thread.start()

    def forget(self, doing: Doing) -> None:
        """Look at it no longer; the thread has ended on return where it was the last. Idempotent."""
        self._watched = {key: one for key, one in self._watched.items() if key != id(doing)}
        thread = self._thread
        if not self._watched and thread is not None:
            self._thread = None
            self._changed.set()
            thread.join()

    def _run(self) -> None:
        calls, wait_s = -1, 0.0
        while watched := self._watched:
            shortest_s = min(_LONGEST_WAIT_S, *(one.slow_s / _LOOKS for one in watched.values()))
            before, calls = calls, sum(one.doing.calls for one in watched.values())
            idle = calls == before and all(one.doing.now() is None for one in watched.values())
            wait_s = min(max(2 * wait_s, shortest_s), max(_IDLE_WAIT_S, shortest_s)) if idle else shortest_s
            self._changed.wait(wait_s)
            self._changed.clear()
            now_s = time.monotonic()
            for one in watched.values():
                look(one, now_s)


def look(one: Watched, now_s: float) -> None:
    """Look at what is done at `now_s`, seconds; say so if it is the same for longer than it should be."""
    call = one.doing.now()
    if call is None or call != one.seen:
        one.seen, one.since_s, one.told = call, now_s, False
    elif not one.told and now_s - one.since_s >= one.slow_s:
        frame = sys._current_frames().get(one.thread_id)
        text = one.doing.text()
        if frame is None or one.doing.now() != call:
            return
        one.told = True
        stack = "".join(traceback.format_stack(frame, None)[-_FRAMES:])
        held_ms = (now_s - one.since_s) * 1e3
        log.warning("%s holds the loop for %.0f ms already; it is here:\n%s", text, held_ms, stack)


WATCHDOG: Final = Watchdog()
"""The one of this process."""
