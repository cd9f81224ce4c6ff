"""Writes from outside: a client process of its own that PUTs to the key-value example over HTTP.

One request per write over kept connections to the node that leads; what it costs beside a call within the leader's
process is the price of HTTP, paid twice: by the client and by the node. All three nodes and the client share the
machine.

Rules of this file: a closed loop; a request that is not answered 2xx ends the run.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp

from examples.kv.cluster import Cluster

WARM_UP_S = 1.0


@dataclass(frozen=True, slots=True)
class Outside:
    """Writes a second, their latency as the client sees it, and the first node's CPU and syncs meanwhile."""

    per_s: float
    p50_ms: float
    p99_ms: float
    cpu_us: float
    syncs_per_s: float


async def measure_http(directory: Path, groups: int, in_flight: int, payload_bytes: int, seconds: float) -> Outside:
    """Start three key-value nodes with `groups` shards, measure, and end them."""
    async with Cluster(directory, ("--shards", str(groups))) as cluster:
        connector = aiohttp.TCPConnector(limit=min(in_flight, 500))
        async with aiohttp.ClientSession(connector=connector) as session:
            await _load(session, cluster.urls, in_flight, payload_bytes, WARM_UP_S)
            before = await _counts(session, cluster.urls[0])
            began_s = time.perf_counter()
            latencies = await _load(session, cluster.urls, in_flight, payload_bytes, seconds)
            took_s = time.perf_counter() - began_s
            after = await _counts(session, cluster.urls[0])
    latencies.sort()
    count = len(latencies)
    return Outside(
        per_s=count / took_s,
        p50_ms=latencies[count // 2] * 1e3,
        p99_ms=latencies[int(count * 0.99)] * 1e3,
        cpu_us=(after["cpu_s"] - before["cpu_s"]) / count * 1e6,
        syncs_per_s=(after["syncs"] - before["syncs"]) / took_s,
    )


async def _load(
    session: aiohttp.ClientSession, urls: list[str], in_flight: int, payload_bytes: int, seconds: float
) -> list[float]:
    latencies: list[float] = []
    value = b"x" * payload_bytes
    end_s = time.perf_counter() + seconds

    async def client(number: int) -> None:
        url = f"{urls[number % len(urls)]}/kv/key{number % 4096}"
        while True:
            before_s = time.perf_counter()
            if before_s >= end_s:
                return
            async with session.put(url, data=value) as answer:
                if answer.status >= 300:
                    raise RuntimeError(f"PUT {url}: {answer.status} {await answer.text()}")
                await answer.read()
            latencies.append(time.perf_counter() - before_s)

    await asyncio.gather(*[client(number) for number in range(in_flight)])
    return latencies


async def _counts(session: aiohttp.ClientSession, url: str) -> dict[str, Any]:
    async with session.get(f"{url}/admin/status") as answer:
        status = await answer.json()
    me = next(row for row in status["nodes"] if row["node_id"] == status["asked"])
    return {"cpu_s": me["process"]["cpu_s"], "syncs": me["writer"]["syncs"]}
