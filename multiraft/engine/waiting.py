"""Callers that wait: one object per batch of them, never one per caller.

A `Proposals` holds the callers of one log record, a `Reads` those of one ReadIndex round of one group. Both have one
deadline for all. Who has proposed many commands at once waits for all of them by one `Many`.

Rules of this file: a future that its caller has cancelled is left alone; a batch is finished exactly once.
"""

from __future__ import annotations

from asyncio import Future
from collections.abc import Callable, Sequence
from typing import Any, Final, Protocol, TypeAlias

from multiraft.errors import MultiRaftError, Overloaded, invariant
from multiraft.records import COMMANDS, Record
from multiraft.types import Index, Term

Result: TypeAlias = bytes | MultiRaftError
ENTRY_OVERHEAD_BYTES: Final = 64
"""What a command costs beside its own bytes: a bound in bytes must bound empty commands, too."""


class Budget:
    """How many bytes of proposals, or of queries, are accepted and not yet answered, in a whole node; and their number.

    limit_bytes  what is allowed for now; `most_bytes` at most
    refused      why nothing is, with a limit of 0: the disk has no room; None at other times
    """

    __slots__ = ("count", "limit_bytes", "most_bytes", "refused", "used_bytes")

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes = self.most_bytes = limit_bytes
        self.refused: str | None = None
        self.used_bytes = 0
        self.count = 0

    def take_queries(self, size_bytes: int, count: int = 1) -> int:
        """Take room for so many queries, of so many bytes in all; return it, to be given back. Raises Overloaded."""
        size_bytes += ENTRY_OVERHEAD_BYTES * count
        if self.used_bytes + size_bytes > self.limit_bytes:
            raise Overloaded(f"{self.used_bytes} bytes of queries are waiting; retry when some are answered")
        self.used_bytes += size_bytes
        self.count += count
        return size_bytes

    def refuse(self, why: str | None) -> None:
        """Allow for nothing from now on, because of `why`; None: for as much as before again."""
        self.refused = why
        self.limit_bytes = self.most_bytes if why is None else 0


class Many:
    """Who waits for what comes of many commands; stands among the futures of a batch once for each of them.

    Results come in the order of the commands, some at a time. A batch that ends where a record ends has the rest in
    another record, which another object stands for (`rest`).

    results  what has come of each: its result, or what its caller would be raised; None: nothing yet
    missing  how many have not come yet
    """

    __slots__ = ("_at", "_told", "_until", "missing", "results")

    def __init__(self, count: int, told: Callable[[list[Result]], None]) -> None:
        """`told` is called once, with all results, in the midst of a turn: it must only note them."""
        self.results: list[Any] = [None] * count
        self.missing = count
        self._told = told
        self._at = 0
        self._until = count

    def take(self, results: list[Result]) -> None:
        """The next ones have come."""
        self._fill(self._at, results)
        self._at += len(results)

    @property
    def ahead(self) -> int:
        """How many are still to come through this very object."""
        return self._until - self._at

    def rest(self, count: int) -> Many:
        """Return what stands for all but the first `count` of those to come through this object."""
        begin = self._at + count
        rest = Many(self._until - begin, lambda results: self._fill(begin, results))
        self._until = begin
        return rest

    def _fill(self, at: int, results: list[Result]) -> None:
        self.results[at : at + len(results)] = results
        self.missing -= len(results)
        if not self.missing:
            self._told(self.results)

    # What a Future has, for whoever has one outcome after the other.

    def done(self) -> bool:
        return not self.missing

    def set_result(self, result: bytes) -> None:
        self.take([result])

    def set_exception(self, error: MultiRaftError) -> None:
        self.take([error])

    def exception(self) -> None:
        """See `fail_future`."""


Waiter: TypeAlias = "Future[bytes] | Many"


class Queue:
    """What waits to be proposed, of one kind of record: entries, and their callers; same length."""

    __slots__ = ("entries", "futures", "size_bytes")

    def __init__(self) -> None:
        self.entries: list[bytes] = []
        self.futures: list[Waiter] = []
        self.size_bytes = 0


class Proposals:
    """The callers of the record that holds `first` to `last` in `term`, in order; empty `futures` once finished.

    kind     of that record
    record   that very record, if its `entries` are held for applying; None: they are to be decoded from what is applied
    """

    __slots__ = (
        "deadline_s", "entries", "finished", "first", "futures", "kind", "last", "record", "size_bytes", "term"
    )  # fmt: skip

    def __init__(
        self,
        first: Index,
        term: Term,
        futures: list[Waiter],
        size_bytes: int,
        deadline_s: float,
        kind: int = COMMANDS,
    ) -> None:
        self.first = first
        self.last = first + len(futures) - 1
        self.term = term
        self.futures = futures
        self.size_bytes = size_bytes
        self.deadline_s = deadline_s
        self.kind = kind
        self.finished = False
        self.record: Record | None = None
        self.entries: list[bytes] = []

    def hold(self, record: Record, entries: list[bytes]) -> None:
        """The record was made of just these entries."""
        self.record, self.entries = record, entries

    def tell(self, index: Index, results: list[Result]) -> None:
        """The entries from `index` on were applied: tell their callers what has come of them."""
        futures, at, count = self.futures, 0, len(results)
        offset = index - self.first
        while futures and at < count:
            future = futures[offset + at]
            if type(future) is Many:
                end = min(count, at + future.ahead)
                invariant(end > at, "who waits for many commands stands for none but those to come")
                future.take(results[at:end])
                at = end
                continue
            result = results[at]
            at += 1
            if future.done():
                continue
            if type(result) is bytes:
                future.set_result(result)
            else:
                fail_future(future, result)

    def finish(self, budget: Budget) -> None:
        """Give back what the batch took from the budget and let go of its callers."""
        if not self.finished:
            self.finished = True
            budget.used_bytes -= self.size_bytes
            budget.count -= len(self.futures)
            self.futures = []
            self.record, self.entries = None, []

    def fail(self, budget: Budget, error: Callable[[], MultiRaftError]) -> None:
        """Give every caller that still waits its own `error()`, and finish."""
        fail_all(self.futures, error)
        self.finish(budget)


class Answers(Protocol):
    """What runs queries; see `Executor`."""

    def answer(self, queries: list[bytes], futures: list[Future[bytes]]) -> None: ...
    def answers(self, queries: list[bytes]) -> list[Result]: ...


class Reads:
    """The queries of one group that wait for one confirmation of leadership.

    queries, futures  what is asked of the state machine here, and by whom; same length
    batches           the same of those who ask many queries at once: these, and who waits for all of them
    askers            those who want only the index, to read from a replica of their own
    finished          nobody waits any more
    """

    __slots__ = ("_budget", "askers", "batches", "deadline_s", "finished", "futures", "queries", "size_bytes")

    def __init__(self, deadline_s: float, budget: Budget) -> None:
        """`budget` gets back what was taken from it (`size_bytes`, and one for each query) when nobody waits."""
        self._budget = budget
        self.size_bytes = 0
        self.queries: list[bytes] = []
        self.futures: list[Future[bytes]] = []
        self.batches: list[tuple[list[bytes], Many]] = []
        self.askers: list[Future[Index]] = []
        self.deadline_s = deadline_s
        self.finished = False

    def tell(self, index: Index) -> None:
        """Leadership is confirmed: tell `index` to those who asked for it."""
        for asker in self.askers:
            if not asker.done():
                asker.set_result(index)
        self.askers = []

    def answer(self, machine: Answers) -> None:
        """The index is applied, too: have `machine` answer all queries."""
        if self.futures:
            machine.answer(self.queries, self.futures)
        for queries, many in self.batches:
            many.take(machine.answers(queries))
        self._finish()

    def fail(self, error: Callable[[], MultiRaftError]) -> None:
        fail_all(self.futures, error)
        fail_all(self.askers, error)
        for queries, many in self.batches:
            many.take([error() for _ in queries])
        self._finish()

    def _finish(self) -> None:
        self.finished = True
        self._budget.used_bytes -= self.size_bytes
        self._budget.count -= len(self.futures) + sum([len(queries) for queries, _ in self.batches])
        self.size_bytes = 0
        self.queries, self.futures, self.batches, self.askers = [], [], [], []


def fail_all(futures: Sequence[Future[Any] | Many], error: Callable[[], MultiRaftError]) -> None:
    """Set `error()` on every future that is not done; each gets an exception object of its own."""
    for future in futures:
        if not future.done():
            fail_future(future, error())


def divide(futures: list[Waiter], at: int) -> None:
    """A record ends before place `at`: whoever waits for commands on both sides of it waits for them apart."""
    many = futures[at]
    if type(many) is Many and at and futures[at - 1] is many:
        first = futures.index(many)
        end = first + many.ahead
        futures[at:end] = [many.rest(at - first)] * (end - at)


def fail_future(future: Future[Any] | Many, error: Any) -> None:
    """Set `error`. A caller that was cancelled in the same moment never looks, which is no mistake worth a warning."""
    future.set_exception(error)
    future.exception()
