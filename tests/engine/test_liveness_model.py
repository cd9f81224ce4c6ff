"""A seeded model: nodes of Liveness under a toy election, on clocks that drift, with pauses, restarts, broken links.

The toy keeps the core's own rules (a majority elects, L5, L11, L16, L20) and persists at once; it has no log, so a
read is stale when a later leader had been elected before the read began, or, on a lease, before it was answered.

Checked at every step: one leader per term; no lease read and no ReadIndex beside a later leader; every replica
leads, is watched, or has a deadline (L19). At the end, when all is healed: one leader per group, followed by all.
The same checks must find something when a rule is taken out, or they would prove nothing.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Iterable
from functools import partial
from random import Random

import pytest

from multiraft.engine.liveness import Liveness, LivenessSettings
from multiraft.engine.livepeer import Hearing, Telling
from multiraft.messages import LeadAll, LeadDelta, LivenessMessage

ET, BEAT, DRIFT = 1.0, 0.2, 0.05
FAULTS_S, HEALED_S = 20.0, 10.0


class Violation(Exception):
    """The rules did not hold."""


class Replica:
    """One group's toy replica; `term` and `vote` outlive a restart."""

    def __init__(self, group_id: int, term: int, vote: str, deadline_s: float) -> None:
        self.group_id = group_id
        self.term = term
        self.vote = vote
        self.role = "follower"
        self.deadline_s = deadline_s
        self.elected_s = -math.inf
        self.votes: set[str] = set()


class Node:
    """One process: its clocks, its replicas, its Liveness (of which it is the view)."""

    def __init__(self, world: World, name: str, incarnation: int, stored: dict[int, tuple[int, str]]) -> None:
        self.world = world
        self.name = name
        self.incarnation = incarnation
        self.up = True
        self.backlog: list[Callable[[], None]] | None = None  # while paused
        self.stalled_s = 0.0
        self.rate = world.rng.uniform(1 - DRIFT, 1 + DRIFT)
        self.offset_s = world.rng.uniform(0, 1_000)
        self.reads: list[tuple[int, int, int, float, set[str]]] = []
        self.others = [other for other in world.names if other != name]
        self.replicas = {
            group_id: Replica(group_id, term, vote, self.now() + ET + self.draw_s())
            for group_id, (term, vote) in stored.items()
        }
        settings = LivenessSettings(BEAT, ET, DRIFT)
        rng = Random(world.rng.random())
        self.liveness = Liveness(name, incarnation, self.others, settings, rng, self, self.send, self.real, self.now())

    def real(self) -> float:
        return self.offset_s + self.rate * self.world.time_s

    def now(self) -> float:
        return self.real() - self.stalled_s

    def draw_s(self) -> float:
        """Shorter than the core's [1, 2): impatient candidates look for every gap in the promises."""
        return ET * self.world.rng.uniform(0.3, 1.0)

    def send(self, peer: str, message: LivenessMessage) -> None:
        forgetful = self.world.time_s < self.world.forgetful_until_s
        if forgetful and isinstance(message, LeadAll | LeadDelta) and self.world.rng.random() < 0.5:
            return  # the digest must notice
        self.world.send(self.name, peer, 1, partial(Node.liveness_message, message=message, sender=self.name))

    def say(self, peer: str, handler: Callable[..., None], *arguments: object) -> None:
        """Lane 2: have the peer call `handler` with these arguments."""
        self.world.send(self.name, peer, 2, lambda node: handler(node, *arguments))

    def liveness_message(self, message: LivenessMessage, sender: str) -> None:
        self.liveness.received(sender, message, self.world.nodes[sender].incarnation, self.now())

    # ---------------------------------------------------------------------------------------------------- the view

    def term_of(self, group_id: int, replica_id: int) -> int | None:
        return self.replicas[group_id].term

    def claimed(self, group_id: int, term: int, leader_node: str, now: float) -> None:
        replica = self.replicas[group_id]
        if term < replica.term or self.world.leaders.get((group_id, term)) != leader_node:
            raise Violation(f"{self.name}: group {group_id} was told to follow {leader_node} at {term}")
        self.to_follower(replica, term)
        replica.deadline_s = math.inf

    def electable(self, group_ids: list[int], now: float) -> None:
        for place, group_id in enumerate(group_ids):
            replica = self.replicas[group_id]
            if replica.role != "leader":
                replica.deadline_s = now + 0.01 * place + 0.3 * self.world.rng.random()

    def refused(self, group_id: int, term: int, higher: int) -> None:
        replica = self.replicas[group_id]
        if replica.role == "leader" and replica.term == term:
            self.to_follower(replica, higher)

    def rejudge(self, group_ids: list[int], now: float) -> None:
        for replica in (self.replicas[group_id] for group_id in group_ids):
            contacts = [self.liveness.contact_s(replica.group_id, replica.term, peer) for peer in self.others]
            live = sum(now - max(contact_s, replica.elected_s) <= ET for contact_s in contacts)
            if replica.role == "leader" and live + 1 < self.world.quorum:
                self.to_follower(replica, replica.term)

    def acknowledged(self, node_id: str, round_id: int) -> None:
        for read in list(self.reads):
            if read[0] <= round_id:
                read[4].add(node_id)
                if len(read[4]) + 1 >= self.world.quorum:
                    self.reads.remove(read)
                    self.answer_read(*read)

    def missing(self, node_id: str, group_id: int, now: float) -> None:
        raise Violation(f"{self.name}: {node_id} was never without group {group_id}")

    def arrived(self, node_id: str, group_id: int, now: float) -> None:
        raise Violation(f"{self.name}: {node_id} was never without group {group_id}")

    def answer_read(self, _: int, group_id: int, term: int, began_s: float, __: set[str]) -> None:
        replica = self.replicas[group_id]
        if replica.role == "leader" and replica.term == term:
            self.world.check_read("ReadIndex", group_id, term, began_s)

    # --------------------------------------------------------------------------------------------- the toy election

    def to_follower(self, replica: Replica, term: int) -> None:
        if replica.role == "leader":
            self.liveness.unlead(replica.group_id, self.now())
        replica.role = "follower"
        risen = term > replica.term
        if risen:
            replica.term, replica.vote = term, ""
        replica.deadline_s = self.now() + self.draw_s()
        if risen:
            self.liveness.term_rose(replica.group_id, self.now())

    def campaign(self, replica: Replica, forced: bool) -> None:
        self.to_follower(replica, replica.term + 1)
        replica.role, replica.vote, replica.votes = "candidate", self.name, {self.name}
        for peer in self.others:
            self.say(peer, Node.vote_requested, replica.group_id, replica.term, self.name, forced)

    def vote_requested(self, group_id: int, term: int, candidate: str, forced: bool) -> None:
        replica = self.replicas[group_id]
        if term > replica.term and (forced or not self.liveness.loyal(group_id, replica.term, self.now())):
            self.to_follower(replica, term)
        granted = term == replica.term and replica.role == "follower" and replica.vote in ("", candidate)
        granted = granted and (forced or not self.liveness.loyal(group_id, replica.term, self.now()))
        if granted:
            replica.vote = candidate
            replica.deadline_s = self.now() + self.draw_s()
        self.say(candidate, Node.vote_answered, group_id, term, replica.term, granted, self.name)

    def vote_answered(self, group_id: int, asked: int, term: int, granted: bool, voter: str) -> None:
        replica = self.replicas[group_id]
        if replica.role != "candidate" or replica.term != asked:
            return  # L5
        if term > asked:
            self.to_follower(replica, term)
        elif granted:
            replica.votes.add(voter)
            if len(replica.votes) >= self.world.quorum:
                self.win(replica)

    def win(self, replica: Replica) -> None:
        replica.role, replica.deadline_s, replica.elected_s = "leader", math.inf, self.now()
        self.world.elected(replica.group_id, replica.term, self.name)
        targets = [(peer, self.world.names.index(peer) + 1) for peer in self.others]
        self.liveness.lead(replica.group_id, replica.term, targets, self.now())
        for peer in self.others:
            self.say(peer, Node.appended, replica.group_id, replica.term)

    def appended(self, group_id: int, term: int) -> None:
        replica = self.replicas[group_id]
        if term > replica.term or (term == replica.term and replica.role == "candidate"):
            self.to_follower(replica, term)
        elif term == replica.term and replica.deadline_s < math.inf:
            replica.deadline_s = self.now() + self.draw_s()  # L20

    def timeout_now(self, group_id: int, term: int) -> None:
        replica = self.replicas[group_id]
        if term == replica.term and replica.role == "follower":
            self.campaign(replica, forced=True)

    # -------------------------------------------------------------------------------------------------------- turns

    def turn(self, work: Callable[[], None]) -> None:
        """Do the work, then what is due; while paused, later."""
        if not self.up:
            return
        if self.backlog is not None:
            self.backlog.append(work)
            return
        work()
        now = self.now()
        for replica in self.replicas.values():
            if now >= replica.deadline_s:
                replica.deadline_s = now + self.draw_s()
                if not self.liveness.loyal(replica.group_id, replica.term, now):
                    self.campaign(replica, forced=False)
        self.liveness.flush()
        for replica in self.replicas.values():
            watched = self.liveness.watched(replica.group_id, replica.term)
            if replica.role != "leader" and replica.deadline_s == math.inf and not watched:
                raise Violation(f"{self.name}: nobody is responsible for group {replica.group_id}")

    def tick(self) -> None:
        self.liveness.tick(self.now())
        rng = self.world.rng
        for replica in self.replicas.values():
            self.read_by_lease(replica)
            if replica.role != "leader":
                continue
            if rng.random() < 0.5:
                round_id = self.liveness.begin_round(self.others, self.now())
                self.reads.append((round_id, replica.group_id, replica.term, self.world.time_s, set()))
            elif rng.random() < 0.05 and self.world.faulty:
                self.liveness.forget_lease(replica.group_id)
                self.say(rng.choice(self.others), Node.timeout_now, replica.group_id, replica.term)

    def read_by_lease(self, replica: Replica) -> None:
        if replica.role == "leader":
            until_s = self.liveness.lease_until_s(replica.group_id, replica.term, self.world.names)
            if self.real() < until_s:
                self.world.check_read("lease", replica.group_id, replica.term, self.world.time_s)


class World:
    """The nodes, the links between them, true time, and what has really happened."""

    def __init__(self, seed: int, size: int, groups: int) -> None:
        self.rng = Random(seed)
        self.time_s = 0.0
        self.names = [f"n{number}" for number in range(size)]
        self.quorum = size // 2 + 1
        self.faulty = True
        self.leaders: dict[tuple[int, int], str] = {}
        self.elections: dict[int, list[tuple[int, float]]] = {group_id: [] for group_id in range(1, groups + 1)}
        self.forgetful_until_s = 0.0
        self.reads = {"lease": 0, "ReadIndex": 0}
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._count = 0
        self._epoch: dict[tuple[str, str], int] = {}  # of the connection from one node to another; none: not connected
        self._blocked_s: dict[tuple[str, str], float] = {}
        self._delivered_s: dict[tuple[str, str, int], float] = {}
        self._slow_until_s: dict[tuple[str, str, int], float] = {}
        stored = dict.fromkeys(self.elections, (1, ""))
        self.nodes = {name: Node(self, name, 1, stored) for name in self.names}
        for name in self.names:
            self.at(self.rng.uniform(0, BEAT), partial(self._ticking, name))
            for other in self.names:
                if other != name:
                    self._dial(name, other)
        self.at(self.rng.expovariate(3), self._fault)
        self.at(FAULTS_S, self._heal)

    def at(self, delay_s: float, action: Callable[[], None]) -> None:
        self._count += 1
        heapq.heappush(self._events, (self.time_s + delay_s, self._count, action))

    def run(self) -> None:
        while self._events[0][0] < FAULTS_S + HEALED_S:
            self.time_s, _, action = heapq.heappop(self._events)
            action()
        for node in self.nodes.values():
            leading = {r.group_id: r.term for r in node.replicas.values() if r.role == "leader"}
            node.liveness.check_digests()
            if node.liveness.audit(leading):
                raise Violation(f"{node.name}: claims otherwise than its roles")
        for group_id in self.elections:
            replicas = [node.replicas[group_id] for node in self.nodes.values()]
            roles = sorted(replica.role for replica in replicas)
            if len({r.term for r in replicas}) != 1 or roles != ["follower"] * (len(roles) - 1) + ["leader"]:
                raise Violation(f"group {group_id}: not settled after the faults: {roles}")

    # ------------------------------------------------------------------------------------------- what has happened

    def elected(self, group_id: int, term: int, name: str) -> None:
        if self.leaders.setdefault((group_id, term), name) != name:
            raise Violation(f"group {group_id}: two leaders at term {term}")
        self.elections[group_id].append((term, self.time_s))
        for node in self.nodes.values():
            if node.up and node.backlog is None:
                node.read_by_lease(node.replicas[group_id])

    def check_read(self, kind: str, group_id: int, term: int, as_of_s: float) -> None:
        self.reads[kind] += 1
        if any(later > term and elected_s <= as_of_s for later, elected_s in self.elections[group_id]):
            raise Violation(f"group {group_id}: a stale read ({kind}) at term {term}")

    # ------------------------------------------------------------------------------------------------------- links

    def send(self, source: str, target: str, lane: int, deliver: Callable[[Node], None]) -> None:
        """Deliver in order of sending per lane, unless the connection breaks before."""
        epoch = self._epoch.get((source, target))
        if epoch is None:
            return
        key = (source, target, lane)
        leaves_s = max(self.time_s, self._blocked_s.get((source, target), 0.0), self._slow_until_s.get(key, 0.0))
        due_s = max(leaves_s + self.rng.uniform(0.001, 0.02), self._delivered_s.get(key, 0.0))
        self._delivered_s[key] = due_s
        node = self.nodes[target]

        def arrive() -> None:
            if self._epoch.get((source, target)) == epoch and self.nodes[target] is node:
                node.turn(lambda: self._handle(source, target, epoch, node, deliver))

        self.at(due_s - self.time_s, arrive)

    def _handle(self, source: str, target: str, epoch: int, node: Node, deliver: Callable[[Node], None]) -> None:
        if self._epoch.get((source, target), epoch) == epoch:  # L22, for what waited for a paused node
            deliver(node)

    def _dial(self, source: str, target: str) -> None:
        """Connect one way, once both are up and the way is free."""
        if (source, target) in self._epoch:
            return
        ends = self.nodes[source], self.nodes[target]
        free_s = self._blocked_s.get((source, target), 0.0)
        if any(not end.up or end.backlog is not None for end in ends) or self.time_s < free_s:
            self.at(0.1, partial(self._dial, source, target))
            return
        self._count += 1
        self._epoch[source, target] = self._count
        for lane in (1, 2):
            self._delivered_s[source, target, lane] = 0.0
        dialler, listener = ends
        listener.turn(lambda: listener.liveness.heard(source, dialler.incarnation, listener.now()))
        dialler.turn(lambda: dialler.liveness.connected(target, listener.incarnation, dialler.now()))

    def _break(self, source: str, target: str) -> None:
        """End the connection; what was on its way is lost. The dialler finds out at once, and dials again."""
        if self._epoch.pop((source, target), None) is not None:
            node = self.nodes[source]
            node.turn(lambda: node.liveness.disconnected(target, node.now()))
            self.at(self.rng.uniform(0.0, 0.5), partial(self._dial, source, target))

    # ------------------------------------------------------------------------------------------------------ faults

    def _ticking(self, name: str) -> None:
        node = self.nodes[name]
        node.turn(node.tick)
        self.at(BEAT / node.rate, partial(self._ticking, name))

    def _fault(self) -> None:
        if not self.faulty:
            return
        rng = self.rng
        self.at(rng.expovariate(4), self._fault)
        leaders = [name for name in self.names if any(r.role == "leader" for r in self.nodes[name].replicas.values())]
        name = rng.choice(leaders or self.names) if rng.random() < 0.5 else rng.choice(self.names)
        other = rng.choice([each for each in self.names if each != name])
        kind = rng.choice(["break", "block", "pair", "isolate", "slow", "pause", "restart", "forget", "betray"])
        length_s = rng.choice([0.05, 0.3, 1.2, 3.0]) * rng.uniform(0.5, 1.5)
        if kind == "break":
            self._break(name, other)
        elif kind == "block":
            self._blocked_s[name, other] = self.time_s + length_s
        elif kind == "pair":
            self._cut(name, [other], length_s)
        elif kind == "isolate":
            self._cut(name, [each for each in self.names if each != name], length_s)
        elif kind == "slow":
            lane = rng.choice([1, 1, 2])
            for each in self.names:
                self._slow_until_s[name, each, lane] = self.time_s + length_s
        elif kind == "pause":
            self._pause(self.nodes[name], length_s)
        elif kind == "restart":
            self._stop(name, length_s / 2)
        elif kind == "forget":
            self.forgetful_until_s = self.time_s + length_s / 3
        else:
            self._cut(name, [other], 4 * ET)
            self.at(rng.uniform(1.2, 2.5) * ET, partial(self._betray, name, other))

    def _betray(self, leader: str, rival: str) -> None:
        """Of those that the leader relies on while its rival is cut off and campaigns, make some forget it early."""
        kind = self.rng.choice(["break", "cut", "restart"])
        for name in self.names:
            if name in (leader, rival) or not self.faulty:
                continue
            if kind == "break":
                self._break(leader, name)
                self._break(name, leader)
            elif kind == "cut":
                self._cut(leader, [name], 2 * ET)
            else:
                self._stop(name, 0.02)

    def _cut(self, name: str, others: list[str], length_s: float) -> None:
        """Nothing passes between the two sides; some of the connections notice."""
        for other in others:
            self._blocked_s[name, other] = self._blocked_s[other, name] = self.time_s + length_s
            if self.rng.random() < 0.5:
                self._break(name, other)
                self._break(other, name)

    def _pause(self, node: Node, length_s: float) -> None:
        if node.up and node.backlog is None:
            node.backlog = []
            self.at(length_s, partial(self._resume, node, self.time_s))

    def _resume(self, node: Node, since_s: float) -> None:
        if node.up and node.backlog is not None:
            node.stalled_s += (self.time_s - since_s) * node.rate
            work, node.backlog = node.backlog, None
            for each in work:
                node.turn(each)

    def _stop(self, name: str, length_s: float) -> None:
        if self.nodes[name].up:
            self.nodes[name].up = False
            for other in self.names:
                if other != name:
                    self._break(name, other)
                    self._break(other, name)
            self.at(length_s, partial(self._start, name))

    def _start(self, name: str) -> None:
        gone = self.nodes[name]
        stored = {replica.group_id: (replica.term, replica.vote) for replica in gone.replicas.values()}
        self.nodes[name] = Node(self, name, gone.incarnation + 1, stored)

    def _heal(self) -> None:
        self.faulty = False
        self.forgetful_until_s = 0.0
        self._blocked_s.clear()
        self._slow_until_s.clear()


def simulate(seed: int) -> World:
    world = World(seed, size=5 if seed % 4 == 0 else 3, groups=3)
    world.run()
    return world


def simulate_all(seeds: Iterable[int]) -> None:
    for seed in seeds:
        simulate(seed)


@pytest.mark.parametrize("first_seed", range(0, 150, 30))
def test_no_stale_read_and_nobody_left_without_a_leader(first_seed: int) -> None:
    reads = {"lease": 0, "ReadIndex": 0}
    elections = 0
    for seed in range(first_seed, first_seed + 30):
        try:
            world = simulate(seed)
        except Violation as violation:
            pytest.fail(f"seed {seed}: {violation}")
        elections += len(world.leaders)
        for kind, count in world.reads.items():
            reads[kind] += count
    assert min(reads.values()) > 2_000, "the model hardly reads"
    assert elections > 300, "the model hardly elects"


@pytest.mark.pure_only
@pytest.mark.parametrize(
    ("owner", "name", "broken", "expected"),
    [
        pytest.param(Hearing, "answer", lambda *_: None, "stale read", id="L1 nothing is refused"),
        pytest.param(Telling, "counts", lambda *_: True, "lease", id="L8 every acknowledgement counts"),
        pytest.param(Liveness, "loyal", lambda *_: False, "lease", id="L11 no promise is kept"),
        pytest.param(Liveness, "forget_lease", lambda *_: None, "lease", id="L14 a lease outlives TimeoutNow"),
        pytest.param(Liveness, "_release", lambda *_: None, "nobody is responsible", id="L19 nobody is woken"),
        pytest.param(Liveness, "_follow", lambda *_: None, "not settled", id="L19 nobody is followed"),
    ],
)
def test_the_model_notices_a_missing_rule(
    owner: type, name: str, broken: Callable[..., object], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(owner, name, broken)
    with pytest.raises(Violation, match=expected):
        simulate_all(range(150))
