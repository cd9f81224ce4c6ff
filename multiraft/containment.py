"""What halted replicas, and those that compare themselves, ask of their group's other replicas; and how one is rebuilt.

    compare    what do most replicas have at an index? That goes into the log, for all to be held against
    hand over  who is healthy, and has applied most? It is asked to lead in the halted one's place
    diverged   since which entry do I differ? The entry is named
    rebuild    the leader takes a snapshot of what it has applied, and sends it to the halted replica, whose log stays

Rules of this file: nothing here is needed while nothing fails but `compare`; whatever is asked, no answer is an answer;
a rebuild takes no vote, no membership and no log away, so that it can be given up at any moment.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import msgpack

from multiraft.engine.engine import Engine
from multiraft.engine.machine import Diverged, Machine
from multiraft.engine.replica import Replica
from multiraft.engine.rolling import first_difference
from multiraft.errors import CorruptRecord, InvalidRequest, MultiRaftError, NotReady
from multiraft.forwarding import Forwarding
from multiraft.types import GroupId, Index, NodeId, ReplicaDescriptor, ReplicaId

HEALTH_CALL: Final = "replica.health"
VALUES_CALL: Final = "replica.values"
STATE_CALL: Final = "replica.state"
REBUILD_TIMEOUT_S: Final = 120.0
_ASK_S: Final = 2.0
_AGAIN_S: Final = 0.05
_LOOKS: Final = 200
"""A state that was sent is asked for again when it has not come after so many looks."""
_ATTEMPTS: Final = 5
_VALUES_AT_ONCE: Final = 40_000
log: Final = logging.getLogger("multiraft.containment")


@dataclass(frozen=True, slots=True)
class Health:
    """What a node says of its replica of a group.

    applied  what it has applied
    trouble  why it serves nobody; empty while it does
    """

    replica_id: ReplicaId
    applied: Index
    trouble: str


class Containment:
    """One node's part in all that."""

    def __init__(
        self,
        node_id: NodeId,
        engine: Engine,
        forwarding: Forwarding,
        make_machine: Callable[[ReplicaDescriptor], Machine | None],
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        self._node_id = node_id
        self._engine = engine
        self._forwarding = forwarding
        self._make_machine = make_machine
        self._loop = loop
        self._tasks: set[asyncio.Task[None]] = set()
        self._rebuilding: dict[GroupId, str] = {}
        self._rebuilds: set[GroupId] = set()
        containing = engine.containing
        containing.compare = lambda replica, index: self._start(self._compare(replica, index))
        containing.hand_over = lambda replica: self._start(self._hand_over(replica))
        containing.diverged = lambda replica, problem: self._start(self._name(replica, problem))
        forwarding.on_call(HEALTH_CALL, self._answer_health)
        forwarding.on_call(VALUES_CALL, self._answer_values)
        forwarding.on_call(STATE_CALL, self._answer_state)

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        task = self._loop.create_task(work, name="containment")
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            log.error("containment failed", exc_info=task.exception())

    async def close(self) -> None:
        """End what is under way."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def abandon(self) -> None:
        for task in list(self._tasks):
            task.cancel()

    # --------------------------------------------------------------------------------------------- what is answered

    def _replica(self, group_id: GroupId) -> Replica:
        replica = self._engine.replicas.get(group_id)
        if replica is None:
            raise NotReady(f"group {group_id} has no replica on node {self._node_id!r}")
        return replica

    def _answer_health(self, body: bytes) -> bytes:
        replica = self._replica(int.from_bytes(body, "big"))
        return _packed([replica.core.replica_id, replica.applied, replica.why_halted or ""])

    def _answer_values(self, body: bytes) -> bytes:
        """Answer (first, values) of the rolling hash after entries `after` + 1 to `last`, as far as they are known."""
        group_id, after, last = msgpack.unpackb(body)
        replica = self._replica(group_id)
        last = min(last, replica.applied, after + _VALUES_AT_ONCE)
        if after + 1 == last:  # a single one may be known though it is not kept
            value = replica.executor.rolling.at(last)
            return _packed([last, [] if value is None else [value]])
        return _packed(list(replica.executor.rolling.values_after(after, last)))

    def _answer_state(self, body: bytes) -> bytes:
        """A halted replica asks its leader for a state: send one of `least` or later. True: it is on its way."""
        group_id, replica_id, least = msgpack.unpackb(body)
        replica = self._replica(group_id)
        engine, core = self._engine, replica.core
        if not replica.leads or replica.applied < least:
            return _packed(False)
        if core.snapshot_index < least:
            problem = engine.snapshotting.take_now(replica)
            if problem:
                raise NotReady(f"group {group_id}: its leader on {self._node_id!r} gives no state: {problem}")
            return _packed(False)
        with engine.touching(replica, engine.pacing.now()):
            sent = core.offer_snapshot(replica_id, least)
        return _packed(sent)

    # --------------------------------------------------------------------------------------------------- what is asked

    async def health(self, node_id: NodeId, group_id: GroupId, timeout_s: float = _ASK_S) -> Health | None:
        """Ask a node for its replica of the group; None where it does not answer, or has none."""
        try:
            answer = await self._forwarding.peer_call(node_id, HEALTH_CALL, group_id.to_bytes(8, "big"), timeout_s)
            return Health(*msgpack.unpackb(answer))
        except (MultiRaftError, ValueError, TypeError) as problem:
            log.debug("group %d: nothing is known of the replica on %s: %s", group_id, node_id, problem)
            return None

    async def _values(self, node_id: NodeId, group_id: GroupId, after: Index, last: Index) -> tuple[Index, list[int]]:
        try:
            body = _packed([group_id, after, last])
            first, values = msgpack.unpackb(await self._forwarding.peer_call(node_id, VALUES_CALL, body, _ASK_S))
            return int(first), list(values)
        except (MultiRaftError, ValueError, TypeError) as problem:
            log.debug("group %d: nothing is known of the values on %s: %s", group_id, node_id, problem)
            return last + 1, []

    def _other_voters(self, replica: Replica) -> list[NodeId]:
        core = replica.core
        return [core.membership.nodes[voter] for voter in core.membership.voters if voter != core.replica_id]

    # --------------------------------------------------------------------------------------------------- comparing

    async def _compare(self, replica: Replica, index: Index) -> None:
        """Propose to compare what all replicas have at `index` with what most have; where no most is known, with this.

        So it is the odd one that halts, also when it leads.
        """
        value = None
        try:
            for attempt in range(_ATTEMPTS):
                own = replica.executor.rolling.at(index)
                if own is None or not replica.leads:
                    break
                nodes = self._other_voters(replica)
                answers = await asyncio.gather(
                    *[self._values(node, replica.group_id, index - 1, index) for node in nodes]
                )
                known = [values[0] for _, values in answers if values]
                value = held_by_most([own, *known], len(nodes) + 1)
                if value is not None:
                    break
                if attempt + 1 == _ATTEMPTS:
                    value = own
                else:
                    await asyncio.sleep(_AGAIN_S)
        finally:
            self._engine.containing.propose_check(replica, index, value)

    async def _name(self, replica: Replica, problem: Diverged) -> None:
        """Say since which entry the replica, which has halted, differs from the others."""
        halt = replica.halted
        if halt is None:
            return
        rolling = replica.executor.rolling
        for node_id in [replica.leader_node, *self._other_voters(replica)]:
            if node_id is None or node_id == self._node_id:
                continue
            if (await self._values(node_id, replica.group_id, problem.index - 1, problem.index))[1] != [problem.value]:
                continue  # it is no better
            first, theirs = await self._values(node_id, replica.group_id, rolling.since, problem.index)
            mine, own = rolling.values_after(first - 1, problem.index)
            if mine > first:  # of these entries the values are not kept here
                first, theirs = mine, theirs[mine - first :]
            index = first_difference(first, own, theirs)
            if index is None:
                continue
            _, before = await self._values(node_id, replica.group_id, first - 2, first - 1)
            if replica.halted is halt:
                self._named(replica, index, index > first or before == [rolling.at(first - 1)], node_id)
            return

    def _named(self, replica: Replica, index: Index, exact: bool, node_id: NodeId) -> None:
        halt = replica.halted
        if halt is None:
            return
        try:
            record = replica.core.log.records(index, index, 1)[0]
            text = replica.executor.text_of(record.kind, record.entries()[index - record.first])
        except (CorruptRecord, IndexError) as problem:
            text = f"an entry that cannot be read ({problem})"
        where = f"index {index}" if exact else f"index {index} or before"
        reason = f"diverged at {where}: {text} has come to something else here than on {node_id}; {halt.reason}"
        log.error("group %d: replica %s", replica.group_id, reason)
        self._engine.containing.write_down(replica, replace(halt, reason=reason, command=f"index {index}: {text}"))

    # --------------------------------------------------------------------------------------------------- leadership

    async def _hand_over(self, replica: Replica) -> None:
        """Find a healthy voter to lead in the place of this halted replica: the one that has applied most."""
        to: NodeId | None = None
        try:
            nodes = self._other_voters(replica)
            answers = await asyncio.gather(*[self.health(node, replica.group_id) for node in nodes])
            healthy = [(one.applied, node) for node, one in zip(nodes, answers, strict=True) if one and not one.trouble]
            if healthy:
                to = max(healthy, key=lambda each: each[0])[1]
        finally:
            self._engine.containing.handed(replica, to)

    # ------------------------------------------------------------------------------------------------------ mending

    def retry(self, group_id: GroupId) -> None:
        """Have the halted replica here apply on, from the entry that it stopped at. Raises as `Node.retry`."""
        replica = self._halted(group_id)
        machine = self._make_machine(replica.descriptor)
        if machine is None:
            raise NotReady(f"service {replica.descriptor.service!r} is not declared on this node")
        self._rebuilding.pop(group_id, None)
        self._engine.containing.retry(replica, machine)

    def _halted(self, group_id: GroupId) -> Replica:
        replica = self._replica(group_id)
        if replica.broken is not None:
            raise NotReady(
                f"group {group_id}: the replica on {self._node_id!r} has stopped by a broken rule; restart the node"
            )
        if replica.halted is None:
            raise InvalidRequest(f"group {group_id}: the replica on {self._node_id!r} is not halted")
        return replica

    async def rebuild(self, group_id: GroupId, timeout_s: float) -> None:
        """Give the halted replica here the state of a healthy one. Raises as `Node.rebuild`."""
        replica = self._halted(group_id)
        try:
            async with asyncio.timeout(timeout_s):
                while replica.halted is not None:
                    self._rebuilding[group_id] = await self._rebuild_step(replica)
                    await asyncio.sleep(_AGAIN_S)
        except TimeoutError:
            waiting_for = self._rebuilding.get(group_id, "nobody was asked yet")
            raise NotReady(f"group {group_id}: not rebuilt within {timeout_s:g} s: {waiting_for}") from None
        finally:
            self._rebuilding.pop(group_id, None)

    def begin_rebuild(self, group_id: GroupId, timeout_s: float) -> None:
        """Have `rebuild` go on by itself; `rebuilding` says how far it is. Raises as `rebuild` does at once."""
        self._halted(group_id)
        if group_id not in self._rebuilds:
            self._rebuilds.add(group_id)
            self._rebuilding[group_id] = "nobody was asked yet"
            self._start(self._rebuild_alone(group_id, timeout_s))

    async def _rebuild_alone(self, group_id: GroupId, timeout_s: float) -> None:
        try:
            await self.rebuild(group_id, timeout_s)
        except MultiRaftError as problem:
            log.warning("%s", problem)
            self._rebuilding[group_id] = f"given up: {problem}"
        finally:
            self._rebuilds.discard(group_id)

    def rebuilding(self, group_id: GroupId) -> str | None:
        """Say what the rebuild of the replica here waits for, or why the last one was given up; None: there is none."""
        return self._rebuilding.get(group_id)

    async def _rebuild_step(self, replica: Replica) -> str:
        """Ask for a state once, and wait for it; return what is missing. Raises NotReady: nobody has one."""
        group_id, halt = replica.group_id, replica.halted
        if halt is None:
            return ""
        if self._engine.replicas.get(group_id) is not replica:
            raise NotReady(f"group {group_id}: the replica on {self._node_id!r} was removed from it meanwhile")
        nodes = self._other_voters(replica)
        answers = await asyncio.gather(*[self.health(node, group_id) for node in nodes])
        if not any(one is not None and not one.trouble for one in answers):
            raise NotReady(f"group {group_id}: {_nobody(nodes, answers)}; it stays as it is")
        leader = replica.leader_node
        if leader is None or leader == self._node_id:
            return "another replica is to lead the group first"
        states = dict(zip(nodes, answers, strict=True))
        trouble = states.get(leader)
        if trouble is not None and trouble.trouble:
            return f"its leader on {leader!r} is to hand over first: {trouble.trouble}"
        least = max(halt.index, 1)
        with self._engine.touching(replica, self._engine.pacing.now()):
            replica.core.want_state(least)
        body = _packed([group_id, replica.core.replica_id, least])
        try:
            sent = msgpack.unpackb(await self._forwarding.peer_call(leader, STATE_CALL, body, _ASK_S))
        except NotReady as problem:
            return str(problem)
        except MultiRaftError as problem:
            return f"its leader on {leader!r} does not answer: {problem}"
        if not sent:
            return f"its leader on {leader!r} has not applied index {least} yet, or takes a snapshot"
        await self._wait_healed(replica)
        return f"the snapshot of its leader on {leader!r} is on its way"

    async def _wait_healed(self, replica: Replica) -> None:
        for _ in range(_LOOKS):
            if replica.halted is None:
                return
            await asyncio.sleep(_AGAIN_S)


def held_by_most(values: Sequence[int], voters: int) -> int | None:
    """Return the value that more than half of so many voters have; None where none is known to be."""
    value, count = Counter(values).most_common(1)[0]
    return value if 2 * count > voters else None


def _nobody(nodes: Sequence[NodeId], answers: Sequence[Health | None]) -> str:
    if not nodes:
        return "it has no other replica that a state could be taken from"
    said = [
        f"{node}: {one.trouble if one is not None else 'does not answer'}"
        for node, one in zip(nodes, answers, strict=True)
    ]
    return f"no other replica is healthy ({'; '.join(said)})"


def _packed(value: object) -> bytes:
    packed: bytes = msgpack.packb(value)
    return packed
