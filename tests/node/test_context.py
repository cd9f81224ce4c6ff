"""What commands are told, and how they are given: replicated time and chance, and batches, on whole nodes.

Rules of this file: virtual time; wall clocks are set by hand.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest

from multiraft import BytesDiskStateMachine, BytesStateMachine, CommandFailed, Limits
from tests.node.conftest import Ledgers

GROUP = Ledgers.GROUP
HOUR_S = 3_600.0


class Diary(BytesStateMachine):
    """Notes what each command was told."""

    def __init__(self) -> None:
        self.notes: list[bytes] = []

    def apply(self, command: bytes) -> bytes:
        context = self.context
        note = b"%d %d %d %d" % (context.index, context.time_ms, context.random.getrandbits(64), context.group)
        self.notes.append(note)
        return b"%d" % context.time_ms

    def query(self, query: bytes) -> bytes:
        return b"\n".join(self.notes)

    def snapshot(self) -> bytes:
        return b"\n".join(self.notes)

    def restore(self, state: bytes) -> None:
        self.notes = state.split(b"\n")


class Rolls(BytesDiskStateMachine):
    """Takes commands in batches, and appends each that is not `!` under the next number."""

    def __init__(self) -> None:
        self.batches: list[int] = []

    def apply_batch(self, commands: list[bytes]) -> list[bytes | Exception]:
        self.batches.append(len(commands))
        number = int(self.data.get(b"count") or b"0")
        results: list[bytes | Exception] = []
        for command in commands:
            if command == b"!":
                results.append(ValueError("not this one"))
                continue
            number += 1
            self.data.put(b"roll %06d" % number, command)
            results.append(b"%d" % number)
        self.data.put(b"count", b"%d" % number)
        return results

    def query(self, query: bytes) -> bytes:
        return b" ".join(value for _, value in self.data.range(b"roll ", b"roll!"))


async def time_ms(ledgers: Ledgers) -> int:
    """The replicated clock, as a command is told it."""
    leader = await ledgers.leader()
    return int(await ledgers.services[leader].propose(b"k", b"x"))


def test_time_and_chance_are_the_same_on_every_replica(play: Callable[..., None]) -> None:
    async def scenario(ledgers: Ledgers) -> None:
        cluster = ledgers.cluster
        for _ in range(20):
            await time_ms(ledgers)
        leader = await ledgers.leader()
        cluster.nodes[leader].transfer_leadership(GROUP, next(name for name in cluster.names if name != leader))
        await cluster.until(lambda: cluster.leaders(GROUP) not in ([leader], []))
        await time_ms(ledgers)
        machines = [cluster.nodes[name].local_machine(GROUP) for name in cluster.names]
        await cluster.until(
            lambda: len({machine.query(b"") for machine in machines if isinstance(machine, Diary)}) == 1
        )
        notes = [note.split() for note in machines[0].notes] if isinstance(machines[0], Diary) else []
        assert len(notes) == 21
        assert len({note[2] for note in notes}) == 21
        assert {note[3] for note in notes} == {b"%d" % GROUP}

    play(scenario, machine=Diary)


@pytest.mark.parametrize("jump_s", [10 * HOUR_S, -10 * HOUR_S])
def test_a_wall_clock_that_is_set_ends_nothing_at_once_whoever_leads(play: Callable[..., None], jump_s: float) -> None:
    async def scenario(ledgers: Ledgers) -> None:
        cluster = ledgers.cluster
        before = await time_ms(ledgers)
        leader = await ledgers.leader()
        for name in cluster.names:
            cluster.clock(name).skew_s = jump_s
        await cluster.run_for(0.1)  # all turns of one instant share one reading of the clocks
        assert 0 <= await time_ms(ledgers) - before < 1_000
        other = next(name for name in cluster.names if name != leader)
        cluster.nodes[leader].transfer_leadership(GROUP, other)
        await cluster.until(lambda: cluster.leaders(GROUP) == [other])
        after = await time_ms(ledgers)
        assert 0 <= after - before < 3_000
        await cluster.run_for(100.0)
        assert 80_000 < await time_ms(ledgers) - after < 120_000

    play(scenario, machine=Diary)


def test_a_session_outlives_a_wall_clock_that_is_set_by_more_than_its_expiry(play: Callable[..., None]) -> None:
    async def scenario(ledgers: Ledgers) -> None:
        cluster = ledgers.cluster
        await time_ms(ledgers)
        leader = await ledgers.leader()
        table = cluster.nodes[leader]._here().engine.replicas[GROUP].executor.sessions
        await cluster.until(lambda: len(table.clients) > 0)
        clients = set(table.clients)
        for name in cluster.names:
            cluster.clock(name).skew_s = 10 * HOUR_S
        await cluster.run_for(0.1)
        await time_ms(ledgers)
        assert clients <= set(table.clients)

    play(scenario, machine=Diary, limits=Limits(request_timeout_ms=3_000, session_expiry_ms=60_000))


def test_after_all_nodes_were_down_time_has_gone_on(play: Callable[..., None]) -> None:
    async def scenario(ledgers: Ledgers) -> None:
        cluster = ledgers.cluster
        before = await time_ms(ledgers)
        await cluster.stop()
        await cluster.run_for(500.0)
        await cluster.start()
        await cluster.ready()
        assert await time_ms(ledgers) - before > 490_000

    play(scenario, machine=Diary)


def test_batches_on_disk_over_a_crash_of_all(play: Callable[..., None]) -> None:
    async def scenario(ledgers: Ledgers) -> None:
        cluster = ledgers.cluster
        leader = await ledgers.leader()
        group = cluster.nodes[leader].group(GROUP)
        tasks = [cluster.on(leader, group.propose(b"%d" % number)) for number in range(200)]
        failing = cluster.on(leader, group.propose(b"!"))
        numbers = sorted([int(await task) for task in tasks])
        with pytest.raises(CommandFailed, match="not this one"):
            await failing
        assert numbers == list(range(1, 201))
        machine = cluster.nodes[leader].local_machine(GROUP)
        assert isinstance(machine, Rolls)
        assert max(machine.batches) > 20
        rolls = machine.query(b"")
        cluster.crash()
        await cluster.start()
        await cluster.ready()
        leader = await ledgers.leader()
        assert await ledgers.services[leader].propose(b"k", b"last") == b"201"
        assert await ledgers.services[leader].read(b"k", b"") == rolls + b" last"
        machines = [cluster.nodes[name].local_machine(GROUP) for name in cluster.names]
        await cluster.until(lambda: {m.query(b"") for m in machines if isinstance(m, Rolls)} == {rolls + b" last"})

    play(scenario, machine=Rolls)
