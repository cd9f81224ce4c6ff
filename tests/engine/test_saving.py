"""States on their way into a snapshot and out of it: small ones in memory, large ones through a file."""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from multiraft.config import Limits
from multiraft.engine.loading import Loading
from multiraft.engine.machine import pieces_of
from multiraft.engine.saving import Saving
from multiraft.errors import CorruptRecord, NoSuchFile, StorageError
from multiraft.snapshot_file import MEMORY, Manifest, decode_manifest, file_name, is_manifest
from multiraft.storage import MemoryDisk, open_leveldb, open_memory

NAME = file_name(17, 5, 1)
NO_SPACE = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
INLINE_BYTES = 1_000


def noise(size_bytes: int) -> bytes:
    """Bytes that compression makes no smaller."""
    return b"".join(os.urandom(1_024) for _ in range(size_bytes // 1_024))


class Rig:
    """One store with its files, a stopwatch that each look moves on, and what was told."""

    def __init__(self, path: Path | None) -> None:
        loop = asyncio.get_running_loop()
        self.loop = loop
        self.disk = MemoryDisk()
        limits = Limits()
        store: Any = (
            open_memory(self.disk, "n", limits, loop) if path is None else open_leveldb(str(path), "n", limits, loop)
        )
        self.store = store
        self.files = store.files
        self.now = 0.0
        self.told: list[bytes | Exception] = []
        self.told_event = asyncio.Event()
        self.woken = asyncio.Event()

    def stopwatch(self) -> float:
        self.now += 1.0
        return self.now

    def saved(self, outcome: bytes | Exception) -> None:
        self.told.append(outcome)
        self.told_event.set()
        self.woken.set()

    def saving(self, chunks: Iterator[bytes]) -> Saving:
        return Saving(self.files, NAME, chunks, INLINE_BYTES, (5, 60, 70, MEMORY), self.woken.set, self.saved)

    async def save(self, chunks: Iterator[bytes]) -> bytes | Exception:
        """Save all of it, as the engine would: a slice, and again when there is room."""
        saving = self.saving(chunks)
        while not saving.taken:
            self.woken.clear()
            saving.take(self.now + 3, self.stopwatch)
            if saving.waits and not saving.taken:
                await self.woken.wait()
        await self.told_event.wait()
        assert len(self.told) == 1
        return self.told[0]

    async def settle(self) -> None:
        """Wait until the files' thread, or what stands for it, has done everything that was begun."""
        done: asyncio.Future[object] = self.loop.create_future()
        self.files.read("0-0-0.snap", 0, 1, done.set_result)
        await done

    async def load(self, manifest: Manifest, feed: Callable[[bytes], None]) -> BaseException | None:
        ended: asyncio.Future[BaseException | None] = self.loop.create_future()
        Loading(self.files, manifest, feed, ended.set_result, self.loop, self.stopwatch, 2.0).begin()
        return await ended

    async def loaded(self, data: bytes) -> bytes:
        found: list[bytes] = []
        assert await self.load(decode_manifest(data), found.append) is None
        return b"".join(found)


@pytest_asyncio.fixture(params=["memory", "directory"])
async def rig(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Rig]:
    rig = Rig(None if request.param == "memory" else tmp_path / "n")
    yield rig
    await rig.store.close()


async def test_a_small_state_needs_no_file(rig: Rig) -> None:
    assert await rig.save(iter([b"one ", b"", b"two"])) == b"one two"
    await rig.settle()
    assert rig.files.names() == []


async def test_the_bound_of_a_small_state_is_met_exactly(rig: Rig) -> None:
    assert await rig.save(iter([b"x" * INLINE_BYTES])) == b"x" * INLINE_BYTES
    rig.told.clear()
    rig.told_event.clear()
    data = await rig.save(iter([b"x" * INLINE_BYTES, b"y"]))
    assert isinstance(data, bytes)
    assert is_manifest(data)


async def test_a_large_state_is_a_whole_file_before_anybody_hears_of_it(rig: Rig) -> None:
    state = noise(3_000_000)
    data = await rig.save(pieces_of(state))
    assert isinstance(data, bytes)
    manifest = decode_manifest(data)
    assert (manifest.name, manifest.index, manifest.time_ms, manifest.hash) == (NAME, 5, 60, 70)
    assert (manifest.kind, manifest.raw_bytes) == (MEMORY, len(state))
    assert rig.files.size(NAME) == manifest.size_bytes
    assert await rig.loaded(data) == state


def test_a_state_that_comes_as_one_is_taken_in_small_pieces() -> None:
    state = noise(1_000_000)
    for given in (state, iter([state[:10], state[10:], b""])):
        pieces = list(pieces_of(given))
        assert max(map(len, pieces)) <= 64 * 1024
        assert b"".join(pieces) == state
    assert list(pieces_of(b"")) == []
    with pytest.raises(TypeError, match="yielded str, not bytes"):
        list(pieces_of(iter(["text"])))  # type: ignore[arg-type]


async def test_no_more_is_taken_while_the_disk_lags_behind() -> None:
    rig = Rig(None)
    rig.disk.hold_writes()
    taken = 0

    def chunks() -> Iterator[bytes]:
        nonlocal taken
        for _ in range(200):
            taken += 1
            yield noise(64 * 1024)

    saving = rig.saving(chunks())
    for _ in range(100):
        saving.take(rig.now + 1_000, rig.stopwatch)
    assert saving.waits
    assert not saving.taken
    assert taken < 20
    rig.disk.release()
    await rig.woken.wait()
    assert not saving.waits
    while not rig.told:
        rig.woken.clear()
        saving.take(rig.now + 1_000, rig.stopwatch)
        await (rig.told_event if saving.taken else rig.woken).wait()
    assert taken == 200
    assert isinstance(rig.told[0], bytes)
    await rig.store.close()


async def test_a_slice_ends_with_its_time(rig: Rig) -> None:
    taken: list[int] = []

    def chunks() -> Iterator[bytes]:
        for number in range(10):
            taken.append(number)
            yield b"x"

    saving = rig.saving(chunks())
    saving.take(rig.now + 3, rig.stopwatch)
    assert taken == [0, 1, 2]
    saving.stop()


@pytest.mark.parametrize("at", [0, 3, 40])
async def test_what_the_machine_raises_is_told_and_nothing_is_left(rig: Rig, at: int) -> None:
    problem = TypeError("Ledger.x: a set cannot be carried")

    def chunks() -> Iterator[bytes]:
        for _ in range(at):
            yield noise(64 * 1024)
        raise problem

    assert await rig.save(chunks()) is problem
    await rig.settle()
    assert rig.files.names() == []


async def test_what_the_hearer_raises_is_its_own(rig: Rig) -> None:
    told: list[object] = []

    def saved(outcome: bytes | Exception) -> None:
        told.append(outcome)
        raise ValueError("of the hearer")

    saving = Saving(rig.files, NAME, iter([b"x"]), INLINE_BYTES, (5, 6, 7, MEMORY), rig.woken.set, saved)
    with pytest.raises(ValueError, match="of the hearer"):
        saving.take(rig.now + 100, rig.stopwatch)
    assert told == [b"x"]


@pytest.mark.parametrize("count", [1, 2, 3, 9])
async def test_a_write_that_fails_is_told_once_and_nothing_is_left(
    rig: Rig, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls, write = 0, os.write

    def fail(*arguments: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls >= count:
            raise NO_SPACE
        return write(*arguments) if isinstance(arguments[0], int) else None

    monkeypatch.setattr(os, "write", fail)
    monkeypatch.setattr(rig.disk, "_check_write", lambda size_bytes: fail(os.devnull))
    problem = await rig.save(iter([noise(64 * 1024) for _ in range(50)]))
    assert isinstance(problem, StorageError)
    assert problem.__cause__ is NO_SPACE
    await rig.settle()
    monkeypatch.undo()
    assert rig.files.names() == []
    assert len(rig.told) == 1


async def test_a_file_that_cannot_be_named_is_no_snapshot(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """All of it was written; what fails is its last sync, or its name."""

    def fail(*_: Any) -> None:
        raise NO_SPACE

    monkeypatch.setattr(os, "replace", fail)
    monkeypatch.setattr(rig.disk, "_check_write", lambda size_bytes: None if size_bytes else fail())
    problem = await rig.save(iter([noise(64 * 1024)]))
    assert isinstance(problem, StorageError)
    assert problem.__cause__ is NO_SPACE
    await rig.settle()
    monkeypatch.undo()
    assert rig.files.names() == []


async def test_after_a_failure_no_more_is_taken() -> None:
    rig = Rig(None)
    taken = 0

    def chunks() -> Iterator[bytes]:
        nonlocal taken
        while True:
            taken += 1
            yield noise(64 * 1024)

    saving = rig.saving(chunks())
    rig.disk.fail_next_write(NO_SPACE)
    saving.take(rig.now + 1_000, rig.stopwatch)
    await rig.told_event.wait()
    before = taken
    saving.take(rig.now + 1_000, rig.stopwatch)
    assert saving.taken
    assert taken == before
    rig.disk.crash()


@pytest.mark.parametrize("chunks", [1, 4, 17])
async def test_what_is_stopped_tells_nobody_and_leaves_nothing(rig: Rig, chunks: int) -> None:
    saving = rig.saving(noise(64 * 1024) for _ in range(chunks + 1))
    saving.take(rig.now + chunks, rig.stopwatch)
    saving.stop()
    assert saving.taken
    await rig.settle()
    assert rig.told == []
    assert rig.files.names() == []


async def test_what_is_stopped_when_all_was_taken_leaves_nothing(rig: Rig) -> None:
    saving = rig.saving(iter([noise(64 * 1024)]))
    saving.take(rig.now + 100, rig.stopwatch)
    assert saving.taken
    saving.stop()
    await rig.settle()
    await rig.settle()  # the file is deleted when it is known to be there
    assert rig.told == []
    assert rig.files.names() == []


# ----------------------------------------------------------------------------------------------------- loading


async def on_file(rig: Rig, state: bytes) -> Manifest:
    data = await rig.save(pieces_of(state))
    assert isinstance(data, bytes)
    return decode_manifest(data)


async def test_a_file_is_given_on_in_slices_between_which_others_run(rig: Rig) -> None:
    manifest = await on_file(rig, b"a" * 20_000_000)  # compressed, it is read in one piece
    fed: list[int] = []
    turns: list[int] = []
    ended = asyncio.Event()
    Loading(
        rig.files,
        manifest,
        lambda chunk: fed.append(len(chunk)),
        lambda _: ended.set(),
        rig.loop,
        rig.stopwatch,
        2.0,
    ).begin()
    while not ended.is_set():
        turns.append(len(fed))
        await asyncio.sleep(0)
    assert sum(fed) == 20_000_000
    assert max(later - earlier for earlier, later in pairwise(turns)) <= 2


@pytest.mark.parametrize("where", [0, 10, 5_000, -1])
async def test_a_flipped_bit_is_noticed_before_anything_is_finished(where: int) -> None:
    rig = Rig(None)
    manifest = await on_file(rig, noise(700_000))
    whole = bytearray(rig.disk.shelf.whole[NAME])
    whole[where] ^= 1
    rig.disk.shelf.whole[NAME] = bytes(whole)
    assert isinstance(await rig.load(manifest, lambda _: None), CorruptRecord)
    await rig.store.close()


async def test_a_whole_file_of_another_digest_is_refused(rig: Rig) -> None:
    manifest = await on_file(rig, noise(700_000))
    assert isinstance(
        await rig.load(replace(manifest, digest=bytes(len(manifest.digest))), lambda _: None), CorruptRecord
    )


async def test_a_file_that_was_cut_and_one_that_is_gone_are_noticed() -> None:
    rig = Rig(None)
    manifest = await on_file(rig, noise(700_000))
    whole = rig.disk.shelf.whole[NAME]
    for size_bytes in (0, 100, 256 * 1024, len(whole) - 1):
        rig.disk.shelf.whole[NAME] = whole[:size_bytes]
        problem = await rig.load(manifest, lambda _: None)
        assert isinstance(problem, CorruptRecord)
        assert "ends too early" in str(problem)
    del rig.disk.shelf.whole[NAME]
    assert isinstance(await rig.load(manifest, lambda _: None), NoSuchFile)
    await rig.store.close()


async def test_what_takes_the_state_may_refuse_it(rig: Rig) -> None:
    manifest = await on_file(rig, noise(700_000))
    problem = ValueError("not this")

    def feed(chunk: bytes) -> None:
        raise problem

    assert await rig.load(manifest, feed) is problem


async def test_what_is_stopped_is_given_no_more(rig: Rig) -> None:
    manifest = await on_file(rig, noise(2_000_000))
    fed: list[bytes] = []
    ended: list[object] = []
    begun = asyncio.Event()

    def feed(chunk: bytes) -> None:
        fed.append(chunk)
        begun.set()

    loading = Loading(rig.files, manifest, feed, ended.append, rig.loop, rig.stopwatch, 2.0)
    loading.begin()
    await begun.wait()
    assert not ended
    loading.stop()
    before = len(fed)
    await rig.settle()
    await rig.settle()
    assert len(fed) == before
    assert ended == []


async def test_what_is_held_is_given_no_more_until_there_is_room(rig: Rig) -> None:
    state = noise(1_000_000)
    manifest = await on_file(rig, state)
    fed: list[bytes] = []
    ended: list[object] = []

    def feed(chunk: bytes) -> None:
        fed.append(chunk)
        loading.hold()

    loading = Loading(rig.files, manifest, feed, ended.append, rig.loop, rig.stopwatch, 2.0)
    loading.begin()
    while not ended:
        before = len(fed)
        await rig.settle()
        await rig.settle()
        assert len(fed) <= before + 1
        loading.go_on()
        loading.go_on()
    assert ended == [None]
    assert b"".join(fed) == state
