"""Three nodes as processes, killed with SIGKILL, one and all: every acknowledged write survives."""

from __future__ import annotations

import asyncio
import itertools
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import aiohttp

from examples.kv.client import Client
from examples.kv.cluster import Cluster
from examples.kv.verify import compare_everywhere, read_groups
from multiraft.errors import MultiRaftError

BEFORE_CRASH = 300
SECONDS = 60
QUICK = ("--limit=beat_ms=20", "--limit=election_timeout_ms=150")


@dataclass
class Writer:
    """Writes key after key, each once, and keeps what was acknowledged; what was not may still have happened."""

    urls: list[str]
    prefix: str

    def __post_init__(self) -> None:
        self.acknowledged: dict[str, bytes] = {}
        self.doubtful: dict[str, bytes] = {}
        self.goal = BEFORE_CRASH
        self.enough = asyncio.Event()
        self.stopped = False

    async def run(self) -> None:
        """Write until told to stop. Every attempt has a key of its own, so that a late one cannot hide a loss."""
        numbers = itertools.count()
        async with Client(self.urls, timeout_s=2.0, attempt_timeout_s=1.0) as client:
            await asyncio.gather(*[self._work(client, numbers) for _ in range(8)])

    async def _work(self, client: Client, numbers: Iterator[int]) -> None:
        while not self.stopped:
            number = next(numbers)
            key, value = f"{self.prefix}/{number}", b"%d" % number
            self.doubtful[key] = value
            try:
                await client.put(key, value)
            except MultiRaftError:
                continue
            self.acknowledged[key] = self.doubtful.pop(key)
            if len(self.acknowledged) >= self.goal:
                self.enough.set()


async def settled(session: aiohttp.ClientSession, url: str) -> Counter[str]:
    """Wait until every replica has all that its leader has; return what the groups' leaders lead."""
    async with asyncio.timeout(SECONDS):
        while True:
            answer = await read_groups(session, url)
            if answer["healthy"] and all(group["lag"] == 0 for group in answer["groups"]):
                return Counter(str(group["leader"]) for group in answer["groups"])
            await asyncio.sleep(0.02)


async def assert_all_there(cluster: Cluster, session: aiohttp.ClientSession, *writers: Writer) -> None:
    """Every acknowledged write is served by every node and held by every replica; nothing else is but doubtful ones."""
    acknowledged = {key: value for writer in writers for key, value in writer.acknowledged.items()}
    doubtful = {key for writer in writers for key in writer.doubtful}
    assert len(acknowledged) >= BEFORE_CRASH * len(writers)
    for found in await compare_everywhere(session, {name: n.url for name, n in cluster.nodes.items()}, acknowledged):
        assert (found.where, found.missing, found.different) == (found.where, [], [])
        assert set(found.strange) <= doubtful, found.where
    for node in cluster.nodes.values():
        assert "Traceback" not in node.errors.read_text(), node.errors.read_text()


async def test_every_acknowledged_write_survives_kill_9_of_one_and_of_all(tmp_path: Path) -> None:
    async with Cluster(tmp_path, QUICK) as cluster, aiohttp.ClientSession() as session:
        leads = await settled(session, cluster.urls[0])
        victim = max(cluster.nodes, key=lambda name: leads[name])
        assert leads[victim], "the node to kill leads something"

        one = Writer(cluster.urls, "one")
        writing = asyncio.create_task(one.run())
        await one.enough.wait()
        await cluster.kill(victim)
        one.enough.clear()
        one.goal = len(one.acknowledged) + BEFORE_CRASH
        async with asyncio.timeout(SECONDS):
            await one.enough.wait()  # the other two go on by themselves
        await cluster.start(victim)
        one.stopped = True
        await writing
        await settled(session, cluster.urls[0])
        await assert_all_there(cluster, session, one)

        both = Writer(cluster.urls, "all")
        writing = asyncio.create_task(both.run())
        await both.enough.wait()
        await cluster.kill(*cluster.nodes)
        both.stopped = True
        await writing
        await cluster.start(*cluster.nodes)
        await settled(session, cluster.urls[0])
        await assert_all_there(cluster, session, one, both)
