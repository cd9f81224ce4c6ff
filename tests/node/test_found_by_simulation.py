"""What the simulator found in whole nodes, each as the shortest story that shows it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from itertools import permutations
from typing import Any

import pytest

from multiraft import MultiRaftError
from multiraft.messages import Append, RemovedReplica
from multiraft.types import NOBODY

GROUP = 16

Play = Callable[..., None]


def test_what_fails_behind_a_write_ends_the_node(play: Play) -> None:
    """The store reported the write, and what was to follow it failed half-way: the node ran on without the rest."""
    escaped: list[Any] = []

    async def scenario(ledgers: Any) -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, context: escaped.append(context))
        cluster = ledgers.cluster
        leader = await ledgers.leader()
        node = cluster.nodes[leader]
        cluster.arm("write.before-promises", "eio", leader)
        call = cluster.on(leader, ledgers.services[leader].propose(b"k", b"x"))
        async with asyncio.timeout(2.0):
            with pytest.raises(MultiRaftError):
                await node.failed()
        with pytest.raises(MultiRaftError):
            await call
        del cluster.nodes[leader]
        await cluster.start(leader)
        await cluster.ready()

    play(scenario)
    assert escaped == []


def test_who_leads_on_a_node_is_not_taken_for_the_learner_that_has_replaced_it(play: Play) -> None:
    """A replica that does not know yet that it was replaced leads; others know its node by the learner there."""

    async def scenario(ledgers: Any) -> None:
        cluster = ledgers.cluster
        leader = await ledgers.leader()
        follower, other = (name for name in cluster.names if name != leader)
        engine = cluster.nodes[follower]._here().engine
        core = engine.replicas[GROUP].core
        members = core.membership
        old, new = members.replica_on(other), members.next_replica_id
        nodes = {one: node for one, node in members.nodes.items() if one != old} | {new: other}
        voters = tuple(one for one in members.voters if one != old)
        core.membership = replace(members, voters=voters, learners=(new,), nodes=nodes, next_replica_id=new + 1)
        engine.view.claimed(GROUP, core.term + 1, other, engine.pacing.now())
        assert core.leader == NOBODY
        engine.view.claimed(GROUP, core.term + 1, leader, engine.pacing.now())
        assert core.leader == members.replica_on(leader)

    play(scenario)


@pytest.mark.parametrize("kind", ["add", "promote", "replace"])
def test_a_change_that_is_done_outlives_the_leader_who_made_it(play: Play, kind: str) -> None:
    """Only the leader knew that the change was in effect: by what the others knew they needed the vote of the lost."""

    async def scenario(ledgers: Any) -> None:
        cluster = ledgers.cluster
        leader = await ledgers.leader()
        group = cluster.nodes[leader].group(GROUP)
        here = [name for name in cluster.names if GROUP in cluster.nodes[name]._here().engine.replicas]
        other, newcomer = sorted((name for name in cluster.names if name != leader), key=lambda name: name not in here)
        if kind == "promote":
            await group.add(newcomer, voter=False)
        for one, two in permutations(cluster.names, 2):
            cluster.network.delay(one, two, 0.02)
        if kind == "replace":
            await group.replace(other, other)
        else:
            await getattr(group, kind)(newcomer)
        cluster.crash(leader)
        await cluster.until(lambda: len(cluster.leaders(GROUP)) == 1, timeout_s=10.0)

    play(scenario, replicas=3 if kind == "replace" else 2)


@pytest.mark.pure_only  # what leaves a node is caught in the method that sends it
def test_who_was_removed_asks_though_a_leader_sent_it_entries_without_claiming_to_lead_it(play: Play) -> None:
    """Known by an append alone, that leader was taken for one that answers for the replica, and nobody was asked."""

    async def scenario(ledgers: Any) -> None:
        cluster = ledgers.cluster
        leader = await ledgers.leader()
        engine = cluster.nodes[leader]._here().engine
        gone = next(name for name in cluster.names if name != leader)
        told = engine.outgoing.urgent
        engine.outgoing.urgent = lambda node_id, message: type(message) is RemovedReplica or told(node_id, message)
        await cluster.nodes[leader].group(GROUP).remove(gone)
        await cluster.run_for(0.2)
        there = cluster.nodes[gone]._here().engine
        core = there.replicas[GROUP].core
        led = engine.replicas[GROUP].core
        last, end_term = core.last_index, core.log.last_term
        late = Append(last, GROUP, last, end_term, (), led.replica_id, led.term, core.replica_id)
        there.messages_received(leader, cluster.nodes[leader]._here().store.incarnation, [late])
        await cluster.until(lambda: core.leader == led.replica_id and core.membership.removed(core.replica_id))
        del engine.outgoing.urgent
        await cluster.until(lambda: GROUP not in there.replicas, timeout_s=20.0)

    play(scenario)


@pytest.mark.parametrize("kind", ["remove", "replace"])
@pytest.mark.pure_only  # what leaves a node is caught in the method that sends it
def test_who_takes_a_replica_out_and_who_wants_one_there_do_not_take_turns_for_ever(play: Play, kind: str) -> None:
    """Each undid at once what the other had done, as fast as the disks allowed, until their time was up."""

    async def scenario(ledgers: Any) -> None:
        cluster = ledgers.cluster
        leader = await ledgers.leader()
        group = cluster.nodes[leader].group(GROUP)
        for name in cluster.names:  # whoever votes alone commits at once
            if name != leader:
                await group.remove(name)
        node = next(name for name in cluster.names if name != leader)
        engine = cluster.nodes[leader]._here().engine
        told = engine.outgoing.consensus
        engine.outgoing.consensus = lambda node_id, message: None  # who joins does not catch up
        for one, two in permutations(cluster.names, 2):
            cluster.network.delay(one, two, 0.02)
        adding = cluster.on(leader, group.add(node, timeout_s=10.0))
        await cluster.until(lambda: len(group.membership().learners) == 1)
        far, before = cluster.nodes[node].group(GROUP), group.membership().index
        await (far.remove(node) if kind == "remove" else far.replace(node, leader))
        assert group.membership().index - before < 10
        engine.outgoing.consensus = told
        await adding

    play(scenario)
