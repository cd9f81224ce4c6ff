"""Each rule of liveness has the test that fails without it; here L1 to L10: acknowledgements.

`test_Lnn_...` is about rule Lnn of liveness.py.
"""

# ruff: noqa: N802

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from types import FrameType
from typing import Any, TypeAlias

import pytest

from multiraft.engine.leadset import LeadSet
from multiraft.errors import InvariantViolation
from multiraft.messages import Beat, BeatAnswer, LeadAll, LeadAsk, LeadDelta, LivenessMessage, Refuse

NewRig: TypeAlias = Callable[..., Any]
MINE = 7  # the incarnation of the node under test
START = 100.0
ET = 1.0


def kinds(messages: list[LivenessMessage]) -> list[str]:
    return [type(message).__name__ for message in messages]


# ------------------------------------------------------------------------------------------------- acknowledging


def test_L01_a_claim_below_my_term_is_refused_before_the_beat_is_acknowledged(new_rig: NewRig) -> None:
    rig = new_rig({1: 9, 2: 5}).connect("a")
    rig.claim("a", 1, 5)
    rig.claim("a", 2, 5)
    rig.beat("a")
    refusal, answer = rig.take("a")
    assert isinstance(refusal, Refuse)
    assert (refusal.group_id, refusal.term, refusal.my_term) == (1, 5, 9)
    assert isinstance(answer, BeatAnswer)
    assert rig.take_events() == [("claimed", 2, 5, "a")]
    assert rig.terms[1] == 9


@pytest.mark.parametrize("silent", [False, True])
def test_L02_a_rise_after_the_claim_is_refused_before_the_next_acknowledgement(new_rig: NewRig, silent: bool) -> None:
    rig = new_rig().connect("a")
    rig.follow("a", 1, 5)
    if silent:
        rig.node.tick(START + 2 * ET)
    rig.take()
    rig.terms[1] = 6
    rig.node.term_rose(1, START + 2 * ET)
    rig.node.term_rose(1, START + 2 * ET)  # told once
    rig.beat("a", START + 2 * ET)
    assert kinds(rig.take("a"))[-2:] == ["Refuse", "BeatAnswer"]
    rig.beat("a", START + 2 * ET)
    assert kinds(rig.take("a")) == ["BeatAnswer"]


def test_L02_a_rise_caused_by_another_peers_claim_counts_too(new_rig: NewRig) -> None:
    rig = new_rig().connect("a", "c")
    rig.follow("a", 1, 5)
    rig.beat("c")
    rig.take()
    rig.claim("c", 1, 6)
    rig.beat("a")
    assert kinds(rig.take("a")) == ["Refuse", "BeatAnswer"]


def test_L03_a_new_connection_repeats_refusals_before_its_first_acknowledgement(new_rig: NewRig) -> None:
    rig = new_rig({1: 9})
    rig.claim("a", 1, 5)  # no connection to "a" yet: the refusal cannot leave
    rig.beat("a")
    assert rig.take() == []
    for _ in range(2):
        rig.node.connected("a", 1, START)
        messages = rig.take("a")
        assert kinds(messages) == ["LeadAll", "Refuse", "Beat"]
        assert messages[2].ack_sequence == 1
        rig.node.disconnected("a", START)
    rig.hear("a", LeadDelta((), ((1, 5),)))  # the claim is gone, and its refusal with it
    rig.node.connected("a", 1, START)
    assert kinds(rig.take("a")) == ["LeadAll", "Beat"]


def test_L04_a_refused_leader_is_told_the_higher_term(new_rig: NewRig) -> None:
    rig = new_rig().connect("a")
    rig.node.lead(1, 5, [("a", 1), ("c", 3)], START)
    rig.hear("a", Refuse(1, 8, 5))
    assert rig.take_events() == [("refused", 1, 5, 8)]


@pytest.mark.parametrize(("term", "mine"), [(4, 8), (5, 5), (5, 3)])
def test_L05_a_refusal_of_another_term_or_without_a_higher_one_raises_nothing(
    new_rig: NewRig, term: int, mine: int
) -> None:
    rig = new_rig().connect("a")
    rig.node.lead(1, 5, [("a", 1)], START)
    rig.hear("a", Refuse(1, mine, term))
    rig.hear("a", Refuse(2, 8, 5))  # never led
    assert rig.take_events() == ([("arrived", "a", 1)] if mine == term else [])


def test_L06_a_claim_that_raises_the_term_is_acknowledged_at_once(new_rig: NewRig) -> None:
    rig = new_rig().connect("a")
    rig.beat("a")
    rig.take()
    rig.claim("a", 1, 9)
    rig.beat("a")
    assert kinds(rig.take("a")) == ["BeatAnswer"]
    assert rig.terms[1] == 9


def test_L07_a_beat_of_another_set_is_not_acknowledged_and_the_set_is_asked_for_once(new_rig: NewRig) -> None:
    rig = new_rig().connect("a")
    rig.follow("a", 1, 5)
    rig.take()
    rig.told["a"].put(2, 5, 1)  # the delta is lost
    rig.beat("a", START + 0.5)
    rig.beat("a", START + 0.6)
    assert kinds(rig.take("a")) == ["LeadAsk"]
    rig.node.tick(START + 0.7)
    assert rig.last_beat("a").ack_sequence == 1
    assert not rig.node.loyal(1, 5, START + ET)  # nor does it renew a promise
    rig.hear("a", LeadAll(rig.told["a"].rows()), START + 0.8)
    rig.take()
    assert rig.beat("a", START + 0.8) == 4
    answer = rig.take("a")[0]
    assert isinstance(answer, BeatAnswer)
    assert (answer.incarnation, answer.sequence) == (1, 4)
    assert rig.node.loyal(1, 5, START + ET)
    assert rig.node.loyal(2, 5, START + ET)


@pytest.mark.parametrize("recovery", ["time", "own connection", "peer's connection", "its answer"])
def test_L07_a_lost_question_is_asked_again(new_rig: NewRig, recovery: str) -> None:
    rig = new_rig().connect("a")
    rig.beat("a", START, digest=1)
    rig.beat("a", START + 0.9, digest=1)
    assert kinds(rig.take()) == ["LeadAsk"]
    if recovery == "own connection":
        rig.node.disconnected("a", START)
        rig.beat("a", START + 0.9, digest=1)  # cannot be asked now, and must not be taken for asked
        assert rig.take() == []
        rig.connect("a", now=START + 0.9)
    elif recovery == "peer's connection":
        rig.node.heard("a", 1, START + 0.9)
    elif recovery == "its answer":
        rig.hear("a", LeadAll(()), START + 0.9)
    rig.beat("a", START + (1.0 if recovery == "time" else 0.9), digest=1)
    assert kinds(rig.take()) == ["LeadAsk"]


def test_L07_who_is_asked_sends_the_full_set_and_a_beat_of_it(new_rig: NewRig) -> None:
    rig = new_rig().connect("a")
    rig.node.lead(1, 5, [("a", 4)], START)
    rig.node.flush()
    rig.take()
    rig.hear("a", LeadAsk())
    full, beat = rig.take("a")
    assert isinstance(full, LeadAll)
    assert isinstance(beat, Beat)
    assert full.led == ((1, 5, 4),)
    expected = LeadSet()
    expected.put(1, 5, 4)
    assert beat.digest == expected.digest != 0


def test_L08_only_beats_sent_after_the_peer_was_told_count_for_a_group(new_rig: NewRig) -> None:
    rig = new_rig().connect("a")  # beat 1 was sent on connecting
    rig.node.tick(START + 0.1)  # beat 2
    rig.node.lead(1, 5, [("a", 1)], START + 0.2)
    rig.beat("a", START + 0.2, ack=2)
    assert rig.node.contact_s(1, 5, "a") == -math.inf
    rig.node.flush()
    assert kinds(rig.take("a"))[-1] == "LeadDelta"
    rig.beat("a", START + 0.2, ack=2)
    assert rig.node.contact_s(1, 5, "a") == -math.inf
    rig.node.tick(START + 0.3)  # beat 3
    rig.node.tick(START + 0.4)  # beat 4
    rig.beat("a", START + 0.5, ack=3)
    assert rig.node.contact_s(1, 5, "a") == START + 0.3
    assert rig.node.contact_s(1, 4, "a") == -math.inf
    assert rig.node.contact_s(1, 5, "c") == -math.inf
    rig.node.lead(1, 6, [("a", 1)], START + 0.5)
    assert rig.node.contact_s(1, 6, "a") == -math.inf
    rig.node.unlead(1, START + 0.5)
    assert rig.node.contact_s(1, 5, "a") == -math.inf


def test_L08_a_group_won_while_the_peer_is_away_counts_from_its_next_connection(new_rig: NewRig) -> None:
    rig = new_rig().connect("a")
    rig.node.disconnected("a", START)
    rig.node.lead(1, 5, [("a", 1)], START + 0.2)
    rig.node.flush()
    rig.beat("a", START + 0.3, ack=1)
    assert rig.node.contact_s(1, 5, "a") == -math.inf
    rig.node.connected("a", 1, START + 0.4)  # beat 2
    rig.beat("a", START + 0.5, ack=2)
    assert rig.node.contact_s(1, 5, "a") == START + 0.4


def test_L09_sequence_numbers_go_on_over_connections_and_acknowledgements_name_the_life(new_rig: NewRig) -> None:
    rig = new_rig()
    seen = []
    for second in range(3):
        rig.node.connected("a", 1, START + second)
        rig.node.tick(START + second + 0.5)
        seen += [m.sequence for m in rig.take("a") if isinstance(m, Beat)]
        rig.node.disconnected("a", START + second)
    assert seen == [1, 2, 3, 4, 5, 6]
    rig.connect("a", now=START + 3)
    rig.node.lead(1, 5, [("a", 1)], START)
    rig.node.tick(START + 4)
    sequence = rig.last_beat("a").sequence
    rig.hear("a", BeatAnswer(MINE - 1, sequence))  # of this node's earlier life
    rig.hear("a", BeatAnswer(MINE, sequence + 1))  # never sent
    assert rig.node.contact_s(1, 5, "a") == -math.inf
    rig.hear("a", BeatAnswer(MINE, sequence))
    assert rig.node.contact_s(1, 5, "a") == START + 4


def test_L09_an_old_beat_is_not_accepted_again(new_rig: NewRig) -> None:
    rig = new_rig().connect("a")
    rig.follow("a", 1, 5)
    rig.take()
    rig.sequence["a"] = 0
    rig.beat("a", START + 0.9)
    assert rig.take() == []
    assert not rig.node.loyal(1, 5, START + ET)


def test_L10_a_round_is_acknowledged_only_by_beats_sent_since_it_began(new_rig: NewRig) -> None:
    rig = new_rig().connect("a", "c")  # beat 1 each
    round_id = rig.node.begin_round(["c", "a", "b"], START)
    assert [(node_id, m.sequence, m.answer_now) for node_id, m in rig.sent if isinstance(m, Beat)] == [
        ("a", 2, True),
        ("c", 2, True),
    ]
    rig.hear("a", BeatAnswer(MINE, 1))
    assert rig.take_events() == []
    rig.hear("a", BeatAnswer(MINE, 2))
    assert rig.take_events() == [("acknowledged", "a", round_id)]
    rig.hear("a", BeatAnswer(MINE, 2))
    assert rig.take_events() == []


def test_L10_a_round_reaches_a_peer_that_connects_later_and_covers_the_rounds_before(new_rig: NewRig) -> None:
    rig = new_rig().connect("a")
    first = rig.node.begin_round(["c"], START)
    second = rig.node.begin_round(["c"], START)
    assert second > first
    assert rig.take("c") == []
    rig.node.connected("c", 1, START)
    beat = rig.last_beat("c")
    assert beat.answer_now
    rig.hear("c", BeatAnswer(MINE, beat.sequence))
    assert rig.take_events() == [("acknowledged", "c", second)]
    rig.node.tick(START + 1)
    assert not rig.last_beat("c").answer_now


def test_L10_a_round_whose_beat_was_not_accepted_is_asked_again_with_the_next(new_rig: NewRig) -> None:
    rig = new_rig().connect("a")
    round_id = rig.node.begin_round(["a"], START)
    rig.node.tick(START + 0.1)
    beat = rig.last_beat("a")
    assert beat.answer_now
    rig.beat("a", START + 0.1, ack=beat.sequence)  # the answer may ride in a beat just as well
    assert ("acknowledged", "a", round_id) in rig.take_events()


# --------------------------------------------------------------------------------- the contact that a leader counts


def test_leaders_count_their_quorum_once_when_a_peer_falls_silent(new_rig: NewRig) -> None:
    rig = new_rig().connect("a", "c")
    rig.node.lead(1, 5, [("a", 1), ("c", 3)], START)
    rig.node.lead(2, 5, [("c", 3)], START)
    for step in range(15):
        now = START + 0.1 * step
        rig.node.tick(now)
        rig.beat("a", now, ack=rig.last_beat("a").sequence)
        rig.beat("c", now, ack=rig.last_beat("c").sequence)
    rig.take_events()
    last = START + 1.4
    for step in range(30):  # "a" is not heard any more
        now = last + 0.1 * step
        rig.node.tick(now)
        rig.beat("c", now, ack=rig.last_beat("c").sequence)
        judged = [event for event in rig.take_events() if event[0] == "rejudge"]
        assert judged == ([("rejudge", 1)] if step == 11 else [])
    rig.beat("a", now, ack=rig.last_beat("a").sequence)
    rig.node.tick(now)
    rig.take_events()
    rig.node.tick(now + ET + 0.1)  # its second silence, and the first of "c"
    assert rig.take_events() == [("rejudge", 1, 2)]


def test_a_group_won_while_a_peer_is_silent_counts_its_quorum_when_it_is_one_election_timeout_old(
    new_rig: NewRig,
) -> None:
    rig = new_rig({1: 5, 2: 5, 3: 5}).connect("a", "c")
    rig.node.lead(1, 5, [("a", 1), ("c", 3)], START)
    rig.node.lead(2, 5, [("c", 3)], START)
    rig.node.lead(3, 5, [("a", 1)], START)
    rig.node.unlead(3, START)
    for step in range(20):
        now = START + 0.1 * step
        rig.node.tick(now)
        rig.beat("c", now, ack=rig.last_beat("c").sequence)
        judged = [event for event in rig.take_events() if event[0] == "rejudge"]
        assert judged == ([("rejudge", 1)] if step == 11 else [])


def test_a_contact_of_a_beat_given_up_is_older_than_the_truth_never_newer(new_rig: NewRig) -> None:
    rig = new_rig().connect("a")
    rig.node.lead(1, 5, [("a", 1)], START)
    first = 0
    for step in range(6_000):
        rig.node.tick(START + step)
        first = first or rig.last_beat("a").sequence
        rig.sent.clear()
    rig.hear("a", BeatAnswer(MINE, first + 10), START + 6_000)
    assert rig.node.contact_s(1, 5, "a") <= START + 10
    rig.hear("a", BeatAnswer(MINE, first + 5_999), START + 6_000)
    assert rig.node.contact_s(1, 5, "a") == START + 5_999


# ---------------------------------------------------------------------------------------------- its cost and its look


@pytest.mark.parametrize("groups", [10, 10_000])
def test_a_beat_costs_the_same_whatever_the_number_of_groups(new_rig: NewRig, groups: int) -> None:
    rig = new_rig(dict.fromkeys(range(1, 2 * groups + 1), 5)).connect("a", "c")
    for group_id in range(1, groups + 1):
        rig.node.lead(group_id, 5, [("a", 1), ("c", 3)], START)
        rig.told["a"].put(groups + group_id, 5, 1)
    rig.hear("a", LeadAll(rig.told["a"].rows()))
    rig.node.tick(START)
    rig.beat("a")
    rig.take()
    steps = 0

    def count(frame: FrameType, event: str, argument: object) -> Callable[..., Any]:
        nonlocal steps
        steps += 1
        return count

    before = sys.gettrace()
    sys.settrace(count)
    try:
        for step in range(1, 11):
            rig.node.tick(START + 0.1 * step)
            rig.node.flush()
            rig.beat("a", START + 0.1 * step, ack=rig.last_beat("a").sequence)
    finally:
        sys.settrace(before)
    assert kinds(rig.take()) == ["Beat", "Beat", "BeatAnswer"] * 10
    assert steps < 3_000


def test_a_ticker_that_ticks_too_often_sends_no_more_beats(new_rig: NewRig) -> None:
    rig = new_rig().connect("a", "c")
    for step in range(100):
        rig.node.tick(START + 0.01 * step)
    assert 20 <= len(rig.take("a")) <= 22  # 1 s at two per interval of 0.1 s at most


def test_changes_of_one_turn_leave_in_one_message_and_only_what_differs(new_rig: NewRig) -> None:
    rig = new_rig().connect("a")
    for group_id in (3, 1, 2):
        rig.node.lead(group_id, 5, [("a", 1)], START)
    rig.node.unlead(2, START)
    rig.node.flush()
    rig.node.flush()
    (delta,) = rig.take("a")
    assert (delta.added, delta.removed) == (((1, 5, 1), (3, 5, 1)), ())
    rig.node.unlead(3, START)
    rig.node.unlead(1, START)
    rig.node.lead(1, 6, [("a", 1)], START)
    rig.node.flush()
    (delta,) = rig.take("a")
    assert (delta.added, delta.removed) == (((1, 6, 1),), ((3, 5),))
    with pytest.raises(InvariantViolation):
        rig.node.lead(1, 5, [("a", 1)], START)


def test_one_seed_gives_one_run(new_rig: NewRig) -> None:
    runs = []
    for _ in range(2):
        rig = new_rig(dict.fromkeys(range(1, 50), 5)).connect("c", "a")
        orders: list[list[int]] = []
        rig.electable = lambda group_ids, now, orders=orders: orders.append(list(group_ids))
        rig.hear("a", LeadAll(tuple((group_id, 5, 1) for group_id in range(1, 50))))
        rig.told["a"] = rig.node._peers["a"].hearing.held
        rig.beat("a")
        rig.node.tick(START + 2 * ET)
        runs.append(orders)
    assert runs[0] == runs[1]
    assert sorted(runs[0][0]) == list(range(1, 50)) != runs[0][0]  # shuffled


def test_the_status_says_what_is_known_of_each_peer(new_rig: NewRig) -> None:
    rig = new_rig({1: 5, 2: 9}).connect("a")
    rig.follow("a", 1, 5)
    rig.claim("a", 2, 5)
    rig.node.lead(3, 5, [("a", 1)], START)
    rig.node.tick(START + 0.25)
    rig.beat("a", START + 0.5, ack=rig.last_beat("a").sequence)
    status = rig.node.status(START + 1.0)
    assert list(status) == ["a", "c"]
    a, c = status["a"], status["c"]
    assert (a.connected, a.incarnation, a.silent, a.held, a.led, a.refused) == (True, 1, False, 2, 1, 1)
    assert (a.heard_age_s, a.acked_age_s) == (0.5, 0.75)
    assert (c.connected, c.silent, c.heard_age_s, c.acked_age_s) == (False, True, math.inf, math.inf)
