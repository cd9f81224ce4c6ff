"""Disks that fail and disks that are full, under load, with real processes: nothing acknowledged is lost.

    python -m tests.soak.disks --rounds 20

Three nodes of the example key-value store run as processes, and clients write to all of them throughout.

    eio     node c runs under strace, which lets a fdatasync of it, drawn anew each round, fail with EIO. The node must
            end by itself, and say what happened; the others serve on. It is started again on the same directory.
    enospc  node c has its data on a tmpfs of 8 MB, which is filled to the last byte from outside. The node must
            notice, come back by itself when there is space, and serve; its process never ends. In a round in which it
            has nothing to write, because the snapshots that it needs find no room, it is enough that it takes no
            commands.

After each round every key that was acknowledged so far is read through the node that was hurt. Then the oldest are
deleted, all but a thousand, so that what is kept fits the small disk however fast the nodes are: LevelDB needs room
for it twice over while it puts files together. What was deleted must stay away.

Where there is no strace, or no tmpfs may be mounted, the node's own failpoints stand in for them, which is said: the
error is then raised where the store writes, and the disk itself is well.

Rules of this file: a key is written once, so that what is read back is right or wrong; only what was acknowledged must
be there, and only what was acknowledged as deleted must not.
"""

from __future__ import annotations

import argparse
import asyncio
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from random import Random
from typing import Final

import aiohttp

from examples.kv.client import Client
from examples.kv.cluster import NODE_IDS, Cluster, NodeProcess
from multiraft.errors import MultiRaftError, NotCommitted
from multiraft.failpoints import ENVIRONMENT

HURT: Final = NODE_IDS[-1]
TMPFS: Final = "8m"
_LIMITS: Final = {
    "beat_ms": 50,
    "election_timeout_ms": 300,
    "request_timeout_ms": 3_000,
    "snapshot_entries": 400,
    "trailing_entries": 50,
    "leveldb_write_buffer_bytes": 256 * 1024,
    "ballast_bytes": 1024 * 1024,
    "free_space_bytes": 256 * 1024,
}
_WRITERS: Final = 8
_KEPT: Final = 1_000
_AT_ONCE: Final = 200
_PATIENCE_S: Final = 60.0
_LOOK_S: Final = 0.02
_SAID_BYTES: Final = 64 * 1024
_BACK: Final = "comes back by itself"
_SHORT: Final = "takes no commands: the disk of"
_NOTICE_S: Final = 10.0


class SoakError(Exception):
    """Something did not come out as it must."""


@dataclass(frozen=True, slots=True)
class Round:
    """What one round came to.

    acknowledged  keys, in all rounds so far; every one of them was read back after its round
    during        of them while the disk was hurt
    refused       writes that certainly did not happen, and `unknown` those that may have
    noticed_s     from the fault to the node's having ended, or restarting
    back_s        from the node's start, or from the freeing of space, to its serving
    said          the node's own words
    """

    number: int
    acknowledged: int
    during: int
    refused: int
    unknown: int
    noticed_s: float
    back_s: float
    said: str

    def line(self, kind: str) -> str:
        return (
            f"{kind:6} round {self.number:2}: {self.acknowledged:6} acknowledged and read back, {self.during:5} of "
            f"them meanwhile; {self.refused} refused, {self.unknown} unknown; noticed after {self.noticed_s:.2f} s, "
            f"serving {self.back_s:.2f} s after; said: {self.said[:160]}"
        )


def _counts(load: Load) -> tuple[int, int, int]:
    return load.count, load.refused, load.unknown


def _round(number: int, load: Load, before: tuple[int, int, int], noticed_s: float, back_s: float, said: str) -> Round:
    acknowledged, refused, unknown = (now - then for now, then in zip(_counts(load), before, strict=True))
    return Round(number, load.count, acknowledged, refused, unknown, noticed_s, back_s, said)


class Hurt(Cluster):
    """The cluster; `prefix` stands before the command of the node that is hurt."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory, ["--shards=4", *[f"--limit={name}={value}" for name, value in _LIMITS.items()]])
        self.prefix: list[str] = []

    @property
    def hurt(self) -> NodeProcess:
        return self.nodes[HURT]

    def command(self, node_id: str) -> list[str]:
        return [*(self.prefix if node_id == HURT else []), *super().command(node_id)]

    def said(self, since: int = 0) -> str:
        """Return what the hurt node wrote to stderr behind its first `since` bytes."""
        return self.hurt.errors.read_bytes()[since:].decode(errors="replace") if self.hurt.errors.exists() else ""

    def said_bytes(self) -> int:
        return self.hurt.errors.stat().st_size if self.hurt.errors.exists() else 0


class Load:
    """Writers that go on until they are stopped; each key is new.

    acknowledged  what must be there; deleted: what must not
    count         of all keys that were acknowledged
    """

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self.acknowledged: dict[str, bytes] = {}
        self.deleted: set[str] = set()
        self.count = self.refused = self.unknown = 0
        self._number = 0

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        writers = [asyncio.create_task(self._write(Random(number))) for number in range(_WRITERS)]
        try:
            yield
        finally:
            for writer in writers:
                writer.cancel()
            await asyncio.gather(*writers, return_exceptions=True)

    async def _write(self, rng: Random) -> None:
        async with Client(self._cluster.urls, timeout_s=5.0, attempt_timeout_s=4.0) as client:
            while True:
                self._number += 1
                key, value = f"key/{self._number}", rng.randbytes(24)
                try:
                    await client.put(key, value)
                except NotCommitted:
                    self.refused += 1
                except MultiRaftError:
                    self.unknown += 1
                else:
                    self.acknowledged[key] = value
                    self.count += 1
                await asyncio.sleep(0.005)

    async def check(self, url: str) -> None:
        """Read all that was acknowledged through one node, then delete the oldest.

        Raises SoakError for what is missing, or another, or there again.
        """
        wrong: list[str] = []
        async with Client([url], timeout_s=_PATIENCE_S) as client:
            found = {key: value async for key, value in client.scan("key/")}
        wrong = [key for key, value in self.acknowledged.items() if found.get(key) != value]
        if wrong:
            raise SoakError(
                f"{len(wrong)} of {len(self.acknowledged)} acknowledged keys are lost or wrong: {wrong[:5]}"
            )
        back = sorted(self.deleted.intersection(found))
        if back:
            raise SoakError(f"{len(back)} of {len(self.deleted)} deleted keys are there again: {back[:5]}")
        await self._delete(url, list(self.acknowledged)[:-_KEPT])

    async def _delete(self, url: str, keys: list[str]) -> None:
        async with Client([url], timeout_s=_PATIENCE_S) as client:
            for at in range(0, len(keys), _AT_ONCE):
                some = keys[at : at + _AT_ONCE]
                await client.batch(dict.fromkeys(some))
                self.deleted.update(some)
                for key in some:
                    del self.acknowledged[key]


# ------------------------------------------------------------------------------------------------------------- EIO


def failing_sync(at: int) -> list[str]:
    """Return what stands before a command, so that its `at`-th sync of a thread fails with EIO."""
    found = shutil.which("strace")
    if found is None:
        print("strace is not installed: a failpoint stands in for it", file=sys.stderr)
        return _failpoint("eio", at)
    trace = ["-f", "-qq", "-o", "/dev/null", "--seccomp-bpf", "-e", "trace=fdatasync"]
    return [found, *trace, "-e", f"inject=fdatasync:error=EIO:when={at}"]


def _failpoint(action: str, at: int) -> list[str]:
    return ["env", f"{ENVIRONMENT}=disk.before-write:{action}@{at}"]


async def fail_syncs(rounds: int, seed: int, folder: Path) -> list[Round]:
    """Let one fdatasync of node c fail in each round."""
    rng, found = Random(seed), []
    cluster = Hurt(folder)
    async with cluster:
        load = Load(cluster)
        await cluster.kill(HURT)
        for number in range(1, rounds + 1):
            cluster.prefix = failing_sync(rng.randrange(30, 300))
            since, before = cluster.said_bytes(), _counts(load)
            await cluster.start(HURT)
            async with load.running():
                began_s = time.monotonic()
                code = await _ended(cluster.hurt)
                noticed_s = time.monotonic() - began_s
                said = _last_error(cluster.said(since))
                if code != 4 or "Input/output error" not in said or "check that disk" not in said:
                    raise SoakError(f"round {number}: it ended with {code}, and said {said!r}")
                await asyncio.sleep(0.5)
                cluster.prefix = []
                back_s = await cluster.start(HURT)
            await load.check(cluster.hurt.url)
            found.append(_round(number, load, before, noticed_s, back_s, said))
            print(found[-1].line("eio"), flush=True)
            await cluster.kill(HURT)
    return found


async def _ended(node: NodeProcess) -> int:
    if node.process is None:
        raise SoakError("the node was not started")
    async with asyncio.timeout(_PATIENCE_S):
        return await node.process.wait()


def _last_error(said: str) -> str:
    errors = [line for line in said.splitlines() if line.startswith("error: ")]
    return errors[-1] if errors else said[-_SAID_BYTES:].strip().rpartition("\n")[2]


# ---------------------------------------------------------------------------------------------------------- ENOSPC


def on_tmpfs(data_dir: Path) -> list[str]:
    """Return what stands before a command, so that `data_dir` is a small tmpfs of its own."""
    script = f'mount -t tmpfs -o size={TMPFS} none "$0" && exec "$@"'
    return ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", script, str(data_dir)]


def tmpfs_can_be_mounted(data_dir: Path) -> bool:
    """Whether this system lets us: user namespaces may be forbidden."""
    if shutil.which("unshare") is None:
        return False
    return subprocess.run([*on_tmpfs(data_dir), "true"], capture_output=True, check=False).returncode == 0


async def fill_disks_or_pretend(rounds: int, seed: int, folder: Path) -> list[Round]:
    """As `fill_disks`; where no tmpfs may be mounted, let writes fail as if the disk were full."""
    await asyncio.to_thread(folder.mkdir, parents=True, exist_ok=True)
    if tmpfs_can_be_mounted(folder):
        return await fill_disks(rounds, folder)
    print("no tmpfs may be mounted here: a failpoint stands in for it", file=sys.stderr)
    rng, found = Random(seed), []
    cluster = Hurt(folder)
    async with cluster:
        load = Load(cluster)
        for number in range(1, rounds + 1):
            await cluster.kill(HURT)
            cluster.prefix = _failpoint("enospc", rng.randrange(100, 300))
            since, before, began_s = cluster.said_bytes(), _counts(load), time.monotonic()
            await cluster.start(HURT)
            async with load.running():
                await _until(partial(_noticed, cluster, since), "the node to notice")
                noticed_s = time.monotonic() - began_s
                await _until_ready(cluster.hurt)
            await load.check(cluster.hurt.url)
            back_s = time.monotonic() - began_s - noticed_s
            found.append(_round(number, load, before, noticed_s, back_s, _first_with(_BACK, cluster.said(since))))
            print(found[-1].line("enospc"), flush=True)
    return found


async def fill_disks(rounds: int, folder: Path) -> list[Round]:
    """Fill the disk of node c in each round, and free it again."""
    found = []
    cluster = Hurt(folder)
    cluster.hurt.data_dir.mkdir(parents=True)
    cluster.prefix = on_tmpfs(cluster.hurt.data_dir)
    async with cluster:
        load = Load(cluster)
        for number in range(1, rounds + 1):
            since, before = cluster.said_bytes(), _counts(load)
            inside = _inside(cluster.hurt)
            async with load.running():
                await _until((inside / "BALLAST").exists, "the ballast to be there")
                filler, began_s = inside / "filler", time.monotonic()
                filling = asyncio.create_task(_keep_full(filler))
                try:
                    await _full(cluster, since)
                    noticed_s = time.monotonic() - began_s
                    # Past its ballast it is full again, and waits.
                    await asyncio.sleep(1.0)
                finally:
                    filling.cancel()
                    await asyncio.gather(filling, return_exceptions=True)
                    if not cluster.hurt.running:
                        raise SoakError(f"round {number}: the process has ended: {cluster.said(since)[-2_000:]}")
                    filler.unlink()
                freed_s = time.monotonic()
                await _until_ready(cluster.hurt)
                back_s = time.monotonic() - freed_s
            await load.check(cluster.hurt.url)
            said = _first_with(_BACK, cluster.said(since)) or _first_with(_SHORT, cluster.said(since))
            found.append(_round(number, load, before, noticed_s, back_s, said))
            print(found[-1].line("enospc"), flush=True)
    if 2 * sum(_BACK in one.said for one in found) < rounds:
        raise SoakError("in most rounds no write failed: the trial is too gentle")
    return found


async def _full(cluster: Hurt, since: int) -> None:
    """Wait until a write has failed; where nothing writes any more, it is enough that commands are refused."""
    with suppress(SoakError):
        return await _until(partial(_noticed, cluster, since), "a write to fail", _NOTICE_S)
    await _until(lambda: _SHORT in cluster.said(since), "the node to notice")


def _noticed(cluster: Hurt, since: int) -> bool:
    return _BACK in cluster.said(since)


def _inside(node: NodeProcess) -> Path:
    """Return the node's data directory as the node itself sees it."""
    if node.process is None:
        raise SoakError("the node was not started")
    return Path(f"/proc/{node.process.pid}/root{node.data_dir}")


async def _keep_full(filler: Path) -> None:
    """Take every byte that is free, again and again."""
    with open(filler, "ab", buffering=0) as file:  # noqa: ASYNC230 - a tmpfs
        while True:
            size = 64 * 1024
            while size:
                try:
                    file.write(bytes(size))
                except OSError:
                    size //= 2
            await asyncio.sleep(_LOOK_S)


async def _until(condition: Callable[[], bool], what: str, patience_s: float = _PATIENCE_S) -> None:
    try:
        async with asyncio.timeout(patience_s):
            while not condition():  # noqa: ASYNC110 - the condition is anything
                await asyncio.sleep(_LOOK_S)
    except TimeoutError:
        raise SoakError(f"waited for {what} in vain") from None


async def _until_ready(node: NodeProcess) -> None:
    """Wait until the node says of itself that all its groups are ready, and takes commands."""
    said = ""
    async with aiohttp.ClientSession() as session:
        try:
            async with asyncio.timeout(_PATIENCE_S):
                while True:
                    with suppress(aiohttp.ClientError):
                        async with session.get(f"{node.url}/admin/readyz") as answer:
                            said = await answer.text()
                            if answer.status == 200:
                                return
                    await asyncio.sleep(_LOOK_S)
        except TimeoutError:
            raise SoakError(f"the node does not come back: {said}") from None


def _first_with(words: str, said: str) -> str:
    return next((line for line in said.splitlines() if words in line), "")


# --------------------------------------------------------------------------------------------------------- running


async def run(rounds: int, seed: int) -> None:
    with tempfile.TemporaryDirectory(prefix="multiraft-disks-") as place:
        eio = await fail_syncs(rounds, seed, Path(place) / "eio")
        enospc = await fill_disks_or_pretend(rounds, seed, Path(place) / "enospc")
    for kind, found in (("eio", eio), ("enospc", enospc)):
        print(
            f"{kind}: {len(found)} rounds, {found[-1].acknowledged} keys acknowledged, none lost; serving again after "
            f"{max(one.back_s for one in found):.2f} s at most"
        )


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Disks that fail and disks that are full, under load.")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--seed", type=int, default=1)
    asked = parser.parse_args(arguments)
    try:
        asyncio.run(run(asked.rounds, asked.seed))
    except SoakError as problem:
        print(f"error: {problem}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
