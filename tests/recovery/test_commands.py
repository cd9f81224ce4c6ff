"""`multiraft recover` from the command line: three real nodes, 50 groups, two of them lost.

Rules of this file: real directories and sockets; what was acknowledged is known from the calls alone.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import shutil
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from multiraft import Limits, Node, NodeConfig, StateMachine, command, query
from multiraft.admin.api import serve_admin
from multiraft.admin.cli import run
from multiraft.errors import RecoveryRefused
from multiraft.recovery.documents import COLLECTED, PLAN, load_document, save_document

LIMITS = Limits(beat_ms=50, election_timeout_ms=400)
NAMES = ("n1", "n2", "n3")


class Notes(StateMachine):
    def __init__(self) -> None:
        self.notes: dict[str, int] = {}

    @command(key="key")
    def put(self, key: str, value: int) -> int:
        self.notes[key] = value
        return value

    @query(key="key")
    def get(self, key: str) -> int | None:
        return self.notes.get(key)


def free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [int(found.getsockname()[1]) for found in sockets]
    for found in sockets:
        found.close()
    return ports


class Places:
    """Where the nodes of one cluster live."""

    def __init__(self, path: Path, store: str) -> None:
        self.path = path
        self.store = store
        ports = free_ports(len(NAMES) + 1)
        self.members = {name: f"127.0.0.1:{port}" for name, port in zip(NAMES, ports, strict=False)}
        self.admin = f"127.0.0.1:{ports[-1]}"

    def directory(self, name: str) -> str:
        return str(self.path / name)

    def file(self, name: str) -> str:
        return str(self.path / name)

    @contextlib.asynccontextmanager
    async def running(self, *names: str) -> AsyncIterator[dict[str, type[Notes]]]:
        async with contextlib.AsyncExitStack() as stack:
            handles, nodes = {}, []
            for name in names:
                config = NodeConfig(
                    name, self.directory(name), self.members[name], self.members, limits=LIMITS, store=self.store
                )
                node = Node(config)
                handles[name] = node.service("notes", Notes, initial_shards=50, replicas=3)
                nodes.append(node)
                await stack.enter_async_context(node)
            await asyncio.gather(*(node.ready() for node in nodes))
            await stack.enter_async_context(serve_admin(nodes[-1], self.admin))
            yield handles


@pytest.fixture(params=["leveldb", "sqlite"])
async def lost(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Places, dict[str, int]]:
    """A cluster that has served, of which n3 alone is left; and what was acknowledged."""
    places, acknowledged = Places(tmp_path, request.param), {}
    async with places.running(*NAMES) as handles:
        for value in range(200):
            await handles["n1"].put(f"key{value}", value)
            acknowledged[f"key{value}"] = value
        await asyncio.sleep(0.3)
    for name in ("n1", "n2"):
        shutil.rmtree(tmp_path / name)
    return places, acknowledged


async def call(*arguments: str) -> int:
    return await asyncio.to_thread(run, arguments)


async def test_collect_plan_apply_verify(
    lost: tuple[Places, dict[str, int]], capsys: pytest.CaptureFixture[str]
) -> None:
    places, acknowledged = lost
    directory, facts, plan = places.directory("n3"), places.file("n3.json"), places.file("plan.json")
    assert await call("recover", "collect", directory, "-o", facts) == 0
    assert "UNCOMMITTED" in capsys.readouterr().out
    assert await call("recover", "plan", facts, "-o", plan) == 1, "something may be lost"
    said = capsys.readouterr().out
    assert "MAY BE LOST: acknowledged entries of 51 groups" in said
    assert "51 groups: 51 are recovered, 0 left alone, 0 gone" in said
    assert "n3 survive, n1, n2 lost; recovery generation 1-" in said

    another_plan(plan, places.file("other.json"))
    before = snapshot(places.path / "n3")
    assert await call("recover", "apply", plan, directory) == 0
    assert "this is what would be done; nothing was written" in capsys.readouterr().out
    assert snapshot(places.path / "n3") == before
    assert await call("recover", "verify", directory) == 1
    assert "group 16: these nodes are no quorum of it" in capsys.readouterr().out
    assert await call("recover", "apply", plan, directory, "--yes") == 0
    assert "group 16: goes on from here" in capsys.readouterr().out
    assert await call("recover", "apply", plan, directory, "--yes") == 0
    assert "was applied here before; nothing is left to do" in capsys.readouterr().out
    assert await call("recover", "verify", directory) == 0
    assert "all of it holds" in capsys.readouterr().out

    async with places.running("n3") as handles:
        found = {key: await handles["n3"].get(key) for key in acknowledged}
        assert found == acknowledged
        await handles["n3"].put("after", 1)
        assert await call("recover", "verify", "--url", places.admin, "--plan", places.file("other.json")) == 1
        said = capsys.readouterr().out
        assert "group 16: it is committed up to" in said
        assert "node 'n3' is of recovery generation 1-" in said
        assert await call("recover", "verify", "--url", places.admin, "--plan", plan, "--json") == 0
    assert await call("recover", "verify", directory, "--plan", plan) == 2
    answer = json.loads(capsys.readouterr().out)
    assert len(answer["groups"]) == 51
    assert {group["leader"] for group in answer["groups"]} == {"n3"}
    assert {tuple(group["voters"]) for group in answer["groups"]} == {("n3",)}
    assert answer["generations"]["n3"].startswith("1-")


def another_plan(plan: str, file: str) -> None:
    """Write a plan that promises more than that one."""
    body = load_document(plan, PLAN)
    body["generation"] += 1
    for group in body["groups"]:
        group["membership"]["index"] += 1_000_000
    save_document(file, PLAN, body)


def snapshot(path: Path) -> dict[str, bytes]:
    return {str(file): file.read_bytes() for file in path.rglob("*") if file.is_file()}


async def test_what_is_no_store_and_a_file_that_was_changed_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    assert await call("recover", "collect", str(tmp_path / "empty"), "-o", str(tmp_path / "x.json")) == 4
    assert "is not a data directory" in capsys.readouterr().err
    file = tmp_path / "facts.json"
    save_document(str(file), COLLECTED, {"replicas": []})
    file.write_text(file.read_text().replace('"replicas"', '"Replicas"'))
    assert await call("recover", "plan", str(file), "-o", str(tmp_path / "plan.json")) == 5
    assert "was changed since it was written" in capsys.readouterr().err
    assert await call("recover", "verify") == 2


def test_a_file_of_another_step_is_refused(tmp_path: Path) -> None:
    file = str(tmp_path / "plan.json")
    save_document(file, PLAN, {"groups": []})
    with pytest.raises(RecoveryRefused, match="is for `multiraft recover apply`"):
        load_document(file, COLLECTED)
    (tmp_path / "other.json").write_text("[]")
    for name in ("other.json", "none.json"):
        with pytest.raises(RecoveryRefused, match=r"is not a file of|cannot be read"):
            load_document(str(tmp_path / name), PLAN)


async def test_a_node_that_runs_is_not_collected_from(tmp_path: Path, capsys: pytest.CaptureFixture[Any]) -> None:
    places = Places(tmp_path, "leveldb")
    places.members = {"n1": places.members["n1"]}
    config = NodeConfig("n1", places.directory("n1"), places.members["n1"], places.members, limits=LIMITS)
    async with Node(config):
        assert await call("recover", "collect", places.directory("n1"), "-o", places.file("x.json")) == 5
    assert "in use by this very process" in capsys.readouterr().err
