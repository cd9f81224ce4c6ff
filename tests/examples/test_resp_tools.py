"""The programs that people use with Redis, unchanged, against three real nodes; a real redis-server beside them."""

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Final

import pytest
import redis
import redis.asyncio

from examples.kv.cluster import Cluster
from tests.examples.resp_client import encode, needed
from tests.examples.resp_differential import both, differ

SEQUENCES: Final = 60
"""A short run; `make resp-differential` runs thousands."""


@pytest.fixture
async def cluster(tmp_path: Path) -> AsyncIterator[Cluster]:
    async with Cluster(tmp_path, ["--shards=4"]) as running:
        yield running


def port_of(cluster: Cluster, node_id: str = "a") -> int:
    return int(cluster.nodes[node_id].resp.rpartition(":")[2])


def client_of(cluster: Cluster, node_id: str, **options: Any) -> Any:
    """Return redis-py's client; its types are too general to be of use here."""
    return redis.asyncio.Redis(port=port_of(cluster, node_id), **options)


async def run(*command: str, stdin: bytes = b"") -> str:
    """Run a program of Redis; return what it printed."""
    process = await asyncio.create_subprocess_exec(
        needed(command[0]), *command[1:], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    out, errors = await process.communicate(stdin)
    assert process.returncode == 0, (out, errors)
    return out.decode()


@pytest.mark.redis
@pytest.mark.parametrize("options", [[], ["--in-memory"]])
async def test_sequences_of_commands_do_what_they_do_in_redis(tmp_path: Path, options: list[str]) -> None:
    async with both(tmp_path, *options) as pair:
        differ(pair, SEQUENCES)
        assert pair.sequences >= SEQUENCES


@pytest.mark.parametrize("protocol", [2, 3])
async def test_redis_py(cluster: Cluster, protocol: int) -> None:
    """The library's own calls, pipelines and transactions; from several nodes, each of which serves all keys."""
    one, other = (client_of(cluster, name, protocol=protocol) for name in "ab")
    async with one, other:
        assert await one.set("k", "v", ex=1_000, nx=True) is True
        assert await other.set("k", "w", nx=True) is None
        assert await other.set("k", "w", get=True, keepttl=True) == b"v"
        assert 990 <= await one.ttl("k") <= 1_000
        assert await one.getex("k", persist=True) == b"w"
        assert await other.ttl("k") == -1
        assert await one.mset({f"m{number}": number for number in range(50)}) is True
        assert await other.mget(*[f"m{number}" for number in range(50)]) == [b"%d" % number for number in range(50)]
        assert await one.incrbyfloat("f", 0.1) == 0.1
        assert await other.psetex("e", 5_000, "1") is True
        assert await one.getdel("e") == b"1"
        assert sorted([key async for key in one.scan_iter(match="m4*", count=5)]) == sorted(
            [b"m4", *[b"m4%d" % number for number in range(10)]]
        )
        assert await other.dbsize() == 52
        assert (await one.info())["redis_version"].startswith("7.")
        with pytest.raises(redis.ResponseError, match="not an integer"):
            await one.incr("k")
        # Without and with a transaction.
        plain = one.pipeline(transaction=False)
        for number in range(1_000):
            plain.set(f"p{number % 10}", number).get(f"p{number % 10}").incr("n")
        results = await plain.execute()
        assert results[1::3] == [b"%d" % number for number in range(1_000)]
        assert results[2::3] == list(range(1, 1_001))
        together = other.pipeline(transaction=True)
        together.set("{t}a", 1).incr("{t}a").get("{t}a").delete("{t}none")
        assert await together.execute() == [True, 2, b"2", 0]

        async def double(pipe: Any) -> None:
            value = int(await pipe.get("{t}a"))
            pipe.multi()
            pipe.set("{t}a", 2 * value)

        await asyncio.gather(one.transaction(double, "{t}a"), other.transaction(double, "{t}a"))
        assert await one.get("{t}a") == b"8"
        across = one.pipeline(transaction=True)
        for number in range(10):
            across.set(f"across{number}", 1)
        with pytest.raises(redis.RedisError, match=r"(?i)shard"):
            await across.execute()


@pytest.mark.redis
async def test_redis_cli(cluster: Cluster) -> None:
    port = str(port_of(cluster))
    assert await run("redis-cli", "-p", port, "SET", "k", "a b") == "OK\n"
    assert await run("redis-cli", "-3", "-p", port, "GET", "k") == "a b\n"
    assert "proto" in await run("redis-cli", "-p", port, "HELLO", "3")
    typed = b'MULTI\nINCR n\nINCR n\nEXEC\nSET q "x\\ty"\nSTRLEN q\n'
    assert (await run("redis-cli", "-p", port, stdin=typed)).split() == ["OK", "QUEUED", "QUEUED", "1", "2", "OK", "3"]
    assert sorted((await run("redis-cli", "-p", port, "--scan")).split()) == ["k", "n", "q"]
    # A bulk load: more than fits into any buffer, with values that look like protocol.
    pairs = [(b"key:%d" % number, b"$%d\r\n*1\r\n" % number + b"v" * (number % 50)) for number in range(20_000)]
    load = b"".join(encode([b"SET", key, value]) for key, value in pairs)
    said = await run("redis-cli", "-p", port, "--pipe", stdin=load)
    assert "errors: 0, replies: 20000" in said
    assert await run("redis-cli", "-p", str(port_of(cluster, "b")), "DBSIZE") == "20003\n"


@pytest.mark.redis
@pytest.mark.parametrize("pipeline", ["16", "1"])
async def test_redis_benchmark(cluster: Cluster, pipeline: str) -> None:
    port = str(port_of(cluster))
    count = 4_000 if pipeline == "16" else 1_000
    said = await run(
        "redis-benchmark", "-p", port, "-t", "set,get,incr", "-c", "50", "-P", pipeline, "-n", str(count), "--csv"
    )
    rows = [line.split(",")[0] for line in said.splitlines()]
    assert rows[-3:] == ['"SET"', '"GET"', '"INCR"'], said
    # As many increments as it sent: it sends no fewer than it was asked to, and no more than a pipeline beyond.
    counted = int(await run("redis-cli", "-p", str(port_of(cluster, "c")), "GET", "counter:__rand_int__"))
    assert count <= counted <= count + 50 * int(pipeline)


async def test_nothing_acknowledged_is_lost_when_leaders_are_killed(cluster: Cluster) -> None:
    """Clients of two nodes write while the third, and then each in turn, is killed and comes back."""
    acknowledged: dict[str, list[int]] = {}
    added: dict[str, int] = {}
    unsure: dict[str, int] = {}
    stop = asyncio.Event()
    rounds: list[str] = []

    async def write(number: int) -> None:
        """One client: numbered values into a key of its own, and increments of a counter of its own."""
        name = f"client{number}"
        acknowledged[name], added[name], unsure[name] = [], 0, 0
        sent = 0
        while not stop.is_set():
            node_id = "abc"[(number + sent) % 3]
            sent += 1
            client = client_of(cluster, node_id, socket_timeout=20)
            pipe = client.pipeline(transaction=False)
            pipe.set(f"{name}:{sent}", sent)
            pipe.incr(f"{name}:count")
            try:
                stored, total = await pipe.execute(raise_on_error=False)
            except (redis.ConnectionError, redis.TimeoutError, OSError):
                unsure[name] += 1
                await asyncio.sleep(0.01)
            else:
                if stored is True:
                    acknowledged[name].append(sent)
                if type(total) is int:
                    added[name] += 1
                elif not str(total).startswith("TRYAGAIN"):
                    unsure[name] += 1
            finally:
                await client.aclose()

    async def crash() -> None:
        for node_id in "abc":
            await progress(40)
            await cluster.kill(node_id)
            rounds.append(node_id)
            await progress(40)
            await cluster.start(node_id)
        stop.set()

    async def progress(more: int) -> None:
        """Wait until so many more writes are acknowledged."""
        wanted = sum(map(len, acknowledged.values())) + more
        async with asyncio.timeout(60):
            while sum(map(len, acknowledged.values())) < wanted:  # noqa: ASYNC110 - the clients tell nobody
                await asyncio.sleep(0.01)

    async with asyncio.TaskGroup() as work:
        for number in range(6):
            work.create_task(write(number))
        work.create_task(crash())
    assert rounds == ["a", "b", "c"]
    async with client_of(cluster, "a") as client:
        for name, numbers in acknowledged.items():
            found = await client.mget([f"{name}:{number}" for number in numbers])
            assert found == [b"%d" % number for number in numbers]
            total = int(await client.get(f"{name}:count"))
            assert added[name] <= total <= added[name] + unsure[name]  # once each, and the unsure ones once at most
