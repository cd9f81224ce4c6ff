"""Mutants of what becomes of snapshot files: logs that wait for them, their pieces, and the end of them.

Rules of this file: see `Mutant`; see saving_mutants.py for how a state gets into a file and out of it.
"""

from __future__ import annotations

from typing import Final

from tests.mutants.mutant import Mutant

DISK_FILES: Final = "multiraft/engine/diskfiles.py"
LOADING: Final = "multiraft/engine/loading.py"
MACHINE: Final = "multiraft/engine/machine.py"
PAIRS: Final = "multiraft/engine/pairstream.py"
SHELVING: Final = "multiraft/engine/shelving.py"
SNAPSHOTTING: Final = "multiraft/engine/snapshotting.py"

DISK: Final = "tests/node/test_disk_files.py"
MEMORY: Final = "tests/node/test_state_files.py"
PARTS: Final = "tests/engine/test_saving.py"
STREAM: Final = "tests/engine/test_pairstream.py"

FILES_MUTANTS: Final = (
    Mutant(
        "large-entries-trail",
        "of a log of few large entries no more than half stays",
        SNAPSHOTTING,
        "min(self._trailing, length // 2)",
        "self._trailing",
        (f"{MEMORY}::test_a_log_of_few_large_entries_is_kept_short_by_its_bytes",),
    ),
    Mutant(
        "log-waits-for-nobody",
        "the log stays for a follower that fetches a snapshot or takes it in",
        DISK_FILES,
        "HELD_TIMES: Final = 16",
        "HELD_TIMES: Final = 0",
        (
            f"{MEMORY}::test_the_log_waits_for_a_follower_that_fetches_a_snapshot",
            f"{DISK}::test_the_log_is_held_until_the_follower_has_what_it_needs",
        ),
    ),
    Mutant(
        "log-waits-for-ever",
        "a log that waits for a follower grows no longer than a bound",
        DISK_FILES,
        "return held if held is not None and replica.core.last_index - held <= self._held_entries else None",
        "return held",
        (f"{DISK}::test_a_log_that_is_held_too_long_is_let_go",),
    ),
    Mutant(
        "loading-never-held",
        "no more is read while what takes it has no room",
        LOADING,
        "                if self._held:\n                    return\n",
        "",
        (f"{PARTS}::test_what_is_held_is_given_no_more_until_there_is_room",),
    ),
    Mutant(
        "pieces-of-any-size",
        "a state is saved in small pieces, also where it comes as one",
        MACHINE,
        "yield piece if len(piece) <= _PIECE_BYTES else piece[at : at + _PIECE_BYTES]",
        'yield piece[at:] if at == 0 else b""',
        (f"{PARTS}::test_a_state_that_comes_as_one_is_taken_in_small_pieces",),
    ),
    Mutant(
        "pairs-in-any-order",
        "the keys of a keyspace's stream ascend",
        PAIRS,
        "if key <= last or key[0] >= _PARTS:",
        "if not key or key[0] >= _PARTS:",
        (f"{STREAM}::test_keys_that_have_no_place_there_are_refused",),
    ),
    Mutant(
        "pairs-of-any-length",
        "a pair is no longer than what is to come",
        PAIRS,
        "if end > size_bytes + self._to_come:",
        "if end < 0:",
        (f"{STREAM}::test_a_length_that_the_stream_cannot_have_is_refused_before_it_is_waited_for",),
    ),
    Mutant(
        "shelf-of-a-halted-one",
        "the file of a replica that halted in taking it stays",
        SHELVING,
        "if name in self._coming or self._named.get(group_id) == name:",
        "if name in self._coming or (self._named.get(group_id) == name and replica and not replica.halted):",
        (f"{MEMORY}::test_the_file_of_a_replica_that_could_not_take_it_stays_for_when_it_can",),
    ),
    Mutant(
        "shelf-of-a-damaged-one",
        "the files of a damaged replica stay until its group has replaced it",
        SHELVING,
        "return self._engine.residents.quarantine.of(group_id) is not None",
        "return False",
        (f"{MEMORY}::test_the_files_of_a_damaged_replica_stay_until_its_group_has_replaced_it",),
    ),
    Mutant(
        "made-of-long-ago",
        "what was made for a follower serves another one only while it is new, or on its way",
        DISK_FILES,
        "return index >= core.snapshot_index or bool(",
        "return True or bool(",
        (f"{DISK}::test_what_was_made_long_ago_is_made_anew_for_who_asks_now",),
    ),
    Mutant(
        "made-of-another-membership",
        "what is made for a follower carries the membership as of its index",
        DISK_FILES,
        "not max(core.membership.index, core.log.start.index) <= applied.index",
        "core.log.start.index > applied.index",
        (f"{DISK}::test_none_is_made_while_the_membership_is_ahead_of_the_data",),
    ),
)
