"""What `multiraft recover` shows, made of what each step found.

Rules of this file: pure functions from a JSON object to a Page; what may be lost is said in words, first of all.
"""

from __future__ import annotations

from multiraft.admin.formats import moment, printable
from multiraft.admin.tables import BAD, GOOD, UNSURE, Cell, Column, Page
from multiraft.admin.view import Facts
from multiraft.types import generation_name

_SHOWN: dict[str, Cell] = {"kept": ("kept", GOOD), "recovered": ("recovered", UNSURE), "gone": ("GONE", BAD)}


def collected_page(found: Facts) -> Page:
    page = Page()
    page.facts(
        [
            ("directory", printable(found["path"])),
            ("node", printable(found["node_id"])),
            ("cluster", printable(found["cluster_id"])),
            ("generation", generation_name(found["generation"])),
        ]
    )
    page.gap()
    table = page.table(
        [
            Column("GROUP", right=True),
            Column("SERVICE"),
            *[Column(title, right=True) for title in ("REPLICA", "TERM", "COMMIT", "LAST", "UNCOMMITTED", "SNAPSHOT")],
            Column("MEMBERS"),
            Column("CHECK"),
        ]
    )
    for one in found["replicas"]:
        check: Cell = ("damaged", BAD) if one["problems"] else ("halted", UNSURE) if one["halted"] else ("ok", GOOD)
        table.rows.append(
            [
                str(one["group_id"]),
                *[
                    printable(one[name])
                    for name in (
                        "service",
                        "replica_id",
                        "term",
                        "commit",
                        "last_index",
                        "uncommitted",
                        "snapshot_index",
                    )
                ],
                printable(" ".join(sorted(((one["membership"] or {}).get("nodes") or {}).values())) or None),
                check,
            ]
        )
    return page


def plan_page(found: Facts, everything: bool) -> Page:
    page = Page()
    groups = found["groups"]
    counts = {verdict: sum(group["verdict"] == verdict for group in groups) for verdict in _SHOWN}
    page.line(
        f"cluster {found['cluster_id']}: {', '.join(found['survivors'])} survive, {', '.join(found['lost']) or 'none'} "
        f"lost; recovery generation {generation_name(found['generation'])}"
    )
    page.line(
        f"{len(groups)} groups: {counts['recovered']} are recovered, {counts['kept']} left alone, {counts['gone']} gone"
    )
    losing = sum(group["may_lose"] for group in groups)
    newly = [group["newly"] for group in groups if group["newly"]]
    page.line(
        f"MAY BE LOST: acknowledged entries of {losing} groups" if losing else "nothing that was acknowledged is lost",
        BAD if losing else GOOD,
    )
    page.line(
        f"NEWLY COMMITTED: {sum(newly)} entries of {len(newly)} groups" if newly else "nothing is newly committed",
        UNSURE if newly else GOOD,
    )
    for line in found["words"]:
        page.line(f"! {line}")
    page.gap()
    shown = [group for group in groups if everything or group["verdict"] != "kept"]
    table = page.table(
        [
            Column("GROUP", right=True),
            Column("SERVICE"),
            Column("VERDICT"),
            Column("FROM"),
            Column("LOST NODES"),
            *[Column(title, right=True) for title in ("HOLDS TO", "NEW")],
            Column("LAST ENTRY"),
            Column("ACKNOWLEDGED"),
        ]
    )
    for group in shown:
        lost: Cell = ("MAY BE LOST", BAD) if group["may_lose"] else ("kept", GOOD)
        table.rows.append(
            [
                str(group["group_id"]),
                printable(group["service"] or None),
                _SHOWN[group["verdict"]],
                printable(group["source"] or None),
                printable(" ".join(group["lost"]) or None),
                printable(group["holds_to"] or None),
                str(group["newly"]),
                moment(group["last_stamp_ms"]) if group["last_stamp_ms"] else printable(None),
                lost,
            ]
        )
    for group in shown:
        page.gap()
        page.line(f"group {group['group_id']}:")
        for line in group["words"]:
            page.line(f"  {line}")
    return page


def applied_page(found: Facts) -> Page:
    page = Page()
    name, generation = found["node_id"], found["generation"]
    if found["done_before"]:
        page.line(f"node {name}: recovery {generation} was applied here before; nothing is left to do", GOOD)
        return page
    for group_id, action in found["groups"].items():
        page.line(f"group {group_id}: {action}")
    page.gap()
    if found["written"]:
        page.line(f"node {name}: done, recovery generation {generation}", GOOD)
        if found["others"]:
            page.line(f"apply it on {', '.join(found['others'])} as well, before any node is started", UNSURE)
    else:
        page.line(f"node {name}: this is what would be done; nothing was written. Do it with --yes", UNSURE)
    return page


def verified_page(found: Facts) -> Page:
    page = Page()
    for node in found["nodes"]:
        page.line(f"node {node['node_id']}: recovery generation {node['generation']}")
    page.gap()
    table = page.table(
        [
            Column("GROUP", right=True),
            Column("SERVICE"),
            Column("BEST LOG"),
            Column("LAST", right=True),
            *map(Column, ("VOTERS", "LEARNERS", "QUORUM")),
        ]
    )
    for group in found["groups"]:
        quorum: Cell = ("yes", GOOD) if group.get("quorum") else ("NO", BAD)
        table.rows.append(
            [
                str(group["group_id"]),
                printable(group["service"] or None),
                printable(group["source"] or None),
                str(group["last"]),
                printable(" ".join(group["voters"]) or None),
                printable(" ".join(group["learners"]) or None),
                quorum,
            ]
        )
    _problems(page, found)
    return page


def running_page(found: Facts) -> Page:
    page = Page()
    for name, generation in found["generations"].items():
        page.line(f"node {name}: recovery generation {generation}")
    page.gap()
    table = page.table(
        [
            Column("GROUP", right=True),
            Column("SERVICE"),
            Column("LEADER"),
            Column("TERM", right=True),
            *map(Column, ("VOTERS", "LEARNERS")),
        ]
    )
    for group in found["groups"]:
        nobody: Cell = "gone, as planned" if group["group_id"] in found.get("gone", ()) else ("none", BAD)
        leader: Cell = printable(group["leader"]) if group["leader"] else nobody
        table.rows.append(
            [
                str(group["group_id"]),
                printable(group["service"]),
                leader,
                printable(group["term"]),
                *(printable(" ".join(group[kind]) or None) for kind in ("voters", "learners")),
            ]
        )
    _problems(page, found)
    return page


def _problems(page: Page, found: Facts) -> None:
    page.gap()
    for problem in found["problems"]:
        page.line(f"! {problem}", BAD)
    if not found["problems"]:
        page.line("all of it holds", GOOD)
