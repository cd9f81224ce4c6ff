"""Mutants of the rules about halted replicas, comparing, slow commands and versions.

Rules of this file: see `Mutant`.
"""

from __future__ import annotations

from typing import Final

from tests.mutants.mutant import Mutant

APPLYING: Final = "multiraft/engine/applying.py"
CONTAINING: Final = "multiraft/engine/containing.py"
CONTAINMENT: Final = "multiraft/containment.py"
DIRECTORY: Final = "shard/directory.py"
EXECUTING: Final = "multiraft/engine/executing.py"
REPLICA: Final = "multiraft/engine/replica.py"
ROLLING: Final = "multiraft/engine/rolling.py"
SHARD_MAP: Final = "shard/shard_map.py"
SNAPSHOTS: Final = "multiraft/raft/snapshots.py"
ADAPTING: Final = "multiraft/adapting.py"
WATCHDOG: Final = "multiraft/watchdog.py"

NODES: Final = "tests/node/test_containment.py"
OF_VERSIONS: Final = "tests/node/test_versions.py"

CONTAINMENT_MUTANTS: Final = (
    Mutant(
        "halt-not-written-down",
        "a replica that has halted stays so over restarts",
        CONTAINING,
        "            engine.writer.write(lambda batch: batch.put_halt(replica.group_id, halt), _nothing)",
        "            pass",
        (f"{NODES}::test_a_halted_replica_stays_so_over_restarts_and_takes_part_in_all_else",),
    ),
    Mutant(
        "halted-applies-on",
        "a halted replica applies nothing from the entry on",
        REPLICA,
        "        return self.committed if self.halted is None else min(self.committed, self.halted.index - 1)",
        "        return self.committed",
        (f"{NODES}::test_a_halted_replica_stays_so_over_restarts_and_takes_part_in_all_else",),
    ),
    Mutant(
        "retry-with-the-old-machine",
        "a retry begins with a new machine, since the old one may have done half of the command",
        REPLICA,
        "self.executor.anew(machine if self.data is None",
        "self.executor.anew(self.machine if self.data is None",
        (f"{NODES}::test_a_retry_makes_the_machine_anew_so_that_half_a_command_is_not_done_twice",),
    ),
    Mutant(
        "retried-and-still-fresh",
        "a replica that begins anew does not know any more how fresh its state is",
        REPLICA,
        "        self.local = None  # what it knows",
        "        # what it knows",
        (f"{NODES}::test_a_replica_that_is_retried_forgets_how_fresh_it_was",),
    ),
    Mutant(
        "halted-leader-stays",
        "a halted leader hands over where somebody is healthy",
        CONTAINMENT,
        "                to = max(healthy, key=lambda each: each[0])[1]",
        "                to = None",
        (f"{NODES}::test_a_halted_leader_hands_over_to_a_healthy_voter_and_callers_go_there",),
    ),
    Mutant(
        "hands-over-to-the-sick",
        "a halted leader asks nobody to take over who is halted as well",
        CONTAINMENT,
        "zip(nodes, answers, strict=True) if one and not one.trouble]",
        "zip(nodes, answers, strict=True) if one]",
        (f"{NODES}::test_where_nobody_is_healthy_the_leader_stays_and_says_so",),
    ),
    Mutant(
        "comparing-is-idle-talk",
        "a replica whose results differ halts",
        EXECUTING,
        "        if own is not None and own != value:",
        "        if False:",
        (f"{NODES}::test_a_replica_that_came_to_another_result_halts_and_names_the_command",),
    ),
    Mutant(
        "the-leader-is-always-right",
        "what most replicas have decides, not what the leader has",
        CONTAINMENT,
        "                value = held_by_most([own, *known], len(nodes) + 1)",
        "                value = own",
        (f"{NODES}::test_a_leader_that_is_the_odd_one_halts_itself_and_hands_over",),
    ),
    Mutant(
        "failures-are-not-counted-in",
        "what a command raises counts by the name of its class",
        ROLLING,
        '    return _crc32(name.encode(errors="replace"), value + index) ^ _RAISED',
        '    return _crc32(str(result).encode() + b"%d" % id(result), value + index)',
        (f"{NODES}::test_a_command_that_fails_everywhere_is_no_difference",),
    ),
    Mutant(
        "idle-groups-compare",
        "an idle group compares nothing",
        ROLLING,
        "        self.agreed, self._own = max(self.agreed, index), 1",
        "        self.agreed, self._own = max(self.agreed, index), 0",
        (f"{NODES}::test_idle_groups_compare_nothing_and_few_commands_are_compared_after_a_while",),
    ),
    Mutant(
        "a-snapshot-forgets-the-hash",
        "a replica that begins with a snapshot goes on with its hash",
        REPLICA,
        "        self.executor.rolling.restart(index, value)",
        "        self.executor.rolling.restart(index, 0)",
        (f"{NODES}::test_a_start_from_a_snapshot_goes_on_with_its_hash",),
    ),
    Mutant(
        "no-state-for-whom-the-log-would-do",
        "a replica that asks for state is given it though its log has all entries",
        SNAPSHOTS,
        "        wanted = 0 < self._wanted_state <= index",
        "        wanted = False",
        (f"{NODES}::test_a_rebuilt_replica_has_the_others_state_and_kept_its_log",),
    ),
    Mutant(
        "a-slice-without-end",
        "a slice of applying looks at the time between records, too",
        REPLICA,
        "                if self.stopwatch() > until_s:",
        "                if False:",
        (f"{NODES}::test_commands_that_hold_the_loop_one_after_the_other_leave_room_between",),
    ),
    Mutant(
        "no-rest-after-a-slow-command",
        "after a command that held the loop all else has its turn",
        APPLYING,
        "        if queue and took_s > _OVERLONG * self._slice_s:",
        "        if False:",
        (f"{NODES}::test_commands_that_hold_the_loop_one_after_the_other_leave_room_between",),
    ),
    Mutant(
        "unknown-commands-fail",
        "a command that the class does not know halts the replica: another release may have another result",
        ADAPTING,
        '            raise UnknownCommand(self._unknown("command", wire[0]))',
        '            raise CommandFailed("UnknownCommand", self._unknown("command", wire[0]))',
        (
            f"{OF_VERSIONS}::test_a_program_that_is_too_old_is_refused_and_its_replica_halts_at_what_it_does_not_know",
            "tests/test_statemachine.py::test_a_command_that_the_class_does_not_know_halts_it_and_is_never_proposed",
        ),
    ),
    Mutant(
        "one-node-is-enough",
        "a command may be used when all nodes know it",
        SHARD_MAP,
        "        known = max(self.version, min(versions.values()))",
        "        known = max(self.version, max(versions.values()))",
        (
            f"{OF_VERSIONS}::test_a_rolling_upgrade_and_on",
            "tests/shard/test_directory.py::test_what_all_nodes_know_may_be_used_and_never_goes_back",
        ),
    ),
    Mutant(
        "old-programs-are-taken-back",
        "a program that does not know what is in use is refused",
        DIRECTORY,
        "            if wanted.version < active:",
        "            if False:",
        (
            f"{OF_VERSIONS}::test_a_program_that_is_too_old_is_refused_and_its_replica_halts_at_what_it_does_not_know",
            "tests/shard/test_directory.py::test_what_all_nodes_know_may_be_used_and_never_goes_back",
        ),
    ),
    Mutant(
        "the-watchdog-repeats-itself",
        "what holds the loop is named once",
        WATCHDOG,
        "        one.told = True",
        "        pass",
        ("tests/test_watchdog.py::test_a_call_that_takes_too_long_is_named_once_with_its_place",),
    ),
)
