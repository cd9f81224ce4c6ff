"""Backups from the command line: a cluster under load is saved, and another one is made of it.

Rules of this file: real nodes, sockets and directories; what must be in a backup is what was acknowledged before it.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import socket
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from multiraft import DiskStateMachine, Limits, Node, NodeConfig, StateMachine, command, query
from multiraft.admin.api import serve_admin
from multiraft.admin.cli import run
from multiraft.admin.client import AdminClient
from multiraft.admin.fetching import Fetcher
from multiraft.backup import load_backup, verify_cut
from multiraft.backup.archive import MANIFEST, PROGRESS
from multiraft.errors import BackupRefused

LIMITS = Limits(beat_ms=50, election_timeout_ms=400, request_timeout_ms=10_000)
LARGE = 300_000
SHARDS = 3


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


class Kept(DiskStateMachine):
    @command(key="key")
    def put(self, key: str, value: bytes) -> int:
        self.data.put(key.encode(), value)
        return len(value)

    @query(key="key")
    def get(self, key: str) -> bytes | None:
        return self.data.get(key.encode())


def free_addresses(count: int) -> list[str]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    addresses = [f"127.0.0.1:{found.getsockname()[1]}" for found in sockets]
    for found in sockets:
        found.close()
    return addresses


class Cluster:
    """Nodes with their data below `path`; `admin` is the URL of one of them."""

    def __init__(self, path: Path, names: tuple[str, ...], store: str = "leveldb") -> None:
        *addresses, self.admin = free_addresses(len(names) + 1)
        self.path, self.store = path, store
        self.members = dict(zip(names, addresses, strict=True))
        self.nodes: dict[str, Node] = {}
        self.notes: type[Notes] = Notes
        self.kept: type[Kept] = Kept

    def directory(self, name: str) -> str:
        return str(self.path / name)

    @property
    def places(self) -> list[str]:
        """The nodes as `restore` takes them."""
        places = [f"{name}={self.directory(name)}@{address}" for name, address in self.members.items()]
        return [text for place in places for text in ("--node", place)]

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[Cluster]:
        async with contextlib.AsyncExitStack() as stack:
            for name, address in self.members.items():
                config = NodeConfig(name, self.directory(name), address, self.members, limits=LIMITS, store=self.store)
                node = self.nodes[name] = Node(config)
                self.notes = node.service("notes", Notes, initial_shards=SHARDS, replicas=3)
                self.kept = node.service("kept", Kept, initial_shards=SHARDS, replicas=3)
                await stack.enter_async_context(node)
            await asyncio.gather(*(node.ready() for node in self.nodes.values()))
            # Every node answers the others' questions, and one of them the command line's.
            addresses = [self.admin, *free_addresses(len(self.nodes) - 1)]
            for node, address in zip(self.nodes.values(), addresses, strict=True):
                await stack.enter_async_context(serve_admin(node, address))
            yield self

    async def write(self, count: int = 30, large: int = 3) -> dict[str, bytes]:
        """Write to both services, some of it large; return what was acknowledged."""
        written = {f"key{number}": os.urandom(40) for number in range(count)}
        written |= {f"large{number}": os.urandom(LARGE) for number in range(large)}
        for key, value in written.items():
            await self.notes.put(key, value)
            await self.kept.put(key, value)
        return written

    async def check(self, written: dict[str, bytes]) -> None:
        for key, value in written.items():
            assert await self.notes.get(key) == value
            assert await self.kept.get(key) == value


async def call(*arguments: str) -> int:
    return await asyncio.to_thread(run, arguments)


@pytest.fixture
async def saved(tmp_path: Path) -> tuple[Path, dict[str, bytes], str]:
    """A backup that was made while the cluster was written to; what must be in it; and the cluster's id."""
    cluster = Cluster(tmp_path / "old", ("a", "b", "c"))
    async with cluster.running():
        written = await cluster.write()
        going_on = asyncio.create_task(cluster.write(count=200, large=0))
        assert await call("--url", cluster.admin, "backup", str(tmp_path / "backup")) == 0
        going_on.cancel()
        await asyncio.gather(going_on, return_exceptions=True)
        cluster_id = cluster.nodes["a"].status()["cluster_id"]
    return tmp_path / "backup", {key: value for key, value in written.items() if key.startswith("large")}, cluster_id


@pytest.mark.parametrize("store", ["leveldb", "sqlite"])
async def test_a_new_cluster_of_other_names_has_what_was_acknowledged_before_the_backup(
    saved: tuple[Path, dict[str, bytes], str], tmp_path: Path, capsys: pytest.CaptureFixture[str], store: str
) -> None:
    backup, written, cluster_id = saved
    found = load_backup(str(backup))
    assert len(found.cuts) == 1 + 2 * SHARDS
    assert {cut.manifest.kind for cut in found.cuts.values()} == {"memory", "disk"}
    assert found.cluster_id == cluster_id
    new = Cluster(tmp_path / "new", ("x", "y", "z"), store)
    capsys.readouterr()
    assert await call("restore", str(backup), *new.places, "--store", store, "--json") == 0
    made = json.loads(capsys.readouterr().out)
    assert made["cluster_id"] != cluster_id
    for _ in range(2):  # and again after a restart
        async with new.running():
            await new.check(written)
            later = await new.write(count=3, large=0)
            await new.check(later)
            assert new.nodes["x"].status()["cluster_id"] == made["cluster_id"]


async def test_an_export_of_everything_is_one_file_that_a_cluster_is_made_of(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    old, new = Cluster(tmp_path / "old", ("a", "b", "c")), Cluster(tmp_path / "new", ("a", "b", "c", "d"))
    file = str(tmp_path / "all.export")
    async with old.running():
        written = await old.write()
        assert await call("--url", old.admin, "export", "--all", file) == 0
    assert "each group is a consistent cut at its own index" in capsys.readouterr().out
    assert sorted(os.listdir(tmp_path)) == ["all.export", "old"]
    assert await call("restore", file, *new.places) == 0
    async with new.running():
        await new.check(written)
    assert sorted(os.listdir(tmp_path)) == ["all.export", "new", "old"]


async def test_one_group_is_put_back_to_what_its_export_holds(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cluster = Cluster(tmp_path, ("a", "b", "c"))
    files = {}
    async with cluster.running():
        written = await cluster.write()
        for service in ("notes", "kept"):
            for shard in cluster.nodes["a"].shard_map.services[service].shards:
                files[shard.group_id] = str(tmp_path / f"{shard.group_id}.export")
                assert await call("--url", cluster.admin, "export", str(shard.group_id), files[shard.group_id]) == 0
        for key in written:
            await cluster.notes.put(key, b"spoilt")
            await cluster.kept.put(key, b"spoilt")
    directories = [cluster.directory(name) for name in ("a", "b", "c")]
    group_id, file = next(iter(files.items()))
    assert await call("import", file, *directories[:2]) == 5
    assert f"group {group_id} has replicas on c, too" in capsys.readouterr().err
    assert await call("import", file, *directories) == 0
    assert "nothing was written; do it with --yes" in capsys.readouterr().out
    for file in files.values():
        assert await call("import", file, *directories, "--yes") == 0
    async with cluster.running():
        await cluster.check(written)
        await cluster.check(await cluster.write(count=2, large=1))


async def test_a_backup_that_was_interrupted_goes_on_and_fetches_nothing_twice(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster, backup = Cluster(tmp_path / "old", ("a", "b", "c")), tmp_path / "backup"
    async with cluster.running():
        await cluster.write(count=5, large=1)
        fetched: list[int] = []
        fetch = Fetcher._fetch_group

        def interrupted(self: Fetcher, found: Any, group_id: int) -> Any:
            if len(fetched) == 3:
                raise KeyboardInterrupt
            fetched.append(group_id)
            return fetch(self, found, group_id)

        monkeypatch.setattr(Fetcher, "_fetch_group", interrupted)
        assert await call("--url", cluster.admin, "backup", str(backup)) == 130
        assert sorted(os.listdir(backup)) == ["groups", PROGRESS]
        assert await call("restore", str(backup), *Cluster(tmp_path / "new", ("x", "y", "z")).places) == 5
        assert "was not finished run `multiraft backup` again, it goes on" in " ".join(capsys.readouterr().err.split())

        def noted(self: Fetcher, found: Any, group_id: int) -> Any:
            fetched.append(group_id)
            return fetch(self, found, group_id)

        monkeypatch.setattr(Fetcher, "_fetch_group", noted)
        assert await call("--url", cluster.admin, "backup", str(backup)) == 0
        assert len(fetched) == len(set(fetched)) == 1 + 2 * SHARDS
        assert sorted(os.listdir(backup)) == ["groups", MANIFEST]
        assert await call("--url", cluster.admin, "backup", str(backup)) == 5
        assert "holds a backup already" in capsys.readouterr().err


async def test_a_fetch_that_breaks_off_goes_on_at_its_offset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = Cluster(tmp_path / "old", ("a", "b", "c"))
    async with cluster.running():
        await cluster.write(count=1, large=6)
        read, offsets = AdminClient.read, list[int]()

        def breaking(self: AdminClient, *path: str, params: Any) -> bytes:
            offsets.append(params["offset"])
            if len(offsets) % 3 == 2:
                from multiraft.admin.client import CannotReach

                raise CannotReach("cut off")
            return read(self, *path, params=params)

        monkeypatch.setattr(AdminClient, "read", breaking)
        monkeypatch.setattr("multiraft.admin.fetching._RETRY_S", 0.0)
        assert await call("--url", cluster.admin, "backup", str(tmp_path / "backup")) == 0
    found = load_backup(str(tmp_path / "backup"))
    for cut in found.cuts.values():
        verify_cut(found, cut)
    assert sum(offset > 0 for offset in offsets) > 3


# ---------------------------------------------------------------------------------------------------------- refusals


def damage_state(backup: Path) -> None:
    file = max((backup / "groups").iterdir(), key=lambda one: one.stat().st_size)
    raw = bytearray(file.read_bytes())
    raw[len(raw) // 2] ^= 1
    file.write_bytes(raw)


def damage_manifest(backup: Path) -> None:
    file = backup / MANIFEST
    file.write_text(file.read_text().replace('"index": ', '"index": 1'))


def lose_file(backup: Path) -> None:
    min((backup / "groups").iterdir()).unlink()


@pytest.mark.parametrize(
    ("damage", "why"),
    [
        (damage_state, "is damaged:"),
        (damage_manifest, "was changed since it was written"),
        (lose_file, "cannot be read: No such file"),
    ],
)
async def test_a_damaged_backup_makes_nothing(
    saved: tuple[Path, dict[str, bytes], str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    damage: Callable[[Path], None],
    why: str,
) -> None:
    backup, _, _ = saved
    copy = tmp_path / "copy"
    shutil.copytree(backup, copy)
    damage(copy)
    new = Cluster(tmp_path / "new", ("x", "y", "z"))
    assert await call("restore", str(copy), *new.places) == 5
    assert why in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "new").exists()


async def test_what_does_not_fit_is_refused(
    saved: tuple[Path, dict[str, bytes], str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    backup, _, _ = saved
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").write_text("mine")
    one, other, more = free_addresses(3)
    node = f"x={tmp_path / 'x'}@{one}"
    for places, why in (
        ([node, f"y={tmp_path / 'full'}@{other}", f"z={tmp_path / 'z'}@{more}"], "is not empty name"),
        ([node, f"y={tmp_path / 'y'}@{other}"], "has 3 replicas, and there are 2 nodes"),
        ([node, f"x={tmp_path / 'y'}@{other}"], "the same name or address"),
    ):
        assert await call("restore", str(backup), *[text for place in places for text in ("--node", place)]) == 5
        assert why in " ".join(capsys.readouterr().err.split())
    assert await call("restore", str(backup), "--node", "x=here") == 2
    assert not (tmp_path / "x").exists()
    (tmp_path / "no.export").write_bytes(b"not a tar file at all")
    assert await call("restore", str(tmp_path / "no.export"), "--node", node) == 5
    assert "is no export, or was cut short" in capsys.readouterr().err


def test_a_directory_without_a_manifest_is_no_backup(tmp_path: Path) -> None:
    with pytest.raises(BackupRefused, match=r"holds no manifest\.json; name the directory of a backup"):
        load_backup(str(tmp_path))
