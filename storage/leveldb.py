"""The backend on LevelDB.

    data_dir/IDENTITY   identity and latest run, apart from the database, so that a database that lost something shows
    data_dir/db/        LevelDB: its LOCK keeps a second process out

Rules of this file: every write is synced but those that need not be; only the writer thread writes or closes the
database (closing while another thread writes is a crash of the process); after a failed write nothing is written or
acknowledged again, because LevelDB, after one failure, loses later writes that it acknowledged. LevelDB's `reuse_logs`
stays off, as it is by default: an old log is never appended to.
"""

from __future__ import annotations

import asyncio
import errno
import os
import shutil
from collections.abc import Iterator
from typing import Any, Final

from multiraft.config import Limits
from multiraft.errors import CorruptRecord, StorageError
from multiraft.storage.backend import RawBatch, View
from multiraft.storage.directory import (
    HINTS,
    IDENTITY_FILE,
    LEVELDB_DIR,
    LOCK_FILE,
    errno_of,
    in_use_by_another,
    make_directories,
    mark_unreadable,
    message_of,
    read_identity_file,
    release,
    storage_error,
    sync_directory,
    take_in_this_process,
)
from multiraft.storage.identity import ways_out
from multiraft.storage.level_logs import check_logs
from multiraft.storage.level_memory import level_memory
from multiraft.storage.parting import PartingFiles
from multiraft.storage.wal import LogWatch
from multiraft.storage.writing import ThreadedBackend

try:
    import plyvel

    _plyvel_problem = ""
except ImportError as problem:  # pragma: no cover - only where no wheel fits
    plyvel = None
    _plyvel_problem = str(problem)

_FILTER_BITS: Final = 10
"""Of each key: then a key is looked for in the file that has it, and hardly ever in one that has not."""
NEW_DIR: Final = LEVELDB_DIR + ".new"
DAMAGED_DIR: Final = LEVELDB_DIR + ".damaged"


# ------------------------------------------------------------------------------------------------------ opening


def open_database(path: str, limits: Limits) -> Any:
    """Open or make the database in the data directory `path`, and return it.

    Raises StorageError: not a directory, no right to write, in use, lost or damaged.
    """
    database = os.path.join(path, LEVELDB_DIR)
    try:
        finish_salvage(path)
    except OSError as problem:
        raise storage_error(path, "cannot be opened", problem) from problem
    make_directories(path, database)
    existed = has_database(path, database)
    real = take_in_this_process(path, database)
    try:
        if existed:
            _check_logs(path, database)
        return _open(path, database, limits, create=not existed)
    except BaseException:
        release(real)
        raise


def finish_salvage(path: str) -> None:
    """Go on with a salvage (salvage.py) that a crash has left between its last two steps; clean up after any other.

    Raises OSError.
    """
    database, new = os.path.join(path, LEVELDB_DIR), os.path.join(path, NEW_DIR)
    if os.path.lexists(new) and os.path.lexists(database):
        shutil.rmtree(new)
    elif os.path.lexists(new) and os.path.lexists(os.path.join(path, DAMAGED_DIR)):
        os.rename(new, database)
        sync_directory(path)


def open_linked(path: str, database: str, scratch: str, limits: Limits) -> Any:
    """Open `database` through links in the empty directory `scratch`, and return it; `database` is not changed.

    LevelDB never changes a file that it finds: it adds and removes files, here in `scratch`. Raises StorageError.
    """
    try:
        for file in os.listdir(database):
            if file not in (LOCK_FILE, "LOG", "LOG.old"):
                os.symlink(os.path.join(os.path.abspath(database), file), os.path.join(scratch, file))
    except OSError as problem:
        raise storage_error(path, "cannot be inspected", problem) from problem
    _check_logs(path, database)
    try:
        return _open(path, scratch, limits, create=False)
    except StorageError as problem:
        raise StorageError(str(problem).replace(scratch, database)) from problem


def create_database(path: str, database: str, limits: Limits) -> Any:
    """Open the directory `database` within the data directory `path`, making it where missing. Raises StorageError."""
    return _open(path, database, limits, create=True)


def _check_logs(path: str, database: str) -> None:
    try:
        check_logs(database)
    except CorruptRecord as problem:
        raise CorruptRecord(f"{path} is damaged: {problem}. {ways_out(path)}") from problem
    except OSError as problem:
        raise storage_error(path, "cannot be read", problem) from problem


def _open(path: str, database: str, limits: Limits, create: bool) -> Any:
    if plyvel is None:  # pragma: no cover - only where no wheel fits
        raise StorageError(
            f'LevelDB is not available here ({_plyvel_problem}); install plyvel, or say store = "sqlite"'
        )
    memory = level_memory(limits)
    try:
        return plyvel.DB(
            database,
            create_if_missing=create,
            paranoid_checks=True,
            write_buffer_size=memory.write_buffer_bytes,
            lru_cache_size=memory.cache_bytes,
            max_file_size=memory.file_bytes,
            max_open_files=memory.open_files,
            compression="snappy",
            bloom_filter_bits=_FILTER_BITS,
        )
    except Exception as problem:
        refusal = _opening_failed(path, database, problem)
        raise refusal from refusal.__cause__ or problem


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
        if errno_of(problem) in (errno.EAGAIN, errno.EACCES):
            return in_use_by_another(path, database)
    if errno_of(problem) in HINTS:
        return storage_error(path, "cannot be opened", problem)
    return StorageError(f"{path} is damaged: {text}. {ways_out(path)}")


# ------------------------------------------------------------------------------------------------------- backend


class LevelReader:
    """Checked reads of an open database.

    name     the data directory
    renamed  a part of a path that errors of LevelDB have, and what stands there instead in ours
    """

    def __init__(self, name: str, database: Any, renamed: tuple[str, str] = ("", "")) -> None:
        self.name = name
        self._renamed = renamed
        self._database: Any = database  # or a snapshot of one: it is read the same way
        self._closed = False
        self._iterators: set[Any] = set()

    def get(self, key: bytes) -> bytes | None:
        self._check_open()
        try:
            value: bytes | None = self._database.get(key, verify_checksums=True)
        except Exception as problem:
            raise self._read_error(problem) from problem
        return value

    def items(self, start: bytes, stop: bytes | None, reverse: bool = False) -> Iterator[tuple[bytes, bytes]]:
        return self._iterate(start, stop, reverse, True)

    def keys(self, start: bytes, stop: bytes | None, reverse: bool = False) -> Iterator[bytes]:
        return self._iterate(start, stop, reverse, False)

    def load_identity(self) -> bytes | None:
        return read_identity_file(self.name)

    def _iterate(self, start: bytes, stop: bytes | None, reverse: bool, values: bool) -> Iterator[Any]:
        self._check_open()
        found: Any = None
        try:
            found = self._database.iterator(
                start=start, stop=stop, reverse=reverse, include_value=values, verify_checksums=True
            )
            self._iterators.add(found)
            yield from found
        except Exception as problem:
            self._check_open()  # the reader was closed under the iterator
            raise self._read_error(problem) from problem
        finally:
            if found is not None:
                self._iterators.discard(found)
                found.close()

    def _read_error(self, problem: Exception) -> StorageError:
        """What is not the system's doing is damage, and then a CorruptRecord."""
        if errno_of(problem) in HINTS:
            return storage_error(self.name, "cannot be read", problem)
        text, (linked, real) = message_of(problem), self._renamed
        damage = CorruptRecord(text.replace(linked, real) if linked else text)
        damage.__cause__ = problem
        return damage

    def _check_open(self) -> None:
        if self._closed:
            raise StorageError(f"{self.name}: the store is closed")

    def _close_reads(self) -> None:
        """Nothing is read any more: no iterator is left open either."""
        self._closed = True
        while self._iterators:
            self._iterators.pop().close()


class _LevelView(LevelReader):
    """Reads of one moment."""

    def __init__(self, backend: LevelBackend) -> None:
        super().__init__(backend.name, backend._database.snapshot())
        self._backend = backend
        self._views = backend._views
        self._views.add(self)

    def _read_error(self, problem: Exception) -> StorageError:
        return self._backend._read_error(problem)

    def close(self) -> None:
        self._views.discard(self)
        self._close_reads()
        self._database.close()


class LevelBackend(LevelReader, ThreadedBackend):
    """The backend on an open database; takes over the database and starts its writer thread."""

    def __init__(self, name: str, database: Any, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(name, database)
        self._views: set[_LevelView] = set()
        real = os.path.realpath(os.path.join(name, LEVELDB_DIR))
        self._log_watch = LogWatch(real)  # both belong to the writer thread
        self._parting = PartingFiles(real)
        self._start_writer(real, loop)

    def _read_error(self, problem: Exception) -> StorageError:
        error = super()._read_error(problem)
        if isinstance(error, CorruptRecord):
            self.mark(str(error))
        return error

    def mark(self, problem: str) -> None:
        """Have the next start leave out what cannot be read: what was met here may not be met by it."""
        if not self.unreadable:
            self.unreadable = problem
            mark_unreadable(self.name, problem)

    def batch(self) -> RawBatch:
        batch: RawBatch = self._database.write_batch(sync=True)
        return batch

    def view(self) -> View:
        self._check_open()
        return _LevelView(self)

    def _close_reads(self) -> None:
        for view in list(self._views):
            view.close()
        super()._close_reads()

    def _size(self, batch: Any) -> int:
        return int(batch.approximate_size())

    def _append(self, batch: Any, more: Any) -> None:
        batch.append(more)

    def _write_synced(self, batch: Any) -> None:
        self._put(batch)
        self._log_watch.wrote(synced=True)

    def _write_unsynced(self, batch: Any) -> None:
        self._log_watch.before_unsynced()
        # Whether it is synced was said when it was made.
        unsynced = self._database.write_batch(sync=False)
        unsynced.append(batch)
        self._put(unsynced)
        self._log_watch.wrote(synced=False)

    def _put(self, batch: Any) -> None:
        try:
            batch.write()
            self._parting.wrote(batch.approximate_size())
        except plyvel.CorruptionError as problem:  # met while files were put together, in the background
            self.mark(message_of(problem))
            raise

    def _after_telling(self) -> None:
        self._log_watch.told()

    def _close_database(self) -> None:
        self._log_watch.close()
        self._database.close()
        self._parting.close()
