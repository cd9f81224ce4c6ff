"""What a request says, read and checked; and what it is told when it makes no sense.

Rules of this file: whatever is too large or makes no sense raises ApiError, before anything is proposed.
"""

from __future__ import annotations

import base64
import binascii
import json
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import unquote_to_bytes

from aiohttp import web

from examples.kv.machine import KEY_LIMIT_BYTES, TTL_LIMIT_MS, TooLarge, check_key, check_value
from multiraft.errors import (
    CommandFailed,
    DiskFull,
    Halted,
    InvalidRequest,
    MultiRaftError,
    NotCommitted,
    OutcomeUnknown,
    Overloaded,
    ReplyForgotten,
    SessionExpired,
)
from multiraft.types import GroupId


class ApiError(Exception):
    """The request is refused before anything was proposed."""

    def __init__(self, status: int, error: str, hint: str) -> None:
        super().__init__(error)
        self.problem = Problem(status, error, hint, "not_committed")


@dataclass(frozen=True, slots=True)
class Problem:
    """An error as a client sees it; `outcome` is one of not_committed, failed, unknown, forgotten."""

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
    (SessionExpired, 410, "begin another session: POST /session", "not_committed"),
    (ReplyForgotten, 504, "it was done once; its answer is kept no more: read instead", "forgotten"),
    (InvalidRequest, 400, "correct the request", "not_committed"),
    (Overloaded, 503, "slow down, then try again", "not_committed"),
    (DiskFull, 507, "free some space on the disk that it names; it goes on by itself", "not_committed"),
    (Halted, 503, "ask /admin/groups?state=halted why; other shards go on", "not_committed"),
    (NotCommitted, 503, "try again shortly, at this node or another", "not_committed"),
    (CommandFailed, 409, "the store refused it and changed nothing; do not retry it as it stands", "failed"),
    (OutcomeUnknown, 504, "it may have happened: read, or retry if doing it twice does no harm", "unknown"),
)


def key_of(request: web.Request, route: str) -> str:
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


async def body_of(request: web.Request, limit_bytes: int, what: str) -> bytes:
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


def fields_of(body: bytes, *names: str) -> dict[str, Any]:
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


def writes_of(body: bytes) -> dict[str, bytes | None]:
    """Return the writes of a batch: key to value, None to delete."""
    asked = fields_of(body, "put", "delete")
    put, gone = asked.get("put", {}), asked.get("delete", [])
    if not isinstance(put, dict) or not isinstance(gone, list):
        raise ApiError(400, "put must be an object and delete a list", '{"put": {key: base64}, "delete": [key]}')
    writes: dict[str, bytes | None] = {}
    try:
        for key, text in put.items():
            check_key(key)
            writes[key] = from_base64(f"put[{key!r:.40}]", text)
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


def from_base64(name: str, text: object) -> bytes:
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


def to_base64(value: bytes) -> str:
    return base64.b64encode(value).decode("ascii")


def parameters_of(request: web.Request, *names: str) -> dict[str, str]:
    found: dict[str, str] = {}
    for name, value in request.query.items():
        if name not in names or name in found:
            known = ", ".join(names) or "none"
            raise ApiError(400, f"{name!r} is not a parameter here, or is given twice", f"known: {known}")
        found[name] = value
    return found


def whole_number(name: str, text: str, low: int, high: int) -> int:
    digits = text.removeprefix("-")
    number = int(text) if digits.isascii() and digits.isdigit() and len(digits) <= 20 else high + 1
    if not low <= number <= high:
        raise ApiError(400, f"{name} = {text!r:.40} is out of range", f"a whole number from {low} to {high}")
    return number


def group_of(request: web.Request) -> GroupId:
    return whole_number("group", request.match_info["group"], 1, (1 << 64) - 1)


def ttl_of(asked: dict[str, str]) -> int | None:
    """Return the parameter ttl_ms; None where it is not given."""
    return whole_number("ttl_ms", asked["ttl_ms"], 1, TTL_LIMIT_MS) if "ttl_ms" in asked else None
