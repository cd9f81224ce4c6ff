"""What one shard of the key-value store holds, and what it does when asked.

An ordinary class over `self.data`, an ordered map of bytes: `DiskKV` keeps it in the node's database, `MemoryKV`
(memory.py) in memory; both do the same. It can be made and called in a unit test without any cluster.

Time. A key that was put with a time to live ends at a moment of the replicated clock: the stamp of the command that
put it, plus that time. Each command moves the shard's clock to its own stamp; queries look at the clock as the last
command left it. So a key ends for all readers at the same entry of the log, whichever replica they ask: the first
command in its shard that is stamped with that moment or a later one. Where nothing else is written, `sweep` is that
command: each server sends one to the shards that its node leads soon after their next key ends (sweeping.py).

Rules of this file: a command either does all it says or raises and changes nothing; nothing here may depend on
anything but the arguments, the context, and what earlier commands left behind.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from examples.kv.change import Change
from examples.kv.layout import (
    AFTER_PREFIX,
    ENDS,
    KEYS,
    META,
    Event,
    Held,
    Meta,
    end_name,
    events_index,
    events_name,
    key_name,
    raw_key,
    unpack_events,
)
from examples.kv.layout import KEY_LIMIT_BYTES as KEY_LIMIT_BYTES
from examples.kv.layout import VALUE_LIMIT_BYTES as VALUE_LIMIT_BYTES
from examples.kv.operations import READS, WRITES, Look, make_calls
from multiraft.diskmachine import DiskStateMachine
from multiraft.keyspace import Keyspace
from multiraft.statemachine import StateMachine, command, query

SERVICE: Final = "kv"
"""The name under which nodes declare the store."""
PAGE_BYTES: Final = 1024 * 1024
"""A page of a scan, or of events, ends once it comes to this; it holds at least one entry."""
TTL_LIMIT_MS: Final = 1 << 40
"""Longest time to live: some 35 years."""
SWEEP_KEYS: Final = 256
"""So many keys that have ended are removed by one `sweep`."""
_EVENTS_LOOKED_AT: Final = 2_000

_NUMBER: Final = re.compile(rb"-?[0-9]{1,19}")
_INT64: Final = range(-(1 << 63), 1 << 63)


class TooLarge(ValueError):
    """A key or a value is over its limit."""


def check_key(key: str) -> None:
    """Raise ValueError unless `key` is text of 1 to KEY_LIMIT_BYTES bytes of UTF-8 (TooLarge when it is longer)."""
    if not key:
        raise ValueError("the key is empty")
    try:
        size_bytes = len(key.encode())
    except UnicodeEncodeError:
        raise ValueError("the key is not valid Unicode text") from None
    if size_bytes > KEY_LIMIT_BYTES:
        raise TooLarge(f"the key has {size_bytes} bytes; at most {KEY_LIMIT_BYTES} are allowed")


def check_value(value: bytes) -> None:
    """Raise TooLarge when `value` has more than VALUE_LIMIT_BYTES bytes."""
    if len(value) > VALUE_LIMIT_BYTES:
        raise TooLarge(f"the value has {len(value)} bytes; at most {VALUE_LIMIT_BYTES} are allowed")


def check_ttl(ttl_ms: int | None) -> None:
    """Raise ValueError unless `ttl_ms` is None or a time to live from 1 to TTL_LIMIT_MS milliseconds."""
    if ttl_ms is not None and not 1 <= ttl_ms <= TTL_LIMIT_MS:
        raise ValueError(f"a time to live of {ttl_ms} ms; 1 to {TTL_LIMIT_MS} are allowed")


@dataclass(frozen=True)
class Swap:
    """The answer of a compare-and-set.

    swapped  whether the expected value was found and replaced
    current  what the key holds now; None when it is absent
    """

    swapped: bool
    current: bytes | None


@dataclass(frozen=True)
class Page:
    """Part of a scan of one shard.

    entries  key to value, ascending by key
    more     whether keys follow after the last one here
    """

    entries: dict[str, bytes]
    more: bool


@dataclass(frozen=True)
class Life:
    """Whether a key is there, and how long it will be.

    ttl_ms  what is left by the shard's clock; None: it stays, or is absent
    """

    present: bool
    ttl_ms: int | None


@dataclass(frozen=True)
class News:
    """What happened in a shard after some index.

    events   in order, those of the prefix that was asked for
    reached  everything up to this index has been looked at
    dropped  the events of this index, and of all before it, are kept no more; 0: all are kept
    more     whether there may be more right now
    """

    events: list[Event]
    reached: int
    dropped: int
    more: bool


def hash_tag(key: bytes) -> bytes:
    """Return the part of `key` that decides its shard: what stands in its first braces, or all of it where that is
    nothing. So `{user7}:name` and `{user7}:mail` share a shard.
    """
    start = key.find(b"{")
    if start >= 0:
        end = key.find(b"}", start + 1)
        if end > start + 1:
            return key[start + 1 : end]
    return key


class KV(StateMachine, routes_by=hash_tag):
    """Keys are text, values are bytes. What it derives its `data` from decides where a shard lies."""

    @property
    def data(self) -> Keyspace:
        """Where everything lies."""
        raise NotImplementedError("use DiskKV or MemoryKV")

    # ----------------------------------------------------------------------------------------------- commands

    @command(key="key")
    def put(self, key: str, value: bytes, ttl_ms: int | None = None) -> None:
        """Store `value` under `key`: for good, or for `ttl_ms` milliseconds."""
        check_key(key)
        check_value(value)
        check_ttl(ttl_ms)
        change = self._change()
        change.put(raw_key(key), value, self._deadline(change, ttl_ms))
        change.finish()

    @command(key="key")
    def delete(self, key: str) -> bool:
        """Remove `key`; say whether it was there."""
        change = self._change()
        present = change.remove(raw_key(key))
        change.finish()
        return present

    @command(key="key")
    def compare_and_set(self, key: str, expected: bytes | None, value: bytes, ttl_ms: int | None = None) -> Swap:
        """Store `value`, as `put` does, if `key` holds `expected` now; None expects it to be absent."""
        check_key(key)
        check_value(value)
        check_ttl(ttl_ms)
        change = self._change()
        held = change.live(raw_key(key))
        current = None if held is None else held.value
        if current == expected:
            change.put(raw_key(key), value, self._deadline(change, ttl_ms))
        change.finish()
        return Swap(True, value) if current == expected else Swap(False, current)

    @command(key="key")
    def increment(self, key: str, amount: int = 1) -> int:
        """Add `amount` to the number under `key`, kept as decimal text; an absent key counts as 0.

        A time to live stays as it is. Raises ValueError when the key holds something else, or the sum needs more
        than 64 bits.
        """
        check_key(key)
        change = self._change()
        held = change.live(raw_key(key)) or Held(b"0")
        if not _NUMBER.fullmatch(held.value):
            raise ValueError(f"{key!r} does not hold a whole number")
        total = int(held.value) + amount
        if total not in _INT64:
            raise ValueError(f"{key!r} would leave the range of 64 bits")
        change.put(raw_key(key), b"%d" % total, held.deadline_ms)
        change.finish()
        return total

    @command(key="key")
    def expire(self, key: str, ttl_ms: int) -> bool:
        """Have `key` end in `ttl_ms` milliseconds, whatever was said before; say whether it is there."""
        check_ttl(ttl_ms)
        return self._set_end(key, ttl_ms)

    @command(key="key")
    def persist(self, key: str) -> bool:
        """Have `key` stay; say whether it is there."""
        return self._set_end(key, None)

    @command(key="route")
    def batch(self, route: str, writes: dict[str, bytes | None]) -> int:
        """Store every value of `writes`, and remove the keys whose value is None: all of it or nothing.

        route  any key of `writes`; all of them must lie on its shard. `http.py` groups a client's keys so.

        Returns the number of keys written.
        """
        for key, value in writes.items():
            check_key(key)
            check_value(value or b"")
        change = self._change()
        for key, value in writes.items():
            if value is None:
                change.remove(raw_key(key))
            else:
                change.put(raw_key(key), value)
        change.finish()
        return len(writes)

    @command(key="route", since=2)
    def run(self, route: str, calls: bytes) -> bytes:
        """Make many small calls, in order: those of operations.py, reading or writing.

        route  any key of the shard
        calls  a msgpack array of them

        Returns a msgpack array of the results of the first ones, or of all: once the results have come to
        RESULT_BYTES the rest are not made. Raises ValueError for what is no list of calls; then none was made.
        """
        change = self._change()
        results = make_calls(change, calls, WRITES)
        change.finish()
        return results

    @command(key="route")
    def sweep(self, route: str) -> int:
        """Move the shard's clock, and remove up to SWEEP_KEYS of the keys that have ended; return how many.

        route  any key of the shard
        """
        return self._change().finish(SWEEP_KEYS)

    # ------------------------------------------------------------------------------------------------ queries

    @query(key="key")
    def get(self, key: str) -> bytes | None:
        """Return the value of `key`; None when it is absent."""
        held = self._live(key)
        return None if held is None else held.value

    @query(key=None)
    def look(self, calls: bytes) -> bytes:
        """Make calls that only read; otherwise as `run`."""
        return make_calls(Look(self.data, self.meta()), calls, READS)

    @query(key="key")
    def ttl(self, key: str) -> Life:
        """Say whether `key` is there, and for how long."""
        held = self._live(key)
        if held is None or not held.deadline_ms:
            return Life(held is not None, None)
        return Life(True, held.deadline_ms - self.meta().clock_ms)

    @query(key=None)
    def scan(self, prefix: str = "", limit: int = 1_000, start_after: str | None = None) -> Page:
        """Return up to `limit` entries whose keys begin with `prefix`, ascending, after `start_after` if given."""
        first = key_name(prefix)
        stop = first + AFTER_PREFIX
        if start_after is not None:
            first = max(first, key_name(start_after) + b"\0")
        clock_ms = self.meta().clock_ms
        entries: dict[str, bytes] = {}
        size_bytes = 0
        for name, packed in self.data.range(first, stop):
            held = Held.unpack(packed)
            if held.ended(clock_ms):
                continue
            if len(entries) >= limit or (entries and size_bytes >= PAGE_BYTES):
                return Page(entries, True)
            entries[name[len(KEYS) :].decode()] = held.value
            size_bytes += len(name) + len(held.value)
        return Page(entries, False)

    @query(key=None)
    def count(self) -> int:
        """Return how many keys there are. Takes longer only with the number that have ended and not been removed."""
        return Look(self.data, self.meta()).count()

    @query(key=None)
    def news(self, prefix: str = "", after: int | None = None, limit: int = 1_000) -> News:
        """Return what happened to keys that begin with `prefix`, in the commands with an index above `after`.

        after  None: nothing; only how far the shard is
        limit  at most so many events, but always all those of one command
        """
        meta = self.meta()
        if after is None or after < meta.dropped:
            return News([], meta.index, meta.dropped, False)
        events: list[Event] = []
        reached, looked_at, size_bytes = after, 0, 0
        for name, packed in self.data.range(events_name(after + 1), events_name((1 << 64) - 1)):
            if len(events) >= limit or looked_at >= _EVENTS_LOOKED_AT or size_bytes >= PAGE_BYTES:
                return News(events, reached, meta.dropped, True)
            reached = events_index(name)
            happened = unpack_events(reached, packed)
            looked_at += len(happened)
            size_bytes += len(packed)
            events += [event for event in happened if event.key.startswith(prefix)]
        return News(events, max(reached, meta.index), meta.dropped, False)

    # ------------------------------------------------------------------------------------- for this node's server

    def meta(self) -> Meta:
        """Return the shard's counters."""
        return Meta.unpack(self.data.get(META))

    def records(self, after: str | None = None, size_bytes: int = PAGE_BYTES) -> list[tuple[str, bytes]]:
        """Return some of what is held, ascending, after the key `after`; nothing once there is no more."""
        first = KEYS if after is None else key_name(after) + b"\0"
        clock_ms = self.meta().clock_ms
        found: list[tuple[str, bytes]] = []
        for name, packed in self.data.range(first, KEYS + AFTER_PREFIX):
            held = Held.unpack(packed)
            if not held.ended(clock_ms):
                found.append((name[len(KEYS) :].decode(), held.value))
                size_bytes -= len(name) + len(held.value)
                if size_bytes <= 0:
                    break
        return found

    def due(self, now_ms: int) -> str | None:
        """Return a key that has ended by `now_ms` and was not removed yet; None where there is none."""
        next_end_ms = self.meta().next_end_ms
        if not 0 < next_end_ms <= now_ms:
            return None
        name = next(iter(self.data.keys(end_name(next_end_ms), end_name(now_ms + 1))), None)
        return None if name is None else name[len(ENDS) + 8 :].decode()

    def _live(self, key: str) -> Held | None:
        packed = self.data.get(key_name(key))
        if packed is None:
            return None
        held = Held.unpack(packed)
        return None if held.deadline_ms and held.ended(self.meta().clock_ms) else held

    def _change(self) -> Change:
        return Change(self.data, self.context.index, self.context.time_ms)

    def _deadline(self, change: Change, ttl_ms: int | None) -> int:
        return 0 if ttl_ms is None else change.clock_ms + ttl_ms

    def _set_end(self, key: str, ttl_ms: int | None) -> bool:
        change = self._change()
        held = change.live(raw_key(key))
        if held is not None:
            change.put(raw_key(key), held.value, self._deadline(change, ttl_ms))
        change.finish()
        return held is not None


class DiskKV(DiskStateMachine, KV):
    """A shard whose data lie in the node's database: larger than memory perhaps, and there at once after a start."""

    __slots__ = ()
