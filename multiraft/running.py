"""What runs between a node's start and its end: the parts, put together in the order in which they need each other.

Rules of this file: it names no concrete store or transport; whatever was started is ended by `close`, in the reverse
order; what the transport reports is passed on to the part that it concerns.
"""

from __future__ import annotations

import asyncio
import logging
from asyncio import Future
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from random import Random
from typing import Any, Final

from multiraft.compiled import COMPILED
from multiraft.config import NodeConfig
from multiraft.containment import Containment
from multiraft.engine.engine import Engine
from multiraft.engine.quarantine import Quarantine
from multiraft.engine.replica import Replica
from multiraft.errors import InvalidRequest, MultiRaftError, NotRunning, StorageError, UnreadableStore
from multiraft.forming import Forming
from multiraft.forwarding import Forwarding
from multiraft.free_space import FreeSpace
from multiraft.healing import Healing
from multiraft.hosting import Hosting
from multiraft.messages import FormingMessage, NodeMessage
from multiraft.ports import Clocks, FileSource, Space, Store, Transport
from multiraft.readmission import READMIT_TIMEOUT_S, Readmission
from multiraft.reporting import Reporting
from multiraft.services import Services
from multiraft.shard import Directory, Router, Shard
from multiraft.standing import Standing
from multiraft.status import damaged_groups, engine_state, package_version, process_use
from multiraft.tuning import tune_process
from multiraft.types import (
    DIRECTORY_GROUP,
    NOBODY,
    Damage,
    GroupId,
    Identity,
    Membership,
    NodeId,
    StoredReplica,
    generation_name,
)
from multiraft.watchdog import WATCHDOG

LEADER_CALL: Final = "node.leader"
_LOOK_S: Final = 1.0
log: Final = logging.getLogger("multiraft.node")

StoreOpener = Callable[[NodeConfig, asyncio.AbstractEventLoop], Store]
TransportMaker = Callable[[NodeConfig, Identity, int, Random], Transport]


@dataclass(slots=True)
class Setup:
    """What a node was made with, and what its user has declared and hooked up.

    calls       handlers of peers' calls, by method
    role_hooks  whom to tell when a group's replica here begins or ceases to lead
    membership_hooks  whom to tell when another membership takes effect for a group's replica here
    applied_hooks     whom to tell when a group's replica here has applied more
    loop        what the parts schedule their work on; None: the running loop
    salvage     makes a database whole that cannot be read in places; None: it is refused
    space       the room under the store; None: it is not looked at
    revives     whether the node comes back by itself after its disk was full
    watched     whether a watchdog names what holds the loop; not where time is not the machine's
    """

    config: NodeConfig
    open_store: StoreOpener
    make_transport: TransportMaker
    clocks: Clocks
    rng: Random
    services: Services
    calls: dict[str, Callable[[bytes], bytes]] = field(default_factory=dict)
    role_hooks: dict[GroupId, list[Callable[[bool], None]]] = field(default_factory=dict)
    membership_hooks: dict[GroupId, list[Callable[[Membership], None]]] = field(default_factory=dict)
    applied_hooks: dict[GroupId, list[Callable[[], None]]] = field(default_factory=dict)
    loop: asyncio.AbstractEventLoop | None = None
    salvage: Callable[[NodeConfig], object] | None = None
    space: Space | None = None
    revives: bool = True
    watched: bool = False


class Running:
    """The parts of a node between its start and its end. Also what the transport reports to.

    ended  called once when a failed write has ended the node: first with the error, then, when all is closed, again
    """

    def __init__(self, setup: Setup, ended: Callable[[MultiRaftError, bool], None]) -> None:
        self._setup = setup
        self._ended = ended
        self._config = setup.config
        self._loop = setup.loop if setup.loop is not None else asyncio.get_running_loop()
        # In the order in which they came: that of a set would depend on addresses.
        self._changed: dict[Future[None], None] = {}
        self._tasks: list[asyncio.Task[None]] = []
        self._unready_at: dict[str, int] = {}
        self._closed = False
        self._failed = False
        self.directory = Directory()
        self.store: Store | None = None
        self.transport: Transport | None = None
        self._began_s = setup.clocks.real()

    # ------------------------------------------------------------------------------------------- start and end

    async def start(self) -> None:
        setup, config = self._setup, self._config
        store, stored, damages = await self._open()
        if not store.closed_orderly and store.incarnation > 1:
            log.warning("node %s was not stopped orderly; its log is taken as the disk has it", config.node_id)
        self.transport = transport = setup.make_transport(config, store.identity, store.incarnation, setup.rng)
        self.engine = Engine(
            config.node_id,
            [name for name in config.members if name != config.node_id],
            store,
            transport,
            config.limits,
            setup.rng,
            setup.clocks,
            self._loop,
            self._role_changed,
            self._membership_changed,
            self._engine_failed,
        )
        self.engine.observing.applied_hooks = setup.applied_hooks
        self.standing = Standing(store, transport, self.engine.writer)
        self.forwarding = Forwarding(config.node_id, self.engine, transport, self._loop)
        for method, handler in setup.calls.items():
            self.forwarding.on_call(method, handler)
        self.free_space = FreeSpace(config.node_id, setup.space, self.engine, self.forwarding, config.limits)
        self.router = Router(self.forwarding, config.limits, setup.rng, self._loop.time)
        self.reporting = Reporting(self.router)
        self.router.add_group(DIRECTORY_GROUP, sorted(config.members))
        self.hosting = Hosting(
            config.node_id, self.engine, self.directory, setup.services.machines, self._replica_opened
        )
        self.engine.residents.quarantine = Quarantine(damages)
        self.healing = Healing(config.node_id, self.engine.residents, self.router)
        self.containment = Containment(
            config.node_id, self.engine, self.forwarding, self.engine.residents.make_machine, self._loop
        )
        self.hosting.check(stored)
        self.forming = Forming(store, config.members, setup.rng, self._send_forming, self._formed)
        self.forming.check()
        # What a snapshot tells the directory is acted on only when all that is here already has been taken up.
        self.hosting.open_stored(stored)
        self.directory.subscribe(self._directory_changed)
        await transport.start(self)
        self.engine.begin()
        if setup.watched:
            WATCHDOG.watch(self.engine.applying.doing, config.limits.slow_command_ms / 1e3)
        self.forming.begin()
        self._directory_changed(self.directory)
        setup.services.bind(self.router)
        self._tasks.append(
            self._loop.create_task(
                setup.services.declare_in_directory(config.node_id, self.router, self.directory, self._wake),
                name="declare services",
            )
        )
        self._tasks.append(self._loop.create_task(self.reporting.run(), name="report memberships"))
        if damages:
            self._tasks.append(self._loop.create_task(self.healing.run(), name="replace damaged replicas"))
        if setup.salvage is not None:
            self._tasks.append(self._loop.create_task(self._watch_reads(store), name="watch the store's reads"))
        if setup.space is not None:
            self._tasks.append(self._loop.create_task(self.free_space.run(), name="watch the free space"))
        if config.tune_gc:
            tune_process()

    async def _open(self) -> tuple[Store, list[StoredReplica], list[Damage]]:
        """Open the store and read all replicas; a database that cannot be read in places is made whole first."""
        setup, config = self._setup, self._config
        try:
            self.store = store = setup.open_store(config, self._loop)
            return store, *store.load_sound()
        except UnreadableStore as problem:
            if setup.salvage is None:
                raise
            log.error("node %s leaves out what cannot be read: %s", config.node_id, problem)
        if self.store is not None:
            await self.store.close()
            self.store = None
        setup.salvage(config)
        self.store = store = setup.open_store(config, self._loop)
        return store, *store.load_sound()

    async def _watch_reads(self, store: Store) -> None:
        """End the node when its database turns out to be damaged in places: its next start leaves those out."""
        while not store.unreadable:  # noqa: ASYNC110 - whoever reads may find it, anywhere
            await asyncio.sleep(_LOOK_S)
        if not self._failed and not self._closed:
            problem = UnreadableStore(f"the database cannot be read in places: {store.unreadable}")
            self.engine.stop(f"the node has ended: {problem}")
            self._engine_failed(problem)

    @property
    def failed(self) -> bool:
        """Whether it has ended by itself."""
        return self._failed

    async def close(self, reason: str) -> None:
        """End all parts, in the order in which they depend on each other. Idempotent."""
        if self._closed:
            return
        self._closed = True
        for task in self._tasks:
            task.cancel()
        try:
            await asyncio.gather(*self._tasks, return_exceptions=True)
            if hasattr(self, "containment"):
                await self.containment.close()
        finally:
            await self._close_parts(reason)

    async def _close_parts(self, reason: str) -> None:
        """Whatever goes wrong with one part, the store's lock must not outlive this call."""
        try:
            if hasattr(self, "engine"):
                WATCHDOG.forget(self.engine.applying.doing)
                self.engine.stop(reason)
            if hasattr(self, "router"):
                self.router.stop()
            self._wake()
            if self.transport is not None:
                await self.transport.close()
        finally:
            if self.store is not None:
                await self.store.close()

    def abandon(self) -> None:
        """Stop acting, at once."""
        self._closed = True
        for task in self._tasks:
            task.cancel()
        WATCHDOG.forget(self.engine.applying.doing)
        self.containment.abandon()
        self.engine.stop("the node was killed")
        self.router.stop()
        self._wake()

    def _engine_failed(self, error: Exception) -> None:
        """The engine has ended: a write failed, and the store cannot be trusted any more, or it met a bug."""
        self._failed = True
        bug = f"a bug ended the node: {type(error).__name__}: {error}; its log has the details"
        failure = error if isinstance(error, MultiRaftError) else MultiRaftError(bug)
        self._setup.services.bind(None)
        self._ended(failure, False)
        for replica in self.engine.replicas.values():
            if replica.told_leading:
                replica.told_leading = False
                for hook in list(self._setup.role_hooks.get(replica.group_id, ())):
                    self._loop.call_soon(hook, False)
        self._ending = self._loop.create_task(self._close_failed(failure), name="close after a failed write")

    async def _close_failed(self, failure: MultiRaftError) -> None:
        try:
            await self.close("the node has failed")
        finally:
            self._ended(failure, True)

    # ------------------------------------------------------------------------------------------------ readiness

    def _wake(self) -> None:
        changed, self._changed = self._changed, {}
        for future in changed:
            if not future.done():
                future.set_result(None)

    def unready(self, name: str) -> str | None:
        """Say why the service cannot serve; None when every shard has a leader, as far as this node knows."""
        service = self.router.map.services.get(name)
        refused = "; ".join(f"node {peer!r}: {why}" for peer, why in sorted(self.standing.refusals.items()))
        if service is None and (self.forming.refusal or refused):
            return self.forming.refusal or f"peers refuse this node: {refused}"
        if service is None:
            identity = self.store.identity if self.store is not None else None
            if identity is not None and not identity.formed:
                waiting = ", ".join(self.forming.missing) or "the proposal of the first member"
                return f"the cluster is not formed yet: waiting for {waiting}"
            leader = self.forwarding.leader_hint(DIRECTORY_GROUP)
            return f"service {name!r} is not in the directory yet (which is led by {leader or 'nobody'})"
        unready = self._unready_shard(name, service.shards)
        if unready is not None:
            return unready
        if name not in self._setup.services.accepted:
            return f"the directory has not confirmed yet that service {name!r} is declared as it knows it"
        return None

    def _unready_shard(self, name: str, shards: tuple[Shard, ...]) -> str | None:
        """Say which shard is not served yet. Looks first where it found one the last time: there may be very many."""
        replicas, groups, here = self.engine.replicas, self.router.map.groups, self._config.node_id
        count, began = len(shards), self._unready_at.get(name, 0)
        for place in range(began, began + count):
            shard = shards[place % count]
            replica = replicas.get(shard.group_id)
            if replica is not None and replica.leader_node is None:
                problem = "has no leader"
            elif replica is None and here in groups[shard.group_id]:
                problem = "is being created"
            else:
                continue
            self._unready_at[name] = place % count
            return f"shard {shard.shard_id} of {name!r} (group {shard.group_id}) {problem}"
        return None

    async def wait_ready(self, name: str) -> None:
        """Return when `unready` has nothing to say and the groups that live elsewhere have leaders, too."""
        while True:
            refused = self._setup.services.refused.get(name)
            if refused is not None:
                raise refused
            if self._closed:
                raise NotRunning("the node is stopping")
            if self.unready(name) is None:
                break
            future: Future[None] = self._loop.create_future()
            self._changed[future] = None
            await future
        for shard in self.router.map.services[name].shards:
            if shard.group_id not in self.engine.replicas:
                await self._wait_leader_elsewhere(shard.group_id)

    async def _wait_leader_elsewhere(self, group_id: GroupId) -> None:
        members = self.router.map.groups[group_id]
        while not self._closed:
            for member in members:
                try:
                    body = group_id.to_bytes(8, "big")
                    if await self.forwarding.peer_call(member, LEADER_CALL, body, 1.0):
                        return
                except MultiRaftError as problem:
                    log.debug("group %d: %s does not know its leader: %s", group_id, member, problem)
            await asyncio.sleep(0.1)
        raise NotRunning("the node is stopping")

    def _role_changed(self, replica: Replica) -> None:
        self._wake()
        hooks = self._setup.role_hooks.get(replica.group_id)
        if hooks:
            leads = replica.leads
            if leads != replica.told_leading:
                replica.told_leading = leads
                for hook in list(hooks):
                    self._loop.call_soon(hook, leads)
        else:
            replica.told_leading = replica.leads
        if replica.leads:
            self.reporting.leads(replica.group_id, replica.core.membership)

    def _membership_changed(self, replica: Replica) -> None:
        self._wake()
        if replica.leads:
            self.reporting.leads(replica.group_id, replica.core.membership)
        for hook in list(self._setup.membership_hooks.get(replica.group_id, ())):
            self._loop.call_soon(hook, replica.core.membership)

    def _replica_opened(self, replica: Replica) -> None:
        self._wake()

    def _directory_changed(self, directory: Directory) -> None:
        self.router.update(directory.map)
        self.hosting.reconcile(directory.map)
        if directory.readmissions:
            self._loop.call_soon(self._form, self._follow_readmissions)
        self._wake()

    # -------------------------------------------------------------------------------------------------- forming

    def _send_forming(self, node_id: NodeId, message: FormingMessage) -> bool:
        return self.transport is not None and self.transport.send_forming(node_id, message)

    def _follow_readmissions(self) -> None:
        directory, store = self.directory, self.store
        if self.forming.bind_stores(directory.stores, directory.readmissions) and store is not None:
            if self.transport is not None:
                self.transport.set_identity(store.identity, store.incarnation)
            self._wake()

    def _formed(self, identity: Identity) -> None:
        if self.transport is not None and self.store is not None:
            if self.store.incarnation != self.engine.liveness.incarnation:
                self.engine.liveness.join_as(self.store.incarnation)
            self.transport.set_identity(identity, self.store.incarnation)
        self.hosting.found_directory(identity)
        self._wake()

    def _form(self, step: Callable[[], None]) -> None:
        """Forming writes on its own, beside the engine's writer; that a write failed ends the node all the same."""
        if self._failed or self._closed:
            return
        try:
            step()
        except StorageError as problem:
            self.engine.stop(f"the node has ended: {problem}")
            self._engine_failed(problem)

    def unformed_peer(self, node_id: NodeId, store_id: bytes) -> None:
        self._form(partial(self.forming.unformed_peer, node_id, store_id))

    def refused_by(self, node_id: NodeId, kind: str, why: str) -> None:
        self._form(partial(self.standing.refused_by, node_id, kind, why))
        self._wake()

    def forming_received(self, node_id: NodeId, message: FormingMessage) -> None:
        self._form(partial(self.forming.received, node_id, message))

    # ------------------------------------------------------------------------------------- from the transport

    def _met(self, node_id: NodeId) -> None:
        self.forming.peer_formed(node_id)
        if not self._failed and self.standing.met(node_id):
            self.engine.wake()

    def peer_connected(self, node_id: NodeId, incarnation: int) -> None:
        self._met(node_id)
        self.engine.peer_connected(node_id, incarnation)

    def peer_disconnected(self, node_id: NodeId) -> None:
        self.engine.peer_disconnected(node_id)

    def peer_heard(self, node_id: NodeId, incarnation: int) -> None:
        self._met(node_id)
        self.engine.peer_heard(node_id, incarnation)

    def messages_received(self, node_id: NodeId, incarnation: int, messages: Sequence[NodeMessage]) -> None:
        self.engine.messages_received(node_id, incarnation, messages)

    def request_received(
        self, node_id: NodeId, method: str, body: bytes, timeout_s: float, reply: Callable[[bytes], None]
    ) -> None:
        self.forwarding.request_received(node_id, method, body, timeout_s, reply)

    def file_asked(self, node_id: NodeId, name: str, offset: int) -> FileSource:
        return self.engine.transfers.serving.asked(node_id, name)

    def answer_store(self, body: bytes) -> bytes:
        """Say which replica of a group lives here, and in which store; see readmission.STORE_CALL."""
        replica = self.engine.replicas.get(int.from_bytes(body, "big"))
        replica_id = replica.core.replica_id if replica is not None else NOBODY
        return replica_id.to_bytes(8, "big") + (self.store.identity.store_id if self.store is not None else b"")

    async def readmit(self, node_id: NodeId, timeout_s: float | None) -> None:
        """See Node.readmit."""
        members, own = self._config.members, self._config.node_id
        if self.store is None:
            raise NotRunning("the node is not running")
        if node_id == own:
            raise InvalidRequest(f"node {node_id!r} cannot readmit itself: call it on another node")
        if node_id not in members:
            raise InvalidRequest(f"there is no member {node_id!r} (there are: {', '.join(sorted(members))})")
        if timeout_s is not None and not timeout_s > 0:
            raise InvalidRequest(f"timeout_s = {timeout_s!r}: must be a number of seconds above 0")
        timeout_s = READMIT_TIMEOUT_S if timeout_s is None else timeout_s
        parts = (self.store, self.engine, self.forming, self.forwarding, self.directory, self.router)
        await Readmission(node_id, *parts, timeout_s).run()

    # --------------------------------------------------------------------------------------------------- looking

    def damaged_groups(self) -> list[GroupId]:
        """Return the groups whose replica here is damaged, as far as it is known which they are."""
        return damaged_groups(self.engine, self.router.map)

    def status(self) -> dict[str, Any]:
        if self.store is None or self.transport is None:
            raise NotRunning("the node is not running")
        identity, store = self.store.identity, self.store
        return {
            "node_id": self._config.node_id,
            "incarnation": store.incarnation,
            "cluster_id": identity.cluster_id.hex(),
            "store_id": identity.store_id.hex(),
            "generation": generation_name(identity.generation),
            "uptime_s": round(self._setup.clocks.real() - self._began_s, 3),
            "version": package_version(),
            "compiled": COMPILED,
            "listen": self._config.listen,
            "started_orderly": store.closed_orderly,
            "process": process_use(),
            "refused_by": dict(self.standing.refusals),
            "disk": self.free_space.state(),
            **engine_state(self.engine, dict(self._config.members), store, self.transport),
        }
