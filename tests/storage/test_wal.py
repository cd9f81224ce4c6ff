"""LevelDB's write-ahead log: nothing unsynced is left behind when it is changed for the next one; a lost end shows.

Rules of this file: a real database with a small write buffer, so that logs change often.
"""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path
from typing import Any

import plyvel
import pytest

from multiraft.errors import CorruptRecord
from multiraft.storage.level_logs import check_logs
from multiraft.storage.wal import NOTE_FILE, LogWatch, lost_end


def logs(path: Path) -> list[str]:
    return sorted(name for name in os.listdir(path) if name.endswith(".log"))


@pytest.mark.parametrize("synced_before", [False, True])
def test_the_log_that_was_left_is_synced_if_something_in_it_was_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, synced_before: bool
) -> None:
    synced: list[int] = []
    monkeypatch.setattr("multiraft.storage.wal.os.fsync", lambda file: synced.append(os.fstat(file).st_ino))
    database: Any = plyvel.DB(str(tmp_path), create_if_missing=True, write_buffer_size=64 * 1024)
    watch = LogWatch(str(tmp_path))
    watch.before_unsynced()
    first = logs(tmp_path)
    inode = os.stat(tmp_path / first[0]).st_ino
    number = 0
    while not synced and logs(tmp_path)[-1:] == first:
        number += 1
        database.put(b"%d" % number, b"x" * 1_000)
        watch.wrote(synced=synced_before)
        watch.told()
    assert 40 < number < 80  # the write buffer's size: the log was changed, and not before
    assert synced == ([] if synced_before else [inode])
    # In the new log nothing is unsynced but what was written to it.
    database.put(b"k", b"v", sync=True)
    watch.wrote(synced=True)
    assert len(synced) == (0 if synced_before else 1)
    watch.close()
    database.close()


def test_a_database_without_a_log_is_an_error(tmp_path: Path) -> None:
    watch = LogWatch(str(tmp_path / "nowhere"))
    with pytest.raises(FileNotFoundError):
        watch.before_unsynced()
    with pytest.raises(FileNotFoundError):
        watch.wrote(synced=False)
    watch.wrote(synced=True)
    with pytest.raises(FileNotFoundError):
        watch.told()
    watch.close()


def written(path: Path, count: int, synced: bool = True, write_buffer_size: int = 1 << 22) -> None:
    """Write to a new database, and let go of it as a process does that is killed."""
    database: Any = plyvel.DB(str(path / "made"), create_if_missing=True, write_buffer_size=write_buffer_size)
    watch = LogWatch(str(path / "made"))
    for number in range(count):
        database.put(b"%d" % number, b"x" * 1_000, sync=synced)
        watch.wrote(synced)
        watch.told()
    shutil.copytree(path / "made", path / "db")
    watch.close()
    database.close()


def test_no_log_that_was_cut_short_of_what_was_synced_is_let_pass(tmp_path: Path) -> None:
    written(tmp_path, 12)
    database = tmp_path / "db"
    (name,) = logs(database)
    raw = (database / name).read_bytes()
    check_logs(str(database))
    step = len(raw) // 12  # between two records, where LevelDB finds nothing wrong
    for end in (0, *range(step, len(raw), step), len(raw) - 1):
        (database / name).write_bytes(raw[:end])
        with pytest.raises(CorruptRecord, match=f"{name}: it ends at {end}, but writes up to {len(raw)} were synced"):
            check_logs(str(database))


def test_what_was_never_synced_may_be_missing(tmp_path: Path) -> None:
    written(tmp_path, 12, synced=False)
    database = tmp_path / "db"
    (name,) = logs(database)
    (database / name).write_bytes(b"")
    assert lost_end(str(database)) == ""


def test_a_log_that_was_changed_for_the_next_one_is_noted(tmp_path: Path) -> None:
    written(tmp_path, 100, write_buffer_size=64 * 1024)
    database = tmp_path / "db"
    newest = logs(database)[-1]
    assert newest != "000003.log"
    check_logs(str(database))
    os.truncate(database / newest, 100)
    assert lost_end(str(database)).startswith(f"{newest}: it ends at 100")
    (database / newest).unlink()
    assert lost_end(str(database)) == ""


@pytest.mark.parametrize("note", [b"", b"\0" * 20, b"x" * 21])
def test_a_note_that_is_none_says_nothing(tmp_path: Path, note: bytes) -> None:
    written(tmp_path, 3)
    database = tmp_path / "db"
    os.truncate(database / logs(database)[0], 100)
    assert lost_end(str(database))
    (database / NOTE_FILE).write_bytes(note)
    assert lost_end(str(database)) == ""


def test_a_disk_that_has_no_room_for_the_note_fails_no_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("multiraft.storage.wal.os.pwrite", full)
    written(tmp_path, 3)
    assert lost_end(str(tmp_path / "db")) == ""
