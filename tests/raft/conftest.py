"""A small world for the consensus core: replicas whose disk syncs, and whose messages arrive, when a test says so.

    replica(...)   one replica on a disk of its own, with any log to begin with
    cluster(...)   several of them, and the wire between

A write is handed out (`drive`), then synced (`persist`); only then do its promises leave. A crash keeps what was
synced and any number of the writes after it, in order. Nothing here knows real time, threads or chance of its own.
"""

from __future__ import annotations

import math
import random
from ast import literal_eval
from bisect import bisect_right
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from multiraft.errors import CorruptRecord
from multiraft.messages import Append, RaftMessage
from multiraft.raft import CoreSettings, Raft, Ready, Role
from multiraft.records import COMMANDS, MEMBERSHIP, Record, cut_record, encode_record
from multiraft.types import (
    INDEX_MAX,
    HardState,
    LogStart,
    Membership,
    ReplicaDescriptor,
    Snapshot,
    StoredReplica,
    founding_membership,
    unborn_membership,
)

GROUP = 16
ET = 1.0


class Disk:
    """One replica's stored log and hard state, as the store port promises them; what is submitted waits for sync."""

    def __init__(self, start: LogStart, hard_state: HardState) -> None:
        self.start = start
        self.hard_state = hard_state
        self.records: dict[int, Record] = {}
        self.snapshot: Snapshot | None = None
        self.membership: Membership | None = None
        self.waiting: list[Ready] = []
        self.reads = 0

    def sync(self) -> None:
        ready = self.waiting.pop(0)
        for first in ready.deleted:
            self.records.pop(first, None)
        if ready.snapshot is not None:
            self.snapshot, self.start = ready.snapshot.snapshot, ready.snapshot.log_start
            assert 0 < self.start.index <= self.snapshot.index
        for record in ready.records:
            self.records[record.first] = record
        if ready.hard_state is not None:
            assert ready.hard_state.term >= self.hard_state.term, "a stored term went back"
            assert ready.hard_state.commit >= self.hard_state.commit, "a stored commit went back"
            self.hard_state = ready.hard_state
        if ready.membership is not None:
            self.membership = ready.membership
        commit = self.hard_state.commit
        assert self.start.index <= commit, "a log starts at an entry that is not committed"
        assert self.membership is None or self.membership.index <= commit, "a membership is stored before its commit"
        assert self.snapshot is None or self.snapshot.index <= commit, "a snapshot is stored before its commit"

    def crash(self, kept: int) -> None:
        for _ in range(min(kept, len(self.waiting))):
            self.sync()
        self.waiting.clear()

    def last(self) -> tuple[int, int]:
        """Return the end of the log as a reader sees it. Refuses gaps."""
        after, before_term = self.start.index, self.start.term
        firsts = sorted(self.records)
        for at in range(len(firsts)):
            record = self._clipped(firsts, at)
            if record.last <= after:
                continue  # left over below the start
            straddles = after == self.start.index and record.first <= after and record.term == before_term
            if not straddles and (record.first != after + 1 or record.prev_term != before_term):
                raise CorruptRecord(f"record at {record.first} does not follow ({after}, term {before_term})")
            after, before_term = record.last, record.term
        return after, before_term

    def _clipped(self, firsts: list[int], at: int) -> Record:
        """Return the record under the key `firsts[at]`, cut where the next key begins."""
        record = self.records[firsts[at]]
        last = min(record.last, firsts[at + 1] - 1) if at + 1 < len(firsts) else record.last
        return cut_record(GROUP, record, record.first, last)

    def read_records(self, group_id: int, first: int, last: int, limit_bytes: int) -> list[Record]:
        assert group_id == GROUP
        self.reads += 1
        firsts = sorted(self.records)
        at = bisect_right(firsts, first) - 1
        found: list[Record] = []
        size = 0
        while 0 <= at < len(firsts) and firsts[at] <= last:
            record = self._clipped(firsts, at)
            size += len(record.raw)
            if found and size > limit_bytes:
                break
            found.append(record)
            at += 1
        if not found or found[0].last < first:
            raise CorruptRecord(f"no record holds {first}")
        return found

    def read_term(self, group_id: int, index: int) -> int:
        return self.read_records(group_id, index, index, 0)[0].term

    def read_firsts(self, group_id: int, first: int, last: int = INDEX_MAX) -> list[int]:
        assert group_id == GROUP
        self.reads += 1
        return [key for key in sorted(self.records) if first <= key <= last]

    def read_snapshot(self, group_id: int) -> Snapshot | None:
        assert group_id == GROUP
        return self.snapshot

    def changes(self, above: int) -> tuple[int, ...]:
        """Return the indexes of the stored membership entries above `above`."""
        firsts = sorted(self.records)
        clipped = [self._clipped(firsts, at) for at in range(len(firsts))]
        found = [index for r in clipped if r.kind == MEMBERSHIP for index in range(r.first, r.last + 1)]
        return tuple(index for index in found if index > above)


class Contacts:
    """What a test says of the other nodes' being alive."""

    def __init__(self) -> None:
        self.is_loyal: bool | Callable[[int], bool] = False
        self.contact: dict[int, float] = {}

    def loyal(self, group_id: int, term: int, now: float) -> bool:
        return self.is_loyal if isinstance(self.is_loyal, bool) else self.is_loyal(term)

    def contact_s(self, group_id: int, term: int, replica_id: int, node_id: str) -> float:
        assert node_id == f"n{replica_id}"
        return self.contact.get(replica_id, -math.inf)


class Replica:
    """One replica: its core, its disk, what it may send now (`outbox`), and what it has applied."""

    def __init__(self, replica_id: int, membership: Membership, disk: Disk, settings: CoreSettings, seed: int) -> None:
        self.replica_id = replica_id
        self.disk = disk
        if disk.membership is None:
            disk.membership = membership
        self.settings = settings
        self.dice = random.Random(seed * 1_000 + replica_id)
        self.contacts = Contacts()
        self.installs = 0
        self.alive = False
        self.start(0.0)

    @property
    def membership(self) -> Membership:
        return self.core.membership

    def start(self, now: float) -> None:
        """Begin, or begin again, from the disk; the state machine is in memory, so it starts from the log's start."""
        last_index, last_term = self.disk.last()
        assert self.disk.membership is not None
        in_effect, snapshot = self.disk.membership, self.disk.snapshot
        applied = snapshot.index if snapshot is not None else self.disk.start.index
        stored = StoredReplica(
            ReplicaDescriptor(GROUP, self.replica_id, "test"),
            in_effect,
            self.disk.hard_state,
            self.disk.start,
            last_index,
            last_term,
            self.disk.changes(in_effect.index),
            applied,
        )
        self.core = Raft(stored, self.disk, self.contacts, self.dice, self.settings, now, applied)
        self.outbox: list[RaftMessage] = []
        self.promises: list[list[RaftMessage]] = []
        self.applied: list[tuple[int, int, bytes]] = restored(snapshot.data) if snapshot is not None else []
        self.read_states: list[tuple[int, int]] = []
        self.readies: list[Ready] = []
        self.alive = True

    def crash(self, kept: int = 0) -> None:
        """Lose memory and every write that was not synced, but for the first `kept` of them."""
        self.disk.crash(kept)
        self.alive = False

    def drive(self) -> list[Ready]:
        """Do what the core asks for, up to handing its writes to the disk; return what it asked for."""
        asked: list[Ready] = []
        while (ready := self.core.ready()) is not None:
            asked.append(ready)
            self.outbox += ready.messages
            if ready.writes:
                self.disk.waiting.append(ready)
                self.promises.append(list(ready.after_persist))
            elif self.promises:
                self.promises[-1] += ready.after_persist
            else:
                self.outbox += ready.after_persist
            self.read_states += ready.read_states
            self._apply(ready.committed)
        self.readies += asked
        return asked

    def _apply(self, committed: int) -> None:
        log = self.core.log
        while self.core.applied < committed:
            for record in log.records(self.core.applied + 1, committed, 200):
                entries = record.entries()
                for index in range(self.core.applied + 1, min(record.last, committed) + 1):
                    self.applied.append((index, record.term, entries[index - record.first]))
                self.core.applied_to(min(record.last, committed))

    def sync(self) -> None:
        """The oldest write reaches the disk: tell the core, let its promises leave."""
        ready = self.disk.waiting[0]
        self.disk.sync()
        self.core.persisted(*ready.last, ready.hard_state.term if ready.hard_state is not None else 0)
        if ready.snapshot is not None:
            snapshot = ready.snapshot.snapshot
            if ready.snapshot.installs and self.core.log.start.index == snapshot.index:
                self.applied = restored(snapshot.data)
                self.installs += 1
            self.core.snapshot_stored(snapshot.index)
        self.outbox += self.promises.pop(0)

    def compact(self, trailing: int) -> bool:
        """Take a snapshot of what is applied, unless that cannot be now; return whether it was taken."""
        taken = self.core.may_compact() and self.core.applied > self.core.snapshot_index
        if taken:
            self.core.compact(repr(self.applied).encode(), trailing)
        return taken

    def persist(self) -> None:
        """Drive and sync until there is nothing left to do."""
        self.drive()
        while self.disk.waiting:
            self.sync()
            self.drive()

    def take(self) -> list[RaftMessage]:
        """Persist everything and return what leaves then."""
        self.persist()
        sent, self.outbox = self.outbox, []
        return sent

    def log(self) -> list[tuple[int, int, bytes]]:
        """The whole log in memory and below, as (index, term, entry)."""
        log, found = self.core.log, []
        at = log.start.index + 1
        while at <= log.last_index:
            for record in log.records(at, log.last_index, 500):
                entries = record.entries()
                for index in range(at, record.last + 1):
                    found.append((index, record.term, entries[index - record.first]))
                at = record.last + 1
        return found

    def terms(self) -> list[int]:
        return [term for _, term, _ in self.log()]


class Cluster:
    """Replicas of one group and the wire between them. `cut` holds the directions, (from, to), that carry nothing."""

    def __init__(self, replicas: Sequence[Replica]) -> None:
        self.replicas = {replica.replica_id: replica for replica in replicas}
        self.cut: set[tuple[int, int]] = set()
        self.now = 0.0
        self.trace: list[RaftMessage] = []

    def __getitem__(self, replica_id: int) -> Replica:
        return self.replicas[replica_id]

    def core(self, replica_id: int) -> Raft:
        return self.replicas[replica_id].core

    def isolate(self, *replica_ids: int) -> None:
        """Cut the named ones from all others; among themselves they stay connected."""
        for one in replica_ids:
            for other in self.replicas:
                if other not in replica_ids:
                    self.cut |= {(one, other), (other, one)}

    def heal(self) -> None:
        """Connect all, and let each leader hear that it must ask again."""
        self.cut.clear()
        for replica in self.replicas.values():
            for other in self.replicas:
                replica.core.poke(other)

    def settle(self) -> None:
        """Sync and deliver everything until nobody has anything left to say."""
        moved = True
        while moved:
            moved = False
            for replica in self.replicas.values():
                if not replica.alive:
                    continue
                for message in replica.take():
                    moved = True
                    self.trace.append(message)
                    other = self.replicas.get(message.to)
                    if other is not None and other.alive and (replica.replica_id, message.to) not in self.cut:
                        other.core.step(message, self.now)

    def campaign(self, replica_id: int) -> None:
        self.core(replica_id).campaign(self.now)
        self.settle()

    def elect(self, replica_id: int) -> Raft:
        """Make one the leader, and have its no-op committed and told everywhere."""
        self.campaign(replica_id)
        leader = self.core(replica_id)
        assert leader.role is Role.LEADER
        self.tell_commits()
        return leader

    def propose(self, replica_id: int, *commands: bytes) -> int:
        """Propose one record; settle; tell the commit."""
        first = self.core(replica_id).propose(list(commands), COMMANDS, 0)
        self.settle()
        self.tell_commits()
        return first

    def tell_commits(self) -> None:
        for replica in self.replicas.values():
            replica.outbox += replica.core.commit_messages()
        self.settle()

    def beat(self) -> None:
        """One round of claims, acknowledged or refused, as the lead set does it."""
        for replica in self.replicas.values():
            core = replica.core
            for other in self.replicas.values():
                if core.role is not Role.LEADER or other is replica or not (replica.alive and other.alive):
                    continue
                if (replica.replica_id, other.replica_id) in self.cut:
                    continue
                heard = other.core.follow(replica.replica_id, core.term, self.now)
                if (other.replica_id, replica.replica_id) in self.cut:
                    continue
                if heard:
                    replica.contacts.contact[other.replica_id] = self.now
                else:
                    core.refused(core.term, other.core.term)
        self.settle()

    def leaders(self) -> list[int]:
        return [one for one, replica in self.replicas.items() if replica.alive and replica.core.role is Role.LEADER]


def restored(data: bytes) -> list[tuple[int, int, bytes]]:
    """Return what a replica has applied whose snapshot this is; the founding's has no data."""
    found: list[tuple[int, int, bytes]] = literal_eval(data.decode()) if data else []
    return found


def make_records(prev_index: int, prev_term: int, terms: Sequence[int], run: int, tag: bytes = b"") -> list[Record]:
    """Entries of these terms after (prev_index, prev_term), in records of at most `run` entries each."""
    records: list[Record] = []
    index, before, at = prev_index, prev_term, 0
    while at < len(terms):
        count = 1
        while at + count < len(terms) and terms[at + count] == terms[at] and count < run:
            count += 1
        entries = [b"%d@%d" % (index + step, terms[at]) + tag for step in range(1, count + 1)]
        records.append(encode_record(GROUP, index + 1, terms[at], before, COMMANDS, 0, entries))
        index, before = records[-1].last, terms[at]
        at += count
    return records


def make_disk(terms: Sequence[int], term: int, vote: int, commit: int, run: int, empty: bool) -> Disk:
    """A disk whose log has entries of these terms from index 2 on."""
    start = LogStart(0, 0) if empty else LogStart(1, 1)
    disk = Disk(start, HardState(term, vote, commit))
    if not empty:
        disk.snapshot = Snapshot(1, 1, founding_membership(("n1",)))
    disk.records = {record.first: record for record in make_records(start.index, start.term, terms, run)}
    return disk


def make_append(
    prev_index: int,
    prev_term: int,
    terms: Sequence[int] = (),
    commit: int = 0,
    term: int = 0,
    sender: int = 2,
    to: int = 1,
    run: int = 1_000,
) -> Append:
    """An append of entries of these terms, from the leader `sender` of `term` (0: of the last entry's term)."""
    records = tuple(make_records(prev_index, prev_term, terms, run))
    return Append(commit, GROUP, prev_index, prev_term, records, sender, term or (terms or [prev_term])[-1], to)


def make_replica(
    replica_id: int = 1,
    voters: int = 3,
    terms: Sequence[int] = (),
    term: int = 1,
    vote: int = 0,
    commit: int = 1,
    run: int = 1_000,
    membership: Membership | None = None,
    empty: bool = False,
    inflight_messages: int = 256,
    inflight_bytes: int = 1 << 20,
    append_bytes: int = 1 << 20,
    uncommitted_bytes: int = 1 << 20,
    seed: int = 0,
) -> Replica:
    members = membership or founding_membership(tuple(f"n{one}" for one in range(1, voters + 1)))
    disk = make_disk(terms, max(term, *terms, 1), vote, 0 if empty else commit, run, empty)
    if empty:
        members = unborn_membership()
    else:
        disk.snapshot = Snapshot(1, 1, members)
    settings = CoreSettings(ET, inflight_messages, inflight_bytes, append_bytes, uncommitted_bytes)
    return Replica(replica_id, members, disk, settings, seed)


def make_cluster(
    voters: int = 3, logs: Sequence[Sequence[int]] = (), terms: Sequence[int] = (), **others: Any
) -> Cluster:
    """`voters` replicas; the n-th begins with the n-th log and is at the n-th term."""
    replicas = []
    for number in range(voters):
        log = logs[number] if number < len(logs) else ()
        term = terms[number] if number < len(terms) else 1
        replicas.append(make_replica(number + 1, voters, log, term, **others))
    return Cluster(replicas)


@pytest.fixture(scope="session")
def replica() -> Callable[..., Replica]:
    """Make one replica; see `make_replica`."""
    return make_replica


@pytest.fixture(scope="session")
def cluster() -> Callable[..., Cluster]:
    """Make several that can talk; see `make_cluster`."""
    return make_cluster


@pytest.fixture(scope="session")
def append() -> Callable[..., Append]:
    """Make an append; see `make_append`."""
    return make_append


@pytest.fixture(scope="session")
def records() -> Callable[..., list[Record]]:
    """Make records; see `make_records`."""
    return make_records


@pytest.fixture(scope="session")
def disk() -> Callable[..., Disk]:
    """Make a disk; see `make_disk`."""
    return make_disk
