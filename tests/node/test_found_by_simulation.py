"""What the simulator found in whole nodes, each as the shortest story that shows it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from multiraft import MultiRaftError

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
