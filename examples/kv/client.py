"""An asynchronous client of the key-value store's HTTP API, which retries what is safe to retry.

It is given the URLs of one or more nodes and uses them in turn: any node answers. What happened to a call is one
of three things, and the client acts on it:

    certainly not done   tried again, at another node, until the time is up
    unknown              tried again under the same number, so that it is done once however many attempts arrive;
                         a client that numbers nothing tries again only what may be done twice (get, put, delete, batch)
    done, or refused     returned, or raised

Rules of this file: every attempt is counted, also when it ends in an error; nothing is retried past the deadline.
"""

from __future__ import annotations

import asyncio
import base64
import io
import json
import random
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Final
from urllib.parse import quote, urlencode

import aiohttp
from yarl import URL

from examples.kv.machine import Life, Swap
from examples.kv.numbering import Number, Numbers
from multiraft.errors import (
    CommandFailed,
    DeadlineExceeded,
    InvalidRequest,
    OutcomeUnknown,
    ReplyForgotten,
    SessionExpired,
)

_AVOID_S: Final = 0.5
"""How long a node that could not be reached is passed over."""
_BACKOFF_S: Final = (0.02, 0.5)
_NOT_DONE: Final = "not_committed"
_EXPIRED: Final = 410


@dataclass(slots=True)
class Counts:
    """What the client went through since it was made.

    attempts  requests sent or tried to be sent
    retries   attempts that followed an unsuccessful one of the same call
    unknown   attempts after which nobody could tell whether the write had happened
    """

    attempts: int = 0
    retries: int = 0
    unknown: int = 0


class _Absent(InvalidRequest):
    """The store, not just any server, says 404."""


@dataclass(frozen=True, slots=True)
class _Failure:
    outcome: str
    message: str


@dataclass(slots=True)
class _Undone:
    """The keys of a batch that were not written: those to be tried again, and those whose session has ended."""

    keys: list[str] = field(default_factory=list)
    ended: list[str] = field(default_factory=list)
    failure: _Failure = field(default_factory=lambda: _Failure(_NOT_DONE, ""))


class Client:
    """Use as `async with Client(urls) as client`.

    urls               "http://host:port" of one or more nodes
    exactly_once       number all changes, in a session of this client's own; False: an increment or compare-and-set
                       raises OutcomeUnknown as soon as nobody can tell whether it happened
    timeout_s          a call gives up after this long, all attempts together
    attempt_timeout_s  one attempt is given up after this long
    connections        kept open at most, over all nodes
    """

    def __init__(
        self,
        urls: Sequence[str],
        *,
        exactly_once: bool = True,
        timeout_s: float = 30.0,
        attempt_timeout_s: float = 10.0,
        connections: int = 64,
    ) -> None:
        if not urls:
            raise ValueError("at least one URL is needed")
        self.counts = Counts()
        self._urls = [url.rstrip("/") for url in urls]
        self._turn = random.randrange(len(urls))
        self._avoid: dict[str, float] = {}
        self._timeout_s = timeout_s
        self._attempt_timeout = aiohttp.ClientTimeout(total=attempt_timeout_s)
        self._connections = connections
        self._session: aiohttp.ClientSession | None = None
        self._exactly_once = exactly_once
        self._numbers: Numbers | None = None
        self._opening = asyncio.Lock()

    async def __aenter__(self) -> Client:
        connector = aiohttp.TCPConnector(limit=self._connections)
        self._session = aiohttp.ClientSession(connector=connector, timeout=self._attempt_timeout)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._session is not None:
            await self._session.close()

    async def get(self, key: str) -> bytes | None:
        """Return the value of `key`, as of some moment between the call and its answer; None when absent."""
        try:
            _, body = await self._call("GET", key_path(key))
        except _Absent:
            return None
        return body

    async def put(self, key: str, value: bytes, *, ttl_ms: int | None = None) -> None:
        """Store `value` under `key`, for good or for `ttl_ms` milliseconds; retried when its outcome is unknown."""
        with suppress(ReplyForgotten):  # it was done, and has no other answer
            await self._change("PUT", key_path(key) + _ttl(ttl_ms), value)

    async def delete(self, key: str) -> bool:
        """Remove `key`; say whether the last attempt found it there."""
        _, body = await self._change("DELETE", key_path(key))
        return bool(json.loads(body)["deleted"])

    async def expire(self, key: str, ttl_ms: int) -> bool:
        """Have `key` end in `ttl_ms` milliseconds; say whether it is there."""
        _, body = await self._change("POST", key_path(key, "/expire/") + _ttl(ttl_ms))
        return bool(json.loads(body)["found"])

    async def persist(self, key: str) -> bool:
        """Have `key` stay; say whether it is there."""
        _, body = await self._change("POST", key_path(key, "/persist/"))
        return bool(json.loads(body)["found"])

    async def ttl(self, key: str) -> Life:
        """Say whether `key` is there, and for how long."""
        try:
            _, body = await self._call("GET", key_path(key, "/ttl/"))
        except _Absent:
            return Life(False, None)
        return Life(True, json.loads(body)["ttl_ms"])

    async def count(self) -> int:
        """Return how many keys there are; each shard counts at its own moment."""
        _, body = await self._call("GET", "/count")
        return int(json.loads(body)["keys"])

    async def compare_and_set(
        self, key: str, expected: bytes | None, value: bytes, *, ttl_ms: int | None = None
    ) -> Swap:
        """Store `value` if `key` holds `expected` (None: is absent). Raises OutcomeUnknown when nobody can tell."""
        question = {"expected": None if expected is None else to_base64(expected), "value": to_base64(value)}
        path = key_path(key, "/cas/") + _ttl(ttl_ms)
        _, body = await self._change("POST", path, json.dumps(question).encode(), idempotent=False)
        answer = json.loads(body)
        current = answer["current"]
        return Swap(bool(answer["swapped"]), None if current is None else base64.b64decode(current))

    async def increment(self, key: str, amount: int = 1) -> int:
        """Add `amount` to the number under `key`. Raises OutcomeUnknown, CommandFailed when it is no number."""
        path = f"{key_path(key, '/increment/')}?by={amount}"
        _, body = await self._change("POST", path, b"", idempotent=False)
        return int(json.loads(body)["value"])

    async def scan(self, prefix: str = "", page: int = 1_000) -> AsyncIterator[tuple[str, bytes]]:
        """Yield all keys that begin with `prefix`, ascending, with their values; `page` entries per request."""
        after: str | None = None
        while True:
            asked = {"prefix": prefix, "limit": str(page)}
            if after is not None:
                asked["start_after"] = after
            _, body = await self._call("GET", f"/scan?{urlencode(asked)}")
            answer = json.loads(body)
            for key, value in answer["entries"]:
                yield key, base64.b64decode(value)
            after = answer["next"]
            if after is None:
                return

    async def batch(self, writes: Mapping[str, bytes | None]) -> None:
        """Store all of `writes`; None removes a key. Atomic for the keys of one shard, not beyond.

        What was not done, or may not have been, is sent again. Raises CommandFailed, OutcomeUnknown or
        DeadlineExceeded when something of it is left undone; the rest is done.
        """
        deadline = time.monotonic() + self._timeout_s
        left = dict(writes)
        while left:
            async with self._number(deadline) as number:
                left = await self._batch(left, number, deadline)

    async def _batch(
        self, left: dict[str, bytes | None], number: Number | None, deadline: float
    ) -> dict[str, bytes | None]:
        """Have `left` done under one number; return what is to be done under another one, its session having ended."""
        ended: dict[str, bytes | None] = {}
        attempt = 0
        unknown = False
        while left:
            try:
                status, body = await self._call("POST", "/batch", encode_batch(left), number=number, deadline=deadline)
            except ReplyForgotten:
                return ended
            except SessionExpired:
                self._forget(number)
                return {**ended, **left}
            if status != 207:
                return ended
            undone = self._undone(json.loads(body)["shards"])
            if undone.ended:
                self._forget(number)
            ended.update((key, left[key]) for key in undone.ended)
            left = {key: left[key] for key in undone.keys}
            if left:
                unknown = unknown or undone.failure.outcome == "unknown"
                if number is not None:
                    number.asked = unknown
                await self._pause(deadline, attempt, undone.failure, unknown)
                self.counts.retries += 1
                attempt += 1
        return ended

    def _undone(self, shards: list[dict[str, Any]]) -> _Undone:
        undone = _Undone()
        for shard in shards:
            outcome = shard["outcome"]
            if outcome in ("committed", "forgotten"):
                continue
            if outcome == "failed":
                raise CommandFailed("batch", f"shard {shard['shard_id']}: {shard['error']}")
            if shard["status"] == _EXPIRED:
                undone.ended += shard["keys"]
                continue
            self.counts.unknown += outcome == "unknown"
            undone.keys += shard["keys"]
            if undone.failure.outcome != "unknown":
                undone.failure = _Failure(outcome, shard["error"])
        return undone

    # ------------------------------------------------------------------------------------------------ exactly once

    @asynccontextmanager
    async def _number(self, deadline: float) -> AsyncIterator[Number | None]:
        """Yield the number of one change; None where this client numbers nothing."""
        if not self._exactly_once:
            yield None
            return
        async with self._opening:
            if self._numbers is None:
                _, body = await self._call("POST", "/session", b"", deadline=deadline)
                self._numbers = Numbers(bytes.fromhex(json.loads(body)["session"]))
            numbers = self._numbers
        number = numbers.begin()
        try:
            yield number
        finally:
            numbers.end(number)

    def _forget(self, number: Number | None) -> None:
        """The session of `number` has ended: the next change begins another one."""
        if number is not None and self._numbers is number.session:
            self._numbers = None

    async def _change(
        self, method: str, path: str, body: bytes | None = None, *, idempotent: bool = True
    ) -> tuple[int, bytes]:
        """Have one change done, under a number. Raises as `_call`, and ReplyForgotten."""
        deadline = time.monotonic() + self._timeout_s
        while True:
            async with self._number(deadline) as number:
                try:
                    return await self._call(method, path, body, idempotent=idempotent, number=number, deadline=deadline)
                except SessionExpired:  # it was not done
                    self._forget(number)

    # ------------------------------------------------------------------------------------------------------ calling

    async def _call(
        self,
        method: str,
        path: str,
        body: bytes | None = None,
        *,
        idempotent: bool = True,
        number: Number | None = None,
        deadline: float | None = None,
    ) -> tuple[int, bytes]:
        """Return (status, body) of an answer below 400. Raises _Absent where the store says that a key is not there."""
        if deadline is None:
            deadline = time.monotonic() + self._timeout_s
        attempt = 0
        unknown = False
        while True:
            url = self._next_url()
            result = await self._attempt(method, url, path, body, number.header() if number is not None else {})
            if not isinstance(result, _Failure):
                return result
            if method != "GET" and result.outcome == "unknown":
                self.counts.unknown += 1
                unknown = True
                if number is not None:
                    number.asked = True
                elif not idempotent:
                    raise OutcomeUnknown(f"{result.message}; it may or may not have happened: read before trying again")
            await self._pause(deadline, attempt, result, unknown)
            self.counts.retries += 1
            attempt += 1

    async def _attempt(
        self, method: str, url: str, path: str, body: bytes | None, headers: Mapping[str, str]
    ) -> tuple[int, bytes] | _Failure:
        if self._session is None:
            raise RuntimeError("use `async with Client(...)`")
        self.counts.attempts += 1
        try:
            data = body if body is None else io.BytesIO(body)  # aiohttp sends a large one in pieces that way
            target = URL(url + path, encoded=True)
            async with self._session.request(method, target, data=data, headers=headers) as response:
                content = await response.read()
        except aiohttp.ClientConnectorError as problem:
            self._avoid[url] = time.monotonic() + _AVOID_S
            return _Failure(_NOT_DONE, f"{url} cannot be reached: {problem.strerror or problem}")
        except TimeoutError:
            return _Failure("unknown", f"{url} did not answer in time")
        except aiohttp.ClientError as problem:
            self._avoid[url] = time.monotonic() + _AVOID_S
            return _Failure("unknown", f"{url}: the connection broke: {problem}")
        return (response.status, content) if response.status < 400 else _refusal(url, response.status, content)

    def _next_url(self) -> str:
        now = time.monotonic()
        for _ in self._urls:
            self._turn = (self._turn + 1) % len(self._urls)
            if self._avoid.get(self._urls[self._turn], 0.0) <= now:
                break
        return self._urls[self._turn]

    async def _pause(self, deadline: float, attempt: int, failure: _Failure, unknown: bool) -> None:
        """Wait before the next attempt. Raises what all came to if there is no time for another.

        unknown  one of them may have happened
        """
        first_s, longest_s = _BACKOFF_S
        wait_s = min(longest_s, first_s * 2 ** min(attempt, 10)) * random.uniform(0.5, 1.0)
        if time.monotonic() + wait_s >= deadline:
            if unknown:
                raise OutcomeUnknown(failure.message)
            raise DeadlineExceeded(f"gave up after {attempt + 1} attempts; the last one: {failure.message}")
        await asyncio.sleep(wait_s)


def _refusal(url: str, status: int, content: bytes) -> _Failure:
    """What an error answer means. Raises when trying again cannot help."""
    try:
        answer = json.loads(content)
        message = f"{url}: {answer['error']}"
        outcome = answer["outcome"]
    except (ValueError, KeyError, TypeError):
        message, outcome = f"{url}: HTTP {status}", "unknown"
    if outcome == "failed":
        raise CommandFailed(f"HTTP {status}", message)
    if outcome == "forgotten":
        raise ReplyForgotten(message)
    if status == _EXPIRED:
        raise SessionExpired(message)
    if status < 500:
        raise _Absent(message) if status == 404 and outcome == _NOT_DONE else InvalidRequest(message)
    return _Failure(outcome, message)


def key_path(key: str, route: str = "/kv/") -> str:
    """Return the path of `key`. Everything but letters and digits is percent-encoded, so that any key survives."""
    try:
        encoded = quote(key, safe="")
    except UnicodeEncodeError:
        raise InvalidRequest("the key is not valid Unicode text") from None
    return route + encoded.replace(".", "%2E")


def _ttl(ttl_ms: int | None) -> str:
    return "" if ttl_ms is None else f"?ttl_ms={ttl_ms}"


def to_base64(value: bytes) -> str:
    return base64.b64encode(value).decode("ascii")


def encode_batch(writes: Mapping[str, bytes | None]) -> bytes:
    """Return the body of POST /batch."""
    put = {key: to_base64(value) for key, value in writes.items() if value is not None}
    gone = [key for key, value in writes.items() if value is None]
    return json.dumps({"put": put, "delete": gone}).encode()
