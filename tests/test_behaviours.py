"""The table of behaviours in docs/testing.md names tests that exist."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
NAMED = re.compile(r"`(tests/[a-z0-9_/]+\.(?:py|txt))(?:::(test_\w+))?`")


def test_every_test_that_the_table_of_behaviours_names_exists() -> None:
    text = (ROOT / "docs" / "testing.md").read_text(encoding="utf-8")
    table = text[text.index("## Behaviours and their tests") :]
    named = NAMED.findall(table)
    assert len(named) > 40
    missing = []
    for file, test in named:
        path = ROOT / file
        if not path.is_file() or (test and f"def {test}(" not in path.read_text(encoding="utf-8")):
            missing.append(f"{file}::{test}")
    assert missing == []


def test_every_row_names_a_test() -> None:
    text = (ROOT / "docs" / "testing.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (\d+b?) \|.*$", text, re.MULTILINE)
    lines = {line.split("|")[1].strip(): line for line in text.splitlines() if re.match(r"\| \d+b? \|", line)}
    assert {str(number) for number in (*range(1, 15), 25)} <= set(rows)
    assert all(NAMED.search(line) for line in lines.values())
