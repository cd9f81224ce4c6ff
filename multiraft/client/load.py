"""Load on a running cluster, by a remote client, and what came of it.

Closed loop: so many calls are under way at all times, each answered one is followed by the next; what is measured is
how much the cluster takes, and a slow answer slows the asking. Open: calls are due at a rate, whatever becomes of the
earlier ones; a call's latency counts from when it was due, not from when it could be sent, so that a stall is felt by
all calls that it held up (what leaves that out is known as coordinated omission).

Rules of this file: one object per call under way, none per call; errors are counted by their type, and never end a run.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

from multiraft.client.client import Client
from multiraft.client.histogram import Histogram
from multiraft.client.lanes import Done
from multiraft.client.workload import Workload
from multiraft.consistency import LINEARIZABLE, Consistency
from multiraft.errors import MultiRaftError, Overloaded

_STEP_S: Final = 0.001
_AFTER_ERROR_S: Final = 0.01
_DRAIN_S: Final = 10.0


@dataclass(slots=True)
class Tally:
    """What was measured: over a whole run, or since it was last looked at.

    writes, reads  latencies of what was answered with a result
    errors         by the name of their type
    """

    writes: Histogram = field(default_factory=Histogram)
    reads: Histogram = field(default_factory=Histogram)
    errors: Counter[str] = field(default_factory=Counter)

    @property
    def total(self) -> int:
        return self.writes.total + self.reads.total

    def merge(self, other: Tally) -> None:
        self.writes.merge(other.writes)
        self.reads.merge(other.reads)
        self.errors.update(other.errors)


class Loaded(Protocol):
    """What a load needs of a client. `Client` is one; what is raised stands there."""

    def send(self, service: str, key: bytes, command: bytes, done: Done, *, timeout_s: float | None = None) -> None: ...

    def ask(
        self,
        service: str,
        key: bytes,
        query: bytes,
        done: Done,
        *,
        how: Consistency = LINEARIZABLE,
        timeout_s: float | None = None,
    ) -> None: ...


class Load:
    """One run.

    rate       calls a second; None: a closed loop
    in_flight  calls under way: always (closed loop), or at most
    tally      since the warm-up
    warming    whether what is answered now is not counted yet
    clock      in seconds
    began_s    when the warm-up, or what is counted, began
    behind     calls that are due and wait for room, now (open)
    error      the latest error, in words
    """

    def __init__(
        self,
        client: Loaded,
        service: str,
        workload: Workload,
        *,
        in_flight: int = 64,
        rate: float | None = None,
        how: Consistency = LINEARIZABLE,
        timeout_s: float | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._client = client
        self._service = service
        self._next = workload.operations().__next__
        self._how = how
        self._timeout_s = timeout_s
        self.in_flight = in_flight
        self.rate = rate
        self.tally = Tally()
        self.warming = True
        self.began_s = 0.0
        self.behind = 0
        self.under_way = 0
        self.error = ""
        self.seconds = 0.0
        self.cpu_s = 0.0
        self._recent = Tally()
        self.clock = clock
        self._stopping = False
        self._idle = asyncio.Event()
        self._free: list[_Slot] = []

    async def run(self, seconds: float, warm_up_s: float, stop: asyncio.Event, looked: Callable[[Tally], None]) -> None:
        """Warm up, then load for `seconds`, or until `stop` is set; wait for the last answers.

        looked  called about once a second with what came since the last time, the warm-up included
        """
        self.began_s = self.clock()
        slots = [_Slot(self) for _ in range(self.in_flight)]
        feeding = None
        if self.rate is None:
            self.under_way = len(slots)
            for slot in slots:
                slot.next(self.clock())
        else:
            self._free = slots
            feeding = asyncio.ensure_future(self._feed(self.rate))
        try:
            await self._watch(warm_up_s, stop, looked)
            self.warming = False
            self.began_s, cpu_s = self.clock(), time.process_time()
            self.tally, self._recent = Tally(), Tally()
            await self._watch(seconds, stop, looked)
            self.tally.merge(self._take_recent())
            self.seconds, self.cpu_s = self.clock() - self.began_s, time.process_time() - cpu_s
        finally:
            self._stopping = True
            if feeding is not None:
                feeding.cancel()
                await asyncio.gather(feeding, return_exceptions=True)
        if self.under_way:
            try:
                async with asyncio.timeout(_DRAIN_S):
                    await self._idle.wait()
            except TimeoutError:
                self.tally.errors["unanswered"] += self.under_way
        if self.rate is not None:  # these were due in time, and are the slowest
            self.tally.merge(self._take_recent())

    async def _watch(self, seconds: float, stop: asyncio.Event, looked: Callable[[Tally], None]) -> None:
        end_s = self.clock() + seconds
        while not stop.is_set() and (left_s := end_s - self.clock()) > 0:
            try:
                async with asyncio.timeout(min(1.0, left_s)):
                    await stop.wait()
            except TimeoutError:
                recent = self._take_recent()
                self.tally.merge(recent)
                looked(recent)

    def _take_recent(self) -> Tally:
        recent, self._recent = self._recent, Tally()
        return recent

    async def _feed(self, rate: float) -> None:
        """Begin each call when it is due; one that finds no room begins when there is some, and is late by that."""
        began_s, issued = self.clock(), 0
        while True:
            due = int((self.clock() - began_s) * rate) + 1
            while issued < due and self._free:
                self.under_way += 1
                self._free.pop().next(began_s + issued / rate)
                issued += 1
            self.behind = due - issued
            await asyncio.sleep(_STEP_S)

    def begin(self, slot: _Slot) -> None:
        """Ask for the next operation on behalf of `slot`."""
        slot.reads, key, body = self._next()
        try:
            if slot.reads:
                self._client.ask(self._service, key, body, slot, how=self._how, timeout_s=self._timeout_s)
            else:
                self._client.send(self._service, key, body, slot, timeout_s=self._timeout_s)
        except Overloaded as problem:
            slot.ended(problem)

    def answered(self, slot: _Slot, outcome: bytes | MultiRaftError) -> None:
        """A call has ended."""
        now = self.clock()
        if isinstance(outcome, bytes):
            (self._recent.reads if slot.reads else self._recent.writes).add(int((now - slot.due_s) * 1e6))
        else:
            self._recent.errors[type(outcome).__name__] += 1
            self.error = f"{type(outcome).__name__}: {outcome!s}"
        if self._stopping:
            self.under_way -= 1
            if not self.under_way:
                self._idle.set()
        elif self.rate is not None:
            self.under_way -= 1
            self._free.append(slot)
        elif type(outcome) is bytes:
            slot.next(now)
        else:  # at leisure: what refuses at once must not be asked at once again
            asyncio.get_running_loop().call_later(_AFTER_ERROR_S, slot.again)


class _Slot:
    """A call under way, again and again."""

    __slots__ = ("_load", "due_s", "reads")

    def __init__(self, load: Load) -> None:
        self._load = load
        self.due_s = 0.0
        self.reads = False

    def next(self, due_s: float) -> None:
        self.due_s = due_s
        self._load.begin(self)

    def again(self) -> None:
        self.next(self._load.clock())

    def __call__(self, outcome: bytes | MultiRaftError) -> None:
        self._load.answered(self, outcome)

    def ended(self, outcome: MultiRaftError) -> None:
        """It could not even be begun: told in a later step, as every other end."""
        asyncio.get_running_loop().call_soon(self._load.answered, self, outcome)


async def fill(client: Client, service: str, workload: Workload, in_flight: int) -> None:
    """Write every key once. Raises what a write ends with."""
    whole = Workload(workload.write, workload.read, 0.0, workload.keys, "sequential", 1.0, workload.value_bytes)
    handle = client.bytes_service(service)
    left = iter(range(workload.keys))
    operations = whole.operations()

    async def work() -> None:
        for _ in left:
            _, key, body = next(operations)
            await handle.propose(key, body)

    await asyncio.gather(*[work() for _ in range(min(in_flight, workload.keys))])


def described(histogram: Histogram, seconds: float) -> dict[str, Any]:
    """Return what there is to say of one kind of call, as JSON holds it."""
    total = histogram.total
    return {
        "count": total,
        "per_s": total / seconds if seconds else 0.0,
        "mean_ms": histogram.sum_us / total / 1e3 if total else 0.0,
        "p50_ms": histogram.quantile_us(0.5) / 1e3,
        "p90_ms": histogram.quantile_us(0.9) / 1e3,
        "p99_ms": histogram.quantile_us(0.99) / 1e3,
        "p999_ms": histogram.quantile_us(0.999) / 1e3,
        "max_ms": histogram.most_us / 1e3,
        "histogram_us": [list(row) for row in histogram.rows()],
    }
