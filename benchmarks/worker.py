"""One node of a benchmark cluster: a process that is told what to do on stdin and answers on stdout, in JSON lines.

Started by `benchmarks.cluster`. The services "bytes" and "typed" have as many shards as groups are asked for; clients
run inside this process, in a closed loop, on the groups that it leads.

Rules of this file: what is measured is what users call: `Group.propose` and a `@command` of a service handle.
"""

from __future__ import annotations

import asyncio
import resource
import struct
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, aclosing, suppress
from typing import Any

import msgpack

from benchmarks.figures import latency_buckets, latency_figures
from benchmarks.obeying import orders, run_process, say
from multiraft.admin.api import serve_admin
from multiraft.config import Limits, NodeConfig
from multiraft.errors import NotReady
from multiraft.node import Node
from multiraft.statemachine import BytesStateMachine, StateMachine, command
from multiraft.tuning import tune_process
from multiraft.types import GroupId

_COUNT = struct.Struct(">Q")


class Blobs(BytesStateMachine):
    """Keeps the last command of each of 4,096 keys; answers how many it has applied. Takes all of a record together."""

    def __init__(self) -> None:
        self.kept: dict[bytes, bytes] = {}
        self.count = 0

    def apply_batch(self, commands: list[bytes]) -> list[bytes | Exception]:
        kept = self.kept
        for one in commands:
            kept[one[:8]] = one
        before = self.count
        self.count += len(commands)
        return [_COUNT.pack(number) for number in range(before + 1, self.count + 1)]

    def query(self, query: bytes) -> bytes:
        return self.kept.get(query, b"")

    def snapshot(self) -> bytes:
        packed: bytes = msgpack.packb((self.count, self.kept))
        return packed

    def restore(self, state: bytes) -> None:
        self.count, self.kept = msgpack.unpackb(state)


class Typed(StateMachine):
    """The same through a typed command."""

    def __init__(self) -> None:
        self.kept: dict[str, bytes] = {}
        self.count = 0

    @command(key="key")
    def put(self, key: str, value: bytes) -> int:
        self.kept[key] = value
        self.count += 1
        return self.count


def cpu_s() -> float:
    """User and system CPU seconds of this process so far."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


async def closed_loop(
    calls: list[Callable[[int], Awaitable[object]]], in_flight: int, seconds: float, bucket_ms: float | None = None
) -> dict[str, Any]:
    """Keep `in_flight` calls under way for `seconds`, client k on calls[k % len]; return counts and latencies.

    With `bucket_ms` the latencies come as a histogram, too.
    """
    latencies: list[float] = []
    clock = time.perf_counter
    used_s = cpu_s()
    began_s = clock()
    end_s = began_s + seconds

    async def client(number: int) -> None:
        call = calls[number % len(calls)]
        note = latencies.append
        while True:
            before_s = clock()
            if before_s >= end_s:
                return
            await call(number)
            note(clock() - before_s)

    await asyncio.gather(*[client(number) for number in range(in_flight)])
    took_s = clock() - began_s
    used_s = cpu_s() - used_s
    buckets = {} if bucket_ms is None else {"buckets": latency_buckets(latencies, bucket_ms)}
    return {"cpu_s": used_s, **latency_figures(latencies, took_s), **buckets}


async def _all_done(outcomes: Awaitable[Sequence[object]]) -> None:
    """Await many calls, each of which must have succeeded."""
    for outcome in await outcomes:
        if isinstance(outcome, Exception):
            raise outcome


class Worker:
    """The node, and the operations that the benchmark asks of it."""

    def __init__(self, options: dict[str, Any]) -> None:
        limits = Limits(**options.get("limits", {}))
        config = NodeConfig(
            options["node_id"], options["data_dir"], options["listen"], options["members"], False, limits
        )
        self.node = Node(config)
        groups = options["groups"]
        self.blobs = self.node.bytes_service("bytes", Blobs, initial_shards=groups)
        self.typed = self.node.service("typed", Typed, initial_shards=groups) if options.get("typed", True) else None

    def led(self, service: str) -> list[GroupId]:
        """The groups of a service that this node leads."""
        shards = self.node.shard_map.services[service].shards
        return [shard.group_id for shard in shards if self.node.leads(shard.group_id)]

    async def load(
        self, level: str, in_flight: int, seconds: float, payload: int, groups: int, bucket_ms: float | None = None
    ) -> dict[str, Any]:
        calls: list[Callable[[int], Awaitable[object]]]
        if level == "bytes":
            pad = b"x" * (payload - 8)
            handles = [self.node.group(group_id) for group_id in self.led("bytes")[:groups]]
            commands = [b"%08d" % number + pad for number in range(4096)]
            calls = [
                lambda number, propose=handle.propose: propose(commands[number % 4096])  # type: ignore[misc]
                for handle in handles
            ]
        elif level in ("many", "command-many", "reads-many"):
            return await self._load_many(level, in_flight, seconds, payload, groups, bucket_ms)
        elif level == "reads":
            handles = [self.node.group(group_id) for group_id in self.led("bytes")[:groups]]
            calls = [lambda number, read=handle.read: read(b"%08d" % (number % 4096)) for handle in handles]  # type: ignore[misc]
        else:
            if self.typed is None:
                raise ValueError("this worker has no typed service")
            put, value = self.typed.put, b"x" * (payload - 8)
            keys = self._keys_of_led_groups(groups)
            calls = [lambda number, key=key: put(key, value) for key in keys]  # type: ignore[misc]
        return await closed_loop(calls, in_flight, seconds, bucket_ms)

    async def _load_many(
        self, level: str, in_flight: int, seconds: float, payload: int, groups: int, bucket_ms: float | None
    ) -> dict[str, Any]:
        """One client a group, which has as many calls under way together as there would be clients of it otherwise."""
        calls: list[Callable[[int], Awaitable[object]]]
        pad = b"x" * (payload - 8) if level != "reads-many" else b""
        if level != "command-many":
            handles = [self.node.group(group_id) for group_id in self.led("bytes")[:groups]]
            at_once = max(1, in_flight // len(handles))
            batches = [
                [b"%08d" % (at * at_once + n) + pad for n in range(at_once)] for at in range(4096 // at_once + 1)
            ]
            bring = [handle.propose_many if level == "many" else handle.read_many for handle in handles]
            calls = [
                lambda number, many=many: _all_done(many(batches[number % len(batches)]))  # type: ignore[misc]
                for many in bring
            ]
        else:
            if self.typed is None:
                raise ValueError("this worker has no typed service")
            keys, put_many = self._keys_of_led_groups(groups), self.typed.put.many
            at_once = max(1, in_flight // len(keys))
            calls = [lambda number, batch=[(key, pad)] * at_once: _all_done(put_many(batch)) for key in keys]  # type: ignore[misc]
        found = await closed_loop(calls, max(1, in_flight // at_once), seconds, bucket_ms)
        return {**found, "writes": found["writes"] * at_once, "writes_per_s": found["writes_per_s"] * at_once}

    def _keys_of_led_groups(self, groups: int) -> list[str]:
        """One key for each of the groups of "typed" that this node leads."""
        service = self.node.shard_map.services["typed"]
        wanted = set(self.led("typed")[:groups])
        found: dict[GroupId, str] = {}
        number = 0
        while len(found) < len(wanted):
            key = f"{number:08d}"
            group_id = service.find(key.encode()).group_id
            if group_id in wanted:
                found.setdefault(group_id, key)
            number += 1
        return list(found.values())

    def gather_leaders(self, to: str) -> int:
        """Hand every group that this node leads to node `to`; return how many."""
        led = [group_id for service in self.node.shard_map.services for group_id in self.led(service)]
        for group_id in led:
            with suppress(NotReady):  # it is being handed over already
                self.node.transfer_leadership(group_id, to)
        return len(led)

    def counts(self) -> dict[str, Any]:
        """CPU, memory, turns, syncs, frames, and what each machine has applied."""
        status = self.node.status()
        applied = 0
        for row in self.node.groups_status():
            machine = self.node.local_machine(row["group_id"]) if row["service"] in ("bytes", "typed") else None
            if isinstance(machine, Blobs | Typed):
                applied += machine.count
        return {
            "cpu_s": cpu_s(),
            "rss_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
            "turns": status["loop"]["turns"],
            "syncs": status["writer"]["syncs"],
            "lag_ms": status["loop"]["lag_ms"],
            "counters": status["counters"],
            "groups": status["groups"],
            "applied": applied,
        }


async def serve(options: dict[str, Any]) -> None:
    """Run the node and obey stdin until it ends."""
    worker = Worker(options)
    async with worker.node, AsyncExitStack() as stack:
        if "serve" in options:  # remote clients, beside the admin API
            await stack.enter_async_context(serve_admin(worker.node, options["serve"][options["node_id"]]))
        await worker.node.ready(timeout_s=120)
        if options.get("gc", "freeze") == "freeze":
            tune_process()
        say({"event": "ready"})
        async for op, wanted in await stack.enter_async_context(aclosing(orders())):
            if op == "load":
                say(await worker.load(**wanted))
            elif op == "gather":
                say({"handed": worker.gather_leaders(**wanted)})
            elif op == "led":
                say({service: len(worker.led(service)) for service in worker.node.shard_map.services})
            elif op == "counts":
                say(worker.counts())
            elif op == "stop":
                break


if __name__ == "__main__":
    run_process(serve)
