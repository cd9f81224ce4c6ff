"""Mutants of membership changes: when they take effect, who may propose one, and which replicas live where.

Rules of this file: see `Mutant`.
"""

from __future__ import annotations

from typing import Final

from tests.mutants.mutant import Mutant

CHANGES: Final = "multiraft/raft/changes.py"
ELECTION: Final = "multiraft/raft/election.py"
RECONFIGURATION: Final = "multiraft/raft/reconfiguration.py"
REPLICATION: Final = "multiraft/raft/replication.py"
STATE: Final = "multiraft/raft/state.py"
TYPES: Final = "multiraft/types.py"
INCOMING: Final = "multiraft/engine/incoming.py"
OBSERVING: Final = "multiraft/engine/observing.py"
RESIDENTS: Final = "multiraft/engine/residents.py"
UPKEEP: Final = "multiraft/engine/upkeep.py"
VIEW: Final = "multiraft/engine/view.py"
WRITER: Final = "multiraft/engine/writer.py"
LEADING: Final = "multiraft/engine/leading.py"
LIVEPEER: Final = "multiraft/engine/livepeer.py"

OF_CHANGES: Final = "tests/raft/test_changes.py"
CORE: Final = "tests/raft/test_reconfiguration.py"
NODES: Final = "tests/node/test_membership.py"
RESIDING: Final = "tests/node/test_residents.py"
DETAILS: Final = "tests/raft/test_membership_details.py"
FOUND: Final = "tests/node/test_found_by_storm.py"
SIMULATED: Final = "tests/node/test_found_by_simulation.py"

IN_THE_LOG: Final = (
    Mutant(
        "two-changes-at-once",
        "no change is proposed while another is under way",
        RECONFIGURATION,
        "        if self._changes:\n            raise ChangePending",
        "        if not self._in_office():\n            raise ChangePending",
        (f"{CORE}::test_one_change_at_a_time",),
    ),
    Mutant(
        "change-before-own-commit",
        "a new leader proposes no change before an entry of its own term is committed",
        RECONFIGURATION,
        "        if not self._in_office():\n            raise NotReady",
        "        if self._changes:\n            raise NotReady",
        (f"{CORE}::test_a_new_leader_counts_its_whole_log_as_pending",),
    ),
    Mutant(
        "change-of-another-membership",
        "a change is made only to the membership that it was made for",
        RECONFIGURATION,
        "        if expected is not None and expected != current.index:",
        "        if expected is not None and expected > current.index:",
        (f"{CORE}::test_a_change_names_the_membership_that_it_was_made_for",),
    ),
    Mutant(
        "effect-when-appended",
        "a change has no effect before it is committed",
        RECONFIGURATION,
        "        committed = min(self.log.stable, self.commit)",
        "        committed = self.log.stable",
        (f"{CORE}::test_a_change_has_no_effect_before_it_is_committed",),
    ),
    Mutant(
        "effect-before-stored",
        "a change has no effect before it is stored here",
        RECONFIGURATION,
        "        committed = min(self.log.stable, self.commit)",
        "        committed = self.commit",
        (f"{CORE}::test_a_change_has_no_effect_before_it_is_stored_here",),
    ),
    Mutant(
        "campaign-with-change-unapplied",
        "nobody campaigns while a committed change has no effect",
        ELECTION,
        "            and not (self._changes and self._changes[0] <= self.commit)\n",
        "",
        (f"{CORE}::test_nobody_campaigns_while_a_committed_change_has_no_effect",),
    ),
    Mutant(
        "conflict-keeps-change",
        "a conflict takes back a change that was not committed",
        STATE,
        "        while self._changes and self._changes[-1] >= conflict:",
        "        while self._changes and self._changes[-1] < conflict:",
        (f"{CORE}::test_a_conflict_takes_back_a_change_that_was_not_committed",),
    ),
    Mutant(
        "joint-half-ignored",
        "a joint membership commits by both majorities",
        REPLICATION,
        "        if membership.outgoing:\n            index = min(index, self._held(membership.outgoing))\n",
        "",
        ("tests/raft/test_replication.py::TestLeader::test_a_joint_membership_needs_both_halves",),
    ),
    Mutant(
        "joint-left-twice",
        "a joint change is left exactly once",
        RECONFIGURATION,
        "        if self._changes or self._transfer_to != NOBODY or not self._in_office():",
        "        if self._transfer_to != NOBODY or not self._in_office():",
        (f"{CORE}::test_a_joint_change_needs_both_majorities_and_is_left_once_by_the_leader",),
    ),
    Mutant(
        "joint-never-left",
        "the leader ends a joint change by itself",
        RECONFIGURATION,
        "            if membership.auto_leave:",
        "            if not membership.auto_leave:",
        (f"{CORE}::test_a_joint_change_needs_both_majorities_and_is_left_once_by_the_leader",),
    ),
    Mutant(
        "commit-not-counted-anew",
        "a smaller quorum may have committed more: it is counted when the change takes effect",
        RECONFIGURATION,
        "        self._advance_commit()  # the new quorum",
        "        pass  # the new quorum",
        (f"{CORE}::test_a_smaller_quorum_commits_what_it_holds_at_once",),
    ),
    Mutant(
        "two-voters-at-once",
        "more than one voter changes only by a joint change",
        CHANGES,
        "        joint = len(touched) > 1",
        "        joint = False",
        (f"{OF_CHANGES}::test_what_a_change_makes",),
        also=(("    if not joint and len(touched) > 1:", "    if not joint and len(touched) > 99:"),),
    ),
    Mutant(
        "replica-id-again",
        "a replica's id is never given out again",
        CHANGES,
        "        replica_id, self.next_replica_id = self.next_replica_id, self.next_replica_id + 1",
        "        replica_id = max(self.nodes, default=0) + 1\n        self.next_replica_id = replica_id + 1",
        (f"{OF_CHANGES}::test_ids_are_never_given_out_again",),
    ),
)

LEADERS: Final = (
    Mutant(
        "removed-leader-stays",
        "a leader without a vote steps down after the commit",
        RECONFIGURATION,
        "        if not membership.is_voter(self.replica_id):\n            self._resign()",
        "        if not membership.nodes:\n            self._resign()",
        (f"{CORE}::test_a_removed_leader_steps_down_after_commit_and_hands_over",),
    ),
    Mutant(
        "removed-leader-tells-no-commit",
        "a leader that steps down tells what it has committed",
        RECONFIGURATION,
        "        self._messages += self.commit_messages()\n",
        "",
        (f"{CORE}::test_a_removed_leader_steps_down_after_commit_and_hands_over",),
    ),
    Mutant(
        "removed-leader-names-no-heir",
        "a leader that steps down asks the best voter to take over",
        RECONFIGURATION,
        "        if able:",
        "        if not able:",
        (f"{CORE}::test_a_removed_leader_steps_down_after_commit_and_hands_over",),
    ),
    Mutant(
        "transfer-to-the-removed",
        "a transfer to a replica that has no vote any more is given up",
        RECONFIGURATION,
        "        if self._transfer_to != NOBODY and not membership.is_voter(self._transfer_to):",
        "        if self._transfer_to != NOBODY and not membership.nodes:",
        (f"{CORE}::test_a_transfer_to_a_removed_replica_is_given_up",),
    ),
    Mutant(
        "promoted-before-caught-up",
        "a learner is promoted only when it has caught up",
        RECONFIGURATION,
        "            and peer.caught_up\n",
        "",
        (f"{CORE}::test_a_learner_whose_rounds_are_slow_is_not_promoted",),
    ),
    Mutant(
        "promoted-though-silent",
        "a learner that does not answer is not promoted",
        RECONFIGURATION,
        "            and self.answers(replica_id)\n",
        "",
        (f"{CORE}::test_a_learner_that_never_answered_or_is_silent_is_not_promoted",),
    ),
    Mutant(
        "joining-learner-forgotten",
        "a learner that was to join is promoted by the leader",
        RECONFIGURATION,
        "            if self.caught_up(replica_id):\n",
        "            if not self.membership.nodes:\n",
        (f"{CORE}::test_a_joining_learner_is_promoted_once_it_has_caught_up",),
    ),
)

REPLICAS: Final = (
    Mutant(
        "membership-not-written",
        "a membership that takes effect is written down",
        WRITER,
        "            batch.put_membership(group_id, ready.membership)",
        "            pass",
        (f"{NODES}::test_a_membership_outlives_a_restart",),
    ),
    Mutant(
        "voter-made-empty",
        "a voter that is missing on its node is never made anew",
        RESIDENTS,
        "        if not replica_id or not replica.leads or membership.is_voter(replica_id):",
        "        if not replica_id or not replica.leads:",
        (f"{RESIDING}::test_a_voter_that_is_missing_on_its_node_is_not_asked_for",),
    ),
    Mutant(
        "tombstone-ignored",
        "no replica up to the tombstone's id lives again",
        RESIDENTS,
        "        return tombstone is not None and replica_id <= tombstone.replica_id",
        "        return tombstone is not None and replica_id < tombstone.replica_id",
        (f"{RESIDING}::test_no_replica_up_to_the_tombstones_id_lives_again",),
    ),
    Mutant(
        "made-before-the-last-is-gone",
        "a group's next replica is made when all that its last one left is gone",
        RESIDENTS,
        "        self._going.add(group_id)\n\n        def removed() -> None:\n",
        "\n        def removed() -> None:\n",
        (f"{RESIDING}::test_a_removal_is_on_disk_before_the_next_replica_of_the_group",),
    ),
    Mutant(
        "leftovers-stay",
        "what a removal that a crash interrupted has left is deleted at the next start",
        RESIDENTS,
        "        for group_id in sorted(self.tombstones):",
        "        for group_id in ():",
        (f"{RESIDING}::test_leftovers_of_a_removal_that_a_crash_interrupted_are_deleted_at_the_next_start",),
    ),
    Mutant(
        "removed-voter-not-told",
        "a removed replica that campaigns is told that it was removed",
        INCOMING,
        "            if type(message) is PreVote or type(message) is RequestVote:",
        "            if type(message) is RequestVote:",
        (f"{RESIDING}::test_a_removed_replica_that_asks_for_votes_is_told",),
    ),
    Mutant(
        "removed-learner-not-told",
        "a replica that nobody leads asks whether it was removed",
        UPKEEP,
        "            elif replica.broken is None and core.leader == NOBODY and core.deadline != inf:",
        "            elif replica.broken is None and not core.membership.nodes:",
        (f"{NODES}::test_a_learner_that_was_away_when_it_was_removed_learns_it_on_return",),
    ),
    Mutant(
        "L24-claim-by-group-alone",
        "a claim is followed only by the very replica that it names",
        VIEW,
        "replica is not None and replica.core.replica_id == replica_id else None",
        "replica is not None else None",
        (f"{RESIDING}::test_L24_a_claim_toward_another_replica_is_not_followed",),
    ),
    Mutant(
        "L24-acknowledged-by-node-alone",
        "acknowledgements count by node and replica",
        LIVEPEER,
        "        return self.told.get(group_id) == (term, replica_id) and",
        "        return self.told.term_of(group_id) == term and",
        ("tests/engine/test_liveness_promises.py::test_L24_an_acknowledgement_for_another_replica_does_not_count",),
    ),
    Mutant(
        "L19-replaced-claim-wakes-nobody",
        "a claim that is made toward another replica is taken away from the one before",
        "multiraft/engine/liveness.py",
        "        return [(group_id, *old)]\n",
        "        return []\n",
        ("tests/engine/test_liveness_promises.py::test_L19_a_claim_toward_another_replica_takes_the_old_one_away",),
    ),
    Mutant(
        "members-told-late",
        "a leader claims its group toward new members when the change takes effect",
        OBSERVING,
        "        if replica.leads:\n            self._lead(replica, now)\n",
        "",
        (f"{NODES}::test_a_node_is_added_with_one_call",),
    ),
    Mutant(
        "straggler-not-asked-after",
        "a follower that missed an append is asked again, though nothing new is written",
        "multiraft/raft/progress.py",
        "        elif now - self._stalled_at[1] > timeout_s:",
        "        elif now < self._stalled_at[1]:",
        ("tests/node/test_repair.py::test_a_follower_that_missed_an_append_catches_up_without_new_traffic",),
    ),
    Mutant(
        "L23-no-progress-tolerated",
        "a leader whose entries reach no quorum gives up",
        UPKEEP,
        "            elif now - since_s >= longest_s:",
        "            elif now < since_s:",
        (f"{FOUND}::test_L23_a_leader_whose_entries_reach_nobody_gives_up_though_its_beats_flow",),
    ),
)

UNHEARD: Final = (
    Mutant(
        "committed-untold",
        "who has no vote tells who asks for it what is committed",
        ELECTION,
        "        if not granted and not self.membership.is_voter(self.replica_id):\n            self._tell",
        "        if not granted and self.membership.is_voter(self.replica_id):\n            self._tell",
        (f"{DETAILS}::TestCommitted::test_who_has_no_vote_tells_what_the_other_may_have",),
    ),
    Mutant(
        "committed-taken-for-another-entry",
        "only that very entry is committed",
        REPLICATION,
        " and log.term(index) == message.index_term:",
        ":",
        (f"{DETAILS}::TestCommitted::test_whoever_has_that_entry_commits_up_to_it",),
    ),
    Mutant(
        "told-to-go-too-early",
        "nobody is told that it was removed before a majority knows of it",
        RECONFIGURATION,
        "        return self.role is LEADER and self.commit > self._settles_after and",
        "        return self.role is LEADER and self.commit > 0 and",
        (f"{RESIDING}::test_nobody_is_told_to_go_before_a_majority_knows",),
    ),
    Mutant(
        "no-word-after-a-removal",
        "a leader appends an entry by which a majority comes to know of a removal",
        RECONFIGURATION,
        "        elif self._settles_after == self.log.last_index and",
        "        elif not membership.nodes and",
        (f"{NODES}::test_a_replica_is_replaced_on_its_own_node_under_a_new_id",),
    ),
    Mutant(
        "no-word-of-other-voters",
        "a leader appends an entry by which a majority comes to know of other voters",
        RECONFIGURATION,
        "                plain = alike and before",
        "                plain = before",
        (
            "tests/raft/test_membership_known.py::test_a_change_of_voters_is_known_to_a_majority_only_by_an_entry_after_it",
        ),
    ),
    Mutant(
        "change-done-too-early",
        "who changes the voters is answered when a majority knows",
        "multiraft/members.py",
        "        while not view.known and",
        "        while not view.known and not members.nodes and",
        (f"{SIMULATED}::test_a_change_that_is_done_outlives_the_leader_who_made_it",),
    ),
    Mutant(
        "leader-of-a-removed-one-remembered",
        "who cannot campaign forgets a leader that was known by an append alone",
        ELECTION,
        "                self.leader = NOBODY  # who was known",
        "                pass  # who was known",
        (f"{SIMULATED}::test_who_was_removed_asks_though_a_leader_sent_it_entries_without_claiming_to_lead_it",),
    ),
    Mutant(
        "asked-for-once-only",
        "a replica whose making was put off is asked for again",
        "multiraft/engine/engine.py",
        "            self.residents.tick()\n",
        "",
        (f"{NODES}::test_a_replica_is_replaced_on_its_own_node_under_a_new_id",),
    ),
)

MEMBERSHIP_MUTANTS: Final = (*IN_THE_LOG, *LEADERS, *REPLICAS, *UNHEARD)
