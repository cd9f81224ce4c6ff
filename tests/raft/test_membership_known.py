"""When a majority knows who takes part: only then may a replica that was removed go, and a change is done."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from multiraft.raft import AddLearner, Change, Demote, Remove

Make = Callable[..., Any]


@pytest.mark.parametrize("change", [Remove(4), Demote(4)])
def test_a_change_of_voters_is_known_to_a_majority_only_by_an_entry_after_it(cluster: Make, change: Change) -> None:
    """Whoever knows may be lost before: nobody may be told to go until the others have it on disk."""
    made = cluster(4)
    made.elect(1)
    leader = made.core(1)
    made.propose(1, b"x")
    assert leader.membership_known
    index = leader.propose_membership([change], 0)
    for _ in range(3):  # the change is stored by all, and nothing after it
        for message in made[1].take():
            made.core(message.to).step(message, 0.0)
        for other in (2, 3, 4):
            for message in made[other].take():
                if message.index <= index:
                    leader.step(message, 0.0)
    made[1].persist()
    assert leader.membership.index == index
    assert leader.last_index > index  # a no-op, by which the others come to know
    assert not leader.membership_known
    made.settle()
    leader.poke(2)
    made.settle()
    assert leader.membership_known
    assert not made.core(2).membership_known  # a follower cannot tell


def test_a_learner_more_needs_no_entry_after_it(cluster: Make) -> None:
    made = cluster()
    made.elect(1)
    made.propose(1, b"x")
    index = made.core(1).propose_membership([AddLearner("n4")], 0)
    made.settle()
    assert made.core(1).membership.index == index == made.core(1).last_index
    assert made.core(1).membership_known
