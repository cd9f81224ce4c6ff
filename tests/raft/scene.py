"""The commands of scenario scripts. Replicas are named by their ids; times are in seconds.

    group voters=1,2,3 [learners=4] [window-messages=N] [window-bytes=N] [append-bytes=N]     begin
    log N terms=1,1,2 [term=N] [commit=N] [run=N]      before anything else: N's log from index 2 on, by terms
    log N empty                                        before anything else: N is a newcomer, without the founding

    campaign N [forced]      propose N WORD...      read N            transfer N to M
    change N [explicit|simple|joint] CHANGE...         changes, in order: learner M, joining M, promote M, demote M,
                                                       remove M; M of a new one is the next id
    leave N                  end the joint change      newcomer N      an empty replica, made for a new member
    compact N [keeping K]    take a snapshot; the last K entries stay        ask-after-snapshots N
    check-quorum N           step-down N            poke N to M       release N [after SECONDS]
    beat N                   wait SECONDS           tell-commits

    deliver | drop | delay | repeat   [one] [KIND] [from N] [to M]      messages that lie on the wire now
    arrive [one] [KIND] [from N] [to M]                                 messages that were delayed or repeated
    stabilize                deliver everything, and what it leads to, until all is quiet; commits are told
    isolate N...             cut N -> M             heal

    hold-writes N...         persist N [all]        resume-writes N
    crash N [keeping K]      restart N...        wipe N (its disk is empty when it starts again)

    status [N...]            logs [N...]            entries N         progress N        deadlines [N...]
    members [N...]           messages

A proposal's words are the entries of one record; x*500 is an entry of 500 bytes. `repeat` delivers and keeps a copy
that can arrive again. `heal` undoes all cuts, and leaders ask anew where others are, as they do when a connection is
made. `quietly` before a command leaves out what it prints.

Rules of this file: one command does one thing; what the core refuses is printed, what a script gets wrong is raised.
"""

from __future__ import annotations

from typing import Any, Final

from multiraft.errors import MultiRaftError
from multiraft.messages import RaftMessage
from multiraft.raft import AddLearner, Change, Demote, Promote, Remove
from multiraft.records import COMMANDS
from multiraft.types import Membership
from tests.raft.conftest import make_replica
from tests.raft.stage import Stage
from tests.raft.wording import KINDS, message_text, progress_text, records_text, role_text, terms_text
from tests.raft.words import ScriptError, Words, hint, to_number

__all__ = ["Scene", "ScriptError"]

CHANGES: Final[dict[str, type[Promote | Demote | Remove]]] = {"promote": Promote, "demote": Demote, "remove": Remove}


class Scene(Stage):
    """A stage that takes commands."""

    def __init__(self) -> None:
        super().__init__()
        self.settings: dict[str, Any] = {}

    def run(self, line: str) -> list[str]:
        """Do what `line` says, and return what that prints."""
        words = Words(line)
        quiet = words.maybe("quietly")
        name = words.take()
        command = getattr(self, "do_" + name.replace("-", "_"), None)
        if command is None:
            known = [one[3:].replace("_", "-") for one in dir(self) if one.startswith("do_")]
            raise ScriptError(f"there is no command {name!r}{hint(name, known)}")
        self.said = []
        try:
            command(words)
        except MultiRaftError as problem:
            self.say(f"refused: {type(problem).__name__}: {problem}")
        words.end()
        self.turn()
        return [] if quiet else self.said

    # ------------------------------------------------------------------------------------------------ the beginning

    def do_group(self, words: Words) -> None:
        known = {
            "window-messages": "inflight_messages",
            "window-bytes": "inflight_bytes",
            "append-bytes": "append_bytes",
        }
        options = words.options(("voters", "learners", *known))
        voters = tuple(to_number(word) for word in options.get("voters", "").split(","))
        learners = tuple(to_number(word) for word in options.get("learners", "").split(",") if word)
        self.settings = {name: to_number(options[word]) for word, name in known.items() if word in options}
        nodes = {one: f"n{one}" for one in (*voters, *learners)}
        self.membership = Membership(1, voters, nodes, max(nodes) + 1, learners=learners)
        for one in sorted(nodes):
            self.enter(make_replica(one, membership=self.membership, **self.settings))

    def do_log(self, words: Words) -> None:
        name = words.number()
        if self.wire or self.core(name).term > 1 or self.core(name).last_index > 1:
            raise ScriptError("a log can only be given before anything happens")
        empty = bool(words.maybe("empty"))
        options = words.options(("terms", "term", "commit", "run"))
        terms = tuple(to_number(word) for word in options.pop("terms", "").split(",") if word)
        numbers: dict[str, Any] = {option: to_number(value) for option, value in options.items()}
        numbers |= self.settings
        made = make_replica(name, terms=terms, membership=self.membership, empty=empty, **numbers)
        self.enter(made)

    # ------------------------------------------------------------------------------------------------------- inputs

    def do_campaign(self, words: Words) -> None:
        self.core(words.number()).campaign(self.now, forced=bool(words.maybe("forced")))

    def do_propose(self, words: Words) -> None:
        core = self.core(words.number())
        entries: list[bytes] = []
        while not entries or words.left:
            text, star, times = words.take().partition("*")
            entries.append(text.encode() * (to_number(times) if star else 1))
        core.propose(entries, COMMANDS, 0)

    def do_read(self, words: Words) -> None:
        name = words.number()
        if not self.core(name).can_read():
            self.say(f"{name}: cannot read yet: nothing of its own term is committed")
            return
        self.round += 1
        index = self.core(name).read_index(self.round)
        self.say(f"{name}: read of round {self.round} registered at {index}")

    def do_transfer(self, words: Words) -> None:
        core, _, to = self.core(words.number()), self.expect(words, "to"), words.number()
        core.transfer_leadership(to)

    def do_change(self, words: Words) -> None:
        core = self.core(words.number())
        way = words.maybe("explicit", "simple", "joint")
        changes: list[Change] = []
        new = core.membership.next_replica_id
        while words.left:
            verb, replica_id = words.maybe("learner", "joining", *CHANGES), words.number()
            if verb in CHANGES:
                changes.append(CHANGES[verb](replica_id))
                continue
            if replica_id != new:
                raise ScriptError(f"the next new replica is {new}, not {replica_id}")
            new += 1
            changes.append(AddLearner(f"n{replica_id}", verb == "joining"))
        joint = None if way in ("", "explicit") else way == "joint"
        core.propose_membership(changes, 0, joint=joint, auto_leave=way != "explicit")

    def do_leave(self, words: Words) -> None:
        self.core(words.number()).propose_membership([], 0)

    def do_newcomer(self, words: Words) -> None:
        name = words.number()
        if name in self.replicas:
            raise ScriptError(f"there is a replica {name} already")
        self.enter(make_replica(name, empty=True, **self.settings))

    def do_compact(self, words: Words) -> None:
        replica = self[words.number()]
        if not replica.compact(words.number() if words.maybe("keeping") else 0):
            self.say(f"{replica.replica_id}: no snapshot can be taken now")

    def do_ask_after_snapshots(self, words: Words) -> None:
        self.core(words.number()).ask_after_snapshots(self.now)

    def do_check_quorum(self, words: Words) -> None:
        self.core(words.number()).check_quorum(self.now)

    def do_step_down(self, words: Words) -> None:
        self.core(words.number()).step_down(self.now)

    def do_poke(self, words: Words) -> None:
        core, _, to = self.core(words.number()), self.expect(words, "to"), words.number()
        core.poke(to)

    def do_release(self, words: Words) -> None:
        name = words.number()
        self.silence(name, words.seconds() if words.maybe("after") else 0.0)

    def do_beat(self, words: Words) -> None:
        self.beat(words.number())

    def do_wait(self, words: Words) -> None:
        self.now += words.seconds()

    def do_tell_commits(self, words: Words) -> None:
        self.tell_commits()

    # ----------------------------------------------------------------------------------------------------- the wire

    def expect(self, words: Words, word: str) -> str:
        if not words.maybe(word):
            raise ScriptError(f"{word!r} is missing")
        return word

    def select(self, words: Words, among: list[RaftMessage]) -> list[RaftMessage]:
        """Take out of `among` the messages that the words describe; at least one."""
        one = bool(words.maybe("one"))
        kind = words.maybe(*KINDS)
        sender = words.number() if words.maybe("from") else None
        to = words.number() if words.maybe("to") else None
        found = [
            message
            for message in among
            if (not kind or type(message) is KINDS[kind])
            and sender in (None, message.sender)
            and to in (None, message.to)
        ]
        words.end()
        if not found:
            raise ScriptError("there is no such message on the wire")
        found = found[:1] if one else found
        among[:] = [message for message in among if not any(message is other for other in found)]
        return found

    def do_deliver(self, words: Words) -> None:
        for message in self.select(words, self.wire):
            self.hand_over(message)

    def do_drop(self, words: Words) -> None:
        for message in self.select(words, self.wire):
            self.say(f"{message_text(message)}  (dropped)")

    def do_delay(self, words: Words) -> None:
        for message in self.select(words, self.wire):
            self.shelf.append(message)
            self.say(f"{message_text(message)}  (delayed)")

    def do_repeat(self, words: Words) -> None:
        for message in self.select(words, self.wire):
            self.shelf.append(message)
            self.hand_over(message)

    def do_arrive(self, words: Words) -> None:
        for message in self.select(words, self.shelf):
            self.hand_over(message)

    def do_stabilize(self, words: Words) -> None:
        words.end()
        self.until_quiet(self.tell_commits)

    def do_isolate(self, words: Words) -> None:
        for one in words.numbers():
            self.cut |= {pair for other in self.replicas if other != one for pair in ((one, other), (other, one))}

    def do_cut(self, words: Words) -> None:
        sender, _, to = words.number(), self.expect(words, "->"), words.number()
        self.cut.add((sender, to))

    def do_heal(self, words: Words) -> None:
        self.cut.clear()
        for replica in self.replicas.values():
            for other in self.replicas:
                if replica.alive:
                    replica.core.poke(other)

    # ------------------------------------------------------------------------------------------------------ the disk

    def do_hold_writes(self, words: Words) -> None:
        self.held |= set(words.numbers())

    def do_resume_writes(self, words: Words) -> None:
        self.held.discard(words.number())

    def do_persist(self, words: Words) -> None:
        name = words.number()
        replica = self[name]
        if not replica.disk.waiting:
            raise ScriptError(f"replica {name} has nothing to write")
        everything = bool(words.maybe("all"))
        while replica.disk.waiting:
            ready = replica.disk.waiting[0]
            hard = (
                f", term {ready.hard_state.term}, vote {ready.hard_state.vote or 'for nobody'}"
                if ready.hard_state
                else ""
            )
            self.say(f"{name}: on disk: log up to {ready.last[0]}@{ready.last[1]}{hard}")
            replica.sync()
            if not everything:
                break

    def do_crash(self, words: Words) -> None:
        replica = self[words.number()]
        replica.crash(words.number() if words.maybe("keeping") else 0)

    def do_restart(self, words: Words) -> None:
        for name in words.numbers():
            self.begin(name)
            self.describe(name)

    def do_wipe(self, words: Words) -> None:
        replica = self[words.number()]
        if replica.alive:
            raise ScriptError("only the disk of a replica that does not run can be lost")
        replica.disk = make_replica(replica.replica_id, empty=True).disk

    # -------------------------------------------------------------------------------------------------- what there is

    def named(self, words: Words) -> list[int]:
        """Take the replicas that are named; all of those that run if none is."""
        return words.numbers() or [name for name, replica in self.replicas.items() if replica.alive]

    def describe(self, name: int) -> None:
        core = self.core(name)
        self.say(f"{name}: {role_text(core)}; log ends at {core.last_index}@{core.log.last_term}, commit {core.commit}")

    def do_status(self, words: Words) -> None:
        for name in self.named(words):
            self.describe(name)

    def do_logs(self, words: Words) -> None:
        for name in self.named(words):
            log = self.core(name).log
            self.say(f"{name}: {terms_text(self[name].terms(), log.start.index + 1)}; commit {self.core(name).commit}")

    def do_entries(self, words: Words) -> None:
        name = words.number()
        log, at = self.core(name).log, self.core(name).log.start.index + 1
        while at <= log.last_index:
            records = log.records(at, log.last_index, 1 << 20)
            self.say(f"{name}: {records_text(records)}")
            at = records[-1].last + 1

    def do_progress(self, words: Words) -> None:
        name = words.number()
        for other, peer in self.core(name).progress.items():
            if other != name:
                self.say(f"{name} sees {other}: {progress_text(peer)}")

    def do_members(self, words: Words) -> None:
        for name in self.named(words):
            self.say(f"{name}: {self.outside(self[name])[2]}")

    def do_deadlines(self, words: Words) -> None:
        for name in self.named(words):
            self.say(f"{name}: {self.deadline_text(name)}")

    def do_messages(self, words: Words) -> None:
        for message in self.wire:
            self.say(message_text(message))
