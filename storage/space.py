"""The room on the disk under a store, and the ballast: a file that is given up when the disk is full.

A store that found its disk full must be opened again before it can be used, and opening must write: LevelDB turns its
log into a table first. So a file of some megabytes lies in the data directory, allocated in full. When a write finds
no space it is removed, the store is opened in its place, and it is made again when there is room.

    data_dir/BALLAST    `ballast_bytes` that nobody reads

Rules of this file: nothing here needs the store to be open; what cannot be told is None, and never raised; the ballast
is in nobody's way: whatever fails while it is made is said in the log, and there is none.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
from typing import Final

from multiraft.storage.directory import DATABASE_DIRS
from multiraft.storage.memory import MemoryDisk

BALLAST_FILE: Final = "BALLAST"
_OPENING_LEAST_BYTES: Final = 256 * 1024
"""What LevelDB writes at every opening beside what its log holds: a manifest, a log, the first batch."""
_LOGS: Final = (".log", "-wal")
log: Final = logging.getLogger("multiraft.storage")


class FileSpace:
    """The room under a data directory, which need not exist yet.

    ballast_bytes  how large the ballast is to be; 0: there is none
    """

    def __init__(self, path: str, ballast_bytes: int) -> None:
        self.path = path
        self.ballast_bytes = ballast_bytes
        self._file = os.path.join(path, BALLAST_FILE)
        self._told = False

    def free_bytes(self) -> int | None:
        """Return what this user may still write on that file system; None where it cannot be told."""
        try:
            found = os.statvfs(self.path)
        except OSError:
            return None
        return found.f_bavail * found.f_frsize

    def opening_bytes(self) -> int:
        """Return about how much opening the store writes before it gives anything back: what its log holds."""
        total = _OPENING_LEAST_BYTES
        for folder in (self.path, *(os.path.join(self.path, name) for name in DATABASE_DIRS.values())):
            try:
                with os.scandir(folder) as entries:
                    total += sum(entry.stat().st_size for entry in entries if entry.name.endswith(_LOGS))
            except OSError:
                continue  # not there yet, or going away: it holds nothing then
        return total

    def has_ballast(self) -> bool:
        return os.path.lexists(self._file)

    def release_ballast(self) -> int:
        """Remove the ballast, and return how many bytes that has freed; 0: there was none."""
        try:
            size_bytes = os.stat(self._file).st_size
            os.remove(self._file)
        except FileNotFoundError:
            return 0
        except OSError as problem:
            log.warning("%s cannot be removed: %s", self._file, problem.strerror)
            return 0
        return size_bytes

    async def keep_ballast(self, spare_bytes: int) -> None:
        """Make the ballast where it is missing or of another size, if `spare_bytes` stay free beside it."""
        if not self._wants_ballast(spare_bytes):
            return
        try:
            await asyncio.to_thread(self._make)
        except OSError as problem:
            if problem.errno not in (errno.ENOSPC, errno.EDQUOT) and not self._told:
                self._told = True
                log.warning("%s cannot be made: %s; a full disk must be freed by hand", self._file, problem.strerror)

    def _wants_ballast(self, spare_bytes: int) -> bool:
        try:
            size_bytes = os.stat(self._file).st_size
        except OSError:
            size_bytes = 0
        free_bytes = self.free_bytes()
        if size_bytes == self.ballast_bytes or free_bytes is None:
            return False
        return free_bytes + size_bytes - self.ballast_bytes >= spare_bytes

    def _make(self) -> None:
        """Write it beside its place and rename it, so that it is there in full or not at all."""
        if self.ballast_bytes == 0:
            self.release_ballast()
            return
        beside = self._file + ".tmp"
        try:
            descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
            try:
                os.posix_fallocate(descriptor, 0, self.ballast_bytes)
            finally:
                os.close(descriptor)
            os.replace(beside, self._file)
        except OSError:
            if os.path.lexists(beside):
                os.remove(beside)
            raise


class MemorySpace:
    """The same under a MemoryDisk: its twin for tests and simulations."""

    def __init__(self, disk: MemoryDisk, ballast_bytes: int) -> None:
        self.ballast_bytes = ballast_bytes
        self._disk = disk

    def free_bytes(self) -> int | None:
        return self._disk.free_bytes

    def opening_bytes(self) -> int:
        return 1

    def has_ballast(self) -> bool:
        return self._disk.ballast_bytes > 0

    def release_ballast(self) -> int:
        freed, self._disk.ballast_bytes = self._disk.ballast_bytes, 0
        return freed

    async def keep_ballast(self, spare_bytes: int) -> None:
        free_bytes = self._disk.free_bytes
        if self._disk.ballast_bytes != self.ballast_bytes and (
            free_bytes is None or free_bytes + self._disk.ballast_bytes - self.ballast_bytes >= spare_bytes
        ):
            self._disk.ballast_bytes = self.ballast_bytes
