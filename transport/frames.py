"""The frame: the unit that travels between two nodes, whole or not at all.

    offset size
    0      1    format (1)
    1      1    kind
    2      4    messages: how many            chunk: size of the whole message
    6      -    messages: their encodings     chunk: offset (4), then a piece of one encoding

Kinds: a hello (its layout stands in hello.py), messages of lane 1 or 2, a chunk of a message of lane 1 or 2. A
message's encoding is the msgpack array of byte strings that `wire.to_wire` returns. Frames are cut
between messages; a message that does not fit into one frame travels as consecutive chunks of its lane, between which
frames of the other lane may pass.

Rules of this file: a length is compared with its limit before anything of that size is made, so that decoding a
frame never takes more than a small multiple of its own size; what does not decode raises WireError, never anything
else; nothing of a frame that raises is delivered.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any, Final

import msgpack

from multiraft.config import Limits
from multiraft.errors import WireError
from multiraft.messages import Form, Message, NodeMessage
from multiraft.transport.wire import from_wire, to_wire

FRAME_FORMAT: Final = 1
HELLO: Final = 1
URGENT: Final = 2
BULK: Final = 3
URGENT_CHUNK: Final = 4
BULK_CHUNK: Final = 5

_HEAD: Final = struct.Struct(">BBI")
_CHUNK_HEAD: Final = struct.Struct(">BBII")
FRAME_HEADER_BYTES: Final = _CHUNK_HEAD.size
"""The longest header of any kind: what a frame holds beside its content."""

_LEAD_SET_BYTES: Final = 4 * 1024 * 1024
_OVERHEAD_BYTES: Final = 64 * 1024
_FIRST_NODE_CODE: Final = Form.CODE
"""Messages from this code on (forming, calls) are for the transport's own parts or for the node, not the engine."""

_pack: Final = msgpack.Packer(autoreset=True).pack


def max_message_bytes(limits: Limits) -> int:
    """Return the size of the largest message that a node with these limits sends or takes, encoded.

    That is an append with the largest record (closed at `batch_bytes`, by an entry that may have `entry_bytes`), or
    the lead set of a hundred thousand groups.
    """
    return max(limits.entry_bytes + limits.batch_bytes, _LEAD_SET_BYTES) + _OVERHEAD_BYTES


def encode_message(message: Message) -> bytes:
    """Return the encoding of one message. Raises InvariantViolation when a field is outside its range."""
    encoded: bytes = _pack(to_wire(message))
    return encoded


def messages_frame(kind: int, encoded: Sequence[bytes]) -> bytes:
    """Return the frame of `kind` (URGENT or BULK) that carries these encodings, in order."""
    return b"".join((_HEAD.pack(FRAME_FORMAT, kind, len(encoded)), *encoded))


def chunk_frame(kind: int, encoded: bytes, offset: int, size_bytes: int) -> bytes:
    """Return the chunk frame of `kind` (URGENT_CHUNK or BULK_CHUNK) with `size_bytes` of `encoded` from `offset`."""
    head = _CHUNK_HEAD.pack(FRAME_FORMAT, kind, len(encoded), offset)
    return b"".join((head, memoryview(encoded)[offset : offset + size_bytes]))


def hello_frame(hello: bytes) -> bytes:
    """Return the frame that carries an encoded hello."""
    return bytes((FRAME_FORMAT, HELLO)) + hello


def hello_content(frame: bytes) -> memoryview:
    """Return the encoded hello in `frame`. Raises WireError when it is a frame of another kind."""
    if len(frame) < 2 or frame[0] != FRAME_FORMAT or frame[1] != HELLO:
        raise WireError("the first frame is not a hello")
    return memoryview(frame)[2:]


class FrameDecoder:
    """Decodes the frames of one connection, in order of arrival; keeps the chunks of unfinished messages.

    One message per lane can be unfinished. Memory: at most `message_bytes` for each, and only what has arrived.
    """

    __slots__ = ("_message_bytes", "_parts")

    def __init__(self, message_bytes: int) -> None:
        self._message_bytes = message_bytes
        self._parts: dict[int, _Unfinished] = {}

    def decode(self, frame: bytes) -> tuple[list[NodeMessage], list[Message]]:
        """Return the messages that `frame` completes: those for the engine, and the others (forming, calls).

        Raises WireError: unknown format or kind, lengths that do not fit, a message that does not decode, a chunk
        out of order or of a message over the bound.
        """
        if len(frame) < _HEAD.size:
            raise WireError(f"a frame of {len(frame)} bytes")
        frame_format, kind, number = _HEAD.unpack_from(frame)
        if frame_format != FRAME_FORMAT:
            raise WireError(f"frame format {frame_format}; this version reads {FRAME_FORMAT}")
        if kind in (BULK, URGENT):
            return _decode_messages(memoryview(frame)[_HEAD.size :], number)
        if kind in (BULK_CHUNK, URGENT_CHUNK):
            whole = self._add_chunk(kind, number, frame)
            return ([], []) if whole is None else _decode_messages(memoryview(whole), 1)
        raise WireError(f"unexpected frame kind {kind}")

    def _add_chunk(self, kind: int, total_bytes: int, frame: bytes) -> bytes | None:
        if len(frame) <= _CHUNK_HEAD.size:
            raise WireError("a chunk without content")
        if total_bytes > self._message_bytes:
            raise WireError(f"a message of {total_bytes} bytes; at most {self._message_bytes} are taken")
        offset = _CHUNK_HEAD.unpack_from(frame)[3]
        unfinished = self._parts.get(kind)
        if unfinished is None:
            unfinished = self._parts[kind] = _Unfinished(total_bytes)
        piece = frame[_CHUNK_HEAD.size :]
        if offset != unfinished.received_bytes or total_bytes != unfinished.total_bytes:
            raise WireError("a chunk out of order")
        unfinished.received_bytes += len(piece)
        if unfinished.received_bytes > total_bytes:
            raise WireError("a chunk runs over the end of its message")
        unfinished.pieces.append(piece)
        if unfinished.received_bytes < total_bytes:
            return None
        del self._parts[kind]
        return b"".join(unfinished.pieces)


class _Unfinished:
    """A message of which chunks are still missing."""

    __slots__ = ("pieces", "received_bytes", "total_bytes")

    def __init__(self, total_bytes: int) -> None:
        self.total_bytes = total_bytes
        self.received_bytes = 0
        self.pieces: list[bytes] = []


def _decode_messages(body: memoryview, count: int) -> tuple[list[NodeMessage], list[Message]]:
    size_bytes = len(body)
    if not 0 < 3 * count <= size_bytes:  # the smallest message: an array of one byte string of one byte
        raise WireError(f"{count} messages in {size_bytes} bytes")
    unpacker = msgpack.Unpacker(
        read_size=size_bytes,
        max_buffer_size=size_bytes,
        max_bin_len=size_bytes,
        max_str_len=0,
        max_array_len=0,
        max_map_len=0,
        max_ext_len=0,
        raw=False,
        strict_map_key=True,
    )
    engine: list[Any] = []
    others: list[Message] = []
    try:
        unpacker.feed(body)
        read_length, read_part = unpacker.read_array_header, unpacker.unpack
        for _ in range(count):
            length = read_length()  # nearly always 1 or 2: spelled out, that saves a fifth of the time
            if length == 2:
                message = from_wire([read_part(), read_part()])
            elif length == 1:
                message = from_wire([read_part()])
            else:
                message = from_wire([read_part() for _ in range(length)])
            if message.CODE < _FIRST_NODE_CODE:
                engine.append(message)
            else:
                others.append(message)
        consumed_bytes = unpacker.tell()
    except (ValueError, msgpack.UnpackException) as problem:
        raise WireError(f"a message does not decode: {type(problem).__name__} {problem}") from problem
    if consumed_bytes != size_bytes:
        raise WireError("bytes are left over after the last message")
    return engine, others
