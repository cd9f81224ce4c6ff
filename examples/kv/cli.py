"""`python -m examples.kv`: run a node, use a cluster, load it, or watch the whole story.

Rules of this file: results go to stdout, everything else to stderr; what goes wrong is one line, `error: ...`, and
an exit code; no traceback reaches a user.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Callable, Coroutine, Iterable
from dataclasses import fields
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final, NoReturn, TypeVar

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from examples.kv import demo as demo_module
from examples.kv import server
from examples.kv.client import Client
from examples.kv.load import LoadError, Record, check_file, file_records, load, unicode_records
from examples.kv.machine import TTL_LIMIT_MS
from examples.kv.resp.server import CLIENTS
from examples.kv.server import EXIT_USAGE, report
from examples.kv.watch import run_watch
from multiraft.admin.invoking import Number
from multiraft.config import STORES, Limits, NodeConfig
from multiraft.errors import ConfigError, MultiRaftError, OutcomeUnknown

DEFAULT_URL: Final = "http://127.0.0.1:7101"
EXIT_ABSENT: Final = 1
EXIT_UNKNOWN: Final = 5
EXIT_REFUSED: Final = 6
EXIT_INTERRUPTED: Final = 130

_EXIT_CODES: Final = """\b
Exit codes:
  0    done
  1    get: there is no such key; delete: there was none; cas: it held something
       else; demo: something was lost
  2    wrong usage or configuration, or a file that cannot be loaded
  3    node: it cannot start from what it found; demo: it broke off
  4    node: it ended by itself, its store could not be written
  5    the outcome is unknown: it may or may not have happened
  6    it was not done: no node answered in time, or it was refused
  130  interrupted (Ctrl-C)
"""

T = TypeVar("T")


@click.group(
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog=_EXIT_CODES,
)
@click.option(
    "--url", "urls", multiple=True, envvar="KV_URL", metavar="URL", help=f"A node; may be repeated. [{DEFAULT_URL}]"
)
@click.option("--timeout", type=Number(0.1, 3600), default=30.0, show_default=True, metavar="SECONDS")
@click.pass_context
def cli(context: click.Context, urls: tuple[str, ...], timeout: float) -> None:
    """A sharded, replicated key-value store.

    \b
    Examples:
      python -m examples.kv demo
      python -m examples.kv put greeting hello
      python -m examples.kv get greeting
      python -m examples.kv load unicode
    """
    for url in urls:
        if not url.startswith(("http://", "https://")):
            raise click.BadParameter(f"{url!r} must be like {DEFAULT_URL}", param_hint="--url")
    context.obj = (urls or (DEFAULT_URL,), timeout)


# -------------------------------------------------------------------------------------------------------- a node


def _members(context: click.Context, parameter: click.Parameter, values: tuple[str, ...]) -> dict[str, str]:
    members: dict[str, str] = {}
    for value in values:
        name, found, address = value.partition("=")
        if not found or name in members:
            raise click.BadParameter(f"{value!r}: must be NAME=HOST:PORT, each name once")
        members[name] = address
    return members


def _limits(context: click.Context, parameter: click.Parameter, values: tuple[str, ...]) -> dict[str, int]:
    known = [item.name for item in fields(Limits)]
    limits: dict[str, int] = {}
    for value in values:
        name, _, number = value.partition("=")
        if name not in known or name in limits or not number.isascii() or not number.isdigit():
            raise click.BadParameter(f"{value!r}: must be NAME=NUMBER, each name once; known: {', '.join(known)}")
        limits[name] = int(number)
    return limits


@cli.command()
@click.option("--config", metavar="FILE", help="TOML with node_id, data_dir, listen, [members] and [limits].")
@click.option("--id", "node_id", metavar="NAME", help="This node's name; one of the members.")
@click.option("--listen", metavar="HOST:PORT", help="Where its peers reach it.")
@click.option("--data", metavar="DIR", help="Its data; made when missing.")
@click.option(
    "--store", type=click.Choice(STORES), help="What keeps them. [leveldb where it is installed, else sqlite]"
)
@click.option(
    "--member", "members", multiple=True, callback=_members, metavar="NAME=HOST:PORT", help="A founding node."
)
@click.option("--http", required=True, metavar="HOST:PORT", help="Where it serves the HTTP API.")
@click.option("--resp", metavar="HOST:PORT", help="Where it serves clients of Redis, if it should.")
@click.option(
    "--resp-password", envvar="KV_RESP_PASSWORD", metavar="TEXT", help="What they must say first. [$KV_RESP_PASSWORD]"
)
@click.option("--resp-clients", type=click.IntRange(1, 1_000_000), default=CLIENTS, show_default=True)
@click.option("--shards", type=click.IntRange(1, 4096), default=server.INITIAL_SHARDS, show_default=True)
@click.option("--replicas", type=click.IntRange(1, 7), help="Of each shard. [3, or the number of members if less]")
@click.option("--limit", "limits", multiple=True, callback=_limits, metavar="NAME=VALUE", help="As in [limits].")
@click.option("--in-memory", is_flag=True, help="Keep the shards in memory, not in the database.")
@click.option("--insecure", is_flag=True, help="Allow addresses beyond loopback although nobody is authenticated.")
@click.option("--until-stdin-closes", is_flag=True, hidden=True)
@click.option("--allow-planted-loss", is_flag=True, hidden=True)
def node(
    config: str | None,
    node_id: str | None,
    listen: str | None,
    data: str | None,
    store: str | None,
    members: dict[str, str],
    http: str,
    resp: str | None,
    resp_password: str | None,
    resp_clients: int,
    shards: int,
    replicas: int | None,
    limits: dict[str, int],
    in_memory: bool,
    insecure: bool,
    until_stdin_closes: bool,
    allow_planted_loss: bool,
) -> None:
    """Run one node until SIGTERM or Ctrl-C.

    The same command on every start: the members, shards and replicas are those of the first one, and differing ones
    are refused later. The shards lie on disk, or all of them in memory.

    \b
    Example, the first of three:
      python -m examples.kv node --id a --listen 127.0.0.1:7001 --http 127.0.0.1:7101 --data data/a \\
          --member a=127.0.0.1:7001 --member b=127.0.0.1:7002 --member c=127.0.0.1:7003
    """
    given = {
        "--id": node_id,
        "--listen": listen,
        "--data": data,
        "--member": members,
        "--limit": limits,
        "--store": store,
    }
    try:
        if config is not None:
            named = [name for name, value in given.items() if value]
            if named:
                raise ConfigError(f"{named[0]} and --config: say it in one place, {config} or the options")
            settings = NodeConfig.from_toml(config)
        else:
            missing = [name for name, value in given.items() if not value and name not in ("--limit", "--store")]
            if missing:
                raise ConfigError(f"{missing[0]} is missing; give it, or --config FILE")
            kept_by = store or ("leveldb" if find_spec("plyvel") else "sqlite")
            settings = NodeConfig(node_id or "", data or "", listen or "", members, insecure, Limits(**limits), kept_by)
    except ConfigError as problem:
        sys.exit(report(problem, EXIT_USAGE))
    copies = replicas or min(server.REPLICAS, len(settings.members))
    options = server.Options(
        http, shards, copies, in_memory, until_stdin_closes, allow_planted_loss, resp, resp_password, resp_clients
    )
    sys.exit(server.run(settings, options))


# ------------------------------------------------------------------------------------------------------- its use


def _with_client(
    context: click.Context, work: Callable[[Client], Coroutine[Any, Any, T]], *, exactly_once: bool = False
) -> T:
    """Run `work` with a client; what goes wrong ends the process with one line.

    exactly_once  for what must not be done twice; it costs a session in every shard
    """
    urls, timeout_s = context.obj

    async def run() -> T:
        async with Client(urls, timeout_s=timeout_s, exactly_once=exactly_once) as client:
            return await work(client)

    try:
        return asyncio.run(run())
    except OutcomeUnknown as problem:
        sys.exit(report(problem, EXIT_UNKNOWN))
    except MultiRaftError as problem:
        sys.exit(report(problem, EXIT_REFUSED))
    except KeyboardInterrupt:
        sys.exit(EXIT_INTERRUPTED)


@cli.command()
@click.argument("key")
@click.pass_context
def get(context: click.Context, key: str) -> None:
    """Print the value of KEY."""
    value = _with_client(context, lambda client: client.get(key))
    if value is None:
        sys.exit(_absent(key))
    _print_bytes(value)


_TTL = click.option(
    "--ttl", "ttl_s", type=Number(0.001, TTL_LIMIT_MS / 1_000), metavar="SECONDS", help="For so long only."
)


@cli.command()
@click.argument("key")
@click.argument("value")
@_TTL
@click.pass_context
def put(context: click.Context, key: str, value: str, ttl_s: float | None) -> None:
    """Store VALUE under KEY; `-` reads the value from stdin."""
    content = sys.stdin.buffer.read() if value == "-" else os.fsencode(value)
    _with_client(context, lambda client: client.put(key, content, ttl_ms=_milliseconds(ttl_s)))


@cli.command()
@click.argument("key")
@click.argument("ttl_s", type=Number(0.001, TTL_LIMIT_MS / 1_000), metavar="SECONDS")
@click.pass_context
def expire(context: click.Context, key: str, ttl_s: float) -> None:
    """Have KEY end after SECONDS."""
    if not _with_client(context, lambda client: client.expire(key, _milliseconds(ttl_s) or 1)):
        sys.exit(_absent(key))


@cli.command()
@click.argument("key")
@click.pass_context
def persist(context: click.Context, key: str) -> None:
    """Have KEY stay, whatever was said of its end."""
    if not _with_client(context, lambda client: client.persist(key)):
        sys.exit(_absent(key))


@cli.command()
@click.argument("key")
@click.pass_context
def ttl(context: click.Context, key: str) -> None:
    """Print how many seconds KEY has left; `stays` if it does not end."""
    life = _with_client(context, lambda client: client.ttl(key))
    if not life.present:
        sys.exit(_absent(key))
    click.echo("stays" if life.ttl_ms is None else f"{life.ttl_ms / 1_000:.3f}")


@cli.command()
@click.argument("key")
@click.pass_context
def delete(context: click.Context, key: str) -> None:
    """Remove KEY."""
    if not _with_client(context, lambda client: client.delete(key)):
        sys.exit(_absent(key))


@cli.command()
@click.argument("key")
@click.argument("value")
@click.option("--expect", metavar="VALUE", help="What it must hold; left out: it must be absent.")
@_TTL
@click.pass_context
def cas(context: click.Context, key: str, value: str, expect: str | None, ttl_s: float | None) -> None:
    """Store VALUE under KEY if it holds what is expected; print what it holds then."""
    wanted = None if expect is None else os.fsencode(expect)
    ttl_ms = _milliseconds(ttl_s)
    swap = _with_client(
        context,
        lambda client: client.compare_and_set(key, wanted, os.fsencode(value), ttl_ms=ttl_ms),
        exactly_once=True,
    )
    if swap.current is not None:
        _print_bytes(swap.current)
    sys.exit(0 if swap.swapped else EXIT_ABSENT)


@cli.command()
@click.argument("key")
@click.argument("amount", type=int, default=1)
@click.pass_context
def increment(context: click.Context, key: str, amount: int) -> None:
    """Add AMOUNT (1) to the number under KEY; print the sum."""
    click.echo(_with_client(context, lambda client: client.increment(key, amount), exactly_once=True))


@cli.command()
@click.argument("prefix", default="")
@click.option("--limit", type=click.IntRange(1), metavar="N", help="Stop after so many.")
@click.pass_context
def scan(context: click.Context, prefix: str, limit: int | None) -> None:
    """Print `key<TAB>value` for every key that begins with PREFIX, in order."""

    async def show(client: Client) -> None:
        shown = 0
        async for key, value in client.scan(prefix, page=min(limit or 1_000, 1_000)):
            click.echo(f"{key}\t{value.decode(errors='backslashreplace')}")
            shown += 1
            if shown == limit:
                return

    _with_client(context, show)


@cli.command()
@click.pass_context
def count(context: click.Context) -> None:
    """Print how many keys there are."""
    click.echo(_with_client(context, lambda client: client.count()))


@cli.command(name="watch")
@click.argument("prefix", default="")
@click.option("--after", metavar="TOKEN", help="Begin with what came after TOKEN, as an earlier watch told it.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line, each with its token.")
@click.option("--limit", type=click.IntRange(1), metavar="N", help="Stop after so many.")
@click.pass_context
def watch_command(context: click.Context, prefix: str, after: str | None, as_json: bool, limit: int | None) -> None:
    """Print what happens to the keys that begin with PREFIX, as it happens, until Ctrl-C.

    \b
    put<TAB>key<TAB>value      delete<TAB>key      expire<TAB>key

    It goes on at another node when one ends. At its end it says on stderr with which --after to resume. Exit code 6
    when TOKEN is older than what the store keeps.
    """
    urls, _ = context.obj
    sys.exit(run_watch(urls, prefix, after, as_json=as_json, limit=limit))


@cli.command(name="load")
@click.argument("source", metavar="FILE|unicode")
@click.option("--all", "everything", is_flag=True, help="unicode: also the CJK ideographs and Hangul syllables.")
@click.option("--batch", type=click.IntRange(1, 10_000), default=100, show_default=True, help="Records per request.")
@click.option("--concurrency", type=click.IntRange(1, 1_000), default=16, show_default=True, help="Requests at once.")
@click.pass_context
def load_command(context: click.Context, source: str, everything: bool, batch: int, concurrency: int) -> None:
    """Write all records of FILE (JSON lines or CSV), or the names of Unicode's characters.

    \b
    FILE.jsonl   {"key": "...", "value": "..."} on each line
    FILE.csv     a first line that names the columns key and value
    unicode      U+0041 -> LATIN CAPITAL LETTER A, and so on
    """
    try:
        if source == "unicode":
            total, records = sum(1 for _ in unicode_records(everything)), unicode_records(everything)
        else:
            if everything:
                raise LoadError("--all belongs to `load unicode`")
            total, records = check_file(Path(source)), file_records(Path(source))
    except LoadError as problem:
        sys.exit(report(problem, EXIT_USAGE))
    _with_client(context, lambda client: _load(client, total, records, batch, concurrency))


async def _load(client: Client, total: int, records: Iterable[Record], batch: int, concurrency: int) -> None:
    console = Console(stderr=True, highlight=False)
    columns = (TextColumn("acknowledged"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console) as progress:
        bar = progress.add_task("load", total=total)
        done = await load(
            client,
            records,
            batch=batch,
            concurrency=concurrency,
            acknowledged=lambda piece: progress.advance(bar, len(piece)),
        )
    counts = client.counts
    click.echo(
        f"{done.records} records acknowledged in {done.elapsed_s:.2f} s, {done.records_per_s:.0f} a second; "
        f"requests: p50 {done.latency_ms(0.5):.1f} ms, p99 {done.latency_ms(0.99):.1f} ms, {counts.attempts} attempts, "
        f"{counts.retries} retries, {counts.unknown} unknown outcomes"
    )


# ------------------------------------------------------------------------------------------------------ the demo


@cli.command()
@click.option("--keep", is_flag=True, help="Leave the cluster running at the end, until Ctrl-C.")
@click.option("--plant-loss", is_flag=True, help="Drop one record from one replica behind its back: must exit 1.")
@click.option("--records", type=click.IntRange(1), metavar="N", help="Load only the first N records.")
@click.option("--limit", "limits", multiple=True, callback=_limits, metavar="NAME=VALUE", help="As of `node`.")
def demo(keep: bool, plant_loss: bool, records: int | None, limits: dict[str, int]) -> None:
    """Start three nodes, load them, crash them, and compare every record with what was acknowledged.

    Exits with 0 only if every record was acknowledged and nothing was lost.
    """
    sys.exit(demo_module.run(keep=keep, plant_loss=plant_loss, records=records, limits=limits))


def _milliseconds(seconds: float | None) -> int | None:
    return None if seconds is None else max(1, round(seconds * 1_000))


def _absent(key: str) -> int:
    click.echo(f"error: there is no key {key!r}", err=True)
    return EXIT_ABSENT


def _print_bytes(value: bytes) -> None:
    sys.stdout.buffer.write(value)
    if sys.stdout.isatty():
        sys.stdout.buffer.write(b"\n")
    sys.stdout.buffer.flush()


def main(arguments: list[str] | None = None) -> NoReturn:
    """Run the command line; a mistake in it is one line, too."""
    try:
        cli.main(args=arguments, prog_name="python -m examples.kv", standalone_mode=False)
        sys.exit(0)
    except (click.exceptions.NoArgsIsHelpError, click.exceptions.Exit) as problem:
        if isinstance(problem, click.exceptions.NoArgsIsHelpError):
            problem.show()
            sys.exit(EXIT_USAGE)
        sys.exit(problem.exit_code)
    except click.ClickException as problem:
        path = (
            problem.ctx.command_path
            if isinstance(problem, click.UsageError) and problem.ctx
            else "python -m examples.kv"
        )
        click.echo(f"error: {problem.format_message()}\n       {path} --help shows how to use it", err=True)
        sys.exit(EXIT_USAGE)
    except (KeyboardInterrupt, click.Abort):
        sys.exit(EXIT_INTERRUPTED)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(EXIT_REFUSED)
