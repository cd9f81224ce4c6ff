"""What each command shows, made of what the admin API answered.

Rules of this file: pure functions from a JSON object to a Page; what is bad is said in words as well as in colour;
the first lines hold what an operator looks for first.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import Any, Final

from multiraft.admin.formats import (
    UNKNOWN,
    cut,
    entry_text,
    milliseconds,
    moment,
    percent,
    printable,
    seconds,
    size,
)
from multiraft.admin.memberships import change_text
from multiraft.admin.tables import BAD, FAINT, GOOD, UNSURE, Cell, Column, Page
from multiraft.admin.view import Facts

_STATE_STYLES: Final[Mapping[str, str]] = {
    "up": GOOD,
    "ok": GOOD,
    "down": BAD,
    "unknown": UNSURE,
    "leaderless": BAD,
    "halted": BAD,
    "unconfirmed": UNSURE,
}
_SLOW_LOOP_MS: Final = 50.0
_BUSY: Final = 0.9
_EDGE_BYTES: Final = 16
"""Shown of a shard's limit, in hex: hashes have 8, keys may have thousands."""
_EDGE_DIGITS: Final = 9
"""Shown of it in the list of groups."""


def status_page(answer: Facts) -> Page:
    page = Page()
    nodes = answer["nodes"]
    up = sum(node["state"] == "up" for node in nodes)
    name = answer["cluster_id"] or "(not formed yet)"
    page.line(f"cluster {name}: {up} of {len(nodes)} nodes up, as node {answer['asked']} sees it")
    page.gap()
    table = page.table(
        [
            Column("NODE"),
            Column("STATE"),
            *[Column(title, right=True) for title in ("GROUPS", "LEADS", "LEADERLESS", "HALTED")],
            *[Column(title, right=True) for title in ("HEARD", "UPTIME", "LAG", "LOOP", "DISK", "PENDING")],
            Column("ADDRESS"),
        ]
    )
    heard: Facts = next((node.get("peers", {}) for node in nodes if node["node_id"] == answer["asked"]), {})
    for node in nodes:
        age = heard.get(node["node_id"], {}).get("heard_age_s")
        table.rows.append(_node_row(node, "here" if node["node_id"] == answer["asked"] else seconds(age)))
    changes = [(node["node_id"], said) for node in nodes if (said := _changes(node))]
    if changes:
        page.gap()
    for name, said in changes:
        page.line(f"{name}: {said}")
    _add_problems(page, answer)
    return page


def _changes(node: Facts) -> str:
    """Say what is unsettled on a node: groups that change, replicas that learn, what removed ones have left."""
    groups: Facts = node.get("groups", {})
    told = (
        ("changing", "groups change their members"),
        ("learning", "replicas are learners"),
        ("removed", "replicas were removed from here"),
    )
    return ", ".join(f"{groups[name]} {words}" for name, words in told if groups.get(name))


def _node_row(node: Facts, heard: str) -> list[Cell]:
    state: Cell = (node["state"], _STATE_STYLES[node["state"]])
    name, address = printable(node["node_id"]), printable(node.get("listen") or node.get("address"))
    if node["state"] != "up":
        return [name, state, *[(UNKNOWN, FAINT)] * 4, heard, *[(UNKNOWN, FAINT)] * 5, address]
    groups, loop, writer = node["groups"], node["loop"], node["writer"]
    lag = loop.get("lag_ms")
    return [
        name,
        state,
        str(groups["hosted"]),
        str(groups["led"]),
        _bad_if(groups["leaderless"]),
        _bad_if(groups["halted"]),
        heard,
        seconds(node.get("uptime_s")),
        (milliseconds(lag), UNSURE if lag is not None and lag > _SLOW_LOOP_MS else ""),
        _busy(loop.get("busy")),
        _busy(writer.get("busy")),
        str(node["proposals"]["pending"]),
        address,
    ]


def groups_page(answer: Facts, limit: int = 0) -> Page:
    page = Page()
    rows = answer["groups"]
    shown = rows[:limit] if limit else rows
    table = page.table(
        [
            Column("GROUP", right=True),
            Column("SERVICE"),
            Column("STATE"),
            Column("LEADER"),
            *[Column(title, right=True) for title in ("TERM", "COMMIT", "LAG", "PENDING")],
            Column("REPLICAS"),
            Column("SHARD", flexible=True),
        ]
    )
    for row in shown:
        table.rows.append(
            [
                str(row["group_id"]),
                printable(row["service"]),
                _state(row["state"]),
                printable(row["leader"]),
                *[printable(row[name]) for name in ("term", "commit", "lag", "pending")],
                " ".join(_member(replica, row["leader"]) for replica in sorted(row["replicas"], key=_node_name)),
                _shard(row["shard"]),
            ]
        )
    page.gap()
    counted = f"{len(rows)} of {answer['total']} groups" if len(rows) != answer["total"] else f"{len(rows)} groups"
    page.line(counted + (f", the first {len(shown)} shown" if len(shown) < len(rows) else ""))
    _add_problems(page, answer)
    return page


def _node_name(replica: Facts) -> str:
    return str(replica["node_id"])


def _member(replica: Facts, leader: str | None) -> str:
    """One replica in a few letters: `n1*` leads, `n2+5` lacks 5 entries, `n3?` did not answer, `n4!` is halted."""
    mark = "*" if replica["node_id"] == leader else ""
    if replica["member"] != "voter":
        mark += f"({replica['member']})"
    if replica["halted"]:
        mark += "!"
    if replica["silent"] is not None:
        mark += "?"
    elif replica["lag"]:
        mark += f"+{replica['lag']}"
    return printable(replica["node_id"]) + mark


def group_page(answer: Facts) -> Page:
    page = Page()
    row = answer["group"]
    page.line(f"group {row['group_id']} of service {row['service']}")
    page.gap()
    change = change_text(row["membership"], row["latest"])
    facts: list[tuple[str, Cell]] = [("state", _state(row["state"]))]
    if row["why"]:
        facts.append(("why", printable(row["why"])))
    facts += [
        ("leader", printable(row["leader"])),
        ("term", str(row["term"])),
        ("log", f"{_log_range(row)}, committed {row['commit']}, applied {row['applied']}"),
        ("pending", f"{row['pending']} proposals"),
        ("shard", _shard(row["shard"], long=True)),
        (
            "membership",
            f"as of index {row['membership']['index']}" + (" (joint)" if row["membership"].get("outgoing") else ""),
        ),
        *([("change", (printable(change), UNSURE))] if change else []),
        ("seen by", f"node {printable(row['seen_by'])}"),
    ]
    page.facts(facts)
    page.gap()
    table = page.table(
        [
            Column("REPLICA", right=True),
            Column("NODE"),
            Column("MEMBER"),
            Column("ROLE"),
            *[Column(title, right=True) for title in ("TERM", "LAST", "APPLIED", "MATCH", "LAG")],
            Column("PROGRESS"),
            Column("REMARK", flexible=True),
        ]
    )
    for replica in row["replicas"]:
        table.rows.append(
            [
                str(replica["replica_id"]),
                printable(replica["node_id"]),
                replica["member"],
                printable(replica["role"]),
                *[printable(replica[name]) for name in ("term", "last", "applied", "match", "lag")],
                printable(replica["progress"]),
                _remark(replica),
            ]
        )
    for tombstone in row["tombstones"]:
        gone = f"was removed, as of index {tombstone['index']}"
        cells: list[Cell] = [str(tombstone["replica_id"]), printable(tombstone["node_id"]), ("removed", FAINT)]
        table.rows.append([*cells, *[UNKNOWN] * 7, gone])
    _add_problems(page, answer)
    return page


def _remark(replica: Facts) -> Cell:
    if replica["halted"]:
        return printable(f"halted: {replica['halted']}"), BAD
    if replica["silent"] is not None:
        return printable(f"no answer: {replica['silent']}"), BAD
    if replica["role"] is None:
        return "the node says that it hosts no such replica", BAD
    if replica["member"] == "joining":
        return "becomes a voter once it has caught up", UNSURE
    if replica["member"] == "outgoing":
        return "votes until the joint change ends", UNSURE
    return UNKNOWN


def route_page(answer: Facts) -> Page:
    page = Page()
    leader = answer["leader"]
    page.facts(
        [
            ("key", printable(answer["key"])),
            ("service", printable(answer["service"])),
            ("routing key", printable(answer["routing_key"])),
            ("shard", _shard(answer["shard"], long=True)),
            ("group", str(answer["group_id"])),
            ("state", _state(answer["state"])),
            ("leader", printable(leader) if leader else ("none", BAD)),
            ("replicas on", printable(", ".join(answer["nodes"]))),
        ]
    )
    _add_problems(page, answer)
    return page


def log_page(answer: Facts, width: int) -> Page:
    """width  at most so many characters of an entry; 0: all that came"""
    page = Page()
    page.line(
        f"group {answer['group_id']} of service {answer['service']}: log of its {answer['role']} on node "
        f"{answer['node_id']}: {_log_range(answer)}, committed {answer['commit']}, applied {answer['applied']}"
    )
    page.gap()
    table = page.table(
        [
            Column("INDEX", right=True),
            Column("TERM", right=True),
            Column("STATE"),
            Column("KIND"),
            Column("TIME"),
            Column("SIZE", right=True),
            Column("ENTRY", flexible=True),
        ]
    )
    for row in answer["entries"]:
        text = entry_text(row["kind"], base64.b64decode(row["entry"]), row["cut"])
        state: Cell = "applied" if row["applied"] else ("committed" if row["committed"] else ("stored", UNSURE))
        table.rows.append(
            [
                str(row["index"]),
                str(row["term"]),
                state,
                printable(row["kind"]),
                moment(row["stamp_ms"]),
                size(row["size_bytes"]),
                cut(text, width),
            ]
        )
    return page


def storage_page(report: Facts) -> Page:
    page = Page()
    identity = report["identity"] or {}
    stores = identity.get("stores") or {}
    verdict: Cell = ("sound", GOOD) if report["healthy"] else (f"{len(report['problems'])} problems, see below", BAD)
    page.facts(
        [
            ("directory", printable(report["path"])),
            ("node", printable(identity.get("node_id"))),
            ("cluster", printable(identity.get("cluster_id") or None)),
            ("store", printable(identity.get("store_id"))),
            ("founded by", printable(", ".join(sorted(stores)) or None)),
            ("starts", printable(report["incarnation"])),
            ("last stop", "orderly" if report["closed_orderly"] else ("not orderly: killed, or crashed", UNSURE)),
            ("verdict", verdict),
        ]
    )
    page.gap()
    table = page.table(
        [
            Column("GROUP", right=True),
            Column("SERVICE"),
            *[Column(title, right=True) for title in ("REPLICA", "TERM", "VOTE", "COMMIT")],
            Column("LOG"),
            *[Column(title, right=True) for title in ("RECORDS", "SIZE")],
            Column("MEMBERS"),
            Column("CHECK"),
        ]
    )
    for group in report["groups"]:
        damaged = len(group["problems"])
        members = (group["membership"] or {}).get("nodes") or {}
        table.rows.append(
            [
                str(group["group_id"]),
                *[printable(group[name]) for name in ("service", "replica_id", "term", "vote", "commit")],
                _log_range(group),
                str(group["records"]),
                size(group["size_bytes"]),
                printable(
                    " ".join(f"{replica_id}:{node_id}" for replica_id, node_id in sorted(members.items())) or None
                ),
                (f"{damaged} problems", BAD) if damaged else ("removed", UNSURE) if group["removed"] else ("ok", GOOD),
            ]
        )
    if report["tombstones"]:
        page.gap()
        gone = page.table([Column(title, right=True) for title in ("REMOVED FROM GROUP", "REPLICA", "AS OF INDEX")])
        for tombstone in report["tombstones"]:
            gone.rows.append([str(tombstone[name]) for name in ("group_id", "replica_id", "index")])
    _add_problems(page, report, most=50)
    return page


def _log_range(row: Facts) -> str:
    return f"{row['first']}..{row['last']}" if row["last"] >= row["first"] else "empty"


def _state(state: str) -> Cell:
    return printable(state), _STATE_STYLES.get(state, "")


def _shard(shard: Facts | None, long: bool = False) -> str:
    if shard is None:
        return UNKNOWN
    start, end = shard["start"] or "", shard["end"]
    digits = 2 * _EDGE_BYTES if long else _EDGE_DIGITS
    limits = f"[{cut(start, digits) or 'start'}, {'end' if end is None else cut(end, digits)})"
    text = f"{shard['shard_id']} {limits}"
    return printable(f"{text}, epoch {shard['epoch']}" if long else text)


def _bad_if(count: int) -> Cell:
    return (str(count), BAD) if count else "0"


def _busy(share: float | None) -> Cell:
    return percent(share), UNSURE if share is not None and share > _BUSY else ""


def _add_problems(page: Page, answer: Mapping[str, Any], most: int = 10) -> None:
    problems = answer["problems"]
    if not problems:
        return
    page.gap()
    for problem in problems[:most]:
        page.line(f"! {problem}", BAD)
    if len(problems) > most:
        page.line(f"! and {len(problems) - most} more (--json shows all)", BAD)
