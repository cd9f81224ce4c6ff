"""What was lost on its way without anybody's noticing is sent again, though nothing new is written."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

Play = Callable[..., None]


def test_a_follower_that_missed_an_append_catches_up_without_new_traffic(play: Play) -> None:
    async def scenario(ledgers: Any) -> None:
        cluster = ledgers.cluster
        cluster.network.keep_lossy = True
        leader = await ledgers.leader()
        follower = next(name for name in cluster.names if name != leader)
        cluster.network.disturb(leader, follower, loss=1.0)
        await ledgers.services[leader].propose(b"k", b"x")
        cluster.heal()
        await cluster.until(lambda: ledgers.kept(follower) == [b"x"], timeout_s=30.0)

    play(scenario)
