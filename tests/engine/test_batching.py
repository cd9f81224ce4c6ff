"""Commands that are applied in batches: their results do not depend on where a batch ends, whatever the sessions do.

Rules of this file: the same entries are applied in whole records, in parts of records, and one by one.
"""

from __future__ import annotations

import random
from typing import Any, cast

import pytest

from multiraft.adapting import BatchesAdapter, adapt
from multiraft.engine import batching
from multiraft.engine.batching import run_batch
from multiraft.engine.executing import Executor
from multiraft.engine.machine import BatchFailed, Context
from multiraft.engine.sessions import SessionTable
from multiraft.errors import CommandFailed
from multiraft.records import COMMANDS, SESSION
from multiraft.sessions import HEAD, WINDOW
from multiraft.statemachine import BytesStateMachine

CLIENTS = [bytes([number]) * 16 for number in range(3)]


class Tape(BytesStateMachine):
    """Appends each command; `!` fails. Notes how large its batches were, which is no state."""

    def __init__(self) -> None:
        self.tape: list[bytes] = []
        self.batches: list[int] = []
        self.spoil: object = None

    def apply_batch(self, commands: list[bytes]) -> list[bytes | Exception]:
        if isinstance(self.spoil, BaseException):
            raise self.spoil
        if self.spoil is not None:
            return cast(list[bytes | Exception], self.spoil)
        self.batches.append(len(commands))
        results: list[bytes | Exception] = []
        for command in commands:
            if command == b"!":
                results.append(ValueError("not this one"))
            else:
                self.tape.append(command)
                results.append(b"%d" % len(self.tape))
        return results


def executor_of(tape: Tape) -> Executor:
    executor = Executor(16, adapt(tape))
    executor.sessions = SessionTable(tracked=True)
    for client in CLIENTS[:2]:
        executor.sessions.register(client, 1_000_000, 40, 10, 0)
    return executor


def run(executor: Executor, kind: int, entries: list[bytes], cuts: list[int], time_ms: int = 5) -> list[Any]:
    """Apply `entries`, from index 10 on, in one record that is applied as far as each cut in turn."""
    results: list[Any] = []
    context = Context(0, 1, 16, time_ms)
    for last in [*cuts, len(entries)]:
        while len(results) < last:
            context.index = 10 + len(results)
            results += run_batch(executor, kind, entries, len(results), last, context)
        assert len(results) == last
    return results


def plain(results: list[Any]) -> list[Any]:
    return [result if isinstance(result, bytes) else (type(result), str(result)) for result in results]


def test_a_record_is_one_batch_and_each_command_has_its_own_result() -> None:
    tape = Tape()
    results = run(executor_of(tape), COMMANDS, [b"a", b"!", b"b"], [])
    assert plain(results) == [b"1", (CommandFailed, str(CommandFailed("ValueError", "not this one"))), b"2"]
    assert (tape.batches, tape.tape) == ([3], [b"a", b"b"])


@pytest.mark.pure_only
def test_a_batch_has_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batching, "BATCH_COMMANDS", 4)
    tape = Tape()
    run(executor_of(tape), COMMANDS, [b"a"] * 10, [])
    assert tape.batches == [4, 4, 2]


def test_what_a_client_has_under_way_is_one_batch_though_it_gives_up_earlier_replies_meanwhile() -> None:
    tape = Tape()
    entries = [HEAD.pack(CLIENTS[0], number, max(1, number - 9)) + b"x" for number in range(1, 101)]
    assert run(executor_of(tape), SESSION, entries, []) == [b"%d" % number for number in range(1, 101)]
    assert tape.batches == [100]


@pytest.mark.parametrize("seed", range(120))
def test_results_state_and_sessions_are_the_same_wherever_batches_end(seed: int) -> None:
    rng = random.Random(seed)
    entries = []
    newest = dict.fromkeys(CLIENTS, 0)
    for _ in range(40):
        client = rng.choice(CLIENTS[:2] if rng.random() < 0.95 else CLIENTS)
        newest[client] += rng.random() < 0.8
        if rng.random() < 0.03:
            newest[client] += WINDOW
        sequence = max(1, newest[client] - rng.choice([0, 0, 0, 1, 3]))
        lowest = max(1, sequence - rng.choice([0, 0, 1, 4, 9]))
        command = rng.choice([b"!", b"x", b"%d" % rng.randrange(1_000)])
        entries.append(HEAD.pack(client, sequence, lowest) + command)
    if rng.random() < 0.3:
        entries.insert(rng.randrange(40), b"short")
    time_ms = 5 if rng.random() < 0.9 else 2_000_000  # by when every session has expired
    ends: list[tuple[list[Any], list[bytes], list[Any]]] = []
    for cuts in ([], sorted(rng.sample(range(1, 40), 5)), list(range(1, len(entries)))):
        tape = Tape()
        executor = executor_of(tape)
        results = plain(run(executor, SESSION, entries, cuts, time_ms))
        ends.append((results, tape.tape, list(executor.sessions.pairs())))
        assert len(cuts) > 5 or max(tape.batches, default=2) > 1
    assert ends[0] == ends[2]
    assert ends[1] == ends[2]


@pytest.mark.parametrize(
    ("spoil", "raised", "text"),
    [
        (ValueError("a bug"), BatchFailed, "apply_batch raised ValueError: a bug"),
        (OSError("the environment"), OSError, "the environment"),
        ([b"1"], BatchFailed, "not a list of 2 results"),
        ((b"1", b"2"), BatchFailed, "apply_batch returned tuple"),
        ([b"1", MemoryError("too much")], MemoryError, "too much"),
    ],
)
def test_what_a_batch_raises_or_returns_wrongly_halts_the_replica(
    spoil: object, raised: type[BaseException], text: str
) -> None:
    tape = Tape()
    tape.spoil = spoil
    with pytest.raises(raised, match=text):
        run(executor_of(tape), COMMANDS, [b"a", b"b"], [])


def test_a_result_that_is_no_bytes_is_that_commands_failure() -> None:
    tape = Tape()
    tape.spoil = ["text", b"2"]
    failed, second = run(executor_of(tape), COMMANDS, [b"a", b"b"], [])
    assert (type(failed), second) == (CommandFailed, b"2")
    assert "expected bytes or an Exception, got str" in str(failed)


def test_chance_is_not_there_in_a_batch_and_time_is() -> None:
    class Curious(BytesStateMachine):
        def apply_batch(self, commands: list[bytes]) -> list[bytes | Exception]:
            with pytest.raises(RuntimeError, match="not in apply_batch"):
                self.context.random.random()
            return [b"%d" % self.context.time_ms for _ in commands]

    adapted = adapt(Curious())
    assert isinstance(adapted, BatchesAdapter)
    assert adapted.apply_batch([b"a", b"b"], Context(3, 1, 16, 77)) == [b"77", b"77"]
    assert adapted.apply(b"a", Context(3, 1, 16, 78)) == b"78"
