"""Random runs of a whole group: messages are lost, doubled and reordered, replicas crash with writes unsynced.

After every step what Raft promises is checked (thesis, figure 3.2): one leader per term, log matching, leader
completeness, one committed entry per index; and what its users lean on: one vote per term over crashes, commits that
never go back, acknowledged entries on disk, reads that are not outdated. Then the storm ends and the group must agree.

A failing seed runs again with `pytest tests/raft/test_storm.py -k seed17_`; one seed is one run.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any, Final

import pytest

from multiraft.messages import AppendAnswer, RaftMessage, RequestVote, VoteAnswer
from multiraft.raft import Role
from multiraft.records import COMMANDS

STEPS: Final = 6_000
SEEDS: Final = 200
GROUP: Final = 16


class Claim:
    """A beat of the leader of `term`, with the read round it confirms."""

    def __init__(self, leader: int, life: int, term: int, round_id: int, to: int) -> None:
        self.leader, self.life, self.term, self.round_id, self.to = leader, life, term, round_id, to


class Storm:
    """One run. `group` is the cluster; `wire` holds what was sent and may yet arrive."""

    def __init__(self, group: Any, seed: int, compactions: int = 0) -> None:
        self.group = group
        self.compactions = compactions
        self.chance = random.Random(seed)
        self.wire: list[RaftMessage | Claim | tuple[str, Claim, int, int]] = []
        self.now = 0.0
        self.parted: set[tuple[int, int]] = set()
        self.complete: set[int] = set()
        self.count = 0
        self.rounds = 0
        self.life = dict.fromkeys(group.replicas, 0)
        self.leader_of: dict[int, int] = {}
        self.vote_of: dict[tuple[int, int], int] = {}
        self.committed: dict[int, tuple[int, bytes]] = {}
        self.seen_stable: dict[int, int] = {}
        self.seen_commit = dict.fromkeys(group.replicas, 1)
        self.seen_term = dict.fromkeys(group.replicas, 0)
        self.reads: dict[tuple[int, int, int], int] = {}
        self.reads_answered = 0

    # ------------------------------------------------------------------------------------------------- what happens

    def actions(self) -> list[tuple[int, Callable[[Any], None]]]:
        """Return what may happen, and how often."""
        return [
            (300, self.deliver), (200, self.drive), (120, self.sync), (80, self.propose), (100, self.tick),
            (4, self.crash), (60, self.restart), (30, self.poke), (40, self.claim), (30, self.release),
            (25, self.tell), (2, self.transfer), (60, self.read), (20, self.trim), (2, self.judge),
            (5, self.part), (5, self.campaign), (self.compactions, self.compact),
        ]  # fmt: skip

    def run(self) -> None:
        actions = self.actions()
        # Each run has a weather of its own: slow disks here, hasty campaigns there.
        weights = [weight * self.chance.choice((0.2, 1.0, 1.0, 3.0)) for weight, _ in actions]
        for _, act in self.chance.choices(actions, weights, k=STEPS):
            alive = [replica for replica in self.group.replicas.values() if replica.alive]
            if alive or act == self.restart:
                act(self.chance.choice(alive) if alive else None)
                self.check()

    def deliver(self, _: Any) -> None:
        if not self.wire:
            return
        at = self.chance.randrange(min(len(self.wire), 12))
        fate = self.chance.random()
        message = self.wire[at] if fate < 0.08 else self.wire.pop(at)
        ends = (message[1].leader, message[2]) if isinstance(message, tuple) else self.ends(message)
        if fate < 0.95 and not self.parted & {ends, ends[::-1]}:
            self.receive(message)

    def ends(self, message: Any) -> tuple[int, int]:
        return (message.leader if isinstance(message, Claim) else message.sender), message.to

    def part(self, _: Any) -> None:
        """Until the next time, cut off every leader, or some pairs from each other, or nobody."""
        pairs = [(one, other) for one in self.group.replicas for other in self.group.replicas if one < other]
        leaders = self.group.leaders()
        odds = self.chance.choice((0.0, 0.0, 0.3, 1.0, 1.0, 1.0))
        if odds == 1.0:
            self.parted = {pair for pair in pairs if pair[0] in leaders or pair[1] in leaders}
            for replica in self.group.replicas.values():
                replica.core.release(self.now, self.chance.random())
        else:
            self.parted = {pair for pair in pairs if self.chance.random() < odds}

    def receive(self, message: Any) -> None:
        if isinstance(message, Claim):
            replica = self.group[message.to]
            if replica.alive:
                if replica.core.follow(message.leader, message.term, self.now):
                    self.wire.append(("heard", message, message.to, 0))
                else:
                    self.wire.append(("refused", message, message.to, replica.core.term))
        elif isinstance(message, tuple):
            word, claim, sender, higher = message
            leader = self.group[claim.leader]
            if leader.alive and self.life[claim.leader] == claim.life and leader.core.term == claim.term:
                if word == "refused":
                    leader.core.refused(claim.term, higher)
                else:
                    leader.contacts.contact[sender] = self.now
                    leader.core.acknowledge_round(sender, claim.round_id)
        else:
            replica = self.group[message.to]
            if replica.alive:
                replica.core.step(message, self.now)
                if self.chance.random() < 0.7:
                    self.drive(replica)

    def drive(self, replica: Any) -> None:
        replica.drive()
        self.send(replica)

    def sync(self, replica: Any) -> None:
        if replica.disk.waiting:
            replica.sync()
            self.send(replica)

    def send(self, replica: Any) -> None:
        for message in replica.outbox:
            self.check_promise(replica, message)
            self.wire.append(message)
        replica.outbox = []

    def propose(self, replica: Any) -> None:
        if replica.core.role is Role.LEADER and not replica.core.status()["transfer_to"]:
            self.count += 1
            size = self.chance.randrange(1, 4)
            replica.core.propose([b"%d.%d" % (self.count, part) for part in range(size)], COMMANDS, 0)

    def tick(self, replica: Any) -> None:
        self.now += self.chance.random() * 0.08
        replica.core.tick(self.now)

    def campaign(self, replica: Any) -> None:
        replica.core.campaign(self.now)

    def crash(self, replica: Any) -> None:
        replica.crash(self.chance.randrange(3))

    def restart(self, _: Any) -> None:
        for replica in self.group.replicas.values():
            if not replica.alive:
                self.life[replica.replica_id] += 1
                self.seen_commit[replica.replica_id] = 1
                replica.start(self.now)
                return

    def poke(self, replica: Any) -> None:
        replica.core.poke(self.chance.choice(list(self.group.replicas)))

    def claim(self, replica: Any) -> None:
        core = replica.core
        if core.role is Role.LEADER:
            for other in self.group.replicas:
                if other != core.replica_id:
                    life = self.life[core.replica_id]
                    self.wire.append(Claim(core.replica_id, life, core.term, self.rounds, other))

    def release(self, replica: Any) -> None:
        replica.core.release(self.now, self.chance.random())

    def tell(self, replica: Any) -> None:
        self.wire += replica.core.commit_messages()

    def transfer(self, replica: Any) -> None:
        others = [one for one in self.group.replicas if one != replica.replica_id]
        if replica.core.role is Role.LEADER and others:
            replica.core.transfer_leadership(self.chance.choice(others))

    def read(self, replica: Any) -> None:
        core = replica.core
        if core.can_read():
            self.rounds += 1
            key = (core.replica_id, self.life[core.replica_id], self.rounds)
            self.reads[key] = max(self.committed, default=1)
            core.read_index(self.rounds)
            self.claim(replica)

    def trim(self, replica: Any) -> None:
        replica.core.log.trim(self.chance.randrange(300))

    def compact(self, replica: Any) -> None:
        replica.compact(self.chance.choice((0, 0, 0, 1, 4)))
        replica.core.ask_after_snapshots(self.now)

    def judge(self, replica: Any) -> None:
        replica.core.check_quorum(self.now)

    # ------------------------------------------------------------------------------------------- what must hold always

    def check(self) -> None:
        for replica in self.group.replicas.values():
            if not replica.alive:
                continue
            core, one = replica.core, replica.replica_id
            assert core.term >= self.seen_term[one] or self.life[one], "a term went back"
            self.seen_term[one] = core.term
            assert core.commit >= self.seen_commit[one], "a commit went back"
            if core.commit > self.seen_commit[one]:
                self.check_commit(replica)
            if core.role is Role.LEADER and self.leader_of.setdefault(core.term, one) == one:
                if core.term not in self.complete:
                    self.complete.add(core.term)
                    held = {index: (term, entry) for index, term, entry in replica.log()}
                    for index, (term, entry) in self.committed.items():
                        known = index <= core.log.start.index or held.get(index) == (term, entry)
                        assert term > core.term or known, "leader completeness"
            elif core.role is Role.LEADER:
                raise AssertionError(f"two leaders in term {core.term}")
            stable = core.log.stable
            if stable != self.seen_stable.get(one):
                self.seen_stable[one] = stable
                if stable > core.log.start.index:
                    assert replica.disk.read_term(GROUP, stable) == core.log.term(stable), "stable, but not on disk"
            for round_id, index in replica.read_states:
                assert index >= self.reads[one, self.life[one], round_id], "an outdated read"
                self.reads_answered += 1
            replica.read_states = []

    def check_commit(self, replica: Any) -> None:
        log = replica.core.log
        index = max(self.seen_commit[replica.replica_id], log.start.index) + 1
        while index <= replica.core.commit:
            for record in log.records(index, replica.core.commit, 1_000):
                entries = record.entries()
                for at in range(index, min(record.last, replica.core.commit) + 1):
                    found = (record.term, entries[at - record.first])
                    assert self.committed.setdefault(at, found) == found, "two entries committed at one index"
                    index = at + 1
        self.seen_commit[replica.replica_id] = replica.core.commit

    def check_promise(self, replica: Any, message: RaftMessage) -> None:
        stored = replica.disk.hard_state
        if isinstance(message, VoteAnswer) and message.granted:
            assert (stored.term, stored.vote) == (message.asked_term, message.to) or stored.term > message.asked_term
            assert self.vote_of.setdefault((message.sender, message.asked_term), message.to) == message.to
        elif isinstance(message, RequestVote):
            assert stored.term >= message.term, "a vote is asked for before the self-vote is on disk"
            assert self.vote_of.setdefault((message.sender, message.term), message.sender) == message.sender
        elif isinstance(message, AppendAnswer) and message.accepted and stored.term == message.term:
            records = replica.disk.records
            stored_to = records[max(records)].last if records else replica.disk.start.index
            assert stored_to >= message.index, "acknowledged, but not on disk"

    def check_log_matching(self) -> None:
        logs = [{index: rest for index, *rest in replica.log()} for replica in self.group.replicas.values()]
        for one in logs:
            for other in logs:
                both = sorted(one.keys() & other.keys())
                agree = [index for index in both if one[index][0] == other[index][0]]
                for index in both:
                    assert not agree or index > agree[-1] or one[index] == other[index], "log matching"

    # -------------------------------------------------------------------------------------------------------- the end

    def calm(self) -> None:
        """Everybody is up and connected, time passes: a leader must come, and all must hold and apply its log."""
        for replica in self.group.replicas.values():
            if not replica.alive:
                self.restart(None)
        self.wire.clear()
        self.check_log_matching()
        self.group.now = self.now
        for replica in self.group.replicas.values():
            replica.core.release(self.now, 0.1)
        for _ in range(60):
            self.group.now += 0.3
            self.group.heal()
            for replica in self.group.replicas.values():
                replica.core.tick(self.group.now)
            self.group.settle()
            self.group.beat()
            self.group.tell_commits()
            self.check()
            if self.agreed():
                break
        assert self.agreed(), "the group did not come to agree"
        self.check_log_matching()

    def agreed(self) -> bool:
        cores = [replica.core for replica in self.group.replicas.values()]
        leaders = self.group.leaders()
        return len(leaders) == 1 and all(
            core.term == cores[0].term and core.commit == core.applied == core.last_index == cores[0].last_index
            for core in cores
        )


@pytest.mark.parametrize("seed", range(SEEDS), ids=lambda seed: f"seed{seed}_")
def test_a_group_keeps_its_promises_in_a_storm(cluster: Callable[..., Any], seed: int) -> None:
    """Thesis, figure 3.2; requirements 1, 3, 4."""
    voters = (3, 5, 3, 2, 3, 4, 1)[seed % 7]
    group = cluster(voters, seed=seed, inflight_messages=1 + seed % 4, append_bytes=60 + 40 * (seed % 5))
    storm = Storm(group, seed, compactions=(0, 5, 200)[seed % 3])
    storm.run()
    storm.calm()
    applied = [replica.applied for replica in group.replicas.values()]
    assert all(each == applied[0] for each in applied)
    assert [index for index, _, _ in applied[0]] == list(range(2, group.core(1).commit + 1))
    for index, term, entry in applied[0]:
        assert storm.committed.get(index, (term, entry)) == (term, entry), "a snapshot held what was not committed"


def test_storms_are_not_empty(cluster: Callable[..., Any]) -> None:
    """The checks above mean something only if the runs elect, commit, read, disagree, and fall behind."""
    terms = commits = reads = installs = 0
    for seed in range(0, 40, 2):
        storm = Storm(cluster(3, seed=seed), seed, compactions=200)
        storm.run()
        installs += sum(replica.installs for replica in storm.group.replicas.values())
        terms += len(storm.leader_of)
        commits += len(storm.committed)
        reads += storm.reads_answered
    assert installs > 20
    assert terms > 40
    assert commits > 200
    assert reads > 20
