"""The demo, on few records: it ends 0 when nothing was lost, 1 when something was, and leaves nothing behind."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from examples.kv import demo
from examples.kv.verify import compare

ROOT = Path(demo.__file__).parents[2]
SECONDS = 90
QUICK = ("--limit=beat_ms=20", "--limit=election_timeout_ms=150")


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[Path]:
    """Where the demo makes its files; at the end none may be left, nor any process that works on them."""
    yield tmp_path
    assert list(tmp_path.iterdir()) == []
    assert processes_on(tmp_path) == []


def processes_on(directory: Path) -> list[str]:
    """Return the ids of the processes whose command line names `directory`."""
    found = []
    for process in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = process.read_bytes().decode(errors="replace").split("\0")
        except OSError:
            continue
        if any(str(directory) in word for word in words):
            found.append(process.parent.name)
    return found


def start(directory: Path, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "examples.kv", "demo", *QUICK, *arguments],
        cwd=ROOT,
        env={**os.environ, "TMPDIR": str(directory), "COLUMNS": "200"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run(directory: Path, *arguments: str) -> tuple[int, str, str]:
    with start(directory, *arguments) as process:
        try:
            said, complaint = process.communicate(timeout=SECONDS)
        finally:
            process.kill()
    return process.returncode, said, complaint


def test_nothing_is_lost(directory: Path) -> None:
    code, said, complaint = run(directory, "--records=600")
    assert (code, complaint) == (0, ""), said
    for words in ("600 of 600 records", "kill -9 ", "took over", "kill -9 of all three at once", "nothing was lost"):
        assert words in said
    for node in "abc":
        for view in ("served", "replicas"):
            assert said.count(f"{node}, {view}: 620 records, as acknowledged") == 2  # with 16 probes and 4 counters
    assert "\nlost          0" in said


def test_a_planted_loss_is_noticed(directory: Path) -> None:
    code, said, _ = run(directory, "--records=100", "--plant-loss")
    assert code == demo.EXIT_LOST, said
    assert "replicas: 1 missing, such as 'U+0020'" in said
    assert "\nlost          1" in said
    assert "NOT everything" in said


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_stopped_in_the_middle_it_ends_its_nodes(directory: Path, number: signal.Signals) -> None:
    with start(directory) as process:
        try:
            assert process.stdout is not None
            while "loading" not in process.stdout.readline():
                assert process.poll() is None
            assert len(processes_on(directory)) == 3
            process.send_signal(number)
            said, complaint = process.communicate(timeout=SECONDS)
        finally:
            process.kill()
    assert (process.returncode, complaint) == (demo.EXIT_INTERRUPTED, "")
    assert "interrupted" in said
    assert "nothing was lost" not in said


def test_killed_it_takes_its_nodes_with_it(directory: Path) -> None:
    with start(directory) as process:
        assert process.stdout is not None
        while "loading" not in process.stdout.readline():
            assert process.poll() is None
        nodes = [Path(f"/proc/{number}") for number in processes_on(directory)]
        assert len(nodes) == 3
        process.kill()
        process.stdout.read()  # ends when the last one that could write to it has ended
    give_up = time.monotonic() + SECONDS
    while any(node.exists() for node in nodes):
        assert time.monotonic() < give_up, "a node has outlived the demo"
    shutil.rmtree(next(directory.iterdir()))


def test_kept_it_stays_until_it_is_told_to_stop(directory: Path) -> None:
    with start(directory, "--records=50", "--keep") as process:
        try:
            assert process.stdout is not None
            lines = iter(process.stdout.readline, "")
            hint = next(line for line in lines if " get greeting" in line)
            url = hint.split("--url ")[1].split()[0]
            with urllib.request.urlopen(f"{url}/kv/U+0020", timeout=SECONDS) as answer:
                assert answer.read() == b"SPACE"
            process.send_signal(signal.SIGINT)
            process.communicate(timeout=SECONDS)
        finally:
            process.kill()
    assert process.returncode == 0


def test_compare_names_every_kind_of_difference() -> None:
    found = compare("here", {"kept": b"1", "gone": b"2", "changed": b"3"}, {"kept": b"1", "changed": b"x", "odd": b"4"})
    assert (found.missing, found.different, found.strange) == (["gone"], ["changed"], ["odd"])
    assert (found.lost, found.clean, found.read) == (2, False, 3)
    assert (
        found.example() == "1 missing, such as 'gone'; 1 different, such as 'changed'; 1 never written, such as 'odd'"
    )
    assert compare("here", {"k": b"1"}, {"k": b"1"}).clean
