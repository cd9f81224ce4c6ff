"""The shard map: which shard, group and nodes serve which routing key.

One immutable value with a version. Readers hold a map and look things up in it for as long as they like; a change
makes a new map, and whoever follows it swaps the whole value.

Rules of this file: the shards of a service are in order of their ranges, without gap or overlap, from the beginning of
the space to its end. A map that breaks this is never made: building one raises InvariantViolation, reading one from
outside raises WireError.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any, Final

from multiraft.errors import InvariantViolation, NotReady, WireError, invariant
from multiraft.shard.partition import Mode, routing_key
from multiraft.types import U64_MAX, GroupId, NodeId

_MAP_FORMAT: Final = 2


@dataclass(frozen=True, slots=True)
class Shard:
    """A contiguous range of one service's routing keys.

    shard_id  unique within the service for all time; from 1
    group_id  the group that serves it
    start     the first routing key of the range
    end       the first routing key after it; None: the range reaches to the end of the space
    epoch     raised by every change of the range; a request routed by another epoch is refused
    """

    shard_id: int
    group_id: GroupId
    start: bytes
    end: bytes | None
    epoch: int


@dataclass(frozen=True, slots=True)
class ServiceShards:
    """All shards of one service, in order of their ranges, and which of its commands may be used.

    version   commands of later versions are not called yet, since not all nodes know them; never goes back
    versions  (node, the version of its program's class; 0: it has not declared the service), by node
    """

    mode: Mode
    shards: tuple[Shard, ...]
    version: int = 1
    versions: tuple[tuple[NodeId, int], ...] = ()
    _starts: tuple[bytes, ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        invariant(bool(self.shards), "a service has at least one shard")
        invariant(self.shards[0].start == b"", "the first shard starts at the beginning of the space")
        invariant(self.shards[-1].end is None, "the last shard ends at the end of the space")
        for left, right in zip(self.shards, self.shards[1:], strict=False):
            invariant(left.end == right.start, f"shard {right.shard_id} starts where shard {left.shard_id} ends")
            invariant(left.start < right.start, f"shard {left.shard_id} is not empty")
        ids = {shard.shard_id for shard in self.shards}
        invariant(len(ids) == len(self.shards), "no two shards of a service have the same id")
        object.__setattr__(self, "_starts", tuple(shard.start for shard in self.shards))

    def find(self, key: bytes) -> Shard:
        """Return the shard that serves `key` (the user's key, before any hashing)."""
        return self.shards[bisect_right(self._starts, routing_key(self.mode, key)) - 1]

    def declared(self, node_id: NodeId, version: int) -> ServiceShards:
        """Return the service after a node has declared the version of its class: all nodes may know more now."""
        versions = {**dict(self.versions), node_id: version}
        known = max(self.version, min(versions.values()))
        return replace(self, version=known, versions=tuple(sorted(versions.items())))

    def behind(self, version: int) -> list[NodeId]:
        """Return the nodes whose class does not know commands of `version`."""
        return [node_id for node_id, known in self.versions if known < version]

    def check_version(self, name: str, version: int) -> None:
        """Raise NotReady where a command came with `version` of the class, and the service called `name` is behind."""
        if self.version < version:
            behind = ", ".join(self.behind(version)) or "another node"
            raise NotReady(
                f"service {name!r} is used at version {self.version} so far, and this command came with "
                f"version {version}: start a later release of the program on {behind}"
            )

    def by_id(self, shard_id: int) -> Shard | None:
        """Return the shard of that id; None if the service does not have it (any more)."""
        return next((shard for shard in self.shards if shard.shard_id == shard_id), None)


@dataclass(frozen=True, slots=True)
class ShardMap:
    """All services' shards, and the nodes of every group that serves one.

    version   raised by every change; of two maps the one with the higher version is the newer
    services  by name
    groups    the nodes with a replica of the group; the first one named is its preferred leader
    """

    version: int = 0
    services: Mapping[str, ServiceShards] = field(default_factory=dict)
    groups: Mapping[GroupId, tuple[NodeId, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "services", MappingProxyType(dict(self.services)))
        object.__setattr__(self, "groups", MappingProxyType(dict(self.groups)))
        served: set[GroupId] = set()
        for name, service in self.services.items():
            for shard in service.shards:
                group_id = shard.group_id
                # There may be many: no text is made for those that are well.
                if group_id not in self.groups or group_id in served:
                    invariant(group_id in self.groups, f"group {group_id} of service {name!r} has nodes")
                    invariant(group_id not in served, f"group {group_id} serves one shard only")
                served.add(group_id)

    def to_plain(self) -> list[Any]:
        """Return the map as what msgpack packs; services and groups in order of name and id."""
        return [
            _MAP_FORMAT,
            self.version,
            [
                [
                    name,
                    service.mode,
                    [[s.shard_id, s.group_id, s.start, s.end, s.epoch] for s in service.shards],
                    service.version,
                    [list(row) for row in service.versions],
                ]
                for name, service in sorted(self.services.items())
            ],
            [[group_id, list(nodes)] for group_id, nodes in sorted(self.groups.items())],
        ]

    @classmethod
    def from_plain(cls, plain: object) -> ShardMap:
        """Return the map that `to_plain` described. Raises WireError if it describes none."""
        try:
            map_format, version, services, groups = _list_of(plain, 4)
            if map_format != _MAP_FORMAT:
                raise WireError(f"shard map of format {map_format!r:.20}; this version reads {_MAP_FORMAT}")
            return cls(
                _u64(version),
                {_text(name): _service(*parts) for name, *parts in _rows(services, 5)},
                {_u64(group_id): tuple(map(_text, _list(nodes))) for group_id, nodes in _rows(groups, 2)},
            )
        except InvariantViolation as problem:
            raise WireError(f"shard map: not so: {problem}") from problem


def _service(mode: object, shards: object, version: object, versions: object) -> ServiceShards:
    if mode != "hash" and mode != "range":
        raise WireError(f"shard map: {mode!r:.20} is no mode")
    return ServiceShards(
        "hash" if mode == "hash" else "range",
        tuple(
            Shard(_u64(shard_id), _u64(group_id), _blob(start), None if end is None else _blob(end), _u64(epoch))
            for shard_id, group_id, start, end, epoch in _rows(shards, 5)
        ),
        _u64(version),
        tuple((_text(node_id), _u64(known)) for node_id, known in _rows(versions, 2)),
    )


def _list(value: object) -> list[Any]:
    if type(value) is not list:
        raise WireError("shard map: expected an array")
    return value


def _list_of(value: object, count: int) -> list[Any]:
    if len(_list(value)) != count:
        raise WireError(f"shard map: expected an array of {count}")
    return _list(value)


def _rows(value: object, columns: int) -> list[list[Any]]:
    return [_list_of(row, columns) for row in _list(value)]


def _u64(value: object) -> int:
    if type(value) is not int or not 0 <= value <= U64_MAX:
        raise WireError("shard map: expected an unsigned 64-bit integer")
    return value


def _blob(value: object) -> bytes:
    if type(value) is not bytes:
        raise WireError("shard map: expected bytes")
    return value


def _text(value: object) -> str:
    if type(value) is not str or not value:
        raise WireError("shard map: expected a text")
    return value
