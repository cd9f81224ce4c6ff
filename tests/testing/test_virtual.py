"""The loop on virtual time: what it does like asyncio's, what it refuses, and that one seed is one run."""

from __future__ import annotations

import asyncio
import logging
import os
import random
import runpy
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from multiraft.testing import Deadlock, MemoryCluster, NotSimulated, VirtualLoop, run_virtual

ONE_RUN = Path(__file__).parent / "one_run.py"


def loop_here() -> VirtualLoop:
    loop = asyncio.get_running_loop()
    assert isinstance(loop, VirtualLoop)
    return loop


# ------------------------------------------------------------------------------------------------- nothing is real


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("run_in_executor", (None, print)),
        ("create_connection", (None, "127.0.0.1", 1)),
        ("create_server", (None, "127.0.0.1", 1)),
        ("create_datagram_endpoint", (None,)),
        ("create_unix_connection", (None,)),
        ("create_unix_server", (None,)),
        ("getaddrinfo", ("127.0.0.1", 1)),
        ("sock_connect", (None, None)),
        ("sock_recv", (None, 1)),
        ("add_reader", (0, print)),
        ("add_writer", (0, print)),
        ("connect_read_pipe", (None, None)),
        ("subprocess_exec", (None, "true")),
        ("subprocess_shell", (None, "true")),
        ("add_signal_handler", (1, print)),
    ],
)
def test_what_leaves_virtual_time_is_refused(name: str, arguments: tuple[Any, ...]) -> None:
    async def main() -> None:
        cluster = MemoryCluster(lambda _: None)
        for loop in (loop_here(), cluster.make("a")._setup.loop):
            with pytest.raises(NotSimulated, match=name):
                getattr(loop, name)(*arguments)

    run_virtual(main())


def test_a_thread_is_refused() -> None:
    async def main() -> None:
        loop, refused = loop_here(), []

        def call() -> None:
            try:
                loop.call_soon_threadsafe(print)
            except NotSimulated as problem:
                refused.append(problem)

        thread = threading.Thread(target=call)
        thread.start()
        thread.join()
        assert len(refused) == 1
        with pytest.raises(NotSimulated):
            await asyncio.to_thread(print)

    run_virtual(main())


def test_a_cluster_uses_no_real_time_thread_socket_or_chance(monkeypatch: pytest.MonkeyPatch) -> None:
    used: list[str] = []
    real = {
        time: (
            "time",
            "time_ns",
            "monotonic",
            "monotonic_ns",
            "perf_counter",
            "perf_counter_ns",
            "sleep",
            "clock_gettime",
        ),
        socket: ("socket", "socketpair", "create_connection", "getaddrinfo"),
        os: ("urandom", "pipe", "fork"),
        random: ("random", "randrange", "choice", "uniform", "getrandbits"),
    }
    run = runpy.run_path(str(ONE_RUN))["trace"]
    logging.disable(logging.CRITICAL)  # a log record is stamped with the real time
    try:
        with monkeypatch.context() as patch:
            for module, names in real.items():
                for name in names:
                    what = f"{module.__name__}.{name}"
                    patch.setattr(module, name, lambda *_, what=what, **__: used.append(what))
            patch.setattr(threading.Thread, "start", lambda _: used.append("a thread"))
            run(1)
            found = list(used)
    finally:
        logging.disable(logging.NOTSET)
    assert found == []


# ------------------------------------------------------------------------------------------------- one seed, one run


def test_a_seed_gives_the_same_bytes_whatever_strings_hash_to() -> None:
    def printed(seed: int, hash_seed: str) -> bytes:
        environment = {**os.environ, "PYTHONHASHSEED": hash_seed}
        done = subprocess.run(
            [sys.executable, str(ONE_RUN), str(seed)], env=environment, capture_output=True, check=True
        )
        return done.stdout

    first = printed(7, "1")
    assert len(first.splitlines()) > 50, "the run must have something to tell"
    assert printed(7, "1") == first
    assert printed(7, "2") == first
    assert printed(8, "1") != first


def test_a_seed_gives_the_same_run_again_in_the_same_process() -> None:
    trace = runpy.run_path(str(ONE_RUN))["trace"]
    first = trace(3)
    trace(4)
    assert trace(3) == first


# ---------------------------------------------------------------------------------------------------- like asyncio's


def test_timers_fire_in_order_and_those_of_one_moment_as_they_were_set() -> None:
    async def main() -> None:
        loop = loop_here()
        fired: list[int] = []
        for number, delay_s in enumerate([0.3, 0.1, 0.2, 0.1, 0.0, 0.1]):
            loop.call_later(delay_s, fired.append, number)
        await asyncio.sleep(1.0)
        assert fired == [4, 1, 3, 5, 2, 0]
        assert loop.time() == 1.0

    run_virtual(main())


def test_cancelled_timers_neither_fire_nor_pile_up() -> None:
    async def main() -> None:
        loop = loop_here()
        fired: list[int] = []
        for number in range(10_000):
            loop.call_later(60.0, fired.append, number).cancel()
            if number % 100 == 0:
                await asyncio.sleep(0.001)
        assert loop.timers() == []
        assert len(loop._heap) < 1_000
        await asyncio.sleep(100.0)
        assert fired == []

    run_virtual(main())


def test_what_a_callback_raises_is_reported_and_the_loop_goes_on() -> None:
    async def main() -> None:
        loop, reported = loop_here(), []
        loop.set_exception_handler(lambda _, context: reported.append(context["exception"]))

        def fail() -> None:
            raise ValueError("in a callback")

        loop.call_soon(fail)
        await asyncio.sleep(0.1)
        assert [str(problem) for problem in reported] == ["in a callback"]

    run_virtual(main())


def test_a_deadlock_names_the_nodes_that_are_stopped() -> None:
    async def main() -> None:
        cluster = MemoryCluster(lambda _: None)
        cluster.clock("b").pause()
        await asyncio.get_running_loop().create_future()

    with pytest.raises(Deadlock, match="stopped: b"):
        run_virtual(main())


def test_tasks_that_are_left_are_cancelled_the_oldest_first_and_named_anew_in_each_loop() -> None:
    def run() -> list[str]:
        ended: list[str] = []

        async def wait() -> None:
            try:
                await asyncio.sleep(1e9)
            finally:
                task = asyncio.current_task()
                ended.append(task.get_name() if task is not None else "")

        async def main() -> None:
            for _ in range(20):
                asyncio.ensure_future(wait())  # noqa: RUF006 - the loop keeps it
            await asyncio.sleep(0)

        run_virtual(main())
        return ended

    assert run() == [f"Task-{number}" for number in range(2, 22)]
    assert run() == [f"Task-{number}" for number in range(2, 22)]
