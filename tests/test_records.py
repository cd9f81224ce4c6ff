"""Records: encoded once, checked wherever they are read, cut only where a conflict cuts them."""

from __future__ import annotations

import struct
import zlib

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from multiraft.errors import CorruptRecord
from multiraft.records import (
    COMMANDS,
    MEMBERSHIP,
    NOOP,
    RECORD_HEADER_BYTES,
    Record,
    cut_record,
    decode_record,
    encode_record,
)
from multiraft.types import U64_MAX

FIELDS = ("first", "last", "term", "prev_term", "kind", "stamp_ms", "raw")


def fields(record: Record) -> tuple[object, ...]:
    return tuple(getattr(record, name) for name in FIELDS)


@st.composite
def records(draw: st.DrawFn) -> tuple[int, Record, list[bytes]]:
    group_id = draw(st.integers(1, U64_MAX))
    entries = draw(st.lists(st.binary(max_size=40), min_size=1, max_size=12))
    term = draw(st.integers(0, U64_MAX))
    prev_term = draw(st.integers(0, term))
    first = draw(st.integers(1, U64_MAX - 20))
    kind = draw(st.sampled_from([NOOP, COMMANDS, MEMBERSHIP]))
    return (
        group_id,
        encode_record(group_id, first, term, prev_term, kind, draw(st.integers(0, U64_MAX)), entries),
        entries,
    )


def damaged_header(position: int, value: bytes) -> bytes:
    """Return a record of group 7 with header bytes replaced and the checksum made to fit again."""
    raw = bytearray(encode_record(7, 5, 3, 2, COMMANDS, 9, [b"one", b"two"]).raw)
    raw[position : position + len(value)] = value
    head, blob = raw[: RECORD_HEADER_BYTES - 4], raw[RECORD_HEADER_BYTES:]
    crc = zlib.crc32(bytes(blob), zlib.crc32(bytes(head), zlib.crc32(struct.pack(">Q", 7))))
    return bytes(head + struct.pack(">I", crc) + blob)


@given(records())
def test_records_come_back(made: tuple[int, Record, list[bytes]]) -> None:
    group_id, record, entries = made
    found = decode_record(group_id, record.raw)
    assert fields(found) == fields(record)
    assert found.entries() == entries
    assert found.count == len(entries) == found.last - found.first + 1


def test_the_layout_is_the_documented_one() -> None:
    raw = encode_record(7, 5, 3, 2, COMMANDS, 9, [b"one", b"two"]).raw
    head = struct.pack(">BBQIQQQ", 1, COMMANDS, 5, 2, 3, 2, 9)
    blob = msgpack.packb([b"one", b"two"])
    crc = zlib.crc32(struct.pack(">Q", 7) + head + blob)
    assert raw == head + struct.pack(">I", crc) + blob
    assert len(head) + 4 == RECORD_HEADER_BYTES == 42


@given(records(), st.data())
def test_a_flipped_bit_is_noticed(made: tuple[int, Record, list[bytes]], data: st.DataObject) -> None:
    group_id, record, _ = made
    raw = bytearray(record.raw)
    raw[data.draw(st.integers(0, len(raw) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    with pytest.raises(CorruptRecord):
        decode_record(group_id, bytes(raw))


def test_every_flipped_byte_is_noticed() -> None:
    raw = encode_record(7, 5, 3, 2, COMMANDS, 9, [b"one", b"two"]).raw
    for position in range(len(raw)):
        with pytest.raises(CorruptRecord):
            decode_record(7, raw[:position] + bytes([raw[position] ^ 0xFF]) + raw[position + 1 :])


def test_every_cut_and_every_addition_is_noticed() -> None:
    raw = encode_record(7, 5, 3, 2, COMMANDS, 9, [b"one", b"two"]).raw
    for length in range(len(raw)):
        with pytest.raises(CorruptRecord):
            decode_record(7, raw[:length])
    with pytest.raises(CorruptRecord):
        decode_record(7, raw + b"\0")


def test_a_record_belongs_to_its_group() -> None:
    raw = encode_record(7, 5, 3, 2, COMMANDS, 9, [b"one"]).raw
    with pytest.raises(CorruptRecord, match="group 8 at index 5: checksum"):
        decode_record(8, raw)


@given(st.binary(max_size=120))
def test_arbitrary_bytes_raise_corrupt_record_alone(raw: bytes) -> None:
    with pytest.raises(CorruptRecord):
        decode_record(7, raw)


@pytest.mark.parametrize(
    ("position", "value", "expected"),
    [
        (0, b"\x02", "format 2, this version reads 1"),
        (1, b"\x05", "does not make sense"),  # an unknown kind
        (2, bytes(8), "does not make sense"),  # first index 0
        (10, bytes(4), "does not make sense"),  # no entries
        (22, b"\0\0\0\0\0\0\0\x04", "does not make sense"),  # the previous term above the term
    ],
)
def test_headers_that_make_no_sense_are_refused_under_a_right_checksum(
    position: int, value: bytes, expected: str
) -> None:
    with pytest.raises(CorruptRecord, match=expected):
        decode_record(7, damaged_header(position, value))


def test_entries_that_are_not_what_the_header_counts_are_refused() -> None:
    three = decode_record(7, damaged_header(10, b"\0\0\0\x03"))
    with pytest.raises(CorruptRecord, match="something else than 3 entries"):
        three.entries()
    for blob in ([b"one", "two"], [b"one", 2], {b"a": b"b", b"c": b"d"}, b"onetwo"):
        good = encode_record(7, 5, 3, 2, COMMANDS, 9, [b"one", b"two"])
        bad = Record(5, 6, 3, 2, COMMANDS, 9, good.raw[:RECORD_HEADER_BYTES] + msgpack.packb(blob))
        with pytest.raises(CorruptRecord, match="something else than 2 entries"):
            bad.entries()
    broken = Record(5, 6, 3, 2, COMMANDS, 9, good.raw[:-1])
    with pytest.raises(CorruptRecord, match="do not decode"):
        broken.entries()


@given(records(), st.data())
def test_a_cut_record_holds_just_that_part(made: tuple[int, Record, list[bytes]], data: st.DataObject) -> None:
    group_id, record, entries = made
    first = data.draw(st.integers(record.first, record.last))
    last = data.draw(st.integers(first, record.last))
    part = cut_record(group_id, record, first, last)
    assert (part.first, part.last, part.term, part.kind) == (first, last, record.term, record.kind)
    assert part.stamp_ms == record.stamp_ms
    assert part.entries() == entries[first - record.first : last - record.first + 1]
    assert part.prev_term == (record.prev_term if first == record.first else record.term)
    assert fields(decode_record(group_id, part.raw)) == fields(part)


def test_cutting_nothing_off_keeps_the_record_itself() -> None:
    record = encode_record(7, 5, 3, 2, COMMANDS, 9, [b"one", b"two"])
    assert cut_record(7, record, 5, 6) is record


def test_large_records_come_back() -> None:
    entries = [bytes([number % 256]) * 100_000 for number in range(20)]
    record = encode_record(7, 5, 3, 2, COMMANDS, 9, entries)
    assert decode_record(7, record.raw).entries() == entries
