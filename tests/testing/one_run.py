"""One seeded run of a cluster under every kind of fault, written down: run as a program it prints what happened.

    python tests/testing/one_run.py SEED

Rules of this file: what it prints is a function of the seed alone; it prints times, so that a shift shows.
"""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import Callable
from functools import partial
from random import Random

from multiraft import BytesService, BytesStateMachine, Limits, MultiRaftError, Node
from multiraft.storage import MemoryDisk
from multiraft.testing import MemoryCluster, run_virtual

NAMES = ("a", "b", "c", "d", "e")


class Tally(BytesStateMachine):
    """Counts its commands."""

    def __init__(self) -> None:
        self.count = 0

    def apply(self, command: bytes) -> bytes:
        self.count += 1
        return b"%d" % self.count

    def query(self, query: bytes) -> bytes:
        return b"%d" % self.count

    def snapshot(self) -> bytes:
        return b"%d" % self.count

    def restore(self, state: bytes) -> None:
        self.count = int(state)


class Run:
    """A run: a fault about every 200 ms, four clients, and in the end a cluster that agrees."""

    def __init__(self, seed: int, say: Callable[[str], None]) -> None:
        self.rng = Random(seed)
        self.say = say
        self.services: dict[str, BytesService] = {}
        limits = Limits(request_timeout_ms=1_500, apply_slice_ms=1_000, snapshot_entries=10, trailing_entries=3)
        self.cluster = MemoryCluster(self._declare, NAMES, limits=limits, seed=seed)
        self.running = True

    def _declare(self, node: Node) -> None:
        self.services[node.node_id] = node.bytes_service("tally", Tally, initial_shards=3, replicas=3)

    def note(self, what: str) -> None:
        self.say(f"{asyncio.get_running_loop().time():.9f} {what}")

    async def client(self, number: int) -> None:
        while self.running:
            await asyncio.sleep(self.rng.random() * 0.2)
            name, key = self.rng.choice(NAMES), b"%d" % self.rng.randrange(9)
            try:
                answer = (await self.services[name].propose(key, b"x")).decode()
            except MultiRaftError as problem:
                answer = type(problem).__name__
            self.note(f"client {number} at {name}: {answer}")

    def disturb(self) -> None:
        rng, cluster, network = self.rng, self.cluster, self.cluster.network
        name, other = rng.sample(NAMES, 2)
        deeds: dict[str, Callable[[], object]] = {
            "rate": lambda: setattr(cluster.clock(name), "rate", rng.choice([0.2, 0.9, 1.1, 5.0])),
            "skew": lambda: setattr(cluster.clock(name), "skew_s", rng.uniform(-100.0, 100.0)),
            "pause": lambda: self.pause(name),
            "suspend": lambda: cluster.clock(name).suspend(rng.random() * 3),
            "cut": lambda: network.cut(name, other),
            "stall": lambda: network.stall(name, other),
            "disturb": lambda: network.disturb(name, other, loss=0.02, duplicate=0.2, reorder=0.2),
            "strand": lambda: network.strand(name, other, rng.random()),
            "bridge": lambda: network.bridge(NAMES[:2], NAMES[3:], NAMES[2]),
            "ring": lambda: network.ring(rng.sample(NAMES, 5)),
            "partition": lambda: network.partition(NAMES[:2], NAMES[2:], by="stall"),
            "heal": cluster.heal,
            "hold": cluster.disks[name].hold_writes,
            "release": cluster.disks[name].release,
            "crash": lambda: cluster.crash(name, keep=rng.randrange(3)),
            "crash at": lambda: cluster.crash_after(name, rng.randrange(1, 5), written=rng.random() < 0.5),
            "full": lambda: setattr(cluster.disks[name], "full", True),
            "failpoint": lambda: cluster.arm("write.after-sync", "kill", name),
        }
        deed = rng.choice(list(deeds))
        if name in cluster.nodes:
            deeds[deed]()
            self.note(f"{deed} {name} {other}")

    def pause(self, name: str) -> None:
        clock = self.cluster.clock(name)
        clock.pause()
        clock.resume_in(self.rng.random() * 3)

    async def mend(self) -> None:
        for name in NAMES:
            disk = self.cluster.disks[name]
            if name not in self.cluster.nodes:
                await self.cluster.until(partial(self._is_free, disk))
                await self.cluster.start(name)

    @staticmethod
    def _is_free(disk: MemoryDisk) -> bool:
        return not disk.in_use

    async def play(self) -> None:
        cluster = self.cluster
        await cluster.start()
        await cluster.ready()
        clients = [asyncio.ensure_future(self.client(number)) for number in range(4)]
        for _ in range(40):
            await cluster.run_for(self.rng.random() * 0.4)
            cluster.forget_ended()
            self.disturb()
        cluster.end_faults()
        await cluster.run_for(2.0)
        cluster.forget_ended()
        await self.mend()
        await cluster.ready()
        self.running = False
        await asyncio.gather(*clients)
        await cluster.run_for(5.0)
        for name, node in cluster.nodes.items():
            for status in node.groups_status():
                self.note(f"{name} {status}")
            self.note(f"{name} {node.status()['counters']}")
        self.note(str(sorted(cluster.faults.items())))
        await cluster.stop()


def trace(seed: int) -> list[str]:
    """Return what happens in the run of this seed."""
    said: list[str] = []
    run_virtual(Run(seed, said.append).play())
    return said


if __name__ == "__main__":
    logging.disable(logging.CRITICAL)
    print("\n".join(trace(int(sys.argv[1]))))
