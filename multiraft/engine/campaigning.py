"""Which groups campaign now: a bounded number at a time, in the order in which they became due.

When a node is lost, or all start anew, thousands of groups are due in the same moment. An election is a few messages
and a synced write on each of its nodes; thousands at once fill queues everywhere, hold each loop for seconds, and are
late for each other. So a node has only so many under way: a few turns' work for its peers. When one ends, won or lost,
the next one begins, as fast as the slowest of those that it needs.

    deadline passes ──> due, in order ──> under way ──┬──> won, or lost
                                                      └──> no answer for half an election timeout: counted no longer

A group whose quorum is out of reach is not counted, since nobody answers it; it must not keep those waiting that can
be won. The directory waits for nobody.

Rules of this file: a deadline that passed late is a late campaign, and nothing else: nothing here touches what makes
elections safe; what is due stays due until it campaigns or has a leader.
"""

from __future__ import annotations

from collections import deque
from math import inf
from typing import TYPE_CHECKING, Final

from multiraft.raft import CANDIDATE, LEADER, PRE_CANDIDATE
from multiraft.types import DIRECTORY_GROUP, GroupId, ReplicaId

if TYPE_CHECKING:
    from multiraft.engine.engine import Engine
    from multiraft.engine.replica import Replica

AT_ONCE: Final = 256
_PATIENCE: Final = 0.5
"""A campaign that has not ended after this share of an election timeout makes room for another one."""


class Campaigning:
    """The campaigns of one engine.

    _due        groups whose deadline has passed, in order; the same ones as a set in `_are_due`
    _under_way  when each of those that count began, in that order, seconds on the patience clock
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._patience_s = _PATIENCE * engine.limits.election_timeout_ms / 1e3
        self._due: deque[GroupId] = deque()
        self._are_due: set[GroupId] = set()
        self._under_way: dict[GroupId, float] = {}

    @property
    def waiting(self) -> int:
        """How many groups are due and have not begun."""
        return len(self._due)

    def judge(self, now: float) -> None:
        """Do what the deadlines that have passed were for, or note it as due."""
        engine = self._engine
        for group_id in engine.wheel.expired(now):
            replica = engine.replicas.get(group_id)
            if replica is None or replica.broken is not None:
                continue
            core = replica.core
            if core.role is not LEADER and not core.timer_due:
                self._is_due(replica, now)
            else:  # a leader gives up a transfer, or a candidate's timer starts
                replica.seen_deadline_s = inf
                with engine.touching(replica, now):
                    core.tick(now)
        if self._due:
            self._run(now)

    def _is_due(self, replica: Replica, now: float) -> None:
        if replica.group_id == DIRECTORY_GROUP:
            self._begin(replica, now)
        elif replica.group_id not in self._are_due:
            self._are_due.add(replica.group_id)
            self._due.append(replica.group_id)

    def ended(self, group_id: GroupId) -> None:
        """The group's replica here campaigns no longer, if it did."""
        self._under_way.pop(group_id, None)

    def _run(self, now: float) -> None:
        """Begin as many as there is room for; the rest comes with later turns."""
        due, under_way, replicas = self._due, self._under_way, self._engine.replicas
        for group_id, began_s in list(under_way.items()):
            if now - began_s < self._patience_s:
                break
            del under_way[group_id]
        begun = 0
        while due and len(under_way) < AT_ONCE and begun < AT_ONCE:
            group_id = due.popleft()
            self._are_due.discard(group_id)
            replica = replicas.get(group_id)
            if replica is not None and replica.broken is None and replica.core.deadline <= now:
                self._begin(replica, now)
                begun += 1
        if due and begun == AT_ONCE:
            self._engine.wake()

    def _begin(self, replica: Replica, now: float) -> None:
        engine, core = self._engine, replica.core
        with engine.touching(replica, now):
            core.tick(now)
        if core.role is PRE_CANDIDATE or core.role is CANDIDATE:
            self._under_way.pop(replica.group_id, None)  # an earlier one, of which nothing came
            if self._reaches_quorum(replica):
                self._under_way[replica.group_id] = now

    def _reaches_quorum(self, replica: Replica) -> bool:
        membership = replica.core.membership
        return self._reaches(replica, membership.voters) and self._reaches(replica, membership.outgoing)

    def _reaches(self, replica: Replica, voters: tuple[ReplicaId, ...]) -> bool:
        """Whether a majority of these voters are here or on connected nodes; of none, that is so."""
        nodes, reaches, own = replica.core.membership.nodes, self._engine.outgoing.reaches, replica.core.replica_id
        reached = sum([voter == own or reaches(nodes[voter]) for voter in voters])
        return 2 * reached > len(voters) or not voters
