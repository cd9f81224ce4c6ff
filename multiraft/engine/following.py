"""Reads from the replica here, whoever leads: linearizable, or stale by no more than a bound.

A linearizable read needs an index that covers everything that was visible when the read began, and a replica that has
applied it. The leader knows the index once it has confirmed its leadership (ReadIndex; Ongaro's thesis, section 6.4);
any replica can do the rest, learners included. So this node puts one question to each leader's node concerned,
for all groups and however many readers, and answers from its own state machines. Where this node leads a group itself
its own round of ReadIndex answers the question.

The age of what is answered. Let q be the reading of this node's real clock, taken before a question was sent. The
leader takes the index i after that, so i covers everything that was visible anywhere at q. Whatever this replica holds
once it has applied i therefore lacks nothing that was visible at q, now and for ever: at any later reading r of the
same clock its age is at most r - q. No other clock takes part. Only that this clock may lose against true time has to
be allowed for: it does so by at most the drift, hence the division. For a leader, see `Leases.heard_s`.

A stale read is answered at once where the age is within its bound; else by a read as above. A replica that answers
none of these (its leader is lost, or does not hear) says so when the reader's time is up.

Rules of this file: the clock is read before a question leaves; a question covers only reads that were there before;
one question is under way per group; a question that has no answer in half an election timeout is put again, to
whoever leads by then; a halted or broken replica answers nothing.
"""

from __future__ import annotations

from asyncio import AbstractEventLoop, Future, TimerHandle
from functools import partial
from math import inf
from typing import TYPE_CHECKING, Any, Final

import msgpack

from multiraft.engine.leading import LivenessSettings
from multiraft.engine.local import LocalReads, Seen, answer_from
from multiraft.engine.replica import Replica
from multiraft.errors import InvalidRequest, NotReady, NotRunning, ReadFailed
from multiraft.ports import Transport
from multiraft.types import GroupId, Index, NodeId

if TYPE_CHECKING:
    from multiraft.engine.engine import Engine

READ_INDEX_CALL: Final = "read_index"
_GROUPS_MOST: Final = 1_024
"""Groups in one question; more are asked for in further ones."""
_PATIENCE: Final = 0.5
"""Share of an election timeout after which a question is put again."""


class Following:
    """The local reads of one node: those of its own callers, and the questions of its peers.

    asked    questions put to other nodes, since the start
    budget   bytes of queries that wait here
    _arrived  replicas whose reads the coming question covers
    _waiting  replicas at which something waits, by group
    """

    def __init__(
        self, engine: Engine, transport: Transport, settings: LivenessSettings, loop: AbstractEventLoop
    ) -> None:
        self._engine = engine
        self._transport = transport
        self._loop = loop
        self._clock = engine.clocks.real
        self._slowest_rate = 1.0 - settings.drift
        self._beat_s = settings.beat_s
        self._patience_s = settings.election_timeout_s * _PATIENCE
        self._timeout_s = engine.limits.request_timeout_ms / 1e3
        self.budget = engine.query_budget
        self.asked = 0
        self._arrived: dict[GroupId, Replica] = {}
        self._waiting: dict[GroupId, Replica] = {}
        self._timer: TimerHandle | None = None

    # --------------------------------------------------------------------------------------------- reads from here

    def read(self, group_id: GroupId, query: bytes) -> Future[Seen]:
        """Answer `query` from the replica here, linearizably.

        The future gets ReadFailed when no leader has given an index within the request timeout, or the replica has not
        reached it; Halted when the replica halts meanwhile; CommandFailed when the state machine raised. Raises
        NotReady (no replica here), Halted, Overloaded, NotRunning.
        """
        replica = self._able(group_id)
        local = replica.local
        if local is None:
            local = replica.local = LocalReads(self.budget)
        future: Future[Seen] = self._loop.create_future()
        local.add(query, future, self._engine.pacing.now() + self._timeout_s)
        self._want(replica)
        return future

    def read_stale(self, group_id: GroupId, query: bytes, stale_s: float) -> Future[Seen]:
        """Answer `query` at once if what the replica here has applied is at most `stale_s` seconds old; else as `read`.

        Raises as `read` does.
        """
        replica = self._able(group_id)
        since_s = self.since_s(replica)
        if self.age_s(since_s) > stale_s:
            return self.read(group_id, query)
        future: Future[Seen] = self._loop.create_future()
        answer_from(replica.executor, query, since_s, future)
        return future

    def since_s(self, replica: Replica) -> float:
        """Return a reading of the real clock: `replica` has applied everything that was visible anywhere by then."""
        known_s = self._engine.leases.heard_s(replica) if replica.leads else -inf
        return known_s if replica.local is None else max(known_s, replica.local.since_s)

    def age_s(self, since_s: float) -> float:
        """Return how many seconds ago, at most, this node's real clock read `since_s`: its drift is allowed for."""
        return max(0.0, self._clock() - since_s) / self._slowest_rate

    def _able(self, group_id: GroupId) -> Replica:
        if not self._engine.running:
            raise NotRunning("the node is not running")
        replica = self._engine.replicas.get(group_id)
        if replica is None:
            raise NotReady(f"group {group_id} has no replica on node {self._engine.node_id!r}; ask its leader")
        if replica.halted is not None or replica.broken is not None:
            raise replica.stopped()
        return replica

    # ------------------------------------------------------------------------------------------------- questions

    def _want(self, replica: Replica) -> None:
        """Have a question put for `replica`, with those of all groups that come in this pass of the loop."""
        if not self._engine.running:
            return
        self._waiting[replica.group_id] = replica
        if self._timer is None:
            self._timer = self._loop.call_later(self._beat_s, self._tick)
        if replica.local is not None and replica.local.wants_to_ask:
            if not self._arrived:
                self._loop.call_soon(self._ask)
            self._arrived[replica.group_id] = replica

    def _ask(self) -> None:
        """Put one question to each leader's node for all groups whose reads have come.

        Groups share a question only where they are on the same nodes: then they wait for the same peers, and none of
        them holds up another.
        """
        arrived, self._arrived = self._arrived, {}
        if not self._engine.running:
            return
        questions: dict[tuple[NodeId, ...], list[Replica]] = {}
        for replica in arrived.values():
            if replica.local is None or not replica.local.wants_to_ask or replica.broken is not None:
                continue
            replica.local.ask()
            leader = replica.leader_node
            if leader is None:
                replica.local.unanswered("no leader is known here")
            else:
                nodes = sorted(replica.core.membership.nodes.values())
                questions.setdefault((leader, *nodes), []).append(replica)
        asked_s = self._clock()
        for (leader, *_), replicas in questions.items():
            for start in range(0, len(replicas), _GROUPS_MOST):
                self._put(leader, replicas[start : start + _GROUPS_MOST], asked_s)

    def _put(self, leader: NodeId, replicas: list[Replica], asked_s: float) -> None:
        groups = [replica.group_id for replica in replicas]
        if leader == self._engine.node_id:
            answer = self.indexes(groups)
        else:
            self.asked += 1
            body = msgpack.packb(groups)
            answer = self._transport.request(leader, READ_INDEX_CALL, body, self._patience_s)
        answer.add_done_callback(partial(self._answered, leader, replicas, asked_s))

    def _answered(self, leader: NodeId, replicas: list[Replica], asked_s: float, answer: Future[bytes]) -> None:
        told = _indexes_in(answer, leader, len(replicas))
        for replica, index in zip(replicas, told, strict=True):
            local = replica.local
            if local is None:
                continue
            if isinstance(index, str):
                local.unanswered(index)
                continue
            local.confirmed(index, asked_s)
            if replica.broken is None and replica.halted is None:
                local.applied(replica.applied, replica.executor)
            if local.wants_to_ask:
                self._want(replica)

    def _tick(self) -> None:
        """While something waits, once per beat: fail what is late, and ask again where there was no answer."""
        self._timer = None
        now = self._engine.pacing.now()
        waiting, self._waiting = self._waiting, {}
        for replica in waiting.values():
            local = replica.local
            if local is None:
                continue
            reason = local.problem or "the replica here has not reached the leader's index"
            text = f"group {replica.group_id}: no answer from the replica here in time ({reason}); retry"
            local.expire(now, partial(ReadFailed, text))
            if not local.idle:
                self._want(replica)

    def stop(self) -> None:
        """The engine ends; what waits is failed with its replicas."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._waiting.clear()

    # ----------------------------------------------------------------------------------------- questions of peers

    def answer(self, body: bytes) -> Future[bytes]:
        """Answer a peer's question. Raises InvalidRequest when it is none."""
        try:
            groups: Any = msgpack.unpackb(body)
        except ValueError as problem:
            raise InvalidRequest(f"{READ_INDEX_CALL}: not msgpack: {problem}") from None
        if type(groups) is not list or len(groups) > _GROUPS_MOST or any(type(each) is not int for each in groups):
            raise InvalidRequest(f"{READ_INDEX_CALL}: not a list of up to {_GROUPS_MOST} group ids")
        return self.indexes(groups)

    def indexes(self, groups: list[GroupId]) -> Future[bytes]:
        """Answer with the index of each of these groups, confirmed by one round for all; or with why there is none."""
        engine = self._engine
        told: list[Index | str] = [""] * len(groups)
        answer: Future[bytes] = self._loop.create_future()
        left = 0

        def decided(place: int, asker: Future[Index]) -> None:
            nonlocal left
            left -= 1
            error = None if asker.cancelled() else asker.exception()
            told[place] = str(error or "not answered") if asker.cancelled() or error else asker.result()
            if left == 0 and not answer.done():
                answer.set_result(msgpack.packb(told))

        for place, group_id in enumerate(groups):
            replica = engine.replicas.get(group_id)
            if not engine.running or replica is None or not replica.leads:
                told[place] = f"node {engine.node_id} does not lead it"
            elif not replica.core.can_read():
                told[place] = f"node {engine.node_id} has not committed an entry of its term yet"
            else:
                asker: Future[Index] = self._loop.create_future()
                asker.add_done_callback(partial(decided, place))
                engine.reading.ask(replica, asker)
                engine.mark(replica)
                left += 1
        if left == 0:
            answer.set_result(msgpack.packb(told))
        return answer


def _indexes_in(answer: Future[bytes], leader: NodeId, count: int) -> list[Index | str]:
    """Return what a question was answered with: an index for each of its `count` groups, or why there is none."""
    if answer.cancelled():
        return ["the question was given up"] * count
    error = answer.exception()
    if error is not None:
        return [f"node {leader}: {error}"] * count
    try:
        told: Any = msgpack.unpackb(answer.result())
    except ValueError:
        told = None
    if type(told) is not list or len(told) != count or any(type(each) not in (int, str) for each in told):
        return [f"node {leader} gave an answer that is none"] * count
    return told
