"""The commands about a stopped node's directory, and taking back a node that lost its own."""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import plyvel
import pytest

from multiraft.config import Limits
from multiraft.errors import InvalidRequest, NotReady
from multiraft.records import COMMANDS, encode_record
from multiraft.storage import layout, open_leveldb
from multiraft.types import HardState, LogStart, ReplicaDescriptor, founding_membership

Run = Callable[..., Any]
GROUPS = range(16, 46)


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with thirty groups, and data of one state machine."""
    path = tmp_path_factory.mktemp("store") / "n1"

    async def fill() -> None:
        rng = Random(1)
        limits = Limits(leveldb_write_buffer_bytes=64 * 1024)
        store = open_leveldb(str(path), "n1", limits, asyncio.get_running_loop())
        for group_id in GROUPS:
            batch = store.batch()
            members = founding_membership(("n1", "n2", "n3"))
            batch.create_replica(ReplicaDescriptor(group_id, 1, "kv"), members, HardState(1, 0, 1), LogStart(1, 1))
            for first in range(2, 30):
                batch.put_record(group_id, encode_record(group_id, first, 1, 1, COMMANDS, 0, [rng.randbytes(250)]))
            store.submit(batch, lambda _: None)
        batch = store.batch()
        space = store.new_space(batch)
        for number in range(200):
            batch.put_data(space, b"%d" % number, rng.randbytes(200))
        written: asyncio.Future[Exception | None] = asyncio.get_running_loop().create_future()
        store.submit(batch, written.set_result)
        assert await written is None
        await store.close()

    asyncio.run(fill())
    with plyvel.DB(str(path / "db")) as database:
        database.compact_range(start=b"", stop=b"\xff" * 20)
    return path


@pytest.fixture
def store(filled: Path, tmp_path: Path) -> Path:
    shutil.copytree(filled, tmp_path / "n1")
    return tmp_path / "n1"


def turn_a_bit(path: Path) -> None:
    """Damage a record of one group in the middle: it is looked up, as which table holds what depends on compactions."""
    with plyvel.DB(str(path / "db")) as database:
        record = database.get(layout.record_key(30, 15))
    (table,) = (file for file in (path / "db").glob("*.ldb") if record in file.read_bytes())
    raw = bytearray(table.read_bytes())
    raw[raw.index(record) + len(record) // 2] ^= 8
    table.write_bytes(raw)


def damage_what_the_store_says_of_itself(path: Path) -> None:
    """Damage the block of the lowest keys."""
    with plyvel.DB(str(path / "db")) as database:
        lowest = next(database.iterator(include_value=False))
    (table,) = (file for file in (path / "db").glob("*.ldb") if lowest in file.read_bytes()[: 3 + len(lowest)])
    raw = bytearray(table.read_bytes())
    raw[50] ^= 1
    table.write_bytes(raw)


def content(path: Path) -> dict[str, bytes]:
    return {str(file.relative_to(path)): file.read_bytes() for file in path.rglob("*") if file.is_file()}


async def test_verify_reads_everything_and_changes_nothing(store: Path, call_cli: Run) -> None:
    before = content(store)
    finished = await call_cli("storage", "verify", str(store))
    assert finished.code == 0, finished
    assert "sound" in finished.out
    report = json.loads((await call_cli("storage", "verify", str(store), "--json")).out)
    assert (report["healthy"], report["values"], report["spaces"]) == (True, 200, 1)
    assert [group["group_id"] for group in report["groups"]] == list(GROUPS)
    assert content(store) == before


async def test_verify_finds_a_turned_bit_and_a_damaged_value(store: Path, call_cli: Run) -> None:
    with plyvel.DB(str(store / "db")) as database:
        key = layout.data_key(1, b"7")
        database.put(key, database.get(key)[:-1] + b"?")
    finished = await call_cli("storage", "verify", str(store), "--json")
    (problem,) = json.loads(finished.out)["problems"]
    assert finished.code == 1
    assert "checksum" in problem
    turn_a_bit(store)
    finished = await call_cli("storage", "verify", str(store))
    assert finished.code == 1
    assert "the database cannot be read there" in finished.out
    assert "`multiraft storage repair` says what can be left out" in finished.out


async def test_repair_says_what_it_would_leave_out_and_does_it_only_when_told(store: Path, call_cli: Run) -> None:
    turn_a_bit(store)
    before = content(store)
    dry = await call_cli("storage", "repair", str(store))
    assert dry.code == 1
    assert "would be left out (--apply does it)" in dry.out
    assert content(store) == before
    done = await call_cli("storage", "repair", str(store), "--apply", "--json")
    report = json.loads(done.out)
    assert (done.code, report["done"]) == (1, True)
    lost = {group for one in report["damages"] for group in range(one["first"], one["last"] + 1)}
    assert 1 <= len(lost) <= 3
    assert set(report["groups"]) == set(GROUPS) - lost
    after = await call_cli("storage", "verify", str(store), "--json")
    assert [group["group_id"] for group in json.loads(after.out)["groups"]] == sorted(set(GROUPS) - lost)
    opened = open_leveldb(str(store), "n1", Limits(), asyncio.get_running_loop())
    replicas, damages = opened.load_sound()
    await opened.close()
    assert {one.descriptor.group_id for one in replicas} == set(GROUPS) - lost, "what is left out never votes again"
    assert {group for one in damages for group in range(one.first, one.last + 1)} == lost


async def test_repair_of_a_store_that_is_whole_has_nothing_to_do(store: Path, call_cli: Run) -> None:
    finished = await call_cli("storage", "repair", str(store))
    assert (finished.code, finished.out.strip()) == (0, "nothing is damaged; all 30 groups stay as they are")


async def test_repair_of_what_cannot_be_trusted_says_to_readmit_the_node(store: Path, call_cli: Run) -> None:
    damage_what_the_store_says_of_itself(store)
    finished = await call_cli("storage", "repair", str(store), "--apply")
    assert finished.code == 5
    assert "readmit" in finished.err
    assert not (store / "db.damaged").exists()


async def test_compact_gives_back_the_room_of_what_was_deleted(store: Path, call_cli: Run) -> None:
    with plyvel.DB(str(store / "db")) as database:
        for number in range(200):
            database.put(layout.data_key(1, b"%d" % number), b"x" * 2_000)
        for number in range(200):
            database.delete(layout.data_key(1, b"%d" % number))
    finished = await call_cli("storage", "compact", str(store), "--json")
    report = json.loads(finished.out)
    assert finished.code == 0
    assert report["after_bytes"] < report["before_bytes"] - 200_000
    again = await call_cli("storage", "verify", str(store), "--json")
    assert json.loads(again.out)["healthy"]
    opened = open_leveldb(str(store), "n1", Limits(), asyncio.get_running_loop())
    assert len(opened.load_replicas()) == len(GROUPS)
    await opened.close()


async def test_none_of_them_touches_a_running_node(store: Path, run_cli: Run) -> None:
    opened = open_leveldb(str(store), "n1", Limits(), asyncio.get_running_loop())
    try:
        for command in (("verify",), ("repair",), ("repair", "--apply"), ("compact",)):
            finished = await run_cli("storage", command[0], str(store), *command[1:])
            assert (finished.code, "in use" in finished.err) == (5, True), finished
    finally:
        await opened.close()


async def test_something_else_is_no_data_directory(tmp_path: Path, call_cli: Run) -> None:
    (tmp_path / "empty").mkdir()
    for command in ("verify", "repair", "compact"):
        assert (await call_cli("storage", command, str(tmp_path / "none"))).code == 4
        assert (await call_cli("storage", command, str(tmp_path / "empty"))).code == 5
    assert list((tmp_path / "empty").iterdir()) == []


# ------------------------------------------------------------------------------------------------------- readmit


async def test_a_node_is_readmitted_by_another_one(client: Any, cluster: Any, call_cli: Run) -> None:
    url = str(client.make_url("/"))
    finished = await call_cli("--url", url, "member", "readmit", "n2")
    assert (finished.code, finished.out.strip()) == (0, "node n2 takes part again, with every replica that it had")
    assert cluster.asked[-1] == ("readmit", "n1", "n2", 120.0)
    cluster.outcome = InvalidRequest("there is no member 'n9'")
    finished = await call_cli("--url", url, "member", "readmit", "n9")
    assert (finished.code, "there is no member 'n9'" in finished.err) == (5, True)
    cluster.outcome = NotReady("node 'n2' is not readmitted within 120 s: it is not connected")
    finished = await call_cli("--url", url, "member", "readmit", "n2")
    assert (finished.code, "not connected" in finished.err) == (6, True)
