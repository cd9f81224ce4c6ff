"""A replica's keyspace between its commands and the store: the overlay, savepoints, and reads through all of it.

Rules of this file: the store is a dictionary, written when a batch is completed by hand; a naive twin says what reads
must show.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from itertools import pairwise
from typing import Any, cast

import pytest

from multiraft.engine import keyspace
from multiraft.engine.keyspace import SESSIONS, MachineOnDisk, ReplicaData
from multiraft.engine.machine import Context, environmental
from multiraft.errors import CorruptRecord, ReadFailed
from multiraft.keyspace import Keyspace
from multiraft.types import Applied

FIRST = Applied(1, 1, 0, 0, 7)


class Shelf:
    """A store with one keyspace, and the batches that are on their way to it."""

    def __init__(self) -> None:
        self.values: dict[bytes, bytes] = {}
        self.queued: list[Batch] = []
        self.damaged: bytes | None = None

    def read_data(self, space: int, key: bytes) -> bytes | None:
        assert space in (7, 8)
        if key == self.damaged:
            raise CorruptRecord("damaged")
        return self.values.get(key)

    def iterate_data(
        self, space: int, start: bytes = b"", stop: bytes | None = None, reverse: bool = False
    ) -> Iterator[tuple[bytes, bytes]]:
        values = dict(self.values)  # a moment, as of the first item
        for key in sorted(values, reverse=reverse):
            if start <= key and (stop is None or key < stop):
                if key == self.damaged:
                    raise CorruptRecord("damaged")
                yield key, values[key]

    def iterate_data_keys(
        self, space: int, start: bytes = b"", stop: bytes | None = None, reverse: bool = False
    ) -> Iterator[bytes]:
        return (key for key, _ in self.iterate_data(space, start, stop, reverse))

    def read_applied(self, group_id: int) -> Applied | None:
        return None

    def complete(self, data: ReplicaData, told: bool = True) -> None:
        """The oldest batch is in the store; `told`: and its completion has come."""
        batch = self.queued.pop(0) if told else self.queued[0]
        for key, value in batch.changes.items():
            if value is None:
                self.values.pop(key, None)
            else:
                self.values[key] = value
        if told:
            data.written()


class Batch:
    def __init__(self) -> None:
        self.changes: dict[bytes, bytes | None] = {}
        self.applied: Applied | None = None

    def put_data(self, space: int, key: bytes, value: bytes) -> None:
        self.changes[key] = value

    def delete_data(self, space: int, key: bytes) -> None:
        self.changes[key] = None

    def put_applied(self, group_id: int, applied: Applied) -> None:
        self.applied = applied


def made() -> tuple[Shelf, ReplicaData]:
    shelf = Shelf()
    return shelf, ReplicaData(16, shelf, FIRST)


def hand_out(shelf: Shelf, data: ReplicaData, index: int, *beside: tuple[bytes, bytes | None]) -> Batch:
    batch = Batch()
    data.hand_out(cast(Any, batch), Applied(index, 1, 0, 0, data.space), beside)
    shelf.queued.append(batch)
    return batch


def run(data: ReplicaData, *writes: tuple[bytes, bytes | None], fails: bool = False) -> None:
    data.begin()
    for key, value in writes:
        if value is None:
            data.delete(key)
        else:
            data.put(key, value)
    if fails:
        data.drop()
    else:
        data.keep()


def test_writes_are_seen_at_once_and_reach_the_store_with_what_is_applied() -> None:
    shelf, data = made()
    run(data, (b"a", b"1"), (b"b", b"2"))
    assert (data.get(b"a"), shelf.values) == (b"1", {})
    batch = hand_out(shelf, data, 5, (SESSIONS + b"s", b"reply"), (SESSIONS + b"t", None))
    assert batch.applied == Applied(5, 1, 0, 0, 7)
    assert batch.changes == {b"\0a": b"1", b"\0b": b"2", b"\1s": b"reply", b"\1t": None}
    assert data.get(b"b") == b"2"
    shelf.complete(data)
    assert (data.get(b"a"), data.get(b"b"), data.queued_bytes) == (b"1", b"2", 0)
    assert list(data.range()) == [(b"a", b"1"), (b"b", b"2")]  # and nothing of the sessions
    assert list(data.pairs_beside()) == [(b"s", b"reply")]


def test_an_older_batch_that_completes_does_not_take_a_newer_value_away() -> None:
    shelf, data = made()
    run(data, (b"k", b"old"))
    hand_out(shelf, data, 2)
    run(data, (b"k", b"new"))
    shelf.complete(data)
    assert data.get(b"k") == b"new"
    hand_out(shelf, data, 3)
    shelf.complete(data)
    assert (data.get(b"k"), shelf.values) == (b"new", {b"\0k": b"new"})


def test_a_deletion_that_is_queued_hides_what_the_store_has() -> None:
    shelf, data = made()
    shelf.values = {b"\0a": b"1", b"\0b": b"2"}
    run(data, (b"a", None))
    for _ in range(2):
        assert data.get(b"a") is None
        assert list(data.range()) == [(b"b", b"2")]
        assert list(data.keys(reverse=True)) == [b"b"]
        hand_out(shelf, data, 2)
    shelf.complete(data)
    assert data.get(b"a") is None


def test_a_failed_command_leaves_what_was_there_in_the_slice_in_the_queue_and_in_the_store() -> None:
    shelf, data = made()
    shelf.values = {b"\0stored": b"1"}
    run(data, (b"queued", b"1"))
    hand_out(shelf, data, 2)
    run(data, (b"slice", b"1"))
    list(data.keys())  # from here on the overlay's keys are kept in order
    bad = [(b"stored", b"9"), (b"queued", None), (b"slice", b"9"), (b"new", b"9"), (b"new", None), (b"slice", None)]
    run(data, *bad, fails=True)
    expected = [(b"queued", b"1"), (b"slice", b"1"), (b"stored", b"1")]
    assert list(data.range()) == expected
    assert hand_out(shelf, data, 3).changes == {b"\0slice": b"1"}
    shelf.complete(data)
    shelf.complete(data)
    assert list(data.range()) == expected
    assert sorted(shelf.values) == [b"\0queued", b"\0slice", b"\0stored"]


def test_writing_outside_a_command_and_what_is_not_bytes_are_refused() -> None:
    _, data = made()
    with pytest.raises(RuntimeError, match="by its commands"):
        data.put(b"k", b"v")
    run(data)
    with pytest.raises(RuntimeError, match="by its commands"):
        data.delete(b"k")
    data.begin()
    with pytest.raises(TypeError, match="bytes"):
        data.put(b"k", cast(Any, "v"))
    with pytest.raises(TypeError, match="bytes"):
        data.delete(cast(Any, bytearray(b"k")))


def test_a_range_is_of_no_use_after_its_command_or_when_a_batch_has_completed() -> None:
    shelf, data = made()
    shelf.values = {b"\0a": b"1", b"\0b": b"2"}
    run(data, (b"c", b"3"))
    hand_out(shelf, data, 2)
    found = data.range()
    assert next(found) == (b"a", b"1")
    shelf.complete(data)
    with pytest.raises(RuntimeError, match="in the command or query that made it"):
        next(found)
    keys = data.keys()
    assert next(keys) == b"a"
    run(data)
    with pytest.raises(RuntimeError, match="in the command or query that made it"):
        next(keys)


def test_what_a_command_writes_while_it_iterates_does_not_confuse_it() -> None:
    shelf, data = made()
    shelf.values = {b"\0%d" % number: b"x" for number in range(0, 10, 2)}
    data.begin()
    seen = []
    for key, _ in data.range():
        seen.append(key)
        data.put(b"%d" % (int(key) + 1), b"y")
        data.delete(key)
        if len(seen) == 10:
            break
    data.keep()
    assert seen == [b"%d" % number for number in range(10)]
    assert list(data.keys()) == [b"10"]


@pytest.mark.parametrize("seed", range(40))
def test_reads_are_those_of_a_plain_map_whatever_completes_when(seed: int) -> None:
    rng = random.Random(seed)
    shelf, data = made()
    twin: dict[bytes, bytes] = {}
    keys = [b"%02d" % number for number in range(12)] + [b"", b"\xff", b"\xff\xff"]
    index = 1
    for _ in range(300):
        what = rng.randrange(6)
        if what <= 2:
            writes = [
                (rng.choice(keys), rng.choice([None, b"%d" % rng.randrange(99)])) for _ in range(rng.randrange(4))
            ]
            fails = rng.random() < 0.3
            run(data, *writes, fails=fails)
            if not fails:
                for key, value in writes:
                    if value is None:
                        twin.pop(key, None)
                    else:
                        twin[key] = value
        elif what == 3:
            index += 1
            hand_out(shelf, data, index)
        elif shelf.queued:
            shelf.complete(data, told=what == 4)  # written, and its completion comes later
        start, stop = rng.choice(keys), rng.choice([None, *keys])
        for reverse in (False, True):
            expected = [
                (key, twin[key])
                for key in sorted(twin, reverse=reverse)
                if start <= key and (stop is None or key < stop)
            ]
            assert list(data.range(start, stop, reverse=reverse)) == expected
            assert list(data.keys(start, stop, reverse=reverse)) == [key for key, _ in expected]
        assert [data.get(key) for key in keys] == [twin.get(key) for key in keys]
    while shelf.queued:
        shelf.complete(data)
    hand_out(shelf, data, index + 1)
    shelf.complete(data)
    assert shelf.values == {b"\0" + key: value for key, value in twin.items()}
    assert (data.queued_bytes, data._overlay) == (0, {})


@pytest.mark.pure_only
def test_it_is_full_while_more_than_its_bound_is_on_its_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keyspace, "QUEUED_BYTES", 1_000)
    shelf, data = made()
    run(data, (b"k", b"x" * 600))
    assert not data.full
    hand_out(shelf, data, 2)
    run(data, (b"l", b"x" * 600))
    hand_out(shelf, data, 3)
    assert data.full
    shelf.complete(data)
    assert not data.full


def test_a_switch_forgets_what_was_on_its_way_to_the_old_keyspace() -> None:
    shelf, data = made()
    run(data, (b"k", b"old"))
    hand_out(shelf, data, 2)
    assert data.switch(Applied(9, 2, 5, 0, 8)) == 7
    assert (data.get(b"k"), data.space, data.durable.index) == (None, 8, 9)
    data.written()  # of before: it rode in the very batch that switched
    data.synced(Applied(20, 1, 0, 0, 7))
    assert (data.queued_bytes, data.durable.index) == (0, 9)
    data.synced(Applied(12, 2, 0, 0, 8))
    assert data.durable.index == 12


# ------------------------------------------------------------------------------------------------- under a machine


class Careless:
    """A machine that swallows whatever its data raise."""

    def __init__(self) -> None:
        self.data: Keyspace | None = None

    def apply(self, command: bytes, context: Context) -> bytes:
        data = self.data
        assert data is not None
        data.put(b"seen", command)
        try:
            return data.get(command) or b"none"
        except Exception:
            return b"swallowed"

    def query(self, query: bytes) -> bytes:
        assert self.data is not None
        return self.data.get(query) or b"none"

    def refuses(self, command: bytes) -> str | None:
        return None

    def describe(self, command: bytes) -> str:
        return ""

    def snapshot(self) -> bytes:
        return b""

    def restore(self, state: bytes) -> None: ...


def test_a_read_that_fails_halts_the_replica_even_if_the_command_swallows_it() -> None:
    shelf, data = made()
    shelf.values, shelf.damaged = {b"\0bad": b"1", b"\0good": b"2"}, b"\0bad"
    machine, context = MachineOnDisk(Careless(), data), Context(2, 1, 16, 0)
    assert machine.apply(b"good", context) == b"2"
    with pytest.raises(CorruptRecord) as raised:
        machine.apply(b"bad", context)
    assert environmental(raised.value)
    assert data.get(b"seen") == b"good"  # what it wrote is dropped
    with pytest.raises(CorruptRecord):  # and nothing is applied after it
        machine.apply(b"good", context)


def test_a_query_that_cannot_read_is_refused_and_no_command_follows() -> None:
    shelf, data = made()
    shelf.values, shelf.damaged = {b"\0bad": b"1"}, b"\0bad"
    machine = MachineOnDisk(Careless(), data)
    assert machine.query(b"good") == b"none"
    with pytest.raises(ReadFailed, match="its data cannot be read here"):
        machine.query(b"bad")
    with pytest.raises(CorruptRecord):
        machine.apply(b"good", Context(2, 1, 16, 0))


def test_parts_are_apart() -> None:
    assert all(first < second for first, second in pairwise((keyspace.DATA, keyspace.SESSIONS, keyspace.END)))
