"""States of machines in memory that are saved as files: what goes on meanwhile, what may fail, what is left.

Rules of this file: virtual time; no state is small enough for the database, so that every snapshot is a file.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from typing import Any

import pytest

from multiraft import Limits
from multiraft.engine.loading import Loading
from multiraft.engine.saving import Saving
from multiraft.snapshot_file import decode_manifest, file_name, is_manifest
from multiraft.storage import layout
from tests.node.conftest import Ledger, Ledgers

GROUP = Ledgers.GROUP
OTHER = GROUP + 1
# Keys of the two groups, where there are two.
LOWER, UPPER = b"a", b"k"
FILES = Limits(request_timeout_ms=3_000, snapshot_entries=20, trailing_entries=4, snapshot_inline_bytes=0)
Play = Callable[..., None]


def replica_of(ledgers: Ledgers, name: str) -> Any:
    return ledgers.cluster.nodes[name]._here().engine.replicas[GROUP]


def on_shelf(ledgers: Ledgers, name: str) -> list[str]:
    """The snapshot files of the group on a node's disk, whole or not."""
    shelf = ledgers.cluster.disks[name].shelf
    return sorted(one for one in {*shelf.whole, *shelf.parts} if one.startswith(f"{GROUP:016x}-"))


def named(ledgers: Ledgers, name: str) -> str:
    """The file that the stored snapshot of the group on a node names."""
    store: Any = ledgers.cluster.nodes[name]._here().store
    data = store.read_snapshot(GROUP).data
    return decode_manifest(data).name if is_manifest(data) else ""


async def write(ledgers: Ledgers, first: int, last: int, key: bytes = b"k") -> list[bytes]:
    """Write these numbers one by one, by a key of the group; return them all from 0 on."""
    for number in range(first, last):
        name = await ledgers.leader()
        await ledgers.services[name].propose(key, b"%d" % number)
    return [b"%d" % number for number in range(last)]


async def settled(ledgers: Ledgers, kept: list[bytes]) -> None:
    await ledgers.cluster.until(lambda: all(ledgers.kept(name) == kept for name in ledgers.cluster.nodes))


async def only_named(ledgers: Ledgers) -> None:
    """Of each node's files nothing stays but what its snapshot names."""
    for name in ledgers.cluster.names:
        await ledgers.cluster.until(lambda name=name: on_shelf(ledgers, name) == [named(ledgers, name)])  # type: ignore[misc]


class HeldUp:
    """Stops the first saving of the group on one node when it has begun, until `go_on`."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.saving: Saving | None = None
        self._wanted: Any = None
        self._patch = monkeypatch
        take = Saving.take

        def held(saving: Saving, until_s: float, stopwatch: Any) -> int:
            if self._wanted is not None and saving._files is self._wanted and saving.name.startswith(f"{GROUP:016x}-"):
                self.saving, self._wanted = saving, None
            return 0 if saving is self.saving else take(saving, until_s, stopwatch)

        monkeypatch.setattr(Saving, "take", held)
        monkeypatch.setattr(Saving, "waits", property(lambda saving: saving is self.saving or saving._under_way >= 4))

    async def on(self, ledgers: Ledgers, name: str, key: bytes = b"k") -> list[bytes]:
        """Write until the replica on that node is being saved; return all that was written."""
        self._wanted = ledgers.cluster.nodes[name]._here().engine.store.files
        kept: list[bytes] = []
        while self.saving is None:
            assert len(kept) < 100
            kept = await write(ledgers, len(kept), len(kept) + 1, key)
        return kept

    def go_on(self) -> None:
        saving, self.saving = self.saving, None
        assert saving is not None
        saving._wake()


def test_while_a_state_is_saved_its_machine_answers_and_stays_and_all_others_go_on(
    play: Play, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = HeldUp(monkeypatch)

    async def scenario(ledgers: Ledgers) -> None:
        cluster = ledgers.cluster
        leader = await ledgers.leader()
        name = next(name for name in cluster.names if name != leader)
        kept = await held.on(ledgers, name, LOWER)
        before = list(ledgers.kept(name))
        start = replica_of(ledgers, name).core.log.start.index
        other: Any = cluster.nodes[name].local_machine(OTHER)
        kept = await write(ledgers, len(kept), len(kept) + 50, LOWER)
        others = await write(ledgers, 0, 50, UPPER)
        await cluster.until(lambda: other.kept == others)
        assert ledgers.kept(name) == before
        assert replica_of(ledgers, name).machine.query(b"").split() == before
        assert replica_of(ledgers, name).core.commit > len(kept)  # it takes part in consensus
        assert replica_of(ledgers, name).core.log.start.index == start
        held.go_on()
        await settled(ledgers, kept)
        await cluster.until(lambda: replica_of(ledgers, name).core.log.start.index > start)
        cluster.crash(name)
        await cluster.start(name)
        await settled(ledgers, kept)

    play(scenario, limits=FILES, shards=2)


def test_a_change_of_members_that_comes_while_a_state_is_saved_is_not_in_its_snapshot(
    play: Play, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = HeldUp(monkeypatch)

    async def scenario(ledgers: Ledgers) -> None:
        cluster = ledgers.cluster
        leader = await ledgers.leader()
        name = next(name for name in cluster.names if name != leader)
        gone = next(other for other in cluster.names if other not in (leader, name))
        kept = await held.on(ledgers, name)
        core = replica_of(ledgers, name).core
        begun, index = core.membership, core.applied
        await cluster.nodes[leader].group(GROUP).remove(gone)
        await cluster.until(lambda: core.membership.index > begun.index)
        kept = await write(ledgers, len(kept), len(kept) + 3)
        held.go_on()
        await cluster.until(lambda: core.snapshot_index == index)
        stored: Any = cluster.nodes[name]._here().engine.store.read_snapshot(GROUP)
        assert stored.membership == begun
        cluster.crash(name)
        await cluster.start(name)
        await cluster.until(lambda: ledgers.kept(name) == kept)
        assert set(replica_of(ledgers, name).core.membership.nodes.values()) == {leader, name}

    play(scenario, limits=FILES)


def test_a_failed_save_compacts_nothing_leaves_nothing_and_is_tried_again(
    play: Play, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario(ledgers: Ledgers) -> None:
        cluster = ledgers.cluster
        files: Any = cluster.nodes["b"]._here().engine.store.files
        create, broken = files.create, True

        def failing(name: str) -> Any:
            sink: Any = create(name)
            write_piece = sink._write

            def write(piece: bytes) -> None:
                write_piece(piece)
                if broken and name.startswith(f"{GROUP:016x}-"):
                    raise OSError(errno.EIO, os.strerror(errno.EIO))

            sink._write = write
            return sink

        monkeypatch.setattr(files, "create", failing)
        kept = await write(ledgers, 0, 30)
        replica = replica_of(ledgers, "b")
        await cluster.until(lambda: replica.snapshot_problem is not None)
        start = replica.core.log.start.index
        assert replica.core.snapshot_index == start  # the founding
        assert on_shelf(ledgers, "b") == []
        broken = False
        kept = await write(ledgers, 30, 120)
        await settled(ledgers, kept)
        await cluster.until(lambda: replica.core.log.start.index > start)
        assert replica.snapshot_problem is None
        await only_named(ledgers)
        cluster.crash()
        await cluster.start()
        await settled(ledgers, kept)

    play(scenario, limits=FILES)
    said = [record for record in caplog.records if "group 16: no snapshot is taken" in record.getMessage()]
    assert len(said) == 1


@pytest.mark.parametrize("written", [False, True])
@pytest.mark.parametrize("count", range(1, 11))
def test_a_power_cut_at_each_write_of_saving(play: Play, count: int, written: bool) -> None:
    async def scenario(ledgers: Ledgers) -> None:
        cluster = ledgers.cluster
        leader = await ledgers.leader()
        name = next(name for name in cluster.names if name != leader)
        kept = await write(ledgers, 0, 18)
        cluster.crash_after(name, count, written=written)
        kept = await write(ledgers, 18, 40)
        await cluster.run_for(1.0)
        if name not in cluster.nodes:
            await cluster.start(name)
        await settled(ledgers, kept)
        kept = await write(ledgers, 40, 70)
        await settled(ledgers, kept)
        await only_named(ledgers)

    play(scenario, limits=FILES)


@pytest.mark.parametrize("written", [False, True])
@pytest.mark.parametrize("count", range(1, 11))
def test_a_power_cut_at_each_write_of_installing(play: Play, count: int, written: bool) -> None:
    async def scenario(ledgers: Ledgers) -> None:
        cluster = ledgers.cluster
        leader = await ledgers.leader()
        name = next(name for name in cluster.names if name != leader)
        cluster.isolate(name)
        kept = await write(ledgers, 0, 70)
        cluster.crash_after(name, count, written=written)
        cluster.heal()
        await cluster.run_for(2.0)
        if name not in cluster.nodes:
            await cluster.start(name)
            found = ledgers.kept(name)
            assert found == kept[: len(found)]
        cluster.end_faults()
        await settled(ledgers, kept)
        kept = await write(ledgers, 70, 120)
        await settled(ledgers, kept)
        await only_named(ledgers)

    play(scenario, limits=FILES)


@pytest.mark.parametrize(
    "place", ["snapshot.before-save", "snapshot.after-save", "snapshot.before-restore", "snapshot.after-restore"]
)
def test_a_kill_at_each_place_of_saving_and_installing(play: Play, place: str) -> None:
    async def scenario(ledgers: Ledgers) -> None:
        cluster = ledgers.cluster
        leader = await ledgers.leader()
        name = next(name for name in cluster.names if name != leader)
        cluster.isolate(name)
        kept = await write(ledgers, 0, 70)
        cluster.arm(place, "kill", name)
        cluster.heal()
        while name in cluster.nodes:
            assert len(kept) < 200
            kept = await write(ledgers, len(kept), len(kept) + 1)
            await cluster.run_for(0.02)
        cluster.places.clear()
        await cluster.start(name)
        await settled(ledgers, kept)
        kept = await write(ledgers, len(kept), len(kept) + 40)
        await settled(ledgers, kept)
        await only_named(ledgers)

    play(scenario, limits=FILES)


def test_files_that_nobody_needs_are_deleted_after_a_start(play: Play) -> None:
    async def scenario(ledgers: Ledgers) -> None:
        cluster = ledgers.cluster
        kept = await write(ledgers, 0, 50)
        await settled(ledgers, kept)
        await cluster.stop("c")
        shelf = cluster.disks["c"].shelf
        (mine,) = on_shelf(ledgers, "c")
        old, unknown = file_name(GROUP, 3, 77), file_name(12_345, 9, 1)
        shelf.whole[old] = shelf.whole[unknown] = b"left over from a crash"
        shelf.parts[file_name(GROUP, 4, 78)] = (bytearray(b"half"), 4)
        await cluster.start("c")
        await cluster.until(lambda: on_shelf(ledgers, "c") == [named(ledgers, "c")])
        assert mine == named(ledgers, "c")
        await cluster.until(lambda: unknown not in shelf.whole)
        await settled(ledgers, kept)

    play(scenario, limits=FILES)


@pytest.mark.parametrize("where", [3, 40, -1])
def test_a_damaged_file_of_its_own_is_never_served(play: Play, where: int) -> None:
    async def scenario(ledgers: Ledgers) -> None:
        cluster = ledgers.cluster
        kept = await write(ledgers, 0, 50)
        await settled(ledgers, kept)
        await cluster.stop("c")
        shelf = cluster.disks["c"].shelf
        (name,) = on_shelf(ledgers, "c")
        whole = bytearray(shelf.whole[name])
        whole[where] ^= 4
        shelf.whole[name] = bytes(whole)
        await cluster.start("c")
        seen: set[int] = set()

        def over() -> bool:
            found = ledgers.kept("c")
            seen.add(len(found))
            assert found == kept[: len(found)]
            replica = replica_of(ledgers, "c")
            return replica.halted is not None or found == kept

        await cluster.until(over)
        halted = replica_of(ledgers, "c").halted
        assert halted is not None
        assert halted.kind == "damaged"
        assert name in halted.reason
        kept = await write(ledgers, 50, 55)  # the others go on
        assert seen == {0}

    play(scenario, limits=FILES)


def test_nobody_is_answered_from_a_machine_whose_state_is_still_being_read(
    play: Play, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: list[Loading] = []
    begin = Loading.begin

    async def scenario(ledgers: Ledgers) -> None:
        cluster = ledgers.cluster
        kept = await write(ledgers, 0, 50)
        await settled(ledgers, kept)
        await cluster.stop("c")
        monkeypatch.setattr(Loading, "begin", lambda loading: begun.append(loading))
        await cluster.start("c")
        kept = await write(ledgers, 50, 90)
        await cluster.run_for(1.0)
        assert ledgers.kept("c") == []
        assert replica_of(ledgers, "c").applied == 0
        assert replica_of(ledgers, "c").core.commit > 90
        answer = await ledgers.services["c"].read(b"k", b"", local=True)  # whoever has it answers
        assert answer.split() == kept
        monkeypatch.setattr(Loading, "begin", begin)
        for loading in begun:
            begin(loading)
        await settled(ledgers, kept)

    play(scenario, limits=FILES)


def test_a_log_of_few_large_entries_is_kept_short_by_its_bytes(play: Play) -> None:
    async def scenario(ledgers: Ledgers) -> None:
        cluster = ledgers.cluster
        kept = []
        for number in range(100):
            kept.append(b"%d" % number + b"x" * 4_000)
            await ledgers.services[await ledgers.leader()].propose(b"k", kept[-1])
        await settled(ledgers, kept)
        for name in cluster.names:
            core = replica_of(ledgers, name).core
            assert (core.last_index - core.log.start.index) * 4_000 < 4 * 64 * 1024
        cluster.crash()
        await cluster.start()
        await settled(ledgers, kept)

    limits = Limits(request_timeout_ms=3_000, snapshot_bytes=64 * 1024, snapshot_inline_bytes=0)
    play(scenario, limits=limits)


def test_the_log_waits_for_a_follower_that_fetches_a_snapshot(play: Play) -> None:
    async def scenario(ledgers: Ledgers) -> None:
        cluster = ledgers.cluster
        leader = await ledgers.leader()
        name = next(name for name in cluster.names if name != leader)
        cluster.isolate(name)
        kept = []
        for number in range(60):
            kept.append(b"%d" % number + os.urandom(500).hex().encode())
            await ledgers.services[leader].propose(b"k", kept[-1])
        core = replica_of(ledgers, leader).core
        cluster.heal()
        await cluster.until(lambda: core.awaited > 0)
        index = core.awaited
        for _ in range(20):
            for _ in range(5):
                kept.append(b"%d" % len(kept))
                await ledgers.services[leader].propose(b"k", kept[-1])
            await cluster.run_for(0.1)
        assert core.awaited == index  # it takes some 10 s at this pace
        assert core.log.start.index <= index
        await settled(ledgers, kept)
        assert cluster.nodes[name]._here().engine.transfers.fetching.counters["snapshots_fetched"] == 1
        for _ in range(30):  # the log goes on to be kept short
            kept.append(b"%d" % len(kept))
            await ledgers.services[leader].propose(b"k", kept[-1])
        await cluster.until(lambda: core.log.start.index > index)
        await settled(ledgers, kept)

    limits = Limits(
        request_timeout_ms=3_000,
        snapshot_entries=20,
        trailing_entries=4,
        snapshot_inline_bytes=0,
        snapshot_bytes_per_s=4 * 1024,
    )
    play(scenario, limits=limits)


def test_the_file_of_a_replica_that_could_not_take_it_stays_for_when_it_can(
    play: Play, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario(ledgers: Ledgers) -> None:
        cluster = ledgers.cluster
        kept = await write(ledgers, 0, 50)
        await settled(ledgers, kept)
        await cluster.stop("c")
        with monkeypatch.context() as patch:
            patch.setattr(Ledger, "restore", lambda *_: 1 / 0)
            for _ in range(2):  # the second run knows of it from the disk
                await cluster.start("c")
                await cluster.until(lambda: replica_of(ledgers, "c").halted is not None)
                await cluster.run_for(2.0)
                assert on_shelf(ledgers, "c") == [named(ledgers, "c")]
                await cluster.stop("c")
            await cluster.start("c")
        assert replica_of(ledgers, "c").halted is not None
        cluster.nodes["c"].retry(GROUP)
        await settled(ledgers, kept)

    play(scenario, limits=FILES)


def test_the_files_of_a_damaged_replica_stay_until_its_group_has_replaced_it(play: Play) -> None:
    async def scenario(ledgers: Ledgers) -> None:
        cluster = ledgers.cluster
        kept = await write(ledgers, 0, 50)
        await settled(ledgers, kept)
        for name in cluster.names:
            await cluster.stop(name)
        disk = cluster.disks["c"]
        key = layout.group_key(GROUP, layout.KIND_HARD_STATE)
        value = bytearray(disk.read(key) or b"")
        value[-1] ^= 4
        disk.overwrite(key, bytes(value))
        (mine,) = on_shelf(ledgers, "c")
        await cluster.start("c")
        await cluster.run_for(5.0)
        assert on_shelf(ledgers, "c") == [mine]
        for name in "ab":
            await cluster.start(name)
        await cluster.until(lambda: GROUP in cluster.nodes["c"]._here().engine.replicas)
        await settled(ledgers, kept)
        await cluster.until(lambda: mine not in on_shelf(ledgers, "c"))

    play(scenario, limits=FILES)
