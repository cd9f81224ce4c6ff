"""Requests of the Redis protocol out of bytes, as these come: arrays of bulk strings, or lines typed by hand.

    feed    more bytes have come
    take    the requests that are whole by now, up to a number

Two ways lead to the same requests. The fast one splits a window of the bytes at every line's end and checks whole
requests against what they say of themselves; whatever it does not recognise at once (a request that is not whole, a
value with a line's end in it, a line typed by hand) is left to the slow one, which goes piece by piece and remembers
where it was, so that no byte is looked at again and again however it trickles in.

Rules of this file: no I/O; nothing is made because a length was announced, only because its bytes are here; a request
is bounded in bytes and in arguments. After ProtocolError the connection is good for nothing more.
"""

from __future__ import annotations

from typing import Final

REQUEST_BYTES: Final = 17 * 1024 * 1024
"""Largest request, each argument counted with some overhead: two of the largest values fit."""
ARGUMENTS: Final = 1024 * 1024
INLINE_BYTES: Final = 64 * 1024
"""Longest line typed by hand, and longest line that announces a length."""
_OVERHEAD_BYTES: Final = 16
_WINDOW_BYTES: Final = 64 * 1024
_SLOW_AFTER: Final = 64
"""So many requests are taken the slow way once the fast one has found none, before it is tried again."""

_COUNTS: Final = {b"*%d" % count: count for count in range(1, 257)}
_SIZES: Final = {b"$%d" % size: size for size in range(4097)}
_DIGITS: Final = frozenset(b"0123456789")

Request = list[bytes]


class ProtocolError(Exception):
    """What came is no request; the text is for the client."""


class Parser:
    """The requests of one connection.

    limits  most bytes and most arguments of a request; a connection that has not said who it is may have lower ones
    """

    def __init__(self) -> None:
        self.limits = (REQUEST_BYTES, ARGUMENTS)
        self._buffer = bytearray()
        self._slow = 0  # requests to be taken the slow way
        # Of a request that has come in part:
        self._arguments: Request = []
        self._missing = 0  # arguments; 0: none has begun
        self._size = -1  # of the argument whose bytes come next; -1: its length comes first
        self._bytes = 0
        self._looked_at = 0  # so much of the buffer holds no line's end

    @property
    def held_bytes(self) -> int:
        """How much has come and was not taken."""
        return len(self._buffer)

    @property
    def in_part(self) -> bool:
        """Whether a request has begun to be taken and is not whole."""
        return self._missing > 0

    def feed(self, data: bytes) -> None:
        """More bytes have come."""
        self._buffer += data

    def take(self, most: int) -> list[Request]:
        """Return up to `most` requests that are whole; fewer, or none, until more bytes come.

        Raises ProtocolError, at the latest with the next call: what was whole before it is returned first.
        """
        taken: list[Request] = []
        try:
            while len(taken) < most and self._buffer:
                if self._missing or self._slow:
                    request = self._take_slowly()
                    if request is None:
                        break
                    self._slow = max(0, self._slow - 1)
                    if request:
                        taken.append(request)
                elif not self._take_fast(taken, most):
                    self._slow = _SLOW_AFTER
        except ProtocolError:
            if not taken:
                raise
            self._slow = 1  # the same error comes the next time: nothing of it was consumed
        return taken

    # ------------------------------------------------------------------------------------------------- the fast way

    def _take_fast(self, taken: list[Request], most: int) -> bool:
        """Append requests that stand in the first part of the buffer; return whether there were any."""
        buffer = self._buffer
        window = bytes(buffer[:_WINDOW_BYTES]) if len(buffer) > _WINDOW_BYTES else bytes(buffer)
        lines = window.split(b"\r\n")
        last = len(lines) - 1  # what stands there has no end
        at, room = 0, most - len(taken)
        sizes, lengths = _SIZES.get, len
        most_arguments = self.limits[1]
        while at < last and room:
            count = _COUNTS.get(lines[at])
            if count is None or count > most_arguments:
                break
            end = at + 1 + 2 * count
            if end > last:
                break
            request = lines[at + 2 : end : 2]
            if list(map(sizes, lines[at + 1 : end : 2])) != list(map(lengths, request)):
                break
            taken.append(request)
            room -= 1
            at = end
        if at == 0:
            return False
        rest = len(lines[at]) if at == last else len(b"\r\n".join(lines[at:]))
        del buffer[: len(window) - rest]
        return True

    # ------------------------------------------------------------------------------------------------- the slow way

    def _take_slowly(self) -> Request | None:
        """Return the next request, empty for one of no arguments; None until more bytes come."""
        if not self._missing:
            if self._buffer[0] != 0x2A:
                return self._inline()
            line = self._line("too big mbulk count string")
            if line is None:
                return None
            count = self._number(line, "invalid multibulk length")
            if count > self.limits[1]:
                raise self._refused(
                    "invalid multibulk length" if self.limits[1] == ARGUMENTS else "unauthenticated multibulk length"
                )
            self._consume_line(line)
            if count <= 0:
                return []
            self._missing, self._arguments, self._bytes = count, [], 0
        while self._missing:
            if self._size < 0 and not self._begin_argument():
                return None
            buffer, size = self._buffer, self._size
            if len(buffer) < size + 2:
                return None
            self._arguments.append(bytes(buffer[:size]))
            del buffer[: size + 2]
            self._size = -1
            self._missing -= 1
        request, self._arguments = self._arguments, []
        return request

    def _begin_argument(self) -> bool:
        """Read the length of the next argument; return whether it was there."""
        line = self._line("too big bulk count string")
        if line is None:
            return False
        if line[:1] != b"$":
            raise self._refused(f"expected '$', got '{chr(line[0]) if line else ' '}'")
        size = self._number(line, "invalid bulk length")
        most = self.limits[0]
        if not 0 <= size <= most:
            raise self._refused("invalid bulk length")
        self._bytes += size + _OVERHEAD_BYTES
        if self._bytes > most:
            raise self._refused(f"a request is at most {most} bytes here")
        self._consume_line(line)
        self._size = size
        return True

    def _line(self, too_long: str) -> bytes | None:
        """Return the next line without its end, leaving it in the buffer; None where it has no end yet."""
        buffer = self._buffer
        end = buffer.find(b"\r\n", max(0, self._looked_at - 1), INLINE_BYTES + 2)
        if end < 0:
            if len(buffer) > INLINE_BYTES:
                raise self._refused(too_long)
            self._looked_at = len(buffer)
            return None
        return bytes(buffer[:end])

    def _consume_line(self, line: bytes) -> None:
        del self._buffer[: len(line) + 2]
        self._looked_at = 0

    def _number(self, line: bytes, error: str) -> int:
        digits = line[2:] if line[1:2] == b"-" else line[1:]
        if not digits or len(digits) > 19 or not _DIGITS.issuperset(digits):
            raise self._refused(error)
        return int(line[1:])

    def _inline(self) -> Request | None:
        buffer = self._buffer
        end = buffer.find(b"\n", self._looked_at, INLINE_BYTES + 1)
        if end < 0:
            if len(buffer) > INLINE_BYTES:
                raise self._refused("too big inline request")
            self._looked_at = len(buffer)
            return None
        words = split_line(bytes(buffer[:end]).removesuffix(b"\r"))
        if words is None:
            raise self._refused("unbalanced quotes in request")
        del buffer[: end + 1]
        self._looked_at = 0
        return words

    def _refused(self, error: str) -> ProtocolError:
        return ProtocolError(f"ERR Protocol error: {error}")


_ESCAPES: Final = {0x6E: 0x0A, 0x72: 0x0D, 0x74: 0x09, 0x62: 0x08, 0x61: 0x07}
_SPACES: Final = b" \t\r\n\v\f\0"


def split_line(line: bytes) -> Request | None:
    """Return the words of a line typed by hand; quoted ones may hold spaces and escapes. None: a quote has no end."""
    words: Request = []
    at, end = 0, len(line)
    while True:
        while at < end and line[at] in _SPACES:
            at += 1
        if at == end:
            return words
        word = bytearray()
        while at < end and line[at] not in _SPACES:
            quote = line[at]
            if quote not in b"\"'":
                word.append(quote)
                at += 1
                continue
            at = _quoted(line, at + 1, quote, word)
            if at < 0 or (at < end and line[at] not in _SPACES):
                return None
        words.append(bytes(word))


def _quoted(line: bytes, at: int, quote: int, word: bytearray) -> int:
    """Append what stands in quotes from `at` on; return where it goes on behind them, below 0 if they have no end."""
    while at < len(line):
        byte, following = line[at], line[at + 1 : at + 2]
        if byte == quote:
            return at + 1
        if byte != 0x5C or not following or (quote == 0x27 and following != b"'"):
            word.append(byte)
            at += 1
        elif quote == 0x22 and following == b"x" and _is_hex(line[at + 2 : at + 4]):
            word.append(int(line[at + 2 : at + 4], 16))
            at += 4
        else:
            word.append(_ESCAPES.get(following[0], following[0]) if quote == 0x22 else following[0])
            at += 2
    return -1


def _is_hex(text: bytes) -> bool:
    return len(text) == 2 and all(byte in b"0123456789abcdefABCDEF" for byte in text)
