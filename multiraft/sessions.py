"""Exactly once: the bytes by which a client numbers its commands.

A session is one client's, in one group. The client is known by 16 random bytes, which the group registers through its
log before the first command, and numbers its commands from 1. However often a command then reaches the log under the
same number, it is applied once; every later copy is answered with the reply that was kept (Ongaro's thesis, section
6.3).

    SESSION entry    client id (16) | sequence (8) | lowest outstanding sequence (8) | the command
    CONTROL entry    msgpack [1, client id, expiry_ms, reply_bytes, sessions]: register this client

The lowest outstanding sequence is the lowest whose outcome anybody may still ask for: what is kept of lower ones is
forgotten, and a copy of one that comes after that is refused. A registration carries the bounds of the leader that
proposed it, so that replicas of different configurations forget the same things.

Rules of this file: bytes and values only; big-endian.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Any, Final

import msgpack

from multiraft.errors import InvalidRequest
from multiraft.types import U64_MAX

CLIENT_BYTES: Final = 16
HEAD: Final = struct.Struct(">16sQQ")
"""Of a SESSION entry: client id, sequence, lowest outstanding sequence. The command follows."""
WINDOW: Final = 65_536
"""A sequence this far above the lowest outstanding one is refused, so that what a group remembers is bounded."""

REGISTER: Final = 1
"""The code of a CONTROL entry that registers a client."""


@dataclass(frozen=True, slots=True)
class Numbered:
    """The number that a program gives to a command itself, to send it again from elsewhere, or after a restart.

    client    the session, as `Node.open_session` returned it
    sequence  from 1; the same for every attempt of one command, another one for another command
    lowest    the lowest sequence whose outcome may still be asked for: lower ones are refused from now on
    first     no earlier attempt was ever made under this number. Only then can a session that has expired be told
              apart from a command that has happened: SessionExpired is raised, otherwise OutcomeUnknown
    """

    client: bytes
    sequence: int
    lowest: int
    first: bool = False

    def __post_init__(self) -> None:
        if type(self.client) is not bytes or len(self.client) != CLIENT_BYTES:
            raise InvalidRequest(f"client = {self.client!r:.60}: must be the {CLIENT_BYTES} bytes of open_session")
        for name in ("sequence", "lowest"):
            number = getattr(self, name)
            if type(number) is not int or not 1 <= number <= U64_MAX:
                raise InvalidRequest(f"{name} = {number!r:.40}: must be a whole number from 1 to 2^64 - 1")
        if not self.lowest <= self.sequence < self.lowest + WINDOW:
            raise InvalidRequest(
                f"sequence = {self.sequence}: must be at least lowest = {self.lowest}, and less than {WINDOW} above it"
            )
        if type(self.first) is not bool:
            raise InvalidRequest(f"first = {self.first!r:.40}: must be True or False")

    def entry(self, command: bytes) -> bytes:
        """Return the entry of a log's record that holds `command` under this number."""
        return HEAD.pack(self.client, self.sequence, self.lowest) + command


def encode_register(client: bytes, expiry_ms: int, reply_bytes: int, sessions: int) -> bytes:
    """Return the CONTROL entry that registers `client`, with the bounds of who proposes it (config.Limits)."""
    packed: bytes = msgpack.packb([REGISTER, client, expiry_ms, reply_bytes, sessions])
    return packed


def registration(entry: list[Any]) -> tuple[bytes, int, int, int] | None:
    """Return (client, expiry_ms, reply_bytes, sessions) of a decoded CONTROL entry; None: it is malformed."""
    if len(entry) != 5 or type(entry[1]) is not bytes or len(entry[1]) != CLIENT_BYTES:
        return None
    if any(type(bound) is not int or bound < 1 for bound in entry[2:]):
        return None
    return entry[1], entry[2], entry[3], entry[4]
