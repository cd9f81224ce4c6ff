"""Keys that are to share a shard: a class says which part of a key decides where it is kept."""

from __future__ import annotations

from multiraft.methods import decode_call
from multiraft.statemachine import StateMachine, command, methods_of, query


class Rooms(StateMachine, routes_by=lambda key: key.split(b"/")[0]):
    @command(key="name")
    def enter(self, name: str) -> None: ...

    @query(key="number")
    def seat(self, number: int) -> int:
        return number


class MoreRooms(Rooms):
    @command(key="name")
    def leave(self, name: str) -> None: ...


def test_a_call_is_routed_by_the_part_that_the_class_names() -> None:
    for machine in (Rooms, MoreRooms):
        key, body = methods_of(machine)["enter"].encode_call(("red/7",), {})
        assert key == b"red"
        assert decode_call(body) == ["enter", "red/7"]  # the argument itself travels as it is
        # Of the bytes that stand for a number, 0x2f is the slash.
        assert methods_of(machine)["seat"].encode_call((0x2F,), {})[0] == b"\x80\0\0\0\0\0\0"
    assert methods_of(MoreRooms)["leave"].encode_call(("red/8",), {})[0] == b"red"
