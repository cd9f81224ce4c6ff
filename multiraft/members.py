"""Changing who takes part in a group, one call each: what is asked of its leader, in which order, until it is so.

    add      a learner that the leader promotes by itself once it has caught up; wait until it votes
    remove   one change; a leader that removes itself hands over
    replace  a learner, wait until it has caught up, then both changes as one joint change
    promote, demote

Each step names the membership that it was made for, so a step that may or may not have happened is looked at again
rather than done twice; a procedure whose caller dies half-way is taken up by calling it again.

Rules of this file: nodes go in, for a node has one replica of a group at most; nothing is kept between two calls.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Final

from multiraft.engine.changing import MembershipView, decode_view, encode_change, encode_look
from multiraft.errors import (
    ChangePending,
    ChangeRefused,
    CorruptRecord,
    InvalidRequest,
    MembershipChanged,
    NotCommitted,
    NotReady,
    NotRunning,
    OutcomeUnknown,
)
from multiraft.raft import AddLearner, Change, Demote, Promote, Remove
from multiraft.types import NOBODY, Membership, NodeId, ReplicaId

Ask = Callable[[str, bytes, float], Coroutine[Any, Any, bytes]]
"""Bring a `change` or `membership` call to the group's leader: (kind, body, timeout in seconds)."""
CHANGE_TIMEOUT_S: Final = 60.0
_LOOK_S: Final = 1.0
_AGAIN_S: Final = 0.05
_NOT_REACHED: Final = "the group's leader was not reached"


class Members:
    """The changes of one group's membership. `ask` reaches its leader, wherever that is; `now` is in seconds."""

    def __init__(self, ask: Ask, now: Callable[[], float], timeout_s: float | None) -> None:
        self._ask = ask
        self._now = now
        self._timeout_s = CHANGE_TIMEOUT_S if timeout_s is None else timeout_s
        self._deadline_s = now() + self._timeout_s
        self._waiting_for = _NOT_REACHED

    async def add(self, node_id: NodeId, voter: bool) -> Membership:
        """Give the group a replica on `node_id`; return the membership in which it votes (`voter`), or learns."""
        while True:
            view = await self._look()
            members = view.in_effect
            replica_id = members.replica_on(node_id)
            if replica_id in members.voters or (replica_id in members.learners and not voter):
                return members
            if members.joint or view.latest.index != members.index:
                await self._next(view, f"a membership change of index {view.latest.index} is under way")
            elif replica_id == NOBODY:
                await self._change(members, [AddLearner(node_id, joining=voter)])
            elif replica_id not in members.joining:
                await self._promote(view, replica_id)
            else:
                await self._next(view, _still(view, replica_id, node_id))

    async def remove(self, node_id: NodeId) -> Membership:
        """Take the replica on `node_id` out of the group; return the membership without it."""
        while True:
            view = await self._look()
            members = view.in_effect
            replica_id = members.replica_on(node_id)
            if replica_id == NOBODY:
                return members
            await self._change_when_free(view, [Remove(replica_id)])

    async def promote(self, node_id: NodeId) -> Membership:
        """Make the learner on `node_id` a voter, as soon as it has caught up."""
        while True:
            view = await self._look()
            replica_id = self._replica_on(view, node_id)
            if replica_id in view.in_effect.voters and not view.in_effect.joint:
                return view.in_effect
            await self._promote(view, replica_id)

    async def demote(self, node_id: NodeId) -> Membership:
        """Make the voter on `node_id` a learner."""
        while True:
            view = await self._look()
            replica_id = self._replica_on(view, node_id)
            if replica_id in view.in_effect.learners and not view.in_effect.is_voter(replica_id):
                return view.in_effect
            await self._change_when_free(view, [Demote(replica_id)])

    async def replace(self, old: NodeId, new: NodeId) -> Membership:
        """Put a replica on node `new` in the place of the one on `old`, in one joint change when it has caught up.

        On one and the same node (its store was emptied, say) the old one goes first.
        """
        if old == new:
            await self.remove(old)
            return await self.add(new, voter=True)
        await self.add(new, voter=False)
        while True:
            view = await self._look()
            members = view.in_effect
            old_id, new_id = members.replica_on(old), members.replica_on(new)
            if old_id == NOBODY and new_id in members.voters:
                return members
            if new_id == NOBODY:
                raise ChangeRefused(f"the replica on {new!r} that was to take over was removed meanwhile")
            changes: list[Change] = [Promote(new_id)] if new_id in members.learners else []
            if old_id != NOBODY:
                changes.append(Remove(old_id))
            await self._change_when_free(view, changes, _still(view, new_id, new))

    # ------------------------------------------------------------------------------------------------------ steps

    def _replica_on(self, view: MembershipView, node_id: NodeId) -> ReplicaId:
        replica_id = view.in_effect.replica_on(node_id)
        if replica_id == NOBODY:
            known = ", ".join(sorted(view.in_effect.nodes.values())) or "nobody"
            raise ChangeRefused(f"node {node_id!r} has no replica of the group (there are: {known}); add one first")
        return replica_id

    async def _promote(self, view: MembershipView, replica_id: ReplicaId) -> None:
        node_id = view.in_effect.nodes[replica_id]
        await self._change_when_free(view, [Promote(replica_id)], _still(view, replica_id, node_id))

    async def _change_when_free(self, view: MembershipView, changes: Sequence[Change], waiting_for: str = "") -> None:
        if view.in_effect.joint or view.latest.index != view.in_effect.index:
            await self._next(view, f"a membership change of index {view.latest.index} is under way")
        else:
            await self._change(view.in_effect, changes, waiting_for)

    async def _change(self, members: Membership, changes: Sequence[Change], waiting_for: str = "") -> None:
        """Ask for one change of `members`; whatever comes of it is seen by looking again.

        waiting_for  what it waits for where it is put off; empty: whatever it was put off with
        """
        left_s = self._left_s()
        try:
            await self._ask("change", encode_change(changes, members.index), min(left_s, _LOOK_S))
        except (NotCommitted, OutcomeUnknown) as problem:
            final = isinstance(problem, (ChangeRefused, InvalidRequest, NotRunning))
            if final and not isinstance(problem, (ChangePending, MembershipChanged)):
                raise
            self._waiting_for = waiting_for or f"the change was put off: {problem}"
            await asyncio.sleep(_AGAIN_S)

    async def _look(self, known: int | None = None) -> MembershipView:
        """Return the leader's view; with `known`, wait a while for a newer membership."""
        while True:
            wait_s = min(self._left_s(), _LOOK_S)
            try:
                return decode_view(await self._ask("membership", encode_look(known, wait_s / 2), wait_s))
            except CorruptRecord as problem:
                raise OutcomeUnknown(f"the leader's answer is not understood: {problem}") from problem
            except NotRunning:
                raise
            except (NotCommitted, OutcomeUnknown) as problem:
                if wait_s == _LOOK_S or self._waiting_for == _NOT_REACHED:  # a hurried last look says nothing
                    self._waiting_for = f"{_NOT_REACHED}: {problem}"
                await asyncio.sleep(_AGAIN_S)

    async def _next(self, view: MembershipView, waiting_for: str) -> None:
        self._waiting_for = waiting_for
        await self._look(view.in_effect.index)

    def _left_s(self) -> float:
        """Return the time that is left. Raises NotReady, which says what was waited for, when there is none."""
        left_s = self._deadline_s - self._now()
        if left_s <= 0:
            raise NotReady(
                f"not done within {self._timeout_s:g} s: {self._waiting_for}. It may still be done later: look at the "
                "membership, then call again"
            )
        return left_s


def _still(view: MembershipView, replica_id: ReplicaId, node_id: NodeId) -> str:
    behind = view.behind.get(replica_id)
    if behind is None:
        return f"replica {replica_id} on node {node_id!r} does not answer (is the node up, and the service declared?)"
    return f"replica {replica_id} on node {node_id!r} catches up: {behind} entries are missing"
