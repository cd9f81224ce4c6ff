"""Golden transcripts: scripts of commands, with what came of them.

    # What this part of the story is about.
    campaign 1
    stabilize
    ----
    1: pre-candidate, term 1
    ...

A block is some lines of commands, a line of dashes, and what they print, up to an empty line. Lines that begin with #
are remarks. What the commands are stands in scene.py.

Rules of this file: a mistake in a script names its file and line; running a script gives the whole text of the file
as it should be, so that comparing and refreshing are one thing.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from tests.raft.scene import Scene, ScriptError

SEPARATOR: Final = "----"


@dataclass(slots=True)
class Block:
    """`lines` as they stand in the file above the dashes, and the number of the first one, from 1."""

    first: int
    lines: list[str] = field(default_factory=list)
    separated: bool = False


def blocks_of(text: str) -> list[Block]:
    """Return the blocks of a script; remarks that stand alone are blocks that were not separated."""
    blocks: list[Block] = []
    current: Block | None = None
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            current = None
            continue
        if current is None:
            current = Block(number)
            blocks.append(current)
        if line == SEPARATOR:
            current.separated = True
        elif not current.separated:
            current.lines.append(line.rstrip())
    return blocks


def transcript(path: Path) -> str:
    """Run the script in `path` and return the text that the file should have. Raises ScriptError."""
    scene = Scene()
    parts = []
    for block in blocks_of(path.read_text(encoding="utf-8")):
        said = list(block.lines)
        commands = [(number, line) for number, line in enumerate(block.lines, block.first) if line[0] != "#"]
        if commands:
            said.append(SEPARATOR)
        for number, line in commands:
            try:
                said += scene.run(line)
            except ScriptError as problem:
                raise ScriptError(f"{path.name}:{number}: {line}: {problem}") from None
        parts.append("\n".join(said) + "\n")
    return "\n".join(parts)
