"""Sessions on whole nodes: a command is applied once, through lost answers, crashes, leader changes and snapshots."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from multiraft import BytesDiskStateMachine, Limits, Numbered, OutcomeUnknown, ReplyForgotten, SessionExpired
from multiraft.records import SESSION
from multiraft.sessions import HEAD

Play = Callable[..., None]
GROUP = 16


class DiskLedger(BytesDiskStateMachine):
    """Keeps every command in order, on disk."""

    def apply(self, command: bytes) -> bytes:
        count = len(self.kept) + 1
        self.data.put(b"%06d" % count, command)
        return b"%d" % count

    def query(self, query: bytes) -> bytes:
        return b" ".join(self.kept)

    @property
    def kept(self) -> list[bytes]:
        return [command for _, command in self.data.range()]


KINDS = [pytest.param({}, id="in memory"), pytest.param({"machine": DiskLedger}, id="on disk")]
LIMITS = Limits(request_timeout_ms=10_000)


def engine_of(ledgers: Any, name: str) -> Any:
    return ledgers.cluster.nodes[name]._here().engine


def kept(ledgers: Any, name: str) -> list[bytes]:
    """What the replica on a node has applied."""
    machine: Any = ledgers.cluster.nodes[name].local_machine(GROUP)
    return list(machine.kept)


def table_of(ledgers: Any, name: str) -> list[tuple[bytes, bytes]]:
    return list(engine_of(ledgers, name).replicas[GROUP].executor.sessions.pairs())


async def all_kept(ledgers: Any, commands: list[bytes]) -> None:
    """Wait until every replica has applied these, nothing else, and remembers the same sessions."""
    names = list(ledgers.cluster.nodes)
    await ledgers.cluster.until(lambda: all(kept(ledgers, name) == commands for name in names))
    await ledgers.cluster.until(
        lambda: all(table_of(ledgers, name) == table_of(ledgers, names[0]) for name in names), timeout_s=5.0
    )
    assert all(kept(ledgers, name) == commands for name in names)


async def others(ledgers: Any) -> tuple[str, str, str]:
    leader = await ledgers.leader()
    one, two = (name for name in ledgers.cluster.names if name != leader)
    return leader, one, two


# ------------------------------------------------------------------------------------- the answer does not come


def test_a_forwarded_command_whose_answer_is_lost_is_applied_once_and_answered(play: Play) -> None:
    async def scenario(ledgers: Any) -> None:
        cluster = ledgers.cluster
        leader, asker, _ = await others(ledgers)
        await ledgers.services[asker].propose(b"k", b"first")
        cluster.network.stall(leader, asker)
        call = asyncio.ensure_future(ledgers.services[asker].propose(b"k", b"x"))
        await cluster.until(lambda: kept(ledgers, leader) == [b"first", b"x"])
        await cluster.run_for(6.0)  # more than half of the call's time: by then it has been sent again
        assert not call.done()
        cluster.heal()
        assert await call == b"2"
        await all_kept(ledgers, [b"first", b"x"])

    play(scenario, limits=LIMITS)


def test_a_command_that_its_leader_committed_and_died_over_is_answered_by_the_next(play: Play) -> None:
    async def scenario(ledgers: Any) -> None:
        cluster = ledgers.cluster
        leader, asker, _ = await others(ledgers)
        await ledgers.services[asker].propose(b"k", b"first")
        cluster.network.cut(leader, asker)
        call = asyncio.ensure_future(ledgers.services[asker].propose(b"k", b"x"))
        await cluster.until(lambda: kept(ledgers, leader) == [b"first", b"x"])
        cluster.crash(leader)
        cluster.heal()
        assert await call == b"2"
        await all_kept(ledgers, [b"first", b"x"])
        await cluster.start(leader)
        await all_kept(ledgers, [b"first", b"x"])

    play(scenario, limits=LIMITS)


def test_a_leader_that_is_cut_off_hands_its_callers_to_the_next_one(play: Play) -> None:
    """They do not wait for the old log: the same number may be asked of the new leader at once."""

    async def scenario(ledgers: Any) -> None:
        cluster = ledgers.cluster
        leader, one, _ = await others(ledgers)
        await ledgers.services[leader].propose(b"k", b"first")
        cluster.isolate(leader)
        call = asyncio.ensure_future(ledgers.services[leader].propose(b"k", b"x"))
        await cluster.until(lambda: [name for name in cluster.leaders(GROUP) if name != leader] != [])
        await cluster.until(lambda: leader not in cluster.leaders(GROUP))
        assert not call.done()
        assert not [batch for batch in engine_of(ledgers, leader).replicas[GROUP].waiting if not batch.finished]
        assert await ledgers.services[one].propose(b"k", b"between") == b"2"
        cluster.heal()
        assert await call == b"3"
        await all_kept(ledgers, [b"first", b"between", b"x"])

    play(scenario, limits=LIMITS)


def test_without_a_session_a_lost_answer_is_told_and_the_command_sent_once(play: Play) -> None:
    async def scenario(ledgers: Any) -> None:
        cluster = ledgers.cluster
        leader, asker, _ = await others(ledgers)
        cluster.network.cut(leader, asker)
        call = asyncio.ensure_future(ledgers.services[asker].propose(b"k", b"x", session=False))
        await cluster.until(lambda: kept(ledgers, leader) == [b"x"])
        cluster.crash(leader)
        with pytest.raises(OutcomeUnknown):
            await call
        assert engine_of(ledgers, asker).replicas[GROUP].executor.sessions.clients == {}

    play(scenario, limits=LIMITS)


def test_a_group_s_handle_numbers_what_it_is_asked_to(play: Play) -> None:
    async def scenario(ledgers: Any) -> None:
        leader, asker, _ = await others(ledgers)
        group = ledgers.cluster.nodes[asker].group(GROUP)
        assert await group.propose(b"x") == b"1"
        assert engine_of(ledgers, leader).replicas[GROUP].executor.sessions.clients == {}
        assert await group.propose(b"y", session=True) == b"2"
        assert len(engine_of(ledgers, leader).replicas[GROUP].executor.sessions.clients) == 1

    play(scenario)


def test_a_command_of_a_session_may_be_as_large_as_any(play: Play) -> None:
    limits = Limits(entry_bytes=300_000, key_bytes=1_000, request_timeout_ms=3_000)

    async def scenario(ledgers: Any) -> None:
        for name in ledgers.cluster.names:
            await ledgers.services[name].propose(b"k", b"g" * 300_000)
        assert kept(ledgers, await ledgers.leader()) == [b"g" * 300_000] * 3

    play(scenario, limits=limits)


# ------------------------------------------------------------------------------------- replicas come and go


@pytest.mark.parametrize("options", KINDS)
def test_a_copy_is_known_after_all_nodes_were_killed(play: Play, options: dict[str, Any]) -> None:
    async def scenario(ledgers: Any) -> None:
        cluster = ledgers.cluster
        client = await cluster.nodes["a"].open_session("ledger")
        number = Numbered(client, 1, 1)
        assert await ledgers.services["a"].propose(b"k", b"x", session=number) == b"1"
        await all_kept(ledgers, [b"x"])
        cluster.crash()
        await cluster.start()
        await cluster.ready()
        for name in cluster.names:
            assert await ledgers.services[name].propose(b"k", b"x", session=number) == b"1"
        await all_kept(ledgers, [b"x"])

    play(scenario, **options)


@pytest.mark.parametrize("options", KINDS)
@pytest.mark.parametrize("trailing", [0, 2])
def test_a_copy_is_known_to_whoever_was_made_from_a_snapshot(
    play: Play, trailing: int, options: dict[str, Any]
) -> None:
    limits = Limits(request_timeout_ms=10_000, snapshot_entries=5, trailing_entries=trailing)

    async def scenario(ledgers: Any) -> None:
        cluster = ledgers.cluster
        leader, late, other = await others(ledgers)
        client = await cluster.nodes[leader].open_session("ledger")
        number = Numbered(client, 1, 1)
        cluster.isolate(late)
        service = ledgers.services[leader]
        assert await service.propose(b"k", b"x", session=number) == b"1"
        for count in range(20):
            await service.propose(b"k", b"%d" % count)
        cluster.heal()
        commands = [b"x", *[b"%d" % count for count in range(20)]]
        await all_kept(ledgers, commands)
        assert engine_of(ledgers, late).replicas[GROUP].core.log.start.index > 20 - 5
        cluster.nodes[leader].transfer_leadership(GROUP, late)
        await cluster.until(lambda: cluster.leaders(GROUP) == [late])
        assert await ledgers.services[other].propose(b"k", b"x", session=number) == b"1"
        await all_kept(ledgers, commands)
        cluster.crash()
        await cluster.start()
        await cluster.ready()
        assert await ledgers.services[late].propose(b"k", b"x", session=number) == b"1"
        await all_kept(ledgers, commands)

    play(scenario, limits=limits, **options)


# --------------------------------------------------------------------------------------------- a session's end


def test_a_session_ends_by_the_replicated_clock_alike_on_all_replicas(play: Play) -> None:
    limits = Limits(request_timeout_ms=3_000, session_expiry_ms=2_000)

    async def scenario(ledgers: Any) -> None:
        cluster = ledgers.cluster
        client = await cluster.nodes["a"].open_session("ledger")
        service = ledgers.services["a"]
        assert await service.propose(b"k", b"x", session=Numbered(client, 1, 1)) == b"1"
        await cluster.run_for(1.9)
        assert await service.propose(b"k", b"x", session=Numbered(client, 1, 1)) == b"1"
        await cluster.run_for(2.1)
        with pytest.raises(OutcomeUnknown):  # it may have happened, and has
            await service.propose(b"k", b"x", session=Numbered(client, 1, 1))
        with pytest.raises(SessionExpired):
            await service.propose(b"k", b"y", session=Numbered(client, 2, 1, first=True))
        await all_kept(ledgers, [b"x"])

    play(scenario, limits=limits)


def test_a_replica_that_applies_its_log_later_agrees_on_when_a_session_ended(play: Play) -> None:
    limits = Limits(request_timeout_ms=3_000, session_expiry_ms=2_000)

    async def scenario(ledgers: Any) -> None:
        cluster = ledgers.cluster
        leader, late, _ = await others(ledgers)
        client = await cluster.nodes[leader].open_session("ledger")
        service = ledgers.services[leader]
        assert await service.propose(b"k", b"x", session=Numbered(client, 1, 1)) == b"1"
        await cluster.run_for(1.5)
        cluster.crash(late)
        await cluster.start(late)
        await cluster.run_for(1.0)
        with pytest.raises(SessionExpired):
            await service.propose(b"k", b"y", session=Numbered(client, 2, 1, first=True))
        await all_kept(ledgers, [b"x"])

    play(scenario, limits=limits)


def test_a_node_whose_session_has_ended_begins_another_unnoticed(play: Play) -> None:
    limits = Limits(request_timeout_ms=3_000, session_expiry_ms=1_000)

    async def scenario(ledgers: Any) -> None:
        for count in range(1, 4):
            for name in ledgers.cluster.names:
                assert int(await ledgers.services[name].propose(b"k", b"x")) > 0
            assert len(kept(ledgers, await ledgers.leader())) == 3 * count
            await ledgers.cluster.run_for(1.5)

    play(scenario, limits=limits)


def test_bounds_of_the_leader_that_registered_hold_on_every_replica(play: Play) -> None:
    """Nodes may be configured differently, as while a setting is being changed: they forget the same all the same."""

    async def scenario(ledgers: Any) -> None:
        cluster = ledgers.cluster
        leader, other, _ = await others(ledgers)
        engine = engine_of(ledgers, leader)
        engine.limits = Limits(session_reply_bytes=1_024, sessions=2)
        clients = []
        for _ in range(3):
            clients.append(await cluster.nodes[other].open_session("ledger"))
            await cluster.run_for(0.01)
        for sequence in range(1, 31):
            await ledgers.services[other].propose(b"k", b"x", session=Numbered(clients[2], sequence, 1))
        await all_kept(ledgers, [b"x"] * 30)
        sessions = engine_of(ledgers, other).replicas[GROUP].executor.sessions
        assert sorted(sessions.clients) == sorted(clients[1:])
        assert sessions.clients[clients[2]].reply_bytes <= 1_024
        with pytest.raises(ReplyForgotten):
            await ledgers.services[other].propose(b"k", b"x", session=Numbered(clients[2], 2, 1))
        await all_kept(ledgers, [b"x"] * 30)

    play(scenario)


@pytest.mark.pure_only  # what is proposed is caught in the engine's own method
def test_a_copy_that_comes_after_its_caller_has_gone_is_not_applied(play: Play) -> None:
    """The lowest outstanding number passes it: what arrives late, from wherever it was held, changes nothing."""

    async def scenario(ledgers: Any) -> None:
        cluster = ledgers.cluster
        leader, asker, _ = await others(ledgers)
        service = ledgers.services[asker]
        await service.propose(b"k", b"first")
        entries: list[bytes] = []
        engine = engine_of(ledgers, leader)
        propose = engine.propose

        def held(group_id: int, command: bytes, kind: int = 1) -> Any:
            if kind == SESSION and command.endswith(b"lost"):
                entries.append(command)
                return asyncio.get_running_loop().create_future()
            return propose(group_id, command, kind)

        engine.propose = held
        call = asyncio.ensure_future(service.propose(b"k", b"lost"))
        await cluster.until(lambda: entries != [])
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        await service.propose(b"k", b"later")
        with pytest.raises(ReplyForgotten):
            await propose(GROUP, entries[0], SESSION)
        assert HEAD.unpack_from(entries[0])[1:] == (2, 2)
        await all_kept(ledgers, [b"first", b"later"])

    play(scenario)


def test_numbers_begin_anew_with_every_run_of_a_node(play: Play) -> None:
    async def scenario(ledgers: Any) -> None:
        cluster = ledgers.cluster
        for count in range(1, 4):
            assert await ledgers.services["a"].propose(b"k", b"x") == b"%d" % count
            await cluster.restart("a")
            await cluster.ready()
        assert len(engine_of(ledgers, "b").replicas[GROUP].executor.sessions.clients) == 3

    play(scenario)
