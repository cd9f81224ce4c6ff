"""A node of PySyncObj: one object, replicated by that library; its clients are callbacks in its own thread.

PySyncObj keeps its log in memory, or in a file that it never syncs: a write that it has acknowledged may be lost when
machines lose power. Nothing here can make that the same as what multiraft does; the table says so.

Settings (`SETTINGS`), of which the table takes the fastest of each row:

default    as it comes: batches are sent every 100 ms
unbatched  appendEntriesUseBatch off: each command wakes the thread, and is sent at once
ticking    batches, with ticks and appends every few milliseconds instead of every 50 and 100

The first node's election timeout is shorter than the others', for it is to lead, and this library knows no hand-over.

Rules of this file: speaks the line protocol of benchmarks/peers/driver; a client issues its next write when the library
calls back with the result of the one before; what is not successful ends the run.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from typing import Any, Final

from pysyncobj import FAIL_REASON, SyncObj, SyncObjConf, replicated

from benchmarks.figures import latency_figures

SETTINGS: Final[dict[str, dict[str, Any]]] = {
    "default": {},
    "unbatched": {"appendEntriesUseBatch": False},
    "ticking": {"autoTickPeriod": 0.001, "appendEntriesPeriod": 0.005},
}
KEYS: Final = 4096
_LEADS: Final = {"raftMinTimeout": 0.4, "raftMaxTimeout": 0.6}
_FOLLOWS: Final = {"raftMinTimeout": 2.5, "raftMaxTimeout": 3.5}


class Kept(SyncObj):  # type: ignore[misc]
    """The last command of each key, and how many there were."""

    def __init__(self, own: str, others: list[str], options: SyncObjConf) -> None:
        super().__init__(own, others, conf=options)
        self.kept: dict[str, bytes] = {}
        self.count = 0

    @replicated  # type: ignore[untyped-decorator]
    def put(self, key: str, value: bytes) -> int:
        self.kept[key] = value
        self.count += 1
        return self.count


def load(node: Kept, in_flight: int, seconds: float, payload: int) -> dict[str, float]:
    """Keep `in_flight` writes under way for so many seconds; return their count and latencies."""
    clock = time.perf_counter
    latencies: list[float] = []
    failures: list[str] = []
    ended = threading.Semaphore(0)
    value = b"x" * (payload - 8)
    used_s = time.process_time()
    began_s = clock()
    end_s = began_s + seconds

    def start(key: str) -> None:
        asked_s = clock()

        def answered(_result: object, error: int) -> None:
            if error != FAIL_REASON.SUCCESS:
                failures.append(f"a write failed with {error}")
            latencies.append(clock() - asked_s)
            if failures or clock() >= end_s:
                ended.release()
            else:
                start(key)

        node.put(key, value, callback=answered)

    for client in range(in_flight):
        start(f"{client % KEYS:08d}")
    for _ in range(in_flight):
        ended.acquire()
    took_s = clock() - began_s
    if failures:
        raise RuntimeError(failures[0])
    used_s = time.process_time() - used_s
    return {"cpu_s": used_s, **latency_figures(latencies, took_s)}


def main() -> None:
    options = json.loads(sys.argv[1])
    own = options["node"]
    addresses: list[str] = options["addresses"]
    others = [address for number, address in enumerate(addresses) if number != own]
    wanted = SETTINGS[options["setting"]] | (_FOLLOWS if own else _LEADS)
    node = Kept(addresses[own], others, SyncObjConf(**wanted))
    node.waitReady()

    def say(answer: object) -> None:
        print(json.dumps(answer), flush=True)

    say({"event": "ready"})
    for line in sys.stdin:
        asked = json.loads(line)
        if asked["op"] == "led":
            leader = node._getLeader()
            say({"led": int(leader is not None and leader.address == addresses[own])})
        elif asked["op"] == "gather":
            say({})
        elif asked["op"] == "load":
            say(load(node, asked["in_flight"], asked["seconds"], asked["payload"]))
        elif asked["op"] == "counts":
            say({"applied": node.count, "syncs": 0})
    node.destroy()


if __name__ == "__main__":
    main()
