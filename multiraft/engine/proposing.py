"""From a replica's queue to its log: what came in one turn becomes one record, or as many as its bytes need.

Rules of this file: nobody who waits is forgotten: whatever the core refuses, or breaks on, every caller has an answer.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial

from multiraft.config import Limits
from multiraft.engine.replica import Replica
from multiraft.engine.waiting import ENTRY_OVERHEAD_BYTES, Many, Proposals, Queue, Result, divide
from multiraft.errors import DiskFull, InvalidRequest, InvariantViolation, NotReady, OutcomeUnknown, Overloaded
from multiraft.raft import LEADER
from multiraft.records import CONTROL, SESSION
from multiraft.sessions import HEAD
from multiraft.types import DIRECTORY_GROUP, NOBODY


def propose_queued(replica: Replica, limits: Limits, stamp_ms: int, now: float) -> list[Proposals]:
    """Hand the queue of `replica` to its core, and return the batches whose callers now wait for the log.

    stamp_ms  the replicated clock, for the records
    now       the patience clock in seconds, from which the callers' time runs

    Raises InvariantViolation when the core breaks; its callers have been told by then.
    """
    if replica.core.role is not LEADER:
        replica.lost_queue()
        return []
    deadline_s = now + limits.request_timeout_ms / 1e3
    batches: list[Proposals] = []
    for kind in sorted(replica.queued):
        _propose(replica, kind, replica.queued.pop(kind), limits.batch_bytes, stamp_ms, deadline_s, batches)
    return batches


def _propose(
    replica: Replica,
    kind: int,
    queue: Queue,
    record_bytes: int,
    stamp_ms: int,
    deadline_s: float,
    batches: list[Proposals],
) -> None:
    core, budget = replica.core, replica.budget
    entries, futures, left_bytes = queue.entries, queue.futures, queue.size_bytes
    for start, end, part_bytes in record_cuts(entries, left_bytes, record_bytes):
        if start:
            divide(futures, start)
        try:
            first = core.propose(entries[start:end], kind, stamp_ms)
        except (NotReady, Overloaded) as problem:  # it is handing over its leadership, or commits too little
            Proposals(0, 0, futures[start:], left_bytes, 0.0, kind).fail(budget, partial(type(problem), str(problem)))
            break
        except InvariantViolation as problem:
            error = partial(OutcomeUnknown, f"group {replica.group_id}: {problem}")
            Proposals(0, 0, futures[start:], left_bytes, 0.0, kind).fail(budget, error)
            raise
        batch = Proposals(first, core.term, futures[start:end], part_bytes, deadline_s, kind)
        replica.waiting.append(batch)
        batches.append(batch)
        left_bytes -= part_bytes


def queue_many(
    replica: Replica, entries: list[bytes], kind: int, limit_bytes: int, told: Callable[[list[Result]], None]
) -> None:
    """Queue many entries for the next turn; `told` is called once, in a turn, with what has come of each.

    Raises as `check_entry` and `check_room` do, having queued none.
    """
    if not entries:
        told([])
        return
    if replica.executor.heads is not None or max(map(len, entries)) > limit_bytes:
        _check_entries(replica, entries, kind, limit_bytes)
    budget, count = replica.budget, len(entries)
    size_bytes = sum(map(len, entries)) + ENTRY_OVERHEAD_BYTES * count
    if budget.used_bytes + size_bytes > budget.limit_bytes:
        check_room(replica, size_bytes)
    budget.used_bytes += size_bytes
    budget.count += count
    queue = replica.queued.get(kind)
    if queue is None:
        queue = replica.queued[kind] = Queue()
    queue.entries += entries
    queue.futures += [Many(count, told)] * count
    queue.size_bytes += size_bytes


def check_entry(replica: Replica, entry: bytes, kind: int, limit_bytes: int) -> None:
    """Raise InvalidRequest for what is not bytes, is over `limit_bytes`, or is not known to the machine's class.

    The first could be decoded by no replica, and the last would halt every one that applies it. On the hot path.
    """
    if type(entry) is not bytes:
        raise InvalidRequest(f"group {replica.group_id}: the command must be bytes, not {type(entry).__name__}")
    if len(entry) > limit_bytes and (kind != SESSION or len(entry) > limit_bytes + HEAD.size):
        command_bytes = len(entry) - (HEAD.size if kind == SESSION else 0)
        raise InvalidRequest(f"a command of {command_bytes} bytes; entry_bytes allows {limit_bytes}")
    if kind != CONTROL:
        refused = replica.executor.refuses(kind, entry)
        if refused is not None:
            raise InvalidRequest(f"group {replica.group_id}: {refused}")


def _check_entries(replica: Replica, entries: list[bytes], kind: int, limit_bytes: int) -> None:
    """As `check_entry`, of each. Mostly all are calls of one method, with as many arguments: one speaks for all."""
    first = entries[0]
    check_entry(replica, first, kind, limit_bytes)
    at = HEAD.size if kind == SESSION else 0
    head = b""
    if len(first) > at + 1 and first[at] & 0xF0 == 0x90 and first[at + 1] & 0xE0 == 0xA0:  # a short array, a short name
        head = first[at : at + 2 + (first[at + 1] & 0x1F)]
    if not head or max(map(len, entries)) > limit_bytes + at:
        at = sys.maxsize
    for entry in entries:
        if not entry.startswith(head, at):
            check_entry(replica, entry, kind, limit_bytes)


def check_room(replica: Replica, size_bytes: int) -> None:
    """The node's budget does not allow for a command of `size_bytes`: raise why not, or let it pass after all.

    The directory's commands pass where the disk has no room. Raises Overloaded, NotReady (the group is being handed
    over to a node that has room), DiskFull.
    """
    budget = replica.budget
    if budget.refused is None or budget.used_bytes + size_bytes > budget.most_bytes:
        raise Overloaded(f"{budget.used_bytes} bytes of commands are waiting; retry when some are answered")
    if replica.core.heir != NOBODY:
        raise NotReady(f"group {replica.group_id} is being handed over: {budget.refused}")
    if replica.group_id != DIRECTORY_GROUP:
        raise DiskFull(budget.refused)


def record_cuts(commands: list[bytes], size_bytes: int, limit_bytes: int) -> list[tuple[int, int, int]]:
    """Return (start, end, bytes) of the records that `commands` are cut into, in order.

    All sizes, `size_bytes` of the whole among them, count ENTRY_OVERHEAD_BYTES for each command.

    A record takes as many commands as fit into `limit_bytes`, and at least one.
    """
    if size_bytes <= limit_bytes:
        return [(0, len(commands), size_bytes)]
    cuts = []
    start = taken_bytes = 0
    for at, command in enumerate(commands):
        command_bytes = len(command) + ENTRY_OVERHEAD_BYTES
        if at > start and taken_bytes + command_bytes > limit_bytes:
            cuts.append((start, at, taken_bytes))
            start, taken_bytes = at, 0
        taken_bytes += command_bytes
    cuts.append((start, len(commands), taken_bytes))
    return cuts
