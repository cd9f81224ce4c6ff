"""How a store's keys and small values look.

    key    group id (8 bytes, big-endian) | kind (1 byte) | rest
    value  format (1 byte) | CRC-32 over key, format and body (4 bytes) | body

A group's keys are neighbours, its small values come before its log records, and a record's rest is its first index
(8 bytes, big-endian), so the order of the keys is the order of the log. Record values are records as they are
(multiraft.records), which carry a format and checksum of their own. Group 0 holds what concerns the whole store.

Kinds of a group: 1 descriptor, 2 hard state, 3 membership, 4 log start, 5 what its state machine on disk has applied,
6 why it has halted, 7 log record, 8 snapshot. Kinds of group 0: 1 store format, 2 identity, 3 incarnation, 4 closing,
5 tombstone of a removed replica (rest: its group, 8 bytes), apart from the group's own keys, so that all tombstones are
read without passing over any group; 6 the ids of the latest runs, oldest first, 8 bytes each; 7 the latest run seen of
each peer's store; 8 why this store may take part no longer; 9 the next keyspace id; 10 data of state machines (rest:
keyspace id, 8 bytes; then the key within it, which begins with a byte for the part: 0 the machine's own, 1 sessions);
11 the replicas that were lost to damage, and left out when the rest was copied.
Data lie here, and not with their group, so that reading all replicas passes over none of them, and so that a keyspace
can be filled before its group is switched to it.

Rules of this file: pure functions of bytes; a decoder raises CorruptRecord, never anything else; a checksum covers
the key, so that a value which turns up under another key is refused.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterable, Mapping
from typing import Any, Final

import msgpack

from multiraft.errors import CorruptRecord
from multiraft.membership import checked_id, checked_u64, pack_membership, unpack_membership
from multiraft.records import Record, decode_record
from multiraft.types import (
    RUN_ID_BYTES,
    U64_MAX,
    Applied,
    Damage,
    GroupId,
    Halt,
    HardState,
    Identity,
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

STORE_FORMAT: Final = 4
"""Raised when a store written by this version can no longer be read by the one before."""
VALUE_FORMAT: Final = 1

KIND_DESCRIPTOR: Final = 1
KIND_HARD_STATE: Final = 2
KIND_MEMBERSHIP: Final = 3
KIND_LOG_START: Final = 4
KIND_APPLIED: Final = 5
KIND_HALT: Final = 6
KIND_RECORD: Final = 7
KIND_SNAPSHOT: Final = 8
_KIND_TOMBSTONE: Final = 5
_KIND_DATA: Final = 10
KINDS_WITHOUT_REST: Final = (
    KIND_DESCRIPTOR,
    KIND_HARD_STATE,
    KIND_MEMBERSHIP,
    KIND_LOG_START,
    KIND_APPLIED,
    KIND_HALT,
    KIND_SNAPSHOT,
)

_KEY: Final = struct.Struct(">QB")
_RECORD_KEY: Final = struct.Struct(">QBQ")
_VALUE_HEAD: Final = struct.Struct(">BI")
_HARD_STATE: Final = struct.Struct(">QQQ")
_LOG_START: Final = struct.Struct(">QQ")
_APPLIED: Final = struct.Struct(">QQQIQ")
_NUMBER: Final = struct.Struct(">Q")
_TOMBSTONE: Final = struct.Struct(">QQ")

FORMAT_KEY: Final = _KEY.pack(0, 1)
IDENTITY_KEY: Final = _KEY.pack(0, 2)
INCARNATION_KEY: Final = _KEY.pack(0, 3)
CLOSING_KEY: Final = _KEY.pack(0, 4)
FIRST_TOMBSTONE_KEY: Final = _RECORD_KEY.pack(0, _KIND_TOMBSTONE, 0)
TOMBSTONES_END_KEY: Final = _KEY.pack(0, _KIND_TOMBSTONE + 1)
RUNS_KEY: Final = _KEY.pack(0, 6)
SEEN_KEY: Final = _KEY.pack(0, 7)
CONDEMNED_KEY: Final = _KEY.pack(0, 8)
NEXT_SPACE_KEY: Final = _KEY.pack(0, 9)
FIRST_DATA_KEY: Final = _KEY.pack(0, _KIND_DATA)
DATA_END_KEY: Final = _KEY.pack(0, _KIND_DATA + 1)
DAMAGE_KEY: Final = _KEY.pack(0, _KIND_DATA + 1)
FIRST_GROUP_KEY: Final = _KEY.pack(1, 0)

_ID_BYTES_MAX: Final = 64
_crc32: Final = zlib.crc32
_pack_key: Final = _KEY.pack
_pack_record_key: Final = _RECORD_KEY.pack
_pack_hard_state: Final = _HARD_STATE.pack
_pack_head: Final = _VALUE_HEAD.pack
HARD_STATE_BYTES: Final = _VALUE_HEAD.size + _HARD_STATE.size

# ------------------------------------------------------------------------------------------------------------ keys


def group_key(group_id: GroupId, kind: int) -> bytes:
    """Return the key of a group's value of this kind."""
    return _KEY.pack(group_id, kind)


def record_key(group_id: GroupId, first: Index) -> bytes:
    """Return the key of the log record that starts at index `first`."""
    return _pack_record_key(group_id, KIND_RECORD, first)


def log_end_key(group_id: GroupId) -> bytes:
    """Return the key just above every log record of the group."""
    return _KEY.pack(group_id, KIND_RECORD + 1)


def group_span(group_id: GroupId) -> tuple[bytes, bytes]:
    """Return the first key that a group may have, and the key just above all of them."""
    # No kind is 255, so this stays above the group's keys also for the last group of all.
    return _KEY.pack(group_id, 0), _KEY.pack(group_id, 255)


def tombstone_key(group_id: GroupId) -> bytes:
    """Return the key of the tombstone of the group's replica that lived here."""
    return _RECORD_KEY.pack(0, _KIND_TOMBSTONE, group_id)


def data_key(space: SpaceId, key: bytes) -> bytes:
    """Return the stored key of `key` within a keyspace."""
    return _RECORD_KEY.pack(0, _KIND_DATA, space) + key


def data_span(space: SpaceId, start: bytes = b"", stop: bytes | None = None) -> tuple[bytes, bytes]:
    """Return the stored keys between which the keys start <= key < stop of a keyspace lie; None: to its end."""
    first = _RECORD_KEY.pack(0, _KIND_DATA, space)
    if stop is not None:
        return first + start, first + stop
    return first + start, DATA_END_KEY if space == U64_MAX else _RECORD_KEY.pack(0, _KIND_DATA, space + 1)


def split_data_key(key: bytes) -> tuple[SpaceId, bytes]:
    """Return (keyspace, key within it) of a stored key between FIRST_DATA_KEY and DATA_END_KEY.

    Raises CorruptRecord.
    """
    if len(key) < _RECORD_KEY.size:
        raise CorruptRecord(f"unknown key {key[:32].hex()}: damaged, or written by a later version of multiraft")
    return _RECORD_KEY.unpack_from(key)[2], key[_RECORD_KEY.size :]


def group_of(key: bytes) -> GroupId:
    """Return the group that a stored key is of; 0 for the store's own. Raises CorruptRecord."""
    if len(key) < 8:
        raise CorruptRecord(f"unknown key {key.hex()}: damaged, or written by a later version of multiraft")
    return int.from_bytes(key[:8], "big")


def split_key(key: bytes) -> tuple[GroupId, int, Index]:
    """Return (group, kind, first index) of a stored key; the index is 0 where the kind has none.

    Raises CorruptRecord for a key that this version does not write.
    """
    if len(key) == _RECORD_KEY.size and key[8] == KIND_RECORD:
        group_id, kind, first = _RECORD_KEY.unpack(key)
        return group_id, kind, first
    if len(key) == _KEY.size and key[8] in KINDS_WITHOUT_REST:
        group_id, kind = _KEY.unpack(key)
        return group_id, kind, 0
    raise CorruptRecord(f"unknown key {key[:32].hex()}: damaged, or written by a later version of multiraft")


# ---------------------------------------------------------------------------------------------------------- values


def seal(key: bytes, body: bytes) -> bytes:
    """Return `body` with its format and a checksum over `key` and itself."""
    return _VALUE_HEAD.pack(VALUE_FORMAT, _checksum(key, body)) + body


def unseal(key: bytes, value: bytes, what: str) -> bytes:
    """Return the body of a sealed value. Raises CorruptRecord, naming `what` it was meant to be."""
    if len(value) < _VALUE_HEAD.size:
        raise CorruptRecord(f"{what}: only {len(value)} bytes")
    value_format, checksum = _VALUE_HEAD.unpack_from(value)
    if value_format != VALUE_FORMAT:
        raise CorruptRecord(f"{what}: format {value_format}, this version reads {VALUE_FORMAT}")
    body = value[_VALUE_HEAD.size :]
    if _checksum(key, body) != checksum:
        raise CorruptRecord(f"{what}: checksum does not hold")
    return body


def _checksum(key: bytes, body: bytes) -> int:
    return zlib.crc32(body, zlib.crc32(key, VALUE_FORMAT))


def encode_hard_state(group_id: GroupId, hard_state: HardState) -> bytes:
    return hard_state_item(group_id, hard_state.term, hard_state.vote, hard_state.commit)[1]


def hard_state_item(group_id: GroupId, term: Term, vote: ReplicaId, commit: Index) -> tuple[bytes, bytes]:
    """Return the key and the value of a group's hard state."""
    key = _pack_key(group_id, KIND_HARD_STATE)
    body = _pack_hard_state(term, vote, commit)
    return key, _pack_head(VALUE_FORMAT, _crc32(key + body, VALUE_FORMAT)) + body


def decode_hard_state(group_id: GroupId, value: bytes) -> HardState:
    """Raises CorruptRecord."""
    what = f"hard state of group {group_id}"
    return HardState(*_fixed(_HARD_STATE, group_key(group_id, KIND_HARD_STATE), value, what))


def encode_log_start(group_id: GroupId, log_start: LogStart) -> bytes:
    return seal(group_key(group_id, KIND_LOG_START), _LOG_START.pack(log_start.index, log_start.term))


def decode_log_start(group_id: GroupId, value: bytes) -> LogStart:
    """Raises CorruptRecord."""
    what = f"log start of group {group_id}"
    return LogStart(*_fixed(_LOG_START, group_key(group_id, KIND_LOG_START), value, what))


def encode_applied(group_id: GroupId, applied: Applied) -> bytes:
    body = _APPLIED.pack(applied.index, applied.term, applied.time_ms, applied.hash, applied.space)
    return seal(group_key(group_id, KIND_APPLIED), body)


def decode_applied(group_id: GroupId, value: bytes) -> Applied:
    """Raises CorruptRecord."""
    what = f"applied index of group {group_id}"
    applied = Applied(*_fixed(_APPLIED, group_key(group_id, KIND_APPLIED), value, what))
    checked_id(applied.space, what)
    return applied


def encode_halt(group_id: GroupId, halt: Halt) -> bytes:
    fields = [halt.index, halt.kind, halt.reason, halt.command, halt.wall_ms]
    return seal(group_key(group_id, KIND_HALT), msgpack.packb(fields))


def decode_halt(group_id: GroupId, value: bytes) -> Halt:
    """Raises CorruptRecord."""
    what = f"halt of group {group_id}"
    index, kind, reason, command, wall_ms = _fields(group_key(group_id, KIND_HALT), value, what, 5)
    return Halt(
        checked_u64(index, what),
        _text(kind, what),
        _text(reason, what),
        _text(command, what),
        checked_u64(wall_ms, what),
    )


def encode_data(space: SpaceId, key: bytes, value: bytes) -> bytes:
    return seal(data_key(space, key), value)


def decode_data(stored_key: bytes, value: bytes) -> bytes:
    """Return what was put under a key of a keyspace. Raises CorruptRecord."""
    return unseal(stored_key, value, f"data under key {stored_key[_KEY.size :][:64].hex()}")


def encode_number(key: bytes, number: int) -> bytes:
    """Encode a store-wide number (format, incarnation, closing record) for storing under `key`."""
    return seal(key, _NUMBER.pack(number))


def decode_number(key: bytes, value: bytes, what: str) -> int:
    """Raises CorruptRecord, naming `what` it was meant to be."""
    return int(_fixed(_NUMBER, key, value, what)[0])


def encode_descriptor(descriptor: ReplicaDescriptor) -> bytes:
    body: bytes = msgpack.packb([descriptor.replica_id, descriptor.service])
    return seal(group_key(descriptor.group_id, KIND_DESCRIPTOR), body)


def decode_descriptor(group_id: GroupId, value: bytes) -> ReplicaDescriptor:
    """Raises CorruptRecord."""
    what = f"descriptor of group {group_id}"
    replica_id, service = _fields(group_key(group_id, KIND_DESCRIPTOR), value, what, 2)
    return ReplicaDescriptor(group_id, checked_id(replica_id, what), _text(service, what))


def encode_membership(group_id: GroupId, membership: Membership) -> bytes:
    return seal(group_key(group_id, KIND_MEMBERSHIP), pack_membership(membership))


def decode_membership(group_id: GroupId, value: bytes) -> Membership:
    """Raises CorruptRecord, also for a membership that does not make sense."""
    what = f"membership of group {group_id}"
    return unpack_membership(unseal(group_key(group_id, KIND_MEMBERSHIP), value, what), what)


def encode_snapshot(group_id: GroupId, snapshot: Snapshot) -> bytes:
    fields = [snapshot.index, snapshot.term, pack_membership(snapshot.membership), snapshot.data]
    return seal(group_key(group_id, KIND_SNAPSHOT), msgpack.packb(fields))


def decode_snapshot(group_id: GroupId, value: bytes) -> Snapshot:
    """Raises CorruptRecord, also for a snapshot that does not make sense."""
    what = f"snapshot of group {group_id}"
    index, term, membership, data = _fields(group_key(group_id, KIND_SNAPSHOT), value, what, 4)
    if type(membership) is not bytes or type(data) is not bytes:
        raise CorruptRecord(f"{what}: does not make sense")
    snapshot = Snapshot(checked_u64(index, what), checked_u64(term, what), unpack_membership(membership, what), data)
    if snapshot.index == 0 or snapshot.membership.index > snapshot.index:
        raise CorruptRecord(f"{what}: does not make sense")
    return snapshot


def encode_tombstone(tombstone: Tombstone) -> bytes:
    return seal(tombstone_key(tombstone.group_id), _TOMBSTONE.pack(tombstone.replica_id, tombstone.index))


def decode_tombstone(key: bytes, value: bytes) -> Tombstone:
    """Return the tombstone found under `key`, one between FIRST_TOMBSTONE_KEY and TOMBSTONES_END_KEY.

    Raises CorruptRecord.
    """
    if len(key) != _RECORD_KEY.size:
        raise CorruptRecord(f"unknown key {key[:32].hex()}: damaged, or written by a later version of multiraft")
    group_id: GroupId = _RECORD_KEY.unpack(key)[2]
    what = f"tombstone of group {group_id}"
    replica_id, index = _fixed(_TOMBSTONE, key, value, what)
    return Tombstone(group_id, checked_id(replica_id, what), index)


def encode_identity(identity: Identity) -> bytes:
    fields = [
        identity.node_id,
        identity.store_id,
        identity.cluster_id,
        sorted(identity.stores.items()),
        identity.admitted,
        identity.readmissions,
        identity.generation,
    ]
    return seal(IDENTITY_KEY, msgpack.packb(fields))


def decode_identity(value: bytes) -> Identity:
    """Raises CorruptRecord."""
    what = "identity of the store"
    node_id, store_id, cluster_id, pairs, admitted, readmissions, generation = _fields(IDENTITY_KEY, value, what, 7)
    stores = {_text(k, what): _token(v, what, 1) for k, v in _pairs(pairs, what)}
    if type(admitted) is not list:
        raise CorruptRecord(f"{what}: names are not a list")
    return Identity(
        _text(node_id, what),
        _token(store_id, what, 1),
        _token(cluster_id, what, 0),
        stores,
        tuple(_text(name, what) for name in admitted),
        checked_u64(readmissions, what),
        checked_u64(generation, what),
    )


def encode_identity_file(identity: Identity, incarnation: int, closed: bool) -> bytes:
    """Encode what stands apart from the database: whose store it is, its latest run, and whether that ended orderly."""
    return seal(IDENTITY_KEY, msgpack.packb([encode_identity(identity), incarnation, closed]))


def decode_identity_file(value: bytes) -> tuple[Identity, int, bool]:
    """Return (identity, incarnation, closed). Raises CorruptRecord."""
    what = "IDENTITY file"
    identity, incarnation, closed = _fields(IDENTITY_KEY, value, what, 3)
    if type(identity) is not bytes or type(closed) is not bool:
        raise CorruptRecord(f"{what}: does not make sense")
    return decode_identity(identity), checked_u64(incarnation, what), closed


def encode_runs(runs: tuple[bytes, ...]) -> bytes:
    return seal(RUNS_KEY, b"".join(runs))


def decode_runs(value: bytes) -> tuple[bytes, ...]:
    """Raises CorruptRecord."""
    body = unseal(RUNS_KEY, value, "run ids")
    if len(body) % RUN_ID_BYTES:
        raise CorruptRecord("run ids: cut short")
    return tuple(body[at : at + RUN_ID_BYTES] for at in range(0, len(body), RUN_ID_BYTES))


def encode_seen(seen: Mapping[NodeId, SeenRun]) -> bytes:
    rows = [[node_id, run.store_id, run.incarnation, run.run_id] for node_id, run in sorted(seen.items())]
    return seal(SEEN_KEY, msgpack.packb(rows))


def decode_seen(value: bytes) -> dict[NodeId, SeenRun]:
    """Raises CorruptRecord."""
    what = "runs seen of peers"
    try:
        rows = msgpack.unpackb(unseal(SEEN_KEY, value, what))
        return {
            _text(name, what): SeenRun(_token(store_id, what, 1), checked_u64(number, what), _token(run_id, what, 0))
            for name, store_id, number, run_id in rows
        }
    except (ValueError, TypeError) as problem:
        raise CorruptRecord(f"{what}: does not decode: {problem}") from problem


def encode_damage(damages: Iterable[Damage]) -> bytes:
    rows = [[one.first, one.last, one.problem, one.replica_id, one.alone] for one in damages]
    return seal(DAMAGE_KEY, msgpack.packb(rows))


def decode_damage(value: bytes) -> list[Damage]:
    """Raises CorruptRecord."""
    what = "list of lost replicas"
    try:
        rows = msgpack.unpackb(unseal(DAMAGE_KEY, value, what))
        return [
            Damage(
                checked_u64(first, what),
                checked_u64(last, what),
                _text(problem, what),
                checked_u64(replica_id, what),
                bool(alone),
            )
            for first, last, problem, replica_id, alone in rows
        ]
    except (ValueError, TypeError) as problem:
        raise CorruptRecord(f"{what}: does not decode: {problem}") from problem


def encode_condemned(reason: str) -> bytes:
    return seal(CONDEMNED_KEY, reason.encode())


def decode_condemned(value: bytes) -> str:
    """Raises CorruptRecord."""
    return unseal(CONDEMNED_KEY, value, "condemnation").decode(errors="replace")


def decode_stored_record(group_id: GroupId, first: Index, value: bytes) -> Record:
    """Return the record found under the key of index `first`. Raises CorruptRecord, also when it is another one."""
    try:
        record = decode_record(group_id, value)
    except CorruptRecord as problem:
        raise CorruptRecord(f"{problem} (stored at index {first})") from None
    if record.first != first or record.last > U64_MAX:
        raise CorruptRecord(f"record of group {group_id} stored at index {first} starts at {record.first}")
    return record


# --------------------------------------------------------------------------------------------------------- checking


def _fixed(layout: struct.Struct, key: bytes, value: bytes, what: str) -> tuple[int, ...]:
    body = unseal(key, value, what)
    if len(body) != layout.size:
        raise CorruptRecord(f"{what}: {len(body)} bytes where {layout.size} belong")
    return layout.unpack(body)


def _fields(key: bytes, value: bytes, what: str, count: int) -> list[Any]:
    body = unseal(key, value, what)
    try:
        fields = msgpack.unpackb(body)
    except Exception as problem:
        raise CorruptRecord(f"{what}: does not decode: {problem}") from problem
    if type(fields) is not list or len(fields) != count:
        raise CorruptRecord(f"{what}: holds something else than {count} fields")
    return fields


def _text(value: object, what: str) -> str:
    if type(value) is not str:
        raise CorruptRecord(f"{what}: a name is not text")
    return value


def _token(value: object, what: str, least_bytes: int) -> bytes:
    if type(value) is not bytes or not least_bytes <= len(value) <= _ID_BYTES_MAX:
        raise CorruptRecord(f"{what}: an id is not {least_bytes}-{_ID_BYTES_MAX} bytes")
    return value


def _pairs(value: object, what: str) -> list[tuple[object, object]]:
    if type(value) is not list or not all(type(pair) is list and len(pair) == 2 for pair in value):
        raise CorruptRecord(f"{what}: a table is not a list of pairs")
    return [(pair[0], pair[1]) for pair in value]
