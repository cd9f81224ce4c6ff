"""One node's durable state over any backend: what the keys mean.

A conflict at index k puts the new record at k and deletes every record key above it; the record that k cuts into
stays as it was. So a reader ends each record where the next one begins, and refuses one that does not follow.

Rules of this file: nothing is cached; what is read is checked; a batch is the only way to write, but for binding the
cluster. What a batch holds stands in batches.py.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import islice
from typing import cast

from multiraft import failpoints
from multiraft.errors import CorruptRecord, StorageError, UnreadableStore, invariant
from multiraft.ports import SnapshotFiles, WriteBatch
from multiraft.records import Record, cut_record
from multiraft.storage import layout
from multiraft.storage.backend import Backend, Done
from multiraft.storage.batches import PartitionedBatch
from multiraft.storage.check import ReplicaScan, chain_problem, read_tombstones, scan_replicas
from multiraft.storage.data import DataReads, PartitionedView
from multiraft.storage.identity import ways_out
from multiraft.types import (
    ADMITTED_RUNS,
    INDEX_MAX,
    Damage,
    GroupId,
    Identity,
    Index,
    NodeId,
    SeenRun,
    Snapshot,
    SpaceId,
    StoredReplica,
    Term,
    Tombstone,
)


class PartitionedStore(DataReads):
    """`multiraft.ports.Store` over a backend. Made by `multiraft.storage.opening.open_store`, which has checked it."""

    def __init__(
        self,
        backend: Backend,
        identity: Identity,
        incarnation: int,
        closed_orderly: bool,
        runs: tuple[bytes, ...],
    ) -> None:
        super().__init__(backend)
        self._backend = backend
        self._runs = runs
        self._identity = identity
        self._incarnation = incarnation
        self._closed_orderly = closed_orderly
        self._closing: asyncio.Task[None] | None = None
        with self._naming_damage():  # read now: whoever draws an id later must not fail half way
            raw = backend.get(layout.NEXT_SPACE_KEY)
            self._next_space: SpaceId = (
                1 if raw is None else layout.decode_number(layout.NEXT_SPACE_KEY, raw, "next keyspace")
            )

    @property
    def identity(self) -> Identity:
        return self._identity

    @property
    def incarnation(self) -> int:
        return self._incarnation

    @property
    def runs(self) -> tuple[bytes, ...]:
        return self._runs

    @property
    def files(self) -> SnapshotFiles:
        """The snapshot files beside the database."""
        return self._backend.files

    @property
    def closed_orderly(self) -> bool:
        return self._closed_orderly

    @property
    def syncs(self) -> int:
        return self._backend.syncs

    @property
    def unreadable(self) -> str:
        return self._backend.unreadable

    def bind_cluster(
        self,
        cluster_id: bytes,
        stores: dict[NodeId, bytes],
        admitted: Sequence[NodeId] = (),
        readmissions: int = 0,
        generation: int = 0,
    ) -> None:
        """Make this store part of a cluster; synced on return, in both places. Doing it again is no harm.

        Raises StorageError: it belongs to another cluster, is not the store that the members know this node by, or
        cannot be written.
        """
        mine, name = self._identity, self._backend.name
        invariant(bool(cluster_id), "a cluster id is not empty")
        if stores.get(mine.node_id) != mine.store_id:
            raise StorageError(
                f"{name} is not the store that cluster {cluster_id.hex()[:8]} knows node {mine.node_id!r} by; "
                "start the node with the directory that it had when the cluster was formed"
            )
        if mine.formed:
            if mine.cluster_id != cluster_id or dict(mine.stores) != stores:
                raise StorageError(
                    f"{name} belongs to cluster {mine.cluster_id.hex()[:8]} and cannot join cluster "
                    f"{cluster_id.hex()[:8]}; name another data directory for the node of that cluster"
                )
            return
        about_others = (dict(stores), tuple(admitted), readmissions, generation)
        bound = Identity(mine.node_id, mine.store_id, cluster_id, *about_others)
        self._bind(bound, self._incarnation + (0 if bound.founder else readmissions * ADMITTED_RUNS))

    def bind_stores(self, stores: dict[NodeId, bytes], admitted: Sequence[NodeId], readmissions: int) -> None:
        """Take over which store each member has now; synced on return, in both places.

        What takes fewer readmissions into account than the store knows of already changes nothing. Raises
        StorageError: this node has another store now, or it cannot be written.
        """
        mine = self._identity
        invariant(mine.formed, "stores are bound anew within a cluster")
        if readmissions <= mine.readmissions:
            return
        if stores.get(mine.node_id) != mine.store_id:
            raise StorageError(
                f"{self._backend.name} was given up: another store was admitted for node {mine.node_id!r} since; "
                "start the node with that one's directory"
            )
        bound = replace(mine, stores=dict(stores), admitted=tuple(admitted), readmissions=readmissions)
        self._bind(bound, self._incarnation)

    def condemn(self, reason: str) -> None:
        """Never let this store be opened again, because of `reason`; synced on return. Raises StorageError."""
        batch = self._backend.batch()
        batch.put(layout.CONDEMNED_KEY, layout.encode_condemned(reason))
        self._backend.write(batch)

    def load_seen(self) -> dict[NodeId, SeenRun]:
        """Return what `WriteBatch.put_seen` stored last; empty before that. Raises CorruptRecord."""
        with self._naming_damage():
            raw = self._backend.get(layout.SEEN_KEY)
            return {} if raw is None else layout.decode_seen(raw)

    def _bind(self, bound: Identity, incarnation: int) -> None:
        # The database first: a file that is ahead of its database is how a database that lost something shows.
        batch = self._backend.batch()
        batch.put(layout.IDENTITY_KEY, layout.encode_identity(bound))
        batch.put(layout.INCARNATION_KEY, layout.encode_number(layout.INCARNATION_KEY, incarnation))
        self._backend.write(batch)
        if failpoints.armed is not None:
            failpoints.armed(failpoints.BIND_BEFORE_FILE)
        self._backend.save_identity(layout.encode_identity_file(bound, incarnation, False))
        self._identity, self._incarnation = bound, incarnation

    def load_replicas(self) -> list[StoredReplica]:
        """Return all replicas, by group id, after reading and checking everything that is stored of them.

        What is left over of removed ones is passed over, and stays. Takes as long as reading the whole store. Raises
        CorruptRecord with the first thing that does not hold.
        """
        replicas, damages = self.load_sound()
        if damages:
            name = self._backend.name
            raise CorruptRecord(f"{name} is damaged: {damages[0].problem}. {ways_out(name)}")
        return replicas

    def load_sound(self) -> tuple[list[StoredReplica], list[Damage]]:
        """Return all replicas that are whole, by group id, and what is damaged or was lost of others.

        What is left over of removed ones is passed over, and stays. Takes as long as reading the whole store. Raises
        UnreadableStore where the database itself cannot be read somewhere, CorruptRecord for what concerns the store
        as a whole.
        """
        replicas: list[StoredReplica] = []
        unreadable = ""
        with self._naming_damage():
            raw = self._backend.get(layout.DAMAGE_KEY)
            damages = [] if raw is None else layout.decode_damage(raw)
            for scan in scan_replicas(self._backend, read_tombstones(self._backend)):
                if scan.unreadable:
                    unreadable = unreadable or scan.problems[0]
                elif not scan.removed and not self._lies_in_its_space(scan):
                    damages += scan.damages()
                elif not scan.removed:
                    replicas.append(scan.stored())
            unreadable = unreadable or self._unreadable_data()
        if unreadable:
            raise UnreadableStore(f"{self._backend.name} is damaged: {unreadable}. {ways_out(self._backend.name)}")
        return replicas, damages

    def _unreadable_data(self) -> str:
        """Say so if the database cannot be read where some keyspace begins. Empty: it can, there."""
        try:
            self.spaces()
        except CorruptRecord as problem:
            return f"data of state machines: {problem}"
        return ""

    def _lies_in_its_space(self, scan: ReplicaScan) -> bool:
        """Whether nothing is wrong with what was found, the keyspace of its data included."""
        applied = scan.applied
        if applied is not None and applied.space >= self._next_space:
            scan.problem(
                f"group {scan.group_id}: its data are said to lie in keyspace {applied.space}, which this store never "
                "gave out"
            )
        return not scan.problems

    def load_tombstones(self) -> dict[GroupId, Tombstone]:
        """Return the tombstone of every group of which a replica was removed here, also where a later one lives.

        Raises CorruptRecord.
        """
        with self._naming_damage():
            return read_tombstones(self._backend)

    @contextmanager
    def _naming_damage(self) -> Iterator[None]:
        """Say whose data directory is damaged, and the ways out."""
        try:
            yield
        except CorruptRecord as problem:
            name = self._backend.name
            raise CorruptRecord(f"{name} is damaged: {problem}. {ways_out(name)}") from problem

    def read_leftovers(self, group_id: GroupId, limit: int) -> list[bytes]:
        """Return keys, at most `limit`, of what is still stored of a replica that was removed; empty: nothing is."""
        tombstone, descriptor = layout.tombstone_key(group_id), layout.group_key(group_id, layout.KIND_DESCRIPTOR)
        invariant(
            self._backend.get(tombstone) is not None and self._backend.get(descriptor) is None,
            f"group {group_id}: leftovers are those of a replica that was removed, and has no successor",
        )
        return list(islice(self._backend.keys(*layout.group_span(group_id)), limit))

    def read_snapshot(self, group_id: GroupId) -> Snapshot | None:
        """Return the group's snapshot; None where there is none: no replica, or an empty one. Raises CorruptRecord."""
        raw = self._backend.get(layout.group_key(group_id, layout.KIND_SNAPSHOT))
        return None if raw is None else layout.decode_snapshot(group_id, raw)

    def read_records(self, group_id: GroupId, first: Index, last: Index, limit_bytes: int) -> list[Record]:
        """Return consecutive records that cover `first` onward, up to `last` or about `limit_bytes`; at least one.

        The first record may start before `first`, the last may end after `last`. A record that a later one
        overlaps is returned cut to what still counts. Raises CorruptRecord where one is missing or damaged.
        """
        invariant(0 < first <= last, f"read_records of group {group_id}: {first} to {last}")
        start = self._key_covering(group_id, first)
        found: list[Record] = []
        size_bytes = 0
        for key, raw in self._backend.items(start, layout.log_end_key(group_id)):
            record = layout.decode_stored_record(group_id, layout.split_key(key)[2], raw)
            if found:
                found[-1] = self._joined(group_id, found[-1], record)
            found.append(record)
            size_bytes += len(raw)
            if record.last < last and size_bytes < limit_bytes:
                continue
            # Enough, unless a later record overlaps this one; its key alone tells.
            end = self._end_of(group_id, record)
            if end < record.last:
                found[-1] = cut_record(group_id, record, record.first, end)
            if end >= last or size_bytes >= limit_bytes:
                break
        if not found or found[0].last < first:
            raise CorruptRecord(f"group {group_id}: no record holds index {first}")
        return found

    def read_term(self, group_id: GroupId, index: Index) -> Term:
        """Return the term of the stored entry at `index`. Raises CorruptRecord when there is none."""
        start, stop = layout.record_key(group_id, 0), layout.record_key(group_id, index) + b"\0"
        for key, raw in self._backend.items(start, stop, reverse=True):
            record = layout.decode_stored_record(group_id, layout.split_key(key)[2], raw)
            if record.last < index:
                break
            return record.term
        raise CorruptRecord(f"group {group_id}: no record holds index {index}")

    def read_firsts(self, group_id: GroupId, first: Index, last: Index = INDEX_MAX) -> list[Index]:
        """Return the first indexes (the keys) of all stored records from `first` to `last`, ascending."""
        keys = self._backend.keys(layout.record_key(group_id, first), layout.record_key(group_id, last) + b"\0")
        return [layout.split_key(key)[2] for key in keys]

    def new_space(self, batch: WriteBatch) -> SpaceId:
        """Return the id of a new, empty keyspace. That it was given out rides in `batch`, which must be submitted.

        The first batch that names the keyspace is that one or a later one.
        """
        space = self._next_space
        self._next_space = space + 1
        raw = cast(PartitionedBatch, batch).raw
        raw.put(layout.NEXT_SPACE_KEY, layout.encode_number(layout.NEXT_SPACE_KEY, space + 1))
        return space

    def view(self) -> PartitionedView:
        """Return reads of keyspaces and applied indexes of now. Raises StorageError once the store is closed."""
        return PartitionedView(self._backend.view())

    def batch(self) -> WriteBatch:
        """Begin a batch. Raises StorageError once `close` was called."""
        if self._closing is not None:
            raise StorageError(f"{self._backend.name}: the store is closed")
        return PartitionedBatch(self._backend.batch())

    def submit(self, batch: WriteBatch, done: Done, sync: bool = True) -> None:
        """Write and sync `batch` after all earlier ones; see ports.Store.submit.

        The error that `done` gets is a StorageError whose `__cause__` is what went wrong. Raises StorageError, itself,
        once `close` was called.
        """
        if self._closing is not None:
            raise StorageError(f"{self._backend.name}: the store is closed")
        self._backend.submit(cast(PartitionedBatch, batch).raw, done, sync)

    async def close(self) -> None:
        """Finish what was submitted, write the closing record, stop the writer, close. Idempotent.

        Reads are answered until the last completion was delivered. A caller that is cancelled does not stop it.
        After a failed write there is no closing record: the next start learns that this run did not end well.
        Raises StorageError, after closing, when the closing cannot be written down.
        """
        if self._closing is None:
            self._closing = asyncio.ensure_future(self._close())
        await asyncio.shield(self._closing)

    async def _close(self) -> None:
        record = self._backend.batch()
        record.put(layout.CLOSING_KEY, layout.encode_number(layout.CLOSING_KEY, self._incarnation))
        try:
            if failpoints.armed is not None:
                failpoints.armed(failpoints.CLOSE_BEFORE_RECORD)
            if await self._backend.finish(record):
                if failpoints.armed is not None:
                    failpoints.armed(failpoints.CLOSE_BEFORE_FILE)
                self._backend.save_identity(layout.encode_identity_file(self._identity, self._incarnation, True))
        finally:
            await self._backend.close()

    def _key_covering(self, group_id: GroupId, index: Index) -> bytes:
        """Return the key of the record that would hold `index`: the last one at or below it."""
        start, stop = layout.record_key(group_id, 0), layout.record_key(group_id, index) + b"\0"
        for key in self._backend.keys(start, stop, reverse=True):
            return key
        raise CorruptRecord(f"group {group_id}: no record holds index {index}")

    def _end_of(self, group_id: GroupId, record: Record) -> Index:
        """Return the last index of `record` that no later record replaces."""
        start = layout.record_key(group_id, record.first) + b"\0"
        for key in self._backend.keys(start, layout.record_key(group_id, record.last) + b"\0"):
            return layout.split_key(key)[2] - 1
        return record.last

    def _joined(self, group_id: GroupId, record: Record, following: Record) -> Record:
        problem = chain_problem(group_id, record, following)
        if problem:
            raise CorruptRecord(problem)
        return cut_record(group_id, record, record.first, min(record.last, following.first - 1))
