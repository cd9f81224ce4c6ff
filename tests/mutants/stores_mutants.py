"""Mutants of the rules about stores: which ones are refused, and how an emptied node comes back.

Rules of this file: see `Mutant`.
"""

from __future__ import annotations

from typing import Final

from tests.mutants.mutant import Mutant

CHANGING: Final = "multiraft/engine/changing.py"
DIRECTORY: Final = "shard/directory.py"
FORMING: Final = "multiraft/forming.py"
HOSTING: Final = "multiraft/hosting.py"
KNOWN: Final = "transport/known.py"
MEMBERS: Final = "multiraft/members.py"
READMISSION: Final = "multiraft/readmission.py"
RUNNING: Final = "multiraft/running.py"
STANDING: Final = "multiraft/standing.py"
STORE: Final = "storage/store.py"
OPENING: Final = "storage/opening.py"

GREETING: Final = "tests/transport/test_contract_greeting.py"
NODES: Final = "tests/node/test_stores.py"
OF_DIRECTORY: Final = "tests/shard/test_directory.py"
OF_OPENING: Final = "tests/storage/test_store_opening.py"

STORES_MUTANTS: Final = (
    Mutant(
        "replaced-store-let-in",
        "a store in whose place another one was admitted is refused",
        KNOWN,
        "        return mine != hello.store_id and hello.readmissions <= self.identity.readmissions",
        "        return False",
        (f"{GREETING}::test_a_store_that_was_replaced_is_refused_and_told_so",),
    ),
    Mutant(
        "judged-without-knowing",
        "who knows of fewer readmissions does not judge the other's store",
        KNOWN,
        "        return mine != hello.store_id and hello.readmissions <= self.identity.readmissions",
        "        return mine != hello.store_id",
        (f"{NODES}::test_a_member_that_was_away_at_the_readmission_takes_it_over_on_return",),
    ),
    Mutant(
        "run-ids-not-compared",
        "a store that does not know the run that was met was rolled back",
        KNOWN,
        "        if told and seen.run_id and told != seen.run_id:",
        "        if False:",
        (f"{NODES}::test_a_rolled_back_store_is_refused_and_its_node_ends_saying_why",),
    ),
    Mutant(
        "rolled-back-to-unformed",
        "a store of the cluster that has forgotten it is refused",
        KNOWN,
        "        if seen is None or seen.store_id != hello.store_id:",
        "        if seen is None or seen.store_id != hello.store_id or not hello.formed:",
        (f"{GREETING}::test_a_store_rolled_back_to_before_it_was_formed_is_refused",),
    ),
    Mutant(
        "met-runs-not-kept",
        "which runs of peers were met outlives this node's run",
        STANDING,
        "        self._writer.write(lambda batch: batch.put_seen(seen), lambda: None)\n        return True",
        "        return False",
        (f"{NODES}::test_a_rolled_back_store_is_refused_after_all_peers_and_itself_have_started_anew",),
    ),
    Mutant(
        "rolled-back-goes-on",
        "a store that was rolled back is marked and never starts again",
        STANDING,
        '            self._store.condemn(reason)\n            raise StorageError(reason)\n        if kind == "store"',
        '            raise StorageError(reason)\n        if kind == "store"',
        (f"{NODES}::test_a_rolled_back_store_is_refused_and_its_node_ends_saying_why",),
    ),
    Mutant(
        "admitted-store-founds",
        "an admitted store makes no founding replica that an earlier one may have voted with",
        DIRECTORY,
        '        return identity.node_id in self.nodes and self.stores.get(identity.node_id, b"") == own',
        "        return identity.node_id in self.nodes",
        (
            f"{OF_DIRECTORY}::test_a_group_is_founded_by_the_stores_alone_that_its_nodes_had_at_the_time",
            f"{NODES}::test_founding_replicas_are_not_made_again",
        ),
    ),
    Mutant(
        "admitted-store-founds-directory",
        "an admitted store makes no founding replica of the directory",
        HOSTING,
        "        if identity.founder:\n",
        "        if identity.formed:\n",
        (f"{NODES}::test_an_admitted_store_founds_no_directory",),
    ),
    Mutant(
        "admission-overtaken",
        "an admission that was overtaken does not bring back an earlier store",
        DIRECTORY,
        "        if readmissions != self.readmissions:",
        "        if readmissions > self.readmissions:",
        (f"{OF_DIRECTORY}::test_an_admission_is_counted_once_and_one_that_was_overtaken_is_refused",),
    ),
    Mutant(
        "incarnations-begin-anew",
        "the runs of an admitted store are numbered above those of all earlier ones",
        STORE,
        "        self._bind(bound, self._incarnation + (0 if bound.founder else readmissions * ADMITTED_RUNS))",
        "        self._bind(bound, self._incarnation)",
        (
            f"{OF_OPENING}::test_a_store_that_was_admitted_counts_its_runs_above_those_of_all_earlier_stores",
            f"{NODES}::test_readmitting_is_taken_up_where_it_was_interrupted",
        ),
    ),
    Mutant(
        "old-replica-kept",
        "every replica of the old store is replaced",
        MEMBERS,
        "                if store and (there == lives or members.stores.get(there) == store):",
        "                if store:",
        (f"{NODES}::test_an_emptied_node_takes_no_part_until_it_is_readmitted_and_then_serves",),
    ),
    Mutant(
        "replaced-again",
        "what lives in the new store is not replaced again",
        MEMBERS,
        "                if store and (there == lives or members.stores.get(there) == store):",
        "                if False:",
        (f"{NODES}::test_calling_again_replaces_nothing",),
    ),
    Mutant(
        "directory-loses-a-replica",
        "the directory keeps a replica on every node",
        CHANGING,
        "not _stays_everywhere(core.membership, changes)",
        "not changes",
        (f"{NODES}::test_the_directory_keeps_its_replica_on_every_node",),
    ),
    Mutant(
        "given-up-store-goes-on",
        "a node whose store was given up ends",
        STANDING,
        '        if kind == "store" and identity.formed:',
        '        if kind == "store" and not identity.formed:',
        (f"{NODES}::test_the_old_store_is_refused_after_the_readmission_and_its_node_ends_saying_why",),
    ),
    Mutant(
        "run-id-not-drawn",
        "every run draws an id of its own",
        OPENING,
        "    runs = (*found.runs, new_run_id())[-RUNS_KEPT:]",
        "    runs = (*found.runs, bytes(RUN_ID_BYTES))[-RUNS_KEPT:]",
        (f"{OF_OPENING}::test_every_run_draws_an_id_and_knows_those_before_it",),
    ),
    Mutant(
        "quorum-lost-in-silence",
        "that too many were emptied is said",
        READMISSION,
        "                    raise NotReady(lost)",
        "                    pass",
        (f"{NODES}::test_two_of_three_emptied_at_once_is_said_to_be_too_many",),
    ),
)
