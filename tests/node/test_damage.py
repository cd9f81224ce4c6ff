"""Whole nodes with damage on their disks: the damaged replica alone stays out, and its group replaces it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from multiraft import Limits, NotReady
from multiraft.errors import CorruptRecord
from multiraft.storage import layout
from multiraft.types import Damage

Play = Callable[..., None]
DIRECTORY = 1
GROUP = 16
OTHER = 17
KINDS = (layout.KIND_DESCRIPTOR, layout.KIND_HARD_STATE, layout.KIND_MEMBERSHIP, layout.KIND_LOG_START)


def here(ledgers: Any, name: str) -> Any:
    return ledgers.cluster.nodes[name]._here()


async def write(ledgers: Any, name: str, *values: bytes) -> None:
    node = ledgers.cluster.nodes[name]
    for value in values:
        await ledgers.cluster.insist(lambda value=value: node.group(GROUP).propose(value))


def voter_on(ledgers: Any, asked: str, group_id: int, name: str) -> int:
    members = here(ledgers, asked).engine.replicas[group_id].core.membership
    replica_id: int = members.replica_on(name)
    return replica_id if replica_id in members.voters else 0


def flip(ledgers: Any, name: str, key: bytes) -> None:
    """Turn one bit of a stored value."""
    disk = ledgers.cluster.disks[name]
    value = bytearray(disk.read(key))
    value[len(value) // 2] ^= 4
    disk.overwrite(key, bytes(value))


def record_keys(ledgers: Any, name: str, group_id: int) -> list[bytes]:
    first, end = layout.record_key(group_id, 0), layout.log_end_key(group_id)
    return [key for key in ledgers.cluster.disks[name].stored_keys() if first <= key < end]


async def assert_healed(ledgers: Any, name: str, group_id: int, old: int, kept: list[bytes]) -> None:
    cluster = ledgers.cluster
    asked = next(one for one in "abc" if one != name)
    hosts = [one for one in cluster.nodes if one != name]
    for one in hosts:
        await cluster.until(lambda one=one: voter_on(ledgers, one, group_id, name) > old)
    await cluster.until(lambda: group_id in here(ledgers, name).engine.replicas)
    await cluster.until(lambda: voter_on(ledgers, name, group_id, name) > old)
    await cluster.nodes[name].ready()
    assert here(ledgers, name).damaged_groups() == []
    if group_id == GROUP:
        await cluster.until(lambda: ledgers.kept(name) == kept)
    await cluster.stop(asked)  # now the healed one is needed
    await write(ledgers, name, b"last")
    await cluster.start(asked)
    assert not cluster.nodes[name].status()["groups"]["damaged"]


@pytest.mark.parametrize("kind", [*KINDS, layout.KIND_RECORD, layout.KIND_SNAPSHOT])
def test_a_damaged_value_takes_out_one_replica_which_its_group_replaces(play: Play, kind: int, caplog: Any) -> None:
    async def scenario(ledgers: Any) -> None:
        cluster = ledgers.cluster
        await write(ledgers, "a", b"1", b"2", b"3")
        await cluster.until(lambda: ledgers.kept("c") == [b"1", b"2", b"3"])
        old = voter_on(ledgers, "a", GROUP, "c")
        cluster.crash("c")
        keys = record_keys(ledgers, "c", GROUP) if kind == layout.KIND_RECORD else [layout.group_key(GROUP, kind)]
        flip(ledgers, "c", keys[len(keys) // 2])
        await cluster.start("c")
        assert here(ledgers, "c").damaged_groups() == [GROUP]
        assert GROUP not in here(ledgers, "c").engine.replicas
        assert sorted(here(ledgers, "c").engine.replicas) == [DIRECTORY, OTHER], "all others are opened"
        row = cluster.nodes["c"].group_status(GROUP)
        assert (row["role"], row["halted"].split(":")[0]) == ("damaged", "damaged")
        assert cluster.nodes["c"].status()["groups"]["damaged"] == 1
        await assert_healed(ledgers, "c", GROUP, old, [b"1", b"2", b"3"])
        assert "leaves a replica out" in caplog.text

    play(scenario, shards=2)


def test_a_missing_hard_state_is_damage_too(play: Play) -> None:
    async def scenario(ledgers: Any) -> None:
        cluster = ledgers.cluster
        await write(ledgers, "a", b"1")
        old = voter_on(ledgers, "a", GROUP, "b")
        cluster.crash("b")
        cluster.disks["b"].overwrite(layout.group_key(GROUP, layout.KIND_HARD_STATE), None)
        await cluster.start("b")
        await assert_healed(ledgers, "b", GROUP, old, [b"1"])

    play(scenario)


def test_a_damaged_directory_replica_is_replaced_before_all_others(play: Play) -> None:
    async def scenario(ledgers: Any) -> None:
        cluster = ledgers.cluster
        await write(ledgers, "a", b"1")
        old = {group_id: voter_on(ledgers, "a", group_id, "b") for group_id in (DIRECTORY, GROUP)}
        cluster.crash("b")
        for group_id in (DIRECTORY, GROUP):
            flip(ledgers, "b", layout.group_key(group_id, layout.KIND_HARD_STATE))
        await cluster.start("b")
        assert here(ledgers, "b").engine.replicas == {}
        await cluster.until(lambda: voter_on(ledgers, "a", DIRECTORY, "b") > old[DIRECTORY])
        await assert_healed(ledgers, "b", GROUP, old[GROUP], [b"1"])

    play(scenario)


def test_a_damaged_replica_never_votes_nor_counts(play: Play) -> None:
    async def scenario(ledgers: Any) -> None:
        cluster = ledgers.cluster
        await write(ledgers, "a", b"1")
        cluster.crash("b", "c")
        flip(ledgers, "c", layout.group_key(GROUP, layout.KIND_HARD_STATE))
        await cluster.start("c")
        await cluster.run_for(20.0)
        assert cluster.leaders(DIRECTORY) != [], "the directory has its quorum"
        assert cluster.leaders(GROUP) == [], "one of three is no quorum"
        with pytest.raises(NotReady):
            await cluster.nodes["a"].group(GROUP).propose(b"2")
        said = cluster.nodes["c"].group_status(GROUP)["halted"]
        assert "It needs a quorum without this replica: start its other nodes" in said
        await cluster.start("b")
        await write(ledgers, "a", b"3")
        await cluster.until(lambda: ledgers.kept("a") == [b"1", b"3"])
        await assert_healed(ledgers, "c", GROUP, 3, [b"1", b"3"])

    play(scenario)


def test_what_lived_here_alone_stays_in_quarantine_and_says_what_to_do(play: Play) -> None:
    async def scenario(ledgers: Any) -> None:
        cluster = ledgers.cluster
        await write(ledgers, "a", b"1")
        (name,) = [one for one in "abc" if GROUP in here(ledgers, one).engine.replicas]
        cluster.crash(name)
        flip(ledgers, name, record_keys(ledgers, name, GROUP)[-1])
        for _ in range(2):  # it is the same after another start
            await cluster.start(name)
            await cluster.run_for(30.0)
            assert here(ledgers, name).damaged_groups() == [GROUP]
            said = cluster.nodes[name].group_status(GROUP)["halted"]
            assert "the group's only voter" in said
            assert "put back a copy of this directory" in said
            cluster.crash(name)

    play(scenario, replicas=1)


@pytest.mark.parametrize("step", ["replaced", "given up", "made"])
def test_healing_goes_on_after_a_crash_at_any_step_and_replaces_only_once(play: Play, step: str) -> None:
    async def scenario(ledgers: Any) -> None:
        cluster = ledgers.cluster
        await write(ledgers, "a", b"1")
        old = voter_on(ledgers, "a", GROUP, "c")
        cluster.crash("c")
        flip(ledgers, "c", record_keys(ledgers, "c", GROUP)[-1])
        if step == "given up":
            cluster.arm("replica.after-remove", "kill", "c")
        elif step == "made":
            cluster.arm("replica.before-create", "kill", "c")
        await cluster.start("c")
        if step == "replaced":
            cluster.network.cut("a", "c")
            cluster.network.cut("b", "c")
            cluster.network.heal()
            members = here(ledgers, "a").engine.replicas[GROUP].core
            await cluster.until(lambda: members.membership.replica_on("c") > old)
            cluster.crash("c")
        else:
            await cluster.until(lambda: "c" not in cluster.nodes)
        await cluster.start("c")
        await assert_healed(ledgers, "c", GROUP, old, [b"1"])
        assert voter_on(ledgers, "c", GROUP, "c") == old + 1, "one new id"

    play(scenario)


def test_a_leader_that_asks_for_the_damaged_replica_itself_is_not_heard(play: Play) -> None:
    """It was a learner when it was damaged: made anew under its old id, it could vote twice once it is promoted."""

    async def scenario(ledgers: Any) -> None:
        cluster = ledgers.cluster
        await write(ledgers, "a", b"1")
        await cluster.nodes["a"].group(GROUP).demote("c")
        old = here(ledgers, "c").engine.replicas[GROUP].core.replica_id
        await cluster.run_for(1.0)
        cluster.crash("c")
        flip(ledgers, "c", layout.group_key(GROUP, layout.KIND_HARD_STATE))
        await cluster.start("c")
        await cluster.until(lambda: GROUP in here(ledgers, "c").engine.replicas)
        replica = here(ledgers, "c").engine.replicas[GROUP].core
        assert replica.replica_id == old + 1
        await cluster.until(lambda: ledgers.kept("c") == [b"1"])

    play(scenario)


def test_a_leader_that_asks_before_the_old_id_is_known_is_heard_afterwards(play: Play) -> None:
    """It asks once: what it asked for was forgotten, and the replica never came."""

    async def scenario(ledgers: Any) -> None:
        cluster = ledgers.cluster
        await write(ledgers, "a", b"1")
        old = voter_on(ledgers, "a", GROUP, "c")
        cluster.crash("c")
        for kind in KINDS:
            flip(ledgers, "c", layout.group_key(GROUP, kind))
        await cluster.start("c")
        residents = here(ledgers, "c").engine.residents
        assert residents.quarantine.of(GROUP).replica_id == 0
        cluster.network.set_delay("a", "c", 0.3)  # the request overtakes the answer that tells of the new replica
        cluster.network.set_delay("b", "c", 0.0)
        await cluster.until(lambda: residents._untrusted != {} or here(ledgers, "c").damaged_groups() == [])
        cluster.network.set_delay("a", "c", 0.0)
        await assert_healed(ledgers, "c", GROUP, old, [b"1"])

    play(scenario)


def test_damage_of_the_store_itself_is_refused_with_the_ways_out(play: Play) -> None:
    async def scenario(ledgers: Any) -> None:
        cluster = ledgers.cluster
        cluster.crash("c")
        image = cluster.disks["c"].image()
        for key in (layout.IDENTITY_KEY, layout.INCARNATION_KEY, layout.RUNS_KEY, layout.SEEN_KEY, layout.FORMAT_KEY):
            cluster.disks["c"].roll_back(image)
            flip(ledgers, "c", key)
            with pytest.raises(CorruptRecord, match=r"c is damaged: .*readmit"):
                await cluster.start("c")

    play(scenario)


def test_a_damaged_replica_that_was_removed_meanwhile_is_deleted(play: Play) -> None:
    async def scenario(ledgers: Any) -> None:
        cluster = ledgers.cluster
        await write(ledgers, "a", b"1")
        cluster.crash("c")
        flip(ledgers, "c", layout.group_key(GROUP, layout.KIND_DESCRIPTOR))
        await cluster.nodes["a"].group(GROUP).remove("c")
        await cluster.start("c")
        await cluster.until(lambda: here(ledgers, "c").damaged_groups() == [])
        await cluster.run_for(2.0)
        assert record_keys(ledgers, "c", GROUP) == []
        assert GROUP not in here(ledgers, "c").engine.replicas
        cluster.crash("c")
        await cluster.start("c")
        assert here(ledgers, "c").damaged_groups() == []

    play(scenario)


SNAPSHOTS = Limits(request_timeout_ms=3_000, snapshot_entries=10, trailing_entries=0)


def test_a_group_that_has_compacted_its_log_sends_a_snapshot_to_the_new_replica(play: Play) -> None:
    async def scenario(ledgers: Any) -> None:
        cluster = ledgers.cluster
        values = [b"%d" % number for number in range(40)]
        await write(ledgers, "a", *values)
        await cluster.until(lambda: ledgers.kept("b") == values)
        old = voter_on(ledgers, "a", GROUP, "b")
        cluster.crash("b")
        flip(ledgers, "b", layout.group_key(GROUP, layout.KIND_SNAPSHOT))
        await cluster.start("b")
        await assert_healed(ledgers, "b", GROUP, old, values)

    play(scenario, limits=SNAPSHOTS)


def test_a_stretch_of_ids_that_could_not_be_read_is_told_apart_by_the_directory(play: Play) -> None:
    """Groups that never were cannot heal: they stood in quarantine for ever, and could never be made here."""

    async def scenario(ledgers: Any) -> None:
        cluster = ledgers.cluster
        await write(ledgers, "a", b"1")
        old = voter_on(ledgers, "a", GROUP, "c")
        cluster.crash("c")
        disk = cluster.disks["c"]
        for key in [key for key in disk.stored_keys() if layout.group_of(key) == GROUP]:
            disk.overwrite(key, None)  # as it is in a database from which they were left out
        disk.overwrite(layout.DAMAGE_KEY, layout.encode_damage([Damage(2, 5_000, "could not be read")]))
        await cluster.start("c")
        assert GROUP not in here(ledgers, "c").engine.replicas, "it is not founded once more"
        await assert_healed(ledgers, "c", GROUP, old, [b"1"])
        assert len(here(ledgers, "c").engine.residents.quarantine) == 0
        cluster.crash("c")
        await cluster.start("c")
        assert len(here(ledgers, "c").engine.residents.quarantine) == 0

    play(scenario)
