"""Each rule of liveness has the test that fails without it; here L11 to L25: promises, leases, and who is responsible.

`test_Lnn_...` is about rule Lnn of liveness.py. What only the core can keep (L16, L17, L23) is tested with the core.
"""

# ruff: noqa: N802

from __future__ import annotations

import math
from collections.abc import Callable
from random import Random
from typing import Any, TypeAlias

import pytest

from multiraft.compiled import field_names
from multiraft.engine.leadset import LeadSet
from multiraft.errors import InvariantViolation
from multiraft.messages import Beat, BeatAnswer, LeadAll, LeadAsk, LeadDelta, LivenessMessage, Refuse

NewRig: TypeAlias = Callable[..., Any]
MINE = 7  # the incarnation of the node under test
START = 100.0
ET = 1.0


def kinds(messages: list[LivenessMessage]) -> list[str]:
    return [type(message).__name__ for message in messages]


def fields(message: LivenessMessage) -> tuple[object, ...]:
    return tuple(getattr(message, name) for name in field_names(type(message)))


# ----------------------------------------------------------------------------------------- promises, leases, time


def test_L11_loyal_means_this_term_and_a_beat_younger_than_the_election_timeout(new_rig: NewRig) -> None:
    rig = new_rig().connect("a")
    rig.follow("a", 1, 5)
    assert rig.node.loyal(1, 5, START + ET - 0.001)
    assert not rig.node.loyal(1, 5, START + ET)
    assert not rig.node.loyal(1, 4, START)
    assert not rig.node.loyal(1, 6, START)
    assert not rig.node.loyal(2, 5, START)
    rig.claim("a", 2, 5, START + 0.9)  # a claim is no sign of life
    assert not rig.node.loyal(2, 5, START + ET)


def test_L12_a_broken_connection_ends_no_promise(new_rig: NewRig) -> None:
    rig = new_rig().connect("a")
    rig.follow("a", 1, 5)
    rig.take_events()
    rig.node.disconnected("a", START + 0.1)
    rig.node.heard("a", 1, START + 0.2)  # connected anew, its set not here yet
    rig.node.tick(START + 0.9)
    assert rig.node.loyal(1, 5, START + 0.9)
    assert rig.take_events() == []


@pytest.mark.parametrize("ending", ["removal", "full set without it", "restart seen inbound", "restart seen outbound"])
def test_L12_the_leader_ends_a_promise(new_rig: NewRig, ending: str) -> None:
    rig = new_rig().connect("a")
    rig.follow("a", 1, 5)
    rig.take_events()
    if ending == "removal":
        rig.hear("a", LeadDelta((), ((1, 5),)))
    elif ending == "full set without it":
        rig.hear("a", LeadAll(((2, 5, 1),)))
    elif ending == "restart seen inbound":
        rig.node.heard("a", 2, START)
    else:
        rig.node.connected("a", 2, START)
    assert not rig.node.loyal(1, 5, START)
    assert ("electable", 1) in rig.take_events()


def test_L12_a_removal_of_another_term_is_not_for_this_claim(new_rig: NewRig) -> None:
    rig = new_rig().connect("a")
    rig.follow("a", 1, 5)
    rig.take_events()
    rig.hear("a", LeadDelta((), ((1, 4),)))
    assert rig.node.loyal(1, 5, START)
    assert rig.take_events() == []


def test_L13_after_a_start_everybody_is_loyal_for_one_election_timeout(new_rig: NewRig) -> None:
    rig = new_rig(past_start=False)
    assert rig.node.loyal(1, 5, START)
    assert rig.node.loyal(99, 0, START + ET - 0.001)
    assert not rig.node.loyal(1, 5, START + ET)


def leased(new_rig: NewRig, drift: float = 0.0) -> Any:
    """Leader of group 1 at term 5 whose beats left at real times 1001 ("a") and 1002 ("c"), acknowledged at 1003."""
    rig = new_rig(drift=drift).connect("a", "c")
    rig.node.lead(1, 5, [("a", 1), ("c", 3)], START)
    for peer, real_s in (("a", 1_001.0), ("c", 1_002.0)):
        rig.real_s = real_s
        rig.node.begin_round([peer], START + real_s - 1_000)
        sequence = rig.last_beat(peer).sequence
        rig.real_s = 1_003.0
        rig.hear(peer, BeatAnswer(MINE, sequence))
    return rig


@pytest.mark.parametrize(
    ("voters", "outgoing", "sent_s"),
    [
        ("abc", "", 1_002.0),  # b itself, and the newer of the others
        ("ac", "", 1_001.0),  # b does not vote: both others are needed
        ("ab", "", 1_001.0),
        ("b", "", 1_003.0),
        ("abcd", "", 1_001.0),  # d was never heard; three of four
        ("abde", "", -math.inf),
        ("abc", "ab", 1_001.0),  # joint: the older of the two quorums (L25)
        ("ab", "abc", 1_001.0),
    ],
)
def test_L14_a_lease_runs_from_the_sending_of_the_quorum_th_newest_beat(
    new_rig: NewRig, voters: str, outgoing: str, sent_s: float
) -> None:
    assert leased(new_rig).node.lease_until_s(1, 5, voters, outgoing) == sent_s + ET


def test_L14_a_lease_allows_for_the_drift_of_both_clocks(new_rig: NewRig) -> None:
    assert leased(new_rig, 0.1).node.lease_until_s(1, 5, "abc") == pytest.approx(1_002.0 + 0.9 / 1.1, abs=1e-9)
    with pytest.raises(InvariantViolation):
        leased(new_rig).node.lease_until_s(1, 5, "")


def test_L14_no_lease_in_another_term_or_after_timeout_now(new_rig: NewRig) -> None:
    rig = leased(new_rig)
    assert rig.node.lease_until_s(1, 4, "abc") == -math.inf
    assert rig.node.lease_until_s(2, 5, "abc") == -math.inf
    rig.node.forget_lease(1)
    assert rig.node.lease_until_s(1, 5, "b") == -math.inf
    rig.node.lead(1, 5, [("a", 1)], START)  # the same term once more, as after a change of membership
    assert rig.node.lease_until_s(1, 5, "b") == -math.inf
    rig.node.unlead(1, START)
    rig.node.lead(1, 6, [("a", 1)], START)
    assert rig.node.lease_until_s(1, 6, "b") > 0


def test_L15_the_send_time_is_read_before_the_beat_is_handed_over(new_rig: NewRig) -> None:
    rig = new_rig().connect("a")
    rig.node.lead(1, 5, [("a", 1)], START)
    rig.node.flush()

    def slow() -> None:
        rig.real_s += 0.5

    rig.on_send = slow
    rig.node.tick(START + 0.1)
    rig.hear("a", BeatAnswer(MINE, rig.last_beat("a").sequence))
    assert rig.node.lease_until_s(1, 5, "ab") == 1_000.0 + ET


# ------------------------------------------------------------------------------------- always someone responsible


def test_L18_a_full_set_replaces_what_was_held(new_rig: NewRig) -> None:
    rig = new_rig({1: 5, 2: 5, 3: 5}).connect("a")
    rig.follow("a", 1, 5)
    rig.follow("a", 2, 5)
    rig.take_events()
    rig.hear("a", LeadAll(((2, 5, 1), (3, 6, 1))))
    assert rig.take_events() == [("claimed", 2, 5, "a"), ("claimed", 3, 6, "a"), ("electable", 1)]
    rig.told["a"].drop(1)
    rig.told["a"].put(3, 6, 1)
    rig.beat("a")  # accepted: it is the set now held
    assert not rig.node.loyal(1, 5, START)
    assert rig.node.loyal(3, 6, START)


def test_L19_silence_makes_all_followers_electable_once(new_rig: NewRig) -> None:
    rig = new_rig({1: 5, 2: 5, 3: 8}).connect("a")
    for group_id in (1, 2, 3):
        rig.claim("a", group_id, 5)
    rig.beat("a")
    rig.take_events()
    rig.node.tick(START + ET - 0.001)
    assert rig.take_events() == []
    assert rig.node.watched(1, 5)
    rig.node.tick(START + 2 * ET)
    assert rig.take_events() == [("electable", 1, 2)]  # 3 never followed
    assert not rig.node.watched(1, 5)
    rig.node.tick(START + 9 * ET)
    assert rig.take_events() == []


def test_L19_a_silence_is_judged_between_one_and_two_election_timeouts_drawn_per_beat(new_rig: NewRig) -> None:
    rig = new_rig().connect("a")
    lengths = set()
    now = START
    for _ in range(40):
        rig.follow("a", 1, 5, now)
        rig.take_events()
        step = 0
        while not rig.take_events():
            step += 1
            rig.node.tick(now + step * 0.01)
        assert 1.0 <= step * 0.01 < 2.02
        lengths.add(step)
        now += step * 0.01
    assert len(lengths) > 20


@pytest.mark.parametrize("with_set", [False, True])
def test_L19_a_peer_heard_again_has_its_followers_back_and_they_are_watched_again(
    new_rig: NewRig, with_set: bool
) -> None:
    rig = new_rig({1: 5, 2: 5}).connect("a")
    rig.follow("a", 1, 5)
    rig.follow("a", 2, 5)
    rig.node.tick(START + 2 * ET)
    rig.terms[2] = 6  # it has campaigned in the meantime
    rig.node.term_rose(2, START + 2 * ET)
    rig.take_events()
    later = START + 5 * ET
    if with_set:
        rig.hear("a", LeadAll(rig.told["a"].rows()), later)
        assert rig.take_events() == []  # a set alone does not take deadlines away: no beat may ever follow
    rig.beat("a", later)
    assert rig.take_events() == [("claimed", 1, 5, "a")]
    assert rig.node.loyal(1, 5, later)
    rig.node.tick(later + 2 * ET)
    assert rig.take_events() == [("electable", 1)]


def test_L19_claims_of_a_peer_never_heard_are_followed_with_its_first_beat(new_rig: NewRig) -> None:
    rig = new_rig().connect("a")
    rig.claim("a", 1, 6)
    assert rig.take_events() == []
    rig.beat("a")
    assert rig.take_events() == [("claimed", 1, 6, "a")]


def test_L19_a_follower_passed_on_to_a_new_leader_is_not_made_electable(new_rig: NewRig) -> None:
    rig = new_rig().connect("a", "c")
    rig.follow("a", 1, 5)
    rig.follow("c", 1, 6)
    rig.take_events()
    rig.hear("a", LeadDelta((), ((1, 5),)))
    assert rig.take_events() == []
    rig.beat("c", START + 1.9)
    rig.node.tick(START + 2 * ET)  # "a" is silent
    assert rig.take_events() == []


def test_L20_a_removal_leaves_no_loyalty_behind_whatever_else_was_promised(new_rig: NewRig) -> None:
    rig = new_rig().connect("a")
    rig.follow("a", 1, 5)
    rig.hear("a", LeadDelta((), ((1, 5),)), START)
    rig.told["a"].drop(1)
    rig.beat("a")  # alive, but no longer its leader: an append of it that comes late must find the deadline armed
    assert not rig.node.loyal(1, 5, START)
    assert not rig.node.watched(1, 5)
    assert rig.take_events()[-1] == ("electable", 1)


def test_L21_the_set_told_follows_the_roles_and_its_digest_the_set(new_rig: NewRig) -> None:
    rig = new_rig().connect("a", "c")
    held = LeadSet()
    rng = Random(5)
    leading: dict[int, int] = {}
    for step in range(300):
        group_id = rng.randrange(1, 9)
        if group_id in leading and rng.random() < 0.5:
            del leading[group_id]
            rig.node.unlead(group_id, START)
        else:
            leading[group_id] = step + 10
            rig.node.lead(group_id, step + 10, [("a", group_id), ("b", 2), ("c", 3)], START)
        if rng.random() < 0.3:
            rig.node.tick(START + step)
            for message in rig.take("a"):
                if isinstance(message, LeadDelta):
                    for group, term in message.removed:
                        assert held.term_of(group) == term
                        held.drop(group)
                    for row in message.added:
                        held.put(*row)
                elif isinstance(message, Beat):
                    assert message.digest == held.digest == held.counted_digest()
            assert held.rows() == tuple((group, leading[group], group) for group in sorted(leading))
        assert rig.node.audit(leading) == []
        rig.node.check_digests()
    assert rig.node.claimed_term(0) == 0
    assert all(rig.node.claimed_term(group) == term for group, term in leading.items())
    assert rig.node.audit({**leading, 99: 1}) == [99]
    rig.node._peers["a"].hearing.held.digest ^= 1
    with pytest.raises(InvariantViolation):
        rig.node.check_digests()


def test_L22_what_an_older_life_of_the_peer_said_is_dropped(new_rig: NewRig) -> None:
    rig = new_rig().connect("a")
    rig.node.heard("a", 2, START)
    rig.hear("a", LeadDelta(((2, 9, 1),), ()), incarnation=1)
    rig.hear("a", Beat(0, 0, True, 0, 1, 50), incarnation=1)
    rig.hear("a", Beat(0, 0, True, 0, 1, 51), incarnation=2)  # a beat that names another life than its connection
    assert rig.take() == []
    assert rig.take_events() == []
    rig.hear("a", LeadDelta(((1, 6, 1),), ()), incarnation=2)
    digest = LeadSet()
    digest.put(1, 6, 1)
    rig.hear("a", Beat(0, 0, True, digest.digest, 2, 1), incarnation=2)
    answer = rig.take("a")[0]
    assert isinstance(answer, BeatAnswer)
    assert (answer.incarnation, answer.sequence) == (2, 1)
    assert rig.take_events() == [("claimed", 1, 6, "a")]
    rig.node.heard("a", 1, START)  # a connection of the older life, accepted late
    assert rig.take_events() == []
    assert rig.node.loyal(1, 6, START)


# ------------------------------------------------------------------------------------------------------ membership


def test_L24_who_has_no_replica_says_so_first_and_takes_it_back_when_it_has(new_rig: NewRig) -> None:
    rig = new_rig({}).connect("a")
    rig.follow("a", 1, 5)
    unknown, answer = rig.take("a")
    assert isinstance(unknown, Refuse)
    assert (unknown.group_id, unknown.term, unknown.my_term) == (1, 5, 0)
    assert isinstance(answer, BeatAnswer)
    rig.terms[1] = 1
    rig.node.replica_created(1, START)
    assert rig.take_events() == [("claimed", 1, 5, "a")]
    back = rig.take("a")[0]
    assert isinstance(back, Refuse)
    assert (back.group_id, back.term, back.my_term) == (1, 5, 5)
    rig.node.connected("a", 1, START)  # it is repeated like every answer: the first one may have been lost
    assert kinds(rig.take("a")) == ["LeadAll", "Refuse", "Beat"]
    del rig.terms[1]
    rig.node.replica_removed(1)
    assert [fields(message) for message in rig.take("a")] == [(1, 0, 5)]


def test_L24_a_full_set_is_answered_anew_and_makes_the_peer_count_again(new_rig: NewRig) -> None:
    rig = new_rig({}).connect("a")
    rig.follow("a", 1, 5)
    rig.take()
    rig.hear("a", LeadAll(rig.told["a"].rows()))
    assert [fields(message) for message in rig.take("a")] == [(1, 0, 5)]
    rig.node.lead(2, 5, [("a", 1)], START)
    rig.node.tick(START + 0.1)
    rig.hear("a", Refuse(2, 0, 5))
    rig.hear("a", LeadAsk())
    rig.hear("a", BeatAnswer(MINE, rig.last_beat("a").sequence))  # nothing was refused before it
    assert rig.node.contact_s(2, 5, "a") == START


def test_L24_a_refusal_outlives_the_replica_that_it_was_given_for(new_rig: NewRig) -> None:
    rig = new_rig({1: 9})
    rig.claim("a", 1, 5)
    del rig.terms[1]
    rig.node.replica_removed(1)
    rig.node.connected("a", 1, START)
    assert [fields(message) for message in rig.take("a") if isinstance(message, Refuse)] == [(1, 9, 5)]


def test_L24_a_new_replica_refuses_claims_below_its_term(new_rig: NewRig) -> None:
    rig = new_rig({}).connect("a")
    rig.follow("a", 1, 5)
    rig.take()
    rig.terms[1] = 8
    rig.node.replica_created(1, START)
    assert [fields(message) for message in rig.take("a")] == [(1, 8, 5)]
    assert rig.take_events() == []


def test_L24_an_acknowledgement_for_another_replica_does_not_count(new_rig: NewRig) -> None:
    """The group's replica on the peer has been replaced; what it acknowledged was said for the old one."""
    rig = new_rig().connect("a")
    rig.node.lead(1, 5, [("a", 1)], START)
    rig.node.tick(START + 0.1)
    rig.beat("a", ack=rig.last_beat("a").sequence)
    assert rig.node.contact_s(1, 5, "a") == START + 0.1
    rig.node.lead(1, 5, [("a", 9)], START + 0.2)
    assert rig.node.contact_s(1, 5, "a") == -math.inf
    rig.node.tick(START + 0.3)
    rig.beat("a", ack=rig.last_beat("a").sequence)
    assert rig.node.contact_s(1, 5, "a") == START + 0.3


def test_L24_a_claim_is_judged_for_the_replica_that_it_names(new_rig: NewRig) -> None:
    rig = new_rig().connect("a")
    rig.claim("a", 1, 9, replica_id=2)
    assert [(one.group_id, one.my_term) for one in rig.take("a") if type(one) is Refuse] == [(1, 0)]
    assert rig.terms[1] == 5
    rig.claim("a", 1, 9, replica_id=3)  # another replica at the same term: answered anew
    assert [(one.group_id, one.my_term) for one in rig.take("a") if type(one) is Refuse] == [(1, 0)]
    rig.replica_ids[1] = 3
    rig.node.replica_created(1, START)
    assert [(one.group_id, one.my_term) for one in rig.take("a") if type(one) is Refuse] == [(1, 9)]


def test_L19_the_claim_toward_another_replica_minds_nobody(new_rig: NewRig) -> None:
    rig = new_rig().connect("a")
    rig.follow("a", 1, 5)
    assert rig.node.watched(1, 5)
    rig.replica_ids[1] = 2
    assert not rig.node.watched(1, 5)


@pytest.mark.parametrize("in_full", [False, True])
def test_L19_a_claim_toward_another_replica_takes_the_old_one_away(new_rig: NewRig, in_full: bool) -> None:
    """The replica here was removed and does not know; its node is to get another one of the group."""
    rig = new_rig().connect("a")
    rig.follow("a", 1, 5)
    rig.take_events()
    if in_full:
        rig.hear("a", LeadAll(((1, 5, 2),)))
    else:
        rig.claim("a", 1, 5, replica_id=2)
    assert rig.take_events() == [("electable", 1)]


def test_L24_a_peer_without_the_replica_does_not_count_until_it_has_it(new_rig: NewRig) -> None:
    rig = new_rig().connect("a")
    rig.node.lead(1, 5, [("a", 1)], START)
    rig.node.lead(2, 5, [("a", 1)], START)
    rig.node.tick(START + 0.1)
    rig.hear("a", Refuse(1, 0, 5))
    rig.beat("a", ack=rig.last_beat("a").sequence)
    assert rig.node.contact_s(1, 5, "a") == -math.inf
    assert rig.node.contact_s(2, 5, "a") == START + 0.1
    assert rig.take_events() == [("rejudge", 1), ("missing", "a", 1)]
    rig.hear("a", Refuse(1, 5, 5))
    assert rig.take_events() == [("arrived", "a", 1)]  # what was sent before found no replica
    assert rig.node.contact_s(1, 5, "a") == -math.inf  # what it acknowledged before still does not count
    rig.node.tick(START + 0.2)
    rig.beat("a", ack=rig.last_beat("a").sequence)
    assert rig.node.contact_s(1, 5, "a") == START + 0.2
    assert rig.take_events() == []


def test_L25_learners_are_told_and_a_change_of_membership_changes_who_is_told(new_rig: NewRig) -> None:
    rig = new_rig().connect("a", "c")
    rig.node.lead(1, 5, [("a", 1), ("c", 9)], START)
    rig.node.flush()
    assert [(n, m.added, m.removed) for n, m in rig.sent if isinstance(m, LeadDelta)] == [
        ("a", ((1, 5, 1),), ()),
        ("c", ((1, 5, 9),), ()),
    ]
    rig.take()
    rig.node.lead(1, 5, [("a", 1), ("d", 10)], START)
    rig.node.flush()
    assert [(n, m.added, m.removed) for n, m in rig.sent if isinstance(m, LeadDelta)] == [("c", (), ((1, 5),))]
    rig.node.connected("d", 1, START)
    assert next(m.led for m in rig.take("d") if isinstance(m, LeadAll)) == ((1, 5, 10),)
