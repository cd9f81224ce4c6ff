"""A failure in one of 100 groups under load: what it costs the other 99. Three nodes, a process each, real disks.

    python -m tests.soak.containment                100 groups, 10 seconds of each kind of trouble
    python -m tests.soak.containment --groups 30 --seconds 3

The clients of each node write to all groups, in closed loops, each write sent once. In one group, in this order:
nothing is wrong; a command raises, again and again; a command computes for 300 ms, which holds the loop of every node
that applies it; a follower's environment fails, so that its replica halts, until it is retried, which applies all of
that once more; the leader's fails, so that it hands over, until it is rebuilt. Printed of each: the writes to the other
groups, how long they took, how many were not answered with a result, and how many of these groups changed their leader.

Rules of this file: a write that is not answered with its result is lost; nothing is sent again.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import socket
import sys
import tempfile
import time
from collections import Counter
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from multiraft import Limits, MultiRaftError, Node, NodeConfig, StateMachine, command

NODES: Final = ("a", "b", "c")
SLOW_S: Final = 0.3
_CLIENTS: Final = 6
_RAISING: Final = 4
_START_S: Final = 120.0
broken_here = False
"""Whether the environment of this process is to fail `Work.fragile`."""


class Work(StateMachine):
    """Counts, and fails in the ways that are asked for."""

    def __init__(self) -> None:
        self.counts: dict[str, int] = {}

    @command(key="name")
    def count(self, name: str) -> int:
        self.counts[name] = self.counts.get(name, 0) + 1
        return self.counts[name]

    @command(key="name")
    def refuse(self, name: str) -> int:
        raise ValueError("this command raises")

    @command(key="name")
    def brood(self, name: str) -> int:
        until_s = time.perf_counter() + SLOW_S
        while time.perf_counter() < until_s:
            pass
        return self.count(name)

    @command(key="name")
    def fragile(self, name: str) -> int:
        if broken_here:
            raise OSError("the environment of this node failed")
        return self.count(name)


# ------------------------------------------------------------------------------------------------------- one node


@dataclass
class Window:
    """What one node's clients have met since it was opened."""

    terms: dict[int, int]
    took_ms: list[float] = field(default_factory=list)
    lost: Counter[str] = field(default_factory=Counter)
    victim_done: int = 0
    victim_failed: Counter[str] = field(default_factory=Counter)


class NodeProgram:
    """One node, its clients, and the answers to what the program that started it asks."""

    def __init__(self, node: Node, work: type[Work], victim: str) -> None:
        self._node = node
        self._work = work
        self._names: list[str] = []
        self.victim = victim
        self._window = Window({})

    def names_of_shards(self) -> None:
        """Find a name for each shard; the victim's is the one that was given."""
        shards = self._node.shard_map.services["work"]
        found = {shards.find(self.victim.encode()).shard_id: self.victim}
        number = 0
        while len(found) < len(shards.shards):
            found.setdefault(shards.find(b"%d" % number).shard_id, str(number))
            number += 1
        self._names = [name for name in found.values() if name != self.victim]

    @property
    def group(self) -> int:
        """The victim's group."""
        return self._node.shard_map.services["work"].find(self.victim.encode()).group_id

    def _terms(self) -> dict[int, int]:
        return {row["group_id"]: row["term"] for row in self._node.groups_status() if row["group_id"] != self.group}

    async def client(self, number: int) -> None:
        """Write to every group but the victim's, one after the other, for ever."""
        once = self._work.count.with_options(session=False)
        place = number * len(self._names) // _CLIENTS
        while True:
            place = (place + 1) % len(self._names)
            began_s = time.perf_counter()
            try:
                await once(self._names[place])
            except MultiRaftError as problem:
                self._window.lost[f"{type(problem).__name__}: {problem}"[:120]] += 1
            self._window.took_ms.append((time.perf_counter() - began_s) * 1e3)

    async def victim_client(self, kind: str, pause_s: float) -> None:
        call = getattr(self._work, kind).with_options(session=False)
        while True:
            try:
                await call(self.victim)
                self._window.victim_done += 1
            except MultiRaftError as problem:
                self._window.victim_failed[type(problem).__name__] += 1
            await asyncio.sleep(pause_s)

    async def answer(self, asked: dict[str, Any], stack: AsyncExitStack) -> Any:
        """Do what is asked. Raises MultiRaftError."""
        global broken_here
        what = asked["do"]
        if what == "open":
            self._window = Window(self._terms())
        elif what == "report":
            window, terms = self._window, self._terms()
            moved = sum(terms[group] != term for group, term in window.terms.items())
            return {
                "took_ms": sorted(window.took_ms),
                "lost": dict(window.lost),
                "moved": moved,
                "victim": [window.victim_done, dict(window.victim_failed)],
            }
        elif what == "trouble":
            tasks = [
                asyncio.ensure_future(self.victim_client(asked["kind"], asked["pause_s"]))
                for _ in range(asked["at_once"])
            ]
            stack.callback(lambda: [task.cancel() for task in tasks])
        elif what == "break":
            broken_here = asked["broken"]
        elif what == "call":
            with suppress(MultiRaftError):
                await getattr(self._work, asked["kind"]).with_options(session=False)(self.victim)
        elif what == "state":
            why = self._node.why(self.group)
            return {"leads": self._node.leads(self.group), "why": why}
        elif what == "retry":
            self._node.retry(self.group)
        elif what == "rebuild":
            await self._node.rebuild(self.group)
        return None


async def run_node(name: str, directory: str, addresses: list[str], groups: int) -> None:
    members = dict(zip(NODES, addresses, strict=True))
    node = Node(NodeConfig(name, f"{directory}/{name}", members[name], members, limits=Limits()))
    work = node.service("work", Work, initial_shards=groups)
    program = NodeProgram(node, work, "victim")
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    async with node, AsyncExitStack() as troubles:
        await node.ready("work", timeout_s=_START_S)
        program.names_of_shards()
        print(json.dumps({"ready": True}), flush=True)
        await reader.readline()
        clients = [asyncio.ensure_future(program.client(number)) for number in range(_CLIENTS)]
        while line := await reader.readline():
            asked = json.loads(line)
            if asked["do"] == "calm":
                await troubles.aclose()
                answer: Any = {"ok": None}
            else:
                try:
                    answer = {"ok": await program.answer(asked, troubles)}
                except MultiRaftError as problem:
                    answer = {"error": f"{type(problem).__name__}: {problem}"}
            print(json.dumps(answer), flush=True)
        for task in clients:
            task.cancel()
        await asyncio.gather(*clients, return_exceptions=True)


# ---------------------------------------------------------------------------------------------------- the program


@dataclass
class Line:
    """What one kind of trouble has cost the other groups."""

    trouble: str
    writes: int
    lost: dict[str, int]
    moved: int
    p50_ms: float
    p99_ms: float
    most_ms: float
    victim_done: int
    victim_failed: dict[str, int]

    def __str__(self) -> str:
        failed = ", ".join(f"{count} {name}" for name, count in self.victim_failed.items()) or "none"
        lost, moved = sum(self.lost.values()), self.moved
        times = f"p50 {self.p50_ms:6.1f} ms, p99 {self.p99_ms:7.1f} ms, most {self.most_ms:7.1f} ms"
        return (
            f"{self.trouble:<34} {self.writes:>8} writes, {lost:>3} lost, {moved:>3} leaders changed, {times}; "
            f"in the group itself {self.victim_done} done, failed: {failed}"
        )


class Child:
    """A node's process."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    async def ask(self, **asked: Any) -> Any:
        if self._process.stdin is None:
            raise RuntimeError("it has no input")
        self._process.stdin.write(json.dumps(asked).encode() + b"\n")
        answer = await self.hear()
        if "error" in answer:
            raise RuntimeError(f"{asked}: {answer['error']}")
        return answer["ok"]

    async def hear(self) -> Any:
        if self._process.stdout is None:
            raise RuntimeError("it has no output")
        line = await self._process.stdout.readline()
        if not line:
            raise RuntimeError("a node has ended; see its log")
        return json.loads(line)

    def begin(self) -> None:
        if self._process.stdin is not None:
            self._process.stdin.write(b"\n")

    async def end(self) -> None:
        if self._process.stdin is not None:
            self._process.stdin.close()
        try:
            await asyncio.wait_for(self._process.wait(), 30.0)
        except TimeoutError:
            self._process.kill()
            await self._process.wait()


class Cluster:
    """The three nodes, as the program sees them."""

    def __init__(self, children: dict[str, Child], logs: Path, seconds: float) -> None:
        self.children = children
        self.logs = logs
        self.seconds = seconds
        self.lines: list[Line] = []

    async def each(self, **asked: Any) -> dict[str, Any]:
        found = await asyncio.gather(*[child.ask(**asked) for child in self.children.values()])
        return dict(zip(self.children, found, strict=True))

    async def state(self, node: str) -> dict[str, Any]:
        return dict(await self.children[node].ask(do="state"))

    async def leader(self) -> str:
        async with asyncio.timeout(30.0):
            while True:
                states = await self.each(do="state")
                leading = [name for name, state in states.items() if state["leads"] and not state["why"]["halted"]]
                if leading:
                    return leading[0]
                await asyncio.sleep(0.05)

    async def window(self, trouble: str, kind: str = "count", pause_s: float = 0.01, at_once: int = 1) -> Line:
        """Let every node's clients meet this in the victim's group for a while; return what the others met."""
        await self.each(do="open")
        await self.each(do="trouble", kind=kind, pause_s=pause_s, at_once=at_once)
        await asyncio.sleep(self.seconds)
        await self.each(do="calm")
        return await self.report(trouble)

    async def report(self, trouble: str) -> Line:
        reports = (await self.each(do="report")).values()
        took_ms = sorted(value for report in reports for value in report["took_ms"])
        lost: Counter[str] = Counter()
        failed: Counter[str] = Counter()
        for report in reports:
            lost.update(report["lost"])
            failed.update(report["victim"][1])
        line = Line(
            trouble,
            len(took_ms),
            dict(lost),
            max(report["moved"] for report in reports),
            took_ms[len(took_ms) // 2],
            took_ms[len(took_ms) * 99 // 100],
            took_ms[-1],
            sum(report["victim"][0] for report in reports),
            dict(failed),
        )
        self.lines.append(line)
        print(line, flush=True)
        for text, count in lost.most_common(3):
            print(f"    lost: {count} x {text}", flush=True)
        return line

    async def until_halted(self, node: str, halted: bool) -> dict[str, Any]:
        async with asyncio.timeout(30.0):
            while True:
                state = await self.state(node)
                if bool(state["why"]["halted"]) is halted:
                    return state
                await asyncio.sleep(0.05)


@dataclass
class Outcome:
    """What came of it. `slow`, `halted`: what `why` said of the slow command, and of the halted replicas."""

    lines: list[Line]
    slow: list[dict[str, Any]]
    halted: list[dict[str, Any]]
    logs: str


async def play(cluster: Cluster) -> Outcome:
    await cluster.window("nothing is wrong")
    await cluster.window("a command raises", "refuse", 0.005, _RAISING)
    await cluster.window("a command computes for 300 ms", "brood", 1.0)
    leader = await cluster.leader()
    slow = (await cluster.state(leader))["why"]["slowest"]
    follower = next(name for name in NODES if name != leader)
    halted = []
    for node, trouble, mend in (
        (follower, "a follower halts, and is retried", "retry"),
        (leader, "the leader halts, and is rebuilt", "rebuild"),
    ):
        await cluster.each(do="open")
        await cluster.children[node].ask(do="break", broken=True)
        await cluster.children[follower].ask(do="call", kind="fragile")
        halted.append((await cluster.until_halted(node, True))["why"]["halted"])
        await asyncio.sleep(cluster.seconds / 2)
        await cluster.children[node].ask(do="break", broken=False)
        await cluster.children[node].ask(do=mend)
        await cluster.until_halted(node, False)
        await cluster.leader()
        await asyncio.sleep(cluster.seconds / 2)
        await cluster.report(trouble)
    logs = "\n".join(path.read_text() for path in sorted(cluster.logs.glob("*.log")))
    return Outcome(cluster.lines, slow, halted, logs)


async def run(groups: int, seconds: float, directory: str) -> Outcome:
    """Start the nodes, play it all, end them."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in NODES]
    addresses = [f"127.0.0.1:{found.getsockname()[1]}" for found in sockets]
    for found in sockets:
        found.close()
    async with AsyncExitStack() as stack:
        children = {}
        for name in NODES:
            log = stack.enter_context(open(f"{directory}/{name}.log", "wb"))  # noqa: ASYNC230, SIM115
            words = ["--node", name, "--directory", directory, "--groups", str(groups), "--addresses", *addresses]
            process = await asyncio.create_subprocess_exec(
                *[sys.executable, "-m", "tests.soak.containment", *words],
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=log,
                limit=1 << 28,
            )
            children[name] = Child(process)
            stack.push_async_callback(children[name].end)
        async with asyncio.timeout(_START_S):
            for child in children.values():
                await child.hear()
        for child in children.values():
            child.begin()
        return await play(Cluster(children, Path(directory), seconds))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else "")
    parser.add_argument("--groups", type=int, default=100)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--node")
    parser.add_argument("--directory")
    parser.add_argument("--addresses", nargs="*", default=[])
    given = parser.parse_args()
    if given.node:
        logging.basicConfig(level=logging.WARNING)
        asyncio.run(run_node(given.node, given.directory, given.addresses, given.groups))
        return
    with tempfile.TemporaryDirectory() as directory:
        outcome = asyncio.run(run(given.groups, given.seconds, directory))
    for halt in outcome.halted:
        print(f"halted: {halt['reason']}")
    for row in outcome.slow[-1:]:
        print(f"slow: {row['command']} at index {row['index']} took {row['took_ms']:.0f} ms")
    lost = sum(sum(line.lost.values()) for line in outcome.lines)
    moved = sum(line.moved for line in outcome.lines)
    print(f"in all: {sum(line.writes for line in outcome.lines)} writes, {lost} lost, {moved} leaders changed")
    sys.exit(1 if lost or moved else 0)


if __name__ == "__main__":
    main()
