"""The outbox: what waits to be written to one connection, in two lanes.

Lane 1 (urgent) has beats, votes and changes of the lead set; lane 2 (bulk) everything else. A frame is taken from
lane 1 as long as it has anything. An outbox belongs to one connection and is forgotten with it, so nothing that was
queued for an earlier incarnation of the peer can reach a later one.

Bounds: three quarters of the limit are for bulk and one quarter is kept for urgent messages, so that a full bulk lane
never costs the connection. A lane that is empty takes one message whatever its size.

Rules of this file: no I/O, no clock; a message is encoded before it comes here; order within a lane never changes.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Final

from multiraft.transport.frames import (
    BULK,
    BULK_CHUNK,
    FRAME_HEADER_BYTES,
    URGENT,
    URGENT_CHUNK,
    chunk_frame,
    messages_frame,
)

_URGENT_SHARE: Final = 4


class _Lane:
    """One queue. Each message has a ticket: its number in the lane, from 1.

    taken   ticket of the last message of which at least a part was put into a frame
    offset  how much of the first message has left as chunks
    """

    __slots__ = ("added", "chunk_kind", "kind", "limit_bytes", "offset", "queue", "size_bytes", "taken")

    def __init__(self, kind: int, chunk_kind: int, limit_bytes: int) -> None:
        self.kind = kind
        self.chunk_kind = chunk_kind
        self.limit_bytes = limit_bytes
        self.queue: deque[bytes] = deque()
        self.size_bytes = 0
        self.offset = 0
        self.added = 0
        self.taken = 0

    def add(self, encoded: Sequence[bytes], size_bytes: int) -> bool:
        if self.size_bytes + size_bytes > self.limit_bytes and (self.queue or len(encoded) > 1):
            return False
        self.queue.extend(encoded)
        self.size_bytes += size_bytes
        self.added += len(encoded)
        return True

    def next_frame(self, room_bytes: int) -> bytes:
        queue = self.queue
        if self.offset or len(queue[0]) > room_bytes:
            return self._next_chunk(room_bytes)
        taken = [queue.popleft()]
        size_bytes = len(taken[0])
        while queue and size_bytes + len(queue[0]) <= room_bytes:
            encoded = queue.popleft()
            size_bytes += len(encoded)
            taken.append(encoded)
        self.size_bytes -= size_bytes
        self.taken += len(taken)
        return messages_frame(self.kind, taken)

    def _next_chunk(self, room_bytes: int) -> bytes:
        encoded = self.queue[0]
        frame = chunk_frame(self.chunk_kind, encoded, self.offset, room_bytes)
        if self.offset == 0:
            self.taken += 1
        self.offset += room_bytes
        if self.offset >= len(encoded):
            self.queue.popleft()
            self.size_bytes -= len(encoded)
            self.offset = 0
        return frame


class Outbox:
    """What waits for one connection.

    frame_bytes  the largest frame that both sides take
    wake         called when the outbox has just stopped being empty
    """

    __slots__ = ("_bulk", "_room_bytes", "_urgent", "_wake")

    def __init__(self, limit_bytes: int, frame_bytes: int, wake: Callable[[], None]) -> None:
        kept_bytes = limit_bytes // _URGENT_SHARE
        self._urgent = _Lane(URGENT, URGENT_CHUNK, kept_bytes)
        self._bulk = _Lane(BULK, BULK_CHUNK, limit_bytes - kept_bytes)
        self._room_bytes = frame_bytes - FRAME_HEADER_BYTES
        self._wake = wake

    def add(self, encoded: Sequence[bytes], urgent: bool) -> bool:
        """Queue these encodings, all or none. False: the lane's bound is reached."""
        if not encoded:
            return True
        was_empty = not self._bulk.queue and not self._urgent.queue
        lane = self._urgent if urgent else self._bulk
        size_bytes = len(encoded[0]) if len(encoded) == 1 else sum(map(len, encoded))
        if not lane.add(encoded, size_bytes):
            return False
        if was_empty:
            self._wake()
        return True

    def next_frame(self) -> bytes | None:
        """Take and return the next frame; None when nothing waits."""
        if self._urgent.queue:
            return self._urgent.next_frame(self._room_bytes)
        if self._bulk.queue:
            return self._bulk.next_frame(self._room_bytes)
        return None

    @property
    def bulk_ticket(self) -> int:
        """The ticket of the bulk message queued last; 0 before the first."""
        return self._bulk.added

    def bulk_left(self, ticket: int) -> bool:
        """Whether at least a part of the bulk message with this ticket was put into a frame."""
        return ticket <= self._bulk.taken

    @property
    def size_bytes(self) -> int:
        return self._urgent.size_bytes + self._bulk.size_bytes
