"""LevelDB's write-ahead log when it is changed for the next one: nothing unsynced is left behind in it.

Rules of this file: a real database with a small write buffer, so that logs change often.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import plyvel
import pytest

from multiraft.storage.wal import LogWatch


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
    assert 40 < number < 80  # the write buffer's size: the log was changed, and not before
    assert synced == ([] if synced_before else [inode])
    # In the new log nothing is unsynced but what was written to it.
    database.put(b"k", b"v", sync=True)
    watch.wrote(synced=True)
    assert len(synced) == (0 if synced_before else 1)
    watch.close()
    database.close()


def test_nothing_is_watched_before_the_first_unsynced_write(tmp_path: Path) -> None:
    watch = LogWatch(str(tmp_path / "nowhere"))
    watch.wrote(synced=True)
    watch.close()
    with pytest.raises(FileNotFoundError):
        watch.before_unsynced()
