"""Typed values as plain msgpack, and back: what may stand in a command's signature.

An annotation is compiled once, at class definition, into a ValueType: two functions that check and convert. Supported
are None, bool, int (64 bits, signed), float, str, bytes, list[T], dict[K, T] with K one of str, int, bytes, unions of
these, and dataclasses whose fields are all of these. Everything else is refused, because it would come back as
something else, or not at all.

On the wire a dataclass is the array of its fields, in order; fields missing at the end take their defaults, so that
new fields with defaults can be appended while old logs stay readable. A union is the bare value where msgpack itself
tells its members apart, else [position of the member, value].

Rules of this file: a value goes in only as the type that was declared (a bool is an acceptable int and an int an
acceptable float, as type checkers have it, and arrives as the declared type); both directions check; a mismatch raises
ValueMismatch, which says where in the value.
"""

from __future__ import annotations

import dataclasses
import inspect
import types
import typing
from collections.abc import Callable
from typing import Any, Final, NoReturn

from multiraft.errors import UnsupportedType as UnsupportedType

INT_MIN: Final = -(1 << 63)
INT_MAX: Final = (1 << 63) - 1

Convert = Callable[[Any], Any]


class ValueMismatch(ValueError):
    """A value is not of the declared type. `path` leads to the part that is not, innermost first."""

    def __init__(self, problem: str) -> None:
        super().__init__(problem)
        self.problem = problem
        self.path: list[str] = []

    def __str__(self) -> str:
        where = "".join(reversed(self.path)).removeprefix(".")
        return f"{where}: {self.problem}" if where else self.problem


class ValueType:
    """One annotation, compiled.

    text    its canonical form; equal texts mean the same values on the wire
    encode  value -> what msgpack packs; raises ValueMismatch
    decode  what msgpack unpacked -> value; raises ValueMismatch
    wire    the classes that `encode` may return; what a union is told apart by
    python  the class of its values; None for a union
    """

    __slots__ = ("decode", "encode", "python", "text", "wire")

    def __init__(self, text: str, encode: Convert, decode: Convert, wire: frozenset[type], python: type | None) -> None:
        self.text = text
        self.encode = encode
        self.decode = decode
        self.wire = wire
        self.python = python


def value_type(annotation: Any) -> ValueType:
    """Compile a resolved annotation (no strings inside). Raises UnsupportedType."""
    return _compile(annotation, ())


def _mismatch(expected: str, value: object) -> NoReturn:
    raise ValueMismatch(f"expected {expected}, got {type(value).__name__} {value!r:.60}")


# ------------------------------------------------------------------------------------------------------- scalars


def _none(value: Any) -> Any:
    if value is not None:
        _mismatch("None", value)
    return None


def _bool(value: Any) -> Any:
    if value is not True and value is not False:
        _mismatch("bool", value)
    return value


def _int(value: Any) -> Any:
    if type(value) is not int:
        if not isinstance(value, int):
            _mismatch("int", value)
        value = int(value)
    if not INT_MIN <= value <= INT_MAX:
        raise ValueMismatch(f"expected an int of 64 bits, got one of {value.bit_length()} bits")
    return value


def _float(value: Any) -> Any:
    if type(value) is float:
        return value
    if not isinstance(value, int | float):
        _mismatch("float", value)
    try:
        return float(value)
    except OverflowError:
        raise ValueMismatch("expected a float, got an int that is too large for one") from None


def _str(value: Any) -> Any:
    if type(value) is str:
        return value
    if not isinstance(value, str):
        _mismatch("str", value)
    return str.__str__(value)


def _bytes(value: Any) -> Any:
    if type(value) is bytes:
        return value
    if not isinstance(value, bytes):
        _mismatch("bytes", value)
    return bytes(value)


def _scalar(name: str, convert: Convert, python: type) -> ValueType:
    return ValueType(name, convert, convert, frozenset({python}), python)


_SCALARS: Final[dict[Any, ValueType]] = {
    None: _scalar("None", _none, type(None)),
    type(None): _scalar("None", _none, type(None)),
    bool: _scalar("bool", _bool, bool),
    int: _scalar("int", _int, int),
    float: _scalar("float", _float, float),
    str: _scalar("str", _str, str),
    bytes: _scalar("bytes", _bytes, bytes),
}
_INSTEAD: Final[dict[Any, str]] = {
    Any: "say which types it may have; for arbitrary data use bytes",
    object: "say which types it may have; for arbitrary data use bytes",
    list: "say of what: list[int], list[str], ...",
    dict: "say of what: dict[str, int], ...",
    tuple: "use list[...] or a dataclass",
    set: "use list[...]",
    frozenset: "use list[...]",
    complex: "use two floats, or a dataclass",
    bytearray: "use bytes",
    memoryview: "use bytes",
}

# -------------------------------------------------------------------------------------------------- composites


def _compile(annotation: Any, inside: tuple[type, ...]) -> ValueType:
    while True:  # what only gives another name to a type
        if hasattr(annotation, "__supertype__"):
            annotation = annotation.__supertype__
        elif type(annotation).__name__ == "TypeAliasType":
            annotation = annotation.__value__
        else:
            break
    origin, args = typing.get_origin(annotation), typing.get_args(annotation)
    if origin in (typing.Union, types.UnionType):
        return _union([_compile(arg, inside) for arg in args])
    if origin is list:
        return _list(_compile(args[0], inside))
    if origin is dict:
        return _dict(_compile(args[0], inside), _compile(args[1], inside))
    if origin is None:
        try:
            if annotation in _SCALARS:
                return _SCALARS[annotation]
        except TypeError:
            pass  # unhashable, so certainly no type
        if isinstance(annotation, type) and dataclasses.is_dataclass(annotation):
            return _dataclass(annotation, inside)
    name = annotation.__name__ if isinstance(annotation, type) and origin is None else str(annotation)
    instead = _INSTEAD.get(origin if origin is not None else annotation, "use bytes and encode it yourself")
    raise UnsupportedType(
        f"{name} cannot be carried; {instead} "
        "(supported: None, bool, int, float, str, bytes, list[T], dict[K, T], unions and dataclasses of these)"
    )


def _list(item: ValueType) -> ValueType:
    def converter(convert: Convert) -> Convert:
        def convert_list(values: Any) -> Any:
            if not isinstance(values, list):
                _mismatch("list", values)
            done: list[Any] = []
            try:
                for value in values:
                    done.append(convert(value))
            except ValueMismatch as problem:
                problem.path.append(f"[{len(done)}]")
                raise
            return done

        return convert_list

    return ValueType(f"list[{item.text}]", converter(item.encode), converter(item.decode), frozenset({list}), list)


def _dict(key: ValueType, item: ValueType) -> ValueType:
    if key.python not in (str, int, bytes):
        raise UnsupportedType(f"dict[{key.text}, ...]: keys must be str, int or bytes")

    def converter(convert_key: Convert, convert_item: Convert) -> Convert:
        def convert_dict(values: Any) -> Any:
            if not isinstance(values, dict):
                _mismatch("dict", values)
            done: dict[Any, Any] = {}
            name: Any = None
            try:
                for name, value in values.items():
                    done[convert_key(name)] = convert_item(value)
            except ValueMismatch as problem:
                problem.path.append(f"[{name!r:.60}]")
                raise
            return done

        return convert_dict

    return ValueType(
        f"dict[{key.text}, {item.text}]",
        converter(key.encode, item.encode),
        converter(key.decode, item.decode),
        frozenset({dict}),
        dict,
    )


def _dataclass(kind: type, inside: tuple[type, ...]) -> ValueType:
    name = kind.__qualname__
    if kind in inside:
        raise UnsupportedType(f"dataclass {name} contains itself; keep such structures flat and refer by key")
    fields = dataclasses.fields(kind)
    try:
        hints = typing.get_type_hints(kind)
        parameters = list(inspect.signature(kind).parameters)
    except NameError as problem:
        raise UnsupportedType(f"dataclass {name}: {problem}; declare what it names at module level") from problem
    if parameters != [field.name for field in sorted(fields, key=lambda field: bool(field.kw_only))]:
        raise UnsupportedType(f"dataclass {name}: must be made from its fields alone (no InitVar, no init=False)")
    compiled = []
    for field in fields:
        try:
            compiled.append(_compile(hints[field.name], (*inside, kind)))
        except UnsupportedType as problem:
            raise UnsupportedType(f"dataclass {name}: field {field.name!r}: {problem}") from None
    parts = [(field.name, part.encode, part.decode) for field, part in zip(fields, compiled, strict=True)]
    required = _required(fields)

    def encode(value: Any) -> Any:
        if type(value) is not kind:
            _mismatch(f"dataclass {name}", value)
        done: list[Any] = []
        try:
            for part_name, part_encode, _ in parts:
                done.append(part_encode(getattr(value, part_name)))
        except ValueMismatch as problem:
            problem.path.append(f".{parts[len(done)][0]}")
            raise
        return done

    def decode(values: Any) -> Any:
        if type(values) is not list or not required <= len(values) <= len(parts):
            raise ValueMismatch(f"expected the {len(parts)} fields of dataclass {name}")
        done: dict[str, Any] = {}
        try:
            for (part_name, _, part_decode), value in zip(parts, values, strict=False):
                done[part_name] = part_decode(value)
        except ValueMismatch as problem:
            problem.path.append(f".{parts[len(done)][0]}")
            raise
        return kind(**done)

    shape = ", ".join(f"{field.name}: {part.text}" for field, part in zip(fields, compiled, strict=True))
    return ValueType(f"{kind.__name__}({shape})", encode, decode, frozenset({list}), kind)


def _required(fields: tuple[dataclasses.Field[Any], ...]) -> int:
    """Return how many of the fields, counted from the first, a stored value must have."""
    required = 0
    for position, field in enumerate(fields, start=1):
        if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            required = position
    return required


def _union(members: list[ValueType]) -> ValueType:
    text = " | ".join(member.text for member in members)
    if len({member.python for member in members}) != len(members):
        raise UnsupportedType(f"{text}: two members are of the same class; make it one, such as list[int | str]")
    by_python = {member.python: (tag, member.encode) for tag, member in enumerate(members)}
    tagged = len(frozenset().union(*[member.wire for member in members])) != sum(len(m.wire) for m in members)

    def choose(value: Any) -> tuple[int, Any]:
        exact = by_python.get(type(value))
        if exact is not None:
            return exact[0], exact[1](value)
        for tag, member in enumerate(members):  # a subclass, such as an IntEnum, or an int where a float is declared
            try:
                return tag, member.encode(value)
            except ValueMismatch:
                continue
        _mismatch(text, value)

    def encode_bare(value: Any) -> Any:
        return choose(value)[1]

    def encode_tagged(value: Any) -> Any:
        return list(choose(value))

    def decode_tagged(parts: Any) -> Any:
        if type(parts) is not list or len(parts) != 2 or type(parts[0]) is not int:
            _mismatch(text, parts)
        if not 0 <= parts[0] < len(members):
            raise ValueMismatch(f"expected {text}, got its member number {parts[0]}")
        return members[parts[0]].decode(parts[1])

    if tagged:
        return ValueType(text, encode_tagged, decode_tagged, frozenset({list}), None)
    by_wire = {wire: member.decode for member in members for wire in member.wire}

    def decode_bare(value: Any) -> Any:
        decode = by_wire.get(type(value))
        if decode is None:
            _mismatch(text, value)
        return decode(value)

    return ValueType(text, encode_bare, decode_bare, frozenset(by_wire), None)
