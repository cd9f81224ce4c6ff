"""What connects memory transports, and obeys its owner.

What the owner can do, per direction: cut (connections break, dialling fails), stall (frames wait, and come late when
it is healed: a partition as TCP shows it), delay, drop the next bulk sends, disturb (lose, repeat, reorder messages of
consensus), strand (the sender gives a connection up whose frames come after the next one's hello); by sides:
partition, bridge, ring; and per node: crash.

Rules of this file: no real time or thread; all chance is the network's `rng`; a node is visited in the order in
which it was named; order within a connection changes for disturbed messages only: beats, lead sets, calls and forming
rely on it, as on a TCP connection, and share the connection's fate as wholes.
"""

from __future__ import annotations

import random
from asyncio import AbstractEventLoop
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import combinations
from typing import TYPE_CHECKING, Literal, Protocol

from multiraft.errors import StartError
from multiraft.ports import FileSink
from multiraft.transport.file_wires import FileWire
from multiraft.transport.files import AskedFile
from multiraft.transport.wires import Wire
from multiraft.types import NodeId

if TYPE_CHECKING:
    from multiraft.transport.memory import MemoryTransport

Direction = tuple[NodeId, NodeId]
"""(from, to)"""


class Wires(Protocol):
    """How frames travel in time. The one that is built in uses the loop of the receiver alone."""

    def now(self, receiver: AbstractEventLoop) -> float: ...

    def arrive_at(self, receiver: AbstractEventLoop, when_s: float, deliver: Callable[[], None]) -> None:
        """Call `deliver` where the receiver runs, at `when_s` of `now`."""


class _LoopWires:
    def now(self, receiver: AbstractEventLoop) -> float:
        return receiver.time()

    def arrive_at(self, receiver: AbstractEventLoop, when_s: float, deliver: Callable[[], None]) -> None:
        receiver.call_at(when_s, deliver)


@dataclass(frozen=True, slots=True)
class Disturbance:
    """How likely each message of consensus is lost, delivered twice, or overtaken by later ones."""

    loss: float = 0.0
    duplicate: float = 0.0
    reorder: float = 0.0


class MemoryNetwork:
    """What connects the MemoryTransports that were made with it. All controls act at once; calls are idempotent.

    rng     where the chance of `disturb` comes from; seeded, so that a run replays
    wires   how frames travel in time
    faults  counts what is done, by kind; for `disturb`, each message that was hit

    keep_lossy  connections that lost messages go on after they are healed: what was lost stays owed
    """

    def __init__(
        self, *, rng: random.Random | None = None, wires: Wires | None = None, faults: Counter[str] | None = None
    ) -> None:
        self.rng = rng if rng is not None else random.Random(0)
        self.wires: Wires = wires if wires is not None else _LoopWires()
        self.faults: Counter[str] = faults if faults is not None else Counter()
        self.keep_lossy = False
        self._disturbed: dict[Direction, Disturbance] = {}
        self._lossy: set[Direction] = set()
        self._listeners: dict[str, MemoryTransport] = {}
        self._wires: dict[int, Wire] = {}
        self._files: dict[int, FileWire] = {}
        self._next_wire = 0
        self._cut: set[Direction] = set()
        self._stalled: set[Direction] = set()
        self._delay_s: dict[Direction, Callable[[], float]] = {}
        self._drop_bulk: Counter[Direction] = Counter()

    def cut(self, sender: NodeId, receiver: NodeId) -> None:
        """Break what `sender` sends to `receiver`: its connection ends, frames on the way are lost; so do files.

        Neither of the two can dial the other until `heal`; a connection the other way that exists goes on, but for
        those of files, on which both speak.
        """
        if (sender, receiver) not in self._cut:
            self.faults["cut"] += 1
        self._cut.add((sender, receiver))
        for wire in self._of(sender, receiver):
            wire.break_now()
        self._break_files(sender, receiver)

    def stall(self, sender: NodeId, receiver: NodeId) -> None:
        """Hold what `sender` sends to `receiver` until `heal`: nobody is told; all of it comes late."""
        if (sender, receiver) not in self._stalled:
            self.faults["stall"] += 1
        self._stalled.add((sender, receiver))

    def disturb(
        self, sender: NodeId, receiver: NodeId, *, loss: float = 0.0, duplicate: float = 0.0, reorder: float = 0.0
    ) -> None:
        """From now on lose, repeat and reorder messages of consensus from `sender` to `receiver`, each by chance.

        A connection that has lost messages breaks when the direction is healed, as TCP ends one that it cannot carry
        on, so that nothing is owed over it; `keep_lossy` lets it live.
        A repeated message may come again much later, over a newer connection of the same two runs, too. What belongs
        to an earlier run of either node never comes.
        """
        self._disturbed[sender, receiver] = Disturbance(loss, duplicate, reorder)

    def strand(self, sender: NodeId, receiver: NodeId, late_s: float) -> None:
        """Let `sender` lose its connection to `receiver`, which does not hear of it and gets the rest `late_s` late.

        By then it has usually greeted the sender's next connection, and must refuse what the old one still brings.
        """
        for wire in self._of(sender, receiver):
            self.faults["strand"] += 1
            wire.strand(late_s)
        self._break_files(sender, receiver)

    def partition(self, *sides: Sequence[NodeId], by: Literal["cut", "stall"] = "cut") -> None:
        """Let nobody of one side reach anybody of another; nodes that are on no side reach all."""
        self.faults["partition"] += 1
        for one, other in combinations(sides, 2):
            self.part(one, other, by=by)

    def bridge(
        self,
        left: Sequence[NodeId],
        right: Sequence[NodeId],
        bridge_node: NodeId,
        *,
        by: Literal["cut", "stall"] = "cut",
    ) -> None:
        """Part two halves, except that `bridge_node`, of either half or none, reaches all, and all reach it."""
        self.faults["bridge"] += 1
        self.part(
            [name for name in left if name != bridge_node], [name for name in right if name != bridge_node], by=by
        )

    def ring(self, order: Sequence[NodeId], *, by: Literal["cut", "stall"] = "cut") -> None:
        """Let each node reach only those beside it in `order`, of which the last stands beside the first."""
        self.faults["ring"] += 1
        count = len(order)
        for one, other in combinations(range(count), 2):
            if other - one not in (1, count - 1):
                self.part([order[one]], [order[other]], by=by)

    def part(self, left: Sequence[NodeId], right: Sequence[NodeId], *, by: Literal["cut", "stall"] = "cut") -> None:
        """Let nobody on the left reach anybody on the right, nor the other way."""
        break_one = self.cut if by == "cut" else self.stall
        for one in left:
            for other in right:
                break_one(one, other)
                break_one(other, one)

    def heal(self, sender: NodeId | None = None, receiver: NodeId | None = None) -> None:
        """End all but delays of this direction: cuts, stalls, disturbances, drops to come; or of all."""
        for direction in list(self._drop_bulk):
            if sender in (None, direction[0]) and receiver in (None, direction[1]):
                del self._drop_bulk[direction]
        for direction in list(self._disturbed):
            if sender in (None, direction[0]) and receiver in (None, direction[1]):
                del self._disturbed[direction]
                if direction in self._lossy and not self.keep_lossy:
                    self._lossy.discard(direction)
                    for wire in self._of(*direction):
                        wire.break_now()
        for broken in (self._cut, self._stalled):
            for direction in sorted(broken):
                if sender in (None, direction[0]) and receiver in (None, direction[1]):
                    broken.discard(direction)
        for wire in list(self._wires.values()):
            wire.resume()
        for file_wire in list(self._files.values()):
            file_wire.resume()

    def delay(self, sender: NodeId, receiver: NodeId, delay_s: float | Callable[[], float]) -> None:
        """Deliver what `sender` sends to `receiver` after this many seconds, or what the callable says per frame."""
        self.faults["delay"] += 1
        self.set_delay(sender, receiver, delay_s)

    def set_delay(self, sender: NodeId, receiver: NodeId, delay_s: float | Callable[[], float]) -> None:
        """As `delay`, not counted as a fault: how long the way is."""
        self._delay_s[sender, receiver] = delay_s if callable(delay_s) else partial(float, delay_s)

    def drop_next_bulk(self, sender: NodeId, receiver: NodeId, count: int = 1) -> None:
        """Let the next `count` bulk sends from `sender` to `receiver` fail, as if the outbox were full."""
        self._drop_bulk[sender, receiver] += count

    def crash(self, node_id: NodeId, *, deliver: bool = False) -> None:
        """End a node's transport as kill -9 would: its handler hears nothing more, its peers see it go.

        deliver  what it had sent still arrives, as when its machine lives on; else it is lost with the machine
        """
        for transport in list(self._listeners.values()):
            if transport.node_id == node_id:
                transport.stop_now(deliver)

    # ------------------------------------------------------------------------------------------ for transports

    def is_cut(self, sender: NodeId, receiver: NodeId) -> bool:
        return (sender, receiver) in self._cut

    def is_stalled(self, sender: NodeId, receiver: NodeId) -> bool:
        return (sender, receiver) in self._stalled

    def delay_s(self, sender: NodeId, receiver: NodeId) -> float:
        chosen = self._delay_s.get((sender, receiver))
        return chosen() if chosen is not None else 0.0

    def take_bulk_drop(self, sender: NodeId, receiver: NodeId) -> bool:
        """Whether this bulk send is one to be dropped; counts it."""
        if not self._drop_bulk[sender, receiver]:
            return False
        self._drop_bulk[sender, receiver] -= 1
        self.faults["drop_bulk"] += 1
        return True

    def note_loss(self, sender: NodeId, receiver: NodeId) -> None:
        self.faults["loss"] += 1
        self._lossy.add((sender, receiver))

    def disturbance(self, sender: NodeId, receiver: NodeId) -> Disturbance | None:
        return self._disturbed.get((sender, receiver))

    def listen(self, address: str, transport: MemoryTransport) -> None:
        if address in self._listeners:
            raise StartError(f"node {transport.node_id!r} cannot listen on {address}: in use; change `listen`")
        self._listeners[address] = transport

    def unlisten(self, address: str, transport: MemoryTransport) -> None:
        if self._listeners.get(address) is transport:
            del self._listeners[address]

    def connect(self, dialler: MemoryTransport, address: str) -> Wire | None:
        """Return a new wire to whoever listens on `address`; None when it cannot be reached."""
        target = self._reached(dialler, address)
        if target is None:
            return None
        self._next_wire += 1
        wire = Wire(self, self._next_wire, dialler, target)
        self._wires[self._next_wire] = wire
        return wire

    def connect_file(
        self,
        asker: MemoryTransport,
        address: str,
        asked: AskedFile,
        sink: FileSink,
        done: Callable[[Exception | None], None],
    ) -> FileWire | None:
        """Return a new wire for a file from whoever listens on `address`; None when it cannot be reached."""
        owner = self._reached(asker, address)
        if owner is None:
            return None
        self._next_wire += 1
        wire = FileWire(self, self._next_wire, asker, owner, asked, sink, done)
        self._files[self._next_wire] = wire
        return wire

    def forget_file(self, wire_id: int) -> None:
        self._files.pop(wire_id, None)

    def files_of(self, transport: MemoryTransport) -> list[FileWire]:
        return [wire for wire in self._files.values() if transport in (wire.asker, wire.owner)]

    def files_on_the_way(self) -> int:
        """Return how many files are being sent."""
        return len(self._files)

    def _reached(self, dialler: MemoryTransport, address: str) -> MemoryTransport | None:
        target = self._listeners.get(address)
        if target is None or self.is_cut(dialler.node_id, target.node_id):
            return None
        return None if self.is_cut(target.node_id, dialler.node_id) else target

    def _break_files(self, one: NodeId, other: NodeId) -> None:
        for wire in list(self._files.values()):
            if {wire.asker.node_id, wire.owner.node_id} == {one, other}:
                wire.break_now()

    def forget(self, wire_id: int) -> None:
        self._wires.pop(wire_id, None)

    def wires_of(self, transport: MemoryTransport) -> list[Wire]:
        return [wire for wire in self._wires.values() if transport in (wire.dialler, wire.target)]

    def _of(self, dialler: NodeId, target: NodeId) -> list[Wire]:
        ends = (dialler, target)
        return [wire for wire in self._wires.values() if (wire.dialler.node_id, wire.target.node_id) == ends]
