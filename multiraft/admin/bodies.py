"""What a POST to the admin API carries: read, and checked field by field.

Rules of this file: whatever is wrong is an ApiError that names the field.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from aiohttp import web

from multiraft.admin.answers import ApiError
from multiraft.admin.view import Facts
from multiraft.types import NodeId

TIMEOUT_MOST_S: Final = 3_600.0
_BODY_CHARACTERS: Final = 16_384


async def json_body(request: web.Request) -> Facts:
    """Return the JSON object that was sent. Raises ApiError.

    Browsers say where a POST comes from, and send JSON to another site only if it lets them: both are refused, so that
    no page can act through the browser of someone who can reach this API.
    """
    if "Origin" in request.headers:
        raise ApiError(403, "requests that change something are not taken from web pages", "use the multiraft command")
    if request.content_type != "application/json":
        raise ApiError(415, f"the body is {request.content_type}", "send JSON, as Content-Type: application/json")
    if request.content_length is not None and request.content_length > _BODY_CHARACTERS:
        raise ApiError(413, "the body is too large", f"at most {_BODY_CHARACTERS} bytes")
    try:
        body = await request.json()
    except ValueError as problem:
        raise ApiError(400, f"the body is not JSON: {problem}", 'send an object, like {"node": "n2"}') from problem
    if not isinstance(body, dict):
        raise ApiError(400, "the body is no JSON object", 'send an object, like {"node": "n2"}')
    return body


def refuse_others(body: Mapping[str, Any], known: set[str]) -> None:
    for name in body:
        if name not in known:
            raise ApiError(400, f"{name}: is not known here", f"known: {', '.join(sorted(known))}")


def named_of(body: Mapping[str, Any], name: str, allowed: tuple[str, ...]) -> str:
    value = body.get(name)
    if value not in allowed:
        raise ApiError(400, f"{name} = {value!r}: is not one of those known", f"known: {', '.join(allowed)}")
    return str(value)


def node_of(body: Mapping[str, Any], name: str) -> NodeId:
    value = body.get(name)
    if not isinstance(value, str) or not 0 < len(value) <= 255:
        raise ApiError(400, f"{name} = {value!r}: is not the name of a node", 'a text, like "n2"')
    return value


def flag_of(body: Mapping[str, Any], name: str, otherwise: bool) -> bool:
    value = body.get(name, otherwise)
    if not isinstance(value, bool):
        raise ApiError(400, f"{name} = {value!r}: is neither true nor false", f"left out, it is {otherwise}".lower())
    return value


def seconds_of(body: Mapping[str, Any], name: str, otherwise: float) -> float:
    value = body.get(name, otherwise)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value <= TIMEOUT_MOST_S:
        raise ApiError(400, f"{name} = {value!r}: is out of range", f"seconds, above 0, at most {TIMEOUT_MOST_S:g}")
    return float(value)
