"""What every measured system has in common: it starts, takes load, is read before and after, and ends.

Rules of this file: knows no system; every replica must have applied the same, or the run fails.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Final, Self

from benchmarks.figures import Case, Figure, figure_from
from benchmarks.nodes import cpu_s, disk_flushes

WARM_UP_S: Final = 0.7
APPLYING_PATIENCE_S: Final = 20.0


class Host(ABC):
    """A system that is measured; a context manager."""

    def __init__(self, groups: int) -> None:
        self.groups = groups
        self.directory = tempfile.mkdtemp(prefix="multiraft-bench-")

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @abstractmethod
    def start(self) -> None:
        """Start all processes and have the first lead every group. Raises Missing when it cannot be measured here."""

    @abstractmethod
    def stop(self) -> None:
        """End all processes."""

    def close(self) -> None:
        self.stop()
        shutil.rmtree(self.directory, ignore_errors=True)

    @abstractmethod
    def measure(self, system: str, case: Case, seconds: float) -> Figure:
        """Warm up, measure, and return the figure."""

    @abstractmethod
    def check_alike(self) -> None:
        """Wait until every replica has applied the same. Raises RuntimeError when they do not."""


class StandingHost(Host):
    """One whose processes stay up between measurements. Subclasses say how to start them, and how to ask."""

    asked = 0
    """Which of `pids` runs the clients, and measures its own CPU time while they run."""

    @abstractmethod
    def load(self, system: str, case: Case, seconds: float) -> dict[str, Any]:
        """Keep the case's calls under way for so many seconds; return count, rate and percentiles."""

    @abstractmethod
    def pids(self) -> list[int]:
        """All processes, the one that leads first."""

    def counts(self) -> dict[str, Any]:
        """What the leader counts itself: `syncs`, `turns`; whichever it has."""
        return {}

    @abstractmethod
    def applied(self) -> list[int]:
        """How many commands each replica has applied."""

    def measure(self, system: str, case: Case, seconds: float) -> Figure:
        self.load(system, case, WARM_UP_S)
        counts, cpu, flushes = self.counts(), self._cpu(), disk_flushes(self.directory)
        found = self.load(system, case, seconds)
        flushes_now, cpu_now, counts_now = disk_flushes(self.directory), self._cpu(), self.counts()
        calls, took_s = found["writes"], found["seconds"]
        more: dict[str, float | None] = {}
        if cpu is not None and cpu_now is not None:
            used = [late - early for early, late in zip(cpu, cpu_now, strict=True)]
            if "cpu_s" in found:  # without the sorting of latencies afterwards
                used[self.asked] = found["cpu_s"]
            more = {"leader_cpu_us": used[0] / calls * 1e6, "all_cpu_us": sum(used) / calls * 1e6}
        if flushes is not None and flushes_now is not None:
            more["flushes_per_s"] = (flushes_now - flushes) / took_s
        for name in counts.keys() & {"syncs", "turns"}:
            more[f"{name}_per_s"] = (counts_now[name] - counts[name]) / took_s
        return figure_from(system, case, found, **more)

    def check_alike(self) -> None:
        deadline_s = time.monotonic() + APPLYING_PATIENCE_S
        while len(set(applied := self.applied())) > 1:
            if time.monotonic() > deadline_s:
                raise RuntimeError(f"the replicas did not apply the same number of commands: {applied}")
            time.sleep(0.1)

    def _cpu(self) -> list[float] | None:
        found = [used for pid in self.pids() if (used := cpu_s(pid)) is not None]
        return found if len(found) == len(self.pids()) else None


@contextmanager
def started(host: Host) -> Iterator[Host]:
    """Start a host, and check at the end that its replicas are alike."""
    with host:
        yield host
        host.check_alike()
