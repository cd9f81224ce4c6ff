"""When is which group due? A heap of (deadline, group) with lazy deletion.

Only a group without a leader has a deadline here, so a node of 100,000 quiet groups holds an empty wheel. Arming
pushes one entry; disarming and re-arming leave the old entry in the heap, where it is recognised as outdated when
it reaches the top, or dropped when outdated entries outnumber the live ones.

Rules of this file: each group has at most one live deadline; groups come out by deadline, then by id; no clock.
"""

from __future__ import annotations

import heapq
import math
from typing import Final

from multiraft.errors import invariant
from multiraft.types import GroupId

_COMPACT_ABOVE: Final = 64
"""Below this many entries, outdated ones are not worth a rebuild."""


class Wheel:
    """The deadlines of one node's groups.

    _live  the deadline that counts, of each armed group
    _heap  (deadline, group); holds an entry for everything in `_live`, and outdated ones beside them
    """

    __slots__ = ("_heap", "_live")

    def __init__(self) -> None:
        self._live: dict[GroupId, float] = {}
        self._heap: list[tuple[float, GroupId]] = []

    def __len__(self) -> int:
        """How many groups are armed."""
        return len(self._live)

    def __contains__(self, group_id: GroupId) -> bool:
        return group_id in self._live

    def arm(self, group_id: GroupId, deadline_s: float) -> None:
        """Make `deadline_s` the group's only deadline; infinity disarms it. Raises InvariantViolation for NaN."""
        if math.isnan(deadline_s):
            invariant(False, f"group {group_id}: a deadline is not a number")
        if deadline_s == math.inf:
            self.disarm(group_id)
        elif self._live.get(group_id) != deadline_s:
            self._live[group_id] = deadline_s
            heapq.heappush(self._heap, (deadline_s, group_id))
            self._compact()

    def disarm(self, group_id: GroupId) -> None:
        """Forget the group's deadline, if it has one."""
        if self._live.pop(group_id, None) is not None:
            self._compact()

    def expired(self, now: float) -> list[GroupId]:
        """Disarm and return the groups whose deadline is at or before `now`, earliest first, then by id."""
        due = []
        while self._live and self.next_deadline() <= now:
            _, group_id = heapq.heappop(self._heap)
            del self._live[group_id]
            due.append(group_id)
        return due

    def next_deadline(self) -> float:
        """Return the earliest deadline, in seconds; infinity when no group is armed."""
        heap = self._heap
        while heap:
            deadline_s, group_id = heap[0]
            if self._live.get(group_id) == deadline_s:
                return deadline_s
            heapq.heappop(heap)
        return math.inf

    def _compact(self) -> None:
        if len(self._heap) > _COMPACT_ABOVE and len(self._heap) > 2 * len(self._live):
            self._heap = [(deadline_s, group_id) for group_id, deadline_s in self._live.items()]
            heapq.heapify(self._heap)
