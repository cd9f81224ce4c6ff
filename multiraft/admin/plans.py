"""What a change of a group's membership would do, and whether it is safe: said before anything is asked for.

A change is unsafe when it cannot be committed now, because too few voters answer, or when the group could commit
nothing after it, because too few of those answer that would vote then. The second is the trap: of three voters, one of
them down, the other that is up can be removed, and the group stands still.

A newcomer never makes a change unsafe: it votes only after it has caught up, which it cannot without answering.

Rules of this file: pure functions; what makes no sense at all is refused by an error that names the way out; what is
only dangerous is planned, and called unsafe.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Final

from multiraft.admin.memberships import change_text, nodes_of, quorum
from multiraft.admin.view import Facts
from multiraft.types import DIRECTORY_GROUP, NodeId

ACTIONS: Final = ("add", "remove", "replace", "promote", "demote", "transfer")


@dataclass(frozen=True, slots=True)
class Action:
    """What is asked for.

    kind   one of ACTIONS
    node   the node that it is about; of `replace` the new one
    old    of `replace`: the node whose replica goes
    voter  of `add`: False leaves it a learner
    """

    kind: str
    node: NodeId
    old: NodeId = ""
    voter: bool = True


class PlanRefused(Exception):
    """The action makes no sense for the group as it is; `status` is the HTTP status that says so."""

    def __init__(self, status: int, error: str, hint: str) -> None:
        super().__init__(error)
        self.status = status
        self.hint = hint


def make_plan(row: Facts, action: Action, known: Collection[NodeId], silent: Mapping[NodeId, str]) -> Facts:
    """Return what `action` would do to the group in `row` (of `merge_group`), and why that is safe or not.

    known   every node of the cluster
    silent  those of them that do not answer, and why

    Raises PlanRefused.
    """
    plan = _Plan(row, silent)
    if action.kind in ("add", "replace") and action.node not in known:
        hint = f"known nodes: {', '.join(sorted(known))}"
        raise PlanRefused(404, f"there is no node {action.node!r} in this cluster", hint)
    makers = {
        "add": lambda: plan.add(action.node, action.voter),
        "remove": lambda: plan.remove(action.node),
        "replace": lambda: plan.replace(action.old, action.node),
        "promote": lambda: plan.promote(action.node),
        "demote": lambda: plan.demote(action.node),
        "transfer": lambda: plan.transfer(action.node),
    }
    makers[action.kind]()
    return plan.answer(action)


class _Plan:
    """A plan being made: the voters as they will be, and what is to be said about it."""

    def __init__(self, row: Facts, silent: Mapping[NodeId, str]) -> None:
        members = row["membership"]
        self.row = row
        self.group_id = row["group_id"]
        self.silent = silent
        self.voters = nodes_of(members, "voters")
        self.learners = [name for name in nodes_of(members, "learners") if name not in self.voters]
        self.after = list(self.voters)
        self.answering = {replica["node_id"] for replica in row["replicas"] if replica["answers"]}
        self.between: list[NodeId] | None = None
        self.newcomers: set[NodeId] = set()
        self.steps: list[str] = []
        self.unsafe: list[str] = []
        self.warnings: list[str] = []
        self.waits: list[str] = []
        change = change_text(members, row["latest"])
        if change is not None:
            self.waits.append(f"another change comes first ({change})")
        if row["leader"] is None:
            self.waits.append(f"a leader ({row['why']})")

    def replica_on(self, node: NodeId) -> str:
        found = (str(one["replica_id"]) for one in self.row["replicas"] if one["node_id"] == node)
        return f"replica {next(found, '?')}"

    # ---------------------------------------------------------------------------------------------------- kinds

    def add(self, node: NodeId, voter: bool) -> None:
        if node in self.voters or (node in self.learners and not voter):
            return
        self._learner(node)
        if voter:
            self._promoted(node)

    def remove(self, node: NodeId) -> None:
        if self.group_id == DIRECTORY_GROUP:
            hint = "move the groups of services; the directory stays where it was founded"
            raise PlanRefused(409, "the directory keeps its replica on every founding node", hint)
        if node not in self.voters and node not in self.learners:
            return
        if self.voters == [node]:
            hint = "add another node first, or `replace` this one"
            raise PlanRefused(409, f"node {node!r} has the last voter of group {self.group_id}", hint)
        name = self.replica_on(node)
        self._taken_from(node)
        self.steps.append(f"one change takes {name} on {node} out of the group")
        if node == self.row["leader"]:
            self.steps.append(f"{node}, which leads, hands over to another voter")
        self.steps.append(f"{name} stops and is deleted; its id is never used again")
        if node in self.silent:
            self.warnings.append(f"{node} does not answer ({self.silent[node]}): it learns of this when it is back")

    def replace(self, old: NodeId, new: NodeId) -> None:
        if self.group_id == DIRECTORY_GROUP or old == new:
            self.remove(old)
            self.between = list(self.after)
            self.steps.append(f"{new} makes an empty replica, which receives the log as a learner")
            self._promoted(new)
            return
        if old not in self.voters and old not in self.learners:
            if new in self.voters:
                return
            if new not in self.learners:
                here = ", ".join([*self.voters, *self.learners])
                hint = f"its replicas are on {here}; `add` gives it one more"
                raise PlanRefused(409, f"node {old!r} has no replica of group {self.group_id} to be replaced", hint)
            self._promoted(new)
            return
        self._learner(new)
        name = self.replica_on(old)
        self.steps.append(
            f"once it has caught up, one joint change makes it a voter and takes {name} on {old} out"
            if new not in self.voters
            else f"one change takes {name} on {old} out of the group"
        )
        if new not in self.after:
            self.after.append(new)
            self.newcomers.add(new)
        self._taken_from(old)
        if old == self.row["leader"]:
            self.steps.append(f"{old}, which leads, hands over to another voter")
        self.steps.append(f"{name} stops and is deleted; its id is never used again")

    def promote(self, node: NodeId) -> None:
        self._must_take_part(node)
        if node not in self.voters:
            self._promoted(node)

    def demote(self, node: NodeId) -> None:
        self._must_take_part(node)
        if node not in self.voters:
            return
        if self.voters == [node]:
            raise PlanRefused(
                409, f"node {node!r} has the last voter of group {self.group_id}", "promote another first"
            )
        self._taken_from(node)
        self.steps.append(
            f"one change makes {self.replica_on(node)} on {node} a learner: it keeps its data and its log"
        )
        if node == self.row["leader"]:
            self.steps.append(f"{node}, which leads, hands over to another voter")

    def transfer(self, node: NodeId) -> None:
        self._must_take_part(node)
        if node not in self.voters:
            hint = f"voters are on {', '.join(self.voters)}; `promote` makes it one"
            raise PlanRefused(409, f"node {node!r} has a learner of group {self.group_id}: it cannot lead", hint)
        if node == self.row["leader"]:
            return
        self.steps.append(f"{self.row['leader'] or 'the leader'} brings {node} up to date and has it campaign at once")
        self.steps.append("proposals wait until it leads, at most two election timeouts")
        halted = next((one["halted"] for one in self.row["replicas"] if one["node_id"] == node), None)
        if halted:
            self.unsafe.append(f"{self.replica_on(node)} on {node} is halted and would serve nobody: {halted}")
        if node not in self.answering:
            self.unsafe.append(f"{node} does not answer: the group would wait for it in vain")

    # ---------------------------------------------------------------------------------------------------- parts

    def _must_take_part(self, node: NodeId) -> None:
        if node not in self.voters and node not in self.learners:
            here = ", ".join([*self.voters, *self.learners])
            hint = f"its replicas are on {here}; `add` gives it one more"
            raise PlanRefused(409, f"node {node!r} has no replica of group {self.group_id}", hint)

    def _learner(self, node: NodeId) -> None:
        if node not in self.voters and node not in self.learners:
            self.steps.append(f"{node} makes an empty replica, which receives the log as a learner")
        if node in self.silent:
            text = f"node {node} ({self.silent[node]}); the group serves on without it meanwhile"
            self.waits.append(text)

    def _promoted(self, node: NodeId) -> None:
        self.steps.append(f"once it has caught up, it becomes a voter on {node}")
        if node not in self.after:
            self.after.append(node)
        self.newcomers.add(node)

    def _taken_from(self, node: NodeId) -> None:
        self.after = [name for name in self.after if name != node]

    # --------------------------------------------------------------------------------------------------- verdict

    def answer(self, action: Action) -> Facts:
        before = _balance(self.voters, self.answering)
        after = _balance(self.after, self.answering | self.newcomers)
        if self.steps:
            between = after if self.between is None else _balance(self.between, self.answering)
            self._judge(before, between if between["spare"] < after["spare"] else after)
        told = {"kind": action.kind, "node": action.node, "old": action.old or None}
        return {
            "group_id": self.group_id,
            "action": told,
            "nothing_to_do": not self.steps,
            "steps": self.steps,
            "before": before,
            "after": after,
            "down": sorted(name for name in {*self.voters, *self.after} if name in self.silent),
            "waits_for": self.waits,
            "warnings": self.warnings,
            "safe": not self.unsafe,
            "unsafe": self.unsafe,
        }

    def _judge(self, before: Facts, after: Facts) -> None:
        for half in (self.voters, nodes_of(self.row["membership"], "outgoing")):
            now = _balance(half, self.answering)
            if half and now["spare"] < 0:
                self.unsafe.append(
                    f"now only {len(now['answering'])} of {len(half)} voters answer, and {now['quorum']} must: nothing "
                    f"can be committed; start {_names(now['silent'])} first"
                )
        if after["voters"] != before["voters"] and after["spare"] < 0:
            self.unsafe.append(
                f"afterwards {after['quorum']} of {len(after['voters'])} voters must answer, and only "
                f"{len(after['answering'])} would: the group would stand still; start {_names(after['silent'])} first, "
                "or remove the ones that are down instead"
            )
        elif before["tolerates"] > after["tolerates"]:
            self.warnings.append(
                f"the group tolerates the loss of {after['tolerates']} of its voters afterwards, before of "
                f"{before['tolerates']}"
            )


def _balance(voters: Collection[NodeId], answering: Collection[NodeId]) -> Facts:
    """The quorum of `voters`, and how it stands: `spare` of those that answer may fall silent (below 0: too few do)."""
    there = [name for name in voters if name in answering]
    needed = quorum(len(voters))
    return {
        "voters": list(voters),
        "quorum": needed,
        "answering": there,
        "silent": [name for name in voters if name not in there],
        "spare": len(there) - needed,
        "tolerates": len(voters) - needed,
    }


def _names(names: Collection[NodeId]) -> str:
    return ", ".join(sorted(names))
