"""Declarations of services: what is refused at once, and which two of one name agree."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from multiraft.errors import InvalidRequest
from multiraft.shard import Declaration
from multiraft.shard.declaration import combined, difference

ADD = ["command", "name", [["name", "str", False]], "int"]
ADD_MORE = ["command", "name", [["name", "str", False], ["amount", "int", True]], "int"]
TOTAL: list[Any] = ["query", None, [], "int"]
COUNTERS = Declaration("counters", initial_shards=4, schema={"add": ADD})


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"name": ""}, "a name is 1-63"),
        ({"name": "a b"}, "a name is 1-63"),
        ({"name": "x" * 64}, "a name is 1-63"),
        ({"name": b"x"}, "a name is 1-63"),
        ({"name": "directory"}, "not 'directory'"),
        ({"mode": "random"}, "mode = 'random': must be 'hash' or 'range'"),
        ({"replicas": 0}, "replicas = 0: must be a whole number from 1 to 31"),
        ({"replicas": True}, "replicas = True"),
        ({"version": 0}, "version = 0: must be a whole number, at least 1"),
        ({"version": True}, "version = True"),
        ({"initial_shards": 0}, "service 's': initial_shards = 0"),
        ({"boundaries": (b"a",)}, "boundaries are for mode 'range'"),
        ({"mode": "range", "initial_shards": 3, "boundaries": (b"a",)}, "are given by boundaries"),
        ({"mode": "range", "boundaries": (b"b", b"a")}, "service 's': boundaries: "),
    ],
)
def test_settings_that_cannot_be_are_refused(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        Declaration(**{"name": "s", **settings})
    assert words in str(refused.value)


def test_the_wire_keeps_everything() -> None:
    wanted = Declaration("s", "range", 3, (b"a", b"b"), 2, {"add": ADD, "total": TOTAL}, 7)
    assert Declaration.from_plain(wanted.to_plain()) == wanted
    assert len(wanted.ranges()) == 3


@pytest.mark.parametrize(
    "schema",
    [
        {"add": ["command", "name", [["name", "str"]], "int"]},
        {"add": ["command", "name", [["name", "str", 1]], "int"]},
        {"add": ["command", 5, [], "int"]},
        {"add": ["command", "name", [], None]},
        {"add": ["command"]},
        {5: ADD},
    ],
)
def test_a_malformed_schema_is_refused(schema: Any) -> None:
    plain = replace(COUNTERS, schema={}).to_plain()
    plain[5] = [[name, shape] for name, shape in schema.items()]
    with pytest.raises((ValueError, TypeError)):
        Declaration.from_plain(plain)


@pytest.mark.parametrize(
    "later",
    [
        COUNTERS,
        replace(COUNTERS, schema={"add": ADD_MORE}),
        replace(COUNTERS, schema={"add": ADD, "total": TOTAL}),
        replace(COUNTERS, schema={}),
    ],
)
def test_releases_that_only_add_agree_in_either_order(later: Declaration) -> None:
    assert difference(COUNTERS, later) is None
    assert difference(later, COUNTERS) is None
    assert combined(COUNTERS, later) == combined(later, COUNTERS)


def test_what_was_added_is_kept() -> None:
    both = combined(replace(COUNTERS, schema={"add": ADD_MORE}), replace(COUNTERS, schema={"add": ADD, "total": TOTAL}))
    assert both.schema == {"add": ADD_MORE, "total": TOTAL}


@pytest.mark.parametrize(
    ("later", "words"),
    [
        (replace(COUNTERS, mode="range", initial_shards=1), "mode = 'range', but the service exists with 'hash'"),
        (replace(COUNTERS, replicas=1), "replicas = 1, but the service exists with 3"),
        (replace(COUNTERS, initial_shards=8), "initial_shards = 8, but the service was created with 4"),
        (
            replace(COUNTERS, schema={"add": ["command", "name", [["name", "bytes", False]], "int"]}),
            "add(name: bytes) -> int with key='name', but the service exists with command add(name: str) -> int",
        ),
        (replace(COUNTERS, schema={"add": ["command", "name", [["name", "str", False]], "str"]}), "-> str with"),
        (replace(COUNTERS, schema={"add": ["query", "name", [["name", "str", False]], "int"]}), "query add"),
        (replace(COUNTERS, schema={"add": ["command", "name", [["title", "str", False]], "int"]}), "add(title: str)"),
        (
            replace(
                COUNTERS, schema={"add": ["command", "name", [["name", "str", False], ["n", "int", False]], "int"]}
            ),
            "add(name: str, n: int)",
        ),
    ],
)
def test_a_difference_is_named(later: Declaration, words: str) -> None:
    found = difference(COUNTERS, later)
    assert found is not None
    assert words in found


def test_different_boundaries_are_named() -> None:
    one = Declaration("s", "range", boundaries=(b"a",))
    assert difference(one, replace(one, boundaries=(b"b",))) == (
        "boundaries = [b'b'], but the service was created with [b'a']"
    )
