"""The commands that read and write keys, as calls of the store's shards (operations.py).

Rules of this file: no I/O; what can be refused without the store is refused here, in the words of Redis, and in the
order in which Redis looks at it.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Final

from examples.kv.layout import KEY_LIMIT_BYTES, VALUE_LIMIT_BYTES
from examples.kv.longdouble import BadNumber, read
from examples.kv.operations import (
    AT,
    FOR,
    IF_ABSENT,
    IF_EARLIER,
    IF_ENDS,
    IF_LATER,
    IF_PRESENT,
    KEEP,
    NEVER,
    NOT_A_FLOAT,
    NOT_A_NUMBER,
    TELL_OLD,
    TOO_LONG,
    UNLESS_ENDS,
    whole_number,
)
from examples.kv.resp.command import Command, Plan, Refused
from examples.kv.resp.parser import Request
from examples.kv.resp.replies import Answer, Simple

_INT64_MAX: Final = (1 << 63) - 1
_SYNTAX: Final = "ERR syntax error"


def now_ms() -> int:
    """Read this node's wall clock."""
    return time.time_ns() // 1_000_000


def key_of(key: bytes) -> bytes:
    """Return `key`. Raises Refused for one that the store does not take."""
    if not 1 <= len(key) <= KEY_LIMIT_BYTES:
        raise Refused(f"ERR a key has 1 to {KEY_LIMIT_BYTES} bytes here, not {len(key)}")
    if not key.isascii():
        try:
            key.decode()
        except UnicodeDecodeError:
            raise Refused("ERR a key is text here: valid UTF-8") from None
    return key


def value_of(value: bytes) -> bytes:
    """Return `value`. Raises Refused for one that is too large."""
    if len(value) > VALUE_LIMIT_BYTES:
        raise Refused(TOO_LONG)
    return value


def number_of(text: bytes) -> int:
    """Return the number that `text` is. Raises Refused."""
    number = whole_number(text)
    if number is None:
        raise Refused(NOT_A_NUMBER)
    return number


def _one(name: str, write: bool, finish: Callable[[Any], Answer] | None = None) -> Callable[[Request], Plan]:
    """Return what plans a command whose only argument is a key."""
    merge = None if finish is None else _of_one(finish)

    def plan(request: Request) -> Plan:
        return Plan(write, [[name, key_of(request[1])]], merge)

    return plan


def _each(name: str, write: bool, merge: Callable[[list[Any]], Answer]) -> Callable[[Request], Plan]:
    """Return what plans a command whose arguments are keys."""

    def plan(request: Request) -> Plan:
        return Plan(write, [[name, key_of(key)] for key in request[1:]], merge)

    return plan


def _of_one(finish: Callable[[Any], Answer]) -> Callable[[list[Any]], Answer]:
    return lambda results: finish(results[0])


def _all_results(results: list[Any]) -> Answer:
    return results


def _done(results: list[Any]) -> Answer:
    return True


# ---------------------------------------------------------------------------------------------------------- times


def _time(option: bytes, amount: int, command: str) -> tuple[int, int]:
    """Return the unit and number that EX, PX, EXAT or PXAT mean. Raises Refused for times beyond 64 bits."""
    bad = Refused(f"ERR invalid expire time in '{command}' command")
    if option.startswith(b"EX"):
        if not -_INT64_MAX <= amount * 1_000 <= _INT64_MAX:
            raise bad
        amount *= 1_000
    if option.endswith(b"AT"):
        return AT, amount
    if amount > _INT64_MAX - now_ms():
        raise bad
    return FOR, amount


_TIMES: Final = (b"EX", b"PX", b"EXAT", b"PXAT")


def _options(
    words: Request, flags: dict[bytes, int], others: dict[bytes, int]
) -> tuple[int, int, tuple[bytes, bytes] | None]:
    """Read options: those of `flags` that were given, the unit, and, where one has a time, that option and its text.

    others  options about the end that need no time: the unit that each means

    Raises Refused.
    """
    how, unit = 0, NEVER
    end = b""  # the option that says when the key ends; it may be repeated, and no other may be beside it
    text: bytes | None = None
    at = 0
    while at < len(words):
        word = words[at].upper()
        at += 1
        if word in flags:
            how |= flags[word]
            if how & IF_ABSENT and how & IF_PRESENT:
                raise Refused(_SYNTAX)
        elif end not in (b"", word):
            raise Refused(_SYNTAX)
        elif word in others:
            end, unit = word, others[word]
        elif word in _TIMES and at < len(words):
            end, text = word, words[at]
            at += 1
        else:
            raise Refused(_SYNTAX)
    return how, unit, None if text is None else (end, text)


def _above_zero(option: bytes, text: bytes, command: str) -> tuple[int, int]:
    """Return the unit and number of a time that must be above 0. Raises Refused."""
    number = number_of(text)
    if number <= 0:
        raise Refused(f"ERR invalid expire time in '{command}' command")
    return _time(option, number, command)


def _expiring(option: bytes, command: str) -> Callable[[Request], Plan]:
    """Return what plans EXPIRE, PEXPIRE, EXPIREAT or PEXPIREAT."""

    def plan(request: Request) -> Plan:
        when = 0
        for word in request[3:]:
            flag = _WHEN.get(word.upper())
            if flag is None:
                raise Refused(f"ERR Unsupported option {word.decode('utf-8', 'replace')}")
            when |= flag
        if when & UNLESS_ENDS and when != UNLESS_ENDS:
            raise Refused("ERR NX and XX, GT or LT options at the same time are not compatible")
        if when & IF_LATER and when & IF_EARLIER:
            raise Refused("ERR GT and LT options at the same time are not compatible")
        unit, amount = _time(option, number_of(request[2]), command)
        return Plan(True, [["expire", key_of(request[1]), unit, amount, when]])

    return plan


_WHEN: Final = {b"NX": UNLESS_ENDS, b"XX": IF_ENDS, b"GT": IF_LATER, b"LT": IF_EARLIER}


def _left_ms(found: Any) -> Answer:
    """What is left of a key, by the later of its shard's clock and this node's."""
    if found is None:
        return -2
    deadline_ms, clock_ms = found
    return max(0, deadline_ms - max(clock_ms, now_ms())) if deadline_ms else -1


def _left_s(found: Any) -> Answer:
    left_ms: int = _left_ms(found)
    return left_ms if left_ms < 0 else (left_ms + 500) // 1_000


def _deadline_ms(found: Any) -> Answer:
    return -2 if found is None else found[0] or -1


def _deadline_s(found: Any) -> Answer:
    at_ms: int = _deadline_ms(found)
    return at_ms if at_ms < 0 else (at_ms + 500) // 1_000


# ------------------------------------------------------------------------------------------------------- the plans

_HOW: Final = {b"NX": IF_ABSENT, b"XX": IF_PRESENT, b"GET": TELL_OLD}


def _set(request: Request) -> Plan:
    if len(request) == 3:
        return Plan(True, [["set", key_of(request[1]), value_of(request[2])]])
    how, unit, end = _options(request[3:], _HOW, {b"KEEPTTL": KEEP})
    amount = 0
    if end is not None:
        unit, amount = _above_zero(*end, "set")
    return Plan(True, [["set", key_of(request[1]), value_of(request[2]), how, unit, amount]])


def _setnx(request: Request) -> Plan:
    call = ["set", key_of(request[1]), value_of(request[2]), IF_ABSENT]
    return Plan(True, [call], _of_one(lambda done: 1 if done else 0))


def _setting(option: bytes, command: str) -> Callable[[Request], Plan]:
    """Return what plans SETEX or PSETEX."""

    def plan(request: Request) -> Plan:
        unit, amount = _above_zero(option, request[2], command)
        return Plan(True, [["set", key_of(request[1]), value_of(request[3]), 0, unit, amount]])

    return plan


def _getset(request: Request) -> Plan:
    return Plan(True, [["set", key_of(request[1]), value_of(request[2]), TELL_OLD]])


def _getex(request: Request) -> Plan:
    if len(request) == 2:
        return Plan(False, [["get", key_of(request[1])]])
    _, unit, end = _options(request[2:], {}, {b"PERSIST": NEVER})
    amount = 0
    if end is not None:
        try:
            unit, amount = _above_zero(*end, "getex")
        except Refused as problem:  # but a key that is absent is what Redis says first
            error = str(problem)
            return Plan(False, [["get", key_of(request[1])]], _of_one(lambda value: None if value is None else error))
    return Plan(True, [["renew", key_of(request[1]), unit, amount]])


def _mset(request: Request) -> Plan:
    if len(request) % 2 == 0:
        raise Refused("ERR wrong number of arguments for 'mset' command")
    pairs = zip(request[1::2], request[2::2], strict=True)
    return Plan(True, [["set", key_of(key), value_of(value)] for key, value in pairs], _done)


def _adding(sign: int) -> Callable[[Request], Plan]:
    """Return what plans INCR or DECR."""

    def plan(request: Request) -> Plan:
        return Plan(True, [["add", key_of(request[1]), sign]])

    return plan


def _incrby(request: Request) -> Plan:
    return Plan(True, [["add", key_of(request[1]), number_of(request[2])]])


def _decrby(request: Request) -> Plan:
    amount = number_of(request[2])
    if amount == -_INT64_MAX - 1:
        raise Refused("ERR decrement would overflow")
    return Plan(True, [["add", key_of(request[1]), -amount]])


def _incrbyfloat(request: Request) -> Plan:
    try:
        read(request[2])
    except BadNumber:
        raise Refused(NOT_A_FLOAT) from None
    return Plan(True, [["addfloat", key_of(request[1]), request[2]]])


def _append(request: Request) -> Plan:
    return Plan(True, [["append", key_of(request[1]), value_of(request[2])]])


_WRITE: Final = ("write", "denyoom", "fast")
_READ: Final = ("readonly", "fast")
_FIRST: Final = (1, 1, 1)
_ALL: Final = (1, -1, 1)

COMMANDS: Final = (
    Command("get", 2, _READ, _FIRST, _one("get", False)),
    Command("set", -3, ("write", "denyoom"), _FIRST, _set),
    Command("setnx", 3, _WRITE, _FIRST, _setnx),
    Command("setex", 4, ("write", "denyoom"), _FIRST, _setting(b"EX", "setex")),
    Command("psetex", 4, ("write", "denyoom"), _FIRST, _setting(b"PX", "psetex")),
    Command("getset", 3, _WRITE, _FIRST, _getset),
    Command("getdel", 2, ("write", "fast"), _FIRST, _one("take", True)),
    Command("getex", -2, ("write", "fast"), _FIRST, _getex),
    Command("mget", -2, _READ, _ALL, _each("get", False, _all_results)),
    Command("mset", -3, ("write", "denyoom"), (1, -1, 2), _mset),
    Command("del", -2, ("write",), _ALL, _each("delete", True, sum)),
    Command("unlink", -2, ("write", "fast"), _ALL, _each("delete", True, sum)),
    Command("exists", -2, _READ, _ALL, _each("exists", False, sum)),
    Command("touch", -2, _READ, _ALL, _each("exists", False, sum)),
    Command("incr", 2, _WRITE, _FIRST, _adding(1)),
    Command("decr", 2, _WRITE, _FIRST, _adding(-1)),
    Command("incrby", 3, _WRITE, _FIRST, _incrby),
    Command("decrby", 3, _WRITE, _FIRST, _decrby),
    Command("incrbyfloat", 3, _WRITE, _FIRST, _incrbyfloat),
    Command("append", 3, _WRITE, _FIRST, _append),
    Command("strlen", 2, _READ, _FIRST, _one("strlen", False)),
    Command("expire", -3, ("write", "fast"), _FIRST, _expiring(b"EX", "expire")),
    Command("pexpire", -3, ("write", "fast"), _FIRST, _expiring(b"PX", "pexpire")),
    Command("expireat", -3, ("write", "fast"), _FIRST, _expiring(b"EXAT", "expireat")),
    Command("pexpireat", -3, ("write", "fast"), _FIRST, _expiring(b"PXAT", "pexpireat")),
    Command("ttl", 2, _READ, _FIRST, _one("end", False, _left_s)),
    Command("pttl", 2, _READ, _FIRST, _one("end", False, _left_ms)),
    Command("expiretime", 2, _READ, _FIRST, _one("end", False, _deadline_s)),
    Command("pexpiretime", 2, _READ, _FIRST, _one("end", False, _deadline_ms)),
    Command("persist", 2, ("write", "fast"), _FIRST, _one("persist", True)),
    Command("type", 2, _READ, _FIRST, _one("exists", False, lambda there: Simple("string" if there else "none"))),
)
