"""Callers that wait: one object per batch of them, never one per caller.

A `Proposals` holds the callers of one log record, a `Reads` those of one ReadIndex round of one group. Both have one
deadline for all. Rules of this file: a future that its caller has cancelled is left alone; a batch is finished
exactly once.
"""

from __future__ import annotations

from asyncio import Future
from collections.abc import Callable, Sequence
from typing import Any, Final

from multiraft.errors import MultiRaftError
from multiraft.records import COMMANDS
from multiraft.types import Index, Term

ENTRY_OVERHEAD_BYTES: Final = 64
"""What a command costs beside its own bytes: a bound in bytes must bound empty commands, too."""


class Budget:
    """How many bytes of proposals are accepted and not yet answered, in the whole node; and their number.

    limit_bytes  what is allowed for now; `most_bytes` at most
    refused      why nothing is, with a limit of 0: the disk has no room; None at other times
    """

    __slots__ = ("count", "limit_bytes", "most_bytes", "refused", "used_bytes")

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes = self.most_bytes = limit_bytes
        self.refused: str | None = None
        self.used_bytes = 0
        self.count = 0

    def refuse(self, why: str | None) -> None:
        """Allow for nothing from now on, because of `why`; None: for as much as before again."""
        self.refused = why
        self.limit_bytes = self.most_bytes if why is None else 0


class Queue:
    """What waits to be proposed, of one kind of record: entries, and their callers; same length."""

    __slots__ = ("entries", "futures", "size_bytes")

    def __init__(self) -> None:
        self.entries: list[bytes] = []
        self.futures: list[Future[bytes]] = []
        self.size_bytes = 0


class Proposals:
    """The callers of the record that holds `first` to `last` in `term`, in order; empty `futures` once finished.

    kind  of that record
    """

    __slots__ = ("deadline_s", "finished", "first", "futures", "kind", "last", "size_bytes", "term")

    def __init__(
        self,
        first: Index,
        term: Term,
        futures: list[Future[bytes]],
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

    def finish(self, budget: Budget) -> None:
        """Give back what the batch took from the budget and let go of its callers."""
        if not self.finished:
            self.finished = True
            budget.used_bytes -= self.size_bytes
            budget.count -= len(self.futures)
            self.futures = []

    def fail(self, budget: Budget, error: Callable[[], MultiRaftError]) -> None:
        """Give every caller that still waits its own `error()`, and finish."""
        fail_all(self.futures, error)
        self.finish(budget)


class Reads:
    """The queries of one group that wait for one confirmation of leadership.

    queries, futures  what is asked of the state machine here, and by whom; same length
    askers            those who want only the index, to read from a replica of their own
    """

    __slots__ = ("askers", "deadline_s", "futures", "queries")

    def __init__(self, deadline_s: float) -> None:
        self.queries: list[bytes] = []
        self.futures: list[Future[bytes]] = []
        self.askers: list[Future[Index]] = []
        self.deadline_s = deadline_s

    @property
    def finished(self) -> bool:
        """Whether nobody waits any more."""
        return not self.futures and not self.askers

    def tell(self, index: Index) -> None:
        """Leadership is confirmed: tell `index` to those who asked for it."""
        for asker in self.askers:
            if not asker.done():
                asker.set_result(index)
        self.askers = []

    def fail(self, error: Callable[[], MultiRaftError]) -> None:
        fail_all(self.futures, error)
        fail_all(self.askers, error)
        self.queries, self.futures, self.askers = [], [], []


def fail_all(futures: Sequence[Future[Any]], error: Callable[[], MultiRaftError]) -> None:
    """Set `error()` on every future that is not done; each gets an exception object of its own."""
    for future in futures:
        if not future.done():
            fail_future(future, error())


def fail_future(future: Future[Any], error: BaseException) -> None:
    """Set `error`. A caller that was cancelled in the same moment never looks, which is no mistake worth a warning."""
    future.set_exception(error)
    future.exception()
