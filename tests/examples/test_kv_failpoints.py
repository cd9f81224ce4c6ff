"""A node of the key-value store as a process, killed by itself at named places: nothing acknowledged is lost.

Rules of this file: every process started here has ended when its test ends.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from examples.kv.client import Client
from examples.kv.cluster import free_ports
from multiraft.errors import MultiRaftError
from multiraft.failpoints import ENVIRONMENT

ROOT = Path(__file__).resolve().parents[2]
SECONDS = 60


class Lone:
    """A cluster of one node, started as often as is wanted on the same directory."""

    def __init__(self, data: Path) -> None:
        listen, http = free_ports(2)
        self.url = f"http://127.0.0.1:{http}"
        address = f"127.0.0.1:{listen}"
        self._command = [
            sys.executable, "-m", "examples.kv", "node", "--id=a", f"--listen={address}", f"--member=a={address}",
            f"--http=127.0.0.1:{http}", f"--data={data}", "--limit=beat_ms=20", "--limit=election_timeout_ms=150",
        ]  # fmt: skip
        self.acknowledged: dict[str, bytes] = {}

    @contextlib.contextmanager
    def running(self, armed: str = "") -> Iterator[subprocess.Popen[str]]:
        environment = {**os.environ, ENVIRONMENT: armed}
        process = subprocess.Popen(
            self._command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        try:
            yield process
        finally:
            process.kill()
            process.communicate(timeout=SECONDS)

    async def write(self, count: int) -> None:
        """Write `count` keys, or until one is not acknowledged."""
        async with Client([self.url], exactly_once=False, timeout_s=5.0, attempt_timeout_s=2.0) as client:
            for _ in range(count):
                key, value = f"key/{len(self.acknowledged)}", b"%d" % len(self.acknowledged)
                try:
                    await client.put(key, value)
                except MultiRaftError:
                    return
                self.acknowledged[key] = value

    async def assert_kept(self) -> None:
        async with Client([self.url], exactly_once=False, timeout_s=5.0, attempt_timeout_s=2.0) as client:
            for key, value in self.acknowledged.items():
                assert await client.get(key) == value


def is_ready(process: subprocess.Popen[str]) -> bool:
    """Wait until the node says that it is ready; False: it ended before."""
    assert process.stdout is not None
    return any(line == "node a is ready\n" for line in process.stdout)


@pytest.mark.parametrize("place", ["write.before-submit", "write.after-sync", "disk.after-write", "apply.after"])
async def test_a_node_that_kills_itself_at_a_place_comes_back_with_all_it_acknowledged(
    tmp_path: Path, place: str
) -> None:
    lone = Lone(tmp_path / "data")
    with lone.running() as process:
        assert is_ready(process)
        await lone.write(10)
    assert len(lone.acknowledged) == 10
    with lone.running(f"{place}:kill@25") as process:
        if is_ready(process):
            await lone.write(100)
        assert process.wait(SECONDS) == -signal.SIGKILL
    assert len(lone.acknowledged) < 110
    with lone.running() as process:
        assert is_ready(process)
        await lone.assert_kept()
        await lone.write(5)


@pytest.mark.parametrize("place", ["open.before-file", "bind.before-file", "replica.after-create"])
async def test_a_node_killed_while_it_is_founded_or_opened_starts_again(tmp_path: Path, place: str) -> None:
    lone = Lone(tmp_path / "data")
    with lone.running(f"{place}:kill") as process:
        assert not is_ready(process)
        assert process.wait(SECONDS) == -signal.SIGKILL
    with lone.running() as process:
        assert is_ready(process)
        await lone.write(5)
    assert len(lone.acknowledged) == 5


@pytest.mark.parametrize("place", ["close.before-record", "close.before-file"])
async def test_a_node_killed_while_it_stops_starts_again(tmp_path: Path, place: str) -> None:
    lone = Lone(tmp_path / "data")
    with lone.running(f"{place}:kill") as process:
        assert is_ready(process)
        await lone.write(5)
        process.send_signal(signal.SIGTERM)
        assert process.wait(SECONDS) == -signal.SIGKILL
    with lone.running() as process:
        assert is_ready(process)
        await lone.assert_kept()


async def test_a_failing_disk_ends_the_node_and_what_it_acknowledged_is_kept(tmp_path: Path) -> None:
    lone = Lone(tmp_path / "data")
    with lone.running("disk.before-write:eio@80+") as process:
        assert is_ready(process)
        await lone.write(100)
        assert process.wait(SECONDS) not in (0, -signal.SIGKILL)
    assert 0 < len(lone.acknowledged) < 100
    with lone.running() as process:
        assert is_ready(process)
        await lone.assert_kept()


def test_a_wrong_setting_is_told_in_one_line(tmp_path: Path) -> None:
    lone = Lone(tmp_path / "data")
    with lone.running("nowhere:kill") as process:
        _, complained = process.communicate(timeout=SECONDS)
    assert process.returncode not in (0, -signal.SIGKILL)
    assert "there is no failpoint 'nowhere'" in complained
    assert "Traceback" not in complained
