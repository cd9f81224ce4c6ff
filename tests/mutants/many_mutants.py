"""Mutants of many commands at once: each has its own outcome, its own place, and its own number.

Rules of this file: see `Mutant`.
"""

from __future__ import annotations

from typing import Final

from tests.mutants.mutant import Mutant

ENGINE_TESTS: Final = "tests/engine/test_many.py"
ROUTER_TESTS: Final = "tests/shard/test_many.py"
SESSION_TESTS: Final = "tests/shard/test_session_by_key.py"

NODE_TESTS: Final = "tests/node/test_many_commands.py"

MANY_MUTANTS: Final = (
    Mutant(
        "anything-is-proposed",
        "what is not bytes reaches no log: no replica could decode it",
        "multiraft/engine/proposing.py",
        "    if type(entry) is not bytes:",
        "    if False:",
        (f"{NODE_TESTS}::test_what_is_not_bytes_is_refused_and_the_group_goes_on",),
    ),
    Mutant(
        "many-judged-together",
        "whether a command may be sent again is judged for each by itself",
        "shard/many.py",
        "                attempts.copy().failed(outcome)\n",
        "                after.failed(outcome)\n",
        (f"{ROUTER_TESTS}::test_that_one_may_have_happened_says_nothing_of_another",),
    ),
    Mutant(
        "many-numbers-never-end",
        "the numbers of many commands end with their call",
        "shard/session.py",
        "            finally:\n                session.end_many(first, len(left))\n",
        "            finally:\n                pass\n",
        (f"{ROUTER_TESTS}::test_with_a_number_what_may_have_happened_is_sent_again_under_the_same",),
    ),
    Mutant(
        "many-numbers-unbounded",
        "no more numbers are outstanding than a group remembers",
        "shard/session.py",
        "        if not self.has_room(count):\n",
        "        if False:\n",
        (f"{ROUTER_TESTS}::test_more_than_a_session_may_have_outstanding_are_refused",),
    ),
    Mutant(
        "many-all-numbered-anew",
        "of a session that has ended only what was refused for that is numbered anew",
        "shard/session.py",
        "            left = [place for place in left if type(outcomes[place]) is SessionExpired]\n",
        "            left = list(left) if any(type(o) is SessionExpired for o in outcomes) else []\n",
        (f"{ROUTER_TESTS}::test_those_of_a_session_that_has_ended_are_numbered_anew_and_no_others",),
    ),
    Mutant(
        "many-submitted-numbers-never-end",
        "the numbers of submitted commands end when they are told of",
        "shard/submitting.py",
        "        if self._session is not None:\n            self._session.end_many",
        "        if False:\n            self._session.end_many",
        (f"{ROUTER_TESTS}::test_a_callback_that_raises_is_logged_and_its_numbers_end",),
    ),
    Mutant(
        "many-cut-records-share",
        "who waits for commands of two records waits for them apart",
        "multiraft/engine/waiting.py",
        "    if type(many) is Many and at and futures[at - 1] is many:\n",
        "    if type(many) is Many and not at:\n",
        (f"{ENGINE_TESTS}::test_records_may_end_anywhere_and_come_in_any_order",),
    ),
    Mutant(
        "many-first-speaks-for-all",
        "one command speaks only for calls of the same method with as many arguments",
        "multiraft/engine/proposing.py",
        "        if not entry.startswith(head, at):\n",
        "        if at and not entry.startswith(head[:1], at):\n",
        (f"{ENGINE_TESTS}::test_one_that_the_class_does_not_know_or_that_is_too_long_keeps_all_out",),
    ),
    Mutant(
        "many-wrong-shard-told",
        "what a shard refuses for its range is routed by a newer map",
        "shard/route.py",
        "            left = [place for place in left if type(outcomes[place]) is WrongShard]\n",
        "            left = []\n",
        (f"{ROUTER_TESTS}::test_what_a_shard_refuses_for_its_range_is_routed_by_a_newer_map",),
    ),
    Mutant(
        "session-expired-by-key-kept",
        "a session that has ended is not used again",
        "shard/session.py",
        "                if isinstance(problem, SessionExpired):\n                    self.forget(group_id, session)\n",
        "",
        (f"{SESSION_TESTS}::test_a_session_that_has_ended_is_followed_by_another",),
    ),
)
