"""The command line against three nodes as processes: keys that end, and watching until Ctrl-C."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from click.testing import CliRunner

from examples.kv import cluster as cluster_module
from examples.kv.cli import cli
from examples.kv.cluster import Cluster

ROOT = Path(cluster_module.__file__).parents[2]
QUICK = ("--limit=beat_ms=20", "--limit=election_timeout_ms=150")
SECONDS = 60


class Tool:
    """The command line, pointed at a cluster."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster

    async def start(self, *words: str) -> Process:
        urls = [f"--url={url}" for url in self.cluster.urls]
        return await asyncio.create_subprocess_exec(
            sys.executable, "-m", "examples.kv", *urls, *words, stdout=PIPE, stderr=PIPE, cwd=ROOT
        )

    async def run(self, *words: str) -> tuple[int | None, str, str]:
        """Return exit code, stdout and stderr."""
        process = await self.start(*words)
        async with asyncio.timeout(SECONDS):
            out, err = await process.communicate()
        return process.returncode, out.decode(), err.decode()


@pytest_asyncio.fixture
async def tool(tmp_path: Path) -> AsyncIterator[Tool]:
    async with Cluster(tmp_path, QUICK) as cluster:
        yield Tool(cluster)


@pytest.mark.parametrize(
    "words",
    [
        ("put", "k", "v", "--ttl", "inf"),
        ("put", "k", "v", "--ttl", "nan"),
        ("cas", "k", "v", "--ttl", "1e300"),
        ("expire", "k", "inf"),
        ("--timeout", "nan", "get", "k"),
    ],
)
def test_times_that_are_none_are_wrong_usage(words: tuple[str, ...]) -> None:
    finished = CliRunner().invoke(cli, words)
    assert finished.exit_code == 2, finished.output
    assert "Invalid value for" in finished.output


async def test_keys_that_end_and_watching_them(tool: Tool) -> None:
    watching = await tool.start("watch", "w/", "--json")
    assert watching.stderr is not None
    assert watching.stdout is not None
    async with asyncio.timeout(SECONDS):
        assert await watching.stderr.readline() == b"watching; Ctrl-C ends it\n"

    assert await tool.run("put", "w/a", "hello", "--ttl", "3600") == (0, "", "")
    code, out, _ = await tool.run("ttl", "w/a")
    assert code == 0
    assert 3_500 < float(out) <= 3_600
    assert (await tool.run("persist", "w/a"))[0] == 0
    assert await tool.run("ttl", "w/a") == (0, "stays\n", "")
    assert await tool.run("count") == (0, "1\n", "")
    assert (await tool.run("expire", "w/a", "0.001"))[0] == 0
    async with asyncio.timeout(SECONDS):
        told = [json.loads(await watching.stdout.readline()) for _ in range(4)]
    assert [event["kind"] for event in told] == ["put", "put", "put", "expire"]
    assert told[0]["deadline_ms"] == told[0]["time_ms"] + 3_600_000
    assert told[1]["deadline_ms"] is None
    assert await tool.run("ttl", "w/a") == (1, "", "error: there is no key 'w/a'\n")
    assert await tool.run("expire", "w/a", "1") == (1, "", "error: there is no key 'w/a'\n")

    watching.send_signal(signal.SIGINT)
    async with asyncio.timeout(SECONDS):
        rest, words = await watching.communicate()
    assert (watching.returncode, rest) == (130, b"")
    assert words.decode() == f"resume with --after {told[-1]['token']}\n"

    code, out, err = await tool.run("watch", "--after", told[1]["token"], "--limit", "2")
    assert (code, out) == (0, "put\tw/a\thello\nexpire\tw/a\n")
    assert err.startswith("resume with --after ")
    code, _, err = await tool.run("watch", "--after", "nonsense")
    assert code == 6
    assert "is not the place of a shard" in err
