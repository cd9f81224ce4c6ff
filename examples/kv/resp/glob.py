"""The patterns of SCAN: `*`, `?`, `[abc]`, `[^a-z]`, and a backslash before what is meant as it stands.

Rules of this file: the time is bounded by pattern times text, whatever the pattern: of several stars only the last one
is ever tried again, for what the ones before it took is as good as any other choice.
"""

from __future__ import annotations

from typing import Final

_STAR, _ANY, _OPEN, _CLOSE, _ESCAPE, _NOT, _DASH = b"*?[]\\^-"
_ALL: Final = frozenset(range(256))

Piece = frozenset[int] | None
"""The bytes that one place of the text may have; None: any number of places, with any bytes."""


def compile_glob(pattern: bytes) -> list[Piece]:
    """Return the pattern in pieces, for `matches`."""
    pieces: list[Piece] = []
    at, end = 0, len(pattern)
    while at < end:
        byte = pattern[at]
        at += 1
        if byte == _STAR:
            if not pieces or pieces[-1] is not None:
                pieces.append(None)
        elif byte == _ANY:
            pieces.append(_ALL)
        elif byte == _OPEN:
            piece, at = _class(pattern, at)
            pieces.append(piece)
        else:
            if byte == _ESCAPE and at < end:
                byte = pattern[at]
                at += 1
            pieces.append(frozenset((byte,)))
    return pieces


def _class(pattern: bytes, at: int) -> tuple[frozenset[int], int]:
    """Return what stands in brackets from `at` on, and where the pattern goes on. Without an end, it ends with it."""
    end = len(pattern)
    refused = at < end and pattern[at] == _NOT
    if refused:
        at += 1
    found: set[int] = set()
    while at < end and pattern[at] != _CLOSE:
        byte = pattern[at]
        if byte == _ESCAPE and at + 1 < end:
            found.add(pattern[at + 1])
            at += 2
        elif at + 2 < end and pattern[at + 1] == _DASH:
            low, high = sorted((byte, pattern[at + 2]))
            found.update(range(low, high + 1))
            at += 3
        else:
            found.add(byte)
            at += 1
    return (_ALL - found if refused else frozenset(found)), at + 1


def matches(pieces: list[Piece], text: bytes) -> bool:
    """Return whether all of `text` fits."""
    at = place = 0
    star, after = -1, 0  # the last star, and where the text goes on behind what it took
    while at < len(text):
        piece = pieces[place] if place < len(pieces) else frozenset()
        if piece is None:
            star, after = place, at
            place += 1
        elif text[at] in piece:
            at += 1
            place += 1
        elif star >= 0:
            after += 1
            at, place = after, star + 1
        else:
            return False
    return all(piece is None for piece in pieces[place:])
