"""The ordinary case, in few steps: a leader whose followers keep up, and a follower that is sent what follows its log.

Nearly every entry of a busy node takes this way. Each step here does what the general one does (`propose` and `ready`,
`step`, `ready` after `persisted`), for a replica of which nothing else is to be said; where that is not so it changes
nothing and says so, and the general way is to be taken.

    leader     append_own    the queue becomes a record, which is noted as sent to all followers and as being written
               acknowledged  a follower has what it was sent
    follower   append_in_order  a record that follows the log is noted as being written
    both       newly_committed  what the general `ready()` would say, if it is nothing but that more is committed

Rules of this file: whoever calls puts the record, the term, the vote and the commit into the write batch that is open
now, before anything that the replica is asked later; a membership entry never comes this way, nor anything while one
has not taken effect.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

from multiraft.raft.election import Elections
from multiraft.raft.progress import REPLICATE, Progress
from multiraft.raft.ready import FOLLOWER, LEADER, Contacts, CoreSettings, Dice
from multiraft.records import MEMBERSHIP, RECORD_HEADER_BYTES, Record, encode_record
from multiraft.types import NOBODY, Index, ReplicaId, StoredReplica, Term

if TYPE_CHECKING:
    from multiraft.ports import LogReader


NOT_ORDINARY: Final = 0
TAKEN: Final = 1
UNTOLD: Final = 2
ASK_READY: Final = -1


class Ordinary(Elections):
    """The layer of short ways. See the file's text."""

    __slots__ = (
        "_shown_leader",
        "_shown_role",
        "_shown_term",
        "_written_commit",
        "_written_membership",
        "_written_term",
        "_written_vote",
    )

    def __init__(
        self,
        stored: StoredReplica,
        reader: LogReader,
        contacts: Contacts,
        rng: Dice,
        settings: CoreSettings,
        now: float,
        applied: Index,
    ) -> None:
        super().__init__(stored, reader, contacts, rng, settings, now, applied)
        # What was handed out last: `ready()` compares.
        self._written_term = self.term
        self._written_vote = self.vote
        self._written_commit = stored.hard_state.commit
        self._shown_role = FOLLOWER
        self._shown_term = self.term
        self._shown_leader: ReplicaId = NOBODY
        self._written_membership = self.membership.index

    @property
    def followers(self) -> list[Progress]:
        """Leader: the progress of all others, by id."""
        return self._peers

    def _quiet(self) -> bool:
        """Whether `ready()` has nothing to say, but perhaps that more is committed; and will not have by itself."""
        log = self.log
        membership = self.membership
        return (
            log.handed == log.last_index
            and self.role is self._shown_role
            and self.term == self._shown_term
            and self.leader == self._shown_leader
            and self.term == self._written_term
            and self.vote == self._written_vote
            and membership.index == self._written_membership
            and not (
                self._changes
                or self._messages
                or self._answers
                or self._read_states
                or membership.outgoing
                or membership.joining
                or log.deletes
            )
            and self._snapshot is None
        )

    # -------------------------------------------------------------------------------------------------------- leader

    def append_own(self, entries: list[bytes], kind: int, stamp_ms: int) -> Record | None:
        """Append `entries` (at least one) as a record that goes to every follower, and to the disk, now; return it.

        None: it must be proposed in the general way; nothing has changed. To each of `followers` goes an Append of that
        record and the commit.
        """
        if self.role is not LEADER or self._transfer_to != NOBODY or not self._quiet():
            return None
        log, settings = self.log, self._settings
        first = log.last_index + 1
        size_bytes = sum(map(len, entries)) + RECORD_HEADER_BYTES
        if self._tail and self.uncommitted_bytes + size_bytes > settings.uncommitted_bytes:
            return None
        for peer in self._peers:
            if (
                peer.state is not REPLICATE
                or peer.next != first
                or len(peer.inflight) >= settings.inflight_messages
                or peer.inflight_bytes >= settings.inflight_bytes
            ):
                return None
        record = encode_record(self.group_id, first, self.term, log.last_term, kind, stamp_ms, entries)
        log.append_handed(record)
        self._lengthen_tail(record.last, size_bytes)
        commit, raw_bytes = self.commit, len(record.raw)
        for peer in self._peers:
            peer.sent(record.last, raw_bytes)
            if commit > peer.told:
                peer.told = commit
        self._written_commit = commit
        return record

    def acknowledged(self, sender: ReplicaId, term: Term, index: Index, now: float) -> int:
        """`sender` has everything up to `index` of what this leader of `term` sent it, on its disk.

        NOT_ORDINARY: its answer must be taken in the general way; nothing has changed. UNTOLD: it, at least, is to be
        told of a commit; see `commit_untold`. TAKEN otherwise.
        """
        peer = self.progress.get(sender)
        last = self.log.last_index
        if (
            peer is None
            or self.role is not LEADER
            or term != self.term
            or peer.state is not REPLICATE
            or index > last
            or peer.next <= last
            or not peer.caught_up
            or sender == self.replica_id
            or self._transfer_to != NOBODY
        ):
            return NOT_ORDINARY
        self._now = now
        if peer.accepted(index) and index > self.commit:
            self._advance_commit()
        told = peer.told
        return UNTOLD if told < self.commit and told < peer.match else TAKEN

    # ------------------------------------------------------------------------------------------------------ follower

    def append_in_order(
        self, record: Record, prev_index: Index, commit: Index, sender: ReplicaId, term: Term, now: float
    ) -> bool:
        """Take a record that the known leader has sent, and that follows the log; it goes to the disk now.

        When it is there, `sender` is told that everything up to its last entry is. False: the message must be taken in
        the general way; nothing has changed.
        """
        log = self.log
        if (
            term != self.term
            or self.leader != sender
            or self.role is not FOLLOWER
            or self.deadline != math.inf
            or prev_index != log.last_index
            or record.prev_term != log.last_term
            or record.kind == MEMBERSHIP
            or not self._quiet()
        ):
            return False
        self._now = now
        log.append_handed(record)
        last = record.last
        self._verified = last
        if commit > last:  # L26
            commit = last
        if commit > self.commit:
            self.commit = commit
        self._written_commit = self.commit
        return True

    # ---------------------------------------------------------------------------------------------------------- both

    def newly_committed(self) -> Index:
        """After one of the short ways, or `persisted` of what it wrote: what that changed that `ready()` would say.

        Return up to where entries are committed and on this disk, if that is news and all there is to say; this has
        said it then. 0: nothing. ASK_READY: `ready()` must be asked.
        """
        committed, stable = self.commit, self.log.stable
        if stable < committed:
            committed = stable
        if committed <= self._shown_committed:
            return 0
        if not self._quiet():
            return ASK_READY
        self._shown_committed = committed
        return committed
