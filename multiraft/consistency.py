"""How a read is answered, as its caller chooses: the value that travels from the call to the router.

                  who answers               it sees at least                    it waits for
    linearizable  the leader                all that was acknowledged before    a round to a quorum
    lease         the leader                the same, if clocks run even        nothing, while the lease lasts
    local         the replica here          all that was acknowledged before    the leader's index, and applying it
    stale         the replica here          all that was acknowledged           nothing, while that is so; else as
                                            stale_ms before                     a local read

Why not everything is a lease read: it is linearizable only while no two clocks of the cluster drift apart by more
than `clock_drift_ppm`. That is a property of machines and hypervisors that no program can check, so whoever relies on
it says so, call by call. The other three trust no clock to agree with another one.

Rules of this file: a value that is either right or was never made.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from multiraft.errors import InvalidRequest

STALE_MS_MOST: Final = 24 * 3_600_000
"""Whoever may be a day behind needs no bound."""


@dataclass(frozen=True, slots=True)
class Consistency:
    """One of the four kinds of the table above; all defaults: linearizable.

    lease     the leader answers without a round while its lease lasts; otherwise as without it
    local     the replica of the node that is called answers, linearizably; the leader where there is none
    stale_ms  the same, and at once where it is no older than this; None: linearizable
    """

    lease: bool = False
    local: bool = False
    stale_ms: int | None = None

    def __post_init__(self) -> None:
        if self.stale_ms is not None and (type(self.stale_ms) is not int or not 0 <= self.stale_ms <= STALE_MS_MOST):
            raise InvalidRequest(
                f"stale_ms = {self.stale_ms!r}: must be a whole number of milliseconds from 0 to {STALE_MS_MOST}"
            )
        for name in ("lease", "local"):
            if type(getattr(self, name)) is not bool:
                raise InvalidRequest(f"{name} = {getattr(self, name)!r}: must be True or False")
        if self.lease and (self.local or self.stale_ms is not None):
            raise InvalidRequest("lease: only the leader has one, so it does not go with local or stale_ms")

    @property
    def nearby(self) -> bool:
        """Whether the replica here is to answer, if there is one."""
        return self.local or self.stale_ms is not None


LINEARIZABLE: Final = Consistency()


def consistency_of(lease: bool, local: bool, stale_ms: int | None) -> Consistency | None:
    """Return what a call's options choose; None: the default. Raises InvalidRequest."""
    chosen = Consistency(lease, local, stale_ms)
    return chosen if chosen != LINEARIZABLE else None
