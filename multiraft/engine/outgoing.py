"""What a turn wants to send, gathered per peer: one batch per peer and lane, whatever the number of groups.

Rules of this file: votes and liveness go on the first lane, in the order given; replication goes on the second; what
the second lane had no room for is remembered, boundedly, for repair.
"""

from __future__ import annotations

from typing import Final, TypeAlias

from multiraft.gathered import AckRow, Acks, AppendRow, Appends
from multiraft.messages import (
    Append,
    AppendAnswer,
    Committed,
    CommitTo,
    HostingMessage,
    Installing,
    InstallSnapshot,
    LivenessMessage,
    NodeMessage,
    PreVote,
    PreVoteAnswer,
    RaftMessage,
    RequestVote,
    TimeoutNow,
    VoteAnswer,
)
from multiraft.ports import Transport
from multiraft.records import Record
from multiraft.singly import singly
from multiraft.types import GroupId, NodeId

_Repaired: TypeAlias = Append | AppendAnswer | CommitTo | InstallSnapshot
_GATHERED_BYTES: Final = 64 * 1024
"""A message of many appends ends at this size, so that frames are cut between messages and not within them."""
_URGENT: Final = frozenset((Committed, Installing, PreVote, PreVoteAnswer, RequestVote, VoteAnswer, TimeoutNow))


class Outgoing:
    """The messages of the current turn."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport
        self._urgent: dict[NodeId, list[NodeMessage]] = {}
        self._bulk: dict[NodeId, list[NodeMessage]] = {}
        self._appends: dict[NodeId, Appends] = {}
        self._acks: dict[NodeId, list[AckRow]] = {}
        self._gathered_bytes: dict[NodeId, int] = {}
        self._reached: set[NodeId] = set()
        self._dropped: dict[tuple[NodeId, GroupId, type], _Repaired] = {}

    def reach(self, node_id: NodeId, connected: bool) -> None:
        """Note whether a peer is connected. To one that is not, nothing is queued: it is resumed when it comes."""
        if connected:
            self._reached.add(node_id)
        else:
            self._reached.discard(node_id)

    def reaches(self, node_id: NodeId) -> bool:
        return node_id in self._reached

    def all_reached(self) -> list[NodeId]:
        """Return all peers that are connected, by name."""
        return sorted(self._reached)

    def urgent(self, node_id: NodeId, message: LivenessMessage | HostingMessage) -> None:
        """Queue a message about nodes for the first lane."""
        if node_id in self._reached:
            self._urgent.setdefault(node_id, []).append(message)

    def consensus(self, node_id: NodeId | None, message: RaftMessage) -> None:
        """Queue a core's message; None, a replica whose node is not known (any more), drops it.

        To a node that is not reached nothing goes, but the newest answer is kept for repair: who asked sees a
        connection of its own as soon as this node dials, before this node knows that it may answer on it.
        """
        if node_id is None:
            return
        if node_id not in self._reached:
            if type(message) is AppendAnswer:
                self._dropped[node_id, message.group_id, AppendAnswer] = message
            return
        lanes = self._urgent if type(message) in _URGENT else self._bulk
        lane = lanes.get(node_id)
        if lane is None:
            lanes[node_id] = [message]
        else:
            lane.append(message)

    def append(self, node_id: NodeId, row: AppendRow, record: Record) -> None:
        """Queue an ordinary append: those of many groups are one message, as long as that is not too large."""
        if node_id not in self._reached:
            return
        appends = self._appends.get(node_id)
        if appends is None:
            appends = self._appends[node_id] = Appends([], [])
            self._gathered_bytes[node_id] = 0
        size_bytes = self._gathered_bytes[node_id] + len(record.raw)
        if size_bytes > _GATHERED_BYTES and appends.rows:
            self._bulk.setdefault(node_id, []).append(appends)
            appends = self._appends[node_id] = Appends([], [])
            size_bytes = len(record.raw)
        appends.records.append(record)
        appends.rows.append(row)
        self._gathered_bytes[node_id] = size_bytes

    def acknowledge(self, node_id: NodeId, rows: list[AckRow]) -> None:
        """Queue ordinary acknowledgements. To a node that is not reached none goes; see `consensus`."""
        if node_id in self._reached:
            self._acks.setdefault(node_id, []).extend(rows)
        else:
            self._keep(node_id, Acks(rows))

    def _keep(self, node_id: NodeId, message: NodeMessage) -> None:
        """A message of the second lane was dropped: remember the newest of each kind, group and peer."""
        for single in singly((message,)):
            if isinstance(single, _Repaired):
                self._dropped[node_id, single.group_id, type(single)] = single

    def send_all(self) -> None:
        """Hand everything to the transport."""
        if self._appends:
            gathered, self._appends = self._appends, {}
            for node_id, appends in gathered.items():
                self._bulk.setdefault(node_id, []).append(appends)
        if self._acks:
            acks, self._acks = self._acks, {}
            for node_id, rows in acks.items():
                self._bulk.setdefault(node_id, []).append(Acks(rows))
        if self._urgent:
            urgent, self._urgent = self._urgent, {}
            for node_id in sorted(urgent):
                self._transport.send(node_id, urgent[node_id], True)
                if node_id not in self._bulk:
                    self._transport.flush(node_id)
        if self._bulk:
            bulk, self._bulk = self._bulk, {}
            for node_id in sorted(bulk):
                if not self._transport.send(node_id, bulk[node_id], False):
                    for message in bulk[node_id]:
                        self._keep(node_id, message)
                self._transport.flush(node_id)

    def take_dropped(self) -> list[tuple[NodeId, _Repaired]]:
        """Hand out the newest dropped message of each kind, group and peer."""
        dropped, self._dropped = self._dropped, {}
        return [(node_id, message) for (node_id, _, _), message in dropped.items()]
