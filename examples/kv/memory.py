"""The key-value machine with its shard in memory: the same commands, over a dict that snapshots carry.

The order of the keys is derived from the dict and never part of the state. Writes only note what came and went; a
reader brings the order up to date: a few changes one by one, many by sorting, which of two runs is mostly merging.

Rules of this file: the one attribute of the machine is plain, so that the framework can save and restore it as it is.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator
from typing import Final, Protocol

from examples.kv.machine import KV
from multiraft.keyspace import Keyspace, check_pair

_FEW: Final = 64
"""So many changes are put in place one by one; more are sorted in."""


class MemoryKV(KV):
    """A shard whose data live in memory, in `values`."""

    __slots__ = ("_keyspace",)

    def __init__(self) -> None:
        self.values: dict[bytes, bytes] = {}
        self._keyspace = PlainKeyspace(self)

    @property
    def data(self) -> Keyspace:
        return self._keyspace


class HasValues(Protocol):
    """A machine whose whole state is one dict."""

    values: dict[bytes, bytes]


class PlainKeyspace:
    """The keyspace that a machine's `values` is. The machine may replace that dict, as it does when it is restored."""

    def __init__(self, owner: HasValues) -> None:
        self._owner = owner
        self._of: dict[bytes, bytes] | None = None
        self._parts: dict[int, _Part] = {}

    def get(self, key: bytes) -> bytes | None:
        return self._owner.values.get(key)

    def put(self, key: bytes, value: bytes) -> None:
        check_pair(key, value)
        values = self._owner.values
        if key not in values:
            self._changed(key)
        values[key] = value

    def delete(self, key: bytes) -> None:
        if self._owner.values.pop(key, None) is not None:
            self._changed(key)

    def range(
        self, start: bytes = b"", stop: bytes | None = None, *, reverse: bool = False
    ) -> Iterator[tuple[bytes, bytes]]:
        for key in self.keys(start, stop, reverse=reverse):
            value = self._owner.values.get(key)
            if value is not None:
                yield key, value

    def keys(self, start: bytes = b"", stop: bytes | None = None, *, reverse: bool = False) -> Iterator[bytes]:
        values = self._owner.values
        self._follow(values)
        for number in sorted(self._parts, reverse=reverse):
            first = bytes([number])
            if (stop is not None and first >= stop) or first < start[:1]:
                continue
            order = self._parts[number].ordered(values)
            low = bisect_left(order, start)
            high = len(order) if stop is None else bisect_left(order, stop)
            places = range(high - 1, low - 1, -1) if reverse else range(low, high)
            # Whoever takes the keys one by one may have changed some meanwhile: those that came do not show.
            for place in places:
                if place < len(order):
                    yield order[place]

    def _changed(self, key: bytes) -> None:
        self._follow(self._owner.values)
        self._note(key)

    def _note(self, key: bytes) -> None:
        number = key[0] if key else 0
        part = self._parts.get(number)
        if part is None:
            part = self._parts[number] = _Part()
        part.changed[key] = None

    def _follow(self, values: dict[bytes, bytes]) -> None:
        """Begin anew where the machine's dict is another one than before."""
        if values is self._of:
            return
        self._of = values
        self._parts = {}
        for key in values:
            self._note(key)


class _Part:
    """The keys that begin with one byte: so, counters that change all the time never make others be sorted."""

    __slots__ = ("changed", "order")

    def __init__(self) -> None:
        self.order: list[bytes] = []  # ascending, but for those in `changed`
        self.changed: dict[bytes, None] = {}  # keys that came or went since `order` was brought up to date

    def ordered(self, values: dict[bytes, bytes]) -> list[bytes]:
        changed, self.changed = self.changed, {}
        if len(changed) > _FEW:
            order = [key for key in self.order if key not in changed]
            order += [key for key in changed if key in values]
            order.sort()
            self.order = order
            return order
        for key in changed:
            place = bisect_left(self.order, key)
            there = place < len(self.order) and self.order[place] == key
            if there and key not in values:
                del self.order[place]
            elif not there and key in values:
                self.order.insert(place, key)
        return self.order
