"""The client's half of sessions: commands that are asked for again and again, and applied once.

A node has one session in each group that it sends commands to, begun when the first one comes. A command keeps its
number through all attempts: after NotLeader and its like, and also after OutcomeUnknown, because a copy that reaches
the log after another one gets the kept reply and is not applied. So an outcome stays unknown only where the time ran
out, or where the session ended, after an attempt that may have happened.

    number drawn ──> here, if this node leads ──> every node of the group in turn, round after round ──> ended
                     (one outcome known: told to the caller)             (time is up: OutcomeUnknown, or certainly not)

A number is outstanding until its caller has been told, or has gone. Then the lowest outstanding one may pass it, and
with it goes what the group keeps; a late copy is refused from then on.

Rules of this file: a session is registered under an id that was never registered before, for an id that comes twice
could bring back a session that has ended, and apply its commands again; once an attempt may have happened, nothing is
said to have certainly not; no task and no timer per call.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

from multiraft.errors import (
    DeadlineExceeded,
    MultiRaftError,
    NotCommitted,
    NotReady,
    OutcomeUnknown,
    Overloaded,
    SessionExpired,
    WrongShard,
)
from multiraft.outcome import Outcome
from multiraft.sessions import CLIENT_BYTES, HEAD, WINDOW
from multiraft.shard.attempts import BACKOFF_FIRST_S, NUMBERED_LEAST_S, NumberedAttempts
from multiraft.shard.many import bring
from multiraft.types import GroupId

if TYPE_CHECKING:
    from multiraft.shard.router import Router


class GroupSession:
    """This node's session in one group.

    client       its id
    next         the sequence that the next command gets
    lowest       the lowest outstanding one; `next` where none is
    outstanding  those whose callers still wait
    """

    __slots__ = ("client", "lowest", "next", "outstanding")

    def __init__(self, client: bytes) -> None:
        self.client = client
        self.next = self.lowest = 1
        self.outstanding: set[int] = set()

    def begin(self) -> int:
        """Return the number of another command. Raises Overloaded."""
        sequence = self.next
        if sequence - self.lowest >= WINDOW:
            raise Overloaded(f"{WINDOW} commands were sent since one that is still outstanding; retry shortly")
        self.next = sequence + 1
        self.outstanding.add(sequence)
        return sequence

    def has_room(self, count: int) -> bool:
        """Whether `begin_many` would find numbers for so many."""
        return self.next + count - 1 - self.lowest < WINDOW

    def begin_many(self, count: int) -> int:
        """Return the first of the numbers of `count` commands. Raises Overloaded."""
        first = self.next
        if not self.has_room(count):
            raise Overloaded(f"{count} commands more, and over {WINDOW} would be outstanding; send fewer, or later")
        self.next = first + count
        self.outstanding.update(range(first, first + count))
        return first

    def end_many(self, first: int, count: int) -> None:
        """Nobody asks for the outcomes of these commands any more."""
        self.outstanding.difference_update(range(first + 1, first + count))
        if count:
            self.end(first)

    def end(self, sequence: int) -> None:
        """Nobody asks for the outcome of this command any more."""
        outstanding = self.outstanding
        outstanding.discard(sequence)
        if sequence == self.lowest:
            lowest, after = sequence + 1, self.next
            while lowest < after and lowest not in outstanding:
                lowest += 1
            self.lowest = lowest


class Sessions:
    """The sessions of one router."""

    def __init__(self, router: Router) -> None:
        self._router = router
        self._caller = router.caller
        self._of_groups: dict[GroupId, GroupSession] = {}
        self._opening: dict[GroupId, asyncio.Event] = {}

    def opened(self, group_id: GroupId) -> GroupSession | None:
        """Return the session in the group; None: it is still to be begun."""
        return self._of_groups.get(group_id)

    async def call(self, group_id: GroupId, command: bytes, deadline: float, timeout_s: float) -> bytes:
        """Have the group apply `command` once; `timeout_s` is what is left until `deadline`. Raises as Router.call."""
        ended: SessionExpired | None = None
        while True:
            session = self._of_groups.get(group_id)
            if session is None:
                session = await self._opened(group_id, deadline, timeout_s)
            sequence = session.begin()
            try:
                entry = HEAD.pack(session.client, sequence, session.lowest) + command
                return await self.attempt(group_id, entry, deadline, timeout_s)
            except SessionExpired as problem:  # no attempt may have happened, or it would be OutcomeUnknown
                self.forget(group_id, session)
                before, ended = ended, problem
            finally:
                session.end(sequence)
            if before is not None:  # the group has more clients than it keeps sessions
                await self._router.pause(BACKOFF_FIRST_S, max(0.0, deadline - self._router.now()))
            timeout_s = deadline - self._router.now()
            if timeout_s <= 0:
                raise ended

    async def call_key(self, service: str, key: bytes, command: bytes, timeout_s: float | None) -> bytes:
        """Have the shard of `key` apply `command` once; as `Router.call_key` of the kind "session".

        The usual case goes a short way: the shard is led here, and the session in it is open.
        """
        router, caller = self._router, self._caller
        if timeout_s is None:
            timeout_s = router.default_s
        deadline = router.now() + timeout_s
        session = None
        shards = router.map.services.get(service)
        if shards is not None:
            group_id = shards.find(key).group_id
            session = self._of_groups.get(group_id)
        if session is not None and caller.leads(group_id):
            sequence = session.begin()
            try:
                entry = HEAD.pack(session.client, sequence, session.lowest) + command
                try:
                    return await caller.ask_local(group_id, "numbered", entry, timeout_s)
                except MultiRaftError as problem:
                    attempts = NumberedAttempts(False)
                    attempts.failed(problem)
                return await router.search(group_id, entry, deadline, timeout_s, attempts)
            except (SessionExpired, WrongShard) as problem:  # no attempt has happened: begin anew
                timeout_s = deadline - router.now()
                if timeout_s <= 0:
                    raise
                if isinstance(problem, SessionExpired):
                    self.forget(group_id, session)
            finally:
                session.end(sequence)
        return await router.call_key(service, key, "session", command, timeout_s)

    async def call_many(
        self, group_id: GroupId, commands: list[bytes], deadline: float, timeout_s: float
    ) -> list[Outcome]:
        """Have the group apply many commands, each once; return what has become of each, in order.

        Raises what says that none of them happened: no session could be begun, or too many are outstanding.
        """
        outcomes: list[Any] = [None] * len(commands)
        left: Sequence[int] = range(len(commands))
        again = False
        while left:
            session = self._of_groups.get(group_id)
            if session is None:
                session = await self._opened(group_id, deadline, timeout_s)
            first = session.begin_many(len(left))
            try:
                pack, client, lowest = HEAD.pack, session.client, session.lowest
                entries = [pack(client, number, lowest) + commands[place] for number, place in enumerate(left, first)]
                told = await bring(self._router, group_id, entries, True, deadline, timeout_s)
            finally:
                session.end_many(first, len(left))
            if len(told) == len(commands) and {*map(type, told)} == _RESULTS:
                return told
            for place, outcome in zip(left, told, strict=True):
                outcomes[place] = outcome
            left = [place for place in left if type(outcomes[place]) is SessionExpired]
            timeout_s = deadline - self._router.now()
            if not left or timeout_s <= 0:
                break
            self.forget(group_id, session)
            if again:  # the group has more clients than it keeps sessions
                await self._router.pause(BACKOFF_FIRST_S, timeout_s)
            again = True
        return outcomes

    def forget(self, group_id: GroupId, session: GroupSession) -> None:
        """The group does not know this session any more."""
        if self._of_groups.get(group_id) is session:
            del self._of_groups[group_id]

    async def attempt(
        self, group_id: GroupId, entry: bytes, deadline: float, timeout_s: float, *, first: bool = True
    ) -> bytes:
        """Bring a numbered command to the group's leader, as often as it takes.

        first  no attempt was made before; otherwise one may have happened, whatever becomes of this one

        Raises SessionExpired only where no attempt may have happened.
        """
        attempts = NumberedAttempts(not first)
        if self._caller.leads(group_id):
            try:
                return await self._caller.ask_local(group_id, "numbered", entry, timeout_s)
            except MultiRaftError as problem:
                attempts.failed(problem)
        return await self._router.search(group_id, entry, deadline, timeout_s, attempts)

    # ------------------------------------------------------------------------------------------------- registering

    async def _opened(self, group_id: GroupId, deadline: float, timeout_s: float) -> GroupSession:
        """Return the session in the group, and have it registered first if need be; one caller does so for all."""
        while True:
            session = self._of_groups.get(group_id)
            if session is not None:
                return session
            opening = self._opening.get(group_id)
            if opening is None:
                opening = self._opening[group_id] = asyncio.Event()
                try:
                    client = await self.open([group_id], deadline, timeout_s)
                    self._of_groups[group_id] = GroupSession(client)
                finally:
                    del self._opening[group_id]
                    opening.set()
                continue
            try:
                async with asyncio.timeout(deadline - self._router.now()):
                    await opening.wait()
            except TimeoutError:
                raise self._router.late(group_id, timeout_s, None) from None

    async def open(self, groups: Sequence[GroupId], deadline: float, timeout_s: float) -> bytes:
        """Register a new client in all of these groups, and return its id. Raises NotCommitted of some kind."""
        router = self._router
        cause: MultiRaftError | None = None
        while True:
            client = router.chance.randbytes(CLIENT_BYTES)
            try:
                for group_id in groups:
                    left_s = deadline - router.now()
                    if left_s <= 0:
                        break
                    part_s = min(left_s, max(left_s / 2, NUMBERED_LEAST_S))
                    await router.run(group_id, "register", client, router.now() + part_s, part_s)
                else:
                    return client
            except (OutcomeUnknown, NotCommitted) as problem:
                if not isinstance(problem, _LATER) and type(problem) is not NotCommitted:
                    raise
                cause = problem
            left_s = deadline - router.now()
            if left_s <= 0:
                raise router.late(group_id, timeout_s, cause) from cause
            await router.pause(BACKOFF_FIRST_S, left_s)


_RESULTS: Final = {bytes}
_LATER: Final = (OutcomeUnknown, NotReady, DeadlineExceeded)
"""After these another client is registered, while there is time."""
