"""A state on its way from a snapshot into what will hold it, bit by bit: from memory, or from a file of this node.

A file is read ahead by one piece, verified frame by frame while it is read and as a whole in the end, and given on for
a slice at a time, so that other groups go on meanwhile.

Rules of this file: nothing is finished before everything is verified.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from typing import Final

from multiraft.errors import CorruptRecord
from multiraft.ports import Clock, SnapshotFiles
from multiraft.snapshot_file import FileReader, Manifest

_READ_BYTES: Final = 256 * 1024


class Loading:
    """One file that is being read into `feed`, chunk by chunk.

    ended  called once with what went wrong, or None; not after `stop`
    then   what follows, whether it ended or was stopped; for whoever stops it
    """

    def __init__(
        self,
        files: SnapshotFiles,
        manifest: Manifest,
        feed: Callable[[bytes], None],
        ended: Callable[[BaseException | None], None],
        loop: asyncio.AbstractEventLoop,
        stopwatch: Clock,
        slice_s: float,
        then: Callable[[], None] = lambda: None,
    ) -> None:
        self._files = files
        self._manifest = manifest
        self._feed = feed
        self._ended: Callable[[BaseException | None], None] | None = ended
        self.then = then
        self._loop = loop
        self._stopwatch = stopwatch
        self._slice_s = slice_s
        self._reader = FileReader(manifest)
        self._offset = 0
        self._chunks: Iterator[bytes] = iter(())
        self._held = False

    def begin(self) -> None:
        """Read the first piece."""
        self._files.read(self._manifest.name, 0, _READ_BYTES, self._was_read)

    def stop(self) -> None:
        """Nobody wants it any more."""
        self._ended = None

    def hold(self) -> None:
        """Give on no more for now; what takes it has no room."""
        self._held = True

    def go_on(self) -> None:
        """After `hold`: give on what follows, soon."""
        if self._held:
            self._held = False
            self._loop.call_soon(self._go_on)

    def _was_read(self, piece: bytes | Exception) -> None:
        if self._ended is None:
            return
        if isinstance(piece, Exception):
            self._end(piece)
        elif not piece and self._offset < self._manifest.size_bytes:
            self._end(CorruptRecord(f"snapshot file {self._manifest.name} ends too early"))
        else:
            self._offset += len(piece)
            self._chunks = self._reader.feed(piece)
            self._go_on()

    def _go_on(self) -> None:
        """Give on what was read, for a slice; then the rest, or the next piece."""
        was_held = self._held
        if was_held:
            return
        until_s = self._stopwatch() + self._slice_s
        try:
            for chunk in self._chunks:
                if self._ended is None:
                    return
                self._feed(chunk)
                if self._held:
                    return
                if self._stopwatch() >= until_s:
                    self._loop.call_soon(self._go_on)
                    return
            if self._ended is None:
                return
            if self._offset < self._manifest.size_bytes:
                self._files.read(self._manifest.name, self._offset, _READ_BYTES, self._was_read)
                return
            self._reader.finish()
        except Exception as problem:
            self._end(problem)
            return
        self._end(None)

    def _end(self, problem: BaseException | None) -> None:
        ended, self._ended = self._ended, None
        if ended is not None:
            ended(problem)
