"""What is synced, as the operating system sees it: a write that completes has asked the disk, not only the database.

In a process of its own the kernel is told to fail every sync with EIO. A write that is completed without an error
there was acknowledged without a sync.
"""

from __future__ import annotations

import errno
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest

from multiraft.errors import StorageError

if TYPE_CHECKING:
    from tests.storage.conftest import Place

ROOT: Final = Path(__file__).resolve().parent.parent.parent
CANNOT: Final = "this system lets no process filter its own system calls"

# A classic BPF program, for seccomp(2): load the number of the call; fsync (74) and fdatasync (75) get EIO.
FILTER: Final = """
import asyncio, ctypes, struct, sys
from multiraft.config import Limits
from multiraft.records import COMMANDS, encode_record
from multiraft.storage import open_durable

def fail_every_sync():
    program = b"".join(struct.pack("HBBI", *each) for each in [
        (0x20, 0, 0, 0), (0x15, 2, 0, 74), (0x15, 1, 0, 75), (0x06, 0, 0, 0x7FFF0000), (0x06, 0, 0, 0x00050005),
    ])
    held = ctypes.create_string_buffer(program)
    described = ctypes.create_string_buffer(struct.pack("HxxxxxxQ", len(program) // 8, ctypes.addressof(held)))
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(38, 1, 0, 0, 0) or libc.syscall(317, 1, 1, described):  # no new rights; for all threads
        print("cannot")
        sys.exit()

async def write(store, first, sync=True):
    written = asyncio.get_running_loop().create_future()
    batch = store.batch()
    if first:
        batch.put_record(17, encode_record(17, first, 1, 1, COMMANDS, 0, [b"x"]))
    store._backend.submit(batch.raw, written.set_result, sync)
    error = await written
    print("completed" if error is None else f"failed {getattr(error.__cause__, 'errno', None)}", flush=True)

"""

WRITE_WITHOUT_SYNC: Final = """
async def main():
    store = open_durable(sys.argv[1], sys.argv[2], "n1", Limits(), asyncio.get_running_loop())
    await write(store, 2)
    fail_every_sync()
    await write(store, 3)
    await write(store, 4)

asyncio.run(main())
"""

WRITE_UNSYNCED_THEN_NOTHING: Final = """
async def main():
    store = open_durable(sys.argv[1], sys.argv[2], "n1", Limits(), asyncio.get_running_loop())
    fail_every_sync()
    await write(store, 2, False)
    await write(store, 0)

asyncio.run(main())
"""


def lines_of(script: str, kind: str, path: Path) -> list[str]:
    """Run the script on a data directory, and return what it says. Skips where no such filter can be set."""
    run = subprocess.run(
        [sys.executable, "-c", FILTER + script, kind, str(path)],
        env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    lines = run.stdout.split("\n")[:-1]
    if lines[-1:] == ["cannot"]:
        pytest.skip(CANNOT)
    assert not run.returncode, run.stderr
    return lines


ON_LINUX: Final = pytest.mark.skipif(
    (sys.platform, platform.machine()) != ("linux", "x86_64"), reason="the filter is one of Linux on x86-64"
)


@ON_LINUX
def test_a_write_is_synced_by_the_system_before_it_is_completed(kind: str, tmp_path: Path) -> None:
    lines = lines_of(WRITE_WITHOUT_SYNC, kind, tmp_path / "n1")
    assert lines == ["completed", f"failed {errno.EIO}", f"failed {errno.EIO}"]


@ON_LINUX
def test_a_write_that_needs_no_sync_has_none_but_the_next_one_syncs_it_though_it_be_empty(
    kind: str, tmp_path: Path
) -> None:
    assert lines_of(WRITE_UNSYNCED_THEN_NOTHING, kind, tmp_path / "n1") == ["completed", f"failed {errno.EIO}"]


async def test_binding_writes_the_database_before_the_file(place: Place) -> None:
    """The file must never be ahead: that is how a database that lost something shows."""
    store = place.open()
    before = place.identity_file()
    place.fail_next_write(store, OSError(errno.EIO, "Input/output error"))
    with pytest.raises(StorageError):
        store.bind_cluster(b"c" * 16, {"n1": store.identity.store_id})
    assert place.identity_file() == before
    assert not store.identity.formed
