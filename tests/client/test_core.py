"""The client without I/O: whom it asks, what it makes of each answer and each loss, and what its callers are told."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from multiraft.client import frames
from multiraft.client.core import new_call
from multiraft.errors import (
    CommandFailed,
    DeadlineExceeded,
    Halted,
    InvalidRequest,
    MultiRaftError,
    NotLeader,
    NotReady,
    NotRunning,
    OutcomeUnknown,
    Overloaded,
    ReadFailed,
    ReplyForgotten,
    SessionExpired,
    WireError,
    WrongShard,
)
from multiraft.sessions import HEAD
from multiraft.shard.shard_map import ShardMap
from tests.client.playing import Play, lowest_of, sequence_of


def test_a_command_is_numbered_in_a_session_that_is_registered_first() -> None:
    play = Play()
    play.opened("a", leaders={16: "a"})
    play.call("x")
    [register] = play.sent("a")
    assert (register.kind, register.group_id, len(register.bodies[0])) == (frames.REGISTER, 16, 16)
    assert play.sent("a") == []
    play.answer("a", register, b"")
    [batch] = play.sent("a")
    assert (batch.kind, batch.group_id) == (frames.NUMBERED, 16)
    assert batch.bodies == [HEAD.pack(register.bodies[0], 1, 1) + b"command"]
    play.answer("a", batch, b"result")
    assert play.told == {"x": b"result"}
    assert not play.core.outstanding
    assert play.core.used_bytes == 0


def test_all_calls_of_a_turn_to_one_node_leave_in_one_frame() -> None:
    play = Play()
    play.opened("a", leaders={16: "a", 17: "a"})
    play.enrolled("a", 16)
    play.enrolled("a", 17)
    for number in range(6):
        play.call(number, where=16 + number % 2)
    play.read("r")
    batches = play.sent("a")
    assert sorted((batch.group_id, batch.kind, len(batch.bodies)) for batch in batches) == [
        (16, frames.NUMBERED, 3),
        (16, frames.READ, 1),
        (17, frames.NUMBERED, 3),
    ]
    assert play.sent("a") == []


def test_a_key_is_routed_by_the_map() -> None:
    play = Play()
    play.opened("a", leaders={16: "a", 17: "a"})
    play.read("r", where="kv")
    group_id = play.core.atlas.services["kv"].find(b"key").group_id
    assert [batch.group_id for batch in play.sent("a")] == [group_id]


def test_the_leader_is_dialled_where_it_is_not_connected() -> None:
    play = Play()
    play.opened("a", leaders={16: "b"})
    play.read("r")
    assert play.sent("a") == []
    assert play.dialled == ["b"]
    play.connect("b")
    [batch] = play.sent("b")
    assert batch.argument == 0
    play.answer("b", batch, b"answer")
    assert play.told == {"r": b"answer"}


def test_a_refusal_that_names_the_leader_turns_the_whole_lane() -> None:
    play = Play()
    play.opened("a", "b", leaders={16: "a"})
    for number in range(3):
        play.read(number)
    [batch] = play.sent("a")
    play.read("later")
    play.answer("a", batch, NotLeader(16, "b"), first=-1)
    assert play.sent("a") == []
    assert play.answer_all("b") == 4
    play.read("after")
    assert [batch.group_id for batch in play.sent("b")] == [16]


def test_members_are_asked_in_turn_where_nobody_knows_a_leader() -> None:
    play = Play()
    play.opened("a", "b", "c")
    play.read("r")
    for node_id in ("a", "b", "c"):
        [batch] = play.sent(node_id)
        play.answer(node_id, batch, NotLeader(16), first=-1)
    assert all(play.sent(node_id) == [] for node_id in ("a", "b", "c"))
    play.pass_time(0.3)
    play.map({})  # somebody may have moved
    [batch] = play.sent("a")
    play.answer("a", batch, b"answer")
    assert play.told == {"r": b"answer"}


def test_a_leader_that_cannot_be_reached_is_asked_through_another_node() -> None:
    play = Play()
    play.opened("a", leaders={16: "b"})
    play.call("x")
    assert play.dialled == ["b"]
    play.core.unreachable("b", "no route")
    [register] = play.sent("a")
    assert register.argument & frames.ANYBODY
    play.answer("a", register, b"")
    [batch] = play.sent("a")
    assert batch.argument == frames.ANYBODY | frames.FIRST
    play.lose("a")
    play.connect("a")
    [again] = play.sent("a")
    assert again.bodies == batch.bodies
    assert again.argument == frames.ANYBODY
    play.answer("a", again, b"done")
    assert play.told == {"x": b"done"}


def test_a_lost_command_is_sent_again_under_its_number() -> None:
    play = Play()
    play.opened("a", "b", leaders={16: "a"})
    play.enrolled()
    play.call("x")
    [batch] = play.sent("a")
    play.lose("a")
    [again] = play.sent("b")
    assert again.bodies == batch.bodies
    assert sequence_of(again.bodies[0]) == 2
    play.answer("b", again, b"once")
    assert play.told["x"] == b"once"


def test_a_lost_command_without_number_is_not_sent_again() -> None:
    play = Play()
    play.opened("a", "b", leaders={16: "a"})
    play.call("x", kind=frames.PROPOSE, numbers=False)
    play.sent("a")
    play.lose("a")
    assert isinstance(play.told["x"], OutcomeUnknown)
    assert play.sent("b") == []


def test_a_command_that_was_not_sent_yet_goes_elsewhere_without_a_word() -> None:
    play = Play()
    play.opened("a", "b", leaders={16: "a"})
    play.call("x", kind=frames.PROPOSE, numbers=False)
    play.lose("a")
    [batch] = play.sent("b")
    play.answer("b", batch, b"done")
    assert play.told == {"x": b"done"}


def test_a_lost_read_is_asked_again() -> None:
    play = Play()
    play.opened("a", "b", leaders={16: "a"})
    play.read("r")
    play.sent("a")
    play.lose("a")
    play.answer_all("b")
    assert play.told == {"r": b"done"}


def test_with_no_connection_calls_wait_for_one() -> None:
    play = Play()
    play.opened("a", leaders={16: "a"})
    play.lose("a")
    play.read("r")
    play.connect("a")
    assert play.answer_all("a") == 1
    assert play.told == {"r": b"done"}


@pytest.mark.parametrize(
    "problem", [CommandFailed("ValueError", "no"), InvalidRequest("no"), Overloaded("no"), ReplyForgotten("no")]
)
def test_what_another_attempt_would_not_change_is_told(problem: MultiRaftError) -> None:
    play = Play()
    play.opened("a", leaders={16: "a"})
    play.enrolled()
    play.call("x")
    [batch] = play.sent("a")
    play.answer("a", batch, problem)
    assert type(play.told["x"]) is type(problem)


def test_after_an_attempt_that_may_have_happened_nothing_is_said_to_have_not() -> None:
    play = Play()
    play.opened("a", "b", leaders={16: "a"})
    play.enrolled()
    play.call("x")
    play.sent("a")
    play.lose("a")
    [batch] = play.sent("b")
    play.answer("b", batch, SessionExpired("gone"))
    assert isinstance(play.told["x"], OutcomeUnknown)


def test_a_session_that_has_ended_is_followed_by_another_unnoticed() -> None:
    play = Play()
    play.opened("a", leaders={16: "a"})
    play.enrolled()
    play.call("x")
    play.call("y")
    [batch] = play.sent("a")
    play.answer("a", batch, SessionExpired("gone"), SessionExpired("gone"))
    [register] = play.sent("a")
    assert register.kind == frames.REGISTER
    play.answer("a", register, b"")
    [batch] = play.sent("a")
    assert [sequence_of(body) for body in batch.bodies] == [1, 2]
    assert all(body.startswith(register.bodies[0]) for body in batch.bodies)
    play.answer("a", batch, b"x", b"y")
    assert (play.told["x"], play.told["y"]) == (b"x", b"y")


def test_an_id_whose_registration_is_lost_is_given_up_for_another() -> None:
    play = Play()
    play.opened("a", "b", leaders={16: "a"})
    play.call("x")
    [register] = play.sent("a")
    play.lose("a")
    play.pass_time(0.5)
    [another] = play.sent("b")
    assert another.kind == frames.REGISTER
    assert another.bodies != register.bodies


def test_the_lowest_number_passes_those_that_were_answered_or_given_up() -> None:
    play = Play()
    play.opened("a", leaders={16: "a"})
    play.enrolled()
    play.call("late", timeout_s=1.0)
    play.call("x")
    [batch] = play.sent("a")
    play.answer("a", batch, b"done", first=1)
    play.call("y")
    [batch] = play.sent("a")
    assert lowest_of(batch.bodies[0]) == 2  # "late" may still be asked for
    play.pass_time(1.0)
    assert isinstance(play.told["late"], OutcomeUnknown)
    play.call("z")
    [batch] = play.sent("a")
    assert lowest_of(batch.bodies[0]) == 4


def test_a_call_whose_time_is_up_says_what_is_known_of_it() -> None:
    play = Play()
    play.opened("a", leaders={16: "a"})
    play.enrolled()
    play.call("sent", timeout_s=1.0)
    play.read("read", timeout_s=1.0)
    play.sent("a")
    play.call("unsent", timeout_s=1.0)
    play.pass_time(1.0)
    assert isinstance(play.told["sent"], OutcomeUnknown)
    assert isinstance(play.told["read"], ReadFailed)
    assert isinstance(play.told["unsent"], NotReady)


def test_nothing_piles_up_while_nobody_can_be_reached() -> None:
    play = Play()
    play.opened("a", leaders={16: "a"})
    play.enrolled()
    play.lose("a")
    lane = play.core._lanes[16]
    for turn in range(5):
        for number in range(20):
            play.call((turn, number), timeout_s=1.0)
        play.read(turn, timeout_s=1.0)
        play.pass_time(1.0)
        assert not lane.queue
        assert not play.core.outstanding
    play.connect("a")
    assert play.sent("a") == []
    play.call("after")
    assert play.answer_all("a") == 1


def test_an_answer_that_comes_after_the_deadline_is_no_harm() -> None:
    play = Play()
    play.opened("a", leaders={16: "a"})
    play.read("r", timeout_s=1.0)
    [batch] = play.sent("a")
    play.pass_time(1.0)
    play.answer("a", batch, b"late")
    assert isinstance(play.told["r"], ReadFailed)


def test_a_group_whose_leader_has_halted_is_told_after_everybody_was_asked() -> None:
    play = Play()
    play.opened("a", "b", "c", leaders={16: "a"})
    play.read("r")
    [batch] = play.sent("a")
    play.answer("a", batch, Halted("out of memory"))
    for node_id in ("b", "c"):
        [batch] = play.sent(node_id)
        play.answer(node_id, batch, NotLeader(16), first=-1)
    assert isinstance(play.told["r"], Halted)


def test_a_call_of_the_wrong_shard_waits_for_a_newer_map() -> None:
    play = Play()
    play.opened("a", leaders={16: "a", 17: "a"})
    play.read("r", where="kv")
    [batch] = play.sent("a")
    play.pass_time(1.0)
    play.answer("a", batch, WrongShard("moved"))
    play.map({}, version=1)
    assert play.told == {}
    play.pass_time(0.2)
    play.map({}, version=2)
    assert play.answer_all("a") == 1
    assert play.told == {"r": b"done"}


def test_an_answer_that_names_a_newer_map_has_it_looked_up() -> None:
    play = Play()
    play.opened("a", leaders={16: "a"})
    play.read("r")
    [batch] = play.sent("a")
    play.pass_time(1.0)
    play.answer("a", batch, b"", version=2)
    play.map({}, version=2)
    assert play.core.atlas.version == 2


def test_a_node_is_dialled_where_it_was_reached_and_where_it_is_told_to_be_when_that_fails() -> None:
    play = Play()
    play.core.atlas.urls["b"] = "http://given"
    play.opened("a", leaders={16: "b"})
    assert (play.core.atlas.urls["b"], play.core.atlas.urls["c"]) == ("http://given", "http://c")
    play.read("r")
    assert play.dialled == ["b"]
    play.core.unreachable("b", "moved")
    assert play.core.atlas.urls["b"] == "http://b"


def test_more_than_is_allowed_is_refused_until_there_is_room() -> None:
    play = Play(calls_most=2)
    play.opened("a", leaders={16: "a"})
    play.read(1)
    play.read(2)
    with pytest.raises(Overloaded):
        play.read(3)
    assert play.rooms == 0
    play.answer_all("a")
    assert play.rooms == 1
    play.read(3)


def test_one_call_is_let_through_however_large() -> None:
    play = Play(bytes_most=10)
    play.opened("a", leaders={16: "a"})
    play.call("x", b"c" * 100, kind=frames.PROPOSE, numbers=False)
    with pytest.raises(Overloaded):
        play.call("y", b"", kind=frames.PROPOSE, numbers=False)
    play.answer_all("a")
    assert play.told == {"x": b"done"}
    assert play.core.used_bytes == 0


def test_no_more_is_sent_than_the_node_allows() -> None:
    play = Play()
    play.core.want_service("kv")
    play.connect("a", calls=3)
    play.map({16: "a"})
    for number in range(8):
        play.read(number)
    [batch] = play.sent("a")
    assert len(batch.bodies) == 3
    assert play.sent("a") == []
    play.answer("a", batch, b"", b"", b"")
    assert play.answer_all("a") == 5


def test_a_frame_takes_no_more_than_its_bytes() -> None:
    play = Play(bytes_most=10_000_000)
    play.opened("a", leaders={16: "a"})
    for number in range(8):
        play.call(number, b"x" * 100_000, kind=frames.PROPOSE, numbers=False)
    assert [len(batch.bodies) for batch in play.sent("a")] == [3]
    assert [len(batch.bodies) for batch in play.sent("a")] == [3]
    assert [len(batch.bodies) for batch in play.sent("a")] == [2]


def test_a_read_of_a_near_replica_goes_to_whoever_is_connected() -> None:
    play = Play()
    play.opened("c", leaders={16: "a"})
    play.call("r", kind=frames.NEAR, numbers=False, argument=500)
    [batch] = play.sent("c")
    assert (batch.kind, batch.argument) == (frames.NEAR, 500)
    assert play.dialled == []


@pytest.mark.parametrize("row", [(99, 0, [b""]), (1, 1, [b""]), (1, 0, [b"", b""])])
def test_an_answer_to_nothing_ends_the_connection(row: Any) -> None:
    play = Play()
    play.opened("a", leaders={16: "a"})
    play.read("r")
    play.sent("a")
    with pytest.raises(WireError):
        play.core.received(play.links["a"], frames.answers(1, [row]))


def test_an_outcome_told_twice_ends_the_connection() -> None:
    play = Play()
    play.opened("a", leaders={16: "a"})
    play.read("r")
    play.read("s")
    [batch] = play.sent("a")
    play.answer("a", batch, b"1")
    with pytest.raises(WireError):
        play.answer("a", batch, b"2")


def test_a_map_that_nobody_asked_for_ends_the_connection() -> None:
    play = Play()
    play.opened("a")
    with pytest.raises(WireError):
        play.core.received(play.links["a"], frames.found(5, ShardMap(), {}, {}))


async def test_a_cancelled_call_is_not_sent_and_its_number_passed() -> None:
    play = Play()
    play.opened("a", leaders={16: "a"})
    play.enrolled()
    future: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
    play.core.submit(new_call(0, b"x", 10.0, numbers=True, future=future), 16)
    future.cancel()
    assert play.sent("a") == []
    play.call("y")
    [batch] = play.sent("a")
    assert lowest_of(batch.bodies[0]) == sequence_of(batch.bodies[0]) == 3


def test_closing_tells_every_caller_what_is_known() -> None:
    play = Play()
    play.opened("a", leaders={16: "a"})
    play.enrolled()
    play.call("sent")
    play.read("read")
    play.sent("a")
    play.call("unsent")
    play.core.stop()
    assert isinstance(play.told["sent"], OutcomeUnknown)
    assert isinstance(play.told["read"], ReadFailed)
    assert isinstance(play.told["unsent"], NotRunning)
    with pytest.raises(NotRunning):
        play.call("after")


def test_a_read_that_nobody_answered_in_time_names_its_last_cause() -> None:
    play = Play()
    play.opened("a", leaders={16: "a"})
    play.read("r", timeout_s=1.0)
    [batch] = play.sent("a")
    play.answer("a", batch, ReadFailed("slow"))
    play.pass_time(1.0)
    assert isinstance(play.told["r"], DeadlineExceeded | NotReady)
