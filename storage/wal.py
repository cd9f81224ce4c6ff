"""What LevelDB does not promise: that an unsynced write is safe once a later one is synced, and that a lost end shows.

LevelDB syncs the file that a write goes to. When its memtable is full it closes that file, its write-ahead log, without
syncing it, and goes on with the next one. What lies unsynced in the old file stays in danger until the memtable is
written out, some time later, while a synced write to the new file is told as durable; after a loss of power the later
write would be there and earlier ones not. So the old file is synced here, by a descriptor of our own, before anything
that was written to the new one is told to anybody.

What remains: the power fails in the moment between the first write to the new file and the sync of the old one, AND
the kernel has put that first write, milliseconds old, on the disk by itself by then, AND not the older one.

A log that ends between two records looks like one that was never longer. So a note beside the logs says how long the
newest one was when something in it was synced last: its number (8 bytes, big-endian), its bytes (8), CRC-32 of both.
The note is never synced itself: it outlives a process that is killed, and whatever is found of it was true. It comes
after those who wait for the write were told, since each call of the system costs this thread the interpreter's lock.

Rules of this file: called by the writer thread alone, before and after each write and when it was told; raises OSError,
which is a failed write, but not for the note, without which nothing is wrong.
"""

from __future__ import annotations

import contextlib
import os
import struct
import zlib
from typing import Final

NOTE_FILE: Final = "SYNCED"
_NOTE: Final = struct.Struct(">QQI")
_NOTED: Final = struct.Struct(">QQ")


class LogWatch:
    """The write-ahead log that LevelDB writes to now, and whether something in it is not synced."""

    def __init__(self, database_dir: str) -> None:
        self._dir = database_dir
        self._file: int | None = None
        self._note: int | None = None
        self._number = 0
        self._size = 0
        self._unsynced = False
        self._looked = True
        self._synced = False

    def before_unsynced(self) -> None:
        """An unsynced write comes: the log that it may be the last one in must be known."""
        if self._file is None:
            self._open()

    def wrote(self, synced: bool) -> None:
        """A write has returned, and nobody was told. What is unsynced in a file that it left is synced now.

        After synced writes alone there is nothing of that kind, and it is looked at when all are told: see `told`.
        """
        if self._unsynced or not synced:
            self._look()
            self._unsynced = not synced
            self._looked = True
        else:
            self._looked = False
        self._synced = synced

    def told(self) -> None:
        """Whoever waited for the last write has been told: what nobody waits for is done now."""
        if not self._looked:
            self._look()
            self._looked = True
        if self._synced:
            self._synced = False
            self._put_down()

    def _look(self) -> None:
        """Which file is written to now? One that was left with something unsynced is synced."""
        if self._file is None:
            self._open()
        else:
            size = os.fstat(self._file).st_size
            if size > self._size:
                self._size = size
            else:
                if self._unsynced:
                    os.fsync(self._file)
                self._close_log()
                self._open()

    def close(self) -> None:
        self._close_log()
        if self._note is not None:
            os.close(self._note)
            self._note = None

    def _close_log(self) -> None:
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def _put_down(self) -> None:
        """All that the log has now is synced: say so beside it."""
        with contextlib.suppress(OSError):
            if self._note is None:
                flags = os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC
                self._note = os.open(os.path.join(self._dir, NOTE_FILE), flags, 0o644)
            noted = _NOTED.pack(self._number, self._size)
            os.pwrite(self._note, noted + zlib.crc32(noted).to_bytes(4, "big"), 0)

    def _open(self) -> None:
        logs = [name for name in os.listdir(self._dir) if name.endswith(".log") and name[:-4].isdigit()]
        if not logs:
            raise FileNotFoundError(f"{self._dir} has no write-ahead log")
        newest = max(logs, key=lambda name: int(name[:-4]))
        self._number = int(newest[:-4])
        self._file = os.open(os.path.join(self._dir, newest), os.O_RDONLY | os.O_CLOEXEC)
        self._size = os.fstat(self._file).st_size


def lost_end(database_dir: str) -> str:
    """Say which log is shorter than it was when it was synced; empty where none is known to be. Raises OSError."""
    try:
        with open(os.path.join(database_dir, NOTE_FILE), "rb") as file:
            raw = file.read(_NOTE.size + 1)
    except FileNotFoundError:
        return ""
    if len(raw) != _NOTE.size or zlib.crc32(raw[: _NOTED.size]) != _NOTE.unpack(raw)[2]:
        return ""  # a note that is no note says nothing
    number, size, _ = _NOTE.unpack(raw)
    name = f"{number:06}.log"
    try:
        found = os.path.getsize(os.path.join(database_dir, name))
    except FileNotFoundError:
        return ""  # all that it had is in tables
    return f"{name}: it ends at {found}, but writes up to {size} were synced" if found < size else ""
