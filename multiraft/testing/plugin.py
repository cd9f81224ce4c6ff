"""The options that pytest has once multiraft is installed: which seeds of simulated tests to run.

Loaded by every pytest run of whoever has multiraft installed, so it imports nothing; `@simulate` works without it.

Rules of this file: options only, all of them named after `simulate`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    """Called by pytest."""
    group = parser.getgroup("multiraft", "simulated clusters (multiraft)")
    group.addoption(
        "--simulate-seed", type=int, metavar="N", help="run tests marked with @simulate with this seed only"
    )
    group.addoption("--simulate-seeds", type=int, metavar="COUNT", help="so many seeds in place of each test's own")
    group.addoption("--simulate-trace", metavar="FILE", help="write the timeline of the last seed that ran into FILE")
