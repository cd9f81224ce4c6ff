"""What the commands about a stopped node's data directory show.

Rules of this file: those of pages.py.
"""

from __future__ import annotations

from multiraft.admin.formats import printable, size
from multiraft.admin.tables import BAD, GOOD, UNSURE, Cell, Column, Page
from multiraft.admin.view import Facts


def verify_page(report: Facts) -> Page:
    page = Page()
    verdict: Cell = ("sound", GOOD) if report["healthy"] else (f"{len(report['problems'])} problems, see below", BAD)
    identity = report["identity"] or {}
    page.facts(
        [
            ("directory", printable(report["path"])),
            ("node", printable(identity.get("node_id"))),
            ("groups", str(len(report["groups"]))),
            ("data", f"{report['values']} values, {size(report['value_bytes'])}, of {report['spaces']} keyspaces"),
            ("snapshot files", f"{report['files']}, {size(report['file_bytes'])}; {report['loose']} left over"),
            ("verdict", verdict),
        ]
    )
    if report["problems"]:
        page.gap()
        for problem in report["problems"][:50]:
            page.line(f"! {problem}", BAD)
        if len(report["problems"]) > 50:
            page.line(f"! and {len(report['problems']) - 50} more (--json shows all)", BAD)
        page.gap()
        page.line("`multiraft storage repair` says what can be left out")
    return page


def repair_page(report: Facts) -> Page:
    page = Page()
    if not report["damages"]:
        page.line(f"nothing is damaged; all {len(report['groups'])} groups stay as they are", GOOD)
        return page
    done = report["done"]
    page.line("left out:" if done else "would be left out (--apply does it):", UNSURE)
    page.gap()
    table = page.table([Column("GROUPS", right=True), Column("REPLICA", right=True), Column("WHY", flexible=True)])
    for damage in report["damages"]:
        groups = str(damage["first"]) if damage["first"] == damage["last"] else f"{damage['first']}-{damage['last']}"
        why = printable(damage["problem"]) + ("; it was the group's only voter" if damage["alone"] else "")
        table.rows.append([groups, str(damage["replica_id"] or "?"), (why, BAD)])
    page.gap()
    page.line(f"{len(report['groups'])} groups are whole, and {'are kept' if done else 'would be kept'}")
    page.line("once the node runs, each of these groups replaces its replica here from its others")
    if any(damage["alone"] for damage in report["damages"]):
        page.line("where it was the only voter there are no others: put back a copy of the directory instead", BAD)
    if done:
        page.line("the damaged database is kept as db.damaged; remove it when all groups are well again")
    return page


def compact_page(report: Facts) -> Page:
    page = Page()
    before, after = report["before_bytes"], report["after_bytes"]
    page.line(f"{printable(report['path'])}: {size(before)} before, {size(after)} now", GOOD)
    return page
