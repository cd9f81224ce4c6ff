"""Files of LevelDB are held open until after they were removed, and only then give their room back."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable
from pathlib import Path
from random import Random

from multiraft.config import Limits
from multiraft.storage import open_leveldb
from multiraft.storage.parting import PartingFiles

_LOOK_BYTES = 1024 * 1024


def held_below(directory: Path) -> set[str]:
    """The names of files below `directory` that this process has open; one that was removed is said to be deleted."""
    found = set()
    for descriptor in os.listdir("/proc/self/fd"):
        try:
            target = os.readlink(f"/proc/self/fd/{descriptor}")
        except OSError:
            continue
        if target.startswith(f"{directory}/"):
            found.add(target[len(str(directory)) + 1 :])
    return found


def wait_until(holds: Callable[[], bool]) -> None:
    until = time.monotonic() + 20
    while not holds():
        assert time.monotonic() < until, "it never came to that"
        time.sleep(0.01)


def test_a_removed_file_is_held_and_then_let_go(tmp_path: Path) -> None:
    for name in ("000003.log", "000005.ldb", "CURRENT"):
        (tmp_path / name).write_bytes(b"x")
    parting = PartingFiles(str(tmp_path))
    try:
        wait_until(lambda: held_below(tmp_path) == {"000003.log", "000005.ldb"})
        (tmp_path / "000003.log").unlink()
        parting.wrote(_LOOK_BYTES)
        wait_until(lambda: held_below(tmp_path) == {"000005.ldb"})
        (tmp_path / "000007.log").write_bytes(b"x")
        parting.wrote(_LOOK_BYTES)
        wait_until(lambda: held_below(tmp_path) == {"000005.ldb", "000007.log"})
    finally:
        parting.close()
    assert held_below(tmp_path) == set()


def test_no_more_are_held_than_may_be_and_logs_come_first(tmp_path: Path) -> None:
    for name in ("000001.ldb", "000002.ldb", "000003.log"):
        (tmp_path / name).write_bytes(b"x")
    parting = PartingFiles(str(tmp_path), most=1)
    try:
        wait_until(lambda: bool(held_below(tmp_path)))
        assert held_below(tmp_path) == {"000003.log"}
        (tmp_path / "000003.log").unlink()
        parting.wrote(_LOOK_BYTES)
        wait_until(lambda: len(held_below(tmp_path)) == 1 and "000003.log" not in str(held_below(tmp_path)))
    finally:
        parting.close()


def test_nothing_is_held_where_room_is_short(tmp_path: Path) -> None:
    (tmp_path / "000003.log").write_bytes(b"x")
    disk = os.statvfs(tmp_path)
    parting = PartingFiles(str(tmp_path), room_bytes=disk.f_bavail * disk.f_frsize * 2)
    try:
        assert not parting._look()
        assert held_below(tmp_path) == set()
    finally:
        parting.close()


def test_a_directory_that_is_gone_is_passed_over(tmp_path: Path) -> None:
    parting = PartingFiles(str(tmp_path / "none"))
    parting.wrote(_LOOK_BYTES)
    parting.close()


async def test_a_store_holds_its_own_files_and_nothing_once_it_is_closed(tmp_path: Path) -> None:
    limits, rng = Limits(leveldb_write_buffer_bytes=64 * 1024), Random(1)
    store = open_leveldb(str(tmp_path / "n1"), "n1", limits, asyncio.get_running_loop())
    database = tmp_path / "n1" / "db"
    batch = store.batch()
    space = store.new_space(batch)
    for number in range(600):
        batch.put_data(space, b"%d" % (number % 200), rng.randbytes(4_000))
        if number % 20 == 19:
            written: asyncio.Future[Exception | None] = asyncio.get_running_loop().create_future()
            store.submit(batch, written.set_result)
            assert await written is None
            batch = store.batch()

    def all_held() -> bool:
        there = {name for name in os.listdir(database) if name.endswith((".log", ".ldb"))}
        return there <= held_below(database)

    await asyncio.to_thread(wait_until, all_held)
    await store.close()
    assert held_below(database) == set()
