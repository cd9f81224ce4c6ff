"""Where a lane goes: to the leader of its group, to a member that may know it, or through another node; and when again.

    placed in a link's list <── leader, or the next member, is connected
    waits for a connection  <── it can be dialled
    through another link    <── it is known, and cannot be reached from here
    pauses                  <── everybody was asked, and nobody serves

Rules of this file: no I/O; a lane that is placed is in one of these places; nobody is asked twice in a round.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable
from itertools import count
from math import inf
from random import Random
from typing import Final

from multiraft.client.atlas import Atlas
from multiraft.client.lanes import Call, Lane
from multiraft.client.links import Link
from multiraft.errors import MultiRaftError, Unreachable
from multiraft.types import NodeId

AVOID_S: Final = 0.5
"""How long a node that could not be reached is not dialled again."""
LOOK_S: Final = 0.1
"""Time between two questions for the map."""


class Placing:
    """The part of a client's core that is about nodes.

    clock     the time that deadlines are counted on, in seconds
    chance    where session ids and jitter come from
    dial      asks for a connection to a node; `connected` or `unreachable` follows
    wake_at   asks for `tick` at a time, or earlier
    atlas     what the nodes have said
    links     the connections that are up, by node
    """

    def __init__(
        self,
        clock: Callable[[], float],
        chance: Random,
        dial: Callable[[NodeId], None],
        wake_at: Callable[[float], None],
    ) -> None:
        self.clock = clock
        self.chance = chance
        self._dial = dial
        self._wake_at = wake_at
        self.atlas = Atlas()
        self.links: dict[NodeId, Link] = {}
        self._avoid: dict[NodeId, float] = {}
        self._waiting: dict[NodeId, list[Lane]] = {}
        self._homeless: list[Lane] = []
        self._later: list[tuple[float, int, Lane]] = []
        self._order = count()
        self._look_id = 0
        self._looking: Link | None = None
        self._looked_s = -inf
        self._look_due = False

    def _settle(self, call: Call, outcome: bytes | MultiRaftError) -> None:
        raise NotImplementedError

    def _place(self, lane: Lane) -> None:
        """Put the lane where its calls can be sent, or have it wait for what must come first."""
        lane.placed, lane.relayed = True, False
        links = self.links
        for node_id in self._candidates(lane):
            link = links.get(node_id)
            if link is not None:
                break
            if node_id in self.atlas.urls and self._avoid.get(node_id, 0.0) <= self.clock():
                self._waiting.setdefault(node_id, []).append(lane)
                self._dial(node_id)
                return
            if node_id == lane.leader:  # cannot be reached from here: have another node ask it
                link = None
                break
        else:
            link = None
            if lane.tried and lane.leader is None:
                self._round_over(lane)
                return
        if link is None:
            if not links:
                self._homeless.append(lane)
                return
            link = next((each for name, each in links.items() if name not in lane.tried), None)
            link = link or next(iter(links.values()))
            lane.relayed = True
        link.ready.append(lane)
        link.wake()

    def _candidates(self, lane: Lane) -> Iterable[NodeId]:
        """Yield whom the lane may go to, best first."""
        if lane.near:  # the best one is connected already
            yield from (name for name in lane.members if name in self.links and name not in lane.tried)
        elif lane.leader is not None:
            yield lane.leader
        yield from (name for name in lane.members if name not in lane.tried)

    def _round_over(self, lane: Lane) -> None:
        """Nobody serves the group: ask again after a pause. Calls end with Halted if that is why."""
        for call in lane.queue:
            if call.attempts is not None and not call.settled:
                try:
                    call.attempts.round_over()
                except MultiRaftError as problem:
                    self._settle(call, problem)
        lane.paused = True
        self._look_later(lane, lane.round_over() * self.chance.uniform(0.5, 1.0))
        self._want_map()

    def _look_later(self, lane: Lane, pause_s: float) -> None:
        until_s = self.clock() + pause_s
        heapq.heappush(self._later, (until_s, next(self._order), lane))
        self._wake_at(until_s)

    def _replace(self, lane: Lane) -> None:
        lane.placed = False
        if lane.queue:
            self._place(lane)

    def unreachable(self, node_id: NodeId, why: str) -> None:
        """A node that was asked for could not be dialled."""
        self._avoid[node_id] = self.clock() + AVOID_S
        self.atlas.failed(node_id)
        for lane in self._waiting.pop(node_id, []):
            lane.cause = Unreachable(f"node {node_id!r}: {why}")
            if lane.leader != node_id:
                lane.tried.add(node_id)
            self._replace(lane)

    # -------------------------------------------------------------------------------------------------- the shard map

    def want_service(self, name: str) -> None:
        """Have the map of a service looked up."""
        if name not in self.atlas.wanted:
            self.atlas.wanted.add(name)
            self._want_map()

    def _want_map(self) -> None:
        self._look_due = True
        if self._looking is None and self.links:
            now, due_s = self.clock(), self._looked_s + LOOK_S
            if now < due_s:
                self._wake_at(due_s)
                return
            self._look_due = False
            self._looked_s = now
            self._look_id += 1
            self._looking = link = self.chance.choice(list(self.links.values()))
            link.looks.append(self._look_id)
            link.wake()
