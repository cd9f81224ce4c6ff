"""Watching a prefix, on three real nodes in this process: everything once, in order, and from where one left off."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import pytest_asyncio

from examples.kv import change, feed
from examples.kv.client import Client
from examples.kv.feed import Feed
from examples.kv.http import kv_app
from examples.kv.machine import DiskKV
from examples.kv.token import read_token
from examples.kv.watch import Happening, WatchTooOldError, watch
from multiraft.errors import InvalidRequest
from tests.examples.kv_nodes import Stored, served, three_nodes

pytestmark = pytest.mark.asyncio(loop_scope="module")

SHARDS = 4
QUICK_MS = 100
Urls = list[str]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def nodes(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[list[Stored]]:
    async with three_nodes(tmp_path_factory.mktemp("watch"), DiskKV, shards=SHARDS) as nodes:
        yield nodes


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def urls(nodes: list[Stored]) -> AsyncIterator[Urls]:
    async with AsyncExitStack() as stack:
        yield [await stack.enter_async_context(served(kv_app(node, store))) for node, store in nodes]


@pytest_asyncio.fixture(loop_scope="module")
async def client(urls: Urls) -> AsyncIterator[Client]:
    async with Client(urls) as client:
        yield client


class Watcher:
    """What a watch tells, one after the other."""

    def __init__(self, happenings: AsyncIterator[Happening]) -> None:
        self._happenings = happenings

    async def next(self, kind: str = "") -> Happening:
        """Return the next happening; with a `kind`, the next one of it."""
        async with asyncio.timeout(20):
            while True:
                happening = await anext(self._happenings)
                if kind in ("", happening.kind) and (kind or happening.kind != "ready"):
                    return happening

    async def told(self, count: int) -> list[tuple[str, str, bytes | None]]:
        found = [await self.next() for _ in range(count)]
        return [(one.kind, one.key, one.value) for one in found]


@asynccontextmanager
async def watching(urls: Urls, prefix: str = "", after: str | None = None) -> AsyncIterator[Watcher]:
    """A watch that stands when the block begins, unless it is to resume."""
    async with aclosing(watch(urls, prefix, after, heartbeat_ms=QUICK_MS)) as happenings:
        watcher = Watcher(happenings)
        if after is None:
            await watcher.next("ready")
        yield watcher


async def test_what_happens_to_a_prefix_is_told_by_every_node_once(client: Client, urls: Urls) -> None:
    async with AsyncExitStack() as stack:
        watchers = [await stack.enter_async_context(watching([url], "all/")) for url in urls]
        await client.put("all/a", b"1")
        await client.put("elsewhere", b"")
        await client.increment("all/a", 4)
        await client.put("all/large", b"x" * (change.EVENT_VALUE_BYTES + 1))
        assert await client.delete("all/a")
        assert not await client.delete("all/a")
        for watcher in watchers:
            found = [await watcher.next() for _ in range(4)]
            of_a = [(one.kind, one.value) for one in found if one.key == "all/a"]
            assert of_a == [("put", b"1"), ("put", b"5"), ("delete", None)]
            (large,) = [one for one in found if one.key == "all/large"]
            assert (large.value, large.size_bytes) == (None, change.EVENT_VALUE_BYTES + 1)
        await client.put("all/last", b"")
        assert [(await watcher.next()).key for watcher in watchers] == ["all/last"] * 3


async def test_the_end_of_a_key_is_told_though_nobody_writes(client: Client, urls: Urls) -> None:
    async with watching(urls, "ends") as watcher:
        await client.put("ends", b"v", ttl_ms=1)
        put, expire = await watcher.next(), await watcher.next()
        assert (put.kind, put.deadline_ms) == ("put", put.time_ms + 1)
        assert (expire.kind, expire.shard_id) == ("expire", put.shard_id)
        assert expire.time_ms >= put.deadline_ms


async def test_a_watch_resumes_at_any_node_behind_any_event(client: Client, urls: Urls) -> None:
    keys = [f"resume/{number}" for number in range(12)]
    async with watching([urls[0]], "resume/") as watcher:
        begin = await client.count()
        await client.batch(dict.fromkeys(keys, b"1"))
        await client.batch(dict.fromkeys(keys[:6], b"2"))
        everything = [await watcher.next() for _ in range(18)]
    assert await client.count() == begin + 12
    for at, happening in enumerate(everything[:-1]):
        rest = everything[at + 1 :]
        async with watching([urls[at % 3]], "resume/", happening.token) as again:
            await client.put("resume/~", b"%d" % at)
            told = [await again.next() for _ in range(len(rest) + at + 1)]
        found = [one for one in told if one.key != "resume/~"]
        assert [one.value for one in told if one.key == "resume/~"] == [b"%d" % number for number in range(at + 1)]
        # Between shards there is no order; within one there is.
        for shard_id in range(1, SHARDS + 1):
            assert [(one.index, one.key, one.kind) for one in found if one.shard_id == shard_id] == [
                (one.index, one.key, one.kind) for one in rest if one.shard_id == shard_id
            ]


async def test_the_token_of_a_quiet_watch_does_not_age(client: Client, urls: Urls) -> None:
    async with aiohttp.ClientSession() as session:
        asked = {"prefix": "quiet", "heartbeat_ms": str(QUICK_MS)}
        async with session.get(urls[0] + "/watch", params=asked) as response:
            ready = await _block(response.content)
            assert ready["event"] == "ready"
            await client.batch({f"loud/{number}": b"" for number in range(40)})
            while True:
                beat = await _block(response.content)
                assert "event" not in beat
                if all(
                    position.index > read_token(ready["id"])[shard_id].index
                    for shard_id, position in read_token(beat["id"]).items()
                ):
                    break


async def test_a_token_older_than_what_is_kept_is_told_what_to_do(
    client: Client, urls: Urls, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with watching(urls, "old") as watcher:
        await client.put("old", b"")
        token = (await watcher.next()).token
    monkeypatch.setattr(change, "EVENTS_KEPT", 32)
    for number in range(50):
        await client.put("old", b"%d" % number)
    async with aiohttp.ClientSession() as session:
        for headers, params in (({"Last-Event-ID": token}, {}), ({}, {"after": token})):
            async with session.get(urls[1] + "/watch", params=params, headers=headers) as response:
                told = await response.json()
            assert response.status == 410
            assert "keeps what came after index" in told["error"]
            assert "watch anew without a token" in told["hint"]
    async with aclosing(watch(urls, "old", token)) as happenings:
        with pytest.raises(WatchTooOldError, match="GET /scan the prefix"):
            await anext(happenings)
    async with aclosing(watch(urls, "old", "1:9999999")) as happenings:
        with pytest.raises(InvalidRequest, match="not yet at 9999999"):
            await anext(happenings)


async def test_what_falls_behind_what_is_kept_is_cut_off_with_a_word(
    client: Client, nodes: list[Stored], monkeypatch: pytest.MonkeyPatch
) -> None:
    node, store = nodes[0]
    monkeypatch.setattr(change, "EVENTS_KEPT", 32)
    monkeypatch.setattr(feed, "_EVENTS_AT_ONCE", 1)
    held = asyncio.Event()
    write = feed._Watch._write

    async def write_late(self: Any, text: str) -> None:
        await write(self, text)
        if "event: put" in text:
            await held.wait()

    monkeypatch.setattr(feed._Watch, "_write", write_late)
    async with served(kv_app(node, store)) as url, aclosing(watch([url], "behind")) as happenings:
        assert (await anext(happenings)).kind == "ready"
        for number in range(100):
            await client.put("behind", b"%d" % number)
        held.set()
        with pytest.raises(WatchTooOldError, match="keeps what came after index"):
            async for _ in happenings:
                pass


async def test_who_does_not_read_is_cut_off_with_a_word(client: Client, nodes: list[Stored]) -> None:
    node, store = nodes[0]
    app = kv_app(node, store)
    slow = aiohttp.web.Application()
    slow.add_routes([aiohttp.web.get("/watch", Feed(node, store, slow_s=0.2).watch)])
    app.add_subapp("/slow", slow)
    async with served(app) as url:
        port = int(url.rpartition(":")[2])
        with socket.socket() as raw:
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
            raw.setblocking(False)
            loop = asyncio.get_running_loop()
            await loop.sock_connect(raw, ("127.0.0.1", port))
            await loop.sock_sendall(raw, b"GET /slow/watch?prefix=slow HTTP/1.1\r\nHost: x\r\n\r\n")
            text = b""
            while b"event: ready" not in text:
                text += await loop.sock_recv(raw, 65_536)
            writes = 0
            while watches_of(slow) and writes < 400:  # it reads nothing meanwhile
                await client.batch({f"slow/{number}": b"x" * change.EVENT_VALUE_BYTES for number in range(40)})
                writes += 1
            while part := await loop.sock_recv(raw, 65_536):
                text += part
                if b"cut-off" in text and text.endswith(b"0\r\n\r\n"):
                    break
    last = text.rpartition(b"event: cut-off")[2]
    told = json.loads(last[last.index(b"{") : last.index(b"}") + 1])
    assert told["error"] == "too slow: nothing could be sent for 0.2 s"
    assert told["gone"] is False


def watches_of(app: aiohttp.web.Application) -> int:
    """How many watches an application with that one route serves."""
    (route,) = [route for route in app.router.routes() if route.method == "GET"]
    handler: Any = route.handler
    return len(handler.__self__._watches)


async def test_more_watches_than_a_node_serves_are_refused(urls: Urls, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feed, "WATCHES", 1)
    async with watching([urls[0]], "many"), aiohttp.ClientSession() as session:
        async with session.get(urls[0] + "/watch") as response:
            assert (response.status, (await response.json())["outcome"]) == (503, "not_committed")
        async with watching(urls[:2], "many"):  # goes on to the next node by itself
            pass


async def test_a_watch_goes_on_at_another_node_when_one_stops(client: Client, nodes: list[Stored], urls: Urls) -> None:
    async with AsyncExitStack() as stack:
        stopping = [await stack.enter_async_context(served(kv_app(*one))) for one in nodes[:1]]
        async with aclosing(watch([*stopping, urls[1]], "goes-on", heartbeat_ms=QUICK_MS)) as happenings:
            watcher = Watcher(happenings)
            await watcher.next("ready")
            for number in range(10):
                await client.put("goes-on", b"%d" % number)
                assert (await watcher.next()).value == b"%d" % number
                if number == 5:
                    await stack.aclose()


async def test_shards_that_live_elsewhere_are_watched_too(tmp_path: Path) -> None:
    async with three_nodes(tmp_path, DiskKV, shards=3, replicas=1) as nodes:
        node, store = nodes[0]
        assert sum(node.router.has_replica(shard.group_id) for shard in node.shard_map.services["kv"].shards) == 1
        async with served(kv_app(node, store)) as url, Client([url]) as client, watching([url]) as watcher:
            keys = {f"key{number}": b"" for number in range(30)}
            await client.batch(keys)
            assert {key for _, key, _ in await watcher.told(30)} == set(keys)


async def _block(content: aiohttp.StreamReader) -> dict[str, str]:
    """Return the fields of the next event of a stream."""
    fields: dict[str, str] = {}
    while line := (await content.readline()).decode().rstrip("\n"):
        name, _, value = line.partition(":")
        fields[name] = value.strip()
    return fields
