"""`multiraft sim`: clusters of real nodes under faults, on virtual time, judged; one seed in detail, or many at once.

Rules of this file: it only starts and shows; what is simulated and judged stands in multiraft.testing.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import IO, TYPE_CHECKING, Final

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

if TYPE_CHECKING:
    from multiraft.testing.many import Summary
    from multiraft.testing.simulation import Options, Report

SHOWN_FAILURES: Final = 20
STORY_LINES: Final = 60


class SimulationFailed(Exception):
    """Something did not hold; what, has been printed."""


@click.command()
@click.option("--seed", type=int, help="Run this seed alone.")
@click.option("--trace", is_flag=False, flag_value="-", metavar="[FILE]", help="Write the whole timeline of --seed.")
@click.option("--seeds", type=click.IntRange(1), default=100, show_default=True, help="How many seeds to run.")
@click.option("--first-seed", type=int, default=1, show_default=True, help="The first of them.")
@click.option("--jobs", type=click.IntRange(1, 256), help="Processes at once.  [default: one for each processor]")
@click.option("--nodes", type=click.IntRange(1, 7), help="How many nodes.  [default: drawn, 1 to 7]")
@click.option("--faults", metavar="FAULTS", help="The kinds of faults, separated by commas.  [default: drawn]")
@click.option("--json", "as_json", is_flag=True, help="Print the summary as JSON.")
def sim(
    seed: int | None,
    trace: str | None,
    seeds: int,
    first_seed: int,
    jobs: int | None,
    nodes: int | None,
    faults: str | None,
    as_json: bool,
) -> None:
    """Simulate clusters under faults, and judge what they did.

    Real nodes run on virtual time, over disks, clocks and a network that fail as the seed says. The same seed gives
    the same run, byte for byte. Ends with exit code 1 when anything did not hold, with the command that shows it again.

    \b
    Examples:
      multiraft sim --seeds 2000                 seeds 1 to 2000
      multiraft sim --seed 17 --trace            what happens in seed 17
      multiraft sim --seed 17 --trace 17.txt     the same, into a file
    """
    from multiraft.testing.schedule import FAULTS
    from multiraft.testing.simulation import Options

    kinds = [kind.strip() for kind in faults.split(",")] if faults is not None else None
    for kind in kinds or []:
        if kind not in FAULTS:
            raise click.UsageError(f"there is no kind of fault {kind!r}; there are {', '.join(FAULTS)}")
    again = f"{f' --nodes {nodes}' if nodes else ''}{f' --faults {faults}' if faults else ''}"
    if seed is not None:
        _one(seed, trace, Options(nodes, kinds, details=trace is not None), as_json, again)
    elif trace is not None:
        raise click.UsageError("--trace is for one run: say which with --seed")
    else:
        _many(range(first_seed, first_seed + seeds), jobs, Options(nodes, kinds), as_json, again)


def _one(seed: int, trace: str | None, options: Options, as_json: bool, again: str) -> None:
    from multiraft.testing.many import Summary
    from multiraft.testing.simulation import run_simulation
    from multiraft.testing.workload import registers

    report = run_simulation(seed, registers, options)
    if trace is not None:
        text = "\n".join(report.story) + "\n"
        if trace == "-":
            click.echo(text, nl=False)
        else:
            Path(trace).write_text(text, encoding="utf-8")
    summary = Summary()
    summary.add(report)
    if as_json:
        click.echo(json.dumps(summary.to_plain()))
    else:
        out = sys.stderr if trace == "-" else sys.stdout
        _show(summary, out, again)
        if report.failure and trace is None:
            _show_story(report, out)
    if not summary.ok:
        raise SimulationFailed


def _many(seeds: range, jobs: int | None, options: Options, as_json: bool, again: str) -> None:
    from multiraft.testing.many import processors, run_many
    from multiraft.testing.workload import registers

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, TimeRemainingColumn(), console=console, disable=not console.is_terminal) as progress:
        bar = progress.add_task("simulating", total=len(seeds))
        failed = 0

        def done(report: Report) -> None:
            nonlocal failed
            failed += bool(report.failure)
            said = f"simulating, [red]{failed} failed[/red]" if failed else "simulating"
            progress.update(bar, advance=1, description=said)

        summary = run_many(registers, seeds, jobs or processors(), options, done)
    if as_json:
        click.echo(json.dumps(summary.to_plain()))
    else:
        _show(summary, sys.stdout, again)
    if not summary.ok:
        raise SimulationFailed


def _show(summary: Summary, out: IO[str], again: str) -> None:
    plain = summary.to_plain()
    for name in ("seeds", "virtual_hours", "elapsed_s", "seeds_per_s", "operations", "elections", "membership_changes"):
        if plain[name] or name != "elapsed_s":
            click.echo(f"{name.replace('_', ' '):<20} {plain[name]}", file=out)
    click.echo(
        f"{'checked':<20} {plain['turns_checked']} turns, {plain['promises_checked']} promises, ", file=out, nl=False
    )
    click.echo(f"{plain['applied']} applied commands, {plain['applied_together']} of them in batches", file=out)
    click.echo(
        f"{'exactly once':<20} {plain['numbered']} numbered commands applied, {plain['acknowledged']} acknowledged; "
        f"{plain['repeated']} copies answered and not applied",
        file=out,
    )
    click.echo(f"{'outcome unknown':<20} {plain['outcomes_unknown']} of {plain['commands']} commands", file=out)
    click.echo(f"{'undecided':<20} {len(summary.undecided)}", file=out)
    kinds = [f"{kind} {count}" for kind, count in sorted(summary.faults.items()) if not kind.startswith("failpoint ")]
    places = [f"{kind[10:]} {count}" for kind, count in sorted(summary.faults.items()) if kind.startswith("failpoint ")]
    for title, items in (("faults", kinds), ("at failpoints", places)):
        _show_list(title, items, out)
    for line in summary.undecided[:SHOWN_FAILURES]:
        click.echo(f"undecided: {line}", file=out)
    for line in summary.too_rare():
        click.echo(f"too rare: {line}", file=out)
    for seed in sorted(summary.failed)[:SHOWN_FAILURES]:
        click.echo(f"\nFAILED seed {seed}: {summary.failed[seed]}", file=out)
        click.echo(f"  again: multiraft sim --seed {seed} --trace{again}", file=out)
    if len(summary.failed) > SHOWN_FAILURES:
        click.echo(f"\n... and {len(summary.failed) - SHOWN_FAILURES} more seeds failed", file=out)
    click.echo(
        "all held" if summary.ok else f"NOT ALL HELD: {len(summary.failed)} of {summary.seeds} seeds failed", file=out
    )


def _show_list(title: str, items: list[str], out: IO[str]) -> None:
    line = ""
    for item in items:
        if len(line) + len(item) > 92:
            click.echo(f"{title:<20} {line}", file=out)
            title, line = "", ""
        line += f"{item}, " if item is not items[-1] else item
    click.echo(f"{title:<20} {line or 'none'}", file=out)


def _show_story(report: Report, out: IO[str]) -> None:
    click.echo("\nthe end of its timeline:", file=out)
    for line in report.story[-STORY_LINES:]:
        click.echo(line, file=out)
