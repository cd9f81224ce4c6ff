"""Elections: how a group comes by a leader, and how a leader finds out that it is none any more.

Ongaro's thesis: section 3.4 (elections), 3.6.1 (who may be elected), 6.2 (check-quorum), 9.6 (pre-vote), 3.10 and
4.2.3 (leadership transfer, and why its votes are forced). Pre-vote and check-quorum are always on.

Rules of this file: a candidate's term, self-vote and log are on disk before it asks for a vote, and its timer starts
only then (L17); a loyal replica neither campaigns nor helps to, unless forced (L11); the force belongs to the one
campaign that TimeoutNow caused (L16); a refusal raises a term only in the role and round that asked (L5).
"""

from __future__ import annotations

import math

from multiraft.messages import Committed, PreVote, PreVoteAnswer, RequestVote, TimeoutNow, VoteAnswer
from multiraft.raft.progress import LOST, REPLICATE, Progress
from multiraft.raft.quorum import elected, hopeless, most_agree
from multiraft.raft.ready import CANDIDATE, FOLLOWER, LEADER, PRE_CANDIDATE
from multiraft.raft.reconfiguration import Reconfiguration
from multiraft.records import NOOP, encode_record
from multiraft.types import FOUNDING_INDEX, NOBODY, Index, ReplicaId, Term


class Elections(Reconfiguration):
    """The layer that makes and unmakes leaders. See the file's text."""

    __slots__ = ()

    # ------------------------------------------------------------------------------------------------ candidates

    def campaign(self, now: float, forced: bool = False) -> None:
        """Try to become the leader: ask first whether it can succeed (pre-vote), then for votes.

        Does nothing but re-arm the deadline, and forget who led before, where this replica is no voter, has an empty
        log or a committed membership change that has not taken effect, or is loyal (L11; its leader is not forgotten).
        `forced` skips the pre-vote and loyalty, for this one campaign (L16). A leader, and a candidate whose
        self-vote is not on disk yet (L17), go on as they are. `now` is the patience clock, in seconds. Raises
        CorruptRecord.
        """
        self._now = now
        if self.role is LEADER or self._vote_pending:
            return
        self._take_effect()  # who takes over from a leader that was removed hears of that in the same moment
        electable = self._electable()
        if electable and forced:
            self._stand(now, True)
        elif (loyal := self._contacts.loyal(self.group_id, self.term, now)) or not electable:
            if self.role is not FOLLOWER:
                self._become_follower(self.term, NOBODY, now)
            elif not (forced or loyal):
                self.leader = NOBODY  # who was known by an append alone has fallen silent, or leads without this one
            self._rearm_if_armed(now)
        else:
            self._leave_role()
            self.role = PRE_CANDIDATE
            self.leader = NOBODY
            self._arm(now)
            self._votes = {self.replica_id: True}
            if self._won():
                self._stand(now, False)
                return
            log = self.log
            for peer in self._other_voters():
                self._messages.append(
                    PreVote(self.group_id, log.last_index, log.last_term, self.replica_id, self.term + 1, peer)
                )

    def _electable(self) -> bool:
        """A voter that is not empty, and whose membership is as new as its commit.

        An emptied one could vote, or lead, away what it once held.
        """
        return (
            self.membership.is_voter(self.replica_id)
            and self.log.last_index >= FOUNDING_INDEX
            and not (self._changes and self._changes[0] <= self.commit)
        )

    def _other_voters(self) -> list[ReplicaId]:
        membership = self.membership
        return sorted({*membership.voters, *membership.outgoing} - {self.replica_id})

    def _won(self) -> bool:
        membership = self.membership
        return elected(membership.voters, membership.outgoing, [v for v, yes in self._votes.items() if yes])

    def _stand(self, now: float, forced: bool) -> None:
        """The campaign proper. The requests leave after the persist; what can be won alone is won here."""
        self._leave_role()
        self._raise_term(self.term + 1)
        self.vote = self.replica_id
        self.role = CANDIDATE
        self.leader = NOBODY
        self._votes = {self.replica_id: True}
        self._vote_pending = True
        self._timer_due = False
        self.deadline = math.inf
        if self.membership.replicas == (self.replica_id,):
            self._become_leader(now)  # nobody hears of this term before it is on disk
            return
        log = self.log
        for peer in self._other_voters():
            self._answers.append(
                RequestVote(
                    forced, self.group_id, log.last_index, log.last_term, self.replica_id, self.term, peer
                )
            )  # fmt: skip

    def _vote_durable(self) -> None:
        """The self-vote is on disk: the candidate's timer starts (L17)."""
        self._vote_pending = False
        if self._won():
            self._become_leader(self._now)  # the only voter, with learners to tell
        else:
            self._start_timer_at_tick()

    def _on_pre_vote_answer(self, message: PreVoteAnswer, now: float) -> None:
        if self.role is not PRE_CANDIDATE or message.asked_term != self.term + 1:
            return
        if not self.membership.is_voter(message.sender):
            return
        if not message.granted and message.term > self.term:
            self._become_follower(message.term, NOBODY, now)
            return
        self._votes.setdefault(message.sender, message.granted)
        if self._won():
            if self._contacts.loyal(self.group_id, self.term, now):
                self._become_follower(self.term, NOBODY, now)  # L11: a leader has come up since the question
            else:
                self._stand(now, False)
        elif self._lost():
            self._become_follower(self.term, NOBODY, now)

    def _on_vote_answer(self, message: VoteAnswer, now: float) -> None:
        if self.role is not CANDIDATE or message.asked_term != self.term:
            return
        if not self.membership.is_voter(message.sender):
            return
        if message.term > self.term:
            self._become_follower(message.term, NOBODY, now)
            return
        self._votes.setdefault(message.sender, message.granted)
        if self._won():
            self._become_leader(now)
        elif self._lost():
            self._become_follower(self.term, NOBODY, now)

    def _lost(self) -> bool:
        membership = self.membership
        return hopeless(membership.voters, membership.outgoing, [v for v, yes in self._votes.items() if not yes])

    def _on_timeout_now(self, message: TimeoutNow, now: float) -> None:
        """The leader hands over. Only a follower of that leader's term obeys, once: its term is higher then."""
        if message.term == self.term and self.role in (FOLLOWER, PRE_CANDIDATE):
            self.campaign(now, forced=True)

    # ---------------------------------------------------------------------------------------------------- voters

    def _on_pre_vote(self, message: PreVote, now: float) -> None:
        """Say whether the vote would be given; change nothing (section 9.6)."""
        granted = (
            message.term > self.term
            and self.role is not LEADER
            and self._up_to_date(message.last_term, message.last_index)
            and not self._contacts.loyal(self.group_id, self.term, now)
        )
        self._answers.append(
            PreVoteAnswer(message.term, granted, self.group_id, self.replica_id, self.term, message.sender)
        )
        if not granted and not self.membership.is_voter(self.replica_id):
            self._tell_committed(message)

    def _tell_committed(self, message: PreVote) -> None:
        """Tell one that asks in vain what it may have and not know to be committed: that may be all that it lacks.

        A leader that a change took the vote from may be the only one to know that the change is committed. It cannot
        lead again, and its log may be longer than those that could: they need its vote as long as they do not know.
        """
        log = self.log
        index = min(self.commit, message.last_index)
        if index >= log.start.index and index > FOUNDING_INDEX:
            self._messages.append(
                Committed(self.group_id, index, log.term(index), self.replica_id, self.term, message.sender)
            )

    def _on_request_vote(self, message: RequestVote, now: float) -> None:
        """Judge a candidate, also one that is not in the membership yet (section 4.2.3 has a server vote for any)."""
        granted = False
        if message.term >= self.term and (message.forced or not self._resists(now)):
            if message.term > self.term:
                self._become_follower(message.term, NOBODY, now)
            granted = self.vote in (NOBODY, message.sender) and self._up_to_date(message.last_term, message.last_index)
        if granted:
            if self.role is PRE_CANDIDATE:
                self._become_follower(self.term, NOBODY, now)
            self.vote = message.sender
            self._rearm_if_armed(now)
        self._answers.append(
            VoteAnswer(message.term, granted, self.group_id, self.replica_id, self.term, message.sender)
        )

    def _resists(self, now: float) -> bool:
        """A leader that has its quorum, and whoever is loyal to one, help nobody else (sections 4.2.3 and 6.4.1)."""
        return self.role is LEADER or self._contacts.loyal(self.group_id, self.term, now)

    def _up_to_date(self, last_term: Term, last_index: Index) -> bool:
        """Whether a log that ends there may lead this replica (section 3.6.1). An empty replica votes for nobody."""
        log = self.log
        return log.last_index >= FOUNDING_INDEX and (last_term, last_index) >= (log.last_term, log.last_index)

    # --------------------------------------------------------------------------------------------------- leaders

    def _become_leader(self, now: float) -> None:
        """Take office with a no-op: only an entry of the own term commits those before it (section 3.6.2)."""
        self._leave_role()
        log = self.log
        self.role = LEADER
        self.leader = self.replica_id
        self._timer_due = False
        self.deadline = math.inf
        self._office_since = now
        self._office_index = log.last_index + 1
        self.progress = {replica: Progress(replica, self._office_index) for replica in self.membership.replicas}
        for peer in self.progress.values():
            peer.begin_round(log.last_index, now)
        own = self.progress.setdefault(self.replica_id, Progress(self.replica_id, self._office_index))
        for last, size_bytes in log.sizes_after(self.commit):
            self._lengthen_tail(last, size_bytes)
        own.match = log.stable
        own.state = REPLICATE
        self._peers = [peer for replica, peer in self.progress.items() if replica != self.replica_id]
        # Stamped 0: the replicated clock never runs behind the entry before.
        self._store(encode_record(self.group_id, self._office_index, self.term, log.last_term, NOOP, 0, [b""]))

    def check_quorum(self, now: float) -> None:
        """Step down if it is longer than an election timeout ago that a quorum was in contact (section 6.2).

        A contact is the send time of an acknowledged beat; having been elected counts as one with everybody. In a
        joint membership the staler half decides (L25). Does nothing unless this replica leads.
        """
        self._now = now
        if self.role is not LEADER:
            return
        membership = self.membership
        if not (
            most_agree(membership.voters, self._is_in_contact) and most_agree(membership.outgoing, self._is_in_contact)
        ):
            self._become_follower(self.term, NOBODY, now)

    def _is_in_contact(self, voter: ReplicaId) -> bool:
        if voter == self.replica_id:
            return True
        peer = self.progress.get(voter)
        if peer is None or peer.state is LOST:
            return False
        timeout_s = self._settings.election_timeout_s
        if self._now - self._office_since <= timeout_s:
            return True
        node_id = self.membership.nodes[voter]
        return self._now - self._contacts.contact_s(self.group_id, self.term, voter, node_id) <= timeout_s

    def step_down(self, now: float) -> None:
        """Stop leading or campaigning, at the same term: this node cannot serve (a store that failed or stalled)."""
        self._now = now
        if self.role is not FOLLOWER:
            self._become_follower(self.term, NOBODY, now)

    def refused(self, term: Term, higher: Term) -> None:
        """L4: a follower of this leader of `term` is at `higher`: adopt that and step down at once.

        Changes nothing unless this replica leads in `term`, and `higher` is higher.
        """
        if self.role is LEADER and self.term == term and higher > term:
            self._become_follower(higher, NOBODY, self._now)
            self._start_timer_at_tick()
