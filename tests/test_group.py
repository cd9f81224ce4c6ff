"""The group handle: bytes through to the leader, hooks, and a membership that can be watched."""

from __future__ import annotations

import logging
from collections.abc import Callable, Coroutine
from contextlib import aclosing
from typing import Any

import pytest

from multiraft.config import Limits
from multiraft.consistency import Consistency
from multiraft.errors import InvalidRequest, NotReady
from multiraft.group import CallKind, Group, GroupHost
from multiraft.outcome import Outcome
from multiraft.types import GroupId, Membership, NodeId, founding_membership


class Host:
    """A node with one replica, led as the test says."""

    def __init__(self) -> None:
        self.limits = Limits(entry_bytes=100, key_bytes=10)
        self.calls: list[tuple[GroupId, str, bytes, float | None]] = []
        self.chosen: list[tuple[GroupId, bytes, Consistency, float | None]] = []
        self.many: list[tuple[GroupId, list[bytes], bool, float | None]] = []
        self.leading = False
        self.current: Membership | None = founding_membership(("a", "b", "c"))
        self.membership_watchers: list[Callable[[Membership], None]] = []
        self.role_watchers: list[Callable[[bool], None]] = []
        self.applied_watchers: list[Callable[[], None]] = []

    @property
    def router(self) -> Host:
        return self

    async def call_many(
        self, group_id: GroupId, commands: list[bytes], session: bool, timeout_s: float | None
    ) -> list[Outcome]:
        self.many.append((group_id, commands, session, timeout_s))
        return [b"done"] * len(commands)

    def submit(
        self,
        group_id: GroupId,
        commands: list[bytes],
        session: bool,
        timeout_s: float | None,
        done: Callable[[list[Outcome]], None],
    ) -> None:
        self.many.append((group_id, commands, session, timeout_s))
        done([b"done"] * len(commands))

    def read(self, group_id: GroupId, query: bytes, timeout_s: float | None) -> Coroutine[Any, Any, bytes]:
        return self.call(group_id, "read", query, timeout_s)

    async def read_many(self, group_id: GroupId, queries: list[bytes], timeout_s: float | None) -> list[Outcome]:
        return await self.call_many(group_id, queries, False, timeout_s)

    async def _answer(self) -> bytes:
        return b"done"

    def call(
        self, group_id: GroupId, kind: CallKind, body: bytes, timeout_s: float | None
    ) -> Coroutine[Any, Any, bytes]:
        self.calls.append((group_id, kind, body, timeout_s))
        return self._answer()

    async def read_as(
        self, group_id: GroupId, query: bytes, how: Consistency, timeout_s: float | None
    ) -> tuple[bytes, float]:
        self.chosen.append((group_id, query, how, timeout_s))
        return b"seen", 12.5

    def leads(self, group_id: GroupId) -> bool:
        return self.leading

    def leader(self, group_id: GroupId) -> NodeId | None:
        return "a" if self.leading else None

    def membership(self, group_id: GroupId, latest: bool = False) -> Membership:
        if self.current is None:
            raise NotReady(f"this node has no replica of group {group_id}")
        return self.current

    def subscribe_membership(self, group_id: GroupId, changed: Callable[[Membership], None]) -> Callable[[], None]:
        self.membership(group_id)
        self.membership_watchers.append(changed)
        return lambda: self.membership_watchers.remove(changed)

    def subscribe_role(self, group_id: GroupId, changed: Callable[[bool], None]) -> Callable[[], None]:
        self.role_watchers.append(changed)
        return lambda: self.role_watchers.remove(changed)

    def subscribe_applied(self, group_id: GroupId, applied: Callable[[], None]) -> Callable[[], None]:
        self.applied_watchers.append(applied)
        return lambda: self.applied_watchers.remove(applied)

    def set_membership(self, index: int) -> Membership:
        assert self.current is not None
        self.current = Membership(index, self.current.voters, self.current.nodes, self.current.next_replica_id)
        for watcher in list(self.membership_watchers):
            watcher(self.current)
        return self.current

    def set_leading(self, leading: bool) -> None:
        self.leading = leading
        for watcher in list(self.role_watchers):
            watcher(leading)


@pytest.fixture
def host() -> Host:
    return Host()


@pytest.fixture
def group(host: Host) -> Group:
    port: GroupHost = host
    return Group(17, port)


async def test_commands_and_queries_go_to_the_leader(host: Host, group: Group) -> None:
    assert await group.propose(b"command") == b"done"
    assert await group.read(b"query", 0.5) == b"done"
    assert host.calls == [(17, "propose", b"command", None), (17, "read", b"query", 0.5)]
    assert repr(group) == "<group 17>"


async def test_many_commands_are_checked_at_once_and_go_together(host: Host, group: Group) -> None:
    assert await group.propose_many([b"x", b"y"], 0.5, session=True) == [b"done", b"done"]
    told: list[list[Outcome]] = []
    group.submit((b"z",), told.append)
    assert told == [[b"done"]]
    assert host.many == [(17, [b"x", b"y"], True, 0.5), (17, [b"z"], False, None)]
    assert await group.read_many((b"q",)) == [b"done"]
    assert host.many.pop() == (17, [b"q"], False, None)
    wrong: list[Any] = [b"x", [b"x", "y"], [b"x" * 101], [bytearray(b"x")]]
    for commands in wrong:
        with pytest.raises(InvalidRequest, match="query"):
            await group.read_many(commands)
        with pytest.raises(InvalidRequest):
            await group.propose_many(commands)
        with pytest.raises(InvalidRequest):
            group.submit(commands, told.append)
    for timeout_s in (0.0, -1.0):
        with pytest.raises(InvalidRequest, match="timeout_s"):
            await group.propose_many([], timeout_s)
        with pytest.raises(InvalidRequest, match="timeout_s"):
            await group.read_many([], timeout_s)
    assert len(host.many) == 2


async def test_other_kinds_of_reads_are_chosen_by_call(host: Host, group: Group) -> None:
    assert await group.read(b"query", lease=True) == b"seen"
    assert await group.read(b"query", 0.5, local=True) == b"seen"
    assert await group.read_stale(b"query", 500) == (b"seen", 12.5)
    assert host.chosen == [
        (17, b"query", Consistency(lease=True), None),
        (17, b"query", Consistency(local=True), 0.5),
        (17, b"query", Consistency(stale_ms=500), None),
    ]
    assert host.calls == []


@pytest.mark.parametrize("stale_ms", [-1, 0.5, True, 24 * 3_600_000 + 1])
def test_an_age_that_is_none_is_refused_at_once(group: Group, stale_ms: Any) -> None:
    with pytest.raises(InvalidRequest, match="stale_ms"):
        _ = group.read_stale(b"query", stale_ms)


def test_options_that_contradict_each_other_are_refused_at_once(group: Group) -> None:
    with pytest.raises(InvalidRequest, match="lease: only the leader has one"):
        _ = group.read(b"query", lease=True, local=True)
    with pytest.raises(InvalidRequest, match="local = 1"):
        _ = group.read(b"query", local=1)  # type: ignore[arg-type]
    with pytest.raises(InvalidRequest, match="a query of 101 bytes"):
        _ = group.read_stale(b"x" * 101, 500)


@pytest.mark.parametrize(
    ("body", "timeout_s", "words"),
    [
        ("text", None, "the command must be bytes, not str"),
        (bytearray(b"x"), None, "must be bytes, not bytearray"),
        (b"x" * 101, None, "a command of 101 bytes is more than entry_bytes = 100"),
        (b"x", 0.0, "timeout_s = 0.0"),
        (b"x", -1.0, "timeout_s = -1.0"),
        (b"x", float("nan"), "timeout_s = nan"),
    ],
)
async def test_what_cannot_be_sent_is_refused(
    host: Host, group: Group, body: Any, timeout_s: float | None, words: str
) -> None:
    with pytest.raises(InvalidRequest) as refused:
        await group.propose(body, timeout_s)
    assert words in str(refused.value)
    assert host.calls == []
    assert await group.propose(b"x" * 100) == b"done"


async def test_the_membership_is_there_and_can_be_watched(host: Host, group: Group) -> None:
    first = group.membership()
    watching = aiter(group.watch_membership())
    assert await anext(watching) == first
    second = host.set_membership(5)
    assert await anext(watching) == second
    host.set_membership(6)
    newest = host.set_membership(7)
    assert await anext(watching) == newest
    assert len(host.membership_watchers) == 1


async def test_a_watcher_that_leaves_is_forgotten(host: Host, group: Group) -> None:
    async with aclosing(group.watch_membership()) as watching:
        async for _ in watching:
            assert len(host.membership_watchers) == 1
            break
    assert host.membership_watchers == []


async def test_without_a_replica_there_is_no_membership(host: Host, group: Group) -> None:
    host.current = None
    with pytest.raises(NotReady):
        group.membership()
    with pytest.raises(NotReady):
        await anext(aiter(group.watch_membership()))


def test_hooks_hear_of_their_half(host: Host, group: Group) -> None:
    heard: list[str] = []
    end_leader = group.on_leader(lambda: heard.append("leader"))
    end_follower = group.on_follower(lambda: heard.append("follower"))
    assert heard == []
    for leading in (True, False, True):
        host.set_leading(leading)
    assert heard == ["leader", "follower", "leader"]
    assert group.leader == "a"
    group.on_leader(lambda: heard.append("already"))
    assert heard[-1] == "already"
    end_leader()
    end_follower()
    host.set_leading(False)
    assert heard[-1] == "already"
    assert group.leader is None


def test_a_hook_that_raises_is_logged(host: Host, group: Group, caplog: pytest.LogCaptureFixture) -> None:
    heard: list[str] = []

    def broken() -> None:
        raise ValueError("broken hook")

    group.on_leader(broken)
    group.on_leader(lambda: heard.append("leader"))
    with caplog.at_level(logging.ERROR):
        host.set_leading(True)
    assert heard == ["leader"]
    assert "group 17" in caplog.text
    assert "broken hook" in caplog.text


def test_what_is_applied_is_told_until_nobody_wants_to_know(
    host: Host, group: Group, caplog: pytest.LogCaptureFixture
) -> None:
    heard: list[str] = []

    def broken() -> None:
        raise ValueError("broken hook")

    ends = [group.on_applied(broken), group.on_applied(lambda: heard.append("applied"))]
    with caplog.at_level(logging.ERROR):
        for watcher in host.applied_watchers:
            watcher()
    assert heard == ["applied"]
    assert "broken hook" in caplog.text
    for end in ends:
        end()
    assert host.applied_watchers == []
