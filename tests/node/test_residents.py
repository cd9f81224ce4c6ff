"""Replicas that come to a node and leave it: what is asked for, what is refused, and what an earlier life still says.

Frames are handed to a node's engine as if a peer had sent them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from multiraft.messages import (
    Append,
    AppendAnswer,
    AskRemoved,
    CreateReplica,
    LeadDelta,
    NodeMessage,
    PreVote,
    RemovedReplica,
    RequestVote,
)
from multiraft.raft import Role
from multiraft.types import Tombstone

Play = Callable[..., None]
GROUP = 16


def engine_of(ledgers: Any, name: str) -> Any:
    return ledgers.cluster.nodes[name]._here().engine


def core_of(ledgers: Any, name: str) -> Any:
    return engine_of(ledgers, name).replicas[GROUP].core


async def receive(ledgers: Any, name: str, sender: str, *messages: NodeMessage) -> None:
    incarnation = ledgers.cluster.nodes[sender]._here().store.incarnation
    engine_of(ledgers, name).messages_received(sender, incarnation, list(messages))
    await ledgers.cluster.run_for(0.05)


def test_a_replica_asked_for_is_made_empty_and_knows_nothing(play: Play) -> None:
    async def scenario(ledgers: Any) -> None:
        await receive(ledgers, "d", "a", CreateReplica(GROUP, 4, "ledger"))
        await ledgers.cluster.until(lambda: GROUP in engine_of(ledgers, "d").replicas)
        core = core_of(ledgers, "d")
        assert (core.replica_id, core.last_index, core.term, core.membership.replicas) == (4, 0, 0, ())
        await ledgers.cluster.run_for(5.0)
        assert core.role is Role.FOLLOWER
        core.step(PreVote(GROUP, 9, 9, 1, 9, 4), engine_of(ledgers, "d").pacing.now())
        core.step(RequestVote(False, GROUP, 9, 9, 1, 9, 4), engine_of(ledgers, "d").pacing.now())
        answers = core.ready().after_persist
        assert [answer.granted for answer in answers] == [False, False]

    play(scenario, names="abcd")


def test_a_replica_of_an_unknown_service_is_refused(play: Play, caplog: Any) -> None:
    async def scenario(ledgers: Any) -> None:
        await receive(ledgers, "d", "a", CreateReplica(GROUP, 4, "unheard of"))
        assert GROUP not in engine_of(ledgers, "d").replicas
        assert "does not declare" in caplog.text

    play(scenario, names="abcd")


def test_no_replica_up_to_the_tombstones_id_lives_again(play: Play) -> None:
    async def scenario(ledgers: Any) -> None:
        engine = engine_of(ledgers, "c")
        engine.residents.remove(engine.replicas[GROUP], 7)
        await ledgers.cluster.until(lambda: not engine.residents.busy(GROUP))
        replica_id = engine.residents.tombstones[GROUP].replica_id
        for asked in range(1, replica_id + 1):
            await receive(ledgers, "c", "a", CreateReplica(GROUP, asked, "ledger"))
            assert GROUP not in engine.replicas
        await receive(ledgers, "c", "a", CreateReplica(GROUP, replica_id + 1, "ledger"))
        await ledgers.cluster.until(lambda: GROUP in engine.replicas)
        assert engine.residents.tombstones == {GROUP: Tombstone(GROUP, replica_id, 7)}

    play(scenario)


def test_a_removal_is_on_disk_before_the_next_replica_of_the_group(play: Play) -> None:
    async def scenario(ledgers: Any) -> None:
        engine, disk = engine_of(ledgers, "c"), ledgers.cluster.disks["c"]
        replica_id = core_of(ledgers, "c").replica_id
        disk.hold_writes()
        engine.residents.remove(engine.replicas[GROUP], 7)
        await receive(ledgers, "c", "a", CreateReplica(GROUP, replica_id + 1, "ledger"))
        assert GROUP not in engine.replicas
        disk.release()
        await ledgers.cluster.until(lambda: GROUP in engine.replicas)
        assert core_of(ledgers, "c").replica_id == replica_id + 1

    play(scenario)


def test_leftovers_of_a_removal_that_a_crash_interrupted_are_deleted_at_the_next_start(play: Play) -> None:
    async def scenario(ledgers: Any) -> None:
        cluster = ledgers.cluster
        await cluster.insist(lambda: ledgers.services["a"].propose(b"k", b"1"))
        await cluster.until(lambda: ledgers.kept("c") == [b"1"])
        prefix = GROUP.to_bytes(8, "big")
        engine, disk = engine_of(ledgers, "c"), cluster.disks["c"]
        disk.hold_completions()
        engine.residents.remove(engine.replicas[GROUP], 7)
        await cluster.run_for(0.05)
        assert [key for key in disk.stored_keys() if key.startswith(prefix)]  # the tombstone is there, the log too
        cluster.crash("c")
        await cluster.start("c")
        await cluster.until(lambda: not [key for key in disk.stored_keys() if key.startswith(prefix)])

    play(scenario)


def test_frames_of_an_earlier_life_change_nothing(play: Play) -> None:
    """A group's replica 3 is removed and its node gets another one: what was said by, or to, the old one is void."""

    async def scenario(ledgers: Any) -> None:
        cluster = ledgers.cluster
        engine = engine_of(ledgers, "c")
        old = core_of(ledgers, "c").replica_id
        membership = await cluster.nodes["a"].group(GROUP).replace("c", "c")
        new = membership.replica_on("c")
        leader = await ledgers.leader()
        leading = core_of(ledgers, leader)
        await cluster.until(lambda: core_of(ledgers, "c").membership == membership)
        before = [core_of(ledgers, name).status() for name in "abc" if name != leader]
        term, last = leading.term, leading.last_index
        match = leading.progress[new].match
        await receive(
            ledgers,
            leader,
            "c",
            AppendAnswer(True, GROUP, 0, 0, last + 100, old, term, leading.replica_id),
            AppendAnswer(False, GROUP, 0, 0, 1, old, term + 5, leading.replica_id),
            RequestVote(True, GROUP, last + 100, term + 5, old, term + 5, leading.replica_id),
        )
        await receive(
            ledgers,
            "c",
            leader,
            Append(last, GROUP, 1, 1, (), leading.replica_id, term, old),
            RemovedReplica(GROUP, membership.index, old),
            CreateReplica(GROUP, old, "ledger"),
        )
        assert (leading.term, leading.role, leading.progress[new].match) == (term, Role.LEADER, match)
        assert engine.replicas[GROUP].core.replica_id == new
        after = [core_of(ledgers, name).status() for name in "abc" if name != leader]
        assert [one["term"] for one in after] == [one["term"] for one in before]
        assert engine_of(ledgers, leader).counters["removed_sender"] == 3
        assert engine.counters["wrong_replica"] >= 1

    play(scenario)


def test_L24_a_claim_toward_another_replica_is_not_followed(play: Play) -> None:  # noqa: N802
    async def scenario(ledgers: Any) -> None:
        engine = engine_of(ledgers, "c")
        core = core_of(ledgers, "c")
        term = core.term
        await receive(ledgers, "c", "a", LeadDelta(((GROUP, term + 7, core.replica_id + 1),), ()))
        assert core.term == term
        assert engine.replicas[GROUP].core is core

    play(scenario)


@pytest.mark.pure_only  # what leaves a node is caught in the method that sends it
def test_a_voter_that_is_missing_on_its_node_is_not_asked_for(play: Play) -> None:
    """What it promised is lost with it; made anew under its id, it could promise something else."""

    async def scenario(ledgers: Any) -> None:
        cluster = ledgers.cluster
        leader = await ledgers.leader()
        engine = engine_of(ledgers, leader)
        await cluster.until(lambda: core_of(ledgers, leader).membership_known)
        victim = next(name for name in "abc" if name != leader)
        sent: list[Any] = []
        engine.outgoing.urgent = lambda node_id, message: sent.append(message)
        engine.residents.ask_for(engine.replicas[GROUP], victim)
        assert sent == []
        await cluster.run_for(0.0)

    play(scenario)


@pytest.mark.pure_only  # what leaves a node is caught in the method that sends it
def test_a_removed_replica_that_asks_for_votes_is_told(play: Play) -> None:
    async def scenario(ledgers: Any) -> None:
        cluster = ledgers.cluster
        gone = core_of(ledgers, "c").replica_id
        membership = await cluster.nodes["a"].group(GROUP).remove("c")
        leader = await ledgers.leader()
        engine, core = engine_of(ledgers, leader), core_of(ledgers, leader)
        await cluster.until(lambda: core.membership == membership and core.membership_known)
        sent: list[Any] = []
        engine.outgoing.urgent = lambda node_id, message: sent.append(message)
        term = core.term
        engine.incoming.add("c", 1, [PreVote(GROUP, 99, term, gone, term + 1, core.replica_id)])
        engine.incoming.add("c", 1, [RequestVote(True, GROUP, 99, term, gone, term + 1, core.replica_id)])
        engine.incoming.handle(engine.pacing.now())
        assert [type(one) for one in sent] == [RemovedReplica, RemovedReplica]
        assert core.term == term

    play(scenario)


def test_nobody_is_told_to_go_before_a_majority_knows(play: Play) -> None:
    """Whoever knows of the change may be lost, and the others would then need the vote of the one that was removed."""

    async def scenario(ledgers: Any) -> None:
        cluster = ledgers.cluster
        leader = await ledgers.leader()
        core = core_of(ledgers, leader)
        gone, *others = [name for name in "abcd" if name != leader]
        for one in "abcd":
            for other in "abcd":
                cluster.network.delay(one, other, 0.02)
        index = core.membership.index
        change = asyncio.ensure_future(cluster.nodes[leader].group(GROUP).remove(gone))
        await cluster.until(lambda: core.membership.index > index)
        assert not core.membership_known  # committed, and only the leader knows for certain
        for other in others:
            cluster.network.stall(leader, other)
        await cluster.run_for(0.3)
        assert GROUP in engine_of(ledgers, gone).replicas
        cluster.crash(leader)
        cluster.heal()
        await cluster.until(lambda: len(cluster.leaders(GROUP)) == 1, timeout_s=10.0)
        await cluster.insist(lambda: ledgers.services[others[0]].propose(b"k", b"1"))
        await cluster.until(lambda: GROUP not in engine_of(ledgers, gone).replicas, timeout_s=20.0)
        change.cancel()

    play(scenario, names="abcd", replicas=4)


@pytest.mark.pure_only  # what leaves a node is caught in the method that sends it
def test_whoever_asks_is_told_that_it_was_removed_and_no_one_else(play: Play) -> None:
    async def scenario(ledgers: Any) -> None:
        cluster = ledgers.cluster
        gone = core_of(ledgers, "c").replica_id
        membership = await cluster.nodes["a"].group(GROUP).remove("c")
        leader = await ledgers.leader()
        engine = engine_of(ledgers, leader)
        await cluster.until(lambda: core_of(ledgers, leader).membership_known)
        sent: list[tuple[str, Any]] = []
        engine.outgoing.urgent = lambda node_id, message: sent.append((node_id, message))
        for asked in (1, 2, 3, 4):  # two members, the one that was removed, and one not given out yet
            engine.residents.received("c", AskRemoved(GROUP, asked))
        ((node_id, told),) = sent
        assert (node_id, told.replica_id, told.index) == ("c", gone, membership.index)
        other = next(name for name in "ab" if name != leader)
        engine_of(ledgers, other).outgoing.urgent = lambda node_id, message: sent.append((node_id, message))
        engine_of(ledgers, other).residents.received("c", AskRemoved(GROUP, gone))
        assert len(sent) == 1  # a follower cannot know whether enough others know

    play(scenario)


def test_a_later_replica_takes_the_place_of_one_that_never_heard_of_its_removal(play: Play) -> None:
    async def scenario(ledgers: Any) -> None:
        cluster = ledgers.cluster
        leader = await ledgers.leader()
        victim = next(name for name in "abc" if name != leader)
        old = core_of(ledgers, victim).replica_id
        await receive(ledgers, victim, leader, CreateReplica(GROUP, 9, "ledger"))
        await cluster.until(lambda: GROUP in engine_of(ledgers, victim).replicas)
        assert core_of(ledgers, victim).replica_id == 9
        assert engine_of(ledgers, victim).residents.tombstones[GROUP].replica_id == old

    play(scenario)
