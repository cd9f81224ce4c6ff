"""How a client numbers its changes, so that each is done once however often it is asked for.

A client opens a session (POST /session) and says with each change `Session: ID:SEQUENCE:LOWEST`, or
`ID:SEQUENCE:LOWEST:first` where it has not asked before, or knows that no earlier attempt happened. SEQUENCE is the
same for every attempt of one change. LOWEST is the lowest one whose outcome it may still ask for: what the store keeps
of those below it goes.

Rules of this file: a number is never used for another change, in no session.
"""

from __future__ import annotations

from typing import Final

from multiraft.errors import InvalidRequest, Overloaded
from multiraft.sessions import WINDOW, Numbered

HEADER: Final = "Session"
_FIRST: Final = "first"


def write_number(number: Numbered) -> str:
    """Return the text of the header for one attempt."""
    text = f"{number.client.hex()}:{number.sequence}:{number.lowest}"
    return f"{text}:{_FIRST}" if number.first else text


def read_number(text: str) -> Numbered:
    """Return what the header says. Raises InvalidRequest."""
    client, *numbers = text.split(":")
    first = numbers[2:] == [_FIRST]
    try:
        sequence, lowest = (int(number) for number in (numbers[:2] if first else numbers))
        return Numbered(bytes.fromhex(client), sequence, lowest, first)
    except ValueError:
        raise InvalidRequest(f"{HEADER}: {text:.80}: must be ID:SEQUENCE:LOWEST, or ID:SEQUENCE:LOWEST:first") from None


class Number:
    """The number of one change.

    asked  an attempt was made that may have happened
    """

    def __init__(self, session: Numbers, sequence: int) -> None:
        self.session = session
        self.sequence = sequence
        self.asked = False

    def header(self) -> dict[str, str]:
        """Return the headers of an attempt."""
        session = self.session
        return {HEADER: write_number(Numbered(session.client, self.sequence, session.lowest, not self.asked))}


class Numbers:
    """One session, and its changes that are under way."""

    def __init__(self, client: bytes) -> None:
        self.client = client
        self._next = 1
        self._under_way: dict[int, None] = {}  # ascending

    @property
    def lowest(self) -> int:
        """The lowest sequence whose outcome may still be asked for."""
        return next(iter(self._under_way), self._next)

    def begin(self) -> Number:
        """Return the number of another change. Raises Overloaded."""
        if self._next - self.lowest >= WINDOW:
            raise Overloaded(f"{WINDOW} changes were begun since one that is still under way")
        number = Number(self, self._next)
        self._under_way[self._next] = None
        self._next += 1
        return number

    def end(self, number: Number) -> None:
        """Nobody asks for the outcome of this change any more."""
        del self._under_way[number.sequence]
