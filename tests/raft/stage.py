"""Where scenarios play: replicas, their disks, one wire, one clock, and a record of what happened.

A replica does all that it can at once: whatever happens to it, its core is asked what to do, and its disk completes
each write, unless the script holds its writes. Messages lie on the wire until the script delivers them. Time stands
still until the script moves it; the n-th replica waits 1 + n/10 election timeouts (of 1 s) for a leader.

A beat stands for all that liveness does: the leader's claim is heard and followed, or refused; whoever hears it is
loyal for one election timeout; its acknowledgement serves check-quorum and reads.

Rules of this file: what changed is said as soon as it changed, in order of replicas.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from multiraft.errors import InvariantViolation
from multiraft.messages import RaftMessage
from multiraft.raft import Raft, Role
from multiraft.types import NOBODY, Membership
from tests.raft.conftest import ET, Replica
from tests.raft.wording import members_text, message_text, role_text
from tests.raft.words import ScriptError

MESSAGES_MAX = 2_000


class FixedDice:
    """Chance that is none: every deadline is the same time away."""

    def __init__(self, value: float) -> None:
        self.value = value

    def random(self) -> float:
        return self.value


class Stage:
    """`said` is what happened since the present command began."""

    def __init__(self) -> None:
        self.replicas: dict[int, Replica] = {}
        self.membership = Membership(1, (), {}, 1)
        self.now = 0.0
        self.said: list[str] = []
        self.wire: list[RaftMessage] = []
        self.shelf: list[RaftMessage] = []
        self.cut: set[tuple[int, int]] = set()
        self.held: set[int] = set()
        self.round = 0
        self.claims: dict[int, dict[int, tuple[int, float]]] = {}
        self.shown: dict[int, tuple[str, ...]] = {}

    def __getitem__(self, replica_id: int) -> Replica:
        try:
            return self.replicas[replica_id]
        except KeyError:
            raise ScriptError(f"there is no replica {replica_id}") from None

    def core(self, replica_id: int) -> Raft:
        """Return the core of a replica that runs."""
        if not self[replica_id].alive:
            raise ScriptError(f"replica {replica_id} does not run")
        return self[replica_id].core

    def say(self, line: str) -> None:
        self.said.append(line)

    # --------------------------------------------------------------------------------------------------- replicas

    def enter(self, replica: Replica) -> None:
        """Put a replica on the stage."""
        name = replica.replica_id
        self.replicas[name] = replica
        self.replicas = dict(sorted(self.replicas.items()))
        replica.contacts.is_loyal = lambda term: self.loyal(name, term)
        self.begin(name)

    def begin(self, name: int) -> None:
        """Start a replica from its disk."""
        replica = self[name]
        replica.dice = FixedDice(name / 10)  # type: ignore[assignment]
        replica.contacts.contact.clear()
        self.claims[name] = {}
        replica.start(self.now)
        self.shown[name] = self.outside(replica)

    def outside(self, replica: Replica) -> tuple[str, ...]:
        """Return what is said of a replica when it changes."""
        core = replica.core
        members = f"membership of {core.membership.index}: {members_text(core.membership)}"
        return role_text(core), f"commit {core.commit}", members, f"log begins after {core.log.start.index}"

    def loyal(self, name: int, term: int) -> bool:
        """Whether the replica owes the leader of `term` not to help another one (L11)."""
        return any(claimed == term and self.now - heard < ET for claimed, heard in self.claims[name].values())

    def turn(self) -> None:
        """Let every replica do what it can, until none has anything left to do; say what changed."""
        moved = True
        while moved:
            moved = False
            for replica in self.replicas.values():
                if replica.alive and self.work(replica):
                    moved = True

    def work(self, replica: Replica) -> bool:
        name, core = replica.replica_id, replica.core
        moved = core.deadline <= self.now
        if moved:
            core.tick(self.now)
        replica.drive()
        while replica.disk.waiting and name not in self.held:
            replica.sync()
            replica.drive()
        for round_id, index in replica.read_states:
            self.say(f"{name}: read of round {round_id} may be answered at {index}")
        replica.read_states.clear()
        moved = moved or bool(replica.outbox)
        self.wire += replica.outbox
        replica.outbox.clear()
        self.notice(replica)
        return moved

    def notice(self, replica: Replica) -> None:
        """Say what has changed about a replica since that was said last."""
        name = replica.replica_id
        before, now = self.shown[name], self.outside(replica)
        if before == now:
            return
        self.shown[name] = now
        parts = [part for part, earlier in zip(now, before, strict=True) if part != earlier]
        self.say(f"{name}: {'; '.join(parts)}")

    # --------------------------------------------------------------------------------------------------- messages

    def connected(self, sender: int, to: int) -> bool:
        return (sender, to) not in self.cut and to in self.replicas and self.replicas[to].alive

    def hand_over(self, message: RaftMessage) -> None:
        """Let one message arrive, or be lost on a way that is cut."""
        if not self.connected(message.sender, message.to):
            self.say(f"{message_text(message)}  (lost)")
            return
        self.say(message_text(message))
        try:
            self.replicas[message.to].core.step(message, self.now)
        except InvariantViolation as problem:
            self.say(f"{message.to}: halts: {problem}")
            self.replicas[message.to].alive = False
        self.turn()

    def until_quiet(self, tell: Callable[[], None]) -> None:
        """Deliver everything, and what it leads to; `tell` may put more on the wire when it is empty."""
        for _ in range(MESSAGES_MAX):
            if not self.wire:
                tell()
                if not self.wire:
                    return
            self.hand_over(self.wire.pop(0))
        raise ScriptError(f"is not quiet after {MESSAGES_MAX} messages")

    def tell_commits(self) -> None:
        """What the engine does a moment after a commit: followers that no append has told are told."""
        for replica in self.replicas.values():
            if replica.alive and replica.core.role is Role.LEADER:
                self.wire += replica.core.commit_messages()

    # ------------------------------------------------------------------------------------------------------ beats

    def beat(self, name: int) -> None:
        """A round of claims from leader `name` to all other members, acknowledged or refused."""
        core = self.core(name)
        if core.role is not Role.LEADER:
            raise ScriptError(f"replica {name} does not lead")
        term, said, heard, refused = core.term, [], [], 0
        for other in core.progress:
            if other == name:
                continue
            if not self.connected(name, other):
                said.append(f"{other} does not hear it")
            elif not self.core(other).follow(self.known(name, other), term, self.now):
                said.append(f"{other} refuses (term {self.core(other).term})")
                refused = max(refused, self.core(other).term if self.connected(other, name) else 0)
            else:
                self.claims[other] = {leader: claim for leader, claim in self.claims[other].items() if leader != name}
                self.claims[other][name] = (term, self.now)
                said.append(f"{other} follows" if self.connected(other, name) else f"{other} follows, unheard")
                if self.connected(other, name):
                    heard.append(other)
        self.say(f"{name} beats: {', '.join(said)}")
        for other in heard:
            self[name].contacts.contact[other] = self.now
            core.acknowledge_round(other, self.round)
        if refused:
            core.refused(term, refused)

    def known(self, name: int, other: int) -> int:
        """Return the leader as replica `other` can name it: beats come from nodes, and it may not know that one yet."""
        return name if name in self.core(other).membership.nodes else NOBODY

    def silence(self, name: int, delay_s: float) -> None:
        """Nobody's beats answer for the group on replica `name` any more."""
        self.claims[name].clear()
        self.core(name).release(self.now, delay_s)

    def deadline_text(self, name: int) -> str:
        deadline = self.core(name).next_deadline()
        return "no deadline" if deadline == math.inf else f"due in {deadline - self.now:.1f} s"
