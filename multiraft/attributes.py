"""The attributes of an object as bytes, and back: how a state machine's state is saved unless it says how itself.

What comes back must be what went in, on this replica and on every other one, or replicas part. So only values are
taken that msgpack carries faithfully: None, bool, int (64 bits), float, str, bytes, and lists and dicts of these. A
tuple would come back as a list, a set not at all; one list that stands in two places would come back as two.

    [format (2), number of attributes]
    for each: [name, what follows, how many]    VALUE: the value; LIST: its items; DICT: its keys and values in turn

Every line is one msgpack object or more, so that a large list or dict is packed, and read, bit by bit.

Rules of this file: a value is taken faithfully or refused with a TypeError that names where it stands; bytes that were
not made here raise CorruptRecord; nothing of the object is changed before everything has come.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any, Final

import msgpack

from multiraft.errors import CorruptRecord

CHUNK_BYTES: Final = 64 * 1024
_FORMAT: Final = 2
_VALUE: Final = 0
_LIST: Final = 1
_DICT: Final = 2
_AT_ONCE: Final = 256
_DEPTH_MAX: Final = 100
_BUFFER_BYTES: Final = (1 << 31) - 1
_SCALARS: Final = frozenset((type(None), bool, int, float, str, bytes))
_KEYS: Final = frozenset((int, str, bytes))
_WAY_OUT: Final = "keep it as a list or dict, or define snapshot() and restore() for this class"


def pack_attributes(owner: object) -> Iterator[bytes]:
    """Yield the attributes of `owner` as bytes, in chunks of about 64 KiB; nothing may change them meanwhile.

    Raises TypeError, naming the first one that cannot be carried.
    """
    attributes = _attributes(owner)
    seen: set[int] = set()
    packed = [_pack([_FORMAT, len(attributes)])]
    size_bytes = 0
    for name, value in list(attributes.items()):
        where = f"{type(owner).__name__}.{name}"
        for objects in _objects(name, value, where, seen):
            try:
                piece = b"".join(map(_pack, objects))
            except (OverflowError, ValueError) as problem:
                raise TypeError(f"{where} cannot be carried in a snapshot: {problem}; {_WAY_OUT}") from problem
            packed.append(piece)
            size_bytes += len(piece)
            if size_bytes >= CHUNK_BYTES:
                yield b"".join(packed)
                packed, size_bytes = [], 0
    yield b"".join(packed)


def _objects(name: str, value: Any, where: str, seen: set[int]) -> Iterator[list[object]]:
    """Yield what stands for one attribute, a handful of objects at a time, each checked."""
    kind = type(value)
    if kind is not list and kind is not dict:
        _check(value, where, seen)
        yield [[name, _VALUE, 1], value]
        return
    _enter(value, where, seen)
    yield [[name, _LIST if kind is list else _DICT, len(value)]]
    if kind is list:
        for at in range(0, len(value), _AT_ONCE):
            part = value[at : at + _AT_ONCE]
            _check_items(part, where, seen, at)
            yield part
    else:
        items = iter(value.items())
        while pairs := list(islice(items, _AT_ONCE)):
            _check_pairs(dict(pairs), where, seen)
            yield [one for pair in pairs for one in pair]


def unpack_attributes(owner: object, packed: bytes) -> None:
    """Replace all attributes of `owner` by those that `pack_attributes` was given.

    Raises CorruptRecord, having changed nothing; TypeError for an object that has no such attributes.
    """
    loader = AttributesLoader(owner)
    loader.feed(packed)
    loader.finish()


class AttributesLoader:
    """Takes what `pack_attributes` yielded, in whatever pieces it comes; `finish` replaces all attributes by it."""

    def __init__(self, owner: object) -> None:
        self._attributes = _attributes(owner)
        self._what = f"a snapshot of {type(owner).__name__}"
        self._unpacker = msgpack.Unpacker(strict_map_key=False, max_buffer_size=_BUFFER_BYTES)
        self._found: dict[str, Any] = {}
        self._expected = -1
        self._name = ""
        self._kind = _VALUE
        self._left = 0
        self._key: Any = None
        self._has_key = False

    def feed(self, piece: bytes) -> None:
        """Take the next bytes. Raises CorruptRecord."""
        try:
            self._unpacker.feed(piece)
            for found in self._unpacker:
                self._take(found)
        except CorruptRecord:
            raise
        except Exception as problem:
            raise CorruptRecord(f"{self._what} does not decode: {problem}") from problem

    def finish(self) -> None:
        """All has come. Raises CorruptRecord, having changed nothing."""
        try:
            rest = self._unpacker.read_bytes(1)
        except Exception as problem:
            raise CorruptRecord(f"{self._what} does not decode: {problem}") from problem
        if self._expected < 0 or self._left or self._has_key or len(self._found) != self._expected or rest:
            raise CorruptRecord(f"{self._what} is not whole")
        self._attributes.clear()
        self._attributes.update(self._found)

    def _take(self, found: Any) -> None:
        if self._left:
            self._take_part(found)
        elif self._expected < 0:
            if type(found) is not list or len(found) != 2 or found[0] != _FORMAT or type(found[1]) is not int:
                raise CorruptRecord(f"{self._what} was not made by its own snapshot()")
            self._expected = found[1]
        else:
            self._begin(found)

    def _begin(self, found: Any) -> None:
        if type(found) is not list or len(found) != 3 or found[1] not in (_VALUE, _LIST, _DICT):
            raise CorruptRecord(f"{self._what} was not made by its own snapshot()")
        self._name, self._kind, self._left = found
        if type(self._name) is not str or type(self._left) is not int or self._left < 0 or self._name in self._found:
            raise CorruptRecord(f"{self._what}: {self._name!r:.80} is no attribute, or comes twice")
        if self._kind != _VALUE:
            self._found[self._name] = [] if self._kind == _LIST else {}
        elif self._left != 1:
            raise CorruptRecord(f"{self._what}: attribute {self._name!r:.80} has {self._left} values")

    def _take_part(self, found: Any) -> None:
        if self._kind == _DICT:
            if not self._has_key:
                self._key, self._has_key = found, True
                return
            self._has_key = False
            self._found[self._name][self._key] = found
        elif self._kind == _LIST:
            self._found[self._name].append(found)
        else:
            self._found[self._name] = found
        self._left -= 1


def _attributes(owner: object) -> dict[str, Any]:
    try:
        return vars(owner)
    except TypeError:
        name = type(owner).__name__
        raise TypeError(f"{name} has __slots__: define snapshot() and restore() for this class") from None


def _pack(value: object) -> bytes:
    packed: bytes = msgpack.packb(value)
    return packed


# ---------------------------------------------------------------------------------------------------------- checking


def _check(value: object, where: str, seen: set[int], depth: int = 0) -> None:
    """Raise TypeError unless `value` is plain all the way down, and holds no list or dict that is in `seen`."""
    waiting = [(value, where, depth)]
    while waiting:
        value, where, depth = waiting.pop()
        kind = type(value)
        if kind in _SCALARS:
            continue
        if kind is not list and kind is not dict:
            raise TypeError(f"{where}: a {kind.__name__} cannot be carried in a snapshot; {_WAY_OUT}")
        if depth >= _DEPTH_MAX:
            raise TypeError(f"{where[:200]}: nested too deeply for a snapshot; {_WAY_OUT}")
        _enter(value, where, seen)
        waiting += [(part, f"{where}[{key!r:.40}]", depth + 1) for key, part in _parts(value, where)]


def _enter(value: object, where: str, seen: set[int]) -> None:
    if id(value) in seen:
        kind = type(value).__name__
        raise TypeError(f"{where[:200]}: a {kind} that stands in two places would come back as two")
    seen.add(id(value))


def _check_items(items: list[Any], where: str, seen: set[int], first: int) -> None:
    if not _SCALARS.issuperset(map(type, items)):
        for at, item in enumerate(items, first):
            _check(item, f"{where}[{at}]", seen, 1)


def _check_pairs(pairs: dict[Any, Any], where: str, seen: set[int]) -> None:
    for key, part in _parts(pairs, where):
        _check(part, f"{where}[{key!r:.40}]", seen, 1)


def _parts(value: Any, where: str) -> Iterable[tuple[object, object]]:
    """Return what in a list or dict must be looked at more closely, with its index or key; mostly that is nothing."""
    if type(value) is list:
        return [] if _SCALARS.issuperset(map(type, value)) else list(enumerate(value))
    odd = set(map(type, value)) - _KEYS
    if odd:
        name = min(kind.__name__ for kind in odd)
        raise TypeError(f"{where}: a key that is a {name} cannot be carried in a snapshot; {_WAY_OUT}")
    return [] if _SCALARS.issuperset(map(type, value.values())) else list(value.items())
