"""What to measure for the rows and plots that are wanted, in which order.

A step starts one host with so many groups and measures several systems and cases on it. A round is all steps once, so
that systems are measured in turn, and a drift of the machine's speed meets all of them.

Rules of this file: pure; each step is there once a round, each case once a step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final

from benchmarks.aims import Row
from benchmarks.figures import Case

GROUP_COUNTS: Final = (1, 8, 64, 256)
"""For the plot of throughput against groups."""
LOADS: Final = (1, 4, 16, 64, 256, 1000)
"""Calls in flight, for the plot of latency against load."""
AGAINST_GROUPS: Final = ("ceiling", "bytes", "many", "hashicorp", "dragonboat")
ONCE: Final = frozenset(("pysyncobj-default", "pysyncobj-unbatched", "kv-resp", "redis"))
"""Measured in the first round only: what is not held against an aim, or stays far behind another setting."""
AGAINST_LOAD: Final = ("ceiling", "bytes", "remote", "hashicorp", "etcd")


@dataclass(frozen=True, slots=True)
class Step:
    """One host with so many groups, and what to measure on it."""

    host: str
    groups: int
    work: tuple[tuple[str, Case], ...]


def steps_for(work: Iterable[tuple[str, Case]], host_of: Callable[[str], str | None]) -> list[Step]:
    """Gather work into steps, in the order in which it is given; systems without a host are left out."""
    gathered: dict[tuple[str, int], dict[tuple[str, Case], None]] = {}
    for system, case in work:
        host = host_of(system)
        if host is not None:
            gathered.setdefault((host, case.groups), {})[system, case] = None
    return [Step(host, groups, tuple(found)) for (host, groups), found in gathered.items()]


def work_of_rows(rows: Iterable[Row]) -> list[tuple[str, Case]]:
    """Return what the rows compare, and the ceiling in the same cases: it tells how fast the machine is."""
    found = []
    for row in rows:
        found += [(system, row.case) for system in row.ours]
        found += [(system, row.peer_case or row.case) for system in row.peers]
        if row.case.op == "writes":
            found.append(("ceiling", row.case))
    return found


def later_rounds(steps: Iterable[Step]) -> list[Step]:
    """Return what is measured in the rounds after the first."""
    kept = [Step(step.host, step.groups, tuple(each for each in step.work if each[0] not in ONCE)) for step in steps]
    return [step for step in kept if step.work]


def work_of_plots() -> list[tuple[str, Case]]:
    """Return what the plots of throughput and latency show."""
    against_groups = [(system, Case(groups, 1000)) for groups in GROUP_COUNTS for system in AGAINST_GROUPS]
    against_load = [(system, Case(1, in_flight)) for system in AGAINST_LOAD for in_flight in LOADS]
    return against_groups + against_load
