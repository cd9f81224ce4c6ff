"""The admin API: what an operator asks one node over HTTP, about that node and about the whole cluster.

Any node answers for all: it asks the others through the connections that the nodes have anyway (methods `admin.*`,
bodies in msgpack) and puts their answers side by side (multiraft.admin.view). What is here only looks; what changes
something is a POST and stands in multiraft.admin.member_api and mending_api.

    GET /status             every node; the ones that do not answer as down
    GET /groups             every group, as its leader sees it; ?service= leader= node= state= sort=
    GET /groups/{id}        one group and each of its replicas
    GET /groups/{id}/log    the end of its log, entries in base64; ?last= entry_bytes= node=
    GET /groups/{id}/membership
                            who takes part in it, and what a change waits for
    POST /groups/{id}/members, POST /groups/{id}/transfer
                            change who takes part, or who leads
    GET /groups/{id}/why    why it is halted, without leader or slow, and what to do
    POST /groups/{id}/retry, POST /groups/{id}/rebuild
                            mend halted replicas
    GET /transfers          the files of snapshots on their way between nodes
    GET /route              which shard, group and node serve a key; ?key= service= type=
    GET /livez              200 while the process turns over at all: never depends on a quorum
    GET /readyz             200 when this node's groups all have leaders, else 503
    GET /metrics            this node's counters as Prometheus text
    GET /client             where remote clients connect, by WebSocket: multiraft.client

Rules of this file: every answer but /metrics is JSON, every error is {"error", "hint"}; no request waits longer for
other nodes than PEER_TIMEOUT_S per question; work that grows with the number of groups is done off the loop.
"""

from __future__ import annotations

import asyncio
import base64
import ipaddress
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final, TypeAlias

from aiohttp import web

from multiraft.admin.answers import (
    ApiError,
    asked_group,
    checked_query,
    dumps,
    json_answer,
    json_errors,
    number,
    one_of,
    text,
)
from multiraft.admin.asking import AdminNode, Asking, NotHosted
from multiraft.admin.export_api import ExportApi
from multiraft.admin.member_api import MemberApi
from multiraft.admin.mending_api import MendingApi
from multiraft.admin.metrics import metrics_text
from multiraft.admin.routing import RouteError, expected_groups, find_route
from multiraft.admin.transfers import TransferApi
from multiraft.admin.view import (
    SORTS,
    STATES,
    Facts,
    Silence,
    disk_text,
    groups_problems,
    merge_group,
    merge_groups,
    merge_status,
    select_groups,
    silence_problems,
)
from multiraft.client.serving import ClientServer
from multiraft.config import parse_address
from multiraft.errors import (
    ConfigError,
    DiskFull,
    NotRunning,
    StartError,
)
from multiraft.types import NodeId

LOG_ENTRIES_MAX: Final = 1_000
LOG_ENTRY_BYTES: Final = 4_096
LOG_ENTRY_BYTES_MAX: Final = 65_536

Answers: TypeAlias = dict[NodeId, Any]

_log = logging.getLogger(__name__)


def admin_app(node: AdminNode, url: str | None = None) -> web.Application:
    """Return the admin API of `node`, to be served alone or mounted with `app.add_subapp("/admin", ...)`.

    url  where it is served, for clients that were told of another node: "http://host:port", with the path that it is
         mounted under. None: only clients that were given it find this node

    It also registers the handlers by which this node answers the same questions to other nodes; every node of the
    cluster must do so to be shown. Call it once per node.
    """
    asking = Asking(node)
    asking.register_calls()
    clients = ClientServer(node, url)
    api, members, mending = _Api(asking, clients), MemberApi(asking), MendingApi(asking)
    exports = ExportApi(asking)
    app = web.Application(middlewares=[json_errors])
    app.add_routes(
        [
            web.get("/", api.index),
            web.get("/status", api.status),
            web.get("/groups", api.groups),
            web.get("/groups/{id}", api.group),
            web.get("/groups/{id}/log", api.log),
            web.get("/groups/{id}/membership", members.membership),
            web.post("/groups/{id}/members", members.members),
            web.post("/groups/{id}/transfer", members.transfer),
            web.post("/readmit", members.readmit),
            web.get("/groups/{id}/why", mending.why),
            web.post("/groups/{id}/retry", mending.retry),
            web.post("/groups/{id}/rebuild", mending.rebuild),
            web.post("/groups/{id}/exports", exports.begin),
            web.get("/exports/{node}/{name}", exports.state),
            web.get("/exports/{node}/{name}/bytes", exports.read),
            web.post("/exports/{node}/{name}/drop", exports.drop),
            web.get("/transfers", TransferApi(asking).transfers),
            web.get("/route", api.route),
            web.get("/livez", api.livez),
            web.get("/readyz", api.readyz),
            web.get("/metrics", api.metrics),
            web.get("/client", clients.serve),
        ]
    )
    app.on_shutdown.append(clients.close)
    return app


@asynccontextmanager
async def serve_admin(node: AdminNode, listen: str, *, insecure: bool = False) -> AsyncIterator[str]:
    """Serve the admin API of `node` at `listen` ("host:port") while the context lasts; yields its URL.

    The API asks nobody who they are, so that only loopback addresses are allowed unless `insecure` is said.
    Raises ConfigError when `listen` is not such an address, StartError when it cannot be had.
    """
    host, port = parse_address("listen", listen)
    if not insecure and not _is_loopback(host):
        raise ConfigError(
            f"listen = {listen!r}: the admin API asks nobody who they are, so only loopback addresses are allowed; "
            "use 127.0.0.1, or say insecure=True on a network that you trust"
        )
    runner = web.AppRunner(admin_app(node, f"http://{listen}"), access_log=None, shutdown_timeout=1.0)
    await runner.setup()
    try:
        try:
            await web.TCPSite(runner, host, port).start()
        except OSError as problem:
            raise StartError(
                f"the admin API cannot listen on {listen}: {problem.strerror}; stop what uses it, or name another port"
            ) from problem
        yield f"http://{listen}"
    finally:
        await runner.cleanup()


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class _Api:
    """The handlers of what only looks."""

    def __init__(self, asking: Asking, clients: ClientServer) -> None:
        self._asking = asking
        self._node = asking.node
        self._clients = clients

    async def index(self, request: web.Request) -> web.Response:
        checked_query(request)
        routes = sorted({route.resource.canonical for route in request.app.router.routes() if route.resource})
        return json_answer({"node_id": self._node.node_id, "routes": routes})

    async def status(self, request: web.Request) -> web.Response:
        checked_query(request)
        local = self._node.status()
        answers = await self._asking.each(sorted(local["peers"]), "admin.status", {})
        return json_answer(merge_status(local, answers))

    async def groups(self, request: web.Request) -> web.Response:
        found = checked_query(
            request,
            service=text,
            leader=text,
            node=text,
            state=one_of("state", STATES),
            sort=one_of("sort", [*SORTS, *(f"-{name}" for name in SORTS)]),
        )
        nodes = self._asking.all_nodes()
        if (named := found.get("node") or found.get("leader")) and named not in nodes:
            raise ApiError(404, f"there is no node {named!r}", f"known nodes: {', '.join(nodes)}")
        answers = await self._asking.each(nodes, "admin.groups", {})
        shard_map = self._node.shard_map

        def build() -> str:
            rows = merge_groups(answers, expected_groups(shard_map))
            shown = select_groups(rows, **found)
            silent = {name: answer.why for name, answer in answers.items() if isinstance(answer, Silence)}
            problems = [*silence_problems(silent), *groups_problems(shown)]
            answer = {"healthy": not problems, "problems": problems, "silent": silent}
            return dumps({**answer, "total": len(rows), "groups": shown})

        return web.json_response(text=await asyncio.to_thread(build))

    async def group(self, request: web.Request) -> web.Response:
        checked_query(request)
        views, silent, tombstones = await self._asking.group(asked_group(request))
        row = {**merge_group(views, silent), "tombstones": tombstones}
        members = {replica["node_id"] for replica in row["replicas"]}
        silent = {name: why for name, why in silent.items() if name in members}
        problems = [*silence_problems(silent), *groups_problems([row])]
        return json_answer({"healthy": not problems, "problems": problems, "silent": silent, "group": row})

    async def log(self, request: web.Request) -> web.Response:
        found = checked_query(
            request,
            last=number("last", 1, LOG_ENTRIES_MAX),
            entry_bytes=number("entry_bytes", 0, LOG_ENTRY_BYTES_MAX),
            node=text,
        )
        group_id = asked_group(request)
        views, _, _ = await self._asking.group(group_id)
        source = _log_source(views, self._node.node_id, found.get("node"))
        question = {
            "group_id": group_id,
            "last": found.get("last", 10),
            "entry_bytes": found.get("entry_bytes", LOG_ENTRY_BYTES),
        }
        try:
            answer = await self._asking.one(source, "admin.log", question)
        except NotHosted:
            raise ApiError(404, f"node {source} hosts no replica of group {group_id} any more", "ask again") from None
        if isinstance(answer, Silence):
            raise ApiError(503, f"node {source} did not show its log: {answer.why}", "ask another with ?node=")
        view = answer["view"]
        entries = [
            {
                **row,
                "entry": base64.b64encode(row["entry"]).decode(),
                "committed": row["index"] <= view["commit"],
                "applied": row["index"] <= view["applied"],
            }
            for row in answer["entries"]
        ]
        told = {
            name: view[name] for name in ("group_id", "node_id", "role", "term", "first", "last", "commit", "applied")
        }
        return json_answer({**told, "service": view["service"], "entries": entries})

    async def route(self, request: web.Request) -> web.Response:
        found = checked_query(request, key=text, service=text, type=text)
        if "key" not in found:
            raise ApiError(400, "key: is missing", "GET /route?key=KEY&service=SERVICE")
        try:
            route = find_route(self._node.shard_map, found["key"], found.get("service"), found.get("type", "str"))
        except RouteError as problem:
            raise ApiError(problem.status, str(problem), problem.hint) from problem
        views, silent, _ = await self._asking.group(route["group_id"])
        row = merge_group(views, silent)
        told = {name: row[name] for name in ("state", "why", "leader", "term")}
        problems = groups_problems([row])
        nodes = [replica["node_id"] for replica in row["replicas"]]
        return json_answer({"healthy": not problems, "problems": problems, **route, **told, "nodes": nodes})

    async def livez(self, request: web.Request) -> web.Response:
        return json_answer({"live": True, "node_id": self._node.node_id})

    async def readyz(self, request: web.Request) -> web.Response:
        try:
            status = self._node.status()
        except NotRunning as problem:
            return json_answer({"ready": False, "error": str(problem), "hint": "start the node"}, 503)
        except DiskFull as problem:
            hint = "free some space on that disk: the node comes back by itself"
            return json_answer({"ready": False, "error": str(problem), "hint": hint}, 503)
        groups = status["groups"]
        total, leaderless, halted = groups["hosted"], groups["leaderless"], groups["halted"]
        count = max(0, total - leaderless - halted)
        answer: Facts = {"ready": count == total, "groups_ready": count, "groups": total}
        if not status["cluster_id"]:
            answer |= {"ready": False, "error": "the node does not belong to a cluster yet"}
            answer["hint"] = "the first start waits for all founding members: start them"
        elif count < total:
            answer["error"] = f"{count} of {total} groups are ready: {leaderless} without leader, {halted} halted"
            answer["hint"] = "`multiraft groups --sort -state` or GET /groups?sort=-state says which, and why"
        elif status.get("disk", {}).get("low"):
            answer |= {"ready": False, "error": f"no commands are taken: {disk_text(status['disk'])}"}
            answer["hint"] = "free some space on that disk: it goes on by itself"
        return json_answer(answer, 200 if answer["ready"] else 503)

    async def metrics(self, request: web.Request) -> web.Response:
        text = metrics_text({**self._node.status(), "clients": self._clients.counts})
        return web.Response(body=text.encode(), headers={"Content-Type": "text/plain; version=0.0.4; charset=utf-8"})


def _log_source(views: list[Facts], asked: NodeId, wanted: NodeId | None) -> NodeId:
    """Choose whose log to show: the one wanted, else the leader's, else the asked node's own, else any."""
    hosts = {str(view["node_id"]): view for view in views}
    if wanted is not None:
        if wanted not in hosts:
            hint = f"ask one of {', '.join(sorted(hosts))}"
            raise ApiError(404, f"node {wanted!r} shows no replica of group {views[0]['group_id']}", hint)
        return wanted
    leading = [view for view in views if view["role"] == "leader"]
    if leading:
        return str(max(leading, key=lambda view: view["term"])["node_id"])
    return asked if asked in hosts else min(hosts)
