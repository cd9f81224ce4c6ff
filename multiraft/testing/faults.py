"""What can be done to a simulated cluster: the kinds of faults, as they are counted, and the failpoints.

Rules of this file: every control of the environment counts itself under one of these names, once for each time that
it took effect; for what hits messages and writes that is each message, each write.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Final

from multiraft import failpoints
from multiraft.failpoints import Deed
from multiraft.types import NodeId

FAULT_KINDS: Final[dict[str, str]] = {
    "stop": "a node was stopped orderly",
    "crash": "a node was killed, its disk cut off from power",
    "restart": "a node was started again on its disk",
    "wipe": "a disk was emptied",
    "roll_back": "a disk was put back to an earlier moment",
    "crash_at_write": "a node was killed just before, or just after, a chosen write",
    "unsynced_lost": "a crash lost writes that were not synced",
    "torn_tail": "a crash kept some of the writes that were not synced, and lost the rest",
    "eio_write": "a write failed",
    "eio_read": "a read failed",
    "enospc": "a write found the disk full",
    "revival": "a node came back by itself after its disk was full",
    "slow": "a write took time",
    "disk_stall": "a disk stopped writing, or stopped telling",
    "rate": "a clock began to run fast or slow",
    "skew": "a wall clock was set wrong",
    "pause": "a process was stopped and went on later",
    "suspend": "a machine slept",
    "cut": "a direction was cut: connections broke",
    "stall": "a direction was stalled: frames came late",
    "delay": "a direction was given a delay",
    "drop_bulk": "a batch found its outbox full",
    "loss": "a message of consensus was lost",
    "duplicate": "a message of consensus came twice",
    "reorder": "a message of consensus was overtaken",
    "strand": "a connection was given up by one side only, and brought frames late",
    "isolate": "a node was cut off from all others",
    "partition": "the cluster fell into parts",
    "bridge": "two halves were left that only one node reached",
    "ring": "each node reached only its neighbours",
    "failpoint": "a node was killed, failed or delayed at a failpoint",
}
"""Every kind of fault by its name in `MemoryCluster.faults`; a failpoint counts under `failpoint NAME`, too."""


class ArmedPlaces:
    """What is to happen at failpoints of a simulated cluster. Installed by `install`, taken out by `remove`.

    passed  how often each place was passed, by name, whether or not anything happened there
    """

    def __init__(self, faults: Counter[str], where: Callable[[], NodeId | None], do: Callable[[NodeId, Deed], None]):
        self.passed: Counter[str] = Counter()
        self._faults = faults
        self._where = where
        self._do = do
        # By place: of which node (None: of any), how often that has passed since, and what to do.
        self._armed: dict[int, list[tuple[NodeId | None, list[int], Deed]]] = {}

    def arm(self, name: str, node_id: NodeId | None, deed: Deed) -> None:
        """Have `deed` done when `node_id` (None: any node) passes the place. Raises ConfigError: no such place."""
        self._armed.setdefault(failpoints.number_of(name), []).append((node_id, [0], deed))

    @property
    def armed(self) -> bool:
        """Whether something is still to happen somewhere."""
        return any(self._armed.values())

    def clear(self) -> None:
        """Nothing happens at any place any more; passes are still counted."""
        self._armed.clear()

    def install(self) -> None:
        failpoints.arm(self._pass)

    def remove(self) -> None:
        if failpoints.armed == self._pass:
            failpoints.disarm()

    def _pass(self, number: int) -> None:
        name = failpoints.FAILPOINTS[number].name
        self.passed[name] += 1
        here = self._where()
        if here is None or number not in self._armed:
            return
        for entry in list(self._armed[number]):
            node_id, passed, deed = entry
            if node_id not in (None, here):
                continue
            passed[0] += 1
            if deed.is_due(passed[0]):
                if not deed.onward:
                    self._armed[number].remove(entry)
                self._faults["failpoint"] += 1
                self._faults[f"failpoint {name}"] += 1
                self._do(here, deed)
