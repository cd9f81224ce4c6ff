"""The state of a machine on disk as a stream of bytes: what a snapshot file of kind "disk" holds, chunk by chunk.

    format 129 (1 byte) | the replicated clock, milliseconds (8, big-endian) | the rolling hash (4) | pairs
    pair   bytes of key (4) | bytes of value (4) | key | value

A key begins with the byte of its part of the keyspace: what the machine wrote, or the sessions beside it. Keys ascend,
so that a stream in which something was doubled or changed places is refused, and equal keyspaces give equal streams.

Rules of this file: chunks may be cut anywhere; what is kept of them is less than one pair; a pair is handed out when
all of it has come; a length that the stream cannot have is refused before it is waited for.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from typing import Final, NamedTuple

from multiraft.errors import CorruptRecord

PAIRS_FORMAT: Final = 0x81
"""Apart from the formats of what one message carries, and of manifests: the first byte tells."""
CHUNK_BYTES: Final = 64 * 1024
_HEAD: Final = struct.Struct(">BQI")
_LENGTHS: Final = struct.Struct(">II")
_PARTS: Final = 2


def pair_chunks(time_ms: int, value: int, pairs: Iterable[tuple[bytes, bytes]]) -> Iterator[bytes]:
    """Yield a keyspace as chunks of about 64 KiB; one pair that is larger makes a larger one.

    time_ms, value  the replicated clock and the rolling hash at the moment that `pairs` is of
    pairs           keys, each with the byte of its part, and values; keys ascend
    """
    gathered, size_bytes = [_HEAD.pack(PAIRS_FORMAT, time_ms, value)], _HEAD.size
    pack = _LENGTHS.pack
    for key, stored in pairs:
        gathered += pack(len(key), len(stored)), key, stored
        size_bytes += _LENGTHS.size + len(key) + len(stored)
        if size_bytes >= CHUNK_BYTES:
            yield b"".join(gathered)
            gathered, size_bytes = [], 0
    if gathered:
        yield b"".join(gathered)


class Sent(NamedTuple):
    """What a whole stream says: the replicated clock, the rolling hash, and all pairs."""

    time_ms: int
    hash: int
    pairs: list[tuple[bytes, bytes]]


def read_pairs(stream: bytes) -> Sent:
    """Return what a stream that is here as a whole says; an empty one, as of a founding, says nothing.

    Raises CorruptRecord.
    """
    if not stream:
        return Sent(0, 0, [])
    loader = PairLoader(len(stream))
    pairs = loader.feed(stream)
    loader.finish()
    return Sent(loader.time_ms, loader.hash, pairs)


class PairLoader:
    """Takes what `pair_chunks` yielded, in whatever pieces it comes, and hands out its pairs.

    time_ms, hash  what the head says; 0 before it has come
    """

    def __init__(self, stream_bytes: int) -> None:
        """`stream_bytes`: how long the whole stream is."""
        self.time_ms = 0
        self.hash = 0
        self._to_come = stream_bytes
        # What has come of the first pair that is not complete, and how many bytes are known to be lacking.
        self._left: list[bytes] = []
        self._lacking = 0
        self._began = False
        self._last_key = b""

    def feed(self, piece: bytes) -> list[tuple[bytes, bytes]]:
        """Return the pairs, in order, that are complete with `piece`. Raises CorruptRecord."""
        self._to_come -= len(piece)
        if self._to_come < 0:
            raise CorruptRecord("a keyspace's stream is longer than was said")
        self._left.append(piece)
        self._lacking -= len(piece)
        if self._lacking > 0:
            return []
        left = b"".join(self._left)
        at, pairs = 0, []
        if not self._began:
            if left and left[0] != PAIRS_FORMAT:
                raise CorruptRecord(
                    f"a snapshot's data is of format {left[0]}; a machine on disk takes {PAIRS_FORMAT}. The leader's "
                    "machine may be one in memory: declare the service alike on all nodes"
                )
            if len(left) < _HEAD.size:
                return []
            _, self.time_ms, self.hash = _HEAD.unpack_from(left)
            self._began, at = True, _HEAD.size
        last, size_bytes, unpack = self._last_key, len(left), _LENGTHS.unpack_from
        self._lacking = 0
        while size_bytes - at >= _LENGTHS.size:
            key_bytes, value_bytes = unpack(left, at)
            middle = at + _LENGTHS.size + key_bytes
            end = middle + value_bytes
            if end > size_bytes:
                if end > size_bytes + self._to_come:
                    raise CorruptRecord("a keyspace's stream says that a pair is longer than all that is to come")
                self._lacking = end - size_bytes
                break
            key = left[at + _LENGTHS.size : middle]
            if key <= last or key[0] >= _PARTS:  # no key is empty, so the first one is above none
                raise CorruptRecord("a keyspace's stream has a key that has no place there")
            pairs.append((key, left[middle:end]))
            last, at = key, end
        self._last_key, self._left = last, [left[at:]] if at < size_bytes else []
        return pairs

    def finish(self) -> None:
        """All has come. Raises CorruptRecord where something is missing."""
        if not self._began or self._left or self._to_come:
            raise CorruptRecord("a keyspace's stream ends too early")
