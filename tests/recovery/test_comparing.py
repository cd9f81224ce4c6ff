"""What runs, against what a plan has promised: each way in which it can be another is named, and nothing else."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from multiraft.recovery import GroupPlan, Plan, RunningGroup, differences, gone_by_plan
from multiraft.recovery.plans import GONE, KEPT, RECOVERED, Survivor
from multiraft.types import Membership, generation_name

GENERATION = (1 << 32) + 77
PROMISED = Membership(41, (3,), {3: "c", 4: "d"}, 1_030, learners=(4,), joining=(4,))
PLAN = Plan(
    b"c" * 16,
    0,
    GENERATION,
    {name: Survivor(name, name.encode(), 2, {}) for name in "cd"},
    ("a", "b"),
    (
        GroupPlan(16, "kv", RECOVERED, (), source="c", membership=PROMISED, term=9),
        GroupPlan(17, "kv", KEPT, ()),
        GroupPlan(18, "kv", GONE, ()),
    ),
    (),
)
RUN = dict.fromkeys("cd", generation_name(GENERATION))
RECOVERED_GROUP = RunningGroup(16, "c", 9, 41, 41, {3: "c", 4: "d"})
KEPT_GROUP = RunningGroup(17, "d", 4, 12, 1, {1: "a", 2: "c", 3: "d"})


def test_what_was_promised_is_no_difference_and_neither_is_what_happened_since() -> None:
    assert differences(PLAN, RUN, [RECOVERED_GROUP, KEPT_GROUP]) == []
    grown = RunningGroup(16, "d", 12, 300, 250, {4: "d", 1_030: "c", 1_031: "e"})
    made_since = RunningGroup(40, None, 0, 0, 0, {})
    assert differences(PLAN, RUN, [grown, KEPT_GROUP, made_since]) == []
    assert gone_by_plan(PLAN) == {18}


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"leader": None}, "nobody leads it, but by the plan it is recovered"),
        ({"term": 8}, "its term is 8, but the plan has put it in term 9"),
        ({"commit": 40}, "it is committed up to 40 only, but by the plan up to 41 at least"),
        ({"membership_index": 40}, "its membership is that of index 40, from before the recovery"),
        ({"members": {3: "c"}}, "its members are 3 on c, but by the plan 3 on c, 4 on d"),
        ({"membership_index": 50, "members": {3: "c", 1: "a"}}, "replicas take part that were given up: 1 on a"),
    ],
)
def test_a_group_that_is_something_else_is_named(changed: dict[str, Any], said: str) -> None:
    (found,) = differences(PLAN, RUN, [replace(RECOVERED_GROUP, **changed), KEPT_GROUP])
    assert found.startswith(f"group 16: {said}")


def test_groups_that_are_not_there_and_nodes_that_are_not_or_missed_the_plan_are_named() -> None:
    assert differences(PLAN, {"c": RUN["c"], "a": "0"}, [RECOVERED_GROUP]) == [
        "node 'd', which survives by the plan, does not run",
        f"node 'a' is of recovery generation 0, the plan's is {RUN['c']}: the plan was not applied there",
        "group 17: nobody tells of it, but by the plan it is kept",
    ]
