"""What is on a memory disk, read past every store: the witness for what nodes promise.

Rules of this file: reads only, with the store's own layout; damage reads as absence.
"""

from __future__ import annotations

from functools import lru_cache

from multiraft.errors import CorruptRecord
from multiraft.records import Record
from multiraft.storage import MemoryDisk, layout
from multiraft.types import U64_MAX, GroupId, HardState, Index, LogStart, ReplicaId, Term


@lru_cache(maxsize=4096)
def _hard_state(group_id: GroupId, raw: bytes) -> HardState:
    return layout.decode_hard_state(group_id, raw)


@lru_cache(maxsize=4096)
def _log_start(group_id: GroupId, raw: bytes) -> LogStart:
    return layout.decode_log_start(group_id, raw)


def hard_state(disk: MemoryDisk, group_id: GroupId) -> HardState | None:
    """Return term, vote and commit as the disk has them; None where it has none."""
    raw = disk.read(layout.group_key(group_id, layout.KIND_HARD_STATE))
    try:
        return _hard_state(group_id, raw) if raw is not None else None
    except CorruptRecord:
        return None


def log_start(disk: MemoryDisk, group_id: GroupId) -> LogStart | None:
    """Return what stands in for the log below its first entry; None where there is nothing."""
    raw = disk.read(layout.group_key(group_id, layout.KIND_LOG_START))
    try:
        return _log_start(group_id, raw) if raw is not None else None
    except CorruptRecord:
        return None


def record_at(disk: MemoryDisk, group_id: GroupId, index: Index) -> Record | None:
    """Return the stored record that holds `index`; None where none does."""
    key = disk.key_at_or_below(layout.record_key(group_id, index))
    if key is None or key < layout.record_key(group_id, 0):
        return None
    raw = disk.read(key)
    if raw is None:
        return None
    try:
        first = layout.split_key(key)[2]
        record = layout.decode_stored_record(group_id, first, raw)
    except CorruptRecord:
        return None
    return record if record.first <= index <= record.last else None


def holds(disk: MemoryDisk, group_id: GroupId, index: Index, term: Term) -> bool:
    """Whether the entry of `index` and `term` is on the disk, itself or in what stands in for the log's beginning."""
    start = log_start(disk, group_id)
    if start is not None and index <= start.index:
        return index < start.index or term == start.term
    record = record_at(disk, group_id, index)
    return record is not None and record.term == term


def last_entry(disk: MemoryDisk, group_id: GroupId) -> tuple[Index, Term]:
    """Return index and term of the last entry on the disk; of the log's start where there is none."""
    key = disk.key_at_or_below(layout.record_key(group_id, U64_MAX))
    if key is not None and key >= layout.record_key(group_id, 0):
        raw = disk.read(key)
        if raw is not None:
            try:
                record = layout.decode_stored_record(group_id, layout.split_key(key)[2], raw)
                return record.last, record.term
            except CorruptRecord:
                return 0, 0
    start = log_start(disk, group_id)
    return (start.index, start.term) if start is not None else (0, 0)


def removed(disk: MemoryDisk, group_id: GroupId, replica_id: ReplicaId) -> bool:
    """Whether the disk says that this replica was removed from its group: nothing of it needs to be kept then."""
    key = layout.tombstone_key(group_id)
    raw = disk.read(key)
    try:
        return raw is not None and replica_id <= layout.decode_tombstone(key, raw).replica_id
    except CorruptRecord:
        return False
