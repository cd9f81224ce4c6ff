"""The small parts by themselves: the hello, the outbox, the requests that wait."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from multiraft.errors import OutcomeUnknown, Overloaded, Unreachable, WireError
from multiraft.messages import CommitTo, Response
from multiraft.transport.calls import PENDING_MAX, Calls
from multiraft.transport.frames import FrameDecoder, encode_message
from multiraft.transport.hello import HELLO_BYTES_MAX, MAGIC, Hello, Refusal, decode_hello, encode_hello, judge
from multiraft.transport.outbox import Outbox
from multiraft.types import RUNS_KEPT

MEMBERS = ("a", "b", "c")
OWN = Hello("a", b"store of a", b"c" * 16, 1, 3, 4096, 1 << 20, version_min=2, version_max=4)
OTHER = Hello("b", b"store of b", b"c" * 16, 7, 3, 4096, 1 << 20, version_min=2, version_max=4)

# --------------------------------------------------------------------------------------------------------- hello


hellos = st.builds(
    Hello,
    node_id=st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}", fullmatch=True),
    store_id=st.binary(min_size=1, max_size=64),
    cluster_id=st.binary(max_size=64),
    incarnation=st.integers(1, 2**64 - 1),
    generation=st.integers(0, 2**64 - 1),
    frame_bytes=st.integers(4096, 2**31),
    message_bytes=st.integers(2**31, 2**32 - 1),
    version_min=st.integers(1, 9),
    version_max=st.integers(9, 2**16 - 1),
    readmissions=st.integers(0, 2**64 - 1),
    runs=st.lists(st.binary(min_size=8, max_size=8), max_size=RUNS_KEPT).map(tuple),
)


@given(hellos, st.binary(max_size=300))
def test_a_hello_comes_back_as_it_was_whatever_a_later_version_adds(hello: Hello, added: bytes) -> None:
    assert decode_hello(encode_hello(hello) + added) == hello
    assert len(encode_hello(hello)) <= HELLO_BYTES_MAX


@given(hellos, st.data())
def test_a_damaged_hello_is_a_hello_or_a_wire_error(hello: Hello, data: st.DataObject) -> None:
    raw = bytearray(encode_hello(hello))
    at = data.draw(st.integers(0, len(raw) - 1))
    raw[at] ^= data.draw(st.integers(1, 255))
    del raw[data.draw(st.integers(0, len(raw))) :]
    try:
        found = decode_hello(bytes(raw))
    except WireError:
        return
    assert at >= len(MAGIC)
    assert decode_hello(encode_hello(found)) == found


@pytest.mark.parametrize(
    "changed",
    [
        {"store_id": b""},
        {"node_id": ""},
        {"incarnation": 0},
        {"version_min": 0},
        {"version_min": 3, "version_max": 2},
        {"frame_bytes": 4095},
        {"message_bytes": 4095},
        {"node_id": "n" * 64},
        {"cluster_id": bytes(65)},
    ],
)
def test_a_field_outside_its_range_is_refused(changed: dict[str, Any]) -> None:
    with pytest.raises(WireError):
        decode_hello(encode_hello(replace(OTHER, **changed)))


def test_the_layout_of_a_hello_stays_what_other_versions_expect() -> None:
    expected = "4d52414654000d0a 0002 0004 0000000000000003 0000000000000007 00001000 00100000 01 cc 02 aabb 01 62"
    expected += "0000000000000005 02 1111111111111111 2222222222222222"
    hello = replace(OTHER, cluster_id=b"\xcc", store_id=b"\xaa\xbb", readmissions=5, runs=(b"\x11" * 8, b"\x22" * 8))
    assert encode_hello(hello) == bytes.fromhex(expected)


@pytest.mark.parametrize(
    ("changed", "kind"),
    [
        ({}, None),
        ({"version_min": 4, "version_max": 9}, None),
        ({"version_min": 1, "version_max": 2}, None),
        ({"version_min": 5, "version_max": 9}, "version"),
        ({"version_min": 1, "version_max": 1}, "version"),
        ({"generation": 4}, None),
        ({"generation": 2}, "generation"),
        ({"cluster_id": b"d"}, "cluster"),
        ({"cluster_id": b""}, None),
        ({"cluster_id": b"", "generation": 0}, None),
        ({"node_id": "a"}, "self"),
        ({"node_id": "d"}, "unknown_node"),
        ({"node_id": "c"}, "impostor"),
    ],
)
def test_who_may_talk(changed: dict[str, Any], kind: str | None) -> None:
    other = replace(OTHER, **changed)
    if kind is None:
        judge(OWN, other, MEMBERS, "b")
        return
    with pytest.raises(Refusal) as found:
        judge(OWN, other, MEMBERS, "b")
    assert found.value.kind == kind
    assert len(found.value.text) > 30


def test_a_node_that_dials_may_be_any_member() -> None:
    judge(OWN, replace(OTHER, node_id="c"), MEMBERS, None)


# -------------------------------------------------------------------------------------------------------- outbox


def commit(number: int) -> bytes:
    return encode_message(CommitTo(number, 1, 1, 1, 2))


def test_the_writer_is_woken_once_until_the_outbox_is_empty_again() -> None:
    woken: list[int] = []
    outbox = Outbox(1 << 20, 4096, lambda: woken.append(1))
    assert outbox.add([], False)
    assert woken == []
    for urgent in (False, True, False):
        assert outbox.add([commit(1)], urgent)
    assert len(woken) == 1
    while outbox.next_frame() is not None:
        pass
    assert outbox.size_bytes == 0
    assert outbox.add([commit(2)], True)
    assert len(woken) == 2


def test_a_full_bulk_lane_leaves_room_for_urgent_messages() -> None:
    outbox = Outbox(4000, 4096, lambda: None)
    while outbox.add([commit(1)], False):
        pass
    assert 2900 <= outbox.size_bytes <= 3000
    assert outbox.add([commit(2)] * 20, True)
    assert not outbox.add([commit(2)] * 20, True)
    assert outbox.size_bytes <= 4000


def test_an_empty_lane_takes_one_message_of_any_size() -> None:
    outbox = Outbox(1000, 4096, lambda: None)
    large = bytes(5000)
    for urgent in (True, False):
        assert outbox.add([large], urgent)
        assert not outbox.add([b"x"], urgent)
    assert not Outbox(1000, 4096, lambda: None).add([large, large], False)


def test_tickets_tell_what_has_left() -> None:
    outbox = Outbox(1 << 20, 4096, lambda: None)
    tickets = []
    for content in (commit(1), bytes(10_000), commit(2)):
        assert outbox.add([content], False)
        tickets.append(outbox.bulk_ticket)
    assert outbox.add([commit(3)], True)
    history = []
    while outbox.next_frame() is not None:
        history.append([outbox.bulk_left(ticket) for ticket in tickets])
    assert history[0] == [False, False, False], "the urgent message goes first and counts for itself"
    assert history[1] == [True, False, False]
    assert history[2] == [True, True, False], "its first chunk has left"
    assert history[-1] == [True, True, True]


@given(st.lists(st.tuples(st.integers(1, 9000), st.booleans()), max_size=20), st.data())
def test_whatever_is_queued_comes_out_in_order_of_its_lane(sizes: list[tuple[int, bool]], data: st.DataObject) -> None:
    outbox = Outbox(1 << 30, 4096, lambda: None)
    decoder = FrameDecoder(1 << 20)
    sent: dict[bool, list[bytes]] = {True: [], False: []}
    frames: list[bytes] = []
    for number, (size, urgent) in enumerate(sizes):
        message = encode_message(Response(bytes(size), number))
        sent[urgent].append(message)
        assert outbox.add([message], urgent)
        if data.draw(st.booleans()) and (frame := outbox.next_frame()) is not None:
            frames.append(frame)
    frames += iter(outbox.next_frame, None)
    assert all(len(frame) <= 4096 for frame in frames)
    found: dict[bool, list[bytes]] = {True: [], False: []}
    for frame in frames:
        _, others = decoder.decode(frame)
        found[frame[1] in (2, 4)] += [encode_message(message) for message in others]
    assert found == sent


# --------------------------------------------------------------------------------------------------------- calls


def asking(calls: Calls, outbox: Outbox, count: int, timeout_s: float = 60.0) -> list[asyncio.Future[bytes]]:
    futures = []
    for _ in range(count):
        assert outbox.add([b"x"], False)
        futures.append(calls.wait(calls.next_id(), "b", outbox, outbox.bulk_ticket, 10, timeout_s))
    return futures


@pytest.fixture
def make_calls() -> Callable[[int], Calls]:
    return lambda limit: Calls(asyncio.get_running_loop(), limit)


async def test_many_answered_requests_leave_no_deadlines_behind(make_calls: Callable[[int], Calls]) -> None:
    calls, outbox = make_calls(1 << 20), Outbox(1 << 30, 4096, lambda: None)
    for first in range(0, 20_000, 100):
        futures = asking(calls, outbox, 100)
        for number, future in enumerate(futures):
            assert calls.answered("b", first + number + 1, b"")
            assert future.done()
    assert calls.pending == 0
    assert len(calls._deadlines) < 1000
    calls.close()


async def test_the_number_and_the_bytes_of_requests_are_bounded(make_calls: Callable[[int], Calls]) -> None:
    calls, outbox = make_calls(10 * PENDING_MAX), Outbox(1 << 30, 4096, lambda: None)
    first = asking(calls, outbox, PENDING_MAX - 1)
    assert calls.check_room(10) is None
    assert isinstance(calls.check_room(11), Overloaded)
    last = asking(calls, outbox, 1)
    assert isinstance(calls.check_room(0), Overloaded)
    assert calls.answered("b", PENDING_MAX, b"")
    assert calls.check_room(10) is None
    assert last[0].result() == b""
    calls.connection_lost(outbox)
    assert all(isinstance(future.exception(), Unreachable) for future in first)
    assert calls.pending == 0
    assert calls.check_room(1 << 30) is None, "a single request passes whatever its size"
    calls.close()


async def test_a_lost_connection_ends_its_own_requests_only(make_calls: Callable[[int], Calls]) -> None:
    calls = make_calls(1 << 20)
    lost, other = Outbox(1 << 20, 4096, lambda: None), Outbox(1 << 20, 4096, lambda: None)
    (left,) = asking(calls, lost, 1)
    lost.next_frame()
    (waiting,) = asking(calls, lost, 1)
    (kept,) = asking(calls, other, 1)
    calls.connection_lost(lost)
    assert isinstance(left.exception(), OutcomeUnknown)
    assert isinstance(waiting.exception(), Unreachable)
    assert not kept.done()
    assert calls.answered("b", 3, b"late but right")
    assert await kept == b"late but right"
    calls.close()
