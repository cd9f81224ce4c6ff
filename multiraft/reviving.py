"""How a node comes back by itself after its disk was full, or a part of its database could not be read.

A failed write ends the engine: what was under way has an unknown outcome, every core is discarded, the store is closed.
After most failures that is the end, for a disk that fails is not to be trusted. One that was merely full is: as soon
as there is space, the node goes through its ordinary start again, with the same services, hooks and handles. So it does
when LevelDB meets a damaged file of its own, which only a start can leave out; a few times, for a disk that goes on
losing bits is not to be trusted either.

    write fails ──> all parts closed ──> ballast freed ──> space? ──> store opened, parts made anew ──> it runs
                                               └────────── not yet: wait, twice as long each time ──┘

Rules of this file: the store is never used again on the handle that failed; an attempt is one whole start, and what it
had begun is closed when it fails; whatever else is met on the way ends the node for good; one line is logged a step.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
from collections.abc import Callable
from typing import Final

from multiraft.errors import DiskFull, MultiRaftError, NotRunning, StartError, StorageError, UnreadableStore
from multiraft.ports import Space
from multiraft.running import Running, Setup

FULL: Final = frozenset((errno.ENOSPC, errno.EDQUOT))
_FIRST_PAUSE_S: Final = 0.1
_LONGEST_PAUSE_S: Final = 5.0
_ANYHOW_S: Final = 30.0
"""After so long it is tried without space for all that opening may write: a quota is not seen in what is free."""
_CALM_S: Final = 60.0
"""Who runs for so long is not in a hurry the next time."""
_STARTS: Final = 20
"""So often a start may fail for another reason than the store, as when the address is still in use."""
_SALVAGES: Final = 3
"""So often, in one life of the process, what cannot be read is left out."""
log: Final = logging.getLogger("multiraft.node")


def disk_was_full(failure: BaseException) -> bool:
    """Whether `failure` is that of a write that found no space."""
    if not isinstance(failure, StorageError):
        return False
    cause = failure.__cause__
    return failure.errno in FULL or (isinstance(cause, OSError) and cause.errno in FULL)


class Revival:
    """One node's coming back.

    ended    what each new Running is to tell of its own end
    came     called with the Running that goes on
    gave_up  called with what has ended the node for good instead

    away     why the node does not run just now, though it will again; None otherwise
    count    how often it has come back
    reason   why, the last time; None before
    """

    def __init__(
        self,
        setup: Setup,
        ended: Callable[[MultiRaftError, bool], None],
        came: Callable[[Running], None],
        gave_up: Callable[[MultiRaftError], None],
    ) -> None:
        self.away: str | None = None
        self.count = 0
        self.reason: str | None = None
        self._setup = setup
        self._ended = ended
        self._came = came
        self._gave_up = gave_up
        self._task: asyncio.Task[None] | None = None
        self._full = False
        self._salvages = 0
        self._came_s = 0.0
        self._pause_s = _FIRST_PAUSE_S

    def helps(self, failure: MultiRaftError) -> bool:
        """Whether coming back is worth trying after `failure`; `away` says so from then on."""
        setup, node_id = self._setup, self._setup.config.node_id
        self._full = disk_was_full(failure)
        unreadable = isinstance(failure, UnreadableStore) and setup.salvage is not None
        if setup.space is None or not setup.revives or not (self._full or unreadable):
            return False
        if unreadable:
            self._salvages += 1
            if self._salvages > _SALVAGES:
                return False
        when = "when its disk has space" if self._full else "without what cannot be read"
        self.away = f"node {node_id!r} restarts {when}: {failure}. Nothing was proposed: ask another node"
        log.error("node %s comes back by itself %s: %s", node_id, when, failure)
        return True

    def error(self) -> MultiRaftError:
        """Return what a call is told while the node is away."""
        return (DiskFull if self._full else NotRunning)(self.away or "the node restarts")

    def begin(self, failure: MultiRaftError) -> None:
        """All parts are closed: go on from here."""
        self.reason = str(failure)
        loop = self._setup.loop if self._setup.loop is not None else asyncio.get_running_loop()
        self._task = task = loop.create_task(self._revive(), name=f"bring node {self._setup.config.node_id} back")
        task.add_done_callback(self._tried)

    async def stop(self) -> None:
        """Give up coming back, and wait until what an attempt had begun is closed. Idempotent."""
        self.away = None
        task, self._task = self._task, None
        if task is not None and not task.done():
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    def abandon(self) -> None:
        """End at once, as a killed process does."""
        self.away = None
        if self._task is not None:
            self._task.cancel()

    def _tried(self, task: asyncio.Task[None]) -> None:
        """The task is over; what it met that nobody foresaw ends the node."""
        problem = None if task.cancelled() else task.exception()
        if isinstance(problem, Exception):
            log.critical("the restart of a node met a bug", exc_info=problem)
            self.away = None
            bug = f"a bug ended the node: {type(problem).__name__}: {problem}; its log has the details"
            self._gave_up(problem if isinstance(problem, MultiRaftError) else MultiRaftError(bug))

    # ------------------------------------------------------------------------------------------------- the way back

    async def _revive(self) -> None:
        setup, space = self._setup, self._setup.space
        node_id, now = setup.config.node_id, setup.clocks.real
        began_s = now()
        if began_s - self._came_s > _CALM_S:
            self._pause_s = _FIRST_PAUSE_S
        failed_starts = 0
        while space is not None:
            if freed_bytes := space.release_ballast():
                log.warning("node %s: its ballast is given up: %d bytes are free for the restart", node_id, freed_bytes)
            await self._wait_for_room(space, node_id)
            problem = await self._try()
            if problem is None:
                return
            log.warning("node %s cannot start again: %s", node_id, problem)
            if not disk_was_full(problem):
                failed_starts += 1
                if isinstance(problem, StorageError) or failed_starts > _STARTS:
                    self.away = None
                    self._gave_up(problem)
                    return
            await self._pause()

    async def _wait_for_room(self, space: Space, node_id: str) -> None:
        """Return when there is room to open the store in, or after a long time without."""
        began_s = self._setup.clocks.real()
        told = False
        while (free_bytes := space.free_bytes()) is not None and free_bytes < (needed := space.opening_bytes()):
            if not told:
                told = True
                log.warning(
                    "node %s waits for space: %d bytes are free, its start needs %d", node_id, free_bytes, needed
                )
            if self._setup.clocks.real() - began_s > _ANYHOW_S:
                return
            await self._pause()

    async def _pause(self) -> None:
        await asyncio.sleep(self._pause_s * self._setup.rng.uniform(0.5, 1.0))
        self._pause_s = min(2 * self._pause_s, _LONGEST_PAUSE_S)

    async def _try(self) -> StartError | None:
        """Start once; return why that failed, None when the node runs (or has failed anew, and told so itself)."""
        began_s = self._setup.clocks.real()
        running = Running(self._setup, self._ended)
        try:
            await running.start()
        except StartError as problem:
            with contextlib.suppress(StorageError):
                await running.close("the node did not start")
            return problem
        except BaseException:
            with contextlib.suppress(StorageError):
                await running.close("the node did not start")
            raise
        if running.failed:
            return None
        self._task = None
        self.away = None
        self.count += 1
        self._came_s = self._setup.clocks.real()
        took_s = self._came_s - began_s
        log.warning("node %s has come back by itself; its start took %.2f s", self._setup.config.node_id, took_s)
        self._came(running)
        return None
