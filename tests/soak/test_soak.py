"""The soak programs, small: that they run, that they notice, and that they leave nothing behind."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from tests.soak import big_state, increments, wire
from tests.soak.cluster import SoakCluster
from tests.soak.increments import Tally
from tests.soak.probe import quantile

QUICK = ("--limit=beat_ms=20", "--limit=election_timeout_ms=150")


@pytest.mark.parametrize("kind", [(), ("--in-memory",)], ids=["disk", "memory"])
def test_increments_come_out_exactly(tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: tuple[str, ...]) -> None:
    words = ("--total=20000", "--shards=4", "--clients=2", "--in-flight=200", "--kill-every=0.3", "--seed=3")
    assert increments.main([*words, f"--directory={tmp_path}", *QUICK, *kind]) == 0
    told = capsys.readouterr().out
    for node_id in "abc":
        assert f"node {node_id}: sum 20,000, 0 of 256 counters wrong" in told
    assert "the sum is exact on every replica" in told
    assert " 0 kills" not in told
    assert list(tmp_path.iterdir()) == []


def test_a_sum_that_is_off_is_noticed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    compare = increments.compare

    async def compare_with_one_more(cluster: SoakCluster, tally: Tally) -> list[str]:
        tally.acknowledged["counter7"] += 1
        return await compare(cluster, tally)

    monkeypatch.setattr(increments, "compare", compare_with_one_more)
    words = ("--total=500", "--shards=2", "--clients=1", "--kill-every=60", "--in-memory")
    assert increments.main([*words, f"--directory={tmp_path}", *QUICK]) == 1
    told = capsys.readouterr().out
    assert "sum 500, 1 of " in told
    assert "WRONG a: counter7" in told
    assert "the sum is NOT exact" in told


def test_large_state_small(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("--gib=0.02", "--shard-mb=8", "--shards=4", "--settle=0.5")
    code = big_state.main([*words, f"--directory={tmp_path}"])
    told = capsys.readouterr().out
    assert "ok     most anonymous memory while writing" in told
    assert "ok     serving again after kill" in told
    assert "ok     writes that failed" in told
    assert "the new replica has all" in told
    # How late loops and writes are is this machine's affair; the verdict follows what was said of them.
    assert code == (1 if "FAILED" in told else 0)
    assert list(tmp_path.iterdir()) == []


def test_verdicts_are_reached_by_what_was_found(capsys: pytest.CaptureFixture[str]) -> None:
    judged = big_state.Judged()
    judged.judge("a", 1.0, 1.0, "s")
    assert judged.good
    judged.judge("b", 1.1, 1.0, "s")
    judged.judge("c", 0.0, 1.0, "s")
    assert not judged.good
    assert [line[:6] for line in capsys.readouterr().out.splitlines()] == ["ok    ", "FAILED", "ok    "]


async def test_a_connection_that_breaks_fails_who_waits() -> None:
    async def answer(what: str, about: object) -> object:
        if what == "never":
            await asyncio.Event().wait()
        if what == "raise":
            raise ValueError("scripted")
        return [what, about]

    async with await wire.serve(0, answer) as server:
        connection = await wire.Connection.to(server.sockets[0].getsockname()[1])
        assert await connection.ask("echo", {"a": b"1"}) == ["echo", {"a": b"1"}]
        with pytest.raises(wire.Refused, match="ValueError: scripted"):
            await connection.ask("raise")
        waiting = asyncio.ensure_future(connection.ask("never"))
        await connection.ask("echo")
        await connection.close()
        with pytest.raises(wire.LostError, match="broke") as lost:
            await waiting
        assert not lost.value.unsent
        with pytest.raises(wire.LostError) as gone:
            await connection.ask("echo")
        assert gone.value.unsent


def test_quantiles() -> None:
    assert quantile([], 0.99) == 0.0
    assert quantile([3.0, 1.0, 2.0], 0.5) == 2.0
    assert quantile([float(number) for number in range(100)], 0.99) == 99.0
