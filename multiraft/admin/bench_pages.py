"""How a load test is shown: while it runs, on a terminal, and what came of it.

Rules of this file: it only words; plain text in a pipe.
"""

from __future__ import annotations

from typing import Any, Final

from multiraft.admin.tables import Column, Page
from multiraft.admin.view import Facts

_BAR: Final = 40
_COLUMNS: Final = [
    Column("CALLS"),
    *[
        Column(title, right=True)
        for title in ("COUNT", "PER S", "MEAN MS", "P50 MS", "P90 MS", "P99 MS", "P99.9 MS", "MAX MS")
    ],
]


def result_page(found: Facts) -> Page:
    """Show what came of a run."""
    page = Page()
    page.line(found["what"], "bold")
    if found["interrupted"]:
        page.line(f"interrupted: this is of the first {found['seconds']:.1f} s", "yellow")
    page.gap()
    table = page.table(_COLUMNS)
    for name in ("writes", "reads"):
        row = found[name]
        if row["count"]:
            figures = [f"{row[key]:.2f}" for key in ("mean_ms", "p50_ms", "p90_ms", "p99_ms", "p999_ms", "max_ms")]
            table.rows.append([name, f"{row['count']:,}", f"{row['per_s']:,.0f}", *figures])
    for name in ("writes", "reads"):
        if found[name]["count"]:
            page.gap()
            page.line(f"latency of {name}", "bold")
            for line in bars(found[name]["histogram_us"]):
                page.line(line)
    page.gap()
    for line in remarks(found):
        page.line(line)
    return page


def remarks(found: Facts) -> list[str]:
    """Return what else there is to say, a line each."""
    client = found["client"]
    lines = [
        f"client: {client['cpu_us_per_call']:.1f} us of CPU a call, {client['cpu_share']:.0%} of a core; "
        f"{client['sessions']} sessions, {client['retries']} retries, {client['lost']} connections lost"
    ]
    if client["cpu_share"] > 0.9:
        lines.append("the client was busy all the time: the cluster may take more than one client can send")
    if found["errors"]:
        told = ", ".join(f"{count:,} {name}" for name, count in sorted(found["errors"].items()))
        lines.append(f"errors: {told}; the latest: {found['error']}")
    if found["behind"]:
        lines.append(
            f"behind: at the end {found['behind']:,} calls were due and had not begun: this rate is more than is taken"
        )
    return lines


def bars(rows: list[list[int]]) -> list[str]:
    """Return a histogram as lines of text."""
    total = sum(count for _, count in rows)
    most = max((count for _, count in rows), default=1)
    lines, passed = [], 0
    for bound_us, count in rows:
        passed += count
        bar = "#" * round(_BAR * count / most) or ("." if count else "")
        lines.append(f"  <= {_time(bound_us):>8}  {count:>10,}  {passed / total:>8.3%}  {bar}")
    return lines


def live_page(what: str, facts: Facts) -> Page:
    """Show a run that is under way."""
    page = Page()
    page.line(what, "bold")
    done = min(1.0, facts["passed_s"] / facts["of_s"]) if facts["of_s"] else 1.0
    filled = round(_BAR * done)
    phase = "warming up" if facts["warming"] else f"{facts['passed_s']:.0f} of {facts['of_s']:g} s"
    page.line(f"[{'=' * filled}{' ' * (_BAR - filled)}] {phase}")
    page.gap()
    page.line(
        f"last second: {facts['per_s']:>10,.0f} calls/s   p50 {facts['p50_ms']:.2f} ms   p99 {facts['p99_ms']:.2f} ms"
    )
    page.line(f"so far:      {facts['mean_per_s']:>10,.0f} calls/s   {facts['errors']:,} errors")
    if facts["behind"]:
        page.line(f"behind:      {facts['behind']:>10,} calls are due and wait", "yellow")
    page.gap()
    for line in bars(facts["histogram_us"]):
        page.line(line)
    page.gap()
    page.line("Ctrl-C ends it, with the result so far", "dim")
    return page


def _time(us: int) -> str:
    if us < 1_000:
        return f"{us} us"
    return f"{us / 1e3:.3g} ms" if us < 1_000_000 else f"{us / 1e6:.3g} s"


def options_text(options: dict[str, Any]) -> str:
    """Return in words what a run does."""
    rate = options["rate"]
    how = f"{rate:,.0f} calls a second" if rate else f"{options['in_flight']} in flight"
    mix = f"{options['reads']:.0%} reads ({options['read_as']})" if options["reads"] else "writes only"
    keys = f"{options['keys']:,} keys, {options['distribution']}"
    if options["distribution"] == "zipf":
        keys += f" {options['zipf']:g}"
    return f"service {options['service']!r}: {how}, {mix}, {keys}, values of {options['value_size']} bytes"
