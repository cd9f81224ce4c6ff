"""A client's core against nodes that exist only as what they answer, on a clock that the test moves."""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Any

from multiraft.client import frames
from multiraft.client.core import Core, new_call
from multiraft.client.frames import Batch, Welcome
from multiraft.client.lanes import Call
from multiraft.client.links import Link
from multiraft.outcome import Outcome
from multiraft.sessions import HEAD
from multiraft.shard.partition import hash_ranges
from multiraft.shard.shard_map import ServiceShards, Shard, ShardMap

NODES = ("a", "b", "c")
GROUPS = (16, 17)
SHARDS = tuple(
    Shard(number, group_id, start, end, 1)
    for number, (group_id, (start, end)) in enumerate(zip(GROUPS, hash_ranges(2), strict=True), 1)
)
URLS = {name: f"http://{name}" for name in NODES}


def shard_map(version: int = 1) -> ShardMap:
    return ShardMap(version, {"kv": ServiceShards("hash", SHARDS)}, dict.fromkeys(GROUPS, NODES))


class Play:
    """The core, and what it has asked for.

    now      the clock, in seconds
    dialled  nodes that it wants a connection to
    told     outcomes that its callers have had, by name of the call
    """

    def __init__(self, *, calls_most: int = 100, bytes_most: int = 100_000) -> None:
        self.now = 0.0
        self.dialled: list[str] = []
        self.told: dict[object, Any] = {}
        self.rooms = 0
        self.woken_at: list[float] = []
        self.core = Core(
            lambda: self.now,
            Random(7),
            calls_most,
            bytes_most,
            self.dialled.append,
            self.woken_at.append,
            self._room,
            lambda: None,
        )
        self.links: dict[str, Link] = {}

    def _room(self) -> None:
        self.rooms += 1

    def connect(self, node_id: str, calls: int = 1_000) -> Link:
        welcome = Welcome(1, node_id, b"c" * 16, 1_000_000, 1_000, calls)
        self.links[node_id] = self.core.connected(welcome, lambda: None)
        return self.links[node_id]

    def lose(self, node_id: str) -> None:
        self.core.lost(self.links.pop(node_id), "it was cut")

    def opened(self, *nodes: str, leaders: dict[int, str] | None = None) -> None:
        """Connect to nodes and let one answer what it is asked of the map."""
        self.core.want_service("kv")
        for node_id in nodes:
            self.connect(node_id)
        self.map({} if leaders is None else leaders)

    def map(self, leaders: dict[int, str], version: int = 1) -> None:
        """Answer the question for the map."""
        for link in self.links.values():
            for _ in range(len(link.looks)):
                asked = frames.read_request(self.core.next_frame(link) or b"")
                assert isinstance(asked, tuple)
                self.core.received(link, frames.found(asked[0], shard_map(version), leaders, URLS))
                return
        raise AssertionError("nobody was asked for the map")

    def call(
        self,
        name: object,
        body: bytes = b"command",
        *,
        where: str | int = 16,
        kind: int = frames.NUMBERED,
        numbers: bool = True,
        timeout_s: float = 10.0,
        argument: int = 0,
    ) -> Call:
        """Begin a call that tells its outcome under `name`; it fails when it is told twice."""

        def done(outcome: object) -> None:
            assert name not in self.told, f"{name} was told twice"
            self.told[name] = outcome

        call = new_call(kind, body, self.now + timeout_s, argument=argument, numbers=numbers, done=done)
        self.core.submit(call, where, b"key")
        return call

    def read(self, name: object, **options: Any) -> Call:
        return self.call(name, b"query", **{"kind": frames.READ, "numbers": False, **options})

    def sent(self, node_id: str) -> list[Batch]:
        """Return the batches of the next frame to a node; none where there is no frame."""
        frame = self.core.next_frame(self.links[node_id])
        if frame is None:
            return []
        asked = frames.read_request(frame)
        assert isinstance(asked, list), "it asks for the map"
        return asked

    def answer(self, node_id: str, batch: Batch, *outcomes: Outcome, first: int = 0, version: int = 1) -> None:
        row = (batch.batch_id, first, [frames.plain(outcome) for outcome in outcomes])
        self.core.received(self.links[node_id], frames.answers(version, [row]))

    def answer_all(self, node_id: str, outcome: Callable[[bytes], Outcome] = lambda body: b"done") -> int:
        """Answer all that is sent to a node until nothing more is; return how many calls that were."""
        count = 0
        while batches := self.sent(node_id):
            for batch in batches:
                count += len(batch.bodies)
                self.answer(node_id, batch, *[outcome(body) for body in batch.bodies])
        return count

    def enrolled(self, node_id: str = "a", group_id: int = 16) -> None:
        """Have the session of a group registered, by a first command."""
        self.call(("first", group_id), where=group_id)
        assert self.answer_all(node_id) == 2
        assert self.told[("first", group_id)] == b"done"

    def pass_time(self, seconds: float) -> None:
        self.now += seconds
        self.core.tick()


def sequence_of(body: bytes) -> int:
    return int(HEAD.unpack_from(body)[1])


def lowest_of(body: bytes) -> int:
    return int(HEAD.unpack_from(body)[2])
