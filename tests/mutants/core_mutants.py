"""Mutants of the consensus core: what must be on disk before what, who is elected, and what is committed.

Rules of this file: see `Mutant`; in the order of the thesis.
"""

from __future__ import annotations

from typing import Final

from tests.mutants.mutant import Mutant

ELECTION: Final = "multiraft/raft/election.py"
LOG: Final = "multiraft/raft/log.py"
PROGRESS: Final = "multiraft/raft/progress.py"
QUORUM: Final = "multiraft/raft/quorum.py"
RAFT: Final = "multiraft/raft/raft.py"
REPLICATION: Final = "multiraft/raft/replication.py"
STATE: Final = "multiraft/raft/state.py"

ELECTIONS: Final = "tests/raft/test_elections.py"
ORDERING: Final = "tests/raft/test_ordering.py"
FOLLOWER: Final = "tests/raft/test_replication.py::TestFollower"
COMMIT: Final = "tests/raft/test_replication.py::TestCommit"
LEADER: Final = "tests/raft/test_replication.py::TestLeader"
EDGES: Final = "tests/raft/test_safety_edges.py"
READS: Final = "tests/raft/test_reads.py"

PERSISTING: Final = (
    Mutant(
        "vote-answer-early",
        "a vote answer leaves only after the vote is on disk",
        ELECTION,
        "self._answers.append(\n            VoteAnswer(",
        "self._messages.append(\n            VoteAnswer(",
        (f"{ORDERING}::test_a_vote_answer_leaves_only_after_the_vote_is_on_disk",),
    ),
    Mutant(
        "pre-vote-answer-early",
        "a pre-vote answer leaves only after the latest write",
        ELECTION,
        "self._answers.append(\n            PreVoteAnswer(",
        "self._messages.append(\n            PreVoteAnswer(",
        (f"{ORDERING}::test_a_pre_vote_answer_is_a_promise_like_any_other_answer",),
    ),
    Mutant(
        "request-vote-early",
        "RequestVote leaves only after term, self-vote and log are on disk",
        ELECTION,
        "self._answers.append(\n                RequestVote(",
        "self._messages.append(\n                RequestVote(",
        (f"{ORDERING}::test_a_request_for_votes_leaves_only_after_term_self_vote_and_log_are_on_disk",),
    ),
    Mutant(
        "append-answer-early",
        "an append answer leaves only after its entries are on disk",
        REPLICATION,
        "answers.append(AppendAnswer(True",
        "self._messages.append(AppendAnswer(True",
        (
            f"{ORDERING}::test_an_append_answer_leaves_only_after_the_entries_are_on_disk",
            f"{ORDERING}::test_an_answer_that_writes_nothing_itself_waits_for_the_write_before",
        ),
    ),
    Mutant(
        "followed-term-not-written",
        "a term that follow() raised is in the next hard state",
        RAFT,
        "rises = self.term != self._written_term or self.vote",
        "rises = self.vote",
        (f"{ORDERING}::test_a_term_that_a_claim_raised_is_in_the_next_hard_state",),
    ),
    Mutant(
        "vote-alone-not-written",
        "a vote in a term that was known before is written",
        RAFT,
        "rises = self.term != self._written_term or self.vote != self._written_vote",
        "rises = self.term != self._written_term",
        (f"{EDGES}::test_a_vote_in_a_term_that_was_known_before_is_written_too",),
    ),
    Mutant(
        "vote-not-in-hard-state",
        "the hard state holds the vote",
        RAFT,
        "HardState(self.term, self.vote, commit)",
        "HardState(self.term, 0, commit)",
        (
            f"{ELECTIONS}::TestVotes::test_a_vote_is_remembered_over_a_crash",
            f"{ORDERING}::test_a_vote_answer_leaves_only_after_the_vote_is_on_disk",
        ),
    ),
    Mutant(
        "own-disk-counts-early",
        "a leader, the only voter included, counts its own disk only after its persist",
        RAFT,
        "stamp_ms, entries))\n",
        "stamp_ms, entries))\n        self.progress[self.replica_id].match = log.last_index\n        self._advance_commit()\n",
        (
            f"{ORDERING}::test_a_single_voter_commits_only_after_its_own_persist",
            f"{ORDERING}::test_a_leaders_appends_leave_at_once_and_its_own_disk_counts_only_after",
        ),
    ),
    Mutant(
        "applied-before-own-disk",
        "only what is on the own disk is applied, and answered to callers",
        RAFT,
        "committed = log.stable if log.stable < commit else commit",
        "committed = commit",
        (f"{COMMIT}::test_only_what_is_on_the_own_disk_is_applied",),
        also=(
            (
                "(self.commit <= self._shown_committed or self.log.stable <= self._shown_committed)",
                "self.commit <= self._shown_committed",
            ),
        ),
    ),
    Mutant(
        "self-vote-counts-early",
        "the only voter leads its learners only when its self-vote is on disk",
        ELECTION,
        "if self.membership.replicas == (self.replica_id,):",
        "if self._won():",
        (f"{ELECTIONS}::TestLeaders::test_a_single_voter_with_learners_leads_only_when_its_term_is_on_disk",),
    ),
    Mutant(
        "stale-report-counts",
        "a report of a write counts only while what it wrote still stands",
        LOG,
        "self._in_flight = [(last, term, min(to, conflict - 1)) for",
        "self._in_flight = [(last, term, to) for",
        (
            "tests/raft/test_log.py::TestStable::test_the_same_entries_coming_back_do_not_revive_an_old_report",
            f"{ORDERING}::test_a_report_counts_only_while_what_it_wrote_still_stands",
        ),
    ),
    Mutant(
        "stable-not-taken-back",
        "what a conflict takes away is no longer stable",
        LOG,
        "self.stable = min(self.stable, conflict - 1)",
        "self.stable = self.stable",
        ("tests/raft/test_log.py::TestStable::test_stable_goes_back_with_a_conflict",),
    ),
    Mutant(
        "conflict-keeps-stored-keys",
        "a conflict deletes every stored key from there on",
        LOG,
        "self._delete(self._reader.read_firsts(self.group_id, conflict))",
        "self._deleted = None",
        (
            "tests/raft/test_log.py::TestConflicts::test_keys_below_memory_are_asked_of_the_store",
            f"{FOLLOWER}::test_a_conflict_names_every_stored_key_and_those_on_their_way",
        ),
    ),
)

VOTING: Final = (
    Mutant(
        "two-votes-in-a-term",
        "one vote in a term",
        ELECTION,
        "granted = self.vote in (NOBODY, message.sender) and self",
        "granted = self",
        (f"{ELECTIONS}::TestVotes::test_only_the_first_candidate_of_a_term_gets_the_vote",),
    ),
    Mutant(
        "longer-log-wins",
        "the later last term decides, before the length",
        ELECTION,
        "(last_term, last_index) >= (log.last_term, log.last_index)",
        "last_index >= log.last_index",
        (f"{ELECTIONS}::TestVotes::test_only_an_up_to_date_log_gets_votes_and_pre_votes",),
    ),
    Mutant(
        "any-log-wins",
        "only an up-to-date log gets votes (3.6.1)",
        ELECTION,
        " and (last_term, last_index) >= (log.last_term, log.last_index)",
        "",
        (
            f"{ELECTIONS}::TestVotes::test_only_an_up_to_date_log_gets_votes_and_pre_votes",
            f"{ELECTIONS}::TestLeaders::test_a_leader_has_every_committed_entry",
        ),
    ),
    Mutant(
        "empty-replica-votes",
        "an emptied replica never votes",
        ELECTION,
        "return log.last_index >= FOUNDING_INDEX and (last_term",
        "return (last_term",
        (f"{ELECTIONS}::TestWhoTakesPart::test_an_empty_replica_neither_votes_nor_campaigns",),
    ),
    Mutant(
        "stranger-counts-as-voter",
        "vote answers of non-members are ignored",
        ELECTION,
        "message.asked_term != self.term:\n            return\n        if not self.membership.is_voter(message.sender):\n            return",
        "message.asked_term != self.term:\n            return",
        (f"{ELECTIONS}::TestWhoTakesPart::test_answers_from_non_members_are_ignored",),
    ),
    Mutant(
        "vote-quorum-off-by-one",
        "more than half of the voters elect",
        QUORUM,
        "if voter in chosen) > len(voters)",
        "if voter in chosen) >= len(voters)",
        (f"{ELECTIONS}::TestVotes::test_a_majority_elects",),
    ),
    Mutant(
        "vote-one-half-elects",
        "a joint election is won in both halves",
        QUORUM,
        "return majority_of(voters, granted) and majority_of(outgoing, granted)",
        "return majority_of(voters, granted)",
        (f"{LEADER}::test_a_joint_membership_needs_both_halves",),
    ),
    Mutant(
        "no-check-quorum",
        "a leader without contact to a quorum steps down (6.2)",
        ELECTION,
        "            self._become_follower(self.term, NOBODY, now)\n\n    def _is_in_contact",
        "            pass\n\n    def _is_in_contact",
        (f"{ELECTIONS}::TestCheckQuorum::test_the_quorums_newest_contact_decides",),
    ),
    Mutant(
        "check-quorum-off-by-one",
        "a quorum's newest contact, not the next one's",
        QUORUM,
        "missing = len(voters) // 2 + 1",
        "missing = (len(voters) + 1) // 2",
        (f"{EDGES}::test_one_peer_of_three_is_no_quorum_for_a_leader",),
    ),
)

COMMITTING: Final = (
    Mutant(
        "commit-quorum-off-by-one",
        "a majority holds what is committed",
        QUORUM,
        "held[(len(held) - 1) // 2]",
        "held[len(held) // 2]",
        ("tests/raft/test_quorum.py::test_commit_is_what_a_majority_holds",),
    ),
    Mutant(
        "commit-by-one",
        "nothing is committed, and answered, by one disk alone",
        QUORUM,
        "held[(len(held) - 1) // 2]",
        "held[-1]",
        (
            f"{LEADER}::test_entries_are_committed_when_a_majority_has_stored_them",
            "tests/node/test_crashes.py::test_no_acknowledgement_before_a_quorum_has_synced",
        ),
    ),
    Mutant(
        "commit-one-half",
        "in a joint membership both halves hold what is committed",
        REPLICATION,
        "index = min(index, self._held(membership.outgoing))",
        "index = min(index, index)",
        (f"{LEADER}::test_a_joint_membership_needs_both_halves",),
    ),
    Mutant(
        "commit-prior-term",
        "entries of earlier terms are not committed by counting (3.6.2)",
        REPLICATION,
        "if index > self.commit and index >= self._office_index:",
        "if index > self.commit:",
        (f"{ELECTIONS}::TestLeaders::test_entries_of_earlier_terms_are_committed_only_through_one_of_the_own_term",),
    ),
    Mutant(
        "match-goes-back",
        "what a replica acknowledged is never taken back",
        PROGRESS,
        "if index <= self.match:",
        "if index == self.match:",
        (f"{EDGES}::test_a_late_acknowledgement_does_not_take_match_back",),
    ),
    Mutant(
        "append-answer-of-earlier-term",
        "append answers of an earlier term do not count",
        REPLICATION,
        "                self._become_follower(message.term, NOBODY, now)\n            return\n        if not message.accepted:",
        "                self._become_follower(message.term, NOBODY, now)\n                return\n        if not message.accepted:",
        (f"{LEADER}::test_answers_of_another_term_do_not_count",),
    ),
    Mutant(
        "learner-counts",
        "only voters count toward a commit",
        REPLICATION,
        "index = self._held(membership.voters)",
        "index = self._held(membership.replicas)",
        (f"{EDGES}::test_learners_make_no_majority_however_many_they_are",),
    ),
    Mutant(
        "delayed-append-truncates",
        "a delayed append takes nothing away",
        REPLICATION,
        "            self._merge(records)\n",
        "            self._merge(records)\n"
        "            tail = records[-1].last if records else prev_index\n"
        "            if self.commit <= tail < log.last_index:\n"
        "                log.truncate(tail + 1)\n",
        (f"{FOLLOWER}::test_the_log_after_an_append_that_fits",),
    ),
    Mutant(
        "append-anywhere",
        "an append whose predecessor differs is rejected (3.5)",
        REPLICATION,
        " or (prev_index > self.commit and log.term(prev_index) != message.prev_term):",
        ":",
        (f"{FOLLOWER}::test_an_append_that_does_not_fit_is_rejected_with_the_last_place_that_can_agree",),
    ),
    Mutant(
        "committed-entry-contradicted",
        "a replica halts when a leader contradicts what is committed (3.6.3)",
        REPLICATION,
        'invariant(log.term(known) == record.term, "a leader has every committed entry")',
        "known = 0",
        (f"{FOLLOWER}::test_a_committed_entry_is_never_taken_away",),
    ),
    Mutant(
        "commit-beyond-append",
        "an append commits at most its own last entry (L26)",
        REPLICATION,
        "commit = min(message.commit, end)",
        "commit = min(message.commit, log.last_index)",
        (f"{COMMIT}::test_an_append_commits_at_most_its_own_last_entry",),
    ),
    Mutant(
        "commit-told-beyond-match",
        "a commit told alone is at most what that follower acknowledged",
        REPLICATION,
        "commit = min(self.commit, peer.match)",
        "commit = self.commit",
        (f"{LEADER}::test_a_commit_told_alone_is_at_most_what_that_follower_acknowledged",),
    ),
    Mutant(
        "commit-told-trusted",
        "a commit told alone counts up to what was acknowledged in this term",
        REPLICATION,
        "commit = min(message.commit, self._verified)",
        "commit = min(message.commit, self.log.last_index)",
        (f"{COMMIT}::test_a_commit_told_alone_counts_up_to_what_was_acknowledged_in_this_term",),
    ),
    Mutant(
        "verified-outlives-term",
        "what was acknowledged in an earlier term does not count",
        STATE,
        "        self.vote = NOBODY\n        self._verified = 0\n",
        "        self.vote = NOBODY\n",
        (f"{COMMIT}::test_what_was_acknowledged_in_an_earlier_term_does_not_count",),
    ),
    Mutant(
        "settled-with-appends-left",
        "an answer that opens the window has the next append sent",
        RAFT,
        "            and peer.next > self.log.last_index\n",
        "",
        (f"{EDGES}::test_an_answer_that_settles_leaves_nothing_to_do",),
    ),
    Mutant(
        "settled-with-commit-left",
        "an answer that commits has the commit applied",
        RAFT,
        "and (self.commit <= self._shown_committed or self.log.stable <= self._shown_committed)",
        "and self.commit > 0",
        (f"{EDGES}::test_an_answer_that_settles_leaves_nothing_to_do",),
        works=False,
    ),
    Mutant(
        "settled-with-message-left",
        "an answer that a transfer waited for has TimeoutNow sent",
        RAFT,
        "and not (self._messages or self._answers or self._read_states)",
        "and self.commit > 0",
        (f"{EDGES}::test_an_answer_that_lets_a_transfer_go_on_settles_nothing",),
    ),
    Mutant(
        "read-without-own-commit",
        "no ReadIndex before a commit of the leader's own term (L10, 6.4)",
        RAFT,
        "return self.role is LEADER and self.commit >= self._office_index",
        "return self.role is LEADER",
        (f"{READS}::test_no_read_before_a_commit_of_the_leaders_own_term",),
    ),
    Mutant(
        "read-without-quorum",
        "a read waits for a quorum's acknowledgements (6.4)",
        REPLICATION,
        "            if round_id > confirmed:\n                break\n",
        "",
        (
            f"{READS}::test_a_read_is_answered_when_a_quorum_acknowledged_its_round",
            "tests/node/test_promises_kept.py::test_a_leader_cut_off_answers_no_read_from_its_past",
        ),
    ),
    Mutant(
        "read-of-deposed-leader",
        "a deposed leader answers none of its reads",
        STATE,
        "            self._reads = []",
        "            self._read_states += self._reads\n            self._reads = []",
        (f"{READS}::test_a_deposed_leader_answers_none_of_its_reads",),
    ),
)

CORE_MUTANTS: Final = (*PERSISTING, *VOTING, *COMMITTING)
