"""What a disk in memory held at one moment: a copy, as memory is what it has.

Rules of this file: reads only; every step asks whether the store is still open.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping, Sequence

from multiraft.errors import StorageError


class MemoryView:
    """Reads of a copy.

    check  called before each read; raises StorageError when the store that it was made of cannot be read
    """

    def __init__(
        self, name: str, values: Mapping[bytes, bytes], keys: Sequence[bytes], check: Callable[[], None]
    ) -> None:
        self.name = name
        self._values, self._keys = dict(values), list(keys)
        self._check = check
        self._closed = False

    def get(self, key: bytes) -> bytes | None:
        self._check_open()
        return self._values.get(key)

    def items(self, start: bytes, stop: bytes | None, reverse: bool = False) -> Iterator[tuple[bytes, bytes]]:
        return ((key, self._values[key]) for key in self.keys(start, stop, reverse))

    def keys(self, start: bytes, stop: bytes | None, reverse: bool = False) -> Iterator[bytes]:
        for key in between(self._keys, start, stop, reverse):
            self._check_open()
            yield key

    def close(self) -> None:
        self._closed = True

    def _check_open(self) -> None:
        if self._closed:
            raise StorageError(f"{self.name}: the view is closed")
        self._check()


def between(keys: Sequence[bytes], start: bytes, stop: bytes | None, reverse: bool) -> Iterator[bytes]:
    """Yield those of the ascending `keys` with start <= key < stop (None: to the end), in order or against it."""
    low = bisect_left(keys, start)
    high = len(keys) if stop is None else bisect_left(keys, stop)
    step = range(high - 1, low - 1, -1) if reverse else range(low, high)
    return (keys[position] for position in step)
