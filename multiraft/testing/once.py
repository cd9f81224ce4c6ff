"""Exactly once, checked from outside: where every numbered command was applied, and what was said of it.

    applied       at one index at most, on all replicas and in all their lives
    acknowledged  only what was applied, and with the result of that
    remembered    the same by all replicas of a group that have applied the same

Rules of this file: it looks and never touches; what it finds is reported once.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Final, TypeAlias

from multiraft.engine.executing import Run
from multiraft.engine.machine import Context
from multiraft.engine.replica import Replica
from multiraft.errors import CommandFailed
from multiraft.records import SESSION
from multiraft.sessions import HEAD
from multiraft.types import GroupId, Index, NodeId

Number: TypeAlias = tuple[bytes, int]
"""Client and sequence."""
Outcome: TypeAlias = bytes | str
"""A result, or the text of what the command raised."""


class Once:
    """What has become of all numbered commands of one cluster; it outlives the nodes.

    counts  numbered: applied commands that had a number, each once; repeated: entries that a replica answered without
            applying them; acknowledged: answers to numbered commands that were compared
    """

    def __init__(self, report: Callable[[str], None], counts: Counter[str]) -> None:
        self._report = report
        self._counts = counts
        self._applied: dict[GroupId, dict[Number, tuple[Index, Outcome]]] = {}

    def watch(self, replica: Replica, node_id: NodeId, applied: Callable[[], Outcome | None]) -> None:
        """Look at each numbered entry that `replica` runs.

        applied  returns what the machine has come to since it was asked last; None: it was not called
        """
        group_id, runs = replica.group_id, replica.executor.runs
        run: Final[Run] = runs[SESSION]

        def observed(entry: bytes, context: Context) -> bytes | Exception:
            applied()
            answer = run(entry, context)
            outcome = applied()
            if outcome is None:
                self._counts["repeated"] += 1
            elif len(entry) >= HEAD.size:
                client, sequence, _ = HEAD.unpack_from(entry)
                self._was_applied(group_id, node_id, (client, sequence), context.index, outcome)
            return answer

        runs[SESSION] = observed  # type: ignore[assignment] # it returns what `run` does

    def applied(self, replica: Replica, node_id: NodeId, index: Index, command: bytes, outcome: Outcome) -> None:
        """`replica` has applied `command` of its entry `index`, among others at once, and it came to `outcome`."""
        record = replica.executor.doing.record
        if record is None or record.kind != SESSION:
            return
        entry = record.entries()[index - record.first]
        client, sequence, _ = HEAD.unpack_from(entry)
        if entry[HEAD.size :] != command:
            self._report(f"exactly once: group {replica.group_id}: index {index} is another command on node {node_id}")
        self._was_applied(replica.group_id, node_id, (client, sequence), index, outcome)

    def _was_applied(self, group_id: GroupId, node_id: NodeId, number: Number, index: Index, outcome: Outcome) -> None:
        of_group = self._applied.setdefault(group_id, {})
        before = of_group.get(number)
        if before is None:
            of_group[number] = index, outcome
            self._counts["numbered"] += 1
        elif before[0] != index:
            self._report(
                f"exactly once: group {group_id}: sequence {number[1]} of client {number[0].hex()} was applied at "
                f"index {before[0]}, and on node {node_id} at index {index} again"
            )

    def acknowledged(self, group_id: GroupId, entry: bytes, answer: bytes | BaseException) -> None:
        """A leader has answered a numbered command; errors other than CommandFailed acknowledge nothing."""
        if not isinstance(answer, bytes | CommandFailed):
            return
        self._counts["acknowledged"] += 1
        client, sequence, _ = HEAD.unpack_from(entry)
        where = f"exactly once: group {group_id}: sequence {sequence} of client {client.hex()}"
        applied = self._applied.get(group_id, {}).get((client, sequence))
        said: Outcome = answer if isinstance(answer, bytes) else str(answer)
        if applied is None:
            self._report(f"{where} was acknowledged with {said!r:.120}, and never applied")
        elif applied[1] != said:
            self._report(
                f"{where} came to {applied[1]!r:.120} at index {applied[0]}; its caller was told {said!r:.120}"
            )

    def compare(self, replicas: dict[NodeId, Replica]) -> None:
        """Compare what the replicas of one group remember, which have all applied the same."""
        if not replicas:
            return
        tables = {node_id: list(replica.executor.sessions.pairs()) for node_id, replica in replicas.items()}
        first, *others = tables
        for other in others:
            if tables[other] != tables[first]:
                group_id = replicas[first].group_id
                apart = [key.hex() for key, _ in set(tables[first]) ^ set(tables[other])]
                self._report(
                    f"exactly once: group {group_id}: nodes {first} and {other} remember different sessions: "
                    f"{', '.join(sorted(apart)[:4])}"
                )
