"""Mutants of liveness: beats, lead sets, promises and leases, by the names of the rules in `engine/liveness.py`.

Rules of this file: see `Mutant`; in the order of the rules.
"""

from __future__ import annotations

from typing import Final

from tests.mutants.mutant import Mutant

LIVENESS: Final = "multiraft/engine/liveness.py"
LIVEPEER: Final = "multiraft/engine/livepeer.py"
LEADING: Final = "multiraft/engine/leading.py"

ACKNOWLEDGING: Final = "tests/engine/test_liveness_acknowledging.py"
PROMISES: Final = "tests/engine/test_liveness_promises.py"

LIVENESS_MUTANTS: Final = (
    Mutant(
        "L01-no-refusal",
        "a claim below my term is refused before the beat is acknowledged",
        LIVENESS,
        "        for group_id in added:\n            self._answer(peer, group_id)\n",
        "        for group_id in added:\n",
        (f"{ACKNOWLEDGING}::test_L01_a_claim_below_my_term_is_refused_before_the_beat_is_acknowledged",),
    ),
    Mutant(
        "L01-refusal-after-answer",
        "the refusal goes before the acknowledgement, not after it",
        LIVENESS,
        "if answer is not None and peer.telling.connected:\n            self._send(",
        "if answer is not None and peer.telling.connected:\n            (lambda *_: None)(",
        (
            f"{ACKNOWLEDGING}::test_L01_a_claim_below_my_term_is_refused_before_the_beat_is_acknowledged",
            f"{ACKNOWLEDGING}::test_L02_a_rise_after_the_claim_is_refused_before_the_next_acknowledgement",
        ),
        also=(
            (
                "            self._send(peer.node_id, BeatAnswer(beat.incarnation, beat.sequence))\n",
                "            self._send(peer.node_id, BeatAnswer(beat.incarnation, beat.sequence))\n"
                "            for group_id, (term, answer) in sorted(hearing.answers.items()):\n"
                "                self._send(peer.node_id, Refuse(group_id, answer, term))\n",
            ),
        ),
    ),
    Mutant(
        "L02-judged-once",
        "claims are judged again at every rise of a term",
        LIVENESS,
        "                if mine is not None and lead[0] < mine:\n",
        "                if mine is None:\n",
        (
            f"{ACKNOWLEDGING}::test_L02_a_rise_after_the_claim_is_refused_before_the_next_acknowledgement",
            f"{ACKNOWLEDGING}::test_L02_a_rise_caused_by_another_peers_claim_counts_too",
        ),
    ),
    Mutant(
        "L03-refusals-not-repeated",
        "a new connection repeats all refusals",
        LIVENESS,
        "in sorted(peer.hearing.answers.items()):",
        "in sorted(peer.hearing.answers.items())[:0]:",
        (f"{ACKNOWLEDGING}::test_L03_a_new_connection_repeats_refusals_before_its_first_acknowledgement",),
    ),
    Mutant(
        "L03-acknowledged-first",
        "a new connection repeats refusals before its first acknowledgement",
        LIVENESS,
        "        self._send(node_id, peer.telling.take_all())\n        for group_id, (term, answer)",
        "        self._send(node_id, peer.telling.take_all())\n        self._beat(peer, now)\n        for group_id, (term, answer)",
        (f"{ACKNOWLEDGING}::test_L03_a_new_connection_repeats_refusals_before_its_first_acknowledgement",),
    ),
    Mutant(
        "L04-not-told",
        "a refused leader is told the higher term",
        LIVENESS,
        "            self._view.refused(group_id, term, answer)\n",
        "            self._view.rejudge([group_id], now)\n",
        (f"{ACKNOWLEDGING}::test_L04_a_refused_leader_is_told_the_higher_term",),
    ),
    Mutant(
        "L05-any-claim",
        "a refusal of a claim no longer made changes nothing",
        LIVENESS,
        "        if self._leading.term_of(group_id) != term:\n            return  # it answers",
        "        if self._leading.term_of(group_id) < 0:\n            return  # it answers",
        (f"{ACKNOWLEDGING}::test_L05_a_refusal_of_another_term_or_without_a_higher_one_raises_nothing",),
    ),
    Mutant(
        "L07-digest-not-compared",
        "a beat of another set is not acknowledged, and the set is asked for",
        LIVENESS,
        "if beat.digest != hearing.held.digest:",
        "if beat.digest < 0:",
        (f"{ACKNOWLEDGING}::test_L07_a_beat_of_another_set_is_not_acknowledged_and_the_set_is_asked_for_once",),
    ),
    Mutant(
        "L07-acknowledged-all-the-same",
        "a beat of another set is not acknowledged",
        LIVENESS,
        "            self._ask(peer, now)\n            return\n",
        "            self._ask(peer, now)\n",
        (f"{ACKNOWLEDGING}::test_L07_a_beat_of_another_set_is_not_acknowledged_and_the_set_is_asked_for_once",),
    ),
    Mutant(
        "L08-any-beat-counts",
        "a beat counts for a group only if sent after the peer was told of it",
        LIVEPEER,
        " and self.acked >= self._counts_from[group_id]",
        " and self._counts_from[group_id] < math.inf",
        (f"{ACKNOWLEDGING}::test_L08_only_beats_sent_after_the_peer_was_told_count_for_a_group",),
    ),
    Mutant(
        "L08-last-beat-counts",
        "the beat sent just before the peer was told does not count",
        LIVEPEER,
        "self._counts_from[group_id] = self.sequence + 1\n                added",
        "self._counts_from[group_id] = self.sequence\n                added",
        (f"{ACKNOWLEDGING}::test_L08_only_beats_sent_after_the_peer_was_told_count_for_a_group",),
    ),
    Mutant(
        "L09-sequence-reused",
        "sequence numbers go on over connections",
        LIVENESS,
        "        peer.telling.connected = True\n",
        "        peer.telling.connected = True\n        peer.telling.sequence = 0\n",
        (f"{ACKNOWLEDGING}::test_L09_sequence_numbers_go_on_over_connections_and_acknowledgements_name_the_life",),
    ),
    Mutant(
        "L09-earlier-life",
        "an acknowledgement of an earlier incarnation says nothing about this one",
        LIVENESS,
        "if incarnation == self.incarnation:",
        "if incarnation:",
        (f"{ACKNOWLEDGING}::test_L09_sequence_numbers_go_on_over_connections_and_acknowledgements_name_the_life",),
    ),
    Mutant(
        "L09-old-beat",
        "an old beat renews no promise",
        LIVENESS,
        " or beat.sequence <= hearing.accepted:",
        ":",
        (f"{ACKNOWLEDGING}::test_L09_an_old_beat_is_not_accepted_again",),
    ),
    Mutant(
        "L10-earlier-beat",
        "a read round is acknowledged only by beats sent since it began",
        LIVEPEER,
        "self._rounds.append((self.sequence + 1, round_id))",
        "self._rounds.append((self.sequence, round_id))",
        (f"{ACKNOWLEDGING}::test_L10_a_round_is_acknowledged_only_by_beats_sent_since_it_began",),
    ),
    Mutant(
        "L11-stale-beat",
        "loyal only while the last beat is younger than the election timeout",
        LIVENESS,
        "if now - hearing.beat_s < timeout_s and",
        "if",
        (f"{PROMISES}::test_L11_loyal_means_this_term_and_a_beat_younger_than_the_election_timeout",),
    ),
    Mutant(
        "L11-other-term",
        "loyal at exactly the replica's term",
        LIVENESS,
        "timeout_s and hearing.held.term_of(group_id) == term:",
        "timeout_s and hearing.held.term_of(group_id) > 0:",
        (f"{PROMISES}::test_L11_loyal_means_this_term_and_a_beat_younger_than_the_election_timeout",),
    ),
    Mutant(
        "L12-connection-ends-promise",
        "a broken connection ends no promise",
        LIVENESS,
        "        peer.telling.connected = False\n",
        "        peer.telling.connected = False\n        peer.hearing.beat_s = -math.inf\n",
        (f"{PROMISES}::test_L12_a_broken_connection_ends_no_promise",),
    ),
    Mutant(
        "L12-new-life-keeps-promise",
        "a higher incarnation ends the promises to the one before",
        LIVENESS,
        "            peer.hearing = Hearing(incarnation)\n",
        "            peer.hearing.incarnation = incarnation\n",
        (f"{PROMISES}::test_L12_the_leader_ends_a_promise",),
    ),
    Mutant(
        "L12-removal-of-another-term",
        "the removal of a claim at another term removes nothing",
        LIVENESS,
        "            if lead is not None and lead[0] == term:\n                hearing.held.drop",
        "            if lead is not None:\n                hearing.held.drop",
        (f"{PROMISES}::test_L12_a_removal_of_another_term_is_not_for_this_claim",),
    ),
    Mutant(
        "L13-votes-at-start",
        "for one election timeout after a start everybody is loyal",
        LIVENESS,
        "if now - self._started_s < timeout_s:",
        "if now < self._started_s:",
        (
            f"{PROMISES}::test_L13_after_a_start_everybody_is_loyal_for_one_election_timeout",
            "tests/node/test_promises_kept.py::test_a_restarted_voter_helps_nobody_within_its_first_election_timeout",
        ),
    ),
    Mutant(
        "L14-lease-after-timeout-now",
        "no lease after TimeoutNow in that term",
        LEADING,
        " or not led.leased:",
        ":",
        (f"{PROMISES}::test_L14_no_lease_in_another_term_or_after_timeout_now",),
    ),
    Mutant(
        "L14-lease-quorum",
        "a lease needs a quorum, this node included",
        LEADING,
        "return sent[len(sent) // 2]",
        "return sent[(len(sent) - 1) // 2]",
        (f"{PROMISES}::test_L14_a_lease_runs_from_the_sending_of_the_quorum_th_newest_beat",),
    ),
    Mutant(
        "L14-no-drift",
        "a lease allows for the drift of both clocks",
        LEADING,
        "* (1.0 - self.drift) / (1.0 + self.drift)",
        "* 1.0",
        (f"{PROMISES}::test_L14_a_lease_allows_for_the_drift_of_both_clocks",),
    ),
    Mutant(
        "L15-clock-read-late",
        "a send time is read before the beat is handed over",
        LIVENESS,
        "        self._send(peer.node_id, peer.telling.beat(self.incarnation, now, sent_s, peer.hearing))\n",
        "        beat = peer.telling.beat(self.incarnation, now, sent_s, peer.hearing)\n"
        "        self._send(peer.node_id, beat)\n"
        "        peer.telling._sent[-1] = (beat.sequence, now, self._clock())\n",
        (f"{PROMISES}::test_L15_the_send_time_is_read_before_the_beat_is_handed_over",),
    ),
    Mutant(
        "L18-full-set-merged",
        "a full set replaces: what it lacks becomes electable",
        LIVENESS,
        "hearing.held.claimed() if row[0] not in told]",
        "hearing.held.claimed() if not told]",
        (f"{PROMISES}::test_L18_a_full_set_replaces_what_was_held",),
    ),
    Mutant(
        "L19-removal-wakes-nobody",
        "who loses its leader by removal is made electable",
        LIVENESS,
        "if dropped and not peer.hearing.silent:",
        "if dropped and peer.hearing.silent:",
        (
            f"{PROMISES}::test_L18_a_full_set_replaces_what_was_held",
            f"{PROMISES}::test_L20_a_removal_leaves_no_loyalty_behind_whatever_else_was_promised",
        ),
    ),
    Mutant(
        "L19-silence-wakes-nobody",
        "a peer's silence makes its groups electable",
        LIVENESS,
        "self._release(hearing.held.claimed(), now)\n        rejudge",
        "hearing.accepted += 0\n        rejudge",
        (f"{PROMISES}::test_L19_silence_makes_all_followers_electable_once",),
    ),
    Mutant(
        "L21-claim-outlives-role",
        "what is claimed follows from the roles",
        LEADING,
        "led = self._led.pop(group_id, None)",
        "led = self._led.get(group_id)",
        (f"{PROMISES}::test_L21_the_set_told_follows_the_roles_and_its_digest_the_set",),
    ),
    Mutant(
        "L22-older-life",
        "what an older incarnation said is dropped",
        LIVENESS,
        "        if incarnation < peer.hearing.incarnation:\n",
        "        if incarnation < 0:\n",
        (f"{PROMISES}::test_L22_what_an_older_life_of_the_peer_said_is_dropped",),
    ),
    Mutant(
        "L24-unknown-counts",
        "a peer without the replica does not count until it has it",
        LIVENESS,
        "            peer.telling.doubt(group_id, term)\n",
        "",
        (f"{PROMISES}::test_L24_a_peer_without_the_replica_does_not_count_until_it_has_it",),
    ),
    Mutant(
        "L24-unknown-silent",
        "who has no replica says so before it acknowledges",
        LIVEPEER,
        "            self._doubted.add(group_id)\n            answer = 0\n",
        "            return None\n",
        (f"{PROMISES}::test_L24_who_has_no_replica_says_so_first_and_takes_it_back_when_it_has",),
    ),
)
