"""`python -m benchmarks.idle`: what idle groups cost, and how fast they come back when their leader's node is killed.

Three key-value nodes, with as many shards as asked for, idle for a while after all leaders stand: CPU (getrusage) and
frames of each node. Then, several times: kill -9 of the first node, which leads about a third of the groups, and the
seconds from the signal until a client outside has written to EVERY group; then it is started again.

Rules of this file: nothing but the idle nodes runs while they are measured, the client neither.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import tempfile
import time
from hashlib import blake2b
from pathlib import Path
from typing import Any

import aiohttp

from examples.kv.cluster import Cluster


async def _status(session: aiohttp.ClientSession, url: str) -> dict[str, Any]:
    """The node at `url`, as it describes itself."""
    async with session.get(f"{url}/admin/status") as answer:
        status: dict[str, Any] = await answer.json()
    found: dict[str, Any] = next(row for row in status["nodes"] if row["node_id"] == status["asked"])
    return found


def _one_key_per_shard(shards: int) -> list[str]:
    """Return keys that fall into different shards, one for each: the hash space is cut evenly."""
    found: dict[int, str] = {}
    number = 0
    while len(found) < shards:
        key = f"idle{number}"
        digest = int.from_bytes(blake2b(key.encode(), digest_size=8).digest(), "big")
        found.setdefault(digest * shards >> 64, key)
        number += 1
    return list(found.values())


async def _write_all(urls: list[str], keys: list[str]) -> None:
    """Write every key once, trying until each is accepted; 64 at a time, over the given nodes."""
    waiting = asyncio.Queue[str]()
    for key in keys:
        waiting.put_nowait(key)
    timeout = aiohttp.ClientTimeout(total=30)
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=64), timeout=timeout) as session:

        async def writer(number: int) -> None:
            attempt = number
            while not waiting.empty():
                key = waiting.get_nowait()
                while True:
                    attempt += 1
                    url = f"{urls[attempt % len(urls)]}/kv/{key}"
                    async with session.put(url, data=b"x") as answer:
                        await answer.read()
                        if answer.status < 300:
                            break
                    await asyncio.sleep(0.01)

        await asyncio.gather(*[writer(number) for number in range(64)])


async def measure(shards: int, idle_s: float, kills: int) -> dict[str, Any]:
    """Run the whole measurement and return its figures."""
    keys = _one_key_per_shard(shards)
    with tempfile.TemporaryDirectory(prefix="multiraft-idle-") as directory:
        began_s = time.monotonic()
        async with Cluster(Path(directory), ("--shards", str(shards))) as cluster:
            started_s = time.monotonic() - began_s
            await _write_all(cluster.urls, keys)
            await asyncio.sleep(2.0)  # what the writes left to do
            async with aiohttp.ClientSession() as session:
                before = [await _status(session, url) for url in cluster.urls]
                began_s = time.monotonic()
                await asyncio.sleep(idle_s)
                took_s = time.monotonic() - began_s
                after = [await _status(session, url) for url in cluster.urls]
            nodes = [
                {
                    "node_id": late["node_id"],
                    "led": late["groups"]["led"],
                    "cpu_percent": (late["process"]["cpu_s"] - early["process"]["cpu_s"]) / took_s * 100,
                    "frames_per_s": (late["counters"]["frames_sent"] - early["counters"]["frames_sent"]) / took_s,
                    "max_rss_mb": late["process"]["max_rss_bytes"] / 2**20,
                }
                for early, late in zip(before, after, strict=True)
            ]
            failovers = []
            for number in range(kills):
                failovers.append(await _fail_over(cluster, keys, number))
                print(f"kill {number + 1}/{kills}: {failovers[-1]['seconds']:.2f} s", flush=True)
    seconds = [failover["seconds"] for failover in failovers]
    return {
        "shards": shards,
        "idle_s": idle_s,
        "start_s": started_s,
        "nodes": nodes,
        "failovers": failovers,
        "failover_median_s": statistics.median(seconds) if seconds else None,
        "failover_worst_s": max(seconds, default=None),
    }


async def _fail_over(cluster: Cluster, keys: list[str], number: int) -> dict[str, Any]:
    """Kill the node that leads most groups; return how many, and how long until all groups took a write."""
    async with aiohttp.ClientSession() as session:
        led = {}
        for node_id, url in zip(("a", "b", "c"), cluster.urls, strict=True):
            led[node_id] = (await _status(session, url))["groups"]["led"]
    victim = max(led, key=lambda name: led[name])
    others = [url for name, url in zip(("a", "b", "c"), cluster.urls, strict=True) if name != victim]
    began_s = time.monotonic()
    await cluster.kill(victim)
    await _write_all(others, keys)
    seconds = time.monotonic() - began_s
    await cluster.start(victim)
    await asyncio.sleep(3.0)  # its first election timeout, in which it votes for nobody
    return {"victim": victim, "led": led[victim], "seconds": seconds}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.idle", description=__doc__.split("\n\n")[0])
    parser.add_argument("--shards", type=int, default=1000)
    parser.add_argument("--idle-s", type=float, default=60.0, help="how long to measure them idle")
    parser.add_argument("--kills", type=int, default=5)
    options = parser.parse_args()
    found = asyncio.run(measure(options.shards, options.idle_s, options.kills))
    print(
        f"{found['shards']} groups on three nodes, all leaders after {found['start_s']:.1f} s; idle {options.idle_s} s"
    )
    print(f"{'node':6} {'leads':>6} {'CPU %':>7} {'frames/s':>9} {'max RSS MB':>11}")
    for node in found["nodes"]:
        print(
            f"{node['node_id']:6} {node['led']:>6} {node['cpu_percent']:>7.2f} {node['frames_per_s']:>9.1f} "
            f"{node['max_rss_mb']:>11.0f}"
        )
    if found["failovers"]:
        led = [failover["led"] for failover in found["failovers"]]
        print(
            f"kill -9 of a node leading {led} groups, until every group took a write from outside: median "
            f"{found['failover_median_s']:.2f} s, worst of {len(led)} {found['failover_worst_s']:.2f} s"
        )
    results = Path(__file__).resolve().parent / "results"
    results.mkdir(exist_ok=True)
    (results / "idle.json").write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
