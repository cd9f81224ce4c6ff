"""What one command does to a shard: its writes, the keys that end with it, and the events that tell of both.

A command reads with `live`, decides, and may raise; what it writes with `put` and `remove` it finds again with `live`,
and `finish` hands all of it to the keyspace and ends it: a key that is written many times is stored once. `finish`
also removes a few of the keys that have ended, and drops the oldest events past their bounds: each command pays a
little, so that none pays for many.

Keys are UTF-8 here, as they lie in the keyspace.

Rules of this file: nothing reaches the keyspace before `finish`, because a state machine in memory keeps what a raising
command has written; nothing depends on anything but the keyspace and the context, for every replica must come to the
same.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from examples.kv.layout import (
    KEYS,
    META,
    Held,
    Meta,
    Row,
    count_rows,
    end_name,
    end_of,
    events_index,
    events_name,
    pack_rows,
    unpack_rows,
)
from multiraft.keyspace import Keyspace

ENDS_A_COMMAND: Final = 16
"""So many keys that have ended are removed by the way, with each command."""
EVENTS_KEPT: Final = 10_000
EVENT_BYTES_KEPT: Final = 4 * 1024 * 1024
"""The newest events of a shard are kept up to these two bounds, for whoever resumes a watch."""
EVENT_VALUE_BYTES: Final = 4 * 1024
"""A larger value is left out of its event; the event tells its size."""
_LARGE_EVENTS_BYTES: Final = 256 * 1024
"""Once one command's events come to this, the values of the rest are left out."""
_SLACK: Final = 16
"""Events are dropped by the sixteenth of their bounds, so that not every command must look for the oldest."""


class Change:
    """One command's effect on a shard. Made at its beginning, ended by `finish`.

    clock_ms  the replicated clock
    index     of the command
    """

    def __init__(self, data: Keyspace, index: int, time_ms: int) -> None:
        self._data = data
        self._meta = Meta.unpack(data.get(META))
        self.index = index
        self.clock_ms = max(time_ms, self._meta.clock_ms)
        self._known: dict[bytes, Held | None] = {}  # what keys hold by now, of those that were looked at
        self._written: dict[bytes, None] = {}  # those of them that the keyspace holds otherwise
        self._ends: dict[bytes, bytes | None] = {}  # what becomes of names of ends
        self._rows: list[Row] = []
        self._event_bytes = 0

    def live(self, key: bytes) -> Held | None:
        """Return what `key` holds; None when it is absent or has ended."""
        held = self._known[key] if key in self._known else self._held(key)
        return None if held is None or 0 < held.deadline_ms <= self.clock_ms else held

    def put(self, key: bytes, value: bytes, deadline_ms: int = 0) -> None:
        """Store `value` under `key` until `deadline_ms`; 0: for good. Raises ValueError for a key that is no UTF-8."""
        name = key.decode()
        before = self._known[key] if key in self._known else self._held(key)
        if before is None:
            self._meta.keys += 1
        elif before.deadline_ms:
            self._forget_end(key, before)
            if before.deadline_ms <= self.clock_ms:
                self._tell("expire", name)
        self._known[key] = Held(value, deadline_ms)
        self._written[key] = None
        if deadline_ms:
            self._ends[end_name(deadline_ms, key)] = b""
            self._meta.next_end_ms = min(self._meta.next_end_ms or deadline_ms, deadline_ms)
        size_bytes = len(value)
        if size_bytes <= EVENT_VALUE_BYTES and self._event_bytes < _LARGE_EVENTS_BYTES:
            self._event_bytes += len(name) + size_bytes
            self._rows.append(("put", name, size_bytes, value, deadline_ms))
        else:
            self._event_bytes += len(name)
            self._rows.append(("put", name, size_bytes, None, deadline_ms))

    def remove(self, key: bytes) -> bool:
        """Remove `key`; say whether it was there, and had not ended."""
        held = self._held(key)
        if held is None:
            return False
        ended = held.ended(self.clock_ms)
        self._drop(key, held, "expire" if ended else "delete")
        return not ended

    def mark(self) -> tuple[int, int]:
        """Return the present place in the sequence of changes: this command's index, and how many it has made."""
        return self.index, len(self._rows)

    def happened(self, key: bytes, index: int, part: int) -> Iterator[str] | None:
        """Yield the kinds of the changes of `key` since the place (index, part); None: they are kept no more."""
        if index <= self._meta.dropped:
            return None
        return self._kinds(key, index, part)

    def _kinds(self, key: bytes, index: int, part: int) -> Iterator[str]:
        name = key.decode()
        for at, packed in self._data.range(events_name(index), events_name(self.index)):
            if key in packed:
                rows = unpack_rows(packed)[1]
                first = part if events_index(at) == index else 0
                yield from (kind for kind, other, *_ in rows[first:] if other == name)
        first = part if self.index == index else 0
        yield from (kind for kind, other, *_ in self._rows[first:] if other == name)

    def finish(self, ends: int = ENDS_A_COMMAND) -> int:
        """End the command, removing up to `ends` keys that have ended; return how many of them were removed."""
        self._write()
        removed = self._remove_ended(ends)
        meta = self._meta
        meta.index, meta.clock_ms = self.index, self.clock_ms
        if self._rows:
            packed = pack_rows(self.clock_ms, self._rows)
            self._data.put(events_name(self.index), packed)
            meta.events += len(self._rows)
            meta.event_bytes += len(packed)
            if meta.events > EVENTS_KEPT or meta.event_bytes > EVENT_BYTES_KEPT:
                self._drop_events()
        self._data.put(META, meta.pack())
        return removed

    def _write(self) -> None:
        """Hand what was written to the keyspace."""
        data, known = self._data, self._known
        for key in self._written:
            held = known[key]
            if held is None:
                data.delete(KEYS + key)
            else:
                data.put(KEYS + key, held.pack())
        for name, there in self._ends.items():
            if there is None:
                data.delete(name)
            else:
                data.put(name, there)
        self._written, self._ends = {}, {}

    def _held(self, key: bytes) -> Held | None:
        if key in self._known:
            return self._known[key]
        packed = self._data.get(KEYS + key)
        held = self._known[key] = None if packed is None else Held.unpack(packed)
        return held

    def _drop(self, key: bytes, held: Held, kind: str) -> None:
        if held.deadline_ms:
            self._forget_end(key, held)
        self._known[key] = None
        self._written[key] = None
        self._meta.keys -= 1
        self._tell(kind, key.decode())

    def _forget_end(self, key: bytes, held: Held) -> None:
        self._ends[end_name(held.deadline_ms, key)] = None

    def _remove_ended(self, most: int) -> int:
        meta = self._meta
        if not 0 < meta.next_end_ms <= self.clock_ms:
            return 0
        # What ended earlier is gone: where the search starts, no deleted name lies in its way.
        start, stop = end_name(meta.next_end_ms), end_name(self.clock_ms + 1)
        ended: list[tuple[int, bytes]] = []
        for name in self._data.keys(start, stop):
            if len(ended) == most:
                break
            ended.append(end_of(name))
        for deadline_ms, key in ended:
            held = self._held(key)
            if held is None or held.deadline_ms != deadline_ms:
                raise RuntimeError(f"{key!r} is noted to end at {deadline_ms} and does not hold that")
            self._drop(key, held, "expire")
        self._write()
        following = next(iter(self._data.keys(start, end_name((1 << 64) - 1))), None)
        meta.next_end_ms = 0 if following is None else end_of(following)[0]
        return len(ended)

    def _tell(self, kind: str, name: str) -> None:
        """A key has gone."""
        self._event_bytes += len(name)
        self._rows.append((kind, name, 0, None, 0))

    def _drop_events(self) -> None:
        """Drop the oldest commands' events until both bounds hold with some room."""
        meta = self._meta
        most, most_bytes = EVENTS_KEPT - EVENTS_KEPT // _SLACK, EVENT_BYTES_KEPT - EVENT_BYTES_KEPT // _SLACK
        gone: list[bytes] = []
        for name, packed in self._data.range(events_name(meta.dropped + 1), events_name(self.index + 1)):
            if meta.events <= most and meta.event_bytes <= most_bytes:
                break
            meta.dropped = events_index(name)
            meta.events -= count_rows(packed)
            meta.event_bytes -= len(packed)
            gone.append(name)
        for name in gone:
            self._data.delete(name)
