"""Whether a cluster that runs after a recovery is what the plan has promised.

What the plan put in force, an entry of its term at a known index, is below everything that the cluster does from then
on. So a group that was recovered by this plan has a commit and a term that are no lower, and a membership that is that
one or a later one; and no replica that was given up takes part in it under its old id.

Rules of this file: pure functions; what the cluster has done since, and what the plan said is gone, is no problem.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from multiraft.recovery.plans import GONE, RECOVERED, GroupPlan, Plan
from multiraft.types import GroupId, Index, NodeId, ReplicaId, Term, generation_name


@dataclass(frozen=True, slots=True)
class RunningGroup:
    """One group as the nodes that run tell of it.

    leader            its node; None: nobody leads it
    membership_index  of the membership in effect
    members           that membership's replicas, and their nodes
    """

    group_id: GroupId
    leader: NodeId | None
    term: Term
    commit: Index
    membership_index: Index
    members: Mapping[ReplicaId, NodeId]


def differences(plan: Plan, generations: Mapping[NodeId, str], groups: Iterable[RunningGroup]) -> list[str]:
    """Return in one line each what is not as `plan` has promised.

    generations  the recovery generation of every node that runs, by its name for people
    """
    wanted = generation_name(plan.generation)
    problems = [
        f"node {name!r}, which survives by the plan, does not run" for name in plan.survivors if name not in generations
    ]
    problems += [
        f"node {name!r} is of recovery generation {found}, the plan's is {wanted}: the plan was not applied there"
        for name, found in sorted(generations.items())
        if found != wanted
    ]
    running = {group.group_id: group for group in groups}
    for planned in plan.groups:
        problems += [f"group {planned.group_id}: {what}" for what in _of_group(planned, running.get(planned.group_id))]
    return problems


def gone_by_plan(plan: Plan) -> set[GroupId]:
    """Return the groups of which nothing survived: that nobody leads them is what the plan has said."""
    return {group.group_id for group in plan.groups if group.verdict == GONE}


def _of_group(planned: GroupPlan, found: RunningGroup | None) -> list[str]:
    if planned.verdict == GONE:
        return []
    if found is None or found.leader is None:
        why = "nobody tells of it" if found is None else "nobody leads it"
        return [f"{why}, but by the plan it is {planned.verdict}"]
    membership = planned.membership
    if planned.verdict != RECOVERED or membership is None:
        return []
    problems = []
    if found.term < planned.term:
        problems.append(f"its term is {found.term}, but the plan has put it in term {planned.term}")
    if found.commit < membership.index:
        problems.append(f"it is committed up to {found.commit} only, but by the plan up to {membership.index} at least")
    if found.membership_index < membership.index:
        problems.append(
            f"its membership is that of index {found.membership_index}, from before the recovery; the plan's is that "
            f"of index {membership.index}"
        )
    elif found.membership_index == membership.index and dict(found.members) != dict(membership.nodes):
        problems.append(f"its members are {_named(found.members)}, but by the plan {_named(membership.nodes)}")
    # Ids are never used again, and those of the plan's membership are all that may go on.
    revived = {
        replica_id: node_id
        for replica_id, node_id in found.members.items()
        if replica_id < membership.next_replica_id and replica_id not in membership.nodes
    }
    if revived:
        problems.append(f"replicas take part that were given up: {_named(revived)}")
    return problems


def _named(members: Mapping[ReplicaId, NodeId]) -> str:
    return ", ".join(f"{replica_id} on {node_id}" for replica_id, node_id in sorted(members.items())) or "nobody"
