"""Keys and values: they come back as they went in, sort as the log does, and damage is always CorruptRecord."""

from __future__ import annotations

from collections.abc import Callable

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from multiraft.errors import CorruptRecord
from multiraft.records import COMMANDS, encode_record
from multiraft.storage import layout
from multiraft.types import (
    U64_MAX,
    Applied,
    Halt,
    HardState,
    Identity,
    LogStart,
    Membership,
    ReplicaDescriptor,
    Snapshot,
    Tombstone,
    founding_membership,
)

u64 = st.integers(0, U64_MAX)
groups = st.integers(1, U64_MAX)
ids = st.integers(1, U64_MAX - 1)
names = st.text(min_size=1, max_size=20)
tokens = st.binary(min_size=1, max_size=64)


@st.composite
def memberships(draw: st.DrawFn) -> Membership:
    def some(most: int) -> tuple[int, ...]:
        return tuple(sorted(draw(st.sets(ids, max_size=most))))

    voters, outgoing, others = some(5), some(3), some(3)
    learners = tuple(replica_id for replica_id in others if replica_id not in voters)
    named = sorted({*voters, *outgoing, *learners})
    unlike = draw(st.lists(names, min_size=len(named), max_size=len(named), unique=True))
    above = draw(st.integers(max(named, default=0) + 1, U64_MAX))
    joining = tuple(replica_id for replica_id in learners if draw(st.booleans()))
    stores = {replica_id: draw(tokens) for replica_id in named if draw(st.booleans())}
    auto_leave = bool(outgoing) and draw(st.booleans())
    nodes = dict(zip(named, unlike, strict=True))
    return Membership(draw(u64), voters, nodes, above, outgoing, learners, joining, auto_leave, stores)


identities = st.builds(Identity, names, tokens, st.binary(max_size=64), st.dictionaries(names, tokens, max_size=5))


@given(groups, st.builds(HardState, u64, u64, u64))
def test_hard_states_come_back(group_id: int, value: HardState) -> None:
    assert layout.decode_hard_state(group_id, layout.encode_hard_state(group_id, value)) == value


@given(groups, st.builds(LogStart, u64, u64))
def test_log_starts_come_back(group_id: int, value: LogStart) -> None:
    assert layout.decode_log_start(group_id, layout.encode_log_start(group_id, value)) == value


@given(st.builds(ReplicaDescriptor, groups, ids, st.text(max_size=20)))
def test_descriptors_come_back(value: ReplicaDescriptor) -> None:
    assert layout.decode_descriptor(value.group_id, layout.encode_descriptor(value)) == value


@given(groups, memberships())
def test_memberships_come_back(group_id: int, value: Membership) -> None:
    assert layout.decode_membership(group_id, layout.encode_membership(group_id, value)) == value


@given(groups, memberships(), u64, u64, st.binary(max_size=200))
def test_snapshots_come_back(group_id: int, membership: Membership, above: int, term: int, data: bytes) -> None:
    value = Snapshot(min(U64_MAX, max(1, membership.index + above)), term, membership, data)
    assert layout.decode_snapshot(group_id, layout.encode_snapshot(group_id, value)) == value


@given(groups, st.builds(Applied, u64, u64, u64, st.integers(0, (1 << 32) - 1), ids))
def test_applied_indexes_come_back(group_id: int, value: Applied) -> None:
    assert layout.decode_applied(group_id, layout.encode_applied(group_id, value)) == value


@given(groups, st.builds(Halt, u64, names, names, names, u64))
def test_halts_come_back(group_id: int, value: Halt) -> None:
    assert layout.decode_halt(group_id, layout.encode_halt(group_id, value)) == value


@given(u64, st.binary(max_size=20), st.binary(max_size=20))
def test_data_come_back_under_keys_of_their_space_alone(space: int, key: bytes, value: bytes) -> None:
    stored_key = layout.data_key(space, key)
    assert layout.FIRST_DATA_KEY <= stored_key < layout.DATA_END_KEY < layout.FIRST_GROUP_KEY
    assert layout.split_data_key(stored_key) == (space, key)
    assert layout.decode_data(stored_key, layout.encode_data(space, key, value)) == value
    first, end = layout.data_span(space)
    assert first <= stored_key < end
    assert space == 0 or layout.data_span(space - 1)[1] == first


def test_a_data_key_that_is_cut_short_is_refused() -> None:
    with pytest.raises(CorruptRecord, match="unknown key"):
        layout.split_data_key(layout.data_key(5, b"")[:-1])


def test_an_applied_index_names_a_space() -> None:
    with pytest.raises(CorruptRecord, match="applied index of group 3"):
        layout.decode_applied(3, layout.encode_applied(3, Applied(1, 1, 0, 0, 0)))


@given(st.builds(Tombstone, groups, ids, u64))
def test_tombstones_come_back(value: Tombstone) -> None:
    key = layout.tombstone_key(value.group_id)
    assert layout.FIRST_TOMBSTONE_KEY <= key < layout.TOMBSTONES_END_KEY < layout.FIRST_GROUP_KEY
    assert layout.decode_tombstone(key, layout.encode_tombstone(value)) == value


@given(identities)
def test_identities_come_back(value: Identity) -> None:
    assert layout.decode_identity(layout.encode_identity(value)) == value


@given(identities, u64, st.booleans())
def test_identity_files_come_back(identity: Identity, incarnation: int, closed: bool) -> None:
    raw = layout.encode_identity_file(identity, incarnation, closed)
    assert layout.decode_identity_file(raw) == (identity, incarnation, closed)


@given(u64)
def test_numbers_come_back(value: int) -> None:
    key = layout.INCARNATION_KEY
    assert layout.decode_number(key, layout.encode_number(key, value), "incarnation") == value


@given(groups, u64)
def test_keys_come_back(group_id: int, first: int) -> None:
    assert layout.split_key(layout.record_key(group_id, first)) == (group_id, layout.KIND_RECORD, first)
    for kind in layout.KINDS_WITHOUT_REST:
        assert layout.split_key(layout.group_key(group_id, kind)) == (group_id, kind, 0)


@given(st.lists(st.tuples(groups, u64), min_size=2))
def test_record_keys_sort_by_group_then_index(pairs: list[tuple[int, int]]) -> None:
    keys = sorted(layout.record_key(group_id, first) for group_id, first in pairs)
    assert keys == [layout.record_key(group_id, first) for group_id, first in sorted(pairs)]


@given(groups, u64)
def test_a_groups_small_values_come_before_its_log_and_all_before_the_next_group(group_id: int, first: int) -> None:
    kinds = (layout.KIND_DESCRIPTOR, layout.KIND_HARD_STATE, layout.KIND_MEMBERSHIP, layout.KIND_LOG_START)
    keys = [layout.group_key(group_id, kind) for kind in kinds]
    keys += [layout.record_key(group_id, first), layout.log_end_key(group_id)]
    if group_id < U64_MAX:
        keys.append(layout.group_key(group_id + 1, layout.KIND_DESCRIPTOR))
    assert keys == sorted(keys)
    assert len(set(keys)) == len(keys)
    assert keys[0] > layout.FIRST_GROUP_KEY > layout.CLOSING_KEY


DECODERS: list[Callable[[bytes], object]] = [
    lambda raw: layout.decode_hard_state(7, raw),
    lambda raw: layout.decode_log_start(7, raw),
    lambda raw: layout.decode_descriptor(7, raw),
    lambda raw: layout.decode_membership(7, raw),
    lambda raw: layout.decode_snapshot(7, raw),
    lambda raw: layout.decode_tombstone(layout.tombstone_key(7), raw),
    layout.decode_identity,
    layout.decode_identity_file,
    lambda raw: layout.decode_number(layout.CLOSING_KEY, raw, "closing record"),
    lambda raw: layout.decode_stored_record(7, 1, raw),
    layout.split_key,
]
KEYS = [
    layout.group_key(7, layout.KIND_HARD_STATE),
    layout.group_key(7, layout.KIND_LOG_START),
    layout.group_key(7, layout.KIND_DESCRIPTOR),
    layout.group_key(7, layout.KIND_MEMBERSHIP),
    layout.group_key(7, layout.KIND_SNAPSHOT),
    layout.tombstone_key(7),
    layout.IDENTITY_KEY,
    layout.IDENTITY_KEY,
    layout.CLOSING_KEY,
]


@pytest.mark.parametrize("decode", DECODERS)
@given(raw=st.binary(max_size=100))
def test_arbitrary_bytes_raise_corrupt_record_alone(decode: Callable[[bytes], object], raw: bytes) -> None:
    try:
        decode(raw)
    except CorruptRecord:
        return
    assert decode is layout.split_key, "random bytes do not carry a checksum"


packable = st.recursive(
    st.none() | st.booleans() | st.integers(-(1 << 63), U64_MAX) | st.floats() | st.text() | st.binary(),
    lambda inner: st.lists(inner, max_size=6) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=20,
)


@pytest.mark.parametrize(("decode", "key"), list(zip(DECODERS[:9], KEYS, strict=True)))
@given(body=st.binary(max_size=60), fields=st.lists(packable, min_size=2, max_size=6))
def test_wrong_bodies_under_a_right_checksum_raise_corrupt_record_alone(
    decode: Callable[[bytes], object], key: bytes, body: bytes, fields: list[object]
) -> None:
    for sealed in (layout.seal(key, body), layout.seal(key, msgpack.packb(fields))):
        try:
            decode(sealed)
        except CorruptRecord:
            continue


@pytest.mark.parametrize(
    "membership",
    [
        Membership(1, (2, 1), {1: "a", 2: "b"}, 3),  # not ascending
        Membership(1, (1, 1), {1: "a"}, 3),
        Membership(1, (0,), {0: "a"}, 3),  # nobody is no replica
        Membership(1, (1, 2), {1: "a"}, 3),  # a replica without a node
        Membership(1, (1, 2), {1: "a", 2: "b"}, 2),  # the next id is taken
        Membership(1, (1,), {1: "a", 5: "e"}, 5, learners=(5,)),
        Membership(1, (1,), {1: "a", 2: "b"}, 5),  # a node for nobody
        Membership(1, (1, 2), {1: "a", 2: "a"}, 5),  # two replicas on one node
        Membership(1, (1, 2), {1: "a", 2: "b"}, 5, learners=(2,)),  # voter and learner at once
        Membership(1, (1,), {1: "a", 2: "b"}, 5, learners=(2,), joining=(1, 2)),
        Membership(1, (1,), {1: "a"}, 5, auto_leave=True),
        Membership(1, (1,), {1: "a"}, 5, stores={2: b"x"}),
    ],
)
def test_memberships_that_make_no_sense_are_refused(membership: Membership) -> None:
    with pytest.raises(CorruptRecord):
        layout.decode_membership(7, layout.encode_membership(7, membership))


@pytest.mark.parametrize(
    "snapshot", [Snapshot(0, 0, founding_membership(("a",))), Snapshot(0, 1, Membership(0, (), {}, 1))]
)
def test_snapshots_that_make_no_sense_are_refused(snapshot: Snapshot) -> None:
    with pytest.raises(CorruptRecord, match="snapshot of group 7: does not make sense"):
        layout.decode_snapshot(7, layout.encode_snapshot(7, snapshot))


def test_a_tombstone_belongs_to_its_group_and_names_somebody() -> None:
    value = layout.encode_tombstone(Tombstone(7, 3, 40))
    with pytest.raises(CorruptRecord, match="tombstone of group 8: checksum"):
        layout.decode_tombstone(layout.tombstone_key(8), value)
    with pytest.raises(CorruptRecord, match="a replica id is 0"):
        layout.decode_tombstone(layout.tombstone_key(7), layout.encode_tombstone(Tombstone(7, 0, 40)))
    with pytest.raises(CorruptRecord, match="unknown key"):
        layout.decode_tombstone(layout.tombstone_key(7) + b"x", value)


def test_the_span_of_a_group_holds_all_of_its_keys_and_none_of_another() -> None:
    for group_id in (1, 7, U64_MAX):
        start, stop = layout.group_span(group_id)
        mine = [layout.group_key(group_id, kind) for kind in layout.KINDS_WITHOUT_REST]
        mine += [layout.record_key(group_id, first) for first in (0, U64_MAX)]
        assert all(start <= key < stop for key in mine)
        others = [layout.record_key(group_id - 1, U64_MAX), layout.group_key(group_id - 1, layout.KIND_SNAPSHOT)]
        if group_id < U64_MAX:
            others.append(layout.group_key(group_id + 1, layout.KIND_DESCRIPTOR))
        assert not any(start <= key < stop for key in others)


def test_every_flipped_bit_of_a_value_is_noticed() -> None:
    value = layout.encode_hard_state(7, HardState(3, 2, 9))
    for position in range(len(value)):
        for bit in range(8):
            with pytest.raises(CorruptRecord):
                layout.decode_hard_state(
                    7, value[:position] + bytes([value[position] ^ 1 << bit]) + value[position + 1 :]
                )


def test_a_value_belongs_to_its_key() -> None:
    value = layout.encode_hard_state(7, HardState(3, 2, 9))
    with pytest.raises(CorruptRecord, match="checksum"):
        layout.decode_hard_state(8, value)


def test_another_value_format_is_named() -> None:
    value = layout.encode_log_start(7, LogStart(1, 1))
    with pytest.raises(CorruptRecord, match="format 2, this version reads 1"):
        layout.decode_log_start(7, b"\x02" + value[1:])


def test_a_record_belongs_to_its_key() -> None:
    record = encode_record(7, 5, 2, 1, COMMANDS, 0, [b"x"])
    assert layout.decode_stored_record(7, 5, record.raw).raw == record.raw
    with pytest.raises(CorruptRecord, match="stored at index 6 starts at 5"):
        layout.decode_stored_record(7, 6, record.raw)
    with pytest.raises(CorruptRecord, match=r"checksum does not hold \(stored at index 5\)"):
        layout.decode_stored_record(8, 5, record.raw)


def test_a_record_past_the_last_index_is_refused() -> None:
    record = encode_record(7, U64_MAX, 2, 1, COMMANDS, 0, [b"x", b"y"])
    with pytest.raises(CorruptRecord):
        layout.decode_stored_record(7, U64_MAX, record.raw)


def test_keys_of_other_shapes_are_refused() -> None:
    good = layout.record_key(7, 5)
    others = [layout.group_key(7, kind) for kind in (0, layout.KIND_RECORD, 9, 10)]
    for key in (b"", good[:-1], good + b"\0", layout.tombstone_key(7)[1:], *others):
        with pytest.raises(CorruptRecord, match="unknown key"):
            layout.split_key(key)
