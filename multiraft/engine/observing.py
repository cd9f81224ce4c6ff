"""What the rest of the engine must know of a core, after every touch of it: its term, role, deadline and membership.

Rules of this file: liveness claims exactly what the cores lead, toward exactly the replicas of the membership in
effect (L21, L24).
"""

from __future__ import annotations

from collections.abc import Callable
from math import inf
from typing import TYPE_CHECKING

from multiraft import failpoints
from multiraft.engine.replica import Replica
from multiraft.raft import CANDIDATE, LEADER, PRE_CANDIDATE
from multiraft.types import GroupId

if TYPE_CHECKING:
    from multiraft.engine.engine import Engine


class Observing:
    """Compares each core with what was last known of it.

    on_role        called after a replica's role or known leader changed
    on_membership  called after another membership took effect for a replica
    applied_hooks  called soon after a group's replica here has applied more; the lists may change at any time
    """

    def __init__(
        self, engine: Engine, on_role: Callable[[Replica], None], on_membership: Callable[[Replica], None]
    ) -> None:
        self._engine = engine
        self.on_role = on_role
        self.on_membership = on_membership
        self.applied_hooks: dict[GroupId, list[Callable[[], None]]] = {}

    def applied(self, replica: Replica) -> None:
        """The machine of `replica` has another state than before."""
        if self.applied_hooks:
            for hook in self.applied_hooks.get(replica.group_id, ()):
                self._engine.loop.call_soon(hook)

    def look(self, replica: Replica, now: float) -> None:
        """Pass on what the core's last input has changed."""
        core = replica.core
        if core.term != replica.seen_term:
            replica.seen_term = core.term
            self._engine.liveness.term_rose(replica.group_id, now)
        if core.role is not replica.seen_role or core.leader != replica.seen_leader:
            self._role_changed(replica, now)
        deadline_s = core.deadline
        if deadline_s != replica.seen_deadline_s:
            replica.seen_deadline_s = deadline_s
            if deadline_s == inf:
                self._engine.wheel.disarm(replica.group_id)
            else:
                self._engine.wheel.arm(replica.group_id, deadline_s)

    def _role_changed(self, replica: Replica, now: float) -> None:
        core, was = replica.core, replica.seen_role
        replica.seen_role, replica.seen_leader = core.role, core.leader
        if core.role is not PRE_CANDIDATE and core.role is not CANDIDATE:
            self._engine.campaigning.ended(replica.group_id)
        if was is LEADER and core.role is not LEADER:
            self._engine.liveness.unlead(replica.group_id, now)
            replica.lost_queue()
            replica.hand_back_sessions()
            replica.fail_reads(replica.refusal)
        elif core.role is LEADER and was is not LEADER:
            self._lead(replica, now)
        self.on_role(replica)

    def _lead(self, replica: Replica, now: float) -> None:
        core, members = replica.core, replica.core.membership
        targets = [(members.nodes[peer], peer) for peer in members.replicas if peer != core.replica_id]
        self._engine.liveness.lead(replica.group_id, core.term, targets, now)
        self._engine.changing.leads(replica)

    def membership_changed(self, replica: Replica, now: float) -> None:
        """Another membership has taken effect.

        Who was removed stays until a leader says so, for it may be the only one left that knows: see
        `Raft.membership_known`.
        """
        if failpoints.armed is not None:
            failpoints.armed(failpoints.MEMBERSHIP_IN_EFFECT)
        membership = replica.core.membership
        # What comes of a snapshot may not name its leader yet, to whom the answer is still to go.
        if replica.strangers:
            replica.strangers = {one: node for one, node in replica.strangers.items() if one not in membership.nodes}
        if replica.leads:
            self._lead(replica, now)
        self._engine.changing.took_effect(replica)
        self.on_membership(replica)
