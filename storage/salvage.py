"""Making a database whole again whose files cannot be read in places: what is whole is copied, the rest left out.

LevelDB refuses to go on once it meets such a place by itself, and nothing can be deleted there, so the database is
copied into a new one. Its own repair is not used: it takes what it finds, and would bring back a replica without the
vote that it had given. Here a group of which anything may be missing is left out as a whole and written down as lost,
so that it stays out until its group has replaced it. What concerns the whole store must be readable; else nothing is
done.

    db/ ──copy──> db.new/     then     db/ ──> db.damaged/,  db.new/ ──> db/

The damaged database is kept, one of them, for whoever has nothing else left of a group that lived here alone.

Rules of this file: the node is stopped; `db/` is only read until the copy is on the disk, and a crash at any step
leaves what the next opening goes on with.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final

from multiraft.config import Limits
from multiraft.errors import CorruptRecord, StorageError
from multiraft.storage import layout
from multiraft.storage.check import ReplicaScan, next_readable, read_tombstones, scan_replicas
from multiraft.storage.directory import LEVELDB_DIR, UNREADABLE_FILE, storage_error, sync_directory
from multiraft.storage.identity import ways_out
from multiraft.storage.leveldb import (
    DAMAGED_DIR,
    NEW_DIR,
    LevelReader,
    create_database,
    finish_salvage,
    open_linked,
)
from multiraft.types import U64_MAX, Damage, GroupId, SpaceId

_SCRATCH_DIR: Final = LEVELDB_DIR + ".links"
_BATCH_BYTES: Final = 1024 * 1024


@dataclass(slots=True)
class Salvage:
    """What was found: `damages` is left out, `groups` are whole, `spaces` are keyspaces that lost something."""

    damages: list[Damage] = field(default_factory=list)
    groups: list[GroupId] = field(default_factory=list)
    spaces: set[SpaceId] = field(default_factory=set)


def look(reader: LevelReader) -> Salvage:
    """Return what of a database is whole. Raises CorruptRecord where that is not known of the store as a whole."""
    name = reader.name
    try:
        for _ in reader.keys(b"", layout.FIRST_DATA_KEY):
            pass
        stored = reader.get(layout.DAMAGE_KEY)
        found = Salvage([] if stored is None else layout.decode_damage(stored))
        tombstones = read_tombstones(reader)
    except CorruptRecord as problem:
        raise CorruptRecord(
            f"{name} is damaged where it concerns the whole store: {problem}. {ways_out(name)}"
        ) from problem
    found.spaces = _damaged_spaces(reader)
    for scan in scan_replicas(reader, tombstones):
        lost = _lost_data(scan, found.spaces)
        if lost:
            scan.problem(lost)
        if scan.unreadable or (scan.problems and not scan.removed):
            found.damages += scan.damages()
        else:
            found.groups.append(scan.group_id)
    return found


def _lost_data(scan: ReplicaScan, spaces: set[SpaceId]) -> str:
    if scan.applied is None or scan.applied.space not in spaces:
        return ""
    return f"group {scan.group_id}: parts of its data cannot be read"


def _damaged_spaces(reader: LevelReader) -> set[SpaceId]:
    """Return the keyspaces that cannot be read to their end. Of a stretch that cannot be read, all that it may be."""
    damaged: set[SpaceId] = set()
    space, at = 0, layout.FIRST_DATA_KEY
    while True:
        try:
            for key, value in reader.items(at, layout.DATA_END_KEY):
                space, _ = layout.split_data_key(key)
                layout.decode_data(key, value)
            return damaged
        except CorruptRecord:
            after = next_readable(partial(_can_read_space, reader), space)
            if after is None or after - space > 1_000_000:  # to the end of the data, whichever there are
                return damaged | {space} | _named_spaces(reader, space)
            damaged.update(range(space, after))
            space, at = after, layout.data_span(after)[0]


def _can_read_space(reader: LevelReader, space: SpaceId) -> bool:
    try:
        next(reader.keys(layout.data_span(space)[0], None), None)
    except CorruptRecord:
        return False
    return True


def _named_spaces(reader: LevelReader, above: SpaceId) -> set[SpaceId]:
    """Return the keyspaces above `above` that some group's applied index names."""
    scans = scan_replicas(reader, read_tombstones(reader))
    return {scan.applied.space for scan in scans if scan.applied is not None and scan.applied.space > above}


def salvage(path: str, limits: Limits) -> list[Damage]:
    """Put a copy of what is whole in the place of the database in the data directory `path`; return what is left out.

    Blocks for as long as copying takes, and needs as much room again. Raises StorageError: nothing was changed.
    """
    database = os.path.join(path, LEVELDB_DIR)
    scratch, new = os.path.join(path, _SCRATCH_DIR), os.path.join(path, NEW_DIR)
    try:
        for folder in (scratch, new):
            shutil.rmtree(folder, ignore_errors=True)
        os.mkdir(scratch)
        try:
            with closing(open_linked(path, database, scratch, limits)) as old:
                reader = LevelReader(path, old)
                found = look(reader)
                _copy(path, reader, found, new, limits)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
        # Opened once more, the new one has all of it in tables, which are synced, and nothing in its log.
        create_database(path, new, limits).close()
        sync_directory(path)
        shutil.rmtree(os.path.join(path, DAMAGED_DIR), ignore_errors=True)
        os.rename(database, os.path.join(path, DAMAGED_DIR))
        finish_salvage(path)
        with contextlib.suppress(FileNotFoundError):
            os.remove(os.path.join(path, UNREADABLE_FILE))
    except OSError as problem:
        raise storage_error(path, "cannot be salvaged", problem) from problem
    return found.damages


def _copy(path: str, reader: LevelReader, found: Salvage, new: str, limits: Limits) -> None:
    target = create_database(path, new, limits)
    try:
        batch, size_bytes = target.write_batch(), 0
        for key, value in _whole(reader, found):
            batch.put(key, value)
            size_bytes += len(key) + len(value)
            if size_bytes >= _BATCH_BYTES:
                batch.write()
                batch, size_bytes = target.write_batch(), 0
        batch.put(layout.DAMAGE_KEY, layout.encode_damage(found.damages))
        batch.write()
        target.put(layout.DAMAGE_KEY, layout.encode_damage(found.damages), sync=True)
    except StorageError:
        raise
    except Exception as problem:
        raise storage_error(path, "cannot be copied", problem) from problem
    finally:
        target.close()


def _whole(reader: LevelReader, found: Salvage) -> Iterator[tuple[bytes, Any]]:
    yield from reader.items(b"", layout.FIRST_DATA_KEY)
    space: SpaceId = 0
    while (first := _first_space(reader, space, found.spaces)) is not None:
        yield from reader.items(*layout.data_span(first))
        space = first + 1
        if first == U64_MAX:
            break
    for group_id in found.groups:
        yield from reader.items(*layout.group_span(group_id))


def _first_space(reader: LevelReader, space: SpaceId, damaged: set[SpaceId]) -> SpaceId | None:
    """Return the first keyspace from `space` on that holds anything and is not damaged."""
    while True:
        while space in damaged:
            space += 1
        try:
            key = next(reader.keys(layout.data_span(space)[0], layout.DATA_END_KEY), None)
        except CorruptRecord:
            return None  # from here to the end of the data nothing can be read: all of it is among the damaged
        if key is None:
            return None
        at, _ = layout.split_data_key(key)
        if at not in damaged:
            return at
        space = at + 1
