"""Snapshot files on a disk in memory: the twin of `snapshot_files.py`, with what a crash does to them.

A crash takes back what was not synced: of a file that is being written, everything behind its last sync. Each piece
written, each commit and each deletion is one of the disk's numbered writes, so that a crash can come between any two.

Rules of this file: no thread; what happens is decided by the calls alone; a dead handle does nothing.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from multiraft.errors import NoSuchFile, StorageError
from multiraft.ports import SnapshotSink

if TYPE_CHECKING:
    from multiraft.storage.memory import MemoryDisk

SYNC_BYTES: Final = 4 * 1024
_Done = Callable[[Any], None]


class Shelf:
    """The files that lie on one disk.

    whole  committed ones
    parts  those that are not: what is written, and how much of that is synced
    """

    def __init__(self) -> None:
        self.whole: dict[str, bytes] = {}
        self.parts: dict[str, tuple[bytearray, int]] = {}

    @property
    def size_bytes(self) -> int:
        """Of all files."""
        return sum(map(len, self.whole.values())) + sum(len(part) for part, _ in self.parts.values())

    def crash(self) -> None:
        """Take back what was not synced."""
        self.parts = {name: (part[:synced], synced) for name, (part, synced) in self.parts.items() if synced}

    def copy(self) -> Shelf:
        """Return what a crash would leave now."""
        copied = Shelf()
        copied.whole = dict(self.whole)
        copied.parts = {name: (part[:synced], synced) for name, (part, synced) in self.parts.items() if synced}
        return copied


@dataclass(frozen=True, slots=True)
class DiskImage:
    """What a disk held at one moment, identity file included."""

    values: Mapping[bytes, bytes]
    identity: bytes | None
    shelf: Shelf


class MemoryFiles:
    """`multiraft.ports.SnapshotFiles` on a MemoryDisk, for one opening of it."""

    def __init__(self, disk: MemoryDisk, loop: asyncio.AbstractEventLoop) -> None:
        self.disk = disk
        self._loop = loop
        self._jobs: deque[tuple[Callable[[], object], _Done | None, bool]] = deque()
        self._timer: asyncio.Handle | None = None
        self._dead = False

    def create(self, name: str) -> SnapshotSink:
        return _MemorySink(self, name, 0)

    def partial(self, name: str) -> SnapshotSink:
        part = self.disk.shelf.parts.get(name)
        return _MemorySink(self, name, len(part[0]) if part is not None else 0)

    def read(self, name: str, offset: int, size_bytes: int, done: Callable[[bytes | Exception], None]) -> None:
        def read() -> bytes:
            self.disk._read()
            whole = self.disk.shelf.whole.get(name)
            if whole is None:
                raise NoSuchFile(f"there is no snapshot file {name}")
            return whole[offset : offset + size_bytes]

        self.run(read, done, False)

    def size(self, name: str) -> int:
        whole = self.disk.shelf.whole.get(name)
        if whole is None:
            raise NoSuchFile(f"there is no snapshot file {name}")
        return len(whole)

    def names(self) -> list[str]:
        shelf = self.disk.shelf
        return sorted({*shelf.whole, *shelf.parts})

    def delete(self, name: str) -> None:
        def delete() -> None:
            self.disk.shelf.whole.pop(name, None)
            self.disk.shelf.parts.pop(name, None)

        self.run(delete, None, True)

    def die(self) -> None:
        """The store is closed, or the disk has crashed."""
        self._dead = True
        self._jobs.clear()
        if self._timer is not None:
            self._timer.cancel()

    def finish(self) -> None:
        """Do at once what was begun; nobody is told."""
        while self._jobs and not self._dead:
            self._do_next()

    def kick(self) -> None:
        """Go on, after a hold of the disk."""
        if self._jobs and self._timer is None and not self._dead and not self.disk._hold_writes:
            delay_s = self.disk.delay_s() if self.disk.delay_s is not None else 0.0
            self._timer = self._loop.call_later(delay_s, self._turn) if delay_s else self._loop.call_soon(self._turn)

    def run(self, job: Callable[[], object], done: _Done | None, writes: bool) -> None:
        if not self._dead:
            self._jobs.append((job, done, writes))
            self.kick()

    def _turn(self) -> None:
        self._timer = None
        told = self._do_next()
        if told is not None and not self._dead:
            told()
        self.kick()

    def _do_next(self) -> Callable[[], None] | None:
        """Do the first job; return what tells of it. None: nobody is to be told, or the disk has crashed."""
        job, done, writes = self._jobs.popleft()
        kill = self.disk._begin_write() if writes else None
        if self._dead:
            return None
        try:
            result = job()
        except OSError as problem:
            result = StorageError(f"{self.disk.name}: a snapshot file cannot be used: {problem.strerror or problem}")
            result.__cause__ = problem
        except (NoSuchFile, StorageError) as problem:
            result = problem
        if kill is not None:
            kill()
        return (lambda: done(result)) if done is not None else None


class _MemorySink:
    def __init__(self, files: MemoryFiles, name: str, size_bytes: int) -> None:
        self.size_bytes = size_bytes
        self._files = files
        self._name = name
        self._resumed = bool(size_bytes)
        self._began = self._over = False
        self._problem: StorageError | None = None

    def write(self, piece: bytes, done: Callable[[Exception | None], None]) -> None:
        self.size_bytes += len(piece)
        self._files.run(lambda: self._do(lambda: self._write(piece), len(piece)), done, True)

    def commit(self, done: Callable[[Exception | None], None]) -> None:
        self._over = True
        self._files.run(lambda: self._do(self._commit, 0), done, True)

    def pause(self) -> None:
        self._over = True

    def abort(self) -> None:
        if not self._over:
            self._over = True
            self._files.run(self._remove, None, True)

    def _do(self, step: Callable[[], None], size_bytes: int) -> StorageError | None:
        if self._problem is None:
            try:
                self._files.disk._check_write(size_bytes)
                step()
            except OSError as problem:
                what = f"{self._files.disk.name}: a snapshot file cannot be written: {problem.strerror or problem}"
                self._problem = StorageError(what)
                self._problem.__cause__ = problem
                self._remove()
        return self._problem

    def _part(self) -> tuple[bytearray, int]:
        parts = self._files.disk.shelf.parts
        if not self._began:
            self._began = True
            if not self._resumed or self._name not in parts:
                parts[self._name] = (bytearray(), 0)
        return parts[self._name]

    def _write(self, piece: bytes) -> None:
        part, synced = self._part()
        part += piece
        if len(part) - synced >= SYNC_BYTES:
            synced = len(part)
        self._files.disk.shelf.parts[self._name] = (part, synced)

    def _commit(self) -> None:
        part, _ = self._part()
        shelf = self._files.disk.shelf
        del shelf.parts[self._name]
        shelf.whole[self._name] = bytes(part)

    def _remove(self) -> None:
        self._files.disk.shelf.parts.pop(self._name, None)
