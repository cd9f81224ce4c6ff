"""Many calls of one group at once on whole nodes, as servers of remote clients begin them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from multiraft import BytesStateMachine, CommandFailed, InvalidRequest, Limits, NotLeader, Overloaded, ReadFailed
from multiraft.sessions import HEAD
from tests.node.test_sessions import LIMITS, others

Play = Callable[..., None]
GROUP = 16


class Picky(BytesStateMachine):
    """Counts commands; answers queries with themselves, but those that begin with "no"."""

    def __init__(self) -> None:
        self.count = 0

    def apply(self, command: bytes) -> bytes:
        self.count += 1
        return b"%d" % self.count

    def query(self, query: bytes) -> bytes:
        if query.startswith(b"no"):
            raise ValueError("not this one")
        return query + b"%d" % self.count


async def begun(ledgers: Any, name: str, kind: str, bodies: list[bytes]) -> list[Any]:
    """Begin a batch on a node; return its outcomes."""
    told: list[list[Any]] = []
    ledgers.cluster.nodes[name].begin_batch(GROUP, kind, bodies, told.append)
    assert not told
    await ledgers.cluster.until(lambda: bool(told))
    [outcomes] = told
    return outcomes


def test_reads_of_a_batch_each_have_their_own_outcome(play: Play) -> None:
    async def scenario(ledgers: Any) -> None:
        leader = await ledgers.leader()
        assert await begun(ledgers, leader, "propose", [b"x", b"y"]) == [b"1", b"2"]
        for kind in ("read", "lease"):
            outcomes = await begun(ledgers, leader, kind, [b"a", b"no", b"b"])
            assert outcomes[0::2] == [b"a2", b"b2"]
            assert isinstance(outcomes[1], CommandFailed)

    play(scenario, machine=Picky)


def test_reads_whose_leader_is_cut_off_all_fail(play: Play) -> None:
    async def scenario(ledgers: Any) -> None:
        leader, *rest = await others(ledgers)
        ledgers.cluster.network.partition([leader], rest)
        outcomes = await begun(ledgers, leader, "read", [b"a", b"b"])
        assert all(isinstance(outcome, ReadFailed | NotLeader) for outcome in outcomes)
        assert len(outcomes) == 2

    play(scenario, machine=Picky, limits=LIMITS)


def test_who_does_not_lead_begins_nothing(play: Play) -> None:
    async def scenario(ledgers: Any) -> None:
        leader, other, _ = await others(ledgers)
        for kind in ("propose", "numbered", "read", "lease", "register"):
            with pytest.raises(NotLeader) as refused:
                ledgers.cluster.nodes[other].begin_batch(GROUP, kind, [b"x"], print)
            assert refused.value.leader == leader

    play(scenario, machine=Picky)


def test_one_that_is_too_large_or_too_much_fails_alone(play: Play) -> None:
    async def scenario(ledgers: Any) -> None:
        leader = await ledgers.leader()
        outcomes = await begun(ledgers, leader, "propose", [b"a", b"x" * 40_000, b"b"])
        assert outcomes[0::2] == [b"1", b"2"]
        assert isinstance(outcomes[1], InvalidRequest)
        outcomes = await begun(ledgers, leader, "propose", [b"x" * 30_000] * 3)
        assert [type(outcome) for outcome in outcomes] == [bytes, bytes, Overloaded]

    play(scenario, machine=Picky, limits=Limits(pending_bytes=65_536, entry_bytes=32_768, key_bytes=1024))


def test_a_session_is_registered_and_its_commands_are_applied_once(play: Play) -> None:
    async def scenario(ledgers: Any) -> None:
        leader = await ledgers.leader()
        client = b"c" * 16
        assert await begun(ledgers, leader, "register", [client]) == [b""]
        entries = [HEAD.pack(client, sequence, 1) + b"x" for sequence in (1, 2)]
        assert await begun(ledgers, leader, "numbered", entries) == [b"1", b"2"]
        outcomes = await begun(ledgers, leader, "numbered", [*entries, b"junk"])
        assert outcomes[:2] == [b"1", b"2"]
        assert isinstance(outcomes[2], InvalidRequest)

    play(scenario, machine=Picky)
