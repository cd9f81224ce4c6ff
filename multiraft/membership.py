"""A membership as bytes: what a membership entry of the log holds, what snapshots carry, and what the store keeps.

An entry holds the whole membership that takes effect with it, not the change: whoever applies it needs nothing else,
and two replicas that apply it cannot come to different results. Layout: msgpack array of index, voters, outgoing,
learners, joining, auto_leave, [replica, node] pairs, [replica, store] pairs, next replica id.

Rules of this file: pure functions; a decoder raises CorruptRecord, never anything else, and what it returns makes
sense: every replica has a node, no node has two, and no id is still to be given out.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import msgpack

from multiraft.errors import CorruptRecord
from multiraft.types import U64_MAX, Membership, NodeId, ReplicaId

NODE_ID_CHARACTERS_MAX = 255
_ID_BYTES_MAX = 64
_KNOWN_MAX = 1024
_known: dict[bytes, Membership] = {}


def pack_membership(membership: Membership) -> bytes:
    """Return the bytes that `unpack_membership` takes; equal memberships give equal bytes."""
    packed: bytes = msgpack.packb(
        [
            membership.index,
            membership.voters,
            membership.outgoing,
            membership.learners,
            membership.joining,
            membership.auto_leave,
            sorted(membership.nodes.items()),
            sorted(membership.stores.items()),
            membership.next_replica_id,
        ]
    )
    return packed


def unpack_membership(raw: bytes, what: str) -> Membership:
    """Check and return the membership in `raw`. Raises CorruptRecord, naming `what` it was meant to be.

    Equal bytes give the same value, as long as it is among the latest: a node's groups have few different ones.
    """
    known = _known.get(raw)
    if known is None:
        known = _unpack(raw, what)
        if len(_known) >= _KNOWN_MAX:
            _known.clear()
        _known[bytes(raw)] = known
    return known


def _unpack(raw: bytes, what: str) -> Membership:
    try:
        fields = msgpack.unpackb(raw)
    except Exception as problem:
        raise CorruptRecord(f"{what}: does not decode: {problem}") from problem
    if type(fields) is not list or len(fields) != 9:
        raise CorruptRecord(f"{what}: holds something else than 9 fields")
    index, voters, outgoing, learners, joining, auto_leave, nodes, stores, next_replica_id = fields
    if type(auto_leave) is not bool:
        raise CorruptRecord(f"{what}: a flag is not a flag")
    membership = Membership(
        checked_u64(index, what),
        _ids(voters, what),
        {checked_id(key, what): _name(value, what) for key, value in _pairs(nodes, what)},
        checked_id(next_replica_id, what),
        _ids(outgoing, what),
        _ids(learners, what),
        _ids(joining, what),
        auto_leave,
        {checked_id(key, what): _store(value, what) for key, value in _pairs(stores, what)},
    )
    _judge(membership, what)
    return membership


def _judge(membership: Membership, what: str) -> None:
    named = membership.replicas
    if (
        set(named) != set(membership.nodes)
        or not set(membership.stores) <= set(named)
        or max(named, default=0) >= membership.next_replica_id
        or len(set(membership.nodes.values())) != len(named)
        or set(membership.voters) & set(membership.learners)
        or not set(membership.joining) <= set(membership.learners)
        or (membership.auto_leave and not membership.outgoing)
    ):
        raise CorruptRecord(f"{what}: does not make sense")


def checked_u64(value: object, what: str) -> int:
    """Return `value` if it is an unsigned number of 64 bits. Raises CorruptRecord, naming `what` it stands in."""
    if type(value) is not int or not 0 <= value <= U64_MAX:
        raise CorruptRecord(f"{what}: a number is out of range")
    return value


def checked_id(value: object, what: str) -> ReplicaId:
    """Return `value` if a replica can have it as its id. Raises CorruptRecord."""
    number = checked_u64(value, what)
    if number == 0:
        raise CorruptRecord(f"{what}: a replica id is 0")
    return number


def _ids(value: object, what: str) -> tuple[ReplicaId, ...]:
    if type(value) is not list:
        raise CorruptRecord(f"{what}: replica ids are not a list")
    ids = tuple(checked_id(item, what) for item in value)
    if any(left >= right for left, right in pairwise(ids)):
        raise CorruptRecord(f"{what}: replica ids are not ascending")
    return ids


def _name(value: object, what: str) -> NodeId:
    if type(value) is not str or not 0 < len(value) <= NODE_ID_CHARACTERS_MAX:
        raise CorruptRecord(f"{what}: a node is not a name")
    return value


def _store(value: object, what: str) -> bytes:
    if type(value) is not bytes or not 0 < len(value) <= _ID_BYTES_MAX:
        raise CorruptRecord(f"{what}: a store id is not 1-{_ID_BYTES_MAX} bytes")
    return value


def _pairs(value: object, what: str) -> list[tuple[Any, Any]]:
    if type(value) is not list or not all(type(pair) is list and len(pair) == 2 for pair in value):
        raise CorruptRecord(f"{what}: a table is not a list of pairs")
    return [(pair[0], pair[1]) for pair in value]
