"""The wires of the memory network: one connection each, with frames on their way in either direction.

A frame that is put on a wire is delivered where the receiver lives: by its loop's `call_soon`, or, delayed, by the
network's `wires`. Rules of this file: frames of one direction arrive in order; what arrives while its direction is
stalled waits; what is on the way when a wire breaks is lost, unless the wire was stranded.
"""

from __future__ import annotations

from asyncio import AbstractEventLoop, TimerHandle
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from multiraft.transport.hello import Hello, Refusal
from multiraft.transport.peers import MALFORMED, Inbound, Outbound
from multiraft.types import NodeId

if TYPE_CHECKING:
    from multiraft.transport.memory import MemoryTransport
    from multiraft.transport.network import Direction, MemoryNetwork


class Pipe:
    """One direction of one wire: frames on their way to `loop`, in order."""

    def __init__(self, network: MemoryNetwork, loop: AbstractEventLoop, direction: Direction) -> None:
        self._network = network
        self._loop = loop
        self._direction = direction
        self._on_the_way: deque[Callable[[], None]] = deque()
        self._arrived = 0
        self._last_s = 0.0
        self._held = False
        self.closed = False

    def put(self, deliver: Callable[[], None]) -> None:
        """Call `deliver` when what was put before has been delivered and the delay of this direction has passed."""
        delay_s = self._network.delay_s(*self._direction)
        self._on_the_way.append(deliver)
        if delay_s <= 0 and len(self._on_the_way) == 1:
            self._loop.call_soon(self._arrive)
            return
        wires = self._network.wires
        self._last_s = max(self._last_s, wires.now(self._loop) + delay_s)
        wires.arrive_at(self._loop, self._last_s, self._arrive)

    def put_off(self, late_s: float) -> None:
        """Deliver nothing for so many seconds."""
        self._held = True
        wires = self._network.wires
        wires.arrive_at(self._loop, wires.now(self._loop) + late_s, self._let_go)

    def _let_go(self) -> None:
        self._held = False
        self._arrived = len(self._on_the_way)
        self._release()

    def release_soon(self) -> None:
        """The direction may not be stalled any more: have the receiver take what has arrived."""
        if self._arrived:
            self._loop.call_soon(self._release)

    def _release(self) -> None:
        """Deliver what has arrived, unless the direction is stalled. Runs where the receiver lives."""
        while self._arrived and not self._held and not self.closed and not self._network.is_stalled(*self._direction):
            self._arrived -= 1
            self._on_the_way.popleft()()

    def _arrive(self) -> None:
        if self._arrived < len(self._on_the_way):
            self._arrived += 1
            self._release()


class Wire:
    """One connection, dialled by `dialler` to `target`."""

    def __init__(self, network: MemoryNetwork, wire_id: int, dialler: MemoryTransport, target: MemoryTransport) -> None:
        self.dialler = dialler
        self.target = target
        self.outbound_end = _OutboundEnd(self)
        self.inbound_end = _InboundEnd(self)
        self._network = network
        self._wire_id = wire_id
        self._there = Pipe(network, target.loop, (dialler.node_id, target.node_id))
        self._back = Pipe(network, dialler.loop, (target.node_id, dialler.node_id))
        self._peer: NodeId = ""
        self._outbound: Outbound | None = None
        self._inbound: Inbound | None = None
        self._timer: TimerHandle | None = None
        self._pumping = False
        self._flushing = False
        self._over = False
        self._stranded = False

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
        if self._over or self._stranded or self._outbound is None:
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
        self._there.release_soon()
        self._back.release_soon()
        if not self._over:
            self.pump_soon()

    def flush_soon(self) -> None:
        self._flushing = True
        self.pump_soon()

    def flush_now(self) -> None:
        """Put what waits in the outbox on its way."""
        self._pump()

    # ---------------------------------------------------------------------------------------------------- end

    def break_now(self) -> None:
        """End the connection: what is on the way is lost, both ends are told. A stranded one ends when all has come."""
        if not self._stranded:
            self._end()

    def end_now(self) -> None:
        """End the connection, stranded or not: one of its nodes is gone."""
        self._end()

    def outlive(self) -> None:
        """The dialler is gone; what it has put on its way still arrives, and then the connection ends."""
        if self._inbound is None or self._outbound is None:
            self._end()
        elif not self._over and not self._stranded:
            self._stranded = True
            self._there.put(self._end)

    def strand(self, late_s: float) -> None:
        """The dialler loses the connection; what it has sent reaches the other end `late_s` seconds from now."""
        if self._over or self._stranded:
            return
        self._pump()
        self._stranded = True
        self._there.put_off(late_s)
        self._there.put(self._end)
        if not self.dialler.stopped:
            self.dialler.loop.call_soon(self._tell_dialler, "")

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
        if not self.dialler.stopped and not self._stranded:
            loop.call_soon(self._tell_dialler, why)

    def _tell_dialler(self, why: str) -> None:
        if not self.dialler.stopped:
            self.dialler.lost_outbound(self._peer, self._outbound, why)


class _OutboundEnd:
    """The link of the dialling side."""

    def __init__(self, wire: Wire) -> None:
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

    def __init__(self, wire: Wire) -> None:
        self._wire = wire

    def wake(self) -> None:
        """Nothing is ever written here."""

    def shut(self, code: int, reason: str, flush: bool = False) -> None:
        self._wire.break_now()
