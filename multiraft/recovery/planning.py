"""From what was collected to a plan: which log each group goes on from, who takes part, and what that costs.

*Which log.* Of all replicas that survive, the one whose last entry has the highest term, and then the highest index,
as Raft compares logs when it elects (thesis, section 3.6.1). Every committed entry that any survivor holds is in it.
Let it end in an entry of term T. A committed entry of an earlier term was in the log of T's leader before anything of
term T was, and a log that has an entry of T equals that leader's up to it; one of term T itself is below that end, or
its holder's log would be the longer one. Learners count as well: their logs are prefixes like all others.

*Who takes part.* An entry with a new membership is put behind the end of that log, in a term above all that survivors
have seen, and the source alone votes in it. So everything before it becomes committed, and no other survivor can be
elected until it has that entry: whoever has it would refuse its vote to a shorter log. The other survivors follow as
learners, and the leader promotes them when they have caught up. Only where survivors without the source would be a
quorum of some membership that stands in a log, one that took effect or may do so in passing, their replicas are removed
and must be added anew.

*What is lost.* An entry is acknowledged when a quorum has it. Only where the lost replicas contain a quorum can there
be acknowledged entries that no survivor holds; how many, nobody can know. In all other cases there are none.

*What is newly committed.* Entries in the source's log above the highest commit that any survivor knows. Their callers
may have been told nothing, or that the outcome is unknown; each of them happens now.

Rules of this file: pure functions; whatever does not fit together is refused, never guessed.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace

from multiraft.errors import RecoveryRefused
from multiraft.recovery.documents import digest_of
from multiraft.recovery.facts import NodeFacts, ReplicaFacts
from multiraft.recovery.plans import GONE, KEPT, RECOVERED, GroupPlan, Plan, Survivor
from multiraft.types import DIRECTORY_GROUP, GroupId, Membership, NodeId, ReplicaId, generation_name, next_generation

_IDS_PASSED_OVER = 1_024
"""Replica ids that only lost replicas may know of are never given out."""


def make_plan(collected: Sequence[NodeFacts]) -> Plan:
    """Return what is to become of the cluster of which these nodes survive, and no other does.

    Raises RecoveryRefused: nothing was collected, nodes of different clusters or generations, two stores of one node,
    a store that was replaced or condemned, no copy of the directory, or logs that cannot be of one group.
    """
    by_node = _checked(collected)
    first = next(iter(by_node.values())).identity
    newest = max((node.identity for node in by_node.values()), key=lambda identity: identity.readmissions)
    lost = tuple(sorted(set(newest.stores) - set(by_node)))
    groups = []
    for group_id in sorted(_all_groups(by_node.values())):
        found = {
            node_id: replica
            for node_id, node in by_node.items()
            for replica in node.replicas
            if replica.group_id == group_id
        }
        groups.append(_plan_group(group_id, found, by_node))
    if not any(group.verdict != GONE for group in groups if group.group_id == DIRECTORY_GROUP):
        raise RecoveryRefused(
            "no copy of the directory (group 1) survives, so nobody knows which group serves what; collect from a node "
            "that has one, or restore a backup"
        )
    plan = Plan(
        first.cluster_id,
        first.generation,
        0,
        {
            node_id: Survivor(
                node_id,
                node.identity.store_id,
                node.incarnation,
                {replica.group_id: replica.state for replica in node.replicas},
            )
            for node_id, node in sorted(by_node.items())
        },
        lost,
        tuple(groups),
        _words(by_node, lost, groups),
    )
    return replace(plan, generation=next_generation(first.generation, digest_of(plan.to_plain())))


def _checked(collected: Sequence[NodeFacts]) -> dict[NodeId, NodeFacts]:
    if not collected:
        raise RecoveryRefused("nothing was collected; run `multiraft recover collect` on every node that survives")
    first, by_node = collected[0].identity, dict[NodeId, NodeFacts]()
    newest = max((node.identity for node in collected), key=lambda identity: identity.readmissions)
    latest = max(node.identity.generation for node in collected)
    for node in collected:
        identity = node.identity
        name = f"node {identity.node_id!r} ({node.path})"
        if not identity.formed:
            raise RecoveryRefused(f"{name} never was part of a cluster; leave it out")
        if identity.cluster_id != first.cluster_id:
            raise RecoveryRefused(
                f"{name} is of cluster {identity.cluster_id.hex()}, but node {first.node_id!r} of "
                f"{first.cluster_id.hex()}; plan for one cluster at a time"
            )
        if identity.node_id in by_node:
            raise RecoveryRefused(f"{name} is given twice; give each surviving node once, as it is now")
        if node.condemned:
            raise RecoveryRefused(f"{name} may take part no longer: {node.condemned}. Leave it out")
        if newest.stores.get(identity.node_id) != identity.store_id:
            raise RecoveryRefused(f"{name} has a store in whose place another one was admitted since; leave it out")
        if identity.generation != latest:
            raise RecoveryRefused(
                f"{name} is of recovery generation {generation_name(identity.generation)}, others are of "
                f"{generation_name(latest)}: it took no part in that recovery, and what it promises was given up. "
                "Leave it out"
            )
        by_node[identity.node_id] = node
    return by_node


def _all_groups(nodes: Iterable[NodeFacts]) -> set[GroupId]:
    groups: set[GroupId] = {DIRECTORY_GROUP}
    for node in nodes:
        groups.update(replica.group_id for replica in node.replicas)
        groups.update(node.known or ())
    return groups


@dataclass(frozen=True, slots=True)
class _Group:
    """One group's survivors.

    alive        replicas that are whole and have a log, by node
    source       where the most complete log is
    memberships  the newest that took effect anywhere, then those that may follow it
    """

    group_id: GroupId
    alive: dict[NodeId, ReplicaFacts]
    source: NodeId
    memberships: tuple[Membership, ...]

    @property
    def ids(self) -> set[ReplicaId]:
        return {replica.replica_id for replica in self.alive.values()}


def _plan_group(group_id: GroupId, found: dict[NodeId, ReplicaFacts], by_node: dict[NodeId, NodeFacts]) -> GroupPlan:
    damaged = [
        f"node {node_id!r}: its replica is damaged and counts as lost: {replica.problems[0]}"
        for node_id, replica in sorted(found.items())
        if replica.problems
    ]
    alive = {
        node_id: replica
        for node_id, replica in sorted(found.items())
        if not replica.problems and replica.membership is not None and replica.last_index > 0
    }
    if not alive:
        return _gone(group_id, by_node, damaged)
    # Where logs are equal, one that goes on applying.
    source = max(alive, key=lambda name: (alive[name].last_term, alive[name].last_index, not alive[name].halted))
    best = alive[source]
    for name, replica in alive.items():
        if replica.commit > best.last_index:
            raise RecoveryRefused(
                f"group {group_id}: node {name!r} knows that {replica.commit} is committed, but the most complete log, "
                f"that of node {source!r}, ends at {best.last_index}: one of their stores was put back to an older "
                "copy. Leave that one out"
            )
    group = _Group(group_id, alive, source, _may_be_in_force(alive, best))
    if all(has_quorum(membership, group.ids) for membership in group.memberships):
        words = (*damaged, "it has its quorum, and is left alone")
        return GroupPlan(group_id, best.service, KEPT, words, _lost_nodes(group))
    return _recovered(group, damaged)


def _gone(group_id: GroupId, by_node: dict[NodeId, NodeFacts], damaged: list[str]) -> GroupPlan:
    known = [node.known[group_id] for node in by_node.values() if node.known and group_id in node.known]
    service, nodes = known[-1] if known else ("", ())
    where = f"it lived on {', '.join(nodes)}: " if nodes else ""
    words = (*damaged, f"{where}nothing of it survives, all its data are LOST; it can only come from a backup")
    return GroupPlan(group_id, service, GONE, words, tuple(nodes), may_lose=True)


def _may_be_in_force(alive: dict[NodeId, ReplicaFacts], best: ReplicaFacts) -> tuple[Membership, ...]:
    in_effect = [replica.membership for replica in alive.values() if replica.membership is not None]
    newest = max(in_effect, key=lambda membership: membership.index)
    return (newest, *(membership for membership in best.pending if membership.index > newest.index))


def _recovered(group: _Group, words: list[str]) -> GroupPlan:
    best, source = group.alive[group.source], group.source
    everything = [
        membership
        for replica in group.alive.values()
        for membership in (replica.membership, *replica.pending)
        if membership is not None
    ]
    others = {name: replica for name, replica in group.alive.items() if name != source}
    without = group.ids - {best.replica_id}
    unsafe = any(has_quorum(membership, without) for membership in everything)
    follows = () if unsafe else tuple(others)
    removed = tuple((name, replica.replica_id) for name, replica in others.items()) if unsafe else ()
    known_commit = max(replica.commit for replica in group.alive.values())
    dead = _dead(group)
    plan = GroupPlan(
        group.group_id,
        best.service,
        RECOVERED,
        (),
        _lost_nodes(group),
        source,
        _next_membership(group, follows, everything),
        max(replica.term for replica in group.alive.values()) + 1,
        best.last_term,
        best.last_stamp_ms,
        follows,
        removed,
        any(has_quorum(membership, dead) for membership in group.memberships),
        best.last_index,
        best.last_stamp_ms,
        best.last_index - known_commit,
        tuple((n, r.last_index - best.last_index) for n, r in others.items() if r.last_index > best.last_index),
    )
    return replace(plan, words=(*words, *_group_words(plan, group, known_commit)))


def _next_membership(group: _Group, follows: Collection[NodeId], everything: list[Membership]) -> Membership:
    best = group.alive[group.source]
    kept = [group.alive[name] for name in follows]
    nodes = {best.replica_id: group.source, **{group.alive[name].replica_id: name for name in follows}}
    latest = group.memberships[-1]
    learners = tuple(sorted(replica.replica_id for replica in kept))
    # One that was only ever a learner stays one; all others voted, or would have soon.
    only_learner = {
        replica_id
        for replica_id in learners
        if replica_id in latest.learners and replica_id not in latest.joining and not latest.is_voter(replica_id)
    }
    stores = {
        replica_id: store for one in everything for replica_id, store in one.stores.items() if replica_id in nodes
    }
    return Membership(
        best.last_index + 1,
        (best.replica_id,),
        nodes,
        max(one.next_replica_id for one in everything) + _IDS_PASSED_OVER,
        learners=learners,
        joining=tuple(replica_id for replica_id in learners if replica_id not in only_learner),
        stores=stores,
    )


def _group_words(plan: GroupPlan, group: _Group, known_commit: int) -> list[str]:
    best = group.alive[plan.source]
    words = [f"goes on from node {plan.source!r}, whose log ends at {best.last_index} (term {best.last_term})"]
    if plan.may_lose:
        words.append(
            f"entries after {best.last_index} that were acknowledged MAY BE LOST: the lost nodes "
            f"{', '.join(plan.lost)} were a quorum without the survivors; how many, cannot be known"
        )
    else:
        words.append("nothing that was acknowledged is lost: the lost nodes were no quorum without the survivors")
    if plan.newly:
        words.append(
            f"{plan.newly} entries, {known_commit + 1} to {best.last_index}, are NEWLY COMMITTED: no survivor knows "
            "that they were; those whose outcome was told as unknown happen now"
        )
    else:
        words.append(f"nothing is newly committed: all entries up to {best.last_index} are known to have been")
    words.extend(
        f"{count} entries or more at the end of node {name!r}'s log are given up: they were never committed"
        for name, count in plan.discarded
    )
    if plan.removed:
        names = ", ".join(name for name, _ in plan.removed)
        words.append(
            f"the replicas on {names} are removed, because they could act on a membership that is given up; "
            "add them again when the cluster runs"
        )
    if best.halted:
        words.append(f"its replica on node {plan.source!r} has halted: {best.halted}")
    return words


def _words(by_node: dict[NodeId, NodeFacts], lost: Sequence[NodeId], groups: Sequence[GroupPlan]) -> tuple[str, ...]:
    words = []
    if lost:
        words.append(
            f"the nodes {', '.join(lost)} are given up: when one of them comes back with its old directory, it is "
            "refused and ends"
        )
    if all(node.known is None for node in by_node.values()):
        words.append("no copy of the directory could be read: groups of which nothing survives are not listed here")
    if not any(group.verdict == RECOVERED for group in groups):
        words.append("no group has lost its quorum: there is nothing to recover, do not apply this")
    return tuple(words)


def _dead(group: _Group) -> set[ReplicaId]:
    named = {replica_id for membership in group.memberships for replica_id in membership.replicas}
    return named - group.ids


def _lost_nodes(group: _Group) -> tuple[NodeId, ...]:
    nodes = {
        node_id
        for membership in group.memberships
        for replica_id, node_id in membership.nodes.items()
        if replica_id not in group.ids
    }
    return tuple(sorted(nodes))


def has_quorum(membership: Membership, replicas: Collection[ReplicaId]) -> bool:
    """Whether these replicas can elect and commit in `membership`: a majority of each half that is not empty."""
    halves = [half for half in (membership.voters, membership.outgoing) if half]
    return bool(halves) and all(2 * sum(voter in replicas for voter in half) > len(half) for half in halves)
