"""The places that every store is tested on, behind one face: LevelDB or SQLite in a directory, and a disk in memory.

Rules of this file: a place can be looked into and damaged behind the store's back, the same way for all.
"""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path
from typing import Any, Final, TypeVar, cast

import plyvel
import pytest

from multiraft.config import Limits
from multiraft.ports import Store, WriteBatch
from multiraft.records import COMMANDS, Record, encode_record
from multiraft.storage import MemoryDisk, open_leveldb, open_memory, open_sqlite
from multiraft.types import GroupId, HardState, Index, LogStart, ReplicaDescriptor, Term, founding_membership

GROUP: GroupId = 17


class Place(ABC):
    """Somewhere to keep a store. All that it has opened is closed at the end of the test."""

    def __init__(self) -> None:
        self.opened: list[Store] = []

    def open(self, node_id: str = "n1") -> Store:
        store = self._open(node_id)
        self.opened.append(store)
        return store

    @abstractmethod
    def _open(self, node_id: str) -> Store: ...

    @abstractmethod
    def end_abruptly(self, store: Store) -> None:
        """End this run without a closing record; what was synced stays."""

    @abstractmethod
    def fail_next_write(self, store: Store, error: OSError) -> None: ...

    @abstractmethod
    def peek(self) -> dict[bytes, bytes]:
        """Return everything stored, while no store is open."""

    @abstractmethod
    def poke(self, key: bytes, value: bytes | None) -> None:
        """Change or remove (None) a value, while no store is open."""

    @abstractmethod
    def identity_file(self) -> bytes | None: ...

    @abstractmethod
    def set_identity_file(self, raw: bytes | None) -> None: ...

    async def write(self, store: Store, batch: WriteBatch) -> None:
        """Submit and wait; raise what it completes with."""
        done: asyncio.Future[Exception | None] = asyncio.get_running_loop().create_future()
        store.submit(batch, done.set_result)
        error = await done
        if error is not None:
            raise error

    async def found(
        self,
        store: Store,
        records: Sequence[Record] = (),
        hard_state: HardState | None = None,
        group_id: GroupId = GROUP,
    ) -> None:
        """Create the group's replica, with these records, in one batch."""
        batch = store.batch()
        term = max([record.term for record in records], default=1)
        batch.create_replica(
            ReplicaDescriptor(group_id, 1, "kv"),
            founding_membership(("n1", "n2", "n3")),
            hard_state or HardState(term, 0, 1),
            LogStart(1, 1),
        )
        for record in records:
            batch.put_record(group_id, record)
        await self.write(store, batch)

    def record(
        self, first: Index, last: Index, term: Term = 1, prev_term: Term = 1, group_id: GroupId = GROUP, size: int = 4
    ) -> Record:
        """Return a record whose entries say index and term."""
        entries = [b"%d/%d" % (index, term) + b"." * size for index in range(first, last + 1)]
        return encode_record(group_id, first, term, prev_term, COMMANDS, 0, entries)


class DirectoryPlace(Place):
    """A data directory, whichever database is in it.

    kind    which one
    folder  where that is
    """

    kind: str
    folder: str

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path

    def end_abruptly(self, store: Store) -> None:
        self.opened.remove(store)
        cast(Any, store)._backend.abandon()

    def fail_next_write(self, store: Store, error: OSError) -> None:
        backend = cast(Any, store)._backend

        def fail(_: object) -> None:
            del backend._write_synced, backend._write_unsynced
            raise error

        backend._write_synced = backend._write_unsynced = fail

    def identity_file(self) -> bytes | None:
        file = self.path / "IDENTITY"
        return file.read_bytes() if file.exists() else None

    def set_identity_file(self, raw: bytes | None) -> None:
        file = self.path / "IDENTITY"
        if raw is None:
            file.unlink()
        else:
            file.write_bytes(raw)


class LevelPlace(DirectoryPlace):
    kind = "leveldb"
    folder = "db"

    def _open(self, node_id: str) -> Store:
        return open_leveldb(str(self.path), node_id, Limits(), asyncio.get_running_loop())

    @contextlib.contextmanager
    def _database(self) -> Iterator[Any]:
        with contextlib.closing(plyvel.DB(str(self.path / "db"))) as database:
            yield database

    def peek(self) -> dict[bytes, bytes]:
        with self._database() as database:
            return dict(database.iterator())

    def poke(self, key: bytes, value: bytes | None) -> None:
        with self._database() as database:
            if value is None:
                database.delete(key)
            else:
                database.put(key, value)


class SqlitePlace(DirectoryPlace):
    kind = "sqlite"
    folder = "sqlite"

    def _open(self, node_id: str) -> Store:
        return open_sqlite(str(self.path), node_id, Limits(), asyncio.get_running_loop())

    @contextlib.contextmanager
    def _database(self) -> Iterator[sqlite3.Connection]:
        with contextlib.closing(sqlite3.connect(self.path / "sqlite" / "store.db")) as database, database:
            yield database

    def peek(self) -> dict[bytes, bytes]:
        with self._database() as database:
            return dict(database.execute("SELECT k, v FROM kv"))

    def poke(self, key: bytes, value: bytes | None) -> None:
        with self._database() as database:
            if value is None:
                database.execute("DELETE FROM kv WHERE k = ?", (key,))
            else:
                database.execute("INSERT OR REPLACE INTO kv VALUES (?, ?)", (key, value))


class MemoryPlace(Place):
    def __init__(self) -> None:
        super().__init__()
        self.disk = MemoryDisk()

    def _open(self, node_id: str) -> Store:
        return open_memory(self.disk, node_id, Limits(), asyncio.get_running_loop())

    def end_abruptly(self, store: Store) -> None:
        self.disk.crash()

    def fail_next_write(self, store: Store, error: OSError) -> None:
        self.disk.fail_next_write(error)

    def peek(self) -> dict[bytes, bytes]:
        return {key: value for key in self.disk.stored_keys() if (value := self.disk.read(key)) is not None}

    def poke(self, key: bytes, value: bytes | None) -> None:
        self.disk.overwrite(key, value)

    def identity_file(self) -> bytes | None:
        return self.disk.read_identity()

    def set_identity_file(self, raw: bytes | None) -> None:
        self.disk.overwrite_identity(raw)


DIRECTORIES: Final[dict[str, type[DirectoryPlace]]] = {"leveldb": LevelPlace, "sqlite": SqlitePlace}
AnyPlace = TypeVar("AnyPlace", bound=Place)


@contextlib.asynccontextmanager
async def closing_all(place: AnyPlace) -> AsyncIterator[AnyPlace]:
    yield place
    for store in place.opened:
        await store.close()


@pytest.fixture(params=["leveldb", "sqlite", "memory"])
async def place(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Place]:
    made: Place = MemoryPlace() if request.param == "memory" else DIRECTORIES[request.param](tmp_path / "n1")
    async with closing_all(made):
        yield made


@pytest.fixture(params=["leveldb", "sqlite"])
def kind(request: pytest.FixtureRequest) -> str:
    """The name of a database."""
    return str(request.param)


@pytest.fixture
async def directory_place(kind: str, tmp_path: Path) -> AsyncIterator[DirectoryPlace]:
    async with closing_all(DIRECTORIES[kind](tmp_path / "n1")) as made:
        yield made


@pytest.fixture
async def level_place(tmp_path: Path) -> AsyncIterator[LevelPlace]:
    async with closing_all(LevelPlace(tmp_path / "n1")) as made:
        yield made


@pytest.fixture
async def sqlite_place(tmp_path: Path) -> AsyncIterator[SqlitePlace]:
    async with closing_all(SqlitePlace(tmp_path / "n1")) as made:
        yield made
