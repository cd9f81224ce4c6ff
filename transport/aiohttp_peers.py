"""The transport of production: WebSockets between nodes, client and server by aiohttp.

One server listens; one task per peer dials, greets, and writes what the outbox gives until the connection ends, then
dials again. Each inbound connection has one coroutine, which reads frames and hands on what they carry.

Bounds against strangers: a connection that has not said a valid hello within `handshake_timeout_ms`, from the first
packet on, is cut; at most STRANGERS_MAX such connections are open at a time; the WebSocket layer refuses a frame over
the limit by its header, before it makes room for it.

Rules of this file: bytes and connections only, what they mean is decided in peers.py; every task that is started here
is ended by `close`; no compression.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import socket
from asyncio import AbstractEventLoop, Future, Task
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any, Final

import aiohttp
from aiohttp import WSMsgType, web

from multiraft.config import NodeConfig, parse_address
from multiraft.eager import EagerWriter, Sending
from multiraft.errors import StartError, Unreachable
from multiraft.ports import Cancel, FileSink, TransportHandler
from multiraft.transport.aiohttp_files import FILES_PATH, HttpFetch, serve_file
from multiraft.transport.files import FileTransport
from multiraft.transport.frames import hello_frame
from multiraft.transport.hello import HELLO_BYTES_MAX, Refusal, encode_hello
from multiraft.transport.peers import GOING_AWAY, MALFORMED, REFUSED, Inbound, Outbound, logger
from multiraft.types import Identity, NodeId

PATH: Final = "/multiraft/peers"
STRANGERS_MAX: Final = 64
_CLOSE_S: Final = 1.0
"""How long an orderly end of a connection may take before it is cut."""
_SILENT_HANDSHAKES: Final = 4
"""A ping is due after this many handshake timeouts without any, and its answer within half of that."""
_FRAME_SLACK_BYTES: Final = 64
_ENDINGS: Final = (WSMsgType.CLOSE, WSMsgType.CLOSING, WSMsgType.CLOSED, WSMsgType.ERROR)
_REASON_BYTES_MAX: Final = 120


class AiohttpTransport(FileTransport):
    """Implements ports.Transport over WebSockets.

    loop  the loop to run on; the running one when not given
    """

    def __init__(
        self,
        config: NodeConfig,
        store_identity: Identity,
        incarnation: int,
        rng: random.Random,
        *,
        loop: AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, store_identity, incarnation, rng)
        self._wanted_loop = loop
        self._handshake_s = config.limits.handshake_timeout_ms / 1000
        self._frame_limit_bytes = config.limits.frame_bytes + _FRAME_SLACK_BYTES
        self._dialers: dict[NodeId, _Dialer] = {}
        self._server: asyncio.Server | None = None
        self._listener: _Listener | None = None
        self._session: aiohttp.ClientSession | None = None
        self._opened = asyncio.Event()
        self._closers: set[Task[Any]] = set()
        self._fetches: set[Task[Any]] = set()

    @property
    def handshake_s(self) -> float:
        return self._handshake_s

    async def start(self, handler: TransportHandler) -> None:
        """Listen and begin to dial all peers. Raises StartError when the address cannot be had."""
        loop = self._wanted_loop or asyncio.get_running_loop()
        self._begin(handler, loop)
        host, port = parse_address("listen", self._config.listen)
        self._listener = _Listener(self, loop, self._handshake_s)
        try:
            self._server = await loop.create_server(self._listener, host, port, backlog=128)
        except OSError as problem:
            why = os.strerror(problem.errno) if problem.errno and problem.errno > 0 else str(problem)
            raise StartError(
                f"node {self._config.node_id!r} cannot listen on {self._config.listen}: {why}; "
                "stop the process that uses the address (perhaps this node already runs), or change `listen`"
            ) from problem
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0),
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=self._handshake_s),
        )
        for node_id, address in self._peers.items():
            self._dialers[node_id] = _Dialer(self, node_id, address, self._session)
        self._opened.set()

    async def close(self) -> None:
        """Write what waits (for a second at most), then end all connections and tasks. Idempotent."""
        if self._closing:
            return
        self._closing = True
        for inbound in list(self._in.values()):
            inbound.link.shut(GOING_AWAY, "the node is stopping")
            self._drop_inbound(inbound)
        for outbound in list(self._out.values()):
            outbound.link.shut(GOING_AWAY, "the node is stopping", flush=True)
        for fetch in self._fetches:
            fetch.cancel()
        stops = [dialer.stop(_CLOSE_S if name in self._out else 0.0) for name, dialer in self._dialers.items()]
        await asyncio.gather(*stops)
        self._end()
        if self._server is not None:
            self._server.close()
        if self._closers or self._fetches:
            await asyncio.wait(self._closers | self._fetches, timeout=2 * _CLOSE_S)
        if self._listener is not None:
            await self._listener.stop()
        if self._session is not None:
            await self._session.close()

    def _redial(self, node_id: NodeId) -> None:
        if (dialer := self._dialers.get(node_id)) is not None:
            dialer.hurry()

    # ---------------------------------------------------------------------------------------------- inbound

    async def serve(self, request: web.BaseRequest) -> web.StreamResponse:
        """Serve one inbound connection from its HTTP request to its end."""
        if request.path == FILES_PATH:
            await self._opened.wait()
            return await self._serve_file(request)
        if request.path != PATH:
            return web.Response(status=404, text="this port is for multiraft nodes\n")
        ws = web.WebSocketResponse(timeout=_CLOSE_S, compress=False, max_msg_size=self._frame_limit_bytes)
        try:
            await ws.prepare(request)
        except ConnectionError:  # it is gone already
            self._counts["closed_before_hello"] += 1
            return web.Response()
        await self._opened.wait()
        link = _InboundLink(self, ws)
        message = await ws.receive()
        if self._closing or message.type in _ENDINGS:
            self._counts["closed_before_hello"] += 1
            await ws.close(code=GOING_AWAY)
            return ws
        try:
            inbound, answer = self._greet_inbound(message.data if message.type is WSMsgType.BINARY else b"", link)
        except Refusal as refusal:
            await ws.close(code=REFUSED, message=_reason(refusal.text))
            return ws
        try:
            self._admit(request)
            with contextlib.suppress(ConnectionError):  # it is gone already, as the next read will say
                await ws.send_bytes(answer)
            await self._read(ws, link, inbound)
        finally:
            self._drop_inbound(inbound)
        return ws

    async def _serve_file(self, request: web.BaseRequest) -> web.StreamResponse:
        serving = asyncio.current_task()
        if self._listener is not None and serving is not None:
            self._listener.end_with(request.protocol, serving)
        return await serve_file(self, request, partial(self._admit, request))

    def _admit(self, request: web.BaseRequest) -> None:
        """Who is behind this connection has said who it is, and is a peer."""
        if self._listener is not None:
            self._listener.admit(request.protocol)

    async def _read(self, ws: web.WebSocketResponse, link: _InboundLink, inbound: Inbound) -> None:
        """Hand on every frame until the connection ends or one is refused."""
        receive, received, binary = ws.receive, self._received, WSMsgType.BINARY
        while True:
            message = await receive()
            if message.type is not binary:
                break
            if not received(inbound, message.data):
                await ws.close(code=link.code or MALFORMED, message=_reason(link.reason or "a frame was refused"))
                return
        if message.type is WSMsgType.TEXT:
            self._refuse_frame(inbound, "malformed", "a text message")
            await ws.close(code=MALFORMED, message=b"a text message")
        elif isinstance(message.data, aiohttp.WebSocketError):
            too_big = message.data.code == aiohttp.WSCloseCode.MESSAGE_TOO_BIG
            self._refuse_frame(inbound, "oversized" if too_big else "malformed", str(message.data))

    def spawn(self, work: Coroutine[Any, Any, Any]) -> None:
        """Run a short piece of closing work on its own; `close` waits for it."""
        task = self._loop.create_task(work)
        self._closers.add(task)
        task.add_done_callback(self._closers.discard)

    # --------------------------------------------------------------------------------------------- outbound

    def flush(self, node_id: NodeId) -> None:
        """Write now what was sent to a peer; see ports.Transport.flush."""
        outbound = self._out.get(node_id)
        if outbound is not None and isinstance(outbound.link, _OutboundLink):
            outbound.link.write()

    def fetch(
        self,
        node_id: NodeId,
        name: str,
        offset: int,
        size_bytes: int,
        sink: FileSink,
        done: Callable[[Exception | None], None],
    ) -> Cancel:
        """Have a peer's file sent; see ports.Transport.fetch."""
        try:
            asked = self.ask_for_file(node_id, name, offset, size_bytes)
        except Unreachable as problem:
            return self.tell_soon(done, problem)
        fetch = HttpFetch(self, self._dialers[node_id].session, self._peers[node_id], asked, sink, done)
        fetch.begin(self._loop)
        self._fetches.add(fetch.task)
        fetch.task.add_done_callback(self._fetches.discard)
        return fetch.cancel

    async def converse(self, dialer: _Dialer) -> None:
        """Dial one peer, greet it, and write to it until the connection ends.

        Raises Refusal, and what aiohttp raises for a peer that cannot be reached (OSError, ClientError, TimeoutError).
        """
        link = _OutboundLink(self._loop)
        async with asyncio.timeout(self._handshake_s):
            ws = await dialer.session.ws_connect(
                dialer.url,
                compress=0,
                max_msg_size=HELLO_BYTES_MAX + _FRAME_SLACK_BYTES,
                heartbeat=_SILENT_HANDSHAKES * self._handshake_s,
                timeout=aiohttp.ClientWSTimeout(ws_close=_CLOSE_S),
            )
        try:
            outbound = await self._introduce(ws, dialer, link)
            dialer.failures = 0
            try:
                await self._pump(ws, link, outbound)
            finally:
                self._drop_outbound(outbound)
        except Refusal as refusal:
            link.shut(REFUSED, refusal.text)
            raise
        finally:
            await ws.close(code=link.code or GOING_AWAY, message=_reason(link.reason))

    async def _introduce(self, ws: aiohttp.ClientWebSocketResponse, dialer: _Dialer, link: _OutboundLink) -> Outbound:
        """Say hello and judge the answer. Raises Refusal, OSError, TimeoutError."""
        sent = self._own_hello()
        async with asyncio.timeout(self._handshake_s):
            await ws.send_bytes(hello_frame(encode_hello(sent)))
            message = await ws.receive()
        if message.type in _ENDINGS:
            if message.type is WSMsgType.CLOSE and ws.close_code == REFUSED:
                raise Refusal("by_peer", str(message.extra), dialer.node_id)
            raise ConnectionResetError("the connection was closed before an answer")
        return self._greet_outbound(
            dialer.node_id, message.data if message.type is WSMsgType.BINARY else b"", sent, link
        )

    async def _pump(self, ws: aiohttp.ClientWebSocketResponse, link: _OutboundLink, outbound: Outbound) -> None:
        """Write until the connection ends or is shut from this side."""
        writer = self._loop.create_task(self._write(ws, link, outbound))
        reader = self._loop.create_task(self._watch(ws))
        flushed = False
        try:
            await asyncio.wait({writer, reader, link.shut_now}, return_when=asyncio.FIRST_COMPLETED)
            flushed = writer.done()
        finally:
            if not flushed:
                _cut(ws)  # a peer that reads nothing must not keep this side waiting
            writer.cancel()
            reader.cancel()
            ended, _ = await asyncio.gather(writer, reader, return_exceptions=True)
        if isinstance(ended, Exception) and not isinstance(ended, OSError | aiohttp.ClientError):
            raise ended

    async def _write(self, ws: aiohttp.ClientWebSocketResponse, link: _OutboundLink, outbound: Outbound) -> None:
        """Write what the outbox gives, until the connection ends or is shut and all is written."""
        next_frame, send_bytes, counts = outbound.outbox.next_frame, ws.send_bytes, self._counts

        def begin() -> Sending | None:
            frame = next_frame()
            if frame is None:
                return None
            counts["frames_sent"] += 1
            counts["bytes_sent"] += len(frame)
            return send_bytes(frame)

        await link.run(begin)

    async def _watch(self, ws: aiohttp.ClientWebSocketResponse) -> None:
        """Notice the end of a connection on which only this node speaks."""
        message = await ws.receive()
        if message.type in (WSMsgType.BINARY, WSMsgType.TEXT):
            self._counts["dropped_wrong_way"] += 1


class _OutboundLink(EagerWriter):
    """The writing end of a connection that this node dialled."""

    def __init__(self, loop: AbstractEventLoop) -> None:
        super().__init__(loop)
        self.shut_now: Future[None] = loop.create_future()
        self.code = 0
        self.reason = ""

    def shut(self, code: int, reason: str, flush: bool = False) -> None:
        if self.code == 0:
            self.code, self.reason = code, reason
        if not flush and not self.shut_now.done():
            self.shut_now.set_result(None)
        self.end()


class _InboundLink:
    """The reading end of a connection that a peer dialled."""

    def __init__(self, transport: AiohttpTransport, ws: web.WebSocketResponse) -> None:
        self._transport = transport
        self._ws = ws
        self.code = 0
        self.reason = ""

    def wake(self) -> None:
        """Nothing is ever written here."""

    def shut(self, code: int, reason: str, flush: bool = False) -> None:
        if self.code == 0:
            self.code, self.reason = code, reason
            self._transport.spawn(self._ws.close(code=code, message=_reason(reason)))


class _Dialer:
    """Keeps the connection to one peer: dials, waits, dials again."""

    def __init__(
        self, transport: AiohttpTransport, node_id: NodeId, address: str, session: aiohttp.ClientSession
    ) -> None:
        self.node_id = node_id
        self.url = f"http://{address}{PATH}"
        self.session = session
        self.failures = 0
        self._transport = transport
        self._hurry = asyncio.Event()
        self._task = asyncio.get_running_loop().create_task(self._run())

    def hurry(self) -> None:
        self._hurry.set()

    async def stop(self, patience_s: float) -> None:
        """End the task; it may take `patience_s` seconds to write what waits."""
        self._hurry.set()
        await asyncio.wait({self._task}, timeout=patience_s)
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    async def _run(self) -> None:
        transport = self._transport
        while True:
            is_closing = transport._closing
            if is_closing:
                return
            self._hurry.clear()
            try:
                await transport.converse(self)
            except Refusal as refusal:
                if refusal.kind == "by_peer":
                    transport._note_refused_by(self.node_id, refusal.text)
            except (OSError, aiohttp.ClientError, TimeoutError) as problem:
                transport._note_unreachable(self.node_id, problem)
            except Exception:
                logger.exception("the connection to node %r failed by a bug; it is dialled again", self.node_id)
            if transport._closing:
                return
            self.failures += 1
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(transport._backoff_s(self.failures - 1)):
                    await self._hurry.wait()


class _Listener(web.Server):
    """The server's connections; those that have not said hello are strangers, few and not for long."""

    def __init__(self, transport: AiohttpTransport, loop: AbstractEventLoop, handshake_s: float) -> None:
        super().__init__(transport.serve, loop=loop, access_log=None)
        self._transport = transport
        self._handshake_s = handshake_s
        self._strangers: dict[web.RequestHandler, asyncio.TimerHandle] = {}
        self._ending: dict[web.RequestHandler, Task[Any]] = {}
        self._stopped = False

    def connection_made(self, handler: web.RequestHandler, transport: asyncio.Transport) -> None:
        super().connection_made(handler, transport)
        loop = asyncio.get_running_loop()
        if self._stopped or len(self._strangers) >= STRANGERS_MAX:
            if not self._stopped:
                self._transport._note_stranger("flood", "too many connections have not said hello")
            loop.call_soon(transport.abort)  # not before the handler's own task has begun
            return
        timer = loop.call_later(self._handshake_s, self._cut, handler, transport)
        self._strangers[handler] = timer

    def connection_lost(self, handler: web.RequestHandler, exc: BaseException | None = None) -> None:
        self.admit(handler)
        if (task := self._ending.pop(handler, None)) is not None:
            task.cancel()
        super().connection_lost(handler, exc)

    def end_with(self, handler: web.RequestHandler, task: Task[Any]) -> None:
        """Cancel `task` when this connection is lost."""
        self._ending[handler] = task

    def admit(self, handler: web.RequestHandler) -> None:
        """This connection is no stranger any more."""
        if (timer := self._strangers.pop(handler, None)) is not None:
            timer.cancel()

    async def stop(self) -> None:
        """Cut every connection that is left and wait for its coroutine."""
        self._stopped = True
        for handler in self.connections:
            if handler.transport is not None:
                handler.transport.abort()
        await self.shutdown(timeout=_CLOSE_S)

    def _cut(self, handler: web.RequestHandler, transport: asyncio.Transport) -> None:
        self._strangers.pop(handler, None)
        self._transport._note_stranger("no_hello", "it did not say hello in time")
        transport.abort()


def _reason(text: str) -> bytes:
    """Return what fits into a close message, cut at a character."""
    return text.encode()[:_REASON_BYTES_MAX].decode(errors="ignore").encode()


def _cut(ws: aiohttp.ClientWebSocketResponse) -> None:
    """End a connection at once, whatever still waits to be written to it."""
    found = ws.get_extra_info("socket")
    if found is None:
        return
    with contextlib.suppress(OSError), socket.socket(fileno=os.dup(found.fileno())) as duplicate:
        duplicate.shutdown(socket.SHUT_RDWR)
