"""The memory network: what its owner can do to it, and that a run is a function of its seed.

Rules of this file: everything runs on a loop whose clock jumps to the next timer, so hours pass at once.
"""

from __future__ import annotations

import asyncio
import random
import selectors
from collections.abc import Coroutine
from typing import TYPE_CHECKING, Any, TypeVar

import pytest

from multiraft.errors import OutcomeUnknown, StartError
from multiraft.transport import MemoryNetwork, MemoryTransport
from multiraft.transport.peers import BACKOFF_MAX_S, BACKOFF_MIN_S

if TYPE_CHECKING:
    from tests.transport.conftest import MemoryWorld

T = TypeVar("T")


class VirtualLoop(asyncio.SelectorEventLoop):
    """A loop whose time is how long it would have waited."""

    def __init__(self) -> None:
        self.now_s = 0.0
        super().__init__(Jumping(self))

    def time(self) -> float:
        return self.now_s


class Jumping(selectors.SelectSelector):
    """A selector that, instead of waiting, moves its loop's clock."""

    def __init__(self, loop: VirtualLoop) -> None:
        super().__init__()
        self._loop = loop

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ready = super().select(0)
        if not ready:
            assert timeout is not None, "everything waits for ever"
            self._loop.now_s += max(timeout, 0.0)
        return ready


def run(work: Coroutine[Any, Any, T]) -> T:
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(work)


def test_dialling_begins_at_once_and_slows_down_to_every_other_second(make_memory_world: Any) -> None:
    async def story() -> None:
        world: MemoryWorld = make_memory_world()
        a = await world.start("a")
        others = len(world.members) - 1
        await asyncio.sleep(BACKOFF_MIN_S / 4)
        assert a.count("dial_failed") == others
        await asyncio.sleep(3 * BACKOFF_MIN_S)
        assert a.count("dial_failed") >= 3 * others
        await asyncio.sleep(60)
        before = a.count("dial_failed")
        await asyncio.sleep(7200)
        dialled = (a.count("dial_failed") - before) / others
        assert 7200 / BACKOFF_MAX_S <= dialled <= 7200 / (BACKOFF_MAX_S / 2)
        b = await world.start("b")
        await b.ear.hears("connected", "a")
        before_s = asyncio.get_running_loop().time()
        await a.ear.hears("connected", "b")
        assert asyncio.get_running_loop().time() == before_s, "who has just been heard is dialled at once"
        world.break_off("a", "b")
        await a.ear.hears("connected", "b", count=2)
        assert asyncio.get_running_loop().time() - before_s <= BACKOFF_MIN_S, "after a success, waits are short again"
        await world.close()

    run(story())


def test_one_seed_one_run(make_memory_world: Any) -> None:
    async def story(seed: int) -> list[tuple[Any, ...]]:
        world: MemoryWorld = make_memory_world()
        world.listens = {name: f"127.0.0.1:{port}" for port, name in enumerate("abc", 1)}
        chance, loop = random.Random(seed), asyncio.get_running_loop()
        log: list[tuple[Any, ...]] = []
        peers = {name: await world.start(name) for name in "abc"}
        for one in "abc":
            for other in "abc":
                world.network.delay(one, other, lambda: chance.random() / 10)
        for step in range(300):
            one, other = chance.sample("abc", 2)
            match chance.randrange(8):
                case 0:
                    world.network.cut(one, other)
                case 1:
                    world.network.stall(one, other)
                case 2 | 3:
                    world.network.heal()
                case _:
                    peers[one].send(other, step, urgent=chance.random() < 0.3)
            await asyncio.sleep(chance.random())
        for name, peer in peers.items():
            log += [(name, event[0], event[1], getattr(event[-1], "commit", None)) for event in peer.ear.events]
            log.append((name, *sorted(peer.transport.counters().items())))
        log.append((loop.time(),))
        await world.close()
        return log

    assert run(story(1)) == run(story(1))
    assert run(story(1)) != run(story(2))


def test_a_cut_is_noticed_loses_what_is_on_the_way_and_lasts_until_healed(make_memory_world: Any) -> None:
    async def story() -> None:
        world: MemoryWorld = make_memory_world()
        a, b = await world.pair()
        world.network.delay("a", "b", 1.0)
        a.send("b", 1)
        await asyncio.sleep(0.5)
        world.network.cut("a", "b")
        await a.ear.hears("disconnected", "b")
        assert b.send("a", 7), "the other direction goes on"
        await a.ear.until(lambda: a.ear.numbers("b") == [7])
        await asyncio.sleep(60)
        assert a.ear.events[-1][0] == "message", "no connection while it is cut"
        world.network.heal("a", "b")
        await a.ear.hears("connected", "b", count=2)
        a.send("b", 2)
        await b.ear.until(lambda: b.ear.numbers("a") == [2])
        await world.close()

    run(story())


def test_a_stall_is_not_noticed_and_delivers_late_and_in_order(make_memory_world: Any) -> None:
    async def story() -> None:
        world: MemoryWorld = make_memory_world()
        a, b = await world.pair()
        a.send("b", 1)
        await asyncio.sleep(0)
        world.network.stall("a", "b")
        a.send("b", 2)
        b.send("a", 3)
        await asyncio.sleep(60)
        a.send("b", 4)
        assert b.ear.numbers("a") in ([], [1])
        assert a.ear.numbers("b") == [3]
        world.network.heal()
        await b.ear.until(lambda: b.ear.numbers("a") == [1, 2, 4])
        assert [event[0] for event in a.ear.events].count("connected") == 1
        await world.close()

    run(story())


def test_delays_keep_the_order_of_a_connection(make_memory_world: Any) -> None:
    async def story() -> None:
        world: MemoryWorld = make_memory_world()
        a, b = await world.pair()
        loop, delays = asyncio.get_running_loop(), iter([5.0, 1.0, 0.0, 3.0, *[0.0] * 100])
        world.network.delay("a", "b", lambda: next(delays))
        sent_s = loop.time()
        arrivals: dict[int, float] = {}
        for number in range(6):
            a.send("b", number)
            await asyncio.sleep(0.1)
        for number in range(6):
            await b.ear.until(lambda number=number: len(b.ear.numbers("a")) > number)  # type: ignore[misc]
            arrivals[number] = loop.time() - sent_s
        assert b.ear.numbers("a") == list(range(6))
        assert all(5.0 <= arrived <= 5.01 for arrived in arrivals.values())
        await world.close()

    run(story())


def test_a_delay_is_as_long_as_it_says(make_memory_world: Any) -> None:
    async def story() -> None:
        world: MemoryWorld = make_memory_world()
        a, b = await world.pair()
        loop = asyncio.get_running_loop()
        world.network.delay("a", "b", 0.25)
        for number in (1, 2):
            sent_s = loop.time()
            a.send("b", number)
            await b.ear.until(lambda number=number: number in b.ear.numbers("a"))  # type: ignore[misc]
            assert loop.time() - sent_s == pytest.approx(0.25)
        await world.close()

    run(story())


def test_bulk_sends_fail_as_told_and_urgent_ones_pass(make_memory_world: Any) -> None:
    async def story() -> None:
        world: MemoryWorld = make_memory_world()
        a, b = await world.pair()
        world.network.drop_next_bulk("a", "b", 2)
        assert [a.send("b", 1), a.send("b", 2, urgent=True), a.send("b", 3), a.send("b", 4)] == [
            False,
            True,
            False,
            True,
        ]
        await b.ear.until(lambda: b.ear.numbers("a") == [2, 4])
        assert b.send("a", 5)
        assert a.count("dropped_outbox_full") == 2
        await world.close()

    run(story())


def test_a_crash_is_silent_inside_and_seen_outside(make_memory_world: Any) -> None:
    async def story() -> None:
        world: MemoryWorld = make_memory_world()
        a, b = await world.pair()
        asked = a.transport.request("b", "propose", b"", 60.0)
        await b.ear.hears("request", "a")
        b.send("a", 1)
        world.network.crash("b")
        b.ear.open = False
        await a.ear.hears("disconnected", "b")
        assert isinstance(asked.exception(), OutcomeUnknown)
        assert a.ear.numbers("b") == [], "what waited died with it"
        b = await world.start("b", incarnation=2)
        await a.ear.hears("connected", "b", 2)
        assert b.send("a", 2) or not b.ear.events
        await world.close()

    run(story())


def test_a_hello_that_does_not_get_through_is_given_up_and_tried_again(make_memory_world: Any) -> None:
    async def story() -> None:
        world: MemoryWorld = make_memory_world()
        world.network.stall("a", "b")
        a, b = await world.start("a"), await world.start("b")
        await asyncio.sleep(30)
        assert {event[0] for event in a.ear.events} == {"heard"}, "b is heard; the answer does not get back to it"
        assert b.ear.events == []
        world.network.heal()
        await a.ear.hears("connected", "b")
        await b.ear.hears("connected", "a")
        await world.close()

    run(story())


def test_each_request_ends_at_its_own_deadline(make_memory_world: Any) -> None:
    async def story() -> dict[float, float]:
        world: MemoryWorld = make_memory_world()
        a, _ = await world.pair()
        loop = asyncio.get_running_loop()
        asked_s = loop.time()
        ended_s: dict[float, float] = {}
        futures = []
        for timeout_s in (30.0, 10.0, 20.0, 5.0, 25.0):
            future = a.transport.request("b", "read", b"", timeout_s)
            future.add_done_callback(lambda _, of=timeout_s: ended_s.setdefault(of, loop.time() - asked_s))  # type: ignore[misc]
            futures.append(future)
        await asyncio.gather(*futures, return_exceptions=True)
        await world.close()
        return ended_s

    for timeout_s, ended_s in run(story()).items():
        assert ended_s == pytest.approx(timeout_s)


def test_an_address_has_one_owner_and_is_free_again_after_a_stop(make_memory_world: Any) -> None:
    async def story() -> None:
        world: MemoryWorld = make_memory_world()
        a = await world.start("a")
        with pytest.raises(StartError):
            await world.start("a")
        await world.stop(a)
        await world.start("a", incarnation=2)
        await world.close()

    run(story())


def test_nothing_stays_behind_in_the_network(make_memory_world: Any) -> None:
    async def story() -> None:
        world: MemoryWorld = make_memory_world()
        a, b = await world.pair()
        for _ in range(20):
            world.break_off("a", "b")
            await asyncio.sleep(5)
        network: MemoryNetwork = world.network
        assert isinstance(a.transport, MemoryTransport)
        assert len(network.wires_of(a.transport)) == 2
        assert isinstance(b.transport, MemoryTransport)
        await world.close()
        assert network.wires_of(a.transport) == network.wires_of(b.transport) == []

    run(story())
