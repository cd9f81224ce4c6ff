"""The rules of consensus, checked of running nodes from outside: of what each step changed, at once.

    election safety         a term of a group has one leader (thesis, section 3.4)
    leader completeness     a new leader has everything that was ever committed (3.6.3)
    log matching            an index and term name one entry, and one entry before it (3.5)
    state machine safety    every replica applies the same command at an index, with the same result and state (3.6.3)
    durable commit          what is committed is on the disks of a quorum
    monotony                term, commit, applied and a follower's match never go back
    leaders are known       a follower's leader was elected in that term

What is on the wire against what is on the disk is checked by promises.py.

Rules of this file: it looks and never touches; what it finds is reported once, with group, replicas, index and command;
cheap enough to run after every turn of every engine.
"""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from typing import Any, Final

from multiraft.engine.replica import Replica
from multiraft.errors import CorruptRecord, InvariantViolation
from multiraft.raft import LEADER, Raft
from multiraft.records import Record
from multiraft.storage import MemoryDisk
from multiraft.testing.platter import holds
from multiraft.types import FOUNDING_INDEX, NOBODY, GroupId, Index, Membership, NodeId, ReplicaId, Term

_READ_BYTES: Final = 4 * 1024 * 1024


class Violation(Exception):
    """A rule of consensus, or of the user's state machine, does not hold. The text says which, where and at what."""


class GroupRecord:
    """What has ever been seen of one group, on any node.

    leaders     who led each term: (node, incarnation, replica)
    entries     by (index, term): the entry's checksum, and the term of the entry before it
    records     records seen already, by (first index, term): their checksums
    committed   the term of every index that was committed
    commit      the highest of them
    memberships the membership of every index at which one took effect; membership_index: the newest
    lost        nodes whose disk has lost what it had acknowledged: they do not count for durable commits
    """

    __slots__ = ("commit", "committed", "entries", "leaders", "lost", "membership_index", "memberships", "records")

    def __init__(self) -> None:
        self.leaders: dict[Term, tuple[NodeId, int, ReplicaId]] = {}
        self.entries: dict[tuple[Index, Term], tuple[int, Term]] = {}
        self.records: dict[tuple[Index, Term], int] = {}
        self.committed: dict[Index, Term] = {}
        self.commit: Index = 0
        self.lost: set[NodeId] = set()
        self.memberships: dict[Index, Membership] = {}
        self.membership_index: Index = 0

    def forget_term(self, term: Term) -> None:
        """Nothing of this term ever was on a disk."""
        self.entries = {name: entry for name, entry in self.entries.items() if name[1] != term}
        self.records = {name: record for name, record in self.records.items() if name[1] != term}


class Seen:
    """What a replica showed when it was looked at last."""

    __slots__ = ("applied", "commit", "last", "last_term", "leader", "match", "membership", "role", "term")

    def __init__(self, core: Raft) -> None:
        self.term = core.term
        self.role = core.role
        self.leader = core.leader
        self.commit: Index = 0
        self.applied: Index = 0
        self.last: Index = 0
        self.last_term: Term = 0
        self.match: dict[ReplicaId, Index] = {}
        self.membership = core.membership


class Invariants:
    """Judges replicas. One for a whole cluster; it outlives the nodes.

    disks     of every node
    report    called with each violation; the first one counts
    said      called with (group, what) for the timeline: terms, roles, commits
    counts    "elections", "commits", "looks"
    """

    def __init__(
        self,
        disks: Mapping[NodeId, MemoryDisk],
        report: Callable[[str], None],
        said: Callable[[NodeId, GroupId, str, bool], None],
    ) -> None:
        self.groups: dict[GroupId, GroupRecord] = {}
        self.counts: Counter[str] = Counter()
        self._disks = disks
        self._report = report
        self._said = said

    def group(self, group_id: GroupId) -> GroupRecord:
        record = self.groups.get(group_id)
        if record is None:
            record = self.groups[group_id] = GroupRecord()
        return record

    def disk_lost(self, node_id: NodeId) -> None:
        """The node's disk has been emptied or put back: what it acknowledged before may be gone."""
        for group_id in sorted(self.groups):
            self.groups[group_id].lost.add(node_id)

    # ------------------------------------------------------------------------------------------------- every turn

    def look(self, node_id: NodeId, incarnation: int, replica: Replica, seen: Seen) -> None:
        """Judge what has changed in a replica since it was looked at last."""
        core = replica.core
        log = core.log
        last, applied = log.last_index, replica.applied
        if replica.broken is not None:
            return
        if (
            core.commit == seen.commit
            and last == seen.last
            and core.term == seen.term
            and core.role is seen.role
            and applied == seen.applied
            and core.leader == seen.leader
            and log.last_term == seen.last_term
        ):
            if core.role is LEADER:
                self._look_at_match(node_id, core, seen)
            return
        self.counts["looks"] += 1
        try:
            self._changed(node_id, incarnation, replica, seen)
        except (InvariantViolation, CorruptRecord) as problem:
            self._report(f"group {core.group_id}: the log of node {node_id} cannot be read: {problem}")

    def _changed(self, node_id: NodeId, incarnation: int, replica: Replica, seen: Seen) -> None:
        core = replica.core
        group = self.group(core.group_id)
        where = f"group {core.group_id}: replica {core.replica_id} on node {node_id}"
        if core.term < seen.term:
            self._report(f"{where}: its term went back from {seen.term} to {core.term}")
        if core.commit < seen.commit:
            self._report(f"{where}: its commit went back from {seen.commit} to {core.commit}")
        if replica.applied < seen.applied:
            self._report(f"{where}: what it has applied went back from {seen.applied} to {replica.applied}")
        if not replica.applied <= core.commit <= core.last_index:
            said = f"applied {replica.applied}, commit {core.commit}, last {core.last_index}"
            self._report(f"{where}: applied <= commit <= last index does not hold: {said}")
        if core.last_index != seen.last or core.log.last_term != seen.last_term:
            self._look_at_log(where, group, core, seen)
        if core.role is LEADER and (seen.role is not LEADER or seen.term != core.term):
            self._elected(node_id, incarnation, core, group)
        if core.term != seen.term or core.role is not seen.role:
            self._said(node_id, core.group_id, f"{core.role.name.lower()} in term {core.term}", True)
        if core.leader != seen.leader or core.term != seen.term:
            self._look_at_leader(where, core, group)
        if core.commit > seen.commit:
            self._look_at_commit(where, core, group, seen)
            self._said(node_id, core.group_id, f"commit {core.commit} of {core.last_index}", False)
        if core.role is LEADER:
            if seen.role is not LEADER or seen.term != core.term:
                seen.match = {}
            self._look_at_match(node_id, core, seen)
        seen.term, seen.role, seen.leader = core.term, core.role, core.leader
        seen.commit, seen.applied = core.commit, replica.applied
        seen.last, seen.last_term = core.last_index, core.log.last_term
        if core.membership is not seen.membership:
            self._membership_changed(where, core, group, seen)

    def led(self, node_id: NodeId, incarnation: int, group_id: GroupId, core: Raft) -> None:
        """Note who leads a term, of which nothing else can be judged any more."""
        me = node_id, incarnation, core.replica_id
        other = self.group(group_id).leaders.setdefault(core.term, me)
        if other != me:
            self._report(f"election safety: group {group_id}, term {core.term}: led by replicas {other} and {me}")

    def _elected(self, node_id: NodeId, incarnation: int, core: Raft, group: GroupRecord) -> None:
        self.counts["elections"] += 1
        me = node_id, incarnation, core.replica_id
        other = group.leaders.setdefault(core.term, me)
        if core.membership.replicas == (core.replica_id,) and other[::2] == me[::2] and other != me:
            # Alone it leads before its term is on disk, for nobody hears of it; a crash then takes the term back.
            group.forget_term(core.term)
            group.leaders[core.term] = other = me
        where = f"group {core.group_id}, term {core.term}"
        if other != me:
            self._report(f"election safety: {where}: led by replicas {other} and {me} (node, incarnation, replica)")
        index = group.commit
        if core.log.start.index >= index:
            return
        term = core.log.term(index) if index <= core.last_index else None
        if term != group.committed[index]:
            had = "nothing" if term is None else f"an entry of term {term}"
            self._report(
                f"leader completeness: {where}: {node_id} was elected with {had} at index {index}, "
                f"where an entry of term {group.committed[index]} was committed"
            )

    def _membership_changed(self, where: str, core: Raft, group: GroupRecord, seen: Seen) -> None:
        membership = seen.membership = core.membership
        if group.memberships.setdefault(membership.index, membership) != membership:
            self._report(
                f"state machine safety: {where}: at index {membership.index} the membership {membership} took effect; "
                f"elsewhere it was {group.memberships[membership.index]}"
            )
        elif membership.index > group.membership_index:
            group.membership_index = membership.index
            if membership.index > FOUNDING_INDEX:
                self.counts["memberships"] += 1
                node_id = membership.nodes.get(core.replica_id, "?")
                names = ", ".join(membership.nodes[voter] for voter in membership.voters)
                rest = [membership.nodes[one] for one in membership.learners]
                said = f"voters {names}" + (f", learners {', '.join(rest)}" if rest else "")
                said += ", joint" if membership.outgoing else ""
                self._said(node_id, core.group_id, f"membership {membership.index} in effect: {said}", True)

    def _look_at_leader(self, where: str, core: Raft, group: GroupRecord) -> None:
        if core.leader == NOBODY or core.role is LEADER:
            return
        elected = group.leaders.get(core.term)
        if elected is None or elected[2] != core.leader:
            led = f"{elected[0]} led it" if elected else "nobody was elected in it"
            self._report(f"{where}: follows replica {core.leader} in term {core.term}, but {led}")

    def _look_at_match(self, node_id: NodeId, core: Raft, seen: Seen) -> None:
        match = seen.match
        for replica_id, progress in core.progress.items():
            if progress.match < match.get(replica_id, 0):
                self._report(
                    f"group {core.group_id}: leader {node_id} of term {core.term}: the match of replica {replica_id} "
                    f"went back from {match[replica_id]} to {progress.match}"
                )
            match[replica_id] = progress.match

    # ------------------------------------------------------------------------------------------------------- logs

    def _look_at_log(self, where: str, group: GroupRecord, core: Raft, seen: Seen) -> None:
        """Judge the entries that were not there when the log was looked at last."""
        log = core.log
        start = log.start.index
        known = min(seen.last, log.last_index)
        if known > start and (known < seen.last or log.term(known) != seen.last_term):
            known = min(known, seen.commit)  # something was taken away; never below the commit
        first = max(known, start) + 1
        while first <= log.last_index:
            for record in log.records(first, log.last_index, _READ_BYTES):
                self._look_at_record(where, group, record, min(record.last, log.last_index))
                first = record.last + 1

    def _look_at_record(self, where: str, group: GroupRecord, record: Record, last: Index) -> None:
        checksum = zlib.crc32(record.raw)
        name = record.first, record.term
        if group.records.get(name) == checksum:
            return
        group.records[name] = checksum
        prev_term = record.prev_term
        for index, entry in enumerate(record.entries()[: last - record.first + 1], record.first):
            what = zlib.crc32(entry), prev_term
            known = group.entries.setdefault((index, record.term), what)
            if known != what:
                self._report(
                    f"log matching: {where}: at index {index} and term {record.term} it has {entry[:80]!r} after an "
                    f"entry of term {prev_term}; elsewhere another entry, or one after term {known[1]}, has that place"
                )
            prev_term = record.term

    def _look_at_commit(self, where: str, core: Raft, group: GroupRecord, seen: Seen) -> None:
        log = core.log
        first = max(seen.commit, log.start.index) + 1
        committed = group.committed
        start = log.start
        if start.index > seen.commit and committed.setdefault(start.index, start.term) != start.term:
            self._report(
                f"state machine safety: {where}: its snapshot ends with an entry of term {start.term} at index "
                f"{start.index}; elsewhere one of term {committed[start.index]} was committed there"
            )
        while first <= core.commit:
            for record in log.records(first, core.commit, _READ_BYTES):
                term = record.term
                for index in range(max(first, record.first), min(record.last, core.commit) + 1):
                    if committed.setdefault(index, term) != term:
                        self._report(
                            f"state machine safety: {where}: has committed an entry of term {term} at index {index}; "
                            f"elsewhere one of term {committed[index]} was committed there"
                        )
                first = record.last + 1
        if core.commit > group.commit:
            self.counts["commits"] += 1
            group.commit = core.commit
            if core.role is LEADER and core.commit > log.start.index:
                self._look_at_quorum(where, core, group, seen.membership)

    def _look_at_quorum(self, where: str, core: Raft, group: GroupRecord, before: Membership) -> None:
        """What is newly committed is on the disks of a quorum; of both quorums in a joint membership.

        before  the membership before this turn: the leader may have counted by it, or by what then took effect
        """
        lacking = [
            self._lacking(core, group, membership)
            for membership in {id(m): m for m in (before, core.membership)}.values()
        ]
        if all(lacking):
            self._report(
                f"durable commit: {where}: index {core.commit} of term {group.committed[core.commit]} is committed, "
                f"but {lacking[0]}"
            )

    def _lacking(self, core: Raft, group: GroupRecord, membership: Membership) -> str:
        """Say which quorum does not have what `core` has committed; empty where every quorum has it."""
        term = group.committed[core.commit]
        for voters in (membership.voters, membership.outgoing):
            nodes = {voter: membership.nodes.get(voter) for voter in voters}
            having = [voter for voter in voters if self._stored(nodes[voter], core, core.commit, term, group)]
            if voters and len(having) * 2 <= len(voters):
                return f"of voters {voters} only {having} have it on disk"
        return ""

    def _stored(self, node_id: NodeId | None, core: Raft, index: Index, term: Term, group: GroupRecord) -> bool:
        if node_id is None or node_id in group.lost:
            return True  # nothing can be said of it
        disk = self._disks.get(node_id)
        return disk is None or holds(disk, core.group_id, index, term)

    # --------------------------------------------------------------------------------------------- every so often

    def look_at_everything(self, node_id: NodeId, replicas: Collection[Replica]) -> None:
        """Judge whole logs from the beginning, whatever was seen of them before."""
        for replica in replicas:
            if replica.broken is not None:
                continue
            core = replica.core
            group = self.group(core.group_id)
            where = f"group {core.group_id}: replica {core.replica_id} on node {node_id}"
            first = core.log.start.index + 1
            prev_term = core.log.start.term
            try:
                while first <= core.last_index:
                    for record in core.log.records(first, core.last_index, _READ_BYTES):
                        if record.first > first or (record.first == first and record.prev_term != prev_term):
                            self._report(f"log matching: {where}: its records do not chain at index {record.first}")
                        group.records.pop((record.first, record.term), None)
                        self._look_at_record(where, group, record, min(record.last, core.last_index))
                        self._agrees(where, group, record, core)
                        first, prev_term = record.last + 1, record.term
            except (InvariantViolation, CorruptRecord) as problem:
                self._report(f"{where}: its log cannot be read: {problem}")

    def _agrees(self, where: str, group: GroupRecord, record: Record, core: Raft) -> None:
        for index in range(record.first, min(record.last, core.commit) + 1):
            if group.committed.get(index, record.term) != record.term:
                self._report(
                    f"state machine safety: {where}: index {index} is of term {record.term}, but one of term "
                    f"{group.committed[index]} was committed"
                )


def describe(command: bytes) -> str:
    """Return a command as a reader can make sense of it: a typed one as a call, others as bytes."""
    try:
        from multiraft.methods import decode_call

        name, *arguments = decode_call(command)
        shown: list[Any] = [f"{item!r:.60}" for item in arguments]
        return f"{name}({', '.join(shown)})"
    except Exception as problem:
        return f"{command[:100]!r}" if len(command) <= 100 else f"{command[:100]!r}... ({type(problem).__name__})"
