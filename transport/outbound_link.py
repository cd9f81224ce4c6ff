"""The writing end of a WebSocket that this node dialled: frames are written within the call that wants them to leave.

A task owns the connection (aiohttp_peers.py). A frame that waited until the loop comes round to that task would leave
two rounds later, and after the writer thread has taken the interpreter's lock in between; for a single write that is
time which somebody waits for. So while the task has nothing to do, it lends its writing to whoever calls `write`.

Rules of this file: what is written and in which order is the outbox's; a frame that was taken is written, or the
connection ends; bytes that the connection does not take now are waited for by the task, and by it alone.
"""

from __future__ import annotations

import asyncio
from asyncio import AbstractEventLoop, Future
from collections.abc import Awaitable, Callable, Coroutine, Generator
from typing import Any


class _Begun:
    """A coroutine that was taken to where it first waits, and what it waits for: a task that awaits this goes on."""

    def __init__(self, rest: Coroutine[Any, Any, None], waits_for: Any) -> None:
        self._rest = rest
        self._waits_for = waits_for

    def __await__(self) -> Generator[Any, Any, None]:
        yield self._waits_for
        yield from self._rest.__await__()


class OutboundLink:
    """The writing end of a connection that this node dialled.

    While its task waits, `write` writes: a frame leaves within the call, and not when the loop has come round to the
    task. It takes the writing coroutine to its end, which that comes to without a stop unless the connection is full;
    then the task is given what is left of it.
    """

    def __init__(self, loop: AbstractEventLoop) -> None:
        self._loop = loop
        self._waiter: Future[None] | None = None
        self._begin: Callable[[], Coroutine[Any, Any, None] | None] | None = None
        self._begun: Awaitable[None] | None = None
        self._soon: asyncio.Handle | None = None
        self.shut_now: Future[None] = loop.create_future()
        self.flushing = False
        self.code = 0
        self.reason = ""

    def wake(self) -> None:
        if self._begin is not None and self._soon is None:
            self._soon = self._loop.call_soon(self.write)

    async def wait(self, begin: Callable[[], Coroutine[Any, Any, None] | None]) -> None:
        """Write what comes; return when it is to be written by the caller. Raises what writing has raised.

        begin  takes the next frame and returns what writes it; None: there is none
        """
        self._waiter = self._loop.create_future()
        self._begin = begin
        try:
            await self._waiter
        finally:
            self._begin = None
            self._wake_no_more()
        begun, self._begun = self._begun, None
        if begun is not None:
            await begun

    def write(self) -> None:
        """Write what is in the outbox, as far as the connection takes it."""
        self._wake_no_more()
        begin = self._begin
        if begin is None:
            return  # the task is writing, or has not begun: it finds what there is
        while (sending := begin()) is not None:
            try:
                waits_for = sending.send(None)
            except StopIteration:
                continue
            except Exception as problem:
                self._hand_over(problem)
                return
            self._begun = _Begun(sending, waits_for)
            self._hand_over(None)
            return

    def shut(self, code: int, reason: str, flush: bool = False) -> None:
        if self.code == 0:
            self.code, self.reason = code, reason
        self.flushing = True
        if not flush and not self.shut_now.done():
            self.shut_now.set_result(None)
        self._hand_over(None)

    def _hand_over(self, problem: Exception | None) -> None:
        """From here on the task writes, or ends by `problem`."""
        self._begin = None
        if self._waiter is not None and not self._waiter.done():
            if problem is None:
                self._waiter.set_result(None)
            else:
                self._waiter.set_exception(problem)

    def _wake_no_more(self) -> None:
        if self._soon is not None:
            self._soon.cancel()
            self._soon = None
