"""Snapshots of state machines: when one is taken, where it stands, and how a machine gets one.

    the log is long ──> the state is taken, bit by bit, while nothing is applied to it
                    ──> small: in the database, with the new start of the log; large: a file first, then its manifest
    a leader sends one ──> its file is fetched, if it has one (fetching.py) ──> stored ──> given to the machine

A group's founding is the one snapshot without data: every machine starts there by itself. Machines on disk need no
snapshot to have a short log (ondisk.py).

All groups of a node share what may be sent between two beats: a quarter of one peer's outbox, by bytes, and one more. A
node that comes back after long would else have as many states read and queued for it at once as there are groups.

Rules of this file: a snapshot that could not be saved compacts nothing: it is told of once, and the log grows on; a
machine that cannot take a state halts its own replica; what a snapshot covers is never applied again; while a state is
taken or given nothing is applied to its machine, and all others go on.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Final

from multiraft import failpoints
from multiraft.engine.diskfiles import HELD_TIMES
from multiraft.engine.loading import Loading
from multiraft.engine.replica import Replica
from multiraft.engine.saving import Saving
from multiraft.engine.states import StateLoader, state_chunks
from multiraft.errors import CorruptRecord, NoSuchFile
from multiraft.raft.ready import SnapshotWrite
from multiraft.snapshot_file import MEMORY, decode_manifest, file_name, is_manifest
from multiraft.types import GroupId, Index, Snapshot

if TYPE_CHECKING:
    from multiraft.engine.engine import Engine

_RESTORE: Final = "restore"
_DAMAGED: Final = "damaged"
_STATE_SHARE: Final = 4
"""No snapshot before the log since the last one is this part of what that one took."""
_TOKENS: Final = 1 << 32
_LONG: Final = 4
"""A log that is so many times too long is replaced, however large the state is."""
log: Final = logging.getLogger("multiraft.engine")


class Snapshotting:
    """The snapshots of one engine's replicas."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        limits = engine.limits
        self._entries = limits.snapshot_entries
        self._bytes = limits.snapshot_bytes
        self._trailing = limits.trailing_entries
        self._held_entries = HELD_TIMES * limits.snapshot_entries
        self._inline_bytes = min(limits.snapshot_inline_bytes, limits.entry_bytes)
        self._slice_s = limits.apply_slice_ms / 1e3
        self._sendable_bytes = self._left_bytes = limits.outbox_bytes // 4
        self._held_up: set[GroupId] = set()
        self._taking: deque[Replica] = deque()

    # -------------------------------------------------------------------------------------------------- sending

    def opens(self, group_id: GroupId) -> bool:
        """Whether a group may send a snapshot before the next beat. One that may not is asked again then."""
        if self._left_bytes > 0:
            replica = self._engine.replicas.get(group_id)
            if replica is None or replica.data is None or self._engine.ondisk.files.make(replica):
                return True
        self._held_up.add(group_id)
        return False

    def passed(self, size_bytes: int) -> None:
        self._left_bytes -= size_bytes

    def tick(self) -> None:
        """A beat is due: more may be sent."""
        self._left_bytes = self._sendable_bytes
        self._engine.ondisk.files.tick(self._engine.pacing.now())
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
        snapshot = None
        if replica.data is None:
            snapshot = self._engine.store.read_snapshot(replica.group_id)
            self._engine.shelving.opened(replica, snapshot)
        if replica.halted is not None and replica.halted.kind == _RESTORE:
            return
        if replica.data is not None:
            self._engine.ondisk.resume(replica, replica.data)
            return
        if snapshot is not None and snapshot.data:
            replica.applied = 0  # until it has the state: nobody may be answered from an empty one
            self._restore(replica, snapshot, lambda: self._engine.applying.add(replica))

    def stored(self, replica: Replica, write: SnapshotWrite) -> None:
        """A snapshot is on disk; one that a leader sent goes to the machine now, unless a later one came after it."""
        if failpoints.armed is not None:
            failpoints.armed(failpoints.SNAPSHOT_AFTER_SAVE)
        core, snapshot = replica.core, write.snapshot
        if replica.data is None:
            self._engine.shelving.stored(replica, snapshot)
        elif write.installs:  # it is in the keyspace
            self._engine.shelving.unwanted(snapshot.data)
        counts = replica.applied < snapshot.index if write.adopts else core.log.start.index == snapshot.index
        done = partial(self._in_place, replica, snapshot.index, write.adopts)
        if not write.installs:
            done()
        elif replica.data is not None:
            if counts:
                self._say_installs(replica, write)
            self._engine.ondisk.installed(replica, replica.data, counts)
            if counts:
                self._engine.containing.healed(replica, snapshot.index)
            done()
        elif counts:
            self._say_installs(replica, write)
            self._restore(replica, snapshot, done)
        else:
            done()

    def _say_installs(self, replica: Replica, write: SnapshotWrite) -> None:
        place, index = "machine's state" if write.adopts else "log", write.snapshot.index
        log.info("group %d: a snapshot of %d takes the place of the %s", replica.group_id, index, place)
        if failpoints.armed is not None:
            failpoints.armed(failpoints.SNAPSHOT_BEFORE_RESTORE)
        replica.pass_over(index)

    def _in_place(self, replica: Replica, index: Index, adopts: bool) -> None:
        """What was stored has been dealt with."""
        with self._engine.touching(replica, self._engine.pacing.now()):
            replica.core.snapshot_stored(index, adopts)
        if replica.committed > replica.applied:
            self._engine.applying.add(replica)
            self._engine.wake()

    def _restore(self, replica: Replica, snapshot: Snapshot, done: Callable[[], None]) -> None:
        """Give the machine what `snapshot` holds, at once or bit by bit; then call `done`."""
        self._stop_saving(replica)
        older, replica.loading = replica.loading, None
        if older is not None:
            older.stop()
            older.then()
        loader = StateLoader(replica.executor)
        ended = partial(self._restored, replica, snapshot.index, loader, done)
        try:
            if is_manifest(snapshot.data):
                engine = self._engine
                manifest = decode_manifest(snapshot.data)
                replica.saved_bytes = manifest.raw_bytes
                effort = engine.clocks.effort
                replica.loading = Loading(
                    engine.store.files, manifest, loader.feed, ended, engine.loop, effort, self._slice_s, done
                )
                replica.loading.begin()
                return
            if snapshot.data:
                loader.feed(snapshot.data)
                loader.finish()
        except BaseException as problem:
            ended(problem)
            if not isinstance(problem, Exception):
                raise
            return
        self._has(replica, snapshot.index, loader)
        done()

    def _restored(
        self,
        replica: Replica,
        index: Index,
        loader: StateLoader,
        done: Callable[[], None],
        problem: BaseException | None,
    ) -> None:
        """A machine was given its state, or could not be."""
        replica.loading = None
        if self._engine.replicas.get(replica.group_id) is not replica or replica.broken is not None:
            return
        if problem is None:
            try:
                loader.finish()
            except BaseException as failure:
                problem = failure
        if problem is None:
            self._has(replica, index, loader)
        else:
            kind = _DAMAGED if isinstance(problem, CorruptRecord | NoSuchFile) else _RESTORE
            replica.halt(index, f"restoring the snapshot of index {index}", problem, kind=kind)
        done()

    def _has(self, replica: Replica, index: Index, loader: StateLoader) -> None:
        replica.restored(index, loader.time_ms, loader.hash)
        self._engine.containing.healed(replica, index)
        if failpoints.armed is not None:
            failpoints.armed(failpoints.SNAPSHOT_AFTER_RESTORE)

    # -------------------------------------------------------------------------------------------------- taking

    @property
    def pending(self) -> bool:
        """Whether there is a state of which more can be taken now."""
        if self._engine.ondisk.files.pending:
            return True
        taking = self._taking
        return bool(taking) and any(replica.saving is not None and not replica.saving.waits for replica in taking)

    def run(self) -> None:
        """Take of the states that are being taken, for one slice in all, each in its turn."""
        self._engine.ondisk.files.run()
        stopwatch = self._engine.clocks.effort
        until_s = stopwatch() + self._slice_s
        for _ in range(len(self._taking)):
            replica = self._taking.popleft()
            saving = replica.saving
            if saving is None:
                continue
            was_taken = saving.taken
            if was_taken:
                continue
            saving.take(until_s, stopwatch)
            if saving.taken:
                self._engine.applying.add(replica)
            else:
                self._taking.append(replica)
            if stopwatch() >= until_s:
                return

    def consider(self, replica: Replica) -> None:
        """Take a snapshot if the applied log has become long enough. Called after a slice of applying."""
        applied = replica.applied
        if applied < replica.snapshot_due and replica.log_bytes < self._bytes:
            return
        if not self._entries or replica.halted is not None or replica.saving is not None:
            return
        if replica.data is not None:
            self._engine.ondisk.compact(replica, replica.data)
            return
        core = replica.core
        length = applied - core.log.start.index
        if length <= self._entries and replica.log_bytes < self._bytes:
            replica.snapshot_due = core.log.start.index + self._entries + 1
        elif self._may_wait(replica, length) and not self._engine.shelving.lost(replica):
            replica.snapshot_due = applied + 1 + self._entries // 4
        elif applied > core.snapshot_index and applied == core.applied and core.may_compact():
            self._begin(replica, min(self._trailing, length // 2))

    def _may_wait(self, replica: Replica, length: int) -> bool:
        """Whether a log of that length can stay: a follower needs it, or the state is too large to be written yet."""
        awaited = replica.core.awaited
        if awaited and replica.applied - awaited <= self._held_entries:
            return True
        return replica.log_bytes < replica.saved_bytes // _STATE_SHARE and length <= _LONG * self._entries

    def take_now(self, replica: Replica) -> str:
        """Take a snapshot of what is applied; the log stays. Return why not yet; empty: it is there."""
        core = replica.core
        if replica.halted is not None or replica.broken is not None:
            return "the replica there is halted itself"
        if replica.data is not None:
            return self._engine.ondisk.note_durable(replica, replica.data)
        under_way = replica.saving
        if under_way is not None:
            return "a snapshot is being taken; retry shortly"
        if replica.applied != core.applied or not core.may_compact():
            return "the membership changes, or another snapshot is on its way to the disk; retry shortly"
        if core.snapshot_index == core.applied:
            return ""
        self._begin(replica, core.applied)
        if replica.saving is not None:
            return "a snapshot is being taken; retry shortly"
        if core.may_compact():  # nothing is on its way to the disk
            return f"no snapshot can be taken: {replica.snapshot_problem}"
        return ""

    def _begin(self, replica: Replica, trailing: Index) -> None:
        """Begin to take a snapshot of what is applied; a small one is complete by the return."""
        engine, executor, time_ms = self._engine, replica.executor, replica.context.time_ms
        begun = replica.core.begin_snapshot()
        name = file_name(replica.group_id, begun.index, int(engine.rng.random() * _TOKENS))
        replica.saving = saving = Saving(
            engine.store.files,
            name,
            state_chunks(executor, time_ms),
            self._inline_bytes,
            (begun.index, time_ms, executor.rolling.value, MEMORY),
            engine.wake,
            partial(self._saved, replica, begun, replica.log_bytes, trailing),
        )
        stopwatch = engine.clocks.effort
        saving.take(stopwatch() + self._slice_s, stopwatch)
        if not saving.taken:
            self._taking.append(replica)
            engine.wake()

    def _saved(
        self, replica: Replica, begun: Snapshot, log_bytes: int, trailing: Index, outcome: bytes | Exception
    ) -> None:
        """A state is saved, or could not be: only now may the log go."""
        engine, core = self._engine, replica.core
        replica.saving = None
        if engine.replicas.get(replica.group_id) is not replica or replica.broken is not None:
            return
        engine.applying.add(replica)
        if isinstance(outcome, Exception):
            problem = f"{type(outcome).__name__}: {outcome}"
            if replica.snapshot_problem is None:
                log.warning("group %d: no snapshot is taken, so its log grows: %s", replica.group_id, problem)
            replica.snapshot_problem = problem
            # twice as long a log until the next attempt
            replica.snapshot_due = begun.index + max(1, begun.index - core.log.start.index)
            replica.log_bytes = 0
            return
        replica.snapshot_problem = None
        if not core.may_store(begun.index):  # a leader's snapshot has overtaken it
            engine.shelving.unwanted(outcome)
            return
        if failpoints.armed is not None:
            failpoints.armed(failpoints.SNAPSHOT_BEFORE_SAVE)
        replica.log_bytes -= log_bytes
        replica.saved_bytes = decode_manifest(outcome).raw_bytes if is_manifest(outcome) else len(outcome)
        engine.shelving.coming(replica, outcome)
        with engine.touching(replica, engine.pacing.now()):
            core.compact(outcome, trailing, begun)

    def _stop_saving(self, replica: Replica) -> None:
        if replica.saving is not None:
            replica.saving.stop()
            replica.saving = None

    def left(self, replica: Replica) -> None:
        """The replica lives here no longer."""
        self._engine.ondisk.files.left(replica)
        self._stop_saving(replica)
        if replica.loading is not None:
            replica.loading.stop()
            replica.loading = None
