"""Requests and their answers, over messages that are otherwise one-way.

A request travels on the connection that the asker dialled, its answer on the one that the answerer dialled. Only the
asker keeps anything: one entry per request, until its answer, its deadline, or the loss of its connection.

Rules of this file: every future is resolved exactly once; "Unreachable" and its like are said only while the request
certainly never left; an answer counts only from the node that was asked; one timer for all deadlines.
"""

from __future__ import annotations

import heapq
from asyncio import AbstractEventLoop, Future, TimerHandle
from typing import Final

from multiraft.errors import MultiRaftError, OutcomeUnknown, Overloaded, Unreachable
from multiraft.transport.outbox import Outbox
from multiraft.types import NodeId

PENDING_MAX: Final = 65_536
"""Requests of one node that wait for an answer; more are refused as Overloaded."""
_STALE_MIN: Final = 256


class _Call:
    """One request that waits.

    outbox, ticket  where it was queued: they tell whether it has left
    """

    __slots__ = ("future", "node_id", "outbox", "size_bytes", "ticket")

    def __init__(self, future: Future[bytes], node_id: NodeId, outbox: Outbox, ticket: int, size_bytes: int) -> None:
        self.future = future
        self.node_id = node_id
        self.outbox = outbox
        self.ticket = ticket
        self.size_bytes = size_bytes


class Calls:
    """The requests of one node that wait for their answers.

    pending_bytes  bound on the bodies of all of them together
    """

    def __init__(self, loop: AbstractEventLoop, pending_bytes: int) -> None:
        self._loop = loop
        self._limit_bytes = pending_bytes
        self._pending: dict[int, _Call] = {}
        self._pending_bytes = 0
        self._last_id = 0
        self._deadlines: list[tuple[float, int]] = []
        self._timer: TimerHandle | None = None

    @property
    def pending(self) -> int:
        return len(self._pending)

    def next_id(self) -> int:
        """Return an id that no request of this run had before."""
        self._last_id += 1
        return self._last_id

    def check_room(self, size_bytes: int) -> Overloaded | None:
        """Return why a request with a body of this size cannot be taken; None when it can."""
        if len(self._pending) >= PENDING_MAX:
            return Overloaded(f"{PENDING_MAX} requests to other nodes wait for answers; retry later")
        if self._pending and self._pending_bytes + size_bytes > self._limit_bytes:
            return Overloaded(f"requests to other nodes hold {self._pending_bytes} bytes (pending_bytes); retry later")
        return None

    def wait(
        self, request_id: int, node_id: NodeId, outbox: Outbox, ticket: int, size_bytes: int, timeout_s: float
    ) -> Future[bytes]:
        """Return the future of a request that was just queued in `outbox` under `ticket`."""
        future: Future[bytes] = self._loop.create_future()
        self._pending[request_id] = _Call(future, node_id, outbox, ticket, size_bytes)
        self._pending_bytes += size_bytes
        heapq.heappush(self._deadlines, (self._loop.time() + timeout_s, request_id))
        if self._deadlines[0][1] == request_id:
            self._arm()
        return future

    def answered(self, node_id: NodeId, request_id: int, body: bytes) -> bool:
        """Hand an answer to its asker. False: nobody waits for it (late, unknown, or from a node not asked)."""
        call = self._pending.get(request_id)
        if call is None or call.node_id != node_id:
            return False
        self._forget(request_id)
        if call.future.done():
            return False
        call.future.set_result(body)
        return True

    def connection_lost(self, outbox: Outbox) -> None:
        """End every request that was queued in `outbox`."""
        for request_id in [key for key, call in self._pending.items() if call.outbox is outbox]:
            call = self._forget(request_id)
            if call.outbox.bulk_left(call.ticket):
                self._fail(call, OutcomeUnknown(f"the connection to node {call.node_id!r} was lost before the answer"))
            else:
                self._fail(call, Unreachable(f"the connection to node {call.node_id!r} was lost; nothing was sent"))

    def close(self) -> None:
        """Stop the timer. Every outbox must have been reported lost before."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._deadlines.clear()

    def _forget(self, request_id: int) -> _Call:
        call = self._pending.pop(request_id)
        self._pending_bytes -= call.size_bytes
        if len(self._deadlines) > 2 * len(self._pending) + _STALE_MIN:
            self._deadlines = [item for item in self._deadlines if item[1] in self._pending]
            heapq.heapify(self._deadlines)
        return call

    def _fail(self, call: _Call, error: MultiRaftError) -> None:
        if not call.future.done():
            call.future.set_exception(error)

    def _arm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_at(self._deadlines[0][0], self._expire) if self._deadlines else None

    def _expire(self) -> None:
        self._timer = None
        now = self._loop.time()
        while self._deadlines and (self._deadlines[0][0] <= now or self._deadlines[0][1] not in self._pending):
            _, request_id = heapq.heappop(self._deadlines)
            if request_id in self._pending:
                call = self._forget(request_id)
                self._fail(call, OutcomeUnknown(f"node {call.node_id!r} did not answer in time"))
        self._arm()
