"""What the engine does besides its turns: tell commits that no append told, repair what was dropped, audit.

Rules of this file: each call does a bounded share of its work; nothing here is needed while all goes well.
"""

from __future__ import annotations

import asyncio
import logging
from math import inf
from typing import TYPE_CHECKING, Final

from multiraft.engine.replica import Replica
from multiraft.messages import Append, AskRemoved, InstallSnapshot
from multiraft.raft import LEADER, Role
from multiraft.types import NOBODY, GroupId, Index, NodeId

if TYPE_CHECKING:
    from multiraft.engine.engine import Engine

_STALLED_TIMEOUTS: Final = 4
"""A write that is under way, or a commit that stands still, for so many election timeouts costs a leader its office."""
_PUT_OFF_MOST: Final = 4
"""So often is a message about a commit put off, each time for half of the delay, where an append is to be expected."""
_AUDITED_AT_ONCE: Final = 40
"""Replicas looked at in one beat: a node of very many takes its time for a pass, rather than its CPU."""
log: Final = logging.getLogger("multiraft.engine")


class Upkeep:
    """The standing chores of one engine."""

    def __init__(self, engine: Engine, loop: asyncio.AbstractEventLoop) -> None:
        self._engine = engine
        self._loop = loop
        # Leaders, with their commit when they were noted, and how often a message of its own was put off since: those
        # noted in this period, and those noted earlier.
        self._untold: dict[Replica, tuple[Index, int]] = {}
        self._untold_longer: dict[Replica, tuple[Index, int]] = {}
        self._untold_period_s = engine.limits.commit_delay_ms / 2e3
        self._untold_handle: asyncio.TimerHandle | None = None
        self._to_audit: list[GroupId] = []
        self._oldest_write: object = None
        self._oldest_since_s = 0.0
        # Leaders with entries that are not committed: their commit, and since when it stands there.
        self._awaited: dict[Replica, tuple[Index, float]] = {}
        self._judged_s = 0.0

    def stop(self) -> None:
        if self._untold_handle is not None:
            self._untold_handle.cancel()
            self._untold_handle = None

    def tell_commit_later(self, replica: Replica) -> None:
        """Followers hear of a commit with the next append, or, if none leaves soon, by a message of its own.

        That is between half of the delay and all of it later; a little more where something is to be appended, or what
        is committed to be applied, after which whoever waited for it may have more to append.
        """
        if replica not in self._untold:
            self._untold[replica] = replica.core.commit, 0
            if self._untold_handle is None:
                self._untold_handle = self._loop.call_later(self._untold_period_s, self._tell_commits)

    def _tell_commits(self) -> None:
        self._untold_handle = None
        due, self._untold_longer, self._untold = self._untold_longer, self._untold, {}
        outgoing = self._engine.outgoing
        for replica in sorted(due, key=lambda replica: replica.group_id):
            core, (noted, put_off) = replica.core, due[replica]
            if not replica.leads or not core.commit_untold:
                continue
            if core.all_told(noted):  # by an append; what is untold is news
                self._untold_longer.setdefault(replica, (core.commit, 0))
                continue
            if (replica.queued or replica.apply_queued) and put_off < _PUT_OFF_MOST:
                self._untold_longer[replica] = noted, put_off + 1
                continue
            for message in core.commit_messages():
                outgoing.consensus(replica.node_of(message.to), message)
        outgoing.send_all()
        if self._untold_longer and self._untold_handle is None:
            self._untold_handle = self._loop.call_later(self._untold_period_s, self._tell_commits)

    def resume_replication(self, node_id: NodeId) -> None:
        """A connection to or from a peer is new: have every leader here ask again where its follower there is."""
        engine = self._engine
        for replica in engine.replicas.values():
            if replica.leads:
                peer = replica.core.membership.replica_on(node_id)
                if peer:
                    replica.core.poke(peer)
                    engine.mark(replica)

    def repair_drops(self) -> None:
        """Appends that a full outbox dropped start a new probe; other dropped messages are sent again."""
        engine = self._engine
        for node_id, message in engine.outgoing.take_dropped():
            replica = engine.replicas.get(message.group_id)
            if replica is None or replica.broken is not None:
                continue
            if type(message) is Append or type(message) is InstallSnapshot:
                if replica.leads:
                    replica.core.poke(message.to)
                    engine.mark(replica)
            elif message.term == replica.core.term:
                engine.outgoing.consensus(node_id, message)

    def _judge_disk(self, now: float) -> None:
        """A leader whose disk has stalled can answer nobody: it gives up, though its beats still flow (L23)."""
        engine = self._engine
        oldest = engine.writer.oldest
        if oldest is not self._oldest_write:
            self._oldest_write, self._oldest_since_s = oldest, now
        stalled_s = now - self._oldest_since_s
        if oldest is None or stalled_s < _STALLED_TIMEOUTS * engine.limits.election_timeout_ms / 1e3:
            return
        for replica in engine.replicas.values():
            if replica.leads and len(replica.core.membership.replicas) > 1:
                log.error("group %d: given up: a write takes %.1f s already", replica.group_id, stalled_s)
                with engine.touching(replica, now):
                    replica.core.step_down(now)

    def expect_commit(self, replica: Replica, now: float) -> None:
        """The replica leads and has entries that are not committed: from now on its commit should move."""
        if replica not in self._awaited:
            self._awaited[replica] = (replica.core.commit, now)

    def _judge_progress(self, now: float) -> None:
        """A leader whose entries reach no quorum gives up, though its beats flow: its bulk lane may be stuck (L23).

        Time in which a voter installs a snapshot does not count: that may take as long as it takes.
        """
        engine = self._engine
        timeout_s = engine.limits.election_timeout_ms / 1e3
        if now - self._judged_s < timeout_s / 4:  # often enough, and there may be very many
            return
        self._judged_s = now
        longest_s = _STALLED_TIMEOUTS * timeout_s
        for replica, (commit, since_s) in list(self._awaited.items()):
            core = replica.core
            if not replica.leads or core.commit == core.last_index:
                del self._awaited[replica]
            elif core.commit != commit or (now - since_s >= timeout_s and core.installing):
                self._awaited[replica] = (core.commit, now)
            elif now - since_s >= longest_s:
                del self._awaited[replica]
                if len(core.membership.replicas) > 1:
                    log.error("group %d: given up: nothing was committed for %.1f s", replica.group_id, now - since_s)
                    with engine.touching(replica, now):
                        core.step_down(now)

    def audit(self, now: float) -> None:
        """Look at the disk, and at a share of all replicas (L19): each leads, has a deadline, or a leader whose
        silence will be judged. Each pass begins with a comparison of what is claimed toward peers with what the cores
        are (L21).
        """
        engine = self._engine
        self._judge_disk(now)
        self._judge_progress(now)
        if not self._to_audit:
            self._to_audit = list(engine.replicas)
            self._audit_claims()
        share = min(_AUDITED_AT_ONCE, 1 + len(engine.replicas) * engine.limits.beat_ms // engine.limits.sweep_ms)
        for group_id in self._to_audit[-share:]:
            replica = engine.replicas.get(group_id)
            if replica is None:
                continue
            if replica.made:  # else no command has come to it
                engine.containing.audit(replica, now)
            core = replica.core
            if core.role is LEADER and replica.broken is None:
                core.check_quorum(now)
                asked = core.ask_after_followers(now)
                if asked or core.role is not LEADER:
                    engine.note(replica, now)
            elif replica.broken is None and not self._is_minded(replica):
                engine.counters["audit_repairs"] += 1
                log.error("group %d: nobody was responsible for it; it campaigns soon", group_id)
                engine.view.electable([group_id], now)
            elif replica.broken is None and core.leader == NOBODY and core.deadline != inf:
                self._ask_whether_removed(replica)
        del self._to_audit[-share:]

    def _ask_whether_removed(self, replica: Replica) -> None:
        """Nobody leads this replica: perhaps because it takes part no longer, and was away when it was told."""
        outgoing = self._engine.outgoing
        for node_id in outgoing.all_reached():
            outgoing.urgent(node_id, AskRemoved(replica.group_id, replica.core.replica_id))

    def _is_minded(self, replica: Replica) -> bool:
        core = replica.core
        if core.role is not Role.FOLLOWER or core.deadline != inf:
            return True
        return self._engine.liveness.watched(replica.group_id, core.term)

    def _audit_claims(self) -> None:
        engine = self._engine
        leading = {group_id: replica.core.term for group_id, replica in engine.replicas.items() if replica.leads}
        for group_id in engine.liveness.audit(leading):
            engine.counters["audit_repairs"] += 1
            log.error("group %d: what is claimed toward its peers is not what its replica is", group_id)
