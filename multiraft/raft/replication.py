"""Log replication: what a leader sends, what a follower accepts, and when an entry is committed.

Ongaro's thesis, sections 3.5 and 3.6. The leader's appends are made when the engine asks for `ready()`, so that all
that came in one turn leaves as one append per follower. An append carries the leader's commit, and its receiver
takes at most the last entry of that very append (L26); a commit told alone is never more than what the receiver has
acknowledged in this term.

Rules of this file: an entry that is committed or verified is never taken away; a leader commits by counting only
from its own first entry on (section 3.6.2); nothing that a non-member answers changes anything; replicas are visited
by id.
"""

from __future__ import annotations

from multiraft.errors import invariant
from multiraft.messages import Append, AppendAnswer, Committed, CommitTo, TimeoutNow
from multiraft.raft.progress import LOST, PROBE, SNAPSHOT, Progress
from multiraft.raft.quorum import majority_index
from multiraft.raft.ready import FOLLOWER, LEADER
from multiraft.raft.state import ReplicaState
from multiraft.records import Record, cut_record
from multiraft.types import INDEX_MAX, NOBODY, Index, ReplicaId, Term


class Replication(ReplicaState):
    """The layer that moves entries. See the file's text."""

    __slots__ = ()

    # ------------------------------------------------------------------------------------------- leader: sending

    def _replicate(self) -> None:
        """Queue the appends that the windows allow; followers that are at the same place share their records."""
        last = self.log.last_index
        shared_next: Index = 0
        shared: list[Record] = []
        shared_bytes = 0
        settings = self._settings
        for peer in self._peers:
            while peer.ready_for(last, settings.inflight_messages, settings.inflight_bytes):
                if peer.next > last:  # a probe that only asks
                    self._send(peer, [])
                    peer.probe_sent = True
                    break
                if peer.next != shared_next:
                    shared_next = peer.next
                    shared = self._records_from(shared_next)
                    shared_bytes = sum([len(record.raw) for record in shared])
                self._send(peer, shared)
                if peer.state is PROBE:
                    peer.probe_sent = True
                else:
                    peer.sent(shared[-1].last, shared_bytes)

    def _records_from(self, first: Index) -> list[Record]:
        """Return the records of one append that starts at `first`; whole ones, but where `first` is inside one."""
        log = self.log
        found = log.records(first, log.last_index, self._settings.append_bytes)
        if found[0].first < first:
            found[0] = cut_record(self.group_id, found[0], first, found[0].last)
        return found

    def _send(self, peer: Progress, records: list[Record]) -> None:
        prev_index = peer.next - 1
        end = records[-1].last if records else prev_index
        prev_term = records[0].prev_term if records else self.log.term(prev_index)
        peer.told = max(peer.told, min(self.commit, end))
        self._messages.append(
            Append(
                self.commit, self.group_id, prev_index, prev_term, tuple(records), self.replica_id, self.term,
                peer.replica_id,
            )
        )  # fmt: skip

    def poke(self, replica_id: ReplicaId) -> None:
        """What was on its way to `replica_id` may be lost: ask it again where it is, with the next `ready()`.

        Does nothing unless this replica leads and `replica_id` is another member.
        """
        peer = self.progress.get(replica_id)
        if peer is not None and replica_id != self.replica_id:
            peer.confirming = False
            if peer.state is LOST:
                peer.probe(self.log.last_index + 1)
            elif peer.state is SNAPSHOT:
                peer.probe(peer.pending + 1)
            else:
                peer.probe(peer.next if peer.state is PROBE else peer.match + 1)

    @property
    def commit_untold(self) -> bool:
        """Whether a follower has acknowledged entries of whose commit no append has told it."""
        commit = self.commit
        for peer in self._peers:  # noqa: SIM110 - on the hot path, any() of a generator costs twice as much
            if peer.told < commit and peer.told < peer.match and peer.state is not LOST:
                return True
        return False

    def all_told(self, commit: Index) -> bool:
        """Whether every follower was told of that commit, as far as it has acknowledged entries up to there."""
        for peer in self._peers:
            if peer.told < commit and peer.told < peer.match and peer.state is not LOST:
                return False
        return True

    def commit_messages(self) -> list[CommitTo]:
        """Return what tells those followers, each at most what it has acknowledged; they count as told then."""
        messages = []
        for peer in self._peers:
            commit = min(self.commit, peer.match)
            if peer.told < commit and peer.state is not LOST:
                peer.told = commit
                messages.append(CommitTo(commit, self.group_id, self.replica_id, self.term, peer.replica_id))
        return messages

    # ------------------------------------------------------------------------------------------- leader: answers

    def _on_append_answer(self, message: AppendAnswer, now: float) -> None:
        if self.role is not LEADER:
            return
        peer = self.progress.get(message.sender)
        if peer is None or peer.replica_id == self.replica_id:
            return
        if message.term != self.term:
            # L5: only the role that asks learns a higher term from a rejection.
            if message.term > self.term and not message.accepted:
                self._become_follower(message.term, NOBODY, now)
            return
        if not message.accepted:
            self._on_rejection(peer, message)
        elif peer.state is not LOST:
            invariant(message.index <= self.log.last_index, "a follower acknowledges only what this leader sent")
            if peer.state is SNAPSHOT and peer.resumes(message.index, self.log.start.index):
                peer.probe(message.index + 1)
            if peer.accepted(message.index):
                if not peer.caught_up:
                    peer.judge_round(self.log.last_index, now, self._settings.election_timeout_s)
                if message.index > self.commit:
                    self._advance_commit()
                if self._transfer_to == peer.replica_id:
                    self._transfer_if_caught_up()

    def _on_rejection(self, peer: Progress, message: AppendAnswer) -> None:
        rejected = message.index
        if peer.state is LOST or peer.state is SNAPSHOT:
            return
        if peer.state is PROBE and (not peer.probe_sent or rejected != peer.next - 1):
            return  # of an append that was sent before the probe
        if rejected <= peer.match:
            # Late, or the disk that acknowledged it is lost: what it says of `match` itself will tell.
            if peer.confirming and peer.state is PROBE:
                peer.lose()
            else:
                peer.probe(peer.match + 1)
                peer.confirming = True
            return
        agreed, agreed_term = self.log.agreement(message.hint_index, message.hint_term)
        if message.hint_index < agreed or agreed_term > message.hint_term or rejected <= self.log.start.index:
            peer.probe(0)  # what it needs lies before the start of this log: see snapshots.py
        else:
            peer.probe(min(agreed + 1, rejected))

    def _advance_commit(self) -> None:
        """Commit what a majority of each half holds, once that reaches an entry of this term (section 3.6.2)."""
        membership = self.membership
        index = self._held(membership.voters)
        if membership.outgoing:
            index = min(index, self._held(membership.outgoing))
        if index > self.commit and index >= self._office_index:
            self.commit = index
            if self._tail:
                self._shorten_tail()

    def _held(self, voters: tuple[ReplicaId, ...]) -> Index:
        find = self.progress.get
        return majority_index(
            [0 if (peer := find(voter)) is None or peer.state is LOST else peer.match for voter in voters]
        )

    # --------------------------------------------------------------------------------------------- leader: reads

    def acknowledge_round(self, replica_id: ReplicaId, round_id: int) -> None:
        """`replica_id` acknowledged a beat that was sent at or after read round `round_id` was registered (L10).

        Rounds only grow; a lower one than before, or a replica that is no member, changes nothing.
        """
        peer = self.progress.get(replica_id)
        if peer is not None and round_id > peer.acked_round:
            peer.acked_round = round_id
            if self._reads:
                self._confirm_reads()

    def _confirm_reads(self) -> None:
        confirmed = min(self._round_of(self.membership.voters), self._round_of(self.membership.outgoing))
        count = 0
        for round_id, _ in self._reads:
            if round_id > confirmed:
                break
            count += 1
        if count:
            self._read_states += self._reads[:count]
            del self._reads[:count]

    def _round_of(self, voters: tuple[ReplicaId, ...]) -> int:
        rounds = []
        for voter in voters:
            if voter == self.replica_id:
                rounds.append(INDEX_MAX)
            else:
                peer = self.progress.get(voter)
                rounds.append(-1 if peer is None or peer.state is LOST else peer.acked_round)
        return majority_index(rounds)

    # ------------------------------------------------------------------------------------------ leader: transfer

    def _transfer_if_caught_up(self) -> None:
        """Ask the target to campaign once it holds the whole log; the log does not grow meanwhile (section 3.10)."""
        if self.progress[self._transfer_to].match == self.log.last_index:
            self._timeout_now_sent = True
            self._messages.append(TimeoutNow(self.group_id, self.replica_id, self.term, self._transfer_to))

    # -------------------------------------------------------------------------------------------------- follower

    def _on_append(self, message: Append, now: float) -> None:
        if message.term < self.term:
            self._reject(message, 0, 0)  # of no use but for its term
            return
        self._heed(message.sender, message.term, now)
        log = self.log
        records = message.records
        prev_index = message.prev_index
        if prev_index == log.last_index and message.prev_term == log.last_term:
            for record in records:
                self._store(record)
        elif prev_index > log.last_index or (prev_index > self.commit and log.term(prev_index) != message.prev_term):
            self._reject(message, *log.agreement(prev_index, message.prev_term))
            return
        else:
            self._merge(records)
        end = records[-1].last if records else prev_index
        if end > self._verified:
            self._verified = end
        commit = min(message.commit, end)
        if commit > self.commit:
            self.commit = commit
        self._accept(message.sender, end)

    def _heed(self, leader: ReplicaId, term: Term, now: float) -> None:
        """`leader` sends this replica entries, or a snapshot, in `term`, which is at least the own one."""
        if term > self.term or self.role is not FOLLOWER:
            invariant(term > self.term or self.role is not LEADER, "a term has one leader")
            self._become_follower(term, leader, now)
        elif self.leader != leader:
            stranger = leader not in self.membership.nodes  # what told of a leader knew only its node
            invariant(self.leader == NOBODY or stranger, "a term has one leader")
            self.leader = leader
        self._rearm_if_armed(now)

    def _merge(self, records: tuple[Record, ...]) -> None:
        """Store what is new of `records`, whose first one follows an entry that matches.

        Entries that match stay, those after the append included; from the first one that does not, the log is
        taken away (section 3.5). Entries up to the commit match by leader completeness (section 3.6.3), or this
        replica must halt.
        """
        log = self.log
        for record in records:
            if record.first == log.last_index + 1:
                self._store(record)
                continue
            known = min(record.last, self.commit)
            if known >= record.first and known > log.start.index:
                invariant(log.term(known) == record.term, "a leader has every committed entry")
            low = max(record.first, self.commit + 1)
            high = min(record.last, log.last_index)
            new = log.last_index + 1  # the first entry of the record that is not in the log as it is
            if low <= high:
                new = low if log.term(low) != record.term else log.agreement(high, record.term)[0] + 1
            if new > record.last:
                continue
            if new <= log.last_index:
                invariant(new > self._verified, "a leader does not contradict itself")
                self._truncate(new)
            self._store(cut_record(self.group_id, record, new, record.last))

    def _on_commit_to(self, message: CommitTo) -> None:
        if message.term == self.term and self.role is not LEADER:
            commit = min(message.commit, self._verified)
            if commit > self.commit:
                self.commit = commit

    def _on_committed(self, message: Committed) -> None:
        log, index = self.log, message.index
        if self.role is not LEADER and self.commit < index <= log.last_index and log.term(index) == message.index_term:
            self.commit = index

    def _accept(self, leader: ReplicaId, index: Index) -> None:
        answers = self._answers
        if answers:
            latest = answers[-1]
            if (
                type(latest) is AppendAnswer
                and latest.accepted
                and latest.to == leader
                and latest.term == self.term
                and latest.index <= index
            ):
                latest.index = index  # it says all that the earlier one said
                return
        answers.append(AppendAnswer(True, self.group_id, 0, 0, index, self.replica_id, self.term, leader))

    def _reject(self, message: Append, hint_index: Index, hint_term: Term) -> None:
        self._answers.append(
            AppendAnswer(
                False, self.group_id, hint_index, hint_term, message.prev_index, self.replica_id, self.term,
                message.sender,
            )
        )  # fmt: skip
