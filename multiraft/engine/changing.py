"""Membership changes asked of this node's leaders, and those who wait for them.

    change      propose it; answered with the membership that came of it, once that has taken effect
    transfer    ask another voter to take over; answered when that has begun
    membership  look: at once, or when the one in effect is newer than the one that the asker knows

Both arrive as bytes, from this node or another one. Whoever asks may ask again: a change names the membership that it
was made for, so that it cannot happen twice.

Rules of this file: a change is answered when its own index has taken effect, with what stands there; nobody waits
longer than the request timeout; what the core refuses is told at once.
"""

from __future__ import annotations

from asyncio import Future
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import msgpack

from multiraft.engine.replica import Replica
from multiraft.engine.waiting import fail_future
from multiraft.errors import CorruptRecord, InvalidRequest, MultiRaftError, NotCommitted, NotLeader, OutcomeUnknown
from multiraft.membership import NODE_ID_CHARACTERS_MAX, pack_membership, unpack_membership
from multiraft.raft import LEADER, AddLearner, Bind, Change, Demote, Promote, Remove
from multiraft.types import DIRECTORY_GROUP, GroupId, Index, Membership, ReplicaId

if TYPE_CHECKING:
    from multiraft.engine.engine import Engine

_KINDS: Final[dict[str, type[Change]]] = {kind.__name__: kind for kind in (AddLearner, Promote, Demote, Remove, Bind)}

_FIELDS: Final[dict[str, type]] = {"node_id": str, "joining": bool, "store": bytes, "replica_id": int}


@dataclass(frozen=True, slots=True)
class MembershipView:
    """What a leader says of its group's membership.

    in_effect  the one that decides now; committed
    latest     the newest in its log, committed or not
    behind     of each other replica, how many entries it lacks as far as the leader knows; None: it does not answer
    leader     the replica that says so
    heir       the one that it is handing over to; NOBODY while it is not
    known      a majority of its members knows of the one in effect: see `Raft.membership_known`
    """

    in_effect: Membership
    latest: Membership
    behind: dict[ReplicaId, int | None]
    leader: ReplicaId
    heir: ReplicaId
    known: bool


def encode_change(
    changes: Sequence[Change], expected: Index | None, joint: bool | None = None, auto_leave: bool = True
) -> bytes:
    """Return the body of a `change` call; see `Raft.propose_membership` for the arguments."""
    rows = [[type(change).__name__, *[getattr(change, name) for name in change.__slots__]] for change in changes]
    packed: bytes = msgpack.packb([expected, joint, auto_leave, rows])
    return packed


def encode_look(known: Index | None, wait_s: float) -> bytes:
    """Return the body of a `membership` call: answer when one newer than `known` is in effect (None: at once)."""
    packed: bytes = msgpack.packb([known, wait_s])
    return packed


def decode_view(answer: bytes) -> MembershipView:
    """Return what a `membership` call was answered. Raises CorruptRecord."""
    try:
        in_effect, latest, behind, leader, heir, known = msgpack.unpackb(answer, strict_map_key=False)
        lacking = dict(behind)
    except (ValueError, TypeError) as problem:
        raise CorruptRecord(f"a view of a membership does not decode: {problem}") from problem
    members, newest = unpack_membership(in_effect, "a view"), unpack_membership(latest, "a view")
    return MembershipView(members, newest, lacking, leader, heir, known)


class _Waiting:
    """One caller. `wanted` is the membership that its change was to bring about; None where it only looks."""

    __slots__ = ("deadline_s", "future", "index", "wanted")

    def __init__(self, future: Future[bytes], index: Index, wanted: Membership | None, deadline_s: float) -> None:
        self.future = future
        self.index = index
        self.wanted = wanted
        self.deadline_s = deadline_s


class Changing:
    """The changes of one engine that are under way, and the leaders that have learners to promote."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._waiting: dict[GroupId, list[_Waiting]] = {}
        self._joining: set[GroupId] = set()

    # ------------------------------------------------------------------------------------------------- from callers

    def ask(self, group_id: GroupId, kind: str, body: bytes) -> Future[bytes]:
        """Do what a `change`, `transfer` or `membership` call asks.

        The future of a change gets the packed membership that has taken effect, NotCommitted when something else took
        its place, OutcomeUnknown when nothing is known within the request timeout. Raises what
        `Raft.propose_membership` raises, and InvalidRequest for a body that is none.
        """
        replica = self._engine.leading(group_id)
        if kind == "change":
            return self._change(replica, *_decoded_change(body))
        if kind == "transfer":
            return self._transfer(replica, body)
        return self._look(replica, *_decoded_look(body))

    def _change(
        self,
        replica: Replica,
        changes: Sequence[Change],
        expected: Index | None,
        joint: bool | None,
        auto_leave: bool,
    ) -> Future[bytes]:
        engine, core = self._engine, replica.core
        if replica.group_id == DIRECTORY_GROUP and not _stays_everywhere(core.membership, changes):
            raise InvalidRequest(
                "the directory keeps a replica on every founding node: a node without one would not follow the map"
            )
        now = engine.pacing.now()
        with engine.touching(replica, now):
            index = core.propose_membership(changes, replica.stamp_ms(engine.clocks), expected, joint, auto_leave)
        return self._wait(replica, index, core.latest_membership(), now + engine.limits.request_timeout_ms / 1e3)

    def _transfer(self, replica: Replica, body: bytes) -> Future[bytes]:
        """Begin to hand over to the node that `body` names; answered at once. Whether it came to that, a look tells."""
        try:
            to = body.decode()
        except UnicodeDecodeError as problem:
            raise InvalidRequest("a transfer call names no node") from problem
        self._engine.transfer_leadership(replica.group_id, to)
        future: Future[bytes] = self._engine.loop.create_future()
        future.set_result(b"")
        return future

    def _look(self, replica: Replica, known: Index | None, wait_s: float) -> Future[bytes]:
        engine = self._engine
        if known is not None and replica.core.membership.index <= known:
            longest_s = engine.limits.request_timeout_ms / 1e3
            return self._wait(replica, known, None, engine.pacing.now() + min(wait_s, longest_s))
        future: Future[bytes] = engine.loop.create_future()
        future.set_result(_view(replica))
        return future

    def _wait(self, replica: Replica, index: Index, wanted: Membership | None, deadline_s: float) -> Future[bytes]:
        future: Future[bytes] = self._engine.loop.create_future()
        self._waiting.setdefault(replica.group_id, []).append(_Waiting(future, index, wanted, deadline_s))
        return future

    # ------------------------------------------------------------------------------------------------ from the engine

    def leads(self, replica: Replica) -> None:
        """The replica leads, with the membership as it is now: it may have learners to promote by itself."""
        if replica.core.membership.joining:
            self._joining.add(replica.group_id)

    def took_effect(self, replica: Replica) -> None:
        """Another membership is in effect: answer those who waited for it."""
        membership = replica.core.membership
        for one in self._waiting.get(replica.group_id, ()):
            if one.future.done():
                continue
            if one.wanted is None:
                if membership.index > one.index:
                    self._answer_look(replica, one)
            elif one.wanted == membership:
                one.future.set_result(pack_membership(membership))
        self._forget_answered(replica.group_id)

    def forget(self, group_id: GroupId) -> None:
        """The replica is gone: nothing will be known here of what it was asked."""
        self._fail(group_id, lambda: OutcomeUnknown(f"group {group_id}: its replica here was removed meanwhile"))
        self._joining.discard(group_id)

    def stop(self, reason: str) -> None:
        for group_id in list(self._waiting):
            self._fail(group_id, lambda: OutcomeUnknown(reason))

    def tick(self, now: float) -> None:
        """Once a beat: look at what waits, and have leaders look at their learners."""
        engine = self._engine
        for group_id in sorted(self._joining):
            replica = engine.replicas.get(group_id)
            if replica is None or not replica.leads or not replica.core.membership.joining:
                self._joining.discard(group_id)
            else:
                engine.mark(replica)
        for group_id, waiting in list(self._waiting.items()):
            replica = engine.replicas.get(group_id)
            for one in waiting:
                if not one.future.done():
                    self._judge(replica, one, now)
            self._forget_answered(group_id)

    def _judge(self, replica: Replica | None, one: _Waiting, now: float) -> None:
        if replica is None:
            fail_future(one.future, OutcomeUnknown("the group's replica here is gone"))
        elif one.wanted is None:
            if replica.core.role is not LEADER:
                fail_future(one.future, NotLeader(replica.group_id, replica.leader_node))
            elif now >= one.deadline_s:
                self._answer_look(replica, one)
        elif replica.committed >= one.index and replica.core.membership.index < one.index:
            text = f"group {replica.group_id}: a new leader replaced the change; look at the membership, then retry"
            fail_future(one.future, NotCommitted(text))
        elif now >= one.deadline_s:
            fail_future(one.future, OutcomeUnknown("the change has no effect yet; it may have later"))

    def _answer_look(self, replica: Replica, one: _Waiting) -> None:
        try:
            one.future.set_result(_view(replica))
        except CorruptRecord as problem:
            fail_future(one.future, problem)

    def _forget_answered(self, group_id: GroupId) -> None:
        left = [one for one in self._waiting.get(group_id, ()) if not one.future.done()]
        if left:
            self._waiting[group_id] = left
        else:
            self._waiting.pop(group_id, None)

    def _fail(self, group_id: GroupId, error: Callable[[], MultiRaftError]) -> None:
        for one in self._waiting.pop(group_id, ()):
            if not one.future.done():
                fail_future(one.future, error())


def _decoded_change(body: bytes) -> tuple[list[Change], Index | None, bool | None, bool]:
    """Return what `encode_change` was given. Raises InvalidRequest for anything else, wrong types included."""
    try:
        expected, joint, auto_leave, rows = msgpack.unpackb(body)
        changes = [_KINDS[row[0]](*row[1:]) for row in rows]
    except (ValueError, TypeError, KeyError, IndexError) as problem:
        raise InvalidRequest(f"a change call does not decode: {problem}") from problem
    if (
        (expected is not None and type(expected) is not int)
        or (joint is not None and type(joint) is not bool)
        or type(auto_leave) is not bool
        or not all(
            type(getattr(change, name)) is _FIELDS[name] for change in changes for name in type(change).__slots__
        )
    ):
        raise InvalidRequest("a change call holds a value of a wrong type")
    for change in changes:
        if isinstance(change, AddLearner) and not 0 < len(change.node_id) <= NODE_ID_CHARACTERS_MAX:
            raise InvalidRequest(
                f"a change call adds {change.node_id!r:.80}, which is no name of a node: those have 1 to "
                f"{NODE_ID_CHARACTERS_MAX} characters"
            )
    return changes, expected, joint, auto_leave


def _decoded_look(body: bytes) -> tuple[Index | None, float]:
    """Return what `encode_look` was given. Raises InvalidRequest for anything else."""
    try:
        known, wait_s = msgpack.unpackb(body)
    except (ValueError, TypeError) as problem:
        raise InvalidRequest(f"a membership call does not decode: {problem}") from problem
    if (known is not None and type(known) is not int) or type(wait_s) not in (int, float) or not wait_s >= 0:
        raise InvalidRequest("a membership call holds a value of a wrong type")
    return known, float(wait_s)


def _stays_everywhere(membership: Membership, changes: Sequence[Change]) -> bool:
    """Whether every node that loses its replica by these changes gets another one by them."""
    lose = {membership.nodes.get(change.replica_id) for change in changes if isinstance(change, Remove)}
    return lose <= {change.node_id for change in changes if isinstance(change, AddLearner)}


def _view(replica: Replica) -> bytes:
    core = replica.core
    behind = [
        [replica_id, core.last_index - peer.match if core.answers(replica_id) else None]
        for replica_id, peer in core.progress.items()
        if replica_id != core.replica_id
    ]
    packed: bytes = msgpack.packb(
        [
            pack_membership(core.membership),
            pack_membership(core.latest_membership()),
            behind,
            core.replica_id,
            core.heir,
            core.membership_known,
        ]
    )
    return packed
