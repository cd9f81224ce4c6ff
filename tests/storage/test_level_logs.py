"""The ends of LevelDB's own logs: what was damaged there, and what a crash may have cut short."""

from __future__ import annotations

import struct
from pathlib import Path
from random import Random

import plyvel
import pytest

from multiraft.config import Limits
from multiraft.errors import CorruptRecord
from multiraft.storage.level_logs import check_logs, crc32c, masked, tail_problem
from multiraft.storage.leveldb import open_database

BLOCK = 32 * 1024
HEAD = struct.Struct("<IHB")


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database whose log has some blocks, the last one with records of many sizes."""
    path = tmp_path_factory.mktemp("logs") / "db"
    opened, rng = plyvel.DB(str(path), create_if_missing=True), Random(1)
    for number in range(300):
        opened.put(b"%d" % number, rng.randbytes(rng.randrange(1, 900)), sync=True)
    opened.close()
    return path


def log_of(database: Path) -> Path:
    (found,) = database.glob("*.log")
    return found


def records_of_last_block(raw: bytes | bytearray) -> list[int]:
    at, found = (len(raw) - 1) // BLOCK * BLOCK, []
    while len(raw) - at >= HEAD.size:
        found.append(at)
        at += HEAD.size + HEAD.unpack_from(raw, at)[1]
    return found


def test_the_checksum_is_the_one_of_the_standard() -> None:
    assert crc32c(b"123456789") == 0xE3069283
    assert masked(0) == 0xA282EAD8


def test_logs_that_are_whole_are_let_pass(database: Path) -> None:
    check_logs(str(database))


def test_a_log_that_was_cut_short_anywhere_is_what_a_crash_leaves(database: Path, tmp_path: Path) -> None:
    raw = log_of(database).read_bytes()
    file = tmp_path / "000003.log"
    for end in range((len(raw) - 1) // BLOCK * BLOCK, len(raw), 7):
        file.write_bytes(raw[:end])
        assert tail_problem(str(file)) == "", end


def test_room_that_was_never_written_to_is_no_damage(database: Path, tmp_path: Path) -> None:
    file = tmp_path / "000003.log"
    file.write_bytes(log_of(database).read_bytes() + bytes(100))
    assert tail_problem(str(file)) == ""


def test_no_bit_of_a_length_makes_leveldb_drop_the_end_without_a_word(database: Path, tmp_path: Path) -> None:
    """LevelDB takes a length that reaches beyond the file for a write that was cut short; nothing says otherwise."""
    raw, name = log_of(database).read_bytes(), log_of(database).name
    dropped = 0
    for at in sorted({*records_of_last_block(raw)[::3], records_of_last_block(raw)[-1]}):
        for bit in range(16):
            turned = bytearray(raw)
            turned[at + 4 + bit // 8] ^= 1 << bit % 8
            path = tmp_path / f"{at}-{bit}" / "db"
            path.mkdir(parents=True)
            for file in database.iterdir():
                (path / file.name).write_bytes(turned if file.name == name else file.read_bytes())
            if len(raw) < at + HEAD.size + HEAD.unpack_from(turned, at)[1]:
                dropped += 1
                plyvel.DB(str(path), paranoid_checks=True).close()  # which finds nothing wrong
                for file in path.glob("*.log"):
                    file.unlink()
                (path / name).write_bytes(turned)
                with pytest.raises(CorruptRecord, match=f"{name}: the record at {at}"):
                    check_logs(str(path))
            else:
                with pytest.raises(plyvel.Error):
                    plyvel.DB(str(path), paranoid_checks=True)
    assert dropped > 20


def test_a_node_s_start_is_refused_with_the_ways_out(database: Path, tmp_path: Path) -> None:
    path = tmp_path / "n1"
    (path / "db").mkdir(parents=True)
    for file in database.iterdir():
        (path / "db" / file.name).write_bytes(file.read_bytes())
    log = log_of(path / "db")
    raw = bytearray(log.read_bytes())
    raw[records_of_last_block(raw)[-1] + 5] ^= 0x40
    log.write_bytes(raw)
    with pytest.raises(CorruptRecord, match=r"n1 is damaged: .*\.log: the record at .*readmit"):
        open_database(str(path), Limits())
