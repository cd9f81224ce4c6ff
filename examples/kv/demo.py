"""The demo: three nodes, a load, crashes, and a comparison of every record with what was acknowledged.

    1  three node processes start on free loopback ports: 16 shards, 3 replicas of each
    2  the load begins, and beside it somebody counts; in its middle the node that leads most groups is killed with
       SIGKILL
    3  the time is taken until every shard takes writes again; the killed node comes back and catches up
    4  everything is read back from every node, and from every replica, and compared
    5  all three are killed at once, restarted, and everything is compared again

Rules of this file: a record is expected back from the moment it was acknowledged, not before; a counter is expected to
have counted each acknowledged increment once, and no other; the exit code is 0 only if every record was acknowledged
and none is missing anywhere; no process outlives the demo.
"""

from __future__ import annotations

import asyncio
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import aiohttp
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from examples.kv.client import Client, key_path
from examples.kv.cluster import Cluster, ClusterError
from examples.kv.load import Record, Report, first_records, load, unicode_records
from examples.kv.verify import Difference, compare_everywhere, read_groups
from multiraft.admin.pages import groups_page
from multiraft.admin.tables import show
from multiraft.errors import MultiRaftError

BATCH: Final = 20
CONCURRENCY: Final = 16
COUNTERS: Final = 4
KILL_AT: Final = 0.4
"""The share of the records after whose acknowledgement the node is killed."""
EXIT_LOST: Final = 1
EXIT_BROKEN: Final = 3
EXIT_INTERRUPTED: Final = 130

_SETTLE_S: Final = 30.0
_POLL_S: Final = 0.02
_PROBE_S: Final = 20.0


class DemoError(Exception):
    """The demo could not be carried to its end."""


@dataclass(slots=True)
class Outcome:
    """What the closing screen tells."""

    acknowledged: dict[str, bytes] = field(default_factory=dict)
    counts: Counter[str] = field(default_factory=Counter)
    expected: int = 0
    report: Report = field(default_factory=Report)
    before_crash_per_s: float = 0.0
    attempts: int = 0
    retries: int = 0
    unknown: int = 0
    writable_s: float = 0.0
    leaders_s: float = 0.0
    catch_up_s: float = 0.0
    restart_s: float = 0.0
    differences: list[tuple[str, Difference]] = field(default_factory=list)

    @property
    def lost(self) -> int:
        """The records that are missing or different in some view, each counted once."""
        gone = {key for _, found in self.differences for key in (*found.missing, *found.different)}
        return len(gone)

    @property
    def good(self) -> bool:
        loaded = self.report.records == self.expected
        return loaded and bool(self.differences) and all(found.clean for _, found in self.differences)


def run(*, keep: bool, plant_loss: bool, records: int | None, limits: Mapping[str, int]) -> int:
    """Run the demo; return its exit code: 0 nothing lost, 1 something lost, 3 it broke off, 130 interrupted.

    keep        leave the cluster running at the end, until Ctrl-C
    plant_loss  drop one record from one replica behind its back before comparing: must be noticed; the shards are kept
                in memory for that
    records     load only so many
    limits      of every node, in place of its defaults
    """
    console = Console(highlight=False, soft_wrap=True)
    directory = Path(tempfile.mkdtemp(prefix="multiraft-demo-"))
    try:
        return asyncio.run(_until_stopped(_Demo(console, directory, keep, plant_loss, records, limits).run()))
    except (KeyboardInterrupt, asyncio.CancelledError):
        console.print("\ninterrupted; all nodes have been stopped")
        return EXIT_INTERRUPTED
    except (DemoError, ClusterError, MultiRaftError, RuntimeError, aiohttp.ClientError) as problem:
        Console(stderr=True, highlight=False).print(f"error: the demo broke off: {problem}", markup=False)
        return EXIT_BROKEN
    finally:
        shutil.rmtree(directory, ignore_errors=True)


async def _until_stopped(work: Any) -> int:
    """Run `work`; SIGTERM and SIGHUP end it like Ctrl-C, so that it ends its children."""
    task = asyncio.current_task()
    loop = asyncio.get_running_loop()
    if task is not None:
        for number in (signal.SIGTERM, signal.SIGHUP):
            loop.add_signal_handler(number, task.cancel)
    code: int = await work
    return code


class _Demo:
    def __init__(
        self,
        console: Console,
        directory: Path,
        keep: bool,
        plant_loss: bool,
        records: int | None,
        limits: Mapping[str, int],
    ) -> None:
        self.console = console
        self.keep = keep
        self.plant_loss = plant_loss
        options = [f"--limit={name}={value}" for name, value in limits.items()]
        # Nothing but commands can write to a shard on disk: a loss is planted into shards in memory.
        planting = ["--in-memory", "--allow-planted-loss"] if plant_loss else []
        self.cluster = Cluster(directory, [*options, *planting])
        self.records: list[Record] = list(first_records(unicode_records(), records))
        self.outcome = Outcome(expected=len(self.records))
        self._half_way = asyncio.Event()
        self._session: aiohttp.ClientSession | None = None

    async def run(self) -> int:
        began = time.monotonic()
        self._title("three nodes, 16 shards, 3 replicas of each")
        async with self.cluster, aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=15.0)) as self._session:
            for node in self.cluster.nodes.values():
                self._say(f"node {node.node_id}: {node.url}, data {node.data_dir}")
            await self._settled()
            await self._load_and_crash()
            if self.plant_loss:
                await self._plant_loss()
            await self._compare("after the crash of one")
            await self._crash_all()
            await self._compare("after the crash of all")
            self._closing(time.monotonic() - began)
            if self.keep:
                await self._stay()
        return 0 if self.outcome.good else EXIT_LOST

    # ------------------------------------------------------------------------------------------------ the story

    async def _load_and_crash(self) -> None:
        outcome = self.outcome
        self._title(f"loading {len(self.records):,} Unicode names over HTTP, {CONCURRENCY} requests of {BATCH} at once")
        probes = await self._probes()
        async with Client(self.cluster.urls, timeout_s=60.0) as client:
            with self._progress() as progress:
                bar = progress.add_task("acknowledged", total=len(self.records))
                began = time.monotonic()
                loading = asyncio.create_task(self._load(client, progress, bar))
                counting = asyncio.create_task(self._count(client, loading))
                half_way = asyncio.create_task(self._half_way.wait())
                try:
                    await asyncio.wait([loading, half_way], return_when=asyncio.FIRST_COMPLETED)
                    if loading.done():
                        loading.result()
                    outcome.before_crash_per_s = len(outcome.acknowledged) / (time.monotonic() - began)
                    victim = await self._crash_busiest(progress.console, probes)
                    outcome.report = await loading
                    await counting
                finally:
                    for task in (loading, half_way, counting):
                        task.cancel()
                    await asyncio.gather(loading, half_way, counting, return_exceptions=True)
            counts = client.counts
            outcome.attempts, outcome.retries, outcome.unknown = counts.attempts, counts.retries, counts.unknown
        self._say(
            f"{len(self.records):,} of {len(self.records):,} acknowledged; {self._leaders_now(await self._groups())}"
        )
        await self._bring_back(victim)

    async def _load(self, client: Client, progress: Progress, bar: Any) -> Report:
        acknowledged = self.outcome.acknowledged
        enough = KILL_AT * len(self.records)

        def note(records: list[Record]) -> None:
            acknowledged.update(records)
            progress.advance(bar, len(records))
            if len(acknowledged) >= enough:
                self._half_way.set()

        return await load(client, self.records, batch=BATCH, concurrency=CONCURRENCY, acknowledged=note)

    async def _count(self, client: Client, loading: asyncio.Task[Report]) -> None:
        """Increment some counters for as long as the load lasts; what is expected of them is what was acknowledged."""

        async def work(key: str) -> None:
            while not loading.done():
                await client.increment(key)
                self.outcome.counts[key] += 1

        await asyncio.gather(*[work(f"count/{number}") for number in range(COUNTERS)])
        self.outcome.acknowledged.update((key, b"%d" % count) for key, count in self.outcome.counts.items())

    async def _crash_busiest(self, console: Console, probes: dict[int, str]) -> str:
        """Kill the node that leads most; take the time until every shard takes a write again. Returns its id."""
        before = await self._groups()
        show(groups_page(before), console)
        leads = Counter(group["leader"] for group in before["groups"])
        victim = max(self.cluster.nodes, key=lambda name: leads[name])
        orphans = [group["group_id"] for group in before["groups"] if group["leader"] == victim]
        moment = await self.cluster.kill(victim)
        console.print(f"kill -9 {victim}, which led {len(orphans)} of {len(before['groups'])} shards", style="bold red")
        others = [node.url for node in self.cluster.nodes.values() if node.running]
        writable = asyncio.create_task(self._writable_again(others, probes, moment))
        try:
            after = await self._led_by_others(others[0], victim)
            self.outcome.leaders_s = time.monotonic() - moment
            self.outcome.writable_s = await writable
        finally:
            writable.cancel()
            await asyncio.gather(writable, return_exceptions=True)
        took = Counter(group["leader"] for group in after["groups"] if group["group_id"] in orphans)
        who = ", ".join(f"{name} took over {count}" for name, count in sorted(took.items()))
        console.print(
            f"{who}; all led again after {self.outcome.leaders_s:.2f} s, "
            f"every shard took a write after {self.outcome.writable_s:.2f} s",
            style="bold green",
        )
        return victim

    async def _bring_back(self, victim: str) -> None:
        await self.cluster.start(victim)
        began = time.monotonic()
        groups = await self._settled()
        self.outcome.catch_up_s = time.monotonic() - began
        self._say(f"{victim} is back and has caught up with all shards; {self._leaders_now(groups)}")

    async def _crash_all(self) -> None:
        self._title("kill -9 of all three at once")
        await self.cluster.kill(*self.cluster.nodes)
        self.outcome.restart_s = await self.cluster.start(*self.cluster.nodes)
        groups = await self._settled()
        self._say(f"ready again {self.outcome.restart_s:.2f} s after their start; {self._leaders_now(groups)}")

    async def _plant_loss(self) -> None:
        """Drop a record from one follower, which nobody asks, so that only a look at each replica can notice."""
        groups = (await self._groups())["groups"]
        key = self.records[0][0]
        shard_id = await self._shard_of(key)
        group = next(group for group in groups if group["shard"]["shard_id"] == shard_id)
        follower = next(replica for replica in group["replicas"] if replica["node_id"] != group["leader"])
        url = self.cluster.nodes[follower["node_id"]].url
        route = key_path(key, f"/replica/{group['group_id']}/")
        async with self._http.delete(url + route) as response:
            if response.status != 200 or not (await response.json())["dropped"]:
                raise DemoError(f"the loss of {key} could not be planted on node {follower['node_id']}")
        self._say(f"planted: {key} is gone from node {follower['node_id']}, replica {follower['replica_id']}")

    async def _compare(self, when: str) -> None:
        self._title(f"reading everything back, {when}")
        urls = {name: node.url for name, node in self.cluster.nodes.items()}
        for found in await compare_everywhere(self._http, urls, self.outcome.acknowledged):
            self.outcome.differences.append((when, found))
            verdict = "as acknowledged" if found.clean else found.example()
            self._say(f"{found.where}: {found.read:,} records, {verdict}", "green" if found.clean else "bold red")

    # ---------------------------------------------------------------------------------------------- its pieces

    async def _probes(self) -> dict[int, str]:
        """Return one key for each shard."""
        wanted = {group["shard"]["shard_id"] for group in (await self._groups())["groups"]}
        probes: dict[int, str] = {}
        for number in range(1_000):
            key = f"probe/{number}"
            probes.setdefault(await self._shard_of(key), key)
            if len(probes) == len(wanted):
                return probes
        raise DemoError("no key was found for some shards")

    async def _shard_of(self, key: str) -> int:
        url = self._any_url() + "/admin/route"
        async with self._http.get(url, params={"key": key, "service": "kv"}) as response:
            answer = await response.json()
            if response.status != 200:
                raise DemoError(f"{url}: {answer['error']}")
            return int(answer["shard"]["shard_id"])

    async def _writable_again(self, urls: list[str], probes: dict[int, str], moment: float) -> float:
        """Return how long after `moment` the last shard took a write, from the nodes that are left."""
        async with Client(urls, timeout_s=_PROBE_S, attempt_timeout_s=1.0) as client:

            async def probe(key: str) -> float:
                value = str(time.time_ns()).encode()
                await client.put(key, value)
                self.outcome.acknowledged[key] = value
                return time.monotonic() - moment

            return max(await asyncio.gather(*[probe(key) for key in probes.values()]))

    async def _led_by_others(self, url: str, victim: str) -> dict[str, Any]:
        async for answer in self._groups_until(url):
            leaders = [group["leader"] for group in answer["groups"]]
            if victim not in leaders and None not in leaders:
                return answer
        raise DemoError(f"some shards were still without a leader {_SETTLE_S:.0f} s after {victim} was killed")

    async def _settled(self) -> dict[str, Any]:
        """Wait until every replica of every shard has all that its leader has."""
        async for answer in self._groups_until(self._any_url()):
            if answer["healthy"] and all(group["lag"] == 0 for group in answer["groups"]):
                return answer
        raise DemoError(f"some replicas had not caught up after {_SETTLE_S:.0f} s: see `multiraft groups`")

    async def _groups_until(self, url: str) -> AsyncIterator[dict[str, Any]]:
        give_up = time.monotonic() + _SETTLE_S
        while time.monotonic() < give_up:
            yield await read_groups(self._http, url)
            await asyncio.sleep(_POLL_S)

    async def _groups(self) -> dict[str, Any]:
        return await read_groups(self._http, self._any_url())

    def _any_url(self) -> str:
        return next(node.url for node in self.cluster.nodes.values() if node.running)

    @property
    def _http(self) -> aiohttp.ClientSession:
        if self._session is None:
            raise DemoError("the demo is not running")
        return self._session

    # --------------------------------------------------------------------------------------------- its screens

    def _progress(self) -> Progress:
        return Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=self.console,
        )

    def _title(self, text: str) -> None:
        self.console.print(f"\n{text}", style="bold", markup=False)

    def _say(self, text: str, style: str = "") -> None:
        self.console.print(f"  {text}", style=style, markup=False)

    def _leaders_now(self, answer: dict[str, Any]) -> str:
        leads = Counter(str(group["leader"]) for group in answer["groups"])
        return "leads now: " + ", ".join(f"{name} {count}" for name, count in sorted(leads.items()))

    def _closing(self, elapsed_s: float) -> None:
        outcome = self.outcome
        report = outcome.report
        quantiles = (("p50", 0.5), ("p99", 0.99), ("longest", 1.0))
        latency = ", ".join(f"{name} {report.latency_ms(share):.1f} ms" for name, share in quantiles)
        rows = [
            ("acknowledged", f"{report.records:,} of {outcome.expected:,} records"),
            ("lost", f"{outcome.lost}"),
            (
                "requests",
                f"{outcome.attempts:,} attempts, {outcome.retries} of them retries",
            ),
            ("", f"{outcome.unknown} writes to a shard of unknown outcome, asked again under their number: done once"),
            ("counted", f"{outcome.counts.total():,} increments of {len(outcome.counts)} counters meanwhile"),
            ("writes/s", f"{outcome.before_crash_per_s:,.0f} before the crash, {report.records_per_s:,.0f} with it"),
            ("latency", f"{latency} for {BATCH} records"),
            ("failover", f"every shard took a write {outcome.writable_s:.2f} s after SIGKILL"),
            ("", f"and had its new leader confirmed after {outcome.leaders_s:.2f} s"),
            ("catching up", f"{outcome.catch_up_s:.2f} s after the killed node was ready"),
            ("crash of all", f"ready {outcome.restart_s:.2f} s after the restart"),
            (
                "compared",
                f"{sum(found.read for _, found in outcome.differences):,} records in {len(outcome.differences)} views",
            ),
            ("took", f"{elapsed_s:.1f} s"),
        ]
        table = Table.grid(padding=(0, 2))
        for name, text in rows:
            style = "" if name != "lost" else ("bold green" if outcome.lost == 0 else "bold red")
            table.add_row(name, text, style=style)
        self._title("in short")
        self.console.print(table)
        for when, found in outcome.differences:
            if not found.clean:
                self._say(f"{when}, {found.where}: {found.example()}", "bold red")
        if outcome.good:
            self._say("nothing was lost", "bold green")
        else:
            self._say("NOT everything is as it was acknowledged", "bold red")
        if not self.keep:
            self._say(f"{_tool('python')} -m examples.kv demo --keep leaves the cluster running, to go on by hand")

    async def _stay(self) -> None:
        """Say what can be tried, and wait for Ctrl-C."""
        stop = asyncio.Event()  # before anything is said: whoever reads it may press Ctrl-C at once
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            asyncio.get_running_loop().add_signal_handler(number, stop.set)
        nodes = list(self.cluster.nodes.values())
        first = nodes[0].url
        self._title("the cluster stays until Ctrl-C; try in another terminal")
        kv, multiraft = f"{_tool('python')} -m examples.kv", _tool("multiraft")
        for line in (
            f"curl {first}/kv/U+2603",
            f"{kv} --url {nodes[1].url} put greeting 'hello, world'",
            f"{kv} --url {nodes[2].url} get greeting",
            f"{kv} --url {first} scan U+26 --limit 5",
            f"{multiraft} --url {first} status",
            f"{multiraft} --url {first} groups --sort -lag",
            f"{multiraft} --url {first} route U+2603 --service kv",
            f"kill -9 {self._pid(0)}   # node {nodes[0].node_id}; the other two go on",
        ):
            self._say(line)
        await stop.wait()
        self._say("stopping")

    def _pid(self, at: int) -> int:
        process = list(self.cluster.nodes.values())[at].process
        return process.pid if process is not None else 0


def _tool(name: str) -> str:
    """Return how to call a command that lies beside the running interpreter, from the current directory."""
    path = Path(sys.executable).with_name(name)
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)
