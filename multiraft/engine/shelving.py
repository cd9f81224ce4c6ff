"""Which snapshot files of a node are still wanted, and the end of those that are not.

    wanted   the one that a group's stored snapshot names, and any of a damaged replica; one that is about to be named;
             one that is being made, sent or fetched; and one of an entry beyond the group's commit here, for an
             interrupted fetch may go on, until the group fetches another
    the rest is deleted: left over from a crash, or of a snapshot that a later one has replaced

Rules of this file: nothing is deleted before what replaces it is on disk.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from multiraft.engine.replica import Replica
from multiraft.errors import CorruptRecord, NoSuchFile, StorageError
from multiraft.snapshot_file import decode_manifest, group_and_index, is_manifest
from multiraft.types import GroupId, Snapshot

if TYPE_CHECKING:
    from multiraft.engine.engine import Engine

_SWEEP_S: Final = 30.0
log: Final = logging.getLogger("multiraft.engine")


class Shelving:
    """The snapshot files of one engine's node.

    keeps    whether a file is being sent or fetched
    fetches  whether one is fetched for a group
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._named: dict[GroupId, str] = {}
        self._coming: dict[str, GroupId] = {}
        self._next_sweep_s = 0.0
        self.keeps: Callable[[str], bool] = lambda _: False
        self.fetches: Callable[[GroupId], bool] = lambda _: False

    def opened(self, replica: Replica, snapshot: Snapshot | None) -> None:
        """The stored snapshot of a replica that is taken up is this one."""
        self._name(replica.group_id, snapshot.data if snapshot is not None else b"")

    def coming(self, replica: Replica, data: bytes) -> None:
        """This is about to be stored as a replica's snapshot."""
        if is_manifest(data):
            self._coming[decode_manifest(data).name] = replica.group_id

    def stored(self, replica: Replica, snapshot: Snapshot) -> None:
        """This is a replica's snapshot from now on, on disk: what it replaces can go."""
        old = self._named.get(replica.group_id)
        self._name(replica.group_id, snapshot.data)
        if old is not None and old != self._named.get(replica.group_id):
            self._delete(old)

    def left(self, group_id: GroupId) -> None:
        """The group's replica was removed, which is on disk."""
        self._coming = {name: group for name, group in self._coming.items() if group != group_id}
        old = self._named.pop(group_id, None)
        if old is not None:
            self._delete(old)

    def lost(self, replica: Replica) -> bool:
        """Whether the file that a replica's stored snapshot names is not there."""
        name = self._named.get(replica.group_id)
        try:
            return name is not None and self._engine.store.files.size(name) < 0
        except NoSuchFile:
            return True

    def unwanted(self, data: bytes) -> None:
        """What was saved will not be stored."""
        if is_manifest(data):
            self._delete(decode_manifest(data).name)

    def sweep_soon(self) -> None:
        """Something may be wanted no longer."""
        self._next_sweep_s = 0.0

    def sweep(self, now: float) -> None:
        """Every now and then: delete what nobody wants any more."""
        if now < self._next_sweep_s:
            return
        self._next_sweep_s = now + _SWEEP_S
        files = self._engine.store.files
        try:
            names = files.names()
        except StorageError as problem:
            log.warning("snapshot files cannot be looked at: %s", problem)
            return
        for name in names:
            if not self._is_wanted(name):
                log.info("snapshot file %s is deleted: nothing needs it", name)
                files.delete(name)

    def _name(self, group_id: GroupId, data: bytes) -> None:
        self._named.pop(group_id, None)
        if is_manifest(data):
            try:
                name = decode_manifest(data).name
            except CorruptRecord:
                return
            self._coming.pop(name, None)
            self._named[group_id] = name

    def _delete(self, name: str) -> None:
        if not self._is_wanted(name):
            self._engine.store.files.delete(name)

    def _is_wanted(self, name: str) -> bool:
        found = group_and_index(name)
        if found is None:
            return False
        group_id, index = found
        replica = self._engine.replicas.get(group_id)
        if name in self._coming or self._named.get(group_id) == name:
            return True
        if self.keeps(name) or self._engine.ondisk.files.wants(name):
            return True
        if replica is None:  # a damaged one's may be all that is left of its group
            return self._engine.residents.quarantine.of(group_id) is not None
        if replica.saving is not None and replica.saving.name == name:
            return True
        return index > replica.core.commit and not self.fetches(group_id)
