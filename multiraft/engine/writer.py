"""Group commit over all groups: what turns must persist gathers in one open batch while others are being synced.

The engine adds what each core asks for; `flush` submits the open batch unless enough are under way, in which case
it goes on gathering and leaves with the next completion. So one sync serves every group that wrote meanwhile.

What machines on disk have applied joins whatever batch is open. A batch that holds nothing else is not synced: its
entries are in the log, and are applied again after a loss of power. It is durable with the next synced one.

Rules of this file: batches complete in the order submitted; a promise (an `after_persist` message) is handed out only
by the completion of the batch that carries what it promises, or of the last one before it; after one failed write
nothing is ever handed out again.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterable
from typing import Final, TypeAlias

from multiraft import failpoints
from multiraft.engine.keyspace import Change, ReplicaData
from multiraft.engine.pace import Strain
from multiraft.engine.pairs import put_snapshot
from multiraft.engine.replica import Replica
from multiraft.gathered import AckRow
from multiraft.messages import RaftMessage
from multiraft.ports import Clocks, Store, WriteBatch
from multiraft.raft import Ready
from multiraft.raft.ready import SnapshotWrite
from multiraft.records import Record
from multiraft.types import Applied, Index, NodeId, ReplicaId, Term


class Persisted:
    """What one replica is to be told when the batch is on disk: the arguments of its core's `persisted`.

    snapshot  what it carried of a snapshot, if anything
    """

    __slots__ = ("index", "replica", "saved_term", "snapshot", "term")

    def __init__(
        self, replica: Replica, index: Index, term: Term, saved_term: Term, snapshot: SnapshotWrite | None
    ) -> None:
        self.replica = replica
        self.index = index
        self.term = term
        self.saved_term = saved_term
        self.snapshot = snapshot


log: Final = logging.getLogger("multiraft.engine")
Promise: TypeAlias = tuple[Replica, list[RaftMessage]]
Stored: TypeAlias = tuple[Replica, Index, Term]
"""The same of a replica whose record went the ordinary way: the end of that record, and its term."""
AckRows: TypeAlias = dict[NodeId, list[AckRow]]
"""Acknowledgements, by the node that they go to."""


class _Pending:
    """One batch, and what may happen once it is on disk."""

    __slots__ = ("acks", "batch", "began_s", "callbacks", "data", "persisted", "promises", "sync", "writes")

    def __init__(self, batch: WriteBatch) -> None:
        self.batch = batch
        self.writes = 0
        self.sync = False
        self.began_s = 0.0
        self.data: dict[ReplicaData, Applied] = {}
        self.persisted: list[Persisted | Stored] = []
        self.promises: list[Promise] = []
        self.acks: AckRows = {}
        self.callbacks: list[Callable[[], None]] = []


class LogWriter:
    """Gathers, submits and reports writes.

    on_persisted  called on the loop after each batch, with what it carried, in that order, and the promises and
                  acknowledgements that may now leave
    on_failed     called once, with the error of the first write that failed, or of what was to follow a write
    strain        how long synced writes take, for what is large and must give way to them
    """

    def __init__(
        self,
        store: Store,
        batch_bytes: int,
        writes_in_flight: int,
        clocks: Clocks,
        on_persisted: Callable[[list[Persisted | Stored], list[Promise], AckRows], None],
        on_failed: Callable[[Exception], None],
    ) -> None:
        self._store = store
        self._stopwatch = clocks.effort
        self.strain = Strain(clocks.real)
        self._batch_bytes = batch_bytes
        self._limit = writes_in_flight
        self._on_persisted = on_persisted
        self._on_failed = on_failed
        self._open: _Pending | None = None
        self._in_flight: deque[_Pending] = deque()
        self._failed = False
        # Written and not known to be durable: the latest of each.
        self._written: dict[ReplicaData, Applied] = {}
        self._busy_since_s = 0.0
        self._busy_s = 0.0
        self._window_began_s = self._stopwatch()
        self._load = 0.0

    @property
    def in_flight(self) -> int:
        return len(self._in_flight)

    @property
    def oldest(self) -> object:
        """What stands for the write that is under way longest; None when none is."""
        return self._in_flight[0] if self._in_flight else None

    @property
    def failed(self) -> bool:
        return self._failed

    def stop(self) -> None:
        """What is under way is not reported any more, and what still gathers, of which nobody was told, is dropped."""
        self._failed = True
        self._in_flight.clear()
        self._open = None

    def load(self) -> float:
        """Return the share of time, in the last second or so, in which a write was under way."""
        now_s = self._stopwatch()
        span_s = now_s - self._window_began_s
        if span_s >= 1.0:
            running_s = now_s - self._busy_since_s if self._in_flight else 0.0
            self._load = min(1.0, (self._busy_s + running_s) / span_s)
            self._window_began_s, self._busy_s = now_s, 0.0
            self._busy_since_s = now_s
        return self._load

    def add(self, replica: Replica, ready: Ready) -> list[RaftMessage]:
        """Take what `ready` must persist and promise; return the promises that need not wait for anything."""
        if self._failed:
            return []
        if not ready.writes:
            if not ready.after_persist:
                return []
            if self._open is None and not self._in_flight:
                return ready.after_persist
            pending = self._open if self._open is not None else self._in_flight[-1]
            pending.promises.append((replica, ready.after_persist))
            return []
        pending = self._gathering()
        pending.sync = True
        batch, group_id = pending.batch, replica.group_id
        if ready.deleted:
            batch.delete_records(group_id, ready.deleted)
        if ready.snapshot is not None:
            if replica.data is None:
                batch.put_snapshot(group_id, ready.snapshot.snapshot, ready.snapshot.log_start)
            else:
                put_snapshot(self._store, batch, replica.data, ready.snapshot)
        for record in ready.records:
            batch.put_record(group_id, record)
        hard_state = ready.hard_state
        if hard_state is not None:
            batch.put_hard_state(group_id, hard_state)
        if ready.membership is not None:
            batch.put_membership(group_id, ready.membership)
        pending.writes += 1
        index, term = ready.last
        saved_term = hard_state.term if hard_state is not None else 0
        pending.persisted.append(Persisted(replica, index, term, saved_term, ready.snapshot))
        if ready.after_persist:
            pending.promises.append((replica, ready.after_persist))
        if batch.size_bytes >= self._batch_bytes:
            self._submit()
        return []

    def add_ordinary(
        self,
        replica: Replica,
        record: Record,
        state: tuple[Term, ReplicaId, Index],
        node_id: NodeId | None,
        ack: AckRow | None,
    ) -> None:
        """Take a record and the hard state to be stored with it; `ack` goes to `node_id` once that is on disk."""
        if self._failed:
            return
        pending = self._open
        if pending is None:
            pending = self._open = _Pending(self._store.batch())
        pending.sync = True
        batch = pending.batch
        batch.put_step(replica.group_id, record, *state)
        pending.writes += 1
        pending.persisted.append((replica, record.last, record.term))
        if ack is not None and node_id is not None:
            rows = pending.acks.get(node_id)
            if rows is None:
                pending.acks[node_id] = [ack]
            else:
                rows.append(ack)
        if batch.size_bytes >= self._batch_bytes:
            self._submit()

    def write(self, fill: Callable[[WriteBatch], None], then: Callable[[], None], sync: bool = True) -> None:
        """Let `fill` put something else into the open batch, and call `then` once it is on disk.

        Without `sync` it is only written by then, and may not outlive a loss of power.
        """
        pending = self._gathering()
        fill(pending.batch)
        pending.sync = pending.sync or sync
        pending.writes += 1
        pending.callbacks.append(then)
        if pending.batch.size_bytes >= self._batch_bytes:
            self._submit()

    def hand_out(self, data: ReplicaData, applied: Applied, beside: Iterable[Change], then: Callable[[], None]) -> None:
        """Take what a machine on disk has changed, and that it has applied it; call `then` when it is written."""
        if self._failed:
            return
        pending = self._gathering()
        data.hand_out(pending.batch, applied, beside)
        pending.data[data] = applied
        pending.writes += 1
        pending.callbacks.append(then)
        if pending.batch.size_bytes >= self._batch_bytes:
            self._submit()

    def sync(self) -> None:
        """Have everything that was written made durable, with the next batch."""
        if not self._failed:
            self._gathering().sync = True

    def flush(self) -> None:
        """Submit the open batch, unless as many as allowed are under way."""
        if self._open is not None and len(self._in_flight) < self._limit:
            self._submit()

    def _gathering(self) -> _Pending:
        if self._open is None:
            self._open = _Pending(self._store.batch())
        return self._open

    def _submit(self) -> None:
        pending, self._open = self._open, None
        if pending is None or self._failed:
            return
        if not self._in_flight:
            self._busy_since_s = self._stopwatch()
        self._in_flight.append(pending)
        pending.began_s = self.strain.clock()
        if failpoints.armed is not None:
            failpoints.armed(failpoints.WRITE_BEFORE_SUBMIT)
        self._store.submit(pending.batch, self._done, pending.sync)

    def _done(self, error: Exception | None) -> None:
        if self._failed:
            return
        if error is not None:
            self.stop()
            self._on_failed(error)
            return
        if failpoints.armed is not None:
            failpoints.armed(failpoints.WRITE_AFTER_SYNC)
        pending = self._in_flight.popleft()
        if pending.sync:
            self.strain.noted(self.strain.clock() - pending.began_s)
        if not self._in_flight:
            self._busy_s += self._stopwatch() - self._busy_since_s
        self._note_durable(pending)
        self.flush()
        try:
            self._on_persisted(pending.persisted, pending.promises, pending.acks)
            for callback in pending.callbacks:
                callback()
        except Exception as problem:  # a failed read, or a bug: the rest of what was to follow will never come
            log.critical("what follows a write failed; this node ends", exc_info=problem)
            self.stop()
            self._on_failed(problem)

    def _note_durable(self, pending: _Pending) -> None:
        if pending.data:
            self._written.update(pending.data)
        if pending.sync and self._written:
            written, self._written = self._written, {}
            for data, applied in written.items():
                data.synced(applied)
