"""How the soak programs talk to their nodes: length-prefixed msgpack over loopback, questions and answers by number.

Rules of this file: a connection that breaks fails every question that waits on it; nothing is asked again here.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any, Final

import msgpack

_HEAD_BYTES: Final = 4
Answer = Callable[[str, Any], Awaitable[Any]]


class LostError(Exception):
    """The connection broke, or was never there; whether the question arrived is not known unless `unsent`."""

    def __init__(self, text: str, unsent: bool = False) -> None:
        super().__init__(text)
        self.unsent = unsent


class Refused(Exception):
    """The node answered with an error."""


async def read(reader: asyncio.StreamReader) -> Any:
    size_bytes = int.from_bytes(await reader.readexactly(_HEAD_BYTES), "big")
    return msgpack.unpackb(await reader.readexactly(size_bytes), strict_map_key=False)


def write(writer: asyncio.StreamWriter, message: Any) -> None:
    body = msgpack.packb(message)
    writer.write(len(body).to_bytes(_HEAD_BYTES, "big") + body)


class Connection:
    """One connection to a node; `ask` may be called many times at once."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._numbers = itertools.count()
        self._waiting: dict[int, asyncio.Future[Any]] = {}
        self._listening = asyncio.create_task(self._listen())

    @classmethod
    async def to(cls, port: int) -> Connection:
        """Raises LostError."""
        try:
            return cls(*await asyncio.open_connection("127.0.0.1", port))
        except OSError as problem:
            raise LostError(f"port {port}: {problem}", unsent=True) from problem

    @property
    def alive(self) -> bool:
        return not self._listening.done()

    async def ask(self, what: str, about: Any = None) -> Any:
        """Return the node's answer. Raises LostError, Refused."""
        if not self.alive:
            raise LostError("the connection is gone", unsent=True)
        number = next(self._numbers)
        future = self._waiting[number] = asyncio.get_running_loop().create_future()
        write(self._writer, [number, what, about])
        try:
            return await future
        finally:
            self._waiting.pop(number, None)

    async def close(self) -> None:
        self._listening.cancel()
        await asyncio.gather(self._listening, return_exceptions=True)
        self._writer.close()
        with suppress(OSError):
            await self._writer.wait_closed()

    async def _listen(self) -> None:
        try:
            while True:
                number, answer, refusal = await read(self._reader)
                future = self._waiting.get(number)
                if future is not None and not future.done():
                    if refusal is None:
                        future.set_result(answer)
                    else:
                        future.set_exception(Refused(refusal))
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            for future in self._waiting.values():
                if not future.done():
                    future.set_exception(LostError("the connection broke"))


async def serve(port: int, answer: Answer) -> asyncio.Server:
    """Answer questions on `port` with what `answer(what, about)` returns."""
    tasks: set[asyncio.Task[None]] = set()

    async def one(writer: asyncio.StreamWriter, number: int, what: str, about: Any) -> None:
        try:
            message = [number, await answer(what, about), None]
        except Exception as problem:
            message = [number, None, f"{type(problem).__name__}: {problem}"]
        if not writer.is_closing():
            write(writer, message)

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                number, what, about = await read(reader)
                task = asyncio.create_task(one(writer, number, what, about))
                tasks.add(task)
                task.add_done_callback(tasks.discard)
        except (OSError, asyncio.IncompleteReadError):
            writer.close()

    return await asyncio.start_server(connected, "127.0.0.1", port)
