"""Mutants of the short ways of ordinary appends and acknowledgements: each rule of the general way holds there, too.

Rules of this file: see `Mutant`; in the order of the code.
"""

from __future__ import annotations

from typing import Final

from tests.mutants.mutant import Mutant

ORDINARY: Final = "multiraft/raft/ordinary.py"
TESTS: Final = "tests/raft/test_ordinary.py"
BOTH: Final = f"{TESTS}::test_both_ways_lead_to_the_same"

SHORT_WAY_MUTANTS: Final = (
    Mutant(
        "short-way-past-the-window",
        "a follower with a full window of unanswered appends gets no more by the short way",
        ORDINARY,
        "len(peer.inflight) >= settings.inflight_messages",
        "len(peer.inflight) < 0",
        (BOTH,),
    ),
    Mutant(
        "short-way-to-who-lags",
        "who is not at the end of the log is sent what it lacks, by the general way",
        ORDINARY,
        "                or peer.next != first\n",
        "",
        (f"{TESTS}::test_whoever_lags_or_is_about_to_lead_keeps_a_leader_from_the_short_way",),
    ),
    Mutant(
        "short-way-while-handing-over",
        "a leader that hands over takes nothing new",
        ORDINARY,
        "if self.role is not LEADER or self._transfer_to != NOBODY or not self._quiet():",
        "if self.role is not LEADER or not self._quiet():",
        (f"{TESTS}::test_whoever_lags_or_is_about_to_lead_keeps_a_leader_from_the_short_way",),
    ),
    Mutant(
        "short-ack-of-another-term",
        "an acknowledgement counts for the term that it was given in",
        ORDINARY,
        "            or term != self.term\n            or peer.state",
        "            or peer.state",
        (f"{TESTS}::test_an_acknowledgement_counts_in_its_own_term_and_from_a_member_alone",),
    ),
    Mutant(
        "short-ack-beyond-the-log",
        "nobody can have more than the leader has sent",
        ORDINARY,
        "            or index > last\n",
        "",
        (f"{TESTS}::test_an_acknowledgement_counts_in_its_own_term_and_from_a_member_alone",),
    ),
    Mutant(
        "short-way-of-another-chain",
        "a record follows an entry of the term that it names",
        ORDINARY,
        "            or record.prev_term != log.last_term\n",
        "",
        (f"{TESTS}::test_only_what_the_leader_of_the_term_has_sent_takes_the_short_way",),
    ),
    Mutant(
        "short-way-of-any-leader",
        "entries are taken from the leader of the term alone",
        ORDINARY,
        "            or self.leader != sender\n",
        "",
        (f"{TESTS}::test_only_what_the_leader_of_the_term_has_sent_takes_the_short_way",),
    ),
    Mutant(
        "short-way-with-a-gap",
        "a record follows the end of the log",
        ORDINARY,
        "            or prev_index != log.last_index\n",
        "",
        (BOTH,),
    ),
    Mutant(
        "short-way-of-a-membership",
        "a change of the membership never takes a short way",
        ORDINARY,
        "            or record.kind == MEMBERSHIP\n",
        "",
        (f"{TESTS}::test_a_change_of_the_membership_never_takes_a_short_way",),
    ),
    Mutant(
        "short-way-commits-too-far",
        "an append commits at most its own last entry",
        ORDINARY,
        "        if commit > last:  # L26\n            commit = last\n",
        "",
        (f"{TESTS}::test_a_short_way_takes_no_more_for_committed_than_its_own_append",),
    ),
    Mutant(
        "short-way-applied-before-own-disk",
        "only what is on the own disk is applied, and answered to callers",
        ORDINARY,
        "        if stable < committed:\n            committed = stable\n",
        "",
        (BOTH,),
    ),
)
