"""A client of the Redis protocol that shows each reply as it stands on the wire, and a real redis-server beside it.

A reply is a pair: its type byte, and what it holds; arrays and maps hold replies. So a null that was written as another
kind of null, or a text that came as a number, is a difference.
"""

from __future__ import annotations

import asyncio
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final, TypeAlias

from examples.kv.cluster import free_ports

Reply: TypeAlias = tuple[str, Any]
_TIMEOUT_S: Final = 30.0


def needed(program: str) -> str:
    """Return where a program of Redis is. Raises RuntimeError that says how to get it."""
    found = shutil.which(program)
    if found is None:
        raise RuntimeError(f"{program} is not installed, and this test compares with it: apt-get install redis")
    return found


class Wire:
    """A blocking connection."""

    def __init__(self, address: str) -> None:
        host, _, port = address.rpartition(":")
        self.socket = socket.create_connection((host, int(port)), timeout=_TIMEOUT_S)
        self._file = self.socket.makefile("rb")

    def __enter__(self) -> Wire:
        return self

    def __exit__(self, *problem: object) -> None:
        self.close()

    def close(self) -> None:
        self._file.close()
        self.socket.close()

    def send(self, *requests: Sequence[bytes | str]) -> None:
        """Send requests, in one piece."""
        self.socket.sendall(b"".join(encode(request) for request in requests))

    def ask(self, *words: bytes | str) -> Reply:
        """Send one request; return its reply."""
        self.send(words)
        return self.reply()

    def ask_all(self, requests: Sequence[Sequence[bytes | str]]) -> list[Reply]:
        """Send requests in one piece; return their replies."""
        self.send(*requests)
        return [self.reply() for _ in requests]

    def reply(self) -> Reply:
        """Read one reply. Raises EOFError at the end of the connection."""
        line = self._file.readline()
        if not line.endswith(b"\r\n"):
            raise EOFError("the connection ended")
        kind, text = chr(line[0]), line[1:-2]
        if kind in "+-":
            return kind, text.decode("utf-8", "surrogateescape")
        if kind == ":":
            return kind, int(text)
        if kind == "_":
            return kind, None
        count = int(text)
        if count < 0:
            return kind, None
        if kind in "$=":
            body = self._file.read(count + 2)
            return kind, body[:-2]
        if kind in "*%":
            return kind, [self.reply() for _ in range(count * (2 if kind == "%" else 1))]
        raise ValueError(f"a reply of an unknown kind: {line!r}")


class Talk:
    """The same without blocking, within the loop that the server runs in."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self.writer = writer

    @classmethod
    async def to(cls, address: str) -> Talk:
        host, _, port = address.rpartition(":")
        return cls(*await asyncio.open_connection(host, int(port)))

    async def __aenter__(self) -> Talk:
        return self

    async def __aexit__(self, *problem: object) -> None:
        self.writer.close()
        with suppress(ConnectionError):
            await self.writer.wait_closed()

    def send(self, *requests: Sequence[bytes | str]) -> None:
        self.writer.write(b"".join(encode(request) for request in requests))

    async def ask(self, *words: bytes | str) -> Reply:
        self.send(words)
        return await self.reply()

    async def ask_all(self, *requests: Sequence[bytes | str]) -> list[Reply]:
        self.send(*requests)
        return [await self.reply() for _ in requests]

    async def reply(self) -> Reply:
        """Read one reply. Raises EOFError at the end of the connection."""
        line = await self._reader.readuntil(b"\r\n")
        kind, text = chr(line[0]), line[1:-2]
        if kind in "+-":
            return kind, text.decode("utf-8", "surrogateescape")
        if kind == ":":
            return kind, int(text)
        if kind == "_" or text == b"-1":
            return kind, None
        count = int(text)
        if kind in "$=":
            return kind, (await self._reader.readexactly(count + 2))[:-2]
        return kind, [await self.reply() for _ in range(count * (2 if kind == "%" else 1))]

    async def ended(self) -> bool:
        """Wait for the end of the connection; return whether nothing came before it."""
        try:
            return await self._reader.read() == b""
        except ConnectionError:
            return True


def encode(words: Sequence[bytes | str]) -> bytes:
    """Return a request as bytes."""
    raw = [word.encode() if isinstance(word, str) else word for word in words]
    return b"*%d\r\n" % len(raw) + b"".join(b"$%d\r\n%b\r\n" % (len(word), word) for word in raw)


@contextmanager
def redis_server(directory: Path, *options: str) -> Iterator[str]:
    """Run a redis-server that keeps nothing, until the block ends; yield its address."""
    (port,) = free_ports(1)
    command = [
        needed("redis-server"),
        "--bind",
        "127.0.0.1",
        "--port",
        str(port),
        "--save",
        "",
        "--dir",
        str(directory),
    ]
    with subprocess.Popen([*command, *options], stdout=subprocess.DEVNULL) as process:
        try:
            address = f"127.0.0.1:{port}"
            give_up = time.monotonic() + _TIMEOUT_S
            while True:
                try:
                    with Wire(address) as wire:
                        if wire.ask("PING") == ("+", "PONG"):
                            break
                except OSError:
                    if process.poll() is not None or time.monotonic() > give_up:
                        raise
                    time.sleep(0.01)
            yield address
        finally:
            process.terminate()
            process.wait()
