"""Has what has ended be removed, also from shards that nobody writes to.

A key ends when its shard's clock passes its moment, and only commands move that clock. So each node looks now and
again at the shards that it leads, and sends a `sweep` to those whose next key is due by its own clock.

Rules of this file: it decides nothing, it only sends commands; one that fails is sent again with the next look.
"""

from __future__ import annotations

import asyncio
import logging
import time
from typing import Final

from examples.kv.machine import KV, SERVICE, SWEEP_KEYS
from multiraft.errors import MultiRaftError, NotReady
from multiraft.node import Node

LOOK_S: Final = 0.1
"""How often a node looks; less often where looking takes long, so that it stays a small part of the node's work."""
_SHARE: Final = 20
_AT_ONCE: Final = 8
_SHARDS_A_LOOK: Final = 64

_log = logging.getLogger(__name__)


class Sweeper:
    """Sweeps the shards that `node` leads, while `run` runs."""

    def __init__(self, node: Node, store: type[KV]) -> None:
        self._node = node
        self._store = store
        self._room = asyncio.Semaphore(_AT_ONCE)

    async def run(self) -> None:
        """Look and sweep until cancelled."""
        while True:
            spent_s = await self.look()
            await asyncio.sleep(max(LOOK_S, _SHARE * spent_s))

    async def look(self) -> float:
        """Sweep every shard led here whose next key is due; return the seconds that finding them took."""
        try:
            shards = (await self._node.router.shards(SERVICE)).shards
        except MultiRaftError as problem:
            _log.debug("nothing to sweep: %s", problem)
            return 0.0
        due: list[str] = []
        spent_s = 0.0
        for at in range(0, len(shards), _SHARDS_A_LOOK):
            began_s = time.perf_counter()
            now_ms = int(time.time() * 1_000)
            for shard in shards[at : at + _SHARDS_A_LOOK]:
                key = self._due(shard.group_id, now_ms)
                if key is not None:
                    due.append(key)
            spent_s += time.perf_counter() - began_s
            await asyncio.sleep(0)  # others want their turn, too
        await asyncio.gather(*[self._sweep(key) for key in due])
        return spent_s

    def _due(self, group_id: int, now_ms: int) -> str | None:
        try:
            if not self._node.leads(group_id):
                return None
            machine = self._node.local_machine(group_id)
        except (MultiRaftError, NotReady, KeyError):
            return None
        return machine.due(now_ms) if isinstance(machine, KV) else None

    async def _sweep(self, key: str) -> None:
        """Remove all that has ended from the shard of `key`, in steps."""
        async with self._room:
            try:
                while await self._store.sweep(key) == SWEEP_KEYS:
                    _log.debug("more has ended beside %r", key)
            except MultiRaftError as problem:
                _log.debug("the shard of %r was not swept: %s", key, problem)
