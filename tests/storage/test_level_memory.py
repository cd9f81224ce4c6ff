"""LevelDB's options from a budget of memory."""

from __future__ import annotations

import asyncio
import resource
from pathlib import Path
from typing import Any

import plyvel
import pytest

from multiraft.config import Limits
from multiraft.errors import ConfigError
from multiraft.storage import open_leveldb
from multiraft.storage.level_memory import LevelMemory, level_memory

KIB, MIB = 1024, 1024 * 1024


@pytest.mark.parametrize(
    ("budget", "expected"),
    [
        (MIB, LevelMemory(MIB // 3, 256 * KIB, 2 * MIB, 64)),
        (48 * MIB, LevelMemory(16 * MIB, 8 * MIB, 2 * MIB, 128)),
        (192 * MIB, LevelMemory(64 * MIB, 32 * MIB, 4 * MIB, 256)),
        (3 * 1024 * MIB, LevelMemory(1024 * MIB, 512 * MIB, 32 * MIB, 512)),
    ],
)
def test_each_part_has_its_share(budget: int, expected: LevelMemory) -> None:
    assert level_memory(Limits(store_memory_bytes=budget), 4_096) == expected


@pytest.mark.parametrize("budget", [MIB, 7 * MIB, 64 * MIB, 192 * MIB, 1024 * MIB])
def test_all_parts_together_keep_within_the_budget(budget: int) -> None:
    found = level_memory(Limits(store_memory_bytes=budget), 1 << 30)
    of_files = found.open_files * found.file_bytes // 32
    least = 64 * 2 * MIB // 32 + 256 * KIB  # that much it needs, however small the budget
    assert 2 * found.write_buffer_bytes + found.cache_bytes + of_files <= budget + least


def test_a_write_buffer_that_is_set_stays_as_it_is() -> None:
    assert level_memory(Limits(leveldb_write_buffer_bytes=MIB)).write_buffer_bytes == MIB


def test_no_more_files_than_the_process_may_open() -> None:
    assert level_memory(Limits(store_memory_bytes=1 << 40), 1_024).open_files == 512
    assert level_memory(Limits(store_memory_bytes=1 << 40), resource.RLIM_INFINITY).open_files == 50_000


async def test_the_database_is_opened_with_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[dict[str, Any]] = []
    open_database = plyvel.DB

    def noting(path: str, **options: Any) -> Any:
        opened.append(options)
        return open_database(path, **options)

    monkeypatch.setattr(plyvel, "DB", noting)
    limits = Limits(store_memory_bytes=48 * MIB)
    store = open_leveldb(str(tmp_path), "n1", limits, asyncio.get_running_loop())
    await store.close()
    wanted = level_memory(limits)
    assert opened[0]["write_buffer_size"] == wanted.write_buffer_bytes == 16 * MIB
    assert opened[0]["lru_cache_size"] == wanted.cache_bytes
    assert opened[0]["max_file_size"] == wanted.file_bytes
    assert opened[0]["max_open_files"] == wanted.open_files


def test_a_write_buffer_that_is_too_small_is_refused() -> None:
    with pytest.raises(ConfigError, match="leveldb_write_buffer_bytes"):
        Limits(leveldb_write_buffer_bytes=1)
