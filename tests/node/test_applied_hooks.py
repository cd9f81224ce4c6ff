"""Who wants to know is told when a replica here has applied more, however it came to that."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from multiraft import Limits

GROUP = 16


def test_each_node_tells_of_what_its_own_replica_applied(play: Callable[..., None]) -> None:
    async def scenario(ledgers: Any) -> None:
        cluster = ledgers.cluster
        seen: dict[str, list[int]] = {name: [] for name in cluster.nodes}

        def watch(name: str) -> Callable[[], None]:
            return lambda: seen[name].append(len(ledgers.kept(name)))

        ends = {name: node.group(GROUP).on_applied(watch(name)) for name, node in cluster.nodes.items()}
        for number in range(1, 4):
            await ledgers.services["a"].propose(b"key", b"%d" % number)
            await cluster.until(lambda number=number: all(counts[-1:] == [number] for counts in seen.values()))
        ends["b"]()
        told = len(seen["b"])
        await ledgers.services["a"].propose(b"key", b"4")
        await cluster.until(lambda: seen["a"][-1] == seen["c"][-1] == len(ledgers.kept("b")) == 4)
        assert len(seen["b"]) == told
        assert cluster.nodes["b"]._setup.applied_hooks == {}

    play(scenario)


def test_a_snapshot_that_is_taken_over_is_told_of(play: Callable[..., None]) -> None:
    async def scenario(ledgers: Any) -> None:
        cluster = ledgers.cluster
        leader = await ledgers.leader()
        late = next(name for name in cluster.nodes if name != leader)
        cluster.network.partition((late,), tuple(name for name in cluster.nodes if name != late))
        for number in range(40):
            await ledgers.services[leader].propose(b"key", b"%d" % number)
        seen: list[int] = []
        cluster.nodes[late].group(GROUP).on_applied(lambda: seen.append(len(ledgers.kept(late))))
        cluster.network.heal()
        await cluster.until(lambda: len(ledgers.kept(late)) == 40)
        await cluster.until(lambda: seen[-1:] == [40])
        assert seen[0] > 20  # those went with the log

    play(scenario, limits=Limits(request_timeout_ms=3_000, snapshot_entries=20, trailing_entries=4))
