"""The part of the admin API about groups that do not do what they should: why, and what an operator does about it.

    GET  /groups/{id}/why          of each replica: halted, without leader, slow, and what to do next
    POST /groups/{id}/retry        {"node": "n2"}: halted replicas apply on; without `node` all of them
    POST /groups/{id}/rebuild      {"node": "n2"}: a halted replica takes the state of a healthy one

Both take `dry_run`; `rebuild` takes `timeout_s`, and answers when it is done: 504 says that it is not done in time and
goes on. Any node does it for all.

Rules of this file: a replica that is not halted is left alone; a rebuild without a healthy replica is refused.
"""

from __future__ import annotations

import asyncio
from typing import Any, Final

from aiohttp import web

from multiraft.admin.answers import ApiError, asked_group, checked_query, json_answer
from multiraft.admin.asking import Asking, NotHosted
from multiraft.admin.bodies import flag_of, json_body, node_of, refuse_others, seconds_of
from multiraft.admin.view import Facts, Silence
from multiraft.types import GroupId, NodeId

REBUILD_TIMEOUT_S: Final = 60.0
_LOOK_AGAIN_S: Final = 0.1


class MendingApi:
    """The handlers; `asking` reaches all nodes."""

    def __init__(self, asking: Asking) -> None:
        self._asking = asking

    async def why(self, request: web.Request) -> web.Response:
        checked_query(request)
        return json_answer(await self._why(asked_group(request)))

    async def _why(self, group_id: GroupId) -> Facts:
        views, silent, _ = await self._asking.group(group_id)
        hosts = sorted(str(view["node_id"]) for view in views)
        answers = await self._asking.each(hosts, "admin.why", {"group_id": group_id})
        replicas = [answer for answer in answers.values() if not isinstance(answer, Silence)]
        silent |= {name: answer.why for name, answer in answers.items() if isinstance(answer, Silence)}
        members = {str(node) for view in views for row in _members(view) for node in row[1:]}
        return why_answer(group_id, replicas, {name: why for name, why in silent.items() if name in members})

    async def retry(self, request: web.Request) -> web.Response:
        checked_query(request)
        body = await json_body(request)
        refuse_others(body, {"node", "dry_run"})
        group_id = asked_group(request)
        row = await self._why(group_id)
        halted = {one["node_id"]: one for one in row["replicas"] if one["halted"]}
        nodes = [node_of(body, "node")] if "node" in body else sorted(halted)
        _check_named(row, nodes)
        if "node" in body and nodes[0] not in halted:
            raise ApiError(409, f"the replica of group {group_id} on {nodes[0]} is not halted", _WHY_HINT)
        steps = [
            f"on {node}: make the machine anew from its snapshot and its log, and apply on from index "
            f"{halted[node]['halted']['index']}"
            for node in nodes
        ]
        plan = _plan("retry", group_id, nodes, steps)
        if flag_of(body, "dry_run", False):
            return json_answer({"done": False, "dry_run": True, "plan": plan})
        for node in nodes:
            await self._ask(node, "admin.retry", {"group_id": group_id})
        return json_answer({"done": True, "dry_run": False, "plan": plan})

    async def rebuild(self, request: web.Request) -> web.Response:
        checked_query(request)
        body = await json_body(request)
        refuse_others(body, {"node", "dry_run", "timeout_s"})
        group_id, node = asked_group(request), node_of(body, "node")
        timeout_s = seconds_of(body, "timeout_s", REBUILD_TIMEOUT_S)
        row = await self._why(group_id)
        _check_named(row, [node])
        one = next(one for one in row["replicas"] if one["node_id"] == node)
        if not one["halted"]:
            raise ApiError(409, f"the replica of group {group_id} on {node} is not halted", _WHY_HINT)
        healthy = [other["node_id"] for other in row["replicas"] if _healthy(other) and other["node_id"] != node]
        if not healthy:
            text = f"no other replica of group {group_id} is healthy and answers, so there is no state to take"
            raise ApiError(409, text, f"`multiraft group retry {group_id}` once what halted them is mended")
        plan = _plan("rebuild", group_id, [node], _rebuild_steps(one, healthy))
        if flag_of(body, "dry_run", False):
            return json_answer({"done": False, "dry_run": True, "plan": plan})
        await self._ask(node, "admin.rebuild", {"group_id": group_id, "timeout_s": timeout_s})
        await self._wait_rebuilt(group_id, node, timeout_s)
        return json_answer({"done": True, "dry_run": False, "plan": plan})

    async def _ask(self, node: NodeId, method: str, question: Facts) -> Any:
        try:
            answer = await self._asking.one(node, method, question)
        except NotHosted:
            raise ApiError(404, f"node {node} hosts no replica of group {question['group_id']}", _WHY_HINT) from None
        if isinstance(answer, Silence):
            raise ApiError(409 if answer.reached else 503, f"node {node}: {answer.why}", _WHY_HINT)
        return answer

    async def _wait_rebuilt(self, group_id: GroupId, node: NodeId, timeout_s: float) -> None:
        """Look until the replica is halted no longer. Raises ApiError when that was given up, or the time is up."""
        now = asyncio.get_running_loop().time
        deadline_s = now() + timeout_s
        waits_for = "it has just begun"
        while now() < deadline_s:
            answer = await self._asking.one(node, "admin.why", {"group_id": group_id})
            if not isinstance(answer, Silence):
                if answer["halted"] is None:
                    return
                waits_for = answer["rebuilding"] or waits_for
                if waits_for.startswith("given up"):
                    raise ApiError(409, f"the rebuild on {node} was {waits_for}", _WHY_HINT)
            else:
                waits_for = f"node {node} does not answer: {answer.why}"
            await asyncio.sleep(_LOOK_AGAIN_S)
        raise ApiError(504, f"not rebuilt within {timeout_s:g} s: {waits_for}", "it goes on; asking again is safe")


_WHY_HINT: Final = "`multiraft group why ID` shows how its replicas are"


def why_answer(group_id: GroupId, replicas: list[Facts], silent: dict[NodeId, str]) -> Facts:
    """Put what the replicas say of themselves into sentences: `problems`, worst first, and `next`, what to do."""
    leader = next((one["node_id"] for one in replicas if one["role"] == "leader"), None)
    problems: list[str] = []
    advice: list[str] = []
    if leader is None:
        said = [f"on {one['node_id']}: {one['leaderless']}" for one in replicas if one["leaderless"]]
        problems.append("no leader" + (f": {'; '.join(said)}" if said else " that answers"))
    for one in replicas:
        if one["broken"]:
            problems.append(f"the replica on {one['node_id']} has stopped: {one['broken']}")
            advice.append(f"restart node {one['node_id']}, and report what broke")
        elif one["halted"]:
            halted = one["halted"]
            problems.append(f"halted on {one['node_id']} at index {halted['index']} ({halted['kind']})")
            advice += halted["next"]
    problems += [f"no answer from {name}: {why}" for name, why in sorted(silent.items())]
    slow = [f"on {one['node_id']}: {line}" for one in replicas for line in one["slow"]]
    return {
        "group_id": group_id,
        "service": replicas[0]["service"] if replicas else None,
        "leader": leader,
        "healthy": not problems,
        "problems": problems,
        "slow": slow,
        "next": list(dict.fromkeys(advice)),
        "silent": silent,
        "replicas": replicas,
    }


def _members(view: Facts) -> list[list[Any]]:
    members = view["membership"]
    return [*members["voters"], *members["learners"], *members["outgoing"]]


def _healthy(replica: Facts) -> bool:
    return not replica["halted"] and not replica["broken"]


def _check_named(row: Facts, nodes: list[NodeId]) -> None:
    hosts = {one["node_id"] for one in row["replicas"]}
    for node in nodes:
        if node not in hosts:
            hint = f"those that do: {', '.join(sorted(hosts))}"
            raise ApiError(404, f"node {node!r} shows no replica of group {row['group_id']}", hint)


def _rebuild_steps(replica: Facts, healthy: list[NodeId]) -> list[str]:
    steps = []
    if replica["role"] == "leader":
        steps.append(f"{replica['node_id']} leads: {' or '.join(healthy)} takes over first")
    return [
        *steps,
        f"the leader takes a snapshot of what it has applied, at index {replica['halted']['index']} or later",
        f"{replica['node_id']} takes it in the place of its machine's state; its log and its vote stay",
    ]


def _plan(action: str, group_id: GroupId, nodes: list[NodeId], steps: list[str]) -> Facts:
    return {"action": action, "group_id": group_id, "nodes": nodes, "steps": steps, "nothing_to_do": not nodes}
