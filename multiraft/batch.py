"""Many calls of one group at once, for whoever has them together: the servers of remote clients.

Rules of this file: only what this node leads is begun here; each call has its own outcome, and all outcomes are told
together, once.
"""

from __future__ import annotations

from asyncio import Future
from collections.abc import Callable, Sequence
from typing import TypeAlias

from multiraft.errors import (
    DiskFull,
    InvalidRequest,
    MultiRaftError,
    NotLeader,
    NotReady,
    OutcomeUnknown,
    Overloaded,
)
from multiraft.group import CallKind
from multiraft.outcome import Outcome
from multiraft.running import Running
from multiraft.types import GroupId

BatchDone: TypeAlias = Callable[[list[Outcome]], None]


class Batching:
    """The part of a Node that begins many calls at once."""

    def _here(self) -> Running:
        """Return the parts that run. Raises NotRunning."""
        raise NotImplementedError

    def cluster_key(self) -> bytes:
        """Return the id that the cluster was founded under. Raises NotReady before that, NotRunning."""
        store = self._here().store
        if store is None or not store.identity.formed:
            raise NotReady("the node does not belong to a cluster yet: the first start waits for all founding members")
        return store.identity.cluster_id

    def begin_batch(self, group_id: GroupId, kind: CallKind, bodies: list[bytes], done: BatchDone) -> None:
        """Have the group, which this node must lead, do what each of `bodies` asks; `done` gets all outcomes, in order.

        kind  "propose", "numbered", "register", "read" or "lease", as for `Router.call`
        done  called once, from a later turn of the loop, within request_timeout_ms; what a call ended with is its
              result, or the error that a single call would have raised

        Raises NotLeader (nothing was begun), NotRunning.
        """
        forwarding = self._here().forwarding
        if not forwarding.leads(group_id):
            raise NotLeader(group_id, forwarding.leader_hint(group_id))
        if kind == "propose" or kind == "numbered":
            try:
                forwarding.submit_local(group_id, bodies, kind == "numbered", done)
                return
            except (InvalidRequest, Overloaded, DiskFull):  # for some of them at least: each hears what concerns it
                pass
        if kind == "read":
            forwarding.ask_many_local(group_id, bodies, done)
            return
        _Batch(done).begin(lambda body: forwarding.act(kind, group_id, body), bodies)


class _Batch:
    """The outcomes of one batch, as they come in."""

    __slots__ = ("_done", "_futures", "_left")

    def __init__(self, done: BatchDone) -> None:
        self._done = done
        self._futures: list[Future[bytes] | MultiRaftError] = []
        self._left = 1

    def begin(self, ask: Callable[[bytes], Future[bytes]], bodies: Sequence[bytes]) -> None:
        futures, one_less = self._futures, self._one_less
        for body in bodies:
            try:
                future = ask(body)
            except MultiRaftError as problem:
                futures.append(problem)
            else:
                futures.append(future)
                self._left += 1
                future.add_done_callback(one_less)
        self._one_less(None)

    def _one_less(self, _: object) -> None:
        self._left -= 1
        if self._left == 0:
            self._done([_outcome(future) for future in self._futures])


def _outcome(future: Future[bytes] | MultiRaftError) -> Outcome:
    if isinstance(future, MultiRaftError):
        return future
    if future.cancelled():
        return OutcomeUnknown("the node stopped waiting for the answer")
    error = future.exception()
    if error is None:
        return future.result()
    return error if isinstance(error, MultiRaftError) else OutcomeUnknown(f"{type(error).__name__}: {error}")
