"""Giving one group of a stopped cluster the state that an export holds.

All its replicas get the same snapshot, as of an index above everything that any of them has, in a term above all that
they have seen, and an empty log above it. So whoever of them leads next has that state, and so has everybody else. What
the group held is gone.

Rules of this file: every replica of the group is there, or nothing is written; one that fails half-way is done again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from multiraft.backup.archive import Backup, Cut, verify_cut
from multiraft.backup.restoring import STORED_ON_DISK, StoreWriter
from multiraft.config import Limits
from multiraft.errors import BackupRefused
from multiraft.recovery.collecting import collect_directory
from multiraft.recovery.facts import NodeFacts, ReplicaFacts
from multiraft.snapshot_file import DISK
from multiraft.storage import open_durable
from multiraft.storage.directory import kind_of
from multiraft.types import DIRECTORY_GROUP, GroupId, HardState, Index, LogStart, Membership, NodeId, Snapshot, Term


@dataclass(frozen=True, slots=True)
class Replacement:
    """What a group goes on from. `nodes`: those of its replicas, with their directories."""

    group_id: GroupId
    index: Index
    term: Term
    nodes: Mapping[NodeId, str]
    membership: Membership


def plan_replacement(backup: Backup, group_id: GroupId, directories: Sequence[str]) -> Replacement:
    """Say what would become of the group. `directories`: of all nodes that have a replica of it, stopped.

    Raises BackupRefused: nothing of the group in the backup, or damaged, of another service, a replica that is not
    there, a membership change under way; StorageError; RecoveryRefused: an empty directory.
    """
    cut = backup.cuts.get(group_id)
    if cut is None:
        raise BackupRefused(f"{backup.path} holds nothing of group {group_id}; it has {_listed(backup)}")
    if group_id == DIRECTORY_GROUP:
        raise BackupRefused("the directory (group 1) cannot be replaced in a cluster that exists; restore the whole")
    verify_cut(backup, cut)
    nodes = [collect_directory(path) for path in directories]
    if len({node.identity.cluster_id for node in nodes}) != 1:
        raise BackupRefused("the directories are not of one cluster; name those of one")
    found = {node.identity.node_id: (node, one) for node in nodes for one in node.replicas if one.group_id == group_id}
    if not found:
        raise BackupRefused(f"none of these nodes has a replica of group {group_id}; name those that have")
    membership = _membership(group_id, found)
    missing = sorted(set(membership.nodes.values()) - set(found))
    if missing:
        raise BackupRefused(
            f"group {group_id} has replicas on {', '.join(missing)}, too: give the directories of all its nodes"
        )
    for name, (_, replica) in found.items():
        if replica.service != cut.service:
            raise BackupRefused(
                f"group {group_id} on node {name!r} is of service {replica.service!r}, the export of {cut.service!r}"
            )
    return Replacement(
        group_id,
        max(max(replica.last_index for _, replica in found.values()), cut.index) + 1,
        max(max(replica.term for _, replica in found.values()), cut.term) + 1,
        {name: node.path for name, (node, _) in sorted(found.items()) if name in set(membership.nodes.values())},
        membership,
    )


def _membership(group_id: GroupId, found: Mapping[NodeId, tuple[NodeFacts, ReplicaFacts]]) -> Membership:
    for name, (_, replica) in found.items():
        if replica.problems or replica.membership is None:
            raise BackupRefused(f"group {group_id} on node {name!r} is damaged; have it healed or replaced first")
        if replica.pending or replica.membership.joint:
            raise BackupRefused(f"the members of group {group_id} are changing; start the cluster, and let that end")
    every = [replica.membership for _, replica in found.values() if replica.membership is not None]
    return max(every, key=lambda membership: membership.index)


def replace_group(backup: Backup, replacement: Replacement, limits: Limits) -> None:
    """Carry it out. Raises StorageError; do it again then, and start no node before."""
    asyncio.run(_replace(backup, backup.cuts[replacement.group_id], replacement, limits))


async def _replace(backup: Backup, cut: Cut, how: Replacement, limits: Limits) -> None:
    loop = asyncio.get_running_loop()
    for name, path in how.nodes.items():
        store = open_durable(kind_of(path), path, name, limits, loop)
        try:
            writer = StoreWriter(store, path, limits)
            on_disk = store.view()
            try:
                keeps_data = on_disk.read_applied(how.group_id) is not None
            finally:
                on_disk.close()
            if keeps_data != (cut.manifest.kind == DISK):
                kept = "on disk" if keeps_data else "in memory"
                raise BackupRefused(f"group {how.group_id} keeps its state {kept}, unlike the export")
            applied, data = None, b""
            if keeps_data:
                applied, data = await writer.put_pairs(backup, cut, how.index, how.term), STORED_ON_DISK
            else:
                data = await writer.state_of(backup, cut)
            batch, start = store.batch(), LogStart(how.index, how.term)
            batch.delete_records(how.group_id, store.read_firsts(how.group_id, 0))
            batch.put_hard_state(how.group_id, HardState(how.term, 0, how.index))
            batch.put_membership(how.group_id, how.membership)
            batch.put_snapshot(how.group_id, Snapshot(how.index, how.term, how.membership, data), start)
            batch.put_halt(how.group_id, None)
            if applied is not None:
                batch.put_applied(how.group_id, applied)
            await writer.write(batch)
        finally:
            await store.close()


def _listed(backup: Backup) -> str:
    groups = sorted(backup.cuts)
    return ", ".join(map(str, groups[:20])) + (" ..." if len(groups) > 20 else "")
