"""Opening a store: is it this node's, is it whole, and which run is this?

Rules of this file: nothing is written before everything is checked; every refusal says what was found and the ways
out; when an opening returns, the higher incarnation and the removal of the closing record are synced.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable

from multiraft import failpoints
from multiraft.config import Limits
from multiraft.errors import StorageError, UnreadableStore
from multiraft.storage import layout, sqlite
from multiraft.storage.backend import Backend
from multiraft.storage.directory import check_kind, kind_of, marked_unreadable
from multiraft.storage.identity import of_cluster, read_opening, ways_out
from multiraft.storage.leveldb import LevelBackend, open_database
from multiraft.storage.memory import MemoryBackend, MemoryDisk
from multiraft.storage.sqlite import SqliteBackend
from multiraft.storage.store import PartitionedStore
from multiraft.types import RUN_ID_BYTES, RUNS_KEPT, Identity, NodeId


def open_durable(
    kind: str, path: str, node_id: NodeId, limits: Limits, loop: asyncio.AbstractEventLoop
) -> PartitionedStore:
    """Open the data directory `path`, kept by the database `kind`: "leveldb" or "sqlite". See `open_leveldb`."""
    opener = open_sqlite if kind == "sqlite" else open_leveldb
    return opener(path, node_id, limits, loop)


def open_leveldb(path: str, node_id: NodeId, limits: Limits, loop: asyncio.AbstractEventLoop) -> PartitionedStore:
    """Open the data directory `path` for `node_id`, making it when missing. Blocks for a few synced writes.

    Completions are delivered on `loop`. Raises StorageError, in one line with the way out: not a directory, not
    writable, in use, damaged, emptied, of another node, or kept by another database. UnreadableStore where what is
    damaged can be left out.
    """
    check_kind(path, "leveldb")
    marked = marked_unreadable(path)
    if marked:
        raise UnreadableStore(f"{path} is damaged: its last run could not read it: {marked}. {ways_out(path)}")
    return open_store(LevelBackend(path, open_database(path, limits), loop), node_id)


def open_sqlite(path: str, node_id: NodeId, limits: Limits, loop: asyncio.AbstractEventLoop) -> PartitionedStore:
    """Open the data directory `path` for `node_id`, kept by SQLite. Otherwise as `open_leveldb`."""
    check_kind(path, "sqlite")
    return open_store(SqliteBackend(path, sqlite.open_database(path), loop), node_id)


def open_backend(path: str, loop: asyncio.AbstractEventLoop) -> Backend:
    """Open the database that the data directory `path` holds, whichever kind it is, and nothing more.

    Raises StorageError.
    """
    kind = kind_of(path)
    if not kind:
        raise StorageError(f"{path} is not a data directory (it holds no database); name that of a node")
    if kind == "sqlite":
        return SqliteBackend(path, sqlite.open_database(path), loop)
    return LevelBackend(path, open_database(path, Limits()), loop)


def open_memory(disk: MemoryDisk, node_id: NodeId, limits: Limits, loop: asyncio.AbstractEventLoop) -> PartitionedStore:
    """Open `disk` for `node_id`; the memory twin of `open_leveldb`. Raises StorageError for the same reasons."""
    return open_store(MemoryBackend(disk, loop), node_id, disk.new_store_id, disk.new_run_id)


def open_store(
    backend: Backend,
    node_id: NodeId,
    new_store_id: Callable[[], bytes] = lambda: os.urandom(16),
    new_run_id: Callable[[], bytes] = lambda: os.urandom(RUN_ID_BYTES),
) -> PartitionedStore:
    """Check that `backend` holds this node's store, or nothing; begin the next incarnation. Takes over `backend`.

    Raises StorageError, after closing `backend`.
    """
    try:
        return _open(backend, node_id, new_store_id, new_run_id)
    except BaseException:
        backend.abandon()
        raise


def _open(
    backend: Backend, node_id: NodeId, new_store_id: Callable[[], bytes], new_run_id: Callable[[], bytes]
) -> PartitionedStore:
    found = read_opening(backend)
    identity = found.identity
    if identity is None:
        identity = Identity(node_id, new_store_id())
        batch = backend.batch()
        batch.put(layout.FORMAT_KEY, layout.encode_number(layout.FORMAT_KEY, layout.STORE_FORMAT))
        batch.put(layout.IDENTITY_KEY, layout.encode_identity(identity))
        backend.write(batch)
        backend.save_identity(layout.encode_identity_file(identity, 0, False))
    elif identity.node_id != node_id:
        raise StorageError(
            f"{backend.name} belongs to node {identity.node_id!r}{of_cluster(identity)}, but the configuration says "
            f"node {node_id!r}. Use that node's own directory, or remove {backend.name} if its contents may be lost"
        )
    if found.condemned:
        raise StorageError(f"{backend.name} may take part no longer: {found.condemned}")
    incarnation = found.incarnation + 1
    runs = (*found.runs, new_run_id())[-RUNS_KEPT:]
    batch = backend.batch()
    batch.put(layout.INCARNATION_KEY, layout.encode_number(layout.INCARNATION_KEY, incarnation))
    batch.put(layout.RUNS_KEY, layout.encode_runs(runs))
    batch.delete(layout.CLOSING_KEY)
    backend.write(batch)
    if failpoints.armed is not None:
        failpoints.armed(failpoints.OPEN_BEFORE_FILE)
    backend.save_identity(layout.encode_identity_file(identity, incarnation, False))
    return PartitionedStore(backend, identity, incarnation, found.closed_orderly, runs)
