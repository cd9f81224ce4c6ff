"""The `multiraft` command: what an operator asks of a running cluster, or of the directory of a stopped node.

Every command prints a table (drawn on a terminal, plain aligned text in a pipe), or with --json the answer as it came.
What goes wrong is one line with a hint on the error stream, and an exit code.

Rules of this file: nothing here changes a cluster or a store; no traceback reaches an operator; results go to the
output stream, everything else to the error stream.
"""

from __future__ import annotations

import functools
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Final, NoReturn, ParamSpec, TypeVar

import click
from rich.console import Console
from rich.live import Live

from multiraft.admin import pages
from multiraft.admin.client import (
    DEFAULT_TIMEOUT_S,
    DEFAULT_URL,
    AdminClient,
    AdminClientError,
    BadRequest,
    BadUrl,
    CannotReach,
    NodeFailed,
    NotFound,
)
from multiraft.admin.formats import printable
from multiraft.admin.sim import SimulationFailed, sim
from multiraft.admin.tables import Page, render_rich, show
from multiraft.admin.view import SORTS, STATES, Facts

OK: Final = 0
UNHEALTHY: Final = 1
USAGE: Final = 2
UNREACHABLE: Final = 3
NOT_FOUND: Final = 4
REFUSED: Final = 5
BUG: Final = 70
INTERRUPTED: Final = 130
PIPE_CLOSED: Final = 141

_EXIT_CODES: Final = """\b
Exit codes:
  0    all is well
  1    it works, but something is unhealthy: a node is down, a group is leaderless
       or halted, a store is damaged; the output says what
  2    wrong usage
  3    the node cannot be reached
  4    no such group, node, service or directory
  5    refused: the node cannot answer now, or the directory is in use or cannot
       be opened
  70   a bug in this tool (MULTIRAFT_DEBUG=1 shows the traceback)
  130  interrupted (Ctrl-C)
"""

P = ParamSpec("P")
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


@dataclass(slots=True)
class Options:
    """What stands before the command's name."""

    url: str | None
    timeout_s: float | None


def _version() -> str:
    try:
        return version("multiraft")
    except PackageNotFoundError:
        return "of a checkout that is not installed"


@click.group(
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog=_EXIT_CODES,
    no_args_is_help=True,
)
@click.option("--url", envvar="MULTIRAFT_URL", metavar="URL", help=f"Admin URL of any node.  [default: {DEFAULT_URL}]")
@click.option("--timeout", type=click.FloatRange(0.1, 600), metavar="SECONDS", help="Longest wait for an answer.")
@click.version_option(_version(), message="multiraft %(version)s")
@click.pass_context
def cli(context: click.Context, url: str | None, timeout: float | None) -> None:
    """Look into a multiraft cluster.

    Ask any node; it answers for all. The node is named by --url or by MULTIRAFT_URL. Every command knows --json.

    \b
    Examples:
      multiraft status                          the nodes: who is up, who is slow
      multiraft groups --state leaderless       what does not work now, and why
      multiraft group 17                        one group and each of its replicas
      multiraft route user:42 --service kv      who serves this key
      multiraft log 17 --last 20                the end of a group's log
      multiraft storage data/n1                 the directory of a stopped node
      multiraft --url 10.0.0.7:7101 status --watch 2
    """
    context.obj = Options(url, timeout)


def _remote(command: Callable[..., R]) -> Callable[..., R]:
    """Give a command the options by which a node is reached; it gets an AdminClient as its first argument."""

    @click.option("--url", metavar="URL", help="Admin URL of any node (also before the command).")
    @click.option("--timeout", type=click.FloatRange(0.1, 600), metavar="SECONDS", help="Longest wait for an answer.")
    @click.option("--json", "as_json", is_flag=True, help="Print the answer as JSON.")
    @click.pass_context
    @functools.wraps(command)
    def with_client(context: click.Context, /, *args: Any, url: str | None, timeout: float | None, **options: Any) -> R:
        given: Options = context.obj
        timeout_s = timeout or given.timeout_s or DEFAULT_TIMEOUT_S
        client = AdminClient(url or given.url or DEFAULT_URL, timeout_s)
        return command(client, *args, **options)

    return with_client


def _watchable(command: Callable[..., R]) -> Callable[..., R]:
    return click.option(
        "--watch", type=click.FloatRange(0.1, 3600), metavar="SECONDS", help="Show it again and again; Ctrl-C ends it."
    )(command)


@cli.command()
@_watchable
@_remote
def status(client: AdminClient, as_json: bool, watch: float | None) -> None:
    """Show every node: up or down, its groups, and what keeps it busy.

    \b
    GROUPS      replicas on the node          LEADS   groups that it leads
    LEADERLESS  those without known leader    HALTED  those that stopped applying
    HEARD       since the asked node heard it
    LAG         worst lateness of its loop within the last second
    LOOP        share of time in turns        DISK    share of time writing
    PENDING     proposals not yet answered

    Exits with 1 when a node is down or a group has no leader or is halted.

    \b
    Examples:
      multiraft status
      multiraft status --watch 2
      multiraft status --json | jq '.nodes[] | select(.state == "down") | .node_id'
    """
    _present(lambda: client.get("status"), pages.status_page, as_json, watch)


@cli.command()
@click.option("--service", metavar="NAME", help="Only groups of this service.")
@click.option("--leader", metavar="NODE", help="Only groups that this node leads.")
@click.option("--node", metavar="NODE", help="Only groups with a replica on this node.")
@click.option("--state", type=click.Choice(STATES), metavar="STATE", help="Only groups in this state.")
@click.option("--sort", metavar="COLUMN", default="group", help=f"One of {', '.join(SORTS)}; -COLUMN turns it round.")
@click.option("--limit", type=click.IntRange(1), metavar="N", help="Show at most N rows.")
@_watchable
@_remote
def groups(client: AdminClient, as_json: bool, watch: float | None, limit: int | None, **filters: str | None) -> None:
    """List the groups of all nodes, each as its leader sees it.

    LAG is what the slowest voter's log lacks, in entries. REPLICAS: n1* leads, n2+5 lacks 5 entries, n3? did
    not answer, n4! is halted.

    \b
    States: ok           it has a leader that answers
            unconfirmed  its followers name a leader whose node did not answer
            halted       a replica has stopped applying
            leaderless   no leader: the line below the table says why

    \b
    Examples:
      multiraft groups --service kv --sort -lag --limit 10
      multiraft groups --node n2 --state leaderless
      multiraft groups --json | jq '.groups | length'
    """
    _present(lambda: client.get("groups", params=filters), lambda a: pages.groups_page(a, limit or 0), as_json, watch)


@cli.command()
@click.argument("group_id", metavar="ID", type=click.IntRange(1))
@_remote
def group(client: AdminClient, group_id: int, as_json: bool) -> None:
    """Show one group: its leader, its log, and each of its replicas.

    \b
    Example:
      multiraft group 17
    """
    _present(lambda: client.get("groups", str(group_id)), pages.group_page, as_json)


@cli.command()
@click.argument("key", metavar="KEY")
@click.option("--service", metavar="NAME", help="Whose key it is; needed when there are several services.")
@click.option(
    "--type", "type_", type=click.Choice(["str", "int", "bytes"]), help="What KEY is; bytes as hex. [default: str]"
)
@_remote
def route(client: AdminClient, key: str, service: str | None, type_: str | None, as_json: bool) -> None:
    """Show which shard, group and node serve a key.

    \b
    Examples:
      multiraft route user:42 --service kv
      multiraft route 1042 --service orders --type int
      multiraft route -- -starts-with-a-dash
    """
    params = {"key": key, "service": service, "type": type_}
    _present(lambda: client.get("route", params=params), pages.route_page, as_json)


@cli.command(short_help="Show the end of a group's log.")
@click.argument("group_id", metavar="ID", type=click.IntRange(1))
@click.option(
    "--last", type=click.IntRange(1, 1000), default=10, show_default=True, metavar="N", help="How many entries."
)
@click.option("--node", metavar="NODE", help="Show this node's copy instead of the leader's.")
@click.option("--full", is_flag=True, help="Do not cut entries to the width (at most 64 KiB of each are shown).")
@_remote
def log(client: AdminClient, group_id: int, last: int, node: str | None, full: bool, as_json: bool) -> None:
    """Show the end of a group's log, commands as calls, anything else in hex.

    \b
    Examples:
      multiraft log 17 --last 20
      multiraft log 17 --node n3        what does n3's copy hold?
      multiraft log 17 --json | jq -r '.entries[-1].entry' | base64 -d
    """
    params = {"last": last, "node": node, "entry_bytes": 65_536 if full or as_json else 1_024}
    width = 0 if full or _console().is_terminal else 100
    answer = functools.partial(client.get, "groups", str(group_id), "log", params=params)
    _present(answer, lambda found: pages.log_page(found, width), as_json)


@cli.command(short_help="Check the data directory of a stopped node.")
@click.argument("directory", metavar="DIR", type=click.Path())
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
def storage(directory: str, as_json: bool) -> None:
    """Check the data directory of a stopped node, and show what it holds.

    Reads every stored value and checks it; changes nothing. Refuses a directory that a running node uses. Exits with
    1 when something does not hold.

    \b
    Examples:
      multiraft storage data/n1
      multiraft storage data/n1 --json | jq '.groups[] | select(.problems != [])'
    """
    from multiraft.admin.stores import inspect_store  # loads LevelDB, which the other commands do without

    _present(lambda: inspect_store(directory), pages.storage_page, as_json)


# ------------------------------------------------------------------------------------------------- presenting


def _console() -> Console:
    return Console(highlight=False)


def _present(
    ask: Callable[[], Facts], page: Callable[[Facts], Page], as_json: bool, watch: float | None = None
) -> None:
    """Print the answer. Raises Unhealthy when the answer itself says so, PipeClosed when nobody reads it."""
    try:
        if watch is not None:
            _watch(ask, page, as_json, watch)
        answer = ask()
        if as_json:
            click.echo(json.dumps(answer, indent=2))
        else:
            show(page(answer), _console())
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

    console = _console()
    if as_json:
        while True:
            click.echo(json.dumps(ask()))
            time.sleep(every_s)
    if not console.is_terminal:
        while True:
            show(look(), console)
            click.echo()
            time.sleep(every_s)
    with Live(render_rich(look(), console.width), console=console, screen=True, auto_refresh=False) as live:
        while True:
            time.sleep(every_s)
            live.update(render_rich(look(), console.width), refresh=True)


cli.add_command(sim)


# ----------------------------------------------------------------------------------------------- entry point


def run(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code; everything that goes wrong has been printed."""
    try:
        cli.main(args=list(arguments) if arguments is not None else None, prog_name="multiraft", standalone_mode=False)
        return OK
    except (Unhealthy, SimulationFailed):
        return UNHEALTHY
    except (KeyboardInterrupt, click.Abort):
        return INTERRUPTED
    except PipeClosed:
        _silence_output()
        return PIPE_CLOSED
    except click.exceptions.NoArgsIsHelpError as problem:
        problem.show()
        return USAGE
    except click.ClickException as problem:
        path = problem.ctx.command_path if isinstance(problem, click.UsageError) and problem.ctx else "multiraft"
        return _fail(USAGE, problem.format_message(), f"{path} --help shows how to use it")
    except BadUrl as problem:
        return _fail(USAGE, problem.error, problem.hint)
    except AdminClientError as problem:
        codes = {CannotReach: UNREACHABLE, NotFound: NOT_FOUND, BadRequest: USAGE}
        return _fail(codes.get(type(problem), REFUSED), problem.error, problem.hint)
    except CliError as problem:
        return _fail(problem.code, problem.error, problem.hint)
    except Exception as problem:
        if os.environ.get("MULTIRAFT_DEBUG"):
            raise
        hint = "a bug in this tool, or a node of another version; MULTIRAFT_DEBUG=1 shows the traceback"
        return _fail(BUG, f"{type(problem).__name__}: {problem}", hint)


def _fail(code: int, error: str, hint: str) -> int:
    click.echo(f"error: {printable(error)}", err=True)
    if hint:
        click.echo(f"       {printable(hint)}", err=True)
    return code


def _silence_output() -> None:
    """The reader of our output has gone: keep the interpreter from complaining when it flushes at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def main() -> NoReturn:
    """The entry point of the `multiraft` command."""
    sys.exit(run())


if __name__ == "__main__":
    main()
