"""How every command is run: where it finds its node, how it shows what came, and how it ends.

Rules of this file: results go to the output stream, everything else to the error stream; a command ends by returning,
or by one of the errors here, which say its exit code.
"""

from __future__ import annotations

import functools
import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, NoReturn, TypeVar

import click
from rich.console import Console
from rich.live import Live

from multiraft.admin.client import DEFAULT_TIMEOUT_S, DEFAULT_URL, AdminClient, CannotReach, NodeFailed
from multiraft.admin.tables import Page, render_rich, show
from multiraft.admin.view import Facts

OK: Final = 0
UNHEALTHY: Final = 1
USAGE: Final = 2
UNREACHABLE: Final = 3
NOT_FOUND: Final = 4
REFUSED: Final = 5
UNDONE: Final = 6
BUG: Final = 70
INTERRUPTED: Final = 130
PIPE_CLOSED: Final = 141

R = TypeVar("R")


class CliError(Exception):
    """Ends the command with `code` after printing `error` and `hint`."""

    def __init__(self, code: int, error: str, hint: str = "") -> None:
        super().__init__(error)
        self.code = code
        self.error = error
        self.hint = hint


class Unhealthy(Exception):
    """The result has been printed; what it says is not good."""


class PipeClosed(Exception):
    """Nobody reads the output any more. Apart from BrokenPipeError, which click would turn into exit code 1."""


class Number(click.FloatRange):
    """A number within bounds. Unlike click's own: NaN is below no bound and above none, and still no such number."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        number: float = super().convert(value, param, ctx)
        if math.isnan(number):
            self.fail(f"{value!r} is not a number.", param, ctx)
        return number


@dataclass(slots=True)
class Options:
    """What stands before the command's name."""

    url: str | None
    timeout_s: float | None


def remote(command: Callable[..., R]) -> Callable[..., R]:
    """Give a command the options by which a node is reached; it gets an AdminClient as its first argument."""

    @click.option("--url", metavar="URL", help="Admin URL of any node (also before the command).")
    @click.option("--timeout", type=Number(0.1, 600), metavar="SECONDS", help="Longest wait for an answer.")
    @click.option("--json", "as_json", is_flag=True, help="Print the answer as JSON.")
    @click.pass_context
    @functools.wraps(command)
    def with_client(context: click.Context, /, *args: Any, url: str | None, timeout: float | None, **options: Any) -> R:
        given: Options = context.obj
        timeout_s = timeout or given.timeout_s or DEFAULT_TIMEOUT_S
        client = AdminClient(url or given.url or DEFAULT_URL, timeout_s)
        return command(client, *args, **options)

    return with_client


def watchable(command: Callable[..., R]) -> Callable[..., R]:
    return click.option(
        "--watch", type=Number(0.1, 3600), metavar="SECONDS", help="Show it again and again; Ctrl-C ends it."
    )(command)


def console() -> Console:
    return Console(highlight=False)


def present(ask: Callable[[], Facts], page: Callable[[Facts], Page], as_json: bool, watch: float | None = None) -> None:
    """Print the answer. Raises Unhealthy when the answer itself says so, PipeClosed when nobody reads it."""
    try:
        if watch is not None:
            _watch(ask, page, as_json, watch)
        answer = ask()
        if as_json:
            click.echo(json.dumps(answer, indent=2))
        else:
            show(page(answer), console())
    except BrokenPipeError:
        raise PipeClosed from None
    if not answer.get("healthy", True):
        raise Unhealthy


def _watch(ask: Callable[[], Facts], page: Callable[[Facts], Page], as_json: bool, every_s: float) -> NoReturn:
    """Show the answer again and again. What fails is shown too, and tried again: a watcher waits for better times."""

    def look() -> Page:
        try:
            shown = page(ask())
        except (CannotReach, NodeFailed) as problem:
            shown = Page()
            shown.line(f"error: {problem.error}", "bold red")
            shown.line(f"       {problem.hint}")
        shown.gap()
        shown.line(time.strftime("%H:%M:%S") + f", every {every_s:g} s; Ctrl-C ends", "dim")
        return shown

    screen = console()
    if as_json:
        while True:
            click.echo(json.dumps(ask()))
            time.sleep(every_s)
    if not screen.is_terminal:
        while True:
            show(look(), screen)
            click.echo()
            time.sleep(every_s)
    with Live(render_rich(look(), screen.width), console=screen, screen=True, auto_refresh=False) as live:
        while True:
            time.sleep(every_s)
            live.update(render_rich(look(), screen.width), refresh=True)
