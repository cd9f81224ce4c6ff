"""A fresh keyspace, filled with what a leader has sent, before the replica is switched to it.

    begun ──> fed, piece by piece, in batches that are not synced ──> all written ──> the snapshot is handed to the core
                                                                                     ──> one synced batch switches

A crash before the switch leaves a keyspace that no replica names, which the next start deletes. The switch is synced,
and what was written before it is durable with it.

Rules of this file: no more than a bound is on its way to the store; whoever feeds asks for room first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Final

from multiraft import failpoints
from multiraft.engine.keyspace import ReplicaData
from multiraft.types import Applied, Index, SpaceId, Term

if TYPE_CHECKING:
    from multiraft.engine.engine import Engine
    from multiraft.ports import WriteBatch

_UNDER_WAY_BYTES: Final = 256 * 1024


class Filling:
    """One keyspace that is being filled, for the replica whose data are `data`.

    space  its id
    """

    def __init__(self, engine: Engine, data: ReplicaData, has_room: Callable[[], None]) -> None:
        """`has_room` is called when there is room again for more, after there was none."""
        self._engine = engine
        self._data = data
        self._has_room = has_room
        self._under_way_bytes = 0
        self._ended = False
        self.space: SpaceId = 0
        engine.writer.write(self._draw, _nothing, sync=False)

    @property
    def room(self) -> bool:
        """Whether to feed more now."""
        return self._under_way_bytes < _UNDER_WAY_BYTES

    def feed(self, pairs: Iterable[tuple[bytes, bytes]]) -> None:
        """Take keys (with the byte of their part) and values: a piece of some 64 KiB, or one pair."""
        taken = list(pairs)
        size_bytes = sum([len(key) + len(value) for key, value in taken])
        self._under_way_bytes += size_bytes

        def put(batch: WriteBatch) -> None:
            for key, value in taken:
                batch.put_data(self.space, key, value)

        self._engine.writer.write(put, lambda: self._written(size_bytes), sync=False)
        self._engine.wake()

    def finish(self, index: Index, term: Term, time_ms: int, value: int, then: Callable[[], None]) -> None:
        """All of it was fed: it is the state as of `index`, with that clock and rolling hash.

        `then` is called when all is written. Hand the leader's snapshot to the core in it.
        """

        def filled() -> None:
            if self._ended:
                return
            self._ended = True
            if failpoints.armed is not None:
                failpoints.armed(failpoints.SPACE_FILLED)
            self._engine.ondisk.arrived(self._data, Applied(index, term, time_ms, value, self.space))
            then()

        self._engine.writer.write(_nothing_in, filled, sync=False)
        self._engine.wake()

    def abandon(self) -> None:
        """It will not be finished: delete what there is. Idempotent."""
        if not self._ended:
            self._ended = True
            self._engine.ondisk.spaces.delete_once_written(self.space)

    def _draw(self, batch: WriteBatch) -> None:
        self.space = self._engine.store.new_space(batch)

    def _written(self, size_bytes: int) -> None:
        waited = not self.room
        self._under_way_bytes -= size_bytes
        if waited and self.room and not self._ended:
            self._has_room()


def _nothing() -> None:
    pass


def _nothing_in(batch: WriteBatch) -> None:
    pass
