"""What clients asked and what they were told, in the order of time: the input of the linearizability checker.

Rules of this file: an operation that certainly did not happen is taken out; one whose outcome is unknown stays, and
may have taken effect at any time after it was called, or never.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from math import inf
from typing import Any, Final


class Unknown:
    """Stands for the result of an operation whose outcome is not known."""

    def __repr__(self) -> str:
        return "?"


UNKNOWN: Final = Unknown()


@dataclass(slots=True)
class Operation:
    """One call.

    what      what the model is given; for a state machine (method, arguments)
    called_s  when it was called, in seconds
    ended_s   when its result was there; infinity while it is not, and for ever where the outcome is unknown
    result    UNKNOWN until then
    client    who called: for messages only
    """

    what: Any
    called_s: float
    ended_s: float = inf
    result: Any = UNKNOWN
    client: str = ""

    @property
    def known(self) -> bool:
        return self.ended_s != inf

    def __str__(self) -> str:
        ended = f"{self.ended_s:.6f}" if self.known else "never"
        return f"[{self.called_s:.6f}, {ended}] {self.client or 'client'}: {self.what!r:.200} -> {self.result!r:.200}"


class History:
    """Operations by key: those of different keys do not touch each other, and are judged apart."""

    def __init__(self) -> None:
        self.operations: dict[Hashable, list[Operation]] = {}

    def call(self, key: Hashable, what: Any, now_s: float, client: str = "") -> Operation:
        """Note that `what` is called now; tell how it ended by one of the methods below, or never."""
        operation = Operation(what, now_s, client=client)
        self.operations.setdefault(key, []).append(operation)
        return operation

    def end(self, operation: Operation, result: Any, now_s: float) -> None:
        """It returned `result`."""
        operation.result = result
        operation.ended_s = now_s

    def withdraw(self, key: Hashable, operation: Operation) -> None:
        """It certainly did not happen, or it was a read without an answer: it says nothing."""
        of_key = self.operations[key]
        for place in range(len(of_key) - 1, -1, -1):
            if of_key[place] is operation:
                del of_key[place]
                return

    @property
    def count(self) -> int:
        return sum(len(of_key) for of_key in self.operations.values())
