"""What a snapshot file holds, and the manifest that says which bytes a file must be.

    file    magic (8) | format (1) | frames | closing frame
    frame   bytes of payload (4) | bytes of chunk (4) | CRC-32 of payload (4) | payload: the chunk, compressed (zstd)
    closing frame   0 (4) | 0xffffffff (4) | CRC-32 of the rest (4) | number of frames (4) | bytes of all chunks (8)

A file is written from chunks and read back to the same bytes; where one chunk ends and the next begins is nobody's
business. Its manifest stands in the database, or travels in a message, and holds a digest of the whole file.

Rules of this file: pure functions of bytes, in bounded memory; every length is checked before anything of that length
is made; what is damaged raises CorruptRecord, never anything else.
"""

from __future__ import annotations

import struct
import sys
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any, Final

import msgpack

from multiraft.errors import CorruptRecord
from multiraft.types import U64_MAX, Index

if sys.version_info >= (3, 14):  # pragma: no cover - there it is in the standard library
    from compression import zstd
else:
    from backports import zstd

MAGIC: Final = b"MRSNAP\r\n"
FILE_FORMAT: Final = 1
MANIFEST_FORMAT: Final = 16
"""Apart from the formats of states that stand in the database themselves, so that the first byte tells."""
CHUNK_BYTES: Final = 256 * 1024
"""Largest chunk of one frame; longer ones are cut."""
DIGEST_BYTES: Final = 32
COMPRESSION: Final = "zstd"
MEMORY: Final = "memory"
DISK: Final = "disk"

_LEVEL: Final = 1
_PAYLOAD_BYTES: Final = 2 * CHUNK_BYTES
_NAME_CHARACTERS: Final = 128
_HEAD: Final = struct.Struct(">III")
_CLOSING: Final = struct.Struct(">IQ")
_CLOSING_MARK: Final = 0xFFFFFFFF


@dataclass(frozen=True, slots=True)
class Manifest:
    """Which bytes a snapshot file is.

    name         of the file; the same on every node that has it
    size_bytes   of the file
    digest       blake2b of the file, 32 bytes
    raw_bytes    of the chunks in it
    index        of the last entry that it covers
    time_ms      the replicated clock there
    hash         the rolling hash of all results up to there
    kind         what its chunks are: "memory", of a machine's state; "disk", of a keyspace's keys and values
    compression  of the chunks
    """

    name: str
    size_bytes: int
    digest: bytes
    raw_bytes: int
    index: Index
    time_ms: int
    hash: int
    kind: str
    compression: str = COMPRESSION

    def encode(self) -> bytes:
        """Return the manifest as bytes, for `decode_manifest`."""
        fields = [
            self.name, self.size_bytes, self.digest, self.raw_bytes, self.index, self.time_ms, self.hash, self.kind,
            self.compression,
        ]  # fmt: skip
        packed: Any = msgpack.packb(fields)
        return bytes((MANIFEST_FORMAT,)) + bytes(packed)


def is_manifest(data: bytes) -> bool:
    """Whether a snapshot's data names a file, rather than being a state."""
    return data[:1] == bytes((MANIFEST_FORMAT,))


def decode_manifest(data: bytes) -> Manifest:
    """Return the manifest in `data`. Raises CorruptRecord, also for one that does not make sense."""
    if not is_manifest(data):
        raise CorruptRecord(f"a snapshot's manifest is of format {data[:1].hex() or 'none'}")
    try:
        manifest = Manifest(*msgpack.unpackb(memoryview(data)[1:]))
    except Exception as problem:
        raise CorruptRecord(f"a snapshot's manifest does not decode: {problem}") from problem
    numbers = (manifest.size_bytes, manifest.raw_bytes, manifest.index, manifest.time_ms, manifest.hash)
    sound = all(type(number) is int and 0 <= number <= U64_MAX for number in numbers)
    sound = sound and is_file_name(manifest.name) and manifest.kind in (MEMORY, DISK)
    if not sound or type(manifest.digest) is not bytes or len(manifest.digest) != DIGEST_BYTES:
        raise CorruptRecord("a snapshot's manifest does not make sense")
    if manifest.compression != COMPRESSION:
        raise CorruptRecord(f"a snapshot is compressed by {manifest.compression!r}; this version reads {COMPRESSION}")
    return manifest


def file_name(group_id: int, index: Index, token: int) -> str:
    """Return the name of a new snapshot file; `token` (32 bits of chance) sets it apart from others of that index."""
    return f"{group_id:016x}-{index:016x}-{token:08x}.snap"


def is_file_name(name: object) -> bool:
    """Whether `name` may be a snapshot file's: names of files come from peers, and must not lead anywhere else."""
    if type(name) is not str or len(name) > _NAME_CHARACTERS or not name.endswith(".snap"):
        return False
    return all(letter in "0123456789abcdef-" for letter in name[: -len(".snap")]) and len(name) > len(".snap")


def group_and_index(name: str) -> tuple[int, Index] | None:
    """Return what `file_name` was given, without the token; None for a name that it did not make."""
    parts = name.removesuffix(".snap").split("-")
    if not is_file_name(name) or [len(part) for part in parts] != [16, 16, 8]:
        return None
    return int(parts[0], 16), int(parts[1], 16)


class FileWriter:
    """Turns chunks into the bytes of a file, and counts them.

    size_bytes, raw_bytes  of the file so far, and of the chunks in it
    """

    def __init__(self) -> None:
        self.size_bytes = 0
        self.raw_bytes = 0
        self._frames = 0
        self._digest = blake2b(digest_size=DIGEST_BYTES)
        self._compressor = zstd.ZstdCompressor(level=_LEVEL)

    def begin(self) -> bytes:
        """Return the first bytes of the file."""
        return self._count(MAGIC + bytes((FILE_FORMAT,)))

    def chunk(self, chunk: bytes) -> bytes:
        """Return the bytes that hold one chunk, of any size."""
        return b"".join(self._frame(chunk[at : at + CHUNK_BYTES]) for at in range(0, len(chunk), CHUNK_BYTES))

    def end(self) -> bytes:
        """Return the last bytes of the file."""
        rest = _CLOSING.pack(self._frames, self.raw_bytes)
        return self._count(_HEAD.pack(0, _CLOSING_MARK, zlib.crc32(rest)) + rest)

    def digest(self) -> bytes:
        """Return the digest of everything that was returned."""
        return self._digest.digest()

    def _frame(self, chunk: bytes) -> bytes:
        payload = self._compressor.compress(chunk, mode=zstd.ZstdCompressor.FLUSH_FRAME)
        self._frames += 1
        self.raw_bytes += len(chunk)
        return self._count(_HEAD.pack(len(payload), len(chunk), zlib.crc32(payload)) + payload)

    def _count(self, piece: bytes) -> bytes:
        self.size_bytes += len(piece)
        self._digest.update(piece)
        return piece


class FileReader:
    """Turns the bytes of a file, in pieces of any size, back into chunks."""

    def __init__(self, manifest: Manifest) -> None:
        self._manifest = manifest
        self._left = bytearray()
        self._size_bytes = 0
        self._raw_bytes = 0
        self._frames = 0
        self._began = self._ended = False
        self._digest = blake2b(digest_size=DIGEST_BYTES)

    def feed(self, piece: bytes) -> Iterator[bytes]:
        """Yield the chunks that are complete with `piece`. Raises CorruptRecord."""
        self._size_bytes += len(piece)
        if self._size_bytes > self._manifest.size_bytes:
            raise self._damaged("is longer than its manifest says")
        self._digest.update(piece)
        self._left += piece
        at = 0
        try:
            while (found := self._next(at)) is not None:
                chunk, at = found
                if chunk:
                    yield chunk
        finally:
            del self._left[:at]

    def finish(self) -> None:
        """The file is at its end. Raises CorruptRecord unless it is what the manifest says."""
        if not self._ended or self._left or self._size_bytes != self._manifest.size_bytes:
            raise self._damaged("ends too early")
        if self._digest.digest() != self._manifest.digest:
            raise self._damaged("is not the file of its manifest: its digest differs")

    def _next(self, at: int) -> tuple[bytes, int] | None:
        """Return what begins at `at` and where it ends; None where it is not complete."""
        left = self._left
        if not self._began:
            if len(left) < len(MAGIC) + 1:
                return None
            if left[: len(MAGIC)] != MAGIC or left[len(MAGIC)] != FILE_FORMAT:
                raise self._damaged(f"is no snapshot file of format {FILE_FORMAT}")
            self._began = True
            return b"", len(MAGIC) + 1
        if self._ended or len(left) - at < _HEAD.size:
            if self._ended and len(left) > at:
                raise self._damaged("goes on behind its end")
            return None
        payload_bytes, chunk_bytes, checksum = _HEAD.unpack_from(left, at)
        closing = chunk_bytes == _CLOSING_MARK and payload_bytes == 0
        size_bytes = _CLOSING.size if closing else payload_bytes
        if not closing and not (0 < payload_bytes <= _PAYLOAD_BYTES and 0 < chunk_bytes <= CHUNK_BYTES):
            raise self._damaged("has a frame of a size that none may have")
        end = at + _HEAD.size + size_bytes
        if len(left) < end:
            return None
        payload = bytes(left[at + _HEAD.size : end])
        if zlib.crc32(payload) != checksum:
            raise self._damaged(f"frame {self._frames}: checksum does not hold")
        if not closing:
            return self._decompressed(payload, chunk_bytes), end
        self._ended = True
        if _CLOSING.unpack(payload) != (self._frames, self._raw_bytes):
            raise self._damaged("lacks a frame")
        return b"", end

    def _decompressed(self, payload: bytes, chunk_bytes: int) -> bytes:
        try:
            decompressor = zstd.ZstdDecompressor()
            chunk: bytes = decompressor.decompress(payload, max_length=chunk_bytes)
            whole = len(chunk) == chunk_bytes and decompressor.eof and not decompressor.unused_data
        except zstd.ZstdError as problem:
            raise self._damaged(f"frame {self._frames}: {problem}") from problem
        if not whole:
            raise self._damaged(f"frame {self._frames}: is not of the size that it says")
        self._frames += 1
        self._raw_bytes += chunk_bytes
        return chunk

    def _damaged(self, what: str) -> CorruptRecord:
        return CorruptRecord(f"snapshot file {self._manifest.name} {what}")
