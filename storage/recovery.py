"""What a recovery from a lost quorum reads of a data directory, and what it writes there, while the node is stopped.

Rules of this file: reading changes nothing; everything that is written, for all groups, is one batch, so that a crash
leaves all of it or nothing; the identity file comes after the database, as always.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final

from multiraft.errors import CorruptRecord, StorageError
from multiraft.membership import unpack_membership
from multiraft.records import MEMBERSHIP, Record
from multiraft.snapshot_file import FileReader, Manifest
from multiraft.storage import layout
from multiraft.storage.backend import Backend, Reader
from multiraft.storage.batches import PartitionedBatch
from multiraft.storage.check import read_tombstones, scan_replicas
from multiraft.storage.identity import Opening, read_opening
from multiraft.storage.inspect import reading
from multiraft.storage.opening import open_backend
from multiraft.storage.snapshot_files import SNAPSHOTS_DIR
from multiraft.types import (
    GroupId,
    Halt,
    HardState,
    Identity,
    Index,
    Membership,
    Snapshot,
    StoredReplica,
    Tombstone,
)

_PIECE_BYTES: Final = 256 * 1024


@dataclass(frozen=True, slots=True)
class FoundReplica:
    """One group's replica in a data directory.

    stored         None where something of it is missing or damaged
    pending        the memberships in its log that have no effect on it yet, ascending by index
    last_stamp_ms  the clock of the leader that appended the last entry of its log; 0 where the log is empty
    problems       what does not hold, one line each
    """

    group_id: GroupId
    stored: StoredReplica | None
    pending: tuple[Membership, ...]
    last_stamp_ms: int
    halt: Halt | None
    problems: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Rewrite:
    """What becomes of one replica: it goes on from `record` as of `membership`, or is removed, or only its term rises.

    hard_state  None: it is removed
    """

    group_id: GroupId
    hard_state: HardState | None
    membership: Membership | None = None
    record: Record | None = None
    tombstone: Tombstone | None = None


@contextlib.contextmanager
def reading_store(path: str) -> Iterator[tuple[Reader, Opening]]:
    """Give a reader of the data directory, which is not changed, and what the store says of itself.

    Raises StorageError: not a data directory, in use, or damaged as a whole.
    """
    with reading(path) as reader:
        yield reader, read_opening(reader)


def find_replicas(reader: Reader) -> Iterator[FoundReplica]:
    """Yield every replica, by group id, also those that are damaged. Raises CorruptRecord where nothing can be told."""
    for scan in scan_replicas(reader, read_tombstones(reader)):
        if scan.removed:
            continue
        try:
            stored = scan.stored()
            pending = tuple(_pending(reader, scan.group_id, index) for index in stored.changes)
            stamp_ms = _last_stamp(reader, scan.group_id)
        except CorruptRecord as problem:
            told = tuple(scan.problems) or (str(problem),)
            yield FoundReplica(scan.group_id, None, (), 0, None, told)
            continue
        yield FoundReplica(scan.group_id, stored, pending, stamp_ms, stored.halt, ())


def read_whole_log(reader: Reader, group_id: GroupId) -> tuple[Snapshot | None, list[Record]]:
    """Return a group's snapshot, and its log's records as stored: one may be cut short by the next. For small groups.

    Raises CorruptRecord.
    """
    raw = reader.get(layout.group_key(group_id, layout.KIND_SNAPSHOT))
    snapshot = None if raw is None else layout.decode_snapshot(group_id, raw)
    records = [
        layout.decode_stored_record(group_id, layout.split_key(key)[2], value)
        for key, value in reader.items(layout.record_key(group_id, 0), layout.log_end_key(group_id))
    ]
    return snapshot, records


def read_snapshot_file(path: str, manifest: Manifest) -> Iterator[bytes]:
    """Yield the chunks of a snapshot's file in the data directory; whole and verified when the last one was taken.

    Raises CorruptRecord: damaged, or not there.
    """
    reader = FileReader(manifest)
    try:
        with open(os.path.join(path, SNAPSHOTS_DIR, manifest.name), "rb") as file:
            while piece := file.read(_PIECE_BYTES):
                yield from reader.feed(piece)
    except OSError as problem:
        raise CorruptRecord(f"snapshot file {manifest.name}: cannot be read: {problem.strerror}") from problem
    reader.finish()


def _pending(reader: Reader, group_id: GroupId, index: Index) -> Membership:
    start, stop = layout.record_key(group_id, 0), layout.record_key(group_id, index) + b"\0"
    for key, value in reader.items(start, stop, reverse=True):
        record = layout.decode_stored_record(group_id, layout.split_key(key)[2], value)
        if record.kind == MEMBERSHIP and record.first <= index <= record.last:
            return unpack_membership(record.entries()[index - record.first], f"group {group_id}: entry {index}")
        break
    raise CorruptRecord(f"group {group_id}: no membership at index {index}")


def _last_stamp(reader: Reader, group_id: GroupId) -> int:
    for key, value in reader.items(layout.record_key(group_id, 0), layout.log_end_key(group_id), reverse=True):
        return layout.decode_stored_record(group_id, layout.split_key(key)[2], value).stamp_ms
    return 0


@contextlib.contextmanager
def writing_store(path: str) -> Iterator[Backend]:
    """Open the data directory, which exists, for writing, without beginning a run. Raises StorageError."""
    loop = asyncio.new_event_loop()
    try:
        backend = open_backend(path, loop)
        try:
            yield backend
        finally:
            backend.abandon()
    finally:
        loop.close()


def write_recovery(backend: Backend, identity: Identity, rewrites: Iterable[Rewrite]) -> None:
    """Write what becomes of the replicas, and the identity with its new generation; synced on return.

    Raises StorageError.
    """
    found = read_opening(backend)
    if found.identity is None or found.identity.store_id != identity.store_id:
        raise StorageError(f"{backend.name} is not the store that was to be recovered; name another directory")
    raw = backend.batch()
    batch = PartitionedBatch(raw)
    for rewrite in rewrites:
        if rewrite.record is not None:
            batch.put_record(rewrite.group_id, rewrite.record)
        if rewrite.hard_state is not None:
            batch.put_hard_state(rewrite.group_id, rewrite.hard_state)
        if rewrite.membership is not None:
            batch.put_membership(rewrite.group_id, rewrite.membership)
        if rewrite.tombstone is not None:
            batch.remove_replica(rewrite.tombstone)
    raw.put(layout.IDENTITY_KEY, layout.encode_identity(identity))
    backend.write(raw)
    mend_identity_file(backend)


def mend_identity_file(backend: Backend) -> None:
    """Bring the identity file up to its database, as a start would do. Raises StorageError."""
    found = read_opening(backend)
    if found.identity is not None:
        backend.save_identity(layout.encode_identity_file(found.identity, found.incarnation, found.closed_orderly))
