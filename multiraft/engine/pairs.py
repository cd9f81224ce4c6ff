"""The state of a machine on disk as what is stored of a snapshot, and the switch to one that a leader has sent.

    stored   format 128 (1 byte): the state is the keyspace, and is made into a message when somebody needs it
    sent     the keyspace as a stream of pairs (pairstream.py), where it is small; else a manifest of a file of it

A group's founding has no data: an empty keyspace.

What a leader sent is put into a fresh keyspace, and the replica is switched to that by the very batch that stores the
snapshot: there is no moment at which a crash would find half of one and half of the other.

Rules of this file: bytes and batches; nothing is taken over before all of it has been looked at.
"""

from __future__ import annotations

from typing import Final

from multiraft.engine.keyspace import ReplicaData
from multiraft.engine.pairstream import read_pairs
from multiraft.errors import invariant
from multiraft.ports import Store, WriteBatch
from multiraft.raft.ready import SnapshotWrite
from multiraft.types import Applied, Snapshot

STORED: Final = b"\x80"


def put_snapshot(store: Store, batch: WriteBatch, data: ReplicaData, write: SnapshotWrite) -> None:
    """Put a snapshot of a machine on disk into `batch`; of one that a leader sent, the switch to its state as well.

    That is in a keyspace that was filled for it (`data.arriving`); otherwise it is in the message, and put into a fresh
    one here. Raises CorruptRecord for a message that does not decode.
    """
    snapshot = write.snapshot
    if write.installs:
        applied = data.arriving.pop((snapshot.index, snapshot.term), None)
        if applied is None:
            sent = read_pairs(snapshot.data)
            space = store.new_space(batch)
            for key, value in sent.pairs:
                batch.put_data(space, key, value)
            applied = Applied(snapshot.index, snapshot.term, sent.time_ms, sent.hash, space)
        batch.put_applied(data.group_id, applied)
        data.installing.append(applied)
    else:
        invariant(snapshot.index <= data.durable.index, "a log is replaced by what is durable")
    batch.put_snapshot(
        data.group_id, Snapshot(snapshot.index, snapshot.term, snapshot.membership, STORED), write.log_start
    )
