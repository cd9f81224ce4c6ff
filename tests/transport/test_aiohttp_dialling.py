"""The dialling side of the WebSocket transport against servers that break the rules, answer nothing, or read nothing.

Rules of this file: the bad peer is node b, a plain WebSocket server; the good one is node a.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import aiohttp
import pytest
from aiohttp import WSMsgType, web

from multiraft.messages import CommitTo, Response
from multiraft.transport.aiohttp_peers import PATH
from multiraft.transport.frames import BULK, encode_message, hello_frame, messages_frame
from multiraft.transport.hello import Hello, encode_hello
from multiraft.transport.peers import REFUSED

if TYPE_CHECKING:
    from tests.transport.conftest import Peer, SocketWorld

Greeting = Callable[..., Hello]
GOOD: Final = encode_message(CommitTo(1, 16, 1, 1, 2))


class BadServer:
    """Node b as a server that does what a test wants after it has received a hello."""

    def __init__(self, hello: Hello) -> None:
        self.answer: bytes | None = hello_frame(encode_hello(hello))
        self.then: Callable[[web.WebSocketResponse], Any] | None = None
        self.reads = True
        self.connections = 0
        self._frames: asyncio.Queue[bytes] = asyncio.Queue()
        self._connected = asyncio.Event()

    async def connected(self, times: int) -> None:
        while self.connections < times:
            self._connected.clear()
            await self._connected.wait()

    async def frame(self) -> bytes:
        return await self._frames.get()

    async def serve(self, request: web.BaseRequest) -> web.StreamResponse:
        ws = web.WebSocketResponse(max_msg_size=0, timeout=0.1)
        await ws.prepare(request)
        if (await ws.receive()).type is not WSMsgType.BINARY:
            return ws
        self.connections += 1
        self._connected.set()
        with suppress(ConnectionError):  # the dialler has gone meanwhile
            if self.answer is not None:
                await ws.send_bytes(self.answer)
            if self.then is not None:
                await self.then(ws)
        if not self.reads:
            request.protocol.transport.pause_reading()  # type: ignore[union-attr]
            await asyncio.Event().wait()
        async for message in ws:
            await self._frames.put(message.data)
        return ws


@asynccontextmanager
async def bad_server(world: SocketWorld, hello: Hello) -> AsyncIterator[BadServer]:
    bad = BadServer(hello)
    server = web.Server(bad.serve, access_log=None)
    host, port = world.true_address("b").split(":")
    listening = await asyncio.get_running_loop().create_server(server, host, int(port))
    try:
        yield bad
    finally:
        listening.close()
        await server.shutdown(0.1)


async def test_a_server_that_never_answers_is_given_up_and_dialled_again(
    socket_world: SocketWorld, greeting: Greeting
) -> None:
    async with bad_server(socket_world, greeting()) as server:
        server.answer = None
        a = await socket_world.start("a", handshake_timeout_ms=50)
        await server.connected(3)
        assert a.count("dial_failed") >= 2
        assert a.ear.events == []
        assert not a.send("b", 1)


@pytest.mark.parametrize(
    ("answer", "counter"),
    [
        (b"", "refused_hello"),
        (hello_frame(b"nonsense"), "refused_hello"),
        (messages_frame(BULK, [GOOD]), "refused_hello"),
    ],
)
async def test_a_server_that_answers_nonsense_is_refused(
    answer: bytes, counter: str, socket_world: SocketWorld, greeting: Greeting
) -> None:
    async with bad_server(socket_world, greeting()) as server:
        server.answer = answer
        a = await socket_world.start("a")
        await a.counted(counter)
        assert a.ear.events == []


async def test_a_refusal_by_the_peer_is_counted_and_named(
    socket_world: SocketWorld, greeting: Greeting, caplog: pytest.LogCaptureFixture
) -> None:
    async with bad_server(socket_world, greeting()) as server:
        server.answer = None
        server.then = lambda ws: ws.close(code=REFUSED, message="café is closed".encode())
        a = await socket_world.start("a")
        await a.counted("refused_by_peer")
        assert "node 'b' refuses this node: café is closed" in caplog.text
        assert a.ear.events == []


async def test_what_a_peer_says_on_a_connection_that_it_did_not_dial_is_dropped(
    socket_world: SocketWorld, greeting: Greeting
) -> None:
    async with bad_server(socket_world, greeting()) as server:
        server.then = lambda ws: ws.send_bytes(messages_frame(BULK, [GOOD]))
        a = await socket_world.start("a")
        await a.ear.hears("disconnected", "b")
        assert a.count("dropped_wrong_way") >= 1
        assert {event[0] for event in a.ear.events} == {"connected", "disconnected"}


async def test_a_peer_that_reads_nothing_is_cut_when_the_urgent_lane_is_full(
    socket_world: SocketWorld, greeting: Greeting, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with bad_server(socket_world, greeting()) as server:
        server.reads = False
        a = await socket_world.start("a", entry_bytes=65_536, outbox_bytes=1024 * 1024)
        with monkeypatch.context() as patch:
            patch.setattr("multiraft.transport.aiohttp_peers._CLOSE_S", 3600.0)  # an orderly end would take for ever
            await a.ear.hears("connected", "b")
            await fill(a)
            await a.ear.hears("connected", "b", count=2)
        assert a.count("closed_outbox_full") == 1


@pytest.mark.skipif(not Path("/proc/net/tcp").exists(), reason="reads the kernel's list of connections")
async def test_a_connection_that_was_given_up_is_not_kept_until_its_bytes_are_read(
    socket_world: SocketWorld, greeting: Greeting
) -> None:
    async with bad_server(socket_world, greeting()) as server:
        server.reads = False
        address = socket_world.true_address("b")
        a = await socket_world.start("a", entry_bytes=65_536, outbox_bytes=1024 * 1024, members={"b": address})
        for times in (1, 2):
            await a.ear.hears("connected", "b", count=times)
            await fill(a)
        await a.ear.hears("connected", "b", count=3)
        assert established(int(address.split(":")[1])) == 1


async def test_a_connection_that_worked_makes_the_next_wait_short_again(
    socket_world: SocketWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    failures: list[int] = []
    a = await socket_world.start("a", members={"c": "127.0.0.1:1"})

    def wait_briefly(count: int) -> float:
        failures.append(count)
        return 0.001

    monkeypatch.setattr(a.transport, "_backoff_s", wait_briefly)
    await a.counted("dial_failed", times=10)
    await socket_world.start("b")
    await a.ear.hears("connected", "b")
    assert max(failures) >= 4
    failures.clear()
    socket_world.break_off("a", "b")
    await a.ear.hears("connected", "b", count=2)
    assert 0 in failures


async def test_a_peer_that_does_not_even_answer_pings_is_given_up(
    socket_world: SocketWorld, greeting: Greeting
) -> None:
    async with bad_server(socket_world, greeting()) as server:
        server.reads = False
        a = await socket_world.start("a", handshake_timeout_ms=50)
        await a.ear.hears("disconnected", "b")


async def test_a_handler_that_raises_costs_its_connection_and_not_the_peer(
    socket_world: SocketWorld, caplog: pytest.LogCaptureFixture
) -> None:
    def fail_once(peer: Peer, node_id: str) -> None:
        if peer.count("connected") == 1:
            raise LookupError("a bug in the handler")

    a = await socket_world.start("a", on_connected=fail_once)
    await socket_world.start("b")
    await a.ear.hears("connected", "b", count=2)
    assert "a bug in the handler" in caplog.text
    assert a.send("b", 1)
    caplog.clear()


async def test_closing_does_not_wait_for_a_peer_that_reads_nothing(
    socket_world: SocketWorld, greeting: Greeting
) -> None:
    async with bad_server(socket_world, greeting()) as server:
        server.reads = False
        a = await socket_world.start("a", entry_bytes=65_536, outbox_bytes=16 * 1024 * 1024)
        await a.ear.hears("connected", "b")
        while a.send("b", *range(10_000)):  # noqa: ASYNC110 - a full outbox is no event
            await asyncio.sleep(0)
        async with asyncio.timeout(20):
            await socket_world.stop(a)


async def fill(a: Peer) -> None:
    """Send urgent messages, turn by turn, until they are refused."""
    while a.send("b", *range(1000), urgent=True):  # noqa: ASYNC110 - a full outbox is no event
        await asyncio.sleep(0)


def established(port: int) -> int:
    """Return how many connections to this port of this machine have not been ended by their dialler."""
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return sum(1 for row in rows if row[2].endswith(f":{port:04X}") and row[3] == "01")


async def test_an_answer_counts_only_from_the_node_that_was_asked(
    socket_world: SocketWorld, greeting: Greeting
) -> None:
    async with bad_server(socket_world, greeting()) as server, aiohttp.ClientSession() as session:
        a = await socket_world.start("a")
        await a.ear.hears("connected", "b")
        future = a.transport.request("b", "propose", b"x", 60.0)
        await server.frame()
        address = f"http://{socket_world.true_address('a')}{PATH}"
        forger, asked = await session.ws_connect(address), await session.ws_connect(address)
        await forger.send_bytes(hello_frame(encode_hello(greeting(node_id="c", store_id=b"store of c"))))
        await forger.send_bytes(messages_frame(BULK, [encode_message(Response(b"forged", 1)), GOOD]))
        await a.ear.hears("message", "c")
        assert not future.done()
        assert a.count("dropped_late_answer") == 1
        await asked.send_bytes(hello_frame(encode_hello(greeting())))
        await asked.send_bytes(messages_frame(BULK, [encode_message(Response(b"true", 1))]))
        assert await future == b"true"
        await forger.close()
        await asked.close()
