"""The parts around the turn: the patience clock, group commit, outgoing batches, forming."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from random import Random
from typing import Any

import pytest

from multiraft.engine.outgoing import Outgoing
from multiraft.engine.pacing import Pacing
from multiraft.engine.waiting import Budget, Proposals
from multiraft.errors import NotCommitted, OutcomeUnknown, StartError
from multiraft.forming import Forming
from multiraft.messages import Append, Beat, CommitTo, Form, Formed, NodeMessage, RequestVote
from multiraft.ports import Clocks
from multiraft.raft import Raft
from multiraft.storage import MemoryDisk, open_memory
from multiraft.testing import VirtualLoop, run_virtual
from multiraft.types import Identity

Play = Callable[..., None]
GROUP = 16


class RecordingTransport:
    """Takes what is sent; refuses bulk while `full`."""

    def __init__(self) -> None:
        self.sent: list[tuple[str, list[str], bool]] = []
        self.flushed: list[tuple[str, int]] = []
        self.full = False

    def send(self, node_id: str, messages: Sequence[NodeMessage], urgent: bool) -> bool:
        self.sent.append((node_id, [type(message).__name__ for message in messages], urgent))
        return urgent or not self.full

    def flush(self, node_id: str) -> None:
        self.flushed.append((node_id, len(self.sent)))


async def _pause(seconds: float) -> None:
    passed = asyncio.get_running_loop().create_future()
    asyncio.get_running_loop().call_later(seconds, passed.set_result, None)
    await passed


def test_the_patience_clock_forgives_the_loop_its_own_lateness() -> None:
    """L15 and all election deadlines: time in which this process was stopped does not count as a peer's silence."""

    async def main() -> None:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, VirtualLoop)
        woken: list[float] = []
        pacing = Pacing(Clocks(loop.time, loop.time, loop.time), loop, lambda: woken.append(pacing.now()))
        pacing.wake_at(0.1)
        loop.pass_time(10.0)  # the process is stopped for ten seconds
        await _pause(0.001)
        assert len(woken) == 1
        assert woken[0] == pytest.approx(0.1, abs=0.02)
        before = pacing.now()
        pacing.wake_at(before + 0.1)
        await _pause(0.2)
        assert woken[1] == pytest.approx(before + 0.1, abs=0.01)
        assert pacing.load()[1] == pytest.approx(9.9, abs=0.1)
        pacing.cancel()

    run_virtual(main())


def test_a_node_that_was_stopped_does_not_depose_its_leaders(play: Play) -> None:
    async def scenario(ledgers: Any) -> None:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, VirtualLoop)
        await ledgers.leader()
        terms = {name: ledgers.cluster.nodes[name].group_status(GROUP)["term"] for name in ledgers.cluster.names}
        for _ in range(5):
            loop.pass_time(30.0)  # the whole machine: nobody beats, nobody hears
            await ledgers.cluster.run_for(3.0)
        for name in ledgers.cluster.names:
            assert ledgers.cluster.nodes[name].group_status(GROUP)["term"] == terms[name]
        assert await ledgers.services["a"].propose(b"k", b"x") == b"1"

    play(scenario)


def test_an_idle_node_has_one_turn_a_beat_beside_those_for_frames_even_if_the_loop_counts_whole_milliseconds(
    play: Play, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such a loop fires its timers up to two milliseconds early, and those nearer than half of one at once."""

    async def scenario(ledgers: Any) -> None:
        loop = asyncio.get_running_loop()
        exact = loop.call_later

        def coarse(delay: float, callback: Callable[..., object], *args: Any, context: Any = None) -> Any:
            return exact(max(5e-5, (round(delay * 1e3) - 1) / 1e3), callback, *args, context=context)

        monkeypatch.setattr(loop, "call_later", coarse)
        await ledgers.cluster.run_for(2.0)
        pacing = ledgers.cluster.nodes["a"]._here().engine.pacing
        before = pacing.turns
        await ledgers.cluster.run_for(10.0)
        assert 100 <= pacing.turns - before <= 100 + 200 + 1

    play(scenario)


def test_votes_and_beats_go_before_appends_and_one_batch_per_peer_and_lane() -> None:
    transport = RecordingTransport()
    outgoing = Outgoing(transport)  # type: ignore[arg-type]
    for node_id in ("b", "a"):
        outgoing.reach(node_id, True)
        outgoing.consensus(node_id, Append(0, 1, 1, 1, (), 1, 2, 2))
        outgoing.consensus(node_id, RequestVote(False, 2, 1, 1, 1, 2, 2))
        outgoing.urgent(node_id, Beat(0, 0, False, 0, 1, 1))
        outgoing.consensus(node_id, CommitTo(1, 3, 1, 2, 2))
    outgoing.send_all()
    assert transport.sent == [
        ("a", ["RequestVote", "Beat"], True),
        ("b", ["RequestVote", "Beat"], True),
        ("a", ["Append", "CommitTo"], False),
        ("b", ["Append", "CommitTo"], False),
    ]
    assert transport.flushed == [("a", 3), ("b", 4)], "once for each, when all that it is sent was sent"
    outgoing.urgent("a", Beat(0, 0, False, 0, 1, 1))
    outgoing.send_all()
    assert transport.flushed[2:] == [("a", 5)]


def test_what_a_full_outbox_dropped_is_remembered_and_nothing_waits_for_the_absent() -> None:
    transport = RecordingTransport()
    transport.full = True
    outgoing = Outgoing(transport)  # type: ignore[arg-type]
    outgoing.reach("b", True)
    for index in (5, 6):
        outgoing.consensus("b", Append(0, 7, index, 1, (), 1, 2, 2))
    outgoing.consensus("c", Append(0, 7, 1, 1, (), 1, 2, 3))
    outgoing.consensus(None, Append(0, 7, 1, 1, (), 1, 2, 4))
    outgoing.send_all()
    dropped = outgoing.take_dropped()
    assert [(node_id, message.group_id, getattr(message, "prev_index", None)) for node_id, message in dropped] == [
        ("b", 7, 6)
    ]
    assert outgoing.take_dropped() == []
    assert [node_id for node_id, _, _ in transport.sent] == ["b"]


def test_a_batch_of_callers_is_finished_once_and_gives_its_bytes_back() -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        budget = Budget(100)
        budget.used_bytes, budget.count = 30, 2
        futures: list[asyncio.Future[bytes]] = [loop.create_future(), loop.create_future()]
        futures[0].cancel()
        batch = Proposals(1, 1, list(futures), 30, 5.0)
        batch.fail(budget, lambda: OutcomeUnknown("late"))
        batch.fail(budget, lambda: NotCommitted("later"))
        assert (budget.used_bytes, budget.count) == (0, 0)
        with pytest.raises(OutcomeUnknown):
            await futures[1]

    run_virtual(main())


@pytest.mark.usefixtures("nobody_asks_after")
def test_lost_appends_and_answers_are_repaired(play: Play, monkeypatch: pytest.MonkeyPatch) -> None:
    """At once: neither by a leader that asks after its followers later, nor by a caller that proposes again."""
    monkeypatch.setattr(Raft, "ask_after_followers", lambda self, now: False)

    async def scenario(ledgers: Any) -> None:
        cluster = ledgers.cluster
        leader = await ledgers.leader()
        followers = [name for name in cluster.names if name != leader]
        for name in followers:
            cluster.network.drop_next_bulk(leader, name, 2)
            cluster.network.drop_next_bulk(name, leader, 2)
        assert await cluster.nodes[leader].group(16).propose(b"x") == b"1"
        await cluster.until(lambda: all(ledgers.kept(name) == [b"x"] for name in cluster.names))

    play(scenario)


def test_a_broken_connection_in_either_direction_is_resumed(play: Play) -> None:
    async def scenario(ledgers: Any) -> None:
        cluster = ledgers.cluster
        leader = await ledgers.leader()
        follower = next(name for name in cluster.names if name != leader)
        for sender, receiver in ((leader, follower), (follower, leader)):
            call = asyncio.ensure_future(ledgers.services[leader].propose(b"k", b"x"))
            await asyncio.sleep(0)
            cluster.network.cut(sender, receiver)
            await call
            cluster.heal()
        await cluster.until(lambda: all(ledgers.kept(name) == [b"x", b"x"] for name in cluster.names))

    play(scenario)


# ---------------------------------------------------------------------------------------------------------- forming


def forming_of(
    disk: MemoryDisk, name: str, members: Sequence[str]
) -> tuple[Forming, list[tuple[str, Any]], list[Identity]]:
    from multiraft import Limits

    sent: list[tuple[str, Any]] = []
    formed: list[Identity] = []
    store = open_memory(disk, name, Limits(), asyncio.get_running_loop())

    def send(node_id: str, message: Any) -> bool:
        sent.append((node_id, message))
        return True

    return Forming(store, members, Random(1), send, formed.append), sent, formed


def test_the_lowest_node_waits_for_all_members_and_then_binds_their_stores() -> None:
    async def main() -> None:
        forming, sent, formed = forming_of(MemoryDisk(), "a", "abc")
        forming.begin()
        forming.unformed_peer("b", b"store-b")
        assert (formed, forming.missing) == ([], ("c",))
        forming.unformed_peer("c", b"store-c")
        assert set(formed[0].stores) == {"a", "b", "c"}
        assert sent == []  # offered when the peers greet again
        forming.unformed_peer("b", b"store-b")
        assert isinstance(sent[0][1], Form)
        assert dict(sent[0][1].stores)["b"] == b"store-b"

    run_virtual(main())


def test_any_other_node_only_waits() -> None:
    async def main() -> None:
        forming, sent, formed = forming_of(MemoryDisk(), "b", "abc")
        forming.begin()
        forming.unformed_peer("a", b"store-a")
        forming.unformed_peer("c", b"store-c")
        assert (sent, formed) == ([], [])

    run_virtual(main())


def test_an_offer_for_another_store_or_another_list_is_not_taken() -> None:
    async def main() -> None:
        disk = MemoryDisk()
        forming, sent, formed = forming_of(disk, "b", "ab")
        mine = forming._store.identity.store_id
        forming.received("a", Form(b"c" * 16, (("a", b"s"), ("b", b"another"))))
        forming.received("a", Form(b"c" * 16, (("a", b"s"), ("b", mine), ("c", b"t"))))
        assert (sent, formed) == ([], [])
        forming.received("a", Form(b"c" * 16, (("a", b"s"), ("b", mine))))
        assert formed[0].cluster_id == b"c" * 16

    run_virtual(main())


def test_an_emptied_store_is_not_let_in_again() -> None:
    async def main() -> None:
        forming, sent, formed = forming_of(MemoryDisk(), "a", "ab")
        forming.unformed_peer("b", b"store-b")
        assert len(formed) == 1
        forming.unformed_peer("b", b"emptied")
        assert dict(sent[0][1].stores)["b"] == b"store-b"  # from which it learns that it is unknown
        assert forming.strangers == {"b": b"emptied"}
        forming.unformed_peer("b", b"store-b")
        assert len(sent) == 2

    run_virtual(main())


def test_a_store_that_was_admitted_is_offered_the_cluster_and_joins_as_one_that_came_later() -> None:
    async def main() -> None:
        forming, sent, _ = forming_of(MemoryDisk(), "a", "ab")
        forming.unformed_peer("b", b"store-b")
        emptied, answers, joined = forming_of(MemoryDisk("b"), "b", "ab")
        new = emptied._store.identity.store_id
        forming.unformed_peer("b", new)
        emptied.received("a", sent.pop()[1])
        assert joined == []
        assert emptied.refusal is not None
        assert "knows another store of node 'b'" in emptied.refusal
        assert forming.bind_stores({"b": new}, 1)
        assert not forming.bind_stores({"b": b"of before"}, 1)
        assert forming.strangers == {}
        emptied.received("a", sent.pop()[1])
        assert [identity.founder for identity in joined] == [False]
        assert joined[0].stores == forming._store.identity.stores
        assert emptied.refusal is None
        assert isinstance(answers[0][1], Formed)

    run_virtual(main())


def test_a_member_list_that_differs_from_the_founding_one_is_refused() -> None:
    async def main() -> None:
        disk = MemoryDisk()
        forming, _, _ = forming_of(disk, "a", "ab")
        forming.unformed_peer("b", b"store-b")
        await forming._store.close()
        again, _, _ = forming_of(disk, "a", "abc")
        with pytest.raises(StartError) as refused:
            again.check()
        text = str(refused.value)
        assert "lists the members a, b, c, but this cluster was founded by a, b (added: c; missing: none)" in text
        assert "members={'a': ..., 'b': ...}" in text
        assert "group.add(node)" in text
        assert "\n" not in text

    run_virtual(main())
