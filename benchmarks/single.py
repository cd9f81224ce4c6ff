"""What is measured once and not against a peer: a sustained run, idle groups, scale; and the drawing of it all.

Rules of this file: each measurement returns values by name, which `benchmarks.aims.LIMITS` holds against their limits;
what fails is named as missing, and the others go on.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterable
from typing import Any, Final

from benchmarks.building import RESULTS, Missing
from benchmarks.idling import run_idling
from benchmarks.scaling import run_loss, run_many, run_very_many
from benchmarks.sustained import run_sustained

IDLE_S: Final = 6.0

SCALE: Final[tuple[tuple[tuple[str, ...], Callable[[], dict[str, Any]]], ...]] = (
    (("node_loss_timeouts", "node_loss_lag_ms"), run_loss),
    (("idle_10000_cpu_percent", "idle_10000_down_cpu_percent", "active_10000_ratio"), run_many),
    (("idle_100000_kb", "idle_100000_start_s"), run_very_many),
)
"""Measurements of scale, each with the values of rows that it gives."""
SUSTAINED: Final = ("sustained_ratio", "sustained_p99_ms")


def chosen(options: argparse.Namespace) -> list[tuple[tuple[str, ...], Callable[[], dict[str, Any]]]]:
    """Return the measurements that the options ask for, by size or by the rows that they name."""
    named = {limit.value for limit in options.limits} if options.named else set()
    wanted = [(names, run) for names, run in SCALE if options.scale or named.intersection(names)]
    if options.full and not options.named:
        wanted.append((("idle_cpu_percent",), lambda: run_idling(IDLE_S)))
    if options.sustained or named.intersection(SUSTAINED):
        wanted.append((SUSTAINED, lambda: run_sustained(options.sustained or 60.0)))
    return wanted


def measure(
    wanted: Iterable[tuple[tuple[str, ...], Callable[[], dict[str, Any]]]],
) -> tuple[dict[str, Any], dict[str, str]]:
    """Run the measurements; return their values, and why others are missing."""
    values: dict[str, Any] = {}
    missing: dict[str, str] = {}
    for names, run in wanted:
        began_s = time.monotonic()
        try:
            values.update(run())
            print(f"{', '.join(names)}: took {time.monotonic() - began_s:.0f} s", file=sys.stderr)
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
