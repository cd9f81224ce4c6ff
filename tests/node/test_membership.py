"""Whole nodes whose groups change: replicas come, catch up, vote, hand over and go, while the group serves."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from multiraft import ChangeRefused, NotReady
from multiraft.raft import Role
from multiraft.testing import MemoryCluster
from multiraft.types import Membership

Play = Callable[..., None]
GROUP = 16


def voters(membership: Membership) -> list[str]:
    return sorted(membership.nodes[one] for one in membership.voters)


async def write(ledgers: Any, name: str, *values: bytes) -> None:
    for value in values:
        await ledgers.cluster.insist(lambda value=value: ledgers.services[name].propose(b"k", value))


async def caught_up(ledgers: Any, name: str, kept: list[bytes]) -> None:
    await ledgers.cluster.until(lambda: GROUP in ledgers.cluster.nodes[name]._here().engine.replicas)
    await ledgers.cluster.until(lambda: ledgers.kept(name) == kept)


def test_a_node_is_added_with_one_call(play: Play) -> None:
    async def scenario(ledgers: Any) -> None:
        await write(ledgers, "a", b"1", b"2")
        membership = await ledgers.cluster.nodes["e"].group(GROUP).add("d")
        assert voters(membership) == ["a", "b", "c", "d"]
        assert membership.replica_on("d") == 4
        await caught_up(ledgers, "d", [b"1", b"2"])
        await write(ledgers, "d", b"3")
        await caught_up(ledgers, "d", [b"1", b"2", b"3"])
        assert await ledgers.cluster.nodes["a"].group(GROUP).add("d") == membership  # done already

    play(scenario, names="abcde")


def test_a_learner_stays_one_until_it_is_promoted(play: Play) -> None:
    async def scenario(ledgers: Any) -> None:
        group = ledgers.cluster.nodes["a"].group(GROUP)
        membership = await group.add("d", voter=False)
        assert voters(membership) == ["a", "b", "c"]
        await write(ledgers, "a", b"1")
        await caught_up(ledgers, "d", [b"1"])
        assert voters(await group.promote("d")) == ["a", "b", "c", "d"]
        assert voters(await group.demote("b")) == ["a", "c", "d"]
        assert len((await group.demote("b")).learners) == 1

    play(scenario, names="abcd")


def test_a_removed_replica_learns_it_cleans_up_and_never_comes_back(play: Play) -> None:
    async def scenario(ledgers: Any) -> None:
        cluster: MemoryCluster = ledgers.cluster
        await write(ledgers, "a", b"1")
        leader = await ledgers.leader()
        victim = next(name for name in "abc" if name != leader)
        membership = await cluster.nodes[leader].group(GROUP).remove(victim)
        assert victim not in membership.nodes.values()
        engine = cluster.nodes[victim]._here().engine
        await cluster.until(lambda: GROUP not in engine.replicas)
        await cluster.until(lambda: not engine.residents.busy(GROUP))
        tombstone = engine.residents.tombstones[GROUP]
        assert tombstone.index == membership.index
        await write(ledgers, victim, b"2")  # that node's callers are served by others
        await cluster.stop(victim)
        await cluster.start(victim)
        await cluster.run_for(5.0)
        again = cluster.nodes[victim]._here().engine
        assert GROUP not in again.replicas
        assert again.residents.tombstones == {GROUP: tombstone}
        stored = [key for key in cluster.disks[victim].stored_keys() if key[:8] == GROUP.to_bytes(8, "big")]
        assert stored == []

    play(scenario)


def test_a_replica_that_was_away_when_it_was_removed_learns_it_on_return(play: Play) -> None:
    async def scenario(ledgers: Any) -> None:
        cluster = ledgers.cluster
        leader = await ledgers.leader()
        victim = next(name for name in "abc" if name != leader)
        cluster.crash(victim)
        await cluster.nodes[leader].group(GROUP).remove(victim)
        terms = [cluster.nodes[name].group_status(GROUP)["term"] for name in cluster.nodes]
        await cluster.start(victim)
        await cluster.until(lambda: GROUP in cluster.nodes[victim]._here().engine.residents.tombstones)
        assert GROUP not in cluster.nodes[victim]._here().engine.replicas
        others = [name for name in cluster.nodes if name != victim]
        assert [cluster.nodes[name].group_status(GROUP)["term"] for name in others] == terms

    play(scenario)


def test_a_learner_that_was_away_when_it_was_removed_learns_it_on_return(play: Play) -> None:
    async def scenario(ledgers: Any) -> None:
        cluster = ledgers.cluster
        await cluster.nodes["a"].group(GROUP).add("d", voter=False)
        await caught_up(ledgers, "d", [])
        cluster.crash("d")
        await cluster.nodes["a"].group(GROUP).remove("d")
        await cluster.start("d")
        await cluster.until(lambda: GROUP in cluster.nodes["d"]._here().engine.residents.tombstones)

    play(scenario, names="abcd")


def test_a_removed_leader_hands_over_and_callers_notice_little(play: Play) -> None:
    async def scenario(ledgers: Any) -> None:
        cluster = ledgers.cluster
        leader = await ledgers.leader()
        other = next(name for name in "abc" if name != leader)
        await write(ledgers, other, b"1")
        began_s = asyncio.get_running_loop().time()
        membership = await cluster.nodes[other].group(GROUP).remove(leader)
        await write(ledgers, other, b"2")
        assert asyncio.get_running_loop().time() - began_s < 1.0  # sooner than by an election timeout
        assert leader not in membership.nodes.values()
        assert (await ledgers.leader()) != leader

    play(scenario)


def test_a_removed_leader_stays_until_another_one_knows(play: Play) -> None:
    """It alone knows that the change is committed: without it, the other one could never lead."""

    async def scenario(ledgers: Any) -> None:
        cluster = ledgers.cluster
        leader = await ledgers.leader()
        other = next(name for name in "ab" if name != leader)
        here, there = (cluster.nodes[name]._here().engine.replicas for name in (leader, other))
        cluster.network.set_delay(leader, other, 0.02)
        cluster.network.set_delay(other, leader, 0.02)
        call = asyncio.create_task(cluster.nodes[leader].group(GROUP).remove(leader))
        await cluster.until(lambda: there[GROUP].core.change_pending)
        cluster.network.cut(leader, other)
        await cluster.until(lambda: here[GROUP].core.membership.removed(here[GROUP].core.replica_id))
        await cluster.until(lambda: there[GROUP].core.role is Role.PRE_CANDIDATE)
        assert len(there[GROUP].core.membership.voters) == 2
        assert GROUP in here
        cluster.heal()
        await cluster.until(lambda: there[GROUP].leads and GROUP not in here)
        await write(ledgers, other, b"1")
        await asyncio.gather(call, return_exceptions=True)

    play(scenario, names="ab", replicas=2)


def test_the_last_voter_cannot_be_removed(play: Play) -> None:
    async def scenario(ledgers: Any) -> None:
        with pytest.raises(ChangeRefused, match="no voter left"):
            await ledgers.cluster.nodes["a"].group(GROUP).remove("a")

    play(scenario, names="a")


def test_a_node_is_replaced_without_a_moment_of_fewer_voters(play: Play) -> None:
    async def scenario(ledgers: Any) -> None:
        cluster = ledgers.cluster
        seen: list[Membership] = []
        cluster.nodes["a"].subscribe_membership(GROUP, seen.append)
        await write(ledgers, "a", b"1")
        membership = await cluster.nodes["d"].group(GROUP).replace("c", "d")
        assert voters(membership) == ["a", "b", "d"]
        assert not membership.joint
        await cluster.until(lambda: bool(seen) and seen[-1] == membership)
        assert [len(one.voters) for one in seen] == [3, 3, 3]
        assert [one.joint for one in seen] == [False, True, False]
        await caught_up(ledgers, "d", [b"1"])
        await cluster.until(lambda: GROUP not in cluster.nodes["c"]._here().engine.replicas)

    play(scenario, names="abcd")


def test_a_replica_is_replaced_on_its_own_node_under_a_new_id(play: Play) -> None:
    async def scenario(ledgers: Any) -> None:
        cluster = ledgers.cluster
        await write(ledgers, "a", b"1")
        membership = await cluster.nodes["a"].group(GROUP).replace("c", "c")
        assert voters(membership) == ["a", "b", "c"]
        assert membership.replica_on("c") == 4
        await caught_up(ledgers, "c", [b"1"])
        assert cluster.nodes["c"].group_status(GROUP)["replica_id"] == 4

    play(scenario)


def test_a_newcomer_that_is_down_costs_the_group_nothing(play: Play) -> None:
    async def scenario(ledgers: Any) -> None:
        cluster = ledgers.cluster
        leader = await ledgers.leader()
        other = "b" if leader == "a" else "a"
        membership = cluster.nodes[leader].membership(GROUP)
        assert voters(membership) == [leader]
        term = cluster.nodes[leader].group_status(GROUP)["term"]
        cluster.crash(other)
        with pytest.raises(NotReady, match="does not answer"):
            await cluster.nodes[leader].group(GROUP).add(other, timeout_s=10.0)
        await write(ledgers, leader, b"1")
        assert cluster.nodes[leader].group_status(GROUP)["term"] == term
        await cluster.start(other)
        assert voters(await cluster.nodes[leader].group(GROUP).add(other)) == ["a", "b"]
        assert cluster.nodes[leader].group_status(GROUP)["term"] == term
        await caught_up(ledgers, other, [b"1"])

    play(scenario, names="ab", replicas=1)


def test_removing_one_of_four_with_the_other_two_cut_off_never_commits(play: Play) -> None:
    async def scenario(ledgers: Any) -> None:
        cluster = ledgers.cluster
        leader = await ledgers.leader()
        partner, *others = [name for name in "abcd" if name != leader]
        for inside in (leader, partner):
            for outside in others:
                cluster.network.cut(inside, outside)
                cluster.network.cut(outside, inside)
        with pytest.raises(NotReady):
            await cluster.nodes[leader].group(GROUP).remove(partner, timeout_s=10.0)
        for name in "abcd":
            assert len(voters(cluster.nodes[name].membership(GROUP))) == 4
        cluster.heal()
        await cluster.ready()
        await write(ledgers, leader, b"1")
        await cluster.until(lambda: len({cluster.nodes[n].membership(GROUP).index for n in (leader, *others)}) == 1)
        final = cluster.nodes[leader].membership(GROUP)
        assert len(final.voters) in (3, 4)
        if len(final.voters) == 4:
            await cluster.until(lambda: ledgers.kept(partner) == [b"1"])
        else:
            await cluster.until(lambda: GROUP not in cluster.nodes[partner]._here().engine.replicas)

    play(scenario, names="abcd", replicas=4)


def test_a_restarted_member_rejoins_without_an_election(play: Play) -> None:
    async def scenario(ledgers: Any) -> None:
        cluster = ledgers.cluster
        leader = await ledgers.leader()
        victim = next(name for name in "abc" if name != leader)
        term = cluster.nodes[leader].group_status(GROUP)["term"]
        cluster.crash(victim)
        await write(ledgers, leader, b"1")
        await cluster.start(victim)
        await caught_up(ledgers, victim, [b"1"])
        await cluster.run_for(5.0)
        assert cluster.leaders(GROUP) == [leader]
        assert cluster.nodes[leader].group_status(GROUP)["term"] == term

    play(scenario)


def test_a_membership_outlives_a_restart(play: Play) -> None:
    async def scenario(ledgers: Any) -> None:
        cluster = ledgers.cluster
        membership = await cluster.nodes["a"].group(GROUP).demote("c")
        for name in "abc":
            await cluster.until(lambda name=name: cluster.nodes[name].membership(GROUP) == membership)
        cluster.crash()
        found = {}
        for name in "abc":
            node = cluster.make(name)
            await node.start()
            cluster.nodes[name] = node
            found[name] = node.membership(GROUP)
        assert all(one == membership for one in found.values())

    play(scenario)


def test_the_directory_follows_and_routes_calls_to_where_the_group_lives(play: Play) -> None:
    async def scenario(ledgers: Any) -> None:
        cluster = ledgers.cluster
        for old, new in (("a", "d"), ("b", "e"), ("c", "f")):
            await cluster.nodes["f"].group(GROUP).replace(old, new)
        for name in "abcdef":
            await cluster.until(lambda name=name: set(cluster.nodes[name].shard_map.groups[GROUP]) == set("def"))
            await write(ledgers, name, name.encode())
        await caught_up(ledgers, "e", [b"a", b"b", b"c", b"d", b"e", b"f"])
        for name in "abc":
            assert GROUP not in cluster.nodes[name]._here().engine.replicas

    play(scenario, names="abcdef")


def test_a_replica_replaced_while_all_of_its_peers_are_too_learns_of_it(play: Play) -> None:
    async def scenario(ledgers: Any) -> None:
        cluster = ledgers.cluster
        cluster.crash("c")
        for old, new in (("c", "d"), ("a", "e"), ("b", "f")):
            await cluster.nodes["f"].group(GROUP).replace(old, new)
        await cluster.start("c")
        await cluster.until(lambda: GROUP in cluster.nodes["c"]._here().engine.residents.tombstones)

    play(scenario, names="abcdef")


def test_the_membership_can_be_read_and_watched(play: Play) -> None:
    async def scenario(ledgers: Any) -> None:
        cluster = ledgers.cluster
        group = cluster.nodes["a"].group(GROUP)
        watch = group.watch_membership()
        assert (await anext(watch)) == group.membership() == group.membership(latest=True)
        added = await group.add("d", voter=False)
        assert (await anext(watch)) == added
        await watch.aclose()
        with pytest.raises(NotReady, match="no replica"):
            cluster.nodes["e"].group(GROUP).membership()

    play(scenario, names="abcde")
