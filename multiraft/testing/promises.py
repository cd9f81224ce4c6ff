"""What leaves a node against what its disk holds at that moment: promises are about the disk, so they come after it.

A vote, a vote's request and the answer to an append each say something that must survive a power cut. Here each of
them is compared, as it is handed to the transport, with the disk of the node that says it. What a node claims to lead
is compared with what its cores lead.

Rules of this file: it looks and never touches; only disks that tell the truth about syncing are judged.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Final

from multiraft.engine.replica import Replica
from multiraft.messages import (
    AppendAnswer,
    LeadAll,
    LeadDelta,
    NodeMessage,
    PreVoteAnswer,
    RequestVote,
    VoteAnswer,
)
from multiraft.raft import LEADER
from multiraft.singly import singly
from multiraft.storage import MemoryDisk
from multiraft.testing.platter import hard_state, last_entry, removed
from multiraft.types import GroupId, NodeId, Term

_PROMISING: Final = frozenset((AppendAnswer, PreVoteAnswer, RequestVote, VoteAnswer))


class Promises:
    """Judges the messages of one run of one node.

    replicas  the node's, by group
    report    called with each violation
    counts    "promises": how many were compared with the disk
    """

    def __init__(
        self,
        node_id: NodeId,
        disk: MemoryDisk,
        replicas: Mapping[GroupId, Replica],
        report: Callable[[str], None],
        counts: Counter[str],
    ) -> None:
        self._node_id = node_id
        self._disk = disk
        self._replicas = replicas
        self._report = report
        self._counts = counts

    def sends(self, to: NodeId, messages: Sequence[NodeMessage]) -> None:
        """These are handed to the transport now."""
        for message in singly(messages):
            if type(message) in _PROMISING and removed(self._disk, message.group_id, message.sender):  # type: ignore[union-attr]
                continue
            if isinstance(message, AppendAnswer):
                self._answers(to, message)
            elif isinstance(message, VoteAnswer):
                self._votes(to, message)
            elif isinstance(message, RequestVote):
                self._asks(to, message)
            elif isinstance(message, PreVoteAnswer):
                self._stored_term(to, message.group_id, message.term, "answers a pre-vote")
            elif isinstance(message, LeadAll):
                for group_id, term, _ in message.led:
                    self._claims(to, group_id, term)
            elif isinstance(message, LeadDelta):
                for group_id, term, _ in message.added:
                    self._claims(to, group_id, term)

    def _stored_term(self, to: NodeId, group_id: GroupId, term: Term, what: str) -> None:
        if not self._disk.sync:
            return
        self._counts["promises"] += 1
        state = hard_state(self._disk, group_id)
        if state is None or state.term < term:
            has = f"term {state.term}" if state is not None else "nothing"
            self._early(to, group_id, f"{what} in term {term}", has)

    def _votes(self, to: NodeId, message: VoteAnswer) -> None:
        self._stored_term(to, message.group_id, message.term, "answers a vote")
        state = hard_state(self._disk, message.group_id)
        if not message.granted or not self._disk.sync or state is None:
            return
        if state.term == message.asked_term and state.vote != message.to:
            what = f"votes for replica {message.to} in term {message.asked_term}"
            self._early(to, message.group_id, what, f"a vote for {state.vote or 'nobody'}")

    def _asks(self, to: NodeId, message: RequestVote) -> None:
        group_id, term = message.group_id, message.term
        self._stored_term(to, group_id, term, "asks for a vote")
        state = hard_state(self._disk, group_id)
        if not self._disk.sync or state is None or state.term != term:
            return
        if state.vote != message.sender:
            self._early(to, group_id, f"asks for votes in term {term}", f"its own vote for {state.vote or 'nobody'}")
        index, last_term = last_entry(self._disk, group_id)
        if (last_term, index) < (message.last_term, message.last_index):
            names = f"names a log that ends at ({message.last_index}, term {message.last_term})"
            self._early(to, group_id, names, f"one that ends at ({index}, term {last_term})")

    def _answers(self, to: NodeId, message: AppendAnswer) -> None:
        group_id = message.group_id
        self._stored_term(to, group_id, message.term, "answers an append")
        if not message.accepted or not self._disk.sync:
            return
        state = hard_state(self._disk, group_id)
        if state is None or state.term != message.term:
            return  # the log on the disk may be a later leader's already
        index, _ = last_entry(self._disk, group_id)
        if index < message.index:
            what = f"acknowledges index {message.index} in term {message.term}"
            self._early(to, group_id, what, f"a log that ends at {index}")

    def _claims(self, to: NodeId, group_id: GroupId, term: Term) -> None:
        replica = self._replicas.get(group_id)
        if replica is None or replica.core.role is not LEADER or replica.core.term != term:
            is_now = f"{replica.core.role.name.lower()} in term {replica.core.term}" if replica else "without a replica"
            self._report(
                f"lead sets: group {group_id}: node {self._node_id} tells {to} that it leads term {term}, "
                f"but it is {is_now}"
            )

    def _early(self, to: NodeId, group_id: GroupId, what: str, has: str) -> None:
        self._report(
            f"durable before acknowledged: group {group_id}: node {self._node_id} {what} to {to}; its disk has {has}"
        )
