"""The data of state machines, as they lie in a store: keyspaces, and reads of one moment.

A keyspace belongs to whichever group's stored `Applied` names it; its keys begin with a byte for the part (0: the
machine's own data, 1: its sessions). Its id is never used again, so a new keyspace is empty, and an old one can be
deleted at leisure.

Rules of this file: every value is checked as it is read; nothing is cached.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

from multiraft.storage import layout
from multiraft.storage.backend import Reads, View
from multiraft.types import Applied, GroupId, SpaceId


class DataReads:
    """Reads of keyspaces through whatever reads the backend gives: those of now, or those of one moment."""

    def __init__(self, reads: Reads) -> None:
        self._reads = reads

    def read_data(self, space: SpaceId, key: bytes) -> bytes | None:
        """Return the value under `key`; None where there is none. Raises CorruptRecord."""
        stored_key = layout.data_key(space, key)
        raw = self._reads.get(stored_key)
        return None if raw is None else layout.decode_data(stored_key, raw)

    def iterate_data(
        self, space: SpaceId, start: bytes = b"", stop: bytes | None = None, reverse: bool = False
    ) -> Iterator[tuple[bytes, bytes]]:
        """Yield the keyspace's keys and values with start <= key < stop (None: to its end). Raises CorruptRecord."""
        for stored_key, raw in self._reads.items(*layout.data_span(space, start, stop), reverse):
            yield layout.split_data_key(stored_key)[1], layout.decode_data(stored_key, raw)

    def iterate_data_keys(
        self, space: SpaceId, start: bytes = b"", stop: bytes | None = None, reverse: bool = False
    ) -> Iterator[bytes]:
        """Yield the keys alone."""
        for stored_key in self._reads.keys(*layout.data_span(space, start, stop), reverse):
            yield layout.split_data_key(stored_key)[1]

    def read_applied(self, group_id: GroupId) -> Applied | None:
        """Return what the group's machine on disk has applied; None where it has none. Raises CorruptRecord."""
        raw = self._reads.get(layout.group_key(group_id, layout.KIND_APPLIED))
        return None if raw is None else layout.decode_applied(group_id, raw)

    def read_space(self, space: SpaceId, limit: int, after: bytes = b"") -> list[bytes]:
        """Return stored keys of a keyspace, at most `limit`, from the one after `after` on; empty: no more."""
        start, stop = layout.data_span(space)
        return list(islice(self._reads.keys(after + b"\0" if after else start, stop), limit))

    def spaces(self) -> list[SpaceId]:
        """Return the keyspaces that hold anything, ascending; one look for each. Raises CorruptRecord."""
        found: list[SpaceId] = []
        start = layout.FIRST_DATA_KEY
        while True:
            first = next(iter(self._reads.keys(start, layout.DATA_END_KEY)), None)
            if first is None:
                return found
            found.append(layout.split_data_key(first)[0])
            start = layout.data_span(found[-1])[1]


class PartitionedView(DataReads):
    """`multiraft.ports.StoreView`: the same reads, all of the moment at which the view was made."""

    def __init__(self, view: View) -> None:
        super().__init__(view)
        self._view = view

    def close(self) -> None:
        """Let go of what the view holds. Idempotent."""
        self._view.close()
