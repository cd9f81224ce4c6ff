"""Who is alive, and whom to follow: one beat per pair of nodes in place of heartbeats per group.

Each node tells each peer which (group, term) it leads toward it, the lead set: in full on connecting, then by deltas.
A shared beat, numbered and carrying the set's digest, keeps all these claims alive at once, and its acknowledgement
is the quorum contact of every group led toward that peer: check-quorum (Ongaro's thesis, section 6.2), ReadIndex and
leases (6.4, 6.4.1), and the voters' promise not to elect another (4.2.3) all rest on it. An idle node pays for its
peers, whatever the number of its groups.

The rules, by which comments and tests name what they are about:

    L1   an acknowledgement says: of each group held of you, my term, in memory, is not above yours. If it is, a
         refusal goes first
    L2   refusals are judged again at every rise of a term, whatever its cause
    L3   refusals are state: a new connection repeats them before its first acknowledgement
    L4   a refused leader adopts the higher term and steps down
    L6   an acknowledgement need not wait for any write
    L7   a beat whose digest is not that of the set held is not acknowledged; the full set is asked for
    L8   an acknowledged beat counts for a group only if it was sent after the peer was told of the group
    L9   sequence numbers are never reused within an incarnation; an acknowledgement names the incarnation
    L10  a read round needs acknowledgements of beats that were sent after it began
    L11  loyal: a peer heard within one election timeout claims the group at exactly the replica's term
    L12  a broken connection ends no promise; the leader's removal, a full set without the group, and a higher
         incarnation do
    L13  for one election timeout after a start, everybody is loyal to whoever may have been there before
    L14  a lease runs from the sending of the beat that a quorum acknowledged, less the drift; none after TimeoutNow
    L15  a send time is read before the message is handed over
    L18  a full set replaces; what it lacks becomes electable
    L19  every replica leads, is loyal, or has a deadline: whoever loses its leader here is made electable, once
    L21  the sets and digests follow from the cores' roles, and are audited
    L22  what an older incarnation said is dropped
    L24  a peer without the replica, the very one that is claimed, says so, and does not count until it has it

Rules of this file: nothing here reads a clock but for the lease's send time, awaits, or draws its own randomness;
peers are visited in order of their names; `now` is the patience clock and never goes back. Callbacks into the view
may call back into this class: no loop runs over state that a callback can change.
"""

from __future__ import annotations

import math
from bisect import insort
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import TYPE_CHECKING, Protocol

from multiraft.engine.leading import Leading, LivenessSettings
from multiraft.engine.leadset import Row
from multiraft.engine.livepeer import Hearing, PeerStatus, Telling
from multiraft.errors import invariant
from multiraft.messages import Beat, BeatAnswer, LeadAll, LeadAsk, LeadDelta, LivenessMessage, Refuse
from multiraft.types import GroupId, NodeId, ReplicaId, Term

if TYPE_CHECKING:
    from random import Random


class GroupView(Protocol):
    """What liveness asks of the groups on this node, and tells them. None of it blocks."""

    def term_of(self, group_id: GroupId, replica_id: ReplicaId) -> Term | None:
        """Return the term, in memory, of the group's replica here; None when that one is not here."""

    def claimed(self, group_id: GroupId, term: Term, leader_node: NodeId, now: float) -> None:
        """`leader_node` leads the group at `term`, which is not below the replica's: follow it."""

    def electable(self, group_ids: list[GroupId], now: float) -> None:
        """These have lost their leader; in the order, drawn for this node, in which they should campaign."""

    def refused(self, group_id: GroupId, term: Term, higher: Term) -> None:
        """A peer refuses this node's leadership at `term`: it is at `higher` (L4)."""

    def rejudge(self, group_ids: list[GroupId], now: float) -> None:
        """A peer has been silent toward these leaders for an election timeout: do they still have a quorum?"""

    def acknowledged(self, node_id: NodeId, round_id: int) -> None:
        """`node_id` has acknowledged every read round up to `round_id`."""

    def missing(self, node_id: NodeId, group_id: GroupId, now: float) -> None:
        """`node_id` does not have the group's replica that this leader leads toward it (L24)."""

    def arrived(self, node_id: NodeId, group_id: GroupId, now: float) -> None:
        """`node_id` has the group's replica now, which it had not: what this leader sent it before found nobody."""


class _Peer:
    __slots__ = ("hearing", "node_id", "telling")

    def __init__(self, node_id: NodeId) -> None:
        self.node_id = node_id
        self.telling = Telling()
        self.hearing = Hearing()


class Liveness:
    """What one node tells its peers of its leaderships, and what it holds of theirs.

    Messages leave through `send`, all on the urgent lane, in the order of the calls; `send` is called for connected
    peers only. The engine calls `flush` at the end of each turn, and `tick` about once per beat interval.

    node_id, incarnation  of this node; peers: the others, more are added as they are named
    rng                   the node's own random.Random
    clock                 the real clock, in seconds; read for the send time of beats, and for nothing else
    now                   the patience clock at the start of the node (L13)

    _peers, _order  the peers, and their names in order
    _leading        the groups led here, and what the peers' acknowledgements say of them
    _round          the last read round begun
    """

    def __init__(
        self,
        node_id: NodeId,
        incarnation: int,
        peers: Iterable[NodeId],
        settings: LivenessSettings,
        rng: Random,
        view: GroupView,
        send: Callable[[NodeId, LivenessMessage], None],
        clock: Callable[[], float],
        now: float,
    ) -> None:
        self.node_id = node_id
        self.incarnation = incarnation
        self._settings = settings
        self._rng = rng
        self._view = view
        self._send = send
        self._clock = clock
        self._started_s = now
        self._beat_due_s = -math.inf
        self._peers: dict[NodeId, _Peer] = {}
        self._order: list[NodeId] = []
        self._leading = Leading(node_id, settings)
        self._round = 0
        for name in peers:
            self._peer(name)

    # --------------------------------------------------------------------------------------------- leader's side

    def lead(self, group_id: GroupId, term: Term, targets: Iterable[tuple[NodeId, ReplicaId]], now: float) -> None:
        """This node leads the group at `term`: claim it toward these replicas' nodes (learners included).

        Called on winning, and again at the same term when the membership changes. The claims leave with `flush`.
        Raises InvariantViolation for a term below the one already claimed.
        """
        replicas = {node_id: replica_id for node_id, replica_id in targets if node_id != self.node_id}
        for node_id in replicas:
            self._peer(node_id)
        self._leading.lead(group_id, term, replicas, now)

    def unlead(self, group_id: GroupId, now: float) -> None:
        """This node no longer leads the group (stepped down, halted, destroyed). Harmless when it did not."""
        self._leading.unlead(group_id)

    def contact_s(self, group_id: GroupId, term: Term, node_id: NodeId) -> float:
        """Return when, by the patience clock, the newest beat was sent that `node_id` acknowledged for this claim.

        -infinity when no acknowledgement counts for it yet (L8), and for this node itself.
        """
        return self._leading.contact_s(group_id, term, node_id)

    def lease_until_s(
        self, group_id: GroupId, term: Term, voters: Collection[NodeId], outgoing: Collection[NodeId] = ()
    ) -> float:
        """Return the end, on the real clock, of the leader's lease (L14); -infinity when it has none.

        `voters` and `outgoing` are the nodes of the two halves of the membership, this one included where it votes.
        Compare with a fresh reading of the real clock (L15). Raises InvariantViolation without voters.
        """
        return self._leading.lease_until_s(group_id, term, voters, outgoing, self._clock())

    def forget_lease(self, group_id: GroupId) -> None:
        """The leader here is about to send TimeoutNow: the group has no lease for the rest of this term (L14)."""
        self._leading.forget_lease(group_id)

    def begin_round(self, node_ids: Iterable[NodeId], now: float) -> int:
        """Ask these nodes for an acknowledgement at once, for all reads registered so far; return the round (L10).

        `view.acknowledged` is called with this round, or a later one, for each node that answers. A node that is not
        connected, or does not accept the beat, is asked again with every beat until it answers.
        """
        self._round += 1
        for node_id in sorted({*node_ids} - {self.node_id}):
            peer = self._peer(node_id)
            peer.telling.note_round(self._round)
            if peer.telling.connected:
                self._beat(peer, now)
        return self._round

    # ---------------------------------------------------------------------------------------------- voter's side

    def loyal(self, group_id: GroupId, term: Term, now: float) -> bool:
        """Whether the group's replica here, at `term`, must refuse unforced votes and not campaign (L11, L13)."""
        timeout_s = self._settings.election_timeout_s
        if now - self._started_s < timeout_s:
            return True
        for node_id in self._order:
            hearing = self._peers[node_id].hearing
            if now - hearing.beat_s < timeout_s and hearing.held.term_of(group_id) == term:
                return True
        return False

    def watched(self, group_id: GroupId, term: Term) -> bool:
        """Whether some peer leads the group at `term` whose silence, should it fall silent, is still to be judged.

        For the audit of L19: such a replica needs no deadline of its own; it will be made electable.
        """
        for node_id in self._order:
            hearing = self._peers[node_id].hearing
            lead = hearing.held.get(group_id)
            if lead is None or lead[0] != term or hearing.silent:
                continue
            if self._view.term_of(group_id, lead[1]) is not None:
                return True
        return False

    def term_rose(self, group_id: GroupId, now: float) -> None:
        """The replica's term rose, for whatever reason: refuse the claims that are now below it (L2).

        Must be called before any later message is handed to `received`. Idempotent.
        """
        for node_id in self._order:
            peer = self._peers[node_id]
            lead = peer.hearing.held.get(group_id)
            if lead is not None:
                mine = self._view.term_of(group_id, lead[1])
                if mine is not None and lead[0] < mine:
                    self._answer(peer, group_id)

    def replica_created(self, group_id: GroupId, now: float) -> None:
        """A replica came to be here: judge and follow the claims that were already held (L24)."""
        for node_id in self._order:
            peer = self._peers[node_id]
            if peer.hearing.held.get(group_id) is not None:
                self._answer(peer, group_id)
                if not peer.hearing.silent:
                    self._follow(peer, group_id, now)

    def replica_removed(self, group_id: GroupId) -> None:
        """The replica is gone from this node: whoever claims its group must not count this node any more (L24)."""
        for node_id in self._order:
            peer = self._peers[node_id]
            if peer.hearing.held.get(group_id) is not None:
                self._answer(peer, group_id)

    # ----------------------------------------------------------------------------------------------- connections

    def connected(self, node_id: NodeId, incarnation: int, now: float) -> None:
        """The connection to the peer is up: tell it everything, refusals before the first acknowledgement (L3)."""
        self.heard(node_id, incarnation, now)
        peer = self._peer(node_id)
        peer.telling.connected = True
        self._send(node_id, peer.telling.take_all())
        for group_id, (term, answer) in sorted(peer.hearing.answers.items()):
            self._send(node_id, Refuse(group_id, answer, term))
        self._beat(peer, now)

    def disconnected(self, node_id: NodeId, now: float) -> None:
        """The connection to the peer is gone. Ends no promise, on either side (L12)."""
        peer = self._peer(node_id)
        peer.telling.connected = False
        peer.hearing.asked_s = -math.inf

    def join_as(self, incarnation: int) -> None:
        """This node has joined its cluster, as another incarnation than it began with. Nobody was told anything yet."""
        invariant(not any(peer.telling.sequence for peer in self._peers.values()), "a run keeps its incarnation")
        self.incarnation = incarnation

    def heard(self, node_id: NodeId, incarnation: int, now: float) -> None:
        """A connection to or from this incarnation of the peer was made. A higher one ends all of its claims (L12)."""
        peer = self._peer(node_id)
        if incarnation == peer.hearing.incarnation:
            peer.hearing.asked_s = -math.inf  # the question, or its answer, may have gone with the old connection
        elif incarnation > peer.hearing.incarnation:
            gone = peer.hearing
            peer.hearing = Hearing(incarnation)
            if not gone.silent:
                self._release(gone.held.claimed(), now)

    def received(self, node_id: NodeId, message: LivenessMessage, incarnation: int, now: float) -> None:
        """Handle one message of the peer's process `incarnation`, in the order of its connection."""
        peer = self._peer(node_id)
        if incarnation > peer.hearing.incarnation:
            self.heard(node_id, incarnation, now)
        if incarnation < peer.hearing.incarnation:
            return  # L22
        if type(message) is Beat:
            self._on_beat(peer, message, now)
        elif type(message) is BeatAnswer:
            self._on_acknowledgement(peer, message.incarnation, message.sequence)
        elif type(message) is LeadDelta:
            self._on_delta(peer, message, now)
        elif type(message) is LeadAll:
            self._on_all(peer, message, now)
        elif type(message) is Refuse:
            self._on_refuse(peer, message, now)
        elif type(message) is LeadAsk and peer.telling.connected:
            self._send(node_id, peer.telling.take_all())
            self._beat(peer, now)

    # ------------------------------------------------------------------------------------------------------ time

    def tick(self, now: float) -> None:
        """Judge who has fallen silent, then send the beats that are due. Costs O(peers) when nothing happens.

        Beats leave when half an interval has passed since the last ones, so that a ticker may be a little early, or
        tick at other times too.
        """
        for node_id in self._order:
            hearing = self._peers[node_id].hearing
            if now >= hearing.deadline_s:
                hearing.silent = True
                hearing.deadline_s = math.inf
                self._release(hearing.held.claimed(), now)
        rejudge = self._leading.due(now)
        if rejudge:
            self._view.rejudge(rejudge, now)
        if now >= self._beat_due_s:
            self._beat_due_s = now + self._settings.beat_s / 2.0
            for node_id in self._order:
                peer = self._peers[node_id]
                if peer.telling.connected:
                    self._beat(peer, now)

    def flush(self) -> None:
        """Tell each connected peer what changed in its lead set since the last call, in one message per peer."""
        for node_id in self._order:
            self._tell(self._peers[node_id])

    # ---------------------------------------------------------------------------------------------------- looking

    def status(self, now: float) -> dict[NodeId, PeerStatus]:
        """Return what is known of each peer, by name."""
        return {
            node_id: PeerStatus(node_id, self._peers[node_id].telling, self._peers[node_id].hearing, now)
            for node_id in self._order
        }

    def claimed_term(self, group_id: GroupId) -> Term:
        """Return the term at which this node claims to lead the group; 0 when it does not (L21)."""
        return self._leading.term_of(group_id)

    def audit(self, leading: Mapping[GroupId, Term]) -> list[GroupId]:
        """Return the groups, in order, that are claimed otherwise than the cores' roles, `leading`, say (L21)."""
        claimed = self._leading.terms()
        if claimed == leading:
            return []
        return sorted(group_id for group_id in {*claimed, *leading} if claimed.get(group_id) != leading.get(group_id))

    def check_digests(self) -> None:
        """Raise InvariantViolation when a digest is not that of its set. Computes each afresh: not for a busy node."""
        for node_id in self._order:
            peer = self._peers[node_id]
            for lead_set in (peer.telling.told, peer.hearing.held):
                invariant(lead_set.digest == lead_set.counted_digest(), f"{node_id}: a lead set's digest is wrong")

    # ------------------------------------------------------------------------------------------------ what is said

    def _peer(self, node_id: NodeId) -> _Peer:
        peer = self._peers.get(node_id)
        if peer is None:
            invariant(node_id != self.node_id, "a node is no peer of itself")
            peer = self._peers[node_id] = _Peer(node_id)
            self._leading.tellings[node_id] = peer.telling
            insort(self._order, node_id)
        return peer

    def _tell(self, peer: _Peer) -> None:
        if peer.telling.connected:
            delta = peer.telling.take_delta()
            if delta is not None:
                self._send(peer.node_id, delta)

    def _beat(self, peer: _Peer, now: float) -> None:
        """Send a beat. What changed goes first, so that the digest is that of the set as it is now."""
        self._tell(peer)
        sent_s = self._clock()  # L15: before it is handed over
        self._send(peer.node_id, peer.telling.beat(self.incarnation, now, sent_s, peer.hearing))

    def _on_acknowledgement(self, peer: _Peer, incarnation: int, sequence: int) -> None:
        if incarnation == self.incarnation:  # L9: an acknowledgement of an earlier life says nothing about this one
            round_id = peer.telling.acknowledge(sequence)
            if round_id:
                self._view.acknowledged(peer.node_id, round_id)

    def _on_refuse(self, peer: _Peer, message: Refuse, now: float) -> None:
        group_id, term, answer = message.group_id, message.term, message.my_term
        if self._leading.term_of(group_id) != term:
            return  # it answers a claim that is no longer made
        if answer > term:
            self._view.refused(group_id, term, answer)
        elif answer == term:
            peer.telling.trust(group_id, term)
            self._view.arrived(peer.node_id, group_id, now)
        elif answer == 0:
            peer.telling.doubt(group_id, term)
            self._view.rejudge([group_id], now)
            self._view.missing(peer.node_id, group_id, now)

    # ----------------------------------------------------------------------------------------------- what is heard

    def _on_beat(self, peer: _Peer, beat: Beat, now: float) -> None:
        self._on_acknowledgement(peer, beat.ack_incarnation, beat.ack_sequence)
        hearing = peer.hearing
        if beat.incarnation != hearing.incarnation or beat.sequence <= hearing.accepted:
            return
        if beat.digest != hearing.held.digest:
            self._ask(peer, now)
            return
        hearing.accepted = beat.sequence
        hearing.beat_s = now
        hearing.deadline_s = now + self._settings.election_timeout_s * (1.0 + self._rng.random())
        if hearing.silent:
            hearing.silent = False
            for group_id in hearing.held.groups():
                self._follow(peer, group_id, now)
        if beat.answer_now and peer.telling.connected:
            self._send(peer.node_id, BeatAnswer(beat.incarnation, beat.sequence))

    def _ask(self, peer: _Peer, now: float) -> None:
        """Ask for the full set: once, and again if an election timeout passes without it (L7)."""
        hearing = peer.hearing
        if peer.telling.connected and now - hearing.asked_s >= self._settings.election_timeout_s:
            hearing.asked_s = now
            self._send(peer.node_id, LeadAsk())

    def _on_delta(self, peer: _Peer, delta: LeadDelta, now: float) -> None:
        hearing = peer.hearing
        dropped: list[Row] = []
        for group_id, term in delta.removed:
            lead = hearing.held.get(group_id)
            if lead is not None and lead[0] == term:
                hearing.held.drop(group_id)
                hearing.answers.pop(group_id, None)
                dropped.append((group_id, *lead))
        for group_id, term, replica_id in delta.added:
            dropped += self._hold(hearing, group_id, term, replica_id)
        self._claims_changed(peer, [row[0] for row in delta.added], dropped, now)

    def _on_all(self, peer: _Peer, message: LeadAll, now: float) -> None:
        hearing = peer.hearing
        hearing.asked_s = -math.inf
        hearing.answers.clear()  # everything is judged and answered anew
        told = {row[0] for row in message.led}
        dropped = [row for row in hearing.held.claimed() if row[0] not in told]
        for group_id, _, _ in dropped:
            hearing.held.drop(group_id)
        for group_id, term, replica_id in message.led:
            dropped += self._hold(hearing, group_id, term, replica_id)
        self._claims_changed(peer, hearing.held.groups(), dropped, now)

    def _hold(self, hearing: Hearing, group_id: GroupId, term: Term, replica_id: ReplicaId) -> list[Row]:
        """Hold a claim; return the one toward another replica that it takes away. Such a claim is answered anew."""
        old = hearing.held.get(group_id)
        hearing.held.put(group_id, term, replica_id)
        if old is None or old[1] == replica_id:
            return []
        hearing.answers.pop(group_id, None)
        return [(group_id, *old)]

    def _claims_changed(self, peer: _Peer, added: list[GroupId], dropped: list[Row], now: float) -> None:
        """Answer and follow new claims, and wake those whose claim is gone (L18, L19).

        Claims of a silent peer are answered, but followed only with its next accepted beat: until then its groups
        keep the deadlines that they were given.
        """
        for group_id in added:
            self._answer(peer, group_id)
            if not peer.hearing.silent:
                self._follow(peer, group_id, now)
        if dropped and not peer.hearing.silent:
            self._release(dropped, now)

    def _answer(self, peer: _Peer, group_id: GroupId) -> None:
        """Judge the peer's claim of the group, as held now, and tell the peer if it must know (L1)."""
        term, replica_id = peer.hearing.held.get(group_id) or (0, 0)
        answer = peer.hearing.answer(group_id, term, self._view.term_of(group_id, replica_id))
        if answer is not None and peer.telling.connected:
            self._send(peer.node_id, Refuse(group_id, answer, term))

    def _follow(self, peer: _Peer, group_id: GroupId, now: float) -> None:
        term, replica_id = peer.hearing.held.get(group_id) or (0, 0)
        mine = self._view.term_of(group_id, replica_id)
        if mine is not None and mine <= term:
            self._view.claimed(group_id, term, peer.node_id, now)
            if mine < term:
                self.term_rose(group_id, now)

    def _release(self, claims: list[Row], now: float) -> None:
        """Make electable, in an order drawn here, those of these groups that followed their claim (L19)."""
        lost = []
        for group_id, term, replica_id in claims:
            mine = self._view.term_of(group_id, replica_id)
            if mine is not None and mine <= term and not self.watched(group_id, mine):
                lost.append(group_id)
        if lost:
            self._rng.shuffle(lost)
            self._view.electable(lost, now)


__all__ = ["GroupView", "Liveness", "LivenessSettings", "PeerStatus"]
