"""What a service was declared as, and when two declarations of one name agree.

Every node that runs a service declares it, each from its own release of the program. The first declaration that is
committed decides; a later one must ask for the same partitioning, and its commands and queries must read the same
bytes. Releases that only add to one another agree: a new command, or new parameters at the end that have defaults,
so that a cluster can be upgraded node by node.

Rules of this file: values and pure functions; a difference is put into words that name it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from multiraft.errors import InvalidRequest
from multiraft.shard.partition import Mode, Range, hash_ranges, key_ranges

Schema = Mapping[str, list[Any]]
"""Of each command and query: [kind, key, [[name, type, has default] ...], result type]."""

REPLICAS_MAX: Final = 31
VERSION_MAX: Final = (1 << 31) - 1
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
_RESERVED: Final = frozenset({"directory"})


@dataclass(frozen=True, slots=True)
class Declaration:
    """One service as `node.service(...)` was told.

    name            letters, digits, `.`, `_`, `-`; at most 63
    mode            "hash" or "range"
    initial_shards  hash mode: how many shards to begin with
    boundaries      range mode: the first key of each shard but the first
    replicas        how many nodes each shard is kept on
    schema          the shape of its commands and queries; empty for a machine of bytes
    version         what the class knows: the highest `since` of its commands. The directory's is the highest declared

    Raises InvalidRequest for anything else, naming the setting.
    """

    name: str
    mode: Mode = "hash"
    initial_shards: int = 1
    boundaries: tuple[bytes, ...] = ()
    replicas: int = 3
    schema: Schema = field(default_factory=dict)
    version: int = 1

    def __post_init__(self) -> None:
        where = f"service {self.name!r:.80}: "
        if type(self.name) is not str or not _NAME.fullmatch(self.name) or self.name in _RESERVED:
            raise InvalidRequest(f"{where}a name is 1-63 letters, digits, '.', '_' or '-', and not 'directory'")
        if self.mode not in ("hash", "range"):
            raise InvalidRequest(f"{where}mode = {self.mode!r:.40}: must be 'hash' or 'range'")
        if type(self.replicas) is not int or not 1 <= self.replicas <= REPLICAS_MAX:
            raise InvalidRequest(
                f"{where}replicas = {self.replicas!r:.40}: must be a whole number from 1 to {REPLICAS_MAX}"
            )
        if type(self.version) is not int or not 1 <= self.version <= VERSION_MAX:
            raise InvalidRequest(f"{where}version = {self.version!r:.40}: must be a whole number, at least 1")
        if self.mode == "hash" and self.boundaries:
            raise InvalidRequest(f"{where}boundaries are for mode 'range'; in mode 'hash' say initial_shards")
        if self.mode == "range" and self.initial_shards not in (1, len(self.boundaries) + 1):
            raise InvalidRequest(f"{where}in mode 'range' the shards are given by boundaries, not by initial_shards")
        try:
            self.ranges()
        except InvalidRequest as problem:
            raise InvalidRequest(f"{where}{problem}") from None

    def ranges(self) -> tuple[Range, ...]:
        """Return the ranges that the service begins with."""
        return hash_ranges(self.initial_shards) if self.mode == "hash" else key_ranges(self.boundaries)

    def to_plain(self) -> list[Any]:
        schema = [[name, shape] for name, shape in sorted(self.schema.items())]
        return [self.name, self.mode, self.initial_shards, list(self.boundaries), self.replicas, schema, self.version]

    @classmethod
    def from_plain(cls, plain: list[Any]) -> Declaration:
        """Return the declaration that `to_plain` described. Raises InvalidRequest or ValueError if there is none."""
        name, mode, initial_shards, boundaries, replicas, schema, version = plain
        if type(boundaries) is not list or type(schema) is not list:
            raise ValueError("expected arrays of boundaries and of methods")
        return cls(name, mode, initial_shards, tuple(boundaries), replicas, dict(map(_method_of, schema)), version)


def _method_of(row: Any) -> tuple[str, list[Any]]:
    name, (kind, key, parameters, result) = row
    for parameter, text, has_default in parameters:
        if type(parameter) is not str or type(text) is not str or type(has_default) is not bool:
            raise ValueError("expected rows of parameters")
    if not all(type(item) is str for item in (name, kind, result)) or not (key is None or type(key) is str):
        raise ValueError("expected the shape of a method")
    return name, [kind, key, parameters, result]


def difference(old: Declaration, new: Declaration) -> str | None:
    """Return, in words, the first thing that `new` says otherwise than `old`; None if they agree."""
    if old.mode != new.mode:
        return f"mode = {new.mode!r}, but the service exists with {old.mode!r}"
    if old.replicas != new.replicas:
        return f"replicas = {new.replicas}, but the service exists with {old.replicas}"
    if old.mode == "hash" and old.initial_shards != new.initial_shards:
        return f"initial_shards = {new.initial_shards}, but the service was created with {old.initial_shards}"
    if old.boundaries != new.boundaries:
        wanted, created = list(new.boundaries), list(old.boundaries)
        return f"boundaries = {wanted!r:.200}, but the service was created with {created!r:.200}"
    for name in sorted(old.schema.keys() & new.schema.keys()):
        if not _agree(old.schema[name], new.schema[name]):
            return f"{_words(name, new.schema[name])}, but the service exists with {_words(name, old.schema[name])}"
    return None


def combined(old: Declaration, new: Declaration) -> Declaration:
    """Return `old` with what `new`, which agrees with it, adds: methods, and parameters with defaults."""
    schema = dict(old.schema)
    for name, shape in new.schema.items():
        if name not in schema or len(shape[2]) > len(schema[name][2]):
            schema[name] = shape
    version = max(old.version, new.version)
    return Declaration(old.name, old.mode, old.initial_shards, old.boundaries, old.replicas, schema, version)


def _agree(one: list[Any], other: list[Any]) -> bool:
    """Whether two shapes of a method read each other's bytes: the longer one only adds parameters with defaults."""
    kind, key, parameters, result = one
    other_kind, other_key, other_parameters, other_result = other
    if (kind, key, result) != (other_kind, other_key, other_result):
        return False
    common = min(len(parameters), len(other_parameters))
    same = all(
        (name, text) == (other_name, other_text)
        for (name, text, _), (other_name, other_text, _) in zip(parameters, other_parameters, strict=False)
    )
    added = [*parameters[common:], *other_parameters[common:]]
    return same and all(has_default for _, _, has_default in added)


def _words(name: str, shape: list[Any]) -> str:
    kind, key, parameters, result = shape
    inside = ", ".join(f"{item}: {text}{' = ...' if has_default else ''}" for item, text, has_default in parameters)
    return f"{kind} {name}({inside}) -> {result} with key={key!r}"
