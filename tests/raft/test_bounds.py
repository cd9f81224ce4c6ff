"""What a core keeps in memory has bounds, whatever its peers and its callers do (requirement 19)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import pytest
from hypothesis import given
from hypothesis import strategies as some

from multiraft.errors import Overloaded
from multiraft.messages import AppendAnswer, VoteAnswer
from multiraft.raft import AddLearner, Role
from multiraft.records import COMMANDS, RECORD_HEADER_BYTES

GROUP = 16
Make: TypeAlias = Callable[..., Any]


def accepted(index: int, sender: int = 2, term: int = 2) -> AppendAnswer:
    return AppendAnswer(True, GROUP, 0, 0, index, sender, term, 1)


def lead(one: Any) -> Any:
    """Make `one` of several the leader of its next term; its no-op is on its own disk and sent."""
    one.core.campaign(0.0, forced=True)
    one.persist()
    one.core.step(VoteAnswer(one.core.term, True, GROUP, 2, one.core.term, 1), 0.0)
    assert one.core.role is Role.LEADER
    one.take()
    return one.core


def propose(core: Any, size_bytes: int, count: int = 1) -> None:
    """Propose one record that counts as so many bytes."""
    core.propose([b"x" * (size_bytes - RECORD_HEADER_BYTES)] + [b""] * (count - 1), COMMANDS, 0)


class TestUncommittedTail:
    def test_past_the_bound_proposals_are_refused_until_some_are_committed(self, replica: Make) -> None:
        one = replica(uncommitted_bytes=1_000)
        core = lead(one)
        core.step(accepted(2), 0.0)
        for _ in range(2):
            propose(core, 400)
        one.persist()
        with pytest.raises(Overloaded, match=r"group 16: 8.. bytes of commands are not committed yet"):
            propose(core, 400)
        assert core.last_index == 4
        propose(core, 190)  # what fits is taken
        one.persist()
        core.step(accepted(3), 0.0)
        propose(core, 400)
        one.persist()
        core.step(accepted(6), 0.0)
        assert (core.commit, core.uncommitted_bytes) == (6, 0)
        for _ in range(2):
            propose(core, 400)

    def test_one_record_always_fits(self, replica: Make) -> None:
        """Requirement 5: the largest entry gets through, whatever the bound."""
        one = replica(uncommitted_bytes=1_000)
        core = lead(one)
        core.step(accepted(2), 0.0)
        one.take()
        propose(core, 50_000, count=9)
        with pytest.raises(Overloaded):
            propose(core, 50)
        one.persist()
        core.step(accepted(11), 0.0)
        propose(core, 50_000)

    def test_the_entry_at_the_bound_fits_and_one_byte_more_does_not(self, replica: Make) -> None:
        core = lead(replica(uncommitted_bytes=1_000))
        core.step(accepted(2), 0.0)
        propose(core, 300)
        with pytest.raises(Overloaded):
            propose(core, 701)
        propose(core, 700)
        assert core.uncommitted_bytes == 1_000

    def test_no_ops_and_membership_changes_are_exempt(self, replica: Make) -> None:
        one = replica(uncommitted_bytes=1_000)
        core = lead(one)
        core.step(accepted(2), 0.0)
        one.take()
        propose(core, 1_000)
        core.propose_membership([AddLearner("n9")], 0)
        assert core.last_index == 4

    def test_a_new_leader_counts_what_it_finds(self, replica: Make) -> None:
        one = replica(uncommitted_bytes=1_000, run=2, terms=())
        core = lead(one)
        propose(core, 900)
        one.persist()
        core.step_down(0.0)
        assert core.uncommitted_bytes == 0
        core = lead(one)
        assert core.uncommitted_bytes > 900
        with pytest.raises(Overloaded):
            propose(core, 100)
        one.persist()
        core.step(accepted(core.last_index, term=core.term), 0.0)
        assert core.uncommitted_bytes == 0
        propose(core, 900)

    @given(steps=some.lists(some.tuples(some.integers(60, 400), some.booleans()), max_size=30))
    def test_the_count_is_that_of_the_log_beyond_the_commit(self, replica: Make, steps: list[tuple[int, bool]]) -> None:
        one = replica(uncommitted_bytes=1_000)
        core = lead(one)
        core.step(accepted(2), 0.0)
        one.take()
        sizes: list[int] = []
        for size_bytes, commits in steps:
            try:
                propose(core, size_bytes)
            except Overloaded:
                assert sum(sizes) + size_bytes > 1_000
            else:
                sizes.append(size_bytes)
            one.persist()
            if commits:
                core.step(accepted(core.last_index), 0.0)
                one.take()
                sizes.clear()
            assert core.uncommitted_bytes == sum(sizes)


class TestSlowFollowers:
    def test_what_is_on_the_way_to_one_that_never_answers_stays_within_its_window(self, replica: Make) -> None:
        one = replica(inflight_messages=4, inflight_bytes=3_000, append_bytes=500)
        core = lead(one)
        core.step(accepted(2), 0.0)
        core.step(accepted(2, 3), 0.0)
        sent_bytes = 0
        for _ in range(200):
            propose(core, 400)
            sent_bytes += sum(len(r.raw) for m in one.take() if m.to == 2 for r in m.records)
            core.step(accepted(core.last_index, 3), 0.0)
        assert core.commit == core.last_index
        assert len(core.progress[2].inflight) == 4
        assert sent_bytes <= 3_000 + 500

    def test_a_log_that_a_follower_lags_behind_is_not_kept_in_memory_for_it(self, replica: Make) -> None:
        one = replica(inflight_messages=2)
        core = lead(one)
        core.step(accepted(2), 0.0)
        core.step(accepted(2, 3), 0.0)
        for _ in range(100):
            propose(core, 400)
            one.take()
            core.step(accepted(core.last_index, 3), 0.0)
            one.take()
            core.log.trim(1_000)
            assert core.log.size_bytes <= 1_000
        answered = 2
        while core.progress[2].match < core.last_index:
            answered = min(answered + 2, core.last_index)
            core.step(accepted(answered), 0.0)
            one.take()
        assert core.progress[2].next == core.last_index + 1
