"""Files that travel from one node to another, beside the messages: what every transport does alike.

    asker                                      owner
    own hello, name, offset ────────────────> judged as on a connection; must be connected as that run
    judged likewise <──────────────────────── own hello, size of the file; or why it is refused
    sink(piece, more) ... done <───────────── the bytes from the offset on, as fast as the asker takes them

A transfer has a connection of its own, so that it neither waits behind messages nor holds them up. It is lost with that
connection alone; the asker goes on from what has come.

Bounds: the owner's node says how many it serves at once (TransportHandler.file_asked); an owner or asker that hears
nothing for too long while it waits for the other ends the transfer; the asker takes no byte over the size it expects.

Rules of this file: no I/O; nothing of a hello is noted here, since the connections of the same run have done that; an
asker of another run than the one that is connected gets nothing.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Final, NamedTuple

from multiraft.errors import InvalidRequest, MultiRaftError, NoSuchFile, Overloaded, Unreachable
from multiraft.ports import Cancel, FileSource
from multiraft.transport.frames import hello_frame
from multiraft.transport.hello import Hello, Refusal, encode_hello
from multiraft.transport.peers import PeerTransport, same_run
from multiraft.types import NodeId

GONE: Final = "gone"
BUSY: Final = "busy"
RANGE: Final = "range"
STRANGER: Final = "stranger"
"""Why a file is refused: it is not here; too many are being sent; it ends before the offset; who asks is not known."""

OWNER_PATIENCE: Final = 12
"""An asker that takes nothing for so many handshake timeouts is given up; it may be slow on purpose."""
ASKER_PATIENCE: Final = 2
"""An owner that sends nothing for so many handshake timeouts, though it was asked for more, is given up."""

_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


class FileRefused(Exception):
    """The owner does not send a file: one of the kinds above, and a sentence."""

    def __init__(self, kind: str, text: str) -> None:
        super().__init__(text)
        self.kind = kind
        self.text = text


class AskedFile(NamedTuple):
    """What an asker wants, and of whom.

    frame  the hello that it says
    sent   the same, before it became bytes
    """

    node_id: NodeId
    name: str
    offset: int
    size_bytes: int
    sent: Hello
    frame: bytes


class SentFile(NamedTuple):
    """What an owner sends, and to whom. frame: the hello that it answers with."""

    asker: Hello
    name: str
    offset: int
    source: FileSource
    frame: bytes


class FileTransport(PeerTransport):
    """The layer that judges who gets which file. A backend moves the bytes."""

    # --------------------------------------------------------------------------------------------------- the asker

    def ask_for_file(self, node_id: NodeId, name: str, offset: int, size_bytes: int) -> AskedFile:
        """Return what is to be said to the owner. Raises Unreachable when it is not connected."""
        outbound = self._out.get(node_id)
        if outbound is None or outbound.forming or self._closing:
            raise Unreachable(f"node {node_id!r} is not connected; file {name} cannot be had from it now")
        sent = self._own_hello()
        self._counts["files_asked"] += 1
        return AskedFile(node_id, name, offset, size_bytes, sent, hello_frame(encode_hello(sent)))

    def judge_owner(self, asked: AskedFile, frame: bytes, size_bytes: int) -> None:
        """Judge the answer to `asked`. Raises Unreachable (not the peer that was meant), InvalidRequest (the size)."""
        try:
            hello = self._checked(asked.sent, frame, asked.node_id)
        except Refusal as refusal:
            raise Unreachable(f"file {asked.name} is offered by who must not be talked to: {refusal.text}") from refusal
        outbound = self._out.get(asked.node_id)
        if outbound is None or not same_run(outbound.hello, hello):
            raise Unreachable(f"file {asked.name} is offered by another run of node {asked.node_id!r}; ask again")
        if size_bytes != asked.size_bytes:
            self._counts["refused_file_size"] += 1
            text = f"file {asked.name} of node {asked.node_id!r} has {size_bytes} bytes, not {asked.size_bytes}"
            raise InvalidRequest(f"{text}; it is not the one that was told of")

    def file_refused(self, asked: AskedFile, kind: str, text: str) -> MultiRaftError:
        """Return what the asker is told of a refusal."""
        self._counts["files_refused_by_peer"] += 1
        error = {GONE: NoSuchFile, BUSY: Overloaded, RANGE: InvalidRequest}.get(kind, Unreachable)
        return error(f"node {asked.node_id!r} does not send file {asked.name}: {text}")

    def file_lost(self, asked: AskedFile, why: str) -> Unreachable:
        """Return what the asker is told when a transfer has broken off."""
        self._counts["dropped_file_transfer"] += 1
        return Unreachable(
            f"file {asked.name} broke off on its way from node {asked.node_id!r}: {why}; go on from there"
        )

    def tell_soon(self, done: Callable[[Exception | None], None], error: MultiRaftError) -> Cancel:
        """Have `done(error)` called from the loop, unless this transport is closed."""
        return self._loop.call_soon(done, error).cancel if not self._closing else lambda: None

    def piece_received(self, size_bytes: int) -> None:
        self._counts["file_bytes_received"] += size_bytes

    # --------------------------------------------------------------------------------------------------- the owner

    def open_file(self, frame: bytes, name: str, offset: int) -> SentFile:
        """Judge who asks, and return what it gets. Raises FileRefused, counted."""
        try:
            return self._judge_asker(frame, name, offset)
        except FileRefused as refused:
            self._counts[f"refused_file_{refused.kind}"] += 1
            raise

    def _judge_asker(self, frame: bytes, name: str, offset: int) -> SentFile:
        own = self._own_hello()
        try:
            asker = self._checked(own, frame, None)
        except Refusal as refusal:
            raise FileRefused(STRANGER, f"{refusal.kind}: {refusal.text}") from refusal
        inbound = self._in.get(asker.node_id)
        known = inbound is not None and not inbound.forming and same_run(inbound.hello, asker) and asker.formed
        if not known or self._closing:
            raise FileRefused(STRANGER, f"node {asker.node_id!r} is not connected as that run; connect, then ask again")
        if not _NAME.fullmatch(name):
            raise FileRefused(GONE, "that is no file's name")
        try:
            source = self._handler.file_asked(asker.node_id, name, offset)
        except NoSuchFile as problem:
            raise FileRefused(GONE, str(problem)) from problem
        except Overloaded as problem:
            raise FileRefused(BUSY, str(problem)) from problem
        if not 0 <= offset <= source.size_bytes:
            source.close()
            raise FileRefused(RANGE, f"it has {source.size_bytes} bytes, and {offset} is not within")
        self._counts["files_served"] += 1
        return SentFile(asker, name, offset, source, hello_frame(encode_hello(own)))

    def may_go_on(self, sent: SentFile) -> bool:
        """Whether the asker is still who it said: not replaced meanwhile, and not started anew."""
        inbound = self._in.get(sent.asker.node_id)
        if self._closing or (inbound is not None and not same_run(inbound.hello, sent.asker)):
            return False
        return not self._known.replaced(sent.asker)

    def piece_sent(self, size_bytes: int) -> None:
        self._counts["file_bytes_sent"] += size_bytes

    def stopped_sending(self, sent: SentFile, why: str) -> None:
        """A transfer was given up by this side."""
        self._counts["dropped_file_sending"] += 1
        self._complain("file", sent.asker.node_id, "file %s for node %r: %s", sent.name, sent.asker.node_id, why)
