"""Carrying a plan out, on one surviving node, while it is stopped.

Everything is one write. Applied again, it changes nothing; interrupted, it is applied again.

Rules of this file: a directory that is not exactly as it was collected is refused; nothing is written in a dry run.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from multiraft.errors import RecoveryRefused, invariant
from multiraft.membership import pack_membership
from multiraft.records import MEMBERSHIP, encode_record
from multiraft.recovery.collecting import collect_store
from multiraft.recovery.facts import NodeFacts, ReplicaFacts
from multiraft.recovery.plans import RECOVERED, GroupPlan, Plan
from multiraft.storage.backend import Backend
from multiraft.storage.identity import read_opening
from multiraft.storage.recovery import Rewrite, mend_identity_file, reading_store, write_recovery, writing_store
from multiraft.types import GroupId, HardState, NodeId, Tombstone, generation_name


@dataclass(frozen=True, slots=True)
class Applied:
    """What was done, or would be.

    done     by an earlier call: nothing was left to do
    written  by this call; False in a dry run
    actions  by group id, in words
    """

    node_id: NodeId
    generation: int
    done: bool
    written: bool
    actions: dict[GroupId, str]


def apply_plan(plan: Plan, path: str, write: bool) -> Applied:
    """Carry the plan out on the data directory `path`, or (not `write`) say what would be done.

    Raises RecoveryRefused: a node that the plan does not count on, or one that has run since it was collected;
    StorageError: in use, damaged, or cannot be written.
    """
    with reading_store(path) as (reader, opening):
        node = collect_store(path, reader, opening)
    if _is_done(plan, node):
        if write:
            with writing_store(path) as backend:
                mend_identity_file(backend)
        return Applied(node.identity.node_id, plan.generation, True, False, {})
    actions, rewrites = _checked_rewrites(plan, node)
    if write:
        with writing_store(path) as backend:
            write_recovery(backend, replace(node.identity, generation=plan.generation), rewrites)
    return Applied(node.identity.node_id, plan.generation, False, write, actions)


def apply_to_backend(plan: Plan, backend: Backend) -> Applied:
    """The same, written, on a store of any kind that is open without a run."""
    node = collect_store(backend.name, backend, read_opening(backend))
    if _is_done(plan, node):
        mend_identity_file(backend)
        return Applied(node.identity.node_id, plan.generation, True, False, {})
    actions, rewrites = _checked_rewrites(plan, node)
    write_recovery(backend, replace(node.identity, generation=plan.generation), rewrites)
    return Applied(node.identity.node_id, plan.generation, False, True, actions)


def _is_done(plan: Plan, node: NodeFacts) -> bool:
    identity = node.identity
    name = f"{node.path} (node {identity.node_id!r})"
    if identity.cluster_id != plan.cluster_id:
        raise RecoveryRefused(f"{name} is of cluster {identity.cluster_id.hex()}, the plan of {plan.cluster_id.hex()}")
    survivor = plan.survivors.get(identity.node_id)
    if survivor is None:
        raise RecoveryRefused(
            f"{name} is not among the nodes that the plan counts on ({', '.join(sorted(plan.survivors))}). If it "
            "survives, collect from it as well and plan anew, before anything is applied anywhere"
        )
    if survivor.store_id != identity.store_id:
        raise RecoveryRefused(f"{name} has another store than the one that was collected; name that one's directory")
    if identity.generation == plan.generation:
        return True
    if identity.generation != plan.latest:
        raise RecoveryRefused(
            f"{name} is of recovery generation {generation_name(identity.generation)}; the plan leads from "
            f"{generation_name(plan.latest)} to {generation_name(plan.generation)}: another plan was applied here"
        )
    return False


def _checked_rewrites(plan: Plan, node: NodeFacts) -> tuple[dict[GroupId, str], list[Rewrite]]:
    survivor = plan.survivors[node.identity.node_id]
    now = {replica.group_id: replica.state for replica in node.replicas}
    if now != survivor.states or node.incarnation != survivor.incarnation:
        raise RecoveryRefused(
            f"{node.path} is not as it was collected: its node has run since. Keep all nodes stopped, collect and plan "
            "anew"
        )
    actions: dict[GroupId, str] = {}
    rewrites: list[Rewrite] = []
    replicas = {replica.group_id: replica for replica in node.replicas}
    for group in plan.groups:
        replica = replicas.get(group.group_id)
        if group.verdict != RECOVERED or replica is None or replica.problems:
            continue
        for action, rewrite in _rewrites(group, replica, node.identity.node_id, plan):
            actions[group.group_id] = action
            rewrites.append(rewrite)
    return actions, rewrites


def _rewrites(group: GroupPlan, replica: ReplicaFacts, node_id: NodeId, plan: Plan) -> Iterator[tuple[str, Rewrite]]:
    membership, group_id = group.membership, group.group_id
    if membership is None:
        return
    index = membership.index
    if node_id == group.source:
        invariant(index == replica.last_index + 1, f"group {group_id}: the plan goes on where the log ends")
        stamp_ms, entry = group.stamp_ms, pack_membership(membership)
        record = encode_record(group_id, index, group.term, group.previous_term, MEMBERSHIP, stamp_ms, [entry])
        state = HardState(group.term, replica.replica_id, index)
        yield f"goes on from here, from {index} in term {group.term}", Rewrite(group_id, state, membership, record)
    elif node_id in group.follows:
        source = plan.survivors[group.source].states[group_id][0]
        state = HardState(max(group.term, replica.term), source, replica.commit)
        yield f"follows node {group.source!r}", Rewrite(group_id, state)
    elif node_id in dict(group.removed):
        tombstone = Tombstone(group_id, replica.replica_id, index)
        yield "is removed from here, to be added again", Rewrite(group_id, None, tombstone=tombstone)
