"""A keyspace that is filled with what a leader has sent, in steps, before the replica is switched to it.

Rules of this file: virtual time; what arrives whole in a message is taken apart here, as if it had come as a file.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from multiraft.engine import filling
from multiraft.engine.filling import Filling
from multiraft.engine.incoming import Incoming
from multiraft.engine.pairstream import read_pairs
from multiraft.messages import InstallSnapshot
from tests.node.conftest import Ledgers
from tests.node.shelves import GROUP, SHORT, disk, propose, replica_of, settled, store_of, stored

pytestmark = pytest.mark.pure_only  # what comes to a node is caught in the class that takes it


def _as_file(m: InstallSnapshot) -> InstallSnapshot:
    return InstallSnapshot(b"a file", m.group_id, m.index, m.index_term, m.membership, m.sender, m.term, m.to)


class FilledFirst:
    """Has every snapshot that comes to a node put into a keyspace in small pieces, before the core gets it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.finished = 0
        self.step = Incoming.step
        fills = self

        def step(incoming: Incoming, node_id: str, message: Any, now: float) -> None:
            if type(message) is InstallSnapshot and message.data:
                fills.fill(incoming, node_id, message)
            else:
                fills.step(incoming, node_id, message, now)

        monkeypatch.setattr(Incoming, "step", step)

    def fill(self, incoming: Incoming, node_id: str, message: InstallSnapshot) -> None:
        engine = incoming._engine
        replica = engine.replicas[message.group_id]
        assert replica.data is not None
        sent = read_pairs(message.data)
        one = Filling(engine, replica.data, lambda: None)
        for pair in sent.pairs:
            one.feed([pair])

        def filled() -> None:
            self.finished += 1
            self.step(incoming, node_id, _as_file(message), engine.pacing.now())

        one.finish(message.index, message.index_term, sent.time_ms, sent.hash, filled)


@pytest.mark.parametrize("place", ["space.filled", "space.switched", "snapshot.after-save", None])
def test_a_keyspace_that_was_filled_before_is_switched_to_at_once(
    play: Callable[..., None], monkeypatch: pytest.MonkeyPatch, place: str | None
) -> None:
    filled = FilledFirst(monkeypatch)

    async def scenario(ledgers: Ledgers) -> None:
        cluster = ledgers.cluster
        leader = await ledgers.leader()
        lagging = next(name for name in cluster.names if name != leader)
        commands = await propose(ledgers, 1, 5)
        await settled(ledgers, commands)
        cluster.isolate(lagging)
        commands += await propose(ledgers, 6, 80)
        if place is not None:
            cluster.arm(place, "kill", lagging)
        cluster.heal()
        if place is not None:
            await cluster.until(lambda: lagging not in cluster.nodes)
            cluster.places.clear()
            await cluster.start(lagging)
            found = stored(ledgers, lagging)
            assert found == commands[: len(found)]
        commands += await propose(ledgers, 81, 82)
        await settled(ledgers, commands)
        data = replica_of(ledgers, lagging).data
        assert data is not None
        assert data.arriving == {}
        await cluster.until(lambda: store_of(ledgers, lagging).spaces() == [data.space])

    disk(scenario, play, limits=SHORT)
    assert filled.finished >= 1


def test_what_was_filled_for_nothing_is_deleted(play: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario(ledgers: Ledgers) -> None:
        cluster = ledgers.cluster
        commands = await propose(ledgers, 1, 5)
        await settled(ledgers, commands)
        name = next(name for name in cluster.names if name != ledgers.cluster.leaders(GROUP)[0])
        engine, data = cluster.nodes[name]._here().engine, replica_of(ledgers, name).data
        assert data is not None
        for ends in ("abandoned", "refused"):
            one = Filling(engine, data, lambda: None)
            one.feed([(b"\0%d" % number, b"x") for number in range(10)])
            if ends == "abandoned":
                one.abandon()
                one.abandon()
            else:  # the core has all that it covers
                core = replica_of(ledgers, name).core
                message = InstallSnapshot(b"a file", GROUP, 2, 1, b"", core.leader, core.term, core.replica_id)
                node_id = core.membership.nodes[core.leader]
                one.finish(2, 1, 0, 0, lambda m=message, n=node_id: engine.incoming.step(n, m, 0.0))  # type: ignore[misc]
            await cluster.run_for(0.5)
            assert one.space > data.space
            assert store_of(ledgers, name).spaces() == [data.space]
        assert stored(ledgers, name) == commands

    disk(scenario, play)


def test_who_fills_is_told_when_there_is_room_again(play: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(filling, "_UNDER_WAY_BYTES", 1_000)

    async def scenario(ledgers: Ledgers) -> None:
        await propose(ledgers, 1, 1)
        engine, data = ledgers.cluster.nodes["a"]._here().engine, replica_of(ledgers, "a").data
        assert data is not None
        told: list[bool] = []
        one = Filling(engine, data, lambda: told.append(one.room))
        one.feed([(b"\0a", b"x" * 600)])
        assert one.room
        one.feed([(b"\0b", b"x" * 600)])
        assert not one.room
        await ledgers.cluster.until(lambda: told == [True])
        one.abandon()

    disk(scenario, play)
