"""The short form of the long trial: real processes, a disk that fails and a disk that is full, under load."""

from __future__ import annotations

from pathlib import Path

import pytest

from examples.kv.cluster import Cluster
from tests.soak.disks import Load, SoakError, fail_syncs, fill_disks_or_pretend

ROUNDS = 2


@pytest.mark.timeout(240)
async def test_a_sync_that_fails_loses_nothing_and_ends_the_node_with_the_reason(tmp_path: Path) -> None:
    rounds = await fail_syncs(ROUNDS, 3, tmp_path / "eio")
    assert len(rounds) == ROUNDS
    for one in rounds:
        assert one.during > 0, "the others serve meanwhile"
        assert "Input/output error; check that disk before the node is started again" in one.said


@pytest.mark.timeout(240)
async def test_a_disk_that_is_full_loses_nothing_and_the_node_comes_back_by_itself(tmp_path: Path) -> None:
    rounds = await fill_disks_or_pretend(ROUNDS, 3, tmp_path / "enospc")
    assert len(rounds) == ROUNDS
    for one in rounds:
        assert one.during > 0, "the others serve meanwhile"
        assert "No space left on device" in one.said


async def test_a_key_that_is_not_there_is_noticed(tmp_path: Path) -> None:
    """The check itself must be able to fail."""
    async with Cluster(tmp_path / "c", ["--shards=2"]) as cluster:
        load = Load(cluster)
        load.acknowledged["key/0"] = b"never written"
        with pytest.raises(SoakError, match="1 of 1 acknowledged keys are lost or wrong"):
            await load.check(cluster.urls[0])
