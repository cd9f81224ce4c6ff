"""MULTI, EXEC, DISCARD, WATCH and UNWATCH: all commands of a transaction become one call of one shard.

A command between MULTI and EXEC is planned when it comes and made when EXEC does. A shard makes all calls of a
transaction at one entry of its log, so nothing comes in between; and like Redis it makes the rest when one of them
answers with an error. WATCH is told a place in the shard's sequence of changes; EXEC asks whether the key was changed
behind it.

Rules of this file: no I/O; what concerns more than one shard is refused, as a cluster of Redis refuses several slots.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Final

from examples.kv.resp.client import Client, Queued, Transaction
from examples.kv.resp.command import Command, Plan, Refused
from examples.kv.resp.parser import Request
from examples.kv.resp.replies import Answer, Simple
from examples.kv.resp.strings import key_of
from multiraft.shard.shard_map import Shard

QUEUED: Final = Simple("QUEUED")
WATCHED_LIMIT: Final = 1_024


def enqueue(client: Client, transaction: Transaction, command: Command, request: Request) -> Answer:
    """Have a command wait for EXEC. Raises Refused."""
    if "no_multi" in command.flags:
        raise Refused(f"ERR {command.name.upper()} concerns all shards and is not part of a transaction here")
    if command.plan is None:
        if command.act is None:
            raise Refused(f"ERR {command.name.upper()} is not part of a transaction here")
        transaction.queued.append(Queued(None, partial(_answer, client, command.act, request)))
        return QUEUED
    try:
        plan = command.plan(request)
    except Refused as problem:  # Redis, too, looks at arguments with EXEC only
        transaction.queued.append(Queued(None, partial(str, problem)))
        return QUEUED
    for call in plan.calls:
        _join(client, transaction, call[1])
    transaction.queued.append(Queued(plan))
    return QUEUED


def _answer(client: Client, act: Callable[[Client, Request], Answer | Plan], request: Request) -> Answer:
    try:
        return act(client, request)
    except Refused as problem:
        return str(problem)


def _join(client: Client, transaction: Transaction, key: bytes) -> None:
    shard = client.place.shard_of(key)
    if transaction.shard is None:
        watched = next(iter(client.watched), None)
        transaction.shard = shard if watched is None else client.place.shard_of(watched)
        transaction.route = key
    _same(transaction.shard, shard)


def _same(one: Shard, other: Shard) -> None:
    if one.shard_id != other.shard_id:
        raise Refused(
            "CROSSSLOT a transaction's keys, watched ones too, lie on one shard here; give them a common hash tag, "
            "as {user7}:name and {user7}:mail have"
        )


def _multi(client: Client, request: Request) -> Answer:
    if client.transaction is not None:
        raise Refused("ERR MULTI calls can not be nested")
    client.transaction = Transaction()
    return True


def _discard(client: Client, request: Request) -> Answer:
    if client.transaction is None:
        raise Refused("ERR DISCARD without MULTI")
    client.transaction = None
    client.watched.clear()
    return True


def _exec(client: Client, request: Request) -> Answer | Plan:
    transaction, client.transaction = client.transaction, None
    if transaction is None:
        raise Refused("ERR EXEC without MULTI")
    watched, client.watched = client.watched, {}
    if transaction.broken:
        raise Refused("EXECABORT Transaction discarded because of previous errors.")
    queued = transaction.queued
    calls = [call for each in queued if each.plan is not None for call in each.plan.calls]
    route = transaction.route or next(iter(watched), None)
    answers = [None if each.answer is None else each.answer() for each in queued]
    if route is None:
        return answers

    def merge(results: list[Any]) -> Answer:
        [made] = results
        return made if made is False else _answers(queued, answers, made)

    return Plan(True, [["all", list(watched.values()), calls]], merge, route)


def _answers(queued: list[Queued], ready: list[Answer], results: list[Any]) -> list[Answer]:
    """Return the answer of each command: those that are ready, and those made of the results of all calls."""
    answers: list[Answer] = []
    at = 0
    for each, answer in zip(queued, ready, strict=True):
        plan = each.plan
        if plan is None:
            answers.append(answer)
            continue
        part = results[at : at + len(plan.calls)]
        at += len(part)
        error = next((result for result in part if type(result) is str), None)
        if error is not None:
            answers.append(error)
        else:
            answers.append(part[0] if plan.merge is None else plan.merge(part))
    return answers


def _watch(client: Client, request: Request) -> Answer | Plan:
    if client.transaction is not None:
        raise Refused("ERR WATCH inside MULTI is not allowed")
    keys = [key_of(key) for key in dict.fromkeys(request[1:])]
    if len(keys) + len(client.watched) > WATCHED_LIMIT:
        raise Refused(f"ERR at most {WATCHED_LIMIT} keys are watched at once here")
    first = client.place.shard_of(next(iter(client.watched), keys[0]))
    for key in keys:
        _same(first, client.place.shard_of(key))

    def remember(results: list[Any]) -> Answer:
        [[index, part, present]] = results
        for key, there in zip(keys, present, strict=True):
            client.watched.setdefault(key, [index, part, key, there])
        return True

    return Plan(False, [["mark", *keys]], remember, keys[0])


def _unwatch(client: Client, request: Request) -> Answer:
    client.watched.clear()
    return True


_FLAGS: Final = ("noscript", "loading", "stale", "fast")

COMMANDS: Final = (
    Command("multi", 1, _FLAGS, act=_multi, at_once=True),
    Command("exec", 1, ("noscript", "loading", "stale"), act=_exec, at_once=True),
    Command("discard", 1, _FLAGS, act=_discard, at_once=True),
    Command("watch", -2, _FLAGS, (1, -1, 1), act=_watch, at_once=True, last=True),
    Command("unwatch", 1, _FLAGS, act=_unwatch),
)
