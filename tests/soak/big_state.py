"""State larger than memory should be: what a node needs to hold, to start with, and to hand on.

    python -m tests.soak.big_state --gib 2 --shard-mb 500

    1  one node, 16 shards on disk: blobs are written until the state is so large; its anonymous memory is looked at
       all the while, from outside
    2  it is killed with SIGKILL and started again, then stopped in order and started again: the time until every shard
       has answered a read and a write
    3  three nodes with two replicas of each shard: one shard is made so large, and gets a third replica while others
       write to the other shards; the lateness of each node's loop, and how long those writes take, before and meanwhile

Rules of this file: what is judged is measured by the system or inside the node, never guessed from outside; nothing
outlives the program.
"""

from __future__ import annotations

import argparse
import asyncio
import shutil
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

from tests.soak.cluster import SoakCluster, cpu_s, memory_mib
from tests.soak.wire import Connection, LostError

MIB: Final = 1024 * 1024
MEMORY_MIB: Final = 500.0
START_S: Final = 5.0
LAG_MS: Final = 50.0
SLOWER: Final = 2.0

_LOOK_S: Final = 0.2
_NAMES: Final = 64


class Judged:
    """The verdicts, as they are reached."""

    def __init__(self) -> None:
        self.good = True

    def judge(self, what: str, found: float, most: float, unit: str) -> None:
        good = found <= most
        self.good = self.good and good
        print(f"{'ok    ' if good else 'FAILED'} {what}: {found:.1f} {unit} (at most {most:g})", flush=True)


@asynccontextmanager
async def connected(cluster: SoakCluster, node_id: str) -> AsyncIterator[Connection]:
    connection = await _dial(cluster, node_id)
    try:
        yield connection
    finally:
        await connection.close()


async def _dial(cluster: SoakCluster, node_id: str) -> Connection:
    while True:
        try:
            return await Connection.to(cluster.port(node_id))
        except LostError:
            await asyncio.sleep(0.01)


class Watched:
    """The most anonymous memory that a node had while the block ran."""

    def __init__(self, cluster: SoakCluster, *node_ids: str) -> None:
        self._nodes = [cluster.nodes[node_id] for node_id in node_ids]
        self.most_mib = 0.0

    async def __aenter__(self) -> Watched:
        self._task = asyncio.create_task(self._look())
        return self

    async def __aexit__(self, *ending: object) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    async def _look(self) -> None:
        while True:
            for node in self._nodes:
                self.most_mib = max(self.most_mib, memory_mib(node).get("RssAnon", 0.0))
            await asyncio.sleep(_LOOK_S)


async def hold(arguments: argparse.Namespace, directory: Path, judged: Judged) -> None:
    """Parts 1 and 2."""
    options = [f"--shards={arguments.shards}", "--replicas=1", *_limits(arguments)]
    async with SoakCluster(directory, options, node_ids=("a",)) as cluster:
        fill = {
            "prefix": "blob",
            "blob_bytes": arguments.blob_bytes,
            "group_id": 0,
            "size_bytes": int(arguments.gib * 1024 * MIB),
        }
        async with Watched(cluster, "a") as watched, connected(cluster, "a") as node:
            done = await node.ask("fill", fill)
        rate = arguments.gib * 1024 / done["elapsed_s"]
        print(
            f"wrote {arguments.gib:g} GiB in {done['elapsed_s']:.0f} s, {rate:.0f} MiB/s; "
            f"the longest write took {done['longest_s']:.1f} s",
            flush=True,
        )
        judged.judge("most anonymous memory while writing", watched.most_mib, MEMORY_MIB, "MiB")
        await asyncio.sleep(arguments.settle)
        memory = memory_mib(cluster.nodes["a"])
        judged.judge("anonymous memory after", memory["RssAnon"], MEMORY_MIB, "MiB")
        print(f"       files in memory {memory['RssFile']:.0f} MiB, on disk {_disk_mib(directory):.0f} MiB")
        for how in ("kill", "stop"):
            judged.judge(f"serving again after {how}", await _restart(cluster, how, done["written"]), START_S, "s")
            judged.judge("anonymous memory then", memory_mib(cluster.nodes["a"])["RssAnon"], MEMORY_MIB, "MiB")


async def _restart(cluster: SoakCluster, how: str, written: int) -> float:
    """Return how long it took until every shard had answered a read and a write."""
    if how == "kill":
        await cluster.kill("a")
    else:
        await cluster.stop()
    began = time.monotonic()
    starting = asyncio.create_task(cluster.start("a"))
    async with connected(cluster, "a") as node:
        names = [f"blob{number * 7919 % written}" for number in range(_NAMES)]
        groups = dict(zip(await node.ask("groups_of", names), names, strict=True))
        for name in groups.values():
            if not await node.ask("get", name):
                raise RuntimeError(f"{name} was not found")
        await asyncio.gather(*[node.ask("count", name) for name in groups.values()])
    elapsed_s = time.monotonic() - began
    await starting
    print(
        f"       {len(groups)} shards have answered; the node has used {cpu_s(cluster.nodes['a']):.1f} s of CPU by then"
    )
    return elapsed_s


async def hand_on(arguments: argparse.Namespace, directory: Path, judged: Judged) -> None:
    """Part 3."""
    options = [f"--shards={arguments.shards}", "--replicas=2", *_limits(arguments)]
    async with (
        SoakCluster(directory, options) as cluster,
        connected(cluster, "a") as a,
        connected(cluster, "b") as b,
        connected(cluster, "c") as c,
    ):
        nodes = {"a": a, "b": b, "c": c}
        names = [f"probe{number}" for number in range(_NAMES)]
        groups = dict(zip(await a.ask("groups_of", names), names, strict=True))
        held = {node_id: set((await node.ask("groups", None)).keys()) for node_id, node in nodes.items()}
        large = min(group_id for group_id in groups if group_id not in held["c"])
        size_bytes = int(arguments.shard_mb * 1e6)
        fill = {
            "prefix": "large",
            "blob_bytes": arguments.blob_bytes,
            "group_id": large,
            "size_bytes": size_bytes,
        }
        done = await a.ask("fill", fill)
        print(f"made group {large} of {arguments.shard_mb:g} MB in {done['elapsed_s']:.0f} s", flush=True)
        others = [name for group_id, name in groups.items() if group_id != large]
        before = await _probe(nodes, others, asyncio.sleep(arguments.settle))
        growing = asyncio.create_task(a.ask("grow", [large, "c"]))
        async with Watched(cluster, *nodes) as watched:
            during = await _probe(nodes, others, growing)
        print(f"       the third replica took {growing.result():.1f} s")
        _compare(judged, before, during)
        judged.judge("most anonymous memory meanwhile", watched.most_mib, MEMORY_MIB, "MiB")
        await _check(nodes["c"], large, done["written"])


async def _probe(nodes: dict[str, Connection], names: list[str], work: Any) -> dict[str, dict[str, float]]:
    """Have every node probe itself while `work` goes on; each writes to a third of the names."""
    parts = {node_id: names[at :: len(nodes)] for at, node_id in enumerate(nodes)}
    await asyncio.gather(*[node.ask("probe", parts[node_id]) for node_id, node in nodes.items()])
    await work
    answers = await asyncio.gather(*[node.ask("probe", None) for node in nodes.values()])
    return dict(zip(nodes, answers, strict=True))


def _compare(judged: Judged, before: dict[str, dict[str, float]], during: dict[str, dict[str, float]]) -> None:
    for when, found in (("before", before), ("meanwhile", during)):
        for node_id, one in found.items():
            writes = f"{one['writes']} writes, {one['failed']} failed, p50 {one['p50_ms']:.1f} ms"
            late = f"loop late by {one['lag_ms']:.1f} ms, p99 {one['lag_p99_ms']:.1f} ms"
            print(f"       {when:9} {node_id}: {writes}, p99 {one['p99_ms']:.1f} ms, {late}")
    judged.judge("latest loop meanwhile", max(one["lag_ms"] for one in during.values()), LAG_MS, "ms")
    p99 = {when: max(one["p99_ms"] for one in found.values()) for when, found in (("b", before), ("d", during))}
    judged.judge("p99 of writes to other shards, against before", p99["d"] / p99["b"], SLOWER, "times")
    judged.judge("writes that failed", sum(one["failed"] for one in during.values()), 0, "writes")


async def _check(node: Connection, group_id: int, written: int) -> None:
    """The new replica must have everything."""
    blobs = (await node.ask("blobs", group_id))["blobs"]
    if blobs != written:
        raise RuntimeError(f"the new replica has {blobs} of {written} blobs")
    print(f"       the new replica has all {written} blobs", flush=True)


def _limits(arguments: argparse.Namespace) -> list[str]:
    return [f"--limit={limit}" for limit in arguments.limit]


def _disk_mib(directory: Path) -> float:
    return sum(path.stat().st_size for path in directory.rglob("*") if path.is_file()) / MIB


async def soak(arguments: argparse.Namespace, directory: Path) -> int:
    judged = Judged()
    if arguments.gib:
        await hold(arguments, directory / "hold", judged)
        shutil.rmtree(directory / "hold")
    if arguments.shard_mb:
        await hand_on(arguments, directory / "hand-on", judged)
    print("all is within bounds" if judged.good else "NOT all is within bounds")
    return 0 if judged.good else 1


def main(words: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Large state: memory, restart, and another replica of a large shard.")
    parser.add_argument("--gib", type=float, default=2.0, help="of state in one node; 0: leave that out")
    parser.add_argument(
        "--shard-mb", type=float, default=500.0, help="of the shard that is handed on; 0: leave that out"
    )
    parser.add_argument("--shards", type=int, default=16)
    parser.add_argument("--blob-bytes", type=int, default=16_384)
    parser.add_argument(
        "--settle", type=float, default=10.0, help="seconds of quiet, and of measuring before the last part"
    )
    parser.add_argument("--limit", action="append", default=[], metavar="NAME=VALUE")
    parser.add_argument("--directory", type=Path, help="where the nodes' data go [a temporary one]")
    arguments = parser.parse_args(words)
    directory = Path(tempfile.mkdtemp(prefix="multiraft-soak-", dir=arguments.directory))
    try:
        return asyncio.run(soak(arguments, directory))
    finally:
        shutil.rmtree(directory, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main())
