"""Linearizable reads: all groups' reads of one turn share one round of beats (ReadIndex, thesis section 6.4).

A round asks each peer concerned for an immediate acknowledgement. A group's reads are confirmed when a quorum of its
voters has acknowledged the round, and answered when the commit index noted at registration is applied.

Rules of this file: a read is registered with its core in the turn that begins its round, never joined to an older
round; a round is forgotten when no group waits for it any more; what is done for every single read is in `begin`, and
where it is answered (`Executor.answer`), and nowhere else.
"""

from __future__ import annotations

from asyncio import Future
from collections import deque
from collections.abc import Callable
from math import inf
from typing import TYPE_CHECKING

from multiraft.engine.liveness import Liveness
from multiraft.engine.replica import Replica
from multiraft.engine.waiting import Many, Reads, Result
from multiraft.errors import ReadFailed
from multiraft.types import GroupId, Index, NodeId

if TYPE_CHECKING:
    from multiraft.engine.engine import Engine


class Reading:
    """The reads of one node that wait for a round, or for their index to be applied.

    _open  what gathers the reads of a group that have come since the last turn; no round has begun for them
    """

    def __init__(self, engine: Engine, liveness: Liveness, timeout_s: float) -> None:
        self._engine = engine
        self._replicas = engine.replicas
        self._budget = engine.query_budget
        self._make_future: Callable[[], Future[bytes]] = engine.loop.create_future
        self._liveness = liveness
        self._timeout_s = timeout_s
        self._mark = engine.mark
        self._open: dict[GroupId, Reads] = {}
        self._arrived: list[Replica] = []
        self._rounds: dict[int, list[Replica]] = {}
        self._deadlines: deque[Reads] = deque()

    def stop(self) -> None:
        """The engine ends: no replica takes a query any more."""
        self._replicas = {}
        self._open.clear()

    def begin(self, group_id: GroupId, query: bytes) -> Future[bytes] | None:
        """Have `query` answered in the round that the coming turn begins.

        None: nothing was begun, since no replica of the group here takes queries; `Engine.leading` raises why.
        Raises Overloaded when too many bytes of queries wait on this node.
        """
        reads = self._open.get(group_id)
        if reads is None or reads.finished:  # none since the last turn, or the replica took queries, and ceased to
            replica = self._replicas.get(group_id)
            if replica is None or not replica.leads or replica.halted is not None:
                return None
            reads = self._reads_of(replica)
        reads.size_bytes += self._budget.take_queries(len(query))
        future = self._make_future()
        reads.queries.append(query)
        reads.futures.append(future)
        return future

    def begin_many(self, group_id: GroupId, queries: list[bytes], told: Callable[[list[Result]], None]) -> None:
        """Have many queries answered in that round, one right after the other.

        `told` is called once, in a turn, with what a future would get for each. Raises as `Engine.leading` does, and
        Overloaded, having begun none.
        """
        replica, count = self._engine.leading(group_id), len(queries)
        size_bytes = self._budget.take_queries(sum(map(len, queries)), count)
        reads = self._reads_of(replica)
        reads.size_bytes += size_bytes
        reads.batches.append((queries, Many(count, told)))

    def ask(self, replica: Replica, asker: Future[Index]) -> None:
        """Have `asker` get the index that a read must reach, confirmed by that round; nothing is read here."""
        self._reads_of(replica).askers.append(asker)

    def _reads_of(self, replica: Replica) -> Reads:
        """Return what gathers the replica's new reads. Only the first one needs the clock, and wakes the engine."""
        reads = replica.reads
        if reads is None or reads.finished:  # none, or none whose time has not run out
            engine = self._engine
            reads = replica.reads = Reads(engine.pacing.now() + self._timeout_s, self._budget)
            self._deadlines.append(reads)
            self._arrived.append(replica)
            engine.wake()
        self._open[replica.group_id] = reads
        return reads

    def resume(self, replica: Replica) -> None:
        """Reads that came before the leader's own-term commit may have become possible."""
        if replica.core.can_read():
            self._arrived.append(replica)
            self._mark(replica)

    def register(self, now: float) -> None:
        """Begin one round for all groups that have new reads. Called once a turn."""
        if not self._arrived:
            return
        self._open.clear()
        arrived, self._arrived = self._arrived, []
        able: list[Replica] = []
        nodes: set[NodeId] = set()
        for replica in arrived:
            if replica.reads is None or replica in able:
                continue
            if not replica.leads:
                replica.fail_reads(replica.refusal)
            elif replica.core.can_read():
                able.append(replica)
                members = replica.core.membership
                nodes.update(members.nodes[peer] for peer in members.replicas if peer != replica.core.replica_id)
        if not able:
            return
        round_id = self._liveness.begin_round(sorted(nodes), now)
        for replica in able:
            replica.core.read_index(round_id)
            reads = replica.reads
            if reads is not None:
                replica.rounds[round_id] = reads
            replica.reads = None
            self._mark(replica)
        self._rounds[round_id] = able

    def acknowledged(self, node_id: NodeId, round_id: int) -> None:
        """`node_id` has acknowledged a beat of `round_id`, and so of every earlier round."""
        finished: list[int] = []
        for pending_id, replicas in self._rounds.items():
            if pending_id > round_id:
                break
            waiting = [replica for replica in replicas if pending_id in replica.rounds]
            if not waiting:
                finished.append(pending_id)
            for replica in waiting:
                peer = replica.core.membership.replica_on(node_id)
                if peer and replica.leads and self._counts(replica, node_id):
                    replica.core.acknowledge_round(peer, pending_id)
                    self._mark(replica)
        for pending_id in finished:
            del self._rounds[pending_id]

    def _counts(self, replica: Replica, node_id: NodeId) -> bool:
        """Whether the node's acknowledgements say anything about this group (L8, L24)."""
        return self._liveness.contact_s(replica.group_id, replica.core.term, node_id) > -inf

    def expire(self, now: float) -> None:
        """Fail the reads whose time has run out."""
        while self._deadlines and (self._deadlines[0].deadline_s <= now or self._deadlines[0].finished):
            self._deadlines.popleft().fail(lambda: ReadFailed("leadership was not confirmed in time; retry"))
        for round_id in list(self._rounds):
            if not any(round_id in replica.rounds for replica in self._rounds[round_id]):
                del self._rounds[round_id]
