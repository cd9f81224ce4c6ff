"""Whether a history could have come from one object that does one operation at a time.

A history is linearizable (Herlihy and Wing, 1990) when every operation can be given one moment between its call and
its end so that, in the order of these moments, a sequential object gives the same results. Searched depth first, as
Wing and Gong (1993) do, over the operations that may come next; a pair of (operations done, state) that was met before
is not searched again (Lowe, 2017). Operations of different keys are searched apart (Horn and Kroening, 2015).

An operation whose outcome is unknown may be given any moment after its call, or none. The search tries it only where
those with known results have failed, and never where it would change nothing.

Rules of this file: no clock and no chance; the number of steps is bounded, and a search that runs out of them is
UNDECIDED, which is neither yes nor no.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from math import inf
from typing import Any, Final, Generic, Protocol, TypeVar

from multiraft.testing.history import Operation

S = TypeVar("S", bound=Hashable)
DEFAULT_STEPS: Final = 400_000


class Model(Protocol[S]):
    """A sequential object. States are values: hashable, compared by `==`, never changed."""

    def init(self) -> S:
        """Return the state before the first operation."""

    def step(self, state: S, operation: Any) -> tuple[Any, S]:
        """Return the result of `operation` in `state`, and the state after it. Must not change `state`."""


class Verdict(Enum):
    OK = "linearizable"
    BROKEN = "not linearizable"
    UNDECIDED = "undecided"


@dataclass(frozen=True, slots=True)
class Judgement:
    """What the search found.

    steps      how many times the model was asked
    longest    of a broken or undecided history: the longest order of operations that can be explained
    unexplained  the operations that could have come next, none of which can
    """

    verdict: Verdict
    steps: int
    longest: tuple[Operation, ...] = ()
    unexplained: tuple[Operation, ...] = ()

    def explain(self) -> str:
        """Say, in lines, how far the history can be explained and what comes then."""
        lines = [f"{self.verdict.value} after {self.steps} steps; explained so far (the last 12):"]
        lines += [f"  {operation}" for operation in self.longest[-12:]]
        lines.append("none of these can come next:")
        lines += [f"  {operation}" for operation in self.unexplained]
        return "\n".join(lines)


def check(model: Model[S], operations: Sequence[Operation], max_steps: int = DEFAULT_STEPS) -> Judgement:
    """Judge the operations of one key.

    max_steps  how often the model may be asked before the answer is UNDECIDED
    """
    return _Search(model, operations, max_steps).run()


def check_history(
    model: Model[S], by_key: Mapping[Any, Sequence[Operation]], max_steps: int = DEFAULT_STEPS
) -> dict[Any, Judgement]:
    """Judge each key apart, in the order of the mapping; `max_steps` is for each."""
    return {key: check(model, operations, max_steps) for key, operations in by_key.items()}


@dataclass(slots=True)
class _Frame(Generic[S]):
    """One level of the search: what was done to get here, and what may still be tried.

    done   of the operations with known results and of those without, a bit for each that has been given its moment
    first  every operation with a known result below this place is done
    """

    done: int
    first: int
    state: S
    candidates: Iterator[int]
    by: int


class _Search(Generic[S]):
    """Operations are numbered: those with known results first, by their calls; then the others, by theirs."""

    def __init__(self, model: Model[S], operations: Sequence[Operation], max_steps: int) -> None:
        known = sorted([item for item in operations if item.known], key=lambda item: item.called_s)
        unknown = sorted([item for item in operations if not item.known], key=lambda item: item.called_s)
        self._model = model
        self._known = len(known)
        self._operations = [*known, *unknown]
        self._max_steps = max_steps
        self._longest: tuple[Operation, ...] = ()
        self._unexplained: tuple[Operation, ...] = ()

    def run(self) -> Judgement:
        operations, all_known = self._operations, (1 << self._known) - 1
        state = self._model.init()
        stack = [_Frame(0, 0, state, self._candidates(0, 0), -1)]
        met: set[tuple[int, S]] = {(0, state)}
        steps = 0
        deepest = -1
        while True:
            frame = stack[-1]
            if frame.done & all_known == all_known:
                return Judgement(Verdict.OK, steps)
            number = next(frame.candidates, None)
            if number is None:
                if len(stack) > deepest:
                    deepest = len(stack)
                    self._remember(stack)
                stack.pop()
                if not stack:
                    return Judgement(Verdict.BROKEN, steps, self._longest, self._unexplained)
                continue
            if steps >= self._max_steps:
                self._remember(stack)
                return Judgement(Verdict.UNDECIDED, steps, self._longest, self._unexplained)
            steps += 1
            operation = operations[number]
            result, after = self._model.step(frame.state, operation.what)
            if number < self._known:
                if result != operation.result:
                    continue
            elif after == frame.state:
                continue
            done = frame.done | 1 << number
            if (done, after) in met:
                continue
            met.add((done, after))
            first = frame.first
            while first < self._known and done >> first & 1:
                first += 1
            stack.append(_Frame(done, first, after, self._candidates(done, first), number))

    def _candidates(self, done: int, first: int) -> Iterator[int]:
        """Yield what may come next: all that were called before any that is not done has ended."""
        operations, known = self._operations, self._known
        bound_s = inf
        found = []
        for number in range(first, known):
            operation = operations[number]
            if operation.called_s > bound_s:
                break
            if not done >> number & 1:
                found.append((operation.ended_s, number))
                bound_s = min(bound_s, operation.ended_s)
        found.sort()
        for _, number in found:
            if operations[number].called_s <= bound_s:
                yield number
        for number in range(known, len(operations)):
            if operations[number].called_s > bound_s:
                break
            if not done >> number & 1:
                yield number

    def _remember(self, stack: list[_Frame[S]]) -> None:
        top = stack[-1]
        self._longest = tuple(self._operations[frame.by] for frame in stack[1:])
        self._unexplained = tuple(self._operations[number] for number in self._candidates(top.done, top.first))
