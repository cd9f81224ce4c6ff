"""Many commands of one group: what is sent again, under which numbers, and what is said of each in the end."""

from __future__ import annotations

import asyncio
from asyncio import Future
from collections.abc import Callable
from typing import TypeAlias

import pytest

from multiraft.errors import (
    CommandFailed,
    DeadlineExceeded,
    Halted,
    InvalidRequest,
    MultiRaftError,
    NotCommitted,
    NotLeader,
    NotReady,
    OutcomeUnknown,
    Overloaded,
    ReadFailed,
    SessionExpired,
    Unreachable,
    WrongShard,
)
from multiraft.outcome import Outcome, decode_commands, encode_outcomes
from multiraft.sessions import HEAD, WINDOW
from multiraft.shard import Router, ServiceRoute
from multiraft.types import GroupId, NodeId
from tests.shard.test_session import GROUP, router_of

Script: TypeAlias = "list[list[Outcome] | MultiRaftError]"


class Cluster:
    """Node "a" of a cluster: what each node answers next to many commands; its last answer is repeated.

    asked  (node, what it was asked for as "sequence:command", or "command" where they have no number) in order
    """

    node_id: NodeId = "a"

    def __init__(self, answers: dict[NodeId, Script], leader: NodeId | None = "a") -> None:
        self.answers = answers
        self.leader = leader
        self.asked: list[tuple[NodeId, str]] = []
        self.clients: list[bytes] = []
        self.now = 100.0
        self.cost_s = 0.0

    def leads(self, group_id: GroupId) -> bool:
        return self.leader == self.node_id

    def leader_hint(self, group_id: GroupId) -> NodeId | None:
        return self.leader

    def ask_local(self, group_id: GroupId, kind: str, body: bytes, timeout_s: float) -> Future[bytes]:
        return self._packed(self.node_id, kind, body)

    def forward(self, node_id: NodeId, kind: str, group_id: GroupId, body: bytes, timeout_s: float) -> Future[bytes]:
        assert node_id != self.node_id
        return self._packed(node_id, kind, body)

    def _packed(self, node_id: NodeId, kind: str, body: bytes) -> Future[bytes]:
        future: Future[bytes] = asyncio.get_running_loop().create_future()
        if kind == "register":
            future.set_result(b"")
            return future
        assert kind in ("propose many", "numbered many", "read many")
        try:
            future.set_result(encode_outcomes(self._said(node_id, decode_commands(body), kind == "numbered many")))
        except MultiRaftError as problem:
            future.set_exception(problem)
        return future

    def read_many_local(self, group_id: GroupId, queries: list[bytes], timeout_s: float) -> Future[list[Outcome]]:
        return self.propose_many_local(group_id, queries, False, timeout_s)

    def propose_many_local(
        self, group_id: GroupId, entries: list[bytes], numbered: bool, timeout_s: float
    ) -> Future[list[Outcome]]:
        future: Future[list[Outcome]] = asyncio.get_running_loop().create_future()
        future.set_result(self._said(self.node_id, entries, numbered))
        return future

    def submit_local(
        self, group_id: GroupId, entries: list[bytes], numbered: bool, told: Callable[[list[Outcome]], None]
    ) -> None:
        asyncio.get_running_loop().call_soon(told, self._said(self.node_id, entries, numbered))

    def _said(self, node_id: NodeId, entries: list[bytes], numbered: bool) -> list[Outcome]:
        self.now += self.cost_s
        if numbered:
            heads = [HEAD.unpack_from(entry) for entry in entries]
            self.clients += [client for client, _, _ in heads]
            asked = [f"{head[1]}:{entry[HEAD.size :].decode()}" for head, entry in zip(heads, entries, strict=True)]
        else:
            asked = [entry.decode() for entry in entries]
        self.asked.append((node_id, " ".join(asked)))
        script = self.answers[node_id]
        found = script.pop(0) if len(script) > 1 else script[0]
        if isinstance(found, MultiRaftError):
            raise found
        return found[: len(entries)]

    async def sleep(self, delay_s: float) -> None:
        self.now += delay_s
        await asyncio.sleep(0)


async def submitted(router: Router, commands: list[bytes], session: bool) -> list[Outcome]:
    """Submit, and wait for what is told."""
    told: Future[list[Outcome]] = asyncio.get_running_loop().create_future()
    router.submit(GROUP, commands, session, None, told.set_result)
    return await told


async def called(router: Router, commands: list[bytes], session: bool) -> list[Outcome]:
    return await router.call_many(GROUP, commands, session)


BOTH = pytest.mark.parametrize("bring", [called, submitted])
Bring: TypeAlias = "Callable[[Router, list[bytes], bool], Future[list[Outcome]]]"


@BOTH
async def test_where_this_node_leads_all_go_at_once(bring: Bring) -> None:
    cluster = Cluster({"a": [[b"1", b"2"]]})
    assert await bring(router_of(cluster), [b"x", b"y"], False) == [b"1", b"2"]
    assert cluster.asked == [("a", "x y")]


@BOTH
async def test_only_what_did_not_happen_and_may_yet_is_sent_again(bring: Bring) -> None:
    lost, refused = OutcomeUnknown("lost"), InvalidRequest("no")
    cluster = Cluster({"a": [[b"1", NotReady("soon"), lost, refused, NotLeader(GROUP, "b")]], "b": [[b"2", b"5"]]})
    outcomes = await bring(router_of(cluster), [b"v", b"w", b"x", b"y", b"z"], False)
    assert outcomes == [b"1", b"2", lost, refused, b"5"]
    assert cluster.asked == [("a", "v w x y z"), ("b", "w z")]


@BOTH
async def test_with_a_number_what_may_have_happened_is_sent_again_under_the_same(bring: Bring) -> None:
    script: Script = [[b"1", OutcomeUnknown("lost"), NotCommitted("replaced")], [b"2", OutcomeUnknown("lost")], [b"3"]]
    cluster = Cluster({"a": script, "b": [NotLeader(GROUP, "a")], "c": [NotLeader(GROUP, "a")]})
    router = router_of(cluster)
    assert await bring(router, [b"x", b"y", b"z"], True) == [b"1", b"2", b"3"]
    assert [asked for node, asked in cluster.asked if node == "a"] == ["1:x 2:y 3:z", "2:y 3:z", "3:z"]
    cluster.answers["a"] = [[b"4"]]
    assert await bring(router, [b"w"], True) == [b"4"]
    assert cluster.asked[-1] == ("a", "4:w")
    session = router.sessions.opened(GROUP)
    assert session is not None
    assert (session.lowest, session.next, session.outstanding) == (5, 5, set())


@BOTH
async def test_once_an_attempt_may_have_happened_nothing_is_certain(bring: Bring) -> None:
    script: Script = [[OutcomeUnknown("lost"), b"2"], [InvalidRequest("no")]]
    cluster = Cluster({"a": script, "b": [Unreachable("gone")], "c": [Unreachable("gone")]})
    outcomes = await bring(router_of(cluster), [b"x", b"y"], True)
    assert type(outcomes[0]) is OutcomeUnknown
    assert outcomes[1] == b"2"


@BOTH
async def test_that_one_may_have_happened_says_nothing_of_another(bring: Bring) -> None:
    cluster = Cluster({"a": [[OutcomeUnknown("lost"), InvalidRequest("no")], [b"1"]]})
    for name in "bc":
        cluster.answers[name] = [NotLeader(GROUP, "a")]
    outcomes = await bring(router_of(cluster), [b"x", b"y"], True)
    assert outcomes[0] == b"1"
    assert type(outcomes[1]) is InvalidRequest


@BOTH
async def test_those_of_a_session_that_has_ended_are_numbered_anew_and_no_others(bring: Bring) -> None:
    cluster = Cluster({"a": [[b"0"], [b"1", SessionExpired("gone"), SessionExpired("gone")], [b"2", b"3"]]})
    router = router_of(cluster)
    await bring(router, [b"w"], True)
    assert await bring(router, [b"x", b"y", b"z"], True) == [b"1", b"2", b"3"]
    assert cluster.asked[1:] == [("a", "2:x 3:y 4:z"), ("a", "1:y 2:z")]
    assert len(set(cluster.clients)) == 2


async def test_what_is_lost_on_the_way_is_unknown_for_the_whole_and_for_no_more() -> None:
    cluster = Cluster({"b": [OutcomeUnknown("lost")]}, leader="b")
    outcomes = await called(router_of(cluster), [b"x", b"y"], False)
    assert [type(outcome) for outcome in outcomes] == [OutcomeUnknown] * 2
    assert cluster.asked == [("b", "x y")]


async def test_a_node_that_only_knows_the_leader_sends_them_on_in_pieces() -> None:
    cluster = Cluster({"b": [[b"1"], [b"2"], NotLeader(GROUP, "c")], "c": [[b"3"]]}, leader="b")
    router = router_of(cluster)
    big = "x" * router.limits.batch_bytes
    commands = [f"{number}{big}".encode() for number in range(3)]
    assert await called(router, commands, False) == [b"1", b"2", b"3"]
    assert [(node, asked[:1]) for node, asked in cluster.asked] == [("b", "0"), ("b", "1"), ("b", "2"), ("c", "2")]


@pytest.mark.parametrize(("session", "late"), [(False, DeadlineExceeded), (True, OutcomeUnknown)])
async def test_when_the_time_is_up_each_is_told_so(session: bool, late: type[MultiRaftError]) -> None:
    problem = OutcomeUnknown("lost") if session else NotReady("soon")
    cluster = Cluster({name: [[b"1", problem]] for name in "abc"})
    for name in "abc":
        cluster.answers[name].append([problem])
    cluster.cost_s = 1.0
    outcomes = await called(router_of(cluster), [b"x", b"y"], session)
    assert outcomes[0] == b"1"
    assert isinstance(outcomes[1], late) or (not session and isinstance(outcomes[1], NotReady))


async def test_a_leader_that_has_halted_is_said_so_at_once() -> None:
    halted = Halted("damaged")
    cluster = Cluster({name: [halted] for name in "abc"}, leader="b")
    outcomes = await called(router_of(cluster), [b"x"], False)
    assert isinstance(outcomes[0], Halted)
    assert len(cluster.asked) == 3


@BOTH
async def test_more_than_a_session_may_have_outstanding_are_refused(bring: Bring) -> None:
    cluster = Cluster({"a": [[b"1"] * (WINDOW + 1)]})
    router = router_of(cluster)
    try:
        outcomes = await bring(router, [b"x"] * (WINDOW + 1), True)
    except Overloaded as problem:
        outcomes = [problem]
    assert {type(outcome) for outcome in outcomes} == {Overloaded}
    assert not cluster.asked
    assert await bring(router, [b"x"] * WINDOW, True) == [b"1"] * WINDOW


async def test_a_callback_that_raises_is_logged_and_its_numbers_end(caplog: pytest.LogCaptureFixture) -> None:
    cluster = Cluster({"a": [[b"1"]]})
    router = router_of(cluster)
    await called(router, [b"x"], True)
    told: list[list[Outcome]] = []

    def raises(outcomes: list[Outcome]) -> None:
        told.append(outcomes)
        raise ValueError("mine")

    router.submit(GROUP, [b"y"], True, None, raises)
    await asyncio.sleep(0)
    assert told == [[b"1"]]
    assert "a callback of submitted commands raised" in caplog.text
    session = router.sessions.opened(GROUP)
    assert session is not None
    assert session.lowest == 3


# ------------------------------------------------------------------------------------------------------ by key


async def test_the_keys_say_which_group_gets_what() -> None:
    cluster = Cluster({"a": [[b"1", b"2"], [b"3"]]})
    service = ServiceRoute(router_of(cluster), "s")
    assert await service.propose_many([b"a", b"z", b"b"], [b"x", b"y", b"w"], None, False) == [b"1", b"3", b"2"]
    assert cluster.asked == [("a", "x w"), ("a", "y")]
    assert await service.propose_many([], [], None, False) == []


async def test_what_a_shard_refuses_for_its_range_is_routed_by_a_newer_map() -> None:
    cluster = Cluster({"a": [[b"1", WrongShard("moved")], [b"2"]]})
    router = router_of(cluster)
    service = ServiceRoute(router, "s")
    call = asyncio.ensure_future(service.propose_many([b"a", b"b"], [b"x", b"y"], None, False))
    for _ in range(3):
        await asyncio.sleep(0)
    assert not call.done()
    router.update(type(router.map)(router.map.version + 1, router.map.services, router.map.groups))
    assert await call == [b"1", b"2"]
    assert cluster.asked == [("a", "x y"), ("a", "y")]


async def test_what_one_group_cannot_be_sent_is_said_of_its_commands_alone() -> None:
    cluster = Cluster({"a": [[b"1"]]})
    router = router_of(cluster)
    service = ServiceRoute(router, "s")
    await service.propose_many([b"a"], [b"x"], None, True)
    session = router.sessions.opened(GROUP)
    assert session is not None
    session.begin_many(WINDOW)
    outcomes = await service.propose_many([b"a", b"z"], [b"x", b"y"], None, True)
    assert isinstance(outcomes[0], Overloaded)
    assert outcomes[1] == b"1"


# ----------------------------------------------------------------------------------------------------- many queries


@pytest.mark.parametrize("leader", ["a", "b"])
async def test_many_queries_go_at_once_to_whoever_leads(leader: NodeId) -> None:
    cluster = Cluster({leader: [[b"1", b"2"]]}, leader=leader)
    assert await router_of(cluster).read_many(GROUP, [b"x", b"y"]) == [b"1", b"2"]
    assert cluster.asked == [(leader, "x y")]


async def test_a_query_is_asked_again_whatever_became_of_it() -> None:
    """Not so a command without a number, of which OutcomeUnknown is the last word."""
    lost: list[Outcome] = [b"1", OutcomeUnknown("lost"), CommandFailed("ValueError", "no"), NotLeader(GROUP, "b")]
    cluster = Cluster({"a": [lost, [NotLeader(GROUP, "b")] * 2], "b": [[b"2", b"4"]]})
    told = await router_of(cluster).read_many(GROUP, [b"w", b"x", b"y", b"z"])
    assert (told[:2], type(told[2]), told[3]) == ([b"1", b"2"], CommandFailed, b"4")
    assert [asked for _, asked in cluster.asked][-1] == "x z"
    assert [asked for _, asked in cluster.asked].count("w x y z") == 1


async def test_queries_that_nobody_answers_in_time_say_why() -> None:
    cluster = Cluster({node_id: [ReadFailed("no quorum")] for node_id in "abc"})
    cluster.cost_s = 0.3
    told = await router_of(cluster).read_many(GROUP, [b"x", b"y"], 1.0)
    assert [type(one) for one in told] == [DeadlineExceeded] * 2
    assert "no quorum" in str(told[0])
