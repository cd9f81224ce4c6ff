"""`redis-benchmark` against the key-value example's RESP server, and against a redis-server that syncs every write.

Both are asked by the same program in a process of its own: 50 connections, pipelines of so many commands, one key. The
example runs as three nodes with one shard, and is asked where that shard is led; redis-server is one process without a
replica, whose append-only file is synced before it answers (`appendfsync always`).

Rules of this file: a case's calls in flight are connections times pipeline; how many commands make up the wanted time
is known from the run before, which was the warm-up.
"""

from __future__ import annotations

import asyncio
import csv
import io
import json
import math
import socket
import subprocess
import time
import urllib.request
from pathlib import Path
from typing import Any, Final

from benchmarks.building import Missing, installed_program
from benchmarks.figures import Case
from benchmarks.hosting import StandingHost
from benchmarks.nodes import free_ranges

CLIENTS: Final = 50
_PACKAGE: Final = "redis-tools"
_PROBE_COMMANDS: Final = 2_000
_BENCHMARK_TIMEOUT_S: Final = 60


def parse_line(text: str) -> dict[str, float]:
    """Return the figures of the one test in redis-benchmark's CSV, by the names of its columns.

    Raises RuntimeError when it holds something else.
    """
    rows = list(csv.DictReader(io.StringIO(text)))
    if len(rows) != 1 or "rps" not in rows[0]:
        raise RuntimeError(f"redis-benchmark said something else than one line of figures: {text[:200]!r}")
    return {name: float(value) for name, value in rows[0].items() if name != "test"}


class BenchmarkedByRedis(StandingHost):
    """A server that speaks RESP on a port of this machine."""

    port = 0

    def __init__(self, groups: int) -> None:
        super().__init__(groups)
        self._rates: dict[Case, float] = {}

    def _run(self, case: Case, commands: int) -> dict[str, float]:
        pipeline = case.in_flight // CLIENTS
        command = [
            installed_program("redis-benchmark", _PACKAGE), "-h", "127.0.0.1", "-p", str(self.port), "-t", case.op,
            "-c", str(CLIENTS), "-P", str(pipeline), "-n", str(commands), "-d", "128", "--csv",
        ]  # fmt: skip
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=_BENCHMARK_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            raise RuntimeError(f"redis-benchmark took more than {_BENCHMARK_TIMEOUT_S} s") from None
        if done.returncode or "error" in done.stderr.lower():
            raise RuntimeError(f"redis-benchmark failed: {(done.stderr or done.stdout).strip()[:200]}")
        return parse_line(done.stdout)

    def load(self, system: str, case: Case, seconds: float) -> dict[str, Any]:
        rate = self._rates.get(case) or self._run(case, _PROBE_COMMANDS)["rps"]
        commands = max(_PROBE_COMMANDS, math.ceil(rate * seconds))
        found = self._run(case, commands)
        self._rates[case] = found["rps"]
        return {
            "writes": commands,
            "seconds": commands / found["rps"],
            "writes_per_s": found["rps"],
            "p50_ms": found["p50_latency_ms"],
            "p99_ms": found["p99_latency_ms"],
            "p999_ms": None,
        }


class RedisHost(BenchmarkedByRedis):
    """One redis-server, its append-only file synced before every answer."""

    def __init__(self, groups: int) -> None:
        super().__init__(groups)
        self._server: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        program = installed_program("redis-server", "redis-server")
        installed_program("redis-benchmark", _PACKAGE)
        (self.port,) = free_ranges(1, 1)
        command = [program, "--port", str(self.port), "--bind", "127.0.0.1", "--save", "", "--dir", self.directory]
        command += ["--appendonly", "yes", "--appendfsync", "always", "--daemonize", "no", "--loglevel", "warning"]
        self._server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        deadline_s = time.monotonic() + 10
        while True:  # redis-benchmark itself would wait for ever
            try:
                socket.create_connection(("127.0.0.1", self.port), timeout=1).close()
                return
            except OSError:
                if time.monotonic() > deadline_s or self._server.poll() is not None:
                    raise RuntimeError("redis-server does not answer") from None
                time.sleep(0.05)

    def stop(self) -> None:
        if self._server is not None:
            self._server.terminate()
            self._server.wait(10)

    def pids(self) -> list[int]:
        return [] if self._server is None else [self._server.pid]

    def applied(self) -> list[int]:
        return [0]  # there is but one replica


class KvHost(BenchmarkedByRedis):
    """The key-value example: three nodes, as many shards as groups, on disk."""

    def __init__(self, groups: int) -> None:
        super().__init__(groups)
        self._runner = asyncio.Runner()
        self._cluster: Any = None
        self._pids: list[int] = []
        self._urls: list[str] = []

    def start(self) -> None:
        from examples.kv.cluster import Cluster, ClusterError

        installed_program("redis-benchmark", _PACKAGE)
        self._cluster = Cluster(Path(self.directory), ("--shards", str(self.groups)))
        try:
            self._runner.run(self._cluster.__aenter__())
        except ClusterError as why:
            raise RuntimeError(str(why)) from None
        nodes = self._cluster.nodes
        if not hasattr(nodes["a"], "resp"):
            raise Missing("the example has no RESP server")
        self._urls = self._cluster.urls
        leader = next(row["leader"] for row in self._groups() if row["service"] == "kv")
        self.port = int(nodes[leader].resp.rsplit(":", 1)[1])
        self._pids = [nodes[name].process.pid for name in sorted(nodes, key=lambda name: name != leader)]

    def stop(self) -> None:
        if self._cluster is not None:
            self._runner.run(self._cluster.stop())
        self._runner.close()

    def pids(self) -> list[int]:
        return self._pids

    def applied(self) -> list[int]:
        """The last applied index of every replica of every shard, added up by node."""
        by_node: dict[str, int] = {}
        for row in self._groups():
            for replica in row["replicas"]:
                by_node[replica["node_id"]] = by_node.get(replica["node_id"], 0) + (replica["applied"] or 0)
        return list(by_node.values())

    def _groups(self) -> list[dict[str, Any]]:
        with urllib.request.urlopen(f"{self._urls[0]}/admin/groups", timeout=10) as answer:
            found: list[dict[str, Any]] = json.load(answer)["groups"]
        return found
