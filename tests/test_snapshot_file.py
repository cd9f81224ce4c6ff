"""The format of snapshot files: what was written comes back, and what is damaged never does."""

from __future__ import annotations

import os
from dataclasses import replace

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from multiraft.errors import CorruptRecord
from multiraft.snapshot_file import (
    CHUNK_BYTES,
    DISK,
    MANIFEST_FORMAT,
    MEMORY,
    FileReader,
    FileWriter,
    Manifest,
    decode_manifest,
    file_name,
    is_file_name,
    is_manifest,
)


def made(chunks: list[bytes], kind: str = MEMORY) -> tuple[bytes, Manifest]:
    writer = FileWriter()
    data = writer.begin() + b"".join(map(writer.chunk, chunks)) + writer.end()
    name = file_name(17, 5, 9)
    return data, Manifest(name, writer.size_bytes, writer.digest(), writer.raw_bytes, 5, 1_700_000_000_000, 7, kind)


def read(data: bytes, manifest: Manifest, step: int = 1 << 20) -> bytes:
    reader = FileReader(manifest)
    chunks = [chunk for at in range(0, len(data), step) for chunk in reader.feed(data[at : at + step])]
    reader.finish()
    return b"".join(chunks)


@given(st.lists(st.binary(max_size=300), max_size=12), st.integers(1, 400))
def test_chunks_come_back_however_the_file_is_cut(chunks: list[bytes], step: int) -> None:
    data, manifest = made(chunks)
    assert read(data, manifest, step) == b"".join(chunks)
    assert manifest.size_bytes == len(data)


def test_a_long_chunk_is_cut_and_what_repeats_is_compressed() -> None:
    chunk = b"the same again. " * (3 * CHUNK_BYTES // 16)
    data, manifest = made([chunk])
    assert len(data) < len(chunk) // 50
    reader = FileReader(manifest)
    assert max(map(len, reader.feed(data))) <= CHUNK_BYTES
    assert read(data, manifest) == chunk


@given(st.data())
def test_a_flipped_bit_is_noticed_wherever_it_is(data: st.DataObject) -> None:
    whole, manifest = made([b"first " * 20, os.urandom(50), b"last"])
    at, bit = data.draw(st.integers(0, len(whole) - 1)), data.draw(st.integers(0, 7))
    damaged = bytearray(whole)
    damaged[at] ^= 1 << bit
    with pytest.raises(CorruptRecord, match="snapshot file"):
        read(bytes(damaged), manifest)


@given(st.data())
def test_a_file_cut_short_or_with_more_behind_it_is_refused(data: st.DataObject) -> None:
    whole, manifest = made([b"one" * 40, b"two" * 40])
    with pytest.raises(CorruptRecord, match="ends too early"):
        read(whole[: data.draw(st.integers(0, len(whole) - 1))], manifest)
    with pytest.raises(CorruptRecord, match="is longer than its manifest says"):
        read(whole + b"x", manifest)
    with pytest.raises(CorruptRecord, match="goes on behind its end"):
        read(whole + b"x", replace(manifest, size_bytes=len(whole) + 1))


def test_the_file_of_another_manifest_is_refused() -> None:
    data, _ = made([b"one"])
    _, other = made([b"two"])
    with pytest.raises(CorruptRecord, match="its digest differs"):
        read(data, other)


def test_a_frame_that_grows_beyond_its_size_is_refused_before_it_is_made() -> None:
    writer = FileWriter()
    data = bytearray(writer.begin() + writer.chunk(bytes(CHUNK_BYTES)))
    data[13:17] = (1000).to_bytes(4, "big")  # the chunk's size
    manifest = replace(made([])[1], size_bytes=len(data))
    with pytest.raises(CorruptRecord, match="is not of the size that it says"):
        list(FileReader(manifest).feed(bytes(data)))
    data[9:13] = (1 << 31).to_bytes(4, "big")  # the payload's size
    with pytest.raises(CorruptRecord, match="of a size that none may have"):
        list(FileReader(manifest).feed(bytes(data)))


def test_a_manifest_comes_back() -> None:
    for kind in (MEMORY, DISK):
        _, manifest = made([b"one"], kind)
        assert is_manifest(manifest.encode())
        assert decode_manifest(manifest.encode()) == manifest
    assert not is_manifest(b"")
    assert not is_manifest(b"\x01" + bytes(8))


@pytest.mark.parametrize(
    "change",
    [
        {"name": "../../etc/passwd"},
        {"name": "x.snap"},
        {"name": ".snap"},
        {"size_bytes": -1},
        {"raw_bytes": 1.5},
        {"digest": b"short"},
        {"kind": "other"},
        {"compression": "lzma"},
        {"index": None},
    ],
)
def test_a_manifest_that_makes_no_sense_is_refused(change: dict[str, object]) -> None:
    _, manifest = made([b"one"])
    with pytest.raises(CorruptRecord):
        decode_manifest(replace(manifest, **change).encode())  # type: ignore[arg-type]


@given(st.binary(max_size=80))
def test_other_bytes_are_no_manifest(raw: bytes) -> None:
    for data in (raw, bytes((MANIFEST_FORMAT,)) + raw, bytes((MANIFEST_FORMAT,)) + msgpack.packb([raw] * 9)):
        with pytest.raises(CorruptRecord):
            decode_manifest(data)


def test_names_lead_nowhere_else() -> None:
    assert is_file_name(file_name(1, 2, 3))
    for name in ("", ".snap", "a/b.snap", "..snap.snap", "a.snap.part", "A.snap", "a" * 200 + ".snap", None, 5):
        assert not is_file_name(name)
