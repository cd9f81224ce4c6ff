"""Messages as byte strings, and back.

A message on the wire is a flat msgpack array of byte strings. The first is its head: the code (one byte), then its
numbers (8 bytes, big-endian) and flags (one byte) in the order of `__slots__`. The others are its variable parts in
that order: each record of an Append; the rows of a lead set, packed like heads; bodies and texts as they are. So one
`struct` call checks all numbers of a message at once, and a hostile frame cannot make the decoder build more than a
small multiple of itself: there is nothing nested to build.

Rules of this file: pure functions; decoding checks every field's type and range, and raises WireError, never anything
else.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Mapping
from operator import attrgetter
from typing import Any, Final

from multiraft.compiled import field_names
from multiraft.errors import CorruptRecord, InvariantViolation, WireError
from multiraft.gathered import AckRow, Acks, AppendRow, Appends
from multiraft.membership import unpack_membership
from multiraft.messages import (
    Append,
    AppendAnswer,
    AskRemoved,
    Beat,
    BeatAnswer,
    Committed,
    CommitTo,
    CreateReplica,
    Form,
    Formed,
    Installing,
    InstallSnapshot,
    LeadAll,
    LeadAsk,
    LeadDelta,
    Message,
    PreVote,
    PreVoteAnswer,
    Refuse,
    RemovedReplica,
    Request,
    RequestVote,
    Response,
    TimeoutNow,
    VoteAnswer,
)
from multiraft.records import decode_record
from multiraft.types import U64_MAX

_U8: Final = struct.Struct(">B")
_FORM: Final = struct.Struct(">BQQ")
_LED: Final = struct.Struct(">QQQ")
_REMOVED: Final = struct.Struct(">QQ")
_APPEND: Final = struct.Struct(">BQQQQQQQ")
_REQUEST: Final = struct.Struct(">BQQ")
_RESPONSE: Final = struct.Struct(">BQ")
_APPEND_ROW: Final = struct.Struct(">QQQQQQQ")
_ACK_ROW: Final = struct.Struct(">QQQQQ")
_SNAPSHOT: Final = struct.Struct(">BQQQQQQ")
_CREATE: Final = struct.Struct(">BQQ")

ID_BYTES_MAX: Final = 64
"""Longest cluster or store id that is taken from another node; the ones drawn here have 16 bytes."""

_FIXED: Final[Mapping[type, tuple[struct.Struct, Callable[[Any], tuple[Any, ...]]]]] = {
    kind: (struct.Struct(">B" + letters), attrgetter(*field_names(kind)))
    for kind, letters in (
        (PreVote, "QQQQQQ"),
        (PreVoteAnswer, "Q?QQQQ"),
        (RequestVote, "?QQQQQQ"),
        (VoteAnswer, "Q?QQQQ"),
        (AppendAnswer, "?QQQQQQQ"),
        (CommitTo, "QQQQQ"),
        (Committed, "QQQQQQ"),
        (Installing, "?QQQQQ"),
        (TimeoutNow, "QQQQ"),
        (Beat, "QQ?QQQ"),
        (BeatAnswer, "QQ"),
        (Refuse, "QQQ"),
        (RemovedReplica, "QQQ"),
        (AskRemoved, "QQ"),
    )
}
"""The messages that have no variable part: the layout of their head, and how to read all their fields at once."""


def to_wire(message: Message) -> tuple[bytes, ...]:
    """Return the message as byte strings: its head, then its variable parts. msgpack carries them as one array.

    Raises InvariantViolation when a field is outside its range: such a message must never have been made.
    """
    kind = type(message)
    try:
        encode = _ENCODERS.get(kind)
        if encode is not None:
            return encode(message)
        head, fields = _FIXED[kind]
        return (head.pack(kind.CODE, *fields(message)),)
    except struct.error as problem:
        raise InvariantViolation(f"{kind.__name__} cannot be encoded: {problem}") from problem


def from_wire(parts: object) -> Message:
    """Check and return the message in `parts`, a decoded msgpack array. Raises WireError, never anything else."""
    if type(parts) is not list or not parts or type(parts[0]) is not bytes or not parts[0]:
        raise WireError("a message is not an array that begins with a head")
    decode = _DECODERS.get(parts[0][0])
    if decode is None:
        raise WireError(f"unknown message code {parts[0][0]}")
    try:
        return decode(parts)
    except struct.error as problem:
        raise WireError(f"message {parts[0][0]}: {problem}") from problem


def _encode_append(message: Append) -> tuple[bytes, ...]:
    head = _APPEND.pack(
        Append.CODE,
        message.commit,
        message.group_id,
        message.prev_index,
        message.prev_term,
        message.sender,
        message.term,
        message.to,
    )
    if len(message.records) == 1:
        return (head, message.records[0].raw)
    return (head, *[record.raw for record in message.records])


def _encode_appends(message: Appends) -> tuple[bytes, ...]:
    return (_U8.pack(Appends.CODE), _join_rows(_APPEND_ROW, message.rows), *[record.raw for record in message.records])


def _encode_lead_delta(message: LeadDelta) -> tuple[bytes, ...]:
    return (_U8.pack(LeadDelta.CODE), _join_rows(_LED, message.added), _join_rows(_REMOVED, message.removed))


def _encode_form(message: Form) -> tuple[bytes, ...]:
    rows = [
        part
        for node_id, store_id in message.stores
        for part in (node_id.encode(), store_id, b"\x01" if node_id in message.stores_admitted else b"\x00")
    ]
    return (_FORM.pack(Form.CODE, message.stores_readmissions, message.stores_recovery), message.cluster_id, *rows)


def _encode_request(message: Request) -> tuple[bytes, ...]:
    head = _REQUEST.pack(Request.CODE, message.request_id, message.timeout_ms)
    return (head, message.body, message.method.encode())


def _encode_snapshot(message: InstallSnapshot) -> tuple[bytes, ...]:
    head = _SNAPSHOT.pack(
        InstallSnapshot.CODE,
        message.group_id,
        message.index,
        message.index_term,
        message.sender,
        message.term,
        message.to,
    )
    return (head, message.data, message.membership)


def _encode_create(message: CreateReplica) -> tuple[bytes, ...]:
    return (_CREATE.pack(CreateReplica.CODE, message.group_id, message.replica_id), message.service.encode())


_ENCODERS: Final[Mapping[type, Callable[[Any], tuple[bytes, ...]]]] = {
    Append: _encode_append,
    Appends: _encode_appends,
    Acks: lambda message: (_U8.pack(Acks.CODE), _join_rows(_ACK_ROW, message.rows)),
    InstallSnapshot: _encode_snapshot,
    CreateReplica: _encode_create,
    LeadAll: lambda message: (_U8.pack(LeadAll.CODE), _join_rows(_LED, message.led)),
    LeadDelta: _encode_lead_delta,
    LeadAsk: lambda message: (_U8.pack(LeadAsk.CODE),),
    Form: _encode_form,
    Formed: lambda message: (_U8.pack(Formed.CODE), message.cluster_id),
    Request: _encode_request,
    Response: lambda message: (_RESPONSE.pack(Response.CODE, message.request_id), message.body),
}


def _join_rows(row: struct.Struct, rows: Iterable[tuple[int, ...]]) -> bytes:
    return b"".join([row.pack(*cells) for cells in rows])


def _blob(value: object) -> bytes:
    if type(value) is not bytes:
        raise WireError("expected bytes")
    return value


def _rows(row: struct.Struct, value: object) -> tuple[Any, ...]:
    return tuple(row.iter_unpack(_blob(value)))


def _id(value: object) -> bytes:
    if len(found := _blob(value)) > ID_BYTES_MAX:
        raise WireError(f"expected an id of at most {ID_BYTES_MAX} bytes")
    return found


def _text(value: object) -> str:
    try:
        found = _blob(value).decode()
    except UnicodeDecodeError as problem:
        raise WireError("expected a text in UTF-8") from problem
    if not 0 < len(found) <= 255:
        raise WireError("expected a text of 1 to 255 characters")
    return found


def _take(parts: list[Any], count: int) -> None:
    if len(parts) != count:
        raise WireError(f"message {parts[0][0]}: wrong number of parts")


def _decode_append(parts: list[Any]) -> Append:
    _, commit, group_id, prev_index, prev_term, sender, term, to = _APPEND.unpack(parts[0])
    after, before_term = prev_index, prev_term
    records = []
    for raw in parts[1:]:
        if type(raw) is not bytes:
            raise WireError("append: a record is not bytes")
        try:
            record = decode_record(group_id, raw)
        except CorruptRecord as problem:
            raise WireError(f"append: {problem}") from problem
        if record.first != after + 1 or record.prev_term != before_term:
            raise WireError("append: records do not chain")
        after, before_term = record.last, record.term
        records.append(record)
    if after > U64_MAX or term < before_term:
        raise WireError("append: an index is out of range, or a record is of a later term than its leader")
    return Append(commit, group_id, prev_index, prev_term, tuple(records), sender, term, to)


def _decode_appends(parts: list[Any]) -> Appends:
    if len(parts) < 3:
        raise WireError("appends: wrong number of parts")
    _U8.unpack(parts[0])
    rows: list[AppendRow] = list(_APPEND_ROW.iter_unpack(_blob(parts[1])))
    if len(rows) != len(parts) - 2:
        raise WireError("appends: as many rows as records belong together")
    records = []
    for row, raw in zip(rows, parts[2:], strict=True):
        if type(raw) is not bytes:
            raise WireError("appends: a record is not bytes")
        try:
            record = decode_record(row[1], raw)
        except CorruptRecord as problem:
            raise WireError(f"appends: {problem}") from problem
        if record.first != row[2] + 1 or record.prev_term != row[3]:
            raise WireError("appends: a record does not follow the entry before it")
        if record.last > U64_MAX or row[5] < record.term:
            raise WireError("appends: an index is out of range, or a record is of a later term than its leader")
        records.append(record)
    return Appends(records, rows)


def _decode_acks(parts: list[Any]) -> Acks:
    _take(parts, 2)
    _U8.unpack(parts[0])
    rows: list[AckRow] = list(_ACK_ROW.iter_unpack(_blob(parts[1])))
    return Acks(rows)


def _decode_snapshot(parts: list[Any]) -> InstallSnapshot:
    _take(parts, 3)
    _, group_id, index, index_term, sender, term, to = _SNAPSHOT.unpack(parts[0])
    membership = _blob(parts[2])
    if index < 1 or not 0 < index_term <= term:
        raise WireError("install snapshot: an index or term is out of range")
    try:
        unpack_membership(membership, f"snapshot of group {group_id}")
    except CorruptRecord as problem:
        raise WireError(f"install snapshot: {problem}") from problem
    return InstallSnapshot(_blob(parts[1]), group_id, index, index_term, membership, sender, term, to)


def _decode_create(parts: list[Any]) -> CreateReplica:
    _take(parts, 2)
    _, group_id, replica_id = _CREATE.unpack(parts[0])
    if replica_id < 1:
        raise WireError("create replica: a replica id is 0")
    return CreateReplica(group_id, replica_id, _text(parts[1]))


def _decode_lead_all(parts: list[Any]) -> LeadAll:
    _take(parts, 2)
    _U8.unpack(parts[0])
    return LeadAll(_rows(_LED, parts[1]))


def _decode_lead_delta(parts: list[Any]) -> LeadDelta:
    _take(parts, 3)
    _U8.unpack(parts[0])
    return LeadDelta(_rows(_LED, parts[1]), _rows(_REMOVED, parts[2]))


def _decode_lead_ask(parts: list[Any]) -> LeadAsk:
    _take(parts, 1)
    _U8.unpack(parts[0])
    return LeadAsk()


def _decode_form(parts: list[Any]) -> Form:
    if len(parts) % 3 != 2:
        raise WireError("form: a node without its store")
    _, readmissions, generation = _FORM.unpack(parts[0])
    names = [_text(name) for name in parts[2::3]]
    if not all(part in (b"\x00", b"\x01") for part in parts[4::3]):
        raise WireError("form: a flag is not a flag")
    admitted = tuple(name for name, flag in zip(names, parts[4::3], strict=True) if flag == b"\x01")
    stores = tuple(zip(names, map(_id, parts[3::3]), strict=True))
    return Form(_id(parts[1]), stores, admitted, readmissions, generation)


def _decode_formed(parts: list[Any]) -> Formed:
    _take(parts, 2)
    _U8.unpack(parts[0])
    return Formed(_id(parts[1]))


def _decode_request(parts: list[Any]) -> Request:
    _take(parts, 3)
    _, request_id, timeout_ms = _REQUEST.unpack(parts[0])
    return Request(_blob(parts[1]), _text(parts[2]), request_id, timeout_ms)


def _decode_response(parts: list[Any]) -> Response:
    _take(parts, 2)
    return Response(_blob(parts[1]), _RESPONSE.unpack(parts[0])[1])


def _fixed_decoder(kind: Callable[..., Message], head: struct.Struct) -> Callable[[list[Any]], Message]:
    unpack = head.unpack

    def decode(parts: list[Any]) -> Message:
        if len(parts) != 1:
            raise WireError(f"message {parts[0][0]}: wrong number of parts")
        return kind(*unpack(parts[0])[1:])

    return decode


_DECODERS: Final[Mapping[int, Callable[[list[Any]], Message]]] = {
    **{kind.CODE: _fixed_decoder(kind, head) for kind, (head, _) in _FIXED.items()},  # type: ignore[attr-defined]
    Append.CODE: _decode_append,
    Appends.CODE: _decode_appends,
    Acks.CODE: _decode_acks,
    InstallSnapshot.CODE: _decode_snapshot,
    CreateReplica.CODE: _decode_create,
    LeadAll.CODE: _decode_lead_all,
    LeadDelta.CODE: _decode_lead_delta,
    LeadAsk.CODE: _decode_lead_ask,
    Form.CODE: _decode_form,
    Formed.CODE: _decode_formed,
    Request.CODE: _decode_request,
    Response.CODE: _decode_response,
}
