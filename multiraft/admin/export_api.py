"""The part of the admin API by which the states of groups are fetched, for backups: see multiraft.exporting.

    POST /groups/{id}/exports                 begin one, on the group's leader: its name, its node, how far it is
    GET  /exports/{node}/{name}               how far it is; once it is ready, at which index it was cut
    GET  /exports/{node}/{name}/bytes?offset= what it has from there on, 256 KiB at most; empty at its end
    POST /exports/{node}/{name}/drop          it is done with

Any node does it for all. An interrupted fetch goes on at the offset that it has come to.

Rules of this file: a name leads nowhere but to an export that the node has made.
"""

from __future__ import annotations

from typing import Any

from aiohttp import web

from multiraft.admin.answers import ApiError, asked_group, checked_query, json_answer
from multiraft.admin.asking import Asking, NotHosted
from multiraft.admin.bodies import json_body, refuse_others
from multiraft.admin.view import Facts, Silence
from multiraft.snapshot_file import is_file_name

_HINT = "begin another export"
_DIGITS = 18


class ExportApi:
    """The handlers; `asking` reaches all nodes."""

    def __init__(self, asking: Asking) -> None:
        self._asking = asking

    async def begin(self, request: web.Request) -> web.Response:
        checked_query(request)
        refuse_others(await json_body(request), set())
        group_id = asked_group(request)
        views, _, _ = await self._asking.group(group_id)
        leader = next((str(view["node_id"]) for view in views if view["role"] == "leader"), None)
        if leader is None:
            raise ApiError(503, f"group {group_id} has no leader that answers", f"`multiraft group why {group_id}`")
        return json_answer({"node": leader, **await self._ask(leader, "admin.export", {"group_id": group_id})})

    async def state(self, request: web.Request) -> web.Response:
        checked_query(request)
        node, name = _named(request)
        return json_answer({"node": node, **await self._ask(node, "admin.export_state", {"name": name})})

    async def read(self, request: web.Request) -> web.Response:
        offset = checked_query(request, offset=_offset).get("offset", 0)
        node, name = _named(request)
        body = await self._ask(node, "admin.export_read", {"name": name, "offset": offset})
        return web.Response(body=body, content_type="application/octet-stream")

    async def drop(self, request: web.Request) -> web.Response:
        checked_query(request)
        refuse_others(await json_body(request), set())
        node, name = _named(request)
        await self._ask(node, "admin.export_drop", {"name": name})
        return json_answer({"done": True})

    async def _ask(self, node: str, method: str, question: Facts) -> Any:
        try:
            answer = await self._asking.one(node, method, question)
        except NotHosted:
            raise ApiError(503, f"node {node} has no replica of that group any more", _HINT) from None
        if isinstance(answer, Silence):
            raise ApiError(503, f"node {node}: {answer.why}", _HINT)
        return answer


def _offset(text: str) -> int:
    if not text.isascii() or not text.isdigit() or len(text) > _DIGITS:
        raise ApiError(400, f"offset = {text!r:.40}: must be a whole number", "")
    return int(text)


def _named(request: web.Request) -> tuple[str, str]:
    node, name = request.match_info["node"], request.match_info["name"]
    if not is_file_name(name):
        raise ApiError(400, f"{name!r:.60} is no name of an export", _HINT)
    return node, name
