"""Placement of new groups: leaders and replicas spread evenly, the same everywhere."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from multiraft.errors import InvariantViolation
from multiraft.shard.placement import place


@given(st.integers(1, 9), st.integers(1, 9), st.integers(0, 40), st.integers(0, 40))
def test_new_groups_spread_evenly(number: int, replicas: int, before: int, count: int) -> None:
    nodes = [f"n{position}" for position in range(number)]
    replicas = min(replicas, number)
    existing = place(before, replicas, nodes, [])
    placed = [*existing, *place(count, replicas, nodes, existing)]
    assert all(len(set(group)) == len(group) == replicas for group in placed)
    firsts = Counter(group[0] for group in placed)
    held = Counter(node for group in placed for node in group)
    leading = [firsts[node] for node in nodes]
    holding = [held[node] for node in nodes]
    assert max(leading) - min(leading) <= 1
    assert max(holding) - min(holding) <= 2


def test_by_hand() -> None:
    assert place(4, 3, ["a", "b", "c"], []) == [("a", "b", "c"), ("b", "c", "a"), ("c", "a", "b"), ("a", "b", "c")]
    assert place(4, 2, ["a", "b", "c", "d"], []) == [("a", "b"), ("c", "d"), ("d", "a"), ("b", "c")]


def test_new_groups_go_where_there_is_least() -> None:
    assert place(1, 2, ["a", "b", "c"], [("a", "b"), ("a",)]) == [("c", "b")]


@pytest.mark.parametrize(("replicas", "nodes"), [(0, ["a"]), (2, ["a"]), (2, ["a", "a"])])
def test_replicas_must_fit(replicas: int, nodes: list[str]) -> None:
    with pytest.raises(InvariantViolation):
        place(1, replicas, nodes, [])
