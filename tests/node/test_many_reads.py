"""Many queries at once on whole nodes: from any node, each with its own outcome, and all linearizable."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from multiraft import BytesStateMachine, CommandFailed, Limits, NotCommitted, NotLeader, Overloaded, ReadFailed
from tests.node.test_sessions import others

Play = Callable[..., None]
GROUP = 16


class Counted(BytesStateMachine):
    """Keeps every command; says how many, and what was asked of it; refuses to answer "no"."""

    def __init__(self) -> None:
        self.kept: list[bytes] = []
        self.asked: list[bytes] = []

    def apply(self, command: bytes) -> bytes:
        self.kept.append(command)
        return b"%d" % len(self.kept)

    def query(self, query: bytes) -> bytes:
        self.asked.append(query)
        if query == b"no":
            raise ValueError("not this one")
        return query + b"%d" % len(self.kept)


@pytest.mark.parametrize("here", [True, False])
def test_each_query_has_its_own_outcome_in_order_from_any_node(play: Play, here: bool) -> None:
    async def scenario(ledgers: Any) -> None:
        leader, other, _ = await others(ledgers)
        group = ledgers.cluster.nodes[leader if here else other].group(GROUP)
        await group.propose(b"a")
        outcomes = await group.read_many([b"x", b"no", b"y"])
        assert outcomes[0::2] == [b"x1", b"y1"]
        assert isinstance(outcomes[1], CommandFailed)
        assert await group.read_many([]) == []

    play(scenario, machine=Counted)


@pytest.mark.parametrize("here", [True, False])
def test_many_queries_see_what_was_acknowledged_before_them(play: Play, here: bool) -> None:
    async def scenario(ledgers: Any) -> None:
        leader, other, _ = await others(ledgers)
        nodes = ledgers.cluster.nodes
        group = nodes[leader if here else other].group(GROUP)
        for number in range(1, 10):
            await nodes[other if here else leader].group(GROUP).propose(b"x")
            assert await group.read_many([b"", b""]) == [b"%d" % number] * 2

    play(scenario, machine=Counted)


def test_a_leader_cut_off_answers_none_of_many_from_its_past(play: Play) -> None:
    async def scenario(ledgers: Any) -> None:
        cluster = ledgers.cluster
        leader, *rest = await others(ledgers)
        cluster.isolate(leader)
        asked = asyncio.ensure_future(cluster.nodes[leader].group(GROUP).read_many([b"", b""], 1.0))
        single = asyncio.ensure_future(cluster.nodes[leader].group(GROUP).read(b"", 1.0))
        await cluster.until(lambda: any(cluster.nodes[name].leads(GROUP) for name in rest))
        assert all(isinstance(one, NotCommitted) for one in await asked)
        with pytest.raises(NotCommitted):
            await single

    play(scenario, machine=Counted)


def test_queries_of_one_turn_share_a_round_and_those_given_up_are_not_asked(play: Play) -> None:
    async def scenario(ledgers: Any) -> None:
        leader, *_ = await others(ledgers)
        node = ledgers.cluster.nodes[leader]
        group = node.group(GROUP)
        await group.propose(b"a")
        engine = node._running.engine
        machine = node.local_machine(GROUP)
        machine.asked.clear()
        rounds = engine.liveness._round
        calls = [asyncio.ensure_future(group.read(b"%d:" % number)) for number in range(5)]
        many = asyncio.ensure_future(group.read_many([b"x", b"y"]))
        await asyncio.sleep(0)  # all have begun, and their turn has not come
        calls[1].cancel()
        assert await asyncio.gather(*calls, return_exceptions=True) != []
        assert [call.cancelled() for call in calls] == [False, True, False, False, False]
        assert [call.result() for call in calls if not call.cancelled()] == [b"0:1", b"2:1", b"3:1", b"4:1"]
        assert await many == [b"x1", b"y1"]
        assert machine.asked == [b"0:", b"2:", b"3:", b"4:", b"x", b"y"]
        assert engine.liveness._round == rounds + 1

    play(scenario, machine=Counted)


def test_a_node_that_has_stopped_takes_no_query(play: Play) -> None:
    async def scenario(ledgers: Any) -> None:
        leader, *_ = await others(ledgers)
        engine = ledgers.cluster.nodes[leader]._running.engine
        begun = engine.reading.begin(GROUP, b"")
        engine.stop("the test ends it")
        assert isinstance(begun.exception(), NotCommitted)
        assert engine.reading.begin(GROUP, b"") is None

    play(scenario, machine=Counted)


def test_a_read_that_comes_after_others_have_failed_in_the_same_turn_has_its_own_outcome(play: Play) -> None:
    async def scenario(ledgers: Any) -> None:
        leader, *_ = await others(ledgers)
        engine = ledgers.cluster.nodes[leader]._running.engine
        failed = engine.read(GROUP, b"x")
        engine.replicas[GROUP].fail_reads(lambda: ReadFailed("the test fails it"))
        answered = engine.read(GROUP, b"y")
        assert isinstance(failed.exception(), ReadFailed)
        async with asyncio.timeout(5.0):
            assert await answered == b"y0"

    play(scenario, machine=Counted)


def test_reads_that_no_quorum_confirms_in_time_fail_and_later_ones_do_not(play: Play) -> None:
    """Not the caller's patience ends here, but the engine's, which answers all of them at once."""

    async def scenario(ledgers: Any) -> None:
        cluster = ledgers.cluster
        leader, *followers = await others(ledgers)
        engine = cluster.nodes[leader]._running.engine
        for name in followers:
            cluster.network.delay(name, leader, 0.9)
        await cluster.run_for(0.1)
        early = [engine.read(GROUP, b""), engine.read(GROUP, b"")]
        told: list[Any] = []
        engine.reading.begin_many(GROUP, [b"", b""], told.extend)
        await cluster.run_for(0.7)
        assert [type(future.exception()) for future in early] == [ReadFailed] * 2
        assert [type(one) for one in told] == [ReadFailed] * 2
        assert len({id(one) for one in told}) == 2
        for name in followers:
            cluster.network.delay(name, leader, 0.0)
        async with asyncio.timeout(5.0):
            while True:
                try:
                    assert await engine.read(GROUP, b"z") == b"z0"
                    break
                except NotCommitted:
                    await asyncio.sleep(0.1)
                    engine = next(node._running.engine for node in cluster.nodes.values() if node.leads(GROUP))

    play(scenario, machine=Counted, limits=Limits(request_timeout_ms=500))


def test_waiting_queries_are_bounded_in_bytes_and_each_gives_its_room_back(play: Play) -> None:
    async def scenario(ledgers: Any) -> None:
        cluster = ledgers.cluster
        leader, _, _ = await others(ledgers)
        cluster.isolate(leader)  # so that none is confirmed
        engine = cluster.nodes[leader]._here().engine
        query = b"?" * 1_000
        singly = [engine.read(GROUP, query) for _ in range(31)]  # 64 KiB hold 61, at 1,064 bytes each
        together: list[Any] = []
        engine.reading.begin_many(GROUP, [query] * 30, together.extend)
        assert engine.query_budget.count == 61
        with pytest.raises(Overloaded, match="bytes of queries are waiting"):
            engine.read(GROUP, query)
        with pytest.raises(Overloaded, match="bytes of queries are waiting"):
            engine.reading.begin_many(GROUP, [query], together.extend)
        outcomes = await asyncio.gather(*singly, return_exceptions=True)
        assert {type(outcome) for outcome in outcomes + together} <= {ReadFailed, NotLeader}
        assert len(together) == 30
        assert (engine.query_budget.used_bytes, engine.query_budget.count) == (0, 0)
        cluster.network.heal()
        await cluster.ready()
        await cluster.nodes[leader].group(GROUP).read_many([query] * 61)
        assert (engine.query_budget.used_bytes, engine.query_budget.count) == (0, 0)

    play(scenario, machine=Counted, limits=Limits(request_timeout_ms=1_000, pending_bytes=64 * 1024, entry_bytes=4_096))
