"""What leaders tell the directory of where their groups live: the newest, one at a time, until it is known."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import msgpack
import pytest

from multiraft.errors import CommandFailed, NotReady, OutcomeUnknown
from multiraft.reporting import Reporting
from multiraft.testing import run_virtual
from multiraft.types import DIRECTORY_GROUP, Membership, founding_membership

MEMBERS = Membership(7, (2, 4), {1: "a", 2: "b", 3: "c", 4: "d"}, 5, (2, 3), (1,))


class Directory:
    """A router that brings commands to a directory: writes down what came, answers as the test says."""

    def __init__(self) -> None:
        self.told: list[list[Any]] = []
        self.errors: list[Exception] = []
        self.gate = asyncio.Event()
        self.gate.set()
        self.came = asyncio.Event()

    async def call(self, group_id: int, kind: str, body: bytes) -> bytes:
        assert (group_id, kind) == (DIRECTORY_GROUP, "propose")
        self.told.append(msgpack.unpackb(body))
        self.came.set()
        await self.gate.wait()
        if self.errors:
            raise self.errors.pop(0)
        return b""


def play(scenario: Callable[[Directory, Reporting], Coroutine[Any, Any, None]]) -> list[list[Any]]:
    """Run a scenario beside a running Reporting, then let it rest; return what the directory was told."""
    told: list[list[Any]] = []

    async def main() -> None:
        directory = Directory()
        router: Any = directory
        reporting = Reporting(router)
        task = asyncio.create_task(reporting.run())
        await scenario(directory, reporting)
        await asyncio.sleep(60)
        assert reporting._pending == {}
        assert not task.done()
        task.cancel()
        told.extend(directory.told)

    run_virtual(main())
    return told


def test_voters_come_first_and_everybody_once() -> None:
    async def scenario(directory: Directory, reporting: Reporting) -> None:
        reporting.leads(16, MEMBERS)

    assert play(scenario) == [["group_nodes", 16, 7, ["b", "d", "a", "c"]]]


def test_what_never_changed_is_not_reported() -> None:
    async def scenario(directory: Directory, reporting: Reporting) -> None:
        reporting.leads(16, founding_membership(("a", "b", "c")))
        reporting.leads(DIRECTORY_GROUP, MEMBERS)

    assert play(scenario) == []


@pytest.mark.parametrize("problem", [NotReady("no leader"), OutcomeUnknown("lost")])
def test_a_report_is_repeated_until_it_is_known(problem: Exception) -> None:
    async def scenario(directory: Directory, reporting: Reporting) -> None:
        directory.errors = [problem, problem]
        reporting.leads(16, MEMBERS)

    assert play(scenario) == [["group_nodes", 16, 7, ["b", "d", "a", "c"]]] * 3


def test_a_report_that_is_refused_is_given_up_and_logged(caplog: pytest.LogCaptureFixture) -> None:
    async def scenario(directory: Directory, reporting: Reporting) -> None:
        directory.errors = [CommandFailed("UnknownGroup", "the directory knows no group 16")]
        reporting.leads(16, MEMBERS)
        reporting.leads(17, MEMBERS)

    assert [report[1] for report in play(scenario)] == [16, 17]
    assert "knows no group 16" in caplog.text


def test_what_changes_while_it_is_reported_is_reported_again() -> None:
    async def scenario(directory: Directory, reporting: Reporting) -> None:
        directory.gate.clear()
        reporting.leads(16, MEMBERS)
        await directory.came.wait()
        reporting.leads(16, Membership(8, (2,), {2: "b"}, 5))
        reporting.leads(16, Membership(9, (2, 4), {2: "b", 4: "d"}, 5))
        directory.gate.set()

    assert [(report[2], report[3]) for report in play(scenario)] == [(7, ["b", "d", "a", "c"]), (9, ["b", "d"])]
