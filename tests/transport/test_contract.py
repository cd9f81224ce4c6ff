"""What every transport does: connecting, order, lanes, chunks, bounds, restarts.

Rules of this file: through the port alone; both worlds run every test.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from multiraft.errors import StartError
from multiraft.messages import Append, CommitTo
from multiraft.records import COMMANDS, encode_record

if TYPE_CHECKING:
    from tests.transport.conftest import Peer, World


def append(entry: bytes) -> Append:
    record = encode_record(16, 2, 1, 1, COMMANDS, 1_700_000_000_000, [entry])
    return Append(1, 16, 1, 1, (record,), 1, 1, 2)


async def test_each_lane_keeps_its_order_and_the_urgent_one_goes_first(world: World) -> None:
    a, b = await world.pair()
    assert a.send("b", *range(100, 150))
    assert a.send("b", *range(150, 200))
    assert a.send("b", *range(30), urgent=True)
    assert a.send("b", *range(30, 50), urgent=True)
    await b.ear.until(lambda: len(b.ear.numbers("a")) == 150)
    assert b.ear.numbers("a") == [*range(50), *range(100, 200)]


async def test_order_holds_over_many_turns_and_frames(world: World) -> None:
    a, b = await world.pair(frame_bytes=4096)
    for turn in range(200):
        assert a.send("b", *range(turn * 10, turn * 10 + 10))
        await asyncio.sleep(0)
    await b.ear.until(lambda: len(b.ear.numbers("a")) == 2000)
    assert b.ear.numbers("a") == list(range(2000))
    assert a.count("frames_sent") > 2000 * 40 // 4096
    assert a.count("frames_sent") < 2000, "messages of one turn share frames"


async def test_what_is_sent_on_connecting_is_heard_first_and_after_the_hello(world: World) -> None:
    def greet(peer: Peer, node_id: str) -> None:
        assert peer.send(node_id, 7, urgent=True)

    b = await world.start("b", incarnation=3, on_connected=greet)
    a = await world.start("a", incarnation=5, on_connected=greet)
    await asyncio.gather(a.ear.until(lambda: bool(a.ear.numbers("b"))), b.ear.until(lambda: bool(b.ear.numbers("a"))))
    for ear, name, incarnation in ((b.ear, "a", 5), (a.ear, "b", 3)):
        of_peer = [event for event in ear.events if event[1] == name]
        heard = [event[:3] for event in of_peer if event[0] in ("heard", "message")]
        assert heard == [("heard", name, incarnation), ("message", name, incarnation)]
        assert ("connected", name, incarnation) in of_peer


async def test_three_nodes_talk_pairwise(world: World) -> None:
    peers = {name: await world.start(name) for name in "abc"}
    for name, peer in peers.items():
        for other in set("abc") - {name}:
            await peer.ear.hears("connected", other)
    for number, (name, peer) in enumerate(peers.items()):
        for other in set("abc") - {name}:
            assert peer.send(other, number)
    for peer in peers.values():
        await peer.ear.until(lambda peer=peer: sum(len(peer.ear.numbers(n)) for n in "abc") == 2)  # type: ignore[misc]
    found = {name: {other: peer.ear.numbers(other) for other in "abc"} for name, peer in peers.items()}
    assert found == {
        "a": {"a": [], "b": [1], "c": [2]},
        "b": {"a": [0], "b": [], "c": [2]},
        "c": {"a": [0], "b": [1], "c": []},
    }


async def test_nothing_is_queued_for_a_peer_that_is_not_connected(world: World) -> None:
    a = await world.start("a")
    assert not a.send("b", 1, 2)
    assert not a.send("nobody", 3)
    assert not a.send("a", 4)
    assert a.count("dropped_not_connected") == 4
    b = await world.start("b")
    await a.ear.hears("connected", "b")
    assert a.send("b", 5)
    await b.ear.until(lambda: bool(b.ear.numbers("a")))
    assert b.ear.numbers("a") == [5]


async def test_a_broken_connection_is_told_and_dialled_again(world: World) -> None:
    a, b = await world.pair()
    assert a.send("b", 1)
    await b.ear.until(lambda: bool(b.ear.numbers("a")))
    for round_ in range(3):
        world.break_off("a", "b")
        await a.ear.hears("connected", "b", count=round_ + 2)
    told = [event[0] for event in a.ear.events if event[0] in ("connected", "disconnected")]
    assert told == ["connected", *["disconnected", "connected"] * 3]
    assert a.send("b", 2)
    await b.ear.until(lambda: len(b.ear.numbers("a")) == 2)
    assert b.ear.numbers("a") == [1, 2]
    assert b.send("a", 3), "the other direction has its own connection"
    assert b.count("disconnected") == 0


async def test_a_message_larger_than_a_frame_arrives_whole_and_lets_urgent_ones_pass(world: World) -> None:
    a, b = await world.pair(frame_bytes=8192)
    entry = bytes(range(256)) * 4096
    assert a.transport.send("b", [append(entry)], False)
    assert a.send("b", 2)
    assert a.send("b", 1, urgent=True)
    await b.ear.until(lambda: len(b.ear.numbers("a")) == 2)
    first, large, last = [event[3] for event in b.ear.events if event[0] == "message"]
    assert (first.commit, last.commit) == (1, 2)
    assert isinstance(large, Append)
    assert large.records[0].entries() == [entry]
    assert a.count("frames_sent") >= len(entry) // 8192


async def test_chunks_of_both_lanes_interleave(world: World) -> None:
    a, b = await world.pair(frame_bytes=4096)
    slow, quick = append(b"s" * 300_000), append(b"q" * 200_000)
    assert a.transport.send("b", [slow], False)
    await asyncio.sleep(0)
    assert a.transport.send("b", [quick], True)
    await b.ear.hears("message", "a", count=2)
    received = [event[3].records[0].entries()[0][:1] for event in b.ear.events if event[0] == "message"]
    assert sorted(received) == [b"q", b"s"]


async def test_a_message_over_the_limit_is_dropped_and_the_rest_goes_on(world: World) -> None:
    limits = {"frame_bytes": 4096, "entry_bytes": 1024 * 1024, "key_bytes": 64, "batch_bytes": 4096}
    a, b = await world.pair(**limits)
    assert not a.transport.send("b", [append(bytes(5 * 1024 * 1024))], False)
    assert a.count("dropped_too_large") == 1
    assert a.send("b", 1)
    await b.ear.until(lambda: bool(b.ear.numbers("a")))
    assert a.count("disconnected") == 0


async def test_frames_obey_the_smaller_limit_of_the_two(world: World) -> None:
    a = await world.start("a", frame_bytes=1024 * 1024)
    b = await world.start("b", frame_bytes=4096)
    await a.ear.hears("connected", "b")
    assert a.transport.send("b", [append(bytes(100_000)), *[append(bytes(3_000)) for _ in range(10)]], False)
    await b.ear.hears("message", "a", count=11)
    assert b.count("dropped_oversized") == 0


async def test_bulk_past_the_bound_is_dropped_and_urgent_still_passes(world: World) -> None:
    a, b = await world.pair(outbox_bytes=512 * 1024, entry_bytes=64 * 1024)
    sent = [a.transport.send("b", [append(bytes(32 * 1024))], False) for _ in range(20)]
    assert sent[0]
    assert not sent[-1]
    assert sent == sorted(sent, reverse=True)
    assert a.count("dropped_outbox_full") == sent.count(False)
    assert a.send("b", 1, urgent=True)
    await b.ear.hears("message", "a", count=sent.count(True) + 1)
    assert b.ear.numbers("a") == [1]
    assert a.send("b", 2), "there is room again"
    await b.ear.until(lambda: b.ear.numbers("a") == [1, 2])
    assert a.count("disconnected") == 0


async def test_urgent_past_the_bound_closes_the_connection_and_the_next_one_works(world: World) -> None:
    a, b = await world.pair(outbox_bytes=512 * 1024, entry_bytes=64 * 1024)
    batch = [CommitTo(0, 16, 1, 1, 2)] * 100
    sent = [a.transport.send("b", batch, True) for _ in range(60)]
    first = sent.index(False)
    assert first > 0
    assert not any(sent[first:]), "nothing is queued on a connection that was given up"
    assert a.count("closed_outbox_full") == 1
    assert ("disconnected", "b") not in a.ear.events, "the handler is told from the loop, not inside send"
    await a.ear.hears("connected", "b", count=2)
    assert [event[0] for event in a.ear.events if event[0] != "heard"] == ["connected", "disconnected", "connected"]
    assert a.send("b", 9, urgent=True)
    await b.ear.until(lambda: 9 in b.ear.numbers("a"))


async def test_a_node_that_starts_anew_is_heard_with_its_new_incarnation(world: World) -> None:
    a, b = await world.pair()
    await world.stop(b)
    await a.ear.hears("disconnected", "b")
    b = await world.start("b", incarnation=2)
    await a.ear.hears("connected", "b", 2)
    await a.ear.hears("heard", "b", 2)
    await b.ear.hears("connected", "a")
    assert a.send("b", 1)
    assert b.send("a", 2)
    await b.ear.until(lambda: b.ear.numbers("a") == [1])
    await a.ear.until(lambda: a.ear.numbers("b") == [2])


async def test_what_waited_for_an_earlier_incarnation_never_reaches_a_later_one(world: World) -> None:
    a, b = await world.pair()
    world.hold("a", "b")
    assert a.send("b", *range(1000))
    await asyncio.sleep(0)
    assert a.send("b", *range(1000, 2000))
    await world.stop(b)
    b = await world.start("b", incarnation=2)
    await a.ear.hears("heard", "b", 2)
    world.release("a", "b")
    await a.ear.hears("connected", "b", 2)
    assert a.send("b", 5000)
    await b.ear.until(lambda: bool(b.ear.numbers("a")))
    assert b.ear.numbers("a") == [5000]


async def test_closing_is_final_silent_and_idempotent(world: World) -> None:
    a, b = await world.pair()
    assert a.send("b", 1)
    await world.stop(a)  # its ear is shut: anything it were told now would fail the test
    await a.transport.close()
    assert not a.send("b", 2)
    await b.ear.hears("disconnected", "a")
    assert b.ear.numbers("a") == [1], "what waited was written"


async def test_an_address_in_use_is_one_line_with_the_way_out(world: World) -> None:
    await world.start("a")
    with pytest.raises(StartError, match=r"^node 'b' cannot listen on .*change `listen`$") as found:
        await world.start("b", listen=world.true_address("a"))
    assert "\n" not in str(found.value)
