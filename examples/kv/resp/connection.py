"""One client's connection: what comes is taken in chunks, and a chunk is answered before the next one is taken.

Of a chunk, the calls for one shard are one piece (gateway.py). If any of them writes, all of them go through the
shard's log, in their order; so a read sees the writes before it, and none behind it. Else they are one query. The
pieces of different shards are made at the same time; the answers leave in the order of the requests.

Rules of this file: all is bounded: what is read while a chunk is under way, how many requests are a chunk, and what is
written to a client that does not read (its next chunk is not taken); no task per connection.
"""

from __future__ import annotations

import asyncio
import logging
import time
from typing import TYPE_CHECKING, Any, Final, cast

from examples.kv.resp.client import Client
from examples.kv.resp.command import Command, Plan, Refused
from examples.kv.resp.gateway import Piece
from examples.kv.resp.parser import ARGUMENTS, REQUEST_BYTES, Parser, ProtocolError, Request
from examples.kv.resp.replies import OK, Answer
from examples.kv.resp.table import BY_WORD, find_command
from examples.kv.resp.transactions import enqueue

if TYPE_CHECKING:
    from examples.kv.resp.server import RespServer

CHUNK_REQUESTS: Final = 512
INPUT_BYTES: Final = 1024 * 1024
"""So much is read ahead while a chunk is under way."""
_STRANGER: Final = (16 * 1024, 10)
"""The limits of requests of who has not said the password."""

_log = logging.getLogger(__name__)


class Connection(asyncio.Protocol):
    """The connection of `client`; made by the server for each."""

    def __init__(self, server: RespServer) -> None:
        self._server = server
        self.client = Client(server, server.next_number(), known=server.password is None, since_s=time.monotonic())
        self._parser = Parser()
        self._transport: asyncio.Transport | None = None
        self._waiting: list[Request] = []  # taken, and not begun
        self._chunk: _Chunk | None = None
        self._writable = True
        self._reading = True
        self._ending = False  # nothing more is read; the connection ends with the answers to what has come
        self._begins = False

    # --------------------------------------------------------------------------------------------- from the loop

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        stream = self._transport = cast(asyncio.Transport, transport)  # uvloop's is one in all but its bases
        self.client.address = _address(transport.get_extra_info("peername"))
        self.client.own_address = _address(transport.get_extra_info("sockname"))
        if not self._server.came(self):
            stream.write(b"-ERR max number of clients reached\r\n")
            self.end_now()

    def data_received(self, data: bytes) -> None:
        if self._ending:
            return
        self._parser.feed(data)
        if self._chunk is None and self._writable:
            self._begin()
        elif self._reading and self._parser.held_bytes > INPUT_BYTES and self._transport is not None:
            self._reading = False
            self._transport.pause_reading()

    def eof_received(self) -> bool:
        self.end()
        return True

    def connection_lost(self, problem: Exception | None) -> None:
        self._transport = None
        self._waiting = []
        self._server.went(self)

    def pause_writing(self) -> None:
        self._writable = False

    def resume_writing(self) -> None:
        self._writable = True
        if self._chunk is not None:
            self._chunk.go_on()
        else:
            self._begin()

    # -------------------------------------------------------------------------------------------------- chunks

    def end(self) -> None:
        """Answer what has come, then end."""
        self._ending = True
        if self._chunk is None and not self._begins:
            self._begin()

    def end_now(self) -> None:
        """End, with what was written so far."""
        self._ending = True
        self._waiting = []
        if self._transport is not None:
            self._transport.close()

    def abort(self) -> None:
        """End at once."""
        if self._transport is not None:
            self._transport.abort()

    def write(self, data: bytes) -> bool:
        """Write answers; return whether the client still takes more."""
        if self._transport is not None:
            self._transport.write(data)
        return self._writable or self._transport is None

    def submit(self, piece: Piece) -> None:
        """Have calls of the chunk made."""
        self._server.submit(piece)

    def answered(self) -> None:
        """All of the chunk was answered."""
        self._chunk = None
        if self.client.leaves:
            self.end_now()
            return
        if not self._reading and self._parser.held_bytes <= INPUT_BYTES and self._transport is not None:
            self._reading = True
            self._transport.resume_reading()
        if self._waiting or self._parser.held_bytes or self._ending:
            # Not at once: others want their turn, too.
            self._begins = True
            asyncio.get_running_loop().call_soon(self._begin)

    def _begin(self) -> None:
        """Begin the next chunk, if there is anything to do."""
        self._begins = False
        if self._chunk is not None or not self._writable or self._transport is None:
            return
        before_bytes = self._parser.held_bytes
        self._parser.limits = (REQUEST_BYTES, ARGUMENTS) if self.client.known else _STRANGER
        try:
            requests = self._waiting or self._parser.take(CHUNK_REQUESTS)
        except ProtocolError as problem:
            self.write(self.client.replies.encode(str(problem)))
            self.end_now()
            return
        self._waiting = []
        if requests:
            self._server.look_at_map()
            chunk = self._chunk = _Chunk(self, self.client, before_bytes)
            self._waiting = self._take_in(chunk, requests)
            self._server.requests += len(requests) - len(self._waiting)
            chunk.begin()
        elif self._ending:
            self.end_now()

    def _take_in(self, chunk: _Chunk, requests: list[Request]) -> list[Request]:
        """Add requests to the chunk; return those that must wait for its end."""
        client = self.client
        command: Command | None = None
        for at, request in enumerate(requests):
            command = BY_WORD.get(request[0])
            try:
                if command is not None and command.plan is not None and client.transaction is None and client.known:
                    command.check(request)
                    chunk.add(command.plan(request))
                    continue
                command = find_command(request)
                if command.alone and at:
                    return requests[at:]
                answer = self._answer(command, request)
                chunk.add(answer) if isinstance(answer, Plan) else chunk.add_ready(answer)
            except Refused as problem:
                if client.transaction is not None and (command is None or not command.at_once):
                    client.transaction.broken = True
                chunk.add_ready(str(problem))
                continue
            client.last = command.name
            if command.last:
                return requests[at + 1 :]
        if command is not None:
            client.last = command.name
        return []

    def _answer(self, command: Command, request: Request) -> Answer | Plan:
        client = self.client
        if not client.known and "no_auth" not in command.flags:
            raise Refused("NOAUTH Authentication required.")
        if client.transaction is not None and not command.at_once:
            return enqueue(client, client.transaction, command, request)
        if command.plan is not None:
            return command.plan(request)
        return None if command.act is None else command.act(client, request)


class _Chunk:
    """Requests that are answered together (gateway.Waiting)."""

    __slots__ = ("_client", "_connection", "_left", "_pieces", "_replies", "_sent", "_size_bytes", "_under_way")

    def __init__(self, connection: Connection, client: Client, size_bytes: int) -> None:
        self._connection = connection
        self._client = client
        self._size_bytes = size_bytes
        self._replies: list[bytes | None] = []
        self._sent = 0
        self._pieces: dict[int, Piece] = {}
        self._under_way = 0
        self._left: list[Piece] = []

    def add_ready(self, answer: Answer) -> None:
        """Add a request that is answered already."""
        self._replies.append(self._client.replies.encode(answer))

    def add(self, plan: Plan) -> None:
        """Add a request that must be asked of shards. Raises Refused while these are not known."""
        calls, shard_of = plan.calls, self._client.place.shard_of
        if plan.merge is None:
            (call,) = calls
            shard_id = shard_of(call[1]).shard_id
            piece = self._pieces.get(shard_id)
            if piece is None:
                self._put(plan, call, shard_of(call[1]), len(self._replies))
            else:
                if plan.write:
                    piece.write = True
                piece.calls.append(call)
                piece.targets.append(len(self._replies))
            self._replies.append(None)
            return
        if plan.shards is not None:
            shards = plan.shards
        elif plan.route is not None:
            shards = [shard_of(plan.route)] * len(calls)
        else:
            shards = [shard_of(call[1]) for call in calls]
        gather = _Gather(self, len(self._replies), plan)
        for at, (call, shard) in enumerate(zip(calls, shards, strict=True)):
            self._put(plan, call, shard, (gather, at))
        self._replies.append(None)

    def _put(self, plan: Plan, call: list[Any], shard: Any, target: Any) -> None:
        piece = self._pieces.get(shard.shard_id)
        if piece is None:
            route = plan.route if plan.route is not None or plan.shards is not None else call[1]
            piece = self._pieces[shard.shard_id] = Piece(self, shard, route)
            piece.size_bytes = self._size_bytes
        if plan.write:
            piece.write = True
        piece.calls.append(call)
        piece.targets.append(target)

    def begin(self) -> None:
        """Nothing more is added: have the calls made."""
        self._left, self._pieces = list(self._pieces.values()), {}
        self.go_on()

    def go_on(self) -> None:
        """Write what is ready; then, while the client reads, have made what was left."""
        if self._under_way:
            return
        if not self._write_ready():
            return
        left, self._left = self._left, []
        self._under_way = len(left)
        for piece in left:
            self._connection.submit(piece)
        if not left:
            self._connection.answered()

    def answered(self, piece: Piece, results: list[Any]) -> None:
        replies, encode = self._replies, self._client.replies.encode
        for target, result in zip(piece.targets, results, strict=False):
            if type(target) is int:
                replies[target] = OK if result is True else encode(result)
            else:
                gather, at = target
                gather.put(at, result)
        if len(results) < len(piece.calls):
            del piece.calls[: len(results)]
            del piece.targets[: len(results)]
            self._left.append(piece)
        self._settle()

    def failed(self, piece: Piece, error: str, certain: bool) -> None:
        for target in piece.targets:
            if type(target) is int:
                self.reply(target, error)
            else:
                gather, at = target
                gather.put(at, error)
        self._settle()

    def reply(self, place: int, answer: Answer) -> None:
        """One request is answered."""
        self._replies[place] = self._client.replies.encode(answer)

    def _settle(self) -> None:
        self._under_way -= 1
        if not self._under_way:
            self.go_on()

    def _write_ready(self) -> bool:
        """Write the answers that are there, up to the first that is not; return whether the client takes more."""
        replies, first = self._replies, self._sent
        ready = replies.index(None, first) if None in replies else len(replies)
        if ready == first:
            return True
        data = b"".join([reply for reply in replies[first:ready] if reply is not None])
        replies[first:ready] = [b""] * (ready - first)
        self._sent = ready
        return self._connection.write(data) or (ready == len(replies) and not self._left)


class _Gather:
    """The results of a request that is asked of several shards, or whose answer is made of results."""

    __slots__ = ("_chunk", "_merge", "_missing", "_place", "_results", "_write")

    def __init__(self, chunk: _Chunk, place: int, plan: Plan) -> None:
        self._chunk = chunk
        self._place = place
        self._merge = plan.merge
        self._write = plan.write
        self._missing = len(plan.calls)
        self._results: list[Any] = [None] * self._missing

    def put(self, at: int, result: Any) -> None:
        self._results[at] = result
        self._missing -= 1
        if not self._missing:
            self._chunk.reply(self._place, self._answer())

    def _answer(self) -> Answer:
        results = self._results
        errors = [result for result in results if type(result) is str]
        if errors:
            part = self._write and len(errors) < len(results)
            return f"UNCERTAIN done for some of the keys, and not for others: {errors[0]}" if part else errors[0]
        if self._merge is None:
            return results[0]
        try:
            return self._merge(results)
        except Exception:
            _log.exception("an answer could not be made of %d results", len(results))
            return "ERR a bug: the node's log has the details"


def _address(name: Any) -> str:
    """Return an address of the socket module as text."""
    return f"{name[0]}:{name[1]}" if isinstance(name, tuple) else str(name or "")
