"""The commands that change groups, as an operator meets them: what they print, ask, refuse and end with."""

from __future__ import annotations

import asyncio
import json
import os
import pty
import signal
import subprocess
import sys
from collections.abc import Awaitable, Callable
from typing import Any, TypeAlias

import pytest
from aiohttp.test_utils import TestClient

from multiraft.errors import ChangeRefused, NotReady

Client: TypeAlias = TestClient[Any, Any]
Cluster: TypeAlias = Any  # the fakes of conftest.py
Run: TypeAlias = Callable[..., Awaitable[Any]]
Start: TypeAlias = Callable[..., subprocess.Popen[bytes]]


@pytest.fixture
def at(client: Client, call_cli: Run) -> Run:
    """Run a command against node n1."""
    url = str(client.make_url("")).rstrip("/")

    async def run(*arguments: str) -> Any:
        return await call_cli("--url", url, *arguments)

    return run


def url_of(client: Client) -> str:
    return str(client.make_url("")).rstrip("/")


# ------------------------------------------------------------------------------------------------ looking


async def test_members(at: Run, cluster: Cluster) -> None:
    cluster.nodes["n1"].sees(16, voters=[[1, "n1"], [3, "n3"]], learners=[[2, "n2"]], joining=[[2, "n2"]], index=7)
    cluster.nodes["n1"].views[16]["replicas"][0]["match"] = 1
    finished = await at("members", "16")
    assert finished.code == 0, finished
    lines = [line.split() for line in finished.out.splitlines()]
    assert ["leader", "n1"] in lines
    assert ["quorum", "2", "of", "2", "voters,", "2", "answer"] in lines
    assert ["2", "n2", "joining", "follower", "5", "yes", "-"] in lines
    assert "waits: replica 2 on node n2 is to become a voter: 5 entries are missing" in finished.out
    assert json.loads((await at("members", "16", "--json")).out)["in_effect"]["index"] == 7


async def test_members_of_a_group_with_a_node_down(at: Run, cluster: Cluster) -> None:
    cluster.stop("n3")
    finished = await at("members", "16")
    assert finished.code == 1
    assert "no answer: not connected" in finished.out
    assert (await at("members", "99")).code == 4


async def test_group_and_status_show_what_is_unsettled(at: Run, cluster: Cluster) -> None:
    joint = {"voters": [[1, "n1"], [2, "n2"]], "outgoing": [[1, "n1"], [2, "n2"], [3, "n3"]]}
    cluster.nodes["n1"].sees(16, **joint, index=7)
    del cluster.nodes["n3"].views[17]
    cluster.nodes["n3"].removed = [{"group_id": 17, "replica_id": 9, "index": 21}]
    one = await at("group", "16")
    assert "joint, from voters n1 n2 n3 to n1 n2" in one.out
    assert "votes until the joint change ends" in one.out
    gone = await at("group", "17")
    assert "was removed, as of index 21" in gone.out
    cluster.nodes["n3"].extra_groups = {"changing": 1, "learning": 0, "removed": 2}
    assert "n3: 1 groups change their members, 2 replicas were removed from here" in (await at("status")).out
    assert "n3(outgoing)" in (await at("groups")).out


# ------------------------------------------------------------------------------------------------ changing


@pytest.mark.parametrize(
    ("words", "asked"),
    [
        (("member", "add", "16", "n2"), ("add", 16, "n2", True, 60.0)),
        (("member", "add", "16", "n2", "--learner", "--timeout", "7"), ("add", 16, "n2", False, 7.0)),
        (("member", "remove", "16", "n3", "--yes"), ("remove", 16, "n3", 60.0)),
        (("member", "replace", "16", "n3", "n2", "-y"), ("replace", 16, "n3", "n2", 60.0)),
        (("member", "promote", "16", "n2"), ("promote", 16, "n2", 60.0)),
        (("member", "demote", "16", "n2"), ("demote", 16, "n2", 60.0)),
        (("transfer", "17", "n3"), ("transfer", "n2", 17, "n3")),
    ],
)
async def test_each_command_asks_for_its_change(
    at: Run, cluster: Cluster, words: tuple[str, ...], asked: tuple[object, ...]
) -> None:
    finished = await at(*words)
    assert finished.code == 0, finished
    assert cluster.asked == [asked]
    assert finished.out.startswith(f"group {asked[1] if asked[0] != 'transfer' else 17}: ")
    assert finished.err == ""


async def test_the_result_says_who_takes_part_now(at: Run) -> None:
    finished = await at("member", "demote", "16", "n2")
    assert finished.out.splitlines()[0] == "group 16: demote n2: done"
    assert "voters    n1 n2" in finished.out
    assert "learners  n4" in finished.out
    told = json.loads((await at("member", "demote", "16", "n2", "--json")).out)
    assert told["done"]
    assert told["membership"]["index"] == 9
    assert "leader  n3" in (await at("transfer", "16", "n3")).out


async def test_a_dry_run_says_what_would_be_done_and_why_it_is_safe(at: Run, cluster: Cluster) -> None:
    finished = await at("member", "remove", "16", "n3", "--dry-run")
    assert finished.code == 0, finished
    assert "1. one change takes replica 3 on n3 out of the group" in finished.out
    assert "before  3 voters (n1 n2 n3), 2 must agree, 3 answer" in finished.out
    assert "after   2 voters (n1 n2), 2 must agree, 2 answer" in finished.out
    assert "safe: a quorum answers before and after" in finished.out
    cluster.stop("n2")
    finished = await at("member", "remove", "16", "n3", "--dry-run")
    assert finished.code == 1
    assert "down  n2" in finished.out
    assert "! unsafe: afterwards 2 of 2 voters must answer" in finished.out
    assert json.loads((await at("member", "remove", "16", "n3", "--dry-run", "--json")).out)["plan"]["safe"] is False
    assert cluster.asked == []


async def test_what_is_unsafe_is_refused_unless_it_is_forced(at: Run, cluster: Cluster) -> None:
    cluster.stop("n2")
    finished = await at("member", "remove", "16", "n3", "--yes")
    assert (finished.code, finished.out) == (5, "")
    assert finished.err.startswith("error: unsafe: ")
    assert cluster.asked == []
    assert (await at("member", "remove", "16", "n3", "--yes", "--force")).code == 0


@pytest.mark.parametrize("words", [("remove", "16", "n3"), ("replace", "16", "n3", "n2")])
async def test_without_a_terminal_nothing_is_removed_unasked(
    client: Client, run_cli: Run, cluster: Cluster, words: tuple[str, ...]
) -> None:
    finished = await run_cli("--url", url_of(client), "member", *words)
    assert (finished.code, finished.out) == (2, "")
    assert "say --yes" in finished.err
    assert cluster.asked == []


@pytest.mark.parametrize(
    ("problem", "words", "code", "said"),
    [
        (ChangeRefused("it makes no sense"), ("member", "demote", "16", "n2"), 5, "it makes no sense"),
        (NotReady("not done: 5 entries are missing"), ("member", "add", "16", "n2"), 6, "5 entries are missing"),
        (NotReady("no other voter"), ("transfer", "16", "n2", "--timeout", "0.2"), 6, "no other voter"),
        (None, ("member", "add", "16", "n9"), 4, "no node 'n9'"),
        (None, ("member", "remove", "99", "n3", "--yes"), 4, "no group 99"),
        (None, ("member", "remove", "1", "n3", "--yes"), 5, "directory"),
        (None, ("member", "add", "0", "n2"), 2, "GROUP"),
        (None, ("member", "evict", "16", "n2"), 2, "evict"),
        (None, ("--url", "http://127.0.0.1:1", "member", "add", "16", "n2"), 3, "cannot reach"),
    ],
)
async def test_failures_are_one_line_and_an_exit_code(
    at: Run, cluster: Cluster, problem: Exception | None, words: tuple[str, ...], code: int, said: str
) -> None:
    cluster.outcome = problem
    finished = await at(*words)
    assert (finished.code, finished.out) == (code, ""), finished
    lines = finished.err.splitlines()
    assert lines[0].startswith("error: ")
    assert said in lines[0]
    assert len(lines) <= 2


@pytest.mark.parametrize("words", [("members",), ("member", "add"), ("member", "remove"), ("transfer",)])
async def test_help_teaches_by_examples(call_cli: Run, words: tuple[str, ...]) -> None:
    finished = await call_cli(*words, "--help")
    assert finished.code == 0
    assert f"multiraft {' '.join(words)} 17" in finished.out


async def test_ctrl_c_says_that_the_change_may_go_on(client: Client, cluster: Cluster, start_cli: Start) -> None:
    cluster.gate.clear()
    process = start_cli("--url", url_of(client), "member", "add", "16", "n2")
    await cluster.called.wait()
    process.send_signal(signal.SIGINT)
    out, err = await asyncio.to_thread(process.communicate, timeout=60)
    cluster.gate.set()
    assert process.returncode == 130
    assert out == b""
    assert err.decode().splitlines() == [
        "error: interrupted; the change may go on",
        "       `multiraft members 16` shows what becomes of it; asking again is safe",
    ]


# ------------------------------------------------------------------------------------------- on a terminal


class Terminal:
    """A process of the command line on a pseudo terminal."""

    def __init__(self, *arguments: str) -> None:
        self._ours, theirs = pty.openpty()
        env = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "200", "NO_COLOR": "1"}
        command = [sys.executable, "-m", "multiraft.admin.cli", *arguments]
        self.process = subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, env=env)
        os.close(theirs)
        self.seen = ""

    async def until(self, text: str) -> None:
        """Read on until `text` has been shown."""
        async with asyncio.timeout(60):
            while text not in self.seen:
                self.seen += (await asyncio.to_thread(os.read, self._ours, 4096)).decode()

    def type(self, text: str) -> None:
        os.write(self._ours, text.encode())

    async def end(self) -> int:
        """Read on until the process has ended; return its exit code."""
        try:
            async with asyncio.timeout(60):
                while True:
                    self.seen += (await asyncio.to_thread(os.read, self._ours, 4096)).decode()
        except OSError:  # how a pseudo terminal says that its other side is closed
            code = await asyncio.to_thread(self.process.wait, 60)
        os.close(self._ours)
        return code


@pytest.mark.parametrize(("answer", "code", "asked"), [("y\n", 0, 1), ("n\n", 5, 0)])
async def test_a_removal_is_shown_and_asked_for(
    client: Client, cluster: Cluster, answer: str, code: int, asked: int
) -> None:
    terminal = Terminal("--url", url_of(client), "member", "remove", "16", "n3")
    await terminal.until("do it? [y/N]")
    assert "safe: a quorum answers before and after" in terminal.seen
    terminal.type(answer)
    assert await terminal.end() == code, terminal.seen
    assert len(cluster.asked) == asked
    assert ("not confirmed; nothing was changed" in terminal.seen) is (not asked)


async def test_a_terminal_shows_what_is_waited_for(client: Client, cluster: Cluster) -> None:
    cluster.gate.clear()
    cluster.nodes["n1"].sees(16, voters=[[1, "n1"], [2, "n2"]], learners=[[3, "n3"]], joining=[[3, "n3"]], index=7)
    cluster.nodes["n1"].views[16]["replicas"][1]["match"] = 2
    terminal = Terminal("--url", url_of(client), "member", "promote", "16", "n3")
    await terminal.until("replica 3 on node n3 is to become a voter: 4 entries are missing")
    cluster.gate.set()
    assert await terminal.end() == 0
    assert "group 16: promote n3: done" in terminal.seen
