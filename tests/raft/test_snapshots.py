"""Snapshots (thesis, chapter 5): what the log may forget, and how a follower comes by what it no longer has."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, TypeAlias

import pytest

from multiraft.membership import pack_membership, unpack_membership
from multiraft.messages import Append, AppendAnswer, InstallSnapshot, VoteAnswer
from multiraft.raft import AddLearner, Role
from multiraft.records import COMMANDS
from multiraft.types import LogStart, Membership, founding_membership

GROUP = 16
Make: TypeAlias = Callable[..., Any]
MEMBERS = founding_membership(("n1", "n2", "n3"))


def of_kind(messages: list[Any], kind: type) -> list[Any]:
    return [message for message in messages if isinstance(message, kind)]


def accepted(index: int, sender: int = 2, term: int = 2) -> AppendAnswer:
    return AppendAnswer(True, GROUP, 0, 0, index, sender, term, 1)


def rejected(index: int, hint: tuple[int, int], sender: int = 2, term: int = 2) -> AppendAnswer:
    return AppendAnswer(False, GROUP, hint[0], hint[1], index, sender, term, 1)


def installing(
    index: int, index_term: int, term: int = 9, sender: int = 2, membership: Membership = MEMBERS, data: bytes = b"[]"
) -> InstallSnapshot:
    return InstallSnapshot(data, GROUP, index, index_term, pack_membership(membership), sender, term, 1)


def lead(one: Any) -> Any:
    """Make `one` of several the leader of its next term; its no-op is on its own disk and sent."""
    one.core.campaign(0.0, forced=True)
    one.persist()
    term, voters = one.core.term, one.membership.voters
    for sender in voters[1 : len(voters) // 2 + 1]:
        one.core.step(VoteAnswer(term, True, GROUP, sender, term, 1), 0.0)
    assert one.core.role is Role.LEADER
    one.take()
    return one.core


def lead_with_short_log(replica: Make, entries: int = 5, trailing: int = 0, **others: Any) -> Any:
    """A leader of three whose log was compacted up to its last entry; only replica 3 follows so far."""
    one = replica(**others)
    core = lead(one)
    core.step(accepted(2, 3), 0.0)
    for _ in range(entries):
        core.propose([b"x"], COMMANDS, 0)
        one.take()
    core.step(accepted(core.last_index, 3), 0.0)
    one.take()
    assert one.compact(trailing)
    one.take()
    return one


class TestLeader:
    """Section 5.3: a follower that needs what the log no longer has."""

    def test_it_gets_the_newest_snapshot_and_then_entries_from_there_on(self, cluster: Make) -> None:
        group = cluster(3)
        group.elect(1)
        group.isolate(3)
        for _ in range(5):
            group.propose(1, b"x")
        assert group[1].compact(trailing=2)
        group[1].persist()
        group.propose(1, b"y")
        group.trace.clear()
        group.heal()
        group.settle()
        group.tell_commits()
        (sent,) = of_kind(group.trace, InstallSnapshot)
        assert (sent.index, sent.index_term, sent.to) == (7, 2, 3)
        assert unpack_membership(sent.membership, "") == MEMBERS
        assert (group.core(3).log.start, group.core(3).commit) == (LogStart(7, 2), 8)
        assert group[3].applied == group[1].applied
        assert group.core(1).progress[3].state.name == "REPLICATE"
        after = group.trace.index(sent)
        appends = [m for m in group.trace[after:] if isinstance(m, Append) and m.to == 3]
        assert [(m.prev_index, len(m.records)) for m in appends] == [(7, 1)]

    def test_nothing_else_is_sent_to_it_until_it_has_answered(self, replica: Make) -> None:
        one = lead_with_short_log(replica)
        core = one.core
        core.step(rejected(1, (1, 1)), 0.0)  # of the first append: replica 2 has the founding only
        assert [(type(m), m.index) for m in one.take()] == [(InstallSnapshot, 7)]
        assert core.status()["progress"][2]["state"] == "snapshot"
        for _ in range(3):
            core.propose([b"y"], COMMANDS, 0)
            assert {m.to for m in one.take()} == {3}
        core.step(accepted(10, 3), 0.0)
        assert core.commit == 10  # the others go on without it
        core.step(accepted(7), 0.0)
        assert [(m.prev_index, m.records[-1].last) for m in one.take() if m.to == 2] == [(7, 10)]

    def test_an_append_answer_may_show_that_entries_will_do(self, replica: Make) -> None:
        """The snapshot need not arrive at all."""
        one = lead_with_short_log(replica, trailing=2)
        core = one.core
        core.step(rejected(1, (1, 1)), 0.0)
        one.take()
        core.step(accepted(3), 0.0)  # a late one, of an entry that is not in the log any more
        assert core.progress[2].state.name == "SNAPSHOT"
        assert one.take() == []
        core.step(accepted(5), 0.0)  # the entry at the log's start
        assert core.progress[2].state.name == "REPLICATE"
        assert [(m.prev_index, m.records[-1].last) for m in one.take()] == [(5, 7)]

    def test_a_snapshot_that_was_answered_too_late_is_followed_by_another(self, replica: Make) -> None:
        one = lead_with_short_log(replica)
        core = one.core
        core.step(rejected(1, (1, 1)), 0.0)
        one.take()
        core.propose([b"y"], COMMANDS, 0)
        one.take()
        core.step(accepted(8, 3), 0.0)
        one.take()
        assert one.compact(0)
        one.take()
        core.step(accepted(7), 0.0)
        assert [(type(m), m.index) for m in one.take()] == [(InstallSnapshot, 8)]

    def test_late_rejections_change_nothing_meanwhile(self, replica: Make) -> None:
        one = lead_with_short_log(replica)
        one.core.step(rejected(1, (1, 1)), 0.0)
        one.take()
        one.core.step(rejected(1, (1, 1)), 0.0)
        one.core.step(rejected(0, (0, 0)), 0.0)
        assert one.take() == []

    def test_a_poke_asks_whether_it_has_arrived(self, replica: Make) -> None:
        one = lead_with_short_log(replica)
        core = one.core
        core.step(rejected(1, (1, 1)), 0.0)
        one.take()
        core.poke(2)
        assert [(type(m), m.prev_index) for m in one.take()] == [(Append, 7)]
        core.step(rejected(7, (1, 1)), 0.0)  # it was lost
        assert [(type(m), m.index) for m in one.take()] == [(InstallSnapshot, 7)]
        core.poke(2)
        one.take()
        core.step(accepted(7), 0.0)  # only its answer was lost
        assert one.take() == []
        assert core.progress[2].state.name == "REPLICATE"

    def test_one_that_stays_unanswered_is_asked_after(self, replica: Make) -> None:
        one = lead_with_short_log(replica)
        core = one.core
        core.step(rejected(1, (1, 1)), 5.0)
        one.take()
        core.ask_after_snapshots(15.0)
        assert one.take() == []
        core.ask_after_snapshots(15.1)
        assert [(type(m), m.prev_index) for m in one.take()] == [(Append, 7)]
        core.step_down(16.0)
        core.ask_after_snapshots(60.0)
        assert of_kind(one.take(), Append) == []

    def test_only_one_that_is_on_disk_is_sent(self, replica: Make) -> None:
        """Requirement 21: nothing counts as stored before the store has said so."""
        one = replica()
        core = lead(one)
        core.step(accepted(2, 3), 0.0)
        core.propose([b"x"], COMMANDS, 0)
        one.take()
        core.step(accepted(3, 3), 0.0)
        one.take()
        assert one.compact(0)
        core.step(rejected(1, (1, 1)), 0.0)
        one.drive()
        assert one.outbox == []
        assert core.progress[2].state.name == "SNAPSHOT"
        one.drive()
        assert one.outbox == []
        assert [(type(m), m.index) for m in one.take()] == [(InstallSnapshot, 3)]

    def test_an_answer_ends_the_wait_for_one_that_is_not_on_disk_yet(self, replica: Make) -> None:
        one = replica()
        core = lead(one)
        core.step(accepted(2, 3), 0.0)
        core.propose([b"x"], COMMANDS, 0)
        one.take()
        core.step(accepted(3, 3), 0.0)
        one.take()
        assert one.compact(0)
        core.step(rejected(1, (1, 1)), 0.0)
        one.drive()
        core.step(accepted(3), 0.0)  # of the first append, which was late, not lost
        assert [type(m) for m in one.take()] == []
        assert core.progress[2].state.name == "REPLICATE"

    def test_a_replica_made_empty_begins_with_the_founding(self, cluster: Make, replica: Make) -> None:
        group = cluster(3)
        group.replicas[3] = empty = replica(replica_id=3, empty=True)
        group.elect(1)
        group.propose(1, b"a")
        (sent,) = of_kind(group.trace, InstallSnapshot)
        assert (sent.index, sent.index_term, sent.data) == (1, 1, b"")
        assert empty.core.membership == MEMBERS
        assert empty.log() == group[1].log()
        assert empty.applied == group[1].applied
        assert (empty.disk.start, empty.disk.membership) == (LogStart(1, 1), MEMBERS)

    def test_one_that_denies_what_it_acknowledged_is_lost_and_gets_none(self, replica: Make) -> None:
        one = lead_with_short_log(replica)
        core = one.core
        core.step(rejected(1, (1, 1)), 0.0)
        one.take()
        core.step(accepted(7), 0.0)
        core.propose([b"y"], COMMANDS, 0)
        one.take()
        core.step(rejected(7, (0, 0)), 0.0)
        assert [(type(m), m.prev_index) for m in one.take()] == [(Append, 7)]
        core.step(rejected(7, (0, 0)), 0.0)
        assert core.progress[2].state.name == "LOST"
        assert one.take() == []

    def test_a_follower_whose_log_parted_before_the_start_gets_one(self, cluster: Make) -> None:
        group = cluster(3, logs=((1,), (1,), (1, 2, 2, 2, 2, 2, 2)), terms=(7, 7, 7))
        group.isolate(3)
        group.elect(1)
        for _ in range(3):
            group.propose(1, b"x")
        assert group[1].compact(0)
        group[1].persist()
        assert group.core(3).last_index > group.core(1).log.start.index
        group.heal()
        group.settle()
        group.tell_commits()
        assert len(of_kind(group.trace, InstallSnapshot)) == 1
        assert group[3].log() == group[1].log() == []
        assert group[3].applied == group[1].applied


class TestFollower:
    """Section 5.3, and figure 5.3: what a follower does with a snapshot."""

    def test_one_that_covers_nothing_new_is_acknowledged_at_the_commit(self, replica: Make) -> None:
        one = replica(terms=(1, 1, 2), commit=3)
        before = one.log()
        for index in (1, 2, 3):
            one.core.step(installing(index, 1), 0.5)
            (answer,) = one.take()
            assert (answer.accepted, answer.index, answer.term) == (True, 3, 9)
        assert (one.log(), one.core.commit, one.disk.snapshot.index) == (before, 3, 1)
        assert one.installs == 0

    @pytest.mark.parametrize(("index", "term"), [(3, 1), (4, 2), (5, 2)])
    def test_one_of_an_entry_that_is_there_only_moves_the_commit(self, replica: Make, index: int, term: int) -> None:
        one = replica(terms=(1, 1, 2, 2), commit=2)
        before = one.log()
        one.core.step(installing(index, term), 0.5)
        (answer,) = one.take()
        assert (answer.accepted, answer.index) == (True, index)
        assert (one.log(), one.core.commit, one.core.applied) == (before, index, index)
        assert one.installs == 0

    @pytest.mark.parametrize(("log", "index", "term"), [
        ((1, 1), 9, 3),  # the log ends before
        ((1, 1, 2, 2), 4, 3),  # another entry is there: all of the log goes, also what comes after
        ((1, 1, 2, 2), 5, 3),
        ((), 2, 1),
    ])  # fmt: skip
    def test_any_other_takes_the_place_of_the_log(
        self, replica: Make, log: tuple[int, ...], index: int, term: int
    ) -> None:
        one = replica(terms=log, run=2)
        data = repr([(at, 1, b"s") for at in range(2, index + 1)]).encode()
        grown = replace(MEMBERS, index=2, learners=(4,), nodes={**MEMBERS.nodes, 4: "n4"}, next_replica_id=5)
        one.core.step(installing(index, term, membership=grown, data=data), 0.5)
        (answer,) = one.take()
        assert (answer.accepted, answer.index, answer.term) == (True, index, 9)
        for _ in range(2):
            core = one.core
            assert (core.last_index, core.log.last_term, core.commit, core.applied) == (index, term, index, index)
            assert (core.log.start, core.snapshot_index, core.membership) == (LogStart(index, term), index, grown)
            assert len(one.applied) == index - 1
            assert one.disk.records == {}
            one.crash()
            one.start(0.0)

    def test_it_is_acknowledged_only_when_it_is_on_disk_and_the_machine_has_it(self, replica: Make) -> None:
        one = replica(terms=(1, 1))
        one.core.step(installing(9, 3), 0.5)
        (ready,) = one.drive()
        assert ready.snapshot.installs
        assert (ready.hard_state.term, ready.hard_state.commit, ready.last) == (9, 9, (9, 3))
        assert ready.membership is None  # it is the one written before
        assert ready.committed < 9
        assert [m.index for m in ready.after_persist] == [9]
        assert one.outbox == []
        assert one.core.applied < 9
        one.sync()
        assert [m.index for m in one.outbox] == [9]
        assert (one.core.applied, one.installs) == (9, 1)

    @pytest.mark.parametrize("kept", [0, 1])
    def test_a_crash_leaves_the_old_log_or_the_snapshot(self, replica: Make, kept: int) -> None:
        """Requirement 20."""
        one = replica(terms=(1, 1, 2), commit=2)
        one.drive()
        before = (one.log(), one.applied)
        one.core.step(installing(9, 3, data=b"[(2, 1, b'x')]"), 0.5)
        one.drive()
        one.crash(kept)
        one.start(0.0)
        if kept:
            assert (one.core.log.start, one.core.commit, one.applied) == (LogStart(9, 3), 9, [(2, 1, b"x")])
        else:
            one.drive()
            assert (one.log(), one.applied) == before
            assert one.core.term == 2

    def test_every_key_of_the_old_log_is_deleted_also_those_on_their_way(self, replica: Make, append: Make) -> None:
        one = replica(terms=(1, 1), run=1)
        one.core.step(append(3, 1, (2, 2), run=1), 0.5)
        one.drive()
        one.core.step(append(5, 2, (2,), run=1), 0.5)  # never handed out
        one.core.step(installing(20, 3), 0.5)
        (ready,) = one.drive()
        assert ready.deleted == [2, 3, 4, 5]
        assert ready.records == []
        one.persist()
        assert one.disk.records == {}

    def test_entries_that_follow_in_the_same_turn_are_stored_with_it(self, replica: Make, append: Make) -> None:
        one = replica(terms=(1, 1))
        one.core.step(installing(9, 3), 0.5)
        one.core.step(append(9, 3, (3, 9), term=9, commit=10), 0.5)
        (ready,) = one.drive()
        assert [r.first for r in ready.records] == [10, 11]
        assert [m.index for m in ready.after_persist] == [11]
        one.persist()
        assert (one.core.commit, one.core.applied, one.terms()) == (10, 10, [3, 9])
        one.crash()
        one.start(0.0)
        assert one.terms() == [3, 9]

    def test_a_second_one_before_the_first_is_on_disk(self, replica: Make, append: Make) -> None:
        one = replica(terms=(1, 1))
        one.core.step(installing(9, 3, data=b"[(9, 3, b'first')]"), 0.5)
        one.drive()
        one.core.step(append(9, 3, (3,), term=9), 0.5)
        one.core.step(installing(20, 3, data=b"[(20, 3, b'second')]"), 0.6)
        one.drive()
        one.sync()
        assert one.core.applied < 9
        one.persist()
        assert (one.core.applied, one.core.log.start, one.applied) == (20, LogStart(20, 3), [(20, 3, b"second")])
        assert (one.core.snapshot_index, one.core.may_compact()) == (20, True)

    def test_a_snapshot_of_its_own_that_is_on_its_way_is_no_harm(self, replica: Make) -> None:
        one = replica(terms=(1, 1, 1), commit=3)
        one.drive()
        assert one.compact(0)
        one.drive()
        one.core.step(installing(20, 3, data=b"[(20, 3, b'theirs')]"), 0.6)
        one.persist()
        assert (one.core.applied, one.core.snapshot_index, one.applied) == (20, 20, [(20, 3, b"theirs")])
        assert one.core.may_compact()

    def test_changes_that_had_no_effect_go_with_the_log(self, cluster: Make) -> None:
        group = cluster(3)
        leader = group.elect(1)
        group.isolate(2)
        group.isolate(3)
        leader.propose_membership([AddLearner("n4")], 0)
        group.settle()
        assert leader.change_pending
        leader.step(installing(9, 3, term=9), 0.5)
        group[1].persist()
        assert not leader.change_pending
        assert leader.membership == MEMBERS

    def test_one_of_an_earlier_term_learns_the_later_one(self, replica: Make) -> None:
        one = replica(term=5)
        one.core.step(installing(9, 3, term=4), 0.5)
        (answer,) = one.take()
        assert (answer.accepted, answer.term, one.core.last_index, one.core.leader) == (False, 5, 1, 0)

    def test_one_of_a_later_term_makes_its_sender_the_leader(self, replica: Make) -> None:
        one = replica(term=5)
        one.core.campaign(0.5)
        one.core.step(installing(9, 3, sender=3), 0.5)
        assert (one.core.role, one.core.term, one.core.leader) == (Role.FOLLOWER, 9, 3)

    def test_a_vote_is_judged_by_what_the_snapshot_covers(self, replica: Make) -> None:
        one = replica(terms=(1, 1))
        one.core.step(installing(9, 3, term=3), 0.5)
        one.take()
        one.core.campaign(9.0)
        (first, _) = one.take()
        assert (first.last_index, first.last_term) == (9, 3)
