"""Work that reaches a group through another node: how it is asked for, and how it is answered.

A forwarded command is sent once and applied at most once: nothing here retries. The leader answers with the outcome
itself, so the caller sees the very error that the leader raised.

Rules of this file: a request that never left this node is NotCommitted, one that left without an answer is
OutcomeUnknown; a request whose time has run out is not begun.
"""

from __future__ import annotations

import asyncio
import logging
import struct
from asyncio import Future
from collections.abc import Callable
from functools import partial
from typing import Any, Final, TypeVar

from multiraft.engine.engine import Engine
from multiraft.engine.following import READ_INDEX_CALL
from multiraft.engine.local import Seen
from multiraft.engine.waiting import fail_future
from multiraft.errors import InvalidRequest, MultiRaftError, OutcomeUnknown, ReadFailed
from multiraft.group import CallKind
from multiraft.outcome import Outcome, decode_commands, decode_outcome, encode_outcome, encode_outcomes
from multiraft.ports import Transport
from multiraft.raft import LEADER
from multiraft.records import COMMANDS, SESSION
from multiraft.types import GroupId, NodeId

_GROUP: Final = struct.Struct(">Q")
T = TypeVar("T")
_OF_GROUPS: Final = frozenset(
    (
        "propose",
        "propose many",
        "numbered",
        "numbered many",
        "register",
        "read",
        "read many",
        "lease",
        "change",
        "transfer",
        "membership",
    )
)
_HARMLESS: Final = frozenset(("read", "read many", "lease", "membership"))
"""Calls that change nothing, so that they may be asked again whatever became of them."""
log: Final = logging.getLogger("multiraft.forwarding")


class Forwarding:
    """Both ends of forwarded work on one node; what the router calls through."""

    def __init__(self, node_id: NodeId, engine: Engine, transport: Transport, loop: asyncio.AbstractEventLoop) -> None:
        self.node_id = node_id
        self._engine = engine
        self._replicas = engine.replicas
        self.begin_read = engine.reading.begin
        self._transport = transport
        self._loop = loop
        self._default_s = engine.limits.request_timeout_ms / 1e3
        self._handlers: dict[str, Callable[[bytes], bytes]] = {}

    # ---------------------------------------------------------------------------------------------- on this node

    def propose_local(self, group_id: GroupId, command: bytes, timeout_s: float) -> Future[bytes]:
        """Propose to this node's replica, as `Engine.propose`; OutcomeUnknown after `timeout_s` at the latest."""
        future = self._engine.propose(group_id, command)
        if timeout_s >= self._default_s:  # the engine's own timeout comes first
            return future
        return self._within(future, timeout_s, lambda: OutcomeUnknown("no answer in time; it may happen later"))

    def propose_many_local(
        self, group_id: GroupId, entries: list[bytes], numbered: bool, timeout_s: float
    ) -> Future[list[Outcome]]:
        """Propose many entries to this node's replica, as `Engine.propose_many`; OutcomeUnknown after `timeout_s`."""
        future: Future[list[Outcome]] = self._loop.create_future()

        def told(results: list[Outcome]) -> None:
            if not future.done():
                future.set_result(results)

        self._engine.propose_many(group_id, entries, told, SESSION if numbered else COMMANDS)
        return self._within(future, timeout_s, lambda: OutcomeUnknown("no answer in time; it may happen later"))

    def submit_local(
        self, group_id: GroupId, entries: list[bytes], numbered: bool, told: Callable[[list[Outcome]], None]
    ) -> None:
        """Propose many entries to this node's replica; `told` is called soon after the turn that has decided all."""
        self._engine.propose_many(
            group_id, entries, partial(self._engine.applying.telling.later, told), SESSION if numbered else COMMANDS
        )

    def read_many_local(self, group_id: GroupId, queries: list[bytes], timeout_s: float) -> Future[list[Outcome]]:
        """Put many queries to this node's replica, as `Engine.read`; ReadFailed after `timeout_s` at the latest."""
        future: Future[list[Outcome]] = self._loop.create_future()

        def told(outcomes: list[Outcome]) -> None:
            if not future.done():
                future.set_result(outcomes)

        self._engine.reading.begin_many(group_id, queries, told)
        return self._within(future, timeout_s, _late)

    def ask_many_local(self, group_id: GroupId, queries: list[bytes], told: Callable[[list[Outcome]], None]) -> None:
        """Put many queries to this node's replica; `told` is called soon after the turn that has answered all."""
        self._engine.reading.begin_many(group_id, queries, partial(self._engine.applying.telling.later, told))

    def read_local(self, group_id: GroupId, query: bytes, timeout_s: float) -> Future[bytes]:
        """Read from this node's replica, as `Engine.read`; ReadFailed after `timeout_s` at the latest."""
        future = self._engine.read(group_id, query)
        return self._within(future, timeout_s, _late)

    def ask_local(self, group_id: GroupId, kind: CallKind, body: bytes, timeout_s: float) -> Future[bytes]:
        """Have this node's replica do what is rarer than proposing and reading, as `act`; it does so if it leads."""
        if kind == "numbered" and timeout_s >= self._default_s:  # as in `propose_local`
            return self._engine.propose(group_id, body, SESSION)
        future = self.act(kind, group_id, body)
        if future.done():
            return future
        error = _late if kind in _HARMLESS else lambda: OutcomeUnknown("no answer in time; it may happen later")
        return self._within(future, timeout_s, error)

    def read_nearby(self, group_id: GroupId, query: bytes, stale_s: float | None, timeout_s: float) -> Future[Seen]:
        """Read from this node's replica, whoever leads: as `Following.read`, or `read_stale` where `stale_s` is given.

        ReadFailed after `timeout_s` at the latest.
        """
        following = self._engine.following
        future = following.read(group_id, query) if stale_s is None else following.read_stale(group_id, query, stale_s)
        return future if future.done() else self._within(future, timeout_s, _late)

    def has_replica(self, group_id: GroupId) -> bool:
        return group_id in self._replicas

    def clock_s(self) -> float:
        """Read the clock that ages are counted on."""
        return self._engine.clocks.real()

    def age_s(self, since_s: float) -> float:
        return self._engine.following.age_s(since_s)

    def _within(self, future: Future[T], timeout_s: float, error: Callable[[], MultiRaftError]) -> Future[T]:
        # The engine itself ends every call after its default timeout; a timer is only for those who want it sooner.
        if timeout_s < self._default_s:
            handle = self._loop.call_later(timeout_s, _expire, future, error)
            future.add_done_callback(lambda _: handle.cancel())
        return future

    def leads(self, group_id: GroupId) -> bool:
        replica = self._replicas.get(group_id)
        return replica is not None and replica.core.role is LEADER and replica.broken is None

    def leader_hint(self, group_id: GroupId) -> NodeId | None:
        replica = self._engine.replicas.get(group_id)
        return replica.leader_node if replica is not None else None

    # ---------------------------------------------------------------------------------------------- toward a peer

    def forward(
        self, node_id: NodeId, method: CallKind, group_id: GroupId, body: bytes, timeout_s: float
    ) -> Future[bytes]:
        """Have another node's replica do it. The future gets what the replica there answers, or what sending met."""
        asked = self._transport.request(node_id, method, _GROUP.pack(group_id) + body, timeout_s)
        answer: Future[bytes] = self._loop.create_future()

        def answered(response: Future[bytes]) -> None:
            if response.cancelled():
                answer.cancel()
                return
            error = response.exception()  # taken in any case, so that asyncio does not report it as unseen
            if answer.done():
                return
            if error is not None:
                fail_future(answer, error)
                return
            try:
                answer.set_result(decode_outcome(response.result(), read=method in _HARMLESS))
            except MultiRaftError as problem:
                fail_future(answer, problem)

        asked.add_done_callback(answered)
        return answer

    async def peer_call(self, node_id: NodeId, method: str, body: bytes, timeout_s: float) -> bytes:
        """Ask a peer (or this node itself) what a handler was registered for there.

        Raises Unreachable, OutcomeUnknown, InvalidRequest (no such method, or the handler failed).
        """
        if node_id == self.node_id:
            return decode_outcome(self._handled(method, body), read=True)
        return decode_outcome(await self._transport.request(node_id, method, body, timeout_s), read=True)

    # --------------------------------------------------------------------------------------------- from a peer

    def on_call(self, method: str, handler: Callable[[bytes], bytes]) -> None:
        """Answer peers' calls of `method` with what `handler(body)` returns."""
        if method in _OF_GROUPS or method == READ_INDEX_CALL:
            raise ValueError(f"{method!r} is answered by the node itself")
        self._handlers[method] = handler

    def request_received(
        self, node_id: NodeId, method: str, body: bytes, timeout_s: float, reply: Callable[[bytes], None]
    ) -> None:
        """Do what a peer asks, and reply with its outcome."""
        if timeout_s <= 0.0:
            return
        if method not in _OF_GROUPS:
            if method == READ_INDEX_CALL:
                self._tell_index(body, reply)
            else:
                reply(self._handled(method, body))
            return
        if len(body) < _GROUP.size:
            reply(encode_outcome(InvalidRequest("a forwarded call names no group")))
            return
        (group_id,) = _GROUP.unpack_from(body)
        try:
            future = self.act(method, group_id, body[_GROUP.size :])
        except MultiRaftError as problem:
            reply(encode_outcome(problem))
            return
        future.add_done_callback(lambda done: reply(_outcome_of(done)))

    def act(self, method: str, group_id: GroupId, body: bytes) -> Future[bytes]:
        """Propose, register a session, read, read by lease, or look at or change who takes part (`Changing.ask`)."""
        if method == "numbered":
            return self._engine.propose(group_id, body, SESSION)
        if method == "propose":
            return self._engine.propose(group_id, body)
        if method == "propose many" or method == "numbered many":
            return self._act_many(group_id, body, SESSION if method == "numbered many" else COMMANDS)
        if method == "read":
            return self._engine.read(group_id, body)
        if method == "read many":
            return self._act_many(group_id, body, None)
        if method == "lease":
            return self._engine.leases.read(group_id, body)
        if method == "register":
            return self._engine.register(group_id, body)
        return self._engine.changing.ask(group_id, method, body)

    def _act_many(self, group_id: GroupId, body: bytes, kind: int | None) -> Future[bytes]:
        """Propose many entries of a kind of record; None: put many queries."""
        answer: Future[bytes] = self._loop.create_future()

        def told(results: list[Outcome]) -> None:
            if not answer.done():
                answer.set_result(encode_outcomes(results))

        if kind is None:
            self._engine.reading.begin_many(group_id, decode_commands(body), told)
        else:
            self._engine.propose_many(group_id, decode_commands(body), told, kind)
        return answer

    def _tell_index(self, body: bytes, reply: Callable[[bytes], None]) -> None:
        """Answer a follower's question: see `Following.answer`, whose answers are read by `Following` alone."""
        try:
            answer = self._engine.following.answer(body)
        except InvalidRequest as problem:
            reply(encode_outcome(problem))
        else:
            answer.add_done_callback(lambda done: reply(done.result()))

    def _handled(self, method: str, body: bytes) -> bytes:
        handler = self._handlers.get(method)
        if handler is None:
            return encode_outcome(InvalidRequest(f"this node answers no call named {method!r}"))
        try:
            return encode_outcome(handler(body))
        except MultiRaftError as problem:
            return encode_outcome(problem)
        except Exception as problem:
            log.exception("the handler of %r raised", method)
            return encode_outcome(InvalidRequest(f"{method}: {type(problem).__name__}: {problem}"))


def _late() -> ReadFailed:
    return ReadFailed("no answer in time; retry")


def _expire(future: Future[Any], error: Callable[[], MultiRaftError]) -> None:
    if not future.done():
        fail_future(future, error())


def _outcome_of(done: Future[bytes]) -> bytes:
    if done.cancelled():
        return encode_outcome(OutcomeUnknown("the node stopped waiting for the answer"))
    error = done.exception()
    return encode_outcome(done.result() if error is None else error)
