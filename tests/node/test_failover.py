"""Failover of many groups: leaders are spread, terms stay put without need, and everything comes back."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Coroutine
from typing import Any

from multiraft import BytesStateMachine, Limits, Node
from multiraft.testing import MemoryCluster, run_virtual

GROUPS = range(16, 76)


class Nothing(BytesStateMachine):
    def apply(self, command: bytes) -> bytes:
        return b""

    def query(self, query: bytes) -> bytes:
        return b""


def declare(node: Node) -> None:
    node.bytes_service("many", Nothing, initial_shards=len(GROUPS))


def play(scenario: Callable[[MemoryCluster], Coroutine[Any, Any, None]], seed: int = 1) -> None:
    async def main() -> None:
        async with MemoryCluster(declare, seed=seed, limits=Limits(request_timeout_ms=3_000)) as cluster:
            await cluster.ready()
            await scenario(cluster)

    run_virtual(main())


def led(cluster: MemoryCluster) -> Counter[str]:
    return Counter(name for name, node in cluster.nodes.items() for group in GROUPS if node.leads(group))


def terms(cluster: MemoryCluster, name: str) -> dict[int, int]:
    return {group: cluster.nodes[name].group_status(group)["term"] for group in GROUPS}


def test_first_leaders_are_spread_evenly() -> None:
    async def scenario(cluster: MemoryCluster) -> None:
        assert max(led(cluster).values()) <= 1.3 * len(GROUPS) / 3

    play(scenario)


def test_what_a_lost_node_led_is_up_again_within_three_election_timeouts_and_mostly_spread() -> None:
    """A survivor whose deadline comes more than half a timeout earlier than the other's takes all; that is rare."""
    spread = 0

    async def scenario(cluster: MemoryCluster) -> None:
        nonlocal spread
        before = led(cluster)
        cluster.crash("a")
        await cluster.until(lambda: sum(led(cluster).values()) == len(GROUPS), timeout_s=3.0)
        gained = led(cluster) - before
        spread += min(gained["b"], gained["c"]) >= before["a"] / 5

    for seed in range(10):
        play(scenario, seed)
    assert spread >= 7


def test_a_node_that_was_cut_off_changes_no_term_when_it_returns() -> None:
    async def scenario(cluster: MemoryCluster) -> None:
        cluster.isolate("c")
        await cluster.until(lambda: led(cluster)["a"] + led(cluster)["b"] == len(GROUPS))
        await cluster.run_for(30.0)
        before = terms(cluster, "a")
        cluster.heal()
        await cluster.until(lambda: terms(cluster, "c") == before)
        await cluster.run_for(30.0)
        assert terms(cluster, "a") == terms(cluster, "b") == terms(cluster, "c") == before

    play(scenario)


def test_a_leader_that_lost_its_quorum_steps_down() -> None:
    async def scenario(cluster: MemoryCluster) -> None:
        cluster.isolate("a")
        await cluster.until(lambda: led(cluster)["a"] == 0, timeout_s=5.0)

    play(scenario)


def test_a_node_that_hears_but_is_not_heard_does_not_stay_leader() -> None:
    """A one-way partition: beats of the peers still arrive, acknowledgements of its own do not."""

    async def scenario(cluster: MemoryCluster) -> None:
        for other in ("b", "c"):
            cluster.network.stall("a", other)
        await cluster.until(
            lambda: led(cluster)["a"] == 0 and sum(led(cluster).values()) == len(GROUPS), timeout_s=10.0
        )
        cluster.heal()
        await cluster.run_for(5.0)
        assert sum(led(cluster).values()) == len(GROUPS)

    play(scenario)


def test_a_restarted_node_rejoins_without_an_election() -> None:
    async def scenario(cluster: MemoryCluster) -> None:
        cluster.crash("b")
        await cluster.until(lambda: sum(led(cluster).values()) == len(GROUPS), timeout_s=5.0)
        before = terms(cluster, "a")
        await cluster.start("b")
        await cluster.ready()
        await cluster.run_for(20.0)
        assert terms(cluster, "a") == before

    play(scenario)


def test_idle_groups_send_only_beats() -> None:
    async def scenario(cluster: MemoryCluster) -> None:
        await cluster.run_for(5.0)
        before = cluster.nodes["a"].status()["counters"]["frames_sent"]
        await cluster.run_for(10.0)
        sent = cluster.nodes["a"].status()["counters"]["frames_sent"] - before
        assert 190 <= sent <= 210  # two peers, ten beats a second

    play(scenario)


def test_idle_groups_send_only_beats_with_a_node_down() -> None:
    async def scenario(cluster: MemoryCluster) -> None:
        cluster.crash("c")
        await cluster.until(lambda: sum(led(cluster).values()) == len(GROUPS))
        await cluster.run_for(5.0)
        before = cluster.nodes["a"].status()
        await cluster.run_for(10.0)
        after = cluster.nodes["a"].status()
        assert after["counters"]["frames_sent"] - before["counters"]["frames_sent"] <= 105  # one peer is left
        assert after["loop"]["turns"] - before["loop"]["turns"] <= 500  # its beats and mine, and their coming
        assert sum(led(cluster).values()) == len(GROUPS)

    play(scenario)


def test_a_full_restart_brings_all_leaders_back_without_a_storm() -> None:
    """Nearly every group elects once: terms rise by one, and nobody asks for votes in vain again and again."""
    groups = range(16, 816)

    def declare_many(node: Node) -> None:
        node.bytes_service("many", Nothing, initial_shards=len(groups))

    async def main() -> None:
        async with MemoryCluster(declare_many, seed=1) as cluster:
            await cluster.ready()
            node = next(iter(cluster.nodes.values()))
            before = {group: node.group_status(group)["term"] for group in groups}
            cluster.crash()
            began_s = asyncio.get_running_loop().time()
            await cluster.start()
            await cluster.ready()
            assert asyncio.get_running_loop().time() - began_s < 5.0
            node = next(iter(cluster.nodes.values()))
            rises = [node.group_status(group)["term"] - before[group] for group in groups]
            assert sum(rises) <= 1.1 * len(groups)
            assert max(rises) <= 3

    run_virtual(main())


def test_leadership_can_be_handed_over() -> None:
    async def scenario(cluster: MemoryCluster) -> None:
        group = next(group for group in GROUPS if cluster.nodes["a"].leads(group))
        cluster.nodes["a"].transfer_leadership(group, "c")
        await cluster.until(lambda: cluster.nodes["c"].leads(group), timeout_s=0.5)
        assert not cluster.nodes["a"].leads(group)

    play(scenario)
