"""The watchdog names what holds the loop, once, while it does; and ends with the last node."""

from __future__ import annotations

import socket
import threading
import time
from pathlib import Path

import pytest

from multiraft import Limits, Node, NodeConfig, StateMachine, command, query
from multiraft.engine.doing import Doing
from multiraft.watchdog import Watchdog, Watched, look

SLOW_S = 0.06
THREAD = "multiraft watchdog"


def told(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name == "multiraft.watchdog"]


def test_a_call_that_takes_too_long_is_named_once_with_its_place(caplog: pytest.LogCaptureFixture) -> None:
    doing = Doing()
    one = Watched(doing, threading.get_ident(), SLOW_S)
    coming = doing.ask(16, [b"quick", b"how many?", b"quick"])
    assert [next(coming), next(coming)] == [b"quick", b"how many?"]
    for at_s in (10.0, 10.03, 10.059):
        look(one, at_s)
    assert told(caplog) == []
    for at_s in (10.061, 10.1, 20.0):
        look(one, at_s)
    (text,) = told(caplog)
    assert text.startswith("group 16: query b'how many?' holds the loop for 61 ms already")
    assert "in test_a_call_that_takes_too_long_is_named_once_with_its_place" in text
    next(doing.ask(16, [b"how many?"]))
    look(one, 20.1)
    look(one, 20.2)
    assert len(told(caplog)) == 2


def test_many_calls_one_after_the_other_hold_nothing(caplog: pytest.LogCaptureFixture) -> None:
    doing = Doing()
    one = Watched(doing, threading.get_ident(), SLOW_S)
    for number in range(10):
        next(doing.ask(16, [b"quick"]))
        look(one, 10.0 + number * 0.05)
    for number, _ in enumerate(doing.ask(16, [b"quick"] * 10)):
        look(one, 11.0 + number * 0.05)
    doing.asked = None
    look(one, 12.0)
    look(one, 13.0)
    assert told(caplog) == []


def test_what_has_ended_while_it_was_looked_at_is_no_matter() -> None:
    assert Doing().text() == "something that has ended"


def threads() -> list[str]:
    return [thread.name for thread in threading.enumerate()]


def test_the_thread_ends_with_the_last_that_is_watched() -> None:
    watchdog, one, other = Watchdog(), Doing(), Doing()
    watchdog.watch(one, SLOW_S)
    watchdog.watch(other, 10.0)
    assert threads().count(THREAD) == 1
    watchdog.forget(other)
    watchdog.forget(other)
    assert THREAD in threads()
    watchdog.forget(one)
    assert THREAD not in threads()
    watchdog.watch(one, SLOW_S)
    assert THREAD in threads()
    watchdog.forget(one)


def hold(seconds: float) -> None:
    until_s = time.monotonic() + seconds
    while time.monotonic() < until_s:
        pass


class Brooding(StateMachine):
    @command(key="name")
    def brood(self, name: str, seconds: float) -> int:
        hold(seconds)
        return 1

    @query(key="name")
    def ponder(self, name: str, seconds: float) -> int:
        hold(seconds)
        return 2


async def test_a_real_node_names_a_slow_command_and_a_slow_query(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as found:
        address = f"127.0.0.1:{found.getsockname()[1]}"
    limits = Limits(slow_command_ms=50)
    node = Node(NodeConfig("a", str(tmp_path / "a"), address, {"a": address}, limits=limits))
    service = node.service("brooding", Brooding, initial_shards=1)
    async with node:
        await node.ready("brooding")
        assert THREAD in threads()
        assert await service.brood("it", 0.4) == 1
        assert await service.ponder("it", 0.4) == 2
        why = node.why(16)
    slow, pondering = told(caplog)
    assert slow.startswith("group 16: command brood('it', 0.4) at index ")
    assert "in brood" in slow
    assert pondering.startswith("group 16: query ")
    assert "in ponder" in pondering
    assert why["slow_commands"] == 1
    assert why["slowest"][0]["command"] == "command brood('it', 0.4)"
    assert any("command brood('it', 0.4) took 4" in line for line in why["slow"])
    assert THREAD not in threads()
