"""Snapshots in the store: they come with the log start, and what they must fit to; the same for every store.

Rules of this file: through the port alone; damage is done while no store is open.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from multiraft.errors import CorruptRecord
from multiraft.storage import layout
from multiraft.types import (
    HardState,
    LogStart,
    Membership,
    ReplicaDescriptor,
    Snapshot,
    founding_membership,
    unborn_membership,
)

if TYPE_CHECKING:
    from tests.storage.conftest import Place

GROUP = 17


async def test_a_founded_replica_has_its_initial_state_as_a_snapshot_and_an_empty_one_has_none(place: Place) -> None:
    store = place.open()
    await place.found(store)
    assert store.read_snapshot(GROUP) == Snapshot(1, 1, founding_membership(("n1", "n2", "n3")))
    assert store.read_snapshot(GROUP + 1) is None
    batch = store.batch()
    batch.create_replica(ReplicaDescriptor(GROUP + 1, 9, "kv"), unborn_membership(), HardState(), LogStart())
    await place.write(store, batch)
    assert store.read_snapshot(GROUP + 1) is None
    assert [replica.snapshot_index for replica in store.load_replicas()] == [1, 0]


async def test_a_snapshot_replaces_the_one_before_and_moves_the_log_start(place: Place) -> None:
    store = place.open()
    await place.found(store, [place.record(2, 9), place.record(10, 20)], HardState(1, 0, 15))
    snapshot = Snapshot(12, 1, founding_membership(("n1", "n2", "n3")), b"state" * 1_000)
    batch = store.batch()
    batch.put_snapshot(GROUP, snapshot, LogStart(9, 1))
    batch.delete_records(GROUP, [2])
    await place.write(store, batch)
    for _ in range(2):
        assert store.read_snapshot(GROUP) == snapshot
        (replica,) = store.load_replicas()
        assert (replica.log_start, replica.snapshot_index, replica.last_index) == (LogStart(9, 1), 12, 20)
        await store.close()
        store = place.open()


@pytest.mark.parametrize(
    ("snapshot", "start", "expected"),
    [
        (
            Snapshot(16, 1, founding_membership(("n1",))),
            LogStart(9, 1),
            "snapshot of group 17: is of 16, which was not",
        ),
        (Snapshot(9, 0, founding_membership(("n1",))), LogStart(9, 1), "snapshot of group 17: is of 9, but the log"),
    ],
)
async def test_a_snapshot_that_does_not_fit_its_log_is_refused(
    place: Place, snapshot: Snapshot, start: LogStart, expected: str
) -> None:
    store = place.open()
    await place.found(store, [place.record(2, 9), place.record(10, 20)], HardState(1, 0, 15))
    batch = store.batch()
    batch.put_snapshot(GROUP, snapshot, start)
    await place.write(store, batch)
    with pytest.raises(CorruptRecord, match=expected):
        store.load_replicas()


async def test_a_snapshot_with_a_membership_that_is_not_in_effect_is_refused(place: Place) -> None:
    store = place.open()
    await place.found(store, [place.record(2, 9)], HardState(1, 0, 9))
    late = founding_membership(("n1",))
    batch = store.batch()
    batch.put_snapshot(GROUP, Snapshot(8, 1, Membership(8, late.voters, late.nodes, 2)), LogStart(1, 1))
    await place.write(store, batch)
    with pytest.raises(CorruptRecord, match="its membership is of 8, later than the one in effect"):
        store.load_replicas()


async def test_a_lost_snapshot_is_refused(place: Place) -> None:
    store = place.open()
    await place.found(store)
    await store.close()
    place.poke(layout.group_key(GROUP, layout.KIND_SNAPSHOT), None)
    with pytest.raises(CorruptRecord, match="snapshot of group 17: is missing"):
        place.open().load_replicas()
