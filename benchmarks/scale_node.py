"""One node of `benchmarks.scale`: a process that is told what to do on stdin and answers on stdout, in JSON lines.

It declares as many shards as groups are asked for, over as many services as the bound on a service's shards makes
necessary, and answers what it costs: CPU and memory as the kernel counts them, and how late its event loop was.

Rules of this file: the loop's lateness is looked for only where it is asked for, since looking costs CPU that idle
nodes would be charged for.
"""

from __future__ import annotations

import asyncio
import os
import resource
import time
from contextlib import aclosing
from typing import Any, Final

from benchmarks.obeying import orders, run_process, say
from multiraft.config import Limits, NodeConfig
from multiraft.errors import MultiRaftError
from multiraft.node import Node
from multiraft.statemachine import BytesStateMachine
from multiraft.tuning import tune_process
from multiraft.types import GroupId

SHARDS_AT_MOST: Final = 50_000
_PROBE_S: Final = 0.01
_PAGE_BYTES: Final = resource.getpagesize()
_PAUSE_S: Final = 0.01


class Count(BytesStateMachine):
    """How many commands came, and the last one."""

    __slots__ = ("count", "last")

    def __init__(self) -> None:
        self.count = 0
        self.last = b""

    def apply(self, command: bytes) -> bytes:
        self.count += 1
        self.last = command
        return b""

    def query(self, query: bytes) -> bytes:
        return self.last


def cpu_s() -> float:
    """User and system CPU seconds of this process so far."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def memory_bytes() -> dict[str, int]:
    """What the kernel says this process has in memory now: all of it, and with shared pages divided among sharers."""
    with open("/proc/self/statm") as file:
        resident = int(file.read().split()[1]) * _PAGE_BYTES
    shared = 0
    with open("/proc/self/smaps_rollup") as file:
        for line in file:
            if line.startswith("Pss:"):
                shared = int(line.split()[1]) * 1024
    return {"rss_bytes": resident, "pss_bytes": shared}


def services_of(groups: int) -> list[tuple[str, int]]:
    """Return (name, shards) of the services that together have so many groups."""
    count = -(-groups // SHARDS_AT_MOST)
    return [(f"idle{number}", groups // count + (number < groups % count)) for number in range(count)]


class Lag:
    """How late the event loop is, looked at a hundred times a second."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._due_s = 0.0
        self._handle: asyncio.TimerHandle | None = None
        self.most_s = 0.0

    def begin(self) -> None:
        self.end()
        self.most_s = 0.0
        self._due_s = self._loop.time() + _PROBE_S
        self._handle = self._loop.call_at(self._due_s, self._look)

    def end(self) -> None:
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None

    def _look(self) -> None:
        now = self._loop.time()
        self.most_s = max(self.most_s, now - self._due_s)
        self._due_s = now + _PROBE_S
        self._handle = self._loop.call_at(self._due_s, self._look)


class ScaleNode:
    """The node, and the operations that the benchmark asks of it."""

    def __init__(self, options: dict[str, Any]) -> None:
        limits = Limits(**options.get("limits", {}))
        config = NodeConfig(
            options["node_id"], options["data_dir"], options["listen"], options["members"], False, limits
        )
        self.node = Node(config)
        self.groups: int = options["groups"]
        for name, shards in services_of(self.groups):
            self.node.bytes_service(name, Count, initial_shards=shards)
        self.lag = Lag(asyncio.get_running_loop())
        self._writers: list[asyncio.Task[None]] = []
        self._writes = 0
        self._refused = 0

    def group_ids(self) -> list[GroupId]:
        """Every group of the services here, in order."""
        return [shard.group_id for service in self.node.shard_map.services.values() for shard in service.shards]

    def figures(self) -> dict[str, Any]:
        """What this process has cost so far, and what it does."""
        status = self.node.status()
        return {
            **memory_bytes(),
            "cpu_s": cpu_s(),
            "at_s": time.monotonic(),
            "lag_ms": self.lag.most_s * 1e3,
            "turns": status["loop"]["turns"],
            "syncs": status["writer"]["syncs"],
            "frames": status["counters"]["frames_sent"],
            "groups": status["groups"],
            "repairs": status["counters"]["audit_repairs"],
            "writes": self._writes,
            "refused": self._refused,
        }

    async def ready(self, timeout_s: float) -> dict[str, float]:
        """Wait until every group has a leader, as far as this node knows; return when that was."""
        await self.node.ready(timeout_s=timeout_s)
        return {"at_s": time.monotonic()}

    def led_groups(self) -> list[GroupId]:
        """Which groups of the services this node leads."""
        return [group_id for group_id in self.group_ids() if self.node.leads(group_id)]

    # ----------------------------------------------------------------------------------------------------- load

    def begin_load(self, in_flight: int, payload: int) -> int:
        """Begin to write to the groups that this node leads now, each in its turn, so many at a time."""
        handles = [self.node.group(group_id) for group_id in self.led_groups()]
        command = b"x" * payload
        places = iter(range(1 << 62))

        async def writer() -> None:
            while True:
                handle = handles[next(places) % len(handles)]
                try:
                    await handle.propose(command)
                    self._writes += 1
                except MultiRaftError:
                    self._refused += 1
                    await asyncio.sleep(_PAUSE_S)

        self._writers = [asyncio.ensure_future(writer()) for _ in range(in_flight)] if handles else []
        return len(handles)

    async def end_load(self) -> None:
        for task in self._writers:
            task.cancel()
        await asyncio.gather(*self._writers, return_exceptions=True)
        self._writers = []

    async def reach(self, group_ids: list[GroupId], at_once: int, victim: str) -> dict[str, float]:
        """Write to each of these groups until it takes it; return when the last and the median one did.

        led_s  when each of them had a leader that is not `victim`, as far as this node knows
        """
        waiting = iter(group_ids)
        accepted_s: list[float] = []

        async def writer() -> None:
            for group_id in waiting:
                handle = self.node.group(group_id)
                while True:
                    try:
                        await handle.propose(b"reached", timeout_s=30.0)
                        break
                    except MultiRaftError:
                        await asyncio.sleep(_PAUSE_S)
                accepted_s.append(time.monotonic())

        async def led() -> float:
            for group_id in group_ids:
                while self.node.leader(group_id) in (None, victim):  # noqa: ASYNC110 - looked at from outside
                    await asyncio.sleep(_PAUSE_S)
            return time.monotonic()

        looking = asyncio.ensure_future(led())
        await asyncio.gather(*[writer() for _ in range(min(at_once, len(group_ids)))])
        accepted_s.sort()
        return {"last_s": accepted_s[-1], "median_s": accepted_s[len(accepted_s) // 2], "led_s": await looking}

    async def each_once(self, seconds: float, payload: int) -> dict[str, float]:
        """Keep one write under way in every group that this node leads; return what came of it."""
        handles = [self.node.group(group_id) for group_id in self.led_groups()]
        command = b"x" * payload
        latencies: list[float] = []
        clock = time.perf_counter
        began_s = clock()
        end_s = began_s + seconds
        used_s = cpu_s()

        async def client(handle: Any) -> None:
            propose, note = handle.propose, latencies.append
            while (before_s := clock()) < end_s:
                await propose(command)
                note(clock() - before_s)

        await asyncio.gather(*[client(handle) for handle in handles])
        took_s = clock() - began_s
        latencies.sort()
        count = len(latencies)
        return {
            "groups": len(handles),
            "writes": count,
            "writes_per_s": count / took_s,
            "cpu_us": (cpu_s() - used_s) / count * 1e6,
            "p50_ms": latencies[count // 2] * 1e3,
            "p99_ms": latencies[int(count * 0.99)] * 1e3,
        }

    def gather(self, to: str) -> int:
        """Hand every group that this node leads to another one; return how many."""
        handed = 0
        for group_id in self.led_groups():
            try:
                self.node.transfer_leadership(group_id, to)
            except MultiRaftError:  # it is being handed over already
                continue
            handed += 1
        return handed


async def _obey(worker: ScaleNode, op: str, wanted: dict[str, Any]) -> object:
    if op == "figures":
        return worker.figures()
    if op == "ready":
        return await worker.ready(**wanted)
    if op == "led_groups":
        return {"groups": worker.led_groups()}
    if op == "lag":
        worker.lag.begin() if wanted["on"] else worker.lag.end()
        return {"lag_ms": worker.lag.most_s * 1e3}
    if op == "tune":
        tune_process()
        return {}
    if op == "begin_load":
        return {"groups": worker.begin_load(**wanted)}
    if op == "end_load":
        await worker.end_load()
        return {}
    if op == "reach":
        return await worker.reach(**wanted)
    if op == "each_once":
        return await worker.each_once(**wanted)
    if op == "gather":
        return {"handed": worker.gather(**wanted)}
    raise ValueError(f"no operation {op!r}")


async def serve(options: dict[str, Any]) -> None:
    """Run the node and obey stdin until it ends."""
    worker = ScaleNode(options)
    tune_process()  # a start makes millions of objects, and nearly all of them stay
    bare = memory_bytes()
    if options.get("lag", True):
        worker.lag.begin()
    async with worker.node, aclosing(orders()) as wanted_orders:
        say({"event": "started", "pid": os.getpid(), "bare": bare})
        async for op, wanted in wanted_orders:
            say(await _obey(worker, op, wanted))
    worker.lag.end()


if __name__ == "__main__":
    run_process(serve)
