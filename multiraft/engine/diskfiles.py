"""The states of machines on disk on their way to other nodes, and from them: made when needed, taken in bit by bit.

    a follower needs what the log no longer has ──> the keyspace as of one moment ──> saved, a slice of a turn at a time
        ──> few bytes: sent as they are; many: a file, of which what is sent names the digest
    a leader's file has come ──> read, a slice at a time, into a fresh keyspace ──> the core is handed the snapshot
        ──> one synced batch switches to it

Until a follower has taken in what was made, it needs the log from there on. So the log does not start higher meanwhile;
but it grows no longer than some times what it is allowed to be, or a follower that is too slow would fill the disk.

Rules of this file: commands go on while a state is made or taken in; what is made is of one moment, an applied entry
and the membership as of there; nothing reaches a core before all of it is verified and in the store.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING, Final

from multiraft import failpoints
from multiraft.engine.filling import Filling
from multiraft.engine.keyspace import ReplicaData
from multiraft.engine.loading import Loading
from multiraft.engine.pace import SHORT_BURST_S, Pace
from multiraft.engine.pairstream import CHUNK_BYTES, PairLoader, pair_chunks
from multiraft.engine.replica import Replica
from multiraft.engine.saving import Saving
from multiraft.errors import CorruptRecord, NoSuchFile
from multiraft.messages import InstallSnapshot
from multiraft.ports import StoreView
from multiraft.snapshot_file import DISK, Manifest, decode_manifest, file_name, is_manifest
from multiraft.types import GroupId, Index, Snapshot

if TYPE_CHECKING:
    from multiraft.engine.engine import Engine

_KEPT_TIMEOUTS: Final = 10
"""What was made stays for so many election timeouts after it was last sent."""
HELD_TIMES: Final = 16
"""The log is held for a follower until it is so many times as long as it should be."""
_TOKEN_BITS: Final = 32
log: Final = logging.getLogger("multiraft.engine")


class _Making:
    """A state that is being made. begun: what it is of, without its data; rests: no more of it is taken for a while."""

    def __init__(self, replica: Replica, view: StoreView, begun: Snapshot, chunks: Iterator[bytes]) -> None:
        self.replica = replica
        self.view = view
        self.begun = begun
        self.chunks = chunks
        self.saving: Saving | None = None
        self.rests = False


class _Made:
    """One that was made. used_s: when it was last sent, on the patience clock; name: of its file, empty without one."""

    def __init__(self, replica: Replica, snapshot: Snapshot, used_s: float) -> None:
        self.replica = replica
        self.snapshot = snapshot
        self.used_s = used_s
        self.name = decode_manifest(snapshot.data).name if is_manifest(snapshot.data) else ""


class _TakingIn:
    """A leader's file that is being read into a keyspace.

    told_s  when its sender was last told that it lasts
    rests   no more of it is fed for a while
    """

    def __init__(self, replica: Replica, message: InstallSnapshot, manifest: Manifest, told_s: float) -> None:
        self.replica = replica
        self.message = message
        self.manifest = manifest
        self.told_s = told_s
        self.rests = False
        self.loader = PairLoader(manifest.raw_bytes)
        self.filling: Filling | None = None
        self.loading: Loading | None = None

    def stop(self) -> None:
        if self.loading is not None:
            self.loading.stop()
        if self.filling is not None:
            self.filling.abandon()


class DiskFiles:
    """The states of machines on disk that one engine makes for others, and takes in."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        limits = engine.limits
        self._inline_bytes = min(limits.snapshot_inline_bytes, limits.entry_bytes)
        self._slice_s = limits.apply_slice_ms / 1e3
        self._timeout_s = limits.election_timeout_ms / 1e3
        self._most = limits.snapshot_transfers
        self._pace_of_making = Pace(limits.snapshot_bytes_per_s, engine.writer.strain, SHORT_BURST_S)
        self._pace_of_taking = Pace(limits.snapshot_bytes_per_s, engine.writer.strain, SHORT_BURST_S)
        self._held_entries = HELD_TIMES * limits.snapshot_entries
        self._making: dict[GroupId, _Making] = {}
        self._made: dict[GroupId, _Made] = {}
        self._due_s: dict[GroupId, float] = {}
        self._taking_in: dict[GroupId, _TakingIn] = {}

    # -------------------------------------------------------------------------------------------------- what is here

    def snapshot_of(self, group_id: GroupId) -> Snapshot | None:
        """Return what was made of a group's state and can be sent; None: nothing."""
        made = self._made.get(group_id)
        return None if made is None else made.snapshot

    def held(self, replica: Replica) -> Index | None:
        """Return the entry above which the replica's log must not start, for somebody may need what follows it."""
        making, made = self._making.get(replica.group_id), self._made.get(replica.group_id)
        indexes = [replica.core.awaited] if replica.core.awaited else []
        if making is not None:
            indexes.append(making.begun.index)
        if made is not None and self._engine.pacing.now() - made.used_s < self._timeout_s:  # on its way to be sent
            indexes.append(made.snapshot.index)
        held = min(indexes, default=None)
        return held if held is not None and replica.core.last_index - held <= self._held_entries else None

    def wants(self, name: str) -> bool:
        """Whether the file of that name is being made, sent, or taken in."""
        return (
            any(making.saving is not None and making.saving.name == name for making in self._making.values())
            or any(made.name == name for made in self._made.values())
            or any(taking.manifest.name == name for taking in self._taking_in.values())
        )

    # -------------------------------------------------------------------------------------------------------- making

    def make(self, replica: Replica) -> bool:
        """Make what a follower needs that the log cannot help; return whether it is here. Asked again, it goes on."""
        engine, group_id, now = self._engine, replica.group_id, self._engine.pacing.now()
        made = self._made.get(group_id)
        if made is not None and self._will_do(made):
            made.used_s = now
            return True
        if made is not None:
            self._drop(made)
        stored = engine.store.read_snapshot(group_id)
        if stored is None:
            return False
        if not stored.data:  # the founding
            self._made[group_id] = _Made(replica, stored, now)
            return True
        may_begin = group_id not in self._making and len(self._making) < self._most
        if may_begin and now >= self._due_s.get(group_id, now):
            self._begin(replica)
        return group_id in self._made

    def _will_do(self, made: _Made) -> bool:
        """Whether what was made is new enough, or so far on its way that a new one would come later."""
        index, core = made.snapshot.index, made.replica.core
        if index < core.log.start.index:
            return False
        return index >= core.snapshot_index or bool(made.name and self._engine.transfers.protects(made.name))

    def _begin(self, replica: Replica) -> None:
        engine, group_id, core = self._engine, replica.group_id, replica.core
        view = engine.store.view()
        applied = view.read_applied(group_id)
        # The membership in effect is that of `applied`, unless it took effect after it.
        if applied is None or not max(core.membership.index, core.log.start.index) <= applied.index:
            view.close()
            return
        begun = Snapshot(applied.index, applied.term, core.membership)
        chunks = pair_chunks(applied.time_ms, applied.hash, view.iterate_data(applied.space))
        making = self._making[group_id] = _Making(replica, view, begun, chunks)
        making.saving = Saving(
            engine.store.files,
            file_name(group_id, applied.index, engine.rng.getrandbits(_TOKEN_BITS)),
            chunks,
            self._inline_bytes,
            (applied.index, applied.time_ms, applied.hash, DISK),
            engine.wake,
            partial(self._saved, making),
        )
        self._take(making, engine.clocks.effort() + self._slice_s)
        engine.wake()

    @property
    def pending(self) -> bool:
        """Whether there is something of which more can be taken now."""
        return bool(self._making) and any(_can_go_on(making) for making in self._making.values())

    def run(self) -> None:
        """Take of what is being made, for one slice in all; each in its turn goes first."""
        until_s = self._engine.clocks.effort() + self._slice_s
        for group_id, making in list(self._making.items()):
            if _can_go_on(making):
                if len(self._making) > 1:
                    self._making[group_id] = self._making.pop(group_id)
                self._take(making, until_s)
                if self._engine.clocks.effort() >= until_s:
                    return

    def _take(self, making: _Making, until_s: float) -> None:
        saving = making.saving
        if saving is not None:
            taken_bytes = saving.take(until_s, self._engine.clocks.effort, CHUNK_BYTES)
            if saving.taken:
                self._close(making)
                return
            rest_s = self._pace_of_making.take(taken_bytes)
            if rest_s > 0:
                making.rests = True
                self._engine.loop.call_later(rest_s, self._rested, making)

    def _rested(self, making: _Making) -> None:
        making.rests = False
        self._engine.wake()

    def _close(self, making: _Making) -> None:
        """All that is needed of the view was read."""
        close = getattr(making.chunks, "close", None)
        if close is not None:
            close()
        making.view.close()

    def _saved(self, making: _Making, outcome: bytes | Exception) -> None:
        engine, replica, begun = self._engine, making.replica, making.begun
        self._close(making)
        del self._making[replica.group_id]
        if isinstance(outcome, Exception):
            log.warning("group %d: a follower cannot be sent the state yet: %s", replica.group_id, outcome)
            replica.snapshot_problem = f"{type(outcome).__name__}: {outcome}"
            self._due_s[replica.group_id] = engine.pacing.now() + self._timeout_s
            return
        self._due_s.pop(replica.group_id, None)
        replica.snapshot_problem = None
        if failpoints.armed is not None:
            failpoints.armed(failpoints.DATA_FILE_MADE)
        snapshot = Snapshot(begun.index, begun.term, begun.membership, outcome)
        self._made[replica.group_id] = _Made(replica, snapshot, engine.pacing.now())
        engine.mark(replica)  # whoever waits for it is sent it

    def _drop(self, made: _Made) -> None:
        del self._made[made.replica.group_id]
        if made.name:
            self._engine.store.files.delete(made.name)

    # ----------------------------------------------------------------------------------------------------- taking in

    def understands(self, message: InstallSnapshot) -> bool:
        """Return True for a manifest of a file that a machine on disk can take in. Raises CorruptRecord."""
        manifest = decode_manifest(message.data)
        if manifest.kind != DISK:
            raise CorruptRecord(
                f"a snapshot file holds a state of kind {manifest.kind!r}; a machine on disk takes {DISK!r}. The "
                "leader's machine may be one in memory: declare the service alike on all nodes"
            )
        return True

    def take_in(self, replica: Replica, data: ReplicaData, message: InstallSnapshot) -> None:
        """A leader's file is here, whole: put it into a fresh keyspace, then let the core have the message.

        The same one again changes nothing but whose message it is.
        """
        engine, group_id, now = self._engine, replica.group_id, self._engine.pacing.now()
        manifest = decode_manifest(message.data)
        older = self._taking_in.get(group_id)
        if older is not None and older.replica is replica and older.manifest.name == manifest.name:
            older.message = message
            return
        if older is not None:
            older.stop()
        taking = self._taking_in[group_id] = _TakingIn(replica, message, manifest, now)
        filling = taking.filling = Filling(engine, data, lambda: self._go_on(taking))
        taking.loading = Loading(
            engine.store.files,
            manifest,
            partial(self._feed, taking, filling),
            partial(self._was_read, taking, filling),
            engine.loop,
            engine.clocks.effort,
            self._slice_s,
        )
        taking.loading.begin()

    def _feed(self, taking: _TakingIn, filling: Filling, chunk: bytes) -> None:
        filling.feed(taking.loader.feed(chunk))
        rest_s = self._pace_of_taking.take(len(chunk))
        if rest_s > 0:
            taking.rests = True
            self._engine.loop.call_later(rest_s, self._rested_taking, taking)
        if (taking.rests or not filling.room) and taking.loading is not None:
            taking.loading.hold()

    def _rested_taking(self, taking: _TakingIn) -> None:
        taking.rests = False
        self._go_on(taking)

    def _go_on(self, taking: _TakingIn) -> None:
        """There may be room again, and a rest may be over."""
        if taking.loading is not None and taking.filling is not None and taking.filling.room and not taking.rests:
            taking.loading.go_on()

    def _was_read(self, taking: _TakingIn, filling: Filling, problem: BaseException | None) -> None:
        replica, message, loader = taking.replica, taking.message, taking.loader
        if problem is None:
            try:
                loader.finish()
            except CorruptRecord as failure:
                problem = failure
        if problem is None:
            filling.finish(
                message.index, message.index_term, loader.time_ms, loader.hash, partial(self._filled, taking)
            )
            return
        del self._taking_in[replica.group_id]
        filling.abandon()
        text = "group %d: snapshot file %s cannot be taken in: %s; its leader will send it again"
        log.warning(text, replica.group_id, taking.manifest.name, problem)
        if isinstance(problem, CorruptRecord | NoSuchFile):
            self._engine.store.files.delete(taking.manifest.name)

    def _filled(self, taking: _TakingIn) -> None:
        """All of it is in the store: the core decides whether the replica is switched to it."""
        engine, replica = self._engine, taking.replica
        del self._taking_in[replica.group_id]
        data = replica.data
        if engine.replicas.get(replica.group_id) is not replica or replica.broken is not None or data is None:
            return
        now = engine.pacing.now()
        with engine.touching(replica, now):
            replica.core.step(taking.message, now)
        engine.ondisk.stepped(replica, data)

    # --------------------------------------------------------------------------------------------------- time, ends

    def tick(self, now: float) -> None:
        """A beat is due: what nobody has asked for lately goes; leaders are told that it lasts."""
        for made in list(self._made.values()):
            kept_s = _KEPT_TIMEOUTS * self._timeout_s if made.name else 0.0
            sent = made.name and self._engine.transfers.protects(made.name)
            if made.replica.core.awaited == made.snapshot.index:
                made.used_s = now
            useless = made.snapshot.index < made.replica.core.log.start.index
            if not sent and (useless or now - made.used_s >= kept_s):
                self._drop(made)
        for taking in list(self._taking_in.values()):
            replica, message = taking.replica, taking.message
            if replica.core.commit >= message.index and not replica.core.needs(message):
                del self._taking_in[replica.group_id]
                taking.stop()
            elif now - taking.told_s >= self._timeout_s:
                taking.told_s = now
                with self._engine.touching(replica, now):
                    replica.core.report_install(message, gone=False)

    def left(self, replica: Replica) -> None:
        """The replica lives here no longer."""
        making, made = self._making.get(replica.group_id), self._made.get(replica.group_id)
        taking = self._taking_in.get(replica.group_id)
        if making is not None and making.replica is replica:
            del self._making[replica.group_id]
            self._stop(making)
        if made is not None and made.replica is replica:
            self._drop(made)
        if taking is not None and taking.replica is replica:
            del self._taking_in[replica.group_id]
            taking.stop()

    def stop(self) -> None:
        """The engine ends. What is half made or half taken in is of no use to the next run."""
        for making in self._making.values():
            self._stop(making)
        for taking in self._taking_in.values():
            if taking.loading is not None:
                taking.loading.stop()
        self._making.clear()
        self._taking_in.clear()

    def _stop(self, making: _Making) -> None:
        if making.saving is not None:
            making.saving.stop()
        self._close(making)


def _can_go_on(making: _Making) -> bool:
    saving = making.saving
    return saving is not None and not (saving.taken or saving.waits or making.rests)
