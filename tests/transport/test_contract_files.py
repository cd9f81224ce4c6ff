"""What every transport does with files: they come whole, from where one asks, as fast as one takes them, to peers only.

Rules of this file: through the port, but for forged hellos; both worlds run every test.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, cast

import pytest

from multiraft.errors import InvalidRequest, MultiRaftError, NoSuchFile, Overloaded, StorageError, Unreachable
from multiraft.ports import FILE_PIECE_BYTES
from multiraft.transport.files import FileRefused, FileTransport
from multiraft.transport.frames import hello_frame
from multiraft.transport.hello import Hello, encode_hello

if TYPE_CHECKING:
    from tests.transport.conftest import Peer, World

NAME = "0000000000000010-0000000000000063-a1b2c3d4.snap"


def content(offset: int, size_bytes: int) -> bytes:
    """A part of an endless file in which no two pieces are alike."""
    first, last = offset // 8, (offset + size_bytes) // 8
    whole = b"".join(number.to_bytes(8, "big") for number in range(first, last + 1))
    return whole[offset - 8 * first :][:size_bytes]


class Source:
    """A file of the given size, of which every read is answered at once unless told otherwise."""

    def __init__(self, size_bytes: int) -> None:
        self.size_bytes = size_bytes
        self.read_bytes = 0
        self.mute = False
        self.problem: Exception | None = None
        self.closed = asyncio.Event()

    def read(self, offset: int, size_bytes: int, done: Callable[[bytes | Exception], None]) -> None:
        assert not self.closed.is_set()
        assert 0 < size_bytes <= FILE_PIECE_BYTES
        assert offset + size_bytes <= self.size_bytes
        self.read_bytes += size_bytes
        if not self.mute:
            answer = self.problem or content(offset, size_bytes)
            asyncio.get_running_loop().call_soon(done, answer)

    def close(self) -> None:
        assert not self.closed.is_set(), "closed once"
        self.closed.set()


class Fetched:
    """What has come of a file. `ahead`: how many pieces are taken before nothing more is asked for; None: all."""

    def __init__(self, peer: Peer, owner: str, size_bytes: int, offset: int = 0, ahead: int | None = None) -> None:
        self.got = bytearray()
        self.offset = offset
        self.ahead = ahead
        self.outcomes: list[Exception | None] = []
        self.more: list[Callable[[], None]] = []
        self._changed = asyncio.Event()
        self.cancel = peer.transport.fetch(owner, NAME, offset, size_bytes, self._sink, self._done)
        assert not self.outcomes, "never before it returns"

    def _sink(self, piece: bytes, more: Callable[[], None]) -> None:
        assert 0 < len(piece) <= FILE_PIECE_BYTES
        assert not self.outcomes
        self.got += piece
        self._changed.set()
        if self.ahead is None:
            more()
            return
        self.more.append(more)
        if self.ahead > 0:
            self.go_on()

    def go_on(self) -> None:
        if self.ahead is not None:
            self.ahead -= 1
        self.more.pop()()

    def _done(self, error: Exception | None) -> None:
        self.outcomes.append(error)
        self._changed.set()

    async def until(self, holds: Callable[[], bool]) -> None:
        while not holds():
            self._changed.clear()
            await self._changed.wait()

    async def outcome(self) -> Exception | None:
        await self.until(lambda: bool(self.outcomes))
        assert len(self.outcomes) == 1
        return self.outcomes[0]


async def offering(world: World, size_bytes: int, **limits: int) -> tuple[Peer, Peer, Source]:
    """Start a and b, connected; b has a file."""
    a, b = await world.pair(**limits)
    await asyncio.gather(a.ear.hears("heard", "b"), b.ear.hears("heard", "a"))
    b.ear.files[NAME] = source = Source(size_bytes)
    return a, b, source


async def test_a_file_comes_whole_and_in_order(world: World) -> None:
    size_bytes = 3 * FILE_PIECE_BYTES + 17
    a, b, source = await offering(world, size_bytes)
    fetched = Fetched(a, "b", size_bytes)
    assert await fetched.outcome() is None
    assert fetched.got == content(0, size_bytes)
    assert ("file asked", "a", NAME, 0) in b.ear.events
    await source.closed.wait()
    assert source.read_bytes == size_bytes
    assert a.count("file_bytes_received") == b.count("file_bytes_sent") == size_bytes
    assert (a.count("files_asked"), b.count("files_served")) == (1, 1)


@pytest.mark.parametrize("left_bytes", [0, 1, FILE_PIECE_BYTES + 1])
async def test_it_comes_from_where_it_is_asked_for(world: World, left_bytes: int) -> None:
    size_bytes = 5 * FILE_PIECE_BYTES
    a, b, source = await offering(world, size_bytes)
    fetched = Fetched(a, "b", size_bytes, size_bytes - left_bytes)
    assert await fetched.outcome() is None
    assert fetched.got == content(size_bytes - left_bytes, left_bytes)
    assert source.read_bytes == left_bytes == b.count("file_bytes_sent")
    await source.closed.wait()


async def test_what_broke_off_goes_on_from_where_it_was(world: World) -> None:
    size_bytes = 200 * FILE_PIECE_BYTES
    a, b, source = await offering(world, size_bytes)
    first = Fetched(a, "b", size_bytes, ahead=20)
    await first.until(lambda: first.ahead == 0 and bool(first.more))
    world.break_off("a", "b")
    first.ahead = None
    first.go_on()
    assert isinstance(await first.outcome(), Unreachable)
    await source.closed.wait()
    assert 20 * FILE_PIECE_BYTES <= len(first.got) < size_bytes
    assert first.got == content(0, len(first.got))
    assert a.count("dropped_file_transfer") == 1
    await a.ear.hears("connected", "b", count=2)
    await b.ear.hears("heard", "a", count=2)
    source.closed.clear()
    rest = Fetched(a, "b", size_bytes, len(first.got))
    assert await rest.outcome() is None
    assert first.got + rest.got == content(0, size_bytes)
    assert a.count("file_bytes_received") == size_bytes, "nothing of it came twice"


async def test_an_asker_that_takes_nothing_holds_the_owner_back(world: World) -> None:
    size_bytes = 4_000 * FILE_PIECE_BYTES
    a, b, source = await offering(world, size_bytes)
    fetched = Fetched(a, "b", size_bytes, ahead=3)
    await fetched.until(lambda: fetched.ahead == 0 and bool(fetched.more))
    before = -1
    while source.read_bytes != before:  # until the owner reads no further
        before = source.read_bytes
        for number in range(50):
            assert a.send("b", number)
            await b.ear.until(lambda number=number: b.ear.numbers("a")[-1:] == [number])  # type: ignore[misc]
    assert source.read_bytes < size_bytes / 4
    fetched.ahead = 10
    fetched.go_on()
    await fetched.until(lambda: fetched.ahead == 0 and bool(fetched.more))
    fetched.cancel()
    await source.closed.wait()


async def test_messages_do_not_wait_for_a_file(world: World) -> None:
    size_bytes = 50 * FILE_PIECE_BYTES
    a, b, source = await offering(world, size_bytes)
    source.mute = True
    fetched = Fetched(a, "b", size_bytes)
    await b.ear.hears("file asked", "a", NAME)
    assert a.send("b", 1)
    assert b.send("a", 2)
    await b.ear.until(lambda: b.ear.numbers("a") == [1])
    await a.ear.until(lambda: a.ear.numbers("b") == [2])
    fetched.cancel()
    await source.closed.wait()


async def test_what_is_not_there_is_said(world: World) -> None:
    a, b, source = await offering(world, 10)
    del b.ear.files[NAME]
    assert isinstance(await Fetched(a, "b", 10).outcome(), NoSuchFile)
    b.ear.files[NAME] = source
    b.ear.most_files = 0
    assert isinstance(await Fetched(a, "b", 10).outcome(), Overloaded)
    assert not source.closed.is_set()
    b.ear.most_files = 1
    fetched = Fetched(a, "b", 10)
    assert await fetched.outcome() is None
    assert (b.count("refused_file_gone"), b.count("refused_file_busy")) == (1, 1)
    assert a.count("files_refused_by_peer") == 2


async def test_a_file_of_another_size_is_refused_and_nothing_of_it_taken(world: World) -> None:
    a, b, source = await offering(world, 1_000)
    fetched = Fetched(a, "b", 999)
    assert isinstance(await fetched.outcome(), InvalidRequest)
    assert fetched.got == b""
    assert a.count("refused_file_size") == 1
    await source.closed.wait()
    source.closed.clear()
    fetched = Fetched(a, "b", 2_000, 1_001)
    assert isinstance(await fetched.outcome(), InvalidRequest)
    assert b.count("refused_file_range") == 1
    assert source.closed.is_set()


async def test_a_peer_that_is_not_connected_has_no_files(world: World) -> None:
    a = await world.start("a")
    for owner in ("b", "a", "nobody"):
        assert isinstance(await Fetched(a, owner, 10).outcome(), Unreachable)


async def test_what_was_cancelled_is_not_heard_of_again(world: World) -> None:
    size_bytes = 100 * FILE_PIECE_BYTES
    a, _, source = await offering(world, size_bytes)
    fetched = Fetched(a, "b", size_bytes, ahead=2)
    await fetched.until(lambda: fetched.ahead == 0 and bool(fetched.more))
    got = bytes(fetched.got)
    fetched.cancel()
    fetched.cancel()
    fetched.more.pop()()
    await source.closed.wait()
    assert isinstance(await Fetched(a, "c", 10).outcome(), Unreachable)  # what was on the loop has run
    assert (bytes(fetched.got), fetched.outcomes) == (got, [])


async def test_a_fetch_that_a_close_cuts_short_is_not_heard_of_again(world: World) -> None:
    size_bytes = 100 * FILE_PIECE_BYTES
    a, b, source = await offering(world, size_bytes)
    fetched = Fetched(a, "b", size_bytes, ahead=2)
    await fetched.until(lambda: fetched.ahead == 0 and bool(fetched.more))
    await world.stop(a)
    await source.closed.wait()
    await world.stop(b)
    assert fetched.outcomes == []


async def test_an_owner_that_falls_silent_is_given_up(world: World) -> None:
    a, _, source = await offering(world, 1_000, handshake_timeout_ms=100)
    source.mute = True
    outcome = await Fetched(a, "b", 1_000).outcome()
    assert isinstance(outcome, Unreachable)
    assert "silent" in str(outcome)
    await source.closed.wait()


async def test_an_asker_that_takes_nothing_for_long_is_given_up(world: World) -> None:
    size_bytes = 4_000 * FILE_PIECE_BYTES
    a, b, source = await offering(world, size_bytes, handshake_timeout_ms=100)
    fetched = Fetched(a, "b", size_bytes, ahead=0)
    await source.closed.wait()
    assert b.count("dropped_file_sending") == 1
    await fetched.until(lambda: bool(fetched.more or fetched.outcomes))
    fetched.ahead = None
    if fetched.more:
        fetched.go_on()
    assert isinstance(await fetched.outcome(), Unreachable)
    assert len(fetched.got) < size_bytes


async def test_an_owner_that_cannot_read_breaks_off(world: World) -> None:
    size_bytes = 100 * FILE_PIECE_BYTES
    a, b, source = await offering(world, size_bytes)
    fetched = Fetched(a, "b", size_bytes, ahead=1)
    await fetched.until(lambda: fetched.ahead == 0 and bool(fetched.more))
    source.problem = StorageError("the disk is gone")
    fetched.ahead = None
    fetched.go_on()
    assert isinstance(await fetched.outcome(), Unreachable)
    await source.closed.wait()
    assert b.count("dropped_file_sending") == 1
    assert fetched.got == content(0, len(fetched.got))


async def test_an_asker_that_was_started_anew_gets_no_more_in_its_earlier_name(world: World) -> None:
    size_bytes = 400 * FILE_PIECE_BYTES
    a, b, source = await offering(world, size_bytes)
    fetched = Fetched(a, "b", size_bytes, ahead=2)
    await fetched.until(lambda: fetched.ahead == 0 and bool(fetched.more))
    spare = world.listens["c"]
    newer = await world.start("a", incarnation=2, listen=spare, members={"c": "127.0.0.1:1"})
    await b.ear.hears("heard", "a", 2)
    fetched.ahead = None
    fetched.go_on()
    assert isinstance(await fetched.outcome(), Unreachable)
    await source.closed.wait()
    assert len(fetched.got) < size_bytes
    await world.stop(newer)


@pytest.mark.parametrize(
    "changed",
    [
        {"cluster_id": b"another"},
        {"cluster_id": b""},
        {"store_id": b"another store"},
        {"incarnation": 2},
        {"incarnation": 4},
        {"generation": 0},
        {"node_id": "b"},
        {"node_id": "c"},
        {"node_id": "stranger"},
        {"version_min": 90, "version_max": 99},
        None,
    ],
)
async def test_only_a_peer_that_is_connected_as_that_very_run_gets_a_file(
    world: World, greeting: Callable[..., Hello], changed: dict[str, Any] | None
) -> None:
    """A question is judged by its hello as a connection is, and nothing of a forged one is remembered."""
    b = await world.start("b", generation=1)
    a = await world.start("a", incarnation=3, generation=1)
    await asyncio.gather(a.ear.hears("connected", "b"), b.ear.hears("heard", "a"))
    b.ear.files[NAME] = source = Source(10)
    right = {"node_id": "a", "store_id": b"store of a", "incarnation": 3, "generation": 1}
    owner = cast(FileTransport, b.transport)
    frame = b"nonsense" if changed is None else hello_frame(encode_hello(greeting(**{**right, **changed})))
    with pytest.raises(FileRefused) as refused:
        owner.open_file(frame, NAME, 0)
    assert refused.value.kind == "stranger"
    assert b.count("refused_file_stranger") == 1
    assert not [event for event in b.ear.events if event[0] == "file asked"]
    sent = owner.open_file(hello_frame(encode_hello(greeting(**right))), NAME, 0)
    assert sent.source is source


@pytest.mark.parametrize(
    ("changed", "problem"),
    [
        ({}, None),
        ({"node_id": "c"}, Unreachable),
        ({"cluster_id": b"another"}, Unreachable),
        ({"incarnation": 6}, Unreachable),
        ({"store_id": b"another store"}, Unreachable),
    ],
)
async def test_an_owner_is_judged_by_its_answer(
    world: World, greeting: Callable[..., Hello], changed: dict[str, Any], problem: type[MultiRaftError] | None
) -> None:
    a, b = await world.start("a"), await world.start("b", incarnation=5)
    await a.ear.hears("connected", "b")
    assert b.count("files_served") == 0
    asker = cast(FileTransport, a.transport)
    asked = asker.ask_for_file("b", NAME, 0, 10)
    frame = hello_frame(encode_hello(greeting(**{"incarnation": 5, **changed})))
    if problem is None:
        asker.judge_owner(asked, frame, 10)
    else:
        with pytest.raises(problem):
            asker.judge_owner(asked, frame, 10)


@pytest.mark.parametrize("name", ["", "../identity", ".hidden", "a/b", "a b", "x" * 200, "é"])
async def test_only_plain_names_are_asked_for(world: World, greeting: Callable[..., Hello], name: str) -> None:
    _, b, _ = await offering(world, 10)
    frame = hello_frame(encode_hello(greeting(node_id="a", store_id=b"store of a")))
    with pytest.raises(FileRefused) as refused:
        cast(FileTransport, b.transport).open_file(frame, name, 0)
    assert refused.value.kind == "gone"
    assert not [event for event in b.ear.events if event[0] == "file asked"]
