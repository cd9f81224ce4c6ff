"""Reads of all kinds under faults: what each must have seen is checked against what everybody saw before it.

One writer appends numbers. For every read it is known which numbers were visible, acknowledged to the writer or shown
to any reader, when it began, and when it ended. A linearizable read must show all that were visible when it began; a
stale one, all that were visible `age` before it ended. The loop's time is the true time; the nodes' clocks drift
within the bound and jump when a machine sleeps.

Faults: changes of the membership, nodes cut off with and without their knowing, transfers, crashes, slow disks and
links, paused processes, machines that sleep.
"""

from __future__ import annotations

import asyncio
import functools
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable
from math import inf
from random import Random
from typing import Any, Final

import pytest

from multiraft import Limits, NotCommitted, NotReady, OutcomeUnknown
from multiraft.engine.following import Following
from multiraft.engine.leases import Leases
from multiraft.engine.local import LocalReads

Play = Callable[..., None]
GROUP = 16
DRIFT = 0.01
STORM_S = 12.0
KINDS = ("linearizable", "lease", "local", "stale")


class TooOld(AssertionError):
    """A read has not shown what it must."""


class Storm:
    """One cluster under faults, its writer and its readers.

    visible  (when, the highest number that was visible from then on), ascending in both
    reads    how many of each kind were answered; "at once": of the stale ones, those that asked nobody; and how many
             membership changes were made
    """

    def __init__(self, ledgers: Any, seed: int) -> None:
        self.ledgers = ledgers
        self.cluster = ledgers.cluster
        self.rng = Random(seed)
        self.visible: list[tuple[float, int]] = [(-inf, 0)]
        self.reads: Counter[str] = Counter()
        self.over = False

    def now_s(self) -> float:
        return asyncio.get_running_loop().time()

    def show(self, number: int) -> None:
        if number > self.visible[-1][1]:
            self.visible.append((self.now_s(), number))

    def visible_at(self, when_s: float) -> int:
        """The highest number that was surely visible at that moment."""
        return self.visible[bisect_right(self.visible, (when_s - 1e-9, 1 << 60)) - 1][1]

    async def write(self) -> None:
        number = 0
        while not self.over:
            number += 1
            service = self.ledgers.services[self.rng.choice(self.cluster.names)]
            try:
                await service.propose(b"k", b"%d" % number, 1.0)
                self.show(number)
            except (NotCommitted, OutcomeUnknown):
                number += 1_000  # what may still come is then no number that is counted on
            await asyncio.sleep(self.rng.choice([0.0, 0.002, 0.05]))

    async def read(self, name: str, kind: str) -> None:
        while not self.over:
            await asyncio.sleep(self.rng.choice([0.001, 0.01, 0.1]))
            began_s, must = self.now_s(), self.visible_at(self.now_s())
            try:
                kept, age_s = await self._ask(name, kind)
            except (NotCommitted, KeyError):
                continue
            ended_s = self.now_s()
            if kind == "stale":
                must = self.visible_at(ended_s - age_s)
                self.reads["at once"] += began_s == ended_s
            shown = max((int(each) for each in kept.split()), default=0)
            if shown < must:
                raise TooOld(f"{kind} read at {name}: showed {shown}, not {must}; age {age_s:.3f} s")
            self.show(shown)
            self.reads[kind] += 1

    async def _ask(self, name: str, kind: str) -> tuple[bytes, float]:
        service = self.ledgers.services[name]
        if kind == "stale":
            answer, age_ms = await service.read_stale(b"k", b"", self.rng.choice([10, 200, 3_000]), 1.0)
            return answer, age_ms / 1e3
        options = {kind: True} if kind in ("lease", "local") else {}
        return await service.read(b"k", b"", 1.0, **options), 0.0

    # ------------------------------------------------------------------------------------------------------ faults

    async def trouble(self) -> None:
        rng, cluster = self.rng, self.cluster
        while not self.over:
            await asyncio.sleep(rng.uniform(0.05, 0.5))
            leaders = cluster.leaders(GROUP)
            name = rng.choice(leaders or list(cluster.names))
            other = rng.choice([each for each in cluster.names if each != name])
            length_s = rng.choice([0.05, 0.4, 1.5, 2.5])
            kind = rng.choice(["cut", "stall", "half", "transfer", "crash", "disk", "delay", "sleep", "pause", "jump"])
            if kind == "cut":
                cluster.isolate(name)
                await asyncio.sleep(length_s)
                cluster.heal()
            elif kind in ("stall", "half"):
                for each in cluster.names:
                    if each != name:
                        cluster.network.stall(name, each)
                        if kind == "stall":
                            cluster.network.stall(each, name)
                await asyncio.sleep(length_s)
                cluster.heal()
            elif kind == "transfer":
                try:
                    cluster.nodes[name].transfer_leadership(GROUP, other)
                except (NotCommitted, NotReady):
                    continue
            elif kind == "crash":
                cluster.crash(name)
                await asyncio.sleep(length_s)
                await cluster.start(name)
            elif kind == "disk":
                cluster.disks[name].hold_writes()
                await asyncio.sleep(length_s)
                cluster.disks[name].release()
            elif kind == "delay":
                for each in cluster.names:
                    if each != name:
                        cluster.network.delay(name, each, lambda: rng.uniform(0.0, 0.03))
            elif kind == "pause":
                cluster.clock(name).pause()
                await asyncio.sleep(length_s)
                cluster.clock(name).resume()
            elif kind == "sleep":
                cluster.clock(name).suspend(rng.uniform(0.1, 3.0))
            else:
                self.ledgers.clocks[rng.choice(cluster.names)].suspend(rng.uniform(0.1, 3.0))

    async def change(self) -> None:
        while not self.over:
            await asyncio.sleep(self.rng.uniform(0.1, 0.5))
            leaders = self.cluster.leaders(GROUP)
            if leaders:
                await self._change(leaders[0])

    async def _change(self, name: str) -> None:
        """Have some node's replica come, go, or lose or regain its vote; at least two voters are left."""
        group = self.cluster.nodes[name].group(GROUP)
        try:
            membership = group.membership()
            nodes = sorted(membership.nodes.values())
            other = self.rng.choice([each for each in self.cluster.names if each != name])
            if other not in nodes:
                await group.add(other, timeout_s=2.0)
            elif not membership.is_voter(membership.replica_on(other)):
                await group.promote(other, timeout_s=2.0)
            elif len(membership.voters) > 2:
                await self.rng.choice([group.remove, group.demote])(other, timeout_s=2.0)
            self.reads["changes"] += 1
        except (NotCommitted, OutcomeUnknown):
            return  # perhaps later

    async def run(self) -> None:
        names = self.cluster.names
        for number, name in enumerate(names):
            self.ledgers.clocks[name].run_at((1 - DRIFT, 1 + DRIFT, 1.0)[number % 3])
        readers = [self.read(name, kind) for name in names for kind in KINDS]
        tasks = [asyncio.ensure_future(each) for each in (self.write(), self.trouble(), self.change(), *readers)]
        try:
            done, _ = await asyncio.wait(tasks, timeout=STORM_S, return_when=asyncio.FIRST_EXCEPTION)
            for each in done:
                each.result()
            self.over = True
            await asyncio.gather(*tasks)
        finally:
            for each in tasks:
                each.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        last = self.visible[-1][1]
        for name in names:  # when all is well again, everybody answers
            local = functools.partial(self.ledgers.services[name].read, b"k", b"", local=True)
            kept = await self.cluster.insist(local)
            if max(int(each) for each in kept.split()) < last:
                raise TooOld(f"{name} has lost {last}")


def storm(play: Play, seed: int) -> Counter[str]:
    reads: Counter[str] = Counter()

    async def scenario(ledgers: Any) -> None:
        one = Storm(ledgers, seed)
        await one.run()
        reads.update(one.reads)

    play(scenario, seed=seed, names="abcd", limits=Limits(request_timeout_ms=2_000))
    return reads


def storm_all(play: Play) -> None:
    for seed in range(20):
        storm(play, seed)


CONFIRMED: Final = LocalReads.confirmed


@pytest.mark.parametrize("first_seed", range(0, 12, 3))
def test_no_read_of_any_kind_is_older_than_it_says(play: Play, first_seed: int) -> None:
    reads: Counter[str] = Counter()
    for seed in range(first_seed, first_seed + 3):
        try:
            reads += storm(play, seed)
        except TooOld as violation:
            pytest.fail(f"seed {seed}: {violation}")
    assert min(reads[kind] for kind in (*KINDS, "at once")) > 300, reads
    assert reads["changes"] > 5, reads


@pytest.mark.pure_only
@pytest.mark.parametrize(
    ("owner", "name", "broken", "expected"),
    [
        pytest.param(Leases, "holds", Leases._current, "lease read", id="a lease without an end"),
        pytest.param(Following, "since_s", lambda self, _: self._clock(), "stale read", id="nothing is ever old"),
        pytest.param(
            LocalReads, "confirmed", lambda self, _, asked_s: CONFIRMED(self, 0, asked_s), "local read", id="no index"
        ),
    ],
)
def test_the_storm_notices_a_missing_rule(
    play: Play, owner: type, name: str, broken: Any, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(owner, name, broken)
    with pytest.raises(TooOld, match=expected):
        storm_all(play)
