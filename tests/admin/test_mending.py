"""`group why`, `group retry` and `group rebuild`: what an operator is told, and what is asked of which node."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any, TypeAlias

import pytest
from aiohttp.test_utils import TestClient

from multiraft.errors import NotReady

Client: TypeAlias = TestClient[Any, Any]
Cluster: TypeAlias = Any  # the fakes of conftest.py
Run: TypeAlias = Callable[..., Awaitable[Any]]


@pytest.fixture
def at(client: Client, call_cli: Run) -> Run:
    """Run a command against node n1."""
    url = str(client.make_url("")).rstrip("/")

    async def run(*arguments: str) -> Any:
        return await call_cli("--url", url, *arguments)

    return run


async def test_nothing_is_wrong(at: Run) -> None:
    finished = await at("group", "why", "17")
    assert finished.code == 0
    assert "nothing is wrong" in finished.out
    assert json.loads((await at("group", "why", "17", "--json")).out)["healthy"]


async def test_a_number_in_the_place_of_a_command_shows_the_group(at: Run) -> None:
    one, same = await at("group", "17"), await at("group", "show", "17")
    assert one.code == same.code == 0
    assert one.out == same.out
    assert "why" in (await at("group", "--help")).out


async def test_why_a_replica_is_halted_since_when_and_what_to_do(at: Run, cluster: Cluster) -> None:
    cluster.nodes["n3"].halt(17, "OSError: no \x1b[31mspace left")
    finished = await at("group", "why", "17")
    assert finished.code == 1
    assert "! halted on n3 at index 5 (environment)" in finished.out
    assert "since 2023-11-14 22:13:20+00:00, at index 5" in finished.out
    assert "OSError: no \\x1b[31mspace left" in finished.out
    assert "command put('a')" in finished.out
    assert "next: `multiraft group retry 17 --node n3`" in finished.out
    assert "\x1b" not in finished.out


async def test_why_a_group_is_slow_or_has_no_leader(at: Run, cluster: Cluster) -> None:
    cluster.nodes["n2"].slow = ["slow command at index 9: command count(7) took 300 ms"]
    finished = await at("group", "why", "17")
    assert finished.code == 0
    assert "slow on n2: slow command at index 9: command count(7) took 300 ms" in finished.out
    for node in cluster.each():
        node.lose_leader(16)
    cluster.stop("n3")
    finished = await at("group", "why", "16")
    assert finished.code == 1
    assert "! no leader" in finished.out
    assert "! no answer from n3: not connected" in finished.out
    assert (await at("group", "why", "99")).code == 4


async def test_retry_of_one_and_of_all_that_are_halted(at: Run, cluster: Cluster) -> None:
    for name in ("n1", "n3"):
        cluster.nodes[name].halt(17, "EIO")
    planned = await at("group", "retry", "17", "--dry-run")
    assert planned.code == 0
    assert "on n1: make the machine anew" in planned.out
    assert "not done: a dry run" in planned.out
    assert cluster.asked == []
    assert (await at("group", "retry", "17", "--node", "n3")).code == 0
    assert cluster.asked == [("retry", "n3", 17)]
    refused = await at("group", "retry", "17", "--node", "n3")
    assert (refused.code, refused.err.splitlines()[0]) == (5, "error: the replica of group 17 on n3 is not halted")
    assert (await at("group", "retry", "17")).code == 0
    assert cluster.asked[1:] == [("retry", "n1", 17)]
    assert "nothing to do: no replica is halted" in (await at("group", "retry", "17")).out
    assert (await at("group", "retry", "17", "--node", "n9")).code == 4


async def test_rebuild_from_a_healthy_replica(at: Run, cluster: Cluster) -> None:
    cluster.nodes["n2"].halt(17, "EIO")  # which leads
    planned = await at("group", "rebuild", "17", "--node", "n2", "--dry-run")
    assert "1. n2 leads: n1 or n3 takes over first" in planned.out
    assert "at index 5 or later" in planned.out
    assert cluster.asked == []
    answer = await at("--timeout", "7", "group", "rebuild", "17", "--node", "n2", "--json")
    assert answer.code == 0
    assert json.loads(answer.out)["done"]
    assert cluster.asked == [("rebuild", "n2", 17, 7.0)]
    assert (await at("group", "rebuild", "17", "--node", "n2")).code == 5


async def test_a_rebuild_without_a_healthy_replica_is_refused(at: Run, cluster: Cluster) -> None:
    for name in ("n1", "n2"):
        cluster.nodes[name].halt(17, "EIO")
    cluster.stop("n3")
    refused = await at("group", "rebuild", "17", "--node", "n2")
    assert refused.code == 5
    assert "no other replica of group 17 is healthy and answers" in refused.err
    assert cluster.asked == []


async def test_a_rebuild_that_is_given_up_or_late_says_so(at: Run, cluster: Cluster) -> None:
    cluster.nodes["n3"].halt(17, "EIO")
    cluster.gate = asyncio.Event()
    late = await at("--timeout", "0.3", "group", "rebuild", "17", "--node", "n3")
    assert late.code == 6
    assert "not rebuilt within 0.3 s" in late.err
    cluster.outcome = NotReady("its leader gives no state")
    given_up = await at("group", "rebuild", "17", "--node", "n3")
    assert given_up.code == 5
    assert "given up: its leader gives no state" in given_up.err


async def test_wrong_requests_are_refused(client: Client) -> None:
    for path, body in [
        ("/groups/17/retry", {"nodes": "n1"}),
        ("/groups/17/retry", {"node": 5}),
        ("/groups/17/rebuild", {}),
        ("/groups/17/rebuild", {"node": "n1", "timeout_s": 0}),
    ]:
        async with client.post(path, json=body) as response:
            assert response.status == 400, body
    async with client.post("/groups/17/rebuild", json={"node": "n1"}, headers={"Origin": "http://evil"}) as response:
        assert response.status == 403
