"""Snapshot files in a directory of their own, written and read by a thread of their own.

    data_dir/snapshots/NAME        whole: synced, then renamed, then its directory synced
    data_dir/snapshots/NAME.part   being written, or left over from an interruption

Files are large and slow, and the database's writer must not wait for them; nor must the loop.

Rules of this file: the thread is started by the first use, and ends with the store; a file has its name only when all
of it is on disk; what is written is synced every few megabytes, so that the last sync is short and an interruption
loses little.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import queue
import threading
from collections.abc import Callable
from typing import Any, Final

from multiraft.errors import NoSuchFile, StorageError
from multiraft.ports import SnapshotSink
from multiraft.storage.directory import storage_error, sync_directory

SNAPSHOTS_DIR: Final = "snapshots"
PART: Final = ".part"
SYNC_BYTES: Final = 1024 * 1024

_Done = Callable[[Any], None]


class DirectoryFiles:
    """`multiraft.ports.SnapshotFiles` in the data directory `path`. Completions come on `loop`."""

    def __init__(self, path: str, loop: asyncio.AbstractEventLoop) -> None:
        self.directory = os.path.join(path, SNAPSHOTS_DIR)
        self._loop = loop
        self._jobs: queue.SimpleQueue[tuple[Callable[[], object], _Done | None] | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._closed = False

    def create(self, name: str) -> SnapshotSink:
        return _DirectorySink(self, name, 0)

    def partial(self, name: str) -> SnapshotSink:
        try:
            size_bytes = os.path.getsize(self.path_of(name) + PART)
        except OSError:
            size_bytes = 0
        return _DirectorySink(self, name, size_bytes)

    def read(self, name: str, offset: int, size_bytes: int, done: Callable[[bytes | Exception], None]) -> None:
        def read() -> bytes:
            try:
                with open(self.path_of(name), "rb") as file:
                    file.seek(offset)
                    return file.read(size_bytes)
            except FileNotFoundError:
                raise NoSuchFile(f"there is no snapshot file {name}") from None

        self.run(read, done)

    def size(self, name: str) -> int:
        try:
            return os.path.getsize(self.path_of(name))
        except OSError as problem:
            raise NoSuchFile(f"there is no snapshot file {name}") from problem

    def names(self) -> list[str]:
        try:
            return sorted({name.removesuffix(PART) for name in os.listdir(self.directory)})
        except FileNotFoundError:
            return []
        except OSError as problem:
            raise storage_error(self.directory, "cannot be read", problem) from problem

    def delete(self, name: str) -> None:
        def delete() -> None:
            for path in (self.path_of(name), self.path_of(name) + PART):
                with contextlib.suppress(FileNotFoundError):
                    os.remove(path)

        self.run(delete, None)

    def close(self) -> None:
        """Finish what was begun, and end the thread; no `done` is called any more. Idempotent; blocks."""
        if not self._closed:
            self._closed = True
            self._jobs.put(None)
            if self._thread is not None:
                self._thread.join()

    def path_of(self, name: str) -> str:
        return os.path.join(self.directory, name)

    # ------------------------------------------------------------------------------------------------- the thread

    def run(self, job: Callable[[], object], done: _Done | None) -> None:
        """Have the thread do `job`; then call `done`, on the loop, with what it returned or raised."""
        if self._closed:
            raise StorageError(f"{self.directory}: the store is closed")
        self._jobs.put((job, done))
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name=f"multiraft-files {self.directory}", daemon=True)
            self._thread.start()

    def _run(self) -> None:
        while (asked := self._jobs.get()) is not None:
            job, done = asked
            try:
                result = job()
            except OSError as problem:
                result = storage_error(self.directory, "cannot be used", problem)
            except Exception as problem:
                result = problem
            if done is None:
                continue
            with contextlib.suppress(RuntimeError):  # the loop is closed: there is nobody left to tell
                self._loop.call_soon_threadsafe(self._deliver, done, result)

    def _deliver(self, done: _Done, result: object) -> None:
        if not self._closed:
            done(result)


class _DirectorySink:
    """One file that is being written; everything but the counting happens in the thread."""

    def __init__(self, files: DirectoryFiles, name: str, size_bytes: int) -> None:
        self.size_bytes = size_bytes
        self._files = files
        self._path = files.path_of(name)
        self._resumed_bytes = size_bytes
        self._over = False
        # Belong to the thread.
        self._descriptor: int | None = None
        self._unsynced_bytes = 0
        self._problem: Exception | None = None

    def write(self, piece: bytes, done: Callable[[Exception | None], None]) -> None:
        self.size_bytes += len(piece)
        self._files.run(lambda: self._do(lambda: self._write(piece)), done)

    def commit(self, done: Callable[[Exception | None], None]) -> None:
        self._over = True
        self._files.run(lambda: self._do(self._commit), done)

    def pause(self) -> None:
        if not self._over:
            self._over = True
            self._files.run(self._close, None)

    def abort(self) -> None:
        if not self._over:
            self._over = True
            self._files.run(self._abort, None)

    def _do(self, step: Callable[[], None]) -> Exception | None:
        if self._problem is None:
            try:
                step()
            except OSError as problem:
                self._problem = storage_error(self._path, "cannot be written", problem)
                self._abort()
        return self._problem

    def _open(self) -> int:
        if self._descriptor is None:
            if not os.path.isdir(self._files.directory):
                os.makedirs(self._files.directory, exist_ok=True)
                sync_directory(os.path.dirname(self._files.directory))
            flags = os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | (0 if self._resumed_bytes else os.O_TRUNC)
            self._descriptor = os.open(self._path + PART, flags, 0o644)
            os.lseek(self._descriptor, self._resumed_bytes, os.SEEK_SET)
        return self._descriptor

    def _write(self, piece: bytes) -> None:
        descriptor, left = self._open(), memoryview(piece)
        while left:
            written = os.write(descriptor, left)
            if written <= 0:
                raise OSError(errno.EIO, "nothing was written")
            left = left[written:]
        self._unsynced_bytes += len(piece)
        if self._unsynced_bytes >= SYNC_BYTES:
            os.fsync(descriptor)
            self._unsynced_bytes = 0

    def _commit(self) -> None:
        os.fsync(self._open())
        self._close()
        os.replace(self._path + PART, self._path)
        sync_directory(self._files.directory)

    def _close(self) -> None:
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            os.close(descriptor)

    def _abort(self) -> None:
        self._close()
        with contextlib.suppress(FileNotFoundError):
            os.remove(self._path + PART)
