"""The command line as an operator meets it: a process, its output, its exit code."""

from __future__ import annotations

import asyncio
import json
import os
import pty
import re
import signal
import socket
import subprocess
from collections.abc import Awaitable, Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any, TypeAlias

import plyvel
import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer

from multiraft.admin.api import admin_app
from multiraft.config import Limits
from multiraft.records import COMMANDS, encode_record
from multiraft.storage import open_leveldb
from multiraft.types import (
    FOUNDING_INDEX,
    FOUNDING_TERM,
    HardState,
    LogStart,
    ReplicaDescriptor,
    Tombstone,
    founding_membership,
)

Client: TypeAlias = TestClient[Any, Any]
Cluster: TypeAlias = Any  # the fakes of conftest.py
Run: TypeAlias = Callable[..., Awaitable[Any]]
Start: TypeAlias = Callable[..., subprocess.Popen[bytes]]


def url_of(client: Client) -> str:
    return str(client.make_url("")).rstrip("/")


def fields(text: str, first: str) -> list[str]:
    """The words of the line that starts with the word `first`."""
    return next(line.split() for line in text.splitlines() if line.split()[:1] == [first])


def checked_error(finished: Any, code: int, *parts: str) -> None:
    """It failed with that code: one line of error, at most one of hint, nothing on the output, no traceback."""
    assert finished.code == code, finished
    assert finished.out == ""
    lines = finished.err.splitlines()
    assert lines[0].startswith("error: ")
    assert len(lines) <= 2
    assert all(line.startswith("       ") for line in lines[1:])
    assert all(part in finished.err for part in parts), finished.err


# ------------------------------------------------------------------------------------------ asking a cluster


async def test_status(client: Client, run_cli: Run) -> None:
    finished = await run_cli("--url", url_of(client), "status")
    assert finished.code == 0, finished
    assert fields(finished.out, "NODE")[:4] == ["NODE", "STATE", "GROUPS", "LEADS"]
    assert fields(finished.out, "n1")[:7] == ["n1", "up", "3", "2", "0", "0", "here"]
    assert fields(finished.out, "n2")[:7] == ["n2", "up", "3", "1", "0", "0", "0.05s"]
    assert fields(finished.out, "n2")[7:] == ["1h02m", "1.2ms", "3%", "42%", "0", "127.0.0.1:7021"]
    assert "3 of 3 nodes up" in finished.out
    assert finished.err == ""
    assert "\x1b" not in finished.out


async def test_status_with_a_node_down_is_unhealthy(client: Client, cluster: Cluster, run_cli: Run) -> None:
    cluster.stop("n3")
    finished = await run_cli("--url", url_of(client), "status")
    assert finished.code == 1
    assert fields(finished.out, "n3") == ["n3", "down", *"----", "12.5s", *"-----", "127.0.0.1:7031"]
    assert "! node n3 is down: not connected; last heard 12.5 s ago" in finished.out.splitlines()


async def test_the_url_comes_from_the_environment_or_after_the_command(client: Client, run_cli: Run) -> None:
    url = url_of(client)
    nowhere = {"MULTIRAFT_URL": "http://127.0.0.1:1", "http_proxy": "http://127.0.0.1:1"}
    runs = await asyncio.gather(
        run_cli("status", env={"MULTIRAFT_URL": url}),
        run_cli("status", "--url", url, env=nowhere),
        run_cli("--url", url.removeprefix("http://"), "status", env=nowhere),
    )
    assert [finished.code for finished in runs] == [0, 0, 0], runs


async def test_an_api_mounted_under_admin_is_found(cluster: Cluster, run_cli: Run) -> None:
    outer = web.Application()
    outer.add_subapp("/admin", admin_app(cluster.nodes["n1"]))
    for name in ("n2", "n3"):
        admin_app(cluster.nodes[name])
    async with TestServer(outer) as server:
        url = str(server.make_url("")).rstrip("/")
        runs = await asyncio.gather(run_cli("--url", url, "status"), run_cli("--url", url + "/admin/", "status"))
    assert [finished.code for finished in runs] == [0, 0], runs


async def test_json_is_the_answer_as_it_came(client: Client, call_cli: Run) -> None:
    commands = [("status",), ("groups",), ("group", "16"), ("route", "a"), ("log", "17", "--last", "2")]
    runs = [await call_cli("--url", url_of(client), *command, "--json") for command in commands]
    assert [finished.code for finished in runs] == [0] * 5
    found = [json.loads(finished.out) for finished in runs]
    assert len(found[0]["nodes"]) == 3
    assert len(found[1]["groups"]) == 3
    assert found[2]["group"]["leader"] == "n1"
    assert found[3]["service"] == "kv"
    assert [row["index"] for row in found[4]["entries"]] == [5, 6]


async def test_groups(client: Client, cluster: Cluster, call_cli: Run) -> None:
    cluster.nodes["n1"].views[16] |= {"last": 11}
    finished = await call_cli("--url", url_of(client), "groups", "--sort", "-lag")
    assert finished.code == 0, finished
    rows = [line.split() for line in finished.out.splitlines()[1:4]]
    assert [row[0] for row in rows] == ["16", "17", "1"]
    assert rows[0][:8] == ["16", "kv", "ok", "n1", "2", "6", "5", "0"]
    assert rows[0][8:] == ["n1*", "n2+5", "n3+5", "1", "[start,", "80000000…)"]
    assert rows[2][8:] == ["n1*", "n2", "n3", "-"]  # the directory has no shard
    assert finished.out.splitlines()[-1] == "3 groups"


async def test_groups_filtered_and_limited(client: Client, call_cli: Run) -> None:
    finished = await call_cli("--url", url_of(client), "groups", "--service", "kv", "--limit", "1")
    assert finished.code == 0
    assert finished.out.splitlines()[-1] == "2 of 3 groups, the first 1 shown"
    assert fields(finished.out, "16")[1] == "kv"


async def test_unhealthy_groups_end_with_1_and_say_why(client: Client, cluster: Cluster, call_cli: Run) -> None:
    for node in cluster.each():
        node.lose_leader(16)
    cluster.nodes["n2"].halt(17, "OSError: no \x1b[31mspace left")
    url = url_of(client)
    groups = await call_cli("--url", url, "groups")
    leaderless = await call_cli("--url", url, "groups", "--state", "leaderless")
    one = await call_cli("--url", url, "group", "17")
    fine = await call_cli("--url", url, "groups", "--state", "ok")
    assert [finished.code for finished in (groups, leaderless, one, fine)] == [1, 1, 1, 0]
    assert "! group 16 is leaderless: a quorum is up: an election should be under way" in groups.out
    assert "! group 17 is halted: on node n2: OSError: no \\x1b[31mspace left" in groups.out
    assert fields(groups.out, "17")[8:11] == ["n1", "n2*!", "n3"]
    assert "halted: OSError: no \\x1b[31mspace left" in one.out
    assert "\x1b" not in groups.out + one.out


async def test_one_group(client: Client, cluster: Cluster, call_cli: Run) -> None:
    cluster.stop("n3")
    finished = await call_cli("--url", url_of(client), "group", "17")
    assert finished.code == 1
    assert fields(finished.out, "leader") == ["leader", "n2"]
    assert fields(finished.out, "log") == ["log", "2..6,", "committed", "6,", "applied", "6"]
    assert fields(finished.out, "1")[:6] == ["1", "n1", "voter", "follower", "2", "6"]
    assert "no answer: not connected" in finished.out


async def test_route(client: Client, cluster: Cluster, call_cli: Run) -> None:
    shard = cluster.nodes["n1"].shard_map.services["kv"].find(b"user:42")
    finished = await call_cli("--url", url_of(client), "route", "user:42", "--service", "kv")
    assert finished.code == 0, finished
    assert fields(finished.out, "group") == ["group", str(shard.group_id)]
    assert fields(finished.out, "leader") == ["leader", {16: "n1", 17: "n2"}[shard.group_id]]


async def test_log_shows_commands_as_calls_and_the_rest_in_hex(client: Client, call_cli: Run) -> None:
    finished = await call_cli("--url", url_of(client), "log", "17", "--last", "4")
    assert finished.code == 0, finished
    assert "\x1b" not in finished.out
    entries = [line.split(maxsplit=7) for line in finished.out.splitlines()[3:]]
    assert [(row[0], row[3]) for row in entries] == [
        ("3", "command"),
        ("4", "command"),
        ("5", "membership"),
        ("6", "command"),
    ]
    assert [row[7] for row in entries] == [
        "put('a', b'\\x01', 7)",
        "0xc1ff",
        "[5, [1, 2, 3]]",
        "put('[red]\\x1b[31m', 1)",
    ]
    assert entries[0][4:6] == ["2023-11-14", "22:13:20.123Z"]


async def test_log_entries_are_cut_unless_asked_for_in_full(client: Client, cluster: Cluster, call_cli: Run) -> None:
    entry = cluster.nodes["n2"].entries[2]
    cluster.nodes["n2"].entries = [{**entry, "entry": b"\xc1" * 3000, "size_bytes": 3000}]
    short = await call_cli("--url", url_of(client), "log", "17")
    full = await call_cli("--url", url_of(client), "log", "17", "--full")
    assert short.out.splitlines()[-1].endswith("c1c1c…")
    assert len(short.out.splitlines()[-1]) < 200
    assert full.out.count("c1") == 3000


# -------------------------------------------------------------------------------------------- what goes wrong


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as found:
        port: int = found.getsockname()[1]
        return port


async def test_nobody_there(call_cli: Run, run_cli: Run) -> None:
    url = f"http://127.0.0.1:{free_port()}"
    checked_error(await run_cli("--url", url, "status"), 3, f"cannot reach {url}", "MULTIRAFT_URL")
    for command in (("status",), ("groups",), ("group", "1"), ("route", "a"), ("log", "1"), ("status", "--json")):
        checked_error(await call_cli("--url", url, *command), 3, f"cannot reach {url}", "MULTIRAFT_URL")


async def test_somebody_who_does_not_answer(call_cli: Run) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        checked_error(await call_cli("--url", url, "--timeout", "0.3", "status"), 3, "within 0.3 s", "--timeout")


@pytest.mark.parametrize("body", ["hello", "<html>", json.dumps({"nodes": []})])
async def test_somebody_else(call_cli: Run, body: str) -> None:
    async def anything(request: web.Request) -> web.Response:
        return web.Response(text=body)

    other = web.Application()
    other.add_routes([web.get("/{tail:.*}", anything)])
    async with TestServer(other) as server:
        finished = await call_cli("--url", str(server.make_url("")), "status")
    checked_error(finished, 3, "is not the admin API")


async def test_wrong_usage(client: Client, call_cli: Run, run_cli: Run) -> None:
    url = url_of(client)
    checked_error(await run_cli("--url", "ftp://x", "status"), 2, "ftp://x")
    for arguments, part in (
        (("--url", "ftp://x", "status"), "ftp://x"),
        (("--url", "http://[::1", "status"), "URL"),
        (("--url", "http://a b:1", "status"), "URL"),
        (("--url", "http://127.0.0.1:port", "status"), "URL"),
        (("stauts",), "stauts"),
        (("status", "--jsn"), "--jsn"),
        (("--timeout", "nan", "status"), "'nan' is not a number"),
        (("status", "--watch", "NaN"), "'NaN' is not a number"),
        (("bench", "--rate", "nan"), "'nan' is not a number"),
        (("transfer", "16", "n2", "--timeout", "nan"), "'nan' is not a number"),
        (("group",), "ID"),
        (("group", "x"), "x"),
        (("--url", url, "groups", "--sort", "size"), "size"),
        (("--url", url, "route", "xyz", "--type", "bytes"), "hex"),
    ):
        checked_error(await call_cli(*arguments), 2, part)


async def test_what_does_not_exist(client: Client, call_cli: Run) -> None:
    url = url_of(client)
    for arguments, part in (
        (("group", "99"), "no group 99"),
        (("log", "99"), "no group 99"),
        (("log", "17", "--node", "n9"), "n9"),
        (("groups", "--node", "n9"), "n1, n2, n3"),
        (("route", "a", "--service", "none"), "known: kv"),
    ):
        checked_error(await call_cli("--url", url, *arguments), 4, part)


async def test_a_node_that_cannot_answer_now(client: Client, cluster: Cluster, call_cli: Run) -> None:
    del cluster.nodes["n1"].views[17]
    cluster.stop("n2")
    cluster.stop("n3")
    checked_error(await call_cli("--url", url_of(client), "group", "17"), 5, "n2, n3")


async def test_an_answer_of_an_unknown_shape_is_no_traceback(call_cli: Run) -> None:
    async def strange(request: web.Request) -> web.Response:
        return web.json_response({"nodes": 7}, headers={"Multiraft-Admin": "1"})

    other = web.Application()
    other.add_routes([web.get("/status", strange)])
    async with TestServer(other) as server:
        checked_error(await call_cli("--url", str(server.make_url("")), "status"), 70, "MULTIRAFT_DEBUG")


async def test_help_and_version(run_cli: Run, call_cli: Run) -> None:
    top, version, nothing = await asyncio.gather(run_cli("--help"), run_cli("--version"), run_cli())
    assert top.code == 0
    assert "Exit codes:" in top.out
    assert "Examples:" in top.out
    assert (version.code, version.out.split()[0]) == (0, "multiraft")
    assert nothing.code == 2
    for name in ("status", "groups", "group", "route", "log", "transfers", "storage"):
        finished = await call_cli(name, "-h")
        assert finished.code == 0
        assert "Example" in finished.out
        assert "--json" in finished.out


# ------------------------------------------------------------------------------------- watching, interrupting


async def test_watch_goes_on_and_ctrl_c_ends_it_cleanly(client: Client, cluster: Cluster, start_cli: Start) -> None:
    def work() -> tuple[int, list[str], bytes]:
        with start_cli("--url", url_of(client), "status", "--watch", "0.1") as process:
            assert process.stdout is not None
            assert process.stderr is not None
            seen: list[str] = []
            while sum(line.startswith("n3") for line in seen) < 3:
                line = process.stdout.readline().decode()
                assert line, "it ended by itself"
                seen.append(line)
                if line.startswith("n3"):
                    cluster.stop("n3")  # what comes later shows it
            process.send_signal(signal.SIGINT)
            err = process.stderr.read()
            return process.wait(30), seen, err

    code, seen, err = await asyncio.to_thread(work)
    assert code == 130
    assert b"Traceback" not in err
    states = [line.split()[1] for line in seen if line.startswith("n3")]
    assert states[0] == "up"
    assert states[-1] == "down"


async def test_watch_outlives_a_node_that_is_away(start_cli: Start) -> None:
    def work() -> tuple[int, list[bytes]]:
        url = f"http://127.0.0.1:{free_port()}"
        with start_cli("--url", url, "groups", "--watch", "0.1") as process:
            assert process.stdout is not None
            lines = [process.stdout.readline() for _ in range(10)]
            process.send_signal(signal.SIGINT)
            process.communicate(timeout=30)
            return process.returncode, lines

    code, lines = await asyncio.to_thread(work)
    assert code == 130
    assert sum(line.startswith(b"error: cannot reach") for line in lines) >= 2


async def test_a_reader_that_goes_away_is_no_error(client: Client, start_cli: Start) -> None:
    def work() -> tuple[int, bytes]:
        reader, writer = os.pipe()
        with ExitStack() as stack:
            stack.callback(os.close, writer)
            process = stack.enter_context(start_cli("--url", url_of(client), "status", "--watch", "0.1", stdout=writer))
            os.read(reader, 1)
            os.close(reader)
            assert process.stderr is not None
            err = process.stderr.read()
            return process.wait(30), err

    code, err = await asyncio.to_thread(work)
    assert (code, err) == (141, b"")


def on_a_terminal(start_cli: Start, *arguments: str, env: dict[str, str] | None = None) -> tuple[int, str]:
    """Run with a terminal as its output."""
    master, slave = pty.openpty()
    try:
        process = start_cli(*arguments, stdout=slave, env={"COLUMNS": "100", **(env or {})})
    finally:
        os.close(slave)
    written = bytearray()
    with process:
        while True:
            try:
                piece = os.read(master, 65_536)
            except OSError:  # what a terminal says at the end
                break
            if not piece:
                break
            written += piece
        os.close(master)
        process.communicate(timeout=30)
    return process.returncode, written.decode()


async def test_a_terminal_gets_colours_unless_they_are_not_wanted(
    client: Client, cluster: Cluster, start_cli: Start
) -> None:
    cluster.stop("n3")
    arguments = ("--url", url_of(client), "status")
    (code, coloured), (_, plain) = await asyncio.gather(
        asyncio.to_thread(on_a_terminal, start_cli, *arguments),
        asyncio.to_thread(on_a_terminal, start_cli, *arguments, env={"NO_COLOR": "1"}),
    )
    assert code == 1
    assert "\x1b[1;31mdown" in coloured
    assert "\x1b[32mup" in coloured
    assert "down" in plain
    assert "[31m" not in plain
    assert "[32m" not in plain


async def test_a_terminal_gets_rows_of_its_width_and_no_stored_control(
    client: Client, cluster: Cluster, start_cli: Start
) -> None:
    entry = cluster.nodes["n2"].entries[2]
    cluster.nodes["n2"].entries.append({**entry, "entry": b"\xc1" * 300, "size_bytes": 300})
    code, out = await asyncio.to_thread(on_a_terminal, start_cli, "--url", url_of(client), "log", "17")
    assert code == 0
    assert "put('[red]\\x1b[31m', 1)" in out
    assert "\x1b[31m" not in out
    lines = re.sub(r"\x1b\[[0-9;]*m", "", out).splitlines()
    assert len(lines) == 2 + 1 + 6
    assert lines[-1].rstrip().endswith("…")
    assert 96 < max(map(len, lines)) <= 100


# ------------------------------------------------------------------------------------------------ a directory


async def make_store(path: Path, *removed: Tombstone) -> None:
    store = open_leveldb(str(path), "n1", Limits(), asyncio.get_running_loop())
    store.bind_cluster(b"c" * 16, {"n1": store.identity.store_id, "n2": b"2" * 16})
    batch = store.batch()
    for group_id in (1, 16):
        service = "directory" if group_id == 1 else "kv"
        batch.create_replica(
            ReplicaDescriptor(group_id, 1, service),
            founding_membership(("n1", "n2")),
            HardState(3, 1, 2),
            LogStart(FOUNDING_INDEX, FOUNDING_TERM),
        )
        batch.put_record(group_id, encode_record(group_id, 2, 3, FOUNDING_TERM, COMMANDS, 1, [b"a", b"b"]))
    for tombstone in removed:
        batch.remove_replica(tombstone)
    done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    store.submit(batch, lambda error: done.set_exception(error) if error else done.set_result(None))
    await done
    await store.close()


async def test_storage_of_a_stopped_node(tmp_path: Path, run_cli: Run) -> None:
    await make_store(tmp_path / "n1")
    before = sorted((file.name, file.stat().st_size) for file in (tmp_path / "n1").rglob("*"))
    finished, as_json = await asyncio.gather(
        run_cli("storage", str(tmp_path / "n1")), run_cli("storage", str(tmp_path / "n1"), "--json")
    )
    assert finished.code == 0, finished
    assert fields(finished.out, "node") == ["node", "n1"]
    assert fields(finished.out, "cluster") == ["cluster", (b"c" * 16).hex()]
    assert fields(finished.out, "verdict") == ["verdict", "sound"]
    assert fields(finished.out, "last") == ["last", "stop", "orderly"]
    assert fields(finished.out, "16")[:8] == ["16", "kv", "1", "3", "1", "2", "2..3", "1"]
    assert fields(finished.out, "16")[-3:] == ["1:n1", "2:n2", "ok"]
    report = json.loads(as_json.out)
    assert report["healthy"]
    assert [group["service"] for group in report["groups"]] == ["directory", "kv"]
    assert report["groups"][1]["log_start"] == {"index": 1, "term": 1}
    assert sorted((file.name, file.stat().st_size) for file in (tmp_path / "n1").rglob("*")) == before


async def test_storage_shows_what_is_left_of_a_removed_replica(tmp_path: Path, call_cli: Run) -> None:
    await make_store(tmp_path / "n1", Tombstone(16, 1, 3))
    finished = await call_cli("storage", str(tmp_path / "n1"))
    report = json.loads((await call_cli("storage", str(tmp_path / "n1"), "--json")).out)
    assert (finished.code, fields(finished.out, "16")[-1], report["healthy"]) == (0, "removed", True)
    assert [group["removed"] for group in report["groups"]] == [False, True]
    assert report["tombstones"] == [{"group_id": 16, "replica_id": 1, "index": 3}]


async def test_storage_names_what_is_damaged(tmp_path: Path, call_cli: Run) -> None:
    await make_store(tmp_path / "n1")
    with plyvel.DB(str(tmp_path / "n1" / "db")) as database:
        key = next(key for key, _ in database.iterator(reverse=True))
        database.put(key, database.get(key)[:-1] + b"X")
    finished = await call_cli("storage", str(tmp_path / "n1"))
    as_json = await call_cli("storage", str(tmp_path / "n1"), "--json")
    assert finished.code == as_json.code == 1
    assert any(line.startswith("! ") and "checksum" in line for line in finished.out.splitlines())
    assert fields(finished.out, "1")[-1] == "ok"  # the damage of one group hides no other
    assert "problems" in fields(finished.out, "16")[-1]
    assert not json.loads(as_json.out)["healthy"]


async def test_storage_of_a_running_node_is_refused(tmp_path: Path, run_cli: Run) -> None:
    path = tmp_path / "n1"
    await make_store(path)
    store = open_leveldb(str(path), "n1", Limits(), asyncio.get_running_loop())
    try:
        checked_error(await run_cli("storage", str(path)), 5, "in use")
    finally:
        await store.close()


async def test_storage_of_something_else(tmp_path: Path, call_cli: Run) -> None:
    (tmp_path / "file").write_text("x")
    (tmp_path / "empty").mkdir()
    checked_error(await call_cli("storage", str(tmp_path / "none")), 4, "no directory")
    checked_error(await call_cli("storage", str(tmp_path / "file")), 4, "no directory")
    checked_error(await call_cli("storage", str(tmp_path / "empty")), 5, "not a data directory")
    assert list((tmp_path / "empty").iterdir()) == []
