"""SQLite's directory: how it is written, what becomes of damage in it, and that it needs no LevelDB.

Rules of this file: every refusal is one line that says what to do.
"""

from __future__ import annotations

import asyncio
import errno
import os
import re
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, cast

import pytest

from multiraft.config import Limits
from multiraft.errors import CorruptRecord, StorageError
from multiraft.ports import Store
from multiraft.records import COMMANDS, encode_record
from multiraft.storage import inspect_directory, open_durable, open_sqlite
from multiraft.storage.identity import ways_out
from multiraft.types import HardState, LogStart, ReplicaDescriptor, founding_membership

if TYPE_CHECKING:
    from tests.storage.conftest import DirectoryPlace, SqlitePlace

GROUP: Final = 17
ROOT: Final = Path(__file__).resolve().parent.parent.parent
NO_LIMIT: Final = 1 << 40


def opened(path: Path | str) -> Store:
    return open_sqlite(str(path), "n1", Limits(), asyncio.get_running_loop())


# --------------------------------------------------------------------------------------------- how it is written


async def test_an_orderly_end_leaves_one_file_with_everything_in_it(sqlite_place: SqlitePlace) -> None:
    store = sqlite_place.open()
    assert sorted(os.listdir(sqlite_place.path / "sqlite")) == ["LOCK", "store.db", "store.db-shm", "store.db-wal"]
    await sqlite_place.found(store, [sqlite_place.record(2, 4)])
    await store.close()
    assert sorted(os.listdir(sqlite_place.path)) == ["IDENTITY", "sqlite"]
    assert sorted(os.listdir(sqlite_place.path / "sqlite")) == ["LOCK", "store.db"]
    assert sqlite_place.open().read_firsts(GROUP, 0) == [2]


async def test_the_connection_that_writes_syncs_each_commit(sqlite_place: SqlitePlace) -> None:
    writes = cast(Any, sqlite_place.open())._backend._database.writes
    said = {name: writes.execute(f"PRAGMA {name}").fetchone()[0] for name in ("journal_mode", "synchronous")}
    assert said == {"journal_mode": "wal", "synchronous": 2}


@pytest.mark.parametrize(
    ("code", "number"),
    [
        (sqlite3.SQLITE_FULL, errno.ENOSPC),
        (sqlite3.SQLITE_IOERR_FSYNC, errno.EIO),
        (sqlite3.SQLITE_READONLY, errno.EROFS),
    ],
)
async def test_sqlites_own_errors_carry_their_errno(sqlite_place: SqlitePlace, code: int, number: int) -> None:
    store = sqlite_place.open()
    backend = cast(Any, store)._backend

    class Failing:
        total_changes = 0

        def execute(self, statement: str) -> None:
            problem = sqlite3.OperationalError("SQLite's text")
            problem.sqlite_errorcode = code
            raise problem

        def close(self) -> None:
            real.close()

    real, backend._database.writes = backend._database.writes, Failing()
    for _ in range(2):
        with pytest.raises(StorageError) as caught:
            await sqlite_place.write(store, store.batch())
        assert isinstance(caught.value.__cause__, OSError)
        assert caught.value.__cause__.errno == number
        assert os.strerror(number) in str(caught.value)


async def test_a_disk_that_is_full_fails_the_write_and_keeps_what_was_acknowledged(sqlite_place: SqlitePlace) -> None:
    """SQLite's own bound on the file stands for the disk's."""
    store = sqlite_place.open()
    writes = cast(Any, store)._backend._database.writes
    await sqlite_place.found(store)
    writes.execute(f"PRAGMA max_page_count={writes.execute('PRAGMA page_count').fetchone()[0] + 20}")
    acknowledged: list[int] = []

    async def fill() -> None:
        for first in range(2, 40):
            batch = store.batch()
            batch.put_record(GROUP, sqlite_place.record(first, first, size=10_000))
            await sqlite_place.write(store, batch)
            acknowledged.append(first)

    with pytest.raises(StorageError) as caught:
        await fill()
    assert 0 < len(acknowledged) < 30
    assert cast(OSError, caught.value.__cause__).errno == errno.ENOSPC
    assert "free some space" in str(caught.value)
    assert store.read_firsts(GROUP, 0) == acknowledged
    with pytest.raises(StorageError):
        await sqlite_place.write(store, store.batch())
    sqlite_place.end_abruptly(store)
    assert sqlite_place.open().read_firsts(GROUP, 0) == acknowledged


# ---------------------------------------------------------------------------------------------------- reading


async def test_an_iteration_under_way_sees_what_was_there_and_reads_beside_it_see_what_is(
    sqlite_place: SqlitePlace,
) -> None:
    store = sqlite_place.open()
    backend = cast(Any, store)._backend
    await sqlite_place.found(store, [sqlite_place.record(first, first) for first in range(2, 6)])
    keys = list(backend.keys(b"", None))
    under_way = backend.keys(b"", None)
    seen = [next(under_way)]
    batch = store.batch()
    batch.put_record(GROUP, sqlite_place.record(6, 6))
    await sqlite_place.write(store, batch)
    assert store.read_firsts(GROUP, 0) == [2, 3, 4, 5, 6]
    assert store.read_term(GROUP, 6) == 1
    assert seen + list(under_way) == keys


async def test_a_view_is_of_the_moment_that_it_was_asked_for(sqlite_place: SqlitePlace) -> None:
    store = sqlite_place.open()
    backend = cast(Any, store)._backend
    await sqlite_place.found(store, [sqlite_place.record(2, 3)])
    then = dict(backend.items(b"", None))
    view = backend.view()
    batch = store.batch()
    batch.put_record(GROUP, sqlite_place.record(4, 5))
    batch.delete_records(GROUP, [2])
    await sqlite_place.write(store, batch)
    assert dict(view.items(b"", None)) == then
    assert list(view.keys(b"", None, reverse=True)) == sorted(then, reverse=True)
    for key, value in then.items():
        assert view.get(key) == value
    assert store.read_firsts(GROUP, 0) == [4]
    view.close()
    view.close()
    with pytest.raises(StorageError, match="closed"):
        view.get(b"x")


async def test_a_view_that_was_forgotten_ends_with_the_store(sqlite_place: SqlitePlace) -> None:
    store = sqlite_place.open()
    view = cast(Any, store)._backend.view()
    await store.close()
    with pytest.raises(StorageError, match="closed"):
        view.get(b"x")
    assert sorted(os.listdir(sqlite_place.path / "sqlite")) == ["LOCK", "store.db"]


async def test_a_store_that_crashed_can_be_inspected_without_a_change(
    sqlite_place: SqlitePlace, tmp_path: Path
) -> None:
    store = sqlite_place.open()
    await sqlite_place.found(store, [sqlite_place.record(2, 4)])
    crashed = tmp_path / "crashed"
    shutil.copytree(sqlite_place.path, crashed)
    before = {file.name: file.read_bytes() for file in (crashed / "sqlite").iterdir()}
    assert before["store.db-wal"]
    report = inspect_directory(str(crashed))
    assert [(group.group_id, group.last_index) for group in report.groups] == [(GROUP, 4)]
    assert (report.sound, report.closed_orderly) == (True, False)
    assert {file.name: file.read_bytes() for file in (crashed / "sqlite").iterdir()} == before


# ------------------------------------------------------------------------------------------------------- damage


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of many pages, after three orderly runs; the last wrote nothing. Tests damage copies of it."""
    path = tmp_path_factory.mktemp("filled") / "n1"

    async def fill() -> None:
        for group_id in range(GROUP, GROUP + 2):
            store, written = opened(path), asyncio.Event()
            batch = store.batch()
            batch.create_replica(
                ReplicaDescriptor(group_id, 1, "kv"), founding_membership(("n1",)), HardState(1, 0, 1), LogStart(1, 1)
            )
            for first in range(2, 202):
                batch.put_record(group_id, encode_record(group_id, first, 1, 1, COMMANDS, 0, [os.urandom(150)]))
            store.submit(batch, lambda _, written=written: written.set())  # type: ignore[misc]
            await written.wait()
            await store.close()
        await opened(path).close()

    asyncio.run(fill())
    return path


def flip(file: Path, position: int) -> None:
    raw = bytearray(file.read_bytes())
    raw[position] ^= 0x55
    file.write_bytes(raw)


def make_anew(file: Path) -> None:
    file.unlink()
    sqlite3.connect(file).execute("CREATE TABLE theirs (x)").connection.close()


DAMAGES: Final[dict[str, tuple[Callable[[Path], object], str]]] = {
    "header flipped": (lambda p: flip(p / "sqlite/store.db", 3), "is damaged: file is not a database"),
    "page flipped": (lambda p: flip(p / "sqlite/store.db", 3 * 4096), "is damaged: "),
    "cut short": (lambda p: os.truncate(p / "sqlite/store.db", 10 * 4096), "is damaged: "),
    "emptied": (lambda p: os.truncate(p / "sqlite/store.db", 0), "belongs to node 'n1', but its database came back"),
    "removed": (lambda p: (p / "sqlite/store.db").unlink(), "has lost its database: there is no .*store.db"),
    "folder removed": (lambda p: shutil.rmtree(p / "sqlite"), "has lost its database: "),
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
        await values_of(path)
    text = str(caught.value)
    assert re.search(expected, text)
    assert text.endswith(ways_out(str(path)))
    assert "\n" not in text


async def test_a_database_of_another_program_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "n1" / "sqlite").mkdir(parents=True)
    file = tmp_path / "n1" / "sqlite" / "store.db"
    file.touch()
    make_anew(file)
    with pytest.raises(StorageError, match="is not multiraft's; name another directory"):
        opened(tmp_path / "n1")
    with sqlite3.connect(file) as theirs:
        assert theirs.execute("SELECT name FROM sqlite_schema").fetchall() == [("theirs",)]
    theirs.close()


async def values_of(path: Path) -> list[bytes]:
    """Return every record of every group as the store reads it."""
    store = opened(path)
    try:
        groups = [replica.descriptor.group_id for replica in store.load_replicas()]
        return [record.raw for g in groups for record in store.read_records(g, 2, 201, NO_LIMIT)]
    finally:
        await store.close()


@pytest.mark.parametrize("seed", range(60))
async def test_a_flipped_byte_is_refused_or_changes_nothing(filled: Path, tmp_path: Path, seed: int) -> None:
    whole, path = tmp_path / "whole", tmp_path / "damaged"
    shutil.copytree(filled, whole)
    shutil.copytree(filled, path)
    file = path / "sqlite" / "store.db"
    # Every page, and every part of one: the first bytes say where everything else in it is.
    size = file.stat().st_size
    flip(file, (seed * 4096 + seed * seed * 7) % size)
    expected = await values_of(whole)
    try:
        found = await values_of(path)
    except StorageError:
        return
    assert found == expected


async def test_keys_that_come_out_of_order_are_damage(sqlite_place: SqlitePlace) -> None:
    reader = cast(Any, sqlite_place.open())._backend

    class Connection:
        def execute(self, *_: object) -> Connection:
            return self

        def __iter__(self) -> Any:
            return iter([(b"a",), (b"c",), (b"b",)])

        def close(self) -> None:
            pass

    reader._idle.insert(0, Connection())
    reader._idle[1:] = []
    with pytest.raises(CorruptRecord, match="key 62 is out of order"):
        list(reader.keys(b"", None))


# ----------------------------------------------------------------------------------------------- the other kind


async def test_a_directory_of_the_other_kind_is_refused_and_left_alone(directory_place: DirectoryPlace) -> None:
    await directory_place.open().close()
    other = "sqlite" if directory_place.kind == "leveldb" else "leveldb"
    with pytest.raises(StorageError) as caught:
        open_durable(other, str(directory_place.path), "n1", Limits(), asyncio.get_running_loop())
    assert str(caught.value) == (
        f"{directory_place.path} holds a store of kind '{directory_place.kind}', but the configuration says '{other}'; "
        f'say store = "{directory_place.kind}", or name another directory'
    )
    assert sorted(os.listdir(directory_place.path)) == sorted(["IDENTITY", directory_place.folder])


WITHOUT_PLYVEL: Final = """
import asyncio, sys
sys.modules["plyvel"] = None
from multiraft import Node, NodeConfig
from multiraft.errors import StorageError
from multiraft.storage import inspect_directory

def node(store):
    address = "127.0.0.1:" + sys.argv[2]
    return Node(NodeConfig("n1", sys.argv[1] + "/" + store, address, {"n1": address}, store=store))

async def main():
    async with node("sqlite") as running:
        pass
    print(inspect_directory(sys.argv[1] + "/sqlite").incarnation)
    try:
        await node("leveldb").start()
    except StorageError as problem:
        print(problem)

asyncio.run(main())
"""


def test_without_leveldb_a_node_runs_on_sqlite_and_says_so_where_it_cannot(
    tmp_path: Path, unused_tcp_port: int
) -> None:
    run = subprocess.run(
        [sys.executable, "-c", WITHOUT_PLYVEL, str(tmp_path), str(unused_tcp_port)],
        env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    first, second = run.stdout.splitlines()
    assert first == "1", run.stderr
    assert second.startswith("LevelDB is not available here (")
    assert second.endswith('); install plyvel, or say store = "sqlite"')
