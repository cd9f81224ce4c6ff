"""What must come true once all faults have ended, within bounded virtual time.

Every group has one leader, whom every replica follows; every replica has applied the same; every service answers; then
nothing moves any more: no term rises, nothing waits, nothing leaks.

Rules of this file: the bounds are the loop's own time; what does not come true is a Violation that says what lacks.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from multiraft.engine.engine import Engine
from multiraft.errors import InvariantViolation, MultiRaftError
from multiraft.testing.invariants import Violation
from multiraft.types import DIRECTORY_GROUP, GroupId

if TYPE_CHECKING:
    from multiraft.testing.simulation import Simulation

SETTLE_S: Final = 60.0
"""How long a cluster may take, when all faults are over, until every group serves and all replicas are equal."""


class Converging:
    """The last part of one run."""

    def __init__(self, simulation: Simulation) -> None:
        self._simulation = simulation
        self._cluster = simulation.cluster

    def _engines(self) -> dict[str, Engine]:
        return {name: node._here().engine for name, node in self._cluster.nodes.items()}

    async def serve(self) -> None:
        """Wait until every node finds every service ready, and every group has one leader."""
        try:
            await self._cluster.ready(SETTLE_S)
        except (MultiRaftError, TimeoutError) as problem:
            self._portray()
            raise Violation(f"liveness: {SETTLE_S:g} s after all faults ended: {problem}") from problem
        await self._until(lambda: not self._missing())

    async def agree(self) -> None:
        """Wait until all replicas of every group have applied the same log."""
        await self._until(lambda: not self._missing() and not self._apart())

    async def _until(self, condition: Callable[[], bool]) -> None:
        try:
            await self._cluster.until(condition, SETTLE_S)
        except TimeoutError:
            self._portray()
            what = "; ".join(self._missing() + self._apart())
            raise Violation(f"liveness: {SETTLE_S:g} s after all faults ended: {what}") from None

    def _portray(self) -> None:
        """Put into the timeline how each replica stands, for whoever looks for what is missing."""
        for group_id in self._simulation.groups():
            for name, engine in self._engines().items():
                replica = engine.replicas.get(group_id)
                if replica is None:
                    continue
                core = replica.core
                members = core.latest_membership()
                said = (
                    f"{core.role.name.lower()} {core.replica_id} in term {core.term}, leader {core.leader}, log "
                    f"{core.log.start.index}-{core.last_index} of term {core.log.last_term}, commit {core.commit}, "
                    f"applied {replica.applied}, deadline {core.deadline:.3f}, "
                    f"voters {members.voters} {members.outgoing or ''}, learners {members.learners}"
                )
                self._simulation.trace.say(name, f"group {group_id}: {said}")

    def _missing(self) -> list[str]:
        """Say which group lacks its one leader, or a replica."""
        found = []
        for group_id in self._simulation.groups():
            hosts = self._hosts(group_id)
            leaders = self._cluster.leaders(group_id)
            if len(leaders) != 1:
                found.append(f"group {group_id} is led by {leaders or 'nobody'}")
            found += [
                f"group {group_id} has no replica on {name}"
                for name, engine in self._engines().items()
                if name in hosts and group_id not in engine.replicas
            ]
        return found

    def _hosts(self, group_id: GroupId) -> list[str]:
        if group_id == DIRECTORY_GROUP:
            return list(self._cluster.names)
        for node in self._cluster.nodes.values():
            if group_id in node.shard_map.groups:
                return list(node.shard_map.groups[group_id])
        return []

    def _apart(self) -> list[str]:
        """Say which replicas have not come together yet."""
        found = []
        for group_id in self._simulation.groups():
            states: dict[tuple[int, ...], list[str]] = {}
            for name, engine in self._engines().items():
                replica = engine.replicas.get(group_id)
                if replica is not None:
                    core = replica.core
                    state = core.term, core.leader, core.last_index, core.commit, replica.applied
                    states.setdefault(state, []).append(name)
            if len(states) > 1:
                said = ", ".join(f"{'+'.join(names)} {state}" for state, names in sorted(states.items()))
                found.append(f"group {group_id}: (term, leader, last, commit, applied) differ: {said}")
        return found

    async def rest(self) -> None:
        """See that nothing moves any more, and that nothing is left over."""
        terms = self._terms()
        patience_s = self._simulation.limits.request_timeout_ms / 1e3
        await self._cluster.run_for(patience_s + 1.0)
        if self._terms() != terms:
            raise Violation(f"liveness: terms rise although nothing is wrong: {terms}, then {self._terms()}")
        for group_id in self._simulation.groups():
            engines = self._engines().items()
            of_group = {name: engine.replicas[group_id] for name, engine in engines if group_id in engine.replicas}
            self._simulation.observer.once.compare(of_group)
        for name, engine in self._engines().items():
            self._simulation.observer.invariants.look_at_everything(name, list(engine.replicas.values()))
            problem = leftover(engine)
            if problem is not None:
                raise Violation(f"node {name}: {problem}")
        self._simulation.raise_violation()

    def _terms(self) -> dict[tuple[str, GroupId], int]:
        return {
            (name, group_id): replica.core.term
            for name, engine in self._engines().items()
            for group_id, replica in engine.replicas.items()
        }


def leftover(engine: Engine) -> str | None:
    """Say what an engine at rest still has that it should not; None when there is nothing."""
    if engine.counters["audit_repairs"]:
        return "the audit had to repair something"
    if engine.budget.used_bytes or engine.budget.count:
        return f"{engine.budget.used_bytes} bytes of {engine.budget.count} proposals are still counted"
    if engine.query_budget.used_bytes or engine.query_budget.count:
        return f"{engine.query_budget.used_bytes} bytes of {engine.query_budget.count} queries are still counted"
    try:
        engine.liveness.check_digests()
    except InvariantViolation as problem:
        return str(problem)
    for group_id, replica in engine.replicas.items():
        left: list[Any] = [*replica.waiting, *replica.rounds.values(), *replica.confirmed]
        if left:
            return f"group {group_id}: {len(left)} callers were never answered"
        if replica.halted is not None:
            return f"group {group_id}: the replica halted: {replica.halted.reason}"
    return None
