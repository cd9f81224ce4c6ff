"""What peers send, from the transport to the cores.

Rules of this file: nothing is handled before its turn; a message reaches a core only if it is for that very replica,
and comes from the node on which its sender lives; what is dropped is counted.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final, cast

from multiraft.engine.replica import Replica
from multiraft.errors import CorruptRecord, InvariantViolation
from multiraft.gathered import Acks, Appends
from multiraft.messages import (
    AppendAnswer,
    AskRemoved,
    Beat,
    BeatAnswer,
    CommitTo,
    CreateReplica,
    HostingMessage,
    InstallSnapshot,
    LeadAll,
    LeadAsk,
    LeadDelta,
    LivenessMessage,
    NodeMessage,
    PreVote,
    PreVoteAnswer,
    RaftMessage,
    Refuse,
    RemovedReplica,
    RequestVote,
    VoteAnswer,
)
from multiraft.types import NodeId

if TYPE_CHECKING:
    from multiraft.engine.engine import Engine

_HOSTING: Final = frozenset((AskRemoved, CreateReplica, RemovedReplica))
_LIVENESS: Final = frozenset((Beat, BeatAnswer, LeadAll, LeadAsk, LeadDelta, Refuse))
_VOTED: Final = frozenset((PreVoteAnswer, VoteAnswer))
_STRANGERS_MAX: Final = 64


class Incoming:
    """The messages that wait for the coming turn of one engine.

    counters  what was dropped, by reason
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._inbox: list[tuple[NodeId, int, Sequence[NodeMessage]]] = []
        self.counters = {"unknown_group": 0, "forged_sender": 0, "wrong_replica": 0, "removed_sender": 0}

    def add(self, node_id: NodeId, incarnation: int, messages: Sequence[NodeMessage]) -> None:
        """Take a peer's messages; the next turn handles them."""
        self._inbox.append((node_id, incarnation, messages))

    def handle(self, now: float) -> None:
        """Handle everything that has come, in the order of its coming."""
        inbox, self._inbox = self._inbox, []
        engine = self._engine
        for node_id, incarnation, messages in inbox:
            for message in messages:
                kind = type(message)
                if kind is Acks:
                    engine.ordinary.acknowledged(node_id, cast(Acks, message), now)
                elif kind is Appends:
                    engine.ordinary.appended(node_id, cast(Appends, message), now)
                elif kind in _LIVENESS:
                    engine.liveness.received(node_id, cast(LivenessMessage, message), incarnation, now)
                elif kind in _HOSTING:
                    engine.residents.received(node_id, cast(HostingMessage, message))
                else:
                    self.step(node_id, cast(RaftMessage, message), now)

    def step(self, node_id: NodeId, message: RaftMessage, now: float) -> None:
        """Hand one message of `node_id` to the core that it is for, if it may have come from there."""
        engine = self._engine
        replica = engine.replicas.get(message.group_id)
        if replica is None or replica.broken is not None:
            self.counters["unknown_group"] += 1
            return
        core = replica.core
        if message.to != core.replica_id:
            self.counters["wrong_replica"] += 1
            return
        if core.membership.nodes.get(message.sender) != node_id and not self._admits(replica, node_id, message):
            return
        if type(message) is InstallSnapshot and replica.data is not None and not engine.ondisk.takes(replica, message):
            return
        role, term = core.role, core.term
        try:  # written out: this is the hot path of `touching`
            if type(message) is not InstallSnapshot or not engine.transfers.fetching.takes(
                replica, node_id, message, now
            ):
                core.step(message, now)
        except (InvariantViolation, CorruptRecord) as problem:
            engine.broke(replica, problem)
            return
        if type(message) is InstallSnapshot and replica.data is not None:
            engine.ondisk.stepped(replica, replica.data)
        if type(message) in _VOTED and core.role is role and core.term == term:
            return  # a vote more, of one who has enough or lacks some
        if type(message) is AppendAnswer and core.settled(message.sender):
            if core.commit_untold:
                engine.upkeep.tell_commit_later(replica)
            return
        if type(message) is CommitTo:
            engine.ordinary.commits(replica)
            return
        engine.note(replica, now)

    def _admits(self, replica: Replica, node_id: NodeId, message: RaftMessage) -> bool:
        """Judge a message of a replica that the membership here does not know to live on that node.

        A replica that was removed is told so; one that this replica has not heard of yet lives where its messages
        come from, as its id is given once and for all.
        """
        membership, sender = replica.core.membership, message.sender
        if membership.removed(sender):
            self.counters["removed_sender"] += 1
            if type(message) is PreVote or type(message) is RequestVote:
                self._engine.residents.tell_removed(replica, sender, node_id)
            return False
        if len(replica.strangers) >= _STRANGERS_MAX and sender not in replica.strangers:
            replica.strangers = {}
        if sender in membership.nodes or replica.strangers.get(sender, node_id) != node_id:
            self.counters["forged_sender"] += 1
            return False
        replica.strangers = {**replica.strangers, sender: node_id}
        return True
