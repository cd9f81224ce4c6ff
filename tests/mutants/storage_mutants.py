"""Mutants of storage: syncs, their order, and what a store remembers of its runs.

Rules of this file: see `Mutant`; syncs first, then opening and closing.
"""

from __future__ import annotations

from typing import Final

from tests.mutants.mutant import Mutant

IDENTITY: Final = "storage/identity.py"
DIRECTORY: Final = "storage/directory.py"
LEVELDB: Final = "storage/leveldb.py"
MEMORY: Final = "storage/memory.py"
OPENING: Final = "storage/opening.py"
STORE: Final = "storage/store.py"
WRITING: Final = "storage/writing.py"

CRASHES: Final = "tests/node/test_crashes.py"
CONTRACT: Final = "tests/storage/test_store_contract.py"
OPENINGS: Final = "tests/storage/test_store_opening.py"
PROMISES_KEPT: Final = "tests/node/test_promises_kept.py"
SYNCS: Final = "tests/storage/test_syncs.py"
WRITER: Final = "tests/storage/test_writing.py"

SYNCING: Final = (
    Mutant(
        "sync-off-leveldb",
        "every write to LevelDB is synced",
        LEVELDB,
        "write_batch(sync=True)",
        "write_batch(sync=False)",
        (
            "tests/storage/test_leveldb.py::test_every_batch_is_synced_and_every_read_checked",
            f"{SYNCS}::test_a_write_is_synced_by_the_system_before_it_is_completed",
        ),
    ),
    Mutant(
        "sync-off-merged",
        "batches that were merged are synced when any of them must be",
        WRITING,
        "                sync = sync or more.sync\n",
        "                sync = more.sync\n",
        (f"{WRITER}::test_what_is_merged_is_synced_when_any_of_it_must_be",),
    ),
    Mutant(
        "log-left-unsynced",
        "a write-ahead log that LevelDB leaves for the next one is synced, where something in it was not",
        "storage/wal.py",
        "            if self._unsynced:\n",
        "            if False:\n",
        ("tests/storage/test_wal.py::test_the_log_that_was_left_is_synced_if_something_in_it_was_not",),
    ),
    Mutant(
        "no-note-of-what-was-synced",
        "a log that was cut short between two records is noticed",
        "storage/wal.py",
        "            self._put_down()\n",
        "            pass\n",
        ("tests/storage/test_wal.py::test_no_log_that_was_cut_short_of_what_was_synced_is_let_pass",),
    ),
    Mutant(
        "noted-before-it-was-synced",
        "what was never synced may be missing",
        "storage/wal.py",
        "        self._synced = synced\n",
        "        self._synced = True\n",
        ("tests/storage/test_wal.py::test_what_was_never_synced_may_be_missing",),
    ),
    Mutant(
        "unsynced-before-synced-lost",
        "a synced batch makes those before it durable, on the memory disk too",
        MEMORY,
        "                self._undo.clear()\n        if failure",
        "                pass\n        if failure",
        (
            "tests/storage/test_memory.py::test_a_crash_takes_unsynced_batches_from_the_end_and_never_one_before_a_synced_one",
        ),
    ),
    Mutant(
        "completed-before-write",
        "a write is completed after it was written, not when it is taken",
        WRITING,
        "        self._queue.put(_Job(batch, done, None, sync))\n",
        "        self._queue.put(_Job(batch, lambda _: None, None, sync))\n        self._loop.call_soon(done, None)\n",
        (f"{SYNCS}::test_a_write_is_synced_by_the_system_before_it_is_completed",),
    ),
    Mutant(
        "sync-off-memory",
        "the memory disk keeps what it acknowledged over a crash",
        MEMORY,
        "            if not (sync and self.sync):\n",
        "            if sync and self.sync:\n",
        (
            "tests/storage/test_memory.py::test_a_crash_drops_what_was_not_written_and_keeps_what_was",
            f"{PROMISES_KEPT}::test_what_was_acknowledged_is_on_two_disks_at_that_very_moment",
        ),
    ),
    Mutant(
        "completed-before-write-store",
        "the store completes a write after its backend has, over the memory disk as well",
        STORE,
        "self._backend.submit(cast(PartitionedBatch, batch).raw, done, sync)",
        "self._backend.submit(cast(PartitionedBatch, batch).raw, lambda _: None, sync)\n"
        "        asyncio.get_running_loop().call_soon(done, None)",
        (
            f"{CRASHES}::test_no_acknowledgement_before_a_quorum_has_synced",
            f"{CRASHES}::test_nobody_is_elected_while_votes_are_not_on_disk",
            f"{PROMISES_KEPT}::test_what_was_acknowledged_is_on_two_disks_at_that_very_moment",
        ),
    ),
    Mutant(
        "written-after-failure",
        "after a failed write nothing is written or acknowledged again",
        WRITING,
        "            if self._error is None:\n                if failpoints",
        "            self._error = None\n            if self._error is None:\n                if failpoints",
        (f"{CONTRACT}::test_a_failed_write_is_final_and_leaves_nothing_of_its_batch",),
    ),
    Mutant(
        "identity-file-unsynced",
        "the identity file is synced before it is renamed",
        DIRECTORY,
        "            sync_file(file.fileno())\n",
        "",
        ("tests/storage/test_leveldb.py::test_the_identity_file_is_replaced_as_a_whole",),
    ),
    Mutant(
        "identity-directory-unsynced",
        "the directory is synced after the rename",
        DIRECTORY,
        '        os.replace(name + ".tmp", name)\n        sync_directory(path)\n',
        '        os.replace(name + ".tmp", name)\n',
        ("tests/storage/test_leveldb.py::test_the_identity_file_is_replaced_as_a_whole",),
    ),
    Mutant(
        "file-before-database",
        "the cluster is bound in the database before the identity file",
        STORE,
        "        self._backend.write(batch)\n        if failpoints",
        "        self._backend.save_identity(layout.encode_identity_file(bound, self._incarnation, False))\n        self._backend.write(batch)\n        if failpoints",
        (f"{SYNCS}::test_binding_writes_the_database_before_the_file",),
    ),
)

RUNS: Final = (
    Mutant(
        "incarnation-not-raised",
        "every start raises the incarnation",
        OPENING,
        "incarnation = found.incarnation + 1",
        "incarnation = found.incarnation or 1",
        (f"{OPENINGS}::test_incarnations_rise_by_one_at_every_opening",),
    ),
    Mutant(
        "incarnation-not-written",
        "the incarnation is on disk before the store is used",
        OPENING,
        "    batch.delete(layout.CLOSING_KEY)\n    backend.write(batch)\n",
        "    batch.delete(layout.CLOSING_KEY)\n",
        (f"{OPENINGS}::test_incarnations_rise_by_one_at_every_opening",),
    ),
    Mutant(
        "no-closing-record",
        "an orderly stop writes a closing record",
        STORE,
        "        record.put(layout.CLOSING_KEY, layout.encode_number(layout.CLOSING_KEY, self._incarnation))\n",
        "",
        (f"{CONTRACT}::test_closed_orderly_tells_how_the_previous_run_ended",),
    ),
    Mutant(
        "closing-record-stays",
        "the closing record is gone as soon as the next run begins",
        OPENING,
        "    batch.delete(layout.CLOSING_KEY)\n",
        "",
        (f"{OPENINGS}::test_the_closing_record_is_gone_as_soon_as_the_next_run_begins",),
    ),
    Mutant(
        "stale-closing-record",
        "an earlier run's closing record is not taken for the last one's",
        IDENTITY,
        "orderly = closing is not None and closing == run",
        "orderly = closing is not None",
        (f"{OPENINGS}::test_a_stale_closing_record_is_not_taken_for_the_last_runs",),
    ),
    Mutant(
        "emptied-database-taken",
        "a database that came back empty is refused",
        IDENTITY,
        "        if in_file is not None:\n            raise StorageError(",
        "        if in_file is None and raw_file is not None:\n            raise StorageError(",
        (f"{OPENINGS}::test_a_database_that_came_back_empty_is_refused",),
    ),
    Mutant(
        "rolled-back-database-taken",
        "a database that forgot its latest run is refused",
        IDENTITY,
        "if run < latest_run or (run == latest_run and closed and not orderly):",
        "if run < 0:",
        (
            f"{OPENINGS}::test_a_database_that_forgot_its_latest_run_is_refused",
            f"{OPENINGS}::test_a_database_that_forgot_its_orderly_end_is_refused",
        ),
    ),
)

STORAGE_MUTANTS: Final = (*SYNCING, *RUNS)
