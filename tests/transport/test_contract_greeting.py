"""Who may talk to whom, the same for every transport: clusters, identities, incarnations, and forming.

Rules of this file: through the port alone; both worlds run every test.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import pytest

from multiraft.errors import Unreachable
from multiraft.messages import Form, Formed

if TYPE_CHECKING:
    from tests.transport.conftest import World

OTHER_CLUSTER = b"d" * 16


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
    a.transport.set_cluster(b"y" * 16)
    await a.ear.hears("unformed", "b", count=2)
    await a.ear.hears("unformed", "c", count=2)
    assert a.transport.send_forming("b", Form(b"y" * 16, ()))
    await b.ear.hears("forming", "a")
    assert b.transport.send_forming("a", Formed(b"y" * 16)), "queued before greeting anew: it still arrives"
    b.transport.set_cluster(b"y" * 16)
    await a.ear.hears("forming", "b")
    await a.ear.hears("connected", "b")
    await b.ear.hears("connected", "a")
    assert a.send("b", 1)
    await b.ear.until(lambda: b.ear.numbers("a") == [1])
    assert "connected" not in {event[0] for event in c.ear.events}
    c.transport.set_cluster(b"y" * 16)
    for peer in (a, b):
        await peer.ear.hears("connected", "c")
    assert c.count("disconnected") > 0
    c.transport.set_cluster(b"y" * 16)
    assert c.send("a", 1) or not c.ear.events, "saying it twice changes nothing"


async def test_an_emptied_node_may_come_back_with_a_lower_incarnation_while_unformed(world: World) -> None:
    a = await world.start("a", cluster_id=b"")
    b = await world.start("b", cluster_id=b"", incarnation=3)
    await a.ear.hears("unformed", "b", b"store of b")
    await world.stop(b)
    b = await world.start("b", cluster_id=b"", incarnation=1, store_id=b"another store")
    await a.ear.hears("unformed", "b", b"another store")
    assert a.count("refused_incarnation") == 0
