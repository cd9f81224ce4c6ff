"""A connection that is up, as the core sees it: what waits to be written on it, and what was, without an answer yet.

Rules of this file: a batch is forgotten when its last call is answered; an answer that fits to no call is a WireError.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from itertools import count

from multiraft.client.frames import Welcome
from multiraft.client.lanes import Call, Lane
from multiraft.errors import WireError


class Sent:
    """A batch without all its answers: its calls, None where one has been answered.

    direct  the asked node was to lead, and not to pass the calls on
    """

    __slots__ = ("calls", "direct", "lane", "left")

    def __init__(self, lane: Lane, calls: list[Call | None], direct: bool) -> None:
        self.lane = lane
        self.calls = calls
        self.left = len(calls)
        self.direct = direct


class Link:
    """A connection that is up.

    ready      lanes with calls to be sent on it
    batches    what was sent on it and not answered
    in_flight  how many calls those are
    looks      questions for the map to be sent
    wake       tells the writer that there may be a frame
    """

    __slots__ = ("batches", "in_flight", "looks", "next_id", "node_id", "ready", "wake", "welcome")

    def __init__(self, welcome: Welcome, wake: Callable[[], None]) -> None:
        self.welcome = welcome
        self.node_id = welcome.node_id
        self.wake = wake
        self.ready: deque[Lane] = deque()
        self.batches: dict[int, Sent] = {}
        self.in_flight = 0
        self.looks: list[int] = []
        self.next_id = count(1)

    @property
    def full(self) -> bool:
        """Whether as many calls are under way as the node allows."""
        return self.in_flight >= self.welcome.calls

    def sent(self, calls: list[Call], lane: Lane, direct: bool) -> int:
        """Note a batch; return its id."""
        batch_id = next(self.next_id)
        self.batches[batch_id] = Sent(lane, list(calls), direct)
        self.in_flight += len(calls)
        return batch_id

    def answered(self, batch_id: int, first: int, outcomes: int) -> tuple[Sent, list[Call]]:
        """Return a batch, and which of its calls a part answers, and forget these. Raises WireError."""
        sent = self.batches.get(batch_id)
        if sent is None:
            raise WireError("an answer to no question")
        calls = sent.calls
        if first < 0:
            rest = [call for call in calls if call is not None]
            del self.batches[batch_id]
            self.in_flight -= len(rest)
            return sent, rest
        part = calls[first : first + outcomes]
        if len(part) != outcomes or None in part:
            raise WireError("an answer to a call that is not under way")
        sent.left -= outcomes
        self.in_flight -= outcomes
        if sent.left:
            calls[first : first + outcomes] = [None] * outcomes
        else:
            del self.batches[batch_id]
        return sent, part  # type: ignore[return-value]
