"""The engine: the I/O shell around all consensus cores of one node.

One turn takes everything that has come (messages of peers, proposals, reads, due timers), lets each touched core say
what must be done, sends what may go at once as one batch per peer, adds everything to persist to one write batch,
and applies what is committed. What may only be said after the write is said by the write's completion.

    frames, proposals, reads, timers ──> cores ──┬──> messages that may go at once ──> one batch per peer
                                                 ├──> records, hard states ──> one synced write ──> promises
                                                 └──> committed entries ──> state machines ──> callers

Rules of this file: nothing awaits; nothing but this class touches a core; the clock is read after the input was
taken and before it is handled; a core that breaks an invariant takes its own replica down and no other.
"""

from __future__ import annotations

import asyncio
import logging
from asyncio import Future
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from random import Random
from typing import Final

from multiraft import failpoints
from multiraft.config import Limits
from multiraft.engine.applying import Applying
from multiraft.engine.campaigning import Campaigning
from multiraft.engine.changing import Changing
from multiraft.engine.containing import Containing
from multiraft.engine.following import Following
from multiraft.engine.incoming import Incoming
from multiraft.engine.leases import Leases
from multiraft.engine.liveness import Liveness, LivenessSettings
from multiraft.engine.machine import Machine
from multiraft.engine.observing import Observing
from multiraft.engine.ondisk import OnDisk
from multiraft.engine.ordinary import Ordinary
from multiraft.engine.outgoing import Outgoing
from multiraft.engine.pacing import Pacing
from multiraft.engine.proposing import check_entry, check_room, propose_queued, queue_many
from multiraft.engine.reading import Reading
from multiraft.engine.replica import Replica
from multiraft.engine.residents import Residents
from multiraft.engine.shelving import Shelving
from multiraft.engine.snapshotting import Snapshotting
from multiraft.engine.transfers import Transfers
from multiraft.engine.upkeep import Upkeep
from multiraft.engine.view import EngineView
from multiraft.engine.waiting import ENTRY_OVERHEAD_BYTES, Budget, Proposals, Queue, Result
from multiraft.engine.wheel import Wheel
from multiraft.engine.writer import AckRows, LogWriter, Persisted, Promise, Stored
from multiraft.errors import CorruptRecord, InvariantViolation, NotLeader, NotRunning, OutcomeUnknown, StorageError
from multiraft.messages import NodeMessage
from multiraft.ports import Clocks, Store, Transport
from multiraft.raft import LEADER, CoreSettings
from multiraft.records import COMMANDS, CONTROL
from multiraft.sessions import encode_register
from multiraft.types import GroupId, NodeId, StoredReplica

_EARLY_S: Final = 0.002
"""A beat is due so much early: the timer of a loop that counts whole milliseconds comes up to two before its time, and
a turn that finds nothing due yet would only set it again."""
log: Final = logging.getLogger("multiraft.engine")


class Engine:
    """Runs the replicas of one node. Started by `begin`, ended by `stop` or by a failed write.

    on_role    called after a replica's role or known leader changed
    on_membership  called after another membership took effect for a replica
    on_failed  called once when the engine has ended by itself: a write failed, or it met a bug
    turn       the turn; who observes an engine puts their own around it
    on_proposed  called with each command that was proposed by itself, for who observes; None: nobody does
    """

    def __init__(
        self,
        node_id: NodeId,
        peers: Sequence[NodeId],
        store: Store,
        transport: Transport,
        limits: Limits,
        rng: Random,
        clocks: Clocks,
        loop: asyncio.AbstractEventLoop,
        on_role: Callable[[Replica], None],
        on_membership: Callable[[Replica], None],
        on_failed: Callable[[Exception], None],
    ) -> None:
        self.node_id, self.limits = node_id, limits
        self.replicas: dict[GroupId, Replica] = {}
        self._taking = self.replicas  # those that may take commands: all, until the engine ends
        self.budget, self.query_budget = Budget(limits.pending_bytes), Budget(limits.pending_bytes)
        self.incoming = Incoming(self)
        self.counters = self.incoming.counters
        self.counters["audit_repairs"] = 0
        self.store, self.rng = store, rng
        self.clocks, self.loop = clocks, loop
        self.observing = Observing(self, on_role, on_membership)
        self._look = self.observing.look
        self.turn: Callable[[], None] = self._turn
        self.on_proposed: Callable[[GroupId, bytes, int, Future[bytes]], None] | None = None
        self._on_failed = on_failed
        self._running = False
        self._turning = False
        self._turn_scheduled = False
        self._dirty: list[Replica] = []
        self._deadlines: deque[Proposals] = deque()
        self._request_timeout_s = limits.request_timeout_ms / 1e3
        self._election_timeout_s = limits.election_timeout_ms / 1e3
        self._beat_s, self.slow_command_s = limits.beat_ms / 1e3, limits.slow_command_ms / 1e3
        self._early_s = min(_EARLY_S, self._beat_s / 10)
        self._entry_bytes = limits.entry_bytes
        self.writer = LogWriter(
            store, limits.batch_bytes, limits.writes_in_flight, clocks, self._persisted, self._write_failed
        )
        self.snapshotting = Snapshotting(self)
        self.shelving = Shelving(self)
        self.ondisk = OnDisk(self)
        self.core_settings = self._settings_of_cores()
        self.pacing = Pacing(clocks, loop, self.wake)
        self.wheel, self.campaigning = Wheel(), Campaigning(self)
        self.outgoing = Outgoing(transport)
        self.view = EngineView(self)
        self.applying = Applying(self)
        self.ordinary = Ordinary(self)
        self.upkeep = Upkeep(self, loop)
        self.residents = Residents(self, store.load_tombstones())
        self.changing = Changing(self)
        self.containing = Containing(self)
        self._started_s = self._next_beat_s = now = self.pacing.now()
        settings = LivenessSettings(self._beat_s, self._election_timeout_s, limits.clock_drift_ppm / 1e6)
        self.liveness = Liveness(
            node_id, store.incarnation, peers, settings, rng, self.view, self.outgoing.urgent, clocks.real, now
        )
        self.reading = Reading(self, self.liveness, self._request_timeout_s)
        self.leases = Leases(self, settings, loop)
        self.following = Following(self, transport, settings, loop)
        self.transfers = Transfers(self, store, transport)

    def _settings_of_cores(self) -> CoreSettings:
        most = self.limits
        flight = (most.inflight_messages, most.inflight_bytes)
        return CoreSettings(
            self._election_timeout_s, *flight, most.batch_bytes, most.uncommitted_bytes, self.snapshotting
        )

    # ------------------------------------------------------------------------------------------------- lifecycle

    @property
    def running(self) -> bool:
        return self._running

    def begin(self) -> None:
        """Start the ticker; from now on the engine acts by itself."""
        self._running = True
        self.residents.begin()
        self.wake()

    def stop(self, reason: str) -> None:
        """End: every waiting caller gets its outcome; nothing is sent or applied any more. Idempotent."""
        self._running = False
        self._taking = {}
        self.pacing.cancel()
        self.upkeep.stop()
        self.following.stop()
        self.transfers.stop()
        self.ondisk.files.stop()
        self.writer.stop()
        for replica in self.replicas.values():
            replica.fail_everything(reason)
        self.changing.stop(reason)
        self.reading.stop()
        self._deadlines.clear()

    def open_replica(self, stored: StoredReplica, machine: Machine | None) -> Replica:
        """Take up a replica that is on disk; it campaigns when nobody claims its group. Raises StartError.

        machine  its state machine; None: one in memory, which `residents.make_machine` makes when it is first needed
        """
        now = self.pacing.now()
        replica = self.residents.taken_up(stored, machine, now)
        core = replica.core
        self.replicas[replica.group_id] = replica
        self.containing.open(replica, stored)
        if not stored.idle_to:  # else there is no state to be taken up
            self.snapshotting.open(replica)
        quiet_s = max(0.0, self._started_s + self._election_timeout_s - now)
        core.release(now, quiet_s + self.view.turn_to_campaign_s(replica))
        self.liveness.replica_created(replica.group_id, now)
        self.mark(replica)
        self.note(replica, now)
        return replica

    def let_go(self, replica: Replica, reason: str) -> None:
        """The replica lives here no longer: nothing touches its core again, and its callers get their outcome."""
        del self.replicas[replica.group_id]
        replica.broken = reason
        self.wheel.disarm(replica.group_id)
        self.liveness.unlead(replica.group_id, self.pacing.now())
        self.liveness.replica_removed(replica.group_id)
        self.changing.forget(replica.group_id)
        self.containing.gone(replica)
        self.snapshotting.left(replica)
        replica.fail_everything(f"group {replica.group_id}: {reason}")
        self.observing.on_role(replica)

    # --------------------------------------------------------------------------------------- proposing and reading

    def propose(self, group_id: GroupId, command: bytes, kind: int = COMMANDS) -> Future[bytes]:
        """Have `command`, an entry of a record of this kind, committed and applied; the future gets what came of it.

        The future gets OutcomeUnknown when it is not applied within the request timeout, NotCommitted when a later
        leader replaced it, CommandFailed when the state machine raised. Raises, having proposed nothing: NotLeader,
        Halted, Overloaded, DiskFull, InvalidRequest (over entry_bytes, unknown to the machine), NotRunning.
        """
        replica = self._taking.get(group_id)
        if replica is None or replica.core.role is not LEADER or replica.halted or replica.broken:
            replica = self.leading(group_id)  # which raises
        budget = self.budget
        check_entry(replica, command, kind, self._entry_bytes)
        size_bytes = len(command) + ENTRY_OVERHEAD_BYTES
        if budget.used_bytes + size_bytes > budget.limit_bytes:
            check_room(replica, size_bytes)
        budget.used_bytes += size_bytes
        budget.count += 1
        future: Future[bytes] = self.loop.create_future()
        queue = replica.queued.get(kind)
        if queue is None:
            if not replica.dirty:
                self.mark(replica)
            queue = replica.queued[kind] = Queue()
        queue.entries.append(command)
        queue.futures.append(future)
        queue.size_bytes += size_bytes
        if self.on_proposed is not None:
            self.on_proposed(group_id, command, kind, future)
        return future

    def propose_many(
        self, group_id: GroupId, entries: list[bytes], told: Callable[[list[Result]], None], kind: int = COMMANDS
    ) -> None:
        """As `propose`, of many entries; `told` is called once, in a turn, with what has come of each, in order.

        Instead of a result stands what a future would get. Raises as `propose` does, having proposed none of them.
        """
        replica = self.leading(group_id)
        if not replica.dirty:
            self.mark(replica)
        queue_many(replica, entries, kind, self._entry_bytes, told)

    def register(self, group_id: GroupId, client: bytes) -> Future[bytes]:
        """Have the group begin a session of `client`, under the bounds of this node. Otherwise as `propose`."""
        limits = self.limits
        entry = encode_register(client, limits.session_expiry_ms, limits.session_reply_bytes, limits.sessions)
        return self.propose(group_id, entry, CONTROL)

    def read(self, group_id: GroupId, query: bytes) -> Future[bytes]:
        """Answer `query` from the state machine, linearizably (ReadIndex, thesis section 6.4).

        The future gets ReadFailed or NotLeader when leadership is not confirmed in time, CommandFailed when the
        state machine raised. Raises as `propose` does.
        """
        future = self.reading.begin(group_id, query)
        if future is None:
            raise self.leading(group_id).refusal()  # the former raises, too: why not
        return future

    def transfer_leadership(self, group_id: GroupId, to: NodeId) -> None:
        """Ask the replica on node `to` to take the group over (thesis, section 3.10). Raises NotLeader, NotReady."""
        replica = self.leading(group_id)
        replica.core.transfer_leadership(replica.core.membership.replica_on(to))
        self.liveness.forget_lease(group_id)
        self.note(replica, self.pacing.now())

    def leading(self, group_id: GroupId) -> Replica:
        """Return the group's replica here if it can take calls; else raise why not."""
        replica = self.replicas.get(group_id)
        if not self._running:
            raise NotRunning("the node is not running")
        if replica is None:
            raise NotLeader(group_id)
        if replica.core.role is not LEADER or replica.halted is not None or replica.broken is not None:
            raise replica.refusal()
        return replica

    # ----------------------------------------------------------------------------------------- from the transport

    def peer_connected(self, node_id: NodeId, incarnation: int) -> None:
        """This node's own connection to a peer is up: tell it what this node leads, and resume replication."""
        now = self.pacing.now()
        self.outgoing.reach(node_id, True)
        self.liveness.connected(node_id, incarnation, now)
        self.outgoing.send_all()
        self.upkeep.resume_replication(node_id)

    def peer_disconnected(self, node_id: NodeId) -> None:
        self.outgoing.reach(node_id, False)
        self.liveness.disconnected(node_id, self.pacing.now())

    def peer_heard(self, node_id: NodeId, incarnation: int) -> None:
        """A peer's connection to this node is new: answers may have been lost on the old one."""
        self.liveness.heard(node_id, incarnation, self.pacing.now())
        self.upkeep.resume_replication(node_id)

    def messages_received(self, node_id: NodeId, incarnation: int, messages: Sequence[NodeMessage]) -> None:
        """Take a peer's messages; the next turn handles them."""
        self.incoming.add(node_id, incarnation, messages)
        self.wake()

    # -------------------------------------------------------------------------------------------------- the turn

    def mark(self, replica: Replica) -> None:
        """Have the coming turn ask `replica` what must be done."""
        if not replica.dirty:
            replica.dirty = True
            self._dirty.append(replica)
        if not self._turn_scheduled:
            self._turn_scheduled = True
            self.loop.call_soon(self.turn)

    def wake(self) -> None:
        """Have a turn come soon."""
        if not self._turn_scheduled:
            self._turn_scheduled = True
            self.loop.call_soon(self.turn)

    def _turn(self) -> None:
        self._turn_scheduled = False
        if not self._running:
            return
        began_s = self.clocks.effort()
        self._turning = True
        try:
            self._pass()
        except Exception as problem:
            log.critical("the engine met a bug and ends", exc_info=problem)
            self._end(problem)
            return
        finally:
            self._turning = False
        self.pacing.wake_at(min(self._next_beat_s, self.wheel.next_deadline()))
        self.pacing.turn_took(began_s)

    def _pass(self) -> None:
        now = self.pacing.now()
        self.incoming.handle(now)
        self._judge_deadlines(now)
        self.reading.register(now)
        dirty, self._dirty = self._dirty, []
        for replica in dirty:
            replica.dirty = False
            if replica.broken is None:
                self._drive(replica, now)
        self.liveness.flush()
        if failpoints.armed is not None:
            failpoints.armed(failpoints.TURN_BEFORE_SEND)
        self.outgoing.send_all()
        if failpoints.armed is not None:
            failpoints.armed(failpoints.TURN_AFTER_SEND)
        self.writer.flush()
        if self.applying.pending:
            self.applying.run(now)
            self.writer.flush()  # what was applied on disk
        if self.snapshotting.pending:
            self.snapshotting.run()
        if self.applying.pending or self.snapshotting.pending:
            self.wake()

    @contextmanager
    def touching(self, replica: Replica, now: float) -> Iterator[None]:
        """Around every input to a core: what breaks there takes this replica down alone; what changed is noted."""
        try:
            yield
        except (InvariantViolation, CorruptRecord) as problem:
            self.broke(replica, problem)
        except StorageError as problem:  # as in a turn, where a read that fails ends the node, too
            if self._turning:
                raise
            log.critical("a read failed; this node ends: %s", problem)
            self._end(problem)
        else:
            self.note(replica, now)

    def _drive(self, replica: Replica, now: float) -> None:
        core = replica.core
        try:
            if replica.queued:
                batch = self.ordinary.propose(replica, now)
                if batch is not None:
                    self._deadlines.append(batch)
                    return
                self._deadlines += propose_queued(replica, self.limits, replica.stamp_ms(self.clocks), now)
            ready = core.ready()
            self._look(replica, now)
        except (InvariantViolation, CorruptRecord) as problem:
            self.broke(replica, problem)
            return
        if core.commit_untold:
            self.upkeep.tell_commit_later(replica)
        if core.commit != core.last_index and core.role is LEADER:
            self.upkeep.expect_commit(replica, now)
        if ready is None:
            return
        for message in ready.messages:
            self.outgoing.consensus(replica.node_of(message.to), message)
        for message in self.writer.add(replica, ready):
            self.outgoing.consensus(replica.node_of(message.to), message)
        if ready.membership is not None:
            self.observing.membership_changed(replica, now)
            if replica.broken is not None:
                return
        if ready.committed > replica.committed:
            replica.committed = ready.committed
            self.applying.add(replica)
        for round_id, index in ready.read_states:
            replica.confirm_round(round_id, index)
        if replica.reads is not None:
            self.reading.resume(replica)

    def _persisted(self, persisted: list[Persisted | Stored], promises: list[Promise], acks: AckRows) -> None:
        now = self.pacing.now()
        for told in persisted:
            if not isinstance(told, Persisted):
                self.ordinary.stored(*told)
                continue
            replica = told.replica
            if replica.broken is not None:
                continue
            try:  # written out: this is the hot path of `touching`
                replica.core.persisted(told.index, told.term, told.saved_term)
                if told.snapshot is not None:
                    self.snapshotting.stored(replica, told.snapshot)
            except (InvariantViolation, CorruptRecord) as problem:
                self.broke(replica, problem)
                continue
            if not replica.core.unchanged():
                self.mark(replica)
            self._look(replica, now)
        if failpoints.armed is not None:
            failpoints.armed(failpoints.WRITE_BEFORE_PROMISES)
        for node_id, rows in acks.items():
            self.outgoing.acknowledge(node_id, rows)
        for replica, messages in promises:
            for message in messages:
                self.outgoing.consensus(replica.node_of(message.to), message)
        self.turn()  # at once: callers of single writes wait for nothing else

    # ------------------------------------------------------------------------------------------ roles and deadlines

    def note(self, replica: Replica, now: float) -> None:
        """Tell the rest of the engine what a core's last input changed. Follows every touch of a core."""
        if not replica.dirty:
            self.mark(replica)
        self._look(replica, now)

    def _judge_deadlines(self, now: float) -> None:
        self.campaigning.judge(now)
        if now >= self._next_beat_s - self._early_s:
            self._next_beat_s = max(self._next_beat_s + self._beat_s, now + self._beat_s / 2)
            self.liveness.tick(now)
            self._expire_callers(now)
            self.snapshotting.tick()
            self.shelving.sweep(now)
            self.changing.tick(now)
            self.containing.tick(now)
            self.residents.tick()
            self.transfers.tick(now)
            self.upkeep.repair_drops()
            self.upkeep.audit(now)

    def _expire_callers(self, now: float) -> None:
        deadlines = self._deadlines
        while deadlines and (deadlines[0].finished or deadlines[0].deadline_s <= now):
            deadlines.popleft().fail(
                self.budget, lambda: OutcomeUnknown("not applied within the request timeout; it may be later")
            )
        self.reading.expire(now)

    # ---------------------------------------------------------------------------------------------------- failure

    def broke(self, replica: Replica, problem: Exception) -> None:
        """A bug: this replica stops taking part; all others go on."""
        replica.broken = f"{type(problem).__name__}: {problem}"
        log.critical("group %d: replica stopped: %s", replica.group_id, replica.broken, exc_info=problem)
        self.wheel.disarm(replica.group_id)
        self.liveness.unlead(replica.group_id, self.pacing.now())
        self.liveness.replica_removed(replica.group_id)
        replica.fail_everything(f"group {replica.group_id}: {replica.broken}")
        self.observing.on_role(replica)

    def _write_failed(self, error: Exception) -> None:
        log.critical("a write failed; this node ends and acknowledges nothing more: %s", error)
        self._end(error)

    def _end(self, error: Exception) -> None:
        self.stop(f"the node has ended: {error}")
        self._on_failed(error)
