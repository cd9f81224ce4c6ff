"""Exports: the state of one group as of one index, as a file beside the database, to be fetched bit by bit.

    in memory   the replica takes a snapshot of what it has applied; that is copied (its file as it is)
    on disk     the keyspace is read as of one moment, beside whatever is applied meanwhile

So every export is a cut at one index of its group's log: all entries up to it, and none after it. It is made by the
group's leader, and holds everything that was acknowledged before it was asked for, unless that leader has been deposed
and does not know it yet. Different groups are cut at different moments.

    data_dir/exports/NAME    whole and synced once `Export.state` is "ready"; gone with the node, or an hour later

Rules of this file: files are written and read by a thread; the loop is held for a slice at most; few are made at once,
and what nobody fetches goes.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import shutil
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any, Final

from multiraft.config import NodeConfig
from multiraft.engine.pairstream import pair_chunks
from multiraft.engine.replica import Replica
from multiraft.engine.states import head_of
from multiraft.errors import MultiRaftError, NoSuchFile, NotLeader, NotReady, NotRunning, Overloaded
from multiraft.running import Running
from multiraft.snapshot_file import (
    DIGEST_BYTES,
    DISK,
    MEMORY,
    FileWriter,
    Manifest,
    decode_manifest,
    file_name,
    is_manifest,
)
from multiraft.types import GroupId, Snapshot, Term

EXPORTS_DIR: Final = "exports"
READ_BYTES: Final = 256 * 1024
"""The most that one `read_export` returns."""
log: Final = logging.getLogger("multiraft.node")
_AT_ONCE: Final = 2
_KEPT: Final = 64
_KEPT_S: Final = 3_600.0
_TAKE_S: Final = 60.0
_LOOK_S: Final = 0.02
_PIECE_BYTES: Final = 1024 * 1024
_TOKENS: Final = 1 << 32


@dataclass(slots=True)
class Export:
    """One export, from being asked for on.

    state       "taking", "ready" or "failed"
    size_bytes  of the file so far
    """

    name: str
    group_id: GroupId
    service: str
    since_s: float
    state: str = "taking"
    problem: str = ""
    size_bytes: int = 0
    term: Term = 0
    manifest: Manifest | None = None

    def to_plain(self) -> dict[str, Any]:
        """Return it as the admin API shows it."""
        found = self.manifest
        told: dict[str, Any] = {
            "name": self.name,
            "group_id": self.group_id,
            "service": self.service,
            "state": self.state,
            "problem": self.problem,
            "size_bytes": self.size_bytes,
        }
        if found is not None:
            told["cut"] = {
                "index": found.index,
                "term": self.term,
                "time_ms": found.time_ms,
                "hash": found.hash,
                "kind": found.kind,
                "raw_bytes": found.raw_bytes,
                "size_bytes": found.size_bytes,
                "digest": found.digest.hex(),
            }
        return told


class Exporting:
    """The part of a Node that is about exports."""

    config: NodeConfig

    def __init__(self) -> None:
        self._exports: dict[str, Export] = {}
        self._export_tasks: set[asyncio.Task[None]] = set()

    def _here(self) -> Running:
        """Return the parts that run. Raises NotRunning."""
        raise NotImplementedError

    def _export_folder(self) -> str:
        return os.path.join(self.config.data_dir, EXPORTS_DIR)

    def begin_export(self, group_id: GroupId) -> dict[str, Any]:
        """Begin an export of the group, which this node must lead; `export_state` says how far it is.

        Raises KeyError (no replica here), NotLeader, Overloaded (too many at once), NotRunning.
        """
        running = self._here()
        replica = running.engine.replicas[group_id]
        if not replica.leads:
            raise NotLeader(group_id, replica.leader_node)
        exports, now = self._exports, running.engine.loop.time()
        for old in [one for one in exports.values() if one.state != "taking" and now - one.since_s > _KEPT_S]:
            self.drop_export(old.name)
        if sum(one.state == "taking" for one in exports.values()) >= _AT_ONCE or len(exports) >= _KEPT:
            raise Overloaded("this node makes as many exports as it may at once; ask again when one is done")
        name = file_name(group_id, replica.applied, int(running.engine.rng.random() * _TOKENS))
        export = exports[name] = Export(name, group_id, replica.descriptor.service, now)
        task = running.engine.loop.create_task(self._export(running, replica, export), name=f"export {name}")
        self._export_tasks.add(task)
        task.add_done_callback(self._export_tasks.discard)
        return export.to_plain()

    def export_state(self, name: str) -> dict[str, Any]:
        """Say how far an export is. Raises NoSuchFile."""
        if name not in self._exports:
            raise NoSuchFile(f"there is no export {name} on this node; begin another one")
        return self._exports[name].to_plain()

    def read_export(self, name: str, offset: int) -> bytes:
        """Return what an export that is ready has from `offset` on, READ_BYTES at most; empty at its end.

        Raises NoSuchFile, NotReady.
        """
        state = self.export_state(name)["state"]
        if state != "ready":
            raise NotReady(f"export {name} is not ready: {state}")
        try:
            with open(os.path.join(self._export_folder(), name), "rb") as file:
                file.seek(offset)
                return file.read(READ_BYTES)
        except OSError as problem:
            raise NoSuchFile(f"export {name} cannot be read: {problem.strerror}; begin another one") from problem

    def drop_export(self, name: str) -> None:
        """Delete an export that is done with. Nothing happens where there is none."""
        export = self._exports.pop(name, None)
        if export is not None:
            with contextlib.suppress(OSError):
                os.remove(os.path.join(self._export_folder(), name))

    async def _end_exports(self) -> None:
        """The node ends: so do its exports."""
        for task in list(self._export_tasks):
            task.cancel()
        await asyncio.gather(*self._export_tasks, return_exceptions=True)
        if self._exports:
            self._exports.clear()
            await asyncio.to_thread(shutil.rmtree, self._export_folder(), True)

    async def _export(self, running: Running, replica: Replica, export: Export) -> None:
        path = os.path.join(self._export_folder(), export.name)
        try:
            if len(self._exports) == 1:  # what a run that was killed has left
                await asyncio.to_thread(shutil.rmtree, self._export_folder(), True)
            await asyncio.to_thread(os.makedirs, self._export_folder(), exist_ok=True)
            with open(path, "wb") as file:  # noqa: ASYNC230 # it is made only; what is written is written by a thread
                if replica.data is not None:
                    await self._export_disk(running, replica, export, file)
                else:
                    await self._export_memory(running, replica, export, file)
                await asyncio.to_thread(file.flush)
                await asyncio.to_thread(os.fsync, file.fileno())
            export.state = "ready"
        except (MultiRaftError, OSError) as problem:
            export.problem = str(problem)
        except Exception as problem:  # whoever waits for it must hear of that, too
            log.exception("group %d: its export failed by a bug", replica.group_id)
            export.problem = f"a bug: {type(problem).__name__}: {problem}"
        finally:
            if export.state != "ready":
                export.state = "failed"
                with contextlib.suppress(OSError):
                    os.remove(path)

    # ------------------------------------------------------------------------------------------------ in memory

    async def _export_memory(self, running: Running, replica: Replica, export: Export, file: Any) -> None:
        for _ in range(3):
            snapshot = await _fresh_snapshot(running, replica)
            export.term = snapshot.term
            try:
                if is_manifest(snapshot.data):
                    await _copy(running, decode_manifest(snapshot.data), export, file)
                else:
                    described = (snapshot.index, *head_of(snapshot.data), MEMORY)
                    await _write(running, export, file, iter((snapshot.data,)), described)
            except NoSuchFile:  # a newer snapshot has taken its place meanwhile
                file.seek(0)
                file.truncate()
                export.size_bytes = 0
                continue
            return
        raise NotReady(f"group {replica.group_id}: its snapshots are replaced faster than one can be copied; retry")

    # -------------------------------------------------------------------------------------------------- on disk

    async def _export_disk(self, running: Running, replica: Replica, export: Export, file: Any) -> None:
        store = running.store
        if store is None:
            raise NotRunning("the node is not running")
        view = store.view()
        try:
            applied = view.read_applied(replica.group_id)
            if applied is None:
                raise NotReady(f"group {replica.group_id} has no data on this disk yet; retry")
            export.term = applied.term
            described = (applied.index, applied.time_ms, applied.hash, DISK)
            chunks = pair_chunks(applied.time_ms, applied.hash, view.iterate_data(applied.space))
            await _write(running, export, file, chunks, described)
        finally:
            view.close()


async def _fresh_snapshot(running: Running, replica: Replica) -> Snapshot:
    """Take a snapshot of what the replica has applied, and return it when it is on disk. Raises NotReady."""
    engine, store = running.engine, running.store
    until_s, wanted = engine.loop.time() + _TAKE_S, replica.applied
    why = ""
    while engine.loop.time() < until_s and store is not None:
        if engine.replicas.get(replica.group_id) is not replica:
            raise NotReady(f"group {replica.group_id} has left this node")
        if replica.core.snapshot_index < wanted:
            why = engine.snapshotting.take_now(replica)
            engine.wake()
        else:
            snapshot = store.read_snapshot(replica.group_id)
            if snapshot is not None and snapshot.index >= wanted:
                return snapshot
        await asyncio.sleep(_LOOK_S)
    raise NotReady(f"group {replica.group_id}: no snapshot within {_TAKE_S:g} s: {why or 'it is not on disk yet'}")


async def _copy(running: Running, manifest: Manifest, export: Export, file: Any) -> None:
    """Copy a snapshot's file as it is. Raises NoSuchFile, CorruptRecord."""
    digest, offset = blake2b(digest_size=DIGEST_BYTES), 0
    async for piece in _pieces(running, manifest):
        digest.update(piece)
        offset += len(piece)
        await asyncio.to_thread(file.write, piece)
        export.size_bytes = offset
    if digest.digest() != manifest.digest:
        raise NoSuchFile(f"snapshot file {manifest.name} is not what its manifest says")
    export.manifest = manifest


async def _pieces(running: Running, manifest: Manifest) -> AsyncIterator[bytes]:
    store, offset = running.store, 0
    while store is not None and offset < manifest.size_bytes:
        read: asyncio.Future[bytes | Exception] = running.engine.loop.create_future()
        store.files.read(manifest.name, offset, _PIECE_BYTES, lambda piece, read=read: _set(read, piece))  # type: ignore[misc]
        piece = await read
        if isinstance(piece, Exception) or not piece:
            raise NoSuchFile(f"snapshot file {manifest.name} is gone: {piece!r}")
        offset += len(piece)
        yield piece


def _set(future: asyncio.Future[bytes | Exception], piece: bytes | Exception) -> None:
    if not future.done():
        future.set_result(piece)


async def _write(
    running: Running, export: Export, file: Any, chunks: Iterator[bytes], described: tuple[int, int, int, str]
) -> None:
    """Write chunks as a snapshot file, a slice of reading at a time."""
    engine = running.engine
    writer, effort, slice_s = FileWriter(), engine.clocks.effort, engine.limits.apply_slice_ms / 1e3
    gathered = [writer.begin()]
    until_s = effort() + slice_s
    for chunk in chunks:
        gathered.append(writer.chunk(chunk))
        if effort() >= until_s:
            await asyncio.to_thread(file.write, b"".join(gathered))
            export.size_bytes = writer.size_bytes
            gathered.clear()
            until_s = effort() + slice_s
    gathered.append(writer.end())
    await asyncio.to_thread(file.write, b"".join(gathered))
    export.size_bytes = writer.size_bytes
    index, time_ms, value, kind = described
    export.manifest = Manifest(
        export.name, writer.size_bytes, writer.digest(), writer.raw_bytes, index, time_ms, value, kind
    )
