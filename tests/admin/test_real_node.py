"""The admin API and the command line on three real nodes in this process: real store, transport and elections."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import msgpack
import pytest
from aiohttp import ClientSession

from multiraft import Limits, MultiRaftError, Node, NodeConfig, StateMachine, command, query
from multiraft.admin.api import admin_app, serve_admin

Run: TypeAlias = Callable[..., Awaitable[Any]]
LIMITS = Limits(beat_ms=50, election_timeout_ms=400)
DEADLINE_S = 60.0


class Notes(StateMachine):
    def __init__(self) -> None:
        self.notes: dict[str, bytes] = {}

    @command(key="key")
    def put(self, key: str, value: bytes) -> int:
        self.notes[key] = value
        return len(self.notes)

    @query(key="key")
    def get(self, key: str) -> bytes | None:
        return self.notes.get(key)


def free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [int(found.getsockname()[1]) for found in sockets]
    for found in sockets:
        found.close()
    return ports


@dataclass
class Cluster:
    """Three nodes; the admin API of the first is at `url`, the others answer its questions."""

    nodes: list[Node]
    notes: type[Notes]
    url: str
    session: ClientSession
    data: Path

    async def fetch(self, path: str) -> tuple[int, dict[str, Any]]:
        async with self.session.get(self.url + path) as response:
            return response.status, await response.json()

    async def until(self, path: str, holds: Callable[[int, dict[str, Any]], bool]) -> dict[str, Any]:
        """Ask again until the answer fits. There is no event to wait for: the cluster finds out by silence."""
        found: Any = None
        try:
            async with asyncio.timeout(DEADLINE_S):
                while True:
                    status, found = await self.fetch(path)
                    if holds(status, found):
                        return dict(found)
        except TimeoutError:
            raise AssertionError(f"{path} never answered as expected; the last answer: {found}") from None


@pytest.fixture
async def cluster(tmp_path: Path) -> AsyncIterator[Cluster]:
    *peers, admin = free_ports(4)
    members = {f"n{number}": f"127.0.0.1:{port}" for number, port in enumerate(peers, 1)}
    nodes = [
        Node(NodeConfig(name, str(tmp_path / name), address, members, limits=LIMITS))
        for name, address in members.items()
    ]
    handles = [node.service("notes", Notes, initial_shards=4, replicas=3) for node in nodes]
    for node in nodes[1:]:
        admin_app(node)
    async with AsyncExitStack() as stack:
        session = await stack.enter_async_context(ClientSession())
        await asyncio.gather(*[stack.enter_async_context(node) for node in nodes])
        url = await stack.enter_async_context(serve_admin(nodes[0], f"127.0.0.1:{admin}"))
        await asyncio.gather(*[node.ready("notes", timeout_s=DEADLINE_S) for node in nodes])
        yield Cluster(nodes, handles[1], url, session, tmp_path)


async def test_a_healthy_cluster_from_all_sides(cluster: Cluster, call_cli: Run) -> None:
    await cluster.notes.put("user:7", b"hello")
    found = await cluster.until("/status", lambda status, answer: answer["healthy"])
    assert [node["state"] for node in found["nodes"]] == ["up"] * 3
    assert len({node["cluster_id"] for node in found["nodes"]}) == 1
    assert sum(node["groups"]["led"] for node in found["nodes"]) == 5  # four shards and the directory

    found = await cluster.until("/groups", lambda _, answer: all(row["lag"] == 0 for row in answer["groups"]))
    assert found["healthy"]
    assert [row["state"] for row in found["groups"]] == ["ok"] * 5
    assert [row["service"] for row in found["groups"]] == ["directory"] + ["notes"] * 4
    for row in found["groups"]:
        assert [replica["role"] for replica in row["replicas"]].count("leader") == 1
        assert cluster.nodes[0].leader(row["group_id"]) == row["leader"]

    _, route = await cluster.fetch("/route?key=user:7&service=notes")
    _, log = await cluster.fetch(f"/groups/{route['group_id']}/log?last=1")
    (entry,) = log["entries"]
    assert msgpack.unpackb(base64.b64decode(entry["entry"])) == ["put", "user:7", b"hello"]  # it went where it was said
    assert entry["committed"]
    assert log["node_id"] == route["leader"]

    assert (await cluster.fetch("/readyz"))[0] == 200
    assert (await cluster.fetch("/groups/99"))[0] == 404
    async with cluster.session.get(cluster.url + "/metrics") as response:
        assert 'multiraft_groups{state="hosted"} 5' in (await response.text()).splitlines()

    group = str(route["group_id"])
    for command_line in (("status",), ("groups",), ("group", group), ("route", "user:7"), ("log", group)):
        finished = await call_cli("--url", cluster.url, *command_line)
        assert finished.code == 0, finished
    assert "put('user:7', b'hello')" in finished.out


async def test_losing_nodes_is_seen_and_explained(cluster: Cluster, call_cli: Run, run_cli: Run) -> None:
    await cluster.nodes[2].stop()
    found = await cluster.until("/status", lambda _, answer: answer["nodes"][2]["state"] == "down")
    assert found["nodes"][2]["heard_age_s"] is not None
    assert not found["healthy"]
    found = await cluster.until("/groups", lambda _, answer: {row["state"] for row in answer["groups"]} == {"ok"})
    assert {row["leader"] for row in found["groups"]} <= {"n1", "n2"}
    assert (await cluster.fetch("/groups?state=leaderless"))[1]["groups"] == []

    await cluster.nodes[1].stop()
    found = await cluster.until(
        "/groups", lambda _, answer: {row["state"] for row in answer["groups"]} == {"leaderless"}
    )
    assert all("no quorum: 2 of 3 voters do not answer" in row["why"] for row in found["groups"])
    assert (await cluster.fetch("/livez"))[0] == 200
    status, ready = await cluster.fetch("/readyz")
    assert (status, ready["groups_ready"], ready["groups"]) == (503, 0, 5)
    unhealthy = await call_cli("--url", cluster.url, "groups", "--json")
    stopped = await call_cli("storage", str(cluster.data / "n2"), "--json")
    in_use = await run_cli("storage", str(cluster.data / "n1"))
    assert unhealthy.code == 1
    assert len(json.loads(unhealthy.out)["problems"]) == 2 + 5
    assert in_use.code == 5
    assert "in use" in in_use.err
    assert stopped.code == 0, stopped
    report = json.loads(stopped.out)
    assert report["closed_orderly"]
    assert [group["service"] for group in report["groups"]] == ["directory"] + ["notes"] * 4


async def test_members_come_go_and_lead_from_the_command_line(cluster: Cluster, call_cli: Run) -> None:
    group_id = (await cluster.fetch("/route?key=user:7&service=notes"))[1]["group_id"]
    group = str(group_id)
    await cluster.notes.put("user:7", b"hello")
    path = f"/groups/{group}/membership"
    await cluster.until(path, lambda _, answer: answer["healthy"] and len(answer["answering"]) == 3)

    async def cli(*words: str, code: int = 0) -> str:
        finished = await call_cli("--url", cluster.url, *words)
        assert finished.code == code, finished
        return str(finished.out + finished.err)

    for name in ("n2", "n3", "n1"):  # from node n1, whoever leads
        assert f"leader  {name}" in await cli("transfer", group, name)
    assert "safe: a quorum answers" in await cli("member", "remove", group, "n3", "--dry-run")
    assert "voters  " in await cli("member", "remove", group, "n3", "--yes")
    found = await cluster.until(path, lambda _, answer: answer["tombstones"])
    assert [row["node_id"] for row in found["tombstones"]] == ["n3"]
    assert sorted(node_id for _, node_id in found["in_effect"]["voters"]) == ["n1", "n2"]
    assert "was removed" in await cli("members", group)
    assert "was removed" in await cli("group", group)
    assert "1 replicas were removed from here" in await cli("status")
    assert "nothing to do" in await cli("member", "remove", group, "n3", "--yes")

    assert "done" in await cli("member", "add", group, "n3", "--learner")
    await cluster.until(path, lambda _, answer: "learner" in [row["member"] for row in answer["replicas"]])
    assert "done" in await cli("member", "promote", group, "n3")
    assert "done" in await cli("member", "demote", group, "n2")
    assert "done" in await cli("member", "add", group, "n2")
    found = await cluster.until(path, lambda _, answer: len(answer["answering"]) == 3 and not answer["change"])
    assert await cluster.notes.get("user:7") == b"hello"

    await cluster.nodes[2].stop()
    await cluster.until(path, lambda _, answer: answer["answering"] and len(answer["answering"]) == 2)
    refused = await cli("member", "remove", group, "n2", "--yes", code=5)
    assert "error: unsafe: afterwards 2 of 2 voters must answer, and only 1 would" in refused
    assert "error: the directory" in await cli("member", "remove", "1", "n2", "--yes", code=5)
    stopped = await call_cli("storage", str(cluster.data / "n3"))
    assert "REMOVED FROM GROUP" in stopped.out


async def test_a_halted_replica_is_explained_and_rebuilt(cluster: Cluster, call_cli: Run) -> None:
    """The leader itself halts: it hands over, and takes the state of the one that leads then."""
    await cluster.notes.put("user:7", b"hello")
    _, route = await cluster.fetch("/route?key=user:7&service=notes")
    group_id, leader = route["group_id"], route["leader"]
    node = next(node for node in cluster.nodes if node.node_id == leader)
    machine: Any = node.local_machine(group_id)
    machine.notes = _Failing(machine.notes)
    with contextlib.suppress(MultiRaftError):
        await cluster.notes.put("user:7", b"again")
    await cluster.until(f"/groups/{group_id}", lambda _, answer: answer["group"]["leader"] not in (None, leader))
    why = await call_cli("--url", cluster.url, "group", "why", str(group_id))
    assert why.code == 1
    assert f"! halted on {leader} at index" in why.out
    assert "OSError: the disk of notes is gone" in why.out
    assert "command put('user:7', b'again')" in why.out
    done = await call_cli("--url", cluster.url, "group", "rebuild", str(group_id), "--node", leader)
    assert done.code == 0, done
    await cluster.notes.put("user:7", b"third")
    assert await cluster.notes.get("user:7") == b"third"
    async with asyncio.timeout(DEADLINE_S):
        kept: Any = node.local_machine(group_id)
        while kept.notes != {"user:7": b"third"}:  # noqa: ASYNC110 - it applies on by itself
            await asyncio.sleep(0.01)
    assert (await call_cli("--url", cluster.url, "group", "why", str(group_id))).code == 0


class _Failing(dict[str, bytes]):
    def __setitem__(self, key: str, value: bytes) -> None:
        raise OSError("the disk of notes is gone")
