"""The client without I/O: which call goes to which node in which frame, and what its answer, or a loss, means.

What happens is told to it (a call, a connection, a frame, a loss, that time has passed), and it says what to do: frames
to write, by link, when the writer has room for one (so that calls that come meanwhile join the next frame), nodes to
dial, and when to be woken. A call goes to the leader of its group: as the map, NotLeader, or an earlier answer says;
where nobody knows, its members are asked in turn, in rounds with a pause between. A leader that cannot be reached from
here is asked through another node.

Commands are numbered in a session of this client in each group, as `multiraft.shard.session` does for a node's own
callers, and by the same rules: one that was sent and lost is sent again under its number, and applied once; an id is
registered once; who has gone is passed.

Rules of this file: no I/O, no task; each call ends exactly once, at its deadline at the latest; once an attempt may
have happened, nothing is said to have certainly not.
"""

from __future__ import annotations

import heapq
from asyncio import Future
from collections.abc import Callable
from math import inf
from random import Random
from typing import Final

from multiraft.client import frames
from multiraft.client.frames import ANYBODY, FIRST, NEAR, NUMBERED, REGISTER, Found, Welcome
from multiraft.client.lanes import Call, Done, How, Lane
from multiraft.client.links import Link
from multiraft.client.placing import Placing
from multiraft.errors import (
    DeadlineExceeded,
    MultiRaftError,
    NotCommitted,
    NotReady,
    NotRunning,
    OutcomeUnknown,
    Overloaded,
    ReadFailed,
    SessionExpired,
    Unreachable,
    WireError,
    WrongShard,
)
from multiraft.sessions import CLIENT_BYTES, HEAD
from multiraft.shard.attempts import NUMBERED_LEAST_S, NumberedAttempts
from multiraft.shard.session import GroupSession
from multiraft.types import GroupId, NodeId

FRAME_BYTES: Final = 256 * 1024
"""A frame takes no further call once its calls come to this."""
_OVERHEAD_BYTES: Final = 16
_LATER: Final = (OutcomeUnknown, NotReady, DeadlineExceeded, NotCommitted)
"""After these very errors another session is registered, while anybody waits for one."""


class Core(Placing):
    """The state of one client; what stands in `Placing`, and:

    calls_most, bytes_most  bounds of what is under way, over all groups
    room      told when there is room again after Overloaded
    map_came  told that a node has answered what it was asked of the map
    outstanding, used_bytes  the calls under way, and their bytes
    counts    what happened: "retries", "registered" (sessions), "late" (calls), "lost" (connections)
    """

    def __init__(
        self,
        clock: Callable[[], float],
        chance: Random,
        calls_most: int,
        bytes_most: int,
        dial: Callable[[NodeId], None],
        wake_at: Callable[[float], None],
        room: Callable[[], None],
        map_came: Callable[[], None],
    ) -> None:
        super().__init__(clock, chance, dial, wake_at)
        self.calls_most = calls_most
        self.bytes_most = bytes_most
        self._room = room
        self._map_came = map_came
        self.outstanding: set[Call] = set()
        self.used_bytes = 0
        self.counts = {"retries": 0, "registered": 0, "late": 0, "lost": 0}
        self.stopped = False
        self._crowded = False
        self._lanes: dict[GroupId, Lane] = {}
        self._near: dict[GroupId, Lane] = {}
        self._unrouted: list[Call] = []
        self._earliest_s = inf

    # ------------------------------------------------------------------------------------------------------- calls

    def submit(self, call: Call, where: str | GroupId, key: bytes = b"") -> None:
        """Begin a call: in a group by its id, or in the shard of a service that serves `key`.

        Raises Overloaded, NotRunning.
        """
        if self.stopped:
            raise NotRunning("the client is closed")
        outstanding = self.outstanding
        used_bytes = self.used_bytes + len(call.body)
        if (used_bytes > self.bytes_most or len(outstanding) >= self.calls_most) and outstanding:
            self._crowded = True  # one call is always let through
            raise Overloaded(f"{len(outstanding)} calls of {self.used_bytes} bytes are under way; retry")
        self.used_bytes = used_bytes
        outstanding.add(call)
        if call.deadline < self._earliest_s:
            self._earliest_s = call.deadline
            self._wake_at(call.deadline)
        if type(where) is str:
            call.service, call.key = where, key
            service = self.atlas.services.get(where)
            if service is None:
                self._wait_for_map(call)
            else:
                self._enter(call, service.find(key).group_id)
        else:
            self._enter(call, where)  # type: ignore[arg-type]

    def _begin(self, call: Call) -> None:
        self.used_bytes += len(call.body)
        self.outstanding.add(call)
        if call.deadline < self._earliest_s:
            self._earliest_s = call.deadline
            self._wake_at(call.deadline)

    def _enter(self, call: Call, group_id: GroupId) -> None:
        lanes = self._lanes if call.how[0] != NEAR else self._near
        lane = lanes.get(group_id)
        if lane is None:
            atlas = self.atlas
            members, leader = atlas.groups.get(group_id, ()), atlas.leaders.get(group_id)
            lane = lanes[group_id] = Lane(group_id, members, leader, lanes is self._near)
        call.lane = lane
        if call.numbers:
            session = lane.session
            if session is None:
                lane.unnumbered.append(call)
                if lane.enrolling is None:
                    self._enroll(lane)
                return
            if not self._number(call, session):
                return
        lane.queue.append(call)
        if not lane.placed:
            self._place(lane)

    def _settle(self, call: Call, outcome: bytes | MultiRaftError) -> None:
        """Tell the caller, unless it has been told."""
        if call.settled:
            return
        call.settled = True
        self.outstanding.discard(call)
        self.used_bytes -= len(call.body)
        session = call.session
        if session is not None:
            session.end(call.sequence)
        future = call.future
        if future is None:
            if call.done is not None:
                call.done(outcome)
        elif not future.done():
            if type(outcome) is bytes:
                future.set_result(outcome)
            else:
                future.set_exception(outcome)  # type: ignore[arg-type]
        if self._crowded:
            self._crowded = False
            self._room()

    # ---------------------------------------------------------------------------------------------------- sessions

    def _number(self, call: Call, session: GroupSession) -> bool:
        try:
            call.sequence = sequence = session.begin()
        except Overloaded as problem:
            self._settle(call, problem)
            return False
        call.session = session
        call.body = HEAD.pack(session.client, sequence, session.lowest) + call.body
        self.used_bytes += HEAD.size
        return True

    def _unnumber(self, call: Call) -> None:
        if call.session is not None:
            call.session.end(call.sequence)
            call.session = None
            call.body = call.body[HEAD.size :]
            self.used_bytes -= HEAD.size

    def _renumber(self, call: Call, lane: Lane) -> None:
        """The session has ended without having seen the call: another one is begun for it."""
        if lane.session is call.session:
            lane.session = None
        self._unnumber(call)
        call.attempts = None
        self._enter(call, lane.group_id)

    def _enroll(self, lane: Lane) -> None:
        """Register a session, under an id that was never registered before."""
        lane.unnumbered = [call for call in lane.unnumbered if not call.settled]
        if not lane.unnumbered:
            return
        now = self.clock()
        left_s = max(call.deadline for call in lane.unnumbered) - now
        client = self.chance.randbytes(CLIENT_BYTES)
        deadline = now + min(left_s, max(left_s / 2, NUMBERED_LEAST_S))
        call = Call((REGISTER, 0), client, deadline, lambda outcome: self._enrolled(lane, call, client, outcome))
        call.lane = lane
        lane.enrolling = call
        self._begin(call)
        lane.queue.append(call)
        if not lane.placed:
            self._place(lane)

    def _enrolled(self, lane: Lane, call: Call, client: bytes, outcome: bytes | MultiRaftError) -> None:
        if lane.enrolling is not call:
            return
        lane.enrolling = None
        waiting, lane.unnumbered = [each for each in lane.unnumbered if not each.settled], []
        if type(outcome) is bytes:  # heard on a link: whoever has handed it on places the lane
            self.counts["registered"] += 1
            lane.session = session = GroupSession(client)
            lane.queue += [each for each in waiting if self._number(each, session)]
        elif type(outcome) in _LATER and not self.stopped:
            lane.unnumbered = waiting
            self._look_later(lane, lane.backoff_s)
        else:
            for each in waiting:
                self._settle(each, outcome)

    # ------------------------------------------------------------------------------------------------------- frames

    def next_frame(self, link: Link) -> bytes | None:
        """Return the next frame to be written on a link; None: nothing is to be, before `link.wake` is called."""
        if link.looks:
            return frames.look(link.looks.pop(), self.atlas.wanted)
        ready = link.ready
        if not ready:
            return None
        batches = []
        room_bytes, now = FRAME_BYTES, self.clock()
        while ready and room_bytes > 0 and not link.full:
            lane = ready.popleft()
            if link.node_id in lane.tried and not lane.relayed:  # it was told meanwhile to look elsewhere
                self._replace(lane)
                continue
            taken, room_bytes = self._take(lane, room_bytes, link.welcome.calls - link.in_flight)
            if lane.queue:
                ready.append(lane)
            else:
                lane.placed = False
            for (kind, argument), calls in taken.items():
                left_s = min([call.deadline for call in calls]) - now
                timeout_ms = min(max(1, int(left_s * 1_000)), frames.TIMEOUT_MS_MAX)
                batch_id = link.sent(calls, lane, not (lane.relayed or lane.near))
                batches.append((batch_id, lane.group_id, kind, argument, timeout_ms, [call.body for call in calls]))
        return frames.calls(batches) if batches else None

    def _take(self, lane: Lane, room_bytes: int, room: int) -> tuple[dict[How, list[Call]], int]:
        """Take calls off the lane, by kind, until there is no room in the frame for another."""
        taken: dict[How, list[Call]] = {}
        at = 0
        relayed = lane.relayed and not lane.near
        for call in lane.queue:
            if room_bytes <= 0 or room <= 0:
                break
            at += 1
            if call.settled:
                continue
            if call.abandoned:
                self._settle(call, NotRunning("cancelled"))
                continue
            how = call.how
            if relayed:
                how = (how[0], ANYBODY | (0 if call.unknown else FIRST))
            calls = taken.get(how)
            if calls is None:
                calls = taken[how] = []
            calls.append(call)
            call.flying = True
            room_bytes -= len(call.body) + _OVERHEAD_BYTES
            room -= 1
        if at == len(lane.queue):
            lane.queue = []
        else:
            del lane.queue[:at]
        return taken, room_bytes

    def received(self, link: Link, frame: bytes) -> None:
        """Take a frame that came on a link. Raises WireError: close the connection."""
        heard = frames.read_answer(frame)
        if isinstance(heard, Found):
            self._found(link, heard)
            return
        version, parts = heard
        full = link.full
        for batch_id, first, outcomes in parts:
            sent, answered = link.answered(batch_id, first, len(outcomes))
            if first < 0:
                outcomes = outcomes * len(answered)
            lane, served = sent.lane, False
            for call, outcome in zip(answered, outcomes, strict=True):
                if type(outcome) is bytes:
                    served = True
                    self._settle(call, outcome)
                else:
                    self._failed(call, frames.error_of(outcome, read=call.reads), link.node_id)
            if served:
                lane.serves(link.node_id if sent.direct else None)
            if lane.queue and not lane.placed:
                self._place(lane)
        if full:
            link.wake()
        if version > self.atlas.version >= 0:
            self._want_map()

    def _failed(self, call: Call, problem: MultiRaftError, node_id: NodeId) -> None:
        """An attempt was refused, or is lost: end the call, or make another one."""
        lane = call.lane
        if call.settled or lane is None:
            return
        if call.abandoned:
            self._settle(call, problem)
            return
        if isinstance(problem, NotRunning):  # of that node, not of this client
            problem = Unreachable(f"node {node_id!r}: {problem}")
        try:
            call.failed(problem)
        except SessionExpired as ended:  # then no attempt has happened, or it would be OutcomeUnknown
            if call.numbers:
                self._renumber(call, lane)
            else:
                self._settle(call, ended)
        except WrongShard:
            if call.service is None:
                self._settle(call, problem)
            else:
                call.after_map = self.atlas.version
                self._unnumber(call)
                self._wait_for_map(call)
        except MultiRaftError as final:
            self._settle(call, final)
        else:
            self.counts["retries"] += 1
            lane.serves_not(node_id, problem)
            lane.queue.append(call)

    # --------------------------------------------------------------------------------------------------- connections

    def connected(self, welcome: Welcome, wake: Callable[[], None]) -> Link:
        """A connection is up; an earlier one to that node must have been `lost`."""
        link = Link(welcome, wake)
        self.links[link.node_id] = link
        self._avoid.pop(link.node_id, None)
        lanes, self._homeless = self._waiting.pop(link.node_id, []) + self._homeless, []
        for lane in lanes:
            self._replace(lane)
        if self._look_due or (self.atlas.version < 0 and self._looking is None):
            self._want_map()
        return link

    def lost(self, link: Link, why: str) -> None:
        """A connection has ended. What was sent on it may have happened."""
        if self.links.get(link.node_id) is link:
            del self.links[link.node_id]
        self.counts["lost"] += 1
        batches, link.batches = link.batches, {}
        ready, node_id = list(link.ready), link.node_id
        link.ready.clear()
        lanes = {id(lane): lane for lane in (*ready, *[sent.lane for sent in batches.values()])}
        for lane in lanes.values():
            lane.serves_not(node_id, Unreachable(f"node {node_id!r}: {why}"))
        for lane in ready:
            lane.placed = False
        for sent in batches.values():
            for call in sent.calls:
                if call is not None:
                    kind = ReadFailed if call.reads else OutcomeUnknown
                    self._failed(call, kind(f"the connection to node {node_id!r} was lost: {why}"), node_id)
        for lane in lanes.values():
            if not lane.placed:
                self._replace(lane)
        if self._looking is link:
            self._looking = None
            self._want_map()

    # -------------------------------------------------------------------------------------------------- the shard map

    def _wait_for_map(self, call: Call) -> None:
        call.lane = None
        self._unrouted.append(call)
        if call.service is not None:
            self.atlas.wanted.add(call.service)
        self._want_map()

    def _found(self, link: Link, found: Found) -> None:
        if found.look_id != self._look_id or self._looking is not link:
            raise WireError("a map that was not asked for")
        self._looking = None
        self.atlas.found(found)
        for lanes in (self._lanes, self._near):
            for group_id, lane in lanes.items():
                lane.members = self.atlas.groups.get(group_id, lane.members)
        unrouted, self._unrouted = self._unrouted, []
        for call in unrouted:
            service = self.atlas.services.get(call.service or "")
            if call.settled:
                continue
            if service is None or call.key is None or call.after_map >= self.atlas.version:
                self._unrouted.append(call)
            else:
                self._enter(call, service.find(call.key).group_id)
        self._map_came()
        if self._unrouted or self._look_due or self.atlas.wanted - self.atlas.services.keys():
            self._want_map()

    # ---------------------------------------------------------------------------------------------------------- time

    def tick(self) -> None:
        """Do what is due."""
        now = self.clock()
        if now >= self._earliest_s:
            self._expire(now)
        while self._later and self._later[0][0] <= now:
            _, _, lane = heapq.heappop(self._later)
            if lane.session is None and lane.enrolling is None:
                self._enroll(lane)
            if lane.paused:
                lane.paused = False
                self._replace(lane)
        if self._look_due:
            self._want_map()
        if self._later:
            self._wake_at(self._later[0][0])

    def _expire(self, now: float) -> None:
        lanes: dict[int, Lane] = {}
        for call in [call for call in self.outstanding if call.deadline <= now]:
            self.counts["late"] += 1
            if call.lane is not None:
                lanes[id(call.lane)] = call.lane
            self._settle(call, call.late())
        for lane in lanes.values():  # what is never sent must not pile up while nobody can be reached
            lane.queue = [call for call in lane.queue if not call.settled]
            lane.unnumbered = [call for call in lane.unnumbered if not call.settled]
        self._unrouted = [call for call in self._unrouted if not call.settled]
        self._earliest_s = min([call.deadline for call in self.outstanding], default=inf)
        if self.outstanding:
            self._wake_at(self._earliest_s)

    def stop(self) -> None:
        """The client ends: every call that is under way is told so."""
        self.stopped = True
        for call in list(self.outstanding):
            if not call.flying and not call.unknown:
                self._settle(call, NotRunning("the client was closed before the call was sent"))
            elif call.reads:
                self._settle(call, ReadFailed("the client was closed"))
            else:
                self._settle(call, OutcomeUnknown("the client was closed: the command may have happened"))


def new_call(
    kind: int,
    body: bytes,
    deadline: float,
    *,
    argument: int = 0,
    numbers: bool = False,
    again: bool = False,
    done: Done | None = None,
    future: Future[bytes] | None = None,
) -> Call:
    """Return a call.

    kind     as in frames.py; with `numbers` a command that is numbered by this client
    again    it was numbered by the program, which may have sent it before
    done     gets the result or the error; None: `future` does
    """
    call = Call((NUMBERED if numbers else kind, argument), body, deadline, done, future)
    call.numbers = numbers
    if again:
        call.attempts = NumberedAttempts(True)
    return call
