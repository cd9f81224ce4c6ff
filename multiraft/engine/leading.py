"""What a node leads, and what its peers' acknowledgements say of each of those groups.

One acknowledged beat is the contact of every group that the peer had been told of by then. From it follow the
contact times by which a core counts its quorum, and the leases; and from the silence of a peer, when to count.

Rules of this file: nothing is sent here, and no clock is read; L8, L14 and L25 are rules of `liveness.py`.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Collection
from typing import Final

from multiraft.engine.livepeer import Telling
from multiraft.errors import invariant
from multiraft.types import GroupId, NodeId, ReplicaId, Term

_SLACK_S: Final = 1e-6
"""Judgements of a silence wait this much longer, so that whoever computes the same age otherwise agrees with them."""


class LivenessSettings:
    """How time is measured out; ET of the rules is the election timeout.

    beat_s              interval of the beat
    election_timeout_s  a peer silent this long has lost its followers
    drift               bound on how much faster or slower than true time any node's clock runs, as a fraction
    """

    __slots__ = ("beat_s", "drift", "election_timeout_s")

    def __init__(self, beat_s: float, election_timeout_s: float, drift: float = 0.01) -> None:
        invariant(0.0 < beat_s < election_timeout_s, "a beat must be shorter than the election timeout")
        invariant(0.0 <= drift < 1.0, "a clock's drift is a fraction below 1")
        self.beat_s = beat_s
        self.election_timeout_s = election_timeout_s
        self.drift = drift

    @property
    def lease_s(self) -> float:
        """How long a lease lasts, on its leader's clock, which may lose while a follower's gains (L14)."""
        return self.election_timeout_s * (1.0 - self.drift) / (1.0 + self.drift)


class Led:
    """One group that this node leads.

    targets  the replicas that are told, by node
    leased   L14: cleared for the rest of the term when another is asked to take over
    """

    __slots__ = ("leased", "targets", "term")

    def __init__(self, term: Term, targets: dict[NodeId, ReplicaId], leased: bool) -> None:
        self.term = term
        self.targets = targets
        self.leased = leased


class Leading:
    """The groups that one node leads.

    tellings  of every peer; whoever adds a peer adds it here
    _led      the groups led now. Who stops leading a group never leads it at the same term again
    _young    (due, group, term) of leaders whose quorum is to be counted once they are one ET old, ascending
    """

    def __init__(self, node_id: NodeId, settings: LivenessSettings) -> None:
        self.tellings: dict[NodeId, Telling] = {}
        self._node_id = node_id
        self._timeout_s = settings.election_timeout_s
        self._lease_s = settings.lease_s
        self._led: dict[GroupId, Led] = {}
        self._young: deque[tuple[float, GroupId, Term]] = deque()

    def lead(self, group_id: GroupId, term: Term, targets: dict[NodeId, ReplicaId], now: float) -> None:
        """Claim the group at `term` toward exactly these replicas. Raises InvariantViolation for a lower term."""
        led = self._led.get(group_id)
        invariant(led is None or led.term <= term, f"group {group_id}: led at a lower term than before")
        if led is not None:
            for node_id in sorted(led.targets.keys() - targets.keys()):
                self.tellings[node_id].want(group_id, None)
        for node_id in sorted(targets):
            self.tellings[node_id].want(group_id, (term, targets[node_id]))
        leased = led is None or led.leased or led.term < term
        self._led[group_id] = Led(term, targets, leased)
        self._young.append((now + self._timeout_s + _SLACK_S, group_id, term))

    def unlead(self, group_id: GroupId) -> None:
        """Take back all claims of the group."""
        led = self._led.pop(group_id, None)
        if led is not None:
            for node_id in sorted(led.targets):
                self.tellings[node_id].want(group_id, None)

    def term_of(self, group_id: GroupId) -> Term:
        """Return the term at which this node leads the group; 0 when it does not."""
        led = self._led.get(group_id)
        return led.term if led is not None else 0

    def terms(self) -> dict[GroupId, Term]:
        """Return the term of every group led here."""
        return {group_id: led.term for group_id, led in self._led.items()}

    def contact_s(self, group_id: GroupId, term: Term, node_id: NodeId) -> float:
        """Return the send time, patience clock, of the peer's newest acknowledgement that counts; -infinity if none."""
        telling = self._counting(group_id, term, node_id)
        return telling.acked_s if telling is not None else -math.inf

    def lease_until_s(
        self, group_id: GroupId, term: Term, voters: Collection[NodeId], outgoing: Collection[NodeId], real_s: float
    ) -> float:
        """Return the end of the lease on the real clock, which reads `real_s` now; -infinity when there is none.

        It runs from the sending of the beat by which a quorum, this node included where it votes, was last heard
        (thesis, section 6.4.1). A clock may gain and the other lose at the rate of `drift`, hence the factor.
        Raises InvariantViolation without voters.
        """
        if not voters:
            invariant(False, f"group {group_id}: a lease is asked for without voters")
        led = self._led.get(group_id)
        if led is None or led.term != term or not led.leased:
            return -math.inf
        sent_s = self._quorum_sent_s(group_id, term, voters, real_s)
        if outgoing:
            sent_s = min(sent_s, self._quorum_sent_s(group_id, term, outgoing, real_s))
        return sent_s + self._lease_s

    def forget_lease(self, group_id: GroupId) -> None:
        """The group has no lease until it is led at a higher term."""
        led = self._led.get(group_id)
        if led is not None:
            led.leased = False

    def due(self, now: float) -> list[GroupId]:
        """Return the groups whose quorum must be counted now: each time one may have been lost, once.

        That is when a peer falls silent for the groups that it was told of, and, while somebody is silent, when a
        leader becomes one ET old: until then its own election counts as contact. O(peers) when there are none.
        """
        silent_since_s = now - self._timeout_s - _SLACK_S
        groups: dict[GroupId, None] = {}
        for _, telling in sorted(self.tellings.items()):
            if telling.acked_s >= silent_since_s:
                telling.silence_judged = False
            elif not telling.silence_judged:
                telling.silence_judged = True
                groups.update((group_id, None) for group_id in telling.told.groups() if group_id in self._led)
        while self._young and self._young[0][0] <= now:
            _, group_id, term = self._young.popleft()
            if self.term_of(group_id) == term and self._misses_somebody(group_id, silent_since_s):
                groups[group_id] = None
        return list(groups)

    def _misses_somebody(self, group_id: GroupId, silent_since_s: float) -> bool:
        led = self._led[group_id]
        return any(self.contact_s(group_id, led.term, node_id) < silent_since_s for node_id in led.targets)

    def _counting(self, group_id: GroupId, term: Term, node_id: NodeId) -> Telling | None:
        """Return the peer's Telling if its newest acknowledgement counts for the group, led here at `term`."""
        led, telling = self._led.get(group_id), self.tellings.get(node_id)
        if led is None or led.term != term or telling is None or node_id not in led.targets:
            return None
        return telling if telling.counts(group_id, term, led.targets[node_id]) else None

    def _quorum_sent_s(self, group_id: GroupId, term: Term, voters: Collection[NodeId], real_s: float) -> float:
        sent = []
        for node_id in voters:
            telling = self._counting(group_id, term, node_id)
            if node_id == self._node_id:
                sent.append(real_s)
            else:
                sent.append(telling.acked_real_s if telling is not None else -math.inf)
        sent.sort(reverse=True)
        return sent[len(sent) // 2]
