"""The rules that both transports share, at moments that real connections seldom meet.

Rules of this file: a backend that does nothing, so that the test alone decides what happens when.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

from multiraft.config import Limits, NodeConfig
from multiraft.gathered import Acks
from multiraft.messages import CommitTo
from multiraft.transport.frames import BULK, FrameDecoder, encode_message, hello_frame, messages_frame
from multiraft.transport.hello import Hello, Refusal, encode_hello
from multiraft.transport.peers import PeerTransport
from multiraft.types import Identity

if TYPE_CHECKING:
    from tests.transport.conftest import Ear

Greeting = Callable[..., Hello]
MEMBERS = {"a": "127.0.0.1:1", "b": "127.0.0.1:2"}


class Line:
    """A link that notes what is asked of it, and does nothing."""

    def __init__(self) -> None:
        self.shut_with: list[int] = []

    def wake(self) -> None: ...

    def shut(self, code: int, reason: str, flush: bool = False) -> None:
        self.shut_with.append(code)


class Bare(PeerTransport):
    """Node a, without a backend."""

    def __init__(self, ear: Ear, cluster_id: bytes) -> None:
        config = NodeConfig("a", "unused", MEMBERS["a"], MEMBERS, limits=Limits())
        super().__init__(config, Identity("a", b"store of a", cluster_id), 1, random.Random(1))
        self.redialled: list[str] = []
        self._begin(ear, asyncio.get_running_loop())

    def _redial(self, node_id: str) -> None:
        self.redialled.append(node_id)

    def own_hello(self) -> Hello:
        return self._own_hello()

    def inbound(self, hello: Hello, line: Line) -> Any:
        return self._greet_inbound(hello_frame(encode_hello(hello)), line)[0]

    def outbound(self, hello: Hello, line: Line, sent: Hello | None = None) -> Any:
        return self._greet_outbound("b", hello_frame(encode_hello(hello)), sent or self._own_hello(), line)

    def receives(self, inbound: Any, number: int) -> bool:
        return self._received(inbound, messages_frame(BULK, [encode_message(CommitTo(number, 1, 1, 1, 1))]))


@pytest.fixture
async def make_node(make_ear: Callable[[], Ear]) -> Callable[..., tuple[Bare, Ear]]:
    def make(cluster_id: bytes = b"c" * 16) -> tuple[Bare, Ear]:
        ear = make_ear()
        ear.open = True
        return Bare(ear, cluster_id), ear

    return make


Make = Callable[..., tuple[Bare, "Ear"]]


async def test_frames_of_a_replaced_connection_are_dropped_even_if_they_still_come(
    make_node: Make, greeting: Greeting
) -> None:
    node, ear = make_node()
    lines = [Line(), Line()]
    older = node.inbound(greeting(), lines[0])
    assert node.receives(older, 1)
    newer = node.inbound(greeting(), lines[1])
    assert not node.receives(older, 2)
    assert node.receives(newer, 3)
    assert ear.numbers("b") == [1, 3]
    assert node.counters()["dropped_replaced_connection"] == 1
    assert [len(line.shut_with) for line in lines] == [1, 0]


async def test_a_hello_of_a_new_run_ends_both_connections_of_the_earlier_one(
    make_node: Make, greeting: Greeting
) -> None:
    node, ear = make_node()
    first_in, first_out, second_in, second_out = [Line() for _ in range(4)]
    inbound = node.inbound(greeting(incarnation=1), first_in)
    node.outbound(greeting(incarnation=1), first_out)
    node.inbound(greeting(incarnation=2), second_in)
    assert len(first_in.shut_with) == len(first_out.shut_with) == 1
    assert not node.receives(inbound, 1)
    assert not node.send("b", [CommitTo(1, 1, 1, 1, 1)], False), "the connection to the earlier run takes nothing"
    node.outbound(greeting(incarnation=3), second_out)
    assert len(second_in.shut_with) == 1
    assert [event[0] for event in ear.events] == ["heard", "connected", "disconnected", "heard", "connected"]


async def test_a_greeting_begun_before_a_cluster_was_joined_does_not_count(make_node: Make, greeting: Greeting) -> None:
    node, ear = make_node(cluster_id=b"")
    sent = node.own_hello()
    node.set_identity(Identity("a", b"store of a", b"c" * 16), 1)
    with pytest.raises(Refusal):
        node.outbound(greeting(), Line(), sent)
    assert ear.events == []
    node.outbound(greeting(), Line())
    assert [event[0] for event in ear.events] == ["connected"]


async def test_who_is_heard_is_dialled_unless_it_is_connected(make_node: Make, greeting: Greeting) -> None:
    node, _ = make_node()
    node.inbound(greeting(), Line())
    assert node.redialled == ["b"]
    node.outbound(greeting(), Line())
    node.inbound(greeting(), Line())
    assert node.redialled == ["b"]


async def test_waits_double_up_to_two_seconds_and_half_of_them_is_chance(make_node: Make) -> None:
    node, _ = make_node()
    for failures, longest in [(0, 0.05), (1, 0.1), (5, 1.6), (6, 2.0), (1000, 2.0)]:
        waits = [node._backoff_s(failures) for _ in range(200)]
        assert longest / 2 <= min(waits) < 0.6 * longest
        assert 0.9 * longest < max(waits) <= longest


@pytest.mark.parametrize(("version", "expected"), [(1, ["AppendAnswer", "AppendAnswer"]), (2, ["Acks"])])
async def test_a_peer_of_an_earlier_version_is_sent_messages_of_one_group_each(
    make_node: Make, greeting: Greeting, version: int, expected: list[str]
) -> None:
    node, _ = make_node()
    outbound = node.outbound(greeting(version_max=version), Line())
    assert node.send("b", [Acks([(16, 9, 2, 3, 1), (17, 8, 2, 3, 1)])], False)
    messages, _ = FrameDecoder(1 << 20).decode(outbound.outbox.next_frame())
    assert [type(message).__name__ for message in messages] == expected
