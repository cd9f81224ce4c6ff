"""A digest of a Python value by what it holds, the same for equal values in every process and under every hash seed.

Replicas of one group must hold the same state; this is how the simulator compares them without keeping copies. Dicts
and sets count as unordered. An object counts as its class's name and its attributes. What holds nothing that can be
looked at (a lock, a file, a function) counts as its type alone.

Rules of this file: nothing of the value is changed or called; depth is bounded: what lies deeper counts as its type.
"""

from __future__ import annotations

from collections import deque
from enum import Enum
from hashlib import blake2b
from typing import Any, Final

from multiraft.compiled import field_names

_DEEPEST: Final = 60
_PLAIN: Final = (bool, int, float, complex, str, type(None))


def digest(value: object) -> bytes:
    """Return 16 bytes that are equal for values that hold the same, and hardly ever for others."""
    return _digest(value, 0)


def _digest(value: Any, depth: int) -> bytes:
    kind = type(value)
    if kind in _PLAIN:
        return _of(kind.__name__, repr(value).encode("utf-8", "surrogatepass"))
    if kind is bytes or kind is bytearray:
        return _of("bytes", bytes(value))
    if depth > _DEEPEST:
        return _of(kind.__qualname__, b"deep")
    below = depth + 1
    if isinstance(value, dict):
        parts = sorted([_digest(key, below) + _digest(item, below) for key, item in value.items()])
    elif isinstance(value, set | frozenset):
        parts = sorted([_digest(item, below) for item in value])
    elif isinstance(value, list | tuple | deque):
        parts = [_digest(item, below) for item in value]
    elif isinstance(value, Enum):
        parts = [value.name.encode()]
    else:
        parts = [_digest(name, below) + _digest(item, below) for name, item in sorted(attributes(value).items())]
    return _of(kind.__qualname__, b"".join(parts))


def attributes(value: object) -> dict[str, Any]:
    """Return the attributes of an object, those in slots included; empty for what has none."""
    found: dict[str, Any] = {}
    for name in field_names(type(value)):
        if not name.startswith("__") and name != "_context" and hasattr(value, name):
            found[name] = getattr(value, name)
    found.update(getattr(value, "__dict__", {}))
    return found


def _of(kind: str, content: bytes) -> bytes:
    return blake2b(kind.encode() + b"\0" + content, digest_size=16).digest()
