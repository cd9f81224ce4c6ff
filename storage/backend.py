"""What a store needs from the thing that keeps its bytes: an ordered map with atomic, synced batches.

Several backends exist, and one contract suite holds for all of them. The store above them knows what keys mean; a
backend does not.

Rules of this file: protocols only. Everything is called on the loop's thread. Reads raise CorruptRecord for damage
that the backend itself notices and StorageError for everything else, never an error of the library underneath.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Protocol, TypeAlias

from multiraft.ports import SnapshotFiles

Done: TypeAlias = Callable[[Exception | None], None]


class RawBatch(Protocol):
    """Puts and deletes that reach the disk together or not at all; in order: the last one of a key counts."""

    def put(self, key: bytes, value: bytes) -> None: ...

    def delete(self, key: bytes) -> None: ...


class Reads(Protocol):
    """What can be asked of a place."""

    @property
    def name(self) -> str:
        """What a message to the operator calls this place: the path of the data directory."""
        ...

    def get(self, key: bytes) -> bytes | None: ...

    def items(self, start: bytes, stop: bytes | None, reverse: bool = False) -> Iterator[tuple[bytes, bytes]]:
        """Yield keys and values with start <= key < stop (None: to the end), in order of the keys or against it."""
        ...

    def keys(self, start: bytes, stop: bytes | None, reverse: bool = False) -> Iterator[bytes]:
        """The same, keys only: values are not copied."""
        ...


class Reader(Reads, Protocol):
    """Reads of a place as it is. They see a write at the latest when its completion is delivered."""

    def load_identity(self) -> bytes | None:
        """Return what `save_identity` stored, apart from all other keys; None if it never did."""
        ...


class View(Reads, Protocol):
    """Reads of the place as it was when the view was made: every write that was then complete, none begun since."""

    def close(self) -> None:
        """Let go of it. It keeps what it shows from being reclaimed. Idempotent; closing the backend does it too."""


class Backend(Reader, Protocol):
    """One open place. After a failed write nothing is written through it, nor acknowledged, any more."""

    @property
    def syncs(self) -> int:
        """How many synced writes have completed. Batches that were waiting together may share one."""

    @property
    def unreadable(self) -> str:
        """What could not be read of the database's own files, since the opening; empty: nothing."""

    def view(self) -> View:
        """Return reads of this very moment; on the loop's thread, like all others."""
        ...

    @property
    def files(self) -> SnapshotFiles:
        """The snapshot files beside the database."""
        ...

    def batch(self) -> RawBatch: ...

    def submit(self, batch: RawBatch, done: Done, sync: bool = True) -> None:
        """Write and sync `batch` after all earlier ones, then call `done` from the loop; never before returning.

        Without `sync`, `done` comes when it is written: a crash of this process does not lose it, one of the machine
        may, with every unsynced batch after it and never one before. A synced batch makes all before it durable: when
        its `done` comes, nothing that was submitted earlier can be lost.

        The batch belongs to the backend from here on. `done` gets None, or a StorageError with the cause of the
        failure (an OSError with its errno, where there was one) as `__cause__`.
        """

    def write(self, batch: RawBatch) -> None:
        """Write and sync `batch` after all submitted ones, and wait for it. Raises StorageError."""

    def save_identity(self, raw: bytes) -> None:
        """Store `raw`, apart from all other keys; replaced as a whole, and synced on return. Raises StorageError."""

    async def finish(self, final: RawBatch) -> bool:
        """Finish what was submitted, write `final`, and return once every `done` has been called.

        Called once, and nothing is submitted after it. False: a write has failed, and `final` was not written.
        """
        ...

    async def close(self) -> None:
        """Let go of the place, after `finish`."""

    def abandon(self) -> None:
        """Finish what was submitted and let go, blocking, without calling `done`: for an opening that failed."""
