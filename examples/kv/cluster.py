"""Three nodes of the key-value store as processes on this machine: to try, to crash, to test.

Rules of this file: every process started here ends with the `async with` block, and with this process, however that
ends: each child holds the other end of a pipe and stops when it closes. Ports are taken below the range from which
the system serves outgoing connections, so that a killed node finds its own free when it comes back.
"""

from __future__ import annotations

import asyncio
import random
import signal
import socket
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Final, Self

NODE_IDS: Final = ("a", "b", "c")
_PORTS: Final = range(11_000, 31_000)
_START_S: Final = 30.0
_STOP_S: Final = 10.0
_ROOT: Final = Path(__file__).resolve().parents[2]


class ClusterError(Exception):
    """A node did not do what was asked of it; the message holds its last words."""


def free_ports(count: int) -> list[int]:
    """Return ports of the loopback interface that nobody listens on now."""
    held: list[socket.socket] = []
    try:
        for _ in range(100 * count):
            try:
                held.append(socket.create_server(("127.0.0.1", random.choice(_PORTS))))
            except OSError:
                continue
            if len(held) == count:
                return [listener.getsockname()[1] for listener in held]
        raise ClusterError("no free ports on 127.0.0.1")
    finally:
        for listener in held:
            listener.close()


@dataclass(slots=True)
class NodeProcess:
    """One node: what it was started with, and its process while it runs."""

    node_id: str
    listen: str
    http: str
    resp: str
    data_dir: Path
    errors: Path
    process: asyncio.subprocess.Process | None = None

    @property
    def url(self) -> str:
        return f"http://{self.http}"

    @property
    def running(self) -> bool:
        return self.process is not None and self.process.returncode is None


class Cluster:
    """Use as `async with Cluster(directory) as cluster`: starts the nodes, and ends them at the end.

    directory  holds each node's data and what it wrote to stderr; made when missing
    options    further options of every node
    node_ids   their names
    """

    def __init__(self, directory: Path, options: Sequence[str] = (), node_ids: Sequence[str] = NODE_IDS) -> None:
        self.directory = directory
        self._options = list(options)
        ports = free_ports(3 * len(node_ids))
        self.nodes = {
            name: NodeProcess(
                name,
                f"127.0.0.1:{ports[3 * at]}",
                f"127.0.0.1:{ports[3 * at + 1]}",
                f"127.0.0.1:{ports[3 * at + 2]}",
                directory / name,
                directory / f"{name}.err",
            )
            for at, name in enumerate(node_ids)
        }

    @property
    def urls(self) -> list[str]:
        """The HTTP API of every node, running or not."""
        return [node.url for node in self.nodes.values()]

    async def __aenter__(self) -> Self:
        self.directory.mkdir(parents=True, exist_ok=True)
        try:
            await self.start(*self.nodes)
        except BaseException:
            await self.stop()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    def command(self, node_id: str) -> list[str]:
        """Return the command line that starts a node."""
        node = self.nodes[node_id]
        members = [f"--member={name}={other.listen}" for name, other in self.nodes.items()]
        options = [f"--id={node_id}", f"--listen={node.listen}", f"--data={node.data_dir}"]
        options += [f"--http={node.http}", f"--resp={node.resp}"]
        return [sys.executable, "-m", "examples.kv", "node", *options, *members, *self._options]

    async def start(self, *node_ids: str) -> float:
        """Start nodes and wait until each says that it is ready; return how long that took, in seconds.

        Raises ClusterError.
        """
        began = time.monotonic()
        for name in node_ids:
            await self._spawn(self.nodes[name])
        try:
            async with asyncio.timeout(_START_S):
                await asyncio.gather(*[self._ready(self.nodes[name]) for name in node_ids])
        except TimeoutError:
            said = "; ".join(f"{name}: {self._last_words(self.nodes[name])}" for name in node_ids)
            raise ClusterError(f"not ready within {_START_S:.0f} s: {said}") from None
        return time.monotonic() - began

    async def kill(self, *node_ids: str) -> float:
        """SIGKILL nodes, all at once; return the moment (time.monotonic) just before."""
        moment = time.monotonic()
        processes = [process for name in node_ids if (process := self.nodes[name].process) is not None]
        for process in processes:
            if process.returncode is None:
                process.kill()
        for process in processes:
            await process.wait()
        return moment

    async def stop(self) -> None:
        """End every node in order, and by force what does not end in time."""
        processes = [node.process for node in self.nodes.values() if node.process is not None]
        for process in processes:
            if process.returncode is None:
                process.send_signal(signal.SIGTERM)
        await asyncio.gather(*[_ended(process) for process in processes])

    async def _spawn(self, node: NodeProcess) -> None:
        if node.running:
            raise ClusterError(f"node {node.node_id} is already running")
        with _appending(node.errors) as errors:
            node.process = await asyncio.create_subprocess_exec(
                *self.command(node.node_id),
                "--until-stdin-closes",
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=errors,
                cwd=_ROOT,
                start_new_session=True,  # Ctrl-C is for the parent, which ends its children in order
            )

    async def _ready(self, node: NodeProcess) -> None:
        process = node.process
        if process is None or process.stdout is None:
            raise ClusterError(f"node {node.node_id} was not started")
        while line := await process.stdout.readline():
            if line.endswith(b" is ready\n"):
                return
        code = await process.wait()
        raise ClusterError(f"node {node.node_id} ended with exit code {code}: {self._last_words(node)}")

    def _last_words(self, node: NodeProcess) -> str:
        lines = node.errors.read_text(errors="replace").strip().splitlines() if node.errors.exists() else []
        return lines[-1] if lines else "it said nothing"


def _appending(path: Path) -> BinaryIO:
    return open(path, "ab")


async def _ended(process: asyncio.subprocess.Process) -> None:
    try:
        async with asyncio.timeout(_STOP_S):
            await process.wait()
    except TimeoutError:
        process.kill()
        await process.wait()
    if process.stdin is not None:
        process.stdin.close()
