"""Routing keys and the ranges that the space of them is first cut into."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from multiraft.errors import InvalidRequest
from multiraft.shard.partition import SHARDS_MAX, Range, hash_ranges, in_range, key_ranges, routing_key

boundary_lists = st.lists(st.binary(min_size=1, max_size=6), unique=True, max_size=20).map(sorted)


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        (b"", "e4a6a0577479b2b4"),
        (b"hits", "bc6bd32806a91b73"),
    ],
)
def test_the_hash_is_the_same_for_ever(key: bytes, expected: str) -> None:
    assert routing_key("hash", key).hex() == expected


def test_in_range_mode_a_key_is_its_own_routing_key() -> None:
    assert routing_key("range", b"any\x00thing") == b"any\x00thing"


@given(st.binary(), st.integers(1, 300))
def test_every_hash_is_in_exactly_one_range(key: bytes, count: int) -> None:
    ranges = hash_ranges(count)
    assert len(ranges) == count
    assert held_by(ranges, routing_key("hash", key)) == 1


@given(st.binary(), boundary_lists)
def test_every_key_is_in_exactly_one_range(key: bytes, boundaries: list[bytes]) -> None:
    ranges = key_ranges(boundaries)
    assert len(ranges) == len(boundaries) + 1
    for one in (key, *boundaries):
        assert held_by(ranges, one) == 1


def held_by(ranges: tuple[Range, ...], key: bytes) -> int:
    return sum(in_range(key, start, end) for start, end in ranges)


@given(st.integers(1, 2_000))
def test_hash_ranges_are_even(count: int) -> None:
    ends = [int.from_bytes(end, "big") for _, end in hash_ranges(count) if end is not None]
    edges = [0, *ends, 1 << 64]
    sizes = [right - left for left, right in pairwise(edges)]
    assert max(sizes) - min(sizes) <= 1


def test_hash_ranges_by_hand() -> None:
    half = b"\x80" + bytes(7)
    assert hash_ranges(1) == ((b"", None),)
    assert hash_ranges(2) == ((b"", half), (half, None))
    assert len(hash_ranges(SHARDS_MAX)) == SHARDS_MAX


@pytest.mark.parametrize("count", [0, -1, SHARDS_MAX + 1, 1.0, True, "4", None])
def test_counts_that_cannot_be_are_refused(count: Any) -> None:
    with pytest.raises(InvalidRequest, match="initial_shards = "):
        hash_ranges(count)


@pytest.mark.parametrize("boundaries", [[b""], [b"b", b"a"], [b"a", b"a"], ["a"], [b"a", None], [b"x"] * SHARDS_MAX])
def test_boundaries_that_cannot_be_are_refused(boundaries: Any) -> None:
    with pytest.raises(InvalidRequest, match="boundaries: "):
        key_ranges(boundaries)
