"""One remote client as its node sees it, without I/O: calls that came in frames, and the answers that wait to go.

    frame ──> batches ──┬─ this node leads ──> begin_batch: all calls of a batch at once
                        ├─ ANYBODY, or a read of a near replica ──> a task per call, through the router
                        └─ else ──> NotLeader, with who does
    outcomes ──> parts, all that are there when the writer has room ──> one frame

Bounds: a client that sends more calls than its welcome allows has its connection closed; nothing more is read from one
that leaves UNREAD_BYTES of answers unread; past UNREAD_BYTES_MOST results are replaced by errors.

Rules of this file: no sockets; whatever a client sends, it ends with answers or with a WireError; nobody's frame is
trusted to be small, true or in time.
"""

from __future__ import annotations

import asyncio
import logging
import struct
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from functools import partial
from typing import Any, Final, Protocol

from multiraft.client import frames
from multiraft.client.frames import ANYBODY, FIRST, KINDS, NEAR, NUMBERED, Batch, Plain
from multiraft.config import Limits
from multiraft.consistency import STALE_MS_MOST, Consistency
from multiraft.errors import MultiRaftError, NotLeader, OutcomeUnknown, ReadFailed, WireError
from multiraft.group import CallKind
from multiraft.outcome import Outcome
from multiraft.shard.shard_map import ShardMap
from multiraft.types import GroupId, NodeId

FRAME_BYTES: Final = 256 * 1024
"""A frame of answers takes no further part once it comes to this."""
UNREAD_BYTES: Final = 8 * 1024 * 1024
UNREAD_BYTES_MOST: Final = 64 * 1024 * 1024
CALLS_AT_ONCE: Final = 16_384
"""Calls that one connection may have under way."""
AGE: Final = struct.Struct(">d")
"""Before the result of a near read: its age in milliseconds."""
_OVERHEAD_BYTES: Final = 16
log: Final = logging.getLogger("multiraft.client")


class ClientNode(Protocol):
    """What serving clients needs of a node. `multiraft.Node` is one; what is raised stands there."""

    @property
    def node_id(self) -> NodeId: ...

    @property
    def limits(self) -> Limits: ...

    @property
    def shard_map(self) -> ShardMap: ...

    def cluster_key(self) -> bytes: ...

    def leader(self, group_id: GroupId) -> NodeId | None: ...

    def begin_batch(
        self, group_id: GroupId, kind: CallKind, bodies: list[bytes], done: Callable[[list[Outcome]], None]
    ) -> None: ...

    def call(
        self, group_id: GroupId, kind: CallKind, body: bytes, timeout_s: float | None
    ) -> Coroutine[Any, Any, bytes]: ...

    def read_as(
        self, group_id: GroupId, query: bytes, how: Consistency, timeout_s: float | None
    ) -> Coroutine[Any, Any, tuple[bytes, float]]: ...

    def on_call(self, method: str, handler: Callable[[bytes], bytes]) -> None: ...

    async def peer_call(self, node_id: NodeId, method: str, body: bytes, timeout_s: float) -> bytes: ...


class ServedClient:
    """The calls of one connection.

    wake       tells the writer that there may be a frame
    write      has it written at once: nothing is under way that it could wait for
    find_urls  returns where clients reach each node
    in_flight  calls that came and whose answers were not handed to the writer
    unread_bytes  answers that wait for it
    """

    def __init__(
        self,
        node: ClientNode,
        wake: Callable[[], None],
        write: Callable[[], None],
        find_urls: Callable[[], Coroutine[Any, Any, dict[NodeId, str]]],
    ) -> None:
        self._node = node
        self._wake = wake
        self._write = write
        self._find_urls = find_urls
        self.in_flight = 0
        self.unread_bytes = 0
        self._parts: deque[tuple[int, int, list[Plain], int]] = deque()
        self._maps: deque[bytes] = deque()
        self._tasks: set[asyncio.Task[None]] = set()
        self._looking = False
        self._closed = False

    @property
    def full(self) -> bool:
        """Whether so many answers are unread that no more calls are to be read."""
        return self.unread_bytes > UNREAD_BYTES

    def welcome(self) -> bytes:
        """Return the node's first frame. Raises NotReady, NotRunning."""
        node, limits = self._node, self._node.limits
        said = (frames.VERSION, node.node_id, node.cluster_key(), limits.entry_bytes, limits.key_bytes, CALLS_AT_ONCE)
        return frames.welcome(frames.Welcome(*said))

    def received(self, frame: bytes) -> None:
        """Take a frame. Raises WireError: close the connection."""
        asked = frames.read_request(frame)
        if isinstance(asked, list):
            for batch in asked:
                self._begin(batch)
            return
        if self._looking:
            raise WireError("a look at the map while another one is not answered")
        self._looking = True
        self._spawn(self._look(*asked))

    def next_frame(self) -> bytes | None:
        """Return the next frame to be written; None: nothing is to be, before `wake` is called."""
        if self._maps:
            self._looking = False
            return self._maps.popleft()
        if not self._parts:
            return None
        rows: list[tuple[int, int, list[Plain]]] = []
        room_bytes = FRAME_BYTES
        while self._parts and room_bytes > 0:
            batch_id, first, outcomes, size_bytes = self._parts.popleft()
            rows.append((batch_id, first, outcomes))
            room_bytes -= size_bytes
        self.unread_bytes -= FRAME_BYTES - room_bytes
        return frames.answers(self._map_version(), rows)

    def close(self) -> None:
        """The connection has ended: nobody hears the answers."""
        self._closed = True
        for task in self._tasks:
            task.cancel()

    def _map_version(self) -> int:
        try:
            return self._node.shard_map.version
        except MultiRaftError:  # the node is stopping
            return 0

    # ------------------------------------------------------------------------------------------------------- calls

    def _begin(self, batch: Batch) -> None:
        _, group_id, kind, argument, timeout_ms, bodies = batch
        self.in_flight += len(bodies)
        if self.in_flight > CALLS_AT_ONCE:
            raise WireError(f"more than {CALLS_AT_ONCE} calls under way on one connection")
        if kind == NEAR:
            self._begin_near(batch)
            return
        try:
            self._node.begin_batch(group_id, KINDS[kind], bodies, partial(self._done, batch))  # type: ignore[arg-type]
            return
        except MultiRaftError as problem:
            if not isinstance(problem, NotLeader) or not argument & ANYBODY:
                self._refused(batch, problem)
                return
        name = "numbered first" if kind == NUMBERED and argument & FIRST else KINDS[kind]
        for at, body in enumerate(bodies):
            self._spawn(self._one(batch, at, partial(self._relayed, group_id, name, body, timeout_ms / 1_000)))

    def _begin_near(self, batch: Batch) -> None:
        _, group_id, _, stale_ms, timeout_ms, bodies = batch
        if stale_ms > STALE_MS_MOST:
            raise WireError(f"an answer may be {STALE_MS_MOST} ms old at most")
        how = Consistency(local=stale_ms < 0, stale_ms=stale_ms if stale_ms >= 0 else None)
        for at, body in enumerate(bodies):
            self._spawn(self._one(batch, at, partial(self._aged, group_id, body, how, timeout_ms / 1_000)))

    async def _relayed(self, group_id: GroupId, kind: str, body: bytes, timeout_s: float) -> bytes:
        return await self._node.call(group_id, kind, body, timeout_s)  # type: ignore[arg-type]

    async def _aged(self, group_id: GroupId, query: bytes, how: Consistency, timeout_s: float) -> bytes:
        answer, age_ms = await self._node.read_as(group_id, query, how, timeout_s)
        return AGE.pack(age_ms) + answer

    async def _one(self, batch: Batch, at: int, call: Callable[[], Awaitable[bytes]]) -> None:
        """Have one call done, and tell its outcome alone: the others of its batch may take longer."""
        try:
            outcome: Outcome | BaseException = await call()
        except MultiRaftError as problem:
            outcome = problem
        except Exception as problem:
            log.exception("a client's call of group %d met a bug", batch.group_id)
            outcome = problem
        self._tell(batch, at, [outcome])

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # ----------------------------------------------------------------------------------------------------- answers

    def _done(self, batch: Batch, outcomes: list[Outcome]) -> None:
        self._tell(batch, 0, outcomes)

    def _refused(self, batch: Batch, problem: MultiRaftError) -> None:
        """None of the batch's calls was begun."""
        self.in_flight -= len(batch.bodies)
        self._put(batch.batch_id, -1, [frames.plain(problem)], _OVERHEAD_BYTES)

    def _tell(self, batch: Batch, first: int, outcomes: Sequence[Outcome | BaseException]) -> None:
        """Put outcomes where the writer finds them, in parts of about a frame."""
        if self._closed:
            return
        self.in_flight -= len(outcomes)
        part: list[Plain] = []
        size_bytes = 0
        for outcome in outcomes:
            if type(outcome) is not bytes:
                size_bytes += 256
                part.append(frames.plain(outcome))
            elif self.unread_bytes + size_bytes + len(outcome) > UNREAD_BYTES_MOST:
                part.append(frames.plain(_unread(batch.kind)))
            else:
                size_bytes += len(outcome) + _OVERHEAD_BYTES
                part.append(outcome)
            if size_bytes > FRAME_BYTES:
                self._put(batch.batch_id, first, part, size_bytes)
                first, part, size_bytes = first + len(part), [], 0
        if part:
            self._put(batch.batch_id, first, part, size_bytes)

    def _put(self, batch_id: int, first: int, part: list[Plain], size_bytes: int) -> None:
        self.unread_bytes += size_bytes
        self._parts.append((batch_id, first, part, size_bytes))
        if self.in_flight:
            self._wake()
        else:
            self._write()

    async def _look(self, look_id: int, services: list[str]) -> None:
        """Find what the map says of these services, and what else a client wants to know with it."""
        urls = await self._find_urls()
        try:
            whole = self._node.shard_map
        except MultiRaftError:  # the node is stopping, and the connection with it
            return
        shown = {name: whole.services[name] for name in services if name in whole.services}
        served = [shard.group_id for service in shown.values() for shard in service.shards]
        groups = {group_id: whole.groups[group_id] for group_id in served}
        leaders = {group_id: leader for group_id in groups if (leader := self._node.leader(group_id)) is not None}
        self._maps.append(frames.found(look_id, ShardMap(whole.version, shown, groups), leaders, urls))
        self._wake()


_CHANGES: Final = frozenset(at for at, name in enumerate(KINDS) if name in ("propose", "numbered", "register"))


def _unread(kind: int) -> MultiRaftError:
    text = "the client left too many answers unread; read them as they come, or ask for less at once"
    return OutcomeUnknown(f"{text}. The command has happened") if kind in _CHANGES else ReadFailed(text)
