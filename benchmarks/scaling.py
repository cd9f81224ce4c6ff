"""The rows of scale: benchmarks.scale, run as a process of its own, and its figures as values for the table.

Rules of this file: of several nodes the worst counts; the ceiling of 10,000 active groups is measured right after them.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import Mapping
from typing import Any, Final

from benchmarks.ceiling import CeilingOptions, run_ceiling
from benchmarks.nodes import ROOT

MANY: Final = 10_000
VERY_MANY: Final = 100_000
LOST: Final = 3_000
ELECTION_TIMEOUT_S: Final = 1.0
"""What nodes have by default."""
_PATIENCE_S: Final = 600
_ACTIVE_S: Final = 4.0


def scale(groups: int, *parts: str, idle_s: float = 15.0) -> dict[str, Any]:
    """Run these parts of benchmarks.scale. Raises RuntimeError when it fails or takes more than ten minutes."""
    command = [sys.executable, "-m", "benchmarks.scale", "--json", f"--groups={groups}", f"--idle-s={idle_s}"]
    command += [f"--active-s={_ACTIVE_S}", "--parts", *parts]
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=_PATIENCE_S)
    except subprocess.TimeoutExpired:
        raise RuntimeError(f"benchmarks.scale with {groups} groups took more than {_PATIENCE_S} s") from None
    if done.returncode:
        lines = done.stderr.strip().splitlines() or ["it did not say why"]
        raise RuntimeError(f"benchmarks.scale with {groups} groups failed: {lines[-1]}")
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def worst(by_node: Mapping[str, float]) -> float:
    """Return the highest of the nodes' values."""
    return max(by_node.values())


def run_many() -> dict[str, Any]:
    """10,000 groups: idle, active, and idle with a node down."""
    found = scale(MANY, "idle", "active", "down")
    ceiling = asyncio.run(run_ceiling(CeilingOptions(MANY, MANY, seconds=_ACTIVE_S)))
    return {
        "idle_10000_cpu_percent": worst(found["idle"]["cpu_percent"]),
        "idle_10000_down_cpu_percent": worst(found["one_down"]["cpu_percent"]),
        "active_10000_per_s": found["active"]["writes_per_s"],
        "active_10000_ceiling_per_s": ceiling.writes_per_s,
        "active_10000_ratio": found["active"]["writes_per_s"] / ceiling.writes_per_s,
    }


def run_very_many() -> dict[str, Any]:
    """100,000 groups: their memory, and a start of all nodes until every group has a leader."""
    found = scale(VERY_MANY, "start", "memory")
    return {
        "idle_100000_kb": worst({name: row["bytes_per_group"] for name, row in found["memory"].items()}) / 1024,
        "idle_100000_start_s": found["start"]["seconds"],
        "idle_100000_create_s": found["create"]["seconds"],
    }


def run_loss() -> dict[str, Any]:
    """3,000 groups under load, a third of them on a node that is killed."""
    found = scale(LOST, "kill")["kill"]
    return {
        "node_loss_s": found["seconds"],
        "node_loss_groups": found["lost"],
        "node_loss_timeouts": found["seconds"] / ELECTION_TIMEOUT_S,
        "node_loss_lag_ms": worst(found["lag_ms"]),
    }
