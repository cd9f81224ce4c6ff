"""The rolling hash: one number for all that a replica's commands have come to, so that replicas can be compared.

    value after an entry = CRC-32 of its result, begun with (value before it + the entry's index)

What a command raised counts by the name of its class, not by its text, which may hold addresses. For a given result
the CRC maps different beginnings to different ends, so replicas that have come apart stay apart, whatever follows.

The values after each of the latest entries are kept, so that the first one that differs can be named; those before the
last but one check on which the replicas agreed go.

Rules of this file: nothing but the entries' indexes and results; the values kept are bounded.
"""

from __future__ import annotations

import zlib
from array import array
from typing import Final, TypeAlias

from multiraft.errors import CommandFailed, MultiRaftError
from multiraft.types import Index

Result: TypeAlias = bytes | MultiRaftError
VALUES_KEPT: Final = 16_384
_RAISED: Final = 0x9E3779B9
_crc32: Final = zlib.crc32


class RollingHash:
    """The hash of one replica.

    value   after the latest entry
    since   the entry before the first one that a value is kept of; `since_value` is the value there
    agreed  the latest entry at which the replicas were found to agree
    """

    __slots__ = ("_own", "_values", "agreed", "since", "since_value", "value")

    def __init__(self, index: Index = 0, value: int = 0) -> None:
        self.restart(index, value)

    def restart(self, index: Index, value: int) -> None:
        """Everything up to `index` has come to `value`."""
        self.value = self.since_value = value
        self.since = self.agreed = index
        self._own = 0
        self._values = array("I")

    @property
    def last(self) -> Index:
        """The latest entry that was counted."""
        return self.since + len(self._values)

    @property
    def unchecked(self) -> int:
        """How many entries have come since those that were compared, without the comparison's own."""
        return self.since + len(self._values) - self.agreed - self._own

    def begin(self, index: Index) -> None:
        """The next entry is `index`: fill in those that nothing came of (no commands), and forget what is too old."""
        values = self._values
        missing = index - 1 - self.since - len(values)
        if missing > VALUES_KEPT:
            self.restart(index - 1, self.value)
        elif missing:
            values.extend([self.value] * missing)
        if len(values) > 2 * VALUES_KEPT:
            self._drop(len(values) - VALUES_KEPT)

    def chain(self, index: Index, result: Result) -> None:
        """`result` came of entry `index`, which follows the one before (see `begin`). On the hot path."""
        self.value = _after(self.value, index, result)
        self._values.append(self.value)

    def chain_all(self, index: Index, results: list[Result]) -> None:
        """`results` came of the entries from `index` on. Otherwise as `chain`."""
        value = self.value
        values: list[int] = []
        for result in results:
            value = _crc32(result, value + index) if type(result) is bytes else _after(value, index, result)
            values.append(value)
            index += 1
        self._values.fromlist(values)
        self.value = value

    def at(self, index: Index) -> int | None:
        """Return the value after entry `index`, which is applied; None where it is not kept any more."""
        place = index - self.since - 1
        if place >= len(self._values):
            return self.value
        if place >= 0:
            return self._values[place]
        return self.since_value if place == -1 else None

    def values_after(self, index: Index, last: Index) -> tuple[Index, list[int]]:
        """Return (the first one's entry, values) after the entries from `index` + 1 to `last`, as far as kept."""
        first = max(index + 1, self.since + 1)
        return first, list(self._values[first - self.since - 1 : max(0, last - self.since)])

    def compared(self, index: Index) -> None:
        """An entry, the next one, says that all replicas are to have the value after `index` that this one has."""
        self._drop(min(self.agreed - self.since, len(self._values)))
        self.agreed, self._own = max(self.agreed, index), 1

    def settle(self) -> None:
        """Nothing was done since the last comparison: what it was done with need not be kept."""
        self._drop(min(self.agreed - self.since, len(self._values)))

    def _drop(self, count: int) -> None:
        if count > 0:
            self.since_value = self._values[count - 1]
            self.since += count
            del self._values[:count]


def _after(value: int, index: Index, result: Result) -> int:
    """Return the value after entry `index`, of which `result` came, where it is `value` before."""
    if isinstance(result, bytes):
        return _crc32(result, value + index)
    name = result.exception if isinstance(result, CommandFailed) else type(result).__name__
    return _crc32(name.encode(errors="replace"), value + index) ^ _RAISED


def first_difference(first: Index, own: list[int], other: list[int]) -> Index | None:
    """Return the first entry after which two replicas' values differ; both lists begin with entry `first`."""
    for place, (one, another) in enumerate(zip(own, other, strict=False)):
        if one != another:
            return first + place
    return None
