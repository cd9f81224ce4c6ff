"""The memory twin: several transports in one process, on one loop, over a network that obeys its owner.

Everything but the wire is the production code: greeting, lanes, frames (really encoded and decoded), calls, bounds.
The wire is a queue of frames per connection, delivered by `loop.call_soon` and `loop.call_later`, so on a virtual
clock a run is a function of its seed.

What the network's owner can do, per direction: cut (connections break, dialling fails), stall (frames wait, and come
late when it is healed: a partition as TCP shows it), delay, drop the next bulk sends; and per node: crash.

Rules of this file: no real time, thread or randomness of its own; a node is visited in the order in which it was
named; order within a connection never changes.
"""

from __future__ import annotations

import asyncio
import random
from asyncio import AbstractEventLoop, TimerHandle
from collections import Counter, deque
from collections.abc import Callable, Sequence
from functools import partial

from multiraft.config import NodeConfig
from multiraft.errors import StartError
from multiraft.messages import NodeMessage
from multiraft.ports import TransportHandler
from multiraft.transport.frames import hello_frame
from multiraft.transport.hello import Hello, Refusal, encode_hello
from multiraft.transport.peers import MALFORMED, Inbound, Outbound, PeerTransport
from multiraft.types import Identity, NodeId

Direction = tuple[NodeId, NodeId]
"""(from, to)"""


class MemoryNetwork:
    """What connects the MemoryTransports that were made with it. All controls act at once; calls are idempotent."""

    def __init__(self) -> None:
        self._listeners: dict[str, MemoryTransport] = {}
        self._wires: dict[int, _Wire] = {}
        self._next_wire = 0
        self._cut: set[Direction] = set()
        self._stalled: set[Direction] = set()
        self._delay_s: dict[Direction, Callable[[], float]] = {}
        self._drop_bulk: Counter[Direction] = Counter()

    def cut(self, sender: NodeId, receiver: NodeId) -> None:
        """Break what `sender` sends to `receiver`: its connection ends, frames on the way are lost.

        Neither of the two can dial the other until `heal`; a connection the other way that exists goes on.
        """
        self._cut.add((sender, receiver))
        for wire in self._of(sender, receiver):
            wire.break_now()

    def stall(self, sender: NodeId, receiver: NodeId) -> None:
        """Hold what `sender` sends to `receiver` until `heal`: nobody is told; all of it comes late."""
        self._stalled.add((sender, receiver))

    def heal(self, sender: NodeId | None = None, receiver: NodeId | None = None) -> None:
        """Undo cuts and stalls of this direction; without arguments, of all."""
        for broken in (self._cut, self._stalled):
            for direction in sorted(broken):
                if sender in (None, direction[0]) and receiver in (None, direction[1]):
                    broken.discard(direction)
        for wire in list(self._wires.values()):
            wire.resume()

    def delay(self, sender: NodeId, receiver: NodeId, delay_s: float | Callable[[], float]) -> None:
        """Deliver what `sender` sends to `receiver` after this many seconds, or what the callable says per frame."""
        self._delay_s[sender, receiver] = delay_s if callable(delay_s) else partial(float, delay_s)

    def drop_next_bulk(self, sender: NodeId, receiver: NodeId, count: int = 1) -> None:
        """Let the next `count` bulk sends from `sender` to `receiver` fail, as if the outbox were full."""
        self._drop_bulk[sender, receiver] += count

    def crash(self, node_id: NodeId) -> None:
        """End a node's transport as kill -9 would: its handler hears nothing more, its peers see it go."""
        for transport in list(self._listeners.values()):
            if transport.node_id == node_id:
                transport.stop_now()

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
        return True

    def listen(self, address: str, transport: MemoryTransport) -> None:
        if address in self._listeners:
            raise StartError(f"node {transport.node_id!r} cannot listen on {address}: in use; change `listen`")
        self._listeners[address] = transport

    def unlisten(self, address: str, transport: MemoryTransport) -> None:
        if self._listeners.get(address) is transport:
            del self._listeners[address]

    def connect(self, dialler: MemoryTransport, address: str) -> _Wire | None:
        """Return a new wire to whoever listens on `address`; None when it cannot be reached."""
        target = self._listeners.get(address)
        if (
            target is None
            or self.is_cut(dialler.node_id, target.node_id)
            or self.is_cut(target.node_id, dialler.node_id)
        ):
            return None
        self._next_wire += 1
        wire = _Wire(self, self._next_wire, dialler, target)
        self._wires[self._next_wire] = wire
        return wire

    def forget(self, wire_id: int) -> None:
        self._wires.pop(wire_id, None)

    def wires_of(self, transport: MemoryTransport) -> list[_Wire]:
        return [wire for wire in self._wires.values() if transport in (wire.dialler, wire.target)]

    def _of(self, dialler: NodeId, target: NodeId) -> list[_Wire]:
        ends = (dialler, target)
        return [wire for wire in self._wires.values() if (wire.dialler.node_id, wire.target.node_id) == ends]


class MemoryTransport(PeerTransport):
    """Implements ports.Transport over a MemoryNetwork. Addresses are the ones of the configuration."""

    def __init__(
        self,
        network: MemoryNetwork,
        config: NodeConfig,
        store_identity: Identity,
        incarnation: int,
        rng: random.Random,
        *,
        generation: int = 0,
    ) -> None:
        super().__init__(config, store_identity, incarnation, rng, generation)
        self._network = network
        self._failures: Counter[NodeId] = Counter()
        self._waits: dict[NodeId, TimerHandle] = {}

    @property
    def node_id(self) -> NodeId:
        return self._config.node_id

    async def start(self, handler: TransportHandler) -> None:
        """Listen and begin to dial all peers. Raises StartError when the address cannot be had."""
        loop = asyncio.get_running_loop()
        self._network.listen(self._config.listen, self)
        self._begin(handler, loop)
        for node_id in self._peers:
            self._dial_in(node_id, 0.0)

    async def close(self) -> None:
        """Deliver what waits, unless it is stalled, and end all connections. Idempotent."""
        if self._closing:
            return
        for wire in self._network.wires_of(self):
            if wire.dialler is self:
                wire.flush_now()
        self.stop_now()

    def stop_now(self) -> None:
        """End at once; what waits is lost."""
        self._network.unlisten(self._config.listen, self)
        self._end()
        for timer in self._waits.values():
            timer.cancel()
        self._waits.clear()
        for wire in self._network.wires_of(self):
            wire.break_now()

    def send(self, node_id: NodeId, messages: Sequence[NodeMessage], urgent: bool) -> bool:
        """Queue messages for a peer; see ports.Transport.send."""
        if not urgent and messages and self._network.take_bulk_drop(self.node_id, node_id):
            self._counts["dropped_outbox_full"] += len(messages)
            return False
        return super().send(node_id, messages, urgent)

    # --------------------------------------------------------------------------------------------- for wires

    @property
    def loop(self) -> AbstractEventLoop:
        return self._loop

    @property
    def handshake_s(self) -> float:
        return self._config.limits.handshake_timeout_ms / 1000

    @property
    def stopped(self) -> bool:
        return self._closing

    def take_hello(self, frame: bytes, wire: _Wire) -> tuple[Inbound, bytes]:
        return self._greet_inbound(frame, wire.inbound_end)

    def take_answer(self, node_id: NodeId, frame: bytes, sent: Hello, wire: _Wire) -> Outbound:
        outbound = self._greet_outbound(node_id, frame, sent, wire.outbound_end)
        self._failures[node_id] = 0
        return outbound

    def take_frame(self, inbound: Inbound, frame: bytes) -> bool:
        return self._received(inbound, frame)

    def note_sent(self, frame: bytes) -> None:
        self._counts["frames_sent"] += 1
        self._counts["bytes_sent"] += len(frame)

    def lost_inbound(self, inbound: Inbound) -> None:
        self._drop_inbound(inbound)

    def lost_outbound(self, node_id: NodeId, outbound: Outbound | None, why: str) -> None:
        """The connection dialled to `node_id` is over; dial again after a while."""
        if outbound is not None:
            self._drop_outbound(outbound)
        elif why:
            self._note_refused_by(node_id, why)
        self._dial_later(node_id)

    # ----------------------------------------------------------------------------------------------- dialling

    def _redial(self, node_id: NodeId) -> None:
        if node_id in self._waits:
            self._dial_in(node_id, 0.0)

    def _dial_later(self, node_id: NodeId) -> None:
        if not self._closing:
            self._dial_in(node_id, self._backoff_s(self._failures[node_id]))
            self._failures[node_id] += 1

    def _dial_in(self, node_id: NodeId, delay_s: float) -> None:
        if (waiting := self._waits.pop(node_id, None)) is not None:
            waiting.cancel()
        self._waits[node_id] = self._loop.call_later(delay_s, self._dial, node_id)

    def _dial(self, node_id: NodeId) -> None:
        self._waits.pop(node_id, None)
        wire = self._network.connect(self, self._peers[node_id])
        if wire is None:
            self._note_unreachable(node_id, ConnectionRefusedError("nobody listens, or the way is cut"))
            self._dial_later(node_id)
        else:
            sent = self._own_hello()
            wire.greet(node_id, sent, hello_frame(encode_hello(sent)))


class _Pipe:
    """One direction of one wire: frames on their way, in order."""

    def __init__(self, network: MemoryNetwork, loop: AbstractEventLoop, direction: Direction) -> None:
        self._network = network
        self._loop = loop
        self._direction = direction
        self._on_the_way: deque[Callable[[], None]] = deque()
        self._arrived = 0
        self._last_s = 0.0
        self.closed = False

    def put(self, deliver: Callable[[], None]) -> None:
        """Call `deliver` when what was put before has been delivered and the delay of this direction has passed."""
        delay_s = self._network.delay_s(*self._direction)
        self._on_the_way.append(deliver)
        if delay_s <= 0 and len(self._on_the_way) == 1:
            self._loop.call_soon(self._arrive)
            return
        self._last_s = max(self._last_s, self._loop.time() + delay_s)
        self._loop.call_at(self._last_s, self._arrive)

    def release(self) -> None:
        """Deliver what has arrived, unless the direction is stalled."""
        while self._arrived and not self.closed and not self._network.is_stalled(*self._direction):
            self._arrived -= 1
            self._on_the_way.popleft()()

    def flush(self) -> None:
        """Deliver everything now, unless the direction is stalled."""
        self._arrived = len(self._on_the_way)
        self.release()

    def _arrive(self) -> None:
        if self._arrived < len(self._on_the_way):
            self._arrived += 1
            self.release()


class _Wire:
    """One connection, dialled by `dialler` to `target`."""

    def __init__(self, network: MemoryNetwork, wire_id: int, dialler: MemoryTransport, target: MemoryTransport) -> None:
        self.dialler = dialler
        self.target = target
        self.outbound_end = _OutboundEnd(self)
        self.inbound_end = _InboundEnd(self)
        self._network = network
        self._wire_id = wire_id
        self._there = _Pipe(network, dialler.loop, (dialler.node_id, target.node_id))
        self._back = _Pipe(network, dialler.loop, (target.node_id, dialler.node_id))
        self._peer: NodeId = ""
        self._outbound: Outbound | None = None
        self._inbound: Inbound | None = None
        self._timer: TimerHandle | None = None
        self._pumping = False
        self._flushing = False
        self._over = False

    # ----------------------------------------------------------------------------------------------- greeting

    def greet(self, node_id: NodeId, sent: Hello, frame: bytes) -> None:
        """Carry the dialler's hello, meant for `node_id`."""
        self._peer = node_id
        self._timer = self.dialler.loop.call_later(self.dialler.handshake_s, self.break_now)
        self._there.put(partial(self._hello_arrives, sent, frame))

    def _hello_arrives(self, sent: Hello, frame: bytes) -> None:
        try:
            self._inbound, answer = self.target.take_hello(frame, self)
        except Refusal as refusal:
            self._back.put(partial(self._end, refusal.text))
            return
        self._back.put(partial(self._answer_arrives, sent, answer))

    def _answer_arrives(self, sent: Hello, frame: bytes) -> None:
        if self._timer is not None:
            self._timer.cancel()
        try:
            self._outbound = self.dialler.take_answer(self._peer, frame, sent, self)
        except Refusal:
            self._end()

    # ------------------------------------------------------------------------------------------------- frames

    def pump_soon(self) -> None:
        """Take what waits in the outbox, once per pass of the loop."""
        if not self._pumping:
            self._pumping = True
            self.dialler.loop.call_soon(self._pump)

    def _pump(self) -> None:
        self._pumping = False
        if self._over or self._outbound is None:
            return
        if not self._network.is_stalled(self.dialler.node_id, self.target.node_id):
            while (frame := self._outbound.outbox.next_frame()) is not None:
                self.dialler.note_sent(frame)
                self._there.put(partial(self._frame_arrives, frame))
            if self._flushing:
                self._there.put(self._end)

    def _frame_arrives(self, frame: bytes) -> None:
        if self._inbound is not None and not self.target.take_frame(self._inbound, frame):
            self.inbound_end.shut(MALFORMED, "a frame was refused")

    def resume(self) -> None:
        """A stall may have ended."""
        self._there.release()
        self._back.release()
        if not self._over:
            self.pump_soon()

    def flush_soon(self) -> None:
        self._flushing = True
        self.pump_soon()

    def flush_now(self) -> None:
        self._pump()
        self._there.flush()

    # ---------------------------------------------------------------------------------------------------- end

    def break_now(self) -> None:
        """End the connection: what is on the way is lost, both ends are told."""
        self._end()

    def _end(self, why: str = "") -> None:
        if self._over:
            return
        self._over = True
        self._there.closed = self._back.closed = True
        if self._timer is not None:
            self._timer.cancel()
        self._network.forget(self._wire_id)
        loop = self.dialler.loop
        if self._inbound is not None and not self.target.stopped:
            self.target.lost_inbound(self._inbound)
        if not self.dialler.stopped:
            loop.call_soon(self._tell_dialler, why)

    def _tell_dialler(self, why: str) -> None:
        if not self.dialler.stopped:
            self.dialler.lost_outbound(self._peer, self._outbound, why)


class _OutboundEnd:
    """The link of the dialling side."""

    def __init__(self, wire: _Wire) -> None:
        self._wire = wire

    def wake(self) -> None:
        self._wire.pump_soon()

    def shut(self, code: int, reason: str, flush: bool = False) -> None:
        if flush:
            self._wire.flush_soon()
        else:
            self._wire.break_now()


class _InboundEnd:
    """The link of the side that was dialled."""

    def __init__(self, wire: _Wire) -> None:
        self._wire = wire

    def wake(self) -> None:
        """Nothing is ever written here."""

    def shut(self, code: int, reason: str, flush: bool = False) -> None:
        self._wire.break_now()
