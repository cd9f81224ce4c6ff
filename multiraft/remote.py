"""What a user calls: a machine's commands and queries, to be run by the replicas of the right shard.

`node.service(...)` returns a handle whose attributes are the objects of this file. A call checks its arguments,
encodes them, has the service's caller find the shard and its leader, and decodes the result.

Rules of this file: nothing here knows where a shard is; nothing is sent before all arguments have been checked.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Sequence
from typing import Any, Final, Generic, ParamSpec, Protocol, Self, TypeVar

from multiraft.config import Limits
from multiraft.consistency import LINEARIZABLE, Consistency, consistency_of
from multiraft.errors import ConfigError, InvalidRequest, MultiRaftError, NotRunning
from multiraft.methods import Method
from multiraft.outcome import Outcome
from multiraft.sessions import Numbered

P = ParamSpec("P")
R = TypeVar("R")

SHARDS_AT_ONCE: Final = 16
"""How many shards `on_each_shard` asks at the same time."""


class ServiceCaller(Protocol):
    """One service of a running node: brings encoded commands and queries to a shard and returns encoded results.

    Every method raises what `errors.py` lists under NotCommitted, and CommandFailed; `propose` OutcomeUnknown as well.
    `timeout_s` None means the node's default.
    """

    @property
    def limits(self) -> Limits: ...

    def check_version(self, version: int) -> None:
        """Raise NotReady, naming the nodes that are behind, unless all know the commands of that version."""

    def propose(
        self, key: bytes, command: bytes, timeout_s: float | None, session: bool | Numbered
    ) -> Awaitable[bytes]:
        """Have the shard of `key` apply `command`; once, if it is numbered: by this node (True) or by the program."""

    def propose_many(
        self, keys: Sequence[bytes], commands: Sequence[bytes], timeout_s: float | None, session: bool
    ) -> Awaitable[list[Outcome]]:
        """Have the shards of `keys` apply `commands`, one for each; return what has become of each, in order."""

    def read(self, key: bytes, query: bytes, timeout_s: float | None) -> Awaitable[bytes]:
        """Ask the shard of `key`."""

    def read_any(self, query: bytes, timeout_s: float | None) -> Awaitable[bytes]:
        """Ask one shard, whichever is nearest."""

    def read_as(
        self, where: bytes | int | None, query: bytes, how: Consistency, timeout_s: float | None
    ) -> Awaitable[tuple[bytes, float]]:
        """Ask the shard of a key, the shard of an id, or (None) whichever is nearest, in the way chosen.

        Return the answer and its age in milliseconds.
        """

    def read_shard(self, shard_id: int, query: bytes, timeout_s: float | None) -> Awaitable[bytes]: ...

    def shard_ids(self, timeout_s: float | None) -> Awaitable[Sequence[int]]:
        """Return the ids of all shards, in order of their ranges."""


class ServiceBinding:
    """The tie between a service's handle, made before its node starts, and the node's caller, which is there later.

    name     the service
    caller   None before the node has started, after it has stopped, and when the declaration was refused
    refused  why the directory refused the declaration
    away     makes what a call is told after the node has ended by itself; None at other times
    """

    __slots__ = ("away", "caller", "name", "refused")

    def __init__(self, name: str, caller: ServiceCaller | None = None) -> None:
        self.name = name
        self.caller = caller
        self.refused: ConfigError | None = None
        self.away: Callable[[], MultiRaftError] | None = None

    def unavailable(self) -> MultiRaftError:
        """Return why there is no caller."""
        if self.refused is not None:
            return self.refused
        if self.away is not None:
            return self.away()
        return NotRunning(f"service {self.name!r}: its node is not running; start it first")


class _Remote(Generic[P, R]):
    """What commands and queries have in common. Immutable: options make a copy."""

    __slots__ = ("_binding", "_how", "_method", "_timeout_s")

    def __init__(
        self,
        method: Method,
        binding: ServiceBinding | None,
        timeout_s: float | None = None,
        how: Consistency | None = None,
    ) -> None:
        self._method = method
        self._binding = binding
        self._timeout_s = timeout_s
        self._how = how

    def __repr__(self) -> str:
        service = f"service {self._binding.name!r}" if self._binding else "no service"
        return f"<{self._method.kind} {self._method.label} of {service}>"

    def _caller(self) -> ServiceCaller:
        if self._binding is None:
            raise NotRunning(
                f"{self._method.label} was called on the class itself: call it on the handle that node.service "
                "returns, or on an instance"
            )
        if self._binding.caller is None:
            raise self._binding.unavailable()
        return self._binding.caller

    def _encode(self, caller: ServiceCaller, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[bytes, bytes]:
        key, body = self._method.encode_call(args, kwargs)
        limits = caller.limits
        if len(key) > limits.key_bytes or len(body) > limits.entry_bytes:
            raise self._too_large(limits, key, body)
        return key, body

    def _too_large(self, limits: Limits, key: bytes, body: bytes) -> InvalidRequest:
        if len(key) > limits.key_bytes:
            return InvalidRequest(
                f"{self._method.label}: parameter {self._method.key!r}: a key of {len(key)} bytes is longer than "
                f"key_bytes = {limits.key_bytes}"
            )
        return InvalidRequest(
            f"{self._method.label}: its arguments take {len(body)} bytes, more than entry_bytes = "
            f"{limits.entry_bytes}; send less at a time"
        )

    def _with(
        self, timeout_ms: int | None, stale_ms: int | None = None, lease: bool = False, local: bool = False
    ) -> Self:
        timeout_s = self._timeout_s
        if timeout_ms is not None:
            if type(timeout_ms) is not int or timeout_ms < 1:
                raise InvalidRequest(f"timeout_ms = {timeout_ms!r}: must be a whole number of milliseconds, at least 1")
            timeout_s = timeout_ms / 1_000
        how = consistency_of(lease, local, stale_ms)
        return type(self)(self._method, self._binding, timeout_s, self._how if how is None else how)

    async def _aged(self, caller: ServiceCaller, where: bytes | None, body: bytes) -> tuple[R, float]:
        raw, age_ms = await caller.read_as(where, body, self._how or LINEARIZABLE, self._timeout_s)
        result: R = self._method.decode_result(raw)
        return result, age_ms


class RemoteCommand(_Remote[P, R]):
    """A command of a service. Awaiting a call returns the command's result, after it was committed and applied.

    A call raises InvalidRequest (arguments, sizes), NotReady (also where nodes are behind the version that the command
    came with), any other NotCommitted (it certainly did not happen), OutcomeUnknown (it may have happened) or
    CommandFailed (it was committed, and the machine raised).

    The node numbers each call, and sends it again under its number, while there is time, when its answer was lost or
    the leader went: it is applied once all the same. OutcomeUnknown is what remains: the time was up before an answer.
    """

    __slots__ = ("_session",)

    def __init__(
        self,
        method: Method,
        binding: ServiceBinding | None,
        timeout_s: float | None = None,
        how: Consistency | None = None,
    ) -> None:
        super().__init__(method, binding, timeout_s, how)
        self._session: bool | Numbered = True

    async def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        caller, method = self._caller(), self._method
        if method.since > 1:
            caller.check_version(method.since)
        key, body = method.encode_call(args, kwargs)  # written out: `_encode`
        limits = caller.limits
        if len(key) > limits.key_bytes or len(body) > limits.entry_bytes:
            raise self._too_large(limits, key, body)
        result: R = method.decode_result(await caller.propose(key, body, self._timeout_s, self._session))
        return result

    async def many(self, calls: Iterable[tuple[Any, ...]]) -> list[R | MultiRaftError]:
        """Make many calls of this command at once; return an outcome for each, in order.

        calls  the arguments of each: `await counters.add.many([("hits", 1), ("misses", 2)])`

        An outcome is a result, or the error that the call would have raised: look at each. It costs a fraction of as
        many calls: those of one shard are queued, and their caller is woken, once for all. Each is a command of its
        own, numbered and applied once: some may happen and others not, and other callers' may come between. Those of
        one shard are applied in this order, except what had to be sent again.

        Raises InvalidRequest for any of them, NotReady (nodes are behind the version that the command came with, or
        the service is not known yet), NotRunning: none of them happened. A command with a session of the program's own
        takes one call at a time: InvalidRequest.
        """
        caller, method = self._caller(), self._method
        if type(self._session) is not bool:
            raise InvalidRequest(f"{method.label}: a number is for one call, not for many")
        if method.since > 1:
            caller.check_version(method.since)
        keys, bodies = self._encode_all(caller, calls)
        outcomes = await caller.propose_many(keys, bodies, self._timeout_s, self._session)
        decode = method.decode_result
        results: list[R | MultiRaftError] = []
        for outcome in outcomes:
            if isinstance(outcome, MultiRaftError):
                results.append(outcome)
                continue
            try:
                results.append(decode(outcome))
            except MultiRaftError as problem:  # of a result that is none of this method
                results.append(problem)
        return results

    def _encode_all(self, caller: ServiceCaller, calls: Iterable[tuple[Any, ...]]) -> tuple[list[bytes], list[bytes]]:
        encode, limits = self._method.encode_call, caller.limits
        key_bytes, entry_bytes = limits.key_bytes, limits.entry_bytes
        keys, bodies = [], []
        for args in calls:
            if type(args) is not tuple:
                raise InvalidRequest(f"{self._method.label}: the arguments of a call are a tuple, not {args!r:.60}")
            key, body = encode(args, {})
            if len(key) > key_bytes or len(body) > entry_bytes:
                raise self._too_large(limits, key, body)
            keys.append(key)
            bodies.append(body)
        return keys, bodies

    def with_options(
        self, *, timeout_ms: int | None = None, session: bool | Numbered | None = None
    ) -> RemoteCommand[P, R]:
        """Return this command with other options.

        timeout_ms  in place of the node's request_timeout_ms
        session     False: not numbered, and sent once; nothing is kept of it, and its outcome is unknown when its
                    answer is lost. A Numbered: this number, for one command that the program itself may send again;
                    see there for when it raises SessionExpired. None: as before

        Raises InvalidRequest.
        """
        if session is not None and type(session) is not bool and not isinstance(session, Numbered):
            raise InvalidRequest(f"session = {session!r:.60}: must be True, False or a Numbered")
        made = self._with(timeout_ms)
        made._session = self._session if session is None else session
        return made


class RemoteQuery(_Remote[P, R]):
    """A query of one shard, found by its key. Linearizable: it sees every command acknowledged before it was called.

    A call raises InvalidRequest, any other NotCommitted, or CommandFailed (the query itself raised).
    """

    __slots__ = ()

    async def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        caller = self._caller()
        key, body = self._encode(caller, args, kwargs)
        if self._how is not None:
            return (await self._aged(caller, key, body))[0]
        result: R = self._method.decode_result(await caller.read(key, body, self._timeout_s))
        return result

    async def aged(self, *args: P.args, **kwargs: P.kwargs) -> tuple[R, float]:
        """Return the result and its age in milliseconds: whatever anybody could see that long ago is in it.

        An upper bound, by the clock of the node that is called. Above `stale_ms` only if an answer that was
        linearizable took so long to get.
        """
        caller = self._caller()
        key, body = self._encode(caller, args, kwargs)
        return await self._aged(caller, key, body)

    def with_options(
        self,
        *,
        timeout_ms: int | None = None,
        stale_ms: int | None = None,
        lease: bool = False,
        local: bool = False,
    ) -> RemoteQuery[P, R]:
        """Return this query with other options. Of the last three, those given take the place of all that were set.

        timeout_ms  in place of the node's request_timeout_ms
        stale_ms    answered by the replica on this node, at once where it is at most so old; `aged` tells the age
        lease       linearizable without a round, by the leader while its lease lasts; trusts the clocks of all nodes
                    not to drift apart by more than clock_drift_ppm, which is why it must be asked for
        local       linearizable, by the replica on this node after it has caught up with the leader's index

        Where this node has no replica, the leader answers for `stale_ms` and `local`. Raises InvalidRequest.
        """
        return self._with(timeout_ms, stale_ms, lease, local)


class RemoteShardQuery(_Remote[P, R]):
    """A query without a key: asked of one shard (any of them), or of each. Linearizable within a shard.

    A call raises InvalidRequest, any other NotCommitted, or CommandFailed (the query itself raised).
    """

    __slots__ = ()

    async def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        caller = self._caller()
        _, body = self._encode(caller, args, kwargs)
        if self._how is not None:
            return (await self._aged(caller, None, body))[0]
        result: R = self._method.decode_result(await caller.read_any(body, self._timeout_s))
        return result

    async def aged(self, *args: P.args, **kwargs: P.kwargs) -> tuple[R, float]:
        """Ask one shard; return the result and its age in milliseconds, as `RemoteQuery.aged` does."""
        caller = self._caller()
        _, body = self._encode(caller, args, kwargs)
        return await self._aged(caller, None, body)

    async def on_each_shard(self, *args: P.args, **kwargs: P.kwargs) -> AsyncGenerator[tuple[int, R], None]:
        """Ask every shard; yield (shard id, its result) in order of the shards' ranges.

        Some shards are asked ahead of the one whose result is awaited. The results together are no snapshot: each
        shard answers at its own moment. Raises as a call does, at the first shard that fails. Where a loop over it is
        left early, `contextlib.aclosing` ends at once what was asked ahead.
        """
        caller = self._caller()
        _, body = self._encode(caller, args, kwargs)
        waiting = deque(await caller.shard_ids(self._timeout_s))
        asked: deque[tuple[int, asyncio.Future[bytes]]] = deque()
        try:
            while waiting or asked:
                while waiting and len(asked) < SHARDS_AT_ONCE:
                    shard_id = waiting.popleft()
                    asked.append((shard_id, asyncio.ensure_future(self._ask(caller, shard_id, body))))
                shard_id, answer = asked[0]
                result: R = self._method.decode_result(await answer)
                asked.popleft()
                yield shard_id, result
        finally:
            for _, answer in asked:
                answer.cancel()
            await asyncio.gather(*[answer for _, answer in asked], return_exceptions=True)

    async def on_shard(self, shard_id: int, *args: P.args, **kwargs: P.kwargs) -> R:
        """Ask the shard of that id; the arguments are checked as for a call. Raises InvalidRequest if there is none."""
        caller = self._caller()
        _, body = self._encode(caller, args, kwargs)
        result: R = self._method.decode_result(await self._ask(caller, shard_id, body))
        return result

    async def _ask(self, caller: ServiceCaller, shard_id: int, body: bytes) -> bytes:
        if self._how is None:
            return await caller.read_shard(shard_id, body, self._timeout_s)
        return (await caller.read_as(shard_id, body, self._how, self._timeout_s))[0]

    def with_options(
        self,
        *,
        timeout_ms: int | None = None,
        stale_ms: int | None = None,
        lease: bool = False,
        local: bool = False,
    ) -> RemoteShardQuery[P, R]:
        """Return this query with other options: those of `RemoteQuery.with_options`. Raises InvalidRequest."""
        return self._with(timeout_ms, stale_ms, lease, local)
