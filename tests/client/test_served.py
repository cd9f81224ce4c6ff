"""One client as its node sees it: what is begun of a frame, how the outcomes go back, and what a client may not do."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

import msgpack
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from multiraft.client import frames, served
from multiraft.client.frames import Batch
from multiraft.client.served import AGE, ServedClient
from multiraft.config import Limits
from multiraft.consistency import Consistency
from multiraft.errors import (
    MultiRaftError,
    NotLeader,
    NotReady,
    NotRunning,
    OutcomeUnknown,
    Overloaded,
    ReadFailed,
    WireError,
)
from multiraft.group import CallKind
from multiraft.outcome import Outcome
from tests.client.playing import shard_map

Done = Callable[[list[Outcome]], None]


class FakeNode:
    """Leads group 16, and answers what the test has it answer."""

    node_id = "a"
    limits = Limits()

    def __init__(self) -> None:
        self.begun: list[tuple[int, str, list[bytes], Done]] = []
        self.called: list[tuple[int, str, bytes, float | None]] = []
        self.read: list[tuple[int, bytes, Consistency]] = []
        self.running = True
        self.outcome: bytes | Exception = b"done"

    def cluster_key(self) -> bytes:
        return b"c" * 16

    @property
    def shard_map(self) -> Any:
        if not self.running:
            raise NotRunning("stopped")
        return shard_map()

    def leader(self, group_id: int) -> str | None:
        return "a" if group_id == 16 else None

    def begin_batch(self, group_id: int, kind: CallKind, bodies: list[bytes], done: Done) -> None:
        if not self.running:
            raise NotRunning("stopped")
        if group_id != 16:
            raise NotLeader(group_id, "b")
        self.begun.append((group_id, kind, list(bodies), done))

    async def call(self, group_id: int, kind: CallKind, body: bytes, timeout_s: float | None) -> bytes:
        self.called.append((group_id, kind, body, timeout_s))
        if isinstance(self.outcome, Exception):
            raise self.outcome
        return self.outcome + body

    async def read_as(
        self, group_id: int, query: bytes, how: Consistency, timeout_s: float | None
    ) -> tuple[bytes, float]:
        self.read.append((group_id, query, how))
        return b"answer", 12.5

    def on_call(self, method: str, handler: Callable[[bytes], bytes]) -> None:
        raise AssertionError("a served client registers nothing")

    async def peer_call(self, node_id: str, method: str, body: bytes, timeout_s: float) -> bytes:
        raise AssertionError("a served client asks no peers")


async def no_urls() -> dict[str, str]:
    return {"a": "http://a"}


class Served:
    def __init__(self) -> None:
        self.node = FakeNode()
        self.woken = asyncio.Event()
        self.client = ServedClient(self.node, self.woken.set, self.woken.set, no_urls)

    def send(self, *batches: Batch) -> None:
        self.client.received(frames.calls(batches))

    def heard(self) -> list[tuple[int, int, list[Any]]]:
        """Return the parts of the next frame; errors as errors."""
        frame = self.client.next_frame()
        if frame is None:
            return []
        answer = frames.read_answer(frame)
        assert isinstance(answer, tuple)
        return [
            (part[0], part[1], [o if type(o) is bytes else frames.error_of(o, read=False) for o in part[2]])
            for part in answer[1]  # type: ignore[union-attr]
        ]

    async def hears(self) -> list[tuple[int, int, list[Any]]]:
        """Wait for the next frame."""
        while not (parts := self.heard()):
            self.woken.clear()
            await self.woken.wait()
        return parts


def batch(
    batch_id: int = 1,
    group_id: int = 16,
    kind: int = frames.NUMBERED,
    argument: int = 0,
    bodies: Sequence[bytes] = (b"x", b"y"),
) -> Batch:
    return Batch(batch_id, group_id, kind, argument, 5_000, list(bodies))


async def test_a_batch_is_begun_at_once_and_answered_at_once() -> None:
    it = Served()
    it.send(batch())
    [(group_id, kind, bodies, done)] = it.node.begun
    assert (group_id, kind, bodies) == (16, "numbered", [b"x", b"y"])
    assert it.heard() == []
    done([b"1", Overloaded("no")])
    [(batch_id, first, [result, error])] = it.heard()
    assert (batch_id, first, result) == (1, 0, b"1")
    assert isinstance(error, Overloaded)
    assert it.client.in_flight == it.client.unread_bytes == 0


async def test_the_answers_of_a_turn_leave_in_one_frame() -> None:
    it = Served()
    it.send(batch(1), batch(2, kind=frames.READ))
    it.send(batch(3))
    for _, _, _, done in it.node.begun:
        done([b"", b""])
    assert [part[0] for part in it.heard()] == [1, 2, 3]
    assert it.heard() == []


async def test_who_does_not_lead_says_who_does_once_for_the_whole_batch() -> None:
    it = Served()
    it.send(batch(group_id=17))
    [(_, first, [error])] = it.heard()
    assert first == -1
    assert isinstance(error, NotLeader)
    assert error.leader == "b"
    assert it.client.in_flight == 0


@pytest.mark.parametrize(
    ("kind", "argument", "asked"),
    [
        (frames.NUMBERED, frames.ANYBODY, "numbered"),
        (frames.NUMBERED, frames.ANYBODY | frames.FIRST, "numbered first"),
        (frames.READ, frames.ANYBODY, "read"),
        (frames.REGISTER, frames.ANYBODY | frames.FIRST, "register"),
    ],
)
async def test_who_is_asked_to_asks_the_leader_itself(kind: int, argument: int, asked: str) -> None:
    it = Served()
    it.send(batch(group_id=17, kind=kind, argument=argument, bodies=[b"x"]))
    [(_, first, outcomes)] = await it.hears()
    assert it.node.called == [(17, asked, b"x", 5.0)]
    assert (first, outcomes) == (0, [b"donex"])


async def test_calls_that_are_passed_on_end_one_by_one() -> None:
    it = Served()
    it.send(batch(group_id=17, argument=frames.ANYBODY))
    parts: list[tuple[int, int, list[Any]]] = []
    while len(parts) < 2:
        parts += await it.hears()
    assert sorted(parts) == [(1, 0, [b"donex"]), (1, 1, [b"doney"])]


@pytest.mark.parametrize(
    ("problem", "told"), [(NotReady("no"), NotReady), (ZeroDivisionError("a bug"), OutcomeUnknown)]
)
async def test_whatever_a_call_ends_with_is_told(problem: Exception, told: type[Exception]) -> None:
    it = Served()
    it.node.outcome = problem
    it.send(batch(group_id=17, argument=frames.ANYBODY, bodies=[b"x"]))
    [(_, _, [error])] = await it.hears()
    assert type(error) is told


@pytest.mark.parametrize(("argument", "how"), [(-1, Consistency(local=True)), (250, Consistency(stale_ms=250))])
async def test_a_near_read_says_how_old_its_answer_is(argument: int, how: Consistency) -> None:
    it = Served()
    it.send(batch(kind=frames.NEAR, argument=argument, bodies=[b"q"]))
    [(_, _, outcomes)] = await it.hears()
    assert outcomes == [AGE.pack(12.5) + b"answer"]
    assert it.node.read == [(16, b"q", how)]


async def test_a_look_finds_what_was_asked_for() -> None:
    it = Served()
    it.client.received(frames.look(5, ["kv", "nothing"]))
    await it.woken.wait()
    frame = it.client.next_frame()
    found = frames.read_answer(frame or b"")
    assert found == frames.Found(5, shard_map(), {16: "a"}, {"a": "http://a"})


async def test_a_second_look_before_the_first_is_answered_ends_the_connection() -> None:
    it = Served()
    it.client.received(frames.look(5, ["kv"]))
    with pytest.raises(WireError, match="another one"):
        it.client.received(frames.look(6, ["kv"]))
    it.client.close()


async def test_a_node_that_stops_refuses_what_comes() -> None:
    it = Served()
    it.node.running = False
    it.send(batch())
    [(_, first, [error])] = it.heard()
    assert first == -1
    assert isinstance(error, NotRunning)


async def test_more_calls_than_allowed_end_the_connection() -> None:
    it = Served()
    it.send(batch(1, bodies=[b""] * (served.CALLS_AT_ONCE - 1)))
    it.send(batch(2, bodies=[b""]))
    with pytest.raises(WireError, match="under way"):
        it.send(batch(3, bodies=[b""]))


async def test_answers_are_cut_to_frames() -> None:
    it = Served()
    it.send(batch(bodies=[b""] * 8))
    it.node.begun[0][3]([b"r" * 100_000 for _ in range(8)])
    sizes = []
    while parts := it.heard():
        sizes += [(first, len(outcomes)) for _, first, outcomes in parts]
    assert sizes == [(0, 3), (3, 3), (6, 2)]
    assert it.client.unread_bytes == 0


@pytest.mark.parametrize(("kind", "told"), [(frames.READ, ReadFailed), (frames.NUMBERED, OutcomeUnknown)])
async def test_who_reads_no_answers_gets_errors_in_place_of_results(kind: int, told: type[MultiRaftError]) -> None:
    it = Served()
    it.send(batch(kind=kind, bodies=[b""] * 80))
    it.node.begun[0][3]([b"r" * 1_000_000 for _ in range(80)])
    assert it.client.full
    assert it.client.unread_bytes < served.UNREAD_BYTES_MOST + 1_000_000
    outcomes = []
    while parts := it.heard():
        outcomes += [outcome for _, _, part in parts for outcome in part]
    assert len(outcomes) == 80
    assert {type(outcome) for outcome in outcomes} == {bytes, told}
    assert not it.client.full
    assert it.client.unread_bytes == 0


async def test_a_client_that_is_gone_is_told_nothing() -> None:
    it = Served()
    it.send(batch())
    it.send(batch(2, group_id=17, argument=frames.ANYBODY))
    it.client.close()
    it.node.begun[0][3]([b"", b""])
    assert it.client.next_frame() is None


rows = st.lists(
    st.tuples(
        st.integers(0, 3),
        st.sampled_from([16, 17, 2**64 - 1]),
        st.integers(0, 8),
        st.integers(-2, 600) | st.just(2**64 - 1),
        st.integers(0, 4_000_000),
        st.lists(st.binary(max_size=4) | st.text(max_size=2), max_size=4),
    ).map(list),
    max_size=4,
)


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.lists(st.binary(max_size=40) | rows.map(lambda rows: bytes(msgpack.packb([2, rows]))), max_size=6))
def test_no_frames_do_worse_than_end_their_connection(sent: list[bytes]) -> None:
    async def play() -> None:
        it = Served()
        begun = 0
        for frame in sent:
            try:
                it.client.received(frame)
            except WireError:
                break
        for _, _, bodies, done in it.node.begun:
            begun += len(bodies)
            done([b""] * len(bodies))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        while it.client.next_frame() is not None:
            continue
        assert it.client.unread_bytes == 0
        assert len(it.node.begun) == 0 or begun > 0
        it.client.close()

    asyncio.run(play())
