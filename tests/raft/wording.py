"""How scenario transcripts put what replicas say and are into words.

An entry is written index@term, as in "3@2": the entry at index 3, of term 2.

Rules of this file: pure functions; no value is left out that decides what a receiver does.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import groupby
from typing import Final

from multiraft.membership import unpack_membership
from multiraft.messages import (
    Append,
    AppendAnswer,
    Committed,
    CommitTo,
    Installing,
    InstallSnapshot,
    PreVote,
    PreVoteAnswer,
    RaftMessage,
    RequestVote,
    TimeoutNow,
    VoteAnswer,
)
from multiraft.raft import Raft, Role
from multiraft.raft.progress import SNAPSHOT, Progress
from multiraft.records import MEMBERSHIP, NOOP, Record
from multiraft.types import NOBODY, Membership, ReplicaId

KINDS: Final[dict[str, type[RaftMessage]]] = {
    "pre-vote": PreVote,
    "pre-vote-answer": PreVoteAnswer,
    "vote": RequestVote,
    "vote-answer": VoteAnswer,
    "append": Append,
    "append-answer": AppendAnswer,
    "commit": CommitTo,
    "committed": Committed,
    "timeout-now": TimeoutNow,
    "snapshot": InstallSnapshot,
    "installing": Installing,
}
"""What scripts call the messages."""
SHOWN_BYTES: Final = 20


def message_text(message: RaftMessage) -> str:
    """Return `message` on one line: who to whom, in which term, and what."""
    return f"{message.sender} -> {message.to}  term {message.term}: {_said(message)}"


def _said(message: RaftMessage) -> str:
    if isinstance(message, PreVote):
        return f"would you vote for me? my log ends at {message.last_index}@{message.last_term}"
    if isinstance(message, PreVoteAnswer):
        return (
            f"{'yes' if message.granted else 'no'}, I would{'' if message.granted else ' not'} in {message.asked_term}"
        )
    if isinstance(message, RequestVote):
        forced = ", the leader wants it" if message.forced else ""
        return f"vote for me; my log ends at {message.last_index}@{message.last_term}{forced}"
    if isinstance(message, VoteAnswer):
        return f"{'my vote' if message.granted else 'no vote'} in {message.asked_term}"
    if isinstance(message, Append):
        return (
            f"append after {message.prev_index}@{message.prev_term}: "
            f"{records_text(message.records) or 'nothing'}; commit {message.commit}"
        )
    if isinstance(message, AppendAnswer):
        if message.accepted:
            return f"stored up to {message.index}"
        return f"refused at {message.index}; we may agree up to {message.hint_index}@{message.hint_term}"
    if isinstance(message, CommitTo):
        return f"committed up to {message.commit}"
    if isinstance(message, Committed):
        return f"{message.index}@{message.index_term} is committed"
    if isinstance(message, InstallSnapshot):
        members = members_text(unpack_membership(message.membership, "a snapshot"))
        return f"snapshot of {message.index}@{message.index_term}: {members}; {len(message.data)} bytes"
    if isinstance(message, Installing):
        return f"snapshot of {message.index}: {'its file is gone' if message.gone else 'its file is on its way'}"
    return "campaign now"


def records_text(records: Iterable[Record]) -> str:
    """Return the entries of `records`, separated by commas; one whose text is just its place is named once."""
    said = []
    for record in records:
        for index, entry in enumerate(record.entries(), record.first):
            place = f"{index}@{record.term}"
            text = entry_text(record.kind, entry)
            said.append(place if text == place else f"{place} {text}")
    return ", ".join(said)


def entry_text(kind: int, entry: bytes) -> str:
    if kind == NOOP:
        return "no-op"
    if kind == MEMBERSHIP:
        return members_text(unpack_membership(entry, "a membership entry"))
    return entry.decode() if len(entry) <= SHOWN_BYTES else f"({len(entry)} bytes)"


def members_text(membership: Membership) -> str:
    """Return who takes part: "voters 1 2 3, learners 4"; both halves where it is joint."""

    def ids(replicas: Iterable[ReplicaId]) -> str:
        return " ".join(map(str, replicas))

    if not membership.voters:
        return "nobody"
    said = [f"voters {ids(membership.voters)}"]
    if membership.joint:
        said[0] += f" and {ids(membership.outgoing)}{', to be left' if membership.auto_leave else ''}"
    if membership.learners:
        said.append(f"learners {ids(membership.learners)}")
    if membership.joining:
        said.append(f"joining {ids(membership.joining)}")
    return ", ".join(said)


def role_text(core: Raft) -> str:
    """Return role, term, and whom it follows: "leader, term 2", "follower of 1, term 2"."""
    name = core.role.name.lower().replace("_", "-")
    of = f" of {core.leader}" if core.role is Role.FOLLOWER and core.leader != NOBODY else ""
    return f"{name}{of}, term {core.term}"


def terms_text(terms: Sequence[int], first: int) -> str:
    """Return a log whose first entry stands at `first` in runs of one term: "2-4 term 1, 5 term 3"."""
    said, index = [], first
    for term, run in groupby(terms):
        last = index + len(list(run)) - 1
        said.append(f"{index}-{last} term {term}" if last > index else f"{index} term {term}")
        index = last + 1
    return ", ".join(said) or "empty"


def progress_text(peer: Progress) -> str:
    """Return what a leader knows of one follower."""
    waits = ", waits for the answer" if peer.probe_sent else ""
    count = len(peer.inflight)
    appends = f"{count} append{'s' if count > 1 else ''}"
    if peer.state is SNAPSHOT:
        waits = f", waits for the snapshot of {peer.pending}" if peer.pending else ", waits until there is one"
    on_the_way = f", {appends} ({peer.inflight_bytes} bytes) on the way" if count else ""
    return f"{peer.state.name.lower()}, match {peer.match}, next {peer.next}{waits}{on_the_way}"
