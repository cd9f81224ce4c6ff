"""The client protocol as bytes: what is packed comes back, and whatever else comes is a WireError and nothing worse."""

from __future__ import annotations

from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from multiraft.client import frames
from multiraft.client.frames import Batch, Found, Welcome
from multiraft.errors import CommandFailed, NotLeader, OutcomeUnknown, ReadFailed, WireError
from multiraft.shard.shard_map import ServiceShards, Shard, ShardMap

MAP = ShardMap(7, {"kv": ServiceShards("hash", (Shard(1, 16, b"", None, 1),))}, {16: ("a", "b", "c")})


def pack(value: object) -> bytes:
    packed: bytes = msgpack.packb(value)
    return packed


def test_a_hello_is_heard() -> None:
    assert frames.read_hello(frames.hello()) == frames.VERSION


def test_a_welcome_says_what_the_node_is() -> None:
    said = Welcome(1, "a", b"c" * 16, 1_000, 10, 64)
    assert frames.read_welcome(frames.welcome(said)) == said


def test_calls_come_as_they_were_sent() -> None:
    batch = Batch(3, 16, frames.NUMBERED, 0, 5_000, [b"one", b"two"])
    assert frames.read_request(frames.calls([batch])) == [batch]


def test_a_look_names_services() -> None:
    assert frames.read_request(frames.look(4, {"kv", "counters"})) == (4, ["counters", "kv"])


def test_a_map_comes_with_leaders_and_urls() -> None:
    heard = frames.read_answer(frames.found(4, MAP, {16: "b"}, {"b": "http://b"}))
    assert heard == Found(4, MAP, {16: "b"}, {"b": "http://b"})


def test_an_error_arrives_as_the_type_that_was_raised() -> None:
    row = (1, 0, [frames.plain(b"done"), frames.plain(NotLeader(16, "b")), frames.plain(CommandFailed("E", "why"))])
    heard = frames.read_answer(frames.answers(7, [row]))
    assert isinstance(heard, tuple)
    assert not isinstance(heard, Found)
    version, [part] = heard
    assert version == 7
    assert part.outcomes[0] == b"done"
    refused, failed = (frames.error_of(outcome, read=False) for outcome in part.outcomes[1:])
    assert isinstance(refused, NotLeader)
    assert refused.leader == "b"
    assert isinstance(failed, CommandFailed)
    assert failed.detail == "why"


@pytest.mark.parametrize(("read", "kind"), [(False, OutcomeUnknown), (True, ReadFailed)])
def test_an_error_that_is_none_leaves_the_outcome_open(read: bool, kind: type[Exception]) -> None:
    assert isinstance(frames.error_of([b"\x02junk"], read=read), kind)


BATCH = [1, 16, frames.READ, 0, 100, [b"q"]]


def changed(at: int, value: object) -> list[Any]:
    return [value if each == at else field for each, field in enumerate(BATCH)]


@pytest.mark.parametrize(
    "message",
    [
        None,
        [],
        ["x"],
        [9],
        [frames.CALLS],
        [frames.CALLS, 5],
        [frames.CALLS, [5]],
        [frames.CALLS, [BATCH[:5]]],
        [frames.CALLS, [changed(0, -1)]],
        [frames.CALLS, [changed(1, "16")]],
        [frames.CALLS, [changed(2, 0)]],
        [frames.CALLS, [changed(2, 99)]],
        [frames.CALLS, [changed(2, True)]],
        [frames.CALLS, [changed(3, -2)]],
        [frames.CALLS, [changed(4, 0)]],
        [frames.CALLS, [changed(4, 10**9)]],
        [frames.CALLS, [changed(5, [])]],
        [frames.CALLS, [changed(5, ["text"])]],
        [frames.CALLS, [changed(5, b"bytes")]],
        [frames.LOOK, 1, [b"kv"]],
        [frames.LOOK, 1, ["kv"] * 2_000],
        [frames.LOOK, None, []],
    ],
)
def test_what_is_no_request_is_refused(message: object) -> None:
    with pytest.raises(WireError):
        frames.read_request(pack(message))


@pytest.mark.parametrize(
    "message",
    [
        [],
        [frames.HELLO],
        [frames.CALLS, "multiraft-client", [1]],
        [frames.HELLO, "http", [1]],
        [frames.HELLO, "multiraft-client", 1],
        [frames.HELLO, "multiraft-client", [1], "x" * 5_000],
    ],
)
def test_what_is_no_hello_is_refused(message: object) -> None:
    with pytest.raises(WireError):
        frames.read_hello(pack(message))


def test_a_client_of_another_version_is_told_which_is_spoken() -> None:
    with pytest.raises(frames.Refused, match="speaks version 1"):
        frames.read_hello(pack([frames.HELLO, frames.MAGIC, [2, 3]]))


def test_what_a_later_version_adds_is_ignored() -> None:
    assert frames.read_request(pack([frames.CALLS, [[*BATCH, "more"]], "more"])) == [Batch(*BATCH)]  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "message",
    [
        [frames.CALLS, 1],
        [frames.CALLS, -1, []],
        [frames.CALLS, 1, [[1, 0]]],
        [frames.CALLS, 1, [[1, -2, []]]],
        [frames.CALLS, 1, [[1, -1, []]]],
        [frames.CALLS, 1, [[1, -1, [b"result"]]]],
        [frames.CALLS, 1, [[1, 0, ["text"]]]],
        [frames.CALLS, 1, [[1, 0, [[b"a", b"b"]]]]],
        [frames.LOOK, 1, [], {}, {}],
        [frames.LOOK, 1, MAP.to_plain(), {16: 5}, {}],
        [frames.LOOK, 1, MAP.to_plain(), [], {}],
        [frames.LOOK, 1, MAP.to_plain(), {}, {"a": ""}],
    ],
)
def test_what_is_no_answer_is_refused(message: object) -> None:
    with pytest.raises(WireError):
        frames.read_answer(pack(message))


plain_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.text(max_size=5) | st.binary(max_size=5),
    lambda inner: st.lists(inner, max_size=6) | st.dictionaries(st.integers(0, 9) | st.text(max_size=2), inner),
    max_leaves=20,
)
messages = st.lists(plain_values, max_size=6).map(pack) | st.binary(max_size=200)


@given(messages, st.sampled_from([frames.read_hello, frames.read_request, frames.read_welcome, frames.read_answer]))
def test_no_bytes_do_worse_than_a_wire_error(frame: bytes, read: Any) -> None:
    try:
        read(frame)
    except WireError:
        return
    # Chance made a message: its first element says which.
    assert msgpack.unpackb(frame, strict_map_key=False)[0] in (frames.HELLO, frames.CALLS, frames.LOOK)


@given(st.integers(1, 3), st.lists(plain_values, max_size=6))
def test_no_fields_behind_a_known_kind_do_worse_than_a_wire_error(kind: int, fields: list[object]) -> None:
    frame = pack([kind, *fields])
    for read in (frames.read_hello, frames.read_request, frames.read_welcome, frames.read_answer):
        try:
            read(frame)
        except WireError:
            continue
