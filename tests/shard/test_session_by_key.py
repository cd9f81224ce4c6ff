"""The short way of a command with a session: its shard is led here, and the session in it is open."""

from __future__ import annotations

import asyncio
from asyncio import Future

import pytest

from multiraft.errors import NotLeader, OutcomeUnknown, SessionExpired, WrongShard
from multiraft.shard import ServiceRoute
from tests.shard.test_session import GROUP, Answer, Cluster, lost, router_of


def route(cluster: Cluster) -> ServiceRoute:
    return ServiceRoute(router_of(cluster), "s")


async def test_commands_by_key_and_by_group_share_the_session() -> None:
    cluster = Cluster({"a": [b"1", b"2", b"3", b"4"]})
    service = route(cluster)
    assert [await service.propose(b"k", b"x", None) for _ in range(3)] == [b"1", b"2", b"3"]
    assert await service._router.call(GROUP, "session", b"x") == b"4"
    assert cluster.numbers == [("a", 1, 1), ("a", 2, 2), ("a", 3, 3), ("a", 4, 4)]
    assert len(cluster.registered) == 1


async def test_a_caller_that_goes_leaves_its_number_behind() -> None:
    never: Future[bytes] = asyncio.get_running_loop().create_future()
    cluster = Cluster({"a": [b"done", never, b"done"]})
    service = route(cluster)
    await service.propose(b"k", b"w", None)
    call = asyncio.ensure_future(service.propose(b"k", b"x", None))
    await asyncio.sleep(0)
    assert cluster.numbers[1:] == [("a", 2, 2)]
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    assert await service.propose(b"k", b"y", None) == b"done"
    assert cluster.numbers[2:] == [("a", 3, 3)]


@pytest.mark.parametrize("problem", [lost(), NotLeader(GROUP, "b")])
async def test_the_same_number_is_tried_elsewhere(problem: OutcomeUnknown | NotLeader) -> None:
    cluster = Cluster({"a": [b"done", problem], "b": [b"found"], "c": [problem]})
    service = route(cluster)
    await service.propose(b"k", b"w", None)
    assert await service.propose(b"k", b"x", None) == b"found"
    assert all(sequence == 2 for _, sequence, _ in cluster.numbers[1:])
    assert cluster.numbers[-1][0] == "b"


async def test_a_session_that_has_ended_is_followed_by_another() -> None:
    cluster = Cluster({"a": [b"1", SessionExpired("gone"), b"2"]})
    service = route(cluster)
    await service.propose(b"k", b"w", None)
    assert await service.propose(b"k", b"x", None) == b"2"
    assert len(cluster.registered) == 2
    assert cluster.clients == [cluster.registered[0], cluster.registered[0], cluster.registered[1]]


async def test_an_answer_that_was_lost_forbids_another_number() -> None:
    elsewhere: list[Answer] = [lost(), SessionExpired("gone")]
    cluster = Cluster({"a": [b"1", lost()], "b": elsewhere, "c": elsewhere})
    service = route(cluster)
    await service.propose(b"k", b"w", None)
    with pytest.raises(OutcomeUnknown):
        await service.propose(b"k", b"x", None)
    assert set(cluster.clients) == {cluster.registered[0]}


async def test_a_wrong_shard_is_asked_for_again_by_the_same_map_and_then_told() -> None:
    cluster = Cluster({"a": [b"1", WrongShard("moved")]})
    service = route(cluster)
    await service.propose(b"k", b"w", None)
    call = asyncio.ensure_future(service.propose(b"k", b"x", 1e-3))
    with pytest.raises(WrongShard):
        await call
