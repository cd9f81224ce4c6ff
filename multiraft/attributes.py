"""The attributes of an object as bytes, and back: how a state machine's state is saved unless it says how itself.

What comes back must be what went in, on this replica and on every other one, or replicas part. So only values are
taken that msgpack carries faithfully: None, bool, int (64 bits), float, str, bytes, and lists and dicts of these. A
tuple would come back as a list, a set not at all; one list that stands in two places would come back as two.

Rules of this file: a value is taken faithfully or refused with a TypeError that names where it stands; bytes that were
not made here raise CorruptRecord; nothing is changed before everything is checked.
"""

from __future__ import annotations

from typing import Any, Final

import msgpack

from multiraft.errors import CorruptRecord

_FORMAT: Final = 1
_DEPTH_MAX: Final = 100
_SCALARS: Final = frozenset((type(None), bool, int, float, str, bytes))
_KEYS: Final = frozenset((int, str, bytes))
_WAY_OUT: Final = "keep it as a list or dict, or define snapshot() and restore() for this class"


def pack_attributes(owner: object) -> bytes:
    """Return the attributes of `owner` as bytes. Raises TypeError, naming the first one that cannot be carried."""
    attributes = _attributes(owner)
    seen: set[int] = set()
    for name, value in attributes.items():
        _check(value, f"{type(owner).__name__}.{name}", seen)
    try:
        return _pack([_FORMAT, attributes])
    except (OverflowError, ValueError) as problem:
        raise TypeError(f"{_culprit(owner)} cannot be carried in a snapshot: {problem}; {_WAY_OUT}") from problem


def unpack_attributes(owner: object, packed: bytes) -> None:
    """Replace all attributes of `owner` by those that `pack_attributes` was given.

    Raises CorruptRecord, having changed nothing; TypeError for an object that has no such attributes.
    """
    attributes = _attributes(owner)
    what = f"a snapshot of {type(owner).__name__}"
    try:
        fields = msgpack.unpackb(packed, strict_map_key=False)
    except Exception as problem:
        raise CorruptRecord(f"{what} does not decode: {problem}") from problem
    if type(fields) is not list or len(fields) != 2 or fields[0] != _FORMAT or type(fields[1]) is not dict:
        raise CorruptRecord(f"{what} was not made by its own snapshot()")
    if not all(type(name) is str for name in fields[1]):
        raise CorruptRecord(f"{what}: an attribute's name is not text")
    attributes.clear()
    attributes.update(fields[1])


def _attributes(owner: object) -> dict[str, Any]:
    try:
        return vars(owner)
    except TypeError:
        name = type(owner).__name__
        raise TypeError(f"{name} has __slots__: define snapshot() and restore() for this class") from None


def _pack(value: object) -> bytes:
    packed: bytes = msgpack.packb(value)
    return packed


def _culprit(owner: object) -> str:
    """Return the name of the attribute that msgpack refuses: an int or a text that is none outside of Python."""
    for name, value in _attributes(owner).items():
        try:
            _pack(value)
        except (OverflowError, ValueError):
            return f"{type(owner).__name__}.{name}"
    return type(owner).__name__


def _check(value: object, where: str, seen: set[int]) -> None:
    """Raise TypeError unless `value` is plain all the way down, and holds no list or dict that is in `seen`."""
    waiting = [(value, where, 0)]
    while waiting:
        value, where, depth = waiting.pop()
        kind = type(value)
        if kind in _SCALARS:
            continue
        if kind is not list and kind is not dict:
            raise TypeError(f"{where}: a {kind.__name__} cannot be carried in a snapshot; {_WAY_OUT}")
        if id(value) in seen:
            raise TypeError(f"{where[:200]}: a {kind.__name__} that stands in two places would come back as two")
        if depth >= _DEPTH_MAX:
            raise TypeError(f"{where[:200]}: nested too deeply for a snapshot; {_WAY_OUT}")
        seen.add(id(value))
        waiting += [(part, f"{where}[{key!r:.40}]", depth + 1) for key, part in _parts(value, where)]


def _parts(value: Any, where: str) -> list[tuple[object, object]]:
    """Return what in a list or dict must be looked at more closely, with its index or key; mostly that is nothing."""
    if type(value) is list:
        return [] if _SCALARS.issuperset(map(type, value)) else list(enumerate(value))
    odd = set(map(type, value)) - _KEYS
    if odd:
        name = min(kind.__name__ for kind in odd)
        raise TypeError(f"{where}: a key that is a {name} cannot be carried in a snapshot; {_WAY_OUT}")
    return [] if _SCALARS.issuperset(map(type, value.values())) else list(value.items())
