"""The reads that one replica answers itself, whoever leads its group: from asking for an index to the answer.

    waiting for the next question ──> covered by the question under way ──> waiting for the index to be applied

A question is put to the leader, which answers with an index: everything that anybody could have seen when the
question was put lies at or below it. So what this replica holds once it has applied that index is no older than the
moment of the question, by the clock of the node that asked. That moment is kept: it is what the age of a stale read
is counted from.

Rules of this file: no I/O, no clock; a read is covered only by a question that is put after it came; one question is
under way at a time, and whoever comes meanwhile waits for the next one; a future that its caller has cancelled is
left alone.
"""

from __future__ import annotations

from asyncio import Future
from collections import deque
from collections.abc import Callable
from math import inf
from typing import NamedTuple, Protocol

from multiraft.engine.machine import query_failed
from multiraft.engine.waiting import Budget, fail_all, fail_future
from multiraft.errors import MultiRaftError
from multiraft.types import Index


class Seen(NamedTuple):
    """An answer, and what it is known to take into account.

    since_s  everything that was visible anywhere in the cluster when the real clock of this node read so is in it
    """

    answer: bytes
    since_s: float


class Answers(Protocol):
    """Whoever answers from what is applied here."""

    def query(self, query: bytes) -> bytes: ...


def answer_from(machine: Answers, query: bytes, since_s: float, future: Future[Seen]) -> None:
    """Put `query` to `machine`; `future` gets the answer, or what the query raised."""
    try:
        future.set_result(Seen(machine.query(query), since_s))
    except Exception as problem:
        fail_future(future, query_failed(problem))


class Batch:
    """Reads that are covered by the same question.

    deadline_s  on the patience clock, for all of them
    since_s     when their question was put, on the real clock
    """

    __slots__ = ("_budget", "_size_bytes", "deadline_s", "futures", "queries", "since_s")

    def __init__(self, budget: Budget, deadline_s: float) -> None:
        self.queries: list[bytes] = []
        self.futures: list[Future[Seen]] = []
        self.deadline_s = deadline_s
        self.since_s = -inf
        self._budget = budget
        self._size_bytes = 0

    def add(self, query: bytes, future: Future[Seen]) -> None:
        """Raises Overloaded when too many bytes of queries wait on this node."""
        self._size_bytes += self._budget.take_queries(len(query))
        self.queries.append(query)
        self.futures.append(future)

    def answer(self, machine: Answers) -> None:
        for query, future in zip(self.queries, self.futures, strict=True):
            if not future.done():
                answer_from(machine, query, self.since_s, future)
        self._finish()

    def fail(self, error: Callable[[], MultiRaftError]) -> None:
        fail_all(self.futures, error)
        self._finish()

    def _finish(self) -> None:
        self._budget.used_bytes -= self._size_bytes
        self._budget.count -= len(self.futures)
        self._size_bytes = 0
        self.queries, self.futures = [], []


class LocalReads:
    """What one replica knows of its own age, and the reads that wait for it.

    since_s    everything that was visible anywhere at this reading of the real clock has been applied here;
               -infinity while nothing is known. Never goes back
    asking     a question is under way
    problem    why the last question had no answer; empty after one that had
    _next      reads that no question covers yet; None when there are none
    _covered   reads that the question under way covers, or the one that failed: the next one covers them as well
    _confirmed  (index, when its question was put, its reads), ascending in all of them, until the index is applied
    """

    __slots__ = ("_budget", "_confirmed", "_covered", "_next", "asking", "problem", "since_s")

    def __init__(self, budget: Budget) -> None:
        self.since_s = -inf
        self.asking = False
        self.problem = ""
        self._budget = budget
        self._next: Batch | None = None
        self._covered: list[Batch] = []
        self._confirmed: deque[tuple[Index, float, list[Batch]]] = deque()

    def add(self, query: bytes, future: Future[Seen], deadline_s: float) -> None:
        """Have `query` answered after the next question. Raises Overloaded."""
        batch = self._next if self._next is not None else Batch(self._budget, deadline_s)
        batch.add(query, future)
        self._next = batch

    @property
    def wants_to_ask(self) -> bool:
        """Whether reads wait that no question is under way for."""
        return not self.asking and (self._next is not None or bool(self._covered))

    @property
    def idle(self) -> bool:
        """Whether nothing waits here and no question is under way."""
        return not (self.asking or self._next is not None or self._covered or self._confirmed)

    def ask(self) -> None:
        """A question is put now: it covers all that has come."""
        self.asking = True
        if self._next is not None:
            self._covered.append(self._next)
            self._next = None

    def confirmed(self, index: Index, asked_s: float) -> None:
        """The question that was put at `asked_s`, real clock, was answered with `index`."""
        self.asking = False
        self.problem = ""
        if self._confirmed:  # never lower than the answer to an earlier question; waiting for more is always safe
            index = max(index, self._confirmed[-1][0])
        batches, self._covered = self._covered, []
        for batch in batches:
            batch.since_s = asked_s
        self._confirmed.append((index, asked_s, batches))

    def unanswered(self, problem: str) -> None:
        """The question under way had no answer: what it covered waits for another one."""
        self.asking = False
        self.problem = problem

    def applied(self, index: Index, machine: Answers) -> None:
        """The replica has applied everything up to `index`: answer what waited for that."""
        while self._confirmed and self._confirmed[0][0] <= index:
            _, asked_s, batches = self._confirmed.popleft()
            self.since_s = max(self.since_s, asked_s)
            for batch in batches:
                batch.answer(machine)

    def expire(self, now: float, error: Callable[[], MultiRaftError]) -> None:
        """Fail the reads whose time, on the patience clock, has run out."""
        for batch in self._waiting():
            if batch.deadline_s <= now:
                batch.fail(error)
        self._covered = [batch for batch in self._covered if batch.futures]
        if self._next is not None and not self._next.futures:
            self._next = None
        if self._confirmed:
            self._confirmed = deque(each for each in self._confirmed if any(batch.futures for batch in each[2]))

    def fail(self, error: Callable[[], MultiRaftError]) -> None:
        """Fail every read that waits. What is known of the age stays true."""
        for batch in self._waiting():
            batch.fail(error)
        self._next, self._covered = None, []
        self._confirmed.clear()

    def _waiting(self) -> list[Batch]:
        waiting = [*self._covered, *(batch for _, _, batches in self._confirmed for batch in batches)]
        return waiting if self._next is None else [*waiting, self._next]
