"""The short ways of the ordinary case do what the general way does, to the last field, or nothing.

Two groups live through the same random events. One takes the general way always; the other takes the short ways where
its cores let it, as the engine does. After each event every field of every core, every message and every disk is equal.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final

import pytest

from multiraft.compiled import field_names
from multiraft.errors import Overloaded
from multiraft.messages import Append, AppendAnswer, RaftMessage
from multiraft.raft import ASK_READY, NOT_ORDINARY, UNTOLD, AddLearner, Demote, Promote, Raft, Ready, Role
from multiraft.raft.log import Log
from multiraft.raft.progress import Progress
from multiraft.records import COMMANDS, MEMBERSHIP, Record, encode_record
from multiraft.types import HardState

GROUP: Final = 16
STEPS: Final = 300
WIRE: Final = 30
OUTSIDE: Final = frozenset(("_reader", "_contacts", "_dice", "_settings"))


def fields(value: Any) -> Any:
    """Return everything that `value` holds, in a form that compares by value."""
    if isinstance(value, Record):
        return value.raw
    if isinstance(value, bool | int | float | str | bytes):
        return value
    if isinstance(value, Raft | Log | Progress | RaftMessage):
        slots = field_names(type(value))
        return [type(value), *[(name, fields(getattr(value, name))) for name in slots if name not in OUTSIDE]]
    if isinstance(value, dict):
        return [(key, fields(item)) for key, item in value.items()]
    if isinstance(value, list | tuple | deque):
        return [fields(item) for item in value]
    return value


class General:
    """A group of which every replica takes the general way."""

    def __init__(self, cluster: Any) -> None:
        self.cluster = cluster
        self.wire: list[RaftMessage] = []
        self.now = 0.0
        self.short = 0

    def propose(self, replica: Any, commands: list[bytes]) -> None:
        if replica.core.role is Role.LEADER and replica.core.heir == 0:
            with suppress(Overloaded):
                replica.core.propose(commands, COMMANDS, 7)
        self.drive(replica)

    def deliver(self, message: RaftMessage) -> None:
        replica = self.cluster[message.to]
        replica.core.step(message, self.now)
        self.drive(replica)

    def sync(self, replica: Any) -> None:
        if replica.disk.waiting:
            replica.sync()
            self.drive(replica)

    def drive(self, replica: Any) -> None:
        replica.drive()
        self.wire += replica.outbox
        replica.outbox = []

    def seen(self) -> Any:
        """Return all that there is of this group."""
        return [
            (
                fields(replica.core), replica.applied, sorted(replica.disk.records), replica.disk.hard_state,
                replica.disk.membership, [fields(batch) for batch in replica.promises], len(replica.disk.waiting),
            )
            for replica in self.cluster.replicas.values()
        ], fields(self.wire)  # fmt: skip


class Short(General):
    """A group of which every replica takes the short ways, where it may."""

    def propose(self, replica: Any, commands: list[bytes]) -> None:
        core = replica.core
        record = core.append_own(commands, COMMANDS, 7)
        if record is None:
            super().propose(replica, commands)
            return
        self.short += 1
        before, commit = record.first - 1, core.commit
        for peer in core.followers:
            self.wire.append(
                Append(
                    commit, GROUP, before, record.prev_term, (record,), core.replica_id, core.term, peer.replica_id
                )
            )  # fmt: skip
        self._write(replica, record, [])

    def deliver(self, message: RaftMessage) -> None:
        replica = self.cluster[message.to]
        core = replica.core
        if isinstance(message, Append) and len(message.records) == 1:
            record, sender, term = message.records[0], message.sender, message.term
            if core.append_in_order(record, message.prev_index, message.commit, sender, term, self.now):
                self.short += 1
                ack = AppendAnswer(True, GROUP, 0, 0, record.last, core.replica_id, term, sender)
                self._write(replica, record, [ack])
                self._commits(replica)
                return
        elif (
            isinstance(message, AppendAnswer)
            and message.accepted
            and (came := core.acknowledged(message.sender, message.term, message.index, self.now)) != NOT_ORDINARY
        ):
            assert core.commit_untold or came != UNTOLD
            self.short += 1
            self._commits(replica)
            return
        super().deliver(message)

    def sync(self, replica: Any) -> None:
        if replica.disk.waiting and replica.disk.waiting[0].term == -1:
            ready = replica.disk.waiting[0]
            replica.disk.sync()
            replica.core.persisted(*ready.last, 0)
            self.wire += replica.promises.pop(0)
            self._commits(replica)
        else:
            super().sync(replica)

    def _write(self, replica: Any, record: Record, promises: list[RaftMessage]) -> None:
        core = replica.core
        state = HardState(core.term, core.vote, core.commit)
        last = (record.last, record.term)
        replica.disk.waiting.append(
            Ready([record], [], state, None, last, [], [], 0, [], False, Role.FOLLOWER, 0, -1)  # the term marks it
        )
        replica.promises.append(promises)

    def _commits(self, replica: Any) -> None:
        committed = replica.core.newly_committed()
        if committed > 0:
            replica._apply(committed)
        elif committed == ASK_READY:
            self.drive(replica)


def happens(both: tuple[General, General], chance: random.Random, number: int) -> None:
    """Let one event happen to both groups."""
    general, _ = both
    one = chance.choice(list(general.cluster.replicas))
    kind = chance.random()
    for group in both:
        group.now = number / 100.0
    if kind < 0.25:
        commands = [b"%d.%d" % (number, step) for step in range(chance.randint(1, 4))]
        leading = [name for name, replica in general.cluster.replicas.items() if replica.core.role is Role.LEADER]
        proposer = leading[-1] if leading else one
        for group in both:
            group.propose(group.cluster[proposer], commands)
    elif kind < 0.60 and general.wire:
        at = 0 if chance.random() < 0.9 else chance.randrange(len(general.wire))
        lost, twice = chance.random() < 0.03, chance.random() < 0.03
        for group in both:
            message = group.wire[at] if twice else group.wire.pop(at)
            if not lost and message.to in group.cluster.replicas:
                group.deliver(message)
            del group.wire[WIRE:]  # lost as well
    elif kind < 0.97:
        for group in both:
            group.sync(group.cluster[one])
    else:
        upheaval = chance.randrange(6)
        other = chance.choice(list(general.cluster.replicas))
        for group in both:
            turmoil(group, upheaval, one, other)


def turmoil(group: General, upheaval: int, one: int, other: int) -> None:
    """What is out of the ordinary."""
    core: Raft = group.cluster.core(one)
    if upheaval == 0:
        core.campaign(group.now)
    elif upheaval == 1:
        for leader in group.cluster.replicas.values():
            if leader.core.role is Role.LEADER and leader.replica_id != one:
                core.follow(leader.replica_id, leader.core.term, group.now)
    elif upheaval == 2:
        core.poke(other)
    elif upheaval == 3 and core.role is Role.LEADER and one != other:
        if core.membership.is_voter(other) and len(core.membership.voters) == 3:
            change(core, Demote(other))
        elif not core.membership.is_voter(other):
            change(core, Promote(other))
    elif upheaval == 4 and core.role is Role.LEADER:
        change(core, AddLearner("n9", False))
    elif upheaval == 5:
        group.wire += core.commit_messages() if core.role is Role.LEADER else []
    group.drive(group.cluster[one])


def change(core: Raft, wanted: Any) -> None:
    """Propose it, if it can be now: what it is refused for is not what is tested here."""
    if core.can_read() and not core.change_pending and core.heir == 0:
        known = wanted.node_id in core.membership.nodes.values() if isinstance(wanted, AddLearner) else False
        promotable = not isinstance(wanted, Promote) or core.caught_up(wanted.replica_id)
        if not known and promotable and core._in_office():
            core.propose_membership([wanted], 0)


@pytest.mark.parametrize("seed", range(20))
def test_both_ways_lead_to_the_same(cluster: Callable[..., Any], seed: int) -> None:
    chance = random.Random(seed)
    bounds = {"inflight_messages": chance.choice((2, 256)), "uncommitted_bytes": chance.choice((600, 1 << 20))}
    general, short = General(cluster(**bounds)), Short(cluster(**bounds))
    for group in (general, short):
        group.cluster.elect(1)
        for one in (2, 3):
            group.cluster.core(one).follow(1, 1, 0.0)
            group.cluster[1].contacts.contact[one] = 1e9
    for number in range(STEPS):
        try:
            happens((general, short), chance, number)
        except Exception as problem:
            problem.add_note(f"seed {seed}, event {number}")
            raise
        assert short.seen() == general.seen(), f"event {number}"
    assert short.short > 0


def test_a_short_way_takes_no_more_for_committed_than_its_own_append(replica: Callable[..., Any]) -> None:
    """L26: what the leader has committed beyond the append is not known to agree with this log."""
    follower = replica(terms=[1]).core
    assert follower.follow(2, 1, 0.0)
    follower.ready()
    record = encode_record(GROUP, 3, 1, 1, COMMANDS, 0, [b"x"])
    assert follower.append_in_order(record, 2, 9, 2, 1, 0.0)
    assert (follower.last_index, follower.commit) == (3, 3)


@pytest.mark.parametrize("kind", [COMMANDS, MEMBERSHIP])
def test_a_change_of_the_membership_never_takes_a_short_way(replica: Callable[..., Any], kind: int) -> None:
    follower = replica(terms=[1]).core
    assert follower.follow(2, 1, 0.0)
    follower.ready()
    record = encode_record(GROUP, 3, 1, 1, kind, 0, [b"x"])
    assert follower.append_in_order(record, 2, 2, 2, 1, 0.0) == (kind == COMMANDS)


@pytest.fixture
def leader(cluster: Callable[..., Any]) -> Raft:
    """A leader of three whose followers have everything, and which has nothing to say."""
    made = cluster()
    made.elect(1)
    made.propose(1, b"x")
    core: Raft = made.core(1)
    assert core.ready() is None
    return core


def test_an_acknowledgement_counts_in_its_own_term_and_from_a_member_alone(leader: Raft) -> None:
    assert leader.append_own([b"y"], COMMANDS, 0) is not None
    before = fields(leader)
    last, now = leader.last_index, leader.term
    for sender, term, index in (
        (2, now - 1, last),
        (2, now + 1, last),
        (9, now, last),
        (1, now, last),
        (2, now, last + 1),
    ):
        assert leader.acknowledged(sender, term, index, 0.0) == NOT_ORDINARY
        assert fields(leader) == before
    assert leader.acknowledged(2, now, last, 0.0) != NOT_ORDINARY


def test_whoever_lags_or_is_about_to_lead_keeps_a_leader_from_the_short_way(leader: Raft) -> None:
    peer = leader.progress[2]
    peer.next -= 1
    assert leader.append_own([b"y"], COMMANDS, 0) is None
    peer.next += 1
    leader.transfer_leadership(2)
    leader.ready()
    assert leader.append_own([b"y"], COMMANDS, 0) is None


def test_only_what_the_leader_of_the_term_has_sent_takes_the_short_way(replica: Callable[..., Any]) -> None:
    follower = replica(terms=[1]).core
    assert follower.follow(2, 1, 0.0)
    follower.ready()
    record = encode_record(GROUP, 3, 1, 1, COMMANDS, 0, [b"x"])
    other = encode_record(GROUP, 3, 1, 0, COMMANDS, 0, [b"x"])
    before = fields(follower)
    for what, prev, sender, term in ((record, 2, 3, 1), (record, 2, 2, 2), (record, 1, 2, 1), (other, 2, 2, 1)):
        assert not follower.append_in_order(what, prev, 2, sender, term, 0.0)
        assert fields(follower) == before
    assert follower.append_in_order(record, 2, 2, 2, 1, 0.0)
