"""Whether the directories of the survivors agree, after a plan was applied and before, or after, their nodes have run.

Rules of this file: reads only; everything that does not hold is a line, with the group that it concerns.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from multiraft.errors import RecoveryRefused
from multiraft.recovery.collecting import collect_directory
from multiraft.recovery.facts import NodeFacts, ReplicaFacts
from multiraft.recovery.planning import has_quorum
from multiraft.types import GroupId, NodeId, generation_name


def verify_directories(paths: Sequence[str]) -> dict[str, Any]:
    """Return generation, groups and problems as plain data; `healthy` says whether there are no problems.

    Raises StorageError, RecoveryRefused (a directory of no cluster, or none given).
    """
    if not paths:
        raise RecoveryRefused("no directory is given; name those of all surviving nodes")
    nodes = [collect_directory(path) for path in paths]
    problems = _of_nodes(nodes)
    groups = []
    for group_id in sorted({replica.group_id for node in nodes for replica in node.replicas}):
        found = {
            node.identity.node_id: replica
            for node in nodes
            for replica in node.replicas
            if replica.group_id == group_id
        }
        groups.append(_group(group_id, found, problems))
    return {
        "healthy": not problems,
        "problems": problems,
        "nodes": [
            {"node_id": node.identity.node_id, "generation": generation_name(node.identity.generation)}
            for node in nodes
        ],
        "groups": groups,
    }


def _of_nodes(nodes: Sequence[NodeFacts]) -> list[str]:
    problems = []
    if len({node.identity.cluster_id for node in nodes}) > 1:
        problems.append("the directories are of different clusters")
    latest = max(node.identity.generation for node in nodes)
    problems += [
        f"node {node.identity.node_id!r} is of recovery generation {generation_name(node.identity.generation)}, others "
        f"are of {generation_name(latest)}: apply the plan there, before any node is started"
        for node in nodes
        if node.identity.generation != latest
    ]
    return problems


def _group(group_id: GroupId, found: dict[NodeId, ReplicaFacts], problems: list[str]) -> dict[str, Any]:
    whole = {name: replica for name, replica in sorted(found.items()) if replica.membership is not None}
    problems += [f"group {group_id} on node {name!r}: {one.problems[0]}" for name, one in found.items() if one.problems]
    row: dict[str, Any] = {"group_id": group_id, "service": "", "source": "", "voters": [], "learners": [], "last": 0}
    if not whole:
        return row
    source = max(whole, key=lambda name: (whole[name].last_term, whole[name].last_index))
    best = whole[source]
    membership = max(
        (replica.membership for replica in whole.values() if replica.membership is not None), key=lambda one: one.index
    )
    ids = {replica.replica_id for replica in whole.values()}
    quorum = has_quorum(membership, ids)
    if not quorum:
        problems.append(f"group {group_id}: these nodes are no quorum of it")
    row.update(
        service=best.service,
        source=source,
        voters=[membership.nodes[replica_id] for replica_id in membership.voters],
        learners=[membership.nodes[replica_id] for replica_id in membership.learners],
        last=best.last_index,
        quorum=quorum,
    )
    return row
