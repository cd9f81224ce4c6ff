"""From messages of many groups to those of one group each, for who must look at, or lose, every single one.

Rules of this file: what is said stays the same, and in its order.
"""

from __future__ import annotations

from collections.abc import Sequence

from multiraft.gathered import Acks, Appends
from multiraft.messages import Append, AppendAnswer, NodeMessage


def singly(messages: Sequence[NodeMessage]) -> list[NodeMessage]:
    """Return what says the same in messages of one group each."""
    single: list[NodeMessage] = []
    for message in messages:
        if type(message) is Acks:
            single += [AppendAnswer(True, group_id, 0, 0, index, *rest) for group_id, index, *rest in message.rows]
        elif type(message) is Appends:
            for row, record in zip(message.rows, message.records, strict=True):
                commit, group_id, index, prev_term, sender, term, to = row
                single.append(Append(commit, group_id, index, prev_term, (record,), sender, term, to))
        else:
            single.append(message)
    return single
