"""Machines that take commands many at a time: what is handed to them at once, and what comes of each.

The borders of batches differ from replica to replica: they depend on what was committed when, and on how much time a
turn has. So nothing that a replica does may depend on them:

    each command has a result of its own, bytes or an Exception; what `apply_batch` itself raises halts the replica
    of a session, a batch takes only commands that are surely new; whatever may depend on the reply to one before it
    waits until that reply is kept

Rules of this file: results come in the order of the entries; the time and the term of a batch are those of its record.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from multiraft.engine.machine import BatchFailed, Context, command_failed, environmental
from multiraft.errors import CommandFailed, InvalidRequest
from multiraft.records import SESSION
from multiraft.sessions import HEAD
from multiraft.types import Index

if TYPE_CHECKING:
    from multiraft.engine.executing import Executor
    from multiraft.engine.sessions import Result

BATCH_COMMANDS: Final = 1_000
log: Final = logging.getLogger("multiraft.engine")


class Batches:
    """The entries of one record, run in batches; `run` has the signature of what runs them one by one.

    ahead  what has come of entries that were not asked for yet: they are applied, and must be asked for
    """

    __slots__ = ("_base", "_entries", "_executor", "_kind", "_last", "ahead")

    def __init__(self, executor: Executor, kind: int, entries: list[bytes], base: Index, last: Index) -> None:
        self._executor = executor
        self._kind = kind
        self._entries = entries
        self._base = base
        self._last = last
        self.ahead: deque[Result] = deque()

    def run(self, entry: bytes, context: Context) -> Result:
        """Return what comes of the entry at `context.index`. Raises what halts the replica."""
        if not self.ahead:
            first = context.index - self._base
            entries = self._entries[first : min(first + BATCH_COMMANDS, self._last - self._base + 1)]
            run = self._numbered if self._kind == SESSION else self._run
            self.ahead.extend(run(entries, context))
        return self.ahead.popleft()

    def _run(self, commands: list[bytes], context: Context) -> list[Result]:
        apply_batch: Callable[[list[bytes], Context], object] | None = self._executor.batch  # it is a program's
        if apply_batch is None:
            raise TypeError("this machine takes commands one by one")
        try:
            found = apply_batch(commands, context)
        except Exception as problem:
            if environmental(problem):
                raise
            raise BatchFailed(f"apply_batch raised {type(problem).__name__}: {problem}") from problem
        if type(found) is not list or len(found) != len(commands):
            raise BatchFailed(f"apply_batch returned {type(found).__name__}, not a list of {len(commands)} results")
        return [self._result(one) for one in found]

    def _result(self, one: object) -> Result:
        if type(one) is bytes:
            return one
        self._executor.failed_commands += 1
        if isinstance(one, BaseException):
            if not isinstance(one, Exception) or environmental(one):
                raise one
            return command_failed(one)
        return CommandFailed("InvalidResult", f"apply_batch: expected bytes or an Exception, got {type(one).__name__}")

    def _numbered(self, entries: list[bytes], context: Context) -> list[Result]:
        """Run as many entries of a session's record as may go together, at least one; return what comes of them."""
        sessions = self._executor.sessions
        results: list[Result | None] = []
        commands: list[bytes] = []
        waiting: dict[tuple[bytes, int], int] = {}
        clients: set[bytes] = set()
        for entry in entries:
            if len(entry) < HEAD.size:
                results.append(InvalidRequest(f"an entry of {len(entry)} bytes is no command of a session"))
                continue
            client, sequence, lowest = HEAD.unpack_from(entry)
            if client in clients and (
                (client, sequence) in waiting or not sessions.surely_new(client, sequence, lowest)
            ):
                break
            answer = sessions.answer(client, sequence, lowest, context.time_ms)
            if answer is None:
                waiting[client, sequence] = len(results)
                clients.add(client)
                commands.append(entry[HEAD.size :])
            results.append(answer)
        if commands:
            for ((client, sequence), place), result in zip(waiting.items(), self._run(commands, context), strict=True):
                sessions.keep(client, sequence, result)
                results[place] = result
        return [result for result in results if result is not None]
