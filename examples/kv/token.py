"""Where a watch has come to, as text: the resume token.

    1:57,2:88.3      of shard 1 everything up to index 57 has been seen; of shard 2 everything before index 88, and
                     the first 3 changes that the command of index 88 made. Of any other shard: nothing

Rules of this file: what is no token raises ValueError; equal positions give equal text.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

TOKEN_LIMIT: Final = 96 * 1024
"""Longest token, in characters."""
_PLACE: Final = re.compile(r"([0-9]{1,19}):([0-9]{1,19})(?:\.([0-9]{1,9}))?", re.ASCII)


@dataclass(frozen=True, slots=True)
class Position:
    """How far one shard has been seen.

    index  everything before this is seen; with `seen` 0, its own changes too
    seen   how many of the changes of `index`; 0: all of them
    """

    index: int = 0
    seen: int = 0

    @property
    def after(self) -> int:
        """The last index that was seen whole."""
        return self.index if self.seen == 0 else self.index - 1


def write_token(positions: Mapping[int, Position]) -> str:
    """Return the text of positions by shard id. A shard of which nothing is seen needs none."""
    return ",".join(
        f"{shard_id}:{position.index}" + (f".{position.seen}" if position.seen else "")
        for shard_id, position in sorted(positions.items())
        if position.index
    )


def read_token(text: str) -> dict[int, Position]:
    """Return the positions of a token. Raises ValueError."""
    positions: dict[int, Position] = {}
    if len(text) > TOKEN_LIMIT:
        raise ValueError(f"a token of {len(text)} characters; at most {TOKEN_LIMIT} are taken")
    for place in text.split(",") if text else ():
        found = _PLACE.fullmatch(place)
        if found is None or int(found[1]) in positions:
            raise ValueError(f"{place:.40}: is not the place of a shard in a token, or is there twice")
        position = Position(int(found[2]), int(found[3] or 0))
        if position.index == 0:
            raise ValueError(f"{place:.40}: indexes begin with 1")
        positions[int(found[1])] = position
    return positions
