"""States of machines on disk that travel as files: made on demand while commands go on, taken in, and collected.

Rules of this file: virtual time; no state is small enough for a message, so that all of them are files.
"""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from multiraft import Limits
from multiraft.engine import filling
from multiraft.engine.loading import Loading
from tests.node.conftest import Ledgers
from tests.node.shelves import GROUP, disk, propose, replica_of, settled, store_of, stored

FILES = Limits(request_timeout_ms=3_000, snapshot_entries=20, trailing_entries=5, snapshot_inline_bytes=0)


def files_of(ledgers: Ledgers, name: str) -> Any:
    return ledgers.cluster.nodes[name]._here().engine.ondisk.files


def on_shelf(ledgers: Ledgers, name: str) -> list[str]:
    """The snapshot files of the group on a node's disk, whole or not."""
    shelf = ledgers.cluster.disks[name].shelf
    return [one for one in {*shelf.whole, *shelf.parts} if one.startswith(f"{GROUP:016x}-")]


async def lag(ledgers: Ledgers, first: int = 80) -> tuple[str, str, list[bytes]]:
    """Let one follower fall behind the log; return the leader, that follower, and all commands."""
    cluster = ledgers.cluster
    leader = await ledgers.leader()
    lagging = next(name for name in cluster.names if name != leader)
    commands = await propose(ledgers, 1, 5)
    await settled(ledgers, commands)
    cluster.isolate(lagging)
    return leader, lagging, commands + await propose(ledgers, 6, first)


async def all_collected(ledgers: Ledgers) -> None:
    """Nothing is left of files and of keyspaces that nobody needs."""
    for name in ledgers.cluster.names:
        data = replica_of(ledgers, name).data
        assert data is not None
        space = data.space
        await ledgers.cluster.until(lambda name=name: on_shelf(ledgers, name) == [])  # type: ignore[misc]
        await ledgers.cluster.until(
            lambda name=name, space=space: store_of(ledgers, name).spaces() == [space]  # type: ignore[misc]
        )


def test_a_follower_that_lags_behind_the_log_gets_a_file_and_nothing_of_it_stays(play: Callable[..., None]) -> None:
    async def scenario(ledgers: Ledgers) -> None:
        cluster = ledgers.cluster
        leader, lagging, commands = await lag(ledgers)
        assert all(on_shelf(ledgers, name) == [] for name in cluster.names)  # none was made before it is needed
        cluster.heal()
        await settled(ledgers, commands)
        fetching = cluster.nodes[lagging]._here().engine.transfers.fetching
        assert fetching.counters["snapshots_fetched"] == 1
        given, taken = replica_of(ledgers, leader), replica_of(ledgers, lagging)
        assert taken.context.time_ms == given.context.time_ms
        assert taken.executor.rolling.value == given.executor.rolling.value
        await all_collected(ledgers)
        cluster.crash(lagging)  # what was switched to is durable
        await cluster.start(lagging)
        assert stored(ledgers, lagging)[:80] == commands
        commands += await propose(ledgers, 81, 82)
        await settled(ledgers, commands)

    disk(scenario, play, limits=FILES)


def test_sessions_travel_with_the_keyspace(play: Callable[..., None]) -> None:
    async def scenario(ledgers: Ledgers) -> None:
        cluster = ledgers.cluster
        leader, lagging, commands = await lag(ledgers)
        cluster.heal()
        await settled(ledgers, commands)
        parts = {
            name: dict(store_of(ledgers, name).iterate_data(space_of(ledgers, name))) for name in (leader, lagging)
        }
        assert any(key[:1] == b"\1" for key in parts[leader])
        assert parts[leader] == parts[lagging]

    def space_of(ledgers: Ledgers, name: str) -> int:
        data = replica_of(ledgers, name).data
        assert data is not None
        return data.space

    disk(scenario, play, limits=FILES)


def test_the_log_is_held_until_the_follower_has_what_it_needs(
    play: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    held: list[Loading] = []
    begin = Loading.begin
    # Taking it in lasts for as long as the test wants.
    monkeypatch.setattr(Loading, "begin", lambda loading: held.append(loading))

    async def scenario(ledgers: Ledgers) -> None:
        cluster = ledgers.cluster
        leader, lagging, commands = await lag(ledgers)
        cluster.heal()
        await cluster.until(lambda: bool(files_of(ledgers, lagging)._taking_in))
        core = replica_of(ledgers, leader).core
        index = core.awaited
        assert 0 < index <= core.last_index
        commands += await propose(ledgers, 81, 200)
        await cluster.run_for(25.0)  # the transfer was over long ago
        commands += await propose(ledgers, 201, 260)
        assert core.log.start.index <= index
        for loading in held:
            begin(loading)
        monkeypatch.setattr(Loading, "begin", begin)
        await settled(ledgers, commands)
        await cluster.run_for(1.5)
        commands += await propose(ledgers, 261, 300)
        await cluster.until(lambda: core.log.start.index > 200)
        await settled(ledgers, commands)
        # One file was enough, although the log would have passed it.
        assert cluster.nodes[lagging]._here().engine.transfers.fetching.counters["snapshots_fetched"] == 1
        await all_collected(ledgers)

    disk(scenario, play, limits=FILES)


def test_a_log_that_is_held_too_long_is_let_go(play: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario(ledgers: Ledgers) -> None:
        cluster = ledgers.cluster
        leader, lagging, commands = await lag(ledgers)
        cluster.heal()
        files, core = files_of(ledgers, leader), replica_of(ledgers, leader).core
        await cluster.until(lambda: bool(files._made))
        index = files._made[GROUP].snapshot.index
        cluster.isolate(lagging)
        files._held_entries = 40
        commands += await propose(ledgers, 81, 110)
        assert core.log.start.index <= index
        commands += await propose(ledgers, 111, 200)
        await cluster.until(lambda: core.log.start.index > index)
        cluster.heal()
        await settled(ledgers, commands)

    disk(scenario, play, limits=FILES)


def test_commands_go_on_while_a_state_is_made_and_taken_in(
    play: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(filling, "_UNDER_WAY_BYTES", 10_000)

    async def scenario(ledgers: Ledgers) -> None:
        cluster = ledgers.cluster
        leader = await ledgers.leader()
        lagging = next(name for name in cluster.names if name != leader)
        cluster.isolate(lagging)
        commands = []
        for number in range(40):
            commands.append(b"%d" % number + os.urandom(20_000).hex().encode())
            await ledgers.services[await ledgers.leader()].propose(b"k", commands[-1])
        cluster.heal()
        files = files_of(ledgers, leader)
        await cluster.until(lambda: bool(files._making) or bool(files._made))
        for number in range(40, 60):
            commands.append(b"%d" % number)
            await ledgers.services[await ledgers.leader()].propose(b"k", commands[-1])
        await settled(ledgers, commands)
        await all_collected(ledgers)

    disk(scenario, play, limits=FILES)


@pytest.mark.parametrize(
    "place", ["data.file-made", "space.filled", "space.switched", "snapshot.before-restore", "snapshot.after-save"]
)
def test_a_crash_at_each_place_of_making_and_taking_in(play: Callable[..., None], place: str) -> None:
    async def scenario(ledgers: Ledgers) -> None:
        cluster = ledgers.cluster
        leader, lagging, commands = await lag(ledgers)
        struck = leader if place == "data.file-made" else lagging
        cluster.arm(place, "kill", struck)
        cluster.heal()
        await cluster.until(lambda: struck not in cluster.nodes)
        cluster.places.clear()
        await cluster.start(struck)
        found = stored(ledgers, struck)
        assert found == commands[: len(found)]
        commands += await propose(ledgers, 81, 82)
        await settled(ledgers, commands)
        await all_collected(ledgers)

    disk(scenario, play, limits=FILES)


@pytest.mark.parametrize("written", [False, True])
@pytest.mark.parametrize("count", range(1, 13))
@pytest.mark.parametrize("whose", ["giver", "taker"])
def test_a_crash_at_each_write_of_making_and_taking_in(
    play: Callable[..., None], whose: str, count: int, written: bool
) -> None:
    async def scenario(ledgers: Ledgers) -> None:
        cluster = ledgers.cluster
        leader, lagging, commands = await lag(ledgers)
        struck = leader if whose == "giver" else lagging
        cluster.crash_after(struck, count, written=written)
        cluster.heal()
        await cluster.run_for(2.0)
        if struck not in cluster.nodes:
            await cluster.start(struck)
            found = stored(ledgers, struck)
            assert found == commands[: len(found)]
        cluster.end_faults()
        await cluster.ready()
        commands += await propose(ledgers, 81, 81)
        await settled(ledgers, commands)
        await all_collected(ledgers)

    disk(scenario, play, limits=FILES)


def test_a_file_that_cannot_be_written_is_tried_again_and_nothing_is_left(
    play: Callable[..., None], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario(ledgers: Ledgers) -> None:
        cluster = ledgers.cluster
        leader, _, commands = await lag(ledgers)
        failures = 2
        files = store_of(ledgers, leader).files
        create = files.create

        def fails(name: str) -> Any:
            nonlocal failures
            sink: Any = create(name)
            write = sink._write

            def written(piece: bytes) -> None:
                nonlocal failures
                write(piece)
                if failures:
                    failures -= 1
                    raise OSError(errno.EIO, os.strerror(errno.EIO))

            sink._write = written
            return sink

        monkeypatch.setattr(files, "create", fails)
        cluster.heal()
        await settled(ledgers, commands)
        assert failures == 0
        said = [record for record in caplog.records if "cannot be sent the state yet" in record.getMessage()]
        assert len(said) == 2
        assert replica_of(ledgers, leader).snapshot_problem is None
        await all_collected(ledgers)

    disk(scenario, play, limits=FILES)


def test_a_file_that_is_damaged_once_it_is_here_is_fetched_anew(
    play: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    struck: list[str] = []
    begin = Loading.begin

    def damage(loading: Loading) -> None:
        shelf = loading._files.disk.shelf  # type: ignore[attr-defined]
        name = loading._manifest.name
        if name.startswith(f"{GROUP:016x}-") and not struck:
            struck.append(name)
            whole = bytearray(shelf.whole[name])
            whole[-1] ^= 1
            shelf.whole[name] = bytes(whole)
        begin(loading)

    monkeypatch.setattr(Loading, "begin", damage)

    async def scenario(ledgers: Ledgers) -> None:
        cluster = ledgers.cluster
        _, lagging, commands = await lag(ledgers)
        cluster.heal()
        await cluster.until(lambda: bool(struck))
        found = stored(ledgers, lagging)
        assert found == commands[: len(found)]
        await settled(ledgers, commands)
        await all_collected(ledgers)

    disk(scenario, play, limits=FILES)


def test_a_replica_that_is_removed_while_it_takes_a_state_in_leaves_nothing(
    play: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(filling, "_UNDER_WAY_BYTES", 1)
    monkeypatch.setattr(Loading, "go_on", lambda _: None)  # it would last for ever

    async def scenario(ledgers: Ledgers) -> None:
        cluster = ledgers.cluster
        leader, lagging, commands = await lag(ledgers)
        cluster.heal()
        files = files_of(ledgers, lagging)
        await cluster.until(lambda: bool(files._taking_in))
        await cluster.nodes[leader].group(GROUP).remove(lagging)
        await cluster.until(lambda: GROUP not in cluster.nodes[lagging]._here().engine.replicas)
        await cluster.until(lambda: store_of(ledgers, lagging).spaces() == [])
        assert not files._taking_in
        await cluster.until(lambda: on_shelf(ledgers, lagging) == [])
        assert stored(ledgers, leader) == commands

    disk(scenario, play, limits=FILES)


def test_what_was_made_long_ago_is_made_anew_for_who_asks_now(play: Callable[..., None]) -> None:
    async def scenario(ledgers: Ledgers) -> None:
        cluster = ledgers.cluster
        leader = await ledgers.leader()
        commands = await propose(ledgers, 1, 60)
        files, replica = files_of(ledgers, leader), replica_of(ledgers, leader)
        await cluster.until(lambda: files.make(replica))
        first = files.snapshot_of(GROUP)
        assert files.make(replica)
        assert files.snapshot_of(GROUP) is first
        commands += await propose(ledgers, 61, 100)
        assert replica.core.log.start.index <= first.index < replica.core.snapshot_index
        assert not files.make(replica)
        await cluster.until(lambda: files.make(replica))
        assert files.snapshot_of(GROUP).index >= replica.core.snapshot_index
        assert len(on_shelf(ledgers, leader)) == 1
        await all_collected(ledgers)
        await settled(ledgers, commands)

    disk(scenario, play, limits=FILES)


def test_none_is_made_while_the_membership_is_ahead_of_the_data(play: Callable[..., None]) -> None:
    async def scenario(ledgers: Ledgers) -> None:
        leader = await ledgers.leader()
        commands = await propose(ledgers, 1, 60)
        await settled(ledgers, commands)
        files, replica = files_of(ledgers, leader), replica_of(ledgers, leader)
        membership = replica.core.membership
        replica.core.membership = replace(membership, index=replica.applied + 1)  # in effect, and not applied
        assert not files.make(replica)
        assert not files._making
        replica.core.membership = membership
        await ledgers.cluster.until(lambda: files.make(replica))
        assert files.snapshot_of(GROUP).membership == membership

    disk(scenario, play, limits=FILES)


def test_a_state_is_made_and_taken_in_no_faster_than_files_travel(play: Callable[..., None]) -> None:
    """Both take of the disk and the loop, and other groups go on meanwhile."""
    rate = 400_000

    async def scenario(ledgers: Ledgers) -> None:
        cluster = ledgers.cluster
        loop = asyncio.get_running_loop()
        leader = await ledgers.leader()
        lagging = next(name for name in cluster.names if name != leader)
        cluster.isolate(lagging)
        commands = []
        for number in range(40):
            commands.append(b"%d" % number + os.urandom(20_000).hex().encode())
            await ledgers.services[await ledgers.leader()].propose(b"k", commands[-1])
        size_bytes = sum(map(len, commands))
        took_s: dict[str, float] = {}
        for what, name, places in (("made", leader, "_making"), ("taken in", lagging, "_taking_in")):
            cluster.heal()
            files = files_of(ledgers, name)
            await cluster.until(lambda files=files, places=places: bool(getattr(files, places)), timeout_s=30.0)  # type: ignore[misc]
            began_s = loop.time()
            await cluster.until(lambda files=files, places=places: not getattr(files, places), timeout_s=30.0)  # type: ignore[misc]
            took_s[what] = loop.time() - began_s
        assert took_s["made"] >= 0.9 * size_bytes / rate
        assert took_s["taken in"] >= 0.9 * size_bytes / rate
        assert max(took_s.values()) <= 2 * size_bytes / rate
        await settled(ledgers, commands)

    disk(scenario, play, limits=replace(FILES, snapshot_bytes_per_s=rate))
