"""One Raft group, as its user holds it: propose bytes, read, and watch who leads and who takes part.

The level below services: no keys, no types. It works from any node, whether or not it has a replica of the group,
except where it says otherwise.

Rules of this file: a handle keeps no state of the group; what a user's hook raises is logged and goes no further.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable, Coroutine, Sequence
from functools import partial
from typing import Any, Final, Literal, Protocol

from multiraft.config import Limits
from multiraft.consistency import Consistency
from multiraft.errors import InvalidRequest
from multiraft.members import Members
from multiraft.outcome import Outcome
from multiraft.types import GroupId, Membership, NodeId

CallKind = Literal[
    "propose",
    "propose many",
    "session",
    "numbered",
    "numbered many",
    "numbered first",
    "register",
    "read",
    "read many",
    "lease",
    "change",
    "transfer",
    "membership",
]
_BYTES: Final = {bytes}
Unsubscribe = Callable[[], None]

_log: Final = logging.getLogger(__name__)


class GroupRouter(Protocol):
    """What brings queries to a group, and many commands at once."""

    def read(self, group_id: GroupId, query: bytes, timeout_s: float | None) -> Coroutine[Any, Any, bytes]:
        """Bring `query` to the group's leader, and return its answer."""

    def read_many(
        self, group_id: GroupId, queries: list[bytes], timeout_s: float | None
    ) -> Coroutine[Any, Any, list[Outcome]]:
        """Bring all queries to the group's leader together, and return what has become of each."""

    def call_many(
        self, group_id: GroupId, commands: list[bytes], session: bool, timeout_s: float | None
    ) -> Coroutine[Any, Any, list[Outcome]]:
        """Bring all commands to the group's leader together, and return what has become of each."""

    def submit(
        self,
        group_id: GroupId,
        commands: list[bytes],
        session: bool,
        timeout_s: float | None,
        done: Callable[[list[Outcome]], None],
    ) -> None:
        """As `call_many`; what it returns, `done` is called with."""


class GroupHost(Protocol):
    """What a group handle needs of its node. All callbacks come on the loop's thread."""

    @property
    def limits(self) -> Limits: ...

    def call(
        self, group_id: GroupId, kind: CallKind, body: bytes, timeout_s: float | None
    ) -> Coroutine[Any, Any, bytes]:
        """Bring `body` to the group's leader, wherever it is; None means the node's default timeout."""

    @property
    def router(self) -> GroupRouter:
        """What brings queries, and many commands at once, to a group. Raises NotRunning."""

    def read_as(
        self, group_id: GroupId, query: bytes, how: Consistency, timeout_s: float | None
    ) -> Coroutine[Any, Any, tuple[bytes, float]]:
        """Answer `query` in the way chosen; return the answer and its age in milliseconds."""

    def leads(self, group_id: GroupId) -> bool:
        """Return whether this node's replica leads the group."""

    def leader(self, group_id: GroupId) -> NodeId | None:
        """Return the node that leads the group, as far as this node knows; None if it knows of none."""

    def membership(self, group_id: GroupId, latest: bool = False) -> Membership:
        """Return the membership in effect for this node's replica, or the newest in its log.

        Raises NotReady if it has no replica.
        """

    def subscribe_membership(self, group_id: GroupId, changed: Callable[[Membership], None]) -> Unsubscribe:
        """Call `changed` at every new membership of this node's replica. Raises NotReady if it has no replica."""

    def subscribe_role(self, group_id: GroupId, changed: Callable[[bool], None]) -> Unsubscribe:
        """Call `changed(True)` when this node's replica begins to lead, `changed(False)` when it ceases to."""

    def subscribe_applied(self, group_id: GroupId, applied: Callable[[], None]) -> Unsubscribe:
        """Call `applied()` soon after this node's replica has applied more."""


class Group:
    """A handle of one group. Made by the node."""

    __slots__ = ("_entry_bytes", "_host", "group_id")

    def __init__(self, group_id: GroupId, host: GroupHost) -> None:
        self.group_id = group_id
        self._host = host
        self._entry_bytes = host.limits.entry_bytes

    def __repr__(self) -> str:
        return f"<group {self.group_id}>"

    def propose(
        self, command: bytes, timeout_s: float | None = None, *, session: bool = False
    ) -> Coroutine[Any, Any, bytes]:
        """Have the group commit and apply `command`; awaited, return its state machine's result.

        timeout_s  seconds in all; None: the node's request_timeout_ms
        session    number the command, so that it is applied once however often it must be sent: then it is sent again,
                   while there is time, when an answer was lost or the leader went

        Raises InvalidRequest at once (no bytes, or more than entry_bytes); awaited: any other NotCommitted (it
        certainly did not happen), OutcomeUnknown (it may have), CommandFailed (it was committed, and the state machine
        raised).
        """
        if type(command) is not bytes or len(command) > self._entry_bytes or timeout_s is not None:
            self._check("command", command, timeout_s)
        return self._host.call(self.group_id, "session" if session else "propose", command, timeout_s)

    def propose_many(
        self, commands: Sequence[bytes], timeout_s: float | None = None, *, session: bool = False
    ) -> Coroutine[Any, Any, list[Outcome]]:
        """Have the group commit and apply many commands; awaited, return an outcome for each, in order.

        An outcome is a result, or the error that `propose` would have raised for that command: look at each. It costs
        a fraction of as many calls of `propose`, since they are queued, and their caller is woken, once for all.
        Each is an entry of its own: some may happen and others not, and other callers' may come between. They reach
        the log in this order, except what had to be sent again.

        session  number the commands, so that each is applied once however often it must be sent

        Raises InvalidRequest at once, for any of them; awaited: any other NotCommitted (none of them happened, as where
        no session could be begun, or more than 65,536 of them would be outstanding).
        """
        return self._host.router.call_many(self.group_id, self._checked(commands, timeout_s), session, timeout_s)

    def submit(
        self,
        commands: Sequence[bytes],
        done: Callable[[list[Outcome]], None],
        timeout_s: float | None = None,
        *,
        session: bool = False,
    ) -> None:
        """As `propose_many`, without awaiting: `done(outcomes)` is called, once, on the loop, soon after all are known.

        What `propose_many` would raise stands in the place of each outcome. For servers that pass on what others send:
        where this node leads the group, neither a coroutine nor a future is made for it. What `done` raises is logged.

        Raises InvalidRequest, and NotRunning, at once; `done` is not called then.
        """
        self._host.router.submit(self.group_id, self._checked(commands, timeout_s), session, timeout_s, done)

    def _checked(self, commands: Sequence[bytes] | str, timeout_s: float | None, what: str = "command") -> list[bytes]:
        if isinstance(commands, bytes | str):
            raise InvalidRequest(f"group {self.group_id}: many of a {what} are a list of bytes, not one of them")
        checked = list(commands)
        if (
            timeout_s is not None
            or {*map(type, checked)} - _BYTES
            or max(map(len, checked), default=0) > self._entry_bytes
        ):
            for command in checked or [b""]:
                self._check(what, command, timeout_s)
        return checked

    def read(
        self, query: bytes, timeout_s: float | None = None, *, lease: bool = False, local: bool = False
    ) -> Coroutine[Any, Any, bytes]:
        """Ask the group's state machine; linearizable: it sees every command acknowledged before.

        lease  have the leader answer without asking a quorum while its lease lasts; it trusts the cluster's clocks
               not to drift apart by more than clock_drift_ppm, which is why it must be asked for
        local  have this node's replica answer, after it has caught up with the leader's index; the leader, where
               this node has none

        Raises InvalidRequest at once; awaited: any other NotCommitted, CommandFailed (the query itself raised).
        """
        if type(query) is not bytes or len(query) > self._entry_bytes or timeout_s is not None:
            self._check("query", query, timeout_s)
        if lease or local:
            return self._answer(query, Consistency(lease, local), timeout_s)
        return self._host.router.read(self.group_id, query, timeout_s)

    def read_many(self, queries: Sequence[bytes], timeout_s: float | None = None) -> Coroutine[Any, Any, list[Outcome]]:
        """Ask the group's state machine many queries; awaited, return an outcome for each, in order.

        An outcome is an answer, or the error that `read` would have raised for that query: look at each. Each is
        linearizable: it sees every command acknowledged before this call. It costs a fraction of as many calls of
        `read`, since the leader is confirmed, and their caller is woken, once for all. Nothing is applied between two
        of them, unless some had to be asked again, or what they say is more than a message holds (`batch_bytes`).

        Raises InvalidRequest at once, for any of them; awaited: NotRunning.
        """
        return self._host.router.read_many(self.group_id, self._checked(queries, timeout_s, "query"), timeout_s)

    async def _answer(self, query: bytes, how: Consistency, timeout_s: float | None) -> bytes:
        answer, _ = await self._host.read_as(self.group_id, query, how, timeout_s)
        return answer

    def read_stale(
        self, query: bytes, stale_ms: int, timeout_s: float | None = None
    ) -> Coroutine[Any, Any, tuple[bytes, float]]:
        """Ask this node's replica, at once where what it holds is at most `stale_ms` milliseconds old.

        Where it is older, or this node has no replica, the answer is linearizable. Return the answer and its age in
        milliseconds: whatever any client of the cluster could see that long ago is in it. The age is an upper bound,
        measured by this node's own clock; it is above `stale_ms` only if a linearizable answer took so long to get.

        Raises as `read` does.
        """
        self._check("query", query, timeout_s)
        return self._host.read_as(self.group_id, query, Consistency(stale_ms=stale_ms), timeout_s)

    def _check(self, what: str, body: bytes, timeout_s: float | None) -> None:
        if type(body) is not bytes:
            raise InvalidRequest(f"group {self.group_id}: the {what} must be bytes, not {type(body).__name__}")
        if len(body) > self._entry_bytes:
            raise InvalidRequest(
                f"group {self.group_id}: a {what} of {len(body)} bytes is more than entry_bytes = {self._entry_bytes}"
            )
        if timeout_s is not None and not timeout_s > 0:
            raise InvalidRequest(f"timeout_s = {timeout_s!r}: must be a number of seconds above 0")

    @property
    def leader(self) -> NodeId | None:
        """The node that leads the group, as far as this node knows; None if it knows of none."""
        return self._host.leader(self.group_id)

    def membership(self, latest: bool = False) -> Membership:
        """Return who takes part, as this node's replica knows it; can be read at any time.

        latest  False: the membership in effect, which is committed; True: the newest in its log, committed or not

        Raises NotReady if this node has no replica of the group.
        """
        return self._host.membership(self.group_id, latest)

    async def add(self, node_id: NodeId, *, voter: bool = True, timeout_s: float | None = None) -> Membership:
        """Give the group a replica on `node_id`; return the membership in which it takes part.

        The new replica is made there, empty, and receives the log as a learner; the leader promotes it once it has
        caught up, so that a node that is slow or down costs the group nothing (thesis, section 4.2). Nothing is done
        where it takes part already.

        voter      False: it stays a learner, which receives everything and decides nothing
        timeout_s  seconds in all; None: 60

        Raises ChangeRefused (the change makes no sense as the group is), NotReady (not done within `timeout_s`; the
        message says what is missing; the leader goes on with it), InvalidRequest, NotRunning.
        """
        return await self._members(timeout_s).add(node_id, voter)

    async def remove(self, node_id: NodeId, *, timeout_s: float | None = None) -> Membership:
        """Take the replica on `node_id` out of the group for good; return the membership without it.

        It stops and cleans up when it learns of this; its id is never used again. A leader that is removed hands over.
        Raises as `add`; ChangeRefused for the last voter.
        """
        return await self._members(timeout_s).remove(node_id)

    async def replace(self, old: NodeId, new: NodeId, *, timeout_s: float | None = None) -> Membership:
        """Put a replica on node `new` in the place of the one on `old`, without a moment of fewer voters.

        The new one catches up as a learner; then one joint change makes it a voter and removes the old one (thesis,
        section 4.3). `old` and `new` may be the same node: the old replica is removed first then. Raises as `add`.
        """
        return await self._members(timeout_s).replace(old, new)

    async def promote(self, node_id: NodeId, *, timeout_s: float | None = None) -> Membership:
        """Make the learner on `node_id` a voter, as soon as it has caught up. Raises as `add`."""
        return await self._members(timeout_s).promote(node_id)

    async def demote(self, node_id: NodeId, *, timeout_s: float | None = None) -> Membership:
        """Make the voter on `node_id` a learner. Raises as `add`; ChangeRefused for the last voter."""
        return await self._members(timeout_s).demote(node_id)

    async def transfer_leadership(self, to: NodeId, *, timeout_s: float | None = None) -> NodeId:
        """Have the voter on node `to` lead the group; return the node that led it before (thesis, section 3.10).

        The leader brings it up to date, takes no commands meanwhile, and asks it to campaign. Done already where it
        leads. Raises ChangeRefused (it is no voter), NotReady (it did not come to that: the leader has given up, and
        serves again, or the time is up), NotRunning.
        """
        return await self._members(timeout_s).transfer(to)

    def _members(self, timeout_s: float | None) -> Members:
        if timeout_s is not None and not timeout_s > 0:
            raise InvalidRequest(f"timeout_s = {timeout_s!r}: must be a number of seconds above 0")
        ask = partial(self._host.call, self.group_id)
        return Members(ask, asyncio.get_running_loop().time, timeout_s)

    async def watch_membership(self) -> AsyncGenerator[Membership, None]:
        """Yield the membership as it is, then at each change. A slow consumer gets the newest, not every one between.

        Raises NotReady if this node has no replica of the group. `contextlib.aclosing` ends it at once where a loop
        over it is left early.
        """
        newest: Membership | None = None
        changed = asyncio.Event()

        def remember(membership: Membership) -> None:
            nonlocal newest
            newest = membership
            changed.set()

        unsubscribe = self._host.subscribe_membership(self.group_id, remember)
        try:
            current = self._host.membership(self.group_id)
            yield current
            while True:
                await changed.wait()
                changed.clear()
                if newest is not None and newest != current:
                    current = newest
                    yield current
        finally:
            unsubscribe()

    def on_leader(self, hook: Callable[[], None]) -> Unsubscribe:
        """Call `hook` whenever this node's replica begins to lead the group; at once if it leads now.

        Return a function that ends this. `hook` must return quickly: it runs between two turns of the node.
        """
        unsubscribe = self._host.subscribe_role(self.group_id, lambda leads: self._run(hook) if leads else None)
        if self._host.leads(self.group_id):
            self._run(hook)
        return unsubscribe

    def on_follower(self, hook: Callable[[], None]) -> Unsubscribe:
        """Call `hook` whenever this node's replica ceases to lead the group. Otherwise as `on_leader`."""
        return self._host.subscribe_role(self.group_id, lambda leads: None if leads else self._run(hook))

    def on_applied(self, hook: Callable[[], None]) -> Unsubscribe:
        """Call `hook` soon after this node's replica of the group has applied more, and so may answer differently.

        Once for all that it applied at a stretch, or took over with a snapshot; never where this node has no replica.
        Return a function that ends this. `hook` must return quickly: it runs between two turns of the node.
        """
        return self._host.subscribe_applied(self.group_id, lambda: self._run(hook))

    def _run(self, hook: Callable[[], None]) -> None:
        try:
            hook()
        except Exception:
            _log.exception("group %d: a hook raised; the group goes on", self.group_id)
