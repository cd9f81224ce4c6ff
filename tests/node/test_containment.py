"""Whole nodes with replicas that halt: what they still do, that it stays so, and how they are mended."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import msgpack
import pytest

from multiraft import Halted, InvalidRequest, Limits, NotReady, OutcomeUnknown
from multiraft.engine.executing import CHECK
from multiraft.records import CONTROL
from multiraft.storage import layout

Play = Callable[..., None]
GROUP = 16
COMPARING = Limits(request_timeout_ms=3_000, check_entries=10)


def engine_of(ledgers: Any, name: str) -> Any:
    return ledgers.cluster.nodes[name]._here().engine


def replica_of(ledgers: Any, name: str) -> Any:
    return engine_of(ledgers, name).replicas[GROUP]


def stored_halt(ledgers: Any, name: str) -> Any:
    """The halt that the disk of a stopped node has for the group."""
    value = ledgers.cluster.disks[name].read(layout.group_key(GROUP, layout.KIND_HALT))
    return None if value is None else layout.decode_halt(GROUP, value)


async def write(ledgers: Any, name: str, *commands: bytes) -> None:
    for command in commands:
        await ledgers.cluster.insist(lambda command=command: ledgers.services[name].propose(b"k", command))


async def write_until(ledgers: Any, name: str, holds: Callable[[], bool]) -> None:
    """Write, a little at a time, until something holds."""
    for _ in range(200):
        if holds():
            return
        await write(ledgers, name, b"and")
        await ledgers.cluster.run_for(0.01)
    raise AssertionError("it never came to that")


async def roles(ledgers: Any) -> tuple[str, str, str]:
    leader = await ledgers.leader()
    one, two = (name for name in ledgers.cluster.names if name != leader)
    return leader, one, two


def fail_at(ledgers: Any, name: str, command: bytes, problem: BaseException) -> None:
    """The machine on a node does half of this command, and then its environment fails."""
    machine = ledgers.cluster.nodes[name].local_machine(GROUP)
    apply = type(machine).apply

    def failing(given: bytes) -> bytes:
        result: bytes = apply(machine, given)
        if given == command:
            raise problem
        return result

    machine.apply = failing


def lie_at(ledgers: Any, name: str, command: bytes) -> None:
    """The machine on a node comes to another result for this command, and the same one for all others."""
    machine = ledgers.cluster.nodes[name].local_machine(GROUP)
    apply = type(machine).apply
    machine.apply = lambda given: (apply(machine, given), b"another")[1] if given == command else apply(machine, given)


async def all_have(ledgers: Any, kept: list[bytes]) -> None:
    await ledgers.cluster.until(lambda: all(ledgers.kept(name) == kept for name in ledgers.cluster.nodes))


# ----------------------------------------------------------------------------------------------------------- halted


def test_a_halted_replica_stays_so_over_restarts_and_takes_part_in_all_else(play: Play) -> None:
    """Requirement 15."""

    async def scenario(ledgers: Any) -> None:
        cluster = ledgers.cluster
        leader, follower, other = await roles(ledgers)
        await write(ledgers, leader, b"1", b"2")
        fail_at(ledgers, follower, b"3", MemoryError("none is left"))
        await write(ledgers, leader, b"3", b"4")
        replica = replica_of(ledgers, follower)
        await cluster.until(lambda: replica.halted is not None)
        halt = replica.halted
        assert halt.kind == "environment"
        assert "MemoryError: none is left" in halt.reason
        assert "b'3'" in halt.command
        assert halt.wall_ms > 1_600_000_000_000
        assert replica.applied == halt.index - 1
        # It stores and acknowledges: with the other follower away, it is what commits.
        cluster.isolate(other)
        await write(ledgers, leader, b"5")
        cluster.heal()
        for _ in range(2):
            await cluster.stop(follower)
            assert stored_halt(ledgers, follower) == halt
            await cluster.start(follower)
            replica = replica_of(ledgers, follower)
            assert replica.halted == halt
            await cluster.until(lambda: ledgers.kept(follower) == [b"1", b"2"])
            await write(ledgers, leader, b"more")
            assert replica.applied == halt.index - 1
            assert ledgers.kept(follower) == [b"1", b"2"]
        # It votes.
        cluster.isolate(await ledgers.leader())
        voters = [name for name in cluster.names if name != leader]
        await cluster.until(lambda: [name for name in cluster.leaders(GROUP) if name != leader] != [])
        assert follower in voters

    play(scenario)


@pytest.mark.parametrize("inline_bytes", [0, 65_536])
def test_a_retry_makes_the_machine_anew_so_that_half_a_command_is_not_done_twice(play: Play, inline_bytes: int) -> None:
    async def scenario(ledgers: Any) -> None:
        cluster = ledgers.cluster
        leader, follower, _ = await roles(ledgers)
        fail_at(ledgers, follower, b"2", OSError(5, "Input/output error"))
        await write(ledgers, leader, b"1", b"2", b"3")
        await cluster.until(lambda: replica_of(ledgers, follower).halted is not None)
        assert ledgers.kept(follower) == [b"1", b"2"]  # half done
        cluster.nodes[follower].retry(GROUP)
        await all_have(ledgers, [b"1", b"2", b"3"])
        assert replica_of(ledgers, follower).halted is None
        with pytest.raises(InvalidRequest, match="not halted"):
            cluster.nodes[follower].retry(GROUP)
        await cluster.run_for(0.1)
        await cluster.stop(follower)
        assert stored_halt(ledgers, follower) is None
        await cluster.start(follower)
        await write(ledgers, follower, b"4")
        await all_have(ledgers, [b"1", b"2", b"3", b"4"])

    short = Limits(request_timeout_ms=3_000, snapshot_entries=4, trailing_entries=1, snapshot_inline_bytes=inline_bytes)
    play(scenario, limits=short)


def test_a_replica_that_is_retried_forgets_how_fresh_it_was(play: Play) -> None:
    """Its machine begins again with an old state: a read that takes an old one must not get an older one."""

    async def scenario(ledgers: Any) -> None:
        cluster = ledgers.cluster
        leader, follower, _ = await roles(ledgers)
        await write(ledgers, leader, *[b"%d" % number for number in range(20)])
        assert (await ledgers.services[follower].read_stale(b"k", b"", 60_000))[0].endswith(b"19")
        fail_at(ledgers, follower, b"bad", OSError("it failed"))
        await write(ledgers, leader, b"bad")
        replica = replica_of(ledgers, follower)
        await cluster.until(lambda: replica.halted is not None)
        committed, replica.committed = replica.committed, 3  # the log is long, and applied in slices
        cluster.nodes[follower].retry(GROUP)
        await cluster.run_for(0.05)
        assert len(ledgers.kept(follower)) < 20
        asked = asyncio.ensure_future(ledgers.services[follower].read_stale(b"k", b"", 60_000))
        await cluster.run_for(0.05)
        replica.committed = committed
        engine_of(ledgers, follower).applying.add(replica)
        engine_of(ledgers, follower).wake()
        assert (await asked)[0].endswith(b"bad")

    play(scenario)


def test_a_halted_leader_hands_over_to_a_healthy_voter_and_callers_go_there(play: Play) -> None:
    async def scenario(ledgers: Any) -> None:
        cluster = ledgers.cluster
        leader, sick, healthy = await roles(ledgers)
        fail_at(ledgers, sick, b"x", MemoryError())
        await write(ledgers, leader, b"x")
        await cluster.until(lambda: replica_of(ledgers, sick).halted is not None)
        fail_at(ledgers, leader, b"y", MemoryError())
        with pytest.raises(OutcomeUnknown):
            await engine_of(ledgers, leader).propose(GROUP, b"y")
        term = replica_of(ledgers, leader).core.term
        await write(ledgers, leader, b"z")
        assert cluster.leaders(GROUP) == [healthy]
        assert replica_of(ledgers, healthy).core.term == term + 1  # asked at once, not found by trying
        assert ledgers.kept(healthy) == [b"x", b"y", b"z"]

    play(scenario)


def test_where_nobody_is_healthy_the_leader_stays_and_says_so(play: Play) -> None:
    async def scenario(ledgers: Any) -> None:
        cluster = ledgers.cluster
        leader = await ledgers.leader()
        for name in cluster.names:
            fail_at(ledgers, name, b"x", MemoryError("none for anybody"))
        with pytest.raises(OutcomeUnknown):
            await engine_of(ledgers, leader).propose(GROUP, b"x")
        await cluster.until(lambda: all(replica_of(ledgers, name).halted for name in cluster.names))
        await cluster.run_for(5.0)
        (leader,) = cluster.leaders(GROUP)
        others = [name for name in cluster.names if name != leader]
        term = replica_of(ledgers, leader).core.term
        await cluster.run_for(30.0)
        assert cluster.leaders(GROUP) == [leader]
        assert replica_of(ledgers, leader).core.term == term
        with pytest.raises(Halted, match="none for anybody"):
            await ledgers.services[others[0]].propose(b"k", b"z")
        with pytest.raises(NotReady, match=r"no other replica is healthy.*none for anybody"):
            await cluster.nodes[leader].rebuild(GROUP)
        # One that is mended takes over, and the others are rebuilt from it.
        cluster.nodes[others[0]].retry(GROUP)
        await cluster.until(lambda: cluster.leaders(GROUP) == [others[0]])
        await write(ledgers, leader, b"z")
        for name in (leader, others[1]):
            await cluster.nodes[name].rebuild(GROUP)
        await all_have(ledgers, [b"x", b"z"])

    play(scenario)


@pytest.mark.pure_only  # what is to be written is caught in the writer's own method
def test_an_interrupt_of_the_process_is_nothing_that_is_kept(play: Play) -> None:
    async def scenario(ledgers: Any) -> None:
        follower = (await roles(ledgers))[1]
        replica = replica_of(ledgers, follower)
        written: list[object] = []
        engine_of(ledgers, follower).writer.write = lambda *given: written.append(given)
        replica.halt(9, "applying index 9", KeyboardInterrupt())
        assert replica.halted is not None
        assert written == []
        replica.halted = None
        del engine_of(ledgers, follower).writer.write

    play(scenario)


# ---------------------------------------------------------------------------------------------------------- rebuilt


@pytest.mark.parametrize("inline_bytes", [0, 65_536])
def test_a_rebuilt_replica_has_the_others_state_and_kept_its_log(play: Play, inline_bytes: int) -> None:
    async def scenario(ledgers: Any) -> None:
        cluster = ledgers.cluster
        leader, follower, other = await roles(ledgers)
        fail_at(ledgers, follower, b"2", OSError("it failed"))
        await write(ledgers, leader, *[b"%d" % number for number in range(8)])
        replica = replica_of(ledgers, follower)
        await cluster.until(lambda: replica.halted is not None and replica.core.commit >= replica.halted.index + 3)
        start, votes = replica.core.log.start, replica.core.membership
        await cluster.nodes[follower].rebuild(GROUP)
        assert replica is replica_of(ledgers, follower)
        assert replica.core.log.start == start
        assert replica.core.membership == votes
        kept = [b"%d" % number for number in range(8)]
        await all_have(ledgers, kept)
        with pytest.raises(InvalidRequest, match="not halted"):
            await cluster.nodes[follower].rebuild(GROUP)
        cluster.isolate(other)
        await write(ledgers, leader, b"8")
        cluster.heal()
        await all_have(ledgers, [*kept, b"8"])
        cluster.crash(follower)
        await cluster.start(follower)
        assert replica_of(ledgers, follower).halted is None
        await all_have(ledgers, [*kept, b"8"])

    play(scenario, limits=Limits(request_timeout_ms=3_000, snapshot_inline_bytes=inline_bytes))


@pytest.mark.parametrize("keep", range(5))
def test_a_power_cut_at_any_moment_of_rebuilding_is_no_harm(play: Play, keep: int) -> None:
    async def scenario(ledgers: Any) -> None:
        cluster = ledgers.cluster
        leader, follower, _ = await roles(ledgers)
        fail_at(ledgers, follower, b"2", OSError("it failed"))
        await write(ledgers, leader, *[b"%d" % number for number in range(8)])
        await cluster.until(lambda: replica_of(ledgers, follower).halted is not None)
        await cluster.run_for(0.1)
        cluster.disks[follower].hold_writes()
        rebuilding = asyncio.ensure_future(cluster.nodes[follower].rebuild(GROUP))
        await cluster.run_for(0.5)
        rebuilding.cancel()
        await asyncio.gather(rebuilding, return_exceptions=True)
        cluster.crash(follower, keep=keep)
        await cluster.start(follower)
        await write(ledgers, leader, b"8")
        kept = [b"%d" % number for number in range(9)]
        if replica_of(ledgers, follower).halted is not None:
            await cluster.nodes[follower].rebuild(GROUP)
        await all_have(ledgers, kept)

    play(scenario)


def test_a_leader_that_has_no_state_to_give_says_why(play: Play) -> None:
    async def scenario(ledgers: Any) -> None:
        cluster = ledgers.cluster
        leader, follower, _ = await roles(ledgers)
        fail_at(ledgers, follower, b"1", OSError("it failed"))
        await write(ledgers, leader, b"1")
        await cluster.until(lambda: replica_of(ledgers, follower).halted is not None)

        def unable() -> bytes:
            raise ValueError("this state is secret")

        for name in cluster.names:
            cluster.nodes[name].local_machine(GROUP).snapshot = unable
        with pytest.raises(NotReady, match=r"not rebuilt within 3 s: .*gives no state: .*this state is secret"):
            await cluster.nodes[follower].rebuild(GROUP, timeout_s=3.0)
        assert replica_of(ledgers, follower).halted is not None

    play(scenario)


# --------------------------------------------------------------------------------------------------------- diverged


def test_a_replica_that_came_to_another_result_halts_and_names_the_command(
    play: Play, caplog: pytest.LogCaptureFixture
) -> None:
    """Requirement 17."""

    async def scenario(ledgers: Any) -> None:
        cluster = ledgers.cluster
        leader, follower, _ = await roles(ledgers)
        await write(ledgers, leader, *[b"%d" % number for number in range(25)])
        lie_at(ledgers, follower, b"odd")
        with caplog.at_level(logging.CRITICAL):
            await write(ledgers, leader, b"25", b"odd")
            replica = replica_of(ledgers, follower)
            await write_until(ledgers, leader, lambda: replica.halted is not None)
            await cluster.until(lambda: replica.halted is not None and "diverged" in replica.halted.reason)
        entry = next(one for one in cluster.nodes[leader].read_log(GROUP, 100) if one["entry"].endswith(b"odd"))
        assert replica.halted.kind == "diverged"
        assert f"diverged at index {entry['index']}: command b'odd' has come to" in replica.halted.reason
        assert replica.halted.command == f"index {entry['index']}: command b'odd'"
        assert all(replica_of(ledgers, name).halted is None for name in cluster.names if name != follower)
        # A retry from its own log is as good as its log and its memory are; from a healthy replica, it is right.
        await cluster.nodes[follower].rebuild(GROUP)
        await write(ledgers, leader, *[b"%d" % number for number in range(50, 80)])
        await all_have(ledgers, ledgers.kept(leader))
        assert [replica_of(ledgers, name).halted for name in cluster.names] == [None] * 3

    play(scenario, limits=COMPARING)


def test_a_leader_that_is_the_odd_one_halts_itself_and_hands_over(play: Play) -> None:
    async def scenario(ledgers: Any) -> None:
        cluster = ledgers.cluster
        leader, *others = await roles(ledgers)
        lie_at(ledgers, leader, b"odd")
        await write(ledgers, others[0], b"odd")
        sick = replica_of(ledgers, leader)
        await write_until(ledgers, others[0], lambda: sick.halted is not None)
        assert sick.halted.kind == "diverged"
        await write(ledgers, leader, b"after")
        assert cluster.leaders(GROUP)[0] in others
        assert [replica_of(ledgers, name).halted for name in others] == [None, None]
        await cluster.nodes[leader].rebuild(GROUP)
        await cluster.until(lambda: ledgers.kept(leader) == ledgers.kept(others[0]))

    play(scenario, limits=COMPARING)


def test_a_command_that_fails_everywhere_is_no_difference(play: Play) -> None:
    async def scenario(ledgers: Any) -> None:
        for _ in range(30):
            with pytest.raises(Exception, match="not this one"):
                await ledgers.services["a"].propose(b"k", b"!ValueError")
        await ledgers.cluster.until(lambda: checks_in_log(ledgers) >= 1)
        values = {replica_of(ledgers, name).executor.rolling.at(25) for name in "abc"}
        assert len(values) == 1
        assert [replica_of(ledgers, name).halted for name in "abc"] == [None] * 3

    play(scenario, limits=COMPARING)


def checks_in_log(ledgers: Any) -> int:
    name = ledgers.cluster.leaders(GROUP)[0]
    core = replica_of(ledgers, name).core
    index, found = core.log.start.index + 1, 0
    while index <= core.last_index:
        for record in core.log.records(index, core.last_index, 1 << 20):
            if record.kind == CONTROL:
                found += sum(msgpack.unpackb(entry)[0] == CHECK for entry in record.entries())
            index = record.last + 1
    return found


def test_idle_groups_compare_nothing_and_few_commands_are_compared_after_a_while(play: Play) -> None:
    async def scenario(ledgers: Any) -> None:
        cluster = ledgers.cluster
        leader, follower, _ = await roles(ledgers)
        ends = [replica_of(ledgers, name).core.last_index for name in cluster.names]
        await cluster.run_for(600.0)
        assert [replica_of(ledgers, name).core.last_index for name in cluster.names] == ends
        lie_at(ledgers, follower, b"2")
        await write(ledgers, leader, b"1", b"2", b"3")
        await cluster.run_for(100.0)
        assert "diverged at index" in replica_of(ledgers, follower).halted.reason
        assert checks_in_log(ledgers) == 1
        await cluster.run_for(600.0)
        assert checks_in_log(ledgers) == 1
        assert (
            replica_of(ledgers, leader).executor.rolling.last - replica_of(ledgers, leader).executor.rolling.since <= 2
        )

    play(scenario)


def test_a_start_from_a_snapshot_goes_on_with_its_hash(play: Play) -> None:
    async def scenario(ledgers: Any) -> None:
        cluster = ledgers.cluster
        await write(ledgers, "a", *[b"%d" % number for number in range(30)])
        follower = (await roles(ledgers))[1]
        await cluster.stop(follower)
        await cluster.start(follower)
        assert replica_of(ledgers, follower).core.snapshot_index > 10
        await write(ledgers, "a", *[b"%d" % number for number in range(30)])
        await all_have(ledgers, ledgers.kept("a"))
        assert len({replica_of(ledgers, name).executor.rolling.value for name in cluster.names}) == 1
        await write_until(ledgers, "a", lambda: checks_in_log(ledgers) > 0)
        assert [replica_of(ledgers, name).halted for name in cluster.names] == [None] * 3

    limits = Limits(request_timeout_ms=3_000, check_entries=10, snapshot_entries=12, trailing_entries=6)
    play(scenario, limits=limits)


# ------------------------------------------------------------------------------------------------- held for too long


def test_commands_that_hold_the_loop_one_after_the_other_leave_room_between(play: Play) -> None:
    """Else a node that applies a few of them, each in a record of its own, is silent while all of them last."""

    async def scenario(ledgers: Any) -> None:
        cluster = ledgers.cluster
        leader, follower, _ = await roles(ledgers)
        fail_at(ledgers, follower, b"first", OSError("it failed"))
        await write(ledgers, leader, b"first", *[b"%d" % number for number in range(6)])
        replica, engine = replica_of(ledgers, follower), engine_of(ledgers, follower)
        await cluster.until(lambda: replica.halted is not None and replica.committed >= replica.halted.index + 6)
        spent_s, applied_s = 0.0, []

        def stopwatch() -> float:
            return spent_s

        replica.stopwatch = engine.applying._stopwatch = stopwatch
        cluster.nodes[follower].retry(GROUP)
        machine = cluster.nodes[follower].local_machine(GROUP)
        apply = type(machine).apply

        def brood(given: bytes) -> bytes:
            nonlocal spent_s
            spent_s += 0.3
            applied_s.append(asyncio.get_running_loop().time())
            result: bytes = apply(machine, given)
            return result

        machine.apply = brood
        await all_have(ledgers, ledgers.kept(leader))
        assert len(applied_s) == 7
        assert all(later - earlier >= 0.01 for earlier, later in pairwise(applied_s))
        assert replica.slow_commands == 7

    play(scenario)
