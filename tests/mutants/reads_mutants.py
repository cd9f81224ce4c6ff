"""Mutants of reads that ask no quorum themselves: by lease, from the replica here, and stale with their age.

Rules of this file: see `Mutant`; leases first, then local reads, then ages.
"""

from __future__ import annotations

from typing import Final

from tests.mutants.mutant import Mutant

CONFIG: Final = "multiraft/config.py"
ENGINE: Final = "multiraft/engine/engine.py"
FOLLOWING: Final = "multiraft/engine/following.py"
LEASES: Final = "multiraft/engine/leases.py"
LOCAL: Final = "multiraft/engine/local.py"
REPLICA: Final = "multiraft/engine/replica.py"

CONFIGURED: Final = "tests/test_config.py"
LEASE_READS: Final = "tests/node/test_lease_reads.py"
LOCAL_READS: Final = "tests/node/test_local_reads.py"
STALE_READS: Final = "tests/node/test_stale_reads.py"
STEPS: Final = "tests/engine/test_local_reads.py"
READING: Final = "multiraft/engine/reading.py"
WAITING: Final = "multiraft/engine/waiting.py"
MANY_READS: Final = "tests/node/test_many_reads.py"
ROUTER_MANY: Final = "tests/shard/test_many.py"
ROUTER_READS: Final = "tests/shard/test_router_reads.py"

READS_MUTANTS: Final = (
    Mutant(
        "L14-drift-not-set",
        "a lease is cut by the drift that the settings name",
        ENGINE,
        "limits.clock_drift_ppm / 1e6",
        "0.01",
        (f"{LEASE_READS}::test_the_bound_on_drift_is_a_setting_that_shortens_the_lease",),
    ),
    Mutant(
        "L14-lease-no-room-for-beats",
        "a lease must outlive two beats, or the settings contradict each other",
        CONFIG,
        "lease_ms > 2 * self.beat_ms",
        "lease_ms > 0",
        (f"{CONFIGURED}::test_a_lease_outlives_two_beats_whatever_the_clocks_do",),
    ),
    Mutant(
        "L15-lease-by-the-patience-clock",
        "a lease is judged by the real clock, which no sleep of this process stops",
        LEASES,
        "return self._clock() < until_s",
        "return self._engine.pacing.now() < until_s",
        (f"{LEASE_READS}::test_L15_a_leader_whose_machine_slept_asks_before_it_answers",),
    ),
    Mutant(
        "lease-before-applied",
        "a lease read sees all that is committed, and so all that others may have seen",
        LEASES,
        "return replica.applied >= replica.core.commit and replica",
        "return replica",
        (
            f"{LEASE_READS}::test_a_leader_that_has_not_applied_what_is_committed_reads_by_no_lease",
            f"{STALE_READS}::test_a_leader_that_has_not_applied_all_that_others_may_have_seen_asks_before_it_answers",
        ),
    ),
    Mutant(
        "L25-lease-of-one-half",
        "in a joint membership both halves must have been heard",
        LEASES,
        "            [nodes[voter] for voter in members.outgoing],\n",
        "            [],\n",
        (f"{LEASE_READS}::test_L25_both_halves_of_a_joint_membership_must_have_been_heard",),
    ),
    Mutant(
        "lease-halted",
        "a replica that has stopped applying has no lease",
        LEASES,
        "if replica.halted is not None or replica.broken",
        "if replica.broken",
        (f"{LEASE_READS}::test_a_halted_leader_reads_by_no_lease",),
    ),
    Mutant(
        "lease-after-stop",
        "a node that has stopped answers nothing",
        LEASES,
        " or not self._engine.running:",
        ":",
        (f"{LEASE_READS}::test_a_node_that_has_stopped_answers_by_no_lease",),
    ),
    Mutant(
        "stale-leader-by-its-lease",
        "a leader's age counts from its beats, not from the end of the lease they gave",
        LEASES,
        "return self._until_s(replica) - self._lease_s",
        "return self._until_s(replica)",
        (f"{STALE_READS}::test_a_leader_is_as_old_as_the_beats_that_a_quorum_has_acknowledged",),
    ),
    Mutant(
        "index-not-confirmed",
        "a leader confirms itself before it gives an index",
        FOLLOWING,
        "engine.reading.ask(replica, asker)",
        "asker.set_result(replica.core.commit)",
        (f"{LOCAL_READS}::test_a_leader_that_has_lost_its_quorum_gives_no_index",),
    ),
    Mutant(
        "index-joined",
        "a question covers no read that comes while it is under way",
        LOCAL,
        "        self._next = batch\n",
        "        if self.asking:\n            self._covered.append(batch)\n        else:\n            self._next = batch\n",
        (
            f"{STEPS}::test_a_question_under_way_covers_nobody_who_comes_later",
            f"{LOCAL_READS}::test_a_read_that_comes_while_a_question_is_under_way_waits_for_the_next_one",
        ),
    ),
    Mutant(
        "index-not-applied",
        "a local read waits until its index is applied here",
        LOCAL,
        "while self._confirmed and self._confirmed[0][0] <= index:",
        "while self._confirmed:",
        (
            f"{STEPS}::test_an_answer_waits_for_the_index_and_is_as_old_as_its_question",
            f"{LOCAL_READS}::test_a_local_read_waits_until_the_index_is_applied_here",
        ),
    ),
    Mutant(
        "local-one-question-per-group",
        "one question serves all groups that a node leads",
        FOLLOWING,
        "questions.setdefault((leader, *nodes), [])",
        "questions.setdefault((leader, *nodes, str(replica.group_id)), [])",
        (f"{LOCAL_READS}::test_one_question_serves_all_readers_of_all_groups_that_a_node_leads",),
    ),
    Mutant(
        "local-not-asked-again",
        "a question that has no answer is put again",
        FOLLOWING,
        "            if not local.idle:\n                self._want(replica)\n",
        "",
        (
            f"{LOCAL_READS}::test_local_reads_go_on_when_the_leader_that_was_asked_is_lost",
            f"{LOCAL_READS}::test_a_replica_cut_off_answers_no_local_read_and_says_so_in_time",
        ),
    ),
    Mutant(
        "local-halted",
        "a halted replica answers nothing",
        FOLLOWING,
        "if replica.halted is not None or replica.broken is not None:\n            raise",
        "if replica.broken is not None:\n            raise",
        (f"{LOCAL_READS}::test_a_halted_replica_refuses_and_the_leader_answers_in_its_place",),
    ),
    Mutant(
        "local-halting-forgets-readers",
        "whoever waits for a replica that halts is told at once",
        REPLICA,
        "            self.local.fail(self.stopped)\n",
        "            pass\n",
        (f"{LOCAL_READS}::test_a_halted_replica_refuses_and_the_leader_answers_in_its_place",),
    ),
    Mutant(
        "queries-unbounded",
        "what waits for a round of beats is bounded in bytes",
        READING,
        "        reads.size_bytes += self._budget.take_queries(len(query))\n",
        "",
        (f"{MANY_READS}::test_waiting_queries_are_bounded_in_bytes_and_each_gives_its_room_back",),
    ),
    Mutant(
        "queries-keep-their-room",
        "a query that was answered, or failed, gives its room back",
        WAITING,
        "        self._budget.used_bytes -= self.size_bytes\n",
        "",
        (f"{MANY_READS}::test_waiting_queries_are_bounded_in_bytes_and_each_gives_its_room_back",),
    ),
    Mutant(
        "local-unbounded",
        "queries that wait are bounded in bytes",
        WAITING,
        "if self.used_bytes + size_bytes > self.limit_bytes:",
        "if self.limit_bytes < 0:",
        (
            f"{STEPS}::test_a_read_over_the_bound_is_refused_and_asks_for_nothing",
            f"{LOCAL_READS}::test_waiting_local_reads_are_bounded_in_bytes",
            f"{MANY_READS}::test_waiting_queries_are_bounded_in_bytes_and_each_gives_its_room_back",
        ),
    ),
    Mutant(
        "stale-without-bound",
        "what is older than the bound is not answered at once",
        FOLLOWING,
        "if self.age_s(since_s) > stale_s:",
        "if since_s == -inf:",
        (f"{STALE_READS}::test_a_replica_that_is_too_old_asks_and_the_answer_is_linearizable",),
    ),
    Mutant(
        "stale-from-the-answer",
        "an age counts from before the question left",
        FOLLOWING,
        "local.confirmed(index, asked_s)",
        "local.confirmed(index, self._clock())",
        (f"{STALE_READS}::test_the_age_of_a_replica_cut_off_grows_with_the_time",),
    ),
    Mutant(
        "stale-from-the-confirmation",
        "what is known of the age counts only when the index is applied",
        LOCAL,
        "        batches, self._covered = self._covered, []\n",
        "        batches, self._covered, self.since_s = self._covered, [], asked_s\n",
        (f"{STEPS}::test_an_answer_waits_for_the_index_and_is_as_old_as_its_question",),
    ),
    Mutant(
        "stale-drift",
        "an age allows for the drift of the clock that measures it",
        FOLLOWING,
        " / self._slowest_rate",
        " / 1.0",
        (f"{STALE_READS}::test_the_age_allows_for_the_drift_of_the_clock_that_measures_it",),
    ),
    Mutant(
        "stale-by-the-patience-clock",
        "an age counts the time in which the machine slept",
        FOLLOWING,
        "self._clock = engine.clocks.real",
        "self._clock = engine.pacing.now",
        (f"{STALE_READS}::test_a_machine_that_slept_has_grown_older_meanwhile",),
    ),
    Mutant(
        "read-after-stop",
        "an engine that has stopped takes no query, which nobody would answer",
        READING,
        "        self._replicas = {}\n",
        "",
        (f"{MANY_READS}::test_a_node_that_has_stopped_takes_no_query",),
    ),
    Mutant(
        "read-joins-the-failed",
        "reads that have failed take no others with them",
        READING,
        "if reads is None or reads.finished:  # none since",
        "if reads is None:  # none since",
        (f"{MANY_READS}::test_a_read_that_comes_after_others_have_failed_in_the_same_turn_has_its_own_outcome",),
    ),
    Mutant(
        "read-given-up-is-asked",
        "a query that its caller has given up is not put to the machine",
        "multiraft/engine/executing.py",
        "                if future.done():\n                    continue\n",
        "                if future.done():\n                    query(body)\n                    continue\n",
        (f"{MANY_READS}::test_queries_of_one_turn_share_a_round_and_those_given_up_are_not_asked",),
    ),
    Mutant(
        "read-many-as-commands",
        "a query is asked again whatever became of it",
        "shard/many.py",
        'attempts = Attempts("read many") if queries else _attempts(numbered)',
        "attempts = _attempts(numbered)",
        (f"{ROUTER_MANY}::test_a_query_is_asked_again_whatever_became_of_it",),
    ),
    Mutant(
        "read-here-without-its-time",
        "who wants an answer sooner than the node gives up is told sooner",
        "shard/router.py",
        "        if timeout_s >= self.default_s:  # the engine",
        "        if True:  # the engine",
        (f"{ROUTER_READS}::test_a_read_in_a_hurry_has_its_own_time_here_too",),
    ),
)
