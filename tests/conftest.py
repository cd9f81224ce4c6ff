"""What holds for every test: generated examples take the time they need, and nothing that a test starts outlives it.

Rules of this file: only what all tests need; what one folder shares stands in that folder's conftest.py.
"""

from __future__ import annotations

import contextlib
import gc
import os
import shutil
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Final

import pytest
from hypothesis import settings

from multiraft.compiled import COMPILED

# No deadline per example: it would measure how busy the machine is. The blob replays a failure found elsewhere.
settings.register_profile("multiraft", deadline=None, print_blob=True)
settings.load_profile("multiraft")

REDIS_PROGRAMS: Final = ("redis-server", "redis-cli", "redis-benchmark")
_LEFT_OUT: Final = pytest.StashKey[str]()
_JOIN_S: Final = 5.0
"""How long a thread that has been told to end may still take."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--refresh-transcripts", action="store_true", help="write the transcripts of tests/raft anew")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what cannot run here, and count it as deselected.

    On the compiled build that is what is marked `pure_only`; where Redis is not installed, what compares with it,
    unless all must run.
    """
    if COMPILED:
        _leave_out(
            config,
            items,
            lambda item: item.get_closest_marker("pure_only") is not None or "pure_build" in _fixtures(item),
        )
    missing = [name for name in REDIS_PROGRAMS if shutil.which(name) is None]
    if missing and not os.environ.get("MULTIRAFT_TESTS_NEED_REDIS"):
        count = _leave_out(config, items, lambda item: item.get_closest_marker("redis") is not None)
        if count:
            config.stash[_LEFT_OUT] = f"{count} tests that compare with Redis ({', '.join(missing)} not found)"


def _leave_out(config: pytest.Config, items: list[pytest.Item], which: Callable[[pytest.Item], bool]) -> int:
    left_out = [item for item in items if which(item)]
    if left_out:
        gone = set(left_out)
        items[:] = [item for item in items if item not in gone]
        config.hook.pytest_deselected(items=left_out)
    return len(left_out)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    what = config.stash.get(_LEFT_OUT, None)
    if what is not None:
        terminalreporter.write_line(
            f"LEFT OUT: {what}; with them: apt-get install redis-server redis-tools", yellow=True
        )


def _fixtures(item: pytest.Item) -> Sequence[str]:
    return item.fixturenames if isinstance(item, pytest.Function) else ()


@pytest.fixture
def pure_build() -> None:
    """For fixtures that replace code: tests that use them are as if marked `pure_only`."""


@pytest.fixture(autouse=True)
def the_process_is_set_up_as_before() -> Iterator[None]:
    """A node may set its whole process up (`tune_gc`): the next test begins without that."""
    before = gc.get_threshold(), sys.getswitchinterval()
    yield
    if before != (gc.get_threshold(), sys.getswitchinterval()):
        gc.unfreeze()
        gc.set_threshold(*before[0])
        sys.setswitchinterval(before[1])


@pytest.fixture(autouse=True)
def nothing_is_left_running() -> Iterator[None]:
    """Fail a test that leaves a thread or a child process behind."""
    threads, children = set(threading.enumerate()), _children()
    yield
    # A loop's own executor ends with the loop, which may be a whole module's.
    left = [one for one in threading.enumerate() if one not in threads and not one.name.startswith("asyncio_")]
    for thread in left:
        thread.join(_JOIN_S)
    assert not [thread.name for thread in left if thread.is_alive()], "the test left threads running"
    assert not _children() - children, "the test left child processes, by process id"


def _children() -> set[str]:
    """Return the process ids of this process's children, those not yet waited for included; none where not Linux."""
    found: set[str] = set()
    for of_one_thread in Path("/proc/self/task").glob("*/children"):
        with contextlib.suppress(FileNotFoundError):  # the thread has just ended; its children pass to another
            found.update(of_one_thread.read_text().split())
    return found
