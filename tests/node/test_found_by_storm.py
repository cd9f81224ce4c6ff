"""What storms and hostile reading found in whole nodes.

A follower that came to a group late and never caught up, calls that nobody ended, leaders that could not serve and
stayed, and ends that were not complete.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import Any

import pytest

from multiraft import Limits, MultiRaftError, NotRunning, OutcomeUnknown, ReadFailed, StorageError

Play = Callable[..., None]
GROUP = 16


def engine_of(ledgers: Any, name: str) -> Any:
    return ledgers.cluster.nodes[name]._here().engine


async def formed(ledgers: Any) -> None:
    """Wait until every node is part of the cluster; no service has been declared then."""
    cluster = ledgers.cluster
    await cluster.until(lambda: all(node._here().store.identity.formed for node in cluster.nodes.values()))


async def kept_on(ledgers: Any, name: str, commands: list[bytes]) -> None:
    """Wait until the replica on `name` exists and has applied exactly these."""
    await ledgers.cluster.until(lambda: GROUP in engine_of(ledgers, name).replicas)
    await ledgers.cluster.until(lambda: ledgers.kept(name) == commands, timeout_s=10.0)


# ------------------------------------------------------------------------------------------- followers that are late


@pytest.mark.usefixtures("nobody_asks_after")
def test_a_replica_that_is_created_after_its_leader_was_elected_catches_up(play: Play) -> None:
    """The leader's first append found no replica there; nothing but the replica's own word could make it ask again."""

    async def scenario(ledgers: Any) -> None:
        cluster = ledgers.cluster
        await formed(ledgers)
        cluster.disks["c"].delay_s = lambda: 0.3
        await cluster.ready()
        await ledgers.services["a"].propose(b"k", b"x")
        await kept_on(ledgers, "c", [b"x"])

    play(scenario, ready=False)


def test_a_replica_whose_node_was_down_when_the_service_was_declared_catches_up(play: Play) -> None:
    async def scenario(ledgers: Any) -> None:
        cluster = ledgers.cluster
        await formed(ledgers)
        cluster.crash("c")
        await cluster.nodes["a"].ready()
        await ledgers.services["a"].propose(b"k", b"x")
        await cluster.start("c")
        await kept_on(ledgers, "c", [b"x"])

    play(scenario, ready=False)


@pytest.mark.usefixtures("nobody_asks_after")
def test_an_answer_that_is_due_before_its_connection_is_up_is_given_when_it_is(play: Play) -> None:
    """A leader asks as soon as it is dialled; the answer may be ready before the dialler hears that it is connected."""

    async def scenario(ledgers: Any) -> None:
        cluster = ledgers.cluster
        leader = await ledgers.leader()
        follower = next(name for name in cluster.names if name != leader)
        outgoing = engine_of(ledgers, follower).outgoing
        outgoing.reach(leader, False)
        await ledgers.services[leader].propose(b"k", b"x")
        await cluster.run_for(0.2)

        def lag() -> int:
            rows = cluster.nodes[leader].group_status(GROUP)["replicas"]
            return sum(row["lag"] for row in rows if row["node_id"] == follower)

        assert lag() > 0
        outgoing.reach(leader, True)
        await cluster.until(lambda: lag() == 0, timeout_s=2.0)

    play(scenario)


# -------------------------------------------------------------------------------------------- calls that nobody ended


def test_every_read_of_a_leader_that_cannot_commit_ends_in_time(play: Play) -> None:
    """Reads that wait for the leader's own first commit; a later one joined those whose time had run out."""

    async def scenario(ledgers: Any) -> None:
        cluster = ledgers.cluster
        old = await ledgers.leader()
        new = next(name for name in cluster.names if name != old)
        for sender in cluster.names:
            for receiver in cluster.names:
                if sender != receiver:
                    cluster.network.delay(sender, receiver, 0.01)
        cluster.nodes[old].transfer_leadership(GROUP, new)
        await cluster.until(lambda: cluster.nodes[new].leads(GROUP))
        for name in cluster.names:
            if name != new:
                cluster.disks[name].hold_writes()
        for _ in range(3):
            read = engine_of(ledgers, new).read(GROUP, b"")
            await asyncio.wait({read}, timeout=4.0)
            assert read.done()
            assert isinstance(read.exception(), ReadFailed)
        for name in cluster.names:
            cluster.disks[name].release()
        assert await cluster.insist(lambda: ledgers.services[new].read(b"k", b"")) == b""

    play(scenario, limits=Limits(request_timeout_ms=1_000))


def test_a_stop_ends_the_calls_that_look_for_a_leader_elsewhere(play: Play) -> None:
    async def scenario(ledgers: Any) -> None:
        cluster = ledgers.cluster
        hosts = cluster.nodes["a"].shard_map.groups[GROUP]
        outsider = next(name for name in cluster.names if name not in hosts)
        cluster.crash(*hosts)
        calls = [
            asyncio.ensure_future(ledgers.services[outsider].propose(b"k", b"x", 30.0)),
            asyncio.ensure_future(ledgers.services[outsider].read(b"k", b"", 30.0)),
            asyncio.ensure_future(cluster.nodes[outsider].ready(timeout_s=30.0)),
        ]
        await cluster.run_for(0.5)
        await cluster.stop(outsider)
        done, _ = await asyncio.wait(calls, timeout=0.5)
        assert len(done) == 3
        assert all(isinstance(call.exception(), NotRunning) for call in calls)

    play(scenario, names="abcde")


def test_L23_a_leader_whose_entries_reach_nobody_gives_up_though_its_beats_flow(play: Play) -> None:  # noqa: N802
    async def scenario(ledgers: Any) -> None:
        cluster = ledgers.cluster
        leader = await ledgers.leader()
        others = [name for name in "abc" if name != leader]
        for other in others:
            cluster.network.drop_next_bulk(leader, other, 1_000_000)
        with contextlib.suppress(MultiRaftError):
            await cluster.nodes[leader].group(ledgers.GROUP).propose(b"1", timeout_s=0.5)
        assert cluster.leaders(ledgers.GROUP) == [leader]
        await cluster.until(lambda: cluster.leaders(ledgers.GROUP) not in ([], [leader]), timeout_s=15.0)
        await cluster.insist(lambda: ledgers.services[others[0]].propose(b"k", b"2"))

    play(scenario)


def test_a_leader_whose_disk_has_stalled_gives_up_though_its_beats_still_flow(play: Play) -> None:
    async def scenario(ledgers: Any) -> None:
        cluster = ledgers.cluster
        old = await ledgers.leader()
        other = next(name for name in cluster.names if name != old)
        cluster.disks[old].hold_writes()
        with pytest.raises(OutcomeUnknown):
            await ledgers.services[old].propose(b"k", b"x", session=False)
        await cluster.until(lambda: cluster.leaders(GROUP) not in ([], [old]), timeout_s=6.0)
        await cluster.insist(lambda: ledgers.services[other].propose(b"k", b"y"), timeout_s=1.0)
        cluster.disks[old].release()
        await kept_on(ledgers, old, [b"x", b"y"])

    play(scenario)


def test_a_slow_disk_alone_costs_no_leadership(play: Play) -> None:
    """Each write takes long, and there is always one under way, but none for as long as a stall."""

    async def scenario(ledgers: Any) -> None:
        cluster = ledgers.cluster
        leader = await ledgers.leader()
        for name in cluster.names:
            cluster.disks[name].delay_s = lambda: 0.9
        for number in range(30):
            engine_of(ledgers, leader).propose(GROUP, b"%d" % number)
            await cluster.run_for(0.5)
        assert cluster.leaders(GROUP) == [leader]

    play(scenario)


# ------------------------------------------------------------------------------------------------------------- ends


def test_a_stop_under_load_drops_what_still_gathers_without_an_exception(play: Play) -> None:
    escaped: list[Any] = []

    async def scenario(ledgers: Any) -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, context: escaped.append(context))
        cluster = ledgers.cluster
        leader = await ledgers.leader()
        engine = engine_of(ledgers, leader)
        cluster.disks[leader].hold_writes()
        calls = []
        for number in range(12):  # more turns than writes may be under way: the last ones gather
            calls.append(engine.propose(GROUP, b"%d" % number))
            await cluster.run_for(0.01)
        stop = asyncio.ensure_future(cluster.stop(leader))
        await cluster.run_for(0.1)
        cluster.disks[leader].release()
        await stop
        assert all(isinstance(call.exception(), OutcomeUnknown) for call in calls)

    play(scenario)
    assert escaped == []


def test_a_stop_after_a_failed_write_returns_when_the_store_is_closed(play: Play) -> None:
    """Who starts the node again at once must not find the store in use."""

    async def scenario(ledgers: Any) -> None:
        cluster = ledgers.cluster
        leader = await ledgers.leader()
        node, disk = cluster.nodes[leader], cluster.disks[leader]
        disk.fail_next_write(OSError(5, "Input/output error"))
        with pytest.raises(OutcomeUnknown):
            await ledgers.services[leader].propose(b"k", b"x", session=False)
        disk.hold_completions()
        stop = asyncio.ensure_future(node.stop())
        await cluster.run_for(0.1)
        assert disk.in_use
        assert not stop.done()
        disk.release()
        await stop
        assert not disk.in_use
        with pytest.raises(StorageError):
            await node.failed()
        await cluster.start(leader)

    play(scenario)


@pytest.mark.parametrize("name", ["a", "b", "c"])
def test_a_failed_write_while_the_cluster_forms_ends_the_node(play: Play, name: str) -> None:
    """It is not the engine's writer that writes then; the failure stayed with the connection, and the node ran on."""
    escaped: list[Any] = []

    async def scenario(ledgers: Any) -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, context: escaped.append(context))
        cluster = ledgers.cluster
        node = cluster.nodes[name]
        cluster.disks[name].fail_next_write(OSError(28, "No space left on device"))
        async with asyncio.timeout(5.0):
            with pytest.raises(StorageError, match="No space left"):
                await node.failed()
        del cluster.nodes[name]
        await cluster.start(name)
        await cluster.ready()

    play(scenario, ready=False)
    assert escaped == []
