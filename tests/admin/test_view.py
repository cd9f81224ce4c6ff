"""Merging what single nodes say: whose word counts when they differ."""

from __future__ import annotations

from typing import Any

import pytest

from multiraft.admin.view import merge_group, merge_groups, select_groups


def view(node_id: str, role: str = "follower", **more: Any) -> dict[str, Any]:
    replica_id = int(node_id[1])
    return {
        "group_id": 16,
        "service": "kv",
        "shard": None,
        "replica_id": replica_id,
        "node_id": node_id,
        "role": role,
        "term": 5,
        "leader": "n1",
        "commit": 10,
        "applied": 10,
        "first": 2,
        "last": 10,
        "halted": None,
        "membership": {"index": 1, "voters": [(1, "n1"), (2, "n2"), (3, "n3")], "learners": [], "outgoing": []},
        "replicas": [],
        **more,
    }


def test_of_two_leaders_the_one_of_the_later_term_counts() -> None:
    row = merge_group([view("n1", "leader", term=4, last=99), view("n2", "leader", term=5, leader="n2")], {})
    assert (row["leader"], row["term"], row["last"]) == ("n2", 5, 10)


def test_a_follower_that_still_names_an_old_leader_does_not_make_one() -> None:
    row = merge_group([view("n2", term=4), view("n3", "candidate", term=5, leader=None)], {"n1": "down"})
    assert (row["leader"], row["state"]) == (None, "leaderless")


def test_a_leader_named_by_followers_counts_only_while_its_node_is_silent() -> None:
    views = [view("n2"), view("n3")]
    assert merge_group(views, {"n1": "down"})["state"] == "unconfirmed"
    answered = merge_group([view("n1", leader=None, role="candidate"), *views], {})
    assert answered["state"] == "leaderless"  # n1 itself says that it does not lead


def test_without_leader_the_longest_log_is_the_measure() -> None:
    views = [view("n1", leader=None, last=12, term=5), view("n2", leader=None, last=9), view("n3", leader=None, last=4)]
    row = merge_group(views, {})
    assert row["seen_by"] == "n1"
    assert [replica["lag"] for replica in row["replicas"]] == [0, 3, 8]
    assert row["lag"] == 8


def test_learners_do_not_count_as_lag_of_the_group() -> None:
    members = {"index": 4, "voters": [[1, "n1"]], "learners": [[2, "n2"]], "outgoing": []}
    told = [{"replica_id": 2, "node_id": "n2", "match": 0, "next": 1, "state": "probe", "lag": 10}]
    row = merge_group([view("n1", "leader", membership=members, replicas=told), view("n2", last=0)], {})
    assert [(replica["member"], replica["lag"]) for replica in row["replicas"]] == [("voter", 0), ("learner", 10)]
    assert row["lag"] == 0


def test_both_halves_of_a_joint_membership_need_a_quorum() -> None:
    members = {
        "index": 4,
        "voters": [[1, "n1"], [2, "n2"], [3, "n3"]],
        "outgoing": [[1, "n1"], [4, "n4"], [5, "n5"]],
        "learners": [],
    }
    views = [view(name, leader=None, membership=members) for name in ("n1", "n2", "n3")]
    row = merge_group(views, {"n4": "down", "n5": "down"})
    assert row["why"] == "no quorum: 2 of 3 voters do not answer (n4, n5)"
    assert [replica["replica_id"] for replica in row["replicas"]] == [1, 2, 3, 4, 5]


@pytest.mark.parametrize(
    ("up", "silent", "part"),
    [
        (["n1", "n2"], {"n3": "down"}, "an election should be under way"),
        (["n1"], {"n2": "down", "n3": "down"}, "no quorum: 2 of 3 voters do not answer (n2, n3)"),
        (["n1"], {"n2": "down"}, "no quorum: 2 of 3 voters do not answer (n2, n3 (hosts no replica))"),
    ],
)
def test_why_there_is_no_leader(up: list[str], silent: dict[str, str], part: str) -> None:
    row = merge_group([view(name, leader=None) for name in up], silent)
    assert part in row["why"]


def test_when_all_are_halted_no_election_is_promised() -> None:
    row = merge_group([view(name, leader=None, halted="EIO") for name in ("n1", "n2")], {"n3": "down"})
    assert row["why"] == "every replica that answers is halted"


def test_expected_groups_are_shown_though_nobody_hosts_them() -> None:
    expected = {17: {"service": "kv", "shard": None, "nodes": ["n1", "n2"]}}
    rows = merge_groups({"n1": [view("n1", "leader")]}, expected)
    assert [(row["group_id"], row["state"], row["why"]) for row in rows] == [
        (16, "ok", None),
        (17, "leaderless", "no node hosts it yet"),
    ]


def test_rows_without_a_value_come_first_and_the_order_is_total() -> None:
    rows: list[dict[str, Any]] = [
        {"group_id": 1, "lag": 3},
        {"group_id": 2, "lag": None},
        {"group_id": 3, "lag": 0},
        {"group_id": 4, "lag": 3},
    ]
    assert [row["group_id"] for row in select_groups(rows, sort="lag")] == [2, 3, 1, 4]
    assert [row["group_id"] for row in select_groups(rows, sort="-lag")] == [4, 1, 3, 2]
