"""Three benchmark nodes as processes on this machine, spoken to in JSON lines.

Rules of this file: loopback only, free ports, a data directory that goes with the cluster; every process is ended.
"""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from types import TracebackType
from typing import Any, Final, Self

NODES = ("a", "b", "c")
WORKER: Final = (sys.executable, "-m", "benchmarks.worker")
"""How a worker is started; another build of multiraft needs another interpreter."""


def free_ports(count: int) -> list[int]:
    """Return `count` loopback ports that nobody listens on."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]
    finally:
        for one in sockets:
            one.close()


class Cluster:
    """Three workers; a context manager."""

    def __init__(self, groups: int, command: Sequence[str] = (), **options: Any) -> None:
        self._groups = groups
        self._directory = tempfile.mkdtemp(prefix="multiraft-bench-")
        members = {name: f"127.0.0.1:{port}" for name, port in zip(NODES, free_ports(3), strict=True)}
        self.workers: dict[str, subprocess.Popen[str]] = {}
        for name in NODES:
            wanted = {
                "node_id": name,
                "data_dir": f"{self._directory}/{name}",
                "listen": members[name],
                "members": members,
                "groups": groups,
                **options,
            }
            self.workers[name] = subprocess.Popen(
                [*(command or WORKER), json.dumps(wanted)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )

    def __enter__(self) -> Self:
        for name in NODES:
            self._hear(name)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for worker in self.workers.values():
            if worker.stdin is not None:
                worker.stdin.close()
        for worker in self.workers.values():
            try:
                worker.wait(15)
            except subprocess.TimeoutExpired:
                worker.kill()
                worker.wait()
            if worker.stdout is not None:
                worker.stdout.close()
        shutil.rmtree(self._directory, ignore_errors=True)

    def say(self, node: str, **wanted: Any) -> None:
        """Tell a worker what to do."""
        pipe = self.workers[node].stdin
        if pipe is None:
            raise RuntimeError("the worker has no stdin")
        pipe.write(json.dumps(wanted) + "\n")
        pipe.flush()

    def _hear(self, node: str) -> dict[str, Any]:
        pipe = self.workers[node].stdout
        line = pipe.readline() if pipe is not None else ""
        if not line:
            raise RuntimeError(f"worker {node} ended with exit code {self.workers[node].wait()}")
        heard: dict[str, Any] = json.loads(line)
        return heard

    def ask(self, node: str, **wanted: Any) -> dict[str, Any]:
        """Tell a worker what to do and return its answer."""
        self.say(node, **wanted)
        return self._hear(node)

    def gather_leaders(self, to: str) -> None:
        """Have node `to` lead every group."""
        for _ in range(200):
            if all(count == self._groups for count in self.ask(to, op="led").values()):
                return
            for node in NODES:
                if node != to:
                    self.ask(node, op="gather", to=to)
            time.sleep(0.05)
        raise RuntimeError(f"node {to} did not become the leader of every group")
