"""Looking into a data directory while its node is stopped, without changing a byte of it.

LevelDB cannot be opened without writing: it replays its log into new files. So the database is opened through a
temporary directory of links: LevelDB reads the files where they are, and what it makes or removes is there only. SQLite
reads without writing where there is no log beside its database; otherwise both are copied first.

Rules of this file: the directory is only read; its lock is held meanwhile, shared, so that no node starts on it;
everything that does not hold becomes a line of the report, and only what leaves nothing to report is raised.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field

from multiraft.config import Limits
from multiraft.errors import StorageError
from multiraft.storage import leveldb, sqlite
from multiraft.storage.backend import Reader
from multiraft.storage.check import ReplicaScan, read_tombstones, scan_replicas
from multiraft.storage.directory import (
    DATABASE_DIRS,
    LOCK_FILE,
    in_use_by_another,
    in_use_by_this_process,
    kind_of,
    storage_error,
)
from multiraft.storage.identity import read_opening
from multiraft.types import (
    GroupId,
    HardState,
    Identity,
    Index,
    LogStart,
    Membership,
    ReplicaDescriptor,
    Term,
    Tombstone,
)


@dataclass(frozen=True, slots=True)
class GroupReport:
    """One group's replica, as stored.

    descriptor, hard_state, membership, log_start   None where missing or damaged
    first_index, last_index, last_term              of the stored log; last < first: the log is empty
    records, size_bytes                             stored log records, and bytes of all stored values
    problems                                        what does not hold, one line each; empty: all is well
    snapshot_index, snapshot_bytes                  what the snapshot covers, and its data's size; 0 without one
    removed                                         no replica, only what is left over of one that was removed
    """

    group_id: GroupId
    descriptor: ReplicaDescriptor | None
    hard_state: HardState | None
    membership: Membership | None
    log_start: LogStart | None
    first_index: Index
    last_index: Index
    last_term: Term
    records: int
    size_bytes: int
    problems: list[str] = field(default_factory=list)
    snapshot_index: Index = 0
    snapshot_bytes: int = 0
    removed: bool = False


@dataclass(frozen=True, slots=True)
class StoreReport:
    """What stands in a data directory.

    identity        None where missing or damaged
    incarnation     that of the latest run; 0 where it cannot be told
    closed_orderly  whether the latest run ended orderly; if not, a tail of its writes may be missing
    problems        of the store as a whole; each group has its own
    tombstones      of the replicas that were removed, by group
    """

    path: str
    identity: Identity | None
    incarnation: int
    closed_orderly: bool
    groups: list[GroupReport] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    tombstones: list[Tombstone] = field(default_factory=list)

    @property
    def sound(self) -> bool:
        """Whether nothing at all was found that does not hold."""
        return not self.problems and not any(group.problems for group in self.groups)


def inspect_directory(path: str) -> StoreReport:
    """Read and check everything that is stored in the data directory `path`; raises no incarnation, writes nothing.

    Blocks for as long as reading the store takes. Raises StorageError: not a data directory, in use, or so damaged
    that its database cannot be opened.
    """
    with reading(path) as reader:
        return report_of(path, reader)


@contextmanager
def reading(path: str) -> Iterator[Reader]:
    """Give a reader of everything in the data directory `path`, of either kind, which is not changed.

    No node can start on it meanwhile. Raises StorageError as `inspect_directory` does.
    """
    kind = kind_of(path)
    database = os.path.join(path, DATABASE_DIRS[kind or "leveldb"])
    if not (sqlite.has_database(path) if kind == "sqlite" else leveldb.has_database(path, database)):
        raise StorageError(f"{path} is not a data directory (it holds no database); name that of a node")
    with held(path, database), tempfile.TemporaryDirectory(prefix="multiraft-inspect-") as scratch:
        if kind == "sqlite":
            with sqlite.read_only(path, scratch) as reader:
                yield reader
        else:
            with closing(leveldb.open_linked(path, database, scratch, Limits())) as opened:
                # LevelDB names the links; the reader knows the files.
                yield leveldb.LevelReader(path, opened, (scratch, database))


@contextmanager
def held(path: str, database: str) -> Iterator[None]:
    """Hold the database's lock, shared. Raises StorageError when a node has it."""
    import fcntl  # not everywhere; the memory store is

    if in_use_by_this_process(database):
        raise StorageError(f"{path} is in use by this very process; stop that node first")
    try:
        lock = os.open(os.path.join(database, LOCK_FILE), os.O_RDONLY)
    except FileNotFoundError:
        # Never opened since it was copied here, so nobody has it open.
        yield
        return
    except OSError as problem:
        raise storage_error(path, "cannot be read", problem) from problem
    try:
        try:
            fcntl.lockf(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError as problem:
            raise in_use_by_another(path, database) from problem
        yield
    finally:
        os.close(lock)


def report_of(path: str, reader: Reader) -> StoreReport:
    """Read and check all groups of the store that `reader` reads."""
    problems: list[str] = []
    try:
        found = read_opening(reader)
        report = StoreReport(path, found.identity, found.incarnation, found.closed_orderly, problems=problems)
        if found.file_is_behind:
            problems.append("a crash left the IDENTITY file behind the database; the next start mends it")
        if found.condemned:
            problems.append(f"this store may take part no longer: {found.condemned}")
    except StorageError as problem:
        problems.append(str(problem))
        report = StoreReport(path, None, 0, False, problems=problems)
    tombstones: dict[GroupId, Tombstone] = {}
    try:
        tombstones = read_tombstones(reader)
        report.tombstones.extend(tombstones.values())
    except StorageError as problem:
        problems.append(str(problem))
    try:
        for scan in scan_replicas(reader, tombstones):
            report.groups.append(_group_report(scan))
    except StorageError as problem:
        problems.append(f"{problem}; what comes after it was not read")
    return report


def _group_report(scan: ReplicaScan) -> GroupReport:
    return GroupReport(
        scan.group_id,
        scan.descriptor,
        scan.hard_state,
        scan.membership,
        scan.log_start,
        scan.first_index,
        scan.last_index,
        scan.last_term,
        scan.records,
        scan.size_bytes,
        scan.problems,
        scan.snapshot.index if scan.snapshot is not None else 0,
        len(scan.snapshot.data) if scan.snapshot is not None else 0,
        scan.removed,
    )
