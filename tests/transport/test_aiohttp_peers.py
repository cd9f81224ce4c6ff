"""The WebSocket transport against peers that break the rules: dropped, counted, answered, and nothing delivered.

Rules of this file: the bad peer is a plain WebSocket client or server, or a bare socket; the good one is node a.
"""

from __future__ import annotations

import asyncio
import struct
from collections.abc import AsyncIterator, Callable
from typing import TYPE_CHECKING, Any, Final

import aiohttp
import msgpack
import pytest
from aiohttp import WSMsgType

from multiraft.messages import CommitTo, Form, Request
from multiraft.transport.aiohttp_peers import PATH, STRANGERS_MAX
from multiraft.transport.frames import BULK, BULK_CHUNK, URGENT, encode_message, hello_frame, messages_frame
from multiraft.transport.hello import MAGIC, Hello, encode_hello
from multiraft.transport.peers import MALFORMED, REFUSED, REPLACED

if TYPE_CHECKING:
    from tests.transport.conftest import SocketWorld

Greeting = Callable[..., Hello]
Ws = aiohttp.ClientWebSocketResponse
GOOD: Final = encode_message(CommitTo(1, 16, 1, 1, 2))
TOO_BIG: Final = 1009


@pytest.fixture
async def session() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession() as made:
        yield made


async def connect(session: aiohttp.ClientSession, world: SocketWorld, first: bytes | str = b"") -> Ws:
    """Connect to node a and send this first frame."""
    ws = await session.ws_connect(f"http://{world.true_address('a')}{PATH}", autoping=True)
    if isinstance(first, str):
        await ws.send_str(first)
    else:
        await ws.send_bytes(first)
    return ws


async def greeted(session: aiohttp.ClientSession, world: SocketWorld, hello: Hello) -> Ws:
    ws = await connect(session, world, hello_frame(encode_hello(hello)))
    answer = await ws.receive()
    assert answer.type is WSMsgType.BINARY
    assert answer.data[2:10] == MAGIC
    return ws


async def closing(ws: Ws) -> tuple[int | None, str]:
    """Wait for the end of the connection; return its code and reason."""
    message = await ws.receive()
    assert message.type in (WSMsgType.CLOSE, WSMsgType.CLOSED, WSMsgType.ERROR), message
    return ws.close_code, str(message.extra or "")


def head(kind: int, number: int, frame_format: int = 1) -> bytes:
    return struct.pack(">BBI", frame_format, kind, number)


def chunk(total: int, offset: int, piece: bytes) -> bytes:
    return head(BULK_CHUNK, total) + struct.pack(">I", offset) + piece


BAD_FRAMES: Final[dict[str, list[bytes]]] = {
    "empty": [b""],
    "only a header": [head(BULK, 0)],
    "of another format": [head(BULK, 1, frame_format=2) + GOOD],
    "of an unknown kind": [head(9, 1) + GOOD],
    "a second hello": [hello_frame(bytes(60))],
    "cut short": [(head(BULK, 1) + GOOD)[:-1]],
    "more than it says": [head(BULK, 1) + GOOD + GOOD],
    "less than it says": [head(BULK, 3) + GOOD + GOOD],
    "good, then garbage": [head(URGENT, 2) + GOOD + b"\xc1garbage"],
    "of an unknown code": [head(BULK, 1) + msgpack.packb([b"\xff"])],
    "nested": [head(BULK, 1) + b"\xdd\x00\x00\xff\xff" * 100],
    "not bytes": [head(BULK, 1) + msgpack.packb([7, 7, 7])],
    "a map": [head(BULK, 1) + msgpack.packb({1: 2, 3: 4})],
    "a damaged record": [head(BULK, 1) + msgpack.packb([b"\x05" + bytes(56), bytes(100)])],
    "a chunk from the middle": [chunk(100, 50, bytes(10))],
    "a chunk out of order": [chunk(100, 0, bytes(10)), chunk(100, 20, bytes(10))],
    "a chunk of another size": [chunk(100, 0, bytes(10)), chunk(200, 10, bytes(10))],
    "a chunk over the end": [chunk(20, 0, bytes(10)), chunk(20, 10, bytes(11))],
    "a chunk without content": [chunk(100, 0, b"")],
    "a chunk of a message over the limit": [chunk(0xFFFF_FFFF, 0, bytes(10))],
}


@pytest.mark.parametrize("name", BAD_FRAMES)
async def test_a_bad_frame_is_dropped_and_ends_its_connection(
    name: str, socket_world: SocketWorld, session: aiohttp.ClientSession, greeting: Greeting
) -> None:
    a = await socket_world.start("a")
    ws = await greeted(session, socket_world, greeting())
    for frame in BAD_FRAMES[name]:
        await ws.send_bytes(frame)
    await ws.send_bytes(head(BULK, 1) + GOOD)
    assert (await closing(ws))[0] == MALFORMED
    assert a.count("dropped_malformed") == 1
    assert [event[0] for event in a.ear.events] == ["heard"]


async def test_a_text_message_is_dropped_and_ends_its_connection(
    socket_world: SocketWorld, session: aiohttp.ClientSession, greeting: Greeting
) -> None:
    a = await socket_world.start("a")
    ws = await greeted(session, socket_world, greeting())
    await ws.send_str("hello")
    assert (await closing(ws))[0] == MALFORMED
    assert a.count("dropped_malformed") == 1


async def test_an_oversized_frame_is_refused_by_its_header(
    socket_world: SocketWorld, session: aiohttp.ClientSession, greeting: Greeting
) -> None:
    a = await socket_world.start("a", frame_bytes=4096)
    ws = await greeted(session, socket_world, greeting())
    await ws.send_bytes(head(BULK, 1) + bytes(5000))
    assert (await closing(ws))[0] == TOO_BIG
    assert a.count("dropped_oversized") == 1
    assert a.count("frames_received") == 0
    assert [event[0] for event in a.ear.events] == ["heard"]


async def test_a_full_size_frame_is_taken(
    socket_world: SocketWorld, session: aiohttp.ClientSession, greeting: Greeting
) -> None:
    a = await socket_world.start("a", frame_bytes=4096)
    ws = await greeted(session, socket_world, greeting())
    count = (4096 - 6) // len(GOOD)
    await ws.send_bytes(messages_frame(BULK, [GOOD] * count))
    await a.ear.until(lambda: len(a.ear.numbers("b")) == count)
    await ws.close()


@pytest.mark.parametrize(
    ("changed", "counter", "reason"),
    [
        ({"cluster_id": b"d" * 16}, "refused_cluster", "is of cluster 6464"),
        ({"node_id": "a"}, "refused_self", "another node uses the same node id"),
        ({"node_id": "a", "store_id": b"store of a"}, "refused_self", "leads back to itself"),
        ({"node_id": "mallory"}, "refused_unknown_node", "not among the members"),
        ({"version_min": 7, "version_max": 9}, "refused_version", "speaks protocol 7-9"),
        ({"generation": 0}, "refused_generation", "recovery generation 0"),
    ],
)
async def test_a_hello_that_does_not_fit_is_refused_with_its_reason(
    changed: dict[str, Any],
    counter: str,
    reason: str,
    socket_world: SocketWorld,
    session: aiohttp.ClientSession,
    greeting: Greeting,
) -> None:
    a = await socket_world.start("a", generation=1)
    hello = greeting(**{"generation": 1, **changed})
    ws = await connect(session, socket_world, hello_frame(encode_hello(hello)))
    code, said = await closing(ws)
    assert code == REFUSED
    assert reason in said
    assert a.count(counter) == 1
    assert a.ear.events == []


@pytest.mark.parametrize(
    "first",
    [
        b"",
        b"GET / HTTP/1.1",
        "a text",
        messages_frame(BULK, [GOOD]),
        hello_frame(b"WRONG\x00\r\n" + bytes(40)),
        hello_frame(MAGIC),
        hello_frame(MAGIC + bytes(2000)),
    ],
)
async def test_a_first_frame_that_is_no_hello_is_refused(
    first: bytes | str, socket_world: SocketWorld, session: aiohttp.ClientSession
) -> None:
    a = await socket_world.start("a")
    ws = await connect(session, socket_world, first)
    assert (await closing(ws))[0] == REFUSED
    assert a.count("refused_hello") == 1
    assert a.count("frames_received") == 0
    assert a.ear.events == []


async def test_a_lower_incarnation_is_refused_and_the_higher_one_stays(
    socket_world: SocketWorld, session: aiohttp.ClientSession, greeting: Greeting
) -> None:
    a = await socket_world.start("a")
    newer = await greeted(session, socket_world, greeting(incarnation=5))
    older = await connect(session, socket_world, hello_frame(encode_hello(greeting(incarnation=4))))
    assert (await closing(older))[0] == REFUSED
    await newer.send_bytes(messages_frame(BULK, [GOOD]))
    await a.ear.hears("message", "b", 5)
    assert a.count("refused_incarnation") == 1
    await newer.close()


async def test_the_newest_connection_of_a_peer_wins(
    socket_world: SocketWorld, session: aiohttp.ClientSession, greeting: Greeting
) -> None:
    a = await socket_world.start("a")
    older = await greeted(session, socket_world, greeting())
    await older.send_bytes(messages_frame(BULK, [GOOD]))
    await a.ear.hears("message", "b")
    newer = await greeted(session, socket_world, greeting())
    await older.send_bytes(messages_frame(BULK, [encode_message(CommitTo(66, 16, 1, 1, 2))]))
    assert (await closing(older))[0] == REPLACED
    await newer.send_bytes(messages_frame(BULK, [encode_message(CommitTo(2, 16, 1, 1, 2))]))
    await a.ear.until(lambda: 2 in a.ear.numbers("b"))
    assert a.ear.numbers("b") == [1, 2]
    await newer.close()


async def test_without_a_cluster_only_forming_messages_pass(
    socket_world: SocketWorld, session: aiohttp.ClientSession, greeting: Greeting
) -> None:
    a = await socket_world.start("a")
    ws = await greeted(session, socket_world, greeting(cluster_id=b""))
    await ws.send_bytes(messages_frame(URGENT, [encode_message(Form(b"f", ()))]))
    await a.ear.hears("forming", "b")
    await ws.send_bytes(messages_frame(URGENT, [encode_message(Form(b"g", ())), GOOD]))
    assert (await closing(ws))[0] == MALFORMED
    ws = await greeted(session, socket_world, greeting(cluster_id=b""))
    await ws.send_bytes(messages_frame(BULK, [encode_message(Request(b"", "read", 1, 1))]))
    assert (await closing(ws))[0] == MALFORMED
    assert a.count("dropped_malformed") == 2
    assert [event[0] for event in a.ear.events] == ["forming"]


async def test_a_connection_that_says_nothing_is_cut_in_time_and_a_greeted_one_is_not(
    socket_world: SocketWorld, session: aiohttp.ClientSession, greeting: Greeting
) -> None:
    a = await socket_world.start("a", handshake_timeout_ms=100)
    good = await greeted(session, socket_world, greeting())
    host, port = socket_world.true_address("a").split(":")
    bare_reader, bare_writer = await asyncio.open_connection(host, int(port))
    half_reader, half_writer = await asyncio.open_connection(host, int(port))
    half_writer.write(b"GET /multiraft/peers HTTP/1.1\r\nHost: a\r\n")
    silent = await session.ws_connect(f"http://{host}:{port}{PATH}")
    for reader in (bare_reader, half_reader):
        assert await reader.read() == b""
    assert (await silent.receive()).type in (WSMsgType.CLOSED, WSMsgType.ERROR)
    assert a.count("refused_no_hello") == 3
    await good.send_bytes(messages_frame(BULK, [GOOD]))
    await a.ear.hears("message", "b")
    for writer in (bare_writer, half_writer):
        writer.close()
    await good.close()


async def test_a_flood_of_strangers_is_bounded(
    socket_world: SocketWorld, session: aiohttp.ClientSession, greeting: Greeting
) -> None:
    a = await socket_world.start("a", handshake_timeout_ms=500)
    host, port = socket_world.true_address("a").split(":")
    connections = [await asyncio.open_connection(host, int(port)) for _ in range(STRANGERS_MAX + 20)]
    await a.counted("refused_flood", times=20)
    assert a.count("refused_flood") == 20
    assert a.count("refused_no_hello") == 0
    await a.counted("refused_no_hello", times=STRANGERS_MAX)
    for _, writer in connections:
        writer.close()
    ws = await greeted(session, socket_world, greeting())
    await a.ear.hears("heard", "b")
    await ws.close()


async def test_other_requests_are_told_what_this_port_is(
    socket_world: SocketWorld, session: aiohttp.ClientSession
) -> None:
    await socket_world.start("a")
    address = socket_world.true_address("a")
    async with session.get(f"http://{address}/metrics") as answer:
        assert answer.status == 404
        assert "multiraft nodes" in await answer.text()
    async with session.get(f"http://{address}{PATH}") as answer:
        assert answer.status == 400


async def test_what_is_flushed_leaves_within_the_call(socket_world: SocketWorld) -> None:
    a, b = await socket_world.pair()
    await b.ear.until(lambda: bool(b.ear.events))
    before = a.count("frames_sent")
    assert a.send("b", 1, 2)
    assert a.send("b", 3, urgent=True)
    assert a.count("frames_sent") == before
    a.transport.flush("b")
    assert a.count("frames_sent") == before + 2
    a.transport.flush("b")
    a.transport.flush("nobody")
    await b.ear.until(lambda: len(b.ear.numbers("a")) == 3)
    assert b.ear.numbers("a") == [3, 1, 2]
    assert a.count("frames_sent") == before + 2
