"""The session table: what is applied, what is answered, what is kept, and that all ways to it lead to the same."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from random import Random
from typing import Any

import msgpack
import pytest

from multiraft.engine.executing import Executor
from multiraft.engine.machine import Context
from multiraft.engine.sessions import REPLY_OVERHEAD_BYTES, SessionLoader, SessionTable
from multiraft.engine.states import StateLoader, state_chunks
from multiraft.errors import (
    CommandFailed,
    CorruptRecord,
    InvalidRequest,
    Overloaded,
    ReplyForgotten,
    SessionExpired,
    WrongShard,
)
from multiraft.keyspace import Keyspace
from multiraft.records import CONTROL, SESSION
from multiraft.sessions import HEAD, WINDOW, encode_register

ANN, BOB, CID = (bytes([number]) * 16 for number in (1, 2, 3))
EXPIRY_MS, REPLY_BYTES, SESSIONS = 10_000, 1_000, 3


class Counting:
    """A machine that counts; `fail` raises, `wrong` is refused."""

    data: Keyspace | None = None

    def __init__(self) -> None:
        self.applied: list[bytes] = []

    def apply(self, command: bytes, context: Context) -> bytes:
        if command == b"disk":
            raise OSError("no disk")
        self.applied.append(command)
        if command == b"fail":
            raise ValueError("no \udc80 such luck")
        if command.startswith(b"large"):
            return b"x" * int(command[5:])
        return b"%d" % len(self.applied)

    def query(self, query: bytes) -> bytes:
        return b""

    def refuses(self, command: bytes) -> str | None:
        return None

    def describe(self, command: bytes) -> str:
        return ""

    def snapshot(self) -> bytes:
        return b" ".join(self.applied)

    def restore(self, state: bytes) -> None:
        self.applied = state.split()


class Group:
    """One replica's executor, fed as its log would."""

    def __init__(self, *, tracked: bool = False) -> None:
        self.machine: Any = Counting()
        self.executor = Executor(16, self.machine)
        self.executor.sessions = SessionTable(tracked=tracked)
        self.context = Context(1, 1, 16, 1_000)

    def register(self, client: bytes, reply_bytes: int = REPLY_BYTES, sessions: int = SESSIONS) -> Any:
        return self._run(CONTROL, encode_register(client, EXPIRY_MS, reply_bytes, sessions))

    def ask(self, client: bytes, sequence: int, command: bytes = b"go", lowest: int = 1) -> Any:
        return self._run(SESSION, HEAD.pack(client, sequence, lowest) + command)

    def _run(self, kind: int, entry: bytes) -> Any:
        self.context.index += 1
        return self.executor.runs[kind](entry, self.context)

    def wait(self, wait_ms: int) -> None:
        self.context.time_ms += wait_ms

    @property
    def table(self) -> SessionTable:
        return self.executor.sessions


@pytest.fixture
def group() -> Group:
    made = Group()
    assert made.register(ANN) == b""
    return made


def whole(table: SessionTable) -> list[tuple[bytes, bytes]]:
    return list(table.pairs())


class TestOnce:
    def test_a_command_under_a_number_seen_before_gets_its_reply_and_is_not_applied(self, group: Group) -> None:
        assert [group.ask(ANN, 1), group.ask(ANN, 2), group.ask(ANN, 1), group.ask(ANN, 2)] == [b"1", b"2", b"1", b"2"]
        assert len(group.machine.applied) == 2

    def test_what_a_command_raised_is_kept_like_a_result(self, group: Group) -> None:
        first, second = group.ask(ANN, 1, b"fail"), group.ask(ANN, 1, b"fail")
        assert isinstance(first, CommandFailed)
        assert (second.exception, second.detail) == (first.exception, first.detail)
        assert second is not first
        assert group.machine.applied == [b"fail"]

    @pytest.mark.pure_only
    def test_a_refusal_is_not_kept(self, group: Group, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(Executor, "command", lambda self, command, context: WrongShard("not here"))
        assert isinstance(group.ask(ANN, 1), WrongShard)
        monkeypatch.undo()
        assert group.ask(ANN, 1) == b"1"

    def test_what_halts_the_replica_leaves_the_command_to_be_applied_later(self, group: Group) -> None:
        with pytest.raises(OSError, match="no disk"):
            group.ask(ANN, 1, b"disk")
        assert group.ask(ANN, 1) == b"1"

    def test_an_unknown_client_is_never_taken_for_a_new_one(self, group: Group) -> None:
        assert isinstance(group.ask(BOB, 1), SessionExpired)
        assert isinstance(group.ask(BOB, 1), SessionExpired)
        assert group.machine.applied == []

    def test_registering_again_forgets_nothing(self, group: Group) -> None:
        assert group.ask(ANN, 1) == b"1"
        assert group.register(ANN) == b""
        assert group.ask(ANN, 1) == b"1"
        assert len(group.machine.applied) == 1

    def test_clients_do_not_touch_each_other(self, group: Group) -> None:
        group.register(BOB)
        assert [group.ask(ANN, 1), group.ask(BOB, 1), group.ask(ANN, 1), group.ask(BOB, 1)] == [b"1", b"2", b"1", b"2"]

    def test_numbers_may_come_in_any_order(self, group: Group) -> None:
        assert [group.ask(ANN, 3), group.ask(ANN, 1), group.ask(ANN, 3), group.ask(ANN, 2)] == [b"1", b"2", b"1", b"3"]


class TestBounds:
    def test_below_the_lowest_outstanding_number_nothing_is_applied_or_kept(self, group: Group) -> None:
        group.ask(ANN, 1)
        group.ask(ANN, 3)
        assert group.ask(ANN, 4, lowest=3) == b"3"
        assert sorted(group.table.clients[ANN].replies) == [3, 4]
        for sequence in (1, 2):  # one that was applied, and one that never came: nobody can tell them apart any more
            told = group.ask(ANN, sequence)
            assert isinstance(told, ReplyForgotten)
            assert "given up by its own client" in str(told)
        assert len(group.machine.applied) == 3

    def test_the_lowest_number_never_goes_back(self, group: Group) -> None:
        group.ask(ANN, 5, lowest=5)
        group.ask(ANN, 6, lowest=1)
        assert group.table.clients[ANN].lowest == 5

    def test_a_far_jump_of_the_lowest_number_costs_no_more_than_what_is_kept(self, group: Group) -> None:
        group.ask(ANN, 1)
        assert group.ask(ANN, 1 << 63, lowest=1 << 63) == b"2"
        assert sorted(group.table.clients[ANN].replies) == [1 << 63]

    def test_a_number_too_far_above_the_lowest_is_refused_for_now(self, group: Group) -> None:
        group.ask(ANN, 1)
        assert isinstance(group.ask(ANN, 1 + WINDOW), Overloaded)
        assert group.ask(ANN, WINDOW) == b"2"
        assert group.ask(ANN, 1 + WINDOW, lowest=2) == b"3"

    def test_replies_past_the_bound_are_dropped_the_lowest_outstanding_last(self, group: Group) -> None:
        size = 400 - REPLY_OVERHEAD_BYTES
        for sequence in (1, 2, 3):
            group.ask(ANN, sequence, b"large%d" % size)
        told = group.ask(ANN, 2)
        assert isinstance(told, ReplyForgotten)
        assert "was applied, once" in str(told)
        assert [len(group.ask(ANN, sequence)) for sequence in (1, 3)] == [size, size]
        assert len(group.machine.applied) == 3
        assert group.table.clients[ANN].reply_bytes == 800

    def test_a_reply_larger_than_the_bound_is_forgotten_at_once(self, group: Group) -> None:
        assert len(group.ask(ANN, 1, b"large5000")) == 5_000
        assert isinstance(group.ask(ANN, 1), ReplyForgotten)
        assert group.table.clients[ANN].reply_bytes == 0
        assert group.ask(ANN, 2) == b"2"
        assert group.ask(ANN, 2) == b"2"

    def test_a_late_number_below_what_was_dropped_is_applied_once_and_not_kept(self, group: Group) -> None:
        for sequence in (1, 3, 4, 5):
            group.ask(ANN, sequence, b"large300")
        assert group.table.clients[ANN].dropped >= 2
        assert group.ask(ANN, 2) == b"5"
        assert isinstance(group.ask(ANN, 2), ReplyForgotten)
        assert len(group.machine.applied) == 5

    @pytest.mark.parametrize(("sequence", "lowest"), [(0, 0), (0, 1), (1, 0), (3, 4)])
    def test_numbers_that_make_no_sense_are_refused(self, group: Group, sequence: int, lowest: int) -> None:
        assert isinstance(group.ask(ANN, sequence, lowest=lowest), InvalidRequest)
        assert group.machine.applied == []

    @pytest.mark.parametrize("entry", [b"", b"short", b"\xc1", msgpack.packb([1]), msgpack.packb([1, b"x", 1, 1, 1])])
    def test_malformed_entries_are_refused(self, group: Group, entry: bytes) -> None:
        assert isinstance(group._run(CONTROL, entry), InvalidRequest)
        assert isinstance(group._run(SESSION, entry), InvalidRequest)
        assert list(group.table.clients) == [ANN]


class TestEnd:
    def test_a_session_ends_when_it_was_unused_for_longer_than_the_expiry(self, group: Group) -> None:
        group.ask(ANN, 1)
        group.wait(EXPIRY_MS)
        assert group.ask(ANN, 1) == b"1"  # which is a use
        group.wait(EXPIRY_MS)
        assert group.ask(ANN, 1) == b"1"
        group.wait(EXPIRY_MS + 1)
        assert isinstance(group.ask(ANN, 1), SessionExpired)
        assert isinstance(group.ask(ANN, 2), SessionExpired)
        assert group.table.clients == {}

    def test_a_registration_ends_the_sessions_that_have_expired(self, group: Group) -> None:
        group.wait(EXPIRY_MS)
        group.register(BOB)
        assert sorted(group.table.clients) == [ANN, BOB]
        group.wait(1)
        group.register(CID)
        assert sorted(group.table.clients) == [BOB, CID]

    def test_of_too_many_the_one_unused_for_longest_goes(self, group: Group) -> None:
        group.wait(1)
        group.register(BOB)
        group.wait(1)
        group.register(CID)
        group.wait(1)
        group.ask(ANN, 1)
        group.register(bytes(16))
        assert sorted(group.table.clients) == [bytes(16), ANN, CID]

    def test_of_those_unused_equally_long_the_lowest_client_goes(self, group: Group) -> None:
        group.register(CID)
        group.register(BOB)
        group.register(b"\xff" * 16)
        assert sorted(group.table.clients) == [BOB, CID, b"\xff" * 16]

    def test_the_bounds_are_those_of_the_latest_registration(self, group: Group) -> None:
        group.register(BOB)
        group.wait(1)
        group.register(CID, sessions=1)
        assert sorted(group.table.clients) == [CID]


class TestForms:
    """A table is the same whether it comes from the log, from a snapshot, or from the disk."""

    def busy(self, seed: int, *, tracked: bool = False) -> Iterator[Group]:
        rng, group = Random(seed), Group(tracked=tracked)
        clients = [bytes([number]) * 16 for number in range(6)]
        lowest = dict.fromkeys(clients, 1)
        for _ in range(rng.choice([10, 100, 400])):
            client = rng.choice(clients)
            group.wait(rng.choice([0, 0, 1, 500, 4_000]))
            if rng.random() < 0.2:
                group.register(client, rng.choice([500, 1_000]), rng.choice([3, 5]))
            else:
                lowest[client] += rng.choice([0, 0, 0, 1, 2])
                command = rng.choice([b"go", b"fail", b"large100", b"large600"])
                group.ask(client, lowest[client] + rng.randrange(12), command, lowest[client])
            yield group

    @pytest.mark.parametrize("seed", range(20))
    def test_a_snapshot_holds_the_whole_table(self, seed: int) -> None:
        for step, group in enumerate(self.busy(seed)):
            if step % 9:
                continue
            data = b"".join(state_chunks(group.executor, group.context.time_ms))
            restored = Executor(group.executor.group_id, copy.deepcopy(group.machine))
            loader = StateLoader(restored)
            for at in range(0, len(data), 100):
                loader.feed(data[at : at + 100])
            loader.finish()
            assert (loader.time_ms, loader.hash) == (group.context.time_ms, group.executor.rolling.value)
            assert restored.machine.snapshot() == group.machine.snapshot()
            assert whole(restored.sessions) == whole(group.table)
            # What a replica that was restored does from here on is what the others do.
            group.executor.sessions = restored.sessions

    @pytest.mark.parametrize("seed", range(20))
    def test_restored_and_other_replicas_go_on_alike(self, seed: int) -> None:
        twin = self.busy(seed)
        for step, group in enumerate(self.busy(seed)):
            other = next(twin)
            assert whole(other.table) == whole(group.table)
            if step % 7 == 0:
                group.executor.sessions = SessionTable.load(iter(whole(group.table)))
        assert group.machine.applied == other.machine.applied

    @pytest.mark.parametrize("seed", range(20))
    def test_changes_written_one_after_the_other_come_to_the_table(self, seed: int) -> None:
        stored: dict[bytes, bytes] = {}
        rng = Random(seed)
        for group in self.busy(seed, tracked=True):
            if rng.random() < 0.7:
                continue
            for key, value in group.table.take_changes():
                if value is None:
                    stored.pop(key, None)
                else:
                    stored[key] = value
            assert sorted(stored.items()) == whole(group.table)
            assert group.table.take_changes() == []
            assert whole(SessionTable.load(sorted(stored.items()))) == whole(group.table)

    def test_nothing_is_tracked_unless_asked_for(self, group: Group) -> None:
        group.ask(ANN, 1)
        assert group.table.take_changes() == []
        assert group.table._used == {}

    @pytest.mark.parametrize("piece", [1, 3, 1_000, 1 << 20])
    def test_pieces_of_any_size_are_taken(self, group: Group, piece: int) -> None:
        group.register(BOB, reply_bytes=1 << 20)
        for sequence in range(1, 200):
            group.ask(BOB, sequence, b"large1000")
        frames = list(group.table.encode())
        assert len(frames) > 4
        assert max(map(len, frames)) < 70_000
        data = b"".join(frames) + b"what follows"
        loader, rest = SessionLoader(), None
        for at in range(0, len(data), piece):
            rest = loader.feed(data[at : at + piece])
            if rest is not None:
                rest += data[at + piece :]
                break
        assert rest == b"what follows"
        assert whole(loader.table) == whole(group.table)

    def test_what_is_no_table_is_refused(self, group: Group) -> None:
        group.ask(ANN, 1)
        good = list(group.table.encode())

        def frame(items: Any) -> bytes:
            packed: bytes = msgpack.packb(items)
            return len(packed).to_bytes(4, "big") + packed

        head = [ANN, 1, 1, 0]
        for wrong in (
            [frame([1, 2])],
            [frame([1, 2, -3])],
            [frame("abc")],
            [good[0], frame([[b"short", 1, 1, 0]])],
            [good[0], frame([[ANN, -1, 1, 0]])],
            [good[0], frame([head, head])],
            [good[0], frame([[1, b"reply of nobody"]])],
            [good[0], frame([head, [0, b"below the lowest"]])],
            [good[0], frame([head, [1, b""], [1, b""]])],
            [good[0], frame([head, [1, 5]])],
            [good[0], frame([head, [1, [b"\xff", b""]]])],
            [good[0], frame([7])],
            [good[0], b"\x00\x00\x00\x01\xc1"],
        ):
            with pytest.raises(CorruptRecord):
                SessionLoader().feed(b"".join(wrong))
        data = b"".join(state_chunks(group.executor, 5))
        for end in range(len(data) - len(group.machine.snapshot())):
            loader = StateLoader(group.executor)
            loader.feed(data[:end])
            with pytest.raises(CorruptRecord):
                loader.finish()
        with pytest.raises(CorruptRecord, match="format 01"):
            StateLoader(group.executor).feed(b"\x01" + data[1:])

    def test_pairs_that_are_no_table_are_refused(self, group: Group) -> None:
        group.ask(ANN, 1)
        good = whole(group.table)
        head_key, reply_key = good[1][0], good[2][0]
        for wrong in (
            [(b"\x09", b"")],
            [(good[0][0], b"short")],
            [(head_key[:-1], good[1][1])],
            [(head_key, b"short")],
            [(reply_key, good[2][1])],
            [*good[:2], (reply_key[:-1], good[2][1])],
            [*good[:2], (reply_key, b"\xc1")],
        ):
            with pytest.raises(CorruptRecord):
                SessionTable.load(wrong)
