"""The floor under the disk's free space: proposals are refused before a write finds no space at all.

About once a second the free space is looked at. Below `free_space_bytes` this node takes no commands: its groups are
handed to voters on nodes that have room, which are asked for that, and where there is none the caller hears DiskFull.
It goes on voting, following and answering reads. The floor is left behind when a quarter more than it is free, so that
nothing flaps at the edge. The ballast (see `Space`) is made, and made again, when there is room for it above the floor.

Rules of this file: the directory's own commands are never refused: they are small, and what helps an operator needs
them; other nodes are asked only while this one is below its floor and leads something.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Any, Final

from multiraft.config import Limits
from multiraft.engine.engine import Engine
from multiraft.errors import NotCommitted, OutcomeUnknown
from multiraft.forwarding import Forwarding
from multiraft.ports import Space
from multiraft.types import DIRECTORY_GROUP, NOBODY, GroupId, NodeId

SPACE_CALL: Final = "node.space"
"""What a node is asked by its peers: whether its disk has room. The answer is one byte, 1 or 0."""
_LOOK_S: Final = 1.0
_ASK_S: Final = 1.0
_AT_ONCE: Final = 256
"""So many groups are handed over in one look."""
log: Final = logging.getLogger("multiraft.node")


class FreeSpace:
    """One node's watch over its disk; `space` None: it is not looked at, and never low.

    free_bytes  at the last look; None where it cannot be told
    low         whether this node is below its floor
    """

    def __init__(
        self, node_id: NodeId, space: Space | None, engine: Engine, forwarding: Forwarding, limits: Limits
    ) -> None:
        self.free_bytes: int | None = None
        self.low = False
        self._node_id = node_id
        self._space = space
        self._engine = engine
        self._forwarding = forwarding
        self._floor_bytes = limits.free_space_bytes
        self._enough_bytes = limits.free_space_bytes + limits.free_space_bytes // 4

    async def run(self) -> None:
        """Look until cancelled."""
        while self._space is not None:
            await self.look(self._space)
            await asyncio.sleep(_LOOK_S)

    async def look(self, space: Space) -> None:
        """Look once, and do what follows from it."""
        self.free_bytes = space.free_bytes()
        was_low, self.low = self.low, self._is_low(self.free_bytes)
        if self.low:
            await self._give_away()  # first, so that those groups' callers find the next leader instead of a refusal
            self._engine.budget.refuse(self.problem())
            if not was_low:
                log.error("node %s takes no commands: %s", self._node_id, self.problem())
        elif was_low:
            self._engine.budget.refuse(None)
            log.warning("node %s takes commands again: %s bytes are free", self._node_id, self.free_bytes)
        if not self.low:
            await space.keep_ballast(max(self._enough_bytes, space.ballast_bytes))

    def _is_low(self, free_bytes: int | None) -> bool:
        if free_bytes is None:
            return False
        return free_bytes < (self._enough_bytes if self.low else self._floor_bytes)

    def problem(self) -> str:
        return (
            f"the disk of node {self._node_id!r} has {self.free_bytes} bytes free, less than free_space_bytes = "
            f"{self._floor_bytes}. Free some space there: it goes on by itself at {self._enough_bytes}"
        )

    def answer(self, body: bytes) -> bytes:
        """Answer SPACE_CALL."""
        return b"\0" if self.low else b"\1"

    def state(self) -> dict[str, Any]:
        """Describe it, for the node's status."""
        ballast = self._space is not None and self._space.has_ballast()
        return {"free_bytes": self.free_bytes, "floor_bytes": self._floor_bytes, "low": self.low, "ballast": ballast}

    # ------------------------------------------------------------------------------------------------- leadership

    async def _give_away(self) -> None:
        """Hand what this node leads to voters on nodes that have room, as far as there are any."""
        led = self._led()
        nodes = sorted({node_id for nodes in led.values() for node_id in nodes})
        answers = await asyncio.gather(*[self._has_room(node_id) for node_id in nodes])
        roomy = {node_id for node_id, has_room in zip(nodes, answers, strict=True) if has_room}
        for group_id, nodes in self._led().items():
            heirs = [node_id for node_id in nodes if node_id in roomy]
            if heirs:
                try:
                    self._engine.transfer_leadership(group_id, heirs[group_id % len(heirs)])
                except NotCommitted as problem:
                    log.info("group %d cannot be handed over: %s", group_id, problem)

    def _led(self) -> dict[GroupId, list[NodeId]]:
        """Return the groups that this node leads and hands to nobody yet, with the nodes of their other voters."""
        found: dict[GroupId, list[NodeId]] = {}
        for group_id, replica in self._engine.replicas.items():
            if replica.leads and replica.core.heir == NOBODY and group_id != DIRECTORY_GROUP:
                members = replica.core.membership
                others = sorted({members.nodes[voter] for voter in members.voters} - {self._node_id})
                if others:
                    found[group_id] = others
            if len(found) == _AT_ONCE:
                break
        return found

    async def _has_room(self, node_id: NodeId) -> bool:
        try:
            return await self._forwarding.peer_call(node_id, SPACE_CALL, b"", _ASK_S) == b"\1"
        except (NotCommitted, OutcomeUnknown):
            return False
