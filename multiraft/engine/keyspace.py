"""The data of one replica's machine on disk: what commands read and write, on its way to the node's database.

    a command's writes ──> the slice's ──> a batch with what the slice has applied ──> queued ──> in the store
         undone if it fails      one batch, atomic, not synced              seen here until complete

Everything that is not in the store yet is kept in one map, the overlay, by key; a read looks there first and then into
the store. Each value there bears the number of the batch that takes it to the store, and goes when that batch is
complete, unless a later one has replaced it. So a read sees every write exactly once, whenever a batch completes.

    key in the store   part (1 byte) | the machine's key;   part 0: the machine's own, 1: sessions

Rules of this file: writes come from commands alone; what a failed command has written is gone before the next one; a
read that fails is no command's result, however the command took it: it halts the replica; nothing here awaits.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections import deque
from collections.abc import Iterable, Iterator
from typing import Any, Final, TypeAlias, TypeVar

from multiraft.engine.machine import ApplyBatch, Context, Machine, batch_of
from multiraft.errors import ReadFailed, StorageError
from multiraft.keyspace import Keyspace, check_pair
from multiraft.ports import DataReader, WriteBatch
from multiraft.types import Applied, GroupId, Index, SpaceId, Term

DATA: Final = b"\0"
SESSIONS: Final = b"\1"
END: Final = b"\2"
QUEUED_BYTES: Final = 8 * 1024 * 1024
"""So much of one group may be on its way to the store; past it the group applies nothing until some is there."""
_ENTRY_BYTES: Final = 128
"""About what a write costs in memory beside its key and value."""

_Item = TypeVar("_Item")
Change: TypeAlias = tuple[bytes, bytes | None]
"""A key, with its part, and what is now under it; None: nothing."""


class _Write:
    """A value that is not in the store yet: None where the key was deleted. batch: the number of its batch."""

    __slots__ = ("batch", "value")

    def __init__(self, value: bytes | None, batch: int) -> None:
        self.value = value
        self.batch = batch


class ReplicaData:
    """`multiraft.keyspace.Keyspace` of a replica, and the engine's side of it.

    space     the keyspace in the store
    applied   what the latest batch handed out says is applied
    durable   what a loss of power could not take back any more
    failed    the read that failed while a command was applied; None: none has
    installing  other keyspaces that take the place of this one, oldest first; that is on its way to the disk
    arriving  keyspaces that were filled for a leader's snapshot that the core has, or is about to get; by its index and
              term
    """

    __slots__ = (
        "_batch",
        "_changed",
        "_era",
        "_keys",
        "_overlay",
        "_queued",
        "_store",
        "_undo",
        "_writable",
        "applied",
        "arriving",
        "durable",
        "failed",
        "group_id",
        "installing",
        "queued_bytes",
        "slice_bytes",
        "space",
    )

    def __init__(self, group_id: GroupId, store: DataReader, applied: Applied) -> None:
        self.group_id = group_id
        self.space: SpaceId = applied.space
        self.applied = self.durable = applied
        self.failed: StorageError | None = None
        self.installing: deque[Applied] = deque()
        self.arriving: dict[tuple[Index, Term], Applied] = {}
        self.queued_bytes = 0
        self.slice_bytes = 0
        self._store = store
        self._writable = False
        self._overlay: dict[bytes, _Write] = {}
        # The keys of the overlay, ascending; None while nobody has asked for a range of them.
        self._keys: list[bytes] | None = None
        # Number of the batch that the slice under way becomes; the keys that it has changed; the command's own changes.
        self._batch = 1
        self._changed: dict[bytes, None] = {}
        self._undo: list[tuple[bytes, _Write | None]] = []
        # Handed out and not complete: (bytes, keys), oldest first.
        self._queued: deque[tuple[int, list[bytes]]] = deque()
        # Changes with every command and every batch that completes: what iterates since before must not go on.
        self._era = 0

    # ------------------------------------------------------------------------------------------- what commands use

    def get(self, key: bytes) -> bytes | None:
        """Return the value under `key`; None where there is none. Raises StorageError."""
        stored_key = DATA + key
        write = self._overlay.get(stored_key)
        if write is not None:
            return write.value
        try:
            return self._store.read_data(self.space, stored_key)
        except StorageError as problem:
            raise self._read_failed(problem) from problem

    def put(self, key: bytes, value: bytes) -> None:
        """Store `value` under `key`. Raises RuntimeError outside a command, TypeError for what is not bytes."""
        check_pair(key, value)
        self._write(DATA + key, value)

    def delete(self, key: bytes) -> None:
        """Remove `key`, if it is there. Raises RuntimeError outside a command, TypeError for what is not bytes."""
        check_pair(key, b"")
        self._write(DATA + key, None)

    def range(
        self, start: bytes = b"", stop: bytes | None = None, *, reverse: bool = False
    ) -> Iterator[tuple[bytes, bytes]]:
        """Yield keys and values with start <= key < stop (None: to the end), ascending, or descending.

        To be used within the command or query that asked for it. Raises StorageError; RuntimeError when it is used
        later.
        """
        first, last = DATA + start, SESSIONS if stop is None else DATA + stop
        stored = self._checked(self._store.iterate_data(self.space, first, last, reverse))
        for key, write, value in self._merged(stored, first, last, reverse):
            found = value if write is None else write.value
            if found is not None:
                yield key[1:], found

    def keys(self, start: bytes = b"", stop: bytes | None = None, *, reverse: bool = False) -> Iterator[bytes]:
        """Yield the keys alone, as `range` does."""
        first, last = DATA + start, SESSIONS if stop is None else DATA + stop
        found = self._checked(self._store.iterate_data_keys(self.space, first, last, reverse))
        stored = ((key, b"") for key in found)
        for key, write, _ in self._merged(stored, first, last, reverse):
            if write is None or write.value is not None:
                yield key[1:]

    def _write(self, key: bytes, value: bytes | None) -> None:
        if not self._writable:
            raise RuntimeError("the data of a state machine are written by its commands, and by nothing else")
        overlay = self._overlay
        before = overlay.get(key)
        self._undo.append((key, before))
        overlay[key] = _Write(value, self._batch)
        self._changed[key] = None
        if before is None and self._keys is not None:
            insort(self._keys, key)

    def _merged(
        self, stored: Iterator[tuple[bytes, bytes]], start: bytes, stop: bytes, reverse: bool
    ) -> Iterator[tuple[bytes, _Write | None, bytes]]:
        """Yield (key, what the overlay has, what the store has) in order; those that are deleted, too."""
        era, overlay = self._era, self._overlay
        if self._keys is None:
            self._keys = sorted(overlay)
        keys = self._keys
        below = next(stored, None)
        above = _first(keys, start, stop, reverse)
        while below is not None or above is not None:
            if above is not None and (below is None or (above >= below[0] if reverse else above <= below[0])):
                key = above
                if below is not None and below[0] == key:
                    below = next(stored, None)
                yield key, overlay[key], b""
            elif below is not None:
                key, value = below
                yield key, None, value
                below = next(stored, None)
            if self._era != era:
                raise RuntimeError("a range of a state machine's data is used in the command or query that made it")
            above = _next(keys, key, start, stop, reverse) if keys else None

    def _checked(self, found: Iterator[_Item]) -> Iterator[_Item]:
        try:
            yield from found
        except StorageError as problem:
            raise self._read_failed(problem) from problem

    def _read_failed(self, problem: StorageError) -> StorageError:
        if self._writable:
            self.failed = problem
        return problem

    # ------------------------------------------------------------------------------------------------- the engine's

    @property
    def full(self) -> bool:
        """Whether so much is on its way to the store that nothing is to be applied before some of it is there."""
        return self.queued_bytes >= QUEUED_BYTES

    def begin(self) -> None:
        """A command begins: it may write."""
        self._writable = True
        self._era += 1

    def keep(self) -> None:
        """The command has ended well: what it wrote is part of the slice."""
        self._writable = False
        for key, _ in self._undo:
            value = self._overlay[key].value
            self.slice_bytes += len(key) + _ENTRY_BYTES + (len(value) if value is not None else 0)
        self._undo.clear()

    def drop(self) -> None:
        """The command has failed: what it wrote is undone."""
        self._writable = False
        overlay = self._overlay
        for key, before in reversed(self._undo):
            if before is None:
                del overlay[key]
                if self._keys is not None:
                    del self._keys[bisect_left(self._keys, key)]
            else:
                overlay[key] = before
            if before is None or before.batch != self._batch:
                self._changed.pop(key, None)
        self._undo.clear()

    def hand_out(self, batch: WriteBatch, applied: Applied, beside: Iterable[Change] = ()) -> None:
        """Put what the slice has changed, and that it is applied, into `batch`. `written` must follow.

        beside  changes of other parts of the keyspace, which are not read through here
        """
        space, overlay = self.space, self._overlay
        for key in self._changed:
            value = overlay[key].value
            if value is None:
                batch.delete_data(space, key)
            else:
                batch.put_data(space, key, value)
        for key, value in beside:
            if value is None:
                batch.delete_data(space, key)
            else:
                batch.put_data(space, key, value)
        batch.put_applied(self.group_id, applied)
        self.applied = applied
        self._queued.append((self.slice_bytes, list(self._changed)))
        self.queued_bytes += self.slice_bytes
        self.slice_bytes = 0
        self._changed.clear()
        self._batch += 1

    def written(self) -> None:
        """The oldest batch that was handed out is in the store: its values are read from there."""
        size_bytes, keys = self._queued.popleft()
        self.queued_bytes -= size_bytes
        number = self._batch - len(self._queued) - 1
        overlay = self._overlay
        for key in keys:
            write = overlay.get(key)
            if write is not None and write.batch == number:
                del overlay[key]
        if self._keys is not None:
            self._keys = [key for key in self._keys if key in overlay] if overlay else None
        self._era += 1

    def synced(self, applied: Applied) -> None:
        """What a batch that was handed out said is durable now."""
        if applied.space == self.space and applied.index > self.durable.index:
            self.durable = applied

    def switch(self, applied: Applied) -> SpaceId:
        """Another keyspace, filled elsewhere, takes the place of this one; return the old one's id.

        That it does is in the store, and so is every batch of before.
        """
        old, self.space = self.space, applied.space
        self.applied = self.durable = applied
        self.failed = None
        self._overlay.clear()
        self._changed.clear()
        self._undo.clear()
        self._keys = None
        self.slice_bytes = 0
        self._era += 1
        return old

    def pairs_beside(self) -> Iterator[tuple[bytes, bytes]]:
        """Yield what the store holds of the sessions' part, without the byte of the part. Raises StorageError."""
        for key, value in self._store.iterate_data(self.space, SESSIONS, END):
            yield key[1:], value


class MachineOnDisk:
    """A machine whose data are a ReplicaData: what a command wrote is kept when it ends well, and else dropped."""

    def __init__(self, machine: Machine, data: ReplicaData) -> None:
        self.machine = machine
        self.replica_data = data
        self.data: Keyspace | None = data
        machine.data = data

    def apply(self, command: bytes, context: Context) -> Any:
        """Apply one command. Raises what it raises, having dropped what it wrote; StorageError: a read failed."""
        self._begin()
        try:
            result = self.machine.apply(command, context)
        except BaseException:
            self._drop()
            raise
        self._keep()
        return result

    def _begin(self) -> None:
        data = self.replica_data
        if data.failed is not None:
            raise data.failed
        data.begin()

    def _drop(self) -> None:
        data = self.replica_data
        data.drop()
        if data.failed is not None:
            raise data.failed from None

    def _keep(self) -> None:
        data = self.replica_data
        if data.failed is not None:
            data.drop()
            raise data.failed
        data.keep()

    def query(self, query: bytes) -> bytes:
        """Answer a question. Raises ReadFailed when the data cannot be read; the next command will not be applied."""
        try:
            return self.machine.query(query)
        except StorageError as problem:
            self.replica_data.failed = problem
            raise ReadFailed(
                f"group {self.replica_data.group_id}: its data cannot be read here: {problem}"
            ) from problem

    def refuses(self, command: bytes) -> str | None:
        """See Machine."""
        return self.machine.refuses(command)

    def describe(self, command: bytes) -> str:
        """See Machine."""
        return self.machine.describe(command)

    def snapshot(self) -> bytes:
        raise TypeError("the data of a machine on disk are no snapshot in memory")

    def restore(self, state: bytes) -> None:
        raise TypeError("a machine on disk is restored by filling a keyspace")


class BatchesOnDisk(MachineOnDisk):
    """The same of a machine that takes many commands at once: what a batch wrote is kept if it ends well as a whole."""

    __slots__ = ("_apply_batch",)

    def __init__(self, machine: Machine, data: ReplicaData, apply_batch: ApplyBatch) -> None:
        super().__init__(machine, data)
        self._apply_batch = apply_batch

    def apply_batch(self, commands: list[bytes], context: Context) -> Any:
        """Apply commands. Raises what they raise together, having dropped what they wrote; StorageError."""
        self._begin()
        try:
            results = self._apply_batch(commands, context)
        except BaseException:
            self._drop()
            raise
        self._keep()
        return results


def on_disk(machine: Machine, data: ReplicaData) -> Machine:
    """Return `machine` with `data` for its data."""
    apply_batch = batch_of(machine)
    return MachineOnDisk(machine, data) if apply_batch is None else BatchesOnDisk(machine, data, apply_batch)


def _first(keys: list[bytes], start: bytes, stop: bytes, reverse: bool) -> bytes | None:
    at = bisect_left(keys, stop) - 1 if reverse else bisect_left(keys, start)
    return _within(keys, at, start, stop)


def _next(keys: list[bytes], after: bytes, start: bytes, stop: bytes, reverse: bool) -> bytes | None:
    at = bisect_left(keys, after) - 1 if reverse else bisect_right(keys, after)
    return _within(keys, at, start, stop)


def _within(keys: list[bytes], at: int, start: bytes, stop: bytes) -> bytes | None:
    return keys[at] if 0 <= at < len(keys) and start <= keys[at] < stop else None
