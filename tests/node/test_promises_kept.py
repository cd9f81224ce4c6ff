"""What a whole node must not do, though each of its parts could: answer, vote, found or forget too early.

The scenarios stop at the one moment at which the promise in question would be broken.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable
from math import inf
from random import Random
from typing import Any

import pytest

from multiraft import Limits, Node, NotCommitted, NotLeader, OutcomeUnknown, StorageError
from multiraft.forming import Forming
from multiraft.gathered import Acks, Appends
from multiraft.messages import AppendAnswer, Form, RequestVote
from multiraft.raft import Role
from multiraft.records import COMMANDS, encode_record
from multiraft.storage import MemoryDisk, open_memory
from multiraft.testing import MemoryCluster, run_virtual
from multiraft.types import DIRECTORY_GROUP

Play = Callable[..., None]
GROUP = 16


def engine_of(ledgers: Any, name: str) -> Any:
    return ledgers.cluster.nodes[name]._here().engine


def core_of(ledgers: Any, name: str) -> Any:
    return engine_of(ledgers, name).replicas[GROUP].core


async def roles(ledgers: Any) -> tuple[str, str, str]:
    """Return the leader and its two followers, once these follow it and hold its whole log."""
    leader = await ledgers.leader()
    one, other = (name for name in ledgers.cluster.names if name != leader)
    core, followers = core_of(ledgers, leader), [core_of(ledgers, one), core_of(ledgers, other)]
    await ledgers.cluster.until(
        lambda: (
            core.can_read()
            and all(follower.leader == core.replica_id for follower in followers)
            and all(peer.match == core.last_index for peer in core.progress.values())
        )
    )
    return leader, one, other


def receive(ledgers: Any, name: str, sender: str, message: Any) -> None:
    """Have node `name` receive a message on its connection from node `sender`."""
    engine_of(ledgers, name).messages_received(sender, 1, [message])


# ------------------------------------------------------------------------------------------------------------ reads


def test_a_leader_cut_off_answers_no_read_from_its_past(play: Play) -> None:
    async def scenario(ledgers: Any) -> None:
        leader, *_ = await roles(ledgers)
        ledgers.cluster.isolate(leader)
        asked = engine_of(ledgers, leader).read(GROUP, b"")
        with pytest.raises(NotCommitted):
            await asked

    play(scenario)


def test_a_deposed_leader_refuses_its_waiting_reads_at_once(play: Play) -> None:
    """Not only when their time runs out: the caller may ask the new leader meanwhile."""

    async def scenario(ledgers: Any) -> None:
        leader, *_ = await roles(ledgers)
        ledgers.cluster.isolate(leader)
        asked = engine_of(ledgers, leader).read(GROUP, b"")
        await ledgers.cluster.until(lambda: core_of(ledgers, leader).role is not Role.LEADER)
        await ledgers.cluster.run_for(0.001)
        assert asked.done()
        with pytest.raises(NotLeader):
            await asked

    play(scenario, limits=Limits(request_timeout_ms=60_000))


def test_a_read_sees_what_was_committed_before_it(play: Play) -> None:
    """The followers have committed it, and this leader's own disk, without which it applies nothing, is slow."""

    async def scenario(ledgers: Any) -> None:
        leader, *_ = await roles(ledgers)
        disk, core = ledgers.cluster.disks[leader], core_of(ledgers, leader)
        disk.hold_writes()
        call = engine_of(ledgers, leader).propose(GROUP, b"x")
        before = core.commit
        await ledgers.cluster.until(lambda: core.commit > before)
        asked = engine_of(ledgers, leader).read(GROUP, b"")
        await ledgers.cluster.run_for(0.5)
        assert not asked.done()
        disk.release()
        assert (await asked, await call) == (b"x", b"1")

    play(scenario)


def test_a_read_joins_no_round_that_was_asked_before_it_came(play: Play) -> None:
    """The answers to that round's beats say nothing about the time between their sending and the read."""

    async def scenario(ledgers: Any) -> None:
        leader, *followers = await roles(ledgers)
        for name in followers:
            ledgers.cluster.network.delay(leader, name, 0.1)
            ledgers.cluster.network.delay(name, leader, 0.1)
        await ledgers.cluster.run_for(1.0)  # what was sent without the delay has come
        early = engine_of(ledgers, leader).read(GROUP, b"")
        await ledgers.cluster.run_for(0.15)  # both followers have answered, and their answers are on the way
        late = engine_of(ledgers, leader).read(GROUP, b"")
        await early
        await ledgers.cluster.run_for(0.05)
        assert not late.done()
        await late

    play(scenario)


def test_a_caller_whose_command_was_replaced_is_told_that_it_did_not_happen(play: Play) -> None:
    """Its index holds another's command by then: neither that one's result nor silence is an answer."""

    async def scenario(ledgers: Any) -> None:
        cluster = ledgers.cluster
        old, *others = await roles(ledgers)
        cluster.isolate(old)
        replaced = engine_of(ledgers, old).propose(GROUP, b"lost")
        await cluster.until(lambda: any(cluster.nodes[name].leads(GROUP) for name in others))
        await cluster.insist(functools.partial(ledgers.services[others[0]].propose, b"k", b"kept"))
        cluster.heal()
        async with asyncio.timeout(5.0):
            with pytest.raises(NotCommitted):
                await replaced

    play(scenario, limits=Limits(request_timeout_ms=60_000))


# --------------------------------------------------------------------------------------------- votes and messages


def test_a_restarted_voter_helps_nobody_within_its_first_election_timeout(play: Play) -> None:
    """L13: it may have acknowledged, before it went down, that somebody leads."""

    async def scenario(ledgers: Any) -> None:
        leader, voter, rival = await roles(ledgers)
        cluster = ledgers.cluster
        cluster.crash(voter)
        cluster.network.cut(leader, voter)  # so that nothing else keeps it loyal
        await cluster.start(voter)
        core = core_of(ledgers, voter)
        before = core.term, core.vote
        ask = RequestVote(False, GROUP, 99, 99, core_of(ledgers, rival).replica_id, core.term + 1, core.replica_id)
        receive(ledgers, voter, rival, ask)
        await cluster.run_for(0.5)
        assert (core.term, core.vote) == before
        cluster.heal()

    play(scenario)


def test_L02_a_vote_that_raises_the_term_refuses_the_leaders_claim(play: Play) -> None:  # noqa: N802
    """The leader hears of it with the next beat, though it has nothing to append, and nobody campaigns yet."""

    async def scenario(ledgers: Any) -> None:
        leader, voter, rival = await roles(ledgers)
        core = core_of(ledgers, voter)
        term = core_of(ledgers, leader).term
        ask = RequestVote(True, GROUP, 0, 0, core_of(ledgers, rival).replica_id, term + 1, core.replica_id)
        receive(ledgers, voter, rival, ask)
        await ledgers.cluster.run_for(0.3)
        assert (core.term, core.vote) == (term + 1, 0)
        assert (core_of(ledgers, leader).term, core_of(ledgers, leader).role) == (term + 1, Role.FOLLOWER)

    play(scenario)


def test_a_message_in_another_nodes_name_is_dropped(play: Play) -> None:
    async def scenario(ledgers: Any) -> None:
        leader, one, other = await roles(ledgers)
        core = core_of(ledgers, leader)
        for name in (one, other):
            ledgers.cluster.disks[name].hold_writes()
        call = engine_of(ledgers, leader).propose(GROUP, b"x")
        await ledgers.cluster.run_for(0.1)
        forged = AppendAnswer(
            True, GROUP, 0, 0, core.last_index, core_of(ledgers, other).replica_id, core.term, core.replica_id
        )
        receive(ledgers, leader, one, forged)
        await ledgers.cluster.run_for(0.1)
        assert not call.done()
        assert engine_of(ledgers, leader).counters["forged_sender"] == 1
        receive(ledgers, leader, other, forged)  # the same words from whom they name
        assert await call == b"1"

    play(scenario)


def test_a_row_in_another_nodes_name_is_dropped(play: Play) -> None:
    """What is said of many groups at once is judged row by row, like single messages."""

    async def scenario(ledgers: Any) -> None:
        leader, one, other = await roles(ledgers)
        core, follower = core_of(ledgers, leader), core_of(ledgers, one)
        for name in (one, other):
            ledgers.cluster.disks[name].hold_writes()
        call = engine_of(ledgers, leader).propose(GROUP, b"x")
        await ledgers.cluster.run_for(0.1)
        forged = Acks([(GROUP, core.last_index, core_of(ledgers, other).replica_id, core.term, core.replica_id)])
        last = follower.last_index
        record = encode_record(GROUP, last + 1, core.term, core.term, COMMANDS, 0, [b"forged"])
        row = (last, GROUP, last, core.term, core.replica_id, core.term, follower.replica_id)
        receive(ledgers, leader, one, forged)
        receive(ledgers, one, other, Appends([record], [row]))
        await ledgers.cluster.run_for(0.1)
        assert not call.done()
        assert follower.last_index == last
        assert [engine_of(ledgers, name).counters["forged_sender"] for name in (leader, one)] == [1, 1]
        receive(ledgers, leader, other, forged)  # the same words from whom they name
        assert await call == b"1"

    play(scenario)


def test_whoever_acknowledges_late_is_told_of_the_commit_by_a_message_of_its_own(play: Play) -> None:
    async def scenario(ledgers: Any) -> None:
        leader, late, early = await roles(ledgers)
        ledgers.cluster.disks[late].hold_writes()
        assert await engine_of(ledgers, leader).propose(GROUP, b"x") == b"1"
        await ledgers.cluster.until(lambda: ledgers.kept(early) == [b"x"], timeout_s=0.1)
        ledgers.cluster.disks[late].release()
        await ledgers.cluster.until(lambda: ledgers.kept(late) == [b"x"], timeout_s=0.1)

    play(scenario)


def test_a_failed_write_ends_the_node_in_good_time(play: Play) -> None:
    async def scenario(ledgers: Any) -> None:
        leader, *_ = await roles(ledgers)
        node = ledgers.cluster.nodes[leader]
        ledgers.cluster.disks[leader].fail_next_write(OSError(5, "Input/output error"))
        call = engine_of(ledgers, leader).propose(GROUP, b"x")
        async with asyncio.timeout(0.1):
            with pytest.raises(StorageError, match="Input/output error"):
                await node.failed()
        del ledgers.cluster.nodes[leader]
        with pytest.raises(OutcomeUnknown):
            await call

    play(scenario)


def test_what_was_acknowledged_is_on_two_disks_at_that_very_moment(play: Play) -> None:
    """The power fails everywhere as soon as the caller has its answer, and the leader does not come back."""

    async def scenario(ledgers: Any) -> None:
        cluster = ledgers.cluster
        for round_number in range(4):
            leader, *followers = await roles(ledgers)
            cluster.disks[leader].delay_s = lambda: 0.001
            for name in followers:
                cluster.disks[name].delay_s = lambda: 0.02
            command = b"x%d" % round_number
            await engine_of(ledgers, leader).propose(GROUP, command)
            cluster.crash()
            for name in followers:
                await cluster.start(name)
            await cluster.until(lambda: len(cluster.leaders(GROUP)) == 1)
            service = ledgers.services[followers[0]]
            kept = await cluster.insist(functools.partial(service.read, b"k", b""))
            assert command in kept.split()
            await cluster.start(leader)

    play(scenario)


# --------------------------------------------------------------------------------------- always someone responsible


def test_L19_the_sweep_finds_a_replica_that_nobody_is_responsible_for(play: Play) -> None:  # noqa: N802
    """No way into that state is known, so the test makes it: cut off, no leader, and no deadline."""

    async def scenario(ledgers: Any) -> None:
        _, lost, _ = await roles(ledgers)
        ledgers.cluster.isolate(lost)
        engine, core = engine_of(ledgers, lost), core_of(ledgers, lost)
        await ledgers.cluster.until(lambda: core.role is not Role.FOLLOWER)
        core.step_down(engine.pacing.now())
        core.deadline = inf
        engine.note(engine.replicas[GROUP], engine.pacing.now())
        await ledgers.cluster.until(lambda: core.role is not Role.FOLLOWER, timeout_s=3.0)
        assert engine.counters["audit_repairs"] == 1

    play(scenario, limits=Limits(sweep_ms=1_000))


def test_L21_a_leader_that_steps_down_takes_back_its_claim(play: Play) -> None:  # noqa: N802
    """Its followers elect another at once: they do not wait for its node to fall silent."""

    async def scenario(ledgers: Any) -> None:
        leader, one, other = await roles(ledgers)
        engine, core = engine_of(ledgers, leader), core_of(ledgers, leader)
        term = core.term
        core.step_down(engine.pacing.now())
        engine.note(engine.replicas[GROUP], engine.pacing.now())
        assert engine.liveness.claimed_term(GROUP) == 0
        followers = [core_of(ledgers, name) for name in (one, other)]
        await ledgers.cluster.until(
            lambda: any(core.role is Role.LEADER and core.term > term for core in followers), timeout_s=0.9
        )

    play(scenario)


# --------------------------------------------------------------------------------------------------------- founding


def test_a_new_replica_takes_part_only_when_its_creation_is_on_disk() -> None:
    """Else it might vote, lose that vote with its creation in a crash, and be created and vote once more."""

    def declare(node: Node) -> None:
        del node

    async def main() -> None:
        async with MemoryCluster(declare) as cluster:
            engine = cluster.nodes["c"]._here().engine
            cluster.disks["c"].hold_writes()
            await cluster.until(lambda: len(cluster.leaders(DIRECTORY_GROUP)) == 1)
            await cluster.run_for(5.0)
            assert engine.replicas == {}
            cluster.disks["c"].release()
            await cluster.until(lambda: cluster.nodes["c"].leader(DIRECTORY_GROUP) is not None)

    run_virtual(main())


def forming_on(disk: MemoryDisk, name: str, members: str) -> tuple[Forming, list[Any], list[Any]]:
    """Return a node's part in the forming, what it sends, and what it takes for formed."""
    sent: list[Any] = []
    formed: list[Any] = []
    store = open_memory(disk, name, Limits(), asyncio.get_running_loop())

    def send(node_id: str, message: Any) -> bool:
        sent.append((node_id, message))
        return True

    return Forming(store, members, Random(1), send, formed.append), sent, formed


def test_a_member_answers_an_offer_only_when_it_is_synced() -> None:
    async def main() -> None:
        disk = MemoryDisk()
        forming, sent, formed = forming_on(disk, "b", "ab")
        mine = forming._store.identity.store_id
        disk.fail_next_write(OSError(5, "Input/output error"))
        with pytest.raises(StorageError):
            forming.received("a", Form(b"c" * 16, (("a", b"s"), ("b", mine))))
        assert (sent, formed) == ([], [])

    run_virtual(main())


def test_the_proposer_syncs_the_cluster_before_it_is_known_to_anybody() -> None:
    async def main() -> None:
        disk = MemoryDisk()
        forming, sent, formed = forming_on(disk, "a", "ab")
        disk.fail_next_write(OSError(5, "Input/output error"))
        with pytest.raises(StorageError):
            forming.unformed_peer("b", b"store-b")
        assert (sent, formed) == ([], [])

    run_virtual(main())
