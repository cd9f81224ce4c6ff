"""Requests and answers, the same for every transport: each outcome, and that it is the true one.

Rules of this file: through the port alone; both worlds run every test.
"""

from __future__ import annotations

import asyncio
from asyncio import Future
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

from multiraft.errors import DeadlineExceeded, InvalidRequest, NotCommitted, OutcomeUnknown, Overloaded, Unreachable

if TYPE_CHECKING:
    from tests.transport.conftest import World

LONG_S = 60.0


def echo(method: str, body: bytes, reply: Callable[[bytes], None]) -> None:
    reply(method.encode() + b":" + body)


async def outcome(future: Future[bytes]) -> bytes | Exception:
    try:
        return await future
    except Exception as problem:
        return problem


async def test_an_answer_comes_back_to_its_asker(world: World) -> None:
    a, b = await world.pair()
    a.ear.answer = b.ear.answer = echo
    asked = [a.transport.request("b", "propose", b"%d" % number, LONG_S) for number in range(50)]
    other = b.transport.request("a", "read", b"x", LONG_S)
    assert await asyncio.gather(*asked) == [b"propose:%d" % number for number in range(50)]
    assert await other == b"read:x"
    heard = next(event for event in b.ear.events if event[0] == "request")
    assert heard[:5] == ("request", "a", "propose", b"0", LONG_S)


async def test_answers_may_come_later_and_in_any_order(world: World) -> None:
    a, b = await world.pair()
    asked = [a.transport.request("b", "read", b"%d" % number, LONG_S) for number in range(3)]
    await b.ear.hears("request", "a", count=3)
    replies = [event[5] for event in b.ear.events if event[0] == "request"]
    for number in (2, 0, 1):
        replies[number](b"answer %d" % number)
        assert await asked[number] == b"answer %d" % number


async def test_a_large_request_and_a_large_answer_travel_in_pieces(world: World) -> None:
    a, b = await world.pair(frame_bytes=4096)
    b.ear.answer = lambda method, body, reply: reply(body * 2)
    body = bytes(range(256)) * 2048
    assert await a.transport.request("b", "propose", body, LONG_S) == body * 2


async def test_no_answer_in_time_is_an_unknown_outcome_and_a_late_one_is_dropped(world: World) -> None:
    a, b = await world.pair()
    future = a.transport.request("b", "propose", b"x", 0.05)
    quick = a.transport.request("b", "propose", b"y", LONG_S)
    with pytest.raises(OutcomeUnknown, match="did not answer in time"):
        await future
    await b.ear.hears("request", "a", count=2)
    for event in [event for event in b.ear.events if event[0] == "request"]:
        event[5](b"done")
    assert await quick == b"done"
    assert a.count("dropped_late_answer") == 1


async def test_deadlines_are_kept_in_whatever_order_they_were_given(world: World) -> None:
    a, _ = await world.pair()
    ended: list[int] = []
    futures = []
    for number in (3, 1, 2):
        future = a.transport.request("b", "read", b"", number * 0.05)
        future.add_done_callback(lambda _, number=number: ended.append(number))  # type: ignore[misc]
        futures.append(future)
    results = await asyncio.gather(*futures, return_exceptions=True)
    assert [type(result) for result in results] == [OutcomeUnknown] * 3
    assert ended == [1, 2, 3]


async def test_an_answer_given_twice_counts_once(world: World) -> None:
    a, b = await world.pair()
    future = a.transport.request("b", "read", b"", LONG_S)
    await b.ear.hears("request", "a")
    reply = next(event[5] for event in b.ear.events if event[0] == "request")
    reply(b"one")
    reply(b"two")
    b.send("a", 1)
    await a.ear.until(lambda: bool(a.ear.numbers("b")))
    assert await future == b"one"
    assert a.count("dropped_late_answer") == 1


async def test_a_peer_that_is_not_connected_is_unreachable(world: World) -> None:
    a = await world.start("a")
    for name in ("b", "a", "nobody"):
        with pytest.raises(Unreachable, match="nothing was sent"):
            await a.transport.request(name, "propose", b"x", LONG_S)


async def test_what_was_sent_is_unknown_and_what_waited_is_unreachable_when_the_connection_is_lost(
    world: World,
) -> None:
    a, b = await world.pair()
    sent = a.transport.request("b", "propose", b"sent", LONG_S)
    await b.ear.hears("request", "a")
    world.hold("a", "b")
    filler = bytes(4 * 1024 * 1024)
    fillers = [a.transport.request("b", "propose", filler, LONG_S) for _ in range(8)]
    await asyncio.sleep(0)
    waiting = a.transport.request("b", "propose", b"waiting", LONG_S)
    world.break_off("a", "b")
    world.release("a", "b")
    assert isinstance(await outcome(sent), OutcomeUnknown)
    assert isinstance(await outcome(waiting), Unreachable)
    for future in fillers:
        assert isinstance(await outcome(future), OutcomeUnknown | Unreachable)
    await a.ear.hears("connected", "b", count=2)
    b.ear.answer = echo
    assert await a.transport.request("b", "again", b"", LONG_S) == b"again:"
    assert all(event[3] != b"waiting" for event in b.ear.events if event[0] == "request")


async def test_closing_ends_every_request(world: World) -> None:
    a, b = await world.pair()
    future = a.transport.request("b", "propose", b"x", LONG_S)
    await b.ear.hears("request", "a")
    await world.stop(a)
    assert isinstance(await outcome(future), OutcomeUnknown)
    with pytest.raises(Unreachable):
        await a.transport.request("b", "propose", b"x", LONG_S)


async def test_an_answer_to_an_earlier_incarnation_is_dropped(world: World) -> None:
    a, b = await world.pair()
    future = a.transport.request("b", "propose", b"x", LONG_S)
    await b.ear.hears("request", "a")
    reply = next(event[5] for event in b.ear.events if event[0] == "request")
    await world.stop(a)
    assert isinstance(await outcome(future), OutcomeUnknown)
    await b.ear.hears("disconnected", "a")
    reply(b"nobody is there")
    a = await world.start("a", incarnation=2)
    await b.ear.hears("connected", "a", 2)
    reply(b"somebody else is there")
    assert b.count("dropped_answer") == 2
    fresh = a.transport.request("b", "read", b"", 0.05)
    assert isinstance(await outcome(fresh), Unreachable | OutcomeUnknown)
    assert a.count("dropped_late_answer") == 0


async def test_no_time_left_and_too_large_are_refused_before_anything_is_sent(world: World) -> None:
    a, b = await world.pair(entry_bytes=1024 * 1024, batch_bytes=4096)
    for timeout_s in (0.0, -1.0):
        with pytest.raises(DeadlineExceeded):
            await a.transport.request("b", "propose", b"x", timeout_s)
    with pytest.raises(InvalidRequest):
        await a.transport.request("b", "propose", bytes(5 * 1024 * 1024), LONG_S)
    b.ear.answer = echo
    assert await a.transport.request("b", "propose", b"", LONG_S) == b"propose:"
    assert [event[3] for event in b.ear.events if event[0] == "request"] == [b""]


@pytest.mark.parametrize(
    ("limits", "reason"),
    [
        ({"pending_bytes": 1024 * 1024, "entry_bytes": 65_536}, "pending_bytes"),
        ({"outbox_bytes": 1024 * 1024, "entry_bytes": 65_536}, "outbox_bytes"),
    ],
)
async def test_past_a_bound_the_asker_is_told_at_once(world: World, limits: dict[str, int], reason: str) -> None:
    a, b = await world.pair(**limits)
    b.ear.answer = lambda method, body, reply: reply(b"")
    asked = [a.transport.request("b", "propose", bytes(65_536), LONG_S) for _ in range(20)]
    refused = [future for future in asked if future.done()]
    assert 4 <= len(refused) < 16
    for future in refused:
        assert isinstance(future.exception(), Overloaded)
        assert isinstance(future.exception(), NotCommitted)
        assert reason in str(future.exception())
    assert await asyncio.gather(*[future for future in asked if future not in refused]) == [b""] * (20 - len(refused))
    assert await a.transport.request("b", "propose", bytes(65_536), LONG_S) == b"", "there is room again"


async def test_a_cancelled_request_leaves_nothing_behind(world: World) -> None:
    a, b = await world.pair(pending_bytes=1024 * 1024, entry_bytes=65_536)
    for _ in range(40):
        future = a.transport.request("b", "propose", bytes(65_536), LONG_S)
        await b.ear.until(lambda: bool(requests(b.ear.events)))
        future.cancel()
        requests(b.ear.events)[-1][5](b"late")
        b.ear.events.clear()
        assert b.send("a", 1)
        await a.ear.until(lambda: bool(a.ear.numbers("b")))
        a.ear.events.clear()
    assert a.count("dropped_late_answer") == 40


def requests(events: list[tuple[Any, ...]]) -> list[tuple[Any, ...]]:
    return [event for event in events if event[0] == "request"]
