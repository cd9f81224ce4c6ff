"""The words of one line of a scenario script, taken one by one; a mistake is told to the script's author.

Rules of this file: whatever is wrong with a script is a ScriptError; every word is taken, or the line is refused.
"""

from __future__ import annotations

from collections.abc import Collection
from difflib import get_close_matches


class ScriptError(Exception):
    """A script says something that cannot be done; the text says what."""


class Words:
    """What is left of a line."""

    def __init__(self, line: str) -> None:
        self.left = line.split()

    def take(self) -> str:
        """Take the next word."""
        if not self.left:
            raise ScriptError("a word is missing")
        return self.left.pop(0)

    def number(self) -> int:
        return to_number(self.take())

    def numbers(self) -> list[int]:
        """Take all that is left as numbers."""
        found = [to_number(word) for word in self.left]
        self.left.clear()
        return found

    def seconds(self) -> float:
        word = self.take()
        try:
            return float(word)
        except ValueError:
            raise ScriptError(f"{word!r} is no time in seconds") from None

    def maybe(self, *words: str) -> str:
        """Take the next word if it is one of these; return it, or nothing."""
        return self.left.pop(0) if self.left and self.left[0] in words else ""

    def options(self, known: Collection[str]) -> dict[str, str]:
        """Take all that is left as name=value."""
        found = {}
        while self.left:
            name, _, value = self.left.pop(0).partition("=")
            if name not in known:
                raise ScriptError(f"{name!r} is not understood{hint(name, known)}")
            found[name] = value
        return found

    def end(self) -> None:
        """Refuse what is left."""
        if self.left:
            raise ScriptError(f"{self.left[0]!r} is not understood")


def to_number(word: str) -> int:
    if not word.isdecimal():
        raise ScriptError(f"{word!r} is no number")
    return int(word)


def hint(word: str, known: Collection[str]) -> str:
    """Return which of `known` may have been meant, as the end of a sentence; or nothing."""
    close = get_close_matches(word, known, 1)
    return f"; did you mean {close[0]!r}?" if close else ""
