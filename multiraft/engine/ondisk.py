"""Machines on disk: how a replica gets its data, how what it applies reaches the disk, and how its log is kept short.

    a slice is applied ──> its writes and what is applied: one batch, not synced ──> durable with the next synced one
    the log is long ──> it starts higher, up to what is durable: the state is there already, and needs no snapshot
    a follower needs what the log has no longer ──> its leader reads the keyspace, as of one moment, into a message
    a leader has sent one ──> a fresh keyspace, and the switch to it; the old one is deleted

What is applied was in the log on this disk before, committed. So what a loss of power takes back is applied again, with
the same results. The log never starts above what is durable: an entry goes only when its effect cannot be lost.

Rules of this file: what is applied is handed out in the same turn; while a switch is on its way to the disk nothing is
applied; what the disk names is never deleted.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Final

from multiraft import failpoints
from multiraft.engine.diskfiles import DiskFiles
from multiraft.engine.keyspace import ReplicaData
from multiraft.engine.machine import Machine
from multiraft.engine.pairs import STORED
from multiraft.engine.pairstream import read_pairs
from multiraft.engine.replica import Replica
from multiraft.engine.spaces import Spaces
from multiraft.errors import CorruptRecord, StartError, StorageError
from multiraft.messages import InstallSnapshot
from multiraft.ports import LogReader, Store, WriteBatch
from multiraft.records import Record
from multiraft.snapshot_file import is_manifest
from multiraft.types import INDEX_MAX, Applied, GroupId, Index, Snapshot, StoredReplica, Term

if TYPE_CHECKING:
    from multiraft.engine.engine import Engine

log: Final = logging.getLogger("multiraft.engine")


class OnDisk:
    """The machines on disk of one engine.

    spaces  the keyspaces that are going
    files   the states that go to other nodes, and come from them
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.spaces = Spaces(engine)
        self.files = DiskFiles(engine)
        self._trailing = engine.limits.trailing_entries
        self._entries = engine.limits.snapshot_entries
        self._bytes = engine.limits.snapshot_bytes

    # ------------------------------------------------------------------------------------------- coming to be

    def draw(self, batch: WriteBatch, stored: StoredReplica) -> Applied:
        """Give a replica that is being made an empty keyspace, in the batch that makes it."""
        start = stored.log_start
        applied = Applied(start.index, start.term, 0, 0, self._engine.store.new_space(batch))
        batch.put_applied(stored.descriptor.group_id, applied)
        return applied

    def data_of(self, stored: StoredReplica, machine: Machine | None) -> ReplicaData | None:
        """Return the data of a replica that is taken up; None where its machine is in memory.

        Raises StartError when the class keeps its state elsewhere than where this replica's state is.
        """
        on_disk, applied = machine is not None and machine.data is not None, stored.applied
        if on_disk != (applied is not None):
            service, group_id = stored.descriptor.service, stored.descriptor.group_id
            was, declared = ("on disk", "in memory") if applied is not None else ("in memory", "on disk")
            raise StartError(
                f"group {group_id}: the state of service {service!r} is kept {was} here, but its class keeps it "
                f"{declared}; declare it as before, and move the state by a service of another name"
            )
        return None if applied is None else ReplicaData(stored.descriptor.group_id, self._engine.store, applied)

    def resume(self, replica: Replica, data: ReplicaData) -> None:
        """The replica goes on from what its data have; also after it halted."""
        data.failed = None
        # What is on its way to the store would be missing of what is read there: those in memory have it.
        self._take_up(replica, data, data.applied, not replica.executor.sessions.tracked)

    def _take_up(self, replica: Replica, data: ReplicaData, applied: Applied, reads: bool) -> None:
        try:
            if reads:
                replica.executor.load_beside(data.pairs_beside())
        except StorageError as problem:
            replica.halt(applied.index + 1, "reading the sessions beside its data", problem, kind="damaged")
        replica.restored(applied.index, applied.time_ms, applied.hash)

    def reader_of(self, data: ReplicaData | None) -> LogReader:
        """Return what a replica's core reads its log and its snapshot by."""
        store = self._engine.store
        return store if data is None else _Reader(store, self.files)

    # ------------------------------------------------------------------------------------------------- applying

    def waits(self, replica: Replica) -> bool:
        """Whether the replica must apply nothing now: too much of it is on its way to the disk, or a switch is."""
        data = replica.data
        return data is not None and (data.full or bool(data.installing))

    def hand_out(self, replica: Replica) -> None:
        """A slice was applied: what it has changed goes into the open batch. Raises CorruptRecord."""
        data = replica.data
        if data is None or replica.applied <= data.applied.index:
            return
        executor, index = replica.executor, replica.applied
        term = replica.core.log.term(index)
        applied = Applied(index, term, replica.context.time_ms, executor.rolling.value, data.space)
        self._engine.writer.hand_out(data, applied, executor.changes_beside(), lambda: self._written(replica, data))
        if failpoints.armed is not None:
            failpoints.armed(failpoints.DATA_HANDED_OUT)

    def _written(self, replica: Replica, data: ReplicaData) -> None:
        waited = data.full
        data.written()
        if waited and not data.full and replica.broken is None:
            self._engine.applying.add(replica)
            self._engine.wake()

    # -------------------------------------------------------------------------------------------------- the log

    def compact(self, replica: Replica, data: ReplicaData) -> None:
        """Let the log start higher, if what is applied of it has become long enough."""
        core = replica.core
        length = replica.applied - core.log.start.index
        if length <= self._entries and replica.log_bytes < self._bytes:
            replica.snapshot_due = core.log.start.index + self._entries + 1
            return
        held = self.files.held(replica)
        if held is not None and held <= core.log.start.index:
            replica.snapshot_due = replica.applied + 1 + self._entries // 4
            replica.log_bytes = 0
            return
        start = data.durable.index - min(self._trailing, length // 2)
        start = start if held is None else min(start, held)
        if start <= core.log.start.index or not self._replace(replica, data, data.durable.index - start):
            self._engine.writer.sync()
        else:
            replica.log_bytes = 0

    def _replace(self, replica: Replica, data: ReplicaData, trailing: Index) -> bool:
        core, index = replica.core, data.durable.index
        if index <= core.snapshot_index or core.membership.index > index or not core.may_compact():
            return False
        if failpoints.armed is not None:
            failpoints.armed(failpoints.SNAPSHOT_BEFORE_SAVE)
        with self._engine.touching(replica, self._engine.pacing.now()):
            core.compact(STORED, trailing, core.begin_snapshot(index))
        return True

    def note_durable(self, replica: Replica, data: ReplicaData) -> str:
        """Let the stored snapshot be of all that is durable; the log stays. Return why not yet; empty: it is."""
        core = replica.core
        if data.durable.index < data.applied.index:
            self._engine.writer.sync()
            self._engine.wake()
            return "what it has applied is on its way to the disk; retry shortly"
        if core.snapshot_index >= data.durable.index or self._replace(replica, data, core.applied):
            return ""
        return "the membership changes, or another snapshot is on its way to the disk; retry shortly"

    # --------------------------------------------------------------------------------------------- from a leader

    def takes(self, replica: Replica, message: InstallSnapshot) -> bool:
        """Whether what a leader has sent can be taken; one that cannot halts the replica."""
        data = replica.data
        if data is None or (message.index, message.index_term) in data.arriving:
            return True
        try:
            if is_manifest(message.data):
                return self.files.understands(message)
            read_pairs(message.data)
        except CorruptRecord as problem:
            if replica.halted is None:
                replica.halt(
                    replica.applied + 1, f"taking the snapshot of index {message.index}", problem, kind="restore"
                )
            return False
        return True

    def arrived(self, data: ReplicaData, applied: Applied) -> None:
        """A keyspace has been filled for the snapshot that the core is handed next."""
        self._let_go_of_arriving(data, [(applied.index, applied.term)])
        data.arriving[applied.index, applied.term] = applied

    def stepped(self, replica: Replica, data: ReplicaData) -> None:
        """The core has seen a leader's snapshot: where it did not need it, what was filled for it goes."""
        if not replica.core.takes_over:
            self._let_go_of_arriving(data, list(data.arriving))

    def _let_go_of_arriving(self, data: ReplicaData, those: list[tuple[Index, Term]]) -> None:
        for one in those:
            applied = data.arriving.pop(one, None)
            if applied is not None:
                self.spaces.delete_once_written(applied.space)

    def installed(self, replica: Replica, data: ReplicaData, counts: bool) -> None:
        """The oldest switch is on disk. `counts`: the replica goes on from it; else a later one has taken its place."""
        applied = data.installing.popleft()
        if not counts:
            self.spaces.delete_once_written(applied.space)
            return
        old = data.switch(applied)
        if failpoints.armed is not None:
            failpoints.armed(failpoints.SPACE_SWITCHED)
        self._take_up(replica, data, applied, True)
        self.spaces.delete_once_written(old)
        self._let_go_of_arriving(data, [one for one in data.arriving if one[0] <= applied.index])

    def left(self, replica: Replica) -> None:
        """The replica was removed, which is on disk: nothing names its data any more."""
        data = replica.data
        if data is not None:
            self.spaces.delete_once_written(data.space)
            self._let_go_of_arriving(data, list(data.arriving))
            for applied in data.installing:
                self.spaces.delete_once_written(applied.space)


class _Reader:
    """A LogReader whose snapshot is what was made to be sent."""

    def __init__(self, store: Store, files: DiskFiles) -> None:
        self._store = store
        self._files = files

    def read_records(self, group_id: GroupId, first: Index, last: Index, limit_bytes: int) -> list[Record]:
        return self._store.read_records(group_id, first, last, limit_bytes)

    def read_term(self, group_id: GroupId, index: Index) -> Term:
        return self._store.read_term(group_id, index)

    def read_firsts(self, group_id: GroupId, first: Index, last: Index = INDEX_MAX) -> list[Index]:
        return self._store.read_firsts(group_id, first, last)

    def read_snapshot(self, group_id: GroupId) -> Snapshot | None:
        return self._files.snapshot_of(group_id)
