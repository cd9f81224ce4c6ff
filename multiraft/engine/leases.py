"""Reads by lease: a leader answers at once while its followers have promised not to elect another.

Whoever acknowledges a beat promises to help nobody else into office for one election timeout from the beat's coming
(L11). A quorum's promises together are the leader's lease: it runs from the SENDING of the beats that they
acknowledged, which is before any of them began, and it is cut by the drift that clocks may have against each other
(L14; Ongaro's thesis, section 6.4.1). Inside it no other leader can have committed anything.

That is the one place where multiraft trusts clocks: not to tell the time, but to run at nearly the same rate. It is
therefore asked for call by call, and everything else goes by ReadIndex, which trusts no clock.

What is needed beside the lease: the leader has committed an entry of its own term (section 6.4), has asked nobody to
take over in this term (L14), and has applied everything that is committed. Where anything is missing the read goes by
ReadIndex, and its caller does not notice but for the time.

Rules of this file: the real clock is read afresh for every read, after the lease was computed (L15): the engine's own
clock forgives this process its sleep, and a lease must not. Voters alone count, both halves of a joint membership,
the leader itself only where it votes (L25).
"""

from __future__ import annotations

from asyncio import AbstractEventLoop, Future
from math import inf
from typing import TYPE_CHECKING

from multiraft.engine.leading import LivenessSettings
from multiraft.engine.machine import query_failed
from multiraft.engine.replica import Replica
from multiraft.engine.waiting import fail_future
from multiraft.types import GroupId

if TYPE_CHECKING:
    from multiraft.engine.engine import Engine


class Leases:
    """The leases of one node's leaders, and the reads that they allow.

    reads  how many were answered by lease, since the start
    """

    def __init__(self, engine: Engine, settings: LivenessSettings, loop: AbstractEventLoop) -> None:
        self._engine = engine
        self._loop = loop
        self.reads = 0
        self._clock = engine.clocks.real
        self._lease_s = settings.lease_s

    def read(self, group_id: GroupId, query: bytes) -> Future[bytes]:
        """Answer `query` at once if this node's replica leads and its lease allows it; else as `Engine.read`.

        Raises as `Engine.read` does.
        """
        engine = self._engine
        replica = engine.replicas.get(group_id)
        if replica is None or not self.holds(replica):
            return engine.read(group_id, query)
        self.reads += 1
        future: Future[bytes] = self._loop.create_future()
        try:
            future.set_result(replica.executor.query(query))
        except Exception as problem:
            fail_future(future, query_failed(problem))
        return future

    def holds(self, replica: Replica) -> bool:
        """Whether what `replica` has applied is, at this moment, all that anybody can have seen of its group."""
        if not self._current(replica) or not replica.core.lease_allowed():
            return False
        until_s = self._until_s(replica)
        return self._clock() < until_s  # read when the end is known, and not before (L15)

    def heard_s(self, replica: Replica) -> float:
        """Return a reading of the real clock at which `replica` surely led and held everything; -infinity if none.

        It is the sending of the newest beats that a quorum has acknowledged: none of them knew a higher term when
        they came (L1), so nobody else can have been elected before they were sent. No clock but this node's is
        trusted for that, and no promise: it is a ReadIndex round that the beats have made for nothing. Everything
        that was visible anywhere by then was committed by this leader or before it, and it has applied all of that.
        """
        if not self._current(replica) or not replica.core.lease_allowed():
            return -inf
        return self._until_s(replica) - self._lease_s

    def _current(self, replica: Replica) -> bool:
        if replica.halted is not None or replica.broken is not None or not self._engine.running:
            return False
        return replica.applied >= replica.core.commit and replica.core.can_read()

    def _until_s(self, replica: Replica) -> float:
        """Return the end of the lease on the real clock; it begins with the sending of the beats, `lease_s` before."""
        core = replica.core
        members = core.membership
        if not members.voters:
            return -inf
        nodes = members.nodes
        return self._engine.liveness.lease_until_s(
            replica.group_id,
            core.term,
            [nodes[voter] for voter in members.voters],
            [nodes[voter] for voter in members.outgoing],
        )
