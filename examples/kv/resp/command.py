"""What a command is to the server: its entry in the table, and what it asks of the store's shards.

Rules of this file: no I/O; the words of arity, flags and keys are those of Redis' COMMAND.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

from examples.kv.resp.client import Client
from examples.kv.resp.parser import Request
from examples.kv.resp.replies import Answer
from multiraft.shard.shard_map import Shard

Call: TypeAlias = list[Any]
"""A call of operations.py. Its second part is its key, but for those that a plan says a shard or a route for."""


class Refused(Exception):
    """The command is not done; the text is for the client, and begins with a word in capitals."""


class Plan:
    """The calls that a command comes to.

    write   whether any of them may change something
    calls   in order; those of different shards are made at the same time
    merge   makes the answer of all their results; None: there is one call, and its result is the answer
    route   a key of the shard that all calls are for; None: each is for the shard of its own key
    shards  the shards that the calls are for, one each, where they have no keys
    """

    __slots__ = ("calls", "merge", "route", "shards", "write")

    def __init__(
        self,
        write: bool,
        calls: list[Call],
        merge: Callable[[list[Any]], Answer] | None = None,
        route: bytes | None = None,
        shards: list[Shard] | None = None,
    ) -> None:
        self.write = write
        self.calls = calls
        self.merge = merge
        self.route = route
        self.shards = shards


@dataclass(frozen=True, slots=True)
class Command:
    """One command.

    arity    how many words it has, its name included; below 0: at least so many
    keys     the first and last of them that is a key, and the step between keys; zeros: none
    plan     makes its calls; raises Refused
    act      does what it does, and returns the answer, or the calls that lead to it; raises Refused
    at_once  inside MULTI, too, it is done when it comes
    alone    whether it waits until everything before it was answered
    last     whether everything after it waits until it was answered
    """

    name: str
    arity: int
    flags: tuple[str, ...]
    keys: tuple[int, int, int] = (0, 0, 0)
    plan: Callable[[Request], Plan] | None = None
    act: Callable[[Client, Request], Answer | Plan] | None = None
    at_once: bool = False
    alone: bool = False
    last: bool = False

    def check(self, request: Request) -> None:
        """Raise Refused where the number of words is wrong."""
        count = len(request)
        if count != self.arity and (self.arity > 0 or count < -self.arity):
            raise Refused(f"ERR wrong number of arguments for '{self.name}' command")
