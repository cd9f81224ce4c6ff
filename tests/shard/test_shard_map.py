"""The shard map: lookups against a naive twin, the way to bytes and back, and maps that must never be made."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from multiraft.errors import InvariantViolation, WireError
from multiraft.shard import ServiceShards, Shard, ShardMap
from multiraft.shard.partition import Mode, hash_ranges, in_range, key_ranges, routing_key


@st.composite
def service_shards(draw: st.DrawFn) -> ServiceShards:
    mode: Mode = draw(st.sampled_from(["hash", "range"]))
    if mode == "hash":
        ranges = hash_ranges(draw(st.integers(1, 40)))
    else:
        ranges = key_ranges(draw(st.lists(st.binary(min_size=1, max_size=4), unique=True, max_size=9).map(sorted)))
    first = draw(st.integers(16, 1 << 40))
    shards = [Shard(number, first + number, start, end, 1) for number, (start, end) in enumerate(ranges, start=1)]
    return ServiceShards(mode, tuple(shards))


@st.composite
def shard_maps(draw: st.DrawFn) -> ShardMap:
    services: dict[str, ServiceShards] = {}
    groups: dict[int, tuple[str, ...]] = {}
    for number, service in enumerate(draw(st.lists(service_shards(), max_size=3))):
        moved = tuple(replace(shard, group_id=shard.group_id + (number << 50)) for shard in service.shards)
        services[f"service{number}"] = ServiceShards(service.mode, moved)
        for shard in moved:
            groups[shard.group_id] = tuple(draw(st.permutations(["a", "b", "c"])))
    return ShardMap(draw(st.integers(0, 1 << 60)), services, groups)


@given(service_shards(), st.binary(max_size=6))
def test_every_key_falls_into_exactly_one_shard(service: ServiceShards, key: bytes) -> None:
    place = routing_key(service.mode, key)
    holding = [shard for shard in service.shards if in_range(place, shard.start, shard.end)]
    assert holding == [service.find(key)]


@given(service_shards())
def test_a_boundary_belongs_to_the_shard_that_starts_there(service: ServiceShards) -> None:
    if service.mode == "range":
        assert all(service.find(shard.start) is shard for shard in service.shards)
    assert [service.by_id(shard.shard_id) for shard in service.shards] == list(service.shards)
    assert service.by_id(len(service.shards) + 1) is None


@given(shard_maps())
def test_a_map_survives_the_wire(shard_map: ShardMap) -> None:
    assert ShardMap.from_plain(msgpack.unpackb(msgpack.packb(shard_map.to_plain()))) == shard_map


def test_a_map_cannot_be_changed() -> None:
    groups = {16: ("a",)}
    shard_map = ShardMap(1, {}, groups)
    groups[17] = ("b",)
    assert dict(shard_map.groups) == {16: ("a",)}
    with pytest.raises(TypeError):
        shard_map.groups[18] = ("c",)  # type: ignore[index]


WHOLE = Shard(1, 16, b"", None, 1)


@pytest.mark.parametrize(
    ("shards", "words"),
    [
        ((), "at least one shard"),
        ((replace(WHOLE, start=b"a"),), "starts at the beginning"),
        ((replace(WHOLE, end=b"a"),), "ends at the end"),
        ((replace(WHOLE, end=b"a"), Shard(2, 17, b"b", None, 1)), "starts where"),
        ((replace(WHOLE, end=b"b"), Shard(2, 17, b"a", None, 1)), "starts where"),
        ((WHOLE, Shard(2, 17, b"a", None, 1)), "starts where"),
        ((replace(WHOLE, end=b""), Shard(2, 17, b"", None, 1)), "is not empty"),
        ((replace(WHOLE, end=b"a"), Shard(1, 17, b"a", None, 1)), "same id"),
    ],
)
def test_shards_with_gaps_or_overlaps_are_never_made(shards: tuple[Shard, ...], words: str) -> None:
    with pytest.raises(InvariantViolation, match=words):
        ServiceShards("range", shards)


def test_a_group_has_nodes_and_serves_one_shard() -> None:
    service = ServiceShards("hash", (WHOLE,))
    with pytest.raises(InvariantViolation, match="has nodes"):
        ShardMap(1, {"s": service}, {})
    with pytest.raises(InvariantViolation, match="one shard only"):
        ShardMap(1, {"s": service, "t": service}, {16: ("a",)})


PLAIN = ShardMap(3, {"s": ServiceShards("range", (WHOLE,))}, {16: ("a", "b")}).to_plain()


def set_in(*path: Any) -> Callable[[list[Any]], object]:
    """Return what puts the last of `path` where the others lead."""

    def damage(plain: list[Any]) -> object:
        inner: Any = plain
        for step in path[:-2]:
            inner = inner[step]
        inner[path[-2]] = path[-1]
        return plain

    return damage


@pytest.mark.parametrize(
    "damage",
    [
        lambda plain: None,
        lambda plain: {},
        lambda plain: plain[:3],
        set_in(0, 1),
        set_in(1, -1),
        set_in(1, "3"),
        set_in(2, 0, 0, b"s"),
        set_in(2, 0, 1, "other"),
        set_in(2, 0, 2, []),
        set_in(2, 0, 2, 0, 2, b"a"),
        set_in(2, 0, 2, 0, 2, None),
        set_in(2, 0, 2, 0, 3, b"a"),
        set_in(2, 0, 2, 0, 3, "a"),
        set_in(2, 0, 2, 0, 1, 17),
        set_in(2, 0, 2, 0, 1, 1 << 64),
        set_in(2, 0, 2, 0, [1, 16, b"", None]),
        set_in(2, 0, 3, -1),
        set_in(2, 0, 4, [["a"]]),
        set_in(2, 0, 4, [[b"a", 1]]),
        set_in(3, []),
        set_in(3, 0, 1, "a"),
        set_in(3, 0, 1, 0, 5),
    ],
)
def test_a_damaged_map_is_refused(damage: Callable[[list[Any]], object]) -> None:
    assert ShardMap.from_plain(copy.deepcopy(PLAIN)).version == 3
    with pytest.raises(WireError, match="shard map"):
        ShardMap.from_plain(damage(copy.deepcopy(PLAIN)))
