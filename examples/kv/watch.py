"""Watching a prefix from outside: what happens to its keys, over all shards, through whichever node is there.

    async with aclosing(watch(urls, "user/")) as happenings:
        async for event in happenings:
            ...
            token = event.token  # to go on after this one: watch(urls, "user/", after=token)

Rules of this file: an event is given once; after a connection that ended, the watch goes on at the next node behind the
last event that was given, for ever; what no other node can mend is raised.
"""

from __future__ import annotations

import asyncio
import base64
import json
import random
import sys
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, Final

import aiohttp
import click

from multiraft.errors import InvalidRequest, MultiRaftError

HEARTBEAT_MS: Final = 5_000
_LINE_LIMIT_BYTES: Final = 1024 * 1024
_SILENT_BEATS: Final = 3
_CONNECT_S: Final = 5.0
_BACKOFF_S: Final = (0.05, 1.0)
_EXIT_REFUSED: Final = 6
_EXIT_INTERRUPTED: Final = 130


class WatchTooOldError(MultiRaftError):
    """What came after the token is kept no more: read the keys anew, then watch without a token."""


@dataclass(frozen=True, slots=True)
class Happening:
    """What happened to a key.

    kind         "put", "delete", "expire"; or "ready", once for each connection: what comes from now on is told
    token        where to go on after this one
    value        what was put; None for everything else, and where it is too large to be told: then read it
    size_bytes   of the value that was put
    deadline_ms  when the key ends by itself, in milliseconds since 1970; 0: it stays
    index        of the command that did it, in the log of the shard's group
    """

    kind: str
    token: str
    key: str = ""
    value: bytes | None = None
    size_bytes: int = 0
    deadline_ms: int = 0
    shard_id: int = 0
    index: int = 0
    time_ms: int = 0

    def plain(self) -> dict[str, Any]:
        """Return it as JSON has it, the value in base64."""
        told: dict[str, Any] = {"kind": self.kind, "key": self.key, "shard_id": self.shard_id, "index": self.index}
        told["time_ms"] = self.time_ms
        if self.kind == "put":
            told["size_bytes"] = self.size_bytes
            told["value"] = None if self.value is None else base64.b64encode(self.value).decode("ascii")
            told["deadline_ms"] = self.deadline_ms or None
        return {**told, "token": self.token}


async def watch(
    urls: Sequence[str], prefix: str = "", after: str | None = None, *, heartbeat_ms: int = HEARTBEAT_MS
) -> AsyncGenerator[Happening, None]:
    """Yield what happens to the keys that begin with `prefix`, for ever.

    urls          "http://host:port" of one or more nodes, used in turn
    after         begin behind this token; None: with what happens from now on
    heartbeat_ms  a node that says nothing for three times as long is left

    Raises WatchTooOldError, InvalidRequest (the token is of another store, or none).
    """
    if not urls:
        raise ValueError("at least one URL is needed")
    turn, failures = random.randrange(len(urls)), 0
    timeout = aiohttp.ClientTimeout(sock_connect=_CONNECT_S, sock_read=_SILENT_BEATS * heartbeat_ms / 1_000)
    async with aiohttp.ClientSession(timeout=timeout) as session:
        while True:
            turn = (turn + 1) % len(urls)
            try:
                async with aclosing(_connection(session, urls[turn], prefix, after, heartbeat_ms)) as happenings:
                    async for happening in happenings:
                        failures = 0
                        after = happening.token
                        if happening.kind:
                            yield happening
            except (aiohttp.ClientError, TimeoutError, _RetryError):
                failures += 1
            first_s, longest_s = _BACKOFF_S
            await asyncio.sleep(min(longest_s, first_s * 2 ** min(failures, 10)) * random.uniform(0.5, 1.0))


class _RetryError(Exception):
    """This node cannot serve the watch now; another one may."""


async def _connection(
    session: aiohttp.ClientSession, url: str, prefix: str, after: str | None, heartbeat_ms: int
) -> AsyncGenerator[Happening, None]:
    """Yield what one node tells, until it ends; a heartbeat is a happening of no kind."""
    asked = {"prefix": prefix, "heartbeat_ms": str(heartbeat_ms)}
    headers = {"Accept": "text/event-stream"}
    if after is not None:
        headers["Last-Event-ID"] = after
    async with session.get(url.rstrip("/") + "/watch", params=asked, headers=headers) as response:
        if response.status != 200:
            raise _refusal(url, response.status, await response.read())
        token = after or ""
        async for fields in _blocks(response.content):
            token = fields.get("id", token)
            kind, data = fields.get("event", ""), json.loads(fields["data"]) if "data" in fields else {}
            if kind == "cut-off":
                if data.get("gone"):
                    raise WatchTooOldError(f"{url}: {data['error']}; {data['hint']}")
                raise _RetryError(data["error"])
            yield _happening(kind, token, data)


def _happening(kind: str, token: str, data: dict[str, Any]) -> Happening:
    value = data.get("value")
    return Happening(
        kind,
        token,
        data.get("key", ""),
        None if value is None else base64.b64decode(value),
        data.get("size_bytes", 0),
        data.get("deadline_ms", 0),
        data.get("shard_id", 0),
        data.get("index", 0),
        data.get("time_ms", 0),
    )


def _refusal(url: str, status: int, content: bytes) -> Exception:
    try:
        answer = json.loads(content)
        told = f"{url}: {answer['error']}; {answer['hint']}"
    except (ValueError, KeyError, TypeError):
        return _RetryError(f"{url}: HTTP {status}")
    if status == 410:
        return WatchTooOldError(told)
    return InvalidRequest(told) if status < 500 else _RetryError(told)


async def _blocks(content: aiohttp.StreamReader) -> AsyncIterator[dict[str, str]]:
    """Yield the fields of each event of the stream. What is no field of ours is passed over, as the format has it."""
    fields: dict[str, str] = {}
    left = b""
    async for piece in content.iter_any():
        *lines, left = (left + piece).split(b"\n")
        if len(left) > _LINE_LIMIT_BYTES:
            raise _RetryError("a line of the stream is too long")
        for line in lines:
            if line:
                name, _, value = line.decode().partition(":")
                fields[name] = value.removeprefix(" ")
            elif fields:
                yield fields
                fields = {}


# ------------------------------------------------------------------------------------------------- the command line


def run_watch(urls: Sequence[str], prefix: str, after: str | None, *, as_json: bool, limit: int | None) -> int:
    """Print what happens until Ctrl-C, or `limit` happenings; return the exit code."""
    last = _Last(after)
    try:
        asyncio.run(_print(urls, prefix, last, as_json, limit))
        code = 0
    except KeyboardInterrupt:
        code = _EXIT_INTERRUPTED
    except MultiRaftError as problem:
        print(f"error: {problem}", file=sys.stderr)
        return _EXIT_REFUSED
    if last.token:
        print(f"resume with --after {last.token}", file=sys.stderr)
    return code


@dataclass(slots=True)
class _Last:
    token: str | None


async def _print(urls: Sequence[str], prefix: str, last: _Last, as_json: bool, limit: int | None) -> None:
    shown = 0
    async with aclosing(watch(urls, prefix, last.token)) as happenings:
        async for happening in happenings:
            if happening.kind == "ready":
                if last.token is None:
                    print("watching; Ctrl-C ends it", file=sys.stderr, flush=True)
            else:
                click.echo(json.dumps(happening.plain()) if as_json else _line(happening))
                shown += 1
            last.token = happening.token
            if shown == limit:
                return


def _line(happening: Happening) -> str:
    line = f"{happening.kind}\t{happening.key}"
    if happening.kind != "put":
        return line
    if happening.value is None:
        return f"{line}\t({happening.size_bytes} bytes)"
    return f"{line}\t{happening.value.decode(errors='backslashreplace')}"
