"""Everything at once: nodes are crashed, cut off, stalled and restarted while clients write and read.

Each seed is one run on virtual time, the same every time. Clients add to counters, each command once and under a
number of its own, and read them. In the end the log says in which order the commands were applied, so that every
answer can be judged: an acknowledged command stands in the log exactly once and at the place that it was told, a
command that certainly did not happen stands nowhere, and a read saw everything that was acknowledged before it began
and nothing that began after it ended. When the faults are over the cluster must come together within bounded time.

    MULTIRAFT_STORM_SEEDS=1000 python -m pytest tests/node/test_storm.py       seeds 0 to 999 in place of the usual few
    MULTIRAFT_STORM_SEED=1234 python -m pytest tests/node/test_storm.py        that seed alone

Rules of this file: nothing random but what the seed says; a failure names the one command that replays it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from bisect import bisect_right
from collections.abc import Awaitable, Callable
from functools import partial
from random import Random
from typing import Any

import msgpack
import pytest

from multiraft import (
    BytesService,
    BytesStateMachine,
    CommandFailed,
    Limits,
    MultiRaftError,
    Node,
    NotCommitted,
    StorageError,
)
from multiraft.testing import MemoryCluster, VirtualLoop, run_virtual

if "MULTIRAFT_STORM_SEED" in os.environ:
    SEEDS = range(int(os.environ["MULTIRAFT_STORM_SEED"]), int(os.environ["MULTIRAFT_STORM_SEED"]) + 1)
else:
    SEEDS = range(int(os.environ.get("MULTIRAFT_STORM_SEEDS", "20")))

SETTLE_S = 40.0
"""How long a cluster may take, when the faults are over, until every group serves and every replica has caught up."""
KEYS = [b"k%d" % number for number in range(4)]


class Counters(BytesStateMachine):
    """Keeps, per key, every token in order. A command is `key token`; its answer, and a query's, is how many."""

    def __init__(self) -> None:
        self.tokens: dict[bytes, list[bytes]] = {}

    def apply(self, command: bytes) -> bytes:
        key, token = command.split()[:2]
        if token.startswith(b"!"):
            raise ValueError("a command that fails")
        tokens = self.tokens.setdefault(key, [])
        tokens.append(token)
        return b"%d" % len(tokens)

    def query(self, query: bytes) -> bytes:
        return b"%d" % len(self.tokens.get(query, ()))

    def snapshot(self) -> bytes:
        packed: bytes = msgpack.packb(self.tokens)
        return packed

    def restore(self, state: bytes) -> None:
        self.tokens = msgpack.unpackb(state, raw=True)


class History:
    """What clients did and were told: (key, token, began, ended, answer or None, certainly not) and reads alike."""

    def __init__(self) -> None:
        self.writes: list[tuple[bytes, bytes, float, float, int | None, bool]] = []
        self.reads: list[tuple[bytes, float, float, int]] = []

    def check(self, final: dict[bytes, list[bytes]]) -> None:
        """Compare with what every replica has in the end."""
        place: dict[bytes, int] = {}
        for tokens in final.values():
            for number, token in enumerate(tokens, 1):
                assert token not in place, f"{token!r} was applied twice"
                place[token] = number
        for key in KEYS:
            began: list[tuple[int, float]] = []
            acknowledged: list[tuple[float, int]] = []
            for of_key, token, began_s, ended_s, answer, certainly_not in self.writes:
                if of_key != key:
                    continue
                if answer is not None:
                    assert place.get(token) == answer, f"{token!r} was told {answer}, is at {place.get(token)}"
                    acknowledged.append((ended_s, answer))
                if certainly_not:
                    assert token not in place, f"{token!r} was NotCommitted at {ended_s:.3f}, but happened"
                if token in place:
                    began.append((place[token], began_s))
            began.sort()
            self._check_order(key, began, acknowledged)

    def _check_order(self, key: bytes, began: list[tuple[int, float]], acknowledged: list[tuple[float, int]]) -> None:
        """Answers in real time never contradict the order of the log: with known places this is linearizability."""
        known = acknowledged + [(ended_s, seen) for of_key, _, ended_s, seen in self.reads if of_key == key]
        known.sort()
        ends = [ended_s for ended_s, _ in known]
        most = [0]
        for _, seen in known:
            most.append(max(most[-1], seen))
        began_by_place = dict(began)
        for place, began_s in began:
            before = most[bisect_right(ends, began_s - 1e-9)]
            assert place > before, f"{key!r}: place {place}, begun at {began_s:.3f}, after {before} was known"
        for of_key, began_s, ended_s, seen in self.reads:
            if of_key == key:
                before = most[bisect_right(ends, began_s - 1e-9)]
                assert seen >= before, f"{key!r}: a stale read at {began_s:.3f}-{ended_s:.3f}: {seen}, {before} known"
                if seen:
                    assert began_by_place[seen] <= ended_s, f"{key!r}: a read saw what began after it ended"


class Storm:
    """One run."""

    def __init__(self, seed: int, trace: Callable[[str], None] = lambda _: None) -> None:
        self.rng = rng = Random(seed)
        self.trace = trace
        names = "abcde"[: rng.choice([1, 2, 3, 3, 3, 3, 4, 5])]
        self.services: dict[str, BytesService] = {}
        self.history = History()
        self.leaders: dict[tuple[int, int], str] = {}
        self.running = True
        self.shards = rng.choice([1, 2, 4])
        snapshot_entries = rng.choice([0, 4, 20, 100])
        limits = Limits(
            request_timeout_ms=rng.choice([1_500, 3_000, 10_000]),
            batch_bytes=rng.choice([4096, 1024 * 1024]),
            inflight_messages=rng.choice([1, 4, 256]),
            writes_in_flight=rng.choice([1, 4]),
            log_cache_bytes=rng.choice([0, 64 * 1024 * 1024]),
            commit_delay_ms=rng.choice([0, 5, 50]),
            snapshot_entries=snapshot_entries,
            trailing_entries=rng.choice([0, snapshot_entries // 2]),
            apply_slice_ms=1_000,  # of real time: never over, or one seed would not be one run
        )
        self.cluster = MemoryCluster(self._declare, names, limits=limits, seed=seed)
        self.disk_s = rng.choice([0.0, 0.004, 0.004, 0.3])
        self.wire_s = rng.choice([0.0, 0.003, 0.003, 0.1])
        self.patience_s = limits.request_timeout_ms / 1e3

    def _declare(self, node: Node) -> None:
        name = node.node_id
        self.services[name] = node.bytes_service("counters", Counters, initial_shards=self.shards)
        for group_id in (1, *range(16, 16 + self.shards)):
            node.subscribe_role(group_id, partial(self._led, node, group_id))

    def _led(self, node: Node, group_id: int, leads: bool) -> None:
        if leads and self.cluster.nodes.get(node.node_id) is node and node.leads(group_id):
            term = node.group_status(group_id)["term"]
            other = self.leaders.setdefault((group_id, term), node.node_id)
            assert other == node.node_id, f"group {group_id}: {other} and {node.node_id} both lead term {term}"

    # ---------------------------------------------------------------------------------------------------- clients

    async def _client(self, number: int) -> None:
        rng, cluster, loop = self.rng, self.cluster, asyncio.get_running_loop()
        count = 0
        while self.running:
            await cluster.run_for(rng.uniform(0.0, 0.1))
            key, service = rng.choice(KEYS), self.services[rng.choice(cluster.names)]
            timeout_s = rng.choice([None, None, 0.2, 1.0])
            count += 1
            began_s = loop.time()
            if rng.random() < 0.4:
                await self._read(service, key, timeout_s, began_s)
                continue
            mark = b"!" if rng.random() < 0.03 else b""
            token = mark + b"%d.%d" % (number, count)
            padding = b"." * rng.choice([0, 0, 0, 3000, 20_000])
            answer, certainly_not = None, False
            try:
                answer = int(await self._call(service.propose(key, key + b" " + token + b" " + padding, timeout_s)))
            except NotCommitted:
                certainly_not = True
            except CommandFailed:
                assert mark, "a command failed that should not"
            except MultiRaftError:
                pass
            self.history.writes.append((key, token, began_s, loop.time(), answer, certainly_not))

    async def _read(self, service: BytesService, key: bytes, timeout_s: float | None, began_s: float) -> None:
        try:
            seen = int(await self._call(service.read(key, key, timeout_s)))
        except MultiRaftError:
            return
        self.history.reads.append((key, began_s, asyncio.get_running_loop().time(), seen))

    async def _call(self, call: Awaitable[bytes]) -> bytes:
        """No call may take longer than its time, the loop's own pauses aside."""
        task = asyncio.ensure_future(call)
        done, _ = await asyncio.wait({task}, timeout=self.patience_s + 15.0)
        assert done, "a call was never answered"
        return task.result()

    # ----------------------------------------------------------------------------------------------------- faults

    async def _faults(self) -> None:
        rng, cluster = self.rng, self.cluster
        deeds = [
            self._crash, self._crash, self._crash_all, self._stop, self._start, self._start, self._isolate,
            self._cut, self._cut, self._stall, self._heal, self._heal, self._hold, self._release, self._pause,
            self._transfer, self._transfer, self._coup, self._coup, self._drop, self._fail_write,
        ]  # fmt: skip
        for _ in range(rng.randrange(5, 25)):
            await cluster.run_for(rng.choice([0.01, 0.3, 1.0, 3.0]) * rng.random())
            await rng.choice(deeds)()

    def _any(self, names: Any) -> str | None:
        names = list(names)
        return self.rng.choice(names) if names else None

    def _say(self, deed: str) -> None:
        self.trace(f"{asyncio.get_running_loop().time():9.3f} {deed}")

    def _forget_ended(self) -> None:
        for name, node in list(self.cluster.nodes.items()):
            if node._running is None:
                del self.cluster.nodes[name]

    async def _crash(self) -> None:
        self._forget_ended()
        name = self._any(self.cluster.nodes)
        if name is not None:
            keep = self.rng.randrange(4)
            self._say(f"crash {name}, keeping {keep}")
            self.cluster.crash(name, keep=keep)

    async def _crash_all(self) -> None:
        self._forget_ended()
        if self.cluster.nodes:
            self._say("crash all")
            self.cluster.crash(keep=self.rng.randrange(4))

    async def _stop(self) -> None:
        self._forget_ended()
        name = self._any(self.cluster.nodes)
        if name is not None:
            self._say(f"stop {name}")
            self.cluster.disks[name].release()
            await self.cluster.stop(name)

    async def _start(self) -> None:
        self._forget_ended()
        name = self._any([name for name in self.cluster.names if name not in self.cluster.nodes])
        if name is not None:
            self._say(f"start {name}")
            await self.cluster.until(lambda: not self.cluster.disks[name].in_use)
            try:
                await self.cluster.start(name)
            except StorageError as problem:
                self._say(f"  it did not start: {problem}")

    async def _isolate(self) -> None:
        name = self.rng.choice(self.cluster.names)
        self._say(f"isolate {name}")
        self.cluster.isolate(name)

    def _pair(self) -> tuple[str, str]:
        names = self.cluster.names
        one = self.rng.choice(names)
        return one, self.rng.choice([name for name in names if name != one] or [one])

    async def _cut(self) -> None:
        one, other = self._pair()
        self._say(f"cut {one} -> {other}")
        self.cluster.network.cut(one, other)

    async def _stall(self) -> None:
        one, other = self._pair()
        self._say(f"stall {one} -> {other}")
        self.cluster.network.stall(one, other)

    async def _heal(self) -> None:
        self._say("heal")
        self.cluster.heal()

    async def _hold(self) -> None:
        disk = self.cluster.disks[self.rng.choice(self.cluster.names)]
        self._say(f"hold {disk.name}")
        disk.hold_writes() if self.rng.random() < 0.5 else disk.hold_completions()

    async def _release(self) -> None:
        self._say("release")
        for disk in self.cluster.disks.values():
            disk.release()

    async def _pause(self) -> None:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, VirtualLoop)
        seconds = self.rng.choice([0.05, 0.5, 5.0])
        self._say(f"pause {seconds}")
        loop.pass_time(seconds)

    async def _transfer(self) -> None:
        self._forget_ended()
        group_id = self.rng.choice([1, *range(16, 16 + self.shards)])
        leader = self._any(self.cluster.leaders(group_id))
        to = self.rng.choice(self.cluster.names)
        if leader is not None:
            self._say(f"transfer {group_id}: {leader} -> {to}")
            try:
                self.cluster.nodes[leader].transfer_leadership(group_id, to)
            except NotCommitted as problem:
                self._say(f"  refused: {problem}")

    async def _coup(self) -> None:
        """Leadership is handed over while the old leader hears nobody: it does not learn of its successor."""
        self._forget_ended()
        cluster = self.cluster
        old = self._any(cluster.leaders(16))
        to = self.rng.choice(cluster.names)
        if old is None or to == old or to not in cluster.nodes or 16 not in cluster.nodes[to]._here().engine.replicas:
            return
        self._say(f"coup against {old} by {to}")
        successor = cluster.nodes[to]._here().engine.replicas[16].core
        term = successor.term
        with contextlib.suppress(NotCommitted, TimeoutError):
            cluster.nodes[old].transfer_leadership(16, to)
            await cluster.until(lambda: successor.term > term, timeout_s=0.5)
        for name in cluster.names:
            if name != old:
                cluster.network.stall(name, old)
        await cluster.run_for(self.rng.choice([0.3, 1.0]))
        cluster.heal()

    async def _drop(self) -> None:
        one, other = self._pair()
        self._say(f"drop {one} -> {other}")
        self.cluster.network.drop_next_bulk(one, other, self.rng.choice([1, 5]))

    async def _fail_write(self) -> None:
        if self.rng.random() < 0.5:
            name = self.rng.choice(self.cluster.names)
            self._say(f"fail write {name}")
            self.cluster.disks[name].fail_next_write(OSError(5, "Input/output error"), written=self.rng.random() < 0.5)

    # ------------------------------------------------------------------------------------------------------- run

    async def _settle(self) -> None:
        """End all faults."""
        cluster = self.cluster
        self._say("faults end")
        cluster.heal()
        for name in cluster.names:
            disk = cluster.disks[name]
            disk.release()
            disk._failure = None
            disk.delay_s = None
            for other in cluster.names:
                cluster.network.delay(name, other, 0.0)
        await cluster.run_for(0.5)
        self._forget_ended()
        for name in cluster.names:
            if name not in cluster.nodes:
                await cluster.start(name)

    async def _converge(self) -> None:
        cluster = self.cluster
        async with asyncio.timeout(SETTLE_S):
            await cluster.ready(SETTLE_S)
            for name in cluster.names:
                for key in KEYS:
                    await cluster.insist(lambda: self.services[name].read(key, key))  # noqa: B023
        groups = (1, *range(16, 16 + self.shards))
        await cluster.until(lambda: all(self._agrees(group_id) for group_id in groups), SETTLE_S)

    def _engines(self) -> list[Any]:
        return [node._here().engine for node in self.cluster.nodes.values()]

    def _agrees(self, group_id: int) -> bool:
        """Whether one leads, and all have applied the same."""
        replicas = [engine.replicas[group_id] for engine in self._engines() if group_id in engine.replicas]
        hosts = self.cluster.nodes[self.cluster.names[0]].shard_map.groups
        count = len(self.cluster.names) if group_id == 1 else len(hosts[group_id])
        return (
            len(replicas) == count
            and len(self.cluster.leaders(group_id)) == 1
            and len({(replica.applied, replica.core.last_index, replica.core.commit) for replica in replicas}) == 1
            and len({replica.core.leader for replica in replicas}) == 1
        )

    def _final(self) -> dict[bytes, list[bytes]]:
        """Return every key's tokens; all replicas must have the same."""
        final: dict[bytes, list[bytes]] = {}
        for group_id in range(16, 16 + self.shards):
            machines = [
                node.local_machine(group_id)
                for node in self.cluster.nodes.values()
                if group_id in node._here().engine.replicas
            ]
            tokens = [machine.tokens for machine in machines if isinstance(machine, Counters)]
            assert all(one == tokens[0] for one in tokens), f"group {group_id}: replicas differ"
            final.update(tokens[0])
        return final

    def _check_engines(self) -> None:
        for engine in self._engines():
            assert engine.counters["audit_repairs"] == 0, f"{engine.node_id}: the audit had to repair something"
            assert engine.budget.used_bytes == engine.budget.count == 0, f"{engine.node_id}: budget leaks"
            engine.liveness.check_digests()
            for replica in engine.replicas.values():
                assert replica.broken is None, f"{engine.node_id}: {replica.broken}"
                assert replica.halted is None
                left = [*replica.waiting, *replica.rounds.values(), *replica.confirmed]
                assert left == [], f"{engine.node_id}: callers are left"

    async def run(self) -> None:
        cluster, rng = self.cluster, self.rng
        loop = asyncio.get_running_loop()
        escaped: list[Any] = []
        loop.set_exception_handler(lambda _, context: escaped.append(context))
        for name in cluster.names:
            if self.disk_s:
                cluster.disks[name].delay_s = lambda: rng.uniform(0.0, self.disk_s)
            for other in cluster.names:
                if other != name and self.wire_s:
                    cluster.network.delay(name, other, lambda: rng.uniform(0.0, self.wire_s))
        await cluster.start()
        if rng.random() < 0.7:
            await cluster.ready()
        clients = [asyncio.ensure_future(self._client(number)) for number in range(6)]
        await self._faults()
        await self._settle()
        settled_s = loop.time()
        await self._converge()
        self._say(f"converged after {loop.time() - settled_s:.3f}")
        terms = {key: engine.replicas[key].core.term for engine in self._engines() for key in engine.replicas}
        await cluster.run_for(3.0)
        self.running = False
        await asyncio.gather(*clients)
        await self._converge()
        now = {key: engine.replicas[key].core.term for engine in self._engines() for key in engine.replicas}
        assert now == terms, "terms rise without a fault"
        await cluster.run_for(self.patience_s + 1.0)
        self._check_engines()
        self.history.check(self._final())
        await cluster.stop()
        await cluster.run_for(0.1)
        left = asyncio.all_tasks() - {asyncio.current_task()}
        assert not left, f"tasks are left: {left}"
        assert not escaped, f"exceptions escaped: {escaped}"
        assert isinstance(loop, VirtualLoop)
        timers = loop.timers()
        assert not timers, f"timers are left: {timers}"


@pytest.mark.parametrize("seed", SEEDS)
def test_storm(seed: int, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL + 1)
    try:
        run_virtual(Storm(seed, print).run())
    except BaseException:
        print(f"replay: MULTIRAFT_STORM_SEED={seed} python -m pytest tests/node/test_storm.py")
        raise
