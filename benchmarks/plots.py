"""The run as pictures: throughput against groups, latency against load, CPU against idle groups, and a sustained run.

Rules of this file: each picture says in its title and on its axes what is shown, with units; a system has the same
colour and mark in all of them, and its name stands at its line's end or in the legend; what was not measured is not
drawn, and a picture of nothing is not written.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import matplotlib as mpl

mpl.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.ticker import LogLocator, NullFormatter

from benchmarks.figures import Case, Figure, figures_of, median_of

_STYLES: Final[dict[str, tuple[str, str, str]]] = {
    "ceiling": ("#7f7f7f", "s", "ceiling (replication alone)"),
    "bytes": ("#1f77b4", "o", "multiraft"),
    "multiraft": ("#1f77b4", "o", "multiraft"),
    "many": ("#0b3d66", "D", "multiraft, propose_many"),
    "remote": ("#17becf", "P", "multiraft, client outside"),
    "hashicorp": ("#d62728", "^", "hashicorp/raft + bolt"),
    "dragonboat": ("#2ca02c", "v", "dragonboat"),
    "etcd": ("#9467bd", "X", "etcd, client outside"),
}
_LABELS: Final[dict[str, tuple[tuple[int, int], str]]] = {
    "hashicorp": ((-6, 8), "right"),
    "dragonboat": ((6, -14), "left"),
}
"""Where the values stand beside their points, where they would cover each other."""
_SIZE: Final = (9, 5.5)
_SETUP: Final = "three nodes on one two-core machine, 128-byte writes, every write synced on a quorum"


def draw_all(found: Mapping[str, Any], folder: Path) -> list[Path]:
    """Draw what a run (as in its JSON) has measured; return the paths of the pictures."""
    figures = [Figure(**{**each, "case": Case(**each["case"])}) for each in found["figures"]]
    values = found["values"]
    drawn = [
        throughput_against_groups(figures, folder / "throughput-groups.png"),
        latency_against_load(figures, folder / "latency-load.png"),
        idle_cpu(values.get("idle_cpu_percent", {}), folder / "idle-cpu.png"),
        sustained(values.get("sustained_slices", []), folder / "sustained.png"),
    ]
    return [path for path in drawn if path is not None]


def _series(figures: Sequence[Figure], system: str, cases: Sequence[Case], name: str) -> list[tuple[Case, float]]:
    found = [(case, median_of(figures_of(figures, system, case), name)) for case in cases]
    return [(case, value) for case, value in found if value is not None]


def _plot(axes: Any, system: str, xs: Sequence[float], ys: Sequence[float]) -> None:
    colour, mark, label = _STYLES[system]
    axes.plot(xs, ys, color=colour, marker=mark, label=label, linewidth=2, markersize=7)


def _finish(figure: Any, axes: Any, title: str, path: Path, note: str = _SETUP) -> Path:
    axes.set_title(title, fontsize=13, loc="left", pad=22)
    axes.text(0, 1.02, note, transform=axes.transAxes, fontsize=9, color="#555555")
    axes.grid(True, which="major", alpha=0.35)
    axes.legend(frameon=False, fontsize=10)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)
    return path


def throughput_against_groups(figures: Sequence[Figure], path: Path) -> Path | None:
    """Writes a second, 1000 in flight, by the number of groups that share them."""
    cases = sorted({figure.case for figure in figures if figure.case.in_flight == 1000 and figure.case.op == "writes"})
    lines = {name: _series(figures, name, cases, "per_s") for name in _STYLES if name not in ("remote", "etcd")}
    lines = {name: found for name, found in lines.items() if len(found) > 1}
    if not lines:
        return None
    picture, axes = plt.subplots(figsize=_SIZE)
    for name, found in lines.items():
        _plot(axes, name, [case.groups for case, _ in found], [value for _, value in found])
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_minor_formatter(NullFormatter())
    counts = sorted({case.groups for found in lines.values() for case, _ in found})
    axes.set_xticks(counts, [str(count) for count in counts])
    axes.set_xlabel("Raft groups that share the three nodes")
    axes.set_ylabel("writes per second (log scale)")
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    return _finish(picture, axes, "Throughput against groups: 1000 writes in flight over all groups", path)


def latency_against_load(figures: Sequence[Figure], path: Path) -> Path | None:
    """p50 and p99 by the rate reached, one point for each number of writes in flight, one group."""
    cases = sorted({figure.case for figure in figures if figure.case.groups == 1 and figure.case.op == "writes"})
    names = [name for name in _STYLES if name != "many" and len(_series(figures, name, cases, "per_s")) > 1]
    if not names:
        return None
    picture, axes = plt.subplots(figsize=_SIZE)
    for name in names:
        rates = _series(figures, name, cases, "per_s")
        xs = [value for _, value in rates]
        _plot(axes, name, xs, [value for _, value in _series(figures, name, cases, "p50_ms")])
        tails = [value for _, value in _series(figures, name, cases, "p99_ms")]
        axes.plot(xs, tails, color=_STYLES[name][0], linestyle=":", linewidth=1.5)
        if name in ("bytes", "etcd"):
            for (case, rate), (_, p50) in zip(rates, _series(figures, name, cases, "p50_ms"), strict=True):
                axes.annotate(str(case.in_flight), (rate, p50), textcoords="offset points", xytext=(5, -13), fontsize=8,
                              color=_STYLES[name][0])  # fmt: skip
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("writes per second reached (log scale); the numbers at the points are writes in flight")
    axes.set_ylabel("latency in ms (log scale)\nsolid: p50, dotted: p99")
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    return _finish(picture, axes, "Latency against load: one group, 1 to 1000 writes in flight", path)


def idle_cpu(percents: Mapping[str, Mapping[str, float]], path: Path) -> Path | None:
    """CPU of a node by its number of idle groups."""
    lines = {name: sorted((int(count), value) for count, value in found.items()) for name, found in percents.items()}
    if not any(lines.values()):
        return None
    picture, axes = plt.subplots(figsize=_SIZE)
    for name, found in lines.items():
        _plot(axes, name, [count for count, _ in found], [max(value, 0.05) for _, value in found])
        offset, side = _LABELS.get(name, ((6, 8), "left"))
        for count, value in found:
            place = (count, max(value, 0.05))
            axes.annotate(
                f"{value:.1f} %",
                place,
                textcoords="offset points",
                xytext=offset,
                ha=side,
                fontsize=9,
                color=_STYLES[name][0],
            )
    axes.axhline(1.0, color="#555555", linestyle="--", linewidth=1)
    axes.annotate("aim: 1 %", (1, 1.0), xycoords=("axes fraction", "data"), textcoords="offset points",
                  xytext=(8, 5), fontsize=9, color="#555555")  # fmt: skip
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.margins(x=0.12, y=0.12)
    axes.set_xlabel("idle Raft groups on three nodes (log scale)")
    axes.set_ylabel("CPU of a node, % of one core (log scale)")
    return _finish(
        picture,
        axes,
        "CPU against idle groups: nobody calls, all leaders stand",
        path,
        "three nodes on one two-core machine",
    )


def sustained(slices: Sequence[Mapping[str, float]], path: Path) -> Path | None:
    """Rate and p99 over the time of a sustained run."""
    if len(slices) < 2:
        return None
    picture, (upper, lower) = plt.subplots(2, 1, figsize=(9, 6.5), sharex=True, height_ratios=(3, 2))
    minutes = [each["at_s"] / 60 for each in slices]
    rates = [each["per_s"] for each in slices]
    upper.plot(minutes, rates, color=_STYLES["bytes"][0], linewidth=1.8)
    upper.set_ylim(0, max(rates) * 1.15)
    upper.yaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    upper.set_ylabel("writes per second")
    upper.grid(True, alpha=0.35)
    upper.set_title("Sustained load: 64 groups, 1000 writes in flight, snapshots and compaction on", fontsize=13,
                    loc="left", pad=22)  # fmt: skip
    upper.text(0, 1.03, _SETUP, transform=upper.transAxes, fontsize=9, color="#555555")
    lower.plot(minutes, [each["p99_ms"] for each in slices], color="#d62728", linewidth=1.5, label="p99")
    lower.plot(minutes, [each["p50_ms"] for each in slices], color="#1f77b4", linewidth=1.5, label="p50")
    lower.axhline(25, color="#555555", linestyle="--", linewidth=1, label="aim for the p99: 25 ms")
    lower.set_ylim(bottom=0)
    lower.set_ylabel("latency in ms")
    lower.set_xlabel("minutes since the start")
    lower.grid(True, alpha=0.35)
    lower.legend(frameon=False, fontsize=10, ncols=3)
    picture.tight_layout()
    picture.savefig(path, dpi=110)
    plt.close(picture)
    return path
