"""The memory disk itself: what a crash leaves, and every way in which a disk can be made to misbehave.

Rules of this file: nothing waits for time to pass; the loop is let run until nothing is left to do.
"""

from __future__ import annotations

import asyncio
import errno
import random
from collections.abc import AsyncIterator

import pytest

from multiraft.config import Limits
from multiraft.errors import StorageError
from multiraft.ports import Store
from multiraft.records import COMMANDS, encode_record
from multiraft.storage import MemoryDisk, open_memory

GROUP = 17


@pytest.fixture
async def disk() -> AsyncIterator[MemoryDisk]:
    disk = MemoryDisk()
    yield disk
    assert_consistent(disk)


def assert_consistent(disk: MemoryDisk) -> None:
    keys = disk.stored_keys()
    assert keys == sorted(set(keys))
    assert all(disk.read(key) is not None for key in keys)


def opened(disk: MemoryDisk) -> Store:
    return open_memory(disk, "n1", Limits(), asyncio.get_running_loop())


def put(store: Store, first: int, acknowledged: list[int], text: bytes = b"") -> None:
    """Submit the record at `first`; list it once it is acknowledged, as -first where that is with an error."""
    batch = store.batch()
    batch.put_record(GROUP, encode_record(GROUP, first, 1, 1, COMMANDS, 0, [text]))
    store.submit(batch, lambda error: acknowledged.append(first if error is None else -first))


async def settle() -> None:
    """Let the loop run until everything that can happen without time passing has happened."""
    for _ in range(20):
        await asyncio.sleep(0)


async def test_a_crash_drops_what_was_not_written_and_keeps_what_was(disk: MemoryDisk) -> None:
    store, acknowledged = opened(disk), list[int]()
    put(store, 2, acknowledged)
    await settle()
    put(store, 3, acknowledged)
    assert disk.unsynced == 1
    disk.crash()
    await settle()
    assert acknowledged == [2]
    assert opened(disk).read_firsts(GROUP, 1) == [2]


async def test_a_crash_may_come_after_some_of_the_waiting_batches(disk: MemoryDisk) -> None:
    store, acknowledged = opened(disk), list[int]()
    for first in range(2, 7):
        put(store, first, acknowledged)
    disk.crash(keep=3)
    await settle()
    assert acknowledged == []
    assert opened(disk).read_firsts(GROUP, 1) == [2, 3, 4]


async def test_a_disk_that_lies_about_syncing_loses_acknowledged_writes() -> None:
    disk = MemoryDisk(sync=False)
    store, acknowledged = opened(disk), list[int]()
    await store.close()
    store = opened(disk)
    before = disk.unsynced
    put(store, 2, acknowledged)
    put(store, 3, acknowledged)
    await settle()
    assert acknowledged == [2, 3]
    assert store.read_firsts(GROUP, 1) == [2, 3]
    put(store, 4, acknowledged)
    disk.crash(keep=before + 1)
    assert opened(disk).read_firsts(GROUP, 1) == [2]
    assert_consistent(disk)


async def test_what_a_lying_disk_loses_is_taken_back_exactly() -> None:
    disk = MemoryDisk(sync=False)
    store, acknowledged = opened(disk), list[int]()
    put(store, 2, acknowledged, b"old")
    put(store, 3, acknowledged, b"kept")
    await store.close()
    values = {key: disk.read(key) for key in disk.stored_keys()}
    store = opened(disk)
    put(store, 2, acknowledged, b"new")
    batch = store.batch()
    batch.put_record(GROUP, encode_record(GROUP, 3, 1, 1, COMMANDS, 0, [b"lost"]))
    batch.delete_records(GROUP, [3, 4])
    store.submit(batch, lambda _: None)
    put(store, 5, acknowledged)
    await settle()
    assert store.read_firsts(GROUP, 1) == [2, 5]
    disk.crash()
    assert {key: disk.read(key) for key in disk.stored_keys()} == values


@pytest.mark.parametrize("seed", range(20))
async def test_every_acknowledged_write_survives_any_crash(disk: MemoryDisk, seed: int) -> None:
    assert await lost_after_crashes(disk, random.Random(seed)) == 0


async def test_the_check_above_finds_a_disk_that_lies() -> None:
    assert any([await lost_after_crashes(MemoryDisk(sync=False), random.Random(seed)) for seed in range(20)])


async def lost_after_crashes(disk: MemoryDisk, rng: random.Random) -> int:
    """Write, crash and open again at random; return how many acknowledged records were ever missing."""
    acknowledged: list[int] = []
    first, lost = 2, 0
    for _ in range(10):
        try:
            store = opened(disk)
        except StorageError:
            return lost + 1
        for _ in range(rng.randint(0, 10)):
            put(store, first, acknowledged)
            first += 1
            for _ in range(rng.randint(0, 2)):
                await asyncio.sleep(0)
        disk.crash(keep=rng.randint(0, 3))
        held = [int.from_bytes(key[9:], "big") for key in disk.stored_keys() if len(key) == 17]
        lost += len(set(acknowledged) - set(held))
    return lost


async def test_a_dead_handle_is_silent(disk: MemoryDisk) -> None:
    store, acknowledged = opened(disk), list[int]()
    disk.crash()
    put(store, 2, acknowledged)
    await settle()
    assert acknowledged == []
    with pytest.raises(StorageError, match="closed"):
        store.read_firsts(GROUP, 1)
    await store.close()
    again = opened(disk)
    assert (again.read_firsts(GROUP, 1), again.closed_orderly) == ([], False)
    await store.close()
    assert disk.in_use


async def test_a_crash_ends_a_close_that_was_waiting(disk: MemoryDisk) -> None:
    store, acknowledged = opened(disk), list[int]()
    disk.hold_writes()
    put(store, 2, acknowledged)
    closing = asyncio.ensure_future(store.close())
    await settle()
    assert not closing.done()
    disk.crash()
    await closing
    assert acknowledged == []
    assert not opened(disk).closed_orderly


async def test_held_writes_wait_and_a_crash_loses_them(disk: MemoryDisk) -> None:
    store, acknowledged = opened(disk), list[int]()
    disk.hold_writes()
    put(store, 2, acknowledged)
    await settle()
    assert (acknowledged, store.read_firsts(GROUP, 1), disk.unsynced) == ([], [], 1)
    disk.release()
    await settle()
    assert (acknowledged, store.read_firsts(GROUP, 1), disk.unsynced) == ([2], [2], 0)
    disk.hold_writes()
    put(store, 3, acknowledged)
    await settle()
    disk.crash()
    assert opened(disk).read_firsts(GROUP, 1) == [2]


async def test_held_completions_are_on_disk_but_told_to_nobody(disk: MemoryDisk) -> None:
    store, acknowledged = opened(disk), list[int]()
    disk.hold_completions()
    put(store, 2, acknowledged)
    await settle()
    put(store, 3, acknowledged)
    await settle()
    assert (acknowledged, store.read_firsts(GROUP, 1), disk.unsynced) == ([], [2, 3], 0)
    disk.release()
    await settle()
    assert acknowledged == [2, 3]
    disk.hold_completions()
    put(store, 4, acknowledged)
    await settle()
    disk.crash()
    await settle()
    assert acknowledged == [2, 3]
    assert opened(disk).read_firsts(GROUP, 1) == [2, 3, 4]


async def test_a_failed_write_may_have_reached_the_disk_all_the_same(disk: MemoryDisk) -> None:
    store, acknowledged = opened(disk), list[int]()
    disk.fail_next_write(OSError(errno.EIO, "Input/output error"), written=True)
    put(store, 2, acknowledged)
    put(store, 3, acknowledged)
    await settle()
    assert acknowledged == [-2, -3]
    put(store, 4, acknowledged)
    disk.crash(keep=5)
    assert opened(disk).read_firsts(GROUP, 1) == [2]


async def test_a_failure_is_over_with_the_crash(disk: MemoryDisk) -> None:
    store, acknowledged = opened(disk), list[int]()
    disk.fail_next_write(OSError(errno.EIO, "Input/output error"))
    disk.crash()
    store = opened(disk)
    put(store, 2, acknowledged)
    await settle()
    assert acknowledged == [2]
    await store.close()


async def test_an_opening_that_cannot_write_is_refused_and_lets_go(disk: MemoryDisk) -> None:
    disk.fail_next_write(OSError(errno.ENOSPC, "No space left on device"))
    with pytest.raises(StorageError, match="No space left on device") as caught:
        opened(disk)
    assert isinstance(caught.value.__cause__, OSError)
    assert not disk.in_use
    assert opened(disk).incarnation == 1


async def test_a_slow_disk_takes_the_batches_that_were_waiting_together(disk: MemoryDisk) -> None:
    store, acknowledged = opened(disk), list[int]()
    asked: list[int] = []

    def delay_s() -> float:
        asked.append(disk.unsynced)
        return 0.001

    disk.delay_s = delay_s
    finished = asyncio.Event()
    put(store, 2, acknowledged)
    put(store, 3, acknowledged)
    store.submit(store.batch(), lambda _: finished.set())
    await settle()
    assert acknowledged == []
    await finished.wait()
    assert acknowledged == [2, 3]
    assert asked == [1, 2], "the first batch goes alone, and the two behind it together"


async def test_store_ids_can_be_handed_in(disk: MemoryDisk) -> None:
    seeded = MemoryDisk(new_store_id=lambda: b"s" * 16)
    assert opened(seeded).identity.store_id == b"s" * 16
    assert opened(disk).identity.store_id != opened(MemoryDisk()).identity.store_id


def put_data(store: Store, number: int, sync: bool, acknowledged: list[int]) -> None:
    batch = store.batch()
    batch.put_data(1, b"%d" % number, b"x")
    store.submit(batch, lambda _: acknowledged.append(number), sync)


@pytest.mark.parametrize("keep", range(6))
async def test_a_crash_takes_unsynced_batches_from_the_end_and_never_one_before_a_synced_one(
    disk: MemoryDisk, keep: int
) -> None:
    store, acknowledged = opened(disk), list[int]()
    begun = disk.writes
    for number, sync in ((1, False), (2, True), (3, False), (4, False)):
        put_data(store, number, sync, acknowledged)
    await settle()
    assert (acknowledged, disk.writes - begun, disk.unsynced) == ([1, 2, 3, 4], 4, 2)
    put_data(store, 5, False, acknowledged)
    assert disk.unsynced == 3
    disk.crash(keep)
    store = opened(disk)
    expected = [b"1", b"2", b"3", b"4", b"5"][: 2 + keep]
    assert list(store.iterate_data_keys(1)) == expected
    # What a crash has left is durable: the next one takes nothing more of it.
    disk.crash()
    assert list(opened(disk).iterate_data_keys(1)) == expected


async def test_an_unsynced_batch_is_a_write_between_which_a_crash_can_come(disk: MemoryDisk) -> None:
    store, acknowledged = opened(disk), list[int]()
    disk.crash_after(2, lambda: disk.crash(keep=9), written=True)
    put_data(store, 1, False, acknowledged)
    put_data(store, 2, False, acknowledged)
    put_data(store, 3, True, acknowledged)
    await settle()
    assert acknowledged == [1]
    assert list(opened(disk).iterate_data_keys(1)) == [b"1", b"2", b"3"]


async def test_an_image_is_without_what_is_not_synced(disk: MemoryDisk) -> None:
    store, acknowledged = opened(disk), list[int]()
    put_data(store, 1, True, acknowledged)
    put_data(store, 2, False, acknowledged)
    await settle()
    image = disk.image()
    await store.close()
    disk.roll_back(image)
    assert list(opened(disk).iterate_data_keys(1)) == [b"1"]
