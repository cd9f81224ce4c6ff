"""The ports through which the engine reaches the world: store, transport, clock.

Each has a real implementation and a memory twin, verified by the same contract suite. Rules of this file:
protocols only; every method says in which order and on which thread things happen; nothing here awaits.
"""

from __future__ import annotations

from asyncio import Future
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Final, NamedTuple, Protocol

from multiraft.messages import FormingMessage, NodeMessage
from multiraft.records import Record
from multiraft.types import (
    INDEX_MAX,
    Applied,
    Damage,
    GroupId,
    Halt,
    HardState,
    Identity,
    Index,
    LogStart,
    Membership,
    NodeId,
    ReplicaDescriptor,
    ReplicaId,
    SeenRun,
    Snapshot,
    SpaceId,
    StoredReplica,
    Term,
    Tombstone,
)

Clock = Callable[[], float]
"""Seconds that never go back. In production CLOCK_BOOTTIME, which also runs while the machine sleeps."""


class Clocks(NamedTuple):
    """All the time that reaches a node.

    real    for deadlines and leases; never goes back
    wall    seconds since 1970, for the stamps that commands carry
    effort  what this process has spent: bounds a slice of applying, finds slow commands, measures load
    """

    real: Clock
    wall: Clock
    effort: Clock


# ---------------------------------------------------------------------------------------------------------- files


class SnapshotSink(Protocol):
    """A snapshot file that is being written. What was begun happens in order; every `done` is called on the loop.

    After the first error nothing more is written, and every later `done` gets that error.
    """

    @property
    def size_bytes(self) -> int:
        """How much was given to be written, what an interrupted sink had written before included."""

    def write(self, piece: bytes, done: Callable[[Exception | None], None]) -> None:
        """Write `piece` behind the rest; `done` comes when there is room for more."""

    def commit(self, done: Callable[[Exception | None], None]) -> None:
        """Sync the file and give it its name; `done(None)` once both will survive a crash."""

    def pause(self) -> None:
        """Let go of the file, and leave what is written of it for `SnapshotFiles.partial`. Idempotent."""

    def abort(self) -> None:
        """Remove what is written. Idempotent; of no effect after a commit."""


class SnapshotFiles(Protocol):
    """The snapshot files of one store. Nothing here blocks the loop; every `done` is called on it, never before return.

    A name is one of snapshot_file.file_name.
    """

    def create(self, name: str) -> SnapshotSink:
        """Begin a file. It has no size for anybody until it is committed."""
        ...

    def partial(self, name: str) -> SnapshotSink:
        """Go on with a file that was paused, or that a crash has interrupted; with an empty one where there is none.

        What a crash may have taken away is not counted.
        """
        ...

    def read(self, name: str, offset: int, size_bytes: int, done: Callable[[bytes | Exception], None]) -> None:
        """Read up to `size_bytes`; fewer at the end of the file. `done` gets NoSuchFile, StorageError otherwise."""

    def size(self, name: str) -> int:
        """Return the size of a committed file. Raises NoSuchFile."""
        ...

    def names(self) -> list[str]:
        """Return the names of all files, committed or not, ascending."""
        ...

    def delete(self, name: str) -> None:
        """Remove a file, after what is under way with it; one that is not there is no matter."""


# --------------------------------------------------------------------------------------------------------- store


class WriteBatch(Protocol):
    """Writes of any number of groups that reach the disk together or not at all."""

    @property
    def size_bytes(self) -> int:
        """An estimate of the batch's size, for capping it."""

    def put_record(self, group_id: GroupId, record: Record) -> None:
        """Store `record` under its first index, replacing what is stored there."""

    def put_step(self, group_id: GroupId, record: Record, term: Term, vote: ReplicaId, commit: Index) -> None:
        """Store `record`, and the hard state of these three, as `put_record` and `put_hard_state` would."""

    def delete_records(self, group_id: GroupId, firsts: Iterable[Index]) -> None:
        """Delete the records stored under these first indexes (a conflicting tail; names all of them)."""

    def put_hard_state(self, group_id: GroupId, hard_state: HardState) -> None: ...

    def put_membership(self, group_id: GroupId, membership: Membership) -> None:
        """Store the membership that is in effect: that of its index, which the stored commit has reached."""

    def create_replica(
        self,
        descriptor: ReplicaDescriptor,
        membership: Membership,
        hard_state: HardState,
        log_start: LogStart,
    ) -> None:
        """Store everything that a replica needs to exist. It must not vote before this is synced.

        `membership` is as of `log_start`. Above index 0 the machine's initial state is its state there: it is stored
        as the first snapshot. A tombstone of an earlier replica of the group stays. What is left over of that one
        (`Store.read_leftovers`) must have been deleted by an earlier batch, or by this one.
        """

    def put_snapshot(self, group_id: GroupId, snapshot: Snapshot, log_start: LogStart) -> None:
        """Store `snapshot` in place of the one before, and where the log starts from now on: at most at its index.

        Records that hold nothing above `log_start` may be deleted in the same batch, never earlier. A log that the
        snapshot replaces as a whole (it starts at the snapshot's index then) is deleted in the same batch.
        """

    def put_applied(self, group_id: GroupId, applied: Applied) -> None:
        """Store what the group's machine on disk has applied, and which keyspace holds its data.

        In one batch with what applying has changed there, and after the entries are on the disk.
        """

    def put_halt(self, group_id: GroupId, halt: Halt | None) -> None:
        """Store why the group's replica has stopped applying; None: it has not."""

    def put_data(self, space: SpaceId, key: bytes, value: bytes) -> None:
        """Store `value` under `key` of a keyspace. A key begins with the byte of its part (keyspace.py)."""

    def delete_data(self, space: SpaceId, key: bytes) -> None:
        """Delete `key` of a keyspace."""

    def remove_replica(self, tombstone: Tombstone) -> None:
        """Delete the group's replica, which has at most this id, and leave `tombstone` in place of an earlier one.

        Everything goes at once but the log records, of which batches on their way may bring more. When this batch is
        on disk, `Store.read_leftovers` knows all of them; until they are deleted no new replica of the group may be
        created. No later batch puts anything of this replica.
        """

    def put_damage(self, damages: Sequence[Damage]) -> None:
        """Store which replicas are lost to damage, in place of what was stored before; see `Store.load_sound`."""

    def put_seen(self, seen: Mapping[NodeId, SeenRun]) -> None:
        """Store the latest run seen of each peer's store, in place of what was stored before."""

    def delete_leftovers(self, keys: Iterable[bytes]) -> None:
        """Delete keys that `Store.read_leftovers` or `Store.read_space` has returned."""


class LogReader(Protocol):
    """Reads of one store's logs. Sees what was submitted only after its write completed."""

    def read_records(self, group_id: GroupId, first: Index, last: Index, limit_bytes: int) -> list[Record]:
        """Return consecutive records that cover `first` onward, up to `last` or about `limit_bytes`; at least one.

        The first record may start before `first`, the last may end after `last`. A record that a later one
        overlaps is returned cut to what still counts. Raises CorruptRecord where one is missing or damaged.
        """

    def read_term(self, group_id: GroupId, index: Index) -> Term:
        """Return the term of the stored entry at `index`. Raises CorruptRecord when there is none."""

    def read_firsts(self, group_id: GroupId, first: Index, last: Index = INDEX_MAX) -> list[Index]:
        """Return the first indexes (the keys) of all stored records from `first` to `last`, ascending."""

    def read_snapshot(self, group_id: GroupId) -> Snapshot | None:
        """Return the group's snapshot; None where there is none: no replica, or an empty one. Raises CorruptRecord."""


class DataReader(Protocol):
    """Reads of keyspaces, which hold the data of state machines on disk."""

    def read_data(self, space: SpaceId, key: bytes) -> bytes | None:
        """Return the value under `key`; None where there is none. Raises CorruptRecord."""

    def iterate_data(
        self, space: SpaceId, start: bytes = b"", stop: bytes | None = None, reverse: bool = False
    ) -> Iterator[tuple[bytes, bytes]]:
        """Yield the keyspace's keys and values with start <= key < stop (None: to its end), ascending or descending.

        It shows the moment of its first item. Raises CorruptRecord.
        """
        ...

    def iterate_data_keys(
        self, space: SpaceId, start: bytes = b"", stop: bytes | None = None, reverse: bool = False
    ) -> Iterator[bytes]:
        """Yield the keys alone."""
        ...

    def read_applied(self, group_id: GroupId) -> Applied | None:
        """Return what the group's machine on disk has applied; None where it has none. Raises CorruptRecord."""


class StoreView(DataReader, Protocol):
    """All reads are of the moment at which the view was made."""

    def close(self) -> None:
        """Let go of what the view holds. Idempotent."""


class Store(LogReader, DataReader, Protocol):
    """One node's durable state, partitioned by group.

    Opened by its own constructor function, which raises StorageError and its kin. From then on a failed write is
    final: its `done` gets the error, and so does every later one; nothing is acknowledged on this handle again.
    """

    @property
    def identity(self) -> Identity: ...

    @property
    def incarnation(self) -> int:
        """A counter raised, synced, at every opening; from 1. Rises once more when a node that was readmitted joins."""

    @property
    def runs(self) -> tuple[bytes, ...]:
        """What the latest runs of this store drew as their ids, oldest first; the last one is this run's."""

    @property
    def files(self) -> SnapshotFiles:
        """The snapshot files beside the database."""
        ...

    @property
    def closed_orderly(self) -> bool:
        """Whether the previous run wrote its closing record. False on the first opening, too."""

    @property
    def syncs(self) -> int:
        """How many synced writes this handle has completed."""

    @property
    def unreadable(self) -> str:
        """What of the database this handle could not read; empty: nothing. It is to be opened anew then."""

    def bind_cluster(
        self,
        cluster_id: bytes,
        stores: dict[NodeId, bytes],
        admitted: Sequence[NodeId] = (),
        readmissions: int = 0,
        generation: int = 0,
    ) -> None:
        """Make this store part of a cluster (see types.Identity); synced. Raises StorageError: it is of another one."""

    def bind_stores(self, stores: dict[NodeId, bytes], admitted: Sequence[NodeId], readmissions: int) -> None:
        """Take over which store each member has now; synced on return. What is older than what is known is passed over.

        Raises StorageError if this node has another store now.
        """

    def condemn(self, reason: str) -> None:
        """Never let this store be opened again, because of `reason`; synced on return."""

    def load_seen(self) -> dict[NodeId, SeenRun]:
        """Return what `WriteBatch.put_seen` stored last; empty before that. Raises CorruptRecord."""

    def load_replicas(self) -> list[StoredReplica]:
        """Return all replicas, checked: log start <= snapshot <= commit <= last, records chain.

        What is left over of removed ones is passed over, and stays. Raises CorruptRecord.
        """

    def load_sound(self) -> tuple[list[StoredReplica], list[Damage]]:
        """Return what `load_replicas` does, without the damaged ones; and those.

        Raises UnreadableStore where the database itself cannot be read somewhere, CorruptRecord for damage that is not
        one group's alone.
        """

    def load_tombstones(self) -> dict[GroupId, Tombstone]:
        """Return the tombstone of every group of which a replica was removed here, also where a later one lives.

        Raises CorruptRecord.
        """

    def read_leftovers(self, group_id: GroupId, limit: int) -> list[bytes]:
        """Return keys, at most `limit`, of what is still stored of a replica that was removed; empty: nothing is.

        Only for a group with a tombstone and without a replica; a crash may leave such a group, so ask for each one
        at the start, too. Sees what was submitted only after its write completed.
        """

    def new_space(self, batch: WriteBatch) -> SpaceId:
        """Return the id of a new, empty keyspace. That it was given out rides in `batch`, which must be submitted.

        The first batch that names the keyspace is that one or a later one. Never fails.
        """
        ...

    def spaces(self) -> list[SpaceId]:
        """Return the keyspaces that hold anything, ascending; one look for each. Raises CorruptRecord."""
        ...

    def read_space(self, space: SpaceId, limit: int, after: bytes = b"") -> list[bytes]:
        """Return stored keys of a keyspace, for `delete_leftovers`; at most `limit`, from the one after `after` on.

        Empty: there is nothing more.
        """
        ...

    def view(self) -> StoreView:
        """Return reads of this moment, to be closed. They show every completed write, and of those under way each as a
        whole or not at all. The store's closing closes what is left open."""
        ...

    def batch(self) -> WriteBatch: ...

    def submit(self, batch: WriteBatch, done: Callable[[Exception | None], None], sync: bool = True) -> None:
        """Write and sync `batch` after all earlier ones; then call `done(None)`, or `done(error)`, on the loop.

        Without `sync`, `done` comes when it is written: a loss of power may take it away, with all unsynced ones after
        it and none before. Nothing submitted before a synced batch can be lost once that one's `done` has come.
        Never blocks, never calls `done` before returning. Batches complete in the order submitted.
        """

    async def close(self) -> None:
        """Finish what was submitted, stop the writer, write the closing record, close. Idempotent."""


class Space(Protocol):
    """The room on the disk under a store, open or not, and a file of `ballast_bytes`, given up when it is full."""

    ballast_bytes: int

    def free_bytes(self) -> int | None:
        """Return how much may still be written; None: that cannot be told, or has no bound."""

    def opening_bytes(self) -> int:
        """Return about how much opening the store writes before it gives anything back."""

    def has_ballast(self) -> bool: ...
    def release_ballast(self) -> int:
        """Remove the ballast, and return how many bytes that has freed; 0: there was none."""

    async def keep_ballast(self, spare_bytes: int) -> None:
        """Make the ballast where it is missing, if `spare_bytes` stay free beside it."""


# ----------------------------------------------------------------------------------------------------- transport

FileSink = Callable[[bytes, Callable[[], None]], None]
"""Takes (the next piece of a file, what to call, once, now or later, when there is room for another piece)."""
Cancel = Callable[[], None]
"""Ends what it belongs to, which is not heard of again. Idempotent."""
FILE_PIECE_BYTES: Final = 64 * 1024
"""The largest piece of a file that is handed to a FileSink, or asked of a FileSource, at once."""


class FileSource(Protocol):
    """A file that is being sent to a peer."""

    @property
    def size_bytes(self) -> int:
        """Of the whole file."""

    def read(self, offset: int, size_bytes: int, done: Callable[[bytes | Exception], None]) -> None:
        """Call `done` on the loop, now or later, with exactly these bytes of the file, or what went wrong."""

    def close(self) -> None:
        """The transfer is over, whatever came of it. Called once; what is still being read is of no use any more."""


class TransportHandler(Protocol):
    """What a transport tells its node. All calls come on the loop, none before `start` returns control to it."""

    def peer_connected(self, node_id: NodeId, incarnation: int) -> None:
        """The connection that this node dialled is up: from now on `send` reaches that incarnation.

        What the handler sends during this call is the first thing the peer hears on this connection.
        """

    def peer_disconnected(self, node_id: NodeId) -> None:
        """The connection that this node dialled is gone; what was queued on it may be lost."""

    def peer_heard(self, node_id: NodeId, incarnation: int) -> None:
        """A peer has connected to this node; its messages follow. Older connections of that peer are cut off."""

    def unformed_peer(self, node_id: NodeId, store_id: bytes) -> None:
        """A connected peer does not belong to any cluster yet."""

    def messages_received(self, node_id: NodeId, incarnation: int, messages: Sequence[NodeMessage]) -> None:
        """In order of sending, per lane. Only from peers of this node's cluster."""

    def forming_received(self, node_id: NodeId, message: FormingMessage) -> None: ...

    def refused_by(self, node_id: NodeId, kind: str, why: str) -> None:
        """A peer refuses this node's hello. `kind` is short and stable, `why` a sentence.

        "incarnation": the peer has met a later run of this store than this one knows; "store": the cluster knows this
        node by another store. Both stay so.
        """

    def request_received(
        self, node_id: NodeId, method: str, body: bytes, timeout_s: float, reply: Callable[[bytes], None]
    ) -> None:
        """Call `reply` once, now or later; a reply that the peer cannot get any more is dropped."""

    def file_asked(self, node_id: NodeId, name: str, offset: int) -> FileSource:
        """Return the file of that name, which a peer wants from `offset` on; it is sent from there.

        Only peers of this node's cluster ask, while they are connected to it. Raises NoSuchFile; Overloaded: too many
        files are being sent already, the peer asks again later.
        """


class Transport(Protocol):
    """Ordered, lossy delivery of messages between nodes. Nothing here blocks or awaits but start and close."""

    async def start(self, handler: TransportHandler) -> None:
        """Listen and begin to dial all peers. Raises StartError when the address cannot be had."""

    async def close(self) -> None: ...

    def remember(self, runs: tuple[bytes, ...], seen: Mapping[NodeId, SeenRun]) -> None:
        """Before the start: the ids of this store's latest runs, and which runs of peers were met in earlier ones."""

    def seen(self) -> dict[NodeId, SeenRun]:
        """Return the latest run met of each peer's store, within this node's cluster, in earlier runs or this one."""

    def set_identity(self, identity: Identity, incarnation: int) -> None:
        """This node now belongs to a cluster, as `incarnation`: every connection is greeted anew. Or it knows of other
        stores of its peers: connections to those that were replaced end."""

    def send(self, node_id: NodeId, messages: Sequence[NodeMessage], urgent: bool) -> bool:
        """Queue messages; `urgent` ones go on the first lane, before all others. False if they were dropped.

        A peer that is not connected drops everything. Bulk messages past the outbox's bound are dropped; an
        urgent one past it closes the connection."""

    def flush(self, node_id: NodeId) -> None:
        """Write now what was sent to a peer, as far as its connection takes it; otherwise that is done soon."""

    def send_forming(self, node_id: NodeId, message: FormingMessage) -> bool: ...

    def request(self, node_id: NodeId, method: str, body: bytes, timeout_s: float) -> Future[bytes]:
        """Ask a peer. The future gets the reply's body, or Unreachable / Overloaded (it never left this node), or
        OutcomeUnknown (it left, and its answer is lost or late)."""

    def fetch(
        self,
        node_id: NodeId,
        name: str,
        offset: int,
        size_bytes: int,
        sink: FileSink,
        done: Callable[[Exception | None], None],
    ) -> Cancel:
        """Have a peer's file, which is `size_bytes` large as a whole, sent from `offset` on, beside the messages.

        `sink` gets it piece by piece, in order; the peer is held back while it does not ask for more. Then
        `done(None)`, or `done(error)`: NoSuchFile; Overloaded (the peer sends too many files already, ask again);
        InvalidRequest (it has another size); Unreachable (the peer is not connected, refused this node, fell silent,
        or the connection was lost: go on from what has come). Both are called on the loop, never before this returns,
        never after the cancel or the close of the transport.
        """

    def counters(self) -> dict[str, int]:
        """Frames and bytes sent and received, and what was dropped, by reason."""
