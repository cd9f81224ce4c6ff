"""One replica's log: a tail of records in memory, and the store's reader for what lies below.

    log start ... held_after | held_after + 1 ... last_index
    (in the store only)      | (in memory; the part up to `stable` is in the store, too)

A conflict at k takes away every entry from k on. In memory a record that straddles k is cut. In the store it stays
as it is: the record that the new entries bring under key k clips it for every reader; all keys from k on are named
in `deleted`, those of batches still on their way included.

A snapshot moves the start up to an entry that is applied and stable (`compact`): reads below it end, and the keys of
records that hold nothing above it are named in `deleted`; or it takes the place of the whole log (`restart`).

Rules of this file: what is not stable is in memory; records in memory follow each other without a gap, each under
the key that it has in the store; terms never fall along the log (so a term is found by halving); nothing here is
sent or written.
"""

from __future__ import annotations

from bisect import bisect_right
from typing import TYPE_CHECKING, Final

from multiraft.errors import invariant
from multiraft.records import Record, cut_record
from multiraft.types import GroupId, Index, LogStart, Snapshot, Term

if TYPE_CHECKING:
    from multiraft.ports import LogReader

_COMPACTED_KEYS_MAX: Final = 10_000
"""Deleted with one snapshot, so that its write stays small; what is left of the old log goes with the next ones."""
_NEAR_END: Final = 4
"""Among so many records, the latest ones, is looked before all are searched."""


class Log:
    """The log of one replica of one group.

    start       the entry just before the first one
    last_index  the end of the log, in memory; last_term is its term
    stable      everything up to here is known to be on disk; goes back when a conflict cuts below it
    handed      everything up to here was handed out to be written
    applied     the state machine has everything up to here; never goes back
    held_after  everything above is in memory
    size_bytes  of the records in memory
    """

    __slots__ = (
        "_deleted",
        "_deleted_to",
        "_firsts",
        "_in_flight",
        "_reader",
        "_records",
        "applied",
        "group_id",
        "handed",
        "held_after",
        "last_index",
        "last_term",
        "size_bytes",
        "stable",
        "start",
    )

    def __init__(
        self,
        group_id: GroupId,
        reader: LogReader,
        start: LogStart,
        last_index: Index,
        last_term: Term,
        applied: Index,
    ) -> None:
        invariant(start.index <= applied <= last_index, "applied entries are in the log or before its start")
        self.group_id = group_id
        self.start = start
        self.last_index = last_index
        self.last_term = last_term
        self.stable = last_index
        self.handed = last_index
        self.applied = applied
        self.held_after = last_index
        self.size_bytes = 0
        self._reader = reader
        self._records: list[Record] = []
        self._firsts: list[Index] = []
        self._deleted: set[Index] | None = None
        self._deleted_to = 0  # every record stored under a key before this is deleted, or about to be
        # (last index, its term, what its completion makes stable) of each write handed out, oldest first
        self._in_flight: list[tuple[Index, Term, Index]] = []

    # ------------------------------------------------------------------------------------------------- reading

    def term(self, index: Index) -> Term:
        """Return the term of the entry at `index`, which must be in the log or be its start.

        Raises CorruptRecord when the store does not have it.
        """
        if index == self.last_index:
            return self.last_term
        if index == self.start.index:
            return self.start.term
        invariant(self.start.index < index < self.last_index, "a term is asked of an entry of the log")
        if index > self.held_after:
            return self._records[bisect_right(self._firsts, index) - 1].term
        if index == self.held_after and self._records:
            return self._records[0].prev_term
        return self._reader.read_term(self.group_id, index)

    def agreement(self, index: Index, term: Term) -> tuple[Index, Term]:
        """Return the last entry at or below `index` whose term is at most `term`, as (index, term).

        This is the last place where this log can agree with one that has `term` at `index` (thesis, end of section
        3.5): whole terms are passed over at a time. The log's start is returned when there is none above it.
        Raises CorruptRecord.
        """
        index = min(index, self.last_index)
        if index <= self.start.index:
            return self.start.index, self.start.term
        found = self.term(index)
        if found <= term:
            return index, found
        low, low_term = self.start.index, self.start.term
        while index - low > 1:
            middle = (low + index) // 2
            found = self.term(middle)
            if found <= term:
                low, low_term = middle, found
            else:
                index = middle
        return low, low_term

    def records(self, first: Index, last: Index, limit_bytes: int) -> list[Record]:
        """Return records that hold the entries from `first` on, up to `last` or about `limit_bytes`; at least one.

        They follow each other without a gap. As with `LogReader.read_records`, the first one may start before
        `first`, and the last one may end after `last`; all that they hold is in the log as it stands. `first` and
        `last` must be in the log, first <= last. The answer never spans memory and store. Raises CorruptRecord.
        """
        invariant(self.start.index < first <= last <= self.last_index, "records are asked of the log as it is")
        if first <= self.held_after:
            found = self._reader.read_records(self.group_id, first, min(last, self.held_after), limit_bytes)
            if found[-1].last > self.held_after:  # what clips it in the store may still be on its way there
                found[-1] = cut_record(self.group_id, found[-1], found[-1].first, self.held_after)
            return found
        firsts = self._firsts
        near = len(firsts) - _NEAR_END  # what is applied is nearly always among the latest
        at = bisect_right(firsts, first, near if near > 0 and firsts[near] <= first else 0) - 1
        found = [self._records[at]]
        left = limit_bytes - len(found[0].raw)
        while found[-1].last < last:
            at += 1
            record = self._records[at]
            left -= len(record.raw)
            if left < 0:
                break
            found.append(record)
        return found

    def sizes_after(self, index: Index) -> list[tuple[Index, int]]:
        """Return (last index, bytes) of each record in memory that ends after `index`, in order."""
        at = bisect_right(self._firsts, index) if self._firsts else 0
        if at and self._records[at - 1].last > index:
            at -= 1
        return [(record.last, len(record.raw)) for record in self._records[at:]]

    def read_snapshot(self) -> Snapshot | None:
        """Return the newest snapshot on disk; None where there is none. Raises CorruptRecord."""
        return self._reader.read_snapshot(self.group_id)

    # ------------------------------------------------------------------------------------------------- changing

    def append(self, record: Record) -> None:
        """Put `record` at the end; it must follow the last entry."""
        invariant(
            record.first == self.last_index + 1 and record.prev_term == self.last_term, "a record follows the last one"
        )
        self._records.append(record)
        self._firsts.append(record.first)
        self.size_bytes += len(record.raw)
        self.last_index = record.last
        self.last_term = record.term

    def append_handed(self, record: Record) -> None:
        """Put `record` at the end, and hand it out to be written, at once; all before it was handed out."""
        last = record.last
        invariant(
            record.first == self.last_index + 1 == self.handed + 1 and record.prev_term == self.last_term,
            "a record follows the last one, which was handed out",
        )
        self._records.append(record)
        self._firsts.append(record.first)
        self.size_bytes += len(record.raw)
        self.last_index = self.handed = last
        self.last_term = record.term
        self._in_flight.append((last, record.term, last))

    @property
    def deletes(self) -> bool:
        """Whether keys of the store are to be deleted with the next write."""
        return bool(self._deleted)

    def truncate(self, conflict: Index) -> None:
        """Take away every entry from `conflict` on; a record that brings another one there must follow.

        Raises CorruptRecord.
        """
        invariant(self.applied < conflict <= self.last_index, "only entries that were not applied are taken away")
        last_term = self.term(conflict - 1)
        if conflict <= self.held_after:
            self._delete(self._reader.read_firsts(self.group_id, conflict))
            self.held_after = conflict - 1
            at = 0
        else:
            at = bisect_right(self._firsts, conflict) - 1
            straddling = self._records[at]
            if straddling.first < conflict:
                kept = cut_record(self.group_id, straddling, straddling.first, conflict - 1)
                self._records[at] = kept
                self.size_bytes += len(kept.raw) - len(straddling.raw)
                at += 1
        self._delete([first for first in self._firsts[at:] if first <= self.handed])
        self.size_bytes -= sum([len(record.raw) for record in self._records[at:]])
        del self._records[at:], self._firsts[at:]
        self.last_index = conflict - 1
        self.last_term = last_term
        self.stable = min(self.stable, conflict - 1)
        self.handed = min(self.handed, conflict - 1)
        # Writes on their way make stable only what is left of them, even if the same entries should come back.
        self._in_flight = [(last, term, min(to, conflict - 1)) for last, term, to in self._in_flight]

    def compact(self, index: Index) -> None:
        """Let the log start at `index`, which is applied and stable. Records that end there or before are forgotten.

        Raises CorruptRecord.
        """
        invariant(self.start.index <= index <= min(self.applied, self.stable), "a log starts at an applied entry")
        if index == self.start.index:
            return
        start = LogStart(index, self.term(index))
        # A store walks over what was deleted there before, for as long as that has not been cleared away: not again.
        firsts = self._reader.read_firsts(self.group_id, self._deleted_to, index + 1)
        if index < self.last_index and firsts:
            firsts.pop()  # begins with the entry after the start, or may reach it
        del firsts[_COMPACTED_KEYS_MAX:]
        if firsts:
            self._delete(firsts)
            self._deleted_to = firsts[-1] + 1
        self.start = start
        count = 0
        while count < len(self._records) and self._records[count].last <= index:
            self.held_after = self._records[count].last
            self.size_bytes -= len(self._records[count].raw)
            count += 1
        del self._records[:count], self._firsts[:count]

    def restart(self, start: LogStart) -> None:
        """Forget everything: a snapshot of the entry `start` takes the place of this log, on disk as well.

        Nothing is stable until that is written. `applied` follows when the state machine has the snapshot.
        """
        self._delete(self._reader.read_firsts(self.group_id, 0))
        self._delete([first for first in self._firsts if first <= self.handed])
        self._records.clear()
        self._firsts.clear()
        self.size_bytes = 0
        self.start = start
        self._deleted_to = 0
        self.last_index = self.handed = self.held_after = start.index
        self.last_term = start.term
        self.stable = 0
        self._in_flight = [(last, term, 0) for last, term, _ in self._in_flight]

    def trim(self, limit_bytes: int) -> None:
        """Forget the oldest records in memory that are applied and stable, while there are more than `limit_bytes`."""
        if self.size_bytes <= limit_bytes:
            return
        done = min(self.applied, self.stable)
        count = 0
        for record in self._records:
            if self.size_bytes <= limit_bytes or record.last > done:
                break
            self.size_bytes -= len(record.raw)
            self.held_after = record.last
            count += 1
        del self._records[:count], self._firsts[:count]

    def _delete(self, firsts: list[Index]) -> None:
        """The records stored under these keys no longer count."""
        if firsts:
            if self._deleted is None:
                self._deleted = set()
            self._deleted.update(firsts)

    # ------------------------------------------------------------------------------------------------- writing

    def hand_out(self) -> tuple[list[Record], list[Index]]:
        """Return the records to write now, and the keys to delete before; each is returned once.

        Counts as one write on its way, also when both are empty.
        """
        records: list[Record] = []
        deleted: list[Index] = []
        if self.handed != self.last_index:
            records = self._records[bisect_right(self._firsts, self.handed) :]
            self.handed = self.last_index
        if self._deleted is not None:
            deleted = sorted(self._deleted)
            self._deleted = None
        self._in_flight.append((self.last_index, self.last_term, self.last_index))
        return records, deleted

    def persisted(self, index: Index, term: Term) -> bool:
        """The write that carried the log up to (index, term) is on disk. Return whether `stable` rose.

        Counts up to where its entries still stand. Unknown writes are ignored.
        """
        if not self._in_flight:
            return False
        last, last_term, to = self._in_flight[0]
        if last == index and last_term == term:  # nearly always: written out
            del self._in_flight[0]
            if to <= self.stable:
                return False
            self.stable = to
            return True
        rose = False
        for at, (last, last_term, to) in enumerate(self._in_flight):
            if last == index and last_term == term:
                for _, _, earlier in self._in_flight[: at + 1]:
                    to = max(to, earlier)
                del self._in_flight[: at + 1]
                if to > self.stable:
                    self.stable = to
                    rose = True
                break
        return rose
