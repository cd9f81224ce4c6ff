"""What a process that does nothing but run a node should be set to; measured in benchmarks/README.md.

Rules of this file: nothing here is done behind a program's back: these settings are the whole process's.
"""

from __future__ import annotations

import gc
import sys
from typing import Final

SWITCH_INTERVAL_S: Final = 0.0005
"""A writer thread whose sync is done waits this long, at most, for a busy loop to let it go on (Python's own: 5 ms)."""
_THRESHOLDS: Final = (100_000, 50, 100)


def tune_process() -> None:
    """Set this process up for a node: call it once, when the node is ready.

    What is alive by now is left out of garbage collections, which become rare: a node's memory is nearly all
    reference-counted. The interpreter's switch interval becomes SWITCH_INTERVAL_S.
    """
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    gc.collect()
    gc.freeze()
    gc.set_threshold(*_THRESHOLDS)
