"""What a client knows of the cluster: which group serves which key, where its replicas are, who leads, and by what URL.

Rules of this file: a newer map takes the place of an older one service by service, since a client asks for those that
it uses; hints of leaders are only hints.
"""

from __future__ import annotations

from multiraft.client.frames import Found
from multiraft.shard.shard_map import ServiceShards
from multiraft.types import GroupId, NodeId


class Atlas:
    """The newest of everything that nodes have said.

    version   of the newest map; -1 before the first
    services  by name; only those asked for
    wanted    the names of those
    groups    the nodes with a replica of the group
    leaders   who led it when the map was asked for
    urls      where nodes are reached: as given or told, and as it worked last
    told      where nodes say that they serve clients
    """

    def __init__(self) -> None:
        self.version = -1
        self.services: dict[str, ServiceShards] = {}
        self.wanted: set[str] = set()
        self.groups: dict[GroupId, tuple[NodeId, ...]] = {}
        self.leaders: dict[GroupId, NodeId] = {}
        self.urls: dict[NodeId, str] = {}
        self.told: dict[NodeId, str] = {}

    def found(self, found: Found) -> None:
        """Take what a node has answered."""
        if found.shard_map.version >= self.version:
            self.version = found.shard_map.version
            self.services.update(found.shard_map.services)
            self.groups.update(found.shard_map.groups)
        self.leaders.update(found.leaders)
        self.told.update(found.urls)
        for node_id, url in found.urls.items():
            self.urls.setdefault(node_id, url)

    def failed(self, node_id: NodeId) -> None:
        """A node was not reached where it was thought to be: it may have moved to where the nodes say."""
        if node_id in self.told:
            self.urls[node_id] = self.told[node_id]
