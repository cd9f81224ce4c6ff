"""Reading a whole store in the order of its keys, and checking what must hold of every replica in it.

    each value decodes and carries its checksum          the log starts at most one above the log start
    a descriptor, hard state, membership and log start   records follow each other without a gap, and each names the
    log start <= snapshot <= commit <= last              term of the entry before it
    no entry is of a later term than the hard state's    no replica lives whose tombstone stands here
    log start, snapshot <= applied <= last               the term of what a machine on disk has applied is the log's

What is applied may be above the stored commit, which is written down with what comes after it; but it was in the log on
this disk, committed, before it was applied, and a log's start moves only up to what is on the disk as applied.

The node's start leaves a replica with a problem alone, and opens the others; the offline inspection lists all problems.
A group with a tombstone and no descriptor is none of that: its replica was removed, and what is stored of it is about
to be deleted.

Rules of this file: reads only; a problem of one group is put down with that group and never hides the next group.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Final, TypeVar

from multiraft.errors import CorruptRecord
from multiraft.records import MEMBERSHIP, NOOP, Record
from multiraft.storage import layout
from multiraft.storage.backend import Reader
from multiraft.types import (
    NOBODY,
    U64_MAX,
    Applied,
    Damage,
    GroupId,
    Halt,
    HardState,
    Index,
    LogStart,
    Membership,
    ReplicaDescriptor,
    Snapshot,
    StoredReplica,
    Term,
    Tombstone,
)

FIRST_GROUP: Final = 1
_PROBLEMS_MAX: Final = 20
"""Listed per group; the rest is only counted."""

_Value = TypeVar("_Value")


class ReplicaScan:
    """What was found of one group's replica.

    tombstone                                       of the latest replica of the group that was removed; None: none was
    removed                                         there is no replica here, only what is left over of a removed one
    descriptor, hard_state, membership, log_start   None where missing or damaged
    snapshot                                        the same; rightly None where the log start is 0
    applied                                         of a machine on disk; None where missing, damaged, or in memory
    halt                                            why it has stopped applying; None where missing or damaged
    first_index, last_index, last_term              of the stored log; the log start's where no record is stored
    records, size_bytes                             stored log records, and bytes of all stored values
    problems                                        what does not hold, one line each; empty: all is well
    until                                           the last group that the problems may be of; above `group_id` where
                                                    the database could not be read on
    """

    def __init__(self, group_id: GroupId, tombstone: Tombstone | None = None) -> None:
        self.group_id = group_id
        self.tombstone = tombstone
        self.removed = False
        self.descriptor: ReplicaDescriptor | None = None
        self.hard_state: HardState | None = None
        self.membership: Membership | None = None
        self.log_start: LogStart | None = None
        self.snapshot: Snapshot | None = None
        self.applied: Applied | None = None
        self.halt: Halt | None = None
        self.first_index: Index = 0
        self.last_index: Index = 0
        self.last_term: Term = 0
        self.records = 0
        self.size_bytes = 0
        self.problems: list[str] = []
        self.until = group_id
        self._unreadable = False
        self._unlisted = 0
        # The record whose end is not yet known: the next one may overlap it.
        self._open: Record | None = None
        self._top_term: Term = 0
        self._changes: list[Index] = []
        # The log holds nothing but no-ops up to here; and whether that may go on.
        self._idle_to: Index = 0
        self._idle = True

    @property
    def unreadable(self) -> bool:
        """Whether the database itself could not be read on here."""
        return self._unreadable

    def lost(self, problem: str, until: GroupId) -> None:
        """The database cannot be read on from here, and is read again after `until`."""
        self._unreadable = True
        self.until = until
        self._settle(None)
        where = f"group {self.group_id}" if until == self.group_id else f"groups {self.group_id} to {until}"
        self.problems.insert(0, f"{where}: the database cannot be read there: {problem}")

    def damages(self) -> list[Damage]:
        """Describe what was found of a replica that cannot be opened; and of others that may be lost with it."""
        members, descriptor = self.membership, self.descriptor
        replica_id = descriptor.replica_id if descriptor is not None else NOBODY
        if self.removed and self.tombstone is not None:
            replica_id = self.tombstone.replica_id
        alone = members is not None and members.voters == (replica_id,) and not members.outgoing
        found = [Damage(self.group_id, self.group_id, self.problems[0], replica_id, alone)]
        if self.until > self.group_id:
            found.append(Damage(self.group_id + 1, self.until, self.problems[0]))
        return found

    def stored(self) -> StoredReplica:
        """Return the replica. Raises CorruptRecord with the first problem, if there is any."""
        if self.problems:
            raise CorruptRecord(self.problems[0])
        if self.descriptor is None or self.membership is None or self.hard_state is None or self.log_start is None:
            raise CorruptRecord(f"group {self.group_id}: has not been read to its end")
        return StoredReplica(
            self.descriptor,
            self.membership,
            self.hard_state,
            self.log_start,
            self.last_index,
            self.last_term,
            tuple(index for index in self._changes if index > self.membership.index),
            self.snapshot.index if self.snapshot is not None else 0,
            self.applied,
            self.halt,
            self._nothing_to_apply_up_to(self.log_start),
        )

    def _nothing_to_apply_up_to(self, start: LogStart) -> Index:
        """See `StoredReplica.idle_to`."""
        snapshot = self.snapshot
        if snapshot is None or snapshot.data or snapshot.index != start.index or self.halt or self.applied:
            return 0
        return max(start.index, self._idle_to)

    def add(self, kind: int, first: Index, value: bytes) -> None:
        """Take the group's next value, in the order of keys."""
        self.size_bytes += len(value)
        group_id = self.group_id
        if kind == layout.KIND_RECORD:
            self._add_record(first, value)
        elif kind == layout.KIND_DESCRIPTOR:
            self.descriptor = self._decoded(layout.decode_descriptor, group_id, value)
        elif kind == layout.KIND_HARD_STATE:
            self.hard_state = self._decoded(layout.decode_hard_state, group_id, value)
        elif kind == layout.KIND_MEMBERSHIP:
            self.membership = self._decoded(layout.decode_membership, group_id, value)
        elif kind == layout.KIND_LOG_START:
            self.log_start = self._decoded(layout.decode_log_start, group_id, value)
        elif kind == layout.KIND_SNAPSHOT:
            self.snapshot = self._decoded(layout.decode_snapshot, group_id, value)
        elif kind == layout.KIND_APPLIED:
            self.applied = self._decoded(layout.decode_applied, group_id, value)
        elif kind == layout.KIND_HALT:
            self.halt = self._decoded(layout.decode_halt, group_id, value)

    def problem(self, text: str) -> None:
        if len(self.problems) < _PROBLEMS_MAX:
            self.problems.append(text)
        else:
            self._unlisted += 1

    def finish(self) -> None:
        """All values of the group have been added: judge it as a whole."""
        self._settle(None)
        if self.tombstone is not None and self.descriptor is None and not self._says("descriptor"):
            self.removed = True
            self.problems.clear()
            return
        found = (
            ("descriptor", self.descriptor),
            ("hard state", self.hard_state),
            ("membership", self.membership),
            ("log start", self.log_start),
        )
        for what, value in found:
            if value is None and not self._says(what):
                self.problem(f"{what} of group {self.group_id}: is missing")
        if self.tombstone is not None and self.descriptor is not None:
            lives, removed = self.descriptor.replica_id, self.tombstone.replica_id
            if lives <= removed:
                self.problem(f"group {self.group_id}: replica {lives} is here, though replica {removed} was removed")
        if self.log_start is not None:
            self._judge_log(self.log_start)
            self._judge_snapshot(self.log_start)
            if self.applied is not None:
                self._judge_applied(self.log_start, self.applied)
        if self._unlisted:
            self.problems.append(f"group {self.group_id}: {self._unlisted} more problems")

    def _says(self, what: str) -> bool:
        """Whether a problem of this value was put down already."""
        return any(text.startswith(what) for text in self.problems)

    def _judge_snapshot(self, start: LogStart) -> None:
        snapshot, what = self.snapshot, f"snapshot of group {self.group_id}"
        if snapshot is None:
            if start.index and not self._says("snapshot"):
                self.problem(f"{what}: is missing")
        elif snapshot.index < start.index or (snapshot.index == start.index and snapshot.term != start.term):
            self.problem(f"{what}: is of {snapshot.index}, but the log start is {start.index}")
        elif self.hard_state is not None and snapshot.index > self.hard_state.commit:
            self.problem(f"{what}: is of {snapshot.index}, which was not committed yet")
        elif self.membership is not None and snapshot.membership.index > self.membership.index:
            self.problem(f"{what}: its membership is of {snapshot.membership.index}, later than the one in effect")

    def _judge_applied(self, start: LogStart, applied: Applied) -> None:
        what, last = f"applied index of group {self.group_id}", self.last_index if self.records else start.index
        if not start.index <= applied.index <= last:
            self.problem(f"{what}: {applied.index} is not within its log ({start.index} to {last})")
        elif applied.index == start.index and applied.term != start.term:
            self.problem(f"{what}: is of term {applied.term}, but the log start is of term {start.term}")
        elif self.snapshot is not None and applied.index < self.snapshot.index:
            self.problem(f"{what}: {applied.index} is below the snapshot of {self.snapshot.index}")

    def _judge_log(self, start: LogStart) -> None:
        where = f"group {self.group_id}"
        if self.records == 0:
            self.first_index, self.last_index, self.last_term = start.index + 1, start.index, start.term
        elif self.first_index > start.index + 1:
            self.problem(f"{where}: its log begins at {self.first_index}, but the log start is {start.index}")
        elif self.last_index < start.index:
            self.problem(f"{where}: its log ends at {self.last_index}, below the log start {start.index}")
        if self.hard_state is None:
            return
        if not start.index <= self.hard_state.commit <= self.last_index:
            self.problem(
                f"{where}: commit {self.hard_state.commit} is not within its log ({start.index} to {self.last_index})"
            )
        if self.membership is not None and self.membership.index > self.hard_state.commit:
            self.problem(f"{where}: its membership is of {self.membership.index}, which was not committed yet")
        top_term = max(self._top_term, start.term)
        if self.hard_state.term < top_term:
            self.problem(f"{where}: term {self.hard_state.term} is below that of its log, {top_term}")

    def _add_record(self, first: Index, value: bytes) -> None:
        self.records += 1
        if self.records == 1:
            self.first_index = first
        record = self._decoded(layout.decode_stored_record, self.group_id, first, value)
        if record is None:
            # What is damaged cannot be followed; the log is picked up again behind it.
            self._settle(None)
            self.last_index = max(self.last_index, first)
            return
        self._settle(record)
        self._open = record
        self.last_index, self.last_term = record.last, record.term
        self._top_term = max(self._top_term, record.term)

    def _settle(self, following: Record | None) -> None:
        """The open record ends where `following` begins, at the latest: judge it."""
        record, self._open = self._open, None
        if record is None:
            return
        last = record.last
        if following is not None:
            problem = chain_problem(self.group_id, record, following)
            if problem:
                self.problem(problem)
            last = min(last, following.first - 1)
        if record.kind == MEMBERSHIP:
            self._changes += range(record.first, last + 1)
        if record.kind != NOOP:
            self._idle = False
        elif self._idle:
            self._idle_to = last
        applied = self.applied
        if applied is not None and record.first <= applied.index <= last and record.term != applied.term:
            self.problem(
                f"applied index of group {self.group_id}: {applied.index} is of term {applied.term}, but the log has "
                f"term {record.term} there"
            )
        start = self.log_start
        if start is None:
            return
        if (record.first <= start.index <= last and record.term != start.term) or (
            record.first == start.index + 1 and record.prev_term != start.term
        ):
            self.problem(f"group {self.group_id}: record at {record.first} does not follow the log start {start.index}")

    def _decoded(self, decode: Callable[..., _Value], *arguments: object) -> _Value | None:
        try:
            return decode(*arguments)
        except CorruptRecord as problem:
            self.problem(str(problem))
            return None


def chain_problem(group_id: GroupId, record: Record, following: Record) -> str:
    """Return why `following` cannot be the record stored next after `record`; empty if it can.

    It may begin inside `record`: it then replaced that one's tail.
    """
    if following.first > record.last + 1:
        return f"group {group_id}: no record holds index {record.last + 1}; the next begins at {following.first}"
    if following.prev_term != record.term:
        return (
            f"group {group_id}: record at {following.first} follows term {following.prev_term}, "
            f"but the entry before it has term {record.term}"
        )
    return ""


def read_tombstones(reader: Reader) -> dict[GroupId, Tombstone]:
    """Return the tombstone of every group of which a replica was removed here. Raises CorruptRecord."""
    found = [
        layout.decode_tombstone(key, value)
        for key, value in reader.items(layout.FIRST_TOMBSTONE_KEY, layout.TOMBSTONES_END_KEY)
    ]
    return {tombstone.group_id: tombstone for tombstone in found}


def scan_replicas(reader: Reader, tombstones: Mapping[GroupId, Tombstone]) -> Iterator[ReplicaScan]:
    """Yield what stands of each group in the store, in the order of their ids.

    Where the database itself cannot read on, the group in whose midst that is, or the first one that it may be, gets a
    problem, and its `until` says up to which group nothing is known; what comes after is read again.

    Raises CorruptRecord for a key that this version does not write; StorageError when reading fails otherwise.
    """
    start: GroupId | None = FIRST_GROUP
    while start is not None:
        current: ReplicaScan | None = None
        items = reader.items(layout.group_span(start)[0], None)
        while True:
            try:
                found = next(items, None)
            except CorruptRecord as problem:
                broken = current or ReplicaScan(start, tombstones.get(start))
                start = next_readable(partial(_can_read, reader), broken.group_id)
                broken.lost(str(problem), U64_MAX if start is None else start - 1)
                yield broken
                break
            if found is None or current is None or layout.group_of(found[0]) != current.group_id:
                if current is not None:
                    current.finish()
                    yield current
                if found is None:
                    return
                group_id = layout.group_of(found[0])
                current = ReplicaScan(group_id, tombstones.get(group_id))
            _, kind, first = layout.split_key(found[0])
            current.add(kind, first, found[1])


def _can_read(reader: Reader, group_id: GroupId) -> bool:
    """Whether the database can be read at the first key that this group may have."""
    try:
        next(reader.keys(layout.group_span(group_id)[0], None), None)
    except CorruptRecord:
        return False
    return True


def next_readable(can_read: Callable[[int], bool], after: int) -> int | None:
    """Return the lowest id above `after` from which on can be read again, as far as is seen; None where there is none.

    The database does not say where a part that it cannot read ends. It is felt for in steps that double, then halved.
    """
    bad, step = after, 1
    while not can_read(good := min(after + step, U64_MAX)):
        if good == U64_MAX:
            return None
        bad, step = good, 2 * step
    while good - bad > 1:
        middle = (bad + good) // 2
        if can_read(middle):
            good = middle
        else:
            bad = middle
    return good
