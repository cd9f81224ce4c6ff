"""Clocks of nodes: rates, pauses, sleep; never backwards, never early."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from multiraft.testing import NodeClock, VirtualLoop, run_virtual
from multiraft.testing.clocks import NodeLoop


def on_clock(story: Callable[[NodeLoop], Coroutine[Any, Any, None]], start_s: float = 500.0) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, VirtualLoop)
        node = NodeLoop(loop, NodeClock(loop, "n", start_s=start_s))  # type: ignore[abstract]
        await story(node)

    run_virtual(main())


def test_a_fast_clock_fires_early_by_true_time_and_its_time_is_continuous() -> None:
    async def story(node: NodeLoop) -> None:
        fired: list[tuple[float, float]] = []
        now = node.virtual
        for delay_s in (2.0, 10.0):
            node.call_later(delay_s, lambda: fired.append((now.now_s, node.time())))
        await asyncio.sleep(1.0)
        before_s = node.time()
        node.clock.rate = 5.0
        assert node.time() == before_s == 501.0
        await asyncio.sleep(10.0)
        assert [true_s for true_s, _ in fired] == pytest.approx([1.2, 2.8])
        assert [node_s for _, node_s in fired] == pytest.approx([502.0, 510.0])
        assert node.time() == pytest.approx(551.0)

    on_clock(story)


def test_what_runs_in_a_node_sleeps_on_its_clock() -> None:
    async def story(node: NodeLoop) -> None:
        node.clock.rate = 0.2

        async def program() -> None:
            before_s = asyncio.get_running_loop().time()
            await asyncio.sleep(1.0)
            assert asyncio.get_running_loop().time() - before_s == pytest.approx(1.0)
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(1.0):
                    await node.create_future()

        await node.create_task(program())
        assert node.virtual.time() == pytest.approx(10.0), "the test itself lives on true time"

    on_clock(story)


def test_a_paused_node_runs_nothing_and_then_everything_in_order() -> None:
    async def story(node: NodeLoop) -> None:
        ran: list[str] = []
        node.call_later(1.0, ran.append, "timer")
        node.clock.pause()
        node.call_soon(ran.append, "called by another")
        await asyncio.sleep(5.0)
        node.call_soon(ran.append, "called later")
        await asyncio.sleep(0)
        assert ran == []
        assert node.time() == 505.0, "its clocks go on"
        node.clock.resume()
        node.call_soon(ran.append, "called after")
        await asyncio.sleep(0)
        assert ran == ["called by another", "timer", "called later", "called after"]

    on_clock(story)


def test_in_a_suspend_timers_stand_still_and_the_clock_that_never_stops_jumps() -> None:
    async def story(node: NodeLoop) -> None:
        fired: list[float] = []
        node.call_later(2.0, lambda: fired.append(node.virtual.now_s))
        await asyncio.sleep(1.0)
        node.clock.suspend(10.0)
        await asyncio.sleep(5.0)
        assert (node.time(), node.clock.boottime()) == (501.0, 506.0)
        await asyncio.sleep(7.0)
        assert fired == [12.0]
        assert (node.time(), node.clock.boottime()) == (503.0, 513.0)

    on_clock(story)


def test_a_sleeping_machine_can_be_woken() -> None:
    async def story(node: NodeLoop) -> None:
        fired: list[float] = []
        node.call_later(2.0, lambda: fired.append(node.virtual.now_s))
        node.clock.suspend(10.0)
        await asyncio.sleep(4.0)
        node.clock.resume()
        assert (node.time(), node.clock.boottime()) == (500.0, 504.0)
        await asyncio.sleep(20.0)
        assert fired == [6.0]
        assert node.clock.boottime() - node.time() == 4.0

    on_clock(story)


def test_a_wall_clock_is_true_unless_it_is_set_wrong() -> None:
    async def story(node: NodeLoop) -> None:
        clock, wall = node.clock, node.clock.clocks().wall
        before_s = wall()
        clock.rate = 5.0
        await asyncio.sleep(10.0)
        assert wall() - before_s == 10.0
        clock.skew_s = -60.0
        assert wall() - before_s == -50.0
        clock.skew_s = 0.0
        clock.suspend(5.0)
        await asyncio.sleep(5.0)
        assert wall() - before_s == 15.0
        assert clock.faults["skew"] == 1

    on_clock(story)


def test_rates_out_of_what_is_simulated_are_refused() -> None:
    async def story(node: NodeLoop) -> None:
        for rate in (0.0, 0.19, 5.1, -1.0):
            with pytest.raises(ValueError, match="rate"):
                node.clock.rate = rate
        assert node.clock.rate == 1.0

    on_clock(story)


def test_faults_are_counted_when_they_happen() -> None:
    async def story(node: NodeLoop) -> None:
        clock = node.clock
        clock.rate = 1.0
        clock.rate = 2.0
        clock.rate = 1.0
        clock.pause()
        clock.pause()
        clock.resume()
        clock.suspend(1.0)
        assert dict(clock.faults) == {"rate": 1, "pause": 1, "suspend": 1}

    on_clock(story)


steps = st.lists(
    st.one_of(
        st.tuples(st.just("rate"), st.floats(0.2, 5.0)),
        st.tuples(st.just("wait"), st.floats(0.0, 100.0)),
        st.tuples(st.just("suspend"), st.floats(0.0, 10.0)),
        st.tuples(st.just("pause"), st.just(0.0)),
        st.tuples(st.just("resume"), st.just(0.0)),
    ),
    max_size=12,
)


@given(steps, st.lists(st.floats(0.0, 200.0), min_size=1, max_size=5), st.floats(0.0, 1e6))
def test_no_clock_goes_back_and_no_timer_is_early(
    deeds: list[tuple[str, float]], delays_s: list[float], start_s: float
) -> None:
    async def story(node: NodeLoop) -> None:
        clock, seen = node.clock, [(node.time(), node.clock.boottime())]
        left = set(range(len(delays_s)))

        def fired(number: int, due_s: float) -> None:
            left.remove(number)
            assert not clock.stopped
            assert node.time() >= due_s
            look()

        def look() -> None:
            now = (node.time(), clock.boottime())
            assert now[0] >= seen[-1][0]
            assert now[1] >= seen[-1][1] - 1e-6
            seen.append(now)

        for number, delay_s in enumerate(delays_s):
            node.call_at(node.time() + delay_s, fired, number, node.time() + delay_s)
        for deed, amount in deeds:
            if deed == "rate":
                clock.rate = amount
            elif deed == "wait":
                await asyncio.sleep(amount)
            elif deed == "suspend":
                clock.suspend(amount)
            else:
                getattr(clock, deed)()
            look()
        clock.resume()
        clock.rate = 1.0
        await asyncio.sleep(1_000.0)
        assert left == set()

    on_clock(story, start_s)
