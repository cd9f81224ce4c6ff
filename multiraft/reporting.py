"""Telling the directory where groups live now: each leader reports the membership that has taken effect.

The directory's word is where routers look first, so it may lag, but must come right in the end: whoever leads a group
whose membership ever changed reports it, on taking office too, until the directory has it.

Rules of this file: one report at a time; of one group only the newest; a report is idempotent.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Final

from multiraft.errors import CommandFailed, NotCommitted, OutcomeUnknown
from multiraft.shard import Router, group_nodes_command
from multiraft.types import DIRECTORY_GROUP, FIRST_USER_GROUP, FOUNDING_INDEX, GroupId, Index, Membership, NodeId

_AGAIN_S: Final = 0.2
log: Final = logging.getLogger("multiraft.reporting")


class Reporting:
    """The reports of one node that the directory has not confirmed yet."""

    def __init__(self, router: Router) -> None:
        self._router = router
        self._pending: dict[GroupId, tuple[Index, tuple[NodeId, ...]]] = {}
        self._some = asyncio.Event()

    def leads(self, group_id: GroupId, membership: Membership) -> None:
        """This node leads the group, whose membership this is."""
        if group_id >= FIRST_USER_GROUP and membership.index > FOUNDING_INDEX:
            voters = [membership.nodes[one] for one in membership.voters]
            others = [node_id for node_id in membership.nodes.values() if node_id not in voters]
            self._pending[group_id] = (membership.index, (*voters, *others))
            self._some.set()

    async def run(self) -> None:
        """Report until cancelled."""
        while True:
            await self._some.wait()
            for group_id, report in list(self._pending.items()):
                if await self._told(group_id, *report) and self._pending.get(group_id) == report:
                    del self._pending[group_id]
            if not self._pending:
                self._some.clear()
            else:
                await asyncio.sleep(_AGAIN_S)

    async def _told(self, group_id: GroupId, index: Index, nodes: tuple[NodeId, ...]) -> bool:
        try:
            await self._router.call(DIRECTORY_GROUP, "propose", group_nodes_command(group_id, index, nodes))
        except CommandFailed as problem:
            log.error("group %d: the directory refuses to know where it lives: %s", group_id, problem)
        except (NotCommitted, OutcomeUnknown) as problem:
            log.info("group %d: the directory does not know its nodes yet: %s", group_id, problem)
            return False
        return True
