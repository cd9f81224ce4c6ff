"""What every transport does alike: whom it talks to, what passes on a connection, and who is told of it.

Between two nodes there are two connections; each node sends on the one that it dialled, and only there. A backend
(WebSockets, memory) makes the connections and moves frames; everything else is decided here, so that the simulator
runs the same rules as production:

- A connection counts after both hellos were judged (hello.py). The sender of its frames is the node of its hello.
- The newest inbound connection of a peer wins; frames of an older one are dropped (rule L22).
- A store that was rolled back or replaced is refused (known.py), and the node that it is of is told.
- While either side belongs to no cluster, only forming messages pass.
- A frame that does not decode, or that carries what may not pass, closes its connection; nothing of it is delivered.

Rules of this file: no I/O; nothing awaits; the handler is never called from within a call of the Transport port,
only from the loop.
"""

from __future__ import annotations

import logging
import random
from asyncio import AbstractEventLoop, Future
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Final, Protocol

from multiraft.config import NodeConfig
from multiraft.errors import DeadlineExceeded, InvalidRequest, MultiRaftError, Overloaded, Unreachable, WireError
from multiraft.messages import Form, Formed, FormingMessage, Message, NodeMessage, Request, Response
from multiraft.ports import TransportHandler
from multiraft.singly import singly
from multiraft.transport.calls import Calls
from multiraft.transport.frames import FrameDecoder, encode_message, hello_content, hello_frame, max_message_bytes
from multiraft.transport.hello import GATHERED_VERSION, Hello, Refusal, decode_hello, encode_hello, judge
from multiraft.transport.known import Known
from multiraft.transport.outbox import Outbox
from multiraft.types import Identity, NodeId, SeenRun

logger = logging.getLogger("multiraft.transport")

GOING_AWAY: Final = 1001
REFUSED: Final = 4001
MALFORMED: Final = 4002
REPLACED: Final = 4003
GREET_ANEW: Final = 4004
OVERFLOW: Final = 4005

BACKOFF_MIN_S: Final = 0.05
BACKOFF_MAX_S: Final = 2.0
_COMPLAINT_INTERVAL_S: Final = 60.0
_COMPLAINTS_MAX: Final = 1024
_ANSWERS_HELD_MAX: Final = 1_024
_ANSWERS_HELD_BYTES: Final = 1024 * 1024
"""Answers kept for one peer until this node's own connection to it is up: how many, and about how many bytes."""


class Link(Protocol):
    """One connection, as its backend sees it."""

    def wake(self) -> None:
        """The outbox of this connection has stopped being empty."""

    def shut(self, code: int, reason: str, flush: bool = False) -> None:
        """Begin to close; `flush`: after what waits in the outbox was written. Returns at once. Idempotent."""


class Outbound:
    """A connection that this node dialled, greeted on both sides.

    forming  only forming messages pass
    """

    __slots__ = ("forming", "hello", "link", "node_id", "outbox")

    def __init__(self, hello: Hello, link: Link, outbox: Outbox, forming: bool) -> None:
        self.node_id = hello.node_id
        self.hello = hello
        self.link = link
        self.outbox = outbox
        self.forming = forming


class Inbound:
    """A connection that a peer dialled, greeted on both sides.

    current  no newer connection of that peer has replaced it
    """

    __slots__ = ("current", "decoder", "forming", "hello", "link", "node_id")

    def __init__(self, hello: Hello, link: Link, decoder: FrameDecoder, forming: bool) -> None:
        self.node_id = hello.node_id
        self.hello = hello
        self.link = link
        self.decoder = decoder
        self.forming = forming
        self.current = True


class PeerTransport:
    """The part of a transport that does not depend on how bytes travel. Implements ports.Transport but start and close.

    store_identity  what this node says of itself, and knows of its peers' stores; `set_identity` replaces it
    incarnation     of this node's store; at least 1
    rng             for the jitter of reconnecting
    """

    def __init__(
        self,
        config: NodeConfig,
        store_identity: Identity,
        incarnation: int,
        rng: random.Random,
    ) -> None:
        self._config = config
        self._known = Known(store_identity)
        self._runs: tuple[bytes, ...] = ()
        self._incarnation = incarnation
        self._rng = rng
        self._message_bytes = max_message_bytes(config.limits)
        self._peers = {name: address for name, address in config.members.items() if name != config.node_id}
        self._counts: Counter[str] = Counter()
        self._out: dict[NodeId, Outbound] = {}
        self._in: dict[NodeId, Inbound] = {}
        self._held: dict[NodeId, list[tuple[Hello, bytes]]] = {}
        self._complaints: dict[tuple[str, NodeId], float] = {}
        self._closing = False
        self._handler_: TransportHandler | None = None
        self._loop_: AbstractEventLoop | None = None
        self._calls_: Calls | None = None

    # ------------------------------------------------------------------------------------- the Transport port

    def remember(self, runs: tuple[bytes, ...], seen: Mapping[NodeId, SeenRun]) -> None:
        """Before the start: what earlier runs of this node have left; see ports.Transport.remember."""
        self._runs = runs
        self._known.seen.update(seen)

    def seen(self) -> dict[NodeId, SeenRun]:
        """Return the latest run met of each peer's store, within this node's cluster."""
        return dict(self._known.seen)

    def set_identity(self, identity: Identity, incarnation: int) -> None:
        """This node now belongs to a cluster, or knows of other stores; see ports.Transport.set_identity."""
        before, self._known.identity = self._known.identity, identity
        self._incarnation = incarnation
        if identity.cluster_id == before.cluster_id:
            self._part_from_replaced()
            return
        for outbound in list(self._out.values()):
            outbound.link.shut(GREET_ANEW, "this node has joined a cluster", flush=True)
            self._drop_outbound(outbound, soon=True)
        for inbound in list(self._in.values()):
            inbound.link.shut(GREET_ANEW, "this node has joined a cluster")
            self._drop_inbound(inbound)

    def _part_from_replaced(self) -> None:
        why = "another store of this node has been admitted to the cluster"
        for outbound in list(self._out.values()):
            if not outbound.forming and self._known.replaced(outbound.hello):
                outbound.link.shut(REFUSED, why)
                self._drop_outbound(outbound, soon=True)
        for inbound in list(self._in.values()):
            if not inbound.forming and self._known.replaced(inbound.hello):
                inbound.link.shut(REFUSED, why)
                self._drop_inbound(inbound)

    def send(self, node_id: NodeId, messages: Sequence[NodeMessage], urgent: bool) -> bool:
        """Queue messages for a peer; see ports.Transport.send."""
        outbound = self._out.get(node_id)
        if outbound is None or outbound.forming:
            self._counts["dropped_not_connected"] += len(messages)
            return False
        if outbound.hello.version_max < GATHERED_VERSION:
            messages = singly(messages)
        encoded = [encode_message(message) for message in messages]
        return self._queue(outbound, encoded, urgent)

    def flush(self, node_id: NodeId) -> None:
        """Backends that can: write now what is in the outbox; see ports.Transport.flush."""

    def send_forming(self, node_id: NodeId, message: FormingMessage) -> bool:
        """Queue a forming message, also for a peer without a cluster. False if it was dropped."""
        outbound = self._out.get(node_id)
        if outbound is None:
            self._counts["dropped_not_connected"] += 1
            return False
        return self._queue(outbound, [encode_message(message)], urgent=True)

    def request(self, node_id: NodeId, method: str, body: bytes, timeout_s: float) -> Future[bytes]:
        """Ask a peer; see ports.Transport.request.

        The future gets, besides what stands there: DeadlineExceeded when `timeout_s` is not above 0, and
        InvalidRequest when the body is larger than what the peer takes (nothing has left this node then).
        """
        outbound = self._out.get(node_id)
        error: MultiRaftError | None = None
        if outbound is None or outbound.forming:
            return self._failed(Unreachable(f"node {node_id!r} is not connected; nothing was sent"))
        if timeout_s <= 0:
            return self._failed(DeadlineExceeded(f"no time was left to ask node {node_id!r}"))
        if (error := self._calls.check_room(len(body))) is not None:
            return self._failed(error)
        request_id = self._calls.next_id()
        encoded = encode_message(Request(body, method, request_id, max(1, int(timeout_s * 1000))))
        if len(encoded) > outbound.hello.message_bytes:
            return self._failed(InvalidRequest(f"{len(body)} bytes are more than node {node_id!r} takes"))
        if not outbound.outbox.add([encoded], urgent=False):
            self._counts["dropped_outbox_full"] += 1
            return self._failed(Overloaded(f"the outbox for node {node_id!r} is full (outbox_bytes); retry later"))
        ticket = outbound.outbox.bulk_ticket
        return self._calls.wait(request_id, node_id, outbound.outbox, ticket, len(body), timeout_s)

    def counters(self) -> dict[str, int]:
        """Frames and bytes sent and received, and what was dropped, by reason."""
        return dict(self._counts)

    # ------------------------------------------------------------------------------------ called by backends

    @property
    def _handler(self) -> TransportHandler:
        if self._handler_ is None:
            raise RuntimeError("the transport has not been started")
        return self._handler_

    @property
    def _loop(self) -> AbstractEventLoop:
        if self._loop_ is None:
            raise RuntimeError("the transport has not been started")
        return self._loop_

    @property
    def _calls(self) -> Calls:
        if self._calls_ is None:
            raise RuntimeError("the transport has not been started")
        return self._calls_

    def _begin(self, handler: TransportHandler, loop: AbstractEventLoop) -> None:
        self._handler_ = handler
        self._loop_ = loop
        self._calls_ = Calls(loop, self._config.limits.pending_bytes)

    def _end(self) -> None:
        """Forget every connection and end every request, telling the handler nothing."""
        self._closing = True
        for outbound in list(self._out.values()):
            self._drop_outbound(outbound)
        for inbound in list(self._in.values()):
            self._drop_inbound(inbound)
        if self._calls_ is not None:
            self._calls_.close()

    def _own_hello(self) -> Hello:
        return Hello(
            node_id=self._config.node_id,
            store_id=self._known.identity.store_id,
            cluster_id=self._known.identity.cluster_id,
            incarnation=self._incarnation,
            generation=self._known.identity.generation,
            frame_bytes=self._config.limits.frame_bytes,
            message_bytes=self._message_bytes,
            readmissions=self._known.identity.readmissions,
            runs=self._runs,
        )

    def _greet_inbound(self, frame: bytes, link: Link) -> tuple[Inbound, bytes]:
        """Judge the first frame of a connection that was dialled by another node; return it and the frame to answer.

        Raises Refusal, counted and logged; its text is for the peer, and begins with its kind.
        """
        own = self._own_hello()
        try:
            hello = self._judged(own, frame, None)
        except Refusal as refusal:
            refusal.text = f"{refusal.kind}: {refusal.text}"
            raise
        node_id = hello.node_id
        older = self._in.get(node_id)
        if older is not None:
            self._counts["replaced"] += 1
            older.link.shut(REPLACED, "a newer connection of the same node has taken its place")
            self._drop_inbound(older)
        outbound = self._out.get(node_id)
        if outbound is not None and not same_run(outbound.hello, hello):
            outbound.link.shut(REPLACED, "the node has started anew")
            self._drop_outbound(outbound)
        forming = not (own.formed and hello.formed)
        inbound = Inbound(hello, link, FrameDecoder(self._message_bytes), forming)
        self._in[node_id] = inbound
        self._counts["accepted"] += 1
        if not forming:
            self._handler.peer_heard(node_id, hello.incarnation)
        if self._out.get(node_id) is None:
            self._redial(node_id)
        return inbound, hello_frame(encode_hello(own))

    def _greet_outbound(self, node_id: NodeId, frame: bytes, sent: Hello, link: Link) -> Outbound:
        """Judge the answer to the hello `sent` on a connection dialled to `node_id`. Raises Refusal, as above."""
        if sent.cluster_id != self._known.identity.cluster_id:
            raise Refusal("greet_anew", "this node has joined a cluster meanwhile", node_id)
        hello = self._judged(sent, frame, node_id)
        inbound = self._in.get(node_id)
        if inbound is not None and not same_run(inbound.hello, hello):
            inbound.link.shut(REPLACED, "the node has started anew")
            self._drop_inbound(inbound)
        limits = self._config.limits
        outbox = Outbox(limits.outbox_bytes, min(limits.frame_bytes, hello.frame_bytes), link.wake)
        forming = not (sent.formed and hello.formed)
        outbound = Outbound(hello, link, outbox, forming)
        self._out[node_id] = outbound
        self._counts["connected"] += 1
        if not forming:
            self._handler.peer_connected(node_id, hello.incarnation)
            self._send_held_answers(outbound)
        elif not hello.formed:
            self._handler.unformed_peer(node_id, hello.store_id)
        return outbound

    def _received(self, inbound: Inbound, frame: bytes) -> bool:
        """Deliver what `frame` carries. False: the connection must be closed; nothing of the frame was delivered."""
        if not inbound.current:
            self._counts["dropped_replaced_connection"] += 1
            return False
        counts = self._counts
        counts["frames_received"] += 1
        counts["bytes_received"] += len(frame)
        try:
            messages, others = inbound.decoder.decode(frame)
            if inbound.forming and (messages or not all(isinstance(other, Form | Formed) for other in others)):
                raise WireError("a message for a cluster on a connection without one")
        except WireError as problem:
            self._refuse_frame(inbound, "malformed", str(problem))
            return False
        if messages:
            counts["messages_received"] += len(messages)
            self._handler.messages_received(inbound.node_id, inbound.hello.incarnation, messages)
        for other in others:
            self._take_other(inbound, other)
        return True

    def _refuse_frame(self, inbound: Inbound, kind: str, why: str) -> None:
        """Count and log that a frame of this greeted connection was dropped."""
        self._counts[f"dropped_{kind}"] += 1
        self._complain(kind, inbound.node_id, "a frame of node %r was dropped (%s)", inbound.node_id, why)

    def _drop_outbound(self, outbound: Outbound, soon: bool = False) -> None:
        """Forget a connection that this node dialled. `soon`: tell the handler from the loop, not in this call."""
        if self._out.get(outbound.node_id) is not outbound:
            return
        del self._out[outbound.node_id]
        self._counts["disconnected"] += 1
        self._calls.connection_lost(outbound.outbox)
        if outbound.forming or self._closing:
            return
        if soon:
            self._loop.call_soon(self._tell_disconnected, outbound.node_id)
        else:
            self._handler.peer_disconnected(outbound.node_id)

    def _drop_inbound(self, inbound: Inbound) -> None:
        """Forget a connection that a peer dialled; frames of it that still come are dropped."""
        inbound.current = False
        if self._in.get(inbound.node_id) is inbound:
            del self._in[inbound.node_id]

    def _redial(self, node_id: NodeId) -> None:
        """Backends: dial this peer now instead of at the end of the current wait; it has just shown that it is up."""
        raise NotImplementedError

    def _backoff_s(self, failures: int) -> float:
        """Return how long to wait before dialling again: 50 ms doubling to 2 s, of which half is jitter."""
        longest: float = min(BACKOFF_MAX_S, BACKOFF_MIN_S * 2.0 ** min(failures, 16))
        return longest * (0.5 + 0.5 * self._rng.random())

    def _note_refused_by(self, node_id: NodeId, why: str) -> None:
        """A peer has refused a connection of this node, and said why."""
        self._counts["refused_by_peer"] += 1
        self._complain("by_peer", node_id, "node %r refuses this node: %s", node_id, why)
        kind, _, text = why.partition(": ")
        if not self._closing:
            self._handler.refused_by(node_id, kind, text)

    def _note_unreachable(self, node_id: NodeId, problem: BaseException) -> None:
        self._counts["dial_failed"] += 1
        logger.debug("node %r cannot be reached: %s %s", node_id, type(problem).__name__, problem)

    def _note_stranger(self, kind: str, why: str) -> None:
        """A connection that has not said hello was cut."""
        self._counts[f"refused_{kind}"] += 1
        self._complain(kind, "", "a connection was cut: %s", why)

    def _complain(self, kind: str, peer: NodeId, text: str, *values: object) -> None:
        """Log a warning, at most one a minute for each kind and peer."""
        now = self._loop.time()
        last = self._complaints.get((kind, peer))
        if last is not None and now - last < _COMPLAINT_INTERVAL_S:
            return
        if len(self._complaints) >= _COMPLAINTS_MAX:
            self._complaints.clear()
        self._complaints[kind, peer] = now
        logger.warning(text, *values)

    # -------------------------------------------------------------------------------------------- its own parts

    def _judged(self, own: Hello, frame: bytes, dialled: NodeId | None) -> Hello:
        hello = self._checked(own, frame, dialled)
        self._known.note(hello)
        return hello

    def _checked(self, own: Hello, frame: bytes, dialled: NodeId | None) -> Hello:
        """Judge a hello, noting nothing. Raises Refusal, counted and logged."""
        try:
            try:
                hello = decode_hello(hello_content(frame))
            except WireError as problem:
                raise Refusal("hello", str(problem), dialled or "") from problem
            judge(own, hello, self._config.members, dialled)
            self._known.judge(hello)
        except Refusal as refusal:
            self._counts[f"refused_{refusal.kind}"] += 1
            self._complain(refusal.kind, refusal.peer, "a connection was refused: %s", refusal.text)
            raise
        return hello

    def _queue(self, outbound: Outbound, encoded: list[bytes], urgent: bool) -> bool:
        dropped = False
        if encoded and max(map(len, encoded)) > outbound.hello.message_bytes:
            fitting = [one for one in encoded if len(one) <= outbound.hello.message_bytes]
            self._counts["dropped_too_large"] += len(encoded) - len(fitting)
            self._complain("too_large", outbound.node_id, "a message was larger than node %r takes", outbound.node_id)
            encoded, dropped = fitting, True
        if outbound.outbox.add(encoded, urgent):
            return not dropped
        self._counts["dropped_outbox_full"] += len(encoded)
        if urgent:
            self._counts["closed_outbox_full"] += 1
            self._complain("overflow", outbound.node_id, "node %r does not keep up; reconnecting", outbound.node_id)
            outbound.link.shut(OVERFLOW, "the outbox is full")
            self._drop_outbound(outbound, soon=True)
        return False

    def _take_other(self, inbound: Inbound, message: Message) -> None:
        if isinstance(message, Request):
            reply = partial(self._reply, inbound.node_id, inbound.hello, message.request_id)
            timeout_s = message.timeout_ms / 1000
            self._handler.request_received(inbound.node_id, message.method, message.body, timeout_s, reply)
        elif isinstance(message, Response):
            if not self._calls.answered(inbound.node_id, message.request_id, message.body):
                self._counts["dropped_late_answer"] += 1
        elif isinstance(message, Form | Formed):
            self._handler.forming_received(inbound.node_id, message)

    def _reply(self, node_id: NodeId, asker: Hello, request_id: int, body: bytes) -> None:
        outbound, inbound = self._out.get(node_id), self._in.get(node_id)
        encoded = encode_message(Response(body, request_id))
        if inbound is None or not same_run(inbound.hello, asker):
            self._counts["dropped_answer"] += 1
        elif outbound is None or outbound.forming:
            self._hold_answer(node_id, asker, encoded)
        elif not self._queue(outbound, [encoded], urgent=False):
            self._counts["dropped_answer"] += 1

    def _hold_answer(self, node_id: NodeId, asker: Hello, encoded: bytes) -> None:
        """Keep an answer until this node's own connection to the asker is up: it may be a moment behind the asker's."""
        held = self._held.setdefault(node_id, [])
        if len(held) < _ANSWERS_HELD_MAX and sum(len(answer) for _, answer in held) < _ANSWERS_HELD_BYTES:
            held.append((asker, encoded))
        else:
            self._counts["dropped_answer"] += 1

    def _send_held_answers(self, outbound: Outbound) -> None:
        for asker, encoded in self._held.pop(outbound.node_id, []):
            if not same_run(outbound.hello, asker) or not self._queue(outbound, [encoded], urgent=False):
                self._counts["dropped_answer"] += 1

    def _tell_disconnected(self, node_id: NodeId) -> None:
        if not self._closing:
            self._handler.peer_disconnected(node_id)

    def _failed(self, error: MultiRaftError) -> Future[bytes]:
        future: Future[bytes] = self._loop.create_future()
        future.set_exception(error)
        return future


def same_run(one: Hello, other: Hello) -> bool:
    """Whether two hellos come from the same run of the same node."""
    return one.incarnation == other.incarnation and one.store_id == other.store_id
