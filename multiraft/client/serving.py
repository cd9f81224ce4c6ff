"""Serving remote clients over WebSockets: a route for the node's HTTP application, and what stands behind it.

    app.router.add_get("/client", ClientServer(node).serve)

What it gives away is everything: whoever can open the connection may read and write every service of the cluster, as
with the admin API, which it is a part of; so it listens where that does. Pages in a browser cannot use it: a request
that names an Origin, as browsers do for every WebSocket, is refused.

Bounds against strangers: a connection that has not said a valid hello in time is closed; CLIENTS_MAX connections at
most; a frame over the largest command's size is refused by its header; one that answers no ping is closed.

Rules of this file: bytes and connections only, what they mean is decided in served.py; what ends a connection is said
in its close code and text, and logged.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from asyncio import Future
from typing import Final
from urllib.parse import urlsplit

import aiohttp
from aiohttp import WSCloseCode, WSMsgType, web

from multiraft.client import frames
from multiraft.client.served import ClientNode, ServedClient
from multiraft.eager import EagerWriter, Sending
from multiraft.errors import MultiRaftError, WireError
from multiraft.types import NodeId

CLIENTS_MAX: Final = 1_024
"""Connections of clients that a node serves at a time."""
URL_CALL: Final = "client.url"
_URLS_S: Final = 5.0
"""What the other nodes have said of their URLs is asked for again after this long."""
_PEER_S: Final = 1.0
_PING_S: Final = 20.0
_CLOSE_S: Final = 1.0
_REASON_BYTES_MAX: Final = 120
_EVERYWHERE: Final = ("0.0.0.0", "::")

log: Final = logging.getLogger("multiraft.client")


class ClientServer:
    """Serves clients of one node. Make it once per node.

    url     where clients reach this node; told to clients of other nodes, so that they find the leaders. None: only
            clients that were given it know it
    counts  connections: "served" so far, "open" now, "refused" (strangers), "malformed" (closed for what they sent)
    """

    def __init__(self, node: ClientNode, url: str | None = None) -> None:
        self._node = node
        # A node that listens everywhere does not know by which of its addresses it is reached.
        self._url = None if url is not None and urlsplit(url).hostname in _EVERYWHERE else url
        self._urls: dict[NodeId, str] = {}
        self._urls_until_s = 0.0
        self._asking: asyncio.Task[None] | None = None
        self._open: set[web.WebSocketResponse] = set()
        self.counts = {"served": 0, "open": 0, "refused": 0, "malformed": 0}
        node.on_call(URL_CALL, lambda body: (self._url or "").encode())

    async def serve(self, request: web.Request) -> web.StreamResponse:
        """Serve one connection, from its HTTP request to its end."""
        if request.headers.get("Upgrade", "").lower() != "websocket":
            text = "this is where multiraft clients connect, by WebSocket: see docs/client.md\n"
            return web.Response(status=426, text=text, headers={"Upgrade": "websocket"})
        if "Origin" in request.headers:
            self.counts["refused"] += 1
            return web.Response(status=403, text="pages in a browser may not use this\n")
        if self.counts["open"] >= CLIENTS_MAX:
            self.counts["refused"] += 1
            return web.Response(status=503, text=f"{CLIENTS_MAX} clients are connected; ask another node\n")
        frame_bytes = self._node.limits.entry_bytes + frames.FRAME_SLACK_BYTES
        ws = web.WebSocketResponse(timeout=_CLOSE_S, compress=False, max_msg_size=frame_bytes, heartbeat=_PING_S)
        try:
            await ws.prepare(request)
        except ConnectionError:  # it is gone already; what was not prepared cannot be ended by the web server
            return web.Response()
        self._open.add(ws)
        self.counts["open"] += 1
        try:
            code, reason = await self._converse(ws)
        finally:
            self._open.discard(ws)
            self.counts["open"] -= 1
        if code:
            log.info("client %s: connection closed: %s", request.remote, reason)
        with contextlib.suppress(ConnectionError):
            await ws.close(code=code or WSCloseCode.OK, message=reason.encode()[:_REASON_BYTES_MAX])
        return ws

    async def close(self, app: web.Application) -> None:
        """The application ends: tell every client, so that it goes elsewhere at once. For `app.on_shutdown`."""
        closing = [ws.close(code=WSCloseCode.GOING_AWAY, message=b"the node is stopping") for ws in self._open]
        if self._asking is not None:
            self._asking.cancel()
        await asyncio.gather(*closing, return_exceptions=True)

    async def _converse(self, ws: web.WebSocketResponse) -> tuple[int, str]:
        """Greet, then hear and answer until the connection ends; return with which code and words to close it."""
        waker = Waker(asyncio.get_running_loop())
        client = ServedClient(self._node, waker.wake, waker.write, self.find_urls)
        try:
            async with asyncio.timeout(self._node.limits.handshake_timeout_ms / 1_000):
                message = await ws.receive()
                frames.read_hello(message.data if message.type is WSMsgType.BINARY else b"")
                await ws.send_bytes(client.welcome())
        except TimeoutError:
            self.counts["refused"] += 1
            return WSCloseCode.POLICY_VIOLATION, "no hello in time"
        except WireError as problem:
            self.counts["refused"] += 1
            return WSCloseCode.PROTOCOL_ERROR, str(problem)
        except MultiRaftError as problem:
            return WSCloseCode.TRY_AGAIN_LATER, str(problem)
        except ConnectionError:
            return 0, ""
        self.counts["served"] += 1
        writer = asyncio.ensure_future(_write(ws, client, waker))
        try:
            return await self._hear(ws, client, waker, writer)
        finally:
            client.close()
            writer.cancel()
            await asyncio.gather(writer, return_exceptions=True)

    async def _hear(
        self, ws: web.WebSocketResponse, client: ServedClient, waker: Waker, writer: asyncio.Future[None]
    ) -> tuple[int, str]:
        receive, received, binary = ws.receive, client.received, WSMsgType.BINARY
        while True:
            message = await receive()
            if message.type is not binary:
                break
            try:
                received(message.data)
            except WireError as problem:
                self.counts["malformed"] += 1
                return WSCloseCode.PROTOCOL_ERROR, str(problem)
            while client.full and not writer.done():
                await waker.written()
        if message.type is WSMsgType.TEXT:
            self.counts["malformed"] += 1
            return WSCloseCode.UNSUPPORTED_DATA, "a text message"
        if isinstance(message.data, aiohttp.WebSocketError):
            self.counts["malformed"] += 1
            return message.data.code, str(message.data)
        return 0, ""

    async def find_urls(self) -> dict[NodeId, str]:
        """Return where clients reach each node, as far as the nodes say so within a second."""
        loop = asyncio.get_running_loop()
        if loop.time() >= self._urls_until_s:
            if self._asking is None:
                self._asking = asyncio.ensure_future(self._ask_urls())
            asking = self._asking
            await asyncio.wait([asking])
        return self._urls

    async def _ask_urls(self) -> None:
        node = self._node
        try:
            nodes = sorted({name for members in node.shard_map.groups.values() for name in members} - {node.node_id})
            said = await asyncio.gather(
                *[node.peer_call(name, URL_CALL, b"", _PEER_S) for name in nodes], return_exceptions=True
            )
            urls = {name: url.decode() for name, url in zip(nodes, said, strict=True) if type(url) is bytes and url}
            # One that does not answer now is where it was before, if it is anywhere.
            self._urls = {**self._urls, **urls, **({node.node_id: self._url} if self._url else {})}
            if len(urls) == len(nodes):
                self._urls_until_s = asyncio.get_running_loop().time() + _URLS_S
        except MultiRaftError as problem:
            log.info("where the other nodes serve clients is not known: %s", problem)
        finally:
            self._asking = None


async def _write(ws: web.WebSocketResponse, client: ServedClient, waker: Waker) -> None:
    """Write what is to be written, until the connection ends."""
    next_frame, send_bytes = client.next_frame, ws.send_bytes

    def begin() -> Sending | None:
        waker.tell_written()  # the frame before
        frame = next_frame()
        return None if frame is None else send_bytes(frame)

    try:
        await waker.run(begin)
    except ConnectionError:  # the reader hears of it, too
        await ws.close()
    finally:
        waker.tell_written()


class Waker(EagerWriter):
    """The writer of a connection, and a signal to its reader: that something was written."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(loop)
        self._reader: Future[None] | None = None

    def tell_written(self) -> None:
        reader = self._reader
        if reader is not None and not reader.done():
            reader.set_result(None)

    async def written(self) -> None:
        self._reader = asyncio.get_running_loop().create_future()
        await self._reader
