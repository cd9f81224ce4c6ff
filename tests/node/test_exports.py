"""Exports of a node that do not come to an end in the ordinary way: whoever waits for one hears of it."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from multiraft.exporting import Export, Exporting


class Broken(Exporting):
    async def _export_memory(self, *given: Any) -> None:
        raise TypeError("None object expected")


async def test_an_export_that_meets_a_bug_has_failed_and_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    node: Any = Broken()
    node.config = SimpleNamespace(data_dir=str(tmp_path))
    export = node._exports["one"] = Export("one", 16, "registers", 0.0)
    await node._export(SimpleNamespace(), SimpleNamespace(group_id=16, data=None), export)
    assert (export.state, export.problem) == ("failed", "a bug: TypeError: None object expected")
    assert "group 16: its export failed by a bug" in caplog.text
    assert list((tmp_path / "exports").iterdir()) == []
