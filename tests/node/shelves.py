"""A machine on disk for tests of whole nodes, and what they ask of its replicas.

Rules of this file: the machine keeps its state in its data; what it was given to apply in this run it counts in an
attribute, which is no state.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from multiraft import BytesDiskStateMachine, Limits
from tests.node.conftest import Ledgers

if TYPE_CHECKING:
    from multiraft.engine.replica import Replica

GROUP: Final = Ledgers.GROUP
SHORT: Final = Limits(request_timeout_ms=3_000, snapshot_entries=20, trailing_entries=5)


class Shelf(BytesDiskStateMachine):
    """Appends each command under the next number. `!Name` raises that exception, having written; a query lists all."""

    def __init__(self) -> None:
        self.given: list[bytes] = []

    def apply(self, command: bytes) -> bytes:
        self.given.append(command)
        data = self.data
        number = int(data.get(b"count") or b"0") + 1
        data.put(b"count", b"%d" % number)
        data.put(b"entry %06d" % number, command)
        data.put(b"when", b"%d" % self.context.time_ms)
        if command == b"!ValueError":
            raise ValueError("not this one")
        if command == b"!OSError":
            raise OSError("the environment failed")
        return b"%d" % number

    def query(self, query: bytes) -> bytes:
        if query:
            return self.data.get(query) or b"none"
        return b" ".join(value for _, value in self.data.range(b"entry ", b"entry!"))


def replica_of(ledgers: Ledgers, name: str) -> Replica:
    replica: Replica = ledgers.cluster.nodes[name]._here().engine.replicas[GROUP]
    return replica


def shelf(ledgers: Ledgers, name: str) -> Shelf:
    machine = ledgers.cluster.nodes[name].local_machine(GROUP)
    assert isinstance(machine, Shelf)
    return machine


def stored(ledgers: Ledgers, name: str) -> list[bytes]:
    """What the replica on a node has in its data."""
    return shelf(ledgers, name).query(b"").split()


def store_of(ledgers: Ledgers, name: str) -> Any:
    return ledgers.cluster.nodes[name]._here().store


async def propose(ledgers: Ledgers, first: int, last: int) -> list[bytes]:
    """Have the commands from `first` to `last` applied, through any node; each surely once."""
    commands = [b"%d" % number for number in range(first, last + 1)]
    for command in commands:
        name = await ledgers.leader()
        await ledgers.services[name].propose(b"k", command)
    return commands


async def settled(ledgers: Ledgers, commands: list[bytes]) -> None:
    """Wait until every node has exactly these, in this order."""
    cluster = ledgers.cluster
    await cluster.until(lambda: all(stored(ledgers, name) == commands for name in cluster.nodes))


def disk(scenario: Any, play: Callable[..., None], **options: Any) -> None:
    play(scenario, machine=Shelf, **options)
