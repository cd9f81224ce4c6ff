"""Reads by lease on whole nodes (L11 to L16): at once while the lease lasts, and never beside another leader.

Each node has a real clock of its own here, which may drift within its bound, or jump because the machine slept.
"""

from __future__ import annotations

import asyncio
import functools
import itertools
from collections.abc import Callable
from dataclasses import replace
from math import inf
from typing import Any

import pytest

from multiraft import Limits, NotLeader, NotRunning
from multiraft.raft import Role

Play = Callable[..., None]
GROUP = 16
DRIFT = 0.01


def engine_of(ledgers: Any, name: str) -> Any:
    return ledgers.cluster.nodes[name]._here().engine


def core_of(ledgers: Any, name: str) -> Any:
    return engine_of(ledgers, name).replicas[GROUP].core


def holds(ledgers: Any, name: str) -> bool:
    """Whether the replica on a node would answer by lease at this moment."""
    engine = engine_of(ledgers, name)
    return bool(engine.leases.holds(engine.replicas[GROUP]))


def lease_until_s(ledgers: Any, name: str) -> float:
    engine = engine_of(ledgers, name)
    return float(engine.leases._until_s(engine.replicas[GROUP]))


async def roles(ledgers: Any) -> tuple[str, ...]:
    """Return the leader, once it has a lease, and the other nodes."""
    leader = await ledgers.leader()
    await ledgers.cluster.until(lambda: holds(ledgers, leader))
    return leader, *(name for name in ledgers.cluster.names if name != leader)


async def by_lease(ledgers: Any, name: str) -> bytes:
    """Read by lease: the answer is there at once, or the test fails."""
    leases = engine_of(ledgers, name).leases
    before = leases.reads
    asked = leases.read(GROUP, b"")
    assert asked.done()
    assert leases.reads == before + 1
    answer: bytes = await asked
    return answer


async def by_index(ledgers: Any, name: str) -> bytes:
    """Read by lease: the lease is not used, and the answer comes all the same."""
    leases = engine_of(ledgers, name).leases
    before = leases.reads
    asked = leases.read(GROUP, b"")
    assert not asked.done()
    answer: bytes = await asked
    assert leases.reads == before
    return answer


# ------------------------------------------------------------------------------------------------------ while it lasts


def test_a_leader_with_a_lease_answers_at_once_and_sees_what_was_acknowledged(play: Play) -> None:
    async def scenario(ledgers: Any) -> None:
        leader, other, _ = await roles(ledgers)
        await ledgers.services[other].propose(b"k", b"x")
        assert await by_lease(ledgers, leader) == b"x"

    play(scenario)


def test_a_lease_read_reaches_the_leader_from_every_node(play: Play) -> None:
    async def scenario(ledgers: Any) -> None:
        leader, other, _ = await roles(ledgers)
        await ledgers.services[other].propose(b"k", b"x")
        for name in (leader, other):
            assert await ledgers.services[name].read(b"k", b"", lease=True) == b"x"
            assert await ledgers.cluster.nodes[name].group(GROUP).read(b"", lease=True) == b"x"
        assert engine_of(ledgers, leader).leases.reads == 4
        assert ledgers.cluster.nodes[leader].status()["reads"]["by_lease"] == 4

    play(scenario)


def test_a_group_of_one_voter_has_a_lease_of_its_own(play: Play) -> None:
    async def scenario(ledgers: Any) -> None:
        await ledgers.services["a"].propose(b"k", b"x")
        assert await by_lease(ledgers, "a") == b"x"
        ledgers.clocks["a"].suspend(100.0)  # nobody else can have been elected meanwhile
        assert await by_lease(ledgers, "a") == b"x"

    play(scenario, names=("a",))


def test_a_follower_answers_no_lease_read_and_names_the_leader(play: Play) -> None:
    async def scenario(ledgers: Any) -> None:
        leader, other, _ = await roles(ledgers)
        with pytest.raises(NotLeader) as refused:
            engine_of(ledgers, other).leases.read(GROUP, b"")
        assert refused.value.leader == leader

    play(scenario)


def test_a_query_that_raises_ends_alike_by_lease_and_by_index(play: Play) -> None:
    async def scenario(ledgers: Any) -> None:
        await roles(ledgers)
        with pytest.raises(Exception, match="ValueError: no such question") as by_round:
            await ledgers.services["a"].read(b"k", b"!")
        with pytest.raises(type(by_round.value), match="ValueError: no such question"):
            await ledgers.services["a"].read(b"k", b"!", lease=True)

    play(scenario)


def test_a_node_that_has_stopped_answers_by_no_lease(play: Play) -> None:
    async def scenario(ledgers: Any) -> None:
        leader, *_ = await roles(ledgers)
        engine = engine_of(ledgers, leader)
        engine.stop("stopped")
        with pytest.raises(NotRunning):
            engine.leases.read(GROUP, b"")

    play(scenario)


# --------------------------------------------------------------------------------------------------- when it is over


async def watch_a_leader_cut_off(ledgers: Any) -> tuple[int, float]:
    """Cut the leader off without its knowing, until another one leads.

    Return at how many milliseconds it would have read by its lease while another one led, and for how long after the
    cut it had a lease.
    """
    cluster = ledgers.cluster
    old, *others = await roles(ledgers)
    await cluster.run_for(0.05)
    for other in others:
        cluster.network.stall(old, other)
        cluster.network.stall(other, old)
    cut_s = leased_s = asyncio.get_running_loop().time()
    beside = 0

    def look() -> bool:
        nonlocal beside, leased_s
        led = any(cluster.nodes[name].leads(GROUP) for name in others)
        if holds(ledgers, old):
            leased_s = asyncio.get_running_loop().time()
            beside += led
        return led and not holds(ledgers, old)

    await cluster.until(look)
    cluster.heal()
    return beside, leased_s - cut_s


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize(
    ("slow", "fast"),
    [(1.0, 1.0), (1.0 - DRIFT, 1.0 + DRIFT), (1.0 + DRIFT, 1.0 - DRIFT)],
    ids=["even clocks", "the leader's clock loses", "the leader's clock gains"],
)
def test_L14_a_leader_that_does_not_know_it_is_deposed_reads_by_no_lease(  # noqa: N802
    play: Play, slow: float, fast: float, seed: int
) -> None:
    """Whoever happens to lead has the clock that loses, or gains, all that the bound allows."""

    async def scenario(ledgers: Any) -> None:
        leader, *others = await roles(ledgers)
        ledgers.clocks[leader].run_at(slow)
        for name in others:
            ledgers.clocks[name].run_at(fast)
        await ledgers.cluster.run_for(2.0)
        beside, leased_s = await watch_a_leader_cut_off(ledgers)
        assert beside == 0
        assert 0.5 < leased_s < 1.0

    play(scenario, seed=seed)


def test_the_watch_over_leases_sees_clocks_beyond_the_bound(play: Play) -> None:
    """What the test above looks for does happen when clocks drift four times as far as a lease allows for."""

    async def scenario(ledgers: Any) -> None:
        leader, *_ = await roles(ledgers)
        ledgers.clocks[leader].run_at(0.25)
        await ledgers.cluster.run_for(2.0)
        beside, _ = await watch_a_leader_cut_off(ledgers)
        assert beside > 0

    play(scenario)


def test_L14_asking_another_to_take_over_ends_the_lease_for_the_whole_term(play: Play) -> None:  # noqa: N802
    """Also when the other one cannot, and this leader goes on."""

    async def scenario(ledgers: Any) -> None:
        cluster = ledgers.cluster
        leader, target, _ = await roles(ledgers)
        core = core_of(ledgers, leader)
        term = core.term
        cluster.isolate(target)
        cluster.nodes[leader].transfer_leadership(GROUP, target)
        assert not holds(ledgers, leader)
        await cluster.until(lambda: core.status()["transfer_to"] == 0)
        await ledgers.services[leader].propose(b"k", b"x")
        await cluster.run_for(3.0)
        assert (core.role, core.term) == (Role.LEADER, term)
        assert await by_index(ledgers, leader) == b"x"
        cluster.heal()

    play(scenario)


def test_L14_whoever_was_handed_the_group_has_a_lease_in_its_own_term(play: Play) -> None:  # noqa: N802
    async def scenario(ledgers: Any) -> None:
        cluster = ledgers.cluster
        leader, target, _ = await roles(ledgers)
        cluster.nodes[leader].transfer_leadership(GROUP, target)
        await cluster.until(lambda: cluster.nodes[target].leads(GROUP))
        await cluster.until(lambda: holds(ledgers, target))
        assert not holds(ledgers, leader)

    play(scenario)


def test_L15_a_leader_whose_machine_slept_asks_before_it_answers(play: Play) -> None:  # noqa: N802
    """The engine's own clock forgives the sleep, so that nobody is deposed; the lease is over all the same."""

    async def scenario(ledgers: Any) -> None:
        leader, *_ = await roles(ledgers)
        await ledgers.services[leader].propose(b"k", b"x")
        engine = engine_of(ledgers, leader)
        before = engine.pacing.now()
        ledgers.clocks[leader].suspend(10.0)
        assert not holds(ledgers, leader)
        assert engine.pacing.now() - before < 0.2
        assert await by_index(ledgers, leader) == b"x"
        assert await by_lease(ledgers, leader) == b"x"

    play(scenario)


# ------------------------------------------------------------------------------------------- what else must be there


def test_a_new_leader_reads_by_no_lease_before_it_has_committed_an_entry_of_its_term(play: Play) -> None:
    """Beats do not wait for disks: it may be heard by a quorum long before it knows what is committed."""

    async def scenario(ledgers: Any) -> None:
        cluster = ledgers.cluster
        old, *others = await roles(ledgers)
        await ledgers.services[old].propose(b"k", b"x")
        for sender, receiver in itertools.permutations(cluster.names, 2):
            cluster.network.delay(sender, receiver, 0.01)
        cluster.nodes[old].transfer_leadership(GROUP, others[0])
        core = core_of(ledgers, others[0])
        await cluster.until(lambda: core.role is Role.LEADER)
        assert not core.can_read()
        for name in cluster.names:
            cluster.disks[name].hold_writes()
        engine = engine_of(ledgers, others[0])
        await cluster.run_for(0.5)
        assert core.role is Role.LEADER
        assert lease_until_s(ledgers, others[0]) > engine.clocks.real()
        assert not holds(ledgers, others[0])
        asked = engine.leases.read(GROUP, b"")
        assert not asked.done()
        for name in cluster.names:
            cluster.disks[name].release()
        assert await asked == b"x"
        assert engine.leases.reads == 0

    play(scenario)


def test_a_leader_that_has_not_applied_what_is_committed_reads_by_no_lease(play: Play) -> None:
    async def scenario(ledgers: Any) -> None:
        leader, *_ = await roles(ledgers)
        disk, core, engine = ledgers.cluster.disks[leader], core_of(ledgers, leader), engine_of(ledgers, leader)
        disk.hold_writes()
        call = engine.propose(GROUP, b"x")
        before = core.commit
        await ledgers.cluster.until(lambda: core.commit > before)
        assert lease_until_s(ledgers, leader) > engine.clocks.real()
        asked = engine.leases.read(GROUP, b"")
        assert not asked.done()
        disk.release()
        assert (await asked, await call) == (b"x", b"1")

    play(scenario)


def test_L25_both_halves_of_a_joint_membership_must_have_been_heard(play: Play) -> None:  # noqa: N802
    """One voter is lost. What the memberships below say of it decides; each is looked at for an instant."""

    async def scenario(ledgers: Any) -> None:
        leader, heard, lost = await roles(ledgers)
        core = core_of(ledgers, leader)
        ledgers.cluster.isolate(lost)
        await ledgers.cluster.run_for(3.0)
        me, one, other = (core.membership.replica_on(name) for name in (leader, heard, lost))
        whole = core.membership

        def holds_with(**changes: Any) -> bool:
            core.membership = replace(whole, **changes)
            try:
                return holds(ledgers, leader)
            finally:
                core.membership = whole

        assert holds_with(voters=(me, one, other))
        assert holds_with(voters=(me, one), learners=(other,)), "a learner is nobody's quorum"
        assert not holds_with(voters=(me, other))
        assert not holds_with(voters=(me, one), outgoing=(me, other)), "the old half counts"
        assert not holds_with(voters=(me, other), outgoing=(me, one)), "and so does the new one"
        assert holds_with(voters=(me, one), outgoing=(me, one, other))
        assert holds_with(voters=(one,)), "a leader that is no voter relies on those that are"
        assert not holds_with(voters=(one, other)), "and counts for nothing itself"
        assert not holds_with(voters=())
        ledgers.cluster.heal()

    play(scenario)


def test_L24_a_node_that_beats_without_the_replica_counts_for_no_lease(play: Play) -> None:  # noqa: N802
    """It acknowledges every beat: for its other groups."""

    async def scenario(ledgers: Any) -> None:
        leader, heard, lost = await roles(ledgers)
        ledgers.cluster.isolate(lost)
        await ledgers.cluster.run_for(1.5)
        assert holds(ledgers, leader)
        engine = engine_of(ledgers, heard)
        engine.broke(engine.replicas[GROUP], RuntimeError("as the test says"))
        following = engine_of(ledgers, leader).following
        await ledgers.cluster.until(lambda: not holds(ledgers, leader), timeout_s=0.2)  # its next beat says so
        assert lease_until_s(ledgers, leader) == -inf
        assert following.since_s(engine_of(ledgers, leader).replicas[GROUP]) == -inf
        ledgers.cluster.heal()

    play(scenario)


def test_a_halted_leader_reads_by_no_lease(play: Play) -> None:
    async def scenario(ledgers: Any) -> None:
        leader, *_ = await roles(ledgers)
        replica = engine_of(ledgers, leader).replicas[GROUP]
        replica.halted = "as the test says"
        assert not holds(ledgers, leader)
        replica.halted = None
        assert holds(ledgers, leader)

    play(scenario)


def test_the_bound_on_drift_is_a_setting_that_shortens_the_lease(play: Play) -> None:
    async def scenario(ledgers: Any) -> None:
        _, leased_s = await watch_a_leader_cut_off(ledgers)
        assert 0.2 < leased_s < 0.55

    play(scenario, limits=Limits(clock_drift_ppm=300_000, request_timeout_ms=3_000))


def test_reads_by_lease_go_on_through_changes_of_the_leader(play: Play) -> None:
    async def scenario(ledgers: Any) -> None:
        cluster = ledgers.cluster
        for number in range(4):
            leader, *others = await roles(ledgers)
            command = b"x%d" % number
            await cluster.insist(functools.partial(ledgers.services[leader].propose, b"k", command))
            cluster.nodes[leader].transfer_leadership(GROUP, others[number % 2])
            for name in cluster.names:
                kept = await cluster.insist(functools.partial(ledgers.services[name].read, b"k", b"", lease=True))
                assert command in kept.split()

    play(scenario)
