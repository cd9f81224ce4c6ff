"""From a key as an operator types it to the shard, group and nodes that serve it.

Rules of this file: pure functions of a shard map; the bytes of a key are those that a command's routing key has, so
that the answer is where that command would go.
"""

from __future__ import annotations

from typing import Final

from multiraft.admin.view import Facts
from multiraft.shard.partition import routing_key
from multiraft.shard.shard_map import Shard, ShardMap
from multiraft.types import GroupId

KEY_TYPES: Final = ("str", "int", "bytes")
_INT_OFFSET: Final = 1 << 63


class RouteError(Exception):
    """The key has no route; `status` is the HTTP status that says so."""

    def __init__(self, status: int, error: str, hint: str) -> None:
        super().__init__(error)
        self.status = status
        self.hint = hint


def key_bytes(key: str, key_type: str) -> bytes:
    """Return the bytes of the key that `key` spells; `key_type` is one of KEY_TYPES, bytes are spelt in hex.

    Raises RouteError.
    """
    if key_type == "str":
        return key.encode()
    try:
        if key_type == "int":
            return (int(key) + _INT_OFFSET).to_bytes(8, "big")
        if key_type == "bytes":
            return bytes.fromhex(key.removeprefix("0x"))
    except (ValueError, OverflowError) as problem:
        wanted = "a whole number of 64 bits" if key_type == "int" else "bytes in hex, like 6b3a0f"
        raise RouteError(400, f"key = {key!r}: is not {wanted}", "say type=str for a text") from problem
    raise RouteError(400, f"type = {key_type!r}: is not one of those known", f"known: {', '.join(KEY_TYPES)}")


def find_route(shard_map: ShardMap, key: str, service: str | None, key_type: str) -> Facts:
    """Return which shard and group serve `key`; `service` may be None when there is only one. Raises RouteError."""
    raw = key_bytes(key, key_type)
    names = sorted(shard_map.services)
    if service is None:
        if len(names) > 1:
            raise RouteError(400, "service: is missing, and there are several", f"one of {', '.join(names)}")
        if not names:
            raise RouteError(404, "there is no service yet", "node.service(...) declares one")
        service = names[0]
    if service not in shard_map.services:
        raise RouteError(404, f"there is no service {service!r}", f"known: {', '.join(names) or 'none yet'}")
    found = shard_map.services[service]
    shard = found.find(raw)
    return {
        "service": service,
        "key": key,
        "mode": found.mode,
        "routing_key": routing_key(found.mode, raw).hex(),
        "shard": shard_facts(shard),
        "group_id": shard.group_id,
    }


def shard_facts(shard: Shard) -> Facts:
    """Return the shard as nodes describe it in their status: limits in hex."""
    end = None if shard.end is None else shard.end.hex()
    return {"shard_id": shard.shard_id, "start": shard.start.hex(), "end": end, "epoch": shard.epoch}


def expected_groups(shard_map: ShardMap) -> dict[GroupId, Facts]:
    """Return what the map says of every group that serves a shard: its service, shard and nodes."""
    return {
        shard.group_id: {
            "service": name,
            "shard": shard_facts(shard),
            "nodes": list(shard_map.groups[shard.group_id]),
        }
        for name, service in shard_map.services.items()
        for shard in service.shards
    }
