"""Answers as bytes of the Redis protocol, of its second version or its third.

    bytes -> bulk string    int -> number      None -> null      list -> array      dict -> map (2: a flat array)
    str   -> error          True -> +OK        False -> null where an array was expected
    Simple -> simple string     Verbatim -> verbatim text (2: bulk string)

Rules of this file: no I/O; an error is one line, whatever it was made of.
"""

from __future__ import annotations

from typing import Any, Final

Answer = Any
OK: Final = b"+OK\r\n"


class Simple(str):
    """A short text without an end of line, such as PONG."""

    __slots__ = ()


class Verbatim(str):
    """A text for people."""

    __slots__ = ()


class Replies:
    """Writes answers in one version of the protocol.

    version  2 or 3
    null     nothing, where a bulk string was expected
    no_list  nothing, where an array was expected
    """

    __slots__ = ("no_list", "null", "version")

    def __init__(self, version: int) -> None:
        self.version = version
        self.null = b"_\r\n" if version == 3 else b"$-1\r\n"
        self.no_list = b"_\r\n" if version == 3 else b"*-1\r\n"

    def encode(self, answer: Answer) -> bytes:
        """Return the bytes of one answer."""
        if answer is True:
            return OK
        kind = type(answer)
        if kind is bytes:
            return b"$%d\r\n%b\r\n" % (len(answer), answer)
        if kind is int:
            return b":%d\r\n" % answer
        if answer is None:
            return self.null
        if answer is False:
            return self.no_list
        if kind is str:
            return b"-%b\r\n" % one_line(answer)
        return self._encode_rare(answer)

    def _encode_rare(self, answer: Answer) -> bytes:
        if isinstance(answer, Simple):
            return b"+%b\r\n" % one_line(answer)
        if isinstance(answer, Verbatim):
            text = answer.encode()
            if self.version == 3:
                return b"=%d\r\ntxt:%b\r\n" % (len(text) + 4, text)
            return self.encode(text)
        if isinstance(answer, list):
            return b"*%d\r\n%b" % (len(answer), b"".join(map(self.encode, answer)))
        if isinstance(answer, dict):
            flat = b"".join([self.encode(part) for pair in answer.items() for part in pair])
            if self.version == 3:
                return b"%%%d\r\n%b" % (len(answer), flat)
            return b"*%d\r\n%b" % (2 * len(answer), flat)
        raise TypeError(f"{type(answer).__name__} is no answer")


def one_line(text: str) -> bytes:
    """Return `text` as bytes without any end of line."""
    return text.encode("utf-8", "surrogateescape").replace(b"\r", b" ").replace(b"\n", b" ")


RESP2: Final = Replies(2)
RESP3: Final = Replies(3)
