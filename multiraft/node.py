"""A node: one process's share of a cluster, and the place where all parts are put together.

    Node ── Services (what is declared) ── Router ── Forwarding ─┐
         ── Forming (one cluster, once)                          ├── Engine ── Store (on disk), Transport (aiohttp)
         ── Hosting (which replicas live here) ──────────────────┘

Rules of this file: it alone names the concrete store and transport; it decides nothing that a part could decide; a
node starts once: after `stop`, or after a failed write, make a new one on the same directory. Only a node that found
its disk full comes back by itself, in the same object (reviving.py).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Sequence
from functools import partial
from random import Random
from types import TracebackType
from typing import Any, Final, Self, TypeVar

from multiraft import failpoints
from multiraft.batch import Batching
from multiraft.config import Limits, NodeConfig
from multiraft.consistency import Consistency
from multiraft.engine.replica import Replica
from multiraft.errors import InvalidRequest, MultiRaftError, NotReady, NotRunning, StorageError
from multiraft.exporting import Exporting
from multiraft.free_space import SPACE_CALL
from multiraft.group import CallKind, Group, Unsubscribe
from multiraft.mending import Mending
from multiraft.ports import Clocks, Space, Store, Transport
from multiraft.readmission import STORE_CALL
from multiraft.reviving import Revival, disk_was_full
from multiraft.running import LEADER_CALL, Running, Setup, StoreOpener, TransportMaker
from multiraft.services import BytesService, Services
from multiraft.shard import Router, ServiceRoute, ShardMap
from multiraft.shard.partition import Mode
from multiraft.statemachine import BytesStateMachine, StateMachine
from multiraft.status import damaged_state, read_log, replica_state, shards_by_group, tombstones
from multiraft.storage import FileSpace, open_durable, salvage
from multiraft.transport import AiohttpTransport
from multiraft.types import GroupId, Identity, Membership, NodeId

M = TypeVar("M", bound=StateMachine)


boottime: Final = partial(time.clock_gettime, getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))
"""Seconds that never go back, and that pass while the machine sleeps; without a frame of its own, as every turn asks.

On macOS the monotonic clock is this one; elsewhere without it, sleep goes unnoticed.
"""


def _open_store(config: NodeConfig, loop: asyncio.AbstractEventLoop) -> Store:
    return open_durable(config.store, config.data_dir, config.node_id, config.limits, loop)


def _salvage_leveldb(config: NodeConfig) -> None:
    salvage(config.data_dir, config.limits)


def _aiohttp_transport(config: NodeConfig, identity: Identity, incarnation: int, rng: Random) -> Transport:
    return AiohttpTransport(config, identity, incarnation, rng)


class Node(Mending, Exporting, Batching):
    """One node of a cluster.

        node = Node(NodeConfig(node_id="a", data_dir="data/a", listen="127.0.0.1:7001", members={...}))
        counters = node.service("counters", Counters, initial_shards=16, replicas=3)
        async with node:
            await node.ready("counters")
            await counters.add("hits")

    config           see NodeConfig
    open_store       another store than the one that the configuration names; gets the configuration and the loop
    space            the room under another store; None: it is not looked at, and a full disk ends the node for good
    revives          False: a full disk ends the node for good, as every other failed write does
    make_transport   another transport than aiohttp
    clocks           all the time that reaches it; None: the machine's
    rng              where chance comes from; None: the operating system's
    loop             what its parts schedule their work on; None: the running loop. For simulations
    """

    def __init__(
        self,
        config: NodeConfig,
        *,
        open_store: StoreOpener = _open_store,
        space: Space | None = None,
        revives: bool = True,
        make_transport: TransportMaker = _aiohttp_transport,
        clocks: Clocks | None = None,
        rng: Random | None = None,
        loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__()
        self.config = config
        self._setup = Setup(
            config,
            open_store,
            make_transport,
            clocks or Clocks(boottime, time.time, time.perf_counter),
            rng if rng is not None else Random(),
            Services(tuple(config.members)),
            {
                LEADER_CALL: self._answer_leader,
                STORE_CALL: lambda body: self._here().answer_store(body),
                SPACE_CALL: lambda body: self._here().free_space.answer(body),
            },
            loop=loop,
            salvage=_salvage_leveldb if open_store is _open_store and config.store == "leveldb" else None,
            space=space
            or (FileSpace(config.data_dir, config.limits.ballast_bytes) if open_store is _open_store else None),
            revives=revives,
            watched=clocks is None,
        )
        self._running: Running | None = None
        self._revival = Revival(self._setup, self._has_failed, self._has_come_back, self._has_ended)
        self._come_back_hooks: list[Callable[[], None]] = []
        self._used = False
        self._failure: MultiRaftError | None = None
        self._ending = False
        self._closed_after_failure = False
        self._ended = asyncio.Event()

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
        return self._setup.services.declare(name, machine, initial_shards, replicas, mode, boundaries)

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
        return self._setup.services.declare_bytes(name, machine, initial_shards, replicas, mode, boundaries)

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
        failpoints.arm_from_environment()
        try:
            running = await self._start()
        except StorageError as problem:
            # What a full disk has ended once is opened in the room of the ballast.
            space = self._setup.space
            if space is None or not disk_was_full(problem) or not space.release_ballast():
                raise
            running = await self._start()
        self._running = None if self._ending or running.failed else running

    async def _start(self) -> Running:
        running = Running(self._setup, self._has_failed)
        try:
            await running.start()
        except BaseException:
            await running.close("the node did not start")
            raise
        return running

    @property
    def runs(self) -> bool:
        """Whether it has been started and has not ended, by `stop`, by a failed write, or by a bug."""
        return self._running is not None

    @property
    def comes_back(self) -> bool:
        """Whether a full disk has ended it, and it will run again by itself when there is space."""
        return self._running is None and self._revival.away is not None

    def on_come_back(self, hook: Callable[[], None]) -> Unsubscribe:
        """Call `hook` whenever the node has come back by itself. Return a function that ends this."""
        self._come_back_hooks.append(hook)
        return lambda: self._come_back_hooks.remove(hook) if hook in self._come_back_hooks else None

    @property
    def failure(self) -> MultiRaftError | None:
        """What has ended it by itself; None while nothing has."""
        return self._failure

    async def stop(self) -> None:
        """Stop: end every waiting call, close connections, join the writer, close the store. Idempotent."""
        running, self._running = self._running, None
        if running is None and self._revival.away is not None and not self._ending:
            self._ending = True
            await self._revival.stop()
            self._setup.services.bind(None)
            if self._closed_after_failure:
                self._ended.set()
        if running is None:
            if self._ending:  # another caller, or a failed write, is at it: the store is closed when that is done
                await self._ended.wait()
            self._ended.set()
            return
        self._ending = True
        self._setup.services.bind(None)
        try:
            await self._end_exports()
            await running.close("the node is stopping")
        finally:
            self._ended.set()

    def _has_failed(self, failure: MultiRaftError, closed: bool) -> None:
        """A Running has ended by itself; when all its parts are closed, it says so again."""
        self._running = None
        self._closed_after_failure = closed
        if closed and self._revival.away is not None:
            self._revival.begin(failure)
        elif closed:
            self._ended.set()
        elif self._ending or not self._revival.helps(failure):
            self._failure = failure
            self._ending = True
        self._setup.services.bind(None, self._absence)

    def _has_come_back(self, running: Running) -> None:
        self._running = running
        for hook in list(self._come_back_hooks):
            hook()

    def _has_ended(self, failure: MultiRaftError) -> None:
        """It could not come back."""
        self._failure = failure
        self._ending = True
        self._ended.set()

    def abandon(self) -> None:
        """End at once, as a killed process does: nothing is sent, written or closed. For simulations."""
        running, self._running = self._running, None
        self._ending = True
        self._revival.abandon()
        self._setup.services.bind(None)
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
        """Wait until the node ends for good. Returns on `stop`; raises what ended it (StorageError: a write failed)."""
        await self._ended.wait()
        if self._failure is not None:
            raise self._failure

    async def ready(self, name: str | None = None, timeout_s: float = 30.0) -> None:
        """Wait until every shard of service `name` has a leader; None: of all services declared here.

        Raises NotReady (which shard, and why) after `timeout_s`, ConfigError when the declaration was refused.
        """
        running = self._here()
        names = [name] if name is not None else self._setup.services.names()
        for one in names:
            if one not in self._setup.services:
                raise InvalidRequest(f"service {one!r} is not declared on this node")
        try:
            async with asyncio.timeout(timeout_s):
                for one in names:
                    await running.wait_ready(one)
        except TimeoutError:
            reasons = [reason for one in names if (reason := running.unready(one)) is not None]
            said = "; ".join(reasons) or "leaders are changing"
            raise NotReady(f"not ready within {timeout_s:g} s: {said}") from None

    def _here(self) -> Running:
        if self._running is None:
            raise self._absence()
        return self._running

    def _absence(self) -> MultiRaftError:
        """Return what a call is told while nothing runs."""
        if self._revival.away is not None:
            return self._revival.error()
        if self._failure is not None:
            return NotRunning(f"the node has ended: {self._failure}")
        return NotRunning("the node is not running; start it first")

    # -------------------------------------------------------------------------------------------------- groups

    @property
    def shard_map(self) -> ShardMap:
        """The newest shard map that this node knows. Raises NotRunning."""
        return self._here().router.map

    @property
    def router(self) -> Router:
        """Raises NotRunning."""
        return (self._running or self._here()).router

    def group(self, group_id: GroupId) -> Group:
        """Return the handle of a group, whether or not this node has a replica of it."""
        return Group(group_id, self)

    def call(
        self, group_id: GroupId, kind: CallKind, body: bytes, timeout_s: float | None
    ) -> Coroutine[Any, Any, bytes]:
        """Bring `body` to the group's leader; see Group.propose and Group.read."""
        running = self._running or self._here()
        return running.router.call(group_id, kind, body, timeout_s)

    def read_as(
        self, group_id: GroupId, query: bytes, how: Consistency, timeout_s: float | None
    ) -> Coroutine[Any, Any, tuple[bytes, float]]:
        """Answer `query` in the way chosen; see Group.read and Group.read_stale."""
        return self._here().router.read_as(group_id, query, how, timeout_s)

    async def open_session(self, name: str, timeout_s: float | None = None) -> bytes:
        """Begin a session in every shard of service `name`, for a program that numbers its commands itself.

        For retries from another process, or after a restart: the program keeps what this returns, gives each command a
        sequence of its own, and calls it with `with_options(session=Numbered(...))`, on any node, as often as it must.
        A session ends in a shard where it was not used for session_expiry_ms. Raises NotReady, DeadlineExceeded,
        Overloaded, NotRunning.
        """
        return await ServiceRoute(self._here().router, name).open_session(timeout_s)

    def leader(self, group_id: GroupId) -> NodeId | None:
        """Return the node that leads the group, as far as this node's replica knows."""
        return self._here().forwarding.leader_hint(group_id)

    def leads(self, group_id: GroupId) -> bool:
        """Return whether this node's replica leads the group."""
        return self._here().forwarding.leads(group_id)

    def membership(self, group_id: GroupId, latest: bool = False) -> Membership:
        """Return the membership of this node's replica of the group: the one in effect, or the newest in its log.

        Raises NotReady when it has none.
        """
        core = self._replica(group_id).core
        return core.latest_membership() if latest else core.membership

    def subscribe_membership(self, group_id: GroupId, changed: Callable[[Membership], None]) -> Unsubscribe:
        """Have `changed` called at each new membership. Raises NotReady when this node has no replica."""
        self._replica(group_id)
        hooks = self._setup.membership_hooks.setdefault(group_id, [])
        hooks.append(changed)
        return lambda: hooks.remove(changed) if changed in hooks else None

    def subscribe_role(self, group_id: GroupId, changed: Callable[[bool], None]) -> Unsubscribe:
        """Have `changed(leads)` called when this node's replica begins or ceases to lead; at once if it leads."""
        hooks = self._setup.role_hooks.setdefault(group_id, [])
        hooks.append(changed)
        if self._running is not None and self._running.forwarding.leads(group_id):
            changed(True)
        return lambda: hooks.remove(changed) if changed in hooks else None

    def subscribe_applied(self, group_id: GroupId, applied: Callable[[], None]) -> Unsubscribe:
        """Have `applied` called soon after this node's replica has applied more; see `Group.on_applied`."""
        hooks = self._setup.applied_hooks.setdefault(group_id, [])
        hooks.append(applied)

        def unsubscribe() -> None:
            if applied in hooks:
                hooks.remove(applied)
            if not hooks and self._setup.applied_hooks.get(group_id) is hooks:
                del self._setup.applied_hooks[group_id]

        return unsubscribe

    def transfer_leadership(self, group_id: GroupId, to: NodeId) -> None:
        """Ask the group's replica on node `to` to take over. Returns at once; given up after an election timeout.

        Until then nothing can be proposed. Raises NotLeader (this node does not lead the group), NotReady (no voter
        of the group is on `to`), NotRunning.
        """
        self._replica(group_id)
        self._here().engine.transfer_leadership(group_id, to)

    async def readmit(self, node_id: NodeId, timeout_s: float | None = None) -> None:
        """Take back a node whose directory was emptied, with all replicas that it had; call it on another node.

        Start that node first, with an empty directory: until it is readmitted it takes no part. Its new store is
        admitted in the place of the old one, which is refused from then on; then each group that had a replica there
        gets a new one, the directory first. Call it again if it was interrupted, on any node.

        timeout_s  seconds in all; None: 120

        Raises NotReady (not done in time, or it cannot be: a group has lost its quorum, or lived on that node alone;
        the message says which, and why), InvalidRequest (no such member, this node itself, or the node still has the
        store that the cluster knows), NotRunning.
        """
        await self._here().readmit(node_id, timeout_s)

    def _replica(self, group_id: GroupId) -> Replica:
        replica = self._here().engine.replicas.get(group_id)
        if replica is None:
            raise NotReady(f"group {group_id} has no replica on node {self.node_id!r}")
        return replica

    def local_machine(self, group_id: GroupId) -> object:
        """Return the user's state machine object of this node's replica, for inspection only. Raises NotReady."""
        return self._here().hosting.object_of(self._replica(group_id))

    # -------------------------------------------------------------------------------------------------- looking

    def status(self) -> dict[str, Any]:
        """Describe this node: peers, groups, loop, writer, proposals, counters. Raises NotRunning."""
        revival = self._revival
        return {**self._here().status(), "came_back": {"count": revival.count, "reason": revival.reason}}

    def groups_status(self) -> list[dict[str, Any]]:
        """Describe every replica on this node, by group id. Raises NotRunning."""
        running = self._here()
        shards = shards_by_group(running.router.map)
        live = running.engine.replicas
        rows = [replica_state(replica, self.node_id, shards.get(group_id)) for group_id, replica in live.items()]
        rows += [damaged_state(running.engine, running.router.map, group_id) for group_id in running.damaged_groups()]
        return sorted(rows, key=lambda row: int(row["group_id"]))

    def group_status(self, group_id: GroupId) -> dict[str, Any]:
        """Describe one replica on this node. Raises KeyError when there is none, NotRunning."""
        running = self._here()
        if group_id in running.damaged_groups():
            return damaged_state(running.engine, running.router.map, group_id)
        replica = running.engine.replicas[group_id]
        return replica_state(replica, self.node_id, shards_by_group(running.router.map).get(group_id))

    def tombstones(self) -> list[dict[str, int]]:
        """Describe what is left here of replicas that were removed from their groups. Raises NotRunning."""
        return tombstones(self._here().engine)

    def read_log(self, group_id: GroupId, last_n: int) -> list[dict[str, Any]]:
        """Describe the last `last_n` entries of this node's replica. Raises KeyError, CorruptRecord, NotRunning."""
        return read_log(self._here().engine.replicas[group_id], last_n)

    def on_call(self, method: str, handler: Callable[[bytes], bytes]) -> None:
        """Answer peers' calls of `method` with what `handler(body)` returns. Before or after the start."""
        self._setup.calls[method] = handler
        if self._running is not None:
            self._running.forwarding.on_call(method, handler)

    async def peer_call(self, node_id: NodeId, method: str, body: bytes, timeout_s: float) -> bytes:
        """Ask another node (or this one) what was registered there with `on_call`.

        Raises Unreachable, OutcomeUnknown, InvalidRequest, NotRunning.
        """
        return await self._here().forwarding.peer_call(node_id, method, body, timeout_s)

    def _answer_leader(self, body: bytes) -> bytes:
        return (self.leader(int.from_bytes(body, "big")) or "").encode()
