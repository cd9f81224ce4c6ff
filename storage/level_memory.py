"""How LevelDB's options follow from how much memory it may take.

    a third   each of its two write buffers: one is filled while the other is put into a file. The larger they are, the
              fewer and larger are the files that are put together later, and the longer can writes go on before LevelDB
              makes them wait for that
    a sixth   blocks that were read
    a sixth   what it keeps of each open file: its index, and its filter of keys, about a 32nd of its size

Rules of this file: numbers in, numbers out. The budget is for what LevelDB allocates; files that it maps are the
system's page cache, which gives way by itself.
"""

from __future__ import annotations

import resource
from typing import Final, NamedTuple

from multiraft.config import Limits

_KIB: Final = 1024
_MIB: Final = 1024 * 1024
_FILE_LEAST_BYTES: Final = 2 * _MIB
_FILE_MOST_BYTES: Final = 32 * _MIB
_KEPT_OF_FILE: Final = 32
_FILES_LEAST: Final = 64
_FILES_MOST: Final = 50_000


class LevelMemory(NamedTuple):
    """Options of LevelDB.

    write_buffer_bytes  of each of the two
    cache_bytes         of blocks, uncompressed
    file_bytes          how large a file of sorted keys becomes
    open_files          how many are kept open
    """

    write_buffer_bytes: int
    cache_bytes: int
    file_bytes: int
    open_files: int


def level_memory(limits: Limits, descriptors: int | None = None) -> LevelMemory:
    """Return what LevelDB is opened with under these limits.

    descriptors  how many files the process may have open; None: as the system says. LevelDB gets half of them at most
    """
    budget = limits.store_memory_bytes
    write_buffer = limits.leveldb_write_buffer_bytes or max(64 * _KIB, budget // 3)
    file_bytes = min(_FILE_MOST_BYTES, max(_FILE_LEAST_BYTES, write_buffer // 16))
    if descriptors is None:
        descriptors, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = _FILES_MOST if descriptors == resource.RLIM_INFINITY else min(_FILES_MOST, descriptors // 2)
    open_files = max(_FILES_LEAST, min(most, budget // 6 // (file_bytes // _KEPT_OF_FILE)))
    return LevelMemory(write_buffer, max(256 * _KIB, budget // 6), file_bytes, open_files)
