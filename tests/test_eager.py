"""EagerWriter: frames leave within the call; what a connection does not take at once is waited for, in order.

Rules of this file: the connection is a list and a gate; nothing but the loop's own rounds passes between steps.
"""

from __future__ import annotations

import asyncio
from collections import deque

import pytest

from multiraft.eager import EagerWriter, Sending


class Connection:
    """What was written; `gate`, where there is one, keeps each frame's writing from its end."""

    def __init__(self) -> None:
        self.waiting: deque[str] = deque()
        self.written: list[str] = []
        self.gate: asyncio.Future[None] | None = None
        self.problem: Exception | None = None

    def begin(self) -> Sending | None:
        return self._send(self.waiting.popleft()) if self.waiting else None

    async def _send(self, frame: str) -> None:
        if self.problem is not None:
            raise self.problem
        self.written.append(frame)
        if self.gate is not None:
            await self.gate
            self.written.append(f"{frame} taken")


async def started() -> tuple[Connection, EagerWriter, asyncio.Task[None]]:
    connection, writer = Connection(), EagerWriter(asyncio.get_running_loop())
    connection.waiting.append("first")
    writer.write()  # nobody has begun: it is left to the task
    assert connection.written == []
    task = asyncio.create_task(writer.run(connection.begin))
    await asyncio.sleep(0)
    assert connection.written == ["first"]
    return connection, writer, task


async def test_frames_leave_within_the_call() -> None:
    connection, writer, task = await started()
    connection.waiting += ["a", "b"]
    writer.write()
    assert connection.written == ["first", "a", "b"]
    writer.end()
    await task


async def test_a_wake_gathers_what_comes_until_the_next_round_and_a_write_goes_before_it() -> None:
    connection, writer, task = await started()
    connection.waiting.append("a")
    writer.wake()
    connection.waiting.append("b")
    writer.wake()
    assert connection.written == ["first"]
    await asyncio.sleep(0)
    assert connection.written == ["first", "a", "b"]
    connection.waiting.append("c")
    writer.wake()
    writer.write()
    assert connection.written[-1] == "c"
    writer.end()
    await task


async def test_what_a_full_connection_keeps_waiting_is_finished_before_anything_else_is_written() -> None:
    connection, writer, task = await started()
    connection.gate = asyncio.get_running_loop().create_future()
    connection.waiting += ["a", "b"]
    writer.write()
    writer.write()
    writer.wake()
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert connection.written == ["first", "a"]
    connection.gate.set_result(None)
    writer.end()
    await task
    assert connection.written == ["first", "a", "a taken", "b", "b taken"]


async def test_what_writing_raises_ends_the_task() -> None:
    connection, writer, task = await started()
    connection.problem = ConnectionResetError("gone")
    connection.waiting += ["a", "b"]
    writer.write()
    with pytest.raises(ConnectionResetError, match="gone"):
        await task
    writer.write()
    writer.wake()
    assert list(connection.waiting) == ["b"]


async def test_the_end_comes_after_all_that_waits() -> None:
    connection, writer, task = await started()
    connection.waiting += ["a", "b"]
    writer.end()
    writer.write()  # the task has it again
    await task
    assert connection.written == ["first", "a", "b"]


async def test_a_cancelled_task_lends_nothing_any_more() -> None:
    connection, writer, task = await started()
    connection.waiting.append("a")
    writer.wake()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    writer.write()
    assert connection.written[1:] in ([], ["a"])
    connection.waiting.append("b")
    writer.write()
    writer.wake()
    await asyncio.sleep(0)
    assert "b" not in connection.written
