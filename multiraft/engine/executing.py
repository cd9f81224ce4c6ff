"""From an entry of the log to what comes of it: by the kind of its record, on the replica's state machine.

    COMMANDS  a command's bytes                       ──> the machine
    SESSION   the same behind the number that its client gave it ──> the session table, then the machine
    CONTROL   what concerns the group itself          ──> here

Rules of this file: what comes of an entry is decided by the log alone, so that it is the same on every replica; what
is not (`environmental`) is raised, and halts the replica.
"""

from __future__ import annotations

import logging
from asyncio import Future
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Final, TypeAlias

import msgpack

from multiraft.engine.doing import Doing
from multiraft.engine.keyspace import SESSIONS, MachineOnDisk
from multiraft.engine.machine import (
    Context,
    Diverged,
    Heads,
    Machine,
    UnknownCommand,
    batch_of,
    command_failed,
    environmental,
    query_failed,
)
from multiraft.engine.rolling import RollingHash
from multiraft.engine.sessions import Result, SessionTable
from multiraft.engine.waiting import fail_future
from multiraft.errors import CommandFailed, InvalidRequest
from multiraft.records import COMMANDS, CONTROL, SESSION
from multiraft.sessions import HEAD, REGISTER, registration
from multiraft.types import GroupId, Index

Run: TypeAlias = Callable[[bytes, Context], Result]
Control: TypeAlias = Callable[[list[Any], Context], Result]

CHECK: Final = 2
_HEAD_BYTES: Final = HEAD.size
_unpack_head: Final = HEAD.unpack_from
_NO_HEADS: Final[Heads] = {}
_TEXT_CHARACTERS: Final = 200
log: Final = logging.getLogger("multiraft.engine")


class Executor:
    """What one replica's entries are run by.

    machine          the state machine; set by `take`
    batch            what applies many commands at once; None: the machine takes them one by one
    runs             by the record's kind: what runs one entry of it
    controls         by its code: what runs a CONTROL entry
    sessions         the clients, and what was replied to them
    rolling          what all results have come to
    heads            see `machine.Heads`
    doing            where it is told what is done now
    failed_commands  how many commands raised, since the start
    """

    __slots__ = (
        "batch",
        "controls",
        "doing",
        "failed_commands",
        "group_id",
        "heads",
        "machine",
        "rolling",
        "runs",
        "sessions",
    )

    def __init__(self, group_id: GroupId, machine: Machine) -> None:
        self.group_id = group_id
        self.machine = machine
        self.batch = batch_of(machine)
        self.heads = _heads_of(machine)
        self.doing = Doing()
        self.failed_commands = 0
        self.sessions = SessionTable()
        self.rolling = RollingHash()
        self.runs: dict[int, Run] = {COMMANDS: self.command, SESSION: self.numbered, CONTROL: self.control}
        self.controls: dict[int, Control] = {REGISTER: self.register, CHECK: self._check}

    def take(self, machine: Machine) -> None:
        """Go on with another machine, of the same class, which stands where this one does."""
        self.machine, self.batch = machine, batch_of(machine)

    def changes_beside(self) -> Iterable[tuple[bytes, bytes | None]]:
        """Return what entries have changed of the sessions since the last time, for the data of a machine on disk.

        Keys of the keyspace's part for sessions, each with that part's byte, and values (None: deleted).
        """
        return [(SESSIONS + key, value) for key, value in self.sessions.take_changes()]

    def load_beside(self, pairs: Iterator[tuple[bytes, bytes]]) -> None:
        """Take what `changes_beside` has said in earlier runs, or on the leader: keys without the part's byte.

        Raises CorruptRecord.
        """
        self.sessions = SessionTable.load(pairs)

    def anew(self, machine: Machine) -> Executor:
        """Return one for `machine`, which has applied nothing yet, or goes on from the data of this one."""
        executor = Executor(self.group_id, machine)
        if self.sessions.tracked:  # with what is on its way to the data
            executor.sessions = self.sessions
        executor.failed_commands, executor.doing = self.failed_commands, self.doing
        return executor

    def command(self, command: bytes, context: Context) -> Result:
        """Apply one command; return its result, or what its caller is to be raised. Raises what halts the replica."""
        try:
            result = self.machine.apply(command, context)
        except Exception as problem:
            if environmental(problem):
                raise
            failed = command_failed(problem)
            self.failed_commands += 1
            log.info("group %d: command at index %d failed: %s", self.group_id, context.index, failed)
            return failed
        if type(result) is not bytes:
            return CommandFailed("TypeError", f"apply returned {type(result).__name__}, not bytes")
        return result

    def query(self, query: bytes) -> bytes:
        """Have the machine answer."""
        doing = self.doing
        next(doing.ask(self.group_id, [query]))
        try:
            return self.machine.query(query)
        finally:
            doing.asked = None

    def answer(self, queries: list[bytes], futures: list[Future[bytes]]) -> None:
        """Have the machine answer `queries` in order, each to its own future; same length. On the hot path of reads."""
        query, coming = self.machine.query, self.doing.ask(self.group_id, queries)
        try:
            for body, future in zip(coming, futures, strict=True):
                if future.done():
                    continue
                try:
                    future.set_result(query(body))
                except Exception as problem:
                    fail_future(future, query_failed(problem))
        finally:
            self.doing.asked = None

    def answers(self, queries: list[bytes]) -> list[Result]:
        """Have the machine answer `queries`; return of each what came of it: its answer, or what is to be raised."""
        answers: list[Result] = []
        query = self.machine.query
        try:
            for body in self.doing.ask(self.group_id, queries):
                try:
                    answers.append(query(body))
                except Exception as problem:
                    answers.append(query_failed(problem))
        finally:
            self.doing.asked = None
        return answers

    def numbered(self, entry: bytes, context: Context) -> Result:
        """Apply the command of a session, unless it was applied before. Otherwise as `command`."""
        if len(entry) < _HEAD_BYTES:
            return InvalidRequest(f"an entry of {len(entry)} bytes is no command of a session")
        client, sequence, lowest = _unpack_head(entry)
        answer = self.sessions.answer(client, sequence, lowest, context.time_ms)
        if answer is None:
            answer = self.command(entry[_HEAD_BYTES:], context)
            self.sessions.keep(client, sequence, answer)
        return answer

    def control(self, entry: bytes, context: Context) -> Result:
        """Do what concerns the group itself. Raises UnknownCommand for a code of a later version; Diverged."""
        try:
            fields = msgpack.unpackb(entry)
        except ValueError:
            fields = None
        if not isinstance(fields, list) or not fields or type(fields[0]) is not int:
            return InvalidRequest("a malformed entry of control")
        run = self.controls.get(fields[0])
        if run is None:
            raise UnknownCommand(f"this version of multiraft knows no control entry of code {fields[0]}")
        return run(fields, context)

    def register(self, fields: list[Any], context: Context) -> Result:
        """Begin the session of a client."""
        asked = registration(fields)
        if asked is None:
            return InvalidRequest("a malformed registration of a session")
        self.sessions.register(*asked, context.time_ms)
        return b""

    def _check(self, parts: list[Any], context: Context) -> Result:
        """Compare what has come of the commands here with what has on most replicas."""
        _, index, value = parts
        own = self.rolling.at(index)
        if own is not None and own != value:
            raise Diverged(index, value, own)
        self.rolling.compared(index)
        return b""

    def refuses(self, kind: int, entry: bytes) -> str | None:
        """Why an entry of this kind must not be proposed: the machine's class would not know it. None: it may be.

        On the hot path: a call as it is usually written is looked up where it stands.
        """
        heads = self.heads
        if heads is None:
            return None
        at = 0 if kind == COMMANDS else HEAD.size
        if len(entry) > at + 1:
            most = heads.get(entry[at + 1 : at + 2 + (entry[at + 1] & 0x1F)])
            if most is not None and 0x90 < entry[at] <= most:
                return None
        return self.machine.refuses(entry[at:] if at else entry)

    def text_of(self, kind: int, entry: bytes) -> str:
        """Return an entry of a record of this kind as an operator reads it, on one line. Never raises."""
        if kind == SESSION:
            entry = entry[HEAD.size :]
        elif kind != COMMANDS:
            return "an entry of the group's own"
        text = self.machine.describe(entry)
        return text if len(text) <= _TEXT_CHARACTERS else f"{text[:_TEXT_CHARACTERS]}..."


def _heads_of(machine: Machine) -> Heads:
    inner: object = machine.machine if isinstance(machine, MachineOnDisk) else machine
    heads: Heads = getattr(inner, "heads", _NO_HEADS)
    return heads


def check_entry(index: Index, value: int) -> bytes:
    """Return the CONTROL entry that has all replicas compare their rolling hash at `index` with `value`."""
    packed: bytes = msgpack.packb([CHECK, index, value])
    return packed
