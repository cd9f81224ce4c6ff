"""How the damaged replicas of this node are replaced by their groups, without an operator.

Each group that has a damaged replica here is asked, through its leader, to remove that one and to add a learner on this
node in one change; the leader then asks for the learner to be made, which gives up what is left of the old one. So a
group needs its quorum without the damaged replica. Where it does not have it, or lived here alone, nothing can be done
from here: the replica stays in quarantine, and says so.

    damaged ──> replaced in the membership ──> asked for by the leader ──> made empty ──> caught up ──> votes

Rules of this file: nothing is kept between two runs of the node: a replacement that has happened is seen in the
membership; the directory's replica goes first, for it knows where the other groups live.
"""

from __future__ import annotations

import asyncio
import logging
from functools import partial
from typing import Final

from multiraft.engine.residents import Residents
from multiraft.errors import ChangeRefused, MultiRaftError, NotRunning
from multiraft.members import Members
from multiraft.shard import Router, decode_map, map_query
from multiraft.types import DIRECTORY_GROUP, NOBODY, Damage, GroupId, NodeId

_TRY_S: Final = 10.0
_FIRST_PAUSE_S: Final = 0.5
_LONGEST_PAUSE_S: Final = 30.0
_AT_ONCE: Final = 8
log: Final = logging.getLogger("multiraft.healing")


class Healing:
    """One node's damaged replicas, and what is done about them."""

    def __init__(self, node_id: NodeId, residents: Residents, router: Router) -> None:
        self._node_id = node_id
        self._residents = residents
        self._quarantine = residents.quarantine
        self._router = router
        self._room = asyncio.Semaphore(_AT_ONCE)
        self._replaced: set[GroupId] = set()

    async def run(self) -> None:
        """Try until nothing is damaged any more, or cancelled."""
        for damage in self._quarantine:
            log.error(
                "node %s leaves a replica out: %s; its group is asked to replace it", self._node_id, damage.problem
            )
        pause_s = _FIRST_PAUSE_S
        while len(self._quarantine):
            if self._quarantine.of(DIRECTORY_GROUP) is None and self._quarantine.stretches:
                await self._learn_groups()
            groups = self._groups()
            if self._quarantine.of(DIRECTORY_GROUP) is not None:
                groups = [DIRECTORY_GROUP] if DIRECTORY_GROUP not in self._replaced else []
            done = await asyncio.gather(*[self._heal(group_id) for group_id in groups])
            pause_s = _FIRST_PAUSE_S if any(done) else min(2 * pause_s, _LONGEST_PAUSE_S)
            await asyncio.sleep(pause_s)

    def _groups(self) -> list[GroupId]:
        """Return the groups that are known to be damaged, and are not replaced yet."""
        return sorted({damage.first for damage in self._quarantine if damage.first == damage.last} - self._replaced)

    async def _learn_groups(self) -> None:
        """Ask the directory, linearizably, which groups there are: what was never made cannot have been lost."""
        try:
            answer = await self._router.call(DIRECTORY_GROUP, "read", map_query(), _TRY_S)
            known = decode_map(answer)
        except NotRunning:
            raise
        except MultiRaftError as problem:
            log.warning("it is not known yet of which groups something was lost: %s", problem)
            return
        if known is not None:
            self._residents.know(known.groups)

    async def _heal(self, group_id: GroupId) -> bool:
        """Have one group replace its replica here; return whether it has."""
        damage = self._quarantine.of(group_id)
        if damage is None:
            return True
        async with self._room:
            try:
                return await self._supersede(group_id, damage)
            except NotRunning:
                raise
            except MultiRaftError as problem:
                self._quarantine.healing[group_id] = self._ways_out(group_id, damage, problem)
                log.warning("group %d: its damaged replica is not replaced yet: %s", group_id, problem)
                return False

    async def _supersede(self, group_id: GroupId, damage: Damage) -> bool:
        ask = partial(self._router.call, group_id)
        now = asyncio.get_running_loop().time
        members = await Members(ask, now, _TRY_S).supersede(self._node_id, damage.replica_id)
        there = members.replica_on(self._node_id)
        # Whatever lived here is removed by now: every id below that of its successor has been given out before.
        self._replaced.add(group_id)
        if there == NOBODY:
            self._residents.give_up(group_id, members.next_replica_id - 1)
            return True
        self._quarantine.healing[group_id] = f"replica {there} takes its place; its leader will ask for it"
        log.warning("group %d: replica %d takes the place of the damaged one here", group_id, there)
        self._residents.replaced(group_id, there - 1)
        return True

    def _ways_out(self, group_id: GroupId, damage: Damage, problem: MultiRaftError) -> str:
        if damage.alone or self._router.map.groups.get(group_id) == (self._node_id,):
            return "it was the group's only voter, so nobody else has its data: put back a copy of this directory"
        if isinstance(problem, ChangeRefused):
            return f"the group refuses to replace it: {problem}"
        return (
            f"its group cannot replace it now: {problem}. It needs a quorum without this replica: start its other nodes"
        )
