"""Reading logs: what covers what, where records end, and what is refused; the same for every store.

Rules of this file: damage is done while no store is open, or written through the port as a faulty engine would.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest

from multiraft.errors import CorruptRecord
from multiraft.ports import Store
from multiraft.records import MEMBERSHIP, Record, cut_record, encode_record
from multiraft.storage import layout
from multiraft.types import (
    U64_MAX,
    HardState,
    Index,
    LogStart,
    Membership,
    ReplicaDescriptor,
    Term,
    founding_membership,
    unborn_membership,
)

if TYPE_CHECKING:
    from tests.storage.conftest import Place

GROUP = 17
NO_LIMIT = 1 << 40


def spans(records: list[Record]) -> list[tuple[Index, Index, Term]]:
    return [(record.first, record.last, record.term) for record in records]


# ------------------------------------------------------------------------------------------------- read_records


@pytest.mark.parametrize(
    ("first", "last", "limit", "expected"),
    [
        (2, 2, NO_LIMIT, [(2, 4)]),  # the last may end after what was asked for
        (4, 4, NO_LIMIT, [(2, 4)]),  # the first may begin before
        (4, 5, NO_LIMIT, [(2, 4), (5, 5)]),
        (5, 9, NO_LIMIT, [(5, 5), (6, 9)]),
        (2, 99, NO_LIMIT, [(2, 4), (5, 5), (6, 9)]),  # asked for more than there is
        (2, 9, 0, [(2, 4)]),  # at least one
        (2, 9, 1, [(2, 4)]),
        (2, 9, 100, [(2, 4), (5, 5)]),
    ],
)
async def test_read_records_covers_what_was_asked(
    place: Place, first: Index, last: Index, limit: int, expected: list[tuple[Index, Index]]
) -> None:
    store = place.open()
    await place.found(store, [place.record(2, 4), place.record(5, 5), place.record(6, 9)])
    assert [(record.first, record.last) for record in store.read_records(GROUP, first, last, limit)] == expected


async def test_read_records_says_when_nothing_holds_the_index(place: Place) -> None:
    store = place.open()
    await place.found(store, [place.record(2, 4)])
    for group_id, first in ((GROUP, 5), (GROUP, 1), (GROUP - 1, 2), (GROUP + 1, 2)):
        with pytest.raises(CorruptRecord, match=f"group {group_id}: no record holds index {first}"):
            store.read_records(group_id, first, first, NO_LIMIT)


async def conflict(place: Place, store: Store, record: Record, deleted: list[Index]) -> None:
    batch = store.batch()
    batch.delete_records(GROUP, deleted)
    batch.put_record(GROUP, record)
    batch.put_hard_state(GROUP, HardState(record.term, 0, 1))
    await place.write(store, batch)


@pytest.mark.parametrize(
    ("first", "last", "limit", "expected"),
    [
        (2, 5, NO_LIMIT, [(2, 3, 1), (4, 5, 2)]),  # reads on where the first one now ends before `last`
        (3, 3, NO_LIMIT, [(2, 3, 1)]),
        (2, 5, 0, [(2, 3, 1)]),
        (4, 4, NO_LIMIT, [(4, 5, 2)]),
        (5, 5, NO_LIMIT, [(4, 5, 2)]),
    ],
)
async def test_a_record_ends_where_a_later_one_cut_into_it(
    place: Place, first: Index, last: Index, limit: int, expected: list[tuple[Index, Index, Term]]
) -> None:
    store = place.open()
    await place.found(store, [place.record(2, 9), place.record(10, 12)])
    await conflict(place, store, place.record(4, 5, term=2), [10])
    found = store.read_records(GROUP, first, last, limit)
    assert spans(found) == expected
    assert [record.entries()[0].split(b".")[0] for record in found] == [b"%d/%d" % (f, t) for f, _, t in expected]
    assert store.read_firsts(GROUP, 1) == [2, 4]
    assert [store.read_term(GROUP, index) for index in (2, 3, 4, 5)] == [1, 1, 2, 2]
    with pytest.raises(CorruptRecord, match="no record holds index 6"):
        store.read_term(GROUP, 6)
    (replica,) = store.load_replicas()
    assert (replica.last_index, replica.last_term) == (5, 2)


async def test_a_conflict_at_a_records_first_index_replaces_it(place: Place) -> None:
    store = place.open()
    await place.found(store, [place.record(2, 3), place.record(4, 6), place.record(7, 7)])
    await conflict(place, store, place.record(4, 4, term=2), [4, 7])
    assert spans(store.read_records(GROUP, 2, 9, NO_LIMIT)) == [(2, 3, 1), (4, 4, 2)]


async def test_a_gap_or_a_foreign_record_in_the_way_is_refused(place: Place) -> None:
    store = place.open()
    await place.found(store, [place.record(2, 3), place.record(5, 6)])
    with pytest.raises(CorruptRecord, match="no record holds index 4; the next begins at 5"):
        store.read_records(GROUP, 2, 6, NO_LIMIT)
    await conflict(place, store, place.record(4, 4, term=3, prev_term=2), [])
    with pytest.raises(CorruptRecord, match="record at 4 follows term 2, but the entry before it has term 1"):
        store.read_records(GROUP, 2, 6, NO_LIMIT)


async def test_groups_do_not_see_each_others_logs(place: Place) -> None:
    store = place.open()
    groups = [1, GROUP - 1, GROUP, GROUP + 1, 256, U64_MAX]
    for group_id in groups:
        await place.found(store, [place.record(2, group_id % 7 + 2, group_id=group_id)], None, group_id)
    for group_id in groups:
        last = group_id % 7 + 2
        assert spans(store.read_records(group_id, 2, 99, NO_LIMIT)) == [(2, last, 1)]
        assert store.read_firsts(group_id, 0) == [2]
        assert store.read_term(group_id, last) == 1
    assert [(replica.descriptor.group_id, replica.last_index) for replica in store.load_replicas()] == [
        (group_id, group_id % 7 + 2) for group_id in groups
    ]


async def test_read_firsts_begins_at_the_index(place: Place) -> None:
    store = place.open()
    await place.found(store, [place.record(first, first) for first in range(2, 300)])
    assert store.read_firsts(GROUP, 250) == list(range(250, 300))
    assert store.read_firsts(GROUP, 300) == []


@pytest.mark.parametrize("seed", range(5))
async def test_any_history_of_appends_and_conflicts_reads_as_a_plain_list_would(place: Place, seed: int) -> None:
    rng = random.Random(seed)
    store = place.open()
    await place.found(store)
    entries: list[tuple[bytes, Term]] = [(b"", 0), (b"", 1)]  # at 0 and 1, the founding
    firsts: list[Index] = []
    term = 1
    for _ in range(60):
        batch = store.batch()
        first = rng.randint(max(2, len(entries) - 8), len(entries)) if rng.random() < 0.4 else len(entries)
        term += first < len(entries)
        deleted = [stored for stored in firsts if stored >= first]
        record = place.record(first, first + rng.randint(0, 6), term, entries[first - 1][1], size=rng.randint(0, 50))
        batch.delete_records(GROUP, deleted)
        batch.put_record(GROUP, record)
        batch.put_hard_state(GROUP, HardState(term, 0, 1))
        await place.write(store, batch)
        firsts = [stored for stored in firsts if stored < first] + [first]
        entries[first:] = [(entry, term) for entry in record.entries()]
    last = len(entries) - 1
    for _ in range(60):
        low = rng.randint(2, last)
        high, limit = rng.randint(low, last), rng.choice([0, 200, NO_LIMIT])
        found = store.read_records(GROUP, low, high, limit)
        assert found[0].first <= low <= found[0].last
        if limit == NO_LIMIT:
            assert found[-1].last >= high
        for record in found:
            held = [(entry, record.term) for entry in record.entries()]
            assert held == entries[record.first : record.last + 1]
        assert store.read_term(GROUP, low) == entries[low][1]
        assert store.read_firsts(GROUP, low) == [first for first in firsts if first >= low]
    (replica,) = store.load_replicas()
    assert (replica.last_index, replica.last_term) == (last, entries[last][1])


# ------------------------------------------------------------------------------------------------- load_replicas


async def test_load_replicas_of_an_empty_store(place: Place) -> None:
    assert place.open().load_replicas() == []


async def test_a_replica_that_was_created_empty_is_loaded(place: Place) -> None:
    store = place.open()
    batch = store.batch()
    batch.create_replica(ReplicaDescriptor(40, 9, "kv"), unborn_membership(), HardState(), LogStart())
    await place.write(store, batch)
    (replica,) = store.load_replicas()
    assert (replica.last_index, replica.last_term, replica.hard_state) == (0, 0, HardState())


async def test_a_log_may_begin_below_the_log_start(place: Place) -> None:
    store = place.open()
    batch = store.batch()
    batch.create_replica(
        ReplicaDescriptor(GROUP, 1, "kv"), founding_membership(("a",)), HardState(2, 0, 5), LogStart(5, 1)
    )
    batch.put_record(GROUP, place.record(3, 6))
    batch.put_record(GROUP, place.record(7, 8, term=2))
    await place.write(store, batch)
    (replica,) = store.load_replicas()
    assert (replica.last_index, replica.last_term) == (8, 2)


async def started_at(place: Place, store: Store, log_start: LogStart, records: list[Record]) -> None:
    """Create a replica whose log starts at `log_start`, all of it committed, with these records."""
    batch = store.batch()
    hard_state = HardState(9, 0, log_start.index)
    batch.create_replica(ReplicaDescriptor(GROUP, 1, "kv"), founding_membership(("a",)), hard_state, log_start)
    for record in records:
        batch.put_record(GROUP, record)
    await place.write(store, batch)


async def test_a_record_that_was_cut_below_the_log_start_is_judged_by_what_still_counts(place: Place) -> None:
    store = place.open()
    await started_at(place, store, LogStart(5, 2), [place.record(2, 9), place.record(4, 6, term=2)])
    (replica,) = store.load_replicas()
    assert (replica.last_index, replica.last_term) == (6, 2)


async def test_a_record_across_the_log_start_is_of_its_term(place: Place) -> None:
    store = place.open()
    await started_at(place, store, LogStart(5, 2), [place.record(3, 6)])
    with pytest.raises(CorruptRecord, match="record at 3 does not follow the log start 5"):
        store.load_replicas()


async def test_a_log_that_ends_below_the_log_start_is_refused(place: Place) -> None:
    store = place.open()
    await started_at(place, store, LogStart(5, 1), [place.record(2, 3)])
    with pytest.raises(CorruptRecord, match="its log ends at 3, below the log start 5"):
        store.load_replicas()


Damage = Callable[["Place"], tuple[list[Record], HardState]]


@pytest.mark.parametrize(
    ("damage", "expected"),
    [
        (lambda p: ([p.record(3, 4)], HardState(1, 0, 1)), "its log begins at 3, but the log start is 1"),
        (lambda p: ([p.record(2, 3), p.record(5, 5)], HardState(1, 0, 1)), "no record holds index 4"),
        (lambda p: ([p.record(2, 3), p.record(4, 4, 3, 2)], HardState(3, 0, 1)), "record at 4 follows term 2"),
        (lambda p: ([p.record(2, 9), p.record(4, 4, 3, 2)], HardState(3, 0, 1)), "record at 4 follows term 2"),
        (lambda p: ([p.record(2, 3, 2, 0)], HardState(2, 0, 1)), "record at 2 does not follow the log start 1"),
        (lambda p: ([p.record(2, 3)], HardState(1, 0, 4)), "commit 4 is not within its log"),
        (lambda p: ([], HardState(1, 0, 2)), "commit 2 is not within its log"),
        (lambda p: ([p.record(2, 3)], HardState(1, 0, 0)), "commit 0 is not within its log"),
        (lambda p: ([p.record(2, 3, 5, 1)], HardState(4, 0, 1)), "term 4 is below that of its log, 5"),
        (lambda p: ([], HardState(0, 0, 1)), "term 0 is below that of its log"),
    ],
)
async def test_what_does_not_fit_together_is_refused(place: Place, damage: Damage, expected: str) -> None:
    store = place.open()
    await place.found(store, group_id=GROUP - 1)
    records, hard_state = damage(place)
    await place.found(store, records, hard_state)
    with pytest.raises(CorruptRecord, match=f"is damaged: group {GROUP}: .*{expected}.*[.] Put back a copy"):
        store.load_replicas()


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        (layout.KIND_DESCRIPTOR, "descriptor"),
        (layout.KIND_HARD_STATE, "hard state"),
        (layout.KIND_MEMBERSHIP, "membership"),
        (layout.KIND_LOG_START, "log start"),
    ],
)
async def test_a_missing_part_of_a_replica_is_refused(place: Place, kind: int, name: str) -> None:
    store = place.open()
    await place.found(store, [place.record(2, 3)])
    await store.close()
    place.poke(layout.group_key(GROUP, kind), None)
    with pytest.raises(CorruptRecord, match=f"{name} of group {GROUP}: is missing"):
        place.open().load_replicas()


async def test_an_unknown_key_is_refused(place: Place) -> None:
    store = place.open()
    await place.found(store)
    await store.close()
    place.poke(layout.group_key(GROUP, 99), b"?")
    with pytest.raises(CorruptRecord, match="unknown key 000000000000001163"):
        place.open().load_replicas()


async def test_a_value_that_turns_up_under_another_key_is_refused(place: Place) -> None:
    store = place.open()
    await place.found(store, [place.record(2, 2), place.record(3, 3)])
    await place.found(store, [place.record(2, 2, group_id=GROUP + 1)], None, GROUP + 1)
    await store.close()
    values = {key: value for key, value in place.peek().items() if key >= layout.FIRST_GROUP_KEY}
    mine = {key: value for key, value in values.items() if layout.split_key(key)[0] == GROUP}
    for key, value in mine.items():
        _, kind, first = layout.split_key(key)
        other = layout.record_key(GROUP + 1, first) if first else layout.group_key(GROUP + 1, kind)
        await refused_with(place, other, value)
    await refused_with(place, layout.record_key(GROUP, 3), mine[layout.record_key(GROUP, 2)])


async def test_a_flipped_byte_in_any_value_is_refused(place: Place) -> None:
    store = place.open()
    await place.found(store, [place.record(2, 3, size=0), place.record(4, 4, size=0)])
    await store.close()
    for key, value in place.peek().items():
        if key < layout.FIRST_GROUP_KEY:
            continue
        for position in range(0, len(value), 1 if len(value) < 40 else 7):
            await refused_with(place, key, value[:position] + bytes([value[position] ^ 4]) + value[position + 1 :])


async def refused_with(place: Place, key: bytes, value: bytes) -> None:
    """Loading is refused with `value` under `key`, and so is reading the record if it is one; then it is put back."""
    before = place.peek().get(key)
    place.poke(key, value)
    store = place.open()
    with pytest.raises(CorruptRecord):
        store.load_replicas()
    group_id, kind, first = layout.split_key(key)
    if kind == layout.KIND_RECORD:
        with pytest.raises(CorruptRecord):
            store.read_records(group_id, first, first, NO_LIMIT)
        with pytest.raises(CorruptRecord):
            store.read_term(group_id, first)
    await store.close()
    place.poke(key, before)


async def test_the_membership_entries_in_the_log_are_known_by_index(place: Place) -> None:
    """Those above the membership in effect; one that a conflict took away, by key or by clipping, is none."""
    store = place.open()
    changes = [(5, 5), (9, 9), (12, 14), (18, 18)]
    records = [place.record(2, 4), place.record(6, 8), place.record(10, 11), place.record(15, 17)]
    records += [
        encode_record(GROUP, first, 1, 1, MEMBERSHIP, 0, [b"m"] * (last - first + 1)) for first, last in changes
    ]
    await place.found(store, records)
    (replica,) = store.load_replicas()
    assert replica.changes == (5, 9, 12, 13, 14, 18)
    batch = store.batch()
    batch.delete_records(GROUP, [15, 18])
    batch.put_record(GROUP, place.record(13, 20, term=2))  # clips the record of 12 to 14
    batch.put_hard_state(GROUP, HardState(2, 0, 9))
    in_effect = founding_membership(("n1", "n2", "n3"))
    batch.put_membership(GROUP, Membership(5, in_effect.voters, in_effect.nodes, 4))
    await place.write(store, batch)
    (replica,) = store.load_replicas()
    assert (replica.changes, replica.last_index) == ((9, 12), 20)
    batch = store.batch()
    batch.delete_records(GROUP, [10, 12, 13])
    batch.put_record(GROUP, place.record(9, 9, term=3))  # takes the key of a membership entry
    batch.put_hard_state(GROUP, HardState(3, 0, 8))
    await place.write(store, batch)
    (replica,) = store.load_replicas()
    assert (replica.changes, replica.last_index) == ((), 9)


async def test_a_part_of_a_record_is_stored_like_any_other(place: Place) -> None:
    store = place.open()
    part = cut_record(GROUP, place.record(2, 9), 4, 6)
    await place.found(store, [place.record(2, 3), part])
    assert spans(store.read_records(GROUP, 2, 6, NO_LIMIT)) == [(2, 3, 1), (4, 6, 1)]
