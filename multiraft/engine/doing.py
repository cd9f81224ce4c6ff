"""What an engine's state machines are doing at this moment, for a watchdog in another thread to look at.

Rules of this file: written on the loop's thread only, and read on another one without a lock: what is read may be a
moment old, and is looked at again before anything is said of it. Writing costs a few assignments; of many queries at
once it costs none, for how far they are can be seen from their iterator.
"""

from __future__ import annotations

from collections.abc import Iterator
from operator import length_hint
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from multiraft.engine.replica import Replica
    from multiraft.records import Record


class Doing:
    """One engine's.

    replica   the one that applies now; None: none does
    record    what it applies; the entry is that of its context's index
    asked     the queries that are answered now, as (group, all of them, those not begun yet); None: none is
    calls     how many slices, and lists of queries, were begun: two looks at the same call see the same number
    """

    __slots__ = ("asked", "calls", "record", "replica")

    def __init__(self) -> None:
        self.replica: Replica | None = None
        self.record: Record | None = None
        self.asked: tuple[int, list[bytes], Iterator[bytes]] | None = None
        self.calls = 0

    def begin(self, replica: Replica) -> None:
        """The replica begins to apply a slice; when it ends, `replica` is to be None."""
        self.calls += 1
        self.record = None
        self.replica = replica

    def ask(self, group_id: int, queries: list[bytes]) -> Iterator[bytes]:
        """Return `queries` to be answered one after the other; when that ends, `asked` is to be None."""
        self.calls += 1
        coming = iter(queries)
        self.asked = (group_id, queries, coming)
        return coming

    def now(self) -> tuple[int, int] | None:
        """Return what tells the call under way from every other one; None: there is none."""
        replica, asked = self.replica, self.asked
        if asked is not None:
            return self.calls, length_hint(asked[2])
        return None if replica is None else (self.calls, replica.context.index)

    def text(self) -> str:
        """Say what is under way, in words. Never raises."""
        asked, replica, record = self.asked, self.replica, self.record
        try:
            if asked is not None:
                group_id, queries, coming = asked
                return f"group {group_id}: query {queries[-1 - length_hint(coming)][:80]!r}"
            if replica is None or record is None:
                return "something that has ended"
            index = replica.context.index
            text = replica.executor.text_of(record.kind, record.entries()[index - record.first])
            return f"group {replica.group_id}: {text} at index {index}"
        except (IndexError, AttributeError, ValueError) as problem:  # it ended while it was looked at
            return f"something that cannot be told ({type(problem).__name__})"
