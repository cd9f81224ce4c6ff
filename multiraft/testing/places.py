"""At which failpoints a simulated run hurts its nodes, how often it draws each, and what it does there.

Most places are passed all the time. Those that are passed now and then only are drawn more often, and the schedule does
what leads there, too.

Rules of this file: a failpoint that is new in the code is drawn without a word here.
"""

from __future__ import annotations

from typing import Final

from multiraft.failpoints import FAILPOINTS, Action

ACTIONS: Final[tuple[Action, ...]] = ("kill", "kill", "delay", "eio", "enospc")
ACTIONS_ANYWHERE: Final[tuple[Action, ...]] = ("kill", "delay")
RARE: Final = {
    "close.": 5,
    "data.file-made": 15,
    "membership.": 5,
    "open.": 1,
    "replica.": 5,
    "snapshot.after-restore": 15,
    "snapshot.before-restore": 15,
    "snapshot.": 5,
    "space.filled": 40,
    "space.": 15,
}
"""How often a place is drawn, by the beginning of its name, where that is not once."""
PLACES: Final = tuple(
    name
    for name in sorted(point.name for point in FAILPOINTS.values())
    for _ in range(next((weight for prefix, weight in RARE.items() if name.startswith(prefix)), 1))
)
"""What is drawn from."""
PLACES_OF_FORMING: Final = ("bind.before-file", "replica.before-create", "replica.after-create", "write.after-sync")
"""Those that are passed while a cluster forms."""
PLACES_OF_DISKS: Final = ("disk.",)
"""Only there can an operation of the disk fail."""
PLACES_OF_NEWCOMERS: Final = ("space.", "data.file")
"""Those that are passed when a replica on disk is made anew, or goes."""
