"""From an entry of the log to what comes of it: by the kind of its record, on the replica's state machine.

    COMMANDS  a command's bytes                       ──> the machine
    SESSION   the same behind the number that its client gave it ──> the session table, then the machine
    CONTROL   what concerns the group itself          ──> here

Rules of this file: what comes of an entry is decided by the log alone, so that it is the same on every replica; what
is not (`environmental`) is raised, and halts the replica.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, Final, TypeAlias

import msgpack

from multiraft.engine.machine import Context, Machine, command_failed, environmental
from multiraft.engine.sessions import Result, SessionTable
from multiraft.errors import CommandFailed, CorruptRecord, InvalidRequest
from multiraft.records import COMMANDS, CONTROL, SESSION
from multiraft.sessions import HEAD, REGISTER, registration
from multiraft.types import GroupId

Control: TypeAlias = Callable[[list[Any], Context], Result]
Run: TypeAlias = Callable[[bytes, Context], Result]
log: Final = logging.getLogger("multiraft.engine")


class Executor:
    """What one replica's entries are run by.

    machine          the state machine
    runs             by the record's kind: what runs one entry of it
    controls         by its code: what runs a CONTROL entry
    sessions         the clients, and what was replied to them
    failed_commands  how many commands raised, since the start
    """

    __slots__ = ("controls", "failed_commands", "group_id", "machine", "runs", "sessions")

    def __init__(self, group_id: GroupId, machine: Machine) -> None:
        self.group_id = group_id
        self.machine = machine
        self.failed_commands = 0
        self.sessions = SessionTable()
        self.runs: dict[int, Run] = {COMMANDS: self.command, SESSION: self.numbered, CONTROL: self.control}
        self.controls: dict[int, Control] = {REGISTER: self.register}

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

    def numbered(self, entry: bytes, context: Context) -> Result:
        """Apply the command of a session, unless it was applied before. Otherwise as `command`."""
        if len(entry) < HEAD.size:
            return InvalidRequest(f"an entry of {len(entry)} bytes is no command of a session")
        client, sequence, lowest = HEAD.unpack_from(entry)
        answer = self.sessions.answer(client, sequence, lowest, context.time_ms)
        if answer is None:
            answer = self.command(entry[HEAD.size :], context)
            self.sessions.keep(client, sequence, answer)
        return answer

    def control(self, entry: bytes, context: Context) -> Result:
        """Do what concerns the group itself. Raises CorruptRecord for a code that this version does not know."""
        try:
            fields = msgpack.unpackb(entry)
        except ValueError:
            fields = None
        if not isinstance(fields, list) or not fields or type(fields[0]) is not int:
            return InvalidRequest("a malformed entry of control")
        run = self.controls.get(fields[0])
        if run is None:
            raise CorruptRecord(f"index {context.index} holds an entry of control of the unknown code {fields[0]}")
        return run(fields, context)

    def register(self, fields: list[Any], context: Context) -> Result:
        """Begin the session of a client."""
        asked = registration(fields)
        if asked is None:
            return InvalidRequest("a malformed registration of a session")
        self.sessions.register(*asked, context.time_ms)
        return b""
