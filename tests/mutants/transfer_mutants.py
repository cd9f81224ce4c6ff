"""Mutants of the files of snapshots on their way: who gets which, what is kept, what reaches a core.

Rules of this file: see `Mutant`; the transport, then fetching, then serving, then what the core knows of it.
"""

from __future__ import annotations

from typing import Final

from tests.mutants.mutant import Mutant

FILES: Final = "transport/files.py"
FILE_WIRES: Final = "transport/file_wires.py"
FETCHING: Final = "multiraft/engine/fetching.py"
SERVING: Final = "multiraft/engine/serving.py"
SNAPSHOTS: Final = "multiraft/raft/snapshots.py"
UPKEEP: Final = "multiraft/engine/upkeep.py"

CONTRACT: Final = "tests/transport/test_contract_files.py"
TRANSFERS: Final = "tests/node/test_fetching.py"
INSTALLING: Final = "tests/raft/test_installing.py"

TRANSFER_MUTANTS: Final = (
    Mutant(
        "file-for-any-run",
        "who asks for a file must be connected as that very run",
        FILES,
        "        known = inbound is not None and not inbound.forming and same_run(inbound.hello, asker) and asker.formed",
        "        known = True",
        (f"{CONTRACT}::test_only_a_peer_that_is_connected_as_that_very_run_gets_a_file",),
    ),
    Mutant(
        "file-goes-on-to-the-replaced",
        "who was started anew gets no more of a file in its earlier name",
        FILES,
        "        if self._closing or (inbound is not None and not same_run(inbound.hello, sent.asker)):",
        "        if self._closing:",
        (f"{CONTRACT}::test_an_asker_that_was_started_anew_gets_no_more_in_its_earlier_name",),
    ),
    Mutant(
        "file-of-any-size",
        "a file of another size than was told is refused",
        FILES,
        "        if size_bytes != asked.size_bytes:",
        "        if size_bytes < 0:",
        (f"{CONTRACT}::test_a_file_of_another_size_is_refused_and_nothing_of_it_taken",),
    ),
    Mutant(
        "file-read-ahead-of-all",
        "an asker that takes nothing holds the owner back",
        FILE_WIRES,
        " or self._untaken_bytes >= WINDOW_BYTES:",
        ":",
        (f"{CONTRACT}::test_an_asker_that_takes_nothing_holds_the_owner_back",),
    ),
    Mutant(
        "digest-not-compared",
        "nothing reaches a core but with a file whose digest was told",
        FETCHING,
        "            elif digest.digest() == fetch.manifest.digest:",
        "            else:\n                self._is_whole(fetch)\n                return\n            if not digest:",
        (f"{TRANSFERS}::test_a_file_that_is_not_what_was_told_of_is_fetched_anew",),
    ),
    Mutant(
        "repeated-message-begins-anew",
        "a repeated message does not start a transfer again",
        FETCHING,
        "or fetch.name != manifest.name:",
        "or fetch.name:",
        (f"{TRANSFERS}::test_a_transfer_that_was_cut_goes_on_from_where_it_was",),
    ),
    Mutant(
        "whole-file-fetched-again",
        "a file that an earlier run had whole is not fetched again",
        FETCHING,
        "        if self._is_whole_here(fetch.name):",
        "        if not fetch.name:",
        (f"{TRANSFERS}::test_a_file_that_was_here_whole_is_not_fetched_again",),
    ),
    Mutant(
        "all-fetched-at-once",
        "few files are fetched at once",
        FETCHING,
        "            if under_way >= self._engine.limits.snapshot_transfers:",
        "            if under_way < 0:",
        (f"{TRANSFERS}::test_few_files_are_fetched_at_once_and_together_no_faster_than_allowed",),
    ),
    Mutant(
        "fetched-at-any-pace",
        "what is fetched keeps to its pace",
        FETCHING,
        "                wait_s = pace.take(len(piece))",
        "                wait_s = 0.0",
        (f"{TRANSFERS}::test_few_files_are_fetched_at_once_and_together_no_faster_than_allowed",),
    ),
    Mutant(
        "gone-file-not-told",
        "a leader whose file is gone is told at once",
        FETCHING,
        "            self._report(fetch, gone=True)\n",
        "",
        (f"{TRANSFERS}::test_a_leader_whose_file_vanishes_midway_is_told_and_sends_its_newest",),
    ),
    Mutant(
        "file-let-go-before-its-snapshot",
        "a file is protected until the snapshot that names it is on disk",
        FETCHING,
        "            self._installing[fetch.group_id] = fetch\n",
        "",
        (f"{TRANSFERS}::test_a_file_is_protected_until_its_snapshot_is_on_disk",),
    ),
    Mutant(
        "all-sent-at-once",
        "few files are sent at once",
        SERVING,
        "        if len(self._sending) >= self._most:",
        "        if not self._most:",
        (f"{TRANSFERS}::test_an_owner_sends_few_files_at_once_and_the_others_come_again",),
    ),
    Mutant(
        "sent-file-not-pinned",
        "a file that is being sent stays, though there is a newer one",
        SERVING,
        " or any(sending.name == name for sending in self._sending.values())",
        "",
        (f"{TRANSFERS}::test_a_file_that_is_being_sent_is_kept_though_there_is_a_newer_one",),
    ),
    Mutant(
        "L23-counts-installing",
        "time in which a voter installs does not count against its leader",
        UPKEEP,
        "            elif core.commit != commit or (now - since_s >= timeout_s and core.installing):",
        "            elif core.commit != commit:",
        (f"{TRANSFERS}::test_a_leader_is_patient_while_a_voter_it_needs_fetches_for_long",),
    ),
    Mutant(
        "impatient-with-who-installs",
        "who says that it installs is not asked after",
        SNAPSHOTS,
        "            peer.pending_since_s = now\n\n    #",
        "            pass\n\n    #",
        (f"{INSTALLING}::TestLeader::test_one_that_is_being_installed_is_not_asked_after",),
    ),
    Mutant(
        "gone-of-an-earlier-snapshot",
        "what is said of an earlier snapshot changes nothing",
        SNAPSHOTS,
        "        if peer.pending != message.index:",
        "        if not peer.pending:",
        (f"{INSTALLING}::TestLeader::test_what_is_not_of_the_one_that_it_awaits_changes_nothing",),
    ),
)
