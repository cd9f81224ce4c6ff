"""What the owner of a memory network can do to it: disturb messages, strand connections, part the nodes by sides.

Rules of this file: everything runs on virtual time.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

from multiraft.messages import Beat
from multiraft.testing import run_virtual
from multiraft.transport import MemoryNetwork

if TYPE_CHECKING:
    from tests.transport.conftest import MemoryWorld, Peer

NAMES = "abcde"


def parted(network: MemoryNetwork, names: str = NAMES) -> set[str]:
    """Return every pair of which at least one direction is cut or stalled, as "ab"; both directions must agree."""
    found = set()
    for one in names:
        for other in names:
            broken = network.is_cut(one, other) or network.is_stalled(one, other)
            assert broken == (network.is_cut(other, one) or network.is_stalled(other, one))
            if broken and one < other:
                found.add(one + other)
    return found


@pytest.mark.parametrize("by", ["cut", "stall"])
def test_a_partition_parts_its_sides_and_nobody_else(by: Any) -> None:
    network = MemoryNetwork()
    network.partition("ab", "c", "d", by=by)
    assert parted(network) == {"ac", "bc", "ad", "bd", "cd"}
    assert network.is_cut("a", "c") == (by == "cut")
    network.heal()
    assert parted(network) == set()


def test_a_bridge_reaches_both_halves_wherever_it_stands() -> None:
    network = MemoryNetwork()
    network.bridge("ab", "de", "c")
    assert parted(network) == {"ad", "ae", "bd", "be"}
    network.heal()
    network.bridge("abc", "de", "c")
    assert parted(network) == {"ad", "ae", "bd", "be"}


@pytest.mark.parametrize(
    ("order", "apart"),
    [
        ("abcde", {"ac", "ad", "bd", "be", "ce"}),
        ("acebd", {"ab", "ae", "bc", "cd", "de"}),
        ("abcd", {"ac", "bd"}),
        ("abc", set()),
        ("ab", set()),
    ],
)
def test_in_a_ring_each_reaches_its_two_neighbours(order: str, apart: set[str]) -> None:
    network = MemoryNetwork()
    network.ring(order)
    assert parted(network) == apart


def test_healing_ends_everything_but_delays() -> None:
    network = MemoryNetwork()
    network.cut("a", "b")
    network.stall("a", "b")
    network.disturb("a", "b", loss=1.0)
    network.drop_next_bulk("a", "b", 5)
    network.delay("a", "b", 1.5)
    network.heal("b", "a")
    assert network.is_cut("a", "b")
    assert network.disturbance("a", "b") is not None
    network.heal("a", "b")
    assert parted(network) == set()
    assert network.disturbance("a", "b") is None
    assert not network.take_bulk_drop("a", "b")
    assert network.delay_s("a", "b") == 1.5


def test_every_control_counts_itself_once_for_what_it_changed() -> None:
    network = MemoryNetwork()
    network.cut("a", "b")
    network.cut("a", "b")
    network.stall("a", "b")
    network.delay("a", "b", 1.0)
    network.set_delay("a", "b", 0.0)
    network.partition("a", "c")
    network.ring("abcd")
    network.bridge("a", "b", "c")
    assert {kind: network.faults[kind] for kind in ("stall", "delay", "partition", "ring", "bridge")} == {
        "stall": 1, "delay": 1, "partition": 1, "ring": 1, "bridge": 1,
    }  # fmt: skip
    assert network.faults["cut"] == 1 + 2 + 2 + 1, "a-b, a-c, b-d, and b-a; a-c and a-b were cut before"


def playing(make_memory_world: Any, story: Callable[[MemoryWorld, Peer, Peer], Any], seed: int = 1) -> None:
    async def main() -> None:
        world: MemoryWorld = make_memory_world()
        world.network.rng = random.Random(seed)
        a, b = await world.pair()
        await story(world, a, b)
        await world.close()

    run_virtual(main())


def test_lost_messages_are_lost_silently_and_others_are_not(make_memory_world: Any) -> None:
    async def story(world: MemoryWorld, a: Peer, b: Peer) -> None:
        world.network.disturb("a", "b", loss=0.5)
        for number in range(1_000):
            assert a.send("b", number)
            assert b.send("a", number)
            a.transport.send("b", [Beat(0, 0, False, 0, 1, number)], True)
        await asyncio.sleep(1.0)
        heard = b.ear.numbers("a")
        assert 400 < len(heard) < 600
        assert heard == sorted(set(heard)), "what is not lost keeps its order"
        assert len(heard) + world.network.faults["loss"] == 1_000
        assert a.ear.numbers("b") == list(range(1_000)), "the other direction is not disturbed"
        beats = [event[3].sequence for event in b.ear.events if event[0] == "message" and isinstance(event[3], Beat)]
        assert beats == list(range(1_000)), "liveness is lost only with its connection"

    playing(make_memory_world, story)


def test_a_connection_that_lost_messages_breaks_when_it_is_healed(make_memory_world: Any) -> None:
    async def story(world: MemoryWorld, a: Peer, b: Peer) -> None:
        world.network.disturb("a", "b", loss=1.0)
        world.network.disturb("b", "a", duplicate=1.0)
        a.send("b", 1)
        b.send("a", 2)
        world.network.heal()
        await a.ear.hears("disconnected", "b")
        await a.ear.hears("connected", "b", count=2)
        a.send("b", 3)
        await b.ear.until(lambda: b.ear.numbers("a") == [3])
        assert all(event[0] != "disconnected" for event in b.ear.events), "nothing was lost the other way"
        world.network.keep_lossy = True
        world.network.disturb("a", "b", loss=1.0)
        a.send("b", 4)
        world.network.heal()
        a.send("b", 5)
        await b.ear.until(lambda: b.ear.numbers("a") == [3, 5])

    playing(make_memory_world, story)


def test_repeated_messages_come_again_some_much_later(make_memory_world: Any) -> None:
    async def story(world: MemoryWorld, a: Peer, b: Peer) -> None:
        world.network.disturb("a", "b", duplicate=0.5)
        a.send("b", *range(200))
        await asyncio.sleep(0.01)
        early = len(b.ear.numbers("a"))
        world.network.heal()
        await asyncio.sleep(10.0)
        heard = b.ear.numbers("a")
        assert heard[:200] == list(range(200)), "each comes in its order, too"
        assert len(heard) == 200 + world.network.faults["duplicate"]
        assert 200 < early < len(heard) - 30, "some at once, some later"

    playing(make_memory_world, story)


def test_reordered_messages_are_overtaken_and_none_is_lost(make_memory_world: Any) -> None:
    async def story(world: MemoryWorld, a: Peer, b: Peer) -> None:
        world.network.disturb("a", "b", reorder=0.3)
        for number in range(100):
            a.send("b", number)
            await asyncio.sleep(0.001)
        await asyncio.sleep(1.0)
        heard = b.ear.numbers("a")
        assert sorted(heard) == list(range(100))
        assert heard != sorted(heard)

    playing(make_memory_world, story)


def test_a_repeated_message_comes_over_a_newer_connection_of_the_same_runs_only(make_memory_world: Any) -> None:
    async def story(world: MemoryWorld, a: Peer, b: Peer) -> None:
        world.network.disturb("a", "b", duplicate=1.0)
        a.send("b", *range(50))
        world.break_off("a", "b")
        await a.ear.hears("connected", "b", count=2)
        await asyncio.sleep(10.0)
        again = b.ear.numbers("a")
        assert len(again) > 25, "over the new connection"
        world.network.disturb("a", "b", duplicate=1.0)
        a.send("b", *range(100, 150))
        await b.ear.until(lambda: len(b.ear.numbers("a")) == len(again) + 50)
        await world.stop(b)
        b = await world.start("b", incarnation=2)
        await a.ear.hears("connected", "b", 2)
        await asyncio.sleep(10.0)
        assert b.ear.numbers("a") == [], "nothing of what was meant for an earlier run"

    playing(make_memory_world, story)


def test_frames_of_a_stranded_connection_are_refused_after_the_new_hello(make_memory_world: Any) -> None:
    async def story(world: MemoryWorld, a: Peer, b: Peer) -> None:
        a.send("b", 1)
        world.network.strand("a", "b", 5.0)
        await a.ear.hears("disconnected", "b")
        assert b.count("dropped_replaced_connection") == 0
        await a.ear.hears("connected", "b", count=2)
        a.send("b", 2)
        await asyncio.sleep(10.0)
        assert b.ear.numbers("a") == [2], "what came late over the old connection changed nothing"
        assert b.count("dropped_replaced_connection") == 1
        assert world.network.faults["strand"] == 1
        assert len(world.network.wires_of(a.transport)) == 2, "the stranded wire is gone"  # type: ignore[arg-type]

    playing(make_memory_world, story)


def test_frames_of_a_stranded_connection_count_while_it_is_the_newest(make_memory_world: Any) -> None:
    async def story(world: MemoryWorld, a: Peer, b: Peer) -> None:
        a.send("b", 1)
        world.network.strand("a", "b", 5.0)
        world.network.cut("b", "a")  # so that no new connection can be dialled
        await asyncio.sleep(4.0)
        assert b.ear.numbers("a") == []
        await b.ear.until(lambda: b.ear.numbers("a") == [1])
        world.network.heal()
        await a.ear.hears("connected", "b", count=2)

    playing(make_memory_world, story)


@pytest.mark.parametrize("deliver", [False, True])
def test_what_a_killed_node_had_sent_arrives_if_its_machine_lives_on(make_memory_world: Any, deliver: bool) -> None:
    async def story(world: MemoryWorld, a: Peer, b: Peer) -> None:
        world.network.delay("a", "b", 1.0)
        a.send("b", 1)
        await asyncio.sleep(0.5)
        a.send("b", 2)
        world.network.crash("a", deliver=deliver)
        await b.ear.hears("disconnected", "a")
        await asyncio.sleep(10.0)
        assert b.ear.numbers("a") == ([1] if deliver else []), "2 had not left the node"
        assert world.network.wires_of(a.transport) == []  # type: ignore[arg-type]

    playing(make_memory_world, story)


def test_a_stranded_connection_ends_with_its_node(make_memory_world: Any) -> None:
    async def story(world: MemoryWorld, a: Peer, b: Peer) -> None:
        a.send("b", 1)
        world.network.strand("a", "b", 5.0)
        world.network.crash("a")
        await asyncio.sleep(10.0)
        assert b.ear.numbers("a") == []

    playing(make_memory_world, story)
