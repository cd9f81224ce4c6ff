"""A service's handle: the same parameters as the machine's methods, checked here, run elsewhere.

Elsewhere is one machine per shard in this process; everything passes through bytes all the same.
"""

from __future__ import annotations

import asyncio
import typing
from collections.abc import Awaitable, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

import pytest

from multiraft.adapting import adapt
from multiraft.config import Limits
from multiraft.consistency import Consistency
from multiraft.engine.machine import Context, command_failed
from multiraft.errors import CommandFailed, InvalidRequest, NotReady, NotRunning
from multiraft.outcome import Outcome
from multiraft.remote import SHARDS_AT_ONCE, ServiceBinding
from multiraft.service import bind_service
from multiraft.sessions import Numbered
from multiraft.statemachine import BytesStateMachine, StateMachine, command, methods_of, query

CONTEXT = Context(index=7, term=2, group_id=16, time_ms=1_700_000_000_000)


@dataclass(frozen=True)
class Stock:
    count: int
    places: list[str]


class Shop(StateMachine):
    def __init__(self) -> None:
        self.stock: dict[str, Stock] = {}

    @command(key="name")
    def add(self, name: str, count: int = 1, *, place: str = "shelf") -> Stock:
        old = self.stock.get(name, Stock(0, []))
        self.stock[name] = Stock(old.count + count, [*old.places, place])
        return self.stock[name]

    @command(key="name")
    def remove(self, name: str) -> None:
        del self.stock[name]

    @command(key="name", since=2)
    def rename(self, name: str, to: str) -> None:
        self.stock[to] = self.stock.pop(name)

    @query(key="name")
    def find(self, name: str) -> Stock | None:
        return self.stock.get(name)

    @query(key=None)
    def names(self, prefix: str = "") -> list[str]:
        return [name for name in self.stock if name.startswith(prefix)]


class Echo(BytesStateMachine):
    """Answers with what is no result of any query of a Shop."""

    def query(self, query: bytes) -> bytes:
        return b"0"


def encode(method: str, /, *args: Any, **kwargs: Any) -> bytes:
    return methods_of(Shop)[method].encode_call(args, kwargs)[1]


class LocalCaller:
    """Every shard is one Shop in this process; records what it was asked."""

    def __init__(self, shards: int = 1, limits: Limits | None = None) -> None:
        self.machines = {shard_id: adapt(Shop()) for shard_id in range(1, shards + 1)}
        self.limits = limits if limits is not None else Limits()
        self.timeouts: list[float | None] = []
        self.keys: list[bytes] = []
        self.sessions: list[bool | Numbered] = []
        self.chosen: list[tuple[bytes | int | None, Consistency]] = []
        self.running = 0
        self.most_running = 0
        self.all_asked = asyncio.Event()
        self.silent: set[int] = set()

    async def _answer(self, result: bytes, timeout_s: float | None) -> bytes:
        self.timeouts.append(timeout_s)
        return result

    def check_version(self, version: int) -> None:
        raise NotReady(f"nobody knows version {version} yet")

    def propose(
        self, key: bytes, command: bytes, timeout_s: float | None, session: bool | Numbered
    ) -> Awaitable[bytes]:
        self.keys.append(key)
        self.sessions.append(session)
        return self._answer(self.machines[1].apply(command, CONTEXT), timeout_s)

    async def propose_many(
        self, keys: Sequence[bytes], commands: Sequence[bytes], timeout_s: float | None, session: bool
    ) -> list[Outcome]:
        self.keys += keys
        self.sessions.append(session)
        outcomes: list[Outcome] = []
        for one in commands:
            try:
                outcomes.append(self.machines[1].apply(one, CONTEXT))
            except KeyError as problem:
                outcomes.append(command_failed(problem))
        return outcomes

    def read(self, key: bytes, query: bytes, timeout_s: float | None) -> Awaitable[bytes]:
        self.keys.append(key)
        return self._answer(self.machines[1].query(query), timeout_s)

    def read_any(self, query: bytes, timeout_s: float | None) -> Awaitable[bytes]:
        return self._answer(self.machines[1].query(query), timeout_s)

    async def read_as(
        self, where: bytes | int | None, query: bytes, how: Consistency, timeout_s: float | None
    ) -> tuple[bytes, float]:
        self.chosen.append((where, how))
        machine = self.machines[where if type(where) is int else 1]
        return await self._answer(machine.query(query), timeout_s), 12.5

    async def read_shard(self, shard_id: int, query: bytes, timeout_s: float | None) -> bytes:
        self.running += 1
        self.most_running = max(self.most_running, self.running)
        if self.running == len(self.machines):
            self.all_asked.set()
        try:
            await (asyncio.Event().wait() if shard_id in self.silent else asyncio.sleep(0))
            return await self._answer(self.machines[shard_id].query(query), timeout_s)
        finally:
            self.running -= 1

    async def shard_ids(self, timeout_s: float | None) -> Sequence[int]:
        return list(self.machines)


def handle(caller: LocalCaller | None) -> type[Shop]:
    return bind_service(Shop, "shop", ServiceBinding("shop", caller))


async def test_the_handle_calls_with_the_same_parameters() -> None:
    caller = LocalCaller()
    shop = handle(caller)
    assert await shop.add("nail", place="bin") == Stock(1, ["bin"])
    assert await shop.find("nail") == Stock(1, ["bin"])
    assert await shop.names() == ["nail"]
    assert await shop.remove("nail") is None  # type: ignore[func-returns-value]
    assert await shop.find("nail") is None
    assert caller.keys == [b"nail"] * 4
    assert caller.timeouts == [None] * 5


async def test_options_make_a_copy() -> None:
    caller = LocalCaller()
    shop = handle(caller)
    quick = shop.add.with_options(timeout_ms=250)
    await quick("nail")
    await shop.add("nail")
    await shop.find.with_options(timeout_ms=1)("nail")
    await shop.names.with_options(timeout_ms=2)()
    assert caller.timeouts == [0.25, None, 0.001, 0.002]


async def test_many_calls_have_each_its_outcome_and_wrong_ones_go_nowhere() -> None:
    caller = LocalCaller()
    shop = handle(caller)
    outcomes = await shop.add.many([("nail",), ("screw", 2)])
    assert outcomes == [Stock(1, ["shelf"]), Stock(2, ["shelf"])]
    removed, missing = await shop.remove.with_options(session=False).many([("nail",), ("nail",)])
    assert removed is None
    assert isinstance(missing, CommandFailed)
    assert missing.exception == "KeyError"
    assert caller.keys == [b"nail", b"screw", b"nail", b"nail"]
    assert caller.sessions == [True, False]
    wrong: list[Any] = [[("nail",), ("screw", "two")], ["nail"], [["nail"]], [("nail", 1, "bin")]]
    for calls in wrong:
        with pytest.raises(InvalidRequest):
            await shop.add.many(calls)
    numbered = shop.add.with_options(session=Numbered(b"c" * 16, 1, 1))
    with pytest.raises(InvalidRequest, match="one call"):
        await numbered.many([("nail",)])
    with pytest.raises(NotReady):
        await shop.rename.many([("nail", "peg")])
    assert len(caller.keys) == 4


def test_options_that_cannot_be_are_refused() -> None:
    shop = handle(LocalCaller())
    for wrong in (0, -1, 1.5, True):
        with pytest.raises(InvalidRequest, match="timeout_ms"):
            shop.add.with_options(timeout_ms=typing.cast(int, wrong))


async def test_limits_hold_to_the_byte() -> None:
    caller = LocalCaller(limits=Limits(key_bytes=8, entry_bytes=len(encode("add", "12345678"))))
    shop = handle(caller)
    await shop.add("12345678")
    with pytest.raises(InvalidRequest, match="parameter 'name': a key of 9 bytes is longer than key_bytes = 8"):
        await shop.add("123456789")
    with pytest.raises(InvalidRequest, match="more than entry_bytes"):
        await shop.add("12345678", place="shelf+")
    with pytest.raises(InvalidRequest, match="more than entry_bytes"):
        await shop.names("x" * 100)
    assert caller.keys == [b"12345678"]


async def test_queries_choose_how_they_are_answered() -> None:
    caller = LocalCaller()
    shop = handle(caller)
    await shop.add("nail")
    stale = shop.find.with_options(stale_ms=500)
    assert await stale("nail") == Stock(1, ["shelf"])
    assert await stale.with_options(timeout_ms=250).aged("nail") == (Stock(1, ["shelf"]), 12.5)
    assert await shop.find.with_options(lease=True)("nail") == Stock(1, ["shelf"])
    assert await shop.find.aged("nail") == (Stock(1, ["shelf"]), 12.5)
    assert await shop.names.with_options(local=True)() == ["nail"]
    assert await shop.names.aged() == (["nail"], 12.5)
    assert caller.chosen == [
        (b"nail", Consistency(stale_ms=500)),
        (b"nail", Consistency(stale_ms=500)),
        (b"nail", Consistency(lease=True)),
        (b"nail", Consistency()),
        (None, Consistency(local=True)),
        (None, Consistency()),
    ]
    assert caller.timeouts == [None, None, 0.25, None, None, None, None]


async def test_each_shard_is_asked_in_the_way_chosen() -> None:
    caller = LocalCaller(shards=2)
    found = [pair async for pair in handle(caller).names.with_options(stale_ms=0).on_each_shard()]
    assert found == [(1, []), (2, [])]
    assert caller.chosen == [(1, Consistency(stale_ms=0)), (2, Consistency(stale_ms=0))]


def test_options_that_make_no_sense_are_refused_at_once() -> None:
    shop = handle(LocalCaller())
    with pytest.raises(InvalidRequest, match="stale_ms = -1"):
        shop.find.with_options(stale_ms=-1)
    with pytest.raises(InvalidRequest, match="lease: only the leader has one"):
        shop.names.with_options(lease=True, stale_ms=500)


async def test_calls_need_a_running_node() -> None:
    binding = ServiceBinding("shop")
    shop = bind_service(Shop, "shop", binding)
    with pytest.raises(NotRunning, match="service 'shop': its node is not running"):
        await shop.add("nail")
    with pytest.raises(NotRunning):
        await anext(aiter(shop.names.on_each_shard()))
    with pytest.raises(NotRunning, match=r"Shop.add was called on the class itself"):
        await Shop.add("nail")
    binding.caller = LocalCaller()
    assert (await shop.add("nail")).count == 1
    binding.caller = None
    with pytest.raises(NotRunning):
        await shop.find("nail")


async def test_each_shard_is_asked_and_named_in_order() -> None:
    caller = LocalCaller(shards=SHARDS_AT_ONCE + 4)
    for shard_id, machine in caller.machines.items():
        machine.apply(encode("add", f"nail{shard_id}"), CONTEXT)
    found = [pair async for pair in handle(caller).names.on_each_shard("nail")]
    assert found == [(shard_id, [f"nail{shard_id}"]) for shard_id in caller.machines]
    assert 1 < caller.most_running <= SHARDS_AT_ONCE


async def test_one_shard_is_asked_by_its_id() -> None:
    caller = LocalCaller(shards=3)
    caller.machines[2].apply(encode("add", "nail2"), CONTEXT)
    names = handle(caller).names
    assert [await names.on_shard(shard_id, "nail") for shard_id in (1, 2)] == [[], ["nail2"]]
    assert await names.with_options(stale_ms=500).on_shard(2) == ["nail2"]
    assert caller.chosen == [(2, Consistency(stale_ms=500))]
    with pytest.raises(InvalidRequest, match="prefix"):
        await names.on_shard(1, 7)  # type: ignore[arg-type]


async def test_leaving_the_shards_early_ends_what_was_asked_ahead() -> None:
    caller = LocalCaller(shards=4)
    caller.silent = {2, 3, 4}
    async with aclosing(handle(caller).names.on_each_shard()) as shards:
        async for shard_id, _ in shards:
            assert shard_id == 1
            assert caller.running == 3
            break
    assert caller.running == 0


async def test_a_shard_that_fails_ends_the_rest() -> None:
    caller = LocalCaller(shards=4)
    caller.machines[2] = adapt(Echo())
    caller.silent = {3, 4}
    with pytest.raises(CommandFailed, match=r"InvalidResult: Shop.names: .* expected list, got int 48"):
        _ = [shard_id async for shard_id, _ in handle(caller).names.on_each_shard()]
    assert caller.running == 0


async def test_cancelling_ends_all_that_was_asked() -> None:
    caller = LocalCaller(shards=4)
    caller.silent = {1, 2, 3, 4}
    shards = handle(caller).names.on_each_shard()
    first = asyncio.ensure_future(anext(aiter(shards)))
    await caller.all_asked.wait()
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    assert caller.running == 0


def test_a_handle_is_no_class_and_says_what_it_has() -> None:
    shop = handle(None)
    with pytest.raises(TypeError, match=r"makes no machine; write Shop\(\.\.\.\)"):
        shop()
    with pytest.raises(AttributeError, match=r"no command or query 'ad'.*add"):
        _ = shop.ad  # type: ignore[attr-defined]
    assert repr(shop) == "<service 'shop' of Shop>"
    assert repr(shop.add) == "<command Shop.add of service 'shop'>"
    with pytest.raises(TypeError, match="must be a class that derives from StateMachine"):
        bind_service(typing.cast(Any, Echo), "echo", ServiceBinding("echo"))


async def test_a_command_of_a_later_version_asks_whether_all_know_it_and_others_do_not() -> None:
    caller = LocalCaller()
    shop = handle(caller)
    await shop.add("nail", place="bin")
    with pytest.raises(NotReady, match="nobody knows version 2 yet"):
        await shop.rename("nail", "screw")
    assert caller.keys == [b"nail"]
    assert await shop.find("nail") is not None
