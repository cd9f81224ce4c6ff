"""The state of a machine on disk as a snapshot that one message carries, and as what is stored in its place.

    stored   format 128 (1 byte): the state is the keyspace, and is made into a message when somebody needs it
    sent     format 129 (1 byte) | replicated clock, milliseconds (8, big-endian) | rolling hash (4) | a msgpack array:
             key, value, key, value ... of the whole keyspace, each key with the byte of its part

A group's founding has no data: an empty keyspace.

What a leader sent is put into a fresh keyspace, and the replica is switched to that by the very batch that stores the
snapshot: there is no moment at which a crash would find half of one and half of the other.

Rules of this file: bytes and batches; nothing is taken over before all of it has been looked at.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from typing import Final, NamedTuple

import msgpack

from multiraft.engine.keyspace import ReplicaData
from multiraft.errors import CorruptRecord, invariant
from multiraft.ports import Store, WriteBatch
from multiraft.raft.ready import SnapshotWrite
from multiraft.types import Applied, Snapshot

STORED: Final = b"\x80"
SENT_FORMAT: Final = 0x81
_HEAD: Final = struct.Struct(">BQI")


class Pairs(NamedTuple):
    """What a message says: the replicated clock, the rolling hash, and keys and values in turn."""

    time_ms: int
    hash: int
    items: list[bytes]


def pack_pairs(applied: Applied, items: Iterable[bytes]) -> bytes:
    """Return a snapshot's data. items: keys and values in turn."""
    packed: bytes = msgpack.packb(list(items))
    return _HEAD.pack(SENT_FORMAT, applied.time_ms, applied.hash) + packed


def unpack_pairs(data: bytes) -> Pairs:
    """Return what `pack_pairs` was given; of a founding, nothing. Raises CorruptRecord: it is something else."""
    if not data:
        return Pairs(0, 0, [])
    if len(data) < _HEAD.size or data[0] != SENT_FORMAT:
        raise CorruptRecord(
            f"a snapshot's data is of format {data[0]}; a machine on disk takes {SENT_FORMAT}. The leader's machine "
            "may be one in memory: declare the service alike on all nodes"
        )
    _, time_ms, value = _HEAD.unpack_from(data)
    try:
        items = msgpack.unpackb(memoryview(data)[_HEAD.size :])
    except ValueError as problem:
        raise CorruptRecord(f"a snapshot's data does not decode: {problem}") from problem
    if type(items) is not list or len(items) % 2 or set(map(type, items)) - {bytes}:
        raise CorruptRecord("a snapshot's data holds something else than keys and values")
    return Pairs(time_ms, value, items)


def put_snapshot(store: Store, batch: WriteBatch, data: ReplicaData, write: SnapshotWrite) -> None:
    """Put a snapshot of a machine on disk into `batch`; of one that a leader sent, the switch to its state as well.

    That is in a keyspace that was filled for it (`data.arriving`); otherwise it is in the message, and put into a fresh
    one here. Raises CorruptRecord for a message that does not decode.
    """
    snapshot = write.snapshot
    if write.installs:
        applied = data.arriving.pop((snapshot.index, snapshot.term), None)
        if applied is None:
            pairs = unpack_pairs(snapshot.data)
            space = store.new_space(batch)
            items = iter(pairs.items)
            for key, value in zip(items, items, strict=True):
                batch.put_data(space, key, value)
            applied = Applied(snapshot.index, snapshot.term, pairs.time_ms, pairs.hash, space)
        batch.put_applied(data.group_id, applied)
        data.installing.append(applied)
    else:
        invariant(snapshot.index <= data.durable.index, "a log is replaced by what is durable")
    batch.put_snapshot(
        data.group_id, Snapshot(snapshot.index, snapshot.term, snapshot.membership, STORED), write.log_start
    )
