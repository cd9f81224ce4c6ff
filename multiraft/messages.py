"""What nodes say to each other, as values. How they become bytes stands in multiraft.transport.wire.

Five families:

    consensus  between two replicas of one group; `sender` and `to` are replica ids
    liveness   between two nodes: beats, and what the sender leads toward the receiver
    hosting    between two nodes: which replicas must, and must no longer, live on the receiver
    forming    between two nodes, before they share a cluster
    calls      request and response, for work forwarded to a leader

Rules of this file: values only; a message knows nothing of connections. `__slots__` are sorted: their order is the
order on the wire.
"""

from __future__ import annotations

from typing import ClassVar, TypeAlias

from multiraft.gathered import Acks, Appends
from multiraft.records import Record
from multiraft.types import GroupId, Index, NodeId, ReplicaId, Term

# ---------------------------------------------------------------------------------------------------- consensus


class PreVote:
    """Would you vote for me at `term`? Changes nothing at the receiver (thesis, section 9.6)."""

    CODE: ClassVar[int] = 1
    __slots__ = ("group_id", "last_index", "last_term", "sender", "term", "to")

    def __init__(
        self, group_id: GroupId, last_index: Index, last_term: Term, sender: ReplicaId, term: Term, to: ReplicaId
    ) -> None:
        self.group_id = group_id
        self.last_index = last_index
        self.last_term = last_term
        self.sender = sender
        self.term = term
        self.to = to


class PreVoteAnswer:
    """`asked_term` repeats the request's term; `term` is the answering replica's own."""

    CODE: ClassVar[int] = 2
    __slots__ = ("asked_term", "granted", "group_id", "sender", "term", "to")

    def __init__(
        self, asked_term: Term, granted: bool, group_id: GroupId, sender: ReplicaId, term: Term, to: ReplicaId
    ) -> None:
        self.asked_term = asked_term
        self.granted = granted
        self.group_id = group_id
        self.sender = sender
        self.term = term
        self.to = to


class RequestVote:
    """Vote for me at `term`. `forced`: this campaign was asked for by the leader itself (thesis, section 4.2.3)."""

    CODE: ClassVar[int] = 3
    __slots__ = ("forced", "group_id", "last_index", "last_term", "sender", "term", "to")

    def __init__(
        self,
        forced: bool,
        group_id: GroupId,
        last_index: Index,
        last_term: Term,
        sender: ReplicaId,
        term: Term,
        to: ReplicaId,
    ) -> None:
        self.forced = forced
        self.group_id = group_id
        self.last_index = last_index
        self.last_term = last_term
        self.sender = sender
        self.term = term
        self.to = to


class VoteAnswer:
    """`asked_term` repeats the request's term; `term` is the answering replica's own."""

    CODE: ClassVar[int] = 4
    __slots__ = ("asked_term", "granted", "group_id", "sender", "term", "to")

    def __init__(
        self, asked_term: Term, granted: bool, group_id: GroupId, sender: ReplicaId, term: Term, to: ReplicaId
    ) -> None:
        self.asked_term = asked_term
        self.granted = granted
        self.group_id = group_id
        self.sender = sender
        self.term = term
        self.to = to


class Append:
    """Store these records after (`prev_index`, `prev_term`); with none, only check that entry (a probe).

    commit   the leader's commit; the receiver takes min(commit, last entry of this append)
    records  consecutive, the first one starting at prev_index + 1
    """

    CODE: ClassVar[int] = 5
    __slots__ = ("commit", "group_id", "prev_index", "prev_term", "records", "sender", "term", "to")

    def __init__(
        self,
        commit: Index,
        group_id: GroupId,
        prev_index: Index,
        prev_term: Term,
        records: tuple[Record, ...],
        sender: ReplicaId,
        term: Term,
        to: ReplicaId,
    ) -> None:
        self.commit = commit
        self.group_id = group_id
        self.prev_index = prev_index
        self.prev_term = prev_term
        self.records = records
        self.sender = sender
        self.term = term
        self.to = to


class AppendAnswer:
    """The answer to one Append; leaves only when what it says is on disk.

    accepted    index: the last entry of that append, now stored
    otherwise   index: the append's prev_index, which does not match; (hint_index, hint_term): the last place
                where this log can agree with one whose entry at prev_index has the term that the append named
    """

    CODE: ClassVar[int] = 6
    __slots__ = ("accepted", "group_id", "hint_index", "hint_term", "index", "sender", "term", "to")

    def __init__(
        self,
        accepted: bool,
        group_id: GroupId,
        hint_index: Index,
        hint_term: Term,
        index: Index,
        sender: ReplicaId,
        term: Term,
        to: ReplicaId,
    ) -> None:
        self.accepted = accepted
        self.group_id = group_id
        self.hint_index = hint_index
        self.hint_term = hint_term
        self.index = index
        self.sender = sender
        self.term = term
        self.to = to


class CommitTo:
    """All entries up to `commit` are committed; never above what the receiver acknowledged in this term."""

    CODE: ClassVar[int] = 7
    __slots__ = ("commit", "group_id", "sender", "term", "to")

    def __init__(self, commit: Index, group_id: GroupId, sender: ReplicaId, term: Term, to: ReplicaId) -> None:
        self.commit = commit
        self.group_id = group_id
        self.sender = sender
        self.term = term
        self.to = to


class TimeoutNow:
    """The leader of `term` asks the receiver to campaign at once (thesis, section 3.10)."""

    CODE: ClassVar[int] = 8
    __slots__ = ("group_id", "sender", "term", "to")

    def __init__(self, group_id: GroupId, sender: ReplicaId, term: Term, to: ReplicaId) -> None:
        self.group_id = group_id
        self.sender = sender
        self.term = term
        self.to = to


class Committed:
    """The entry at `index`, of `index_term`, is committed: true for ever, whoever says it, and in whatever term.

    What a replica without a vote tells one that asks for its vote and does not get it. The change that took the vote
    away may be committed there alone, and whoever asks may need nothing but to know that.
    """

    CODE: ClassVar[int] = 10
    __slots__ = ("group_id", "index", "index_term", "sender", "term", "to")

    def __init__(
        self, group_id: GroupId, index: Index, index_term: Term, sender: ReplicaId, term: Term, to: ReplicaId
    ) -> None:
        self.group_id = group_id
        self.index = index
        self.index_term = index_term
        self.sender = sender
        self.term = term
        self.to = to


class InstallSnapshot:
    """Take this state in place of your log up to `index`; answered by an AppendAnswer, as an append would be.

    index, index_term  the last entry that the snapshot covers
    membership         as of that entry: bytes of `multiraft.membership.pack_membership`
    data               the state machine's state there; empty where it is the initial one
    """

    CODE: ClassVar[int] = 9
    __slots__ = ("data", "group_id", "index", "index_term", "membership", "sender", "term", "to")

    def __init__(
        self,
        data: bytes,
        group_id: GroupId,
        index: Index,
        index_term: Term,
        membership: bytes,
        sender: ReplicaId,
        term: Term,
        to: ReplicaId,
    ) -> None:
        self.data = data
        self.group_id = group_id
        self.index = index
        self.index_term = index_term
        self.membership = membership
        self.sender = sender
        self.term = term
        self.to = to


class Installing:
    """The sender is at work on the snapshot of `index` that it was sent: it fetches the file that holds the state.

    gone  that file cannot be had: a newer snapshot is asked for
    """

    CODE: ClassVar[int] = 11
    __slots__ = ("gone", "group_id", "index", "sender", "term", "to")

    def __init__(
        self, gone: bool, group_id: GroupId, index: Index, sender: ReplicaId, term: Term, to: ReplicaId
    ) -> None:
        self.gone = gone
        self.group_id = group_id
        self.index = index
        self.sender = sender
        self.term = term
        self.to = to


RaftMessage: TypeAlias = (
    PreVote
    | PreVoteAnswer
    | RequestVote
    | VoteAnswer
    | Append
    | AppendAnswer
    | CommitTo
    | TimeoutNow
    | InstallSnapshot
    | Installing
    | Committed
)

# ----------------------------------------------------------------------------------------------------- liveness


class Beat:
    """The sender is alive; one per peer and interval, whatever the number of groups.

    ack_sequence, ack_incarnation  the receiver's own last accepted beat, told back to it; 0 if none
    answer_now                     reply with a BeatAnswer in this very turn
    digest                         of the set that the sender leads toward the receiver
    sequence                       never reused within the sender's incarnation
    """

    CODE: ClassVar[int] = 20
    __slots__ = ("ack_incarnation", "ack_sequence", "answer_now", "digest", "incarnation", "sequence")

    def __init__(
        self,
        ack_incarnation: int,
        ack_sequence: int,
        answer_now: bool,
        digest: int,
        incarnation: int,
        sequence: int,
    ) -> None:
        self.ack_incarnation = ack_incarnation
        self.ack_sequence = ack_sequence
        self.answer_now = answer_now
        self.digest = digest
        self.incarnation = incarnation
        self.sequence = sequence


class BeatAnswer:
    """Acknowledges, at once, the beat `sequence` that the receiver sent in `incarnation`."""

    CODE: ClassVar[int] = 21
    __slots__ = ("incarnation", "sequence")

    def __init__(self, incarnation: int, sequence: int) -> None:
        self.incarnation = incarnation
        self.sequence = sequence


class LeadAll:
    """Everything that the sender leads toward the receiver: replaces what the receiver held.

    led  (group_id, term, the receiver's replica_id) of each group
    """

    CODE: ClassVar[int] = 22
    __slots__ = ("led",)

    def __init__(self, led: tuple[tuple[GroupId, Term, ReplicaId], ...]) -> None:
        self.led = led


class LeadDelta:
    """Changes of the lead set: `removed` groups first, then `added` as in LeadAll."""

    CODE: ClassVar[int] = 23
    __slots__ = ("added", "removed")

    def __init__(
        self, added: tuple[tuple[GroupId, Term, ReplicaId], ...], removed: tuple[tuple[GroupId, Term], ...]
    ) -> None:
        self.added = added
        self.removed = removed


class LeadAsk:
    """The digest does not match what I hold of you: send LeadAll."""

    CODE: ClassVar[int] = 24
    __slots__ = ()


class Refuse:
    """You claim `group_id` at `term`; my replica is already at `my_term`, which is higher.

    Two other answers share the message: `my_term` 0 says that there is no such replica here, so that nothing I
    acknowledge counts for the group; `my_term` equal to `term` takes that back.
    """

    CODE: ClassVar[int] = 25
    __slots__ = ("group_id", "my_term", "term")

    def __init__(self, group_id: GroupId, my_term: Term, term: Term) -> None:
        self.group_id = group_id
        self.my_term = my_term
        self.term = term


LivenessMessage: TypeAlias = Beat | BeatAnswer | LeadAll | LeadDelta | LeadAsk | Refuse

# ------------------------------------------------------------------------------------------------------ hosting


class CreateReplica:
    """The group's leader has a member on your node that you say you do not have: make it, empty.

    replica_id  the member; refused unless it is above every id that lived on that node before
    service     the name that the group's state machine was declared under
    """

    CODE: ClassVar[int] = 26
    __slots__ = ("group_id", "replica_id", "service")

    def __init__(self, group_id: GroupId, replica_id: ReplicaId, service: str) -> None:
        self.group_id = group_id
        self.replica_id = replica_id
        self.service = service


class RemovedReplica:
    """Your replica `replica_id` takes part in the group no longer, as of the committed membership at `index`."""

    CODE: ClassVar[int] = 27
    __slots__ = ("group_id", "index", "replica_id")

    def __init__(self, group_id: GroupId, index: Index, replica_id: ReplicaId) -> None:
        self.group_id = group_id
        self.index = index
        self.replica_id = replica_id


class AskRemoved:
    """Does my replica `replica_id` still take part in the group? If not, its leader says RemovedReplica."""

    CODE: ClassVar[int] = 28
    __slots__ = ("group_id", "replica_id")

    def __init__(self, group_id: GroupId, replica_id: ReplicaId) -> None:
        self.group_id = group_id
        self.replica_id = replica_id


HostingMessage: TypeAlias = CreateReplica | RemovedReplica | AskRemoved

# ------------------------------------------------------------------------------------------------------ forming


class Form:
    """Belong to this cluster; `stores` names the store of every member. A receiver that is named by another stays out.

    stores_admitted      the members whose store came after the forming
    stores_readmissions  how many readmissions `stores` takes into account
    stores_recovery      the cluster's recovery generation
    """

    CODE: ClassVar[int] = 30
    __slots__ = ("cluster_id", "stores", "stores_admitted", "stores_readmissions", "stores_recovery")

    def __init__(
        self,
        cluster_id: bytes,
        stores: tuple[tuple[NodeId, bytes], ...],
        stores_admitted: tuple[NodeId, ...] = (),
        stores_readmissions: int = 0,
        stores_recovery: int = 0,
    ) -> None:
        self.cluster_id = cluster_id
        self.stores = stores
        self.stores_admitted = stores_admitted
        self.stores_readmissions = stores_readmissions
        self.stores_recovery = stores_recovery


class Formed:
    """The sender belongs to `cluster_id`, synced."""

    CODE: ClassVar[int] = 31
    __slots__ = ("cluster_id",)

    def __init__(self, cluster_id: bytes) -> None:
        self.cluster_id = cluster_id


FormingMessage: TypeAlias = Form | Formed

# -------------------------------------------------------------------------------------------------------- calls


class Request:
    """Do `method` with `body` before `timeout_ms` have passed at the receiver; answer under `request_id`."""

    CODE: ClassVar[int] = 40
    __slots__ = ("body", "method", "request_id", "timeout_ms")

    def __init__(self, body: bytes, method: str, request_id: int, timeout_ms: int) -> None:
        self.body = body
        self.method = method
        self.request_id = request_id
        self.timeout_ms = timeout_ms


class Response:
    """The one answer to a request. What `body` means is the method's affair."""

    CODE: ClassVar[int] = 41
    __slots__ = ("body", "request_id")

    def __init__(self, body: bytes, request_id: int) -> None:
        self.body = body
        self.request_id = request_id


CallMessage: TypeAlias = Request | Response
NodeMessage: TypeAlias = RaftMessage | Appends | Acks | LivenessMessage | HostingMessage
"""What the engine sends and takes."""
Message: TypeAlias = NodeMessage | FormingMessage | CallMessage
