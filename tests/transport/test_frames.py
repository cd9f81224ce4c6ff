"""Frames: what goes in comes out, and whatever else comes is a WireError within a known amount of memory.

Rules of this file: damage is done to valid frames, mostly behind their header, where a checker of headers sees none.
"""

from __future__ import annotations

import struct
import tracemalloc
from collections.abc import Iterator
from typing import Any, Final

import msgpack
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from multiraft.config import Limits
from multiraft.errors import WireError
from multiraft.messages import Append, AppendAnswer, Beat, CommitTo, Form, LeadAll, Message, Request, Response
from multiraft.records import COMMANDS, encode_record
from multiraft.transport.frames import (
    BULK,
    BULK_CHUNK,
    FRAME_HEADER_BYTES,
    URGENT,
    FrameDecoder,
    encode_message,
    max_message_bytes,
    messages_frame,
)
from multiraft.transport.outbox import Outbox

MESSAGE_BYTES: Final = 256 * 1024
HEADER_BYTES: Final = 6


def append(size_bytes: int, records: int = 1) -> Append:
    made = tuple(encode_record(16, 8 + n, 3, 3, COMMANDS, 0, [bytes(size_bytes)]) for n in range(records))
    return Append(1, 16, 7, 3, made, 1, 3, 2)


def samples() -> list[Message]:
    """One message of each shape."""
    return [
        CommitTo(1, 2, 3, 4, 5),
        AppendAnswer(False, 1, 2, 3, 4, 5, 6, 7),
        append(40),
        append(5, records=3),
        Beat(1, 2, True, 3, 4, 5),
        LeadAll(tuple((n, n, n) for n in range(6))),
        Form(b"c" * 16, (("a", b"s" * 16), ("b", b"t" * 16))),
        Request(b"body", "propose", 1, 1000),
        Response(b"body" * 5, 1),
    ]


def frames_of(encoded: list[bytes], frame_bytes: int, urgent: bool = False) -> list[bytes]:
    outbox = Outbox(1 << 40, frame_bytes, lambda: None)
    assert outbox.add(encoded, urgent)
    return list(iter(outbox.next_frame, None))


def decoded(frames: list[bytes]) -> list[bytes]:
    """Decode the frames of one connection; return the messages encoded again."""
    decoder = FrameDecoder(MESSAGE_BYTES)
    found: list[bytes] = []
    for frame in frames:
        engine, others = decoder.decode(frame)
        found += [encode_message(message) for message in (*engine, *others)]
    return found


@given(st.lists(st.sampled_from(samples()), min_size=1, max_size=40), st.sampled_from([4096, 65_536]), st.booleans())
def test_messages_come_out_as_they_went_in(messages: list[Message], frame_bytes: int, urgent: bool) -> None:
    encoded = [encode_message(message) for message in messages]
    frames = frames_of(encoded, frame_bytes, urgent)
    assert all(len(frame) <= frame_bytes for frame in frames)
    decoder = FrameDecoder(MESSAGE_BYTES)
    pairs = [decoder.decode(frame) for frame in frames]
    engine = [encode_message(message) for for_engine, _ in pairs for message in for_engine]
    others = [encode_message(message) for _, for_node in pairs for message in for_node]
    for_node = (Form, Request, Response)
    assert engine == [one for one, message in zip(encoded, messages, strict=True) if not isinstance(message, for_node)]
    assert others == [one for one, message in zip(encoded, messages, strict=True) if isinstance(message, for_node)]


@pytest.mark.parametrize("size_bytes", [3990, *range(4000, 4100, 7), 8192, 100_000])
def test_sizes_around_the_frame_fit_or_are_cut(size_bytes: int) -> None:
    encoded = [encode_message(message) for message in (append(size_bytes), append(1), append(size_bytes))]
    frames = frames_of(encoded, 4096)
    assert all(len(frame) <= 4096 for frame in frames)
    assert decoded(frames) == encoded


def test_small_messages_fill_frames() -> None:
    encoded = [encode_message(CommitTo(n, 1, 1, 1, 1)) for n in range(1000)]
    frames = frames_of(encoded, 4096)
    least = sum(map(len, encoded)) / (4096 - FRAME_HEADER_BYTES)
    assert least <= len(frames) <= 1.05 * least + 1


def test_the_largest_message_of_the_default_limits_holds_the_largest_entry() -> None:
    limits = Limits()
    record = encode_record(1, 1, 1, 1, COMMANDS, 0, [bytes(limits.entry_bytes), *[bytes(1000)] * 1000])
    assert len(encode_message(Append(1, 1, 0, 1, (record,), 1, 1, 2))) <= max_message_bytes(limits)
    assert max_message_bytes(limits) < 2 * limits.entry_bytes
    groups = tuple((n, n, n) for n in range(100_000))
    assert len(encode_message(LeadAll(groups))) <= max_message_bytes(Limits(entry_bytes=1, key_bytes=1))


def chunk(total: int, offset: int, piece: bytes) -> bytes:
    return struct.pack(">BBII", 1, BULK_CHUNK, total, offset) + piece


def test_a_message_in_chunks_takes_memory_only_as_it_arrives() -> None:
    decoder = FrameDecoder(64 * 1024 * 1024)
    tracemalloc.start()
    try:
        decoder.decode(chunk(64 * 1024 * 1024, 0, bytes(1000)))
        assert tracemalloc.get_traced_memory()[1] < 100_000
    finally:
        tracemalloc.stop()


def test_a_chunk_over_the_bound_is_refused_before_anything_is_kept() -> None:
    decoder = FrameDecoder(MESSAGE_BYTES)
    with pytest.raises(WireError, match="at most 262144"):
        decoder.decode(chunk(MESSAGE_BYTES + 1, 0, b"x"))
    decoder.decode(chunk(MESSAGE_BYTES, 0, b"x"))


# -------------------------------------------------------------------------------------------------- damaged frames

HOSTILE: Final = [
    b"\xdd\xff\xff\xff\xff",  # arrays and strings that claim four billion elements
    b"\xdc\xff\xff",
    b"\xc6\xff\xff\xff\xff",
    b"\xdb\xff\xff\xff\xff",
    b"\xdf\xff\xff\xff\xff",
    b"\xc9\xff\xff\xff\xff\x01",
    b"\x91" * 2000,  # depth
    b"\x80" * 500,
    b"\x90" * 500,
    b"\xc0" * 500,
    b"\xd4\xff\x00",
    b"\xc7\x0c\xff" + bytes(12),
    b"\xa3\xff\xfe\xfd",
    b"\xcb" + bytes(8),
    b"\xc1",
]


@st.composite
def damaged_frames(draw: st.DrawFn) -> tuple[bytes, bool]:
    """Return a valid frame after some changes, and whether its header was left alone."""
    messages = draw(st.lists(st.sampled_from(samples()), min_size=1, max_size=6))
    encoded = [encode_message(message) for message in messages]
    frame = bytearray(messages_frame(draw(st.sampled_from([URGENT, BULK])), encoded))
    inside = draw(st.integers(0, 3)) > 0
    low = HEADER_BYTES if inside else 0
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(low, len(frame)))
        change = draw(st.sampled_from(["flip", "insert", "cut", "hostile", "repeat", "number"]))
        if change == "flip" and at < len(frame):
            frame[at] ^= draw(st.integers(1, 255))
        elif change == "insert":
            frame[at:at] = draw(st.binary(min_size=1, max_size=8))
        elif change == "cut":
            del frame[at : at + draw(st.integers(1, 20))]
        elif change == "hostile":
            frame[at:at] = draw(st.sampled_from(HOSTILE))
        elif change == "repeat":
            frame[at:at] = frame[at : at + draw(st.integers(1, 60))]
        else:
            frame[at : at + 8] = draw(st.sampled_from([bytes(8), b"\xff" * 8, bytes(7) + b"\x01"]))
    return bytes(frame), inside


def decode_measured(decoder: FrameDecoder, frame: bytes) -> int:
    """Decode; return the peak of memory that it took. Anything but a value or WireError fails the test."""
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        tracemalloc.reset_peak()
        try:
            engine, others = decoder.decode(frame)
        except WireError:
            pass
        else:
            assert all(type(message).__module__ == "multiraft.messages" for message in (*engine, *others))
        return tracemalloc.get_traced_memory()[1] - before
    finally:
        tracemalloc.stop()


def most_memory(frame: bytes) -> int:
    """What decoding a frame may take: 16 times its size, and a constant for msgpack's own state (33 KB)."""
    return 16 * len(frame) + 65_536


SEEN: Final = {"inside": 0, "header": 0}


@settings(max_examples=600)
@given(damaged_frames())
def test_a_damaged_frame_is_a_value_or_a_wire_error_within_bounds(damaged: tuple[bytes, bool]) -> None:
    frame, inside = damaged
    SEEN["inside" if inside else "header"] += 1
    assert decode_measured(FrameDecoder(MESSAGE_BYTES), frame) <= most_memory(frame)


def test_most_of_the_damage_was_behind_the_header() -> None:
    if not SEEN["inside"]:
        pytest.skip("run together with the test above")
    assert SEEN["inside"] >= SEEN["header"]


@settings(max_examples=150)
@given(st.lists(st.tuples(st.integers(0, 300), st.integers(0, 300), st.binary(max_size=120)), max_size=8))
@example([(90, 0, bytes(45)), (90, 45, bytes(45))])
def test_any_chunks_are_a_value_or_a_wire_error_within_bounds(chunks: list[tuple[int, int, bytes]]) -> None:
    decoder = FrameDecoder(200)
    for total, offset, piece in chunks:
        assert decode_measured(decoder, chunk(total, offset, piece)) <= most_memory(piece)


@given(st.binary(max_size=200))
def test_any_bytes_are_a_value_or_a_wire_error(frame: bytes) -> None:
    decode_measured(FrameDecoder(MESSAGE_BYTES), frame)


def full_size_attacks() -> Iterator[tuple[str, bytes, int]]:
    size = 256 * 1024 - HEADER_BYTES
    for name, content in (
        ("deep arrays with large claims", b"\xdc\xff\xff"),
        ("deep arrays", b"\x91"),
        ("empty arrays", b"\x90"),
        ("empty maps", b"\x80"),
        ("nothing", b"\xc0"),
        ("small numbers", b"\x07"),
        ("floats", b"\xcb" + bytes(8)),
        ("empty strings", b"\xc4\x00"),
        ("messages without content", b"\x91\xc4\x01"),
        ("the smallest messages", b"\x91\xc4\x01\x18"),
    ):
        for count in (1, size // len(content)):
            yield f"{name} as {count}", content * (size // len(content)), count
    many = b"\xdd" + struct.pack(">I", size - 5)
    yield "one message of numbers", many + b"\x07" * (size - 5), 1
    yield "one message of empty parts", b"\xdd" + struct.pack(">I", size // 2) + b"\xc4\x00" * (size // 2 - 3), 1
    rows = b"\x92\xc4\x01\x16\xc6" + struct.pack(">I", 24 * 10_000) + bytes(24 * 10_000)
    yield "a lead set", rows, 1


@pytest.mark.parametrize(("content", "count"), [pytest.param(c, n, id=i) for i, c, n in full_size_attacks()])
def test_a_full_frame_built_to_take_memory_takes_no_more_than_its_share(content: bytes, count: int) -> None:
    frame = struct.pack(">BBI", 1, BULK, count) + content
    assert decode_measured(FrameDecoder(MESSAGE_BYTES), frame) <= most_memory(frame)


def test_the_measure_sees_what_an_unguarded_decoder_would_take() -> None:
    content = b"\xdc\xff\xff" * 500
    tracemalloc.start()
    try:
        unpacker: Any = msgpack.Unpacker(max_buffer_size=1 << 20)
        unpacker.feed(content)
        with pytest.raises(msgpack.OutOfData):
            unpacker.unpack()
        assert tracemalloc.get_traced_memory()[1] > most_memory(content)
    finally:
        tracemalloc.stop()
