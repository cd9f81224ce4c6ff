"""What idle groups cost: CPU of each node while nobody calls it, ours and a peer's, for the plot.

Rules of this file: nothing else runs meanwhile; the heartbeats and timers of each system are as they come.
"""

from __future__ import annotations

import sys
import time
from typing import Any, Final

from benchmarks.building import Missing
from benchmarks.hosting import StandingHost
from benchmarks.nodes import cpu_s
from benchmarks.systems import OwnHost, go_peer

SETTLE_S: Final = 3.0
COUNTS: Final = {"multiraft": (100, 1000, 10_000), "hashicorp": (100, 300), "dragonboat": (100, 300)}


def _idle_host(name: str, groups: int) -> StandingHost:
    if name == "multiraft":
        return OwnHost(groups, typed=False)
    host = go_peer(name)(groups)
    host.gathers = False
    return host


def idle_percent(name: str, groups: int, seconds: float) -> float:
    """Start a system with so many groups, let it settle, and return the mean CPU share of a node, in percent of a core.

    Raises Missing when the system cannot be measured here.
    """
    with _idle_host(name, groups) as host:
        time.sleep(SETTLE_S)
        began_s = time.monotonic()
        before = [cpu_s(pid) or 0.0 for pid in host.pids()]
        time.sleep(seconds)
        took_s = time.monotonic() - began_s
        after = [cpu_s(pid) or 0.0 for pid in host.pids()]
    used = [late - early for early, late in zip(before, after, strict=True)]
    return sum(used) / len(used) / took_s * 100


def run_idling(seconds: float) -> dict[str, Any]:
    """Measure every system at every number of groups; what fails is said and left out."""
    found: dict[str, dict[str, float]] = {}
    for name, counts in COUNTS.items():
        for groups in counts:
            try:
                percent = idle_percent(name, groups, seconds)
            except (Missing, RuntimeError) as why:
                print(f"idle {name} with {groups} groups: {why}", file=sys.stderr)
                break
            found.setdefault(name, {})[str(groups)] = percent
            print(f"idle {name:12} {groups:6} groups  {percent:6.2f} % of a core per node", file=sys.stderr)
    return {"idle_cpu_percent": found}
