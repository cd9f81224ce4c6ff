"""A client that meets what is no node, a node of another cluster, or one that speaks nonsense."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from multiraft import NotCommitted, Unreachable
from multiraft.client import Client, frames
from multiraft.client.frames import Welcome
from tests.client.playing import shard_map

Answer = Callable[[bytes], list[bytes]]
"""What a strange node sends when it has heard a frame."""


def welcome(cluster: bytes = b"c" * 16, node_id: str = "a") -> bytes:
    return frames.welcome(Welcome(1, node_id, cluster, 1_000_000, 1_000, 100))


class Strange:
    """A server of WebSockets that answers as it is told to.

    heard  the frames that came after the hello
    met    set when there was one
    """

    def __init__(self, greeting: bytes, answer: Answer) -> None:
        self.greeting = greeting
        self.answer = answer
        self.heard: list[bytes] = []
        self.met = asyncio.Event()

    async def serve(self, request: web.Request) -> web.WebSocketResponse:
        ws = web.WebSocketResponse()
        await ws.prepare(request)
        frames.read_hello(await ws.receive_bytes())
        await ws.send_bytes(self.greeting)
        async for message in ws:
            self.heard.append(message.data)
            self.met.set()
            for frame in self.answer(message.data):
                await ws.send_bytes(frame)
        return ws


@asynccontextmanager
async def served(strange: Strange) -> AsyncIterator[str]:
    app = web.Application()
    app.router.add_get("/client", strange.serve)
    async with TestServer(app) as server:
        yield str(server.make_url("")).rstrip("/")


def fitting(frame: bytes) -> list[bytes]:
    """Answer as node a, which leads all, would."""
    asked = frames.read_request(frame)
    if isinstance(asked, tuple):
        return [frames.found(asked[0], shard_map(), dict.fromkeys((16, 17), "a"), {})]
    return [frames.answers(1, [(batch.batch_id, 0, [b"\x07"] * len(batch.bodies)) for batch in asked])]


async def test_a_node_that_fits_is_used() -> None:
    strange = Strange(welcome(), fitting)
    async with served(strange) as url, Client([url]) as client:
        assert await client.bytes_service("kv").propose(b"k", b"c") == b"\x07"


@pytest.mark.parametrize("junk", [b"", b"junk", b"\x93\x02\x01\x91\x93\x63\x00\x90", b"\x91\x01"])
async def test_a_node_that_speaks_nonsense_is_left_and_the_call_ends_in_time(junk: bytes) -> None:
    def answer(frame: bytes) -> list[bytes]:
        return [junk] if isinstance(frames.read_request(frame), list) else fitting(frame)

    strange = Strange(welcome(), answer)
    async with served(strange) as url, Client([url], timeout_ms=600) as client:
        with pytest.raises(NotCommitted):
            await client.bytes_service("kv").read(b"k", b"q")
        assert client.counts["lost"] >= 1
        assert len(strange.heard) > 2  # it was tried again


@pytest.mark.parametrize("greeting", [b"", b"junk", b"\x91\x01", frames.hello()])
async def test_what_greets_wrongly_is_no_node(greeting: bytes) -> None:
    async with served(Strange(greeting, fitting)) as url:
        client = Client([url])
        with pytest.raises(Unreachable, match=r"welcome|msgpack"):
            await client.start(timeout_s=0.5)


async def test_a_node_of_another_cluster_is_refused() -> None:
    ours, other = Strange(welcome(), fitting), Strange(welcome(b"x" * 16, "b"), fitting)
    async with served(ours) as url, served(other) as another, Client([url]) as client:
        assert await client.bytes_service("kv").propose(b"k", b"c") == b"\x07"
        client.core.atlas.urls["b"] = another
        client.core.unreachable("a", "for this test")
        client._dial("b")
        lost = asyncio.get_running_loop().create_future()
        client.core.unreachable = lambda node_id, why: lost.set_result((node_id, why))  # type: ignore[method-assign]
        node_id, why = await lost
        assert node_id == "b"
        assert "another cluster" in why
        assert not other.heard


async def test_what_answers_but_serves_no_clients_is_named() -> None:
    async with TestServer(web.Application()) as server:
        client = Client([str(server.make_url(""))])
        with pytest.raises(Unreachable, match="serves no clients here"):
            await client.start(timeout_s=0.5)


async def test_a_node_that_is_lost_at_once_is_dialled_again() -> None:
    lives = 0

    def answer(frame: bytes) -> list[bytes]:
        nonlocal lives
        if isinstance(frames.read_request(frame), list) and lives < 3:
            lives += 1
            raise ConnectionResetError
        return fitting(frame)

    strange = Strange(welcome(), answer)
    async with served(strange) as url, Client([url]) as client:
        assert await client.bytes_service("kv").read(b"k", b"q") == b"\x07"
    assert lives == 3
