"""What a change would do to a group, and whether that is safe: tables over groups of nodes that answer or do not."""

from __future__ import annotations

from typing import Any

import pytest

from multiraft.admin.memberships import change_text, difference, waiting_for
from multiraft.admin.plans import Action, PlanRefused, make_plan
from multiraft.admin.view import merge_group

KNOWN = ("a", "b", "c", "d", "e")


def members(voters: str, learners: str = "", outgoing: str = "", joining: str = "", index: int = 5) -> dict[str, Any]:
    """One letter per node; the replica on a is 1, on b 2, and so on."""

    def named(nodes: str) -> list[list[Any]]:
        return [[KNOWN.index(node) + 1, node] for node in nodes]

    found: dict[str, Any] = {"index": index, "voters": named(voters), "learners": named(learners)}
    return found | {"outgoing": named(outgoing), "joining": named(joining)}


def group(
    membership: dict[str, Any],
    down: str = "",
    leader: str | None = "a",
    latest: dict[str, Any] | None = None,
    group_id: int = 16,
    unheard: str = "",
    **own: Any,
) -> tuple[dict[str, Any], dict[str, str]]:
    """The merged row of a group and who is silent. unheard: they answer operators, but their leader hears them not."""
    everyone = {tuple(row) for kind in ("voters", "learners", "outgoing") for row in membership[kind]}
    silent = dict.fromkeys(down, "not connected")
    views = [
        {
            "group_id": group_id,
            "service": "kv",
            "shard": None,
            "replica_id": replica_id,
            "node_id": node,
            "role": "leader" if node == leader else "follower",
            "term": 2,
            "leader": leader,
            "commit": 9,
            "applied": 9,
            "first": 2,
            "last": 9,
            "halted": own.get(f"halted_{node}"),
            "pending": 0,
            "membership": membership,
            "latest": latest,
            "replicas": [
                {
                    "replica_id": other_id,
                    "match": own.get(f"match_{other}", 9),
                    "state": "replicate",
                    "answers": other not in down + unheard,
                }
                for other_id, other in sorted(everyone)
            ]
            if node == leader
            else [],
        }
        for replica_id, node in sorted(everyone)
        if node not in down
    ]
    return merge_group(views, silent), silent


def plan(action: Action, *arguments: Any, **options: Any) -> dict[str, Any]:
    row, silent = group(*arguments, **options)
    return make_plan(row, action, KNOWN, silent)


@pytest.mark.parametrize(
    ("action", "voters", "down", "safe"),
    [
        (Action("remove", "c"), "abc", "", True),
        (Action("remove", "c"), "abc", "c", True),  # the one that is down goes
        (Action("remove", "c"), "abc", "b", False),  # the trap: a and c can commit it, a alone nothing
        (Action("remove", "c"), "abc", "bc", False),  # nothing can be committed now
        (Action("remove", "d"), "abcd", "cd", False),
        (Action("remove", "e"), "abcde", "de", True),
        (Action("remove", "c"), "abcde", "de", False),
        (Action("remove", "b"), "ab", "", True),
        (Action("remove", "b"), "ab", "b", False),  # two of two must agree to it
        (Action("demote", "c"), "abc", "", True),
        (Action("demote", "c"), "abc", "b", False),
        (Action("add", "d"), "abc", "", True),
        (Action("add", "d"), "a", "d", True),  # who is down stays a learner, and costs nothing
        (Action("add", "d"), "abc", "bc", False),
        (Action("replace", "d", old="c"), "abc", "c", True),
        (Action("replace", "d", old="c"), "abc", "b", True),  # a and d are a quorum of a, b, d
        (Action("replace", "d", old="c"), "abc", "bc", False),
        (Action("replace", "a", old="a"), "a", "", None),
        (Action("replace", "c", old="c"), "abc", "", True),
        (Action("replace", "c", old="c"), "abc", "b", False),  # the old one goes first
        (Action("transfer", "b"), "abc", "", True),
        (Action("transfer", "b"), "abc", "b", False),
    ],
)
def test_safe_is_what_keeps_a_quorum_before_and_after(
    action: Action, voters: str, down: str, safe: bool | None
) -> None:
    if safe is None:
        with pytest.raises(PlanRefused, match="last voter"):
            plan(action, members(voters), down)
        return
    found = plan(action, members(voters), down)
    assert found["steps"]
    assert found["safe"] is safe, found
    assert bool(found["unsafe"]) is not safe


def test_a_plan_says_the_quorum_before_and_after_and_who_is_down() -> None:
    found = plan(Action("remove", "c"), members("abc"), "c")
    assert found["before"] == {
        "voters": ["a", "b", "c"],
        "quorum": 2,
        "answering": ["a", "b"],
        "silent": ["c"],
        "spare": 0,
        "tolerates": 1,
    }
    assert (found["after"]["voters"], found["after"]["quorum"], found["after"]["spare"]) == (["a", "b"], 2, 0)
    assert found["down"] == ["c"]
    assert found["warnings"] == [
        "c does not answer (not connected): it learns of this when it is back",
        "the group tolerates the loss of 0 of its voters afterwards, before of 1",
    ]


def test_an_unsafe_plan_names_the_way_out() -> None:
    (reason,) = plan(Action("remove", "c"), members("abc"), "b")["unsafe"]
    assert "2 of 2 voters must answer, and only 1 would" in reason
    assert "start b first" in reason


def test_who_answers_operators_but_not_the_leader_does_not_count() -> None:
    assert plan(Action("remove", "c"), members("abc"), unheard="b")["safe"] is False


def test_a_joint_change_needs_both_majorities_now() -> None:
    joint = members("abd", outgoing="abc")
    assert plan(Action("add", "e"), joint)["safe"]
    assert plan(Action("add", "e"), joint, "bc")["safe"] is False
    (wait,) = plan(Action("add", "e"), joint)["waits_for"]
    assert "joint, from voters a b c to a b d" in wait


@pytest.mark.parametrize(
    ("action", "membership"),
    [
        (Action("add", "b"), members("abc")),
        (Action("add", "d", voter=False), members("abc", "d")),
        (Action("add", "c", voter=False), members("abc")),
        (Action("remove", "d"), members("abc")),
        (Action("promote", "b"), members("abc")),
        (Action("demote", "d"), members("abc", "d")),
        (Action("replace", "c", old="d"), members("abc")),
        (Action("transfer", "a"), members("abc")),
    ],
)
def test_what_is_so_already_is_nothing_to_do(action: Action, membership: dict[str, Any]) -> None:
    found = plan(action, membership, "bc")
    assert found["nothing_to_do"]
    assert found["safe"]
    assert found["before"]["voters"] == found["after"]["voters"]


@pytest.mark.parametrize(
    ("action", "status", "words"),
    [
        (Action("add", "x"), 404, "no node 'x'"),
        (Action("replace", "x", old="a"), 404, "no node 'x'"),
        (Action("replace", "e", old="d"), 409, "to be replaced"),
        (Action("promote", "e"), 409, "no replica"),
        (Action("demote", "e"), 409, "no replica"),
        (Action("transfer", "e"), 409, "no replica"),
        (Action("transfer", "b"), 409, "cannot lead"),
        (Action("remove", "a"), 409, "last voter"),
        (Action("demote", "a"), 409, "last voter"),
    ],
)
def test_what_makes_no_sense_is_refused_with_a_way_out(action: Action, status: int, words: str) -> None:
    with pytest.raises(PlanRefused, match=words) as refused:
        plan(action, members("a", "b"))
    assert refused.value.status == status
    assert refused.value.hint


@pytest.mark.parametrize("action", [Action("remove", "c"), Action("replace", "d", old="c")])
def test_the_directory_stays_where_it_was_founded(action: Action) -> None:
    with pytest.raises(PlanRefused, match="directory"):
        plan(action, members("abc"), group_id=1)


def test_a_move_that_was_interrupted_goes_on_where_it_was() -> None:
    fresh = plan(Action("replace", "d", old="c"), members("abc"))
    half = plan(Action("replace", "d", old="c"), members("abc", "d"))
    late = plan(Action("replace", "d", old="c"), members("ab", "d"))
    assert fresh["steps"][0] == "d makes an empty replica, which receives the log as a learner"
    assert half["steps"] == fresh["steps"][1:]
    assert late["steps"] == ["once it has caught up, it becomes a voter on d"]
    assert {tuple(found["after"]["voters"]) for found in (fresh, half, late)} == {("a", "b", "d")}


def test_a_leader_that_goes_hands_over() -> None:
    handing = "a, which leads, hands over to another voter"
    assert handing in plan(Action("remove", "a"), members("abc"))["steps"]
    assert handing in plan(Action("demote", "a"), members("abc"))["steps"]
    assert handing in plan(Action("replace", "d", old="a"), members("abc"))["steps"]
    assert handing not in plan(Action("remove", "b"), members("abc"))["steps"]


def test_a_halted_replica_is_no_leader_to_be() -> None:
    found = plan(Action("transfer", "b"), members("abc"), halted_b="disk full")
    assert not found["safe"]
    assert "disk full" in found["unsafe"][0]


def test_without_leader_a_change_waits_for_one() -> None:
    found = plan(Action("remove", "c"), members("abc"), leader=None)
    assert found["safe"]
    assert found["waits_for"] == ["a leader (a quorum is up: an election should be under way)"]


def test_a_newcomer_that_is_down_is_waited_for() -> None:
    row, silent = group(members("abc"))
    found = make_plan(row, Action("add", "d"), KNOWN, silent | {"d": "not connected"})
    assert found["safe"]
    assert found["waits_for"] == ["node d (not connected); the group serves on without it meanwhile"]
    assert found["down"] == ["d"]


# ------------------------------------------------------------------------------------------------- in words


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        (members("abc"), members("abc", "d"), ["d (replica 4) is added as learner"]),
        (members("abc"), members("ab"), ["c (replica 3) is removed"]),
        (members("abc"), members("ab", "c"), ["c (replica 3) becomes a learner"]),
        (members("abc", "d"), members("abd"), ["c (replica 3) is removed", "d (replica 4) becomes a voter"]),
        (members("abc"), members("abc", index=9), []),
    ],
)
def test_the_difference_of_two_memberships(before: dict[str, Any], after: dict[str, Any], said: list[str]) -> None:
    assert difference(before, after) == said


def test_a_change_under_way_is_said() -> None:
    assert change_text(None, None) is None
    assert change_text(members("abc"), None) is None
    assert change_text(members("abc"), members("abc")) is None
    pending = change_text(members("abc"), members("ab", index=9))
    assert pending == "index 9 is not in effect yet: c (replica 3) is removed"
    joint = change_text(members("abd", outgoing="abc"), None)
    assert joint == "joint, from voters a b c to a b d: both majorities decide until it ends"


def test_what_a_learner_waits_for() -> None:
    joining = members("abc", "d", joining="d")
    name = "replica 4 on node d is to become a voter:"
    assert waiting_for(group(joining, match_d=3)[0]) == [f"{name} 6 entries are missing"]
    assert waiting_for(group(joining)[0]) == [f"{name} it has caught up"]
    assert waiting_for(group(joining, "d")[0]) == [f"{name} its node does not answer (not connected)"]
    assert waiting_for(group(joining, unheard="d")[0]) == [f"{name} its leader does not hear it"]
    assert waiting_for(group(members("abc", "d"))[0]) == ["replica 4 on node d is a learner: it has caught up"]
    row, _ = group(joining)
    row["replicas"][3] |= {"role": None, "answers": False}
    assert "has not made it yet" in waiting_for(row)[0]


def test_each_replica_is_named_by_what_it_is() -> None:
    row, _ = group(members("abd", "ce", outgoing="abc", joining="e"))
    told = {replica["node_id"]: replica["member"] for replica in row["replicas"]}
    assert told == {"a": "voter", "b": "voter", "c": "outgoing", "d": "voter", "e": "joining"}
