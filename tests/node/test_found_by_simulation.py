"""What the simulator found in whole nodes, each as the shortest story that shows it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from multiraft import MultiRaftError
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
