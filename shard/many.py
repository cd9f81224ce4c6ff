"""Many commands, or queries, of one group at once: one queue, one wake-up of whoever waits, an outcome for each.

    this node leads ──> all into the queue together ──> one list of outcomes
    another one does ──> in pieces of about a record, one after the other ──> the same
    what did not happen and may happen yet ──> once more, where the group is led by now, while there is time

An outcome is what a call of that one command would have come to: its result, or the error that it would have raised.
The commands reach the log in their order, unless some of them must be sent again: those follow later. Queries reach
no log: one confirmation of the leader serves all of them.

Rules of this file: whether a command may be sent again is judged for each by itself, by `Attempts`; no task, and no
object for a command.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

from multiraft.engine.proposing import record_cuts
from multiraft.engine.waiting import ENTRY_OVERHEAD_BYTES
from multiraft.errors import MultiRaftError
from multiraft.outcome import Outcome, decode_outcomes, encode_commands
from multiraft.shard.attempts import BACKOFF_FIRST_S, BACKOFF_MOST_S, Attempts, NumberedAttempts
from multiraft.types import GroupId

if TYPE_CHECKING:
    from multiraft.shard.router import Router

_RESULTS: Final = {bytes}


async def bring(
    router: Router,
    group_id: GroupId,
    entries: list[bytes],
    numbered: bool,
    deadline: float,
    timeout_s: float,
    told: list[Outcome] | None = None,
    *,
    queries: bool = False,
) -> list[Outcome]:
    """Bring entries to the group's leader; return what has become of each, in order. Raises nothing of its own.

    numbered   whether each is a command behind its number
    queries    they are no commands, but change nothing: each may be asked again whatever has become of it
    timeout_s  what is left until `deadline`
    told       what has become of each in a first attempt; None: there was none
    """
    outcomes: list[Any] = [None] * len(entries)
    left: Sequence[int] = range(len(entries))
    attempts = Attempts("read many") if queries else _attempts(numbered)
    backoff_s = 0.0
    if told is None and router.caller.leads(group_id):
        try:
            if queries:
                told = await router.caller.read_many_local(group_id, entries, timeout_s)
            else:
                told = await router.caller.propose_many_local(group_id, entries, numbered, timeout_s)
        except MultiRaftError as problem:
            told = [problem] * len(entries)
    if told is not None:
        if {*map(type, told)} == _RESULTS:
            return told
        left, attempts = _judged(told, left, outcomes, attempts)
    while left:
        left_s = deadline - router.now()
        if left_s <= 0:
            late = attempts.late(router.late(group_id, timeout_s, attempts.cause))
            for place in left:
                outcomes[place] = late
            break
        if backoff_s:
            await router.pause(backoff_s, left_s)
        backoff_s = min(2 * backoff_s, BACKOFF_MOST_S) or BACKOFF_FIRST_S
        told, final = await _sent(router, group_id, [entries[place] for place in left], deadline, timeout_s, attempts)
        for place in left[len(told) :]:
            outcomes[place] = final
        left, attempts = _judged(told, left, outcomes, attempts)
    return outcomes


async def _sent(
    router: Router, group_id: GroupId, entries: list[bytes], deadline: float, timeout_s: float, attempts: Attempts
) -> tuple[list[Outcome], MultiRaftError | None]:
    """Send entries to whoever leads. Return the outcomes of the first ones, and what stands for those of the rest."""
    told: list[Outcome] = []
    size_bytes = sum(map(len, entries)) + ENTRY_OVERHEAD_BYTES * len(entries)
    try:
        for start, end, _ in record_cuts(entries, size_bytes, router.limits.batch_bytes):
            answer = await router.search(group_id, encode_commands(entries[start:end]), deadline, timeout_s, attempts)
            told += decode_outcomes(answer, end - start)
    except MultiRaftError as problem:
        return told, problem
    return told, None


def _judged(
    told: list[Outcome], places: Sequence[int], outcomes: list[Any], attempts: Attempts
) -> tuple[list[int], Attempts]:
    """Note the outcomes that stay; return the places of those that are tried again, and what to try them with."""
    again: list[int] = []
    after = attempts.copy()
    for place, outcome in zip(places, told, strict=False):
        if isinstance(outcome, MultiRaftError):
            try:
                attempts.copy().failed(outcome)
            except MultiRaftError as final:
                outcomes[place] = final
            else:
                after.failed(outcome)
                again.append(place)
        else:
            outcomes[place] = outcome
    return again, after


def _attempts(numbered: bool) -> Attempts:
    return NumberedAttempts(False, "numbered many") if numbered else Attempts("propose many")
