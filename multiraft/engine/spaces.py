"""Keyspaces that nobody needs any more: those of replicas that were removed, and those that another one replaced.

What is deleted is named by nothing on the disk: the batch that took its name away is synced. After a start every
keyspace that no replica names is deleted, whatever a crash has interrupted.

Rules of this file: a bounded number of keys at a time, each batch after the one before is written; one keyspace after
the other.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Final

from multiraft import failpoints
from multiraft.types import SpaceId

if TYPE_CHECKING:
    from multiraft.engine.engine import Engine

_DELETED_AT_ONCE: Final = 1_000


class Spaces:
    """The keyspaces of one engine that are going."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._going: deque[SpaceId] = deque()
        self._after = b""

    def begin(self) -> None:
        """Go on with what a crash has interrupted: whatever no replica names goes.

        Not while a group here is damaged: it may have named what nobody seems to name, and that may be the last copy.
        """
        if len(self._engine.residents.quarantine):
            return
        named = {replica.data.space for replica in self._engine.replicas.values() if replica.data is not None}
        for space in self._engine.store.spaces():
            if space not in named:
                self.delete(space)

    def delete(self, space: SpaceId) -> None:
        """Delete a keyspace: on the disk nothing names it, and every write to it is complete."""
        self._going.append(space)
        if len(self._going) == 1:
            self._step()

    def delete_once_written(self, space: SpaceId) -> None:
        """Delete a keyspace that nothing on the disk names, and that writes may be on their way to."""
        self._engine.writer.write(lambda _: None, lambda: self.delete(space), sync=False)
        self._engine.wake()

    def _step(self) -> None:
        """Delete some of the first one, and come back when that is written."""
        engine = self._engine
        keys: list[bytes] = []
        while self._going and not keys:
            keys = engine.store.read_space(self._going[0], _DELETED_AT_ONCE, self._after)
            self._after = keys[-1] if keys else b""
            if not keys:
                self._going.popleft()
        if keys:
            if failpoints.armed is not None:
                failpoints.armed(failpoints.SPACE_DELETING)
            engine.writer.write(lambda batch: batch.delete_leftovers(keys), self._step, sync=False)
            engine.wake()
