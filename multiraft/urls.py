"""What the URL of a node's HTTP API must look like, for everybody who is given one."""

from __future__ import annotations

from typing import Final
from urllib.parse import urlsplit

URL_EXAMPLE: Final = "http://127.0.0.1:7101"


def node_url(url: str) -> str:
    """Return the URL in full, without a slash at its end; "host:port" will do. Raises ValueError: what is wrong."""
    full = url if "://" in url else f"http://{url}"
    try:
        parts = urlsplit(full)
        port = parts.port
    except ValueError as problem:
        raise ValueError(f"{url!r} is not a URL: {problem}") from problem
    strange = parts.scheme not in ("http", "https") or not parts.hostname or port == 0 or parts.query or parts.fragment
    if strange or any(character.isspace() or not character.isprintable() for character in full):
        raise ValueError(f"{url!r} is not the URL of a node")
    return full.rstrip("/")
