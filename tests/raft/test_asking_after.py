"""What a leader does about followers from whom nothing comes: it asks again, now and then."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import pytest

from multiraft.raft.progress import Progress
from multiraft.records import COMMANDS

Make: TypeAlias = Callable[..., Any]


class TestStalled:
    def peer(self, match: int = 3) -> Progress:
        peer = Progress(2, 1)
        assert peer.accepted(match)
        return peer

    def test_it_is_when_nothing_has_come_for_longer_than_the_timeout(self) -> None:
        peer = self.peer()
        answers = [peer.stalled(5, now, 1.0) for now in (10.0, 11.0, 11.1, 12.0, 12.2)]
        assert answers == [False, False, True, False, True]

    def test_whatever_it_acknowledges_begins_the_wait_anew(self) -> None:
        peer = self.peer()
        assert not peer.stalled(5, 10.0, 1.0)
        assert peer.accepted(4)
        assert [peer.stalled(5, now, 1.0) for now in (11.5, 12.4, 12.6)] == [False, False, True]

    def test_who_lacks_nothing_is_not_and_begins_anew_when_it_does(self) -> None:
        peer = self.peer(5)
        assert not peer.stalled(6, 10.0, 1.0)
        assert not peer.stalled(5, 20.0, 1.0)
        assert [peer.stalled(6, now, 1.0) for now in (20.0, 20.5, 21.1)] == [False, False, True]

    @pytest.mark.parametrize("how", ["lost", "snapshot"])
    def test_who_is_sent_nothing_is_not(self, how: str) -> None:
        peer = self.peer()
        assert not peer.stalled(5, 10.0, 1.0)
        if how == "lost":
            peer.lose()
        else:
            peer.await_snapshot(9, 10.0)
        assert not peer.stalled(5, 20.0, 1.0)
        peer.probe(4)
        assert not peer.stalled(5, 20.0, 1.0)


class TestAskingAfterFollowers:
    def test_an_append_that_was_lost_unnoticed_is_made_good(self, cluster: Make) -> None:
        group = cluster(3)
        leader = group.elect(1)
        group.beat()
        leader.propose([b"a"], COMMANDS, 0)
        group[1].persist()
        group[1].outbox = [message for message in group[1].outbox if message.to != 3]
        group.settle()
        assert (leader.commit, group.core(3).last_index) == (3, 2)
        assert not leader.ask_after_followers(0.5)
        group.now = 2.0
        group.beat()
        assert leader.ask_after_followers(2.0)
        assert not leader.ask_after_followers(2.0)
        group.settle()
        assert group.core(3).last_index == 3
        assert not leader.ask_after_followers(9.0)

    def test_who_does_not_answer_at_all_is_left_alone(self, cluster: Make) -> None:
        group = cluster(3)
        leader = group.elect(1)
        group.beat()
        group.isolate(3)
        group.propose(1, b"a")
        assert not leader.ask_after_followers(0.5)
        group.now = 2.0
        group.beat()
        assert not leader.ask_after_followers(2.0)
        assert leader.ready() is None

    def test_snapshots_are_asked_after_as_well(self, cluster: Make) -> None:
        group = cluster(3)
        leader = group.elect(1)
        group.isolate(3)
        group.propose(1, b"a")
        assert group[1].compact(trailing=0)
        group[1].persist()
        leader.poke(3)
        group.settle()
        assert leader.progress[3].state.name == "SNAPSHOT"
        leader.ask_after_followers(9.0)
        assert leader.progress[3].state.name == "SNAPSHOT"
        leader.ask_after_followers(11.0)
        assert leader.progress[3].state.name == "PROBE"

    def test_a_follower_has_none_to_ask_after(self, cluster: Make) -> None:
        group = cluster(3)
        group.elect(1)
        assert not group.core(2).ask_after_followers(9.0)
