"""Changing who takes part in a group, one call each: what is asked of its leader, in which order, until it is so.

    add      a learner that the leader promotes by itself once it has caught up; wait until it votes
    remove   one change; a leader that removes itself hands over
    replace  a learner, wait until it has caught up, then both changes as one joint change
    renew    the replica of a node that has lost it: one change removes it and adds a learner in its place
    promote, demote
    transfer ask once; wait until the other one leads, or the leader has given up

Each step names the membership that it was made for, so a step that may or may not have happened is looked at again
rather than done twice; a procedure whose caller dies half-way is taken up by calling it again.

Who changes the voters is answered when a majority knows that the change is in effect (`Raft.membership_known`): from
then on a group that has a voter more can lose one more, its leader included.

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
                return await self._known(view)
            if members.joint or view.latest.index != members.index:
                await self._next(view, f"a membership change of index {view.latest.index} is under way")
            elif replica_id == NOBODY:
                await self._change(members, [AddLearner(node_id, joining=voter)])
            elif replica_id not in members.joining:
                await self._promote(view, replica_id)
            else:
                await self._next(view, _still(view, replica_id, node_id))

    async def remove(self, node_id: NodeId) -> Membership:
        """Take the replica on `node_id` out of the group; return the membership without it.

        Whoever adds another one there meanwhile has asked for that: it stays, and the two do not take turns for ever.
        """
        taken_out = NOBODY
        while True:
            view = await self._look()
            there = view.in_effect.replica_on(node_id)
            if there == NOBODY or taken_out not in (NOBODY, there):
                return await self._known(view)
            if await self._change_when_free(view, [Remove(there)]):
                taken_out = there

    async def promote(self, node_id: NodeId) -> Membership:
        """Make the learner on `node_id` a voter, as soon as it has caught up."""
        while True:
            view = await self._look()
            replica_id = self._replica_on(view, node_id)
            if replica_id in view.in_effect.voters and not view.in_effect.joint:
                return await self._known(view)
            await self._promote(view, replica_id)

    async def demote(self, node_id: NodeId) -> Membership:
        """Make the voter on `node_id` a learner; one that was to join stays a learner."""
        while True:
            view = await self._look()
            members, replica_id = view.in_effect, self._replica_on(view, node_id)
            learns = replica_id in members.learners and replica_id not in members.joining
            if learns and not members.is_voter(replica_id):
                return await self._known(view)
            await self._change_when_free(view, [Demote(replica_id)])

    async def replace(self, old: NodeId, new: NodeId) -> Membership:
        """Put a replica on node `new` in the place of the one on `old`, in one joint change when it has caught up.

        On one and the same node (its store was emptied, say) the old one goes first.
        """
        if old == new:
            return await self.renew(new)
        await self.add(new, voter=False)
        taken_out = NOBODY
        while True:
            view = await self._look()
            members = view.in_effect
            old_id, new_id = members.replica_on(old), members.replica_on(new)
            if taken_out not in (NOBODY, old_id):
                old_id = NOBODY  # the one there was added meanwhile, by whoever wants it: see `remove`
            if old_id == NOBODY and new_id in members.voters:
                return await self._known(view)
            if new_id == NOBODY:
                raise ChangeRefused(f"the replica on {new!r} that was to take over was removed meanwhile")
            changes: list[Change] = [Promote(new_id)] if new_id in members.learners else []
            if old_id != NOBODY:
                changes.append(Remove(old_id))
            if await self._change_when_free(view, changes, _still(view, new_id, new)):
                taken_out = old_id

    async def transfer(self, to: NodeId) -> NodeId:
        """Have the voter on node `to` lead the group; return the node that led it before."""
        before, asked = "", False
        while True:
            view = await self._look()
            replica_id = self._replica_on(view, to)
            before = before or view.in_effect.nodes.get(view.leader, "")
            if view.leader == replica_id:
                return before
            if not view.in_effect.is_voter(replica_id):
                raise ChangeRefused(f"the replica on {to!r} is a learner, so it cannot lead: promote it first")
            if asked and view.heir == NOBODY:
                raise NotReady(f"the leader has given up handing over: {_still(view, replica_id, to)}")
            self._waiting_for = _still(view, replica_id, to)
            if not asked:
                asked = await self._asked("transfer", to.encode())
            await asyncio.sleep(_AGAIN_S)

    async def renew(self, node_id: NodeId, store: bytes = b"", lives: ReplicaId = NOBODY) -> Membership:
        """Put a new, empty replica on `node_id` in the place of the one there; return when that one does what it did.

        store  the store that the new one lives in: a replica that is bound to it stays as it is
        lives  the replica that is known to live there: it stays, too

        Nothing is done where the node has no replica of the group, but with an empty `store` one is added.
        """
        gone, voter = NOBODY, True
        while True:
            view = await self._look()
            members = view.in_effect
            there = members.replica_on(node_id)
            if there == NOBODY and store and gone == NOBODY:
                return members
            if gone == NOBODY and there != NOBODY:
                voter = members.is_voter(there) or there in members.joining
                if store and (there == lives or members.stores.get(there) == store):
                    return await self.add(node_id, voter)
                gone = there
            if there != gone or there == NOBODY:
                return await self.add(node_id, voter)
            await self._change_when_free(view, [Remove(there), AddLearner(node_id, voter, store)])

    async def supersede(self, node_id: NodeId, lost: ReplicaId) -> Membership:
        """Put a new, empty replica in the place of replica `lost` on `node_id`; return a membership without that one.

        Returns when the change is in effect, and before the new one has caught up. `lost` NOBODY: whichever is there.
        Nothing is done where a later one, or none, is there.
        """
        while True:
            view = await self._look()
            members = view.in_effect
            there = members.replica_on(node_id)
            settled = not members.joint and view.latest.index == members.index
            if there != NOBODY and (lost == NOBODY or there == lost):
                lost = there
                voter = members.is_voter(there) or there in members.joining
                await self._change_when_free(view, [Remove(there), AddLearner(node_id, voter)])
            elif settled and (there == NOBODY or there > lost):
                return members
            else:
                await self._next(view, f"a membership change of index {view.latest.index} is under way")

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

    async def _change_when_free(self, view: MembershipView, changes: Sequence[Change], waiting_for: str = "") -> bool:
        if view.in_effect.joint or view.latest.index != view.in_effect.index:
            await self._next(view, f"a membership change of index {view.latest.index} is under way")
            return False
        return await self._change(view.in_effect, changes, waiting_for)

    async def _change(self, members: Membership, changes: Sequence[Change], waiting_for: str = "") -> bool:
        """Ask for one change of `members`; return whether it was done, as far as is known. The next look shows it.

        waiting_for  what it waits for where it is put off; empty: whatever it was put off with
        """
        done = await self._asked("change", encode_change(changes, members.index), waiting_for)
        if not done:
            await asyncio.sleep(_AGAIN_S)
        return done

    async def _asked(self, kind: str, body: bytes, waiting_for: str = "") -> bool:
        """Ask the leader for something that a later look will show; return whether it was done, as far as is known.

        Raises what asking again would not change.
        """
        left_s = self._left_s()
        try:
            await self._ask(kind, body, min(left_s, _LOOK_S))
        except (NotCommitted, OutcomeUnknown) as problem:
            final = isinstance(problem, (ChangeRefused, InvalidRequest, NotRunning))
            if final and not isinstance(problem, (ChangePending, MembershipChanged)):
                raise
            self._waiting_for = waiting_for or f"the change was put off: {problem}"
            return False
        return True

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

    async def _known(self, view: MembershipView) -> Membership:
        """Return the membership in effect when a majority knows of it, or of a later one."""
        members = view.in_effect
        while not view.known and view.in_effect.index == members.index:
            self._waiting_for = f"the membership of index {members.index} is in effect, and too few know of it yet"
            await asyncio.sleep(_AGAIN_S)
            view = await self._look()
        return members

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
