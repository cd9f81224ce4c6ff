"""A remote client of three processes that are killed with SIGKILL under it: every command is done exactly once."""

from __future__ import annotations

import asyncio
import signal
from pathlib import Path

from examples.kv.cluster import Cluster
from examples.kv.machine import KV
from multiraft.client import Client

QUICK = ("--limit=beat_ms=20", "--limit=election_timeout_ms=150", "--shards=8")
WORKERS = 24
DEADLINE_S = 60
EACH = 120


async def test_kills_and_retries_do_everything_once(tmp_path: Path) -> None:
    """Workers count up, each its own key, while one node after the other is killed and started again.

    A key must hold exactly the number of calls that returned, and each call must have returned the number after the one
    before it: a command that was lost, or done twice, breaks both.
    """
    async with Cluster(tmp_path, QUICK) as cluster, Client(cluster.urls, timeout_ms=DEADLINE_S * 1_000) as client:
        kv = client.service("kv", KV)
        done = 0
        reached = [asyncio.Event() for _ in "abc"]

        async def work(number: int) -> None:
            nonlocal done
            for count in range(1, EACH + 1):
                assert await kv.increment(f"worker {number}") == count
                done += 1
                for turn, event in enumerate(reached):
                    if done >= (turn + 0.5) * WORKERS * EACH / 4:
                        event.set()

        async def torment() -> None:
            for event, node_id in zip(reached, "abc", strict=True):
                await event.wait()
                await cluster.kill(node_id)
                await cluster.start(node_id)

        async with asyncio.timeout(DEADLINE_S), asyncio.TaskGroup() as group:
            for number in range(WORKERS):
                group.create_task(work(number))
            group.create_task(torment())
        assert done == WORKERS * EACH
        for number in range(WORKERS):
            assert await kv.get(f"worker {number}") == b"%d" % EACH
        assert client.counts["lost"] >= 2
        assert client.counts["retries"] > 0


async def test_a_cluster_that_dies_whole_is_found_again(tmp_path: Path) -> None:
    async with Cluster(tmp_path, QUICK) as cluster, Client(cluster.urls, timeout_ms=DEADLINE_S * 1_000) as client:
        kv = client.service("kv", KV)
        assert await kv.increment("x") == 1
        await cluster.kill("a", "b", "c")
        call = asyncio.create_task(kv.increment("x"))
        await cluster.start("a", "b", "c")
        assert await call == 2
        assert await kv.get("x") == b"2"


async def test_a_node_that_stands_still_is_left(tmp_path: Path) -> None:
    """A stopped process keeps its connections and answers nothing: who waits for it asks elsewhere."""
    async with Cluster(tmp_path, QUICK) as cluster, Client(cluster.urls, timeout_ms=DEADLINE_S * 1_000) as client:
        kv = client.service("kv", KV)
        keys = [f"worker {number}" for number in range(WORKERS)]
        assert await asyncio.gather(*[kv.increment(key) for key in keys]) == [1] * WORKERS
        process = cluster.nodes["a"].process
        assert process is not None
        process.send_signal(signal.SIGSTOP)
        try:
            assert await asyncio.gather(*[kv.increment(key) for key in keys]) == [2] * WORKERS
        finally:
            process.send_signal(signal.SIGCONT)
        assert await asyncio.gather(*[kv.increment(key) for key in keys]) == [3] * WORKERS
