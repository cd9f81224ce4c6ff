"""Reads of all kinds through the router: from the replica here where that is asked for, from the leader otherwise.

The cluster is a table: what each node answers, in turn, and how long that takes. Time is a number.
"""

from __future__ import annotations

import asyncio
from asyncio import Future
from collections.abc import Callable
from random import Random

import pytest

from multiraft.config import Limits
from multiraft.consistency import Consistency
from multiraft.engine.local import Seen
from multiraft.errors import (
    CommandFailed,
    Halted,
    InvalidRequest,
    MultiRaftError,
    NotLeader,
    NotReady,
    NotRunning,
    Overloaded,
    ReadFailed,
    WrongShard,
)
from multiraft.group import CallKind
from multiraft.outcome import Outcome
from multiraft.shard import GroupCaller, Router, ServiceRoute, ServiceShards, Shard, ShardMap
from multiraft.types import GroupId, NodeId

GROUP = 16


class Cluster:
    """Node "a" of a cluster, as its router sees it.

    answers   what each node says next; its last answer is repeated
    asked     (node, kind, body, timeout) of every call, in order
    costs_s   how long a call to a node takes; "nearby": to the replica here, when it fails
    replicas  the groups with a replica here, which answers local reads, or fails with `nearby`
    """

    node_id: NodeId = "a"

    def __init__(self, answers: dict[NodeId, list[bytes | MultiRaftError]], leader: NodeId | None = None) -> None:
        self.answers = answers
        self.leader = leader
        self.asked: list[tuple[NodeId, str, bytes, float]] = []
        self.costs_s: dict[NodeId, float] = {}
        self.now = 100.0
        self.replicas: set[GroupId] = set()
        self.nearby: MultiRaftError | None = None
        self.stale_s: list[float | None] = []

    def propose_local(self, group_id: GroupId, command: bytes, timeout_s: float) -> Future[bytes]:
        raise AssertionError("nothing is proposed here")

    def begin_read(self, group_id: GroupId, query: bytes) -> Future[bytes] | None:
        return self._answer(self.node_id, "read", query, 5.0) if self.leads(group_id) else None

    def read_local(self, group_id: GroupId, query: bytes, timeout_s: float) -> Future[bytes]:
        return self._answer(self.node_id, "read", query, timeout_s)

    def ask_local(self, group_id: GroupId, kind: CallKind, body: bytes, timeout_s: float) -> Future[bytes]:
        return self._answer(self.node_id, kind, body, timeout_s)

    def read_nearby(self, group_id: GroupId, query: bytes, stale_s: float | None, timeout_s: float) -> Future[Seen]:
        self.asked.append((self.node_id, "nearby", query, timeout_s))
        self.stale_s.append(stale_s)
        future: Future[Seen] = asyncio.get_running_loop().create_future()
        if self.nearby is None:
            future.set_result(Seen(b"here", self.now - 0.25))
        else:
            self.now += min(self.costs_s.get("nearby", 0.0), timeout_s)
            future.set_exception(self.nearby)
        return future

    def read_many_local(self, group_id: GroupId, queries: list[bytes], timeout_s: float) -> Future[list[Outcome]]:
        raise AssertionError("asked for by many queries alone; see test_many.py")

    def propose_many_local(
        self, group_id: GroupId, entries: list[bytes], numbered: bool, timeout_s: float
    ) -> Future[list[Outcome]]:
        raise AssertionError("asked for by many commands alone; see test_many.py")

    def submit_local(
        self, group_id: GroupId, entries: list[bytes], numbered: bool, told: Callable[[list[Outcome]], None]
    ) -> None:
        raise AssertionError("asked for by many commands alone; see test_many.py")

    def has_replica(self, group_id: GroupId) -> bool:
        return group_id in self.replicas

    def clock_s(self) -> float:
        return self.now

    def age_s(self, since_s: float) -> float:
        return self.now - since_s

    def leads(self, group_id: GroupId) -> bool:
        return self.leader == self.node_id

    def leader_hint(self, group_id: GroupId) -> NodeId | None:
        return self.leader

    def forward(
        self, node_id: NodeId, method: CallKind, group_id: GroupId, body: bytes, timeout_s: float
    ) -> Future[bytes]:
        return self._answer(node_id, method, body, timeout_s)

    def _answer(self, node_id: NodeId, kind: str, body: bytes, timeout_s: float) -> Future[bytes]:
        self.asked.append((node_id, kind, body, timeout_s))
        self.now += min(self.costs_s.get(node_id, 0.0), timeout_s)
        script = self.answers[node_id]
        found = script.pop(0) if len(script) > 1 else script[0]
        future: Future[bytes] = asyncio.get_running_loop().create_future()
        if isinstance(found, MultiRaftError):
            future.set_exception(found)
        else:
            future.set_result(found)
        return future

    @property
    def order(self) -> str:
        return "".join(node_id for node_id, *_ in self.asked)


def router_of(cluster: Cluster) -> Router:
    caller: GroupCaller = cluster
    router = Router(caller, Limits(request_timeout_ms=5_000), Random(1), clock=lambda: cluster.now)
    service = ServiceShards("range", (Shard(1, GROUP, b"", b"m", 1), Shard(2, GROUP + 1, b"m", None, 1)))
    router.update(ShardMap(1, {"s": service}, {GROUP: ("a", "b", "c"), GROUP + 1: ("a", "b", "c")}))
    return router


async def test_a_lease_read_goes_to_the_leader_as_one() -> None:
    cluster = Cluster({"a": [b"mine"], "b": [b"theirs"]}, leader="a")
    router = router_of(cluster)
    assert await router.read_as(GROUP, b"q", Consistency(lease=True), 2.0) == (b"mine", 0.0)
    cluster.leader = "b"
    cluster.costs_s = {"b": 0.5}
    assert await router.read_as(GROUP, b"q", Consistency(lease=True), 2.0) == (b"theirs", 500.0)
    assert [(node_id, kind) for node_id, kind, *_ in cluster.asked] == [("a", "lease"), ("b", "lease")]


async def test_a_local_read_prefers_the_replica_here_and_tells_its_age() -> None:
    cluster = Cluster({"b": [b"theirs"]}, leader="b")
    cluster.replicas = {GROUP}
    router = router_of(cluster)
    assert await router.read_as(GROUP, b"q", Consistency(local=True)) == (b"here", 250.0)
    assert await router.read_as(GROUP, b"q", Consistency(stale_ms=500)) == (b"here", 250.0)
    assert cluster.asked == [("a", "nearby", b"q", 2.5)] * 2
    assert cluster.stale_s == [None, 0.5]


async def test_without_a_replica_here_the_leader_answers_a_local_read() -> None:
    cluster = Cluster({"b": [b"theirs"]}, leader="b")
    cluster.costs_s = {"b": 0.5}
    router = router_of(cluster)
    for how in (Consistency(local=True), Consistency(stale_ms=0)):
        assert await router.read_as(GROUP, b"q", how) == (b"theirs", 500.0)
    assert [(node_id, kind) for node_id, kind, *_ in cluster.asked] == [("b", "read")] * 2


@pytest.mark.parametrize("problem", [Halted("halted here"), ReadFailed("no index in time"), NotReady("gone")])
async def test_where_the_replica_here_cannot_the_leader_answers_in_the_time_that_is_left(
    problem: MultiRaftError,
) -> None:
    cluster = Cluster({"b": [b"theirs"]}, leader="b")
    cluster.replicas, cluster.nearby = {GROUP}, problem
    cluster.costs_s = {"nearby": 9.0, "b": 0.5}
    assert await router_of(cluster).read_as(GROUP, b"q", Consistency(stale_ms=500), 4.0) == (b"theirs", 500.0)
    assert [(node_id, kind, left) for node_id, kind, _, left in cluster.asked] == [
        ("a", "nearby", 2.0),
        ("b", "read", 1.0),
    ]


@pytest.mark.parametrize("problem", [Overloaded("full"), CommandFailed("ValueError", "no"), NotRunning("stopping")])
async def test_what_no_other_node_does_better_is_not_asked_elsewhere(problem: MultiRaftError) -> None:
    cluster = Cluster({"b": [b"theirs"]}, leader="b")
    cluster.replicas, cluster.nearby = {GROUP}, problem
    with pytest.raises(type(problem)):
        await router_of(cluster).read_as(GROUP, b"q", Consistency(local=True))
    assert cluster.order == "a"


async def test_a_local_read_by_key_finds_its_shard() -> None:
    cluster = Cluster({"b": [b"theirs"]}, leader="b")
    cluster.replicas = {GROUP + 1}
    route = ServiceRoute(router_of(cluster), "s")
    local = Consistency(local=True)
    assert await route.read_as(b"a", b"q", local, None) == (b"theirs", 0.0)
    assert await route.read_as(b"z", b"q", local, None) == (b"here", 250.0)
    assert await route.read_as(2, b"q", local, None) == (b"here", 250.0)
    assert await route.read_as(None, b"q", local, None) == (b"here", 250.0)
    with pytest.raises(InvalidRequest, match="has no shard 7"):
        await route.read_as(7, b"q", local, None)


async def test_a_local_read_follows_a_newer_map() -> None:
    cluster = Cluster({"b": [WrongShard("moved"), b"theirs"]}, leader="b")
    router = router_of(cluster)

    async def newer() -> None:
        service = ServiceShards("range", (Shard(1, GROUP + 1, b"", None, 2),))
        router.update(ShardMap(2, {"s": service}, {GROUP + 1: ("a", "b", "c")}))

    asked = asyncio.ensure_future(router.read_key_as("s", b"a", b"q", Consistency(local=True)))
    await asyncio.sleep(0)
    await newer()
    assert await asked == (b"theirs", 0.0)
    assert cluster.order == "bb"


async def test_a_read_that_failed_here_is_asked_elsewhere_in_what_is_left_of_its_time() -> None:
    cluster = Cluster({"a": [NotLeader(GROUP, "b")], "b": [b"done"]}, leader="a")
    cluster.costs_s = {"a": 2.0}
    assert await router_of(cluster).read(GROUP, b"x") == b"done"
    assert cluster.asked == [("a", "read", b"x", 5.0), ("b", "read", b"x", 1.5)]


async def test_a_read_that_failed_here_for_good_is_asked_nowhere_else() -> None:
    cluster = Cluster({"a": [CommandFailed("ValueError", "no")], "b": [b"done"]}, leader="a")
    with pytest.raises(CommandFailed):
        await router_of(cluster).read(GROUP, b"x")
    assert cluster.order == "a"


async def test_a_read_in_a_hurry_has_its_own_time_here_too() -> None:
    cluster = Cluster({"a": [b"done"]}, leader="a")
    router = router_of(cluster)
    await router.read(GROUP, b"x", 0.5)
    await router.read(GROUP, b"x", 3.0, cluster.now + 3.0)
    await router.read(GROUP, b"x", 7.0)
    assert [timeout_s for *_, timeout_s in cluster.asked] == [0.5, 3.0, 5.0]  # the last: the node's own comes first
