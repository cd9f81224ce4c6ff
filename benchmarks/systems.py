"""The systems that are measured: each starts as three processes, takes load, and says what it has applied.

A host is what is started; it serves one or more systems, which are ways of calling it: our nodes serve `bytes` and
`command`. A system that cannot be measured here raises `Missing` when it is started, and is named as missing.

Every host is asked in the same way (`Host.measure`): warm up, read the counters, load, read them again. Clients run
in the process that leads; those of etcd are a process of their own.

Rules of this file: settings that matter stand in `HOSTS`, in words, and are printed with the table; every replica must
have applied the same, or the run fails.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from benchmarks.building import compiled, compiled_worker, go_program, installed_program, python_module
from benchmarks.ceiling import CeilingOptions, run_ceiling
from benchmarks.cluster import NODES, Cluster
from benchmarks.figures import Case, Figure
from benchmarks.hosting import Host, StandingHost
from benchmarks.nodes import Process, disk_flushes, free_ranges
from benchmarks.redis import KvHost, RedisHost

PAYLOAD_BYTES: Final = 128
_LEADING_PATIENCE_S: Final = 30.0


class OwnHost(StandingHost):
    """Our own nodes: `bytes` is `Group.propose`, `command` a `@command` with its session; reads are linearizable."""

    def __init__(self, groups: int, command: Callable[[], Sequence[str]] | None = None, **options: Any) -> None:
        super().__init__(groups)
        self._command = command
        self._options = options
        self.cluster: Cluster | None = None

    def start(self) -> None:
        self.cluster = Cluster(self.groups, () if self._command is None else self._command(), **self._options)
        self.cluster.__enter__()
        self.cluster.gather_leaders(NODES[0])

    def stop(self) -> None:
        if self.cluster is not None:
            self.cluster.__exit__(None, None, None)

    def load(self, system: str, case: Case, seconds: float) -> dict[str, Any]:
        level = system.removeprefix("compiled-")
        if case.op == "reads":
            level = "reads-many" if level == "many" else "reads"
        return self._started.ask(
            NODES[0], op="load", level=level, in_flight=case.in_flight, seconds=seconds,
            payload=PAYLOAD_BYTES, groups=case.groups,
        )  # fmt: skip

    def pids(self) -> list[int]:
        return [self._started.workers[name].pid for name in NODES]

    def counts(self) -> dict[str, Any]:
        return self._started.ask(NODES[0], op="counts")

    def applied(self) -> list[int]:
        return [self._started.ask(name, op="counts")["applied"] for name in NODES]

    @property
    def _started(self) -> Cluster:
        if self.cluster is None:
            raise RuntimeError("the nodes are not started")
        return self.cluster


class RemoteHost(OwnHost):
    """Our nodes, and `multiraft.client` in a process of its own. `on_compiled`: both on that build."""

    asked = 3

    def __init__(self, groups: int, on_compiled: bool = False) -> None:
        ports = free_ranges(1, 3)[0]
        self._addresses = {name: f"127.0.0.1:{ports + number}" for number, name in enumerate(NODES)}
        self._compiled = on_compiled
        super().__init__(groups, compiled_worker if on_compiled else None, typed=False, serve=self._addresses)
        self._client: Process | None = None

    def start(self) -> None:
        super().start()
        wanted = json.dumps({"urls": [f"http://{address}" for address in self._addresses.values()]})
        module = "benchmarks.remote_client"
        program = compiled(module) if self._compiled else [sys.executable, "-m", module]
        self._client = Process([*program, wanted], Path(self.directory) / "client.log")
        self._client.hear()

    def stop(self) -> None:
        if self._client is not None:
            self._client.end()
        super().stop()

    def load(self, system: str, case: Case, seconds: float) -> dict[str, Any]:
        return self._asked.ask(
            op="load", level=case.op, in_flight=case.in_flight, seconds=seconds, payload=PAYLOAD_BYTES
        )

    def pids(self) -> list[int]:
        return [*super().pids(), self._asked.pid]

    @property
    def _asked(self) -> Process:
        if self._client is None:
            raise RuntimeError("the client is not started")
        return self._client


class CeilingHost(Host):
    """The ceiling. Its processes live for one measurement each, and check themselves that they are alike."""

    def start(self) -> None:
        """Nothing runs between measurements."""

    def stop(self) -> None:
        """Nothing runs between measurements."""

    def measure(self, system: str, case: Case, seconds: float) -> Figure:
        options = CeilingOptions(case.groups, case.in_flight, PAYLOAD_BYTES, seconds, directory=self.directory)
        flushes = disk_flushes(self.directory)
        found = asyncio.run(run_ceiling(options))
        flushes_now = disk_flushes(self.directory)
        took_s = found.writes / found.writes_per_s
        return Figure(
            system,
            case,
            found.writes_per_s,
            found.p50_ms,
            found.p99_ms,
            found.p999_ms,
            leader_cpu_us=found.cpu_s[0] / found.writes * 1e6,
            all_cpu_us=sum(found.cpu_s) / found.writes * 1e6,
            syncs_per_s=found.syncs[0] / took_s,
            flushes_per_s=None if flushes is None or flushes_now is None else (flushes_now - flushes) / took_s,
        )

    def check_alike(self) -> None:
        """Each measurement has checked it."""


class PeerHost(StandingHost):
    """Three programs of ours over a peer's public API, which speak the line protocol of benchmarks/peers/driver.

    setting     which of its settings to use, for peers that have several
    hands_over  whether it can hand leadership over; otherwise the node that leads takes the load
    """

    gathers = True
    """Whether the first node is to lead every group; otherwise it is enough that each has a leader."""

    def __init__(
        self, groups: int, command: Callable[[], Sequence[str]], setting: str = "", hands_over: bool = True
    ) -> None:
        super().__init__(groups)
        self._command = command
        self._setting = setting
        self._hands_over = hands_over
        self._nodes: list[Process] = []

    def start(self) -> None:
        command = self._command()
        addresses = [f"127.0.0.1:{port}" for port in free_ranges(3, self.groups)]
        for number in range(3):
            wanted = {
                "node": number,
                "addresses": addresses,
                "directory": f"{self.directory}/{number}",
                "groups": self.groups,
                "setting": self._setting,
            }
            self._nodes.append(Process([*command, json.dumps(wanted)], Path(self.directory) / f"{number}.log"))
        for node in self._nodes:
            node.hear()
        if self.gathers and self._hands_over:
            gather_leaders(self._nodes, self.groups)
            return
        await_leaders(self._nodes, self.groups)
        if self.gathers:
            self._nodes.sort(key=lambda node: -int(node.ask(op="led")["led"]))

    def stop(self) -> None:
        for node in self._nodes:
            node.let_end()
        for node in self._nodes:
            node.end()

    def load(self, system: str, case: Case, seconds: float) -> dict[str, Any]:
        return self._nodes[0].ask(
            op="load", level=case.op, in_flight=case.in_flight, seconds=seconds, payload=PAYLOAD_BYTES
        )

    def pids(self) -> list[int]:
        return [node.pid for node in self._nodes]

    def counts(self) -> dict[str, Any]:
        return self._nodes[0].ask(op="counts")

    def applied(self) -> list[int]:
        return [node.ask(op="counts")["applied"] for node in self._nodes]


def gather_leaders(nodes: Sequence[Process], groups: int) -> None:
    """Have the first node lead every group. Raises RuntimeError when it does not come to that."""
    deadline_s = time.monotonic() + _LEADING_PATIENCE_S
    while nodes[0].ask(op="led")["led"] < groups:
        if time.monotonic() > deadline_s:
            raise RuntimeError("the first node did not become the leader of every group")
        for node in nodes[1:] or nodes:
            node.ask(op="gather", to=0)
        time.sleep(0.05)


def await_leaders(nodes: Sequence[Process], groups: int) -> None:
    """Wait until every group has a leader. Raises RuntimeError when it does not come to that."""
    deadline_s = time.monotonic() + _LEADING_PATIENCE_S
    while sum(node.ask(op="led")["led"] for node in nodes) < groups:
        if time.monotonic() > deadline_s:
            raise RuntimeError("not every group has a leader")
        time.sleep(0.1)


class EtcdHost(StandingHost):
    """Three etcd servers and a client process of ours."""

    asked = 3
    _SYNCS: Final = ("etcd_disk_wal_fsync_duration_seconds_count", "etcd_disk_backend_commit_duration_seconds_count")

    def __init__(self, groups: int) -> None:
        super().__init__(groups)
        self._servers: list[Process] = []
        self._client: Process | None = None
        self._urls: list[str] = []

    def start(self) -> None:
        server, client = installed_program("etcd", "etcd-server"), go_program("etcd")
        (first,) = free_ranges(1, 6)
        self._urls = [f"http://127.0.0.1:{first + number}" for number in range(3)]
        peers = [f"http://127.0.0.1:{first + 3 + number}" for number in range(3)]
        members = ",".join(f"n{number}={peer}" for number, peer in enumerate(peers))
        for number, (url, peer) in enumerate(zip(self._urls, peers, strict=True)):
            options = {
                "name": f"n{number}",
                "data-dir": f"{self.directory}/{number}",
                "listen-client-urls": url,
                "advertise-client-urls": url,
                "listen-peer-urls": peer,
                "initial-advertise-peer-urls": peer,
                "initial-cluster": members,
                "logger": "zap",
                "log-level": "error",
            }
            command = [server, *[f"--{name}={value}" for name, value in options.items()]]
            self._servers.append(Process(command, Path(self.directory) / f"{number}.log"))
        addresses = [url.removeprefix("http://") for url in self._urls]
        wanted = json.dumps({"node": 0, "addresses": addresses})
        self._client = Process([client, wanted], Path(self.directory) / "client.log")
        self._client.hear()
        gather_leaders([self._client], 1)

    def stop(self) -> None:
        if self._client is not None:
            self._client.end()
        for server in self._servers:
            server.end(patience_s=0.0)

    def load(self, system: str, case: Case, seconds: float) -> dict[str, Any]:
        return self._asked.ask(
            op="load", level=case.op, in_flight=case.in_flight, seconds=seconds, payload=PAYLOAD_BYTES
        )

    def pids(self) -> list[int]:
        return [server.pid for server in self._servers] + [self._asked.pid]

    def counts(self) -> dict[str, Any]:
        with urllib.request.urlopen(f"{self._urls[0]}/metrics", timeout=10) as answer:
            lines = answer.read().decode().splitlines()
        fields = dict(line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
        return {"syncs": sum(float(fields[name]) for name in self._SYNCS)}

    def applied(self) -> list[int]:
        found = self._asked.ask(op="counts")
        if len(set(found["applied"])) == 1 and len(set(found["hashes"])) > 1:
            raise RuntimeError(f"the servers hold different keys at the same revision: {found}")
        return [int(count) for count in found["applied"]]

    @property
    def _asked(self) -> Process:
        if self._client is None:
            raise RuntimeError("etcd's client is not started")
        return self._client


def _pysyncobj(setting: str) -> Callable[[int], Host]:
    def command() -> list[str]:
        python_module("pysyncobj", "PySyncObj")
        return [sys.executable, "-m", "benchmarks.peers.pysyncobj.node"]

    return lambda groups: PeerHost(groups, command, setting, hands_over=False)


@dataclass(frozen=True, slots=True)
class Kind:
    """A host that can be started with so many groups; the systems that it serves, and the settings of each in words."""

    start: Callable[[int], Host]
    systems: Mapping[str, str]


def go_peer(name: str) -> Callable[[int], PeerHost]:
    """Return what makes the host of a peer's Go program."""
    return lambda groups: PeerHost(groups, lambda: [go_program(name)])


HOSTS: Final[dict[str, Kind]] = {
    "ceiling": Kind(
        CeilingHost,
        {"ceiling": "replication, sync, commit and apply alone, in Python on uvloop; nothing that could fail"},
    ),
    "multiraft": Kind(
        OwnHost,
        {
            "bytes": "Group.propose, one future per write; uvloop, collector frozen; reads: Group.read (ReadIndex)",
            "many": "Group.propose_many: one client a group, which has its share of the calls under way together; "
            "reads: Group.read_many",
            "command": "a typed @command through a service handle, with its session",
            "command-many": "the same by `command.many`: one client a group, as in `many`",
        },
    ),
    "multiraft-compiled": Kind(
        lambda groups: OwnHost(groups, compiled_worker),
        {
            "compiled-bytes": "bytes, on the build compiled by mypyc",
            "compiled-many": "many, on the build compiled by mypyc",
            "compiled-command": "command, on the build compiled by mypyc",
            "compiled-command-many": "command-many, on the build compiled by mypyc",
        },
    ),
    "multiraft-remote": Kind(
        RemoteHost,
        {"remote": "multiraft.client in its own process, one connection per node, callbacks; sessions: exactly once"},
    ),
    "multiraft-remote-compiled": Kind(
        lambda groups: RemoteHost(groups, on_compiled=True),
        {"compiled-remote": "remote, nodes and client on the build compiled by mypyc"},
    ),
    "hashicorp": Kind(
        go_peer("hashicorp"),
        {
            "hashicorp": "raft 1.7.3, raft-boltdb 2.3.1: BatchApplyCh, BatchingFSM, MaxAppendEntries 1024, log cache "
            "512; bolt syncs twice per transaction, one file per group; reads: VerifyLeader"
        },
    ),
    "dragonboat": Kind(
        go_peer("dragonboat"),
        {"dragonboat": "v4 (July 2025), its default store (Pebble, 16 shards), concurrent machines, NoOP sessions"},
    ),
    "etcd": Kind(
        EtcdHost,
        {"etcd": "Debian's server as it comes; Go client 3.5 in its own process, 10 connections to the leader"},
    ),
    "kv-resp": Kind(
        KvHost, {"kv-resp": "the key-value example's RESP server, on disk, asked at the leader of its shard"}
    ),
    "redis": Kind(RedisHost, {"redis": "redis-server 7, appendonly, appendfsync always; one process, no replica"}),
    "pysyncobj-default": Kind(_pysyncobj("default"), {"pysyncobj-default": "0.3.17 as it comes; never syncs"}),
    "pysyncobj-unbatched": Kind(
        _pysyncobj("unbatched"), {"pysyncobj-unbatched": "appendEntriesUseBatch off; never syncs"}
    ),
    "pysyncobj-ticking": Kind(
        _pysyncobj("ticking"),
        {"pysyncobj-ticking": "batches, autoTickPeriod 1 ms, appendEntriesPeriod 5 ms; never syncs"},
    ),
}
"""What can be started, by name."""


def host_of(system: str) -> str | None:
    """Return the name of the host that serves a system; None when there is none (yet)."""
    return next((name for name, kind in HOSTS.items() if system in kind.systems), None)


def settings_of_systems() -> dict[str, str]:
    """Return the settings of every system in words."""
    return {system: text for kind in HOSTS.values() for system, text in kind.systems.items()}
