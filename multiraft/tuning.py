"""What a process that does nothing but run a node should be set to; measured in benchmarks/README.md.

Rules of this file: nothing here is done behind a program's back: these settings are the whole process's, so a program
asks for them (`NodeConfig.tune_gc`, `event_loop`), and our own servers do.
"""

from __future__ import annotations

import asyncio
import gc
import sys
from collections.abc import Callable
from typing import Final

SWITCH_INTERVAL_S: Final = 0.0005
"""A writer thread whose sync is done waits this long, at most, for a busy loop to let it go on (Python's own: 5 ms)."""
_THRESHOLDS: Final = (100_000, 50, 100)


def tune_process() -> None:
    """Set this process up for a node: call it once, when the node is ready; what `NodeConfig.tune_gc` does.

    What is alive by now is left out of garbage collections, which become rare: a node's memory is nearly all
    reference-counted. The interpreter's switch interval becomes SWITCH_INTERVAL_S.
    """
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    gc.collect()
    gc.freeze()
    gc.set_threshold(*_THRESHOLDS)


def tuned() -> bool:
    """Whether `tune_process` has set this process up."""
    return gc.get_threshold() == _THRESHOLDS


def event_loop() -> Callable[[], asyncio.AbstractEventLoop]:
    """Return what makes the event loop, for `asyncio.Runner(loop_factory=...)`: uvloop's where it is installed.

    `pip install multiraft[fast]` installs it. Without it asyncio's own does the same work, for about a quarter more.
    """
    try:
        import uvloop
    except ImportError:
        return asyncio.new_event_loop
    factory: Callable[[], asyncio.AbstractEventLoop] = uvloop.new_event_loop
    return factory


def loop_kind(loop: asyncio.AbstractEventLoop) -> str:
    """Return whose event loop this is, for people: "uvloop", "asyncio", or the name of another class."""
    whose = type(loop).__module__.partition(".")[0]
    return whose if whose in ("asyncio", "uvloop") else type(loop).__name__
