"""Writing, completing, failing and closing: the same for every store.

Rules of this file: through the port alone; what is on the disk is read back by opening it again.
"""

from __future__ import annotations

import asyncio
import errno
import threading
from typing import TYPE_CHECKING, Any

import pytest

from multiraft.errors import StorageError
from multiraft.ports import Store, WriteBatch
from multiraft.types import FOUNDING_INDEX, HardState

if TYPE_CHECKING:
    from tests.storage.conftest import Place

GROUP = 17


def one_record(place: Place, store: Store, first: int) -> WriteBatch:
    batch = store.batch()
    batch.put_record(GROUP, place.record(first, first))
    return batch


class Completions:
    """Collects completions in the order of delivery; `all(n)` waits for the n-th."""

    def __init__(self) -> None:
        self.seen: list[tuple[int, Exception | None]] = []
        self.threads: set[threading.Thread] = set()
        self._arrived = asyncio.Event()

    def submit(self, store: Store, batch: WriteBatch, number: int) -> None:
        def done(error: Exception | None) -> None:
            self.seen.append((number, error))
            self.threads.add(threading.current_thread())
            self._arrived.set()

        store.submit(batch, done)

    async def all(self, count: int) -> None:
        while len(self.seen) < count:
            self._arrived.clear()
            await self._arrived.wait()


async def test_completions_come_later_on_the_loop_in_order_of_submitting(place: Place) -> None:
    store, completions = place.open(), Completions()
    await place.found(store)
    for number in range(100):
        completions.submit(store, one_record(place, store, 2 + number), number)
        assert completions.seen == []
    await completions.all(100)
    assert completions.seen == [(number, None) for number in range(100)]
    assert completions.threads == {threading.main_thread()}


async def test_a_completed_write_is_read_at_once_and_after_opening_again(place: Place) -> None:
    store = place.open()
    await place.found(store, [place.record(2, 4)], HardState(3, 2, 4))
    assert [record.raw for record in store.read_records(GROUP, 2, 4, 1)] == [place.record(2, 4).raw]
    place.end_abruptly(store)
    store = place.open()
    (replica,) = store.load_replicas()
    assert (replica.hard_state, replica.last_index) == (HardState(3, 2, 4), 4)
    assert [record.raw for record in store.read_records(GROUP, 2, 4, 1)] == [place.record(2, 4).raw]


async def test_create_replica_comes_back_field_by_field(place: Place) -> None:
    store = place.open()
    await place.found(store)
    (replica,) = store.load_replicas()
    assert (replica.descriptor.group_id, replica.descriptor.replica_id, replica.descriptor.service) == (GROUP, 1, "kv")
    assert replica.membership.voters == (1, 2, 3)
    assert dict(replica.membership.nodes) == {1: "n1", 2: "n2", 3: "n3"}
    assert (replica.log_start.index, replica.log_start.term) == (FOUNDING_INDEX, 1)
    assert (replica.last_index, replica.last_term) == (FOUNDING_INDEX, 1)


async def test_within_a_batch_the_last_write_of_a_key_counts(place: Place) -> None:
    store = place.open()
    await place.found(store, [place.record(2, 3), place.record(4, 5)])
    batch = store.batch()
    batch.delete_records(GROUP, [2, 4])
    batch.put_record(GROUP, place.record(2, 2, term=2))
    batch.put_hard_state(GROUP, HardState(2, 0, 1))
    batch.put_hard_state(GROUP, HardState(3, 1, 2))
    await place.write(store, batch)
    (replica,) = store.load_replicas()
    assert (replica.last_index, replica.last_term, replica.hard_state) == (2, 2, HardState(3, 1, 2))
    assert store.read_firsts(GROUP, 1) == [2]


async def test_size_bytes_follows_what_is_put_in(place: Place) -> None:
    batch = place.open().batch()
    assert batch.size_bytes == 0
    record = place.record(2, 2, size=1_000)
    batch.put_record(GROUP, record)
    assert len(record.raw) < batch.size_bytes < len(record.raw) + 100
    before = batch.size_bytes
    batch.delete_records(GROUP, [9])
    batch.put_hard_state(GROUP, HardState(1, 0, 1))
    assert before < batch.size_bytes < before + 200


async def test_syncs_counts_completed_writes(place: Place) -> None:
    store = place.open()
    before = store.syncs
    await place.found(store)
    assert store.syncs == before + 1
    await place.write(store, one_record(place, store, 2))
    assert store.syncs == before + 2


# ------------------------------------------------------------------------------------------------------- failing


async def test_a_failed_write_is_final_and_leaves_nothing_of_its_batch(place: Place) -> None:
    store, completions = place.open(), Completions()
    await place.found(store, [place.record(2, 2)])
    place.fail_next_write(store, OSError(errno.ENOSPC, "No space left on device"))
    doomed = one_record(place, store, 3)
    doomed.put_hard_state(GROUP, HardState(9, 1, 2))
    doomed.delete_records(GROUP, [2])
    completions.submit(store, doomed, 1)
    completions.submit(store, one_record(place, store, 3), 2)
    await completions.all(2)
    completions.submit(store, one_record(place, store, 3), 3)
    assert len(completions.seen) == 2
    await completions.all(3)
    assert [number for number, _ in completions.seen] == [1, 2, 3]
    for _, error in completions.seen:
        assert isinstance(error, StorageError)
        assert isinstance(error.__cause__, OSError)
        assert error.__cause__.errno == errno.ENOSPC
    await store.close()
    store = place.open()
    (replica,) = store.load_replicas()
    assert (replica.last_index, replica.hard_state.term) == (2, 1)
    assert not store.closed_orderly


async def test_after_a_failed_write_the_cluster_cannot_be_bound(place: Place) -> None:
    store = place.open()
    place.fail_next_write(store, OSError(errno.EIO, "Input/output error"))
    with pytest.raises(StorageError):
        await place.write(store, one_record(place, store, 2))
    with pytest.raises(StorageError):
        store.bind_cluster(b"c" * 16, {"n1": store.identity.store_id})
    assert not store.identity.formed


async def test_a_completion_that_raises_does_not_hold_up_the_next(place: Place) -> None:
    store, completions = place.open(), Completions()
    reported: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: reported.append(context))

    def broken(_: Exception | None) -> None:
        raise ValueError("broken completion")

    store.submit(one_record(place, store, 2), broken)
    completions.submit(store, one_record(place, store, 3), 1)
    await completions.all(1)
    assert [str(context["exception"]) for context in reported] == ["broken completion"]


# ------------------------------------------------------------------------------------------------------- closing


async def test_close_finishes_what_was_submitted_and_nothing_completes_after_it(place: Place) -> None:
    store, completions = place.open(), Completions()
    for number in range(20):
        completions.submit(store, one_record(place, store, 2 + number), number)
    unsent = one_record(place, store, 99)
    await store.close()
    assert completions.seen == [(number, None) for number in range(20)]
    await store.close()
    with pytest.raises(StorageError, match="closed"):
        store.submit(unsent, lambda _: None)
    with pytest.raises(StorageError, match="closed"):
        store.batch()
    with pytest.raises(StorageError, match="closed"):
        store.read_firsts(GROUP, 1)
    assert len(completions.seen) == 20
    assert place.open().read_firsts(GROUP, 1) == list(range(2, 22))


async def test_nothing_completes_after_an_abrupt_end(place: Place) -> None:
    store, completions = place.open(), Completions()
    for number in range(20):
        completions.submit(store, one_record(place, store, 2 + number), number)
    place.end_abruptly(store)
    for _ in range(20):
        await asyncio.sleep(0)
    assert completions.seen == []


async def test_two_closes_at_once_and_a_cancelled_one_end_in_one_orderly_close(place: Place) -> None:
    store = place.open()
    impatient = asyncio.ensure_future(store.close())
    patient = asyncio.ensure_future(store.close())
    await asyncio.sleep(0)
    impatient.cancel()
    await patient
    assert impatient.cancelled()
    assert place.open().closed_orderly


async def test_closed_orderly_tells_how_the_previous_run_ended(place: Place) -> None:
    store = place.open()
    assert (store.incarnation, store.closed_orderly) == (1, False)
    await store.close()
    store = place.open()
    assert (store.incarnation, store.closed_orderly) == (2, True)
    place.end_abruptly(store)
    store = place.open()
    assert (store.incarnation, store.closed_orderly) == (3, False)
    await store.close()
    assert place.open().closed_orderly
