"""Membership changes as a leader's engine takes them: what it answers, and when, and what it refuses beforehand."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import msgpack
import pytest

from multiraft import Limits
from multiraft.engine.changing import decode_view, encode_change, encode_look
from multiraft.errors import (
    ChangePending,
    ChangeRefused,
    CorruptRecord,
    InvalidRequest,
    MembershipChanged,
    NotCommitted,
    NotLeader,
    OutcomeUnknown,
)
from multiraft.membership import unpack_membership
from multiraft.raft import AddLearner, Demote, Promote, Remove

Play = Callable[..., None]
GROUP = 16


async def leading(ledgers: Any) -> tuple[str, Any]:
    """The node that leads, and the changes of its engine."""
    name = await ledgers.leader()
    engine = ledgers.cluster.nodes[name]._here().engine
    await ledgers.cluster.until(lambda: engine.replicas[GROUP].core._in_office())
    return name, engine.changing


def followers(ledgers: Any, leader: str) -> list[str]:
    return [name for name in ledgers.cluster.nodes if name != leader]


@pytest.mark.parametrize("name", ["", "x" * 300])
def test_a_name_that_no_node_can_have_is_refused_and_the_group_lives_on(play: Play, name: str) -> None:
    async def scenario(ledgers: Any) -> None:
        with pytest.raises((ChangeRefused, InvalidRequest), match="name"):
            await ledgers.cluster.nodes["a"].group(GROUP).add(name, timeout_s=3)
        await ledgers.cluster.insist(lambda: ledgers.services["a"].propose(b"k", b"1"))
        replicas = [node._here().engine.replicas[GROUP] for node in ledgers.cluster.nodes.values()]
        assert [replica.broken for replica in replicas] == [None] * 3

    play(scenario)


@pytest.mark.parametrize("wrong", [AddLearner(""), AddLearner("x" * 300), AddLearner("d", store=b"s" * 100)])
def test_the_core_stores_no_membership_that_it_could_not_read(play: Play, wrong: AddLearner) -> None:
    async def scenario(ledgers: Any) -> None:
        name, _ = await leading(ledgers)
        core = ledgers.cluster.nodes[name]._here().engine.replicas[GROUP].core
        before = core.last_index
        with pytest.raises(ChangeRefused):
            core.propose_membership([wrong], 0)
        assert core.last_index == before
        assert not core.change_pending

    play(scenario)


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        ("change", b""),
        ("change", b"\xc1"),
        ("change", msgpack.packb(7)),
        ("change", msgpack.packb([None, None, True])),
        ("change", msgpack.packb([None, None, True, [["Conquer", 1]]])),
        ("change", msgpack.packb([None, None, True, [["Remove"]]])),
        ("change", msgpack.packb([None, None, True, [["Remove", [1]]]])),
        ("change", msgpack.packb([None, None, True, [["Remove", "1"]]])),
        ("change", msgpack.packb([None, None, True, [["AddLearner", 7, True, b""]]])),
        ("change", msgpack.packb([None, None, True, [["AddLearner", "d", "yes", b""]]])),
        ("change", msgpack.packb([None, None, True, [["AddLearner", "d", True, "text"]]])),
        ("change", msgpack.packb([None, None, True, [["Bind", 1, 7]]])),
        ("change", msgpack.packb([None, None, True, [[["AddLearner"], "d", True, b""]]])),
        ("change", msgpack.packb(["1", None, True, [["Remove", 1]]])),
        ("change", msgpack.packb([None, "yes", True, [["Remove", 1]]])),
        ("change", msgpack.packb([None, None, 1, [["Remove", 1]]])),
        ("membership", b""),
        ("membership", msgpack.packb([1])),
        ("membership", msgpack.packb(["1", 1.0])),
        ("membership", msgpack.packb([1 << 40, None])),
        ("membership", msgpack.packb([1 << 40, "soon"])),
        ("membership", msgpack.packb([1 << 40, float("nan")])),
    ],
)
def test_a_call_that_is_none_is_refused_and_changes_nothing(play: Play, kind: str, body: bytes) -> None:
    async def scenario(ledgers: Any) -> None:
        name, changing = await leading(ledgers)
        core = ledgers.cluster.nodes[name]._here().engine.replicas[GROUP].core
        before = core.last_index
        with pytest.raises(InvalidRequest, match=f"a {kind} call"):
            changing.ask(GROUP, kind, body)
        assert core.last_index == before
        assert changing._waiting == {}

    play(scenario)


def test_a_change_is_answered_with_the_membership_that_took_effect(play: Play) -> None:
    async def scenario(ledgers: Any) -> None:
        leader, changing = await leading(ledgers)
        core = ledgers.cluster.nodes[leader]._here().engine.replicas[GROUP].core
        victim = core.membership.replica_on(followers(ledgers, leader)[0])
        future = changing.ask(GROUP, "change", encode_change([Demote(victim)], core.membership.index))
        assert not future.done()  # nothing is committed yet
        found = unpack_membership(await future, "the answer")
        assert found == core.membership
        assert found.learners == (victim,)
        assert changing._waiting == {}

    play(scenario)


def test_what_the_core_refuses_is_told_at_once(play: Play) -> None:
    async def scenario(ledgers: Any) -> None:
        leader, changing = await leading(ledgers)
        core = ledgers.cluster.nodes[leader]._here().engine.replicas[GROUP].core
        index = core.membership.index
        one, other = (core.membership.replica_on(name) for name in followers(ledgers, leader))
        with pytest.raises(MembershipChanged):
            changing.ask(GROUP, "change", encode_change([Demote(one)], index + 1))
        with pytest.raises(ChangeRefused, match="no learner"):
            changing.ask(GROUP, "change", encode_change([Promote(one)], index))
        first = changing.ask(GROUP, "change", encode_change([Demote(one)], index))
        with pytest.raises(ChangePending):
            changing.ask(GROUP, "change", encode_change([Demote(other)], index))
        await first
        follower = ledgers.cluster.nodes[followers(ledgers, leader)[0]]._here().engine.changing
        with pytest.raises(NotLeader):
            follower.ask(GROUP, "change", encode_change([Demote(other)], None))

    play(scenario)


def test_no_replica_of_the_directory_is_removed(play: Play) -> None:
    async def scenario(ledgers: Any) -> None:
        await ledgers.cluster.until(lambda: len(ledgers.cluster.leaders(1)) == 1)
        engine = ledgers.cluster.nodes[ledgers.cluster.leaders(1)[0]]._here().engine
        with pytest.raises(InvalidRequest, match="directory"):
            engine.changing.ask(1, "change", encode_change([Remove(1)], None))

    play(scenario)


def test_a_look_is_answered_at_once_or_when_something_newer_is_in_effect(play: Play) -> None:
    async def scenario(ledgers: Any) -> None:
        leader, changing = await leading(ledgers)
        core = ledgers.cluster.nodes[leader]._here().engine.replicas[GROUP].core
        index = core.membership.index
        now = changing.ask(GROUP, "membership", encode_look(None, 1.0))
        assert decode_view(now.result()).in_effect == core.membership
        assert changing.ask(GROUP, "membership", encode_look(index - 1, 1.0)).done()
        later = changing.ask(GROUP, "membership", encode_look(index, 60.0))
        assert not later.done()
        victim = core.membership.replica_on(followers(ledgers, leader)[0])
        await changing.ask(GROUP, "change", encode_change([Demote(victim)], index))
        assert decode_view(await later).in_effect.learners == (victim,)

    play(scenario)


def test_a_look_that_sees_nothing_new_is_answered_when_its_time_is_up(play: Play) -> None:
    async def scenario(ledgers: Any) -> None:
        leader, changing = await leading(ledgers)
        core = ledgers.cluster.nodes[leader]._here().engine.replicas[GROUP].core
        loop = asyncio.get_running_loop()
        began_s = loop.time()
        view = decode_view(await changing.ask(GROUP, "membership", encode_look(core.membership.index, 0.5)))
        assert 0.5 <= loop.time() - began_s < 0.8
        assert view.in_effect == view.latest == core.membership
        assert set(view.behind.values()) == {0}

    play(scenario)


def test_a_view_says_who_does_not_answer(play: Play) -> None:
    async def scenario(ledgers: Any) -> None:
        leader, changing = await leading(ledgers)
        core = ledgers.cluster.nodes[leader]._here().engine.replicas[GROUP].core
        gone, there = followers(ledgers, leader)
        ledgers.cluster.crash(gone)
        await ledgers.cluster.run_for(3.0)
        view = decode_view(changing.ask(GROUP, "membership", encode_look(None, 0.0)).result())
        assert view.behind == {core.membership.replica_on(gone): None, core.membership.replica_on(there): 0}

    play(scenario)


def test_a_change_that_cannot_be_committed_is_pending_then_unknown(play: Play) -> None:
    async def scenario(ledgers: Any) -> None:
        leader, changing = await leading(ledgers)
        core = ledgers.cluster.nodes[leader]._here().engine.replicas[GROUP].core
        ledgers.cluster.isolate(leader)
        victim = core.membership.replica_on(followers(ledgers, leader)[0])
        change = changing.ask(GROUP, "change", encode_change([Demote(victim)], None))
        view = decode_view(changing.ask(GROUP, "membership", encode_look(None, 0.0)).result())
        assert view.latest.learners == (victim,)
        assert view.in_effect.learners == ()
        with pytest.raises(OutcomeUnknown, match="may have later"):
            await change
        ledgers.cluster.heal()

    play(scenario)


def test_a_change_that_a_new_leader_replaced_certainly_did_not_happen(play: Play) -> None:
    async def scenario(ledgers: Any) -> None:
        leader, changing = await leading(ledgers)
        core = ledgers.cluster.nodes[leader]._here().engine.replicas[GROUP].core
        others = followers(ledgers, leader)
        ledgers.cluster.isolate(leader)
        change = changing.ask(GROUP, "change", encode_change([Demote(core.membership.replica_on(others[0]))], None))
        look = changing.ask(GROUP, "membership", encode_look(core.membership.index, 60.0))
        leaders = ledgers.cluster.leaders
        await ledgers.cluster.until(lambda: any(name in others for name in leaders(GROUP)))
        ledgers.cluster.heal()
        with pytest.raises(NotCommitted, match="replaced"):
            await change
        with pytest.raises(NotLeader):
            await look
        assert changing._waiting == {}

    play(scenario, limits=Limits(request_timeout_ms=60_000))


def test_those_who_wait_hear_that_the_node_stops(play: Play) -> None:
    async def scenario(ledgers: Any) -> None:
        leader, changing = await leading(ledgers)
        core = ledgers.cluster.nodes[leader]._here().engine.replicas[GROUP].core
        look = changing.ask(GROUP, "membership", encode_look(core.membership.index, 60.0))
        await ledgers.cluster.stop(leader)
        with pytest.raises(OutcomeUnknown):
            await look

    play(scenario)


def test_a_leader_promotes_a_learner_that_was_to_join_by_itself(play: Play) -> None:
    async def scenario(ledgers: Any) -> None:
        leader, changing = await leading(ledgers)
        core = ledgers.cluster.nodes[leader]._here().engine.replicas[GROUP].core
        await changing.ask(GROUP, "change", encode_change([AddLearner("d", joining=True)], None))
        assert changing._joining == {GROUP} or core.membership.is_voter(4)
        await ledgers.cluster.until(lambda: core.membership.is_voter(4))
        await ledgers.cluster.until(lambda: changing._joining == set())

    play(scenario, names="abcd")


@pytest.mark.parametrize(
    "answer", [b"", b"\xc1", msgpack.packb(1), msgpack.packb([b"", b""]), msgpack.packb([b"", b"", []])]
)
def test_a_view_that_is_none_is_corrupt(answer: bytes) -> None:
    with pytest.raises(CorruptRecord):
        decode_view(answer)
