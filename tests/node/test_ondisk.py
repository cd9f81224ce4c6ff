"""Machines on disk on whole nodes: nothing is applied twice over restarts and crashes, and no log grows for ever.

Rules of this file: virtual time; a machine counts in an attribute what it was given to apply in this run, which is no
state, and keeps its state in its data.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest

from multiraft import CommandFailed, Limits, StartError
from multiraft.engine import keyspace, spaces
from multiraft.storage import layout
from tests.node.conftest import Ledgers
from tests.node.shelves import GROUP, SHORT, Shelf, disk, propose, replica_of, settled, shelf, store_of, stored

if TYPE_CHECKING:
    pass


def test_commands_are_applied_and_read_on_every_node(play: Callable[..., None]) -> None:
    async def scenario(ledgers: Ledgers) -> None:
        commands = await propose(ledgers, 1, 30)
        await settled(ledgers, commands)
        for name in ledgers.cluster.names:
            assert await ledgers.services[name].read(b"k", b"") == b" ".join(commands)
            assert await ledgers.services[name].read(b"k", b"", local=True) == b" ".join(commands)

    disk(scenario, play)


def test_what_a_failed_command_wrote_is_dropped_on_every_replica(play: Callable[..., None]) -> None:
    async def scenario(ledgers: Ledgers) -> None:
        name = await ledgers.leader()
        await propose(ledgers, 1, 3)
        with pytest.raises(CommandFailed, match="not this one"):
            await ledgers.services[name].propose(b"k", b"!ValueError")
        await propose(ledgers, 4, 4)
        await settled(ledgers, [b"1", b"2", b"3", b"4"])
        assert await ledgers.services[name].read(b"k", b"count") == b"4"

    disk(scenario, play)


def test_after_an_orderly_restart_nothing_is_applied_again(play: Callable[..., None]) -> None:
    async def scenario(ledgers: Ledgers) -> None:
        cluster = ledgers.cluster
        commands = await propose(ledgers, 1, 50)
        await settled(ledgers, commands)
        await cluster.stop()
        await cluster.start()
        # Before anything else is applied the state is all there.
        assert all(stored(ledgers, name) == commands for name in cluster.names)
        await cluster.ready()
        assert await ledgers.services["a"].read(b"k", b"count") == b"50"
        commands += await propose(ledgers, 51, 52)
        await settled(ledgers, commands)
        assert [shelf(ledgers, name).given for name in cluster.names] == [[b"51", b"52"]] * 3

    disk(scenario, play)


@pytest.mark.parametrize("keep", [0, 1, 100])
def test_after_a_crash_of_all_what_was_lost_is_applied_again_and_nothing_else(
    play: Callable[..., None], keep: int
) -> None:
    async def scenario(ledgers: Ledgers) -> None:
        cluster = ledgers.cluster
        commands = await propose(ledgers, 1, 40)
        await settled(ledgers, commands)
        before = {name: replica_of(ledgers, name).data for name in cluster.names}
        durable = {name: data.durable.index for name, data in before.items() if data is not None}
        assert len(durable) == 3
        cluster.crash(keep=keep)
        await cluster.start()
        for name in cluster.names:
            data = replica_of(ledgers, name).data
            assert data is not None
            assert data.applied.index >= durable[name] > 1
        await cluster.ready()
        commands += await propose(ledgers, 41, 41)
        await settled(ledgers, commands)
        for name in cluster.names:
            assert shelf(ledgers, name).given == commands[-len(shelf(ledgers, name).given) :]

    disk(scenario, play)


def test_writes_outside_a_command_are_refused(play: Callable[..., None]) -> None:
    async def scenario(ledgers: Ledgers) -> None:
        await propose(ledgers, 1, 1)
        data = shelf(ledgers, "a").data
        with pytest.raises(RuntimeError, match="written by its commands"):
            data.put(b"x", b"y")
        with pytest.raises(RuntimeError, match="written by its commands"):
            data.delete(b"count")
        await settled(ledgers, [b"1"])

    disk(scenario, play)


def test_the_log_is_kept_short_without_a_snapshot_and_a_restart_goes_on_from_the_data(
    play: Callable[..., None],
) -> None:
    async def scenario(ledgers: Ledgers) -> None:
        cluster = ledgers.cluster
        commands = await propose(ledgers, 1, 200)
        await settled(ledgers, commands)
        for name in cluster.names:
            core = replica_of(ledgers, name).core
            assert core.log.start.index > 100
            assert core.last_index - core.log.start.index <= 20 + 5 + 10
            snapshot = store_of(ledgers, name).read_snapshot(GROUP)
            assert len(snapshot.data) < 10
        cluster.crash()
        await cluster.start()
        await cluster.ready()
        commands += await propose(ledgers, 201, 203)
        await settled(ledgers, commands)
        assert max(len(shelf(ledgers, name).given) for name in cluster.names) <= 40

    disk(scenario, play, limits=SHORT)


def test_a_log_never_starts_above_what_is_durable(play: Callable[..., None]) -> None:
    async def scenario(ledgers: Ledgers) -> None:
        cluster = ledgers.cluster
        for number in range(1, 120):
            await propose(ledgers, number, number)
            for name in cluster.names:
                replica = replica_of(ledgers, name)
                assert replica.data is not None
                assert replica.core.log.start.index <= replica.data.durable.index <= replica.data.applied.index
        await settled(ledgers, [b"%d" % number for number in range(1, 120)])

    disk(scenario, play, limits=Limits(request_timeout_ms=3_000, snapshot_entries=1, trailing_entries=0))


def test_a_follower_that_lags_behind_the_log_is_sent_the_data_and_its_old_ones_are_deleted(
    play: Callable[..., None],
) -> None:
    async def scenario(ledgers: Ledgers) -> None:
        cluster = ledgers.cluster
        leader = await ledgers.leader()
        lagging = next(name for name in cluster.names if name != leader)
        commands = await propose(ledgers, 1, 5)
        await settled(ledgers, commands)
        old = replica_of(ledgers, lagging).data
        assert old is not None
        old_space = old.space
        cluster.isolate(lagging)
        commands += await propose(ledgers, 6, 100)
        cluster.heal()
        await settled(ledgers, commands)
        data = replica_of(ledgers, lagging).data
        assert data is not None
        assert data.space > old_space
        assert len(shelf(ledgers, lagging).given) < 60
        await cluster.until(lambda: old_space not in store_of(ledgers, lagging).spaces())
        assert data.space in store_of(ledgers, lagging).spaces()
        assert replica_of(ledgers, lagging).context.time_ms == replica_of(ledgers, leader).context.time_ms
        # What was installed is durable: it is there after a loss of power.
        cluster.crash(lagging)
        await cluster.start(lagging)
        assert stored(ledgers, lagging)[:90] == commands[:90]
        commands += await propose(ledgers, 101, 101)
        await settled(ledgers, commands)

    disk(scenario, play, limits=SHORT)


@pytest.mark.parametrize("written", [False, True])
@pytest.mark.parametrize("count", range(1, 8))
def test_a_crash_at_any_write_of_an_install_finds_the_old_state_or_the_new_one(
    play: Callable[..., None], count: int, written: bool
) -> None:
    async def scenario(ledgers: Ledgers) -> None:
        cluster = ledgers.cluster
        leader = await ledgers.leader()
        lagging = next(name for name in cluster.names if name != leader)
        commands = await propose(ledgers, 1, 5)
        await settled(ledgers, commands)
        cluster.isolate(lagging)
        commands += await propose(ledgers, 6, 80)
        cluster.crash_after(lagging, count, written=written)
        cluster.heal()
        await cluster.run_for(2.0)
        if lagging not in cluster.nodes:
            await cluster.start(lagging)
            found = stored(ledgers, lagging)
            assert found == commands[: len(found)]
        cluster.end_faults()
        await cluster.ready()
        commands += await propose(ledgers, 81, 81)
        await settled(ledgers, commands)
        data = replica_of(ledgers, lagging).data
        assert data is not None
        await cluster.until(lambda: store_of(ledgers, lagging).spaces() == [data.space])

    disk(scenario, play, limits=SHORT)


def test_a_large_old_space_is_deleted_in_steps_also_after_a_crash_between(
    play: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spaces, "_DELETED_AT_ONCE", 3)

    async def scenario(ledgers: Ledgers) -> None:
        cluster = ledgers.cluster
        leader = await ledgers.leader()
        lagging = next(name for name in cluster.names if name != leader)
        commands = await propose(ledgers, 1, 15)
        await settled(ledgers, commands)
        cluster.isolate(lagging)
        commands += await propose(ledgers, 16, 60)
        cluster.arm("space.deleting", "kill", lagging, times=3)
        cluster.heal()
        await cluster.until(lambda: lagging not in cluster.nodes)
        keys = [key for key in cluster.disks[lagging].stored_keys() if key.startswith(layout.FIRST_DATA_KEY)]
        assert len({key[9:17] for key in keys}) == 2
        cluster.places.clear()
        await cluster.start(lagging)
        await settled(ledgers, commands)
        data = replica_of(ledgers, lagging).data
        assert data is not None
        await cluster.until(lambda: store_of(ledgers, lagging).spaces() == [data.space])

    disk(scenario, play, limits=SHORT)


def test_a_replica_that_was_removed_takes_its_data_with_it(play: Callable[..., None]) -> None:
    async def scenario(ledgers: Ledgers) -> None:
        cluster = ledgers.cluster
        commands = await propose(ledgers, 1, 10)
        await settled(ledgers, commands)
        leader = await ledgers.leader()
        leaving = next(name for name in cluster.names if name != leader)
        group = cluster.nodes[leader].group(GROUP)
        await group.remove(leaving)
        await cluster.until(lambda: GROUP not in cluster.nodes[leaving]._here().engine.replicas)
        await cluster.until(lambda: store_of(ledgers, leaving).spaces() == [])
        # Its next replica there begins with nothing and learns all of it.
        await group.add(leaving)
        await settled(ledgers, commands)

    disk(scenario, play)


@pytest.mark.pure_only
def test_backpressure_a_group_whose_writes_wait_applies_no_more_until_they_are_there(
    play: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keyspace, "QUEUED_BYTES", 4_000)

    async def scenario(ledgers: Ledgers) -> None:
        cluster = ledgers.cluster
        await propose(ledgers, 1, 1)
        leader = await ledgers.leader()
        slow = next(name for name in cluster.names if name != leader)
        replica = replica_of(ledgers, slow)
        data = replica.data
        assert data is not None
        cluster.disks[slow].hold_completions()  # written, and nobody is told
        commands = [b"1"] + await propose(ledgers, 2, 100)
        await cluster.run_for(0.2)
        held = data.queued_bytes
        assert held < 4_000 + 64 * 1024
        assert replica.applied < replica_of(ledgers, leader).applied
        cluster.disks[slow].release()
        await settled(ledgers, commands)
        await cluster.until(lambda: data.queued_bytes == 0)
        assert data._overlay == {}

    disk(scenario, play)


def test_a_halted_replica_is_retried_with_what_it_wrote_dropped(play: Callable[..., None]) -> None:
    async def scenario(ledgers: Ledgers) -> None:
        cluster = ledgers.cluster
        commands = await propose(ledgers, 1, 5)
        await settled(ledgers, commands)
        leader = await ledgers.leader()
        follower = next(name for name in cluster.names if name != leader)
        machine, attempts = shelf(ledgers, follower), 0
        apply = Shelf.apply

        def once(self: Shelf, command: bytes) -> bytes:
            nonlocal attempts
            result = apply(self, command)
            if self is machine:
                attempts += 1
                raise OSError("this replica alone")
            return result

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Shelf, "apply", once)
            await propose(ledgers, 6, 6)
            replica = replica_of(ledgers, follower)
            await cluster.until(lambda: replica.halted is not None)
        assert attempts == 1
        assert stored(ledgers, follower) == commands
        engine = cluster.nodes[follower]._here().engine
        fresh, _ = cluster.nodes[follower]._here().hosting._machines["ledger"]()
        engine.containing.retry(replica, fresh)
        commands += [b"6", *await propose(ledgers, 7, 7)]
        await cluster.until(lambda: replica.machine.query(b"").split() == commands)

    disk(scenario, play)


def test_a_class_that_keeps_its_state_elsewhere_is_refused_at_the_start(play: Callable[..., None]) -> None:
    async def scenario(ledgers: Ledgers) -> None:
        from tests.node.conftest import Ledger

        cluster = ledgers.cluster
        await propose(ledgers, 1, 1)
        await cluster.stop("a")
        ledgers.machine = Ledger
        with pytest.raises(StartError, match="kept on disk here, but its class keeps it in memory"):
            await cluster.start("a")
        ledgers.machine = Shelf
        await cluster.start("a")

    disk(scenario, play)


def test_while_a_group_is_damaged_no_keyspace_is_taken_for_nobodys(play: Callable[..., None]) -> None:
    async def scenario(ledgers: Ledgers) -> None:
        cluster = ledgers.cluster
        commands = await propose(ledgers, 1, 5)
        await settled(ledgers, commands)
        leader = await ledgers.leader()
        name = next(name for name in cluster.names if name != leader)
        data = replica_of(ledgers, name).data
        assert data is not None
        space = data.space
        await cluster.stop(name)
        cluster.disks[name].overwrite(layout.group_key(GROUP, layout.KIND_APPLIED), b"?")
        cluster.isolate(name)  # so that it is not healed yet
        await cluster.start(name)
        await cluster.run_for(1.0)
        assert GROUP not in cluster.nodes[name]._here().engine.replicas
        assert list(store_of(ledgers, name).iterate_data_keys(space))

    disk(scenario, play)
