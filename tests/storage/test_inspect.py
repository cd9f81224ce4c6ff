"""The offline inspection: what it reports, and that it changes nothing."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from multiraft.errors import StorageError
from multiraft.storage import inspect_directory, layout
from multiraft.types import HardState, LogStart, ReplicaDescriptor, Snapshot, Tombstone, founding_membership

if TYPE_CHECKING:
    from tests.storage.conftest import DirectoryPlace

GROUP = 17


def snapshot(path: Path) -> dict[str, tuple[bytes, int]]:
    """Every file below `path`, with its content and time of change."""
    files = [file for file in path.rglob("*") if file.is_file()]
    return {str(file): (file.read_bytes(), file.stat().st_mtime_ns) for file in files}


async def test_the_report_says_what_is_stored_and_nothing_is_changed(directory_place: DirectoryPlace) -> None:
    store = directory_place.open()
    store.bind_cluster(b"c" * 16, {"n1": store.identity.store_id})
    identity = store.identity
    await directory_place.found(store, [directory_place.record(2, 4), directory_place.record(5, 9)], HardState(3, 2, 7))
    await directory_place.found(store, group_id=GROUP + 1)
    await store.close()
    database = directory_place.path / directory_place.folder
    before, places = snapshot(directory_place.path), os.listdir(database)
    report = inspect_directory(str(directory_place.path))
    assert (snapshot(directory_place.path), os.listdir(directory_place.path / directory_place.folder)) == (
        before,
        places,
    )
    assert (report.path, report.identity, report.incarnation) == (str(directory_place.path), identity, 1)
    assert report.closed_orderly
    assert report.sound
    first, second = report.groups
    assert first.descriptor == ReplicaDescriptor(GROUP, 1, "kv")
    assert (first.hard_state, first.log_start) == (HardState(3, 2, 7), LogStart(1, 1))
    assert first.membership is not None
    assert first.membership.voters == (1, 2, 3)
    assert (first.first_index, first.last_index, first.last_term, first.records) == (2, 9, 1, 2)
    assert first.size_bytes > sum(len(directory_place.record(*span).raw) for span in ((2, 4), (5, 9)))
    assert (second.group_id, second.first_index, second.last_index, second.records) == (GROUP + 1, 2, 1, 0)
    store = directory_place.open()
    assert (store.incarnation, store.closed_orderly) == (2, True)


async def test_a_run_that_did_not_end_shows(directory_place: DirectoryPlace) -> None:
    directory_place.end_abruptly(directory_place.open())
    directory_place.end_abruptly(directory_place.open())
    report = inspect_directory(str(directory_place.path))
    assert (report.incarnation, report.closed_orderly, report.sound) == (2, False, True)


async def test_problems_are_listed_by_group_and_hide_nothing(directory_place: DirectoryPlace) -> None:
    store = directory_place.open()
    for group_id in (GROUP, GROUP + 1, GROUP + 2):
        records = [directory_place.record(first, first, group_id=group_id) for first in range(2, 8)]
        await directory_place.found(store, records, group_id=group_id)
    await store.close()
    directory_place.poke(layout.group_key(GROUP, layout.KIND_MEMBERSHIP), b"?")
    directory_place.poke(layout.record_key(GROUP, 3), None)
    directory_place.poke(layout.record_key(GROUP, 6), b"!")
    directory_place.poke(layout.group_key(GROUP + 2, layout.KIND_DESCRIPTOR), None)
    report = inspect_directory(str(directory_place.path))
    assert [len(group.problems) for group in report.groups] == [3, 0, 1]
    membership, gap, record = report.groups[0].problems
    assert "membership of group 17: only 1 bytes" in membership
    assert "no record holds index 3; the next begins at 4" in gap
    assert "only 1 bytes (stored at index 6)" in record
    assert report.groups[0].membership is None
    assert (report.groups[0].records, report.groups[0].last_index) == (5, 7)
    assert "descriptor of group 19: is missing" in report.groups[2].problems[0]
    assert (report.problems, report.sound) == ([], False)


async def test_a_long_list_of_problems_is_cut_and_counted(directory_place: DirectoryPlace) -> None:
    store = directory_place.open()
    await directory_place.found(store, [directory_place.record(first, first) for first in range(2, 200, 2)])
    await store.close()
    (group,) = inspect_directory(str(directory_place.path)).groups
    assert len(group.problems) == 21
    assert group.problems[-1] == "group 17: 78 more problems"


async def test_a_stores_own_problems_do_not_hide_its_groups(directory_place: DirectoryPlace) -> None:
    store = directory_place.open()
    await directory_place.found(store)
    await store.close()
    directory_place.set_identity_file(b"?")
    report = inspect_directory(str(directory_place.path))
    assert (report.identity, report.incarnation, len(report.groups)) == (None, 0, 1)
    assert "IDENTITY file: only 1 bytes" in report.problems[0]


def test_what_is_not_a_data_directory_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    (tmp_path / "empty" / "db").mkdir(parents=True)
    before = snapshot(tmp_path)
    for path in (tmp_path / "none", tmp_path / "file", tmp_path / "empty"):
        with pytest.raises(StorageError, match="is not a data directory"):
            inspect_directory(str(path))
    assert snapshot(tmp_path) == before
    assert not (tmp_path / "none").exists()


async def test_two_inspections_do_not_disturb_each_other_and_leave_nothing_behind(
    directory_place: DirectoryPlace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await directory_place.open().close()
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(scratch))
    assert inspect_directory(str(directory_place.path)) == inspect_directory(str(directory_place.path))
    assert os.listdir(scratch) == []


async def test_a_store_that_was_never_opened_to_the_end_is_reported(directory_place: DirectoryPlace) -> None:
    directory_place.end_abruptly(directory_place.open())
    directory_place.poke(layout.INCARNATION_KEY, None)
    directory_place.set_identity_file(None)
    report = inspect_directory(str(directory_place.path))
    assert report.identity is not None
    assert report.problems == ["a crash left the IDENTITY file behind the database; the next start mends it"]


async def test_what_is_left_of_a_removed_replica_is_no_damage(directory_place: DirectoryPlace) -> None:
    store = directory_place.open()
    await directory_place.found(store, [directory_place.record(2, 4)])
    await directory_place.found(store, group_id=GROUP + 1)
    batch = store.batch()
    batch.remove_replica(Tombstone(GROUP, 1, 4))
    batch.put_snapshot(GROUP + 1, Snapshot(1, 1, founding_membership(("n1",)), b"state"), LogStart(1, 1))
    await directory_place.write(store, batch)
    await store.close()
    report = inspect_directory(str(directory_place.path))
    assert report.tombstones == [Tombstone(GROUP, 1, 4)]
    assert [(group.removed, group.problems) for group in report.groups] == [(True, []), (False, [])]
    assert (report.groups[0].records, report.groups[0].descriptor) == (1, None)
    assert (report.groups[1].snapshot_index, report.groups[1].snapshot_bytes) == (1, 5)
    directory_place.poke(layout.tombstone_key(GROUP), b"?")
    report = inspect_directory(str(directory_place.path))
    assert report.problems == ["tombstone of group 17: only 1 bytes"]
    assert "descriptor of group 17: is missing" in report.groups[0].problems[0]
