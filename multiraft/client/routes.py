"""One service through a remote client: what the service's handle calls, as it calls a node's own.

Rules of this file: it only translates; each call is one of `Client.call`.
"""

from __future__ import annotations

import asyncio
from asyncio import Future
from collections.abc import Awaitable, Sequence
from functools import partial
from typing import TYPE_CHECKING

from multiraft.client import frames
from multiraft.client.core import new_call
from multiraft.client.frames import Welcome
from multiraft.client.served import AGE
from multiraft.config import Limits
from multiraft.consistency import Consistency
from multiraft.errors import InvalidRequest, NotCommitted, NotReady, OutcomeUnknown, ReadFailed
from multiraft.outcome import Outcome
from multiraft.sessions import CLIENT_BYTES, Numbered
from multiraft.shard.shard_map import ServiceShards
from multiraft.types import GroupId

if TYPE_CHECKING:
    from multiraft.client.client import Client


class ClientRoute:
    """Implements remote.ServiceCaller."""

    __slots__ = ("_bounds", "_client", "_limits", "name")

    def __init__(self, client: Client, name: str) -> None:
        self._client = client
        self.name = name
        self._bounds: Welcome | None = None
        self._limits = Limits()
        client.core.want_service(name)

    @property
    def limits(self) -> Limits:
        bounds = self._client.bounds
        if bounds is not self._bounds:
            self._bounds, self._limits = bounds, _limits(bounds)
        return self._limits

    def check_version(self, version: int) -> None:
        service = self._client.core.atlas.services.get(self.name)
        if service is not None:
            service.check_version(self.name, version)

    def propose(
        self, key: bytes, command: bytes, timeout_s: float | None, session: bool | Numbered = True
    ) -> Awaitable[bytes]:
        call = self._client.call
        if session is True:
            return call(self.name, key, frames.NUMBERED, command, timeout_s, numbers=True)
        if session is False:
            return call(self.name, key, frames.PROPOSE, command, timeout_s)
        entry = session.entry(command)
        return call(self.name, key, frames.NUMBERED, entry, timeout_s, again=not session.first)

    async def propose_many(
        self, keys: Sequence[bytes], commands: Sequence[bytes], timeout_s: float | None, session: bool = True
    ) -> list[Outcome]:
        """Have the shards of `keys` apply `commands`; return what has become of each, in order. Raises NotReady."""
        client = self._client
        await client.shards(self.name, timeout_s)
        together = _Together(len(keys))
        deadline = client.core.clock() + (client.timeout_s if timeout_s is None else timeout_s)
        for at, (key, command) in enumerate(zip(keys, commands, strict=True)):
            call = new_call(frames.PROPOSE, command, deadline, numbers=session, done=partial(together.told, at))
            try:
                await client.submit(call, self.name, key)
            except NotCommitted as problem:
                together.told(at, problem)
        return await together.all

    def read(self, key: bytes, query: bytes, timeout_s: float | None) -> Awaitable[bytes]:
        return self._client.call(self.name, key, frames.READ, query, timeout_s)

    async def read_any(self, query: bytes, timeout_s: float | None) -> bytes:
        """Ask any shard."""
        shards = await self._client.shards(self.name, timeout_s)
        return await self._client.call(shards.shards[0].group_id, b"", frames.READ, query, timeout_s)

    async def read_shard(self, shard_id: int, query: bytes, timeout_s: float | None) -> bytes:
        """Ask the shard of that id. Raises InvalidRequest if the service has none."""
        group_id = self._group(await self._client.shards(self.name, timeout_s), shard_id)
        return await self._client.call(group_id, b"", frames.READ, query, timeout_s)

    async def read_as(
        self, where: bytes | int | None, query: bytes, how: Consistency, timeout_s: float | None
    ) -> tuple[bytes, float]:
        """Ask the shard of a key, the shard of an id, or (None) any, in the way chosen.

        "The replica on this node" is one on a node that this client is connected to. Return the answer and its age in
        milliseconds. Raises InvalidRequest if there is no shard of that id.
        """
        kind, argument = call_of(how)
        place: str | GroupId = self.name
        key = b""
        if type(where) is bytes:
            key = where
        else:
            shards = await self._client.shards(self.name, timeout_s)
            place = shards.shards[0].group_id if where is None else self._group(shards, where)
        clock = asyncio.get_running_loop().time
        began_s = clock()
        answer = await self._client.call(place, key, kind, query, timeout_s, argument=argument)
        passed_ms = (clock() - began_s) * 1_000
        if kind != frames.NEAR:
            return answer, passed_ms
        if len(answer) < AGE.size:
            raise ReadFailed("the node's answer does not say how old it is")
        # It was so old when the node sent it, at some moment of the call: what passed since is no more than the call.
        return answer[AGE.size :], AGE.unpack_from(answer)[0] + passed_ms

    async def shard_ids(self, timeout_s: float | None) -> list[int]:
        return [shard.shard_id for shard in (await self._client.shards(self.name, timeout_s)).shards]

    async def open_session(self, timeout_s: float | None = None) -> bytes:
        """Begin a session in every shard, and return its id. Raises NotReady, DeadlineExceeded, Overloaded."""
        client = self._client
        shards = await client.shards(self.name, timeout_s)
        deadline = client.core.clock() + (client.timeout_s if timeout_s is None else timeout_s)
        while True:
            session_id = client.core.chance.randbytes(CLIENT_BYTES)
            left_s = deadline - client.core.clock()
            if left_s <= 0:
                raise NotReady(f"no session could be begun in every shard of service {self.name!r} in time; retry")
            asked = [
                client.call(shard.group_id, b"", frames.REGISTER, session_id, max(left_s / 2, min(left_s, 1.0)))
                for shard in shards.shards
            ]
            answers = await asyncio.gather(*asked, return_exceptions=True)
            problem = next((answer for answer in answers if isinstance(answer, BaseException)), None)
            if problem is None:
                return session_id
            # An id whose registration has an unknown outcome is given up for another one: it is registered once.
            if not isinstance(problem, OutcomeUnknown | NotReady) and type(problem) is not NotCommitted:
                raise problem

    def _group(self, shards: ServiceShards, shard_id: int | bytes) -> GroupId:
        shard = shards.by_id(shard_id) if type(shard_id) is int else None
        if shard is None:
            raise InvalidRequest(f"service {self.name!r} has no shard {shard_id!r}")
        return shard.group_id


class _Together:
    """The outcomes of many calls.

    all  a future of all of them
    """

    __slots__ = ("_left", "_outcomes", "all")

    def __init__(self, count: int) -> None:
        self._outcomes: list[Outcome] = [b""] * count
        self._left = count
        self.all: Future[list[Outcome]] = asyncio.get_running_loop().create_future()
        if not count:
            self.all.set_result([])

    def told(self, at: int, outcome: Outcome) -> None:
        self._outcomes[at] = outcome
        self._left -= 1
        if not self._left and not self.all.done():
            self.all.set_result(self._outcomes)


def call_of(how: Consistency) -> tuple[int, int]:
    """Return the kind of a read, and its argument."""
    if how.nearby:
        return frames.NEAR, -1 if how.stale_ms is None else how.stale_ms
    return (frames.LEASE if how.lease else frames.READ), 0


def _limits(bounds: Welcome) -> Limits:
    """Return limits with the node's bounds of a call, and whatever of the others these need."""
    entry_bytes, usual = bounds.entry_bytes, Limits()
    return Limits(
        entry_bytes=entry_bytes,
        key_bytes=min(bounds.key_bytes, entry_bytes),
        pending_bytes=max(usual.pending_bytes, entry_bytes),
        outbox_bytes=max(usual.outbox_bytes, 2 * entry_bytes),
    )
