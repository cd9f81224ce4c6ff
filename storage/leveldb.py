"""The backend on LevelDB, written by a thread of its own.

    data_dir/IDENTITY   identity and latest run, apart from the database, so that a database that lost something shows
    data_dir/db/        LevelDB: its LOCK keeps a second process out

The loop's thread reads; the writer thread writes. A put on the loop's thread would wait behind a large synced batch;
plyvel lets go of the interpreter's lock while it writes, so a thread is enough. Batches that wait together are merged
and share one sync. Completions go back to the loop in order, one wake-up for all that are finished.

Rules of this file: every write is synced; nothing but the writer thread writes or closes the database (closing while
another thread writes is a crash of the process); nothing thrown in the writer thread is lost; after a failed write
nothing is written or acknowledged again, because LevelDB, after one failure, loses later writes that it acknowledged.
LevelDB's `reuse_logs` stays off, as it is by default: an old log is never appended to.
"""

from __future__ import annotations

import asyncio
import atexit
import errno
import os
import queue
import struct
import sys
import threading
from collections import deque
from collections.abc import Iterator
from typing import Any, Final, TypeAlias

from multiraft import failpoints
from multiraft.config import Limits
from multiraft.errors import CorruptRecord, StorageError
from multiraft.storage.backend import Done, RawBatch
from multiraft.storage.identity import ways_out
from multiraft.storage.memory import report_failed_completion

try:
    import plyvel

    _plyvel_problem = ""
except ImportError as problem:  # pragma: no cover - only where no wheel fits
    plyvel = None
    _plyvel_problem = str(problem)

IDENTITY_FILE: Final = "IDENTITY"
DATABASE_DIR: Final = "db"

MERGE_BYTES: Final = 4 * 1024 * 1024
"""Batches that wait together are merged up to about this size."""

_HINTS: Final = {
    errno.EACCES: "let this user read and write there, or name another directory",
    errno.EPERM: "let this user read and write there, or name another directory",
    errno.EROFS: "name a directory on a file system that can be written",
    errno.ENOSPC: "free some space on that disk, then start again",
    errno.EDQUOT: "raise the quota or free some space, then start again",
    errno.EMFILE: "raise the limit of open files (ulimit -n)",
    errno.EIO: "check that disk before the node is started again",
    errno.ENAMETOOLONG: "name a directory with a shorter path",
}
_ERRNO_OF_TEXT: Final = {os.strerror(number): number for number in errno.errorcode}

_open_here: set[str] = set()
"""Databases that this process has open: looking into their LOCK files would let go of our own locks on them."""


# ------------------------------------------------------------------------------------------------------ opening


def open_database(path: str, limits: Limits) -> Any:
    """Open or make the database in the data directory `path`, and return it.

    Raises StorageError: not a directory, no right to write, in use, lost or damaged.
    """
    database = os.path.join(path, DATABASE_DIR)
    _make_directories(path, database)
    existed = has_database(path, database)
    if in_use_by_this_process(database):
        raise StorageError(f"{path} is in use by this very process; give every node a data directory of its own")
    opened = _open(path, database, limits, create=not existed)
    _open_here.add(os.path.realpath(database))
    return opened


def open_linked(path: str, database: str, scratch: str, limits: Limits) -> Any:
    """Open `database` through links in the empty directory `scratch`, and return it; `database` is not changed.

    LevelDB never changes a file that it finds: it adds and removes files, here in `scratch`. Raises StorageError.
    """
    try:
        for file in os.listdir(database):
            if file not in ("LOCK", "LOG", "LOG.old"):
                os.symlink(os.path.join(os.path.abspath(database), file), os.path.join(scratch, file))
    except OSError as problem:
        raise storage_error(path, "cannot be inspected", problem) from problem
    try:
        return _open(path, scratch, limits, create=False)
    except StorageError as problem:
        raise StorageError(str(problem).replace(scratch, database)) from problem


def in_use_by_this_process(database: str) -> bool:
    return os.path.realpath(database) in _open_here


def _open(path: str, database: str, limits: Limits, create: bool) -> Any:
    if plyvel is None:  # pragma: no cover - only where no wheel fits
        raise StorageError(f"LevelDB is not available ({_plyvel_problem}); install plyvel: wheels are for Linux x86-64")
    try:
        return plyvel.DB(
            database,
            create_if_missing=create,
            paranoid_checks=True,
            write_buffer_size=limits.leveldb_write_buffer_bytes,
            compression="snappy",
        )
    except Exception as problem:
        raise _opening_failed(path, database, problem) from problem


def _make_directories(path: str, database: str) -> None:
    try:
        if os.path.lexists(path) and not os.path.isdir(path):
            raise StorageError(f"{path} is not a directory; name a directory (it is made when missing), or remove it")
        if not os.path.isdir(path):
            os.makedirs(path)
            _sync_directory(os.path.dirname(os.path.abspath(path)))
        if not os.path.lexists(database):
            os.mkdir(database)
            _sync_directory(path)
    except OSError as problem:
        raise storage_error(path, "cannot be made", problem) from problem


def has_database(path: str, database: str) -> bool:
    """Whether there is a database to open. Raises StorageError where there was one."""
    try:
        files = os.listdir(database) if os.path.isdir(database) else []
    except OSError as problem:
        raise storage_error(path, "cannot be read", problem) from problem
    if "CURRENT" in files:
        return True
    # LevelDB makes CURRENT before it makes any of these.
    if os.path.lexists(os.path.join(path, IDENTITY_FILE)) or any(f.endswith((".log", ".ldb", ".sst")) for f in files):
        raise StorageError(f"{path} has lost its database: {database} has no CURRENT file. {ways_out(path)}")
    return False


def _opening_failed(path: str, database: str, problem: Exception) -> StorageError:
    text = message_of(problem)
    if text.startswith("IO error: lock "):
        if "already held by process" in text:
            return StorageError(f"{path} is in use by this very process; give every node a data directory of its own")
        if _errno_of(problem) in (errno.EAGAIN, errno.EACCES):
            return in_use_by_another(path, database)
    if _errno_of(problem) in _HINTS:
        return storage_error(path, "cannot be opened", problem)
    return StorageError(f"{path} is damaged: {text}. {ways_out(path)}")


def in_use_by_another(path: str, database: str) -> StorageError:
    """Return the error for a directory whose LOCK is held by another process."""
    pid = _lock_holder(os.path.join(database, "LOCK"))
    who = f"another process (pid {pid})" if pid else "another process"
    return StorageError(f"{path} is in use by {who}; stop that one first, or name another directory")


def _lock_holder(lock_file: str) -> int:
    """Return the pid that holds a lock on the file; 0 when that cannot be known."""
    if sys.platform != "linux" or struct.calcsize("P") != 8:
        return 0
    import fcntl

    layout = struct.Struct("hhqqi4x")
    try:
        with open(lock_file, "rb") as file:
            asked = layout.pack(fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
            kind, _, _, _, pid = layout.unpack(fcntl.fcntl(file, fcntl.F_GETLK, asked))
    except (OSError, struct.error):
        return 0
    return int(pid) if kind != fcntl.F_UNLCK else 0


# ------------------------------------------------------------------------------------------------------- errors


def message_of(problem: BaseException) -> str:
    """Return the text of an error in one line; plyvel's are bytes."""
    first = problem.args[0] if len(problem.args) == 1 else None
    text = first.decode(errors="replace") if isinstance(first, bytes) else str(problem)
    return " ".join(text.split()) or type(problem).__name__


def storage_error(path: str, what: str, problem: BaseException) -> StorageError:
    """Return a StorageError for an error of the system or of LevelDB.

    Its `__cause__` is an OSError with its errno wherever one can be told.
    """
    number = _errno_of(problem)
    if isinstance(problem, OSError) and problem.errno:
        reason = os.strerror(number)
    else:
        # LevelDB's text names the file.
        reason = message_of(problem)
        problem = OSError(number, os.strerror(number), path) if number else problem
    error = StorageError(f"{path} {what}: {reason}; {_HINTS.get(number, 'name another directory, or mend this one')}")
    error.__cause__ = problem
    return error


def _read_error(path: str, problem: Exception) -> StorageError:
    """The same for a read: what is not the system's doing is damage, and then a CorruptRecord."""
    if _errno_of(problem) in _HINTS:
        return storage_error(path, "cannot be read", problem)
    damage = CorruptRecord(message_of(problem))
    damage.__cause__ = problem
    return damage


def _errno_of(problem: BaseException) -> int:
    """Return the errno; LevelDB only gives its text, after the last colon."""
    if isinstance(problem, OSError) and problem.errno:
        return problem.errno
    return _ERRNO_OF_TEXT.get(message_of(problem).rpartition(": ")[2], 0)


# ------------------------------------------------------------------------------------------------ identity file


def read_identity_file(path: str) -> bytes | None:
    """Return what is in the directory's IDENTITY file; None if there is none. Raises StorageError."""
    name = os.path.join(path, IDENTITY_FILE)
    try:
        with open(name, "rb") as file:
            return file.read()
    except FileNotFoundError:
        return None
    except OSError as problem:
        raise storage_error(name, "cannot be read", problem) from problem


def write_identity_file(path: str, raw: bytes) -> None:
    """Replace the IDENTITY file: written beside it, synced, renamed, and the directory synced. Raises StorageError."""
    name = os.path.join(path, IDENTITY_FILE)
    try:
        with open(name + ".tmp", "wb") as file:
            file.write(raw)
            file.flush()
            os.fsync(file.fileno())
        os.replace(name + ".tmp", name)
        _sync_directory(path)
    except OSError as problem:
        raise storage_error(name, "cannot be written", problem) from problem


def _sync_directory(path: str) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


# ------------------------------------------------------------------------------------------------------- backend


class LevelReader:
    """Checked reads of an open database; `name` is the data directory."""

    def __init__(self, name: str, database: Any) -> None:
        self.name = name
        self._database = database
        self._closed = False

    def get(self, key: bytes) -> bytes | None:
        self._check_open()
        try:
            value: bytes | None = self._database.get(key, verify_checksums=True)
        except Exception as problem:
            raise _read_error(self.name, problem) from problem
        return value

    def items(self, start: bytes, stop: bytes | None, reverse: bool = False) -> Iterator[tuple[bytes, bytes]]:
        return self._iterate(start, stop, reverse, True)

    def keys(self, start: bytes, stop: bytes | None, reverse: bool = False) -> Iterator[bytes]:
        return self._iterate(start, stop, reverse, False)

    def load_identity(self) -> bytes | None:
        return read_identity_file(self.name)

    def _iterate(self, start: bytes, stop: bytes | None, reverse: bool, values: bool) -> Iterator[Any]:
        self._check_open()
        try:
            with self._database.iterator(
                start=start, stop=stop, reverse=reverse, include_value=values, verify_checksums=True
            ) as found:
                yield from found
        except Exception as problem:
            raise _read_error(self.name, problem) from problem

    def _check_open(self) -> None:
        if self._closed:
            raise StorageError(f"{self.name}: the store is closed")


class _Job:
    """One write. `done` goes to the loop; `waiter` gets the outcome in the writer thread, for who blocks on it."""

    __slots__ = ("batch", "done", "waiter")

    def __init__(self, batch: Any, done: Done | None, waiter: _Waiter | None) -> None:
        self.batch = batch
        self.done = done
        self.waiter = waiter


_Waiter: TypeAlias = "queue.SimpleQueue[StorageError | None]"


class LevelBackend(LevelReader):
    """The backend on an open database; takes over the database and starts its writer thread."""

    def __init__(self, name: str, database: Any, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(name, database)
        self.syncs = 0
        self._loop = loop
        self._real = os.path.realpath(os.path.join(name, DATABASE_DIR))
        # None in the queue ends the writer.
        self._queue: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._completions: deque[tuple[Done, StorageError | None]] = deque()
        self._woken = False
        self._at_end: Done | None = None
        # Belongs to the writer thread.
        self._error: StorageError | None = None
        self._writer = threading.Thread(target=self._run_writer, name=f"multiraft-writer {name}", daemon=True)
        try:
            self._writer.start()
        except RuntimeError as problem:
            database.close()
            _open_here.discard(self._real)
            raise StorageError(f"{name} cannot be opened: {problem}; raise the limit of threads") from problem
        # A daemon thread must not be inside LevelDB while the interpreter is taken down.
        atexit.register(self.abandon)

    def batch(self) -> RawBatch:
        batch: RawBatch = self._database.write_batch(sync=True)
        return batch

    def submit(self, batch: RawBatch, done: Done) -> None:
        self._check_open()
        self._queue.put(_Job(batch, done, None))

    def write(self, batch: RawBatch) -> None:
        self._check_open()
        waiter: _Waiter = queue.SimpleQueue()
        self._queue.put(_Job(batch, None, waiter))
        error = waiter.get()
        if error is not None:
            raise error

    def save_identity(self, raw: bytes) -> None:
        self._check_open()
        write_identity_file(self.name, raw)

    async def finish(self, final: RawBatch) -> bool:
        # Completions are delivered in order: every earlier `done` has been called when this one is.
        written: asyncio.Future[bool] = self._loop.create_future()
        self._queue.put(_Job(final, lambda error: written.set_result(error is None), None))
        return await written

    async def close(self) -> None:
        self._closed = True
        ended: asyncio.Future[None] = self._loop.create_future()
        self._at_end = lambda _: ended.set_result(None)
        self._queue.put(None)
        await ended
        self._join()

    def abandon(self) -> None:
        if not self._closed:
            self._closed = True
            self._queue.put(None)
        self._join()
        self._completions.clear()

    def _join(self) -> None:
        self._writer.join()
        _open_here.discard(self._real)
        atexit.unregister(self.abandon)

    # The writer thread.

    def _run_writer(self) -> None:
        ended = False
        while not ended:
            job = self._queue.get()
            if job is None:
                break
            jobs = [job]
            ended = self._write(jobs)
            error = self._error
            for job in jobs:
                if job.waiter is not None:
                    job.waiter.put(error)
                elif job.done is not None:
                    self._completions.append((job.done, error))
            self._wake_loop()
        try:
            self._database.close()
        except BaseException as problem:
            self._error = storage_error(self.name, "cannot be closed", problem)
        if self._at_end is not None:
            self._completions.append((self._at_end, None))
            self._wake_loop()

    def _write(self, jobs: list[_Job]) -> bool:
        """Write the one job in `jobs`, merged with what waits behind it (added to `jobs`). True: the end was seen."""
        ended = False
        try:
            merged = jobs[0].batch
            size = merged.approximate_size()
            while size < MERGE_BYTES:
                try:
                    more = self._queue.get_nowait()
                except queue.Empty:
                    break
                if more is None:
                    ended = True
                    break
                jobs.append(more)
                merged.append(more.batch)
                size = merged.approximate_size()
            if self._error is None:
                if failpoints.armed is not None:
                    failpoints.armed(failpoints.DISK_BEFORE_WRITE)
                self._write_synced(merged)
                self.syncs += 1
                if failpoints.armed is not None:
                    failpoints.armed(failpoints.DISK_AFTER_WRITE)
        except BaseException as problem:
            self._error = storage_error(self.name, "cannot be written", problem)
        return ended

    def _write_synced(self, batch: Any) -> None:
        batch.write()

    def _wake_loop(self) -> None:
        if not self._woken and self._completions:
            self._woken = True
            try:
                self._loop.call_soon_threadsafe(self._deliver)
            except RuntimeError:
                # The loop is closed: there is nobody left to tell.
                self._completions.clear()

    def _deliver(self) -> None:
        # Cleared before draining: what the writer adds from here on is either drained now or wakes the loop again.
        self._woken = False
        completions = self._completions
        while completions:
            done, error = completions.popleft()
            try:
                done(error)
            except Exception as problem:
                report_failed_completion(self._loop, problem)
