"""What the attempts of one call have come to, and whether another one may be made.

One call asks one node after the other; each attempt ends with an answer, or with an error that says whether it
happened. What follows from that differs: a command without a number may be sent again only if it certainly did not
happen, a read always, and a numbered command always as well, but then nothing is said of it to have certainly not.

Rules of this file: no I/O, no time; what another attempt would not change is raised.
"""

from __future__ import annotations

from typing import Final

from multiraft.errors import (
    CommandFailed,
    DeadlineExceeded,
    DiskFull,
    Halted,
    MultiRaftError,
    NotCommitted,
    NotLeader,
    NotReady,
    OutcomeUnknown,
    Overloaded,
    ReadFailed,
    ReplyForgotten,
    Unreachable,
)
from multiraft.group import CallKind

BACKOFF_FIRST_S: Final = 0.01
BACKOFF_MOST_S: Final = 0.2
READ_LEAST_S: Final = 0.25
"""A forwarded read is given at least this long, if there is that much time left, before another node is asked."""
NUMBERED_LEAST_S: Final = 1.0
"""The same of a numbered command."""


class Attempts:
    """The attempts of a call whose body has no number.

    kind    what is asked for
    cause   how the latest attempt failed; None before the first one
    halted  who leads but has halted, as the last that said so; None: nobody has, in this round
    """

    __slots__ = ("cause", "halted", "kind")

    def __init__(self, kind: CallKind) -> None:
        self.kind: CallKind = kind
        self.cause: MultiRaftError | None = None
        self.halted: Halted | None = None

    def failed(self, problem: MultiRaftError) -> None:
        """An attempt has failed. Raises what another one would not change."""
        again = isinstance(problem, PASSING) and not (isinstance(problem, OutcomeUnknown) and self.kind in CHANGING)
        if not again and not isinstance(problem, Halted):
            raise problem
        self._note(problem)

    def copy(self) -> Attempts:
        """Return one that stands where this one does."""
        return self._like(Attempts(self.kind))

    def _like(self, made: Attempts) -> Attempts:
        made.cause, made.halted = self.cause, self.halted
        return made

    def round_over(self) -> None:
        """Every node has been asked. Raises Halted if that is why nobody serves."""
        halted, self.halted = self.halted, None
        if halted is not None:
            raise halted

    def share_s(self, left_s: float, here: bool) -> float:
        """Return how much of the time that is left one node may have. here: it is this one."""
        # A read may be asked elsewhere, so one silent node must not have all of its time.
        return left_s if self.kind in CHANGING else min(left_s, max(left_s / 2, READ_LEAST_S))

    def late(self, late: MultiRaftError) -> MultiRaftError:
        """Return what the caller is told when the time is up; `late` says that nothing happened."""
        return late

    def _note(self, problem: MultiRaftError) -> None:
        self.cause = problem
        if isinstance(problem, Halted):
            self.halted = problem


class NumberedAttempts(Attempts):
    """The attempts of a command with a number: a second copy is not applied.

    unknown  whether an attempt may have happened
    """

    __slots__ = ("unknown",)

    def __init__(self, unknown: bool, kind: CallKind = "numbered") -> None:
        super().__init__(kind)
        self.unknown = unknown

    def copy(self) -> Attempts:
        return self._like(NumberedAttempts(self.unknown, self.kind))

    def failed(self, problem: MultiRaftError) -> None:
        """An attempt has failed. Raises what another one would not change; OutcomeUnknown in its place where this

        attempt did not happen, and an earlier one may have.
        """
        if isinstance(problem, CommandFailed | ReplyForgotten):
            raise problem
        if isinstance(problem, OutcomeUnknown):
            self.unknown = True
        elif not isinstance(problem, _AGAIN) and type(problem) is not NotCommitted:
            if not self.unknown:
                raise problem
            if not isinstance(problem, _CROWDED):
                raise OutcomeUnknown(
                    f"an attempt may have happened, and another one cannot be made: {type(problem).__name__}: {problem}"
                ) from problem
        self._note(problem)

    def round_over(self) -> None:
        if self.unknown:
            self.halted = None
        super().round_over()

    def share_s(self, left_s: float, here: bool) -> float:
        return left_s if here else min(left_s, max(left_s / 2, NUMBERED_LEAST_S))

    def late(self, late: MultiRaftError) -> MultiRaftError:
        if not self.unknown:
            return late
        told = OutcomeUnknown(f"{late}; an attempt may have happened, or may happen yet")
        told.__cause__ = self.cause
        return told


PASSING: Final = (NotLeader, NotReady, Unreachable, ReadFailed, OutcomeUnknown)
"""What the next node, or the next moment, may well do better. OutcomeUnknown is among them for reads alone."""
CHANGING: Final = ("propose", "propose many", "register", "change", "transfer")
_AGAIN: Final = (NotLeader, NotReady, Unreachable, Halted)
"""The same for a numbered command."""
_CROWDED: Final = (Overloaded, DiskFull, DeadlineExceeded)
"""What a caller is told at once; but not where it would have to be told that the outcome is unknown."""
