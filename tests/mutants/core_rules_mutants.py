"""Mutants of what the consensus core keeps of the rules of liveness, by the names in ARCHITECTURE.md.

Rules of this file: see `Mutant`; in the order of the rules.
"""

from __future__ import annotations

from typing import Final

from tests.mutants.mutant import Mutant

ELECTION: Final = "multiraft/raft/election.py"
RAFT: Final = "multiraft/raft/raft.py"
REPLICATION: Final = "multiraft/raft/replication.py"
STATE: Final = "multiraft/raft/state.py"

RULES: Final = "tests/raft/test_liveness_rules.py"

CORE_RULES_MUTANTS: Final = (
    Mutant(
        "L04-core",
        "a refused leader adopts the higher term and steps down",
        ELECTION,
        "if self.role is LEADER and self.term == term and higher > term:",
        "if higher < term:",
        (f"{RULES}::test_L04_a_refused_leader_adopts_the_higher_term_and_steps_down_at_once",),
    ),
    Mutant(
        "L05-pre-vote",
        "a late pre-vote rejection raises no follower's term",
        ELECTION,
        "        if self.role is not PRE_CANDIDATE or message.asked_term != self.term + 1:\n            return\n",
        "        if not message.granted and message.term > self.term:\n"
        "            self._become_follower(message.term, NOBODY, now)\n"
        "        if self.role is not PRE_CANDIDATE or message.asked_term != self.term + 1:\n            return\n",
        (f"{RULES}::test_L05_a_late_pre_vote_rejection_does_not_raise_a_followers_term",),
    ),
    Mutant(
        "L05-vote",
        "a vote rejection raises the term only of the candidate that asked",
        ELECTION,
        "if self.role is not CANDIDATE or message.asked_term != self.term:",
        "if message.term <= self.term and (self.role is not CANDIDATE or message.asked_term != self.term):",
        (f"{RULES}::test_L05_a_vote_rejection_raises_the_term_only_of_the_candidate_that_asked",),
    ),
    Mutant(
        "L05-append",
        "an append rejection raises the term only of a leader",
        REPLICATION,
        "        if self.role is not LEADER:\n            return\n        peer = self.progress.get(message.sender)",
        "        if message.term > self.term and not message.accepted:\n"
        "            self._become_follower(message.term, NOBODY, now)\n"
        "        if self.role is not LEADER:\n            return\n"
        "        peer = self.progress.get(message.sender)",
        (f"{RULES}::test_L05_an_append_rejection_raises_the_term_only_of_a_leader",),
    ),
    Mutant(
        "L11-vote",
        "a loyal replica refuses votes",
        ELECTION,
        "return self.role is LEADER or self._contacts.loyal(self.group_id, self.term, now)",
        "return self.role is LEADER",
        (f"{RULES}::test_L11_a_loyal_replica_refuses_votes_and_pre_votes_and_keeps_its_term",),
    ),
    Mutant(
        "L11-pre-vote",
        "a loyal replica refuses pre-votes",
        ELECTION,
        "            and not self._contacts.loyal(self.group_id, self.term, now)\n",
        "",
        (f"{RULES}::test_L11_a_loyal_replica_refuses_votes_and_pre_votes_and_keeps_its_term",),
    ),
    Mutant(
        "L11-campaign",
        "a loyal replica starts no campaign",
        ELECTION,
        "elif (loyal := self._contacts.loyal(self.group_id, self.term, now)) or not electable:",
        "elif (loyal := False) or not electable:",
        (f"{RULES}::test_L11_a_loyal_replica_starts_no_campaign",),
    ),
    Mutant(
        "L11-pre-candidate",
        "a pre-candidate asks its loyalty again before the campaign proper",
        ELECTION,
        "            if self._contacts.loyal(self.group_id, self.term, now):\n                self._become",
        "            if self.term < 0:\n                self._become",
        (f"{RULES}::test_L11_a_pre_candidate_asks_again_before_the_campaign_proper",),
    ),
    Mutant(
        "L16-retry-forced",
        "the force belongs to the one campaign that TimeoutNow caused",
        RAFT,
        "            self.campaign(now)\n",
        "            self.campaign(now, self.role == 2)\n",
        (f"{RULES}::test_L16_the_force_belongs_to_the_one_campaign_that_timeout_now_caused",),
    ),
    Mutant(
        "L16-any-term",
        "TimeoutNow of another term does nothing",
        ELECTION,
        "if message.term == self.term and self.role in",
        "if self.role in",
        (f"{RULES}::test_L16_timeout_now_of_another_term_does_nothing",),
    ),
    Mutant(
        "L17-timer-early",
        "a candidate's timer starts when its self-vote is durable",
        ELECTION,
        "        self.deadline = math.inf\n        if self.membership.replicas",
        "        self._arm(now)\n        if self.membership.replicas",
        (f"{RULES}::test_L17_a_candidates_timer_starts_when_its_self_vote_is_durable",),
    ),
    Mutant(
        "L17-campaign-again",
        "no new campaign before the self-vote is durable",
        ELECTION,
        "if self.role is LEADER or self._vote_pending:",
        "if self.role is LEADER:",
        (f"{RULES}::test_L17_no_new_campaign_before_that_so_a_slow_disk_does_not_make_terms_climb",),
    ),
    Mutant(
        "L17-any-write",
        "only the write with its own term makes the self-vote durable",
        RAFT,
        "if self._vote_pending and hard_state_term == self.term:",
        "if self._vote_pending:",
        (f"{RULES}::test_L17_only_the_write_with_its_own_term_counts",),
    ),
    Mutant(
        "L19-deposed-unarmed",
        "whoever stops leading holds a deadline",
        STATE,
        "if (rises or self.role is not FOLLOWER) and self.deadline == math.inf:",
        "if rises and self.role is FOLLOWER and self.deadline == math.inf:",
        (f"{RULES}::test_L19_whoever_stops_leading_holds_a_deadline",),
    ),
    Mutant(
        "L19-risen-unarmed",
        "a rise of the term arms a deadline",
        STATE,
        "if (rises or self.role is not FOLLOWER) and self.deadline == math.inf:",
        "if self.role is not FOLLOWER and self.deadline == math.inf:",
        (f"{RULES}::test_L19_a_rise_of_the_term_ends_loyalty_and_arms_a_deadline",),
    ),
    Mutant(
        "L20-append-clears",
        "an append never clears a deadline",
        REPLICATION,
        "            self.leader = leader\n        self._rearm_if_armed(now)\n",
        "            self.leader = leader\n        self.deadline = float('inf')\n",
        (
            f"{RULES}::test_L20_an_append_lengthens_a_deadline_but_never_clears_it",
            f"{RULES}::test_L20_an_ex_leaders_append_after_its_removal_leaves_the_deadline",
        ),
    ),
    Mutant(
        "L20-append-arms",
        "an append brings back no deadline that the lead set took away",
        STATE,
        "        if self.deadline != math.inf:\n            self._arm(now)",
        "        self._arm(now)",
        (f"{RULES}::test_L20_where_the_lead_set_took_the_deadline_away_an_append_does_not_bring_it_back",),
    ),
    Mutant(
        "L25-one-half",
        "in a joint membership the staler half's contact decides",
        ELECTION,
        " and most_agree(membership.outgoing, self._is_in_contact)\n",
        "\n",
        (f"{RULES}::test_L25_in_a_joint_membership_the_staler_half_decides",),
    ),
)
