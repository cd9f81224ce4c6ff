"""What a process is set to for a node, and that nothing is set that was not asked for."""

from __future__ import annotations

import asyncio
import gc
import sys
from pathlib import Path

import pytest

from examples.counters import free_addresses
from multiraft import ConfigError, Node, NodeConfig
from multiraft.tuning import SWITCH_INTERVAL_S, event_loop, loop_kind, tuned


@pytest.fixture(autouse=True)
def an_ordinary_process() -> None:
    """As Python sets it up, whatever a node that runs for a whole module has made of it."""
    gc.unfreeze()
    gc.set_threshold(700, 10, 10)
    sys.setswitchinterval(0.005)


@pytest.mark.parametrize("wanted", [True, False, None])
async def test_a_node_sets_its_process_up_where_it_is_told_to(wanted: bool | None, tmp_path: Path) -> None:
    [address] = free_addresses(1)
    before = gc.get_threshold(), sys.getswitchinterval()
    async with Node(NodeConfig("a", str(tmp_path), address, {"a": address}, tune_gc=wanted)) as node:
        status = node.status()
        assert status["process"]["tuned"] is tuned() is bool(wanted)
        assert status["loop"]["kind"] == loop_kind(asyncio.get_running_loop())
        if wanted:
            assert gc.get_freeze_count() > 0
            assert sys.getswitchinterval() == pytest.approx(SWITCH_INTERVAL_S)
        else:
            assert (gc.get_threshold(), sys.getswitchinterval()) == before


def test_anything_but_yes_or_no_is_refused() -> None:
    with pytest.raises(ConfigError, match="tune_gc"):
        NodeConfig("a", "d", "127.0.0.1:1", {"a": "127.0.0.1:1"}, tune_gc=1)  # type: ignore[arg-type]


def test_the_loop_is_uvloops_where_it_is_installed_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    with asyncio.Runner(loop_factory=event_loop()) as runner:
        assert loop_kind(runner.get_loop()) == "uvloop"
    monkeypatch.setitem(sys.modules, "uvloop", None)
    with asyncio.Runner(loop_factory=event_loop()) as runner:
        assert loop_kind(runner.get_loop()) == "asyncio"
