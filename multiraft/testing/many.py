"""Many seeds, in several processes, and what they came to together.

A seed is one process's work from beginning to end, so the number of processes changes nothing but the time. Over many
seeds it is also judged whether the simulator did its work: each kind of fault, and each failpoint, must have been hit
often enough, or what a green run says is less than it seems.

Rules of this file: results are counted in the order of the seeds; bounded work is handed out ahead; whatever ends the
run, no process is left.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass, field
from typing import Any, Final

from multiraft.failpoints import FAILPOINTS
from multiraft.testing.faults import FAULT_KINDS
from multiraft.testing.simulation import Body, Options, Report, run_simulation

JUDGED_FROM: Final = 200
"""So many seeds it takes until a kind of fault that was rare says something."""
SEEDS_PER_FAULT: Final = 80
"""Each kind of fault must have taken effect once in so many seeds, on the average."""
SEEDS_PER_PLACE: Final = 400
"""Something must have happened at each failpoint once in so many seeds, and it must have been passed ten times."""
_AHEAD: Final = 4
_LOOK_S: Final = 0.2


@dataclass(slots=True)
class Summary:
    """What the seeds of one run came to."""

    seeds: int = 0
    failed: dict[int, str] = field(default_factory=dict)
    virtual_s: float = 0.0
    elapsed_s: float = 0.0
    faults: Counter[str] = field(default_factory=Counter)
    passed: Counter[str] = field(default_factory=Counter)
    counts: Counter[str] = field(default_factory=Counter)
    operations: int = 0
    undecided: list[str] = field(default_factory=list)

    def add(self, report: Report) -> None:
        """Count one seed."""
        self.seeds += 1
        if report.failure:
            self.failed[report.seed] = report.failure
        self.virtual_s += report.virtual_s
        self.faults += report.faults
        self.passed += report.passed
        self.counts += report.counts
        self.operations += report.operations
        self.undecided += [f"seed {report.seed}: {key}" for key in report.undecided]

    def too_rare(self) -> list[str]:
        """Return the kinds of faults, and the failpoints, that were hit too rarely; empty for a short run."""
        if self.seeds < JUDGED_FROM:
            return []
        faults, places = self.seeds // SEEDS_PER_FAULT, self.seeds // SEEDS_PER_PLACE
        judged = [(kind, self.faults[kind], faults) for kind in sorted(FAULT_KINDS)]
        judged.append(("commands applied in batches of several", self.counts["together"], self.seeds))
        for name in sorted(point.name for point in FAILPOINTS.values()):
            judged.append((f"failpoint {name}, something done there", self.faults[f"failpoint {name}"], places))
            judged.append((f"failpoint {name}, passed", self.passed[name], 10 * self.seeds // SEEDS_PER_PLACE))
        return [
            f"{what}: {count} times in {self.seeds} seeds, at least {least} are wanted"
            for what, count, least in judged
            if count < least
        ]

    @property
    def ok(self) -> bool:
        return not self.failed and not self.undecided and not self.too_rare()

    def to_plain(self) -> dict[str, Any]:
        """Return everything as plain values, for JSON."""
        return {
            "ok": self.ok,
            "seeds": self.seeds,
            "failed": {str(seed): failure for seed, failure in sorted(self.failed.items())},
            "undecided": self.undecided,
            "too_rare": self.too_rare(),
            "virtual_hours": round(self.virtual_s / 3600, 4),
            "elapsed_s": round(self.elapsed_s, 3),
            "seeds_per_s": round(self.seeds / self.elapsed_s, 3) if self.elapsed_s else 0.0,
            "operations": self.operations,
            "elections": self.counts["elections"],
            "membership_changes": self.counts["memberships"],
            "turns_checked": self.counts["turns"],
            "promises_checked": self.counts["promises"],
            "applied": self.counts["applied"],
            "applied_together": self.counts["together"],
            "numbered": self.counts["numbered"],
            "repeated": self.counts["repeated"],
            "acknowledged": self.counts["acknowledged"],
            "commands": self.counts["commands"],
            "outcomes_unknown": self.counts["unknown"],
            "faults": dict(sorted(self.faults.items())),
            "failpoints_passed": dict(sorted(self.passed.items())),
        }


def run_many(
    body: Body,
    seeds: Sequence[int],
    jobs: int,
    options: Options | None = None,
    done: Callable[[Report], None] = lambda _: None,
) -> Summary:
    """Run `body` with each seed; in this process if `jobs` is 1, else in so many others.

    body  a function at the top of a module, so that other processes find it
    done  called after each seed, in whatever order they end

    Raises KeyboardInterrupt, with nothing left behind.
    """
    summary = Summary()
    began_s = time.monotonic()
    reports: dict[int, Report] = {}
    for report in _reports(body, seeds, jobs, options):
        reports[report.seed] = report
        done(report)
    for seed in seeds:
        summary.add(reports[seed])
    summary.elapsed_s = time.monotonic() - began_s
    return summary


def _reports(body: Body, seeds: Sequence[int], jobs: int, options: Options | None) -> Iterator[Report]:
    if jobs <= 1:
        for seed in seeds:
            yield run_simulation(seed, body, options)
        return
    context = multiprocessing.get_context("spawn")
    executor = ProcessPoolExecutor(jobs, mp_context=context, initializer=_ignore_interrupts)
    waiting = iter(seeds)
    under_way: set[Future[Report]] = set()
    with _Interrupts() as interrupts:
        try:
            while True:
                for seed in waiting:
                    under_way.add(executor.submit(_elsewhere, seed, body, options))
                    if len(under_way) >= jobs * _AHEAD:
                        break
                if not under_way:
                    break
                ended, under_way = wait(under_way, _LOOK_S, FIRST_COMPLETED)
                interrupts.raise_pending()
                for future in ended:
                    yield future.result()
        except BaseException:
            for child in multiprocessing.active_children():
                child.terminate()
            raise
        finally:
            executor.shutdown(wait=True, cancel_futures=True)


class _Interrupts:
    """Keeps a Ctrl-C until it can be obeyed: raised while a process is being started, it would leave half of one."""

    def __init__(self) -> None:
        self._came = False
        self._before: Any = None

    def __enter__(self) -> _Interrupts:
        if threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGINT, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        if self._before is not None:
            signal.signal(signal.SIGINT, self._before)

    def _note(self, *_: object) -> None:
        self._came = True

    def raise_pending(self) -> None:
        if self._came:
            raise KeyboardInterrupt


def _elsewhere(seed: int, body: Body, options: Options | None) -> Report:
    """Run a seed in a process of its own; what was raised there may be of a kind that cannot travel."""
    report = run_simulation(seed, body, options)
    report.error = None
    if not report.failure:
        report.story.clear()
    return report


def _ignore_interrupts() -> None:
    """Ctrl-C is for the process that gave the work; it ends this one."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def processors() -> int:
    """Return how many processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
