"""The part of the admin API that changes groups: what it asks the node for, what it refuses, how failures are told."""

from __future__ import annotations

import asyncio
import json
from typing import Any, TypeAlias

import pytest
from aiohttp.test_utils import TestClient

from multiraft.admin import member_api
from multiraft.admin.answers import ADMIN_HEADER
from multiraft.errors import (
    ChangePending,
    ChangeRefused,
    Halted,
    InvalidRequest,
    NotLeader,
    NotReady,
    NotRunning,
    OutcomeUnknown,
)

Client: TypeAlias = TestClient[Any, Any]
Cluster: TypeAlias = Any  # the fakes of conftest.py


async def post(client: Client, path: str, body: Any, status: int = 200) -> dict[str, Any]:
    async with client.post(path, json=body) as response:
        found: dict[str, Any] = await response.json()
        assert response.status == status, found
        assert response.headers[ADMIN_HEADER] == "1"
        if status >= 400:
            assert found["error"]
        return found


async def membership(client: Client, group_id: int = 16) -> dict[str, Any]:
    async with client.get(f"/groups/{group_id}/membership") as response:
        assert response.status == 200
        return dict(await response.json())


# ------------------------------------------------------------------------------------------------ looking


async def test_a_membership_is_shown_with_each_replica(client: Client, cluster: Cluster) -> None:
    cluster.nodes["n1"].views[16]["replicas"][1]["match"] = 4
    found = await membership(client)
    assert found["healthy"]
    assert (found["leader"], found["quorum"], found["answering"]) == ("n1", 2, ["n1", "n2", "n3"])
    assert found["in_effect"] == found["latest"]
    assert found["change"] is None
    assert [
        (row["replica_id"], row["node_id"], row["member"], row["behind"], row["answers"]) for row in found["replicas"]
    ] == [
        (1, "n1", "voter", 0, True),
        (2, "n2", "voter", 0, True),
        (3, "n3", "voter", 2, True),
    ]


async def test_a_pending_change_is_seen_beside_what_is_in_effect(client: Client, cluster: Cluster) -> None:
    latest = {"index": 7, "voters": [[1, "n1"], [2, "n2"]], "learners": [], "outgoing": [], "joining": []}
    cluster.nodes["n1"].sees(16, latest=latest)
    found = await membership(client)
    assert (found["in_effect"]["index"], found["latest"]["index"]) == (1, 7)
    assert found["change"] == "index 7 is not in effect yet: n3 (replica 3) is removed"
    assert found["waiting_for"] == [found["change"]]


async def test_a_node_that_is_down_does_not_answer(client: Client, cluster: Cluster) -> None:
    cluster.stop("n3")
    found = await membership(client)
    assert not found["healthy"]
    assert found["answering"] == ["n1", "n2"]
    assert found["silent"] == {"n3": "not connected"}


async def test_a_removed_replica_leaves_its_tombstone_to_be_seen(client: Client, cluster: Cluster) -> None:
    for node in (cluster.nodes["n1"], cluster.nodes["n2"]):
        node.sees(16, voters=[[1, "n1"], [2, "n2"]], index=8)
    del cluster.nodes["n3"].views[16]
    cluster.nodes["n3"].removed = [
        {"group_id": 16, "replica_id": 3, "index": 8},
        {"group_id": 17, "replica_id": 5, "index": 9},
    ]
    wanted = [{"node_id": "n3", "group_id": 16, "replica_id": 3, "index": 8}]
    assert (await membership(client))["tombstones"] == wanted
    async with client.get("/groups/16") as response:
        assert (await response.json())["group"]["tombstones"] == wanted


# ------------------------------------------------------------------------------------------------ changing


@pytest.mark.parametrize(
    ("body", "asked"),
    [
        ({"action": "remove", "node": "n3"}, ("remove", 16, "n3", 60.0)),
        ({"action": "remove", "node": "n3", "timeout_s": 5}, ("remove", 16, "n3", 5.0)),
        ({"action": "demote", "node": "n2"}, ("demote", 16, "n2", 60.0)),
        ({"action": "promote", "node": "n2"}, ("promote", 16, "n2", 60.0)),
        ({"action": "add", "node": "n2"}, ("add", 16, "n2", True, 60.0)),
        ({"action": "add", "node": "n2", "voter": False}, ("add", 16, "n2", False, 60.0)),
        ({"action": "replace", "old": "n3", "node": "n3"}, ("replace", 16, "n3", "n3", 60.0)),
        ({"action": "replace", "old": "n3", "node": "n2"}, ("replace", 16, "n3", "n2", 60.0)),
    ],
)
async def test_each_action_is_one_call_of_the_group(
    client: Client, cluster: Cluster, body: dict[str, Any], asked: tuple[object, ...]
) -> None:
    found = await post(client, "/groups/16/members", body)
    assert found["done"]
    assert found["membership"] == {
        "index": 9,
        "voters": [[1, "n1"], [2, "n2"]],
        "learners": [[4, "n4"]],
        "outgoing": [],
        "joining": [],
    }
    assert cluster.asked == [asked]


async def test_a_dry_run_changes_nothing(client: Client, cluster: Cluster) -> None:
    cluster.stop("n2")
    found = await post(client, "/groups/16/members", {"action": "remove", "node": "n3", "dry_run": True})
    assert not found["done"]
    assert found["plan"]["safe"] is False
    await post(client, "/groups/16/transfer", {"node": "n3", "dry_run": True})
    assert cluster.asked == []


async def test_what_is_unsafe_is_refused_unless_it_is_forced(client: Client, cluster: Cluster) -> None:
    cluster.stop("n2")
    body = {"action": "remove", "node": "n3"}
    found = await post(client, "/groups/16/members", body, 409)
    assert found["error"].startswith("unsafe: afterwards 2 of 2 voters must answer")
    assert "--force" in found["hint"]
    assert cluster.asked == []
    assert (await post(client, "/groups/16/members", {**body, "force": True}))["done"]
    assert cluster.asked == [("remove", 16, "n3", 60.0)]


@pytest.mark.parametrize(
    ("problem", "status"),
    [
        (ChangeRefused("no voter left"), 409),
        (ChangePending("one at a time"), 409),
        (InvalidRequest("not like this"), 409),
        (NotReady("not done within 60 s: 5 entries are missing"), 504),
        (OutcomeUnknown("lost"), 504),
        (NotRunning("the node is stopping"), 503),
        (Halted("disk full"), 503),
        (NotLeader(16, "n2"), 503),
    ],
)
async def test_a_failure_keeps_its_reason(client: Client, cluster: Cluster, problem: Exception, status: int) -> None:
    cluster.outcome = problem
    found = await post(client, "/groups/16/members", {"action": "remove", "node": "n3"}, status)
    assert found["error"] == str(problem)
    assert found["hint"]


@pytest.mark.parametrize(
    ("path", "body", "status", "words"),
    [
        ("/groups/99/members", {"action": "remove", "node": "n3"}, 404, "no group 99"),
        ("/groups/16/members", {"action": "add", "node": "n9"}, 404, "no node 'n9'"),
        ("/groups/1/members", {"action": "remove", "node": "n3"}, 409, "directory"),
        ("/groups/16/members", {"action": "evict", "node": "n3"}, 400, "action"),
        ("/groups/16/members", {"node": "n3"}, 400, "action"),
        ("/groups/16/members", {"action": ["add"], "node": "n3"}, 400, "action"),
        ("/groups/16/members", {"action": "remove"}, 400, "node"),
        ("/groups/16/members", {"action": "remove", "node": ""}, 400, "node"),
        ("/groups/16/members", {"action": "remove", "node": 3}, 400, "node"),
        ("/groups/16/members", {"action": "replace", "node": "n3"}, 400, "old"),
        ("/groups/16/members", {"action": "remove", "node": "n3", "old": "n2"}, 400, "old"),
        ("/groups/16/members", {"action": "remove", "node": "n3", "voter": True}, 400, "voter"),
        ("/groups/16/members", {"action": "add", "node": "n3", "voter": "no"}, 400, "voter"),
        ("/groups/16/members", {"action": "remove", "node": "n3", "dryrun": True}, 400, "dryrun"),
        ("/groups/16/members", {"action": "remove", "node": "n3", "dry_run": 1}, 400, "dry_run"),
        ("/groups/16/members", {"action": "remove", "node": "n3", "timeout_s": 0}, 400, "timeout_s"),
        ("/groups/16/members", {"action": "remove", "node": "n3", "timeout_s": True}, 400, "timeout_s"),
        ("/groups/16/members", {"action": "remove", "node": "n3", "timeout_s": 1e9}, 400, "timeout_s"),
        ("/groups/16/members?x=1", {"action": "remove", "node": "n3"}, 400, "x"),
        ("/groups/16/members", [], 400, "object"),
        ("/groups/16/transfer", {"node": "n2", "voter": True}, 400, "voter"),
        ("/groups/16/transfer", {}, 400, "node"),
        ("/groups/x/transfer", {"node": "n2"}, 400, "group id"),
    ],
)
async def test_a_wrong_request_is_refused_by_name(
    client: Client, cluster: Cluster, path: str, body: Any, status: int, words: str
) -> None:
    assert words in (await post(client, path, body, status))["error"]
    assert cluster.asked == []


async def test_nothing_is_changed_by_a_get_or_from_a_web_page(client: Client, cluster: Cluster) -> None:
    body = {"action": "remove", "node": "n3"}
    raw = json.dumps(body)
    async with client.get("/groups/16/members") as response:
        assert response.status == 405
    async with client.post("/groups/16/members", data=raw, headers={"Content-Type": "text/plain"}) as response:
        assert response.status == 415
    async with client.post("/groups/16/members", json=body, headers={"Origin": "http://127.0.0.1"}) as response:
        assert response.status == 403
    async with client.post("/groups/16/members", data="{", headers={"Content-Type": "application/json"}) as response:
        assert response.status == 400
    async with client.post("/groups/16/members", json={**body, "x": "y" * 20_000}) as response:
        assert response.status == 413
    assert cluster.asked == []


async def test_a_bounded_number_of_changes_waits(
    client: Client, cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(member_api, "CHANGES_AT_ONCE", 1)
    cluster.gate.clear()
    body = {"action": "remove", "node": "n3"}
    first = asyncio.create_task(post(client, "/groups/16/members", body))
    await cluster.called.wait()
    assert "wait here already" in (await post(client, "/groups/16/members", body, 503))["error"]
    cluster.gate.set()
    assert (await first)["done"]
    assert (await post(client, "/groups/16/members", body))["done"]


async def test_a_change_goes_on_when_nobody_listens_any_more(client: Client, cluster: Cluster) -> None:
    cluster.gate.clear()
    gone = asyncio.create_task(post(client, "/groups/16/members", {"action": "remove", "node": "n3"}))
    await cluster.called.wait()
    gone.cancel()
    with pytest.raises(asyncio.CancelledError):
        await gone
    assert cluster.finished == []
    cluster.gate.set()
    assert (await post(client, "/groups/16/members", {"action": "demote", "node": "n3"}))["done"]
    assert cluster.finished == ["remove", "demote"]


# --------------------------------------------------------------------------------------------- transferring


@pytest.mark.parametrize(("group_id", "leader"), [(16, "n1"), (17, "n2")])
async def test_leadership_is_asked_for_at_the_leader_wherever_it_is(
    client: Client, cluster: Cluster, group_id: int, leader: str
) -> None:
    found = await post(client, f"/groups/{group_id}/transfer", {"node": "n3"})
    assert (found["done"], found["leader"], found["term"]) == (True, "n3", 3)
    assert cluster.asked == [("transfer", leader, group_id, "n3")]


async def test_who_leads_already_is_not_asked(client: Client, cluster: Cluster) -> None:
    found = await post(client, "/groups/16/transfer", {"node": "n1"})
    assert found["plan"]["nothing_to_do"]
    assert cluster.asked == []


@pytest.mark.parametrize("group_id", [16, 17])
async def test_a_transfer_that_does_not_come_about_says_why(client: Client, cluster: Cluster, group_id: int) -> None:
    cluster.outcome = NotReady("replica 3 is no other voter")
    found = await post(client, f"/groups/{group_id}/transfer", {"node": "n3", "timeout_s": 0.2}, 504)
    assert "does not lead within 0.2 s" in found["error"]
    assert "replica 3 is no other voter" in found["error"]


async def test_a_transfer_waits_for_a_leader(client: Client, cluster: Cluster) -> None:
    for node in cluster.each():
        node.lose_leader(16)
    found = await post(client, "/groups/16/transfer", {"node": "n3", "timeout_s": 0.2}, 504)
    assert "an election should be under way" in found["error"]
    assert cluster.asked == []
