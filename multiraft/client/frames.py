"""The client protocol as bytes: what a remote client and a node say to each other, one message a WebSocket frame.

Each message is a msgpack array whose first element says what it is:

    client ── HELLO ──>    [1, "multiraft-client", [versions that it speaks]]
           <── WELCOME ──  [1, version, node id, cluster id, entry_bytes, key_bytes, calls at once]
    client ── CALLS ──>    [2, [batch ...]]              batch: [id, group, kind, argument, timeout_ms, [body ...]]
           <── ANSWERS ──  [2, map version, [part ...]]  part: [id, first, [outcome ...]]
    client ── LOOK ──>     [3, id, [service ...]]
           <── MAP ──      [3, id, shard map, {group: leader}, {node: url}]

A batch is many calls of one kind in one group. Its outcomes come back in as many parts as it takes, each for the calls
from `first` on; `first` -1 holds one error, for all calls of the batch that have no outcome yet. An outcome is the
result's bytes, or an array of one: an error, as `multiraft.outcome` encodes it. What HELLO and CALLS may grow later
stands behind what they hold now, and is ignored by whoever does not know it.

Rules of this file: pure; what comes from the other side is checked before it is used, and what does not hold raises
WireError; msgpack's own bounds are the frame's length.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final, NamedTuple, TypeAlias

import msgpack

from multiraft.errors import MultiRaftError, WireError
from multiraft.outcome import Outcome, decode_outcome, encode_outcome
from multiraft.shard.shard_map import ShardMap
from multiraft.types import U64_MAX, GroupId, NodeId

MAGIC: Final = "multiraft-client"
VERSION: Final = 1
HELLO: Final = 1
CALLS: Final = 2
LOOK: Final = 3

PROPOSE: Final = 1
NUMBERED: Final = 2
REGISTER: Final = 3
READ: Final = 4
LEASE: Final = 5
NEAR: Final = 6
KINDS: Final = ("", "propose", "numbered", "register", "read", "lease", "near")
"""What each kind of call is named in `Router.call`; "near" reads from a replica of the asked node, whoever leads.

Its argument is how old the answer may be, in milliseconds, -1 for linearizable, and its result 8 bytes longer: AGE.
"""
ANYBODY: Final = 1
"""In the argument of all other kinds: the node asks the leader itself if it does not lead."""
FIRST: Final = 2
"""Beside ANYBODY: no attempt was made before that may have happened."""

HELLO_BYTES_MAX: Final = 4_096
FRAME_SLACK_BYTES: Final = 1_048_576
"""A frame may be so much longer than the largest command."""
CALLS_MAX: Final = 65_536
SERVICES_MAX: Final = 1_024
TIMEOUT_MS_MAX: Final = 3_600_000

Plain: TypeAlias = "bytes | list[bytes]"

_pack: Final[Callable[[Any], bytes]] = msgpack.packb
_ALL: Final = -1


class Welcome(NamedTuple):
    """What a node says of itself.

    calls  how many a client may have under way on one connection
    """

    version: int
    node_id: NodeId
    cluster_id: bytes
    entry_bytes: int
    key_bytes: int
    calls: int


class Batch(NamedTuple):
    """Calls of one group, of one kind."""

    batch_id: int
    group_id: GroupId
    kind: int
    argument: int
    timeout_ms: int
    bodies: list[bytes]


class Part(NamedTuple):
    """Outcomes of a batch's calls from `first` on, as they are on the wire; -1: one for all that are left."""

    batch_id: int
    first: int
    outcomes: list[Plain]


class Found(NamedTuple):
    """A shard map, and what the node knows beside it: who leads, and where clients reach the nodes."""

    look_id: int
    shard_map: ShardMap
    leaders: Mapping[GroupId, NodeId]
    urls: Mapping[NodeId, str]


class Refused(WireError):
    """The other side speaks this protocol, but no version that this one knows."""


# ------------------------------------------------------------------------------------------------- what a client says


def hello() -> bytes:
    """Return a client's first frame."""
    return _pack([HELLO, MAGIC, [VERSION]])


def calls(batches: Sequence[Sequence[Any]]) -> bytes:
    """Return a frame of calls: each batch as the fields of `Batch`, in order."""
    return _pack([CALLS, batches])


def look(look_id: int, services: Iterable[str]) -> bytes:
    """Return the question for the shard map of some services."""
    return _pack([LOOK, look_id, sorted(services)])


# --------------------------------------------------------------------------------------------------- what a node says


def welcome(said: Welcome) -> bytes:
    """Return a node's first frame."""
    return _pack([HELLO, *said])


def answers(map_version: int, parts: Sequence[Sequence[Any]]) -> bytes:
    """Return a frame of answers: each part as the fields of `Part`, in order."""
    return _pack([CALLS, map_version, parts])


def found(look_id: int, shard_map: ShardMap, leaders: Mapping[GroupId, NodeId], urls: Mapping[NodeId, str]) -> bytes:
    """Return the answer to `look`."""
    return _pack([LOOK, look_id, shard_map.to_plain(), dict(leaders), dict(urls)])


def plain(outcome: Outcome | BaseException) -> Plain:
    """Return an outcome as it stands in a part."""
    return outcome if type(outcome) is bytes else [encode_outcome(outcome)]


def error_of(outcome: Plain, *, read: bool) -> MultiRaftError:
    """Return the error that an outcome other than a result holds. Never raises: what is malformed is unknown."""
    try:
        decode_outcome(outcome[0] if type(outcome) is list else b"", read=read)
    except MultiRaftError as problem:
        return problem
    return WireError("the node answered with an error that is none")


# -------------------------------------------------------------------------------------------------- what a node hears


def read_hello(frame: bytes) -> int:
    """Return the version to speak. Raises Refused (none in common), WireError (anything else)."""
    if len(frame) > HELLO_BYTES_MAX:
        raise WireError("a hello that is too long")
    fields = _message(frame)
    if fields[0] != HELLO or len(fields) < 3 or fields[1] != MAGIC or type(fields[2]) is not list:
        raise WireError("the first frame is no hello of a client")
    if VERSION not in fields[2]:
        raise Refused(f"this node speaks version {VERSION} of the client protocol; install a client that does, too")
    return VERSION


def read_request(frame: bytes) -> list[Batch] | tuple[int, list[str]]:
    """Return the batches of a frame, or a look: (its id, the services). Raises WireError."""
    fields = _message(frame)
    if fields[0] == CALLS and len(fields) >= 2 and type(fields[1]) is list:
        return [_batch(row) for row in fields[1]]
    if fields[0] == LOOK and len(fields) >= 3 and type(fields[2]) is list and len(fields[2]) <= SERVICES_MAX:
        if not all(type(name) is str for name in fields[2]):
            raise WireError("a service's name must be text")
        return _u64(fields[1]), fields[2]
    raise WireError("a frame that is neither calls nor a look at the map")


def _batch(row: object) -> Batch:
    if type(row) is not list or len(row) < 6:
        raise WireError("a batch has six fields")
    batch_id, group_id, kind, argument, timeout_ms, bodies = row[:6]
    if type(kind) is not int or not 1 <= kind < len(KINDS):
        raise WireError(f"{kind!r:.20} is no kind of call")
    if type(argument) is not int or not -1 <= argument <= U64_MAX:
        raise WireError("the argument of a batch must be a whole number")
    if type(timeout_ms) is not int or not 1 <= timeout_ms <= TIMEOUT_MS_MAX:
        raise WireError(f"timeout_ms must be a whole number from 1 to {TIMEOUT_MS_MAX}")
    if type(bodies) is not list or not 1 <= len(bodies) <= CALLS_MAX:
        raise WireError(f"a batch holds 1 to {CALLS_MAX} calls")
    for body in bodies:
        if type(body) is not bytes:
            raise WireError("a call must be bytes")
    return Batch(_u64(batch_id), _u64(group_id), kind, argument, timeout_ms, bodies)


# ------------------------------------------------------------------------------------------------ what a client hears


def read_welcome(frame: bytes) -> Welcome:
    """Return what a node says of itself. Raises WireError."""
    fields = _message(frame)
    if fields[0] != HELLO or len(fields) < 7:
        raise WireError("the first frame is no welcome of a node")
    version, node_id, cluster_id, *bounds = fields[1:7]
    if version != VERSION:
        raise Refused(f"the node speaks version {version!r:.20} of the client protocol, this client {VERSION}")
    if type(node_id) is not str or not node_id or type(cluster_id) is not bytes:
        raise WireError("the welcome names no node")
    entry_bytes, key_bytes, most = (_u64(bound) for bound in bounds)
    if not (entry_bytes and key_bytes and most):
        raise WireError("a bound in the welcome is 0")
    return Welcome(version, node_id, cluster_id, entry_bytes, key_bytes, most)


def read_answer(frame: bytes) -> tuple[int, list[Part]] | Found:
    """Return (map version, parts), or a map. Raises WireError."""
    fields = _message(frame)
    if fields[0] == CALLS and len(fields) >= 3 and type(fields[2]) is list:
        return _u64(fields[1]), [_part(row) for row in fields[2]]
    if fields[0] == LOOK and len(fields) >= 5:
        leaders, urls = fields[3], fields[4]
        if type(leaders) is not dict or type(urls) is not dict:
            raise WireError("leaders and URLs must be maps")
        return Found(
            _u64(fields[1]),
            ShardMap.from_plain(fields[2]),
            {_u64(group_id): _text(node_id) for group_id, node_id in leaders.items()},
            {_text(node_id): _text(url) for node_id, url in urls.items()},
        )
    raise WireError("a frame that is neither answers nor a map")


def _part(row: object) -> Part:
    if type(row) is not list or len(row) < 3:
        raise WireError("a part has three fields")
    batch_id, first, outcomes = row[:3]
    if type(first) is not int or not _ALL <= first <= CALLS_MAX or type(outcomes) is not list:
        raise WireError("a part names no calls")
    if first == _ALL and (len(outcomes) != 1 or type(outcomes[0]) is not list):
        raise WireError("a whole batch ends with one error")
    for outcome in outcomes:
        if type(outcome) is not bytes and not (
            type(outcome) is list and len(outcome) == 1 and type(outcome[0]) is bytes
        ):
            raise WireError("an outcome is bytes, or an error")
    return Part(_u64(batch_id), first, outcomes)


def _message(frame: bytes) -> list[Any]:
    try:
        fields = msgpack.unpackb(frame, strict_map_key=False)
    except Exception as problem:  # whatever msgpack raises for what is no msgpack: it has many ways
        raise WireError(f"not msgpack: {type(problem).__name__}") from None
    if type(fields) is not list or not fields or type(fields[0]) is not int:
        raise WireError("a message is an array that starts with a number")
    return fields


def _u64(value: object) -> int:
    if type(value) is not int or not 0 <= value <= U64_MAX:
        raise WireError("expected an unsigned 64-bit integer")
    return value


def _text(value: object) -> str:
    if type(value) is not str or not value:
        raise WireError("expected a text")
    return value
