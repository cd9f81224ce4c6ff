"""The writer thread of the databases: what is merged, what is synced, and what becomes of everything thrown in it.

Rules of this file: a test that needs the writer to be busy blocks it, and never hopes that it is.
"""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, cast

import pytest

from multiraft.config import Limits
from multiraft.errors import StorageError
from multiraft.ports import Store
from multiraft.storage import writing

if TYPE_CHECKING:
    from tests.storage.conftest import DirectoryPlace

GROUP: Final = 17
ROOT: Final = Path(__file__).resolve().parent.parent.parent
SMALL: Final = Limits(leveldb_write_buffer_bytes=64 * 1024)
NO_LIMIT: Final = 1 << 40


class BusyWriter:
    """Keeps the writer thread inside its next write until `go_on`; collects completions in order."""

    def __init__(self, store: Store, place: DirectoryPlace) -> None:
        self.store = store
        self.place = place
        self.seen: list[int] = []
        self.batches: list[int] = []
        self.finished = asyncio.Event()
        self._go_on = threading.Event()
        self._entered = threading.Event()
        backend = cast(Any, store)._backend
        write = backend._write_synced

        def blocked(batch: Any) -> None:
            self._entered.set()
            self._go_on.wait(60)
            self.batches.append(backend._size(batch))
            write(batch)

        backend._write_synced = blocked

    def submit(self, first: int, last: bool = False, size: int = 4, sync: bool = True) -> None:
        batch = self.store.batch()
        batch.put_record(GROUP, self.place.record(first, first, size=size))

        def done(error: Exception | None) -> None:
            self.seen.append(first if error is None else -first)
            if last:
                self.finished.set()

        cast(Any, self.store)._backend.submit(cast(Any, batch).raw, done, sync)

    def wait_until_busy(self) -> None:
        assert self._entered.wait(60)

    def go_on(self) -> None:
        self._go_on.set()


async def test_batches_that_wait_together_share_one_sync_and_one_wake_up(
    directory_place: DirectoryPlace, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = directory_place.open()
    writer, before = BusyWriter(store, directory_place), store.syncs
    loop = asyncio.get_running_loop()
    wake_ups: list[object] = []
    wake = loop.call_soon_threadsafe

    def counted(callback: Any, *arguments: Any, context: Any = None) -> asyncio.Handle:
        wake_ups.append(callback)
        return wake(callback, *arguments)

    monkeypatch.setattr(loop, "call_soon_threadsafe", counted)
    writer.submit(2)
    writer.wait_until_busy()
    for first in range(3, 13):
        writer.submit(first, last=first == 12)
    writer.go_on()
    await writer.finished.wait()
    assert writer.seen == list(range(2, 13))
    assert store.syncs == before + 2
    assert len(wake_ups) <= 2
    assert store.read_firsts(GROUP, 0) == list(range(2, 13))


async def test_merging_stops_at_its_bound(directory_place: DirectoryPlace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writing, "MERGE_BYTES", 3_000)
    store = directory_place.open()
    writer = BusyWriter(store, directory_place)
    writer.submit(2)
    writer.wait_until_busy()
    for first in range(3, 9):
        writer.submit(first, last=first == 8, size=1_000)
    writer.go_on()
    await writer.finished.wait()
    assert len(writer.batches) == 3
    assert max(writer.batches) < 5_000


async def test_completions_that_the_loop_has_not_yet_taken_need_no_second_wake_up(
    directory_place: DirectoryPlace, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = directory_place.open()
    backend, loop = cast(Any, store)._backend, asyncio.get_running_loop()
    write, wake = backend._write_synced, loop.call_soon_threadsafe
    entered, finished = threading.Semaphore(0), asyncio.Event()
    wake_ups: list[object] = []
    seen: list[Exception | None] = []

    def announced(batch: Any) -> None:
        entered.release()
        write(batch)

    def counted(callback: Any, *arguments: Any, context: Any = None) -> asyncio.Handle:
        wake_ups.append(callback)
        return wake(callback, *arguments)

    def done(error: Exception | None) -> None:
        seen.append(error)
        if len(seen) == 6:
            finished.set()

    backend._write_synced = announced
    monkeypatch.setattr(loop, "call_soon_threadsafe", counted)
    for number in range(6):
        batch = store.batch()
        batch.put_record(GROUP, directory_place.record(2 + number, 2 + number))
        store.submit(batch, done)
        # The loop is kept here, so nothing is delivered; the writer has finished the write before this one.
        assert entered.acquire(timeout=60)
    assert seen == []
    assert len(wake_ups) == 1
    await finished.wait()
    assert seen == [None] * 6


async def test_reads_go_on_while_the_writer_is_busy(directory_place: DirectoryPlace) -> None:
    store = directory_place.open()
    await directory_place.found(store, [directory_place.record(2, 3)])
    writer = BusyWriter(store, directory_place)
    writer.submit(4, last=True)
    writer.wait_until_busy()
    assert store.read_firsts(GROUP, 0) == [2]
    assert len(store.load_replicas()) == 1
    writer.go_on()
    await writer.finished.wait()


async def test_whatever_is_thrown_in_the_writer_thread_is_a_failed_write(directory_place: DirectoryPlace) -> None:
    store = directory_place.open()

    def throw(_: object) -> None:
        raise SystemExit(3)

    cast(Any, store)._backend._write_synced = throw
    for _ in range(2):
        batch = store.batch()
        batch.put_record(GROUP, directory_place.record(2, 2))
        with pytest.raises(StorageError) as caught:
            await directory_place.write(store, batch)
        assert isinstance(caught.value.__cause__, SystemExit)


@pytest.mark.parametrize(("syncs", "expected"), [((False, False), 0), ((False, True), 1), ((True, False), 1)])
async def test_what_is_merged_is_synced_when_any_of_it_must_be(
    directory_place: DirectoryPlace, syncs: tuple[bool, ...], expected: int
) -> None:
    store = directory_place.open()
    backend = cast(Any, store)._backend
    writer, unsynced = BusyWriter(store, directory_place), []
    write = backend._write_unsynced

    def noted(batch: Any) -> None:
        unsynced.append(batch)
        write(batch)

    backend._write_unsynced = noted
    writer.submit(2)
    writer.wait_until_busy()
    for first, sync in enumerate(syncs, 3):
        writer.submit(first, last=first == 4, sync=sync)
    writer.go_on()
    await writer.finished.wait()
    assert (len(writer.batches), len(unsynced)) == (1 + expected, 1 - expected)
    assert writer.seen == [2, 3, 4]
    assert store.read_firsts(GROUP, 0) == [2, 3, 4]


async def test_who_waits_is_told_before_what_nobody_waits_for_and_its_failure_is_that_of_what_follows(
    directory_place: DirectoryPlace,
) -> None:
    store = directory_place.open()
    backend = cast(Any, store)._backend
    told: asyncio.Queue[Exception | None] = asyncio.Queue()
    go_on = threading.Event()

    def after() -> None:
        assert go_on.wait(60)
        raise OSError(5, "Input/output error")

    backend._after_telling = after
    for first in (1, 2):
        batch = store.batch()
        batch.put_record(GROUP, directory_place.record(first, first, size=4))
        store.submit(batch, told.put_nowait)
        if first == 1:
            assert await told.get() is None  # while the writer is kept behind it
            go_on.set()
    failed = await told.get()
    assert isinstance(failed, StorageError)
    assert "Input/output error" in str(failed)
