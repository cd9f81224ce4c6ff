"""Stale reads from the replica on the node that is asked: at once where it is fresh, and no older than they say."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable
from typing import Any

import pytest

from multiraft import NotCommitted

Play = Callable[..., None]
GROUP = 16
DRIFT = 0.01


def engine_of(ledgers: Any, name: str) -> Any:
    return ledgers.cluster.nodes[name]._here().engine


def following_of(ledgers: Any, name: str) -> Any:
    return engine_of(ledgers, name).following


def replica_of(ledgers: Any, name: str, group_id: int = GROUP) -> Any:
    return engine_of(ledgers, name).replicas[group_id]


def now_s() -> float:
    return asyncio.get_running_loop().time()


async def roles(ledgers: Any) -> tuple[str, ...]:
    """Return the leader, once all others follow it and have its whole log, and the others."""
    leader = await ledgers.leader()
    others = [name for name in ledgers.cluster.names if name != leader]
    core = replica_of(ledgers, leader).core
    cores = [replica_of(ledgers, name).core for name in others]
    await ledgers.cluster.until(
        lambda: (
            core.can_read()
            and all(each.leader == core.replica_id for each in cores)
            and all(peer.match == core.last_index for peer in core.progress.values())
        )
    )
    return leader, *others


def delay_all(ledgers: Any, delay_s: float) -> None:
    for sender, receiver in itertools.permutations(ledgers.cluster.names, 2):
        ledgers.cluster.network.delay(sender, receiver, delay_s)


async def local(ledgers: Any, name: str) -> bytes:
    seen = await following_of(ledgers, name).read(GROUP, b"")
    return bytes(seen.answer)


async def stale(ledgers: Any, name: str, stale_s: float) -> tuple[bytes, float]:
    """Return what the replica on a node answers, and its age in seconds."""
    following = following_of(ledgers, name)
    seen = await following.read_stale(GROUP, b"", stale_s)
    return seen.answer, following.age_s(seen.since_s)


def at_once(ledgers: Any, name: str, stale_s: float) -> tuple[bytes, float] | None:
    """The same where the answer is there at once; None, and nobody waits, where it is not."""
    following = following_of(ledgers, name)
    asked = following.read_stale(GROUP, b"", stale_s)
    if not asked.done():
        asked.cancel()
        return None
    seen = asked.result()
    return seen.answer, following.age_s(seen.since_s)


def test_a_replica_that_is_fresh_enough_answers_at_once_and_asks_nobody(play: Play) -> None:
    async def scenario(ledgers: Any) -> None:
        _, follower, _ = await roles(ledgers)
        following = following_of(ledgers, follower)
        assert at_once(ledgers, follower, 60.0) is None, "a replica that never asked knows no age"
        await local(ledgers, follower)
        began_s, asked = now_s(), following.asked
        for _ in range(3):
            await ledgers.cluster.run_for(0.1)
            found = at_once(ledgers, follower, 0.4)
            assert found is not None
            assert found[1] == pytest.approx((now_s() - began_s) / (1 - DRIFT), abs=0.01)
        assert following.asked == asked

    play(scenario)


def test_a_replica_that_is_too_old_asks_and_the_answer_is_linearizable(play: Play) -> None:
    async def scenario(ledgers: Any) -> None:
        leader, follower, _ = await roles(ledgers)
        await local(ledgers, follower)
        await ledgers.cluster.run_for(1.0)
        asked = following_of(ledgers, follower).asked
        delay_all(ledgers, 0.05)
        await engine_of(ledgers, leader).propose(GROUP, b"x")
        answer, age_s = await stale(ledgers, follower, 0.5)
        assert answer == b"x"
        assert 0.1 <= age_s < 0.3  # two round trips: to the leader, and its own to a quorum
        assert following_of(ledgers, follower).asked == asked + 1
        assert at_once(ledgers, follower, 0.5) is not None

    play(scenario)


def test_the_age_of_a_replica_cut_off_grows_with_the_time(play: Play) -> None:
    """It counts from when the leader was asked, not from when its answer came or was applied."""

    async def scenario(ledgers: Any) -> None:
        leader, follower, _ = await roles(ledgers)
        delay_all(ledgers, 0.05)
        await ledgers.cluster.run_for(1.0)
        asked_s = now_s()
        await local(ledgers, follower)
        assert now_s() - asked_s >= 0.1
        ledgers.cluster.isolate(follower)
        await engine_of(ledgers, leader).propose(GROUP, b"x")
        for _ in range(3):
            await ledgers.cluster.run_for(2.0)
            found = at_once(ledgers, follower, 60.0)
            assert found is not None
            assert found[0] == b""
            assert now_s() - asked_s <= found[1] <= (now_s() - asked_s) * 1.02
        with pytest.raises(NotCommitted):
            await stale(ledgers, follower, 1.0)
        ledgers.cluster.heal()

    play(scenario)


def test_a_machine_that_slept_has_grown_older_meanwhile(play: Play) -> None:
    async def scenario(ledgers: Any) -> None:
        leader, follower, _ = await roles(ledgers)
        await local(ledgers, follower)
        for name in (leader, follower):
            ledgers.clocks[name].suspend(10.0)
            assert at_once(ledgers, name, 9.0) is None
            found = at_once(ledgers, name, 11.0)
            assert found is not None
            assert found[1] > 10.0

    play(scenario)


@pytest.mark.parametrize("rate", [1.0 - DRIFT, 1.0, 1.0 + DRIFT])
def test_the_age_allows_for_the_drift_of_the_clock_that_measures_it(play: Play, rate: float) -> None:
    async def scenario(ledgers: Any) -> None:
        _, follower, _ = await roles(ledgers)
        ledgers.clocks[follower].run_at(rate)
        await local(ledgers, follower)
        began_s = now_s()
        await ledgers.cluster.run_for(5.0)
        found = at_once(ledgers, follower, 60.0)
        assert found is not None
        assert found[1] >= now_s() - began_s

    play(scenario)


def test_a_leader_is_as_old_as_the_beats_that_a_quorum_has_acknowledged(play: Play) -> None:
    """No round is needed, and no lease: also a clock that is far off cannot make it wrong."""

    async def scenario(ledgers: Any) -> None:
        leader, *others = await roles(ledgers)
        delay_all(ledgers, 0.02)
        await ledgers.cluster.run_for(1.0)
        ages = []
        for _ in range(30):
            await ledgers.cluster.run_for(0.01)
            found = at_once(ledgers, leader, 0.3)
            assert found is not None
            ages.append(found[1])
        assert 0.04 <= min(ages) < max(ages) < 0.3  # at least a round trip old
        cut_s = now_s()
        for other in others:
            ledgers.cluster.network.stall(other, leader)
        await ledgers.cluster.run_for(0.8)
        found = at_once(ledgers, leader, 60.0)
        assert found is not None
        assert found[1] >= now_s() - cut_s
        assert engine_of(ledgers, leader).leases.reads == 0
        ledgers.cluster.heal()

    play(scenario)


def test_a_leader_that_has_not_applied_all_that_others_may_have_seen_asks_before_it_answers(play: Play) -> None:
    async def scenario(ledgers: Any) -> None:
        leader, follower, _ = await roles(ledgers)
        disk, core = ledgers.cluster.disks[leader], replica_of(ledgers, leader).core
        disk.hold_writes()
        call = engine_of(ledgers, leader).propose(GROUP, b"x")
        before = core.commit
        await ledgers.cluster.until(lambda: core.commit > before)
        assert await local(ledgers, follower) == b"x", "its follower has, and shows it"
        await ledgers.cluster.run_for(0.2)
        assert at_once(ledgers, leader, 0.5) is None
        disk.release()
        await call
        await ledgers.cluster.run_for(0.2)
        assert at_once(ledgers, leader, 0.2) is not None

    play(scenario)


def test_a_restarted_replica_knows_no_age_until_it_has_asked(play: Play) -> None:
    async def scenario(ledgers: Any) -> None:
        cluster = ledgers.cluster
        leader, follower, _ = await roles(ledgers)
        await engine_of(ledgers, leader).propose(GROUP, b"x")
        await local(ledgers, follower)
        assert at_once(ledgers, follower, 60.0) is not None
        cluster.crash(follower)
        cluster.isolate(follower)
        await cluster.start(follower)
        await cluster.run_for(1.0)
        assert at_once(ledgers, follower, 60.0) is None
        cluster.heal()
        assert (await stale(ledgers, follower, 60.0))[0] == b"x"

    play(scenario)


def test_stale_reads_of_services_and_groups_tell_their_age(play: Play) -> None:
    async def scenario(ledgers: Any) -> None:
        _, follower, _ = await roles(ledgers)
        service, node = ledgers.services[follower], ledgers.cluster.nodes[follower]
        await service.propose(b"k", b"x")
        answer, first_ms = await service.read_stale(b"k", b"", 500)
        assert (answer, first_ms < 100) == (b"x", True)
        await ledgers.cluster.run_for(0.3)
        answer, age_ms = await node.group(GROUP).read_stale(b"", 500)
        assert answer == b"x"
        assert age_ms == pytest.approx(first_ms + 300 / (1 - DRIFT), abs=20)
        assert await node.group(GROUP).read(b"", local=True) == b"x"

    play(scenario)
