"""Sharding: keys to shards, shards to groups, groups to nodes."""

from __future__ import annotations

if __name__ != "multiraft.shard":
    raise ImportError("this folder is multiraft.shard; import it under that name")

from multiraft.shard.declaration import Declaration
from multiraft.shard.directory import (
    Directory,
    GroupInfo,
    NodeInfo,
    admit_command,
    create_service_command,
    decode_map,
    decode_nodes,
    decode_version,
    group_nodes_command,
    map_query,
    nodes_query,
    register_node_command,
)
from multiraft.shard.partition import hash_ranges, key_ranges, routing_key
from multiraft.shard.route import ServiceRoute
from multiraft.shard.router import GroupCaller, Router
from multiraft.shard.shard_map import ServiceShards, Shard, ShardMap

__all__ = [
    "Declaration",
    "Directory",
    "GroupCaller",
    "GroupInfo",
    "NodeInfo",
    "Router",
    "ServiceRoute",
    "ServiceShards",
    "Shard",
    "ShardMap",
    "admit_command",
    "create_service_command",
    "decode_map",
    "decode_nodes",
    "decode_version",
    "group_nodes_command",
    "hash_ranges",
    "key_ranges",
    "map_query",
    "nodes_query",
    "register_node_command",
    "routing_key",
]
