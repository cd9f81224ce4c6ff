"""The part of the admin API that changes who takes part in a group, and who leads it.

    GET  /groups/{id}/membership   in effect and latest, each replica, and what a change waits for
    POST /groups/{id}/members      {"action": "add" | "remove" | "replace" | "promote" | "demote", "node": "n4"}
    POST /groups/{id}/transfer     {"node": "n2"}

Both take `timeout_s`, `dry_run` (answer what would be done, do nothing) and `force` (do what is unsafe, too); `replace`
takes `old`, `add` takes `voter`. Any node does it for all. The answer comes when it is done; 504 says that it is not
done in time and may still come about. Who stops listening before has not stopped it.

Rules of this file: nothing is changed by a GET, nor by a request that a web page could have made its reader send; what
is unsafe by `multiraft.admin.plans` is refused unless it is forced.
"""

from __future__ import annotations

import asyncio
from typing import Any, Final

from aiohttp import web

from multiraft.admin.answers import ApiError, asked_group, checked_query, json_answer
from multiraft.admin.asking import Asking
from multiraft.admin.bodies import flag_of, json_body, named_of, node_of, refuse_others, seconds_of
from multiraft.admin.memberships import membership_answer
from multiraft.admin.plans import Action, PlanRefused, make_plan
from multiraft.admin.view import Facts, Silence, groups_problems, merge_group, silence_problems
from multiraft.errors import ChangeRefused, InvalidRequest, NotCommitted, NotReady, NotRunning, OutcomeUnknown
from multiraft.types import GroupId, Membership, NodeId

CHANGE_TIMEOUT_S: Final = 60.0
TRANSFER_TIMEOUT_S: Final = 10.0
READMIT_TIMEOUT_S: Final = 120.0
CHANGES_AT_ONCE: Final = 64
"""How many requests may wait here for their changes to be done; one more is refused."""
_MEMBER_ACTIONS: Final = ("add", "remove", "replace", "promote", "demote")
_LOOK_AGAIN_S: Final = 0.05
_SETTLE_S: Final = 1.0
_ASK_AGAIN_S: Final = 5.0
"""A transfer that was asked for and did not come about has been given up by its leader after this time."""


class MemberApi:
    """The handlers; `asking` reaches all nodes."""

    def __init__(self, asking: Asking) -> None:
        self._asking = asking
        self._node = asking.node
        self._under_way = 0

    async def membership(self, request: web.Request) -> web.Response:
        checked_query(request)
        row, silent = await self._row(asked_group(request))
        members = {replica["node_id"] for replica in row["replicas"]}
        silent = {name: why for name, why in silent.items() if name in members}
        problems = [*silence_problems(silent), *groups_problems([row])]
        return json_answer(membership_answer(row, silent, problems))

    async def members(self, request: web.Request) -> web.Response:
        checked_query(request)
        body = await json_body(request)
        kind = named_of(body, "action", _MEMBER_ACTIONS)
        texts, flags = {"node"}, {"dry_run", "force"}
        if kind == "replace":
            texts.add("old")
        if kind == "add":
            flags.add("voter")
        refuse_others(body, {"action", "timeout_s", *texts, *flags})
        action = Action(
            kind, node_of(body, "node"), node_of(body, "old") if kind == "replace" else "", flag_of(body, "voter", True)
        )
        return await self._act(asked_group(request), action, body, CHANGE_TIMEOUT_S)

    async def transfer(self, request: web.Request) -> web.Response:
        checked_query(request)
        body = await json_body(request)
        refuse_others(body, {"node", "timeout_s", "dry_run", "force"})
        return await self._act(
            asked_group(request), Action("transfer", node_of(body, "node")), body, TRANSFER_TIMEOUT_S
        )

    async def readmit(self, request: web.Request) -> web.Response:
        checked_query(request)
        body = await json_body(request)
        refuse_others(body, {"node", "timeout_s"})
        node_id, timeout_s = node_of(body, "node"), seconds_of(body, "timeout_s", READMIT_TIMEOUT_S)
        if self._under_way >= CHANGES_AT_ONCE:
            raise ApiError(503, f"{self._under_way} changes wait here already", "wait for them, or ask another node")
        self._under_way += 1
        try:
            await self._node.readmit(node_id, timeout_s)
        except InvalidRequest as problem:
            raise ApiError(409, str(problem), "`multiraft status` shows the nodes") from problem
        except NotRunning as problem:
            raise ApiError(503, str(problem), "ask another node") from problem
        except NotReady as problem:
            raise ApiError(504, str(problem), "asking again goes on where this was left") from problem
        finally:
            self._under_way -= 1
        return json_answer({"done": True, "node": node_id})

    # ----------------------------------------------------------------------------------------------------- acting

    async def _row(self, group_id: GroupId) -> tuple[Facts, dict[NodeId, str]]:
        views, silent, tombstones = await self._asking.group(group_id)
        return {**merge_group(views, silent), "tombstones": tombstones}, silent

    async def _act(self, group_id: GroupId, action: Action, body: Facts, default_s: float) -> web.Response:
        timeout_s = seconds_of(body, "timeout_s", default_s)
        dry_run, force = flag_of(body, "dry_run", False), flag_of(body, "force", False)
        plan = await self._plan(group_id, action)
        if dry_run:
            return json_answer({"done": False, "dry_run": True, "plan": plan})
        if not plan["safe"] and not force:
            hint = "force does it all the same (`--force`); a dry run (`--dry-run`) shows how it stands"
            raise ApiError(409, f"unsafe: {'; '.join(plan['unsafe'])}", hint)
        if self._under_way >= CHANGES_AT_ONCE:
            raise ApiError(503, f"{self._under_way} changes wait here already", "wait for them, or ask another node")
        self._under_way += 1
        try:
            done = await self._do(group_id, action, timeout_s)
        except (ChangeRefused, InvalidRequest) as problem:
            raise ApiError(409, str(problem), "`multiraft members` shows how the group is now") from problem
        except NotRunning as problem:
            raise ApiError(503, str(problem), "ask another node") from problem
        except (NotReady, OutcomeUnknown) as problem:
            raise ApiError(
                504, str(problem), "`multiraft members` shows how far it is; asking again is safe"
            ) from problem
        except NotCommitted as problem:
            raise ApiError(503, str(problem), "nothing was changed; ask again") from problem
        finally:
            self._under_way -= 1
        return json_answer({"done": True, "dry_run": False, "plan": plan, **done})

    async def _plan(self, group_id: GroupId, action: Action) -> Facts:
        """Return the plan for `action`. Raises ApiError where it makes no sense.

        A new leader has not heard of anybody yet, and those who answer us would be taken for lost: so what is called
        unsafe although they do is looked at again for a moment.
        """
        now = asyncio.get_running_loop().time
        settled_s = now() + _SETTLE_S
        while True:
            row, silent = await self._row(group_id)
            try:
                plan = make_plan(row, action, self._asking.all_nodes(), silent)
            except PlanRefused as problem:
                raise ApiError(problem.status, str(problem), problem.hint) from problem
            unheard = any(one["role"] is not None and not one["answers"] for one in row["replicas"])
            if plan["safe"] or not unheard or now() >= settled_s:
                return plan
            await asyncio.sleep(_LOOK_AGAIN_S)

    async def _do(self, group_id: GroupId, action: Action, timeout_s: float) -> Facts:
        group = self._node.group(group_id)
        if action.kind == "add":
            return _told(await group.add(action.node, voter=action.voter, timeout_s=timeout_s))
        if action.kind == "remove":
            return _told(await group.remove(action.node, timeout_s=timeout_s))
        if action.kind == "replace":
            return _told(await group.replace(action.old, action.node, timeout_s=timeout_s))
        if action.kind == "promote":
            return _told(await group.promote(action.node, timeout_s=timeout_s))
        if action.kind == "demote":
            return _told(await group.demote(action.node, timeout_s=timeout_s))
        return await self._transferred(group_id, action.node, timeout_s)

    async def _transferred(self, group_id: GroupId, to: NodeId, timeout_s: float) -> Facts:
        """Ask whoever leads to hand over, until `to` says that it leads. Raises NotReady when the time is up."""
        now = asyncio.get_running_loop().time
        deadline_s, asked_s = now() + timeout_s, -_ASK_AGAIN_S
        waiting_for = "no leader was found"
        while True:
            row, _ = await self._row(group_id)
            if row["leader"] == to and row["state"] != "unconfirmed":
                return {"leader": to, "term": row["term"]}
            if now() >= deadline_s:
                raise NotReady(f"node {to!r} does not lead within {timeout_s:g} s: {waiting_for}")
            if row["leader"] is None:
                waiting_for = str(row["why"])
            elif now() - asked_s >= _ASK_AGAIN_S:
                question = {"group_id": group_id, "node": to}
                answer = await self._asking.one(row["leader"], "admin.transfer", question)
                if isinstance(answer, Silence):
                    waiting_for = f"node {row['leader']}, which leads: {answer.why}"
                else:
                    asked_s = now()
                    waiting_for = f"node {row['leader']} was asked to hand over"
            await asyncio.sleep(_LOOK_AGAIN_S)


def _told(membership: Membership) -> Facts:
    def named(replicas: tuple[int, ...]) -> list[list[Any]]:
        return [[replica_id, membership.nodes[replica_id]] for replica_id in replicas]

    return {
        "membership": {
            "index": membership.index,
            "voters": named(membership.voters),
            "learners": named(membership.learners),
            "outgoing": named(membership.outgoing),
            "joining": named(membership.joining),
        }
    }
