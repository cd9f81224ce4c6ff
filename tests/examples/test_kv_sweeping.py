"""When a shard is swept: as soon as its own clock may have passed what ends next, and not in vain again and again."""

from __future__ import annotations

import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from examples.kv.machine import DiskKV
from examples.kv.sweeping import Sweeper
from multiraft.errors import NotReady
from tests.examples.kv_bench import Bench

GROUP = 16


class Shard:
    """A node that leads one shard; its clock is the test's, and so is that of the shard."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.bench = Bench(DiskKV())
        self._leading = True
        self.failing = False
        self.looks = 0
        self.map = SimpleNamespace(shards=(SimpleNamespace(group_id=GROUP),))
        self.applied: list[Callable[[], None]] = []
        self.led: list[Callable[[], None]] = []
        self.sweeps = 0
        self.monotonic_s = 5_000.0
        self.wall_ms = self.bench.now_ms
        monkeypatch.setattr(time, "monotonic", lambda: self.monotonic_s)
        monkeypatch.setattr(time, "time", lambda: self.wall_ms / 1_000)
        node: Any = self
        self.sweeper = Sweeper(node, node)
        self.router = self

    async def shards(self, service: str) -> Any:
        return self.map

    def group(self, group_id: int) -> Any:
        return SimpleNamespace(on_applied=self.applied.append, on_leader=self.led.append)

    @property
    def leading(self) -> bool:
        return self._leading

    @leading.setter
    def leading(self, leading: bool) -> None:
        self._leading = leading
        for hook in self.led if leading else ():
            hook()

    def leads(self, group_id: int) -> bool:
        return self.leading

    def local_machine(self, group_id: int) -> DiskKV:
        self.looks += 1
        return self.bench.kv  # type: ignore[return-value]

    async def sweep(self, key: str) -> int:
        self.sweeps += 1
        if self.failing:
            raise NotReady("no leader")
        removed: int = self.bench.do.sweep(key)
        return removed

    def pass_ms(self, milliseconds: int, *, shard: bool = True, wall: bool = True) -> None:
        self.monotonic_s += milliseconds / 1_000
        self.wall_ms += milliseconds if wall else 0
        self.bench.now_ms += milliseconds if shard else 0


@pytest.fixture
def shard(monkeypatch: pytest.MonkeyPatch) -> Shard:
    return Shard(monkeypatch)


async def test_a_shard_is_swept_when_its_next_key_is_due(shard: Shard) -> None:
    for number in range(300):
        shard.bench.do.put(f"k{number}", b"", ttl_ms=1_000)
    await shard.sweeper.look()
    shard.pass_ms(999)
    await shard.sweeper.look()
    assert shard.sweeps == 0
    shard.pass_ms(1)
    await shard.sweeper.look()
    assert (shard.sweeps, shard.bench.kv.meta().keys) == (2, 0)
    shard.pass_ms(10_000)
    await shard.sweeper.look()
    assert shard.sweeps == 2


async def test_a_wall_clock_that_was_set_back_holds_nothing_up(shard: Shard) -> None:
    shard.bench.do.put("k", b"", ttl_ms=1_000)
    await shard.sweeper.look()
    shard.wall_ms -= 3_600_000
    shard.pass_ms(1_000, wall=False)
    await shard.sweeper.look()
    assert shard.bench.kv.meta().keys == 0


async def test_a_shards_clock_that_is_behind_the_wall_clock_is_not_swept_all_the_time(shard: Shard) -> None:
    shard.bench.do.put("k", b"", ttl_ms=1_000)
    shard.wall_ms += 3_600_000
    for _ in range(9):
        await shard.sweeper.look()
        shard.pass_ms(100)
    assert shard.sweeps == 1
    shard.bench.do.put("sooner", b"", ttl_ms=50)  # what ends before that is looked after all the same
    shard.pass_ms(50)
    await shard.sweeper.look()
    assert shard.bench.kv.meta().keys == 1
    shard.pass_ms(100)
    await shard.sweeper.look()
    assert shard.bench.kv.meta().keys == 0


async def test_after_a_start_the_wall_clock_tells_what_is_due(shard: Shard) -> None:
    shard.bench.do.put("k", b"", ttl_ms=1_000)
    shard.pass_ms(5_000)  # nobody has looked meanwhile
    await shard.sweeper.look()
    assert shard.bench.kv.meta().keys == 0


async def test_a_shard_of_which_no_key_ends_is_looked_at_when_something_was_applied(shard: Shard) -> None:
    shard.bench.do.put("k", b"")
    for _ in range(5):
        await shard.sweeper.look()
        shard.pass_ms(100)
    assert shard.looks == 1
    shard.bench.do.put("k", b"", ttl_ms=100)
    (applied,) = shard.applied
    applied()
    await shard.sweeper.look()
    shard.pass_ms(100)
    await shard.sweeper.look()
    assert (shard.sweeps, shard.bench.kv.meta().keys) == (1, 0)
    looks = shard.looks
    for _ in range(5):
        await shard.sweeper.look()
        shard.pass_ms(100)
    assert shard.looks == looks + 1


async def test_only_the_leader_sweeps_and_tries_again_what_failed(shard: Shard) -> None:
    shard.bench.do.put("k", b"", ttl_ms=1)
    shard.pass_ms(10)
    shard.leading = False
    await shard.sweeper.look()
    assert shard.sweeps == 0
    shard.leading, shard.failing = True, True
    await shard.sweeper.look()
    shard.failing = False
    await shard.sweeper.look()
    assert (shard.sweeps, shard.bench.kv.meta().keys) == (2, 0)
