"""Mutants of states on their way into snapshots and out of them, and of the files that stay.

Rules of this file: see `Mutant`; taking first, then saving, then the files, then giving a machine its state.
"""

from __future__ import annotations

from typing import Final

from tests.mutants.mutant import Mutant

APPLYING: Final = "multiraft/engine/applying.py"
FILE_FORMAT: Final = "multiraft/snapshot_file.py"
FILES: Final = "storage/snapshot_files.py"
LOADING: Final = "multiraft/engine/loading.py"
KEYSPACES: Final = "multiraft/engine/diskfiles.py"
PACE: Final = "multiraft/engine/pace.py"
PACED: Final = "tests/node/test_disk_files.py"
SAVING: Final = "multiraft/engine/saving.py"
SHELVING: Final = "multiraft/engine/shelving.py"
SNAPSHOTTING: Final = "multiraft/engine/snapshotting.py"
STATES: Final = "multiraft/engine/states.py"

FILES_TESTS: Final = "tests/storage/test_snapshot_files.py"
FORMAT_TESTS: Final = "tests/test_snapshot_file.py"
NODES: Final = "tests/node/test_snapshots.py"
PARTS: Final = "tests/engine/test_saving.py"
SHELVED: Final = "tests/node/test_shelved_files.py"

TAKING: Final = (
    Mutant(
        "applied-while-taken",
        "nothing is applied to a machine while its state is taken",
        APPLYING,
        " or replica.being_taken:",
        ":",
        (f"{SHELVED}::test_nothing_is_applied_to_a_machine_while_its_state_is_taken",),
    ),
    Mutant(
        "taken-without-end",
        "a state is taken for a slice at a time",
        SAVING,
        " or stopwatch() >= until_s:\n",
        ":\n",
        (f"{PARTS}::test_a_slice_ends_with_its_time",),
    ),
    Mutant(
        "taken-ahead-of-the-disk",
        "no more of a state is taken while the disk lags behind",
        SAVING,
        "return self._under_way >= _PIECES_UNDER_WAY",
        "return self._under_way < 0",
        (f"{PARTS}::test_no_more_is_taken_while_the_disk_lags_behind",),
    ),
    Mutant(
        "sessions-left-out",
        "a snapshot of a machine in memory gives its sessions, too",
        STATES,
        "        self._executor.sessions = self._sessions.table\n",
        "",
        ("tests/node/test_sessions.py::test_a_copy_is_known_to_whoever_was_made_from_a_snapshot",),
    ),
)

SAVED: Final = (
    Mutant(
        "told-before-whole",
        "nobody hears of a file, and no log goes, before the file is whole and on disk",
        SAVING,
        "        self._sink.commit(self._committed)\n",
        "        self._sink.commit(lambda _: None)\n        self._committed(None)\n",
        (f"{PARTS}::test_a_large_state_is_a_whole_file_before_anybody_hears_of_it",),
    ),
    Mutant(
        "unnamed-file-is-a-snapshot",
        "a file whose commit failed is no snapshot",
        SAVING,
        "        if error is not None:\n            self._fail(error)\n            return\n        if self._saved is None",
        "        if self._saved is None",
        (f"{PARTS}::test_a_file_that_cannot_be_named_is_no_snapshot",),
    ),
    Mutant(
        "failed-save-compacts",
        "a snapshot that could not be saved compacts nothing",
        SNAPSHOTTING,
        "            replica.log_bytes = 0\n            return\n",
        '            replica.log_bytes = 0\n            outcome = b""\n',
        (f"{NODES}::test_a_machine_that_cannot_be_saved_is_told_of_once_and_keeps_its_log",),
    ),
    Mutant(
        "stopped-leaves-a-file",
        "a saving that is stopped while its file is committed leaves none",
        SAVING,
        "            self._files.delete(self.name)\n",
        "",
        (f"{PARTS}::test_what_is_stopped_when_all_was_taken_leaves_nothing",),
    ),
)

SHELVES: Final = (
    Mutant(
        "file-named-unsynced",
        "a file has its name only when all of it is on disk",
        FILES,
        "        os.fsync(self._open())\n",
        "        self._open()\n",
        (f"{FILES_TESTS}::test_files_and_their_directory_are_synced_before_they_have_a_name",),
    ),
    Mutant(
        "file-name-unsynced",
        "a file's name is on disk, too, before anybody hears of it",
        FILES,
        "        sync_directory(self._files.directory)\n",
        "",
        (f"{FILES_TESTS}::test_files_and_their_directory_are_synced_before_they_have_a_name",),
    ),
    Mutant(
        "wanted-file-deleted",
        "the file that a stored snapshot names stays",
        SHELVING,
        "name in self._coming or self._named.get(group_id) == name",
        "name in self._coming",
        (f"{SHELVED}::test_a_sweep_takes_what_nobody_wants_and_nothing_else",),
    ),
    Mutant(
        "coming-file-deleted",
        "a file stays while the snapshot that names it is on its way to the disk",
        SHELVING,
        "name in self._coming or self._named.get(group_id) == name",
        "self._named.get(group_id) == name",
        (f"{SHELVED}::test_a_file_stays_from_when_it_is_whole_to_when_its_snapshot_is_stored",),
    ),
    Mutant(
        "leftover-file-stays",
        "a file that nobody wants is deleted",
        SHELVING,
        "            if not self._is_wanted(name):\n",
        "            if not name:\n",
        (f"{SHELVED}::test_a_sweep_takes_what_nobody_wants_and_nothing_else",),
    ),
    Mutant(
        "replaced-file-stays",
        "a file goes when a later snapshot is stored",
        SHELVING,
        "        if old is not None and old != self._named.get(replica.group_id):\n",
        "        if old is not None and old == self._named.get(replica.group_id):\n",
        (f"{SHELVED}::test_a_file_goes_when_a_later_snapshot_is_stored",),
    ),
)

GIVEN: Final = (
    Mutant(
        "empty-machine-answers",
        "nobody is answered, and nothing applied, before a machine has the state of its snapshot",
        SNAPSHOTTING,
        "            replica.applied = 0  # until it has the state: nobody may be answered from an empty one\n",
        "",
        (f"{SHELVED}::test_nobody_is_answered_and_nothing_applied_before_the_machine_has_its_state",),
    ),
    Mutant(
        "file-digest-not-compared",
        "a file is what its manifest says by its digest, not by its name",
        FILE_FORMAT,
        "if self._digest.digest() != self._manifest.digest:",
        "if not self._manifest.digest:",
        (
            f"{FORMAT_TESTS}::test_the_file_of_another_manifest_is_refused",
            f"{PARTS}::test_a_whole_file_of_another_digest_is_refused",
        ),
    ),
    Mutant(
        "loaded-unverified",
        "a file is verified as a whole before its state counts",
        LOADING,
        "            self._reader.finish()\n",
        "",
        (f"{PARTS}::test_a_whole_file_of_another_digest_is_refused",),
    ),
    Mutant(
        "loaded-without-end",
        "a state is given on for a slice at a time",
        LOADING,
        "                if self._stopwatch() >= until_s:\n",
        "                if until_s < 0:\n",
        (f"{PARTS}::test_a_file_is_given_on_in_slices_between_which_others_run",),
    ),
)

COURTEOUS: Final = (
    Mutant(
        "keyspaces-made-at-once",
        "a state is made no faster than files travel",
        KEYSPACES,
        "            if rest_s > 0:\n                making.rests = True\n",
        "            if rest_s < 0:\n                making.rests = True\n",
        (f"{PACED}::test_a_state_is_made_and_taken_in_no_faster_than_files_travel",),
    ),
    Mutant(
        "keyspaces-filled-at-once",
        "a state is taken in no faster than files travel",
        KEYSPACES,
        "        if rest_s > 0:\n            taking.rests = True\n",
        "        if rest_s < 0:\n            taking.rests = True\n",
        (f"{PACED}::test_a_state_is_made_and_taken_in_no_faster_than_files_travel",),
    ),
    Mutant(
        "no-courtesy",
        "what is large gives way to the log's writes",
        PACE,
        "        counted = size_bytes * self._strain.factor()\n",
        "        counted = size_bytes\n",
        ("tests/engine/test_pace.py::test_writes_that_take_twice_as_long_cost_it_three_quarters_of_its_pace",),
    ),
    Mutant(
        "its-own-strain-taken-for-usual",
        "what is slow because of large states is not taken for usual",
        PACE,
        "(_USUAL if quiet else _USUAL_MEANWHILE)",
        "_USUAL",
        ("tests/engine/test_pace.py::test_what_is_slow_because_of_it_is_not_taken_for_usual",),
    ),
)

SAVING_MUTANTS: Final = (*TAKING, *SAVED, *SHELVES, *GIVEN, *COURTEOUS)
