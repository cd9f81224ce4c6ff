"""State machines that keep every command in order, so that what a replica holds can be compared with what was told.

Commands hold no spaces. The answer to a command is its number, from 1; a query returns all commands, joined by spaces.
"""

from __future__ import annotations

from multiraft import BytesDiskStateMachine, BytesStateMachine


class Kept(BytesStateMachine):
    """Keeps them in memory."""

    def __init__(self) -> None:
        self.kept: list[bytes] = []

    def apply(self, command: bytes) -> bytes:
        self.kept.append(command)
        return b"%d" % len(self.kept)

    def query(self, query: bytes) -> bytes:
        return b" ".join(self.kept)

    def snapshot(self) -> bytes:
        return b" ".join(self.kept)

    def restore(self, state: bytes) -> None:
        self.kept = state.split()


class KeptOnDisk(BytesDiskStateMachine):
    """Keeps them on disk, a value each."""

    @property
    def kept(self) -> list[bytes]:
        return [command for _, command in self.data.range(b"command ", b"command!")]

    def apply(self, command: bytes) -> bytes:
        number = int(self.data.get(b"count") or b"0") + 1
        self.data.put(b"count", b"%d" % number)
        self.data.put(b"command %08d" % number, command)
        return b"%d" % number

    def query(self, query: bytes) -> bytes:
        return b" ".join(self.kept)
