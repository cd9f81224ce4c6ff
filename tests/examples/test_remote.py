"""The example of a remote client, as a program."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from examples import remote

ROOT = Path(remote.__file__).parents[1]


def test_a_client_counts_from_outside_while_a_node_leaves() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "examples.remote"], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "counted {'apples': 100, 'pears': 100, 'plums': 100}" in done.stdout
    assert "a node left {'apples': 200, 'pears': 200, 'plums': 200}" in done.stdout
