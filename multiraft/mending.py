"""What a node's user asks of replicas that have halted: why, apply on, begin anew.

Rules of this file: it only passes on; what is done stands in multiraft.containment.
"""

from __future__ import annotations

from typing import Any

from multiraft.containment import REBUILD_TIMEOUT_S
from multiraft.running import Running
from multiraft.types import GroupId, NodeId
from multiraft.why import why_of


class Mending:
    """The part of a Node that is about halted replicas."""

    @property
    def node_id(self) -> NodeId:
        raise NotImplementedError

    def _here(self) -> Running:
        """Return the parts that run. Raises NotRunning."""
        raise NotImplementedError

    def retry(self, group_id: GroupId) -> None:
        """Have a halted replica on this node apply on, from the entry that it stopped at.

        Its machine is made anew, from its own snapshot and log. Mend what halted it first (`why` says what it was).

        Raises InvalidRequest (it is not halted), NotReady (this node has no replica of the group), NotRunning.
        """
        self._here().containment.retry(group_id)

    def why(self, group_id: GroupId) -> dict[str, Any]:
        """Say why this node's replica is halted, without a leader, or slow, and what to do next; see `why.why_of`.

        Raises KeyError when there is none, NotRunning.
        """
        running = self._here()
        replica = running.engine.replicas[group_id]
        return why_of(running.engine, replica, self.node_id, running.containment.rebuilding(group_id))

    def begin_rebuild(self, group_id: GroupId, timeout_s: float) -> None:
        """Begin what `rebuild` does, and return; `why` says how far it is. Raises as `rebuild` does at once."""
        self._here().containment.begin_rebuild(group_id, timeout_s)

    async def rebuild(self, group_id: GroupId, timeout_s: float | None = None) -> None:
        """Give a halted replica on this node the state of a healthy one; its log, its vote and its place stay.

        Its group's leader takes a snapshot of what it has applied and sends it here. Where this replica leads, a
        healthy one takes over first. Returns when this one applies again.

        timeout_s  seconds in all; None: 120

        Raises NotReady (no other replica is healthy, or not done in time; the message says what was missing, and
        calling again goes on), InvalidRequest (the replica is not halted), NotRunning.
        """
        await self._here().containment.rebuild(group_id, REBUILD_TIMEOUT_S if timeout_s is None else timeout_s)
