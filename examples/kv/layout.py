"""How one shard of the key-value store lies in its keyspace: the names of its pieces, and their bytes.

    k key                     format, deadline (8), value
    x deadline (8) key        nothing: which keys end, in order of when
    h index (8)               what one command changed: a msgpack array of events
    m                         the counters of `Meta`

A key's deadline is the moment of the replicated clock, in milliseconds since 1970, from which on it is absent; 0 where
it stays. Keys are UTF-8, so the byte ff stands in none of them and ends every range of a prefix.

Rules of this file: pure functions of bytes; every value but the empty one begins with a format byte.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

import msgpack

FORMAT: Final = 1
KEYS: Final = b"k"
ENDS: Final = b"x"
EVENTS: Final = b"h"
META: Final = b"m"
AFTER_PREFIX: Final = b"\xff"
KEY_LIMIT_BYTES: Final = 4 * 1024
"""Largest key, as UTF-8."""
VALUE_LIMIT_BYTES: Final = 8_000_000

_RECORD: Final = struct.Struct(">BQ")
_META: Final = struct.Struct(">BQQQQQQQ")
_NUMBER: Final = struct.Struct(">Q")


class BadRecord(ValueError):
    """What lies in the keyspace was not written by this version."""


@dataclass(slots=True)
class Meta:
    """What a shard knows of itself, in one small record.

    index         of the last command that wrote anything
    clock_ms      the replicated clock as of that command; never goes back
    keys          how many are stored, those included that have ended and were not removed yet
    next_end_ms   no stored key ends before this; 0: none ever does
    events        how many are kept
    event_bytes   what they take
    dropped       the index of the newest command whose events are kept no more; 0: none was dropped
    """

    index: int = 0
    clock_ms: int = 0
    keys: int = 0
    next_end_ms: int = 0
    events: int = 0
    event_bytes: int = 0
    dropped: int = 0

    def pack(self) -> bytes:
        return _META.pack(
            FORMAT,
            self.index,
            self.clock_ms,
            self.keys,
            self.next_end_ms,
            self.events,
            self.event_bytes,
            self.dropped,
        )

    @classmethod
    def unpack(cls, packed: bytes | None) -> Meta:
        """Return what `pack` returned; of None the meta of a shard that nothing was written to."""
        if packed is None:
            return cls()
        if len(packed) != _META.size or packed[0] != FORMAT:
            raise BadRecord("the counters of this shard are of another version")
        return cls(*_META.unpack(packed)[1:])


@dataclass(slots=True)  # frozen would make it three times as slow to come by, and every command makes some
class Held:
    """What a key holds; never changed. `deadline_ms` is 0 for one that stays."""

    value: bytes
    deadline_ms: int = 0

    def pack(self) -> bytes:
        return _RECORD.pack(FORMAT, self.deadline_ms) + self.value

    @classmethod
    def unpack(cls, packed: bytes) -> Held:
        if len(packed) < _RECORD.size or packed[0] != FORMAT:
            raise BadRecord("a value of this shard is of another version")
        return cls(packed[_RECORD.size :], _RECORD.unpack_from(packed)[1])

    def ended(self, clock_ms: int) -> bool:
        return 0 < self.deadline_ms <= clock_ms


@dataclass(frozen=True)
class Event:
    """One change of one key.

    index       of the command that made it, in the log of the shard's group
    part        which of that command's changes it is, from 0
    kind        "put", "delete", or "expire"
    key         what changed
    time_ms     the replicated clock then
    size_bytes  of the value that was put
    value       that value, if it is small; None otherwise
    deadline_ms when the key ends; 0: it stays
    """

    index: int
    part: int
    kind: str
    key: str
    time_ms: int
    size_bytes: int = 0
    value: bytes | None = None
    deadline_ms: int = 0


def raw_key(key: str) -> bytes:
    # A text that is no valid Unicode was never stored, and must not be an error to ask for.
    return key.encode("utf-8", "surrogatepass")


def key_name(key: str) -> bytes:
    return KEYS + raw_key(key)


def end_name(deadline_ms: int, key: bytes = b"") -> bytes:
    """Where it is noted that `key` (as UTF-8) ends at `deadline_ms`; without a key, where that moment begins."""
    return ENDS + _NUMBER.pack(deadline_ms) + key


def end_of(name: bytes) -> tuple[int, bytes]:
    """Return deadline and key of an `end_name`."""
    return _NUMBER.unpack_from(name, len(ENDS))[0], name[len(ENDS) + _NUMBER.size :]


def events_name(index: int) -> bytes:
    return EVENTS + _NUMBER.pack(index)


def events_index(name: bytes) -> int:
    return int(_NUMBER.unpack_from(name, len(EVENTS))[0])


Row: TypeAlias = tuple[str, str, int, bytes | None, int]
"""A change: its kind, key, size, value and deadline."""


def pack_rows(time_ms: int, rows: list[Row]) -> bytes:
    """Return the events of one command as bytes."""
    packed: bytes = msgpack.packb([FORMAT, time_ms, rows])
    return packed


def unpack_rows(packed: bytes) -> tuple[int, list[list[Any]]]:
    """Return what `pack_rows` was given."""
    found = msgpack.unpackb(packed)
    if type(found) is not list or len(found) != 3 or found[0] != FORMAT:
        raise BadRecord("the events of this shard are of another version")
    return found[1], found[2]


def count_rows(packed: bytes) -> int:
    """Return how many rows `pack_rows` was given, without reading them."""
    reader = msgpack.Unpacker()
    reader.feed(packed)
    if reader.read_array_header() != 3 or reader.unpack() != FORMAT:
        raise BadRecord("the events of this shard are of another version")
    reader.skip()
    count: int = reader.read_array_header()
    return count


def unpack_events(index: int, packed: bytes) -> list[Event]:
    time_ms, rows = unpack_rows(packed)
    return [
        Event(index, part, kind, key, time_ms, size_bytes, value, deadline_ms)
        for part, (kind, key, size_bytes, value, deadline_ms) in enumerate(rows)
    ]
