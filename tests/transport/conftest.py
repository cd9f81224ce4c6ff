"""The two worlds that every transport is tested in, behind one face: real sockets, and a network in memory.

In the world of sockets every connection passes through a proxy, so that a test can hold or break it from outside.

Rules of this file: what a handler hears is kept in order; waiting is for an event, with pytest's timeout behind it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import socket
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest

from multiraft.config import Limits, NodeConfig
from multiraft.errors import NoSuchFile, Overloaded
from multiraft.messages import CommitTo, FormingMessage, NodeMessage
from multiraft.ports import FileSource, Transport
from multiraft.transport import AiohttpTransport, MemoryNetwork, MemoryTransport
from multiraft.transport.hello import Hello
from multiraft.types import Identity, SeenRun

CLUSTER = b"c" * 16


class Ear:
    """A transport's handler: keeps what it hears, in order, and answers requests as told."""

    def __init__(self) -> None:
        self.events: list[tuple[Any, ...]] = []
        self.refusals: list[tuple[str, str, str]] = []
        self.open = False
        self.on_connected: Callable[[str], None] = lambda node_id: None
        self.answer: Callable[[str, bytes, Callable[[bytes], None]], None] = lambda method, body, reply: None
        self.files: dict[str, FileSource] = {}
        self.most_files = 10
        self._changed = asyncio.Event()

    def _hear(self, *event: Any) -> None:
        assert self.open, f"{event} before start returned, or after close"
        self.events.append(event)
        self._changed.set()

    def peer_connected(self, node_id: str, incarnation: int) -> None:
        self._hear("connected", node_id, incarnation)
        self.on_connected(node_id)

    def peer_disconnected(self, node_id: str) -> None:
        self._hear("disconnected", node_id)

    def peer_heard(self, node_id: str, incarnation: int) -> None:
        self._hear("heard", node_id, incarnation)

    def unformed_peer(self, node_id: str, store_id: bytes) -> None:
        self._hear("unformed", node_id, store_id)

    def messages_received(self, node_id: str, incarnation: int, messages: Sequence[NodeMessage]) -> None:
        assert messages
        for message in messages:
            self._hear("message", node_id, incarnation, message)

    def forming_received(self, node_id: str, message: FormingMessage) -> None:
        self._hear("forming", node_id, message)

    def refused_by(self, node_id: str, kind: str, why: str) -> None:
        self.refusals.append((node_id, kind, why))
        self._changed.set()

    def request_received(
        self, node_id: str, method: str, body: bytes, timeout_s: float, reply: Callable[[bytes], None]
    ) -> None:
        self._hear("request", node_id, method, body, timeout_s, reply)
        self.answer(method, body, reply)

    def file_asked(self, node_id: str, name: str, offset: int) -> FileSource:
        self._hear("file asked", node_id, name, offset)
        if len(self.files) > self.most_files:
            raise Overloaded("too many files; ask again")
        if name not in self.files:
            raise NoSuchFile(f"there is no file {name}")
        return self.files[name]

    async def until(self, holds: Callable[[], bool]) -> None:
        """Wait until something is heard that makes `holds` true."""
        while not holds():
            self._changed.clear()
            await self._changed.wait()

    async def hears(self, *event: Any, count: int = 1) -> None:
        """Wait until an event that begins like this was heard `count` times in all."""
        await self.until(lambda: sum(1 for heard in self.events if heard[: len(event)] == event) >= count)

    def numbers(self, node_id: str) -> list[int]:
        """The commits of the CommitTo messages heard from this node: the tests number their messages with them."""
        return [e[3].commit for e in self.events if e[:2] == ("message", node_id) and isinstance(e[3], CommitTo)]


def numbered(*numbers: int) -> list[CommitTo]:
    return [CommitTo(number, 16, 1, 1, 2) for number in numbers]


class Peer:
    """One started node."""

    def __init__(self, transport: Transport, ear: Ear) -> None:
        self.transport = transport
        self.ear = ear

    def send(self, node_id: str, *numbers: int, urgent: bool = False) -> bool:
        return self.transport.send(node_id, numbered(*numbers), urgent)

    def count(self, name: str) -> int:
        return self.transport.counters().get(name, 0)

    async def counted(self, *names: str, times: int = 1) -> None:
        """Wait until these counters add up to `times`. A refusal has no event but its counter and its log line."""
        while sum(self.count(name) for name in names) < times:  # noqa: ASYNC110
            await asyncio.sleep(0)

    async def refuses(self, name: str) -> None:
        """Wait until this counter of refusals has counted; a peer that was let in instead is noticed."""
        while self.count(name) == 0:
            assert self.ear.events == []
            await asyncio.sleep(0)


class World(ABC):
    """Nodes a, b, c with addresses; each is a member of the others' clusters."""

    members = ("a", "b", "c")

    def __init__(self) -> None:
        self.peers: list[Peer] = []
        ports: set[int] = set()
        while len(ports) < len(self.members):
            ports.add(free_port())
        self.listens: dict[str, str] = {
            name: f"127.0.0.1:{port}" for name, port in zip(self.members, ports, strict=True)
        }

    async def start(
        self,
        name: str,
        *,
        cluster_id: bytes = CLUSTER,
        incarnation: int = 1,
        store_id: bytes = b"",
        generation: int = 0,
        members: dict[str, str] | None = None,
        listen: str = "",
        on_connected: Callable[[Peer, str], None] | None = None,
        identity: Identity | None = None,
        runs: tuple[bytes, ...] = (),
        seen: Mapping[str, SeenRun] | None = None,
        **limits: int,
    ) -> Peer:
        """Start a node; its ear is open from then on. `members`: addresses that differ from the true ones.

        `identity` stands in for `cluster_id` and `store_id`; `runs` and `seen` are what earlier runs have left.
        """
        addresses = {**{peer: self.address(name, peer) for peer in self.members}, **(members or {})}
        config = NodeConfig(
            node_id=name,
            data_dir="unused",
            listen=listen or self.listens[name],
            members=addresses,
            limits=Limits(**{"handshake_timeout_ms": 2_000, **limits}),
        )
        identity = identity or Identity(name, store_id or f"store of {name}".encode(), cluster_id)
        ear = Ear()
        peer = Peer(self.make(config, replace(identity, generation=generation), incarnation), ear)
        peer.transport.remember(runs, seen or {})
        if on_connected is not None:
            ear.on_connected = lambda node_id: on_connected(peer, node_id)
        await peer.transport.start(ear)
        ear.open = True
        self.peers.append(peer)
        return peer

    async def pair(self, **limits: int) -> tuple[Peer, Peer]:
        """Start a and b and wait until each can send to the other."""
        start: Any = self.start
        one, other = await start("a", **limits), await start("b", **limits)
        await one.ear.hears("connected", "b")
        await other.ear.hears("connected", "a")
        return one, other

    async def stop(self, peer: Peer) -> None:
        await peer.transport.close()
        peer.ear.open = False

    def true_address(self, name: str) -> str:
        return self.listens[name]

    @abstractmethod
    def make(self, config: NodeConfig, identity: Identity, incarnation: int) -> Transport: ...

    @abstractmethod
    def address(self, dialler: str, target: str) -> str:
        """The address under which `dialler` knows `target`."""

    @abstractmethod
    def hold(self, dialler: str, target: str) -> None:
        """Let nothing pass on the connections from `dialler` to `target`; nobody is told."""

    @abstractmethod
    def release(self, dialler: str, target: str) -> None: ...

    @abstractmethod
    def break_off(self, dialler: str, target: str) -> None:
        """End the connection from `dialler` to `target`; a new one may be dialled."""

    async def close(self) -> None:
        for peer in self.peers:
            await self.stop(peer)


class MemoryWorld(World):
    def __init__(self) -> None:
        super().__init__()
        self.network = MemoryNetwork()

    def make(self, config: NodeConfig, identity: Identity, incarnation: int) -> Transport:
        rng = random.Random(config.node_id)
        return MemoryTransport(self.network, config, identity, incarnation, rng)

    def address(self, dialler: str, target: str) -> str:
        return self.listens[target]

    def hold(self, dialler: str, target: str) -> None:
        self.network.stall(dialler, target)

    def release(self, dialler: str, target: str) -> None:
        self.network.heal(dialler, target)

    def break_off(self, dialler: str, target: str) -> None:
        self.network.cut(dialler, target)
        self.network.heal(dialler, target)


class SocketWorld(World):
    def __init__(self) -> None:
        super().__init__()
        self._proxies: dict[tuple[str, str], Proxy] = {}

    async def open(self) -> None:
        for dialler in (*self.members, "d"):
            for target in self.members:
                proxy = self._proxies[dialler, target] = Proxy(self.listens[target])
                await proxy.start()

    def make(self, config: NodeConfig, identity: Identity, incarnation: int) -> Transport:
        return AiohttpTransport(config, identity, incarnation, random.Random(config.node_id))

    def address(self, dialler: str, target: str) -> str:
        return self._proxies[dialler, target].address

    def hold(self, dialler: str, target: str) -> None:
        self._proxies[dialler, target].flowing.clear()

    def release(self, dialler: str, target: str) -> None:
        self._proxies[dialler, target].flowing.set()

    def break_off(self, dialler: str, target: str) -> None:
        self._proxies[dialler, target].break_off()

    async def close(self) -> None:
        await super().close()
        for proxy in self._proxies.values():
            await proxy.stop()


class Proxy:
    """Passes TCP connections on to `target`; can hold or break them."""

    def __init__(self, target: str) -> None:
        self.address = ""
        self.flowing = asyncio.Event()
        self.flowing.set()
        self._target = target
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._writers: set[asyncio.StreamWriter] = set()

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        port: int = self._server.sockets[0].getsockname()[1]
        self.address = f"127.0.0.1:{port}"

    def break_off(self) -> None:
        for writer in self._writers:
            writer.transport.abort()

    async def stop(self) -> None:
        if self._server is not None:
            self._server.close()
        self.break_off()
        self.flowing.set()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        self._writers.add(writer)
        host, port = self._target.split(":")
        try:
            with contextlib.suppress(OSError, asyncio.CancelledError):
                there, back = await asyncio.open_connection(host, int(port))
                self._writers.add(back)
                try:
                    ways = (self._pass(reader, back), self._pass(there, writer))
                    await asyncio.gather(*ways, return_exceptions=True)
                finally:
                    self._writers.discard(back)
                    back.transport.abort()
        finally:
            self._writers.discard(writer)
            writer.transport.abort()

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(65_536):
                await self.flowing.wait()
                writer.write(data)
                await writer.drain()
        finally:
            writer.close()


def free_port() -> int:
    """Return a port that nobody listens on, below those that the system gives to outgoing connections."""
    while True:
        port = random.randrange(20_000, 32_000)
        with socket.socket() as found, contextlib.suppress(OSError):
            found.bind(("127.0.0.1", port))
            return port


@pytest.fixture(autouse=True)
def nothing_fails_in_the_background(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Fail a test in which a task or callback died without anybody waiting for it."""
    yield
    errors = [record for record in caplog.get_records("call") if record.levelno >= logging.ERROR]
    assert [record.getMessage() for record in errors] == []


@pytest.fixture(params=["sockets", "memory"])
async def world(request: pytest.FixtureRequest) -> AsyncIterator[World]:
    if request.param == "memory":
        made: World = MemoryWorld()
    else:
        made = sockets = SocketWorld()
        await sockets.open()
    yield made
    await made.close()


@pytest.fixture
def make_ear() -> type[Ear]:
    return Ear


@pytest.fixture
def make_memory_world() -> type[MemoryWorld]:
    """The world in memory, for a test that brings its own loop."""
    return MemoryWorld


@pytest.fixture
async def socket_world() -> AsyncIterator[SocketWorld]:
    made = SocketWorld()
    await made.open()
    yield made
    await made.close()


@pytest.fixture
def greeting() -> Callable[..., Hello]:
    """Make the hello of node b, as node a would accept it; any field can be replaced."""

    def make(**changed: Any) -> Hello:
        fields: dict[str, Any] = {
            "node_id": "b",
            "store_id": b"store of b",
            "cluster_id": CLUSTER,
            "incarnation": 1,
            "generation": 0,
            "frame_bytes": 256 * 1024,
            "message_bytes": 8 * 1024 * 1024,
        }
        return Hello(**{**fields, **changed})

    return make
