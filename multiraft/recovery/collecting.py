"""Collecting what a stopped survivor has, from its data directory, which is not changed.

Its copy of the directory (group 1) is brought up to the end of its log, to learn which groups there are beside those
that have a replica here: of a group of which nothing survives nobody else could tell.

Rules of this file: reads only.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from multiraft.engine.executing import Executor
from multiraft.engine.machine import Context
from multiraft.engine.states import StateLoader
from multiraft.errors import CommandFailed, MultiRaftError, RecoveryRefused
from multiraft.records import COMMANDS, SESSION
from multiraft.recovery.facts import NodeFacts, ReplicaFacts
from multiraft.sessions import HEAD
from multiraft.shard import Directory
from multiraft.snapshot_file import decode_manifest, is_manifest
from multiraft.storage.backend import Reader
from multiraft.storage.identity import Opening
from multiraft.storage.recovery import FoundReplica, find_replicas, read_snapshot_file, read_whole_log, reading_store
from multiraft.types import DIRECTORY_GROUP, GroupId, NodeId


def collect_directory(path: str) -> NodeFacts:
    """Return what the data directory `path` holds. Blocks for as long as reading it takes.

    Raises StorageError (no data directory, in use, damaged as a whole), RecoveryRefused (empty, or never part of a
    cluster).
    """
    with reading_store(path) as (reader, opening):
        return collect_store(path, reader, opening)


def collect_store(path: str, reader: Reader, opening: Opening) -> NodeFacts:
    """Return what the store behind `reader` holds. Raises as `collect_directory`."""
    identity = opening.identity
    if identity is None or not identity.formed:
        raise RecoveryRefused(f"{path} is empty: its node never was part of a cluster, so nothing of one survives here")
    replicas = tuple(_facts(found) for found in find_replicas(reader))
    known = None
    if any(replica.group_id == DIRECTORY_GROUP and not replica.problems for replica in replicas):
        with contextlib.suppress(MultiRaftError):
            known = _known_groups(path, reader)
    return NodeFacts(path, identity, opening.incarnation, opening.condemned, replicas, known)


def _facts(found: FoundReplica) -> ReplicaFacts:
    stored = found.stored
    if stored is None:
        return ReplicaFacts(found.group_id, 0, "", 0, 0, 0, 0, 0, 0, 0, None, (), "", found.problems)
    return ReplicaFacts(
        found.group_id,
        stored.descriptor.replica_id,
        stored.descriptor.service,
        stored.hard_state.term,
        stored.hard_state.vote,
        stored.hard_state.commit,
        stored.snapshot_index,
        stored.last_index,
        stored.last_term,
        found.last_stamp_ms,
        stored.membership,
        found.pending,
        "" if found.halt is None else found.halt.reason,
    )


def _chunks(path: str, data: bytes) -> Iterator[bytes]:
    """Yield the state that a snapshot's data is, or that is in the file which they name. Raises CorruptRecord."""
    if is_manifest(data):
        return read_snapshot_file(path, decode_manifest(data))
    return iter((data,))


def _known_groups(path: str, reader: Reader) -> dict[GroupId, tuple[str, tuple[NodeId, ...]]]:
    """Return every group, with its service and the nodes where it lives, as group 1's log on this disk has it."""
    directory = Directory()
    snapshot, records = read_whole_log(reader, DIRECTORY_GROUP)
    covered = 0
    if snapshot is not None and snapshot.data:
        loader = StateLoader(Executor(DIRECTORY_GROUP, directory))
        for chunk in _chunks(path, snapshot.data):
            loader.feed(chunk)
        loader.finish()
    if snapshot is not None:
        covered = snapshot.index
    for at, record in enumerate(records):
        last = min(record.last, records[at + 1].first - 1) if at + 1 < len(records) else record.last
        if record.kind not in (COMMANDS, SESSION):
            continue
        for index, entry in enumerate(record.entries(), record.first):
            if covered < index <= last:
                command = entry[HEAD.size :] if record.kind == SESSION else entry
                with contextlib.suppress(CommandFailed):
                    # Its commands are idempotent: one that comes twice makes no difference.
                    directory.apply(command, Context(index, record.term, DIRECTORY_GROUP, record.stamp_ms))
    return {
        group_id: (info.service, tuple(directory.map.groups.get(group_id, info.nodes)))
        for group_id, info in directory.groups.items()
    }
