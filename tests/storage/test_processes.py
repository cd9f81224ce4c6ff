"""Data directories between processes, of both kinds: locks, rights, kills, full files, interpreters that just end.

Rules of this file: a child says by a line what it has done, and is waited for.
"""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest

from multiraft.config import Limits
from multiraft.errors import StorageError
from multiraft.ports import Store
from multiraft.storage import inspect_directory, open_durable
from multiraft.storage.directory import DATABASE_DIRS

if TYPE_CHECKING:
    from tests.storage.conftest import DirectoryPlace

GROUP: Final = 17
ROOT: Final = Path(__file__).resolve().parent.parent.parent
SMALL: Final = Limits(leveldb_write_buffer_bytes=64 * 1024)
NO_LIMIT: Final = 1 << 40


FAILS_WITH: Final = {"leveldb": "EFBIG", "sqlite": "EIO"}
"""SQLite does not say more."""


def opened(kind: str, path: Path | str, node_id: str = "n1") -> Store:
    return open_durable(kind, str(path), node_id, SMALL, asyncio.get_running_loop())


def refusal(kind: str, path: Path | str) -> str:
    """Open, which must be refused, in one line that names the directory; return it."""
    with pytest.raises(StorageError) as caught:
        opened(kind, path)
    text = str(caught.value)
    assert str(path) in text
    assert "\n" not in text
    return text


def test_a_directory_that_may_not_be_written(kind: str) -> None:
    """Root may write everywhere, so the child gives up its rights first."""
    folder = DATABASE_DIRS[kind]
    base = Path(tempfile.mkdtemp())
    try:
        for path in (base, base / "n1", base / "n2", base / "n2" / folder):
            path.mkdir(exist_ok=True)
            path.chmod(0o555)
        with child(OPEN_WITHOUT_RIGHTS, kind, str(base / "n1"), str(base / "n2"), str(base / "n3")) as running:
            lines = running.communicate(timeout=60)[0].splitlines()
    finally:
        for path in (base, base / "n2"):
            path.chmod(0o755)
        shutil.rmtree(base)
    assert len(lines) == 3
    for name, line in zip(("n1", "n2", "n3"), lines, strict=True):
        assert str(base / name) in line
        assert line.endswith("Permission denied; let this user read and write there, or name another directory")


OPEN_WITHOUT_RIGHTS: Final = """
import asyncio, os, sys
from multiraft.config import Limits
from multiraft.errors import StorageError
from multiraft.storage import open_durable

if os.geteuid() == 0:
    os.setuid(65_534)

async def main():
    for path in sys.argv[2:]:
        try:
            open_durable(sys.argv[1], path, "n1", Limits(), asyncio.get_running_loop())
        except StorageError as problem:
            print(problem)

asyncio.run(main())
"""

INSPECT_WITHOUT_RIGHTS: Final = """
import fcntl, os, sys
from multiraft.storage import inspect_directory

if os.geteuid() == 0:
    os.setuid(65_534)
print(inspect_directory(sys.argv[1]).incarnation)
"""

SUBMIT_AND_END: Final = """
import asyncio, sys
from multiraft.config import Limits
from multiraft.records import COMMANDS, encode_record
from multiraft.storage import open_durable

async def main():
    store = open_durable(sys.argv[1], sys.argv[2], "n1", Limits(), asyncio.get_running_loop())
    for first in range(2, 42):
        batch = store.batch()
        batch.put_record(17, encode_record(17, first, 1, 1, COMMANDS, 0, [b"x" * 1_000_000]))
        store.submit(batch, lambda _: None)

asyncio.run(main())
"""

OPEN_AND_WAIT: Final = """
import asyncio, sys
from multiraft.config import Limits
from multiraft.storage import open_durable

async def main():
    store = open_durable(sys.argv[1], sys.argv[2], "n1", Limits(), asyncio.get_running_loop())
    print("open", flush=True)
    sys.stdin.read()
    await store.close()

asyncio.run(main())
"""

WRITE_ON: Final = """
import asyncio, errno, resource, signal, sys
from multiraft.config import Limits
from multiraft.records import COMMANDS, encode_record
from multiraft.storage import open_durable

path, file_bytes, count = sys.argv[2], int(sys.argv[3]), int(sys.argv[4])

async def main():
    store = open_durable(sys.argv[1], path, "n1", Limits(), asyncio.get_running_loop())
    if file_bytes:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (file_bytes, file_bytes))
    for first in range(2, 2 + count):
        written = asyncio.get_running_loop().create_future()
        batch = store.batch()
        batch.put_record(17, encode_record(17, first, 1, 1, COMMANDS, 0, [b"x" * 1000]))
        store.submit(batch, written.set_result)
        error = await written
        number = error.__cause__.errno if error else 0
        print("failed " + errno.errorcode[number] if error else first, flush=True)
    # Neither closed nor ended: the interpreter goes down around it.

asyncio.run(main())
"""


@contextmanager
def child(script: str, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """Run a script in a process of its own, which ends with the block."""
    running = subprocess.Popen(
        [sys.executable, "-c", script, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"},
    )
    with running:
        try:
            yield running
        finally:
            running.kill()


def line_of(running: subprocess.Popen[str]) -> str:
    assert running.stdout is not None
    return running.stdout.readline().strip()


async def test_a_directory_that_may_only_be_read_can_be_inspected(kind: str) -> None:
    folder = DATABASE_DIRS[kind]
    base = Path(tempfile.mkdtemp())
    try:
        await opened(kind, base / "n1").close()
        for path in (base, base / "n1", base / "n1" / folder):
            path.chmod(0o555)
        for file in (base / "n1").rglob("*"):
            file.chmod(0o555)
        with child(INSPECT_WITHOUT_RIGHTS, str(base / "n1")) as running:
            assert running.communicate(timeout=60)[0] == "1\n"
    finally:
        for path in (base, base / "n1", base / "n1" / folder):
            path.chmod(0o755)
        shutil.rmtree(base)


async def test_a_directory_in_use_by_another_process_is_refused_by_its_pid(directory_place: DirectoryPlace) -> None:
    await directory_place.open().close()
    with child(OPEN_AND_WAIT, directory_place.kind, str(directory_place.path)) as running:
        assert line_of(running) == "open"
        who = f"in use by another process (pid {running.pid}); stop that one first, or name another directory"
        assert who in refusal(directory_place.kind, directory_place.path)
        with pytest.raises(StorageError, match=re.escape(who)):
            inspect_directory(str(directory_place.path))
        assert who in refusal(directory_place.kind, directory_place.path), "looking did not take the lock away"
        assert running.stdin is not None
        running.stdin.close()
        assert running.wait(60) == 0
    store = directory_place.open()
    assert (store.incarnation, store.closed_orderly) == (3, True)


async def test_a_directory_in_use_by_this_process_stays_locked_against_others(directory_place: DirectoryPlace) -> None:
    directory_place.open()
    assert "in use by this very process" in refusal(directory_place.kind, directory_place.path)
    with pytest.raises(StorageError, match="in use by this very process"):
        inspect_directory(str(directory_place.path))
    with child(OPEN_AND_WAIT, directory_place.kind, str(directory_place.path)) as running:
        assert f"in use by another process (pid {os.getpid()})" in running.communicate("", timeout=60)[0]


async def test_what_was_acknowledged_survives_a_kill(tmp_path: Path, kind: str) -> None:
    with child(WRITE_ON, kind, str(tmp_path / "n1"), "0", "100000") as running:
        acknowledged = [int(line_of(running)) for _ in range(100)]
        running.send_signal(signal.SIGKILL)
        assert running.stdout is not None
        acknowledged += [int(line) for line in running.stdout]
    store = opened(kind, tmp_path / "n1")
    held = store.read_firsts(GROUP, 0)
    await store.close()
    assert acknowledged == list(range(2, 2 + len(acknowledged)))
    assert held[: len(acknowledged)] == acknowledged
    assert len(held) <= len(acknowledged) + 1
    assert not store.closed_orderly


async def test_a_file_that_may_not_grow_fails_that_write_and_all_later_ones(tmp_path: Path, kind: str) -> None:
    with child(WRITE_ON, kind, str(tmp_path / "n1"), "100000", "120") as running:
        lines = running.communicate(timeout=60)[0].split("\n")[:-1]
        assert running.returncode == 0
    acknowledged = [int(line) for line in lines if line.isdigit()]
    assert 0 < len(acknowledged) < 120
    assert lines == [str(first) for first in acknowledged] + [f"failed {FAILS_WITH[kind]}"] * (120 - len(acknowledged))
    store = opened(kind, tmp_path / "n1")
    assert store.read_firsts(GROUP, 0)[: len(acknowledged)] == acknowledged
    await store.close()


async def test_an_interpreter_that_ends_without_closing_ends_well_and_loses_nothing(tmp_path: Path, kind: str) -> None:
    with child(WRITE_ON, kind, str(tmp_path / "n1"), "0", "3") as running:
        assert running.communicate(timeout=60)[0].split() == ["2", "3", "4"]
        assert running.returncode == 0
    store = opened(kind, tmp_path / "n1")
    assert (store.read_firsts(GROUP, 0), store.closed_orderly) == ([2, 3, 4], False)
    await store.close()


async def test_what_was_submitted_is_written_before_the_interpreter_ends(tmp_path: Path, kind: str) -> None:
    with child(SUBMIT_AND_END, kind, str(tmp_path / "n1")) as running:
        assert running.communicate(timeout=60)[0] == ""
        assert running.returncode == 0
    store = opened(kind, tmp_path / "n1")
    assert store.read_firsts(GROUP, 0) == list(range(2, 42))
    await store.close()
