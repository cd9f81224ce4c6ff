"""Files of snapshots that this node sends to others.

    asked ──> sending, at most `snapshot_transfers` at once, together at most `snapshot_bytes_per_s`
          ──> over ──> kept for a while, since whoever was cut off goes on from where it was

Rules of this file: a peer gets one file once at a time: asking again ends what it had asked for before; a file that is
sent, or was just now, is `pinned`, and nobody deletes it; past the bound a peer is asked to come again.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from multiraft.engine.pace import Pace
from multiraft.errors import CorruptRecord, Overloaded
from multiraft.ports import SnapshotFiles
from multiraft.types import NodeId

if TYPE_CHECKING:
    from multiraft.engine.engine import Engine

_KEPT_TIMEOUTS: Final = 10
"""A file whose transfer has ended stays for so many election timeouts more, unless the group's next one takes over."""


class Serving:
    """The files on their way from one engine's node."""

    def __init__(self, engine: Engine, files: SnapshotFiles) -> None:
        self._engine = engine
        self.files = files
        self._most = engine.limits.snapshot_transfers
        self._kept_s = _KEPT_TIMEOUTS * engine.limits.election_timeout_ms / 1e3
        self.pace = Pace(engine.limits.snapshot_bytes_per_s, engine.writer.strain)
        self._sending: dict[tuple[NodeId, str], SendingFile] = {}
        # Until when files stay whose transfers have ended; at most twice as many as are sent at once.
        self._kept: dict[str, float] = {}
        self.released: Callable[[], None] = lambda: None
        """Called when a file may be deleted that was pinned."""

    def asked(self, node_id: NodeId, name: str) -> SendingFile:
        """Return the file of that name for a peer. Raises NoSuchFile, Overloaded."""
        if not self._engine.running:
            raise Overloaded("this node is starting or stopping; ask again")
        size_bytes = self.files.size(name)
        before = self._sending.get((node_id, name))
        if before is not None:
            before.close()
        if len(self._sending) >= self._most:
            raise Overloaded(f"{len(self._sending)} files are being sent (snapshot_transfers); ask again later")
        sending = self._sending[node_id, name] = SendingFile(self, node_id, name, size_bytes, self._engine)
        return sending

    def over(self, sending: SendingFile) -> None:
        """A transfer has ended."""
        del self._sending[sending.node_id, sending.name]
        self._kept.pop(sending.name, None)
        while len(self._kept) >= 2 * self._most:
            del self._kept[next(iter(self._kept))]
        self._kept[sending.name] = self._engine.pacing.now() + self._kept_s

    def pinned(self, name: str) -> bool:
        """Whether a file is being sent, or may soon be asked for again by whoever was cut off."""
        return name in self._kept or any(sending.name == name for sending in self._sending.values())

    def tick(self, now: float) -> None:
        """Once a beat: let go what was kept long enough."""
        kept = self._kept
        due = [name for name, until_s in kept.items() if until_s <= now]
        for name in due:
            del kept[name]
        if due:
            self.released()

    def status(self) -> list[dict[str, Any]]:
        """Describe what is being sent: group, to, name, bytes, of."""
        return [
            {
                "group_id": int(sending.name.split("-")[0], 16),
                "to": sending.node_id,
                "name": sending.name,
                "bytes": sending.position,
                "of": sending.size_bytes,
            }
            for sending in self._sending.values()
        ]


class SendingFile:
    """One file on its way to one peer. Implements ports.FileSource.

    position  all before it was read
    """

    def __init__(self, serving: Serving, node_id: NodeId, name: str, size_bytes: int, engine: Engine) -> None:
        self.node_id = node_id
        self.name = name
        self.position = 0
        self._serving = serving
        self._size_bytes = size_bytes
        self._loop = engine.loop
        self._over = False

    @property
    def size_bytes(self) -> int:
        return self._size_bytes

    def read(self, offset: int, size_bytes: int, done: Callable[[bytes | Exception], None]) -> None:
        """Read a piece; it is handed out when the pace allows another one."""
        if self._over:
            self._loop.call_soon(done, Overloaded(f"file {self.name} was asked for anew"))
            return

        def was_read(found: bytes | Exception) -> None:
            if isinstance(found, Exception):
                done(found)
                return
            if not found and size_bytes > 0:
                done(CorruptRecord(f"snapshot file {self.name} ends at {offset}, not at {self._size_bytes}"))
                return
            self.position = max(self.position, offset + len(found))
            wait_s = self._serving.pace.take(len(found))
            if wait_s > 0:
                self._loop.call_later(wait_s, done, found)
            else:
                done(found)

        self._serving.files.read(self.name, offset, size_bytes, was_read)

    def close(self) -> None:
        """The transfer is over. Idempotent, since asking anew ends it, too."""
        if not self._over:
            self._over = True
            self._serving.over(self)
