"""How a call ended, as bytes: the result, or the error with what its type carries.

A forwarded call must fail at its caller with the very type that the leader raised, because the type says whose move
it is. The first byte says which of the two follows; an error is a msgpack array of its class's name and arguments.

Rules of this file: decoding never guesses in the caller's favour: what it does not understand is OutcomeUnknown for a
command, ReadFailed for a read.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, NoReturn, TypeAlias

import msgpack

from multiraft.errors import (
    BackupRefused,
    ChangePending,
    ChangeRefused,
    CommandFailed,
    ConfigError,
    CorruptRecord,
    DeadlineExceeded,
    DiskFull,
    Halted,
    InvalidRequest,
    MembershipChanged,
    MultiRaftError,
    NoSuchFile,
    NotCommitted,
    NotLeader,
    NotReady,
    NotRunning,
    OutcomeUnknown,
    Overloaded,
    ReadFailed,
    RecoveryRefused,
    ReplyForgotten,
    SessionExpired,
    StartError,
    StorageError,
    Unreachable,
    UnreadableStore,
    WireError,
    WrongShard,
)

Outcome: TypeAlias = bytes | MultiRaftError
"""A result, or the error that takes its place."""
_RESULT: Final = b"\x01"
_ERROR: Final = b"\x02"
_TEXT_CHARACTERS: Final = 2_000

_SAID: Final[dict[str, type[MultiRaftError]]] = {
    kind.__name__: kind
    for kind in (
        BackupRefused,
        RecoveryRefused,
        UnreadableStore,
        ChangePending,
        ChangeRefused,
        ConfigError,
        CorruptRecord,
        DeadlineExceeded,
        DiskFull,
        Halted,
        InvalidRequest,
        MembershipChanged,
        MultiRaftError,
        NoSuchFile,
        NotCommitted,
        NotReady,
        NotRunning,
        OutcomeUnknown,
        Overloaded,
        ReadFailed,
        ReplyForgotten,
        SessionExpired,
        StartError,
        StorageError,
        Unreachable,
        WireError,
        WrongShard,
    )
}
"""Errors that are made from their text alone."""


def encode_outcome(outcome: bytes | BaseException) -> bytes:
    """Return `outcome`, the result of a call or what it raised, as bytes.

    A subclass that errors.py does not know travels as the nearest class that it does know; what is no MultiRaftError
    (a bug, a cancellation) as OutcomeUnknown, because nothing is certain then.
    """
    if not isinstance(outcome, BaseException):
        return _RESULT + outcome
    return _ERROR + _pack(_parts(outcome))


def decode_outcome(raw: bytes, *, read: bool = False) -> bytes:
    """Return the result in `raw`, or raise the error in it; `read` says that the call could not change anything.

    Raises OutcomeUnknown (ReadFailed for a read) for an error of unknown class and for bytes that are no outcome.
    """
    if raw[:1] == _RESULT:
        return raw[1:]
    if raw[:1] != _ERROR:
        _unknown("the answer is neither a result nor an error", read)
    try:
        name, *arguments = msgpack.unpackb(raw[1:])
        make = _MAKERS[name]
    except (ValueError, TypeError, KeyError):
        _unknown("the error in the answer is of a kind that this version does not know", read)
    try:
        error = make(*arguments)
    except (TypeError, ValueError):
        _unknown(f"the {name} in the answer is malformed", read)
    raise error


def encode_commands(commands: list[bytes]) -> bytes:
    """Return many commands of one call as bytes."""
    packed: bytes = msgpack.packb(commands)
    return packed


def decode_commands(raw: bytes) -> list[bytes]:
    """Return the commands in `raw`. Raises InvalidRequest if there are none."""
    try:
        commands = msgpack.unpackb(raw)
    except ValueError:
        commands = None
    if not isinstance(commands, list) or {*map(type, commands)} != {bytes}:
        raise InvalidRequest("a call of many commands holds none, or something else")
    return commands


def encode_outcomes(outcomes: list[Outcome]) -> bytes:
    """Return the outcomes of many commands as bytes."""
    packed: bytes = msgpack.packb([encode_outcome(outcome) for outcome in outcomes])
    return packed


def decode_outcomes(raw: bytes, count: int) -> list[Outcome]:
    """Return the outcomes of `count` commands. Raises OutcomeUnknown for bytes that hold something else."""
    try:
        packed = msgpack.unpackb(raw)
    except ValueError:
        packed = None
    if not isinstance(packed, list) or len(packed) != count or {*map(type, packed)} != {bytes}:
        raise OutcomeUnknown("the answer does not hold an outcome for each command; they may have happened")
    outcomes: list[Outcome] = []
    for one in packed:
        try:
            outcomes.append(decode_outcome(one))
        except MultiRaftError as problem:
            outcomes.append(problem)
    return outcomes


def _pack(parts: list[Any]) -> bytes:
    packed: Any = msgpack.packb(parts, unicode_errors="replace")
    return bytes(packed)


def _parts(error: BaseException) -> list[Any]:
    if isinstance(error, NotLeader):
        return ["NotLeader", error.group_id, error.leader]
    if isinstance(error, CommandFailed):
        return ["CommandFailed", error.exception, error.detail]
    text = str(error)[:_TEXT_CHARACTERS]
    if isinstance(error, MultiRaftError):
        for kind in type(error).__mro__:
            if kind.__name__ in _SAID:
                return [kind.__name__, text]
    return ["OutcomeUnknown", f"the call ended with {type(error).__name__}: {text}"]


def _unknown(problem: str, read: bool) -> NoReturn:
    raise ReadFailed(problem) if read else OutcomeUnknown(f"{problem}; the command may have happened")


def _not_leader(group_id: int, leader: str | None) -> NotLeader:
    if type(group_id) is not int or not (leader is None or type(leader) is str):
        raise TypeError
    return NotLeader(group_id, leader)


def _command_failed(exception: str, detail: str) -> CommandFailed:
    if type(exception) is not str or type(detail) is not str:
        raise TypeError
    return CommandFailed(exception, detail)


def _said(kind: type[MultiRaftError]) -> Callable[[str], MultiRaftError]:
    def make(text: str) -> MultiRaftError:
        if type(text) is not str:
            raise TypeError
        return kind(text)

    return make


_MAKERS: Final[dict[str, Callable[..., MultiRaftError]]] = {
    "NotLeader": _not_leader,
    "CommandFailed": _command_failed,
    **{name: _said(kind) for name, kind in _SAID.items()},
}
