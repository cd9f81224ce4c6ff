"""Group commit: what is one batch, which completion is whose, and when a promise may leave.

The store here completes a write when the test says so.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any, cast

import pytest

from multiraft.engine.keyspace import ReplicaData
from multiraft.engine.writer import AckRows, LogWriter, Persisted, Promise, Stored
from multiraft.messages import AppendAnswer
from multiraft.ports import Clocks
from multiraft.raft import Ready, Role
from multiraft.records import COMMANDS, Record, encode_record
from multiraft.types import Applied, HardState

pytestmark = pytest.mark.pure_only  # the replicas here are stand-ins
GROUP = 16
Done = Callable[[Exception | None], None]


class Batch:
    """Notes what is put into it, in order."""

    def __init__(self) -> None:
        self.ops: list[tuple[str, int]] = []
        self.size_bytes = 0

    def put_record(self, group_id: int, record: Record) -> None:
        self.ops.append(("record", record.first))
        self.size_bytes += len(record.raw)

    def put_step(self, group_id: int, record: Record, term: int, vote: int, commit: int) -> None:
        self.put_record(group_id, record)
        self.put_hard_state(group_id, HardState(term, vote, commit))

    def delete_records(self, group_id: int, firsts: Sequence[int]) -> None:
        self.ops += [("delete", first) for first in firsts]

    def put_data(self, space: int, key: bytes, value: bytes) -> None:
        self.ops.append(("data", int(value)))

    def put_applied(self, group_id: int, applied: Applied) -> None:
        self.ops.append(("applied", applied.index))

    def put_hard_state(self, group_id: int, hard_state: HardState) -> None:
        self.ops.append(("term", hard_state.term))


class Disk:
    """Writes under way, oldest first; `complete` ends the oldest."""

    def __init__(self) -> None:
        self.under_way: deque[tuple[Batch, Done]] = deque()
        self.written: list[list[tuple[str, int]]] = []
        self.synced: list[bool] = []

    def batch(self) -> Batch:
        return Batch()

    def submit(self, batch: Batch, done: Done, sync: bool = True) -> None:
        self.under_way.append((batch, done))
        self.synced.append(sync)

    def complete(self, error: Exception | None = None) -> None:
        batch, done = self.under_way.popleft()
        if error is None:
            self.written.append(batch.ops)
        done(error)


class Desk:
    """A writer, its disk, and what it has reported: last indexes of persisted logs, and the promises let go."""

    def __init__(self, writes_in_flight: int = 4, batch_bytes: int = 1 << 20) -> None:
        self.disk = Disk()
        self.persisted: list[int] = []
        self.promised: list[int] = []
        self.errors: list[Exception] = []
        clocks = Clocks(lambda: 0.0, lambda: 0.0, lambda: 0.0)
        self.writer = LogWriter(
            cast(Any, self.disk), batch_bytes, writes_in_flight, clocks, self._on_persisted, self.errors.append
        )

    def _on_persisted(self, persisted: list[Persisted | Stored], promises: list[Promise], acks: AckRows) -> None:
        self.persisted += [told.index if isinstance(told, Persisted) else told[1] for told in persisted]
        self.promised += [cast(AppendAnswer, message).index for _, messages in promises for message in messages]
        self.promised += [index for rows in acks.values() for _, index, *_ in rows]

    def add(self, ready: Ready) -> list[int]:
        """Return the promises that need not wait."""
        replica = cast(Any, SimpleNamespace(group_id=GROUP))
        return [cast(AppendAnswer, message).index for message in self.writer.add(replica, ready)]

    def turn(self, *readies: Ready) -> None:
        for ready in readies:
            assert self.add(ready) == []
        self.writer.flush()


def asking(last: int, promise: int = 0, writes: bool = True, deleted: Sequence[int] = ()) -> Ready:
    """Return a Ready that writes a record at `last`, with a hard state of that term, and promises `promise`."""
    records = [encode_record(GROUP, last, 1, 1, COMMANDS, 0, [b"x"])] if writes else []
    promises: list[Any] = [AppendAnswer(True, GROUP, 0, 0, promise, 1, 1, 2)] if promise else []
    hard_state = HardState(last, 0, 1) if writes else None
    last_entry = (last, 1) if writes else (0, 0)
    return Ready(
        records, list(deleted), hard_state, None, last_entry, [], promises, 1, [], False, Role.FOLLOWER, 2, 1
    )  # fmt: skip


def test_promises_and_reports_come_with_the_completion_of_their_batch() -> None:
    desk = Desk()
    desk.turn(asking(2, promise=2))
    assert len(desk.disk.under_way) == 1
    assert (desk.persisted, desk.promised) == ([], [])
    desk.disk.complete()
    assert (desk.persisted, desk.promised) == ([2], [2])


def test_each_completion_is_that_of_the_oldest_batch_under_way() -> None:
    desk = Desk()
    for index in (2, 3, 4):
        desk.turn(asking(index, promise=index))
    assert len(desk.disk.under_way) == 3
    for seen in ([2], [2, 3], [2, 3, 4]):
        desk.disk.complete()
        assert (desk.persisted, desk.promised) == (seen, seen)


def test_a_promise_without_a_write_waits_for_the_latest_batch() -> None:
    desk = Desk(writes_in_flight=2)
    assert desk.add(asking(0, promise=1, writes=False)) == [1]  # nothing is under way: it speaks of what is on disk
    desk.turn(asking(2))
    desk.turn(asking(3))
    desk.turn(asking(0, promise=3, writes=False))
    desk.disk.complete()
    assert desk.promised == []
    desk.turn(asking(4))
    desk.turn(asking(5))  # gathers: two are under way
    desk.turn(asking(0, promise=5, writes=False))
    desk.disk.complete()
    assert desk.promised == [3]
    desk.disk.complete()
    assert desk.promised == [3]
    desk.disk.complete()
    assert desk.promised == [3, 5]


def test_what_one_core_asks_for_is_one_batch_in_order() -> None:
    """A crash between two of them would leave a log without its term, or a gap where a conflict was."""
    desk = Desk()
    desk.turn(asking(3, promise=3, deleted=(3, 4)))
    assert len(desk.disk.under_way) == 1
    desk.disk.complete()
    (ops,) = desk.disk.written
    assert ops[:3] == [("delete", 3), ("delete", 4), ("record", 3)]
    assert ops[3:] == [("term", 3)]


def test_all_groups_of_a_turn_share_a_batch_and_later_turns_gather_behind_the_limit() -> None:
    desk = Desk(writes_in_flight=1)
    desk.turn(asking(2), asking(3))
    desk.turn(asking(4))
    desk.turn(asking(5, promise=5))
    assert len(desk.disk.under_way) == 1
    desk.disk.complete()
    assert (desk.persisted, len(desk.disk.under_way)) == ([2, 3], 1)
    desk.disk.complete()
    assert (desk.persisted, desk.promised) == ([2, 3, 4, 5], [5])


def test_a_full_batch_leaves_at_once() -> None:
    desk = Desk(batch_bytes=1)
    desk.add(asking(2))
    desk.add(asking(3))
    assert len(desk.disk.under_way) == 2


def test_other_writes_are_reported_when_they_are_on_disk() -> None:
    desk = Desk()
    told: list[str] = []
    desk.writer.write(lambda batch: batch.put_hard_state(GROUP, HardState(1, 0, 1)), lambda: told.append("created"))
    desk.writer.flush()
    assert told == []
    desk.disk.complete()
    assert told == ["created"]


@pytest.mark.parametrize("gathering", [False, True])
def test_after_a_failed_write_nothing_is_handed_out_again(gathering: bool) -> None:
    desk = Desk(writes_in_flight=2)
    desk.turn(asking(2, promise=2))
    desk.turn(asking(3, promise=3))
    if gathering:
        desk.turn(asking(4, promise=4))
    desk.disk.complete(OSError(5, "Input/output error"))
    desk.disk.complete()  # what a disk says after a failure cannot be trusted
    desk.turn(asking(5, promise=5))
    while desk.disk.under_way:
        desk.disk.complete()
    assert (desk.persisted, desk.promised) == ([], [])
    assert (len(desk.errors), desk.writer.failed) == (1, True)


# --------------------------------------------------------------------------------------------- machines on disk


class Machine:
    """The data of a machine on disk, one command at a time; `written` counts its batches that are."""

    def __init__(self, desk: Desk) -> None:
        self.desk = desk
        self.data = ReplicaData(GROUP, cast(Any, None), Applied(1, 1, 0, 0, 7))
        self.written = 0

    def apply(self, index: int) -> None:
        self.data.begin()
        self.data.put(b"k", b"%d" % index)
        self.data.keep()
        self.desk.writer.hand_out(self.data, Applied(index, 1, 0, 0, 7), (), self._done)

    def _done(self) -> None:
        self.written += 1
        self.data.written()


def test_what_was_applied_is_written_unsynced_and_durable_with_the_next_synced_batch() -> None:
    desk = Desk()
    machine = Machine(desk)
    for index in (2, 3):
        machine.apply(index)
        desk.writer.flush()
    assert desk.disk.synced == [False, False]
    desk.disk.complete()
    desk.disk.complete()
    assert (machine.written, machine.data.durable.index) == (2, 1)
    desk.turn(asking(4))
    machine.apply(4)
    desk.writer.flush()
    assert desk.disk.synced == [False, False, True, False]
    desk.disk.complete()
    assert (machine.written, machine.data.durable.index) == (2, 3)
    desk.disk.complete()
    assert (machine.written, machine.data.durable.index) == (3, 3)
    desk.writer.sync()
    desk.writer.flush()
    desk.disk.complete()
    assert machine.data.durable.index == 4
    assert desk.disk.written == [
        [("data", 2), ("applied", 2)],
        [("data", 3), ("applied", 3)],
        [("record", 4), ("term", 4)],
        [("data", 4), ("applied", 4)],
        [],
    ]


def test_what_was_applied_joins_the_batch_that_is_open_and_is_durable_with_it() -> None:
    desk = Desk(writes_in_flight=1)
    machine = Machine(desk)
    desk.turn(asking(2))
    machine.apply(2)
    desk.turn(asking(3, promise=3))  # gathers behind the one under way
    machine.apply(3)
    desk.disk.complete()
    desk.disk.complete()
    assert desk.disk.synced == [True, True]
    assert desk.disk.written[1] == [
        ("data", 2), ("applied", 2), ("record", 3), ("term", 3), ("data", 3), ("applied", 3),
    ]  # fmt: skip
    assert (desk.promised, machine.written, machine.data.durable.index) == ([3], 2, 3)


def test_after_a_failed_write_nothing_that_was_applied_is_taken_any_more() -> None:
    desk = Desk()
    machine = Machine(desk)
    machine.apply(2)
    desk.writer.flush()
    desk.disk.complete(OSError("no space"))
    machine.apply(3)
    desk.writer.sync()
    desk.writer.flush()
    assert (machine.written, machine.data.durable.index, len(desk.disk.under_way)) == (0, 1, 0)
