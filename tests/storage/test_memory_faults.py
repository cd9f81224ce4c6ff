"""What can be done to a memory disk: crashes at a chosen write, an earlier moment put back, no space, failing reads.

Rules of this file: nothing waits for time to pass; the loop is let run until nothing is left to do.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno

import pytest

from multiraft.config import Limits
from multiraft.errors import StorageError
from multiraft.ports import Store
from multiraft.records import COMMANDS, encode_record
from multiraft.storage import MemoryDisk, open_memory

GROUP = 17


class Killed(BaseException):
    """Ends what a store was doing."""


def opened(disk: MemoryDisk) -> Store:
    return open_memory(disk, "n1", Limits(), asyncio.get_running_loop())


def put(store: Store, first: int, acknowledged: list[int]) -> None:
    batch = store.batch()
    batch.put_record(GROUP, encode_record(GROUP, first, 1, 1, COMMANDS, 0, [b""]))
    store.submit(batch, lambda error: acknowledged.append(first if error is None else -first))


async def settle() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


def firsts(disk: MemoryDisk) -> list[int]:
    return opened(disk).read_firsts(GROUP, 1)


@pytest.mark.parametrize("written", [False, True])
@pytest.mark.parametrize("count", [1, 2, 3])
async def test_a_crash_comes_at_the_chosen_write(count: int, written: bool) -> None:
    disk, acknowledged = MemoryDisk(), list[int]()
    store = opened(disk)
    disk.crash_after(count, disk.crash, written=written)
    for first in range(2, 7):
        put(store, first, acknowledged)
    await settle()
    survived = count if written else count - 1
    assert acknowledged == ([] if count == 1 else [2]), "the first was on its way before the others came"
    assert firsts(disk) == list(range(2, 2 + survived))
    assert disk.faults["crash_at_write"] == 1


@pytest.mark.parametrize("written", [False, True])
async def test_a_crash_at_a_write_keeps_as_many_of_the_rest_as_it_is_told(written: bool) -> None:
    disk, acknowledged = MemoryDisk(), list[int]()
    store = opened(disk)
    disk.crash_after(2, lambda: disk.crash(keep=2), written=written)
    for first in range(2, 9):
        put(store, first, acknowledged)
    await settle()
    assert firsts(disk) == ([2, 3, 4, 5] if written else [2, 3, 4])
    assert disk.faults["torn_tail"] == 1


async def test_a_crash_can_come_between_any_two_writes_of_an_opening_and_the_next_one_goes_well() -> None:
    crashes: list[int] = []
    for count in range(1, 20):
        for written in (False, True):
            disk = MemoryDisk()

            def kill(disk: MemoryDisk = disk) -> None:
                crashes.append(disk.writes)
                disk.crash()
                if disk.writes <= 4:
                    raise Killed

            disk.crash_after(count, kill, written=written)
            with contextlib.suppress(Killed, StorageError):
                await opened(disk).close()
            disk.mend()
            store = opened(disk)
            assert store.identity.node_id == "n1"
            await store.close()
    # Format and identity, identity file, incarnation, its file; then the closing record, and its file.
    assert crashes == [1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6]


async def test_a_killed_store_does_nothing_more() -> None:
    disk, acknowledged = MemoryDisk(), list[int]()
    store = opened(disk)
    disk.crash_after(1, disk.crash)
    put(store, 2, acknowledged)
    await settle()
    put(store, 3, acknowledged)
    await settle()
    await store.close()
    assert acknowledged == []
    assert firsts(disk) == []
    with pytest.raises(StorageError, match="closed"):
        store.read_firsts(GROUP, 1)


async def test_an_earlier_moment_comes_back_identity_included() -> None:
    disk, acknowledged = MemoryDisk(), list[int]()
    empty = disk.image()
    store = opened(disk)
    put(store, 2, acknowledged)
    await settle()
    earlier = disk.image()
    put(store, 3, acknowledged)
    await settle()
    with pytest.raises(StorageError, match="in use"):
        disk.roll_back(earlier)
    disk.crash()
    store_id = store.identity.store_id
    disk.roll_back(earlier)
    again = opened(disk)
    assert (again.identity.store_id, again.incarnation) == (store_id, store.incarnation + 1)
    assert again.read_firsts(GROUP, 1) == [2]
    disk.crash()
    disk.roll_back(empty)
    assert opened(disk).identity.store_id != store_id
    assert disk.faults["roll_back"] == 2


async def test_an_image_holds_what_a_crash_would_leave() -> None:
    disk, acknowledged = MemoryDisk(sync=False), list[int]()
    await opened(disk).close()
    store = opened(disk)
    disk._undo.clear()
    put(store, 2, acknowledged)
    await settle()
    image = disk.image()
    disk.crash()
    assert dict(image.values) == {key: disk.read(key) for key in disk.stored_keys()}


async def test_a_wiped_disk_is_a_new_one() -> None:
    disk = MemoryDisk()
    store = opened(disk)
    with pytest.raises(StorageError, match="in use"):
        disk.wipe()
    await store.close()
    disk.wipe()
    assert disk.stored_keys() == []
    assert disk.read_identity() is None
    again = opened(disk)
    assert again.identity.store_id != store.identity.store_id
    assert again.incarnation == 1


async def test_a_full_disk_refuses_every_write_until_there_is_space_and_loses_nothing() -> None:
    disk, acknowledged = MemoryDisk(), list[int]()
    store = opened(disk)
    put(store, 2, acknowledged)
    await settle()
    disk.full = True
    errors: list[Exception | None] = []
    batch = store.batch()
    store.submit(batch, errors.append)
    await settle()
    assert isinstance(errors[0], StorageError)
    assert isinstance(errors[0].__cause__, OSError)
    assert errors[0].__cause__.errno == errno.ENOSPC
    await store.close()
    with pytest.raises(StorageError, match="space"):
        opened(disk)
    with pytest.raises(StorageError, match="space"):
        opened(disk)
    disk.full = False
    assert firsts(disk) == [2]
    assert disk.faults["enospc"] == 3


async def test_the_identity_file_of_a_full_disk_stays_as_it_was() -> None:
    disk = MemoryDisk()
    backend = opened(disk)._backend  # type: ignore[attr-defined]
    before = disk.read_identity()
    disk.full = True
    with pytest.raises(StorageError, match="space"):
        backend.save_identity(b"new")
    assert disk.read_identity() == before


async def test_a_failing_read_is_an_error_once_and_never_an_answer() -> None:
    disk, acknowledged = MemoryDisk(), list[int]()
    store = opened(disk)
    put(store, 2, acknowledged)
    await settle()
    for read in (
        lambda: store.read_firsts(GROUP, 1),
        lambda: store.read_records(GROUP, 2, 2, 100),
        lambda: store.read_term(GROUP, 2),
        store.load_replicas,
    ):
        disk.fail_next_read(OSError(errno.EIO, "Input/output error"))
        with pytest.raises(StorageError, match="Input/output error") as caught:
            read()
        assert isinstance(caught.value.__cause__, OSError)
    assert store.read_firsts(GROUP, 1) == [2]
    assert disk.faults["eio_read"] == 4


async def test_mending_ends_all_that_was_to_go_wrong() -> None:
    disk, acknowledged = MemoryDisk(), list[int]()
    store = opened(disk)
    disk.fail_next_write(OSError(errno.EIO, "Input/output error"))
    disk.fail_next_read(OSError(errno.EIO, "Input/output error"))
    disk.crash_after(1, disk.crash)
    disk.full = True
    disk.delay_s = lambda: 1e9
    disk.hold_writes()
    put(store, 2, acknowledged)
    disk.mend()
    await settle()
    assert acknowledged == [2]
    assert store.read_firsts(GROUP, 1) == [2]
