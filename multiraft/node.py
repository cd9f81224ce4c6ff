"""A node: one process's share of a cluster, and the place where all parts are put together.

    Node ── Services (what is declared) ── Router ── Forwarding ─┐
         ── Forming (one cluster, once)                          ├── Engine ── Store (LevelDB), Transport (aiohttp)
         ── Hosting (which replicas live here) ──────────────────┘

Rules of this file: it alone names the concrete store and transport; it decides nothing that a part could decide; a
node runs once: after `stop`, or after a failed write, make a new one on the same directory.
"""

from __future__ import annotations

import asyncio
import logging
import time
from asyncio import Future
from collections.abc import Awaitable, Callable, Sequence
from importlib.metadata import PackageNotFoundError, version
from random import Random
from types import TracebackType
from typing import Any, Final, Self, TypeVar

from multiraft.config import Limits, NodeConfig
from multiraft.engine.engine import Engine
from multiraft.engine.replica import Replica
from multiraft.errors import InvalidRequest, MultiRaftError, NotReady, NotRunning, StorageError
from multiraft.forming import Forming
from multiraft.forwarding import Forwarding
from multiraft.group import CallKind, Group, Unsubscribe
from multiraft.hosting import Hosting
from multiraft.messages import FormingMessage, LivenessMessage, RaftMessage
from multiraft.ports import Clock, Store, Transport
from multiraft.services import BytesService, Services
from multiraft.shard import Directory, Router, ShardMap
from multiraft.shard.partition import Mode
from multiraft.statemachine import BytesStateMachine, StateMachine
from multiraft.status import group_counts, peer_states, process_use, read_log, replica_state, shard_of
from multiraft.storage import open_leveldb
from multiraft.transport import AiohttpTransport
from multiraft.types import DIRECTORY_GROUP, GroupId, Identity, Membership, NodeId

M = TypeVar("M", bound=StateMachine)
_LEADER_CALL: Final = "node.leader"
log: Final = logging.getLogger("multiraft.node")

StoreOpener = Callable[[NodeConfig, asyncio.AbstractEventLoop], Store]
TransportMaker = Callable[[NodeConfig, Identity, int, Random], Transport]


def boottime() -> float:
    """Seconds that never go back, and that pass while the machine sleeps."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def _open_leveldb(config: NodeConfig, loop: asyncio.AbstractEventLoop) -> Store:
    return open_leveldb(config.data_dir, config.node_id, config.limits, loop)


def _aiohttp_transport(config: NodeConfig, identity: Identity, incarnation: int, rng: Random) -> Transport:
    return AiohttpTransport(config, identity, incarnation, rng)


class Node:
    """One node of a cluster.

        node = Node(NodeConfig(node_id="a", data_dir="data/a", listen="127.0.0.1:7001", members={...}))
        counters = node.service("counters", Counters, initial_shards=16, replicas=3)
        async with node:
            await node.ready("counters")
            await counters.add("hits")

    config           see NodeConfig
    open_store       another store than LevelDB; gets the configuration and the loop
    make_transport   another transport than aiohttp
    clock            seconds that never go back, running also while the machine sleeps
    wall_clock       seconds since 1970, for the stamps that commands carry
    rng              where chance comes from; None: the operating system's
    """

    def __init__(
        self,
        config: NodeConfig,
        *,
        open_store: StoreOpener = _open_leveldb,
        make_transport: TransportMaker = _aiohttp_transport,
        clock: Clock = boottime,
        wall_clock: Clock = time.time,
        rng: Random | None = None,
    ) -> None:
        self.config = config
        self._open_store = open_store
        self._make_transport = make_transport
        self._clock = clock
        self._wall_clock = wall_clock
        self._rng = rng if rng is not None else Random()
        self._services = Services(tuple(config.members))
        self._calls: dict[str, Callable[[bytes], bytes]] = {_LEADER_CALL: self._answer_leader}
        self._running: _Running | None = None
        self._used = False
        self._failure: Exception | None = None
        self._ended = asyncio.Event()
        self._role_hooks: dict[GroupId, list[Callable[[bool], None]]] = {}

    @property
    def node_id(self) -> NodeId:
        return self.config.node_id

    @property
    def limits(self) -> Limits:
        return self.config.limits

    # ---------------------------------------------------------------------------------------------- declaring

    def service(
        self,
        name: str,
        machine: type[M],
        *,
        initial_shards: int = 16,
        replicas: int = 3,
        mode: Mode = "hash",
        boundaries: Sequence[bytes] = (),
    ) -> type[M]:
        """Declare a service before the node starts; return its handle, on which commands and queries are called.

        name            letters, digits, `.`, `_`, `-`; the same on every node
        machine         the class of its replicas; made without arguments, once per shard
        initial_shards  how many shards it begins with (hash mode)
        replicas        how many nodes keep each shard; at most as many as there are members
        mode            "hash" spreads keys evenly, "range" keeps neighbouring keys together
        boundaries      range mode: the first key of each shard but the first, ascending

        Raises ConfigError (a wrong setting, a name declared twice, or the node has started already), TypeError (not
        a StateMachine).
        """
        self._check_unused(name)
        return self._services.declare(name, machine, initial_shards, replicas, mode, boundaries)

    def bytes_service(
        self,
        name: str,
        machine: type[BytesStateMachine],
        *,
        initial_shards: int = 16,
        replicas: int = 3,
        mode: Mode = "hash",
        boundaries: Sequence[bytes] = (),
    ) -> BytesService:
        """Declare a service whose machine reads and writes bytes. Otherwise as `service`."""
        self._check_unused(name)
        return self._services.declare_bytes(name, machine, initial_shards, replicas, mode, boundaries)

    def _check_unused(self, name: str) -> None:
        if self._used:
            raise NotReady(f"service {name!r}: declare services before the node starts")

    # ------------------------------------------------------------------------------------------------ running

    async def start(self) -> None:
        """Open the store, listen, dial the peers, and take part. Returns when the node runs, not when it has leaders.

        Raises StartError (StorageError for the data directory), with one line that says what to do.
        """
        if self._used:
            raise NotRunning("a node starts once; make a new one on the same directory")
        self._used = True
        running = _Running(self)
        try:
            await running.start()
        except BaseException:
            await running.close("the node did not start")
            raise
        self._running = running

    async def stop(self) -> None:
        """Stop: end every waiting call, close connections, join the writer, close the store. Idempotent."""
        running, self._running = self._running, None
        if running is not None:
            self._services.bind(None)
            await running.close("the node is stopping")
        self._ended.set()

    def abandon(self) -> None:
        """End at once, as a killed process does: nothing is sent, written or closed. For simulations."""
        running, self._running = self._running, None
        self._services.bind(None)
        if running is not None:
            running.abandon()
        self._ended.set()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    async def failed(self) -> None:
        """Wait until the node ends: returns on `stop`, raises the error that ended it (StorageError: a failed write)."""
        await self._ended.wait()
        if self._failure is not None:
            raise self._failure

    async def ready(self, name: str | None = None, timeout_s: float = 30.0) -> None:
        """Wait until every shard of service `name` has a leader; None: of all services declared here.

        Raises NotReady (which shard, and why) after `timeout_s`, ConfigError when the declaration was refused.
        """
        running = self._here()
        names = [name] if name is not None else self._services.names()
        for one in names:
            if one not in self._services:
                raise InvalidRequest(f"service {one!r} is not declared on this node")
        try:
            async with asyncio.timeout(timeout_s):
                for one in names:
                    await running.wait_ready(one)
        except TimeoutError:
            reasons = [reason for one in names if (reason := running.unready(one)) is not None]
            said = "; ".join(reasons) or "leaders are changing"
            raise NotReady(f"not ready within {timeout_s:g} s: {said}") from None

    def _here(self) -> _Running:
        if self._running is None:
            if self._failure is not None:
                raise NotRunning(f"the node has ended: {self._failure}")
            raise NotRunning("the node is not running; start it first")
        return self._running

    # -------------------------------------------------------------------------------------------------- groups

    @property
    def shard_map(self) -> ShardMap:
        """The newest shard map that this node knows. Raises NotRunning."""
        return self._here().router.map

    @property
    def router(self) -> Router:
        """Raises NotRunning."""
        return self._here().router

    def group(self, group_id: GroupId) -> Group:
        """Return the handle of a group, whether or not this node has a replica of it."""
        return Group(group_id, self)

    def call(self, group_id: GroupId, kind: CallKind, body: bytes, timeout_s: float | None) -> Awaitable[bytes]:
        """Bring `body` to the group's leader; see Group.propose and Group.read."""
        return self._here().router.call(group_id, kind, body, timeout_s)

    def leader(self, group_id: GroupId) -> NodeId | None:
        """Return the node that leads the group, as far as this node's replica knows."""
        return self._here().forwarding.leader_hint(group_id)

    def leads(self, group_id: GroupId) -> bool:
        """Return whether this node's replica leads the group."""
        return self._here().forwarding.leads(group_id)

    def membership(self, group_id: GroupId) -> Membership:
        """Return the membership of this node's replica of the group. Raises NotReady when it has none."""
        return self._replica(group_id).core.membership

    def subscribe_membership(self, group_id: GroupId, changed: Callable[[Membership], None]) -> Unsubscribe:
        """Have `changed` called at each new membership. Raises NotReady when this node has no replica."""
        self._replica(group_id)
        return lambda: None

    def subscribe_role(self, group_id: GroupId, changed: Callable[[bool], None]) -> Unsubscribe:
        """Have `changed` called when this node's replica begins (True; at once if it leads) or ceases (False) to lead."""
        hooks = self._role_hooks.setdefault(group_id, [])
        hooks.append(changed)
        if self._running is not None and self._running.forwarding.leads(group_id):
            changed(True)
        return lambda: hooks.remove(changed) if changed in hooks else None

    def transfer_leadership(self, group_id: GroupId, to: NodeId) -> None:
        """Ask the group's replica on node `to` to take over. Returns at once; given up after an election timeout.

        Until then nothing can be proposed. Raises NotLeader (this node does not lead the group), NotReady (no voter
        of the group is on `to`), NotRunning.
        """
        self._replica(group_id)
        self._here().engine.transfer_leadership(group_id, to)

    def _replica(self, group_id: GroupId) -> Replica:
        replica = self._here().engine.replicas.get(group_id)
        if replica is None:
            raise NotReady(f"group {group_id} has no replica on node {self.node_id!r}")
        return replica

    def local_machine(self, group_id: GroupId) -> object:
        """Return the user's state machine object of this node's replica, for inspection only. Raises NotReady."""
        self._replica(group_id)
        return self._here().hosting.objects[group_id]

    # -------------------------------------------------------------------------------------------------- looking

    def status(self) -> dict[str, Any]:
        """Describe this node: peers, groups, loop, writer, proposals, counters. Raises NotRunning."""
        return self._here().status()

    def groups_status(self) -> list[dict[str, Any]]:
        """Describe every replica on this node, by group id. Raises NotRunning."""
        running = self._here()
        shards = running.shards_by_group()
        return [
            replica_state(replica, self.node_id, shards.get(group_id))
            for group_id, replica in sorted(running.engine.replicas.items())
        ]

    def group_status(self, group_id: GroupId) -> dict[str, Any]:
        """Describe one replica on this node. Raises KeyError when there is none, NotRunning."""
        running = self._here()
        replica = running.engine.replicas[group_id]
        return replica_state(replica, self.node_id, shard_of(running.router.map, group_id))

    def read_log(self, group_id: GroupId, last_n: int) -> list[dict[str, Any]]:
        """Describe the last `last_n` entries of this node's replica. Raises KeyError, CorruptRecord, NotRunning."""
        return read_log(self._here().engine.replicas[group_id], last_n)

    def on_call(self, method: str, handler: Callable[[bytes], bytes]) -> None:
        """Answer peers' calls of `method` with what `handler(body)` returns. Before or after the start."""
        self._calls[method] = handler
        if self._running is not None:
            self._running.forwarding.on_call(method, handler)

    async def peer_call(self, node_id: NodeId, method: str, body: bytes, timeout_s: float) -> bytes:
        """Ask another node (or this one) what was registered there with `on_call`.

        Raises Unreachable, OutcomeUnknown, InvalidRequest, NotRunning.
        """
        return await self._here().forwarding.peer_call(node_id, method, body, timeout_s)

    def _answer_leader(self, body: bytes) -> bytes:
        return (self.leader(int.from_bytes(body, "big")) or "").encode()


class _Running:
    """The parts of a node between its start and its end. Also what the transport reports to."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._config = node.config
        self._loop = asyncio.get_running_loop()
        self._changed: set[Future[None]] = set()
        self._tasks: list[asyncio.Task[None]] = []
        self._closed = False
        self.directory = Directory()
        self.store: Store | None = None
        self.transport: Transport | None = None
        self._began_s = node._clock()

    # ------------------------------------------------------------------------------------------- start and end

    async def start(self) -> None:
        node, config = self._node, self._config
        self.store = store = node._open_store(config, self._loop)
        stored = store.load_replicas()
        if not store.closed_orderly and store.incarnation > 1:
            log.warning("node %s was not stopped orderly; its log is taken as the disk has it", config.node_id)
        self.transport = transport = node._make_transport(config, store.identity, store.incarnation, node._rng)
        self.engine = Engine(
            config.node_id,
            [name for name in config.members if name != config.node_id],
            store,
            transport,
            config.limits,
            node._rng,
            node._clock,
            node._wall_clock,
            self._loop,
            self._role_changed,
            self._write_failed,
        )
        self.forwarding = Forwarding(config.node_id, self.engine, transport, self._loop)
        for method, handler in node._calls.items():
            self.forwarding.on_call(method, handler)
        self.router = Router(self.forwarding, config.limits, node._rng)
        self.router.add_group(DIRECTORY_GROUP, sorted(config.members))
        self.hosting = Hosting(
            config.node_id, self.engine, self.directory, node._services.machines, self._replica_opened
        )
        self.hosting.check(stored)
        self.forming = Forming(store, config.members, node._rng, self._send_forming, self._formed)
        self.forming.check()
        self.directory.subscribe(self._directory_changed)
        self.hosting.open_stored(stored)
        await transport.start(self)
        self.engine.begin()
        self.forming.begin()
        node._services.bind(self.router)
        self._tasks.append(
            self._loop.create_task(
                node._services.declare_in_directory(self.router, self.directory, self._wake), name="declare services"
            )
        )

    async def close(self, reason: str) -> None:
        """End all parts, in the order in which they depend on each other. Idempotent."""
        if self._closed:
            return
        self._closed = True
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if hasattr(self, "engine"):
            self.engine.stop(reason)
        if self.transport is not None:
            await self.transport.close()
        if self.store is not None:
            await self.store.close()
        self._wake()

    def abandon(self) -> None:
        """Stop acting, at once."""
        self._closed = True
        for task in self._tasks:
            task.cancel()
        self.engine.stop("the node was killed")
        self._wake()

    def _write_failed(self, error: Exception) -> None:
        """A failed write ends the node: what the store says from now on cannot be trusted."""
        node = self._node
        failure = error if isinstance(error, MultiRaftError) else StorageError(f"a write failed: {error}")
        node._failure = failure
        node._services.bind(None)
        node._running = None
        task = self._loop.create_task(self._close_failed(), name="close after a failed write")
        self._ending = task

    async def _close_failed(self) -> None:
        try:
            await self.close("a write to the store failed")
        finally:
            self._node._ended.set()

    # ------------------------------------------------------------------------------------------------ readiness

    def _wake(self) -> None:
        changed, self._changed = self._changed, set()
        for future in changed:
            if not future.done():
                future.set_result(None)

    def unready(self, name: str) -> str | None:
        """Say why the service cannot serve; None when every shard has a leader, as far as this node knows."""
        service = self.router.map.services.get(name)
        if service is None:
            identity = self.store.identity if self.store is not None else None
            if identity is not None and not identity.formed:
                waiting = ", ".join(self.forming.missing) or "the proposal of the first member"
                return f"the cluster is not formed yet: waiting for {waiting}"
            leader = self.forwarding.leader_hint(DIRECTORY_GROUP)
            return f"service {name!r} is not in the directory yet (which is led by {leader or 'nobody'})"
        for shard in service.shards:
            replica = self.engine.replicas.get(shard.group_id)
            if replica is not None and replica.leader_node is None:
                return f"shard {shard.shard_id} of {name!r} (group {shard.group_id}) has no leader"
            if replica is None and self._config.node_id in self.router.map.groups[shard.group_id]:
                return f"shard {shard.shard_id} of {name!r} (group {shard.group_id}) is being created"
        if name not in self._node._services.accepted:
            return f"the directory has not confirmed yet that service {name!r} is declared as it knows it"
        return None

    async def wait_ready(self, name: str) -> None:
        """Return when `unready` has nothing to say and the groups that live elsewhere have leaders, too."""
        while True:
            refused = self._node._services.refused.get(name)
            if refused is not None:
                raise refused
            if self._closed:
                raise NotRunning("the node is stopping")
            if self.unready(name) is None:
                break
            future: Future[None] = self._loop.create_future()
            self._changed.add(future)
            await future
        for shard in self.router.map.services[name].shards:
            if shard.group_id not in self.engine.replicas:
                await self._wait_leader_elsewhere(shard.group_id)

    async def _wait_leader_elsewhere(self, group_id: GroupId) -> None:
        members = self.router.map.groups[group_id]
        while True:
            for member in members:
                try:
                    body = group_id.to_bytes(8, "big")
                    if await self.forwarding.peer_call(member, _LEADER_CALL, body, 1.0):
                        return
                except MultiRaftError as problem:
                    log.debug("group %d: %s does not know its leader: %s", group_id, member, problem)
            await asyncio.sleep(0.1)

    def _role_changed(self, replica: Replica) -> None:
        self._wake()
        hooks = self._node._role_hooks.get(replica.group_id)
        if hooks:
            leads = replica.leads
            if leads != replica.told_leading:
                replica.told_leading = leads
                for hook in list(hooks):
                    self._loop.call_soon(hook, leads)
        else:
            replica.told_leading = replica.leads

    def _replica_opened(self, replica: Replica) -> None:
        self._wake()

    def _directory_changed(self, directory: Directory) -> None:
        self.router.update(directory.map)
        self.hosting.reconcile(directory.map)
        self._wake()

    # -------------------------------------------------------------------------------------------------- forming

    def _send_forming(self, node_id: NodeId, message: FormingMessage) -> bool:
        return self.transport is not None and self.transport.send_forming(node_id, message)

    def _formed(self, identity: Identity) -> None:
        if self.transport is not None:
            self.transport.set_cluster(identity.cluster_id)
        self.hosting.found_directory(identity)
        self._wake()

    def unformed_peer(self, node_id: NodeId, store_id: bytes) -> None:
        self.forming.unformed_peer(node_id, store_id)

    def forming_received(self, node_id: NodeId, message: FormingMessage) -> None:
        self.forming.received(node_id, message)

    # ------------------------------------------------------------------------------------- from the transport

    def peer_connected(self, node_id: NodeId, incarnation: int) -> None:
        self.engine.peer_connected(node_id, incarnation)

    def peer_disconnected(self, node_id: NodeId) -> None:
        self.engine.peer_disconnected(node_id)

    def peer_heard(self, node_id: NodeId, incarnation: int) -> None:
        self.engine.peer_heard(node_id, incarnation)

    def messages_received(
        self, node_id: NodeId, incarnation: int, messages: Sequence[RaftMessage | LivenessMessage]
    ) -> None:
        self.engine.messages_received(node_id, incarnation, messages)

    def request_received(
        self, node_id: NodeId, method: str, body: bytes, timeout_s: float, reply: Callable[[bytes], None]
    ) -> None:
        self.forwarding.request_received(node_id, method, body, timeout_s, reply)

    # --------------------------------------------------------------------------------------------------- looking

    def shards_by_group(self) -> dict[GroupId, dict[str, Any] | None]:
        found: dict[GroupId, dict[str, Any] | None] = {}
        for service in self.router.map.services.values():
            for shard in service.shards:
                found[shard.group_id] = {
                    "shard_id": shard.shard_id,
                    "start": shard.start.hex(),
                    "end": None if shard.end is None else shard.end.hex(),
                    "epoch": shard.epoch,
                }
        return found

    def status(self) -> dict[str, Any]:
        engine, config = self.engine, self._config
        store, transport = self.store, self.transport
        if store is None or transport is None:
            raise NotRunning("the node is not running")
        busy, lag_s = engine.pacing.load()
        return {
            "node_id": config.node_id,
            "incarnation": store.incarnation,
            "cluster_id": store.identity.cluster_id.hex(),
            "store_id": store.identity.store_id.hex(),
            "uptime_s": round(self._node._clock() - self._began_s, 3),
            "version": package_version(),
            "listen": config.listen,
            "started_orderly": store.closed_orderly,
            "process": process_use(),
            "peers": peer_states(engine, dict(config.members)),
            "groups": group_counts(engine),
            "loop": {"lag_ms": round(lag_s * 1e3, 3), "busy": round(busy, 4), "turns": engine.pacing.turns},
            "writer": {
                "busy": round(engine.writer.load(), 4),
                "in_flight": engine.writer.in_flight,
                "syncs": store.syncs,
            },
            "proposals": {"pending": engine.budget.count, "pending_bytes": engine.budget.used_bytes},
            "counters": {**engine.counters, **transport.counters()},
        }


def package_version() -> str:
    """Return the installed version of multiraft; "unknown" where it runs uninstalled."""
    try:
        return version("multiraft")
    except PackageNotFoundError:
        return "unknown"
