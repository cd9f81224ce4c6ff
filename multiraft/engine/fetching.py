"""Files of snapshots that this node fetches: a snapshot's message waits here until its state is on this disk, verified.

    message ──> waiting ──> fetching ──> checking its digest ──> handed to the core, which installs it
                   ^            │               │
                   └─ cut off, ─┘               └─ wrong: fetched anew
                      or its owner is busy

What has come stays, in a partial file, and the next attempt goes on after it: also that of a later run of this node,
when the leader has sent the message again. The leader is told, once an election timeout, that it must be patient; where
its node has the file no more, it is told at once, and sends its newest snapshot. While attempts fail it is told
nothing: it asks, by sending the snapshot again, until it no longer leads or this replica has what it needs.

Rules of this file: one file a group, that of the newest message; a repeated message changes nothing but who sent it; at
most `snapshot_transfers` at once, together at most `snapshot_bytes_per_s`; nothing reaches a core but with its file.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from enum import Enum
from hashlib import blake2b
from typing import TYPE_CHECKING, Any, Final

from multiraft.engine.pace import SHORT_BURST_S, Pace
from multiraft.engine.replica import Replica
from multiraft.errors import CorruptRecord, InvalidRequest, MultiRaftError, NoSuchFile, Overloaded
from multiraft.messages import InstallSnapshot
from multiraft.ports import Cancel, SnapshotFiles, SnapshotSink, Transport
from multiraft.snapshot_file import DIGEST_BYTES, Manifest, decode_manifest, is_manifest
from multiraft.types import GroupId, NodeId

if TYPE_CHECKING:
    from multiraft.engine.engine import Engine

_RETRY_MOST_TIMEOUTS: Final = 8
"""Failed attempts follow each other in a tenth of an election timeout, then twice that, and so on up to this."""
_CHECKED_BYTES: Final = 256 * 1024
_CHECKED_FASTER: Final = 4
"""What was fetched is read back so many times as fast as it may be fetched."""
log: Final = logging.getLogger("multiraft.engine")


class Stage(Enum):
    WAITING = "waiting"
    FETCHING = "fetching"
    CHECKING = "checking"
    WHOLE = "whole"


class Fetch:
    """The file of one group's snapshot.

    message, node_id  the snapshot, and where its sender lives
    received          bytes of it that are on this disk, as far as has been asked for in this run
    due_s             no attempt before this, on the patience clock
    failures          attempts in a row that brought nothing
    problem           why the latest attempt failed; None while none has
    attempt           counts attempts, so that what still comes of an earlier one is known for it
    """

    def __init__(self, replica: Replica, node_id: NodeId, message: InstallSnapshot, manifest: Manifest) -> None:
        self.replica = replica
        self.node_id = node_id
        self.message = message
        self.manifest = manifest
        self.stage = Stage.WAITING
        self.received = 0
        self.due_s = 0.0
        self.failures = 0
        self.problem: str | None = None
        self.attempt = 0
        self.partial: SnapshotSink | None = None
        self.cancel: Cancel | None = None
        self.told_s = 0.0

    @property
    def group_id(self) -> GroupId:
        return self.replica.group_id

    @property
    def name(self) -> str:
        return self.manifest.name


class Fetching:
    """The files on their way to one engine's node.

    counters  "snapshots_fetched", and what failed: "fetch_failures", "fetch_wrong_digest", "fetch_gone"
    """

    def __init__(self, engine: Engine, files: SnapshotFiles, transport: Transport) -> None:
        self._engine = engine
        self._files = files
        self._transport = transport
        self._timeout_s = engine.limits.election_timeout_ms / 1e3
        self._pace = Pace(engine.limits.snapshot_bytes_per_s, engine.writer.strain)
        self._checking = Pace(_CHECKED_FASTER * engine.limits.snapshot_bytes_per_s, engine.writer.strain, SHORT_BURST_S)
        self._fetches: dict[GroupId, Fetch] = {}
        # What cores were given whose snapshots are not on disk yet.
        self._installing: dict[GroupId, Fetch] = {}
        self._stopped = False
        self.counters = {"snapshots_fetched": 0, "fetch_failures": 0, "fetch_wrong_digest": 0, "fetch_gone": 0}

    # ------------------------------------------------------------------------------------------ what the engine says

    def takes(self, replica: Replica, node_id: NodeId, message: InstallSnapshot, now: float) -> bool:
        """Whether `message` of a replica on `node_id` must wait for its file: then it reaches the core from here.

        Raises InvariantViolation, CorruptRecord: what the core makes of it.
        """
        core = replica.core
        if not is_manifest(message.data) or message.term < core.term or not core.needs(message):
            return False
        try:
            manifest = decode_manifest(message.data)
        except CorruptRecord as problem:
            self.counters["fetch_failures"] += 1
            log.warning("group %d: node %s sends a snapshot that is of no use: %s", replica.group_id, node_id, problem)
            return True
        core.await_state(message, now)
        fetch = self._fetches.get(replica.group_id)
        if fetch is None or fetch.replica is not replica or fetch.name != manifest.name:
            if fetch is not None:
                self._drop(fetch)
            fetch = self._fetches[replica.group_id] = Fetch(replica, node_id, message, manifest)
            self._engine.shelving.sweep_soon()  # what an earlier run has left of others is of no use now
            text = "group %d: the state of the snapshot of index %d, %d bytes, is fetched from node %s"
            log.info(text, replica.group_id, message.index, manifest.size_bytes, node_id)
        fetch.message, fetch.node_id, fetch.told_s = message, node_id, now
        if fetch.stage is Stage.WHOLE:
            self._hand_over(fetch)
        self._start_what_may(now)
        return True

    def tick(self, now: float) -> None:
        """Once a beat: forget what is of no use, go on with what waits, tell leaders that it lasts."""
        for fetch in list(self._fetches.values()):
            if self._useless(fetch):
                self._drop(fetch)
            elif now - fetch.told_s >= self._timeout_s and not fetch.failures:
                fetch.told_s = now
                self._report(fetch, gone=False)
        for fetch in list(self._installing.values()):
            if not self._lives(fetch) or fetch.replica.core.snapshot_index >= fetch.message.index:
                del self._installing[fetch.group_id]
        self._start_what_may(now)

    def stop(self) -> None:
        """Leave all as it is on the disk: a later run goes on from there."""
        self._stopped = True
        for fetch in self._fetches.values():
            self._rest(fetch)
            if fetch.partial is not None:
                fetch.partial.pause()
        self._fetches.clear()

    def keeps(self, name: str) -> bool:
        """Whether the file of that name, or a part of it, is here for a snapshot that is not on disk yet."""
        return any(fetch.name == name for fetch in (*self._fetches.values(), *self._installing.values()))

    def fetches(self, group_id: GroupId) -> bool:
        """Whether a file is fetched for the group."""
        return group_id in self._fetches

    def status(self) -> list[dict[str, Any]]:
        """Describe what is being fetched: group, index, from, name, bytes, of, stage, failures, problem."""
        return [
            {
                "group_id": group_id,
                "index": fetch.message.index,
                "from": fetch.node_id,
                "name": fetch.name,
                "bytes": fetch.received,
                "of": fetch.manifest.size_bytes,
                "stage": fetch.stage.value,
                "failures": fetch.failures,
                "problem": fetch.problem,
            }
            for group_id, fetch in sorted(self._fetches.items())
        ]

    # ---------------------------------------------------------------------------------------------------- fetching

    def _start_what_may(self, now: float) -> None:
        """Begin as many attempts as the bound allows: those that wait longest first."""
        under_way = sum(fetch.stage in (Stage.FETCHING, Stage.CHECKING) for fetch in self._fetches.values())
        for fetch in list(self._fetches.values()):
            if under_way >= self._engine.limits.snapshot_transfers:
                return
            if fetch.stage is Stage.WAITING and fetch.due_s <= now:
                under_way += 1
                self._attempt(fetch)

    def _attempt(self, fetch: Fetch) -> None:
        fetch.attempt += 1
        size_bytes = fetch.manifest.size_bytes
        if self._is_whole_here(fetch.name):  # an earlier run had it, and came no further
            fetch.received = size_bytes
            self._check(fetch)
            return
        fetch.stage = Stage.FETCHING
        if fetch.partial is None:
            fetch.partial = self._files.partial(fetch.name)
        fetch.received = fetch.partial.size_bytes
        if fetch.received > size_bytes:
            self._begin_anew(fetch, f"{fetch.received} bytes of it are here already, of {size_bytes}")
        elif fetch.received == size_bytes:
            self._commit(fetch, fetch.partial)
        else:
            self._fetch(fetch, fetch.partial)

    def _fetch(self, fetch: Fetch, partial: SnapshotSink) -> None:
        attempt, loop, pace = fetch.attempt, self._engine.loop, self._pace

        def take(piece: bytes, more: Callable[[], None]) -> None:
            def was_written(error: Exception | None) -> None:
                if not self._current(fetch, attempt):
                    return
                if error is not None:
                    self._begin_anew(fetch, f"it cannot be written: {error}")
                    return
                fetch.received += len(piece)
                fetch.failures = 0
                wait_s = pace.take(len(piece))
                if wait_s > 0:
                    loop.call_later(wait_s, more)
                else:
                    more()

            if self._current(fetch, attempt):
                partial.write(piece, was_written)

        def ended(error: Exception | None) -> None:
            if not self._current(fetch, attempt):
                return
            fetch.cancel = None
            if error is None:
                self._commit(fetch, partial)
            else:
                self._broke_off(fetch, error)

        fetch.cancel = self._transport.fetch(
            fetch.node_id, fetch.name, fetch.received, fetch.manifest.size_bytes, take, ended
        )

    def _current(self, fetch: Fetch, attempt: int) -> bool:
        """Whether what comes now is of an attempt that still counts."""
        return not self._stopped and fetch.attempt == attempt and self._fetches.get(fetch.group_id) is fetch

    def _commit(self, fetch: Fetch, partial: SnapshotSink) -> None:
        """All of it has come: have it synced under its name."""
        attempt = fetch.attempt
        fetch.stage = Stage.CHECKING

        def committed(error: Exception | None) -> None:
            if not self._current(fetch, attempt):
                return
            if error is not None:
                self._begin_anew(fetch, f"it cannot be written: {error}")
                return
            fetch.partial = None
            self._check(fetch)

        partial.commit(committed)

    def _check(self, fetch: Fetch) -> None:
        """Read it back, and compare its digest."""
        attempt, digest, size_bytes = fetch.attempt, blake2b(digest_size=DIGEST_BYTES), fetch.manifest.size_bytes
        fetch.stage = Stage.CHECKING

        def read_on(offset: int) -> None:
            if not self._current(fetch, attempt):
                return
            left_bytes = min(_CHECKED_BYTES, size_bytes - offset)
            self._files.read(fetch.name, offset, left_bytes, lambda found: was_read(offset, found))

        def was_read(offset: int, found: bytes | Exception) -> None:
            if not self._current(fetch, attempt):
                return
            if isinstance(found, Exception):
                self._begin_anew(fetch, f"it cannot be read back: {found}")
                return
            if not found:
                self._begin_anew(fetch, f"it ends at {offset}, not at {size_bytes}")
                return
            digest.update(found)
            offset += len(found)
            if offset < size_bytes:
                self._engine.loop.call_later(self._checking.take(len(found)), read_on, offset)
            elif digest.digest() == fetch.manifest.digest:
                self._is_whole(fetch)
            else:
                self.counters["fetch_wrong_digest"] += 1
                self._begin_anew(fetch, "it is not what was told of: its digest is another one")

        read_on(0)

    def _is_whole(self, fetch: Fetch) -> None:
        self.counters["snapshots_fetched"] += 1
        fetch.stage, fetch.failures, fetch.problem = Stage.WHOLE, 0, None
        self._hand_over(fetch)
        self._start_what_may(self._engine.pacing.now())

    def _hand_over(self, fetch: Fetch) -> None:
        """The file is here: let the core install the snapshot, if its sender leads still; another one sends its own."""
        if self._useless(fetch):
            self._drop(fetch)
        elif fetch.message.term >= fetch.replica.core.term:
            del self._fetches[fetch.group_id]
            self._installing[fetch.group_id] = fetch
            now = self._engine.pacing.now()
            if fetch.replica.data is not None:
                self._engine.ondisk.files.take_in(fetch.replica, fetch.replica.data, fetch.message)
                return
            with self._engine.touching(fetch.replica, now):
                fetch.replica.core.step(fetch.message, now)

    # ---------------------------------------------------------------------------------------------------- failures

    def _broke_off(self, fetch: Fetch, error: Exception) -> None:
        if isinstance(error, NoSuchFile):
            self.counters["fetch_gone"] += 1
            self._report(fetch, gone=True)
            self._begin_anew(fetch, str(error))
        elif isinstance(error, InvalidRequest):
            self._begin_anew(fetch, str(error))
        elif isinstance(error, Overloaded):
            self._wait(fetch, self._timeout_s / 2)
        else:
            self._failed(fetch, error)

    def _begin_anew(self, fetch: Fetch, why: str) -> None:
        """What has come of it is of no use."""
        self._throw_away(fetch)
        fetch.received = 0
        self._failed(fetch, MultiRaftError(why))

    def _failed(self, fetch: Fetch, error: Exception) -> None:
        """Say so, and try again later; what has come stays."""
        self._rest(fetch)
        fetch.failures += 1
        fetch.problem = str(error)
        self.counters["fetch_failures"] += 1
        text = "group %d: snapshot file %s, of which %d of %d bytes are here: %s; attempt %d follows"
        size_bytes = fetch.manifest.size_bytes
        log.warning(text, fetch.group_id, fetch.name, fetch.received, size_bytes, error, fetch.attempt + 1)
        times = min(0.1 * 2.0 ** (fetch.failures - 1), _RETRY_MOST_TIMEOUTS)
        self._wait(fetch, self._timeout_s * times * (0.5 + 0.5 * self._engine.rng.random()))

    def _wait(self, fetch: Fetch, seconds: float) -> None:
        now = self._engine.pacing.now()
        fetch.stage = Stage.WAITING
        fetch.due_s = now + seconds
        del self._fetches[fetch.group_id]  # the others that wait go first
        self._fetches[fetch.group_id] = fetch
        self._start_what_may(now)

    def _rest(self, fetch: Fetch) -> None:
        """End what is under way; what it still brings does not count."""
        fetch.attempt += 1
        if fetch.cancel is not None:
            fetch.cancel()
            fetch.cancel = None

    def _throw_away(self, fetch: Fetch) -> None:
        self._rest(fetch)
        if fetch.partial is not None:
            fetch.partial.abort()
            fetch.partial = None
        else:
            self._files.delete(fetch.name)

    def _is_whole_here(self, name: str) -> bool:
        try:
            self._files.size(name)
        except NoSuchFile:
            return False
        return True

    def _drop(self, fetch: Fetch) -> None:
        """Nobody wants it any more."""
        del self._fetches[fetch.group_id]
        self._throw_away(fetch)

    def _useless(self, fetch: Fetch) -> bool:
        """Whether the replica is another one by now, or has come by what the snapshot covers in some other way."""
        if not self._lives(fetch):
            return True
        try:
            return not fetch.replica.core.needs(fetch.message)
        except CorruptRecord as problem:
            self._engine.broke(fetch.replica, problem)
            return True

    def _lives(self, fetch: Fetch) -> bool:
        replica = fetch.replica
        return self._engine.replicas.get(fetch.group_id) is replica and replica.broken is None

    def _report(self, fetch: Fetch, *, gone: bool) -> None:
        engine = self._engine
        if self._lives(fetch):
            with engine.touching(fetch.replica, engine.pacing.now()):
                fetch.replica.core.report_install(fetch.message, gone=gone)
