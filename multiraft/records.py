"""The log record: the unit in which entries are encoded, stored and sent.

A leader encodes all entries that it appends to one group in one turn as ONE record; the same bytes then go to its
disk, to each follower, and to each follower's disk. Layout, big-endian:

    offset size
    0      1    format (1)
    1      1    kind of all its entries: 0 no-op, 1 commands, 2 membership, 3 commands of sessions, 4 control
    2      8    first index
    10     4    count of entries, at least 1
    14     8    term, one for all entries
    22     8    previous term: the term of the entry before `first`
    30     8    stamp: the leader's clock, milliseconds
    38     4    CRC-32 over group id (8 bytes), everything before this field, and the blob
    42     -    blob: msgpack array of `count` byte strings

Rules of this file: pure functions of bytes; a damaged record raises CorruptRecord, never anything else.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence
from typing import Final

import msgpack

from multiraft.errors import CorruptRecord
from multiraft.types import GroupId, Index, Term

RECORD_FORMAT: Final = 1
NOOP: Final = 0
COMMANDS: Final = 1
MEMBERSHIP: Final = 2
SESSION: Final = 3
"""Commands that clients have numbered: each entry begins with who sent it (multiraft.sessions)."""
CONTROL: Final = 4
"""What concerns the group itself, beside its machine: each entry is a msgpack array that begins with a code."""
FOR_MACHINES: Final = (COMMANDS, SESSION, CONTROL)
"""The kinds whose entries are applied; all others only move `applied`."""

_HEAD: Final = struct.Struct(">BBQIQQQ")
_CRC: Final = struct.Struct(">I")
_GROUP: Final = struct.Struct(">Q")
_GROUP_AND_HEAD: Final = struct.Struct(">QBBQIQQQ")
_crc32: Final = zlib.crc32
_pack: Final = msgpack.Packer(autoreset=True).pack
_HEAD_AND_CRC: Final = struct.Struct(">BBQIQQQI")
_HEAD_BYTES: Final = _HEAD.size
RECORD_HEADER_BYTES: Final = _HEAD_AND_CRC.size
_BYTES: Final = {bytes}
_COPIED_BYTES: Final = 16 * 1024


class Record:
    """A run of consecutive entries of one term and one kind, with its encoded bytes.

    raw   the encoded record; what is stored and sent
    last  the index of the last entry: first + count - 1
    """

    __slots__ = ("first", "kind", "last", "prev_term", "raw", "stamp_ms", "term")

    def __init__(
        self, first: Index, last: Index, term: Term, prev_term: Term, kind: int, stamp_ms: int, raw: bytes
    ) -> None:
        self.first = first
        self.last = last
        self.term = term
        self.prev_term = prev_term
        self.kind = kind
        self.stamp_ms = stamp_ms
        self.raw = raw

    @property
    def count(self) -> int:
        return self.last - self.first + 1

    def entries(self) -> list[bytes]:
        """Decode and return the entries, in order of index. Raises CorruptRecord."""
        try:
            found = msgpack.unpackb(memoryview(self.raw)[RECORD_HEADER_BYTES:])
        except Exception as problem:
            raise CorruptRecord(f"record at {self.first}: entries do not decode: {problem}") from problem
        if not isinstance(found, list) or len(found) != self.count or set(map(type, found)) != _BYTES:
            raise CorruptRecord(f"record at {self.first}: holds something else than {self.count} entries")
        return found

    def __repr__(self) -> str:
        return f"Record({self.first}..{self.last}, term {self.term}, kind {self.kind}, {len(self.raw)} bytes)"


def encode_record(
    group_id: GroupId, first: Index, term: Term, prev_term: Term, kind: int, stamp_ms: int, entries: Sequence[bytes]
) -> Record:
    """Encode `entries` (at least one) as the record that starts at index `first`."""
    blob: bytes = _pack(entries)
    count = len(entries)
    head = _GROUP_AND_HEAD.pack(group_id, RECORD_FORMAT, kind, first, count, term, prev_term, stamp_ms)
    crc = _CRC.pack(_crc32(blob, _crc32(head)))
    return Record(first, first + count - 1, term, prev_term, kind, stamp_ms, b"".join((head[8:], crc, blob)))


def decode_record(group_id: GroupId, raw: bytes) -> Record:
    """Check and return the record in `raw`. Entries are decoded later, by `Record.entries`.

    Raises CorruptRecord: too short, unknown format or kind, no entries, or a checksum that does not hold.
    """
    if len(raw) <= RECORD_HEADER_BYTES:
        raise CorruptRecord(f"record of group {group_id}: only {len(raw)} bytes")
    record_format, kind, first, count, term, prev_term, stamp_ms, stored_crc = _HEAD_AND_CRC.unpack_from(raw)
    if record_format != RECORD_FORMAT:
        raise CorruptRecord(f"record of group {group_id}: format {record_format}, this version reads {RECORD_FORMAT}")
    if kind > CONTROL or count < 1 or first < 1 or prev_term > term:
        raise CorruptRecord(f"record of group {group_id}: header does not make sense")
    # Of a small record a copy costs less than a view.
    blob = raw[RECORD_HEADER_BYTES:] if len(raw) <= _COPIED_BYTES else memoryview(raw)[RECORD_HEADER_BYTES:]
    crc = _crc32(_GROUP.pack(group_id) + raw[:_HEAD_BYTES])
    if _crc32(blob, crc) != stored_crc:
        raise CorruptRecord(f"record of group {group_id} at index {first}: checksum does not hold")
    return Record(first, first + count - 1, term, prev_term, kind, stamp_ms, raw)


def cut_record(group_id: GroupId, record: Record, first: Index, last: Index) -> Record:
    """Return the part of `record` from `first` to `last` (both inside it) as a record of its own, re-encoded."""
    if first == record.first and last == record.last:
        return record
    prev_term = record.prev_term if first == record.first else record.term
    part = record.entries()[first - record.first : last - record.first + 1]
    return encode_record(group_id, first, record.term, prev_term, record.kind, record.stamp_ms, part)
