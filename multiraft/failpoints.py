"""Failpoints: named and numbered places in the shipped code where a test can kill, fail or delay a node.

The simulator and tests with real processes use the same places. A place in the code is two lines:

    if failpoints.armed is not None:
        failpoints.armed(failpoints.WRITE_AFTER_SYNC)

which cost one look at a module's attribute, some 20 ns, while nothing is armed (tests/test_failpoints.py measures it).

In a process of its own a node is armed by its environment, read when the node starts:

    MULTIRAFT_FAILPOINTS="write.after-sync:kill@3,disk.before-write:eio,apply.before:delay=0.5@2+"

Each item is `name:action`, where action is `kill` (SIGKILL to the own process), `eio` or `enospc` (an OSError raised
there) or `delay=SECONDS` (the thread sleeps there); `@3` means the third time that the place is passed, `@2+` the
second and every later time; without it, the first.

Numbers, by tens: 10 writes, 20 applying, 30 replicas made and removed, 40 identity, 50 snapshots saved, sent and
installed, 60 memberships, 70 closing, 80 turns. A number is never given to another place.

Rules of this file: standard library only; nothing here is called while nothing is armed; a place is registered here,
by its constant, before the code can have it.
"""

from __future__ import annotations

import errno
import os
import re
import signal
import time
from collections import Counter
from collections.abc import Callable
from typing import Final, Literal, NamedTuple

from multiraft.errors import ConfigError

ENVIRONMENT: Final = "MULTIRAFT_FAILPOINTS"

Action = Literal["kill", "eio", "enospc", "delay"]


class Failpoint(NamedTuple):
    """One place. `where` says what has happened there, and what has not."""

    number: int
    name: str
    where: str


FAILPOINTS: Final[dict[int, Failpoint]] = {}
"""Every place in the code, by number."""


def _place(number: int, name: str, where: str) -> int:
    FAILPOINTS[number] = Failpoint(number, name, where)
    return number


WRITE_BEFORE_SUBMIT: Final = _place(10, "write.before-submit", "a batch is complete; the store has not got it")
WRITE_AFTER_SYNC: Final = _place(11, "write.after-sync", "a batch is synced; no core and no peer was told")
WRITE_BEFORE_PROMISES: Final = _place(
    12, "write.before-promises", "the cores know that a batch is synced; no peer does"
)
DISK_BEFORE_WRITE: Final = _place(13, "disk.before-write", "the store's writer is about to write and sync")
DISK_AFTER_WRITE: Final = _place(14, "disk.after-write", "the store's writer has synced; the loop does not know yet")
APPLY_BEFORE: Final = _place(20, "apply.before", "a record is committed and about to be applied")
APPLY_AFTER: Final = _place(21, "apply.after", "a record was applied; what follows from it has not happened")
DATA_HANDED_OUT: Final = _place(
    22, "data.handed-out", "what a machine on disk has applied is in a batch; that is not submitted"
)
REPLICA_BEFORE_CREATE: Final = _place(30, "replica.before-create", "a replica was assigned; nothing of it is written")
REPLICA_AFTER_CREATE: Final = _place(31, "replica.after-create", "a replica's creation is synced; it is not opened yet")
REPLICA_BEFORE_REMOVE: Final = _place(32, "replica.before-remove", "a replica was removed; it has not stopped yet")
REPLICA_AFTER_REMOVE: Final = _place(
    33, "replica.after-remove", "a tombstone is synced; not all is deleted that was left"
)
SPACE_DELETING: Final = _place(34, "space.deleting", "nothing names a keyspace any more; not all of it is deleted")
BIND_BEFORE_FILE: Final = _place(
    40, "bind.before-file", "the database is bound to its cluster, the identity file is not"
)
OPEN_BEFORE_FILE: Final = _place(
    41, "open.before-file", "a new incarnation is in the database, not in the identity file"
)
SNAPSHOT_BEFORE_SAVE: Final = _place(50, "snapshot.before-save", "a machine has said its state; nothing is written")
SNAPSHOT_AFTER_SAVE: Final = _place(
    51, "snapshot.after-save", "a snapshot, taken or sent, is synced; nothing follows yet"
)
SNAPSHOT_BEFORE_RESTORE: Final = _place(52, "snapshot.before-restore", "one that a leader sent is synced, not restored")
SNAPSHOT_AFTER_RESTORE: Final = _place(
    53, "snapshot.after-restore", "one that a leader sent was restored; none was told"
)
SPACE_FILLED: Final = _place(54, "space.filled", "a keyspace holds what a leader sent; nothing names it yet")
SPACE_SWITCHED: Final = _place(55, "space.switched", "a replica's data are the new ones; the old ones still lie there")
DATA_FILE_MADE: Final = _place(56, "data.file-made", "a follower's file of a keyspace is on disk; nobody was told")
MEMBERSHIP_IN_EFFECT: Final = _place(60, "membership.in-effect", "a membership has taken effect; only its core knows")
CLOSE_BEFORE_RECORD: Final = _place(
    70, "close.before-record", "a stop has ended all else; no closing record is written"
)
CLOSE_BEFORE_FILE: Final = _place(71, "close.before-file", "the closing record is synced; the identity file is behind")
TURN_BEFORE_SEND: Final = _place(80, "turn.before-send", "the cores have decided; nothing was sent or written")
TURN_AFTER_SEND: Final = _place(81, "turn.after-send", "what may go at once was sent; what it goes with is not written")

armed: Callable[[int], None] | None = None
"""Who is told, with its number, of every place that is passed; None: nothing is armed."""

_BY_NAME: Final = {point.name: point for point in FAILPOINTS.values()}


def number_of(name: str) -> int:
    """Return the number of a place. Raises ConfigError when there is none of that name, naming those that there are."""
    point = _BY_NAME.get(name)
    if point is None:
        raise ConfigError(f"there is no failpoint {name!r}; there are {', '.join(sorted(_BY_NAME))}")
    return point.number


def arm(passed: Callable[[int], None]) -> None:
    """Have `passed(number)` called at every place, from the thread that is there, until `disarm`."""
    global armed
    armed = passed


def disarm() -> None:
    global armed
    armed = None


class Deed(NamedTuple):
    """What to do at a place. times: at which passing, from 1; onward: at every later one, too."""

    action: Action
    delay_s: float = 0.0
    times: int = 1
    onward: bool = False

    def is_due(self, passed: int) -> bool:
        return passed == self.times or (self.onward and passed > self.times)


_ITEM: Final = re.compile(r"([a-z.-]+):(kill|eio|enospc|delay=([0-9.]+))(?:@([1-9][0-9]*)(\+?))?")


def parse(text: str) -> dict[int, list[Deed]]:
    """Read the value of MULTIRAFT_FAILPOINTS. Raises ConfigError with the item that is wrong."""
    deeds: dict[int, list[Deed]] = {}
    for item in filter(None, (part.strip() for part in text.split(","))):
        found = _ITEM.fullmatch(item)
        if found is None:
            raise ConfigError(f"{ENVIRONMENT}: {item!r} is not name:kill|eio|enospc|delay=SECONDS[@TIMES[+]]")
        name, said, delay, times, onward = found.groups()
        action: Action = "delay" if delay else "kill" if said == "kill" else "eio" if said == "eio" else "enospc"
        deed = Deed(action, float(delay or 0), int(times or 1), bool(onward))
        deeds.setdefault(number_of(name), []).append(deed)
    return deeds


class ProcessDeeds:
    """Does what `parse` read to the process that it runs in."""

    def __init__(self, deeds: dict[int, list[Deed]]) -> None:
        self._deeds = deeds
        self._passed: Counter[int] = Counter()

    def __call__(self, number: int) -> None:
        if number not in self._deeds:
            return
        self._passed[number] += 1
        for deed in self._deeds[number]:
            if deed.is_due(self._passed[number]):
                self._do(deed)

    def _do(self, deed: Deed) -> None:
        if deed.action == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        elif deed.action == "delay":
            time.sleep(deed.delay_s)
        else:
            raise_os_error(deed.action)


def raise_os_error(action: Action) -> None:
    """Raise the OSError that `eio` or `enospc` stands for."""
    number = errno.ENOSPC if action == "enospc" else errno.EIO
    raise OSError(number, os.strerror(number))


def arm_from_environment() -> None:
    """Arm what MULTIRAFT_FAILPOINTS says; without it nothing changes. Raises ConfigError."""
    text = os.environ.get(ENVIRONMENT)
    if text:
        arm(ProcessDeeds(parse(text)))
