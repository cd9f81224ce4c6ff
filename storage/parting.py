"""Files that LevelDB removes give their room back here, in a thread of its own.

LevelDB removes files while it holds its one lock, and every read waits for that lock, on the loop, too. A file system
may take a tenth of a second to free 64 MiB (ext4 that tells the disk about it, `discard`, was seen to). But a file that
somebody has open loses nothing but its name when it is removed: its room is given back when it is closed for the last
time. So every log and table is opened here, soon after it came up, and closed here once its name is gone. On a disk
that has little room left none is: there, room that comes a moment later may come too late.

Rules of this file: nothing is read or written by these descriptors; whatever goes wrong costs time, never data, so it
is passed over; who writes says so, and a database that nobody writes to is not looked at.
"""

from __future__ import annotations

import contextlib
import os
import resource
import threading
from typing import Final

ROOM_BYTES: Final = 512 * 1024 * 1024

_SUFFIXES: Final = (".log", ".ldb")
_LOOK_S: Final = 0.25
_LOOK_AFTER_BYTES: Final = 1024 * 1024
_QUIET_LOOKS: Final = 20
_MOST: Final = 10_000
_SHARE: Final = 8  # of the descriptors that the process may have


class PartingFiles:
    """Holds a LevelDB directory's files open; see the top of the file.

    database_dir  the directory, which is there
    room_bytes    files are held only while so much is free on their disk
    most          how many files are held at once at most, logs first; None: an eighth of what the process may have open
    """

    def __init__(self, database_dir: str, most: int | None = None, room_bytes: int = ROOM_BYTES) -> None:
        self._dir = database_dir
        self._most = _share_of_descriptors() if most is None else most
        self._room_bytes = room_bytes
        self._held: dict[str, int] = {}
        self._written = 0
        self._wanted = threading.Event()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"multiraft-parting {database_dir}", daemon=True)
        with contextlib.suppress(RuntimeError):  # no thread to be had
            self._thread.start()

    def wrote(self, size_bytes: int) -> None:
        """So much was written: files may come and go. Called by one thread."""
        self._written += size_bytes
        if self._written >= _LOOK_AFTER_BYTES:
            self._written = 0
            self._wanted.set()

    def close(self) -> None:
        """Let go of everything; returns when that is done."""
        self._ended.set()
        self._wanted.set()
        if self._thread.ident is not None:
            self._thread.join()

    def _run(self) -> None:
        try:
            quiet = 0
            while not self._ended.is_set():
                quiet = 0 if self._look() else quiet + 1
                if quiet < _QUIET_LOOKS:
                    self._ended.wait(_LOOK_S)
                else:
                    self._wanted.wait()
                    self._wanted.clear()
                    quiet = 0
        finally:
            self._let_go(set(self._held))

    def _look(self) -> bool:
        """Return whether anything came or went."""
        try:
            names = {name for name in os.listdir(self._dir) if name.endswith(_SUFFIXES)}
            system = os.statvfs(self._dir)
        except OSError:
            return False
        if system.f_bavail * system.f_frsize < self._room_bytes:
            names.clear()
        gone = self._held.keys() - names
        self._let_go(gone)
        came = sorted(names - self._held.keys(), key=lambda name: not name.endswith(".log"))
        taken = came[: max(0, self._most - len(self._held))]
        for name in taken:
            with contextlib.suppress(OSError):  # removed meanwhile, or no descriptor to be had
                self._held[name] = os.open(os.path.join(self._dir, name), os.O_RDONLY | os.O_CLOEXEC)
        return bool(gone or taken)

    def _let_go(self, names: set[str]) -> None:
        for name in names:
            os.close(self._held.pop(name))


def _share_of_descriptors() -> int:
    most, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return _MOST if most == resource.RLIM_INFINITY else min(_MOST, most // _SHARE)
