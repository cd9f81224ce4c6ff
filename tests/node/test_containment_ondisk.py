"""Halted replicas whose machines are on disk: they stay halted, are retried, diverge, and are rebuilt like others."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from multiraft import Limits
from tests.node.shelves import Shelf, disk, propose, replica_of, settled, shelf, stored

Play = Callable[..., None]
COMPARING = Limits(request_timeout_ms=3_000, check_entries=10)


async def followers(ledgers: Any) -> list[str]:
    leader = await ledgers.leader()
    return [name for name in ledgers.cluster.names if name != leader]


def fail_at(ledgers: Any, name: str, command: bytes, problem: BaseException) -> None:
    machine: Any = shelf(ledgers, name)

    def failing(given: bytes) -> bytes:
        result = Shelf.apply(machine, given)
        if given == command:
            raise problem
        return result

    machine.apply = failing


@pytest.mark.parametrize("crash", [False, True])
def test_it_stays_halted_over_a_restart_and_is_rebuilt(play: Play, crash: bool) -> None:
    async def scenario(ledgers: Any) -> None:
        cluster = ledgers.cluster
        name = (await followers(ledgers))[0]
        commands = await propose(ledgers, 1, 5)
        fail_at(ledgers, name, b"6", OSError("this replica alone"))
        commands += await propose(ledgers, 6, 12)
        await cluster.until(lambda: replica_of(ledgers, name).halted is not None)
        halt = replica_of(ledgers, name).halted
        await cluster.run_for(0.2)
        if crash:
            cluster.crash(name)
        else:
            await cluster.stop(name)
        await cluster.start(name)
        await cluster.until(lambda: stored(ledgers, name) == commands[:5])
        await cluster.run_for(1.0)
        assert replica_of(ledgers, name).halted == halt
        assert stored(ledgers, name) == commands[:5]
        await cluster.nodes[name].rebuild(16)
        await settled(ledgers, commands)
        commands += await propose(ledgers, 13, 15)
        await settled(ledgers, commands)
        await cluster.stop(name)
        await cluster.start(name)
        assert replica_of(ledgers, name).halted is None
        await settled(ledgers, commands)

    disk(scenario, play)


def test_one_that_came_to_another_result_is_named_and_rebuilt(play: Play) -> None:
    async def scenario(ledgers: Any) -> None:
        cluster = ledgers.cluster
        name = (await followers(ledgers))[0]
        machine: Any = shelf(ledgers, name)
        machine.apply = lambda given: (
            (Shelf.apply(machine, given), b"odd")[1] if given == b"3" else Shelf.apply(machine, given)
        )
        commands = await propose(ledgers, 1, 9)
        replica = replica_of(ledgers, name)
        for number in range(10, 100):
            commands += await propose(ledgers, number, number)
            await cluster.run_for(0.02)
            if replica.halted is not None and replica.halted.reason.startswith("diverged"):
                break
        assert replica.halted is not None
        assert replica.halted.kind == "diverged"
        assert "command b'3' has come to something else here" in replica.halted.reason
        await cluster.nodes[name].rebuild(16)
        await settled(ledgers, commands)
        commands += [b"again", *await propose(ledgers, 101, 130)][1:]
        await settled(ledgers, commands)
        assert [replica_of(ledgers, each).halted for each in cluster.names] == [None] * 3

    disk(scenario, play, limits=COMPARING)


def test_a_retry_goes_on_from_the_data(play: Play) -> None:
    async def scenario(ledgers: Any) -> None:
        cluster = ledgers.cluster
        name = (await followers(ledgers))[0]
        commands = await propose(ledgers, 1, 5)
        fail_at(ledgers, name, b"6", MemoryError())
        commands += await propose(ledgers, 6, 8)
        await cluster.until(lambda: replica_of(ledgers, name).halted is not None)
        assert stored(ledgers, name) == commands[:5]
        cluster.nodes[name].retry(16)
        await settled(ledgers, commands)
        assert shelf(ledgers, name).given == commands[5:]  # what its data had was not applied again

    disk(scenario, play)
