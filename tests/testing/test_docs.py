"""The page about simulated clusters says what is true: its program runs, and its table has every kind of fault."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from multiraft.testing import FAULT_KINDS

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "simulated-cluster.md").read_text(encoding="utf-8")


def test_the_program_of_the_page_runs() -> None:
    programs = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    assert len(programs) == 1
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", programs[0]], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (0, ""), done.stderr


def test_the_table_has_every_kind_of_fault_and_no_other() -> None:
    rows = [line.split("|")[3] for line in PAGE.splitlines() if line.startswith("| ") and line.count("|") == 4]
    named = {name for row in rows[1:] for name in re.findall(r"`([a-z_]+)`", row)}
    assert named == set(FAULT_KINDS)
