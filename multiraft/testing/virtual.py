"""An asyncio event loop on virtual time.

Callbacks run in the order in which asyncio would run them. Where a real loop would sleep until its next timer, this
one moves its clock there and goes on. So nothing waits, a minute of a cluster's life takes milliseconds, and one seed
gives one run.

Parts of a program may live on clocks of their own (clocks.py): what is scheduled in the context of such a clock is
timed by it, and is kept back while the clock's owner is paused. Everything else lives on the loop's own, true time.

Rules of this file: no real time, no thread, no socket, no child process: each is refused, by name, with a
NotSimulated; nothing depends on an address or a hash; a loop with nothing to do and nothing to wait for is a
deadlock, and is reported as one.
"""

from __future__ import annotations

import asyncio
import contextvars
import threading
from collections import deque
from collections.abc import Callable, Coroutine, Generator
from functools import partial
from heapq import heapify, heappop, heappush
from math import inf
from typing import TYPE_CHECKING, Any, Final, NoReturn, TypeVar, TypeVarTuple

if TYPE_CHECKING:
    from multiraft.testing.clocks import NodeClock

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

CURRENT_CLOCK: Final[contextvars.ContextVar[NodeClock]] = contextvars.ContextVar("multiraft_clock")
"""The clock that the running code lives on; not set in code that lives on the loop's own time."""

_CANCELLED_MOST: Final = 256
"""So many cancelled timers, and half of all, may wait in the heap before it is cleaned."""


class Deadlock(RuntimeError):
    """Everything waits for something, and nothing is left that could happen."""


class NotSimulated(RuntimeError):
    """The program used a thread, a socket, a child process or a signal, which a VirtualLoop does not have."""


class NodeKilled(BaseException):
    """The node whose code runs was killed at this place: nothing after it may happen.

    Not an Exception, so that no handler for the node's own failures sees it. The loop ends the callback quietly.
    """


class VirtualHandle(asyncio.Handle):
    """A callback that waits for its turn. clock: whom it belongs to; None: nobody's."""

    __slots__ = ("clock",)

    _callback: Any
    _args: Any
    _context: Any

    def __init__(
        self,
        callback: Callable[..., object],
        args: tuple[Any, ...],
        loop: VirtualLoop,
        context: contextvars.Context | None,
        clock: NodeClock | None,
    ) -> None:
        self._context = contextvars.copy_context() if context is None else context
        self._loop = loop
        self._callback = callback
        self._args = args
        self._cancelled = False
        self._repr = None
        self._source_traceback = None
        self.clock = clock


class VirtualTimer(asyncio.TimerHandle):
    """A callback that waits for its time.

    clock  whom it belongs to; None: nobody's
    true   its time is the loop's, though the callback belongs to `clock`
    """

    __slots__ = ("clock", "true")

    _callback: Any
    _args: Any
    _context: Any
    _when: float

    def __init__(
        self,
        when: float,
        callback: Callable[..., object],
        args: tuple[Any, ...],
        loop: VirtualLoop,
        context: contextvars.Context | None,
        clock: NodeClock | None,
        true: bool,
    ) -> None:
        self._context = contextvars.copy_context() if context is None else context
        self._loop = loop
        self._callback = callback
        self._args = args
        self._cancelled = False
        self._repr = None
        self._source_traceback = None
        self._when = when
        self._scheduled = True
        self.clock = clock
        self.true = true

    @property
    def due_s(self) -> float:
        """When it fires, on the loop's own time."""
        clock, when = self.clock, self._when
        return when if clock is None or self.true else clock.true_time(when)


class VirtualLoop(asyncio.BaseEventLoop):
    """`time()` starts at 0 and moves only when there is nothing else to do.

    now_s  the loop's own, true time, whoever asks; `time()` is that of the clock on which the caller lives
    """

    _closed: bool
    _stopping: bool
    _thread_id: int | None

    def __init__(self) -> None:
        super().__init__()
        self.now_s = 0.0
        self.clocks: list[NodeClock] = []
        self._ready: deque[VirtualHandle | VirtualTimer] = deque()
        self._heap: list[tuple[float, int, VirtualTimer]] = []
        self._timers_made = 0
        self._cancelled = 0
        self._tasks_made = 0
        self._tasks: dict[int, asyncio.Task[Any]] = {}

    # ------------------------------------------------------------------------------------------------------ time

    def time(self) -> float:
        clock = CURRENT_CLOCK.get(None)
        return self.now_s if clock is None else clock.time()

    def pass_time(self, seconds: float) -> None:
        """Let time pass while nothing at all can run: every process was stopped."""
        self.now_s += seconds

    def timers(self) -> list[asyncio.TimerHandle]:
        """Return the timers that are set, the next one first."""
        return [timer for _, _, timer in sorted(self._heap) if not timer._cancelled]

    def retime(self, clock: NodeClock) -> None:
        """The rate of `clock` has changed: its timers fire at other times now."""
        self._heap = [
            (timer.due_s if timer.clock is clock else due_s, number, timer)
            for due_s, number, timer in self._heap
            if not timer._cancelled
        ]
        self._cancelled = 0
        heapify(self._heap)

    def put_back(self, held: deque[VirtualHandle | VirtualTimer]) -> None:
        """Callbacks that were kept back may run now: in their order, before whatever comes later."""
        self._ready.extend(held)
        held.clear()

    # ------------------------------------------------------------------------------------------------ scheduling

    def call_soon(
        self, callback: Callable[[*Ts], object], *args: *Ts, context: contextvars.Context | None = None
    ) -> asyncio.Handle:
        if self._closed:
            raise RuntimeError("the loop is closed")
        clock = CURRENT_CLOCK.get(None) if context is None else context.get(CURRENT_CLOCK)
        handle = VirtualHandle(callback, args, self, context, clock)
        self._ready.append(handle)
        return handle

    def add_ready(self, handle: VirtualHandle) -> VirtualHandle:
        """Let `handle` run in its turn: the short way for who knows its context and clock."""
        if self._closed:
            raise RuntimeError("the loop is closed")
        self._ready.append(handle)
        return handle

    def call_later(
        self, delay: float, callback: Callable[[*Ts], object], *args: *Ts, context: contextvars.Context | None = None
    ) -> asyncio.TimerHandle:
        clock = CURRENT_CLOCK.get(None) if context is None else context.get(CURRENT_CLOCK)
        now_s = self.now_s if clock is None else clock.time()
        return self._call_at(now_s + delay, callback, args, context, clock, False)

    def call_at(
        self, when: float, callback: Callable[[*Ts], object], *args: *Ts, context: contextvars.Context | None = None
    ) -> asyncio.TimerHandle:
        clock = CURRENT_CLOCK.get(None) if context is None else context.get(CURRENT_CLOCK)
        return self._call_at(when, callback, args, context, clock, False)

    def call_at_true_time(
        self, when_s: float, callback: Callable[[*Ts], object], *args: *Ts, context: contextvars.Context | None = None
    ) -> asyncio.TimerHandle:
        """As `call_at`, with a time of the loop's own: for what comes to a node from outside, such as a frame."""
        clock = CURRENT_CLOCK.get(None) if context is None else context.get(CURRENT_CLOCK)
        return self._call_at(when_s, callback, args, context, clock, True)

    def _call_at(
        self,
        when: float,
        callback: Callable[..., object],
        args: tuple[Any, ...],
        context: contextvars.Context | None,
        clock: NodeClock | None,
        true: bool,
    ) -> asyncio.TimerHandle:
        if self._closed:
            raise RuntimeError("the loop is closed")
        timer = VirtualTimer(when, callback, args, self, context, clock, true)
        self._timers_made += 1
        due_s = when if clock is None or true else clock.true_time(when)
        heappush(self._heap, (due_s, self._timers_made, timer))
        return timer

    def _timer_handle_cancelled(self, handle: asyncio.TimerHandle) -> None:
        """Called by asyncio's handles."""
        self._cancelled += 1

    def call_soon_threadsafe(
        self, callback: Callable[[*Ts], object], *args: *Ts, context: contextvars.Context | None = None
    ) -> asyncio.Handle:
        if self._thread_id not in (None, threading.get_ident()):
            raise NotSimulated("a thread called into a VirtualLoop; nothing there may run beside it")
        return self.call_soon(callback, *args, context=context)

    def create_task(  # type: ignore[override]
        self,
        coro: Generator[Any, None, T] | Coroutine[Any, Any, T],
        *,
        name: str | None = None,
        context: contextvars.Context | None = None,
        **options: Any,
    ) -> asyncio.Task[T]:
        """As asyncio's; names are numbered from 1 in every loop, so that no run shows in another's names."""
        self._tasks_made += 1
        number = self._tasks_made
        name = f"Task-{number}" if name is None else name
        task: asyncio.Task[T] = asyncio.Task(coro, loop=self, name=name, context=context, **options)
        self._tasks[number] = task
        task.add_done_callback(partial(self._task_done, number), context=_NO_CONTEXT)
        return task

    def _task_done(self, number: int, _: asyncio.Task[Any]) -> None:
        del self._tasks[number]

    def tasks_left(self) -> list[asyncio.Task[Any]]:
        """Return the tasks that are not done, the oldest first."""
        return [task for task in self._tasks.values() if not task.done()]

    # ---------------------------------------------------------------------------------------------------- running

    def _run_once(self) -> None:
        """One pass, as asyncio's: timers that are due join the ready callbacks, of which those run that wait now."""
        ready, heap = self._ready, self._heap
        if self._cancelled > _CANCELLED_MOST and 2 * self._cancelled > len(heap):
            heap = self._heap = [entry for entry in heap if not entry[2]._cancelled]
            self._cancelled = 0
            heapify(heap)
        while heap and heap[0][2]._cancelled:
            heappop(heap)
            self._cancelled -= 1
        if not ready and not self._stopping:
            due_s = heap[0][0] if heap else inf
            if due_s == inf:
                raise Deadlock(self._why_dead())
            if due_s > self.now_s:
                self.now_s = due_s
        now_s = self.now_s
        while heap and heap[0][0] <= now_s:
            timer = heappop(heap)[2]
            timer._scheduled = False
            if timer._cancelled:
                self._cancelled -= 1
            else:
                ready.append(timer)
        for _ in range(len(ready)):
            handle = ready.popleft()
            if handle._cancelled:
                continue
            clock = handle.clock
            if clock is not None and clock.stopped:
                clock.held.append(handle)
                continue
            try:
                handle._context.run(handle._callback, *handle._args)
            except (SystemExit, KeyboardInterrupt):
                raise
            except NodeKilled:
                continue
            except BaseException as problem:
                said = f"Exception in callback {getattr(handle._callback, '__qualname__', 'of another kind')}"
                self.call_exception_handler({"message": said, "exception": problem, "handle": handle})

    def _why_dead(self) -> str:
        stopped = [clock.name for clock in self.clocks if clock.stopped]
        why = "no timer is set and nothing is ready: what the program waits for cannot come"
        return f"{why}; stopped: {', '.join(stopped)}" if stopped else why


_NO_CONTEXT: Final = contextvars.Context()

_REFUSED: Final = (
    "add_reader", "add_signal_handler", "add_writer", "connect_accepted_socket", "connect_read_pipe",
    "connect_write_pipe", "create_connection", "create_datagram_endpoint", "create_server",
    "create_unix_connection", "create_unix_server", "getaddrinfo", "getnameinfo", "remove_reader",
    "remove_signal_handler", "remove_writer", "run_in_executor", "sendfile", "sock_accept", "sock_connect",
    "sock_recv", "sock_recv_into", "sock_recvfrom", "sock_recvfrom_into", "sock_sendall", "sock_sendfile",
    "sock_sendto", "start_tls", "subprocess_exec", "subprocess_shell",
)  # fmt: skip
"""What a VirtualLoop does not have."""


def _refusing(name: str) -> Callable[..., NoReturn]:
    def refuse(*_: object, **__: object) -> NoReturn:
        raise NotSimulated(f"{name}: a program on virtual time has no threads, sockets, processes or signals")

    return refuse


def refuse_reality(kind: type[asyncio.AbstractEventLoop]) -> None:
    """Let every method of a loop that would leave virtual time raise NotSimulated."""
    for name in _REFUSED:
        setattr(kind, name, _refusing(name))


refuse_reality(VirtualLoop)


def run_virtual(main: Coroutine[Any, Any, T]) -> T:
    """Run `main` to its end on a fresh VirtualLoop and return its result; cancels what it leaves behind.

    Raises what `main` raises; Deadlock when nothing can happen any more.
    """
    loop = VirtualLoop()
    try:
        asyncio.set_event_loop(loop)
        try:
            return loop.run_until_complete(main)
        finally:
            for clock in loop.clocks:
                clock.resume()
            left = loop.tasks_left()
            for task in left:
                task.cancel()
            loop.run_until_complete(asyncio.gather(*left, return_exceptions=True))
    finally:
        asyncio.set_event_loop(None)
        loop.close()
