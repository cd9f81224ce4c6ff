"""The HTTP API of the key-value store. Every node serves it, and any node answers for all keys.

    GET    /kv/{key}            the value, as it is; 404 when absent. Linearizable. One of these may be said:
                                ?local=1 answered by this node's replica, linearizable all the same; ?stale_ms= by this
                                node's replica, at once if it is at most so old; ?lease=1 by the leader without asking
                                a quorum, which trusts clocks. The header Age-Ms says how old the answer may be, at most
    PUT    /kv/{key}            store the body
    DELETE /kv/{key}            {"deleted": whether it was there}
    POST   /cas/{key}           {"expected": base64 or null for absent, "value": base64}
                                -> {"swapped": whether, "current": base64 or null}
    POST   /increment/{key}     ?by= (default 1) -> {"value": the sum}
    GET    /scan                ?prefix= limit= start_after= -> {"entries": [[key, base64]...], "next": key or null};
                                linearizable for each shard; a page is no snapshot across shards
    POST   /batch               {"put": {key: base64}, "delete": [key]}; atomic for the keys of one shard, not beyond
                                -> {"committed": writes, "shards": [{"shard_id", "outcome", "writes", ...}]};
                                207 when a shard's part was not committed, which then also names its keys and why
    GET    /replica/{group}     this node's own replica, as JSON lines: for inspection, may be behind. ?applied= waits
    GET    /admin/...           the admin API

A key is percent-encoded UTF-8 and may hold slashes; values are bytes. What stands in JSON as base64 is a value.
Every error is {"error", "hint", "outcome"}, and the outcome says what became of a write:

    not_committed   400 404 405 413 503 507: certainly not done
    failed          409: done, and refused by the store in the same way on every replica; nothing changed
    unknown         504 500: may or may not have been done

Rules of this file: whatever is too large or makes no sense is refused before anything is proposed.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import heapq
import json
import logging
import math
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Final, TypeAlias
from urllib.parse import unquote_to_bytes

from aiohttp import web

from examples.kv.machine import KEY_LIMIT_BYTES, KV, VALUE_LIMIT_BYTES, Page, TooLarge, check_key, check_value
from multiraft.admin.api import admin_app
from multiraft.errors import (
    CommandFailed,
    DiskFull,
    Halted,
    InvalidRequest,
    MultiRaftError,
    NotCommitted,
    NotReady,
    OutcomeUnknown,
    Overloaded,
)
from multiraft.node import Node
from multiraft.types import GroupId

SERVICE: Final = "kv"
BATCH_LIMIT_BYTES: Final = 4 * 1024 * 1024
"""Largest body of POST /batch."""
_CAS_LIMIT_BYTES: Final = 4 * VALUE_LIMIT_BYTES  # two values in base64, and some room
SCAN_LIMIT: Final = 10_000
STALE_LIMIT_MS: Final = 3_600_000
_SCAN_SHARE: Final = 64
_APPLY_POLL_S: Final = 0.01
_APPLY_WAIT_S: Final = 10.0
_CLOSE_S: Final = 1.0
_DUMP_BYTES: Final = 256 * 1024

Handler: TypeAlias = Callable[[web.Request], Awaitable[web.StreamResponse]]

_log = logging.getLogger(__name__)


class ApiError(Exception):
    """The request is refused before anything was proposed."""

    def __init__(self, status: int, error: str, hint: str) -> None:
        super().__init__(error)
        self.problem = Problem(status, error, hint, "not_committed")


@dataclass(frozen=True, slots=True)
class Problem:
    """An error as a client sees it; `outcome` is one of not_committed, failed, unknown."""

    status: int
    error: str
    hint: str
    outcome: str

    def body(self) -> dict[str, Any]:
        return {"error": self.error, "hint": self.hint, "outcome": self.outcome}


def explain(error: Exception) -> Problem:
    """Return what to tell a client of an error of the framework."""
    for kind, status, hint, outcome in _EXPLAINED:
        if isinstance(error, kind):
            return Problem(status, str(error), hint, outcome)
    return Problem(500, f"{type(error).__name__}: {error}", "a bug: the node's log has the details", "unknown")


_EXPLAINED: Final[tuple[tuple[type[MultiRaftError], int, str, str], ...]] = (
    (InvalidRequest, 400, "correct the request", "not_committed"),
    (Overloaded, 503, "slow down, then try again", "not_committed"),
    (DiskFull, 507, "free some space on the disk that it names; it goes on by itself", "not_committed"),
    (Halted, 503, "ask /admin/groups?state=halted why; other shards go on", "not_committed"),
    (NotCommitted, 503, "try again shortly, at this node or another", "not_committed"),
    (CommandFailed, 409, "the store refused it and changed nothing; do not retry it as it stands", "failed"),
    (OutcomeUnknown, 504, "it may have happened: read, or retry if doing it twice does no harm", "unknown"),
)


def kv_app(node: Node, store: type[KV], *, allow_planted_loss: bool = False) -> web.Application:
    """Return the HTTP API of `node`, with the admin API under /admin.

    store               what `node.service(SERVICE, KV, ...)` returned
    allow_planted_loss  serve DELETE /replica/{group}/{key}, which drops a record from this node's replica behind
                        everyone's back: to prove that a check notices
    """
    api = _Api(node, store)
    app = web.Application(middlewares=[_json_errors], client_max_size=BATCH_LIMIT_BYTES)
    app.add_routes(
        [
            web.get("/", api.index),
            web.get("/kv/{key:(?s:.*)}", api.get),
            web.put("/kv/{key:(?s:.*)}", api.put),
            web.delete("/kv/{key:(?s:.*)}", api.delete),
            web.post("/cas/{key:(?s:.*)}", api.compare_and_set),
            web.post("/increment/{key:(?s:.*)}", api.increment),
            web.get("/scan", api.scan),
            web.post("/batch", api.batch),
            web.get("/replica/{group}", api.replica),
        ]
    )
    if allow_planted_loss:
        app.add_routes([web.delete("/replica/{group}/{key:(?s:.*)}", api.plant_loss)])
    app.add_subapp("/admin", admin_app(node))
    return app


def kv_runner(app: web.Application) -> web.AppRunner:
    """Return what serves `kv_app`: with room for the longest key, percent-encoded, in the first line of a request."""
    line_bytes = 3 * KEY_LIMIT_BYTES + 1_024
    return web.AppRunner(app, access_log=None, shutdown_timeout=_CLOSE_S, max_line_size=line_bytes)


class _Api:
    def __init__(self, node: Node, store: type[KV]) -> None:
        self._node = node
        self._store = store

    async def index(self, request: web.Request) -> web.Response:
        _parameters(request)
        routes = [
            f"{route.method} {route.resource.canonical}"
            for route in request.app.router.routes()
            if route.resource is not None
            and route.method != "HEAD"
            and not route.resource.canonical.startswith("/admin")
        ]
        return _json({"node_id": self._node.node_id, "routes": [*routes, "GET /admin/"]})

    # ---------------------------------------------------------------------------------------------- one key

    async def get(self, request: web.Request) -> web.Response:
        asked = _parameters(request, "lease", "local", "stale_ms")
        key = _key(request, "/kv/")
        headers = {}
        if asked:
            lease, local = (bool(_whole_number(name, asked.get(name, "0"), 0, 1)) for name in ("lease", "local"))
            stale_ms = _whole_number("stale_ms", asked["stale_ms"], 0, STALE_LIMIT_MS) if "stale_ms" in asked else None
            query = self._store.get.with_options(lease=lease, local=local, stale_ms=stale_ms)
            value, age_ms = await query.aged(key)
            headers["Age-Ms"] = str(math.ceil(age_ms))
        else:
            value = await self._store.get(key)
        if value is None:
            raise ApiError(404, f"there is no key {key!r}", "PUT stores one; GET /scan?prefix= lists what there is")
        return web.Response(body=value, content_type="application/octet-stream", headers=headers)

    async def put(self, request: web.Request) -> web.Response:
        _parameters(request)
        key = _key(request, "/kv/")
        value = await _body(request, VALUE_LIMIT_BYTES, "the value")
        await self._store.put(key, value)
        return web.Response(status=204)

    async def delete(self, request: web.Request) -> web.Response:
        _parameters(request)
        return _json({"deleted": await self._store.delete(_key(request, "/kv/"))})

    async def compare_and_set(self, request: web.Request) -> web.Response:
        _parameters(request)
        key = _key(request, "/cas/")
        asked = _fields(await _body(request, _CAS_LIMIT_BYTES, "the body"), "expected", "value")
        value = _from_base64("value", asked.get("value"))
        expected = None if asked.get("expected") is None else _from_base64("expected", asked["expected"])
        swap = await self._store.compare_and_set(key, expected, value)
        return _json({"swapped": swap.swapped, "current": None if swap.current is None else _to_base64(swap.current)})

    async def increment(self, request: web.Request) -> web.Response:
        by = _parameters(request, "by").get("by", "1")
        amount = _whole_number("by", by, -(1 << 63), (1 << 63) - 1)
        return _json({"value": await self._store.increment(_key(request, "/increment/"), amount)})

    # -------------------------------------------------------------------------------------------- many keys

    async def scan(self, request: web.Request) -> web.Response:
        """Merge one page of each shard.

        Each shard is asked for a little more than its share. What lies beyond the last key of a shard that has
        more to give is left for the next page, because that shard may have something to put in between.
        """
        asked = _parameters(request, "prefix", "limit", "start_after")
        limit = _whole_number("limit", asked.get("limit", "1000"), 1, SCAN_LIMIT)
        pages = await self._pages(asked.get("prefix", ""), limit, asked.get("start_after"))
        cut = min((next(reversed(page.entries)) for page in pages if page.more), default=None)
        merged = list(heapq.merge(*[page.entries.items() for page in pages], key=lambda entry: entry[0]))
        entries = [[key, _to_base64(value)] for key, value in merged if cut is None or key <= cut]
        more = cut is not None or len(entries) > limit
        entries = entries[:limit]
        return _json({"entries": entries, "next": entries[-1][0] if more else None})

    async def _pages(self, prefix: str, limit: int, start_after: str | None) -> list[Page]:
        shards = (await self._node.router.shards(SERVICE)).shards
        share = min(limit, max(_SCAN_SHARE, 2 * limit // len(shards)))
        answers = self._store.scan.on_each_shard(prefix, share, start_after)
        return [page async for _, page in answers]

    async def batch(self, request: web.Request) -> web.Response:
        _parameters(request)
        writes = _writes(await _body(request, BATCH_LIMIT_BYTES, "the body"))
        shards = await self._node.router.shards(SERVICE)
        parts: dict[int, dict[str, bytes | None]] = {}
        for key, value in writes.items():
            parts.setdefault(shards.find(key.encode()).shard_id, {})[key] = value
        results = await asyncio.gather(*[self._write(shard_id, part) for shard_id, part in parts.items()])
        committed = sum(result["writes"] for result in results if result["outcome"] == "committed")
        status = 200 if committed == len(writes) else 207
        return _json({"committed": committed, "shards": results}, status)

    async def _write(self, shard_id: int, writes: dict[str, bytes | None]) -> dict[str, Any]:
        """Write one shard's part of a batch; an error is part of the answer, since other parts may be done."""
        try:
            await self._store.batch(next(iter(writes)), writes)
            return {"shard_id": shard_id, "outcome": "committed", "writes": len(writes)}
        except MultiRaftError as error:
            problem = explain(error)
            return {"shard_id": shard_id, "writes": len(writes), "keys": list(writes), **problem.body()}

    # ------------------------------------------------------------------------------------- this node's replica

    async def replica(self, request: web.Request) -> web.StreamResponse:
        """Stream a head, {"group_id", "node_id", "applied", "records"}, and then each record as [key, base64]."""
        asked = _parameters(request, "applied")
        group_id = _group(request)
        wanted = _whole_number("applied", asked.get("applied", "0"), 0, (1 << 64) - 1)
        machine = await self._replica_at(group_id, wanted)
        applied = self._node.group_status(group_id)["applied"]
        records = list(machine.values.items())  # now, in one piece: what is applied meanwhile is not seen
        response = web.StreamResponse(headers={"Content-Type": "application/x-ndjson"})
        await response.prepare(request)
        head = {"group_id": group_id, "node_id": self._node.node_id, "applied": applied, "records": len(records)}
        lines, size_bytes = [json.dumps(head)], 0
        for key, value in records:
            lines.append(json.dumps([key, _to_base64(value)]))
            size_bytes += len(lines[-1])
            if size_bytes >= _DUMP_BYTES:
                await response.write("\n".join([*lines, ""]).encode())
                lines, size_bytes = [], 0
        await response.write("\n".join([*lines, ""]).encode())
        await response.write_eof()
        return response

    async def plant_loss(self, request: web.Request) -> web.Response:
        _parameters(request)
        group_id = _group(request)
        key = _key(request, f"/replica/{request.match_info['group']}/")
        machine = await self._replica_at(group_id, 0)
        return _json({"dropped": machine.delete(key)})

    async def _replica_at(self, group_id: GroupId, applied: int) -> KV:
        """Return this node's replica once it has applied everything up to `applied`."""
        give_up = time.monotonic() + _APPLY_WAIT_S
        while True:
            try:
                machine = self._node.local_machine(group_id)
                reached = self._node.group_status(group_id)["applied"]
            except (KeyError, NotReady):
                machine, reached = None, 0
            if not isinstance(machine, KV):
                hint = "GET /admin/groups says which nodes have one"
                raise ApiError(404, f"this node has no replica of group {group_id} of the store", hint)
            if reached >= applied:
                return machine
            if time.monotonic() >= give_up:
                raise ApiError(503, f"group {group_id} has applied {reached} here, not yet {applied}", "try again")
            await asyncio.sleep(_APPLY_POLL_S)


# ---------------------------------------------------------------------------------------------- what came in


def _key(request: web.Request, route: str) -> str:
    """Return the key that follows `route` in the path, decoded from the bytes that were sent."""
    sent = request.rel_url.raw_path.removeprefix(route)
    try:
        key = unquote_to_bytes(sent).decode()
        check_key(key)
    except UnicodeDecodeError:
        raise ApiError(400, "the key is not UTF-8", "percent-encode the UTF-8 bytes of the key") from None
    except TooLarge as problem:
        raise ApiError(413, str(problem), f"use a key of at most {KEY_LIMIT_BYTES} bytes") from None
    except ValueError as problem:
        raise ApiError(400, str(problem), f"the path is {route}KEY") from None
    return key


async def _body(request: web.Request, limit_bytes: int, what: str) -> bytes:
    """Return the body. Stops reading, and refuses it, as soon as it is over the limit."""
    content = bytearray()
    if (request.content_length or 0) <= limit_bytes:
        async for piece in request.content.iter_any():
            content += piece
            if len(content) > limit_bytes:
                break
        else:
            return bytes(content)
    raise ApiError(413, f"{what} has more than {limit_bytes} bytes", "split it; nothing of it was stored")


def _fields(body: bytes, *names: str) -> dict[str, Any]:
    """Return the JSON object in `body`, which may have these fields and no others."""
    try:
        found = json.loads(body)
    except (ValueError, RecursionError) as problem:
        raise ApiError(400, f"the body is not JSON: {problem}", f"send an object with {', '.join(names)}") from None
    if not isinstance(found, dict):
        raise ApiError(400, "the body is not a JSON object", f"send an object with {', '.join(names)}")
    unknown = sorted(set(found) - set(names))
    if unknown:
        raise ApiError(400, f"{unknown[0]!r} is not a field of this request", f"known: {', '.join(names)}")
    return found


def _writes(body: bytes) -> dict[str, bytes | None]:
    """Return the writes of a batch: key to value, None to delete."""
    asked = _fields(body, "put", "delete")
    put, gone = asked.get("put", {}), asked.get("delete", [])
    if not isinstance(put, dict) or not isinstance(gone, list):
        raise ApiError(400, "put must be an object and delete a list", '{"put": {key: base64}, "delete": [key]}')
    writes: dict[str, bytes | None] = {}
    try:
        for key, text in put.items():
            check_key(key)
            writes[key] = _from_base64(f"put[{key!r:.40}]", text)
        for key in gone:
            if not isinstance(key, str) or key in writes:
                raise ApiError(400, f"delete: {key!r:.40} is no text, or is written twice", "name each key once")
            check_key(key)
            writes[key] = None
    except TooLarge as problem:
        raise ApiError(413, str(problem), "nothing of the batch was stored") from None
    except ValueError as problem:
        raise ApiError(400, str(problem), "nothing of the batch was stored") from None
    if not writes:
        raise ApiError(400, "the batch is empty", '{"put": {key: base64}, "delete": [key]}')
    return writes


def _from_base64(name: str, text: object) -> bytes:
    if not isinstance(text, str):
        raise ApiError(400, f"{name} must be base64 text", "values in JSON are base64; PUT /kv/ takes them raw")
    try:
        value = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as problem:
        raise ApiError(400, f"{name} is not base64: {problem}", "values in JSON are base64") from None
    try:
        check_value(value)
    except TooLarge as problem:
        raise ApiError(413, f"{name}: {problem}", "nothing was stored") from None
    return value


def _to_base64(value: bytes) -> str:
    return base64.b64encode(value).decode("ascii")


def _parameters(request: web.Request, *names: str) -> dict[str, str]:
    found: dict[str, str] = {}
    for name, value in request.query.items():
        if name not in names or name in found:
            known = ", ".join(names) or "none"
            raise ApiError(400, f"{name!r} is not a parameter here, or is given twice", f"known: {known}")
        found[name] = value
    return found


def _whole_number(name: str, text: str, low: int, high: int) -> int:
    digits = text.removeprefix("-")
    number = int(text) if digits.isascii() and digits.isdigit() and len(digits) <= 20 else high + 1
    if not low <= number <= high:
        raise ApiError(400, f"{name} = {text!r:.40} is out of range", f"a whole number from {low} to {high}")
    return number


def _group(request: web.Request) -> GroupId:
    return _whole_number("group", request.match_info["group"], 1, (1 << 64) - 1)


# --------------------------------------------------------------------------------------------- what goes out


def _json(value: object, status: int = 200) -> web.Response:
    return web.json_response(value, status=status)


@web.middleware
async def _json_errors(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Turn whatever goes wrong into {"error", "hint", "outcome"} with the fitting status."""
    try:
        return await handler(request)
    except ApiError as error:
        problem = error.problem
    except MultiRaftError as error:
        problem = explain(error)
    except web.HTTPNotFound:
        problem = Problem(404, f"nothing is at {request.path}", "GET / lists what there is", "not_committed")
    except web.HTTPMethodNotAllowed as error:
        allowed = ", ".join(sorted(error.allowed_methods))
        problem = Problem(405, f"{request.path} has no {request.method}", f"allowed: {allowed}", "not_committed")
    except web.HTTPException as error:
        problem = Problem(error.status, error.reason, "correct the request", "not_committed")
    except Exception as error:
        _log.exception("%s %s failed", request.method, request.path)
        problem = explain(error)
    response = _json(problem.body(), problem.status)
    if problem.status == 503:
        response.headers["Retry-After"] = "1"
    return response
