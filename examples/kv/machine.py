"""What one shard of the key-value store holds, and what it does when asked.

An ordinary class: it can be made and called in a unit test without any cluster. On a cluster every replica of a
shard applies the same commands in the same order, so nothing here may depend on anything but the arguments and
what earlier commands left behind.

Rules of this file: a command either does all it says or raises and changes nothing; the cached key order is
derived from the values and never decides a command's result.
"""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from dataclasses import dataclass
from typing import Final

from multiraft.statemachine import StateMachine, command, query

KEY_LIMIT_BYTES: Final = 4 * 1024
"""Largest key, as UTF-8."""
VALUE_LIMIT_BYTES: Final = 1024 * 1024
PAGE_BYTES: Final = 1024 * 1024
"""A page of a scan ends once its values come to this; it holds at least one entry."""

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


class KV(StateMachine):
    """Keys are text, values are bytes."""

    def __init__(self) -> None:
        self.values: dict[str, bytes] = {}
        self._order: list[str] = []  # the keys, ascending, but for those in _changed
        self._changed: dict[str, None] = {}  # keys that came or went since _order was brought up to date

    @command(key="key")
    def put(self, key: str, value: bytes) -> None:
        """Store `value` under `key`."""
        check_key(key)
        check_value(value)
        self._set(key, value)

    @command(key="key")
    def delete(self, key: str) -> bool:
        """Remove `key`; say whether it was there."""
        present = key in self.values
        self._set(key, None)
        return present

    @command(key="key")
    def compare_and_set(self, key: str, expected: bytes | None, value: bytes) -> Swap:
        """Store `value` if `key` holds `expected` now; None expects it to be absent."""
        check_key(key)
        check_value(value)
        current = self.values.get(key)
        if current != expected:
            return Swap(False, current)
        self._set(key, value)
        return Swap(True, value)

    @command(key="key")
    def increment(self, key: str, amount: int = 1) -> int:
        """Add `amount` to the number under `key`, kept as decimal text; an absent key counts as 0.

        Raises ValueError when the key holds something else, or the sum needs more than 64 bits.
        """
        check_key(key)
        current = self.values.get(key, b"0")
        if not _NUMBER.fullmatch(current):
            raise ValueError(f"{key!r} does not hold a whole number")
        total = int(current) + amount
        if total not in _INT64:
            raise ValueError(f"{key!r} would leave the range of 64 bits")
        self._set(key, b"%d" % total)
        return total

    @command(key="route")
    def batch(self, route: str, writes: dict[str, bytes | None]) -> int:
        """Store every value of `writes`, and remove the keys whose value is None: all of it or nothing.

        route  any key of `writes`; all of them must lie on its shard. `http.py` groups a client's keys so.

        Returns the number of keys written.
        """
        for key, value in writes.items():
            check_key(key)
            check_value(value or b"")
        for key, value in writes.items():
            self._set(key, value)
        return len(writes)

    @query(key="key")
    def get(self, key: str) -> bytes | None:
        """Return the value of `key`; None when it is absent."""
        return self.values.get(key)

    @query(key=None)
    def scan(self, prefix: str = "", limit: int = 1_000, start_after: str | None = None) -> Page:
        """Return up to `limit` entries whose keys begin with `prefix`, ascending, after `start_after` if given."""
        order = self._ordered()
        first = bisect_left(order, prefix)
        if start_after is not None:
            first = max(first, bisect_right(order, start_after))
        entries: dict[str, bytes] = {}
        size_bytes = 0
        for at in range(first, len(order)):
            key = order[at]
            if not key.startswith(prefix):
                break
            if len(entries) >= limit or (entries and size_bytes >= PAGE_BYTES):
                return Page(entries, True)
            entries[key] = self.values[key]
            size_bytes += len(key) + len(entries[key])
        return Page(entries, False)

    @query(key=None)
    def count(self) -> int:
        """Return how many keys there are."""
        return len(self.values)

    def _set(self, key: str, value: bytes | None) -> None:
        if value is None:
            if self.values.pop(key, None) is not None:
                self._changed[key] = None
            return
        if key not in self.values:
            self._changed[key] = None
        self.values[key] = value

    def _ordered(self) -> list[str]:
        """The keys, ascending. Writes only note what changed; the sort, of two runs mostly, waits for a reader."""
        changed = self._changed
        if changed:
            kept = [key for key in self._order if key not in changed]
            kept += [key for key in changed if key in self.values]
            kept.sort()
            self._order = kept
            self._changed = {}
        return self._order
