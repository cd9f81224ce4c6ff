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
from collections.abc import Iterator
from typing import Any

from multiraft.config import Limits
from multiraft.errors import CorruptRecord, StorageError
from multiraft.storage.backend import RawBatch
from multiraft.storage.directory import (
    HINTS,
    IDENTITY_FILE,
    LEVELDB_DIR,
    LOCK_FILE,
    errno_of,
    in_use_by_another,
    make_directories,
    message_of,
    read_identity_file,
    release,
    storage_error,
    take_in_this_process,
)
from multiraft.storage.identity import ways_out
from multiraft.storage.writing import ThreadedBackend

try:
    import plyvel

    _plyvel_problem = ""
except ImportError as problem:  # pragma: no cover - only where no wheel fits
    plyvel = None
    _plyvel_problem = str(problem)


# ------------------------------------------------------------------------------------------------------ opening


def open_database(path: str, limits: Limits) -> Any:
    """Open or make the database in the data directory `path`, and return it.

    Raises StorageError: not a directory, no right to write, in use, lost or damaged.
    """
    database = os.path.join(path, LEVELDB_DIR)
    make_directories(path, database)
    existed = has_database(path, database)
    real = take_in_this_process(path, database)
    try:
        return _open(path, database, limits, create=not existed)
    except BaseException:
        release(real)
        raise


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
    try:
        return _open(path, scratch, limits, create=False)
    except StorageError as problem:
        raise StorageError(str(problem).replace(scratch, database)) from problem


def _open(path: str, database: str, limits: Limits, create: bool) -> Any:
    if plyvel is None:  # pragma: no cover - only where no wheel fits
        raise StorageError(
            f'LevelDB is not available here ({_plyvel_problem}); install plyvel, or say store = "sqlite"'
        )
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
        self._database = database
        self._closed = False

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
        try:
            with self._database.iterator(
                start=start, stop=stop, reverse=reverse, include_value=values, verify_checksums=True
            ) as found:
                yield from found
        except Exception as problem:
            raise self._read_error(problem) from problem

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


class LevelBackend(LevelReader, ThreadedBackend):
    """The backend on an open database; takes over the database and starts its writer thread."""

    def __init__(self, name: str, database: Any, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(name, database)
        self._start_writer(os.path.realpath(os.path.join(name, LEVELDB_DIR)), loop)

    def batch(self) -> RawBatch:
        batch: RawBatch = self._database.write_batch(sync=True)
        return batch

    def _size(self, batch: Any) -> int:
        return int(batch.approximate_size())

    def _append(self, batch: Any, more: Any) -> None:
        batch.append(more)

    def _write_synced(self, batch: Any) -> None:
        batch.write()

    def _write_unsynced(self, batch: Any) -> None:
        # Whether it is synced was said when it was made.
        unsynced = self._database.write_batch(sync=False)
        unsynced.append(batch)
        unsynced.write()

    def _close_database(self) -> None:
        self._database.close()
