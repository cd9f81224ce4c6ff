"""What LevelDB does not promise: that an unsynced write is safe once a later one is synced.

LevelDB syncs the file that a write goes to. When its memtable is full it closes that file, its write-ahead log, without
syncing it, and goes on with the next one. What lies unsynced in the old file stays in danger until the memtable is
written out, some time later, while a synced write to the new file is told as durable; after a loss of power the later
write would be there and earlier ones not. So the old file is synced here, by a descriptor of our own, before anything
that was written to the new one is told to anybody.

What remains: the power fails in the moment between the first write to the new file and the sync of the old one, AND
the kernel has put that first write, milliseconds old, on the disk by itself by then, AND not the older one.

Rules of this file: called by the writer thread alone, around each write; raises OSError, which is a failed write.
"""

from __future__ import annotations

import os


class LogWatch:
    """The write-ahead log that LevelDB writes to now, and whether something in it is not synced."""

    def __init__(self, database_dir: str) -> None:
        self._dir = database_dir
        self._file: int | None = None
        self._size = 0
        self._unsynced = False

    def before_unsynced(self) -> None:
        """An unsynced write comes: from the first one on, the log's file is watched."""
        if self._file is None:
            self._open()

    def wrote(self, synced: bool) -> None:
        """A write has returned. If it went to another file, the one before is synced now."""
        if self._file is None:
            return
        size = os.fstat(self._file).st_size
        if size > self._size:
            self._size = size
        else:
            if self._unsynced:
                os.fsync(self._file)
            self.close()
            self._open()
        self._unsynced = not synced

    def close(self) -> None:
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def _open(self) -> None:
        logs = [name for name in os.listdir(self._dir) if name.endswith(".log") and name[:-4].isdigit()]
        if not logs:
            raise FileNotFoundError(f"{self._dir} has no write-ahead log")
        newest = max(logs, key=lambda name: int(name[:-4]))
        self._file = os.open(os.path.join(self._dir, newest), os.O_RDONLY)
        self._size = os.fstat(self._file).st_size
