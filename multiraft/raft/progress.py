"""What a leader knows of one replica's log, and how much it dares to send it.

Probing: one append in flight, until its answer shows where the logs agree. Replicating: appends follow each other
without waiting, within a window of messages and bytes (optimistic; thesis, section 10.2.1). Snapshot: it needs entries
that this log no longer has, and is sent nothing but a snapshot until it has answered. Lost: the replica denied what it
had acknowledged, so its disk was lost; it is sent nothing and counts for nothing until the leader is told to try again.

Rules of this file: no messages, no clock; `match` never goes back; match < next, but for the leader itself, whose
`match` is what its own disk holds.
"""

from __future__ import annotations

import math
from enum import IntEnum
from typing import Final

from multiraft.types import Index, ReplicaId


class ProgressState(IntEnum):
    PROBE = 0
    REPLICATE = 1
    LOST = 2
    SNAPSHOT = 3


PROBE: Final = ProgressState.PROBE
REPLICATE: Final = ProgressState.REPLICATE
LOST: Final = ProgressState.LOST
SNAPSHOT: Final = ProgressState.SNAPSHOT


class Progress:
    """One replica, as its leader sees it; a fresh one for each replica and term of office.

    match           the log agrees with the leader's up to here, on that replica's disk
    next            the index that the next append starts with
    state           see above
    probe_sent      probing: the one append allowed is on its way
    confirming      it denied an entry that it had acknowledged; one more denial, of `match` itself, means lost
    pending         the index of the snapshot that is on its way; 0: none is, it may be sent one when there is one
    pending_since_s when that was sent, on the patience clock
    told            the commit that it was told of, unless that message was lost
    acked_round     the newest read round that it acknowledged
    caught_up       it has received a round of entries within an election timeout (thesis, section 4.2.1)
    inflight        (last index, bytes) of each append on its way, oldest first
    inflight_bytes  their sum
    """

    __slots__ = (
        "_round_end",
        "_round_since_s",
        "_stalled_at",
        "acked_round",
        "caught_up",
        "confirming",
        "inflight",
        "inflight_bytes",
        "match",
        "next",
        "pending",
        "pending_since_s",
        "probe_sent",
        "replica_id",
        "state",
        "told",
    )

    def __init__(self, replica_id: ReplicaId, next_index: Index) -> None:
        self.replica_id = replica_id
        self.match: Index = 0
        self.next: Index = next_index
        self.state = PROBE
        self.probe_sent = False
        self.confirming = False
        self.pending: Index = 0
        self.pending_since_s = -math.inf
        self.told: Index = 0
        self.acked_round = -1
        self.caught_up = False
        self._round_end: Index = next_index - 1
        self._round_since_s = -math.inf
        # Since when, as far as was asked, it has stood at which match, behind the log.
        self._stalled_at: tuple[Index, float] | None = None
        self.inflight: list[tuple[Index, int]] = []  # short; a deque takes 700 bytes even when empty
        self.inflight_bytes = 0

    def probe(self, next_index: Index) -> None:
        """Forget what is on its way, and ask again from `next_index`."""
        self.state = PROBE
        self.next = max(next_index, self.match + 1)
        self.probe_sent = False
        self.pending = 0
        self.told = 0
        self.inflight.clear()
        self.inflight_bytes = 0

    def await_snapshot(self, index: Index, now: float) -> None:
        """Send nothing until it has answered the snapshot of `index`; 0: until there is one that can be sent."""
        self.probe(self.next)
        self.state = SNAPSHOT
        self.pending, self.pending_since_s = index, now

    def resumes(self, index: Index, start: Index) -> bool:
        """It awaits a snapshot, and holds everything up to `index`: whether entries will do, in a log from `start` on.

        That may well show before the snapshot is answered: an append that it answers late had more to it.
        """
        return index >= start or 0 < self.pending <= index

    def ready_for(self, last: Index, messages: int, size_bytes: int) -> bool:
        """Whether an append may leave now, in a log that ends at `last` and within a window of these sizes.

        A probe that was not sent yet always may, even where there is nothing new: its answer is what is wanted.
        """
        if self.state is REPLICATE:
            return self.next <= last and len(self.inflight) < messages and self.inflight_bytes < size_bytes
        return self.state is PROBE and not self.probe_sent

    def sent(self, last: Index, size_bytes: int) -> None:
        """An append of entries up to `last` left while replicating."""
        self.next = last + 1
        self.inflight.append((last, size_bytes))
        self.inflight_bytes += size_bytes

    def accepted(self, index: Index) -> bool:
        """It holds everything up to `index`. Return whether that was news."""
        inflight = self.inflight
        if inflight and inflight[0][0] <= index:
            count = 0
            for last, size_bytes in inflight:
                if last > index:
                    break
                self.inflight_bytes -= size_bytes
                count += 1
            del inflight[:count]
        self.confirming = False
        if self.state is PROBE and index >= self.next - 1:  # not an answer from before the probe
            self.state = REPLICATE
            self.probe_sent = False
        if index >= self.next:
            self.next = index + 1
        if index <= self.match:
            return False
        self.match = index
        return True

    def stalled(self, last: Index, now: float, timeout_s: float) -> bool:
        """Whether it lacks entries of a log that ends at `last`, and has acknowledged none for longer than `timeout_s`.

        Counts from the first question that it lacked some, and anew from each that found it so.
        """
        if self.state is LOST or self.state is SNAPSHOT or self.match >= last:
            self._stalled_at = None
        elif self._stalled_at is None or self._stalled_at[0] != self.match:
            self._stalled_at = (self.match, now)
        elif now - self._stalled_at[1] > timeout_s:
            self._stalled_at = (self.match, now)
            return True
        return False

    def begin_round(self, last_index: Index, now: float) -> None:
        """From `now` on: how long does it take to receive the log up to `last_index`?"""
        self._round_end, self._round_since_s = last_index, now

    def judge_round(self, last_index: Index, now: float, timeout_s: float) -> None:
        """After news of `match`, in a log that ends at `last_index`: is the round over, and was it a quick one?"""
        if self.match >= last_index or (self.match >= self._round_end and now - self._round_since_s <= timeout_s):
            self.caught_up = True
        elif self.match >= self._round_end:
            self.begin_round(last_index, now)

    def lose(self) -> None:
        """Send nothing more, count it for nothing."""
        self.probe(self.match + 1)
        self.state = LOST
        self.confirming = False
        self.caught_up = False
