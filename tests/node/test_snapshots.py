"""Whole nodes whose logs are kept short: what a restart finds, how who was away catches up, and what may go wrong."""

from __future__ import annotations

import asyncio
import errno
import logging
from collections.abc import Callable
from functools import partial
from random import Random
from typing import Any

import pytest

from multiraft import (
    BytesService,
    BytesStateMachine,
    ConfigError,
    Limits,
    Node,
    OutcomeUnknown,
    StateMachine,
    command,
    query,
)
from multiraft.raft import Role
from multiraft.storage import layout
from multiraft.testing import MemoryCluster, run_virtual
from multiraft.types import DIRECTORY_GROUP

Play = Callable[..., None]
GROUP = 16
SHORT = Limits(request_timeout_ms=3_000, snapshot_entries=20, trailing_entries=4)


def core_of(ledgers: Any, name: str) -> Any:
    return replica_of(ledgers.cluster, name).core


def core_at(cluster: MemoryCluster, name: str) -> Any:
    return replica_of(cluster, name).core


def replica_of(cluster: MemoryCluster, name: str) -> Any:
    return cluster.nodes[name]._here().engine.replicas[GROUP]


async def write(ledgers: Any, name: str, first: int, last: int) -> list[bytes]:
    """Write these numbers one by one; return them all from 0 on."""
    for number in range(first, last):
        await ledgers.cluster.insist(lambda number=number: ledgers.services[name].propose(b"k", b"%d" % number))
    return [b"%d" % number for number in range(last)]


async def all_have(ledgers: Any, kept: list[bytes]) -> None:
    await ledgers.cluster.until(lambda: all(ledgers.kept(name) == kept for name in ledgers.cluster.nodes))


def stored_entries(cluster: MemoryCluster, name: str) -> int:
    """How many log records of the group the disk of a node holds."""
    keys = [key for key in cluster.disks[name].stored_keys() if key >= layout.FIRST_GROUP_KEY]
    return sum(1 for key in keys if layout.split_key(key)[:2] == (GROUP, layout.KIND_RECORD))


# ------------------------------------------------------------------------------------------------------- compacting


def test_logs_stay_short_without_an_operator_and_restarts_find_everything(play: Play) -> None:
    """Requirement 20."""

    async def scenario(ledgers: Any) -> None:
        cluster = ledgers.cluster
        kept = await write(ledgers, "a", 0, 90)
        await all_have(ledgers, kept)
        for name in cluster.names:
            assert stored_entries(cluster, name) <= 25
            assert core_of(ledgers, name).snapshot_index > 60
        for name in cluster.names:
            await cluster.stop(name)
            await cluster.start(name)
        await all_have(ledgers, kept)
        kept = await write(ledgers, "b", 90, 130)
        cluster.crash()
        await cluster.start()
        await all_have(ledgers, kept)
        assert await ledgers.services["c"].read(b"k", b"") == b" ".join(kept)

    play(scenario, limits=SHORT)


def test_nothing_is_compacted_by_default(play: Play) -> None:
    async def scenario(ledgers: Any) -> None:
        await all_have(ledgers, await write(ledgers, "a", 0, 90))
        assert [core_of(ledgers, name).log.start.index for name in "abc"] == [1, 1, 1]

    play(scenario)


@pytest.mark.parametrize("seed", range(12))
def test_a_power_cut_at_any_moment_of_compacting_loses_nothing(play: Play, seed: int) -> None:
    """Requirement 20; with zero trailing entries."""
    rng = Random(seed)

    async def scenario(ledgers: Any) -> None:
        cluster: MemoryCluster = ledgers.cluster
        for name in cluster.names:
            cluster.disks[name].delay_s = lambda: rng.uniform(0.0, 0.01)
        number = 0
        for _ in range(12):
            writing = asyncio.ensure_future(write(ledgers, rng.choice(cluster.names), number, number + 15))
            await cluster.run_for(rng.uniform(0.0, 0.2))
            victim = rng.choice(cluster.names)
            cluster.crash(victim, keep=rng.randrange(3))
            await cluster.start(victim)
            await writing
            number += 15
        await cluster.until(lambda: len({tuple(ledgers.kept(name)) for name in cluster.names}) == 1)
        kept = ledgers.kept("a")
        # A write whose answer was lost was repeated; none is missing, and none came before its time.
        assert list(dict.fromkeys(kept)) == [b"%d" % one for one in range(number)]
        assert all(core_of(ledgers, name).snapshot_index > 20 for name in cluster.names)

    play(scenario, limits=Limits(request_timeout_ms=3_000, snapshot_entries=10, trailing_entries=0), seed=seed)


@pytest.mark.pure_only  # a stand-in takes the place of a core
def test_a_failed_write_of_a_snapshot_forgets_nothing(play: Play) -> None:
    """Requirements 20 and 21."""

    async def scenario(ledgers: Any) -> None:
        cluster: MemoryCluster = ledgers.cluster
        leader = await ledgers.leader()
        follower, other = (name for name in "abc" if name != leader)
        kept = await write(ledgers, other, 0, 15)
        await all_have(ledgers, kept)
        replica = replica_of(cluster, follower)
        compact = replica.core.compact

        def and_fail(data: bytes, trailing: int, begun: Any = None) -> None:
            cluster.disks[follower].fail_next_write(OSError(errno.EIO, "Input/output error"))
            compact(data, trailing, begun)

        replica.core = _Patched(replica.core, compact=and_fail)
        kept = await write(ledgers, other, 15, 30)
        with pytest.raises(Exception, match="a write failed"):
            await cluster.nodes[follower].failed()
        await cluster.nodes.pop(follower).stop()
        assert stored_entries(cluster, follower) > 15
        await cluster.start(follower)
        assert core_of(ledgers, follower).log.start.index == 1
        await all_have(ledgers, kept)

    play(scenario, limits=SHORT)


class _Patched:
    """An object with some of its attributes replaced."""

    def __init__(self, real: Any, **others: Any) -> None:
        self.__dict__.update(others, _real=real)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self._real, name, value)


# ------------------------------------------------------------------------------------------------------- catching up


def test_who_was_away_for_longer_than_the_log_gets_the_state(play: Play) -> None:
    async def scenario(ledgers: Any) -> None:
        cluster = ledgers.cluster
        await write(ledgers, "a", 0, 3)
        cluster.crash("c")
        kept = await write(ledgers, "a", 3, 80)
        await cluster.start("c")
        await all_have(ledgers, kept)
        core = core_of(ledgers, "c")
        assert core.log.start.index == core.snapshot_index > 40
        kept = await write(ledgers, "c", 80, 85)
        await all_have(ledgers, kept)
        cluster.crash("c")
        await cluster.start("c")
        await all_have(ledgers, kept)
        cluster.crash("a")  # it counts in a quorum
        await all_have(ledgers, await write(ledgers, "c", 85, 90))

    play(scenario, limits=SHORT)


def test_a_new_member_of_a_compacted_group_gets_the_state(play: Play) -> None:
    async def scenario(ledgers: Any) -> None:
        cluster = ledgers.cluster
        kept = await write(ledgers, "a", 0, 60)
        membership = await cluster.nodes["a"].group(GROUP).add("d")
        assert membership.replica_on("d") in membership.voters
        await cluster.until(lambda: ledgers.kept("d") == kept)
        assert core_of(ledgers, "d").log.start.index > 40
        await cluster.until(lambda: core_of(ledgers, "d").membership == membership)
        cluster.crash("d")
        await cluster.start("d")
        kept = await write(ledgers, "d", 60, 64)
        await cluster.until(lambda: ledgers.kept("d") == kept)

    play(scenario, limits=SHORT, names="abcd")


@pytest.mark.parametrize("keep", range(6))
@pytest.mark.parametrize("wait_ms", [0, 2, 10, 40])
def test_a_power_cut_at_any_moment_of_installing_is_no_harm(play: Play, keep: int, wait_ms: int) -> None:
    """Requirement 20."""

    async def scenario(ledgers: Any) -> None:
        cluster = ledgers.cluster
        await write(ledgers, "a", 0, 3)
        cluster.crash("c")
        kept = await write(ledgers, "a", 3, 50)
        await cluster.start("c")
        cluster.disks["c"].hold_writes()
        await cluster.until(lambda: core_of(ledgers, "c").log.start.index > 1)
        await cluster.run_for(wait_ms / 1e3)
        assert ledgers.kept("c") == [b"0", b"1", b"2"][: len(ledgers.kept("c"))]
        cluster.crash("c", keep=keep)
        await cluster.start("c")
        await all_have(ledgers, kept)

    play(scenario, limits=SHORT)


def test_a_snapshot_whose_answer_was_lost_is_asked_after(play: Play) -> None:
    async def scenario(ledgers: Any) -> None:
        cluster = ledgers.cluster
        leader = await ledgers.leader()
        away = next(name for name in "abc" if name != leader)
        cluster.isolate(away)
        kept = await write(ledgers, leader, 0, 50)
        cluster.disks[away].delay_s = lambda: 0.05
        cluster.heal()
        await cluster.until(lambda: core_of(ledgers, away).log.start.index > 1)
        cluster.isolate(away)
        assert core_of(ledgers, away).snapshot_index == 1  # not on its disk yet
        await cluster.run_for(1.5)
        cluster.heal()
        await all_have(ledgers, kept)

    play(scenario, limits=SHORT)


def test_a_caller_whose_entry_a_snapshot_covers_hears_that_its_outcome_is_not_known(play: Play) -> None:
    async def scenario(ledgers: Any) -> None:
        cluster = ledgers.cluster
        leader = await ledgers.leader()
        other = next(name for name in "abc" if name != leader)
        await write(ledgers, leader, 0, 3)
        cluster.isolate(leader)
        asked = cluster.nodes[leader]._here().engine.propose(GROUP, b"lost")
        await cluster.until(lambda: core_of(ledgers, leader).role is not Role.LEADER)
        kept = await write(ledgers, other, 3, 60)
        cluster.heal()
        with pytest.raises(OutcomeUnknown, match="a snapshot took the place"):
            await asked
        await all_have(ledgers, kept)
        assert cluster.nodes[leader]._here().engine.budget.used_bytes == 0

    play(scenario, limits=Limits(request_timeout_ms=600_000, snapshot_entries=20, trailing_entries=4))


# -------------------------------------------------------------------------------------------------------- the directory

SHORTEST = Limits(request_timeout_ms=3_000, snapshot_entries=1, trailing_entries=0)


def test_a_directory_that_comes_from_a_snapshot_founds_no_group_anew(play: Play) -> None:
    """It names groups that are on the disk, but have not been taken up yet when it is restored."""

    async def scenario(ledgers: Any) -> None:
        cluster = ledgers.cluster
        kept = await write(ledgers, "a", 0, 8)
        await all_have(ledgers, kept)
        directory = cluster.nodes["c"]._here().engine.replicas[DIRECTORY_GROUP]
        await cluster.until(lambda: directory.core.snapshot_index > 1)
        for _ in range(2):
            before = core_of(ledgers, "c").snapshot_index
            await cluster.stop("c")
            await cluster.start("c")
            assert core_of(ledgers, "c").snapshot_index >= before > 1
            await cluster.run_for(0.2)
        await all_have(ledgers, kept)

    play(scenario, limits=SHORTEST)


def test_a_node_that_hears_of_its_groups_by_a_snapshot_makes_their_replicas(play: Play) -> None:
    async def scenario(ledgers: Any) -> None:
        cluster = ledgers.cluster
        await cluster.until(lambda: all(node.leader(DIRECTORY_GROUP) for node in cluster.nodes.values()))
        cluster.crash("c")
        await cluster.nodes["a"].ready()
        kept = await write(ledgers, "a", 0, 3)
        directory = cluster.nodes["a"]._here().engine.replicas[DIRECTORY_GROUP]
        await cluster.until(lambda: directory.core.log.start.index > 1)
        await cluster.start("c")
        await cluster.until(lambda: GROUP in cluster.nodes["c"]._here().engine.replicas)
        await all_have(ledgers, kept)
        assert cluster.nodes["c"]._here().engine.replicas[DIRECTORY_GROUP].core.log.start.index > 1

    play(scenario, limits=SHORTEST, ready=False)


# ------------------------------------------------------------------------------------------------------- state machines


class Notes(StateMachine):
    """Keeps each name's values, with the time of the latest one; `odd` makes its state one that cannot be saved."""

    def __init__(self) -> None:
        self.values: dict[str, list[int]] = {}
        self.times: dict[str, int] = {}
        self.odd: object = None

    @command(key="name")
    def add(self, name: str, value: int) -> int:
        self.values.setdefault(name, []).append(value)
        self.times[name] = self.context.time_ms
        return len(self.values[name])

    @command(key="name")
    def make_odd(self, name: str) -> None:
        self.odd = {name}

    @query(key="name")
    def get(self, name: str) -> list[int]:
        return self.values.get(name, [])


def run_notes(scenario: Callable[[MemoryCluster, dict[str, Any]], Any], limits: Limits = SHORT) -> None:
    services: dict[str, Any] = {}

    def declare(node: Node) -> None:
        services[node.node_id] = node.service("notes", Notes, initial_shards=1)

    async def main() -> None:
        async with MemoryCluster(declare, limits=limits) as cluster:
            await cluster.ready()
            await scenario(cluster, services)

    run_virtual(main())


def test_a_typed_machine_is_saved_by_its_attributes_and_keeps_the_replicated_clock() -> None:
    async def scenario(cluster: MemoryCluster, services: dict[str, Any]) -> None:
        def state(name: str) -> dict[str, Any]:
            return vars(cluster.nodes[name].local_machine(GROUP))

        cluster.crash("c")
        for number in range(60):
            await cluster.insist(partial(services["a"].add, f"n{number % 7}", number))
        leader = cluster.leaders(GROUP)[0]
        for _ in range(2):  # every second entry brings a snapshot
            await cluster.run_for(0.1)
            if core_at(cluster, leader).snapshot_index < core_at(cluster, leader).commit:
                await cluster.insist(partial(services["a"].add, "last", 0))
        await cluster.start("c")
        await cluster.until(lambda: state("c") == state("a"))
        # It has applied not a single entry since, from whose stamp it could have its clock.
        assert core_at(cluster, "c").log.start.index == core_at(cluster, "c").last_index
        clocks = {replica_of(cluster, name).context.time_ms for name in "abc"}
        assert len(clocks) == 1
        assert min(clocks) > 0
        assert await services["c"].get("n3") == list(range(3, 60, 7))

    run_notes(scenario, SHORTEST)


def test_a_machine_that_cannot_be_saved_is_told_of_once_and_keeps_its_log(caplog: pytest.LogCaptureFixture) -> None:
    async def scenario(cluster: MemoryCluster, services: dict[str, Any]) -> None:
        await cluster.insist(lambda: services["a"].make_odd("n"))
        for number in range(120):
            await cluster.insist(partial(services["a"].add, "n", number))
        for name in "abc":
            assert core_at(cluster, name).log.start.index == 1
            assert "Notes.odd: a set" in cluster.nodes[name].group_status(GROUP)["snapshot"]["problem"]
        cluster.crash("a")
        await cluster.start("a")
        await cluster.until(lambda: replica_of(cluster, "a").applied == replica_of(cluster, "b").applied)
        assert await services["a"].get("n") == list(range(120))

    with caplog.at_level(logging.WARNING, logger="multiraft.engine"):
        run_notes(scenario)
    told = [record.getMessage() for record in caplog.records if "no snapshot is taken" in record.getMessage()]
    assert len(told) == 4  # by each node once, and by the one that was started again
    assert "group 16: no snapshot is taken, so its log grows: TypeError: Notes.odd: a set cannot" in told[0]


def test_a_large_state_is_a_file_from_which_its_replica_starts() -> None:
    async def scenario(cluster: MemoryCluster, services: dict[str, Any]) -> None:
        for number in range(200):
            await cluster.insist(partial(services["a"].add, f"{number}" + "n" * 40, number))
        await cluster.until(lambda: core_at(cluster, "c").log.start.index > 100)
        cluster.crash("c")
        (name,) = cluster.disks["c"].shelf.whole
        assert len(cluster.disks["c"].shelf.whole[name]) > 100
        await cluster.start("c")
        await cluster.until(lambda: replica_of(cluster, "c").applied == replica_of(cluster, "a").applied)
        states = [vars(cluster.nodes[name].local_machine(GROUP)) for name in ("a", "c")]
        assert states[0] == states[1]
        assert len(states[0]["values"]) == 200

    run_notes(
        scenario,
        Limits(request_timeout_ms=3_000, snapshot_entries=20, trailing_entries=0, snapshot_inline_bytes=1_000),
    )


class Brittle(BytesStateMachine):
    """Counts its commands; restores only while it is not `broken`."""

    broken = False

    def __init__(self) -> None:
        self.count = 0

    def apply(self, command: bytes) -> bytes:
        self.count += 1
        return b"%d" % self.count

    def query(self, query: bytes) -> bytes:
        return b"%d" % self.count

    def snapshot(self) -> bytes:
        return b"%d" % self.count

    def restore(self, state: bytes) -> None:
        if self.broken:
            raise ValueError("cannot be restored here")
        self.count = int(state)


def test_a_machine_that_cannot_restore_halts_its_replica_and_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    services: dict[str, BytesService] = {}

    def declare(node: Node) -> None:
        services[node.node_id] = node.bytes_service("brittle", Brittle, initial_shards=1)

    async def main() -> None:
        async with MemoryCluster(declare, limits=SHORT) as cluster:
            await cluster.ready()
            cluster.crash("c")
            for _ in range(60):
                await cluster.insist(lambda: services["a"].propose(b"k", b"x"))
            monkeypatch.setattr(Brittle, "broken", True)
            await cluster.start("c")
            await cluster.until(lambda: replica_of(cluster, "c").halted is not None)
            halted = replica_of(cluster, "c")
            assert "restoring the snapshot of index" in halted.halted.reason
            assert "ValueError: cannot be restored here" in halted.halted.reason
            # It still stores and acknowledges, and so does everything else on its node.
            end = replica_of(cluster, "a").core.last_index
            await cluster.until(lambda: halted.core.last_index >= end and halted.core.commit >= end)
            follower = next(name for name in "ab" if not cluster.nodes[name].leads(GROUP))
            cluster.isolate(follower)
            await cluster.insist(lambda: services[cluster.leaders(GROUP)[0]].propose(b"k", b"x"))
            cluster.heal()
            # Elected all the same, it hands over at once.
            await cluster.until(lambda: len(cluster.leaders(GROUP)) == 1)
            end = replica_of(cluster, "a").core.last_index
            await cluster.until(lambda: halted.core.last_index >= end)
            cluster.nodes[cluster.leaders(GROUP)[0]].transfer_leadership(GROUP, "c")
            term = halted.core.term
            await cluster.until(lambda: halted.core.term >= term + 2)  # one term of its own, one of whom it asked
            await cluster.until(lambda: cluster.leaders(GROUP) in (["a"], ["b"]))
            await cluster.insist(lambda: services["a"].propose(b"k", b"x"))
            # It stays so, and a retry that finds the same halts it again; once it can be read, all is well.
            await cluster.stop("c")
            await cluster.start("c")
            for _ in range(2):
                assert "restoring the snapshot" in replica_of(cluster, "c").halted.reason
                cluster.nodes["c"].retry(GROUP)
            monkeypatch.setattr(Brittle, "broken", False)
            await cluster.stop("c")
            await cluster.start("c")
            assert "restoring the snapshot" in replica_of(cluster, "c").halted.reason
            cluster.nodes["c"].retry(GROUP)
            await cluster.until(lambda: len({replica_of(cluster, name).applied for name in "abc"}) == 1)
            counts = {cluster.nodes[name].local_machine(GROUP).count for name in "abc"}  # type: ignore[attr-defined]
            assert len(counts) == 1

    run_virtual(main())


@pytest.mark.parametrize(("entries", "trailing"), [(1, 1), (10, 6), (1_999, 1_000)])
def test_a_log_that_would_be_too_long_again_at_once_is_refused(entries: int, trailing: int) -> None:
    with pytest.raises(ConfigError, match=r"trailing_entries = .*: must be at most half of snapshot_entries"):
        Limits(snapshot_entries=entries, trailing_entries=trailing)
    assert Limits(snapshot_entries=0, trailing_entries=trailing).trailing_entries == trailing
