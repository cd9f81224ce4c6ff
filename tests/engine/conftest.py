"""One Liveness, "b", among peers "a" and "c": the tests of its rules play the peers, the groups and the clocks.

The election timeout is 1 s, the patience clock begins at START, the real clock elsewhere, so that no test can take
one for the other.
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random

import pytest

from multiraft.engine.leadset import LeadSet
from multiraft.engine.liveness import Liveness, LivenessSettings
from multiraft.messages import Beat, LeadDelta, LivenessMessage

MINE = 7  # the incarnation of the node under test
START = 100.0
ET = 1.0


class Rig:
    """The node under test, its groups (term_of, claimed, ... of GroupView), what it sent, and its clocks."""

    def __init__(self, terms: dict[int, int] | None = None, drift: float = 0.0, past_start: bool = True) -> None:
        self.terms = {1: 5, 2: 5} if terms is None else terms
        self.replica_ids: dict[int, int] = {}  # of the replicas here; 1 where nothing is said
        self.events: list[tuple[object, ...]] = []
        self.sent: list[tuple[str, LivenessMessage]] = []
        self.real_s = 1_000.0
        self.on_send: Callable[[], None] = lambda: None
        settings = LivenessSettings(0.1, ET, drift)
        started = START - 2 * ET if past_start else START
        self.node = Liveness("b", MINE, ["c", "a"], settings, Random(3), self, self.send, self.clock, started)
        self.told = {"a": LeadSet(), "c": LeadSet()}  # what the peers say that they lead
        self.sequence = {"a": 0, "c": 0}

    def clock(self) -> float:
        return self.real_s

    def send(self, node_id: str, message: LivenessMessage) -> None:
        self.on_send()
        self.sent.append((node_id, message))

    def term_of(self, group_id: int, replica_id: int) -> int | None:
        return self.terms.get(group_id) if replica_id == self.replica_ids.get(group_id, 1) else None

    def claimed(self, group_id: int, term: int, leader_node: str, now: float) -> None:
        assert self.terms[group_id] <= term
        self.terms[group_id] = term
        self.events.append(("claimed", group_id, term, leader_node))

    def electable(self, group_ids: list[int], now: float) -> None:
        self.events.append(("electable", *sorted(group_ids)))

    def refused(self, group_id: int, term: int, higher: int) -> None:
        self.events.append(("refused", group_id, term, higher))

    def rejudge(self, group_ids: list[int], now: float) -> None:
        self.events.append(("rejudge", *sorted(group_ids)))

    def acknowledged(self, node_id: str, round_id: int) -> None:
        self.events.append(("acknowledged", node_id, round_id))

    def missing(self, node_id: str, group_id: int, now: float) -> None:
        self.events.append(("missing", node_id, group_id))

    def arrived(self, node_id: str, group_id: int, now: float) -> None:
        self.events.append(("arrived", node_id, group_id))

    # ------------------------------------------------------------------------------ what the test has the peers do

    def connect(self, *peers: str, now: float = START) -> Rig:
        for peer in peers:
            self.node.connected(peer, 1, now)
        self.sent.clear()
        return self

    def hear(self, peer: str, message: LivenessMessage, now: float = START, incarnation: int = 1) -> None:
        self.node.received(peer, message, incarnation, now)

    def claim(self, peer: str, group_id: int, term: int, now: float = START, replica_id: int = 1) -> None:
        self.told[peer].put(group_id, term, replica_id)
        self.hear(peer, LeadDelta(((group_id, term, replica_id),), ()), now)

    def beat(self, peer: str, now: float = START, ack: int = 0, digest: int | None = None) -> int:
        """Have the peer send a beat to be answered at once; return its sequence number."""
        self.sequence[peer] += 1
        digest = self.told[peer].digest if digest is None else digest
        self.hear(peer, Beat(MINE if ack else 0, ack, True, digest, 1, self.sequence[peer]), now)
        return self.sequence[peer]

    def follow(self, peer: str, group_id: int, term: int, now: float = START) -> None:
        """Have the replica follow the peer, which is alive at `now`."""
        self.claim(peer, group_id, term, now)
        self.beat(peer, now)

    def take(self, peer: str | None = None) -> list[LivenessMessage]:
        """Return and forget what was sent (to `peer`)."""
        messages = [message for node_id, message in self.sent if peer in (None, node_id)]
        self.sent.clear()
        return messages

    def take_events(self) -> list[tuple[object, ...]]:
        events, self.events = self.events, []
        return events

    def last_beat(self, peer: str) -> Beat:
        return next(m for node_id, m in reversed(self.sent) if node_id == peer and type(m) is Beat)


@pytest.fixture
def new_rig() -> type[Rig]:
    """What makes a node under test: `new_rig(terms, drift, past_start)`."""
    return Rig
