"""One service through a router: what its handle calls.

Rules of this file: nothing is kept here but the name; where a shard is, the router's map says.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Sequence
from typing import Any

from multiraft.config import Limits
from multiraft.consistency import Consistency
from multiraft.errors import InvalidRequest, MultiRaftError, WrongShard
from multiraft.group import CallKind
from multiraft.outcome import Outcome
from multiraft.sessions import Numbered
from multiraft.shard.router import Router
from multiraft.shard.shard_map import ServiceShards, Shard
from multiraft.types import GroupId


class ServiceRoute:
    """One service through a router: what the service's handle calls (remote.ServiceCaller)."""

    __slots__ = ("_router", "limits", "name")

    def __init__(self, router: Router, name: str) -> None:
        self._router = router
        self.name = name
        self.limits: Limits = router.limits

    def check_version(self, version: int) -> None:
        service = self._router.map.services.get(self.name)
        if service is not None:
            service.check_version(self.name, version)

    def propose(
        self, key: bytes, command: bytes, timeout_s: float | None, session: bool | Numbered = True
    ) -> Awaitable[bytes]:
        if session is True:
            return self._router.sessions.call_key(self.name, key, command, timeout_s)
        if session is False:
            return self._router.call_key(self.name, key, "propose", command, timeout_s)
        kind: CallKind = "numbered first" if session.first else "numbered"
        return self._router.call_key(self.name, key, kind, session.entry(command), timeout_s)

    async def propose_many(
        self, keys: Sequence[bytes], commands: Sequence[bytes], timeout_s: float | None, session: bool = True
    ) -> list[Outcome]:
        """Have the shards of `keys` apply `commands`; return what has become of each, in order.

        Raises NotReady where the service is not in the map in time. What a shard answers with a newer map in sight is
        routed by that, while there is time.
        """
        router = self._router
        timeout_s = router.default_s if timeout_s is None else timeout_s
        deadline = router.now() + timeout_s
        outcomes: list[Any] = [None] * len(keys)
        left: Sequence[int] = range(len(keys))
        while left:
            version = router.map.version
            shards = await router.shards(self.name, timeout_s)
            places: dict[GroupId, list[int]] = {}
            for place in left:
                places.setdefault(shards.find(keys[place]).group_id, []).append(place)
            parts = {group_id: [commands[place] for place in at] for group_id, at in places.items()}
            timeout_s = deadline - router.now()
            for at, told in zip(places.values(), await self._told(parts, timeout_s, session), strict=True):
                for place, outcome in zip(at, told, strict=True):
                    outcomes[place] = outcome
            left = [place for place in left if type(outcomes[place]) is WrongShard]
            if left and not await router.newer_map(version, deadline):
                break
            timeout_s = deadline - router.now()
        return outcomes

    async def _told(self, parts: dict[GroupId, list[bytes]], timeout_s: float, session: bool) -> list[list[Outcome]]:
        """Send each group its commands; return what has become of them, by group."""
        if len(parts) == 1:  # no task, no future for the whole
            [(group_id, commands)] = parts.items()
            return [await self._part(group_id, commands, timeout_s, session)]
        calls = [self._part(group_id, commands, timeout_s, session) for group_id, commands in parts.items()]
        return await asyncio.gather(*calls)

    async def _part(self, group_id: GroupId, commands: list[bytes], timeout_s: float, session: bool) -> list[Outcome]:
        try:
            return await self._router.call_many(group_id, commands, session, timeout_s)
        except MultiRaftError as problem:  # of one group alone: nothing was sent to it
            return [problem] * len(commands)

    async def open_session(self, timeout_s: float | None = None) -> bytes:
        """Begin a session in every shard, and return its id. Raises NotReady, DeadlineExceeded, Overloaded."""
        router = self._router
        timeout_s = router.default_s if timeout_s is None else timeout_s
        deadline = router.now() + timeout_s
        shards = await router.shards(self.name, timeout_s)
        return await router.sessions.open([shard.group_id for shard in shards.shards], deadline, timeout_s)

    def read(self, key: bytes, query: bytes, timeout_s: float | None) -> Awaitable[bytes]:
        return self._router.call_key(self.name, key, "read", query, timeout_s)

    async def read_any(self, query: bytes, timeout_s: float | None) -> bytes:
        """Ask a shard that this node leads, if there is one, else the first."""
        shards = (await self._router.shards(self.name, timeout_s)).shards
        nearest = next((shard for shard in shards if self._router.leads(shard.group_id)), shards[0])
        return await self._router.call(nearest.group_id, "read", query, timeout_s)

    async def read_shard(self, shard_id: int, query: bytes, timeout_s: float | None) -> bytes:
        """Ask the shard of that id. Raises InvalidRequest if the service has none."""
        shard = self._shard(await self._router.shards(self.name, timeout_s), shard_id)
        return await self._router.call(shard.group_id, "read", query, timeout_s)

    async def read_as(
        self, where: bytes | int | None, query: bytes, how: Consistency, timeout_s: float | None
    ) -> tuple[bytes, float]:
        """Ask the shard of a key, the shard of an id, or (None) one that is near, in the way chosen.

        Return the answer and its age in milliseconds. Raises InvalidRequest if there is no shard of that id.
        """
        router = self._router
        if type(where) is bytes:
            return await router.read_key_as(self.name, where, query, how, timeout_s)
        shards = await router.shards(self.name, timeout_s)
        near = router.has_replica if how.nearby else router.leads
        if where is None:
            shard = next((each for each in shards.shards if near(each.group_id)), shards.shards[0])
        else:
            shard = self._shard(shards, where)
        return await router.read_as(shard.group_id, query, how, timeout_s)

    def _shard(self, shards: ServiceShards, shard_id: int | bytes) -> Shard:
        shard = shards.by_id(shard_id) if type(shard_id) is int else None
        if shard is None:
            raise InvalidRequest(f"service {self.name!r} has no shard {shard_id!r}")
        return shard

    async def shard_ids(self, timeout_s: float | None) -> list[int]:
        return [shard.shard_id for shard in (await self._router.shards(self.name, timeout_s)).shards]
