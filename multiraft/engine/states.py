"""What the snapshot of a machine in memory holds, as chunks, and how a replica takes it over.

    format (1 byte) | the replicated clock, milliseconds (8 bytes, big-endian) | the rolling hash (4) |
    the session table (as SessionTable.encode) | what `Machine.snapshot` returned

The same bytes stand in the database where they are few, and in a file where they are many.

Rules of this file: chunks may be cut anywhere; nothing is taken over before all of it has come.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Final

from multiraft.engine.executing import Executor
from multiraft.engine.machine import pieces_of, restoring
from multiraft.engine.sessions import SessionLoader
from multiraft.errors import CorruptRecord

STATE_FORMAT: Final = 2
_HEAD: Final = struct.Struct(">BQI")


def state_chunks(executor: Executor, time_ms: int) -> Iterator[bytes]:
    """Yield the state of a replica; nothing may be applied before the last chunk was taken.

    Raises what the machine's `snapshot` raises, and TypeError for a piece that is no bytes.
    """
    yield _HEAD.pack(STATE_FORMAT, time_ms, executor.rolling.value)
    yield from executor.sessions.encode()
    yield from pieces_of(executor.machine.snapshot())


def head_of(data: bytes) -> tuple[int, int]:
    """Return the replicated clock and the rolling hash that a state begins with; of a founding, which is empty, zeros.

    Raises CorruptRecord.
    """
    if not data:
        return 0, 0
    if len(data) < _HEAD.size or data[0] != STATE_FORMAT:
        raise CorruptRecord(f"a snapshot's data is of format {data[:1].hex()}; this version reads {STATE_FORMAT}")
    _, time_ms, value = _HEAD.unpack_from(data)
    return time_ms, value


class StateLoader:
    """Takes what `state_chunks` yielded, in whatever pieces it comes; `finish` gives it to the replica.

    time_ms, hash  of the snapshot, once `finish` has returned
    """

    def __init__(self, executor: Executor) -> None:
        self.time_ms = 0
        self.hash = 0
        self._executor = executor
        self._restoring = restoring(executor.machine)
        self._sessions = SessionLoader()
        self._head = b""
        self._in_machine = False

    def feed(self, piece: bytes) -> None:
        """Take the next piece. Raises CorruptRecord, and what the machine raises."""
        if len(self._head) < _HEAD.size:
            missing = _HEAD.size - len(self._head)
            self._head += piece[:missing]
            piece = piece[missing:]
            if self._head and self._head[0] != STATE_FORMAT:
                raise CorruptRecord(
                    f"a snapshot's data is of format {self._head[:1].hex()}; this version reads {STATE_FORMAT}"
                )
        if not piece:
            return
        if not self._in_machine:
            rest = self._sessions.feed(piece)
            if rest is None:
                return
            self._in_machine, piece = True, rest
        if piece:
            self._restoring.feed(piece)

    def finish(self) -> None:
        """All has come: the machine and the sessions are what the snapshot says. Raises as `feed`."""
        if not self._in_machine:
            raise CorruptRecord("a snapshot's data ends before the state of the machine")
        _, self.time_ms, self.hash = _HEAD.unpack(self._head)
        self._restoring.finish()
        self._executor.sessions = self._sessions.table
