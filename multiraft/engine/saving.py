"""A state on its way into a snapshot: taken bit by bit, kept in memory while it is small, a file once it is not.

    chunks of the state ──> joined, while they are at most `inline_bytes` ──> data
                       └──> frames ──> the file's thread ──> synced and named ──> manifest

Chunks are taken for a slice of a turn at a time; while the disk lags behind no more are taken. The taking is over when
the last chunk was taken, and the saving when all is on disk.

Rules of this file: a file is whole and synced before anybody hears its name; what fails leaves nothing behind.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from math import inf
from typing import Final

from multiraft.ports import Clock, SnapshotFiles, SnapshotSink
from multiraft.snapshot_file import FileWriter, Manifest
from multiraft.types import Index

_PIECE_BYTES: Final = 64 * 1024
_PIECES_UNDER_WAY: Final = 16
Saved = Callable[[bytes | Exception], None]


class Saving:
    """One state that is being saved.

    taken   whether its last chunk was taken: from then on the machine may change
    waits   whether no chunk is taken now, because the disk lags behind
    """

    def __init__(
        self,
        files: SnapshotFiles,
        name: str,
        chunks: Iterator[bytes],
        inline_bytes: int,
        described: tuple[Index, int, int, str],
        wake: Callable[[], None],
        saved: Saved,
    ) -> None:
        """`described`: index, time_ms, hash and kind of the manifest. `wake`: chunks may be taken again. `saved`: gets
        the snapshot's data, or what went wrong; called once, from `take` or later, unless the saving is stopped.
        """
        self.name = name
        self.taken = False
        self._files = files
        self._chunks = chunks
        self._inline_bytes = inline_bytes
        self._described = described
        self._wake = wake
        self._saved: Saved | None = saved
        self._kept: list[bytes] = []
        self._kept_bytes = 0
        self._writer = FileWriter()
        self._sink: SnapshotSink | None = None
        self._under_way = 0

    @property
    def waits(self) -> bool:
        return self._under_way >= _PIECES_UNDER_WAY

    def take(self, until_s: float, stopwatch: Clock, most_bytes: float = inf) -> int:
        """Take chunks until the stopwatch passes `until_s`, `most_bytes` were taken, the disk lags behind, or there are
        no more. Return how many bytes were taken.
        """
        taken_bytes = 0
        try:
            while not self.taken and not self.waits:
                chunk = next(self._chunks, None)
                if chunk is None:
                    self.taken = True
                elif chunk:
                    taken_bytes += len(chunk)
                    self._add(chunk)
                if taken_bytes >= most_bytes or stopwatch() >= until_s:
                    break
        except BaseException as problem:
            self._fail(problem if isinstance(problem, Exception) else RuntimeError(repr(problem)))
            if not isinstance(problem, Exception):
                raise
            return taken_bytes
        if self.taken and self._saved is not None:
            self._end()  # apart from what the machine raises, since it tells
        return taken_bytes

    def stop(self) -> None:
        """Nobody wants it any more."""
        self.taken = True
        self._saved = None
        if self._sink is not None:
            self._sink.abort()

    def _add(self, chunk: bytes) -> None:
        self._kept.append(chunk)
        self._kept_bytes += len(chunk)
        if self._sink is None and self._kept_bytes > self._inline_bytes:
            self._sink = self._files.create(self.name)
            self._write(self._writer.begin())
        if self._sink is not None and self._kept_bytes >= _PIECE_BYTES:
            self._write(self._frames())

    def _frames(self) -> bytes:
        kept, self._kept, self._kept_bytes = b"".join(self._kept), [], 0
        return self._writer.chunk(kept)

    def _end(self) -> None:
        if self._sink is None:
            self._tell(b"".join(self._kept))
            return
        self._write(self._frames() + self._writer.end())
        self._sink.commit(self._committed)

    def _write(self, piece: bytes) -> None:
        if self._sink is not None:
            self._under_way += 1
            self._sink.write(piece, self._written)

    def _written(self, error: Exception | None) -> None:
        waited = self.waits
        self._under_way -= 1
        if error is not None:
            self._fail(error)
        elif waited and not self.taken:
            self._wake()

    def _committed(self, error: Exception | None) -> None:
        if error is not None:
            self._fail(error)
            return
        if self._saved is None:  # stopped meanwhile
            self._files.delete(self.name)
            return
        index, time_ms, rolling, kind = self._described
        writer = self._writer
        manifest = Manifest(
            self.name, writer.size_bytes, writer.digest(), writer.raw_bytes, index, time_ms, rolling, kind
        )
        self._tell(manifest.encode())

    def _fail(self, problem: Exception) -> None:
        self.taken = True
        if self._sink is not None:
            self._sink.abort()
        self._tell(problem)

    def _tell(self, outcome: bytes | Exception) -> None:
        saved, self._saved = self._saved, None
        if saved is not None:
            saved(outcome)
