"""The data directory of a stopped node as plain data, for the command line.

Rules of this file: nothing is written but by `repair_store` and `compact_store`; what cannot be looked at raises one of
the client's kind of errors, so that the command line treats a directory and a node alike.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TypeVar

from multiraft.admin.client import NotFound, offline_failure
from multiraft.admin.view import Facts
from multiraft.errors import StorageError
from multiraft.storage import (
    GroupReport,
    StoreReport,
    compact_directory,
    inspect_directory,
    repair_directory,
    verify_directory,
)
from multiraft.types import Identity, Membership, Tombstone

T = TypeVar("T")


def inspect_store(directory: str) -> Facts:
    """Read and check the data directory, and return what it holds; `healthy` says whether everything holds.

    Raises NotFound when there is no such directory, NodeFailed when it is no data directory, is in use, or
    cannot be opened.
    """
    report = _asked(directory, lambda: inspect_directory(directory))
    return _facts(report)


def verify_store(directory: str, told: Callable[[str, int], None]) -> Facts:
    """Read and check everything in the data directory; `healthy` says whether everything holds. Raises as above.

    told  called now and then with what is being read, and how much of it has been
    """
    found = _asked(directory, lambda: verify_directory(directory, told))
    facts = _facts(found.report)
    counts = {
        name: getattr(found, name) for name in ("spaces", "values", "value_bytes", "files", "file_bytes", "loose")
    }
    return {**facts, **counts, "healthy": found.sound, "problems": [*facts["problems"], *found.problems]}


def repair_store(directory: str, apply: bool) -> Facts:
    """Say what of a damaged directory would be left out; with `apply`, leave it out. Raises as above."""
    found = _asked(directory, lambda: repair_directory(directory, apply=apply))
    damages = [
        {name: getattr(damage, name) for name in ("first", "last", "problem", "replica_id", "alone")}
        for damage in found.damages
    ]
    return {
        "path": directory,
        "healthy": not damages,
        "done": found.done,
        "damages": damages,
        "groups": list(found.groups),
    }


def compact_store(directory: str) -> Facts:
    """Compact the database in the directory. Raises as above."""
    found = _asked(directory, lambda: compact_directory(directory))
    return {"path": directory, "before_bytes": found.before_bytes, "after_bytes": found.after_bytes}


def _asked(directory: str, ask: Callable[[], T]) -> T:
    if not os.path.isdir(directory):
        raise NotFound(f"there is no directory {directory}", "name the data_dir of a node that is stopped")
    try:
        return ask()
    except StorageError as problem:
        raise offline_failure(str(problem)) from problem


def _facts(report: StoreReport) -> Facts:
    groups = [_group(group) for group in report.groups]
    problems = [*report.problems, *(problem for group in report.groups for problem in group.problems)]
    return {
        "path": report.path,
        "healthy": report.sound,
        "problems": problems,
        "identity": _identity(report.identity),
        "incarnation": report.incarnation,
        "closed_orderly": report.closed_orderly,
        "groups": groups,
        "tombstones": [_tombstone(tombstone) for tombstone in report.tombstones],
    }


def _identity(identity: Identity | None) -> Facts | None:
    if identity is None:
        return None
    return {
        "node_id": identity.node_id,
        "store_id": identity.store_id.hex(),
        "cluster_id": identity.cluster_id.hex(),
        "stores": {node_id: store_id.hex() for node_id, store_id in identity.stores.items()},
    }


def _group(group: GroupReport) -> Facts:
    descriptor, state, start = group.descriptor, group.hard_state, group.log_start
    return {
        "group_id": group.group_id,
        "service": descriptor.service if descriptor else None,
        "replica_id": descriptor.replica_id if descriptor else None,
        "term": state.term if state else None,
        "vote": state.vote if state else None,
        "commit": state.commit if state else None,
        "log_start": {"index": start.index, "term": start.term} if start else None,
        "first": group.first_index,
        "last": group.last_index,
        "last_term": group.last_term,
        "records": group.records,
        "size_bytes": group.size_bytes,
        "membership": _membership(group.membership),
        "snapshot": {"index": group.snapshot_index, "size_bytes": group.snapshot_bytes},
        "removed": group.removed,
        "problems": list(group.problems),
    }


def _tombstone(tombstone: Tombstone) -> Facts:
    return {"group_id": tombstone.group_id, "replica_id": tombstone.replica_id, "index": tombstone.index}


def _membership(membership: Membership | None) -> Facts | None:
    if membership is None:
        return None
    return {
        "index": membership.index,
        "voters": list(membership.voters),
        "outgoing": list(membership.outgoing),
        "learners": list(membership.learners),
        "nodes": dict(membership.nodes),
    }
