"""What one replica knows of its group's clients: which of their numbered commands were applied, and to what result.

    registered ──> a command under a new number ──> applied, its reply kept ──> asked for no more, forgotten
                   one under a number seen before ──> the reply that was kept; nothing is applied
                   any command of a client that is not here ──> SessionExpired; never taken for a new client

Of a session is kept: when it was used last, by the replicated clock; the lowest sequence that its client may still ask
for; and, from there on, which sequences were applied, with their replies. Replies are results and CommandFailed; what
was refused was not applied, so it may be tried again under the same number. Past the bound on their bytes replies are
dropped, the lowest first, but that of the lowest outstanding sequence last, since it is the one that is surely still
asked for. What is dropped stays known as applied.

A session ends when it was unused for longer than the expiry, or when there are too many: then the one that was unused
for longest goes; of several such, the one with the lowest client id.

Rules of this file: everything is decided by the log alone, and what is kept is all that later decisions depend on, so
that replicas agree whether they come from the log, from a snapshot, or from their disk.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from heapq import heapify, heappop, heappush
from typing import Any, Final, TypeAlias

import msgpack

from multiraft.errors import (
    CommandFailed,
    CorruptRecord,
    InvalidRequest,
    MultiRaftError,
    Overloaded,
    ReplyForgotten,
    SessionExpired,
)
from multiraft.sessions import CLIENT_BYTES, WINDOW

Result: TypeAlias = bytes | MultiRaftError
Reply: TypeAlias = bytes | CommandFailed | None
"""A result; what the command raised; or None: it was applied, and what came of it is not kept."""
REPLY_OVERHEAD_BYTES: Final = 64
"""What a reply costs beside its own bytes: a bound in bytes must bound empty replies, too."""
FRAME_BYTES: Final = 64 * 1024

_LENGTH: Final = struct.Struct(">I")
_NUMBER: Final = struct.Struct(">Q")
_HEAD: Final = struct.Struct(">QQQ")
_BOUNDS_KEY: Final = b"\x01"
_HEAD_KEY: Final = b"\x02"
_REPLY_KEY: Final = b"\x03"
_NEW: Final = CommandFailed("", "")


class Session:
    """One client's.

    last_use_ms  the replicated clock at its latest command
    lowest       the lowest sequence that its client may still ask for
    dropped      of sequences up to here no reply is kept any more, but that of `lowest`
    newest       the highest sequence in `replies`, or above it
    replies      by sequence, none below `lowest`: everything that was applied
    reply_bytes  what they take
    """

    __slots__ = ("dropped", "last_use_ms", "lowest", "newest", "replies", "reply_bytes")

    def __init__(self, last_use_ms: int, lowest: int = 1, dropped: int = 0) -> None:
        self.last_use_ms = last_use_ms
        self.lowest = lowest
        self.dropped = dropped
        self.newest = 0
        self.replies: dict[int, Reply] = {}
        self.reply_bytes = 0


class Coming:
    """Commands of one client that are about to be applied together, before the table is told of any of them.

    Of one that it takes `SessionTable.answer`, asked when its turn has come, says that it is to be applied; and of one
    that it does not take, if none was taken before, that it is not.
    """

    __slots__ = ("_lowest", "_session", "_taken")

    def __init__(self, session: Session | None) -> None:
        """`session` is to stay as it is; None: the client has none, or not any more."""
        self._session = session
        self._lowest = 1 if session is None else session.lowest
        self._taken: set[int] = set()

    def takes(self, sequence: int, lowest: int) -> bool:
        """Whether the client's next command is new, whatever comes of those that were taken before it."""
        session = self._session
        if session is None or not 0 < lowest <= sequence:
            return False
        floor = self._lowest if self._lowest > lowest else lowest
        if sequence < floor or sequence - floor >= WINDOW or sequence in session.replies or sequence in self._taken:
            return False
        self._lowest = floor
        self._taken.add(sequence)
        return True


class SessionTable:
    """All sessions of one replica.

    clients      by client id
    expiry_ms, reply_bytes, sessions   the bounds, as the latest registration said; none before the first one
    """

    __slots__ = ("_by_use", "_changes", "_used", "clients", "expiry_ms", "reply_bytes", "sessions")

    def __init__(self, *, tracked: bool = False) -> None:
        """`tracked`: changes are to be had from `take_changes`."""
        self.clients: dict[bytes, Session] = {}
        self.expiry_ms = self.reply_bytes = self.sessions = 0
        # Each client at least once, under a time at or before its last use; looked at again when it comes first.
        self._by_use: list[tuple[int, bytes]] = []
        self._changes: dict[bytes, bytes | None] | None = {} if tracked else None
        self._used: dict[bytes, None] = {}

    @property
    def tracked(self) -> bool:
        """Whether changes are to be had from `take_changes`, as they are beside data on disk."""
        return self._changes is not None

    # --------------------------------------------------------------------------------------------- what the log says

    def register(self, client: bytes, expiry_ms: int, reply_bytes: int, sessions: int, now_ms: int) -> None:
        """Begin the session of `client`; nothing happens where it has one. Others may have to end for it."""
        self.expiry_ms, self.reply_bytes, self.sessions = expiry_ms, reply_bytes, sessions
        if self._changes is not None:
            self._changes[_BOUNDS_KEY] = _HEAD.pack(expiry_ms, reply_bytes, sessions)
        self._expire(now_ms)
        if client in self.clients:
            return
        while len(self.clients) >= sessions:
            self._remove(self._unused_longest())
        self.clients[client] = Session(now_ms)
        if self._changes is not None:
            self._used[client] = None
        heappush(self._by_use, (now_ms, client))

    def answer(self, client: bytes, sequence: int, lowest: int, now_ms: int) -> Result | None:
        """Return what a command is answered with that is not to be applied; None: apply it, and then call `keep`."""
        session = self.clients.get(client)
        if session is None or now_ms - session.last_use_ms > self.expiry_ms:
            if session is not None:
                self._remove(client)
            return SessionExpired("the group does not know this session, or not any more: begin another one")
        if not 0 < lowest <= sequence:
            return InvalidRequest(f"sequence {sequence} of a session whose lowest outstanding one is {lowest}")
        session.last_use_ms = now_ms
        if self._changes is not None:
            self._used[client] = None
        if lowest > session.lowest:
            self._forget_below(client, session, lowest)
        reply = session.replies.get(sequence, _NEW)
        if reply is not _NEW:
            return _told(sequence, reply)
        if sequence < session.lowest:
            return ReplyForgotten(
                f"sequence {sequence} was given up by its own client, who said that nothing below {session.lowest} is "
                "asked for any more; this copy is not applied, an earlier one may have been"
            )
        if sequence - session.lowest >= WINDOW:
            return Overloaded(f"sequence {session.lowest} is still outstanding; retry {sequence} when it is not")
        return None

    def coming(self, client: bytes, now_ms: int) -> Coming:
        """Return what tells which of this client's next commands are surely new."""
        session = self.clients.get(client)
        if session is not None and now_ms - session.last_use_ms > self.expiry_ms:
            session = None
        return Coming(session)

    def keep(self, client: bytes, sequence: int, result: Result) -> None:
        """The command was applied, with this result; a refusal (any error but CommandFailed) is not kept."""
        reply: Reply
        if type(result) is bytes or isinstance(result, CommandFailed):
            reply = result
        else:
            return
        session = self.clients[client]
        if sequence <= session.dropped and sequence != session.lowest:
            reply = None
        session.replies[sequence] = reply
        if sequence > session.newest:
            session.newest = sequence
        session.reply_bytes += len(reply) + REPLY_OVERHEAD_BYTES if type(reply) is bytes else _size_bytes(reply)
        if self._changes is not None:
            self._changes[_reply_key(client, sequence)] = _pack_reply(reply)
        if session.reply_bytes > self.reply_bytes:
            self._drop_replies(client, session)

    def _drop_replies(self, client: bytes, session: Session) -> None:
        at = max(session.dropped, session.lowest - 1)
        while session.reply_bytes > self.reply_bytes and at < session.newest:
            at += 1
            if at != session.lowest:
                self._drop(client, session, at)
        session.dropped = at
        if session.reply_bytes > self.reply_bytes:
            self._drop(client, session, session.lowest)

    def _drop(self, client: bytes, session: Session, sequence: int) -> None:
        reply = session.replies.get(sequence)
        if reply is not None:
            session.replies[sequence] = None
            session.reply_bytes -= _size_bytes(reply)
            if self._changes is not None:
                self._changes[_reply_key(client, sequence)] = _pack_reply(None)

    def _forget_below(self, client: bytes, session: Session, lowest: int) -> None:
        """Nothing below `lowest` is asked for any more. On the hot path."""
        begin, session.lowest = session.lowest, lowest
        replies, changes, freed_bytes = session.replies, self._changes, 0
        forgotten: Iterable[int] = range(begin, lowest)
        if lowest - begin > len(replies):
            forgotten = [sequence for sequence in replies if sequence < lowest]
        for sequence in forgotten:
            reply = replies.pop(sequence, _NEW)
            if reply is not _NEW:
                freed_bytes += len(reply) + REPLY_OVERHEAD_BYTES if type(reply) is bytes else _size_bytes(reply)
                if changes is not None:
                    changes[_reply_key(client, sequence)] = None
        session.reply_bytes -= freed_bytes

    def _expire(self, now_ms: int) -> None:
        """End all sessions that were unused for too long. One that is left for later is found when it is used."""
        while self.clients:
            client = self._unused_longest()
            if now_ms - self.clients[client].last_use_ms <= self.expiry_ms:
                return
            self._remove(client)

    def _unused_longest(self) -> bytes:
        """Return the client that was unused for longest; there must be one."""
        by_use = self._by_use
        while True:
            noted_ms, client = by_use[0]
            session = self.clients.get(client)
            if session is not None and session.last_use_ms == noted_ms:
                return client
            heappop(by_use)
            if session is not None:
                heappush(by_use, (session.last_use_ms, client))

    def _remove(self, client: bytes) -> None:
        session = self.clients.pop(client)
        self._used.pop(client, None)
        if self._changes is not None:
            self._changes[_HEAD_KEY + client] = None
            for sequence in session.replies:
                self._changes[_reply_key(client, sequence)] = None

    # ----------------------------------------------------------------------------------------------- in a snapshot

    def encode(self) -> Iterator[bytes]:
        """Yield the whole table, in pieces of about 64 KiB; nothing may change it meanwhile.

        A piece: its length (4 bytes) and a msgpack array. The first one holds the bounds; then come sessions, [client,
        last_use_ms, lowest, dropped], each followed by its replies, [sequence, reply]. A piece of length 0 is the end.
        """
        yield _frame([self.expiry_ms, self.reply_bytes, self.sessions])
        items: list[Any] = []
        size_bytes = 0
        for client, session in sorted(self.clients.items()):
            items.append([client, session.last_use_ms, session.lowest, session.dropped])
            size_bytes += 48
            for sequence, reply in sorted(session.replies.items()):
                items.append([sequence, _plain(reply)])
                size_bytes += _size_bytes(reply) + 16
                if size_bytes >= FRAME_BYTES:
                    yield _frame(items)
                    items, size_bytes = [], 0
            if size_bytes >= FRAME_BYTES:
                yield _frame(items)
                items, size_bytes = [], 0
        if items:
            yield _frame(items)
        yield _LENGTH.pack(0)

    # ------------------------------------------------------------------------------------------- beside data on disk

    def take_changes(self) -> list[tuple[bytes, bytes | None]]:
        """Return what has changed since the last time, as keys and values (None: deleted), for `load`."""
        if self._changes is None:
            return []
        for client in self._used:
            session = self.clients[client]
            self._changes[_HEAD_KEY + client] = _HEAD.pack(session.last_use_ms, session.lowest, session.dropped)
        changes = list(self._changes.items())
        self._changes.clear()
        self._used.clear()
        return changes

    def pairs(self) -> Iterator[tuple[bytes, bytes]]:
        """Yield the whole table as keys and values, ascending, for `load`."""
        if self.sessions:
            yield _BOUNDS_KEY, _HEAD.pack(self.expiry_ms, self.reply_bytes, self.sessions)
        ordered = sorted(self.clients.items())
        for client, session in ordered:
            yield _HEAD_KEY + client, _HEAD.pack(session.last_use_ms, session.lowest, session.dropped)
        for client, session in ordered:
            for sequence, reply in sorted(session.replies.items()):
                yield _reply_key(client, sequence), _pack_reply(reply)

    @classmethod
    def load(cls, pairs: Iterable[tuple[bytes, bytes]]) -> SessionTable:
        """Return the tracked table of which these are all keys and values, ascending. Raises CorruptRecord."""
        table = cls(tracked=True)
        try:
            for key, value in pairs:
                kind, rest = key[:1], key[1:]
                if kind == _BOUNDS_KEY and not rest:
                    table.expiry_ms, table.reply_bytes, table.sessions = _HEAD.unpack(value)
                elif kind == _HEAD_KEY:
                    table._add(rest, *_HEAD.unpack(value))
                elif kind == _REPLY_KEY:
                    table._add_reply(
                        rest[:CLIENT_BYTES], _NUMBER.unpack(rest[CLIENT_BYTES:])[0], msgpack.unpackb(value)
                    )
                else:
                    raise CorruptRecord(f"key {key!r:.60} of a session table is of an unknown kind")
        except (struct.error, ValueError, TypeError) as problem:
            raise CorruptRecord(f"a session table does not decode: {problem}") from problem
        table._ready()
        return table

    # --------------------------------------------------------------------------------------------- built from parts

    def _add(self, client: object, last_use_ms: object, lowest: object, dropped: object) -> None:
        for number in (last_use_ms, lowest, dropped):
            if type(number) is not int or number < 0:
                raise CorruptRecord(f"a session table holds {number!r:.40} for a number")
        if type(client) is not bytes or len(client) != CLIENT_BYTES or client in self.clients:
            raise CorruptRecord(f"a session table holds the client {client!r:.60}, or holds it twice")
        self.clients[client] = Session(last_use_ms, lowest, dropped)  # type: ignore[arg-type] # looked at above

    def _add_reply(self, client: bytes, sequence: object, plain: object) -> None:
        session = self.clients.get(client)
        if session is None or type(sequence) is not int or sequence in session.replies:
            raise CorruptRecord(f"a session table holds a reply to {sequence!r:.40} of a client that it does not hold")
        if not session.lowest <= sequence < session.lowest + WINDOW:
            raise CorruptRecord(f"a session table holds a reply to {sequence}; {session.lowest} is the lowest wanted")
        reply: Reply
        if isinstance(plain, list) and len(plain) == 2 and all(type(part) is bytes for part in plain):
            exception, detail = (part.decode("utf-8", "surrogatepass") for part in plain)
            reply = CommandFailed(exception, detail)
        elif plain is None or type(plain) is bytes:
            reply = plain
        else:
            raise CorruptRecord(f"a session table holds {plain!r:.60} for a reply")
        session.replies[sequence] = reply
        session.newest = max(session.newest, sequence)
        session.reply_bytes += _size_bytes(reply)

    def _ready(self) -> None:
        self._by_use = [(session.last_use_ms, client) for client, session in self.clients.items()]
        heapify(self._by_use)


class SessionLoader:
    """Takes what `SessionTable.encode` yielded, in whatever pieces it comes.

    table  what it has come to; whole when `feed` has returned bytes
    """

    def __init__(self, *, tracked: bool = False) -> None:
        self.table = SessionTable(tracked=tracked)
        self._rest = bytearray()
        self._client = b""
        self._begun = False

    def feed(self, data: bytes) -> bytes | None:
        """Take the next bytes. Return what follows the table once that is whole; None before. Raises CorruptRecord."""
        rest = self._rest
        rest += data
        at = 0
        while len(rest) - at >= _LENGTH.size:
            (size_bytes,) = _LENGTH.unpack_from(rest, at)
            end = at + _LENGTH.size + size_bytes
            if len(rest) < end:
                break
            if size_bytes == 0 and self._begun:
                self.table._ready()
                return bytes(rest[end:])
            self._take(bytes(rest[at + _LENGTH.size : end]))
            at = end
        del rest[:at]
        return None

    def _take(self, packed: bytes) -> None:
        try:
            items = msgpack.unpackb(packed)
            if not self._begun:
                self._begun = True
                expiry_ms, reply_bytes, sessions = items
                if any(type(bound) is not int or bound < 0 for bound in items):
                    raise CorruptRecord(f"a session table has the bounds {items!r:.60}")
                self.table.expiry_ms, self.table.reply_bytes, self.table.sessions = expiry_ms, reply_bytes, sessions
                return
            for item in items:
                if len(item) == 4:
                    self.table._add(*item)
                    self._client = item[0]
                else:
                    self.table._add_reply(self._client, *item)
        except (ValueError, TypeError) as problem:
            raise CorruptRecord(f"a session table does not decode: {problem}") from problem


def _told(sequence: int, reply: Reply) -> Result:
    """Return what a caller is told again; each gets an exception object of its own."""
    if reply is None:
        return ReplyForgotten(f"the command under sequence {sequence} was applied, once; its result is not kept")
    return CommandFailed(reply.exception, reply.detail) if isinstance(reply, CommandFailed) else reply


def _size_bytes(reply: Reply) -> int:
    if type(reply) is bytes:
        return len(reply) + REPLY_OVERHEAD_BYTES
    if isinstance(reply, CommandFailed):
        return len(reply.exception) + len(reply.detail) + REPLY_OVERHEAD_BYTES
    return 0


def _plain(reply: Reply) -> Any:
    if isinstance(reply, CommandFailed):
        return [part.encode("utf-8", "surrogatepass") for part in (reply.exception, reply.detail)]
    return reply


def _pack_reply(reply: Reply) -> bytes:
    packed: bytes = msgpack.packb(_plain(reply))
    return packed


def _reply_key(client: bytes, sequence: int) -> bytes:
    return _REPLY_KEY + client + _NUMBER.pack(sequence)


def _frame(items: list[Any]) -> bytes:
    packed: bytes = msgpack.packb(items)
    return _LENGTH.pack(len(packed)) + packed
