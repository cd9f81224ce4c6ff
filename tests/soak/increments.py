"""A million increments, nodes that are killed all the time, and a sum that must come out exactly.

    python -m tests.soak.increments --total 1000000 --shards 16

Three node processes; clients outside of them, each with a session of its own. A client numbers each increment and
sends it again under its number, to any node, until some node knows what came of it. Every few seconds a random node is
killed with SIGKILL, and started again once it is dead. At the end every replica's counters must be what was
acknowledged: not one more, not one less.

Rules of this file: an increment counts once, when its outcome is known; whatever is unknown is asked again, for ever;
nothing outlives the program.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import shutil
import sys
import tempfile
import time
from collections import Counter, deque
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from tests.soak.cluster import SoakCluster
from tests.soak.wire import Connection, LostError, Refused

NAMES: Final = 256
_FRAME: Final = 100
_WINDOW: Final = 50_000
_SETTLE_S: Final = 120.0
_PATIENCE_S: Final = 10.0
_PAUSE_S: Final = 0.1
_AVOID_S: Final = 0.3
_ENDED: Final = ("done", "forgotten")


@dataclass
class Tally:
    """What the clients went through, and what must come out."""

    acknowledged: Counter[str] = field(default_factory=Counter)
    attempts: int = 0
    retries: int = 0
    unknown: int = 0
    not_committed: Counter[str] = field(default_factory=Counter)
    forgotten: int = 0
    kills: int = 0
    elections: int = 0
    longest_s: float = 0.0

    @property
    def done(self) -> int:
        return self.acknowledged.total()


@dataclass(slots=True)
class Item:
    """One increment. `unknown`: an attempt may have happened."""

    sequence: int
    name: str
    began_s: float
    attempts: int = 0
    unknown: bool = False


class Nodes:
    """Connections to the nodes that are there, and who leads what, as far as anybody has said."""

    def __init__(self, cluster: SoakCluster) -> None:
        self._cluster = cluster
        self._connections: dict[str, Connection] = {}
        self._dialling = {node_id: asyncio.Lock() for node_id in cluster.nodes}
        self._leaders: dict[str, str] = {}
        self._avoid = dict.fromkeys(cluster.nodes, 0.0)

    async def ask(self, node_id: str, what: str, about: Any = None) -> Any:
        """Raises LostError, Refused."""
        async with self._dialling[node_id]:
            connection = self._connections.get(node_id)
            if connection is None or not connection.alive:
                if connection is not None:
                    await connection.close()
                try:
                    connection = await Connection.to(self._cluster.port(node_id))
                except LostError:
                    self._avoid[node_id] = time.monotonic() + _AVOID_S
                    raise
                self._connections[node_id] = connection
        return await connection.ask(what, about)

    def near(self, name: str) -> str:
        """Return a node that runs, the leader of the name's shard if it is known."""
        leader, now = self._leaders.get(name), time.monotonic()
        there = [node_id for node_id, until in self._avoid.items() if until <= now]
        return leader if leader in there else random.choice(there or list(self._avoid))

    async def follow(self, names: list[str]) -> None:
        """Keep asking who leads."""
        while True:
            for node_id in self._avoid:
                try:
                    async with asyncio.timeout(_PATIENCE_S):
                        leaders = await self.ask(node_id, "leaders", names)
                except (LostError, Refused, TimeoutError):
                    continue
                self._leaders.update(
                    (name, leader) for name, leader in zip(names, leaders, strict=True) if leader is not None
                )
            await asyncio.sleep(0.2)

    async def close(self) -> None:
        for connection in self._connections.values():
            await connection.close()


class Client:
    """One session, and the increments under way in it."""

    def __init__(self, cluster: SoakCluster, tally: Tally, total: int, in_flight: int, number: int) -> None:
        self.nodes = Nodes(cluster)
        self._tally = tally
        self._left = total
        self._in_flight = in_flight
        self._chance = random.Random(number)
        self._session = b""
        self._next = 1
        self._outstanding: dict[int, Item] = {}
        self._ready: deque[Item] = deque()
        self._under_way = 0
        self._wake = asyncio.Event()

    async def run(self, names: list[str]) -> None:
        """Have all increments done."""
        self._session = await self._open()
        following = asyncio.create_task(self.nodes.follow(names))
        frames: set[asyncio.Task[None]] = set()
        try:
            while self._left or self._outstanding:
                self._draw(names)
                for node_id, items in self._frames():
                    frame = asyncio.create_task(self._send(node_id, items))
                    frames.add(frame)
                    frame.add_done_callback(frames.discard)
                await self._wake.wait()
                self._wake.clear()
                for frame in [frame for frame in frames if frame.done()]:
                    frame.result()
        finally:
            following.cancel()
            for frame in frames:
                frame.cancel()
            await asyncio.gather(following, *frames, return_exceptions=True)
            await self.nodes.close()

    async def _open(self) -> bytes:
        while True:
            try:
                session: bytes = await self.nodes.ask(self.nodes.near(""), "session")
                return session
            except (LostError, Refused):
                await asyncio.sleep(0.1)

    def _draw(self, names: list[str]) -> None:
        """Begin as many increments as there is room for."""
        lowest = next(iter(self._outstanding), self._next)
        while self._left and len(self._outstanding) < self._in_flight and self._next - lowest < _WINDOW:
            item = Item(self._next, self._chance.choice(names), time.monotonic())
            self._outstanding[item.sequence] = item
            self._ready.append(item)
            self._next += 1
            self._left -= 1

    def _frames(self) -> list[tuple[str, list[Item]]]:
        """Take what is ready to be sent, by node."""
        by_node: dict[str, list[Item]] = {}
        while self._ready:
            item = self._ready.popleft()
            by_node.setdefault(self.nodes.near(item.name), []).append(item)
        return [
            (node_id, items[at : at + _FRAME])
            for node_id, items in by_node.items()
            for at in range(0, len(items), _FRAME)
        ]

    async def _send(self, node_id: str, items: list[Item]) -> None:
        lowest = next(iter(self._outstanding))
        asked = [[self._session, item.sequence, lowest, not item.unknown, item.name] for item in items]
        try:
            async with asyncio.timeout(_PATIENCE_S):
                answers = await self.nodes.ask(node_id, "add", asked)
        except (LostError, Refused, TimeoutError) as problem:
            unsent = isinstance(problem, LostError) and problem.unsent
            answers = [["unsent" if unsent else "unknown", str(problem)]] * len(items)
        for item, (outcome, value) in zip(items, answers, strict=True):
            if outcome != "unsent":
                self._judge(item, outcome, value)
        self._wake.set()
        undone = [item for item, (outcome, _) in zip(items, answers, strict=True) if outcome not in _ENDED]
        if undone:
            await asyncio.sleep(_PAUSE_S)
            self._ready.extend(undone)
            self._wake.set()

    def _judge(self, item: Item, outcome: str, value: Any) -> None:
        tally = self._tally
        tally.attempts += 1
        tally.retries += item.attempts > 0
        item.attempts += 1
        if outcome in _ENDED:
            tally.forgotten += outcome == "forgotten"
            tally.longest_s = max(tally.longest_s, time.monotonic() - item.began_s)
            tally.acknowledged[item.name] += 1
            del self._outstanding[item.sequence]
            return
        if outcome == "unknown":
            tally.unknown += 1
            item.unknown = True
        elif outcome == "not":
            tally.not_committed[str(value).partition(":")[0]] += 1
        else:
            raise RuntimeError(f"increment {item.sequence} of {item.name}: {outcome}: {value}")


async def kill_now_and_again(
    cluster: SoakCluster, tally: Tally, every_s: float, chance: random.Random, enough: asyncio.Event
) -> None:
    """Kill a random node, start it again, wait until it is ready, and so on until it is enough."""
    while not enough.is_set():
        with suppress(TimeoutError):
            async with asyncio.timeout(every_s * chance.uniform(0.7, 1.3)):
                await enough.wait()
                return
        victim = chance.choice(list(cluster.nodes))
        await cluster.kill(victim)
        tally.kills += 1
        await cluster.start(victim)


async def compare(cluster: SoakCluster, tally: Tally) -> list[str]:
    """Return how the replicas differ from what was acknowledged, once all have applied everything."""
    nodes = Nodes(cluster)
    problems: list[str] = []
    try:
        give_up = time.monotonic() + _SETTLE_S
        while True:
            groups = [await nodes.ask(node_id, "groups") for node_id in cluster.nodes]
            commits = {group_id: max(one[group_id]["commit"] for one in groups) for group_id in groups[0]}
            if all(one[group_id]["applied"] >= commit for one in groups for group_id, commit in commits.items()):
                break
            if time.monotonic() > give_up:
                raise RuntimeError(f"replicas had not caught up after {_SETTLE_S:.0f} s: {groups}")
            await asyncio.sleep(0.1)
        tally.elections = sum(max(one[group_id]["term"] for one in groups) - 1 for group_id in commits)
        for node_id in cluster.nodes:
            found: Counter[str] = Counter()
            for counters in (await nodes.ask(node_id, "counters")).values():
                found.update(counters)
            wrong = sorted(name for name in {*found, *tally.acknowledged} if found[name] != tally.acknowledged[name])
            print(f"node {node_id}: sum {found.total():,}, {len(wrong)} of {len(found)} counters wrong", flush=True)
            problems += [f"{node_id}: {name} {found[name]} for {tally.acknowledged[name]}" for name in wrong]
    finally:
        await nodes.close()
    return problems


async def soak(arguments: argparse.Namespace, directory: Path) -> int:
    tally = Tally()
    names = [f"counter{number}" for number in range(NAMES)]
    options = [f"--shards={arguments.shards}", *[f"--limit={limit}" for limit in arguments.limit]]
    if arguments.in_memory:
        options.append("--in-memory")
    async with SoakCluster(directory, options) as cluster:
        began = time.monotonic()
        share, rest = divmod(arguments.total, arguments.clients)
        per_client = max(1, arguments.in_flight // arguments.clients)
        clients = [
            Client(cluster, tally, share + (number < rest), per_client, number) for number in range(arguments.clients)
        ]
        enough = asyncio.Event()
        chance = random.Random(arguments.seed)
        telling = asyncio.create_task(_tell(tally, arguments.total, began))
        working = asyncio.create_task(_all(clients, names))
        killing = asyncio.create_task(kill_now_and_again(cluster, tally, arguments.kill_every, chance, enough))
        try:
            await asyncio.wait([working, killing], return_when=asyncio.FIRST_COMPLETED)
            if killing.done():
                killing.result()  # a node did not come back
            await working
            elapsed_s = time.monotonic() - began
            enough.set()
            await killing
        finally:
            for task in (working, telling, killing):
                task.cancel()
            await asyncio.gather(working, telling, killing, return_exceptions=True)
        problems = await compare(cluster, tally)
    print(
        f"{tally.done:,} increments in {elapsed_s:.1f} s, {tally.done / elapsed_s:,.0f} a second; "
        f"{tally.kills} kills, {tally.elections} elections; {tally.attempts:,} attempts, {tally.retries:,} retries, "
        f"{tally.unknown:,} of unknown outcome and {tally.not_committed.total():,} not committed, all resolved by "
        f"asking again ({tally.forgotten} without their value); the longest took {tally.longest_s:.1f} s"
    )
    for problem in problems[:10]:
        print(f"WRONG {problem}")
    exact = not problems and tally.done == arguments.total
    print("the sum is exact on every replica" if exact else "the sum is NOT exact")
    return 0 if exact else 1


async def _all(clients: list[Client], names: list[str]) -> None:
    async with asyncio.TaskGroup() as group:
        for client in clients:
            group.create_task(client.run(names))


async def _tell(tally: Tally, total: int, began: float) -> None:
    while True:
        await asyncio.sleep(10)
        rate = tally.done / (time.monotonic() - began)
        told = (
            f"{tally.done:,} of {total:,}, {rate:,.0f} a second, {tally.kills} kills, {tally.unknown:,} unknown so far"
        )
        print(told, flush=True)


def main(words: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Increments through kill -9, and an exact sum.")
    parser.add_argument("--total", type=int, default=1_000_000)
    parser.add_argument("--shards", type=int, default=16)
    parser.add_argument("--clients", type=int, default=3)
    parser.add_argument("--in-flight", type=int, default=3_000)
    parser.add_argument("--kill-every", type=float, default=5.0, metavar="SECONDS")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--in-memory", action="store_true")
    parser.add_argument("--limit", action="append", default=[], metavar="NAME=VALUE")
    parser.add_argument("--directory", type=Path, help="where the nodes' data go [a temporary one]")
    arguments = parser.parse_args(words)
    directory = Path(tempfile.mkdtemp(prefix="multiraft-soak-", dir=arguments.directory))
    try:
        return asyncio.run(soak(arguments, directory))
    finally:
        shutil.rmtree(directory, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main())
