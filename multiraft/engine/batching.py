"""Machines that take commands many at a time: what is handed to them at once, and what comes of each.

The borders of batches differ from replica to replica: they depend on what was committed when, and on how much time a
turn has. So nothing that a replica does may depend on them:

    each command has a result of its own, bytes or an Exception; what `apply_batch` itself raises halts the replica
    of a session, a batch takes only commands that are new whatever comes of those before them; whatever may depend on
    the reply to one waits until that reply is kept

Rules of this file: results come in the order of the entries; the time and the term of a batch are those of its record.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from multiraft.engine.machine import BatchFailed, Context, command_failed, environmental
from multiraft.engine.sessions import Coming
from multiraft.errors import CommandFailed, InvalidRequest, InvariantViolation, invariant
from multiraft.records import SESSION, Record
from multiraft.sessions import HEAD
from multiraft.types import Index

if TYPE_CHECKING:
    from multiraft.engine.executing import Executor
    from multiraft.engine.replica import Replica
    from multiraft.engine.sessions import Result
    from multiraft.engine.waiting import Proposals

BATCH_COMMANDS: Final = 1_000
_BYTES: Final = {bytes}
_HEAD_BYTES: Final = HEAD.size
_unpack_head: Final = HEAD.unpack_from


def apply_together(
    replica: Replica, record: Record, entries: list[bytes], last: Index, callers: Proposals | None, until_s: float
) -> bool:
    """Apply the entries of `record` from the next one up to `last` in batches; see `Replica.apply_slice`.

    False: there are more, for the stopwatch has passed `until_s`, or the replica has halted at the first of a batch.
    """
    executor, context, base = replica.executor, replica.context, record.first
    stopwatch = replica.stopwatch
    began_s = stopwatch()
    while replica.applied < last:
        first = context.index = replica.applied + 1
        at = first - base
        try:
            results = run_batch(executor, record.kind, entries, at, last + 1 - base, context)
        except BaseException as problem:
            replica.failed_at(first, record.kind, entries[at], problem)
            return False
        replica.applied = context.index = first + len(results) - 1
        replica.came_of(first, results, callers)
        now_s = stopwatch()
        if now_s - began_s > replica.slow_command_s:
            replica.was_slow(first, (now_s - began_s) * 1e3, executor.text_of(record.kind, entries[at]))
        if now_s > until_s:
            break
        began_s = now_s
    return replica.applied == last


def run_batch(executor: Executor, kind: int, entries: list[bytes], at: int, end: int, context: Context) -> list[Result]:
    """Run entries of a record of this kind from place `at` on, as many as may go together before place `end`.

    At least one. Return what comes of each. Raises what halts the replica.
    """
    end = min(end, at + BATCH_COMMANDS)
    if kind == SESSION:
        return _numbered(executor, entries, at, end, context)
    return _plain(executor, entries[at:end], context)


def _plain(executor: Executor, commands: list[bytes], context: Context) -> list[Result]:
    apply_batch: Callable[[list[bytes], Context], object] | None = executor.batch  # it is a program's
    if apply_batch is None:
        raise TypeError("this machine takes commands one by one")
    count = len(commands)
    try:
        found = apply_batch(commands, context)
    except Exception as problem:
        if environmental(problem):
            raise
        raise BatchFailed(f"apply_batch raised {type(problem).__name__}: {problem}") from problem
    if type(found) is not list or len(found) != count:
        raise BatchFailed(f"apply_batch returned {type(found).__name__}, not a list of {count} results")
    if set(map(type, found)) == _BYTES:  # nearly always
        return found
    return [_result(executor, one) for one in found]


def _result(executor: Executor, one: object) -> Result:
    if type(one) is bytes:
        return one
    executor.failed_commands += 1
    if isinstance(one, BaseException):
        if not isinstance(one, Exception) or environmental(one):
            raise one
        return command_failed(one)
    return CommandFailed("InvalidResult", f"apply_batch: expected bytes or an Exception, got {type(one).__name__}")


def _numbered(executor: Executor, entries: list[bytes], at: int, end: int, context: Context) -> list[Result]:
    """Run as many entries of a session's record as may go together; return what comes of them.

    Those that are answered without being applied, if any, then those that are new whatever comes of the others; then
    the session table is told of each as if it had been applied alone.
    """
    sessions, now_ms = executor.sessions, context.time_ms
    results: list[Result] = []
    commands: list[bytes] = []
    numbers: list[tuple[bytes, int, int]] = []
    coming: dict[bytes, Coming] = {}
    for place in range(at, end):
        entry = entries[place]
        if len(entry) < HEAD.size:
            if commands:
                break
            results.append(InvalidRequest(f"an entry of {len(entry)} bytes is no command of a session"))
            continue
        number = client, sequence, lowest = _unpack_head(entry)
        ahead = coming.get(client)
        if ahead is None:
            ahead = coming[client] = sessions.coming(client, now_ms)
        if ahead.takes(sequence, lowest):
            commands.append(entry[_HEAD_BYTES:])
            numbers.append(number)
        elif commands:
            break  # it may depend on what comes of those
        else:
            answer = sessions.answer(client, sequence, lowest, now_ms)
            if answer is None:
                raise InvariantViolation("what is not new is not applied")
            results.append(answer)
            del coming[client]  # the session may have changed
    if commands:
        context.index += len(results)  # of the first one
        for (client, sequence, lowest), result in zip(numbers, _plain(executor, commands, context), strict=True):
            invariant(sessions.answer(client, sequence, lowest, now_ms) is None, "what is new is applied")
            sessions.keep(client, sequence, result)
            results.append(result)
    return results
