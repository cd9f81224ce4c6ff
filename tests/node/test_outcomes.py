"""What a caller is told: the result, certainly-not, unknown, or the machine's own failure."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from multiraft import (
    CommandFailed,
    ConfigError,
    Halted,
    InvalidRequest,
    Limits,
    NotCommitted,
    NotLeader,
    NotReady,
    NotRunning,
    OutcomeUnknown,
    Overloaded,
)

Play = Callable[..., None]
GROUP = 16


def engine_of(ledgers: Any, name: str) -> Any:
    return ledgers.cluster.nodes[name]._here().engine


def test_a_command_returns_its_result_from_every_node(play: Play) -> None:
    async def scenario(ledgers: Any) -> None:
        for number, name in enumerate(ledgers.cluster.names, 1):
            assert await ledgers.services[name].propose(b"k", b"c%d" % number) == b"%d" % number
        for name in ledgers.cluster.names:
            assert await ledgers.services[name].read(b"k", b"") == b"c1 c2 c3"

    play(scenario)


def test_what_a_command_raises_goes_to_its_caller_and_the_group_goes_on(play: Play) -> None:
    async def scenario(ledgers: Any) -> None:
        for name in ledgers.cluster.names:
            with pytest.raises(CommandFailed) as caught:
                await ledgers.services[name].propose(b"k", b"!ValueError")
            assert (caught.value.exception, caught.value.detail) == ("ValueError", "not this one")
        assert await ledgers.services["a"].propose(b"k", b"x") == b"1"

    play(scenario)


def test_what_a_query_raises_goes_to_its_caller(play: Play) -> None:
    async def scenario(ledgers: Any) -> None:
        with pytest.raises(CommandFailed, match="no such question"):
            await ledgers.services["b"].read(b"k", b"!")

    play(scenario)


def test_a_follower_refuses_and_names_the_leader(play: Play) -> None:
    async def scenario(ledgers: Any) -> None:
        leader = await ledgers.leader()
        follower = next(name for name in ledgers.cluster.names if name != leader)
        with pytest.raises(NotLeader) as caught:
            engine_of(ledgers, follower).propose(GROUP, b"x")
        assert caught.value.leader == leader

    play(scenario)


def test_a_command_over_the_limit_is_refused_and_one_at_the_limit_gets_through(play: Play) -> None:
    limits = Limits(entry_bytes=300_000, key_bytes=1_000, batch_bytes=4096, frame_bytes=4096, request_timeout_ms=3_000)

    async def scenario(ledgers: Any) -> None:
        giant = b"g" * 300_000
        with pytest.raises(InvalidRequest, match="300001 bytes"):
            await ledgers.services["a"].propose(b"k", giant + b"g")
        assert await ledgers.services["a"].propose(b"k", giant) == b"1"
        leader = await ledgers.leader()
        await ledgers.cluster.until(lambda: all(ledgers.kept(name) == [giant] for name in ledgers.cluster.names))
        with pytest.raises(InvalidRequest):
            engine_of(ledgers, leader).propose(GROUP, giant + b"g")

    play(scenario, limits=limits)


def test_past_the_bound_the_caller_is_told_at_once_and_later_ones_are_served(play: Play) -> None:
    limits = Limits(entry_bytes=30_000, key_bytes=100, pending_bytes=65_536, request_timeout_ms=3_000)

    async def scenario(ledgers: Any) -> None:
        engine = engine_of(ledgers, await ledgers.leader())
        under_way = [engine.propose(GROUP, b"x" * 30_000) for _ in range(2)]
        with pytest.raises(Overloaded):
            engine.propose(GROUP, b"x" * 30_000)
        await asyncio.gather(*under_way)
        assert engine.budget.used_bytes == engine.budget.count == 0
        assert await engine.propose(GROUP, b"y" * 30_000) == b"3"

    play(scenario, limits=limits)


def test_many_commands_of_one_turn_become_several_records_without_a_gap(play: Play) -> None:
    """Batching by size never leaves a gap when a middle entry does not fit."""
    limits = Limits(batch_bytes=4096, request_timeout_ms=3_000)

    async def scenario(ledgers: Any) -> None:
        engine = engine_of(ledgers, await ledgers.leader())
        sizes = [10, 5000, 10, 10, 4000, 200, 9000, 1] * 5
        commands = [b"%04d" % number + b"." * size for number, size in enumerate(sizes)]
        results = await asyncio.gather(*[engine.propose(GROUP, command) for command in commands])
        assert results == [b"%d" % (number + 1) for number in range(len(commands))]
        await ledgers.cluster.until(lambda: all(ledgers.kept(name) == commands for name in ledgers.cluster.names))

    play(scenario, limits=limits)


def test_a_leader_cut_off_answers_unknown_and_a_replaced_command_certainly_did_not_happen(play: Play) -> None:
    async def scenario(ledgers: Any) -> None:
        cluster = ledgers.cluster
        old = await ledgers.leader()
        cluster.isolate(old)
        lost = engine_of(ledgers, old).propose(GROUP, b"lost")
        with pytest.raises(OutcomeUnknown):
            await lost
        await cluster.until(lambda: [name for name in cluster.leaders(GROUP) if name != old] != [])
        other = next(name for name in cluster.leaders(GROUP) if name != old)
        assert await engine_of(ledgers, other).propose(GROUP, b"kept") == b"1"
        cluster.heal()
        await cluster.until(lambda: all(ledgers.kept(name) == [b"kept"] for name in cluster.names))

    play(scenario)


def test_a_command_that_a_new_leader_replaced_is_not_committed(play: Play) -> None:
    limits = Limits(request_timeout_ms=60_000)

    async def scenario(ledgers: Any) -> None:
        cluster = ledgers.cluster
        old = await ledgers.leader()
        cluster.isolate(old)
        replaced = engine_of(ledgers, old).propose(GROUP, b"lost")
        await cluster.until(
            lambda: cluster.leaders(GROUP) not in ([], [old], [old, old]) and old not in cluster.leaders(GROUP)
        )
        await ledgers.services[cluster.leaders(GROUP)[0]].propose(b"k", b"kept")
        cluster.heal()
        with pytest.raises(NotCommitted, match="replaced"):
            await replaced

    play(scenario, limits=limits)


def test_a_cancelled_caller_gets_its_cancellation_and_the_group_goes_on(play: Play) -> None:
    async def scenario(ledgers: Any) -> None:
        call = asyncio.ensure_future(ledgers.services["a"].propose(b"k", b"x"))
        await asyncio.sleep(0)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        await ledgers.services["a"].propose(b"k", b"y")
        assert (await ledgers.services["a"].read(b"k", b"")).endswith(b"y")

    play(scenario)


def test_an_environmental_failure_halts_that_replica_alone(play: Play) -> None:
    async def scenario(ledgers: Any) -> None:
        cluster = ledgers.cluster
        leader = await ledgers.leader()
        machine = cluster.nodes[leader].local_machine(GROUP)

        def out_of_disk(command: bytes) -> bytes:
            raise OSError(28, "No space left on device")

        machine.apply = out_of_disk
        with pytest.raises(OutcomeUnknown):
            await engine_of(ledgers, leader).propose(GROUP, b"x")
        assert "No space left" in cluster.nodes[leader].group_status(GROUP)["halted"]
        await cluster.until(lambda: [name for name in cluster.leaders(GROUP) if name != leader] != [])
        for name in cluster.names:
            result = await cluster.insist(lambda name=name: ledgers.services[name].propose(b"k", b"y"))
            assert int(result) >= 2  # x was committed, and applied by the healthy replicas
        assert cluster.nodes[leader].status()["groups"]["halted"] == 1
        assert cluster.nodes[leader].group_status(1)["halted"] is None
        with pytest.raises((Halted, NotLeader)):
            engine_of(ledgers, leader).propose(GROUP, b"z")

    play(scenario)


def test_calls_before_the_start_and_after_the_stop_are_refused(play: Play) -> None:
    async def scenario(ledgers: Any) -> None:
        fresh = ledgers.cluster.make("a")
        for act in (fresh.status, lambda: fresh.shard_map, lambda: fresh.membership(GROUP)):
            with pytest.raises(NotRunning):
                act()
        with pytest.raises(NotRunning):
            await fresh.bytes_service("other", type(ledgers.cluster.nodes["a"].local_machine(GROUP))).propose(
                b"k", b"x"
            )
        node, service = ledgers.cluster.nodes["a"], ledgers.services["b"]
        await ledgers.cluster.stop("a")
        with pytest.raises(NotRunning):
            await node.group(GROUP).propose(b"x")
        with pytest.raises(NotRunning):
            await node.start()
        with pytest.raises(NotReady):
            node.bytes_service("late", type(ledgers.cluster.nodes["b"].local_machine(GROUP)))
        assert await ledgers.cluster.insist(lambda: service.propose(b"k", b"x")) == b"1"

    play(scenario)


def test_an_engine_that_has_ended_takes_nothing(play: Play) -> None:
    """A caller may come by between its end and that of the node: nobody would ever answer it."""

    async def scenario(ledgers: Any) -> None:
        leader = await ledgers.leader()
        engine = engine_of(ledgers, leader)
        engine.stop("the end")
        for act in (engine.propose, engine.read):
            with pytest.raises(NotRunning):
                act(GROUP, b"x")
        with pytest.raises(NotRunning):
            engine.propose_many(GROUP, [b"x"], lambda _: None)

    play(scenario)


def test_stopping_ends_every_waiting_call(play: Play) -> None:
    async def scenario(ledgers: Any) -> None:
        cluster = ledgers.cluster
        leader = await ledgers.leader()
        cluster.isolate(leader)
        proposed = engine_of(ledgers, leader).propose(GROUP, b"x")
        asked = engine_of(ledgers, leader).read(GROUP, b"")
        await ledgers.cluster.run_for(0.05)
        await cluster.stop(leader)
        with pytest.raises(OutcomeUnknown):
            await proposed
        with pytest.raises(NotCommitted):
            await asked

    play(scenario)


def test_a_follower_that_acknowledges_after_the_commit_is_told_of_it_all_the_same(play: Play) -> None:
    async def scenario(ledgers: Any) -> None:
        cluster = ledgers.cluster
        leader = await ledgers.leader()
        slow = next(name for name in cluster.names if name != leader)
        await ledgers.services[leader].propose(b"k", b"x")
        await cluster.until(lambda: all(ledgers.kept(name) == [b"x"] for name in cluster.names))
        cluster.disks[slow].hold_writes()
        await ledgers.services[leader].propose(b"k", b"y")
        await cluster.run_for(1)  # the commit is told to the other follower meanwhile
        cluster.disks[slow].release()
        await cluster.until(lambda: ledgers.kept(slow) == [b"x", b"y"], timeout_s=1)

    play(scenario)


def test_a_declaration_that_differs_is_refused_and_so_is_every_call_through_it(play: Play) -> None:
    async def scenario(ledgers: Any) -> None:
        cluster = ledgers.cluster
        machine = type(cluster.nodes["a"].local_machine(GROUP))
        await cluster.stop("a")
        handles: list[Any] = []
        cluster._declare = lambda node: handles.append(node.bytes_service("ledger", machine, initial_shards=2))
        await cluster.start("a")
        with pytest.raises(ConfigError, match="initial_shards"):
            await cluster.nodes["a"].ready()
        with pytest.raises(ConfigError, match="initial_shards"):
            await handles[0].propose(b"k", b"x")
        assert await ledgers.services["b"].propose(b"k", b"x") == b"1"

    play(scenario)


def test_a_group_that_commits_nothing_takes_no_more_than_its_bound(play: Play) -> None:
    """Requirement 19: callers that gave up do not make room; what they have left in the log still counts."""
    limits = Limits(request_timeout_ms=100, uncommitted_bytes=65_536, entry_bytes=60_000, election_timeout_ms=10_000)

    async def scenario(ledgers: Any) -> None:
        cluster = ledgers.cluster
        leader = await ledgers.leader()
        engine = engine_of(ledgers, leader)
        for name in cluster.names:
            if name != leader:
                cluster.disks[name].hold_writes()
        unknown = overloaded = 0
        for _ in range(30):
            asked = engine.propose(GROUP, b"x" * 10_000)
            try:
                await asked
            except OutcomeUnknown:
                unknown += 1
            except Overloaded:
                overloaded += 1
        assert (unknown, overloaded) == (6, 24)
        core = engine.replicas[GROUP].core
        assert core.uncommitted_bytes <= 65_536
        for name in cluster.names:
            cluster.disks[name].release()
        await cluster.until(lambda: core.uncommitted_bytes == 0)
        assert await engine.propose(GROUP, b"y") == b"7"

    play(scenario, limits=limits)
