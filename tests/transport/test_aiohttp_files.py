"""Files over HTTP, met from outside: what is no proper question gets a short answer and its connection's end."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Callable
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING

import aiohttp
import pytest

from multiraft.transport.aiohttp_files import FILES_PATH, HELLO_HEADER, REFUSED_HEADER
from multiraft.transport.frames import hello_frame
from multiraft.transport.hello import Hello, encode_hello

if TYPE_CHECKING:
    from tests.transport.conftest import Peer, SocketWorld

NAME = "0000000000000010-0000000000000063-a1b2c3d4.snap"


class DiskFile:
    """A file that is really read, on a thread."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.size_bytes = path.stat().st_size
        self.closed = asyncio.Event()

    def read(self, offset: int, size_bytes: int, done: Callable[[bytes | Exception], None]) -> None:
        loop = asyncio.get_running_loop()
        found = loop.run_in_executor(None, self._read, offset, size_bytes)
        found.add_done_callback(lambda read: done(read.result()))

    def _read(self, offset: int, size_bytes: int) -> bytes:
        with self._path.open("rb") as file:
            file.seek(offset)
            return file.read(size_bytes)

    def close(self) -> None:
        self.closed.set()


async def ask(peer: Peer, address: str, hello: str | None, query: str) -> tuple[int, str | None, bytes]:
    headers = {} if hello is None else {HELLO_HEADER: hello}
    async with (
        aiohttp.ClientSession() as session,
        session.get(f"http://{address}{FILES_PATH}?{query}", headers=headers) as answer,
    ):
        assert answer.headers.get("Connection", "").lower() == "close"
        return answer.status, answer.headers.get(REFUSED_HEADER), await answer.read()


@pytest.mark.parametrize("hello", [None, "", "!!!", "AAAA", "QUJD" * 1_000, "é"])
async def test_a_question_without_a_proper_hello_is_refused(socket_world: SocketWorld, hello: str | None) -> None:
    _, b = await socket_world.pair()
    status, kind, text = await ask(b, socket_world.listens["b"], hello, f"name={NAME}&offset=0")
    assert (status, kind) == (403, "stranger")
    assert len(text) < 1_024
    assert b.count("refused_file_stranger") == 1


@pytest.mark.parametrize(
    "query", ["", "offset=0", f"name={NAME}", "name=../../etc/passwd&offset=0", "name=%00&offset=0"]
)
async def test_a_peer_that_asks_for_nothing_that_is_there_is_told(
    socket_world: SocketWorld, greeting: Callable[..., Hello], query: str
) -> None:
    _, b = await socket_world.pair()
    await b.ear.hears("heard", "a")
    hello = base64.b64encode(hello_frame(encode_hello(greeting(node_id="a", store_id=b"store of a")))).decode()
    assert (await ask(b, socket_world.listens["b"], hello, query))[:2] == (404, "gone")


@pytest.mark.parametrize("offset", ["-1", "11", "x", "", "1e3", "9" * 40, "٣"])
async def test_an_offset_outside_the_file_is_refused(
    socket_world: SocketWorld, greeting: Callable[..., Hello], tmp_path: Path, offset: str
) -> None:
    _, b = await socket_world.pair()
    await b.ear.hears("heard", "a")
    (tmp_path / NAME).write_bytes(b"0123456789")
    b.ear.files[NAME] = source = DiskFile(tmp_path / NAME)
    hello = base64.b64encode(hello_frame(encode_hello(greeting(node_id="a", store_id=b"store of a")))).decode()
    answer = await ask(b, socket_world.listens["b"], hello, f"name={NAME}&offset={offset}")
    assert answer[:2] == (416, "range")
    assert source.closed.is_set()


async def test_a_large_file_crosses_while_messages_pass(socket_world: SocketWorld, tmp_path: Path) -> None:
    a, b = await socket_world.pair()
    await b.ear.hears("heard", "a")
    path = tmp_path / NAME
    path.write_bytes(b"".join(blake2b(number.to_bytes(4, "big")).digest() for number in range(327_680)))
    b.ear.files[NAME] = source = DiskFile(path)
    assert source.size_bytes == 20 * 1024 * 1024
    digest, outcome = blake2b(), asyncio.get_running_loop().create_future()

    def sink(piece: bytes, more: Callable[[], None]) -> None:
        digest.update(piece)
        more()

    a.transport.fetch("b", NAME, 0, source.size_bytes, sink, outcome.set_result)
    sent = 0
    while not outcome.done():
        sent += 1
        assert b.send("a", sent)
        await a.ear.until(lambda sent=sent: a.ear.numbers("b")[-1:] == [sent])  # type: ignore[misc]
    assert outcome.result() is None
    assert digest.hexdigest() == blake2b(path.read_bytes()).hexdigest()
    assert sent > 3, "each of these crossed while the file was on its way"
    await source.closed.wait()
