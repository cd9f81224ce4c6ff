"""Linearizable reads from the replica on the node that is asked, whoever leads."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable
from math import inf
from typing import Any

import pytest

from multiraft import (
    BytesStateMachine,
    CommandFailed,
    Halted,
    Limits,
    NotCommitted,
    NotReady,
    NotRunning,
    Overloaded,
    ReadFailed,
)
from multiraft.adapting import adapt

Play = Callable[..., None]
GROUP = 16


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


def at_once(ledgers: Any, name: str, stale_s: float) -> tuple[bytes, float] | None:
    """The same where the answer is there at once; None, and nobody waits, where it is not."""
    following = following_of(ledgers, name)
    asked = following.read_stale(GROUP, b"", stale_s)
    if not asked.done():
        asked.cancel()
        return None
    seen = asked.result()
    return seen.answer, following.age_s(seen.since_s)


# --------------------------------------------------------------------------------------------------------- follower


def test_every_replica_sees_what_was_acknowledged_before_it_was_asked(play: Play) -> None:
    """The followers are told of a commit later than the caller: what they have applied alone would be too old."""

    async def scenario(ledgers: Any) -> None:
        leader, *others = await roles(ledgers)
        delay_all(ledgers, 0.01)
        for number in range(3):
            await engine_of(ledgers, leader).propose(GROUP, b"x%d" % number)
            expected = b" ".join(b"x%d" % each for each in range(number + 1))
            assert all(ledgers.kept(name) != expected.split() for name in others)
            for name in (*others, leader):
                assert await local(ledgers, name) == expected

    play(scenario)


def test_a_read_that_comes_while_a_question_is_under_way_waits_for_the_next_one(play: Play) -> None:
    """The index that is on its way was taken before the command that this read must see."""

    async def scenario(ledgers: Any) -> None:
        leader, follower, _ = await roles(ledgers)
        for sender, receiver in ((leader, follower), (follower, leader)):
            ledgers.cluster.network.delay(sender, receiver, 0.1)
        await ledgers.cluster.run_for(1.0)
        following = following_of(ledgers, follower)
        early = following.read(GROUP, b"")
        await ledgers.cluster.run_for(0.15)
        await engine_of(ledgers, leader).propose(GROUP, b"x")
        late = following.read(GROUP, b"")
        assert (await early).answer in (b"", b"x")
        assert not late.done()
        assert (await late).answer == b"x"
        assert following.asked == 2

    play(scenario)


def test_one_question_serves_all_readers_of_all_groups_that_a_node_leads(play: Play) -> None:
    async def scenario(ledgers: Any) -> None:
        groups = range(GROUP, GROUP + 12)
        await ledgers.cluster.until(lambda: all(len(ledgers.cluster.leaders(each)) == 1 for each in groups))
        await ledgers.cluster.run_for(1.0)
        following = following_of(ledgers, "a")
        leaders = {ledgers.cluster.leaders(each)[0] for each in groups} - {"a"}
        assert leaders
        asked = [following.read(each, b"") for each in groups for _ in range(20)]
        waiting = {"by_lease": 0, "questions": 0, "waiting_here": 240}
        assert ledgers.cluster.nodes["a"].status()["reads"] == waiting
        await asyncio.gather(*asked)
        assert following.asked == len(leaders)
        told = {"by_lease": 0, "questions": len(leaders), "waiting_here": 0}
        assert ledgers.cluster.nodes["a"].status()["reads"] == told
        assert following.budget.used_bytes == following.budget.count == 0

    play(scenario, shards=12)


def test_a_replica_cut_off_answers_no_local_read_and_says_so_in_time(play: Play) -> None:
    async def scenario(ledgers: Any) -> None:
        _, follower, other = await roles(ledgers)
        ledgers.cluster.isolate(follower)
        await ledgers.services[other].propose(b"k", b"x")
        began_s = now_s()
        async with asyncio.timeout(10.0):
            with pytest.raises(ReadFailed, match="group 16"):
                await local(ledgers, follower)
        assert now_s() - began_s < 3.5
        assert following_of(ledgers, follower).budget.used_bytes == 0
        asked = following_of(ledgers, follower).read(GROUP, b"")
        ledgers.cluster.heal()
        assert (await asked).answer == b"x"

    play(scenario)


def test_a_leader_that_has_lost_its_quorum_gives_no_index(play: Play) -> None:
    """A follower on its side of the partition would otherwise answer from a past that both share."""

    async def scenario(ledgers: Any) -> None:
        cluster = ledgers.cluster
        old, beside, *others = await roles(ledgers)
        for near, far in itertools.product((old, beside), others):
            cluster.network.stall(near, far)
            cluster.network.stall(far, near)
        asked = following_of(ledgers, beside).read(GROUP, b"")
        await cluster.run_for(0.5)
        assert cluster.nodes[old].leads(GROUP)
        assert not asked.done()
        await cluster.until(lambda: any(cluster.nodes[name].leads(GROUP) for name in others))
        new = next(name for name in others if cluster.nodes[name].leads(GROUP))
        await engine_of(ledgers, new).propose(GROUP, b"x")
        asked_after = following_of(ledgers, beside).read(GROUP, b"")
        await cluster.run_for(1.0)
        assert not asked.done()
        assert not asked_after.done()
        cluster.heal()
        assert (await asked_after).answer == b"x"
        await asked

    limits = Limits(request_timeout_ms=30_000)
    play(scenario, names=("a", "b", "c", "d", "e"), replicas=5, limits=limits)


def test_a_local_read_waits_until_the_index_is_applied_here(play: Play) -> None:
    async def scenario(ledgers: Any) -> None:
        leader, follower, _ = await roles(ledgers)
        ledgers.cluster.disks[follower].hold_writes()
        await engine_of(ledgers, leader).propose(GROUP, b"x")
        asked = following_of(ledgers, follower).read(GROUP, b"")
        await ledgers.cluster.run_for(1.0)
        assert not asked.done()
        ledgers.cluster.disks[follower].release()
        assert (await asked).answer == b"x"
        assert following_of(ledgers, follower).asked == 1

    play(scenario)


def test_a_local_read_whose_index_comes_in_a_snapshot_is_answered_then(play: Play) -> None:
    async def scenario(ledgers: Any) -> None:
        leader, follower, _ = await roles(ledgers)
        ledgers.cluster.isolate(follower)
        for number in range(50):
            await engine_of(ledgers, leader).propose(GROUP, b"x%d" % number)
        asked = following_of(ledgers, follower).read(GROUP, b"")
        ledgers.cluster.heal()
        assert len((await asked).answer.split()) == 50
        assert replica_of(ledgers, follower).core.snapshot_index > 0

    limits = Limits(request_timeout_ms=10_000, snapshot_entries=20, trailing_entries=0)
    play(scenario, limits=limits)


def test_a_learner_answers_local_reads_and_is_no_part_of_the_lease(play: Play) -> None:
    async def scenario(ledgers: Any) -> None:
        cluster = ledgers.cluster
        leader = await ledgers.leader()
        await cluster.nodes[leader].group(GROUP).add("d", voter=False)
        await cluster.until(lambda: GROUP in engine_of(ledgers, "d").replicas)
        await engine_of(ledgers, leader).propose(GROUP, b"x")
        assert await local(ledgers, "d") == b"x"
        assert at_once(ledgers, "d", 1.0) is not None
        cluster.isolate("d")
        await cluster.run_for(3.0)
        assert engine_of(ledgers, leader).leases.holds(replica_of(ledgers, leader))
        cluster.heal()

    play(scenario, names="abcd")


def test_a_node_whose_replica_was_removed_has_the_leader_answer(play: Play) -> None:
    """Also a read that waits here in that very moment ends, and is asked of the leader."""

    async def scenario(ledgers: Any) -> None:
        cluster = ledgers.cluster
        leader, follower, _ = await roles(ledgers)
        await engine_of(ledgers, leader).propose(GROUP, b"x")
        cluster.disks[follower].hold_writes()
        await engine_of(ledgers, leader).propose(GROUP, b"y")
        waits = asyncio.ensure_future(ledgers.services[follower].read(b"k", b"", local=True))
        await cluster.run_for(0.1)
        assert replica_of(ledgers, follower).local.idle is False
        removing = asyncio.ensure_future(cluster.nodes[leader].group(GROUP).remove(follower))
        await cluster.run_for(0.1)
        cluster.disks[follower].release()
        await removing
        await cluster.until(lambda: GROUP not in engine_of(ledgers, follower).replicas)
        assert await waits == b"x y"
        assert await ledgers.services[follower].read(b"k", b"", local=True) == b"x y"
        assert (await ledgers.services[follower].read_stale(b"k", b"", 60_000))[0] == b"x y"

    play(scenario, limits=Limits(request_timeout_ms=30_000))


def test_local_reads_go_on_when_the_leader_that_was_asked_is_lost(play: Play) -> None:
    async def scenario(ledgers: Any) -> None:
        cluster = ledgers.cluster
        leader, follower, _ = await roles(ledgers)
        await engine_of(ledgers, leader).propose(GROUP, b"x")
        delay_all(ledgers, 0.01)
        asked = following_of(ledgers, follower).read(GROUP, b"")
        await cluster.run_for(0.005)  # the question is on its way
        cluster.crash(leader)
        async with asyncio.timeout(10.0):
            assert (await asked).answer == b"x"

    play(scenario, limits=Limits(request_timeout_ms=30_000))


def test_a_halted_replica_refuses_and_the_leader_answers_in_its_place(play: Play) -> None:
    async def scenario(ledgers: Any) -> None:
        leader, follower, _ = await roles(ledgers)

        class Failing(BytesStateMachine):
            def apply(self, command: bytes) -> bytes:
                raise OSError("the environment failed")

        ledgers.cluster.disks[follower].hold_writes()
        await engine_of(ledgers, leader).propose(GROUP, b"x")
        asked = following_of(ledgers, follower).read(GROUP, b"")
        await ledgers.cluster.run_for(0.2)
        replica_of(ledgers, follower).machine = adapt(Failing())
        ledgers.cluster.disks[follower].release()
        with pytest.raises(Halted, match="the environment failed"):
            await asked
        with pytest.raises(Halted, match="the environment failed"):
            following_of(ledgers, follower).read(GROUP, b"")
        with pytest.raises(Halted):
            following_of(ledgers, follower).read_stale(GROUP, b"", inf)
        assert await ledgers.services[follower].read(b"k", b"", local=True) == b"x"

    play(scenario)


def test_without_a_replica_or_a_running_node_there_is_no_local_read(play: Play) -> None:
    async def scenario(ledgers: Any) -> None:
        following, engine = following_of(ledgers, "a"), engine_of(ledgers, "a")
        with pytest.raises(NotReady, match="group 99 has no replica on node 'a'"):
            following.read(99, b"")
        ledgers.cluster.isolate("a")
        await ledgers.cluster.run_for(3.0)
        asked = following.read(GROUP, b"")
        engine.stop("stopped by the test")
        with pytest.raises(NotCommitted, match="stopped by the test"):
            await asked
        with pytest.raises(NotRunning):
            following.read(GROUP, b"")

    play(scenario)


def test_what_a_local_query_raises_reaches_its_caller(play: Play) -> None:
    async def scenario(ledgers: Any) -> None:
        await roles(ledgers)
        for name in ledgers.cluster.names:
            with pytest.raises(CommandFailed, match="no such question"):
                await ledgers.services[name].read(b"k", b"!", local=True)
            with pytest.raises(CommandFailed, match="no such question"):
                await ledgers.services[name].read_stale(b"k", b"!", 60_000)

    play(scenario)


def test_waiting_local_reads_are_bounded_in_bytes(play: Play) -> None:
    async def scenario(ledgers: Any) -> None:
        _, follower, _ = await roles(ledgers)
        ledgers.cluster.isolate(follower)
        following = following_of(ledgers, follower)
        query = b"?" * 1_000
        asked = [following.read(GROUP, query) for _ in range(61)]  # 64 KiB, at 1,064 bytes each
        with pytest.raises(Overloaded):
            following.read(GROUP, query)
        await asyncio.gather(*asked, return_exceptions=True)
        assert following.budget.used_bytes == 0
        following.read(GROUP, query).cancel()

    play(scenario, limits=Limits(request_timeout_ms=1_000, pending_bytes=64 * 1024, entry_bytes=4_096))


def test_a_caller_that_leaves_is_left_alone(play: Play) -> None:
    async def scenario(ledgers: Any) -> None:
        _, follower, _ = await roles(ledgers)
        following = following_of(ledgers, follower)
        gone, stays = following.read(GROUP, b""), following.read(GROUP, b"")
        gone.cancel()
        assert (await stays).answer == b""
        assert gone.cancelled()

    play(scenario)


@pytest.mark.parametrize("body", [b"", b"\xc1", b"\x01", b"\x91\xa1x", b"\xdd\xff\xff\xff\xff"])
def test_a_question_that_is_none_is_refused(play: Play, body: bytes) -> None:
    async def scenario(ledgers: Any) -> None:
        answers: list[bytes] = []
        ledgers.cluster.nodes["a"]._here().request_received("b", "read_index", body, 1.0, answers.append)
        assert len(answers) == 1
        assert b"InvalidRequest" in answers[0]

    play(scenario)
