"""The files of snapshots on their way, as an operator sees them: over HTTP and on the command line."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from typing import Any, TypeAlias

import pytest
from aiohttp.test_utils import TestClient

from multiraft.admin.transfers import FAILURES_MANY, merge_transfers
from multiraft.admin.view import Silence

Client: TypeAlias = TestClient[Any, Any]
Cluster: TypeAlias = Any  # the fakes of conftest.py
Run: TypeAlias = Callable[..., Awaitable[Any]]
FILE = "0000000000000011-0000000000000063-a1b2c3d4.snap"
MIB = 1024 * 1024


def incoming(**changed: Any) -> dict[str, Any]:
    row = {
        "group_id": 17, "index": 99, "from": "n1", "name": FILE, "bytes": 3 * MIB, "of": 12 * MIB,
        "stage": "fetching", "failures": 0, "problem": None,
    }  # fmt: skip
    return {**row, **changed}


def outgoing(**changed: Any) -> dict[str, Any]:
    return {"group_id": 17, "to": "n3", "name": FILE, "bytes": 4 * MIB, "of": 12 * MIB, **changed}


@pytest.fixture
def under_way(cluster: Cluster) -> Cluster:
    """n3 fetches a file from n1."""
    cluster.nodes["n1"].transfers["outgoing"].append(outgoing())
    cluster.nodes["n3"].transfers["incoming"].append(incoming())
    return cluster


def url_of(client: Client) -> str:
    return str(client.make_url("")).rstrip("/")


async def test_a_transfer_is_shown_once_as_its_receiver_sees_it(client: Client, under_way: Cluster) -> None:
    async with client.get("/transfers") as response:
        found = await response.json()
    assert response.status == 200
    assert found == {"healthy": True, "problems": [], "silent": {}, "transfers": [{**incoming(), "to": "n3"}]}


async def test_one_whose_receiver_is_silent_is_shown_as_its_owner_sees_it(client: Client, under_way: Cluster) -> None:
    under_way.stop("n3")
    async with client.get("/transfers") as response:
        found = await response.json()
    assert not found["healthy"]
    (row,) = found["transfers"]
    assert (row["from"], row["to"], row["bytes"], row["stage"], row["index"]) == ("n1", "n3", 4 * MIB, "sending", None)


def test_failures_are_a_problem_when_they_are_many() -> None:
    problem = "file broke off on its way"

    def found(failures: int) -> dict[str, Any]:
        row = incoming(failures=failures, problem=problem, stage="waiting")
        return merge_transfers({"n3": {"transfers": {"incoming": [row], "outgoing": []}}})

    assert found(FAILURES_MANY - 1)["healthy"]
    several = found(FAILURES_MANY)
    assert not several["healthy"]
    assert several["problems"] == [
        f"group 17: node n3 has failed {FAILURES_MANY} times to fetch its snapshot from node n1: {problem}"
    ]


def test_rows_are_ordered_and_a_node_of_an_earlier_version_is_no_error() -> None:
    one, other = incoming(group_id=20, name="b.snap"), incoming(group_id=3, name="c.snap")
    answers: dict[str, Any] = {
        "n2": {"transfers": {"incoming": [one, other], "outgoing": []}},
        "n1": {},
        "n3": Silence("not connected"),
    }
    merged = merge_transfers(answers)
    assert [row["group_id"] for row in merged["transfers"]] == [3, 20]
    assert merged["silent"] == {"n3": "not connected"}


async def test_the_command_shows_them(client: Client, under_way: Cluster, call_cli: Run) -> None:
    finished = await call_cli("--url", url_of(client), "transfers")
    assert finished.code == 0, finished
    header, row = finished.out.splitlines()
    assert header.split() == ["GROUP", "FROM", "TO", "INDEX", "HERE", "OF", "SHARE", "STAGE", "PROBLEM"]
    assert row.split()[:4] == ["17", "n1", "n3", "99"]
    assert "25" in row
    assert "fetching" in row
    asked = await call_cli("--url", url_of(client), "transfers", "--json")
    assert json.loads(asked.out)["transfers"][0]["of"] == 12 * MIB


async def test_the_command_says_that_there_are_none_and_what_fails(
    client: Client, cluster: Cluster, call_cli: Run
) -> None:
    finished = await call_cli("--url", url_of(client), "transfers")
    assert (finished.code, finished.out) == (0, "no snapshot is on its way\n")
    cluster.nodes["n2"].transfers["incoming"].append(incoming(failures=FAILURES_MANY, problem="it fell silent"))
    finished = await call_cli("--url", url_of(client), "transfers")
    assert finished.code == 1
    assert "it fell silent" in finished.out
