"""Mutants of sessions: what makes a command apply once, however often it is sent.

Rules of this file: see `Mutant`; the table first, then how it is kept, then the client.
"""

from __future__ import annotations

from typing import Final

from tests.mutants.mutant import Mutant

EXECUTING: Final = "multiraft/engine/executing.py"
OBSERVING: Final = "multiraft/engine/observing.py"
ATTEMPTS: Final = "shard/attempts.py"
ROUTER: Final = "shard/router.py"
SESSION: Final = "shard/session.py"
TABLE: Final = "multiraft/engine/sessions.py"

CLIENT_TESTS: Final = "tests/shard/test_session.py"
NODE_TESTS: Final = "tests/node/test_sessions.py"
TABLE_TESTS: Final = "tests/engine/test_session_table.py"

THE_TABLE: Final = (
    Mutant(
        "session-no-look",
        "a command under a number seen before is not applied",
        TABLE,
        "        if reply is not _NEW:\n            return _told(sequence, reply)\n",
        "        if reply is not _NEW:\n            session.reply_bytes -= _size_bytes(session.replies.pop(sequence))\n",
        (
            f"{TABLE_TESTS}::TestOnce::test_a_command_under_a_number_seen_before_gets_its_reply_and_is_not_applied",
            f"{NODE_TESTS}::test_a_forwarded_command_whose_answer_is_lost_is_applied_once_and_answered",
            f"{NODE_TESTS}::test_a_command_that_its_leader_committed_and_died_over_is_answered_by_the_next",
        ),
    ),
    Mutant(
        "session-reply-not-kept",
        "a reply is kept for the copies of its command",
        EXECUTING,
        "            self.sessions.keep(client, sequence, answer)\n",
        "",
        (
            f"{TABLE_TESTS}::TestOnce::test_what_a_command_raised_is_kept_like_a_result",
            f"{NODE_TESTS}::test_a_copy_is_known_after_all_nodes_were_killed",
        ),
    ),
    Mutant(
        "session-failure-not-kept",
        "what a command raised is kept like a result",
        TABLE,
        "if type(result) is bytes or isinstance(result, CommandFailed):",
        "if type(result) is bytes:",
        (f"{TABLE_TESTS}::TestOnce::test_what_a_command_raised_is_kept_like_a_result",),
    ),
    Mutant(
        "session-unknown-is-new",
        "a client that is not known is never taken for a new one",
        TABLE,
        '            return SessionExpired("the group does not know',
        "            if self.sessions:\n"
        "                self.register(client, self.expiry_ms, self.reply_bytes, self.sessions, now_ms)\n"
        "                return self.answer(client, sequence, lowest, now_ms)\n"
        '            return SessionExpired("the group does not know',
        (
            f"{TABLE_TESTS}::TestOnce::test_an_unknown_client_is_never_taken_for_a_new_one",
            f"{NODE_TESTS}::test_a_session_ends_by_the_replicated_clock_alike_on_all_replicas",
        ),
    ),
    Mutant(
        "session-low-not-respected",
        "below the lowest outstanding number nothing is applied",
        TABLE,
        "        if sequence < session.lowest:\n            return ReplyForgotten(",
        "        if sequence < 0:\n            return ReplyForgotten(",
        (
            f"{TABLE_TESTS}::TestBounds::test_below_the_lowest_outstanding_number_nothing_is_applied_or_kept",
            f"{NODE_TESTS}::test_a_copy_that_comes_after_its_caller_has_gone_is_not_applied",
        ),
    ),
    Mutant(
        "session-low-goes-back",
        "the lowest outstanding number never goes back",
        TABLE,
        "        if lowest > session.lowest:\n            self._forget_below",
        "        if lowest != session.lowest:\n            self._forget_below",
        (f"{TABLE_TESTS}::TestBounds::test_the_lowest_number_never_goes_back",),
    ),
    Mutant(
        "session-replies-unbounded",
        "the replies that are kept of a session are bounded by bytes",
        TABLE,
        "        if session.reply_bytes > self.reply_bytes:\n            self._drop_replies(client, session)\n",
        "",
        (f"{TABLE_TESTS}::TestBounds::test_replies_past_the_bound_are_dropped_the_lowest_outstanding_last",),
    ),
    Mutant(
        "session-dropped-is-new",
        "a command whose reply was dropped stays known as applied",
        TABLE,
        "            session.replies[sequence] = None\n            session.reply_bytes -=",
        "            del session.replies[sequence]\n            session.reply_bytes -=",
        (f"{TABLE_TESTS}::TestBounds::test_replies_past_the_bound_are_dropped_the_lowest_outstanding_last",),
    ),
    Mutant(
        "session-window-open",
        "how many numbers a group remembers is bounded",
        TABLE,
        "        if sequence - session.lowest >= WINDOW:\n",
        "        if False:\n",
        (f"{TABLE_TESTS}::TestBounds::test_a_number_too_far_above_the_lowest_is_refused_for_now",),
    ),
    Mutant(
        "session-never-expires",
        "a session that was not used for long ends",
        TABLE,
        "        if session is None or now_ms - session.last_use_ms > self.expiry_ms:\n",
        "        if session is None:\n",
        (f"{TABLE_TESTS}::TestEnd::test_a_session_ends_when_it_was_unused_for_longer_than_the_expiry",),
    ),
    Mutant(
        "session-by-own-clock",
        "a session ends by the replicated clock",
        EXECUTING,
        "        answer = self.sessions.answer(client, sequence, lowest, context.time_ms)\n",
        "        import asyncio\n"
        "        now_ms = int(asyncio.get_running_loop().time() * 1e3)\n"
        "        answer = self.sessions.answer(client, sequence, lowest, now_ms)\n",
        (f"{NODE_TESTS}::test_a_replica_that_applies_its_log_later_agrees_on_when_a_session_ended",),
        also=(
            (
                "        self.sessions.register(*asked, context.time_ms)\n",
                "        import asyncio\n"
                "        now_ms = int(asyncio.get_running_loop().time() * 1e3)\n"
                "        self.sessions.register(*asked, now_ms)\n",
            ),
        ),
    ),
    Mutant(
        "session-use-unnoticed",
        "a session that is used does not end",
        TABLE,
        "        session.last_use_ms = now_ms\n",
        "",
        (f"{TABLE_TESTS}::TestEnd::test_a_session_ends_when_it_was_unused_for_longer_than_the_expiry",),
    ),
    Mutant(
        "session-any-one-goes",
        "of too many sessions the one unused for longest goes",
        TABLE,
        "            if session is not None and session.last_use_ms == noted_ms:\n",
        "            if session is not None:\n",
        (f"{TABLE_TESTS}::TestEnd::test_of_too_many_the_one_unused_for_longest_goes",),
    ),
    Mutant(
        "session-registered-anew",
        "registering again forgets nothing",
        TABLE,
        "        if client in self.clients:\n            return\n        while",
        "        while",
        (f"{TABLE_TESTS}::TestOnce::test_registering_again_forgets_nothing",),
    ),
)

KEPT: Final = (
    Mutant(
        "session-not-in-snapshot",
        "a snapshot holds the sessions",
        TABLE,
        "        for client, session in sorted(self.clients.items()):\n            items.append",
        "        for client, session in ():\n            items.append",
        (
            f"{TABLE_TESTS}::TestForms::test_a_snapshot_holds_the_whole_table",
            f"{NODE_TESTS}::test_a_copy_is_known_to_whoever_was_made_from_a_snapshot",
        ),
    ),
    Mutant(
        "session-last-use-not-in-snapshot",
        "a snapshot holds when a session was used last",
        TABLE,
        "            items.append([client, session.last_use_ms, session.lowest, session.dropped])\n",
        "            items.append([client, 0, session.lowest, session.dropped])\n",
        (f"{TABLE_TESTS}::TestForms::test_a_snapshot_holds_the_whole_table",),
    ),
    Mutant(
        "session-use-not-stored",
        "the last use of a session is among what is written",
        TABLE,
        "        session.last_use_ms = now_ms\n        if self._changes is not None:\n            self._used[client] = None\n",
        "        session.last_use_ms = now_ms\n",
        (f"{TABLE_TESTS}::TestForms::test_changes_written_one_after_the_other_come_to_the_table",),
    ),
    Mutant(
        "session-forgotten-stays-stored",
        "what is forgotten of a session is deleted where it is stored",
        TABLE,
        "                if changes is not None:\n                    changes[_reply_key(client, sequence)] = None\n",
        "",
        (f"{TABLE_TESTS}::TestForms::test_changes_written_one_after_the_other_come_to_the_table",),
    ),
)

THE_CLIENT: Final = (
    Mutant(
        "session-new-number",
        "a command keeps its number through all attempts",
        ROUTER,
        "                    self._serves_not(group_id, node_id, problem)\n",
        "                    self._serves_not(group_id, node_id, problem)\n"
        '                    if attempts.kind == "numbered":\n'
        '                        number = int.from_bytes(body[16:24], "big") + 1\n'
        '                        body = body[:16] + number.to_bytes(8, "big") + body[24:]\n',
        (f"{CLIENT_TESTS}::test_the_same_number_is_tried_until_its_outcome_is_known",),
    ),
    Mutant(
        "session-register-not-awaited",
        "no command is sent before its client is registered",
        SESSION,
        "                    client = await self.open([group_id], deadline, timeout_s)\n",
        "                    client = self._router.chance.randbytes(CLIENT_BYTES)\n"
        '                    self._caller.ask_local(group_id, "register", client, timeout_s)\n',
        (f"{CLIENT_TESTS}::test_no_command_is_sent_before_its_client_is_registered_and_one_call_registers_for_all",),
        works=False,
    ),
    Mutant(
        "session-id-used-again",
        "an id whose registration is unknown is not registered again",
        SESSION,
        "        while True:\n            client = router.chance.randbytes(CLIENT_BYTES)\n",
        "        client = router.chance.randbytes(CLIENT_BYTES)\n        while True:\n",
        (f"{CLIENT_TESTS}::test_an_id_whose_registration_is_unknown_is_never_used_again",),
    ),
    Mutant(
        "session-number-never-ends",
        "a number is outstanding until its caller has been told, or has gone",
        SESSION,
        "            finally:\n                session.end(sequence)\n            if before",
        "            finally:\n                pass\n            if before",
        (
            f"{CLIENT_TESTS}::test_a_caller_that_goes_leaves_its_number_behind",
            f"{NODE_TESTS}::test_a_copy_that_comes_after_its_caller_has_gone_is_not_applied",
        ),
    ),
    Mutant(
        "session-number-never-ends-by-key",
        "a number is outstanding until its caller has been told, or has gone, on the short way, too",
        SESSION,
        "            finally:\n                session.end(sequence)\n        return",
        "            finally:\n                pass\n        return",
        ("tests/shard/test_session_by_key.py::test_a_caller_that_goes_leaves_its_number_behind",),
    ),
    Mutant(
        "session-passes-outstanding",
        "the lowest outstanding number is that of the oldest caller",
        SESSION,
        "            while lowest < after and lowest not in outstanding:\n                lowest += 1\n",
        "            lowest = after\n",
        (f"{CLIENT_TESTS}::test_so_many_numbers_after_the_oldest_outstanding_one_there_are_no_more",),
        also=(("        if sequence == self.lowest:\n", "        if True:\n"),),
    ),
    Mutant(
        "session-certain-too-early",
        "once an attempt may have happened nothing is said to have certainly not",
        ATTEMPTS,
        "            self.unknown = True\n",
        "            pass\n",
        (
            f"{CLIENT_TESTS}::test_once_an_attempt_may_have_happened_nothing_is_certain",
            f"{CLIENT_TESTS}::test_what_passes_is_waited_out_and_then_the_outcome_is_unknown",
        ),
    ),
    Mutant(
        "session-expired-is-certain",
        "who may have tried before is not told that a command certainly did not happen",
        SESSION,
        "NumberedAttempts(not first)",
        "NumberedAttempts(False)",
        (f"{CLIENT_TESTS}::test_only_who_says_that_it_was_the_first_attempt_is_told_that_a_session_has_ended",),
    ),
    Mutant(
        "session-callers-stay",
        "a leader that steps down hands back the callers whose commands are numbered",
        OBSERVING,
        "            replica.hand_back_sessions()\n",
        "",
        (f"{NODE_TESTS}::test_a_leader_that_is_cut_off_hands_its_callers_to_the_next_one",),
    ),
)

SESSIONS_MUTANTS: Final = (*THE_TABLE, *KEPT, *THE_CLIENT)
