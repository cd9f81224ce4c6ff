"""The client that a program holds: connections to the nodes, and calls that return when they are done.

    async with Client(["http://127.0.0.1:7101"]) as client:
        counters = client.service("counters", Counters)
        await counters.add("hits")

One URL of any node is enough: where the others are it learns there. It keeps one connection to each node that it has
calls for; all calls of a turn that go to one node leave in one frame.

Rules of this file: what is sent where and what an answer means is decided in core.py; every task that is started here
is ended by `close`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from asyncio import Future, Task, TimerHandle
from collections.abc import Sequence
from functools import partial
from types import TracebackType
from typing import Final, Self, TypeVar

import aiohttp
from aiohttp import WSMsgType

from multiraft.client import frames
from multiraft.client.core import Core, new_call
from multiraft.client.dialling import CLOSE_S, DIAL_S, closing, open_websocket
from multiraft.client.frames import Welcome
from multiraft.client.lanes import Call, Done
from multiraft.client.links import Link
from multiraft.client.routes import ClientRoute, call_of
from multiraft.client.served import AGE
from multiraft.consistency import LINEARIZABLE, Consistency
from multiraft.eager import EagerWriter, Sending
from multiraft.errors import (
    DeadlineExceeded,
    InvalidRequest,
    MultiRaftError,
    NotReady,
    NotRunning,
    Overloaded,
    Unreachable,
    WireError,
)
from multiraft.remote import ServiceBinding
from multiraft.service import bind_service
from multiraft.services import BytesService
from multiraft.sessions import HEAD
from multiraft.shard.shard_map import ServiceShards
from multiraft.statemachine import StateMachine
from multiraft.types import GroupId, NodeId
from multiraft.urls import URL_EXAMPLE, node_url

M = TypeVar("M", bound=StateMachine)

_AGAIN_S: Final = (0.05, 1.0)
_NEXT_S: Final = 0.25
log: Final = logging.getLogger("multiraft.client")


class Client:
    """A remote client of a cluster. Use as `async with Client(urls) as client`.

    urls        of one or more nodes: where the admin API is, "http://host:port" with or without its path
    timeout_ms  the default time of a call, all attempts together
    in_flight   calls under way at most; one more waits for room, or is refused with Overloaded where it cannot wait
    in_flight_bytes  the same, in bytes
    rng         where session ids and jitter come from; None: the operating system
    """

    def __init__(
        self,
        urls: Sequence[str],
        *,
        timeout_ms: int = 10_000,
        in_flight: int = 16_384,
        in_flight_bytes: int = 64 * 1024 * 1024,
        rng: random.Random | None = None,
    ) -> None:
        if isinstance(urls, str) or not urls:
            raise InvalidRequest(f"urls: name at least one node, like ['{URL_EXAMPLE}']")
        for name, value in (("timeout_ms", timeout_ms), ("in_flight", in_flight), ("in_flight_bytes", in_flight_bytes)):
            if type(value) is not int or value < 1:
                raise InvalidRequest(f"{name} = {value!r}: must be a whole number, at least 1")
        self.timeout_s = timeout_ms / 1_000
        try:
            self._seeds = [node_url(url) for url in urls]
        except ValueError as problem:
            raise InvalidRequest(f"urls: {problem}; one is like {URL_EXAMPLE}") from problem
        self._rng = rng if rng is not None else random.SystemRandom()
        self._bounds = in_flight, in_flight_bytes
        self._bindings: list[ServiceBinding] = []
        self._core: Core | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._session: aiohttp.ClientSession | None = None
        self._dials: dict[str, Task[None]] = {}
        self._seeking: Task[None] | None = None
        self._cluster_id: bytes | None = None
        self._welcome: Welcome | None = None
        self._most_bytes = 0
        self._up = asyncio.Event()
        self._roomless: list[Future[None]] = []
        self._mapless: list[Future[None]] = []
        self._timer: TimerHandle | None = None
        self._problem = "no node was dialled yet"

    # ------------------------------------------------------------------------------------------------ start and end

    async def start(self, timeout_s: float = 10.0) -> None:
        """Connect to a node. Raises Unreachable when none answers within `timeout_s`, saying why."""
        if self._core is not None:
            raise NotRunning("a client starts once; make a new one")
        self._loop = asyncio.get_running_loop()
        self._core = Core(
            self._loop.time,
            self._rng,
            *self._bounds,
            dial=self._dial,
            wake_at=self._wake_at,
            room=self._has_room,
            map_came=self._map_came,
        )
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0),
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=DIAL_S),
        )
        self._seek()
        try:
            async with asyncio.timeout(timeout_s):
                await self._up.wait()
        except TimeoutError:
            await self.close()
            raise Unreachable(f"no node could be reached within {timeout_s:g} s; last: {self._problem}") from None
        for binding in self._bindings:
            binding.caller = ClientRoute(self, binding.name)

    async def close(self) -> None:
        """End: what is not answered by now is told so; close the connections. Idempotent."""
        core, session = self._core, self._session
        if core is None or session is None:
            return
        core.stop()
        for binding in self._bindings:
            binding.caller = None
        self._has_room()
        self._map_came()
        if self._timer is not None:
            self._timer.cancel()
        tasks = [task for task in (self._seeking, *self._dials.values()) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await session.close()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    # ---------------------------------------------------------------------------------------------------- services

    def service(self, name: str, machine: type[M]) -> type[M]:
        """Return the handle of service `name`, as `Node.service` does: its commands and queries are called on it.

        The class is the one that the nodes declared, or one with the same commands and queries. Before or after the
        start. Raises TypeError.
        """
        return bind_service(machine, name, self._binding(name))

    def bytes_service(self, name: str) -> BytesService:
        """Return the handle of a service whose machine takes bytes."""
        return BytesService(self._binding(name))

    async def open_session(self, name: str, timeout_s: float | None = None) -> bytes:
        """Begin a session in every shard of a service, for a program that numbers its commands itself.

        As `Node.open_session`, which see; its id is good on nodes and on other clients, too.
        """
        return await ClientRoute(self, name).open_session(timeout_s)

    def _absence(self) -> MultiRaftError:
        stopped = self._core is not None and self._core.stopped
        return NotRunning("the client is closed" if stopped else "the client is not started; use `async with`")

    def _binding(self, name: str) -> ServiceBinding:
        binding = ServiceBinding(name)
        binding.away = self._absence
        if self._core is not None and not self._core.stopped:
            binding.caller = ClientRoute(self, name)
        self._bindings.append(binding)
        return binding

    # ------------------------------------------------------------------------------------------------------- calls

    @property
    def core(self) -> Core:
        """Raises NotRunning before the start."""
        if self._core is None:
            raise NotRunning("the client is not started; use `async with`")
        return self._core

    @property
    def bounds(self) -> Welcome:
        """What the node that was met last allows. Raises NotRunning before the start."""
        if self._welcome is None:
            raise NotRunning("the client is not started; use `async with`")
        return self._welcome

    @property
    def counts(self) -> dict[str, int]:
        """What has happened since the start: see `Core.counts`. Raises NotRunning."""
        return dict(self.core.counts)

    def call(
        self,
        where: str | GroupId,
        key: bytes,
        kind: int,
        body: bytes,
        timeout_s: float | None,
        *,
        argument: int = 0,
        numbers: bool = False,
        again: bool = False,
    ) -> Future[bytes]:
        """Begin a call and return its future; one beyond the bounds waits for room, within its time."""
        core, loop = self.core, self._loop
        if loop is None:
            raise NotRunning("the client is not started; use `async with`")
        if type(body) is not bytes or type(key) is not bytes or len(body) > self._most_bytes:
            raise self._refusal(body, key)
        future: Future[bytes] = loop.create_future()
        deadline = loop.time() + (self.timeout_s if timeout_s is None else timeout_s)
        call = new_call(kind, body, deadline, argument=argument, numbers=numbers, again=again, future=future)
        try:
            core.submit(call, where, key)
        except Overloaded:
            return loop.create_task(self._when_there_is_room(call, future, where, key))
        return future

    def send(self, service: str, key: bytes, command: bytes, done: Done, *, timeout_s: float | None = None) -> None:
        """Have a command applied, once, and `done` called with its result or error: for programs that count in us.

        Nothing waits and no future is made; `done` runs between two frames and must return quickly. Raises
        Overloaded (as many calls are under way as are allowed), InvalidRequest (too large, no bytes), NotRunning.
        """
        self._submit(new_call(0, command, self._until(timeout_s), numbers=True, done=done), service, key)

    def ask(
        self,
        service: str,
        key: bytes,
        query: bytes,
        done: Done,
        *,
        how: Consistency = LINEARIZABLE,
        timeout_s: float | None = None,
    ) -> None:
        """Have a query answered, and `done` called. Otherwise as `send`."""
        kind, argument = call_of(how)
        told = done if kind != frames.NEAR else partial(_without_age, done)
        self._submit(new_call(kind, query, self._until(timeout_s), argument=argument, done=told), service, key)

    def _submit(self, call: Call, service: str, key: bytes) -> None:
        if type(call.body) is not bytes or type(key) is not bytes or len(call.body) > self._most_bytes:
            raise self._refusal(call.body, key)
        self.core.submit(call, service, key)

    def _until(self, timeout_s: float | None) -> float:
        return self.core.clock() + (self.timeout_s if timeout_s is None else timeout_s)

    def _refusal(self, body: bytes, key: bytes) -> MultiRaftError:
        most = self.bounds.entry_bytes  # which raises where the client is not started
        for given in (key, body):
            if type(given) is not bytes:
                return InvalidRequest(f"keys and bodies of calls must be bytes, not {type(given).__name__}")
        return InvalidRequest(f"a call of {len(body)} bytes; the nodes take entry_bytes = {most} at most")

    async def _when_there_is_room(self, call: Call, future: Future[bytes], where: str | GroupId, key: bytes) -> bytes:
        await self.submit(call, where, key)
        return await future

    async def submit(self, call: Call, where: str | GroupId, key: bytes) -> None:
        """Begin a call; one beyond the bounds waits for room. Raises DeadlineExceeded, InvalidRequest, NotRunning."""
        if type(call.body) is not bytes or type(key) is not bytes or len(call.body) > self._most_bytes:
            raise self._refusal(call.body, key)
        while True:
            try:
                self.core.submit(call, where, key)
                return
            except Overloaded:
                waiter: Future[None] = asyncio.get_running_loop().create_future()
                self._roomless.append(waiter)
            try:
                async with asyncio.timeout_at(call.deadline):
                    await waiter
            except TimeoutError:
                raise DeadlineExceeded("as many calls were under way as this client allows; raise in_flight") from None

    async def shards(self, name: str, timeout_s: float | None = None) -> ServiceShards:
        """Return the shards of a service; wait for it if it is not in the map yet. Raises NotReady in the end."""
        core, timeout_s = self.core, self.timeout_s if timeout_s is None else timeout_s
        deadline = core.clock() + timeout_s
        while (found := core.atlas.services.get(name)) is None:
            if core.stopped:
                raise self._absence()
            core.want_service(name)
            waiter: Future[None] = asyncio.get_running_loop().create_future()
            self._mapless.append(waiter)
            try:
                async with asyncio.timeout_at(deadline):
                    await waiter
            except TimeoutError:
                raise NotReady(f"service {name!r} is in no node's shard map after {timeout_s:g} s") from None
        return found

    def _map_came(self) -> None:
        waiters, self._mapless = self._mapless, []
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)

    def _has_room(self) -> None:
        waiters, self._roomless = self._roomless, []
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)

    # -------------------------------------------------------------------------------------------------- the core asks

    def _wake_at(self, when_s: float) -> None:
        loop, timer = self._loop, self._timer
        if loop is None or (timer is not None and timer.when() <= when_s):
            return
        if timer is not None:
            timer.cancel()
        self._timer = loop.call_at(when_s, self._tick)

    def _tick(self) -> None:
        self._timer = None
        if self._core is not None:
            self._core.tick()

    def _dial(self, node_id: NodeId) -> None:
        url = self.core.atlas.urls[node_id]
        if url not in self._dials:
            self._begin(url, node_id)

    def _begin(self, url: str, node_id: NodeId | None) -> Task[None]:
        task = asyncio.get_running_loop().create_task(self._keep(url, node_id))
        self._dials[url] = task
        task.add_done_callback(lambda _: self._dials.pop(url, None))
        return task

    def _seek(self) -> None:
        """Have some node found, while there is a connection to none."""
        if self._seeking is None or self._seeking.done():
            self._seeking = asyncio.get_running_loop().create_task(self._find_any())

    async def _find_any(self) -> None:
        core, backoff_s = self.core, _AGAIN_S[0]
        while not core.links:
            urls = list(dict.fromkeys([*self._seeds, *core.atlas.urls.values()]))
            self._rng.shuffle(urls)
            for url in urls:
                task = self._dials.get(url) or self._begin(url, None)
                up = asyncio.ensure_future(self._up.wait())
                try:
                    # One that takes long goes on while the next is tried.
                    await asyncio.wait([task, up], timeout=_NEXT_S, return_when=asyncio.FIRST_COMPLETED)
                finally:
                    up.cancel()
                if core.links:
                    return
            await asyncio.sleep(backoff_s * self._rng.uniform(0.5, 1.0))
            backoff_s = min(2 * backoff_s, _AGAIN_S[1])

    # ---------------------------------------------------------------------------------------------------- connections

    async def _keep(self, url: str, node_id: NodeId | None) -> None:
        """Dial a URL, and serve the connection until it ends."""
        core, session = self.core, self._session
        if session is None:
            raise NotRunning("the client is not started; use `async with`")
        try:
            async with asyncio.timeout(DIAL_S):
                ws = await open_websocket(session, url)
        except (aiohttp.ClientError, OSError, TimeoutError, WireError) as problem:
            self._problem = f"{url}: {str(problem) or type(problem).__name__}"
            if node_id is not None and not core.stopped:
                core.unreachable(node_id, self._problem)
            return
        link: Link | None = None
        why = "the client was closed"
        try:
            link, writer = await self._greet(ws, url, node_id)
            why = await self._converse(ws, link, writer)
        except (aiohttp.ClientError, OSError, TimeoutError, WireError, NotReady) as problem:
            self._problem = why = f"{url}: {str(problem) or type(problem).__name__}"
            log.info("%s", why)
        finally:
            if not core.stopped:
                if link is not None:
                    core.lost(link, why)
                elif node_id is not None:
                    core.unreachable(node_id, why)
                if not core.links:
                    self._up.clear()
                    self._seek()
            with contextlib.suppress(aiohttp.ClientError, OSError, TimeoutError):
                async with asyncio.timeout(CLOSE_S):
                    await ws.close()

    async def _greet(
        self, ws: aiohttp.ClientWebSocketResponse, url: str, node_id: NodeId | None
    ) -> tuple[Link, EagerWriter]:
        """Say hello, and take the node's welcome. Raises WireError, OSError, TimeoutError."""
        core = self.core
        async with asyncio.timeout(DIAL_S):
            await ws.send_bytes(frames.hello())
            message = await ws.receive()
        if message.type is not WSMsgType.BINARY:
            raise ConnectionError(f"the node closed the connection: {closing(ws, message)}")
        welcome = frames.read_welcome(message.data)
        if self._cluster_id not in (None, welcome.cluster_id):
            raise WireError("the node is of another cluster than the nodes before it")
        if node_id not in (None, welcome.node_id):
            core.unreachable(node_id or "", f"node {welcome.node_id!r} is at {url}")
        if welcome.node_id in core.links:
            raise WireError(f"node {welcome.node_id!r} is connected already")
        self._cluster_id, self._welcome = welcome.cluster_id, welcome
        self._most_bytes = welcome.entry_bytes + HEAD.size
        core.atlas.urls[welcome.node_id] = url
        writer = EagerWriter(asyncio.get_running_loop())
        link = core.connected(welcome, writer.wake)
        self._up.set()
        return link, writer

    async def _converse(self, ws: aiohttp.ClientWebSocketResponse, link: Link, writer: EagerWriter) -> str:
        """Write and hear until the connection ends; return why it did."""
        received, receive, binary = self.core.received, ws.receive, WSMsgType.BINARY
        writing = asyncio.get_running_loop().create_task(self._write(ws, link, writer))
        try:
            while True:
                message = await receive()
                if message.type is not binary:
                    return closing(ws, message)
                received(link, message.data)
                writer.write()  # what callers who were told have asked for
        finally:
            writing.cancel()
            await asyncio.gather(writing, return_exceptions=True)

    async def _write(self, ws: aiohttp.ClientWebSocketResponse, link: Link, writer: EagerWriter) -> None:
        next_frame, send_bytes = self.core.next_frame, ws.send_bytes

        def begin() -> Sending | None:
            frame = next_frame(link)
            return None if frame is None else send_bytes(frame)

        try:
            await writer.run(begin)
        except (aiohttp.ClientError, OSError):  # the reader hears of it, too
            await ws.close()


def _without_age(done: Done, outcome: bytes | MultiRaftError) -> None:
    done(outcome[AGE.size :] if type(outcome) is bytes else outcome)
