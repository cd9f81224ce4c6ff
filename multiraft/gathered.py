"""The ordinary messages of many groups as one: what a node's groups have to append, or acknowledge, at another node.

A node that leads many groups sends all of them in one turn, and hears of all of them from one sync. Each would be a
message of a few numbers, and making, packing, unpacking and judging these costs more than what they bring about. So a
turn's ordinary ones travel as rows of numbers. Whatever is out of the ordinary is a message of its own.

Rules of this file: values only; a row says exactly what the single message (multiraft.messages) of its kind would.
"""

from __future__ import annotations

from typing import ClassVar, TypeAlias

from multiraft.records import Record
from multiraft.types import GroupId, Index, ReplicaId, Term

AppendRow: TypeAlias = tuple[Index, GroupId, Index, Term, ReplicaId, Term, ReplicaId]
"""The numbers of an Append of one record: commit, group, previous index, previous term, sender, term, to."""
AckRow: TypeAlias = tuple[GroupId, Index, ReplicaId, Term, ReplicaId]
"""The numbers of an AppendAnswer that accepts: group, index, sender, term, to."""


class Appends:
    """Appends of one record each; `rows` and `records` belong together, in order."""

    CODE: ClassVar[int] = 12
    __slots__ = ("records", "rows")

    def __init__(self, records: list[Record], rows: list[AppendRow]) -> None:
        self.records = records
        self.rows = rows


class Acks:
    """Answers to appends that were accepted; each leaves only when what it says is on disk."""

    CODE: ClassVar[int] = 13
    __slots__ = ("rows",)

    def __init__(self, rows: list[AckRow]) -> None:
        self.rows = rows
