"""`python -m benchmarks.levels`: our levels of calls beside the ceiling alone, in any case, on this machine.

For every number of groups and of writes in flight each system is measured once a round, one after the other, so that
a drift of the machine's speed meets all of them; the table shows medians over the rounds and their ratio to the
ceiling's median. Three processes on one machine, synced on all three, one node leading all groups, clients inside
the leader's process unless the row says "HTTP".

Rules of this file: nothing else runs beside it; every replica must have applied as much as the leader, or the run
fails; what was measured is printed with its settings and written as JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from benchmarks.ceiling import CeilingOptions, run_ceiling
from benchmarks.cluster import NODES, Cluster
from benchmarks.outside import measure_http

SYSTEMS: Final = ("ceiling", "bytes", "many", "command", "command-many", "reads", "reads-many", "http")
WARM_UP_S: Final = 1.0
_RESULTS: Final = Path(__file__).resolve().parent / "results"


@dataclass(frozen=True, slots=True)
class Figure:
    """One measurement: calls a second, their latency, and the leader's CPU and syncs meanwhile."""

    system: str
    groups: int
    in_flight: int
    per_s: float
    p50_ms: float
    p99_ms: float
    leader_cpu_us: float
    syncs_per_s: float
    turns_per_s: float | None = None


def measure_ceiling(groups: int, in_flight: int, options: argparse.Namespace) -> Figure:
    wanted = CeilingOptions(groups, in_flight, options.payload_bytes, options.seconds, options.loop, options.gc)
    found = asyncio.run(run_ceiling(wanted))
    seconds = found.writes / found.writes_per_s
    return Figure(
        "ceiling", groups, in_flight, found.writes_per_s, found.p50_ms, found.p99_ms,
        found.cpu_s[0] / found.writes * 1e6, found.syncs[0] / seconds,
    )  # fmt: skip


def measure_level(level: str, groups: int, in_flight: int, options: argparse.Namespace) -> Figure:
    """Measure clients inside the leader's process; `level` is any of SYSTEMS but the ceiling and http."""
    wanted = {"loop": options.loop, "gc": options.gc, "typed": level.startswith("command")}
    with Cluster(groups, **wanted) as cluster:
        leader = NODES[0]
        cluster.gather_leaders(leader)
        load = {
            "op": "load",
            "level": level,
            "in_flight": in_flight,
            "payload": options.payload_bytes,
            "groups": groups,
        }
        cluster.ask(leader, **load, seconds=WARM_UP_S)
        before = cluster.ask(leader, op="counts")
        found = cluster.ask(leader, **load, seconds=options.seconds)
        after = cluster.ask(leader, op="counts")
        _check_alike(cluster, leader)
    return Figure(
        level, groups, in_flight, found["writes_per_s"], found["p50_ms"], found["p99_ms"],
        (after["cpu_s"] - before["cpu_s"]) / found["writes"] * 1e6,
        (after["syncs"] - before["syncs"]) / found["seconds"],
        (after["turns"] - before["turns"]) / found["seconds"],
    )  # fmt: skip


def _check_alike(cluster: Cluster, leader: str) -> None:
    """Every replica applies what the leader has; they are given ten seconds for the rest."""
    for _ in range(100):
        applied = {name: cluster.ask(name, op="counts")["applied"] for name in NODES}
        if len(set(applied.values())) == 1:
            return
        time.sleep(0.1)
    raise RuntimeError(f"the replicas did not apply the same number of commands (leader {leader}): {applied}")


def measure_outside(groups: int, in_flight: int, options: argparse.Namespace) -> Figure:
    with tempfile.TemporaryDirectory(prefix="multiraft-http-") as directory:
        found = asyncio.run(measure_http(Path(directory), groups, in_flight, options.payload_bytes, options.seconds))
    return Figure("http", groups, in_flight, found.per_s, found.p50_ms, found.p99_ms, found.cpu_us, found.syncs_per_s)


def run(options: argparse.Namespace) -> list[Figure]:
    """Measure everything asked for, round by round, with a line of progress for each figure."""
    measures: dict[str, Callable[[int, int], Figure]] = {
        "ceiling": lambda groups, in_flight: measure_ceiling(groups, in_flight, options),
        "http": lambda groups, in_flight: measure_outside(groups, in_flight, options),
    }
    for level in ("bytes", "many", "command", "command-many", "reads", "reads-many"):
        measures[level] = lambda groups, in_flight, level=level: measure_level(level, groups, in_flight, options)  # type: ignore[misc]
    figures = []
    for number in range(1, options.rounds + 1):
        for groups in options.groups:
            for in_flight in options.in_flight:
                for system in options.systems:
                    figure = measures[system](groups, in_flight)
                    figures.append(figure)
                    print(
                        f"round {number}/{options.rounds}  {system:8} groups {groups:3}  in flight {in_flight:4}  "
                        f"{figure.per_s:10,.0f}/s",
                        file=sys.stderr,
                        flush=True,
                    )
    return figures


def table(figures: list[Figure]) -> list[str]:
    """Return the medians as lines of text, with each system's ratio to the ceiling of the same row."""
    cases = sorted({(figure.groups, figure.in_flight) for figure in figures})
    lines = [
        f"{'groups':>6} {'in flight':>9} {'system':8} {'per s':>10} {'of ceiling':>10} {'p50 ms':>8} {'p99 ms':>8} "
        f"{'CPU us':>7} {'syncs/s':>8} {'turns/s':>8}"
    ]
    for groups, in_flight in cases:
        ceiling = 0.0
        for system in SYSTEMS:
            found = [f for f in figures if (f.groups, f.in_flight, f.system) == (groups, in_flight, system)]
            if not found:
                continue
            per_s = _median(found, "per_s")
            if system == "ceiling":
                ceiling = per_s
            ratio = f"{per_s / ceiling:.2f}" if ceiling else "-"
            turns = [f.turns_per_s for f in found if f.turns_per_s is not None]
            lines.append(
                f"{groups:>6} {in_flight:>9} {system:8} {per_s:>10,.0f} {ratio:>10} {_median(found, 'p50_ms'):>8.2f} "
                f"{_median(found, 'p99_ms'):>8.2f} {_median(found, 'leader_cpu_us'):>7.1f} "
                f"{_median(found, 'syncs_per_s'):>8,.0f} {f'{statistics.median(turns):,.0f}' if turns else '-':>8}"
            )
    return lines


def _median(figures: list[Figure], name: str) -> float:
    return float(statistics.median(getattr(figure, name) for figure in figures))


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.levels", description=__doc__.split("\n\n")[0])
    parser.add_argument("--quick", action="store_true", help="one round of two seconds each")
    parser.add_argument("--rounds", type=int, default=3, help="how often everything is measured (default 3)")
    parser.add_argument("--seconds", type=float, default=4.0, help="how long each figure is measured (default 4)")
    parser.add_argument("--groups", type=int, nargs="+", default=[1, 64])
    parser.add_argument("--in-flight", type=int, nargs="+", default=[1, 64, 1000])
    parser.add_argument("--systems", nargs="+", choices=SYSTEMS, default=list(SYSTEMS))
    parser.add_argument("--payload-bytes", type=int, default=128)
    parser.add_argument("--loop", choices=("uvloop", "asyncio"), default="uvloop")
    parser.add_argument("--gc", choices=("freeze", "on"), default="freeze")
    options = parser.parse_args()
    if options.quick:
        options.rounds, options.seconds = 1, 2.0
    settings: dict[str, Any] = {
        "payload_bytes": options.payload_bytes,
        "fsync": "every batch, on all three nodes",
        "processes": 3,
        "loop": options.loop,
        "gc": options.gc,
        "rounds": options.rounds,
        "seconds": options.seconds,
        "python": platform.python_version(),
        "machine": f"{platform.system()} {platform.machine()}",
    }
    figures = run(options)
    print("  ".join(f"{name}={value}" for name, value in settings.items()))
    print("CPU us: of the leader's process, per call. HTTP: one PUT per write, client in a process of its own.")
    print("\n".join(table(figures)))
    _RESULTS.mkdir(exist_ok=True)
    path = _RESULTS / "levels.json"
    path.write_text(json.dumps({"settings": settings, "figures": [asdict(figure) for figure in figures]}, indent=1))
    print(f"written: {path}")


if __name__ == "__main__":
    main()
