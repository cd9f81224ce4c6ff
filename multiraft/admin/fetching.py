"""Fetching the states of groups from a running cluster into the directory of a backup.

    begin an export on the group's leader ──> wait until it is ready ──> fetch it ──> check its digest ──> note it

What was noted is not fetched again, however often the backup is interrupted. A fetch that breaks off goes on at the
offset that it has come to; one of an earlier call begins anew, with another cut.

Rules of this file: nothing is noted whose digest was not checked.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable
from typing import Any, Final

from multiraft.admin.client import AdminClient, AdminClientError, CannotReach, NodeFailed
from multiraft.admin.view import Facts
from multiraft.backup import Backup, Cut, load_backup, save_backup, verify_cut
from multiraft.backup.archive import GROUPS_DIR, MANIFEST, PROGRESS
from multiraft.errors import BackupRefused, RecoveryRefused
from multiraft.types import DIRECTORY_GROUP, GroupId

_LOOK_S: Final = 0.05
_READY_S: Final = 600.0
_TRIES: Final = 5
_RETRY_S: Final = 0.5
_PART: Final = ".part"
Told = Callable[[int, int, int], None]
"""Called with how many groups are done, of how many, and how many bytes were fetched so far."""


class Fetcher:
    """Makes one backup through any node of the cluster."""

    def __init__(self, client: AdminClient, path: str, told: Told) -> None:
        self._client = client
        self._path = path
        self._told = told
        self._bytes = 0

    def fetch(self, only: GroupId | None = None) -> Backup:
        """Make the backup of all groups, or of one, and return it when its manifest is written.

        Raises AdminClientError, BackupRefused (a directory with another backup in it), RecoveryRefused.
        """
        backup = self._begun(self._client.get("status"), only is None)
        os.makedirs(os.path.join(self._path, GROUPS_DIR), exist_ok=True)
        if only is None and DIRECTORY_GROUP not in backup.cuts:
            # First: every group that it knows is there when the others are listed.
            backup = backup.with_cut(self._fetch_group(backup, DIRECTORY_GROUP))
            save_backup(backup, PROGRESS)
        listed = [only] if only is not None else [row["group_id"] for row in self._client.get("groups")["groups"]]
        wanted = sorted({*listed, *backup.cuts})
        for group_id in wanted:
            if group_id not in backup.cuts:
                backup = backup.with_cut(self._fetch_group(backup, group_id))
                save_backup(backup, PROGRESS)
            self._told(len(backup.cuts), len(wanted), self._bytes)
        whole = Backup(
            backup.path, backup.cluster_id, backup.whole, backup.began_ms, _now_ms(), backup.nodes, backup.cuts
        )
        save_backup(whole, MANIFEST)
        with contextlib.suppress(OSError):
            os.remove(os.path.join(self._path, PROGRESS))
        return whole

    def _begun(self, status: Facts, whole: bool) -> Backup:
        """Return what an interrupted call has left, or an empty backup."""
        cluster_id = str(status["cluster_id"])
        if os.path.exists(os.path.join(self._path, MANIFEST)):
            raise BackupRefused(f"{self._path} holds a backup already; name an empty directory")
        try:
            begun = load_backup(self._path, PROGRESS)
        except (BackupRefused, RecoveryRefused):
            if os.path.isdir(self._path) and os.listdir(self._path) not in ([], [GROUPS_DIR]):
                raise BackupRefused(f"{self._path} is not empty; name a directory that is, or is not there") from None
            nodes = {node["node_id"]: str(node.get("listen") or "") for node in status["nodes"]}
            return Backup(self._path, cluster_id, whole, _now_ms(), 0, nodes)
        if begun.cluster_id != cluster_id or begun.whole != whole:
            raise BackupRefused(f"{self._path} holds the beginning of another backup; name an empty directory")
        for cut in begun.cuts.values():
            verify_cut(begun, cut)
        return begun

    def _fetch_group(self, backup: Backup, group_id: GroupId) -> Cut:
        problem: AdminClientError | BackupRefused | None = None
        for _ in range(_TRIES):
            try:
                return self._cut(backup, group_id)
            except (CannotReach, NodeFailed, BackupRefused) as failure:
                problem = failure
                time.sleep(_RETRY_S)
        raise problem if problem is not None else BackupRefused(f"group {group_id} could not be fetched")

    def _cut(self, backup: Backup, group_id: GroupId) -> Cut:
        wall_ms = _now_ms()
        begun = self._client.post("groups", str(group_id), "exports", body={})
        node, name = str(begun["node"]), str(begun["name"])
        try:
            ready = self._ready(node, name)
            cut = _as_cut(ready, wall_ms)
            self._download(node, name, backup.file_of(cut), cut.manifest.size_bytes)
            verify_cut(backup, cut)
            return cut
        finally:
            with contextlib.suppress(AdminClientError):
                self._client.post("exports", node, name, "drop", body={})

    def _ready(self, node: str, name: str) -> Facts:
        until_s = time.monotonic() + _READY_S
        while time.monotonic() < until_s:
            state = self._client.get("exports", node, name)
            if state["state"] == "ready":
                return state
            if state["state"] == "failed":
                raise NodeFailed(f"node {node} could not export group {state['group_id']}: {state['problem']}")
            time.sleep(_LOOK_S)
        raise NodeFailed(f"node {node} did not export within {_READY_S:g} s", "is its disk very slow? try again")

    def _download(self, node: str, name: str, path: str, size_bytes: int) -> None:
        """Fetch the export; what breaks off goes on where it stopped."""
        with open(path + _PART, "wb") as file:
            tries = 0
            while (offset := file.tell()) < size_bytes:
                try:
                    piece = self._client.read("exports", node, name, "bytes", params={"offset": offset})
                except CannotReach:
                    tries += 1
                    if tries >= _TRIES:
                        raise
                    time.sleep(_RETRY_S)
                    continue
                if not piece:
                    raise NodeFailed(f"export {name} of node {node} ends at {offset}, not at {size_bytes}")
                tries = 0
                file.write(piece)
                self._bytes += len(piece)
            file.flush()
            os.fsync(file.fileno())
        os.replace(path + _PART, path)


def _as_cut(ready: Facts, wall_ms: int) -> Cut:
    found: dict[str, Any] = dict(ready["cut"])
    plain = {**found, "group_id": ready["group_id"], "service": ready["service"], "wall_ms": wall_ms}
    return Cut.from_plain({**plain, "file": ready["name"]})


def _now_ms() -> int:
    return int(time.time() * 1_000)
