"""Mutants of the engine and the node: promises and their writes, callers, reads, time, and how a cluster is formed.

Rules of this file: see `Mutant`; writing, then callers, then time, then forming.
"""

from __future__ import annotations

from typing import Final

from tests.mutants.mutant import Mutant

ENGINE: Final = "multiraft/engine/engine.py"
INCOMING: Final = "multiraft/engine/incoming.py"
ORDINARY: Final = "multiraft/engine/ordinary.py"
OBSERVING: Final = "multiraft/engine/observing.py"
FORMING: Final = "multiraft/forming.py"
PACING: Final = "multiraft/engine/pacing.py"
READING: Final = "multiraft/engine/reading.py"
REPLICA: Final = "multiraft/engine/replica.py"
UPKEEP: Final = "multiraft/engine/upkeep.py"
VIEW: Final = "multiraft/engine/view.py"
WRITER: Final = "multiraft/engine/writer.py"

CRASHES: Final = "tests/node/test_crashes.py"
GROUP_COMMIT: Final = "tests/engine/test_group_commit.py"
FOUND: Final = "tests/node/test_found_by_storm.py"
PARTS: Final = "tests/node/test_engine_parts.py"
PROMISES_KEPT: Final = "tests/node/test_promises_kept.py"

WRITING: Final = (
    Mutant(
        "promises-at-submit",
        "promises leave when their batch is on disk, not when it is submitted",
        WRITER,
        "        self._in_flight.append(pending)\n",
        "        self._in_flight.append(pending)\n"
        "        promises, pending.promises = pending.promises, []\n"
        "        acks, pending.acks = pending.acks, {}\n"
        "        self._on_persisted([], promises, acks)\n",
        (
            f"{GROUP_COMMIT}::test_promises_and_reports_come_with_the_completion_of_their_batch",
            f"{PROMISES_KEPT}::test_what_was_acknowledged_is_on_two_disks_at_that_very_moment",
            f"{CRASHES}::test_no_acknowledgement_before_a_quorum_has_synced",
        ),
    ),
    Mutant(
        "reports-at-submit",
        "a core is told of a write when it is on disk, not when it is submitted",
        WRITER,
        "        self._in_flight.append(pending)\n",
        "        self._in_flight.append(pending)\n"
        "        persisted, pending.persisted = pending.persisted, []\n"
        "        self._on_persisted(persisted, [], {})\n",
        (
            f"{GROUP_COMMIT}::test_promises_and_reports_come_with_the_completion_of_their_batch",
            f"{CRASHES}::test_a_single_node_acknowledges_only_after_its_own_sync",
            f"{CRASHES}::test_the_leader_answers_only_what_its_own_disk_has",
        ),
    ),
    Mutant(
        "promises-at-once",
        "the engine sends a promise only after the write that it speaks of",
        ENGINE,
        "for message in self.writer.add(replica, ready):",
        "for message in (self.writer.add(replica, ready), ready.after_persist)[1]:",
        (f"{CRASHES}::test_nobody_is_elected_while_votes_are_not_on_disk",),
    ),
    Mutant(
        "acks-at-once",
        "an acknowledgement leaves when the record that it speaks of is on disk",
        ORDINARY,
        "(term, core.vote, core.commit), node_id, ack)\n",
        "(term, core.vote, core.commit), None, None)\n"
        "                        engine.outgoing.acknowledge(node_id, [ack])\n",
        (f"{PROMISES_KEPT}::test_a_row_in_another_nodes_name_is_dropped",),
    ),
    Mutant(
        "completions-swapped",
        "a completion is that of the oldest batch under way",
        WRITER,
        "self._in_flight.popleft()",
        "self._in_flight.pop()",
        (f"{GROUP_COMMIT}::test_each_completion_is_that_of_the_oldest_batch_under_way",),
    ),
    Mutant(
        "promise-with-first-batch",
        "a promise that writes nothing waits for the latest batch submitted",
        WRITER,
        "else self._in_flight[-1]",
        "else self._in_flight[0]",
        (f"{GROUP_COMMIT}::test_a_promise_without_a_write_waits_for_the_latest_batch",),
    ),
    Mutant(
        "promise-waits-for-nothing",
        "a promise that writes nothing waits for what is under way",
        WRITER,
        "if self._open is None and not self._in_flight:",
        "if self._open is None:",
        (f"{GROUP_COMMIT}::test_a_promise_without_a_write_waits_for_the_latest_batch",),
    ),
    Mutant(
        "hard-state-apart",
        "records, deletions and hard state of one Ready are one batch",
        WRITER,
        "            batch.put_hard_state(group_id, hard_state)\n",
        "            apart = self._store.batch()\n"
        "            apart.put_hard_state(group_id, hard_state)\n"
        "            self._store.submit(apart, lambda _: None)\n",
        (f"{GROUP_COMMIT}::test_what_one_core_asks_for_is_one_batch_in_order",),
    ),
    Mutant(
        "records-apart",
        "records, deletions and hard state of one Ready are one batch",
        WRITER,
        "            batch.put_record(group_id, record)\n",
        "            apart = self._store.batch()\n"
        "            apart.put_record(group_id, record)\n"
        "            self._store.submit(apart, lambda _: None)\n",
        (f"{GROUP_COMMIT}::test_what_one_core_asks_for_is_one_batch_in_order",),
    ),
    Mutant(
        "deleted-after-put",
        "a conflict's deletions come before the records that replace them",
        WRITER,
        "        if ready.deleted:\n            batch.delete_records(group_id, ready.deleted)\n",
        "",
        (f"{GROUP_COMMIT}::test_what_one_core_asks_for_is_one_batch_in_order",),
        also=(
            (
                "        hard_state = ready.hard_state\n",
                "        if ready.deleted:\n            batch.delete_records(group_id, ready.deleted)\n"
                "        hard_state = ready.hard_state\n",
            ),
        ),
    ),
    Mutant(
        "goes-on-after-failure",
        "after one failed write nothing is ever handed out again",
        WRITER,
        "            self.stop()\n            self._on_failed(error)\n",
        "            self._in_flight.popleft()\n            self._on_failed(error)\n",
        (f"{GROUP_COMMIT}::test_after_a_failed_write_nothing_is_handed_out_again",),
    ),
    Mutant(
        "new-replica-early",
        "a new group's replica takes part only when its creation is on disk",
        WRITER,
        "        pending.sync = pending.sync or sync\n        pending.writes += 1\n        pending.callbacks.append(then)\n",
        "        pending.sync = pending.sync or sync\n        pending.writes += 1\n        then()\n",
        (
            f"{GROUP_COMMIT}::test_other_writes_are_reported_when_they_are_on_disk",
            f"{PROMISES_KEPT}::test_a_new_replica_takes_part_only_when_its_creation_is_on_disk",
        ),
    ),
    Mutant(
        "node-outlives-failed-write",
        "a failed write ends the node",
        ENGINE,
        "        self._end(error)\n\n    def _end",
        "        self.wake()\n\n    def _end",
        (f"{PROMISES_KEPT}::test_a_failed_write_ends_the_node_in_good_time",),
    ),
)

CALLERS: Final = (
    Mutant(
        "reads-of-deposed-leader-wait",
        "a deposed leader refuses the reads that wait",
        OBSERVING,
        "            replica.hand_back_sessions()\n            replica.fail_reads(replica.refusal)\n",
        "            replica.hand_back_sessions()\n",
        (f"{PROMISES_KEPT}::test_a_deposed_leader_refuses_its_waiting_reads_at_once",),
    ),
    Mutant(
        "read-at-once",
        "a query runs only when a quorum has confirmed its round",
        READING,
        "                replica.rounds[round_id] = reads\n",
        "                replica.rounds[round_id] = reads\n"
        "                replica.confirm_round(round_id, replica.applied)\n",
        (f"{PROMISES_KEPT}::test_a_leader_cut_off_answers_no_read_from_its_past",),
    ),
    Mutant(
        "read-joins-older-round",
        "a read never joins a round that was asked before it came (L10)",
        READING,
        "round_id = self._liveness.begin_round(sorted(nodes), now)",
        "waiting = [one for one, of in self._rounds.items() if any(one in each.rounds for each in of)]\n"
        "        round_id = max(waiting, default=0) or self._liveness.begin_round(sorted(nodes), now)",
        (f"{PROMISES_KEPT}::test_a_read_joins_no_round_that_was_asked_before_it_came",),
    ),
    Mutant(
        "read-joins-reads-of-a-round",
        "whatever gathers a turn's reads takes no more of them once their round has begun (L10)",
        READING,
        "        self._open.clear()\n        arrived, self",
        "        arrived, self",
        (f"{PROMISES_KEPT}::test_a_read_joins_no_round_that_was_asked_before_it_came",),
    ),
    Mutant(
        "read-before-applied",
        "a query runs only when its commit index is applied",
        REPLICA,
        "            self.confirmed.append((index, reads))\n            if self.applied >= index:\n",
        "            self.confirmed.append((0, reads))\n            if index:\n",
        (f"{PROMISES_KEPT}::test_a_read_sees_what_was_committed_before_it",),
    ),
    Mutant(
        "replaced-command-answered",
        "a caller whose entry a later leader replaced is not answered with another's result",
        REPLICA,
        "if batch.term == record.term and batch",
        "if batch",
        (f"{PROMISES_KEPT}::test_a_caller_whose_command_was_replaced_is_told_that_it_did_not_happen",),
    ),
    Mutant(
        "forged-sender",
        "a message is taken only from the node of the replica that it names",
        INCOMING,
        "if core.membership.nodes.get(message.sender) != node_id and",
        "if core.membership.nodes.get(message.sender) is None and",
        (f"{PROMISES_KEPT}::test_a_message_in_another_nodes_name_is_dropped",),
    ),
    Mutant(
        "forged-rows",
        "a row is taken only from the node of the replica that it names",
        ORDINARY,
        "and core.membership.nodes.get(sender) == node_id\n                        and core.append_in_order(",
        "and core.membership.nodes.get(sender)\n                        and core.append_in_order(",
        (f"{PROMISES_KEPT}::test_a_row_in_another_nodes_name_is_dropped",),
    ),
    Mutant(
        "forged-ack-rows",
        "a row is taken only from the node of the replica that it names",
        ORDINARY,
        "and core.membership.nodes.get(sender) == node_id\n                        and (came := core",
        "and core.membership.nodes.get(sender)\n                        and (came := core",
        (f"{PROMISES_KEPT}::test_a_row_in_another_nodes_name_is_dropped",),
    ),
    Mutant(
        "commit-untold",
        "followers are told of a commit that no append tells them",
        UPKEEP,
        "            self._untold[replica] = replica.core.commit, 0\n",
        "",
        (f"{PROMISES_KEPT}::test_whoever_acknowledges_late_is_told_of_the_commit_by_a_message_of_its_own",),
    ),
    Mutant(
        "late-follower-untold",
        "a follower that acknowledges late is told of the commit",
        ORDINARY,
        "                        if came == UNTOLD:\n"
        "                            engine.upkeep.tell_commit_later(replica)\n",
        "",
        (f"{PROMISES_KEPT}::test_whoever_acknowledges_late_is_told_of_the_commit_by_a_message_of_its_own",),
    ),
    Mutant(
        "dropped-append-forgotten",
        "an append that a full outbox dropped is sent again",
        UPKEEP,
        "                    replica.core.poke(message.to)\n",
        "",
        (f"{PARTS}::test_lost_appends_and_answers_are_repaired",),
    ),
    Mutant(
        "early-answer-forgotten",
        "an answer that is due before its connection is up is given when it is",
        "multiraft/engine/outgoing.py",
        "            if type(message) is AppendAnswer:\n",
        "            if node_id is None:\n",
        (f"{FOUND}::test_an_answer_that_is_due_before_its_connection_is_up_is_given_when_it_is",),
    ),
    Mutant(
        "dropped-answer-forgotten",
        "an answer that a full outbox dropped is sent again",
        UPKEEP,
        "                engine.outgoing.consensus(node_id, message)\n",
        "                pass\n",
        (f"{PARTS}::test_lost_appends_and_answers_are_repaired",),
    ),
)

TIME: Final = (
    Mutant(
        "patience-not-forgiving",
        "the loop's own lateness does not count as a peer's silence",
        PACING,
        "            self._stalled_s += late_s\n            return self._due_s\n",
        "            return now\n",
        (
            f"{PARTS}::test_the_patience_clock_forgives_the_loop_its_own_lateness",
            f"{PARTS}::test_a_node_that_was_stopped_does_not_depose_its_leaders",
        ),
    ),
    Mutant(
        "L02-rise-not-told",
        "the engine tells liveness of every rise of a term",
        OBSERVING,
        "            self._engine.liveness.term_rose(replica.group_id, now)\n",
        "",
        (f"{PROMISES_KEPT}::test_L02_a_vote_that_raises_the_term_refuses_the_leaders_claim",),
    ),
    Mutant(
        "L19-no-sweep",
        "a slow sweep finds a replica that nobody is responsible for",
        UPKEEP,
        "                engine.view.electable([group_id], now)\n",
        "",
        (f"{PROMISES_KEPT}::test_L19_the_sweep_finds_a_replica_that_nobody_is_responsible_for",),
    ),
    Mutant(
        "L23-stalled-disk-leads",
        "a leader whose disk has stalled gives up, though its beats still flow",
        UPKEEP,
        "        self._judge_disk(now)\n",
        "",
        (f"{FOUND}::test_a_leader_whose_disk_has_stalled_gives_up_though_its_beats_still_flow",),
    ),
    Mutant(
        "L24-late-replica-unasked",
        "a replica that came to its node late is asked again where it is",
        VIEW,
        "replica.core.poke(replica.core.membership.replica_on(node_id))",
        "replica.core.membership.replica_on(node_id)",
        (f"{FOUND}::test_a_replica_that_is_created_after_its_leader_was_elected_catches_up",),
    ),
    Mutant(
        "L21-claim-outlives-leader",
        "a leader that steps down takes back its claim",
        OBSERVING,
        "            self._engine.liveness.unlead(replica.group_id, now)\n            replica.lost_queue()\n",
        "            replica.lost_queue()\n",
        (f"{PROMISES_KEPT}::test_L21_a_leader_that_steps_down_takes_back_its_claim",),
    ),
)

FORMING_MUTANTS: Final = (
    Mutant(
        "bootstrap-without-all",
        "a cluster is founded only when all members have answered",
        FORMING,
        " and not self.missing:",
        ":",
        (f"{PARTS}::test_the_lowest_node_waits_for_all_members_and_then_binds_their_stores",),
        works=False,  # two clusters come of it, or half of one
    ),
    Mutant(
        "bootstrap-by-anyone",
        "only the member with the lowest id founds",
        FORMING,
        "if identity.node_id == self._members[0] and not self.missing:",
        "if not self.missing:",
        (f"{PARTS}::test_any_other_node_only_waits",),
        works=False,
    ),
    Mutant(
        "emptied-store-let-in",
        "a store that the cluster does not know is not let in",
        FORMING,
        "if identity.stores.get(node_id) != store_id:",
        "if node_id not in identity.stores:",
        (f"{PARTS}::test_an_emptied_store_is_not_let_in_again",),
    ),
    Mutant(
        "offer-for-another-store",
        "an offer that names another store of this node is not taken",
        FORMING,
        "if stores.get(identity.node_id) != identity.store_id or not message.cluster_id:",
        "if not message.cluster_id:",
        (f"{PARTS}::test_an_offer_for_another_store_or_another_list_is_not_taken",),
    ),
    Mutant(
        "formed-before-sync",
        "a member syncs the cluster before it answers the offer",
        FORMING,
        "        self._store.bind_cluster(message.cluster_id, stores, *about)\n        self._send(node_id, Formed(message.cluster_id))\n",
        "        self._send(node_id, Formed(message.cluster_id))\n        self._store.bind_cluster(message.cluster_id, stores, *about)\n",
        (f"{PROMISES_KEPT}::test_a_member_answers_an_offer_only_when_it_is_synced",),
    ),
    Mutant(
        "offered-before-sync",
        "the proposer syncs the cluster before it is known to anybody",
        FORMING,
        "        self._store.bind_cluster(cluster_id, stores)\n        self._formed(self._store.identity)\n",
        "        identity = type(identity)(identity.node_id, identity.store_id, cluster_id, stores)\n"
        "        self._formed(identity)\n"
        "        self._store.bind_cluster(cluster_id, stores)\n",
        (f"{PROMISES_KEPT}::test_the_proposer_syncs_the_cluster_before_it_is_known_to_anybody",),
        works=False,
    ),
    Mutant(
        "other-member-list",
        "a member list that differs from the founding one is refused",
        FORMING,
        "if identity.formed and stored != self._members:",
        "if not identity.formed and stored:",
        (f"{PARTS}::test_a_member_list_that_differs_from_the_founding_one_is_refused",),
    ),
)

ENGINE_MUTANTS: Final = (*WRITING, *CALLERS, *TIME, *FORMING_MUTANTS)
