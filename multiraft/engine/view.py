"""What liveness and the cores see of the engine, and of each other.

Cores ask liveness who is loyal and whom a leader last heard (`Contacts`); liveness tells cores who leads them and
whom they lost (`GroupView`). Rules of this file: it only passes on, and every touch of a core is followed by `note`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from multiraft.raft import Role
from multiraft.types import NOBODY, GroupId, NodeId, ReplicaId, Term

if TYPE_CHECKING:
    from multiraft.engine.engine import Engine
    from multiraft.engine.replica import Replica

_CAMPAIGNS_PER_S: Final = 2_000
_SECOND_CHOICE: Final = 1.0
"""A survivor that is not next in line for a group waits this many election timeouts longer: by then the one that is has
missed the leader as well, whatever it drew. Earlier, the two would often meet, and split the votes."""


class EngineView:
    """Implements the protocols `Contacts` of the core and `GroupView` of liveness over one engine."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    # -------------------------------------------------------------------------------------- what cores ask of liveness

    def loyal(self, group_id: GroupId, term: Term, now: float) -> bool:
        return self._engine.liveness.loyal(group_id, term, now)

    def contact_s(self, group_id: GroupId, term: Term, replica_id: ReplicaId, node_id: NodeId) -> float:
        return self._engine.liveness.contact_s(group_id, term, node_id)

    # ------------------------------------------------------------------------------------- what liveness tells cores

    def _replica(self, group_id: GroupId) -> Replica | None:
        replica = self._engine.replicas.get(group_id)
        return replica if replica is not None and replica.broken is None else None

    def term_of(self, group_id: GroupId, replica_id: ReplicaId) -> Term | None:
        replica = self._replica(group_id)
        return replica.core.term if replica is not None and replica.core.replica_id == replica_id else None

    def claimed(self, group_id: GroupId, term: Term, leader_node: NodeId, now: float) -> None:
        replica = self._replica(group_id)
        if replica is not None:
            membership = replica.core.membership
            leader = membership.replica_on(leader_node)  # NOBODY where this replica lags behind
            if not membership.is_voter(leader):  # another one leads there: perhaps what it has replaced
                leader = NOBODY
            with self._engine.touching(replica, now):
                replica.core.follow(leader, term, now)

    def electable(self, group_ids: list[GroupId], now: float) -> None:
        engine = self._engine
        second_s = _SECOND_CHOICE * engine.limits.election_timeout_ms / 1e3
        first = second = 0
        for group_id in group_ids:
            replica = self._replica(group_id)
            if replica is None or replica.leads:
                continue
            if self._next_in_line(replica):
                delay_s = first / _CAMPAIGNS_PER_S
                first += 1
            else:
                delay_s = second_s + second / _CAMPAIGNS_PER_S
                second += 1
            if replica.halted is not None:
                delay_s += 3 * engine.limits.election_timeout_ms / 1e3
            with engine.touching(replica, now):
                replica.core.release(now, delay_s)

    def turn_to_campaign_s(self, replica: Replica) -> float:
        """Where nobody leads yet, the first voter campaigns first, the next one half a timeout later, and so on.

        A group names its voters in an order of its own, so that first leaders are spread over the nodes.
        """
        engine = self._engine
        voters = replica.core.membership.voters
        rank = voters.index(replica.core.replica_id) if replica.core.replica_id in voters else len(voters)
        limits = engine.limits
        return limits.beat_ms / 1e3 + (rank * 0.5 + engine.rng.random() * 0.2) * limits.election_timeout_ms / 1e3

    def _next_in_line(self, replica: Replica) -> bool:
        """Whether this replica is the first choice for a group whose leader is lost, passing over lost nodes.

        The choice turns with the group's id, so that what one node led is spread over all that are left.
        """
        core, reaches = replica.core, self._engine.outgoing.reaches
        nodes = core.membership.nodes
        left = [
            voter
            for voter in core.membership.voters
            if voter == core.replica_id or (voter != core.leader and reaches(nodes[voter]))
        ]
        return core.replica_id in left and left[replica.group_id % len(left)] == core.replica_id

    def refused(self, group_id: GroupId, term: Term, higher: Term) -> None:
        replica = self._replica(group_id)
        if replica is not None:
            with self._engine.touching(replica, self._engine.pacing.now()):
                replica.core.refused(term, higher)

    def rejudge(self, group_ids: list[GroupId], now: float) -> None:
        for group_id in group_ids:
            replica = self._replica(group_id)
            if replica is not None and replica.core.role == Role.LEADER:
                with self._engine.touching(replica, now):
                    replica.core.check_quorum(now)

    def acknowledged(self, node_id: NodeId, round_id: int) -> None:
        self._engine.reading.acknowledged(node_id, round_id)

    def missing(self, node_id: NodeId, group_id: GroupId, now: float) -> None:
        replica = self._replica(group_id)
        if replica is not None:
            self._engine.residents.ask_for(replica, node_id)

    def arrived(self, node_id: NodeId, group_id: GroupId, now: float) -> None:
        replica = self._replica(group_id)
        if replica is not None and replica.core.role is Role.LEADER:
            with self._engine.touching(replica, now):
                replica.core.poke(replica.core.membership.replica_on(node_id))
