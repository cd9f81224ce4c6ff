"""The memory twin: several transports in one process, on one loop, over a MemoryNetwork (network.py).

Everything but the wire is the production code: greeting, lanes, frames (really encoded and decoded), calls, bounds.
The wire is a queue of frames per connection (wires.py), so on a virtual clock a run is a function of its seed.

Rules of this file: no real time, thread or randomness of its own.
"""

from __future__ import annotations

import asyncio
import random
from asyncio import AbstractEventLoop, TimerHandle
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Final, get_args

from multiraft.config import NodeConfig
from multiraft.errors import MultiRaftError, Unreachable
from multiraft.messages import NodeMessage, RaftMessage
from multiraft.ports import Cancel, FileSink, TransportHandler
from multiraft.singly import singly
from multiraft.transport.files import FileTransport
from multiraft.transport.frames import encode_message, hello_frame
from multiraft.transport.hello import Hello, encode_hello
from multiraft.transport.network import Disturbance, MemoryNetwork
from multiraft.transport.peers import Inbound, Outbound
from multiraft.transport.wires import Wire
from multiraft.types import Identity, NodeId

RAFT_MESSAGES: Final = frozenset(get_args(RaftMessage))
"""What `disturb` applies to."""

LATE_S: Final = 0.5
"""A reordered message comes within so many seconds, a repeated one within ten times as many; mostly much sooner."""


class MemoryTransport(FileTransport):
    """Implements ports.Transport over a MemoryNetwork. Addresses are the ones of the configuration.

    loop  where this node lives; None: the running loop at its start
    """

    def __init__(
        self,
        network: MemoryNetwork,
        config: NodeConfig,
        store_identity: Identity,
        incarnation: int,
        rng: random.Random,
        *,
        loop: AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, store_identity, incarnation, rng)
        self._network = network
        self._own_loop = loop
        self._late: set[TimerHandle] = set()
        self._failures: Counter[NodeId] = Counter()
        self._waits: dict[NodeId, TimerHandle] = {}

    @property
    def node_id(self) -> NodeId:
        return self._config.node_id

    async def start(self, handler: TransportHandler) -> None:
        """Listen and begin to dial all peers. Raises StartError when the address cannot be had."""
        loop = self._own_loop if self._own_loop is not None else asyncio.get_running_loop()
        self._network.listen(self._config.listen, self)
        self._begin(handler, loop)
        for node_id in self._peers:
            self._dial_in(node_id, 0.0)

    async def close(self) -> None:
        """End all connections; what waited still arrives, but for what a stall keeps from leaving. Idempotent."""
        if self._closing:
            return
        for wire in self._network.wires_of(self):
            if wire.dialler is self:
                wire.flush_now()
        self.stop_now(deliver=True)

    def stop_now(self, deliver: bool = False) -> None:
        """End at once; what waits is lost. `deliver`: what has left this node still arrives, as from a kernel."""
        self._network.unlisten(self._config.listen, self)
        self._end()
        for timer in (*self._waits.values(), *self._late):
            timer.cancel()
        self._waits.clear()
        self._late.clear()
        for wire in self._network.wires_of(self):
            if deliver and wire.dialler is self:
                wire.outlive()
            else:
                wire.end_now()
        for file_wire in self._network.files_of(self):
            file_wire.break_now()

    def send(self, node_id: NodeId, messages: Sequence[NodeMessage], urgent: bool) -> bool:
        """Queue messages for a peer; see ports.Transport.send."""
        if not urgent and messages and self._network.take_bulk_drop(self.node_id, node_id):
            self._counts["dropped_outbox_full"] += len(messages)
            return False
        disturbance = self._network.disturbance(self.node_id, node_id)
        if disturbance is not None:
            messages = self._disturb(disturbance, node_id, messages, urgent)
        return super().send(node_id, messages, urgent)

    def _disturb(
        self, disturbance: Disturbance, node_id: NodeId, messages: Sequence[NodeMessage], urgent: bool
    ) -> list[NodeMessage]:
        """Return the messages that go now; what was lost or overtaken is not among them."""
        rng, faults = self._network.rng, self._network.faults
        now: list[NodeMessage] = []
        for message in singly(messages):
            if type(message) not in RAFT_MESSAGES:
                now.append(message)
                continue
            if rng.random() < disturbance.loss:
                self._network.note_loss(self.node_id, node_id)
                continue
            if rng.random() < disturbance.duplicate:
                faults["duplicate"] += 1
                self._send_late(node_id, message, urgent, LATE_S * 10.0 ** rng.uniform(-3.0, 1.0))
            if rng.random() < disturbance.reorder:
                faults["reorder"] += 1
                self._send_late(node_id, message, urgent, LATE_S * 10.0 ** rng.uniform(-3.0, 0.0))
            else:
                now.append(message)
        return now

    def _send_late(self, node_id: NodeId, message: NodeMessage, urgent: bool, late_s: float) -> None:
        """Send it after `late_s`, over whatever connection there is then to the same run of the peer."""
        outbound = self._out.get(node_id)
        if outbound is None or outbound.forming:
            return
        run = outbound.hello.incarnation, outbound.hello.store_id
        encoded = encode_message(message)

        def send() -> None:
            self._late.discard(timer)
            then = self._out.get(node_id)
            if then is not None and not then.forming and (then.hello.incarnation, then.hello.store_id) == run:
                self._queue(then, [encoded], urgent)

        timer = self._loop.call_later(late_s, send)
        self._late.add(timer)

    def fetch(
        self,
        node_id: NodeId,
        name: str,
        offset: int,
        size_bytes: int,
        sink: FileSink,
        done: Callable[[Exception | None], None],
    ) -> Cancel:
        """Have a peer's file sent; see ports.Transport.fetch."""
        try:
            asked = self.ask_for_file(node_id, name, offset, size_bytes)
            wire = self._network.connect_file(self, self._peers[node_id], asked, sink, done)
            if wire is None:
                raise Unreachable(f"node {node_id!r} cannot be dialled; file {name} cannot be had from it now")
        except MultiRaftError as problem:
            return self.tell_soon(done, problem)
        wire.begin()
        return wire.cancel

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

    def take_hello(self, frame: bytes, wire: Wire) -> tuple[Inbound, bytes]:
        return self._greet_inbound(frame, wire.inbound_end)

    def take_answer(self, node_id: NodeId, frame: bytes, sent: Hello, wire: Wire) -> Outbound:
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
