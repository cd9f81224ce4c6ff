"""The HTTP API of the key-value store. Every node serves it, and any node answers for all keys.

    GET    /kv/{key}            the value, as it is; 404 when absent. Linearizable. One of these may be said:
                                ?local=1 answered by this node's replica, linearizable all the same; ?stale_ms= by this
                                node's replica, at once if it is at most so old; ?lease=1 by the leader without asking
                                a quorum, which trusts clocks. The header Age-Ms says how old the answer may be, at most
    PUT    /kv/{key}            store the body, ?ttl_ms= for so many milliseconds only
    DELETE /kv/{key}            {"deleted": whether it was there}
    POST   /cas/{key}           {"expected": base64 or null for absent, "value": base64}, ?ttl_ms=
                                -> {"swapped": whether, "current": base64 or null}
    POST   /increment/{key}     ?by= (default 1) -> {"value": the sum}
    GET    /ttl/{key}           {"ttl_ms": how long it will stay, null for good}; 404 when absent
    POST   /expire/{key}        ?ttl_ms= -> {"found": whether it is there}; it ends then
    POST   /persist/{key}       -> {"found": whether it is there}; it stays
    GET    /scan                ?prefix= limit= start_after= -> {"entries": [[key, base64]...], "next": key or null};
                                linearizable for each shard; a page is no snapshot across shards
    GET    /count               {"keys": how many there are}
    POST   /batch               {"put": {key: base64}, "delete": [key]}; atomic for the keys of one shard, not beyond
                                -> {"committed": writes, "shards": [{"shard_id", "outcome", "writes", ...}]};
                                207 when a shard's part was not committed, which then also names its keys, why, and
                                the status that it would have been answered with alone
    GET    /watch               ?prefix= after= heartbeat_ms= -> server-sent events: see feed.py
    GET    /replica/{group}     this node's own replica, as JSON lines: for inspection: see replica.py
    GET    /admin/...           the admin API

A key is percent-encoded UTF-8 and may hold slashes; values are bytes. What stands in JSON as base64 is a value.
Every error is {"error", "hint", "outcome"}, and the outcome says what became of a write:

    not_committed   400 404 405 410 413 503 507: certainly not done
    failed          409: done, and refused by the store in the same way on every replica; nothing changed
    unknown         504 500: may or may not have been done
    forgotten       504: done, once, under the number that was given; its answer is not kept any more

Exactly once: POST /session -> {"session": ID}. A change that carries the header `Session: ID:SEQUENCE:LOWEST[:first]`
is done once, however often it is sent to whichever nodes, as numbering.py tells. A session that was not used for an
hour is answered with 410, and the change was not done: begin another one.

Rules of this file: whatever is too large or makes no sense is refused before anything is proposed.
"""

from __future__ import annotations

import asyncio
import heapq
import logging
import math
from collections.abc import Awaitable, Callable
from typing import Any, Final, ParamSpec, TypeAlias, TypeVar

from aiohttp import web

from examples.kv.feed import Feed
from examples.kv.inputs import (
    ApiError,
    Problem,
    body_of,
    explain,
    fields_of,
    from_base64,
    key_of,
    parameters_of,
    to_base64,
    ttl_of,
    whole_number,
    writes_of,
)
from examples.kv.machine import KEY_LIMIT_BYTES, KV, SERVICE, VALUE_LIMIT_BYTES, Page, hash_tag
from examples.kv.numbering import HEADER, read_number
from examples.kv.replica import Replicas
from examples.kv.token import TOKEN_LIMIT
from multiraft.admin.api import admin_app
from multiraft.errors import MultiRaftError
from multiraft.node import Node
from multiraft.remote import RemoteCommand

BATCH_LIMIT_BYTES: Final = 16 * 1024 * 1024
"""Largest body of POST /batch: one of the largest values fits."""
_CAS_LIMIT_BYTES: Final = 3 * VALUE_LIMIT_BYTES  # two values in base64, and some room
SCAN_LIMIT: Final = 10_000
STALE_LIMIT_MS: Final = 3_600_000
_SCAN_SHARE: Final = 64
_CLOSE_S: Final = 1.0

P = ParamSpec("P")
R = TypeVar("R")
Handler: TypeAlias = Callable[[web.Request], Awaitable[web.StreamResponse]]

_log = logging.getLogger(__name__)


def kv_app(node: Node, store: type[KV], *, allow_planted_loss: bool = False, url: str | None = None) -> web.Application:
    """Return the HTTP API of `node`, with the admin API under /admin.

    store               what `node.service(SERVICE, KV, ...)` returned
    allow_planted_loss  serve DELETE /replica/{group}/{key}, which drops a record from this node's replica behind
                        everyone's back: to prove that a check notices
    url                 where this is served, for clients of other nodes; None: they are not told
    """
    api, feed, replicas = _Api(node, store), Feed(node, store), Replicas(node)
    app = web.Application(middlewares=[_json_errors], client_max_size=BATCH_LIMIT_BYTES)
    app.add_routes(
        [
            web.get("/", api.index),
            web.post("/session", api.session),
            web.get("/kv/{key:(?s:.*)}", api.get),
            web.put("/kv/{key:(?s:.*)}", api.put),
            web.delete("/kv/{key:(?s:.*)}", api.delete),
            web.post("/cas/{key:(?s:.*)}", api.compare_and_set),
            web.post("/increment/{key:(?s:.*)}", api.increment),
            web.get("/ttl/{key:(?s:.*)}", api.ttl),
            web.post("/expire/{key:(?s:.*)}", api.expire),
            web.post("/persist/{key:(?s:.*)}", api.persist),
            web.get("/scan", api.scan),
            web.get("/count", api.count),
            web.post("/batch", api.batch),
            web.get("/watch", feed.watch),
            web.get("/replica/{group}", replicas.dump),
        ]
    )
    if allow_planted_loss:
        app.add_routes([web.delete("/replica/{group}/{key:(?s:.*)}", replicas.plant_loss)])
    app.add_subapp("/admin", admin_app(node, f"{url}/admin" if url else None))
    app.on_shutdown.append(feed.stop)
    return app


def kv_runner(app: web.Application) -> web.AppRunner:
    """Return what serves `kv_app`: with room for the longest key, percent-encoded, and for the longest token."""
    line_bytes = max(3 * KEY_LIMIT_BYTES, TOKEN_LIMIT) + 1_024
    return web.AppRunner(
        app, access_log=None, shutdown_timeout=_CLOSE_S, max_line_size=line_bytes, max_field_size=line_bytes
    )


class _Api:
    def __init__(self, node: Node, store: type[KV]) -> None:
        self._node = node
        self._store = store

    async def index(self, request: web.Request) -> web.Response:
        parameters_of(request)
        routes = [
            f"{route.method} {route.resource.canonical}"
            for route in request.app.router.routes()
            if route.resource is not None
            and route.method != "HEAD"
            and not route.resource.canonical.startswith("/admin")
        ]
        return _json({"node_id": self._node.node_id, "routes": [*routes, "GET /admin/"]})

    async def session(self, request: web.Request) -> web.Response:
        parameters_of(request)
        return _json({"session": (await self._node.open_session(SERVICE)).hex()})

    # ---------------------------------------------------------------------------------------------- one key

    async def get(self, request: web.Request) -> web.Response:
        asked = parameters_of(request, "lease", "local", "stale_ms")
        key = key_of(request, "/kv/")
        headers = {}
        if asked:
            lease, local = (bool(whole_number(name, asked.get(name, "0"), 0, 1)) for name in ("lease", "local"))
            stale_ms = whole_number("stale_ms", asked["stale_ms"], 0, STALE_LIMIT_MS) if "stale_ms" in asked else None
            query = self._store.get.with_options(lease=lease, local=local, stale_ms=stale_ms)
            value, age_ms = await query.aged(key)
            headers["Age-Ms"] = str(math.ceil(age_ms))
        else:
            value = await self._store.get(key)
        if value is None:
            raise _absent(key)
        return web.Response(body=value, content_type="application/octet-stream", headers=headers)

    async def put(self, request: web.Request) -> web.Response:
        ttl_ms = ttl_of(parameters_of(request, "ttl_ms"))
        key = key_of(request, "/kv/")
        value = await body_of(request, VALUE_LIMIT_BYTES, "the value")
        await _numbered(request, self._store.put)(key, value, ttl_ms)
        return web.Response(status=204)

    async def delete(self, request: web.Request) -> web.Response:
        parameters_of(request)
        return _json({"deleted": await _numbered(request, self._store.delete)(key_of(request, "/kv/"))})

    async def compare_and_set(self, request: web.Request) -> web.Response:
        ttl_ms = ttl_of(parameters_of(request, "ttl_ms"))
        key = key_of(request, "/cas/")
        asked = fields_of(await body_of(request, _CAS_LIMIT_BYTES, "the body"), "expected", "value")
        value = from_base64("value", asked.get("value"))
        expected = None if asked.get("expected") is None else from_base64("expected", asked["expected"])
        swap = await _numbered(request, self._store.compare_and_set)(key, expected, value, ttl_ms)
        return _json({"swapped": swap.swapped, "current": None if swap.current is None else to_base64(swap.current)})

    async def increment(self, request: web.Request) -> web.Response:
        by = parameters_of(request, "by").get("by", "1")
        amount = whole_number("by", by, -(1 << 63), (1 << 63) - 1)
        key = key_of(request, "/increment/")
        return _json({"value": await _numbered(request, self._store.increment)(key, amount)})

    async def ttl(self, request: web.Request) -> web.Response:
        parameters_of(request)
        key = key_of(request, "/ttl/")
        life = await self._store.ttl(key)
        if not life.present:
            raise _absent(key)
        return _json({"ttl_ms": life.ttl_ms})

    async def expire(self, request: web.Request) -> web.Response:
        ttl_ms = ttl_of(parameters_of(request, "ttl_ms"))
        if ttl_ms is None:
            raise ApiError(400, "ttl_ms is missing", "POST /expire/KEY?ttl_ms=1000; POST /persist/KEY lets a key stay")
        key = key_of(request, "/expire/")
        return _json({"found": await _numbered(request, self._store.expire)(key, ttl_ms)})

    async def persist(self, request: web.Request) -> web.Response:
        parameters_of(request)
        key = key_of(request, "/persist/")
        return _json({"found": await _numbered(request, self._store.persist)(key)})

    # -------------------------------------------------------------------------------------------- many keys

    async def scan(self, request: web.Request) -> web.Response:
        """Merge one page of each shard.

        Each shard is asked for a little more than its share. What lies beyond the last key of a shard that has
        more to give is left for the next page, because that shard may have something to put in between.
        """
        asked = parameters_of(request, "prefix", "limit", "start_after")
        limit = whole_number("limit", asked.get("limit", "1000"), 1, SCAN_LIMIT)
        pages = await self._pages(asked.get("prefix", ""), limit, asked.get("start_after"))
        cut = min((next(reversed(page.entries)) for page in pages if page.more), default=None)
        merged = list(heapq.merge(*[page.entries.items() for page in pages], key=lambda entry: entry[0]))
        entries = [[key, to_base64(value)] for key, value in merged if cut is None or key <= cut]
        more = cut is not None or len(entries) > limit
        entries = entries[:limit]
        return _json({"entries": entries, "next": entries[-1][0] if more else None})

    async def _pages(self, prefix: str, limit: int, start_after: str | None) -> list[Page]:
        shards = (await self._node.router.shards(SERVICE)).shards
        share = min(limit, max(_SCAN_SHARE, 2 * limit // len(shards)))
        answers = self._store.scan.on_each_shard(prefix, share, start_after)
        return [page async for _, page in answers]

    async def count(self, request: web.Request) -> web.Response:
        parameters_of(request)
        return _json({"keys": sum([keys async for _, keys in self._store.count.on_each_shard()])})

    async def batch(self, request: web.Request) -> web.Response:
        parameters_of(request)
        writes = writes_of(await body_of(request, BATCH_LIMIT_BYTES, "the body"))
        shards = await self._node.router.shards(SERVICE)
        parts: dict[int, dict[str, bytes | None]] = {}
        for key, value in writes.items():
            parts.setdefault(shards.find(hash_tag(key.encode())).shard_id, {})[key] = value
        write = _numbered(request, self._store.batch)
        results = await asyncio.gather(*[_write(write, shard_id, part) for shard_id, part in parts.items()])
        committed = sum(result["writes"] for result in results if result["outcome"] == "committed")
        status = 200 if committed == len(writes) else 207
        return _json({"committed": committed, "shards": results}, status)


async def _write(
    write: RemoteCommand[[str, dict[str, bytes | None]], int], shard_id: int, writes: dict[str, bytes | None]
) -> dict[str, Any]:
    """Write one shard's part of a batch; an error is part of the answer, since other parts may be done.

    All parts of a batch may carry one number: each shard knows numbers of its own.
    """
    try:
        await write(next(iter(writes)), writes)
        return {"shard_id": shard_id, "outcome": "committed", "writes": len(writes)}
    except MultiRaftError as error:
        problem = explain(error)
        told = {"shard_id": shard_id, "writes": len(writes), "keys": list(writes), "status": problem.status}
        return {**told, **problem.body()}


def _numbered(request: web.Request, command: RemoteCommand[P, R]) -> RemoteCommand[P, R]:
    """Return `command` under the number that the request gives it, if it gives one. Raises InvalidRequest."""
    text = request.headers.get(HEADER)
    return command if text is None else command.with_options(session=read_number(text))


# --------------------------------------------------------------------------------------------- what goes out


def _absent(key: str) -> ApiError:
    return ApiError(404, f"there is no key {key!r}", "PUT stores one; GET /scan?prefix= lists what there is")


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
