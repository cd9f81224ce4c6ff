"""The short version of tests/soak/containment.py."""

from __future__ import annotations

from pathlib import Path

from tests.soak.containment import run


async def test_trouble_in_one_group_costs_the_others_no_write_and_no_leader(tmp_path: Path) -> None:
    """Requirements 15 and 28: a command that raises, one that computes for 300 ms, replicas that halt."""
    outcome = await run(40, 2.0, str(tmp_path))
    assert len(outcome.lines) == 5
    for line in outcome.lines:
        assert line.writes > 100, line
        assert (line.lost, line.moved) == ({}, 0), line
    raised, brooded = outcome.lines[1], outcome.lines[2]
    assert raised.victim_failed["CommandFailed"] > 10
    assert brooded.victim_done > 0
    assert outcome.slow[-1]["command"] == "command brood('victim')"
    assert outcome.slow[-1]["took_ms"] >= 300
    assert [halt["kind"] for halt in outcome.halted] == ["environment"] * 2
    assert all("OSError: the environment of this node failed" in halt["reason"] for halt in outcome.halted)
    assert "command brood('victim') at index" in outcome.logs
    assert "holds the loop for" in outcome.logs
    assert "in brood" in outcome.logs  # the watchdog shows where it is
