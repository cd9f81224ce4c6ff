"""The client's half of sessions: which number a command gets, how long it is tried, and what its caller is told.

The cluster is a table: what each node says in turn to numbered commands. Registrations are granted unless told
otherwise. Time is a number that waiting moves.
"""

from __future__ import annotations

import asyncio
import inspect
from asyncio import Future
from random import Random
from typing import Any

import pytest

from multiraft.config import Limits
from multiraft.errors import (
    CommandFailed,
    DeadlineExceeded,
    Halted,
    InvalidRequest,
    MultiRaftError,
    NotCommitted,
    NotLeader,
    NotReady,
    NotRunning,
    OutcomeUnknown,
    Overloaded,
    ReplyForgotten,
    SessionExpired,
    Unreachable,
)
from multiraft.sessions import HEAD, WINDOW, Numbered
from multiraft.shard import Router, ServiceRoute, ServiceShards, Shard, ShardMap
from multiraft.shard.session import GroupSession
from multiraft.types import GroupId, NodeId

GROUP = 16
Answer = bytes | MultiRaftError | Future[bytes]


class Cluster:
    """Node "a" of a cluster, as its router sees it.

    answers  what each node says next to a numbered command; its last answer is repeated
    grants   the same of registrations
    numbers  (node, sequence, lowest) of every numbered command, in order; clients: who sent them
    registered  the ids of all registrations that were asked for
    """

    node_id: NodeId = "a"

    def __init__(self, answers: dict[NodeId, list[Answer]], leader: NodeId | None = "a") -> None:
        self.answers = answers
        self.grants: list[Answer] = [b""]
        self.leader = leader
        self.numbers: list[tuple[NodeId, int, int]] = []
        self.clients: list[bytes] = []
        self.registered: list[bytes] = []
        self.timeouts: list[float] = []
        self.costs_s: dict[NodeId, float] = {}
        self.now = 100.0

    def leads(self, group_id: GroupId) -> bool:
        return self.leader == self.node_id

    def has_replica(self, group_id: GroupId) -> bool:
        return False

    def leader_hint(self, group_id: GroupId) -> NodeId | None:
        return self.leader

    def ask_local(self, group_id: GroupId, kind: str, body: bytes, timeout_s: float) -> Future[bytes]:
        return self._answer(self.node_id, kind, body, timeout_s)

    def forward(self, node_id: NodeId, kind: str, group_id: GroupId, body: bytes, timeout_s: float) -> Future[bytes]:
        assert node_id != self.node_id
        return self._answer(node_id, kind, body, timeout_s)

    def _answer(self, node_id: NodeId, kind: str, body: bytes, timeout_s: float) -> Future[bytes]:
        assert timeout_s > 0
        script = self.grants
        if kind == "register":
            self.registered.append(body)
        else:
            assert kind == "numbered"
            client, sequence, lowest = HEAD.unpack_from(body)
            self.numbers.append((node_id, sequence, lowest))
            self.clients.append(client)
            self.timeouts.append(timeout_s)
            self.now += min(self.costs_s.get(node_id, 0.0), timeout_s)
            script = self.answers[node_id]
        found = script.pop(0) if len(script) > 1 else script[0]
        if isinstance(found, Future):
            return found
        future: Future[bytes] = asyncio.get_running_loop().create_future()
        if isinstance(found, MultiRaftError):
            future.set_exception(found)
        else:
            future.set_result(found)
        return future

    async def sleep(self, delay_s: float) -> None:
        self.now += delay_s
        await asyncio.sleep(0)


def router_of(cluster: Any, members: str = "abc") -> Router:
    router = Router(cluster, Limits(), Random(1), clock=lambda: cluster.now, sleep=cluster.sleep)
    service = ServiceShards("range", (Shard(1, GROUP, b"", b"m", 1), Shard(2, GROUP + 1, b"m", None, 1)))
    router.update(ShardMap(1, {"s": service}, {GROUP: tuple(members), GROUP + 1: tuple(members)}))
    return router


def lost() -> OutcomeUnknown:
    return OutcomeUnknown("the answer was lost")


# --------------------------------------------------------------------------------------------------- numbering


async def test_commands_are_numbered_and_the_group_is_told_of_the_client_once() -> None:
    cluster = Cluster({"a": [b"1", b"2", b"3"]})
    router = router_of(cluster)
    assert [await router.call(GROUP, "session", b"x") for _ in range(3)] == [b"1", b"2", b"3"]
    assert cluster.numbers == [("a", 1, 1), ("a", 2, 2), ("a", 3, 3)]
    assert len(cluster.registered) == 1
    assert set(cluster.clients) == set(cluster.registered)


async def test_no_command_is_sent_before_its_client_is_registered_and_one_call_registers_for_all() -> None:
    cluster = Cluster({"a": [b"done"]})
    granted: Future[bytes] = asyncio.get_running_loop().create_future()
    cluster.grants = [granted]
    router = router_of(cluster)
    calls = [asyncio.ensure_future(router.call(GROUP, "session", b"x")) for _ in range(5)]
    for _ in range(5):
        await asyncio.sleep(0)
    assert (len(cluster.registered), cluster.numbers) == (1, [])
    granted.set_result(b"")
    assert await asyncio.gather(*calls) == [b"done"] * 5
    assert [sequence for _, sequence, _ in cluster.numbers] == [1, 2, 3, 4, 5]


async def test_who_waits_for_a_registration_takes_it_over_when_its_caller_goes() -> None:
    cluster = Cluster({"a": [b"done"]})
    never: Future[bytes] = asyncio.get_running_loop().create_future()
    cluster.grants = [never, b""]
    router = router_of(cluster)
    first, second = (asyncio.ensure_future(router.call(GROUP, "session", b"x")) for _ in range(2))
    await asyncio.sleep(0)
    first.cancel()
    assert await second == b"done"
    assert first.cancelled()
    assert len(set(cluster.registered)) == 2


async def test_an_id_whose_registration_is_unknown_is_never_used_again() -> None:
    """It could be registered a second time later, when its session has ended, and bring back what was applied."""
    cluster = Cluster({"a": [b"done"]})
    cluster.grants = [lost(), lost(), b""]
    assert await router_of(cluster).call(GROUP, "session", b"x") == b"done"
    assert len(set(cluster.registered)) == 3
    assert cluster.clients == cluster.registered[-1:]


async def test_a_command_whose_registration_fails_certainly_did_not_happen() -> None:
    cluster = Cluster({"a": [b"done"]})
    cluster.grants = [lost()]
    with pytest.raises(DeadlineExceeded, match="the answer was lost"):
        await router_of(cluster).call(GROUP, "session", b"x", 2.0)
    assert cluster.now == pytest.approx(102.0, abs=0.3)
    cluster.grants = [Overloaded("too much")]
    with pytest.raises(Overloaded):
        await router_of(cluster).call(GROUP, "session", b"x")
    assert cluster.numbers == []


def test_the_lowest_outstanding_number_is_that_of_the_oldest_caller() -> None:
    session = GroupSession(b"c" * 16)
    assert [session.begin() for _ in range(4)] == [1, 2, 3, 4]
    session.end(2)
    session.end(3)
    assert session.lowest == 1
    session.end(1)
    assert session.lowest == 4
    session.end(4)
    assert (session.lowest, session.begin(), session.outstanding) == (5, 5, {5})


def test_so_many_numbers_after_the_oldest_outstanding_one_there_are_no_more() -> None:
    session = GroupSession(b"c" * 16)
    for _ in range(WINDOW):
        session.begin()
    session.end(2)
    with pytest.raises(Overloaded, match="still outstanding"):
        session.begin()
    session.end(1)
    assert session.begin() == WINDOW + 1


async def test_a_caller_that_goes_leaves_its_number_behind() -> None:
    cluster = Cluster({"a": [asyncio.get_running_loop().create_future(), b"done"]})
    router = router_of(cluster)
    call = asyncio.ensure_future(router.call(GROUP, "session", b"x"))
    for _ in range(3):
        await asyncio.sleep(0)
    assert cluster.numbers == [("a", 1, 1)]
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    assert await router.call(GROUP, "session", b"y") == b"done"
    assert cluster.numbers[1:] == [("a", 2, 2)]


# ------------------------------------------------------------------------------------------------- trying again


@pytest.mark.parametrize(
    "problem",
    [
        lost(),
        NotLeader(GROUP),
        NotLeader(GROUP, "b"),
        Unreachable("gone"),
        NotReady("handing over"),
        NotCommitted("a new leader replaced it"),
    ],
)
@pytest.mark.parametrize("leader", ["a", "b", None])
async def test_the_same_number_is_tried_until_its_outcome_is_known(problem: MultiRaftError, leader: str | None) -> None:
    cluster = Cluster({"a": [problem, b"done"], "b": [problem, b"done"], "c": [problem, b"done"]}, leader)
    assert await router_of(cluster).call(GROUP, "session", b"x") == b"done"
    assert len(cluster.numbers) > 1
    assert {(sequence, lowest) for _, sequence, lowest in cluster.numbers} == {(1, 1)}
    assert len(set(cluster.clients)) == 1


async def test_a_halted_replica_is_passed_by() -> None:
    cluster = Cluster({"a": [Halted("here alone")], "b": [b"done"]})
    assert await router_of(cluster).call(GROUP, "session", b"x") == b"done"


async def test_a_command_that_failed_in_its_second_attempt_is_known_to_have_failed() -> None:
    cluster = Cluster({"a": [lost(), CommandFailed("ValueError", "no")]}, "a")
    with pytest.raises(CommandFailed):
        await router_of(cluster, "a").call(GROUP, "session", b"x")


@pytest.mark.parametrize("after", [SessionExpired("gone"), InvalidRequest("odd"), NotRunning("stopping")])
async def test_once_an_attempt_may_have_happened_nothing_is_certain(after: MultiRaftError) -> None:
    cluster = Cluster({"a": [lost(), after]})
    with pytest.raises(OutcomeUnknown, match="an attempt may have happened") as raised:
        await router_of(cluster, "a").call(GROUP, "session", b"x")
    assert raised.value.__cause__ is not None


@pytest.mark.parametrize("after", [NotLeader(GROUP), Overloaded("much"), Halted("it"), DeadlineExceeded("late")])
async def test_what_passes_is_waited_out_and_then_the_outcome_is_unknown(after: MultiRaftError) -> None:
    cluster = Cluster({"a": [lost(), after]})
    with pytest.raises(OutcomeUnknown, match="may have happened, or may happen yet"):
        await router_of(cluster, "a").call(GROUP, "session", b"x", 2.0)
    assert cluster.now == pytest.approx(102.0, abs=0.3)


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (Overloaded("much"), Overloaded),
        (InvalidRequest("large"), InvalidRequest),
        (Halted("everywhere"), Halted),
        (NotLeader(GROUP), NotReady),
        (ReplyForgotten("long ago"), ReplyForgotten),
    ],
)
async def test_what_certainly_did_not_happen_or_is_forgotten_is_said_so(answer: MultiRaftError, told: type) -> None:
    cluster = Cluster({name: [answer] for name in "abc"})
    with pytest.raises(told):
        await router_of(cluster).call(GROUP, "session", b"x", 2.0)


async def test_a_lost_answer_costs_half_of_the_time_and_no_more() -> None:
    cluster = Cluster({"a": [NotLeader(GROUP)], "b": [lost()], "c": [b"done"]}, "b")
    cluster.costs_s = {"b": 60.0}
    assert await router_of(cluster).call(GROUP, "session", b"x", 8.0) == b"done"
    assert cluster.timeouts[0] == 4.0
    assert cluster.now == pytest.approx(104.0, abs=0.1)


async def test_a_session_that_has_ended_is_followed_by_another_and_the_caller_does_not_notice() -> None:
    cluster = Cluster({"a": [b"1", SessionExpired("unused for long"), b"2", b"3"]})
    router = router_of(cluster)
    assert [await router.call(GROUP, "session", b"x") for _ in range(3)] == [b"1", b"2", b"3"]
    assert cluster.numbers == [("a", 1, 1), ("a", 2, 2), ("a", 1, 1), ("a", 2, 2)]
    assert cluster.clients == [cluster.registered[0]] * 2 + [cluster.registered[1]] * 2


async def test_a_group_that_ends_every_session_is_given_up_in_time() -> None:
    cluster = Cluster({"a": [SessionExpired("gone")]})
    cluster.costs_s = {"a": 0.5}
    with pytest.raises(SessionExpired):
        await router_of(cluster).call(GROUP, "session", b"x", 2.0)


async def test_a_stopping_node_ends_what_is_looked_for() -> None:
    cluster = Cluster({name: [lost()] for name in "abc"})
    router = router_of(cluster)
    call = asyncio.ensure_future(router.call(GROUP, "session", b"x"))
    for _ in range(20):
        await asyncio.sleep(0)
    assert len(cluster.numbers) > 5
    router.stop()
    with pytest.raises(OutcomeUnknown, match="stopping"):
        await call


# --------------------------------------------------------------------------------------- numbered by the program


async def test_a_program_may_number_its_commands_itself() -> None:
    cluster = Cluster({"a": [b"done"]})
    route = ServiceRoute(router_of(cluster), "s")
    client = await route.open_session()
    assert cluster.registered == [client] * 2  # in each shard
    assert await route.propose(b"k", b"x", None, Numbered(client, 7, 3)) == b"done"
    assert (cluster.numbers, cluster.clients) == ([("a", 7, 3)], [client])
    assert len(cluster.registered) == 2


async def test_a_session_of_which_a_part_is_unknown_is_begun_anew_everywhere() -> None:
    cluster = Cluster({})
    cluster.grants = [b"", lost(), b"", b""]
    client = await ServiceRoute(router_of(cluster), "s").open_session()
    assert cluster.registered[2:] == [client] * 2
    assert cluster.registered[0] == cluster.registered[1] != client


async def test_only_who_says_that_it_was_the_first_attempt_is_told_that_a_session_has_ended() -> None:
    cluster = Cluster({name: [SessionExpired("gone")] for name in "abc"})
    route = ServiceRoute(router_of(cluster), "s")
    with pytest.raises(OutcomeUnknown, match="SessionExpired: gone"):
        await route.propose(b"k", b"x", None, Numbered(b"c" * 16, 1, 1))
    with pytest.raises(SessionExpired):
        await route.propose(b"k", b"x", None, Numbered(b"c" * 16, 1, 1, first=True))
    assert cluster.registered == []


@pytest.mark.parametrize(
    "wrong", [(b"c", 1, 1), (b"c" * 16, 0, 0), (b"c" * 16, 1, 2), (b"c" * 16, WINDOW + 1, 1), (b"c" * 16, True, 1)]
)
def test_numbers_that_make_no_sense_are_refused(wrong: tuple[bytes, int, int]) -> None:
    with pytest.raises(InvalidRequest):
        Numbered(*wrong)


async def test_what_a_program_is_to_await_is_a_coroutine_whose_forgetting_python_warns_of() -> None:
    router = router_of(Cluster({}))
    calls = [
        *(router.call(GROUP, kind, b"x") for kind in ("session", "numbered", "propose")),
        *(router.call_many(GROUP, [b"x"], session) for session in (True, False)),
    ]
    assert [inspect.iscoroutine(call) for call in calls] == [True] * 5
    for call in calls:
        call.close()
