"""A keyspace as a stream: what goes in comes out, however it is cut, and what is no such stream is refused."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from multiraft.engine.pairstream import CHUNK_BYTES, PairLoader, pair_chunks
from multiraft.errors import CorruptRecord

Pairs = list[tuple[bytes, bytes]]
HEAD_BYTES = 13
KEYSPACES = st.dictionaries(
    st.tuples(st.sampled_from([b"\0", b"\1"]), st.binary(max_size=6)).map(b"".join), st.binary(max_size=40), max_size=20
).map(lambda found: sorted(found.items()))


def whole(pairs: Pairs, time_ms: int = 5, value: int = 7) -> bytes:
    return b"".join(pair_chunks(time_ms, value, pairs))


def loaded(stream: bytes, cuts: list[int], stream_bytes: int | None = None) -> tuple[PairLoader, Pairs]:
    loader = PairLoader(len(stream) if stream_bytes is None else stream_bytes)
    edges = [0, *sorted(cut % (len(stream) + 1) for cut in cuts), len(stream)]
    found: Pairs = []
    for start, stop in pairwise(edges):
        found += loader.feed(stream[start:stop])
    loader.finish()
    return loader, found


@given(KEYSPACES, st.lists(st.integers(0, 10_000), max_size=12))
def test_what_goes_in_comes_out_however_it_is_cut(pairs: Pairs, cuts: list[int]) -> None:
    loader, found = loaded(whole(pairs, 123, 456), cuts)
    assert found == pairs
    assert (loader.time_ms, loader.hash) == (123, 456)


def test_an_empty_keyspace_is_a_stream_too() -> None:
    loader, found = loaded(whole([], 9, 8), [])
    assert (found, loader.time_ms, loader.hash) == ([], 9, 8)


def test_chunks_are_small_and_pairs_are_taken_only_as_they_are_needed() -> None:
    pairs = [(b"\0%06d" % number, b"v" * 1_000) for number in range(1_000)]
    taken: Pairs = []

    def noted() -> Iterator[tuple[bytes, bytes]]:
        for pair in pairs:
            taken.append(pair)
            yield pair

    chunks = pair_chunks(1, 2, noted())
    first = next(chunks)
    assert CHUNK_BYTES <= len(first) < CHUNK_BYTES + 1_100
    assert len(taken) < 70
    rest = list(chunks)
    assert max(map(len, rest)) < CHUNK_BYTES + 1_100
    assert loaded(b"".join([first, *rest]), [])[1] == pairs


def test_a_large_value_waits_in_pieces_and_comes_out_whole() -> None:
    pairs = [(b"\0a", b"x" * 3_000_000), (b"\0b", b"")]
    stream = whole(pairs)
    loader = PairLoader(len(stream))
    found: Pairs = []
    for at in range(0, len(stream), 1_000):
        found += loader.feed(stream[at : at + 1_000])
    loader.finish()
    assert found == pairs


@given(KEYSPACES.filter(bool), st.data())
def test_a_stream_that_ends_early_is_refused(pairs: Pairs, data: st.DataObject) -> None:
    stream = whole(pairs)
    cut = data.draw(st.integers(0, len(stream) - 1))
    with pytest.raises(CorruptRecord):  # also where the cut comes between two pairs
        loaded(stream[:cut], [], len(stream))


def test_a_stream_that_goes_on_is_refused() -> None:
    stream = whole([(b"\0a", b"1")])
    with pytest.raises(CorruptRecord, match="longer than was said"):
        loaded(stream + b"\0", [], len(stream))


def test_a_length_that_the_stream_cannot_have_is_refused_before_it_is_waited_for() -> None:
    stream = whole([(b"\0a", b"1"), (b"\0b", b"2")])
    damaged = stream[: HEAD_BYTES + 4] + struct.pack(">I", 0x7FFF_FFFF) + stream[HEAD_BYTES + 8 :]
    loader = PairLoader(len(stream))
    with pytest.raises(CorruptRecord, match="longer than all that is to come"):
        loader.feed(damaged[: HEAD_BYTES + 8])


@pytest.mark.parametrize(
    "keys",
    [
        [b"\0a", b"\0a"],  # twice the same
        [b"\0b", b"\0a"],  # changed places
        [b"\1", b"\0a"],
        [b""],  # no part
        [b"\0a", b""],
        [b"\2a"],  # a part that there is not
    ],
)
def test_keys_that_have_no_place_there_are_refused(keys: list[bytes]) -> None:
    stream = whole([(key, b"v") for key in keys])
    with pytest.raises(CorruptRecord, match="no place there"):
        loaded(stream, [])
    with pytest.raises(CorruptRecord, match="no place there"):
        loaded(stream, list(range(len(stream))))


def test_another_format_is_refused() -> None:
    stream = whole([])
    with pytest.raises(CorruptRecord, match="of format 131"):
        loaded(b"\x83" + stream[1:], [])
