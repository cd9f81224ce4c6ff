"""Where an on-disk state machine keeps its data: an ordered map of bytes, written by commands alone.

On a replica it lies in the node's database, and what a command has written reaches the disk in one batch with the
note that the command was applied, or not at all. A machine that was made without any cluster, as in a unit test, has
one in memory.

Rules of this file: keys and values are bytes; nothing here knows where they are stored.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterator
from typing import Any, ClassVar, Protocol


class Keyspace(Protocol):
    """The data of one state machine. Reads see everything that the command under way has written."""

    def get(self, key: bytes) -> bytes | None:
        """Return the value under `key`; None where there is none."""
        ...

    def put(self, key: bytes, value: bytes) -> None:
        """Store `value` under `key`, in place of what is there. Raises RuntimeError outside a command."""
        ...

    def delete(self, key: bytes) -> None:
        """Remove `key`, if it is there. Raises RuntimeError outside a command."""
        ...

    def range(
        self, start: bytes = b"", stop: bytes | None = None, *, reverse: bool = False
    ) -> Iterator[tuple[bytes, bytes]]:
        """Yield keys and values with start <= key < stop (None: to the end), ascending, or descending.

        What is written while the iterator is used may or may not be seen by it.
        """
        ...

    def keys(self, start: bytes = b"", stop: bytes | None = None, *, reverse: bool = False) -> Iterator[bytes]:
        """Yield the keys alone, as `range` does."""
        ...


class MemoryKeyspace:
    """A keyspace in memory, for state machines outside any cluster. It can be written at any time."""

    def __init__(self) -> None:
        self._values: dict[bytes, bytes] = {}
        self._order: list[bytes] = []

    def get(self, key: bytes) -> bytes | None:
        return self._values.get(key)

    def put(self, key: bytes, value: bytes) -> None:
        check_pair(key, value)
        if key not in self._values:
            insort(self._order, key)
        self._values[key] = value

    def delete(self, key: bytes) -> None:
        if self._values.pop(key, None) is not None:
            del self._order[bisect_left(self._order, key)]

    def range(
        self, start: bytes = b"", stop: bytes | None = None, *, reverse: bool = False
    ) -> Iterator[tuple[bytes, bytes]]:
        for key in self.keys(start, stop, reverse=reverse):
            value = self._values.get(key)
            if value is not None:
                yield key, value

    def keys(self, start: bytes = b"", stop: bytes | None = None, *, reverse: bool = False) -> Iterator[bytes]:
        first = bisect_left(self._order, start)
        last = len(self._order) if stop is None else bisect_left(self._order, stop)
        found = self._order[first:last]
        yield from reversed(found) if reverse else found


class KeepsData:
    """What makes a state machine one on disk: its state is in `data`, and nowhere else.

    A class that derives from this and from a base of state machines has a slot `_data`.
    """

    __slots__ = ()
    _taken: ClassVar = {
        "data": "is where its state is",
        "snapshot": "is not asked for, since its state is in self.data",
        "restore": "is not asked for, since its state is in self.data",
    }

    @property
    def data(self) -> Keyspace:
        """The state: the replica's own; before there is a replica, a map in memory that begins empty."""
        data: Keyspace | None = getattr(self, "_data", None)
        if data is None:
            data = MemoryKeyspace()
            self.attach(data)
        return data

    def attach(self, data: Keyspace) -> None:
        """Keep the state in `data` from now on. For the framework."""
        machine: Any = self
        machine._data = data

    def snapshot(self) -> bytes:
        """There is none. Raises TypeError."""
        raise TypeError(f"{type(self).__name__} has no snapshot: its state is in self.data")

    def restore(self, state: bytes) -> None:
        """There is nothing to be restored. Raises TypeError."""
        raise TypeError(f"{type(self).__name__} cannot be restored: its state is in self.data")

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        for name, why in cls._taken.items():
            if name in vars(cls):
                raise TypeError(f"{cls.__name__}.{name}: {name!r} of a state machine on disk {why}; remove it")


def check_pair(key: object, value: object) -> None:
    """Raise TypeError unless both are bytes: state must not depend on how a replica holds it."""
    if type(key) is not bytes or type(value) is not bytes:
        raise TypeError(f"keys and values are bytes, not {type(key).__name__} and {type(value).__name__}")
