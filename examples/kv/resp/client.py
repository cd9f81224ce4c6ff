"""What the server knows of one client.

Rules of this file: plain data; no I/O.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from examples.kv.resp.replies import RESP2, Replies
from multiraft.shard.shard_map import Shard

if TYPE_CHECKING:
    from examples.kv.resp.command import Command, Plan
    from examples.kv.resp.scanning import Cursors


class Place(Protocol):
    """What commands may ask of the server that their client is connected to."""

    password: str | None
    cursors: Cursors
    table: dict[str, Command]

    def shard_of(self, key: bytes) -> Shard:
        """Return the shard of `key`. Raises Refused while the store is not there."""

    def shards(self) -> tuple[Shard, ...]:
        """Return all shards. Raises Refused while the store is not there."""

    def clients(self) -> list[Client]:
        """Return who is connected, in the order of coming."""

    def facts(self) -> dict[str, dict[str, object]]:
        """Return what INFO tells, by section."""


@dataclass(slots=True)
class Queued:
    """A command that waits for EXEC: its calls, or, where it needs none, what gives its answer then."""

    plan: Plan | None
    answer: Callable[[], Any] | None = None


@dataclass(slots=True)
class Transaction:
    """What came after MULTI.

    shard   the one that all of it concerns; None so far
    route   a key of it
    broken  a command was refused, so that EXEC will be
    """

    queued: list[Queued] = field(default_factory=list)
    shard: Shard | None = None
    route: bytes | None = None
    broken: bool = False


@dataclass(slots=True)
class Client:
    """One client.

    known        it has said the password, or none is needed
    replies      how it wants its answers
    transaction  since MULTI
    watched      by key, the mark that `watch` was told: [index, part, key, whether it was there]
    leaves       the connection ends after the next answer
    """

    place: Place
    number: int
    address: str = ""
    own_address: str = ""
    known: bool = True
    replies: Replies = RESP2
    name: str = ""
    library: str = ""
    library_version: str = ""
    since_s: float = 0.0
    last: str = "NULL"
    transaction: Transaction | None = None
    watched: dict[bytes, list[Any]] = field(default_factory=dict)
    leaves: bool = False
