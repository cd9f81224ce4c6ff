"""What the commands about members show: who takes part, what a change would do, what came of it.

Rules of this file: pure functions from a JSON object to a Page; what is bad is said in words as well as in colour.
"""

from __future__ import annotations

from multiraft.admin.formats import UNKNOWN, printable
from multiraft.admin.memberships import nodes_of
from multiraft.admin.tables import BAD, FAINT, GOOD, UNSURE, Cell, Column, Page
from multiraft.admin.view import Facts


def members_page(answer: Facts) -> Page:
    page = Page()
    voters = nodes_of(answer["in_effect"], "voters")
    there = len(answer["answering"])
    page.line(f"group {answer['group_id']} of service {answer['service']}")
    page.gap()
    facts: list[tuple[str, Cell]] = [
        ("leader", printable(answer["leader"]) if answer["leader"] else ("none", BAD)),
        ("in effect", f"as of index {answer['in_effect']['index']}"),
        (
            "quorum",
            (f"{answer['quorum']} of {len(voters)} voters, {there} answer", "" if there >= answer["quorum"] else BAD),
        ),
    ]
    if answer["change"]:
        facts.append(("change", (printable(answer["change"]), UNSURE)))
    page.facts(facts)
    page.gap()
    table = page.table(
        [
            Column("REPLICA", right=True),
            Column("NODE"),
            Column("MEMBER"),
            Column("ROLE"),
            Column("BEHIND", right=True),
            Column("ANSWERS"),
            Column("REMARK", flexible=True),
        ]
    )
    for replica in answer["replicas"]:
        table.rows.append(
            [
                printable(replica["replica_id"]),
                printable(replica["node_id"]),
                replica["member"],
                printable(replica["role"]),
                printable(replica["behind"]),
                ("yes", GOOD) if replica["answers"] else ("no", BAD),
                _remark(replica),
            ]
        )
    for tombstone in answer["tombstones"]:
        gone = f"was removed, as of index {tombstone['index']}"
        row: list[Cell] = [str(tombstone["replica_id"]), printable(tombstone["node_id"]), ("removed", FAINT)]
        table.rows.append([*row, UNKNOWN, UNKNOWN, UNKNOWN, gone])
    if answer["waiting_for"]:
        page.gap()
        for line in answer["waiting_for"]:
            page.line(f"waits: {line}", UNSURE)
    _lines(page, answer["problems"])
    return page


def _remark(replica: Facts) -> Cell:
    if replica["halted"]:
        return printable(f"halted: {replica['halted']}"), BAD
    if replica["silent"] is not None:
        return printable(f"no answer: {replica['silent']}"), BAD
    if replica["role"] is None:
        return "the node says that it hosts no such replica", BAD
    if not replica["answers"]:
        return "its leader does not hear it", BAD
    return UNKNOWN


def plan_page(answer: Facts) -> Page:
    """What would be done, and whether it is safe."""
    plan = answer["plan"]
    page = Page()
    page.line(f"group {plan['group_id']}: {action_text(plan)}")
    if plan["nothing_to_do"]:
        page.line("nothing to do: it is so already", GOOD)
        return page
    for number, step in enumerate(plan["steps"], 1):
        page.line(f"  {number}. {step}")
    page.gap()
    page.facts([("before", _balance(plan["before"])), ("after", _balance(plan["after"]))])
    if plan["down"]:
        page.facts([("down", (printable(", ".join(plan["down"])), BAD))])
    for line in plan["waits_for"]:
        page.facts([("waits for", (printable(line), UNSURE))])
    for line in plan["warnings"]:
        page.facts([("note", (printable(line), UNSURE))])
    page.gap()
    for line in plan["unsafe"]:
        page.line(f"! unsafe: {line}", BAD)
    if plan["safe"]:
        page.line("safe: a quorum answers before and after", GOOD)
    return page


def _balance(balance: Facts) -> str:
    there, voters = len(balance["answering"]), balance["voters"]
    return printable(
        f"{len(voters)} voters ({' '.join(voters)}), {balance['quorum']} must agree, {there} would answer"
        if balance["spare"] < 0
        else f"{len(voters)} voters ({' '.join(voters)}), {balance['quorum']} must agree, {there} answer"
    )


def action_text(plan: Facts) -> str:
    """Say in a few words what was asked for."""
    action = plan["action"]
    if action["kind"] == "replace":
        return f"replace {action['old']} by {action['node']}"
    if action["kind"] == "transfer":
        return f"leadership to {action['node']}"
    return f"{action['kind']} {action['node']}"


def done_page(answer: Facts) -> Page:
    page = Page()
    plan = answer["plan"]
    said = "nothing to do" if plan["nothing_to_do"] else "done"
    page.line(f"group {plan['group_id']}: {action_text(plan)}: {said}", GOOD)
    if "membership" in answer:
        membership = answer["membership"]
        facts: list[tuple[str, Cell]] = [("voters", printable(" ".join(nodes_of(membership, "voters"))))]
        learners = nodes_of(membership, "learners")
        if learners:
            facts.append(("learners", printable(" ".join(learners))))
        page.facts([*facts, ("as of", f"index {membership['index']}")])
    else:
        page.facts([("leader", printable(answer["leader"])), ("term", str(answer["term"]))])
    return page


def _lines(page: Page, problems: list[str]) -> None:
    if problems:
        page.gap()
    for problem in problems:
        page.line(f"! {problem}", BAD)
