"""Storage: one store per node, partitioned by group, on LevelDB, on SQLite, or in memory.

    open_leveldb(path, node_id, limits, loop)   the store of a node
    open_sqlite(path, node_id, limits, loop)    the same, where there is no LevelDB
    open_durable(kind, path, ...)               either, by its name
    open_memory(disk, node_id, limits, loop)    its twin for tests and simulations, on a MemoryDisk
    inspect_directory(path)                     what stands in a data directory, while its node is stopped

All are plain calls that block for a moment, and raise StorageError.
"""

from __future__ import annotations

if __name__ != "multiraft.storage":
    raise ImportError("this folder is multiraft.storage; import it under that name")

from multiraft.storage.inspect import GroupReport, StoreReport, inspect_directory
from multiraft.storage.memory import MemoryDisk
from multiraft.storage.memory_files import DiskImage
from multiraft.storage.offline import compact_directory, repair_directory, verify_directory
from multiraft.storage.opening import open_durable, open_leveldb, open_memory, open_sqlite, open_store
from multiraft.storage.salvage import salvage
from multiraft.storage.space import FileSpace, MemorySpace

__all__ = [
    "DiskImage",
    "FileSpace",
    "GroupReport",
    "MemoryDisk",
    "MemorySpace",
    "StoreReport",
    "compact_directory",
    "inspect_directory",
    "open_durable",
    "open_leveldb",
    "open_memory",
    "open_sqlite",
    "open_store",
    "repair_directory",
    "salvage",
    "verify_directory",
]
