"""The `multiraft` command: what an operator asks of a running cluster, or of the directory of a stopped node.

Every command prints a table (drawn on a terminal, plain aligned text in a pipe), or with --json the answer as it came.
What goes wrong is one line with a hint on the error stream, and an exit code.

Rules of this file: what changes a cluster stands in multiraft.admin.member_commands and mending_commands, the rest only
looks; no traceback
reaches an operator; results go to the output stream, everything else to the error stream.
"""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Final, NoReturn

import click

from multiraft.admin import (
    backup_commands,
    bench_commands,
    member_commands,
    mending_commands,
    pages,
    recover_commands,
    storage_commands,
)
from multiraft.admin.client import (
    DEFAULT_URL,
    AdminClient,
    AdminClientError,
    BadRequest,
    BadUrl,
    CannotReach,
    NotDone,
    NotFound,
)
from multiraft.admin.formats import printable
from multiraft.admin.invoking import (
    BUG,
    INTERRUPTED,
    NOT_FOUND,
    OK,
    PIPE_CLOSED,
    REFUSED,
    UNDONE,
    UNHEALTHY,
    UNREACHABLE,
    USAGE,
    CliError,
    Number,
    Options,
    PipeClosed,
    Unhealthy,
    console,
    present,
    remote,
    watchable,
)
from multiraft.admin.sim import SimulationFailed, sim
from multiraft.admin.transfer_pages import transfers_page
from multiraft.admin.view import SORTS, STATES
from multiraft.compiled import COMPILED

_EXIT_CODES: Final = """\b
Exit codes:
  0    all is well
  1    it works, but something is unhealthy: a node is down, a group is leaderless
       or halted, a store is damaged; the output says what
  2    wrong usage
  3    the node cannot be reached
  4    no such group, node, service or directory
  5    refused: the node cannot answer now, a change would be unsafe or makes no
       sense, or the directory is in use or cannot be opened
  6    a change is not done in time; it may still come about
  70   a bug in this tool (MULTIRAFT_DEBUG=1 shows the traceback)
  130  interrupted (Ctrl-C)
"""


def _version() -> str:
    build = "compiled" if COMPILED else "pure Python"
    try:
        return f"{version('multiraft')} ({build})"
    except PackageNotFoundError:
        return f"of a checkout that is not installed ({build})"


@click.group(
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog=_EXIT_CODES,
    no_args_is_help=True,
)
@click.option("--url", envvar="MULTIRAFT_URL", metavar="URL", help=f"Admin URL of any node.  [default: {DEFAULT_URL}]")
@click.option("--timeout", type=Number(0.1, 600), metavar="SECONDS", help="Longest wait for an answer.")
@click.version_option(_version(), message="multiraft %(version)s")
@click.pass_context
def cli(context: click.Context, url: str | None, timeout: float | None) -> None:
    """Look into a multiraft cluster, and change who takes part in its groups.

    Ask any node; it answers for all. The node is named by --url or by MULTIRAFT_URL. Every command knows --json.

    \b
    Examples:
      multiraft status                          the nodes: who is up, who is slow
      multiraft groups --state leaderless       what does not work now, and why
      multiraft group 17                        one group and each of its replicas
      multiraft group why 17                    why it is halted, slow, or without leader
      multiraft route user:42 --service kv      who serves this key
      multiraft log 17 --last 20                the end of a group's log
      multiraft transfers                       snapshots on their way between nodes
      multiraft members 17                      who takes part in a group
      multiraft member replace 17 n2 n4         move a replica; also add, remove, ...
      multiraft transfer 17 n3                  have n3 lead it
      multiraft storage data/n1                 the directory of a stopped node; also verify, repair, compact
      multiraft backup backups/monday           the state of everything; also export
      multiraft restore backups/monday ...      a new cluster of it; also import
      multiraft recover --help                  when a quorum is lost for good
      multiraft bench --in-flight 64            load it, and measure it (writes keys bench:...)
      multiraft --url 10.0.0.7:7101 status --watch 2
    """
    context.obj = Options(url, timeout)


@cli.command()
@watchable
@remote
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
    present(lambda: client.get("status"), pages.status_page, as_json, watch)


@cli.command()
@click.option("--service", metavar="NAME", help="Only groups of this service.")
@click.option("--leader", metavar="NODE", help="Only groups that this node leads.")
@click.option("--node", metavar="NODE", help="Only groups with a replica on this node.")
@click.option("--state", type=click.Choice(STATES), metavar="STATE", help="Only groups in this state.")
@click.option("--sort", metavar="COLUMN", default="group", help=f"One of {', '.join(SORTS)}; -COLUMN turns it round.")
@click.option("--limit", type=click.IntRange(1), metavar="N", help="Show at most N rows.")
@watchable
@remote
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
    present(lambda: client.get("groups", params=filters), lambda a: pages.groups_page(a, limit or 0), as_json, watch)


@cli.command()
@click.argument("key", metavar="KEY")
@click.option("--service", metavar="NAME", help="Whose key it is; needed when there are several services.")
@click.option(
    "--type", "type_", type=click.Choice(["str", "int", "bytes"]), help="What KEY is; bytes as hex. [default: str]"
)
@remote
def route(client: AdminClient, key: str, service: str | None, type_: str | None, as_json: bool) -> None:
    """Show which shard, group and node serve a key.

    \b
    Examples:
      multiraft route user:42 --service kv
      multiraft route 1042 --service orders --type int
      multiraft route -- -starts-with-a-dash
    """
    params = {"key": key, "service": service, "type": type_}
    present(lambda: client.get("route", params=params), pages.route_page, as_json)


@cli.command()
@watchable
@remote
def transfers(client: AdminClient, as_json: bool, watch: float | None) -> None:
    """Show the files of snapshots that are on their way between nodes.

    A replica that lacks more than its leader's log still holds gets a snapshot; a large one is a file of its own.
    HERE is what its receiver has of it. Exits with 1 when a transfer has failed several times in a row.

    \b
    Stages: waiting   for others to be done (snapshot_transfers), or to try again: PROBLEM says why
            fetching  on its way           checking  all has come, its digest is compared
            whole     it is here; a leader is awaited that sends its message again
            sending   only its owner tells of it: the receiver did not answer

    \b
    Examples:
      multiraft transfers --watch 1
      multiraft transfers --json | jq '.transfers[] | {group_id, to, bytes, of}'
    """
    present(lambda: client.get("transfers"), transfers_page, as_json, watch)


@cli.command(short_help="Show the end of a group's log.")
@click.argument("group_id", metavar="ID", type=click.IntRange(1))
@click.option(
    "--last", type=click.IntRange(1, 1000), default=10, show_default=True, metavar="N", help="How many entries."
)
@click.option("--node", metavar="NODE", help="Show this node's copy instead of the leader's.")
@click.option("--full", is_flag=True, help="Do not cut entries to the width (at most 64 KiB of each are shown).")
@remote
def log(client: AdminClient, group_id: int, last: int, node: str | None, full: bool, as_json: bool) -> None:
    """Show the end of a group's log, commands as calls, anything else in hex.

    \b
    Examples:
      multiraft log 17 --last 20
      multiraft log 17 --node n3        what does n3's copy hold?
      multiraft log 17 --json | jq -r '.entries[-1].entry' | base64 -d
    """
    params = {"last": last, "node": node, "entry_bytes": 65_536 if full or as_json else 1_024}
    width = 0 if full or console().is_terminal else 100
    answer = functools.partial(client.get, "groups", str(group_id), "log", params=params)
    present(answer, lambda found: pages.log_page(found, width), as_json)


cli.add_command(storage_commands.storage)
cli.add_command(mending_commands.group)
cli.add_command(member_commands.members)
cli.add_command(member_commands.member)
cli.add_command(member_commands.transfer)
cli.add_command(recover_commands.recover)
cli.add_command(backup_commands.backup)
cli.add_command(backup_commands.export)
cli.add_command(backup_commands.restore)
cli.add_command(backup_commands.import_)

cli.add_command(sim)
cli.add_command(bench_commands.bench)


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
        codes = {CannotReach: UNREACHABLE, NotFound: NOT_FOUND, BadRequest: USAGE, NotDone: UNDONE}
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
