"""The ordinary case, from frame and queue to disk, peers and state machines, without a stop in between.

What a core says in the general way (`Raft.ready`) is an object with many fields, for all that may happen to a group. In
the ordinary case (multiraft.raft.ordinary) it is known what it would say, and is done here at once:

    a leader's queue      ──> one record ──> a row for each follower; the open write batch
    a row of a leader     ──> the open write batch, with the acknowledgement that it allows
    a completed batch     ──> rows of acknowledgements; what is committed now is applied
    a row of a follower   ──> what is committed now is applied

Rules of this file: whatever a core does not take as ordinary goes the general way, as the single message that a row
stands for; an acknowledgement is handed to the writer with the record that it speaks of, and with nothing else.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from multiraft.engine.replica import Replica
from multiraft.engine.waiting import Proposals
from multiraft.errors import CorruptRecord, InvariantViolation
from multiraft.gathered import Acks, Appends
from multiraft.messages import Append, AppendAnswer
from multiraft.raft import ASK_READY, NOT_ORDINARY, UNTOLD
from multiraft.types import Index, NodeId, Term

if TYPE_CHECKING:
    from multiraft.engine.engine import Engine


class Ordinary:
    """The short ways of one engine."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._replicas = engine.replicas
        self._batch_bytes = engine.limits.batch_bytes
        self._timeout_s = engine.limits.request_timeout_ms / 1e3
        self._stamped_s = -1.0
        self._real_s = self._wall_s = 0.0

    def propose(self, replica: Replica, now: float) -> Proposals | None:
        """Have the queue of `replica` become a record that leaves with this turn; return its callers.

        None: the general way is to be taken; nothing has changed. Raises InvariantViolation, CorruptRecord.
        """
        queued = replica.queued
        if len(queued) != 1:
            return None  # of several kinds
        (kind, queue), = queued.items()  # fmt: skip
        if queue.size_bytes > self._batch_bytes:
            return None
        engine, core = self._engine, replica.core
        if self._stamped_s != now:  # one reading of the clocks serves all groups of a turn
            clocks = engine.clocks
            self._stamped_s, self._real_s, self._wall_s = now, clocks.real(), clocks.wall()
        stamp_ms = replica.clock.stamp_ms(replica.context.time_ms, self._real_s, self._wall_s)
        record = core.append_own(queue.entries, kind, stamp_ms)
        if record is None:
            return None
        queued.clear()
        batch = Proposals(record.first, record.term, queue.futures, queue.size_bytes, now + self._timeout_s, kind)
        batch.hold(record, queue.entries)
        replica.waiting.append(batch)
        group_id, term, commit, own = core.group_id, record.term, core.commit, core.replica_id
        before, prev_term = record.first - 1, record.prev_term
        nodes, append = core.membership.nodes, engine.outgoing.append
        for peer in core.followers:
            to = peer.replica_id
            append(nodes[to], (commit, group_id, before, prev_term, own, term, to), record)
        engine.writer.add_ordinary(replica, record, (core.term, core.vote, commit), None, None)
        engine.upkeep.expect_commit(replica, now)
        return batch

    def appended(self, node_id: NodeId, message: Appends, now: float) -> None:
        """A peer's groups have sent these records."""
        replicas, engine = self._replicas, self._engine
        add_ordinary = engine.writer.add_ordinary
        for row, record in zip(message.rows, message.records, strict=True):
            commit, group_id, before, prev_term, sender, term, to = row
            replica = replicas.get(group_id)
            if replica is not None and replica.broken is None:
                core = replica.core
                try:
                    if (
                        core.replica_id == to
                        and core.membership.nodes.get(sender) == node_id
                        and core.append_in_order(record, before, commit, sender, term, now)
                    ):
                        ack = (group_id, record.last, to, term, sender)
                        add_ordinary(replica, record, (term, core.vote, core.commit), node_id, ack)
                        self.commits(replica)
                        continue
                except (InvariantViolation, CorruptRecord) as problem:
                    engine.broke(replica, problem)
                    continue
            single = Append(commit, group_id, before, prev_term, (record,), sender, term, to)
            engine.incoming.step(node_id, single, now)

    def acknowledged(self, node_id: NodeId, message: Acks, now: float) -> None:
        """A peer's groups have on its disk what these rows say."""
        replicas, engine = self._replicas, self._engine
        for group_id, index, sender, term, to in message.rows:
            replica = replicas.get(group_id)
            if replica is not None and replica.broken is None:
                core = replica.core
                try:
                    if (
                        core.replica_id == to
                        and core.membership.nodes.get(sender) == node_id
                        and (came := core.acknowledged(sender, term, index, now)) != NOT_ORDINARY
                    ):
                        self.commits(replica)
                        if came == UNTOLD:
                            engine.upkeep.tell_commit_later(replica)
                        continue
                except (InvariantViolation, CorruptRecord) as problem:
                    engine.broke(replica, problem)
                    continue
            single = AppendAnswer(True, group_id, 0, 0, index, sender, term, to)
            engine.incoming.step(node_id, single, now)

    def stored(self, replica: Replica, index: Index, term: Term) -> None:
        """A record that went this way, up to `index` of `term`, is on this node's disk."""
        if replica.broken is not None:
            return
        core = replica.core
        try:
            core.persisted(index, term, 0)
        except (InvariantViolation, CorruptRecord) as problem:
            self._engine.broke(replica, problem)
            return
        if self.commits(replica) and core.commit_untold:
            self._engine.upkeep.tell_commit_later(replica)

    def commits(self, replica: Replica) -> bool:
        """After a short way: have applied what is committed now, or the coming turn ask what to do. Is there any?"""
        committed = replica.core.newly_committed()
        if not committed:
            return False
        if committed == ASK_READY:
            self._engine.mark(replica)
            return True
        replica.committed = committed
        self._engine.applying.add(replica)
        if replica.reads is not None:  # they may have waited for this
            self._engine.mark(replica)
        return True
