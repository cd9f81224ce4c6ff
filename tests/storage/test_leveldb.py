"""LevelDB alone: bad directories, damaged files, other processes, and the writer thread.

Rules of this file: every refusal is one line that says what to do; children are waited for; a test that needs the
writer to be busy blocks it, and never hopes that it is.
"""

from __future__ import annotations

import asyncio
import errno
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, cast

import plyvel
import pytest

from multiraft.config import Limits
from multiraft.errors import CorruptRecord, StorageError
from multiraft.ports import Store
from multiraft.records import COMMANDS, encode_record
from multiraft.storage import inspect_directory, leveldb, open_leveldb
from multiraft.types import HardState, LogStart, ReplicaDescriptor, founding_membership

if TYPE_CHECKING:
    from tests.storage.conftest import LevelPlace

GROUP: Final = 17
ROOT: Final = Path(__file__).resolve().parent.parent.parent
SMALL: Final = Limits(leveldb_write_buffer_bytes=64 * 1024)
NO_LIMIT: Final = 1 << 40


def opened(path: Path | str, node_id: str = "n1") -> Store:
    return open_leveldb(str(path), node_id, SMALL, asyncio.get_running_loop())


def refusal(path: Path | str) -> str:
    """Open, which must be refused, in one line that names the directory; return it."""
    with pytest.raises(StorageError) as caught:
        opened(path)
    text = str(caught.value)
    assert str(path) in text
    assert "\n" not in text
    return text


# ----------------------------------------------------------------------------------------------- bad directories


async def test_a_missing_directory_is_made_with_its_parents(tmp_path: Path) -> None:
    store = opened(tmp_path / "a" / "b")
    await store.close()
    assert sorted(os.listdir(tmp_path / "a" / "b")) == ["IDENTITY", "db"]


async def test_a_file_is_no_directory(tmp_path: Path) -> None:
    file = tmp_path / "n1"
    file.write_text("mine")
    assert "is not a directory; name a directory" in refusal(file)
    assert "Not a directory; name another directory" in refusal(file / "below")
    assert file.read_text() == "mine"


async def test_a_path_that_is_too_long(tmp_path: Path) -> None:
    assert "File name too long; name a directory with a shorter path" in refusal(tmp_path / ("x" * 300))


def test_a_directory_that_may_not_be_written() -> None:
    """Root may write everywhere, so the child gives up its rights first."""
    base = Path(tempfile.mkdtemp())
    try:
        for path in (base, base / "n1", base / "n2", base / "n2" / "db"):
            path.mkdir(exist_ok=True)
            path.chmod(0o555)
        with child(OPEN_WITHOUT_RIGHTS, str(base / "n1"), str(base / "n2"), str(base / "n3")) as running:
            lines = running.communicate(timeout=60)[0].splitlines()
    finally:
        for path in (base, base / "n2"):
            path.chmod(0o755)
        shutil.rmtree(base)
    assert len(lines) == 3
    for name, line in zip(("n1", "n2", "n3"), lines, strict=True):
        assert str(base / name) in line
        assert line.endswith("Permission denied; let this user read and write there, or name another directory")


# ------------------------------------------------------------------------------------------------ damaged files


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with several tables, after five orderly runs; the last wrote nothing. Tests damage copies of it."""
    path = tmp_path_factory.mktemp("filled") / "n1"

    async def fill() -> None:
        for group_id in range(GROUP, GROUP + 4):
            store, written = opened(path), asyncio.Event()
            batch = store.batch()
            batch.create_replica(
                ReplicaDescriptor(group_id, 1, "kv"), founding_membership(("n1",)), HardState(1, 0, 1), LogStart(1, 1)
            )
            for first in range(2, 402):
                batch.put_record(group_id, encode_record(group_id, first, 1, 1, COMMANDS, 0, [os.urandom(150)]))
            store.submit(batch, lambda _, written=written: written.set())  # type: ignore[misc]
            await written.wait()
            await store.close()
        await opened(path).close()

    asyncio.run(fill())
    return path


def newest(path: Path, pattern: str) -> Path:
    return max((path / "db").glob(pattern))


def oldest(path: Path, pattern: str) -> Path:
    return min((path / "db").glob(pattern))


def flip(file: Path, position: int) -> None:
    raw = bytearray(file.read_bytes())
    raw[position] ^= 0x55
    file.write_bytes(raw)


def shorten(file: Path, count: int) -> None:
    os.truncate(file, file.stat().st_size - count)


def make_anew(database: Path) -> None:
    shutil.rmtree(database)
    plyvel.DB(str(database), create_if_missing=True).close()


DAMAGES: Final[dict[str, tuple[Callable[[Path], object], str]]] = {
    "CURRENT removed": (lambda p: (p / "db/CURRENT").unlink(), "has lost its database: .*no CURRENT file"),
    "CURRENT overwritten": (lambda p: (p / "db/CURRENT").write_text("?"), "is damaged: Corruption: CURRENT file"),
    "CURRENT astray": (lambda p: (p / "db/CURRENT").write_text("MANIFEST-9\n"), "non-existent file: .*MANIFEST-9"),
    "MANIFEST flipped": (lambda p: flip(newest(p, "MANIFEST*"), 20), "is damaged: Corruption: checksum mismatch"),
    "MANIFEST emptied": (lambda p: newest(p, "MANIFEST*").write_bytes(b""), "is damaged: Corruption: no meta-nextfile"),
    "MANIFEST removed": (lambda p: newest(p, "MANIFEST*").unlink(), "CURRENT points to a non-existent file"),
    "table flipped": (lambda p: flip(oldest(p, "*.ldb"), 2_000), "is damaged: Corruption: block checksum mismatch"),
    "table emptied": (lambda p: oldest(p, "*.ldb").write_bytes(b""), r"is damaged: .*\.ldb"),
    "table removed": (lambda p: oldest(p, "*.ldb").unlink(), "is damaged: Corruption: 1 missing files; e.g.: "),
    "log flipped": (lambda p: flip(newest(p, "*.log"), 10), "is damaged: Corruption: checksum mismatch"),
    "log cut": (lambda p: shorten(newest(p, "*.log"), 3), "last wrote: .* within run 5, but run 5 ended"),
    "log emptied": (lambda p: newest(p, "*.log").write_bytes(b""), "last wrote: .* within run 4, but run 5 ended"),
    "log removed": (lambda p: newest(p, "*.log").unlink(), "last wrote: .* within run 4, but run 5 ended"),
    "database removed": (lambda p: shutil.rmtree(p / "db"), "has lost its database"),
    "database made anew": (lambda p: make_anew(p / "db"), "belongs to node 'n1', but its database came back empty"),
    "IDENTITY emptied": (lambda p: (p / "IDENTITY").write_bytes(b""), "is damaged: IDENTITY file: only 0 bytes"),
    "IDENTITY removed": (lambda p: (p / "IDENTITY").unlink(), "has lost its IDENTITY file"),
}


@pytest.mark.parametrize("name", DAMAGES)
async def test_damage_is_refused_with_the_ways_out(filled: Path, tmp_path: Path, name: str) -> None:
    path = tmp_path / "n1"
    shutil.copytree(filled, path)
    damage, expected = DAMAGES[name]
    damage(path)
    with pytest.raises(StorageError) as caught:
        await load(path)
    text = str(caught.value)
    assert re.search(expected, text)
    assert text.endswith(f"Put back a copy made since its node last ran, or remove {path} if its contents may be lost")
    assert "\n" not in text
    assert re.search(expected, inspected(path))


def inspected(path: Path) -> str:
    """Return what the inspection says is wrong with the store as a whole."""
    try:
        return "\n".join(inspect_directory(str(path)).problems)
    except StorageError as problem:
        return str(problem)


async def load(path: Path) -> int:
    store = opened(path)
    try:
        return len(store.load_replicas())
    finally:
        await store.close()


async def test_the_undamaged_copy_is_accepted(filled: Path, tmp_path: Path) -> None:
    shutil.copytree(filled, tmp_path / "n1")
    assert await load(tmp_path / "n1") == 4


@pytest.mark.parametrize("seed", range(10))
async def test_a_flipped_byte_in_a_table_is_refused_or_changes_nothing(filled: Path, tmp_path: Path, seed: int) -> None:
    """Bytes that LevelDB does not use (padding, filler) may change; what is read never does."""
    path = tmp_path / "n1"
    shutil.copytree(filled, path)
    table = max((path / "db").glob("*.ldb"), key=lambda file: file.stat().st_size)
    flip(table, (seed * 7919) % table.stat().st_size)
    whole = await opened_values(filled, tmp_path / "whole")
    damaged = await opened_values(path, tmp_path / "damaged")
    assert whole is not None
    assert damaged is None or damaged == whole


async def opened_values(path: Path, copy: Path) -> list[bytes] | None:
    """Return every record of every group as the store reads it; None where it refuses."""
    shutil.copytree(path, copy)
    try:
        store = opened(copy)
    except StorageError:
        return None
    try:
        groups = [replica.descriptor.group_id for replica in store.load_replicas()]
        return [record.raw for g in groups for record in store.read_records(g, 2, 401, NO_LIMIT)]
    except StorageError:
        return None
    finally:
        await store.close()


async def test_a_log_cut_in_a_run_that_crashed_shows_as_a_run_that_did_not_end(level_place: LevelPlace) -> None:
    store = level_place.open()
    await level_place.found(store, [level_place.record(2, 3)], HardState(1, 0, 3))
    batch = store.batch()
    batch.put_record(GROUP, level_place.record(4, 5))
    await level_place.write(store, batch)
    level_place.end_abruptly(store)
    shorten(newest(level_place.path, "*.log"), 5)
    store = level_place.open()
    assert not store.closed_orderly
    (replica,) = store.load_replicas()
    assert replica.last_index == 3, "the cut batch is gone as a whole"
    level_place.end_abruptly(store)


async def test_a_log_cut_below_the_commit_is_refused(level_place: LevelPlace) -> None:
    store = level_place.open()
    await level_place.found(store, [level_place.record(2, 9)], HardState(1, 0, 9))
    await store.close()
    with plyvel.DB(str(level_place.path / "db")) as database:
        database.delete(b"\0\0\0\0\0\0\0\x11\x07" + b"\0\0\0\0\0\0\0\x02")
    with pytest.raises(CorruptRecord, match=r"commit 9 is not within its log \(1 to 1\)"):
        level_place.open().load_replicas()


# ----------------------------------------------------------------------------------------------- other processes

OPEN_WITHOUT_RIGHTS: Final = """
import asyncio, os, sys
from multiraft.config import Limits
from multiraft.errors import StorageError
from multiraft.storage import open_leveldb

if os.geteuid() == 0:
    os.setuid(65_534)

async def main():
    for path in sys.argv[1:]:
        try:
            open_leveldb(path, "n1", Limits(), asyncio.get_running_loop())
        except StorageError as problem:
            print(problem)

asyncio.run(main())
"""

OPEN_AND_WAIT: Final = """
import asyncio, sys
from multiraft.config import Limits
from multiraft.storage import open_leveldb

async def main():
    store = open_leveldb(sys.argv[1], "n1", Limits(), asyncio.get_running_loop())
    print("open", flush=True)
    sys.stdin.read()
    await store.close()

asyncio.run(main())
"""

WRITE_ON: Final = """
import asyncio, errno, resource, signal, sys
from multiraft.config import Limits
from multiraft.records import COMMANDS, encode_record
from multiraft.storage import open_leveldb

path, file_bytes, count = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])

async def main():
    store = open_leveldb(path, "n1", Limits(), asyncio.get_running_loop())
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
    try:
        yield running
    finally:
        running.kill()
        running.communicate()


def line_of(running: subprocess.Popen[str]) -> str:
    assert running.stdout is not None
    return running.stdout.readline().strip()


async def test_a_directory_in_use_by_another_process_is_refused_by_its_pid(level_place: LevelPlace) -> None:
    await level_place.open().close()
    with child(OPEN_AND_WAIT, str(level_place.path)) as running:
        assert line_of(running) == "open"
        who = f"in use by another process (pid {running.pid}); stop that one first, or name another directory"
        assert who in refusal(level_place.path)
        with pytest.raises(StorageError, match=re.escape(who)):
            inspect_directory(str(level_place.path))
        assert who in refusal(level_place.path), "looking did not take the lock away"
        running.communicate("", timeout=60)
        assert running.returncode == 0
    store = level_place.open()
    assert (store.incarnation, store.closed_orderly) == (3, True)


async def test_a_directory_in_use_by_this_process_stays_locked_against_others(level_place: LevelPlace) -> None:
    level_place.open()
    assert "in use by this very process" in refusal(level_place.path)
    with pytest.raises(StorageError, match="in use by this very process"):
        inspect_directory(str(level_place.path))
    with child(OPEN_AND_WAIT, str(level_place.path)) as running:
        assert f"in use by another process (pid {os.getpid()})" in running.communicate("", timeout=60)[0]


async def test_what_was_acknowledged_survives_a_kill(tmp_path: Path) -> None:
    with child(WRITE_ON, str(tmp_path / "n1"), "0", "100000") as running:
        acknowledged = [int(line_of(running)) for _ in range(100)]
        running.send_signal(signal.SIGKILL)
        acknowledged += [int(line) for line in running.communicate()[0].split()]
    store = opened(tmp_path / "n1")
    held = store.read_firsts(GROUP, 0)
    await store.close()
    assert acknowledged == list(range(2, 2 + len(acknowledged)))
    assert held[: len(acknowledged)] == acknowledged
    assert len(held) <= len(acknowledged) + 1
    assert not store.closed_orderly


async def test_a_file_that_may_not_grow_fails_that_write_and_all_later_ones(tmp_path: Path) -> None:
    with child(WRITE_ON, str(tmp_path / "n1"), "100000", "120") as running:
        lines = running.communicate(timeout=60)[0].split("\n")[:-1]
        assert running.returncode == 0
    acknowledged = [int(line) for line in lines if line.isdigit()]
    assert 0 < len(acknowledged) < 120
    assert lines == [str(first) for first in acknowledged] + ["failed EFBIG"] * (120 - len(acknowledged))
    store = opened(tmp_path / "n1")
    assert store.read_firsts(GROUP, 0)[: len(acknowledged)] == acknowledged
    await store.close()


async def test_an_interpreter_that_ends_without_closing_ends_well_and_loses_nothing(tmp_path: Path) -> None:
    with child(WRITE_ON, str(tmp_path / "n1"), "0", "3") as running:
        assert running.communicate(timeout=60)[0].split() == ["2", "3", "4"]
        assert running.returncode == 0
    store = opened(tmp_path / "n1")
    assert (store.read_firsts(GROUP, 0), store.closed_orderly) == ([2, 3, 4], False)
    await store.close()


# --------------------------------------------------------------------------------------------- the writer thread


class BusyWriter:
    """Keeps the writer thread inside its next write until `go_on`; collects completions in order."""

    def __init__(self, store: Store, place: LevelPlace) -> None:
        self.store = store
        self.place = place
        self.seen: list[int] = []
        self.batches: list[int] = []
        self.finished = asyncio.Event()
        self._go_on = threading.Event()
        self._entered = threading.Event()
        backend = cast(Any, store)._backend
        write = backend._write_synced

        def blocked(batch: Any) -> None:
            self._entered.set()
            self._go_on.wait(60)
            self.batches.append(batch.approximate_size())
            write(batch)

        backend._write_synced = blocked

    def submit(self, first: int, last: bool = False, size: int = 4) -> None:
        batch = self.store.batch()
        batch.put_record(GROUP, self.place.record(first, first, size=size))

        def done(error: Exception | None) -> None:
            self.seen.append(first if error is None else -first)
            if last:
                self.finished.set()

        self.store.submit(batch, done)

    def wait_until_busy(self) -> None:
        assert self._entered.wait(60)

    def go_on(self) -> None:
        self._go_on.set()


async def test_batches_that_wait_together_share_one_sync_and_one_wake_up(
    level_place: LevelPlace, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = level_place.open()
    writer, before = BusyWriter(store, level_place), store.syncs
    loop = asyncio.get_running_loop()
    wake_ups: list[object] = []
    wake = loop.call_soon_threadsafe

    def counted(callback: Any, *arguments: Any, context: Any = None) -> asyncio.Handle:
        wake_ups.append(callback)
        return wake(callback, *arguments)

    monkeypatch.setattr(loop, "call_soon_threadsafe", counted)
    writer.submit(2)
    writer.wait_until_busy()
    for first in range(3, 13):
        writer.submit(first, last=first == 12)
    writer.go_on()
    await writer.finished.wait()
    assert writer.seen == list(range(2, 13))
    assert store.syncs == before + 2
    assert len(wake_ups) <= 2
    assert store.read_firsts(GROUP, 0) == list(range(2, 13))


async def test_merging_stops_at_its_bound(level_place: LevelPlace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leveldb, "MERGE_BYTES", 3_000)
    store = level_place.open()
    writer = BusyWriter(store, level_place)
    writer.submit(2)
    writer.wait_until_busy()
    for first in range(3, 9):
        writer.submit(first, last=first == 8, size=1_000)
    writer.go_on()
    await writer.finished.wait()
    assert len(writer.batches) == 3
    assert max(writer.batches) < 5_000


class RecordingDatabase:
    """Passes everything on to the database, and notes how batches are made."""

    def __init__(self, database: Any) -> None:
        self._database = database
        self.made: list[dict[str, bool]] = []

    def write_batch(self, **options: bool) -> object:
        self.made.append(options)
        return self._database.write_batch(**options)

    def __getattr__(self, name: str) -> object:
        return getattr(self._database, name)


async def test_every_batch_is_synced(level_place: LevelPlace, monkeypatch: pytest.MonkeyPatch) -> None:
    databases: list[RecordingDatabase] = []

    def recorded(*arguments: Any, **options: Any) -> RecordingDatabase:
        assert options["paranoid_checks"] is True
        databases.append(RecordingDatabase(real(*arguments, **options)))
        return databases[-1]

    real = plyvel.DB
    monkeypatch.setattr(plyvel, "DB", recorded)
    store = level_place.open()
    store.bind_cluster(b"c" * 16, {"n1": store.identity.store_id})
    await level_place.found(store, [level_place.record(2, 2)])
    await store.close()
    (database,) = databases
    assert len(database.made) == 5, "identity, incarnation, cluster, replica, closing"
    assert database.made == [{"sync": True}] * 5


async def test_reads_go_on_while_the_writer_is_busy(level_place: LevelPlace) -> None:
    store = level_place.open()
    await level_place.found(store, [level_place.record(2, 3)])
    writer = BusyWriter(store, level_place)
    writer.submit(4, last=True)
    writer.wait_until_busy()
    assert store.read_firsts(GROUP, 0) == [2]
    assert len(store.load_replicas()) == 1
    writer.go_on()
    await writer.finished.wait()


async def test_whatever_is_thrown_in_the_writer_thread_is_a_failed_write(level_place: LevelPlace) -> None:
    store = level_place.open()

    def throw(_: object) -> None:
        raise SystemExit(3)

    cast(Any, store)._backend._write_synced = throw
    for _ in range(2):
        batch = store.batch()
        batch.put_record(GROUP, level_place.record(2, 2))
        with pytest.raises(StorageError) as caught:
            await level_place.write(store, batch)
        assert isinstance(caught.value.__cause__, SystemExit)


async def test_leveldbs_own_errors_carry_their_errno(level_place: LevelPlace) -> None:
    store = level_place.open()

    def throw(_: object) -> None:
        raise plyvel.IOError(b"IO error: /somewhere/000007.log: No space left on device")

    cast(Any, store)._backend._write_synced = throw
    with pytest.raises(StorageError) as caught:
        await level_place.write(store, store.batch())
    assert isinstance(caught.value.__cause__, OSError)
    assert caught.value.__cause__.errno == errno.ENOSPC
    assert "/somewhere/000007.log" in str(caught.value)
    assert "free some space" in str(caught.value)


async def test_the_identity_file_is_replaced_as_a_whole(
    level_place: LevelPlace, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = level_place.open()
    before = level_place.identity_file()
    synced: list[str] = []
    fsync = os.fsync

    def watched(descriptor: int) -> None:
        synced.append(os.readlink(f"/proc/self/fd/{descriptor}"))
        fsync(descriptor)

    def refuse(source: str, target: str) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "fsync", watched)
    with monkeypatch.context() as failing:
        failing.setattr(os, "replace", refuse)
        with pytest.raises(StorageError, match="IDENTITY cannot be written: Input/output error"):
            store.bind_cluster(b"c" * 16, {"n1": store.identity.store_id})
    assert level_place.identity_file() == before
    assert not store.identity.formed
    synced.clear()
    store.bind_cluster(b"c" * 16, {"n1": store.identity.store_id})
    assert synced == [str(level_place.path / "IDENTITY.tmp"), str(level_place.path)]
    assert sorted(os.listdir(level_place.path)) == ["IDENTITY", "db"]
