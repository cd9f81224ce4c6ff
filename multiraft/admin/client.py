"""A small synchronous client of the admin API, for the command line and for scripts.

Rules of this file: standard library only, so that the command line starts fast; no proxies (an operator asks a node,
not the network between); every way to fail is one of the errors below, with a hint.
"""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Mapping
from http.client import HTTPException, HTTPResponse
from typing import Any, Final
from urllib.parse import quote, urlencode

from multiraft.urls import URL_EXAMPLE, node_url

DEFAULT_URL: Final = URL_EXAMPLE
DEFAULT_TIMEOUT_S: Final = 10.0
_MARK: Final = "Multiraft-Admin"
_MOUNTED: Final = "/admin"


class AdminClientError(Exception):
    """The question got no result. `hint` says what to do; may be empty."""

    def __init__(self, error: str, hint: str = "") -> None:
        super().__init__(error)
        self.error = error
        self.hint = hint


class BadUrl(AdminClientError):
    """The URL is not one of a node."""


class CannotReach(AdminClientError):
    """Nobody answered at the URL, not in time, or someone else than a multiraft node."""


class NotFound(AdminClientError):
    """The node answered: there is no such group, node, service or shard."""


class BadRequest(AdminClientError):
    """The node answered: the question itself is wrong."""


class Refused(AdminClientError):
    """The node answered: what is asked for is not done to the group as it is. Nothing was changed."""


class NodeFailed(AdminClientError):
    """The node answered that it cannot answer now."""


def offline_failure(problem: str, kind: type[AdminClientError] = NodeFailed) -> AdminClientError:
    """Return what a command on a stopped node's directory ends with.

    Errors of the store and of what works on it end in their way out, after a semicolon or a full stop.
    """
    for mark in ("; ", ". "):
        error, found, hint = problem.rpartition(mark)
        if found:
            return kind(error, hint)
    return kind(problem)


class NotDone(AdminClientError):
    """The node answered: not done in time. It may still come about."""


_KINDS: Final[Mapping[int, type[AdminClientError]]] = {403: Refused, 404: NotFound, 409: Refused, 504: NotDone}


class AdminClient:
    """Asks one node.

    url        of its admin API: "http://host:port", with or without the path that the API is mounted under
               ("/admin" is found by itself)
    timeout_s  how long one step of an answer (connecting, each read) may take

    Raises BadUrl.
    """

    def __init__(self, url: str = DEFAULT_URL, timeout_s: float = DEFAULT_TIMEOUT_S) -> None:
        self.url = checked_url(url)
        self._timeout_s = timeout_s
        self._opener = urllib.request.build_opener(urllib.request.ProxyHandler({}), _NoRedirect())

    @property
    def timeout_s(self) -> float:
        return self._timeout_s

    def get(self, *path: str, params: Mapping[str, object] | None = None) -> dict[str, Any]:
        """Return the JSON object at `path` (one argument per step); parameters that are None are left out.

        Raises CannotReach, NotFound (404), BadRequest (other 4xx) or NodeFailed (5xx).
        """
        given = {name: str(value) for name, value in (params or {}).items() if value is not None}
        question = "/" + "/".join(quote(step, safe="") for step in path) + ("?" + urlencode(given) if given else "")
        status, signed, raw = self._fetch(self.url + question)
        if not signed and not self.url.endswith(_MOUNTED):
            status, signed, raw = self._fetch(self.url + _MOUNTED + question)
            if signed:
                self.url += _MOUNTED
        if not signed:
            hint = "check the URL; node.status() names what a node listens on, the admin API has a port of its own"
            raise CannotReach(f"{self.url} answers, but is not the admin API of a multiraft node", hint)
        return self._result(status, raw)

    def read(self, *path: str, params: Mapping[str, object]) -> bytes:
        """Return the bytes at `path`. Raises as `get`."""
        steps = "/".join(quote(step, safe="") for step in path)
        given = urlencode({name: str(value) for name, value in params.items()})
        status, signed, raw = self._fetch(f"{self.url}/{steps}?{given}")
        if not signed or status != 200:
            self._result(status if signed else 500, raw)
        return raw

    def post(self, *path: str, body: Mapping[str, object]) -> dict[str, Any]:
        """Have the node do what `body` says to what is at `path`; return its JSON object.

        Raises as `get`, Refused (403, 409), and NotDone (504).
        """
        self.get("livez")  # so that nothing is sent to a server that is no node, or to the wrong path of one
        steps = "/".join(quote(step, safe="") for step in path)
        status, _, raw = self._fetch(f"{self.url}/{steps}", json.dumps(body).encode())
        return self._result(status, raw)

    def _result(self, status: int, raw: bytes) -> dict[str, Any]:
        answer = self._decoded(raw)
        if status == 200:
            return answer
        kind = _KINDS.get(status) or (BadRequest if status < 500 else NodeFailed)
        raise kind(str(answer.get("error", f"HTTP status {status}")), str(answer.get("hint", "")))

    def _fetch(self, url: str, data: bytes | None = None) -> tuple[int, bool, bytes]:
        """Return status, whether the admin API signed the answer, and the body."""
        request = urllib.request.Request(url, data, {"Content-Type": "application/json"} if data is not None else {})
        try:
            try:
                response: HTTPResponse | urllib.error.HTTPError = self._opener.open(request, timeout=self._timeout_s)
            except urllib.error.HTTPError as problem:
                response = problem
            with response:
                return response.status or 0, response.headers.get(_MARK) is not None, response.read()
        except (OSError, HTTPException) as problem:
            cause = getattr(problem, "reason", None) or problem
            if isinstance(cause, TimeoutError):
                hint = "the node may be overloaded; try again with a longer --timeout"
                raise CannotReach(f"no answer from {self.url} within {self.timeout_s:g} s", hint) from problem
            text = getattr(cause, "strerror", None) or str(cause) or type(cause).__name__
            hint = "is the node running? Name another with --url or MULTIRAFT_URL"
            raise CannotReach(f"cannot reach {self.url}: {text}", hint) from problem

    def _decoded(self, body: bytes) -> dict[str, Any]:
        try:
            answer = json.loads(body)
        except ValueError as problem:
            raise NodeFailed(
                f"{self.url} sent an answer that is not JSON", "are node and tool the same version?"
            ) from problem
        if not isinstance(answer, dict):
            raise NodeFailed(f"{self.url} sent an answer of an unknown form", "are node and tool the same version?")
        return answer


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *args: Any, **kwargs: Any) -> None:
        """The admin API never redirects: who does is someone else."""


def checked_url(url: str) -> str:
    """Return the URL in full. Raises BadUrl."""
    try:
        return node_url(url)
    except ValueError as problem:
        raise BadUrl(str(problem), f"like {DEFAULT_URL}") from problem
