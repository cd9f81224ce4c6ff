"""Files over HTTP: a GET to the port on which a node's peers listen, with a connection of its own for each.

    GET /multiraft/files?name=NAME&offset=OFFSET         MultiRaft-Hello: what would open a connection, in base64
    200  MultiRaft-Hello, MultiRaft-Size: the whole file's; Content-Length; then the bytes from OFFSET on
    403, 404, 416, 503  MultiRaft-Refused: why, in a word; then in a sentence

Backpressure is TCP's: the asker reads no more than its sink asks for, the owner no more of the file than it can write.

Rules of this file: bytes and connections only, who gets what is decided in files.py; a connection is closed after its
one answer, and the answer ends with it; an owner that cannot go on breaks the connection, since an answer that is cut
short must not look whole.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import contextlib
from asyncio import Future
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

import aiohttp
from aiohttp import web

from multiraft.errors import MultiRaftError
from multiraft.ports import FILE_PIECE_BYTES, FileSink
from multiraft.transport.files import (
    ASKER_PATIENCE,
    BUSY,
    GONE,
    OWNER_PATIENCE,
    RANGE,
    STRANGER,
    AskedFile,
    FileRefused,
    SentFile,
)
from multiraft.transport.hello import HELLO_BYTES_MAX
from multiraft.transport.peers import logger

if TYPE_CHECKING:
    from multiraft.transport.aiohttp_peers import AiohttpTransport

FILES_PATH: Final = "/multiraft/files"
HELLO_HEADER: Final = "MultiRaft-Hello"
SIZE_HEADER: Final = "MultiRaft-Size"
REFUSED_HEADER: Final = "MultiRaft-Refused"
_STATUS: Final = {STRANGER: 403, GONE: 404, RANGE: 416, BUSY: 503}
_REASON_BYTES_MAX: Final = 1_024
_DIGITS_MAX: Final = 20


class HttpFetch:
    """One file on its way to this node."""

    def __init__(
        self,
        transport: AiohttpTransport,
        session: aiohttp.ClientSession,
        address: str,
        asked: AskedFile,
        sink: FileSink,
        done: Callable[[Exception | None], None],
    ) -> None:
        self._transport = transport
        self._session = session
        self._address = address
        self._asked = asked
        self._sink = sink
        self._done: Callable[[Exception | None], None] | None = done

    def cancel(self) -> None:
        self._done = None
        self.task.cancel()

    def begin(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self.task = loop.create_task(self._run(), name=f"fetch {self._asked.name}")

    async def _run(self) -> None:
        error: Exception | None = None
        try:
            await self._fetch()
        except MultiRaftError as problem:
            error = problem
        except TimeoutError:
            error = self._transport.file_lost(self._asked, "its owner fell silent")
        except (OSError, aiohttp.ClientError) as problem:
            error = self._transport.file_lost(self._asked, f"{type(problem).__name__} {problem}")
        if self._done is not None:
            self._done(error)

    async def _fetch(self) -> None:
        asked, transport = self._asked, self._transport
        patience_s = ASKER_PATIENCE * transport.handshake_s
        headers = {HELLO_HEADER: base64.b64encode(asked.frame).decode(), "Connection": "close"}
        query = {"name": asked.name, "offset": str(asked.offset)}
        url = f"http://{self._address}{FILES_PATH}"
        response = await asyncio.wait_for(
            self._session.get(url, params=query, headers=headers, allow_redirects=False), patience_s
        )
        async with contextlib.AsyncExitStack() as stack:
            stack.callback(response.close)
            if response.status != 200:
                async with asyncio.timeout(patience_s):
                    text = await response.content.read(_REASON_BYTES_MAX)
                kind = response.headers.get(REFUSED_HEADER, "")
                raise transport.file_refused(asked, kind, text.decode(errors="replace").strip())
            size_bytes = _number(response.headers.get(SIZE_HEADER, ""))
            transport.judge_owner(asked, _from_header(response.headers.get(HELLO_HEADER, "")), size_bytes)
            await self._receive(response.content, asked.size_bytes - asked.offset, patience_s)

    async def _receive(self, content: aiohttp.StreamReader, left_bytes: int, patience_s: float) -> None:
        while left_bytes > 0:
            async with asyncio.timeout(patience_s):
                piece = await content.read(min(FILE_PIECE_BYTES, left_bytes))
            if not piece:
                raise ConnectionResetError("it ended before the end of the file")
            left_bytes -= len(piece)
            self._transport.piece_received(len(piece))
            room: Future[None] = self._loop.create_future()
            self._sink(piece, lambda room=room: None if room.done() else room.set_result(None))  # type: ignore[misc]
            await room


async def serve_file(
    transport: AiohttpTransport, request: web.BaseRequest, admit: Callable[[], None]
) -> web.StreamResponse:
    """Answer one question for a file, until the connection is lost: then this is cancelled.

    admit  called when who asks has shown to be a peer
    """
    name, offset = request.query.get("name", ""), _number(request.query.get("offset", ""))
    try:
        sent = transport.open_file(_from_header(request.headers.get(HELLO_HEADER, "")), name, offset)
    except FileRefused as refused:
        headers = {REFUSED_HEADER: refused.kind}
        answer = web.Response(status=_STATUS[refused.kind], text=refused.text[:_REASON_BYTES_MAX], headers=headers)
        answer.force_close()
        return answer
    admit()
    response = web.StreamResponse(
        headers={
            HELLO_HEADER: base64.b64encode(sent.frame).decode(),
            SIZE_HEADER: str(sent.source.size_bytes),
            "Content-Type": "application/octet-stream",
        }
    )
    response.content_length = sent.source.size_bytes - offset
    response.force_close()
    try:
        await _send(transport, request, response, sent)
    except TimeoutError:
        transport.stopped_sending(sent, "it is given up, nothing of it is taken")
        _break(request)
    except OSError as problem:  # the asker has gone, or the file cannot be read
        transport.stopped_sending(sent, f"{type(problem).__name__} {problem}")
        _break(request)
    except MultiRaftError as problem:
        transport.stopped_sending(sent, str(problem))
        _break(request)
    finally:
        sent.source.close()
    return response


async def _send(
    transport: AiohttpTransport, request: web.BaseRequest, response: web.StreamResponse, sent: SentFile
) -> None:
    loop = asyncio.get_running_loop()
    patience_s = OWNER_PATIENCE * transport.handshake_s
    await response.prepare(request)
    offset, end = sent.offset, sent.source.size_bytes
    while offset < end:
        piece = await _read(loop, sent, offset, min(FILE_PIECE_BYTES, end - offset))
        if not transport.may_go_on(sent):
            raise ConnectionAbortedError("who asked for it was replaced")
        offset += len(piece)
        async with asyncio.timeout(patience_s):
            await response.write(piece)
        transport.piece_sent(len(piece))
    async with asyncio.timeout(patience_s):
        await response.write_eof()


async def _read(loop: asyncio.AbstractEventLoop, sent: SentFile, offset: int, size_bytes: int) -> bytes:
    found: Future[bytes] = loop.create_future()

    def done(piece: bytes | Exception) -> None:
        if found.done():
            return
        if isinstance(piece, Exception):
            found.set_exception(piece)
        else:
            found.set_result(piece)

    sent.source.read(offset, size_bytes, done)
    return await found


def _break(request: web.BaseRequest) -> None:
    if request.transport is not None:
        request.transport.abort()


def _number(text: str) -> int:
    """Return the number that a header or a query holds; -1 where it is none."""
    return int(text) if text.isascii() and text.isdigit() and len(text) <= _DIGITS_MAX else -1


def _from_header(text: str) -> bytes:
    """Return the frame of a hello in base64; empty, which is no hello, where it is not that."""
    if len(text) > 2 * HELLO_BYTES_MAX:
        return b""
    try:
        return base64.b64decode(text.encode(), validate=True)
    except (binascii.Error, UnicodeEncodeError) as problem:
        logger.debug("a hello in a header does not decode: %s", problem)
        return b""
