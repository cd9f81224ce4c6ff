"""The admin API: what an operator asks one node over HTTP, about that node and about the whole cluster.

Any node answers for all: it asks the others through the connections that the nodes have anyway (methods `admin.*`,
bodies in msgpack) and puts their answers side by side (multiraft.admin.view). Reading only: nothing here changes
the cluster.

    GET /status             every node; the ones that do not answer as down
    GET /groups             every group, as its leader sees it; ?service= leader= node= state= sort=
    GET /groups/{id}        one group and each of its replicas
    GET /groups/{id}/log    the end of its log, entries in base64; ?last= entry_bytes= node=
    GET /route              which shard, group and node serve a key; ?key= service= type=
    GET /livez              200 while the process turns over at all: never depends on a quorum
    GET /readyz             200 when this node's groups all have leaders, else 503
    GET /metrics            this node's counters as Prometheus text

Rules of this file: every answer but /metrics is JSON, every error is {"error", "hint"}; no request waits longer for
other nodes than PEER_TIMEOUT_S per question; work that grows with the number of groups is done off the loop.
"""

from __future__ import annotations

import asyncio
import base64
import difflib
import ipaddress
import json
import logging
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any, Final, Protocol, TypeAlias

import msgpack
from aiohttp import web

from multiraft.admin.metrics import metrics_text
from multiraft.admin.routing import RouteError, expected_groups, find_route
from multiraft.admin.view import (
    SORTS,
    STATES,
    Facts,
    Silence,
    groups_problems,
    merge_group,
    merge_groups,
    merge_status,
    select_groups,
    silence_problems,
)
from multiraft.config import parse_address
from multiraft.errors import (
    ConfigError,
    InvalidRequest,
    MultiRaftError,
    NotRunning,
    OutcomeUnknown,
    StartError,
    Unreachable,
)
from multiraft.shard.shard_map import ShardMap
from multiraft.types import DIRECTORY_GROUP, U64_MAX, GroupId, NodeId

PEER_TIMEOUT_S: Final = 2.0
"""How long another node may take to answer before it is shown as down."""
ADMIN_HEADER: Final = "Multiraft-Admin"
"""On every answer, so that a client can tell this API from another server."""
LOG_ENTRIES_MAX: Final = 1_000
LOG_ENTRY_BYTES: Final = 4_096
LOG_ENTRY_BYTES_MAX: Final = 65_536
LOG_ANSWER_BYTES: Final = 4 * 1024 * 1024
"""What one answer carries of all entries together; the oldest are cut first."""

Handler: TypeAlias = Callable[[web.Request], Any]
Answers: TypeAlias = dict[NodeId, Any]

_log = logging.getLogger(__name__)


class AdminNode(Protocol):
    """What the admin API needs of a node. `multiraft.Node` is one; the shapes of the dicts stand there."""

    @property
    def node_id(self) -> NodeId: ...

    @property
    def shard_map(self) -> ShardMap: ...

    def status(self) -> dict[str, Any]: ...

    def groups_status(self) -> list[dict[str, Any]]: ...

    def group_status(self, group_id: GroupId) -> dict[str, Any]:
        """Raises KeyError when this node hosts no replica of the group."""

    def read_log(self, group_id: GroupId, last_n: int) -> list[dict[str, Any]]: ...

    def on_call(self, method: str, handler: Callable[[bytes], bytes]) -> None: ...

    async def peer_call(self, node_id: NodeId, method: str, body: bytes, timeout_s: float) -> bytes: ...


class ApiError(Exception):
    """The request cannot be answered; `hint` says what to do about it."""

    def __init__(self, status: int, error: str, hint: str = "") -> None:
        super().__init__(error)
        self.status = status
        self.error = error
        self.hint = hint


def admin_app(node: AdminNode) -> web.Application:
    """Return the admin API of `node`, to be served alone or mounted with `app.add_subapp("/admin", ...)`.

    It also registers the handlers by which this node answers the same questions to other nodes; every node of the
    cluster must do so to be shown. Call it once per node.
    """
    api = _Api(node)
    api.register_calls()
    app = web.Application(middlewares=[_json_errors])
    app.add_routes(
        [
            web.get("/", api.index),
            web.get("/status", api.status),
            web.get("/groups", api.groups),
            web.get("/groups/{id}", api.group),
            web.get("/groups/{id}/log", api.log),
            web.get("/route", api.route),
            web.get("/livez", api.livez),
            web.get("/readyz", api.readyz),
            web.get("/metrics", api.metrics),
        ]
    )
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
    runner = web.AppRunner(admin_app(node), access_log=None, shutdown_timeout=1.0)
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


class _NotHosted(Exception):
    """This node has no replica of that group."""


class _Api:
    """The handlers, and the questions that nodes ask each other for them."""

    def __init__(self, node: AdminNode) -> None:
        self._node = node
        self._local: dict[str, Callable[[Facts], Any]] = {
            "admin.status": lambda request: node.status(),
            "admin.groups": lambda request: node.groups_status(),
            "admin.group": lambda request: self._local_group(request["group_id"]),
            "admin.log": self._local_log,
        }

    # ------------------------------------------------------------------------------------ between nodes

    def register_calls(self) -> None:
        for method in self._local:
            self._node.on_call(method, self._answerer(method))

    def _answerer(self, method: str) -> Callable[[bytes], bytes]:
        def answer(body: bytes) -> bytes:
            try:
                reply = {"ok": self._local[method](msgpack.unpackb(body))}
            except _NotHosted:
                reply = {"not_hosted": True}
            except MultiRaftError as problem:
                reply = {"error": str(problem)}
            except Exception as problem:
                _log.exception("the question %s of another node failed here", method)
                reply = {"error": f"{type(problem).__name__}: {problem}"}
            packed: bytes = msgpack.packb(reply)
            return packed

        return answer

    def _local_group(self, group_id: GroupId) -> Facts:
        try:
            return self._node.group_status(group_id)
        except KeyError:
            raise _NotHosted from None

    def _local_log(self, request: Facts) -> Facts:
        view = self._local_group(request["group_id"])
        room = LOG_ANSWER_BYTES
        entries: list[Facts] = []
        for row in reversed(self._node.read_log(request["group_id"], request["last"])):
            shown = row["entry"][: min(room, request["entry_bytes"])]
            room -= len(shown)
            entries.append({**row, "entry": shown, "cut": len(shown) < len(row["entry"])})
        entries.reverse()
        return {"view": view, "entries": entries}

    async def _ask(self, node_id: NodeId, method: str, request: Facts) -> Any:
        """Return what `node_id` answers, a Silence when it does not. Raises _NotHosted when it says so."""
        if node_id == self._node.node_id:
            return self._local[method](request)
        try:
            body = await self._node.peer_call(node_id, method, msgpack.packb(request), PEER_TIMEOUT_S)
            reply = await asyncio.to_thread(msgpack.unpackb, body, strict_map_key=False)
            if "not_hosted" in reply:
                raise _NotHosted
            return reply["ok"] if "ok" in reply else Silence(f"answered with an error: {reply['error']}", reached=True)
        except InvalidRequest as problem:
            return Silence(f"{problem} (does it serve the admin API?)", reached=True)
        except Unreachable:
            return Silence("not connected")
        except (OutcomeUnknown, TimeoutError):
            return Silence(f"no answer within {PEER_TIMEOUT_S:g} s")
        except MultiRaftError as problem:
            return Silence(str(problem))
        except (ValueError, KeyError, TypeError) as problem:
            return Silence(f"its answer makes no sense here: {type(problem).__name__}", reached=True)

    async def _ask_each(self, node_ids: list[NodeId], method: str, request: Facts) -> Answers:
        """Ask all at once. Nodes that do not host what is asked for are not in the result."""
        found = await asyncio.gather(*[self._ask(name, method, request) for name in node_ids], return_exceptions=True)
        answers: Answers = {}
        for name, answer in zip(node_ids, found, strict=True):
            if isinstance(answer, _NotHosted):
                continue
            if isinstance(answer, BaseException):
                raise answer
            answers[name] = answer
        return answers

    def _all_nodes(self) -> list[NodeId]:
        return sorted({self._node.node_id, *self._node.status()["peers"]})

    async def _group_answers(self, group_id: GroupId) -> tuple[list[Facts], dict[NodeId, str]]:
        """Return the views of all replicas of a group, and who did not answer. Raises ApiError when there is none."""
        answers = await self._ask_each(self._all_nodes(), "admin.group", {"group_id": group_id})
        silent = {name: answer.why for name, answer in answers.items() if isinstance(answer, Silence)}
        views = [answer for answer in answers.values() if not isinstance(answer, Silence)]
        if views:
            return views, silent
        if silent and (group_id == DIRECTORY_GROUP or group_id in self._node.shard_map.groups):
            names = ", ".join(sorted(silent))
            raise ApiError(503, f"no node that answers hosts group {group_id}", f"not answering: {names}; start them")
        hint = "`multiraft groups` or GET /groups lists them all"
        if silent:
            hint += f"; {', '.join(sorted(silent))} did not answer and may know more"
        raise ApiError(404, f"there is no group {group_id}", hint)

    # --------------------------------------------------------------------------------------------- HTTP

    async def index(self, request: web.Request) -> web.Response:
        _query(request)
        routes = sorted({route.resource.canonical for route in request.app.router.routes() if route.resource})
        return _json({"node_id": self._node.node_id, "routes": routes})

    async def status(self, request: web.Request) -> web.Response:
        _query(request)
        local = self._node.status()
        answers = await self._ask_each(sorted(local["peers"]), "admin.status", {})
        return _json(merge_status(local, answers))

    async def groups(self, request: web.Request) -> web.Response:
        found = _query(
            request,
            service=_text,
            leader=_text,
            node=_text,
            state=_one_of("state", STATES),
            sort=_one_of("sort", [*SORTS, *(f"-{name}" for name in SORTS)]),
        )
        nodes = self._all_nodes()
        if (named := found.get("node") or found.get("leader")) and named not in nodes:
            raise ApiError(404, f"there is no node {named!r}", f"known nodes: {', '.join(nodes)}")
        answers = await self._ask_each(nodes, "admin.groups", {})
        shard_map = self._node.shard_map

        def build() -> str:
            rows = merge_groups(answers, expected_groups(shard_map))
            shown = select_groups(rows, **found)
            silent = {name: answer.why for name, answer in answers.items() if isinstance(answer, Silence)}
            problems = [*silence_problems(silent), *groups_problems(shown)]
            answer = {"healthy": not problems, "problems": problems, "silent": silent}
            return _dumps({**answer, "total": len(rows), "groups": shown})

        return web.json_response(text=await asyncio.to_thread(build))

    async def group(self, request: web.Request) -> web.Response:
        _query(request)
        views, silent = await self._group_answers(_group_id(request))
        row = merge_group(views, silent)
        members = {replica["node_id"] for replica in row["replicas"]}
        silent = {name: why for name, why in silent.items() if name in members}
        problems = [*silence_problems(silent), *groups_problems([row])]
        return _json({"healthy": not problems, "problems": problems, "silent": silent, "group": row})

    async def log(self, request: web.Request) -> web.Response:
        found = _query(
            request,
            last=_number("last", 1, LOG_ENTRIES_MAX),
            entry_bytes=_number("entry_bytes", 0, LOG_ENTRY_BYTES_MAX),
            node=_text,
        )
        group_id = _group_id(request)
        views, _ = await self._group_answers(group_id)
        source = _log_source(views, self._node.node_id, found.get("node"))
        question = {
            "group_id": group_id,
            "last": found.get("last", 10),
            "entry_bytes": found.get("entry_bytes", LOG_ENTRY_BYTES),
        }
        try:
            answer = await self._ask(source, "admin.log", question)
        except _NotHosted:
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
        return _json({**told, "service": view["service"], "entries": entries})

    async def route(self, request: web.Request) -> web.Response:
        found = _query(request, key=_text, service=_text, type=_text)
        if "key" not in found:
            raise ApiError(400, "key: is missing", "GET /route?key=KEY&service=SERVICE")
        try:
            route = find_route(self._node.shard_map, found["key"], found.get("service"), found.get("type", "str"))
        except RouteError as problem:
            raise ApiError(problem.status, str(problem), problem.hint) from problem
        views, silent = await self._group_answers(route["group_id"])
        row = merge_group(views, silent)
        told = {name: row[name] for name in ("state", "why", "leader", "term")}
        problems = groups_problems([row])
        nodes = [replica["node_id"] for replica in row["replicas"]]
        return _json({"healthy": not problems, "problems": problems, **route, **told, "nodes": nodes})

    async def livez(self, request: web.Request) -> web.Response:
        return _json({"live": True, "node_id": self._node.node_id})

    async def readyz(self, request: web.Request) -> web.Response:
        try:
            status = self._node.status()
        except NotRunning as problem:
            return _json({"ready": False, "error": str(problem), "hint": "start the node"}, 503)
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
        return _json(answer, 200 if answer["ready"] else 503)

    async def metrics(self, request: web.Request) -> web.Response:
        text = metrics_text(self._node.status())
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


# -------------------------------------------------------------------------------------- requests and answers


def _query(request: web.Request, **known: Callable[[str], Any]) -> dict[str, Any]:
    """Check and return the request's parameters. Raises ApiError 400 for an unknown, repeated or wrong one."""
    found: dict[str, Any] = {}
    for name, value in request.query.items():
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(known) or 'none'}"
            raise ApiError(400, f"{name}: is not a parameter of {request.path}", hint)
        if name in found:
            raise ApiError(400, f"{name}: is given twice", "give it once")
        found[name] = known[name](value)
    return found


def _text(value: str) -> str:
    return value


def _one_of(name: str, allowed: list[str] | tuple[str, ...]) -> Callable[[str], str]:
    def check(value: str) -> str:
        if value not in allowed:
            raise ApiError(400, f"{name} = {value!r}: is not one of those known", f"known: {', '.join(allowed)}")
        return value

    return check


def _number(name: str, low: int, high: int) -> Callable[[str], int]:
    def check(value: str) -> int:
        number = int(value) if value.isascii() and value.isdigit() and len(value) <= 20 else -1
        if not low <= number <= high:
            hint = f"a whole number from {low} to {high}"
            raise ApiError(400, f"{name} = {value!r}: is out of range", hint)
        return number

    return check


def _group_id(request: web.Request) -> GroupId:
    return _number("group id", 1, U64_MAX)(request.match_info["id"])


def _json_value(value: object) -> object:
    if isinstance(value, bytes):
        return value.hex()
    raise TypeError(f"{type(value).__name__} has no JSON form")


def _dumps(value: Mapping[str, Any]) -> str:
    return json.dumps(value, default=_json_value)


def _json(value: Mapping[str, Any], status: int = 200) -> web.Response:
    return web.json_response(text=_dumps(value), status=status)


@web.middleware
async def _json_errors(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Turn whatever goes wrong into {"error", "hint"} with the fitting status, and sign every answer."""
    try:
        response: web.StreamResponse = await handler(request)
    except ApiError as problem:
        response = _json({"error": problem.error, "hint": problem.hint}, problem.status)
    except web.HTTPNotFound:
        response = _json({"error": f"nothing is at {request.path}", "hint": "GET / lists what there is"}, 404)
    except web.HTTPException as problem:
        hint = "the admin API only reads: use GET" if problem.status == 405 else ""
        response = _json({"error": f"{problem.reason}: {request.method} {request.path}", "hint": hint}, problem.status)
    except MultiRaftError as problem:
        response = _json({"error": str(problem), "hint": "GET /readyz says what this node waits for"}, 503)
    except Exception as problem:
        _log.exception("admin request %s %s failed", request.method, request.path)
        text = f"{type(problem).__name__}: {problem}"
        response = _json({"error": text, "hint": "a bug: the node's log has the details"}, 500)
    response.headers[ADMIN_HEADER] = "1"
    return response
