"""What `group why`, `group retry` and `group rebuild` show.

Rules of this file: pure functions from a JSON object to a Page; what is bad is said in words as well as in colour.
"""

from __future__ import annotations

from datetime import UTC, datetime

from multiraft.admin.formats import printable
from multiraft.admin.tables import BAD, GOOD, UNSURE, Cell, Column, Page
from multiraft.admin.view import Facts


def why_page(answer: Facts) -> Page:
    page = Page()
    page.line(f"group {answer['group_id']} of service {answer['service']}")
    page.gap()
    if not answer["problems"] and not answer["slow"]:
        page.line("nothing is wrong: it has a leader, no replica is halted, and nothing slows it down", GOOD)
    for line in answer["problems"]:
        page.line(f"! {line}", BAD)
    for one in answer["replicas"]:
        if one["halted"]:
            _halted(page, one)
    for line in answer["slow"]:
        page.line(f"slow {line}", UNSURE)
    page.gap()
    table = page.table(
        [
            Column("NODE"),
            Column("ROLE"),
            *[Column(title, right=True) for title in ("LAST", "COMMIT", "APPLIED", "FAILED", "SLOW")],
            Column("STATE", flexible=True),
        ]
    )
    for one in answer["replicas"]:
        counts = [str(one[name]) for name in ("last", "commit", "applied", "failed_commands", "slow_commands")]
        table.rows.append([printable(one["node_id"]), printable(one["role"]), *counts, _state(one)])
    if answer["next"]:
        page.gap()
        for line in answer["next"]:
            page.line(f"next: {line}")
    return page


def _halted(page: Page, replica: Facts) -> None:
    halted = replica["halted"]
    since = datetime.fromtimestamp(halted["since_ms"] / 1e3, UTC).isoformat(" ", "seconds")
    facts: list[tuple[str, Cell]] = [
        (f"  on {replica['node_id']}", f"since {since}, at index {halted['index']}"),
        ("  reason", (printable(halted["reason"]), BAD)),
    ]
    if halted["command"]:
        facts.append(("  command", printable(halted["command"])))
    if replica["rebuilding"]:
        facts.append(("  rebuild", (printable(replica["rebuilding"]), UNSURE)))
    page.facts(facts)


def _state(replica: Facts) -> Cell:
    if replica["broken"]:
        return "stopped: restart the node", BAD
    if replica["halted"]:
        return printable(f"halted: {replica['halted']['kind']}"), BAD
    return "applies", GOOD


def mended_page(answer: Facts) -> Page:
    """What was done, or would be."""
    plan = answer["plan"]
    page = Page()
    page.line(f"group {plan['group_id']}: {plan['action']} on {', '.join(plan['nodes']) or 'no node'}")
    if plan["nothing_to_do"]:
        page.line("nothing to do: no replica is halted", GOOD)
        return page
    for number, step in enumerate(plan["steps"], 1):
        page.line(f"  {number}. {step}")
    page.line("not done: a dry run" if answer["dry_run"] else "done", UNSURE if answer["dry_run"] else GOOD)
    return page
