"""Every checker of the simulator fires: with one rule of the code taken away, some seed of a few fails, and says which.

Rules of this file: a rule is taken away for one run, in this process, by replacing one function; what must be said
stands beside it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, cast

import pytest

from multiraft.engine.campaigning import Campaigning
from multiraft.engine.liveness import Liveness
from multiraft.engine.replica import Replica
from multiraft.engine.sessions import SessionTable
from multiraft.engine.writer import LogWriter
from multiraft.errors import OutcomeUnknown
from multiraft.raft import Raft, Ready
from multiraft.raft.election import Elections
from multiraft.raft.log import Log
from multiraft.records import SESSION, encode_record
from multiraft.sessions import HEAD
from multiraft.shard.session import Sessions
from multiraft.testing import Options, run_simulation
from multiraft.testing.invariants import Invariants
from multiraft.testing.workload import registers

Break = Callable[[pytest.MonkeyPatch], None]


def promises_at_once(patch: pytest.MonkeyPatch) -> None:
    """Votes and acknowledgements leave before the write that they speak of."""
    add = LogWriter.add

    def early(self: LogWriter, replica: Replica, ready: Ready) -> Any:
        promises, ready.after_persist = ready.after_persist, []
        return [*promises, *add(self, replica, ready)]

    patch.setattr(LogWriter, "add", early)


def one_vote_elects(patch: pytest.MonkeyPatch) -> None:
    patch.setattr("multiraft.raft.election.elected", lambda voters, outgoing, granted: True)


def commit_by_oneself(patch: pytest.MonkeyPatch) -> None:
    """The leader takes what it has itself for committed."""
    patch.setattr("multiraft.raft.replication.majority_index", max)


def short_logs_win(patch: pytest.MonkeyPatch) -> None:
    """Whoever asks gets the vote, whatever it has."""
    patch.setattr(Elections, "_up_to_date", lambda self, last_term, last_index: True)


def reads_at_once(patch: pytest.MonkeyPatch) -> None:
    """A leader answers reads without asking whether it still leads."""

    def now(self: Raft, round_id: int) -> int:
        self._read_states.append((round_id, self.commit))
        return self.commit

    patch.setattr(Raft, "read_index", now)


def append_any(patch: pytest.MonkeyPatch) -> None:
    """Whoever comes second to an entry stores a command that its leader did not send."""
    append = Log.append
    known: set[bytes] = set()

    def other(self: Log, record: Any) -> None:
        if record.kind == SESSION and record.raw in known and record.first % 5 == 0:
            *before, last = record.entries()
            entries = [*before, last[: HEAD.size] + b"\x92\xa3get\xa2k0"]
            prev_term, stamp_ms = record.prev_term, record.stamp_ms
            record = encode_record(self.group_id, record.first, record.term, prev_term, SESSION, stamp_ms, entries)
        known.add(record.raw)
        append(self, record)

    patch.setattr(Log, "append", other)


def claims_too_long(patch: pytest.MonkeyPatch) -> None:
    """A leader that has stepped down goes on to claim its group."""
    patch.setattr(Liveness, "unlead", lambda self, group_id, now: None)


def nobody_campaigns(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Raft, "campaign", lambda self, now, forced=False: self._arm(now))


def everybody_is_busy(patch: pytest.MonkeyPatch) -> None:
    """Whoever judges the deadlines always sees something left to do: the engine turns and turns."""
    judge = Campaigning.judge

    def again(self: Campaigning, now: float) -> None:
        judge(self, now)
        self._engine.wake()

    patch.setattr(Campaigning, "judge", again)


def applies_twice(patch: pytest.MonkeyPatch) -> None:
    """One replica of three applies every tenth entry on top of itself."""
    apply = Replica._apply_entries

    def twice(self: Replica, record: Any, last: int, batch: Any, until_s: float) -> bool:
        if self.core.replica_id == 2 and record.first % 10 == 0 and record.kind == SESSION:
            self.context.index = record.first
            self.machine.__dict__["_machine"].apply(record.entries()[0][HEAD.size :], self.context)
        return apply(self, record, last, batch, until_s)

    patch.setattr(Replica, "_apply_entries", twice)


def forgets_numbers(patch: pytest.MonkeyPatch) -> None:
    """What was applied under a number is not remembered."""
    patch.setattr(SessionTable, "keep", lambda self, client, sequence, result: None)


def snapshots_without_sessions(patch: pytest.MonkeyPatch) -> None:
    """Whoever takes a snapshot over knows no client."""
    encode = SessionTable.encode
    patch.setattr(SessionTable, "encode", lambda self: encode(SessionTable()))


def replies_lost_in_snapshots(patch: pytest.MonkeyPatch) -> None:
    """Whoever takes a snapshot over knows the clients, and nothing of what they have sent."""
    patch.setattr(SessionTable, "_add_reply", lambda self, client, sequence, plain: None)


def expires_by_its_own_clock(patch: pytest.MonkeyPatch) -> None:
    """Each replica counts the age of sessions from its own start."""
    answer = SessionTable.answer

    def hasty(self: SessionTable, client: bytes, sequence: int, lowest: int, now_ms: int) -> Any:
        return answer(self, client, sequence, lowest, int(asyncio.get_running_loop().time() * 1e3) + id(self) % 100_000)

    patch.setattr(SessionTable, "answer", hasty)


def a_new_number_each_time(patch: pytest.MonkeyPatch) -> None:
    """A command whose outcome is unknown is sent again under another number."""
    call = Sessions.call

    async def again(self: Sessions, group_id: int, command: bytes, deadline: float, timeout_s: float) -> bytes:
        try:
            return await call(self, group_id, command, deadline, timeout_s)
        except OutcomeUnknown:
            deadline = self._router.now() + 5.0
            return await call(self, group_id, command, deadline, 5.0)

    patch.setattr(Sessions, "call", again)


COUPS = ("coup", "heal", "start")
RULES: list[tuple[Break, str, int]] = [
    (promises_at_once, "durable before acknowledged: group", 5),
    (one_vote_elects, "election safety: group", 40),
    (commit_by_oneself, "durable commit: group", 10),
    (short_logs_win, "leader completeness: group", 60),
    (reads_at_once, "linearizability: service 'registers', key", 80),
    (append_any, "log matching: group", 20),
    (claims_too_long, "lead sets: ", 20),
    (nobody_campaigns, "liveness: ", 3),
    (everybody_is_busy, "busy: ", 1),
    (applies_twice, "non-deterministic apply: group", 20),
    (forgets_numbers, "exactly once: group", 10),
    (snapshots_without_sessions, "non-deterministic apply: group", 20),
    (replies_lost_in_snapshots, "exactly once: group", 20),
    (expires_by_its_own_clock, "exactly once: group", 20),
    (a_new_number_each_time, "linearizability: service 'registers', key", 40),
]


@pytest.mark.parametrize(("take_away", "said", "seeds"), RULES, ids=[rule[0].__name__ for rule in RULES])
@pytest.mark.pure_only  # it takes the rules out of the code
def test_a_rule_that_is_taken_away_is_missed(
    take_away: Break, said: str, seeds: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    take_away(monkeypatch)
    found = []
    for seed in range(1, seeds + 1):
        faults = COUPS if take_away is reads_at_once else None
        failure = run_simulation(seed, registers, Options(nodes=3, faults=faults)).failure
        if failure:
            found.append(failure)
        if said in failure:
            return
    pytest.fail(f"{said!r} was not said in {seeds} seeds, but: {found}")


class _Core:
    """As much of a core as `led` looks at."""

    def __init__(self, term: int, replica_id: int) -> None:
        self.term = term
        self.replica_id = replica_id


def test_who_was_elected_in_a_turn_that_ended_its_node_is_remembered() -> None:
    """It may have told others before its node ended: whoever follows it is right, and another leader is wrong."""
    reports: list[str] = []
    invariants = Invariants({}, reports.append, lambda *_: None)
    invariants.led("b", 1, 16, cast(Raft, _Core(4, 2)))
    assert invariants.group(16).leaders == {4: ("b", 1, 2)}
    assert reports == []
    invariants.led("c", 1, 16, cast(Raft, _Core(4, 3)))
    assert len(reports) == 1
    assert "election safety" in reports[0]
