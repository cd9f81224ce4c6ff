"""A write batch of one node's store: what the ports' batch puts, as keys and values.

Rules of this file: no loop, no copy, no object but the key on the hot path, which is `put_step`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Final

from multiraft.errors import invariant
from multiraft.records import Record
from multiraft.storage import layout
from multiraft.storage.backend import RawBatch
from multiraft.types import (
    Applied,
    Damage,
    GroupId,
    Halt,
    HardState,
    Index,
    LogStart,
    Membership,
    NodeId,
    ReplicaDescriptor,
    ReplicaId,
    SeenRun,
    Snapshot,
    SpaceId,
    Term,
    Tombstone,
)

_KEY_OVERHEAD_BYTES: Final = 32
"""About what LevelDB adds to each value: the key, lengths and tags."""
_STEP_BYTES: Final = 2 * _KEY_OVERHEAD_BYTES + layout.HARD_STATE_BYTES


class PartitionedBatch:
    """Writes of any number of groups that reach the disk together or not at all. Belongs to `submit` once given to it.

    size_bytes  an estimate of the batch's size, for capping it
    """

    __slots__ = ("_delete", "_put", "raw", "size_bytes")

    def __init__(self, raw: RawBatch) -> None:
        self.raw = raw
        self.size_bytes = 0
        self._put: Callable[[bytes, bytes], object] = raw.put
        self._delete: Callable[[bytes], object] = raw.delete

    def put_record(self, group_id: GroupId, record: Record) -> None:
        """Store `record` under its first index, replacing what is stored there."""
        raw = record.raw
        self._put(layout.record_key(group_id, record.first), raw)
        self.size_bytes += len(raw) + _KEY_OVERHEAD_BYTES

    def delete_records(self, group_id: GroupId, firsts: Iterable[Index]) -> None:
        """Delete the records stored under these first indexes."""
        for first in firsts:
            self._delete(layout.record_key(group_id, first))
            self.size_bytes += _KEY_OVERHEAD_BYTES

    def put_hard_state(self, group_id: GroupId, hard_state: HardState) -> None:
        """Store term, vote and commit as one value."""
        self._store(layout.group_key(group_id, layout.KIND_HARD_STATE), layout.encode_hard_state(group_id, hard_state))

    def put_step(self, group_id: GroupId, record: Record, term: Term, vote: ReplicaId, commit: Index) -> None:
        """Store `record`, and the hard state of these three, as `put_record` and `put_hard_state` would."""
        put, raw = self._put, record.raw
        put(layout.record_key(group_id, record.first), raw)
        key, state = layout.hard_state_item(group_id, term, vote, commit)
        put(key, state)
        self.size_bytes += len(raw) + _STEP_BYTES

    def put_membership(self, group_id: GroupId, membership: Membership) -> None:
        """Store the membership that is in effect, in place of the one before."""
        self._store(layout.group_key(group_id, layout.KIND_MEMBERSHIP), layout.encode_membership(group_id, membership))

    def create_replica(
        self, descriptor: ReplicaDescriptor, membership: Membership, hard_state: HardState, log_start: LogStart
    ) -> None:
        """Store everything that a replica needs to exist, with its initial state as the first snapshot."""
        group_id = descriptor.group_id
        key = layout.group_key
        if log_start.index:
            self.put_snapshot(group_id, Snapshot(log_start.index, log_start.term, membership), log_start)
        else:
            self._store(key(group_id, layout.KIND_LOG_START), layout.encode_log_start(group_id, log_start))
        self._store(key(group_id, layout.KIND_DESCRIPTOR), layout.encode_descriptor(descriptor))
        self._store(key(group_id, layout.KIND_HARD_STATE), layout.encode_hard_state(group_id, hard_state))
        self._store(key(group_id, layout.KIND_MEMBERSHIP), layout.encode_membership(group_id, membership))

    def put_snapshot(self, group_id: GroupId, snapshot: Snapshot, log_start: LogStart) -> None:
        """Store `snapshot` in place of the one before, and where the log starts from now on."""
        invariant(0 < log_start.index <= snapshot.index, "a log starts at or below what its snapshot covers")
        key = layout.group_key
        self._store(key(group_id, layout.KIND_SNAPSHOT), layout.encode_snapshot(group_id, snapshot))
        self._store(key(group_id, layout.KIND_LOG_START), layout.encode_log_start(group_id, log_start))

    def put_applied(self, group_id: GroupId, applied: Applied) -> None:
        """Store what the group's machine on disk has applied, and which keyspace holds its data."""
        self._store(layout.group_key(group_id, layout.KIND_APPLIED), layout.encode_applied(group_id, applied))

    def put_halt(self, group_id: GroupId, halt: Halt | None) -> None:
        """Store why the group's replica has stopped applying; None: it has not."""
        key = layout.group_key(group_id, layout.KIND_HALT)
        if halt is None:
            self._delete(key)
            self.size_bytes += _KEY_OVERHEAD_BYTES
        else:
            self._store(key, layout.encode_halt(group_id, halt))

    def put_data(self, space: SpaceId, key: bytes, value: bytes) -> None:
        """Store `value` under `key` of a keyspace."""
        stored_key = layout.data_key(space, key)
        sealed = layout.seal(stored_key, value)
        self._put(stored_key, sealed)
        self.size_bytes += len(stored_key) + len(sealed) + _KEY_OVERHEAD_BYTES

    def delete_data(self, space: SpaceId, key: bytes) -> None:
        """Delete `key` of a keyspace."""
        self._delete(layout.data_key(space, key))
        self.size_bytes += len(key) + _KEY_OVERHEAD_BYTES

    def remove_replica(self, tombstone: Tombstone) -> None:
        """Delete all of the group's replica but its log records, and leave `tombstone`."""
        group_id = tombstone.group_id
        for kind in layout.KINDS_WITHOUT_REST:
            self._delete(layout.group_key(group_id, kind))
            self.size_bytes += _KEY_OVERHEAD_BYTES
        self._store(layout.tombstone_key(group_id), layout.encode_tombstone(tombstone))

    def put_damage(self, damages: Sequence[Damage]) -> None:
        """Store which replicas are lost to damage that is to be seen no more, in place of what was stored before."""
        if damages:
            self._store(layout.DAMAGE_KEY, layout.encode_damage(damages))
        else:
            self._delete(layout.DAMAGE_KEY)

    def put_seen(self, seen: Mapping[NodeId, SeenRun]) -> None:
        """Store the latest run seen of each peer's store, in place of what was stored before."""
        self._store(layout.SEEN_KEY, layout.encode_seen(seen))

    def delete_leftovers(self, keys: Iterable[bytes]) -> None:
        """Delete keys that `Store.read_leftovers` or `Store.read_space` has returned."""
        for key in keys:
            self._delete(key)
            self.size_bytes += _KEY_OVERHEAD_BYTES

    def _store(self, key: bytes, value: bytes) -> None:
        self._put(key, value)
        self.size_bytes += len(value) + _KEY_OVERHEAD_BYTES
