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
from typing import Final, TypeAlias

from multiraft.engine.machine import Context, Machine, command_failed, environmental
from multiraft.errors import CommandFailed
from multiraft.records import COMMANDS
from multiraft.types import GroupId

Result: TypeAlias = bytes | CommandFailed
Run: TypeAlias = Callable[[bytes, Context], Result]
log: Final = logging.getLogger("multiraft.engine")


class Executor:
    """What one replica's entries are run by.

    machine          the state machine
    runs             by the record's kind: what runs one entry of it
    failed_commands  how many commands raised, since the start
    """

    __slots__ = ("failed_commands", "group_id", "machine", "runs")

    def __init__(self, group_id: GroupId, machine: Machine) -> None:
        self.group_id = group_id
        self.machine = machine
        self.failed_commands = 0
        self.runs: dict[int, Run] = {COMMANDS: self.command}

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
