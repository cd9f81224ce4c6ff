"""A command or query, compiled: from a call to bytes, from bytes to the machine's method, and the result back.

The wire form is a msgpack array: the method's name, then its arguments in order of declaration, defaults filled in.
Arguments missing at the end take their defaults when they are read, so that parameters with defaults can be added
while old logs stay readable.

Rules of this file: everything about a signature is decided once, in `compile_method`; what then runs per call is a
loop over functions. Encoding raises InvalidRequest; decoding, which happens inside `apply`, raises ordinary
exceptions that depend on the bytes alone.
"""

from __future__ import annotations

import inspect
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final, Literal

import msgpack

from multiraft.codec import INT_MAX, INT_MIN, UnsupportedType, ValueMismatch, ValueType, value_type
from multiraft.errors import CommandFailed, InvalidRequest

Kind = Literal["command", "query"]

RESERVED_NAMES: Final = frozenset({"apply", "context", "query", "restore", "snapshot"})
"""Names that the framework gives a meaning, now or later; no command or query may have them."""

# One packer for all: a call to `pack` runs under the interpreter's lock from beginning to end, and a new one for
# every message costs more than the packing.
_pack: Final[Callable[[Any], bytes]] = msgpack.Packer().pack
_unpackb: Final = msgpack.unpackb
_INT_OFFSET: Final = 1 << 63
_BARE: Final = (type(None), bool, int, float, str, bytes)
"""Classes whose very instances travel as they are; of an int, only its size must be looked at."""
_NO_DEFAULT: Final = inspect.Parameter.empty


def _key_of_str(key: str) -> bytes:
    return key.encode()


def _key_of_bytes(key: bytes) -> bytes:
    return key


def _key_of_int(key: int) -> bytes:
    """Eight bytes whose order as bytes is the order of the numbers."""
    return (key + _INT_OFFSET).to_bytes(8, "big")


_KEY_OF: Final[Mapping[type, Callable[[Any], bytes]]] = {str: _key_of_str, bytes: _key_of_bytes, int: _key_of_int}


class Parameter:
    """One parameter: its name, compiled type, and, if `has_default`, its default, plain and encoded."""

    __slots__ = ("default", "encoded_default", "has_default", "keyword_only", "name", "type")

    def __init__(self, name: str, kind: ValueType, default: Any, keyword_only: bool) -> None:
        self.name = name
        self.type = kind
        self.has_default = default is not _NO_DEFAULT
        self.default = default
        self.encoded_default = kind.encode(default) if self.has_default else None
        self.keyword_only = keyword_only


class Method:
    """One command or query of one class.

    name, kind, key  its name; "command" or "query"; the parameter that routes it, None for a query of any shard
    function         the plain function, for `self` and the arguments
    since            the version of the class that brought it; 1 for a query
    most             how long the array of a call is at most
    """

    __slots__ = (
        "_bare",
        "_bare_result",
        "_decoders",
        "_encoders",
        "_ints",
        "_key_of",
        "_key_position",
        "_positional",
        "_result",
        "_signature",
        "function",
        "key",
        "kind",
        "label",
        "most",
        "name",
        "parameters",
        "since",
    )

    def __init__(
        self,
        label: str,
        kind: Kind,
        key: str | None,
        function: Callable[..., Any],
        parameters: Sequence[Parameter],
        result: ValueType,
    ) -> None:
        self.label = label
        self.name = function.__name__
        self.kind = kind
        self.key = key
        self.function = function
        self.since = 1
        self.parameters = tuple(parameters)
        self.most = len(self.parameters) + 1
        self._signature = _without_self(inspect.signature(function))
        self._encoders = [parameter.type.encode for parameter in parameters]
        self._decoders = [parameter.type.decode for parameter in parameters]
        self._positional = sum(not parameter.keyword_only for parameter in parameters)
        self._result = result
        # What values need no conversion in either direction, so that one comparison does for all of them.
        kinds = [parameter.type.python for parameter in parameters]
        plain = self._positional == len(kinds) and all(kind in _BARE for kind in kinds)
        self._bare: list[type | None] | None = [str, *kinds] if plain else None  # of a call: its name, and arguments
        self._ints = tuple(place for place, kind in enumerate(kinds, 1) if kind is int)
        self._bare_result = result.python if result.python in _BARE else _Never
        names = [parameter.name for parameter in parameters]
        self._key_position = names.index(key) + 1 if key is not None else 0
        self._key_of = _KEY_OF[parameters[names.index(key)].type.python or object] if key is not None else _key_of_bytes

    def route_by(self, part: Callable[[bytes], bytes]) -> None:
        """Have calls be routed by what `part` returns for their key."""
        key_of = self._key_of
        self._key_of = lambda key: part(key_of(key))

    # ------------------------------------------------------------------------------------------- at the caller

    def encode_call(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[bytes, bytes]:
        """Return (key, body) of one call; the key is empty for a method without one.

        Raises InvalidRequest when the arguments do not fit the signature, naming the parameter.
        """
        wire: list[Any] = [self.name, *args]
        try:
            if kwargs or list(map(type, wire)) != self._bare or (self._ints and not self._fit(wire)):
                wire = [self.name]
                if kwargs or len(args) != len(self._encoders) or len(args) != self._positional:
                    args = self._bind(args, kwargs)
                for encode, value in zip(self._encoders, args, strict=True):
                    wire.append(encode(value))
            body = _pack(wire)
            key = self._key_of(wire[self._key_position]) if self._key_position else b""
        except ValueMismatch as problem:
            parameter = self.parameters[len(wire) - 1]
            raise InvalidRequest(f"{self.label}: parameter {parameter.name!r}: {problem}") from None
        except ValueError as unsendable:  # text that UTF-8 cannot encode
            raise InvalidRequest(f"{self.label}: {unsendable}") from unsendable
        return key, body

    def _fit(self, wire: list[Any]) -> bool:
        """Return whether those arguments in `wire`, one for each parameter, that must be ints are ints of 64 bits."""
        for place in self._ints:  # noqa: SIM110 - a generator would cost more than all else
            if not INT_MIN <= wire[place] <= INT_MAX:
                return False
        return True

    def _bind(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, ...]:
        """Order the arguments as declared, with defaults filled in."""
        if len(args) <= self._positional:
            values = list(args)
            taken = 0
            for parameter in self.parameters[len(args) :]:
                if parameter.name in kwargs:
                    values.append(kwargs[parameter.name])
                    taken += 1
                elif parameter.has_default:
                    values.append(parameter.default)
                else:
                    break
            if len(values) == len(self.parameters) and taken == len(kwargs):
                return tuple(values)
        try:
            self._signature.bind(*args, **kwargs)
        except TypeError as problem:
            raise InvalidRequest(f"{self.label}{self._signature}: {problem}") from None
        raise InvalidRequest(f"{self.label}{self._signature}: the arguments do not fit")

    def decode_result(self, raw: bytes) -> Any:
        """Return the result that a replica encoded.

        Raises CommandFailed for one that is none of this method: the replica runs a release with another signature.
        """
        try:
            plain = _unpackb(raw, strict_map_key=False)
            kind = type(plain)
            if kind is self._bare_result and (kind is not int or INT_MIN <= plain <= INT_MAX):
                return plain
            return self._result.decode(plain)
        except Exception as problem:  # a dataclass may raise anything from its __post_init__
            raise CommandFailed("InvalidResult", f"{self.label}: the answer is no result of it: {problem}") from problem

    # ------------------------------------------------------------------------------------------ at the replica

    def run(self, machine: object, wire: list[Any]) -> bytes:
        """Call the method with the arguments in `wire` (its name first), and return the encoded result.

        `wire` is not to be used any more.
        """
        if list(map(type, wire)) == self._bare and (not self._ints or self._fit(wire)):
            wire[0] = machine
            result = self.function(*wire)
        else:
            result = self._run(machine, wire)
        kind = type(result)
        if kind is self._bare_result and (kind is not int or INT_MIN <= result <= INT_MAX):
            return _pack(result)
        try:
            return _pack(self._result.encode(result))
        except ValueMismatch as problem:
            raise CommandFailed("InvalidResult", f"{self.label}: {problem}") from None

    def _run(self, machine: object, wire: list[Any]) -> Any:
        """Call the method with arguments that must be filled in, or converted."""
        if len(wire) != len(self._decoders) + 1:
            self._fill(wire)
        position = 0
        values = []
        try:
            for decode in self._decoders:
                position += 1
                values.append(decode(wire[position]))
        except ValueMismatch as problem:
            name = self.parameters[position - 1].name
            raise CommandFailed("InvalidArguments", f"{self.label}: parameter {name!r}: {problem}") from None
        if self._positional == len(values):
            return self.function(machine, *values)
        named = {p.name: v for p, v in zip(self.parameters, values, strict=True) if p.keyword_only}
        return self.function(machine, *values[: self._positional], **named)

    def _fill(self, wire: list[Any]) -> None:
        for parameter in self.parameters[len(wire) - 1 :]:
            if not parameter.has_default:
                break
            wire.append(parameter.encoded_default)
        if len(wire) != len(self.parameters) + 1:
            raise CommandFailed(
                "InvalidArguments",
                f"{self.label} takes {len(self.parameters)} arguments, the command has {len(wire) - 1}",
            )

    # ---------------------------------------------------------------------------------------------- its shape

    def describe(self) -> list[Any]:
        """Return the shape that all nodes must agree on: [kind, key, [[name, type, has default] ...], result type]."""
        parameters = [[p.name, p.type.text, p.has_default] for p in self.parameters]
        return [self.kind, self.key, parameters, self._result.text]


class _Never:
    """The class of no result."""


def check_declaration(function: Callable[..., Any], kind: Kind, key: str | None) -> None:
    """Check what can be seen before the class exists. Raises TypeError, saying what to write instead."""
    name = getattr(function, "__name__", None)
    if not inspect.isfunction(function) or name is None:
        raise TypeError(f"@{kind} goes on a plain method (def ...), directly above it; got {function!r:.80}")
    where = f"{function.__qualname__}: "
    if inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function):
        raise TypeError(f"{where}a {kind} cannot be async: it must run to its end in one step; write plain def")
    if inspect.isgeneratorfunction(function):
        raise TypeError(f"{where}a {kind} cannot be a generator; return a list")
    if name.startswith("_") or name in RESERVED_NAMES:
        reserved = ", ".join(sorted(RESERVED_NAMES))
        raise TypeError(f"{where}the name {name!r} is reserved (so are {reserved}, and any that starts with _)")
    parameters = list(inspect.signature(function).parameters.values())
    if not parameters or parameters[0].kind not in (parameters[0].POSITIONAL_ONLY, parameters[0].POSITIONAL_OR_KEYWORD):
        raise TypeError(f"{where}the first parameter must be self")
    for parameter in parameters[1:]:
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            stars = "*" if parameter.kind is parameter.VAR_POSITIONAL else "**"
            raise TypeError(
                f"{where}{stars}{parameter.name} cannot be carried; name every parameter, or take a list or dict"
            )
        if parameter.annotation is parameter.empty:
            raise TypeError(f"{where}parameter {parameter.name!r} needs a type annotation")
    if inspect.signature(function).return_annotation is inspect.Signature.empty:
        raise TypeError(f"{where}needs a return annotation; write -> None if it returns nothing")
    names = [parameter.name for parameter in parameters[1:]]
    if key is None and kind == "query":
        return
    if not isinstance(key, str) or key not in names:
        known = ", ".join(map(repr, names)) or "none"
        raise TypeError(f"{where}key={key!r} is not one of its parameters (there are: {known})")


def compile_method(owner: type, function: Callable[..., Any], kind: Kind, key: str | None) -> Method:
    """Compile a method of `owner` that `check_declaration` accepted. Raises TypeError, saying what to write instead."""
    label = f"{owner.__name__}.{function.__name__}"
    try:
        hints = typing.get_type_hints(function)
    except NameError as problem:
        raise TypeError(f"{label}: {problem}; an annotation must name something that exists at module level") from None
    parameters = []
    for parameter in list(inspect.signature(function).parameters.values())[1:]:
        where = f"{label}: parameter {parameter.name!r}"
        try:
            compiled = value_type(hints[parameter.name])
            default = parameter.default
            parameters.append(Parameter(parameter.name, compiled, default, parameter.kind is parameter.KEYWORD_ONLY))
        except UnsupportedType as problem:
            raise TypeError(f"{where}: {problem}") from None
        except ValueMismatch as problem:
            raise TypeError(f"{where}: its default does not fit its type: {problem}") from None
        if parameter.name == key and compiled.python not in _KEY_OF:
            raise TypeError(f"{where}: a routing key must be str, bytes or int, not {compiled.text}")
    try:
        result = value_type(hints["return"])
    except UnsupportedType as problem:
        raise TypeError(f"{label}: its result: {problem}") from None
    return Method(label, kind, key, function, parameters, result)


def decode_call(raw: bytes) -> list[Any]:
    """Return the array in a command's or query's bytes: the method's name, then arguments. Raises CommandFailed."""
    try:
        wire = _unpackb(raw, strict_map_key=False)
    except ValueError as problem:  # every way in which msgpack refuses bytes
        raise CommandFailed("InvalidCommand", f"not msgpack: {problem}") from None
    if type(wire) is not list or not wire or type(wire[0]) is not str:
        raise CommandFailed("InvalidCommand", "not an array that starts with a method's name")
    return wire


def heads_of(methods: Iterable[Method]) -> dict[bytes, int]:
    """Return, by the packed name of each method, the highest first byte of a call of it; see `machine.Heads`.

    Only where both are short: arrays of at most 15, names of at most 31 bytes.
    """
    return {
        _pack(method.name): 0x90 + min(15, len(method.parameters) + 1)
        for method in methods
        if len(method.name.encode()) < 32
    }


def called(raw: bytes) -> tuple[str, int] | None:
    """Return the name and the number of arguments of a call; None for bytes that are no call."""
    try:
        wire = decode_call(raw)
        return str(wire[0]), len(wire) - 1
    except CommandFailed:
        return None


def describe_call(raw: bytes) -> str:
    """Return a call as it is written in Python, on one line; something shorter for bytes that are none."""
    try:
        name, *arguments = decode_call(raw)
    except CommandFailed:
        return f"{len(raw)} bytes that are no command"
    printable = name if name.isprintable() else ascii(name)
    return f"command {printable:.80}({', '.join(map(repr, arguments))})"


def _without_self(signature: inspect.Signature) -> inspect.Signature:
    return signature.replace(parameters=list(signature.parameters.values())[1:])
