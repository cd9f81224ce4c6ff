"""Membership changes in the log: who may propose one, when it takes effect, and what a leader does by itself.

Ongaro's thesis, chapter 4; as in etcd, a change takes effect when its entry is committed and stored here, not when it
is appended. What makes that safe:

    one at a time   none is proposed while another stands in the log that has not taken effect here; the whole log of a
                    new leader counts, and it proposes none before an entry of its own term is committed (section 4.1,
                    and the correction to it of 2015)
    in step         the commit is written with the entries that it came with, so whoever stores change k + 1 knows that
                    k is committed: two replicas that could elect leaders are never more than one change apart
    no campaign     nobody campaigns while a committed change has not taken effect, not even on TimeoutNow
    no hurry        a replica becomes a voter only as a learner that has caught up and answers (section 4.2.1)

A leader that a change takes the vote from says what it committed, asks the best of the others to take over, and steps
down. Where that was lost on its way, the others do not know that the change is committed, and need its vote, until they
ask for it: who has no vote answers with what it knows to be committed (`Committed`).

A joint membership that may be left by itself is left by whoever leads, exactly once.

Rules of this file: `membership` changes in `_take_effect` alone, in the order of the log; `_changes` are the indexes of
all membership entries in the log that have not taken effect, ascending.
"""

from __future__ import annotations

from collections.abc import Sequence

from multiraft.errors import (
    ChangePending,
    ChangeRefused,
    CorruptRecord,
    MembershipChanged,
    NotLeader,
    NotReady,
    invariant,
)
from multiraft.membership import pack_membership, unpack_membership
from multiraft.messages import TimeoutNow
from multiraft.raft.changes import Change, Promote, changed, left
from multiraft.raft.progress import LOST, REPLICATE, Progress
from multiraft.raft.ready import LEADER
from multiraft.raft.snapshots import Snapshots
from multiraft.records import MEMBERSHIP, NOOP, encode_record
from multiraft.types import NOBODY, Index, Membership, ReplicaId


class Reconfiguration(Snapshots):
    """The layer that changes who takes part. See the file's text."""

    __slots__ = ()

    # ---------------------------------------------------------------------------------------------------- looking

    @property
    def change_pending(self) -> bool:
        """Whether a membership change is under way: one in the log that has no effect yet, or a joint membership."""
        return bool(self._changes) or self.membership.joint

    @property
    def membership_known(self) -> bool:
        """Whether a majority of the members of now knows of the membership in effect. False unless this one leads.

        Only then may a replica that takes part no longer go, or one be lost for which another has become a voter.
        Whoever knows of the change may be lost before, and those that are left would need, by the membership that they
        know of, the votes of those that are gone. What makes it so is an entry that was appended after the change took
        effect here and is committed: a majority has stored it together with a commit that covers the change.
        """
        return self.role is LEADER and self.commit > self._settles_after and self.commit >= self._office_index

    def latest_membership(self) -> Membership:
        """Return the newest membership in the log, whether or not it is committed. Raises CorruptRecord."""
        return self._membership_at(self._changes[-1]) if self._changes else self.membership

    def caught_up(self, replica_id: ReplicaId) -> bool:
        """Whether this leader may make the learner a voter: it holds (nearly) all there is, and answers now.

        Nearly: what came while it received the last round of entries arrived within an election timeout (thesis,
        section 4.2.1). False unless this replica leads.
        """
        peer = self.progress.get(replica_id)
        return (
            peer is not None
            and peer.state is REPLICATE
            and peer.caught_up
            and peer.next > self.log.last_index  # all that came since is on its way, too
            and self.answers(replica_id)
        )

    def answers(self, replica_id: ReplicaId) -> bool:
        """Whether this leader has heard the replica within an election timeout. False unless this replica leads."""
        peer = self.progress.get(replica_id)
        if peer is None or self.role is not LEADER or peer.state is LOST:
            return False
        node_id = self.membership.nodes.get(replica_id)
        if node_id is None or replica_id == self.replica_id:
            return node_id is not None
        contact = self._contacts.contact_s(self.group_id, self.term, replica_id, node_id)
        return self._now - contact <= self._settings.election_timeout_s

    def ask_after_followers(self, now: float) -> bool:
        """Probe those that have not acknowledged for long what they were sent; return whether there are any.

        What was lost on its way without anybody's noticing would otherwise be missing until something new is sent.
        Call it now and then; cheap where nobody lags. Who does not answer at all is resumed when it connects.
        """
        self.ask_after_snapshots(now)
        poked = False
        for peer in self._peers:
            if peer.stalled(self.log.last_index, now, self._settings.election_timeout_s) and self.answers(
                peer.replica_id
            ):
                self.poke(peer.replica_id)
                poked = True
        return poked

    # -------------------------------------------------------------------------------------------------- proposing

    def propose_membership(
        self,
        changes: Sequence[Change],
        stamp_ms: int,
        expected: Index | None = None,
        joint: bool | None = None,
        auto_leave: bool = True,
    ) -> Index:
        """Append the membership that comes of `changes`, made in their order; return its index.

        It has taken effect when `membership.index` is that index; whatever stands there otherwise, this one did not
        happen. No changes at all end a joint membership. `stamp_ms` as in `propose`; `joint` and `auto_leave` as in
        `changes.changed`.

        expected  the `membership.index` that the change was made for; None: whichever it is

        Raises NotLeader; NotReady while leadership is handed over, or before an entry of this term is committed, or for
        the promotion of a learner that has not caught up; ChangePending; MembershipChanged; ChangeRefused. Nothing was
        appended then.
        """
        if self.role is not LEADER:
            raise NotLeader(self.group_id, self.leader_node())
        if self._transfer_to != NOBODY:
            raise NotReady(f"group {self.group_id} is handing over its leadership; retry shortly")
        if self._changes:
            raise ChangePending(f"group {self.group_id}: the change at index {self._changes[-1]} is under way; retry")
        if not self._in_office():
            raise NotReady(f"group {self.group_id}: its new leader has committed nothing yet; retry shortly")
        current = self.membership
        if expected is not None and expected != current.index:
            raise MembershipChanged(
                f"group {self.group_id}: the membership is that of index {current.index}, not of {expected} any more"
            )
        index = self.log.last_index + 1
        following = changed(current, index, changes, joint, auto_leave) if changes else left(current, index)
        for change in changes:
            if isinstance(change, Promote) and not self.caught_up(change.replica_id):
                raise NotReady(f"group {self.group_id}: replica {change.replica_id} has not caught up yet; retry later")
        return self._append_membership(following, stamp_ms)

    def _in_office(self) -> bool:
        """Whether the no-op of this term, and so everything before it, has been committed and handed out."""
        return self._shown_committed >= self._office_index

    def _append_membership(self, membership: Membership, stamp_ms: int) -> Index:
        log = self.log
        entry = pack_membership(membership)
        try:  # every replica that cannot read it would halt, for good: so it is read before it is stored
            unpack_membership(entry, f"group {self.group_id}: the next membership")
        except CorruptRecord as problem:
            raise ChangeRefused(str(problem)) from problem
        self._store(
            encode_record(
                self.group_id, membership.index, self.term, log.last_term, MEMBERSHIP, stamp_ms, [entry]
            )
        )  # fmt: skip
        return membership.index

    def _reconfigure(self) -> None:
        """What a leader does by itself: end a joint change, promote a learner that was to join and has caught up."""
        membership = self.membership
        if self._changes or self._transfer_to != NOBODY or not self._in_office():
            return
        index = self.log.last_index + 1
        if membership.joint:
            if membership.auto_leave:
                self._append_membership(left(membership, index), 0)
            return
        for replica_id in membership.joining:
            if self.caught_up(replica_id):
                self._append_membership(changed(membership, index, [Promote(replica_id)]), 0)
                return

    # ---------------------------------------------------------------------------------------------- taking effect

    def _membership_at(self, index: Index) -> Membership:
        record = self.log.records(index, index, 1)[0]
        invariant(record.kind == MEMBERSHIP, "a membership entry is where the log had one")
        what = f"group {self.group_id}: membership entry at {index}"
        membership = unpack_membership(record.entries()[index - record.first], what)
        invariant(membership.index == index, "a membership entry names its own index")
        return membership

    def _take_effect(self) -> bool:
        """Let every change that is committed and stored take effect; return whether any did. Raises CorruptRecord.

        A leader may find more to be committed then.
        """
        committed = min(self.log.stable, self.commit)
        if not self._changes or self._changes[0] > committed:
            return False
        while self._changes and self._changes[0] <= committed:
            index = self._changes.pop(0)
            if index > self.membership.index:  # a log that is applied anew meets old changes
                before, self.membership = self.membership, self._membership_at(index)
                # Where nobody left and the voters are the same, nobody has to know of this change, and it was itself
                # appended after all those before it had taken effect.
                after = self.membership
                alike = (before.voters, before.outgoing) == (after.voters, after.outgoing)
                plain = alike and before.nodes.keys() <= after.nodes.keys()
                self._settles_after = index - 1 if plain else self.log.last_index
        if self.role is LEADER:
            self._lead_members()
        return True

    def _lead_members(self) -> None:
        """The membership that this leader leads has changed."""
        membership = self.membership
        progress = {one: self.progress.get(one) for one in membership.replicas}
        own = self.progress[self.replica_id]
        self.progress = {
            replica_id: peer if peer is not None else self._newcomer(replica_id)
            for replica_id, peer in progress.items()
        }
        self.progress.setdefault(self.replica_id, own)
        self._peers = [peer for replica_id, peer in self.progress.items() if replica_id != self.replica_id]
        if self._transfer_to != NOBODY and not membership.is_voter(self._transfer_to):
            self._transfer_to = NOBODY
        self._advance_commit()  # the new quorum may hold more than the old one
        if self._reads:
            self._confirm_reads()
        if not membership.is_voter(self.replica_id):
            self._resign()
        elif self._settles_after == self.log.last_index and not membership.auto_leave:
            log = self.log  # committed, it says that the others know of the change: see `membership_known`
            self._store(encode_record(self.group_id, log.last_index + 1, self.term, log.last_term, NOOP, 0, [b""]))

    def _newcomer(self, replica_id: ReplicaId) -> Progress:
        peer = Progress(replica_id, self.log.last_index + 1)
        peer.begin_round(self.log.last_index, self._now)
        return peer

    def _resign(self) -> None:
        """A leader without a vote: tell what is committed, ask the best voter to take over, and step down."""
        self._messages += self.commit_messages()
        voters = [self.progress[voter] for voter in self.membership.voters]
        able = [peer for peer in voters if peer.state is not LOST]
        if able:
            best = max(able, key=lambda peer: (peer.match, -peer.replica_id))
            self._messages.append(TimeoutNow(self.group_id, self.replica_id, self.term, best.replica_id))
        self._become_follower(self.term, NOBODY, self._now)
