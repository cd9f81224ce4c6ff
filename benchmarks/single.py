"""What is measured once and not against a peer: a sustained run, idle groups, scale; and the drawing of it all.

Rules of this file: each measurement returns values by name, which `benchmarks.aims.LIMITS` holds against their limits;
what fails is named as missing, and the others go on.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from typing import Any, Final

from benchmarks.building import RESULTS, Missing
from benchmarks.idling import run_idling
from benchmarks.sustained import run_sustained

IDLE_S: Final = 8.0


def measure(options: argparse.Namespace) -> tuple[dict[str, Any], dict[str, str]]:
    """Measure what the options ask for; return the values, and why others are missing."""
    values: dict[str, Any] = {}
    missing: dict[str, str] = {}
    wanted: list[tuple[tuple[str, ...], Callable[[], dict[str, Any]]]] = []
    if options.sustained:
        wanted.append((("sustained_ratio", "sustained_p99_ms"), lambda: run_sustained(options.sustained)))
    if options.full:
        wanted.append((("idle_cpu_percent",), lambda: run_idling(IDLE_S)))
    for names, run in wanted:
        try:
            values.update(run())
        except (Missing, RuntimeError, OSError, TimeoutError) as why:
            print(f"{', '.join(names)}: {why}", file=sys.stderr)
            missing.update(dict.fromkeys(names, str(why)))
    return values, missing


def draw(found: dict[str, Any]) -> list[str]:
    """Draw the plots; return the paths, or why there are none."""
    try:
        from benchmarks.plots import draw_all
    except ImportError as why:
        return [f"no plots: {why} (matplotlib is in the extra `bench`)"]
    return [str(path) for path in draw_all(found, RESULTS)]
