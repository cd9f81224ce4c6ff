"""The directory: the state machine of group 1, which knows the nodes, the services, and which group serves what.

Its commands are few and rare. Each is idempotent, because every node sends its own at every start, and because a
command whose outcome is unknown is sent again. Its answer to a question of change is the version of the shard map;
nodes with a replica follow it through `subscribe`, all others ask for the map with the version that they have.

Rules of this file: deterministic: the same commands in the same order leave the same bytes in `state()`, whatever the
node. A refusal raises CommandFailed, before anything is changed. Subscribers are told after a change, and nothing that
they do can reach the state.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final, NoReturn

import msgpack

from multiraft.engine.machine import Context, UnknownCommand
from multiraft.errors import CommandFailed, InvalidRequest, WireError
from multiraft.keyspace import Keyspace
from multiraft.shard.declaration import Declaration, combined, difference
from multiraft.shard.placement import place
from multiraft.shard.shard_map import ServiceShards, Shard, ShardMap
from multiraft.types import FIRST_USER_GROUP, FOUNDING_INDEX, GroupId, Identity, Index, NodeId

_STATE_FORMAT: Final = 4
_CREATE_SERVICE: Final = "create_service"
_REGISTER_NODE: Final = "register_node"
_GROUP_NODES: Final = "group_nodes"
_ADMIT: Final = "admit"
_ARGUMENTS: Final = {_CREATE_SERVICE: 3, _REGISTER_NODE: 3, _GROUP_NODES: 3, _ADMIT: 3}
_NO_STORES: Final[Mapping[NodeId, bytes]] = {}  # of all groups that were founded before any store was readmitted
_MAP: Final = "map"
_NODES: Final = "nodes"

_log: Final = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class NodeInfo:
    """Where a node is reached: `address` by its peers, `admin_url` by operators (empty: it has none)."""

    address: str
    admin_url: str


@dataclass(frozen=True, slots=True)
class GroupInfo:
    """What a group is for, and where it began.

    service  the name its machine was declared under
    nodes    those that it was founded on, preferred leader first. This never changes: whoever makes a founding replica
             late makes the same one. Where the group lives now stands in the shard map
    as_of    the membership of this index of its log is the newest that was reported
    stores   the store that each of `nodes` had been readmitted with when the group was founded; a node that is not in
             it had its founding store. A founding replica is made in that store alone: any other one may stand in for
             one that has forgotten a vote
    """

    service: str
    nodes: tuple[NodeId, ...]
    as_of: Index = FOUNDING_INDEX
    stores: Mapping[NodeId, bytes] = field(default_factory=dict)

    def founds(self, identity: Identity) -> bool:
        """Whether the store of this identity is one that the group was founded on."""
        own = b"" if identity.founder else identity.store_id
        return identity.node_id in self.nodes and self.stores.get(identity.node_id, b"") == own


# ------------------------------------------------------------------------------- what others send and understand


def create_service_command(declaration: Declaration, nodes: Sequence[NodeId], node_id: NodeId = "") -> bytes:
    """Return the command that makes a service exist, and says what a node's program knows of it. Its result:
    `decode_version`.

    nodes    those that may host its shards, as the proposer knows them; of no effect if the service exists already
    node_id  whose program's class the declaration is of; empty: nobody's
    """
    return _packed([_CREATE_SERVICE, declaration.to_plain(), list(nodes), node_id])


def register_node_command(node_id: NodeId, address: str, admin_url: str = "") -> bytes:
    """Return the command that tells where a node is reached now. Its result: `decode_version`."""
    return _packed([_REGISTER_NODE, node_id, address, admin_url])


def group_nodes_command(group_id: GroupId, as_of: Index, nodes: Sequence[NodeId]) -> bytes:
    """Return the command that tells where a group lives, as of the membership at index `as_of`: voters first.

    Its result: `decode_version`. What is older than what the directory knows changes nothing.
    """
    return _packed([_GROUP_NODES, group_id, as_of, list(nodes)])


def admit_command(node_id: NodeId, store_id: bytes, readmissions: int) -> bytes:
    """Return the command that admits another store for a node. Its result: `decode_version`.

    readmissions  how many the proposer knows of; the command is refused if there were others since, so that one that
                  was overtaken cannot bring back a store that was replaced meanwhile
    """
    return _packed([_ADMIT, node_id, store_id, readmissions])


def decode_version(result: bytes) -> int:
    """Return the shard map's version after the command whose result this is. Raises WireError."""
    version = _unpacked(result)
    if type(version) is not int:
        raise WireError("directory: expected a version")
    return version


def map_query(known_version: int = 0) -> bytes:
    """Return the question for the shard map, by one who has `known_version` of it (0: none)."""
    return _packed([_MAP, known_version])


def decode_map(answer: bytes) -> ShardMap | None:
    """Return the map in the answer to `map_query`; None if the known version is the newest. Raises WireError."""
    plain = _unpacked(answer)
    return None if plain is None else ShardMap.from_plain(plain)


def nodes_query() -> bytes:
    """Return the question for all registered nodes."""
    return _packed([_NODES])


def decode_nodes(answer: bytes) -> dict[NodeId, NodeInfo]:
    """Return the nodes in the answer to `nodes_query`. Raises WireError."""
    try:
        return {node_id: NodeInfo(address, admin_url) for node_id, address, admin_url in _unpacked(answer)}
    except (TypeError, ValueError) as problem:
        raise WireError(f"directory: expected rows of nodes: {problem}") from problem


def _packed(parts: Any) -> bytes:
    packed: Any = msgpack.packb(parts)
    return bytes(packed)


def _unpacked(raw: bytes) -> Any:
    try:
        return msgpack.unpackb(raw)
    except ValueError as problem:
        raise WireError(f"directory: not msgpack: {problem}") from problem


# ------------------------------------------------------------------------------------------------- the machine


class Directory:
    """Group 1's state, as an engine Machine.

    nodes     every node that has registered
    services  what each service was declared as, with what later releases added
    groups    every group but the directory's own
    map       the shard map; replaced whole
    stores    the store of every node that was readmitted since the cluster was formed
    readmissions  how many there were
    """

    data: Keyspace | None = None

    def __init__(self) -> None:
        self.nodes: dict[NodeId, NodeInfo] = {}
        self.services: dict[str, Declaration] = {}
        self.groups: dict[GroupId, GroupInfo] = {}
        self.map = ShardMap()
        self.stores: dict[NodeId, bytes] = {}
        self.readmissions = 0
        self._next_group_id: GroupId = FIRST_USER_GROUP
        self._subscribers: list[Callable[[Directory], None]] = []

    def subscribe(self, changed: Callable[[Directory], None]) -> Callable[[], None]:
        """Call `changed` after each command that changed something, on this node. Return what ends this."""
        self._subscribers.append(changed)

        def unsubscribe() -> None:
            if changed in self._subscribers:
                self._subscribers.remove(changed)

        return unsubscribe

    def apply(self, command: bytes, context: Context) -> bytes:
        """Apply one command; return the map's version. Raises CommandFailed for one that is refused, UnknownCommand."""
        try:
            parts = msgpack.unpackb(command)
            kind, arguments = parts[0], parts[1:]
        except (ValueError, TypeError, KeyError, IndexError):
            _refuse("InvalidCommand", "not an array that starts with a command's name")
        if kind == _CREATE_SERVICE and len(arguments) == 3:
            changed = self._create_service(*arguments)
        elif kind == _REGISTER_NODE and len(arguments) == 3:
            changed = self._register_node(*arguments)
        elif kind == _GROUP_NODES and len(arguments) == 3:
            changed = self._group_nodes(*arguments)
        elif kind == _ADMIT and len(arguments) == 3:
            changed = self._admit(*arguments)
        else:
            raise UnknownCommand(f"the directory has no command {kind!r:.80} with {len(arguments)} arguments")
        if changed:
            self._tell()
        return _packed(self.map.version)

    def query(self, query: bytes) -> bytes:
        """Answer `map_query` or `nodes_query`. Raises CommandFailed for anything else."""
        try:
            parts = msgpack.unpackb(query)
        except ValueError:
            parts = None
        if type(parts) is list and len(parts) == 2 and parts[0] == _MAP and type(parts[1]) is int:
            return _packed(None if parts[1] >= self.map.version > 0 else self.map.to_plain())
        if parts == [_NODES]:
            return _packed([[name, info.address, info.admin_url] for name, info in sorted(self.nodes.items())])
        _refuse("UnknownQuery", "the directory answers map and nodes")

    def refuses(self, command: bytes) -> str | None:
        """Why this version would not know a command, which must not be proposed then; None: it does."""
        try:
            kind, *arguments = msgpack.unpackb(command)
        except (ValueError, TypeError):
            return None
        known = type(kind) is str and _ARGUMENTS.get(kind) == len(arguments)
        return None if known else f"the directory has no command {kind!r:.80} with {len(arguments)} arguments"

    def describe(self, command: bytes) -> str:
        """Return a command in words."""
        try:
            return f"command {msgpack.unpackb(command)[0]!r:.80} of the directory"
        except (ValueError, TypeError, LookupError):
            return f"{len(command)} bytes that are no command of the directory"

    def _create_service(self, plain: Any, nodes: Any, node_id: Any) -> bool:
        try:
            wanted = Declaration.from_plain(plain)
        except (InvalidRequest, TypeError, ValueError) as problem:
            _refuse("InvalidDeclaration", str(problem))
        existing = self.services.get(wanted.name)
        if existing is not None:
            differs = difference(existing, wanted)
            if differs is not None:
                _refuse("ServiceDiffers", f"service {wanted.name!r} was declared with {differs}")
            active = self.map.services[wanted.name].version
            if wanted.version < active:
                _refuse(
                    "VersionTooOld",
                    f"commands of version {active} of service {wanted.name!r} are in use, and this program's class "
                    f"knows those up to version {wanted.version}: start a later release of it",
                )
            self.services[wanted.name] = combined(existing, wanted)
            declared = self._declared(wanted, node_id)
            return declared or self.services[wanted.name] != existing
        if type(nodes) is not list or len(set(map(str, nodes))) != len(nodes) or not all(map(_is_name, nodes)):
            _refuse("InvalidDeclaration", f"service {wanted.name!r}: nodes must be different names")
        if wanted.replicas > len(nodes):
            _refuse(
                "TooFewNodes",
                f"service {wanted.name!r} wants {wanted.replicas} replicas, but there are {len(nodes)} nodes; "
                "declare fewer replicas, or add nodes first",
            )
        self._create_shards(wanted, nodes)
        self._declared(wanted, node_id)
        return True

    def _declared(self, wanted: Declaration, node_id: Any) -> bool:
        """A node's program knows `wanted`; return whether that was news."""
        known = self.map.services[wanted.name]
        told = known.declared(node_id, wanted.version) if _is_name(node_id) else known
        if told == known:
            return False
        self.map = ShardMap(self.map.version + 1, {**self.map.services, wanted.name: told}, self.map.groups)
        return True

    def _create_shards(self, wanted: Declaration, nodes: list[NodeId]) -> None:
        ranges = wanted.ranges()
        placed = place(len(ranges), wanted.replicas, nodes, list(self.map.groups.values()))
        shards = []
        groups = dict(self.map.groups)
        for shard_id, ((start, end), members) in enumerate(zip(ranges, placed, strict=True), start=1):
            group_id = self._next_group_id
            self._next_group_id += 1
            stores = _NO_STORES
            if not self.stores.keys().isdisjoint(members):
                stores = {name: self.stores[name] for name in sorted(members) if name in self.stores}
            self.groups[group_id] = GroupInfo(wanted.name, members, stores=stores)
            groups[group_id] = members
            shards.append(Shard(shard_id, group_id, start, end, 1))
        self.services[wanted.name] = wanted
        nobody = tuple((name, 0) for name in sorted(nodes))  # who counts for what may be used
        made = ServiceShards(wanted.mode, tuple(shards), 1, nobody)
        services = {**self.map.services, wanted.name: made}
        self.map = ShardMap(self.map.version + 1, services, groups)

    def _register_node(self, node_id: Any, address: Any, admin_url: Any) -> bool:
        if not _is_name(node_id) or not _is_name(address) or type(admin_url) is not str:
            _refuse("InvalidNode", "a node registers with its id, its address and its admin URL, as texts")
        info = NodeInfo(address, admin_url)
        if self.nodes.get(node_id) == info:
            return False
        self.nodes[node_id] = info
        return True

    def _group_nodes(self, group_id: Any, as_of: Any, nodes: Any) -> bool:
        group = self.groups.get(group_id) if type(group_id) is int else None
        if group is None or type(as_of) is not int:
            _refuse("UnknownGroup", f"the directory knows no group {group_id!r:.40}")
        if type(nodes) is not list or not nodes or not all(map(_is_name, nodes)) or len(set(nodes)) != len(nodes):
            _refuse("InvalidNodes", f"group {group_id}: its nodes must be different names")
        if as_of <= group.as_of:
            return False
        self.groups[group_id] = replace(group, as_of=as_of)
        if self.map.groups[group_id] == tuple(nodes):
            return False
        self.map = ShardMap(self.map.version + 1, self.map.services, {**self.map.groups, group_id: tuple(nodes)})
        return True

    def _admit(self, node_id: Any, store_id: Any, readmissions: Any) -> bool:
        if not _is_name(node_id) or type(store_id) is not bytes or not store_id or type(readmissions) is not int:
            _refuse("InvalidAdmission", "a node is admitted with its id, its store's id, and what is known of others")
        if self.stores.get(node_id) == store_id:
            return False
        if readmissions != self.readmissions:
            _refuse("Overtaken", f"{self.readmissions} readmissions have happened, not {readmissions}; look again")
        self.stores[node_id] = store_id
        self.readmissions += 1
        return True

    def _tell(self) -> None:
        for subscriber in list(self._subscribers):
            try:
                subscriber(self)
            except Exception:
                _log.exception("directory: a subscriber raised; the directory goes on")

    # ----------------------------------------------------------------------------------------------- as bytes

    def snapshot(self) -> bytes:
        """Return the whole state; equal states give equal bytes."""
        return _packed(
            [
                _STATE_FORMAT,
                self._next_group_id,
                [[name, info.address, info.admin_url] for name, info in sorted(self.nodes.items())],
                [declaration.to_plain() for _, declaration in sorted(self.services.items())],
                [
                    [group_id, info.service, list(info.nodes), info.as_of, sorted(info.stores.items())]
                    for group_id, info in sorted(self.groups.items())
                ],
                self.map.to_plain(),
                sorted(self.stores.items()),
                self.readmissions,
            ]
        )

    def restore(self, state: bytes) -> None:
        """Replace everything by what `snapshot()` returned. Raises WireError if it is none; nothing is changed then."""
        try:
            state_format, *parts = _unpacked(state)
            if state_format != _STATE_FORMAT:
                raise WireError(f"directory: state of format {state_format!r:.20}; this version reads {_STATE_FORMAT}")
            next_group_id, nodes, services, groups, shard_map, stores, readmissions = parts
            new_nodes = {name: NodeInfo(address, admin_url) for name, address, admin_url in nodes}
            declarations = [Declaration.from_plain(plain) for plain in services]
            new_groups = {
                group_id: GroupInfo(service, tuple(members), as_of, dict(founders))
                for group_id, service, members, as_of, founders in groups
            }
            new_stores = dict(stores)
            new_map = ShardMap.from_plain(shard_map)
        except (InvalidRequest, TypeError, ValueError) as problem:
            raise WireError(f"directory: malformed state: {problem}") from problem
        self._next_group_id = next_group_id
        self.nodes = new_nodes
        self.services = {declaration.name: declaration for declaration in declarations}
        self.groups = new_groups
        self.map = new_map
        self.stores, self.readmissions = new_stores, readmissions
        self._tell()


def _is_name(value: object) -> bool:
    return type(value) is str and 0 < len(value) <= 255


def _refuse(exception: str, detail: str) -> NoReturn:
    raise CommandFailed(exception, detail)
