"""Remote clients of three real nodes in this process: real stores, transport, HTTP and elections."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import aiohttp
import msgpack
import pytest

from examples.kv.cluster import free_ports
from multiraft import (
    BytesStateMachine,
    CommandFailed,
    InvalidRequest,
    Limits,
    Node,
    NodeConfig,
    NotReady,
    NotRunning,
    Numbered,
    Overloaded,
    StateMachine,
    Unreachable,
    command,
    query,
)
from multiraft.admin.api import serve_admin
from multiraft.client import Client, frames

LIMITS = Limits(
    beat_ms=50, election_timeout_ms=400, snapshot_entries=0, entry_bytes=100_000, handshake_timeout_ms=2_000
)
READY_S = 60.0


class Counters(StateMachine):
    def __init__(self) -> None:
        self.values: dict[str, int] = {}

    @command(key="name")
    def add(self, name: str, amount: int = 1) -> int:
        if amount < 0:
            raise ValueError("only up")
        self.values[name] = self.values.get(name, 0) + amount
        return self.values[name]

    @query(key="name")
    def get(self, name: str) -> int:
        return self.values.get(name, 0)

    @query(key=None)
    def total(self) -> int:
        return sum(self.values.values())


class Echo(BytesStateMachine):
    def __init__(self) -> None:
        self.last = b""

    def apply(self, command: bytes) -> bytes:
        self.last = command
        return command

    def query(self, query: bytes) -> bytes:
        return self.last + query


class Cluster:
    def __init__(self, directory: Path) -> None:
        ports = free_ports(6)
        members = {name: f"127.0.0.1:{port}" for name, port in zip("abc", ports, strict=False)}
        self.listens = {name: f"127.0.0.1:{port}" for name, port in zip("abc", ports[3:], strict=True)}
        self.urls = {name: f"http://{listen}" for name, listen in self.listens.items()}
        self.nodes = {
            name: Node(NodeConfig(name, str(directory / name), members[name], members, limits=LIMITS)) for name in "abc"
        }
        self.stacks = {name: AsyncExitStack() for name in "abc"}

    async def start(self) -> None:
        for node in self.nodes.values():
            node.service("counters", Counters, initial_shards=4, replicas=3)
            node.bytes_service("echo", Echo, initial_shards=1, replicas=3)
        await asyncio.gather(*[self.stacks[name].enter_async_context(node) for name, node in self.nodes.items()])
        for name, node in self.nodes.items():
            await self.stacks[name].enter_async_context(serve_admin(node, self.listens[name]))
        await asyncio.gather(*[node.ready(timeout_s=READY_S) for node in self.nodes.values()])

    def leader(self, group_id: int) -> str:
        return next(name for name, node in self.nodes.items() if node.runs and node.leads(group_id))

    def groups(self) -> list[int]:
        return [shard.group_id for shard in self.nodes["a"].shard_map.services["counters"].shards]

    async def stop(self, *names: str) -> None:
        for name in names:
            await self.stacks[name].aclose()


@pytest.fixture
async def cluster(tmp_path: Path) -> AsyncIterator[Cluster]:
    cluster = Cluster(tmp_path)
    try:
        await cluster.start()
        yield cluster
    finally:
        await cluster.stop("a", "b", "c")


async def test_a_service_is_used_as_in_process(cluster: Cluster) -> None:
    async with Client([cluster.urls["a"]]) as client:
        counters = client.service("counters", Counters)
        sums = await asyncio.gather(*[counters.add(f"n{number}", number) for number in range(40)])
        assert sums == list(range(40))
        assert await counters.add("n7") == 8
        assert await counters.get("n7") == 8
        assert await counters.get.with_options(lease=True)("n7") == 8
        assert await counters.get.with_options(local=True)("n7") == 8
        value, age_ms = await counters.get.with_options(stale_ms=60_000).aged("n7")
        assert value <= 8
        assert 0 <= age_ms <= 60_000 + client.timeout_s * 1_000
        totals = {shard: total async for shard, total in counters.total.on_each_shard()}
        assert len(totals) == 4
        assert sum(totals.values()) == sum(range(40)) + 1
        assert await counters.total.on_shard(1) == totals[1]
        assert await counters.total() in totals.values()
        with pytest.raises(CommandFailed, match="only up"):
            await counters.add("n7", -1)
        with pytest.raises(InvalidRequest, match="name"):
            await counters.add(7)  # type: ignore[arg-type]
        with pytest.raises(InvalidRequest, match="entry_bytes"):
            await client.bytes_service("echo").propose(b"k", b"x" * 100_101)
        with pytest.raises(InvalidRequest, match="must be bytes, not str"):
            client.send("echo", b"k", "text", print)  # type: ignore[arg-type]
        with pytest.raises(InvalidRequest, match="must be bytes, not str"):
            client.ask("echo", "k", b"text", print)  # type: ignore[arg-type]
        assert client.counts["registered"] == 4
        # One URL was enough to find everybody who leads.
        assert set(client.core.links) >= {cluster.leader(group_id) for group_id in cluster.groups()}


async def test_a_service_of_bytes(cluster: Cluster) -> None:
    async with Client([cluster.urls["b"]]) as client:
        echo = client.bytes_service("echo")
        assert await echo.propose(b"k", b"hello") == b"hello"
        assert await echo.read(b"k", b"?") == b"hello?"
        assert await echo.propose(b"k", b"once", session=False) == b"once"
        answer, _ = await echo.read_stale(b"k", b"?", 60_000)
        assert answer.endswith(b"?")


async def test_a_program_numbers_commands_itself(cluster: Cluster) -> None:
    async with Client([cluster.urls["a"]]) as client:
        counters = client.service("counters", Counters)
        session = await client.open_session("counters")
        number = Numbered(session, 1, 1, first=True)
        assert await counters.add.with_options(session=number)("x") == 1
    async with Client([cluster.urls["c"]]) as another:
        counters = another.service("counters", Counters)
        assert await counters.add.with_options(session=Numbered(session, 1, 1))("x") == 1
        assert await counters.get("x") == 1


async def test_leaders_that_move_are_followed(cluster: Cluster) -> None:
    async with Client([cluster.urls["a"]]) as client:
        counters = client.service("counters", Counters)
        done = 0
        moved = asyncio.Event()

        async def work(name: str) -> int:
            nonlocal done
            count = 0
            while not moved.is_set():
                count = await counters.add(name)
                done += 1
            return count

        workers = [asyncio.create_task(work(f"w{number}")) for number in range(16)]
        for turn in range(6):
            group_id = cluster.groups()[turn % 4]
            before = cluster.leader(group_id)
            to = random.Random(turn).choice(sorted(set("abc") - {before}))
            await cluster.nodes[before].group(group_id).transfer_leadership(to)
            more = done + 50
            while done < more:
                await counters.get("w0")
        moved.set()
        counts = await asyncio.gather(*workers)
        assert [await counters.get(f"w{number}") for number in range(16)] == counts
        assert sum(counts) == done


async def test_a_node_that_leaves_takes_no_call_with_it(cluster: Cluster) -> None:
    async with Client(list(cluster.urls.values())) as client:
        counters = client.service("counters", Counters)
        for number in range(16):
            await counters.add(f"w{number}")
        gone = cluster.leader(cluster.groups()[0])
        calls = [asyncio.create_task(counters.add(f"w{number}")) for number in range(16)]
        await cluster.stop(gone)
        assert await asyncio.gather(*calls) == [2] * 16
        assert await asyncio.gather(*[counters.add(f"w{number}") for number in range(16)]) == [3] * 16
        assert gone not in client.core.links


async def test_what_is_not_there_is_said_clearly(cluster: Cluster) -> None:
    with pytest.raises(InvalidRequest, match="at least one node"):
        Client([])
    for wrong in ("ftp://127.0.0.1:1", "http://", "http://h:0", "http://h:1/?q", "http://h h:1"):
        with pytest.raises(InvalidRequest, match="not the URL of a node; one is like http"):
            Client([wrong])
    client = Client([f"http://127.0.0.1:{free_ports(1)[0]}"])
    with pytest.raises(NotRunning, match="not started"):
        await client.service("counters", Counters).add("x")
    with pytest.raises(Unreachable, match="no node could be reached"):
        await client.start(timeout_s=0.3)
    async with Client([cluster.urls["a"]], timeout_ms=300) as client:
        with pytest.raises(NotReady, match="nothing"):
            await client.service("nothing", Counters).add("x")
    with pytest.raises(NotRunning, match="closed"):
        await client.service("counters", Counters).add("x")


async def test_more_than_is_allowed_in_flight_waits_for_room(cluster: Cluster) -> None:
    async with Client([cluster.urls["a"]], in_flight=4) as client:
        counters = client.service("counters", Counters)
        assert sorted(await asyncio.gather(*[counters.add("x") for _ in range(50)])) == list(range(1, 51))
        told: list[object] = []
        for _ in range(4):
            client.send("counters", b"x", msgpack.packb(["add", "x", 1]), told.append)
        with pytest.raises(Overloaded):
            client.send("counters", b"x", msgpack.packb(["add", "x", 1]), told.append)
        while len(told) < 4:
            await counters.get("x")
        assert sorted(msgpack.unpackb(each) for each in told) == [51, 52, 53, 54]


async def test_many_commands_at_once(cluster: Cluster) -> None:
    async with Client([cluster.urls["a"]], in_flight=100) as client:
        counters = client.service("counters", Counters)
        assert await counters.add.many([(f"n{number % 10}", 1) for number in range(250)]) == [
            number // 10 + 1 for number in range(250)
        ]
        [good, bad] = await counters.add.many([("n1", 1), ("n1", -1)])
        assert good == 26
        assert isinstance(bad, CommandFailed)
        assert await counters.add.many([]) == []
        echo = client.bytes_service("echo")
        large = await echo.propose_many([(b"k", b"small"), (b"k", b"x" * 100_101)], session=False)
        assert large[0] == b"small"
        assert isinstance(large[1], InvalidRequest)


async def test_large_results_come_whole(cluster: Cluster) -> None:
    async with Client([cluster.urls["a"]]) as client:
        echo = client.bytes_service("echo")
        commands = [b"%d" % number * 90_000 for number in range(10)]
        assert await asyncio.gather(*[echo.propose(b"k", each) for each in commands]) == commands


async def test_a_page_in_a_browser_is_refused(cluster: Cluster) -> None:
    async with aiohttp.ClientSession() as session:
        with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
            await session.ws_connect(cluster.urls["a"] + "/client", headers={"Origin": "http://evil.example"})
        assert refused.value.status == 403
        async with session.get(cluster.urls["a"] + "/client") as answer:
            assert answer.status == 426


CALL = [1, 17, frames.READ, 0, 1_000, [b"q"]]


@pytest.mark.parametrize(
    ("sent", "code", "text"),
    [
        ([b"junk"], 1002, "not msgpack"),
        ([b""], 1002, "not msgpack"),
        (["a text"], 1002, ""),
        ([msgpack.packb([1, "multiraft-client", [7]])], 1002, "speaks version 1"),
        ([frames.hello(), b"\xc1"], 1002, "not msgpack"),
        ([frames.hello(), "a text"], 1003, "text"),
        ([frames.hello(), frames.hello()], 1002, "neither calls nor"),
        ([frames.hello(), msgpack.packb([2, [[*CALL[:5], [1]]]])], 1002, "bytes"),
        ([frames.hello(), msgpack.packb([2, [[*CALL[:5], [b""] * 20_000]]])], 1002, "under way"),
        ([frames.hello(), b"\xdd\xff\xff\xff\xff"], 1002, "not msgpack"),
        ([frames.hello(), b"\x91" * 5_000], 1002, "not msgpack"),
        ([frames.hello(), b"x" * 1_500_000], 1009, ""),
    ],
)
async def test_hostile_frames_end_their_connection_with_a_reason(
    cluster: Cluster, sent: list[Any], code: int, text: str
) -> None:
    async with aiohttp.ClientSession() as session, session.ws_connect(cluster.urls["a"] + "/client") as ws:
        for frame in sent:
            with contextlib.suppress(ConnectionError):
                await (ws.send_str(frame) if isinstance(frame, str) else ws.send_bytes(frame))
        message = await ws.receive()
        while message.type is aiohttp.WSMsgType.BINARY:
            message = await ws.receive()
        assert ws.close_code == code
        assert text in str(message.extra)
    async with Client([cluster.urls["a"]]) as client:  # the node serves on
        assert await client.service("counters", Counters).add("x") == 1


async def test_random_frames_never_hurt_the_node(cluster: Cluster) -> None:
    chance = random.Random(5)
    valid = [frames.hello(), frames.calls([CALL]), frames.look(1, ["counters"])]
    async with aiohttp.ClientSession() as session:
        for _ in range(60):
            async with session.ws_connect(cluster.urls["a"] + "/client") as ws:
                await ws.send_bytes(frames.hello())
                for _ in range(4):
                    frame = bytearray(chance.choice(valid))
                    for _ in range(chance.randrange(4)):
                        frame[chance.randrange(len(frame))] = chance.randrange(256)
                    with contextlib.suppress(ConnectionError):
                        await ws.send_bytes(bytes(frame[: chance.randrange(1, len(frame) + 1)]))
    async with Client([cluster.urls["a"]]) as client:
        assert await client.service("counters", Counters).add("x") == 1


async def test_a_silent_stranger_is_shown_out(cluster: Cluster) -> None:
    async with aiohttp.ClientSession() as session, session.ws_connect(cluster.urls["a"] + "/client") as ws:
        message = await ws.receive()
        assert ws.close_code == 1008
        assert "no hello in time" in str(message.extra)


async def test_a_client_that_closes_tells_its_callers(cluster: Cluster) -> None:
    client = Client([cluster.urls["a"]])
    await client.start()
    counters = client.service("counters", Counters)
    await counters.add("x")
    calls = [asyncio.create_task(counters.add("x")) for _ in range(3)]
    await asyncio.sleep(0)
    await client.close()
    for outcome in await asyncio.gather(*calls, return_exceptions=True):
        assert isinstance(outcome, NotRunning | int | Exception)
    await client.close()
