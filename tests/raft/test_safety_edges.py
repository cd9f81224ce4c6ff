"""Edges of the safety rules that only show when two things meet."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable
from typing import Any, TypeAlias

import pytest

from multiraft.messages import AppendAnswer, RequestVote, TimeoutNow, VoteAnswer
from multiraft.records import COMMANDS
from multiraft.types import Membership

GROUP = 16
Make: TypeAlias = Callable[..., Any]


def test_a_vote_in_a_term_that_was_known_before_is_written_too(replica: Make) -> None:
    """The claim brought the term to disk, so that of the vote nothing but the vote itself is new."""
    one = replica()
    one.core.follow(3, 4, 0.5)
    one.persist()
    one.core.release(1.0, 0.1)
    one.core.step(RequestVote(False, GROUP, 99, 99, 2, 4, 1), 1.0)
    assert one.take()[-1].granted
    one.crash()
    one.start(2.0)
    assert (one.core.term, one.core.vote) == (4, 2)
    one.core.step(RequestVote(False, GROUP, 99, 99, 3, 4, 1), 2.0)
    assert not one.take()[-1].granted


def test_a_late_acknowledgement_does_not_take_match_back(cluster: Make) -> None:
    group = cluster(3)
    leader = group.elect(1)
    leader.propose([b"a", b"b"], COMMANDS, 0)
    group.settle()
    assert leader.progress[2].match == 4
    leader.step(AppendAnswer(True, GROUP, 0, 0, 3, 2, leader.term, 1), 0.0)  # an earlier answer, overtaken
    assert (leader.progress[2].match, leader.progress[2].next) == (4, 5)


def test_one_peer_of_three_is_no_quorum_for_a_leader(cluster: Make) -> None:
    """With an even number of voters, half of them are too few."""
    group = cluster(4)
    leader = group.elect(1)
    group[1].contacts.contact = {2: 20.0, 3: 20.0}
    leader.check_quorum(20.0)
    assert group.leaders() == [1]
    group[1].contacts.contact = {2: 20.0}
    leader.check_quorum(20.0)
    assert group.leaders() == []


def test_learners_make_no_majority_however_many_they_are(replica: Make) -> None:
    membership = Membership(1, (1, 2, 3), {n: f"n{n}" for n in range(1, 7)}, 7, learners=(4, 5, 6))
    one = replica(membership=membership)
    one.core.campaign(0.0, forced=True)
    one.persist()
    one.core.step(VoteAnswer(2, True, GROUP, 2, 2, 1), 0.0)
    one.take()
    for sender in (4, 5, 6):
        one.core.step(AppendAnswer(True, GROUP, 0, 0, 2, sender, 2, 1), 0.0)
    assert one.core.commit == 1
    one.core.step(AppendAnswer(True, GROUP, 0, 0, 2, 2, 2, 1), 0.0)
    assert one.core.commit == 2


@pytest.mark.parametrize("seed", range(4))
def test_an_answer_that_settles_leaves_nothing_to_do(cluster: Make, seed: int) -> None:
    """The engine does not ask `ready()` then, so nothing may be forgotten: no append, no commit, no read."""
    chance = random.Random(seed)
    group = cluster(3, inflight_messages=2, append_bytes=60)
    leader = group.elect(1)
    one, wire, answers = group[1], deque[Any](), deque[Any]()
    settled = unsettled = 0
    for _ in range(1_500):
        if chance.random() < 0.1:
            leader.propose([b"x" * chance.randrange(1, 80)], COMMANDS, 0)
        one.drive()
        if one.disk.waiting and chance.random() < 0.3:
            one.sync()
            one.drive()
        wire += one.outbox
        one.outbox = []
        if wire and chance.random() < 0.7:
            message = wire.popleft()
            group.core(message.to).step(message, 0.0)
            answers += [each for each in group[message.to].take() if isinstance(each, AppendAnswer)]
        if answers and chance.random() < 0.6:
            answer = answers.popleft()
            assert leader.ready() is None
            leader.step(answer, 0.0)
            if leader.settled(answer.sender):
                settled += 1
                assert leader.ready() is None
            else:
                unsettled += 1
    assert settled > 20
    assert unsettled > 20


def test_an_answer_that_lets_a_transfer_go_on_settles_nothing(cluster: Make) -> None:
    group = cluster(3)
    leader = group.elect(1)
    leader.propose([b"a"], COMMANDS, 0)
    group[1].persist()
    leader.step(AppendAnswer(True, GROUP, 0, 0, 3, 3, leader.term, 1), 0.0)
    group[1].drive()
    leader.transfer_leadership(2)
    group[1].drive()
    leader.step(AppendAnswer(True, GROUP, 0, 0, 3, 2, leader.term, 1), 0.0)
    assert not leader.settled(2)
    assert [type(message) for message in leader.ready().messages] == [TimeoutNow]
