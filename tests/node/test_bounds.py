"""Whole nodes beside a follower that is slow or gone, or a disk that fails: memory is bounded, and no entry appears."""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import Any

import pytest

from multiraft import Limits, MultiRaftError, OutcomeUnknown
from multiraft.testing import MemoryCluster

Play = Callable[..., None]
GROUP = 16


def engine_of(ledgers: Any, name: str) -> Any:
    return ledgers.cluster.nodes[name]._here().engine


def core_of(ledgers: Any, name: str) -> Any:
    return engine_of(ledgers, name).replicas[GROUP].core


@pytest.mark.parametrize("how", ["dead", "cut off", "its disk stalls", "its disk is slow"])
def test_memory_stays_bounded_however_slow_a_follower_is_and_it_catches_up(play: Play, how: str) -> None:
    """Requirement 19."""
    limits = Limits(
        request_timeout_ms=3_000, log_cache_bytes=0, inflight_messages=8, inflight_bytes=65_536, batch_bytes=4_096
    )

    async def scenario(ledgers: Any) -> None:
        cluster: MemoryCluster = ledgers.cluster
        leader = await ledgers.leader()
        slow = next(name for name in cluster.names if name != leader)
        await cluster.insist(lambda: ledgers.services[leader].propose(b"k", b"first"))
        if how == "dead":
            cluster.crash(slow)
        elif how == "cut off":
            cluster.isolate(slow)
        elif how == "its disk stalls":
            cluster.disks[slow].hold_writes()
        else:
            cluster.disks[slow].delay_s = lambda: 0.5
        engine, core = engine_of(ledgers, leader), core_of(ledgers, leader)
        for number in range(200):
            await engine.propose(GROUP, b"%03d" % number + b"x" * 3_000)
            inflight = [peer.inflight_bytes for peer in core.progress.values()]
            assert max(inflight) <= 65_536 + 4_096
            # What memory keeps is what is not applied yet, and the smallest of caches.
            assert core.log.size_bytes <= 16_384 + 4_096
        assert engine.budget.used_bytes == 0
        if how == "dead":
            await cluster.start(slow)
        cluster.heal()
        cluster.disks[slow].release()
        cluster.disks[slow].delay_s = None
        await cluster.until(lambda: len(ledgers.kept(slow)) == 201)
        assert ledgers.kept(slow) == ledgers.kept(leader)

    play(scenario, limits=limits)


@pytest.mark.parametrize("names", ["a", "abc"])
def test_what_a_failed_write_would_have_stored_is_nowhere_before_and_after_a_restart(play: Play, names: str) -> None:
    """Requirement 21: a failing write, a read, a restart: no phantom entry."""

    async def scenario(ledgers: Any) -> None:
        cluster: MemoryCluster = ledgers.cluster
        leader = await ledgers.leader()
        engine, core = engine_of(ledgers, leader), core_of(ledgers, leader)
        assert await engine.propose(GROUP, b"kept") == b"1"
        for name in names:  # nobody else may store it either
            if name != leader:
                cluster.disks[name].hold_writes()
        cluster.disks[leader].fail_next_write(OSError(errno.EIO, "Input/output error"))
        stable, machine = core.log.stable, cluster.nodes[leader].local_machine(GROUP)
        phantom = engine.propose(GROUP, b"phantom")
        with pytest.raises(OutcomeUnknown):
            await phantom
        with pytest.raises(MultiRaftError):
            await ledgers.services[leader].read(b"k", b"")
        assert (core.log.stable, core.commit, vars(machine)) == (stable, stable, {"kept": [b"kept"]})
        with pytest.raises(MultiRaftError):
            await cluster.nodes[leader].failed()
        cluster.crash()
        await cluster.start()
        await cluster.insist(lambda: ledgers.services[names[-1]].propose(b"k", b"later"))
        await cluster.until(lambda: all(ledgers.kept(name) == [b"kept", b"later"] for name in names))

    play(scenario, names=names)
