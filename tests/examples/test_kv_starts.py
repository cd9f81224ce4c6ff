"""One node as a process: started, stopped, used by its commands, and started from what it cannot start from."""

from __future__ import annotations

import asyncio
import io
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Callable, Coroutine
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from examples.kv import server
from examples.kv.cli import main
from examples.kv.client import Client
from examples.kv.cluster import free_ports
from multiraft.errors import MultiRaftError, OutcomeUnknown

ROOT = Path(server.__file__).parents[2]
SECONDS = 60
QUICK = ("--limit=beat_ms=20", "--limit=election_timeout_ms=150")


@dataclass
class Place:
    """Where one node lives; `options` start it."""

    directory: Path
    listen: str
    http: str

    @property
    def data(self) -> Path:
        return self.directory / "a"

    @property
    def url(self) -> str:
        return f"http://{self.http}"

    def options(self, **changes: str) -> list[str]:
        given = {"id": "a", "listen": self.listen, "http": self.http, "data": str(self.data)}
        given["member"] = f"a={self.listen}"
        given |= changes
        return [*QUICK, *[f"--{name}={value}" for name, value in given.items()]]


@dataclass
class Ended:
    """How a command ended. `complaint` is its one line of error, without the `error: ` before it."""

    code: int
    complaint: str
    stderr: str


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "examples.kv", *arguments]


def refused(*arguments: str) -> Ended:
    """Run a command that is to end with one line of error."""
    return complained(command(*arguments))


def complained(arguments: list[str]) -> Ended:
    done = subprocess.run(arguments, cwd=ROOT, capture_output=True, text=True, timeout=SECONDS, check=False)
    lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert "Traceback" not in done.stderr
    assert len(lines) == 1, done.stderr
    return Ended(done.returncode, lines[0].removeprefix("error: "), done.stderr)


class Alone:
    """A node that runs while the `with` block does, and is stopped in order at its end."""

    def __init__(self, place: Place) -> None:
        self.process = subprocess.Popen(
            command("node", *place.options()), cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    def __enter__(self) -> Alone:
        assert self.process.stdout is not None
        said = [self.process.stdout.readline(), self.process.stdout.readline()]
        assert said[0].startswith("node a listens: http://"), said
        assert said[1] == "node a is ready\n"
        return self

    def __exit__(self, *_: object) -> None:
        self.process.send_signal(signal.SIGTERM)
        try:
            self.said, self.complained = self.process.communicate(timeout=SECONDS)
        finally:
            self.process.kill()
        assert (self.process.returncode, self.said) == (0, "node a stopped\n")
        assert "error" not in self.complained
        assert "Traceback" not in self.complained


def get(place: Place, key: str) -> bytes | None:
    async def ask() -> bytes | None:
        async with Client([place.url]) as client:
            return await client.get(key)

    return asyncio.run(ask())


def put(place: Place, key: str, value: bytes) -> None:
    async def ask() -> None:
        async with Client([place.url]) as client:
            await client.put(key, value)

    asyncio.run(ask())


def use(place: Place, *arguments: str) -> tuple[int, str, str]:
    """Run a user's command in this process; return its exit code and what it wrote to stdout and stderr."""
    out, complaint = io.TextIOWrapper(io.BytesIO(), "utf-8"), io.StringIO()
    with redirect_stdout(out), redirect_stderr(complaint), pytest.raises(SystemExit) as ended:
        main(["--url", place.url, *arguments])
    out.seek(0)
    return int(ended.value.code or 0), out.read(), complaint.getvalue()


@pytest.fixture(scope="module")
def founded(tmp_path_factory: pytest.TempPathFactory) -> Place:
    """A node that was founded, holds a record, and was stopped in order."""
    ports = free_ports(2)
    place = Place(tmp_path_factory.mktemp("founded"), f"127.0.0.1:{ports[0]}", f"127.0.0.1:{ports[1]}")
    with Alone(place):
        put(place, "kept", b"safe")
    with Alone(place):  # the second start leaves what the first one wrote in a table
        put(place, "more", b"data")
    return place


@pytest.fixture
def place(founded: Place, tmp_path: Path) -> Place:
    """A copy of the founded node, to be damaged."""
    shutil.copytree(founded.data, tmp_path / "a")
    return Place(tmp_path, founded.listen, founded.http)


def test_an_orderly_stop_and_start_keep_everything(place: Place) -> None:
    for number in range(2):
        with Alone(place):
            assert get(place, "kept") == b"safe"
            assert get(place, "starts") == (b"%d" % number if number else None)
            put(place, "starts", b"%d" % (number + 1))
            with urllib.request.urlopen(f"{place.url}/admin/status", timeout=SECONDS) as answer:
                assert json.load(answer)["nodes"][0]["started_orderly"] is True


def test_ctrl_c_stops_it_in_order(place: Place) -> None:
    alone = Alone(place)
    with alone:
        alone.process.send_signal(signal.SIGINT)
        assert alone.process.wait(timeout=SECONDS) == 0


def test_a_child_ends_when_its_parent_lets_go(place: Place) -> None:
    process = subprocess.Popen(
        command("node", *place.options(), "--until-stdin-closes"),
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline().startswith("node a listens")
        said, _ = process.communicate(timeout=SECONDS)  # closes its stdin
    finally:
        process.kill()
    assert process.returncode == 0
    assert said.endswith("node a stopped\n")


def test_a_second_process_on_the_same_directory_is_refused(place: Place) -> None:
    with Alone(place):
        ended = refused("node", *place.options(http=f"127.0.0.1:{free_ports(1)[0]}"))
        assert (ended.code, "in use by another process" in ended.complaint) == (server.EXIT_START, True)
        assert get(place, "kept") == b"safe"


@pytest.mark.parametrize("option", ["listen", "http"])
def test_an_address_in_use_is_named(place: Place, option: str) -> None:
    address = {"listen": place.listen, "http": place.http}[option]
    with socket.create_server(("127.0.0.1", int(address.rpartition(":")[2]))):
        ended = refused("node", *place.options())
    assert ended.code == server.EXIT_START
    assert address in ended.complaint
    assert "in use" in ended.complaint
    assert_unharmed(place)


def assert_unharmed(place: Place) -> None:
    with Alone(place):
        assert get(place, "kept") == b"safe"


def other_node(place: Place) -> list[str]:
    return place.options(id="b", member=f"b={place.listen}")


def other_members(place: Place) -> list[str]:
    return [*place.options(), f"--member=b=127.0.0.1:{free_ports(1)[0]}"]


def other_shards(place: Place) -> list[str]:
    return [*place.options(), "--shards=8"]


@pytest.mark.parametrize(
    ("options", "code", "complaint"),
    [
        (other_node, server.EXIT_START, "belongs to node 'a' of cluster"),
        (other_members, server.EXIT_START, "added: b"),
        (other_shards, server.EXIT_USAGE, "initial_shards = 8, but the service was created with 16"),
    ],
)
def test_what_differs_from_the_founding_is_refused(
    place: Place, options: Callable[[Place], list[str]], code: int, complaint: str
) -> None:
    ended = refused("node", *options(place))
    assert ended.code == code
    assert complaint in ended.complaint
    assert_unharmed(place)


def flip_a_byte(data: Path) -> None:
    tables = sorted((data / "db").glob("*.ldb"))
    assert tables, "an orderly stop and start leaves tables"
    for table in tables:
        content = bytearray(table.read_bytes())
        content[len(content) // 4] ^= 0x40
        table.write_bytes(content)


def lose_current(data: Path) -> None:
    (data / "db" / "CURRENT").unlink()


def lose_the_database(data: Path) -> None:
    shutil.rmtree(data / "db")


def lose_the_identity(data: Path) -> None:
    (data / "IDENTITY").unlink()


def scribble_over_the_identity(data: Path) -> None:
    (data / "IDENTITY").write_bytes(b"\x00" * 64)


@pytest.mark.parametrize(
    "damage", [flip_a_byte, lose_current, lose_the_database, lose_the_identity, scribble_over_the_identity]
)
def test_a_damaged_store_is_refused(place: Place, damage: Callable[[Path], None]) -> None:
    damage(place.data)
    ended = refused("node", *place.options())
    assert ended.code == server.EXIT_START
    assert str(place.data) in ended.complaint
    assert "damaged" in ended.complaint or "lost" in ended.complaint


def test_a_file_in_place_of_the_directory_is_refused(place: Place, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    ended = refused("node", *place.options(data=str(tmp_path / "file")))
    assert (ended.code, "is not a directory" in ended.complaint) == (server.EXIT_START, True)
    assert (tmp_path / "file").read_text() == "mine"


AS_NOBODY = """
import os, sys
from examples.kv.cli import main  # while the interpreter may still be read
if os.geteuid() == 0:
    os.setuid(65_534)
main(sys.argv[1:])
"""


def test_a_directory_that_may_not_be_written_is_refused(place: Place) -> None:
    """Permissions bind nobody who is root, so that the node then runs as somebody else."""
    with tempfile.TemporaryDirectory() as name:
        (Path(name) / "data").mkdir(mode=0o555)
        os.chmod(name, 0o755)
        ended = complained([sys.executable, "-c", AS_NOBODY, "node", *place.options(data=f"{name}/data")])
        assert list((Path(name) / "data").iterdir()) == []
    assert ended.code == server.EXIT_START
    assert f"{name}/data" in ended.complaint


FILES_OF_A_MEGABYTE = """
import resource, sys
resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))
from examples.kv.cli import main
main(sys.argv[1:])
"""


def test_a_node_that_cannot_write_ends_by_itself_and_loses_nothing(place: Place) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", FILES_OF_A_MEGABYTE, "node", *place.options()],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    written: list[str] = []

    async def write() -> None:
        async with Client([place.url], timeout_s=SECONDS) as client:
            while True:
                key = f"large/{len(written)}"
                await client.put(key, key.encode() * 10_000)
                written.append(key)

    try:
        with pytest.raises(MultiRaftError):
            asyncio.run(asyncio.wait_for(unless_ended(process, write()), SECONDS))
        _, complaint = process.communicate(timeout=SECONDS)
    finally:
        process.kill()
    assert process.returncode == server.EXIT_FAILED, complaint
    assert sum(line.startswith("error: ") for line in complaint.splitlines()) == 1
    assert "Traceback" not in complaint
    assert written
    with Alone(place):
        for key in written:
            assert get(place, key) == key.encode() * 10_000
        assert get(place, "kept") == b"safe"


async def unless_ended(process: subprocess.Popen[str], work: Coroutine[Any, Any, None]) -> None:
    """Await `work`, but no longer than the process runs. Raises OutcomeUnknown when that ends first."""
    task = asyncio.ensure_future(work)
    ended = asyncio.ensure_future(asyncio.to_thread(process.wait))
    await asyncio.wait({task, ended}, return_when=asyncio.FIRST_COMPLETED)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    await ended
    if task.cancelled():
        raise OutcomeUnknown("the node has ended")
    await task


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--http=127.0.0.1:7101"], "--id is missing"),
        (["--id=a", "--http=127.0.0.1:7101", "--data=x", "--member=a=127.0.0.1:7001"], "--listen is missing"),
        (["--id=b", "--listen=127.0.0.1:1", "--http=127.0.0.1:2", "--data=x", "--member=a=127.0.0.1:1"], "not among"),
        (["--id=a", "--listen=127.0.0.1:0", "--http=127.0.0.1:2", "--data=x", "--member=a=127.0.0.1:1"], "1 to 65535"),
        (["--id=a", "--listen=0.0.0.0:1", "--http=127.0.0.1:2", "--data=x", "--member=a=127.0.0.1:1"], "loopback"),
        (["--id=a", "--listen=127.0.0.1:1", "--http=0.0.0.0:2", "--data=x", "--member=a=127.0.0.1:1"], "loopback"),
        (["--id=a", "--listen=127.0.0.1:1", "--http=here", "--data=x", "--member=a=127.0.0.1:1"], "'host:port'"),
        (["--http=127.0.0.1:2", "--member=a"], "must be NAME=HOST:PORT"),
        (["--http=127.0.0.1:2", "--member=a=x:1", "--member=a=y:2"], "each name once"),
        (["--http=127.0.0.1:2", "--shards=0"], "'--shards'"),
        (["--http=127.0.0.1:2", "--ringbuffer=7"], "No such option"),
        ([], "--http"),
    ],
)
def test_wrong_options_are_one_line(tmp_path: Path, arguments: list[str], complaint: str) -> None:
    ended = refused("node", *arguments)
    assert ended.code == server.EXIT_USAGE
    assert complaint in ended.complaint
    assert not (ROOT / "x").exists()


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ("node_id = ", "is not TOML"),
        ('node_id = "a"', "data_dir: is missing"),
        ('nodeid = "a"', "did you mean node_id?"),
        (
            'node_id="a"\ndata_dir="x"\nlisten="127.0.0.1:1"\nmembers={a="127.0.0.1:1"}\n[limits]\nbeat_ms="x"',
            "beat_ms",
        ),
        ('node_id="a"\ndata_dir="x"\nlisten="127.0.0.1:1"\nmembers=["a"]', "members: must map"),
        (None, "cannot be read"),
    ],
)
def test_nonsense_in_the_configuration_is_one_line(tmp_path: Path, content: str | None, complaint: str) -> None:
    path = tmp_path / "node.toml"
    if content is not None:
        path.write_text(content)
    ended = refused("node", "--http=127.0.0.1:2", f"--config={path}")
    assert ended.code == server.EXIT_USAGE
    assert complaint in ended.complaint
    assert str(path) in ended.complaint


def test_a_configuration_file_starts_a_node(place: Place) -> None:
    path = place.directory / "node.toml"
    path.write_text(
        f'node_id = "a"\ndata_dir = "{place.data}"\nlisten = "{place.listen}"\n[members]\na = "{place.listen}"\n'
    )
    both = refused("node", f"--http={place.http}", f"--config={path}", "--id=a")
    assert (both.code, "say it in one place" in both.complaint) == (server.EXIT_USAGE, True)
    process = subprocess.Popen(
        command("node", f"--http={place.http}", f"--config={path}"), cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    try:
        assert get(place, "kept") == b"safe"
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=SECONDS)
    finally:
        process.kill()
    assert process.returncode == 0


# -------------------------------------------------------------------------------------------------- its commands


def test_the_commands_of_a_user(place: Place, tmp_path: Path) -> None:
    (tmp_path / "some.csv").write_text("key,value\nb/1,x\nb/2,y\n")
    with Alone(place):
        for arguments, code, said in (
            (["put", "a/1", "one"], 0, ""),
            (["put", "a/2", "zwei ☃"], 0, ""),
            (["get", "a/2"], 0, "zwei ☃"),
            (["scan", "a/"], 0, "a/1\tone\na/2\tzwei ☃\n"),
            (["scan", "a/", "--limit", "1"], 0, "a/1\tone\n"),
            (["delete", "a/1"], 0, ""),
            (["cas", "a/3", "first"], 0, "first"),
            (["cas", "a/3", "second", "--expect", "first"], 0, "second"),
            (["cas", "a/3", "third", "--expect", "first"], 1, "second"),
            (["increment", "n"], 0, "1\n"),
            (["increment", "n", "41"], 0, "42\n"),
            (["scan", "b/"], 0, ""),
        ):
            assert use(place, *arguments) == (code, said, "")
        code, said, _ = use(place, "load", str(tmp_path / "some.csv"))
        assert (code, said.startswith("2 records acknowledged in ")) == (0, True)
        assert use(place, "scan", "b/") == (0, "b/1\tx\nb/2\ty\n", "")
        assert use(place, "get", "none") == (1, "", "error: there is no key 'none'\n")
        assert use(place, "delete", "none") == (1, "", "error: there is no key 'none'\n")
        code, _, complaint = use(place, "increment", "b/1")
        assert (code, "does not hold a whole number" in complaint) == (6, True)
        done = subprocess.run(  # and once as a process of its own
            command("--url", place.url, "get", "a/2"), cwd=ROOT, capture_output=True, timeout=SECONDS, check=False
        )
        assert (done.returncode, done.stdout.decode(), done.stderr) == (0, "zwei ☃", b"")
    code, _, complaint = use(place, "--timeout", "0.2", "get", "a/2")
    assert (code, "cannot be reached" in complaint) == (6, True)
    assert refused("--url", "nonsense", "get", "k").code == 2
    assert refused("put", "k").code == 2


def test_a_file_with_a_mistake_loads_nothing(place: Place, tmp_path: Path) -> None:
    (tmp_path / "bad.jsonl").write_text('{"key": "bad/1", "value": "x"}\n{"key": "bad/2"\n')
    with Alone(place):
        code, _, complaint = use(place, "load", str(tmp_path / "bad.jsonl"))
        assert (code, "bad.jsonl:2: is not JSON" in complaint, complaint.count("\n")) == (2, True, 1)
        assert get(place, "bad/1") is None
