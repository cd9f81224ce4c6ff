"""Applying what is committed, in slices, so that peers are heard and beats leave between them.

Rules of this file: a turn applies for at most one slice; the directory goes first; a replica that halts gives up its
leadership at once.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Final

from multiraft.engine.doing import Doing
from multiraft.engine.replica import Replica
from multiraft.engine.telling import Telling
from multiraft.types import DIRECTORY_GROUP

if TYPE_CHECKING:
    from multiraft.engine.engine import Engine

_CACHE_MIN_BYTES: Final = 16 * 1024
_OVERLONG: Final = 4
"""A slice that took so many times what it may is followed by a rest, of this share of it, at most so long."""
_REST_SHARE: Final = 0.1
_REST_MOST_S: Final = 0.02


class Applying:
    """The replicas with committed entries to apply; `doing` says which one does, `telling` whom to call."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._queue: deque[Replica] = deque()
        self.doing = Doing()
        self.telling = Telling(engine.loop)
        self._stopwatch = engine.clocks.effort
        self._slice_s = engine.limits.apply_slice_ms / 1e3
        self._resting = False

    @property
    def pending(self) -> bool:
        """Whether a slice is to be applied now."""
        return bool(self._queue) and not self._resting

    def add(self, replica: Replica) -> None:
        """Have `replica` apply up to its `committed`."""
        if not replica.apply_queued:
            replica.apply_queued = True
            if replica.group_id == DIRECTORY_GROUP:
                self._queue.appendleft(replica)
            else:
                self._queue.append(replica)

    def run(self, now: float) -> None:
        """Apply for one slice; what is left stays queued."""
        engine, queue = self._engine, self._queue
        cache_bytes = max(_CACHE_MIN_BYTES, engine.limits.log_cache_bytes // max(1, len(engine.replicas)))
        stopwatch, doing = self._stopwatch, self.doing
        began_s = stopwatch()
        until_s = began_s + self._slice_s
        while queue and stopwatch() < until_s:
            replica = queue.popleft()
            replica.apply_queued = False
            if replica.broken is not None or replica.being_taken:
                continue
            on_disk = replica.data is not None
            if on_disk and engine.ondisk.waits(replica):
                continue
            doing.begin(replica)
            more = broke = False
            try:
                more = replica.apply_slice(until_s)
                if on_disk:
                    engine.ondisk.hand_out(replica)
            except Exception as problem:
                broke = True
                engine.broke(replica, problem)
            finally:
                doing.replica = None
            if broke:
                continue
            if more:
                self.add(replica)
            if replica.halted is not None:
                engine.containing.give_up(replica, now)
            engine.containing.applied(replica)
            engine.snapshotting.consider(replica)
            if replica.core.log.size_bytes > cache_bytes:
                replica.core.log.trim(cache_bytes)
        took_s = stopwatch() - began_s
        if queue and took_s > _OVERLONG * self._slice_s:
            self._rest(min(_REST_SHARE * took_s, _REST_MOST_S))

    def _rest(self, rest_s: float) -> None:
        """One command held the loop for too long, and there is more to apply: first let everything else have its turn.

        What comes from peers, and what goes to them, takes several rounds of the loop, and each would have such a
        command in it: they would take this node for silent.
        """
        self._resting = True
        self._engine.loop.call_later(rest_s, self._rested)

    def _rested(self) -> None:
        self._resting = False
        self._engine.wake()
