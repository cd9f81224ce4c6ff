"""What must be on disk before what may leave: each rule that a crash at the wrong moment would break.

Every test stops between handing a write out and its sync, looks at what could have left by then, and crashes there.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import pytest

from multiraft.messages import Append, AppendAnswer, PreVote, PreVoteAnswer, RequestVote, VoteAnswer
from multiraft.raft import Role
from multiraft.records import COMMANDS
from multiraft.types import HardState

GROUP = 16
Make: TypeAlias = Callable[..., Any]


def kinds(messages: list[Any]) -> list[type]:
    return [type(message) for message in messages]


def test_a_vote_answer_leaves_only_after_the_vote_is_on_disk(replica: Make) -> None:
    one = replica()
    one.core.step(RequestVote(False, GROUP, 1, 1, 2, 2, 1), 0.5)
    ready = one.drive()[0]
    assert ready.hard_state == HardState(2, 2, 1)
    assert (kinds(ready.after_persist), ready.messages, one.outbox) == ([VoteAnswer], [], [])
    one.crash()
    one.start(1.0)
    assert (one.core.term, one.core.vote) == (1, 0)  # nobody heard of that vote, so another may have it
    one.core.step(RequestVote(False, GROUP, 1, 1, 3, 2, 1), 0.5)
    assert one.take()[-1].granted


def test_a_vote_in_a_term_that_is_on_disk_already_is_written_too(replica: Make) -> None:
    one = replica()
    one.core.follow(3, 4, 0.5)
    one.take()
    one.core.step(RequestVote(False, GROUP, 1, 1, 2, 4, 1), 0.5)
    ready = one.drive()[0]
    assert (ready.hard_state, kinds(ready.after_persist)) == (HardState(4, 2, 1), [VoteAnswer])


def test_a_request_for_votes_leaves_only_after_term_self_vote_and_log_are_on_disk(replica: Make, append: Make) -> None:
    one = replica()
    one.core.step(append(1, 1, (1, 1), term=1), 0.5)
    one.core.campaign(5.0)
    one.core.step(PreVoteAnswer(2, True, GROUP, 2, 1, 1), 5.0)
    one.drive()
    assert RequestVote not in kinds(one.outbox)
    written = one.disk.waiting[0]
    assert written.hard_state == HardState(2, 1, 1)
    assert [r.last for r in written.records] == [3]
    one.sync()
    assert [(m.term, m.last_index, m.last_term) for m in one.outbox if isinstance(m, RequestVote)] == [(2, 3, 1)] * 2
    one.crash()
    one.start(6.0)
    assert (one.core.term, one.core.vote, one.core.last_index) == (2, 1, 3)


def test_an_append_answer_leaves_only_after_the_entries_are_on_disk(replica: Make, append: Make) -> None:
    """Requirement 2."""
    one = replica()
    one.core.step(append(1, 1, (2, 2)), 0.5)
    ready = one.drive()[0]
    assert (kinds(ready.after_persist), ready.messages, one.outbox) == ([AppendAnswer], [], [])
    assert (ready.last, ready.hard_state) == ((3, 2), HardState(2, 0, 1))
    one.crash()
    one.start(1.0)
    assert one.core.last_index == 1


def test_an_answer_that_writes_nothing_itself_waits_for_the_write_before(replica: Make, append: Make) -> None:
    """The probe only confirms entries whose write is still on its way."""
    one = replica()
    one.core.step(append(1, 1, (2, 2)), 0.5)
    one.drive()
    one.core.step(append(3, 2, ()), 0.5)
    ready = one.drive()[0]
    assert (ready.writes, kinds(ready.after_persist)) == (False, [AppendAnswer])
    assert one.outbox == []
    one.sync()
    assert [m.index for m in one.outbox] == [3, 3]


def test_a_pre_vote_answer_is_a_promise_like_any_other_answer(replica: Make) -> None:
    one = replica()
    one.core.step(PreVote(GROUP, 1, 1, 2, 2, 1), 0.5)
    ready = one.core.ready()
    assert (kinds(ready.after_persist), ready.messages, ready.writes) == ([PreVoteAnswer], [], False)


def test_a_pre_vote_request_leaves_at_once(replica: Make, append: Make) -> None:
    one = replica()
    one.core.step(append(1, 1, (2,)), 0.5)
    one.core.campaign(5.0)
    assert kinds(one.core.ready().messages) == [PreVote, PreVote]


def test_a_leaders_appends_leave_at_once_and_its_own_disk_counts_only_after(cluster: Make) -> None:
    group = cluster(3)
    leader = group.elect(1)
    leader.propose([b"a"], COMMANDS, 0)
    ready = group[1].drive()[0]
    assert (kinds(ready.messages), ready.after_persist) == ([Append, Append], [])
    assert (ready.writes, ready.last) == (True, (3, 2))
    for other in (2, 3):
        group.core(other).step(next(m for m in ready.messages if m.to == other), 0.0)
    leader.step(group[2].take()[-1], 0.0)
    assert leader.commit == 2  # one follower and a disk that has not answered are no majority
    group[1].sync()
    assert leader.commit == 3


def test_a_term_that_a_claim_raised_is_in_the_next_hard_state(replica: Make) -> None:
    one = replica()
    assert one.core.follow(3, 6, 0.5)
    ready = one.drive()[0]
    assert (ready.hard_state, ready.leader, ready.term) == (HardState(6, 0, 1), 3, 6)
    one.crash(kept=1)
    one.start(1.0)
    assert one.core.term == 6


def test_a_term_that_a_refusal_raised_is_in_the_next_hard_state(cluster: Make) -> None:
    group = cluster(3)
    group.elect(1).refused(2, 5)
    assert group[1].drive()[0].hard_state == HardState(5, 0, 2)


def test_a_single_voter_commits_only_after_its_own_persist(replica: Make) -> None:
    """Requirement 2, where there is nobody else to wait for."""
    one = replica(voters=1)
    one.core.campaign(5.0)
    one.core.propose([b"a"], COMMANDS, 0)
    ready = one.drive()[0]
    assert (one.core.role, one.core.commit, ready.committed, one.applied) == (Role.LEADER, 1, 1, [])
    one.sync()
    one.drive()
    assert (one.core.commit, [entry for _, _, entry in one.applied]) == (3, [b"", b"a"])


@pytest.mark.parametrize("kept", [0, 1, 2])
def test_a_crash_between_two_writes_leaves_a_log_that_chains(replica: Make, append: Make, kept: int) -> None:
    """A conflict's deletions, its records and the term reach the disk together or not at all."""
    one = replica(terms=(2, 2, 2), run=3)
    one.core.step(append(4, 2, (2, 2), run=1), 0.5)
    one.drive()
    one.core.step(append(3, 2, (5, 5), run=1, sender=3), 0.5)
    one.drive()
    one.crash(kept)
    one.start(1.0)
    assert (one.terms(), one.core.term) == [([2, 2, 2], 2), ([2, 2, 2, 2, 2], 2), ([2, 2, 5, 5], 5)][kept]


def test_a_report_counts_only_while_what_it_wrote_still_stands(replica: Make, append: Make) -> None:
    one = replica()
    one.core.step(append(1, 1, (2, 2, 2)), 0.5)
    one.drive()
    one.core.step(append(2, 2, (3,), commit=3, sender=3), 0.5)
    one.drive()
    one.sync()
    one.drive()
    assert (one.core.log.stable, [index for index, _, _ in one.applied]) == (2, [2])
    one.sync()
    one.drive()
    assert [(index, term) for index, term, _ in one.applied] == [(2, 2), (3, 3)]


def test_everything_is_handed_out_once(cluster: Make) -> None:
    group = cluster(3)
    leader = group.elect(1)
    leader.propose([b"a"], COMMANDS, 0)
    assert leader.ready() is not None
    assert leader.ready() is None


def test_an_idle_replica_has_nothing_to_do(cluster: Make) -> None:
    group = cluster(3)
    group.elect(1)
    group.beat()
    for one in group.replicas.values():
        one.core.tick(1_000.0)
        assert one.core.ready() is None


def test_soft_state_alone_is_told_too(replica: Make) -> None:
    one = replica()
    one.core.follow(2, 1, 0.5)
    ready = one.core.ready()
    assert (ready.leader, ready.role_changed, ready.writes) == (2, False, False)
    one.core.release(1.0, 0.1)
    assert one.core.ready().leader == 0
