"""Requests of the admin API as they come in, and answers as they go out.

Rules of this file: a parameter is known, given once and checked, or the request is refused; every answer is JSON and
signed; every error is {"error", "hint"} with the status that fits it.
"""

from __future__ import annotations

import difflib
import json
import logging
from collections.abc import Callable, Mapping
from typing import Any, Final, TypeAlias

from aiohttp import web

from multiraft.errors import MultiRaftError
from multiraft.types import U64_MAX, GroupId

ADMIN_HEADER: Final = "Multiraft-Admin"
"""On every answer, so that a client can tell this API from another server."""

Handler: TypeAlias = Callable[[web.Request], Any]

_log = logging.getLogger(__name__)


class ApiError(Exception):
    """The request cannot be answered; `hint` says what to do about it."""

    def __init__(self, status: int, error: str, hint: str = "") -> None:
        super().__init__(error)
        self.status = status
        self.error = error
        self.hint = hint


def checked_query(request: web.Request, **known: Callable[[str], Any]) -> dict[str, Any]:
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


def text(value: str) -> str:
    return value


def one_of(name: str, allowed: list[str] | tuple[str, ...]) -> Callable[[str], str]:
    def check(value: str) -> str:
        if value not in allowed:
            raise ApiError(400, f"{name} = {value!r}: is not one of those known", f"known: {', '.join(allowed)}")
        return value

    return check


def number(name: str, low: int, high: int) -> Callable[[str], int]:
    def check(value: str) -> int:
        number = int(value) if value.isascii() and value.isdigit() and len(value) <= 20 else -1
        if not low <= number <= high:
            hint = f"a whole number from {low} to {high}"
            raise ApiError(400, f"{name} = {value!r}: is out of range", hint)
        return number

    return check


def asked_group(request: web.Request) -> GroupId:
    return number("group id", 1, U64_MAX)(request.match_info["id"])


def _json_value(value: object) -> object:
    if isinstance(value, bytes):
        return value.hex()
    raise TypeError(f"{type(value).__name__} has no JSON form")


def dumps(value: Mapping[str, Any]) -> str:
    return json.dumps(value, default=_json_value)


def json_answer(value: Mapping[str, Any], status: int = 200) -> web.Response:
    return web.json_response(text=dumps(value), status=status)


@web.middleware
async def json_errors(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Turn whatever goes wrong into {"error", "hint"} with the fitting status, and sign every answer."""
    try:
        response: web.StreamResponse = await handler(request)
    except ApiError as problem:
        response = json_answer({"error": problem.error, "hint": problem.hint}, problem.status)
    except web.HTTPNotFound:
        response = json_answer({"error": f"nothing is at {request.path}", "hint": "GET / lists what there is"}, 404)
    except web.HTTPException as problem:
        hint = "GET looks, POST changes: GET / lists what there is" if problem.status == 405 else ""
        response = json_answer(
            {"error": f"{problem.reason}: {request.method} {request.path}", "hint": hint}, problem.status
        )
    except MultiRaftError as problem:
        response = json_answer({"error": str(problem), "hint": "GET /readyz says what this node waits for"}, 503)
    except Exception as problem:
        _log.exception("admin request %s %s failed", request.method, request.path)
        text = f"{type(problem).__name__}: {problem}"
        response = json_answer({"error": text, "hint": "a bug: the node's log has the details"}, 500)
    response.headers[ADMIN_HEADER] = "1"
    return response
