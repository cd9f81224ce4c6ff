"""`multiraft bench` as a process, against three nodes of the key-value store as processes."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio

from examples.kv.cluster import Cluster, free_ports
from examples.kv.machine import KV
from multiraft.client import Client


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def cluster(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Cluster]:
    options = ("--limit=beat_ms=20", "--limit=election_timeout_ms=300", "--shards=4", "--in-memory")
    async with Cluster(tmp_path_factory.mktemp("bench"), options) as cluster:
        yield cluster


pytestmark = pytest.mark.asyncio(loop_scope="module")


async def bench(*arguments: str, url: str, interrupt: bool = False) -> tuple[int, str, str]:
    """Run the command; return exit code, output and errors. interrupt: press Ctrl-C once it writes."""
    environment = {**os.environ, "MULTIRAFT_URL": url}
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "multiraft.admin.cli", "bench", *arguments),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env=environment,
    )
    if interrupt:
        async with Client([url]) as client:
            kv = client.service("kv", KV)
            while await kv.get("bench:1") is None:
                continue
        process.send_signal(signal.SIGINT)
    output, errors = await asyncio.wait_for(process.communicate(), 60)
    return process.returncode or 0, output.decode(), errors.decode()


async def result(*arguments: str, url: str, code: int = 0, interrupt: bool = False) -> dict[str, Any]:
    returned, output, errors = await bench(*arguments, "--json", url=url, interrupt=interrupt)
    assert (returned, errors) == (code, "")
    found: dict[str, Any] = json.loads(output)
    return found


async def test_ctrl_c_ends_it_with_the_result_so_far(cluster: Cluster) -> None:
    found = await result(
        *("--seconds=600", "--keys=2", "--distribution=sequential", "--warm-up=0"),
        url=cluster.urls[0],
        code=130,
        interrupt=True,
    )
    assert found["interrupted"]
    assert found["seconds"] < 60


async def test_a_closed_loop_counts_writes_and_reads(cluster: Cluster) -> None:
    found = await result(
        *("--seconds=1", "--warm-up=0.2", "--reads=0.5", "--keys=50", "--fill", "--in-flight=16", "--value-size=10"),
        url=cluster.urls[0],
    )
    assert not found["errors"]
    assert found["writes"]["count"] > 16
    assert found["reads"]["count"] > 16
    for kind in ("writes", "reads"):
        figures = found[kind]
        ordered = [figures[name] for name in ("p50_ms", "p90_ms", "p99_ms", "p999_ms", "max_ms")]
        assert ordered == sorted(ordered)
        assert ordered[0] > 0
        assert figures["per_s"] == pytest.approx(figures["count"] / found["seconds"])
        assert sum(count for _, count in figures["histogram_us"]) == figures["count"]
    async with Client([cluster.urls[1]]) as client:
        values = [await client.service("kv", KV).get(f"bench:{number}") for number in range(50)]
    assert all(value is not None and len(value) == 10 for value in values)


async def test_at_a_rate_as_many_are_asked_as_are_due(cluster: Cluster) -> None:
    found = await result("--seconds=2", "--warm-up=0.5", "--rate=100", url=cluster.urls[0])
    assert 150 <= found["writes"]["count"] + found["behind"] <= 250


async def test_every_kind_of_read_is_answered(cluster: Cluster) -> None:
    for kind in ("lease", "local", "stale"):
        found = await result(
            *("--seconds=0.3", "--warm-up=0", "--reads=1", f"--read-as={kind}", "--keys=20"), url=cluster.urls[2]
        )
        assert not found["errors"]
        assert found["reads"]["count"] > 0
        assert found["writes"]["count"] == 0


async def test_for_people_it_is_a_table(cluster: Cluster) -> None:
    code, output, errors = await bench("--seconds=0.5", "--warm-up=0", "--distribution=zipf", url=cluster.urls[0])
    assert (code, errors) == (0, "")
    assert "service 'kv': 64 in flight, writes only, 100,000 keys, zipf 0.99, values of 128 bytes" in output
    assert "P99.9 MS" in output
    assert "latency of writes" in output
    assert "client: " in output


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["--service", "nothing", "--seconds", "1"], 4, "multiraft groups"),
        (["--write", "nothing"], 5, "--write names a command"),
        (["--write", "increment"], 5, "the first call failed"),
        (["--reads", "1.5"], 2, "--help"),
        (["--keys", "0"], 2, "--help"),
        (["--url", "ftp://127.0.0.1:1"], 2, "like http://127.0.0.1:7101"),
    ],
)
async def test_what_cannot_be_is_one_line_and_a_hint(
    cluster: Cluster, arguments: list[str], code: int, said: str
) -> None:
    returned, output, errors = await bench(*arguments, url=cluster.urls[0])
    assert (returned, output) == (code, "")
    assert errors.startswith("error: ")
    assert said in errors
    assert "Traceback" not in errors


async def test_where_nobody_listens_it_says_so() -> None:
    code, _, errors = await bench(url=f"http://127.0.0.1:{free_ports(1)[0]}")
    assert code == 3
    assert "is the node running?" in errors


async def test_its_help_teaches() -> None:
    code, output, _ = await bench("--help", url="http://127.0.0.1:1")
    assert code == 0
    for word in ("It WRITES", "closed loop", "when a call was due", "zipf", "Examples:", "Ctrl-C"):
        assert word in output
