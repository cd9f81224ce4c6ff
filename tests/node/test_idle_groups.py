"""Groups that hold nothing and are asked nothing: what they cost, and how they come by leaders."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from typing import Any

import pytest

from multiraft import hosting
from multiraft.engine import campaigning
from multiraft.engine.campaigning import Campaigning
from multiraft.engine.replica import Replica
from multiraft.hosting import Hosting
from multiraft.raft import Role
from multiraft.records import Record
from multiraft.storage.store import PartitionedStore
from tests.node.conftest import Ledger, Ledgers

BEGIN = Campaigning._begin
FOUND_SOME = Hosting._found_some


class Counted(Ledger):
    """Counts how many of it were made."""

    made = 0

    def __init__(self) -> None:
        super().__init__()
        type(self).made += 1


@pytest.fixture(autouse=True)
def none_made() -> None:
    Counted.made = 0


def replicas_of(ledgers: Ledgers, name: str) -> dict[int, Replica]:
    return ledgers.cluster.nodes[name]._here().engine.replicas


def test_a_machine_is_made_when_its_group_is_first_used(play: Callable[..., None]) -> None:
    async def scenario(ledgers: Ledgers) -> None:
        # The first one of each node told that they are kept in memory.
        assert Counted.made == 3
        group_id = Ledgers.GROUP + 7
        assert not any(replicas_of(ledgers, name)[group_id].made for name in "abc")
        leader = ledgers.cluster.leaders(group_id)[0]
        await ledgers.cluster.nodes[leader].group(group_id).propose(b"first")
        await ledgers.cluster.until(lambda: all(replicas_of(ledgers, name)[group_id].made for name in "abc"))
        assert Counted.made == 6
        for name in "abc":
            machine = ledgers.cluster.nodes[name].local_machine(group_id)
            assert isinstance(machine, Counted)
            assert machine.kept == [b"first"]

    play(scenario, shards=10, machine=Counted)


def test_an_idle_group_answers_and_is_inspected(play: Callable[..., None]) -> None:
    async def scenario(ledgers: Ledgers) -> None:
        assert await ledgers.cluster.nodes["a"].group(Ledgers.GROUP + 3).read(b"?") == b""
        machine = ledgers.cluster.nodes["b"].local_machine(Ledgers.GROUP + 4)
        assert isinstance(machine, Counted)
        before = Counted.made
        for node in ledgers.cluster.nodes.values():
            assert len(node.groups_status()) == 11
            assert node.group_status(Ledgers.GROUP + 5)["failed_commands"] == 0
        assert Counted.made == before  # looking makes nothing

    play(scenario, shards=10, machine=Counted)


def test_what_was_applied_is_there_after_a_restart_and_the_rest_is_not_made(play: Callable[..., None]) -> None:
    async def scenario(ledgers: Ledgers) -> None:
        cluster, group_id = ledgers.cluster, Ledgers.GROUP + 2
        await cluster.nodes["a"].group(group_id).propose(b"kept")
        await cluster.stop()
        Counted.made = 0
        await cluster.start()
        await cluster.ready()
        await cluster.until(lambda: all(replicas_of(ledgers, name)[group_id].applied > 2 for name in "abc"))
        for name in "abc":
            machine = cluster.nodes[name].local_machine(group_id)
            assert isinstance(machine, Counted)
            assert machine.kept == [b"kept"]
        assert Counted.made == 6

    play(scenario, shards=10, machine=Counted)


def test_a_start_reads_no_log_of_idle_groups(play: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []
    read_records = PartitionedStore.read_records

    def noting(self: PartitionedStore, group_id: int, first: int, last: int, limit_bytes: int) -> list[Record]:
        read.append(group_id)
        return read_records(self, group_id, first, last, limit_bytes)

    monkeypatch.setattr(PartitionedStore, "read_records", noting)

    async def scenario(ledgers: Ledgers) -> None:
        cluster, used = ledgers.cluster, Ledgers.GROUP + 2
        await cluster.nodes["a"].group(used).propose(b"kept")
        await cluster.stop()
        read.clear()
        await cluster.start()
        await cluster.ready()
        await cluster.until(
            lambda: all(
                one.applied == one.core.last_index for name in "abc" for one in replicas_of(ledgers, name).values()
            )
        )
        assert used in read
        assert set(read) <= {1, used}

    play(scenario, shards=10, machine=Counted)


@pytest.mark.parametrize("shards", [200])
def test_an_idle_group_takes_little_memory(play: Callable[..., None], shards: int) -> None:
    def grown(options: dict[str, Any]) -> int:
        taken = 0

        async def scenario(ledgers: Ledgers) -> None:
            nonlocal taken
            taken, _ = tracemalloc.get_traced_memory()

        tracemalloc.start()
        try:
            play(scenario, **options)
        finally:
            tracemalloc.stop()
        return taken

    few, many = grown({"shards": 1}), grown({"shards": shards})
    # Of three nodes, with the memory disk's and network's share, which real nodes have outside of Python's memory.
    assert (many - few) / (shards - 1) / 3 < 5_500


@pytest.mark.pure_only
def test_only_so_many_groups_campaign_at_once(play: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(campaigning, "AT_ONCE", 4)
    most = 0

    def counting(self: Campaigning, replica: Replica, now: float) -> None:
        nonlocal most
        BEGIN(self, replica, now)
        roles = [one.core.role for one in self._engine.replicas.values() if one.group_id != 1]
        most = max(most, sum(role in (Role.PRE_CANDIDATE, Role.CANDIDATE) for role in roles))

    monkeypatch.setattr(Campaigning, "_begin", counting)

    async def scenario(ledgers: Ledgers) -> None:
        nonlocal most
        cluster = ledgers.cluster
        assert 0 < most <= 4
        most = 0
        led = [g for g in range(Ledgers.GROUP, Ledgers.GROUP + 40) if cluster.nodes["a"].leads(g)]
        assert len(led) > 8
        cluster.crash("a")
        await cluster.until(lambda: all(len(cluster.leaders(group_id)) == 1 for group_id in led))
        assert 0 < most <= 4
        for node in cluster.nodes.values():
            assert node._here().engine.campaigning.waiting == 0

    play(scenario, shards=40)


@pytest.mark.pure_only
def test_groups_that_cannot_be_won_keep_no_other_waiting(
    play: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two of three nodes are gone: what the third one campaigns for in vain takes no place, and comes again."""
    monkeypatch.setattr(campaigning, "AT_ONCE", 4)

    async def scenario(ledgers: Ledgers) -> None:
        cluster = ledgers.cluster
        cluster.crash("a")
        cluster.crash("b")
        engine = cluster.nodes["c"]._here().engine
        groups = [replica for group_id, replica in engine.replicas.items() if group_id != 1]
        seen: set[int] = set()

        def all_have_campaigned() -> bool:
            seen.update(one.group_id for one in groups if one.core.role is Role.PRE_CANDIDATE)
            return len(seen) == len(groups)

        await cluster.until(all_have_campaigned)
        await cluster.start("a")
        await cluster.until(lambda: all(len(cluster.leaders(one.group_id)) == 1 for one in groups))

    play(scenario, shards=40)


def test_many_new_groups_are_made_in_slices(play: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hosting, "_FOUNDING_AT_ONCE", 3)
    most = 0

    def counting(self: Hosting) -> None:
        nonlocal most
        FOUND_SOME(self)
        most = max(most, self._engine.residents.coming)

    monkeypatch.setattr(Hosting, "_found_some", counting)

    async def scenario(ledgers: Ledgers) -> None:
        for node in ledgers.cluster.nodes.values():
            assert len(node._here().engine.replicas) == 31
        assert 0 < most <= 3

    play(scenario, shards=30)
