"""Why a replica does not do what it should: halted, without a leader, or slow; and what to do next.

Rules of this file: plain dicts and sentences, ready for JSON and for people; looking changes nothing; what is well is
not spoken of.
"""

from __future__ import annotations

from typing import Any, Final

from multiraft.engine.engine import Engine
from multiraft.engine.replica import Replica
from multiraft.status import role_word
from multiraft.types import Halt, NodeId

_BACKLOG_ENTRIES: Final = 1_000
_BUSY: Final = 0.9
_FULL: Final = 0.5
"""Shares from which a loop or disk is called busy, and a queue full."""

_ADVICE: Final = {
    "environment": (
        "mend what failed on this node, then `multiraft group retry {group} --node {node}`",
        "or take the state of a healthy replica: `multiraft group rebuild {group} --node {node}`",
    ),
    "diverged": (
        "`multiraft group rebuild {group} --node {node}` takes the state of a healthy replica",
        "look at the command that is named: it must not use clocks, chance, the order of sets, or anything else that "
        "differs between nodes; if it does not, test this machine's memory",
    ),
    "unknown command": ("bring this node's program up to the release of the others, and start it again",),
    "restore": (
        "bring this node's program up to the release of the others, then `multiraft group retry {group} --node {node}`",
        "or take a newer state: `multiraft group rebuild {group} --node {node}`",
    ),
    "damaged": (
        "`multiraft group rebuild {group} --node {node}` takes the state of a healthy replica",
        "test this machine's disk and memory",
    ),
}


def why_of(engine: Engine, replica: Replica, node_id: NodeId, rebuilding: str | None) -> dict[str, Any]:
    """Say of one replica why it is halted, why it knows no leader, and what makes it slow.

    rebuilding  how far its rebuild is; None: it is not being rebuilt
    """
    core = replica.core
    return {
        "group_id": replica.group_id,
        "service": replica.descriptor.service,
        "node_id": node_id,
        "replica_id": core.replica_id,
        "role": role_word(core.role),
        "leader": replica.leader_node,
        "last": core.last_index,
        "commit": core.commit,
        "applied": replica.applied,
        "halted": None if replica.halted is None else _halt_state(replica, replica.halted, node_id),
        "broken": replica.broken,
        "rebuilding": rebuilding,
        "leaderless": _why_leaderless(engine, replica),
        "slow": _why_slow(engine, replica),
        "failed_commands": replica.executor.failed_commands if replica.made else 0,
        "slow_commands": replica.slow_commands,
        "slowest": [
            {"index": index, "took_ms": took_ms, "command": text} for index, took_ms, text in list(replica.slowest)
        ],
        "compared_to": replica.executor.rolling.agreed if replica.made else 0,
    }


def _halt_state(replica: Replica, halt: Halt, node_id: NodeId) -> dict[str, Any]:
    advice = [line.format(group=replica.group_id, node=node_id) for line in _ADVICE.get(halt.kind, ())]
    return {
        "kind": halt.kind,
        "index": halt.index,
        "command": halt.command,
        "reason": halt.reason,
        "since_ms": halt.wall_ms,
        "next": advice,
    }


def _why_leaderless(engine: Engine, replica: Replica) -> str | None:
    core = replica.core
    if core.leader or replica.broken is not None:
        return None
    members = core.membership
    if core.replica_id not in members.replicas:
        return "this replica takes part no longer, or was told of no membership yet"
    for half in (members.voters, members.outgoing):
        lost = [
            members.nodes[voter]
            for voter in half
            if voter != core.replica_id and not engine.outgoing.reaches(members.nodes[voter])
        ]
        if half and len(half) - len(lost) <= len(half) // 2:
            return f"no quorum: {len(lost)} of {len(half)} voters are not connected to this node ({', '.join(lost)})"
    if not members.is_voter(core.replica_id):
        return "this replica has no vote, and no leader has claimed the group toward its node yet"
    if core.deadline == float("inf"):
        return "a leader of another node claims the group; its first message is awaited"
    wait_s = max(0.0, core.deadline - engine.pacing.now())
    return f"an election is under way in term {core.term}; this replica campaigns in {wait_s:.1f} s at the latest"


def _why_slow(engine: Engine, replica: Replica) -> list[str]:
    found = [*_slow_group(replica), *_slow_node(engine)]
    for index, took_ms, text in replica.slowest:
        found.append(f"slow command at index {index}: {text} took {took_ms:.0f} ms")
    return found


def _slow_group(replica: Replica) -> list[str]:
    core = replica.core
    found = []
    backlog = replica.may_apply - replica.applied
    if backlog >= _BACKLOG_ENTRIES:
        found.append(f"apply: {backlog} committed entries wait to be applied here")
    if replica.snapshot_problem is not None:
        found.append(f"log: no snapshot is taken, so it grows: {replica.snapshot_problem}")
    if replica.leads:
        silent = [core.membership.nodes[peer] for peer in core.progress if not core.answers(peer)]
        if silent:
            found.append(f"network: {', '.join(silent)} did not answer its leader lately")
        if core.last_index - core.commit >= _BACKLOG_ENTRIES:
            found.append(f"replication: {core.last_index - core.commit} entries are not committed yet")
        if core.heir:
            found.append(f"leadership is being handed over to {core.membership.nodes.get(core.heir)}: nothing is taken")
    return found


def _slow_node(engine: Engine) -> list[str]:
    """What slows all groups of the node down."""
    found = []
    busy, lag_s = engine.pacing.load()
    slow_ms = engine.limits.slow_command_ms
    if lag_s * 1e3 >= slow_ms:
        found.append(f"loop: something held this node's loop for {lag_s * 1e3:.0f} ms lately")
    if busy >= _BUSY:
        found.append(f"loop: this node spends {busy:.0%} of its time in turns")
    writing = engine.writer.load()
    if writing >= _BUSY:
        found.append(f"disk: this node writes {writing:.0%} of the time, {engine.writer.in_flight} batches wait")
    used, limit = engine.budget.used_bytes, engine.limits.pending_bytes
    if used >= _FULL * limit:
        found.append(f"queue: {engine.budget.count} proposals of {used} bytes wait on this node, of {limit} allowed")
    if engine.budget.refused is not None:
        found.append(f"disk: {engine.budget.refused}")
    return found
