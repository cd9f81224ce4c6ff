"""`multiraft bench`: load on a running cluster, as one remote client, and what came of it.

Rules of this file: it starts and shows; what is asked for, and how it is counted, stands in multiraft.client.load and
workload.
"""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from typing import TYPE_CHECKING, Any, Final

import click
from rich.live import Live

from multiraft.admin import bench_pages
from multiraft.admin.client import DEFAULT_URL, checked_url
from multiraft.admin.invoking import (
    NOT_FOUND,
    REFUSED,
    UNREACHABLE,
    CliError,
    Number,
    Options,
    PipeClosed,
    Unhealthy,
    console,
)
from multiraft.admin.tables import render_rich, show
from multiraft.admin.view import Facts
from multiraft.errors import (
    InvalidRequest,
    MultiRaftError,
    NotReady,
    Unreachable,
)
from multiraft.tuning import event_loop, tune_process

if TYPE_CHECKING:
    from multiraft.client import Client
    from multiraft.client.load import Load, Tally
    from multiraft.client.workload import Workload

CONSISTENCIES: Final = ("linearizable", "lease", "local", "stale")


@click.command(short_help="Load a running cluster, and measure it.")
@click.option("--url", "urls", multiple=True, metavar="URL", help="Admin URL of a node; several may be given.")
@click.option("--in-flight", type=click.IntRange(1, 16_000), metavar="N", help="Calls under way.  [default: 64]")
@click.option("--rate", type=Number(0.1, 10_000_000), metavar="PER_S", help="Calls due per second.")
@click.option("--seconds", type=Number(0.1, 86_400), default=10.0, show_default=True, metavar="S", help="How long.")
@click.option(
    "--warm-up",
    type=Number(0, 3_600),
    default=1.0,
    show_default=True,
    metavar="S",
    help="Before that, not counted.",
)
@click.option(
    "--reads",
    type=Number(0, 1),
    default=0.0,
    show_default=True,
    metavar="SHARE",
    help="Share of reads, 0 to 1.",
)
@click.option(
    "--read-as", type=click.Choice(CONSISTENCIES), default="linearizable", show_default=True, help="Who answers reads."
)
@click.option(
    "--stale-ms",
    type=click.IntRange(0),
    default=1_000,
    show_default=True,
    metavar="MS",
    help="How old answers of --read-as stale may be.",
)
@click.option(
    "--keys",
    type=click.IntRange(1, 10_000_000),
    default=100_000,
    show_default=True,
    metavar="N",
    help="How many different ones.",
)
@click.option(
    "--distribution",
    type=click.Choice(["uniform", "zipf", "sequential"]),
    default="uniform",
    show_default=True,
    help="How often each key comes.",
)
@click.option(
    "--zipf",
    type=Number(0.01, 10),
    default=0.99,
    show_default=True,
    metavar="S",
    help="Its exponent: the higher, the hotter the first keys.",
)
@click.option(
    "--value-size",
    type=click.IntRange(0, 100_000_000),
    default=128,
    show_default=True,
    metavar="BYTES",
    help="Of each value written.",
)
@click.option("--fill", is_flag=True, help="First write every key once, so that reads find values.")
@click.option("--service", default="kv", show_default=True, metavar="NAME", help="The service that is loaded.")
@click.option("--write", default="put", show_default=True, metavar="COMMAND", help="Called as COMMAND(key, value).")
@click.option("--read", default="get", show_default=True, metavar="QUERY", help="Called as QUERY(key).")
@click.option("--seed", type=int, default=1, show_default=True, help="Of the draws of keys and of reads.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
@click.pass_context
def bench(context: click.Context, /, urls: tuple[str, ...], as_json: bool, **options: Any) -> None:
    """Load a running cluster through the protocol of remote clients, and measure it.

    It WRITES to the service: keys bench:0, bench:1, ... with random bytes, which stay there. The service is one of
    your own: any command that takes a key (text) and a value (bytes), and any query that takes a key, will do; what
    they are called is said by --write and --read. The defaults fit the key-value store in examples/kv.

    \b
    Two ways to load:
      closed loop  --in-flight N: N calls are under way at all times; how much is taken?
      open         --rate R: R calls a second are due, whatever becomes of the earlier ones; how
                   long does each take? Counted from when a call was due, so that a stall is felt
                   by all calls that it held up. --in-flight is then the most that may be under way.

    \b
    Keys: uniform     every key as often      sequential  one after the other
          zipf        the k-th key as often as 1 / k^S: a few are hot, as in most real loads

    Every write is numbered, retried where its answer is lost, and done once, as by any remote client. Errors are
    counted by type. Ctrl-C ends the run with the result so far. One client is one process and at most one core: the
    last line says how busy it was. Exits with 1 when calls failed.

    \b
    Examples:
      multiraft bench                                   64 in flight, writes, 10 s
      multiraft bench --in-flight 1000 --seconds 30
      multiraft bench --rate 5000 --reads 0.9           latencies at a given load
      multiraft bench --reads 1 --read-as lease --fill
      multiraft bench --service counters --write set --read get --distribution zipf
      multiraft bench --json | jq .writes.p99_ms
    """
    given: Options = context.obj
    wanted = [checked_url(url) for url in urls or [given.url or DEFAULT_URL]]
    options["timeout_s"] = given.timeout_s or 10.0
    try:
        found = _run(_Bench(wanted, options, as_json).run())
    except Unreachable as problem:
        raise CliError(
            UNREACHABLE, str(problem), "is the node running? Name its admin URL with --url or MULTIRAFT_URL"
        ) from problem
    except NotReady as problem:
        hint = "`multiraft groups` lists what there is; name a service with --service"
        raise CliError(NOT_FOUND, str(problem), hint) from problem
    except InvalidRequest as problem:
        hint = f"--write names a command of {options['service']!r} that takes (key, value), --read a query of (key)"
        raise CliError(REFUSED, str(problem), hint) from problem
    except MultiRaftError as problem:
        hint = "the first call failed, so nothing was measured; `multiraft status` says how the cluster is"
        raise CliError(REFUSED, f"{type(problem).__name__}: {problem}", hint) from problem
    try:
        if as_json:
            click.echo(json.dumps(found, indent=2))
        else:
            show(bench_pages.result_page(found), console())
    except BrokenPipeError:
        raise PipeClosed from None
    if found["interrupted"]:
        raise click.Abort
    if found["errors"]:
        raise Unhealthy


def _run(work: Any) -> Facts:
    with asyncio.Runner(loop_factory=event_loop()) as runner:
        found: Facts = runner.run(work)
    return found


class _Bench:
    """One run of the command."""

    def __init__(self, urls: list[str], options: dict[str, Any], as_json: bool) -> None:
        self._urls = urls
        self._options = options
        self._screen = None if as_json or not sys.stderr.isatty() else console_of_errors()
        self._what = ""

    async def run(self) -> Facts:
        from multiraft.client import Client
        from multiraft.client.load import Load, fill
        from multiraft.client.workload import Workload

        options = self._options
        in_flight = options["in_flight"] or (64 if options["rate"] is None else 10_000)
        workload = Workload(
            options["write"],
            options["read"],
            options["reads"],
            options["keys"],
            options["distribution"],
            options["zipf"],
            options["value_size"],
            options["seed"],
        )
        said = {
            **options,
            "in_flight": in_flight,
            "value_bytes": workload.value_bytes,
            "consistency": options["read_as"],
        }
        self._what = bench_pages.options_text(said)
        timeout_ms, most = int(options["timeout_s"] * 1_000), max(in_flight, 64) + 64
        async with Client(self._urls, timeout_ms=timeout_ms, in_flight=most, in_flight_bytes=1 << 28) as client:
            await self._try_out(client, workload)
            if options["fill"]:
                await fill(client, options["service"], workload, max(in_flight, 256))
            tune_process()
            load = Load(
                client, options["service"], workload, in_flight=in_flight, rate=options["rate"], how=self._how()
            )
            stop = asyncio.Event()
            for number in (signal.SIGINT, signal.SIGTERM):  # until now it ends at once
                asyncio.get_running_loop().add_signal_handler(number, stop.set)
            await self._load(load, stop)
            return self._found(load, client, stop.is_set())

    async def _try_out(self, client: Client, workload: Workload) -> None:
        """Have the first calls show that the service takes what it will get. Raises what they end with."""
        service = client.bytes_service(self._options["service"])
        await client.shards(self._options["service"])
        operations = workload.operations()
        tried: set[bool] = set()
        for _ in range(64):
            reads, key, body = next(operations)
            if reads not in tried:
                tried.add(reads)
                await (service.read(key, body) if reads else service.propose(key, body))

    def _how(self) -> Any:
        from multiraft.consistency import Consistency

        kind = self._options["read_as"]
        stale_ms = self._options["stale_ms"] if kind == "stale" else None
        return Consistency(lease=kind == "lease", local=kind == "local", stale_ms=stale_ms)

    async def _load(self, load: Load, stop: asyncio.Event) -> None:
        seconds, warm_up_s = self._options["seconds"], self._options["warm_up"]
        if self._screen is None:
            await load.run(seconds, warm_up_s, stop, lambda recent: None)
            return
        with Live(console=self._screen, transient=True, auto_refresh=False) as live:

            def looked(recent: Tally) -> None:
                facts = _live(load, recent, warm_up_s if load.warming else seconds)
                screen = self._screen
                if screen is not None:
                    live.update(render_rich(bench_pages.live_page(self._what, facts), screen.width), refresh=True)

            await load.run(seconds, warm_up_s, stop, looked)

    def _found(self, load: Load, client: Client, interrupted: bool) -> Facts:
        from multiraft.client.load import described

        tally, seconds = load.tally, load.seconds
        counts = client.counts
        return {
            "what": self._what,
            "options": {name: value for name, value in self._options.items() if name != "timeout_s"},
            "seconds": seconds,
            "interrupted": interrupted,
            "writes": described(tally.writes, seconds),
            "reads": described(tally.reads, seconds),
            "errors": dict(tally.errors),
            "error": load.error,
            "behind": load.behind,
            "client": {
                "cpu_share": load.cpu_s / seconds if seconds else 0.0,
                "cpu_us_per_call": load.cpu_s / tally.total * 1e6 if tally.total else 0.0,
                "sessions": counts["registered"],
                "retries": counts["retries"],
                "lost": counts["lost"],
            },
        }


def console_of_errors() -> Any:
    """Return the console that progress is drawn on: results go elsewhere."""
    from rich.console import Console

    return Console(stderr=True, highlight=False)


def _live(load: Load, recent: Tally, of_s: float) -> Facts:
    from multiraft.client.histogram import Histogram

    both, whole = Histogram(), Histogram()
    both.merge(recent.writes)
    both.merge(recent.reads)
    whole.merge(load.tally.writes)
    whole.merge(load.tally.reads)
    passed_s = load.clock() - load.began_s
    return {
        "warming": load.warming,
        "passed_s": passed_s,
        "of_s": of_s,
        "per_s": both.total,
        "p50_ms": both.quantile_us(0.5) / 1e3,
        "p99_ms": both.quantile_us(0.99) / 1e3,
        "mean_per_s": whole.total / passed_s if passed_s > 0 else 0.0,
        "errors": load.tally.errors.total(),
        "behind": load.behind,
        "histogram_us": [list(row) for row in whole.rows()],
    }
