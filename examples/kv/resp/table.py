"""All commands, by name.

Rules of this file: one table; what a command does stands in the file of its kind.
"""

from __future__ import annotations

from typing import Final

from examples.kv.resp import connecting, scanning, strings, transactions
from examples.kv.resp.command import Command, Refused
from examples.kv.resp.parser import Request

TABLE: Final[dict[str, Command]] = {
    command.name: command
    for commands in (strings.COMMANDS, transactions.COMMANDS, scanning.COMMANDS, connecting.COMMANDS)
    for command in commands
}
BY_WORD: Final = {word.encode(): command for name, command in TABLE.items() for word in (name, name.upper())}
"""The same by the bytes that clients nearly always send."""
_SHOWN: Final = 128


def find_command(request: Request) -> Command:
    """Return the command that `request` names, once the number of its words was checked. Raises Refused."""
    command = BY_WORD.get(request[0]) or BY_WORD.get(request[0].upper())
    if command is None:
        raise Refused(_unknown(request))
    command.check(request)
    return command


def _unknown(request: Request) -> str:
    shown = ""
    for word in request[1:]:
        if len(shown) >= _SHOWN:
            break
        shown += f"'{_text(word, _SHOWN - len(shown))}' "
    return f"ERR unknown command '{_text(request[0], _SHOWN)}', with args beginning with: {shown}"


def _text(word: bytes, most: int) -> str:
    """Return the first of `word` as Redis shows it: up to a zero byte."""
    return word[:most].split(b"\0")[0].decode("utf-8", "surrogateescape")
