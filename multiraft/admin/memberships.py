"""Who takes part in a group, as an operator reads it: in effect and latest, who answers, what a change waits for.

Rules of this file: pure functions of what `multiraft.admin.view` has merged; a node that did not answer is named.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from multiraft.admin.view import Facts
from multiraft.types import NodeId


def quorum(voters: int) -> int:
    """Return how many of `voters` must agree."""
    return voters // 2 + 1


def nodes_of(membership: Facts, *kinds: str) -> list[NodeId]:
    """Return the nodes of the replicas named under `kinds`, in order, each once."""
    return list(dict.fromkeys(node_id for kind in kinds for _, node_id in membership.get(kind, [])))


def difference(before: Facts, after: Facts) -> list[str]:
    """Say in a few words each what changes from one membership to the other."""
    was, becomes = _kinds(before), _kinds(after)
    found = []
    for replica_id in sorted({*was, *becomes}):
        old, new = was.get(replica_id), becomes.get(replica_id)
        name = f"{(new or old or ('', ''))[1]} (replica {replica_id})"
        if old is None and new is not None:
            found.append(f"{name} is added as {'learner' if new[0] != 'voter' else 'voter'}")
        elif new is None:
            found.append(f"{name} is removed")
        elif old is not None and old[0] != new[0]:
            found.append(f"{name} becomes a {new[0]}")
    return found


def _kinds(membership: Facts) -> dict[int, tuple[str, NodeId]]:
    """What each replica is once a joint change has ended."""
    found = {replica_id: ("learner", str(node_id)) for replica_id, node_id in membership.get("learners", [])}
    return found | {replica_id: ("voter", str(node_id)) for replica_id, node_id in membership.get("voters", [])}


def change_text(membership: Facts | None, latest: Facts | None) -> str | None:
    """Say in one line which change of a group's membership is under way; None: there is none."""
    if membership is None:
        return None
    if membership.get("outgoing"):
        old, new = nodes_of(membership, "outgoing"), nodes_of(membership, "voters")
        return f"joint, from voters {' '.join(old)} to {' '.join(new)}: both majorities decide until it ends"
    if latest is None or latest["index"] == membership["index"]:
        return None
    said = ", ".join(difference(membership, latest)) or "nobody is added or removed"
    return f"index {latest['index']} is not in effect yet: {said}"


def waiting_for(row: Facts) -> list[str]:
    """Say in one line each what a change of the group in `row` (of `merge_group`) waits for."""
    lines = []
    if row["leader"] is None:
        lines.append(f"no leader: {row['why']}")
    change = change_text(row["membership"], row["latest"])
    if change is not None:
        lines.append(change)
    for replica in row["replicas"]:
        name = f"replica {replica['replica_id']} on node {replica['node_id']}"
        if replica["member"] == "joining":
            lines.append(f"{name} is to become a voter: {_catching_up(replica)}")
        elif replica["member"] == "learner":
            lines.append(f"{name} is a learner: {_catching_up(replica)}")
    return lines


def _catching_up(replica: Facts) -> str:
    if replica["silent"] is not None:
        return f"its node does not answer ({replica['silent']})"
    if replica["role"] is None:
        return "its node has not made it yet (does the program there declare the service?)"
    if not replica["answers"]:
        return "its leader does not hear it"
    behind = replica["lag"]
    if behind is None:
        return "how far it is is not known"
    return f"{behind} entries are missing" if behind else "it has caught up"


def membership_answer(row: Facts, silent: Mapping[NodeId, str], problems: Iterable[str]) -> Facts:
    """Return who takes part in the group in `row`, which `merge_group` made."""
    found = list(problems)
    voters = nodes_of(row["membership"], "voters")
    answering = [replica["node_id"] for replica in row["replicas"] if replica["answers"]]
    return {
        "group_id": row["group_id"],
        "service": row["service"],
        "healthy": not found,
        "problems": found,
        "silent": dict(silent),
        "state": row["state"],
        "why": row["why"],
        "leader": row["leader"],
        "term": row["term"],
        "in_effect": row["membership"],
        "latest": row["latest"] or row["membership"],
        "change": change_text(row["membership"], row["latest"]),
        "quorum": quorum(len(voters)),
        "answering": [name for name in voters if name in answering],
        "waiting_for": waiting_for(row),
        "replicas": [
            {
                "replica_id": replica["replica_id"],
                "node_id": replica["node_id"],
                "member": replica["member"],
                "role": replica["role"],
                "behind": replica["lag"],
                "answers": replica["answers"],
                "halted": replica["halted"],
                "silent": replica["silent"],
            }
            for replica in row["replicas"]
        ],
        "tombstones": row["tombstones"],
    }
