"""The smallest example: as a class, as a program, and as small as it is said to be."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from examples import counters
from examples.counters import Counters

ROOT = Path(counters.__file__).parents[1]


def test_counters_are_an_ordinary_class() -> None:
    machine = Counters()
    assert machine.add("x") == 1
    assert machine.add("x", 4) == 5
    assert machine.add("y") == 1
    assert (machine.get("x"), machine.get("z")) == (5, 0)
    assert machine.total() == 6


def test_the_program_counts_through_every_node() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "examples.counters"], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    for name in "abc":
        assert f"node {name} reads {{'apples': 6, 'pears': 6, 'plums': 6}}" in done.stdout
    assert "and over all 18" in done.stdout


def test_it_stays_small() -> None:
    assert len(Path(counters.__file__).read_text().splitlines()) < 80
