"""What a node tells of itself: plain dicts of numbers and names, ready for JSON.

Rules of this file: reading changes nothing; ids of bytes are given as hex, ages in seconds, never-yet as None.
"""

from __future__ import annotations

import os
import resource
from importlib.metadata import PackageNotFoundError, version
from math import isfinite
from typing import Any, Final

from multiraft.engine.engine import Engine
from multiraft.engine.replica import Replica
from multiraft.errors import CorruptRecord
from multiraft.ports import Store, Transport
from multiraft.raft import Role
from multiraft.records import COMMANDS, CONTROL, NOOP, SESSION
from multiraft.sessions import HEAD
from multiraft.shard import ShardMap
from multiraft.tuning import loop_kind, tuned
from multiraft.types import GroupId, Membership, NodeId

_ROLES: Final = {
    Role.FOLLOWER: "follower",
    Role.PRE_CANDIDATE: "pre-candidate",
    Role.CANDIDATE: "candidate",
    Role.LEADER: "leader",
}
_KINDS: Final = {NOOP: "no-op", COMMANDS: "command", SESSION: "command", CONTROL: "control"}
_READ_BYTES: Final = 1024 * 1024


def role_word(role: Role) -> str:
    return _ROLES[role]


def process_use() -> dict[str, Any]:
    """What this process has used: CPU seconds, user and system, and its largest memory in bytes; and how it is set."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return {
        "pid": os.getpid(),
        "cpu_s": round(used.ru_utime + used.ru_stime, 3),
        "max_rss_bytes": used.ru_maxrss * 1024,
        "tuned": tuned(),
    }


def package_version() -> str:
    """Return the installed version of multiraft; "unknown" where it runs uninstalled."""
    try:
        return version("multiraft")
    except PackageNotFoundError:
        return "unknown"


def engine_state(engine: Engine, addresses: dict[NodeId, str], store: Store, transport: Transport) -> dict[str, Any]:
    """Describe what an engine does, and what is on its way in and out of it."""
    busy, lag_s = engine.pacing.load()
    return {
        "peers": peer_states(engine, addresses),
        "groups": group_counts(engine),
        "loop": {
            "kind": loop_kind(engine.loop),
            "lag_ms": round(lag_s * 1e3, 3),
            "busy": round(busy, 4),
            "turns": engine.pacing.turns,
        },
        "writer": {
            "busy": round(engine.writer.load(), 4),
            "in_flight": engine.writer.in_flight,
            "syncs": store.syncs,
        },
        "proposals": {"pending": engine.budget.count, "pending_bytes": engine.budget.used_bytes},
        "reads": {
            "by_lease": engine.leases.reads,
            "questions": engine.following.asked,
            "waiting_here": engine.following.budget.count,
        },
        "transfers": engine.transfers.status(),
        "counters": {**engine.counters, **engine.transfers.fetching.counters, **transport.counters()},
    }


def group_counts(engine: Engine) -> dict[str, int]:
    """Count this node's replicas by what they do; `removed` are those of which a tombstone is left."""
    replicas, damaged = engine.replicas.values(), engine.residents.quarantine
    return {
        "hosted": len(replicas) + len(damaged),
        "led": sum(replica.leads for replica in replicas),
        "followed": sum(not replica.leads and replica.leader_node is not None for replica in replicas),
        "leaderless": sum(replica.leader_node is None for replica in replicas),
        "halted": len(damaged) + sum(replica.halted is not None or replica.broken is not None for replica in replicas),
        "damaged": len(damaged),
        "changing": sum(replica.core.change_pending for replica in replicas),
        "learning": sum(not replica.core.membership.is_voter(replica.core.replica_id) for replica in replicas),
        "removed": len(engine.residents.tombstones),
    }


def peer_states(engine: Engine, addresses: dict[NodeId, str]) -> dict[NodeId, dict[str, Any]]:
    """Describe each peer as this node sees it."""
    now = engine.pacing.now()
    return {
        name: {
            "address": addresses.get(name),
            "connected": peer.connected,
            "silent": peer.silent,
            "heard_age_s": _age(peer.heard_age_s),
            "ack_age_s": _age(peer.acked_age_s),
            "incarnation": peer.incarnation or None,
            "led": peer.led,
            "held": peer.held,
        }
        for name, peer in engine.liveness.status(now).items()
    }


def shards_by_group(shard_map: ShardMap) -> dict[GroupId, dict[str, Any]]:
    """Describe the shard that each group serves, by group id; a group that serves none is not in it."""
    return {
        shard.group_id: {
            "shard_id": shard.shard_id,
            "start": shard.start.hex(),
            "end": None if shard.end is None else shard.end.hex(),
            "epoch": shard.epoch,
        }
        for service in shard_map.services.values()
        for shard in service.shards
    }


def replica_state(replica: Replica, node_id: NodeId, shard: dict[str, Any] | None) -> dict[str, Any]:
    """Describe one replica; a leader also says how far each of its peers is.

    `membership` is the one in effect, `latest` the newest in the log while a change is pending, else None.
    """
    core = replica.core
    return {
        "group_id": replica.group_id,
        "service": replica.descriptor.service,
        "shard": shard,
        "replica_id": core.replica_id,
        "node_id": node_id,
        "role": _ROLES[core.role],
        "term": core.term,
        "leader": replica.leader_node,
        "commit": core.commit,
        "applied": replica.applied,
        "first": core.log.start.index + 1,
        "last": core.last_index,
        "halted": replica.why_halted,
        "failed_commands": replica.executor.failed_commands if replica.made else 0,
        "slow_commands": replica.slow_commands,
        "snapshot": {"index": core.snapshot_index, "problem": replica.snapshot_problem},
        "pending": sum(len(batch.futures) for batch in replica.waiting)
        + sum(len(queue.futures) for queue in replica.queued.values()),
        "membership": membership_state(core.membership),
        "latest": _latest(replica),
        "replicas": _progress(replica) if replica.leads else [],
    }


def damaged_groups(engine: Engine, shard_map: ShardMap) -> list[GroupId]:
    """Return the groups whose replica here is damaged, as far as it is known which they are."""
    quarantine = engine.residents.quarantine
    known = {damage.first for damage in quarantine if damage.first == damage.last}
    return sorted(known | {group_id for group_id in shard_map.groups if quarantine.of(group_id) is not None})


def damaged_state(engine: Engine, shard_map: ShardMap, group_id: GroupId) -> dict[str, Any]:
    """Describe a replica that was found damaged and is not opened, in the shape of `replica_state`.

    Raises KeyError where it is none.
    """
    damage = engine.residents.quarantine.of(group_id)
    if damage is None:
        raise KeyError(group_id)
    services, shard = shard_map.services.items(), shards_by_group(shard_map).get(group_id)
    service = next((name for name, one in services if any(part.group_id == group_id for part in one.shards)), "")
    healing = engine.residents.quarantine.healing.get(group_id, "its group is asked to replace it")
    nobody: dict[str, list[Any]] = {"voters": [], "learners": [], "outgoing": [], "joining": []}
    own = [damage.replica_id, engine.node_id]
    return {
        "group_id": group_id,
        "service": service,
        "shard": shard,
        "replica_id": damage.replica_id,
        "node_id": engine.node_id,
        "role": "damaged",
        **dict.fromkeys(("term", "commit", "applied", "first", "last"), 0),
        "leader": None,
        "halted": f"damaged: {damage.problem}; {healing}",
        "snapshot": {"index": 0, "problem": None},
        "pending": 0,
        "membership": {"index": 0, **nobody, "voters": [own]},
        "latest": None,
        "replicas": [],
    }


def _latest(replica: Replica) -> dict[str, Any] | None:
    """The newest membership in the log where a change is pending; None also where the log does not tell."""
    if not replica.core.change_pending:
        return None
    try:
        return membership_state(replica.core.latest_membership())
    except CorruptRecord:
        return None


def membership_state(members: Membership) -> dict[str, Any]:
    """Describe a membership; a replica is [its id, its node]."""
    return {
        "index": members.index,
        "voters": [[peer, members.nodes[peer]] for peer in members.voters],
        "learners": [[peer, members.nodes[peer]] for peer in members.learners],
        "outgoing": [[peer, members.nodes[peer]] for peer in members.outgoing],
        "joining": [[peer, members.nodes[peer]] for peer in members.joining],
    }


def tombstones(engine: Engine) -> list[dict[str, int]]:
    """Describe what is left of replicas that were removed from their groups, by group id: the newest of each."""
    return [
        {"group_id": group_id, "replica_id": tombstone.replica_id, "index": tombstone.index}
        for group_id, tombstone in sorted(engine.residents.tombstones.items())
    ]


def _progress(replica: Replica) -> list[dict[str, Any]]:
    core = replica.core
    nodes = core.membership.nodes
    rows = [
        {
            "replica_id": peer.replica_id,
            "node_id": nodes.get(peer.replica_id),
            "match": peer.match,
            "next": peer.next,
            "state": peer.state.name.lower(),
            "lag": max(0, core.last_index - peer.match),
            "answers": core.answers(peer.replica_id),
        }
        for peer in core.progress.values()
        if peer.replica_id != core.replica_id
    ]
    own = {
        "replica_id": core.replica_id,
        "node_id": nodes[core.replica_id],
        "match": core.last_index,
        "next": core.last_index + 1,
        "state": "leader",
        "lag": 0,
        "answers": True,
    }
    return sorted((own, *rows), key=lambda row: int(row["replica_id"]))


def read_log(replica: Replica, last_n: int) -> list[dict[str, Any]]:
    """Describe the last entries of a replica's log, oldest first. Raises CorruptRecord."""
    core = replica.core
    first = max(core.log.start.index + 1, core.last_index - last_n + 1)
    found: list[dict[str, Any]] = []
    while first <= core.last_index:
        for record in core.log.records(first, core.last_index, _READ_BYTES):
            for index, entry in enumerate(record.entries(), record.first):
                if index >= first:
                    found.append(
                        {
                            "index": index,
                            "term": record.term,
                            "kind": _KINDS.get(record.kind, "membership"),
                            "stamp_ms": record.stamp_ms,
                            "size_bytes": len(entry),
                            **(_numbered(entry) if record.kind == SESSION else {"entry": entry}),
                        }
                    )
            first = record.last + 1
    return found


def _numbered(entry: bytes) -> dict[str, Any]:
    """Describe an entry of a session by its command, and by who has numbered it how."""
    if len(entry) < HEAD.size:
        return {"entry": entry}
    client, sequence, lowest = HEAD.unpack_from(entry)
    session = {"client": client.hex(), "sequence": sequence, "lowest": lowest}
    return {"entry": entry[HEAD.size :], "session": session}


def _age(age_s: float) -> float | None:
    return round(age_s, 3) if isfinite(age_s) else None
