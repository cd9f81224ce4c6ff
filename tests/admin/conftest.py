"""Three nodes that exist only as their status, and the command line as a process.

The fakes answer with the shapes that a real node gives, over handlers and bytes as a real node does; what they
say can be changed by the test.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgpack
import pytest
from aiohttp.test_utils import TestClient, TestServer

from multiraft.admin.api import admin_app
from multiraft.admin.cli import run
from multiraft.config import Limits
from multiraft.consistency import Consistency
from multiraft.errors import NoSuchFile, NotReady, Unreachable
from multiraft.group import CallKind
from multiraft.outcome import Outcome
from multiraft.shard.partition import hash_ranges
from multiraft.shard.shard_map import ServiceShards, Shard, ShardMap
from multiraft.types import Membership

ROOT = Path(__file__).resolve().parents[2]
NODES = ("n1", "n2", "n3")
SHARDS = tuple(
    Shard(number, group_id, start, end, 1)
    for number, (group_id, (start, end)) in enumerate(zip((16, 17), hash_ranges(2), strict=True), 1)
)
LEADERS = {1: "n1", 16: "n1", 17: "n2"}


class FakeGroup:
    """The handle of a group: writes down what it was asked for, and does what the test says."""

    def __init__(self, cluster: FakeCluster, group_id: int) -> None:
        self.cluster = cluster
        self.group_id = group_id

    async def _did(self, *asked: object) -> Membership:
        self.cluster.asked.append((asked[0], self.group_id, *asked[1:]))
        self.cluster.called.set()
        await self.cluster.gate.wait()
        self.cluster.finished.append(asked[0])
        if self.cluster.outcome is not None:
            raise self.cluster.outcome
        return Membership(9, (1, 2), {1: "n1", 2: "n2", 4: "n4"}, 5, learners=(4,))

    async def add(self, node_id: str, *, voter: bool = True, timeout_s: float | None = None) -> Membership:
        return await self._did("add", node_id, voter, timeout_s)

    async def remove(self, node_id: str, *, timeout_s: float | None = None) -> Membership:
        return await self._did("remove", node_id, timeout_s)

    async def replace(self, old: str, new: str, *, timeout_s: float | None = None) -> Membership:
        return await self._did("replace", old, new, timeout_s)

    async def promote(self, node_id: str, *, timeout_s: float | None = None) -> Membership:
        return await self._did("promote", node_id, timeout_s)

    async def demote(self, node_id: str, *, timeout_s: float | None = None) -> Membership:
        return await self._did("demote", node_id, timeout_s)


class FakeNode:
    """What the admin API needs of a node, from plain dicts."""

    def __init__(self, cluster: FakeCluster, node_id: str) -> None:
        self.cluster = cluster
        self.node_id = node_id
        self.shard_map = ShardMap(3, {"kv": ServiceShards("hash", SHARDS)}, {16: NODES, 17: NODES})
        self.handlers: dict[str, Callable[[bytes], bytes]] = {}
        self.status_error: Exception | None = None
        self.transfers: dict[str, list[dict[str, Any]]] = {"incoming": [], "outgoing": []}
        self.counters: dict[str, int] = {"frames_sent": 12, "dropped.outbox full": 3}
        self.cluster_id = "5f1c" * 8
        self.pending = 0
        self.disconnected: set[str] = set()
        self.removed: list[dict[str, int]] = []
        self.rebuilding: str | None = None
        self.slow: list[str] = []
        self.extra_groups: dict[str, int] = {}
        self.views: dict[int, dict[str, Any]] = {group_id: self._view(group_id) for group_id in LEADERS}
        self.entries: list[dict[str, Any]] = [
            entry(2, "no-op", b""),
            entry(3, "command", msgpack.packb(["put", "a", b"\x01", 7])),
            entry(4, "command", b"\xc1\xff"),
            entry(5, "membership", msgpack.packb([5, [1, 2, 3]])),
            entry(6, "command", msgpack.packb(["put", "[red]\x1b[31m", 1])),
        ]

    def _view(self, group_id: int) -> dict[str, Any]:
        replica_id = NODES.index(self.node_id) + 1
        leads = LEADERS[group_id] == self.node_id
        shard = next((shard for shard in SHARDS if shard.group_id == group_id), None)
        return {
            "group_id": group_id,
            "service": "kv" if shard else "directory",
            "shard": shard
            and {
                "shard_id": shard.shard_id,
                "start": shard.start.hex(),
                "end": None if shard.end is None else shard.end.hex(),
                "epoch": 1,
            },
            "replica_id": replica_id,
            "node_id": self.node_id,
            "role": "leader" if leads else "follower",
            "term": 2,
            "leader": LEADERS[group_id],
            "commit": 6,
            "applied": 6,
            "first": 2,
            "last": 6,
            "halted": None,
            "pending": 0,
            "membership": {
                "index": 1,
                "voters": [[1, "n1"], [2, "n2"], [3, "n3"]],
                "learners": [],
                "outgoing": [],
                "joining": [],
            },
            "latest": None,
            "replicas": [
                {
                    "replica_id": at,
                    "node_id": name,
                    "match": 6,
                    "next": 7,
                    "state": "replicate",
                    "lag": 0,
                    "answers": True,
                }
                for at, name in enumerate(NODES, 1)
                if name != self.node_id
            ]
            if leads
            else [],
        }

    def status(self) -> dict[str, Any]:
        if self.status_error is not None:
            raise self.status_error
        roles = [view["role"] for view in self.views.values()]
        return {
            "node_id": self.node_id,
            "incarnation": 4,
            "cluster_id": self.cluster_id,
            "store_id": "ab" * 16,
            "uptime_s": 3725.0,
            "version": "0.1.0",
            "listen": f"127.0.0.1:70{self.node_id[1]}1",
            "started_orderly": True,
            "peers": {
                name: {
                    "address": f"127.0.0.1:70{name[1]}1",
                    "connected": name not in self.cluster.down and name not in self.disconnected,
                    "heard_age_s": 12.5 if name in self.cluster.down else 0.05,
                    "ack_age_s": 0.07,
                    "incarnation": 2,
                    "led": 1,
                    "held": 1,
                }
                for name in NODES
                if name != self.node_id
            },
            "groups": {
                "hosted": len(self.views),
                "led": roles.count("leader"),
                "followed": roles.count("follower"),
                "leaderless": sum(view["leader"] is None for view in self.views.values()),
                "halted": sum(view["halted"] is not None for view in self.views.values()),
                **self.extra_groups,
            },
            "loop": {"kind": "asyncio", "lag_ms": 1.25, "busy": 0.031, "turns": 4711},
            "writer": {"busy": 0.42, "in_flight": 1, "syncs": 99},
            "proposals": {"pending": self.pending, "pending_bytes": self.pending * 100},
            "transfers": self.transfers,
            "counters": self.counters,
        }

    def groups_status(self) -> list[dict[str, Any]]:
        return list(self.views.values())

    def group_status(self, group_id: int) -> dict[str, Any]:
        return self.views[group_id]

    def read_log(self, group_id: int, last_n: int) -> list[dict[str, Any]]:
        return self.entries[-last_n:]

    def tombstones(self) -> list[dict[str, int]]:
        return self.removed

    def group(self, group_id: int) -> FakeGroup:
        return FakeGroup(self.cluster, group_id)

    async def readmit(self, node_id: str, timeout_s: float | None = None) -> None:
        self.cluster.asked.append(("readmit", self.node_id, node_id, timeout_s))
        if self.cluster.outcome is not None:
            raise self.cluster.outcome

    def transfer_leadership(self, group_id: int, to: str) -> None:
        self.cluster.asked.append(("transfer", self.node_id, group_id, to))
        if self.cluster.outcome is not None:
            raise self.cluster.outcome
        for node in self.cluster.each():
            node.views[group_id] |= {"leader": to, "role": "leader" if node.node_id == to else "follower", "term": 3}

    def why(self, group_id: int) -> dict[str, Any]:
        view = self.views[group_id]
        told = {name: view[name] for name in ("group_id", "service", "node_id", "replica_id", "role", "leader")}
        numbers = {name: view[name] for name in ("last", "commit", "applied")}
        halted = view["halted"] and {
            "kind": "environment",
            "index": 5,
            "command": "command put('a')",
            "reason": view["halted"],
            "since_ms": 1_700_000_000_000,
            "next": [f"`multiraft group retry {group_id} --node {self.node_id}`"],
        }
        nothing: dict[str, Any] = {
            "broken": None,
            "rebuilding": self.rebuilding,
            "leaderless": None,
            "slowest": [],
            "compared_to": 4,
        }
        counts = {"failed_commands": 1, "slow_commands": len(self.slow)}
        return {**told, **numbers, **nothing, **counts, "halted": halted, "slow": self.slow}

    def retry(self, group_id: int) -> None:
        self.cluster.asked.append(("retry", self.node_id, group_id))
        self.views[group_id]["halted"] = None

    def begin_export(self, group_id: int) -> dict[str, Any]:
        raise NotReady(f"group {group_id} of a cluster that is not real has no state")

    def export_state(self, name: str) -> dict[str, Any]:
        raise NoSuchFile(f"there is no export {name}")

    def read_export(self, name: str, offset: int) -> bytes:
        raise NoSuchFile(f"there is no export {name}")

    def drop_export(self, name: str) -> None:
        self.cluster.asked.append(("drop_export", self.node_id, name))

    def begin_rebuild(self, group_id: int, timeout_s: float) -> None:
        self.cluster.asked.append(("rebuild", self.node_id, group_id, timeout_s))
        if self.cluster.outcome is not None:
            self.rebuilding = f"given up: {self.cluster.outcome}"
        elif self.cluster.gate.is_set():
            self.views[group_id]["halted"] = None

    # what serving remote clients needs, which these tests do not do

    limits = Limits()

    def cluster_key(self) -> bytes:
        return b"c" * 16

    def leader(self, group_id: int) -> str | None:
        return LEADERS.get(group_id)

    def begin_batch(
        self,
        group_id: int,
        kind: CallKind,
        bodies: list[bytes],
        done: Callable[[list[Outcome]], None],
    ) -> None:
        raise NotReady("a fake")

    async def call(self, group_id: int, kind: CallKind, body: bytes, timeout_s: float | None) -> bytes:
        raise NotReady("a fake")

    async def read_as(
        self, group_id: int, query: bytes, how: Consistency, timeout_s: float | None
    ) -> tuple[bytes, float]:
        raise NotReady("a fake")

    def on_call(self, method: str, handler: Callable[[bytes], bytes]) -> None:
        self.handlers[method] = handler

    async def peer_call(self, node_id: str, method: str, body: bytes, timeout_s: float) -> bytes:
        if node_id in self.cluster.down:
            raise self.cluster.down[node_id]
        return self.cluster.nodes[node_id].handlers[method](body)

    # what tests do to it

    def sees(self, group_id: int, *, latest: dict[str, Any] | None = None, **membership: Any) -> None:
        """Have the replica see that membership: voters=, learners=, outgoing=, joining=, index=."""
        found = self.views[group_id]["membership"] | membership
        self.views[group_id] |= {"membership": found, "latest": latest}

    def lose_leader(self, group_id: int) -> None:
        self.views[group_id] |= {
            "role": "candidate" if self.node_id == "n1" else "follower",
            "leader": None,
            "replicas": [],
        }

    def halt(self, group_id: int, why: str) -> None:
        self.views[group_id]["halted"] = why


def entry(index: int, kind: str, content: bytes) -> dict[str, Any]:
    return {
        "index": index,
        "term": 2,
        "kind": kind,
        "stamp_ms": 1_700_000_000_123,
        "size_bytes": len(content),
        "entry": content,
    }


@dataclass
class FakeCluster:
    """Three nodes.

    down     nodes that do not answer, and what asking them raises
    asked    the changes that were asked for, in order
    called   set when the first of them was
    gate     changes wait until it is open
    finished those that got through it
    outcome  what they raise; None: they are done
    """

    nodes: dict[str, FakeNode] = field(default_factory=dict)
    down: dict[str, Exception] = field(default_factory=dict)
    asked: list[tuple[object, ...]] = field(default_factory=list)
    called: asyncio.Event = field(default_factory=asyncio.Event)
    finished: list[object] = field(default_factory=list)
    gate: asyncio.Event = field(default_factory=asyncio.Event)
    outcome: Exception | None = None

    def stop(self, node_id: str) -> None:
        self.down[node_id] = Unreachable(f"node {node_id} is not connected")

    def each(self) -> list[FakeNode]:
        return list(self.nodes.values())


@pytest.fixture
def cluster() -> FakeCluster:
    found = FakeCluster()
    found.gate.set()
    found.nodes = {name: FakeNode(found, name) for name in NODES}
    return found


@pytest.fixture
async def client(cluster: FakeCluster) -> AsyncIterator[TestClient[Any, Any]]:
    """An HTTP client of node n1's admin API; the other nodes answer n1's questions."""
    apps = {name: admin_app(node) for name, node in cluster.nodes.items()}
    async with TestClient(TestServer(apps["n1"])) as found:
        yield found


@dataclass
class Finished:
    """How a process ended, and what it wrote."""

    code: int
    out: str
    err: str


UNWANTED = ("MULTIRAFT_URL", "MULTIRAFT_DEBUG", "NO_COLOR", "FORCE_COLOR", "COLUMNS", "http_proxy", "HTTP_PROXY")


def environment(**more: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if name not in UNWANTED}
    return {**kept, "PYTHONPATH": str(ROOT), "TERM": "xterm-256color", **more}


@pytest.fixture
def start_cli() -> Callable[..., subprocess.Popen[bytes]]:
    """Start the command line as a process; the caller ends it."""

    def start(
        *arguments: str, stdout: int = subprocess.PIPE, env: dict[str, str] | None = None
    ) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "multiraft.admin.cli", *arguments]
        return subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=stdout, stderr=subprocess.PIPE, env=environment(**(env or {}))
        )

    return start


@pytest.fixture
def run_cli(start_cli: Callable[..., subprocess.Popen[bytes]]) -> Callable[..., Awaitable[Finished]]:
    """Run the command line to its end, while this process's loop goes on serving it."""

    async def run(*arguments: str, env: dict[str, str] | None = None) -> Finished:
        def work() -> Finished:
            with start_cli(*arguments, env=env) as process:
                out, err = process.communicate(timeout=60)
            return Finished(process.returncode, out.decode(), err.decode())

        return await asyncio.to_thread(work)

    return run


@pytest.fixture
def call_cli(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Awaitable[Finished]]:
    """Run the command line in a thread of this process: much faster than a process, the same but for its ends."""
    for name in UNWANTED:
        monkeypatch.delenv(name, raising=False)

    async def call(*arguments: str) -> Finished:
        capsys.readouterr()
        code = await asyncio.to_thread(run, arguments)
        written = capsys.readouterr()
        return Finished(code, written.out, written.err)

    return call
