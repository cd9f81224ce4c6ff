"""Whether LevelDB's own logs end where they were last written to.

LevelDB keeps two kinds of log in one format: the write-ahead log and the manifest. When it is opened it reads each to
its end, and takes a last record that is not whole for one that was being written when the process died: it drops it
without a word, with everything behind it in that block, 32 KiB at most. A bit that was flipped in a record's length
looks just like that. So what is dropped is looked at here, before the database is opened:

    a record whose length reaches beyond the file, though its checksum holds for what is there: the length is damaged
    whole records, with checksums that hold, behind one that is not: it was not the last thing that was written

A log that ends before what was synced is known by the note beside it (wal.py). What cannot be told from a write that
was cut short: a length damaged in the last record if that one was cut short, too. After an orderly stop that is noticed
as well: the closing record is missing then.

A record: CRC-32C of type and data, masked (4 bytes); length (2); type (1): whole, first, middle, last; the data. None
crosses a block of 32 KiB.

Rules of this file: reads only; what LevelDB itself refuses is left to it.
"""

from __future__ import annotations

import os
import struct
from typing import Final

from multiraft.errors import CorruptRecord
from multiraft.storage.wal import lost_end

_BLOCK: Final = 32 * 1024
_HEAD: Final = struct.Struct("<IHB")
_TYPES: Final = (1, 2, 3, 4)
_MASK: Final = 0xA282EAD8
_CANDIDATES_MAX: Final = 2_000


def _table() -> tuple[int, ...]:
    found = []
    for byte in range(256):
        for _ in range(8):
            byte = (byte >> 1) ^ (0x82F63B78 if byte & 1 else 0)
        found.append(byte)
    return tuple(found)


_TABLE: Final = _table()


def crc32c(data: bytes) -> int:
    """Return the CRC-32C (Castagnoli) of `data`. Slow: for a block of a log now and then."""
    value, table = 0xFFFFFFFF, _TABLE
    for byte in data:
        value = table[(value ^ byte) & 0xFF] ^ (value >> 8)
    return value ^ 0xFFFFFFFF


def masked(crc: int) -> int:
    """Return a checksum as LevelDB stores it."""
    return ((crc >> 15 | crc << 17) + _MASK) & 0xFFFFFFFF


def check_logs(database: str) -> None:
    """Look at the ends of all logs in the directory `database`. Raises CorruptRecord: one of them has lost its end."""
    for name in sorted(os.listdir(database)):
        if name.endswith(".log") or name.startswith("MANIFEST-"):
            problem = tail_problem(os.path.join(database, name))
            if problem:
                raise CorruptRecord(f"{name}: {problem}")
    problem = lost_end(database)
    if problem:
        raise CorruptRecord(problem)


def tail_problem(path: str) -> str:
    """Return what is wrong with the end of a log; empty where it may be as it was written."""
    size = os.path.getsize(path)
    start = max(0, size - 1) // _BLOCK * _BLOCK
    with open(path, "rb") as file:
        file.seek(start)
        block = file.read(_BLOCK)
    at = _end_of_whole_records(block)
    rest = block[at:]
    if len(rest) < _HEAD.size or not any(rest):
        return ""  # at most a header that was cut short, or room that was never written to
    where = f"the record at {start + at}"
    crc, length, kind = _HEAD.unpack_from(rest)
    there = len(rest) - _HEAD.size
    if length > there and kind in _TYPES and masked(crc32c(rest[6:])) == crc:
        return f"{where} says that it has {length} bytes, but its checksum is that of the {there} that are there"
    if length > there:
        behind = _whole_record_in(rest)
        if behind:
            return (
                f"{where} does not end within the file, but at {start + at + behind} another one begins, and is whole"
            )
    return ""


def _end_of_whole_records(block: bytes) -> int:
    """Return where the first record begins that does not fit into what is there of the block."""
    at = 0
    while len(block) - at >= _HEAD.size:
        _, length, kind = _HEAD.unpack_from(block, at)
        if at + _HEAD.size + length > len(block) or (kind == 0 and length == 0):
            break
        at += _HEAD.size + length
    return at


def _whole_record_in(rest: bytes) -> int:
    """Return where, behind its first byte, a record with a checksum that holds begins; 0 where none does."""
    tried = 0
    for at in range(1, len(rest) - _HEAD.size):
        crc, length, kind = _HEAD.unpack_from(rest, at)
        end = at + _HEAD.size + length
        if kind not in _TYPES or end > len(rest):
            continue
        tried += 1
        if masked(crc32c(rest[at + 6 : end])) == crc:
            return at
        if tried == _CANDIDATES_MAX:
            break
    return 0
