"""A clock for every node: it may run fast or slow, and its owner may be stopped or asleep.

    rate          how many of its seconds pass in one true second: a bad crystal
    skew_s        how wrong its wall clock is, which is otherwise the true time: nobody keeps it
    pause         nothing of the node runs; its clocks go on (SIGSTOP, a long garbage collection, a starved container)
    suspend       nothing of the node runs, and its timers do not either; the clock that never stops goes on
                  (the machine sleeps: CLOCK_MONOTONIC stands, CLOCK_BOOTTIME jumps)

A node lives on its clock by context: everything that it schedules carries the clock along (CURRENT_CLOCK). Its parts
hold a NodeLoop, so that what others set going in it, a client's call or a test's, is the node's all the same.

Rules of this file: a clock, but for the wall clock, never goes back, and no time of it is skipped when its rate
changes; a timer never fires before its time by its owner's clock.
"""

from __future__ import annotations

import asyncio
import contextvars
from asyncio import Future, Handle, Task, TimerHandle
from collections import Counter, deque
from collections.abc import Callable, Coroutine, Generator
from math import nextafter
from typing import Any, Final, TypeVar, TypeVarTuple

from multiraft.ports import Clocks
from multiraft.testing.virtual import CURRENT_CLOCK, VirtualHandle, VirtualLoop, VirtualTimer, refuse_reality

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

RATE_LEAST: Final = 0.2
RATE_MOST: Final = 5.0
WALL_AT_START_S: Final = 1_750_000_000.0
"""What wall clocks say when the loop's own time is 0."""
_FOREVER: Final = float("inf")


class NodeClock:
    """The time of one node.

    stopped  nothing of the node runs now
    held     what waits until it goes on, in order
    faults   counts what is done to it: "rate", "skew", "pause", "suspend"
    """

    def __init__(
        self, loop: VirtualLoop, name: str, *, start_s: float = 0.0, faults: Counter[str] | None = None
    ) -> None:
        self.name = name
        self.stopped = False
        self.held: deque[VirtualHandle | VirtualTimer] = deque()
        self.faults: Counter[str] = faults if faults is not None else Counter()
        self._loop = loop
        self._rate = 1.0
        self._skew_s = 0.0
        self._since_true_s = loop.now_s
        self._since_s = start_s
        # What the never-stopping clock is ahead of the other: all sleep so far.
        self._slept_s = 0.0
        self._asleep: TimerHandle | None = None
        loop.clocks.append(self)

    # --------------------------------------------------------------------------------------------------- reading

    def time(self) -> float:
        """Seconds on the clock that timers follow (CLOCK_MONOTONIC); it stands still in a suspend."""
        passed_s = self._loop.now_s - self._since_true_s
        return self._since_s + passed_s * self._rate if passed_s > 0 else self._since_s

    def boottime(self) -> float:
        """Seconds on the clock that never stops (CLOCK_BOOTTIME)."""
        passed_s = self._loop.now_s - self._since_true_s
        return self._since_s + self._slept_s + passed_s * self._rate

    def wall(self) -> float:
        """Seconds since 1970, as this machine believes; may go back when it is set."""
        return WALL_AT_START_S + self._loop.now_s + self._skew_s

    def true_time(self, when: float) -> float:
        """Return the loop's own time at which `time()` reaches `when`; not earlier by the smallest fraction."""
        true_s = self._since_true_s + (when - self._since_s) / self._rate
        while self._since_s + (true_s - self._since_true_s) * self._rate < when:
            true_s = nextafter(true_s, _FOREVER)
        return true_s

    def clocks(self) -> Clocks:
        """Return all the time that reaches the node."""
        return Clocks(self.boottime, self.wall, self.time)

    # ------------------------------------------------------------------------------------------------- disturbing

    @property
    def rate(self) -> float:
        """Seconds of this clock in one true second, from 0.2 to 5. May be set at any time."""
        return self._rate

    @rate.setter
    def rate(self, rate: float) -> None:
        if not RATE_LEAST <= rate <= RATE_MOST:
            raise ValueError(f"a rate of {rate:g}; from {RATE_LEAST:g} to {RATE_MOST:g} are simulated")
        if rate != self._rate:
            if rate != 1.0:
                self.faults["rate"] += 1
            asleep_s = max(0.0, self._since_true_s - self._loop.now_s)
            self._slept_s += asleep_s * (rate - self._rate)
            self._set_base(max(self._loop.now_s, self._since_true_s), rate)

    @property
    def skew_s(self) -> float:
        """How many seconds its wall clock is ahead of the true time. May be set at any time."""
        return self._skew_s

    @skew_s.setter
    def skew_s(self, skew_s: float) -> None:
        if skew_s != self._skew_s:
            if skew_s:
                self.faults["skew"] += 1
            self._skew_s = skew_s

    def pause(self) -> None:
        """Stop the node where it is, as SIGSTOP does. Idempotent."""
        if not self.stopped:
            self.faults["pause"] += 1
            self.stopped = True

    def suspend(self, seconds: float) -> None:
        """Let the node's machine sleep for so many true seconds from now; then it goes on by itself."""
        self.faults["suspend"] += 1
        self._slept_s += seconds * self._rate
        self._set_base(max(self._loop.now_s, self._since_true_s) + seconds, self._rate)
        self.stopped = True
        if self._asleep is not None:
            self._asleep.cancel()
        self._asleep = self._loop.call_at_true_time(self._since_true_s, self.resume, context=contextvars.Context())

    def resume_in(self, seconds: float) -> None:
        """Go on after so many true seconds."""
        when_s = self._loop.now_s + seconds
        self._loop.call_at_true_time(when_s, self.resume, context=contextvars.Context())

    def resume(self) -> None:
        """Go on: what has waited runs now, in its order. Wakes a sleeping machine, too. Idempotent."""
        if self._asleep is not None:
            self._asleep.cancel()
            self._asleep = None
        early_s = self._since_true_s - self._loop.now_s
        if early_s > 0:
            self._slept_s -= early_s * self._rate
            self._since_true_s = self._loop.now_s
            self._loop.retime(self)
        self.stopped = False
        self._loop.put_back(self.held)

    def _set_base(self, from_true_s: float, rate: float) -> None:
        self._since_s = self.time()
        self._since_true_s = from_true_s
        self._rate = rate
        self._loop.retime(self)


class NodeLoop(asyncio.AbstractEventLoop):
    """The VirtualLoop as one node sees it: whatever is scheduled here is the node's, whoever schedules it.

    context  what the node's callbacks run in; has its clock
    """

    def __init__(self, loop: VirtualLoop, clock: NodeClock) -> None:
        self.virtual = loop
        self.clock = clock
        self.context = contextvars.Context()
        self.context.run(CURRENT_CLOCK.set, clock)
        self.time = clock.time  # type: ignore[method-assign]

    def call_soon(
        self, callback: Callable[[*Ts], object], *args: *Ts, context: contextvars.Context | None = None
    ) -> Handle:
        if context is not None:
            return self.virtual.call_soon(callback, *args, context=context)
        return self.virtual.add_ready(VirtualHandle(callback, args, self.virtual, self.context, self.clock))

    def call_soon_threadsafe(
        self, callback: Callable[[*Ts], object], *args: *Ts, context: contextvars.Context | None = None
    ) -> Handle:
        return self.virtual.call_soon_threadsafe(callback, *args, context=context or self.context)

    def call_later(
        self, delay: float, callback: Callable[[*Ts], object], *args: *Ts, context: contextvars.Context | None = None
    ) -> TimerHandle:
        return self.virtual.call_later(delay, callback, *args, context=context or self.context)

    def call_at(
        self, when: float, callback: Callable[[*Ts], object], *args: *Ts, context: contextvars.Context | None = None
    ) -> TimerHandle:
        return self.virtual.call_at(when, callback, *args, context=context or self.context)

    def arrive_at(self, true_s: float, callback: Callable[[], object]) -> TimerHandle:
        """Run `callback` in the node at this time of the loop's own: something reaches it from outside."""
        return self.virtual.call_at_true_time(true_s, callback, context=self.context)

    def create_future(self) -> Future[Any]:
        return self.virtual.create_future()

    def create_task(
        self,
        coro: Generator[Any, None, T] | Coroutine[Any, Any, T],
        *,
        name: str | None = None,
        context: contextvars.Context | None = None,
        **options: Any,
    ) -> Task[T]:
        context = self.context.copy() if context is None else context
        return self.virtual.create_task(coro, name=name, context=context, **options)

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        self.virtual.call_exception_handler(context)

    def get_debug(self) -> bool:
        return self.virtual.get_debug()

    def is_running(self) -> bool:
        return self.virtual.is_running()

    def is_closed(self) -> bool:
        return self.virtual.is_closed()


refuse_reality(NodeLoop)  # type: ignore[type-abstract]
