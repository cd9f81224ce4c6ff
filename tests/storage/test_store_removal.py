"""Removing replicas, and what stays of them: the same for every store.

Rules of this file: through the port alone; damage is done while no store is open.
"""

from __future__ import annotations

import asyncio
import errno
from typing import TYPE_CHECKING

import pytest

from multiraft.errors import CorruptRecord, InvariantViolation, StorageError
from multiraft.ports import Store
from multiraft.storage import layout
from multiraft.types import (
    U64_MAX,
    HardState,
    LogStart,
    ReplicaDescriptor,
    Tombstone,
    unborn_membership,
)

if TYPE_CHECKING:
    from tests.storage.conftest import Place

GROUP = 17


async def remove(place: Place, store: Store, tombstone: Tombstone) -> None:
    batch = store.batch()
    batch.remove_replica(tombstone)
    await place.write(store, batch)


async def collect(place: Place, store: Store, group_id: int = GROUP, limit: int = 100) -> int:
    """Delete everything that is left over of the group, in batches of `limit` keys; return how many it took."""
    batches = 0
    while keys := store.read_leftovers(group_id, limit):
        assert len(keys) <= limit
        batch = store.batch()
        batch.delete_leftovers(keys)
        await place.write(store, batch)
        batches += 1
    return batches


async def create_empty(place: Place, store: Store, replica_id: int) -> None:
    batch = store.batch()
    batch.create_replica(ReplicaDescriptor(GROUP, replica_id, "kv"), unborn_membership(), HardState(), LogStart())
    await place.write(store, batch)


async def test_a_removed_replica_is_gone_and_its_tombstone_stays(place: Place) -> None:
    store = place.open()
    await place.found(store, [place.record(2, 9)])
    await place.found(store, [place.record(2, 3, group_id=GROUP + 1)], None, GROUP + 1)
    assert store.load_tombstones() == {}
    await remove(place, store, Tombstone(GROUP, 1, 8))
    for _ in range(2):
        assert store.load_tombstones() == {GROUP: Tombstone(GROUP, 1, 8)}
        assert [replica.descriptor.group_id for replica in store.load_replicas()] == [GROUP + 1]
        assert store.read_snapshot(GROUP) is None
        await store.close()
        store = place.open()


async def test_everything_but_the_log_goes_in_the_batch_that_brings_the_tombstone(place: Place) -> None:
    store = place.open()
    await place.found(store, [place.record(2, 9)])
    place.fail_next_write(store, OSError(errno.EIO, "Input/output error"))
    with pytest.raises(StorageError):
        await remove(place, store, Tombstone(GROUP, 1, 8))
    await store.close()
    store = place.open()
    assert store.load_tombstones() == {}
    assert len(store.load_replicas()) == 1
    await remove(place, store, Tombstone(GROUP, 1, 8))
    await store.close()
    left = [key for key in place.peek() if key >= layout.FIRST_GROUP_KEY]
    assert left == [layout.record_key(GROUP, 2)]


async def test_leftovers_hold_what_batches_on_their_way_still_brought(place: Place) -> None:
    store = place.open()
    await place.found(store, [place.record(2, 3)])
    done: list[asyncio.Future[Exception | None]] = []
    for first in (4, 5, None, 6):  # None: the removal
        batch = store.batch()
        if first is None:
            batch.remove_replica(Tombstone(GROUP, 1, 4))
        else:
            batch.put_record(GROUP, place.record(first, first))
        done.append(asyncio.get_running_loop().create_future())
        store.submit(batch, done[-1].set_result)
    await done[2]
    await done[3]
    # Even what a faulty engine wrote afterwards is found.
    assert store.read_leftovers(GROUP, 100) == [layout.record_key(GROUP, first) for first in (2, 4, 5, 6)]
    assert store.read_leftovers(GROUP, 3) == [layout.record_key(GROUP, first) for first in (2, 4, 5)]
    assert await collect(place, store, limit=3) == 2
    assert store.read_firsts(GROUP, 0) == []


async def test_leftovers_after_a_crash_are_no_damage_and_can_be_collected(place: Place) -> None:
    store = place.open()
    await place.found(store, [place.record(first, first) for first in range(2, 12)])
    await place.found(store, [place.record(2, 3, group_id=GROUP + 1)], None, GROUP + 1)
    await remove(place, store, Tombstone(GROUP, 1, 8))
    place.end_abruptly(store)
    store = place.open()
    assert [replica.descriptor.group_id for replica in store.load_replicas()] == [GROUP + 1]
    assert await collect(place, store, limit=4) == 3
    assert store.read_leftovers(GROUP, 1) == []
    assert store.read_firsts(GROUP + 1, 0) == [2]
    await store.close()
    assert [key for key in place.peek() if key >= layout.FIRST_GROUP_KEY and layout.split_key(key)[0] == GROUP] == []


@pytest.mark.parametrize("group_id", [1, U64_MAX])
async def test_the_first_and_the_last_group_of_all_can_be_removed(place: Place, group_id: int) -> None:
    store = place.open()
    await place.found(store, [place.record(2, 3, group_id=group_id)], None, group_id)
    await remove(place, store, Tombstone(group_id, 1, U64_MAX))
    assert await collect(place, store, group_id) == 1
    assert store.load_tombstones() == {group_id: Tombstone(group_id, 1, U64_MAX)}
    assert store.load_replicas() == []


async def test_damaged_leftovers_do_not_matter(place: Place) -> None:
    store = place.open()
    await place.found(store, [place.record(2, 9), place.record(10, 12)])
    await remove(place, store, Tombstone(GROUP, 1, 8))
    await store.close()
    place.poke(layout.record_key(GROUP, 2), b"?")
    store = place.open()
    assert store.load_replicas() == []
    assert await collect(place, store) == 1


async def test_a_group_without_descriptor_and_without_tombstone_is_damage(place: Place) -> None:
    store = place.open()
    await place.found(store, [place.record(2, 9)])
    await place.found(store, group_id=GROUP + 1)
    await remove(place, store, Tombstone(GROUP + 1, 1, 8))
    await store.close()
    place.poke(layout.group_key(GROUP, layout.KIND_DESCRIPTOR), None)
    with pytest.raises(CorruptRecord, match="descriptor of group 17: is missing"):
        place.open().load_replicas()


async def test_the_highest_id_ever_removed_outlives_later_replicas(place: Place) -> None:
    store = place.open()
    await place.found(store, [place.record(2, 9)])
    await remove(place, store, Tombstone(GROUP, 1, 8))
    await collect(place, store)
    await create_empty(place, store, 5)
    for _ in range(2):
        assert store.load_tombstones() == {GROUP: Tombstone(GROUP, 1, 8)}
        (replica,) = store.load_replicas()
        assert (replica.descriptor.replica_id, replica.last_index) == (5, 0)
        await store.close()
        store = place.open()
    await remove(place, store, Tombstone(GROUP, 5, 60))
    await store.close()
    store = place.open()
    assert store.load_tombstones() == {GROUP: Tombstone(GROUP, 5, 60)}
    assert store.load_replicas() == []


async def test_leftovers_can_go_in_the_batch_that_creates_the_next_replica(place: Place) -> None:
    store = place.open()
    await place.found(store, [place.record(2, 9), place.record(10, 12)])
    await remove(place, store, Tombstone(GROUP, 1, 8))
    batch = store.batch()
    batch.delete_leftovers(store.read_leftovers(GROUP, 100))
    batch.create_replica(ReplicaDescriptor(GROUP, 5, "kv"), unborn_membership(), HardState(), LogStart())
    await place.write(store, batch)
    (replica,) = store.load_replicas()
    assert (replica.descriptor.replica_id, replica.last_index) == (5, 0)
    assert store.read_firsts(GROUP, 0) == []


@pytest.mark.parametrize("replica_id", [4, 5])
async def test_a_replica_that_was_removed_may_not_live(place: Place, replica_id: int) -> None:
    store = place.open()
    await place.found(store)
    await remove(place, store, Tombstone(GROUP, 5, 8))
    await create_empty(place, store, replica_id)
    with pytest.raises(CorruptRecord, match=f"replica {replica_id} is here, though replica 5 was removed"):
        store.load_replicas()


async def test_what_a_living_replica_has_is_no_leftover(place: Place) -> None:
    store = place.open()
    await place.found(store, [place.record(2, 9)])
    with pytest.raises(InvariantViolation):
        store.read_leftovers(GROUP, 1)
    await remove(place, store, Tombstone(GROUP, 1, 8))
    await collect(place, store)
    await create_empty(place, store, 2)
    with pytest.raises(InvariantViolation):
        store.read_leftovers(GROUP, 1)


async def test_a_damaged_tombstone_is_refused_at_every_byte(place: Place) -> None:
    store = place.open()
    await place.found(store)
    await remove(place, store, Tombstone(GROUP, 1, 8))
    await store.close()
    key = layout.tombstone_key(GROUP)
    raw = place.peek()[key]
    for position in range(len(raw)):
        place.poke(key, raw[:position] + bytes([raw[position] ^ 4]) + raw[position + 1 :])
        store = place.open()
        with pytest.raises(CorruptRecord, match="is damaged: tombstone of group 17"):
            store.load_replicas()
        with pytest.raises(CorruptRecord, match="is damaged: tombstone of group 17"):
            store.load_tombstones()
        await store.close()
