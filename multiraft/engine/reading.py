"""Linearizable reads: all groups' reads of one turn share one round of beats (ReadIndex, thesis section 6.4).

A round asks each peer concerned for an immediate acknowledgement. A group's reads are confirmed when a quorum of its
voters has acknowledged the round, and answered when the commit index noted at registration is applied.

Rules of this file: a read is registered with its core in the turn that begins its round, never joined to an older
round; a round is forgotten when no group waits for it any more.
"""

from __future__ import annotations

from asyncio import Future
from collections import deque
from collections.abc import Callable
from math import inf

from multiraft.engine.liveness import Liveness
from multiraft.engine.replica import Replica
from multiraft.engine.waiting import Many, Reads
from multiraft.errors import ReadFailed
from multiraft.types import Index, NodeId


class Reading:
    """The reads of one node that wait for a round, or for their index to be applied."""

    def __init__(self, liveness: Liveness, timeout_s: float, mark: Callable[[Replica], None]) -> None:
        self._liveness = liveness
        self._timeout_s = timeout_s
        self._mark = mark
        self._arrived: list[Replica] = []
        self._rounds: dict[int, list[Replica]] = {}
        self._deadlines: deque[Reads] = deque()

    def add(self, replica: Replica, query: bytes, future: Future[bytes], now: float) -> None:
        """Have `query` answered in the round that the coming turn begins."""
        reads = replica.reads
        if reads is None or not (reads.futures or reads.askers):  # none, or none whose time has not run out
            reads = self._open(replica, now)
        reads.queries.append(query)
        reads.futures.append(future)

    def add_many(self, replica: Replica, queries: list[bytes], many: Many, now: float) -> None:
        """The same of many queries, for which one waits."""
        reads = replica.reads
        if reads is None or not (reads.futures or reads.askers):
            reads = self._open(replica, now)
        reads.queries += queries
        reads.futures += [many] * len(queries)

    def ask(self, replica: Replica, asker: Future[Index], now: float) -> None:
        """Have `asker` get the index that a read must reach, confirmed by that round; nothing is read here."""
        reads = replica.reads
        if reads is None or reads.finished:
            reads = self._open(replica, now)
        reads.askers.append(asker)

    def _open(self, replica: Replica, now: float) -> Reads:
        reads = replica.reads = Reads(now + self._timeout_s)
        self._deadlines.append(reads)
        self._arrived.append(replica)
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
