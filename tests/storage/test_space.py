"""The room under a data directory, and the ballast in it, on a real file system."""

from __future__ import annotations

import os
import resource
from pathlib import Path

from multiraft.storage import FileSpace
from multiraft.storage.space import BALLAST_FILE

SIZE = 256 * 1024


async def test_the_ballast_is_allocated_in_full_given_up_and_made_again(tmp_path: Path) -> None:
    space = FileSpace(str(tmp_path), SIZE)
    assert not space.has_ballast()
    await space.keep_ballast(0)
    found = (tmp_path / BALLAST_FILE).stat()
    assert found.st_size == SIZE
    assert found.st_blocks * 512 >= SIZE, "not a hole"
    assert os.listdir(tmp_path) == [BALLAST_FILE]
    assert space.release_ballast() == SIZE
    assert not space.has_ballast()
    assert space.release_ballast() == 0
    await space.keep_ballast(0)
    assert space.has_ballast()


async def test_the_ballast_takes_the_size_that_is_configured_now(tmp_path: Path) -> None:
    await FileSpace(str(tmp_path), SIZE).keep_ballast(0)
    await FileSpace(str(tmp_path), 2 * SIZE).keep_ballast(0)
    assert (tmp_path / BALLAST_FILE).stat().st_size == 2 * SIZE
    await FileSpace(str(tmp_path), 0).keep_ballast(0)
    assert os.listdir(tmp_path) == []


async def test_no_ballast_is_made_where_too_little_would_stay_free(tmp_path: Path) -> None:
    space = FileSpace(str(tmp_path), SIZE)
    free_bytes = space.free_bytes()
    assert free_bytes is not None
    await space.keep_ballast(free_bytes * 2)
    assert os.listdir(tmp_path) == []


async def test_a_ballast_that_cannot_be_made_is_none_and_leaves_nothing_behind(tmp_path: Path) -> None:
    """The process may not write files so large: as good as a disk that has no room."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    space = FileSpace(str(tmp_path), SIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    try:
        await space.keep_ballast(0)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert os.listdir(tmp_path) == []


def test_a_directory_that_is_not_there_yet_has_nothing_and_tells_nothing(tmp_path: Path) -> None:
    space = FileSpace(str(tmp_path / "later"), SIZE)
    assert space.free_bytes() is None
    assert not space.has_ballast()
    assert space.release_ballast() == 0


def test_an_opening_needs_room_for_what_the_log_holds(tmp_path: Path) -> None:
    space = FileSpace(str(tmp_path), SIZE)
    before = space.opening_bytes()
    (tmp_path / "db").mkdir()
    (tmp_path / "db" / "000003.log").write_bytes(bytes(1_000_000))
    (tmp_path / "db" / "000005.ldb").write_bytes(bytes(5_000_000))
    assert space.opening_bytes() == before + 1_000_000
