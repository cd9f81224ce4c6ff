"""Keyspaces, what machines on disk have applied, and views of one moment: the same for every store.

Rules of this file: through the port alone; damage is done while no store is open.
"""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest

from multiraft.errors import CorruptRecord, StorageError
from multiraft.ports import Store, WriteBatch
from multiraft.storage import layout
from multiraft.types import (
    U64_MAX,
    Applied,
    Halt,
    HardState,
    LogStart,
    ReplicaDescriptor,
    Snapshot,
    Tombstone,
    founding_membership,
    unborn_membership,
)

if TYPE_CHECKING:
    from tests.storage.conftest import Place

GROUP = 17


async def write_unsynced(store: Store, batch: WriteBatch) -> None:
    done: asyncio.Future[Exception | None] = asyncio.get_running_loop().create_future()
    store.submit(batch, done.set_result, sync=False)
    error = await done
    if error is not None:
        raise error


async def with_data(store: Store, *pairs: tuple[bytes, bytes]) -> int:
    """Return a new keyspace that holds `pairs`."""
    batch = store.batch()
    space = store.new_space(batch)
    for key, value in pairs:
        batch.put_data(space, key, value)
    await write_unsynced(store, batch)
    return space


def everything(store: Store, space: int) -> list[tuple[bytes, bytes]]:
    return list(store.iterate_data(space))


async def test_data_come_back_in_order_and_after_opening_again(place: Place) -> None:
    store = place.open()
    pairs = [(b"", b"empty key"), (b"\0", b""), (b"a", b"1"), (b"a\0", b"2"), (b"b", b"x" * 5_000), (b"\xff\xff", b"3")]
    space = await with_data(store, *reversed(pairs))
    for _ in range(2):
        assert everything(store, space) == pairs
        assert list(store.iterate_data_keys(space, reverse=True)) == [key for key, _ in reversed(pairs)]
        assert list(store.iterate_data(space, b"a", b"b")) == pairs[2:4]
        assert list(store.iterate_data(space, b"a", b"b", reverse=True)) == [pairs[3], pairs[2]]
        assert list(store.iterate_data_keys(space, b"a\0")) == [b"a\0", b"b", b"\xff\xff"]
        assert [store.read_data(space, key) for key, _ in pairs] == [value for _, value in pairs]
        assert store.read_data(space, b"c") is None
        await store.close()
        store = place.open()


async def test_spaces_do_not_see_each_other_and_are_never_given_out_twice(place: Place) -> None:
    store = place.open()
    first = await with_data(store, (b"k", b"1"))
    second = await with_data(store, (b"k", b"2"))
    assert first < second
    assert (everything(store, first), everything(store, second)) == ([(b"k", b"1")], [(b"k", b"2")])
    assert store.spaces() == [first, second]
    await store.close()
    store = place.open()
    assert await with_data(store, (b"k", b"3")) > second


async def test_the_last_space_of_all_ends_where_the_data_end(place: Place) -> None:
    store = place.open()
    batch = store.batch()
    for space in (U64_MAX - 1, U64_MAX):
        batch.put_data(space, b"\xff" * 20, b"%d" % space)
    await place.write(store, batch)
    assert store.spaces() == [U64_MAX - 1, U64_MAX]
    assert everything(store, U64_MAX) == [(b"\xff" * 20, b"%d" % U64_MAX)]


async def test_a_space_is_deleted_in_steps(place: Place) -> None:
    store = place.open()
    doomed = await with_data(store, *[(b"%02d" % number, b"x") for number in range(25)])
    kept = await with_data(store, (b"k", b"v"))
    steps, keys = 0, [b""]
    while keys := store.read_space(doomed, 10, keys[-1]):
        batch = store.batch()
        batch.delete_leftovers(keys)
        await place.write(store, batch)
        steps += 1
    assert (steps, store.spaces(), everything(store, doomed)) == (3, [kept], [])


async def test_what_a_machine_has_applied_is_loaded_with_its_replica_and_no_data_are_read(place: Place) -> None:
    store = place.open()
    await place.found(store, [place.record(2, 9, 3)], HardState(3, 0, 4))
    space = await with_data(store, (b"k", b"v"))
    applied = Applied(7, 3, 1_700_000_000_123, 0xFFFFFFFF, space)
    batch = store.batch()
    batch.put_applied(GROUP, applied)
    batch.put_data(space, b"k", b"w")
    await write_unsynced(store, batch)
    assert store.read_applied(GROUP) == applied
    assert store.read_applied(GROUP + 1) is None
    await store.close()
    key = layout.data_key(space, b"k")
    raw = place.peek()[key]
    place.poke(key, b"?")
    (replica,) = place.open().load_replicas()
    assert (replica.applied, replica.halt) == (applied, None)
    assert raw != b"?"


async def test_a_halt_is_kept_until_it_is_taken_back(place: Place) -> None:
    store = place.open()
    await place.found(store)
    halt = Halt(9, "environment", "OSError: no space", "put", 1_700_000_000_000)
    for expected in (halt, None):
        batch = store.batch()
        batch.put_halt(GROUP, expected)
        await place.write(store, batch)
        await store.close()
        store = place.open()
        (replica,) = store.load_replicas()
        assert replica.halt == expected


async def test_removing_a_replica_takes_what_it_applied_and_why_it_halted(place: Place) -> None:
    store = place.open()
    await place.found(store)
    batch = store.batch()
    batch.put_applied(GROUP, Applied(1, 1, 0, 0, store.new_space(batch)))
    batch.put_halt(GROUP, Halt(2, "environment", "why"))
    await place.write(store, batch)
    batch = store.batch()
    batch.remove_replica(Tombstone(GROUP, 1, 8))
    await place.write(store, batch)
    assert (store.read_applied(GROUP), store.read_leftovers(GROUP, 10), store.load_replicas()) == (None, [], [])


@pytest.mark.parametrize(
    ("applied", "expected"),
    [
        (Applied(3, 3, 0, 0, 1), r"3 is not within its log \(4 to 9\)"),
        (Applied(10, 3, 0, 0, 1), r"10 is not within its log \(4 to 9\)"),
        (Applied(5, 3, 0, 0, 1), "5 is below the snapshot of 6"),
        (Applied(4, 2, 0, 0, 1), "is of term 2, but the log start is of term 3"),
        (Applied(8, 2, 0, 0, 1), "8 is of term 2, but the log has term 3 there"),
        (Applied(8, 3, 0, 0, 2), "keyspace 2, which this store never gave out"),
    ],
)
async def test_an_applied_index_that_does_not_fit_is_refused(place: Place, applied: Applied, expected: str) -> None:
    store = place.open()
    await place.found(store, [place.record(5, 9, 3, 3)], HardState(3, 0, 6))
    batch = store.batch()
    assert store.new_space(batch) == 1
    batch.put_snapshot(GROUP, Snapshot(6, 3, founding_membership(("n1", "n2", "n3"))), LogStart(4, 3))
    batch.put_applied(GROUP, applied)
    await place.write(store, batch)
    with pytest.raises(CorruptRecord, match=expected):
        store.load_replicas()
    batch = store.batch()
    batch.put_applied(GROUP, Applied(9, 3, 0, 0, 1))  # above the stored commit, which is written down later
    await place.write(store, batch)
    assert [replica.applied for replica in store.load_replicas()] == [Applied(9, 3, 0, 0, 1)]


async def test_an_empty_replica_may_have_applied_nothing(place: Place) -> None:
    store = place.open()
    batch = store.batch()
    batch.create_replica(ReplicaDescriptor(GROUP, 9, "kv"), unborn_membership(), HardState(), LogStart())
    batch.put_applied(GROUP, Applied(0, 0, 0, 0, store.new_space(batch)))
    await place.write(store, batch)
    assert [replica.applied for replica in store.load_replicas()] == [Applied(0, 0, 0, 0, 1)]


@pytest.mark.parametrize("spoil", [lambda raw: raw[:-1], lambda raw: raw[:-1] + bytes([raw[-1] ^ 1]), lambda raw: b""])
async def test_damaged_data_are_refused_when_they_are_read(place: Place, spoil: Callable[[bytes], bytes]) -> None:
    store = place.open()
    space = await with_data(store, (b"a", b"1"), (b"b", b"2"))
    await store.close()
    key = layout.data_key(space, b"b")
    place.poke(key, spoil(place.peek()[key]))
    store = place.open()
    assert store.read_data(space, b"a") == b"1"
    with pytest.raises(CorruptRecord, match="data under key"):
        store.read_data(space, b"b")
    found = store.iterate_data(space)
    assert next(found) == (b"a", b"1")
    with pytest.raises(CorruptRecord, match="data under key"):
        next(found)


async def test_a_value_under_another_key_of_the_space_is_refused(place: Place) -> None:
    store = place.open()
    space = await with_data(store, (b"a", b"1"))
    await store.close()
    place.poke(layout.data_key(space, b"b"), place.peek()[layout.data_key(space, b"a")])
    with pytest.raises(CorruptRecord, match="checksum"):
        place.open().read_data(space, b"b")


# --------------------------------------------------------------------------------------------------------- views


async def test_a_view_shows_one_moment(place: Place) -> None:
    store = place.open()
    await place.found(store, [place.record(2, 9)], HardState(1, 0, 9))
    space = await with_data(store, (b"a", b"1"), (b"b", b"2"))
    batch = store.batch()
    batch.put_applied(GROUP, Applied(5, 1, 0, 0, space))
    await place.write(store, batch)
    view = store.view()
    half = view.iterate_data(space)
    assert next(half) == (b"a", b"1")
    batch = store.batch()
    batch.put_data(space, b"a", b"new")
    batch.delete_data(space, b"b")
    batch.put_data(space, b"c", b"new")
    batch.put_applied(GROUP, Applied(6, 1, 0, 0, space))
    await write_unsynced(store, batch)
    assert everything(store, space) == [(b"a", b"new"), (b"c", b"new")]
    assert list(view.iterate_data(space)) == [(b"a", b"1"), (b"b", b"2")]
    assert list(view.iterate_data_keys(space, reverse=True)) == [b"b", b"a"]
    assert list(half) == [(b"b", b"2")]
    assert (view.read_data(space, b"a"), view.read_data(space, b"c")) == (b"1", None)
    assert (view.read_applied(GROUP), store.read_applied(GROUP)) == (
        Applied(5, 1, 0, 0, space),
        Applied(6, 1, 0, 0, space),
    )
    view.close()
    view.close()
    with pytest.raises(StorageError, match="closed"):
        view.read_data(space, b"a")


async def test_closing_the_store_ends_its_views_and_iterators(place: Place) -> None:
    store = place.open()
    space = await with_data(store, (b"a", b"1"), (b"b", b"2"))
    view = store.view()
    half, half_of_view = store.iterate_data(space), view.iterate_data(space)
    assert next(half) == next(half_of_view) == (b"a", b"1")
    await store.close()
    for read in (lambda: next(half_of_view), lambda: view.read_data(space, b"a"), store.view):
        with pytest.raises(StorageError, match="closed"):
            read()
    view.close()
    assert everything(place.open(), space) == [(b"a", b"1"), (b"b", b"2")]


# ------------------------------------------------------------------------------------------------------ unsynced


async def test_unsynced_and_synced_batches_complete_in_the_order_submitted(place: Place) -> None:
    store, seen = place.open(), list[int]()
    await place.found(store)
    space = await with_data(store)
    finished = asyncio.Event()
    for number in range(60):
        batch = store.batch()
        batch.put_data(space, b"k", b"%d" % number)

        def done(error: Exception | None, number: int = number) -> None:
            assert error is None
            seen.append(number)
            if number == 59:
                finished.set()

        store.submit(batch, done, sync=number % 7 == 0)
    await finished.wait()
    assert seen == list(range(60))
    assert store.read_data(space, b"k") == b"59"


async def test_only_synced_batches_are_synced(place: Place) -> None:
    store = place.open()
    await place.found(store)
    space = await with_data(store)
    syncs = store.syncs
    for number in range(5):
        batch = store.batch()
        batch.put_data(space, b"k", b"%d" % number)
        await write_unsynced(store, batch)
    assert store.syncs == syncs
    await place.write(store, store.batch())
    assert store.syncs == syncs + 1


async def test_an_unsynced_write_that_fails_is_final_as_any_other(place: Place) -> None:
    store = place.open()
    space = await with_data(store, (b"k", b"1"))
    place.fail_next_write(store, OSError(errno.ENOSPC, "No space left on device"))
    batch = store.batch()
    batch.put_data(space, b"k", b"2")
    with pytest.raises(StorageError) as raised:
        await write_unsynced(store, batch)
    assert isinstance(raised.value.__cause__, OSError)
    assert raised.value.__cause__.errno == errno.ENOSPC
    with pytest.raises(StorageError):
        await place.write(store, store.batch())
    assert store.read_data(space, b"k") == b"1"


async def test_a_damaged_counter_of_keyspaces_is_refused_when_the_store_is_opened(place: Place) -> None:
    store = place.open()
    await with_data(store, (b"k", b"v"))
    await store.close()
    place.poke(layout.NEXT_SPACE_KEY, b"?")
    with pytest.raises(CorruptRecord, match="is damaged: next keyspace: only 1 bytes"):
        place.open()
