"""Typed values on the wire: what goes in comes out, and what does not fit is refused in words.

Every value passes through msgpack itself, because that is what must carry it.
"""

from __future__ import annotations

from dataclasses import InitVar, dataclass, field
from enum import IntEnum, StrEnum
from typing import Any, NewType, Optional

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from multiraft.codec import INT_MAX, INT_MIN, UnsupportedType, ValueMismatch, value_type


@dataclass(frozen=True)
class Point:
    x: int
    y: int = 7


@dataclass
class Path:
    name: str
    points: list[Point]
    labels: dict[int, Point | None] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Named:
    label: str
    weight: float = 1.0


@dataclass
class Tree:
    children: list[Tree]


@dataclass
class Derived:
    total: int = field(init=False, default=0)


@dataclass
class Seeded:
    seed: InitVar[int]
    total: int = 0


class Color(StrEnum):
    RED = "red"


class Level(IntEnum):
    HIGH = 3


Name = NewType("Name", str)

ints = st.integers(INT_MIN, INT_MAX)
texts = st.text(st.characters(exclude_categories=["Cs"]))
points = st.builds(Point, ints, ints)
paths = st.builds(Path, texts, st.lists(points), st.dictionaries(ints, points | st.none()))
SUPPORTED: list[tuple[Any, st.SearchStrategy[Any]]] = [
    (None, st.none()),
    (bool, st.booleans()),
    (int, ints),
    (float, st.floats(allow_nan=False)),
    (str, texts),
    (bytes, st.binary()),
    (Name, texts),
    (list[int], st.lists(ints)),
    (dict[str, float], st.dictionaries(texts, st.floats(allow_nan=False))),
    (dict[int, list[bytes]], st.dictionaries(ints, st.lists(st.binary()))),
    (dict[bytes, bool], st.dictionaries(st.binary(), st.booleans())),
    (Optional[int], st.none() | ints),  # noqa: UP045  (the older spelling must work as well)
    (bool | int | float | str | bytes | None, st.none() | st.booleans() | ints | texts | st.binary()),
    (int | list[int] | dict[str, int], ints | st.lists(ints) | st.dictionaries(texts, ints)),
    (Point | Path | list[int], points | paths | st.lists(ints)),
    (list[Point | Named], st.lists(points | st.builds(Named, label=texts, weight=st.just(0.5)))),
    (Path, paths),
]


def through_msgpack(annotation: Any, value: Any) -> Any:
    kind = value_type(annotation)
    return kind.decode(msgpack.unpackb(msgpack.packb(kind.encode(value)), strict_map_key=False))


@given(st.data())
def test_what_goes_in_comes_out(data: st.DataObject) -> None:
    annotation, values = data.draw(st.sampled_from(SUPPORTED))
    value = data.draw(values)
    returned = through_msgpack(annotation, value)
    assert returned == value
    assert type(returned) is type(value)


@pytest.mark.parametrize(
    ("annotation", "value", "arrives"),
    [
        (int, True, 1),
        (int, Level.HIGH, 3),
        (str, Color.RED, "red"),
        (float, 2, 2.0),
        (float | None, 2, 2.0),
        (int | str, Color.RED, "red"),
        (bool | int, True, True),
    ],
)
def test_what_type_checkers_accept_arrives_as_the_declared_type(annotation: Any, value: Any, arrives: Any) -> None:
    returned = through_msgpack(annotation, value)
    assert (type(returned), returned) == (type(arrives), arrives)


@pytest.mark.parametrize(
    ("annotation", "value", "words"),
    [
        (None, 0, "expected None, got int 0"),
        (bool, 1, "expected bool, got int 1"),
        (int, 1.0, "expected int, got float 1.0"),
        (int, INT_MAX + 1, "expected an int of 64 bits, got one of 64 bits"),
        (int, INT_MIN - 1, "expected an int of 64 bits"),
        (float, "1", "expected float, got str '1'"),
        (float, 10**400, "too large"),
        (str, b"x", "expected str, got bytes"),
        (bytes, "x", "expected bytes, got str"),
        (bytes, bytearray(b"x"), "expected bytes, got bytearray"),
        (list[int], (1,), "expected list, got tuple"),
        (list[int], [1, "2"], "[1]: expected int, got str '2'"),
        (dict[str, int], {1: 1}, "[1]: expected str, got int 1"),
        (dict[str, int], {"a": None}, "['a']: expected int, got NoneType None"),
        (int | None, "1", "expected int | None, got str '1'"),
        (Point, (1, 2), "expected dataclass Point, got tuple"),
        (Path, Path("p", [Point(1), Point("2")]), "points[1].x: expected int, got str '2'"),  # type: ignore[arg-type]
        (Path, Path("p", [], {4: Point(1, None)}), "labels[4].y: expected int"),  # type: ignore[arg-type]
    ],
)
def test_a_wrong_value_is_refused_and_located(annotation: Any, value: Any, words: str) -> None:
    with pytest.raises(ValueMismatch) as refused:
        value_type(annotation).encode(value)
    assert words in str(refused.value)


@pytest.mark.parametrize(
    ("annotation", "words"),
    [
        (Any, "say which types"),
        (object, "say which types"),
        (list, "list[int]"),
        (dict, "dict[str, int]"),
        (tuple[int, int], "use list[...] or a dataclass"),
        (set[int], "use list[...]"),
        (bytearray, "use bytes"),
        (complex, "two floats"),
        (Level, "Level cannot be carried"),
        (Point(1), "cannot be carried"),
        (dict[float, int], "keys must be str, int or bytes"),
        (dict[int | str, int], "keys must be str, int or bytes"),
        (list[int] | list[str], "list[int | str]"),
        (str | Name, "same class"),
        (Tree, "contains itself"),
        (Derived, "from its fields alone"),
        (Seeded, "from its fields alone"),
        (list[set[int]], "set[int] cannot be carried"),
    ],
)
def test_what_cannot_be_carried_is_refused_at_once(annotation: Any, words: str) -> None:
    with pytest.raises(UnsupportedType) as refused:
        value_type(annotation)
    assert words in str(refused.value)


def test_an_unsupported_field_is_named() -> None:
    @dataclass
    class Bad:
        when: complex

    Bad.__annotations__["when"] = complex
    with pytest.raises(UnsupportedType, match=r"Bad: field 'when': complex cannot be carried"):
        value_type(Bad)


@pytest.mark.parametrize(
    ("annotation", "wire", "value"),
    [
        (Point, [1], Point(1, 7)),  # stored before the second field was added
        (Path, ["p", []], Path("p", [], {})),
        (Named, ["n"], Named(label="n")),
    ],
)
def test_fields_missing_at_the_end_take_their_defaults(annotation: Any, wire: Any, value: Any) -> None:
    assert value_type(annotation).decode(wire) == value


@pytest.mark.parametrize(
    ("annotation", "wire"),
    [
        (Point, []),
        (Point, [1, 2, 3]),
        (Point, {"x": 1}),
        (Point, ["1", 2]),
        (Point | Path, [2, []]),
        (Point | Path, [-1, []]),
        (Point | Path, ["0", []]),
        (Point | Path, [0]),
        (int | None, "1"),
        (float, True.__class__),
        (str, msgpack.ExtType(1, b"")),
    ],
)
def test_wire_values_of_another_shape_are_refused(annotation: Any, wire: Any) -> None:
    with pytest.raises(ValueMismatch):
        value_type(annotation).decode(wire)


def test_equal_texts_mean_equal_wire_forms() -> None:
    assert value_type(list[Point | None]).text == "list[Point(x: int, y: int) | None]"
    assert value_type(dict[str, Name]).text == "dict[str, str]"
