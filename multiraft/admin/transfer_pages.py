"""What `multiraft transfers` shows.

Rules of this file: pure functions from a JSON object to a Page; what is bad is said in words as well as in colour.
"""

from __future__ import annotations

from multiraft.admin.formats import percent, printable, size
from multiraft.admin.tables import BAD, FAINT, UNSURE, Cell, Column, Page
from multiraft.admin.view import Facts


def transfers_page(answer: Facts) -> Page:
    page = Page()
    rows = answer["transfers"]
    if rows:
        table = page.table(
            [
                Column("GROUP", right=True),
                *[Column(title) for title in ("FROM", "TO")],
                *[Column(title, right=True) for title in ("INDEX", "HERE", "OF", "SHARE")],
                Column("STAGE"),
                Column("PROBLEM", flexible=True),
            ]
        )
        for row in rows:
            share = row["bytes"] / row["of"] if row["of"] else 1.0
            problem: Cell = (printable(row["problem"]), UNSURE) if row["problem"] else printable(None)
            table.rows.append(
                [
                    str(row["group_id"]), printable(row["from"]), printable(row["to"]), printable(row["index"]),
                    size(row["bytes"]), size(row["of"]), percent(share), row["stage"], problem,
                ]
            )  # fmt: skip
    else:
        page.line("no snapshot is on its way", FAINT)
    if answer["problems"]:
        page.gap()
        for problem in answer["problems"]:
            page.line(f"! {problem}", BAD)
    return page
