"""State machines on disk as a user meets them without any cluster: in unit tests, and when a class is defined."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from multiraft import BytesDiskStateMachine, BytesStateMachine, DiskStateMachine, StateMachine, command, query
from multiraft.adapting import adapt
from multiraft.keyspace import MemoryKeyspace


class Counters(DiskStateMachine):
    @command(key="name")
    def add(self, name: str, amount: int = 1) -> int:
        key = name.encode()
        value = int(self.data.get(key) or b"0") + amount
        self.data.put(key, b"%d" % value)
        return value

    @query(key=None)
    def names(self, first: str) -> list[str]:
        return [key.decode() for key in self.data.keys(first.encode())]


def test_it_is_an_ordinary_class_in_a_unit_test() -> None:
    counters = Counters()
    assert (counters.add("x"), counters.add("x", 2), counters.add("y")) == (1, 3, 1)
    assert (counters.names(""), counters.names("xx")) == (["x", "y"], ["y"])
    assert Counters().names("") == []


def test_a_machine_need_not_call_its_bases_init() -> None:
    class Own(DiskStateMachine):
        def __init__(self) -> None:
            self.cache: dict[str, int] = {}

    own = Own()
    own.data.put(b"k", b"v")
    assert own.data.get(b"k") == b"v"


def test_the_engine_puts_a_replicas_data_in_place_of_its_own() -> None:
    counters, data = Counters(), MemoryKeyspace()
    adapted = adapt(counters)
    assert adapted.data is counters.data
    adapted.data = data
    counters.add("x")
    assert data.get(b"x") == b"1"


def test_machines_in_memory_have_no_data_whatever_they_call_their_attributes() -> None:
    class Plain(StateMachine):
        def __init__(self) -> None:
            self.data: dict[str, int] = {}

    class PlainBytes(BytesStateMachine):
        data = b""

    assert adapt(Plain()).data is None
    assert adapt(PlainBytes()).data is None


def test_data_snapshot_and_restore_are_the_frameworks() -> None:
    with pytest.raises(TypeError, match=r"WithData.data: 'data' of a state machine on disk is where its state is"):

        class WithData(DiskStateMachine):
            data = b""  # type: ignore[assignment] # refused

    with pytest.raises(TypeError, match=r"WithSnapshot.snapshot: .* is not asked for"):

        class WithSnapshot(BytesDiskStateMachine):
            def snapshot(self) -> bytes:
                return b""

    with pytest.raises(TypeError, match=r"WithRestore.restore: .* is not asked for"):

        class WithRestore(DiskStateMachine):
            def restore(self, state: bytes) -> None: ...

    with pytest.raises(TypeError, match=r"'data' of a state machine on disk"):

        class WithCommand(DiskStateMachine):
            @command(key="name")
            def data(self, name: str) -> int:  # type: ignore[override] # refused
                return 0

    with pytest.raises(TypeError, match="has no snapshot"):
        Counters().snapshot()
    with pytest.raises(TypeError, match="cannot be restored"):
        Counters().restore(b"")


@given(st.integers(0, 2**32))
def test_a_map_in_memory_is_ordered_and_half_open(seed: int) -> None:
    rng, data, twin = random.Random(seed), MemoryKeyspace(), dict[bytes, bytes]()
    for _ in range(60):
        key, value = b"%d" % rng.randrange(20), b"%d" % rng.randrange(99)
        if rng.random() < 0.3:
            data.delete(key)
            twin.pop(key, None)
        else:
            data.put(key, value)
            twin[key] = value
    start, stop = b"%d" % rng.randrange(20), rng.choice([None, b"%d" % rng.randrange(20)])
    expected = [(key, twin[key]) for key in sorted(twin) if start <= key and (stop is None or key < stop)]
    assert list(data.range(start, stop)) == expected
    assert list(data.keys(start, stop, reverse=True)) == [key for key, _ in reversed(expected)]
    assert data.get(b"1") == twin.get(b"1")


def test_keys_and_values_are_bytes() -> None:
    with pytest.raises(TypeError, match="keys and values are bytes, not bytes and str"):
        MemoryKeyspace().put(b"k", "v")  # type: ignore[arg-type]
