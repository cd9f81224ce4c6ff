"""Snapshots of state machines: when one is taken, what it holds, and how a machine gets one.

    data   format (1 byte) | the replicated clock, milliseconds (8 bytes, big-endian) | the rolling hash (4) |
           the session table (as SessionTable.encode) | what `Machine.snapshot` returned

A group's founding is the one snapshot without data: every machine starts there by itself.

All groups of a node share what may be sent between two beats: a quarter of one peer's outbox, by bytes, and one more. A
node that comes back after long would else have as many states read and queued for it at once as there are groups.

Rules of this file: a machine that cannot say its state, or says more than one message may carry, is told of once, and
its log grows on; one that cannot take a state halts its own replica; what a snapshot covers is never applied again.
"""

from __future__ import annotations

import logging
import struct
from typing import TYPE_CHECKING, Final, NamedTuple

from multiraft import failpoints
from multiraft.engine.replica import Replica
from multiraft.engine.sessions import SessionLoader, SessionTable
from multiraft.errors import CorruptRecord
from multiraft.raft.ready import SnapshotWrite
from multiraft.types import GroupId, Snapshot

if TYPE_CHECKING:
    from multiraft.engine.engine import Engine

_RESTORE: Final = "restore"
STATE_FORMAT: Final = 2
_HEAD: Final = struct.Struct(">BQI")
log: Final = logging.getLogger("multiraft.engine")


class Snapshotting:
    """The snapshots of one engine's replicas."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        limits = engine.limits
        self._entries = limits.snapshot_entries
        self._trailing = limits.trailing_entries
        self._most_bytes = limits.entry_bytes
        self._sendable_bytes = self._left_bytes = limits.outbox_bytes // 4
        self._held_up: set[GroupId] = set()

    # -------------------------------------------------------------------------------------------------- sending

    def opens(self, group_id: GroupId) -> bool:
        """Whether a group may send a snapshot before the next beat. One that may not is asked again then."""
        if self._left_bytes > 0:
            replica = self._engine.replicas.get(group_id)
            if replica is None or replica.data is None or self._engine.ondisk.make(replica):
                return True
        self._held_up.add(group_id)
        return False

    def passed(self, size_bytes: int) -> None:
        self._left_bytes -= size_bytes

    def tick(self) -> None:
        """A beat is due: more may be sent."""
        self._left_bytes = self._sendable_bytes
        self._engine.ondisk.tick()
        held_up, self._held_up = self._held_up, set()
        for group_id in sorted(held_up):
            replica = self._engine.replicas.get(group_id)
            if replica is not None:
                self._engine.mark(replica)

    # -------------------------------------------------------------------------------------- storing and restoring

    def open(self, replica: Replica) -> None:
        """Give the machine of a replica that has just been opened what its stored snapshot holds.

        Not where it could not be taken over before: that stays so until it is retried.
        """
        if replica.halted is not None and replica.halted.kind == _RESTORE:
            return
        if replica.data is not None:
            self._engine.ondisk.resume(replica, replica.data)
            return
        snapshot = self._engine.store.read_snapshot(replica.group_id)
        if snapshot is not None and snapshot.data:
            self._restore(replica, snapshot)

    def stored(self, replica: Replica, write: SnapshotWrite) -> None:
        """A snapshot is on disk; one that a leader sent goes to the machine now, unless a later one came after it."""
        if failpoints.armed is not None:
            failpoints.armed(failpoints.SNAPSHOT_AFTER_SAVE)
        core, snapshot = replica.core, write.snapshot
        counts = replica.applied < snapshot.index if write.adopts else core.log.start.index == snapshot.index
        if write.installs and counts:
            place = "machine's state" if write.adopts else "log"
            log.info("group %d: a snapshot of %d takes the place of the %s", replica.group_id, snapshot.index, place)
            if failpoints.armed is not None:
                failpoints.armed(failpoints.SNAPSHOT_BEFORE_RESTORE)
            replica.pass_over(snapshot.index)
            if replica.data is None:
                self._restore(replica, snapshot)
            else:
                self._engine.ondisk.installed(replica, replica.data, True)
                self._engine.containing.healed(replica, snapshot.index)
            if failpoints.armed is not None:
                failpoints.armed(failpoints.SNAPSHOT_AFTER_RESTORE)
        elif write.installs and replica.data is not None:
            self._engine.ondisk.installed(replica, replica.data, False)
        core.snapshot_stored(snapshot.index, write.adopts)
        if replica.committed > replica.applied:
            self._engine.applying.add(replica)

    def _restore(self, replica: Replica, snapshot: Snapshot) -> None:
        try:
            time_ms = value = 0
            if snapshot.data:
                saved = unpack_state(snapshot.data)
                time_ms, value = saved.time_ms, saved.hash
                replica.machine.restore(saved.state)
                replica.executor.sessions = saved.sessions
        except BaseException as problem:
            replica.halt(snapshot.index, f"restoring the snapshot of index {snapshot.index}", problem, kind=_RESTORE)
            if not isinstance(problem, Exception):
                raise
            return
        replica.restored(snapshot.index, time_ms, value)
        self._engine.containing.healed(replica, snapshot.index)

    # -------------------------------------------------------------------------------------------------- taking

    def consider(self, replica: Replica) -> None:
        """Take a snapshot if the applied log has become long enough. Called after a slice of applying."""
        applied = replica.applied
        if not self._entries or applied < replica.snapshot_due or replica.halted is not None:
            return
        if replica.data is not None:
            self._engine.ondisk.compact(replica, replica.data)
            return
        core = replica.core
        length = applied - core.log.start.index
        if length <= self._entries:
            replica.snapshot_due = core.log.start.index + self._entries + 1
        elif applied > core.snapshot_index and applied == core.applied and core.may_compact():
            data = self._take(replica)
            if data is None:
                replica.snapshot_due = applied + length  # twice as long a log until the next attempt
                return
            if failpoints.armed is not None:
                failpoints.armed(failpoints.SNAPSHOT_BEFORE_SAVE)
            with self._engine.touching(replica, self._engine.pacing.now()):
                core.compact(data, self._trailing)

    def take_now(self, replica: Replica) -> str:
        """Take a snapshot of what is applied, and keep the log as long as it is. Return why not; empty: it is taken."""
        core = replica.core
        if replica.halted is not None or replica.broken is not None:
            return "the replica there is halted itself"
        if replica.data is not None:
            return self._engine.ondisk.note_durable(replica, replica.data)
        if replica.applied != core.applied or not core.may_compact():
            return "the membership changes, or another snapshot is on its way to the disk; retry shortly"
        if core.snapshot_index == core.applied:
            return ""
        data = self._take(replica)
        if data is None:
            return f"no snapshot can be taken: {replica.snapshot_problem}"
        with self._engine.touching(replica, self._engine.pacing.now()):
            core.compact(data, core.applied)
        return ""

    def _take(self, replica: Replica) -> bytes | None:
        """Return the data of a snapshot of the machine as it is; None, having said why, where there can be none."""
        try:
            state = replica.machine.snapshot()
            data = pack_state(replica.context.time_ms, replica.executor.rolling.value, replica.executor.sessions, state)
            if len(data) <= self._most_bytes:
                return data
            problem = f"its state has {len(data)} bytes; entry_bytes allows {self._most_bytes}"
        except Exception as failure:
            problem = f"{type(failure).__name__}: {failure}"
        if replica.snapshot_problem is None:
            log.warning("group %d: no snapshot is taken, so its log grows: %s", replica.group_id, problem)
        replica.snapshot_problem = problem
        return None


class SavedState(NamedTuple):
    """What a snapshot's data holds: the replicated clock, the rolling hash, the sessions, and the machine's state."""

    time_ms: int
    hash: int
    sessions: SessionTable
    state: bytes


def pack_state(time_ms: int, rolling: int, sessions: SessionTable, state: bytes) -> bytes:
    """Return the data of a snapshot. Raises TypeError: the state is no bytes."""
    if type(state) is not bytes:
        raise TypeError(f"snapshot() returned {type(state).__name__}, not bytes")
    return b"".join((_HEAD.pack(STATE_FORMAT, time_ms, rolling), *sessions.encode(), state))


def unpack_state(data: bytes) -> SavedState:
    """Return what `pack_state` was given. Raises CorruptRecord."""
    if len(data) < _HEAD.size or data[0] != STATE_FORMAT:
        raise CorruptRecord(
            f"a snapshot's data is of format {data[:1].hex() or 'none'}; this version reads {STATE_FORMAT}"
        )
    _, time_ms, rolling = _HEAD.unpack_from(data)
    loader = SessionLoader()
    state = loader.feed(data[_HEAD.size :])
    if state is None:
        raise CorruptRecord("a snapshot's data ends within its session table")
    return SavedState(time_ms, rolling, loader.table, state)
