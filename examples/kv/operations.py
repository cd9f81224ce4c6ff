"""The small calls that one command or query of a shard can be made of: those behind the RESP server (resp/).

A command that carries many of them costs the log, the disk and the network what one costs, so the server gathers what
its connections ask for (resp/gateway.py). Each call is an array: its name, then its arguments; a key is UTF-8. What a
call returns is bytes, a number, None, True for "done", False for "nothing was done", a list of these, or, as a text,
the error that its caller is told. One that returns an error has changed nothing.

    get K · exists K · strlen K                     what K holds: bytes or None; 0 or 1; a number
    end K                                           None when K is absent, else [its deadline or 0, the shard's clock]
    mark K...                                       a place in the sequence of changes, and which of the keys are there
    list AFTER COUNT                                [whether more follow, up to COUNT keys behind AFTER (or None)]
    count                                           how many keys there are
    set K VALUE HOW UNIT AMOUNT                     True, or None when HOW forbids it; the value before where it asks
    delete K · take K                               0 or 1; the value that was removed, or None
    renew K UNIT AMOUNT                             the value, or None; K ends then
    add K AMOUNT · addfloat K TEXT · append K TAIL  the new number, the new text, the new length
    expire K UNIT AMOUNT WHEN · persist K           0 or 1
    all WATCHED CALLS                               the results of all CALLS, or False when what was watched has changed

UNIT says what AMOUNT is: NEVER, FOR milliseconds, AT a moment in milliseconds since 1970, or KEEP the end as it is.

Rules of this file: these calls are part of the version of the machine's `run` and `look`: what is added or changed here
comes with another one. Every call decides before it writes. Calls are checked here although the server has checked
them: what is in the log may come from anywhere.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, Final, Protocol

import msgpack

from examples.kv.change import Change
from examples.kv.layout import (
    AFTER_PREFIX,
    KEY_LIMIT_BYTES,
    KEYS,
    VALUE_LIMIT_BYTES,
    Held,
    Meta,
    end_name,
)
from examples.kv.longdouble import BadNumber, add_texts
from multiraft.keyspace import Keyspace

NEVER, FOR, AT, KEEP = 0, 1, 2, 3
IF_ABSENT, IF_PRESENT, TELL_OLD = 1, 2, 4
"""Of HOW."""
UNLESS_ENDS, IF_ENDS, IF_LATER, IF_EARLIER = 1, 2, 4, 8
"""Of WHEN."""

RESULT_BYTES: Final = 512 * 1024
"""Once the results of one list of calls have come to this, the calls that follow are not made."""
LIST_LIMIT: Final = 10_000
NOT_A_NUMBER: Final = "ERR value is not an integer or out of range"
NOT_A_FLOAT: Final = "ERR value is not a valid float"
WOULD_OVERFLOW: Final = "ERR increment or decrement would overflow"
NOT_FINITE: Final = "ERR increment would produce NaN or Infinity"
TOO_LONG: Final = f"ERR a value has at most {VALUE_LIMIT_BYTES} bytes here"
_ANSWERS_TOO_LARGE: Final = f"ERR not done: the answers before it in this transaction are over {RESULT_BYTES} bytes"

_STRICT: Final = re.compile(rb"0|-?[1-9][0-9]{0,18}")
_INT64_MIN, _INT64_MAX = -(1 << 63), (1 << 63) - 1

Result = Any


class Reads(Protocol):
    """What a call that only reads needs: a Change, or a Look."""

    clock_ms: int

    def live(self, key: bytes) -> Held | None: ...

    def mark(self) -> tuple[int, int]: ...


class Look:
    """A shard as the latest command has left it."""

    def __init__(self, data: Keyspace, meta: Meta) -> None:
        self.data = data
        self.meta = meta
        self.clock_ms = meta.clock_ms
        self._known: dict[bytes, Held | None] = {}

    def live(self, key: bytes) -> Held | None:
        """Return what `key` holds; None when it is absent or has ended."""
        if key in self._known:  # many clients often want the same
            return self._known[key]
        packed = self.data.get(KEYS + key)
        held = None if packed is None else Held.unpack(packed)
        if held is not None and held.ended(self.clock_ms):
            held = None
        self._known[key] = held
        return held

    def mark(self) -> tuple[int, int]:
        """Return the place behind all changes that were made."""
        return self.meta.index + 1, 0

    def list(self, after: bytes | None, count: int) -> list[Result]:
        """Return whether more follow, and up to `count` keys behind `after`."""
        start = KEYS if after is None else KEYS + after + b"\0"
        found: list[bytes] = []
        for name, packed in self.data.range(start, KEYS + AFTER_PREFIX):
            if len(found) >= count:
                return [1, found]
            if not Held.unpack(packed).ended(self.clock_ms):
                found.append(name[len(KEYS) :])
        return [0, found]

    def count(self) -> int:
        """Return how many keys there are. Takes longer only with the number that have ended and not been removed."""
        meta = self.meta
        if not 0 < meta.next_end_ms <= meta.clock_ms:
            return meta.keys
        ended = self.data.keys(end_name(meta.next_end_ms), end_name(meta.clock_ms + 1))
        return meta.keys - sum(1 for _ in ended)


def make_calls(place: Any, packed: bytes, known: Mapping[str, Callable[..., Result]]) -> bytes:
    """Make the calls in `packed` at `place`, a Change or a Look; return their results, packed.

    Raises ValueError for what is no list of calls.
    """
    calls = msgpack.unpackb(packed)
    if type(calls) is not list:
        raise ValueError("not a list of calls")
    results: list[Result] = []
    size_bytes = 0
    for call in calls:
        try:
            name, *arguments = call
            result = known[name](place, *arguments)
        except _SENSELESS as problem:
            result = _senseless(call, known, problem)
        results.append(result)
        if result is not True and type(result) is not int and result is not None:
            size_bytes += _size(result)
            if size_bytes >= RESULT_BYTES:
                break
    packed_results: bytes = msgpack.packb(results)
    return packed_results


def _senseless(call: object, known: Mapping[str, Callable[..., Result]], problem: Exception) -> str:
    """Return what is told of a call that makes no sense: an error of its own, for others have nothing to do with it."""
    if type(call) is not list or not call or type(call[0]) is not str:
        return "ERR a call is an array that begins with a name"
    if call[0] not in known:
        return f"ERR {call[0]!r:.40} is no call that is known here"
    return f"ERR {call[0]}: {problem}"


_SENSELESS: Final = (TypeError, ValueError, AttributeError, LookupError, ArithmeticError)
"""What a call with arguments of a wrong kind ends with, before it has written anything."""


def _size(result: Result) -> int:
    """Return about how many bytes a result takes."""
    if type(result) is list:
        return sum(map(_size, result)) + 8
    return len(result) if type(result) is bytes else 8


def whole_number(text: bytes) -> int | None:
    """Return the number of 64 bits that `text` is, written as this store would write it; None where it is none."""
    if _STRICT.fullmatch(text):
        number = int(text)
        if _INT64_MIN <= number <= _INT64_MAX:
            return number
    return None


def _check_key(key: object) -> None:
    """Raise ValueError unless `key` may be stored; that it is UTF-8 is seen when it is put."""
    if type(key) is not bytes or not 1 <= len(key) <= KEY_LIMIT_BYTES:
        raise ValueError(f"a key is 1 to {KEY_LIMIT_BYTES} bytes of UTF-8")


# -------------------------------------------------------------------------------------------------------- reading


def _get(place: Reads, key: bytes) -> Result:
    held = place.live(key)
    return None if held is None else held.value


def _exists(place: Reads, key: bytes) -> Result:
    return 0 if place.live(key) is None else 1


def _strlen(place: Reads, key: bytes) -> Result:
    held = place.live(key)
    return 0 if held is None else len(held.value)


def _end(place: Reads, key: bytes) -> Result:
    held = place.live(key)
    return None if held is None else [held.deadline_ms, place.clock_ms]


def _mark(place: Reads, *keys: bytes) -> Result:
    return [*place.mark(), [place.live(key) is not None for key in keys]]


def _list(place: Look, after: bytes | None, count: int) -> Result:
    return place.list(after, min(max(1, count), LIST_LIMIT))


def _count(place: Look) -> Result:
    return place.count()


# -------------------------------------------------------------------------------------------------------- writing


def _deadline(change: Change, unit: int, amount: int, before: Held | None) -> int:
    """Return the deadline that is meant; one that has passed already is above 0, too."""
    if unit == NEVER:
        return 0
    if unit == KEEP:
        return 0 if before is None else before.deadline_ms
    if type(amount) is not int or unit not in (FOR, AT):
        raise ValueError("a time is a unit and a number")
    return min(max(1, change.clock_ms + amount if unit == FOR else amount), _INT64_MAX)


def _store(change: Change, key: bytes, value: bytes, deadline_ms: int) -> None:
    """Put, unless it would have ended by now: then remove, and let those who watch the key know in any case."""
    if 0 < deadline_ms <= change.clock_ms:
        if not change.remove(key):
            change.put(key, value)
            change.remove(key)
    else:
        change.put(key, value, deadline_ms)


def _set(change: Change, key: bytes, value: bytes, how: int = 0, unit: int = NEVER, amount: int = 0) -> Result:
    _check_key(key)
    if type(value) is not bytes or len(value) > VALUE_LIMIT_BYTES:
        raise ValueError(f"a value is at most {VALUE_LIMIT_BYTES} bytes")
    if not how and not unit:
        change.put(key, value)
        return True
    before = change.live(key)
    allowed = not (how & IF_ABSENT and before is not None) and not (how & IF_PRESENT and before is None)
    if allowed:
        _store(change, key, value, _deadline(change, unit, amount, before))
    if how & TELL_OLD:
        return None if before is None else before.value
    return True if allowed else None


def _delete(change: Change, key: bytes) -> Result:
    return 1 if change.remove(key) else 0


def _take(change: Change, key: bytes) -> Result:
    held = change.live(key)
    if held is None:
        return None
    change.remove(key)
    return held.value


def _renew(change: Change, key: bytes, unit: int, amount: int) -> Result:
    held = change.live(key)
    if held is None:
        return None
    deadline_ms = _deadline(change, unit, amount, held)
    if deadline_ms or held.deadline_ms:
        _store(change, key, held.value, deadline_ms)
    return held.value


def _add(change: Change, key: bytes, amount: int) -> Result:
    _check_key(key)
    if type(amount) is not int:
        raise ValueError("a number to be added is a number")
    held = change.live(key)
    number = 0 if held is None else whole_number(held.value)
    if number is None:
        return NOT_A_NUMBER
    total = number + amount
    if not _INT64_MIN <= total <= _INT64_MAX:
        return WOULD_OVERFLOW
    change.put(key, b"%d" % total, 0 if held is None else held.deadline_ms)
    return total


def _add_float(change: Change, key: bytes, text: bytes) -> Result:
    _check_key(key)
    held = change.live(key)
    try:
        total = add_texts(b"0" if held is None else held.value, text)
    except BadNumber:
        return NOT_A_FLOAT
    if total is None:
        return NOT_FINITE
    change.put(key, total, 0 if held is None else held.deadline_ms)
    return total


def _append(change: Change, key: bytes, tail: bytes) -> Result:
    _check_key(key)
    held = change.live(key)
    value = tail if held is None else held.value + tail
    if len(value) > VALUE_LIMIT_BYTES:
        return TOO_LONG
    change.put(key, value, 0 if held is None else held.deadline_ms)
    return len(value)


def _expire(change: Change, key: bytes, unit: int, amount: int, when: int = 0) -> Result:
    held = change.live(key)
    if held is None:
        return 0
    deadline_ms = _deadline(change, unit, amount, held)
    ends = held.deadline_ms
    if (when & UNLESS_ENDS and ends) or (when & IF_ENDS and not ends):
        return 0
    # A key that stays ends later than any other.
    if when & IF_LATER and (not ends or deadline_ms <= ends):
        return 0
    if when & IF_EARLIER and ends and deadline_ms >= ends:
        return 0
    _store(change, key, held.value, deadline_ms)
    return 1


def _persist(change: Change, key: bytes) -> Result:
    held = change.live(key)
    if held is None or not held.deadline_ms:
        return 0
    change.put(key, held.value)
    return 1


def _all(change: Change, watched: list[list[Any]], calls: list[list[Any]]) -> Result:
    """Make all calls, unless a watched key has changed since its mark."""
    for index, part, key, present in watched:
        if _has_changed(change, index, part, key, present):
            return False
    results: list[Result] = []
    size_bytes = 0
    for call in calls:
        if size_bytes >= RESULT_BYTES:
            results.append(_ANSWERS_TOO_LARGE)
            continue
        try:
            name, *arguments = call
            result = _IN_ALL[name](change, *arguments)
        except _SENSELESS as problem:
            result = _senseless(call, _IN_ALL, problem)
        results.append(result)
        size_bytes += _size(result)
    return results


def _has_changed(change: Change, index: int, part: int, key: bytes, present: bool) -> bool:
    if present and change.live(key) is None:
        return True
    kinds = change.happened(key, index, part)
    # What had ended before it was watched is only tidied up; and where nothing is known the worst is assumed.
    return kinds is None or any(present or kind != "expire" for kind in kinds)


_READ_KEYS: Final[dict[str, Callable[..., Result]]] = {
    "get": _get,
    "exists": _exists,
    "strlen": _strlen,
    "end": _end,
    "mark": _mark,
}
READS: Final[Mapping[str, Callable[..., Result]]] = {**_READ_KEYS, "list": _list, "count": _count}
"""The calls that a Look can make."""
_IN_ALL: Final[Mapping[str, Callable[..., Result]]] = {
    **_READ_KEYS,
    "set": _set,
    "delete": _delete,
    "take": _take,
    "renew": _renew,
    "add": _add,
    "addfloat": _add_float,
    "append": _append,
    "expire": _expire,
    "persist": _persist,
}
WRITES: Final[Mapping[str, Callable[..., Result]]] = {**_IN_ALL, "all": _all}
"""The calls that a Change can make."""
