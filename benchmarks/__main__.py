"""`python -m benchmarks`: multiraft beside the ceiling and its peers, in turn, on this machine; a table with every aim.

    python -m benchmarks                       # all comparisons, two rounds: about five minutes
    python -m benchmarks --quick               # one short round
    python -m benchmarks --full                # three rounds, the plots' cases, scale, ten minutes sustained
    python -m benchmarks --rows etcd-64 etcd-1000
    python -m benchmarks --sustained 600 --rows

Three nodes as processes on one machine, synced, one leading all groups. What was measured goes to benchmarks/results:
latest.json, latest.txt, and plots when matplotlib is there (the extra `bench`).

Rules of this file: nothing else runs beside it; what cannot be measured is named as missing, with the reason; a system
that fails, or whose replicas differ, is missing too, and the exit status says so.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import time
from collections.abc import Sequence
from typing import Any

from benchmarks import single
from benchmarks.aims import LIMITS, ROWS, Limit, Row, judge_limit, judge_row, wronged
from benchmarks.building import RESULTS, Missing
from benchmarks.figures import Case, Figure
from benchmarks.hosting import WARM_UP_S, started
from benchmarks.plan import Step, later_rounds, steps_for, work_of_plots, work_of_rows
from benchmarks.report import aims_table, as_json, figures_table, wronged_lines
from benchmarks.systems import HOSTS, PAYLOAD_BYTES, host_of, settings_of_systems

EXPLAINED = {
    "hashicorp": "README.md, peers",
    "etcd": "README.md, peers",
    "pysyncobj-default": "README.md, peers",
    "pysyncobj-unbatched": "README.md, peers",
}


class Run:
    """What was measured so far, and what could not be."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.figures: list[Figure] = []
        self.missing: dict[str, str] = {}
        self.failed = False

    def measure(self, step: Step, label: str) -> None:
        """Measure one step; a host that cannot be started, or fails, is noted as missing and not tried again."""
        work = [(system, case) for system, case in step.work if system not in self.missing]
        if not work:
            return
        began_s = time.monotonic()
        found: list[Figure] = []
        try:
            with started(HOSTS[step.host].start(step.groups)) as host:
                for system, case in work:
                    figure = host.measure(system, case, self.seconds)
                    found.append(figure)
                    print(f"{label}  {_describe(system, case)} {figure.per_s:10,.0f}/s", file=sys.stderr, flush=True)
        except (Missing, RuntimeError, OSError, TimeoutError) as why:
            self.failed = self.failed or not isinstance(why, Missing)
            print(f"{label}  {step.host}: {why}", file=sys.stderr, flush=True)
            for system, _ in work:
                self.missing.setdefault(system, str(why))
            return
        self.figures += found
        print(f"{label}  {step.host} took {time.monotonic() - began_s:.1f} s", file=sys.stderr, flush=True)


def _describe(system: str, case: Case) -> str:
    return f"{system:20} groups {case.groups:4}  in flight {case.in_flight:5}  {case.op:6}"


def chosen_rows(names: Sequence[str] | None) -> tuple[list[Row], list[Limit]]:
    """Return the rows of these names, or all. Raises ValueError when a name is not one."""
    if names is None:
        return list(ROWS), list(LIMITS)
    known = [row.name for row in ROWS] + [limit.name for limit in LIMITS]
    wrong = [name for name in names if name not in known]
    if wrong:
        raise ValueError(f"no row is named {', '.join(wrong)}; there are: {', '.join(known)}")
    return [row for row in ROWS if row.name in names], [limit for limit in LIMITS if limit.name in names]


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description="multiraft beside the ceiling and its peers, in turn, on this machine"
    )
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--quick", action="store_true", help="one round of 1.5 seconds each")
    size.add_argument("--full", action="store_true", help="three rounds, and everything that the plots show")
    parser.add_argument("--rounds", type=int, help="how often everything is measured (1, 2 or 3 by size)")
    parser.add_argument("--seconds", type=float, help="how long each figure is measured (1.5, 2.5 or 1.5 by size)")
    parser.add_argument("--rows", nargs="*", help="these rows only (none: no comparison); --list names them")
    parser.add_argument("--sustained", type=float, nargs="?", const=600.0, default=0.0, metavar="SECONDS",
                        help="load 64 groups for so long (600 by default, and with --full)")  # fmt: skip
    parser.add_argument("--scale", action="store_true", help="the rows of 3,000, 10,000 and 100,000 groups")
    parser.add_argument("--list", action="store_true", help="name all rows and end")
    options = parser.parse_args(arguments)
    options.rounds = options.rounds or (1 if options.quick else 3 if options.full else 2)
    options.seconds = options.seconds or (2.5 if not options.quick and not options.full else 1.5)
    options.named = options.rows is not None
    if options.full and not options.named:
        options.sustained, options.scale = options.sustained or 600.0, True
    try:
        options.rows, options.limits = chosen_rows(options.rows)
    except ValueError as wrong:
        parser.error(str(wrong))
    asked = set(single.SUSTAINED) if options.sustained else set()
    if options.scale:
        asked.update(name for names, _ in single.SCALE for name in names)
    options.limits += [limit for limit in LIMITS if limit.value in asked and limit not in options.limits]
    return options


def run(options: argparse.Namespace) -> tuple[Run, dict[str, Any]]:
    """Measure everything that was asked for."""
    measured = Run(options.seconds)
    steps = steps_for(work_of_rows(options.rows), host_of)
    plot_steps = steps_for(work_of_plots(), host_of) if options.full and not options.named else []
    for number in range(1, options.rounds + 1):
        for step in steps if number == 1 else later_rounds(steps):
            measured.measure(step, f"round {number}/{options.rounds}")
    done = {(figure.system, figure.case) for figure in measured.figures}
    for step in plot_steps:
        rest = tuple(each for each in step.work if each not in done)
        measured.measure(Step(step.host, step.groups, rest), "plots")
    values, missing = single.measure(single.chosen(options))
    measured.missing.update(missing)
    return measured, values


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print the tables, write the files; 1 when something failed that should not have."""
    options = parse(arguments)
    if options.list:
        named = [(row.name, row.work) for row in ROWS] + [(limit.name, limit.work) for limit in LIMITS]
        print("\n".join(f"{name:22} {work}" for name, work in named))
        return 0
    began_s = time.monotonic()
    measured, values = run(options)
    settings = {
        "payload_bytes": PAYLOAD_BYTES,
        "rounds": options.rounds,
        "seconds": options.seconds,
        "warm_up_s": WARM_UP_S,
        "python": platform.python_version(),
        "machine": f"{platform.system()} {platform.machine()}",
        "systems": settings_of_systems(),
        "took_s": round(time.monotonic() - began_s, 1),
    }
    outcomes = [judge_row(row, measured.figures, measured.missing) for row in options.rows]
    outcomes += [judge_limit(limit, values, measured.missing) for limit in options.limits]
    lines = ["  ".join(f"{name}={value}" for name, value in settings.items() if name != "systems"), ""]
    if measured.figures:
        lines += [*figures_table(measured.figures, settings_of_systems()), ""]
    lines += aims_table(outcomes)
    lines += wronged_lines(wronged(measured.figures), EXPLAINED)
    lines += [f"missing: {name}: {why}" for name, why in measured.missing.items()]
    print("\n".join(lines))
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "latest.txt").write_text("\n".join(lines) + "\n")
    found = as_json(settings, measured.figures, outcomes, values, measured.missing)
    (RESULTS / "latest.json").write_text(json.dumps(found, indent=1))
    print(f"written: {RESULTS / 'latest.json'}", *single.draw(found), sep="\n")
    return int(measured.failed)


if __name__ == "__main__":
    sys.exit(main())
