"""LevelDB's directory: what is no data directory, and what becomes of each damaged file.

Rules of this file: every refusal is one line that says what to do.
"""

from __future__ import annotations

import asyncio
import errno
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, cast

import plyvel
import pytest

from multiraft.config import Limits
from multiraft.errors import CorruptRecord, StorageError
from multiraft.ports import Store
from multiraft.records import COMMANDS, encode_record
from multiraft.storage import inspect_directory, open_leveldb
from multiraft.types import HardState, LogStart, ReplicaDescriptor, founding_membership

if TYPE_CHECKING:
    from tests.storage.conftest import LevelPlace

GROUP: Final = 17
ROOT: Final = Path(__file__).resolve().parent.parent.parent
SMALL: Final = Limits(leveldb_write_buffer_bytes=64 * 1024)
NO_LIMIT: Final = 1 << 40


def opened(path: Path | str, node_id: str = "n1") -> Store:
    return open_leveldb(str(path), node_id, SMALL, asyncio.get_running_loop())


def refusal(path: Path | str) -> str:
    """Open, which must be refused, in one line that names the directory; return it."""
    with pytest.raises(StorageError) as caught:
        opened(path)
    text = str(caught.value)
    assert str(path) in text
    assert "\n" not in text
    return text


# ----------------------------------------------------------------------------------------------- bad directories


async def test_a_missing_directory_is_made_with_its_parents(tmp_path: Path) -> None:
    store = opened(tmp_path / "a" / "b")
    await store.close()
    assert sorted(os.listdir(tmp_path / "a" / "b")) == ["IDENTITY", "db"]


async def test_a_file_is_no_directory(tmp_path: Path) -> None:
    file = tmp_path / "n1"
    file.write_text("mine")
    assert "is not a directory; name a directory" in refusal(file)
    assert "Not a directory; name another directory" in refusal(file / "below")
    assert file.read_text() == "mine"


async def test_a_path_that_is_too_long(tmp_path: Path) -> None:
    assert "File name too long; name a directory with a shorter path" in refusal(tmp_path / ("x" * 300))


# ------------------------------------------------------------------------------------------------ damaged files


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with several tables, after five orderly runs; the last wrote nothing. Tests damage copies of it."""
    path = tmp_path_factory.mktemp("filled") / "n1"

    async def fill() -> None:
        for group_id in range(GROUP, GROUP + 4):
            store, written = opened(path), asyncio.Event()
            batch = store.batch()
            batch.create_replica(
                ReplicaDescriptor(group_id, 1, "kv"), founding_membership(("n1",)), HardState(1, 0, 1), LogStart(1, 1)
            )
            for first in range(2, 402):
                batch.put_record(group_id, encode_record(group_id, first, 1, 1, COMMANDS, 0, [os.urandom(150)]))
            store.submit(batch, lambda _, written=written: written.set())  # type: ignore[misc]
            await written.wait()
            await store.close()
        await opened(path).close()

    asyncio.run(fill())
    return path


def newest(path: Path, pattern: str) -> Path:
    return max((path / "db").glob(pattern))


def oldest(path: Path, pattern: str) -> Path:
    return min((path / "db").glob(pattern))


def flip(file: Path, position: int) -> None:
    raw = bytearray(file.read_bytes())
    raw[position] ^= 0x55
    file.write_bytes(raw)


def shorten(file: Path, count: int) -> None:
    os.truncate(file, file.stat().st_size - count)


def make_anew(database: Path) -> None:
    shutil.rmtree(database)
    plyvel.DB(str(database), create_if_missing=True).close()


def cut_unnoted(path: Path, size_bytes: int) -> None:
    """Cut the newest log by so many bytes, 0: by all, and take away what says how long it was."""
    log = newest(path, "*.log")
    shorten(log, size_bytes or log.stat().st_size)
    (path / "db" / "SYNCED").unlink()


DAMAGES: Final[dict[str, tuple[Callable[[Path], object], str]]] = {
    "CURRENT removed": (lambda p: (p / "db/CURRENT").unlink(), "has lost its database: .*no CURRENT file"),
    "CURRENT overwritten": (lambda p: (p / "db/CURRENT").write_text("?"), "is damaged: Corruption: CURRENT file"),
    "CURRENT astray": (lambda p: (p / "db/CURRENT").write_text("MANIFEST-9\n"), "non-existent file: .*MANIFEST-9"),
    "MANIFEST flipped": (lambda p: flip(newest(p, "MANIFEST*"), 20), "is damaged: Corruption: checksum mismatch"),
    "MANIFEST emptied": (lambda p: newest(p, "MANIFEST*").write_bytes(b""), "is damaged: Corruption: no meta-nextfile"),
    "MANIFEST removed": (lambda p: newest(p, "MANIFEST*").unlink(), "CURRENT points to a non-existent file"),
    "table flipped": (lambda p: flip(oldest(p, "*.ldb"), 2_000), "is damaged: Corruption: block checksum mismatch"),
    "table emptied": (lambda p: oldest(p, "*.ldb").write_bytes(b""), r"is damaged: .*\.ldb"),
    "table removed": (lambda p: oldest(p, "*.ldb").unlink(), "is damaged: Corruption: 1 missing files; e.g.: "),
    "log flipped": (lambda p: flip(newest(p, "*.log"), 10), "is damaged: Corruption: checksum mismatch"),
    "log cut": (lambda p: shorten(newest(p, "*.log"), 3), r"is damaged: .*\.log: it ends at .* were synced"),
    "log emptied": (
        lambda p: newest(p, "*.log").write_bytes(b""),
        r"is damaged: .*\.log: it ends at 0, .* were synced",
    ),
    "log and note cut": (lambda p: cut_unnoted(p, 3), "last wrote: .* within run 5, but run 5 ended"),
    "log emptied, note gone": (lambda p: cut_unnoted(p, 0), "last wrote: .* within run 4, but run 5 ended"),
    "log removed": (lambda p: newest(p, "*.log").unlink(), "last wrote: .* within run 4, but run 5 ended"),
    "database removed": (lambda p: shutil.rmtree(p / "db"), "has lost its database"),
    "database made anew": (lambda p: make_anew(p / "db"), "belongs to node 'n1', but its database came back empty"),
    "IDENTITY emptied": (lambda p: (p / "IDENTITY").write_bytes(b""), "is damaged: IDENTITY file: only 0 bytes"),
    "IDENTITY removed": (lambda p: (p / "IDENTITY").unlink(), "has lost its IDENTITY file"),
}


@pytest.mark.parametrize("name", DAMAGES)
async def test_damage_is_refused_with_the_ways_out(filled: Path, tmp_path: Path, name: str) -> None:
    path = tmp_path / "n1"
    shutil.copytree(filled, path)
    damage, expected = DAMAGES[name]
    damage(path)
    with pytest.raises(StorageError) as caught:
        await load(path)
    text = str(caught.value)
    assert re.search(expected, text)
    assert text.endswith(
        f"Put back a copy made since its node last ran; or give up its contents: remove {path}, start the node, and "
        "readmit it on another one (`multiraft member readmit NODE`)"
    )
    assert "\n" not in text
    assert re.search(expected, inspected(path))
    assert "multiraft-inspect-" not in inspected(path), "the reader knows the files, not the links to them"


def inspected(path: Path) -> str:
    """Return what the inspection says is wrong with the store as a whole."""
    try:
        return "\n".join(inspect_directory(str(path)).problems)
    except StorageError as problem:
        return str(problem)


async def load(path: Path) -> int:
    store = opened(path)
    try:
        return len(store.load_replicas())
    finally:
        await store.close()


async def test_the_undamaged_copy_is_accepted(filled: Path, tmp_path: Path) -> None:
    shutil.copytree(filled, tmp_path / "n1")
    assert await load(tmp_path / "n1") == 4


@pytest.mark.parametrize("seed", range(10))
async def test_a_flipped_byte_in_a_table_is_refused_or_changes_nothing(filled: Path, tmp_path: Path, seed: int) -> None:
    """Bytes that LevelDB does not use (padding, filler) may change; what is read never does."""
    path = tmp_path / "n1"
    shutil.copytree(filled, path)
    table = max((path / "db").glob("*.ldb"), key=lambda file: file.stat().st_size)
    flip(table, (seed * 7919) % table.stat().st_size)
    whole = await opened_values(filled, tmp_path / "whole")
    damaged = await opened_values(path, tmp_path / "damaged")
    assert whole is not None
    assert damaged is None or damaged == whole


async def opened_values(path: Path, copy: Path) -> list[bytes] | None:
    """Return every record of every group as the store reads it; None where it refuses."""
    shutil.copytree(path, copy)
    try:
        store = opened(copy)
    except StorageError:
        return None
    try:
        groups = [replica.descriptor.group_id for replica in store.load_replicas()]
        return [record.raw for g in groups for record in store.read_records(g, 2, 401, NO_LIMIT)]
    except StorageError:
        return None
    finally:
        await store.close()


@pytest.mark.parametrize("noted", [True, False])
async def test_a_log_cut_in_a_run_that_crashed_is_refused_or_at_least_no_orderly_end(
    level_place: LevelPlace, noted: bool
) -> None:
    store = level_place.open()
    await level_place.found(store, [level_place.record(2, 3)], HardState(1, 0, 3))
    batch = store.batch()
    batch.put_record(GROUP, level_place.record(4, 5))
    await level_place.write(store, batch)
    level_place.end_abruptly(store)
    shorten(newest(level_place.path, "*.log"), 5)
    if noted:
        with pytest.raises(CorruptRecord, match="were synced"):
            level_place.open()
        return
    (level_place.path / "db" / "SYNCED").unlink()
    store = level_place.open()
    assert not store.closed_orderly
    (replica,) = store.load_replicas()
    assert replica.last_index == 3, "the cut batch is gone as a whole"
    level_place.end_abruptly(store)


async def test_a_log_cut_below_the_commit_is_refused(level_place: LevelPlace) -> None:
    store = level_place.open()
    await level_place.found(store, [level_place.record(2, 9)], HardState(1, 0, 9))
    await store.close()
    with plyvel.DB(str(level_place.path / "db")) as database:
        database.delete(b"\0\0\0\0\0\0\0\x11\x07" + b"\0\0\0\0\0\0\0\x02")
    with pytest.raises(CorruptRecord, match=r"commit 9 is not within its log \(1 to 1\)"):
        level_place.open().load_replicas()


# ------------------------------------------------------------------------------------------------ identity file


async def test_the_identity_file_is_replaced_as_a_whole(
    level_place: LevelPlace, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = level_place.open()
    before = level_place.identity_file()
    synced: list[str] = []
    fsync = os.fsync

    def watched(descriptor: int) -> None:
        synced.append(os.readlink(f"/proc/self/fd/{descriptor}"))
        fsync(descriptor)

    def refuse(source: str, target: str) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "fsync", watched)
    with monkeypatch.context() as failing:
        failing.setattr(os, "replace", refuse)
        with pytest.raises(StorageError, match="IDENTITY cannot be written: Input/output error"):
            store.bind_cluster(b"c" * 16, {"n1": store.identity.store_id})
    assert level_place.identity_file() == before
    assert not store.identity.formed
    synced.clear()
    store.bind_cluster(b"c" * 16, {"n1": store.identity.store_id})
    assert synced == [str(level_place.path / "IDENTITY.tmp"), str(level_place.path)]
    assert sorted(os.listdir(level_place.path)) == ["IDENTITY", "db"]


# -------------------------------------------------------------------------------------------- how it is written


class RecordingDatabase:
    """Passes everything on to the database, and notes how batches are made; every read must be a checked one."""

    def __init__(self, database: Any) -> None:
        self._database = database
        self.made: list[dict[str, bool]] = []

    def write_batch(self, **options: bool) -> object:
        self.made.append(options)
        return self._database.write_batch(**options)

    def get(self, key: bytes, *, verify_checksums: bool) -> object:
        assert verify_checksums
        return self._database.get(key, verify_checksums=True)

    def iterator(self, *, verify_checksums: bool, **options: Any) -> object:
        assert verify_checksums
        return self._database.iterator(verify_checksums=True, **options)

    def __getattr__(self, name: str) -> object:
        return getattr(self._database, name)


async def test_every_batch_is_synced_and_every_read_checked(
    level_place: LevelPlace, monkeypatch: pytest.MonkeyPatch
) -> None:
    databases: list[RecordingDatabase] = []

    def recorded(*arguments: Any, **options: Any) -> RecordingDatabase:
        assert options["paranoid_checks"] is True
        databases.append(RecordingDatabase(real(*arguments, **options)))
        return databases[-1]

    real = plyvel.DB
    monkeypatch.setattr(plyvel, "DB", recorded)
    store = level_place.open()
    store.bind_cluster(b"c" * 16, {"n1": store.identity.store_id})
    await level_place.found(store, [level_place.record(2, 2)])
    assert len(store.load_replicas()) == 1
    assert store.read_firsts(GROUP, 0) == [2]
    await store.close()
    (database,) = databases
    assert len(database.made) == 5, "identity, incarnation, cluster, replica, closing"
    assert database.made == [{"sync": True}] * 5


async def test_leveldbs_own_errors_carry_their_errno(level_place: LevelPlace) -> None:
    store = level_place.open()

    def throw(_: object) -> None:
        raise plyvel.IOError(b"IO error: /somewhere/000007.log: No space left on device")

    cast(Any, store)._backend._write_synced = throw
    with pytest.raises(StorageError) as caught:
        await level_place.write(store, store.batch())
    assert isinstance(caught.value.__cause__, OSError)
    assert caught.value.__cause__.errno == errno.ENOSPC
    assert "/somewhere/000007.log" in str(caught.value)
    assert "free some space" in str(caught.value)


async def test_a_full_disk_at_the_opening_is_told_by_its_number(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """LevelDB has nothing but a text: without the number a node would not know that it may come back by itself."""

    def full(*_: object, **__: object) -> None:
        raise plyvel.IOError(b"IO error: /d/db/000087.ldb: No space left on device")

    monkeypatch.setattr(plyvel, "DB", full)
    with pytest.raises(StorageError, match="No space left on device; free some space") as caught:
        opened(tmp_path / "n1")
    assert caught.value.errno == errno.ENOSPC
    assert isinstance(caught.value.__cause__, OSError)
