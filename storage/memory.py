"""A disk in memory, and the backend on it: LevelDB's twin for tests and simulations.

`MemoryDisk` stands for the hardware. It outlives the stores that are opened on it, can crash (between any two writes,
too), be held still, be slow, be full, fail, be put back to an earlier moment or emptied, and lie about having synced.
What is on it after a crash is exactly what a real disk promises: everything synced, and of the rest a prefix of the
batches, in order. A batch that was torn is not there at all: its checksum does not hold, and the log ends before it.
Unsynced are the batches that were submitted so, since the latest synced one, and those that wait to be written.

Rules of this file: no thread, no clock but the loop's; what happens is decided by the calls alone, so that a seeded
simulation replays.
"""

from __future__ import annotations

import asyncio
import errno
import os
from bisect import bisect_left, bisect_right, insort
from collections import Counter, deque
from collections.abc import Callable, Iterator
from typing import TypeAlias

from multiraft import failpoints
from multiraft.errors import StorageError
from multiraft.storage.backend import Done, RawBatch, View
from multiraft.storage.memory_files import DiskImage, MemoryFiles, Shelf
from multiraft.storage.memory_view import MemoryView, between
from multiraft.types import RUN_ID_BYTES

_Ops: TypeAlias = list[tuple[bytes, bytes | None]]


class MemoryDisk:
    """What a store is kept on when it is kept in memory. Re-open it after a close or a crash: the data is there.

    name          what messages call it
    new_store_id  draws the store id at the first opening; hand in a seeded one for a run that replays
    delay_s       when set, each write takes as long as this returns, in seconds of the loop's clock
    sync          False: the disk acknowledges writes that it has not synced, so a crash loses acknowledged writes
    full          while it is set, every write fails with ENOSPC
    capacity_bytes  how much it holds, keys and values and ballast; past it writes fail likewise. None: no bound
    ballast_bytes   of a MemorySpace on it
    writes        how many writes were begun since it was made, those of the identity file included
    faults        counts what is done to it, by kind
    shelf         the snapshot files on it
    """

    def __init__(
        self,
        name: str = "memory disk",
        *,
        sync: bool = True,
        new_store_id: Callable[[], bytes] | None = None,
        faults: Counter[str] | None = None,
    ) -> None:
        self.name = name
        self.sync = sync
        self.full = False
        self.capacity_bytes: int | None = None
        self.ballast_bytes = 0
        self.writes = 0
        self.faults: Counter[str] = faults if faults is not None else Counter()
        # The write at which to call `kill`, and whether that write is on the disk by then.
        self._kill_at: tuple[int, Callable[[], None], bool] | None = None
        self._read_failure: OSError | None = None
        self.new_store_id: Callable[[], bytes] = new_store_id or (lambda: os.urandom(16))
        self._openings = 0
        self.delay_s: Callable[[], float] | None = None
        self._values: dict[bytes, bytes] = {}
        self._keys: list[bytes] = []
        self._identity: bytes | None = None
        self.shelf = Shelf()
        # Written but not synced, oldest first: how to take each batch back.
        self._undo: list[_Ops] = []
        self._handle: MemoryBackend | None = None
        self._failure: tuple[OSError, bool] | None = None
        self._hold_writes = False
        self._hold_completions = False

    @property
    def in_use(self) -> bool:
        return self._handle is not None

    @property
    def free_bytes(self) -> int | None:
        """How much may still be written; None: there is no bound."""
        if self.full:
            return 0
        if self.capacity_bytes is None:
            return None
        used_bytes = sum(len(key) + len(value) for key, value in self._values.items()) + self.shelf.size_bytes
        return max(0, self.capacity_bytes - self.ballast_bytes - used_bytes)

    def _has_room(self, ops: _Ops) -> bool:
        free_bytes = self.free_bytes
        return free_bytes is None or free_bytes >= max(1, sum(len(key) + len(value or b"") for key, value in ops))

    @property
    def unsynced(self) -> int:
        """How many submitted batches a crash could lose now."""
        waiting = len(self._handle.queue) if self._handle else 0
        return len(self._undo) + waiting

    def new_run_id(self) -> bytes:
        """Return an id that no opening of this disk had before, also where the disk was rolled back since."""
        self._openings += 1
        return self._openings.to_bytes(RUN_ID_BYTES, "big")

    def crash(self, keep: int = 0) -> None:
        """Cut the power: the open handle is dead, and of the unsynced batches only the oldest `keep` survive.

        The dead handle takes further batches without a word and never calls any `done` again.
        """
        handle, self._handle = self._handle, None
        lost = self.unsynced + (len(handle.queue) if handle is not None else 0) - keep
        if lost > 0:
            self.faults["unsynced_lost"] += 1
            if keep > 0:
                self.faults["torn_tail"] += 1
        while len(self._undo) > keep:
            self._apply(self._undo.pop())
        keep -= len(self._undo)
        self._undo.clear()
        if handle is not None:
            if not handle.failed:
                for ops, _, _ in list(handle.queue)[: max(keep, 0)]:
                    self._apply(ops)
            handle.die()
        self.shelf.crash()
        self._hold_writes = self._hold_completions = False
        self._failure = self._read_failure = self._kill_at = None

    def crash_after(self, count: int, kill: Callable[[], None], *, written: bool = False) -> None:
        """Call `kill` at the `count`-th write from now (1: the next): before it, or (`written`) when it is synced.

        Either way nobody is told that it completed. Batches and the identity file count alike, so that a crash can
        come between any two of them. `kill` must crash this disk; it may raise, to end what the node is doing.
        """
        self._kill_at = (self.writes + count, kill, written)

    def image(self) -> DiskImage:
        """Return what a crash would leave now, for `roll_back`."""
        values = dict(self._values)
        for undo in reversed(self._undo):
            for key, old in undo:
                if old is None:
                    values.pop(key, None)
                else:
                    values[key] = old
        return DiskImage(values, self._identity, self.shelf.copy())

    def roll_back(self, image: DiskImage) -> None:
        """Put the disk of an earlier moment back. Raises StorageError while a store has it open."""
        self._check_free()
        self.faults["roll_back"] += 1
        self._values, self._keys, self._identity = dict(image.values), sorted(image.values), image.identity
        self.shelf = image.shelf.copy()
        self._undo.clear()

    def wipe(self) -> None:
        """Empty the disk; the next opening finds nothing. Raises StorageError while a store has it open."""
        self._check_free()
        self.faults["wipe"] += 1
        self._values, self._keys, self._identity, self.shelf = {}, [], None, Shelf()
        self._undo.clear()

    def _check_free(self) -> None:
        if self._handle is not None:
            raise StorageError(f"{self.name} is in use by a store; stop or crash its node first")

    def hold_writes(self) -> None:
        """From now on batches wait, unwritten and unsynced: the disk has stalled."""
        if not self._hold_writes:
            self.faults["disk_stall"] += 1
        self._hold_writes = True

    def hold_completions(self) -> None:
        """From now on batches are written and synced, but nobody is told."""
        if not self._hold_completions:
            self.faults["disk_stall"] += 1
        self._hold_completions = True

    def release(self) -> None:
        """End every hold; what waited happens now, in order."""
        self._hold_writes = self._hold_completions = False
        if self._handle is not None:
            self._handle.kick()
            self._handle.files.kick()

    def fail_next_write(self, error: OSError, *, written: bool = False) -> None:
        """Let the next write fail with `error`; `written`: its batch reaches the disk all the same."""
        self._failure = (error, written)

    def fail_next_read(self, error: OSError) -> None:
        """Let the next read fail with `error`: StorageError to its caller."""
        self._read_failure = error

    def mend(self) -> None:
        """End everything that was set to go wrong: failures, crashes to come, holds, slowness, want of space."""
        self._failure = self._read_failure = self._kill_at = self.delay_s = None
        self.full = False
        self.release()

    def stored_keys(self) -> list[bytes]:
        """Return all keys that the disk has now, ascending."""
        return list(self._keys)

    def read(self, key: bytes) -> bytes | None:
        """Return the raw value under `key`, as the disk has it now."""
        return self._values.get(key)

    def key_at_or_below(self, key: bytes) -> bytes | None:
        """Return the greatest stored key that is not above `key`; None where there is none."""
        place = bisect_right(self._keys, key)
        return self._keys[place - 1] if place else None

    def read_identity(self) -> bytes | None:
        """Return the identity that is kept apart from the keys; None where there is none."""
        return self._identity

    def overwrite(self, key: bytes, value: bytes | None) -> None:
        """Change (None: delete) a value behind the store's back: damage."""
        self._apply([(key, value)])

    def overwrite_identity(self, raw: bytes | None) -> None:
        """Change or remove (None) the identity that is kept apart from the keys: damage."""
        self._identity = raw

    # For the backend below only.

    def _apply(self, ops: _Ops) -> _Ops:
        """Write `ops`; return those that take them back."""
        values, undo = self._values, []
        for key, value in ops:
            old = values.get(key)
            undo.append((key, old))
            if value is not None:
                if old is None:
                    insort(self._keys, key)
                values[key] = value
            elif old is not None:
                del self._keys[bisect_left(self._keys, key)]
                del values[key]
        undo.reverse()
        return undo

    def _begin_write(self) -> Callable[[], None] | None:
        """Count a write, and kill before it if that was asked for; return whom to call when it is on the disk."""
        self.writes += 1
        if self._kill_at is None or self.writes < self._kill_at[0]:
            return None
        _, kill, written = self._kill_at
        self._kill_at = None
        self.faults["crash_at_write"] += 1
        if written:
            return kill
        kill()
        return None

    def _check_write(self, size_bytes: int) -> None:
        """Every write to a snapshot file begins here."""
        free_bytes = self.free_bytes
        if free_bytes is not None and free_bytes < size_bytes:
            self.faults["enospc"] += 1
            raise OSError(errno.ENOSPC, "No space left on device")
        failure, self._failure = self._failure, None
        if failure is not None:
            self.faults["eio_write"] += 1
            raise failure[0]

    def _write(self, ops: _Ops, sync: bool) -> None:
        if not self._has_room(ops):
            self.faults["enospc"] += 1
            raise OSError(errno.ENOSPC, "No space left on device")
        failure, self._failure = self._failure, None
        if failure is None or failure[1]:
            undo = self._apply(ops)
            if not (sync and self.sync):
                self._undo.append(undo)
            else:  # what was written before it is durable with it
                self._undo.clear()
        if failure is not None:
            self.faults["eio_write"] += 1
            raise failure[0]

    def _read(self) -> None:
        """Every read begins here."""
        if self._read_failure is not None:
            failure, self._read_failure = self._read_failure, None
            self.faults["eio_read"] += 1
            raise StorageError(f"{self.name}: a read failed: {failure.strerror or failure}") from failure


class _MemoryBatch:
    __slots__ = ("ops",)

    def __init__(self) -> None:
        self.ops: _Ops = []

    def put(self, key: bytes, value: bytes) -> None:
        self.ops.append((key, value))

    def delete(self, key: bytes) -> None:
        self.ops.append((key, None))


class MemoryBackend:
    """The backend on a MemoryDisk. Raises StorageError when the disk has an open handle already."""

    def __init__(self, disk: MemoryDisk, loop: asyncio.AbstractEventLoop) -> None:
        if disk._handle is not None:
            raise StorageError(f"{disk.name} is in use by another store; close that one first")
        disk._handle = self
        self.name, self.unreadable = disk.name, ""
        self.syncs = 0
        self.queue: deque[tuple[_Ops, Done, bool]] = deque()
        self._disk = disk
        self._loop = loop
        self.files = MemoryFiles(disk, loop)
        self._completions: deque[tuple[Done, StorageError | None]] = deque()
        self._error: StorageError | None = None
        # Closed, or the disk crashed.
        self._dead = False
        self._scheduled = 0
        self._timer: asyncio.Handle | None = None
        self._idle: asyncio.Future[None] | None = None

    @property
    def failed(self) -> bool:
        return self._error is not None

    def batch(self) -> RawBatch:
        return _MemoryBatch()  # on a dead disk, too: what is written to it vanishes

    def submit(self, batch: RawBatch, done: Done, sync: bool = True) -> None:
        if not self._dead:
            self.queue.append((_ops(batch), done, sync))
            self.kick()

    def write(self, batch: RawBatch) -> None:
        self._check_open()
        self._write_queued(len(self.queue))
        self._check_open()
        error, kill = self._write_one(_ops(batch), True)
        if kill is not None:
            kill()
        self._check_open()
        self.kick()
        if error is not None:
            raise error

    def kick(self) -> None:
        """Arrange for what waits to happen, unless that is under way or held."""
        if self._dead or self._timer is not None:
            return
        disk = self._disk
        if self.queue and not disk._hold_writes:
            # Batches that come later wait for the next write, as they would on a disk.
            self._scheduled = len(self.queue)
            delay_s = disk.delay_s() if disk.delay_s is not None else 0.0
            if delay_s > 0:
                disk.faults["slow"] += 1
                self._timer = self._loop.call_later(delay_s, self._turn)
            else:
                self._timer = self._loop.call_soon(self._turn)
        elif self._completions and not disk._hold_completions:
            self._scheduled = 0
            self._timer = self._loop.call_soon(self._turn)
        elif self._idle is not None and not self.queue and not self._completions and not self._idle.done():
            self._idle.set_result(None)

    def _turn(self) -> None:
        self._timer = None
        if not self._disk._hold_writes:
            self._write_queued(min(self._scheduled, len(self.queue)))
        while self._completions and not self._disk._hold_completions and not self._dead:
            done, error = self._completions.popleft()
            try:
                done(error)
            except Exception as problem:
                report_failed_completion(self._loop, problem)
        self.kick()

    def _write_queued(self, count: int) -> None:
        for _ in range(count):
            if not self.queue:  # killed after the write before
                return
            ops, done, sync = self.queue[0]
            error, kill = self._write_one(ops, sync)
            if self._dead:  # killed before this write, which a crash may keep like those behind it
                return
            self.queue.popleft()
            self._completions.append((done, error))
            if kill is not None:
                kill()

    def _write_one(self, ops: _Ops, sync: bool) -> tuple[StorageError | None, Callable[[], None] | None]:
        """Write; return what went wrong, and whom to call because a crash was asked for after this write."""
        if self._error is not None:
            return self._error, None
        kill = self._disk._begin_write()
        if self._dead:
            return None, None
        try:
            if failpoints.armed is not None:
                failpoints.armed(failpoints.DISK_BEFORE_WRITE)
            self._disk._write(ops, sync)
            self.syncs += sync
            if failpoints.armed is not None:
                failpoints.armed(failpoints.DISK_AFTER_WRITE)
        except OSError as problem:
            self._error = StorageError(f"{self.name}: a write failed: {problem.strerror or problem}")
            self._error.__cause__ = problem
        return self._error, kill

    def view(self) -> View:
        self._readable()
        return MemoryView(self.name, self._disk._values, self._disk._keys, self._readable)

    def get(self, key: bytes) -> bytes | None:
        self._readable()
        return self._disk._values.get(key)

    def items(self, start: bytes, stop: bytes | None, reverse: bool = False) -> Iterator[tuple[bytes, bytes]]:
        values = self._disk._values
        return ((key, values[key]) for key in self.keys(start, stop, reverse))

    def keys(self, start: bytes, stop: bytes | None, reverse: bool = False) -> Iterator[bytes]:
        self._readable()
        return between(self._disk._keys, start, stop, reverse)

    def load_identity(self) -> bytes | None:
        self._disk._read()
        return self._disk._identity

    def save_identity(self, raw: bytes) -> None:
        self._check_open()
        kill = self._disk._begin_write()
        self._check_open()
        if self._disk.full:
            self._disk.faults["enospc"] += 1
            error = OSError(errno.ENOSPC, "No space left on device")
            raise StorageError(f"{self.name}: the identity file cannot be written: {error.strerror}") from error
        self._disk._identity = raw
        if kill is not None:
            kill()
            self._check_open()

    async def finish(self, final: RawBatch) -> bool:
        if not self._dead:
            self._idle = self._loop.create_future()
            self.submit(final, lambda _: None)
            await self._idle
        return not self._dead and not self.failed

    async def close(self) -> None:
        self._let_go()

    def abandon(self) -> None:
        self._write_queued(len(self.queue))
        self._let_go()

    def _let_go(self) -> None:
        if not self._dead:
            self.files.finish()
        if not self._dead:
            # An orderly close is a flush, even on a disk that had not synced.
            self._disk._undo.clear()
            self._disk._handle = None
            self.die()

    def die(self) -> None:
        self._dead = True
        self.files.die()
        self.queue.clear()
        self._completions.clear()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._idle is not None and not self._idle.done():
            self._idle.set_result(None)

    def _readable(self) -> None:
        self._check_open()
        self._disk._read()

    def _check_open(self) -> None:
        if self._dead:
            raise StorageError(f"{self.name}: the store is closed")


def report_failed_completion(loop: asyncio.AbstractEventLoop, problem: Exception) -> None:
    """Hand what a `done` raised to the loop, so that the completions after it are still delivered."""
    loop.call_exception_handler({"message": "a completion of the store raised", "exception": problem})


def _ops(batch: RawBatch) -> _Ops:
    if not isinstance(batch, _MemoryBatch):
        raise TypeError("a batch of another store")
    return batch.ops
