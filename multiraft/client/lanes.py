"""Calls on their way, and the lane of each group on which they travel together.

A lane knows who leads its group, as far as anybody has said, and has this client's session there. All calls of a group
go the same way: when its leader moves, one answer turns the whole lane.

    call ──> unnumbered (until the session is registered) ──> queue ──> in flight on a link ──> settled
                                                              ^──────────────┘ refused, or its answer was lost

Rules of this file: values and small decisions; what is sent where and when is core.py's.
"""

from __future__ import annotations

from asyncio import Future
from collections.abc import Callable
from typing import Final, TypeAlias

from multiraft.client.frames import KINDS, NEAR, NUMBERED
from multiraft.errors import (
    DeadlineExceeded,
    MultiRaftError,
    NotLeader,
    NotReady,
    OutcomeUnknown,
    ReadFailed,
    Unreachable,
)
from multiraft.shard.attempts import BACKOFF_FIRST_S, BACKOFF_MOST_S, CHANGING, Attempts, NumberedAttempts
from multiraft.shard.session import GroupSession
from multiraft.types import GroupId, NodeId

Done: TypeAlias = Callable[["bytes | MultiRaftError"], None]
How: TypeAlias = tuple[int, int]
"""The kind of a call and its argument, as in frames.py."""
_NOBODY: Final = (NotLeader, NotReady, Unreachable)


class Call:
    """One call, from when it is asked for until its caller is told.

    how       its kind and argument
    body      what is sent; of a call in a session, with its number once it has one
    deadline  when it is given up, on the loop's clock
    done      gets the result or the error; None: `future` does
    lane      where it travels; None: its shard is not known yet
    service, key  by which its shard is found again; None: it is of one group
    after_map its shard is looked for in a map newer than this
    session   this client's session that it is numbered in; None: in none, or not yet
    numbers   whether it is to be numbered by this client
    sequence  its number there
    attempts  what earlier attempts have come to; None: none has failed
    flying    it was sent, and has no answer
    settled   its caller has been told
    """

    __slots__ = (
        "after_map",
        "attempts",
        "body",
        "deadline",
        "done",
        "flying",
        "future",
        "how",
        "key",
        "lane",
        "numbers",
        "sequence",
        "service",
        "session",
        "settled",
    )

    def __init__(
        self, how: How, body: bytes, deadline: float, done: Done | None, future: Future[bytes] | None = None
    ) -> None:
        self.how = how
        self.body = body
        self.deadline = deadline
        self.done = done
        self.future = future
        self.lane: Lane | None = None
        self.service: str | None = None
        self.key: bytes | None = None
        self.session: GroupSession | None = None
        self.numbers = False
        self.sequence = 0
        self.after_map = -1
        self.attempts: Attempts | None = None
        self.flying = self.settled = False

    @property
    def abandoned(self) -> bool:
        """Whether its caller was cancelled, so that nobody asks for its outcome any more."""
        return self.future is not None and self.future.cancelled()

    @property
    def reads(self) -> bool:
        """Whether it changes nothing."""
        return self.how[0] not in _CHANGES

    @property
    def unknown(self) -> bool:
        """Whether an earlier attempt may have happened."""
        return isinstance(self.attempts, NumberedAttempts) and self.attempts.unknown

    def failed(self, problem: MultiRaftError) -> None:
        """An attempt has failed. Raises what another one would not change, as `attempts.py` decides."""
        self.flying = False
        if self.attempts is None:
            kind = self.how[0]
            self.attempts = NumberedAttempts(False) if kind == NUMBERED else Attempts(_KIND_NAMES[kind])  # type: ignore[arg-type]
        self.attempts.failed(problem)

    def late(self) -> MultiRaftError:
        """Return what the caller is told when the time is up."""
        cause = self.lane.cause if self.lane is not None else None
        if self.attempts is not None and self.attempts.cause is not None:
            cause = self.attempts.cause
        if self.flying:
            if self.reads:
                return ReadFailed("no answer within the call's time; retry")
            return OutcomeUnknown("no answer within the call's time: the command may have happened, or may happen yet")
        where = f"group {self.lane.group_id}" if self.lane is not None else f"service {self.service!r}"
        said = f"{type(cause).__name__}: {cause}" if cause else "no node that serves it could be asked"
        text = f"{where} did not serve the call within its time; last: {said}"
        late: MultiRaftError = NotReady(text) if cause is None or isinstance(cause, _NOBODY) else DeadlineExceeded(text)
        late.__cause__ = cause
        return late if self.attempts is None else self.attempts.late(late)


class Lane:
    """The way to one group.

    members     the nodes with a replica of it, as the map says
    leader      who leads it, as was last said; None: nobody knows
    near        its calls ask a replica of the asked node, whoever leads
    queue       calls to be sent
    unnumbered  calls that wait for the session
    session     this client's; None: not registered yet, or ended
    enrolling   the registration on its way
    placed      it stands in a link's list, waits for a connection, or is paused
    paused      everybody was asked, and is asked again shortly
    relayed     the node that it stands with is to ask the leader itself
    tried       who could not serve, in this round
    cause       why, as was last said
    backoff_s   how long the next pause is, at most
    """

    __slots__ = (
        "backoff_s",
        "cause",
        "enrolling",
        "group_id",
        "leader",
        "members",
        "near",
        "paused",
        "placed",
        "queue",
        "relayed",
        "session",
        "tried",
        "unnumbered",
    )

    def __init__(self, group_id: GroupId, members: tuple[NodeId, ...], leader: NodeId | None, near: bool) -> None:
        self.group_id = group_id
        self.members = members
        self.leader = leader
        self.near = near
        self.queue: list[Call] = []
        self.unnumbered: list[Call] = []
        self.session: GroupSession | None = None
        self.enrolling: Call | None = None
        self.placed = self.paused = self.relayed = False
        self.tried: set[NodeId] = set()
        self.cause: MultiRaftError | None = None
        self.backoff_s = BACKOFF_FIRST_S

    def serves(self, node_id: NodeId | None) -> None:
        """A call was answered: whatever was wrong is over. node_id: who leads, if the answer was its own."""
        if node_id is not None:
            self.leader = node_id
        if self.cause is not None:
            self.cause = None
            self.tried.clear()
            self.backoff_s = BACKOFF_FIRST_S

    def serves_not(self, node_id: NodeId, problem: MultiRaftError) -> None:
        """A node could not serve: look elsewhere, first where it says."""
        self.cause = problem
        self.tried.add(node_id)
        hint = problem.leader if isinstance(problem, NotLeader) else None
        if hint is not None and hint not in self.tried:
            self.leader = hint
        elif self.leader == node_id:
            self.leader = None

    def round_over(self) -> float:
        """Everybody was asked: return how long to wait, at most, before asking again. Calls may end with Halted."""
        self.tried.clear()
        self.leader = None
        pause_s, self.backoff_s = self.backoff_s, min(2 * self.backoff_s, BACKOFF_MOST_S)
        return pause_s


_CHANGES: Final = frozenset(at for at, name in enumerate(KINDS) if name in (*CHANGING, "numbered"))
_KIND_NAMES: Final = tuple("read" if at == NEAR else name for at, name in enumerate(KINDS))
