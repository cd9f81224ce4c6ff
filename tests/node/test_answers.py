"""Answers to forwarded work reach their asker although the answerer's own connection is not up yet."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

Play = Callable[..., None]


def test_an_answer_waits_for_the_answerers_own_connection(play: Play) -> None:
    async def scenario(ledgers: Any) -> None:
        cluster = ledgers.cluster
        leader = await ledgers.leader()
        asker = next(name for name in cluster.names if name != leader)
        loop = asyncio.get_running_loop()
        # The leader's connection to the asker breaks; the other way stands, so that the command still gets through.
        cluster.network.cut(leader, asker)
        call = asyncio.ensure_future(ledgers.services[asker].propose(b"k", b"x"))
        await cluster.run_for(0.05)
        began_s = loop.time()
        cluster.heal()
        assert await call == b"1"
        assert loop.time() - began_s < 2.5  # the longest wait between two dials is two seconds

    play(scenario)


def test_answers_for_an_earlier_life_of_the_asker_are_dropped(play: Play) -> None:
    async def scenario(ledgers: Any) -> None:
        cluster = ledgers.cluster
        leader = await ledgers.leader()
        asker = next(name for name in cluster.names if name != leader)
        cluster.network.cut(leader, asker)
        call = asyncio.ensure_future(ledgers.services[asker].propose(b"k", b"x", session=False))
        await cluster.until(lambda: ledgers.kept(leader) == [b"x"])
        cluster.crash(asker)
        call.cancel()
        cluster.heal()
        await cluster.start(asker)
        await cluster.ready()
        assert await ledgers.services[asker].propose(b"k", b"y") == b"2"
        counters = cluster.nodes[asker].status()["counters"]
        assert counters.get("dropped_late_answer", 0) == 0

    play(scenario)
