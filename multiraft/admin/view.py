"""The cluster as an operator sees it: merges what single nodes say of themselves.

One node's answer is true of that node alone. A group's commit and the lag of its replicas are known to its leader, a
halted replica only to the node that hosts it, a group without leader to none in particular. What stands here puts
the answers side by side, takes each fact from the one who knows it, and says in words what is wrong and why.

Rules of this file: pure functions of plain data, safe to call in any thread; a node that did not answer is
shown as such, never left out; of two leaders the one of the higher term counts.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

from multiraft.types import GroupId, NodeId

Facts: TypeAlias = dict[str, Any]
"""A JSON object: what a node says of itself or of one replica, or what is made of it."""

STATES: Final = ("ok", "unconfirmed", "halted", "leaderless")
"""Of a group, from good to bad. Unconfirmed: its followers name a leader whose node did not answer."""
MEMBER_WORDS: Final = {"voters": "voter", "outgoing": "outgoing", "joining": "joining", "learners": "learner"}
"""What a replica is in its group: outgoing votes until the joint change ends; joining is a learner that will vote."""
SORTS: Final = ("group", "service", "leader", "term", "commit", "lag", "state")


@dataclass(frozen=True, slots=True)
class Silence:
    """What stands in for the answer of a node that gave none.

    why      one line: what happened to the question
    reached  the node is there, but did not say what it was asked for
    """

    why: str
    reached: bool = False


def merge_status(local: Facts, answers: Mapping[NodeId, Facts | Silence]) -> Facts:
    """Return the state of all nodes: `local`, the asked node's own status, and what the others answered.

    The result is healthy when every node answers, nodes hear each other, and each has a leader for all of its
    groups and none halted; otherwise `problems` says in one line each what is not so.
    """
    peers: Facts = local.get("peers", {})
    nodes: list[Facts] = [{**local, "state": "up"}]
    for node_id, answer in answers.items():
        if not isinstance(answer, Silence):
            nodes.append({**answer, "state": "up"})
            continue
        known = peers.get(node_id, {})
        nodes.append(
            {
                "node_id": node_id,
                "state": "unknown" if answer.reached else "down",
                "why": answer.why,
                "address": known.get("address"),
                "heard_age_s": known.get("heard_age_s"),
            }
        )
    nodes.sort(key=lambda node: str(node["node_id"]))
    problems = [problem for node in nodes for problem in _node_problems(node, nodes)]
    return {
        "asked": local["node_id"],
        "cluster_id": local.get("cluster_id"),
        "healthy": not problems,
        "problems": problems,
        "nodes": nodes,
    }


def _node_problems(node: Facts, nodes: Iterable[Facts]) -> list[str]:
    name = node["node_id"]
    if node["state"] == "unknown":
        return [f"node {name} is there, but does not give its status: {node['why']}"]
    if node["state"] == "down":
        heard = node.get("heard_age_s")
        return [
            f"node {name} is down: {node['why']}" + (f"; last heard {heard:.1f} s ago" if heard is not None else "")
        ]
    groups: Facts = node.get("groups", {})
    problems = []
    if groups.get("leaderless"):
        problems.append(f"node {name} knows no leader for {groups['leaderless']} of its {groups['hosted']} groups")
    if groups.get("halted"):
        problems.append(f"node {name} has {groups['halted']} halted replicas")
    disk: Facts = node.get("disk", {})
    if disk.get("low"):
        problems.append(f"node {name} takes no commands: {disk_text(disk)}; free some space there")
    if not node.get("cluster_id"):
        problems.append(f"node {name} does not belong to a cluster yet: it waits for all founding members")
    up = {other["node_id"] for other in nodes if other["state"] == "up"}
    for peer_id, peer in sorted(node.get("peers", {}).items()):
        if peer_id in up and not peer.get("connected"):
            problems.append(f"node {name} has no connection to node {peer_id}, although both are up")
    return problems


def disk_text(disk: Facts) -> str:
    """Say how far a disk that is low is below its floor."""
    return f"{disk['free_bytes']} bytes are free on its disk, less than free_space_bytes = {disk['floor_bytes']}"


def merge_groups(answers: Mapping[NodeId, list[Facts] | Silence], expected: Mapping[GroupId, Facts]) -> list[Facts]:
    """Return one row per group that any node hosts or that is `expected`, by group id.

    expected  what the shard map says of a group: its `service`, `shard` and `nodes`
    """
    views: dict[GroupId, list[Facts]] = {}
    silent = {node_id: answer.why for node_id, answer in answers.items() if isinstance(answer, Silence)}
    for answer in answers.values():
        if not isinstance(answer, Silence):
            for view in answer:
                views.setdefault(view["group_id"], []).append(view)
    rows = {group_id: merge_group(found, silent) for group_id, found in views.items()}
    rows |= {group_id: _unseen(group_id, facts, silent) for group_id, facts in expected.items() if group_id not in rows}
    return [rows[group_id] for group_id in sorted(rows)]


def _unseen(group_id: GroupId, facts: Facts, silent: Mapping[NodeId, str]) -> Facts:
    """The row of a group of which no node that answers has a replica."""
    nodes = facts["nodes"]
    missing = [node_id for node_id in nodes if node_id in silent]
    why = f"none of its nodes answers ({', '.join(missing)})" if missing else "no node hosts it yet"
    nothing = dict.fromkeys(("leader", "term", "commit", "applied", "first", "last", "lag", "seen_by", "membership"))
    nothing["latest"] = None
    unknown = dict.fromkeys(("replica_id", "role", "term", "last", "applied", "match", "lag", "progress", "halted"))
    told_of_none = {**unknown, "member": "voter", "answers": False}
    replicas = [{**told_of_none, "node_id": name, "silent": silent.get(name)} for name in nodes]
    told = {
        "group_id": group_id,
        "service": facts["service"],
        "shard": facts["shard"],
        "state": "leaderless",
        "why": why,
    }
    return {**told, **nothing, "pending": 0, "replicas": replicas}


def merge_group(views: list[Facts], silent: Mapping[NodeId, str]) -> Facts:
    """Return what its replicas' `views` (at least one) say together of one group.

    silent  the nodes that did not answer, and why

    The numbers are those of the leader; with none to be asked, of the replica with the longest log. `lag` is the most
    that any voter's log lacks of that one, in entries, None where nobody knows.
    """
    leading = [view for view in views if view["role"] == "leader"]
    best = max(leading or views, key=lambda view: (view["term"], view["last"], view["node_id"]))
    newest = max(view["term"] for view in views)
    leader: NodeId | None = best["node_id"] if leading else None
    named = sorted({str(view["leader"]) for view in views if view["leader"] is not None and view["term"] == newest})
    unconfirmed = not leading and any(name in silent for name in named)
    if unconfirmed:
        leader = next(name for name in named if name in silent)
    replicas = _replicas(best, views, silent)
    halted = [replica for replica in replicas if replica["halted"]]
    if leader is None:
        state, why = "leaderless", _why_leaderless(best["membership"], replicas, silent)
    elif halted:
        state, why = "halted", "; ".join(f"on node {replica['node_id']}: {replica['halted']}" for replica in halted)
    elif unconfirmed:
        state, why = "unconfirmed", f"node {leader}, which leads, did not answer: {silent[leader]}"
    else:
        state, why = "ok", None
    voters = {replica_id for replica_id, _ in [*best["membership"]["voters"], *best["membership"].get("outgoing", [])]}
    lags = [replica["lag"] for replica in replicas if replica["replica_id"] in voters and replica["lag"] is not None]
    return {
        "group_id": best["group_id"],
        "service": best["service"],
        "shard": best["shard"],
        "state": state,
        "why": why,
        "leader": leader,
        "term": best["term"],
        "commit": best["commit"],
        "applied": best["applied"],
        "first": best["first"],
        "last": best["last"],
        "pending": best.get("pending", 0),
        "latest": best.get("latest"),
        "lag": max(lags, default=None),
        "seen_by": best["node_id"],
        "membership": best["membership"],
        "replicas": replicas,
    }


def _replicas(best: Facts, views: list[Facts], silent: Mapping[NodeId, str]) -> list[Facts]:
    """One row per member of the group: what the leader knows of it, and what it says of itself."""
    membership = best["membership"]
    told = {row["replica_id"]: row for row in best.get("replicas", [])}
    own = {view["replica_id"]: view for view in views}
    kinds = [(kind, member) for kind in MEMBER_WORDS for member in membership.get(kind, [])]
    rows: dict[int, Facts] = {}
    for kind, (replica_id, node_id) in kinds:
        if replica_id in rows:
            continue
        view, progress = own.get(replica_id), told.get(replica_id, {})
        last = view["last"] if view else None
        match = best["last"] if view is best and best["role"] == "leader" else progress.get("match")
        known = match if match is not None else last
        rows[replica_id] = {
            "replica_id": replica_id,
            "node_id": node_id,
            "member": MEMBER_WORDS[kind],
            "role": view["role"] if view else None,
            "term": view["term"] if view else None,
            "last": last,
            "applied": view["applied"] if view else None,
            "match": match,
            "lag": max(0, best["last"] - known) if known is not None else None,
            "progress": progress.get("state"),
            "answers": view is not None and progress.get("answers") is not False,
            "halted": view["halted"] if view else None,
            "silent": silent.get(node_id) if view is None else None,
        }
    return [rows[replica_id] for replica_id in sorted(rows)]


def _why_leaderless(membership: Facts, replicas: list[Facts], silent: Mapping[NodeId, str]) -> str:
    """Say whether a quorum could elect at all: the first thing to know about a group without leader."""
    seen = {replica["replica_id"]: replica for replica in replicas}
    for half in ("voters", "outgoing"):
        voters = [replica_id for replica_id, _ in membership.get(half, [])]
        missing = [seen[replica_id]["node_id"] for replica_id in voters if seen[replica_id]["role"] is None]
        if voters and len(voters) - len(missing) <= len(voters) // 2:
            names = ", ".join(name if name in silent else f"{name} (hosts no replica)" for name in missing)
            return f"no quorum: {len(missing)} of {len(voters)} voters do not answer ({names})"
    if all(replica["halted"] for replica in replicas if replica["role"] is not None):
        return "every replica that answers is halted"
    return "a quorum is up: an election should be under way"


def select_groups(
    rows: Iterable[Facts],
    service: str | None = None,
    leader: NodeId | None = None,
    node: NodeId | None = None,
    state: str | None = None,
    sort: str = "group",
) -> list[Facts]:
    """Return the rows that fit all filters given, sorted by one of SORTS; a leading `-` turns the order round.

    node    has a replica there
    state   one of STATES; `halted` also finds groups in a worse state that have a halted replica
    """

    def fits(row: Facts) -> bool:
        return (
            (service is None or row["service"] == service)
            and (leader is None or row["leader"] == leader)
            and (node is None or any(replica["node_id"] == node for replica in row["replicas"]))
            and (state is None or row["state"] == state or (state == "halted" and _has_halted(row)))
        )

    def order(row: Facts) -> tuple[Any, ...]:
        name = sort.lstrip("-")
        if name == "state":
            return (STATES.index(row["state"]), row["group_id"])
        value = row["group_id" if name == "group" else name]
        return (value is not None, value, row["group_id"]) if value is not None else (False, row["group_id"])

    return sorted((row for row in rows if fits(row)), key=order, reverse=sort.startswith("-"))


def _has_halted(row: Facts) -> bool:
    return any(replica["halted"] for replica in row["replicas"])


def groups_problems(rows: Iterable[Facts]) -> list[str]:
    """Say in one line each what is wrong with the groups in `rows`."""
    return [f"group {row['group_id']} is {row['state']}: {row['why']}" for row in rows if row["state"] != "ok"]


def silence_problems(silent: Mapping[NodeId, str]) -> list[str]:
    return [f"node {node_id} did not answer: {why}" for node_id, why in sorted(silent.items())]
