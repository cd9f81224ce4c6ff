"""The two halves of what liveness knows of one peer: what it was told, and what was heard from it.

Telling is the leader's half: the lead set as the peer was told it, the beats sent, and which of them the peer
acknowledged. Hearing is the voter's half: the lead set as the peer told it, its last accepted beat, and the answers
that go with every acknowledgement. Neither sends anything or knows of other peers; `liveness.py` does.

Rules of this file: plain state and arithmetic; time and random numbers are handed in; L1 to L14 are the rules of
`liveness.py`. A sequence number is never used twice by one Telling, and Tellings live as long as their process (L9).
"""

from __future__ import annotations

import math
from collections import deque
from typing import Final

from multiraft.engine.leadset import Lead, LeadSet, Row
from multiraft.messages import Beat, LeadAll, LeadDelta
from multiraft.types import GroupId, NodeId, ReplicaId, Term

_REMEMBERED: Final = 4096
"""Beats and read rounds waiting for their acknowledgement, per peer; past this the oldest are given up.

A peer that is this far behind is late for any use of the time of such a beat. Giving up errs on the safe side: the
acknowledgement still counts for later rounds, with the send time of an earlier beat.
"""
_NEVER: Final = math.inf
"""In place of a sequence number: no beat counts."""


class Telling:
    """What this node tells one peer, and what the peer has acknowledged of it.

    connected     the connection that this node dialled is up
    told          the lead set as the peer has been told it on this connection; frozen while there is none
    sequence      of the last beat sent
    acked         the highest sequence number acknowledged
    acked_s       when that beat was sent, by the patience clock; at most earlier than that, never later
    acked_real_s  the same by the real clock
    silence_judged  the leaders told here were made to count their quorum because of the present silence
    _counts_from  L8: for each group told, the first sequence number sent after the peer was told of it; _NEVER while
                  the peer says that it has no such replica (L24)
    _wanted       what is to be told next: a group's entry, or None to take it out
    _sent         (sequence, patience clock, real clock) of beats not yet acknowledged, ascending
    _rounds       (sequence, round) of read rounds not yet acknowledged, ascending in both
    """

    __slots__ = (
        "_counts_from",
        "_rounds",
        "_sent",
        "_wanted",
        "acked",
        "acked_real_s",
        "acked_s",
        "connected",
        "sequence",
        "silence_judged",
        "told",
    )

    def __init__(self) -> None:
        self.connected = False
        self.told = LeadSet()
        self.sequence = 0
        self.acked = 0
        self.acked_s = -math.inf
        self.acked_real_s = -math.inf
        self.silence_judged = True
        self._counts_from: dict[GroupId, float] = {}
        self._wanted: dict[GroupId, Lead | None] = {}
        self._sent: deque[tuple[int, float, float]] = deque(maxlen=_REMEMBERED)
        self._rounds: deque[tuple[int, int]] = deque(maxlen=_REMEMBERED)

    def want(self, group_id: GroupId, lead: Lead | None) -> None:
        """Have the peer told, with the next delta or full set, that the group is led so, or no longer."""
        self._wanted[group_id] = lead

    def take_delta(self) -> LeadDelta | None:
        """Bring `told` up to date and return what changed; None when nothing did."""
        if not self._wanted:  # as in nearly every turn
            return None
        added: list[Row] = []
        removed: list[tuple[GroupId, Term]] = []
        for group_id, lead in sorted(self._wanted.items(), key=lambda item: item[0]):
            old = self.told.get(group_id)
            if lead == old:
                continue
            if lead is not None:
                self.told.put(group_id, *lead)
                self._counts_from[group_id] = self.sequence + 1
                added.append((group_id, *lead))
            elif old is not None:
                self.told.drop(group_id)
                del self._counts_from[group_id]
                removed.append((group_id, old[0]))
        self._wanted.clear()
        return LeadDelta(tuple(added), tuple(removed)) if added or removed else None

    def take_all(self) -> LeadAll:
        """Bring `told` up to date and return all of it. The peer judges every entry of it anew."""
        self.take_delta()
        for group_id, first in self._counts_from.items():
            if first == _NEVER:
                self._counts_from[group_id] = self.sequence + 1
        return LeadAll(self.told.rows())

    def doubt(self, group_id: GroupId, term: Term) -> None:
        """The peer has no such replica: nothing it acknowledges counts for it."""
        if self.told.term_of(group_id) == term:
            self._counts_from[group_id] = _NEVER

    def trust(self, group_id: GroupId, term: Term) -> None:
        """The peer has the replica now: it counts from the next beat on."""
        if self.told.term_of(group_id) == term and self._counts_from[group_id] == _NEVER:
            self._counts_from[group_id] = self.sequence + 1

    def counts(self, group_id: GroupId, term: Term, replica_id: ReplicaId) -> bool:
        """Whether the newest acknowledged beat says something about this replica at this term (L8, L24)."""
        return self.told.get(group_id) == (term, replica_id) and self.acked >= self._counts_from[group_id]

    def beat(self, incarnation: int, now: float, real_s: float, hearing: Hearing) -> Beat:
        """Return the next beat, sent at these times, with the acknowledgement of the peer's own."""
        self.sequence += 1
        self._sent.append((self.sequence, now, real_s))
        answer_now = bool(self._rounds)
        return Beat(hearing.incarnation, hearing.accepted, answer_now, self.told.digest, incarnation, self.sequence)

    def note_round(self, round_id: int) -> None:
        """The round is acknowledged by any beat that is yet to be sent (L10)."""
        self._rounds.append((self.sequence + 1, round_id))

    def acknowledge(self, sequence: int) -> int:
        """Note that the peer accepted beat `sequence`; return the newest read round this acknowledges, or 0."""
        if not self.acked < sequence <= self.sequence:
            return 0
        self.acked = sequence
        while self._sent and self._sent[0][0] <= sequence:
            _, self.acked_s, self.acked_real_s = self._sent.popleft()
        round_id = 0
        while self._rounds and self._rounds[0][0] <= sequence:
            _, round_id = self._rounds.popleft()
        return round_id


class Hearing:
    """What one peer has told this node, and what this node answers to it.

    incarnation  of the peer's process that all of this is about; 0 before it was ever heard
    held         the lead set as that process told it. Outlives its connection (L12)
    accepted     sequence number of its last accepted beat; 0 if none
    beat_s       when that was handled; nothing else renews a promise
    deadline_s   when the peer's silence is judged: drawn anew with each accepted beat; infinite once judged
    silent       judged silent: its groups were made electable, and follow it again only with its next accepted beat
    asked_s      when the full set was asked for and has not come yet; -infinity otherwise
    answers      what it must know of its claims before anything later is acknowledged: (its term, answer). An answer
                 above its term refuses; 0 says that there is no such replica here; its own term takes the 0 back.
                 State, not events: each new connection repeats all of them (L3)
    _doubted     groups that were ever answered 0; the next claim that holds must take it back
    """

    __slots__ = (
        "_doubted",
        "accepted",
        "answers",
        "asked_s",
        "beat_s",
        "deadline_s",
        "held",
        "incarnation",
        "silent",
    )

    def __init__(self, incarnation: int = 0) -> None:
        self.incarnation = incarnation
        self.held = LeadSet()
        self.accepted = 0
        self.beat_s = -math.inf
        self.deadline_s = math.inf
        self.silent = True
        self.asked_s = -math.inf
        self.answers: dict[GroupId, tuple[Term, Term]] = {}
        self._doubted: set[GroupId] = set()

    def answer(self, group_id: GroupId, term: Term, mine: Term | None) -> Term | None:
        """Judge the peer's claim of the group at `term` against this node's own term (None: no replica here).

        Returns what the peer must be told before it is acknowledged again; None when it has been told, or need not.
        """
        told = self.answers.get(group_id)
        if told is not None and told[0] == term < told[1]:
            return None  # refused once is refused for good
        if mine is None:
            self._doubted.add(group_id)
            answer = 0
        elif mine > term:
            answer = mine
        elif group_id in self._doubted:
            answer = term
        else:
            self.answers.pop(group_id, None)
            return None
        self.answers[group_id] = (term, answer)
        return answer if told != (term, answer) else None


class PeerStatus:
    """What an operator may ask about one peer; ages in seconds, infinite for "never".

    connected       this node's connection to it is up
    incarnation     of its process, as last heard
    silent          its groups here were made electable because it was not heard
    heard_age_s     since its last accepted beat
    acked_age_s     since the sending of the newest beat that it acknowledged
    led, held       groups that this node leads toward it, and it toward this node
    refused         claims of it that this node refuses
    """

    __slots__ = (
        "acked_age_s",
        "connected",
        "heard_age_s",
        "held",
        "incarnation",
        "led",
        "node_id",
        "refused",
        "silent",
    )

    def __init__(self, node_id: NodeId, telling: Telling, hearing: Hearing, now: float) -> None:
        self.node_id = node_id
        self.connected = telling.connected
        self.incarnation = hearing.incarnation
        self.silent = hearing.silent
        self.heard_age_s = now - hearing.beat_s
        self.acked_age_s = now - telling.acked_s
        self.led = len(telling.told)
        self.held = len(hearing.held)
        self.refused = sum(answer > term for term, answer in hearing.answers.values())
