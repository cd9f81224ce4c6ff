"""From the calls of all connections to few commands and queries of the store's shards, and back to their answers.

What the connections ask for in one turn of the loop is gathered, by shard: those of their calls that go through the
log become one command of the shard, those that only read become one query. While as many commands of a shard are under
way as are allowed, the next one gathers more. A command costs the log, the disks and the network the same however many
calls it makes, so the busier a shard is, the less each call costs.

A connection's calls for one shard are a piece, and a piece is never divided. Of one connection only one piece for a
shard is under way at a time (connection.py): so its calls are made in their order, though commands may overtake one
another.

Rules of this file: no task and no future per call, only per command; what a piece is told is told once; batches are
bounded in calls and bytes, since one is applied at a stretch.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any, Final, Protocol

import msgpack

from examples.kv.machine import KV
from examples.kv.resp.command import Call
from multiraft.errors import CommandFailed, InvalidRequest, MultiRaftError, NotCommitted
from multiraft.shard.shard_map import Shard

BATCH_CALLS: Final = 512
BATCH_BYTES: Final = 1024 * 1024
"""A command or query is closed at these; it holds at least one piece."""
COMMANDS_UNDER_WAY: Final = 1
QUERIES_UNDER_WAY: Final = 2
"""So many of one shard are under way; meanwhile the next one gathers. A second command under way makes both smaller,
and costs a fifth more for each call when many clients send one at a time (measured)."""

_log = logging.getLogger(__name__)
_pack: Final[Callable[[Any], bytes]] = msgpack.Packer().pack


class Waiting(Protocol):
    """Who waits for the results of a piece."""

    def answered(self, piece: Piece, results: list[Any]) -> None:
        """The first of the piece's calls were made, perhaps all of them, with these results; the others were not."""

    def failed(self, piece: Piece, error: str, certain: bool) -> None:
        """Nobody will say what came of the calls. certain: none was made."""


class Piece:
    """What one connection asks of one shard at once.

    route       a key of the shard; None: it has none, and only reads
    write       whether it goes through the log
    size_bytes  at least what the calls take
    targets     where the results go, for whoever waits
    """

    __slots__ = ("calls", "route", "shard", "size_bytes", "targets", "waiting", "write")

    def __init__(self, waiting: Waiting, shard: Shard, route: bytes | None) -> None:
        self.waiting = waiting
        self.shard = shard
        self.route = route
        self.write = False
        self.calls: list[Call] = []
        self.targets: list[Any] = []
        self.size_bytes = 0


class _Lane:
    """The commands of one shard, or its queries: what gathers, how many are under way, and how many may be."""

    __slots__ = ("gathered", "most", "under_way")

    def __init__(self, most: int) -> None:
        self.most = most
        self.gathered: list[Piece] = []
        self.under_way = 0


class Gateway:
    """Use from the loop's thread.

    store  the store's handle
    """

    def __init__(self, store: type[KV]) -> None:
        self._store = store
        self._lanes: dict[tuple[int, bool], _Lane] = {}
        self._touched: dict[_Lane, None] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def submit(self, piece: Piece) -> None:
        """Have the calls of `piece` made."""
        lane = self._lanes.get((piece.shard.shard_id, piece.write))
        if lane is None:
            most = COMMANDS_UNDER_WAY if piece.write else QUERIES_UNDER_WAY
            lane = self._lanes[piece.shard.shard_id, piece.write] = _Lane(most)
        lane.gathered.append(piece)
        if not self._touched:
            asyncio.get_running_loop().call_soon(self._flush)
        self._touched[lane] = None

    async def close(self) -> None:
        """Wait for what is under way; its time is bounded."""
        while self._tasks:
            await asyncio.wait(self._tasks)

    def _flush(self) -> None:
        touched, self._touched = self._touched, {}
        for lane in touched:
            self._start(lane)

    def _start(self, lane: _Lane) -> None:
        while lane.gathered and lane.under_way < lane.most:
            batch = _first_batch(lane.gathered)
            lane.under_way += 1
            task = asyncio.get_running_loop().create_task(self._make(lane, batch))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _make(self, lane: _Lane, batch: list[Piece]) -> None:
        try:
            results = await self._ask(batch)
        except MultiRaftError as problem:
            _tell(batch, *explain(problem))
        except Exception:
            _log.exception("%d pieces for a shard", len(batch))
            _tell(batch, "UNCERTAIN a bug: the node's log has the details", False)
        else:
            _deliver(batch, results)
        finally:
            lane.under_way -= 1
            self._start(lane)

    async def _ask(self, batch: list[Piece]) -> list[Any]:
        first = batch[0]
        calls = first.calls if len(batch) == 1 else [call for piece in batch for call in piece.calls]
        packed = _pack(calls)
        if first.write:
            if first.route is None:
                raise InvalidRequest("what goes through the log needs a key")
            raw = await self._store.run(first.route.decode(), packed)
        else:
            raw = await self._store.look.on_shard(first.shard.shard_id, packed)
        results: list[Any] = msgpack.unpackb(raw)
        return results


def _first_batch(gathered: list[Piece]) -> list[Piece]:
    """Take from what is gathered as much as one command should make."""
    count = size_bytes = taken = 0
    for piece in gathered:
        count += len(piece.calls)
        size_bytes += piece.size_bytes
        if taken and (count > BATCH_CALLS or size_bytes > BATCH_BYTES):
            break
        taken += 1
    batch = gathered[:taken]
    del gathered[:taken]
    return batch


def _deliver(batch: list[Piece], results: list[Any]) -> None:
    at = 0
    for piece in batch:
        end = at + len(piece.calls)
        piece.waiting.answered(piece, results[at:end])
        at = end


def _tell(batch: list[Piece], error: str, certain: bool) -> None:
    for piece in batch:
        piece.waiting.failed(piece, error, certain)


def explain(problem: MultiRaftError) -> tuple[str, bool]:
    """Return what a client is told of an error of the framework, and whether it is certain that nothing was done."""
    if isinstance(problem, InvalidRequest | CommandFailed):
        return f"ERR {problem}", True
    if isinstance(problem, NotCommitted):
        return f"TRYAGAIN {problem}", True
    return f"UNCERTAIN {problem}", False
