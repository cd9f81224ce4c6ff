"""Has what has ended be removed, also from shards that nobody writes to.

A key ends when its shard's clock passes its moment, and only commands move that clock. So each node looks now and
again at the shards that it leads, and sends a `sweep` to those whose next key seems to be due. A shard of which no key
ever ends, or that is led elsewhere, is not looked at again before something is applied to it, or it is led here: that
many such shards lie idle costs nothing. The shard's clock is
not this node's: it is taken to be at what the latest command told, plus the time since that was seen here, or at this
node's wall clock, whichever is later. A sweep that found nothing to remove has told the clock anew, and the next one
waits for what was missing then.

Rules of this file: it decides nothing, it only sends commands; one that fails is sent again with the next look.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final

from examples.kv.layout import Meta
from examples.kv.machine import KV, SERVICE, SWEEP_KEYS
from multiraft.errors import MultiRaftError
from multiraft.group import Unsubscribe
from multiraft.node import Node
from multiraft.shard.shard_map import Shard
from multiraft.types import GroupId

LOOK_S: Final = 0.1
"""How often a node looks; less often where looking takes long, so that it stays a small part of the node's work."""
_SHARE: Final = 20
_AT_ONCE: Final = 8
_SHARDS_A_LOOK: Final = 64
_WAIT_S: Final = 60.0

_log = logging.getLogger(__name__)


@dataclass(slots=True)
class _Seen:
    """What was seen of a shard: its clock, and since when; and until when a sweep of what ends first would be vain."""

    clock_ms: int = -1
    since_s: float = 0.0
    vain_until_s: float = 0.0
    vain_end_ms: int = 0

    def look(self, meta: Meta, now_s: float) -> int:
        """Return where the shard's clock may be by now."""
        if meta.clock_ms != self.clock_ms:
            self.clock_ms, self.since_s = meta.clock_ms, now_s
        return self.clock_ms + int((now_s - self.since_s) * 1_000)

    def vain(self, meta: Meta, now_s: float) -> bool:
        return now_s < self.vain_until_s and meta.next_end_ms >= self.vain_end_ms

    def found_nothing(self, meta: Meta, now_s: float) -> None:
        self.vain_end_ms = meta.next_end_ms
        self.vain_until_s = now_s + min(_WAIT_S, max(0, meta.next_end_ms - meta.clock_ms) / 1_000)


class Sweeper:
    """Sweeps the shards that `node` leads, while `run` runs."""

    def __init__(self, node: Node, store: type[KV]) -> None:
        self._node = node
        self._store = store
        self._seen: dict[GroupId, _Seen] = {}
        self._room = asyncio.Semaphore(_AT_ONCE)
        self._known: Sequence[Shard] = ()
        # Those to look at, in the order in which they came.
        self._awake: dict[GroupId, None] = {}
        self._subscribed: dict[GroupId, list[Unsubscribe]] = {}

    async def run(self) -> None:
        """Look and sweep until cancelled."""
        try:
            while True:
                spent_s = await self.look()
                await asyncio.sleep(max(LOOK_S, _SHARE * spent_s))
        finally:
            for ends in self._subscribed.values():
                for end in ends:
                    end()

    async def look(self) -> float:
        """Sweep every shard led here whose next key seems to be due; return the seconds that finding them took."""
        try:
            shards = (await self._node.router.shards(SERVICE)).shards
        except MultiRaftError as problem:
            _log.debug("nothing to sweep: %s", problem)
            return 0.0
        if shards is not self._known:
            self._meet(shards)
        awake = list(self._awake)
        due: dict[GroupId, str] = {}
        spent_s = 0.0
        for at in range(0, len(awake), _SHARDS_A_LOOK):
            began_s = time.perf_counter()
            for group_id in awake[at : at + _SHARDS_A_LOOK]:
                key = self._due(group_id)
                if key is not None:
                    due[group_id] = key
            spent_s += time.perf_counter() - began_s
            await asyncio.sleep(0)  # others want their turn, too
        await asyncio.gather(*[self._sweep(group_id, key) for group_id, key in due.items()])
        return spent_s

    def _meet(self, shards: Sequence[Shard]) -> None:
        """These are the shards now: have each one looked at, and again whenever that may show something else."""
        self._known = shards
        for shard in shards:
            if shard.group_id not in self._subscribed:
                wake = partial(self._awake.setdefault, shard.group_id)
                group = self._node.group(shard.group_id)
                self._subscribed[shard.group_id] = [group.on_applied(wake), group.on_leader(wake)]
                wake()

    def _machine(self, group_id: GroupId) -> KV | None:
        """Return this node's replica, if it leads."""
        try:
            machine = self._node.local_machine(group_id) if self._node.leads(group_id) else None
        except (MultiRaftError, KeyError):
            return None
        return machine if isinstance(machine, KV) else None

    def _due(self, group_id: GroupId) -> str | None:
        machine = self._machine(group_id)
        if machine is None:
            self._seen.pop(group_id, None)
            self._awake.pop(group_id, None)
            return None
        meta, now_s = machine.meta(), time.monotonic()
        if not meta.next_end_ms:
            self._awake.pop(group_id, None)
        seen = self._seen.setdefault(group_id, _Seen())
        clock_ms = seen.look(meta, now_s)
        return None if seen.vain(meta, now_s) else machine.due(max(clock_ms, int(time.time() * 1_000)))

    async def _sweep(self, group_id: GroupId, key: str) -> None:
        """Remove all that has ended from the shard of `key`, in steps."""
        async with self._room:
            try:
                while (removed := await self._store.sweep(key)) == SWEEP_KEYS:
                    _log.debug("more has ended beside %r", key)
            except MultiRaftError as problem:
                _log.debug("the shard of %r was not swept: %s", key, problem)
                return
        machine = self._machine(group_id)
        if removed == 0 and machine is not None:
            self._seen.setdefault(group_id, _Seen()).found_nothing(machine.meta(), time.monotonic())
