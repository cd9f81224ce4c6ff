"""SCAN and DBSIZE: what concerns all shards.

A scan goes through the shards one after the other, through each in the order of its keys, so a key that is there all
the time is returned exactly once. Where it has come to is a shard and a key, which is more than the number that a
cursor must be; so a cursor is a number drawn by chance, and this node remembers what it stands for.

Rules of this file: no I/O; the cursors are bounded in number, and the ones not used for longest go.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any, Final

from examples.kv.operations import LIST_LIMIT
from examples.kv.resp.client import Client
from examples.kv.resp.command import Command, Plan, Refused
from examples.kv.resp.glob import compile_glob, matches
from examples.kv.resp.parser import Request
from examples.kv.resp.replies import Answer
from examples.kv.resp.strings import number_of

CURSORS: Final = 1_024
_COUNT: Final = 10
Position = tuple[int, bytes | None]
"""The id of a shard, and the last of its keys that was returned; None: it is at its beginning."""


class Cursors:
    """What the cursors that were given out stand for."""

    def __init__(self, draw: Callable[[], int] | None = None) -> None:
        self._draw = draw or (lambda: random.getrandbits(63))
        self._positions: dict[int, Position] = {}

    def keep(self, position: Position) -> int:
        """Return a cursor for `position`."""
        cursor = 0
        while cursor == 0 or cursor in self._positions:
            cursor = self._draw()
        self._positions[cursor] = position
        if len(self._positions) > CURSORS:
            del self._positions[next(iter(self._positions))]
        return cursor

    def find(self, cursor: int) -> Position | None:
        """Return what `cursor` stands for; None: it is not known here, or not any more. It may be used again."""
        position = self._positions.pop(cursor, None)
        if position is not None:
            self._positions[cursor] = position
        return position


def _scan(client: Client, request: Request) -> Answer | Plan:
    text = request[1] or b"0"
    if not text.isdigit() or len(text) > 20:
        raise Refused("ERR invalid cursor")
    cursor = int(text)
    pieces, count, any_type = _options(request[2:])
    shards = client.place.shards()
    cursors = client.place.cursors
    position = (shards[0].shard_id, None) if cursor == 0 else cursors.find(cursor)
    ids = [shard.shard_id for shard in shards]
    if position is None or position[0] not in ids:
        raise Refused("ERR invalid cursor: it is of another node, or too old; begin anew at 0")
    shard_id, after = position
    at = ids.index(shard_id)

    def merge(results: list[Any]) -> Answer:
        [[more, keys]] = results
        if more:
            following: Position | None = (shard_id, keys[-1])
        else:
            following = (ids[at + 1], None) if at + 1 < len(ids) else None
        found = [key for key in keys if pieces is None or matches(pieces, key)] if any_type else []
        return [b"%d" % (0 if following is None else cursors.keep(following)), found]

    return Plan(False, [["list", after, min(count, LIST_LIMIT)]], merge, shards=[shards[at]])


def _options(words: Request) -> tuple[Any, int, bool]:
    """Return the pattern, if there is one, the count, and whether strings are asked for. Raises Refused."""
    pieces, count, any_type = None, _COUNT, True
    for at in range(0, len(words), 2):
        word, value = words[at].upper(), words[at + 1 : at + 2]
        if not value or word not in (b"MATCH", b"COUNT", b"TYPE"):
            raise Refused("ERR syntax error")
        if word == b"MATCH":
            pieces = compile_glob(value[0])
        elif word == b"TYPE":
            any_type = value[0].lower() == b"string"
        else:
            count = number_of(value[0])
            if count < 1:
                raise Refused("ERR syntax error")
    return pieces, count, any_type


def _dbsize(client: Client, request: Request) -> Plan:
    shards = list(client.place.shards())
    return Plan(False, [["count"] for _ in shards], sum, shards=shards)


COMMANDS: Final = (
    Command("scan", -2, ("readonly", "no_multi"), act=_scan, alone=True, last=True),
    Command("dbsize", 1, ("readonly", "fast", "no_multi"), act=_dbsize, alone=True, last=True),
)
