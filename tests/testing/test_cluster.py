"""A simulated cluster: its nodes live, die, pause and sleep as told, and every fault is counted."""

from __future__ import annotations

import asyncio
import contextlib
import errno
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

from multiraft import Limits, MultiRaftError, NotRunning, StorageError
from multiraft.failpoints import FAILPOINTS, number_of
from multiraft.testing import FAULT_KINDS, MemoryCluster, run_virtual

if TYPE_CHECKING:
    from tests.testing.conftest import Fleet

Play = Callable[..., None]


# --------------------------------------------------------------------------------------------------- life and death


def test_nodes_of_a_larger_fleet_are_stopped_killed_and_restarted(play: Play) -> None:
    async def story(fleet: Fleet) -> None:
        cluster = fleet.cluster
        groups = cluster.nodes["a"].shard_map.groups
        assert {len(nodes) for group_id, nodes in groups.items() if group_id != 1} == {3}
        assert {name for nodes in groups.values() for name in nodes} == set("abcdefg")
        assert await fleet.write(20) == 20
        await cluster.stop("b")
        cluster.crash("f")
        await cluster.restart("b")
        await cluster.restart("f")
        await cluster.restart("c")
        await fleet.write(20)
        await fleet.assert_kept()
        assert {kind: cluster.faults[kind] for kind in ("stop", "crash", "restart")} == {
            "stop": 2, "crash": 1, "restart": 3,
        }  # fmt: skip

    play(story, names="abcdefg", shards=7)


def test_a_wiped_node_is_refused_by_the_others(play: Play) -> None:
    async def story(fleet: Fleet) -> None:
        cluster = fleet.cluster
        store_id = cluster.nodes["c"].status()["store_id"]
        cluster.wipe("c")
        assert "c" not in cluster.nodes
        await cluster.start("c")
        await cluster.run_for(5.0)
        status = cluster.nodes["c"].status()
        assert status["store_id"] != store_id
        assert status["groups"] == {**status["groups"], "total": 0} or not cluster.nodes["c"].groups_status()
        await fleet.write(3, at="a")
        assert len(fleet.acknowledged) == 3
        assert cluster.faults["wipe"] == 1

    play(story)


@pytest.mark.parametrize("written", [False, True])
def test_a_node_can_be_killed_at_any_write_of_its_start_and_its_stop(play: Play, written: bool) -> None:
    async def story(fleet: Fleet) -> None:
        cluster = fleet.cluster
        await fleet.write(3)
        await cluster.stop("b")
        crashes: list[str] = []
        for count in range(1, 9):
            before = cluster.faults["crash_at_write"]
            cluster.crash_after("b", count, written=written)
            try:
                await cluster.start("b")
                await cluster.stop("b")
            except NotRunning:
                crashes.append("start")
            else:
                crashes += ["stop"] * (cluster.faults["crash_at_write"] - before)
            cluster.disks["b"].mend()
            assert "b" not in cluster.nodes
            assert not cluster.disks["b"].in_use
        assert crashes == ["start", "start", "stop", "stop"], "incarnation and its file, closing record and its file"
        await cluster.start("b")
        await fleet.assert_kept()

    play(story)


def test_a_full_disk_ends_a_node_which_comes_back_when_there_is_space(play: Play) -> None:
    async def story(fleet: Fleet) -> None:
        cluster = fleet.cluster
        cluster.disks["a"].full = True
        await fleet.write(5)
        await cluster.until(lambda: not cluster.nodes["a"].runs)
        assert cluster.forget_ended() == ["a"]
        await cluster.until(lambda: not cluster.disks["a"].in_use)
        with pytest.raises(StorageError, match="space"):
            await cluster.start("a")
        cluster.disks["a"].full = False
        await cluster.start("a")
        await fleet.assert_kept()

    play(story)


# ----------------------------------------------------------------------------------------------------------- clocks


def test_no_two_nodes_have_the_same_time(play: Play) -> None:
    async def story(fleet: Fleet) -> None:
        clocks = [fleet.cluster.clock(name) for name in "abc"]
        assert len({clock.time() for clock in clocks}) == 3
        seen = await fleet.cluster.on("b", _time_here())
        assert seen == fleet.cluster.clock("b").time()

    async def _time_here() -> float:
        return asyncio.get_running_loop().time()

    play(story)


def test_a_node_lives_on_its_clock_whoever_calls_it(play: Play) -> None:
    async def story(fleet: Fleet) -> None:
        cluster = fleet.cluster
        cluster.clock("a").rate = 0.2
        began_s = {name: cluster.clock(name).time() for name in "ab"}
        turns = {name: cluster.nodes[name].status()["loop"]["turns"] for name in "ab"}
        for _ in range(20):
            fleet.services["a"].propose(b"key", b"x").close()
            await cluster.run_for(1.0)
        lived_s = {name: cluster.clock(name).time() - began_s[name] for name in "ab"}
        turned = {name: cluster.nodes[name].status()["loop"]["turns"] - turns[name] for name in "ab"}
        assert lived_s == {"a": pytest.approx(4.0), "b": pytest.approx(20.0)}
        assert turned["a"] < turned["b"]

    play(story)


def test_what_comes_late_waits_for_a_paused_node_and_runs_on_its_clock(play: Play) -> None:
    async def story(fleet: Fleet) -> None:
        cluster = fleet.cluster
        received: list[float] = []

        def answer(body: bytes) -> bytes:
            received.append(asyncio.get_running_loop().time())
            return body

        cluster.nodes["b"].on_call("echo", answer)
        cluster.network.set_delay("a", "b", 0.05)
        asking = cluster.on("a", cluster.nodes["a"].peer_call("b", "echo", b"x", 10.0))
        await cluster.run_for(0.01)
        cluster.network.stall("a", "b")
        await cluster.run_for(0.1)  # it has arrived, and waits
        cluster.clock("b").pause()
        cluster.heal()
        await cluster.run_for(1.0)
        assert received == [], "nothing of a paused node runs, whoever heals the network"
        cluster.clock("b").resume()
        assert await asking == b"x"
        assert received == [pytest.approx(cluster.clock("b").time(), abs=0.1)]

    play(story)


def test_a_program_on_a_node_stops_with_it_and_ends_with_it(play: Play) -> None:
    async def story(fleet: Fleet) -> None:
        cluster, counted = fleet.cluster, [0]

        async def program() -> None:
            while True:
                await asyncio.sleep(0.1)
                counted[0] += 1

        running = cluster.on("a", program())
        await cluster.run_for(1.05)
        assert counted == [10]
        cluster.clock("a").pause()
        await cluster.run_for(1.0)
        assert counted == [10]
        cluster.clock("a").resume()
        await cluster.run_for(0.01)
        assert counted == [11]
        cluster.crash("a")
        with pytest.raises(asyncio.CancelledError):
            await running

    play(story)


def test_a_paused_leader_is_replaced_and_learns_it_when_it_goes_on(play: Play) -> None:
    async def story(fleet: Fleet) -> None:
        cluster = fleet.cluster
        old = await fleet.leader()
        turns = cluster.nodes[old].status()["loop"]["turns"]
        cluster.clock(old).pause()
        others = [name for name in cluster.names if name != old]
        await cluster.until(lambda: any(cluster.nodes[name].leads(16) for name in others))
        assert cluster.nodes[old].leads(16), "it knows of nothing"
        assert cluster.nodes[old].status()["loop"]["turns"] == turns, "nothing of it ran"
        assert await fleet.write(3, at=others[0]) == 3
        cluster.clock(old).resume()
        await cluster.until(lambda: not cluster.nodes[old].leads(16))
        await fleet.assert_kept()
        assert cluster.faults["pause"] == 1

    play(story)


def test_a_leader_that_slept_answers_no_read_from_before(play: Play) -> None:
    async def story(fleet: Fleet) -> None:
        cluster = fleet.cluster
        old = await fleet.leader()
        cluster.clock(old).suspend(10.0)
        others = [name for name in cluster.names if name != old]
        await cluster.until(lambda: any(cluster.nodes[name].leads(16) for name in others))
        await fleet.write(3, at=others[0])
        reading = asyncio.ensure_future(fleet.services[old].read(b"key", b"", 20.0))
        await cluster.run_for(5.0)
        assert not reading.done()
        assert (await reading).split() == fleet.acknowledged
        assert cluster.faults["suspend"] == 1

    play(story)


@pytest.mark.parametrize("rates", [(0.2, 1.0, 5.0), (5.0, 5.0, 0.2), (0.9, 1.1, 1.0)])
def test_clocks_of_any_rate_lose_nothing(play: Play, rates: tuple[float, ...]) -> None:
    async def story(fleet: Fleet) -> None:
        cluster = fleet.cluster
        for name, rate in zip(cluster.names, rates, strict=True):
            cluster.clock(name).rate = rate
        for _ in range(10):
            await fleet.write(3)
            await cluster.run_for(1.0)
        cluster.end_faults()
        await fleet.assert_kept()
        assert len(fleet.acknowledged) >= 3

    play(story)


def test_on_a_real_loop_a_cluster_works_and_has_no_clocks_of_nodes(make_fleet: Any) -> None:
    async def main() -> None:
        fleet: Fleet = make_fleet(limits=Limits(beat_ms=20, election_timeout_ms=150))
        async with fleet.cluster as cluster:
            await cluster.ready()
            cluster.crash("b")
            assert await fleet.write(3, at="a") == 3
            await cluster.restart("b")
            await fleet.assert_kept()
            with pytest.raises(RuntimeError, match="virtual time"):
                cluster.clock("a")

    asyncio.run(main())


# ------------------------------------------------------------------------------------------------------- failpoints


async def pass_all_places(fleet: Fleet, victim: str, name: str) -> None:
    """Write and stop and start the victim, let it fall behind a snapshot, take its replica out: as the place needs."""
    cluster = fleet.cluster
    keeper = next(name for name in cluster.names if name != victim)
    await fleet.start_all()
    await fleet.write(5)
    if name.endswith("-restore"):
        await cluster.stop(victim)
        await fleet.write(60, at=keeper)
    elif name.startswith("snapshot"):
        await fleet.write(60, at=keeper)
    elif name.endswith("-remove") or name.startswith("membership"):
        other = next(name for name in cluster.names if name not in (keeper, victim))
        for gone in (victim,) if name.endswith("-remove") else (other,):
            with contextlib.suppress(MultiRaftError):
                await cluster.nodes[keeper].group(16).remove(gone, timeout_s=5.0)
                await cluster.nodes[keeper].group(17).remove(gone, timeout_s=5.0)
        await cluster.run_for(2.0)
    cluster.forget_ended()
    if victim not in cluster.nodes or not name.endswith("-restore"):
        with contextlib.suppress(NotRunning):
            await cluster.restart(victim)
    await cluster.run_for(5.0)


async def pass_places_of_data(fleet: Fleet, victim: str, name: str) -> None:
    """Let the victim fall behind what others have on disk, or lead while another one has."""
    cluster = fleet.cluster
    keeper, other = [name for name in cluster.names if name != victim]
    await fleet.start_all()
    await fleet.write(5)
    behind = victim if name.startswith("space.") else other
    if behind == other:
        for group_id in (16, 17):
            for leader in cluster.leaders(group_id):
                if leader != victim and victim in cluster.nodes:
                    cluster.nodes[leader].transfer_leadership(group_id, victim)
    if behind in cluster.nodes:
        await cluster.stop(behind)
    await fleet.write(60, at=keeper)
    cluster.forget_ended()
    with contextlib.suppress(NotRunning):
        await cluster.restart(behind)
    await cluster.run_for(5.0)


@pytest.mark.parametrize("times", [1, 3])
@pytest.mark.parametrize("name", [point.name for point in FAILPOINTS.values()])
def test_a_kill_at_any_failpoint_loses_nothing(make_fleet: Any, name: str, times: int) -> None:
    async def main() -> None:
        on_disk = name.startswith(("data.", "space."))
        fleet: Fleet = make_fleet(shards=2, on_disk=on_disk, inline_bytes=0 if on_disk else 64 * 1024)
        pass_places = pass_places_of_data if on_disk else pass_all_places
        cluster = fleet.cluster
        often = 1 if name in ("bind.before-file", "replica.before-remove", "membership.in-effect") else times
        cluster.arm(name, "kill", "c", times=often)  # some happen to a store, or to a replica, only once
        for one in cluster.names:
            try:
                await cluster.start(one)
            except NotRunning:
                await cluster.start(one)
        for _ in range(5):
            await pass_places(fleet, "c", name)
            if cluster.faults["crash"]:
                break
        assert cluster.faults[f"failpoint {name}"] == 1, "the workload passes the place"
        assert cluster.faults["crash"] == 1
        cluster.end_faults()
        await fleet.start_all()
        await fleet.assert_kept("ab")
        cluster.places.remove()
        await cluster.stop()

    run_virtual(main())


@pytest.mark.parametrize("action", ["eio", "enospc"])
def test_an_error_at_a_failpoint_of_the_disk_ends_the_node(play: Play, action: Any) -> None:
    async def story(fleet: Fleet) -> None:
        cluster = fleet.cluster
        cluster.arm("disk.before-write", action, "b")
        await fleet.write(5, at="a")
        await cluster.until(lambda: not cluster.nodes["b"].runs)
        with pytest.raises(StorageError) as caught:
            await cluster.nodes["b"].failed()
        assert isinstance(caught.value.__cause__, OSError)
        assert caught.value.__cause__.errno == getattr(errno, action.upper())
        await fleet.start_all()
        await fleet.assert_kept()

    play(story)


def test_a_delay_at_a_failpoint_stops_the_node_for_that_long(play: Play) -> None:
    async def story(fleet: Fleet) -> None:
        cluster = fleet.cluster
        old = await fleet.leader()
        cluster.arm("turn.after-send", "delay", old, delay_s=5.0, times=2)
        await cluster.until(lambda: cluster.clock(old).stopped)
        began_s = asyncio.get_running_loop().time()
        await cluster.until(lambda: not cluster.clock(old).stopped)
        assert asyncio.get_running_loop().time() - began_s == pytest.approx(5.0, abs=0.002)
        await fleet.write(3)
        await fleet.assert_kept()

    play(story)


def test_places_are_counted_and_only_the_named_node_is_hit(play: Play) -> None:
    async def story(fleet: Fleet) -> None:
        cluster = fleet.cluster
        cluster.watch_places()
        await fleet.write(5)
        assert cluster.places.passed["write.after-sync"] > 5
        cluster.arm("apply.before", "kill", "b", times=3)
        await fleet.write(10)
        await cluster.run_for(1.0)
        assert "b" not in cluster.nodes
        assert set(cluster.nodes) == {"a", "c"}
        assert cluster.faults["failpoint apply.before"] == cluster.faults["crash"] == 1
        number_of("apply.before")

    play(story)


# --------------------------------------------------------------------------------------------------------- counting


def test_every_kind_of_fault_counts_itself(play: Play) -> None:
    async def story(fleet: Fleet) -> None:
        cluster, network = fleet.cluster, fleet.cluster.network
        network.disturb("a", "b", loss=0.3, duplicate=0.3, reorder=0.3)
        network.delay("a", "c", 0.001)
        network.drop_next_bulk("a", "b", 2)
        cluster.disks["b"].delay_s = cluster.disks["c"].delay_s = lambda: 0.001
        await fleet.write(10)
        network.heal()
        network.strand("b", "c", 0.1)
        network.stall("a", "b")
        network.partition("a", "bc")
        network.ring("abc")
        network.bridge("a", "b", "c")
        cluster.isolate("c", by="stall")
        cluster.heal()
        cluster.clock("a").rate = 2.0
        cluster.clock("a").skew_s = -3_600.0
        cluster.clock("b").pause()
        cluster.clock("c").suspend(1.0)
        await cluster.run_for(2.0)
        cluster.end_faults()
        cluster.disks["a"].hold_writes()
        await fleet.write(2)
        cluster.crash("a", keep=0)
        await cluster.restart("a")
        await cluster.ready()
        image = cluster.disks["b"].image()
        cluster.disks["b"].fail_next_write(OSError(errno.EIO, "Input/output error"))
        cluster.disks["c"].hold_writes()
        await fleet.write(3)
        store = cluster.nodes["c"]._here().store
        assert store is not None
        for _ in range(5):
            store.submit(store.batch(), lambda _: None)
        cluster.crash("c", keep=1)
        await fleet.start_all()
        cluster.disks["b"].full = True
        await fleet.write(3)
        await cluster.until(lambda: not cluster.nodes["b"].runs)
        cluster.end_faults()
        await fleet.start_all()
        cluster.revives = True
        await cluster.restart("c")
        cluster.disks["c"].full = True
        await fleet.write(3)
        await cluster.until(lambda: not cluster.nodes["c"].runs)
        cluster.disks["c"].full = False
        await cluster.until(lambda: cluster.nodes["c"].runs)
        cluster.disks["b"].fail_next_read(OSError(errno.EIO, "Input/output error"))
        with pytest.raises(StorageError):
            await cluster.restart("b")
        cluster.disks["b"].roll_back(image)
        cluster.wipe("b")
        await cluster.stop("a")
        cluster.crash_after("a", 1)
        with pytest.raises(NotRunning):
            await cluster.start("a")
        cluster.arm("open.before-file", "kill", "a")
        with pytest.raises(NotRunning):
            await cluster.start("a")
        counted = {kind for kind, count in cluster.faults.items() if count and not kind.startswith("failpoint ")}
        assert set(FAULT_KINDS) - counted == set()
        assert counted - set(FAULT_KINDS) == set(), "every kind is listed"

    play(story)


def test_a_node_that_is_killed_in_its_first_turn_does_not_run() -> None:
    """Its start had ended by then, but nobody had been told: it was taken for running, on a dead disk."""

    async def main() -> None:
        cluster = MemoryCluster(lambda _: None, "abc")
        await cluster.start("a")
        await cluster.start("b")
        cluster.arm("turn.before-send", "kill", "c")
        with pytest.raises(NotRunning, match="killed while it started"):
            await cluster.start("c")
        assert list(cluster.nodes) == ["a", "b"]
        await cluster.restart("c")
        assert cluster.nodes["c"].runs
        cluster.places.remove()
        await cluster.stop()

    run_virtual(main())
