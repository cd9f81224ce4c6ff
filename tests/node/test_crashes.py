"""What power cuts can break: every acknowledged write survives them, and no promise outruns the disk."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from random import Random
from typing import Any

import pytest

from multiraft import Limits, MultiRaftError
from multiraft.testing import run_virtual

Play = Callable[..., None]
GROUP = 16
SEEDS = range(25)
SHORT = Limits(request_timeout_ms=3_000, snapshot_entries=6, trailing_entries=2)


async def storm(ledgers: Any, rng: Random, writers: int, crashes: int) -> set[bytes]:
    """Write while nodes lose their power at random moments; return what was acknowledged."""
    cluster = ledgers.cluster
    acknowledged: set[bytes] = set()
    running = True

    for name in cluster.names:
        cluster.disks[name].delay_s = lambda: rng.uniform(0.0, 0.004)
        for other in cluster.names:
            if other != name:
                cluster.network.delay(name, other, lambda: rng.uniform(0.0, 0.003))

    async def writer(number: int) -> None:
        count = 0
        while running:
            command = b"w%d-%d" % (number, count)
            count += 1
            try:
                await ledgers.services[rng.choice(cluster.names)].propose(b"k", command, timeout_s=1.0)
            except MultiRaftError:
                await ledgers.cluster.run_for(0.01)
            else:
                acknowledged.add(command)
                await ledgers.cluster.run_for(rng.uniform(0.0, 0.05))

    tasks = [asyncio.ensure_future(writer(number)) for number in range(writers)]
    for _ in range(crashes):
        await ledgers.cluster.run_for(rng.uniform(0.2, 2.5))
        victims = rng.choice([list(cluster.nodes), [rng.choice(list(cluster.nodes))]])
        cluster.crash(*victims, keep=rng.randrange(3))
        await ledgers.cluster.run_for(rng.uniform(0.0, 1.0))
        for name in victims:
            await cluster.start(name)
    running = False
    await asyncio.gather(*tasks)
    await cluster.ready()
    return acknowledged


async def what_survived(ledgers: Any) -> list[bytes]:
    """Wait until all replicas have applied the same log, check that, and return its commands."""
    cluster = ledgers.cluster
    await cluster.insist(lambda: ledgers.services["a"].propose(b"k", b"last"))
    await cluster.until(lambda: all(ledgers.kept(name)[-1:] == [b"last"] for name in cluster.names))
    logs = [ledgers.kept(name) for name in cluster.names]
    assert logs[0] == logs[1] == logs[2]
    return list(logs[0])


@pytest.mark.parametrize("seed", SEEDS)
def test_every_acknowledged_write_survives_power_cuts(play: Play, seed: int) -> None:
    async def scenario(ledgers: Any) -> None:
        acknowledged = await storm(ledgers, Random(seed), writers=4, crashes=4)
        survived = await what_survived(ledgers)
        assert len(acknowledged) > 20
        assert acknowledged <= set(survived), f"lost: {sorted(acknowledged - set(survived))[:5]}"
        assert len(survived) == len(set(survived)), "a command was applied twice"

    play(scenario, seed=seed, limits=(Limits(), SHORT)[seed % 2])


def test_a_disk_that_acknowledges_before_it_syncs_is_caught(play: Play) -> None:
    """The test above can fail: on disks that lie about their sync it finds acknowledged writes missing."""
    lost = 0

    async def scenario(ledgers: Any) -> None:
        nonlocal lost
        for number in range(20):
            await ledgers.services["a"].propose(b"k", b"w%d" % number)
        ledgers.cluster.crash()
        await ledgers.cluster.start()
        await ledgers.cluster.ready()
        lost = 20 - len(set(await what_survived(ledgers)) - {b"last"})

    # Everything is lost, the cluster's own founding included, so the nodes may not even come back.
    try:
        play(scenario, sync=False)
    except (MultiRaftError, TimeoutError):
        lost = 20
    assert lost > 0


def test_no_acknowledgement_before_a_quorum_has_synced(play: Play) -> None:
    async def scenario(ledgers: Any) -> None:
        cluster = ledgers.cluster
        leader = await ledgers.leader()
        followers = [name for name in cluster.names if name != leader]
        for name in followers:
            cluster.disks[name].hold_writes()
        call = asyncio.ensure_future(ledgers.services[leader].propose(b"k", b"x"))
        await ledgers.cluster.run_for(0.5)
        assert not call.done()
        cluster.disks[followers[0]].release()
        assert await call == b"1"

    play(scenario)


def test_the_leader_answers_only_what_its_own_disk_has(play: Play) -> None:
    async def scenario(ledgers: Any) -> None:
        cluster = ledgers.cluster
        leader = await ledgers.leader()
        cluster.disks[leader].hold_writes()
        call = asyncio.ensure_future(ledgers.services[leader].propose(b"k", b"x"))
        await ledgers.cluster.run_for(0.5)
        assert not call.done()
        cluster.disks[leader].release()
        assert await call == b"1"

    play(scenario)


def test_nobody_is_elected_while_votes_are_not_on_disk(play: Play) -> None:
    async def scenario(ledgers: Any) -> None:
        cluster = ledgers.cluster
        leader = await ledgers.leader()
        survivors = [name for name in cluster.names if name != leader]
        cluster.crash(leader)
        for name in survivors:
            cluster.disks[name].hold_writes()
        await ledgers.cluster.run_for(20)
        assert cluster.leaders(GROUP) == []
        for name in survivors:
            cluster.disks[name].release()
        assert await ledgers.leader() in survivors

    play(scenario)


def test_a_vote_is_not_given_twice_in_a_term_across_a_crash(play: Play) -> None:
    """A voter that loses its power before its vote is synced must not have told anybody."""

    async def scenario(ledgers: Any) -> None:
        cluster = ledgers.cluster
        leader = await ledgers.leader()
        first, second = (name for name in cluster.names if name != leader)
        term = cluster.nodes[first].group_status(GROUP)["term"]
        cluster.crash(leader)
        cluster.disks[second].hold_writes()  # it can neither vote nor campaign for good
        await ledgers.cluster.run_for(10)
        assert cluster.leaders(GROUP) == []
        cluster.crash(second)
        await cluster.start(second)
        await cluster.start(leader)
        await cluster.ready()
        assert cluster.nodes[first].group_status(GROUP)["term"] > term
        assert await cluster.insist(lambda: ledgers.services[second].propose(b"k", b"x")) == b"1"

    play(scenario)


def test_a_failed_write_ends_the_node_and_acknowledges_nothing(play: Play) -> None:
    async def scenario(ledgers: Any) -> None:
        cluster = ledgers.cluster
        leader = await ledgers.leader()
        node, service = cluster.nodes[leader], ledgers.services[leader]
        cluster.disks[leader].fail_next_write(OSError(5, "Input/output error"))
        with pytest.raises(MultiRaftError):
            await service.propose(b"k", b"x")
        with pytest.raises(MultiRaftError, match="Input/output error"):
            await node.failed()
        with pytest.raises(MultiRaftError, match=r"not running|ended"):
            node.status()
        del cluster.nodes[leader]
        other = next(iter(cluster.nodes))
        await cluster.insist(lambda: ledgers.services[other].propose(b"k", b"y"))
        await cluster.start(leader)
        await cluster.ready()
        assert b"y" in await cluster.insist(lambda: ledgers.services[leader].read(b"k", b""))

    play(scenario)


def test_a_single_node_acknowledges_only_after_its_own_sync(play: Play) -> None:
    async def scenario(ledgers: Any) -> None:
        cluster = ledgers.cluster
        cluster.disks["a"].hold_writes()
        call = asyncio.ensure_future(ledgers.services["a"].propose(b"k", b"x"))
        await ledgers.cluster.run_for(0.5)
        assert not call.done()
        cluster.disks["a"].release()
        assert await call == b"1"
        cluster.crash()
        await cluster.start()
        await cluster.ready()
        assert await ledgers.services["a"].read(b"k", b"") == b"x"

    play(scenario, names=("a",))


def test_term_and_votes_survive_the_crash_of_all_nodes_at_once(play: Play) -> None:
    async def scenario(ledgers: Any) -> None:
        cluster = ledgers.cluster
        for _ in range(5):
            await ledgers.leader()
            before = {name: cluster.nodes[name].group_status(GROUP)["term"] for name in cluster.names}
            cluster.crash()
            await cluster.start()
            await cluster.ready()
            for name in cluster.names:
                assert cluster.nodes[name].group_status(GROUP)["term"] >= before[name]

    play(scenario, limits=Limits(request_timeout_ms=3_000))


def test_the_same_seed_gives_the_same_run(play: Play) -> None:
    """Time, disk, network and chance all come from the seed, so that a failure can be replayed."""

    def run() -> list[tuple[float, int]]:
        seen: list[tuple[float, int]] = []

        async def scenario(ledgers: Any) -> None:
            acknowledged = await storm(ledgers, Random(7), writers=3, crashes=2)
            seen.append((asyncio.get_running_loop().time(), len(acknowledged)))

        play(scenario, seed=7)
        return seen

    assert run() == run()
    assert run_virtual(_seconds_of_virtual_time(3.0)) == pytest.approx(3.0)


async def _seconds_of_virtual_time(seconds: float) -> float:
    loop = asyncio.get_running_loop()
    before_s = loop.time()
    passed = loop.create_future()
    loop.call_later(seconds, passed.set_result, None)
    await passed
    return loop.time() - before_s
