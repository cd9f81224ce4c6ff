"""What the soak programs replicate: counters, and blobs of any size, on disk or in memory."""

from __future__ import annotations

from typing import Final

from examples.kv.memory import PlainKeyspace
from multiraft.diskmachine import DiskStateMachine
from multiraft.keyspace import Keyspace
from multiraft.statemachine import StateMachine, command, query

SERVICE: Final = "soak"
_COUNTER: Final = b"c"
_BLOB: Final = b"b"
_BYTES: Final = 8


class Soak(StateMachine):
    """One shard."""

    @property
    def data(self) -> Keyspace:
        raise NotImplementedError("use one of its kinds")

    @command(key="name")
    def add(self, name: str) -> int:
        """Add 1 to a counter, and return what it comes to."""
        key = _COUNTER + name.encode()
        value = int.from_bytes(self.data.get(key) or b"", "big") + 1
        self.data.put(key, value.to_bytes(_BYTES, "big"))
        return value

    @command(key="name")
    def put(self, name: str, blob: bytes) -> None:
        """Keep a blob."""
        self.data.put(_BLOB + name.encode(), blob)

    @query(key="name")
    def get(self, name: str) -> bytes | None:
        """Return a blob; None: there is none."""
        return self.data.get(_BLOB + name.encode())

    def blobs(self) -> int:
        """Return how many blobs this replica has."""
        return sum(1 for _ in self.data.keys(_BLOB, bytes([_BLOB[0] + 1])))

    def counters(self) -> dict[str, int]:
        """Return every counter of this replica."""
        found = self.data.range(_COUNTER, bytes([_COUNTER[0] + 1]))
        return {key[1:].decode(): int.from_bytes(value, "big") for key, value in found}


class MemorySoak(Soak):
    """A shard in memory: the keyspace of the key-value example, over a dict that snapshots carry."""

    __slots__ = ("_keyspace",)

    def __init__(self) -> None:
        self.values: dict[bytes, bytes] = {}
        self._keyspace = PlainKeyspace(self)

    @property
    def data(self) -> Keyspace:
        return self._keyspace


class DiskSoak(DiskStateMachine, Soak):
    """A shard on disk."""

    __slots__ = ()


KINDS: Final[dict[str, type[Soak]]] = {"memory": MemorySoak, "disk": DiskSoak}
