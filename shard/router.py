"""The router: from a service and a key to the node that leads the shard, and through its refusals to an answer.

A group that this node leads is called directly. Otherwise the call is forwarded, first to whoever is known to lead,
then to the other members in turn, following what each says of the leader. When a round over all of them has found
nobody, the router waits a little, with jitter, and starts another, until the call's time is up.

Only what certainly did not happen and may well happen soon is tried again. OutcomeUnknown of a command is, if the
command is numbered (session.py), or else it could apply twice. A read changes nothing, so it is asked again.

Rules of this file: no task per call; the map is a value that is swapped whole; what a call raises in the end names its
last cause.
"""

from __future__ import annotations

import asyncio
from asyncio import Future
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from random import Random
from typing import Any, Final, Protocol

from multiraft.config import Limits
from multiraft.consistency import Consistency
from multiraft.engine.local import Seen
from multiraft.errors import (
    DeadlineExceeded,
    Halted,
    MultiRaftError,
    NotLeader,
    NotReady,
    NotRunning,
    Unreachable,
    WrongShard,
)
from multiraft.group import CallKind
from multiraft.outcome import Outcome
from multiraft.shard.attempts import BACKOFF_FIRST_S, BACKOFF_MOST_S, PASSING, READ_LEAST_S, Attempts
from multiraft.shard.many import bring
from multiraft.shard.session import Sessions
from multiraft.shard.shard_map import ServiceShards, ShardMap
from multiraft.shard.submitting import Submission
from multiraft.types import GroupId, NodeId

_ROUNDS_HEARING: Final = 4
"""A node that would hear of a new leader asks the others only in every so many rounds, until it does."""


class GroupCaller(Protocol):
    """What the router needs of its node. The futures fail with the typed errors of `errors.py`."""

    @property
    def node_id(self) -> NodeId: ...

    def propose_local(self, group_id: GroupId, command: bytes, timeout_s: float) -> Future[bytes]:
        """Propose to this node's replica. Raises, or the future gets, NotLeader if it does not lead."""

    def propose_many_local(
        self, group_id: GroupId, entries: list[bytes], numbered: bool, timeout_s: float
    ) -> Future[list[Outcome]]:
        """Propose many to this node's replica; numbered: each behind its number. Raises NotLeader if it does not lead.

        The future gets what has become of each.
        """

    def submit_local(
        self, group_id: GroupId, entries: list[bytes], numbered: bool, told: Callable[[list[Outcome]], None]
    ) -> None:
        """As `propose_many_local`; `told` is called on the loop, in no turn. Raises NotLeader if it does not lead."""

    def begin_read(self, group_id: GroupId, query: bytes) -> Future[bytes] | None:
        """Ask this node's replica, for request_timeout_ms at most; None, and nothing begun, if it does not serve."""

    def read_local(self, group_id: GroupId, query: bytes, timeout_s: float) -> Future[bytes]:
        """Ask this node's replica. Raises, or the future gets, NotLeader if it does not lead."""

    def read_many_local(self, group_id: GroupId, queries: list[bytes], timeout_s: float) -> Future[list[Outcome]]:
        """Ask this node's replica many queries; the future gets what has become of each. Raises NotLeader."""

    def ask_local(self, group_id: GroupId, kind: CallKind, body: bytes, timeout_s: float) -> Future[bytes]:
        """Do what is rarer (see `Router.call`). Raises, or the future gets, NotLeader if this node does not lead."""

    def read_nearby(self, group_id: GroupId, query: bytes, stale_s: float | None, timeout_s: float) -> Future[Seen]:
        """Ask this node's replica, whoever leads; at once where it is at most `stale_s` old. Raises Halted."""

    def has_replica(self, group_id: GroupId) -> bool:
        """Return whether a replica of the group is here."""

    def clock_s(self) -> float:
        """Read the clock that `Seen.since_s` is a reading of."""

    def age_s(self, since_s: float) -> float:
        """Return how many seconds ago, at most, that clock read `since_s`."""

    def leads(self, group_id: GroupId) -> bool:
        """Return whether this node's replica leads the group."""

    def leader_hint(self, group_id: GroupId) -> NodeId | None:
        """Return who leads the group as far as this node's replica knows; None without one, or if it knows nobody."""

    def forward(
        self, node_id: NodeId, method: CallKind, group_id: GroupId, body: bytes, timeout_s: float
    ) -> Future[bytes]:
        """Have another node propose or read; it does so only if it leads. Fails as it would fail there."""


class Router:
    """Routes the calls of one node.

    map        the newest shard map known here
    caller     the node
    now        reads the clock, seconds
    chance     where jitter and ids come from
    sessions   this node's own: of commands that are to be applied once
    default_s  request_timeout_ms, in seconds
    stopped    the node ends
    submitted  what is under way of submissions that have gone no short way
    """

    def __init__(
        self,
        caller: GroupCaller,
        limits: Limits,
        rng: Random,
        clock: Callable[[], float] | None = None,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        """`clock` is in seconds (None: the running loop's); `rng` draws the jitter; `sleep` takes seconds."""
        self.map = ShardMap()
        self.limits = limits
        self.caller = caller
        self.chance = rng
        self.now: Callable[[], float] = clock or asyncio.get_running_loop().time
        self.default_s = limits.request_timeout_ms / 1_000
        self._sleep = sleep
        self._fixed: dict[GroupId, tuple[NodeId, ...]] = {}
        self._hints: dict[GroupId, NodeId] = {}
        self._waiting: dict[Future[None], None] = {}
        self.stopped = False
        self.submitted: set[asyncio.Task[None]] = set()
        self.sessions = Sessions(self)

    def leads(self, group_id: GroupId) -> bool:
        """Return whether this node leads the group."""
        return self.caller.leads(group_id)

    def add_group(self, group_id: GroupId, nodes: Sequence[NodeId]) -> None:
        """Make known, or correct, the nodes of a group that is in no shard map: the directory's own."""
        self._fixed[group_id] = tuple(nodes)

    def update(self, shard_map: ShardMap) -> None:
        """Swap the map for a newer one; an older one is ignored. Wakes the calls that wait for a change."""
        if shard_map.version <= self.map.version:
            return
        self.map = shard_map
        self._wake()

    def stop(self) -> None:
        """The node ends: calls that are looking for a leader, or wait for a map, raise NotRunning shortly."""
        self.stopped = True
        self._wake()

    def _wake(self) -> None:
        for waiter in self._waiting:
            if not waiter.done():
                waiter.set_result(None)
        self._waiting.clear()

    def _check_running(self) -> None:
        if self.stopped:
            raise NotRunning("the node is stopping; nothing was proposed")

    # --------------------------------------------------------------------------------------------- by group

    def call(
        self, group_id: GroupId, kind: CallKind, body: bytes, timeout_s: float | None = None
    ) -> Coroutine[Any, Any, bytes]:
        """Bring `body` to the group's leader and return its answer.

        kind       "propose" or "read"; "session" for a command that is to be applied once, however often it must be
                   sent; "numbered" for one that its caller has numbered ("numbered first": never sent before);
                   "lease" for a read that needs no round while the leader's lease lasts; "change" or "membership" for
                   who takes part
        timeout_s  seconds in all, over all attempts; None: request_timeout_ms

        Raises NotReady or DeadlineExceeded when the time is up and nothing happened (the message names the last
        cause), OutcomeUnknown when a command may have happened, and at once whatever another attempt would not
        change: InvalidRequest, Overloaded, Halted, WrongShard, CommandFailed, NotRunning.
        """
        if kind == "read":
            return self.read(group_id, body, timeout_s)
        if timeout_s is None:
            timeout_s = self.default_s
        if kind == "propose":
            return self.run(group_id, kind, body, self.now() + timeout_s, timeout_s)
        return self._begin(group_id, kind, body, self.now() + timeout_s, timeout_s)

    def _begin(
        self, group_id: GroupId, kind: CallKind, body: bytes, deadline: float, timeout_s: float
    ) -> Coroutine[Any, Any, bytes]:
        if kind == "read":
            return self.read(group_id, body, timeout_s, deadline)
        if kind == "session" or kind in _NUMBERED:
            return self._numbered(group_id, kind, body, deadline, timeout_s)
        return self.run(group_id, kind, body, deadline, timeout_s)

    # Two coroutines of Python's own, also where session.py is compiled: of those, whoever forgets to await is warned.

    async def _numbered(
        self, group_id: GroupId, kind: CallKind, body: bytes, deadline: float, timeout_s: float
    ) -> bytes:
        if kind == "session":
            return await self.sessions.call(group_id, body, deadline, timeout_s)
        return await self.sessions.attempt(group_id, body, deadline, timeout_s, first=kind == "numbered first")

    async def _numbered_many(
        self, group_id: GroupId, commands: list[bytes], deadline: float, timeout_s: float
    ) -> list[Outcome]:
        return await self.sessions.call_many(group_id, commands, deadline, timeout_s)

    def call_many(
        self, group_id: GroupId, commands: list[bytes], session: bool, timeout_s: float | None = None
    ) -> Coroutine[Any, Any, list[Outcome]]:
        """Bring many commands to the group's leader; return what has become of each. See `Group.propose_many`."""
        if timeout_s is None:
            timeout_s = self.default_s
        deadline = self.now() + timeout_s
        if session:
            return self._numbered_many(group_id, commands, deadline, timeout_s)
        return bring(self, group_id, commands, False, deadline, timeout_s)

    def read_many(
        self, group_id: GroupId, queries: list[bytes], timeout_s: float | None = None
    ) -> Coroutine[Any, Any, list[Outcome]]:
        """Bring many queries to the group's leader; return what has become of each. See `Group.read_many`."""
        if timeout_s is None:
            timeout_s = self.default_s
        return bring(self, group_id, queries, False, self.now() + timeout_s, timeout_s, queries=True)

    def submit(
        self,
        group_id: GroupId,
        commands: list[bytes],
        session: bool,
        timeout_s: float | None,
        done: Callable[[list[Outcome]], None],
    ) -> None:
        """As `call_many`, for whoever does not await it; see `Group.submit`. Raises NotRunning."""
        self._check_running()
        Submission(self, group_id, commands, done).begin(session, self.default_s if timeout_s is None else timeout_s)

    async def read(
        self, group_id: GroupId, query: bytes, timeout_s: float | None = None, deadline: float | None = None
    ) -> bytes:
        """As `call` of kind "read". Hot: where this node leads, nothing else stands between a caller and its turn.

        timeout_s  what is left until `deadline`, where there is one
        """
        if timeout_s is None:
            timeout_s = self.default_s
        if deadline is None:
            deadline = self.now() + timeout_s
        if timeout_s >= self.default_s:  # the engine's own timeout comes first
            future = self.caller.begin_read(group_id, query)
            if future is not None:
                try:
                    return await future
                except PASSING as problem:
                    attempts = Attempts("read")
                    attempts.failed(problem)
                return await self.search(group_id, query, deadline, timeout_s, attempts)
        return await self.run(group_id, "read", query, deadline, timeout_s)

    async def run(self, group_id: GroupId, kind: CallKind, body: bytes, deadline: float, timeout_s: float) -> bytes:
        """Try here, if this node leads; else search. `timeout_s` is what is left until `deadline`."""
        if not self.caller.leads(group_id):
            return await self.search(group_id, body, deadline, timeout_s, Attempts(kind))
        try:
            if kind == "propose":  # written out, as it is usual
                return await self.caller.propose_local(group_id, body, timeout_s)
            return await self._local(group_id, kind, body, timeout_s)
        except PASSING as problem:
            attempts = Attempts(kind)
            attempts.failed(problem)
        return await self.search(group_id, body, deadline, timeout_s, attempts)

    def _local(self, group_id: GroupId, kind: CallKind, body: bytes, timeout_s: float) -> Future[bytes]:
        if kind == "propose":
            return self.caller.propose_local(group_id, body, timeout_s)
        if kind == "read":
            return self.caller.read_local(group_id, body, timeout_s)
        return self.caller.ask_local(group_id, kind, body, timeout_s)

    async def search(
        self, group_id: GroupId, body: bytes, deadline: float, timeout_s: float, attempts: Attempts
    ) -> bytes:
        """Ask one node after the other, round after round, until one answers or the time is up."""
        backoff_s = BACKOFF_FIRST_S
        rounds = 0
        while True:
            if self.stopped:
                attempts.failed(NotRunning("the node is stopping"))
            asked: set[NodeId] = set()
            hears = rounds % _ROUNDS_HEARING and self._would_hear(group_id, attempts.cause)
            node_id = None if hears else self._first(group_id, attempts.cause)
            rounds += 1
            while node_id is not None:
                left_s = deadline - self.now()
                if left_s <= 0:
                    raise attempts.late(self.late(group_id, timeout_s, attempts.cause))
                asked.add(node_id)
                try:
                    answer = await self._ask(node_id, group_id, body, left_s, attempts)
                except MultiRaftError as problem:
                    self._serves_not(group_id, node_id, problem)
                    attempts.failed(problem)
                else:
                    self._hints[group_id] = node_id
                    return answer
                node_id = self._next(group_id, asked, attempts.cause)
            attempts.round_over()
            left_s = deadline - self.now()
            if left_s <= 0:
                raise attempts.late(self.late(group_id, timeout_s, attempts.cause))
            await self.pause(backoff_s, left_s)
            backoff_s = min(2 * backoff_s, BACKOFF_MOST_S)

    def _would_hear(self, group_id: GroupId, cause: MultiRaftError | None) -> bool:
        """Whether nobody leads the group, and this node is among the first to hear who does.

        Then there is no need to ask all others time and again. Where a node is lost, thousands of calls may wait so.
        """
        caller = self.caller
        return (
            isinstance(cause, NotLeader | Unreachable)
            and self._first_known(group_id, cause) is None
            and caller.has_replica(group_id)
            and caller.node_id in (self.map.groups.get(group_id) or self._fixed.get(group_id, ()))
        )

    def _serves_not(self, group_id: GroupId, node_id: NodeId, problem: MultiRaftError) -> None:
        """Do not ask this node first the next time, unless what it said is what whoever leads would say."""
        if isinstance(problem, (Halted, *PASSING)) and self._hints.get(group_id) == node_id:
            del self._hints[group_id]

    async def pause(self, backoff_s: float, left_s: float) -> None:
        """Wait before another round: up to `backoff_s`, at least half of it, and no longer than `left_s`."""
        await self._sleep(min(left_s, backoff_s * self.chance.uniform(0.5, 1.0)))

    async def _ask(self, node_id: NodeId, group_id: GroupId, body: bytes, left_s: float, attempts: Attempts) -> bytes:
        here, kind = node_id == self.caller.node_id, attempts.kind
        timeout_s = attempts.share_s(left_s, here)
        if here:
            return await self._local(group_id, kind, body, timeout_s)
        try:
            return await self.caller.forward(node_id, kind, group_id, body, timeout_s)
        except NotRunning as problem:  # of that node, not of this one
            raise Unreachable(f"node {node_id!r}: {problem}") from problem

    def _first(self, group_id: GroupId, cause: MultiRaftError | None) -> NodeId | None:
        """Return whom to ask first in a round, after the last one ended with `cause`; None: nobody is known."""
        return self._first_known(group_id, cause) or self._next(group_id, set(), None)

    def _first_known(self, group_id: GroupId, cause: MultiRaftError | None) -> NodeId | None:
        """Return who leads the group, as far as anybody has said; None: nobody has."""
        hint = cause.leader if isinstance(cause, NotLeader) else None
        return hint or self.caller.leader_hint(group_id) or self._hints.get(group_id)

    def _next(self, group_id: GroupId, asked: set[NodeId], cause: MultiRaftError | None) -> NodeId | None:
        """Return whom to ask next in this round; None if all have been asked."""
        if isinstance(cause, NotLeader) and cause.leader is not None and cause.leader not in asked:
            return cause.leader
        members = self.map.groups.get(group_id) or self._fixed.get(group_id, ())
        return next((member for member in members if member not in asked), None)

    def late(self, group_id: GroupId, timeout_s: float, cause: MultiRaftError | None) -> MultiRaftError:
        """Return what a call raises whose time is up, and that did nothing."""
        said = f"{type(cause).__name__}: {cause}" if cause else "this node knows of no node that serves it"
        text = f"group {group_id} did not serve the call within {timeout_s:g} s; last: {said}"
        late = NotReady(text) if cause is None or isinstance(cause, _NOBODY) else DeadlineExceeded(text)
        late.__cause__ = cause
        return late

    # ------------------------------------------------------------------------------------- reads of all kinds

    def read_as(
        self, group_id: GroupId, query: bytes, how: Consistency, timeout_s: float | None = None
    ) -> Coroutine[Any, Any, tuple[bytes, float]]:
        """Answer `query` in the way chosen; return the answer and its age in milliseconds, an upper bound.

        A read that this node's replica does not answer goes to the leader, whose answer is linearizable and as old as
        the call. Raises as `call` does, for a read.
        """
        if timeout_s is None:
            timeout_s = self.default_s
        return self._read_as(group_id, query, how, self.now() + timeout_s, timeout_s)

    async def _read_as(
        self, group_id: GroupId, query: bytes, how: Consistency, deadline: float, timeout_s: float
    ) -> tuple[bytes, float]:
        caller = self.caller
        since_s = caller.clock_s()
        if how.nearby and caller.has_replica(group_id):
            stale_s = how.stale_ms / 1_000 if how.stale_ms is not None else None
            part_s = min(timeout_s, max(timeout_s / 2, READ_LEAST_S))  # as in `_ask`
            try:
                answer, since_s = await caller.read_nearby(group_id, query, stale_s, part_s)
            except (Halted, *PASSING) as problem:
                since_s = caller.clock_s()
                attempts = Attempts("read")
                attempts.cause = problem
                answer = await self.search(group_id, query, deadline, timeout_s, attempts)
        else:
            answer = await self.run(group_id, "lease" if how.lease else "read", query, deadline, timeout_s)
        return answer, caller.age_s(since_s) * 1_000

    async def read_key_as(
        self, service: str, key: bytes, query: bytes, how: Consistency, timeout_s: float | None = None
    ) -> tuple[bytes, float]:
        """Answer `query` from the shard of `key`; waits for newer maps as `call_key` does. Otherwise as `read_as`."""
        timeout_s = self.default_s if timeout_s is None else timeout_s
        deadline = self.now() + timeout_s
        while True:
            version = self.map.version
            shards = await self._shards(service, deadline, timeout_s)
            timeout_s = deadline - self.now()
            try:
                return await self._read_as(shards.find(key).group_id, query, how, deadline, timeout_s)
            except WrongShard:
                if not await self.newer_map(version, deadline):
                    raise

    def has_replica(self, group_id: GroupId) -> bool:
        """Return whether a replica of the group is on this node."""
        return self.caller.has_replica(group_id)

    # ----------------------------------------------------------------------------------------------- by key

    async def call_key(
        self, service: str, key: bytes, kind: CallKind, body: bytes, timeout_s: float | None = None
    ) -> bytes:
        """Bring `body` to the shard of `key` (the user's key, before any hashing). Otherwise as `call`.

        Waits for a service that is not in the map yet, and after WrongShard for a newer map, while there is time;
        then raises NotReady or WrongShard.
        """
        timeout_s = self.default_s if timeout_s is None else timeout_s
        deadline = self.now() + timeout_s
        while True:
            version = self.map.version
            shards = self.map.services.get(service)
            if shards is None:
                shards = await self._shards(service, deadline, timeout_s)
                timeout_s = deadline - self.now()
            try:
                return await self._begin(shards.find(key).group_id, kind, body, deadline, timeout_s)
            except WrongShard:
                if not await self.newer_map(version, deadline):
                    raise
                timeout_s = deadline - self.now()

    async def shards(self, service: str, timeout_s: float | None = None) -> ServiceShards:
        """Return the shards of a service; wait for it if it is not in the map yet. Raises NotReady in the end."""
        timeout_s = self.default_s if timeout_s is None else timeout_s
        return await self._shards(service, self.now() + timeout_s, timeout_s)

    async def _shards(self, service: str, deadline: float, timeout_s: float) -> ServiceShards:
        while (shards := self.map.services.get(service)) is None:
            if not await self.newer_map(self.map.version, deadline):
                raise NotReady(
                    f"service {service!r} is not in this node's shard map (version {self.map.version}) after "
                    f"{timeout_s:g} s: it was not created yet, or this node does not hear the directory"
                )
        return shards

    async def newer_map(self, version: int, deadline: float) -> bool:
        """Wait for a map newer than `version`; return whether it came before `deadline`."""
        while self.map.version <= version:
            self._check_running()
            left_s = deadline - self.now()
            if left_s <= 0:
                return False
            waiter: Future[None] = asyncio.get_running_loop().create_future()
            self._waiting[waiter] = None
            try:
                async with asyncio.timeout(left_s):
                    await waiter
            except TimeoutError:
                return False
            finally:
                self._waiting.pop(waiter, None)
        return True


_NUMBERED: Final = ("numbered", "numbered first")
_NOBODY: Final = (NotLeader, NotReady, Unreachable)
