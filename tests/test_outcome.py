"""Outcomes as bytes: every error of the tree arrives as itself, and what is not understood as "unknown"."""

from __future__ import annotations

import asyncio

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from multiraft import errors
from multiraft.errors import (
    CommandFailed,
    InvariantViolation,
    MultiRaftError,
    NotLeader,
    OutcomeUnknown,
    Overloaded,
    ReadFailed,
)
from multiraft.outcome import decode_outcome, encode_outcome

EVERY = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, MultiRaftError)]
MADE = {NotLeader: NotLeader(17, "b"), CommandFailed: CommandFailed("KeyError", "'näil'")}


@pytest.mark.parametrize("kind", EVERY)
def test_every_error_arrives_as_itself(kind: type[MultiRaftError]) -> None:
    sent = MADE.get(kind) or kind("what to do next")
    with pytest.raises(MultiRaftError) as raised:
        decode_outcome(encode_outcome(sent))
    assert type(raised.value) is kind
    assert str(raised.value) == str(sent)
    assert vars(raised.value) == vars(sent)


def test_there_are_errors_to_test() -> None:
    assert len(EVERY) >= 19


def test_no_leader_is_told_as_none() -> None:
    with pytest.raises(NotLeader) as raised:
        decode_outcome(encode_outcome(NotLeader(17)))
    assert (raised.value.group_id, raised.value.leader) == (17, None)


@given(st.binary())
def test_results_come_back_as_they_were(result: bytes) -> None:
    assert decode_outcome(encode_outcome(result)) == result


def test_an_error_of_a_user_s_own_arrives_as_its_nearest_kin() -> None:
    class VeryOverloaded(Overloaded):
        pass

    with pytest.raises(Overloaded, match="slow down") as raised:
        decode_outcome(encode_outcome(VeryOverloaded("slow down")))
    assert type(raised.value) is Overloaded


@pytest.mark.parametrize("bug", [ValueError("x"), InvariantViolation("x"), asyncio.CancelledError()])
def test_after_a_bug_nothing_is_certain(bug: BaseException) -> None:
    with pytest.raises(OutcomeUnknown, match=type(bug).__name__):
        decode_outcome(encode_outcome(bug))


def test_text_that_utf8_cannot_carry_does_not_hide_the_error() -> None:
    with pytest.raises(CommandFailed) as raised:
        decode_outcome(encode_outcome(CommandFailed("KeyError", "bad \ud800 text")))
    assert raised.value.detail == "bad ? text"


def test_long_text_is_cut() -> None:
    with pytest.raises(Overloaded) as raised:
        decode_outcome(encode_outcome(Overloaded("x" * 100_000)))
    assert len(str(raised.value)) == 2_000


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"\x00",
        b"\x03result",
        b"\x02",
        b"\x02\xc1",
        b"\x02" + msgpack.packb(5),
        b"\x02" + msgpack.packb([]),
        b"\x02" + msgpack.packb(["FromTheFuture", "x"]),
        b"\x02" + msgpack.packb([["NotReady"], "x"]),
        b"\x02" + msgpack.packb(["NotReady"]),
        b"\x02" + msgpack.packb(["NotReady", 5]),
        b"\x02" + msgpack.packb(["NotReady", "x", "y"]),
        b"\x02" + msgpack.packb(["NotLeader", "16", None]),
        b"\x02" + msgpack.packb(["NotLeader", 16, 5]),
        b"\x02" + msgpack.packb(["CommandFailed", "x"]),
        b"\x02" + msgpack.packb(["CommandFailed", "x", None]),
    ],
)
def test_what_is_not_understood_is_unknown(raw: bytes) -> None:
    with pytest.raises(OutcomeUnknown):
        decode_outcome(raw)
    with pytest.raises(ReadFailed):
        decode_outcome(raw, read=True)


@given(st.builds(lambda first, rest: bytes([first]) + rest, st.integers(0, 3), st.binary(max_size=60)))
def test_arbitrary_bytes_raise_nothing_but_multiraft_errors(raw: bytes) -> None:
    if raw[:1] == b"\x01":
        assert decode_outcome(raw) == raw[1:]
    else:
        with pytest.raises(MultiRaftError):
            decode_outcome(raw)
