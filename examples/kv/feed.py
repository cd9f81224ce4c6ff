"""The watch of a prefix, as a server gives it: server-sent events over all shards, resumable from a token.

    GET /watch?prefix=             from now on, what happens to the keys that begin with the prefix
              &after=TOKEN         what happened after the token, which an earlier event carried as its id; the header
                                   Last-Event-ID says the same, and wins
              &heartbeat_ms=       how often something is sent at least (default 10,000)

    event: ready                   first: the watch stands; what is written from now on will be told
    event: put | delete | expire   data: {"key", "shard_id", "index", "time_ms"}; of a put also "size_bytes", "value"
                                   (base64; left out when large), and "deadline_ms" where the key ends by itself
    event: cut-off                 last: {"error", "hint", "gone"}: why the server ends the watch, and what to do;
                                   unless gone is true, its id is where to resume
    :                              a heartbeat, which carries an id, too: so the token of a quiet watch does not age

Changes of one key come in order, and so do all of one shard; between shards there is no order. Each comes once as
long as whoever resumes does so with the id of the last event that it has dealt with.

What is told comes from the events that each shard keeps of its latest changes, and from this node's replica where
there is one; a shard that has none here is asked for at its leader. A token that is older than what is kept is
answered with 410.

Rules of this file: a watch holds no events; one that cannot keep up falls behind in what the shard keeps, and is cut
off when that is gone or when nothing can be sent for long; nothing is told that is not committed and applied here.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from typing import Any, Final

from aiohttp import web

from examples.kv.inputs import ApiError, parameters_of, to_base64, whole_number
from examples.kv.layout import Event
from examples.kv.machine import KV, SERVICE, News
from examples.kv.token import Position, read_token, write_token
from multiraft.errors import MultiRaftError, NotRunning
from multiraft.node import Node

WATCHES: Final = 256
"""So many watches are served at once by one node."""
HEARTBEAT_MS: Final = 10_000
SLOW_S: Final = 10.0
"""A watch to which nothing can be sent for so long is cut off."""
_POLL_S: Final = 0.1
_ASK_MS: Final = 1_000
_STALE_MS: Final = 30_000
"""A replica here that has been out of touch for longer must ask its leader before it tells anything."""
_EVENTS_AT_ONCE: Final = 500
_LINGER_S: Final = 2.0

_log = logging.getLogger(__name__)


class _CutOffError(Exception):
    """The watch ends, and its consumer is told why and what to do."""

    def __init__(self, error: str, hint: str, gone: bool = False) -> None:
        super().__init__(error)
        self.told = {"error": error, "hint": hint, "gone": gone}


@dataclass(frozen=True, slots=True)
class Asked:
    """What a consumer wants to see."""

    prefix: str
    after: dict[int, Position] | None
    heartbeat_s: float


class Feed:
    """All watches of one node.

    slow_s  a watch to which nothing can be sent for so long is cut off
    """

    def __init__(self, node: Node, store: type[KV], slow_s: float = SLOW_S) -> None:
        self._node = node
        self._store = store
        self._slow_s = slow_s
        self._watches: set[_Watch] = set()

    async def watch(self, request: web.Request) -> web.StreamResponse:
        """Serve GET /watch."""
        asked = _asked(request)
        if len(self._watches) >= WATCHES:
            raise ApiError(503, f"this node serves {WATCHES} watches already", "ask another node, or end some")
        watch = _Watch(self._node, self._store, asked, self._slow_s)
        self._watches.add(watch)
        try:
            return await watch.serve(request)
        finally:
            self._watches.discard(watch)

    async def stop(self, app: web.Application) -> None:
        """End all watches; their consumers resume at another node."""
        for watch in self._watches:
            watch.stop()


class _Watch:
    """One consumer's watch."""

    def __init__(self, node: Node, store: type[KV], asked: Asked, slow_s: float) -> None:
        self._node = node
        self._news = store.news
        self._asked = asked
        self._slow_s = slow_s
        self._positions: dict[int, Position] = {}
        self._groups: dict[int, int] = {}
        self._dirty: set[int] = set()
        self._failed: dict[int, float] = {}  # shards that could not be asked, since when
        self._look_s = 0.0
        self._woken = asyncio.Event()
        self._stopping = False
        self._response = web.StreamResponse(
            headers={"Content-Type": "text/event-stream", "Cache-Control": "no-store", "X-Accel-Buffering": "no"}
        )

    def stop(self) -> None:
        self._stopping = True
        self._woken.set()

    async def serve(self, request: web.Request) -> web.StreamResponse:
        shards = (await self._node.router.shards(SERVICE)).shards
        self._groups = {shard.shard_id: shard.group_id for shard in shards}
        with ExitStack() as subscriptions:
            for shard_id, group_id in self._groups.items():
                subscriptions.callback(self._node.group(group_id).on_applied(self._waker(shard_id)))
            await self._begin()
            await self._response.prepare(request)
            try:
                await self._send("ready", {"node_id": self._node.node_id, "shards": len(self._groups)})
                await self._run()
            except _CutOffError as problem:
                await self._last_words(request, problem)
            except ConnectionResetError:
                _log.debug("a watch ended: its consumer has gone")
        return self._response

    def _waker(self, shard_id: int) -> Callable[[], None]:
        def wake() -> None:
            self._dirty.add(shard_id)
            self._woken.set()

        return wake

    async def _begin(self) -> None:
        """Find out where each shard is, and whether what was asked for is still there. Raises ApiError."""
        after = self._asked.after
        reached: dict[int, News] = {shard_id: news async for shard_id, news in self._news.on_each_shard()}
        if after is None:
            self._positions = {shard_id: Position(news.reached) for shard_id, news in reached.items()}
            return
        strange = sorted(set(after) - set(reached))
        if strange:
            raise ApiError(400, f"after: the store has no shard {strange[0]}", _HINT_TOKEN)
        for shard_id, news in reached.items():
            position = after.get(shard_id, Position())
            if position.index > news.reached:
                told = f"after: shard {shard_id} is at index {news.reached}, not yet at {position.index}"
                raise ApiError(400, told, _HINT_TOKEN)
            if position.after < news.dropped:
                raise ApiError(410, _gone(shard_id, position, news), _HINT_GONE)
            self._positions[shard_id] = position
        self._dirty.update(self._positions)

    async def _run(self) -> None:
        """Tell what happens until the consumer goes, falls behind, or the node stops."""
        now = asyncio.get_running_loop().time
        heartbeat_s = now() + self._asked.heartbeat_s
        while not self._stopping:
            if now() >= self._look_s:
                self._dirty.update(self._silent())
                self._look_s = now() + _POLL_S
            for shard_id in sorted(self._dirty):
                self._dirty.discard(shard_id)
                if await self._advance(shard_id, now()):
                    heartbeat_s = now() + self._asked.heartbeat_s
            if now() >= heartbeat_s:
                await self._write(f"id: {write_token(self._positions)}\n:\n\n")
                heartbeat_s = now() + self._asked.heartbeat_s
                self._dirty.update(self._groups)  # is this node still in touch with them?
            elif not self._dirty:
                with suppress(TimeoutError):
                    async with asyncio.timeout_at(min(heartbeat_s, self._look_s) if self._silent() else heartbeat_s):
                        await self._woken.wait()
                self._woken.clear()

    def _silent(self) -> set[int]:
        """Shards that do not wake this watch: those without a replica here, and those that could not be asked."""
        here = self._node.router.has_replica
        return {shard_id for shard_id, group_id in self._groups.items() if not here(group_id)} | set(self._failed)

    async def _advance(self, shard_id: int, now_s: float) -> bool:
        """Tell what is new in one shard; return whether there was anything. Raises _CutOffError."""
        position = self._positions[shard_id]
        near = self._news.with_options(stale_ms=_STALE_MS, timeout_ms=_ASK_MS)
        try:
            news = await near.on_shard(shard_id, self._asked.prefix, position.after, _EVENTS_AT_ONCE)
        except NotRunning:
            self._stopping = True
            return False
        except MultiRaftError as problem:
            since_s = self._failed.setdefault(shard_id, now_s)
            if now_s - since_s > self._slow_s:
                text = f"this node cannot reach shard {shard_id}: {problem}"
                raise _CutOffError(text, "resume at another node with the id of this event") from problem
            return False
        self._failed.pop(shard_id, None)
        if news.dropped > position.after:
            raise _CutOffError(_gone(shard_id, position, news), _HINT_GONE, gone=True)
        if news.more:
            self._dirty.add(shard_id)
        # A replica may lag behind what another one told before.
        reached = Position(news.reached) if news.reached >= position.index else position
        events = [event for event in news.events if event.index > position.index or event.part >= position.seen > 0]
        pieces: list[str] = []
        for number, event in enumerate(events, 1):
            last = number == len(events)
            self._positions[shard_id] = reached if last else Position(event.index, event.part + 1)
            pieces.append(self._event(event.kind, _told(shard_id, event)))
        self._positions[shard_id] = reached
        if pieces:
            await self._write("".join(pieces))
        return bool(pieces)

    async def _send(self, kind: str, data: Mapping[str, Any]) -> None:
        await self._write(self._event(kind, data))

    def _event(self, kind: str, data: Mapping[str, Any]) -> str:
        return f"id: {write_token(self._positions)}\nevent: {kind}\ndata: {json.dumps(data)}\n\n"

    async def _write(self, text: str) -> None:
        try:
            async with asyncio.timeout(self._slow_s):
                await self._response.write(text.encode())
        except TimeoutError:
            told = f"too slow: nothing could be sent for {self._slow_s:g} s"
            raise _CutOffError(told, "resume with the id of the last event, and read faster") from None

    async def _last_words(self, request: web.Request, problem: _CutOffError) -> None:
        """Tell why the watch ends. A consumer that does not read it in time is dropped without having heard."""
        transport = request.transport
        if transport is not None:
            asyncio.get_running_loop().call_later(_LINGER_S, transport.abort)
        with suppress(TimeoutError, ConnectionResetError):
            async with asyncio.timeout(_LINGER_S):
                await self._send("cut-off", problem.told)
                await self._response.write_eof()


def _asked(request: web.Request) -> Asked:
    asked = parameters_of(request, "prefix", "after", "heartbeat_ms")
    heartbeat_ms = whole_number("heartbeat_ms", asked.get("heartbeat_ms", str(HEARTBEAT_MS)), 50, 60_000)
    text = request.headers.get("Last-Event-ID", asked.get("after"))
    try:
        after = None if text is None else read_token(text)
    except ValueError as problem:
        raise ApiError(400, f"after: {problem}", _HINT_TOKEN) from None
    return Asked(asked.get("prefix", ""), after, heartbeat_ms / 1_000)


def _told(shard_id: int, event: Event) -> dict[str, Any]:
    told: dict[str, Any] = {"key": event.key, "shard_id": shard_id, "index": event.index, "time_ms": event.time_ms}
    if event.kind == "put":
        told["size_bytes"] = event.size_bytes
        if event.value is not None:
            told["value"] = to_base64(event.value)
        if event.deadline_ms:
            told["deadline_ms"] = event.deadline_ms
    return told


def _gone(shard_id: int, position: Position, news: News) -> str:
    return f"shard {shard_id} keeps what came after index {news.dropped}, no longer what came after {position.after}"


_HINT_TOKEN: Final = "use the id of an event of this store, as it is; or leave it out, and begin with what comes now"
_HINT_GONE: Final = "watch anew without a token, then GET /scan the prefix: what changes from then on is told"
