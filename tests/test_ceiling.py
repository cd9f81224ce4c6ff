"""The ceiling measures what it says: real writes, on all three nodes, each synced; and it says when it could not.

Rules of this file: figures depend on the machine, so only what must hold on any is checked.
"""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pytest

from benchmarks.ceiling import CeilingOptions, describe, main, run_ceiling

SHORT = CeilingOptions(groups=3, concurrency=8, payload_bytes=64, seconds=0.2)


@pytest.mark.parametrize(("loop", "gc"), [("uvloop", "freeze"), ("asyncio", "on")])
async def test_every_write_is_applied_everywhere(
    loop: Literal["uvloop", "asyncio"], gc: Literal["on", "freeze"], tmp_path: Path
) -> None:
    options = replace(SHORT, loop=loop, gc=gc, directory=str(tmp_path))
    result = await run_ceiling(options)
    assert result.writes >= options.concurrency
    assert result.writes_per_s <= result.writes / options.seconds
    assert 0 < result.p50_ms <= result.p99_ms
    assert len(result.cpu_s) == len(result.syncs) == 3
    assert all(0 < syncs <= result.writes for syncs in result.syncs)
    assert result.syncs[0] >= result.writes / options.concurrency, "the leader answered writes that it had not synced"
    assert f"{result.writes_per_s:,.0f} writes/s" in describe(options, result)
    assert not list(tmp_path.iterdir()), "the databases were left behind"


async def test_a_node_that_fails_ends_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(RuntimeError, match="ended early, with status 1"):
        await run_ceiling(SHORT)


@pytest.mark.parametrize("wrong", [{"groups": 0}, {"concurrency": 0}, {"payload_bytes": 7}, {"seconds": 0}])
def test_options_out_of_range_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(wrong))} = .*: must be at least"):
        replace(SHORT, **wrong)


def test_the_command_prints_one_line_of_json(capsys: pytest.CaptureFixture[str]) -> None:
    main(["--groups", "2", "--concurrency", "4", "--seconds", "0.1", "--json"])
    (line,) = capsys.readouterr().out.splitlines()
    found = json.loads(line)
    assert found["groups"] == 2
    assert found.keys() >= {"writes_per_s", "p50_ms", "p99_ms", "cpu_s", "syncs"}


def test_the_command_says_what_is_wrong(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["--groups", "0"])
    assert "groups = 0: must be at least 1" in capsys.readouterr().err
