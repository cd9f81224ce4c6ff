"""What an operator does to the store of a stopped node: verify all of it, leave out what is damaged, compact it.

Rules of this file: each takes the database's lock, so that no node runs on it; verifying writes nothing; no vote or log
is ever brought back that a replica could be missing something of.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from multiraft.config import Limits
from multiraft.errors import CorruptRecord, StorageError
from multiraft.snapshot_file import FileReader, decode_manifest, is_manifest
from multiraft.storage import layout
from multiraft.storage.backend import Reader
from multiraft.storage.directory import LEVELDB_DIR, kind_of, message_of, release, storage_error
from multiraft.storage.inspect import StoreReport, held, reading, report_of
from multiraft.storage.leveldb import LevelReader, has_database, open_database
from multiraft.storage.salvage import Salvage, look, salvage
from multiraft.storage.snapshot_files import SNAPSHOTS_DIR
from multiraft.types import Damage, GroupId, SpaceId

_PIECE_BYTES: Final = 1024 * 1024
_TELL_EVERY: Final = 1_000
_ABOVE_ALL_KEYS: Final = b"\xff" * 64
Told = Callable[[str, int], None]
"""Called now and then with what is being read, and how many values or bytes of it have been so far."""


@dataclass(slots=True)
class Verified:
    """What a whole store holds. `report`: of all groups; the rest is what is not of the groups themselves.

    values, value_bytes  of the data of state machines, and in how many keyspaces
    files, file_bytes    snapshot files that some group's snapshot names, read to their ends
    loose                files that none names: left over, and deleted by the node
    problems             of keyspaces and files, one line each
    """

    report: StoreReport
    spaces: int = 0
    values: int = 0
    value_bytes: int = 0
    files: int = 0
    file_bytes: int = 0
    loose: int = 0
    problems: list[str] = field(default_factory=list)

    @property
    def sound(self) -> bool:
        return self.report.sound and not self.problems


def verify_directory(path: str, told: Told = lambda what, count: None) -> Verified:
    """Read everything that is stored in the data directory `path`, and check every checksum and digest.

    Blocks for as long as that takes. Raises StorageError: not a data directory, in use, or so damaged that its database
    cannot be opened.
    """
    with reading(path) as reader:
        told("groups", 0)
        found = Verified(report_of(path, reader))
        told("groups", len(found.report.groups))
        _verify_data(reader, found, told)
        _verify_files(path, reader, found, told)
    return found


def _verify_data(reader: Reader, found: Verified, told: Told) -> None:
    space: SpaceId | None = None
    try:
        for key, value in reader.items(layout.FIRST_DATA_KEY, layout.DATA_END_KEY):
            at, _ = layout.split_data_key(key)
            found.spaces += at != space
            space = at
            found.values += 1
            found.value_bytes += len(value)
            try:
                layout.decode_data(key, value)
            except CorruptRecord as problem:
                found.problems.append(str(problem))
            if found.values % _TELL_EVERY == 0:
                told("values of state machines", found.values)
    except StorageError as problem:
        found.problems.append(f"keyspace {space or 'of some group'}: {problem}; what comes after it was not read")


def _verify_files(path: str, reader: Reader, found: Verified, told: Told) -> None:
    folder = os.path.join(path, SNAPSHOTS_DIR)
    left = set(os.listdir(folder)) if os.path.isdir(folder) else set()
    for group in found.report.groups:
        if not group.snapshot_index:
            continue
        try:
            raw = reader.get(layout.group_key(group.group_id, layout.KIND_SNAPSHOT))
            data = b"" if raw is None else layout.decode_snapshot(group.group_id, raw).data
            if not is_manifest(data):
                continue
            manifest = decode_manifest(data)
            left.discard(manifest.name)
            checked = FileReader(manifest)
            with open(os.path.join(folder, manifest.name), "rb") as file:
                while piece := file.read(_PIECE_BYTES):
                    for _ in checked.feed(piece):
                        pass
                    found.file_bytes += len(piece)
                    told("bytes of snapshot files", found.file_bytes)
            checked.finish()
            found.files += 1
        except (CorruptRecord, OSError) as problem:
            found.problems.append(f"snapshot of group {group.group_id}: {message_of(problem)}")
    found.loose = len(left)


# ---------------------------------------------------------------------------------------------------------- repair


@dataclass(frozen=True, slots=True)
class Repair:
    """What a repair leaves out, and keeps. `done`: it was done, and not only looked at."""

    damages: list[Damage]
    groups: list[GroupId]
    done: bool


def repair_directory(path: str, *, apply: bool) -> Repair:
    """Say what of a damaged store would be left out; with `apply`, leave it out: see salvage.py.

    Raises StorageError: not a data directory of LevelDB, in use, or damaged where it concerns the whole store, so that
    nothing of it may take part any more: its node has to be readmitted with an empty directory.
    """
    if kind_of(path) not in ("leveldb", ""):
        raise StorageError(
            f"{path} is kept by SQLite, of which no part can be left out; remove it, start the node, and readmit it on "
            "another one (`multiraft member readmit NODE`)"
        )
    with reading(path) as reader:
        found: Salvage = look(reader) if isinstance(reader, LevelReader) else Salvage()
    if not apply:
        return Repair(found.damages, found.groups, False)
    with held(path, os.path.join(path, LEVELDB_DIR)):
        return Repair(salvage(path, Limits()), found.groups, True)


# --------------------------------------------------------------------------------------------------------- compact


@dataclass(frozen=True, slots=True)
class Compacted:
    before_bytes: int
    after_bytes: int


def compact_directory(path: str) -> Compacted:
    """Have LevelDB drop what was deleted or overwritten, and put its files in order; nothing that is stored changes.

    Blocks for as long as rewriting the database takes, and needs as much room again. Raises StorageError: not a data
    directory of LevelDB, in use, damaged, or no room.
    """
    if kind_of(path) not in ("leveldb", ""):
        raise StorageError(f"{path} is kept by SQLite, which reuses its free pages by itself; there is nothing to do")
    database = os.path.join(path, LEVELDB_DIR)
    if not has_database(path, database):
        raise StorageError(f"{path} is not a data directory (it holds no database); name that of a node")
    before_bytes = _size_of(path)
    opened = open_database(path, Limits())
    try:
        # Without an end LevelDB compacts what is in memory, and nothing on the disk.
        opened.compact_range(start=b"", stop=_ABOVE_ALL_KEYS)
    except Exception as problem:
        raise storage_error(path, "cannot be compacted", problem) from problem
    finally:
        opened.close()
        release(os.path.realpath(database))
    return Compacted(before_bytes, _size_of(path))


def _size_of(path: str) -> int:
    total = 0
    try:
        with os.scandir(os.path.join(path, LEVELDB_DIR)) as entries:
            for entry in entries:
                total += entry.stat().st_size
    except OSError as problem:
        raise storage_error(path, "cannot be read", problem) from problem
    return total
