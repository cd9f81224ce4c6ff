"""The admin API over real HTTP, with three nodes of which only the status is real."""

from __future__ import annotations

import base64
from typing import Any, TypeAlias

import msgpack
import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer

from multiraft.admin.answers import ADMIN_HEADER
from multiraft.admin.api import admin_app
from multiraft.admin.asking import LOG_ANSWER_BYTES
from multiraft.errors import InvalidRequest, InvariantViolation, NotRunning, OutcomeUnknown
from multiraft.methods import compile_method
from multiraft.shard.shard_map import ShardMap

Client: TypeAlias = TestClient[Any, Any]
Cluster: TypeAlias = Any  # the fakes of conftest.py


async def fetch(client: Client, path: str, status: int = 200) -> dict[str, Any]:
    async with client.get(path) as response:
        found: dict[str, Any] = await response.json()
        assert response.status == status, found
        assert response.headers[ADMIN_HEADER] == "1"
        if status >= 400:
            assert found["error"]
            assert isinstance(found["hint"], str)
        return found


# --------------------------------------------------------------------------------------------------- status


async def test_status_shows_every_node(client: Client) -> None:
    found = await fetch(client, "/status")
    assert found["asked"] == "n1"
    assert found["healthy"]
    assert found["problems"] == []
    assert [(node["node_id"], node["state"], node["groups"]["led"]) for node in found["nodes"]] == [
        ("n1", "up", 2),
        ("n2", "up", 1),
        ("n3", "up", 0),
    ]


async def test_a_node_that_does_not_answer_is_down_with_the_age_of_its_last_sign(
    client: Client, cluster: Cluster
) -> None:
    cluster.stop("n3")
    found = await fetch(client, "/status")
    down = found["nodes"][2]
    assert (down["node_id"], down["state"], down["heard_age_s"]) == ("n3", "down", 12.5)
    assert down["address"] == "127.0.0.1:7031"
    assert not found["healthy"]
    assert found["problems"] == ["node n3 is down: not connected; last heard 12.5 s ago"]


@pytest.mark.parametrize("problem", [OutcomeUnknown("no answer in 2 s"), TimeoutError()])
async def test_a_node_that_answers_too_late_is_down(client: Client, cluster: Cluster, problem: Exception) -> None:
    cluster.down["n2"] = problem
    found = await fetch(client, "/status")
    assert [node["state"] for node in found["nodes"]] == ["up", "down", "up"]


@pytest.mark.parametrize("answer", [b"", b"\xc1", msgpack.packb([1]), msgpack.packb({}), msgpack.packb(7)])
async def test_an_answer_that_makes_no_sense_is_shown_as_such(client: Client, cluster: Cluster, answer: bytes) -> None:
    cluster.nodes["n2"].handlers["admin.status"] = lambda body: answer
    found = await fetch(client, "/status")
    assert found["nodes"][1]["state"] == "unknown"
    assert "makes no sense" in found["nodes"][1]["why"]


async def test_a_handler_that_fails_is_reported_to_who_asked(
    client: Client, cluster: Cluster, caplog: pytest.LogCaptureFixture
) -> None:
    cluster.nodes["n2"].status_error = ZeroDivisionError("oops")
    cluster.nodes["n3"].status_error = NotRunning("the node is stopping")
    found = await fetch(client, "/status")
    assert [node.get("why") for node in found["nodes"][1:]] == [
        "answered with an error: ZeroDivisionError: oops",
        "answered with an error: the node is stopping",
    ]
    assert "admin.status" in caplog.text


async def test_a_node_without_admin_api_is_not_called_down(client: Client, cluster: Cluster) -> None:
    cluster.down["n2"] = InvalidRequest("this node answers no call named 'admin.status'")
    found = await fetch(client, "/status")
    assert [node["state"] for node in found["nodes"]] == ["up", "unknown", "up"]
    assert "is there, but does not give its status" in found["problems"][0]


async def test_status_names_what_is_wrong_on_each_node(client: Client, cluster: Cluster) -> None:
    cluster.nodes["n2"].lose_leader(16)
    cluster.nodes["n3"].halt(17, "disk full")
    cluster.nodes["n2"].disconnected.add("n3")
    cluster.nodes["n3"].cluster_id = ""
    found = await fetch(client, "/status")
    assert found["problems"] == [
        "node n2 knows no leader for 1 of its 3 groups",
        "node n2 has no connection to node n3, although both are up",
        "node n3 has 1 halted replicas",
        "node n3 does not belong to a cluster yet: it waits for all founding members",
    ]


# --------------------------------------------------------------------------------------------------- groups


async def test_groups_are_merged_from_all_nodes_and_seen_by_their_leaders(client: Client, cluster: Cluster) -> None:
    cluster.nodes["n2"].views[17] |= {"last": 9, "commit": 8}
    cluster.nodes["n2"].views[17]["replicas"][0] |= {"match": 8, "lag": 1}
    found = await fetch(client, "/groups")
    assert [(row["group_id"], row["leader"], row["state"], row["lag"]) for row in found["groups"]] == [
        (1, "n1", "ok", 0),
        (16, "n1", "ok", 0),
        (17, "n2", "ok", 3),  # n3 is at 6, the leader at 9
    ]
    seventeen = found["groups"][2]
    assert (seventeen["seen_by"], seventeen["commit"], seventeen["last"]) == ("n2", 8, 9)
    assert [(replica["node_id"], replica["match"], replica["lag"]) for replica in seventeen["replicas"]] == [
        ("n1", 8, 1),
        ("n2", 9, 0),
        ("n3", 6, 3),
    ]
    assert found["healthy"]
    assert found["total"] == 3


async def test_leaderless_and_halted_groups_are_found_and_explained(client: Client, cluster: Cluster) -> None:
    for node in cluster.each():
        node.lose_leader(16)
    cluster.nodes["n3"].halt(17, "OSError: no space left")
    found = await fetch(client, "/groups")
    assert found["problems"] == [
        "group 16 is leaderless: a quorum is up: an election should be under way",
        "group 17 is halted: on node n3: OSError: no space left",
    ]
    assert [row["group_id"] for row in (await fetch(client, "/groups?state=leaderless"))["groups"]] == [16]
    assert [row["group_id"] for row in (await fetch(client, "/groups?state=halted"))["groups"]] == [17]
    assert [row["group_id"] for row in (await fetch(client, "/groups?state=ok"))["groups"]] == [1]
    assert [row["group_id"] for row in (await fetch(client, "/groups?sort=-state"))["groups"]] == [16, 17, 1]


async def test_a_group_without_quorum_says_so(client: Client, cluster: Cluster) -> None:
    cluster.stop("n2")
    cluster.stop("n3")
    cluster.nodes["n1"].lose_leader(16)
    found = await fetch(client, "/groups?state=leaderless")
    assert found["groups"][0]["why"] == "no quorum: 2 of 3 voters do not answer (n2, n3)"
    assert set(found["silent"]) == {"n2", "n3"}
    assert not found["healthy"]


async def test_a_group_whose_leader_does_not_answer_is_unconfirmed(client: Client, cluster: Cluster) -> None:
    cluster.stop("n2")
    row = (await fetch(client, "/groups?leader=n2"))["groups"][0]
    assert (row["group_id"], row["state"], row["lag"]) == (17, "unconfirmed", 0)
    assert row["replicas"][1]["silent"] == "not connected"


async def test_a_group_that_no_answering_node_hosts_is_not_left_out(client: Client, cluster: Cluster) -> None:
    cluster.nodes["n1"].shard_map = ShardMap(4, cluster.nodes["n1"].shard_map.services, {16: ("n1",), 17: ("n2", "n3")})
    del cluster.nodes["n1"].views[17]
    cluster.stop("n2")
    cluster.stop("n3")
    row = (await fetch(client, "/groups?service=kv&sort=-group"))["groups"][0]
    assert (row["group_id"], row["state"], row["why"]) == (17, "leaderless", "none of its nodes answers (n2, n3)")
    for sort in ("lag", "-commit", "leader"):
        assert len((await fetch(client, f"/groups?sort={sort}"))["groups"]) == 3


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("service=kv", [16, 17]),
        ("service=none", []),
        ("leader=n1", [1, 16]),
        ("node=n3", [1, 16, 17]),
        ("leader=n2&service=kv", [17]),
        ("sort=-group", [17, 16, 1]),
        ("sort=leader", [1, 16, 17]),
        ("sort=-service", [17, 16, 1]),
    ],
)
async def test_filters_and_order(client: Client, query: str, expected: list[int]) -> None:
    assert [row["group_id"] for row in (await fetch(client, f"/groups?{query}"))["groups"]] == expected


@pytest.mark.parametrize(
    ("path", "status", "part"),
    [
        ("/groups?state=bad", 400, "state"),
        ("/groups?sort=size", 400, "sort"),
        ("/groups?servce=kv", 400, "servce"),
        ("/groups?state=ok&state=ok", 400, "twice"),
        ("/groups?node=n9", 404, "n9"),
        ("/groups/99", 404, "no group 99"),
        ("/groups/x", 400, "group id"),
        ("/groups/0", 400, "group id"),
        ("/groups/18446744073709551616", 400, "group id"),
        ("/groups/%D9%A3", 400, "group id"),
        ("/groups/16/log?last=0", 400, "last"),
        ("/groups/16/log?last=1001", 400, "last"),
        ("/groups/16/log?last=-1", 400, "last"),
        ("/groups/99/log", 404, "no group 99"),
        ("/groups/16/log?node=n9", 404, "n9"),
        ("/route", 400, "key"),
        ("/route?key=a&service=none", 404, "none"),
        ("/route?key=a&type=float", 400, "type"),
        ("/route?key=a&type=int", 400, "whole number"),
        ("/route?key=9223372036854775808&type=int", 400, "whole number"),
        ("/route?key=xyz&type=bytes", 400, "hex"),
        ("/nothing", 404, "nothing"),
        ("/status/", 404, "/status/"),
        ("/status?x=1", 400, "x"),
    ],
)
async def test_what_is_wrong_is_said_in_json(client: Client, path: str, status: int, part: str) -> None:
    assert part in (await fetch(client, path, status))["error"]


async def test_a_near_miss_is_named(client: Client) -> None:
    assert (await fetch(client, "/groups?servce=kv", 400))["hint"] == "did you mean service?"


async def test_other_methods_are_refused_in_json(client: Client) -> None:
    async with client.post("/status") as response:
        assert response.status == 405
        assert (await response.json())["hint"] == "GET looks, POST changes: GET / lists what there is"


# ------------------------------------------------------------------------------------------------ one group


async def test_one_group_with_each_replica(client: Client, cluster: Cluster) -> None:
    cluster.nodes["n3"].views[16] |= {"last": 4, "applied": 3}
    found = await fetch(client, "/groups/16")
    row = found["group"]
    assert (row["leader"], row["service"], row["shard"]["shard_id"]) == ("n1", "kv", 1)
    assert [(replica["role"], replica["applied"]) for replica in row["replicas"]] == [
        ("leader", 6),
        ("follower", 6),
        ("follower", 3),
    ]


async def test_a_group_hosted_elsewhere_is_found(client: Client, cluster: Cluster) -> None:
    del cluster.nodes["n1"].views[17]
    row = (await fetch(client, "/groups/17"))["group"]
    assert row["replicas"][0]["role"] is None
    assert row["replicas"][0]["silent"] is None  # it answered: it has no such replica


async def test_a_known_group_on_silent_nodes_is_not_called_missing(client: Client, cluster: Cluster) -> None:
    del cluster.nodes["n1"].views[17]
    cluster.stop("n2")
    cluster.stop("n3")
    assert "n2, n3" in (await fetch(client, "/groups/17", 503))["hint"]
    assert "n2, n3" in (await fetch(client, "/groups/99", 404))["hint"]


# -------------------------------------------------------------------------------------------------- the log


async def test_the_log_comes_from_the_leader_with_entries_in_base64(client: Client, cluster: Cluster) -> None:
    cluster.nodes["n2"].views[17] |= {"commit": 5, "applied": 4}
    found = await fetch(client, "/groups/17/log?last=3")
    assert (found["node_id"], found["role"], found["service"]) == ("n2", "leader", "kv")
    assert [(row["index"], row["kind"], row["committed"], row["applied"]) for row in found["entries"]] == [
        (4, "command", True, True),
        (5, "membership", True, False),
        (6, "command", False, False),
    ]
    assert base64.b64decode(found["entries"][0]["entry"]) == b"\xc1\xff"


async def test_another_copy_of_the_log_can_be_asked_for(client: Client, cluster: Cluster) -> None:
    cluster.nodes["n3"].entries = cluster.nodes["n3"].entries[:1]
    found = await fetch(client, "/groups/17/log?node=n3")
    assert (found["node_id"], found["role"], len(found["entries"])) == ("n3", "follower", 1)


async def test_without_leader_the_log_is_the_asked_nodes_own(client: Client, cluster: Cluster) -> None:
    for node in cluster.each():
        node.lose_leader(17)
    assert (await fetch(client, "/groups/17/log"))["node_id"] == "n1"
    del cluster.nodes["n1"].views[17]
    assert (await fetch(client, "/groups/17/log"))["node_id"] == "n2"


async def test_long_entries_are_cut_and_say_so(client: Client, cluster: Cluster) -> None:
    entry = cluster.nodes["n2"].entries[0]
    cluster.nodes["n2"].entries = [{**entry, "entry": bytes(70_000), "size_bytes": 70_000}]
    (row,) = (await fetch(client, "/groups/17/log?entry_bytes=10"))["entries"]
    assert (base64.b64decode(row["entry"]), row["cut"], row["size_bytes"]) == (bytes(10), True, 70_000)


async def test_a_log_answer_is_bounded_in_all(client: Client, cluster: Cluster) -> None:
    entry = cluster.nodes["n2"].entries[0]
    cluster.nodes["n2"].entries = [{**entry, "index": index, "entry": bytes(60_000)} for index in range(1, 101)]
    rows = (await fetch(client, "/groups/17/log?last=100&entry_bytes=65536"))["entries"]
    sizes = [len(base64.b64decode(row["entry"])) for row in rows]
    assert sum(sizes) == LOG_ANSWER_BYTES
    assert sizes[0] == 0  # the oldest go first
    assert sizes[-1] == 60_000
    assert [row["index"] for row in rows] == list(range(1, 101))
    assert [row["cut"] for row in rows] == [size < 60_000 for size in sizes]


# -------------------------------------------------------------------------------------------------- routing


async def test_a_key_is_routed_to_its_shard_group_and_leader(client: Client, cluster: Cluster) -> None:
    shards = cluster.nodes["n1"].shard_map.services["kv"]
    for key in ("a", "user:42", "über"):
        found = await fetch(client, f"/route?key={key}")
        assert found["group_id"] == shards.find(key.encode()).group_id
        assert found["leader"] == {16: "n1", 17: "n2"}[found["group_id"]]
        assert found["service"] == "kv"
        assert found["nodes"] == ["n1", "n2", "n3"]


async def test_keys_of_all_types_are_those_of_commands(client: Client, cluster: Cluster) -> None:
    class Keys:
        def of_int(self, key: int) -> None: ...
        def of_bytes(self, key: bytes) -> None: ...
        def of_str(self, key: str) -> None: ...

    shards = cluster.nodes["n1"].shard_map.services["kv"]
    for type_, text, key in (
        ("int", "-7", -7),
        ("int", "12345", 12345),
        ("bytes", "00ff", b"\x00\xff"),
        ("str", "7", "7"),
    ):
        function = getattr(Keys, f"of_{type_}")
        routed, _ = compile_method(Keys, function, "command", "key").encode_call((key,), {})
        found = await fetch(client, f"/route?key={text}&type={type_}")
        assert found["routing_key"] == blake(routed)
        assert found["group_id"] == shards.find(routed).group_id


def blake(key: bytes) -> str:
    from hashlib import blake2b

    return blake2b(key, digest_size=8).hexdigest()


async def test_a_route_to_a_leaderless_group_is_unhealthy(client: Client, cluster: Cluster) -> None:
    for node in cluster.each():
        node.lose_leader(16)
        node.lose_leader(17)
    found = await fetch(client, "/route?key=a")
    assert (found["leader"], found["state"], found["healthy"]) == (None, "leaderless", False)


async def test_the_service_must_be_named_when_there_are_several(client: Client, cluster: Cluster) -> None:
    node = cluster.nodes["n1"]
    first, second = node.shard_map.services["kv"].shards
    halves = [
        {"start": b"", "end": None, "shard_id": shard.shard_id, "group_id": shard.group_id} for shard in (first, second)
    ]
    services = [type(node.shard_map.services["kv"])("range", (type(first)(**half, epoch=1),)) for half in halves]
    node.shard_map = ShardMap(4, {"one": services[0], "two": services[1]}, node.shard_map.groups)
    found = await fetch(client, "/route?key=a", 400)
    assert found["hint"] == "one of one, two"
    assert (await fetch(client, "/route?key=a&service=two"))["routing_key"] == b"a".hex()
    node.shard_map = ShardMap()
    assert (await fetch(client, "/route?key=a", 404))["error"] == "there is no service yet"


# --------------------------------------------------------------------------------------------------- health


async def test_liveness_asks_nothing_of_the_node(client: Client, cluster: Cluster) -> None:
    cluster.nodes["n1"].status_error = NotRunning("not started")
    cluster.stop("n2")
    cluster.stop("n3")
    assert (await fetch(client, "/livez"))["live"] is True


async def test_readiness_counts_groups(client: Client, cluster: Cluster) -> None:
    found = await fetch(client, "/readyz")
    assert (found["ready"], found["groups_ready"], found["groups"]) == (True, 3, 3)
    cluster.nodes["n1"].lose_leader(16)
    found = await fetch(client, "/readyz", 503)
    assert (found["ready"], found["groups_ready"], found["groups"]) == (False, 2, 3)
    assert found["error"] == "2 of 3 groups are ready: 1 without leader, 0 halted"


async def test_a_node_that_waits_for_its_cluster_is_not_ready(client: Client, cluster: Cluster) -> None:
    cluster.nodes["n1"].views.clear()
    assert (await fetch(client, "/readyz"))["ready"] is True  # a node may well host nothing
    cluster.nodes["n1"].cluster_id = ""
    assert "cluster" in (await fetch(client, "/readyz", 503))["error"]


async def test_a_node_that_does_not_run_is_not_ready_and_says_so_everywhere(client: Client, cluster: Cluster) -> None:
    cluster.nodes["n1"].status_error = NotRunning("the node is not started")
    for path in ("/readyz", "/status", "/groups", "/groups/16", "/metrics"):
        assert (await fetch(client, path, 503))["error"] == "the node is not started"


@pytest.mark.parametrize("problem", [RuntimeError("boom"), InvariantViolation("boom")])
async def test_a_bug_is_a_500_in_json_and_logged(
    client: Client, cluster: Cluster, caplog: pytest.LogCaptureFixture, problem: Exception
) -> None:
    cluster.nodes["n1"].status_error = problem
    assert "boom" in (await fetch(client, "/status", 500))["error"]
    assert "/status" in caplog.text


async def test_metrics_are_prometheus_text(client: Client, cluster: Cluster) -> None:
    cluster.nodes["n1"].halt(16, "x")
    async with client.get("/metrics") as response:
        text = await response.text()
        assert response.headers["Content-Type"].startswith("text/plain; version=0.0.4")
    lines = text.splitlines()
    assert 'multiraft_groups{state="halted"} 1' in lines
    assert 'multiraft_peer_connected{peer="n2"} 1' in lines
    assert "multiraft_loop_lag_seconds 0.00125" in lines
    assert "multiraft_node_frames_sent_total 12" in lines
    assert "multiraft_node_dropped_outbox_full_total 3" in lines
    assert "multiraft_clients_open 0" in lines
    assert 'multiraft_clients_total{outcome="malformed"} 0' in lines
    names = [line.split("{")[0].split(" ")[0] for line in lines if not line.startswith("#")]
    typed = [line.split(" ")[2] for line in lines if line.startswith("# TYPE")]
    assert sorted(set(names)) == sorted(typed)  # each metric is declared once


# -------------------------------------------------------------------------------------------------- serving


async def test_mounted_under_a_path(cluster: Cluster) -> None:
    outer = web.Application()
    outer.add_subapp("/admin", admin_app(cluster.nodes["n1"]))
    async with TestClient(TestServer(outer)) as client:
        assert (await fetch(client, "/admin/livez"))["live"] is True
        assert "/admin/groups/{id}" in (await fetch(client, "/admin/"))["routes"]
        await fetch(client, "/admin/nothing", 404)
        async with client.get("/nothing") as response:  # what is not ours is not signed
            assert ADMIN_HEADER not in response.headers
