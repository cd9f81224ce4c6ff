"""Which replicas live on this node: opened from the store at start, created when the directory assigns new groups.

The directory says which groups exist and on which nodes; a node makes the replicas that it is assigned, each from a
synced creation record. Everything here is idempotent: after a crash the same assignment is met again.

Rules of this file: no replica is opened before its service's class is known, because its log could not be applied.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable
from typing import Final

from multiraft.engine.engine import Engine
from multiraft.engine.machine import Machine
from multiraft.engine.replica import Replica
from multiraft.errors import StartError
from multiraft.shard import Directory, Shard, ShardMap
from multiraft.types import (
    DIRECTORY_GROUP,
    GroupId,
    Identity,
    NodeId,
    ReplicaDescriptor,
    StoredReplica,
    founding_membership,
)

DIRECTORY_SERVICE: Final = "directory"
_FOUNDING_AT_ONCE: Final = 512
log: Final = logging.getLogger("multiraft.hosting")


class Hosting:
    """The replicas of one node.

    machines   how to make a machine for each service declared here
    directory  the state machine of group 1 on this node
    """

    def __init__(
        self,
        node_id: NodeId,
        engine: Engine,
        directory: Directory,
        machines: dict[str, Callable[[], tuple[Machine, object]]],
        opened: Callable[[Replica], None],
    ) -> None:
        self._node_id = node_id
        self._engine = engine
        self._directory = directory
        self._machines = machines
        self._opened = opened
        self._undeclared: set[str] = set()
        self._in_memory: set[str] = set()
        # Which shards were looked at last, of each service; as whose store.
        self._looked_at: dict[str, tuple[Shard, ...]] = {}
        self._looked_as: Identity | None = None
        # Replicas to be made, in order; and of which groups.
        self._to_found: deque[tuple[GroupId, str, tuple[NodeId, ...]]] = deque()
        self._queued: set[GroupId] = set()
        self._founding_soon = False
        self.objects: dict[GroupId, object] = {}
        residents = engine.residents
        residents.make_machine, residents.came, residents.left = self._machine_asked_for, self._came, self._left

    def check(self, stored: list[StoredReplica]) -> None:
        """Raise StartError unless every stored replica's service is declared on this node."""
        for replica in stored:
            service = replica.descriptor.service
            if service != DIRECTORY_SERVICE and service not in self._machines:
                raise StartError(
                    f"this node has replicas of service {service!r}, which the program does not declare: "
                    f"call node.service({service!r}, ...) before the node starts"
                )

    def open_stored(self, stored: list[StoredReplica]) -> None:
        """Take up every replica that the store has."""
        for replica in stored:
            self._opened(self._engine.open_replica(replica, self._machine(replica.descriptor)))

    def found_directory(self, identity: Identity) -> None:
        """Make this node's replica of group 1, unless it is there already, or this store came after the founding."""
        if identity.founder:
            self._create(DIRECTORY_GROUP, DIRECTORY_SERVICE, tuple(sorted(identity.stores)))

    def reconcile(self, shard_map: ShardMap) -> None:
        """Make every founding replica that the directory assigns to this node's store and that was never here.

        Replicas that came later are made when their group's leader asks for them, and by nobody else. Of many, some are
        made now and the others in slices, so that the node goes on meanwhile.
        """
        identity = self._engine.store.identity
        if identity != self._looked_as:
            self._looked_as = identity
            self._looked_at.clear()
        for name, service in shard_map.services.items():
            if self._looked_at.get(name) is not service.shards:
                self._looked_at[name] = service.shards
                self._reconcile(name, service.shards, identity)
        self._found_some()

    def _reconcile(self, name: str, shards: tuple[Shard, ...], identity: Identity) -> None:
        groups, engine = self._directory.groups, self._engine
        for shard in shards:
            group_id = shard.group_id
            group = groups[group_id]
            if group_id in engine.replicas or not group.founds(identity):
                continue
            if name not in self._machines:
                self._say_undeclared(name)
            elif engine.residents.busy(group_id):
                self._looked_at.pop(name, None)  # perhaps only for now: the next change of the directory looks again
            elif group_id not in self._queued:
                self._queued.add(group_id)
                self._to_found.append((group_id, name, group.nodes))

    def _say_undeclared(self, name: str) -> None:
        if name not in self._undeclared:
            self._undeclared.add(name)
            log.warning(
                "service %r assigns replicas to this node, which does not declare it; they are not made "
                "until the program calls node.service(%r, ...)",
                name,
                name,
            )

    def _found_some(self) -> None:
        """Make as many of the replicas that are to be made as may be on their way to the disk at once."""
        self._founding_soon = False
        residents, engine = self._engine.residents, self._engine
        while self._to_found and residents.coming < _FOUNDING_AT_ONCE and not engine.writer.failed:
            group_id, name, nodes = self._to_found.popleft()
            self._queued.discard(group_id)
            self._create(group_id, name, nodes)

    def _came(self, replica: Replica) -> None:
        self._opened(replica)
        if self._to_found and not self._founding_soon:
            self._founding_soon = True
            self._engine.loop.call_soon(self._found_some)

    def _create(self, group_id: GroupId, service: str, nodes: tuple[NodeId, ...]) -> None:
        residents = self._engine.residents
        if group_id in self._engine.replicas or residents.busy(group_id):
            return
        membership = founding_membership(nodes)
        descriptor = ReplicaDescriptor(group_id, membership.replica_on(self._node_id), service)
        if not residents.barred(group_id, descriptor.replica_id):
            residents.found(descriptor, membership, self._machine(descriptor), self._came)

    def _machine_asked_for(self, descriptor: ReplicaDescriptor) -> Machine | None:
        """A replica needs its machine now, or a group's leader asks for one; None where it is not declared here."""
        if descriptor.service == DIRECTORY_SERVICE:
            self._directory.restore(Directory().snapshot())  # the new replica begins with nothing
            return self._directory
        return self._made(descriptor) if descriptor.service in self._machines else None

    def object_of(self, replica: Replica) -> object:
        """Return the user's object that is a replica's state machine."""
        replica.make()
        return self.objects[replica.group_id]

    def _left(self, replica: Replica) -> None:
        self.objects.pop(replica.group_id, None)

    def _machine(self, descriptor: ReplicaDescriptor) -> Machine | None:
        """Return the machine that a replica begins with; None where it is made when it is first needed.

        One on disk is made at once: it may be in the middle of something.
        """
        service = descriptor.service
        if service == DIRECTORY_SERVICE:
            return self._directory
        if service in self._in_memory:
            return None
        machine = self._made(descriptor)
        if machine.data is None:
            self._in_memory.add(service)
        return machine

    def _made(self, descriptor: ReplicaDescriptor) -> Machine:
        machine, self.objects[descriptor.group_id] = self._machines[descriptor.service]()
        return machine
