"""Mutants of snapshots, compaction, removal and the bounds of a log.

Rules of this file: see `Mutant`; the core first, then the engine, then the store.
"""

from __future__ import annotations

from typing import Final

from tests.mutants.mutant import Mutant

CHECK: Final = "storage/check.py"
LOG: Final = "multiraft/raft/log.py"
PROGRESS: Final = "multiraft/raft/progress.py"
RAFT: Final = "multiraft/raft/raft.py"
REPLICATION: Final = "multiraft/raft/replication.py"
RUNNING: Final = "multiraft/running.py"
SNAPSHOTS: Final = "multiraft/raft/snapshots.py"
SNAPSHOTTING: Final = "multiraft/engine/snapshotting.py"
BATCHES: Final = "storage/batches.py"

BOUNDS: Final = "tests/raft/test_bounds.py"
COMPACTION: Final = "tests/raft/test_compaction.py::TestCompaction"
FOLLOWER: Final = "tests/raft/test_snapshots.py::TestFollower"
LEADER: Final = "tests/raft/test_snapshots.py::TestLeader"
NODES: Final = "tests/node/test_snapshots.py"
REMOVAL: Final = "tests/storage/test_store_removal.py"

TAKING: Final = (
    Mutant(
        "snapshot-during-change",
        "no snapshot is taken while a membership change has no effect yet",
        SNAPSHOTS,
        "settled = not self._changes and self.membership",
        "settled = self.membership",
        (f"{COMPACTION}::test_none_is_taken_while_a_membership_change_has_no_effect_yet",),
    ),
    Mutant(
        "snapshot-behind-membership",
        "a snapshot's membership is as of its index",
        SNAPSHOTS,
        "settled = not self._changes and self.membership.index <= self.log.applied",
        "settled = not self._changes",
        (f"{COMPACTION}::test_none_is_taken_before_the_machine_is_where_the_membership_is",),
    ),
    Mutant(
        "snapshot-two-at-once",
        "one snapshot at a time is on its way to the disk",
        SNAPSHOTS,
        "on_its_way = self._snapshot is not None or self._snapshots_written > 0\n        settled",
        "on_its_way = False\n        settled",
        (f"{COMPACTION}::test_none_is_taken_while_another_is_on_its_way",),
    ),
    Mutant(
        "snapshot-record-cut",
        "a record that reaches beyond the log's start stays",
        LOG,
        "            firsts.pop()  # begins",
        "            pass  # begins",
        (f"{COMPACTION}::test_whole_records_go_and_what_reaches_beyond_the_start_stays",),
    ),
)

SENDING: Final = (
    Mutant(
        "snapshot-sent-unstored",
        "only a snapshot that is on disk is sent",
        SNAPSHOTS,
        "        if self.snapshot_index < log.start.index:\n            return  # the one that will do",
        "        if self.snapshot_index < 0:\n            return  # the one that will do",
        (f"{LEADER}::test_only_one_that_is_on_disk_is_sent",),
    ),
    Mutant(
        "snapshot-waited-for",
        "an append's answer may show that entries will do",
        PROGRESS,
        "return index >= start or 0 < self.pending <= index",
        "return 0 < self.pending <= index",
        (f"{LEADER}::test_an_append_answer_may_show_that_entries_will_do",),
    ),
    Mutant(
        "snapshot-given-up",
        "an answer that shows nothing leaves a follower waiting for its snapshot",
        PROGRESS,
        "return index >= start or 0 < self.pending <= index",
        "return True",
        (f"{LEADER}::test_an_append_answer_may_show_that_entries_will_do",),
    ),
    Mutant(
        "snapshot-late-rejection",
        "late rejections change nothing while a snapshot is on its way",
        REPLICATION,
        "if peer.state is LOST or peer.state is SNAPSHOT:\n            return",
        "if peer.state is LOST:\n            return",
        (f"{LEADER}::test_late_rejections_change_nothing_meanwhile",),
    ),
    Mutant(
        "snapshot-poked-away",
        "a poke asks whether the snapshot has arrived, before it is sent again",
        REPLICATION,
        "peer.probe(peer.pending + 1)",
        "peer.probe(0)",
        (f"{LEADER}::test_a_poke_asks_whether_it_has_arrived",),
    ),
    Mutant(
        "snapshot-never-asked-after",
        "a snapshot that stays unanswered is asked after",
        SNAPSHOTS,
        "now - peer.pending_since_s > patience_s",
        "now - peer.pending_since_s > patience_s * 1e9",
        (f"{LEADER}::test_one_that_stays_unanswered_is_asked_after",),
    ),
)

INSTALLING: Final = (
    Mutant(
        "install-over-matching",
        "a snapshot of an entry that is in the log leaves the log as it is",
        SNAPSHOTS,
        "            if index > log.last_index or log.term(index) != message.index_term:\n",
        "            if index > 0:\n",
        (f"{FOLLOWER}::test_one_of_an_entry_that_is_there_only_moves_the_commit",),
    ),
    Mutant(
        "install-without-term",
        "a snapshot of another entry than the one at its index takes the place of the log",
        SNAPSHOTS,
        "if index > log.last_index or log.term(index) != message.index_term:",
        "if index > log.last_index:",
        (f"{FOLLOWER}::test_any_other_takes_the_place_of_the_log",),
    ),
    Mutant(
        "install-of-old-leader",
        "a snapshot of an earlier term is refused",
        SNAPSHOTS,
        "        if message.term < self.term:\n            self._answers.append(",
        "        if message.term < 0:\n            self._answers.append(",
        (f"{FOLLOWER}::test_one_of_an_earlier_term_learns_the_later_one",),
    ),
    Mutant(
        "install-keeps-changes",
        "changes that had no effect go with the log",
        SNAPSHOTS,
        "        self._changes.clear()\n",
        "",
        (f"{FOLLOWER}::test_changes_that_had_no_effect_go_with_the_log",),
    ),
    Mutant(
        "install-keys-forgotten",
        "keys that are on their way to the disk are deleted with the old log, too",
        LOG,
        "        self._delete([first for first in self._firsts if first <= self.handed])\n        self._records.clear()",
        "        self._records.clear()",
        (f"{FOLLOWER}::test_every_key_of_the_old_log_is_deleted_also_those_on_their_way",),
    ),
    Mutant(
        "install-stable-at-once",
        "nothing of a snapshot is stable before it is on disk",
        LOG,
        "        self.stable = 0\n",
        "        self.stable = start.index\n",
        (f"{FOLLOWER}::test_it_is_acknowledged_only_when_it_is_on_disk_and_the_machine_has_it",),
    ),
    Mutant(
        "install-overtaken",
        "a snapshot that another one replaced on its way is not the machine's state",
        SNAPSHOTS,
        "if log.applied < index and (adopted or index == log.start.index):",
        "if log.applied < index:",
        (f"{FOLLOWER}::test_a_second_one_before_the_first_is_on_disk",),
    ),
)

ENGINE: Final = (
    Mutant(
        "snapshot-without-clock",
        "a snapshot carries the replicated clock",
        SNAPSHOTTING,
        "replica.restored(index, loader.time_ms, loader.hash)",
        "replica.restored(index, 0, loader.hash)",
        (f"{NODES}::test_a_typed_machine_is_saved_by_its_attributes_and_keeps_the_replicated_clock",),
    ),
    Mutant(
        "snapshot-callers-forgotten",
        "callers whose entries a snapshot covers are told so",
        SNAPSHOTTING,
        "        replica.pass_over(index)\n",
        "",
        (f"{NODES}::test_a_caller_whose_entry_a_snapshot_covers_hears_that_its_outcome_is_not_known",),
    ),
    Mutant(
        "snapshot-founds-anew",
        "a directory from a snapshot is acted on when all that is on disk has been taken up",
        RUNNING,
        "        self.hosting.open_stored(stored)\n        self.directory.subscribe(self._directory_changed)\n",
        "        self.directory.subscribe(self._directory_changed)\n        self.hosting.open_stored(stored)\n",
        (f"{NODES}::test_a_directory_that_comes_from_a_snapshot_founds_no_group_anew",),
    ),
    Mutant(
        "snapshot-shared-list",
        "a list that stands in two places is not saved as two",
        "multiraft/attributes.py",
        "if id(value) in seen:",
        "if False:",
        ("tests/test_attributes.py::test_what_stands_in_two_places_is_refused_and_so_is_what_holds_itself",),
    ),
    Mutant(
        "tail-unbounded",
        "past its bound an uncommitted tail grows no more",
        RAFT,
        "self.uncommitted_bytes + size_bytes > self._settings.uncommitted_bytes:",
        "self.uncommitted_bytes < 0:",
        (
            f"{BOUNDS}::TestUncommittedTail::test_past_the_bound_proposals_are_refused_until_some_are_committed",
            "tests/node/test_outcomes.py::test_a_group_that_commits_nothing_takes_no_more_than_its_bound",
        ),
    ),
    Mutant(
        "tail-giant-refused",
        "one record always fits into an uncommitted tail",
        RAFT,
        "if self._tail and self.uncommitted_bytes + size_bytes",
        "if self.uncommitted_bytes + size_bytes",
        (f"{BOUNDS}::TestUncommittedTail::test_one_record_always_fits",),
    ),
)

STORED: Final = (
    Mutant(
        "tombstone-left-out",
        "a removed replica leaves a tombstone, in the batch that deletes it",
        BATCHES,
        "        self._store(layout.tombstone_key(group_id), layout.encode_tombstone(tombstone))\n",
        "",
        (f"{REMOVAL}::test_a_removed_replica_is_gone_and_its_tombstone_stays",),
    ),
    Mutant(
        "leftovers-as-damage",
        "what a removed replica has left is no damage",
        CHECK,
        "        if self.tombstone is not None and self.descriptor is None and",
        "        if self.tombstone is not None and self.descriptor is not None and",
        (f"{REMOVAL}::test_leftovers_after_a_crash_are_no_damage_and_can_be_collected",),
    ),
    Mutant(
        "removed-lives",
        "a replica whose tombstone stands here may not live",
        CHECK,
        "            if lives <= removed:",
        "            if lives < 0:",
        (f"{REMOVAL}::test_a_replica_that_was_removed_may_not_live",),
    ),
    Mutant(
        "clipped-change-counts",
        "a membership entry that a conflict clipped is none",
        CHECK,
        "self._changes += range(record.first, last + 1)",
        "self._changes += range(record.first, record.last + 1)",
        ("tests/storage/test_store_logs.py::test_the_membership_entries_in_the_log_are_known_by_index",),
    ),
)

SNAPSHOT_MUTANTS: Final = (*TAKING, *SENDING, *INSTALLING, *ENGINE, *STORED)
