"""Which replicas come to live on this node while it runs, and which must leave.

A group's leader that leads a replica toward a node which does not have it (L24) asks for it: `CreateReplica`. The
replica is made empty: it knows no membership, has no log, cannot vote, and learns all of it from the leader. A replica
that was removed from its group stays, for its vote may still be needed, until a leader that knows that a majority knows
of it (`Raft.membership_known`) says so when it asks: `RemovedReplica`. Then it stops and leaves a tombstone, so that no
replica of an id up to its own lives here again.

    asked for ──> empty record synced ──> lives ──> removed ──> tombstone synced ──> what is left deleted

Rules of this file: a group's next replica is made only when all that its last one left behind is gone, since writes
that were under way may still have added to it; what is refused is refused for good or asked for again, never half done.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import TYPE_CHECKING, Final, cast

from multiraft import failpoints
from multiraft.engine.executing import Executor
from multiraft.engine.keyspace import on_disk
from multiraft.engine.machine import Machine
from multiraft.engine.quarantine import Quarantine
from multiraft.engine.replica import Replica
from multiraft.errors import invariant
from multiraft.messages import AskRemoved, CreateReplica, HostingMessage, RemovedReplica
from multiraft.ports import WriteBatch
from multiraft.raft import Raft
from multiraft.types import (
    FOUNDING_INDEX,
    FOUNDING_TERM,
    GroupId,
    HardState,
    LogStart,
    Membership,
    NodeId,
    ReplicaDescriptor,
    ReplicaId,
    StoredReplica,
    Tombstone,
    unborn_membership,
)

if TYPE_CHECKING:
    from multiraft.engine.engine import Engine

_DELETED_AT_ONCE: Final = 1_000
_FOUNDED: Final = LogStart(FOUNDING_INDEX, FOUNDING_TERM)
log: Final = logging.getLogger("multiraft.engine")


class Residents:
    """The comings and goings of one engine.

    make_machine  the state machine for a descriptor; None where its service is not known here
    came, left    called with a replica that lives here from now on, or does no longer
    tombstones    of groups that had a replica here which was removed: the newest one of each
    quarantine    of groups whose replica here was found damaged
    """

    def __init__(self, engine: Engine, tombstones: dict[GroupId, Tombstone]) -> None:
        self._engine = engine
        self.tombstones = tombstones
        self.quarantine = Quarantine(())
        self.make_machine: Callable[[ReplicaDescriptor], Machine | None] = lambda _: None
        # One object of each for all replicas.
        self._make_executor, self._on_applied = self._made_late, engine.observing.applied
        self.came: Callable[[Replica], None] = lambda _: None
        self.left: Callable[[Replica], None] = lambda _: None
        self._coming: set[GroupId] = set()
        self._going: set[GroupId] = set()
        self._wanted: dict[GroupId, CreateReplica] = {}
        # What a leader has asked for while it was not known whether that very replica had lived here.
        self._untrusted: dict[GroupId, tuple[NodeId, CreateReplica]] = {}
        self._unknown: set[str] = set()
        self._put_off: dict[tuple[Replica, NodeId], None] = {}

    def begin(self) -> None:
        """Go on with what a crash has interrupted: delete what replicas that were removed have left."""
        self._engine.ondisk.spaces.begin()
        for group_id in sorted(self.tombstones):
            if group_id not in self._engine.replicas and self.quarantine.of(group_id) is None:
                self._going.add(group_id)
                self._delete_leftovers(group_id)

    def barred(self, group_id: GroupId, replica_id: ReplicaId) -> bool:
        """Whether a replica of that id, or of a later one, was removed from this node."""
        tombstone = self.tombstones.get(group_id)
        return tombstone is not None and replica_id <= tombstone.replica_id

    @property
    def coming(self) -> int:
        """How many replicas are on their way to the disk."""
        return len(self._coming)

    def busy(self, group_id: GroupId) -> bool:
        """Whether a replica is being made here, or what one has left is being deleted, or one is damaged."""
        return group_id in self._coming or group_id in self._going or self.quarantine.of(group_id) is not None

    # ----------------------------------------------------------------------------------------------- toward peers

    def ask_for(self, replica: Replica, node_id: NodeId) -> None:
        """The group is led here, and `node_id` does not have its replica of it: have it made, if it is a learner.

        A voter is never made here. One of the first makes itself, and every other one has been a learner that had
        caught up: where it is missing, what it promised was lost with it.
        """
        membership = replica.core.membership
        replica_id = membership.replica_on(node_id)
        if not replica_id or not replica.leads or membership.is_voter(replica_id):
            return
        if not replica.core.membership_known:  # the one that it replaces on its node may still be needed
            self._put_off[replica, node_id] = None
            return
        service = replica.descriptor.service
        self._engine.outgoing.urgent(node_id, CreateReplica(replica.group_id, replica_id, service))

    def tell_removed(self, replica: Replica, replica_id: ReplicaId, node_id: NodeId) -> None:
        """Tell `node_id` that its replica takes part no longer, if it is this one's to say.

        Only a leader says so, and only when a majority knows of it (`Raft.membership_known`): whoever was removed may
        be needed until then. It asks again.
        """
        if replica.leads and replica.core.membership_known:
            index = replica.core.membership.index
            self._engine.outgoing.urgent(node_id, RemovedReplica(replica.group_id, index, replica_id))

    def tick(self) -> None:
        """Once a beat: ask for what was put off."""
        if self._put_off:
            put_off, self._put_off = self._put_off, {}
            for replica, node_id in put_off:
                if replica.leads:
                    self.ask_for(replica, node_id)

    # ------------------------------------------------------------------------------------------------- from peers

    def received(self, node_id: NodeId, message: HostingMessage) -> None:
        """Do what a peer says of a replica on this node, or ignore what is out of date."""
        if type(message) is CreateReplica:
            self._create(node_id, message)
        elif type(message) is RemovedReplica:
            replica = self._engine.replicas.get(message.group_id)
            if replica is not None and replica.core.replica_id == message.replica_id:
                self.remove(replica, message.index)

        elif type(message) is AskRemoved:
            replica = self._engine.replicas.get(message.group_id)
            if replica is not None and replica.core.membership.removed(message.replica_id):
                self.tell_removed(replica, message.replica_id, node_id)

    def _create(self, node_id: NodeId, message: CreateReplica) -> None:
        engine, group_id, replica_id = self._engine, message.group_id, message.replica_id
        if self.barred(group_id, replica_id):
            return
        present = engine.replicas.get(group_id)
        if present is not None:
            if present.core.replica_id >= replica_id:
                return
            # A node has one replica of a group at most: that it has a later one means that this one was removed.
            self.remove(present, present.core.membership.index)
        if group_id in self._coming:
            return
        if not self.quarantine.allows(group_id, replica_id):
            self._untrusted[group_id] = node_id, message
            return
        if self.quarantine.of(group_id) is not None:
            self.give_up(group_id, replica_id - 1)
        if group_id in self._going:
            self._wanted[group_id] = message
            return
        descriptor = ReplicaDescriptor(group_id, replica_id, message.service)
        machine = self.make_machine(descriptor)
        if machine is None:
            if message.service not in self._unknown:
                self._unknown.add(message.service)
                log.error(
                    "node %s asks for a replica of service %r, which the program here does not declare: call "
                    "node.service(%r, ...) before the node starts, or remove the replica from its group",
                    node_id,
                    message.service,
                    message.service,
                )
            return
        log.info("group %d: replica %d is made, as node %s asks", group_id, replica_id, node_id)
        stored = StoredReplica(descriptor, unborn_membership(), HardState(), LogStart(), 0, 0)
        self.make(stored, machine, self.came)

    def found(
        self,
        descriptor: ReplicaDescriptor,
        membership: Membership,
        machine: Machine | None,
        then: Callable[[Replica], None],
    ) -> None:
        """Make one of a new group's first replicas; it takes part, and `then` is called, once it is on disk."""
        hard_state = HardState(FOUNDING_TERM, 0, FOUNDING_INDEX)
        stored = StoredReplica(
            descriptor, membership, hard_state, _FOUNDED, FOUNDING_INDEX, FOUNDING_TERM, (), FOUNDING_INDEX
        )
        self.make(stored, machine, then)

    def make(self, stored: StoredReplica, machine: Machine | None, then: Callable[[Replica], None]) -> None:
        """Write a new replica down; it lives, and `then` is called, once that is on disk.

        machine  as in `Engine.open_replica`
        """
        engine, group_id = self._engine, stored.descriptor.group_id
        self._coming.add(group_id)

        def create(batch: WriteBatch) -> None:
            nonlocal stored
            batch.create_replica(stored.descriptor, stored.membership, stored.hard_state, stored.log_start)
            if machine is not None and machine.data is not None:
                stored = replace(stored, applied=engine.ondisk.draw(batch, stored))

        def made() -> None:
            if failpoints.armed is not None:
                failpoints.armed(failpoints.REPLICA_AFTER_CREATE)
            self._coming.discard(group_id)
            then(engine.open_replica(stored, machine))

        if failpoints.armed is not None:
            failpoints.armed(failpoints.REPLICA_BEFORE_CREATE)
        engine.writer.write(create, made)
        engine.wake()

    def know(self, groups: Iterable[GroupId]) -> None:
        """These are all groups that there are: of others nothing can have been lost."""
        left = self.quarantine.resolve(groups)
        self._engine.writer.write(lambda batch: batch.put_damage(left), lambda: None)
        self._engine.wake()

    def replaced(self, group_id: GroupId, up_to: ReplicaId) -> None:
        """The group has replaced its damaged replica here, which had at most this id: heed who asked for a new one."""
        self.quarantine.at_most(group_id, up_to)
        asked = self._untrusted.pop(group_id, None)
        if asked is not None:
            self._create(*asked)

    def give_up(self, group_id: GroupId, up_to: ReplicaId) -> None:
        """Delete what is left of a damaged replica: its group has replaced it, or it had at most this id and is out."""
        engine, tombstone = self._engine, Tombstone(group_id, up_to, 0)
        log.info("group %d: its damaged replica here is given up, and all up to id %d", group_id, up_to)
        left = self.quarantine.let_go(group_id)
        self.tombstones[group_id] = tombstone
        self._going.add(group_id)

        def fill(batch: WriteBatch) -> None:
            batch.remove_replica(tombstone)
            batch.put_damage(left)

        engine.writer.write(fill, lambda: self._delete_leftovers(group_id))
        engine.wake()

    def taken_up(self, stored: StoredReplica, machine: Machine | None, now: float) -> Replica:
        """Return what is on disk as a replica. Raises StartError when its class keeps the state elsewhere."""
        engine, clocks = self._engine, self._engine.clocks
        data = engine.ondisk.data_of(stored, machine)
        idle_to = min(stored.idle_to, stored.hard_state.commit)
        applied = max(stored.snapshot_index, idle_to) if data is None else data.applied.index
        reader, settings = engine.ondisk.reader_of(data), engine.core_settings
        core = Raft(stored, reader, engine.view, engine.rng, settings, now, applied)
        executor = None
        if machine is not None:
            executor = self._executor(stored.descriptor, machine if data is None else on_disk(machine, data))
        replica = Replica(
            stored.descriptor,
            core,
            executor,
            self._make_executor,
            engine.budget,
            engine.slow_command_s,
            clocks.effort,
            clocks.real,
            data,
        )
        replica.on_applied = self._on_applied
        replica.idle_to = stored.idle_to
        return replica

    def _executor(self, descriptor: ReplicaDescriptor, machine: Machine) -> Executor:
        executor = Executor(descriptor.group_id, machine)
        executor.doing = self._engine.applying.doing
        return executor

    def _made_late(self, descriptor: ReplicaDescriptor) -> Executor:
        """Something is applied in a group, or asked of it, for the first time since the start."""
        machine = self.make_machine(descriptor)
        invariant(machine is not None and machine.data is None, "a machine that is made late is one in memory")
        return self._executor(descriptor, cast(Machine, machine))

    # -------------------------------------------------------------------------------------------------- leaving

    def remove(self, replica: Replica, index: int) -> None:
        """The replica takes part in its group no longer, as of `index`: it stops, and leaves a tombstone."""
        engine, group_id = self._engine, replica.group_id
        tombstone = Tombstone(group_id, replica.core.replica_id, index)
        log.info("group %d: replica %d was removed, as of index %d", group_id, tombstone.replica_id, index)
        if failpoints.armed is not None:
            failpoints.armed(failpoints.REPLICA_BEFORE_REMOVE)
        engine.let_go(replica, f"this replica was removed from its group, as of index {index}")
        self.tombstones[group_id] = tombstone
        self._going.add(group_id)

        def removed() -> None:
            engine.ondisk.left(replica)
            engine.shelving.left(group_id)
            self._delete_leftovers(group_id)

        engine.writer.write(lambda batch: batch.remove_replica(tombstone), removed)
        engine.wake()
        self.left(replica)

    def _delete_leftovers(self, group_id: GroupId) -> None:
        """The tombstone is on disk, and every write of before: nothing can be added to what is left any more."""
        if failpoints.armed is not None:
            failpoints.armed(failpoints.REPLICA_AFTER_REMOVE)
        engine = self._engine
        leftovers = engine.store.read_leftovers(group_id, _DELETED_AT_ONCE)
        if leftovers:
            engine.writer.write(
                lambda batch: batch.delete_leftovers(leftovers), lambda: self._delete_leftovers(group_id)
            )
            engine.wake()
        else:
            self._gone(group_id)

    def _gone(self, group_id: GroupId) -> None:
        self._going.discard(group_id)
        wanted = self._wanted.pop(group_id, None)
        if wanted is not None:
            self._create("a leader", wanted)
