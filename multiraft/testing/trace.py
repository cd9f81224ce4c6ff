"""The timeline of one run: virtual time, node, what happened.

Two kinds of lines: those that tell the story (faults, starts and ends, leaders, membership) are always kept, the
newest of them; details (commits, calls) only where the whole trace was asked for. Two runs of one seed give the same
lines, byte for byte.

Rules of this file: no real time; bounded unless the whole trace was asked for.
"""

from __future__ import annotations

import zlib
from collections import deque
from collections.abc import Callable
from typing import Final

_KEPT: Final = 200


class Trace:
    """Lines in order of time.

    now      the clock of the run, in seconds
    details  keep details, too, and every line
    frames   how many frames were sent; their bytes are in `frames_crc`
    """

    def __init__(self, now: Callable[[], float], details: bool = False) -> None:
        self.details = details
        self.lines: deque[str] = deque(maxlen=None if details else _KEPT)
        self.frames = 0
        self.frames_crc = 0
        self._now = now

    def say(self, who: str, what: str) -> None:
        """Note a line of the story."""
        self.lines.append(f"{self._now():11.6f}  {who:<8} {what}")

    def detail(self, who: str, what: str) -> None:
        """Note what only a whole trace has."""
        if self.details:
            self.lines.append(f"{self._now():11.6f}  {who:<8}   {what}")

    def frame(self, frame: bytes) -> None:
        """Count a frame that leaves a node."""
        self.frames += 1
        self.frames_crc = zlib.crc32(frame, self.frames_crc)

    def story(self) -> list[str]:
        """Return the lines that were kept, and, of a whole trace, what was sent."""
        if not self.details:
            return list(self.lines)
        return [*self.lines, f"{self.frames} frames were sent; the checksum of their bytes is {self.frames_crc:08x}"]
