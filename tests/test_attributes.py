"""A machine's attributes as bytes: what comes back is what went in, or it is refused by name."""

from __future__ import annotations

from collections import OrderedDict
from enum import IntEnum
from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from multiraft.attributes import CHUNK_BYTES, AttributesLoader, unpack_attributes
from multiraft.attributes import pack_attributes as packed_in_pieces
from multiraft.errors import CorruptRecord

scalars = st.none() | st.booleans() | st.integers(-(1 << 63), (1 << 64) - 1) | st.floats(allow_nan=False)
keys = st.text() | st.binary() | st.integers(0, 99)
plain = st.recursive(
    scalars | st.text() | st.binary(),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(keys, inner, max_size=5),
    max_leaves=25,
)


def pack_attributes(owner: object) -> bytes:
    return b"".join(packed_in_pieces(owner))


class State:
    """Holds whatever it is given."""

    def __init__(self, **attributes: Any) -> None:
        vars(self).update(attributes)


class Color(IntEnum):
    RED = 1


@given(st.dictionaries(st.text(min_size=1), plain, max_size=5))
def test_plain_attributes_come_back_with_their_types_and_order(attributes: dict[str, Any]) -> None:
    packed = pack_attributes(State(**attributes))
    other = State(left="over")
    unpack_attributes(other, packed)
    assert repr(vars(other)) == repr(attributes)
    assert pack_attributes(other) == packed


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        ((1, 2), r"State.x: a tuple cannot"),
        ({1, 2}, r"State.x: a set cannot"),
        (bytearray(b"x"), r"State.x: a bytearray cannot"),
        (memoryview(b"x"), r"State.x: a memoryview cannot"),
        (OrderedDict(), r"State.x: a OrderedDict cannot"),
        (Color.RED, r"State.x: a Color cannot"),
        (object(), r"State.x: a object cannot"),
        (1j, r"State.x: a complex cannot"),
        ([1, [2, (3,)]], r"State.x\[1\]\[1\]: a tuple cannot"),
        ({"a": {"b": [None, {5}]}}, r"State.x\['a'\]\['b'\]\[1\]: a set cannot"),
        ({(1, 2): 3}, r"State.x: a key that is a tuple cannot"),
        ({None: 3}, r"State.x: a key that is a NoneType cannot"),
        ({"a": {True: 3}}, r"State.x\['a'\]: a key that is a bool cannot"),
        (1 << 64, r"State.x cannot be carried in a snapshot: "),
        ([1, -(1 << 63) - 1], r"State.x cannot be carried in a snapshot: "),
        ("\ud800", r"State.x cannot be carried in a snapshot: "),
    ],
)
def test_what_would_come_back_as_something_else_is_refused_by_name(value: object, problem: str) -> None:
    with pytest.raises(TypeError, match=problem):
        pack_attributes(State(good=[1], x=value))


def test_what_stands_in_two_places_is_refused_and_so_is_what_holds_itself() -> None:
    """It would come back as two, and replicas would part at the next change."""
    shared: list[Any] = []
    for state in (State(a=shared, b=shared), State(a=[shared, shared]), State(a={"x": shared, "y": [shared]})):
        with pytest.raises(TypeError, match="a list that stands in two places"):
            pack_attributes(state)
    shared.append(shared)
    with pytest.raises(TypeError, match="a list that stands in two places"):
        pack_attributes(State(a=shared))


def test_equal_values_in_two_places_are_no_sharing() -> None:
    state = State(a=[1], b=[1], c=["x", "x"], d={"k": [1]})
    other = State()
    unpack_attributes(other, pack_attributes(state))
    assert vars(other) == vars(state)


def test_what_is_nested_too_deeply_is_refused() -> None:
    deep: list[Any] = []
    for _ in range(200):
        deep = [deep]
    with pytest.raises(TypeError, match="nested too deeply"):
        pack_attributes(State(deep=deep))


def test_an_object_without_attributes_says_what_to_write() -> None:
    class Slotted:
        __slots__ = ("x",)

    for act in (lambda: pack_attributes(Slotted()), lambda: unpack_attributes(Slotted(), b"")):
        with pytest.raises(TypeError, match=r"Slotted has __slots__: define snapshot\(\) and restore\(\)"):
            act()


@pytest.mark.parametrize(
    "packed",
    [
        b"",
        b"\xc1",
        msgpack.packb(5),
        msgpack.packb([2]),
        msgpack.packb([1, 0]),
        msgpack.packb([2, 1]),
        msgpack.packb([2, "1"]),
        msgpack.packb([2, 1]) + msgpack.packb(["a", 0, 2]) + msgpack.packb(1) * 2,
        msgpack.packb([2, 1]) + msgpack.packb(["a", 3, 1]) + msgpack.packb(1),
        msgpack.packb([2, 1]) + msgpack.packb([5, 0, 1]) + msgpack.packb(1),
        msgpack.packb([2, 1]) + msgpack.packb(["a", 1, -1]),
        msgpack.packb([2, 2]) + (msgpack.packb(["a", 0, 1]) + msgpack.packb(1)) * 2,
        pack_attributes(State(a=[1, 2]))[:-1],
        pack_attributes(State(a={1: 2}))[:-1],
        pack_attributes(State(a=1, b="text"))[:-1],
        pack_attributes(State(a=1)) + b"x",
    ],
)
def test_other_bytes_are_refused_and_change_nothing(packed: bytes) -> None:
    state = State(a=[1, 2])
    with pytest.raises(CorruptRecord):
        unpack_attributes(state, packed)
    assert vars(state) == {"a": [1, 2]}


@given(st.binary(max_size=60))
def test_arbitrary_bytes_raise_corrupt_record_alone(packed: bytes) -> None:
    state = State(a=1)
    try:
        unpack_attributes(state, packed)
    except CorruptRecord:
        assert vars(state) == {"a": 1}


def test_large_state_goes_and_comes_in_pieces() -> None:
    state = State(table={f"key {number}": number for number in range(50_000)}, items=list(range(50_000)), small=1)
    pieces = list(packed_in_pieces(state))
    assert len(pieces) > 10
    assert max(map(len, pieces)) < 2 * CHUNK_BYTES
    other = State(left="over")
    loader = AttributesLoader(other)
    whole = b"".join(pieces)
    for at in range(0, len(whole), 1_001):
        loader.feed(whole[at : at + 1_001])
        assert vars(other) == {"left": "over"}
    loader.finish()
    assert vars(other) == vars(state)
