"""Snapshots whose state takes long to come: the leader waits, and is told when it need not.

The state itself is the engine's to fetch; the core only knows that it is not here yet.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from multiraft.errors import InvariantViolation
from multiraft.messages import Append, AppendAnswer, Installing, InstallSnapshot
from multiraft.raft import Role
from multiraft.records import COMMANDS
from tests.raft.conftest import GROUP
from tests.raft.test_snapshots import accepted, installing, lead_with_short_log, of_kind, rejected

Make = Callable[..., Any]


def at_work(index: int, gone: bool = False, sender: int = 2, term: int = 2) -> Installing:
    return Installing(gone, GROUP, index, sender, term, 1)


def awaiting(replica: Make) -> Any:
    """A leader that has sent replica 2 the snapshot of index 7, at 5.0."""
    one = lead_with_short_log(replica)
    one.core.step(rejected(1, (1, 1)), 5.0)
    assert [(type(m), m.index) for m in one.take()] == [(InstallSnapshot, 7)]
    return one


class TestLeader:
    def test_one_that_is_being_installed_is_not_asked_after(self, replica: Make) -> None:
        one = awaiting(replica)
        core = one.core
        for now in (14.0, 23.0, 32.0):
            core.step(at_work(7), now)
            core.ask_after_snapshots(now + 0.9)
        assert one.take() == []
        core.ask_after_snapshots(42.0)
        assert one.take() == []
        core.ask_after_snapshots(42.1)
        assert [(type(m), m.prev_index) for m in one.take()] == [(Append, 7)]

    def test_who_cannot_get_it_is_sent_the_newest_at_once(self, replica: Make) -> None:
        one = awaiting(replica)
        core = one.core
        core.propose([b"y"], COMMANDS, 0)
        one.take()
        core.step(accepted(8, 3), 5.0)
        one.take()
        assert one.compact(0)
        one.take()
        core.step(at_work(7, gone=True), 6.0)
        assert [(type(m), m.index) for m in one.take()] == [(InstallSnapshot, 8)]
        core.step(accepted(8), 7.0)
        assert core.progress[2].state.name == "REPLICATE"

    def test_the_same_one_is_sent_again_where_there_is_no_newer(self, replica: Make) -> None:
        one = awaiting(replica)
        one.core.step(at_work(7, gone=True), 6.0)
        assert [(type(m), m.index) for m in one.take()] == [(InstallSnapshot, 7)]

    @pytest.mark.parametrize("gone", [False, True])
    @pytest.mark.parametrize(
        "said", [{"index": 6}, {"index": 8}, {"term": 1}, {"term": 3}, {"sender": 3}, {"sender": 9}]
    )
    def test_what_is_not_of_the_one_that_it_awaits_changes_nothing(
        self, replica: Make, gone: bool, said: dict[str, int]
    ) -> None:
        one = awaiting(replica)
        one.core.step(at_work(**{"index": 7, **said}, gone=gone), 14.0)
        assert one.take() == []
        one.core.ask_after_snapshots(15.1)
        assert [(type(m), m.prev_index) for m in one.take()] == [(Append, 7)]
        assert (one.core.role, one.core.term) == (Role.LEADER, 2)

    @pytest.mark.parametrize("gone", [False, True])
    def test_one_that_is_asked_after_or_has_answered_is_beyond_that(self, replica: Make, gone: bool) -> None:
        one = awaiting(replica)
        one.core.poke(2)
        one.take()
        one.core.step(at_work(7, gone), 6.0)
        assert one.take() == []
        one.core.step(accepted(7), 7.0)
        one.core.step(at_work(7, gone), 7.0)
        assert one.take() == []
        assert one.core.progress[2].state.name == "REPLICATE"

    def test_who_leads_no_longer_takes_no_notice(self, replica: Make) -> None:
        one = awaiting(replica)
        one.core.step_down(6.0)
        one.take()
        one.core.step(at_work(7, gone=True), 6.0)
        assert of_kind(one.take(), InstallSnapshot) == []


class TestFollower:
    @pytest.mark.parametrize(
        ("index", "index_term", "needed"),
        [
            (9, 3, True),
            (3, 2, False),  # committed
            (2, 1, False),
            (4, 2, False),  # in the log as it is
            (4, 3, True),  # in conflict with the log
            (5, 2, False),
            (6, 2, True),
        ],
    )
    def test_it_knows_what_it_would_install(self, replica: Make, index: int, index_term: int, needed: bool) -> None:
        one = replica(terms=(1, 1, 2, 2), commit=3, term=5)
        message = installing(index, index_term)
        assert one.core.needs(message) is needed
        if needed:
            one.core.await_state(message, 0.5)
            assert one.core.last_index == 5, "nothing is installed yet"
        else:
            with pytest.raises(InvariantViolation):
                one.core.await_state(message, 0.5)

    def test_it_awaits_nothing_of_an_earlier_leader(self, replica: Make) -> None:
        one = replica(term=5)
        with pytest.raises(InvariantViolation):
            one.core.await_state(installing(9, 3, term=4), 0.5)

    def test_it_knows_what_its_state_machine_would_take(self, replica: Make) -> None:
        """It has asked for a state, though its log lacks nothing."""
        one = replica(terms=(1, 1, 2, 2), commit=2)
        one.core.step(Append(5, GROUP, 5, 2, (), 2, 9, 1), 0.5)
        one.drive()
        message = installing(5, 2)
        assert not one.core.needs(message)
        one.core.want_state(5)
        applied, one.core.log.applied = one.core.log.applied, 4
        assert one.core.needs(message)
        assert not one.core.needs(installing(4, 2))
        one.core.log.applied = applied
        assert not one.core.needs(message), "applied already"

    def test_it_follows_who_sent_it_and_says_so_when_the_term_is_on_disk(self, replica: Make) -> None:
        one = replica(term=5)
        one.core.campaign(0.5)
        one.take()
        one.core.await_state(installing(9, 3, sender=3), 0.5)
        assert (one.core.role, one.core.term, one.core.leader) == (Role.FOLLOWER, 9, 3)
        one.drive()
        assert one.outbox == []
        (said,) = one.take()
        assert (type(said), said.gone, said.index, said.term, said.to) == (Installing, False, 9, 9, 3)

    def test_its_deadline_is_put_off(self, replica: Make) -> None:
        one = replica(terms=(1, 1))
        message = installing(9, 3)
        one.core.await_state(message, 0.5)
        first_s = one.core.next_deadline()
        one.core.await_state(message, first_s - 0.001)
        assert one.core.next_deadline() > first_s

    @pytest.mark.parametrize("gone", [False, True])
    def test_it_tells_the_leader_how_it_stands_until_there_is_another(self, replica: Make, gone: bool) -> None:
        one = replica(terms=(1, 1))
        message = installing(9, 3)
        one.core.await_state(message, 0.5)
        one.take()
        one.core.report_install(message, gone=gone)
        (said,) = one.take()
        assert (said.gone, said.index, said.to) == (gone, 9, 2)
        one.core.step(installing(20, 3, term=10, sender=3), 1.0)
        one.take()
        one.core.report_install(message, gone=gone)
        assert one.take() == []

    def test_when_its_state_is_here_it_is_installed_as_any_other(self, replica: Make) -> None:
        one = replica(terms=(1, 1))
        message = installing(9, 3, data=b"[(9, 3, b'there')]")
        one.core.await_state(message, 0.5)
        one.take()
        one.core.step(message, 5.0)
        (answer,) = one.take()
        assert (type(answer), answer.accepted, answer.index) == (AppendAnswer, True, 9)
        assert one.applied == [(9, 3, b"there")]
