"""Who may talk to whom, the same for every transport: clusters, identities, incarnations, and forming.

Rules of this file: through the port alone; both worlds run every test.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from multiraft.errors import Unreachable
from multiraft.messages import Form, Formed
from multiraft.types import Identity, SeenRun

if TYPE_CHECKING:
    from tests.transport.conftest import World

OTHER_CLUSTER = b"d" * 16


def joined(name: str) -> Identity:
    return Identity(name, f"store of {name}".encode(), b"y" * 16)


async def test_nodes_of_two_clusters_refuse_each_other(world: World, caplog: pytest.LogCaptureFixture) -> None:
    a = await world.start("a")
    b = await world.start("b", cluster_id=OTHER_CLUSTER)
    await a.counted("refused_cluster")
    await b.counted("refused_by_peer", "refused_cluster")
    assert a.ear.events == b.ear.events == []
    assert not a.send("b", 1)
    assert OTHER_CLUSTER.hex() in caplog.text


async def test_each_kind_of_refusal_is_logged_once_per_peer(world: World, caplog: pytest.LogCaptureFixture) -> None:
    a = await world.start("a")
    await world.start("b", cluster_id=OTHER_CLUSTER)
    await a.counted("refused_cluster", "refused_by_peer", times=4)
    warnings = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert len(warnings) == len(set(warnings)) <= 4, "one of each kind at each of the two nodes"


async def test_an_address_that_another_node_answers_is_refused(world: World, caplog: pytest.LogCaptureFixture) -> None:
    c = await world.start("c")
    a = await world.start("a", members={"b": world.address("a", "c"), "c": world.true_address("b")})
    await a.counted("refused_impostor")
    assert "the address of node 'b' is answered by node 'c'" in caplog.text
    assert not a.send("b", 1)
    assert not a.send("c", 1)
    assert [event[0] for event in a.ear.events if event[0] == "connected"] == []
    assert c.ear.numbers("a") == []


async def test_an_address_that_leads_back_is_refused(world: World, caplog: pytest.LogCaptureFixture) -> None:
    a = await world.start("a", members={"a": "127.0.0.1:1", "b": world.true_address("a")})
    await a.counted("refused_self")
    assert "its address leads back to itself" in caplog.text
    assert a.ear.events == []


async def test_a_node_that_is_no_member_is_refused(world: World, caplog: pytest.LogCaptureFixture) -> None:
    a = await world.start("a")
    d = await world.start(
        "d", listen=world.true_address("c"), members={"d": world.true_address("c"), "c": "127.0.0.1:1"}
    )
    await a.counted("refused_unknown_node")
    assert "node 'd' is not among the members of 'a'" in caplog.text
    assert a.ear.events == []
    assert not d.send("a", 1)


async def test_a_lower_incarnation_is_refused_and_changes_nothing(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    a = await world.start("a")
    b = await world.start("b", incarnation=5)
    await a.ear.hears("connected", "b", 5)
    await a.ear.hears("heard", "b", 5)
    await world.stop(b)
    await a.ear.hears("disconnected", "b")
    before = list(a.ear.events)
    b = await world.start("b", incarnation=4)
    await a.counted("refused_incarnation")
    assert "as incarnation 4, after 5 was seen" in caplog.text
    assert a.ear.events == before
    await world.stop(b)
    b = await world.start("b", incarnation=6)
    await a.ear.hears("connected", "b", 6)


async def test_a_lower_recovery_generation_is_refused(world: World, caplog: pytest.LogCaptureFixture) -> None:
    a = await world.start("a", generation=2)
    b = await world.start("b", generation=1)
    await a.counted("refused_generation")
    assert "remove its data directory" in caplog.text
    assert not a.send("b", 1)
    assert not b.send("a", 1)


async def test_unformed_nodes_find_each_other_and_only_forming_passes(world: World) -> None:
    peers = {name: await world.start(name, cluster_id=b"") for name in "abc"}
    for name, peer in peers.items():
        for other in set("abc") - {name}:
            await peer.ear.hears("unformed", other, f"store of {other}".encode())
    a, b = peers["a"], peers["b"]
    assert not a.send("b", 1)
    assert not a.send("b", 1, urgent=True)
    with pytest.raises(Unreachable):
        await a.transport.request("b", "read", b"", 1.0)
    stores = tuple((name, f"store of {name}".encode()) for name in "abc")
    assert a.transport.send_forming("b", Form(b"x" * 16, stores))
    await b.ear.hears("forming", "a")
    form = b.ear.events[-1][2]
    assert (form.cluster_id, form.stores) == (b"x" * 16, stores)
    assert b.transport.send_forming("a", Formed(b"x" * 16))
    await a.ear.hears("forming", "b")
    assert {event[0] for peer in peers.values() for event in peer.ear.events} == {"unformed", "forming"}


async def test_a_formed_node_hears_of_an_unformed_one_and_not_the_other_way_round(world: World) -> None:
    a, b = await world.start("a"), await world.start("b", cluster_id=b"")
    await a.ear.hears("unformed", "b", b"store of b")
    assert a.transport.send_forming("b", Form(b"c" * 16, ()))
    await b.ear.hears("forming", "a")
    assert [event[0] for event in a.ear.events] == ["unformed"]
    assert [event[0] for event in b.ear.events] == ["forming"]


async def test_joining_a_cluster_greets_everybody_anew(world: World) -> None:
    a, b, c = [await world.start(name, cluster_id=b"") for name in "abc"]
    for peer, others in ((a, "bc"), (b, "ac"), (c, "ab")):
        for other in others:
            await peer.ear.hears("unformed", other)
    a.transport.set_identity(joined("a"), 1)
    await a.ear.hears("unformed", "b", count=2)
    await a.ear.hears("unformed", "c", count=2)
    assert a.transport.send_forming("b", Form(b"y" * 16, ()))
    await b.ear.hears("forming", "a")
    assert b.transport.send_forming("a", Formed(b"y" * 16)), "queued before greeting anew: it still arrives"
    b.transport.set_identity(joined("b"), 1)
    await a.ear.hears("forming", "b")
    await a.ear.hears("connected", "b")
    await b.ear.hears("connected", "a")
    assert a.send("b", 1)
    await b.ear.until(lambda: b.ear.numbers("a") == [1])
    assert "connected" not in {event[0] for event in c.ear.events}
    c.transport.set_identity(joined("c"), 1)
    for peer in (a, b):
        await peer.ear.hears("connected", "c")
    assert c.count("disconnected") > 0
    c.transport.set_identity(joined("c"), 1)
    assert c.send("a", 1) or not c.ear.events, "saying it twice changes nothing"


async def test_an_emptied_node_may_come_back_with_a_lower_incarnation_while_unformed(world: World) -> None:
    a = await world.start("a", cluster_id=b"")
    b = await world.start("b", cluster_id=b"", incarnation=3)
    await a.ear.hears("unformed", "b", b"store of b")
    await world.stop(b)
    b = await world.start("b", cluster_id=b"", incarnation=1, store_id=b"another store")
    await a.ear.hears("unformed", "b", b"another store")
    assert a.count("refused_incarnation") == 0


def knowing(name: str, readmissions: int = 0, **stores: bytes) -> Identity:
    """What node `name` says of itself, with what it knows of its peers' stores."""
    own = f"store of {name}".encode()
    admitted = tuple(sorted(stores)) if readmissions else ()
    return Identity(name, own, b"c" * 16, {name: own, **stores}, admitted, readmissions)


async def test_a_store_that_was_replaced_is_refused_and_told_so(world: World, caplog: pytest.LogCaptureFixture) -> None:
    a = await world.start("a", identity=knowing("a", b=b"another store"))
    b = await world.start("b")
    await b.ear.until(lambda: ("a", "store") in [refusal[:2] for refusal in b.ear.refusals])
    await a.counted("refused_store")
    assert "node 'b' comes with a store that was replaced" in caplog.text
    assert a.ear.events == []
    assert not a.send("b", 1)
    assert not b.send("a", 1)


async def test_a_store_that_is_known_is_let_in(world: World) -> None:
    a = await world.start("a", identity=knowing("a", b=b"store of b"))
    await world.start("b", identity=knowing("b", a=b"store of a"))
    await a.ear.hears("connected", "b")
    await a.ear.hears("heard", "b")
    assert a.count("refused_store") == 0


async def test_who_knows_of_fewer_readmissions_lets_the_other_store_in(world: World) -> None:
    """It cannot judge: it learns of the readmission from the others, or from that very node."""
    a = await world.start("a", identity=knowing("a", b=b"old store of b"))
    b = await world.start("b", identity=knowing("b", readmissions=1, a=b"store of a"))
    await a.ear.hears("connected", "b")
    await b.ear.hears("connected", "a")
    assert a.count("refused_store") + b.count("refused_store") == 0


async def test_connections_to_a_store_end_when_another_one_is_admitted_in_its_place(world: World) -> None:
    a = await world.start("a", identity=knowing("a", b=b"store of b"))
    b = await world.start("b", identity=knowing("b", a=b"store of a"))
    await a.ear.hears("connected", "b")
    await b.ear.hears("connected", "a")
    a.transport.set_identity(knowing("a", readmissions=1, b=b"another store"), 1)
    await a.ear.hears("disconnected", "b")
    await b.ear.until(lambda: ("a", "store") in [refusal[:2] for refusal in b.ear.refusals])
    assert not a.send("b", 1)
    await world.stop(b)
    await world.start("b", identity=replace(knowing("b", 1, a=b"store of a"), store_id=b"another store"))
    await a.ear.hears("connected", "b", count=2)


def runs_of(*numbers: int) -> tuple[bytes, ...]:
    return tuple(number.to_bytes(8, "big") for number in numbers)


@pytest.mark.parametrize(
    ("incarnation", "runs", "refused"),
    [
        (6, (4, 5, 6), False),  # the run that was met, dialling again
        (7, (5, 6, 7), False),  # the next one
        (9, (9,), False),  # a later one that does not tell of the one that was met
        (5, (4, 5), True),  # an earlier one
        (6, (4, 5, 60), True),  # another one after the same start: the one that was met is not among its runs
        (7, (5, 60, 70), True),
        (9, (60, 70, 80, 90), True),
    ],
)
async def test_a_store_that_does_not_know_the_run_that_was_met_was_rolled_back(
    world: World, incarnation: int, runs: tuple[int, ...], refused: bool
) -> None:
    """Met in an earlier run of this node: what it hands to the transport before its start."""
    seen = {"b": SeenRun(b"store of b", 6, *runs_of(6))}
    a = await world.start("a", seen=seen)
    b = await world.start("b", incarnation=incarnation, runs=runs_of(*runs))
    if refused:
        await a.refuses("refused_incarnation")
        await b.ear.until(lambda: ("a", "incarnation") in [refusal[:2] for refusal in b.ear.refusals])
        assert a.ear.events == []
        assert a.transport.seen() == seen
    else:
        await a.ear.hears("connected", "b")
        assert a.transport.seen() == {"b": SeenRun(b"store of b", incarnation, *runs_of(runs[-1]))}


async def test_a_store_rolled_back_to_before_it_was_formed_is_refused(world: World) -> None:
    a = await world.start("a", seen={"b": SeenRun(b"store of b", 6, *runs_of(6))})
    b = await world.start("b", cluster_id=b"", incarnation=2, runs=runs_of(1, 2))
    await a.refuses("refused_incarnation")
    await b.ear.until(lambda: ("a", "incarnation") in [refusal[:2] for refusal in b.ear.refusals])
    assert a.ear.events == []


async def test_another_store_of_a_node_begins_to_count_anew(world: World) -> None:
    a = await world.start("a", seen={"b": SeenRun(b"store of b", 6, *runs_of(6))})
    await world.start("b", store_id=b"another store", incarnation=2, runs=runs_of(1, 2))
    await a.ear.hears("connected", "b", 2)
    assert a.transport.seen() == {"b": SeenRun(b"another store", 2, *runs_of(2))}


async def test_outside_of_a_cluster_no_run_is_remembered(world: World) -> None:
    a = await world.start("a", cluster_id=b"")
    await world.start("b", cluster_id=b"", incarnation=3)
    await a.ear.hears("unformed", "b")
    assert a.transport.seen() == {}
