"""Many commands at once on whole nodes: from any node, through leader changes, and each with its own outcome."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from multiraft import BytesStateMachine, CommandFailed, InvalidRequest, Limits, Overloaded
from tests.node.test_sessions import LIMITS, all_kept, kept, others

Play = Callable[..., None]
GROUP = 16


class Picky(BytesStateMachine):
    """Keeps every command in order, but those that begin with "no"."""

    def __init__(self) -> None:
        self.kept: list[bytes] = []

    def apply(self, command: bytes) -> bytes:
        if command.startswith(b"no"):
            raise ValueError("not this one")
        self.kept.append(command)
        return b"%d" % len(self.kept)

    def query(self, query: bytes) -> bytes:
        return b" ".join(self.kept)


@pytest.mark.parametrize("session", [False, True])
@pytest.mark.parametrize("here", [True, False])
def test_each_command_has_its_own_outcome_in_order_from_any_node(play: Play, session: bool, here: bool) -> None:
    async def scenario(ledgers: Any) -> None:
        leader, other, _ = await others(ledgers)
        group = ledgers.cluster.nodes[leader if here else other].group(GROUP)
        outcomes = await group.propose_many([b"a", b"no", b"b"], session=session)
        assert outcomes[0::2] == [b"1", b"2"]
        assert isinstance(outcomes[1], CommandFailed)
        assert await group.propose_many([], session=session) == []
        assert await group.propose(b"c", session=session) == b"3"
        await ledgers.cluster.until(lambda: all(kept(ledgers, one) == [b"a", b"b", b"c"] for one in "abc"))

    play(scenario, machine=Picky)


@pytest.mark.parametrize("here", [True, False])
def test_what_is_submitted_is_told_once_and_later(play: Play, here: bool) -> None:
    async def scenario(ledgers: Any) -> None:
        leader, other, _ = await others(ledgers)
        group = ledgers.cluster.nodes[leader if here else other].group(GROUP)
        told: list[Any] = []
        for session in (False, True, True):  # the first one with a session has to begin it
            before = len(told)
            group.submit([b"a", b"no"], told.append, session=session)
            assert len(told) == before
            await ledgers.cluster.until(lambda before=before: len(told) > before)
        assert [outcomes[0] for outcomes in told] == [b"1", b"2", b"3"]
        assert all(isinstance(outcomes[1], CommandFailed) for outcomes in told)
        router = ledgers.cluster.nodes[leader if here else other].router
        assert not router.submitted
        session_here = router.sessions.opened(GROUP)
        assert session_here.lowest == session_here.next == 5

    play(scenario, machine=Picky)


def test_a_batch_longer_than_a_record_comes_in_order(play: Play) -> None:
    async def scenario(ledgers: Any) -> None:
        leader, other, _ = await others(ledgers)
        commands = [b"%03d" % number + b"x" * 400 for number in range(40)]  # about five records
        for name in (leader, other):
            outcomes = await ledgers.cluster.nodes[name].group(GROUP).propose_many(commands, session=True)
            assert [int(outcome) for outcome in outcomes] == sorted(int(outcome) for outcome in outcomes)
        await all_kept(ledgers, 2 * commands)

    play(scenario, limits=Limits(batch_bytes=4096, request_timeout_ms=10_000))


def test_past_the_bound_of_the_node_none_of_it_is_taken(play: Play) -> None:
    async def scenario(ledgers: Any) -> None:
        leader = await ledgers.leader()
        group = ledgers.cluster.nodes[leader].group(GROUP)
        outcomes = await group.propose_many([b"x" * 1000] * 100)
        assert {type(outcome) for outcome in outcomes} == {Overloaded}
        assert await group.propose(b"y") == b"1"
        with pytest.raises(InvalidRequest, match="more than entry_bytes"):
            await group.propose_many([b"a", b"x" * 40_000])
        with pytest.raises(InvalidRequest, match="must be bytes"):
            group.submit([b"a", "b"], print)
        await all_kept(ledgers, [b"y"])

    play(scenario, limits=Limits(pending_bytes=65_536, entry_bytes=32_768, key_bytes=1024))


@pytest.mark.parametrize("wrong", ["text", 5, None, bytearray(b"x"), memoryview(b"x")])
def test_what_is_not_bytes_is_refused_and_the_group_goes_on(play: Play, wrong: Any) -> None:
    """Such a command got as far as the log, where no replica could decode it: the group was lost."""

    async def scenario(ledgers: Any) -> None:
        leader = await ledgers.leader()
        node, service = ledgers.cluster.nodes[leader], ledgers.services[leader]
        calls: list[Callable[[], Awaitable[Any]]] = [
            lambda: service.propose(b"k", wrong),
            lambda: service.propose(b"k", wrong, session=False),
            lambda: service.propose(wrong, b"x"),
            lambda: service.read(b"k", wrong),
            lambda: service.read(b"k", wrong, local=True),
            lambda: service.read_stale(b"k", wrong, 1_000),
        ]
        for call in calls:
            with pytest.raises(InvalidRequest, match="must be bytes, not"):
                await call()
        with pytest.raises((InvalidRequest, TypeError), match=r"must be bytes, not|bytes object expected"):  # compiled
            node._here().engine.propose(GROUP, wrong)
        assert await service.propose(b"k", b"x", session=False) == b"1"
        await all_kept(ledgers, [b"x"])

    play(scenario)


def test_numbered_ones_are_applied_once_when_their_leader_dies(play: Play) -> None:
    async def scenario(ledgers: Any) -> None:
        cluster = ledgers.cluster
        leader, asker, _ = await others(ledgers)
        group = cluster.nodes[asker].group(GROUP)
        await group.propose(b"first", session=True)
        cluster.network.stall(leader, asker)
        commands = [b"%d" % number for number in range(20)]
        call = asyncio.ensure_future(group.propose_many(commands, session=True))
        told: list[Any] = []
        group.submit([b"x", b"y"], told.append, session=True)
        await cluster.until(lambda: len(kept(ledgers, leader)) == 23)
        cluster.crash(leader)
        assert await call == [b"%d" % number for number in range(2, 22)]
        await cluster.until(lambda: bool(told))
        assert told == [[b"22", b"23"]]
        survivors = [name for name in "abc" if name != leader]
        assert all(kept(ledgers, name) == [b"first", *commands, b"x", b"y"] for name in survivors)

    play(scenario, limits=LIMITS)
