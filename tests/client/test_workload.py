"""What a load asks for: the same for the same seed, in the shares and distributions that were asked for."""

from __future__ import annotations

from collections import Counter
from itertools import islice
from typing import Any

import msgpack
import pytest

from multiraft.client.workload import DRAWS, Workload
from multiraft.errors import InvalidRequest

COUNT = 20_000


def keys_of(**options: Any) -> list[int]:
    return [int(key.split(b":")[1]) for _, key, _ in islice(Workload(**options).operations(), COUNT)]


def test_a_call_is_what_the_command_and_the_query_take() -> None:
    operations = Workload(write="set", read="look", reads=0.5, keys=10, value_bytes=20).operations()
    calls = {reads: (key, msgpack.unpackb(body)) for reads, key, body in islice(operations, 50)}
    key, wire = calls[False]
    assert wire[:2] == ["set", key.decode()]
    assert len(wire[2]) == 20
    key, wire = calls[True]
    assert wire == ["look", key.decode()]


def test_one_seed_is_one_sequence() -> None:
    assert keys_of(seed=3) == keys_of(seed=3)
    assert keys_of(seed=3) != keys_of(seed=4)


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_reads_are_the_share_that_was_asked_for(share: float) -> None:
    reads = sum(reads for reads, _, _ in islice(Workload(reads=share).operations(), COUNT))
    assert abs(reads / COUNT - share) < 0.02


def test_uniform_keys_come_about_as_often() -> None:
    counts = Counter(keys_of(keys=10))
    assert len(counts) == 10
    assert all(abs(count - COUNT / 10) < COUNT / 50 for count in counts.values())


def test_zipf_keys_fall_off_as_they_should() -> None:
    counts = Counter(keys_of(keys=1_000, distribution="zipf", zipf=1.0))
    harmonic = sum(1 / k for k in range(1, 1_001))
    for rank in (1, 2, 4):
        assert abs(counts[rank - 1] - COUNT / rank / harmonic) < 0.1 * COUNT / rank / harmonic + 50
    assert max(counts) < 1_000


@pytest.mark.parametrize("keys", [1, 7, 300, DRAWS - 1, DRAWS, DRAWS + 5])
def test_sequential_keys_come_one_after_the_other_past_every_seam(keys: int) -> None:
    count = 2 * DRAWS + 10
    found = [
        int(key.split(b":")[1])
        for _, key, _ in islice(Workload(keys=keys, distribution="sequential").operations(), count)
    ]
    assert found == [number % keys for number in range(count)]


@pytest.mark.parametrize("wrong", [{"keys": 0}, {"reads": 1.5}, {"value_bytes": -1}, {"zipf": 0}])
def test_what_makes_no_sense_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequest, match=next(iter(wrong))):
        Workload(**wrong)
