"""A database that cannot be read in places: what is whole is copied, what has lost something is left out and noted."""

from __future__ import annotations

import asyncio
import os
import shutil
from pathlib import Path
from random import Random
from typing import Any, Final

import plyvel
import pytest

from multiraft.config import Limits
from multiraft.errors import CorruptRecord, StorageError, UnreadableStore
from multiraft.ports import Store
from multiraft.records import COMMANDS, encode_record
from multiraft.storage import open_leveldb, salvage
from multiraft.storage.check import next_readable
from multiraft.storage.directory import LEVELDB_DIR
from multiraft.storage.leveldb import DAMAGED_DIR, NEW_DIR
from multiraft.types import U64_MAX, Damage, HardState, LogStart, ReplicaDescriptor, Tombstone, founding_membership

FIRST: Final = 16
GROUPS: Final = range(FIRST, FIRST + 30)
SMALL: Final = Limits(leveldb_write_buffer_bytes=64 * 1024)


def opened(path: Path) -> Store:
    return open_leveldb(str(path), "n1", SMALL, asyncio.get_running_loop())


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of thirty groups of some blocks each, with a tombstone, all of it in tables of one level."""
    path = tmp_path_factory.mktemp("salvage") / "n1"

    async def fill() -> None:
        rng = Random(1)
        store, written = opened(path), asyncio.Event()
        for group_id in GROUPS:
            batch = store.batch()
            batch.create_replica(
                ReplicaDescriptor(group_id, 1, "kv"), founding_membership(("n1",)), HardState(1, 0, 1), LogStart(1, 1)
            )
            for first in range(2, 42):
                batch.put_record(group_id, encode_record(group_id, first, 1, 1, COMMANDS, 0, [rng.randbytes(250)]))
            store.submit(batch, lambda _: None)
        last = store.batch()
        last.remove_replica(Tombstone(FIRST + 100, 3, 9))
        store.submit(last, lambda _: written.set())
        await written.wait()
        await store.close()

    asyncio.run(fill())
    database = plyvel.DB(str(path / LEVELDB_DIR))
    database.compact_range(start=b"", stop=b"\xff" * 20)
    database.close()
    return path


@pytest.fixture
def damaged(filled: Path, tmp_path: Path) -> Path:
    """A copy with one bit turned in the midst of a table that is neither the first nor the last."""
    path = tmp_path / "n1"
    shutil.copytree(filled, path)
    tables = sorted((path / LEVELDB_DIR).glob("*.ldb"))
    table = tables[len(tables) // 2]
    raw = bytearray(table.read_bytes())
    raw[len(raw) // 2] ^= 8
    table.write_bytes(raw)
    return path


async def load(path: Path) -> tuple[list[int], list[Damage]]:
    """Open, and return the groups that are whole, and what is damaged."""
    store = opened(path)
    try:
        replicas, damages = store.load_sound()
        return [replica.descriptor.group_id for replica in replicas], damages
    finally:
        await store.close()


async def test_what_cannot_be_read_is_said_and_then_left_out(damaged: Path) -> None:
    with pytest.raises(UnreadableStore, match=r"n1 is damaged: groups? \d+.*the database cannot be read there"):
        await load(damaged)
    left_out = salvage(str(damaged), SMALL)
    lost = {group_id for one in left_out for group_id in range(one.first, one.last + 1)}
    assert 1 <= len(lost) <= 3, "one block does not cost more than the groups that lie in it, or next to it"
    for _ in range(2):  # it is the same at the next start
        whole, damages = await load(damaged)
        assert set(whole) | lost == set(GROUPS)
        assert not set(whole) & lost
        assert damages == left_out
    assert [one.replica_id for one in left_out if one.replica_id] == [1], "of the one that it broke off in, it is known"
    assert sorted(os.listdir(damaged)) == ["IDENTITY", LEVELDB_DIR, DAMAGED_DIR]


async def test_what_is_copied_is_the_same(filled: Path, damaged: Path) -> None:
    def stored(path: Path) -> dict[bytes, bytes]:
        database: Any = plyvel.DB(str(path / LEVELDB_DIR))
        try:
            return dict(database.iterator())
        finally:
            database.close()

    before = stored(filled)
    salvage(str(damaged), SMALL)
    after = stored(damaged)
    assert {key for key in after if key not in before} == {bytes(8) + b"\x0b"}, "but for the note of what was lost"
    assert all(before[key] == value for key, value in after.items() if key in before)
    assert len(before) - len(after) < 200
    store = opened(damaged)
    assert store.load_tombstones() == {FIRST + 100: Tombstone(FIRST + 100, 3, 9)}
    await store.close()


async def test_a_store_that_is_whole_stays_so(filled: Path, tmp_path: Path) -> None:
    path = tmp_path / "n1"
    shutil.copytree(filled, path)
    assert salvage(str(path), SMALL) == []
    assert await load(path) == (list(GROUPS), [])


@pytest.mark.parametrize("step", ["copied", "moved away"])
async def test_a_crash_between_the_steps_is_taken_up_by_the_next_opening(damaged: Path, step: str) -> None:
    again = damaged.parent / "n2"
    shutil.copytree(damaged, again)
    salvage(str(again), SMALL)
    shutil.copytree(again / LEVELDB_DIR, damaged / NEW_DIR)
    if step == "copied":
        with pytest.raises(UnreadableStore):
            await load(damaged)
        assert not (damaged / NEW_DIR).exists(), "the damaged one still stands: the copy is made again"
        salvage(str(damaged), SMALL)
    else:
        os.rename(damaged / LEVELDB_DIR, damaged / DAMAGED_DIR)
    assert await load(damaged) == await load(again)


async def test_damage_of_what_concerns_the_whole_store_is_refused_and_nothing_changes(
    filled: Path, tmp_path: Path
) -> None:
    path = tmp_path / "n1"
    shutil.copytree(filled, path)
    table = min((path / LEVELDB_DIR).glob("*.ldb"))
    raw = bytearray(table.read_bytes())
    raw[100] ^= 1  # the first block of all: identity and tombstones
    table.write_bytes(raw)
    with pytest.raises(CorruptRecord, match=r"n1 is damaged where it concerns the whole store.*readmit"):
        salvage(str(path), SMALL)
    assert sorted(os.listdir(path)) == ["IDENTITY", LEVELDB_DIR]
    with pytest.raises(StorageError, match=r"n1 .*damaged"):
        await load(path)


@pytest.mark.parametrize("bad", [range(5, 6), range(5, 9), range(5, 5_000), range(5, U64_MAX)])
def test_the_end_of_what_cannot_be_read_is_felt_for(bad: range) -> None:
    asked: list[int] = []

    def can_read(at: int) -> bool:
        asked.append(at)
        return at not in bad

    assert next_readable(can_read, 5) == bad.stop if bad.stop > 6 else 6
    assert len(asked) < 140


def test_there_may_be_no_end_of_what_cannot_be_read() -> None:
    assert next_readable(lambda _: False, 5) is None
