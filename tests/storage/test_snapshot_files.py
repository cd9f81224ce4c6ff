"""The contract of snapshot files, over a real directory and over a disk in memory; and what is particular to each."""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import AsyncIterator, Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from multiraft.config import Limits
from multiraft.errors import NoSuchFile, StorageError
from multiraft.ports import SnapshotFiles, SnapshotSink
from multiraft.snapshot_file import file_name
from multiraft.storage import MemoryDisk, open_leveldb, open_memory
from multiraft.storage.snapshot_files import SNAPSHOTS_DIR

NAME = file_name(17, 5, 1)
OTHER = file_name(17, 6, 2)


async def asked(ask: Callable[[Callable[[Any], None]], None]) -> Any:
    """Return what `done` was called with; it must not be called before the call returns."""
    future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
    ask(future.set_result)
    assert not future.done()
    return await future


async def written(sink: SnapshotSink, *pieces: bytes) -> None:
    for piece in pieces:
        assert await asked(partial(sink.write, piece)) is None


async def committed(files: SnapshotFiles, name: str, *pieces: bytes) -> None:
    sink = files.create(name)
    await written(sink, *pieces)
    assert await asked(sink.commit) is None


async def content(files: SnapshotFiles, name: str, offset: int = 0, size: int = 1 << 20) -> Any:
    return await asked(lambda done: files.read(name, offset, size, done))


class Place:
    """One kind of place, to be opened again and again."""

    def __init__(self, kind: str, path: Path) -> None:
        self.kind = kind
        self.path = path
        self.disk = MemoryDisk()
        self.store: Any = None

    async def open(self) -> SnapshotFiles:
        loop = asyncio.get_running_loop()
        if self.kind == "memory":
            self.store = open_memory(self.disk, "n1", Limits(), loop)
        else:
            self.store = open_leveldb(str(self.path), "n1", Limits(), loop)
        files: SnapshotFiles = self.store.files
        return files

    async def close(self) -> None:
        if self.store is not None:
            await self.store.close()


@pytest_asyncio.fixture(params=["memory", "directory"])
async def place(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Place]:
    place = Place(request.param, tmp_path / "n1")
    yield place
    await place.close()


async def test_what_was_committed_is_there_and_stays(place: Place) -> None:
    files = await place.open()
    await committed(files, NAME, b"one ", b"two ", b"three")
    await place.close()
    files = await place.open()
    assert files.names() == [NAME]
    assert files.size(NAME) == 13
    assert await content(files, NAME) == b"one two three"
    assert await content(files, NAME, 4, 3) == b"two"
    assert await content(files, NAME, 8, 100) == b"three"
    assert await content(files, NAME, 13, 100) == b""


async def test_what_was_not_committed_has_no_size_and_cannot_be_read(place: Place) -> None:
    files = await place.open()
    sink = files.create(NAME)
    await written(sink, b"half")
    with pytest.raises(NoSuchFile):
        files.size(NAME)
    assert files.names() == [NAME]
    assert isinstance(await content(files, NAME), NoSuchFile)


async def test_a_paused_file_goes_on_where_it_was(place: Place) -> None:
    files = await place.open()
    sink = files.create(NAME)
    await written(sink, b"a" * 10_000)
    sink.pause()
    await place.close()
    files = await place.open()
    sink = files.partial(NAME)
    assert sink.size_bytes == 10_000
    await written(sink, b"b" * 10)
    assert sink.size_bytes == 10_010
    assert await asked(sink.commit) is None
    assert await content(files, NAME) == b"a" * 10_000 + b"b" * 10
    assert files.partial(OTHER).size_bytes == 0


async def test_a_new_file_of_an_old_name_begins_anew(place: Place) -> None:
    files = await place.open()
    sink = files.create(NAME)
    await written(sink, b"old and long")
    sink.pause()
    await committed(files, NAME, b"new")
    assert await content(files, NAME) == b"new"


async def test_an_aborted_file_and_a_deleted_one_are_gone(place: Place) -> None:
    files = await place.open()
    await committed(files, OTHER, b"whole")
    sink = files.create(NAME)
    await written(sink, b"half")
    sink.abort()
    sink.abort()
    files.delete(OTHER)
    files.delete("0-0-0.snap")
    assert isinstance(await content(files, OTHER), NoSuchFile)  # comes behind them
    assert files.names() == []


async def test_an_abort_after_the_commit_takes_nothing_away(place: Place) -> None:
    files = await place.open()
    sink = files.create(NAME)
    await written(sink, b"whole")
    assert await asked(sink.commit) is None
    sink.abort()
    sink.pause()
    assert await content(files, NAME) == b"whole"


async def test_after_a_failure_nothing_more_is_written_and_nothing_is_left(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = await place.open()
    await committed(files, OTHER, b"of before")
    sink = files.create(NAME)
    await written(sink, b"one")
    no_space = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    if place.kind == "memory":
        place.disk.fail_next_write(no_space)
    else:

        def fail(*_: object) -> int:
            raise no_space

        monkeypatch.setattr(os, "write", fail)
    error = await asked(lambda done: sink.write(b"two", done))
    monkeypatch.undo()
    assert isinstance(error, StorageError)
    assert isinstance(error.__cause__, OSError)
    assert error.__cause__.errno == errno.ENOSPC
    assert await asked(lambda done: sink.write(b"three", done)) is error
    assert await asked(sink.commit) is error
    assert files.names() == [OTHER]
    await committed(files, NAME, b"another attempt")
    assert await content(files, NAME) == b"another attempt"


async def test_a_closed_place_tells_nobody_anything(place: Place) -> None:
    files = await place.open()
    told: list[object] = []
    files.create(NAME).write(b"piece", told.append)
    await place.close()
    told_by_then = list(told)
    files_again = await place.open()
    await content(files_again, NAME)
    assert told == told_by_then


async def test_a_crash_takes_away_what_was_not_synced() -> None:
    disk = MemoryDisk()
    files = open_memory(disk, "n1", Limits(), asyncio.get_running_loop()).files
    await committed(files, OTHER, b"whole")
    sink = files.create(NAME)
    await written(sink, b"a" * 5_000, b"b" * 100)
    disk.crash()
    files = open_memory(disk, "n1", Limits(), asyncio.get_running_loop()).files
    assert files.names() == sorted([NAME, OTHER])
    assert files.partial(NAME).size_bytes == 5_000
    assert await content(files, OTHER) == b"whole"
    disk.crash()


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("at", [1, 2, 3])
async def test_a_crash_can_come_at_each_write_of_a_file(at: int, after: bool) -> None:
    disk = MemoryDisk()
    files = open_memory(disk, "n1", Limits(), asyncio.get_running_loop()).files
    disk.crash_after(at, disk.crash, written=after)
    sink = files.create(NAME)
    told: list[object] = []
    sink.write(b"a" * 5_000, told.append)
    sink.write(b"b" * 5_000, told.append)
    sink.commit(told.append)
    for _ in range(10):
        await asyncio.sleep(0)
    assert len(told) == at - 1
    store = open_memory(disk, "n1", Limits(), asyncio.get_running_loop())
    done = at - 1 + after
    if done == 3:
        assert store.files.size(NAME) == 10_000
    assert store.files.partial(NAME).size_bytes == (5_000 * done if done < 3 else 0)
    disk.crash()


async def test_files_and_their_directory_are_synced_before_they_have_a_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_leveldb(str(tmp_path / "n1"), "n1", Limits(), asyncio.get_running_loop())
    deeds: list[str] = []
    fsync, replace = os.fsync, os.replace

    def noted_fsync(descriptor: int) -> None:
        deeds.append("sync " + os.path.basename(os.readlink(f"/proc/self/fd/{descriptor}")))
        fsync(descriptor)

    def noted_replace(old: str, new: str) -> None:
        deeds.append("name " + os.path.basename(new))
        replace(old, new)

    monkeypatch.setattr(os, "fsync", noted_fsync)
    monkeypatch.setattr(os, "replace", noted_replace)
    await committed(store.files, NAME, b"piece")
    monkeypatch.undo()
    await store.close()
    assert deeds[-3:] == [f"sync {NAME}.part", f"name {NAME}", f"sync {SNAPSHOTS_DIR}"]
