"""The table as text, and the whole run as JSON.

Rules of this file: pure; what is missing is a row that says so; every aim says whether it is met.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from benchmarks.aims import Outcome, Wronged
from benchmarks.figures import Case, Figure, figures_of, median_of


def number(value: float | None) -> str:
    """Return a figure at a length that fits its size; a dash for none."""
    if value is None:
        return "-"
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def columns(rows: Sequence[Sequence[str]], left: Iterable[int]) -> list[str]:
    """Return lines with aligned columns: those numbered in `left` to the left, the others to the right."""
    lefts = set(left)
    widths = [max(len(row[at]) for row in rows) for at in range(len(rows[0]))]
    return [
        "  ".join(
            cell.ljust(width) if at in lefts else cell.rjust(width)
            for at, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def aims_table(outcomes: Sequence[Outcome]) -> list[str]:
    """Return one line per row: ours, the peer, the ratio or value, the aim, and whether it is met."""
    rows = [
        (
            "row",
            "work (128 B, 3 nodes)",
            "ours",
            "per s",
            "peer",
            "per s",
            "ratio",
            "CPU ratio",
            "aim",
            "met",
            "what differs",
        )
    ]
    for each in outcomes:
        single = each.peer == "-"
        value = "-" if each.value is None else f"{number(each.value)}{'x' if each.unit == 'x' else ' ' + each.unit}"
        met = "missing" if each.missing else "-" if each.met is None else "yes" if each.met else "NO"
        rows.append(
            (
                each.name,
                each.work,
                each.ours,
                "-" if single else number(each.our_value),
                each.peer,
                number(each.peer_value),
                value,
                "-" if each.cpu_ratio is None else f"{number(each.cpu_ratio)}x",
                each.aim,
                met,
                each.missing or each.note,
            )
        )
    return columns(rows, (0, 1, 2, 4, 10))


def figures_table(figures: Sequence[Figure], settings: Mapping[str, str]) -> list[str]:
    """Return one line per system and case, with medians over the rounds, fastest system first."""
    rows: list[tuple[str, ...]] = [
        (
            "groups", "in flight", "op", "system", "per s", "p50 ms", "p99 ms", "p99.9 ms", "CPU us", "all CPU us",
            "syncs/s", "flushes/s", "writes/flush", "runs",
        )
    ]  # fmt: skip
    fields = ("per_s", "p50_ms", "p99_ms", "p999_ms", "leader_cpu_us", "all_cpu_us", "syncs_per_s", "flushes_per_s")
    for case in cases_of(figures):
        lines = []
        for system in dict.fromkeys(figure.system for figure in figures if figure.case == case):
            found = figures_of(figures, system, case)
            medians = [median_of(found, name) for name in fields]
            rate, flushes = medians[0] or 0.0, medians[-1]
            per_flush = None if not flushes or case.op != "writes" else rate / flushes
            cells = [number(value) for value in medians]
            head = (str(case.groups), str(case.in_flight), case.op, system)
            lines.append((-rate, (*head, *cells, number(per_flush), str(len(found)))))
        rows += [line for _, line in sorted(lines)]
    used = dict.fromkeys(figure.system for figure in figures)
    return columns(rows, (2, 3)) + [""] + [f"{system}: {settings[system]}" for system in used if system in settings]


def cases_of(figures: Iterable[Figure]) -> list[Case]:
    """Return every case that was measured, in order: writes before reads, few groups before many."""
    return sorted(
        {figure.case for figure in figures},
        key=lambda case: (case.op != "writes", case.op, case.groups, case.in_flight),
    )


def wronged_lines(found: Iterable[Wronged], explained: Mapping[str, str]) -> list[str]:
    """Return a line for each peer that is slower here than it is known to be, with what explains it."""
    lines = []
    for each in found:
        machine = "" if each.machine is None else f"; the ceiling is at {each.machine:.2f} of its own known rate"
        why = explained.get(each.system, "")
        lines.append(
            f"{each.system}, {each.case.groups} groups, {each.case.in_flight} in flight, {each.case.op}: "
            f"{each.share:.2f} of its known rate{machine}{f' ({why})' if why else ''}"
        )
    return lines


def as_json(
    settings: Mapping[str, Any],
    figures: Sequence[Figure],
    outcomes: Sequence[Outcome],
    values: Mapping[str, Any],
    missing: Mapping[str, str],
) -> dict[str, Any]:
    """Return the run in plain values."""
    return {
        "settings": dict(settings),
        "rows": [asdict(outcome) for outcome in outcomes],
        "figures": [asdict(figure) for figure in figures],
        "values": dict(values),
        "missing": dict(missing),
    }
