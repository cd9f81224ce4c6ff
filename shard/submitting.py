"""Commands whose outcomes are told by a callback, for those who await nothing.

Where this node leads the group and the session in it is open, commands go into the queue at once, and their outcomes
come by one call; mostly that is a result for each. Whatever else there is to do (a search, another attempt, a session
to begin) is done by a task of its own, by the ways of `Router.call_many`.

Rules of this file: `done` is called once, with an outcome for each command, and never before `begin` has returned; a
number ends when its outcome is known.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any, Final

from multiraft.errors import MultiRaftError, SessionExpired
from multiraft.outcome import Outcome
from multiraft.sessions import HEAD
from multiraft.shard.many import bring
from multiraft.types import GroupId

if TYPE_CHECKING:
    from multiraft.shard.router import Router
    from multiraft.shard.session import GroupSession

_RESULTS: Final = {bytes}
log: Final = logging.getLogger("multiraft.shard")


class Submission:
    """Commands on their way to one group, and whom to tell of their outcomes."""

    __slots__ = ("_commands", "_deadline", "_done", "_entries", "_first", "_group_id", "_router", "_session")

    def __init__(
        self, router: Router, group_id: GroupId, commands: list[bytes], done: Callable[[list[Outcome]], None]
    ) -> None:
        self._router = router
        self._group_id = group_id
        self._commands = self._entries = commands
        self._done = done
        self._session: GroupSession | None = None
        self._first = 0
        self._deadline = 0.0

    def begin(self, numbered: bool, timeout_s: float) -> None:
        """Send them; numbered: each is to be applied once, under a number of the session of this node."""
        router, group_id = self._router, self._group_id
        self._deadline = router.now() + timeout_s
        session = router.sessions.opened(group_id) if numbered else None
        short = timeout_s >= router.default_s and router.caller.leads(group_id)  # the engine's own timeout will do
        if not short or (numbered and (session is None or not session.has_room(len(self._commands)))):
            self._later(self._all(numbered, timeout_s))
            return
        if session is not None:
            self._session, self._first = session, session.begin_many(len(self._commands))
            pack, client, lowest = HEAD.pack, session.client, session.lowest
            self._entries = [pack(client, at, lowest) + one for at, one in enumerate(self._commands, self._first)]
        try:
            router.caller.submit_local(group_id, self._entries, numbered, self._told)
        except MultiRaftError as problem:
            self._later(self._rest([problem] * len(self._commands)))

    def _told(self, outcomes: list[Outcome]) -> None:
        if {*map(type, outcomes)} <= _RESULTS:
            self._finish(outcomes)
        else:
            self._later(self._rest(outcomes))

    def _finish(self, outcomes: list[Outcome]) -> None:
        if self._session is not None:
            self._session.end_many(self._first, len(self._commands))
        try:
            self._done(outcomes)
        except Exception:
            log.exception("group %d: a callback of submitted commands raised; the node goes on", self._group_id)

    def _later(self, work: Coroutine[Any, Any, list[Outcome]]) -> None:
        task = asyncio.get_running_loop().create_task(self._run(work), name="submitted commands")
        self._router.submitted.add(task)
        task.add_done_callback(self._router.submitted.discard)

    async def _run(self, work: Coroutine[Any, Any, list[Outcome]]) -> None:
        try:
            outcomes = await work
        except MultiRaftError as problem:
            outcomes = [problem] * len(self._commands)
        self._finish(outcomes)

    def _all(self, numbered: bool, timeout_s: float) -> Coroutine[Any, Any, list[Outcome]]:
        if numbered:
            return self._router.sessions.call_many(self._group_id, self._commands, self._deadline, timeout_s)
        return bring(self._router, self._group_id, self._commands, False, self._deadline, timeout_s)

    async def _rest(self, told: list[Outcome]) -> list[Outcome]:
        """Do what is left to do after the first attempt, which has come to `told`."""
        router, session = self._router, self._session
        left_s = self._deadline - router.now()
        numbered = session is not None
        outcomes = await bring(router, self._group_id, self._entries, numbered, self._deadline, left_s, told)
        expired = [place for place, outcome in enumerate(outcomes) if type(outcome) is SessionExpired]
        left_s = self._deadline - router.now()
        if session is not None and expired and left_s > 0:
            router.sessions.forget(self._group_id, session)
            commands = [self._commands[place] for place in expired]
            again = await router.sessions.call_many(self._group_id, commands, self._deadline, left_s)
            for place, outcome in zip(expired, again, strict=True):
                outcomes[place] = outcome
        return outcomes
