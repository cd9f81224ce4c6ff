"""Mutants of state machines on disk: their keyspaces, batches, compaction, installs, and the replicated clock.

Rules of this file: see `Mutant`; what a replica does by itself first, then what it does with others.
"""

from __future__ import annotations

from typing import Final

from tests.mutants.mutant import Mutant

SESSIONS: Final = "multiraft/engine/sessions.py"
EXECUTING: Final = "multiraft/engine/executing.py"
KEYSPACE: Final = "multiraft/engine/keyspace.py"
ONDISK: Final = "multiraft/engine/ondisk.py"
PAIRS: Final = "multiraft/engine/pairs.py"
SPACES: Final = "multiraft/engine/spaces.py"
STAMPS: Final = "multiraft/engine/stamps.py"
WRITER: Final = "multiraft/engine/writer.py"

COMMIT: Final = "tests/engine/test_group_commit.py"
CONTEXT: Final = "tests/node/test_context.py"
NODES: Final = "tests/node/test_ondisk.py"
UNITS: Final = "tests/engine/test_keyspace.py"

ONDISK_MUTANTS: Final = (
    Mutant(
        "failed-command-keeps-writes",
        "what a failed command has written to its data is dropped",
        KEYSPACE,
        "        for key, before in reversed(self._undo):\n",
        "        for key, before in ():\n",
        (
            f"{UNITS}::test_a_failed_command_leaves_what_was_there_in_the_slice_in_the_queue_and_in_the_store",
            f"{NODES}::test_what_a_failed_command_wrote_is_dropped_on_every_replica",
        ),
    ),
    Mutant(
        "older-batch-takes-newer-value",
        "a batch that completes takes only its own values out of the overlay",
        KEYSPACE,
        "            if write is not None and write.batch == number:\n",
        "            if write is not None:\n",
        (f"{UNITS}::test_an_older_batch_that_completes_does_not_take_a_newer_value_away",),
    ),
    Mutant(
        "swallowed-read-is-a-result",
        "a read that fails halts the replica, though the command swallows it",
        KEYSPACE,
        "        if data.failed is not None:\n            data.drop()\n            raise data.failed\n        data.keep()",
        "        data.keep()",
        (f"{UNITS}::test_a_read_that_fails_halts_the_replica_even_if_the_command_swallows_it",),
    ),
    Mutant(
        "no-backpressure-on-disk",
        "a group applies nothing while too much of it is on its way to the store",
        KEYSPACE,
        "        return self.queued_bytes >= QUEUED_BYTES\n",
        "        return False\n",
        (f"{UNITS}::test_it_is_full_while_more_than_its_bound_is_on_its_way",),
    ),
    Mutant(
        "durable-when-written",
        "what was applied is durable with the next synced batch, not when it is written",
        WRITER,
        "        if pending.sync and self._written:\n",
        "        if self._written:\n",
        (f"{COMMIT}::test_what_was_applied_is_written_unsynced_and_durable_with_the_next_synced_batch",),
    ),
    Mutant(
        "compacted-past-durable",
        "a log on disk starts at what is durable, not at what is applied",
        ONDISK,
        "        core, index = replica.core, data.durable.index\n",
        "        core, index = replica.core, replica.core.applied\n",
        (f"{NODES}::test_a_log_never_starts_above_what_is_durable",),
        works=False,
    ),
    Mutant(
        "old-data-after-install",
        "a replica goes on from the keyspace that it was switched to",
        KEYSPACE,
        "        old, self.space = self.space, applied.space\n",
        "        old = applied.space\n",
        (f"{NODES}::test_a_follower_that_lags_behind_the_log_is_sent_the_data_and_its_old_ones_are_deleted",),
    ),
    Mutant(
        "switched-apart-from-the-snapshot",
        "the batch that stores a leader's snapshot switches to its data",
        PAIRS,
        "        batch.put_applied(data.group_id, applied)\n        data.installing",
        "        data.installing",
        (f"{NODES}::test_a_crash_at_any_write_of_an_install_finds_the_old_state_or_the_new_one",),
    ),
    Mutant(
        "spaces-never-deleted",
        "after a start every keyspace that no replica names is deleted",
        SPACES,
        "            if space not in named:\n",
        "            if False:\n",
        (f"{NODES}::test_a_large_old_space_is_deleted_in_steps_also_after_a_crash_between",),
    ),
    Mutant(
        "last-copy-deleted",
        "no keyspace is taken for nobody's while a group is damaged",
        SPACES,
        "        if len(self._engine.residents.quarantine):\n",
        "        if False:\n",
        (f"{NODES}::test_while_a_group_is_damaged_no_keyspace_is_taken_for_nobodys",),
    ),
    Mutant(
        "batch-of-one-command-twice",
        "a batch takes of a session only what is new whatever comes of those before it",
        SESSIONS,
        " or sequence in self._taken",
        "",
        ("tests/engine/test_batching.py::test_results_state_and_sessions_are_the_same_wherever_batches_end",),
    ),
    Mutant(
        "batch-of-what-was-given-up",
        "a command below what its client has given up before it is not applied, in a batch neither",
        SESSIONS,
        "        self._lowest = floor\n        self._taken",
        "        self._taken",
        ("tests/engine/test_batching.py::test_results_state_and_sessions_are_the_same_wherever_batches_end",),
    ),
    Mutant(
        "time-by-the-wall",
        "the replicated clock of a running node is never set by its wall clock",
        STAMPS,
        "        if not self._known:\n            self._known = True\n            now_ms = wall_ms",
        "        if True:\n            self._known = True\n            now_ms = wall_ms",
        (
            f"{CONTEXT}::test_a_wall_clock_that_is_set_ends_nothing_at_once_whoever_leads",
            f"{CONTEXT}::test_a_session_outlives_a_wall_clock_that_is_set_by_more_than_its_expiry",
        ),
    ),
)
