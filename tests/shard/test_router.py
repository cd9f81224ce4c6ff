"""The router: whom it asks, in which order, what it tries again, and what it says when it gives up.

The cluster is a table: what each node answers, in turn. Time is a number that waiting moves.
"""

from __future__ import annotations

import asyncio
from asyncio import Future
from collections.abc import Callable
from random import Random
from typing import Any

import pytest

from multiraft.config import Limits
from multiraft.engine.local import Seen
from multiraft.engine.machine import Context
from multiraft.errors import (
    CommandFailed,
    DeadlineExceeded,
    Halted,
    InvalidRequest,
    MultiRaftError,
    NotLeader,
    NotReady,
    NotRunning,
    OutcomeUnknown,
    Overloaded,
    ReadFailed,
    Unreachable,
    WrongShard,
)
from multiraft.group import CallKind
from multiraft.outcome import Outcome
from multiraft.shard import (
    Declaration,
    Directory,
    GroupCaller,
    Router,
    ServiceRoute,
    ServiceShards,
    Shard,
    ShardMap,
    create_service_command,
)
from multiraft.types import DIRECTORY_GROUP, GroupId, NodeId

GROUP = 16
Answer = bytes | MultiRaftError | Callable[[], bytes | MultiRaftError]


class Cluster:
    """Node "a" of a cluster, as its router sees it.

    answers   what each node says next; its last answer is repeated
    asked     (node, kind, body, timeout) of every call, in order
    slept     every wait between two rounds, seconds
    costs_s   how long a call to a node takes
    """

    node_id: NodeId = "a"

    def __init__(self, answers: dict[NodeId, list[Answer]], leader: NodeId | None = None) -> None:
        self.answers = answers
        self.leader = leader
        self.asked: list[tuple[NodeId, str, bytes, float]] = []
        self.slept: list[float] = []
        self.costs_s: dict[NodeId, float] = {}
        self.now = 100.0

    def propose_local(self, group_id: GroupId, command: bytes, timeout_s: float) -> Future[bytes]:
        return self._answer(self.node_id, "propose", command, timeout_s)

    def begin_read(self, group_id: GroupId, query: bytes) -> Future[bytes] | None:
        return self._answer(self.node_id, "read", query, 5.0) if self.leads(group_id) else None

    def read_local(self, group_id: GroupId, query: bytes, timeout_s: float) -> Future[bytes]:
        return self._answer(self.node_id, "read", query, timeout_s)

    def ask_local(self, group_id: GroupId, kind: CallKind, body: bytes, timeout_s: float) -> Future[bytes]:
        return self._answer(self.node_id, kind, body, timeout_s)

    def read_nearby(self, group_id: GroupId, query: bytes, stale_s: float | None, timeout_s: float) -> Future[Seen]:
        raise AssertionError("asked for by reads of other kinds alone; see test_router_reads.py")

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
        return False

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
        assert node_id != self.node_id
        return self._answer(node_id, method, body, timeout_s)

    def _answer(self, node_id: NodeId, kind: str, body: bytes, timeout_s: float) -> Future[bytes]:
        assert timeout_s > 0
        self.asked.append((node_id, kind, body, timeout_s))
        self.now += min(self.costs_s.get(node_id, 0.0), timeout_s)
        script = self.answers[node_id]
        found = script.pop(0) if len(script) > 1 else script[0]
        found = found() if callable(found) else found
        if isinstance(found, NotRunning):
            raise found  # some refusals come at once, not through the future
        future: Future[bytes] = asyncio.get_running_loop().create_future()
        if isinstance(found, MultiRaftError):
            future.set_exception(found)
        else:
            future.set_result(found)
        return future

    async def sleep(self, delay_s: float) -> None:
        self.slept.append(delay_s)
        self.now += delay_s

    @property
    def order(self) -> str:
        return "".join(node_id for node_id, *_ in self.asked)


def router_of(cluster: Cluster, members: str = "abc", request_timeout_ms: int = 5_000) -> Router:
    caller: GroupCaller = cluster
    limits = Limits(request_timeout_ms=request_timeout_ms)
    router = Router(caller, limits, Random(1), clock=lambda: cluster.now, sleep=cluster.sleep)
    service = ServiceShards("range", (Shard(1, GROUP, b"", b"m", 1), Shard(2, GROUP + 1, b"m", None, 1)))
    router.update(ShardMap(1, {"s": service}, {GROUP: tuple(members), GROUP + 1: tuple(members)}))
    return router


# ------------------------------------------------------------------------------------------------- whom it asks


async def test_a_group_led_here_is_called_directly() -> None:
    cluster = Cluster({"a": [b"done"]}, leader="a")
    assert await router_of(cluster).call(GROUP, "propose", b"x", 2.0) == b"done"
    assert cluster.asked == [("a", "propose", b"x", 2.0)]


async def test_the_call_waits_on_the_engine_s_future_without_a_task() -> None:
    tasks = len(asyncio.all_tasks())
    counted: list[int] = []

    def count() -> bytes:
        counted.append(len(asyncio.all_tasks()))
        return b"done"

    await router_of(Cluster({"a": [count]}, leader="a")).call(GROUP, "read", b"x")
    assert counted == [tasks]


async def test_the_known_leader_is_asked_first() -> None:
    cluster = Cluster({"c": [b"done"]}, leader="c")
    assert await router_of(cluster).call(GROUP, "propose", b"x", 2.0) == b"done"
    assert cluster.asked == [("c", "propose", b"x", 2.0)]


async def test_without_a_hint_the_members_are_asked_in_turn() -> None:
    cluster = Cluster({"a": [NotLeader(GROUP)], "b": [Unreachable("down")], "c": [b"done"]})
    assert await router_of(cluster).call(GROUP, "propose", b"x") == b"done"
    assert cluster.order == "abc"
    assert cluster.slept == []


async def test_the_answer_s_hint_is_followed_even_to_a_node_not_in_the_map() -> None:
    cluster = Cluster({"a": [NotLeader(GROUP, "d")], "d": [b"done"]})
    assert await router_of(cluster).call(GROUP, "propose", b"x") == b"done"
    assert cluster.order == "ad"


async def test_who_answered_is_asked_first_the_next_time() -> None:
    cluster = Cluster({"a": [NotLeader(GROUP)], "b": [NotLeader(GROUP)], "c": [b"1", b"2", NotLeader(GROUP, "b")]})
    router = router_of(cluster)
    await router.call(GROUP, "propose", b"x")
    assert await router.call(GROUP, "propose", b"y") == b"2"
    assert cluster.order == "abcc"
    cluster.answers["b"] = [b"3"]
    assert await router.call(GROUP, "propose", b"z") == b"3"
    assert await router.call(GROUP, "propose", b"z") == b"3"
    assert cluster.order == "abcccbb"


@pytest.mark.parametrize("problem", [NotLeader(GROUP), OutcomeUnknown("silent"), Halted("disk")])
async def test_who_failed_is_not_asked_first_the_next_time(problem: MultiRaftError) -> None:
    cluster = Cluster({"a": [NotLeader(GROUP)], "b": [NotLeader(GROUP)], "c": [b"1", problem]})
    router = router_of(cluster)
    await router.call(GROUP, "propose", b"x")
    with pytest.raises(MultiRaftError):
        await router.call(GROUP, "propose", b"y", 0.001)
    cluster.asked.clear()
    cluster.answers["a"] = [b"2"]
    assert await router.call(GROUP, "propose", b"z") == b"2"
    assert cluster.order == "a"


async def test_a_hint_that_points_back_does_not_loop() -> None:
    cluster = Cluster({"a": [NotLeader(GROUP, "b")], "b": [NotLeader(GROUP, "a")], "c": [NotLeader(GROUP), b"done"]})
    assert await router_of(cluster).call(GROUP, "propose", b"x") == b"done"
    assert cluster.order == "abcabc"
    assert len(cluster.slept) == 1


async def test_leadership_lost_on_the_way_is_followed() -> None:
    cluster = Cluster({"a": [NotLeader(GROUP, "b")], "b": [b"done"]}, leader="a")
    assert await router_of(cluster).call(GROUP, "propose", b"x") == b"done"
    assert cluster.order == "ab"


async def test_the_directory_is_reached_although_no_map_names_it() -> None:
    cluster = Cluster({"b": [b"done"]})
    router = router_of(cluster)
    router.add_group(DIRECTORY_GROUP, ["b"])
    assert await router.call(DIRECTORY_GROUP, "read", b"x") == b"done"


# ------------------------------------------------------------------------------------------- what is tried again


@pytest.mark.parametrize("problem", [NotLeader(GROUP), NotReady("x"), Unreachable("x"), NotRunning("x")])
@pytest.mark.parametrize("kind", ["propose", "read"])
async def test_what_will_pass_is_tried_again(problem: MultiRaftError, kind: CallKind) -> None:
    cluster = Cluster({"a": [NotLeader(GROUP)], "b": [problem, problem, b"done"], "c": [NotLeader(GROUP)]})
    assert await router_of(cluster).call(GROUP, kind, b"x") == b"done"
    assert cluster.order == "abcabcab"
    assert [round(delay_s, 3) for delay_s in cluster.slept] == sorted(round(d, 3) for d in cluster.slept)
    assert all(0 < delay_s <= 0.02 for delay_s in cluster.slept)


@pytest.mark.parametrize("problem", [ReadFailed("x"), OutcomeUnknown("x")])
async def test_a_read_is_asked_again_whatever_became_of_it(problem: MultiRaftError) -> None:
    for leader in ("a", "b"):
        cluster = Cluster({"a": [problem, b"done"], "b": [problem, b"done"], "c": [b"done"]}, leader=leader)
        assert await router_of(cluster).call(GROUP, "read", b"x") == b"done"
        assert len(cluster.asked) > 1


@pytest.mark.parametrize("leader", ["a", "b"])
async def test_a_command_that_may_have_happened_is_never_sent_again(leader: NodeId) -> None:
    cluster = Cluster({"a": [OutcomeUnknown("lost")], "b": [OutcomeUnknown("lost")], "c": [b"done"]}, leader=leader)
    with pytest.raises(OutcomeUnknown, match="lost"):
        await router_of(cluster).call(GROUP, "propose", b"x")
    assert cluster.order == leader


@pytest.mark.parametrize(
    "problem",
    [
        InvalidRequest("x"),
        Overloaded("x"),
        DeadlineExceeded("x"),
        WrongShard("x"),
        CommandFailed("KeyError", "'x'"),
    ],
)
@pytest.mark.parametrize("leader", ["a", "b"])
@pytest.mark.parametrize("kind", ["propose", "read"])
async def test_what_another_attempt_would_not_change_is_raised_at_once(
    problem: MultiRaftError, leader: NodeId, kind: CallKind
) -> None:
    cluster = Cluster({"a": [problem], "b": [problem], "c": [b"done"]}, leader=leader)
    with pytest.raises(type(problem)) as raised:
        await router_of(cluster).call(GROUP, kind, b"x")
    assert raised.value is problem
    assert cluster.order == leader


async def test_this_node_not_running_is_raised_at_once() -> None:
    cluster = Cluster({"a": [NotRunning("stopped")], "b": [b"done"], "c": [b"done"]}, leader="a")
    with pytest.raises(NotRunning, match="stopped"):
        await router_of(cluster).call(GROUP, "propose", b"x")


async def test_a_halted_leader_is_passed_over_if_another_one_answers() -> None:
    cluster = Cluster({"a": [NotLeader(GROUP)], "b": [Halted("disk")], "c": [b"done"]}, leader="b")
    assert await router_of(cluster).call(GROUP, "propose", b"x") == b"done"
    assert cluster.order == "bac"


async def test_a_halted_group_is_told_after_one_round() -> None:
    cluster = Cluster({"a": [NotLeader(GROUP, "b")], "b": [Halted("disk")], "c": [NotLeader(GROUP)]}, leader="b")
    with pytest.raises(Halted, match="disk"):
        await router_of(cluster).call(GROUP, "propose", b"x")
    assert cluster.order == "bac"
    assert cluster.slept == []


# ------------------------------------------------------------------------------------------------- giving up


async def test_without_a_leader_it_gives_up_in_time_and_says_why() -> None:
    cluster = Cluster({"a": [NotLeader(GROUP)], "b": [Unreachable("b is down")], "c": [Unreachable("c is down")]})
    with pytest.raises(NotReady) as raised:
        await router_of(cluster).call(GROUP, "propose", b"x", 1.5)
    assert "group 16 did not serve the call within 1.5 s; last: Unreachable: c is down" in str(raised.value)
    assert isinstance(raised.value.__cause__, Unreachable)
    assert cluster.now == pytest.approx(101.5)
    assert max(cluster.slept) <= 0.2
    assert len(cluster.slept) < 25  # backed off, not spinning


async def test_a_group_that_nobody_knows_gives_up_in_time() -> None:
    cluster = Cluster({})
    with pytest.raises(NotReady, match="this node knows of no node that serves it"):
        await router_of(cluster, request_timeout_ms=300).call(99, "read", b"x")
    assert cluster.now == pytest.approx(100.3)


async def test_the_default_timeout_is_the_node_s() -> None:
    cluster = Cluster({"a": [b"done"]}, leader="a")
    await router_of(cluster, request_timeout_ms=1_234).call(GROUP, "propose", b"x")
    assert cluster.asked[0][3] == 1.234


async def test_a_late_read_says_what_it_met() -> None:
    cluster = Cluster({node_id: [ReadFailed("no quorum")] for node_id in "abc"}, leader="b")
    cluster.costs_s = dict.fromkeys("abc", 0.4)
    with pytest.raises(DeadlineExceeded, match="last: ReadFailed: no quorum"):
        await router_of(cluster).call(GROUP, "read", b"x", 1.0)
    assert cluster.now <= 101.1


async def test_attempts_share_the_time_and_a_silent_node_gets_half_of_it_for_a_read() -> None:
    cluster = Cluster({"a": [OutcomeUnknown("silent")], "b": [OutcomeUnknown("silent")], "c": [b"done"]}, leader="b")
    cluster.costs_s = {"a": 9.0, "b": 9.0}
    assert await router_of(cluster).call(GROUP, "read", b"x", 4.0) == b"done"
    assert [(node_id, timeout_s) for node_id, _, _, timeout_s in cluster.asked] == [("b", 2.0), ("a", 1.0), ("c", 0.5)]


async def test_a_command_has_all_the_time_that_is_left() -> None:
    cluster = Cluster({"a": [NotLeader(GROUP)], "b": [NotLeader(GROUP)], "c": [b"done"]})
    cluster.costs_s = {"a": 1.0, "b": 1.0}
    await router_of(cluster).call(GROUP, "propose", b"x", 4.0)
    assert [timeout_s for *_, timeout_s in cluster.asked] == [4.0, 3.0, 2.0]


# --------------------------------------------------------------------------------------------------- by key


async def test_a_key_leads_to_its_shard_s_group() -> None:
    asked: list[GroupId] = []

    class Recording(Cluster):
        def propose_local(self, group_id: GroupId, command: bytes, timeout_s: float) -> Future[bytes]:
            asked.append(group_id)
            return super().propose_local(group_id, command, timeout_s)

    router = router_of(Recording({"a": [b"done"]}, leader="a"))
    for key in (b"", b"lz", b"m", b"z"):
        await router.call_key("s", key, "propose", b"x")
    assert asked == [GROUP, GROUP, GROUP + 1, GROUP + 1]


def newer(router: Router, group_id: GroupId) -> ShardMap:
    """A map in which another group serves everything."""
    service = ServiceShards("range", (Shard(3, group_id, b"", None, 2),))
    return ShardMap(router.map.version + 1, {"s": service}, {group_id: ("a", "b", "c")})


async def test_a_stale_route_waits_for_the_newer_map_and_follows_it() -> None:
    asked = asyncio.Event()

    def refuse() -> MultiRaftError:
        asked.set()
        return WrongShard("moved")

    cluster = Cluster({"a": [refuse, b"done"]}, leader="a")
    router = router_of(cluster)
    calling = asyncio.ensure_future(router.call_key("s", b"k", "propose", b"x"))
    await asked.wait()
    await asyncio.sleep(0)
    assert not calling.done()
    router.update(newer(router, 20))
    assert await calling == b"done"
    assert len(cluster.asked) == 2


async def test_a_map_that_came_during_the_call_is_used_at_once() -> None:
    def move() -> MultiRaftError:
        router.update(newer(router, 20))
        return WrongShard("moved")

    cluster = Cluster({"a": [move, b"done"]}, leader="a")
    router = router_of(cluster)
    assert await router.call_key("s", b"k", "propose", b"x") == b"done"


async def test_without_a_newer_map_the_stale_route_is_told() -> None:
    cluster = Cluster({"a": [WrongShard("moved")]}, leader="a")
    router = router_of(cluster)
    with pytest.raises(WrongShard, match="moved"):
        await router.call_key("s", b"k", "propose", b"x", 0.02)
    assert len(cluster.asked) == 1


async def test_a_service_that_is_not_there_yet_is_waited_for() -> None:
    cluster = Cluster({"a": [b"done"]}, leader="a")
    router = router_of(cluster)
    directory = Directory()
    context = Context(2, 1, DIRECTORY_GROUP, 0)
    directory.subscribe(lambda changed: router.update(changed.map))
    directory.apply(create_service_command(Declaration("first", replicas=1), ["a"]), context)
    calling = asyncio.ensure_future(router.call_key("late", b"k", "propose", b"x"))
    waiting = asyncio.ensure_future(router.shards("late"))
    await asyncio.sleep(0)
    assert not calling.done()
    cluster.now += 3.0
    directory.apply(create_service_command(Declaration("late", replicas=1), ["a"]), context)
    assert await calling == b"done"
    assert cluster.asked[0][3] == 2.0  # what the waiting has left of the time
    assert len((await waiting).shards) == 1


async def test_a_service_that_never_comes_is_named() -> None:
    router = router_of(Cluster({}))
    with pytest.raises(NotReady, match=r"service 'late' is not in this node's shard map \(version 1\)"):
        await router.call_key("late", b"k", "propose", b"x", 0.02)


async def test_an_older_map_is_ignored() -> None:
    router = router_of(Cluster({}))
    known = router.map
    router.update(ShardMap(1))
    router.update(ShardMap(0))
    assert router.map is known


# --------------------------------------------------------------------------------------------- for a service


async def test_a_service_s_route_reaches_key_shard_and_nearest() -> None:
    cluster = Cluster({"a": [b"done"]}, leader="a")
    route = ServiceRoute(router_of(cluster), "s")
    assert await route.propose(b"k", b"command", 1.0, session=False) == b"done"
    assert await route.read(b"k", b"query", None) == b"done"
    assert await route.read_any(b"any", None) == b"done"
    assert await route.read_shard(2, b"two", 0.5) == b"done"
    assert list(await route.shard_ids(None)) == [1, 2]
    assert cluster.asked == [
        ("a", "propose", b"command", 1.0),
        ("a", "read", b"query", 5.0),
        ("a", "read", b"any", 5.0),
        ("a", "read", b"two", 0.5),
    ]
    with pytest.raises(InvalidRequest, match="service 's' has no shard 3"):
        await route.read_shard(3, b"x", None)


@pytest.mark.parametrize(("led", "expected"), [({GROUP + 1}, GROUP + 1), ({GROUP, GROUP + 1}, GROUP), (set(), GROUP)])
async def test_any_shard_means_one_led_here_if_there_is_one(led: set[GroupId], expected: GroupId) -> None:
    asked: list[GroupId] = []

    class Leading(Cluster):
        def leads(self, group_id: GroupId) -> bool:
            return group_id in led

        def begin_read(self, group_id: GroupId, query: bytes) -> Future[bytes] | None:
            return self.read_local(group_id, query, 5.0) if self.leads(group_id) else None

        def read_local(self, group_id: GroupId, query: bytes, timeout_s: float) -> Future[bytes]:
            asked.append(group_id)
            return super().read_local(group_id, query, timeout_s)

    cluster: Any = Leading({"a": [b"done"]})
    await ServiceRoute(router_of(cluster), "s").read_any(b"x", None)
    assert asked == [expected]
