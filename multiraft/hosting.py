"""Which replicas live on this node: opened from the store at start, created when the directory assigns new groups.

The directory says which groups exist and on which nodes; a node makes the replicas that it is assigned, each from a
synced creation record. Everything here is idempotent: after a crash the same assignment is met again.

Rules of this file: no replica is opened before its service's class is known, because its log could not be applied.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Final

from multiraft.engine.engine import Engine
from multiraft.engine.machine import Machine
from multiraft.engine.replica import Replica
from multiraft.errors import StartError
from multiraft.shard import Directory, ShardMap
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
        self.objects: dict[GroupId, object] = {}
        residents = engine.residents
        residents.make_machine, residents.came, residents.left = self._machine_asked_for, opened, self._left

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

        Replicas that came later are made when their group's leader asks for them, and by nobody else.
        """
        for name, service in shard_map.services.items():
            for shard in service.shards:
                group = self._directory.groups[shard.group_id]
                if not group.founds(self._engine.store.identity):
                    continue
                if name in self._machines:
                    self._create(shard.group_id, name, group.nodes)
                elif name not in self._undeclared:
                    self._undeclared.add(name)
                    log.warning(
                        "service %r assigns replicas to this node, which does not declare it; they are not made "
                        "until the program calls node.service(%r, ...)",
                        name,
                        name,
                    )

    def _create(self, group_id: GroupId, service: str, nodes: tuple[NodeId, ...]) -> None:
        residents = self._engine.residents
        if group_id in self._engine.replicas or residents.busy(group_id):
            return
        membership = founding_membership(nodes)
        descriptor = ReplicaDescriptor(group_id, membership.replica_on(self._node_id), service)
        if not residents.barred(group_id, descriptor.replica_id):
            residents.found(descriptor, membership, self._machine(descriptor), self._opened)

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
