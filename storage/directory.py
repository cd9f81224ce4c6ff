"""The data directory of a node: making it, keeping others out, its IDENTITY file, and errors said in one line.

    data_dir/IDENTITY   identity and latest run, apart from the database, so that a database that lost something shows
    data_dir/db/        LevelDB, where that keeps the store: its LOCK keeps a second process out
    data_dir/sqlite/    SQLite, where that keeps the store: our LOCK beside it does the same

Rules of this file: nothing here knows a database; every error is a StorageError, in one line that says what to do.
"""

from __future__ import annotations

import contextlib
import errno
import os
import struct
import sys
from typing import Final

from multiraft.errors import StorageError, UnreadableStore

IDENTITY_FILE: Final = "IDENTITY"
LOCK_FILE: Final = "LOCK"
UNREADABLE_FILE: Final = "UNREADABLE"
"""Says that a run has met a place in the database that cannot be read: the next start leaves such places out."""
LEVELDB_DIR: Final = "db"
SQLITE_DIR: Final = "sqlite"
DATABASE_DIRS: Final = {"leveldb": LEVELDB_DIR, "sqlite": SQLITE_DIR}
"""Where the database of each kind stands in a data directory."""

HINTS: Final = {
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


# -------------------------------------------------------------------------------------------------- directories


def make_directories(path: str, database: str) -> None:
    """Make the data directory and the database's own in it, where missing. Raises StorageError."""
    try:
        if os.path.lexists(path) and not os.path.isdir(path):
            raise StorageError(f"{path} is not a directory; name a directory (it is made when missing), or remove it")
        if not os.path.isdir(path):
            os.makedirs(path)
            sync_directory(os.path.dirname(os.path.abspath(path)))
        if not os.path.lexists(database):
            os.mkdir(database)
            sync_directory(path)
    except OSError as problem:
        raise storage_error(path, "cannot be made", problem) from problem


def kind_of(path: str) -> str:
    """Return which kind of database the data directory holds; empty where it holds none. Raises StorageError."""
    try:
        for kind, folder in DATABASE_DIRS.items():
            database = os.path.join(path, folder)
            if os.path.isdir(database) and os.listdir(database):
                return kind
    except OSError as problem:
        raise storage_error(path, "cannot be read", problem) from problem
    return ""


def check_kind(path: str, kind: str) -> None:
    """Raises StorageError when the data directory holds a database of another kind."""
    found = kind_of(path)
    if found not in ("", kind):
        raise StorageError(
            f"{path} holds a store of kind {found!r}, but the configuration says {kind!r}; "
            f'say store = "{found}", or name another directory'
        )


def mark_unreadable(path: str, problem: str) -> None:
    """Leave a mark for the next start, as well as can be: the disk is not well."""
    with contextlib.suppress(OSError), open(os.path.join(path, UNREADABLE_FILE), "w", encoding="utf-8") as file:
        file.write(problem + "\n")
        file.flush()
        os.fsync(file.fileno())


def marked_unreadable(path: str) -> str:
    """Return what an earlier run has met; empty: nothing."""
    try:
        with open(os.path.join(path, UNREADABLE_FILE), encoding="utf-8", errors="replace") as file:
            return " ".join(file.read(1_000).split()) or "something"
    except OSError:
        return ""


def in_use_by_this_process(database: str) -> bool:
    return os.path.realpath(database) in _open_here


def take_in_this_process(path: str, database: str) -> str:
    """Note that this process has `database` open, until `release`; return what to release.

    Raises StorageError when it has it open already.
    """
    if in_use_by_this_process(database):
        raise StorageError(f"{path} is in use by this very process; give every node a data directory of its own")
    real = os.path.realpath(database)
    _open_here.add(real)
    return real


def release(real: str) -> None:
    _open_here.discard(real)


def in_use_by_another(path: str, database: str) -> StorageError:
    """Return the error for a directory whose LOCK is held by another process."""
    pid = _lock_holder(os.path.join(database, LOCK_FILE))
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

    Its `__cause__` is an OSError with its errno wherever one can be told. An UnreadableStore where LevelDB says that a
    file of its own is damaged.
    """
    number = errno_of(problem)
    if isinstance(problem, OSError) and problem.errno:
        reason = os.strerror(number)
    else:
        # LevelDB's text names the file.
        reason = message_of(problem)
        if reason.startswith("Corruption"):  # met while LevelDB put its files together, in which it then never goes on
            unreadable = UnreadableStore(
                f"{path} {what}: {reason}; start the node again: it leaves out what cannot be read"
            )
            unreadable.__cause__ = problem
            return unreadable
        problem = OSError(number, os.strerror(number), path) if number else problem
    error = StorageError(f"{path} {what}: {reason}; {HINTS.get(number, 'name another directory, or mend this one')}")
    error.__cause__ = problem
    error.errno = number
    return error


def errno_of(problem: BaseException) -> int:
    """Return the errno, 0 where none can be told; LevelDB only gives its text, after the last colon."""
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
            sync_file(file.fileno())
        os.replace(name + ".tmp", name)
        sync_directory(path)
    except OSError as problem:
        raise storage_error(name, "cannot be written", problem) from problem


def sync_file(descriptor: int) -> None:
    """Bring what was written to the disk, also where fsync leaves it in the drive. Raises OSError."""
    if sys.platform == "darwin":
        import fcntl

        fcntl.fcntl(descriptor, fcntl.F_FULLFSYNC)
    else:
        os.fsync(descriptor)


def sync_directory(path: str) -> None:
    """Bring the directory's entries to the disk. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
