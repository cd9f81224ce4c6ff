"""The RESP server over three real nodes in this process: order, pipelines, transactions, limits, and its end."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from examples.kv.machine import KV, DiskKV
from examples.kv.memory import MemoryKV
from examples.kv.resp import connection as connection_module
from examples.kv.resp.parser import REQUEST_BYTES
from examples.kv.resp.scanning import CURSORS
from examples.kv.resp.server import RespServer
from multiraft.errors import CommandFailed, InvalidRequest, NotReady, OutcomeUnknown, ReplyForgotten
from multiraft.node import Node
from tests.examples.kv_nodes import three_nodes
from tests.examples.resp_client import Talk

OK = ("+", "OK")


class Served:
    """A node's RESP server.

    calls  of each command and query of a shard that the store was asked for: how many calls it made
    """

    def __init__(self, node: Node, store: type[KV], **options: Any) -> None:
        self.server = RespServer(node, store, **options)
        self.store = store
        self.address = ""
        self.calls: list[tuple[str, int]] = []

    async def start(self) -> Served:
        listener = socket.create_server(("127.0.0.1", 0))
        listener.setblocking(False)
        self.address = f"127.0.0.1:{listener.getsockname()[1]}"
        await self.server.start(listener)
        ask = self.server.gateway._ask

        async def noted(batch: list[Any]) -> list[Any]:
            kind = "run" if batch[0].write else "look"
            self.calls.append((kind, sum(len(piece.calls) for piece in batch)))
            return await ask(batch)

        self.server.gateway._ask = noted  # type: ignore[method-assign]
        return self

    async def talk(self) -> Talk:
        return await Talk.to(self.address)


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not holds():  # noqa: ASYNC110 - the server tells nobody
            await asyncio.sleep(0.001)


@pytest.fixture
async def served(tmp_path: Path) -> AsyncIterator[Served]:
    async with three_nodes(tmp_path, DiskKV) as stored:
        server = await Served(*stored[0]).start()
        try:
            yield server
        finally:
            await server.server.close()


async def test_a_pipeline_is_answered_in_order_and_sees_its_own_writes(served: Served) -> None:
    async with await served.talk() as talk:
        requests: list[list[str | bytes]] = []
        expected: list[Any] = []
        for number in range(300):
            key = f"k{number % 7}"
            requests += [["SET", key, str(number)], ["GET", key], ["INCR", key], ["PING"]]
            expected += [OK, ("$", b"%d" % number), (":", number + 1), ("+", "PONG")]
        assert await talk.ask_all(*requests) == expected


async def test_a_read_before_a_write_does_not_see_it(served: Served) -> None:
    async with await served.talk() as talk:
        await talk.ask("SET", "k", "0")
        for number in range(1, 40):
            replies = await talk.ask_all(["GET", "k"], ["SET", "k", str(number)])
            assert replies == [("$", b"%d" % (number - 1)), OK]


async def test_the_pipelines_of_one_turn_become_one_command_a_shard(served: Served) -> None:
    talks = [await served.talk() for _ in range(5)]
    for talk in talks:
        await talk.ask("PING")
    served.calls.clear()
    for talk in talks:
        talk.send(*[["INCR", "n"]] * 20)
    sums = [await talk.reply() for talk in talks for _ in range(20)]
    assert sorted(sums) == [(":", number) for number in range(1, 101)]
    assert sum(count for _, count in served.calls) == 100
    assert len(served.calls) <= 5  # fewer, where several came in one turn; never one for each request
    served.calls.clear()
    await talks[0].ask_all(*[["GET", "n"]] * 50)
    assert served.calls == [("look", 50)]
    for talk in talks:
        await talk.__aexit__()


async def test_several_keys_on_several_shards(served: Served) -> None:
    async with await served.talk() as talk:
        await talk.ask("PING")
        keys = [f"key{number}" for number in range(40)]
        assert len({served.server.shard_of(key.encode()).shard_id for key in keys}) > 1
        assert await talk.ask("MSET", *[word for key in keys for word in (key, key)]) == OK
        assert await talk.ask("MGET", *keys, "none") == ("*", [*[("$", key.encode()) for key in keys], ("$", None)])
        assert await talk.ask("EXISTS", *keys, "none", keys[0]) == (":", 41)
        assert await talk.ask("DBSIZE") == (":", 40)
        assert await talk.ask("DEL", *keys, "none") == (":", 40)
        assert await talk.ask("DBSIZE") == (":", 0)


async def test_a_transaction_over_several_shards_is_refused_clearly(served: Served) -> None:
    async with await served.talk() as talk:
        assert await talk.ask("MULTI") == OK
        assert await talk.ask("SET", "{one}a", "1") == ("+", "QUEUED")
        kind, text = await talk.ask("SET", _elsewhere(served, b"{one}a"), "1")
        assert (kind, text.split()[0]) == ("-", "CROSSSLOT")
        assert "hash tag" in text
        kind, text = await talk.ask("EXEC")
        assert (kind, text.split()[0]) == ("-", "EXECABORT")
        assert await talk.ask("GET", "{one}a") == ("$", None)
        # What is watched is part of it, and so are all keys of one command.
        kind, text = await talk.ask("WATCH", "{one}a", _elsewhere(served, b"{one}a"))
        assert text.startswith("CROSSSLOT")
        assert await talk.ask("WATCH", "{one}a") == OK
        await talk.ask("MULTI")
        assert (await talk.ask("GET", _elsewhere(served, b"{one}a")))[1].startswith("CROSSSLOT")
        assert (await talk.ask("SCAN", "0"))[1].startswith("ERR SCAN concerns all shards")
        assert await talk.ask("DISCARD") == OK


def _elsewhere(served: Served, key: bytes) -> str:
    """Return a key of another shard."""
    shard = served.server.shard_of(key)
    return next(name for name in map(str, range(1_000)) if served.server.shard_of(name.encode()) is not shard)


async def test_a_transaction_is_made_at_once(served: Served) -> None:
    """Two clients move an amount to and fro; a third one, which reads both at once, always sees the same sum."""
    async with await served.talk() as one, await served.talk() as other, await served.talk() as reader:
        await reader.ask("MSET", "{acc}a", "50", "{acc}b", "50")
        for amount in range(1, 30):
            for talk, sign in ((one, 1), (other, -1)):
                talk.send(
                    ["MULTI"],
                    ["INCRBY", "{acc}a", str(sign * amount)],
                    ["DECRBY", "{acc}b", str(sign * amount)],
                    ["EXEC"],
                )
            _, pair = await reader.ask("MGET", "{acc}a", "{acc}b")
            assert sum(int(value) for _, value in pair) == 100
            for talk in (one, other):
                assert [(await talk.reply())[0] for _ in range(4)] == ["+", "+", "+", "*"]


async def test_a_watched_increment_loses_nothing(served: Served) -> None:
    async def add(talk: Talk, times: int) -> None:
        while times:
            await talk.ask("WATCH", "n")
            _, value = await talk.ask("GET", "n")
            replies = await talk.ask_all(["MULTI"], ["SET", "n", str(int(value or 0) + 1)], ["EXEC"])
            times -= replies[2][1] is not None

    async with await served.talk() as one, await served.talk() as other:
        await asyncio.gather(add(one, 15), add(other, 15))
        assert await one.ask("GET", "n") == ("$", b"30")


async def test_a_scan_gives_each_key_once_whatever_is_written_meanwhile(served: Served) -> None:
    async with await served.talk() as talk:
        stay = {f"stay{number}".encode() for number in range(60)}
        await talk.ask("MSET", *[word for key in stay for word in (key, b"")])
        found: list[bytes] = []
        cursor = b"0"
        while True:
            _, (place, keys) = await talk.ask("SCAN", cursor, "COUNT", "7")
            found += [key for _, key in keys[1]]
            await talk.ask("SET", f"new{len(found)}", "")
            cursor = place[1]
            if cursor == b"0":
                break
        assert len(found) == len(set(found))
        assert stay <= set(found)


async def test_cursors_are_bounded_and_one_that_is_not_known_is_refused(served: Served) -> None:
    async with await served.talk() as talk:
        await talk.ask("MSET", *[word for number in range(30) for word in (f"k{number}", "")])
        _, ((_, first), _) = await talk.ask("SCAN", "0", "COUNT", "1")
        assert (await talk.ask("SCAN", first, "COUNT", "1"))[0] == "*"
        for _ in range(CURSORS):
            served.server.cursors.keep((1, b"x"))
        kind, text = await talk.ask("SCAN", first)
        assert (kind, text) == ("-", "ERR invalid cursor: it is of another node, or too old; begin anew at 0")


async def test_keys_and_values_that_the_store_does_not_take(served: Served) -> None:
    async with await served.talk() as talk:
        for key in (b"", b"k" * 4_097, b"\xff"):
            for request in ([b"GET", key], [b"SET", key, b""], [b"MGET", b"a", key], [b"INCR", key]):
                kind, text = await talk.ask(*request)
                assert (kind, text[:9]) == ("-", "ERR a key"), request
        assert await talk.ask("SET", "k", b"v" * 8_000_000) == OK
        assert (await talk.ask("SET", "k", b"v" * 8_000_001))[1].startswith("ERR a value has at most")
        assert await talk.ask("STRLEN", "k") == (":", 8_000_000)
        assert (await talk.ask("APPEND", "k", "v"))[1].startswith("ERR a value has at most")


async def test_many_large_values_are_read_in_parts(served: Served) -> None:
    async with await served.talk() as talk:
        value = b"v" * 300_000
        await talk.ask("SET", "k", value)
        await talk.ask("SET", "other", "o")
        replies = await talk.ask_all(*[["GET", "k"], ["GET", "other"]] * 10, ["MGET", "k", "k", "k", "other"])
        assert replies[:20] == [("$", value), ("$", b"o")] * 10
        assert replies[20] == ("*", [("$", value)] * 3 + [("$", b"o")])
        assert all(count for _, count in served.calls)


async def test_who_does_not_read_is_not_served_on_and_holds_nobody_up(served: Served) -> None:
    async with await served.talk() as slow, await served.talk() as other:
        await other.ask("SET", "k", b"v" * 500_000)
        served.calls.clear()
        slow.send(*[["GET", "k"]] * 400)
        before = -1
        while before != len(served.calls):  # until it comes to a stop
            before = len(served.calls)
            for _ in range(20):
                await other.ask("GET", "small")
            served.calls[:] = [call for call in served.calls if call != ("look", 1)]
        assert len(served.calls) < 100  # 200 MB would need 200 and more
        for _ in range(400):
            assert (await slow.reply())[0] == "$"


async def test_what_is_sent_ahead_is_bounded(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """While a chunk is under way, no more than so much is read of what its client sends."""
    monkeypatch.setattr(connection_module, "INPUT_BYTES", 10_000)
    gate = asyncio.Event()
    ask = served.server.gateway._ask

    async def held(batch: list[Any]) -> list[Any]:
        await gate.wait()
        return await ask(batch)

    served.server.gateway._ask = held  # type: ignore[method-assign]
    async with await served.talk() as talk:
        talk.send(["SET", "k", "v"])
        requests: list[list[str | bytes]] = [["SET", "k", b"v" * 1_000]] * 30_000
        talk.send(*requests)
        (connection,) = served.server._connections
        await until(lambda: not connection._reading)
        assert connection._parser.held_bytes < 1_000_000
        gate.set()
        for _ in range(30_001):
            assert await talk.reply() == OK


async def test_what_is_no_request_ends_the_connection_behind_the_answers(served: Served) -> None:
    async with await served.talk() as talk:
        talk.send(["SET", "k", "v"], ["GET", "k"])
        talk.writer.write(b"*1\r\n$%d\r\n" % (REQUEST_BYTES + 1))
        assert [await talk.reply() for _ in range(2)] == [OK, ("$", b"v")]
        assert await talk.reply() == ("-", "ERR Protocol error: invalid bulk length")
        assert await talk.ended()


async def test_quit_and_a_half_closed_connection_get_their_answers(served: Served) -> None:
    async with await served.talk() as talk:
        talk.send(["SET", "k", "v"], ["QUIT"], ["SET", "k", "w"])
        assert [await talk.reply() for _ in range(2)] == [OK, OK]
        assert await talk.ended()
    async with await served.talk() as talk:
        talk.send(["GET", "k"], ["INCR", "n"])
        talk.writer.write_eof()
        assert [await talk.reply() for _ in range(2)] == [("$", b"v"), (":", 1)]
        assert await talk.ended()


async def test_the_end_answers_what_has_come(served: Served) -> None:
    async with await served.talk() as talk, await served.talk() as idle:
        await idle.ask("PING")
        await talk.ask("PING")
        talk.send(*[["INCR", "n"]] * 10)
        (busy, _) = served.server._connections
        await until(lambda: busy._chunk is not None)
        await served.server.close()
        assert [await talk.reply() for _ in range(10)] == [(":", number) for number in range(1, 11)]
        assert await talk.ended()
        assert await idle.ended()


@pytest.mark.parametrize(
    ("problem", "write", "read"),
    [
        (NotReady("no leader"), "TRYAGAIN no leader", "TRYAGAIN no leader"),
        (OutcomeUnknown("lost"), "UNCERTAIN lost", "UNCERTAIN lost"),
        (ReplyForgotten("long ago"), "UNCERTAIN long ago", "UNCERTAIN long ago"),
        (InvalidRequest("too large"), "ERR too large", "ERR too large"),
        (CommandFailed("ValueError", "bad"), "ERR ValueError: bad", "ERR ValueError: bad"),
    ],
)
async def test_errors_say_what_became_of_the_command(served: Served, problem: Exception, write: str, read: str) -> None:
    async def fails(batch: list[Any]) -> list[Any]:
        raise problem

    ask = served.server.gateway._ask
    async with await served.talk() as talk:
        served.server.gateway._ask = fails  # type: ignore[method-assign]
        assert await talk.ask_all(["SET", "k", "v"], ["PING"]) == [("-", write), ("+", "PONG")]
        assert await talk.ask("GET", "k") == ("-", read)
        assert await talk.ask("MGET", "k", "l") == ("-", read)
        # One shard of several: then it is not certain any more that nothing was done.
        one = served.server.shard_of(b"a").shard_id

        async def fails_once(batch: list[Any]) -> list[Any]:
            return await (fails if batch[0].shard.shard_id == one else ask)(batch)

        served.server.gateway._ask = fails_once  # type: ignore[method-assign]
        kind, text = await talk.ask("MSET", "a", "1", _elsewhere(served, b"a"), "2")
        assert (kind, text.split()[0]) == ("-", "UNCERTAIN")
        assert write in text


async def test_a_password_and_the_number_of_clients(tmp_path: Path) -> None:
    async with three_nodes(tmp_path, MemoryKV) as stored:
        served = await Served(*stored[0], password="secret", clients=2).start()
        try:
            async with await served.talk() as talk, await served.talk() as other:
                assert (await talk.ask("GET", "k"))[1] == "NOAUTH Authentication required."
                assert (await talk.ask("HELLO", "3"))[1].startswith("NOAUTH HELLO")
                assert (await talk.ask("AUTH", "wrong"))[1].startswith("WRONGPASS")
                assert (await talk.ask("AUTH", "someone", "secret"))[1].startswith("WRONGPASS")
                assert await talk.ask("AUTH", "secret") == OK
                assert await talk.ask("GET", "k") == ("$", None)
                assert (await other.ask("HELLO", "3", "AUTH", "default", "secret", "SETNAME", "me"))[0] == "%"
                assert await other.ask("CLIENT", "GETNAME") == ("$", b"me")
                assert await other.ask("GET", "k") == ("_", None)
                assert (await other.ask("CLIENT", "LIST"))[1].count(b"user=default") == 2
                async with await served.talk() as third:
                    assert await third.reply() == ("-", "ERR max number of clients reached")
                    assert await third.ended()
                assert await other.ask("RESET") == ("+", "RESET")
                assert (await other.ask("GET", "k"))[1].startswith("NOAUTH")
                other.send(["SET"] * 11)
                assert (await other.reply())[1] == "ERR Protocol error: unauthenticated multibulk length"
        finally:
            await served.server.close()


async def test_what_is_told_of_the_server(served: Served) -> None:
    async with await served.talk() as talk:
        assert (await talk.ask("COMMAND", "COUNT"))[1] == len(served.server.table)
        assert len((await talk.ask("COMMAND"))[1]) == len(served.server.table)
        _, [(_, described)] = await talk.ask("COMMAND", "INFO", "mset")
        assert described[:2] == [("$", b"mset"), (":", -3)]
        assert described[3:6] == [(":", 1), (":", -1), (":", 2)]
        assert await talk.ask("COMMAND", "GETKEYS", "MSET", "a", "1", "b", "2") == ("*", [("$", b"a"), ("$", b"b")])
        assert (await talk.ask("COMMAND", "DOCS", "get"))[0] == "*"
        _, told = await talk.ask("INFO")
        assert b"redis_version:" in told
        assert b"connected_clients:1" in told
        assert await talk.ask("INFO", "clients") == ("$", b"# Clients\r\nconnected_clients:1\r\nmaxclients:10000\r\n")
        assert await talk.ask("CONFIG", "GET", "save") == ("*", [("$", b"save"), ("$", b"")])
        assert (await talk.ask("CONFIG", "SET", "save", "1"))[1].startswith("ERR CONFIG here knows only GET")


async def test_http_and_resp_see_the_same_keys(served: Served) -> None:
    async with await served.talk() as talk:
        await talk.ask("SET", "{tag}key", "v")
        assert await served.store.get("{tag}key") == b"v"
        await served.store.put("{tag}other", b"w")
        assert await talk.ask("MGET", "{tag}key", "{tag}other") == ("*", [("$", b"v"), ("$", b"w")])


async def test_keys_end(served: Served) -> None:
    async with await served.talk() as talk:
        assert await talk.ask("SET", "k", "v", "PX", "150") == OK
        assert 0 <= (await talk.ask("PTTL", "k"))[1] <= 150
        async with asyncio.timeout(30):
            while (await talk.ask("GET", "k")) != ("$", None):
                pass
        assert await talk.ask("TTL", "k") == (":", -2)
        assert await talk.ask("SET", "k", "v", "EX", "1000") == OK
        left = (await talk.ask("PTTL", "k"))[1]
        async with asyncio.timeout(30):
            while (await talk.ask("PTTL", "k"))[1] >= left:  # nothing is written, and yet less is left
                pass
