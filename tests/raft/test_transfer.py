"""Leadership transfer (thesis, section 3.10): TimeoutNow once the target has it all; no proposals meanwhile."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, TypeAlias

import pytest

from multiraft.errors import NotLeader, NotReady
from multiraft.messages import TimeoutNow
from multiraft.raft import Role
from multiraft.records import COMMANDS
from multiraft.types import Membership

ET = 1.0
Make: TypeAlias = Callable[..., Any]


def test_the_target_takes_over_without_waiting_and_without_an_outage(cluster: Make) -> None:
    group = cluster(3)
    group.elect(1).transfer_leadership(3)
    group.settle()
    assert (group.leaders(), group.core(3).term) == ([3], 3)
    group.propose(3, b"a")
    assert [one.applied[-1][2] for one in group.replicas.values()] == [b"a"] * 3


def test_loyal_followers_follow_it_too(cluster: Make) -> None:
    """Section 4.2.3: the leader itself wants it, so nobody is disturbed."""
    group = cluster(3)
    group.elect(1)
    for one in group.replicas.values():
        one.contacts.is_loyal = True
    group.core(1).transfer_leadership(3)
    group.settle()
    assert group.leaders() == [3]


def test_a_target_that_lags_is_brought_up_first(cluster: Make) -> None:
    group = cluster(3)
    leader = group.elect(1)
    group.isolate(3)
    group.propose(1, b"a", b"b")
    leader.transfer_leadership(3)
    group.settle()
    assert not [m for m in group.trace if isinstance(m, TimeoutNow)]
    group.heal()
    group.settle()
    assert group.leaders() == [3]
    kinds = [type(m) for m in group.trace]
    assert kinds.count(TimeoutNow) == 1


def test_nothing_is_proposed_meanwhile(cluster: Make) -> None:
    group = cluster(3)
    leader = group.elect(1)
    leader.transfer_leadership(3)
    with pytest.raises(NotReady):
        leader.propose([b"a"], COMMANDS, 0)
    assert leader.last_index == 2


def test_a_failed_transfer_re_opens_proposals_after_an_election_timeout(cluster: Make) -> None:
    """Requirement 13."""
    group = cluster(3)
    leader = group.elect(1)
    group.isolate(3)
    leader.transfer_leadership(3)
    group.settle()
    leader.tick(10.0)  # starts the timer
    leader.tick(10.0 + ET - 0.001)
    with pytest.raises(NotReady):
        leader.propose([b"a"], COMMANDS, 0)
    leader.tick(10.0 + 2 * ET)
    assert (leader.role, leader.next_deadline()) == (Role.LEADER, math.inf)
    group.propose(1, b"a")
    assert leader.commit == 3


def test_it_survives_a_beat_in_between(cluster: Make) -> None:
    """Requirement 13: the old leader's claim comes after the target's campaign has begun."""
    group = cluster(3)
    leader = group.elect(1)
    group.beat()
    leader.transfer_leadership(3)
    request = next(m for m in group[1].take() if isinstance(m, TimeoutNow))
    group.core(3).follow(1, 2, 0.0)
    group.core(3).step(request, 0.0)
    assert not group.core(3).follow(1, 2, 0.0)
    group.settle()
    assert group.leaders() == [3]


def test_a_second_transfer_replaces_the_first(cluster: Make) -> None:
    group = cluster(3)
    leader = group.elect(1)
    group.isolate(3)
    leader.transfer_leadership(3)
    group.settle()
    leader.transfer_leadership(2)
    group.settle()
    assert 2 in group.leaders()


@pytest.mark.parametrize("to", [1, 4, 9])
def test_only_another_voter_can_take_over(replica: Make, to: int) -> None:
    nodes = {1: "n1", 4: "n4"}
    one = replica(membership=Membership(1, (1,), nodes, 5, learners=(4,)))
    one.core.campaign(5.0)
    one.persist()
    with pytest.raises(NotReady):
        one.core.transfer_leadership(to)
    one.core.propose([b"a"], COMMANDS, 0)


def test_only_a_leader_hands_over(replica: Make) -> None:
    with pytest.raises(NotLeader):
        replica().core.transfer_leadership(2)


def test_the_status_tells_of_it(cluster: Make) -> None:
    group = cluster(3)
    leader = group.elect(1)
    group.isolate(2)
    leader.transfer_leadership(2)
    told = leader.status()
    assert (told["role"], told["transfer_to"], told["term"], told["leader"]) == ("leader", 2, 2, 1)
    assert told["progress"][3] == {
        "match": 2, "next": 3, "state": "replicate", "inflight": 0, "inflight_bytes": 0,
    }  # fmt: skip
    assert group.core(3).status()["progress"] == {}
