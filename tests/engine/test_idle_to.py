"""What a start need not apply: no-ops that were stored, and only as long as they stand where they were stored."""

from __future__ import annotations

from math import inf
from random import Random

import pytest

from multiraft import BytesStateMachine
from multiraft.adapting import adapt
from multiraft.engine.executing import Executor
from multiraft.engine.replica import Replica
from multiraft.engine.waiting import Budget
from multiraft.errors import CorruptRecord
from multiraft.messages import Append
from multiraft.raft import CoreSettings, Raft
from multiraft.records import COMMANDS, NOOP, Record, decode_record, encode_record
from multiraft.types import (
    GroupId,
    HardState,
    Index,
    LogStart,
    ReplicaDescriptor,
    Snapshot,
    StoredReplica,
    Term,
    founding_membership,
)

GROUP = 16


class Kept(BytesStateMachine):
    def __init__(self) -> None:
        self.kept: list[bytes] = []

    def apply(self, command: bytes) -> bytes:
        self.kept.append(command)
        return b""

    def query(self, query: bytes) -> bytes:
        return b""


class Nobody:
    """Contacts of a core that is loyal to nobody."""

    def loyal(self, group_id: GroupId, term: Term, now: float) -> bool:
        return False

    def contact_s(self, group_id: GroupId, term: Term, replica_id: int, node_id: str) -> float:
        return -inf


class Stored:
    """A store of no-ops 2 and 3, of terms 2 and 3, that says how often they were read."""

    def __init__(self) -> None:
        self.reads = 0

    def read_records(self, group_id: GroupId, first: Index, last: Index, limit_bytes: int) -> list[Record]:
        self.reads += 1
        return [noop(index, index, index - 1) for index in range(first, last + 1)]

    def read_term(self, group_id: GroupId, index: Index) -> Term:
        if index not in (2, 3):
            raise CorruptRecord("no such entry")
        return index

    def read_firsts(self, group_id: GroupId, first: Index, last: Index = 1 << 60) -> list[Index]:
        return [index for index in (2, 3) if first <= index <= last]

    def read_snapshot(self, group_id: GroupId) -> Snapshot | None:
        return None


def noop(index: Index, term: Term, prev_term: Term) -> Record:
    return decode_record(GROUP, encode_record(GROUP, index, term, prev_term, NOOP, 0, [b""]).raw)


def command(index: Index, term: Term, prev_term: Term, text: bytes) -> Record:
    return decode_record(GROUP, encode_record(GROUP, index, term, prev_term, COMMANDS, 5, [text]).raw)


class Started:
    """The replica, just started: founding at 1, no-ops at 2 and 3, of which nothing is known to be committed."""

    def __init__(self) -> None:
        membership = founding_membership(("a", "b", "c"))
        descriptor = ReplicaDescriptor(GROUP, 2, "kept")
        stored = StoredReplica(
            descriptor, membership, HardState(3, 0, 1), LogStart(1, 1), 3, 3, snapshot_index=1, idle_to=3
        )
        settings = CoreSettings(1.0, 256, 1 << 23, 1 << 20, 1 << 26)
        self.store = Stored()
        self.core = Raft(stored, self.store, Nobody(), Random(1), settings, 0.0, 1)
        self.machine = Kept()

        def make(descriptor: ReplicaDescriptor) -> Executor:
            return Executor(GROUP, adapt(self.machine))

        self.replica = Replica(descriptor, self.core, None, make, Budget(1 << 20), 1.0, lambda: 0.0, lambda: 0.0)
        self.replica.idle_to = stored.idle_to

    def append(self, prev: Index, prev_term: Term, records: list[Record], term: Term, commit: Index) -> None:
        """A leader's append, stored and applied."""
        self.core.step(Append(commit, GROUP, prev, prev_term, tuple(records), 1, term, 2), 0.0)
        while (ready := self.core.ready()) is not None:
            if ready.writes:
                self.core.persisted(*ready.last, ready.hard_state.term if ready.hard_state is not None else 0)
            self.replica.committed = max(self.replica.committed, ready.committed)
        assert not self.replica.apply_slice(inf)


def test_no_ops_are_passed_over_unread() -> None:
    started = Started()
    started.append(3, 3, [], 3, 3)
    assert (started.replica.applied, started.core.applied) == (3, 3)
    assert not started.replica.made
    assert started.store.reads == 0


def test_only_what_is_committed_is_passed_over() -> None:
    started = Started()
    started.append(2, 2, [], 3, 2)
    assert started.replica.applied == 2


def test_what_follows_is_applied() -> None:
    started = Started()
    started.append(3, 3, [command(4, 3, 3, b"x")], 3, 4)
    assert started.replica.applied == 4
    assert started.machine.kept == [b"x"]


@pytest.mark.parametrize("more", [0, 2])
def test_a_command_that_took_a_no_ops_place_is_applied(more: int) -> None:
    started = Started()
    records = [command(3, 4, 2, b"instead"), *(noop(4 + place, 4, 4) for place in range(more))]
    started.append(2, 2, records, 4, 3 + more)
    assert started.replica.applied == 3 + more
    assert started.machine.kept == [b"instead"]
