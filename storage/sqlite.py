"""The backend on SQLite, from the standard library: for platforms where LevelDB is not to be had.

    data_dir/IDENTITY          identity and latest run, apart from the database
    data_dir/sqlite/store.db   one table of keys and values, with an index by key; store.db-wal, its log, and
                               store.db-shm, the log's index, beside it while it is open
    data_dir/sqlite/LOCK       locked as long as a process has the store open

The database is in WAL mode with `synchronous=FULL`: a commit appends its pages to the log and syncs the log before it
returns. (With NORMAL, the usual choice, only checkpoints sync, and a crash of the machine loses commits that had
returned; so that is what a batch gets that need not be synced.) Every page in the log carries a checksum over all
before it, so that a crash leaves a prefix of the commits. A checkpoint syncs log, then database, and only then is the
log begun anew. The writer thread makes checkpoints as the log grows, but while a view is open the log only grows.

Reads are made on the loop's thread, by connections of their own: a statement sees what was committed before it began,
and nothing later. An iteration has a connection to itself, since a second statement beside one that is under way would
see as little as that one. A view is a read transaction.

Rules of this file: the writer thread alone writes, and closes the database; a `sqlite3.Error` never leaves it.
SQLite tells no errno: "full" is ENOSPC, every other failure of input and output is EIO.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from typing import Any, Final, TypeAlias
from urllib.parse import quote

from multiraft.errors import CorruptRecord, StorageError
from multiraft.storage.backend import RawBatch, View
from multiraft.storage.directory import (
    HINTS,
    IDENTITY_FILE,
    LOCK_FILE,
    SQLITE_DIR,
    errno_of,
    in_use_by_another,
    make_directories,
    message_of,
    read_identity_file,
    release,
    storage_error,
    sync_directory,
    take_in_this_process,
)
from multiraft.storage.identity import ways_out
from multiraft.storage.writing import ThreadedBackend

_Connect: TypeAlias = Callable[[], sqlite3.Connection]

DATABASE_FILE: Final = "store.db"
APPLICATION_ID: Final = 0x4D524654
"""What the header of the file says it belongs to; SQLite's own tools show it."""

_WAL_BYTES: Final = 64 * 1024 * 1024
"""The log's file is cut to this size when a checkpoint has emptied it."""
_CHECKPOINT_PAGES: Final = 4_000
"""The writer makes a checkpoint when the log has as many pages (of 4 KiB)."""
_CACHE_KIB: Final = 16 * 1024
_TABLE: Final = """
    CREATE TABLE kv (k BLOB PRIMARY KEY NOT NULL, v BLOB NOT NULL);
    CREATE TABLE syncs (count INTEGER NOT NULL);
    INSERT INTO syncs VALUES (0);
"""
_PUT: Final = "INSERT INTO kv VALUES (?, ?) ON CONFLICT (k) DO UPDATE SET v = excluded.v"

_ERRNO_OF_CODE: Final = {
    sqlite3.SQLITE_FULL: errno.ENOSPC,
    sqlite3.SQLITE_IOERR: errno.EIO,
    sqlite3.SQLITE_READONLY: errno.EROFS,
    sqlite3.SQLITE_PERM: errno.EACCES,
    sqlite3.SQLITE_NOMEM: errno.ENOMEM,
    sqlite3.SQLITE_BUSY: errno.EBUSY,
    sqlite3.SQLITE_LOCKED: errno.EBUSY,
}
_DAMAGE: Final = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
_DAMAGE_EXTENDED: Final = (sqlite3.SQLITE_IOERR_SHORT_READ, sqlite3.SQLITE_IOERR_CORRUPTFS)


# ------------------------------------------------------------------------------------------------------ opening


class Database:
    """The open database of a data directory: the connection that writes, and the lock that keeps others out."""

    def __init__(self, path: str, writes: sqlite3.Connection, lock: int, real: str) -> None:
        self.path = path
        self.writes = writes
        self.real = real
        self._lock = lock

    def connect(self) -> sqlite3.Connection:
        """Return a new connection for reading. Raises sqlite3.Error."""
        return _connect(_file_of(self.path), "mode=ro")

    def close(self) -> None:
        """Close and unlock; a checkpoint comes first, if no other connection is open. Raises sqlite3.Error."""
        try:
            self.writes.close()
        finally:
            os.close(self._lock)


def open_database(path: str) -> Database:
    """Open or make the database in the data directory `path`, and return it.

    Reads the whole database, to see that its structure is whole. Raises StorageError: not a directory, no right to
    write, in use, lost or damaged.
    """
    database = os.path.join(path, SQLITE_DIR)
    make_directories(path, database)
    has_database(path)
    real = take_in_this_process(path, database)
    try:
        lock = _lock(path, database)
        try:
            return Database(path, _open(path, database), lock, real)
        except BaseException:
            os.close(lock)
            raise
    except BaseException:
        release(real)
        raise


def has_database(path: str) -> bool:
    """Whether there is a database to open. Raises StorageError where there was one."""
    file = _file_of(path)
    if os.path.lexists(file):
        return True
    if os.path.lexists(os.path.join(path, IDENTITY_FILE)) or os.path.lexists(file + "-wal"):
        raise StorageError(f"{path} has lost its database: there is no {file}. {ways_out(path)}")
    return False


@contextlib.contextmanager
def read_only(path: str, scratch: str) -> Iterator[SqliteReader]:
    """Give a reader of the database in `path`, which is not changed; `scratch` is an empty directory.

    Raises StorageError. A log beside the database belongs to it, and reading it takes writing: both are copied then.
    """
    file, options = _file_of(path), "mode=ro&immutable=1"
    try:
        if os.path.exists(file + "-wal") and os.path.getsize(file + "-wal"):
            copy, options = os.path.join(scratch, DATABASE_FILE), "mode=rw"
            shutil.copyfile(file, copy)
            shutil.copyfile(file + "-wal", copy + "-wal")
            file = copy
        connection = _connect(file, options)
    except OSError as problem:
        raise storage_error(path, "cannot be inspected", problem) from problem
    except sqlite3.Error as problem:
        raise _opening_failed(path, problem) from problem
    with contextlib.closing(connection):
        try:
            _check(path, connection)
        except sqlite3.Error as problem:
            raise _opening_failed(path, problem) from problem
        reader = SqliteReader(path, lambda: _connect(file, options))
        try:
            yield reader
        finally:
            reader._close_reads()


def _file_of(path: str) -> str:
    return os.path.join(path, SQLITE_DIR, DATABASE_FILE)


def _lock(path: str, database: str) -> int:
    import fcntl  # not everywhere; the memory store is

    try:
        lock = os.open(os.path.join(database, LOCK_FILE), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as problem:
        raise storage_error(path, "cannot be opened", problem) from problem
    try:
        fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as problem:
        os.close(lock)
        if problem.errno in (errno.EAGAIN, errno.EACCES):
            raise in_use_by_another(path, database) from problem
        raise storage_error(path, "cannot be locked", problem) from problem
    return lock


def _open(path: str, database: str) -> sqlite3.Connection:
    file = _file_of(path)
    try:
        # Here, because SQLite would not say why it cannot.
        os.close(os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644))
        sync_directory(database)
        connection = _connect(file, "mode=rw")
        try:
            _prepare(path, connection)
        except BaseException:
            connection.close()
            raise
    except OSError as problem:
        raise storage_error(path, "cannot be opened", problem) from problem
    except sqlite3.Error as problem:
        raise _opening_failed(path, problem) from problem
    return connection


def _prepare(path: str, connection: sqlite3.Connection) -> None:
    """Make a new file a store's, see that an old one is, and choose how it is written."""
    if connection.execute("PRAGMA journal_mode=WAL").fetchone() != ("wal",):
        raise StorageError(f"{path} is on a file system that SQLite cannot keep its log on; name another directory")
    connection.execute("PRAGMA synchronous=FULL")
    # Where a sync only reaches the drive, as on macOS: through it.
    connection.execute("PRAGMA fullfsync=ON")
    connection.execute("PRAGMA checkpoint_fullfsync=ON")
    connection.execute(f"PRAGMA journal_size_limit={_WAL_BYTES}")
    connection.execute(f"PRAGMA wal_autocheckpoint={_CHECKPOINT_PAGES}")
    connection.execute(f"PRAGMA cache_size=-{_CACHE_KIB}")
    if connection.execute("PRAGMA page_count").fetchone()[0] <= 1 and not _tables(connection):
        connection.executescript(f"BEGIN IMMEDIATE; PRAGMA application_id={APPLICATION_ID}; {_TABLE} COMMIT;")
    _check(path, connection)


def _check(path: str, connection: sqlite3.Connection) -> None:
    """Raises StorageError: not multiraft's, or its structure is not whole; sqlite3.Error."""
    if _tables(connection) != {"kv", "syncs"} or connection.execute("PRAGMA application_id").fetchone() != (
        APPLICATION_ID,
    ):
        raise StorageError(f"{path} holds a database that is not multiraft's; name another directory")
    # Pages carry no checksums, only values do: damage that hides a key shows here, where keys stand in the table and in
    # its index, and nowhere else. It takes about a second for 400 MB or for a million keys.
    found = [text for (text,) in connection.execute("PRAGMA integrity_check(1)")]
    if found != ["ok"]:
        raise StorageError(f"{path} is damaged: {' '.join(found[0].split())}. {ways_out(path)}")


def _tables(connection: sqlite3.Connection) -> set[str]:
    return {name for (name,) in connection.execute("SELECT name FROM sqlite_schema WHERE type = 'table'")}


def _connect(file: str, options: str) -> sqlite3.Connection:
    # No transaction is begun behind our back; a connection goes from thread to thread, but is used by one at a time.
    return sqlite3.connect(
        f"file:{quote(os.path.abspath(file))}?{options}", uri=True, isolation_level=None, check_same_thread=False
    )


# ------------------------------------------------------------------------------------------------------- errors


def _as_system_error(problem: sqlite3.Error) -> Exception:
    """Return the OSError that tells the same, where there is one."""
    number = _ERRNO_OF_CODE.get(_code(problem) & 0xFF, 0)
    if not number:
        return problem
    error = OSError(number, f"{problem} ({getattr(problem, 'sqlite_errorname', 'SQLite')})")
    error.__cause__ = problem
    return error


def _code(problem: sqlite3.Error) -> int:
    return int(getattr(problem, "sqlite_errorcode", 0))


def _is_damage(problem: sqlite3.Error) -> bool:
    return _code(problem) & 0xFF in _DAMAGE or _code(problem) in _DAMAGE_EXTENDED


def _opening_failed(path: str, problem: sqlite3.Error) -> StorageError:
    system = _as_system_error(problem)
    if errno_of(system) in HINTS and not _is_damage(problem):
        return storage_error(path, "cannot be opened", system)
    if errno_of(system) == errno.EBUSY:
        return StorageError(f"{path} is in use by a program that uses SQLite; stop that one first")
    return StorageError(f"{path} is damaged: {message_of(problem)}. {ways_out(path)}")


def _read_error(path: str, problem: sqlite3.Error) -> StorageError:
    """What is not the system's doing is damage."""
    if not _is_damage(problem):
        return storage_error(path, "cannot be read", _as_system_error(problem))
    damage = CorruptRecord(message_of(problem))
    damage.__cause__ = problem
    return damage


# ------------------------------------------------------------------------------------------------------- reading


class SqliteReader:
    """Reads through connections that `connect` makes and that are kept for the next read."""

    def __init__(self, name: str, connect: _Connect) -> None:
        self.name = name
        self._connect = connect
        self._idle: list[sqlite3.Connection] = []
        self._iterating: set[sqlite3.Connection] = set()
        self._closed = False

    def get(self, key: bytes) -> bytes | None:
        self._check_open()
        try:
            connection = self._take()
            # All rows: a statement that is not run to its end would keep on seeing what it saw.
            rows = connection.execute("SELECT v FROM kv WHERE k = ?", (key,)).fetchall()
        except sqlite3.Error as problem:
            raise _read_error(self.name, problem) from problem
        self._give_back(connection)
        return rows[0][0] if rows else None

    def items(self, start: bytes, stop: bytes | None, reverse: bool = False) -> Iterator[tuple[bytes, bytes]]:
        return self._iterate("k, v", start, stop, reverse)

    def keys(self, start: bytes, stop: bytes | None, reverse: bool = False) -> Iterator[bytes]:
        return (key for (key,) in self._iterate("k", start, stop, reverse))

    def load_identity(self) -> bytes | None:
        return read_identity_file(self.name)

    def _close_reads(self) -> None:
        """Nothing is read any more: no iteration goes on either."""
        self._closed = True
        for connection in (*self._idle, *self._iterating):
            connection.close()
        self._idle.clear()
        self._iterating.clear()

    def _iterate(self, columns: str, start: bytes, stop: bytes | None, reverse: bool) -> Iterator[Any]:
        self._check_open()
        below, bounds = ("", (start,)) if stop is None else ("AND k < ?", (start, stop))
        query = f"SELECT {columns} FROM kv WHERE k >= ? {below} ORDER BY k {'DESC' if reverse else 'ASC'}"
        last: bytes | None = None
        connection: sqlite3.Connection | None = None
        rows: sqlite3.Cursor | None = None
        try:
            connection = self._take()
            self._iterating.add(connection)
            rows = connection.execute(query, bounds)
            for row in rows:
                key = row[0]
                if last is not None and (key >= last if reverse else key <= last):
                    raise CorruptRecord(f"key {key[:32].hex()} is out of order")
                last = key
                yield row
        except sqlite3.Error as problem:
            self._check_open()  # the reader was closed under the iteration
            raise _read_error(self.name, problem) from problem
        finally:
            if connection is not None and not self._closed:
                if rows is not None:
                    rows.close()
                self._iterating.discard(connection)
                self._give_back(connection)

    def _take(self) -> sqlite3.Connection:
        return self._idle.pop() if self._idle else self._connect()

    def _give_back(self, connection: sqlite3.Connection) -> None:
        self._idle.append(connection)

    def _check_open(self) -> None:
        if self._closed:
            raise StorageError(f"{self.name}: the store is closed")


class _SqliteView(SqliteReader):
    """Reads of one moment: all by one connection, within one transaction."""

    def __init__(self, backend: SqliteBackend) -> None:
        super().__init__(backend.name, lambda: self._connection)
        self._views = backend._views
        self._connection = backend._connect()
        self._views.add(self)
        self._connection.execute("BEGIN")
        # The moment is that of the first read.
        self._connection.execute("SELECT count FROM syncs").fetchall()

    def _take(self) -> sqlite3.Connection:
        return self._connection  # however many statements are under way

    def _give_back(self, connection: sqlite3.Connection) -> None:
        pass

    def _close_reads(self) -> None:
        self._views.discard(self)
        super()._close_reads()
        self._connection.close()

    def close(self) -> None:
        self._close_reads()


# ------------------------------------------------------------------------------------------------------- backend


class SqliteBatch:
    """Puts and deletes (None) by key: the last one of a key counts."""

    __slots__ = ("ops", "size_bytes")

    def __init__(self) -> None:
        self.ops: dict[bytes, bytes | None] = {}
        self.size_bytes = 0

    def put(self, key: bytes, value: bytes) -> None:
        self.ops[key] = value
        self.size_bytes += len(key) + len(value)

    def delete(self, key: bytes) -> None:
        self.ops[key] = None
        self.size_bytes += len(key)


class SqliteBackend(SqliteReader, ThreadedBackend):
    """The backend on an open database; takes over the database and starts its writer thread."""

    def __init__(self, name: str, database: Database, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(name, database.connect)
        self._database = database
        self._views: set[_SqliteView] = set()
        # Belong to the writer thread.
        self._synchronous = "FULL"
        self._unsynced = False
        self._start_writer(database.real, loop)

    def batch(self) -> RawBatch:
        return SqliteBatch()

    def view(self) -> View:
        """Return reads of this very moment. While it is open the log only grows. Raises StorageError."""
        self._check_open()
        try:
            return _SqliteView(self)
        except sqlite3.Error as problem:
            raise _read_error(self.name, problem) from problem

    def _close_reads(self) -> None:
        for view in list(self._views):
            view.close()
        super()._close_reads()

    def _size(self, batch: Any) -> int:
        return int(batch.size_bytes)

    def _append(self, batch: Any, more: Any) -> None:
        batch.ops.update(more.ops)
        batch.size_bytes += more.size_bytes

    def _write_synced(self, batch: Any) -> None:
        self._commit(batch, "FULL")

    def _write_unsynced(self, batch: Any) -> None:
        self._commit(batch, "NORMAL")

    def _commit(self, batch: SqliteBatch, synchronous: str) -> None:
        writes = self._database.writes
        try:
            if synchronous != self._synchronous:
                writes.execute(f"PRAGMA synchronous={synchronous}")
                self._synchronous = synchronous
            before = writes.total_changes
            writes.execute("BEGIN IMMEDIATE")
            puts = [(key, value) for key, value in batch.ops.items() if value is not None]
            writes.executemany(_PUT, puts)
            if len(puts) < len(batch.ops):
                deletes = [(key,) for key, value in batch.ops.items() if value is None]
                writes.executemany("DELETE FROM kv WHERE k = ?", deletes)
            if synchronous == "FULL" and self._unsynced and writes.total_changes == before:
                # A commit without a change would not sync what was written before it.
                writes.execute("UPDATE syncs SET count = count + 1")
            writes.execute("COMMIT")
            self._unsynced = synchronous != "FULL"
        except sqlite3.Error as problem:
            # What was begun is rolled back when the connection is closed: nothing is written through it any more.
            raise _as_system_error(problem) from problem

    def _close_database(self) -> None:
        try:
            self._database.close()
        except sqlite3.Error as problem:
            raise _as_system_error(problem) from problem
