"""Whole nodes whose disk is full: they come back by themselves, and under the floor they let others lead."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Callable
from typing import Any

import pytest

from multiraft import Limits, Node, OutcomeUnknown
from multiraft.errors import DiskFull, NotRunning, StorageError

Play = Callable[..., None]
GROUP = 16


async def write(ledgers: Any, name: str, *values: bytes) -> None:
    for value in values:
        await ledgers.cluster.insist(lambda value=value: ledgers.services[name].propose(b"k", value))


async def fill(ledgers: Any, name: str) -> Node:
    """Fill the disk of a node, and wait until that has ended its engine."""
    cluster = ledgers.cluster
    node: Node = cluster.nodes[name]
    cluster.disks[name].full = True
    proposing = [asyncio.ensure_future(ledgers.services[other].propose(b"k", b"x")) for other in "abc"]
    await cluster.until(lambda: not node.runs)
    await asyncio.gather(*proposing, return_exceptions=True)
    return node


def test_a_node_comes_back_by_itself_when_its_disk_has_space_again(play: Play, caplog: Any) -> None:
    async def scenario(ledgers: Any) -> None:
        cluster = ledgers.cluster
        await write(ledgers, "a", b"1", b"2")
        name = await ledgers.leader()
        told: list[bool] = []
        cluster.nodes[name].subscribe_role(GROUP, told.append)
        node = await fill(ledgers, name)
        assert node.comes_back
        assert node.failure is None
        with pytest.raises(DiskFull, match=f"node '{name}' restarts when its disk has space.*No space left"):
            await ledgers.services[name].propose(b"k", b"meanwhile")
        with pytest.raises(DiskFull, match="restarts"):
            node.status()
        await cluster.run_for(1.0)
        assert told[:2] == [True, False], "a hook is told that its node leads no more"
        await write(ledgers, next(other for other in "abc" if other != name), b"3")
        cluster.disks[name].full = False
        await cluster.until(lambda: node.runs)
        await node.ready()
        await write(ledgers, name, b"4")
        await cluster.until(lambda: ledgers.kept(name)[-1:] == [b"4"])
        assert node.status()["came_back"]["count"] == 1
        assert "No space left" in node.status()["came_back"]["reason"]
        assert [kept for kept in ledgers.kept(name) if kept != b"x"] == [b"1", b"2", b"3", b"4"]
        assert f"node {name} has come back by itself" in caplog.text

    play(scenario, revives=True)


def test_a_call_in_flight_has_an_unknown_outcome(play: Play) -> None:
    async def scenario(ledgers: Any) -> None:
        cluster = ledgers.cluster
        name = await ledgers.leader()
        cluster.disks[name].delay_s = lambda: 0.05
        cluster.disks[name].full = True
        flying = cluster.nodes[name]._here().engine.propose(GROUP, b"flying")
        await cluster.until(lambda: not cluster.nodes[name].runs)
        assert isinstance(flying.exception(), OutcomeUnknown)
        cluster.disks[name].mend()
        await cluster.until(lambda: cluster.nodes[name].runs)

    play(scenario, revives=True)


@pytest.mark.parametrize("ballast_bytes", [0, 4096])
def test_the_ballast_makes_room_to_come_back_at_once(play: Play, ballast_bytes: int) -> None:
    """The disk stays full: only what the ballast frees is there to start with."""

    async def scenario(ledgers: Any) -> None:
        cluster = ledgers.cluster
        await write(ledgers, "a", b"1")
        disk, node = cluster.disks["b"], cluster.nodes["b"]
        await cluster.until(lambda: disk.ballast_bytes == ballast_bytes)
        disk.capacity_bytes = sum(len(disk.read(key)) + len(key) for key in disk.stored_keys()) + ballast_bytes + 20
        await write(ledgers, "a", b"2", b"3")
        await cluster.until(lambda: cluster.faults["enospc"] > 0)
        await cluster.run_for(20.0)
        assert node.runs == (ballast_bytes > 0)
        assert disk.ballast_bytes == 0
        if node.runs:
            await write(ledgers, "b", b"4")
        disk.capacity_bytes = None
        await cluster.until(lambda: node.runs)
        await cluster.until(lambda: disk.ballast_bytes == ballast_bytes)  # it is made again when there is room

    limits = Limits(request_timeout_ms=3_000, ballast_bytes=ballast_bytes, free_space_bytes=0)
    play(scenario, revives=True, limits=limits)


@pytest.mark.parametrize("revives", [True, False])
def test_eio_ends_a_node_for_good_and_so_does_a_full_disk_where_it_is_told_so(play: Play, revives: bool) -> None:
    async def scenario(ledgers: Any) -> None:
        cluster = ledgers.cluster
        number = errno.EIO if revives else errno.ENOSPC
        cluster.disks["b"].fail_next_write(OSError(number, "it failed"))
        node = cluster.nodes["b"]
        await write(ledgers, "a", b"1")
        with pytest.raises(StorageError, match="it failed") as caught:
            async with asyncio.timeout(10.0):
                await node.failed()
        assert caught.value.__cause__.errno == number  # type: ignore[union-attr]
        assert not node.comes_back
        with pytest.raises(NotRunning, match="the node has ended"):
            node.status()
        cluster.forget_ended()
        await write(ledgers, "a", b"2")

    play(scenario, revives=revives)


def test_a_node_that_waits_for_space_can_be_stopped(play: Play) -> None:
    async def scenario(ledgers: Any) -> None:
        cluster = ledgers.cluster
        node = await fill(ledgers, "b")
        await node.stop()
        assert not node.comes_back
        await node.failed()  # stopped, not failed
        del cluster.nodes["b"]
        assert not cluster.disks["b"].in_use
        with pytest.raises(NotRunning):
            node.status()
        cluster.disks["b"].full = False
        await cluster.run_for(10.0)
        assert not node.runs
        await cluster.start("b")
        await write(ledgers, "b", b"1")

    play(scenario, revives=True)


def test_a_node_that_waits_for_space_can_be_killed_and_started_anew(play: Play) -> None:
    async def scenario(ledgers: Any) -> None:
        cluster = ledgers.cluster
        node = await fill(ledgers, "b")
        await cluster.run_for(0.3)
        cluster.crash("b")
        cluster.disks["b"].full = False
        await cluster.run_for(10.0)
        assert not node.runs
        assert not cluster.disks["b"].in_use
        await cluster.start("b")
        await write(ledgers, "b", b"1")

    play(scenario, revives=True)


def test_a_disk_that_fails_while_the_node_comes_back_ends_it(play: Play) -> None:
    async def scenario(ledgers: Any) -> None:
        cluster = ledgers.cluster
        node = await fill(ledgers, "b")
        await cluster.until(lambda: not cluster.disks["b"].in_use)
        cluster.disks["b"].full = False
        cluster.disks["b"].fail_next_read(OSError(errno.EIO, "it failed"))
        with pytest.raises(StorageError, match="it failed"):
            async with asyncio.timeout(10.0):
                await node.failed()
        with pytest.raises(NotRunning, match="the node has ended"):
            await ledgers.services["b"].propose(b"k", b"1")

    play(scenario, revives=True)


def test_a_full_disk_at_a_start_is_opened_in_the_room_of_the_ballast(play: Play) -> None:
    async def scenario(ledgers: Any) -> None:
        cluster = ledgers.cluster
        disk = cluster.disks["b"]
        await cluster.until(lambda: disk.ballast_bytes == 4096)
        await cluster.stop("b")
        disk.capacity_bytes = sum(len(disk.read(key)) + len(key) for key in disk.stored_keys()) + 4096
        await cluster.start("b")
        assert disk.ballast_bytes == 0
        await cluster.ready()

    play(scenario, limits=Limits(request_timeout_ms=3_000, ballast_bytes=4096, free_space_bytes=0))


# -------------------------------------------------------------------------------------------------------- the floor

FLOOR = Limits(request_timeout_ms=3_000, ballast_bytes=0, free_space_bytes=100_000)


def leave(ledgers: Any, name: str, free_bytes: int) -> None:
    """Let the disk of a node have so much free from now on."""
    disk = ledgers.cluster.disks[name]
    disk.capacity_bytes = sum(len(disk.read(key)) + len(key) for key in disk.stored_keys()) + free_bytes


def test_below_the_floor_a_leader_gives_its_groups_away_and_callers_notice_nothing(play: Play) -> None:
    async def scenario(ledgers: Any) -> None:
        cluster = ledgers.cluster
        name = await ledgers.leader()
        other = next(other for other in "abc" if other != name)
        done = 0

        async def call() -> None:
            nonlocal done
            while cluster.leaders(GROUP) != [roomy]:
                await ledgers.services[other].propose(b"k", b"x")
                await asyncio.sleep(0.02)
                done += 1

        roomy = other
        leave(ledgers, name, 90_000)
        leave(ledgers, next(one for one in "abc" if one not in (name, other)), 90_000)
        await asyncio.gather(*[cluster.on(other, call()) for _ in range(4)])
        assert done > 0
        state = cluster.nodes[name].status()["disk"]
        assert state["low"]
        assert 0 < state["free_bytes"] < state["floor_bytes"] == 100_000
        await cluster.run_for(5.0)
        assert cluster.leaders(GROUP) == [roomy]

    play(scenario, limits=FLOOR)


def test_with_no_room_anywhere_commands_are_refused_at_once_until_there_is_a_quarter_more(play: Play) -> None:
    async def scenario(ledgers: Any) -> None:
        cluster = ledgers.cluster
        await write(ledgers, "a", b"1")
        for name in "abc":
            leave(ledgers, name, 50_000)
        await cluster.until(lambda: all(cluster.nodes[name].status()["disk"]["low"] for name in "abc"))
        began_s = asyncio.get_running_loop().time()
        for name in "abc":
            with pytest.raises(DiskFull, match=r"bytes free, less than free_space_bytes = 100000"):
                await ledgers.services[name].propose(b"k", b"refused")
        assert asyncio.get_running_loop().time() - began_s < 0.5
        assert await ledgers.services["a"].read(b"k", b"") == b"1", "reads go on"
        await cluster.nodes["a"].group(GROUP).remove("c")  # and so do changes of who takes part
        for name in "abc":
            leave(ledgers, name, 110_000)
        await cluster.run_for(3.0)
        with pytest.raises(DiskFull):
            await ledgers.services["a"].propose(b"k", b"refused")
        for name in "abc":
            leave(ledgers, name, 130_000)
        await cluster.run_for(3.0)
        await write(ledgers, "a", b"2")
        await cluster.until(lambda: ledgers.kept("b") == [b"1", b"2"])

    play(scenario, limits=FLOOR)


def test_without_a_floor_commands_are_taken_to_the_last_byte(play: Play) -> None:
    async def scenario(ledgers: Any) -> None:
        for name in "abc":
            leave(ledgers, name, 5_000)
        await ledgers.cluster.run_for(3.0)
        await write(ledgers, "a", b"1")
        assert not ledgers.cluster.nodes["a"].status()["disk"]["low"]

    play(scenario, limits=Limits(request_timeout_ms=3_000, ballast_bytes=0, free_space_bytes=0))
