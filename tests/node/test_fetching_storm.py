"""Snapshot files through a bad network and crashes: whatever comes between, replicas end up with the same."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from random import Random
from typing import Any

import pytest

from multiraft import Limits, MultiRaftError
from multiraft.testing import run_virtual
from tests.node.shipping import GROUP, Albums

KIB = 1024
LIMITS = Limits(
    request_timeout_ms=3_000, snapshot_entries=10, trailing_entries=0, snapshot_bytes_per_s=1024 * KIB,
)  # fmt: skip


async def settled(albums: Albums, kept: set[bytes]) -> None:
    """Wait until every replica has applied the same, all of `kept` among it, and nothing is on its way."""

    def same() -> bool:
        machines = [albums.kept(name) for name in albums.cluster.names]
        idle = all(not any(albums.engine(name).transfers.status().values()) for name in albums.cluster.names)
        return idle and kept <= set(machines[0]) and all(one == machines[0] for one in machines)

    await albums.cluster.until(same, 300.0)


@pytest.mark.parametrize("written", [False, True])
@pytest.mark.parametrize("count", [1, 2, 5, 9, 16, 17, 18, 19, 20])
def test_a_power_cut_at_any_write_of_fetching_and_installing_is_no_harm(count: int, written: bool) -> None:
    """Requirement 20: pieces, the file's sync and name, the snapshot's write: each is a numbered write of the disk."""

    async def main() -> None:
        albums = Albums(LIMITS)
        async with albums.cluster as cluster:
            await cluster.ready()
            await albums.lead("a")
            kept = await albums.write("b", 0, 25)
            await albums.add_learner("a", "d")
            await albums.half("d", 0.0)
            cluster.crash_after("d", count, written=written, deliver=True)
            await cluster.until(lambda: "d" not in cluster.nodes, 20.0)
            await cluster.start("d")
            await albums.caught_up("d", kept)
            assert not albums.parts("d")

    run_virtual(main())


@pytest.mark.parametrize("seed", range(12))
def test_files_arrive_through_cuts_stalls_crashes_and_changes_of_leaders(seed: int) -> None:
    rng = Random(seed)

    async def main() -> None:
        albums = Albums(LIMITS, names="abc", seed=seed)
        async with albums.cluster as cluster:
            await cluster.ready()
            kept: set[bytes] = set()
            deeds: list[Callable[[], Any]] = [
                lambda: cluster.network.cut(*rng.sample("abc", 2)),
                lambda: cluster.network.stall(*rng.sample("abc", 2)),
                lambda: cluster.network.delay("abc"[rng.randrange(3)], rng.choice("abc"), rng.uniform(0.0, 0.2)),
                lambda: cluster.network.disturb(*rng.sample("abc", 2), loss=0.1, duplicate=0.1, reorder=0.1),
                lambda: cluster.isolate(rng.choice("abc")),
                lambda: cluster.crash(rng.choice(sorted(cluster.nodes))) if len(cluster.nodes) == 3 else None,
                lambda: hand_over(albums, rng),
            ]
            for number in range(40):
                rng.choice(deeds)()
                if rng.random() < 0.5:
                    cluster.network.heal()
                for name in "abc":
                    if name not in cluster.nodes and rng.random() < 0.6:
                        await cluster.start(name)
                name = rng.choice(sorted(cluster.nodes))
                for step in range(5):
                    command = b"%d.%d" % (number, step)
                    try:
                        await albums.services[name].propose(b"k", command, timeout_s=0.3)
                        kept.add(command)
                    except MultiRaftError:
                        await asyncio.sleep(0.05)
                await cluster.run_for(rng.uniform(0.0, 0.7))
            cluster.end_faults()
            for name in "abc":
                if name not in cluster.nodes:
                    await cluster.start(name)
            await cluster.insist(lambda: albums.services["a"].propose(b"k", b"last"))
            await settled(albums, kept)

    run_virtual(main())


def hand_over(albums: Albums, rng: Random) -> None:
    leaders = albums.leader_of()
    others = [name for name in albums.cluster.nodes if name not in leaders]
    if leaders and others:
        albums.cluster.nodes[leaders[0]].transfer_leadership(GROUP, rng.choice(others))
