"""Settings that contradict each other are refused, by name."""

from __future__ import annotations

from pathlib import Path

import pytest

from multiraft.config import Limits, NodeConfig
from multiraft.errors import ConfigError


@pytest.mark.parametrize("drift_ppm", [99, 500_001, 0.01])
def test_the_bound_on_drift_has_a_range(drift_ppm: int) -> None:
    with pytest.raises(ConfigError, match=r"clock_drift_ppm = .*: must be a whole number from 100 to 500000"):
        Limits(clock_drift_ppm=drift_ppm)


def test_a_lease_outlives_two_beats_whatever_the_clocks_do() -> None:
    """At three beats to an election timeout, a fifth more or less leaves exactly two."""
    Limits(beat_ms=100, election_timeout_ms=300, clock_drift_ppm=199_999)
    with pytest.raises(ConfigError, match="clock_drift_ppm = 200000: must be so small that a lease outlives two beats"):
        Limits(beat_ms=100, election_timeout_ms=300, clock_drift_ppm=200_000)
    Limits(beat_ms=100, election_timeout_ms=1_000, clock_drift_ppm=500_000)


def test_the_store_is_one_of_two_and_leveldb_unless_said(tmp_path: Path) -> None:
    file = tmp_path / "n1.toml"
    node = 'node_id = "n1"\ndata_dir = "d"\nlisten = "127.0.0.1:7001"\n'
    members = '[members]\nn1 = "127.0.0.1:7001"\n'
    file.write_text(node + members)
    assert NodeConfig.from_toml(file).store == "leveldb"
    file.write_text(node + 'store = "sqlite"\n' + members)
    assert NodeConfig.from_toml(file).store == "sqlite"
    file.write_text(node + 'store = "rocksdb"\n' + members)
    with pytest.raises(ConfigError, match=r"n1.toml: store = 'rocksdb': must be one of 'leveldb', 'sqlite'"):
        NodeConfig.from_toml(file)
