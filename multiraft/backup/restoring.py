"""Making a new cluster from a backup: data directories of nodes that have never run.

Each group begins with the cut as its snapshot: its voters, one on each of its nodes, all have the same state, as of the
same index, and an empty log above it; nobody has voted. The directory's state is changed on the way in: the nodes are
the new ones, and every group lives where it is put. All else stays: group ids, shards, sessions, the replicated clock.

The cluster id is new, and so are the ids of all stores, so that no node of the old cluster and none of the new one ever
take each other for their own.

Rules of this file: everything is verified before the first directory is made; a directory that holds anything is
refused; one that was not finished can be told, because its closing record comes last.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from multiraft.backup.archive import Backup, Cut, verify_cut
from multiraft.config import Limits
from multiraft.engine.executing import Executor
from multiraft.engine.pairstream import PairLoader
from multiraft.engine.states import StateLoader, state_chunks
from multiraft.errors import BackupRefused, CorruptRecord
from multiraft.ports import Store, WriteBatch
from multiraft.shard import Directory
from multiraft.shard.directory import NodeInfo
from multiraft.shard.placement import place
from multiraft.shard.shard_map import ShardMap
from multiraft.snapshot_file import DISK
from multiraft.storage import open_durable
from multiraft.storage.snapshot_files import SNAPSHOTS_DIR
from multiraft.types import (
    DIRECTORY_GROUP,
    Applied,
    GroupId,
    HardState,
    Index,
    LogStart,
    Membership,
    NodeId,
    ReplicaDescriptor,
    Snapshot,
    Term,
)

STORED_ON_DISK = b"\x80"
"""The snapshot's data of a machine on disk: its state is the keyspace (engine.pairs)."""
_BATCH_BYTES = 1024 * 1024
Told = Callable[[GroupId], None]


@dataclass(frozen=True, slots=True)
class NodePlace:
    """One node of the new cluster.

    directory  its data_dir: empty, or not there yet
    address    "host:port" for its peers
    """

    node_id: NodeId
    directory: str
    address: str


def restore(
    backup: Backup, places: Sequence[NodePlace], store: str, limits: Limits, told: Told = lambda group_id: None
) -> str:
    """Make the data directories of a new cluster from the backup; return its cluster id, in hex.

    store  "leveldb" or "sqlite"
    limits  those that the nodes will have: what is larger than `snapshot_inline_bytes` becomes a file
    told   called with each group that was verified, and again with each that is in place

    Raises BackupRefused: not the backup of a whole cluster, damaged, too few nodes, a directory that is not empty;
    StorageError: cannot be written.
    """
    _check(backup, places)
    for cut in backup.cuts.values():
        verify_cut(backup, cut)
        told(cut.group_id)
    names = tuple(sorted(one.node_id for one in places))
    where = _placed(backup, names)
    state = _directory_state(backup, {one.node_id: one.address for one in places}, where)
    return asyncio.run(_restore(backup, places, store, limits, where, state, told))


def _check(backup: Backup, places: Sequence[NodePlace]) -> None:
    if not backup.whole or DIRECTORY_GROUP not in backup.cuts:
        raise BackupRefused(f"{backup.path} is not of a whole cluster, but of some groups; restore needs `backup`")
    if len({one.node_id for one in places}) != len(places) or len({one.address for one in places}) != len(places):
        raise BackupRefused("two nodes have the same name or address; give each its own")
    for one in places:
        if os.path.lexists(one.directory) and (not os.path.isdir(one.directory) or os.listdir(one.directory)):
            raise BackupRefused(f"{one.directory} is not empty; name a directory that is, or is not there yet")


def _placed(backup: Backup, names: tuple[NodeId, ...]) -> dict[GroupId, tuple[NodeId, ...]]:
    """Return the nodes of each group: the same as before where all of these are there, otherwise evenly spread."""
    directory, _, _ = _directory(backup)
    where: dict[GroupId, tuple[NodeId, ...]] = {}
    for group_id, nodes in sorted(directory.map.groups.items()):
        if set(nodes) <= set(names):
            where[group_id] = nodes
            continue
        if len(nodes) > len(names):
            service = directory.groups[group_id].service
            raise BackupRefused(
                f"group {group_id} of service {service!r} has {len(nodes)} replicas, and there are {len(names)} nodes; "
                "give as many nodes"
            )
        where[group_id] = place(1, len(nodes), names, list(where.values()))[0]
    missing = [group_id for group_id in where if group_id not in backup.cuts]
    if missing:
        raise BackupRefused(f"the directory knows group {missing[0]}, of which the backup has nothing; use another one")
    return where


def _directory(backup: Backup) -> tuple[Directory, Executor, StateLoader]:
    directory = Directory()
    executor = Executor(DIRECTORY_GROUP, directory)
    loader = StateLoader(executor)
    cut = backup.cuts[DIRECTORY_GROUP]
    if cut.manifest.raw_bytes:
        try:
            for chunk in backup.chunks(cut):
                loader.feed(chunk)
            loader.finish()
        except CorruptRecord as problem:
            raise BackupRefused(f"the directory in {backup.path} cannot be read: {problem}") from problem
    return directory, executor, loader


def _directory_state(
    backup: Backup, addresses: Mapping[NodeId, str], where: Mapping[GroupId, tuple[NodeId, ...]]
) -> bytes:
    """Return the directory's state for the new cluster."""
    directory, executor, loader = _directory(backup)
    directory.nodes = {name: NodeInfo(address, "") for name, address in sorted(addresses.items())}
    directory.groups = {
        group_id: replace(info, nodes=where[group_id], as_of=backup.cuts[group_id].index, stores={})
        for group_id, info in directory.groups.items()
    }
    directory.map = ShardMap(directory.map.version + 1, directory.map.services, where)
    directory.stores, directory.readmissions = {}, 0
    executor.rolling.value = loader.hash
    return b"".join(state_chunks(executor, loader.time_ms))


async def _restore(
    backup: Backup,
    places: Sequence[NodePlace],
    store: str,
    limits: Limits,
    where: Mapping[GroupId, tuple[NodeId, ...]],
    state: bytes,
    told: Told,
) -> str:
    loop = asyncio.get_running_loop()
    opened: dict[NodeId, Store] = {}
    try:
        for one in places:
            opened[one.node_id] = open_durable(store, one.directory, one.node_id, limits, loop)
        cluster_id = os.urandom(16)
        stores = {name: found.identity.store_id for name, found in opened.items()}
        for found in opened.values():
            found.bind_cluster(cluster_id, stores)
        everybody = tuple(sorted(opened))
        for group_id, cut in sorted(backup.cuts.items()):
            nodes = everybody if group_id == DIRECTORY_GROUP else where.get(group_id, ())
            for replica_id, name in enumerate(nodes, 1):
                directory = next(one.directory for one in places if one.node_id == name)
                writer = StoreWriter(opened[name], directory, limits)
                given = state if group_id == DIRECTORY_GROUP else None
                await writer.put(backup, cut, replica_id, nodes, given)
            told(group_id)
    finally:
        for found in opened.values():
            await found.close()
    return cluster_id.hex()


class StoreWriter:
    """Puts groups into one node's store."""

    def __init__(self, store: Store, directory: str, limits: Limits) -> None:
        self._store = store
        self._directory = directory
        self._limits = limits

    async def put(
        self, backup: Backup, cut: Cut, replica_id: int, nodes: tuple[NodeId, ...], given: bytes | None
    ) -> None:
        """Make the group's replica, with the cut's state; `given` stands in for it."""
        applied, data = None, b""
        if cut.manifest.kind == DISK:
            applied, data = await self.put_pairs(backup, cut, cut.index, cut.term), STORED_ON_DISK
        elif given is not None:
            data = given
        else:
            data = await self.state_of(backup, cut)
        voters = tuple(range(1, len(nodes) + 1))
        membership = Membership(cut.index, voters, dict(zip(voters, nodes, strict=True)), len(nodes) + 1)
        start = LogStart(cut.index, cut.term)
        batch = self._store.batch()
        descriptor = ReplicaDescriptor(cut.group_id, replica_id, cut.service)
        batch.create_replica(descriptor, membership, HardState(cut.term, 0, cut.index), start)
        batch.put_snapshot(cut.group_id, Snapshot(cut.index, cut.term, membership, data), start)
        if applied is not None:
            batch.put_applied(cut.group_id, applied)
        await self.write(batch)

    async def state_of(self, backup: Backup, cut: Cut) -> bytes:
        """Return the data of a snapshot in memory: the state, or where it is large the manifest of a file, put here."""
        if cut.manifest.raw_bytes <= self._limits.snapshot_inline_bytes:
            return b"".join(backup.chunks(cut))
        return await asyncio.to_thread(self._put_file, backup, cut)

    def _put_file(self, backup: Backup, cut: Cut) -> bytes:
        folder = os.path.join(self._directory, SNAPSHOTS_DIR)
        os.makedirs(folder, exist_ok=True)
        with open(backup.file_of(cut), "rb") as source, open(os.path.join(folder, cut.manifest.name), "wb") as target:
            while piece := source.read(_BATCH_BYTES):
                target.write(piece)
            target.flush()
            os.fsync(target.fileno())
        return cut.manifest.encode()

    async def put_pairs(self, backup: Backup, cut: Cut, index: Index, term: Term) -> Applied:
        """Put the cut's keys and values into a fresh keyspace, and return what names it."""
        loader, size_bytes = PairLoader(cut.manifest.raw_bytes), 0
        batch = self._store.batch()
        space = self._store.new_space(batch)
        for chunk in backup.chunks(cut):
            for key, value in loader.feed(chunk):
                batch.put_data(space, key, value)
                size_bytes += len(key) + len(value)
            if size_bytes >= _BATCH_BYTES:
                await self.write(batch)
                batch, size_bytes = self._store.batch(), 0
        await self.write(batch)
        return Applied(index, term, loader.time_ms, loader.hash, space)

    async def write(self, batch: WriteBatch) -> None:
        done: asyncio.Future[Exception | None] = asyncio.get_running_loop().create_future()
        self._store.submit(batch, done.set_result)
        error = await done
        if error is not None:
            raise error
