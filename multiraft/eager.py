"""Writing to a connection within the call that wants it, where a task would come round to it rounds of the loop later.

A task owns the writing of a connection: it waits for what the connection does not take at once, and hears how it ends.
While it has nothing to do it lends its writing to `write`, which takes the writing coroutine to its end. That comes to
it without a stop unless the connection is full; then the task is given what is left of it. A frame that waited for the
task instead would leave after other threads have taken the interpreter's lock: for a single write, which somebody waits
for, that is a good part of its time.

Rules of this file: what is written, and in which order, is the giver's of frames; a frame that was taken is written, or
the task hears why not.
"""

from __future__ import annotations

import asyncio
from asyncio import AbstractEventLoop, Future
from collections.abc import Awaitable, Callable, Coroutine, Generator
from typing import Any, TypeAlias

Sending: TypeAlias = Coroutine[Any, Any, None]


class _Begun:
    """A coroutine that was taken to where it first waits, and what it waits for: a task that awaits this goes on."""

    def __init__(self, rest: Sending, waits_for: Any) -> None:
        self._rest = rest
        self._waits_for = waits_for

    def __await__(self) -> Generator[Any, Any, None]:
        yield self._waits_for
        yield from self._rest.__await__()


class EagerWriter:
    """The writing of one connection.

    begin  takes the next frame and returns what writes it; None: there is none. Called again as soon as that is written
    """

    begin: Callable[[], Sending | None]

    def __init__(self, loop: AbstractEventLoop) -> None:
        self._loop = loop
        self._waiter: Future[None] | None = None
        self._lent = False
        self._begun: Awaitable[None] | None = None
        self._soon: asyncio.Handle | None = None
        self.ending = False

    def wake(self) -> None:
        """There may be a frame: have it written soon, with what comes until then."""
        if self._lent and self._soon is None:
            self._soon = self._loop.call_soon(self.write)

    def write(self) -> None:
        """Write what there is now, as far as the connection takes it; the rest follows by itself."""
        self._not_soon()
        while self._lent and (sending := self.begin()) is not None:
            try:
                waits_for = sending.send(None)
            except StopIteration:
                continue
            except Exception as problem:
                self._hand_back(problem)
            else:
                self._begun = _Begun(sending, waits_for)
                self._hand_back(None)

    def end(self) -> None:
        """Have `run` return when all that there is has been written."""
        self.ending = True
        self._hand_back(None)

    async def run(self, begin: Callable[[], Sending | None]) -> None:
        """Write until `end`, or until cancelled. The task's part. Raises what writing raises."""
        self.begin = begin
        while True:
            sending = begin()
            if sending is not None:
                await sending
            elif self.ending:
                return
            else:
                await self._lend()

    async def _lend(self) -> None:
        """Let `write` write; return when the task is needed again. Raises what writing has raised there."""
        self._waiter = self._loop.create_future()
        self._lent = True
        try:
            await self._waiter
        finally:
            self._lent = False
            self._not_soon()
        begun, self._begun = self._begun, None
        if begun is not None:
            await begun

    def _hand_back(self, problem: Exception | None) -> None:
        """From here on the task writes, or ends by `problem`."""
        self._lent = False
        if self._waiter is not None and not self._waiter.done():
            if problem is None:
                self._waiter.set_result(None)
            else:
                self._waiter.set_exception(problem)

    def _not_soon(self) -> None:
        if self._soon is not None:
            self._soon.cancel()
            self._soon = None
