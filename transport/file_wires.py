"""The memory network's connections for files: one transfer each.

The owner reads ahead of the asker as TCP does: up to WINDOW_BYTES may be on the way or wait at the asker. Rules of this
file: pieces and what is said back are subject to the cuts, stalls and delays of their direction, as frames are; a
transfer that breaks loses what is on its way, and both ends are told.
"""

from __future__ import annotations

from asyncio import TimerHandle
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Final

from multiraft.errors import MultiRaftError
from multiraft.ports import FILE_PIECE_BYTES, FileSink
from multiraft.transport.files import ASKER_PATIENCE, OWNER_PATIENCE, AskedFile, FileRefused, SentFile
from multiraft.transport.wires import Pipe

if TYPE_CHECKING:
    from multiraft.transport.memory import MemoryTransport
    from multiraft.transport.network import MemoryNetwork

WINDOW_BYTES: Final = 4 * FILE_PIECE_BYTES


class FileWire:
    """One file on its way from `owner` to `asker`, which has dialled."""

    def __init__(
        self,
        network: MemoryNetwork,
        wire_id: int,
        asker: MemoryTransport,
        owner: MemoryTransport,
        asked: AskedFile,
        sink: FileSink,
        done: Callable[[Exception | None], None],
    ) -> None:
        self.asker = asker
        self.owner = owner
        self._network = network
        self._wire_id = wire_id
        self._there = Pipe(network, owner.loop, (asker.node_id, owner.node_id))
        self._back = Pipe(network, asker.loop, (owner.node_id, asker.node_id))
        self._asked = asked
        self._sink = sink
        self._done: Callable[[Exception | None], None] | None = done
        self._over = False
        # The asker's side: what has come and was not taken yet, and whether somebody waits for it.
        self._come: deque[bytes] = deque()
        self._received = asked.offset
        self._wanting = True
        self._silence: TimerHandle | None = None
        # The owner's side: what it sends, from where on, and how much of that the asker has not taken yet.
        self._sent: SentFile | None = None
        self._next = 0
        self._untaken_bytes = 0
        self._reading = False
        self._held_up: TimerHandle | None = None

    # ----------------------------------------------------------------------------------------------------- the asker

    def begin(self) -> None:
        """Carry the question."""
        self._expect()
        self._there.put(self._ask_arrives)

    def _expect(self) -> None:
        """Something is wanted of the owner: it must come in time."""
        self._rest()
        self._silence = self.asker.loop.call_later(ASKER_PATIENCE * self.asker.handshake_s, self._too_silent)

    def _rest(self) -> None:
        if self._silence is not None:
            self._silence.cancel()
            self._silence = None

    def _too_silent(self) -> None:
        self._end(self.asker.file_lost(self._asked, "its owner fell silent"))

    def _refusal_arrives(self, kind: str, text: str) -> None:
        self._end(self.asker.file_refused(self._asked, kind, text))

    def _answer_arrives(self, frame: bytes, size_bytes: int) -> None:
        try:
            self.asker.judge_owner(self._asked, frame, size_bytes)
        except MultiRaftError as problem:
            self._end(problem)

    def _piece_arrives(self, piece: bytes) -> None:
        self._come.append(piece)
        self._deliver()

    def _deliver(self) -> None:
        """Hand over the next piece, if it is wanted; the end of the file, if all was."""
        if self._over or not self._wanting:
            return
        if self._received == self._asked.size_bytes:
            self._end(None)
        elif self._come:
            self._wanting = False
            self._rest()
            piece = self._come.popleft()
            self._received += len(piece)
            self.asker.piece_received(len(piece))
            self._sink(piece, partial(self._more, self._received))
        elif self._silence is None:
            self._expect()

    def _more(self, position: int) -> None:
        """The sink has taken all up to `position`."""
        if self._over or self._wanting or position != self._received:
            return
        self._wanting = True
        self._there.put(partial(self._taken_arrives, position))
        self.asker.loop.call_soon(self._deliver)

    def cancel(self) -> None:
        """The asker wants no more of it, and hears no more."""
        self._done = None
        self._end(None)

    # ----------------------------------------------------------------------------------------------------- the owner

    def _ask_arrives(self) -> None:
        asked = self._asked
        try:
            self._sent = sent = self.owner.open_file(asked.frame, asked.name, asked.offset)
        except FileRefused as refused:
            self._back.put(partial(self._refusal_arrives, refused.kind, refused.text))
            return
        self._next = asked.offset
        self._back.put(partial(self._answer_arrives, sent.frame, sent.source.size_bytes))
        self._read_on()
        if asked.offset == sent.source.size_bytes:
            self._back.put(self._deliver)

    def _read_on(self) -> None:
        sent = self._sent
        if self._over or self._reading or sent is None or self._untaken_bytes >= WINDOW_BYTES:
            return
        size_bytes = min(FILE_PIECE_BYTES, sent.source.size_bytes - self._next)
        if size_bytes > 0:
            self._reading = True
            sent.source.read(self._next, size_bytes, self._was_read)

    def _was_read(self, found: bytes | Exception) -> None:
        sent = self._sent
        self._reading = False
        if self._over or sent is None:
            return
        if isinstance(found, Exception) or not self.owner.may_go_on(sent):
            self.owner.stopped_sending(sent, str(found) if isinstance(found, Exception) else "its asker was replaced")
            self.break_now()
            return
        self._next += len(found)
        self._untaken_bytes += len(found)
        self.owner.piece_sent(len(found))
        self._back.put(partial(self._piece_arrives, found))
        if self._held_up is None:
            self._await_taking()
        self.owner.loop.call_soon(self._read_on)

    def _await_taking(self) -> None:
        if self._held_up is not None:
            self._held_up.cancel()
        self._held_up = self.owner.loop.call_later(OWNER_PATIENCE * self.owner.handshake_s, self._too_slow)

    def _taken_arrives(self, position: int) -> None:
        self._untaken_bytes = self._next - position
        if position < self._asked.size_bytes:
            self._await_taking()
        self._read_on()

    def _too_slow(self) -> None:
        if self._sent is not None and not self._over:
            self.owner.stopped_sending(self._sent, "it is given up, nothing of it is taken")
        self.break_now()

    # ----------------------------------------------------------------------------------------------------------- end

    def resume(self) -> None:
        """A stall may have ended."""
        self._there.release_soon()
        self._back.release_soon()

    def break_now(self) -> None:
        """End the connection: what is on its way is lost, both ends are told."""
        if not self._over:
            self._end(self.asker.file_lost(self._asked, "the connection was lost"))

    def _end(self, error: Exception | None) -> None:
        if self._over:
            return
        self._over = True
        self._there.closed = self._back.closed = True
        self._rest()
        self._come.clear()
        if self._held_up is not None:
            self._held_up.cancel()
        self._network.forget_file(self._wire_id)
        if self._sent is not None and not self.owner.stopped:
            self.owner.loop.call_soon(self._sent.source.close)
        if self._done is not None and not self.asker.stopped:
            self.asker.loop.call_soon(self._tell, error)

    def _tell(self, error: Exception | None) -> None:
        if self._done is not None and not self.asker.stopped:
            self._done(error)
