"""A backend's writer thread: batches in, in order; synced writes, and completions back to the loop.

The loop's thread reads; the writer thread writes. A put on the loop's thread would wait behind a large synced batch;
the databases let go of the interpreter's lock while they write, so a thread is enough. Batches that wait together are
merged and share one sync. Completions go back to the loop in order, one wake-up for all that are finished.

Rules of this file: nothing but the writer thread writes or closes the database; nothing thrown in it is lost; after a
failed write nothing is written or acknowledged again; a batch that need not be synced keeps its place among the others.
"""

from __future__ import annotations

import asyncio
import atexit
import queue
import threading
from abc import ABC, abstractmethod
from collections import deque
from typing import Any, Final, TypeAlias

from multiraft import failpoints
from multiraft.errors import StorageError
from multiraft.storage.backend import Done, RawBatch
from multiraft.storage.directory import release, storage_error, write_identity_file
from multiraft.storage.memory import report_failed_completion
from multiraft.storage.snapshot_files import DirectoryFiles

MERGE_BYTES: Final = 4 * 1024 * 1024
"""Batches that wait together are merged up to about this size."""


class _Job:
    """One write; `sync`: it is on disk when it is completed.

    `done` goes to the loop; `waiter` gets the outcome in the writer thread, for who blocks on it.
    """

    __slots__ = ("batch", "done", "sync", "waiter")

    def __init__(self, batch: Any, done: Done | None, waiter: _Waiter | None, sync: bool = True) -> None:
        self.batch = batch
        self.done = done
        self.waiter = waiter
        self.sync = sync


_Waiter: TypeAlias = "queue.SimpleQueue[StorageError | None]"


class ThreadedBackend(ABC):
    """What the backends on a disk share. Beside it a backend is a Reader, which says its name and whether it is closed.

    real  what to release when the database is closed; see `take_in_this_process`
    """

    name: str
    unreadable = ""
    _closed: bool

    def _start_writer(self, real: str, loop: asyncio.AbstractEventLoop) -> None:
        """Begin to write. Raises StorageError, after closing the database, when no thread can be had."""
        self.syncs = 0
        self._loop = loop
        self._real = real
        self.files = DirectoryFiles(self.name, loop)
        # None in the queue ends the writer.
        self._queue: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._completions: deque[tuple[Done, StorageError | None]] = deque()
        self._woken = False
        self._at_end: Done | None = None
        # Belongs to the writer thread.
        self._error: StorageError | None = None
        self._writer = threading.Thread(target=self._run_writer, name=f"multiraft-writer {self.name}", daemon=True)
        try:
            self._writer.start()
        except RuntimeError as problem:
            self._close_database()
            release(real)
            raise StorageError(f"{self.name} cannot be opened: {problem}; raise the limit of threads") from problem
        # A daemon thread must not be inside the database while the interpreter is taken down.
        atexit.register(self.abandon)

    # What differs. All but the first are called in the writer thread.

    @abstractmethod
    def _check_open(self) -> None:
        """Raises StorageError once the backend is closed."""

    @abstractmethod
    def _size(self, batch: Any) -> int:
        """Return about how many bytes the batch holds."""

    @abstractmethod
    def _append(self, batch: Any, more: Any) -> None:
        """Let `batch` do what `more` does, after what it does already."""

    @abstractmethod
    def _write_synced(self, batch: Any) -> None:
        """Write the batch, as a whole or not at all, and sync it with everything written before."""

    @abstractmethod
    def _write_unsynced(self, batch: Any) -> None:
        """Write the batch, as a whole or not at all, after everything written before."""

    def _after_telling(self) -> None:  # noqa: B027 - there may be nothing to do
        """What belongs to the write whose waiters have been told just now, and what none of them waits for."""

    @abstractmethod
    def _close_database(self) -> None: ...

    @abstractmethod
    def _close_reads(self) -> None:
        """On the loop's thread: nothing is read any more, and every iterator and view is closed."""

    def submit(self, batch: RawBatch, done: Done, sync: bool = True) -> None:
        self._check_open()
        self._queue.put(_Job(batch, done, None, sync))

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
        self._close_reads()
        ended: asyncio.Future[None] = self._loop.create_future()
        self._at_end = lambda _: ended.set_result(None)
        self._queue.put(None)
        await ended
        self._join()

    def abandon(self) -> None:
        if not self._closed:
            self._close_reads()
            self._queue.put(None)
        self._join()
        self._completions.clear()

    def _join(self) -> None:
        self.files.close()
        self._writer.join()
        release(self._real)
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
            if error is None:
                try:
                    self._after_telling()
                except BaseException as problem:  # as good as a failed write, to all that follow
                    self._error = storage_error(self.name, "cannot be written", problem)
        try:
            self._close_database()
        except BaseException as problem:
            self._error = storage_error(self.name, "cannot be closed", problem)
        if self._at_end is not None:
            self._completions.append((self._at_end, None))
            self._wake_loop()

    def _write(self, jobs: list[_Job]) -> bool:
        """Write the one job in `jobs`, merged with what waits behind it (added to `jobs`). True: the end was seen."""
        ended = False
        try:
            merged, sync = jobs[0].batch, jobs[0].sync
            size = self._size(merged)
            while size < MERGE_BYTES:
                try:
                    more = self._queue.get_nowait()
                except queue.Empty:
                    break
                if more is None:
                    ended = True
                    break
                jobs.append(more)
                sync = sync or more.sync
                self._append(merged, more.batch)
                size = self._size(merged)
            if self._error is None:
                if failpoints.armed is not None:
                    failpoints.armed(failpoints.DISK_BEFORE_WRITE)
                if sync:
                    self._write_synced(merged)
                    self.syncs += 1
                else:
                    self._write_unsynced(merged)
                if failpoints.armed is not None:
                    failpoints.armed(failpoints.DISK_AFTER_WRITE)
        except BaseException as problem:
            self._error = storage_error(self.name, "cannot be written", problem)
        return ended

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
