"""The files of snapshots on their way between nodes: GET /transfers.

The node that fetches a file knows all of its transfer; one that only sends it is believed where the other did not
answer. Rules of this file: pure functions of what nodes say of themselves, but for the handler, which asks them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from aiohttp import web

from multiraft.admin.answers import checked_query, json_answer
from multiraft.admin.asking import Asking
from multiraft.admin.view import Facts, Silence, silence_problems
from multiraft.types import NodeId

FAILURES_MANY: Final = 3
"""So many failed attempts in a row are a problem, not the network's usual weather."""


class TransferApi:
    """The handler."""

    def __init__(self, asking: Asking) -> None:
        self._asking = asking

    async def transfers(self, request: web.Request) -> web.Response:
        checked_query(request)
        return json_answer(merge_transfers(await self._asking.each(self._asking.all_nodes(), "admin.status", {})))


def merge_transfers(answers: Mapping[NodeId, Facts | Silence]) -> Facts:
    """Return one row per file on its way, by group and receiver; `stage` is "sending" where only its owner tells."""
    silent = {name: answer.why for name, answer in answers.items() if isinstance(answer, Silence)}
    told: dict[tuple[str, NodeId], Facts] = {}
    for name, answer in answers.items():
        if not isinstance(answer, Silence):
            for row in answer.get("transfers", {}).get("outgoing", []):
                seen = {"stage": "sending", "index": None, "failures": 0, "problem": None}
                told[row["name"], row["to"]] = {**seen, **row, "from": name}
    for name, answer in answers.items():
        if not isinstance(answer, Silence):
            for row in answer.get("transfers", {}).get("incoming", []):
                told[row["name"], name] = {**row, "to": name}
    rows = sorted(told.values(), key=lambda row: (row["group_id"], row["to"]))
    problems = [*silence_problems(silent), *_problems(rows)]
    return {"healthy": not problems, "problems": problems, "silent": silent, "transfers": rows}


def _problems(rows: list[Facts]) -> list[str]:
    return [
        f"group {row['group_id']}: node {row['to']} has failed {row['failures']} times to fetch its snapshot from node "
        f"{row['from']}: {row['problem']}"
        for row in rows
        if row["failures"] >= FAILURES_MANY
    ]
