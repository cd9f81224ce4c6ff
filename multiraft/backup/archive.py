"""What a backup is on disk.

    DIR/manifest.json    written last: cluster, when, and of each group the cut and the digest of its file
    DIR/progress.json    the same while the backup is being made; a backup that is begun again goes on from it
    DIR/groups/NAME      of each group its state, as a snapshot file (multiraft.snapshot_file)
    FILE                 all of that as one tar file, not compressed: the states are

Each group is cut at one index of its own log; the cuts of different groups are of different moments, and the manifest
says so. What a client wrote to two groups may be in one of them only.

Rules of this file: a backup without its manifest is none; nothing is used whose digest does not hold.
"""

from __future__ import annotations

import os
import tarfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final

from multiraft.errors import BackupRefused, CorruptRecord
from multiraft.recovery.documents import load_document, save_document
from multiraft.snapshot_file import FileReader, Manifest, is_file_name
from multiraft.types import GroupId, Index, NodeId, Term

MANIFEST: Final = "manifest.json"
PROGRESS: Final = "progress.json"
GROUPS_DIR: Final = "groups"
KIND: Final = "backup"
NOTE: Final = "each group is a consistent cut at its own index; the cuts of different groups are of different moments"
_READ_BYTES: Final = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Cut:
    """One group's state as of one index.

    service     the name that its machine was declared under
    index, term  of the last entry that is in it
    wall_ms      when it was asked for, by the clock of whoever made the backup
    manifest     which bytes its file is
    """

    group_id: GroupId
    service: str
    index: Index
    term: Term
    wall_ms: int
    manifest: Manifest

    def to_plain(self) -> dict[str, Any]:
        found = self.manifest
        return {
            "group_id": self.group_id,
            "service": self.service,
            "index": self.index,
            "term": self.term,
            "wall_ms": self.wall_ms,
            "file": found.name,
            "size_bytes": found.size_bytes,
            "digest": found.digest.hex(),
            "raw_bytes": found.raw_bytes,
            "time_ms": found.time_ms,
            "hash": found.hash,
            "kind": found.kind,
        }

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> Cut:
        if not is_file_name(plain["file"]):
            raise BackupRefused(f"{plain['file']!r:.60} is no name of a group's file; the manifest was made up")
        manifest = Manifest(
            plain["file"],
            plain["size_bytes"],
            bytes.fromhex(plain["digest"]),
            plain["raw_bytes"],
            plain["index"],
            plain["time_ms"],
            plain["hash"],
            plain["kind"],
        )
        return cls(plain["group_id"], plain["service"], plain["index"], plain["term"], plain["wall_ms"], manifest)


@dataclass(frozen=True, slots=True)
class Backup:
    """What a backup holds.

    cluster_id  of the cluster that it is of, in hex
    whole       whether it holds every group that there was; an export of one group does not
    nodes       of the cluster, with their addresses
    cuts        by group id
    """

    path: str
    cluster_id: str
    whole: bool
    began_ms: int
    ended_ms: int = 0
    nodes: Mapping[NodeId, str] = field(default_factory=dict)
    cuts: Mapping[GroupId, Cut] = field(default_factory=dict)

    def file_of(self, cut: Cut) -> str:
        return os.path.join(self.path, GROUPS_DIR, cut.manifest.name)

    def chunks(self, cut: Cut) -> Iterator[bytes]:
        """Yield the chunks of a group's state; verified as a whole when the last one was taken.

        Raises BackupRefused: the file is gone, cut short, or changed.
        """
        reader = FileReader(cut.manifest)
        try:
            with open(self.file_of(cut), "rb") as file:
                while piece := file.read(_READ_BYTES):
                    yield from reader.feed(piece)
            reader.finish()
        except OSError as problem:
            raise BackupRefused(f"{self.file_of(cut)} cannot be read: {problem.strerror}") from problem
        except CorruptRecord as problem:
            raise BackupRefused(f"{self.file_of(cut)} is damaged: {problem}; use another backup") from problem

    def with_cut(self, cut: Cut) -> Backup:
        return replace(self, cuts={**self.cuts, cut.group_id: cut})

    def to_plain(self) -> dict[str, Any]:
        return {
            "note": NOTE,
            "cluster_id": self.cluster_id,
            "whole": self.whole,
            "began_ms": self.began_ms,
            "ended_ms": self.ended_ms,
            "nodes": dict(self.nodes),
            "groups": [cut.to_plain() for _, cut in sorted(self.cuts.items())],
        }


def save_backup(backup: Backup, name: str) -> None:
    """Write the manifest, or what there is of it so far (`name`: MANIFEST or PROGRESS). Raises RecoveryRefused."""
    save_document(os.path.join(backup.path, name), KIND, backup.to_plain())


def load_backup(path: str, name: str = MANIFEST) -> Backup:
    """Read what the backup in the directory `path` says that it holds.

    Raises BackupRefused (not finished), RecoveryRefused (no backup, or a manifest that was changed).
    """
    file = os.path.join(path, name)
    if not os.path.exists(file):
        unfinished = os.path.exists(os.path.join(path, PROGRESS))
        why = "was not finished; run `multiraft backup` again, it goes on" if unfinished else "holds no manifest.json"
        raise BackupRefused(f"{path} {why}" + ("" if unfinished else "; name the directory of a backup"))
    body = load_document(file, KIND)
    cuts = [Cut.from_plain(plain) for plain in body["groups"]]
    return Backup(
        path,
        body["cluster_id"],
        body["whole"],
        body["began_ms"],
        body["ended_ms"],
        dict(body["nodes"]),
        {cut.group_id: cut for cut in cuts},
    )


def verify_cut(backup: Backup, cut: Cut) -> None:
    """Read a group's file to its end. Raises BackupRefused when its digest does not hold."""
    for _ in backup.chunks(cut):
        pass


def pack(backup: Backup, file: str) -> None:
    """Make one tar file of a finished backup, in place of one that is there. Raises BackupRefused."""
    try:
        with tarfile.open(file + ".tmp", "w") as archive:
            archive.add(os.path.join(backup.path, MANIFEST), MANIFEST)
            for _, cut in sorted(backup.cuts.items()):
                archive.add(backup.file_of(cut), f"{GROUPS_DIR}/{cut.manifest.name}")
        with open(file + ".tmp", "rb") as written:
            os.fsync(written.fileno())
        os.replace(file + ".tmp", file)
    except OSError as problem:
        raise BackupRefused(f"{file} cannot be written: {problem.strerror}; name another file") from problem


def unpack(file: str, path: str, told: Callable[[int], None] = lambda count: None) -> Backup:
    """Take the backup in the tar file `file` apart, into the empty directory `path`.

    Raises BackupRefused: not a backup, or it names files that no backup has.
    """
    os.makedirs(os.path.join(path, GROUPS_DIR), exist_ok=True)
    try:
        with tarfile.open(file, "r:") as archive:
            for count, member in enumerate(archive, 1):
                folder, _, name = member.name.rpartition("/")
                whole = member.name == MANIFEST or (folder == GROUPS_DIR and is_file_name(name))
                source = archive.extractfile(member) if whole and member.isfile() else None
                if source is None:
                    raise BackupRefused(f"{file} holds {member.name!r:.80}, which no backup does; name another file")
                with source, open(os.path.join(path, member.name), "wb") as target:
                    while piece := source.read(_READ_BYTES):
                        target.write(piece)
                told(count)
    except (tarfile.TarError, EOFError) as problem:
        raise BackupRefused(f"{file} is no export, or was cut short: {problem}") from problem
    except OSError as problem:
        raise BackupRefused(f"{file} cannot be read: {problem.strerror or problem}") from problem
    return load_backup(path)
